package client

import (
	"crypto/ed25519"
	"slices"
	"strconv"
	"sync"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// fakeModule is a sequencer made of the pure packages, enough to order the
// commits of tests. The real one is package appservice.
type fakeModule struct {
	mu sync.Mutex // one turn at a time

	w        *world
	s        *fakeServer
	server   string
	bot      id.UserID
	hs       *fakeTransport
	key      ed25519.PrivateKey
	external mls.SignaturePrivateKey
	at       int
	groups   map[id.RoomID]*moduleRoom
	deaf     bool // accepts nothing
	bars     bool // it accepts no commit that leaves out a Remove of its own
	down     bool // does nothing at all
	// noVouching: it does not see what members say of commits, except rejects.
	noVouching bool
	// experimental: it follows groups of experimental suites.
	experimental bool
	proofInMedia bool // it shows no proof in its heads themselves
	// lies changes what its heads prove.
	lies func(chain *rooms.ProofChain)
}

type moduleRoom struct {
	machine *federation.Machine
	epochs  map[federation.Ref]*mls.PublicGroup
	staged  map[federation.Ref]*mls.PublicStagedCommit
	infos   map[federation.Ref][]byte
	// contents are the commits as they came, with what was in media put back.
	contents map[federation.Ref]*rooms.CommitContent
	raw      map[federation.Ref]*Event // as they came
	events   map[federation.Ref]id.EventID
	proposed map[federation.Ref][]mls.LeafIndex // to be removed
	root     federation.Ref
	n        int
}

// newFakeModule starts the module of a server. The first is the world's own.
func newFakeModule(w *world, server string) *fakeModule {
	m := &fakeModule{w: w, s: w.s, server: server, bot: botOf(server), groups: map[id.RoomID]*moduleRoom{}, key: edKey(newSeeded("module" + server))}
	m.hs = &fakeTransport{s: w.s, user: m.bot}
	w.s.users[m.bot] = &fakeUser{master: edKey(newSeeded("m1" + server)), self: edKey(newSeeded("m2" + server)), devices: map[id.DeviceID]*fakeDevice{}}
	key, err := mls.GenerateSignatureKey(w.cs, newSeeded("external"+server))
	if err != nil {
		w.t.Fatal(err)
	}
	m.external = key
	return m
}

func (m *fakeModule) turn() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return
	}
	m.s.mu.Lock()
	events := m.s.log[m.at:]
	m.at = len(m.s.log)
	m.s.mu.Unlock()
	for _, evt := range events {
		m.handle(evt)
	}
	for room, g := range m.groups {
		if g.machine == nil {
			continue
		}
		m.act(room, g, g.machine.Tick(m.w.now.get()))
	}
}

func (m *fakeModule) handle(evt *Event) {
	t := m.w.t
	switch evt.Type {
	case rooms.TypeMember:
		if *evt.StateKey == string(m.bot) && m.groups[evt.RoomID] == nil {
			if _, err := m.hs.Join(m.w.ctx, string(evt.RoomID), nil); err != nil {
				t.Fatal(err)
			}
			m.groups[evt.RoomID] = &moduleRoom{
				epochs: map[federation.Ref]*mls.PublicGroup{}, staged: map[federation.Ref]*mls.PublicStagedCommit{},
				infos: map[federation.Ref][]byte{}, events: map[federation.Ref]id.EventID{}, proposed: map[federation.Ref][]mls.LeafIndex{},
				contents: map[federation.Ref]*rooms.CommitContent{}, raw: map[federation.Ref]*Event{},
			}
			m.head(evt.RoomID)
			// What the room held before it came.
			m.s.mu.Lock()
			var before []*Event
			for _, old := range m.s.log {
				if old.ID == evt.ID {
					break
				}
				if old.RoomID == evt.RoomID && old.StateKey == nil {
					before = append(before, old)
				}
			}
			m.s.mu.Unlock()
			for _, old := range before {
				m.handle(old)
			}
		}
	case rooms.TypeCommit:
		if m.groups[evt.RoomID] != nil {
			m.commit(evt)
		}
	case rooms.TypeRequest:
		m.repost(evt)
	case rooms.TypeAccept, rooms.TypeVote, rooms.TypePromise, rooms.TypeReady, rooms.TypeApplied, rooms.TypeReject:
		if m.noVouching && evt.Type == rooms.TypeApplied || evt.Sender == m.bot {
			return
		}
		g := m.groups[evt.RoomID]
		if g == nil || g.machine == nil {
			return
		}
		ev, err := rooms.DecodeReceipt(evt.Type, string(evt.ID), evt.Content)
		if err != nil {
			t.Fatalf("module: %s: %v", evt.Type, err)
		}
		acts, err := g.machine.Step(ev)
		if err != nil {
			t.Logf("module: %s: %v", evt.Type, err)
		}
		m.act(evt.RoomID, g, acts)
	}
}

// repost answers a question for commits.
func (m *fakeModule) repost(evt *Event) {
	content, err := rooms.DecodeRequest(evt.Content)
	if err != nil {
		m.w.t.Fatalf("module: request: %v", err)
	}
	g := m.groups[evt.RoomID]
	if g == nil || m.deaf {
		return
	}
	for _, ref := range content.Refs {
		commit := g.raw[federation.Ref(ref)]
		if commit == nil {
			continue
		}
		raw, err := rooms.Encode(&rooms.RepostContent{Type: commit.Type, Sender: commit.Sender, Event: commit.ID, Content: commit.Content})
		if err != nil {
			m.w.t.Fatal(err)
		}
		if _, err := m.hs.Send(m.w.ctx, evt.RoomID, rooms.TypeRepost, "again"+string(evt.ID)+ref.String(), raw); err != nil {
			m.w.t.Fatal(err)
		}
	}
}

func (m *fakeModule) commit(evt *Event) {
	t := m.w.t
	g := m.groups[evt.RoomID]
	content, err := rooms.DecodeCommit(evt.Content)
	if err != nil {
		t.Fatalf("module: commit: %v", err)
	}
	if content.File != nil {
		data, err := m.hs.Download(m.w.ctx, string(content.File.MXC), content.File.Size)
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := rooms.DecodeCommitBundle(data)
		if err != nil {
			t.Fatal(err)
		}
		content.SetInline(bundle)
	}
	info, err := mls.ParseMessage(content.GroupInfo)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &mls.Config{Authenticator: rooms.Authenticator{}, ExperimentalSuites: m.experimental}
	if content.Founding {
		if !m.deaf {
			m.founding(evt, g, content, info, cfg)
		}
		return
	}
	if content.Epoch == 0 {
		if g.machine != nil {
			return
		}
		group, err := mls.NewPublicGroup(cfg, info, nil)
		if err != nil {
			t.Fatalf("module: root: %v", err)
		}
		ref, _ := rooms.RootRef(info)
		base, err := rooms.BaseFacts(group, ref, evt.ID, 0, federation.Ref{})
		if err != nil {
			t.Fatal(err)
		}
		g.machine, err = federation.New(m.config(evt.RoomID), base)
		if err != nil {
			t.Fatal(err)
		}
		acts, err := g.machine.Step(federation.Resume{})
		if err != nil {
			t.Fatal(err)
		}
		g.contents[ref] = content
		g.epochs[ref], g.infos[ref], g.events[ref], g.root = group, content.GroupInfo, evt.ID, ref
		m.act(evt.RoomID, g, acts)
		m.head(evt.RoomID)
		return
	}
	msg, err := mls.ParseMessage(content.Message)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := rooms.CommitRef(msg)
	if err != nil {
		t.Fatal(err)
	}
	g.raw[ref] = evt
	parent := federation.Ref(content.Parent)
	group := g.epochs[parent]
	if group == nil || m.deaf {
		return
	}
	for _, raw := range content.Proposals {
		p, err := mls.ParseMessage(raw)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = group.Process(p)
	}
	processed, err := group.Process(msg)
	if err != nil {
		t.Logf("module refuses a commit: %v", err)
		return
	}
	staged := processed.(*mls.PublicStagedCommit)
	if err := checkGroupInfo(staged, staged.Merge(), content); err != nil {
		t.Logf("module refuses a commit: %v", err)
		return
	}
	checked, err := rooms.CheckCommit(rooms.CommitInput{
		Room: evt.RoomID, Sender: evt.Sender, Event: evt.ID, Content: content, Ref: ref,
		Tree: group, Parent: parent, Staged: staged, Next: staged.Merge(),
	})
	if err != nil {
		t.Logf("module refuses a commit: %v", err)
		return
	}
	for _, leaf := range g.proposed[parent] {
		if m.bars && !slices.Contains(checked.Commit.Removed, uint32(leaf)) {
			checked.Commit.Barred = "it leaves out a Remove"
		}
	}
	g.contents[ref] = content
	g.staged[ref], g.infos[ref], g.events[ref] = staged, content.GroupInfo, evt.ID
	g.epochs[ref] = staged.Merge()
	acts, err := g.machine.Step(checked.Commit)
	if err != nil {
		t.Logf("module refuses a commit: %v", err)
		return
	}
	m.act(evt.RoomID, g, acts)
}

func (m *fakeModule) act(room id.RoomID, g *moduleRoom, acts []federation.Action) {
	t := m.w.t
	for _, act := range acts {
		switch act := act.(type) {
		case federation.Send:
			eventType, content := rooms.ReceiptOf(act.Receipt)
			raw, err := rooms.Encode(content)
			if err != nil {
				t.Fatal(err)
			}
			g.n++
			if _, err := m.hs.Send(m.w.ctx, room, eventType, m.server+strconv.Itoa(g.n)+string(room), raw); err != nil {
				t.Fatal(err)
			}
		case federation.HeadChanged, federation.Finalized:
			m.head(room)
		}
	}
}

// proof returns the proof chain that leads to a head.
func (m *fakeModule) proof(g *moduleRoom, head federation.Ref) []byte {
	chain, from := g.machine.ProofChain(), g.root
	if n := len(chain.Steps); n > 0 {
		from = chain.Steps[n-1].Ref
	}
	p := rooms.NewProofChain(chain, g.root, g.machine.Path(from, head), g.machine.AcceptOf(head), func(ref federation.Ref) *rooms.CommitContent { return g.contents[ref] })
	if p == nil {
		return nil
	}
	if m.lies != nil {
		p, err := rooms.DecodeProof(p.Encode()) // its own copy
		if err != nil {
			m.w.t.Fatal(err)
		}
		m.lies(p)
		return p.Encode()
	}
	return p.Encode()
}

// head publishes P.head.
func (m *fakeModule) head(room id.RoomID) {
	g := m.groups[room]
	m.s.mu.Lock()
	events := m.s.events
	m.s.mu.Unlock()
	head := &rooms.HeadContent{
		Version: rooms.Version, ReceiptKey: rooms.Bytes(pub(m.key)), Server: m.server,
		ExternalSenders: []rooms.ExternalSender{{Scheme: uint16(m.w.cs.SignatureScheme()), Key: rooms.Bytes(m.external.Public())}},
		Nonce:           strconv.Itoa(events),
	}
	for _, s := range m.w.follows {
		if scheme := uint16(s.SignatureScheme()); !slices.ContainsFunc(head.ExternalSenders, func(o rooms.ExternalSender) bool { return o.Scheme == scheme }) {
			key, err := mls.GenerateSignatureKey(s, newSeeded("external"+m.server))
			if err != nil {
				m.w.t.Fatal(err)
			}
			head.ExternalSenders = append(head.ExternalSenders, rooms.ExternalSender{Scheme: scheme, Key: rooms.Bytes(key.Public())})
		}
		if s.Experimental() && m.experimental {
			head.Suites = append(head.Suites, uint16(s))
		}
	}
	if g.machine != nil {
		ref := g.machine.SafeHead()
		group := g.epochs[ref]
		head.Group = group.GroupID()
		head.Root = &rooms.EventRef{Ref: rooms.Hash(g.root), Event: g.events[g.root]}
		head.Accepted = &rooms.EventRef{Ref: rooms.Hash(ref), Event: g.events[ref], Epoch: group.Epoch()}
		head.Era, _ = g.machine.EraOf()
		if cfg, ok := g.machine.ConfigAt(ref); ok {
			head.Cfg = rooms.Hash(cfg)
		}
		final := g.machine.NewestFinal()
		head.Final = &rooms.EventRef{Ref: rooms.Hash(final), Event: g.events[final], Epoch: g.epochs[final].Epoch()}
		head.Proof = m.proof(g, ref)
		if len(head.Proof) > rooms.MaxInlineProof || m.proofInMedia && len(head.Proof) > 0 {
			uri, err := m.hs.Upload(m.w.ctx, head.Proof, "")
			if err != nil {
				m.w.t.Fatal(err)
			}
			head.ProofFile, head.Proof = rooms.NewFile(id.ContentURIString(uri), head.Proof), nil
		}
		head.GroupInfo = g.infos[ref]
		head.Snapshot = &rooms.Snapshot{Tree: group.RatchetTree(), TreeHash: group.TreeHash(), AtCommit: rooms.Hash(ref)}
		if ref == g.root {
			// The founding GroupInfo carries the tree itself.
			head.Snapshot.Tree = group.RatchetTree()
		}
		if len(head.Snapshot.Tree) > rooms.MaxInline {
			uri, err := m.hs.Upload(m.w.ctx, head.Snapshot.Tree, "")
			if err != nil {
				m.w.t.Fatal(err)
			}
			head.Snapshot.File, head.Snapshot.Tree = rooms.NewFile(id.ContentURIString(uri), head.Snapshot.Tree), nil
		}
	}
	raw, err := rooms.Encode(head)
	if err != nil {
		m.w.t.Fatal(err)
	}
	if _, err := m.hs.SendState(m.w.ctx, room, rooms.TypeHead, string(m.bot), raw); err != nil {
		m.w.t.Fatal(err)
	}
}

// proposeRemove posts the module's external Remove of a user's leaves.
func (m *fakeModule) proposeRemove(room id.RoomID, user id.UserID, reason id.EventID) {
	t := m.w.t
	g := m.groups[room]
	ref := g.machine.Head()
	group := g.epochs[ref]
	for _, leaf := range rooms.LeavesOf(group, user) {
		msg, err := mls.NewExternalProposal(m.w.cs, group.GroupID(), group.Epoch(), 0, m.external, mls.Remove(leaf.Index), rooms.MessageAAD{Head: ref}.Encode())
		if err != nil {
			t.Fatal(err)
		}
		raw, err := rooms.Encode(&rooms.ProposalContent{Epoch: group.Epoch(), Parent: rooms.Hash(ref), Message: msg, Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		g.n++
		g.proposed[ref] = append(g.proposed[ref], leaf.Index)
		if _, err := m.hs.Send(m.w.ctx, room, rooms.TypeProposal, "p"+strconv.Itoa(g.n), raw); err != nil {
			t.Fatal(err)
		}
	}
}

// loseDatabase gives the module new keys; it follows the room again from its
// events, as the real one does, and waits for an admin.
func (m *fakeModule) loseDatabase(room id.RoomID) {
	m.key = edKey(newSeeded("another module" + m.server))
	key, err := mls.GenerateSignatureKey(m.w.cs, newSeeded("another external"+m.server))
	if err != nil {
		m.w.t.Fatal(err)
	}
	m.external = key
	g := m.groups[room]
	snapshot, err := g.machine.MarshalBinary()
	if err != nil {
		m.w.t.Fatal(err)
	}
	g.machine, err = federation.Unmarshal(m.config(room), snapshot)
	if err != nil {
		m.w.t.Fatal(err)
	}
	acts, err := g.machine.Step(federation.Resume{})
	if err != nil {
		m.w.t.Fatal(err)
	}
	m.act(room, g, acts)
	m.head(room)
}

func (m *fakeModule) config(room id.RoomID) federation.Config {
	return federation.Config{
		Room: string(room), Verify: rooms.VerifyLeafSignature, VoteDelay: -1,
		Self: &federation.Identity{Server: m.server, User: string(m.bot), Key: m.key},
	}
}
