package federation

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// The receipts and statements in their final form. Their signed bytes are
// canonical: a label that separates the kinds, the room and group they belong
// to, then the fields in order, numbers big-endian, byte strings with a 32-bit
// length. The JSON form around them is the caller's.

// Scope binds receipts and statements to a room and a group. Receipts sign the
// room only: the refs in them are hashes over commits that name their group.
type Scope struct {
	Room  string
	Group []byte
}

// Chain is the part that all receipts share: a counter per key and room that
// starts at 1, and the hash of the previous receipt (zero in the first).
type Chain struct {
	Counter uint64
	Prev    Ref
}

// Receipt is a signed receipt of a sequencer: *Accept, *Vote, *Promise or
// *Ready.
type Receipt interface {
	Event
	// Commit returns the ref the receipt is about, or zero.
	Commit() Ref
	// SignedBytes returns the canonical bytes under the signature.
	SignedBytes(s Scope) []byte
	// Hash returns the value that the next receipt carries in Chain.Prev.
	Hash(s Scope) Ref
	// Sign sets the signature.
	Sign(s Scope, key ed25519.PrivateKey) error
	// VerifySignature checks the signature, and nothing else.
	VerifySignature(s Scope, key ed25519.PublicKey) error
	// Link returns the receipt's place in its key's chain.
	Link() Chain
}

// Accept says that a sequencer accepts a commit, and with it every commit
// below it down to the base of its list.
type Accept struct {
	Config Ref // the commit that set the governing list
	// Ballot is owned by list[Ballot.Rank], who signs. In a provisional accept
	// Round is 0 and Rank is the signer's.
	Ballot      Ballot
	Provisional bool
	Ref         Ref
	Parent      Ref
	Epoch       uint64
	Promises    []*Promise // q of them, if Ballot.Round > 0
	Votes       []*Vote    // of the same signer
	Chain       Chain
	Signature   []byte

	// EventID is where the sender saw the commit: a hint, not signed.
	EventID string
}

// Proof shows that a commit is vouched for: a member's statement, or the ref of
// a commit that a member made on top.
type Proof struct {
	Applied *Applied
	Commit  Ref
}

// Vote says that the sequencer list[Voter] votes for a commit in a ballot. It
// carries what its votability rests on.
type Vote struct {
	Config    Ref
	Ballot    Ballot
	Voter     uint32
	Ref       Ref
	Proofs    []Proof
	Chain     Chain
	Signature []byte

	EventID string // hint, not signed
}

// Promise says that the sequencer list[Promiser] takes part in no ballot below
// Ballot any more, and reports its last vote.
type Promise struct {
	Config    Ref
	Ballot    Ballot
	Promiser  uint32
	LastVote  *LastVote // nil: none in this list
	Chain     Chain
	Signature []byte
}

// LastVote is what a promise reports.
type LastVote struct {
	Ballot Ballot
	Ref    Ref
	// Epoch of Ref: who dropped old commits tells by it whether the commit is one
	// of them or is still to come.
	Epoch  uint64
	Proofs []Proof
}

// Ready says that a sequencer of the list that the commit Config would set is
// ready to serve. Member is its index in that list.
type Ready struct {
	Config    Ref
	Member    uint32
	Chain     Chain
	Signature []byte
}

// Applied is a member's statement that it applied a commit and holds its
// epoch's secrets. Hash is AppliedHash of the epoch authenticator.
type Applied struct {
	Ref       Ref
	Leaf      uint32 // in the tree of Ref
	Hash      [32]byte
	Signature []byte

	EventID string // of the statement itself, not signed
}

// Rejected is a member's statement that it could not apply a commit. Rule names
// the check that failed.
type Rejected struct {
	Ref       Ref
	Leaf      uint32 // in the tree of Ref's parent
	Rule      string
	Signature []byte

	EventID string // of the statement itself, not signed
}

// AppliedHash returns SHA-256("applied" ‖ epoch authenticator).
func AppliedHash(epochAuthenticator []byte) [32]byte {
	h := sha256.New()
	h.Write([]byte("applied"))
	h.Write(epochAuthenticator)
	return [32]byte(h.Sum(nil))
}

// Limits of the wire form.
const (
	maxProofs   = 128
	maxPromises = 16
	maxVotes    = 8
	maxRule     = 128
	maxID       = 255
	maxKey      = 256
	maxSig      = 512
)

type wire []byte

func (w *wire) u8(v uint8)     { *w = append(*w, v) }
func (w *wire) u32(v uint32)   { *w = binary.BigEndian.AppendUint32(*w, v) }
func (w *wire) u64(v uint64)   { *w = binary.BigEndian.AppendUint64(*w, v) }
func (w *wire) ref(r Ref)      { *w = append(*w, r[:]...) }
func (w *wire) str(s string)   { w.u32(uint32(len(s))); *w = append(*w, s...) }
func (w *wire) bytes(b []byte) { w.u32(uint32(len(b))); *w = append(*w, b...) }
func (w *wire) bool(b bool) {
	if b {
		w.u8(1)
	} else {
		w.u8(0)
	}
}
func (w *wire) ballot(b Ballot) { w.u64(b.Round); w.u32(b.Rank) }
func (w *wire) chain(c Chain)   { w.u64(c.Counter); w.ref(c.Prev) }

func begin(label string, s Scope) wire {
	w := make(wire, 0, 256)
	w.str("matrix-mls " + label + " v1")
	w.str(s.Room)
	w.bytes(s.Group)
	return w
}

func (w *wire) proofs(ps []Proof) {
	w.u32(uint32(len(ps)))
	for _, p := range ps {
		if p.Applied == nil {
			w.u8(0)
			w.ref(p.Commit)
			continue
		}
		w.u8(1)
		w.ref(p.Applied.Ref)
		w.u32(p.Applied.Leaf)
		*w = append(*w, p.Applied.Hash[:]...)
		w.bytes(p.Applied.Signature)
	}
}

// SignedBytes implements Receipt.
func (a *Accept) SignedBytes(s Scope) []byte {
	w := begin("accept", Scope{Room: s.Room})
	w.ref(a.Config)
	w.ballot(a.Ballot)
	w.bool(a.Provisional)
	w.ref(a.Ref)
	w.ref(a.Parent)
	w.u64(a.Epoch)
	w.u32(uint32(len(a.Promises)))
	for _, p := range a.Promises {
		w.ref(p.Hash(s))
	}
	w.u32(uint32(len(a.Votes)))
	for _, v := range a.Votes {
		w.ref(v.Hash(s))
	}
	w.chain(a.Chain)
	return w
}

// SignedBytes implements Receipt.
func (v *Vote) SignedBytes(s Scope) []byte {
	w := begin("vote", Scope{Room: s.Room})
	w.ref(v.Config)
	w.ballot(v.Ballot)
	w.u32(v.Voter)
	w.ref(v.Ref)
	w.proofs(v.Proofs)
	w.chain(v.Chain)
	return w
}

// SignedBytes implements Receipt.
func (p *Promise) SignedBytes(s Scope) []byte {
	w := begin("promise", Scope{Room: s.Room})
	w.ref(p.Config)
	w.ballot(p.Ballot)
	w.u32(p.Promiser)
	w.bool(p.LastVote != nil)
	if p.LastVote != nil {
		w.ballot(p.LastVote.Ballot)
		w.ref(p.LastVote.Ref)
		w.u64(p.LastVote.Epoch)
		w.proofs(p.LastVote.Proofs)
	}
	w.chain(p.Chain)
	return w
}

// SignedBytes implements Receipt.
func (r *Ready) SignedBytes(s Scope) []byte {
	w := begin("ready", Scope{Room: s.Room})
	w.ref(r.Config)
	w.u32(r.Member)
	w.chain(r.Chain)
	return w
}

// Content returns the bytes that the leaf signs.
func (a *Applied) Content(s Scope) []byte {
	w := begin("applied", s)
	w.ref(a.Ref)
	w.u32(a.Leaf)
	w = append(w, a.Hash[:]...)
	return w
}

// Content returns the bytes that the leaf signs.
func (r *Rejected) Content(s Scope) []byte {
	w := begin("reject", s)
	w.ref(r.Ref)
	w.u32(r.Leaf)
	w.str(r.Rule)
	return w
}

// receiptKinds are the labels of what receipt keys sign.
var receiptKinds = []string{"accept", "vote", "promise", "ready"}

// LinkOf returns the place in its key's chain of a receipt that is shown by its signed
// bytes and its signature alone. An error means that the key signed no such receipt in
// the room.
func LinkOf(s Scope, key ed25519.PublicKey, signed, sig []byte) (Chain, error) {
	const size = 8 + len(Ref{})
	for _, kind := range receiptKinds {
		head := begin(kind, Scope{Room: s.Room})
		if len(signed) < len(head)+size || !bytes.HasPrefix(signed, head) {
			continue
		}
		if err := verifyReceipt(signed, sig, key); err != nil {
			return Chain{}, err
		}
		end := signed[len(signed)-size:]
		return Chain{Counter: binary.BigEndian.Uint64(end), Prev: Ref(end[8:])}, nil
	}
	return Chain{}, errNoReceipt
}

// HashOf returns the hash of a receipt that is shown by its signed bytes and signature.
func HashOf(signed, sig []byte) Ref { return hashReceipt(signed, sig) }

func hashReceipt(signed, sig []byte) Ref {
	h := sha256.New()
	h.Write(signed)
	h.Write(sig)
	return Ref(h.Sum(nil))
}

// Hash implements Receipt.
func (a *Accept) Hash(s Scope) Ref { return hashReceipt(a.SignedBytes(s), a.Signature) }

// Hash implements Receipt.
func (v *Vote) Hash(s Scope) Ref { return hashReceipt(v.SignedBytes(s), v.Signature) }

// Hash implements Receipt.
func (p *Promise) Hash(s Scope) Ref { return hashReceipt(p.SignedBytes(s), p.Signature) }

// Hash implements Receipt.
func (r *Ready) Hash(s Scope) Ref { return hashReceipt(r.SignedBytes(s), r.Signature) }

// Commit implements Receipt.
func (a *Accept) Commit() Ref { return a.Ref }

// Commit implements Receipt.
func (v *Vote) Commit() Ref { return v.Ref }

// Commit implements Receipt: the last vote's, if any.
func (p *Promise) Commit() Ref {
	if p.LastVote == nil {
		return Ref{}
	}
	return p.LastVote.Ref
}

// Commit implements Receipt.
func (r *Ready) Commit() Ref { return r.Config }

// Link implements Receipt.
func (a *Accept) Link() Chain { return a.Chain }

// Link implements Receipt.
func (v *Vote) Link() Chain { return v.Chain }

// Link implements Receipt.
func (p *Promise) Link() Chain { return p.Chain }

// Link implements Receipt.
func (r *Ready) Link() Chain { return r.Chain }

// Sign implements Receipt.
func (a *Accept) Sign(s Scope, key ed25519.PrivateKey) error {
	return signReceipt(&a.Signature, a.SignedBytes(s), key)
}

// Sign implements Receipt.
func (v *Vote) Sign(s Scope, key ed25519.PrivateKey) error {
	return signReceipt(&v.Signature, v.SignedBytes(s), key)
}

// Sign implements Receipt.
func (p *Promise) Sign(s Scope, key ed25519.PrivateKey) error {
	return signReceipt(&p.Signature, p.SignedBytes(s), key)
}

// Sign implements Receipt.
func (r *Ready) Sign(s Scope, key ed25519.PrivateKey) error {
	return signReceipt(&r.Signature, r.SignedBytes(s), key)
}

// VerifySignature implements Receipt.
func (a *Accept) VerifySignature(s Scope, key ed25519.PublicKey) error {
	return verifyReceipt(a.SignedBytes(s), a.Signature, key)
}

// VerifySignature implements Receipt.
func (v *Vote) VerifySignature(s Scope, key ed25519.PublicKey) error {
	return verifyReceipt(v.SignedBytes(s), v.Signature, key)
}

// VerifySignature implements Receipt.
func (p *Promise) VerifySignature(s Scope, key ed25519.PublicKey) error {
	return verifyReceipt(p.SignedBytes(s), p.Signature, key)
}

// VerifySignature implements Receipt.
func (r *Ready) VerifySignature(s Scope, key ed25519.PublicKey) error {
	return verifyReceipt(r.SignedBytes(s), r.Signature, key)
}

var (
	errKeyLength = errors.New("federation: receipt key has the wrong length")
	errSignature = errors.New("federation: signature does not match the receipt")
	errNoReceipt = errors.New("federation: what is shown is no receipt of the room")
)

func signReceipt(sig *[]byte, content []byte, key ed25519.PrivateKey) error {
	if len(key) != ed25519.PrivateKeySize {
		return errKeyLength
	}
	*sig = ed25519.Sign(key, content)
	return nil
}

func verifyReceipt(content, sig []byte, key ed25519.PublicKey) error {
	if len(key) != ed25519.PublicKeySize {
		return errKeyLength
	}
	if len(sig) != ed25519.SignatureSize || !ed25519.Verify(key, content, sig) {
		return errSignature
	}
	return nil
}
