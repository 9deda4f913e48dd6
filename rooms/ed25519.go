package rooms

import (
	"crypto/ed25519"

	"filippo.io/edwards25519"
)

// weakEd25519Key tells whether a public key is no point of the curve, is not in
// its only canonical form, or has small order. Under a key of small order one
// signature holds for any message, and crypto/ed25519 accepts it.
func weakEd25519Key(key []byte) bool {
	if len(key) != ed25519.PublicKeySize {
		return true
	}
	p, err := new(edwards25519.Point).SetBytes(key)
	if err != nil || string(p.Bytes()) != string(key) {
		return true
	}
	return p.MultByCofactor(p).Equal(edwards25519.NewIdentityPoint()) == 1
}

// verifyEd25519 checks a signature; keys and signatures of a wrong length or
// keys of small order are never right.
func verifyEd25519(key, message, sig []byte) bool {
	return len(sig) == ed25519.SignatureSize && !weakEd25519Key(key) && ed25519.Verify(ed25519.PublicKey(key), message, sig)
}
