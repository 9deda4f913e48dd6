package mls

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

const partsSuite = MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519

// A pageStore overwrites pages as a database would.
type pageStore map[uint64][]byte

func (p pageStore) save(g *Group) (written int) {
	for _, c := range g.RatchetChanges() {
		written += 8 + len(c.Data)
		if c.Data == nil {
			delete(p, c.ID)
		} else {
			p[c.ID] = c.Data
		}
	}
	g.RatchetStored()
	return written
}

func (p pageStore) pages() []RatchetPage {
	var out []RatchetPage
	for id, data := range p {
		out = append(out, RatchetPage{id, data})
	}
	return out
}

// wantSameGroup compares everything that two groups would store.
func wantSameGroup(t *testing.T, got, want *Group) {
	t.Helper()
	if !bytes.Equal(got.EpochState(), want.EpochState()) {
		t.Fatalf("epoch %d: the loaded epoch is another than the stored one", want.Epoch())
	}
	if !bytes.Equal(got.RatchetState(), want.RatchetState()) {
		t.Fatalf("epoch %d: the loaded ratchets are others than the stored ones", want.Epoch())
	}
}

// A delta leads from any epoch's tree to any other's, also where a Commit makes
// the tree smaller and fills it again.
func TestTreeDeltaBetweenAnyEpochs(t *testing.T) {
	for seed := range uint64(25) {
		cfg := testConfig(t)
		r := rand.New(rand.NewPCG(seed, 7))
		g := newTestGroup(t, cfg, partsSuite, 2+r.IntN(6))[0]
		next := 100
		epochs := []*Group{g}
		for range 12 {
			var ps []Proposal
			for range r.IntN(3) {
				ps = append(ps, Add(newTestClient(t, cfg, partsSuite, next).KeyPackage()))
				next++
			}
			for i := range g.Members() {
				if i != g.OwnLeafIndex() && r.IntN(3) == 0 {
					ps = append(ps, Remove(i))
				}
			}
			_, g = mustCommit(t, g, CommitOptions{Proposals: ps, ForcePath: r.IntN(2) == 0})
			epochs = append(epochs, g)
		}
		for i, a := range epochs {
			for k, b := range epochs {
				stored := StoredGroup{Head: b.EpochHead(), Tree: a.RatchetTree(), Deltas: [][]byte{b.TreeDelta(a)}, RatchetState: b.RatchetState()}
				loaded, err := stored.Load(cfg)
				if err != nil {
					t.Fatalf("seed %d, epoch %d (%d leaves) to %d (%d leaves): %v", seed, i, a.tree.size, k, b.tree.size, err)
				}
				wantSameGroup(t, loaded, b)
				stored.Tree, stored.From = nil, a
				before := a.RatchetTree()
				if loaded, err = stored.Load(cfg); err != nil {
					t.Fatalf("seed %d, epoch %d to %d, from the group: %v", seed, i, k, err)
				}
				wantSameGroup(t, loaded, b)
				if !bytes.Equal(a.RatchetTree(), before) {
					t.Fatalf("seed %d: loading epoch %d has changed epoch %d", seed, k, i)
				}
			}
		}
	}
}

// Epochs that are loaded one from the other share what is the same of their trees,
// as they do where they are entered one after the other.
func TestLoadedEpochsShareTheirTrees(t *testing.T) {
	cfg := testConfig(t)
	g := newTestGroup(t, cfg, partsSuite, 300)[0]
	_, next := mustCommit(t, g, CommitOptions{Proposals: []Proposal{Remove(9)}})
	stored := StoredGroup{Head: next.EpochHead(), From: g, Deltas: [][]byte{next.TreeDelta(g)}, RatchetState: next.RatchetState()}
	loaded, err := stored.Load(cfg)
	if err != nil {
		t.Fatal(err)
	}
	own := 0
	for i, c := range loaded.tree.chunks {
		if c != g.tree.chunks[i] {
			own++
		}
	}
	if all := len(g.tree.chunks); own > all/2 {
		t.Errorf("%d of %d parts of the tree are held twice", own, all)
	}
	if loaded.signers != g.signers {
		t.Error("the epochs do not share the keys of who signed")
	}
}

// Members come, go and change their keys at random. Every epoch is stored as a
// delta, and restored from the first tree and all deltas.
func TestStoredGroupFollowsTreeThroughManyEpochs(t *testing.T) {
	cfg := testConfig(t)
	r := rand.New(rand.NewPCG(1, 2))
	groups := newTestGroup(t, cfg, partsSuite, 3)
	next := 3
	// Only the first member is followed; the others' states stay behind.
	g := groups[0]
	st := StoredGroup{Tree: g.RatchetTree()}
	for range 60 {
		var ps []Proposal
		members := g.MemberCount()
		for range r.IntN(4) {
			ps = append(ps, Add(newTestClient(t, cfg, partsSuite, next).KeyPackage()))
			next++
		}
		if members > 20 || members > 4 && r.IntN(2) == 0 {
			// A run of leaves, so that the tree shrinks, too.
			for i := range g.Members() {
				if i != g.OwnLeafIndex() && (members > 20 && i > 2 || r.IntN(members) == 0) {
					ps = append(ps, Remove(i))
				}
			}
		}
		_, n := mustCommit(t, g, CommitOptions{Proposals: ps, ForcePath: r.IntN(2) == 0})
		st.Deltas = append(st.Deltas, n.TreeDelta(g))
		g = n
		st.Head, st.RatchetState = g.EpochHead(), g.RatchetState()
		loaded, err := st.Load(cfg)
		if err != nil {
			t.Fatalf("epoch %d: %v", g.Epoch(), err)
		}
		wantSameGroup(t, loaded, g)
		// What is loaded shares no memory with g; the delta is the same.
		if d := loaded.TreeDelta(n); len(d) > 8 {
			t.Fatalf("epoch %d: a delta of %d bytes between equal trees", g.Epoch(), len(d))
		}
	}
	if next < 30 {
		t.Errorf("only %d members ever joined", next)
	}
}

// Messages come in any order, and some never. After each step the group is
// restored from the pages written so far.
func TestRatchetPagesFollowMessages(t *testing.T) {
	cfg := testConfig(t)
	cfg.Limits = Limits{MaxSkipped: 5, MaxSkippedTotal: 8}
	r := rand.New(rand.NewPCG(3, 4))
	groups := newTestGroup(t, cfg, partsSuite, 7)
	g := groups[0]
	head, tree := g.EpochHead(), g.RatchetTree()
	pages := make(pageStore)
	check := func() {
		t.Helper()
		pages.save(g)
		st := StoredGroup{Head: head, Tree: tree, Pages: pages.pages()}
		loaded, err := st.Load(cfg)
		if err != nil {
			t.Fatal(err)
		}
		wantSameGroup(t, loaded, g)
		if n := len(loaded.RatchetChanges()); n != 1 {
			t.Fatalf("%d pages are to be stored right after loading, want the first alone", n)
		}
	}
	check()
	var waiting []*Message
	dropped := 0
	for i := range 300 {
		if from := r.IntN(len(groups)); from == 0 {
			mustEncrypt(t, g, "mine")
		} else {
			waiting = append(waiting, mustEncrypt(t, groups[from], fmt.Sprint(i)))
		}
		if len(waiting) > 20 {
			k := r.IntN(len(waiting))
			if _, err := g.Process(waiting[k]); err != nil {
				dropped++
			}
			waiting = slices.Delete(waiting, k, k+1)
		}
		check()
	}
	if dropped == 0 {
		t.Error("no key was ever dropped: the limits were not reached")
	}
	for i := range 3 {
		raw, _, err := groups[i+1].Propose(Remove(LeafIndex(6-i)), FramingOptions{Private: i == 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Process(mustParse(t, raw)); err != nil {
			t.Fatal(err)
		}
		check()
	}
	if _, _, err := g.ProposeUpdate(nil, FramingOptions{}); err != nil {
		t.Fatal(err)
	}
	check()
}

func TestRatchetChangesStayUntilStored(t *testing.T) {
	g := newTestGroup(t, testConfig(t), partsSuite, 2)[0]
	g.RatchetChanges()
	g.RatchetStored()
	mustEncrypt(t, g, "text")
	first := g.RatchetChanges()
	if again := g.RatchetChanges(); len(first) < 2 || len(again) != len(first) {
		t.Errorf("%d pages, then %d: pages are gone before they were stored", len(first), len(again))
	}
	g.RatchetStored()
	if n := len(g.RatchetChanges()); n != 1 {
		t.Errorf("%d pages after they were stored, want the first alone", n)
	}
	g.Zero()
	if g.RatchetChanges() != nil || g.EpochHead() != nil {
		t.Error("a wiped group gives secrets")
	}
	g.RatchetStored()
}

func TestPublicGroupGivesTreeDeltas(t *testing.T) {
	cfg := testConfig(t)
	g := newTestGroup(t, cfg, partsSuite, 4)[0]
	info, err := g.GroupInfo(GroupInfoOptions{RatchetTree: true})
	if err != nil {
		t.Fatal(err)
	}
	pg, err := NewPublicGroup(cfg, mustParse(t, info), nil)
	if err != nil {
		t.Fatal(err)
	}
	m, next := mustCommit(t, g, CommitOptions{ForcePath: true})
	p, err := pg.Process(m)
	if err != nil {
		t.Fatal(err)
	}
	if want, got := next.TreeDelta(g), p.(*PublicStagedCommit).Merge().TreeDelta(pg); !bytes.Equal(want, got) {
		t.Errorf("delta %x, want that of the member, %x", got, want)
	}
}

// What an epoch and a message cost to store grows with the depth of the tree.
func TestPartsGrowWithDepth(t *testing.T) {
	epochSize, stepSize := make(map[int]int), make(map[int]int)
	for _, n := range []int{64, 256, 1024} {
		g, far, _ := fullGroup(t, partsSuite, n)
		m, _ := mustCommit(t, g, CommitOptions{})
		next := mustFollow(t, far, m)
		epochSize[n] = len(next.EpochHead()) + len(next.TreeDelta(far))
		pages := make(pageStore)
		pages.save(next)
		mustEncrypt(t, next, "text")
		stepSize[n] = pages.save(next)
	}
	for what, size := range map[string]map[int]int{"an epoch": epochSize, "a message": stepSize} {
		first, second := size[256]-size[64], size[1024]-size[256]
		if first < 0 || first > 400 || second < 0 || second > 400 {
			t.Errorf("%s takes %v bytes: four times the members add %d and %d", what, size, first, second)
		}
	}
}

func TestStoredGroupRefusesWrongParts(t *testing.T) {
	cfg := testConfig(t)
	g := newTestGroup(t, cfg, partsSuite, 5)[0]
	_, one := mustCommit(t, g, CommitOptions{Proposals: []Proposal{Remove(2), Remove(3)}})
	_, two := mustCommit(t, one, CommitOptions{Proposals: []Proposal{Add(newTestClient(t, cfg, partsSuite, 9).KeyPackage())}, ForcePath: true})
	pages := make(pageStore)
	pages.save(two)
	good := func() StoredGroup {
		return StoredGroup{Head: two.EpochHead(), Tree: g.RatchetTree(), Deltas: [][]byte{one.TreeDelta(g), two.TreeDelta(one)}, Pages: pages.pages()}
	}
	st := good()
	if _, err := st.Load(cfg); err != nil {
		t.Fatal(err)
	}
	delta := two.TreeDelta(one)
	for name, change := range map[string]func(st *StoredGroup){
		"no head":              func(st *StoredGroup) { st.Head = nil },
		"two ratchet states":   func(st *StoredGroup) { st.RatchetState = two.RatchetState() },
		"head of another":      func(st *StoredGroup) { st.Head = one.EpochHead() },
		"head cut":             func(st *StoredGroup) { st.Head = st.Head[:len(st.Head)-1] },
		"head and more":        func(st *StoredGroup) { st.Head = append(st.Head, 0) },
		"no tree":              func(st *StoredGroup) { st.Tree = nil },
		"a delta missing":      func(st *StoredGroup) { st.Deltas = st.Deltas[1:] },
		"the last one missing": func(st *StoredGroup) { st.Deltas = st.Deltas[:1] },
		"deltas in disorder":   func(st *StoredGroup) { slices.Reverse(st.Deltas) },
		"delta cut":            func(st *StoredGroup) { st.Deltas[1] = delta[:len(delta)-1] },
		"delta and more":       func(st *StoredGroup) { st.Deltas[1] = append(bytes.Clone(delta), 0) },
		"delta of size 3":      func(st *StoredGroup) { st.Deltas[1] = append([]byte{1, 0, 0, 0, 3}, delta[5:]...) },
		"delta of huge size":   func(st *StoredGroup) { st.Deltas[1] = append([]byte{1, 0x40, 0, 0, 0}, delta[5:]...) },
		"delta out of range":   func(st *StoredGroup) { st.Deltas[1] = []byte{1, 0, 0, 0, 8, 5, 0, 0, 0, 99, 0} },
		"leaf above leaves":    func(st *StoredGroup) { st.Deltas[1] = []byte{1, 0, 0, 0, 8, 5, 0, 0, 0, 1, nodeTypeLeaf} },
		"unknown node":         func(st *StoredGroup) { st.Deltas[1] = []byte{1, 0, 0, 0, 8, 5, 0, 0, 0, 1, 7} },
		"another format":       func(st *StoredGroup) { st.Deltas[1] = append([]byte{9}, delta[1:]...) },
		"no pages":             func(st *StoredGroup) { st.Pages = nil },
		"first page missing": func(st *StoredGroup) {
			st.Pages = slices.DeleteFunc(st.Pages, func(p RatchetPage) bool { return p.ID == 0 })
		},
		"a page twice":      func(st *StoredGroup) { st.Pages = append(st.Pages, st.Pages[0]) },
		"a page of no kind": func(st *StoredGroup) { st.Pages = append(st.Pages, RatchetPage{9 << 32, []byte{1}}) },
		"a page cut": func(st *StoredGroup) {
			for i, p := range st.Pages {
				st.Pages[i].Data = p.Data[:len(p.Data)-1]
			}
		},
		"a node outside": func(st *StoredGroup) { st.Pages = append(st.Pages, RatchetPage{1<<32 | 999, make([]byte, 32)}) },
		"a page in the place of another": func(st *StoredGroup) {
			last := lastPage(st.Pages)
			st.Pages = slices.DeleteFunc(st.Pages, func(p RatchetPage) bool { return p.ID == last })
			st.Pages = append(st.Pages, st.Pages[0])
		},
		"another page missing": func(st *StoredGroup) {
			st.Pages = slices.DeleteFunc(st.Pages, func(p RatchetPage) bool { return p.ID == lastPage(st.Pages) })
		},
		"ratchets of another": func(st *StoredGroup) {
			p := make(pageStore)
			p.save(one)
			st.Pages = p.pages()
		},
	} {
		st := good()
		change(&st)
		if _, err := st.Load(cfg); err == nil {
			t.Errorf("%s: the group is loaded", name)
		}
	}
	// First pages of the format before do not count the others.
	st = good()
	for i, p := range st.Pages {
		if p.ID == 0 {
			st.Pages[i].Data = slices.Concat([]byte{uncountedPages}, p.Data[1:len(p.Data)-4])
		}
	}
	got, err := st.Load(cfg)
	if err != nil {
		t.Fatalf("pages of the format before: %v", err)
	}
	wantSameGroup(t, got, two)
}

func lastPage(pages []RatchetPage) (last uint64) {
	for _, p := range pages {
		last = max(last, p.ID)
	}
	return last
}
