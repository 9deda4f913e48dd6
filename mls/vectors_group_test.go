package mls

import (
	"bytes"
	"crypto/rand"
	"math"
	"testing"
	"time"
)

var groupVectors = []vectorFile{
	{"tree-operations", eachCase(testTreeOperationsVector)},
	{"tree-validation", eachCase(testTreeValidationVector)},
	{"treekem", eachCase(testTreeKEMVector)},
	{"welcome", eachCase(testWelcomeVector)},
	{"messages", eachCase(testMessagesVector)},
	{"passive-client-welcome", eachCase(testPassiveClientVector)},
	{"passive-client-handling-commit", eachCase(testPassiveClientVector)},
	{"passive-client-random", eachCase(testPassiveClientVector)},
	{"interop-passive/application", eachCase(testPassiveClientVector)},
	{"interop-passive/branch", eachCase(testPassiveClientVector)},
	{"interop-passive/commit", eachCase(testPassiveClientVector)},
	{"interop-passive/external_join", eachCase(testPassiveClientVector)},
	{"interop-passive/external_proposals", eachCase(testPassiveClientVector)},
	{"interop-passive/reinit", eachCase(testPassiveClientVector)},
	{"interop-passive/welcome_join", eachCase(testPassiveClientVector)},
}

// vectorAuthenticator takes every credential: the vectors' are made up.
type vectorAuthenticator struct{}

func (vectorAuthenticator) ValidateCredential(*LeafNode) error  { return nil }
func (vectorAuthenticator) SameClient(old, next *LeafNode) bool { return true }

func mustParseTree(t *testing.T, cs CipherSuite, raw []byte) *ratchetTree {
	t.Helper()
	tree, err := parseTree(cs, raw, (*Config)(nil).limits())
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

type treeOperationsVector struct {
	CipherSuite    CipherSuite `json:"cipher_suite"`
	TreeBefore     hexBytes    `json:"tree_before"`
	Proposal       hexBytes    `json:"proposal"`
	ProposalSender LeafIndex   `json:"proposal_sender"`
	TreeAfter      hexBytes    `json:"tree_after"`
	TreeHashBefore hexBytes    `json:"tree_hash_before"`
	TreeHashAfter  hexBytes    `json:"tree_hash_after"`
}

func testTreeOperationsVector(t *testing.T, v *treeOperationsVector) {
	before := mustParseTree(t, v.CipherSuite, v.TreeBefore)
	before.finish()
	wantBytes(t, "hash before", before.rootHash(), v.TreeHashBefore)
	var p Proposal
	if s := newReader(v.Proposal); !readProposal(s, &p) || !s.Empty() {
		t.Fatal(s.error())
	}
	after := before.change()
	switch p.Type {
	case ProposalTypeAdd:
		after.add(p.Add.LeafNode)
	case ProposalTypeUpdate:
		after.update(v.ProposalSender, p.Update)
	case ProposalTypeRemove:
		after.remove(p.Remove)
		after.truncate()
	default:
		t.Fatalf("proposal type %d", p.Type)
	}
	after.finish()
	wantBytes(t, "tree after", after.appendTo(nil), v.TreeAfter)
	wantBytes(t, "hash after", after.rootHash(), v.TreeHashAfter)
	wantBytes(t, "the old tree", before.appendTo(nil), v.TreeBefore)
	wantBytes(t, "the old tree's hash", before.rootHash(), v.TreeHashBefore)
}

type treeValidationVector struct {
	CipherSuite CipherSuite   `json:"cipher_suite"`
	Tree        hexBytes      `json:"tree"`
	GroupID     hexBytes      `json:"group_id"`
	Resolutions [][]nodeIndex `json:"resolutions"`
	TreeHashes  []hexBytes    `json:"tree_hashes"`
}

func testTreeValidationVector(t *testing.T, v *treeValidationVector) {
	tree := mustParseTree(t, v.CipherSuite, v.Tree)
	tree.finish()
	if got := int(tree.nodes()); got != len(v.Resolutions) || got != len(v.TreeHashes) {
		t.Fatalf("%d nodes, want %d", got, len(v.Resolutions))
	}
	for i := range v.Resolutions {
		x := nodeIndex(i)
		got := tree.appendResolution(nil, x)
		if len(got) != len(v.Resolutions[i]) {
			t.Fatalf("resolution of %d: got %v, want %v", i, got, v.Resolutions[i])
		}
		for k := range got {
			if got[k] != v.Resolutions[i][k] {
				t.Fatalf("resolution of %d: got %v, want %v", i, got, v.Resolutions[i])
			}
		}
		if empty := tree.emptyBelow(x); empty != (len(got) == 0) {
			t.Errorf("node %d: emptyBelow is %v with resolution %v", i, empty, got)
		}
		wantBytes(t, "tree hash", tree.treeHash(x), v.TreeHashes[i])
	}
	ctx := &groupContext{cipherSuite: v.CipherSuite, groupID: v.GroupID, treeHash: tree.rootHash()}
	cfg := &Config{Authenticator: vectorAuthenticator{}}
	if err := tree.validate(cfg, ctx); err != nil {
		t.Error(err)
	}
	wantBytes(t, "encoded again", tree.appendTo(nil), v.Tree)
	// The same tree in another group has wrong signatures where leaves came
	// by Update or Commit.
	for i, l := range tree.members() {
		if err := l.verifySignature(v.CipherSuite, nil, append(v.GroupID, 1), i); (err == nil) != (l.Source == LeafNodeSourceKeyPackage) {
			t.Errorf("leaf %d (%v) in another group: %v", i, l.Source, err)
		}
	}
}

type treeKEMVector struct {
	CipherSuite             CipherSuite `json:"cipher_suite"`
	GroupID                 hexBytes    `json:"group_id"`
	Epoch                   uint64      `json:"epoch"`
	ConfirmedTranscriptHash hexBytes    `json:"confirmed_transcript_hash"`
	RatchetTree             hexBytes    `json:"ratchet_tree"`
	LeavesPrivate           []struct {
		Index          LeafIndex `json:"index"`
		EncryptionPriv hexBytes  `json:"encryption_priv"`
		SignaturePriv  hexBytes  `json:"signature_priv"`
		PathSecrets    []struct {
			Node       nodeIndex `json:"node"`
			PathSecret hexBytes  `json:"path_secret"`
		} `json:"path_secrets"`
	} `json:"leaves_private"`
	UpdatePaths []struct {
		Sender        LeafIndex  `json:"sender"`
		UpdatePath    hexBytes   `json:"update_path"`
		PathSecrets   []hexBytes `json:"path_secrets"`
		CommitSecret  hexBytes   `json:"commit_secret"`
		TreeHashAfter hexBytes   `json:"tree_hash_after"`
	} `json:"update_paths"`
}

func testTreeKEMVector(t *testing.T, v *treeKEMVector) {
	cs := v.CipherSuite
	tree := mustParseTree(t, cs, v.RatchetTree)
	tree.finish()
	ctx := groupContext{
		version: MLS10, cipherSuite: cs, groupID: v.GroupID, epoch: v.Epoch,
		treeHash: tree.rootHash(), confirmedTranscriptHash: v.ConfirmedTranscriptHash,
	}
	keyOf := func(ps []byte) nodeKey {
		priv, pub, err := cs.deriveKeyPair(cs.deriveSecret(ps, "node"))
		if err != nil {
			t.Fatal(err)
		}
		return nodeKey{priv, pub}
	}
	keys := make(map[LeafIndex]nodeKeys)
	signers := make(map[LeafIndex]SignaturePrivateKey)
	for _, l := range v.LeavesPrivate {
		k := nodeKeys{l.Index.node(): {secret(l.EncryptionPriv), tree.leaf(l.Index).EncryptionKey}}
		pub, err := cs.publicKey(secret(l.EncryptionPriv))
		if err != nil {
			t.Fatal(err)
		}
		wantBytes(t, "leaf key", pub, tree.leaf(l.Index).EncryptionKey)
		for _, ps := range l.PathSecrets {
			k[ps.Node] = keyOf(ps.PathSecret)
			wantBytes(t, "node key", k[ps.Node].pub, tree.publicKey(ps.Node))
		}
		keys[l.Index] = k
		if signers[l.Index], err = ParseSignaturePrivateKey(cs, l.SignaturePriv); err != nil {
			t.Fatal(err)
		}
	}
	for _, up := range v.UpdatePaths {
		path := new(updatePath)
		if err := unmarshal(up.UpdatePath, path); err != nil {
			t.Fatal(err)
		}
		after := tree.change()
		steps, err := after.applyPath(up.Sender, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		after.finish()
		wantBytes(t, "tree hash after", after.rootHash(), up.TreeHashAfter)
		ctx.treeHash = after.rootHash()
		provision := ctx.appendTo(nil)
		for i, k := range keys {
			if i == up.Sender {
				continue
			}
			got, commitSecret, err := after.openPath(i, k, steps, path, nil, provision)
			if err != nil {
				t.Fatalf("leaf %d opens a path of leaf %d: %v", i, up.Sender, err)
			}
			wantBytes(t, "commit secret", commitSecret, up.CommitSecret)
			x := commonAncestor(i.node(), up.Sender.node())
			wantBytes(t, "path secret's key", got[x].priv, keyOf(up.PathSecrets[i]).priv)
		}

		// A path of our own, opened by everybody else.
		mine := tree.change()
		np, err := mine.createPath(up.Sender, rand.Reader, func(pub HPKEPublicKey, parentHash []byte) (*LeafNode, error) {
			l := *tree.leaf(up.Sender)
			l.Source = LeafNodeSourceCommit
			l.EncryptionKey, l.ParentHash = pub, parentHash
			return l.sign(cs, signers[up.Sender], v.GroupID, up.Sender)
		})
		if err != nil {
			t.Fatal(err)
		}
		mine.finish()
		ctx.treeHash = mine.rootHash()
		provision = ctx.appendTo(nil)
		sent, err := np.encrypt(mine, nil, provision, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		received := new(updatePath)
		if err := unmarshal(sent.appendTo(nil), received); err != nil {
			t.Fatal(err)
		}
		theirs := tree.change()
		if steps, err = theirs.applyPath(up.Sender, received, nil); err != nil {
			t.Fatal(err)
		}
		theirs.finish()
		wantBytes(t, "hash of our own path", theirs.rootHash(), mine.rootHash())
		if err := theirs.verifyParentHashes(); err != nil {
			t.Error(err)
		}
		for i, k := range keys {
			if i == up.Sender {
				continue
			}
			_, commitSecret, err := theirs.openPath(i, k, steps, received, nil, provision)
			if err != nil {
				t.Fatalf("leaf %d opens our path as leaf %d: %v", i, up.Sender, err)
			}
			wantBytes(t, "own commit secret", commitSecret, np.commitSecret)
		}
	}
}

type welcomeVector struct {
	CipherSuite CipherSuite `json:"cipher_suite"`
	InitPriv    hexBytes    `json:"init_priv"`
	SignerPub   hexBytes    `json:"signer_pub"`
	KeyPackage  hexBytes    `json:"key_package"`
	Welcome     hexBytes    `json:"welcome"`
}

func testWelcomeVector(t *testing.T, v *welcomeVector) {
	cs := v.CipherSuite
	kp, err := ParseMessage(v.KeyPackage)
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseMessage(v.Welcome)
	if err != nil {
		t.Fatal(err)
	}
	w := m.Welcome()
	gs, err := w.open(&KeyPackageBundle{keyPackage: kp.KeyPackage(), initKey: secret(v.InitPriv)})
	if err != nil {
		t.Fatal(err)
	}
	if len(gs.psks) != 0 {
		t.Fatalf("%d PSKs, want none", len(gs.psks))
	}
	key, nonce := cs.welcomeKey(cs.welcomeSecret(gs.joinerSecret, nil))
	raw, ok := cs.aeadOpen(key, nonce, nil, w.encryptedGroupInfo)
	if !ok {
		t.Fatal("the GroupInfo does not decrypt")
	}
	gi := new(GroupInfo)
	if err := unmarshal(raw, gi); err != nil {
		t.Fatal(err)
	}
	if err := gi.verifySignature(SignaturePublicKey(v.SignerPub)); err != nil {
		t.Error(err)
	}
	e := newEpochSecrets(cs, gs.joinerSecret, nil, gi.contextRaw)
	if !cs.verifyMAC(e.confirmation, gi.confirmationTag, gi.context.confirmedTranscriptHash) {
		t.Error("wrong confirmation tag")
	}
	wantBytes(t, "Welcome encoded again", w.appendTo(appendMessageHeader(nil, WireFormatWelcome)), v.Welcome)
}

type messagesFileVector struct {
	Welcome                hexBytes `json:"mls_welcome"`
	GroupInfo              hexBytes `json:"mls_group_info"`
	KeyPackage             hexBytes `json:"mls_key_package"`
	RatchetTree            hexBytes `json:"ratchet_tree"`
	GroupSecrets           hexBytes `json:"group_secrets"`
	Add                    hexBytes `json:"add_proposal"`
	Update                 hexBytes `json:"update_proposal"`
	Remove                 hexBytes `json:"remove_proposal"`
	PreSharedKey           hexBytes `json:"pre_shared_key_proposal"`
	ReInit                 hexBytes `json:"re_init_proposal"`
	ExternalInit           hexBytes `json:"external_init_proposal"`
	GroupContextExtensions hexBytes `json:"group_context_extensions_proposal"`
	Commit                 hexBytes `json:"commit"`
	PublicApplication      hexBytes `json:"public_message_application"`
	PublicProposal         hexBytes `json:"public_message_proposal"`
	PublicCommit           hexBytes `json:"public_message_commit"`
	Private                hexBytes `json:"private_message"`
}

func testMessagesVector(t *testing.T, v *messagesFileVector) {
	for name, raw := range map[string][]byte{
		"welcome": v.Welcome, "group info": v.GroupInfo, "key package": v.KeyPackage,
		"public proposal": v.PublicProposal, "public commit": v.PublicCommit, "private": v.Private,
	} {
		m, err := ParseMessage(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
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
			gi := m.groupInfo
			again := gi.context.appendTo(nil)
			again = appendExtensions(again, gi.extensions)
			again = appendOpaqueVec(again, gi.confirmationTag)
			again = append(again, byte(gi.signer>>24), byte(gi.signer>>16), byte(gi.signer>>8), byte(gi.signer))
			b = append(b, appendOpaqueVec(again, gi.signature)...)
		case m.keyPackage != nil:
			kp := m.keyPackage
			b = append(b, 0, byte(kp.Version), byte(kp.CipherSuite>>8), byte(kp.CipherSuite))
			b = appendOpaqueVec(b, kp.InitKey)
			b = appendOpaqueVec(kp.LeafNode.appendContent(b), kp.LeafNode.Signature)
			b = appendExtensions(b, kp.Extensions)
			b = appendOpaqueVec(b, kp.Signature)
		}
		wantBytes(t, name, b, raw)
	}
	// Application data may not be public: the form is right, the use is not.
	pm := new(publicMessage)
	if err := unmarshal(v.PublicApplication[4:], pm); err != nil {
		t.Errorf("public application message: %v", err)
	} else {
		wantBytes(t, "public application message", pm.appendTo(nil), v.PublicApplication[4:])
	}
	if _, err := ParseMessage(v.PublicApplication); err == nil {
		t.Error("application data was taken from a PublicMessage")
	}

	gs := new(groupSecrets)
	if err := unmarshal(v.GroupSecrets, gs); err != nil {
		t.Errorf("group secrets: %v", err)
	}
	wantBytes(t, "group secrets", gs.appendTo(nil), v.GroupSecrets)
	commit := new(commit)
	if err := unmarshal(v.Commit, commit); err != nil {
		t.Errorf("commit: %v", err)
	}
	wantBytes(t, "commit", commit.appendTo(nil), v.Commit)
	tree := mustParseTree(t, 1, v.RatchetTree)
	wantBytes(t, "ratchet tree", tree.appendTo(nil), v.RatchetTree)
	for typ, raw := range map[ProposalType][]byte{
		ProposalTypeAdd: v.Add, ProposalTypeUpdate: v.Update, ProposalTypeRemove: v.Remove,
		ProposalTypePSK: v.PreSharedKey, ProposalTypeReInit: v.ReInit,
		ProposalTypeExternalInit: v.ExternalInit, ProposalTypeGroupContextExtensions: v.GroupContextExtensions,
	} {
		// The vectors hold the bodies only.
		full := append([]byte{byte(typ >> 8), byte(typ)}, raw...)
		var p Proposal
		if s := newReader(full); !readProposal(s, &p) || !s.Empty() {
			t.Errorf("proposal type %d: %v", typ, s.error())
			continue
		}
		wantBytes(t, "proposal", appendProposal(nil, &p), full)
	}
}

type passiveClientVector struct {
	CipherSuite  CipherSuite `json:"cipher_suite"`
	ExternalPSKs []struct {
		ID  hexBytes `json:"psk_id"`
		PSK hexBytes `json:"psk"`
	} `json:"external_psks"`
	KeyPackage                hexBytes `json:"key_package"`
	SignaturePriv             hexBytes `json:"signature_priv"`
	EncryptionPriv            hexBytes `json:"encryption_priv"`
	InitPriv                  hexBytes `json:"init_priv"`
	Welcome                   hexBytes `json:"welcome"`
	RatchetTree               hexBytes `json:"ratchet_tree"`
	InitialEpochAuthenticator hexBytes `json:"initial_epoch_authenticator"`
	Epochs                    []struct {
		Proposals          []hexBytes `json:"proposals"`
		Commit             hexBytes   `json:"commit"`
		EpochAuthenticator hexBytes   `json:"epoch_authenticator"`
	} `json:"epochs"`
}

func testPassiveClientVector(t *testing.T, v *passiveClientVector) {
	psks := make(map[string][]byte)
	for _, p := range v.ExternalPSKs {
		psks[string(p.ID)] = p.PSK
	}
	m, err := ParseMessage(v.KeyPackage)
	if err != nil {
		t.Fatal(err)
	}
	kp := m.KeyPackage()
	start := time.Unix(int64(min(kp.LeafNode.Lifetime.NotBefore, math.MaxInt32)), 0)
	cfg := &Config{
		Now:           func() time.Time { return start },
		Authenticator: vectorAuthenticator{},
		Limits:        Limits{MaxLifetime: math.MaxInt64, ClockSkew: math.MaxInt64, MaxSenderProposals: 100},
		// The producer of the cases of suite 7 does not list it.
		AllowUnlistedCipherSuite: v.CipherSuite == MLS_256_DHKEMP384_AES256GCM_SHA384_P384,
		PSK: func(id PreSharedKeyID) ([]byte, bool) {
			psk, ok := psks[string(id.ID)]
			return psk, ok && id.Type == PSKTypeExternal
		},
	}
	if v.CipherSuite == MLS_256_DHKEMP521_AES256GCM_SHA512_P521 {
		// The producer leaves out leading zeros of P-521 keys.
		for _, k := range []*hexBytes{&v.InitPriv, &v.EncryptionPriv, &v.SignaturePriv} {
			*k = append(make([]byte, 66-len(*k)), *k...)
		}
	}
	key, err := ParseSignaturePrivateKey(v.CipherSuite, v.SignaturePriv)
	if err != nil {
		t.Fatal(err)
	}
	bundle := &KeyPackageBundle{keyPackage: kp, initKey: secret(v.InitPriv), leafKey: secret(v.EncryptionPriv), signature: key}
	if err := bundle.check(); err != nil {
		t.Fatal(err)
	}
	if err := kp.Validate(cfg, v.CipherSuite); err != nil {
		t.Fatal(err)
	}
	w, err := ParseMessage(v.Welcome)
	if err != nil {
		t.Fatal(err)
	}
	g, err := JoinWelcome(cfg, w, bundle, JoinOptions{RatchetTree: v.RatchetTree})
	if err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "epoch authenticator after the Welcome", g.EpochAuthenticator(), v.InitialEpochAuthenticator)
	for i, epoch := range v.Epochs {
		for k, raw := range epoch.Proposals {
			m, err := ParseMessage(raw)
			if err != nil {
				t.Fatalf("epoch %d, proposal %d: %v", i, k, err)
			}
			p, err := g.Process(m)
			if err != nil {
				t.Fatalf("epoch %d, proposal %d: %v", i, k, err)
			}
			if _, ok := p.(*ProposalMessage); !ok {
				t.Fatalf("epoch %d, proposal %d: got a %T", i, k, p)
			}
		}
		m, err := ParseMessage(epoch.Commit)
		if err != nil {
			t.Fatalf("epoch %d: %v", i, err)
		}
		// Every step goes through the store once.
		if g, err = LoadGroup(cfg, g.EpochState(), g.RatchetState()); err != nil {
			t.Fatalf("epoch %d: %v", i, err)
		}
		before := append(g.EpochState(), g.RatchetState()...)
		p, err := g.Process(m)
		if err != nil {
			t.Fatalf("epoch %d: %v", i, err)
		}
		c, ok := p.(*StagedCommit)
		if !ok {
			t.Fatalf("epoch %d: got a %T", i, p)
		}
		if !bytes.Equal(before, append(g.EpochState(), g.RatchetState()...)) {
			t.Fatalf("epoch %d: staging a Commit changed the group", i)
		}
		g = c.Merge()
		wantBytes(t, "epoch authenticator", g.EpochAuthenticator(), epoch.EpochAuthenticator)
	}
}
