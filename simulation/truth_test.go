package simulation

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/internal/simnet"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// planted begins every message's text: nobody but members may see it.
const planted = "planted-plaintext"

// truth is what the simulation knows of a run: everything that was sent, and what
// any node ever held. The properties are checked against it.
type truth struct {
	w        *world
	commits  map[federation.Ref]*commit
	epochs   map[federation.Ref]*epoch
	finals   map[uint64]federation.Ref // deepest final that anybody saw, by era
	root     federation.Ref
	admitted map[id.UserID][]id.UserID // whom a member let in, and who did
	begun    map[id.UserID]bool        // whom a member began to let in, and died
	left     map[id.UserID]bool        // who left, or was put out, at any time
	uses     map[[32]byte]usedKey
	messages []*message
	welcomed map[string][]byte // key package → the Welcome that was sent for it
	accepted map[federation.Ref]bool
	applied  map[federation.Ref]bool               // commits that another user than the author said it applied
	order    []federation.Ref                      // commits as they were sent
	spoiled  map[federation.Ref]bool               // commits that nobody can apply
	half     map[federation.Ref]map[*device]bool   // commits that these cannot apply
	knew     map[federation.Ref]map[id.UserID]bool // whom a commit's author saw out of the room before making it
	proposed []removal
	moved    map[id.UserID]time.Duration          // when somebody's membership changed last
	owed     map[federation.Ref][]rooms.GroupLeaf // whom a commit that was accepted has to have taken out
	secrets  secrets
	events   int
	digest   hash.Hash // of everything that was sent
}

func (t *truth) init(w *world) {
	*t = truth{
		w: w, commits: map[federation.Ref]*commit{}, epochs: map[federation.Ref]*epoch{}, finals: map[uint64]federation.Ref{},
		admitted: map[id.UserID][]id.UserID{}, begun: map[id.UserID]bool{}, left: map[id.UserID]bool{}, uses: map[[32]byte]usedKey{}, welcomed: map[string][]byte{}, accepted: map[federation.Ref]bool{},
		applied: map[federation.Ref]bool{}, spoiled: map[federation.Ref]bool{}, half: map[federation.Ref]map[*device]bool{}, knew: map[federation.Ref]map[id.UserID]bool{},
		moved: map[id.UserID]time.Duration{}, owed: map[federation.Ref][]rooms.GroupLeaf{},
		digest: sha256.New(),
	}
	t.secrets.init()
}

// commit is a commit that was sent.
type commit struct {
	ref, parent federation.Ref
	depth       int
	epoch       uint64
	external    bool
	era         bool // it opens an era
	sender      id.UserID
	event       id.EventID
	at          time.Duration
}

// epoch is an epoch that somebody holds.
type epoch struct {
	number        uint64
	authenticator []byte // nil: only modules hold it
	treeHash      []byte
	leaves        []rooms.GroupLeaf
	by            string
	holders       map[id.UserID]bool // whose devices entered it
}

type usedKey struct {
	content [32]byte
	by      string
}

// message is a message that a device took on to send.
type message struct {
	author *device
	text   string
	at     time.Duration
	refs   []federation.Ref // epochs that it was sent in
	events []id.EventID
}

// observed is what was seen of a node.
type observed struct {
	checked map[federation.Ref]bool
	era     uint64
	final   federation.Ref
	head    federation.Ref
	joined  map[federation.Ref]bool // commits that it came in with, and that were confirmed
	entered map[federation.Ref]bool // commits that it told its program of as on the head
	out     map[id.UserID]bool      // who was out of the room when it was last looked at
	newest  federation.Ref          // the deepest commit that was final for it since it was started, or came in
	shown   map[string]id.EventID   // messages that it told its program of, by what they say
}

func (o *observed) init() {
	o.checked, o.joined, o.entered = map[federation.Ref]bool{}, map[federation.Ref]bool{}, map[federation.Ref]bool{}
	o.out, o.newest, o.shown = nil, federation.Ref{}, map[string]id.EventID{}
}

func (w *world) allow(by, user id.UserID) { w.admitted[user] = append(w.admitted[user], by) }

func (w *world) queued(d *device, text string) {
	w.stats.messages++
	w.messages = append(w.messages, &message{author: d, text: text, at: w.net.Now})
}

// use counts a message key that a device used: 15, no key and nonce twice.
func (w *world) use(d *device, s sealed) {
	w.stats.seals++
	if old, used := w.uses[s.use]; used && old.content != s.content {
		w.later = &violation{"15 crash safety", fmt.Sprintf("%s uses a key and nonce that %s has used for something else", d.name, old.by)}
	}
	w.uses[s.use] = usedKey{s.content, d.name}
}

// raise ends the run for what broke inside of a transaction, once that has ended.
func (w *world) raise() {
	if w.later != nil {
		panic(w.later)
	}
}

// sent hears of every event.
func (w *world) sent(at *simnet.Server, e *simnet.Event) {
	w.truth.events++
	w.stats.events++
	fmt.Fprintf(w.digest, "%d %s %s %s\n", w.net.Now, at.Name, e.ID, e.Raw())
	sealedIn("an event of type "+e.Type, e.Content)
	if len(e.Content) > rooms.MaxEventSize {
		broken("no failure", "%s sends an event of %d bytes", e.Sender, len(e.Content))
	}
	if e.StateKey != nil && e.Type == rooms.TypeMember {
		w.moved[id.UserID(*e.StateKey)] = w.net.Now
		switch m := membershipOf(e.Content); m {
		case "leave", "ban":
			w.left[id.UserID(*e.StateKey)] = true
		}
	}
	switch e.Type {
	case rooms.TypeCommit:
		w.noteCommit(e)
	case rooms.TypeAccept:
		if c, err := rooms.DecodeAccept(e.Content); err == nil {
			w.owes(e.Sender, federation.Ref(c.Ref))
			w.accepted[federation.Ref(c.Ref)] = true
			w.goesOn(at, e.Sender, federation.Ref(c.Ref))
		}
	case rooms.TypeProposal:
		w.noteRemoval(e)
	case rooms.TypeRepost: // of one that its module kept to itself first, perhaps
		if c, err := rooms.DecodeRepost(e.Content); err == nil && c.Type == rooms.TypeAccept {
			if a, err := rooms.DecodeAccept(c.Content); err == nil {
				w.accepted[federation.Ref(a.Ref)] = true
			}
		}
	case rooms.TypeHead:
		if h, err := rooms.DecodeHead(e.Content); err == nil {
			w.acceptShown(at, h)
		}
	case rooms.TypeApplied:
		if c, err := rooms.DecodeReceipt(e.Type, string(e.ID), e.Content); err == nil {
			// The author's own word vouches for nothing.
			if ref := c.(*federation.Applied).Ref; w.commits[ref] != nil && w.commits[ref].sender != e.Sender {
				w.applied[ref] = true
			}
		}
	}
	w.trace("%s: %s by %s %s", at.Name, e.Type, e.Sender, w.describe(e))
}

// acceptShown notes the accept that a module's head shows: it counts there, too, if it
// never came by itself.
func (w *world) acceptShown(at *simnet.Server, h *rooms.HeadContent) {
	raw := []byte(h.Proof)
	if h.ProofFile != nil {
		raw, _ = at.Download(string(h.ProofFile.MXC), h.ProofFile.Size)
	}
	if p, err := rooms.DecodeProof(raw); err == nil && p.Accept != nil {
		w.accepted[p.Accept.Ref] = true
	}
}

// goesOn counts a cut of which a second side goes on with a branch of its own.
func (w *world) goesOn(at *simnet.Server, by id.UserID, ref federation.Ref) {
	if l := w.liar(); w.wentOn == nil || !w.net.Parted() || w.commits[ref] == nil || l != nil && l.user == by {
		return
	}
	for side, other := range w.wentOn {
		if side != at.Side() && !w.extends(ref, other) && !w.extends(other, ref) {
			w.stats.sides++
			w.wentOn = nil
			return
		}
	}
	w.wentOn[at.Side()] = ref
}

func membershipOf(content json.RawMessage) string {
	var c struct {
		Membership string `json:"membership"`
	}
	_ = json.Unmarshal(content, &c)
	return c.Membership
}

// describe names what an event is about.
func (w *world) describe(e *simnet.Event) string {
	switch e.Type {
	case rooms.TypeMember:
		return *e.StateKey + " " + membershipOf(e.Content)
	case rooms.TypeCommit:
		for _, c := range w.commits {
			if c.event == e.ID {
				return c.ref.Short() + " on " + c.parent.Short()
			}
		}
	case rooms.TypeAccept, rooms.TypeVote, rooms.TypePromise, rooms.TypeReady, rooms.TypeApplied, rooms.TypeReject:
		if ev, err := rooms.DecodeReceipt(e.Type, string(e.ID), e.Content); err == nil {
			switch ev := ev.(type) {
			case *federation.Accept:
				return fmt.Sprintf("%s %s provisional=%v", ev.Ref.Short(), ev.Ballot, ev.Provisional)
			case *federation.Vote:
				return fmt.Sprintf("%s %s", ev.Ref.Short(), ev.Ballot)
			case *federation.Promise:
				return fmt.Sprintf("%s by rank %d", ev.Ballot, ev.Promiser)
			case *federation.Ready:
				return ev.Config.Short()
			case *federation.Applied:
				return ev.Ref.Short()
			case *federation.Rejected:
				return ev.Ref.Short()
			}
		}
	}
	return string(e.ID)
}

// noteCommit remembers a commit that was sent.
func (w *world) noteCommit(e *simnet.Event) {
	content, err := rooms.DecodeCommit(e.Content)
	if err != nil {
		return
	}
	if content.File != nil {
		data := w.net.Media()[string(content.File.MXC)]
		bundle, err := rooms.DecodeCommitBundle(data)
		if err != nil {
			return
		}
		content.SetInline(bundle)
	}
	c := &commit{sender: e.Sender, event: e.ID, at: w.net.Now, epoch: content.Epoch}
	if content.Epoch == 0 {
		info, err := mls.ParseMessage(content.GroupInfo)
		if err != nil {
			return
		}
		if c.ref, err = rooms.RootRef(info); err != nil {
			return
		}
		w.root = c.ref
	} else {
		msg, err := mls.ParseMessage(content.Message)
		if err != nil {
			return
		}
		if c.ref, err = rooms.CommitRef(msg); err != nil {
			return
		}
		sender, _ := msg.Sender()
		c.external = sender.Type == mls.SenderTypeNewMemberCommit
		if aad, err := rooms.DecodeCommitAAD(msg.AuthenticatedData()); err == nil {
			c.era = aad.Era > 0
		}
		c.parent = federation.Ref(content.Parent)
		up := w.commits[c.parent]
		if up == nil {
			return
		}
		c.depth = up.depth + 1
	}
	if w.commits[c.ref] == nil {
		w.commits[c.ref] = c
		w.order = append(w.order, c.ref)
		w.stats.commits++
	}
}

// extends tells whether a commit is another, or above it.
func (w *world) extends(a, b federation.Ref) bool {
	x, y := w.commits[a], w.commits[b]
	if x == nil || y == nil {
		return false
	}
	for x.depth > y.depth {
		x = w.commits[x.parent]
	}
	return x.ref == b
}

// observe checks a device after its turn.
func (w *world) observe(d *device) {
	h := d.held()
	if h == nil || h.Machine == nil {
		d.final, d.out, d.newest = federation.Ref{}, nil, federation.Ref{}
		return
	}
	w.knows(d, h)
	for ref, group := range h.Epochs {
		if d.checked[ref] {
			continue
		}
		d.checked[ref] = true
		w.sameEpoch(d, ref, group)
		if err := w.secrets.group(d.name, group); err != nil {
			w.fail("the secrets of %s: %v", d.name, err)
		}
	}
	m := h.Machine
	w.finality(d.name, &d.observed, m)
	w.monotonic(d, m)
	w.bounded(d, len(h.Epochs), m)
	w.confirmed(d, h.Unconfirmed, h.Join)
	if n := d.c.Refusals()["client/panic"]; n > 0 {
		broken("no failure", "%s: the handling of an event broke an invariant", d.name)
	}
	d.head = m.Head()
	if h.Unconfirmed && m.NewestFinal() == m.Base() {
		return // where it came in counts as final for itself alone, and may lose
	}
	if final := w.commits[m.NewestFinal()]; final != nil && (w.commits[d.newest] == nil || final.depth > w.commits[d.newest].depth) {
		d.newest = final.ref // who joins again looks at the room from where they do
	}
}

// observeModule checks a module after its turn.
func (w *world) observeModule(m *module) {
	machine := m.machine()
	if machine == nil {
		m.final = federation.Ref{}
		return
	}
	w.finality(m.name, &m.observed, machine)
	head := machine.Head()
	if !m.checked[head] {
		m.checked[head] = true
		if pg, err := m.probe.Group(w.room, head); err == nil {
			e := w.epoch(head, pg.Epoch(), pg.TreeHash(), m.name, func() []rooms.GroupLeaf { return rooms.GroupLeaves(pg) })
			_ = e
		}
	}
	m.head = head
}

// epoch checks an epoch against what others hold of it: equal names, equal trees.
func (w *world) epoch(ref federation.Ref, number uint64, treeHash []byte, by string, leaves func() []rooms.GroupLeaf) *epoch {
	e := w.epochs[ref]
	if e == nil {
		e = &epoch{number: number, treeHash: bytes.Clone(treeHash), leaves: leaves(), by: by, holders: map[id.UserID]bool{}}
		w.epochs[ref] = e
		w.membership(ref, e)
		w.unforged(ref, e)
		w.removesFirst(ref, e)
		if v := w.leftIn(ref, e); v != nil {
			panic(v)
		}
		return e
	}
	if e.number != number || !bytes.Equal(e.treeHash, treeHash) {
		broken("1 convergence", "%s and %s hold different trees of commit %s", e.by, by, ref.Short())
	}
	return e
}

// sameEpoch: whoever holds an epoch holds the same one.
func (w *world) sameEpoch(d *device, ref federation.Ref, group *mls.Group) {
	e := w.epoch(ref, group.Epoch(), group.TreeHash(), d.name, func() []rooms.GroupLeaf { return rooms.GroupLeaves(group) })
	auth := group.EpochAuthenticator()
	if e.authenticator == nil {
		e.authenticator, e.by = bytes.Clone(auth), d.name
	}
	if !bytes.Equal(e.authenticator, auth) {
		broken("1 convergence", "%s and %s hold different keys of commit %s", e.by, d.name, ref.Short())
	}
	e.holders[d.user] = true
	own, ok := group.Leaf(group.OwnLeafIndex())
	if !ok {
		broken("6 removal", "%s holds epoch %d, in which it has no leaf", d.name, e.number)
	}
	if cred, err := rooms.CredentialOf(own); err != nil || cred.User != d.user || cred.Device != d.id {
		broken("6 removal", "%s holds epoch %d with another device's leaf", d.name, e.number)
	}
}

// membership: 8, each leaf is a cross-signed device of a user whom a member let
// in; 17, no server's act alone brings somebody in.
func (w *world) membership(ref federation.Ref, e *epoch) {
	for _, leaf := range e.leaves {
		u := w.net.User(leaf.Cred.User)
		if u == nil || w.admitted[leaf.Cred.User] == nil && !w.begun[leaf.Cred.User] {
			broken("17 no server's act alone", "commit %s has a leaf of %s, whom nobody let in", ref.Short(), leaf.Cred.User)
		}
		if key := w.keyOf(leaf.Cred.User, leaf.Cred.Device); !bytes.Equal(key, leaf.Cred.Key) {
			broken("8 membership soundness", "commit %s has a leaf of %s, which is no device of that user", ref.Short(), leaf.Cred.String())
		}
	}
}

// removal is a Remove that a module proposed.
type removal struct {
	by     id.UserID
	parent federation.Ref
	leaf   mls.LeafIndex
	at     time.Duration
}

func (w *world) noteRemoval(e *simnet.Event) {
	content, err := rooms.DecodeProposal(e.Content)
	if err != nil {
		return
	}
	msg, err := mls.ParseMessage(content.Message)
	if err != nil {
		return
	}
	if p, ok := msg.Proposal(); ok && p.Type == mls.ProposalTypeRemove {
		w.proposed = append(w.proposed, removal{e.Sender, federation.Ref(content.Parent), p.Remove, w.net.Now})
	}
}

// owes notes whom a commit has to take out that a module accepts: whose Remove that module, running all the while, had proposed
// long before the commit was made, and who stayed out of the room. One who comes in alone can take out nobody, nor
// anybody itself; what another module accepted, an owner has to accept again; and a lying module does what it likes.
func (w *world) owes(by id.UserID, ref federation.Ref) {
	const long = time.Minute // twice as long as a module waits
	c := w.commits[ref]
	m := pick(w.modules, 0, func(m *module) bool { return m.user == by })
	if c == nil || c.external || c.era || w.acceptedAbove(ref) || m == nil || m.liar || m.began+long > c.at || w.epochs[c.parent] == nil {
		return
	}
	for _, r := range w.proposed {
		if r.by != by || r.parent != c.parent || r.at+long > c.at {
			continue
		}
		for _, leaf := range w.epochs[c.parent].leaves {
			user := leaf.Cred.User
			if is := m.server.Membership(w.room, user); leaf.Index == r.leaf && user != c.sender && is != "join" && is != "invite" && w.moved[user] <= r.at {
				w.owed[ref] = append(w.owed[ref], leaf)
			}
		}
	}
	if e := w.epochs[ref]; e != nil && w.later == nil { // the module sends from a goroutine of its own
		w.later = w.leftIn(ref, e)
	}
}

// leftIn: 11, a module accepts no commit that leaves in whose Remove it proposed a while ago.
func (w *world) leftIn(ref federation.Ref, e *epoch) *violation {
	for _, leaf := range w.owed[ref] {
		if e.has(leaf) {
			return &violation{"11 live proposals", fmt.Sprintf("commit %s was accepted and leaves in %s, whom the module had proposed to remove", ref.Short(), leaf.Cred.String())}
		}
	}
	return nil
}

// unforged: 9, a leaf goes only if its user has left or was put out. Where devices
// come and go, members may also remove one whose keys their server does not list.
func (w *world) unforged(ref federation.Ref, e *epoch) {
	c := w.commits[ref]
	if c == nil || w.epochs[c.parent] == nil || w.script.faults.devices {
		return
	}
	for _, leaf := range w.epochs[c.parent].leaves {
		if w.left[leaf.Cred.User] || slices.ContainsFunc(e.leaves, func(l rooms.GroupLeaf) bool {
			return l.Cred.User == leaf.Cred.User && l.Cred.Device == leaf.Cred.Device
		}) {
			continue
		}
		broken("9 no forgery", "commit %s removes %s, who never left", ref.Short(), leaf.Cred.String())
	}
}

// knows notes who is out of the room for a device, and, of a commit that it made since it was
// last looked at, who was out for it before.
func (w *world) knows(d *device, h *probe.Held) {
	before := d.out
	d.out = map[id.UserID]bool{}
	for user, m := range h.Members {
		d.out[user] = m.Membership == rooms.MembershipLeave || m.Membership == rooms.MembershipBan
	}
	if h.Pending.IsZero() || w.knew[h.Pending] != nil {
		return
	}
	w.knew[h.Pending] = map[id.UserID]bool{}
	for user, out := range before {
		w.knew[h.Pending][user] = out && d.out[user]
	}
}

// removesFirst: 6, who is out goes within one commit of a member who saw that, whatever
// else that commit does. One who comes in alone can take out nobody else.
func (w *world) removesFirst(ref federation.Ref, e *epoch) {
	c := w.commits[ref]
	if c == nil || c.external || c.era || slices.ContainsFunc(w.devices, func(d *device) bool { return d.keeps && d.user == c.sender }) {
		return
	}
	for _, leaf := range e.leaves {
		if w.knew[ref][leaf.Cred.User] && leaf.Cred.User != c.sender {
			broken("6 removal", "commit %s leaves %s in, whom its author had seen leave", ref.Short(), leaf.Cred.String())
		}
	}
}

// keyOf returns the key that a device has, or had before it was logged out.
func (w *world) keyOf(user id.UserID, name id.DeviceID) []byte {
	for _, d := range w.devices {
		if d.user == user && d.id == name {
			return d.key
		}
	}
	return nil
}

// finality: 2, one chain of finals in each era, and a final stays.
func (w *world) finality(name string, o *observed, m *federation.Machine) {
	era, _ := m.EraOf()
	final := m.NewestFinal()
	if era == o.era && final == o.final || w.commits[final] == nil || final == m.Base() && final != w.root {
		return // or where it came in, which counts as final for nobody else
	}
	if !m.Extends(m.Head(), final) {
		broken("2 finality", "%s: final %s is not on the head", name, final.Short())
	}
	if o.era == era && !o.final.IsZero() && !w.extends(final, o.final) && !w.extends(o.final, final) && w.liar() == nil {
		broken("2 finality", "%s: final %s gave way to %s", name, o.final.Short(), final.Short())
	}
	known, ok := w.finals[era]
	switch {
	case !ok:
		w.finals[era] = final
		w.judgeFinals(federation.Ref{}, final)
	case w.extends(final, known):
		w.judgeFinals(known, final)
		w.finals[era] = final
	case !w.extends(known, final) && w.liar() != nil:
		w.conflict = final // evidence of it has to be there: see evident
	case !w.extends(known, final):
		broken("2 finality", "%s and %s are final in one era, seen by %s", final.Short(), known.Short(), name)
	}
	o.era, o.final = era, final
}

// judgeFinals: 2, nothing becomes final that no other user could apply.
func (w *world) judgeFinals(from, to federation.Ref) {
	for ref := to; ref != from && !ref.IsZero(); {
		c := w.commits[ref]
		if c == nil {
			return
		}
		w.stats.finals++
		if w.spoiled[ref] {
			broken("2 finality", "commit %s is final, which nobody can apply", ref.Short())
		}
		ref = c.parent
	}
}

// monotonic: 3, each commit on the head makes the next epoch.
func (w *world) monotonic(d *device, m *federation.Machine) {
	head := m.Head()
	if head == d.head {
		return
	}
	final := m.NewestFinal()
	last := uint64(0)
	for i, ref := range m.Path(final, head) {
		c, ok := m.Known(ref)
		if !ok {
			broken("3 epoch monotonicity", "%s: a commit on the way to the head is not known", d.name)
		}
		if i > 0 && c.Epoch != last+1 {
			broken("3 epoch monotonicity", "%s: epoch %d on %d", d.name, c.Epoch, last)
		}
		last = c.Epoch
	}
	if !d.head.IsZero() && !w.extends(head, d.head) {
		w.stats.rewinds++
	}
}

// bounded: 7, no client keeps more epochs than the window on the head's chain, as
// many beside it, and a few below.
func (w *world) bounded(d *device, held int, m *federation.Machine) {
	window := federation.DefaultWindow
	if p, ok := m.PolicyAt(m.NewestFinal()); ok && p.Window > 0 {
		window = p.Window
	}
	if limit := 2*window + pastEpochs*2 + 8; held > limit {
		broken("7 bounded forks", "%s keeps %d epochs, the window is %d", d.name, held, window)
	}
}

const pastEpochs = 3

// confirmed: 14, who is told that what it came in with is confirmed came in on what is final.
func (w *world) confirmed(d *device, unconfirmed bool, join federation.Ref) {
	if unconfirmed || join.IsZero() || d.joined[join] {
		return
	}
	d.joined[join] = true
	for _, final := range w.finals {
		if w.extends(final, join) {
			return
		}
	}
	broken("14 newcomers", "%s was confirmed, and %s is not final", d.name, join.Short())
}

// judgeSend looks at what a device sends.
func (w *world) judgeSend(d *device, kind string, content json.RawMessage) (is *message) {
	if kind == rooms.TypeCommit {
		w.judgeCommit(d, content)
	}
	if kind != rooms.TypeEncrypted {
		return nil
	}
	enc, err := rooms.DecodeEncrypted(content)
	if err != nil {
		w.fail("%s sends what is no message: %v", d.name, err)
	}
	msg, err := mls.ParseMessage(enc.Ciphertext)
	if err != nil {
		w.fail("%s sends what is no message: %v", d.name, err)
	}
	aad, err := rooms.DecodeMessageAAD(msg.AuthenticatedData())
	if err != nil {
		w.fail("%s sends a message without its head: %v", d.name, err)
	}
	ref := federation.Ref(aad.Head)
	w.stats.ciphertexts++
	is = w.noteCiphertext(d, ref, content)
	e, h := w.epochs[ref], d.held()
	if e == nil {
		w.fail("%s sends in an epoch that nobody holds", d.name)
	}
	// 6: nothing is sent to whom the sender has seen leave.
	for _, leaf := range e.leaves {
		switch m := h.Members[leaf.Cred.User]; m.Membership {
		case rooms.MembershipLeave, rooms.MembershipBan:
			broken("6 removal", "%s sends in epoch %d, in which %s has a leaf, who is out (%s)", d.name, e.number, leaf.Cred.String(), m.Membership)
		}
	}
	return is
}

// judgeCommit: 14, a device commits, and joins again, on nothing that lies below the newest
// final commit that it knows, or beside it.
func (w *world) judgeCommit(d *device, content json.RawMessage) {
	c, err := rooms.DecodeCommit(content)
	if err != nil {
		w.fail("%s sends what is no commit: %v", d.name, err)
	}
	parent, newest := w.commits[federation.Ref(c.Parent)], w.commits[d.newest]
	if parent != nil && newest != nil && parent.depth <= newest.depth && parent != newest {
		broken("14 newcomers", "%s commits on %s, which lies below %s, which is final for it", d.name, parent.ref.Short(), newest.ref.Short())
	}
}

// noteCiphertext finds out which message was encrypted.
func (w *world) noteCiphertext(d *device, ref federation.Ref, content json.RawMessage) *message {
	items, err := d.st.Outbox(w.ctx, w.room)
	if err != nil {
		w.fail("%v", err)
	}
	for _, item := range items {
		var row struct {
			Content json.RawMessage `json:"content"`
			Plain   *struct {
				Content struct {
					Body string `json:"body"`
				} `json:"content"`
			} `json:"plain"`
		}
		if json.Unmarshal(item.Data, &row) != nil || row.Plain == nil || !bytes.Equal(row.Content, content) {
			continue
		}
		for _, m := range w.messages {
			if m.text == row.Plain.Content.Body {
				if !slices.Contains(m.refs, ref) {
					m.refs = append(m.refs, ref)
				}
				return m
			}
		}
	}
	return nil
}

// judgeToDevice looks at what a device sends to another.
func (w *world) judgeToDevice(d *device, kind string, user id.UserID, name id.DeviceID, content json.RawMessage) {
	if kind != rooms.TypeWelcome {
		return
	}
	w.stats.welcomes++
	welcome, err := rooms.DecodeWelcome(content)
	if err != nil {
		w.fail("%s sends what is no Welcome: %v", d.name, err)
	}
	// 12: only after the accept, or, of an era, once it counts.
	ref := federation.Ref(welcome.Ref)
	if !d.accepted(ref) || !w.counts(ref, w.opensEra(ref)) {
		broken("12 Welcome only after accept", "%s sends a Welcome to %s for commit %s, which is not accepted", d.name, user, ref.Short())
	}
	// 13: a key package serves at most one Welcome that is sent.
	msg, err := mls.ParseMessage(welcome.Welcome)
	if err != nil {
		w.fail("%s sends what is no Welcome: %v", d.name, err)
	}
	for _, kp := range msg.Welcome().Recipients() {
		if old, served := w.welcomed[string(kp)]; served && !bytes.Equal(old, welcome.Welcome) {
			broken("13 one Welcome for each key package", "%s sends %s/%s a second Welcome for one key package", d.name, user, name)
		}
		w.welcomed[string(kp)] = slices.Clone(welcome.Welcome)
	}
}

// counts tells whether what makes a commit count was sent: an accept for it or for one
// above it. A commit that opens an era needs none, but somebody's word that they
// applied it.
func (w *world) counts(ref federation.Ref, era bool) bool {
	return w.acceptedAbove(ref) || era && w.applied[ref]
}

func (w *world) opensEra(ref federation.Ref) bool {
	c := w.commits[ref]
	return c != nil && c.era
}

// accepted tells whether a device holds a commit as accepted. Where it holds it no
// more, because it was removed or goes on from a later one, the device had it on its
// head before.
func (d *device) accepted(ref federation.Ref) bool {
	if h := d.held(); h != nil && h.Machine != nil && h.Machine.Held(ref) {
		return h.Machine.Accepted(ref)
	}
	return d.entered[ref]
}

// acceptedAbove tells whether a sequencer accepted a commit, or one above it.
func (w *world) acceptedAbove(ref federation.Ref) bool {
	for above := range w.accepted {
		if w.extends(above, ref) {
			return true
		}
	}
	return false
}
