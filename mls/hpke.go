package mls

import (
	"bytes"
	"crypto/ecdh"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cloudflare/circl/dh/x25519"
	"github.com/cloudflare/circl/dh/x448"
	voix25519 "github.com/oasisprotocol/curve25519-voi/primitives/x25519"
)

// An HPKEPublicKey is an encryption key as RFC 9180's SerializePublicKey
// writes it (RFC 9420, Section 5.1.1).
type HPKEPublicKey []byte

// An hpkePrivateKey is as RFC 9180's SerializePrivateKey writes it.
type hpkePrivateKey = secret

// An hpkeCiphertext is a message to one public key (RFC 9420, Section 5.1.3).
type hpkeCiphertext struct {
	KEMOutput  []byte
	Ciphertext []byte
}

func (c *hpkeCiphertext) unmarshal(s *reader) bool {
	return readOpaqueVec(s, &c.KEMOutput) && readOpaqueVec(s, &c.Ciphertext)
}

func (c *hpkeCiphertext) appendTo(b []byte) []byte {
	return appendOpaqueVec(appendOpaqueVec(b, c.KEMOutput), c.Ciphertext)
}

// A kem is one of the DHKEMs of RFC 9180, Section 7.1, whose hash is that of the
// suites that use it, or a post-quantum KEM.
type kem struct {
	id      uint16
	npk     int // size of a public key
	nsk     int // size of a private key
	nenc    int // size of the KEM output
	nrand   int // randomness that encap reads
	nsecret int
	curve   ecdh.Curve // nil for X25519 and X448
	bitmask byte       // for candidates of private keys on curve
	pq      *pqKEM     // nil for a DHKEM
}

// dhkem returns a DHKEM, whose KEM output is a public key.
func dhkem(id uint16, npk, nsk, nsecret int, curve ecdh.Curve, bitmask byte) kem {
	return kem{id: id, npk: npk, nsk: nsk, nenc: npk, nrand: nsk, nsecret: nsecret, curve: curve, bitmask: bitmask}
}

var (
	kemP256   = dhkem(0x0010, 65, 32, 32, ecdh.P256(), 0xff)
	kemP384   = dhkem(0x0011, 97, 48, 48, ecdh.P384(), 0xff)
	kemP521   = dhkem(0x0012, 133, 66, 64, ecdh.P521(), 0x01)
	kemX25519 = dhkem(0x0020, x25519.Size, x25519.Size, 32, nil, 0)
	kemX448   = dhkem(0x0021, x448.Size, x448.Size, 64, nil, 0)
)

// public returns the public key of a private key.
func (k *kem) public(priv hpkePrivateKey) (HPKEPublicKey, error) {
	if len(priv) != k.nsk {
		return nil, fmt.Errorf("mls: HPKE private key of %d bytes, want %d", len(priv), k.nsk)
	}
	if k.pq != nil {
		return k.pq.public(priv)
	}
	if k.curve != nil {
		p, err := k.curve.NewPrivateKey(priv)
		if err != nil {
			return nil, fmt.Errorf("mls: HPKE private key is out of range: %w", err)
		}
		return p.PublicKey().Bytes(), nil
	}
	if k.nsk == x25519.Size {
		// By the table of the Edwards form's base point, which is three
		// times as fast as the ladder.
		var pub, sk [x25519.Size]byte
		copy(sk[:], priv)
		voix25519.ScalarBaseMult(&pub, &sk)
		clear(sk[:])
		return pub[:], nil
	}
	var pub, sk x448.Key
	copy(sk[:], priv)
	x448.KeyGen(&pub, &sk)
	clear(sk[:])
	return pub[:], nil
}

// dh returns the shared secret of a private and a public key.
func (k *kem) dh(priv hpkePrivateKey, pub HPKEPublicKey) (secret, error) {
	if len(priv) != k.nsk {
		return nil, fmt.Errorf("mls: HPKE private key of %d bytes, want %d", len(priv), k.nsk)
	}
	if err := k.checkLength(pub); err != nil {
		return nil, err
	}
	if k.curve != nil {
		p, err := k.curve.NewPublicKey(pub)
		if err != nil {
			return nil, invalid("crypto/public-key-off-curve", "5.1.1", "HPKE public key: %w", err)
		}
		sk, err := k.curve.NewPrivateKey(priv)
		if err != nil {
			return nil, fmt.Errorf("mls: HPKE private key is out of range: %w", err)
		}
		z, err := sk.ECDH(p)
		if err != nil {
			return nil, invalid("crypto/public-key-off-curve", "5.1.1", "HPKE public key: %w", err)
		}
		return z, nil
	}
	if k.nsk == x25519.Size {
		var z, sk, pk x25519.Key
		copy(sk[:], priv)
		copy(pk[:], pub)
		ok := x25519.Shared(&z, &sk, &pk)
		clear(sk[:])
		return dhResult(z[:], ok)
	}
	var z, sk, pk x448.Key
	copy(sk[:], priv)
	copy(pk[:], pub)
	ok := x448.Shared(&z, &sk, &pk)
	clear(sk[:])
	return dhResult(z[:], ok)
}

// dhResult refuses all-zero results. RFC 9180, Section 7.1.4.
func dhResult(z secret, ok bool) (secret, error) {
	if !ok || subtle.ConstantTimeCompare(z, zeros[:len(z)]) == 1 {
		return nil, invalid("crypto/public-key-low-order", "5.1.1", "the Diffie-Hellman result with this public key is zero")
	}
	return z, nil
}

func (k *kem) checkLength(pub HPKEPublicKey) error {
	if len(pub) != k.npk {
		return invalid("crypto/public-key-wrong-length", "5.1.1", "HPKE public key of %d bytes, want %d", len(pub), k.npk)
	}
	return nil
}

// lowOrder25519 holds the u-coordinates of low order on Curve25519 and its
// twist, and the other encodings of 0 and 1; the top bit is ignored.
var lowOrder25519 = [...][32]byte{
	{},
	{1},
	{0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00},
	{0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57},
	p25519(0xec), // p - 1
	p25519(0xed), // p
	p25519(0xee), // p + 1
}

func p25519(low byte) (b [32]byte) {
	for i := range b {
		b[i] = 0xff
	}
	b[0], b[31] = low, 0x7f
	return b
}

// lowOrder448 is the same for Curve448: 0, 1, -1, p and p + 1.
var lowOrder448 = [...][56]byte{
	{},
	{1},
	p448(0xfe, 0xff), // p - 1
	p448(0xff, 0xff), // p
	p448(0x00, 0x00), // p + 1
}

// p448 is 2^448 - 2^224 - 1 with the low 28 bytes given.
func p448(low, rest byte) (b [56]byte) {
	b[0] = low
	for i := 1; i < 28; i++ {
		b[i] = rest
	}
	for i := 28; i < 56; i++ {
		b[i] = 0xff
	}
	if rest == 0xff {
		b[28] = 0xfe
	}
	return b
}

// validate refuses what is no public key of the KEM, and keys that no secret
// can be shared with.
func (k *kem) validate(pub HPKEPublicKey) error {
	if err := k.checkLength(pub); err != nil {
		return err
	}
	low := false
	switch {
	case k.pq != nil:
		return k.pq.validate(pub)
	case k.curve != nil:
		// RFC 9180, Section 7.1.4: on the curve, and not at infinity.
		if _, err := k.curve.NewPublicKey(pub); err != nil {
			return invalid("crypto/public-key-off-curve", "5.1.1", "HPKE public key: %w", err)
		}
	case k.nsk == x25519.Size:
		u := [32]byte(pub)
		u[31] &= 0x7f
		for i := range lowOrder25519 {
			low = low || u == lowOrder25519[i]
		}
	default:
		for i := range lowOrder448 {
			low = low || bytes.Equal(pub, lowOrder448[i][:])
		}
	}
	if low {
		return invalid("crypto/public-key-low-order", "5.1.1", "HPKE public key of low order")
	}
	return nil
}

// labeledExtract is LabeledExtract of RFC 9180, Section 4.
func (cs CipherSuite) labeledExtract(suiteID []byte, salt []byte, label string, ikm []byte) secret {
	h := cs.suite().hash
	var stack [32]byte
	l := append(stack[:0], label...)
	return h.hmac(make([]byte, 0, h.size()), salt, hpkeVersion, suiteID, l, ikm)
}

// labeledExpand is LabeledExpand of RFC 9180, Section 4.
func (cs CipherSuite) labeledExpand(suiteID []byte, prk secret, label string, info []byte, n int) secret {
	var stack [256]byte
	b := binary.BigEndian.AppendUint16(stack[:0], uint16(n))
	b = append(b, hpkeVersion...)
	b = append(b, suiteID...)
	b = append(b, label...)
	b = append(b, info...)
	return cs.expand(prk, b, n)
}

var hpkeVersion = []byte("HPKE-v1")

// deriveKeyPair is DeriveKeyPair of RFC 9180, Section 7.1.3.
func (cs CipherSuite) deriveKeyPair(ikm secret) (hpkePrivateKey, HPKEPublicKey, error) {
	su := cs.suite()
	if su.kem.pq != nil {
		return su.kem.derivePQ(ikm)
	}
	prk := cs.labeledExtract(su.kemID[:], nil, "dkp_prk", ikm)
	defer prk.zero()
	if su.kem.curve == nil {
		sk := cs.labeledExpand(su.kemID[:], prk, "sk", nil, su.kem.nsk)
		pub, err := su.kem.public(sk)
		return sk, pub, err
	}
	for i := range 256 {
		sk := cs.labeledExpand(su.kemID[:], prk, "candidate", []byte{byte(i)}, su.kem.nsk)
		sk[0] &= su.kem.bitmask
		if pub, err := su.kem.public(sk); err == nil {
			return sk, pub, nil
		}
		sk.zero()
	}
	return nil, nil, fmt.Errorf("mls: no key pair can be derived from this secret")
}

// generateKeyPair makes a key pair from randomness.
func (cs CipherSuite) generateKeyPair(rand io.Reader) (hpkePrivateKey, HPKEPublicKey, error) {
	ikm := make(secret, cs.suite().kem.nsk)
	if _, err := io.ReadFull(rand, ikm); err != nil {
		return nil, nil, fmt.Errorf("mls: reading randomness: %w", err)
	}
	defer ikm.zero()
	return cs.deriveKeyPair(ikm)
}

// ephemeralKeyPair makes a key pair of a DHKEM that is used once. For X25519 and
// X448 any bytes are a private key, and nothing has to be derived from them.
func (cs CipherSuite) ephemeralKeyPair(rand io.Reader) (hpkePrivateKey, HPKEPublicKey, error) {
	k := cs.suite().kem
	if k.curve != nil {
		return cs.generateKeyPair(rand)
	}
	sk := make(secret, k.nsk)
	if _, err := io.ReadFull(rand, sk); err != nil {
		return nil, nil, fmt.Errorf("mls: reading randomness: %w", err)
	}
	pub, err := k.public(sk)
	return sk, pub, err
}

// publicKey returns the public key of a private key.
func (cs CipherSuite) publicKey(priv hpkePrivateKey) (HPKEPublicKey, error) {
	return cs.suite().kem.public(priv)
}

// validateHPKEPublicKey refuses what is no usable public key of the suite.
func (cs CipherSuite) validateHPKEPublicKey(pub HPKEPublicKey) error {
	return cs.suite().kem.validate(pub)
}

// kemSecret is ExtractAndExpand of RFC 9180, Section 4.1.
func (cs CipherSuite) kemSecret(z secret, enc, pub []byte) secret {
	su := cs.suite()
	var stack [2 * 133]byte
	ctx := append(stack[:0], enc...)
	ctx = append(ctx, pub...)
	prk := cs.labeledExtract(su.kemID[:], nil, "eae_prk", z)
	s := cs.labeledExpand(su.kemID[:], prk, "shared_secret", ctx, su.kem.nsecret)
	prk.zero()
	z.zero()
	return s
}

// encap is Encap of RFC 9180, Section 4.1.
func (cs CipherSuite) encap(pub HPKEPublicKey, rand io.Reader) (enc []byte, shared secret, err error) {
	k := cs.suite().kem
	if err := k.checkLength(pub); err != nil {
		return nil, nil, err
	}
	if k.pq != nil {
		return k.pq.encap(pub, rand)
	}
	eph, enc, err := cs.ephemeralKeyPair(rand)
	if err != nil {
		return nil, nil, err
	}
	z, err := k.dh(eph, pub)
	eph.zero()
	if err != nil {
		return nil, nil, err
	}
	return enc, cs.kemSecret(z, enc, pub), nil
}

// decap is Decap of RFC 9180, Section 4.1.
func (cs CipherSuite) decap(priv hpkePrivateKey, pub HPKEPublicKey, enc []byte) (secret, error) {
	k := cs.suite().kem
	if len(enc) != k.nenc {
		return nil, invalid("crypto/kem-output-wrong-length", "5.1.3", "KEM output of %d bytes, want %d", len(enc), k.nenc)
	}
	if k.pq != nil {
		if len(priv) != k.nsk {
			return nil, fmt.Errorf("mls: HPKE private key of %d bytes, want %d", len(priv), k.nsk)
		}
		return k.pq.decap(priv, enc)
	}
	z, err := k.dh(priv, enc)
	if err != nil {
		return nil, err
	}
	return cs.kemSecret(z, enc, pub), nil
}

// An hpkeInfo is the part of RFC 9180's key schedule (base mode, Section 5.1)
// that depends on the info alone. In MLS one info goes to many recipients, and
// it can be large: it holds the whole encrypted GroupInfo of a Welcome.
type hpkeInfo struct {
	cs      CipherSuite
	context []byte // key_schedule_context
}

func newHPKEInfo(cs CipherSuite, info []byte) hpkeInfo {
	su := cs.suite()
	ctx := make([]byte, 1, 1+2*su.nh) // mode_base
	ctx = append(ctx, cs.labeledExtract(su.hpkeID[:], nil, "psk_id_hash", nil)...)
	ctx = append(ctx, cs.labeledExtract(su.hpkeID[:], nil, "info_hash", info)...)
	return hpkeInfo{cs: cs, context: ctx}
}

func (h hpkeInfo) secret(shared secret) secret {
	s := h.cs.labeledExtract(h.cs.suite().hpkeID[:], shared, "secret", nil)
	shared.zero()
	return s
}

// keyNonce returns key and base nonce; each of our contexts seals once.
func (h hpkeInfo) keyNonce(shared secret) (key, nonce secret) {
	su := h.cs.suite()
	s := h.secret(shared)
	key = h.cs.labeledExpand(su.hpkeID[:], s, "key", h.context, su.nk)
	nonce = h.cs.labeledExpand(su.hpkeID[:], s, "base_nonce", h.context, aeadNonceSize)
	s.zero()
	return key, nonce
}

func (h hpkeInfo) export(shared secret, context string, n int) secret {
	su := h.cs.suite()
	s := h.secret(shared)
	exp := h.cs.labeledExpand(su.hpkeID[:], s, "exp", h.context, su.nh)
	out := h.cs.labeledExpand(su.hpkeID[:], exp, "sec", []byte(context), n)
	s.zero()
	exp.zero()
	return out
}

// encryptContext is the EncryptContext of RFC 9420, Section 5.1.3.
func encryptContext(label string, context []byte) []byte {
	b := make([]byte, 0, 2*4+len("MLS 1.0 ")+len(label)+len(context))
	b = appendOpaqueVec(b, "MLS 1.0 "+label)
	return appendOpaqueVec(b, context)
}

// A sealer encrypts to any number of public keys under one label and context:
// EncryptWithLabel of RFC 9420, Section 5.1.3.
type sealer struct{ info hpkeInfo }

func newSealer(cs CipherSuite, label string, context []byte) *sealer {
	return &sealer{newHPKEInfo(cs, encryptContext(label, context))}
}

func (s *sealer) seal(pub HPKEPublicKey, plaintext []byte, rand io.Reader) (hpkeCiphertext, error) {
	enc, shared, err := s.info.cs.encap(pub, rand)
	if err != nil {
		return hpkeCiphertext{}, err
	}
	key, nonce := s.info.keyNonce(shared)
	ct := s.info.cs.aeadSeal(key, nonce, nil, plaintext)
	key.zero()
	nonce.zero()
	return hpkeCiphertext{KEMOutput: enc, Ciphertext: ct}, nil
}

// An opener is the receiver's side of a sealer.
type opener struct{ info hpkeInfo }

func newOpener(cs CipherSuite, label string, context []byte) *opener {
	return &opener{newHPKEInfo(cs, encryptContext(label, context))}
}

func (o *opener) open(priv hpkePrivateKey, pub HPKEPublicKey, ct hpkeCiphertext) (secret, error) {
	if len(ct.Ciphertext) < aeadOverhead {
		return nil, invalid("crypto/hpke-ciphertext-short", "5.1.3", "HPKE ciphertext of %d bytes is shorter than its tag", len(ct.Ciphertext))
	}
	shared, err := o.info.cs.decap(priv, pub, ct.KEMOutput)
	if err != nil {
		return nil, err
	}
	key, nonce := o.info.keyNonce(shared)
	pt, ok := o.info.cs.aeadOpen(key, nonce, nil, ct.Ciphertext)
	key.zero()
	nonce.zero()
	if !ok {
		return nil, invalid("crypto/hpke-tampered", "5.1.3", "HPKE ciphertext does not open: it was altered or meant for another key or context")
	}
	return pt, nil
}

// decryptWithLabel is DecryptWithLabel of RFC 9420, Section 5.1.3.
func (cs CipherSuite) decryptWithLabel(priv hpkePrivateKey, pub HPKEPublicKey, label string, context []byte, ct hpkeCiphertext) (secret, error) {
	return newOpener(cs, label, context).open(priv, pub, ct)
}

// externalInitLabel is the exporter context of RFC 9420, Section 8.3.
const externalInitLabel = "MLS 1.0 external init secret"

// externalInitEncap makes the init secret of an external Commit (RFC 9420,
// Section 8.3).
func (cs CipherSuite) externalInitEncap(externalPub HPKEPublicKey, rand io.Reader) (kemOutput []byte, initSecret secret, err error) {
	enc, shared, err := cs.encap(externalPub, rand)
	if err != nil {
		return nil, nil, err
	}
	return enc, newHPKEInfo(cs, nil).export(shared, externalInitLabel, cs.HashLen()), nil
}

// externalInitDecap is the members' side of externalInitEncap.
func (cs CipherSuite) externalInitDecap(priv hpkePrivateKey, pub HPKEPublicKey, kemOutput []byte) (secret, error) {
	shared, err := cs.decap(priv, pub, kemOutput)
	if err != nil {
		return nil, err
	}
	return newHPKEInfo(cs, nil).export(shared, externalInitLabel, cs.HashLen()), nil
}
