package mls

import (
	"encoding/binary"
	"math"
	"slices"
)

// A secretTree holds the message keys of one epoch (RFC 9420, Section 9). It
// only moves forward: what was used is overwritten, and no earlier state comes
// back. Secrets are derived when they are first needed, so that its size
// follows the members who sent something.
type secretTree struct {
	cs       CipherSuite
	nLeaves  uint32
	nodes    map[nodeIndex]secret // the highest nodes not yet derived from
	ratchets map[LeafIndex]*leafRatchets
	skipped  int    // keys kept for messages not yet seen
	seq      uint64 // counts kept keys, to find the oldest

	// The pages that are to be stored anew; nil while nobody stores pages.
	stale map[uint64]struct{}
}

// leafRatchets are a member's two ratchets (RFC 9420, Section 9.1).
type leafRatchets struct {
	handshake, application ratchet
}

type ratchet struct {
	secret     secret
	generation uint32 // of secret
	floor      uint32 // no key below this is kept
	jumped     uint32 // generations passed over in this epoch
	skipped    []skippedKey
}

// A skippedKey is for a message that others of its sender overtook.
type skippedKey struct {
	generation uint32
	seq        uint64
	key, nonce secret
}

// newSecretTree takes over the encryption secret.
func newSecretTree(cs CipherSuite, encryptionSecret secret, nLeaves uint32) *secretTree {
	n := fullLeafCount(nLeaves)
	return &secretTree{
		cs:       cs,
		nLeaves:  n,
		nodes:    map[nodeIndex]secret{rootIndex(n): encryptionSecret},
		ratchets: make(map[LeafIndex]*leafRatchets),
	}
}

// zero overwrites everything; the tree gives no more keys.
func (t *secretTree) zero() {
	for _, s := range t.nodes {
		s.zero()
	}
	for _, l := range t.ratchets {
		for _, r := range []*ratchet{&l.handshake, &l.application} {
			r.secret.zero()
			for i := range r.skipped {
				r.skipped[i].key.zero()
				r.skipped[i].nonce.zero()
			}
		}
	}
	t.nodes, t.ratchets, t.skipped = nil, nil, 0
}

func (l *leafRatchets) of(ct ContentType) *ratchet {
	if ct == ContentTypeApplication {
		return &l.application
	}
	return &l.handshake
}

// A keyUse is a message key and what using it changes in the tree. Nothing is
// changed until commit, which must come before the next use of the tree.
type keyUse struct {
	key, nonce secret
	generation uint32

	t        *secretTree
	leaf     LeafIndex
	ct       ContentType
	from     nodeIndex // the node that was derived from, if leafNew is set
	siblings map[nodeIndex]secret
	leafNew  *leafRatchets
	ahead    secret // the ratchet's next secret; nil when a kept key is used
	kept     []skippedKey
	floor    uint32
	lim      *Limits
}

// use finds the key of a message without changing the tree.
func (t *secretTree) use(leaf LeafIndex, ct ContentType, generation uint32, lim *Limits) (*keyUse, error) {
	if uint64(leaf) >= uint64(t.nLeaves) {
		return nil, invalid("framing/sender-leaf-out-of-range", "6.1", "leaf %d is outside of the tree", leaf)
	}
	u := &keyUse{t: t, leaf: leaf, ct: ct, generation: generation, lim: lim}
	l := t.ratchets[leaf]
	if l == nil {
		if l = t.deriveLeaf(u); l == nil {
			return nil, invalid("framing/group-closed", "9", "the message keys of this epoch were deleted")
		}
		u.leafNew = l
	}
	r := l.of(ct)
	if generation < r.generation {
		for i := range r.skipped {
			if k := &r.skipped[i]; k.generation == generation {
				u.key, u.nonce = k.key, k.nonce
				return u, nil
			}
		}
		if generation < r.floor {
			return nil, invalid("framing/generation-too-old", "15.3", "the key of generation %d was dropped, as too many newer ones of leaf %d came first", generation, leaf)
		}
		// RFC 9420, Section 9.2: a key is deleted once it was used.
		return nil, invalid("framing/generation-consumed", "9.2", "generation %d of leaf %d was used before", generation, leaf)
	}
	jump := generation - r.generation
	if int64(jump) > int64(lim.MaxForward) || int64(r.jumped)+int64(jump) > int64(lim.MaxForwardTotal) || generation == math.MaxUint32 {
		u.drop()
		return nil, invalid("framing/generation-too-far", "15.3", "generation %d of leaf %d is %d ahead", generation, leaf, jump)
	}
	// Keys that would be dropped at once are not even derived.
	u.floor = r.floor
	first := r.generation
	if keep := uint32(min(lim.MaxSkipped, lim.MaxSkippedTotal)); jump > keep {
		first = generation - keep
		u.floor = first
	}
	s := r.secret
	for g := r.generation; ; g++ {
		if g >= first || g == generation {
			key := t.cs.deriveTreeSecret(s, "key", g, t.cs.suite().nk)
			nonce := t.cs.deriveTreeSecret(s, "nonce", g, aeadNonceSize)
			if g == generation {
				u.key, u.nonce = key, nonce
			} else {
				u.kept = append(u.kept, skippedKey{generation: g, key: key, nonce: nonce})
			}
		}
		next := t.cs.deriveTreeSecret(s, "secret", g, t.cs.HashLen())
		if g != r.generation {
			s.zero()
		}
		s = next
		if g == generation {
			break
		}
	}
	u.ahead = s
	return u, nil
}

// deriveLeaf derives a leaf's ratchets from the nearest node above it that is
// still there, and notes what that changes in u.
func (t *secretTree) deriveLeaf(u *keyUse) *leafRatchets {
	cs, nh := t.cs, t.cs.HashLen()
	x := u.leaf.node()
	u.from = x
	s, ok := t.nodes[x]
	for !ok {
		p, up := u.from.parent(t.nLeaves)
		if !up {
			return nil
		}
		u.from = p
		s, ok = t.nodes[p]
	}
	// RFC 9420, Section 9: Secret Tree derivation.
	u.siblings = make(map[nodeIndex]secret)
	for n := u.from; n != x; {
		left := cs.expandWithLabel(s, "tree", []byte("left"), nh)
		right := cs.expandWithLabel(s, "tree", []byte("right"), nh)
		if n != u.from {
			s.zero()
		}
		if n.left().contains(x) {
			u.siblings[n.right()] = right
			n, s = n.left(), left
		} else {
			u.siblings[n.left()] = left
			n, s = n.right(), right
		}
	}
	l := &leafRatchets{
		handshake:   ratchet{secret: cs.expandWithLabel(s, "handshake", nil, nh)},
		application: ratchet{secret: cs.expandWithLabel(s, "application", nil, nh)},
	}
	if u.from != x {
		s.zero()
	}
	return l
}

// skips returns how many generations that were not used yet lie between the ratchet
// and the key.
func (u *keyUse) skips() uint32 {
	if u.ahead == nil {
		return 0
	}
	l := u.leafNew
	if l == nil {
		l = u.t.ratchets[u.leaf]
	}
	return u.generation - l.of(u.ct).generation
}

// drop forgets a use that will not be committed.
func (u *keyUse) drop() {
	if u.ahead != nil || u.leafNew != nil {
		u.key.zero()
		u.nonce.zero()
	}
	u.ahead.zero()
	for _, s := range u.siblings {
		s.zero()
	}
	for i := range u.kept {
		u.kept[i].key.zero()
		u.kept[i].nonce.zero()
	}
	if u.leafNew != nil {
		u.leafNew.handshake.secret.zero()
		u.leafNew.application.secret.zero()
	}
}

// commit carries out what using the key changes, and overwrites the key.
func (u *keyUse) commit() {
	t := u.t
	l := t.ratchets[u.leaf]
	if l == nil {
		// RFC 9420, Section 9.2: a node's secret goes once its children are there.
		t.nodes[u.from].zero()
		delete(t.nodes, u.from)
		t.touch(pageNode, uint32(u.from))
		for n, s := range u.siblings {
			t.nodes[n] = s
			t.touch(pageNode, uint32(n))
		}
		l = u.leafNew
		t.ratchets[u.leaf] = l
	}
	t.touch(pageLeaf, uint32(u.leaf))
	r := l.of(u.ct)
	if u.ahead == nil {
		r.skipped = slices.DeleteFunc(r.skipped, func(k skippedKey) bool { return k.generation == u.generation })
		t.skipped--
	} else {
		r.secret.zero()
		r.secret = u.ahead
		r.jumped += u.generation - r.generation
		r.generation = u.generation + 1
		for _, k := range u.kept {
			k.seq = t.seq
			t.seq++
			r.skipped = append(r.skipped, k)
		}
		t.skipped += len(u.kept)
		if u.floor > r.floor {
			t.dropBelow(r, u.floor)
		}
		if n := len(r.skipped) - u.lim.MaxSkipped; n > 0 {
			t.dropBelow(r, r.skipped[n].generation)
		}
		if t.skipped > u.lim.MaxSkippedTotal {
			t.dropOldest(u.lim.MaxSkippedTotal)
		}
	}
	u.key.zero()
	u.nonce.zero()
}

// dropBelow drops the kept keys of generations below floor. RFC 9420, Section
// 15.3: how many are kept is bounded.
func (t *secretTree) dropBelow(r *ratchet, floor uint32) {
	n := 0
	for n < len(r.skipped) && r.skipped[n].generation < floor {
		r.skipped[n].key.zero()
		r.skipped[n].nonce.zero()
		n++
	}
	r.skipped = slices.Delete(r.skipped, 0, n)
	r.floor = max(r.floor, floor)
	t.skipped -= n
}

// dropOldest drops kept keys, the oldest first, until an eighth less than the
// limit are left: so the walk over all ratchets comes seldom.
func (t *secretTree) dropOldest(limit int) {
	seqs := make([]uint64, 0, t.skipped)
	for _, l := range t.ratchets {
		for _, r := range []*ratchet{&l.handshake, &l.application} {
			for i := range r.skipped {
				seqs = append(seqs, r.skipped[i].seq)
			}
		}
	}
	slices.Sort(seqs)
	n := len(seqs) - (limit - limit/8)
	if n <= 0 {
		return
	}
	last := seqs[n-1]
	for i, l := range t.ratchets {
		for _, r := range []*ratchet{&l.handshake, &l.application} {
			n := 0
			for n < len(r.skipped) && r.skipped[n].seq <= last {
				n++
			}
			if n > 0 {
				t.touch(pageLeaf, uint32(i))
				t.dropBelow(r, r.skipped[n-1].generation+1)
			}
		}
	}
}

// next uses the next key of a sender, and moves its ratchet on.
func (t *secretTree) next(leaf LeafIndex, ct ContentType, lim *Limits) (key, nonce secret, generation uint32, err error) {
	if l := t.ratchets[leaf]; l != nil {
		generation = l.of(ct).generation
	}
	// RFC 9420, Section 15.2: a bound on what one epoch protects.
	if int64(generation) >= lim.MaxAEADInputs || generation == math.MaxUint32 {
		return nil, nil, 0, invalid("state/aead-limit", "15.2", "%d messages were protected in this epoch; make a Commit first", generation)
	}
	u, err := t.use(leaf, ct, generation, lim)
	if err != nil {
		return nil, nil, 0, err
	}
	key, nonce = u.key.clone(), u.nonce.clone()
	u.commit()
	return key, nonce, generation, nil
}

const secretTreeVersion = 1

// appendTo writes the tree for storage. Only what was derived is written.
func (t *secretTree) appendTo(b []byte) []byte {
	b = append(b, secretTreeVersion)
	b = binary.BigEndian.AppendUint32(b, t.nLeaves)
	b = binary.BigEndian.AppendUint64(b, t.seq)
	b = appendVector(b, func(b []byte) []byte {
		for _, n := range sortedKeys(t.nodes) {
			b = binary.BigEndian.AppendUint32(b, uint32(n))
			b = append(b, t.nodes[n]...)
		}
		return b
	})
	return appendVector(b, func(b []byte) []byte {
		for _, i := range sortedKeys(t.ratchets) {
			b = binary.BigEndian.AppendUint32(b, uint32(i))
			b = t.ratchets[i].handshake.appendTo(b)
			b = t.ratchets[i].application.appendTo(b)
		}
		return b
	})
}

func (r *ratchet) appendTo(b []byte) []byte {
	b = append(b, r.secret...)
	b = binary.BigEndian.AppendUint32(b, r.generation)
	b = binary.BigEndian.AppendUint32(b, r.floor)
	b = binary.BigEndian.AppendUint32(b, r.jumped)
	return appendVector(b, func(b []byte) []byte {
		for i := range r.skipped {
			k := &r.skipped[i]
			b = binary.BigEndian.AppendUint32(b, k.generation)
			b = binary.BigEndian.AppendUint64(b, k.seq)
			b = append(b, k.key...)
			b = append(b, k.nonce...)
		}
		return b
	})
}

func sortedKeys[K ~uint32, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// unmarshalSecretTree reads what appendTo wrote.
func unmarshalSecretTree(cs CipherSuite, s *reader) (*secretTree, bool) {
	t := &secretTree{cs: cs, nodes: make(map[nodeIndex]secret), ratchets: make(map[LeafIndex]*leafRatchets)}
	var version uint8
	if !s.ReadUint8(&version) || !s.ReadUint32(&t.nLeaves) || !s.ReadUint64(&t.seq) {
		return nil, false
	}
	if version != secretTreeVersion || t.nLeaves == 0 || t.nLeaves > 1<<30 || t.nLeaves != fullLeafCount(t.nLeaves) {
		return nil, s.fail("state/malformed", "", "stored secret tree of version %d with %d leaves", version, t.nLeaves)
	}
	ok := readVector(s, func(s *reader) bool {
		var n uint32
		var v secret
		if !s.ReadUint32(&n) || !readSecret(s, &v, cs.HashLen()) {
			return false
		}
		if !nodeIndex(n).inTree(t.nLeaves) {
			return s.fail("state/malformed", "", "stored secret of node %d, outside of the tree", n)
		}
		t.nodes[nodeIndex(n)] = v
		return true
	})
	ok = ok && readVector(s, func(s *reader) bool {
		var i uint32
		l := new(leafRatchets)
		if !s.ReadUint32(&i) || !l.handshake.unmarshal(s, cs) || !l.application.unmarshal(s, cs) {
			return false
		}
		if i >= t.nLeaves {
			return s.fail("state/malformed", "", "stored ratchet of leaf %d, outside of the tree", i)
		}
		t.ratchets[LeafIndex(i)] = l
		t.skipped += len(l.handshake.skipped) + len(l.application.skipped)
		return true
	})
	return t, ok
}

func (r *ratchet) unmarshal(s *reader, cs CipherSuite) bool {
	return readSecret(s, &r.secret, cs.HashLen()) &&
		s.ReadUint32(&r.generation) &&
		s.ReadUint32(&r.floor) &&
		s.ReadUint32(&r.jumped) &&
		readVector(s, func(s *reader) bool {
			var k skippedKey
			if !s.ReadUint32(&k.generation) || !s.ReadUint64(&k.seq) ||
				!readSecret(s, &k.key, cs.suite().nk) || !readSecret(s, &k.nonce, aeadNonceSize) {
				return false
			}
			r.skipped = append(r.skipped, k)
			return true
		})
}

// readSecret reads a secret of fixed size into its own memory.
func readSecret(s *reader, out *secret, n int) bool {
	*out = make(secret, n)
	return s.CopyBytes(*out)
}
