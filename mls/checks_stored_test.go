package mls

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
)

// What our own store gives back is checked for what would otherwise come out
// much later, as a message that nobody can read.

// Each part of a stored member that does not fit the others is refused.
func TestStoredMembersThatDoNotFit(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(4)
	_, gs = w.commit(gs, 0, CommitOptions{Proposals: []Proposal{Remove(2)}})
	g := gs[1]
	stored := g.RatchetState()
	if _, err := LoadGroup(w.cfg, g.EpochState(), stored); err != nil {
		t.Fatal(err)
	}
	left := nodeIndex(1) // above us, and filled by the Commit
	for name, edit := range map[string]func(g *Group){
		"a blank leaf for ours":       func(g *Group) { g.own = 2 },
		"a leaf outside for ours":     func(g *Group) { g.own = 99 },
		"another's signature key":     func(g *Group) { g.signature = gs[0].signature },
		"no leaf key":                 func(g *Group) { delete(g.keys, g.own.node()) },
		"a key outside of the tree":   func(g *Group) { g.keys[99] = g.keys[g.own.node()] },
		"a key of another's leaf":     func(g *Group) { g.keys[0] = g.keys[g.own.node()] },
		"a key of a blank node":       func(g *Group) { g.keys[blankAbove(t, g)] = g.keys[g.own.node()] },
		"more epochs than are stored": func(g *Group) { g.past = make([]pastEpoch, maxPastEpochs+1) },
	} {
		n := *g
		n.keys = make(nodeKeys)
		for x, k := range g.keys {
			n.keys[x] = k
		}
		edit(&n)
		if _, err := LoadGroup(w.cfg, n.EpochState(), stored); err == nil {
			t.Errorf("%s: the group is loaded", name)
		}
	}
	if _, ok := g.keys[left]; !ok {
		t.Error("the key above our leaf is not there to begin with")
	}
}

// blankAbove returns a blank node above g's leaf, in a tree that is made so.
func blankAbove(t *testing.T, g *Group) nodeIndex {
	t.Helper()
	e := *g.epoch
	tree := e.tree.change()
	tree.setParent(1, nil)
	tree.finish()
	e.tree = tree
	e.context.treeHash = tree.rootHash()
	e.contextRaw = e.context.appendTo(nil)
	g.epoch = &e
	return 1
}

// Ratchets belong to one epoch of one branch.
func TestStoredRatchetsOfAnotherBranch(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(2)
	_, a := w.commit(gs, 0, CommitOptions{})
	_, b := w.commit(gs, 0, CommitOptions{})
	if a[1].Epoch() != b[1].Epoch() {
		t.Fatal("the branches are not of one epoch")
	}
	if _, err := LoadGroup(w.cfg, a[1].EpochState(), b[1].RatchetState()); err == nil {
		t.Error("the ratchets of a sibling were taken")
	}
	raw := a[1].RatchetState()
	binary.BigEndian.PutUint64(raw[1:], a[1].Epoch()+1)
	if _, err := LoadGroup(w.cfg, a[1].EpochState(), raw); err == nil {
		t.Error("the ratchets of another epoch were taken")
	}
	pages := make(pageStore)
	pages.save(b[1])
	st := StoredGroup{Head: a[1].EpochHead(), Tree: a[1].RatchetTree(), Pages: pages.pages()}
	if _, err := st.Load(w.cfg); err == nil {
		t.Error("the ratchet pages of a sibling were taken")
	}
	for i := range st.Pages {
		if st.Pages[i].ID == 0 {
			pages.save(a[1])
			head := bytes.Clone(pages[0])
			binary.BigEndian.PutUint64(head[1:], a[1].Epoch()+1)
			st.Pages[i].Data = head
		}
	}
	if _, err := st.Load(w.cfg); err == nil {
		t.Error("the ratchet pages of another epoch were taken")
	}
}

// A stored KeyPackage is whole, of a known format, and its keys belong to it.
func TestStoredBundlesThatDoNotFit(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		b, other := w.bundle("a"), w.bundle("b")
		for name, edit := range map[string]func(b *KeyPackageBundle){
			"init key of another":      func(b *KeyPackageBundle) { b.initKey = other.initKey },
			"leaf key of another":      func(b *KeyPackageBundle) { b.leafKey = other.leafKey },
			"signature key of another": func(b *KeyPackageBundle) { b.signature = other.signature },
			"no init key":              func(b *KeyPackageBundle) { b.initKey = hpkePrivateKey{1} },
		} {
			n := *b
			edit(&n)
			raw, err := n.MarshalBinary()
			w.check(err)
			if _, err := UnmarshalKeyPackageBundle(raw); err == nil {
				t.Errorf("%s: the bundle is read", name)
			}
		}
		raw, err := b.MarshalBinary()
		w.check(err)
		if _, err := UnmarshalKeyPackageBundle(append(bytes.Clone(raw), 0)); err == nil {
			t.Error("a bundle with something behind it is read")
		}
		raw[0]++
		if _, err := UnmarshalKeyPackageBundle(raw); err == nil || !strings.Contains(err.Error(), "format 2") {
			t.Errorf("a bundle of another format: %v", err)
		}
		raw[0]--
		binary.BigEndian.PutUint16(raw[3:], 0x7777)
		if _, err := UnmarshalKeyPackageBundle(raw); !hasRule(err, "crypto/cipher-suite-unknown") {
			t.Errorf("a bundle of an unknown suite: %v", err)
		}
	})
}

// A stored Commit has its committer in the tree, and nothing behind it.
func TestStoredCommitsThatDoNotFit(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(3)
	c, err := gs[0].Commit(CommitOptions{})
	w.check(err)
	raw, err := c.MarshalBinary()
	w.check(err)
	_, err = UnmarshalStagedCommit(w.cfg, gs[0], raw)
	w.check(err)
	if _, err := UnmarshalStagedCommit(w.cfg, gs[0], append(bytes.Clone(raw), 0)); err == nil {
		t.Error("a commit with something behind it is read")
	}
	_, later := w.commit(gs, 0, CommitOptions{})
	if _, err := UnmarshalStagedCommit(w.cfg, later[0], raw); err == nil {
		t.Error("a commit of the epoch before is read")
	}
	elsewhere, err := CreateGroup(w.cfg, w.cs, []byte("elsewhere"), w.key(), w.options("x"), nil)
	w.check(err)
	e := *elsewhere.epoch
	e.context.epoch = gs[0].Epoch()
	elsewhere.epoch = &e
	if _, err := UnmarshalStagedCommit(w.cfg, elsewhere, raw); err == nil {
		t.Error("a commit of another group is read")
	}
	_, branch := w.commit(gs, 1, CommitOptions{ForcePath: true})
	_, other := w.commit(gs, 1, CommitOptions{ForcePath: true})
	c, err = branch[0].Commit(CommitOptions{})
	w.check(err)
	raw, err = c.MarshalBinary()
	w.check(err)
	_, err = UnmarshalStagedCommit(w.cfg, branch[0], raw)
	w.check(err)
	if _, err := UnmarshalStagedCommit(w.cfg, other[0], raw); err == nil {
		t.Error("a commit of another branch is read")
	}
	if _, err := UnmarshalStagedCommit(w.cfg, branch[2], raw); err == nil {
		t.Error("a commit of another member is read")
	}
	raw, err = c.MarshalOn(branch[0])
	w.check(err)
	_, err = UnmarshalStagedCommit(w.cfg, branch[0], raw)
	w.check(err)
	for name, g := range map[string]*Group{"nothing": nil, "another branch": other[0], "another member": branch[2], "another epoch": gs[0]} {
		if _, err := UnmarshalStagedCommit(w.cfg, g, raw); err == nil {
			t.Errorf("a commit that was stored on its parent is read on %s", name)
		}
	}
	c, err = gs[0].Commit(CommitOptions{})
	w.check(err)
	n := *c
	n.committer = 3
	raw, err = n.MarshalBinary()
	w.check(err)
	if _, err := UnmarshalStagedCommit(w.cfg, gs[0], raw); err == nil {
		t.Error("a commit by nobody is read")
	}
}

// A stored delta names a tree that there can be, and says so at once: growing
// it to what the delta claims would take all memory.
func TestStoredDeltasOfImpossibleTrees(t *testing.T) {
	cfg := testConfig(t)
	g := newTestGroup(t, cfg, partsSuite, 5)[0]
	_, next := mustCommit(t, g, CommitOptions{ForcePath: true})
	delta := next.TreeDelta(g)
	for _, size := range []uint32{0, 3, 5, 12, 16, 1 << 15, 1 << 16, 1 << 30, 1 << 31, 1<<32 - 1} {
		bad := bytes.Clone(delta)
		binary.BigEndian.PutUint32(bad[1:], size)
		st := StoredGroup{Head: next.EpochHead(), Tree: g.RatchetTree(), Deltas: [][]byte{bad}, RatchetState: next.RatchetState()}
		if _, err := st.Load(cfg); err == nil || !strings.Contains(err.Error(), "leads to a tree of") {
			t.Errorf("size %d: %v", size, err)
		}
		boundedMemory(t, len(bad), func() func() { return func() { _, _ = st.Load(cfg) } })
	}
}

// A node of no kind in a stored delta is named as such.
func TestStoredDeltasOfUnknownNodes(t *testing.T) {
	cfg := testConfig(t)
	g := newTestGroup(t, cfg, partsSuite, 5)[0]
	_, next := mustCommit(t, g, CommitOptions{ForcePath: true})
	for _, node := range [][]byte{{0, 0, 0, 1, 7}, {0, 0, 0, 1, nodeTypeLeaf}, {0, 0, 0, 0, nodeTypeParent}} {
		delta := appendOpaqueVec([]byte{treeDeltaFormat, 0, 0, 0, 8}, node)
		st := StoredGroup{Head: next.EpochHead(), Tree: g.RatchetTree(), Deltas: [][]byte{delta}, RatchetState: next.RatchetState()}
		if _, err := st.Load(cfg); !hasRule(err, "codec/unknown-node-type") {
			t.Errorf("node %x: %v", node, err)
		}
	}
}

// A stored secret tree has a size that there can be.
func TestStoredSecretTreesOfImpossibleSize(t *testing.T) {
	for _, n := range []uint32{0, 3, 1 << 31, 1<<32 - 1} {
		raw := []byte{secretTreeVersion}
		raw = binary.BigEndian.AppendUint32(raw, n)
		raw = binary.BigEndian.AppendUint64(raw, 0)
		s := newReader(append(raw, 0, 0))
		if _, ok := unmarshalSecretTree(1, s); ok || !hasRule(s.error(), "state/malformed") {
			t.Errorf("%d leaves: %v", n, s.error())
		}
	}
}

// Keys that a store lost are missed by rule, not by a panic.
func TestKeysThatTheStoreLost(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(4)
	for i := range gs {
		_, gs = w.commit(gs, i, CommitOptions{})
	}
	// Node 1 is above us; member 3 seals for its key.
	n := *gs[1]
	n.keys = nodeKeys{n.own.node(): n.keys[n.own.node()]}
	c, err := gs[3].Commit(CommitOptions{})
	w.check(err)
	if err := w.refuse(&n, w.parse(c.Message())); !hasRule(err, "commit/path-secret-undecryptable") {
		t.Errorf("without the keys above: %v", err)
	}
	w.accept(gs[1], w.parse(c.Message()))

	raw, ref, err := gs[1].ProposeUpdate(nil, FramingOptions{})
	w.check(err)
	w.accept(gs[0], w.parse(raw))
	c, err = gs[0].Commit(CommitOptions{PendingRefs: []ProposalRef{ref}})
	w.check(err)
	m := w.parse(c.Message())
	for i, p := range gs[1].cache.list {
		lost := *p
		lost.leafKey = nil
		list := slices.Clone(gs[1].cache.list)
		list[i] = &lost
		n := *gs[1]
		n.cache.list = list
		if _, err := n.Process(m); !hasRule(err, "commit/path-secret-undecryptable") {
			t.Errorf("without the key of an Update: %v", err)
		}
	}
}

// A group whose secrets were wiped says so, whatever it is asked for.
func TestZeroedGroupsSaySo(t *testing.T) {
	w := newWorld(t, 1)
	g := w.group(2)[0]
	g.Zero()
	for name, f := range map[string]func() error{
		"GroupInfo":     func() error { _, err := g.GroupInfo(GroupInfoOptions{ExternalPub: true}); return err },
		"Propose":       func() error { _, _, err := g.Propose(Remove(1), FramingOptions{}); return err },
		"ProposeUpdate": func() error { _, _, err := g.ProposeUpdate(nil, FramingOptions{}); return err },
		"ReInitGroup":   func() error { _, err := g.ReInitGroup(w.key(), w.options("x"), nil, CommitOptions{}); return err },
		"Branch": func() error {
			_, err := g.Branch([]byte("b"), nil, w.key(), w.options("x"), nil, CommitOptions{})
			return err
		},
	} {
		if err := f(); !errors.Is(err, ErrZeroed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if g.EpochHead() != nil || g.EpochState() != nil || g.RatchetState() != nil || g.RatchetChanges() != nil {
		t.Error("there is something to store")
	}
}
