package mls

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
)

// Every proper prefix of every structure is refused, and so is the structure
// with a byte after it.
func TestEveryPrefixIsRefused(t *testing.T) {
	cfg := testConfig(t)
	gs := newTestGroup(t, cfg, 1, 3)
	bundle := newTestClient(t, cfg, 1, 9)
	sc, err := gs[0].Commit(CommitOptions{ForcePath: true, Proposals: []Proposal{Add(bundle.KeyPackage()), Remove(1)}})
	noError(t, err)
	commit := mustParse(t, sc.Message())
	info, err := gs[0].GroupInfo(GroupInfoOptions{ExternalPub: true})
	noError(t, err)
	external := PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("id"), Nonce: []byte("nonce")}
	resumption := PreSharedKeyID{Type: PSKTypeResumption, Usage: ResumptionPSKUsageBranch, GroupID: []byte("g"), Epoch: 7, Nonce: []byte("nonce")}
	basic, x509 := BasicCredential([]byte("alice")), Credential{Type: CredentialTypeX509, Certificates: [][]byte{[]byte("leaf"), []byte("root")}}
	ext := Extension{Type: 0xf000, Data: []byte("data")}

	samples := []wireType{
		&basic, &x509, &ext,
		&RequiredCapabilities{Extensions: []ExtensionType{10}, Proposals: []ProposalType{11}, Credentials: []CredentialType{12}},
		&gs[0].OwnLeaf().Capabilities,
		gs[0].OwnLeaf(), sc.Merge().OwnLeaf(), bundle.KeyPackage(),
		&external, &resumption,
		&hpkeCiphertext{KEMOutput: []byte("kem"), Ciphertext: []byte("text")},
		&ReInit{GroupID: []byte("g"), Version: MLS10, CipherSuite: 1, Extensions: []Extension{ext}},
		commit.public.auth.content.commit, commit.public.auth.content.commit.path,
		&parentNode{encryptionKey: []byte("key"), parentHash: []byte("hash"), unmergedLeaves: []LeafIndex{1, 2}},
		&gs[0].context, mustParse(t, info).GroupInfo(), mustParse(t, sc.Welcome()).Welcome(),
		&groupSecrets{joinerSecret: secret("joiner"), pathSecret: secret("path"), psks: []PreSharedKeyID{external, resumption}},
		&Sender{Type: SenderTypeMember, LeafIndex: 1}, &Sender{Type: SenderTypeExternal, Index: 1}, &Sender{Type: SenderTypeNewMemberCommit},
		commit.public, mustEncrypt(t, gs[1], "text").private, &commit.public.auth,
		gs[0].secrets,
		&AppDataUpdate{Component: 1, Update: []byte("data")}, &AppDataUpdate{Component: 1, Remove: true}, &AppEphemeral{Component: 1, Data: []byte("data")},
		&AppDataDictionary{{1, []byte("one")}, {2, nil}},
	}
	covered := make(map[string]bool)
	for _, v := range samples {
		name := fmt.Sprintf("%T", v)
		covered[name] = true
		raw := v.appendTo(nil)
		var read func() wireType
		for _, f := range wireTypes {
			if fmt.Sprintf("%T", f()) == name {
				read = f
			}
		}
		if read == nil {
			t.Fatalf("%s is not in the list of wire types", name)
		}
		back := read()
		if err := unmarshal(raw, back); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		wantBytes(t, name, back.appendTo(nil), raw)
		for n := range raw {
			var ve *ValidationError
			if err := unmarshal(raw[:n:n], read()); !errors.As(err, &ve) {
				t.Errorf("%s: %d of %d bytes: got %v, want a ValidationError", name, n, len(raw), err)
			}
		}
		wantRule(t, unmarshal(append(bytes.Clone(raw), 0), read()), "codec/trailing-bytes-message")
	}
	for _, f := range wireTypes {
		if name := fmt.Sprintf("%T", f()); !covered[name] {
			t.Errorf("there is no sample of %s", name)
		}
	}
}

func TestSecretTreeRefusesNodesOutside(t *testing.T) {
	st := newTestTree(4)
	mustUse(t, st, 3, ContentTypeApplication, 0, (*Config)(nil).limits())
	raw := st.appendTo(nil)
	// After the version, the leaf count and the counter come the nodes, with
	// the length of their vector before them.
	at := 1 + 4 + 8 + 2
	node := bytes.Clone(raw)
	binary.BigEndian.PutUint32(node[at:], 7)
	nodes := len(st.nodes) * (4 + 32)
	leaf := bytes.Clone(raw)
	binary.BigEndian.PutUint32(leaf[at+nodes+2:], 4)
	for name, bad := range map[string][]byte{"node": node, "leaf": leaf} {
		s := newReader(bad)
		if _, ok := unmarshalSecretTree(1, s); ok {
			t.Errorf("a %s outside of the tree was taken", name)
			continue
		}
		wantRule(t, s.error(), "state/malformed")
	}
}

func TestSecretTreeRefusesLeavesOutside(t *testing.T) {
	lim := (*Config)(nil).limits()
	st := newTestTree(5) // a full tree of 8
	for _, leaf := range []LeafIndex{8, 9, 1 << 30, 1 << 31, math.MaxUint32} {
		_, err := st.use(leaf, ContentTypeApplication, 0, lim)
		wantRule(t, err, "framing/sender-leaf-out-of-range")
	}
	_, err := st.use(7, ContentTypeApplication, 0, lim)
	noError(t, err)
}

func TestSecretTreeWipesKeptKeys(t *testing.T) {
	st := newTestTree(4)
	mustUse(t, st, 1, ContentTypeCommit, 3, (*Config)(nil).limits())
	kept := st.ratchets[1].handshake.skipped
	if len(kept) != 3 {
		t.Fatalf("%d keys are kept, want 3", len(kept))
	}
	st.zero()
	for i := range kept {
		if !allZero(kept[i].key) || !allZero(kept[i].nonce) {
			t.Errorf("key %d is still in memory", i)
		}
	}
}

// The last generation of a ratchet has no successor, so it is never used.
func TestSecretTreeStopsAtTheLastGeneration(t *testing.T) {
	lim := (*Config)(nil).limits()
	st := newTestTree(2)
	mustUse(t, st, 0, ContentTypeApplication, 0, lim)
	st.ratchets[0].application.generation = math.MaxUint32 - 1
	if _, _, g, err := st.next(0, ContentTypeApplication, lim); err != nil || g != math.MaxUint32-1 {
		t.Errorf("generation %d: %v", g, err)
	}
	_, _, _, err := st.next(0, ContentTypeApplication, lim)
	wantRule(t, err, "state/aead-limit")
	_, err = st.use(0, ContentTypeApplication, math.MaxUint32, lim)
	wantRule(t, err, "framing/generation-too-far")
}

// Who may send what, before any group is asked.
func TestSendersAndTheirContent(t *testing.T) {
	a, _ := pair(t, 1)
	kp := newTestClient(t, a.cfg, 1, 9).KeyPackage()
	for _, c := range []struct {
		sender   SenderType
		ct       ContentType
		proposal Proposal
		rule     Rule
	}{
		{SenderTypeExternal, ContentTypeProposal, Remove(1), ""},
		{SenderTypeExternal, ContentTypeCommit, Proposal{}, "proposal/external-sender-not-proposal"},
		{SenderTypeNewMemberProposal, ContentTypeProposal, Add(kp), ""},
		{SenderTypeNewMemberProposal, ContentTypeProposal, Remove(1), "proposal/new-member-not-add"},
		{SenderTypeNewMemberProposal, ContentTypeCommit, Proposal{}, "proposal/new-member-not-add"},
		{SenderTypeNewMemberCommit, ContentTypeCommit, Proposal{}, ""},
		{SenderTypeNewMemberCommit, ContentTypeProposal, Remove(1), "external-commit/wrong-sender-type"},
	} {
		raw := forgedMessage{g: a, sender: Sender{Type: c.sender}, ct: c.ct, proposal: c.proposal, commit: new(commit)}.public(t)
		_, err := ParseMessage(raw)
		if c.rule == "" {
			noError(t, err)
			continue
		}
		wantRule(t, err, c.rule)
	}
}

// Mistakes of the caller are errors, not panics.
func TestMisuseIsAnError(t *testing.T) {
	a, _ := pair(t, 1)
	p256 := mustSignatureKey(t, 2)
	content := framedContent{contentType: ContentTypeApplication, sender: Sender{Type: SenderTypeMember}}
	if _, err := signContent(1, p256, WireFormatPrivateMessage, content, nil); err == nil {
		t.Error("a P-256 key signed for an Ed25519 suite")
	}
	ac := (&forgedMessage{g: a, ct: ContentTypeProposal, proposal: Remove(1)}).sign(t, WireFormatPublicMessage)
	if _, err := protectPrivate(1, ac, a.ratchets, a.secrets.senderData, a.cfg.limits(), 0, a.cfg.rand(), nil); err == nil {
		t.Error("content signed for a PublicMessage went out as PrivateMessage")
	}
	if _, err := a.Export(strings.Repeat("x", 1<<16), nil, 32); err == nil {
		t.Error("an exporter label of 64 KiB was taken")
	}
	if _, err := CipherSuite(1).pskSecret(make([]PreSharedKeyID, 2), make([]secret, 1)); err == nil {
		t.Error("one PSK for two ids was taken")
	}
	zeroLimits := Limits{}.withDefaults()
	if zeroLimits != defaultLimits {
		t.Errorf("the zero Limits are %+v, want the defaults", zeroLimits)
	}
}
