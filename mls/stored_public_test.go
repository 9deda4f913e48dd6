package mls

import (
	"bytes"
	"testing"
)

// A server that follows a group stores what changed, and goes on from there.
func TestStoredPublicGroupFollowsTheGroup(t *testing.T) {
	w := newRejectWorld(t)
	gs := w.group(5)
	pub := w.public(gs[0])
	tree, from := pub.RatchetTree(), pub
	var deltas [][]byte
	for i, o := range []CommitOptions{
		{Proposals: []Proposal{Remove(3), Remove(4)}},
		{Proposals: []Proposal{Add(w.bundle("x").KeyPackage())}},
		{ForcePath: true},
	} {
		sc, err := gs[0].Commit(o)
		w.check(err)
		gs[0], pub = sc.Merge(), w.followPublic(pub, sc)
		withoutProposals := gs[0].RatchetState()
		raw, _, err := gs[0].Propose(Remove(1), FramingOptions{})
		w.check(err)
		_, err = pub.Process(w.parse(raw))
		w.check(err)
		deltas = append(deltas, pub.TreeDelta(from))
		from = pub
		stored := StoredPublicGroup{Head: pub.EpochHead(), Tree: tree, Deltas: deltas}
		loaded, err := stored.Load(w.cfg)
		w.check(err)
		got, err := loaded.MarshalBinary()
		w.check(err)
		want, err := pub.MarshalBinary()
		w.check(err)
		if !bytes.Equal(got, want) || len(loaded.PendingProposals()) != 1 {
			t.Errorf("commit %d: the loaded group is another than the stored one", i)
		}
		pub, from = loaded, loaded
		// What it loaded carries out what was proposed before.
		last, err := gs[0].Commit(CommitOptions{Pending: true})
		w.check(err)
		if next := w.followPublic(pub, last); next.MemberCount() != pub.MemberCount()-1 {
			t.Errorf("commit %d: %d members after the Remove", i, next.MemberCount())
		}
		// The next step goes on without it.
		gs[0], err = LoadGroup(w.cfg, gs[0].EpochState(), withoutProposals)
		w.check(err)
	}
	for name, st := range map[string]StoredPublicGroup{
		"no head":         {Tree: tree, Deltas: deltas},
		"head of another": {Head: gs[0].EpochHead(), Tree: tree, Deltas: deltas},
		"head and more":   {Head: append(pub.EpochHead(), 0), Tree: tree, Deltas: deltas},
		"head cut":        {Head: pub.EpochHead()[:40], Tree: tree, Deltas: deltas},
		"another tree":    {Head: pub.EpochHead(), Tree: tree, Deltas: deltas[:1]},
		"no tree":         {Head: pub.EpochHead(), Deltas: deltas},
	} {
		if _, err := st.Load(w.cfg); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
}

// Storing an epoch of a large group costs a server what changed.
func TestPublicPartsGrowWithDepth(t *testing.T) {
	size := make(map[int]int)
	for _, n := range []int{64, 256, 1024} {
		g, _, _ := fullGroup(t, partsSuite, n)
		info, err := g.GroupInfo(GroupInfoOptions{RatchetTree: true})
		if err != nil {
			t.Fatal(err)
		}
		pub, err := NewPublicGroup(g.cfg, mustParse(t, info), nil)
		if err != nil {
			t.Fatal(err)
		}
		m, _ := mustCommit(t, g, CommitOptions{})
		p, err := pub.Process(m)
		if err != nil {
			t.Fatal(err)
		}
		next := p.(*PublicStagedCommit).Merge()
		size[n] = len(next.EpochHead()) + len(next.TreeDelta(pub))
	}
	if a, b := size[256]-size[64], size[1024]-size[256]; a < 0 || a > 400 || b < 0 || b > 400 {
		t.Errorf("an epoch takes %v bytes: four times the members add %d and %d", size, a, b)
	}
}
