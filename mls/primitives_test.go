package mls

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	stdhpke "crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"io"
	"testing"

	"github.com/cloudflare/circl/dh/x25519"
	circlhpke "github.com/cloudflare/circl/hpke"
)

// HMAC and HKDF are written out in this package; the standard library's are
// the judge.
func TestHMACAndHKDFAgreeWithTheStandardLibrary(t *testing.T) {
	for _, c := range []struct {
		cs  CipherSuite
		new func() hash.Hash
	}{{1, sha256.New}, {7, sha512.New384}, {4, sha512.New}} {
		r := testRand(t)
		random := func(n int) []byte {
			b := make([]byte, n)
			if _, err := io.ReadFull(r, b); err != nil {
				t.Fatal(err)
			}
			return b
		}
		for _, keyLen := range []int{0, 1, 32, 48, 63, 64, 65, 127, 128, 129, 300} {
			for _, msgLen := range []int{0, 1, 100, 500, 5000} {
				key, msg := random(keyLen), random(msgLen)
				mac := hmac.New(c.new, key)
				mac.Write(msg)
				want := mac.Sum(nil)
				wantBytes(t, "mac", c.cs.mac(key, msg[:msgLen/2], msg[msgLen/2:]), want)
				for i := range want {
					if !c.cs.verifyMAC(key, want, msg) || c.cs.verifyMAC(key, want[:i], msg) || c.cs.verifyMAC(key, flipped(want, i), msg) {
						t.Fatalf("verifyMAC at byte %d", i)
					}
				}
				if c.cs.verifyMAC(key, append(want, 0), msg) {
					t.Error("a longer tag was taken")
				}
				wantBytes(t, "hash", c.cs.hash(key, msg), func() []byte { h := c.new(); h.Write(key); h.Write(msg); return h.Sum(nil) }())

				prk, err := hkdf.Extract(c.new, msg, key)
				noError(t, err)
				wantBytes(t, "extract", c.cs.extract(key, msg), must(hkdf.Extract(c.new, msg, key)))
				for _, n := range []int{1, 12, 32, 64, 65, 255 * c.cs.HashLen()} {
					wantBytes(t, "expand", c.cs.expand(prk, msg, n), must(hkdf.Expand(c.new, prk, string(msg), n)))
				}
			}
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// HPKE is written out as well: other implementations read what we seal, we
// read what they seal, and keys derive alike.
func TestHPKEAgreesWithOtherImplementations(t *testing.T) {
	info, text := []byte("label and context"), []byte("plaintext")
	seal := func(t *testing.T, cs CipherSuite, pub HPKEPublicKey) (enc, ct []byte) {
		t.Helper()
		s := &sealer{newHPKEInfo(cs, info)}
		c, err := s.seal(pub, text, rand.Reader)
		noError(t, err)
		return c.KEMOutput, c.Ciphertext
	}
	open := func(t *testing.T, cs CipherSuite, priv hpkePrivateKey, pub HPKEPublicKey, enc, ct []byte) {
		t.Helper()
		got, err := (&opener{newHPKEInfo(cs, info)}).open(priv, pub, hpkeCiphertext{KEMOutput: enc, Ciphertext: ct})
		noError(t, err)
		wantBytes(t, "plaintext", got, text)
	}
	for _, cs := range SupportedCipherSuites() {
		su := cs.suite()
		ikm := make(secret, su.nh)
		_, err := io.ReadFull(testRand(t), ikm)
		noError(t, err)
		priv, pub, err := cs.deriveKeyPair(ikm)
		noError(t, err)
		t.Run(fmt.Sprintf("suite=%d", cs), func(t *testing.T) {
			if su.kem == &kemX448 { // not in the standard library
				k, _, aead := circlhpke.KEM(su.kem.id), circlhpke.KDF(su.kdf), circlhpke.AEAD(su.aead)
				suite := circlhpke.NewSuite(k, circlhpke.KDF(su.kdf), aead)
				skR := must(k.Scheme().UnmarshalBinaryPrivateKey(priv))
				wantBytes(t, "public key", pub, must(skR.Public().MarshalBinary()))
				enc, ct := seal(t, cs, pub)
				o := must(must(suite.NewReceiver(skR, info)).Setup(enc))
				wantBytes(t, "plaintext", must(o.Open(ct, nil)), text)
				sender := must(suite.NewSender(skR.Public(), info))
				enc, s, err := sender.Setup(rand.Reader)
				noError(t, err)
				open(t, cs, priv, pub, enc, must(s.Seal(text, nil)))
				exported, err := cs.decap(priv, pub, enc)
				noError(t, err)
				wantBytes(t, "export", newHPKEInfo(cs, info).export(exported, "x", 40), s.Export([]byte("x"), 40))
				// circl takes seeds of one size only.
				seed := ikm[:su.kem.nsk]
				derived, _, err := cs.deriveKeyPair(seed)
				noError(t, err)
				_, sk := k.Scheme().DeriveKeyPair(seed)
				wantBytes(t, "derived key", derived, must(sk.MarshalBinary()))
				return
			}
			kem, kdf, aead := must(stdhpke.NewKEM(su.kem.id)), must(stdhpke.NewKDF(su.kdf)), must(stdhpke.NewAEAD(uint16(su.aead)))
			skR := must(kem.DeriveKeyPair(ikm))
			wantBytes(t, "derived public key", pub, skR.PublicKey().Bytes())
			enc, ct := seal(t, cs, pub)
			r := must(stdhpke.NewRecipient(enc, skR, kdf, aead, info))
			wantBytes(t, "plaintext", must(r.Open(nil, ct)), text)
			enc, s, err := stdhpke.NewSender(skR.PublicKey(), kdf, aead, info)
			noError(t, err)
			open(t, cs, priv, pub, enc, must(s.Seal(nil, text)))
			shared, err := cs.decap(priv, pub, enc)
			noError(t, err)
			wantBytes(t, "export", newHPKEInfo(cs, info).export(shared, "x", 40), must(s.Export("x", 40)))
		})
	}
}

// X25519 public keys are made with Ed25519's base point.
func TestX25519PublicKeysAgree(t *testing.T) {
	r := testRand(t)
	for range 100 {
		var sk, pk x25519.Key
		_, err := io.ReadFull(r, sk[:])
		noError(t, err)
		x25519.KeyGen(&pk, &sk)
		wantBytes(t, "public key", must(kemX25519.public(sk[:])), pk[:])
	}
}

// The header of a vector changes size at these lengths.
func TestVectorLengthBoundaries(t *testing.T) {
	for _, n := range []int{0, 1, 62, 63, 64, 65, 16382, 16383, 16384, 16385, 1 << 20} {
		v := bytes.Repeat([]byte{7}, n)
		raw := appendOpaqueVec([]byte("x"), v)
		if len(raw) != 1+varintSize(n)+n {
			t.Errorf("a vector of %d bytes takes %d", n, len(raw))
		}
		s := newReader(raw[1:])
		var got []byte
		if !readOpaqueVec(s, &got) || !s.Empty() || !bytes.Equal(got, v) {
			t.Errorf("a vector of %d bytes was read as %d", n, len(got))
		}
		wantBytes(t, "appendVector", appendVector([]byte("x"), func(b []byte) []byte { return append(b, v...) }), raw)
		if n > 0 {
			s := newReader(raw[1 : len(raw)-1])
			if readOpaqueVec(s, &got) {
				t.Errorf("a vector that lacks a byte of %d was read", n)
			}
		}
	}
	if s := newReader(appendVarint(nil, maxVarint)); !readVarint(s, new(uint32)) {
		t.Error(s.error())
	}
}

func TestSourcesOfRandomnessThatFail(t *testing.T) {
	for _, cs := range SupportedCipherSuites() {
		if _, err := GenerateSignatureKey(cs, bytes.NewReader(nil)); err == nil {
			t.Errorf("%v: a signature key without randomness", cs)
		}
		if _, _, err := cs.generateKeyPair(bytes.NewReader(nil)); err == nil {
			t.Errorf("%v: a key pair without randomness", cs)
		}
		_, pub := mustKeyPair(t, cs)
		if _, err := newSealer(cs, "x", nil).seal(pub, nil, bytes.NewReader(nil)); err == nil {
			t.Errorf("%v: a ciphertext without randomness", cs)
		}
		if _, err := cs.publicKey(make(secret, 7)); err == nil {
			t.Errorf("%v: a private key of 7 bytes", cs)
		}
	}
	a, _ := pair(t, 1)
	broken := *a.cfg
	broken.Rand = bytes.NewReader(nil)
	a.cfg = &broken
	before := groupState(a)
	if _, err := a.Encrypt([]byte("text"), nil); err == nil {
		t.Error("a message without a reuse guard")
	}
	if _, err := a.Commit(CommitOptions{}); err == nil {
		t.Error("a Commit without randomness")
	}
	if !bytes.Equal(before, groupState(a)) {
		t.Error("the group has changed")
	}
}

func TestNamesOfSuites(t *testing.T) {
	for i, cs := range SupportedCipherSuites() {
		if int(cs) != i+1 || cs.String() == "" || cs.SignatureScheme().String() == "" || cs.HashLen() < 32 {
			t.Errorf("suite %d: %v, %v, %d", i+1, cs, cs.SignatureScheme(), cs.HashLen())
		}
	}
	if got := CipherSuite(0xabcd).String(); got != "CipherSuite(0xabcd)" {
		t.Error(got)
	}
	if got := SignatureScheme(1).String(); got != "SignatureScheme(0x0001)" {
		t.Error(got)
	}
}

func TestCredentials(t *testing.T) {
	x509 := Credential{Type: CredentialTypeX509, Certificates: [][]byte{[]byte("leaf"), []byte("root")}}
	other := Credential{Type: 0xf00d, Identity: []byte("opaque")}
	basic := BasicCredential([]byte("alice"))
	all := []Credential{basic, x509, other, BasicCredential([]byte("bob")), {Type: CredentialTypeX509, Certificates: [][]byte{[]byte("leaf"), []byte("ROOT")}}}
	for i := range all {
		var back Credential
		noError(t, unmarshal(all[i].appendTo(nil), &back))
		for j := range all {
			if back.Equal(&all[j]) != (i == j) {
				t.Errorf("credentials %d and %d: equal is %v", i, j, i != j)
			}
		}
	}
}
