package mls

import "math/bits"

// LeafIndex is the number of a leaf, and so of a member, in the ratchet tree.
type LeafIndex uint32

// A nodeIndex is a position in the array form of the tree: leaf i is node 2i
// (RFC 9420, Appendix C). nLeaves is everywhere the leaf count of the full
// tree, a power of two.
type nodeIndex uint32

func (l LeafIndex) node() nodeIndex { return nodeIndex(l) << 1 }

func (x nodeIndex) isLeaf() bool    { return x&1 == 0 }
func (x nodeIndex) leaf() LeafIndex { return LeafIndex(x >> 1) }

// level is 0 for leaves, and one more than the children's for parents.
func (x nodeIndex) level() int { return bits.TrailingZeros32(^uint32(x)) }

// left and right return the children; a leaf is its own child.
func (x nodeIndex) left() nodeIndex {
	if k := x.level(); k > 0 {
		return x ^ (1 << (k - 1))
	}
	return x
}

func (x nodeIndex) right() nodeIndex {
	if k := x.level(); k > 0 {
		return x ^ (3 << (k - 1))
	}
	return x
}

// parent returns the parent in a tree of nLeaves; ok is false for the root and
// for nodes outside.
func (x nodeIndex) parent(nLeaves uint32) (p nodeIndex, ok bool) {
	if x == rootIndex(nLeaves) || !x.inTree(nLeaves) {
		return 0, false
	}
	k := x.level()
	b := (x >> (k + 1)) & 1
	return (x | 1<<k) ^ (b << (k + 1)), true
}

// sibling returns the other child of the parent.
func (x nodeIndex) sibling(nLeaves uint32) (nodeIndex, bool) {
	p, ok := x.parent(nLeaves)
	if !ok {
		return 0, false
	}
	if x < p {
		return p.right(), true
	}
	return p.left(), true
}

func (x nodeIndex) inTree(nLeaves uint32) bool { return uint32(x) < nodeWidth(nLeaves) }

// contains reports whether y is x or below x.
func (x nodeIndex) contains(y nodeIndex) bool {
	k := x.level()
	return y>>(k+1) == x>>(k+1) && y.level() <= k
}

// nodeWidth returns how many nodes a tree of nLeaves has.
func nodeWidth(nLeaves uint32) uint32 {
	if nLeaves == 0 {
		return 0
	}
	return 2*nLeaves - 1
}

// rootIndex returns the root of a tree of nLeaves > 0.
func rootIndex(nLeaves uint32) nodeIndex { return nodeIndex(nLeaves - 1) }

// fullLeafCount returns the smallest power of two that is at least n, and 1
// for none.
func fullLeafCount(n uint32) uint32 {
	if n <= 1 {
		return 1
	}
	return 1 << bits.Len32(n-1)
}

// commonAncestor returns the lowest node that contains both x and y.
func commonAncestor(x, y nodeIndex) nodeIndex {
	if x.contains(y) {
		return x
	}
	if y.contains(x) {
		return y
	}
	k := bits.Len32(uint32(x ^ y))
	return (x >> k << k) | nodeIndex(1<<(k-1)-1)
}
