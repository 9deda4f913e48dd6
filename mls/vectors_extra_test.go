package mls

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"path/filepath"
	"testing"
)

// TestExtraVectors runs the files of testdata/vectors/extra.
func TestExtraVectors(t *testing.T) {
	dir := filepath.Join("testdata", "vectors", "extra")
	for _, f := range []struct {
		name string
		run  func(*testing.T, []json.RawMessage)
	}{
		{"xwing", eachCase(testXWingVector)},
		{"hpke-pq", testHPKEPQVectors},
		{"mlspp-hpke-pq", testHPKEPQVectors},
		{"mls-rs-tree-hash", eachCase(testTreeHashVector)},
		{"mls-rs-path-secret", eachCase(testPathSecretVector)},
		{"mls-rs-proposal-ref", eachCase(testProposalRefVector)},
		{"mls-rs-key-package-ref", eachCase(testKeyPackageRefVector)},
		{"mls-rs-signatures", eachCase(testSignaturesVector)},
		{"mls-rs-sender-data-key", eachCase(testSenderDataKeyVector)},
		{"mls-rs-ecdh", eachCase(testECDHVector)},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			f.run(t, loadVectors(t, dir, f.name))
		})
	}
}

type xwingVector struct {
	Seed, Eseed, SS, SK, PK, CT hexBytes
}

func testXWingVector(t *testing.T, v *xwingVector) {
	k := &kemMLKEM768X25519
	pub, err := k.public(secret(v.Seed))
	noError(t, err)
	wantBytes(t, "private key", v.Seed, v.SK)
	wantBytes(t, "public key", pub, v.PK)
	enc, shared, err := k.pq.encap(pub, bytes.NewReader(v.Eseed))
	noError(t, err)
	wantBytes(t, "KEM output", enc, v.CT)
	wantBytes(t, "secret", shared, v.SS)
	shared, err = k.pq.decap(secret(v.Seed), v.CT)
	noError(t, err)
	wantBytes(t, "secret of the receiver", shared, v.SS)
}

type hpkePQVector struct {
	KEM          uint16   `json:"kem_id"`
	KDF          uint16   `json:"kdf_id"`
	AEAD         uint16   `json:"aead_id"`
	Info         hexBytes `json:"info"`
	IkmR         hexBytes `json:"ikmR"`
	SkRm         hexBytes `json:"skRm"`
	PkRm         hexBytes `json:"pkRm"`
	Enc          hexBytes `json:"enc"`
	SharedSecret hexBytes `json:"shared_secret"`
	Key          hexBytes `json:"key"`
	BaseNonce    hexBytes `json:"base_nonce"`
	Encryptions  []struct {
		AAD hexBytes `json:"aad"`
		CT  hexBytes `json:"ct"`
		PT  hexBytes `json:"pt"`
	} `json:"encryptions"`
	Exports []struct {
		Context hexBytes `json:"exporter_context"`
		L       int      `json:"L"`
		Value   hexBytes `json:"exported_value"`
	} `json:"exports"`
}

// testHPKEPQVectors runs the KEM of every case whose KEM a suite has, and the
// key schedule of those whose KEM and KDF are those of a suite.
func testHPKEPQVectors(t *testing.T, cases []json.RawMessage) {
	kems := make(map[uint16]*kem)
	for _, cs := range ExperimentalCipherSuites() {
		kems[cs.suite().kem.id] = cs.suite().kem
	}
	ran, whole := 0, 0
	for i, raw := range cases {
		var v hpkePQVector
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatalf("case %d: %v", i, err)
		}
		k := kems[v.KEM]
		if k == nil {
			continue
		}
		ran++
		priv, pub, err := k.derivePQ(secret(v.IkmR))
		noError(t, err)
		wantBytes(t, "private key", priv, v.SkRm)
		wantBytes(t, "public key", pub, v.PkRm)
		shared, err := k.pq.decap(priv, v.Enc)
		noError(t, err)
		wantBytes(t, "shared secret", shared, v.SharedSecret)
		for _, cs := range ExperimentalCipherSuites() {
			su := cs.suite()
			if su.kem.id != v.KEM || su.kdf != v.KDF || uint16(su.aead) != v.AEAD {
				continue
			}
			whole++
			info := newHPKEInfo(cs, v.Info)
			shared := secret(v.SharedSecret)
			key, nonce := info.keyNonce(shared.clone())
			wantBytes(t, "key", key, v.Key)
			wantBytes(t, "nonce", nonce, v.BaseNonce)
			// The first ciphertext is under the base nonce.
			pt, ok := cs.aeadOpen(key, nonce, v.Encryptions[0].AAD, v.Encryptions[0].CT)
			if !ok {
				t.Fatalf("case %d: the ciphertext does not open", i)
			}
			wantBytes(t, "plaintext", pt, v.Encryptions[0].PT)
			for _, e := range v.Exports {
				wantBytes(t, "export", info.export(shared.clone(), string(e.Context), e.L), e.Value)
			}
		}
	}
	if ran != 8 || whole != 4 {
		t.Errorf("%d cases ran, and of %d suites the key schedule; want 8 and 4", ran, whole)
	}
}

type nodesVector struct {
	Suite CipherSuite `json:"cipher_suite"`
	Tree  hexBytes    `json:"tree_data"`
	Hash  hexBytes    `json:"tree_hash"`
}

func testTreeHashVector(t *testing.T, v *nodesVector) {
	tree := mustParseTree(t, v.Suite, v.Tree)
	wantBytes(t, "tree hash", tree.rootHash(), v.Hash)
	wantBytes(t, "tree", tree.appendTo(nil), v.Tree)
}

type pathSecretVector struct {
	Suite       CipherSuite `json:"cipher_suite"`
	Generations []hexBytes  `json:"generations"`
}

func testPathSecretVector(t *testing.T, v *pathSecretVector) {
	s := secret(v.Generations[0])
	for i, want := range v.Generations[1:] {
		s = v.Suite.deriveSecret(s, "path")
		if !bytes.Equal(s, want) {
			t.Fatalf("generation %d: got %x, want %x", i+1, s, want)
		}
	}
}

type refVector struct {
	Suite  CipherSuite `json:"cipher_suite"`
	Input  hexBytes    `json:"input"`
	Output hexBytes    `json:"output"`
}

func testProposalRefVector(t *testing.T, v *refVector) {
	ac := new(authenticatedContent)
	noError(t, unmarshal(v.Input, ac))
	e := &epoch{context: groupContext{cipherSuite: v.Suite}}
	wantBytes(t, "reference", e.proposalRef(ac), v.Output)
}

func testKeyPackageRefVector(t *testing.T, v *refVector) {
	kp := new(KeyPackage)
	noError(t, unmarshal(v.Input, kp))
	kp.CipherSuite = v.Suite
	wantBytes(t, "reference", kp.Ref(), v.Output)
}

type signaturesVector struct {
	Suite     CipherSuite `json:"cipher_suite"`
	Content   hexBytes    `json:"content"`
	Context   hexBytes    `json:"context"`
	Signature hexBytes    `json:"signature"`
	Signer    hexBytes    `json:"signer"`
	Public    hexBytes    `json:"public"`
}

func testSignaturesVector(t *testing.T, v *signaturesVector) {
	content := append(bytes.Clone(v.Context), v.Content...)
	const label = "SignWithLabel"
	noError(t, VerifyWithLabel(v.Suite, SignaturePublicKey(v.Public), label, content, v.Signature))
	// EdDSA keys are stored with the public key behind the seed.
	key := vectorSignatureKey(t, v.Suite, v.Signer[:min(len(v.Signer), v.Suite.SignatureScheme().privateKeySize())])
	wantBytes(t, "public key", key.Public(), v.Public)
	sig, err := SignWithLabel(v.Suite, key, label, content)
	noError(t, err)
	noError(t, VerifyWithLabel(v.Suite, key.Public(), label, content, sig))
	if v.Suite.SignatureScheme().curve() == nil { // EdDSA is deterministic
		wantBytes(t, "signature", sig, v.Signature)
	}
}

type senderDataKeyVector struct {
	Suite         CipherSuite `json:"cipher_suite"`
	Secret        hexBytes    `json:"secret"`
	Ciphertext    hexBytes    `json:"ciphertext_bytes"`
	ExpectedKey   hexBytes    `json:"expected_key"`
	ExpectedNonce hexBytes    `json:"expected_nonce"`
	SenderData    struct {
		Sender     uint32   `json:"sender"`
		Generation uint32   `json:"generation"`
		Guard      hexBytes `json:"reuse_guard"`
	} `json:"sender_data"`
	AAD struct {
		Epoch   uint64   `json:"epoch"`
		GroupID hexBytes `json:"group_id"`
	} `json:"sender_data_aad"`
	Expected hexBytes `json:"expected_ciphertext"`
}

func testSenderDataKeyVector(t *testing.T, v *senderDataKeyVector) {
	key, nonce := v.Suite.senderDataKey(secret(v.Secret), v.Ciphertext)
	wantBytes(t, "key", key, v.ExpectedKey)
	wantBytes(t, "nonce", nonce, v.ExpectedNonce)
	// RFC 9420, Section 6.3.2.
	sd := binary.BigEndian.AppendUint32(nil, v.SenderData.Sender)
	sd = append(binary.BigEndian.AppendUint32(sd, v.SenderData.Generation), v.SenderData.Guard...)
	aad := binary.BigEndian.AppendUint64(appendOpaqueVec(nil, v.AAD.GroupID), v.AAD.Epoch)
	aad = append(aad, byte(ContentTypeApplication))
	wantBytes(t, "ciphertext", v.Suite.aeadSeal(key, nonce, aad, sd), v.Expected)
}

type ecdhVector struct {
	Suite     CipherSuite `json:"ciphersuite"`
	AlicePub  hexBytes    `json:"alice_pub"`
	AlicePriv hexBytes    `json:"alice_pri"`
	BobPub    hexBytes    `json:"bob_pub"`
	BobPriv   hexBytes    `json:"bob_pri"`
	Shared    hexBytes    `json:"shared_secret"`
}

func testECDHVector(t *testing.T, v *ecdhVector) {
	k := v.Suite.suite().kem
	for _, side := range []struct{ priv, pub, peer hexBytes }{{v.AlicePriv, v.AlicePub, v.BobPub}, {v.BobPriv, v.BobPub, v.AlicePub}} {
		pub, err := k.public(secret(side.priv))
		noError(t, err)
		wantBytes(t, "public key", pub, side.pub)
		z, err := k.dh(secret(side.priv), HPKEPublicKey(side.peer))
		noError(t, err)
		wantBytes(t, "shared secret", z, v.Shared)
	}
}
