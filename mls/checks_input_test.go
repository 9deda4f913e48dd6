package mls

import (
	"bytes"
	"crypto/rand"
	"math"
	"testing"
)

// What a leaf and a KeyPackage hold is checked where they are added, too, not
// only where it is read.
func TestAddedLeavesAreCheckedInFull(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		gs := w.group(3)
		twice := []Extension{{Type: 0xf0b1}, {Type: 0xf0b1}}
		listed := func(l *LeafNode) { l.Capabilities.Extensions = []ExtensionType{0xf0b1} }
		for name, x := range map[string]struct {
			f    packageForgery
			rule Rule
		}{
			"an extension twice in the leaf":         {packageForgery{leaf: func(l *LeafNode) { listed(l); l.Extensions = twice }}, "codec/duplicate-extension-leaf-node"},
			"an extension twice in the KeyPackage":   {packageForgery{leaf: listed, exts: twice}, "codec/duplicate-extension-key-package"},
			"an extension out of place in a leaf":    {packageForgery{leaf: func(l *LeafNode) { l.Extensions = []Extension{(&RequiredCapabilities{}).Extension()} }}, "codec/extension-wrong-place"},
			"an extension out of place in the whole": {packageForgery{exts: []Extension{(&RequiredCapabilities{}).Extension()}}, "codec/extension-wrong-place"},
			"a signature key of no use":              {packageForgery{leaf: func(l *LeafNode) { l.SignatureKey = l.SignatureKey[1:] }}, "crypto/signature-key-malformed"},
			"a credential type without application":  {packageForgery{leaf: x509Leaf}, "leaf-node/credential-invalid"},
		} {
			if err := w.refuseAdd(gs, w.forgePackage(x.f), x.rule); !hasRule(err, x.rule) {
				t.Errorf("%s: %v, want %s", name, err, x.rule)
			}
		}
	})
}

func x509Leaf(l *LeafNode) {
	l.Credential = Credential{Type: CredentialTypeX509, Certificates: [][]byte{{1}}}
	l.Capabilities.Credentials = append(l.Capabilities.Credentials, CredentialTypeX509)
}

// Lists of 16-bit values have whole ones, and a GroupContext a known version.
func TestOddListsAndVersions(t *testing.T) {
	wantRule(t, unmarshal(unhex(t, "03 000100 00 00 00 00"), new(Capabilities)), "codec/vector-element-truncated")
	w := newWorld(t, 1)
	raw := bytes.Clone(w.group(1)[0].contextRaw)
	raw[1] = 2
	wantRule(t, unmarshal(raw, new(groupContext)), "codec/unknown-version")
	tree := w.group(1)[0].RatchetTree()
	_, err := parseTree(1, append(tree, 0), w.cfg.limits())
	wantRule(t, err, "codec/trailing-bytes-extension")
}

// Signatures that begin like DER and go on otherwise.
func TestSignaturesThatAreNotQuiteDER(t *testing.T) {
	for _, cs := range []CipherSuite{2, 5, 7} {
		key := mustSignatureKey(t, cs)
		for name, bad := range map[string][]byte{
			"one number":                {0x30, 3, 2, 1, 1},
			"three numbers":             {0x30, 9, 2, 1, 1, 2, 1, 1, 2, 1, 1},
			"octets for the first":      {0x30, 6, 4, 1, 1, 2, 1, 1},
			"octets and two numbers":    {0x30, 9, 4, 1, 1, 2, 1, 1, 2, 1, 1},
			"octets for the second":     {0x30, 6, 2, 1, 1, 4, 1, 1},
			"a set":                     {0x31, 6, 2, 1, 1, 2, 1, 1},
			"a sequence, and then more": {0x30, 6, 2, 1, 1, 2, 1, 1, 0},
		} {
			if err := verifyContent(cs, key.Public(), bad); !hasRule(err, "crypto/signature-not-der") {
				t.Errorf("%v: %s: %v", cs, name, err)
			}
		}
		wantRule(t, verifyContent(cs, key.Public(), []byte{0x30, 6, 2, 1, 1, 2, 1, 1}), "crypto/signature-wrong")
	}
}

// A source of randomness that gives nothing but zeros gives no ECDSA key.
func TestNoSignatureKeyFromZeros(t *testing.T) {
	for _, cs := range []CipherSuite{2, 5, 7} {
		if key, err := GenerateSignatureKey(cs, bytes.NewReader(make([]byte, 64*66))); err == nil {
			t.Errorf("%v: a key was made: %x", cs, key.Public())
		}
	}
}

// Private keys of a wrong size, or out of range, are an error of ours.
func TestKEMsRefuseWrongPrivateKeys(t *testing.T) {
	for _, cs := range append(SupportedCipherSuites(), ExperimentalCipherSuites()...) {
		priv, pub, ct := sealed(t, cs)
		for _, bad := range []hpkePrivateKey{nil, priv[1:], append(bytes.Clone(priv), 0)} {
			if _, err := cs.decap(bad, pub, ct.KEMOutput); err == nil {
				t.Errorf("%v: a private key of %d bytes was used", cs, len(bad))
			}
			if _, err := cs.publicKey(bad); err == nil {
				t.Errorf("%v: a private key of %d bytes has a public one", cs, len(bad))
			}
		}
		k := cs.suite().kem
		if k.pq != nil {
			continue
		}
		for _, bad := range []HPKEPublicKey{nil, pub[1:], append(bytes.Clone(pub), 0)} {
			_, err := k.dh(priv, bad)
			wantRule(t, err, "crypto/public-key-wrong-length")
		}
		if k.curve != nil {
			if _, err := k.dh(bytes.Repeat([]byte{0xff}, k.nsk), pub); err == nil {
				t.Errorf("%v: a private key out of range was used", cs)
			}
		}
	}
}

// Counts that no message can have are refused before they are worked on.
func TestCountsBeyondTheWire(t *testing.T) {
	ids, psks := make([]PreSharedKeyID, 1<<16), make([]secret, 1<<16)
	_, err := CipherSuite(1).pskSecret(ids, psks)
	wantRule(t, err, "commit/psk-unavailable")
	_, err = CipherSuite(1).pskSecret(ids[:2], psks[:1])
	wantRule(t, err, "commit/psk-unavailable")

	// The text is never touched: its size is enough.
	w := newWorld(t, 1)
	g := w.group(1)[0]
	ac := &authenticatedContent{wireFormat: WireFormatPrivateMessage, content: framedContent{
		contentType: ContentTypeApplication, sender: Sender{Type: SenderTypeMember}, applicationData: make([]byte, maxVarint-8),
	}}
	if _, err := protectPrivate(1, ac, g.ratchets, g.secrets.senderData, w.cfg.limits(), 0, rand.Reader, nil); err == nil {
		t.Error("a message was made that has no length")
	}

	// The last generation is not used, whatever the limit is.
	lim := *w.cfg.limits()
	lim.MaxAEADInputs = 1 << 40
	lim.MaxForward, lim.MaxForwardTotal = math.MaxUint32, math.MaxUint32
	if _, _, _, err := g.ratchets.next(g.own, ContentTypeApplication, &lim); err != nil {
		t.Fatal(err)
	}
	g.ratchets.ratchets[g.own].application.generation = math.MaxUint32
	_, _, _, err = g.ratchets.next(g.own, ContentTypeApplication, &lim)
	wantRule(t, err, "state/aead-limit")
}

// Who follows a group takes handshakes of its epoch alone.
func TestPublicGroupsCheckTheFrame(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(3)
	old, c := w.public(gs[1]), w.forge(gs[0], commitForgery{path: true})
	_, next := w.commit(gs, 0, CommitOptions{})
	wantRule(t, w.refusePublic(w.public(next[1]), c), "framing/epoch-old")
	wantRule(t, w.refusePublic(old, w.forge(next[0], commitForgery{path: true})), "framing/epoch-future")
	other, err := CreateGroup(w.cfg, w.cs, []byte("other"), w.key(), w.options("x"), nil)
	w.check(err)
	wantRule(t, w.refusePublic(w.public(other), c), "framing/group-id")
	if err := gs[0].VerifyGroupInfo(c); err == nil {
		t.Error("a Commit was taken for a GroupInfo")
	}
}

// The proposals of an external Commit are checked one by one, like those of a
// member's.
func TestExternalCommitsCheckTheirProposals(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(4)
	_, gs = w.commit(gs, 0, CommitOptions{Proposals: []Proposal{Remove(2)}})
	short := PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("id"), Nonce: w.nonce()[1:]}
	for name, x := range map[string]struct {
		p    Proposal
		rule Rule
	}{
		"a short nonce":       {PSK(short), "proposal/psk-nonce-length"},
		"a Remove of nobody":  {Remove(2), "proposal/remove-blank-leaf"},
		"a Remove of nowhere": {Remove(9), "proposal/remove-out-of-range"},
	} {
		m := w.forgeExternal(gs[0], externalForgery{proposals: func(p Proposal) []proposalOrRef { return byValue(p, x.p) }})
		if err := w.refuse(gs[1], m); !hasRule(err, x.rule) {
			t.Errorf("%s: %v, want %s", name, err, x.rule)
		}
		if err := w.refusePublic(w.public(gs[1]), m); !hasRule(err, x.rule) {
			t.Errorf("%s, as a server: %v, want %s", name, err, x.rule)
		}
	}
	for name, raw := range map[string][]byte{
		"a KeyPackage": w.bundle("x").Message(),
		"a Commit":     w.forge(gs[0], commitForgery{path: true}).Raw(),
		"a message":    mustEncrypt(t, gs[0], "text").Raw(),
		"a Remove":     w.propose(gs[0], Remove(1)).Raw(),
	} {
		info, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
		w.check(err)
		o := ExternalJoinOptions{Leaf: w.options("x"), SelfRemoves: []*Message{w.parse(raw)}}
		if _, err := ExternalJoin(w.cfg, w.parse(info), w.key(), o); err == nil {
			t.Errorf("%s was taken for a SelfRemove", name)
		}
	}
}

// Who joins by itself finds out here that its leaf lacks what the group needs,
// and not from the others.
func TestExternalJoinWithoutWhatIsRequired(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.wideGroup(2, (&RequiredCapabilities{Extensions: []ExtensionType{testExtension}}).Extension())
	info, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	w.check(err)
	_, err = ExternalJoin(w.cfg, w.parse(info), w.key(), ExternalJoinOptions{Leaf: w.options("x")})
	if !hasRule(err, "leaf-node/required-extension-missing") {
		t.Errorf("a leaf without what is required: %v", err)
	}
	_, err = ExternalJoin(w.cfg, w.parse(info), w.key(), ExternalJoinOptions{Leaf: w.wideOptions("x")})
	w.check(err)
}

// An Update goes by its own method, which keeps the key.
func TestUpdatesGoByTheirMethod(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(2)
	before := snapshot(gs[0])
	l := w.updateLeaf(gs[0], nil, nil, []byte("group"), 0)
	if _, _, err := gs[0].Propose(Proposal{Type: ProposalTypeUpdate, Update: l}, FramingOptions{}); err == nil {
		t.Error("an Update was proposed whose key is nowhere")
	}
	if !bytes.Equal(before, snapshot(gs[0])) {
		t.Error("the refusal changed the group")
	}
	// A group made from another has a name of its own.
	r := &ReInit{GroupID: []byte("group"), Version: MLS10, CipherSuite: 1}
	_, closed := w.commit(gs, 0, CommitOptions{Proposals: []Proposal{r.Proposal()}})
	if _, err := closed[0].ReInitGroup(w.key(), w.options("member0"), []*KeyPackage{w.bundle("member1").KeyPackage()}, CommitOptions{}); err == nil {
		t.Error("a group was made under the name of the one before")
	}
	if _, err := gs[0].Branch([]byte("group"), nil, w.key(), w.options("member0"), []*KeyPackage{w.bundle("member1").KeyPackage()}, CommitOptions{}); err == nil {
		t.Error("a branch was made under the name of the group")
	}
}
