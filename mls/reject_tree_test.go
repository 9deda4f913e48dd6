package mls

import (
	"bytes"
	"testing"
)

// A treeForgery is a ratchet tree with a GroupInfo that names it.
type treeForgery struct {
	w     *world
	g     *Group
	nodes []treeSlot
}

// forgeTree takes apart the tree of a group in which all but the members after
// full have committed.
func (w *world) forgeTree(n, full int) *treeForgery {
	w.t.Helper()
	gs := w.group(1)
	names := []string{"a", "b", "c", "d", "e", "f", "g"}[:n-1]
	if full > 0 {
		gs = w.add(gs, names[:full-1]...)
		for i := range gs {
			_, gs = w.commit(gs, i, CommitOptions{})
		}
		names = names[full-1:]
	}
	for _, name := range names {
		gs = w.add(gs, name)
	}
	f := &treeForgery{w: w, g: gs[0]}
	for x := range nodeIndex(f.g.tree.nodes()) {
		f.nodes = append(f.nodes, *f.g.tree.slot(x))
	}
	for len(f.nodes) > 0 && f.nodes[len(f.nodes)-1].leaf == nil && f.nodes[len(f.nodes)-1].parent == nil {
		f.nodes = f.nodes[:len(f.nodes)-1]
	}
	f.w.check(f.join(f.encode(), nil))
	return f
}

func (f *treeForgery) encode() []byte {
	return appendVector(nil, func(b []byte) []byte {
		for _, s := range f.nodes {
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

// edit changes a parent.
func (f *treeForgery) edit(x nodeIndex, change func(p *parentNode)) {
	p := *f.nodes[x].parent
	p.unmergedLeaves = append([]LeafIndex(nil), p.unmergedLeaves...)
	change(&p)
	f.nodes[x].parent = &p
}

// join starts following the group with a tree; hash is what the GroupInfo
// names, nil for the hash of the tree itself.
func (f *treeForgery) join(tree, hash []byte) error {
	ctx := f.g.context
	if hash == nil {
		hash = ctx.treeHash
		if t, err := parseTree(f.w.cs, tree, f.w.cfg.limits()); err == nil {
			t.finish()
			hash = t.rootHash()
		}
	}
	ctx.treeHash = hash
	raw, err := signGroupInfo(f.w.cs, f.g.signature, ctx.appendTo(nil), nil, f.g.confirmationTag, f.g.own)
	f.w.check(err)
	m := f.w.parse(append(appendMessageHeader(nil, WireFormatGroupInfo), raw...))
	_, err = NewPublicGroup(f.w.cfg, m, tree)
	return err
}

// treeRow is a row about a tree of eight members. In the first five leaves all
// parents are filled; the rest came later and are unmerged above.
func treeRow(rule Rule, edit func(f *treeForgery)) rejectCase {
	return rejectCase{row: rule, each: func(t *testing.T, cs CipherSuite) error {
		f := newWorld(t, cs).forgeTree(8, 6)
		edit(f)
		return f.join(f.encode(), nil)
	}}
}

var treeRejects = []rejectCase{
	treeRow("tree/empty", func(f *treeForgery) { f.nodes = nil }),
	treeRow("tree/trailing-blank", func(f *treeForgery) { f.nodes = append(f.nodes, treeSlot{}) }),
	{row: "tree/too-large", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		f := w.forgeTree(8, 6)
		c := *w.cfg
		c.Limits.MaxMembers = 7
		f.w = &world{t: t, cs: w.cs, cfg: &c}
		return f.join(f.encode(), nil)
	}},
	treeRow("tree/leaf-at-parent-position", func(f *treeForgery) { f.nodes[1] = f.nodes[2] }),
	treeRow("tree/parent-at-leaf-position", func(f *treeForgery) { f.nodes[2] = f.nodes[1] }),
	{row: "tree/tree-hash", each: func(t *testing.T, cs CipherSuite) error {
		f := newWorld(t, cs).forgeTree(8, 6)
		good := f.encode()
		f.nodes[14] = treeSlot{}
		if err := f.join(f.encode(), f.g.context.treeHash); !hasRule(err, "tree/unmerged-blank") && !hasRule(err, "tree/trailing-blank") {
			t.Errorf("a leaf is missing: %v", err)
		}
		return f.join(good, make([]byte, cs.HashLen()))
	}},
	{row: "tree/parent-hash-broken", each: func(t *testing.T, cs CipherSuite) error {
		// Whatever is altered in any parent, the chain breaks.
		for x := nodeIndex(1); x < 11; x += 2 {
			for name, change := range map[string]func(w *world, p *parentNode){
				"key": func(w *world, p *parentNode) {
					_, pub, err := w.cs.generateKeyPair(w.cfg.Rand)
					w.check(err)
					p.encryptionKey = pub
				},
				"parent hash": func(w *world, p *parentNode) { p.parentHash = bytes.Repeat([]byte{1}, 32) },
			} {
				f := newWorld(t, cs).forgeTree(8, 6)
				if f.nodes[x].parent == nil {
					continue
				}
				f.edit(x, func(p *parentNode) { change(f.w, p) })
				if err := f.join(f.encode(), nil); !hasRule(err, "tree/parent-hash-broken") {
					t.Errorf("%s of node %d: %v", name, x, err)
				}
			}
		}
		// The root takes leaves for merged that are not.
		f := newWorld(t, cs).forgeTree(8, 6)
		f.edit(7, func(p *parentNode) { p.unmergedLeaves = nil })
		return f.join(f.encode(), nil)
	}},
	{row: "tree/parent-hash-two-chains", each: func(t *testing.T, cs CipherSuite) error {
		// Two members connive: both their leaves carry the parent hash of the
		// root between them.
		w := newWorld(t, cs)
		_, pub, err := w.cs.generateKeyPair(w.cfg.Rand)
		w.check(err)
		root := &parentNode{encryptionKey: pub}
		leaf := func(i LeafIndex, key SignaturePrivateKey, parentHash []byte) *LeafNode {
			_, pub, err := w.cs.generateKeyPair(seeded(uint64(i) + 100))
			w.check(err)
			o := w.options("x")
			l, err := o.leaf(w.cfg.capabilities(), key, pub)
			w.check(err)
			l.Source, l.ParentHash = LeafNodeSourceCommit, parentHash
			if parentHash == nil {
				l.Source = LeafNodeSourceUpdate
			}
			l, err = l.sign(w.cs, key, []byte("group"), i)
			w.check(err)
			return l
		}
		// The hash over the sibling that each would have to know holds the
		// other's leaf, hence its parent hash: with honest hashing this is
		// out of reach, so the tree is checked with the hashes put in place.
		k0, k1 := w.key(), w.key()
		tree := newTree(w.cs, 4)
		tree.extend()
		tree.extend()
		tree.setLeaf(0, leaf(0, k0, nil))
		tree.setLeaf(1, leaf(1, k1, nil))
		tree.setParent(1, root)
		tree.finish()
		a, b := tree.parentHash(root, 2), tree.parentHash(root, 0)
		tree = tree.change()
		tree.own(0).leaf = compacted(leaf(0, k0, a))
		tree.own(2).leaf = compacted(leaf(1, k1, b))
		return tree.verifyParentHashes()
	}},
	treeRow("tree/unmerged-not-descendant", func(f *treeForgery) {
		f.edit(1, func(p *parentNode) { p.unmergedLeaves = []LeafIndex{5} })
	}),
	{row: "tree/unmerged-blank", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		f := w.forgeTree(7, 6)
		f.edit(7, func(p *parentNode) { p.unmergedLeaves = append(p.unmergedLeaves, 7) })
		return f.join(f.encode(), nil)
	}},
	{row: "tree/unmerged-gap", each: func(t *testing.T, cs CipherSuite) error {
		f := newWorld(t, cs).forgeTree(8, 6)
		// Leaf 1 unmerged at the root, but merged at node 1 and 3 below it.
		f.edit(7, func(p *parentNode) { p.unmergedLeaves = append([]LeafIndex{1}, p.unmergedLeaves...) })
		return f.join(f.encode(), nil)
	}},
	{row: "tree/unmerged-unsorted", each: func(t *testing.T, cs CipherSuite) error {
		f := newWorld(t, cs).forgeTree(8, 6)
		if got := f.nodes[7].parent.unmergedLeaves; len(got) != 2 {
			t.Fatalf("unmerged leaves of the root: %v", got)
		}
		f.edit(7, func(p *parentNode) { p.unmergedLeaves = []LeafIndex{6, 6, 7} })
		if err := f.join(f.encode(), nil); !hasRule(err, "tree/unmerged-unsorted") {
			t.Errorf("one leaf twice: %v", err)
		}
		f.edit(7, func(p *parentNode) { p.unmergedLeaves = []LeafIndex{7, 6} })
		return f.join(f.encode(), nil)
	}},
	{row: "tree/key-not-unique", each: func(t *testing.T, cs CipherSuite) error {
		f := newWorld(t, cs).forgeTree(8, 6)
		f.edit(1, func(p *parentNode) { p.encryptionKey = f.nodes[8].leaf.encryptionKey() })
		if err := f.join(f.encode(), nil); !hasRule(err, "tree/key-not-unique") {
			t.Errorf("a leaf's key at a parent: %v", err)
		}
		f = newWorld(t, cs).forgeTree(8, 6)
		f.edit(1, func(p *parentNode) { p.encryptionKey = f.nodes[3].parent.encryptionKey })
		return f.join(f.encode(), nil)
	}},
	{row: "tree/leaf-invalid", each: func(t *testing.T, cs CipherSuite) error {
		for name, edit := range map[string]func(f *treeForgery){
			"another member's leaf": func(f *treeForgery) { f.nodes[14].leaf = f.nodes[0].leaf },
			"signature": func(f *treeForgery) {
				raw := bytes.Clone(f.nodes[14].leaf.raw)
				raw[len(raw)-1] ^= 1
				l := new(LeafNode)
				f.w.check(unmarshal(raw, l))
				f.nodes[14].leaf = compacted(l)
			},
			"capabilities": func(f *treeForgery) {
				f.nodes[14].leaf = compacted(f.w.forgePackage(packageForgery{leaf: func(l *LeafNode) { l.Capabilities.CipherSuites = nil }}).LeafNode)
			},
			"signature key of another": func(f *treeForgery) {
				f.nodes[14].leaf = compacted(f.w.forgePackage(packageForgery{key: &f.g.signature}).LeafNode)
			},
		} {
			f := newWorld(t, cs).forgeTree(8, 6)
			edit(f)
			if err := f.join(f.encode(), nil); !hasRule(err, "tree/leaf-invalid") {
				t.Errorf("%s: %v", name, err)
			}
		}
		// The tree without leaf 6 is right; with leaf 7 altered it is not.
		f := newWorld(t, cs).forgeTree(8, 6)
		f.nodes[12] = treeSlot{}
		f.edit(7, func(p *parentNode) { p.unmergedLeaves = []LeafIndex{7} })
		f.w.check(f.join(f.encode(), nil))
		raw := bytes.Clone(f.nodes[14].leaf.raw)
		raw[len(raw)-2] ^= 1
		l := new(LeafNode)
		f.w.check(unmarshal(raw, l))
		f.nodes[14].leaf = compacted(l)
		return f.join(f.encode(), nil)
	}},
}

func compacted(l *LeafNode) *treeLeaf {
	c := l.compact()
	return &c
}
