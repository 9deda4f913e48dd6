package mls

import (
	"bytes"
	"testing"
)

func FuzzVarint(f *testing.F) {
	for _, n := range []int{0, 63, 64, 16383, 16384, maxVarint} {
		f.Add(appendVarint(nil, n))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := newReader(raw)
		var n uint32
		if !readVarint(s, &n) {
			return
		}
		used := raw[:len(raw)-len(s.String)]
		if got := appendVarint(nil, int(n)); !bytes.Equal(got, used) || len(got) != varintSize(int(n)) {
			t.Errorf("%x was read as %d, which is %x", used, n, got)
		}
	})
}

// A Message that parses keeps its bytes, and its accessors work.
func FuzzParseMessage(f *testing.F) {
	for _, v := range corpus(f) {
		f.Add(v.raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m *Message
		var err error
		boundedMemory(t, len(raw), func() func() { return func() { m, err = ParseMessage(raw) } })
		if err != nil {
			return
		}
		if !bytes.Equal(m.Raw(), raw) {
			t.Error("the message is not what was parsed")
		}
		b := appendMessageHeader(nil, m.WireFormat())
		switch {
		case m.public != nil:
			b = m.public.appendTo(b)
		case m.private != nil:
			b = m.private.appendTo(b)
		case m.welcome != nil:
			b = m.welcome.appendTo(b)
		case m.groupInfo != nil:
			b = m.groupInfo.appendTo(b)
		case m.keyPackage != nil:
			b = m.keyPackage.appendTo(b)
		}
		if !bytes.Equal(b, raw) {
			t.Errorf("got %x, want %x", b, raw)
		}
		_, _ = m.Sender()
		_, _ = m.CommitExtensions()
		if kp := m.KeyPackage(); kp != nil {
			_ = kp.Ref()
			_ = kp.Validate(nil, kp.CipherSuite)
		}
		_, _, _, _, _ = m.GroupID(), m.Epoch(), m.ContentType(), m.AuthenticatedData(), m.ConfirmationTag()
		if kp := m.KeyPackage(); kp != nil && kp.CipherSuite.Supported() {
			_ = kp.Validate(&Config{Now: testNow}, kp.CipherSuite)
			_ = kp.Ref()
		}
	})
}

func FuzzParseTree(f *testing.F) {
	for _, v := range corpus(f) {
		if v.name == "ratchet_tree" {
			f.Add(v.raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var tree *ratchetTree
		var err error
		boundedMemory(t, len(raw), func() func() {
			return func() { tree, err = parseTree(1, raw, (*Config)(nil).limits()) }
		})
		if err != nil {
			return
		}
		tree.finish()
		if got := tree.appendTo(nil); !bytes.Equal(got, raw) {
			t.Errorf("got %x, want %x", got, raw)
		}
		_ = tree.checkUnmerged()
		_ = tree.verifyParentHashes()
	})
}

// newFuzzGroups makes a group of three, the same one in every run: inputs that
// were found stay good.
func newFuzzGroups(f *testing.F) *fuzzGroups {
	cfg := testConfig(f)
	gs := newTestGroup(f, cfg, 1, 3)
	return &fuzzGroups{groups: gs, cfg: cfg, epoch: gs[1].EpochState(), ratchets: gs[1].RatchetState()}
}

type fuzzGroups struct {
	groups          []*Group
	cfg             *Config
	epoch, ratchets []byte
}

// smallTrees is the configuration with a limit at which a tree of blank nodes and their hashes takes less than a
// mebibyte. A delta may put one leaf as far out as MaxMembers lets it: that takes few bytes, and is a tree like any.
func (w *fuzzGroups) smallTrees() *Config {
	cfg := *w.cfg
	cfg.Limits.MaxMembers = 4096
	return &cfg
}

// resign makes a message that a dishonest member could have sent from one that
// was mutated: tags and signatures are made good again.
func (w *fuzzGroups) resign(raw []byte) []byte {
	s := newReader(raw)
	var m Message
	if !m.unmarshal(s) || m.public == nil {
		return nil
	}
	c := m.public.auth.content
	c.raw, c.body = nil, nil
	c.groupID, c.epoch = w.groups[0].context.groupID, w.groups[0].context.epoch
	ac, err := signContent(1, w.groups[0].signature, WireFormatPublicMessage, c, w.groups[0].contextRaw)
	if err != nil {
		return nil
	}
	ac.confirmationTag = m.public.auth.confirmationTag
	return ac.publicMessage(1, w.groups[0].secrets.membership, w.groups[0].contextRaw)
}

// Whatever a member or a stranger sends: no panic, and a refusal leaves the
// group as it was.
func FuzzProcess(f *testing.F) {
	w := newFuzzGroups(f)
	g := w.groups[0]
	add := func(raw []byte, err error) {
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, true)
		f.Add(raw, false)
	}
	add(g.Encrypt([]byte("text"), nil))
	for _, p := range []Proposal{Remove(2), PSK(PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("x")}), GroupContextExtensions(nil)} {
		sc, err := g.Commit(CommitOptions{Proposals: []Proposal{p}})
		if err != nil {
			continue // a PSK that nobody has
		}
		add(sc.Message(), nil)
	}
	sc, err := g.Commit(CommitOptions{ForcePath: true})
	if err != nil {
		f.Fatal(err)
	}
	add(sc.Message(), nil)
	for _, p := range []Proposal{Remove(1), Add(newTestClient(f, w.cfg, 1, 9).KeyPackage())} {
		ac, err := signContent(1, g.signature, WireFormatPublicMessage, framedContent{
			groupID: g.context.groupID, epoch: g.context.epoch, sender: Sender{Type: SenderTypeMember}, contentType: ContentTypeProposal, proposal: p,
		}, g.contextRaw)
		if err != nil {
			f.Fatal(err)
		}
		add(ac.publicMessage(1, g.secrets.membership, g.contextRaw), nil)
	}
	f.Fuzz(func(t *testing.T, raw []byte, resign bool) {
		if resign {
			if raw = w.resign(raw); raw == nil {
				return
			}
		}
		m, err := ParseMessage(raw)
		if err != nil {
			return
		}
		var to *Group
		var p Processed
		boundedMemory(t, len(raw), func() func() {
			if to, err = LoadGroup(w.cfg, w.epoch, w.ratchets); err != nil {
				t.Fatal(err)
			}
			return func() { p, err = to.Process(m) }
		})
		if _, staged := p.(*StagedCommit); err != nil || staged {
			if !bytes.Equal(groupState(to), append(bytes.Clone(w.epoch), w.ratchets...)) {
				t.Errorf("the group has changed: %v", err)
			}
		}
	})
}

// The same for who follows without secrets.
func FuzzPublicProcess(f *testing.F) {
	w := newFuzzGroups(f)
	raw, err := w.groups[0].GroupInfo(GroupInfoOptions{RatchetTree: true})
	if err != nil {
		f.Fatal(err)
	}
	pg, err := NewPublicGroup(w.cfg, mustParse(f, raw), nil)
	if err != nil {
		f.Fatal(err)
	}
	state, err := pg.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range [][]Proposal{nil, {Remove(2)}, {Add(newTestClient(f, w.cfg, 1, 9).KeyPackage())}} {
		sc, err := w.groups[0].Commit(CommitOptions{Proposals: p})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sc.Message(), true)
		f.Add(sc.Message(), false)
	}
	f.Fuzz(func(t *testing.T, raw []byte, resign bool) {
		if resign {
			if raw = w.resign(raw); raw == nil {
				return
			}
		}
		m, err := ParseMessage(raw)
		if err != nil {
			return
		}
		var to *PublicGroup
		var p Processed
		boundedMemory(t, len(raw), func() func() {
			if to, err = UnmarshalPublicGroup(w.cfg, state); err != nil {
				t.Fatal(err)
			}
			return func() { p, err = to.Process(m) }
		})
		if sc, staged := p.(*PublicStagedCommit); err != nil || staged {
			after, merr := to.MarshalBinary()
			if merr != nil || !bytes.Equal(after, state) {
				t.Errorf("the group has changed: %v", err)
			}
			if staged {
				sc.Merge()
			}
		}
	})
}

// joinSeeds are a Welcome and a GroupInfo, with the tree inside and beside.
func (w *fuzzGroups) joinSeeds(f *testing.F, bundle *KeyPackageBundle) (welcomes, infos, trees [][]byte) {
	for _, inside := range []bool{true, false} {
		sc, err := w.groups[0].Commit(CommitOptions{Proposals: []Proposal{Add(bundle.KeyPackage())}, WelcomeRatchetTree: inside})
		if err != nil {
			f.Fatal(err)
		}
		info, err := w.groups[0].GroupInfo(GroupInfoOptions{RatchetTree: inside, ExternalPub: true})
		if err != nil {
			f.Fatal(err)
		}
		welcomes, infos = append(welcomes, sc.Welcome()), append(infos, info)
		trees = append(trees, sc.Merge().RatchetTree(), w.groups[0].RatchetTree())
	}
	return welcomes, infos, trees
}

// A Welcome from anybody, and a tree beside it: a refusal does not use up the
// KeyPackage.
func FuzzJoinWelcome(f *testing.F) {
	w := newFuzzGroups(f)
	bundle := newTestClient(f, w.cfg, 1, 9)
	stored, err := bundle.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	welcomes, _, trees := w.joinSeeds(f, bundle)
	for _, raw := range welcomes {
		for _, tree := range trees {
			f.Add(raw, tree)
		}
	}
	f.Fuzz(func(t *testing.T, raw, tree []byte) {
		m, err := ParseMessage(raw)
		if err != nil || m.Welcome() == nil {
			return
		}
		var b *KeyPackageBundle
		boundedMemory(t, len(raw)+len(tree), func() func() {
			if b, err = UnmarshalKeyPackageBundle(stored); err != nil {
				t.Fatal(err)
			}
			return func() { _, err = JoinWelcome(w.cfg, m, b, JoinOptions{RatchetTree: tree}) }
		})
		if err != nil {
			if after, merr := b.MarshalBinary(); merr != nil || !bytes.Equal(after, stored) {
				t.Errorf("a refused Welcome used up the KeyPackage: %v", err)
			}
		}
	})
}

// A GroupInfo from anybody, and a tree beside it; right signatures for half of
// them, so that what comes after the check is reached.
func FuzzGroupInfoAndTree(f *testing.F) {
	w := newFuzzGroups(f)
	key := newTestClient(f, w.cfg, 1, 9).signature
	_, infos, trees := w.joinSeeds(f, newTestClient(f, w.cfg, 1, 10))
	sc, err := w.groups[0].Commit(CommitOptions{})
	if err != nil {
		f.Fatal(err)
	}
	pg, err := NewPublicGroup(w.cfg, mustParse(f, infos[0]), nil)
	if err != nil {
		f.Fatal(err)
	}
	p, err := pg.Process(mustParse(f, sc.Message()))
	if err != nil {
		f.Fatal(err)
	}
	staged := p.(*PublicStagedCommit)
	next, err := sc.Merge().GroupInfo(GroupInfoOptions{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(next, []byte(nil), false)
	for _, raw := range infos {
		for _, tree := range trees {
			f.Add(raw, tree, true)
			f.Add(raw, tree, false)
		}
	}
	f.Fuzz(func(t *testing.T, raw, tree []byte, resign bool) {
		m, err := ParseMessage(raw)
		if err != nil || m.GroupInfo() == nil {
			return
		}
		if resign {
			gi := m.groupInfo
			if gi.signature, err = SignWithLabel(1, w.groups[0].signature, "GroupInfoTBS", gi.raw[:gi.content]); err != nil {
				t.Fatal(err)
			}
		}
		boundedMemory(t, len(raw)+len(tree), func() func() {
			return func() { _, _ = NewPublicGroup(w.cfg, m, tree) }
		})
		boundedMemory(t, len(raw)+len(tree), func() func() {
			return func() {
				_, _ = ExternalJoin(w.cfg, m, key, ExternalJoinOptions{Leaf: benchLeaf(1), RatchetTree: tree})
			}
		})
		boundedMemory(t, len(raw), func() func() {
			return func() { _, _ = w.groups[1].VerifyGroupInfo(m), staged.VerifyGroupInfo(m) }
		})
	})
}
