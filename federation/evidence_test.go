package federation

import (
	"slices"
	"testing"
)

// kinds steps through events and returns the kinds of evidence that come of it.
func kinds(t *testing.T, m *Machine, evs ...Event) []EvidenceKind {
	t.Helper()
	var out []EvidenceKind
	for _, ev := range evs {
		acts, err := m.Step(ev)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range acts {
			if e, ok := a.(Evidence); ok {
				out = append(out, e.Kind)
			}
		}
	}
	return out
}

// TestEvidenceInOneBatch: several receipts that waited for one commit are looked
// at together; none of them hides another behind it.
func TestEvidenceInOneBatch(t *testing.T) {
	w := newWorld()
	m, err := New(testConfig(""), w.base([]string{"hub"}, []string{"alice"}, []string{"alice", "bob"}))
	if err != nil {
		t.Fatal(err)
	}
	x, a := w.commit("x", "root", "alice", commitSpec{}), w.commit("a", "root", "alice", commitSpec{})
	b := w.commit("b", "a", "bob", commitSpec{})
	var waiting []Event
	for _, n := range []string{"a", "b"} {
		waiting = append(waiting, w.accept(n, "hub", Ballot{}, false, nil), w.vote(n, "hub", Ballot{}, nil))
	}
	evs := append([]Event{x, w.accept("x", "hub", Ballot{}, false, nil), w.vote("x", "hub", Ballot{}, nil), b}, waiting...)
	if got := kinds(t, m, evs...); len(got) != 0 {
		t.Fatalf("got %v before the commit is there", got)
	}
	got := kinds(t, m, a)
	for _, k := range []EvidenceKind{EvidenceAccepts, EvidenceVotes, EvidenceOwner} {
		if !slices.Contains(got, k) {
			t.Errorf("got %v, want also %s", got, k)
		}
	}
}

// TestEvidenceAfterRestart: what a promise hides shows when the commit of its last
// vote comes, also to a process that did not see the promise come.
func TestEvidenceAfterRestart(t *testing.T) {
	w := newWorld()
	m, err := New(testConfig(""), w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"}))
	if err != nil {
		t.Fatal(err)
	}
	a, b := w.commit("a", "root", "alice", commitSpec{}), w.commit("b", "root", "bob", commitSpec{})
	got := kinds(t, m, a, w.vote("a", "s2", Ballot{}, nil), w.promise("root", "s2", Ballot{Round: 1, Rank: 1}, &LastVote{Ref: testRef("b")}))
	if len(got) != 0 {
		t.Fatalf("got %v before the commit is there", got)
	}
	data, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if m, err = Unmarshal(testConfig(""), data); err != nil {
		t.Fatal(err)
	}
	if got := kinds(t, m, b); !slices.Contains(got, EvidenceHidden) {
		t.Errorf("got %v, want %s", got, EvidenceHidden)
	}
}
