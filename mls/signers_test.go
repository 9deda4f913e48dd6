package mls

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"sync"
	"testing"
)

func signedBy(i int) (pub SignaturePublicKey, msg, sig []byte) {
	key := ed25519.NewKeyFromSeed(fmt.Appendf(nil, "%032d", i))
	msg = fmt.Appendf(nil, "message %d", i)
	return SignaturePublicKey(key.Public().(ed25519.PublicKey)), msg, signEd25519(key, msg)
}

func (s *signers) keeps(pub SignaturePublicKey) bool {
	id := [ed25519.PublicKeySize]byte(pub)
	return s.young[id] != nil || s.old[id] != nil
}

func TestSignersAreBoundedAndKeepTheLatest(t *testing.T) {
	s := new(signers)
	first, msg, sig := signedBy(0)
	for i := range 5 * signersKept {
		pub, m, g := signedBy(i)
		if !s.verify(pub, m, g) {
			t.Fatalf("signature %d is refused", i)
		}
		if !s.keeps(pub) {
			t.Fatalf("key %d is not kept", i)
		}
		if n := len(s.young) + len(s.old); n > 2*signersKept {
			t.Fatalf("%d keys are kept after %d", n, i+1)
		}
		// Who signs all the time stays.
		if !s.verify(first, msg, sig) || !s.keeps(first) {
			t.Fatalf("the first key is gone after %d", i+1)
		}
	}
	if early, _, _ := signedBy(1); s.keeps(early) {
		t.Error("a key that nobody used again is still there")
	}
}

func TestSignersKeepNobodyWhoCannotSign(t *testing.T) {
	s := new(signers)
	pub, msg, sig := signedBy(1)
	for i := range sig {
		if s.verify(pub, msg, flipped(sig, i)) {
			t.Fatalf("a signature with byte %d changed is good", i)
		}
	}
	if s.verify(pub, append(msg, 0), sig) {
		t.Fatal("a signature of another message is good")
	}
	if len(s.young)+len(s.old) != 0 {
		t.Error("a key is kept that verified nothing")
	}
	// Nor does a kept key make a bad signature good.
	if !s.verify(pub, msg, sig) || s.verify(pub, msg, flipped(sig, 3)) || s.verify(pub, append(msg, 0), sig) {
		t.Error("a kept key verifies otherwise")
	}
}

// A member's new key counts from the Commit that brings it, and the old one no
// longer, though it was kept.
func TestSignersFollowANewSignatureKey(t *testing.T) {
	const cs = MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	groups := newTestGroup(t, testConfig(t), cs, 3)
	alice, bob := groups[0], groups[1]
	for range 3 {
		if _, err := bob.Process(mustEncrypt(t, alice, "with the old key")); err != nil {
			t.Fatal(err)
		}
	}
	if !bob.signers.keeps(alice.signature.Public()) {
		t.Fatal("the key of a member who sent messages is not kept")
	}
	old, key := alice.signature, mustSignatureKey(t, cs)
	m, alice := mustCommit(t, alice, CommitOptions{NewSignatureKey: &key})
	bob = mustFollow(t, bob, m)
	alice.signature = old
	wantRule(t, refuse(t, bob, mustEncrypt(t, alice, "with the old key")), "framing/signature-invalid")
	alice.signature = key
	for range 2 {
		if _, err := bob.Process(mustEncrypt(t, alice, "with the new key")); err != nil {
			t.Fatal(err)
		}
	}
}

// Epochs share kept keys and may belong to different goroutines.
func TestSignersOfEpochsInSeveralGoroutines(t *testing.T) {
	const cs = MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	groups := newTestGroup(t, testConfig(t), cs, 4)
	reader := groups[3]
	var epochs []*Group
	var messages [][]*Message
	for range 4 {
		var list []*Message
		for _, g := range groups[:3] {
			list = append(list, mustEncrypt(t, g, "text"), mustEncrypt(t, g, "more"))
		}
		epochs, messages = append(epochs, reader), append(messages, list)
		m, next := mustCommit(t, groups[0], CommitOptions{})
		groups[0] = next
		for i := 1; i < 3; i++ {
			groups[i] = mustFollow(t, groups[i], m)
		}
		reader = mustFollow(t, reader, m)
	}
	if epochs[0].signers == nil || epochs[0].signers != reader.signers {
		t.Fatal("the epochs do not share their kept keys")
	}
	var wg sync.WaitGroup
	for i, g := range epochs {
		wg.Go(func() {
			for _, m := range messages[i] {
				if _, err := g.Process(m); err != nil {
					t.Errorf("epoch %d: %v", g.Epoch(), err)
				}
			}
		})
	}
	wg.Wait()
}

// The buffer in which a message is signed becomes the message, and that into
// which it is decrypted becomes what is verified: with all sizes, paddings and
// lengths of signature nothing is overwritten that is still wanted.
func TestPrivateMessagesOfAllSizes(t *testing.T) {
	for _, cs := range SupportedCipherSuites() {
		cfg := testConfig(t)
		groups := newTestGroup(t, cfg, cs, 2)
		sizes := []int{0, 1, 63, 64, 255, 16384}
		if cs == MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519 {
			for n := range 300 {
				sizes = append(sizes, n)
			}
		}
		for _, padding := range []int{0, 16, 256, 5000} {
			cfg.PaddingSize = padding
			for _, n := range sizes {
				for _, aad := range [][]byte{nil, bytes.Repeat([]byte("a"), 100)} {
					text := bytes.Repeat([]byte{0xa5}, n)
					raw, err := groups[0].Encrypt(text, aad)
					if err != nil {
						t.Fatal(err)
					}
					m := mustParse(t, raw)
					if padding > 0 && (len(m.private.ciphertext)-aeadOverhead)%padding != 0 {
						t.Errorf("%v: %d bytes of ciphertext, padded to %d", cs, len(m.private.ciphertext), padding)
					}
					if bytes.Contains(raw, []byte{0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5}) {
						t.Errorf("%v: plaintext of %d bytes in the message", cs, n)
					}
					// A second reading of the message is of the same bytes.
					before := groups[1].ratchets.appendTo(nil)
					for range 2 {
						groups[1].ratchets, _ = unmarshalSecretTree(cs, newReader(before))
						p, err := groups[1].Process(m)
						if err != nil {
							t.Fatalf("%v: %d bytes, padded to %d: %v", cs, n, padding, err)
						}
						got := p.(*ApplicationMessage)
						if !bytes.Equal(got.Plaintext, text) || !bytes.Equal(got.AuthenticatedData, aad) {
							t.Fatalf("%v: %d bytes, padded to %d: got %x", cs, n, padding, got.Plaintext)
						}
						if cap(got.Plaintext) != len(got.Plaintext) {
							t.Fatalf("%v: a plaintext that one can append to in place", cs)
						}
						clear(got.Plaintext)
					}
					if !bytes.Equal(raw, m.Raw()) {
						t.Fatalf("%v: processing changed the message", cs)
					}
				}
			}
		}
	}
}
