package mls

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"runtime"

	"github.com/oasisprotocol/curve25519-voi/curve"
	"github.com/oasisprotocol/curve25519-voi/curve/scalar"
	voi "github.com/oasisprotocol/curve25519-voi/primitives/ed25519"
)

// What a valid Ed25519 signature is, crypto/ed25519 decides: the equation
// without the cofactor, S below the order, R compared byte by byte. All members
// must agree about that, or a group falls apart. curve25519-voi does the work,
// because it is twice as fast; what it accepts is the same set, and what it
// refuses is shown to crypto/ed25519 before it is refused.
var verifyLikeStandardLibrary = &voi.Options{Verify: voi.VerifyOptionsStdLib}

func signEd25519(key ed25519.PrivateKey, msg []byte) []byte {
	return voi.Sign(voi.PrivateKey(key), msg)
}

// verifyEd25519 verifies one signature. The lengths of key and signature have
// been checked.
func verifyEd25519(pub SignaturePublicKey, msg, sig []byte) bool {
	return voi.VerifyWithOptions(voi.PublicKey(pub), msg, sig, verifyLikeStandardLibrary) ||
		ed25519.Verify(ed25519.PublicKey(pub), msg, sig)
}

const (
	// batchMin is the number of signatures from which a batch is faster.
	batchMin = 128

	// batchMax bounds the memory of a batch, which takes about 0.5 kB for each
	// key and signature. What a batch costs beside them is the same for all.
	batchMax = 8192

	// torsionBytes is how many times eight random sums of a batch's points
	// are tested for being in the group of prime order. A point that is not
	// passes each test with a chance of at most a half.
	torsionBytes = 5
)

// A batchEd25519 verifies many signatures at once. It is sound for the equation
// without the cofactor: it accepts only what verifyEd25519 accepts for each
// signature alone, short of a chance below 2^-39 that nobody can try out
// beforehand, as the random factors are drawn here. It may refuse what is valid
// (keys with a component of small order); then they are verified one by one.
type batchEd25519 struct {
	scalars []*scalar.Scalar
	points  []*curve.EdwardsPoint
	base    scalar.Scalar // the factor of the base point
	random  []byte
	terms   []batchTerm // room for the next points and their factors
	content []byte      // scratch

	lastKey SignaturePublicKey
	last    *scalar.Scalar // the factor of lastKey
	bad     bool
}

// A batchTerm is a point with its factor.
type batchTerm struct {
	point  curve.EdwardsPoint
	factor scalar.Scalar
}

// add takes in a signature. The key is usually that of the one before when a
// client has signed twice.
func (b *batchEd25519) add(pub SignaturePublicKey, msg, sig []byte) {
	if b.bad || len(pub) != ed25519.PublicKeySize || len(sig) != ed25519.SignatureSize || !scalar.ScMinimalVartime(sig[32:]) {
		b.bad = true
		return
	}
	b.content = append(append(append(b.content[:0], sig[:32]...), pub...), msg...)
	digest := sha512.Sum512(b.content)
	// z is odd or even at random, and below 2^128.
	var wide [32]byte
	copy(wide[:16], b.take(16))
	var k, s, z scalar.Scalar
	if _, err := k.SetBytesModOrderWide(digest[:]); err != nil {
		b.bad = true
		return
	}
	if _, err := s.SetCanonicalBytes(sig[32:]); err != nil {
		b.bad = true
		return
	}
	if _, err := z.SetBytesModOrder(wide[:]); err != nil {
		b.bad = true
		return
	}
	b.base.Add(&b.base, s.Mul(&s, &z))
	z.Neg(&z)
	k.Mul(&k, &z)
	if b.point(sig[:32], &z) == nil {
		return
	}
	if b.last != nil && string(b.lastKey) == string(pub) {
		b.last.Add(b.last, &k)
		return
	}
	if f := b.point(pub, &k); f != nil {
		b.lastKey, b.last = pub, f
	}
}

// point adds a point with a factor, and returns where the batch keeps the
// factor; nil if it is no point.
func (b *batchEd25519) point(encoded []byte, factor *scalar.Scalar) *scalar.Scalar {
	if len(b.terms) == 0 {
		b.terms = make([]batchTerm, 256)
	}
	t := &b.terms[0]
	var y curve.CompressedEdwardsY
	if _, err := y.SetBytes(encoded); err == nil && y.IsCanonicalVartime() {
		if _, err := t.point.SetCompressedY(&y); err == nil {
			t.factor.Set(factor)
			b.terms = b.terms[1:]
			b.points = append(b.points, &t.point)
			b.scalars = append(b.scalars, &t.factor)
			return &t.factor
		}
	}
	b.bad = true
	return nil
}

// take returns n random bytes.
func (b *batchEd25519) take(n int) []byte {
	if len(b.random) < n {
		b.random = make([]byte, 1<<14)
		// crypto/rand.Read does not fail: it ends the program instead.
		_, _ = rand.Read(b.random)
	}
	r := b.random[:n]
	b.random = b.random[n:]
	return r
}

// verify tells whether all signatures are good.
func (b *batchEd25519) verify() bool {
	if b.bad || !b.primeOrder() {
		return false
	}
	var sum curve.EdwardsPoint
	sum.MultiscalarMulVartime(append(b.scalars, &b.base), append(b.points, curve.ED25519_BASEPOINT_POINT))
	return sum.IsIdentity()
}

// primeOrder tells whether all points are in the group of prime order, where
// the equations with and without the cofactor are the same. It adds each point
// to a random half of 8·torsionBytes sums and tests these. Points with the same
// random byte are added once and belong to the same eight sums.
func (b *batchEd25519) primeOrder() bool {
	for range torsionBytes {
		var sums [256]curve.EdwardsPoint
		for i := range sums {
			sums[i].Identity()
		}
		r := b.take(len(b.points))
		for i, p := range b.points {
			s := &sums[r[i]]
			s.Add(s, p)
		}
		for half := len(sums) / 2; half > 0; half /= 2 {
			var t curve.EdwardsPoint
			t.Identity()
			for i := range half {
				t.Add(&t, &sums[half+i])
				sums[i].Add(&sums[i], &sums[half+i])
			}
			if !t.IsTorsionFree() {
				return false
			}
		}
	}
	return true
}

// verifyMany verifies n things, each of which has one or more signatures:
// each(i, f) calls f for every one of them, and one(i) verifies thing i alone
// and says what is wrong with it. It returns the error of the first that has
// one, and uses all processors.
func verifyMany(cs CipherSuite, n int, each func(i int, f func(pub SignaturePublicKey, label string, content, sig []byte)), one func(i int) error) error {
	if cs.SignatureScheme() != Ed25519 || n < batchMin {
		return forkJoin(n, one)
	}
	workers := min(runtime.GOMAXPROCS(0), n/batchMin)
	parts := workers * ((n + workers*batchMax - 1) / (workers * batchMax))
	return forkJoinWith(workers, parts, func(k int) error {
		from, to := k*n/parts, (k+1)*n/parts
		var b batchEd25519
		var signed []byte
		for i := from; i < to; i++ {
			each(i, func(pub SignaturePublicKey, label string, content, sig []byte) {
				if Ed25519.checkPublicKey(pub) != nil {
					b.bad = true
					return
				}
				signed = appendSignedContent(signed[:0], label, content)
				b.add(pub, signed, sig)
			})
		}
		if b.verify() {
			return nil
		}
		for i := from; i < to; i++ {
			if err := one(i); err != nil {
				return err
			}
		}
		return nil
	})
}
