package mls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding"
	"encoding/json"
	"fmt"
	"testing"

	"filippo.io/edwards25519"
	"github.com/cloudflare/circl/dh/x25519"
	"github.com/cloudflare/circl/dh/x448"
	"github.com/cloudflare/circl/ecc/goldilocks"
)

// mustKeyPair makes an HPKE key pair.
func mustKeyPair(t testing.TB, cs CipherSuite) (hpkePrivateKey, HPKEPublicKey) {
	t.Helper()
	priv, pub, err := cs.generateKeyPair(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return priv, pub
}

// mustSignatureKey makes a signature key.
func mustSignatureKey(t testing.TB, cs CipherSuite) SignaturePrivateKey {
	t.Helper()
	key, err := GenerateSignatureKey(cs, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// mustSign signs "content" under the label "label".
func mustSign(t testing.TB, cs CipherSuite, key SignaturePrivateKey) []byte {
	t.Helper()
	sig, err := SignWithLabel(cs, key, "label", []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	if err := VerifyWithLabel(cs, key.Public(), "label", []byte("content"), sig); err != nil {
		t.Fatal(err)
	}
	return sig
}

func verifyContent(cs CipherSuite, pub SignaturePublicKey, sig []byte) error {
	return VerifyWithLabel(cs, pub, "label", []byte("content"), sig)
}

// flipped returns a copy of b with one bit changed.
func flipped(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 0x10
	return b
}

var cryptoRejects = []rejectCase{
	{row: "crypto/cipher-suite-unknown", run: func(t *testing.T) error {
		for _, cs := range []CipherSuite{0, 8, 0x0a0a, 0xeaea, 0xefff} {
			_, err := GenerateSignatureKey(cs, rand.Reader)
			wantRule(t, err, "crypto/cipher-suite-unknown")
			_, err = ParseSignaturePrivateKey(cs, make([]byte, 32))
			wantRule(t, err, "crypto/cipher-suite-unknown")
			if cs.Supported() || cs.HashLen() != 0 || cs.SignatureScheme() != 0 {
				t.Errorf("%v claims to be supported", cs)
			}
		}
		_, err := SignWithLabel(8, mustSignatureKey(t, 1), "label", nil)
		wantRule(t, err, "crypto/cipher-suite-unknown")
		return VerifyWithLabel(0x0a0a, mustSignatureKey(t, 1).Public(), "label", nil, make([]byte, 64))
	}},
	{row: "crypto/cipher-suite-unsupported", run: func(t *testing.T) error {
		_, err := GenerateSignatureKey(0xf000, rand.Reader)
		return err
	}},
	{row: "crypto/public-key-wrong-length", each: func(t *testing.T, cs CipherSuite) error {
		_, pub := mustKeyPair(t, cs)
		noError(t, cs.validateHPKEPublicKey(pub))
		for _, bad := range []HPKEPublicKey{nil, pub[:len(pub)-1], append(bytes.Clone(pub), 0)} {
			_, err := newSealer(cs, "label", nil).seal(bad, []byte("text"), rand.Reader)
			wantRule(t, err, "crypto/public-key-wrong-length")
			_, _, err = cs.externalInitEncap(bad, rand.Reader)
			wantRule(t, err, "crypto/public-key-wrong-length")
		}
		return cs.validateHPKEPublicKey(pub[1:])
	}},
	{row: "crypto/public-key-off-curve", run: func(t *testing.T) error {
		var err error
		for _, cs := range []CipherSuite{2, 5, 7} {
			_, pub := mustKeyPair(t, cs)
			compressed := append([]byte{2}, pub[1:1+len(pub)/2]...)
			infinity := make([]byte, len(pub))
			compressedForm := bytes.Clone(pub)
			compressedForm[0] = 2
			for _, bad := range [][]byte{flipped(pub, len(pub)-1), infinity, compressedForm} {
				err = cs.validateHPKEPublicKey(bad)
				wantRule(t, err, "crypto/public-key-off-curve")
				_, serr := newSealer(cs, "label", nil).seal(bad, nil, rand.Reader)
				wantRule(t, serr, "crypto/public-key-off-curve")
			}
			wantRule(t, cs.validateHPKEPublicKey(compressed), "crypto/public-key-wrong-length")
			wantRule(t, cs.validateHPKEPublicKey([]byte{0}), "crypto/public-key-wrong-length")
		}
		return err
	}},
	{row: "crypto/public-key-low-order", run: func(t *testing.T) error {
		var bad [][]byte
		for _, u := range lowOrder25519 {
			var z, sk, pk x25519.Key
			sk[0], pk = 8, u
			if x25519.Shared(&z, &sk, &pk) {
				t.Errorf("%x is not of low order", u)
			}
			bad = append(bad, bytes.Clone(u[:]))
			u[31] |= 0x80
			bad = append(bad, bytes.Clone(u[:]))
		}
		for _, u := range lowOrder448 {
			var z, sk, pk x448.Key
			sk[0], pk = 4, u
			if x448.Shared(&z, &sk, &pk) {
				t.Errorf("%x is not of low order", u)
			}
			bad = append(bad, bytes.Clone(u[:]))
		}
		var err error
		for _, u := range bad {
			cs := CipherSuite(1)
			if len(u) == x448.Size {
				cs = 4
			}
			wantRule(t, cs.validateHPKEPublicKey(u), "crypto/public-key-low-order")
			// And where nobody validated the key: the zero result is seen.
			_, err = newSealer(cs, "label", nil).seal(u, nil, rand.Reader)
			wantRule(t, err, "crypto/public-key-low-order")
			priv, pub := mustKeyPair(t, cs)
			_, err = cs.decryptWithLabel(priv, pub, "label", nil, hpkeCiphertext{KEMOutput: u, Ciphertext: make([]byte, 32)})
			wantRule(t, err, "crypto/public-key-low-order")
		}
		return err
	}},
	{row: "crypto/signature-key-malformed", each: func(t *testing.T, cs CipherSuite) error {
		key := mustSignatureKey(t, cs)
		sig := mustSign(t, cs, key)
		pub := key.Public()
		noError(t, verifyContent(cs, pub, sig))
		for _, bad := range [][]byte{nil, pub[1:], append(bytes.Clone(pub), 0)} {
			wantRule(t, verifyContent(cs, bad, sig), "crypto/signature-key-malformed")
		}
		return verifyContent(cs, undecodable(t, cs), sig)
	}},
	{row: "crypto/signature-key-low-order", run: func(t *testing.T) error {
		// The identity with R = identity and S = 0 signs every message, as
		// far as crypto/ed25519 is concerned.
		sig := make([]byte, 64)
		sig[0] = 1
		var err error
		n := 0
		for _, y := range lowOrderEd25519 {
			for _, sign := range []byte{0, 0x80} {
				pub := y
				pub[31] |= sign
				if p, perr := new(edwards25519.Point).SetBytes(pub[:]); perr == nil {
					if new(edwards25519.Point).MultByCofactor(p).Equal(edwards25519.NewIdentityPoint()) != 1 {
						t.Errorf("%x is not of small order", pub)
					}
					n++
				}
				err = verifyContent(1, pub[:], sig)
				wantRule(t, err, "crypto/signature-key-low-order")
			}
		}
		if n < 8 {
			t.Errorf("only %d keys are points, but 8 points have small order", n)
		}
		for _, y := range lowOrder448 {
			for _, sign := range []byte{0, 0x80} {
				pub := append(bytes.Clone(y[:]), sign)
				wantRule(t, verifyContent(4, pub, make([]byte, 114)), "crypto/signature-key-low-order")
			}
		}
		return err
	}},
	{row: "crypto/signature-wrong-length", each: func(t *testing.T, cs CipherSuite) error {
		key := mustSignatureKey(t, cs)
		sig := mustSign(t, cs, key)
		if key.get().ecdsa == nil {
			wantRule(t, verifyContent(cs, key.Public(), sig[1:]), "crypto/signature-wrong-length")
			wantRule(t, verifyContent(cs, key.Public(), append(sig, 0)), "crypto/signature-wrong-length")
		}
		return verifyContent(cs, key.Public(), nil)
	}},
	{row: "crypto/signature-noncanonical-s", run: func(t *testing.T) error {
		// S + L is the same scalar, written otherwise.
		key := mustSignatureKey(t, 4)
		sig := mustSign(t, 4, key)
		order := goldilocks.Curve{}.Order()
		addLittleEndian(sig[57:], order[:])
		wantRule(t, verifyContent(4, key.Public(), sig), "crypto/signature-noncanonical-s")

		key = mustSignatureKey(t, 1)
		sig = mustSign(t, 1, key)
		minusOne := edwards25519.NewScalar().Subtract(edwards25519.NewScalar(), scalarOne(t)).Bytes()
		minusOne[0]++ // L - 1 + 1; no carry, as L is odd
		addLittleEndian(sig[32:], minusOne)
		return verifyContent(1, key.Public(), sig)
	}},
	{row: "crypto/signature-not-der", run: func(t *testing.T) error {
		var err error
		for _, cs := range []CipherSuite{2, 5, 7} {
			key := mustSignatureKey(t, cs)
			sig := mustSign(t, cs, key)
			longForm := append([]byte{0x30, 0x84, 0, 0, 0, byte(len(sig) - 2)}, sig[2:]...)
			if sig[1] == 0x81 {
				longForm = append([]byte{0x30, 0x84, 0, 0, 0, sig[2]}, sig[3:]...)
			}
			for _, bad := range [][]byte{append(bytes.Clone(sig), 0), sig[:len(sig)-1], longForm, make([]byte, 64), {0x30, 0}} {
				err = verifyContent(cs, key.Public(), bad)
				wantRule(t, err, "crypto/signature-not-der")
			}
		}
		return err
	}},
	{row: "crypto/signature-wrong-label", rule: "crypto/signature-wrong", each: func(t *testing.T, cs CipherSuite) error {
		key := mustSignatureKey(t, cs)
		sig := mustSign(t, cs, key)
		wantRule(t, VerifyWithLabel(cs, key.Public(), "label", []byte("other"), sig), "crypto/signature-wrong")
		wantRule(t, verifyContent(cs, mustSignatureKey(t, cs).Public(), sig), "crypto/signature-wrong")
		return VerifyWithLabel(cs, key.Public(), "label2", []byte("content"), sig)
	}},
	{row: "crypto/kem-output-wrong-length", each: func(t *testing.T, cs CipherSuite) error {
		priv, pub, ct := sealed(t, cs)
		for _, bad := range [][]byte{nil, ct.KEMOutput[1:], append(bytes.Clone(ct.KEMOutput), 0)} {
			_, err := cs.externalInitDecap(priv, pub, bad)
			wantRule(t, err, "crypto/kem-output-wrong-length")
		}
		_, err := cs.decryptWithLabel(priv, pub, "label", []byte("context"), hpkeCiphertext{KEMOutput: ct.KEMOutput[1:], Ciphertext: ct.Ciphertext})
		return err
	}},
	{row: "crypto/hpke-ciphertext-short", each: func(t *testing.T, cs CipherSuite) error {
		priv, pub, ct := sealed(t, cs)
		var err error
		for n := range aeadOverhead {
			_, err = cs.decryptWithLabel(priv, pub, "label", []byte("context"), hpkeCiphertext{KEMOutput: ct.KEMOutput, Ciphertext: ct.Ciphertext[:n]})
			wantRule(t, err, "crypto/hpke-ciphertext-short")
		}
		return err
	}},
	{row: "crypto/hpke-tampered", each: func(t *testing.T, cs CipherSuite) error {
		priv, pub, ct := sealed(t, cs)
		open := func(label, context string, ct hpkeCiphertext) error {
			_, err := cs.decryptWithLabel(priv, pub, label, []byte(context), ct)
			return err
		}
		noError(t, open("label", "context", ct))
		wantRule(t, open("label", "Context", ct), "crypto/hpke-tampered")
		wantRule(t, open("Label", "context", ct), "crypto/hpke-tampered")
		var err error
		for i := range ct.Ciphertext {
			err = open("label", "context", hpkeCiphertext{KEMOutput: ct.KEMOutput, Ciphertext: flipped(ct.Ciphertext, i)})
			wantRule(t, err, "crypto/hpke-tampered")
		}
		if cs.suite().kem.curve == nil {
			for i := range ct.KEMOutput {
				wantRule(t, open("label", "context", hpkeCiphertext{KEMOutput: flipped(ct.KEMOutput, i), Ciphertext: ct.Ciphertext}), "crypto/hpke-tampered")
			}
		} else {
			_, other := mustKeyPair(t, cs)
			wantRule(t, open("label", "context", hpkeCiphertext{KEMOutput: other, Ciphertext: ct.Ciphertext}), "crypto/hpke-tampered")
			wantRule(t, open("label", "context", hpkeCiphertext{KEMOutput: flipped(ct.KEMOutput, 9), Ciphertext: ct.Ciphertext}), "crypto/public-key-off-curve")
		}
		return err
	}},
	{row: "crypto/exporter-length", each: func(t *testing.T, cs CipherSuite) error {
		e := newEpochSecretsFromEpochSecret(cs, make(secret, cs.HashLen()))
		limit := min(255*cs.HashLen(), 1<<16-1)
		for _, n := range []int{0, 1, limit} {
			out, err := e.export(cs, "label", nil, n)
			noError(t, err)
			if len(out) != n {
				t.Errorf("%d bytes exported, want %d", len(out), n)
			}
		}
		for _, n := range []int{-1, 1 << 16, 1 << 40} {
			_, err := e.export(cs, "label", nil, n)
			wantRule(t, err, "crypto/exporter-length")
		}
		_, err := e.export(cs, "label", nil, limit+1)
		return err
	}},
}

func sealed(t *testing.T, cs CipherSuite) (hpkePrivateKey, HPKEPublicKey, hpkeCiphertext) {
	t.Helper()
	priv, pub := mustKeyPair(t, cs)
	ct, err := newSealer(cs, "label", []byte("context")).seal(pub, []byte("text"), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return priv, pub, ct
}

// undecodable returns bytes of the right length that are no public key.
func undecodable(t *testing.T, cs CipherSuite) SignaturePublicKey {
	t.Helper()
	key := mustSignatureKey(t, cs).Public()
	for i := range 256 {
		key[3] = byte(i)
		if cs.SignatureScheme().decodePublicKey(key) != nil {
			return key
		}
	}
	t.Fatalf("every key of %v can be decoded", cs)
	return nil
}

func addLittleEndian(a, b []byte) {
	carry := 0
	for i := range a {
		if i < len(b) {
			carry += int(b[i])
		}
		carry += int(a[i])
		a[i] = byte(carry)
		carry >>= 8
	}
}

func scalarOne(t *testing.T) *edwards25519.Scalar {
	t.Helper()
	one := make([]byte, 32)
	one[0] = 1
	s, err := edwards25519.NewScalar().SetCanonicalBytes(one)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Secrets must not show up in logs, whichever verb prints them.
func TestSecretsPrintAsSecret(t *testing.T) {
	key := mustSignatureKey(t, 2)
	for _, v := range []any{secret("hush"), key, &key, struct{ S secret }{secret("hush")}, []secret{secret("hush")}} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		printed := []string{string(text)}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
			printed = append(printed, fmt.Sprintf(verb, v))
		}
		if s, ok := v.(interface {
			fmt.Stringer
			fmt.GoStringer
			encoding.TextMarshaler
		}); ok {
			text, _ := s.MarshalText()
			printed = append(printed, s.String(), s.GoString(), string(text))
		}
		for _, got := range printed {
			for _, leak := range []string{"hush", "68757368", "104 117", "aHVzaA", fmt.Sprintf("%x", key.Bytes()[:4])} {
				if bytes.Contains([]byte(got), []byte(leak)) {
					t.Errorf("%T prints as %s", v, got)
				}
			}
		}
	}
}

func TestSignaturePrivateKeyRoundTrip(t *testing.T) {
	for _, cs := range SupportedCipherSuites() {
		key := mustSignatureKey(t, cs)
		back, err := ParseSignaturePrivateKey(cs, key.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		wantBytes(t, cs.String(), back.Public(), key.Public())
		if _, err := ParseSignaturePrivateKey(cs, key.Bytes()[1:]); err == nil {
			t.Errorf("%v: a short private key was taken", cs)
		}
		if _, err := SignWithLabel(cs, SignaturePrivateKey{}, "label", nil); err == nil {
			t.Errorf("%v: the zero key signs", cs)
		}
		if key.get().ecdsa != nil {
			zero := make([]byte, len(key.Bytes()))
			if _, err := ParseSignaturePrivateKey(cs, zero); err == nil {
				t.Errorf("%v: the scalar 0 was taken", cs)
			}
			if _, err := ecdsa.ParseUncompressedPublicKey(key.get().scheme.curve(), key.Public()); err != nil {
				t.Error(err)
			}
		}
	}
}
