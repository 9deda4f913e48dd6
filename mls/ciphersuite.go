package mls

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"

	"golang.org/x/crypto/chacha20poly1305"
)

// ProtocolVersion is the version of MLS (RFC 9420, Section 6).
type ProtocolVersion uint16

// MLS10 is the only version of MLS there is.
const MLS10 ProtocolVersion = 1

// A CipherSuite says which algorithms a group uses (RFC 9420, Section 5.1).
type CipherSuite uint16

// The cipher suites of RFC 9420, Section 17.1, under the names given there.
const (
	MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519        CipherSuite = 1
	MLS_128_DHKEMP256_AES128GCM_SHA256_P256             CipherSuite = 2
	MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519 CipherSuite = 3
	MLS_256_DHKEMX448_AES256GCM_SHA512_Ed448            CipherSuite = 4
	MLS_256_DHKEMP521_AES256GCM_SHA512_P521             CipherSuite = 5
	MLS_256_DHKEMX448_CHACHA20POLY1305_SHA512_Ed448     CipherSuite = 6
	MLS_256_DHKEMP384_AES256GCM_SHA384_P384             CipherSuite = 7
)

// A SignatureScheme names a signature algorithm by its TLS code point (RFC
// 8446, Section 4.2.3).
type SignatureScheme uint16

// Signature schemes of the cipher suites.
const (
	ECDSAWithP256AndSHA256 SignatureScheme = 0x0403
	ECDSAWithP384AndSHA384 SignatureScheme = 0x0503
	ECDSAWithP521AndSHA512 SignatureScheme = 0x0603
	Ed25519                SignatureScheme = 0x0807
	Ed448                  SignatureScheme = 0x0808
)

// A hashID is one of the hash functions of the suites.
type hashID uint8

const (
	hashSHA256 hashID = iota + 1
	hashSHA384
	hashSHA512
)

// An aeadID is one of the AEADs of the suites, with RFC 9180's number.
type aeadID uint16

const (
	aeadAES128GCM        aeadID = 1
	aeadAES256GCM        aeadID = 2
	aeadChaCha20Poly1305 aeadID = 3
)

// aeadNonceSize and aeadOverhead are the same for all AEADs of the suites.
const (
	aeadNonceSize = 12
	aeadOverhead  = 16
)

// A suite is the row of the table that describes a CipherSuite.
type suite struct {
	name      string
	kem       *kem
	kdf       uint16 // RFC 9180, Section 7.2
	hash      hashID
	nh        int
	aead      aeadID
	nk        int
	signature SignatureScheme
	kemID     [5]byte  // "KEM" and the KEM's number
	hpkeID    [10]byte // "HPKE" and the numbers of KEM, KDF and AEAD
}

// suites is the table of all cipher suites (RFC 9420, Section 17.1).
var suites = [...]suite{
	1: newSuite("MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519", &kemX25519, 1, hashSHA256, 32, aeadAES128GCM, 16, Ed25519),
	2: newSuite("MLS_128_DHKEMP256_AES128GCM_SHA256_P256", &kemP256, 1, hashSHA256, 32, aeadAES128GCM, 16, ECDSAWithP256AndSHA256),
	3: newSuite("MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519", &kemX25519, 1, hashSHA256, 32, aeadChaCha20Poly1305, 32, Ed25519),
	4: newSuite("MLS_256_DHKEMX448_AES256GCM_SHA512_Ed448", &kemX448, 3, hashSHA512, 64, aeadAES256GCM, 32, Ed448),
	5: newSuite("MLS_256_DHKEMP521_AES256GCM_SHA512_P521", &kemP521, 3, hashSHA512, 64, aeadAES256GCM, 32, ECDSAWithP521AndSHA512),
	6: newSuite("MLS_256_DHKEMX448_CHACHA20POLY1305_SHA512_Ed448", &kemX448, 3, hashSHA512, 64, aeadChaCha20Poly1305, 32, Ed448),
	7: newSuite("MLS_256_DHKEMP384_AES256GCM_SHA384_P384", &kemP384, 2, hashSHA384, 48, aeadAES256GCM, 32, ECDSAWithP384AndSHA384),
}

func newSuite(name string, k *kem, kdf uint16, h hashID, nh int, aead aeadID, nk int, sig SignatureScheme) suite {
	s := suite{name: name, kem: k, kdf: kdf, hash: h, nh: nh, aead: aead, nk: nk, signature: sig}
	binary.BigEndian.AppendUint16(append(s.kemID[:0], "KEM"...), k.id)
	b := binary.BigEndian.AppendUint16(append(s.hpkeID[:0], "HPKE"...), k.id)
	b = binary.BigEndian.AppendUint16(b, kdf)
	binary.BigEndian.AppendUint16(b, uint16(aead))
	return s
}

// SupportedCipherSuites returns the suites of RFC 9420 by their numbers, all of
// which this build can use. Experimental suites are not among them.
func SupportedCipherSuites() []CipherSuite {
	var out []CipherSuite
	for i := range suites {
		if cs := CipherSuite(i); cs.Supported() {
			out = append(out, cs)
		}
	}
	return out
}

// Supported reports whether this build can use the suite without further ado:
// false for unknown and for Experimental suites.
func (cs CipherSuite) Supported() bool {
	return int(cs) < len(suites) && suites[cs].kem != nil
}

// row returns the suite's row of the tables, nil if it is unknown.
func (cs CipherSuite) row() *suite {
	switch {
	case cs.Supported():
		return &suites[cs]
	case cs.Experimental():
		return &experimentalSuites[cs-experimentalBase]
	}
	return nil
}

// check refuses suites that are unknown or that this build cannot use. Whether
// an experimental suite may be used is for Config.checkSuite to say.
func (cs CipherSuite) check() error {
	if cs.row() != nil {
		return nil
	}
	// RFC 9420, Section 17.1: suites for private use mean something, but
	// not to us; all others are reserved, GREASE or not assigned.
	if cs >= 0xf000 {
		return invalid("crypto/cipher-suite-unsupported", "5.1", "cipher suite %#04x is for private use and not part of this build; use one of %v", uint16(cs), SupportedCipherSuites())
	}
	return invalid("crypto/cipher-suite-unknown", "5.1", "cipher suite %#04x is unknown", uint16(cs))
}

// suite returns the row of a suite that passed check.
func (cs CipherSuite) suite() *suite {
	su := cs.row()
	if su == nil {
		panic(fmt.Sprintf("mls: internal: unchecked cipher suite %#04x", uint16(cs)))
	}
	return su
}

// String returns the name that RFC 9420, or the draft of an experimental suite,
// gives the suite.
func (cs CipherSuite) String() string {
	if su := cs.row(); su != nil {
		return su.name
	}
	return fmt.Sprintf("CipherSuite(%#04x)", uint16(cs))
}

// SignatureScheme returns the suite's signature scheme, or 0 for a suite that
// is unknown.
func (cs CipherSuite) SignatureScheme() SignatureScheme {
	if su := cs.row(); su != nil {
		return su.signature
	}
	return 0
}

// HashLen returns the size of the suite's hash, and so of its secrets and MACs
// (KDF.Nh); 0 for a suite that is unknown.
func (cs CipherSuite) HashLen() int {
	if su := cs.row(); su != nil {
		return su.nh
	}
	return 0
}

// String returns the name of the scheme in the TLS registry.
func (s SignatureScheme) String() string {
	switch s {
	case ECDSAWithP256AndSHA256:
		return "ecdsa_secp256r1_sha256"
	case ECDSAWithP384AndSHA384:
		return "ecdsa_secp384r1_sha384"
	case ECDSAWithP521AndSHA512:
		return "ecdsa_secp521r1_sha512"
	case Ed25519:
		return "ed25519"
	case Ed448:
		return "ed448"
	case MLDSA44:
		return "mldsa44"
	case MLDSA65:
		return "mldsa65"
	case MLDSA87:
		return "mldsa87"
	}
	return fmt.Sprintf("SignatureScheme(%#04x)", uint16(s))
}

func (h hashID) new() hash.Hash {
	switch h {
	case hashSHA256:
		return sha256.New()
	case hashSHA384:
		return sha512.New384()
	default:
		return sha512.New()
	}
}

func (h hashID) size() int {
	switch h {
	case hashSHA256:
		return sha256.Size
	case hashSHA384:
		return sha512.Size384
	default:
		return sha512.Size
	}
}

func (h hashID) blockSize() int {
	if h == hashSHA256 {
		return sha256.BlockSize
	}
	return sha512.BlockSize
}

// sum appends the hash of data to b.
func (h hashID) sum(b, data []byte) []byte {
	switch h {
	case hashSHA256:
		d := sha256.Sum256(data)
		return append(b, d[:]...)
	case hashSHA384:
		d := sha512.Sum384(data)
		return append(b, d[:]...)
	default:
		d := sha512.Sum512(data)
		return append(b, d[:]...)
	}
}

// hmac appends HMAC(key, parts) to b (RFC 2104). The standard library's HMAC
// allocates its states anew for each key, and MLS hardly uses a key twice.
func (h hashID) hmac(b, key []byte, parts ...[]byte) []byte {
	var stack [512]byte
	var digest [sha512.Size]byte
	size := h.blockSize()
	if len(key) > size {
		key = h.sum(digest[:0], key)
	}
	buf := append(stack[:0], key...)
	buf = append(buf, zeros[:size-len(key)]...)
	for i := range buf {
		buf[i] ^= 0x36
	}
	for _, p := range parts {
		buf = append(buf, p...)
	}
	inner := h.sum(digest[:0], buf)
	buf = buf[:size]
	for i := range buf {
		buf[i] ^= 0x36 ^ 0x5c
	}
	buf = append(buf, inner...)
	b = h.sum(b, buf)
	clear(stack[:size])
	return b
}

func totalLen(parts [][]byte) int {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	return n
}

var zeros [sha512.BlockSize]byte

// hash returns the hash of the parts one after the other.
func (cs CipherSuite) hash(parts ...[]byte) []byte {
	h := cs.suite().hash
	out := make([]byte, 0, h.size())
	if len(parts) == 1 {
		return h.sum(out, parts[0])
	}
	if totalLen(parts) > 1024 {
		d := h.new()
		for _, p := range parts {
			d.Write(p)
		}
		return d.Sum(out)
	}
	var stack [1024]byte
	buf := stack[:0]
	for _, p := range parts {
		buf = append(buf, p...)
	}
	return h.sum(out, buf)
}

// mac returns the suite's MAC over the parts (RFC 9420, Section 5.1).
func (cs CipherSuite) mac(key secret, parts ...[]byte) []byte {
	h := cs.suite().hash
	if totalLen(parts) > 16<<10 {
		// Long Commits are not copied.
		m := hmac.New(h.new, key)
		for _, p := range parts {
			m.Write(p)
		}
		return m.Sum(nil)
	}
	return h.hmac(make([]byte, 0, h.size()), key, parts...)
}

// verifyMAC compares in constant time, and the length first.
func (cs CipherSuite) verifyMAC(key secret, tag []byte, parts ...[]byte) bool {
	if len(tag) != cs.HashLen() {
		return false
	}
	return hmac.Equal(tag, cs.mac(key, parts...))
}

// extract is KDF.Extract, which is HKDF-Extract (RFC 5869).
func (cs CipherSuite) extract(salt, ikm []byte) secret {
	h := cs.suite().hash
	return h.hmac(make([]byte, 0, h.size()), salt, ikm)
}

// expand is KDF.Expand, which is HKDF-Expand. n is at most 255 times Nh.
func (cs CipherSuite) expand(prk, info []byte, n int) secret {
	h := cs.suite().hash
	size := h.size()
	if n > 255*size {
		panic("mls: internal: HKDF output too long")
	}
	out := make(secret, 0, (n+size-1)/size*size)
	var prev []byte
	for i := byte(1); len(out) < n; i++ {
		ctr := [1]byte{i}
		out = h.hmac(out, prk, prev, info, ctr[:])
		prev = out[len(out)-size:]
	}
	clear(out[n:])
	return out[:n:n]
}

// expandWithLabel is ExpandWithLabel (RFC 9420, Section 8).
func (cs CipherSuite) expandWithLabel(s secret, label string, context []byte, n int) secret {
	var stack [256]byte
	b := binary.BigEndian.AppendUint16(stack[:0], uint16(n))
	b = appendVarint(b, len("MLS 1.0 ")+len(label))
	b = append(b, "MLS 1.0 "...)
	b = append(b, label...)
	b = appendOpaqueVec(b, context)
	return cs.expand(s, b, n)
}

// deriveSecret is DeriveSecret (RFC 9420, Section 8).
func (cs CipherSuite) deriveSecret(s secret, label string) secret {
	return cs.expandWithLabel(s, label, nil, cs.HashLen())
}

// deriveTreeSecret is DeriveTreeSecret (RFC 9420, Section 9).
func (cs CipherSuite) deriveTreeSecret(s secret, label string, generation uint32, n int) secret {
	var ctx [4]byte
	binary.BigEndian.PutUint32(ctx[:], generation)
	return cs.expandWithLabel(s, label, ctx[:], n)
}

// A KeyPackageRef names a KeyPackage (RFC 9420, Section 5.2).
type KeyPackageRef []byte

// A ProposalRef names a proposal that was sent before (RFC 9420, Section 5.2).
type ProposalRef []byte

// RefHash names an object by its hash (RFC 9420, Section 5.2). It panics on a
// suite that is not Supported.
func RefHash(cs CipherSuite, label string, value []byte) []byte {
	b := appendOpaqueVec(make([]byte, 0, 1+len(label)+4+len(value)), label)
	return cs.hash(appendOpaqueVec(b, value))
}

// newAEAD returns the suite's AEAD for a key of the right size.
func (cs CipherSuite) newAEAD(key secret) cipher.AEAD {
	var a cipher.AEAD
	var err error
	if cs.suite().aead == aeadChaCha20Poly1305 {
		a, err = chacha20poly1305.New(key)
	} else {
		var block cipher.Block
		if block, err = aes.NewCipher(key); err == nil {
			a, err = cipher.NewGCM(block)
		}
	}
	if err != nil || len(key) != cs.suite().nk {
		panic("mls: internal: AEAD key of a wrong size")
	}
	return a
}

// aeadSeal encrypts with a key and nonce that are used this once.
func (cs CipherSuite) aeadSeal(key, nonce secret, aad, plaintext []byte) []byte {
	return cs.newAEAD(key).Seal(make([]byte, 0, len(plaintext)+aeadOverhead), nonce, plaintext, aad)
}

// aeadOpen decrypts; ok is false when anything was altered.
func (cs CipherSuite) aeadOpen(key, nonce secret, aad, ciphertext []byte) (plaintext []byte, ok bool) {
	if len(ciphertext) < aeadOverhead {
		return nil, false
	}
	return cs.aeadOpenTo(make([]byte, 0, len(ciphertext)-aeadOverhead), key, nonce, aad, ciphertext)
}

// aeadOpenTo appends what it decrypts to b.
func (cs CipherSuite) aeadOpenTo(b []byte, key, nonce secret, aad, ciphertext []byte) ([]byte, bool) {
	out, err := cs.newAEAD(key).Open(b, nonce, ciphertext, aad)
	return out, err == nil
}
