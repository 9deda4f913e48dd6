package mls

import (
	"bytes"
	stdhpke "crypto/hpke"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
)

// hybrid is the suite that most tests of experimental suites use.
const hybrid = MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519

// newExperimentalWorld is a world where experimental suites are on.
func newExperimentalWorld(t testing.TB, cs CipherSuite) *world {
	w := newWorld(t, cs)
	w.cfg.ExperimentalSuites = true
	return w
}

func eachExperimentalSuite(t *testing.T, f func(t *testing.T, w *world)) {
	for _, cs := range ExperimentalCipherSuites() {
		t.Run(fmt.Sprintf("suite=%#04x", uint16(cs)), func(t *testing.T) {
			t.Parallel()
			f(t, newExperimentalWorld(t, cs))
		})
	}
}

func TestExperimentalSuiteTable(t *testing.T) {
	all := ExperimentalCipherSuites()
	if len(all) != 11 {
		t.Fatalf("%d experimental suites, want 11", len(all))
	}
	names := make(map[string]bool)
	for _, cs := range all {
		if cs < 0xf000 {
			t.Errorf("%v has the number %#04x, which is not for private use", cs, uint16(cs))
		}
		if !cs.Experimental() || cs.Supported() || slices.Contains(SupportedCipherSuites(), cs) || slices.Contains(DefaultCapabilities().CipherSuites, cs) {
			t.Errorf("%v is on by default", cs)
		}
		if names[cs.String()] || cs.HashLen() == 0 || cs.SignatureScheme() == 0 {
			t.Errorf("%v: the row is incomplete or there twice", cs)
		}
		names[cs.String()] = true
	}
	for _, cs := range []CipherSuite{0, 1, 7, experimentalBase, all[len(all)-1] + 1, 0xffff} {
		if cs.Experimental() {
			t.Errorf("%v is experimental", cs)
		}
	}
}

// All of a group's life on the experimental suites.
func TestExperimentalSuites(t *testing.T) {
	eachExperimentalSuite(t, func(t *testing.T, w *world) {
		gs := w.group(3)
		w.talk(gs)
		for i := range gs {
			_, gs = w.commit(gs, i, CommitOptions{Private: i == 1})
		}
		server := w.public(gs[0])
		raw, _, err := gs[1].ProposeUpdate(nil, FramingOptions{})
		w.check(err)
		for _, i := range []int{0, 2} {
			w.accept(gs[i], w.parse(raw))
		}
		_, err = server.Process(w.parse(raw))
		w.check(err)
		c, next := w.commit(gs, 0, CommitOptions{Pending: true})
		p, err := server.Process(w.parse(c.Message()))
		w.check(err)
		if next := p.(*PublicStagedCommit).Merge(); !bytes.Equal(next.TreeHash(), c.TreeHash()) {
			t.Fatal("the server sees another tree")
		}
		gs = next

		info, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
		w.check(err)
		join, err := ExternalJoin(w.cfg, w.parse(info), w.key(), ExternalJoinOptions{Leaf: w.options("late")})
		w.check(err)
		for i, g := range gs {
			gs[i] = mustFollow(t, g, w.parse(join.Message()))
		}
		gs = append(gs, join.Merge())
		w.agree(gs)
		w.talk(gs)

		gs[0], err = LoadGroup(w.cfg, gs[0].EpochState(), gs[0].RatchetState())
		w.check(err)
		_, gs = w.commit(gs, 0, CommitOptions{Proposals: []Proposal{Remove(1)}})
		w.talk(gs)

		b := w.bundle("stored")
		stored, err := b.MarshalBinary()
		w.check(err)
		back, err := UnmarshalKeyPackageBundle(stored)
		w.check(err)
		if !bytes.Equal(back.Ref(), b.Ref()) {
			t.Fatal("a stored KeyPackage came back as another one")
		}
	})
}

// The leaves of those who allow experimental suites say so in all groups.
func TestExperimentalSuitesAreListed(t *testing.T) {
	w := newExperimentalWorld(t, 1)
	b := w.bundle("alice")
	got := b.KeyPackage().LeafNode.Capabilities.CipherSuites
	if want := append(SupportedCipherSuites(), ExperimentalCipherSuites()...); !slices.Equal(got, want) {
		t.Errorf("the leaf lists %v, want %v", got, want)
	}
	w.cfg.ExperimentalSuites = false
	for _, cs := range w.bundle("bob").KeyPackage().LeafNode.Capabilities.CipherSuites {
		if cs.Experimental() {
			t.Errorf("the leaf lists %v, which is off", cs)
		}
	}
}

// A group of suite 1 goes on in the hybrid.
func TestReInitToHybrid(t *testing.T) {
	old := newExperimentalWorld(t, 1)
	gs := old.group(3)
	next := newExperimentalWorld(t, hybrid)
	r := &ReInit{GroupID: []byte("hybrid"), Version: MLS10, CipherSuite: hybrid}
	_, gs = old.commit(gs, 1, CommitOptions{Proposals: []Proposal{r.Proposal()}})
	for _, g := range gs {
		if g.ReInit() == nil || g.ReInit().CipherSuite != hybrid {
			t.Fatal("the old group is not closed in favour of the hybrid")
		}
	}
	// The signature scheme is the same, and so are the members' keys.
	var bundles []*KeyPackageBundle
	var members []*KeyPackage
	for i := 1; i < 3; i++ {
		b, err := NewKeyPackage(next.cfg, hybrid, gs[i].signature, next.options(fmt.Sprintf("member%d", i)))
		next.check(err)
		bundles = append(bundles, b)
		members = append(members, b.KeyPackage())
	}
	start, err := gs[0].ReInitGroup(gs[0].signature, next.options("member0"), members, CommitOptions{WelcomeRatchetTree: true})
	next.check(err)
	fresh := []*Group{start.Merge()}
	for i, b := range bundles {
		g, err := JoinWelcome(next.cfg, next.parse(start.Welcome()), b, JoinOptions{Resumption: []*Group{gs[i+1]}})
		next.check(err)
		fresh = append(fresh, g)
	}
	next.agree(fresh)
	next.talk(fresh)
	if cs := fresh[0].CipherSuite(); cs != hybrid {
		t.Fatalf("the new group has suite %v", cs)
	}
	_, fresh = next.commit(fresh, 2, CommitOptions{})
	next.talk(fresh)

	// Who has not allowed the suite can neither make nor join the group.
	strict := *gs[0].cfg
	strict.ExperimentalSuites = false
	shut := *gs[0].epoch
	shut.cfg = &strict
	off := *gs[0]
	off.epoch = &shut
	_, err = off.ReInitGroup(gs[0].signature, next.options("member0"), members, CommitOptions{})
	wantRule(t, err, "crypto/cipher-suite-unsupported")
}

// Both directions against the standard library, which has the KEMs of the
// experimental suites.
func TestPQHPKEAgreesWithStandardLibrary(t *testing.T) {
	text, info := []byte("text"), []byte("info")
	eachExperimentalSuite(t, func(t *testing.T, w *world) {
		su := w.cs.suite()
		k := must(stdhpke.NewKEM(su.kem.id))
		kdf, aead := must(stdhpke.NewKDF(su.kdf)), must(stdhpke.NewAEAD(uint16(su.aead)))
		r := testRand(t)
		for _, n := range []int{su.nh, su.kem.nsk, 1} {
			ikm := make(secret, n)
			_, err := io.ReadFull(r, ikm)
			w.check(err)
			priv, pub, err := w.cs.deriveKeyPair(ikm)
			w.check(err)
			std := must(k.DeriveKeyPair(ikm))
			wantBytes(t, "private key", priv, must(std.Bytes()))
			wantBytes(t, "public key", pub, std.PublicKey().Bytes())
			if len(pub) != su.kem.npk || len(priv) != su.kem.nsk {
				t.Errorf("keys of %d and %d bytes, want %d and %d", len(pub), len(priv), su.kem.npk, su.kem.nsk)
			}
			w.check(w.cs.validateHPKEPublicKey(pub))

			ct, err := (&sealer{newHPKEInfo(w.cs, info)}).seal(pub, text, r)
			w.check(err)
			if len(ct.KEMOutput) != su.kem.nenc {
				t.Errorf("KEM output of %d bytes, want %d", len(ct.KEMOutput), su.kem.nenc)
			}
			opened := must(must(stdhpke.NewRecipient(ct.KEMOutput, std, kdf, aead, info)).Open(nil, ct.Ciphertext))
			wantBytes(t, "opened by the standard library", opened, text)

			enc, sender, err := stdhpke.NewSender(std.PublicKey(), kdf, aead, info)
			w.check(err)
			got, err := (&opener{newHPKEInfo(w.cs, info)}).open(priv, pub, hpkeCiphertext{KEMOutput: enc, Ciphertext: must(sender.Seal(nil, text))})
			w.check(err)
			wantBytes(t, "opened", got, text)
			shared, err := w.cs.decap(priv, pub, enc)
			w.check(err)
			wantBytes(t, "export", newHPKEInfo(w.cs, info).export(shared, "x", 40), must(sender.Export("x", 40)))
		}
	})
}

// What encap reads from the Config's randomness is all that it uses.
func TestPQEncapIsDeterministic(t *testing.T) {
	eachExperimentalSuite(t, func(t *testing.T, w *world) {
		_, pub := mustKeyPair(t, w.cs)
		seed := make([]byte, w.cs.suite().kem.nrand)
		_, err := io.ReadFull(testRand(t), seed)
		w.check(err)
		r := bytes.NewReader(seed)
		enc, shared, err := w.cs.encap(pub, r)
		w.check(err)
		if r.Len() != 0 {
			t.Errorf("%d of %d bytes were not read", r.Len(), len(seed))
		}
		enc2, shared2, err := w.cs.encap(pub, bytes.NewReader(seed))
		w.check(err)
		wantBytes(t, "KEM output", enc2, enc)
		wantBytes(t, "secret", shared2, shared)
		for _, n := range []int{0, len(seed) - 1} {
			if _, _, err := w.cs.encap(pub, bytes.NewReader(seed[:n])); err == nil {
				t.Errorf("no error with %d of %d bytes of randomness", n, len(seed))
			}
		}
	})
}

func TestMLDSAKeys(t *testing.T) {
	for cs, want := range map[CipherSuite]struct {
		name     string
		pub, sig int
	}{
		MLS_128_MLKEM768X25519_CHACHA20POLY1305_SHA384_MLDSA44: {"mldsa44", 1312, 2420},
		MLS_192_MLKEM768_AES256GCM_SHA384_MLDSA65:              {"mldsa65", 1952, 3309},
		MLS_256_MLKEM1024_AES256GCM_SHA384_MLDSA87:             {"mldsa87", 2592, 4627},
	} {
		key := mustSignatureKey(t, cs)
		sig, err := SignWithLabel(cs, key, "label", []byte("content"))
		noError(t, err)
		// FIPS 204, Table 2.
		if cs.SignatureScheme().String() != want.name || len(key.Public()) != want.pub || len(sig) != want.sig || len(key.Bytes()) != 32 {
			t.Errorf("%v: %v, public key of %d bytes, signature of %d, want %+v", cs, cs.SignatureScheme(), len(key.Public()), len(sig), want)
		}
		noError(t, VerifyWithLabel(cs, key.Public(), "label", []byte("content"), sig))
		again, err := SignWithLabel(cs, key, "label", []byte("content"))
		noError(t, err)
		wantBytes(t, "second signature", again, sig)
		back, err := ParseSignaturePrivateKey(cs, key.Bytes())
		noError(t, err)
		wantBytes(t, "stored key", back.Public(), key.Public())
		if _, err := ParseSignaturePrivateKey(cs, key.Bytes()[1:]); err == nil {
			t.Errorf("%v: a short seed was taken", cs)
		}
		if _, err := SignWithLabel(cs, mustSignatureKey(t, 1), "label", nil); err == nil {
			t.Errorf("%v: an Ed25519 key signs", cs)
		}
	}
}

// pqRejects are rows about experimental suites.
var pqRejects = []rejectCase{
	{row: "crypto/cipher-suite-experimental", rule: "crypto/cipher-suite-unsupported", run: func(t *testing.T) error {
		w := newExperimentalWorld(t, hybrid)
		gs := w.group(2)
		w.bundle("x")
		info, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
		w.check(err)
		stored, err := w.public(gs[0]).MarshalBinary()
		w.check(err)
		b := w.bundle("late")
		c, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{Add(b.KeyPackage())}, WelcomeRatchetTree: true})
		w.check(err)
		off := *w.cfg
		off.ExperimentalSuites = false
		for what, f := range map[string]func() error{
			"NewKeyPackage":    func() error { _, err := NewKeyPackage(&off, hybrid, w.key(), w.options("x")); return err },
			"nil Config":       func() error { _, err := NewKeyPackage(nil, hybrid, w.key(), w.options("x")); return err },
			"CreateGroup":      func() error { _, err := CreateGroup(&off, hybrid, nil, w.key(), w.options("x"), nil); return err },
			"Validate":         func() error { return b.KeyPackage().Validate(&off, hybrid) },
			"NewPublicGroup":   func() error { _, err := NewPublicGroup(&off, w.parse(info), nil); return err },
			"LoadGroup":        func() error { _, err := LoadGroup(&off, gs[0].EpochState(), gs[0].RatchetState()); return err },
			"load PublicGroup": func() error { _, err := UnmarshalPublicGroup(&off, stored); return err },
			"ExternalJoin": func() error {
				_, err := ExternalJoin(&off, w.parse(info), w.key(), ExternalJoinOptions{Leaf: w.options("x")})
				return err
			},
		} {
			err := f()
			t.Run(what, func(t *testing.T) { wantRule(t, err, "crypto/cipher-suite-unsupported") })
		}
		_, err = JoinWelcome(&off, w.parse(c.Welcome()), b, JoinOptions{})
		if b.Used() {
			t.Error("the refused Welcome has used the KeyPackage up")
		}
		_, joined := JoinWelcome(w.cfg, w.parse(c.Welcome()), b, JoinOptions{})
		noError(t, joined)
		return err
	}},
	pqRow("crypto/pq-public-key-wrong-length", "crypto/public-key-wrong-length", func(t *testing.T, w *world, pub HPKEPublicKey) error {
		for _, n := range []int{0, 1, 32, len(pub) - 1} {
			wantRule(t, w.cs.validateHPKEPublicKey(pub[:n]), "crypto/public-key-wrong-length")
			_, _, err := w.cs.encap(pub[:n], w.cfg.Rand)
			wantRule(t, err, "crypto/public-key-wrong-length")
		}
		return w.cs.validateHPKEPublicKey(append(bytes.Clone(pub), 0))
	}),
	pqRow("crypto/public-key-not-reduced", "", func(t *testing.T, w *world, pub HPKEPublicKey) error {
		bad := bytes.Clone(pub)
		bad[0], bad[1] = 0xff, bad[1]|0x0f // a coefficient of 4095
		_, _, err := w.cs.encap(bad, w.cfg.Rand)
		wantRule(t, err, "crypto/public-key-not-reduced")
		return w.cs.validateHPKEPublicKey(bad)
	}),
	pqRow("crypto/pq-kem-output-wrong-length", "crypto/kem-output-wrong-length", func(t *testing.T, w *world, _ HPKEPublicKey) error {
		priv, pub, ct := sealed(t, w.cs)
		for _, bad := range [][]byte{nil, ct.KEMOutput[:32], ct.KEMOutput[1:]} {
			_, err := w.cs.externalInitDecap(priv, pub, bad)
			wantRule(t, err, "crypto/kem-output-wrong-length")
		}
		_, err := w.cs.decap(priv, pub, append(bytes.Clone(ct.KEMOutput), 0))
		return err
	}),
	pqRow("crypto/pq-hpke-tampered", "crypto/hpke-tampered", func(t *testing.T, w *world, _ HPKEPublicKey) error {
		priv, pub, ct := sealed(t, w.cs)
		open := func(ct hpkeCiphertext) error {
			_, err := w.cs.decryptWithLabel(priv, pub, "label", []byte("context"), ct)
			return err
		}
		noError(t, open(ct))
		// ML-KEM rejects implicitly: another secret, and no other sign.
		m := w.cs.suite().kem.pq.mlkem.CiphertextSize()
		for i := 0; i < m; i += 61 {
			wantRule(t, open(hpkeCiphertext{KEMOutput: flipped(ct.KEMOutput, i), Ciphertext: ct.Ciphertext}), "crypto/hpke-tampered")
		}
		return open(hpkeCiphertext{KEMOutput: ct.KEMOutput, Ciphertext: flipped(ct.Ciphertext, 0)})
	}),
	{row: "crypto/hybrid-low-order", rule: "crypto/public-key-low-order", run: func(t *testing.T) error {
		w := newExperimentalWorld(t, hybrid)
		priv, pub, ct := sealed(t, hybrid)
		// The ML-KEM half is right, the X25519 half is no key at all.
		zero := func(b []byte) []byte { return append(bytes.Clone(b[:len(b)-32]), make([]byte, 32)...) }
		_, _, err := hybrid.encap(zero(pub), w.cfg.Rand)
		wantRule(t, err, "crypto/public-key-low-order")
		_, err = hybrid.decap(priv, pub, zero(ct.KEMOutput))
		wantRule(t, err, "crypto/public-key-low-order")
		return hybrid.validateHPKEPublicKey(zero(pub))
	}},
	{row: "crypto/hybrid-off-curve", rule: "crypto/public-key-off-curve", run: func(t *testing.T) error {
		var err error
		for _, cs := range []CipherSuite{MLS_128_MLKEM768P256_AES128GCM_SHA256_P256, MLS_192_MLKEM1024P384_AES256GCM_SHA384_P384} {
			w := newExperimentalWorld(t, cs)
			priv, pub, ct := sealed(t, cs)
			bad := func(b []byte) []byte { return flipped(b, len(b)-1) }
			_, _, err = cs.encap(bad(pub), w.cfg.Rand)
			wantRule(t, err, "crypto/public-key-off-curve")
			_, err = cs.decap(priv, pub, bad(ct.KEMOutput))
			wantRule(t, err, "crypto/public-key-off-curve")
			err = cs.validateHPKEPublicKey(bad(pub))
			wantRule(t, err, "crypto/public-key-off-curve")
		}
		return err
	}},
	mldsaRow("crypto/mldsa-signature-wrong-length", "crypto/signature-wrong-length", func(t *testing.T, cs CipherSuite, pub SignaturePublicKey, sig []byte) error {
		for _, n := range []int{0, 64, len(sig) - 1} {
			wantRule(t, VerifyWithLabel(cs, pub, "label", []byte("content"), sig[:n]), "crypto/signature-wrong-length")
		}
		return VerifyWithLabel(cs, pub, "label", []byte("content"), append(bytes.Clone(sig), 0))
	}),
	mldsaRow("crypto/mldsa-key-wrong-length", "crypto/signature-key-malformed", func(t *testing.T, cs CipherSuite, pub SignaturePublicKey, sig []byte) error {
		for _, n := range []int{0, 32, len(pub) - 1} {
			wantRule(t, VerifyWithLabel(cs, pub[:n], "label", []byte("content"), sig), "crypto/signature-key-malformed")
		}
		return VerifyWithLabel(cs, append(bytes.Clone(pub), 0), "label", []byte("content"), sig)
	}),
	mldsaRow("crypto/mldsa-signature-wrong", "crypto/signature-wrong", func(t *testing.T, cs CipherSuite, pub SignaturePublicKey, sig []byte) error {
		for i := 0; i < len(sig); i += 97 {
			wantRule(t, VerifyWithLabel(cs, pub, "label", []byte("content"), flipped(sig, i)), "crypto/signature-wrong")
		}
		wantRule(t, VerifyWithLabel(cs, pub, "Label", []byte("content"), sig), "crypto/signature-wrong")
		wantRule(t, VerifyWithLabel(cs, flipped(pub, 40), "label", []byte("content"), sig), "crypto/signature-wrong")
		return VerifyWithLabel(cs, pub, "label", []byte("Content"), sig)
	}),
}

// pqRow is a row for all experimental suites, given a public key.
func pqRow(row, rule Rule, f func(t *testing.T, w *world, pub HPKEPublicKey) error) rejectCase {
	if rule == "" {
		rule = row
	}
	return rejectCase{row: row, rule: rule, run: func(t *testing.T) error {
		var err error
		for _, cs := range ExperimentalCipherSuites() {
			_, pub := mustKeyPair(t, cs)
			noError(t, cs.validateHPKEPublicKey(pub))
			err = f(t, newExperimentalWorld(t, cs), pub)
			wantRule(t, err, rule)
		}
		return err
	}}
}

// mldsaRow is a row for the suites with ML-DSA, given a signature over "content".
func mldsaRow(row, rule Rule, f func(t *testing.T, cs CipherSuite, pub SignaturePublicKey, sig []byte) error) rejectCase {
	return rejectCase{row: row, rule: rule, run: func(t *testing.T) error {
		err := errors.New("no suite has ML-DSA")
		for _, cs := range ExperimentalCipherSuites() {
			if cs.SignatureScheme().mldsa() == nil {
				continue
			}
			key := mustSignatureKey(t, cs)
			sig, signed := SignWithLabel(cs, key, "label", []byte("content"))
			noError(t, signed)
			noError(t, VerifyWithLabel(cs, key.Public(), "label", []byte("content"), sig))
			err = f(t, cs, key.Public(), sig)
			wantRule(t, err, rule)
		}
		return err
	}}
}
