package mls

import (
	"crypto/sha3"
	"encoding/binary"
	"fmt"
	"io"

	circlkem "github.com/cloudflare/circl/kem"
	"github.com/cloudflare/circl/kem/mlkem/mlkem1024"
	"github.com/cloudflare/circl/kem/mlkem/mlkem768"
)

// A pqKEM is ML-KEM, alone or together with a Diffie-Hellman group, as
// draft-ietf-hpke-pq defines it for HPKE. A private key is a seed.
type pqKEM struct {
	mlkem circlkem.Scheme
	dh    *kem   // the other half of a hybrid, nil for ML-KEM alone
	label string // of the hybrid, to which its shared secrets are bound
}

// The KEMs of draft-ietf-hpke-pq that MLS has suites for.
var (
	kemMLKEM768       = newPQKEM(0x0041, mlkem768.Scheme(), nil, "")
	kemMLKEM1024      = newPQKEM(0x0042, mlkem1024.Scheme(), nil, "")
	kemMLKEM768P256   = newPQKEM(0x0050, mlkem768.Scheme(), &kemP256, "MLKEM768-P256")
	kemMLKEM1024P384  = newPQKEM(0x0051, mlkem1024.Scheme(), &kemP384, "MLKEM1024-P384")
	kemMLKEM768X25519 = newPQKEM(0x647a, mlkem768.Scheme(), &kemX25519, `\.//^\`) // X-Wing
)

// pqSeed is the size of the seed of a hybrid's private key, and of each half of
// the randomness of its Encap.
const pqSeed = 32

func newPQKEM(id uint16, m circlkem.Scheme, dh *kem, label string) kem {
	k := kem{
		id:      id,
		npk:     m.PublicKeySize(),
		nsk:     m.SeedSize(),
		nenc:    m.CiphertextSize(),
		nrand:   m.EncapsulationSeedSize(),
		nsecret: m.SharedKeySize(),
		pq:      &pqKEM{mlkem: m, dh: dh, label: label},
	}
	if dh != nil {
		k.npk += dh.npk
		k.nenc += dh.npk
		k.nsk = pqSeed
		k.nrand += pqSeed
	}
	return k
}

// split returns the halves of a public key or KEM output.
func split(b []byte, first int) (pq, dh []byte) { return b[:first:first], b[first:] }

// keys expands a private key: ML-KEM's keys and the scalar of the other half.
func (p *pqKEM) keys(seed hpkePrivateKey) (pub circlkem.PublicKey, priv circlkem.PrivateKey, scalar hpkePrivateKey, err error) {
	if p.dh == nil {
		pub, priv = p.mlkem.DeriveKeyPair(seed)
		return pub, priv, nil, nil
	}
	s := sha3.NewSHAKE256()
	_, _ = s.Write(seed)
	m := make(secret, p.mlkem.SeedSize())
	_, _ = s.Read(m)
	pub, priv = p.mlkem.DeriveKeyPair(m)
	m.zero()
	scalar, err = p.scalar(s)
	return pub, priv, scalar, err
}

// scalar reads a private key of the Diffie-Hellman half: the first candidate
// that is in range.
func (p *pqKEM) scalar(s *sha3.SHAKE) (hpkePrivateKey, error) {
	scalar := make(hpkePrivateKey, p.dh.nsk)
	for range 256 {
		_, _ = s.Read(scalar)
		if p.dh.curve == nil {
			return scalar, nil
		}
		if _, err := p.dh.curve.NewPrivateKey(scalar); err == nil {
			return scalar, nil
		}
	}
	return nil, fmt.Errorf("mls: no key pair can be derived from this secret")
}

// public returns the public key of a private key of the right size.
func (p *pqKEM) public(priv hpkePrivateKey) (HPKEPublicKey, error) {
	pub, _, scalar, err := p.keys(priv)
	if err != nil {
		return nil, err
	}
	out, err := pub.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("mls: HPKE private key: %w", err)
	}
	if p.dh == nil {
		return out, nil
	}
	half, err := p.dh.public(scalar)
	scalar.zero()
	return append(out, half...), err
}

// validate refuses what is no public key. pub has the right size.
func (p *pqKEM) validate(pub HPKEPublicKey) error {
	_, half, err := p.parse(pub)
	if err != nil || p.dh == nil {
		return err
	}
	return p.dh.validate(half)
}

// parse reads a public key of the right size.
func (p *pqKEM) parse(pub HPKEPublicKey) (circlkem.PublicKey, HPKEPublicKey, error) {
	m, half := split(pub, p.mlkem.PublicKeySize())
	// FIPS 203, Section 7.2: coefficients are reduced modulo q.
	k, err := p.mlkem.UnmarshalBinaryPublicKey(m)
	if err != nil {
		return nil, nil, invalid("crypto/public-key-not-reduced", "5.1.1", "HPKE public key: %w", err)
	}
	return k, half, nil
}

// derivePQ is DeriveKeyPair of draft-ietf-hpke-pq, whatever the KDF of
// the suite: the private key is SHAKE256.LabeledDerive of ikm.
func (k *kem) derivePQ(ikm secret) (hpkePrivateKey, HPKEPublicKey, error) {
	const label = "DeriveKeyPair"
	s := sha3.NewSHAKE256()
	_, _ = s.Write(ikm)
	b := append(make([]byte, 0, 32), hpkeVersion...)
	b = append(b, "KEM"...)
	b = binary.BigEndian.AppendUint16(b, k.id)
	b = binary.BigEndian.AppendUint16(b, uint16(len(label)))
	b = append(b, label...)
	b = binary.BigEndian.AppendUint16(b, uint16(k.nsk))
	_, _ = s.Write(b)
	sk := make(hpkePrivateKey, k.nsk)
	_, _ = s.Read(sk)
	pub, err := k.pq.public(sk)
	return sk, pub, err
}

// encap makes a shared secret for a public key of the right size.
func (p *pqKEM) encap(pub HPKEPublicKey, rand io.Reader) (enc []byte, shared secret, err error) {
	m, half, err := p.parse(pub)
	if err != nil {
		return nil, nil, err
	}
	seed := make(secret, p.mlkem.EncapsulationSeedSize(), p.mlkem.EncapsulationSeedSize()+pqSeed)
	if p.dh != nil {
		seed = seed[:cap(seed)]
	}
	if _, err := io.ReadFull(rand, seed); err != nil {
		return nil, nil, fmt.Errorf("mls: reading randomness: %w", err)
	}
	defer seed.zero()
	enc, shared, err = p.mlkem.EncapsulateDeterministically(m, seed[:p.mlkem.EncapsulationSeedSize()])
	if err != nil {
		return nil, nil, fmt.Errorf("mls: ML-KEM: %w", err)
	}
	if p.dh == nil {
		return enc, shared, nil
	}
	eph := hpkePrivateKey(seed[p.mlkem.EncapsulationSeedSize():])
	if p.dh.curve != nil {
		s := sha3.NewSHAKE256()
		_, _ = s.Write(eph)
		if eph, err = p.scalar(s); err != nil {
			return nil, nil, err
		}
		defer eph.zero()
	}
	point, err := p.dh.public(eph)
	if err != nil {
		return nil, nil, err
	}
	z, err := p.dh.dh(eph, half)
	if err != nil {
		return nil, nil, err
	}
	return append(enc, point...), p.combine(shared, z, point, half), nil
}

// decap opens a KEM output of the right size. What was not made for this key
// gives another secret, and the ciphertext does not open.
func (p *pqKEM) decap(priv hpkePrivateKey, enc []byte) (secret, error) {
	_, sk, scalar, err := p.keys(priv)
	if err != nil {
		return nil, err
	}
	ct, point := split(enc, p.mlkem.CiphertextSize())
	shared, err := p.mlkem.Decapsulate(sk, ct)
	if err != nil {
		return nil, fmt.Errorf("mls: ML-KEM: %w", err)
	}
	if p.dh == nil {
		return shared, nil
	}
	defer scalar.zero()
	own, err := p.dh.public(scalar)
	if err != nil {
		return nil, err
	}
	z, err := p.dh.dh(scalar, point)
	if err != nil {
		return nil, err
	}
	return p.combine(shared, z, point, own), nil
}

// combine is the hybrid's combiner: SHA3-256 over both secrets, and KEM output
// and public key of the Diffie-Hellman half.
func (p *pqKEM) combine(pq, dh secret, enc, pub []byte) secret {
	h := sha3.New256()
	for _, b := range [][]byte{pq, dh, enc, pub, []byte(p.label)} {
		_, _ = h.Write(b)
	}
	pq.zero()
	dh.zero()
	return h.Sum(nil)
}
