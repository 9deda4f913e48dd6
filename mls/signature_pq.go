package mls

import (
	"github.com/cloudflare/circl/sign"
	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/cloudflare/circl/sign/mldsa/mldsa87"
)

// ML-DSA (FIPS 204) in experimental suites, with the code points of
// draft-ietf-tls-mldsa. The context is empty, and signatures are of the
// deterministic variant.
const (
	MLDSA44 SignatureScheme = 0x0904
	MLDSA65 SignatureScheme = 0x0905
	MLDSA87 SignatureScheme = 0x0906
)

// mldsa returns the parameter set of an ML-DSA scheme, nil for other schemes.
func (s SignatureScheme) mldsa() sign.Scheme {
	switch s {
	case MLDSA44:
		return mldsa44.Scheme()
	case MLDSA65:
		return mldsa65.Scheme()
	case MLDSA87:
		return mldsa87.Scheme()
	}
	return nil
}

// setMLDSA expands the seed of an ML-DSA key, whose size was checked.
func (k *signatureKey) setMLDSA(m sign.Scheme, seed []byte) error {
	pub, priv := m.DeriveKey(seed)
	raw, err := pub.MarshalBinary()
	k.pub, k.mldsa = raw, priv
	return err
}

// verifyMLDSA verifies a signature by a public key whose size was checked.
func verifyMLDSA(m sign.Scheme, pub SignaturePublicKey, msg, sig []byte) (bool, error) {
	if len(sig) != m.SignatureSize() {
		return false, wrongSignatureLength(len(sig), m.SignatureSize())
	}
	key, err := m.UnmarshalBinaryPublicKey(pub)
	if err != nil {
		return false, invalid("crypto/signature-key-malformed", "5.1.1", "%s public key: %w", m.Name(), err)
	}
	return m.Verify(key, msg, sig, nil), nil
}
