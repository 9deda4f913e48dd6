package mls

import (
	"bytes"
	"strings"
	"testing"
)

// What a caller asks for is checked like what peers send: a mistake is found
// here and not by them, and leaves the group alone.
func TestOwnMistakesAreFoundHere(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(2)
	tree := Extension{Type: ExtensionTypeRatchetTree, Data: []byte{0}}
	required := (&RequiredCapabilities{Extensions: []ExtensionType{testExtension}}).Extension()
	leaf := w.options("x")
	inverted := leaf
	inverted.Lifetime = &Lifetime{NotBefore: 2, NotAfter: 1}
	info, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	w.check(err)
	used := w.bundle("used")
	c, _ := w.commit(gs, 0, CommitOptions{Proposals: []Proposal{Add(used.KeyPackage())}, WelcomeRatchetTree: true})
	_, err = JoinWelcome(w.cfg, w.parse(c.Welcome()), used, JoinOptions{})
	w.check(err)
	for name, x := range map[string]struct {
		do   func() error
		rule Rule
	}{
		"create in an unknown suite": {func() error {
			_, err := CreateGroup(w.cfg, 0x7777, []byte("g"), w.key(), leaf, nil)
			return err
		}, "crypto/cipher-suite-unknown"},
		"create with an extension of another place": {func() error {
			_, err := CreateGroup(w.cfg, w.cs, []byte("g"), w.key(), leaf, []Extension{tree})
			return err
		}, "codec/extension-wrong-place"},
		"create with what the own leaf lacks": {func() error {
			_, err := CreateGroup(w.cfg, w.cs, []byte("g"), w.key(), leaf, []Extension{required})
			return err
		}, "leaf-node/required-extension-missing"},
		"a key package in an unknown suite": {func() error {
			_, err := NewKeyPackage(w.cfg, 0x7777, w.key(), leaf)
			return err
		}, "crypto/cipher-suite-unknown"},
		"a key package that is never valid": {func() error {
			_, err := NewKeyPackage(w.cfg, w.cs, w.key(), inverted)
			return err
		}, "leaf-node/lifetime-inverted"},
		"a key package without credential": {func() error {
			_, err := NewKeyPackage(w.cfg, w.cs, w.key(), LeafOptions{})
			if err == nil || !strings.Contains(err.Error(), "LeafOptions.Credential") {
				t.Errorf("no credential: %v", err)
			}
			return err
		}, "leaf-node/credential-invalid"},
		"a key package made by hand": {func() error {
			kp := *w.bundle("y").KeyPackage()
			kp.raw = nil
			return kp.Validate(w.cfg, w.cs)
		}, "key-package/signature-invalid"},
		"a key in an unknown suite":         {func() error { _, err := GenerateSignatureKey(0x7777, w.cfg.Rand); return err }, "crypto/cipher-suite-unknown"},
		"reading a key in an unknown suite": {func() error { _, err := ParseSignaturePrivateKey(0x7777, nil); return err }, "crypto/cipher-suite-unknown"},
		"signing in an unknown suite":       {func() error { _, err := SignWithLabel(0x7777, w.key(), "l", nil); return err }, "crypto/cipher-suite-unknown"},
		"verifying in an unknown suite":     {func() error { return VerifyWithLabel(0x7777, nil, "l", nil, nil) }, "crypto/cipher-suite-unknown"},
		"a GroupInfo with an extension of another place": {func() error {
			_, err := gs[0].GroupInfo(GroupInfoOptions{Extensions: []Extension{required}})
			return err
		}, "codec/extension-wrong-place"},
		"a GroupInfo with an extension twice": {func() error {
			_, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, Extensions: []Extension{tree}})
			return err
		}, "codec/duplicate-extension-group-info"},
		"proposing to remove nobody": {func() error {
			_, _, err := gs[0].Propose(Remove(7), FramingOptions{})
			return err
		}, "proposal/remove-out-of-range"},
		"committing a proposal that is not there": {func() error {
			_, err := gs[0].Commit(CommitOptions{PendingRefs: []ProposalRef{make([]byte, 32)}})
			return err
		}, "proposal/ref-unknown"},
		"committing what the members lack": {func() error {
			_, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{GroupContextExtensions([]Extension{required})}})
			return err
		}, "proposal/gce-required-unsupported"},
		"an Update from outside": {func() error {
			_, err := NewExternalProposal(w.cs, []byte("group"), 1, 0, w.key(), Proposal{Type: ProposalTypeUpdate, Update: gs[0].OwnLeaf()}, nil)
			return err
		}, "proposal/external-sender-type"},
		"a proposal from outside in an unknown suite": {func() error {
			_, err := NewExternalProposal(0x7777, []byte("group"), 1, 0, w.key(), Remove(0), nil)
			return err
		}, "crypto/cipher-suite-unknown"},
		"asking to be added by what is used up": {func() error {
			_, err := NewMemberProposal([]byte("group"), 1, used, nil)
			return err
		}, "key-package/reused"},
		"joining with a leaf that lists too little": {func() error {
			o := leaf
			caps := DefaultCapabilities()
			caps.CipherSuites = []CipherSuite{otherSuite(w.cs)}
			o.Capabilities = &caps
			_, err := ExternalJoin(w.cfg, w.parse(info), w.key(), ExternalJoinOptions{Leaf: o})
			return err
		}, "leaf-node/cipher-suite-not-in-capabilities"},
		"joining in the place of another": {func() error {
			i := LeafIndex(1)
			_, err := ExternalJoin(w.cfg, w.parse(info), w.key(), ExternalJoinOptions{Leaf: leaf, Resync: &i})
			return err
		}, "external-commit/remove-other-identity"},
	} {
		t.Run(name, func(t *testing.T) {
			before := snapshot(gs[0])
			if err := x.do(); !hasRule(err, x.rule) {
				t.Errorf("got %v, want %s", err, x.rule)
			}
			if !bytes.Equal(before, snapshot(gs[0])) {
				t.Error("the mistake changed the group")
			}
		})
	}
}

// Who closed a group, or was told that it is closed, sends nothing more.
func TestNothingIsSentInAClosedGroup(t *testing.T) {
	w := newWorld(t, 1)
	_, gs := w.commit(w.group(2), 0, CommitOptions{Proposals: []Proposal{(&ReInit{GroupID: []byte("next"), Version: MLS10, CipherSuite: 1}).Proposal()}})
	for _, g := range gs {
		_, err := g.Encrypt([]byte("text"), nil)
		wantRule(t, err, "framing/group-closed")
		_, _, err = g.Propose(Remove(0), FramingOptions{})
		wantRule(t, err, "framing/group-closed")
		_, _, err = g.ProposeUpdate(nil, FramingOptions{})
		wantRule(t, err, "framing/group-closed")
		_, err = g.Commit(CommitOptions{})
		wantRule(t, err, "framing/group-closed")
	}
}

// Limits that a caller sets below the defaults hold for what peers send.
func TestLowerLimitsHold(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(3)
	limited := func(g *Group, l Limits) *Group {
		c := *g.cfg
		c.Limits = l
		e := *g.epoch
		e.cfg = &c
		n := *g
		n.epoch = &e
		return &n
	}
	add := func(kp *KeyPackage) *Message {
		return w.forge(gs[0], commitForgery{proposals: byValue(Add(kp)), path: true, added: []LeafIndex{3}, apply: func(t *ratchetTree) { t.add(kp.LeafNode) }})
	}
	long := w.forgePackage(packageForgery{name: strings.Repeat("x", 100)})
	x509 := w.forgePackage(packageForgery{leaf: func(l *LeafNode) {
		l.Credential = Credential{Type: CredentialTypeX509, Certificates: [][]byte{make([]byte, 60), make([]byte, 60)}}
	}})
	ext := w.forgePackage(packageForgery{leaf: func(l *LeafNode) {
		l.Extensions = []Extension{{Type: 0xf0b1, Data: make([]byte, 100)}}
		l.Capabilities.Extensions = []ExtensionType{0xf0b1}
	}})
	w.accept(gs[1], add(long))
	w.accept(gs[1], add(ext))
	for name, err := range map[string]error{
		"identity":     w.refuse(limited(gs[1], Limits{MaxCredentialSize: 99}), add(long)),
		"certificates": w.refuse(limited(gs[1], Limits{MaxCredentialSize: 119}), add(x509)),
		"extension":    w.refuse(limited(gs[1], Limits{MaxExtensionSize: 99}), add(ext)),
	} {
		if !hasRule(err, "codec/vector-over-limit") {
			t.Errorf("%s: %v", name, err)
		}
	}
	err := w.refuse(limited(gs[1], Limits{MaxMembers: 3}), add(long))
	if !hasRule(err, "tree/too-large") {
		t.Errorf("members: %v", err)
	}
	// By an external Commit, too; but who comes back takes no room.
	two := LeafIndex(2)
	join := w.forgeExternal(gs[0], externalForgery{})
	back := w.forgeExternal(gs[0], externalForgery{name: "member2", remove: &two, proposals: func(p Proposal) []proposalOrRef { return byValue(p, Remove(2)) }})
	if err := w.refuse(limited(gs[1], Limits{MaxMembers: 3}), join); !hasRule(err, "tree/too-large") {
		t.Errorf("external: %v", err)
	}
	w.accept(limited(gs[1], Limits{MaxMembers: 3}), back)
	if err := w.refuse(limited(gs[1], Limits{MaxProposals: 1}), back); !hasRule(err, "proposal-list/too-many") {
		t.Errorf("external proposals: %v", err)
	}
	small := &Config{Limits: Limits{MaxMessageSize: 100}}
	if _, err := parseTree(1, gs[0].RatchetTree(), small.limits()); !hasRule(err, "codec/vector-over-limit") && !hasRule(err, "tree/too-large") {
		t.Errorf("tree: %v", err)
	}
}

// What a dishonest committer can put into a path, beside the rows about Commits.
func TestPathsThatDoNotFit(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		gs := w.group(4)
		for name, f := range map[string]struct {
			forgery commitForgery
			rule    Rule
		}{
			"a key of no use": {commitForgery{path: true, pubs: func(pubs []HPKEPublicKey) { pubs[0] = pubs[0][1:] }}, "crypto/public-key-wrong-length"},
			"a short secret":  {commitForgery{path: true, secrets: func(i int, ps secret) secret { return ps[:len(ps)-1] }}, "commit/path-secret-undecryptable"},
			"a long secret":   {commitForgery{path: true, secrets: func(i int, ps secret) secret { return append(ps.clone(), 0) }}, "commit/path-secret-undecryptable"},
			"fewer ciphertexts": {commitForgery{path: true, editPath: func(p *updatePath) {
				n := &p.nodes[len(p.nodes)-1]
				n.ciphertexts = n.ciphertexts[1:]
			}}, "commit/path-ciphertext-count"},
			"one node more": {commitForgery{path: true, editPath: func(p *updatePath) { p.nodes = append(p.nodes, p.nodes[0]) }}, "commit/path-length"},
		} {
			if err := w.refuse(gs[1], w.forge(gs[0], f.forgery)); !hasRule(err, f.rule) {
				t.Errorf("%s: %v, want %s", name, err, f.rule)
			}
		}
		// The leaf's key at a node of the path.
		var first HPKEPublicKey
		m := commitForgery{path: true, pubs: func(pubs []HPKEPublicKey) { first = pubs[0] }}
		w.forge(gs[0], m)
		m.pubs = func(pubs []HPKEPublicKey) { pubs[0] = first }
		m.leafKey = first
		if err := w.refuse(gs[1], w.forge(gs[0], m)); !hasRule(err, "commit/path-keys-equal") {
			t.Errorf("leaf and node: %v", err)
		}
	})
}

// What a dishonest member can put into a Welcome, beside the rows about those.
func TestWelcomesThatDoNotFit(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		g, b := w.invited()
		own, ok := g.tree.findSignatureKey(b.keyPackage.LeafNode.SignatureKey)
		if !ok {
			t.Fatal("the invited client has no leaf")
		}
		var many []PreSharedKeyID
		for range 33 {
			many = append(many, PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("id"), Nonce: w.nonce()})
		}
		short := PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("id"), Nonce: w.nonce()[1:]}
		for name, x := range map[string]struct {
			f    welcomeForgery
			rule Rule
		}{
			"too many PSKs":                {welcomeForgery{psks: many}, "proposal-list/too-many"},
			"a PSK with a short nonce":     {welcomeForgery{psks: []PreSharedKeyID{short}}, "proposal/psk-nonce-length"},
			"a short joiner secret":        {welcomeForgery{joiner: 8}, "welcome/secrets-undecryptable"},
			"a short path secret":          {welcomeForgery{pathSecret: secret{1}}, "welcome/path-secret-mismatch"},
			"an extension out of place":    {welcomeForgery{exts: []Extension{(&RequiredCapabilities{}).Extension()}}, "codec/extension-wrong-place"},
			"a context extension as well":  {welcomeForgery{context: func(c *groupContext) { c.extensions = []Extension{{Type: ExtensionTypeRatchetTree, Data: []byte{0}}} }}, "codec/extension-wrong-place"},
			"an extension twice":           {welcomeForgery{exts: []Extension{{Type: 0xf0b1}, {Type: 0xf0b1}}}, "codec/duplicate-extension-group-info"},
			"a tree of no leaf":            {welcomeForgery{tree: []byte{0}}, "tree/empty"},
			"our own leaf as its signer":   {welcomeForgery{signer: &own, pathSecret: bytes.Repeat([]byte{1}, w.cs.HashLen())}, "welcome/group-info-signature"},
			"a leaf that is not its maker": {welcomeForgery{signer: ptr(LeafIndex(1))}, "welcome/group-info-signature"},
		} {
			if err := w.refuseJoin(w.forgeWelcome(g, b, x.f), b, JoinOptions{}); !hasRule(err, x.rule) {
				t.Errorf("%s: %v, want %s", name, err, x.rule)
			}
		}
	})
}

func ptr[T any](v T) *T { return &v }

// Whoever follows a group checks a GroupInfo in full.
func TestGroupInfosThatDoNotFit(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(3)
	info := func(g *Group, edit func(gi *GroupInfo)) *Message {
		raw, err := g.GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
		w.check(err)
		m := w.parse(raw)
		if edit != nil {
			edit(m.groupInfo)
		}
		return m
	}
	c, err := gs[0].Commit(CommitOptions{})
	w.check(err)
	pub := w.public(gs[1])
	p, err := pub.Process(w.parse(c.Message()))
	w.check(err)
	staged := p.(*PublicStagedCommit)
	w.check(staged.VerifyGroupInfo(info(c.Merge(), nil)))
	next := w.follow(gs, gs[0], c)
	wantRule(t, staged.VerifyGroupInfo(info(next[1], nil)), "welcome/group-info-signature") // another member's
	w.check(next[2].VerifyGroupInfo(info(next[1], nil)))
	for name, x := range map[string]struct {
		edit func(gi *GroupInfo)
		rule Rule
	}{
		"signer":           {func(gi *GroupInfo) { gi.signer = 99 }, "welcome/signer-blank"},
		"confirmation tag": {func(gi *GroupInfo) { gi.confirmationTag = flipped(gi.confirmationTag, 0) }, "welcome/confirmation-tag"},
		"signature":        {func(gi *GroupInfo) { gi.signature = flipped(gi.signature, 0) }, "welcome/group-info-signature"},
		"extensions":       {func(gi *GroupInfo) { gi.extensions = append(gi.extensions, (&RequiredCapabilities{}).Extension()) }, "codec/extension-wrong-place"},
	} {
		if err := next[2].VerifyGroupInfo(info(next[1], x.edit)); !hasRule(err, x.rule) {
			t.Errorf("%s: %v, want %s", name, err, x.rule)
		}
	}
	gi := info(gs[0], nil).groupInfo
	gi.context.cipherSuite = 0x7777
	wantRule(t, gi.Verify(gs[0].OwnLeaf().SignatureKey), "crypto/cipher-suite-unknown")

	// The key that external Commits are encrypted to.
	for name, body := range map[string][]byte{"short": {1, 2}, "of low order": appendOpaqueVec(nil, make([]byte, 32))} {
		raw, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, Extensions: []Extension{{Type: ExtensionTypeExternalPub, Data: body}}})
		w.check(err)
		if _, err := ExternalJoin(w.cfg, w.parse(raw), w.key(), ExternalJoinOptions{Leaf: w.options("x")}); !hasRule(err, "crypto/public-key-wrong-length") && !hasRule(err, "crypto/public-key-low-order") {
			t.Errorf("external_pub %s: %v", name, err)
		}
	}
}
