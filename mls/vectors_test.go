package mls

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A vectorFile is one file of the MLS working group's test vectors.
type vectorFile struct {
	name string
	run  func(t *testing.T, cases []json.RawMessage)
}

var primitiveVectors = []vectorFile{
	{"tree-math", eachCase(testTreeMathVector)},
	{"deserialization", eachCase(testDeserializationVector)},
	{"crypto-basics", eachCase(testCryptoBasicsVector)},
	{"secret-tree", eachCase(testSecretTreeVector)},
	{"message-protection", eachCase(testMessageProtectionVector)},
	{"key-schedule", eachCase(testKeyScheduleVector)},
	{"psk_secret", eachCase(testPSKSecretVector)},
	{"transcript-hashes", eachCase(testTranscriptHashesVector)},
}

// TestVectors runs the test vectors of mlswg/mls-implementations. MLS_VECTORS
// names another directory with files of the same names.
func TestVectors(t *testing.T) {
	dir := os.Getenv("MLS_VECTORS")
	if dir == "" {
		dir = filepath.Join("testdata", "vectors")
	}
	for _, f := range append(primitiveVectors, groupVectors...) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			f.run(t, loadVectors(t, dir, f.name))
		})
	}
}

// loadVectors returns the cases of a file. A file that is missing or empty is
// a failure.
func loadVectors(t testing.TB, dir, name string) []json.RawMessage {
	t.Helper()
	path := filepath.Join(dir, filepath.FromSlash(name)+".json")
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		raw, err = os.ReadFile(path + ".gz")
		if err == nil {
			var zr *gzip.Reader
			if zr, err = gzip.NewReader(bytes.NewReader(raw)); err == nil {
				raw, err = io.ReadAll(zr)
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	var cases []json.RawMessage
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if len(cases) == 0 {
		t.Fatalf("%s holds no case", path)
	}
	return cases
}

// eachCase runs a test on every case of a file, named by number and suite.
func eachCase[T any](test func(t *testing.T, v *T)) func(t *testing.T, cases []json.RawMessage) {
	return func(t *testing.T, cases []json.RawMessage) {
		for i, raw := range cases {
			name := fmt.Sprintf("%d", i)
			var head struct {
				Suite *CipherSuite `json:"cipher_suite"`
			}
			if err := json.Unmarshal(raw, &head); err != nil {
				t.Fatalf("case %d: %v", i, err)
			}
			if head.Suite != nil {
				name += fmt.Sprintf("/suite=%d", *head.Suite)
			}
			t.Run(name, func(t *testing.T) {
				if head.Suite != nil && !head.Suite.Supported() {
					t.Fatalf("cipher suite %v is not supported", *head.Suite)
				}
				v := new(T)
				if err := json.Unmarshal(raw, v); err != nil {
					t.Fatal(err)
				}
				test(t, v)
			})
		}
	}
}

// hexBytes is a JSON string in hex.
type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(b []byte) error {
	var s *string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	if s == nil {
		*h = nil
		return nil
	}
	raw, err := hex.DecodeString(*s)
	*h = raw
	if *h == nil {
		*h = []byte{}
	}
	return err
}

func wantBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got %x, want %x", what, got, want)
	}
}

// vectorSignatureKey reads a private key of a vector file. Some P-521 keys
// there lack their leading zeros.
func vectorSignatureKey(t *testing.T, cs CipherSuite, raw []byte) SignaturePrivateKey {
	t.Helper()
	if size := cs.SignatureScheme().privateKeySize(); len(raw) < size {
		raw = append(make([]byte, size-len(raw)), raw...)
	}
	key, err := ParseSignaturePrivateKey(cs, raw)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

type treeMathVector struct {
	NLeaves uint32       `json:"n_leaves"`
	NNodes  uint32       `json:"n_nodes"`
	Root    nodeIndex    `json:"root"`
	Left    []*nodeIndex `json:"left"`
	Right   []*nodeIndex `json:"right"`
	Parent  []*nodeIndex `json:"parent"`
	Sibling []*nodeIndex `json:"sibling"`
}

func testTreeMathVector(t *testing.T, v *treeMathVector) {
	if got := nodeWidth(v.NLeaves); got != v.NNodes {
		t.Fatalf("nodeWidth(%d) = %d, want %d", v.NLeaves, got, v.NNodes)
	}
	if got := rootIndex(v.NLeaves); got != v.Root {
		t.Errorf("rootIndex(%d) = %d, want %d", v.NLeaves, got, v.Root)
	}
	if len(v.Left) != int(v.NNodes) || len(v.Right) != int(v.NNodes) || len(v.Parent) != int(v.NNodes) || len(v.Sibling) != int(v.NNodes) {
		t.Fatalf("the lists are not %d long", v.NNodes)
	}
	check := func(what string, x, got nodeIndex, ok bool, want *nodeIndex) {
		t.Helper()
		if ok != (want != nil) || ok && got != *want {
			t.Errorf("%s of %d: got %d, %v, want %v", what, x, got, ok, want)
		}
	}
	for i := range v.NNodes {
		x := nodeIndex(i)
		check("left", x, x.left(), !x.isLeaf(), v.Left[i])
		check("right", x, x.right(), !x.isLeaf(), v.Right[i])
		p, ok := x.parent(v.NLeaves)
		check("parent", x, p, ok, v.Parent[i])
		s, ok := x.sibling(v.NLeaves)
		check("sibling", x, s, ok, v.Sibling[i])
	}
}

type deserializationVector struct {
	Header hexBytes `json:"vlbytes_header"`
	Length uint32   `json:"length"`
}

func testDeserializationVector(t *testing.T, v *deserializationVector) {
	s := newReader(v.Header)
	var n uint32
	if !readVarint(s, &n) || !s.Empty() {
		t.Fatalf("readVarint(%x): %v, %d bytes left", v.Header, s.error(), len(s.String))
	}
	if n != v.Length {
		t.Errorf("readVarint(%x) = %d, want %d", v.Header, n, v.Length)
	}
	wantBytes(t, "appendVarint", appendVarint(nil, int(v.Length)), v.Header)
}

type cryptoBasicsVector struct {
	Suite   CipherSuite `json:"cipher_suite"`
	RefHash struct {
		Label      string
		Value, Out hexBytes
	} `json:"ref_hash"`
	ExpandWithLabel struct {
		Secret, Context, Out hexBytes
		Label                string
		Length               int
	} `json:"expand_with_label"`
	DeriveSecret struct {
		Secret, Out hexBytes
		Label       string
	} `json:"derive_secret"`
	DeriveTreeSecret struct {
		Secret, Out hexBytes
		Label       string
		Generation  uint32
		Length      int
	} `json:"derive_tree_secret"`
	SignWithLabel struct {
		Priv, Pub, Content, Signature hexBytes
		Label                         string
	} `json:"sign_with_label"`
	EncryptWithLabel struct {
		Priv, Pub, Context, Plaintext, Ciphertext hexBytes
		KEMOutput                                 hexBytes `json:"kem_output"`
		Label                                     string
	} `json:"encrypt_with_label"`
}

func testCryptoBasicsVector(t *testing.T, v *cryptoBasicsVector) {
	cs := v.Suite
	wantBytes(t, "RefHash", RefHash(cs, v.RefHash.Label, v.RefHash.Value), v.RefHash.Out)
	ex := v.ExpandWithLabel
	wantBytes(t, "ExpandWithLabel", cs.expandWithLabel(secret(ex.Secret), ex.Label, ex.Context, ex.Length), ex.Out)
	wantBytes(t, "DeriveSecret", cs.deriveSecret(secret(v.DeriveSecret.Secret), v.DeriveSecret.Label), v.DeriveSecret.Out)
	dt := v.DeriveTreeSecret
	wantBytes(t, "DeriveTreeSecret", cs.deriveTreeSecret(secret(dt.Secret), dt.Label, dt.Generation, dt.Length), dt.Out)

	sg := v.SignWithLabel
	if err := VerifyWithLabel(cs, SignaturePublicKey(sg.Pub), sg.Label, sg.Content, sg.Signature); err != nil {
		t.Errorf("VerifyWithLabel: %v", err)
	}
	key := vectorSignatureKey(t, cs, sg.Priv)
	wantBytes(t, "signature public key", key.Public(), sg.Pub)
	sig, err := SignWithLabel(cs, key, sg.Label, sg.Content)
	if err != nil {
		t.Fatal(err)
	}
	if err := VerifyWithLabel(cs, key.Public(), sg.Label, sg.Content, sig); err != nil {
		t.Errorf("VerifyWithLabel of our own: %v", err)
	}

	en := v.EncryptWithLabel
	pub, err := cs.publicKey(secret(en.Priv))
	if err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "HPKE public key", pub, en.Pub)
	if err := cs.validateHPKEPublicKey(HPKEPublicKey(en.Pub)); err != nil {
		t.Error(err)
	}
	pt, err := cs.decryptWithLabel(secret(en.Priv), pub, en.Label, en.Context, hpkeCiphertext{KEMOutput: en.KEMOutput, Ciphertext: en.Ciphertext})
	if err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "DecryptWithLabel", pt, en.Plaintext)
	ct, err := newSealer(cs, en.Label, en.Context).seal(pub, en.Plaintext, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pt, err = cs.decryptWithLabel(secret(en.Priv), pub, en.Label, en.Context, ct)
	if err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "DecryptWithLabel of our own", pt, en.Plaintext)
}

type secretTreeVector struct {
	Suite            CipherSuite `json:"cipher_suite"`
	EncryptionSecret hexBytes    `json:"encryption_secret"`
	SenderData       struct {
		Secret     hexBytes `json:"sender_data_secret"`
		Ciphertext hexBytes
		Key, Nonce hexBytes
	} `json:"sender_data"`
	Leaves [][]struct {
		Generation       uint32
		ApplicationKey   hexBytes `json:"application_key"`
		ApplicationNonce hexBytes `json:"application_nonce"`
		HandshakeKey     hexBytes `json:"handshake_key"`
		HandshakeNonce   hexBytes `json:"handshake_nonce"`
	}
}

func testSecretTreeVector(t *testing.T, v *secretTreeVector) {
	cs := v.Suite
	key, nonce := cs.senderDataKey(secret(v.SenderData.Secret), v.SenderData.Ciphertext)
	wantBytes(t, "sender data key", key, v.SenderData.Key)
	wantBytes(t, "sender data nonce", nonce, v.SenderData.Nonce)

	lim := (*Config)(nil).limits()
	st := newSecretTree(cs, secret(v.EncryptionSecret).clone(), uint32(len(v.Leaves)))
	for i, gens := range v.Leaves {
		for _, g := range gens {
			u, err := st.use(LeafIndex(i), ContentTypeApplication, g.Generation, lim)
			if err != nil {
				t.Fatal(err)
			}
			wantBytes(t, "application key", u.key, g.ApplicationKey)
			wantBytes(t, "application nonce", u.nonce, g.ApplicationNonce)
			u.commit()
			if u, err = st.use(LeafIndex(i), ContentTypeCommit, g.Generation, lim); err != nil {
				t.Fatal(err)
			}
			wantBytes(t, "handshake key", u.key, g.HandshakeKey)
			wantBytes(t, "handshake nonce", u.nonce, g.HandshakeNonce)
			u.commit()
		}
		s := newReader(st.appendTo(nil))
		back, ok := unmarshalSecretTree(cs, s)
		if !ok || !s.Empty() {
			t.Fatalf("unmarshalSecretTree: %v", s.error())
		}
		wantBytes(t, "stored secret tree", back.appendTo(nil), st.appendTo(nil))
		st = back
	}
}

type messageProtectionVector struct {
	Suite                   CipherSuite `json:"cipher_suite"`
	GroupID                 hexBytes    `json:"group_id"`
	Epoch                   uint64      `json:"epoch"`
	TreeHash                hexBytes    `json:"tree_hash"`
	ConfirmedTranscriptHash hexBytes    `json:"confirmed_transcript_hash"`
	SignaturePriv           hexBytes    `json:"signature_priv"`
	SignaturePub            hexBytes    `json:"signature_pub"`
	EncryptionSecret        hexBytes    `json:"encryption_secret"`
	SenderDataSecret        hexBytes    `json:"sender_data_secret"`
	MembershipKey           hexBytes    `json:"membership_key"`
	Proposal                hexBytes    `json:"proposal"`
	ProposalPub             hexBytes    `json:"proposal_pub"`
	ProposalPriv            hexBytes    `json:"proposal_priv"`
	Commit                  hexBytes    `json:"commit"`
	CommitPub               hexBytes    `json:"commit_pub"`
	CommitPriv              hexBytes    `json:"commit_priv"`
	Application             hexBytes    `json:"application"`
	ApplicationPriv         hexBytes    `json:"application_priv"`
}

func testMessageProtectionVector(t *testing.T, v *messageProtectionVector) {
	cs := v.Suite
	lim := (*Config)(nil).limits()
	ctx := (&groupContext{
		version: MLS10, cipherSuite: cs, groupID: v.GroupID, epoch: v.Epoch,
		treeHash: v.TreeHash, confirmedTranscriptHash: v.ConfirmedTranscriptHash,
	}).appendTo(nil)
	key := vectorSignatureKey(t, cs, v.SignaturePriv)
	sender := Sender{Type: SenderTypeMember, LeafIndex: 1}
	open := func(t *testing.T, raw []byte, ct ContentType, want []byte) *authenticatedContent {
		t.Helper()
		m, err := ParseMessage(raw)
		if err != nil {
			t.Fatal(err)
		}
		wantBytes(t, "raw", m.Raw(), raw)
		var ac *authenticatedContent
		if m.public != nil {
			if err := m.public.verifyMembershipTag(cs, secret(v.MembershipKey), ctx); err != nil {
				t.Fatal(err)
			}
			ac = &m.public.auth
			if err := ac.verifySignature(cs, nil, SignaturePublicKey(v.SignaturePub), ctx); err != nil {
				t.Fatal(err)
			}
			wantBytes(t, "PublicMessage re-encoded", m.public.appendTo(appendMessageHeader(nil, WireFormatPublicMessage)), raw)
		} else {
			wantBytes(t, "PrivateMessage re-encoded", m.private.appendTo(appendMessageHeader(nil, WireFormatPrivateMessage)), raw)
			st := newSecretTree(cs, secret(v.EncryptionSecret).clone(), 2)
			var use *keyUse
			ac, use, err = unprotectPrivate(cs, m.private, st, secret(v.SenderDataSecret), lim, ctx, nil, func(l LeafIndex) (SignaturePublicKey, error) {
				if l != 1 {
					return nil, fmt.Errorf("sender is leaf %d", l)
				}
				return SignaturePublicKey(v.SignaturePub), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			use.commit()
		}
		body := ac.content.body
		if ct == ContentTypeApplication {
			body = ac.content.applicationData
		}
		wantBytes(t, "content", body, want)
		if ac.content.contentType != ct || ac.content.sender != sender {
			t.Errorf("content type %d of %v", ac.content.contentType, ac.content.sender)
		}
		return ac
	}
	for _, c := range []struct {
		name      string
		ct        ContentType
		want      hexBytes
		pub, priv hexBytes
	}{
		{"proposal", ContentTypeProposal, v.Proposal, v.ProposalPub, v.ProposalPriv},
		{"commit", ContentTypeCommit, v.Commit, v.CommitPub, v.CommitPriv},
		{"application", ContentTypeApplication, v.Application, nil, v.ApplicationPriv},
	} {
		t.Run(c.name, func(t *testing.T) {
			ac := open(t, c.priv, c.ct, c.want)
			if c.pub != nil {
				open(t, c.pub, c.ct, c.want)
			}
			// Protect the same content ourselves.
			for _, wf := range []WireFormat{WireFormatPublicMessage, WireFormatPrivateMessage} {
				content := framedContent{groupID: v.GroupID, epoch: v.Epoch, sender: sender, contentType: c.ct,
					applicationData: ac.content.applicationData, proposal: ac.content.proposal, commit: ac.content.commit}
				own, err := signContent(cs, key, wf, content, ctx)
				if err != nil {
					t.Fatal(err)
				}
				own.confirmationTag = ac.confirmationTag
				if wf == WireFormatPublicMessage {
					if c.pub != nil {
						open(t, own.publicMessage(cs, secret(v.MembershipKey), ctx), c.ct, c.want)
					}
					continue
				}
				st := newSecretTree(cs, secret(v.EncryptionSecret).clone(), 2)
				for _, padding := range []int{0, 32, 1000} {
					raw, err := protectPrivate(cs, own, st, secret(v.SenderDataSecret), lim, padding, rand.Reader, nil)
					if err != nil {
						t.Fatal(err)
					}
					open(t, raw, c.ct, c.want)
				}
			}
		})
	}
}

type keyScheduleVector struct {
	Suite             CipherSuite `json:"cipher_suite"`
	GroupID           hexBytes    `json:"group_id"`
	InitialInitSecret hexBytes    `json:"initial_init_secret"`
	Epochs            []struct {
		TreeHash                hexBytes `json:"tree_hash"`
		CommitSecret            hexBytes `json:"commit_secret"`
		PSKSecret               hexBytes `json:"psk_secret"`
		ConfirmedTranscriptHash hexBytes `json:"confirmed_transcript_hash"`
		GroupContext            hexBytes `json:"group_context"`
		JoinerSecret            hexBytes `json:"joiner_secret"`
		WelcomeSecret           hexBytes `json:"welcome_secret"`
		InitSecret              hexBytes `json:"init_secret"`
		SenderDataSecret        hexBytes `json:"sender_data_secret"`
		EncryptionSecret        hexBytes `json:"encryption_secret"`
		ExporterSecret          hexBytes `json:"exporter_secret"`
		EpochAuthenticator      hexBytes `json:"epoch_authenticator"`
		ExternalSecret          hexBytes `json:"external_secret"`
		ConfirmationKey         hexBytes `json:"confirmation_key"`
		MembershipKey           hexBytes `json:"membership_key"`
		ResumptionPSK           hexBytes `json:"resumption_psk"`
		ExternalPub             hexBytes `json:"external_pub"`
		Exporter                struct {
			Label           string
			Context, Secret hexBytes
			Length          int
		}
	}
}

func testKeyScheduleVector(t *testing.T, v *keyScheduleVector) {
	cs := v.Suite
	init := secret(v.InitialInitSecret)
	if len(v.Epochs) == 0 {
		t.Fatal("no epochs")
	}
	for i, e := range v.Epochs {
		ctx := (&groupContext{version: MLS10, cipherSuite: cs, groupID: v.GroupID, epoch: uint64(i),
			treeHash: e.TreeHash, confirmedTranscriptHash: e.ConfirmedTranscriptHash}).appendTo(nil)
		wantBytes(t, "group_context", ctx, e.GroupContext)
		joiner := cs.joinerSecret(init, secret(e.CommitSecret), ctx)
		es := newEpochSecrets(cs, joiner, secret(e.PSKSecret), ctx)
		wantBytes(t, "welcomeSecret", cs.welcomeSecret(joiner, secret(e.PSKSecret)), e.WelcomeSecret)
		wantBytes(t, "joiner_secret", es.joiner, e.JoinerSecret)
		wantBytes(t, "welcome_secret", es.welcome, e.WelcomeSecret)
		wantBytes(t, "init_secret", es.init, e.InitSecret)
		wantBytes(t, "sender_data_secret", es.senderData, e.SenderDataSecret)
		wantBytes(t, "encryption_secret", es.encryption, e.EncryptionSecret)
		wantBytes(t, "exporter_secret", es.exporter, e.ExporterSecret)
		wantBytes(t, "epoch_authenticator", es.authenticator, e.EpochAuthenticator)
		wantBytes(t, "external_secret", es.external, e.ExternalSecret)
		wantBytes(t, "confirmation_key", es.confirmation, e.ConfirmationKey)
		wantBytes(t, "membership_key", es.membership, e.MembershipKey)
		wantBytes(t, "resumption_psk", es.resumption, e.ResumptionPSK)
		_, pub, err := es.externalKeyPair(cs)
		if err != nil {
			t.Fatal(err)
		}
		wantBytes(t, "external_pub", pub, e.ExternalPub)
		got, err := es.export(cs, e.Exporter.Label, e.Exporter.Context, e.Exporter.Length)
		if err != nil {
			t.Fatal(err)
		}
		wantBytes(t, "exporter", got, e.Exporter.Secret)
		var back epochSecrets
		if err := unmarshal(es.appendTo(nil), &back); err != nil {
			t.Fatal(err)
		}
		wantBytes(t, "stored epoch secrets", back.appendTo(nil), es.appendTo(nil))
		init = es.init
	}
}

type pskSecretVector struct {
	Suite CipherSuite `json:"cipher_suite"`
	PSKs  []struct {
		ID    hexBytes `json:"psk_id"`
		PSK   hexBytes `json:"psk"`
		Nonce hexBytes `json:"psk_nonce"`
	} `json:"psks"`
	Secret hexBytes `json:"psk_secret"`
}

func testPSKSecretVector(t *testing.T, v *pskSecretVector) {
	var ids []PreSharedKeyID
	var psks []secret
	for _, p := range v.PSKs {
		ids = append(ids, PreSharedKeyID{Type: PSKTypeExternal, ID: p.ID, Nonce: p.Nonce})
		psks = append(psks, secret(p.PSK))
	}
	got, err := v.Suite.pskSecret(ids, psks)
	if err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "psk_secret", got, v.Secret)
}

type transcriptHashesVector struct {
	Suite                        CipherSuite `json:"cipher_suite"`
	ConfirmationKey              hexBytes    `json:"confirmation_key"`
	AuthenticatedContent         hexBytes    `json:"authenticated_content"`
	InterimTranscriptHashBefore  hexBytes    `json:"interim_transcript_hash_before"`
	ConfirmedTranscriptHashAfter hexBytes    `json:"confirmed_transcript_hash_after"`
	InterimTranscriptHashAfter   hexBytes    `json:"interim_transcript_hash_after"`
}

func testTranscriptHashesVector(t *testing.T, v *transcriptHashesVector) {
	cs := v.Suite
	var ac authenticatedContent
	if err := unmarshal(v.AuthenticatedContent, &ac); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "re-encoded", ac.appendTo(nil), v.AuthenticatedContent)
	confirmed := cs.confirmedTranscriptHash(v.InterimTranscriptHashBefore, &ac)
	wantBytes(t, "confirmed_transcript_hash", confirmed, v.ConfirmedTranscriptHashAfter)
	if !cs.verifyMAC(secret(v.ConfirmationKey), ac.confirmationTag, confirmed) {
		t.Error("confirmation tag does not match")
	}
	wantBytes(t, "interim_transcript_hash", cs.interimTranscriptHash(confirmed, ac.confirmationTag), v.InterimTranscriptHashAfter)
}
