package mls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"io"

	"filippo.io/edwards25519"
	"github.com/cloudflare/circl/ecc/goldilocks"
	"github.com/cloudflare/circl/sign"
	"github.com/cloudflare/circl/sign/ed448"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// A SignaturePublicKey verifies signatures (RFC 9420, Section 5.1.1): an
// uncompressed point for ECDSA, the encoding of RFC 8032 for EdDSA.
type SignaturePublicKey []byte

// A SignaturePrivateKey signs for a client. It prints as [secret]; in a field
// that is not exported, whose methods package fmt does not call, as an address.
type SignaturePrivateKey struct{ key **signatureKey }

// signatureKey is behind two pointers: inside of other values package fmt follows
// none, and one where the verb is wrong for it.
type signatureKey struct {
	scheme SignatureScheme
	raw    secret
	pub    SignaturePublicKey
	ed25   ed25519.PrivateKey
	ed448  ed448.PrivateKey
	mldsa  sign.PrivateKey
	ecdsa  *ecdsa.PrivateKey
}

// String returns "[secret]".
func (SignaturePrivateKey) String() string { return redacted }

// GoString returns "[secret]".
func (SignaturePrivateKey) GoString() string { return redacted }

// Format writes "[secret]", whatever the verb.
func (SignaturePrivateKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalJSON returns "[secret]".
func (SignaturePrivateKey) MarshalJSON() ([]byte, error) { return secret(nil).MarshalJSON() }

// MarshalText returns "[secret]".
func (SignaturePrivateKey) MarshalText() ([]byte, error) { return secret(nil).MarshalText() }

// scheme parameters of ECDSA and EdDSA keys.
func (s SignatureScheme) curve() elliptic.Curve {
	switch s {
	case ECDSAWithP256AndSHA256:
		return elliptic.P256()
	case ECDSAWithP384AndSHA384:
		return elliptic.P384()
	case ECDSAWithP521AndSHA512:
		return elliptic.P521()
	}
	return nil
}

// privateKeySize returns the size of a raw private key: an EdDSA or ML-DSA seed,
// or an ECDSA scalar at full length.
func (s SignatureScheme) privateKeySize() int {
	if m := s.mldsa(); m != nil {
		return m.SeedSize()
	}
	switch s {
	case Ed25519:
		return ed25519.SeedSize
	case Ed448:
		return ed448.SeedSize
	}
	return (s.curve().Params().BitSize + 7) / 8
}

// publicKeySize returns the size of a public key.
func (s SignatureScheme) publicKeySize() int {
	if m := s.mldsa(); m != nil {
		return m.PublicKeySize()
	}
	switch s {
	case Ed25519:
		return ed25519.PublicKeySize
	case Ed448:
		return ed448.PublicKeySize
	}
	return 1 + 2*((s.curve().Params().BitSize+7)/8)
}

// GenerateSignatureKey makes a signature key for a suite. A nil rand means
// crypto/rand.
func GenerateSignatureKey(cs CipherSuite, rand io.Reader) (SignaturePrivateKey, error) {
	if err := cs.check(); err != nil {
		return SignaturePrivateKey{}, err
	}
	if rand == nil {
		rand = (*Config)(nil).rand()
	}
	scheme := cs.SignatureScheme()
	raw := make(secret, scheme.privateKeySize())
	defer raw.zero()
	// An ECDSA candidate is out of range with a chance below 2^-31.
	for range 64 {
		if _, err := io.ReadFull(rand, raw); err != nil {
			return SignaturePrivateKey{}, fmt.Errorf("mls: reading randomness: %w", err)
		}
		if scheme == ECDSAWithP521AndSHA512 {
			raw[0] &= 0x01
		}
		if k, err := ParseSignaturePrivateKey(cs, raw); err == nil {
			return k, nil
		}
	}
	return SignaturePrivateKey{}, fmt.Errorf("mls: the source of randomness gives no signature key for %v", cs)
}

// ParseSignaturePrivateKey reads what Bytes returned: the seed of an EdDSA or
// ML-DSA key, or the scalar of an ECDSA key, big-endian and at full length.
func ParseSignaturePrivateKey(cs CipherSuite, raw []byte) (SignaturePrivateKey, error) {
	if err := cs.check(); err != nil {
		return SignaturePrivateKey{}, err
	}
	k := &signatureKey{scheme: cs.SignatureScheme()}
	if len(raw) != k.scheme.privateKeySize() {
		return SignaturePrivateKey{}, fmt.Errorf("mls: %v private key of %d bytes, want %d", k.scheme, len(raw), k.scheme.privateKeySize())
	}
	k.raw = bytes.Clone(raw)
	switch k.scheme {
	case Ed25519:
		k.ed25 = ed25519.NewKeyFromSeed(raw)
		k.pub = bytes.Clone(k.ed25[ed25519.SeedSize:])
	case Ed448:
		k.ed448 = ed448.NewKeyFromSeed(raw)
		k.pub = bytes.Clone(k.ed448[ed448.SeedSize:])
	case MLDSA44, MLDSA65, MLDSA87:
		if err := k.setMLDSA(k.scheme.mldsa(), raw); err != nil {
			return SignaturePrivateKey{}, fmt.Errorf("mls: %v private key: %w", k.scheme, err)
		}
	default:
		var err error
		if k.ecdsa, err = ecdsa.ParseRawPrivateKey(k.scheme.curve(), raw); err != nil {
			return SignaturePrivateKey{}, fmt.Errorf("mls: %v private key is out of range: %w", k.scheme, err)
		}
		if k.pub, err = k.ecdsa.PublicKey.Bytes(); err != nil {
			return SignaturePrivateKey{}, fmt.Errorf("mls: %v private key: %w", k.scheme, err)
		}
	}
	return SignaturePrivateKey{&k}, nil
}

// noSignatureKey is that of the zero SignaturePrivateKey, which signs nothing.
var noSignatureKey signatureKey

func (k SignaturePrivateKey) get() *signatureKey {
	if k.key == nil {
		return &noSignatureKey
	}
	return *k.key
}

// Bytes returns the raw private key, for storage; nil for the zero value.
func (k SignaturePrivateKey) Bytes() []byte { return bytes.Clone(k.get().raw) }

// Public returns the public key; nil for the zero value.
func (k SignaturePrivateKey) Public() SignaturePublicKey { return bytes.Clone(k.get().pub) }

// signedContent is the SignContent of RFC 9420, Section 5.1.2.
func signedContent(label string, content []byte) []byte {
	return appendSignedContent(make([]byte, 0, 2*4+len("MLS 1.0 ")+len(label)+len(content)), label, content)
}

func appendSignedContent(b []byte, label string, content []byte) []byte {
	b = appendVarint(b, len("MLS 1.0 ")+len(label))
	b = append(append(b, "MLS 1.0 "...), label...)
	return appendOpaqueVec(b, content)
}

// SignWithLabel signs content under a label that says what it is (RFC 9420,
// Section 5.1.2).
func SignWithLabel(cs CipherSuite, key SignaturePrivateKey, label string, content []byte) ([]byte, error) {
	if err := cs.check(); err != nil {
		return nil, err
	}
	return cs.sign(key, signedContent(label, content))
}

// sign signs an encoded SignContent.
func (cs CipherSuite) sign(key SignaturePrivateKey, msg []byte) ([]byte, error) {
	k := key.get()
	if k.scheme != cs.SignatureScheme() {
		return nil, fmt.Errorf("mls: a %v key cannot sign for %v; make one with GenerateSignatureKey", k.scheme, cs)
	}
	switch k.scheme {
	case Ed25519:
		return signEd25519(k.ed25, msg), nil
	case Ed448:
		return ed448.Sign(k.ed448, msg, ""), nil
	case MLDSA44, MLDSA65, MLDSA87:
		return k.scheme.mldsa().Sign(k.mldsa, msg, nil), nil
	}
	// The nonce comes from the key, the message and crypto/rand: ECDSA has
	// no use for a source of randomness that callers can break.
	sig, err := ecdsa.SignASN1(rand.Reader, k.ecdsa, cs.hash(msg))
	if err != nil {
		return nil, fmt.Errorf("mls: signing: %w", err)
	}
	return sig, nil
}

// VerifyWithLabel verifies a signature that SignWithLabel made (RFC 9420,
// Section 5.1.2). A nil error means that it is good.
func VerifyWithLabel(cs CipherSuite, pub SignaturePublicKey, label string, content, sig []byte) error {
	if err := cs.check(); err != nil {
		return err
	}
	return cs.verify(nil, pub, signedContent(label, content), sig)
}

// verify verifies the signature of an encoded SignContent.
func (cs CipherSuite) verify(kept *signers, pub SignaturePublicKey, msg, sig []byte) error {
	scheme := cs.SignatureScheme()
	if err := scheme.checkPublicKey(pub); err != nil {
		return err
	}
	ok := false
	switch scheme {
	case Ed25519:
		if len(sig) != ed25519.SignatureSize {
			return wrongSignatureLength(len(sig), ed25519.SignatureSize)
		}
		ok = kept.verify(pub, msg, sig)
	case Ed448:
		if len(sig) != ed448.SignatureSize {
			return wrongSignatureLength(len(sig), ed448.SignatureSize)
		}
		ok = ed448.Verify(ed448.PublicKey(pub), msg, sig, "")
	case MLDSA44, MLDSA65, MLDSA87:
		var err error
		if ok, err = verifyMLDSA(scheme.mldsa(), pub, msg, sig); err != nil {
			return err
		}
	default:
		if len(sig) == 0 {
			return wrongSignatureLength(0, 70)
		}
		key, err := ecdsa.ParseUncompressedPublicKey(scheme.curve(), pub)
		if err != nil {
			return invalid("crypto/signature-key-malformed", "5.1.1", "%v public key: %w", scheme, err)
		}
		ok = ecdsa.VerifyASN1(key, cs.hash(msg), sig)
	}
	if ok {
		return nil
	}
	return scheme.explain(pub, sig)
}

func wrongSignatureLength(got, want int) error {
	return invalid("crypto/signature-wrong-length", "5.1.2", "signature of %d bytes, want %d", got, want)
}

// checkPublicKey makes the cheap checks that must come before each
// verification.
func (s SignatureScheme) checkPublicKey(pub SignaturePublicKey) error {
	if len(pub) != s.publicKeySize() {
		return invalid("crypto/signature-key-malformed", "5.1.1", "%v public key of %d bytes, want %d", s, len(pub), s.publicKeySize())
	}
	low := false
	switch s {
	case Ed25519:
		y := [32]byte(pub)
		y[31] &= 0x7f
		for i := range lowOrderEd25519 {
			low = low || y == lowOrderEd25519[i]
		}
	case Ed448:
		// Points of order 1, 2 and 4 have y = 1, -1 and 0.
		if pub[56]&0x7f == 0 {
			for i := range lowOrder448 {
				low = low || bytes.Equal(pub[:56], lowOrder448[i][:])
			}
		}
	}
	if low {
		// With such a key a signature can be good for every message.
		return invalid("crypto/signature-key-low-order", "", "%v public key of small order", s)
	}
	return nil
}

// lowOrderEd25519 holds the y-coordinates of the points of small order, and
// the other encodings of 0 and 1.
var lowOrderEd25519 = [...][32]byte{
	{},
	{1},
	{0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05},
	{0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a},
	p25519(0xec),
	p25519(0xed),
	p25519(0xee),
}

func (s SignatureScheme) decodePublicKey(pub SignaturePublicKey) error {
	var err error
	switch s {
	case Ed25519:
		_, err = new(edwards25519.Point).SetBytes(pub)
	case Ed448:
		_, err = goldilocks.FromBytes(pub)
	case MLDSA44, MLDSA65, MLDSA87:
		_, err = s.mldsa().UnmarshalBinaryPublicKey(pub)
	default:
		_, err = ecdsa.ParseUncompressedPublicKey(s.curve(), pub)
	}
	if err != nil {
		return invalid("crypto/signature-key-malformed", "5.1.1", "%v public key: %w", s, err)
	}
	return nil
}

// explain says why a signature is bad.
func (s SignatureScheme) explain(pub SignaturePublicKey, sig []byte) error {
	if err := s.decodePublicKey(pub); err != nil {
		return err
	}
	switch s {
	case Ed25519:
		// RFC 8032, Section 5.1.7: S is below the group's order, or
		// others could make a second signature from the first.
		if _, err := edwards25519.NewScalar().SetCanonicalBytes(sig[32:]); err != nil {
			return invalid("crypto/signature-noncanonical-s", "5.1.2", "Ed25519 signature whose S is not below the group's order")
		}
	case Ed448:
		if !belowOrder448(sig[57:]) {
			return invalid("crypto/signature-noncanonical-s", "5.1.2", "Ed448 signature whose S is not below the group's order")
		}
	case MLDSA44, MLDSA65, MLDSA87:
	default:
		// RFC 9420, Section 5.1.2: a DER-encoded ECDSA-Sig-Value.
		in := cryptobyte.String(sig)
		var seq cryptobyte.String
		var r, t []byte
		if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() || !seq.ReadASN1Integer(&r) || !seq.ReadASN1Integer(&t) || !seq.Empty() {
			return invalid("crypto/signature-not-der", "5.1.2", "ECDSA signature is not a DER ECDSA-Sig-Value")
		}
	}
	return invalid("crypto/signature-wrong", "5.1.2", "%v signature does not verify under this key, label and content", s)
}

// belowOrder448 reports whether a little-endian number of 57 bytes is below
// the order of Ed448's group.
func belowOrder448(s []byte) bool {
	order := goldilocks.Curve{}.Order()
	if s[56] != 0 {
		return false
	}
	for i := 55; i >= 0; i-- {
		if s[i] != order[i] {
			return s[i] < order[i]
		}
	}
	return false
}
