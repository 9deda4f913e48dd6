package simulation

import (
	"crypto/ed25519"
	"encoding/json"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice"
	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/simnet"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Modules that lie and are lost, disks that are put back, lists that an admin
// changes, memberships that state resolution forgets.

// chooseLiar picks the module that may lie: one of those that a room lists.
func (w *world) chooseLiar() {
	if w.script.faults.liar {
		w.modules[w.rng.IntN(min(3, len(w.modules)))].liar = true
	}
}

// liar returns the module that may lie, nil if there is none.
func (w *world) liar() *module {
	for _, m := range w.modules {
		if m.liar {
			return m
		}
	}
	return nil
}

// keys returns a module's private keys.
func (m *module) keys() *appservice.Keys {
	keys, _, err := appservice.EnsureKeys(m.w.ctx, m.st, m.w.reader(m.name))
	if err != nil {
		m.w.fail("keys of %s: %v", m.name, err)
	}
	return keys
}

// keyOf tells which of a module's receipt keys signed a receipt.
func (m *module) keyOf(r federation.Receipt) int {
	if !m.w.script.faults.backup {
		return 0
	}
	scope := federation.Scope{Room: string(m.w.room)}
	keys := m.keys()
	for i, key := range append([]ed25519.PrivateKey{keys.Receipt}, keys.Later...) {
		if r.VerifySignature(scope, key.Public().(ed25519.PublicKey)) == nil {
			return i
		}
	}
	m.w.fail("%s signs with a key that is not its own", m.name)
	return 0
}

// receiptKey returns the key that a module signs with now.
func (m *module) receiptKey() ed25519.PrivateKey {
	keys := m.keys()
	if n := len(keys.Later); n > 0 {
		return keys.Later[n-1]
	}
	return keys.Receipt
}

// note remembers a head that a module posted.
func (m *module) note(kind string, content json.RawMessage) {
	if kind == rooms.TypeHead && m.liar {
		m.posted = append(m.posted, slices.Clone(content))
	}
}

// unaware leaves out of what a module gets what was sent behind its back.
func (m *module) unaware(list []json.RawMessage) []json.RawMessage {
	if len(m.forged) == 0 {
		return list
	}
	return slices.DeleteFunc(list, func(raw json.RawMessage) bool {
		var e struct {
			ID id.EventID `json:"event_id"`
		}
		return json.Unmarshal(raw, &e) == nil && m.forged[e.ID]
	})
}

// lie sends something as a module that its program knows nothing of.
func (m *module) lie(kind string, content json.RawMessage) {
	if m.server.Membership(m.w.room, m.user) != "join" {
		return
	}
	m.w.stats.lies++
	var key *string
	if kind == rooms.TypeHead {
		user := string(m.user)
		key = &user
	}
	e := m.server.Send(m.user, m.w.room, kind, key, content)
	m.forged[e.ID] = true
}

// stepLie: a listed module signs what contradicts what it signed before, keeps what
// it signed to itself, shows an old head, or proposes to remove who is in the room.
func (w *world) stepLie(st step) {
	m := w.liar()
	if m == nil || !m.up || m.lost {
		return
	}
	scope := federation.Scope{Room: string(w.room)}
	switch st.b % 6 {
	case 0:
		m.withhold = !m.withhold
		w.stats.lies++
		w.trace("%s withholds: %v", m.name, m.withhold)
	case 1, 2: // an accept beside the last one, in its ballot
		ref := w.order[len(w.order)-1-int(st.c)%min(6, len(w.order))]
		c := w.commits[ref]
		if m.accept == nil || c.parent.IsZero() || ref == m.accept.Ref {
			return
		}
		forged := *m.accept
		forged.Ref, forged.Parent, forged.Epoch, forged.Votes, forged.EventID = ref, c.parent, c.epoch, nil, string(c.event)
		if forged.Sign(scope, m.receiptKey()) != nil {
			return
		}
		if raw, err := rooms.Encode(rooms.AcceptOf(&forged)); err == nil {
			m.lie(rooms.TypeAccept, raw)
		}
	case 3: // a vote beside the last one, with whatever shows that it is vouched for
		ref := w.order[len(w.order)-1-int(st.c)%min(6, len(w.order))]
		if m.vote == nil || ref == m.vote.Ref {
			return
		}
		forged := *m.vote
		forged.Ref, forged.EventID = ref, string(w.commits[ref].event)
		forged.Proofs = w.vouching(ref)
		if forged.Sign(scope, m.receiptKey()) != nil {
			return
		}
		if raw, err := rooms.Encode(rooms.VoteOf(&forged)); err == nil {
			m.lie(rooms.TypeVote, raw)
		}
	case 4: // an old head, or one with other commits in it
		if len(m.posted) == 0 {
			return
		}
		head, err := rooms.DecodeHead(m.posted[int(st.c)%len(m.posted)])
		if err != nil {
			return
		}
		head.Nonce += "again"
		if ref := w.order[int(st.c)%len(w.order)]; st.a%2 == 0 && head.Accepted != nil {
			head.Accepted.Ref, head.Accepted.Event, head.Accepted.Epoch = rooms.Hash(ref), w.commits[ref].event, w.commits[ref].epoch
			head.Final = head.Accepted
		}
		if raw, err := rooms.Encode(head); err == nil {
			m.lie(rooms.TypeHead, raw)
		}
	case 5:
		w.forgeRemove(m, st)
	}
}

// vouching collects the statements of members for a commit.
func (w *world) vouching(ref federation.Ref) (out []federation.Proof) {
	for _, e := range w.net.Servers[0].All(w.room) {
		if e.Type != rooms.TypeApplied {
			continue
		}
		if ev, err := rooms.DecodeReceipt(e.Type, string(e.ID), e.Content); err == nil {
			if a, ok := ev.(*federation.Applied); ok && a.Ref == ref && len(out) < 4 {
				out = append(out, federation.Proof{Applied: a})
			}
		}
	}
	return out
}

// forgeRemove lets a module propose to remove somebody who never left.
func (w *world) forgeRemove(m *module, st step) {
	machine := m.machine()
	if machine == nil {
		return
	}
	head := machine.Head()
	tree, err := m.probe.Group(w.room, head)
	if err != nil {
		return
	}
	key, ok := m.keys().External[tree.CipherSuite().SignatureScheme()]
	if !ok {
		return
	}
	leaves := rooms.GroupLeaves(tree)
	victim := leaves[int(st.c)%len(leaves)].Index
	for index := range uint32(8) {
		message, err := mls.NewExternalProposal(tree.CipherSuite(), tree.GroupID(), tree.Epoch(), index, key, mls.Remove(victim), rooms.MessageAAD{Head: head}.Encode())
		if err != nil {
			return
		}
		raw, err := rooms.Encode(&rooms.ProposalContent{Epoch: tree.Epoch(), Parent: rooms.Hash(head), Message: message})
		if err != nil {
			return
		}
		m.lie(rooms.TypeProposal, raw)
	}
}

// stepPropose: a member proposes what only a commit of an entitled one may do: to
// remove somebody, or to add a stranger.
func (w *world) stepPropose(st step) {
	d := pick(w.devices, st.a, func(d *device) bool { return d.member() && d.user != w.devices[0].user })
	if d == nil {
		return
	}
	h := d.held()
	head := h.Machine.Head()
	group := h.Epochs[head]
	if group == nil {
		return
	}
	random := w.reader("proposal")
	cfg := &mls.Config{Rand: random, Now: d.clock.wall, Authenticator: rooms.Authenticator{}}
	at := w.net.User(d.user).Devices[d.id]
	copied, err := mls.LoadGroup(cfg, group.EpochState(), group.RatchetState())
	if err != nil || at == nil {
		w.fail("copy of a group: %v", err)
	}
	leaves := rooms.GroupLeaves(copied)
	p := mls.Remove(leaves[int(st.c)%len(leaves)].Index)
	if st.b%2 == 0 {
		key, err := mls.GenerateSignatureKey(suite, random)
		if err != nil {
			w.fail("%v", err)
		}
		stranger := rooms.Credential{User: id.UserID("@stranger:" + d.server.Name), Device: "D1", Key: key.Public()}
		bundle, err := mls.NewKeyPackage(cfg, suite, key, rooms.LeafOptions(stranger))
		if err != nil {
			w.fail("%v", err)
		}
		p = mls.Add(bundle.KeyPackage())
	}
	message, _, err := copied.Propose(p, mls.FramingOptions{AuthenticatedData: rooms.MessageAAD{Head: head}.Encode()})
	if err != nil {
		return
	}
	raw, err := rooms.Encode(&rooms.ProposalContent{Epoch: copied.Epoch(), Parent: rooms.Hash(head), Message: message})
	if err != nil {
		w.fail("%v", err)
	}
	w.stats.lies++
	d.server.Send(d.user, w.room, rooms.TypeProposal, nil, raw)
}

// halve lets half of the others be unable to apply a commit.
func (w *world) halve(d *device, msg *mls.Message) {
	ref, err := rooms.CommitRef(msg)
	if err != nil {
		w.fail("%v", err)
	}
	if w.half[ref] != nil {
		return
	}
	blind := map[*device]bool{}
	for _, o := range w.devices {
		if o != d && w.rng.IntN(2) == 0 {
			blind[o] = true
		}
	}
	w.half[ref] = blind
	w.stats.lies++
	w.trace("%s makes a commit that some cannot apply: %s", d.name, ref.Short())
}

// blind tells whether a device cannot apply a commit.
func (d *device) blind(ref federation.Ref) bool { return d.w.half[ref][d] }

// swapTag changes the confirmation tag of a commit at its sender's server, which
// cannot sign anew what the sender signed.
func (w *world) swapTag(d *device, kind string, content json.RawMessage) json.RawMessage {
	if kind != rooms.TypeCommit || !w.lying || !w.swapping[d.server.Name] || w.rng.IntN(2) == 0 {
		return content
	}
	c, err := rooms.DecodeCommit(content)
	if err != nil || c.File != nil || c.Epoch == 0 {
		return content
	}
	msg, err := mls.ParseMessage(c.Message)
	if err != nil {
		return content
	}
	at := len(c.Message) - 1
	if s, ok := msg.Sender(); ok && s.Type == mls.SenderTypeMember {
		at -= 1 + 32 // the membership tag
	}
	c.Message[at] ^= 2 // a member may have changed the other bit
	raw, err := rooms.Encode(c)
	if err != nil {
		return content
	}
	if msg, err = mls.ParseMessage(c.Message); err == nil {
		if ref, err := rooms.CommitRef(msg); err == nil {
			w.spoiled[ref] = true
		}
	}
	w.stats.lies++
	w.trace("%s swaps the tag of a commit of %s", d.server.Name, d.name)
	return raw
}

// stepList: an admin names the modules of a room.
func (w *world) stepList(st step) {
	admin := pick(w.devices, st.a, func(d *device) bool { return d.member() && d.user == w.devices[0].user })
	if admin == nil {
		return
	}
	var servers []string
	for i, m := range w.modules {
		if st.b>>i&1 == 1 && !m.lost {
			servers = append(servers, m.server.Name)
		}
	}
	if len(servers) == 0 {
		return
	}
	w.stats.lists++
	w.trace("%s names the modules %v", admin.name, servers)
	_ = w.list(admin, servers)
}

// stepHang: a module does nothing for minutes, or, one of several, never again.
func (w *world) stepHang(st step) {
	m := pick(w.modules, st.a, func(m *module) bool { return m.up && !m.lost })
	if m == nil {
		return
	}
	w.stats.hangs++
	if st.c%6 == 0 && w.lost == nil && len(w.modules) > 2 {
		w.trace("%s is lost for good", m.name)
		m.stop()
		m.lost, w.lost = true, m
		return
	}
	m.away = max(m.away, w.net.Now+time.Duration(60+st.b%600)*time.Second)
	w.trace("%s hangs until %v", m.name, m.away)
}

// stepReset: state resolution at all servers forgets the newest membership of
// somebody, and tells nobody.
func (w *world) stepReset(st step) {
	if w.net.Parted() {
		return
	}
	newest := func(s *simnet.Server, user id.UserID) *simnet.Event {
		for _, e := range s.State(w.room) {
			if e.Type == rooms.TypeMember && *e.StateKey == string(user) {
				return e
			}
		}
		return nil
	}
	d := pick(w.devices, st.a, func(d *device) bool {
		if d.user == w.devices[0].user || d.stranger || newest(d.server, d.user) == nil {
			return false
		}
		for _, s := range w.net.Servers {
			if s.In(w.room) && (newest(s, d.user) != newest(d.server, d.user) || s.Membership(w.room, d.user) != "join") {
				return false
			}
		}
		return true
	})
	if d == nil {
		return
	}
	w.stats.resets++
	for _, s := range w.net.Servers {
		for range 1 + st.b%2 {
			if s.In(w.room) {
				s.Forget(w.room, d.user, w.script.without != forgottenUntold)
			}
		}
	}
	w.left[d.user] = true
	w.trace("all servers forget the newest membership of %s, who is now at %s", d.user, d.server.Membership(w.room, d.user))
}

// stepBackup: a disk is copied, or the copy put back, as a program finds it that
// was not running meanwhile.
func (w *world) stepBackup(st step) {
	if st.a%3 == 0 {
		m := w.modules[int(st.b)%len(w.modules)]
		switch {
		case m.lost || !m.up:
		case m.backup == nil:
			m.backup = m.copy()
		default:
			w.trace("%s is put back", m.name)
			m.stop()
			m.image, m.backup = m.backup, nil
			m.restore()
			m.observed.init()
			m.next = w.net.Now
			w.stats.restores++
		}
		return
	}
	d := w.devices[int(st.b)%len(w.devices)]
	switch {
	case d.gone || !d.up:
	case d.backup == nil:
		d.backup = d.copy()
	default:
		w.trace("%s is put back", d.name)
		d.stop()
		d.image, d.backup = d.backup, nil
		d.disk.restore()
		d.sealing, d.restored = nil, w.net.Now
		d.observed.init()
		d.next = w.net.Now
		w.stats.restores++
	}
}

var contradictions = []federation.EvidenceKind{
	federation.EvidenceAccepts, federation.EvidenceVotes, federation.EvidencePromises, federation.EvidenceHidden, federation.EvidenceOwner,
}

// evident: 2, where two commits of one era were final, everybody who knows both has
// the proof of who lied.
func (w *world) evident() {
	if w.conflict.IsZero() {
		return
	}
	liar := w.liar()
	for _, d := range w.devices {
		for _, u := range d.updates {
			if warning, ok := u.(*client.Warning); ok && warning.Sender == liar.user && slices.Contains(contradictions, federation.EvidenceKind(warning.Rule)) {
				return
			}
		}
	}
	broken("2 finality", "%s is final beside another commit, and nothing shows that %s lied", w.conflict.Short(), liar.name)
}
