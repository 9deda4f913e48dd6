package mls

import (
	"crypto/ed25519"
	"sync"

	voi "github.com/oasisprotocol/curve25519-voi/primitives/ed25519"
)

// signersKept is how many keys one generation of a signers holds; there are at
// most twice as many, of about 1.6 kB each.
const signersKept = 64

// A signers keeps the Ed25519 keys of those who signed lately in the form that
// verifies fastest: decoded, with a table of multiples. What it holds follows
// from a key and nothing else, so that it never goes out of date: a member with
// a new key is looked up under that. The epochs of a group share one; it may be
// used from several goroutines. A nil *signers keeps nothing.
type signers struct {
	mu         sync.Mutex
	young, old map[[ed25519.PublicKeySize]byte]*voi.ExpandedPublicKey
}

// verify verifies one signature as verifyEd25519 does. The lengths of key and
// signature have been checked.
func (s *signers) verify(pub SignaturePublicKey, msg, sig []byte) bool {
	if s == nil {
		return verifyEd25519(pub, msg, sig)
	}
	id := [ed25519.PublicKeySize]byte(pub)
	k := s.get(id)
	known := k != nil
	if !known {
		var err error
		if k, err = voi.NewExpandedPublicKey(voi.PublicKey(pub)); err != nil {
			return ed25519.Verify(ed25519.PublicKey(pub), msg, sig)
		}
	}
	if !voi.VerifyExpandedWithOptions(k, msg, sig, verifyLikeStandardLibrary) {
		return ed25519.Verify(ed25519.PublicKey(pub), msg, sig)
	}
	// Only who can sign gets room here.
	if !known {
		s.put(id, k)
	}
	return true
}

// get returns a kept key, nil if it is not there.
func (s *signers) get(id [ed25519.PublicKeySize]byte) *voi.ExpandedPublicKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.young[id]
	if k == nil {
		if k = s.old[id]; k != nil {
			s.add(id, k)
		}
	}
	return k
}

func (s *signers) put(id [ed25519.PublicKeySize]byte, k *voi.ExpandedPublicKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(id, k)
}

// add puts a key among the young. When they are too many they become the old
// ones, and those that nobody asked for since then go.
func (s *signers) add(id [ed25519.PublicKeySize]byte, k *voi.ExpandedPublicKey) {
	if len(s.young) >= signersKept {
		s.young, s.old = nil, s.young
	}
	if s.young == nil {
		s.young = make(map[[ed25519.PublicKeySize]byte]*voi.ExpandedPublicKey)
	}
	s.young[id] = k
}
