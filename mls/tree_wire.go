package mls

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// RFC 9420, Section 7.1.
func (p *parentNode) unmarshal(s *reader) bool {
	if !readOpaqueVec(s, (*[]byte)(&p.encryptionKey)) || !readOpaqueVec(s, &p.parentHash) {
		return false
	}
	var body []byte
	if !readOpaqueVec(s, &body) {
		return false
	}
	if len(body)%4 != 0 {
		return s.fail("codec/vector-element-truncated", "2.1.2", "a list of leaves has %d bytes", len(body))
	}
	for ; len(body) > 0; body = body[4:] {
		p.unmergedLeaves = append(p.unmergedLeaves, LeafIndex(binary.BigEndian.Uint32(body)))
	}
	return true
}

func (p *parentNode) appendTo(b []byte) []byte {
	b = appendOpaqueVec(b, p.encryptionKey)
	b = appendOpaqueVec(b, p.parentHash)
	b = appendVarint(b, 4*len(p.unmergedLeaves))
	for _, l := range p.unmergedLeaves {
		b = binary.BigEndian.AppendUint32(b, uint32(l))
	}
	return b
}

// appendTo encodes the tree as the body of a ratchet_tree extension. RFC 9420,
// Section 12.4.3.3: blank nodes at the end are left out.
func (t *ratchetTree) appendTo(b []byte) []byte {
	return appendVector(b, func(b []byte) []byte {
		if t.last == 0 {
			return b
		}
		for x := nodeIndex(0); x <= LeafIndex(t.last-1).node(); x++ {
			s := t.slot(x)
			switch {
			case s.leaf != nil:
				b = append(b, 1, nodeTypeLeaf)
				b = append(b, s.leaf.raw...)
			case s.parent != nil:
				b = append(b, 1, nodeTypeParent)
				b = s.parent.appendTo(b)
			default:
				b = append(b, 0)
			}
		}
		return b
	})
}

// parseTree reads the body of a ratchet_tree extension and checks its form:
// RFC 9420, Section 12.4.3.3. The tree aliases raw.
func parseTree(cs CipherSuite, raw []byte, lim *Limits) (*ratchetTree, error) {
	if len(raw) > lim.MaxMessageSize {
		return nil, invalid("tree/too-large", "", "a ratchet tree of %d bytes is over the limit of %d", len(raw), lim.MaxMessageSize)
	}
	// The nodes are read into the array that the tree has in the end.
	var chunks []*treeChunk
	nodes, occupied := 0, 0
	blank := false           // the last one
	var leaf, prev *LeafNode // the one that is read and the one before
	var leaves []treeLeaf    // room for the next ones
	var parents []parentNode
	maxNodes := 2*lim.MaxMembers - 1
	s := newReader(raw)
	s.entries += maxNodes + 1 // a blank node is one byte, and there may be many
	ok := readVector(s, func(s *reader) bool {
		if nodes >= maxNodes {
			return s.fail("tree/too-large", "", "the ratchet tree has more than %d leaves, which is the limit", lim.MaxMembers)
		}
		var present bool
		if !readOptional(s, &present) {
			return false
		}
		if nodes%treeChunkSize == 0 {
			chunks = append(chunks, blankChunk)
		}
		blank = !present
		if present {
			chunk := &chunks[nodes/treeChunkSize]
			if *chunk == blankChunk {
				*chunk = new(treeChunk)
			}
			slot := &(*chunk).slots[nodes%treeChunkSize]
			occupied++
			var kind uint8
			if !s.ReadUint8(&kind) {
				return false
			}
			isLeaf := nodes%2 == 0
			switch kind {
			case nodeTypeLeaf:
				if !isLeaf {
					return s.fail("tree/leaf-at-parent-position", "12.4.3.3", "node %d is a leaf node", nodes)
				}
				if leaf == nil {
					leaf = new(LeafNode)
				}
				*leaf = LeafNode{}
				if !leaf.unmarshalAfter(s, prev) {
					return false
				}
				if len(leaves) == 0 {
					leaves = make([]treeLeaf, 64)
				}
				slot.leaf = &leaves[0]
				*slot.leaf = leaf.compact()
				leaves = leaves[1:]
				leaf, prev = prev, leaf
			case nodeTypeParent:
				if isLeaf {
					return s.fail("tree/parent-at-leaf-position", "12.4.3.3", "node %d is a parent node", nodes)
				}
				if len(parents) == 0 {
					parents = make([]parentNode, 64)
				}
				slot.parent = &parents[0]
				parents = parents[1:]
				if !slot.parent.unmarshal(s) {
					return false
				}
			default:
				return s.fail("codec/unknown-node-type", "12.4.3.3", "node_type %d is not defined", kind)
			}
		}
		nodes++
		return true
	})
	if !ok {
		return nil, s.error()
	}
	if !s.Empty() {
		return nil, invalid("codec/trailing-bytes-extension", "13.4", "%d bytes follow the ratchet tree", len(s.String))
	}
	if nodes == 0 {
		return nil, invalid("tree/empty", "12.4.3.3", "the ratchet tree has no node")
	}
	if blank {
		return nil, invalid("tree/trailing-blank", "12.4.3.3", "the last node of the ratchet tree is blank")
	}

	t := newTree(cs, occupied)
	t.chunks = chunks
	for _, c := range chunks {
		if c != blankChunk {
			c.edit = t.edit
		}
	}
	for int64(t.nodes()) < int64(nodes) {
		t.extend()
	}
	var first *treeLeaf // of a row of leaves with one profile
	alike := 0
	for x := range nodeIndex(nodes) {
		var key HPKEPublicKey
		switch n := t.slot(x); {
		case n.leaf != nil:
			key = n.leaf.encryptionKey()
			t.signatureKeys.insert(uint32(x), n.leaf.signatureKey(), t.signatureKeyOf)
			if t.signatureKeys.dups > 0 {
				return nil, leafInvalid(x.leaf(), invalid("leaf-node/signature-key-not-unique", "7.3", "another leaf has the same signature_key"))
			}
			if first != nil && !sameProfile(first, n.leaf) {
				t.profiles.addAlike(first, alike, t.edit)
				alike = 0
			}
			if alike == 0 {
				first = n.leaf
			}
			alike++
			t.count++
			t.last = uint32(x.leaf()) + 1
		case n.parent != nil:
			key = n.parent.encryptionKey
		default:
			continue
		}
		// RFC 9420, Section 12.4.3.1: no encryption key at two nodes.
		t.encryptionKeys.insert(uint32(x), key, t.encryptionKeyOf)
		if t.encryptionKeys.dups > 0 {
			return nil, invalid("tree/key-not-unique", "12.4.3.1", "the encryption key of node %d is at another node, too", x)
		}
	}
	if first != nil {
		t.profiles.addAlike(first, alike, t.edit)
	}
	return t, nil
}

func leafInvalid(i LeafIndex, err error) error {
	return invalid("tree/leaf-invalid", "12.4.3.1", "leaf %d: %w", i, err)
}

// validate checks a tree that came with a Welcome or GroupInfo. RFC 9420,
// Section 12.4.3.1: the tree hash, the parent hashes, every leaf (lifetimes
// aside, which may have passed since), and the lists of unmerged leaves.
func (t *ratchetTree) validate(cfg *Config, ctx *groupContext) error {
	if err := t.checkUnmerged(); err != nil {
		return err
	}
	t.finish()
	if string(t.rootHash()) != string(ctx.treeHash) {
		return invalid("tree/tree-hash", "12.4.3.1", "the ratchet tree is not the one the GroupContext names: tree hashes differ")
	}
	if err := t.verifyParentHashes(); err != nil {
		return err
	}
	for x := nodeIndex(1); uint32(x) < t.nodes(); x += 2 {
		if p := t.parent(x); p != nil {
			if err := t.cs.validateHPKEPublicKey(p.encryptionKey); err != nil {
				return fmt.Errorf("mls: encryption key of parent node %d: %w", x, err)
			}
		}
	}
	type member struct {
		i LeafIndex
		l *LeafNode
	}
	leaves := make([]member, 0, t.count)
	for i, l := range t.members() {
		if err := l.checkForm(cfg, t.cs); err != nil {
			return leafInvalid(i, err)
		}
		leaves = append(leaves, member{i, l})
	}
	if err := t.checkMembers(ctx.extensions); err != nil {
		return err
	}
	return verifyMany(t.cs, len(leaves),
		func(k int, f func(pub SignaturePublicKey, label string, content, sig []byte)) {
			i, l := leaves[k].i, leaves[k].l
			f(l.SignatureKey, "LeafNodeTBS", l.tbs(ctx.groupID, i), l.Signature)
		},
		func(k int) error {
			if err := leaves[k].l.verifySignature(t.cs, nil, ctx.groupID, leaves[k].i); err != nil {
				return leafInvalid(leaves[k].i, err)
			}
			return nil
		})
}

// checkMembers checks what must hold between all members and the group's
// extensions. RFC 9420, Section 7.3.
func (t *ratchetTree) checkMembers(exts []Extension) error {
	if t.signatureKeys.dups > 0 {
		return invalid("leaf-node/signature-key-not-unique", "7.3", "two leaves have the same signature_key")
	}
	if t.encryptionKeys.dups > 0 {
		return invalid("leaf-node/encryption-key-not-unique", "7.3", "two nodes have the same encryption_key")
	}
	if err := t.profiles.supportsCredentials(); err != nil {
		return err
	}
	req, err := requiredCapabilities(exts)
	if err != nil {
		return err
	}
	return t.profiles.first(func(c *Capabilities) error { return c.supportsGroup(exts, req) })
}

// checkUnmerged checks the lists of unmerged leaves. RFC 9420, Section 7.1 and
// Section 12.4.3.1.
func (t *ratchetTree) checkUnmerged() error {
	for x := nodeIndex(1); uint32(x) < t.nodes(); x += 2 {
		p := t.parent(x)
		if p == nil {
			continue
		}
		for k, l := range p.unmergedLeaves {
			if k > 0 && l <= p.unmergedLeaves[k-1] {
				return invalid("tree/unmerged-unsorted", "7.1", "the unmerged leaves of node %d are not in increasing order", x)
			}
			if uint32(l) < x.firstLeaf() || uint32(l) >= x.endLeaf() {
				return invalid("tree/unmerged-not-descendant", "12.4.3.1", "unmerged leaf %d is not below node %d", l, x)
			}
			if !t.occupied(l) {
				return invalid("tree/unmerged-blank", "12.4.3.1", "unmerged leaf %d of node %d is blank", l, x)
			}
			for y := t.up(l.node()); y != x; y = t.up(y) {
				q := t.parent(y)
				if q == nil {
					continue
				}
				if i, _ := splitLeaves(q.unmergedLeaves, uint32(l)); len(i) == len(q.unmergedLeaves) || q.unmergedLeaves[len(i)] != l {
					return invalid("tree/unmerged-gap", "12.4.3.1", "leaf %d is unmerged at node %d, but not at node %d between them", l, x, y)
				}
			}
		}
	}
	return nil
}

// forkJoin calls f for 0 … n-1 and returns the error of the lowest number that
// has one. Larger jobs are spread over the processors; all workers have ended
// when it returns, and if f panics, so does it, where the caller can recover. f must
// not change anything shared.
func forkJoin(n int, f func(i int) error) error {
	return forkJoinWith(min(runtime.GOMAXPROCS(0), n/4), n, f)
}

// forkJoinWith is forkJoin with a given number of workers.
func forkJoinWith(workers, n int, f func(i int) error) error {
	if workers < 2 {
		for i := range n {
			if err := f(i); err != nil {
				return err
			}
		}
		return nil
	}
	errs := make([]error, workers)
	panics := make([]any, workers)
	at := make([]int, workers)
	var next, failed atomic.Int64
	failed.Store(int64(n))
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					panics[w] = p
					failed.Store(0)
				}
			}()
			for {
				i := next.Add(1) - 1
				if i >= failed.Load() {
					return
				}
				if err := f(int(i)); err != nil {
					errs[w], at[w] = err, int(i)
					for old := failed.Load(); i < old && !failed.CompareAndSwap(old, i); old = failed.Load() {
					}
					return
				}
			}
		})
	}
	wg.Wait()
	for _, p := range panics {
		if p != nil {
			panic(p)
		}
	}
	for w := range errs {
		if errs[w] != nil && int64(at[w]) == failed.Load() {
			return errs[w]
		}
	}
	return nil
}
