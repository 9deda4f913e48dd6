package mls

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"testing"
)

// wireType is a structure that can be read and written.
type wireType interface {
	unmarshal(*reader) bool
	appendTo([]byte) []byte
}

// wireTypes are all structures of RFC 9420 that have an encoding of their own.
var wireTypes = []func() wireType{
	func() wireType { return new(Credential) },
	func() wireType { return new(Extension) },
	func() wireType { return new(RequiredCapabilities) },
	func() wireType { return new(Capabilities) },
	func() wireType { return new(LeafNode) },
	func() wireType { return new(KeyPackage) },
	func() wireType { return new(PreSharedKeyID) },
	func() wireType { return new(HPKECiphertext) },
	func() wireType { return new(ReInit) },
	func() wireType { return new(Commit) },
	func() wireType { return new(updatePath) },
	func() wireType { return new(parentNode) },
	func() wireType { return new(groupContext) },
	func() wireType { return new(GroupInfo) },
	func() wireType { return new(Welcome) },
	func() wireType { return new(groupSecrets) },
	func() wireType { return new(Sender) },
	func() wireType { return new(publicMessage) },
	func() wireType { return new(privateMessage) },
	func() wireType { return new(authenticatedContent) },
	func() wireType { return new(epochSecrets) },
}

// addMessages adds the first case of messages.json and of the passive clients
// to a corpus.
func addMessages(f *testing.F, add func(name string, raw []byte)) {
	dir := filepath.Join("testdata", "vectors")
	load := func(file string) map[string]any {
		cases := loadVectors(f, dir, file)
		v := make(map[string]any)
		if err := json.Unmarshal(cases[0], &v); err != nil {
			f.Fatal(err)
		}
		return v
	}
	for _, file := range []string{"messages", "welcome", "passive-client-welcome", "message-protection"} {
		for name, v := range load(file) {
			s, ok := v.(string)
			if !ok {
				continue
			}
			var h hexBytes
			if err := json.Unmarshal([]byte(`"`+s+`"`), &h); err == nil {
				add(name, h)
			}
		}
	}
}

// What decodes encodes to the same bytes.
func FuzzDecode(f *testing.F) {
	addMessages(f, func(_ string, raw []byte) {
		for i := range wireTypes {
			v := wireTypes[i]()
			if s := newReader(raw); v.unmarshal(s) && s.Empty() {
				f.Add(byte(i), raw)
			}
		}
		if len(raw) > 4 { // without the header of an MLSMessage
			for i := range wireTypes {
				v := wireTypes[i]()
				if s := newReader(raw[4:]); v.unmarshal(s) && s.Empty() {
					f.Add(byte(i), raw[4:])
				}
			}
		}
	})
	f.Fuzz(func(t *testing.T, which byte, raw []byte) {
		v := wireTypes[int(which)%len(wireTypes)]()
		if unmarshal(raw, v) != nil {
			return
		}
		if got := v.appendTo(nil); !bytes.Equal(got, raw) {
			t.Errorf("%T: got %x, want %x", v, got, raw)
		}
	})
}

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
	addMessages(f, func(_ string, raw []byte) { f.Add(raw) })
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := ParseMessage(raw)
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
		_, _, _, _, _ = m.GroupID(), m.Epoch(), m.ContentType(), m.AuthenticatedData(), m.ConfirmationTag()
		if kp := m.KeyPackage(); kp != nil && kp.CipherSuite.Supported() {
			_ = kp.Validate(&Config{Now: testNow}, kp.CipherSuite)
			_ = kp.Ref()
		}
	})
}

func FuzzParseTree(f *testing.F) {
	addMessages(f, func(name string, raw []byte) {
		if name == "ratchet_tree" {
			f.Add(raw)
		}
	})
	f.Fuzz(func(t *testing.T, raw []byte) {
		tree, err := parseTree(1, raw, (*Config)(nil).limits())
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
		to, err := LoadGroup(w.cfg, w.epoch, w.ratchets)
		if err != nil {
			t.Fatal(err)
		}
		p, err := to.Process(m)
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
		to, err := UnmarshalPublicGroup(w.cfg, state)
		if err != nil {
			t.Fatal(err)
		}
		p, err := to.Process(m)
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

// A Welcome or GroupInfo from anybody, and a tree beside it.
func FuzzJoin(f *testing.F) {
	w := newFuzzGroups(f)
	bundle := newTestClient(f, w.cfg, 1, 9)
	stored, err := bundle.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	for _, inside := range []bool{true, false} {
		sc, err := w.groups[0].Commit(CommitOptions{Proposals: []Proposal{Add(bundle.KeyPackage())}, WelcomeRatchetTree: inside})
		if err != nil {
			f.Fatal(err)
		}
		info, err := w.groups[0].GroupInfo(GroupInfoOptions{RatchetTree: inside, ExternalPub: true})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sc.Welcome(), sc.Merge().RatchetTree())
		f.Add(info, w.groups[0].RatchetTree())
	}
	key := bundle.signature
	f.Fuzz(func(t *testing.T, raw, tree []byte) {
		m, err := ParseMessage(raw)
		if err != nil {
			return
		}
		if m.Welcome() != nil {
			b, err := UnmarshalKeyPackageBundle(stored)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := JoinWelcome(w.cfg, m, b, JoinOptions{RatchetTree: tree}); err != nil {
				if after, merr := b.MarshalBinary(); merr != nil || !bytes.Equal(after, stored) {
					t.Errorf("a refused Welcome used up the KeyPackage: %v", err)
				}
			}
		}
		if m.GroupInfo() != nil {
			_, _ = NewPublicGroup(w.cfg, m, tree)
			_, _ = ExternalJoin(w.cfg, m, key, ExternalJoinOptions{Leaf: benchLeaf(1), RatchetTree: tree})
		}
	})
}

// What our own store holds may be damaged: no panic, and what is taken is
// written back as it was.
func FuzzLoad(f *testing.F) {
	w := newFuzzGroups(f)
	sc, err := w.groups[1].Commit(CommitOptions{})
	if err != nil {
		f.Fatal(err)
	}
	staged, err := sc.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	bundle, err := newTestClient(f, w.cfg, 1, 9).MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	for i, raw := range [][]byte{w.epoch, w.ratchets, staged, bundle} {
		f.Add(byte(i), raw)
	}
	f.Fuzz(func(t *testing.T, which byte, raw []byte) {
		switch which % 5 {
		case 0:
			if g, err := LoadGroup(w.cfg, raw, w.ratchets); err == nil && !bytes.Equal(g.EpochState(), raw) {
				t.Error("another epoch state is written than was read")
			}
		case 1:
			if g, err := LoadGroup(w.cfg, w.epoch, raw); err == nil {
				_, _ = g.Encrypt([]byte("text"), nil)
				_ = g.RatchetState()
			}
		case 2:
			g, err := LoadGroup(w.cfg, w.epoch, w.ratchets)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = UnmarshalStagedCommit(w.cfg, g, raw)
		case 3:
			if b, err := UnmarshalKeyPackageBundle(raw); err == nil {
				if back, err := b.MarshalBinary(); err != nil || !bytes.Equal(back, raw) {
					t.Errorf("another bundle is written than was read: %v", err)
				}
			}
		case 4:
			if pg, err := UnmarshalPublicGroup(w.cfg, raw); err == nil {
				if back, err := pg.MarshalBinary(); err != nil || !bytes.Equal(back, raw) {
					t.Errorf("another state is written than was read: %v", err)
				}
			}
		}
	})
}
