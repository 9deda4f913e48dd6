package mls

import (
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/hex"
	"testing"

	"filippo.io/edwards25519"
	voi "github.com/oasisprotocol/curve25519-voi/primitives/ed25519"
)

// torsionPoints returns the eight points of small order.
func torsionPoints(t *testing.T) []*edwards25519.Point {
	t.Helper()
	raw, err := hex.DecodeString("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
	if err != nil {
		t.Fatal(err)
	}
	p, err := new(edwards25519.Point).SetBytes(raw)
	if err != nil {
		t.Fatal(err)
	}
	points := []*edwards25519.Point{edwards25519.NewIdentityPoint()}
	for len(points) < 8 {
		points = append(points, new(edwards25519.Point).Add(points[len(points)-1], p))
	}
	return points
}

// forgeEd25519 signs msg with small-order components added to key and R: with
// the cofactor the signature is good, without it only sometimes.
func forgeEd25519(t *testing.T, seed byte, msg []byte, inKey, inR *edwards25519.Point) (pub, sig []byte) {
	t.Helper()
	scalarOf := func(b ...[]byte) *edwards25519.Scalar {
		h := sha512.New()
		for _, b := range b {
			h.Write(b)
		}
		s, err := edwards25519.NewScalar().SetUniformBytes(h.Sum(nil))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, r := scalarOf([]byte{seed, 0}), scalarOf([]byte{seed, 1}, msg)
	key := new(edwards25519.Point).ScalarBaseMult(a)
	pub = key.Add(key, inKey).Bytes()
	rp := new(edwards25519.Point).ScalarBaseMult(r)
	sig = rp.Add(rp, inR).Bytes()
	k := scalarOf(sig, pub, msg)
	return pub, append(sig, edwards25519.NewScalar().MultiplyAdd(k, a, r).Bytes()...)
}

func TestEd25519SignsLikeStandardLibrary(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	for n := range 300 {
		msg := make([]byte, n)
		if want, got := ed25519.Sign(key, msg), signEd25519(key, msg); string(want) != string(got) {
			t.Fatalf("signature of %d bytes: got %x, want %x", n, got, want)
		}
	}
}

func TestEd25519VerifiesLikeStandardLibrary(t *testing.T) {
	type signed struct{ pub, msg, sig []byte }
	var all []signed
	for i, inKey := range torsionPoints(t) {
		for k, inR := range torsionPoints(t) {
			msg := []byte{byte(i), byte(k)}
			for seed := range byte(8) {
				pub, sig := forgeEd25519(t, seed, msg, inKey, inR)
				all = append(all, signed{pub, msg, sig})
			}
			// Key and R of small order, S = 0.
			all = append(all, signed{inKey.Bytes(), msg, append(inR.Bytes(), make([]byte, 32)...)})
		}
	}
	none := edwards25519.NewIdentityPoint()
	pub, sig := forgeEd25519(t, 9, []byte("text"), none, none)
	for bit := range 8 * len(sig) {
		s := append([]byte(nil), sig...)
		s[bit/8] ^= 1 << (bit % 8)
		all = append(all, signed{pub, []byte("text"), s})
	}
	for bit := range 8 * len(pub) {
		p := append([]byte(nil), pub...)
		p[bit/8] ^= 1 << (bit % 8)
		all = append(all, signed{p, []byte("text"), sig})
	}
	// Encodings of y that are not below p, with both signs.
	for low := 0xe0; low <= 0xff; low++ {
		for _, top := range []byte{0x7f, 0xff} {
			y := p25519(byte(low))
			y[31] = top
			all = append(all, signed{y[:], []byte("text"), sig}, signed{pub, []byte("text"), append(y[:], sig[32:]...)},
				signed{y[:], []byte("text"), append(y[:], make([]byte, 32)...)})
		}
	}
	good := 0
	for _, s := range all {
		want := ed25519.Verify(s.pub, s.msg, s.sig)
		if want {
			good++
		}
		// Also without the second opinion that verifyEd25519 gets.
		if got := voi.VerifyWithOptions(s.pub, s.msg, s.sig, verifyLikeStandardLibrary); got != want {
			t.Errorf("key %x, signature %x: got %v, the standard library says %v", s.pub, s.sig, got, want)
		}
		if got := verifyEd25519(s.pub, s.msg, s.sig); got != want {
			t.Errorf("key %x, signature %x: got %v with a second opinion, want %v", s.pub, s.sig, got, want)
		}
		// With a key that is met for the first time, and one that is kept.
		kept := new(signers)
		for range 2 {
			if got := kept.verify(s.pub, s.msg, s.sig); got != want {
				t.Errorf("key %x, signature %x: got %v by the kept key, want %v", s.pub, s.sig, got, want)
			}
		}
		if k, err := voi.NewExpandedPublicKey(s.pub); err == nil {
			if got := voi.VerifyExpandedWithOptions(k, s.msg, s.sig, verifyLikeStandardLibrary); got != want {
				t.Errorf("key %x, signature %x: got %v by the expanded key, want %v", s.pub, s.sig, got, want)
			}
		} else if want {
			t.Errorf("key %x is good and cannot be expanded: %v", s.pub, err)
		}
	}
	if good < 64 || good == len(all) {
		t.Errorf("%d of %d signatures are good: the cases are not what they should be", good, len(all))
	}
}

func TestEd25519BatchAcceptsOnlyValidSignatures(t *testing.T) {
	points := torsionPoints(t)
	type signed struct{ pub, msg, sig []byte }
	fill := func(n int) []signed {
		var list []signed
		for i := range n {
			msg := []byte{1, byte(i)}
			pub, sig := forgeEd25519(t, byte(i/2), msg, points[0], points[0])
			list = append(list, signed{pub, msg, sig})
		}
		return list
	}
	verify := func(list []signed) bool {
		var b batchEd25519
		for _, s := range list {
			b.add(s.pub, s.msg, s.sig)
		}
		return b.verify()
	}
	good := fill(130)
	if !verify(good) {
		t.Fatal("a batch of good signatures is refused")
	}
	if !verify(good[:1]) || !verify(nil) {
		t.Error("a small batch is refused")
	}
	with := func(extra ...signed) []signed {
		list := append([]signed(nil), good...)
		for i, s := range extra {
			list[7+5*i] = s
		}
		return list
	}
	forged := func(seed byte, inKey, inR *edwards25519.Point) signed {
		pub, sig := forgeEd25519(t, seed, []byte("x"), inKey, inR)
		return signed{pub, []byte("x"), sig}
	}
	cases := map[string][]signed{
		"another message": with(signed{good[0].pub, []byte("y"), good[0].sig}),
		"another key":     with(signed{good[3].pub, good[0].msg, good[0].sig}),
		"S not reduced":   with(signed{good[0].pub, good[0].msg, append(append([]byte(nil), good[0].sig[:32]...), addOrder(good[0].sig[32:])...)}),
		"short":           with(signed{good[0].pub, good[0].msg, good[0].sig[:63]}),
		"no point":        with(signed{good[0].pub, good[0].msg, append([]byte{2, 31: 0}, good[0].sig[32:]...)}),
	}
	for i := 1; i < 8; i++ {
		cases["small order in R "+string(rune('0'+i))] = with(forged(1, points[0], points[i]))
		cases["small order in key "+string(rune('0'+i))] = with(forged(1, points[i], points[0]))
		// Components that cancel out when the signatures are added up.
		cases["cancelling "+string(rune('0'+i))] = with(forged(1, points[0], points[i]), forged(2, points[0], points[8-i]))
	}
	for name, list := range cases {
		for range 20 {
			if verify(list) {
				t.Errorf("%s: the batch is accepted", name)
				break
			}
		}
	}
}

// addOrder adds the order of the group to S, little-endian.
func addOrder(s []byte) []byte {
	order, _ := hex.DecodeString("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010")
	out := make([]byte, 32)
	carry := 0
	for i := range out {
		carry += int(s[i]) + int(order[i])
		out[i] = byte(carry)
		carry >>= 8
	}
	return out
}

// TestVerifyManyFallsBack checks that what a batch refuses is looked at one by
// one, and that the first bad one is named.
func TestVerifyManyFallsBack(t *testing.T) {
	points := torsionPoints(t)
	const n = 3 * batchMin
	pubs, sigs := make([][]byte, n), make([][]byte, n)
	for i := range n {
		inKey, inR := points[0], points[0]
		if i == 5 || i == n-1 {
			inKey, inR = points[4], points[4] // good without cofactor if k is odd
		}
		for seed := byte(i); ; seed++ {
			pubs[i], sigs[i] = forgeEd25519(t, seed, signedContent("label", []byte{byte(i)}), inKey, inR)
			if ed25519.Verify(pubs[i], signedContent("label", []byte{byte(i)}), sigs[i]) {
				break
			}
		}
	}
	cs := MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	run := func() error {
		return verifyMany(cs, n,
			func(i int, f func(pub SignaturePublicKey, label string, content, sig []byte)) {
				f(pubs[i], "label", []byte{byte(i)}, sigs[i])
			},
			func(i int) error {
				if err := VerifyWithLabel(cs, pubs[i], "label", []byte{byte(i)}, sigs[i]); err != nil {
					return invalid("crypto/signature-wrong", "", "signature %d: %w", i, err)
				}
				return nil
			})
	}
	if err := run(); err != nil {
		t.Fatalf("signatures that are good without the cofactor: %v", err)
	}
	sigs[9][40] ^= 1
	sigs[n-2][40] ^= 1
	if err := run(); err == nil || err.Error() != "mls: crypto/signature-wrong: signature 9: crypto/signature-wrong (RFC 9420, Section 5.1.2): ed25519 signature does not verify under this key, label and content" {
		t.Errorf("got %v, want an error for signature 9", err)
	}
}
