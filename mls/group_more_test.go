package mls

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestNothingSecretPrints(t *testing.T) {
	w := newWorld(t, 1)
	g, b := w.invited()
	c, err := g.Commit(CommitOptions{})
	w.check(err)
	_, _, err = g.ProposeUpdate(nil, FramingOptions{})
	w.check(err)
	secrets := map[string][]byte{
		"init key": b.initKey, "leaf key": b.leafKey, "signature key": g.signature.Bytes(),
		"init secret": g.secrets.init, "exporter": c.Merge().secrets.exporter, "own node key": g.keys[0].priv,
		"update key": g.cache.list[0].leafKey, "past": c.Merge().past[0].psk,
	}
	for _, v := range []any{g, b, c, g.keys[0].priv, g.signature, g.secrets.init} {
		j, err := json.Marshal(v)
		w.check(err)
		outs := []string{string(j)}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
			outs = append(outs, fmt.Sprintf(verb, v))
		}
		for _, out := range outs {
			for name, s := range secrets {
				for _, form := range []string{string(s), fmt.Sprintf("%x", s), fmt.Sprint(s[:8]), fmt.Sprintf("%#v", s[:8])} {
					if bytes.Contains([]byte(out), []byte(form[:len(form)-1])) {
						t.Errorf("%T prints the %s", v, name)
					}
				}
			}
		}
	}
}

// Package fmt does not call the methods of what is in fields that are not
// exported; a key in one must not print all the same.
func TestNothingSecretPrintsFromInside(t *testing.T) {
	for cs := range CipherSuite(8) {
		if !cs.Supported() {
			continue
		}
		key := mustSignatureKey(t, cs)
		raw := key.Bytes()
		holder := struct {
			inner struct{ key SignaturePrivateKey }
		}{struct{ key SignaturePrivateKey }{key}}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
			out := fmt.Sprintf(verb, holder)
			for _, form := range []string{string(raw[:8]), fmt.Sprintf("%x", raw[:8]), fmt.Sprint(raw[:8]), fmt.Sprintf("%#v", raw[:8])} {
				if strings.Contains(out, form[:len(form)-1]) {
					t.Errorf("suite %d: %s prints the key", cs, verb)
				}
			}
		}
	}
	var zero SignaturePrivateKey
	if zero.Bytes() != nil || zero.Public() != nil || fmt.Sprint(zero) != redacted {
		t.Error("the zero key is not empty")
	}
}

func TestSignatureKeyChanges(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		gs := w.group(3)
		key := w.key()
		o := w.options("member0")
		o.LeafExtensions = []Extension{{Type: 0xf0b1, Data: []byte("x")}}
		c, gs := w.commit(gs, 0, CommitOptions{NewSignatureKey: &key, Leaf: &o})
		if !bytes.Equal(c.CommitterLeaf().SignatureKey, key.Public()) {
			t.Fatal("the leaf has the old signature key")
		}
		if i, ok := gs[1].FindLeaf(key.Public()); !ok || i != 0 {
			t.Errorf("found leaf %d, %v", i, ok)
		}
		w.talk(gs)
		stored, err := LoadGroup(w.cfg, gs[0].EpochState(), gs[0].RatchetState())
		w.check(err)
		gs[0] = stored
		_, gs = w.commit(gs, 0, CommitOptions{})
		w.talk(gs)
		if _, err := gs[0].Commit(CommitOptions{NewSignatureKey: &key, NoPath: true}); err == nil {
			t.Error("a new key without path")
		}
	})
}

func TestAccessors(t *testing.T) {
	w := newWorld(t, 1)
	req := (&RequiredCapabilities{Credentials: []CredentialType{CredentialTypeBasic}}).Extension()
	gs := w.group(3, req)
	pub := w.public(gs[0])
	c, err := gs[1].Commit(CommitOptions{Proposals: []Proposal{Remove(2)}, AuthenticatedData: []byte("aad")})
	w.check(err)
	p, err := pub.Process(w.parse(c.Message()))
	w.check(err)
	q := w.accept(gs[0], w.parse(c.Message())).(*StagedCommit)
	ps := p.(*PublicStagedCommit)
	for i, info := range []*commitInfo{&c.commitInfo, &ps.commitInfo, &q.commitInfo} {
		l, ok := info.Leaf(1)
		_, gone := info.Leaf(2)
		n := 0
		for range info.Members() {
			n++
		}
		_, has := info.Extension(ExtensionTypeRequiredCapabilities)
		if !ok || gone || string(l.raw) != string(info.CommitterLeaf().raw) || n != 2 || info.MemberCount() != 2 || !has || len(info.Extensions()) != 1 ||
			info.Sender() != (Sender{Type: SenderTypeMember, LeafIndex: 1}) || info.External() || info.ReInit() != nil ||
			info.Epoch() != 2 || string(info.AuthenticatedData()) != "aad" || !info.HasPath() {
			t.Errorf("view %d is wrong", i)
		}
	}
	next := c.Merge()
	raw, err := c.GroupInfo(GroupInfoOptions{ExternalPub: true, Extensions: []Extension{{Type: 0xf0b1}}})
	w.check(err)
	gi := w.parse(raw).GroupInfo()
	if gi.CipherSuite() != w.cs || gi.Epoch() != 2 || string(gi.GroupID()) != "group" || gi.Signer() != 1 || len(gi.Extensions()) != 2 || len(gi.GroupExtensions()) != 1 {
		t.Error("the GroupInfo is wrong")
	}
	wantBytes(t, "tree hash", gi.TreeHash(), next.TreeHash())
	wantBytes(t, "transcript", gi.ConfirmedTranscriptHash(), ps.Merge().ConfirmedTranscriptHash())
	wantBytes(t, "tag", gi.ConfirmationTag(), c.ConfirmationTag())
	wantBytes(t, "context", next.GroupContext(), ps.Merge().GroupContext())
	w.check(gi.Verify(next.OwnLeaf().SignatureKey))
	if err := gi.Verify(q.Merge().OwnLeaf().SignatureKey); !hasRule(err, "welcome/group-info-signature") {
		t.Errorf("signature of another: %v", err)
	}
	if _, ok := next.Extension(ExtensionTypeRequiredCapabilities); !ok {
		t.Error("the group has lost its extension")
	}
	a, err := next.Export("label", []byte("context"), 32)
	w.check(err)
	b, err := q.Merge().Export("label", []byte("context"), 32)
	w.check(err)
	wantBytes(t, "exported", a, b)
	wantBytes(t, "resumption PSK", next.ResumptionPSK(), q.Merge().ResumptionPSK())
	if len(pub.PendingProposals()) != 0 {
		t.Error("proposals out of nowhere")
	}
}

func TestVerifyGroupInfo(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(3)
	pub := w.public(gs[0])
	c, err := gs[1].Commit(CommitOptions{})
	w.check(err)
	d, err := gs[1].Commit(CommitOptions{})
	w.check(err)
	p, err := pub.Process(w.parse(c.Message()))
	w.check(err)
	s := p.(*PublicStagedCommit)
	q := w.accept(gs[0], w.parse(c.Message())).(*StagedCommit)
	info := func(g *Group) *Message {
		raw, err := g.GroupInfo(GroupInfoOptions{})
		w.check(err)
		return w.parse(raw)
	}
	w.check(s.VerifyGroupInfo(info(c.Merge())))
	for name, row := range map[string]struct {
		m    *Message
		rule Rule
	}{
		"not by the committer": {info(q.Merge()), "welcome/group-info-signature"},
		"of the epoch before":  {info(gs[1]), "external-commit/stale-group-info"},
		"of a sibling":         {info(d.Merge()), "tree/tree-hash"},
		"of another group":     {info(newWorld(t, 1).otherGroup()), "framing/group-id"},
	} {
		if err := s.VerifyGroupInfo(row.m); !hasRule(err, row.rule) {
			t.Errorf("%s: %v", name, err)
		}
	}
	forged := func(edit func(gi *GroupInfo)) *Message {
		gi := *info(c.Merge()).GroupInfo()
		edit(&gi)
		raw, err := signGroupInfo(w.cs, c.Merge().signature, gi.contextRaw, gi.extensions, gi.confirmationTag, gi.signer)
		w.check(err)
		return w.parse(append(appendMessageHeader(nil, WireFormatGroupInfo), raw...))
	}
	w.check(s.VerifyGroupInfo(forged(func(*GroupInfo) {})))
	if err := s.VerifyGroupInfo(forged(func(gi *GroupInfo) { gi.confirmationTag = make([]byte, 32) })); !hasRule(err, "welcome/confirmation-tag") {
		t.Errorf("tag: %v", err)
	}
	if err := s.VerifyGroupInfo(forged(func(gi *GroupInfo) { gi.contextRaw[len(gi.contextRaw)-3] ^= 1 })); !hasRule(err, "commit/transcript-forked") {
		t.Errorf("transcript: %v", err)
	}
	if err := s.next.VerifyGroupInfo(forged(func(gi *GroupInfo) { gi.signer = 77 })); !hasRule(err, "welcome/signer-blank") {
		t.Errorf("signer: %v", err)
	}
	if err := s.VerifyGroupInfo(w.parse(c.Message())); err == nil {
		t.Error("a Commit is taken for a GroupInfo")
	}
}

// otherGroup makes a group with another identifier, in which leaf 1 is ours.
func (w *world) otherGroup() *Group {
	w.t.Helper()
	w.cfg.Rand = seeded(77)
	g, err := CreateGroup(w.cfg, w.cs, []byte("another group"), w.key(), w.options("member0"), nil)
	w.check(err)
	b := w.bundle("member1")
	c, err := g.Commit(CommitOptions{Proposals: []Proposal{Add(b.KeyPackage())}, WelcomeRatchetTree: true})
	w.check(err)
	j, err := JoinWelcome(w.cfg, w.parse(c.Welcome()), b, JoinOptions{})
	w.check(err)
	return j
}

func TestExternalJoinWithPSKs(t *testing.T) {
	w := newWorld(t, 1)
	w.psks["k"] = []byte("psk")
	gs := w.group(3)
	lost := gs[2]
	_, gs = w.commit(gs, 0, CommitOptions{})
	info, err := gs[0].GroupInfo(GroupInfoOptions{ExternalPub: true, RatchetTree: true})
	w.check(err)
	leaf := lost.own
	o := ExternalJoinOptions{
		Leaf: w.options("member2"), Resync: &leaf, Resumption: []*Group{lost},
		PSKs: []PreSharedKeyID{
			{Type: PSKTypeExternal, ID: []byte("k")},
			{Type: PSKTypeResumption, Usage: ResumptionPSKUsageApplication, GroupID: []byte("group"), Epoch: lost.Epoch()},
		},
	}
	c, err := ExternalJoin(w.cfg, w.parse(info), w.key(), o)
	w.check(err)
	raw, err := c.MarshalBinary()
	w.check(err)
	c, err = UnmarshalStagedCommit(w.cfg, nil, raw)
	w.check(err)
	next := append(w.follow(gs[:2], nil, c), c.Merge())
	w.agree(next)
	w.talk(next)

	o.Resumption = nil
	if _, err := ExternalJoin(w.cfg, w.parse(info), w.key(), o); !hasRule(err, "commit/psk-unavailable") {
		t.Errorf("without the old state: %v", err)
	}
	if _, err := ExternalJoin(w.cfg, w.parse(c.Message()), w.key(), o); err == nil {
		t.Error("joined by a Commit in place of a GroupInfo")
	}
}

func TestStoredFormsCutShort(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(3)
	pub := w.public(gs[0])
	proposal, _, err := gs[1].ProposeUpdate(nil, FramingOptions{})
	w.check(err)
	w.accept(gs[0], w.parse(proposal))
	_, err = pub.Process(w.parse(proposal))
	w.check(err)
	c, err := gs[0].Commit(CommitOptions{Pending: true, Proposals: []Proposal{Add(w.bundle("x").KeyPackage()), Remove(2)}})
	w.check(err)
	staged, err := c.MarshalBinary()
	w.check(err)
	public, err := pub.MarshalBinary()
	w.check(err)
	epochState, ratchetState := gs[1].EpochState(), gs[1].RatchetState()
	for name, f := range map[string]struct {
		raw  []byte
		load func(raw []byte) error
	}{
		"staged commit": {staged, func(raw []byte) error { _, err := UnmarshalStagedCommit(w.cfg, gs[0], raw); return err }},
		"public group":  {public, func(raw []byte) error { _, err := UnmarshalPublicGroup(w.cfg, raw); return err }},
		"epoch state":   {epochState, func(raw []byte) error { _, err := LoadGroup(w.cfg, raw, ratchetState); return err }},
		"ratchet state": {ratchetState, func(raw []byte) error { _, err := LoadGroup(w.cfg, epochState, raw); return err }},
	} {
		w.check(f.load(f.raw))
		for n := 0; n < len(f.raw); n += 1 + len(f.raw)/200 {
			if f.load(f.raw[:n]) == nil {
				t.Fatalf("%s: %d of %d bytes were read", name, n, len(f.raw))
			}
		}
		if f.load(append(bytes.Clone(f.raw), 0)) == nil {
			t.Errorf("%s: trailing bytes were read", name)
		}
		if f.load(append([]byte{99}, f.raw[1:]...)) == nil {
			t.Errorf("%s: an unknown format was read", name)
		}
	}
	if _, err := UnmarshalStagedCommit(w.cfg, c.Merge(), staged); err == nil {
		t.Error("a staged Commit was taken for another epoch's")
	}
	s := w.accept(gs[1], w.parse(proposal))
	if _, ok := s.(*ProposalMessage); !ok {
		t.Errorf("our own proposal again: %T", s)
	}
	if q := w.accept(gs[1], w.parse(c.Message())).(*StagedCommit); true {
		if _, err := q.MarshalBinary(); err == nil {
			t.Error("another member's Commit can be stored")
		}
		if q.Message() != nil || q.Welcome() != nil {
			t.Error("another member's Commit has a message of ours")
		}
		if _, err := q.WelcomeFor(KeyPackageRef("x")); err == nil {
			t.Error("another member's Commit has a Welcome")
		}
	}
}

func TestWrongUseIsRefused(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(3)
	c, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{Remove(2)}})
	w.check(err)
	removed := w.accept(gs[2], w.parse(c.Message())).(*StagedCommit)
	b := w.bundle("x")
	used := w.bundle("y")
	used.Zero()
	info, err := gs[0].GroupInfo(GroupInfoOptions{})
	w.check(err)
	for name, f := range map[string]func() error{
		"incomplete proposal": func() error {
			_, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{{Type: ProposalTypeAdd}}})
			return err
		},
		"incomplete proposal sent": func() error {
			_, _, err := gs[0].Propose(Proposal{Type: ProposalTypePSK}, FramingOptions{})
			return err
		},
		"unknown proposal type": func() error { _, _, err := gs[0].Propose(Proposal{Type: 99}, FramingOptions{}); return err },
		"Update by Propose": func() error {
			_, _, err := gs[0].Propose(Proposal{Type: ProposalTypeUpdate, Update: gs[0].OwnLeaf()}, FramingOptions{})
			return err
		},
		"Welcome to Process":          func() error { _, err := gs[0].Process(w.parse(b.Message())); return err },
		"KeyPackage to JoinWelcome":   func() error { _, err := JoinWelcome(w.cfg, w.parse(b.Message()), b, JoinOptions{}); return err },
		"KeyPackage to PublicGroup":   func() error { _, err := NewPublicGroup(w.cfg, w.parse(b.Message()), nil); return err },
		"KeyPackage to be followed":   func() error { _, err := w.public(gs[0]).Process(w.parse(b.Message())); return err },
		"GroupInfo without tree":      func() error { _, err := NewPublicGroup(w.cfg, w.parse(info), nil); return err },
		"GroupInfo after removal":     func() error { _, err := removed.GroupInfo(GroupInfoOptions{}); return err },
		"storing a removal":           func() error { _, err := removed.MarshalBinary(); return err },
		"suite that is unknown":       func() error { _, err := CreateGroup(w.cfg, 0x0a0a, nil, w.key(), w.options("x"), nil); return err },
		"KeyPackage of unknown suite": func() error { _, err := NewKeyPackage(w.cfg, 99, w.key(), w.options("x")); return err },
		"misplaced extension": func() error {
			_, err := CreateGroup(w.cfg, w.cs, nil, w.key(), w.options("x"), []Extension{{Type: ExtensionTypeRatchetTree}})
			return err
		},
		"group we do not fit": func() error {
			_, err := CreateGroup(w.cfg, w.cs, nil, w.key(), w.options("x"), []Extension{{Type: testExtension}})
			return err
		},
		"misplaced GroupInfo extension": func() error {
			_, err := gs[0].GroupInfo(GroupInfoOptions{Extensions: []Extension{{Type: ExtensionTypeApplicationID, Data: []byte{0}}}})
			return err
		},
		"ReInitGroup of an open group": func() error { _, err := gs[0].ReInitGroup(w.key(), w.options("x"), nil, CommitOptions{}); return err },
		"Branch with the same ID": func() error {
			_, err := gs[0].Branch([]byte("group"), nil, w.key(), w.options("x"), nil, CommitOptions{})
			return err
		},
		"proposing a used KeyPackage": func() error { _, err := NewMemberProposal([]byte("group"), 1, used, nil); return err },
		"incomplete external proposal": func() error {
			_, err := NewExternalProposal(w.cs, nil, 0, 0, w.key(), Proposal{Type: ProposalTypeAdd}, nil)
			return err
		},
		"external proposal of unknown suite": func() error { _, err := NewExternalProposal(99, nil, 0, 0, w.key(), Remove(1), nil); return err },
		"storing a used bundle":              func() error { _, err := used.MarshalBinary(); return err },
		"empty bundle":                       func() error { _, err := UnmarshalKeyPackageBundle(nil); return err },
		"leaf with too much credential": func() error {
			_, err := NewKeyPackage(w.cfg, w.cs, w.key(), LeafOptions{Credential: BasicCredential(make([]byte, 9000))})
			return err
		},
	} {
		if err := f(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// dry is a source of randomness that has run out.
type dry struct{ left int }

func (d *dry) Read(p []byte) (int, error) {
	if d.left -= len(p); d.left < 0 {
		return 0, fmt.Errorf("no more randomness")
	}
	for i := range p {
		p[i] = byte(d.left + i)
	}
	return len(p), nil
}

func TestRandomnessFails(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(3)
	for left := 0; left < 400; left += 7 {
		c := *w.cfg
		c.Rand = &dry{left}
		e := *gs[0].epoch
		e.cfg = &c
		g := *gs[0]
		g.epoch = &e
		for name, f := range map[string]func() error{
			"commit":  func() error { _, err := g.Commit(CommitOptions{}); return err },
			"update":  func() error { _, _, err := g.ProposeUpdate(nil, FramingOptions{}); return err },
			"package": func() error { _, err := NewKeyPackage(&c, w.cs, gs[0].signature, w.options("x")); return err },
			"create":  func() error { _, err := CreateGroup(&c, w.cs, nil, gs[0].signature, w.options("x"), nil); return err },
		} {
			before := snapshot(&g)
			if f() != nil && !bytes.Equal(before, snapshot(&g)) {
				t.Fatalf("%s failed after %d random bytes and changed the group", name, left)
			}
		}
		if len(g.cache.list) > 0 {
			break
		}
	}
}

// Who changes its credential keeps what it supports.
func TestLeafOptionsKeepCapabilities(t *testing.T) {
	w := newWorld(t, 1)
	caps := DefaultCapabilities()
	caps.Extensions = []ExtensionType{0xf00d}
	o := w.options("a")
	o.Capabilities = &caps
	g, err := CreateGroup(w.cfg, w.cs, []byte("capabilities"), w.key(), o, nil)
	w.check(err)
	leaf := w.options("a")
	leaf.LeafExtensions = []Extension{{Type: 0xf00e}}
	c, err := g.Commit(CommitOptions{Leaf: &leaf})
	w.check(err)
	next := c.Merge()
	if got := next.OwnLeaf().Capabilities.Extensions; !slices.Equal(got, []ExtensionType{0xf00d, 0xf00e}) {
		t.Errorf("after a change of the leaf it supports the extensions %v", got)
	}
	if got := g.OwnLeaf().Capabilities.Extensions; !slices.Equal(got, []ExtensionType{0xf00d}) {
		t.Errorf("the leaf of the epoch before supports %v now", got)
	}
}

// The error about a signature key that is in the group already says what to do.
func TestExternalJoinBesideOwnLeaf(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(3)
	info, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	w.check(err)
	_, err = ExternalJoin(w.cfg, w.parse(info), gs[1].signature, ExternalJoinOptions{Leaf: w.options("b")})
	if !hasRule(err, "proposal-list/tree-invalid-after") || !strings.Contains(err.Error(), "Resync") {
		t.Errorf("a second leaf of one client: %v", err)
	}
}
