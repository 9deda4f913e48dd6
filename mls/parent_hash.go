package mls

import "bytes"

// parentHash computes the parent hash of the parent p at x whose child on the
// copath is sibling. RFC 9420, Section 7.9: the leaves that p has not merged
// count as not yet added under the sibling.
func (t *ratchetTree) parentHash(p *parentNode, sibling nodeIndex) []byte {
	b := appendOpaqueVec(make([]byte, 0, 256), p.encryptionKey)
	b = appendOpaqueVec(b, p.parentHash)
	b = appendOpaqueVec(b, t.originalHash(sibling, leavesUnder(p.unmergedLeaves, sibling)))
	return t.cs.hash(b)
}

// storedParentHash returns the parent_hash field of the node at x, nil if the
// node has none.
func (t *ratchetTree) storedParentHash(x nodeIndex) []byte {
	s := t.slot(x)
	switch {
	case s.parent != nil:
		return s.parent.parentHash
	case s.leaf != nil:
		return s.leaf.parentHash()
	}
	return nil
}

// verifyParentHashes checks that every parent that is not blank has exactly
// one child subtree with a node that carries its parent hash. As every such
// node below is a parent with the same property or a leaf, this is the chain
// to a leaf of RFC 9420, Section 7.9.2. All hashes must be there.
func (t *ratchetTree) verifyParentHashes() error {
	var scratch []nodeIndex
	for x := nodeIndex(1); uint32(x) < t.nodes(); x += 2 {
		p := t.parent(x)
		if p == nil {
			continue
		}
		chains := 0
		for _, c := range [2][2]nodeIndex{{x.left(), x.right()}, {x.right(), x.left()}} {
			child, sibling := c[0], c[1]
			d, ok := t.mergedNode(p, child, &scratch)
			if !ok {
				continue
			}
			if h := t.storedParentHash(d); len(h) > 0 && bytes.Equal(h, t.parentHash(p, sibling)) {
				chains++
			}
		}
		switch chains {
		case 0:
			return invalid("tree/parent-hash-broken", "7.9.2", "no node below parent node %d carries its parent hash", x)
		case 2:
			return invalid("tree/parent-hash-two-chains", "7.9.2", "nodes below both children of parent node %d carry its parent hash", x)
		}
	}
	return nil
}

// mergedNode returns the node D of RFC 9420, Section 7.9.2: the one node in the
// resolution of child that remains without p's unmerged leaves, all of those
// under child being in the resolution.
func (t *ratchetTree) mergedNode(p *parentNode, child nodeIndex, scratch *[]nodeIndex) (nodeIndex, bool) {
	unmerged := leavesUnder(p.unmergedLeaves, child)
	*scratch = t.appendResolution((*scratch)[:0], child)
	if len(*scratch) != len(unmerged)+1 {
		return 0, false
	}
	var d nodeIndex
	found := 0
	for _, x := range *scratch {
		if x.isLeaf() {
			if i, _ := splitLeaves(unmerged, uint32(x.leaf())); len(i) < len(unmerged) && unmerged[len(i)] == x.leaf() {
				continue
			}
		}
		d = x
		found++
	}
	return d, found == 1
}
