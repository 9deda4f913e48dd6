package mls

import "encoding/binary"

// Node types of RFC 9420, Section 7.8 and Section 12.4.3.3.
const (
	nodeTypeLeaf   = 1
	nodeTypeParent = 2
)

// treeHash returns the tree hash of the subtree under x and keeps it. In a
// finished tree every hash is there already. RFC 9420, Section 7.8.
func (t *ratchetTree) treeHash(x nodeIndex) []byte {
	if h := t.slot(x).hash; h != nil {
		return h
	}
	return t.fillHash(x, &hashing{buf: make([]byte, 0, 512)})
}

// hashSubtrees computes the hashes of all subtrees at a level of at least 4, on
// several processors. Such subtrees have no chunk in common, so that each can
// be changed for itself.
func (t *ratchetTree) hashSubtrees(level int) {
	first, step := nodeIndex(1)<<level-1, nodeIndex(2)<<level
	n := int((nodeIndex(t.nodes())-first-1)/step) + 1
	// The work cannot fail.
	_ = forkJoin(n, func(i int) error {
		t.fillHash(first+nodeIndex(i)*step, &hashing{buf: make([]byte, 0, 512), many: true})
		return nil
	})
}

// hashing is the memory that computing hashes takes. With many set they lie side
// by side and stay until the last is gone, for nodes that are read or made
// together; those of a path are replaced one by one, and stand alone.
type hashing struct {
	buf  []byte
	many bool
	room []byte
}

func (h *hashing) sum(cs CipherSuite) []byte {
	if !h.many {
		return cs.hash(h.buf)
	}
	n := cs.HashLen()
	if len(h.room) < n {
		h.room = make([]byte, 64*n)
	}
	out := cs.suite().hash.sum(h.room[:0:n], h.buf)
	h.room = h.room[n:]
	return out
}

func (t *ratchetTree) fillHash(x nodeIndex, m *hashing) []byte {
	s := t.slot(x)
	if s.hash != nil {
		return s.hash
	}
	if x.isLeaf() {
		m.buf = appendLeafHashInput(m.buf[:0], x.leaf(), s.leaf)
	} else {
		left := t.fillHash(x.left(), m)
		right := t.fillHash(x.right(), m)
		m.buf = appendParentHashInput(m.buf[:0], s.parent, left, right)
	}
	h := m.sum(t.cs)
	t.own(x).hash = h
	return h
}

// appendLeafHashInput encodes TreeHashInput for a leaf.
func appendLeafHashInput(b []byte, i LeafIndex, l *treeLeaf) []byte {
	b = append(b, nodeTypeLeaf)
	b = binary.BigEndian.AppendUint32(b, uint32(i))
	b = appendOptional(b, l != nil)
	if l != nil {
		b = append(b, l.raw...)
	}
	return b
}

// appendParentHashInput encodes TreeHashInput for a parent.
func appendParentHashInput(b []byte, p *parentNode, left, right []byte) []byte {
	b = append(b, nodeTypeParent)
	b = appendOptional(b, p != nil)
	if p != nil {
		b = p.appendTo(b)
	}
	b = appendOpaqueVec(b, left)
	return appendOpaqueVec(b, right)
}

// rootHash returns the tree hash of the whole tree.
func (t *ratchetTree) rootHash() []byte { return t.treeHash(rootIndex(t.size)) }

// originalHash returns the hash of the subtree under x as it was before the
// given leaves, sorted and all under x, were added: with those leaves blank and
// no longer listed as unmerged. RFC 9420, Section 7.9.
func (t *ratchetTree) originalHash(x nodeIndex, without []LeafIndex) []byte {
	if len(without) == 0 {
		return t.treeHash(x)
	}
	if x.isLeaf() {
		return t.cs.hash(appendLeafHashInput(nil, x.leaf(), nil))
	}
	l, r := x.left(), x.right()
	inLeft, inRight := splitLeaves(without, r.firstLeaf())
	left := t.originalHash(l, inLeft)
	right := t.originalHash(r, inRight)
	p := t.parent(x)
	if p != nil && len(p.unmergedLeaves) > 0 {
		p = &parentNode{encryptionKey: p.encryptionKey, parentHash: p.parentHash, unmergedLeaves: minusLeaves(p.unmergedLeaves, without)}
	}
	return t.cs.hash(appendParentHashInput(nil, p, left, right))
}

// splitLeaves cuts a sorted list before the first entry that is at least i.
func splitLeaves(leaves []LeafIndex, i uint32) (below, rest []LeafIndex) {
	lo, hi := 0, len(leaves)
	for lo < hi {
		if m := (lo + hi) / 2; uint32(leaves[m]) < i {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return leaves[:lo], leaves[lo:]
}

// leavesUnder returns the part of a sorted list that lies under x.
func leavesUnder(leaves []LeafIndex, x nodeIndex) []LeafIndex {
	_, rest := splitLeaves(leaves, x.firstLeaf())
	under, _ := splitLeaves(rest, x.endLeaf())
	return under
}

// minusLeaves returns the sorted list a without the entries of the sorted list b.
func minusLeaves(a, b []LeafIndex) []LeafIndex {
	out := make([]LeafIndex, 0, len(a))
	for _, l := range a {
		for len(b) > 0 && b[0] < l {
			b = b[1:]
		}
		if len(b) > 0 && b[0] == l {
			continue
		}
		out = append(out, l)
	}
	return out
}
