package mls

import (
	"crypto/cipher"
	"fmt"
	"math/bits"
	"testing"
)

// The floors do what the cryptography of an operation costs at the least, and
// nothing else: no parsing, no validation, no state. `make bench-plots` draws
// them beside the operations.

type floor struct {
	b       *testing.B
	cs      CipherSuite
	n       int
	key     SignaturePrivateKey
	pub     SignaturePublicKey
	msg     []byte
	sig     []byte
	priv    hpkePrivateKey
	hpkePub HPKEPublicKey
	ct      hpkeCiphertext
	sealer  *sealer
	opener  *opener
	node    []byte
	secret  secret
	kept    signers

	// Keys and signatures of many members, who do not have the same.
	pubs []SignaturePublicKey
	sigs [][]byte
}

func newFloor(b *testing.B, cs CipherSuite, n int) *floor {
	f := &floor{b: b, cs: cs, n: n, key: mustSignatureKey(b, cs), msg: make([]byte, 256), node: make([]byte, 200), secret: cs.hash(nil)}
	f.pub = f.key.Public()
	var err error
	if f.sig, err = SignWithLabel(cs, f.key, "label", f.msg); err != nil {
		b.Fatal(err)
	}
	for range 64 {
		key := mustSignatureKey(b, cs)
		sig, err := SignWithLabel(cs, key, "label", f.msg)
		if err != nil {
			b.Fatal(err)
		}
		f.pubs, f.sigs = append(f.pubs, key.Public()), append(f.sigs, sig)
	}
	f.priv, f.hpkePub = mustKeyPair(b, cs)
	f.sealer, f.opener = newSealer(cs, "label", f.msg), newOpener(cs, "label", f.msg)
	if f.ct, err = f.sealer.seal(f.hpkePub, f.secret, testRand(b)); err != nil {
		b.Fatal(err)
	}
	return f
}

// depth is the number of nodes above a leaf.
func (f *floor) depth() int { return bits.Len(uint(f.n - 1)) }

func (f *floor) sign() {
	if _, err := f.cs.sign(f.key, f.msg); err != nil {
		f.b.Fatal(err)
	}
}

func (f *floor) verify(n int) {
	for range n {
		if err := VerifyWithLabel(f.cs, f.pub, "label", f.msg, f.sig); err != nil {
			f.b.Fatal(err)
		}
	}
}

// verifyAll verifies the signatures of all members, as fast as that goes.
func (f *floor) verifyAll(each int) {
	err := verifyMany(f.cs, f.n,
		func(i int, add func(pub SignaturePublicKey, label string, content, sig []byte)) {
			for range each {
				add(f.pubs[i%64], "label", f.msg, f.sigs[i%64])
			}
		},
		func(i int) error {
			for range each {
				if err := VerifyWithLabel(f.cs, f.pubs[i%64], "label", f.msg, f.sigs[i%64]); err != nil {
					return err
				}
			}
			return nil
		})
	if err != nil {
		f.b.Fatal(err)
	}
}

func (f *floor) keyPairs(n int) {
	for range n {
		if _, _, err := f.cs.deriveKeyPair(f.secret); err != nil {
			f.b.Fatal(err)
		}
	}
}

func (f *floor) seal(n int) {
	rand := testRand(f.b)
	for range n {
		if _, err := f.sealer.seal(f.hpkePub, f.secret, rand); err != nil {
			f.b.Fatal(err)
		}
	}
}

func (f *floor) open() {
	if _, err := f.opener.open(f.priv, f.hpkePub, f.ct); err != nil {
		f.b.Fatal(err)
	}
}

func (f *floor) hash(n int) {
	for range n {
		f.cs.hash(f.node)
	}
}

// schedule is about the key schedule of an epoch.
func (f *floor) schedule() {
	for range 14 {
		f.cs.deriveSecret(f.secret, "epoch")
	}
}

func benchFloor(b *testing.B, f func(f *floor)) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		fl := newFloor(b, cs, n)
		for w := watch(b); w.loop(); {
			f(fl)
		}
	})
}

// BenchmarkFloorCreate: two signatures, one HPKE seal and two hashes a member.
func BenchmarkFloorCreate(b *testing.B) {
	benchFloor(b, func(f *floor) {
		f.verifyAll(2)
		_ = forkJoin(8, func(i int) error { f.seal((i+1)*f.n/8 - i*f.n/8); return nil })
		f.hash(2 * f.n)
		f.schedule()
		f.sign()
	})
}

// BenchmarkFloorJoin: one signature and two hashes a member, each parent's hash
// included.
func BenchmarkFloorJoin(b *testing.B) {
	benchFloor(b, func(f *floor) {
		f.verifyAll(1)
		f.hash(3 * f.n)
		f.schedule()
		f.open()
	})
}

// BenchmarkFloorCommitFull: a key pair, a seal and two hashes for each level.
func BenchmarkFloorCommitFull(b *testing.B) {
	benchFloor(b, func(f *floor) {
		f.keyPairs(f.depth() + 1)
		_ = forkJoin(2*f.depth(), func(i int) error { f.seal(i % 2); return nil })
		f.hash(2 * f.depth())
		f.schedule()
		f.sign()
		f.sign()
	})
}

func benchMessageFloor(b *testing.B, f func(fl *floor, text, sig []byte)) {
	for _, cs := range SupportedCipherSuites() {
		for _, size := range []int{32, 1024, 16384} {
			b.Run(fmt.Sprintf("suite=%d/size=%d", cs, size), func(b *testing.B) {
				fl := newFloor(b, cs, 2)
				text := make([]byte, size+200) // with the header and the group context
				sig, err := cs.sign(fl.key, text)
				if err != nil {
					b.Fatal(err)
				}
				for w := watch(b); w.loop(); {
					f(fl, text, sig)
				}
			})
		}
	}
}

// keys makes the keys of a message and of its sender data.
func (f *floor) keys() (message, senderData cipher.AEAD) {
	for range 3 {
		f.cs.expandWithLabel(f.secret, "nonce", nil, 12)
	}
	nk := f.cs.suite().nk
	return f.cs.newAEAD(f.cs.expandWithLabel(f.secret, "key", nil, nk)), f.cs.newAEAD(f.cs.expandWithLabel(f.secret, "key", nil, nk))
}

func (f *floor) encrypt(text []byte) {
	if _, err := f.cs.sign(f.key, text); err != nil {
		f.b.Fatal(err)
	}
	f.protect(text)
}

// protect seals a message and its sender data, for which opening stands, too:
// it costs as much.
func (f *floor) protect(text []byte) {
	message, senderData := f.keys()
	var nonce [aeadNonceSize]byte
	message.Seal(make([]byte, 0, len(text)+aeadOverhead), nonce[:], text, nil)
	senderData.Seal(make([]byte, 0, 12+aeadOverhead), nonce[:], text[:12], nil)
}

func (f *floor) decrypt(text, sig []byte) {
	if err := f.cs.verify(&f.kept, f.pub, text, sig); err != nil {
		f.b.Fatal(err)
	}
	f.protect(text)
}

// BenchmarkFloorEncrypt: a signature, two AEADs with their keys, and the next
// step of the ratchet.
func BenchmarkFloorEncrypt(b *testing.B) {
	benchMessageFloor(b, func(f *floor, text, _ []byte) { f.encrypt(text) })
}

// BenchmarkFloorDecrypt: the same for the receiver, who has the sender's key.
func BenchmarkFloorDecrypt(b *testing.B) {
	benchMessageFloor(b, func(f *floor, text, sig []byte) { f.decrypt(text, sig) })
}

// BenchmarkFloorMessage is both.
func BenchmarkFloorMessage(b *testing.B) {
	text := make([]byte, 32+200)
	benchFloor(b, func(f *floor) {
		sig, err := f.cs.sign(f.key, text)
		if err != nil {
			b.Fatal(err)
		}
		f.protect(text)
		f.decrypt(text, sig)
	})
}

// BenchmarkFloorProcessFull: two signatures, one open and the root's key pair.
func BenchmarkFloorProcessFull(b *testing.B) {
	benchFloor(b, func(f *floor) {
		f.verify(2)
		f.open()
		f.keyPairs(1)
		f.hash(2 * f.depth())
		f.schedule()
	})
}

// BenchmarkFloorPublicProcess: two signatures and the hashes of a path.
func BenchmarkFloorPublicProcess(b *testing.B) {
	benchFloor(b, func(f *floor) {
		f.verify(2)
		f.hash(2 * f.depth())
	})
}
