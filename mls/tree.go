package mls

import (
	"bytes"
	"encoding/binary"
	"iter"

	"golang.org/x/crypto/cryptobyte"
)

// RFC 9420, Section 7.1: a parent node of the ratchet tree. A parentNode in a
// finished tree is never changed; an edit copies it first.
type parentNode struct {
	encryptionKey  HPKEPublicKey
	parentHash     []byte
	unmergedLeaves []LeafIndex

	edit *editToken
}

// An editToken marks what one tree under construction owns and may therefore
// change in place. It is compared by address only.
type editToken struct{ _ byte }

const (
	treeChunkBits = 5
	treeChunkSize = 1 << treeChunkBits
)

// A treeLeaf is a leaf in a tree: its encoding, from which a LeafNode is made
// when somebody asks for it. In a large group the LeafNodes would take more room
// than all the rest.
type treeLeaf struct {
	raw             []byte
	capsAt, capsEnd uint32 // where in raw the capabilities are
}

// compact returns l as a tree keeps it.
func (l *LeafNode) compact() treeLeaf {
	return treeLeaf{l.raw, uint32(l.capsAt), uint32(l.capsAt + len(l.caps))}
}

// node returns the leaf as a LeafNode. Where it has the capabilities of prev,
// which may be nil, it shares them.
func (l *treeLeaf) node(prev *LeafNode) *LeafNode {
	n := new(LeafNode)
	s := reader{String: l.raw, entries: len(l.raw)}
	if !n.unmarshalAfter(&s, prev) {
		panic("mls: internal: a leaf of the tree does not parse again")
	}
	return n
}

func (l *treeLeaf) caps() []byte { return l.raw[l.capsAt:l.capsEnd] }

// vec returns the i-th of the vectors that a leaf begins with, and what follows.
func (l *treeLeaf) vec(i int) (v []byte, rest cryptobyte.String) {
	s := reader{String: l.raw}
	for range i + 1 {
		if !readOpaqueVec(&s, &v) {
			panic("mls: internal: a leaf of the tree does not parse again")
		}
	}
	return v, s.String
}

func (l *treeLeaf) encryptionKey() HPKEPublicKey { v, _ := l.vec(0); return v }

func (l *treeLeaf) signatureKey() SignaturePublicKey { v, _ := l.vec(1); return v }

func (l *treeLeaf) credentialType() CredentialType {
	_, rest := l.vec(1)
	return CredentialType(binary.BigEndian.Uint16(rest))
}

// parentHash returns the leaf's parent hash; only those of Commits have one.
func (l *treeLeaf) parentHash() []byte {
	s := reader{String: l.raw[l.capsEnd:]}
	var source uint8
	var h []byte
	if !s.ReadUint8(&source) || LeafNodeSource(source) != LeafNodeSourceCommit || !readOpaqueVec(&s, &h) {
		return nil
	}
	return h
}

// A treeSlot is one position of the tree's array. At most one of leaf and
// parent is set; both are nil at a blank node. hash is the tree hash of the
// subtree under the slot, nil while it has to be computed again.
type treeSlot struct {
	leaf   *treeLeaf
	parent *parentNode
	hash   []byte
}

type treeChunk struct {
	edit  *editToken
	slots [treeChunkSize]treeSlot
}

// blankChunk stands for all chunks that hold no node and no hash yet. It belongs
// to no edit, so that own copies it.
var blankChunk = new(treeChunk)

// A ratchetTree is the tree of RFC 9420, Sections 4 and 7, in the array form
// of Appendix C. It is persistent: a finished tree is immutable and safe to
// share, and edit makes a new tree that shares all chunks with it until they
// are changed. Tree hashes are kept at every node, so that a Commit costs the
// nodes of its path and not the whole tree.
type ratchetTree struct {
	cs     CipherSuite
	size   uint32 // number of leaf positions, a power of two; 0 for no tree
	last   uint32 // all leaf positions from last on are blank
	free   uint32 // all leaf positions before free are occupied
	count  uint32 // number of members
	chunks []*treeChunk

	encryptionKeys keyIndex // over all nodes
	signatureKeys  keyIndex // over all leaves
	profiles       profileSet

	edit *editToken // nil in a finished tree
}

// newTree returns an empty tree under construction.
func newTree(cs CipherSuite, expectedNodes int) *ratchetTree {
	e := new(editToken)
	return &ratchetTree{
		cs:             cs,
		edit:           e,
		encryptionKeys: newKeyIndex(expectedNodes, e),
		signatureKeys:  newKeyIndex(expectedNodes/2, e),
	}
}

// change returns a copy of t that may be edited.
func (t *ratchetTree) change() *ratchetTree {
	c := *t
	c.edit = new(editToken)
	c.chunks = append([]*treeChunk(nil), t.chunks...)
	c.encryptionKeys = t.encryptionKeys.clone(c.edit)
	c.signatureKeys = t.signatureKeys.clone(c.edit)
	return &c
}

// finish computes all missing hashes and closes the edit.
func (t *ratchetTree) finish() {
	if t.size > 0 {
		if t.size >= 256 && t.changed() >= 512 {
			t.hashSubtrees(rootIndex(t.size).level() - 4)
		}
		t.treeHash(rootIndex(t.size))
	}
	t.edit = nil
	t.encryptionKeys.edit = nil
	t.signatureKeys.edit = nil
}

// changed returns about how many nodes are not shared with another tree.
func (t *ratchetTree) changed() int {
	n := 0
	for _, c := range t.chunks {
		if c.edit == t.edit || c == blankChunk {
			n += treeChunkSize
		}
	}
	return n
}

// up returns the parent of a node that is not the root.
func (t *ratchetTree) up(x nodeIndex) nodeIndex {
	p, ok := x.parent(t.size)
	if !ok {
		panic("mls: internal: parent of the root")
	}
	return p
}

// beside returns the sibling of a node that is not the root.
func (t *ratchetTree) beside(x nodeIndex) nodeIndex {
	p := t.up(x)
	if x < p {
		return p.right()
	}
	return p.left()
}

// firstLeaf returns the leftmost leaf position under x.
func (x nodeIndex) firstLeaf() uint32 { return (uint32(x) - (1<<x.level() - 1)) / 2 }

// endLeaf returns the leaf position after the rightmost one under x.
func (x nodeIndex) endLeaf() uint32 { return x.firstLeaf() + 1<<x.level() }

func (t *ratchetTree) slot(x nodeIndex) *treeSlot {
	return &t.chunks[x>>treeChunkBits].slots[x&(treeChunkSize-1)]
}

// own returns the slot of x for writing.
func (t *ratchetTree) own(x nodeIndex) *treeSlot {
	c := t.chunks[x>>treeChunkBits]
	if t.edit == nil {
		panic("mls: internal: change of a finished tree")
	}
	if c.edit != t.edit {
		c = &treeChunk{edit: t.edit, slots: c.slots}
		t.chunks[x>>treeChunkBits] = c
	}
	return &c.slots[x&(treeChunkSize-1)]
}

// nodes returns the number of array positions.
func (t *ratchetTree) nodes() uint32 {
	if t.size == 0 {
		return 0
	}
	return 2*t.size - 1
}

// leaf returns the leaf at i, or nil if i is blank or outside the tree.
func (t *ratchetTree) leaf(i LeafIndex) *LeafNode {
	if uint32(i) >= t.size {
		return nil
	}
	if l := t.slot(i.node()).leaf; l != nil {
		return l.node(nil)
	}
	return nil
}

// occupied tells whether a member is at i.
func (t *ratchetTree) occupied(i LeafIndex) bool {
	return uint32(i) < t.size && t.slot(i.node()).leaf != nil
}

func (t *ratchetTree) parent(x nodeIndex) *parentNode { return t.slot(x).parent }

func (t *ratchetTree) blank(x nodeIndex) bool {
	s := t.slot(x)
	return s.leaf == nil && s.parent == nil
}

// publicKey returns the encryption key of node x, nil at a blank node.
func (t *ratchetTree) publicKey(x nodeIndex) HPKEPublicKey {
	s := t.slot(x)
	switch {
	case s.leaf != nil:
		return s.leaf.encryptionKey()
	case s.parent != nil:
		return s.parent.encryptionKey
	}
	return nil
}

func (t *ratchetTree) encryptionKeyOf(x uint32) []byte { return t.publicKey(nodeIndex(x)) }
func (t *ratchetTree) signatureKeyOf(x uint32) []byte {
	return t.slot(nodeIndex(x)).leaf.signatureKey()
}

// members yields the occupied leaves in order.
func (t *ratchetTree) members() iter.Seq2[LeafIndex, *LeafNode] {
	return func(yield func(LeafIndex, *LeafNode) bool) {
		var prev *LeafNode
		for i := range LeafIndex(t.last) {
			l := t.slot(i.node()).leaf
			if l == nil {
				continue
			}
			n := l.node(prev)
			if !yield(i, n) {
				return
			}
			prev = n
		}
	}
}

// findSignatureKey returns the leaf that holds a signature key.
func (t *ratchetTree) findSignatureKey(key SignaturePublicKey) (LeafIndex, bool) {
	x, ok := t.signatureKeys.find(key, t.signatureKeyOf)
	return LeafIndex(x / 2), ok
}

// hasEncryptionKey tells whether any node holds the key.
func (t *ratchetTree) hasEncryptionKey(key HPKEPublicKey) bool {
	_, ok := t.encryptionKeys.find(key, t.encryptionKeyOf)
	return ok
}

// touch marks x and its ancestors as changed.
func (t *ratchetTree) touch(x nodeIndex) {
	root := rootIndex(t.size)
	for {
		s := t.own(x)
		if s.hash == nil && x != root && t.slot(t.up(x)).hash == nil {
			return // all ancestors are marked already
		}
		s.hash = nil
		if x == root {
			return
		}
		x = t.up(x)
	}
}

// setLeaf replaces the leaf at i, nil to blank it, without touching parents.
func (t *ratchetTree) setLeaf(i LeafIndex, n *LeafNode) {
	var l *treeLeaf
	if n != nil {
		// A copy, so that the tree keeps alive nothing but the leaf's bytes.
		c := n.compact()
		c.raw = bytes.Clone(c.raw)
		l = &c
	}
	x := i.node()
	old := t.slot(x).leaf
	if old == nil && l == nil {
		return
	}
	sameProfile := old != nil && l != nil && sameProfile(old, l)
	if old != nil {
		t.encryptionKeys.remove(uint32(x), old.encryptionKey(), t.encryptionKeyOf)
		t.signatureKeys.remove(uint32(x), old.signatureKey(), t.signatureKeyOf)
		if !sameProfile {
			t.profiles.remove(old, t.edit)
		}
		t.count--
	}
	t.own(x).leaf = l
	t.touch(x)
	if l != nil {
		t.encryptionKeys.insert(uint32(x), n.EncryptionKey, t.encryptionKeyOf)
		t.signatureKeys.insert(uint32(x), n.SignatureKey, t.signatureKeyOf)
		if !sameProfile {
			t.profiles.add(l, t.edit)
		}
		t.count++
		t.last = max(t.last, uint32(i)+1)
		return
	}
	t.free = min(t.free, uint32(i))
	for t.last > 0 && !t.occupied(LeafIndex(t.last-1)) {
		t.last--
	}
}

// setParent replaces the parent at x, nil to blank it.
func (t *ratchetTree) setParent(x nodeIndex, p *parentNode) {
	old := t.slot(x).parent
	if old == nil && p == nil {
		return
	}
	if old != nil {
		t.encryptionKeys.remove(uint32(x), old.encryptionKey, t.encryptionKeyOf)
	}
	t.own(x).parent = p
	t.touch(x)
	if p != nil {
		t.encryptionKeys.insert(uint32(x), p.encryptionKey, t.encryptionKeyOf)
	}
}

// extend doubles the number of leaf positions.
func (t *ratchetTree) extend() {
	t.size = max(1, 2*t.size)
	for need := (t.nodes() + treeChunkSize - 1) / treeChunkSize; uint32(len(t.chunks)) < need; {
		t.chunks = append(t.chunks, blankChunk)
	}
}

// truncate halves the tree while its right half holds no member.
// RFC 9420, Section 7.7.
func (t *ratchetTree) truncate() {
	for t.size > 1 && t.last <= t.size/2 {
		t.setParent(rootIndex(t.size), nil)
		t.own(rootIndex(t.size)).hash = nil
		t.size /= 2
		// What is cut off is blank. Blank slots of the last chunk may keep
		// hashes of blank subtrees, which are right when the tree grows again.
		t.chunks = t.chunks[:(t.nodes()+treeChunkSize-1)/treeChunkSize]
	}
}

// blankPath blanks all ancestors of a leaf.
func (t *ratchetTree) blankPath(i LeafIndex) {
	root := rootIndex(t.size)
	for x := i.node(); x != root; {
		x = t.up(x)
		t.setParent(x, nil)
	}
}

// place returns the leftmost blank leaf position, after extending the tree if
// there is none.
func (t *ratchetTree) place() LeafIndex {
	for t.occupied(LeafIndex(t.free)) {
		t.free++
	}
	if t.free >= t.size {
		t.extend()
	}
	return LeafIndex(t.free)
}

// add puts a leaf at the leftmost blank position and returns it.
// RFC 9420, Section 7.7 (adding a leaf) and Section 12.1.1.
func (t *ratchetTree) add(l *LeafNode) LeafIndex {
	i := t.place()
	t.setLeaf(i, l)
	root := rootIndex(t.size)
	for x := i.node(); x != root; {
		x = t.up(x)
		p := t.slot(x).parent
		if p == nil {
			continue
		}
		if p.edit != t.edit {
			p = &parentNode{encryptionKey: p.encryptionKey, parentHash: p.parentHash, edit: t.edit,
				unmergedLeaves: append(make([]LeafIndex, 0, len(p.unmergedLeaves)+4), p.unmergedLeaves...)}
			t.own(x).parent = p
		}
		u := append(p.unmergedLeaves, i)
		for k := len(u) - 1; k > 0 && u[k-1] > i; k-- {
			u[k-1], u[k] = u[k], u[k-1]
		}
		p.unmergedLeaves = u
	}
	t.free++
	return i
}

// update replaces a leaf and blanks its direct path. RFC 9420, Section 12.1.2.
func (t *ratchetTree) update(i LeafIndex, l *LeafNode) {
	t.setLeaf(i, l)
	t.blankPath(i)
}

// remove blanks a leaf and its direct path; the caller truncates the tree when
// all removals are done. RFC 9420, Section 12.1.3.
func (t *ratchetTree) remove(i LeafIndex) {
	t.setLeaf(i, nil)
	t.blankPath(i)
}

// emptyBelow tells whether the resolution of x is empty.
func (t *ratchetTree) emptyBelow(x nodeIndex) bool {
	if x.firstLeaf() >= t.last {
		return true
	}
	if !t.blank(x) {
		return false
	}
	return x.isLeaf() || t.emptyBelow(x.left()) && t.emptyBelow(x.right())
}

// appendResolution appends the resolution of x. RFC 9420, Section 4.1.1.
func (t *ratchetTree) appendResolution(r []nodeIndex, x nodeIndex) []nodeIndex {
	if x.firstLeaf() >= t.last {
		return r
	}
	s := t.slot(x)
	switch {
	case s.parent != nil:
		r = append(r, x)
		for _, l := range s.parent.unmergedLeaves {
			r = append(r, l.node())
		}
		return r
	case s.leaf != nil:
		return append(r, x)
	case x.isLeaf():
		return r
	}
	return t.appendResolution(t.appendResolution(r, x.left()), x.right())
}

// A pathStep is one node of a filtered direct path with the child of it that
// lies on the copath. RFC 9420, Section 4.1.2.
type pathStep struct {
	node   nodeIndex
	copath nodeIndex
}

// filteredDirectPath returns the nodes of a leaf's direct path whose child on
// the copath has a resolution that is not empty.
func (t *ratchetTree) filteredDirectPath(i LeafIndex) []pathStep {
	var steps []pathStep
	root := rootIndex(t.size)
	for x := i.node(); x != root; {
		p, s := t.up(x), t.beside(x)
		if !t.emptyBelow(s) {
			steps = append(steps, pathStep{p, s})
		}
		x = p
	}
	return steps
}
