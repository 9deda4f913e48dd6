package federation

import (
	"slices"
	"testing"
)

func TestListChangesInSight(t *testing.T) {
	w := newWorld()
	m, err := New(Config{Room: testRoom, Verify: testVerify, Self: nil}, w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob"}))
	if err != nil {
		t.Fatal(err)
	}
	step := func(ev Event) {
		t.Helper()
		if _, err := m.Step(ev); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := m.PendingList(); ok || len(m.ListChanges()) != 0 {
		t.Error("a list change where there is none")
	}
	step(w.commit("L", "root", "alice", commitSpec{list: []string{"s1", "s2", "s3"}}))
	l := testRef("L")
	if _, ok := m.PendingList(); ok || !slices.Equal(m.ListChanges(), []Ref{l}) {
		t.Errorf("a list change that waits: %v", m.ListChanges())
	}
	if list, ok := m.ListAt(l); !ok || len(list) != 3 || m.Governing(l) != testRef("root") {
		t.Errorf("its list: %v", list)
	}
	step(w.ready("L", "s3"))
	step(w.ready("L", "s2"))
	if got := m.Readies(l); !slices.Equal(got, []uint32{1, 2}) {
		t.Errorf("ready: %v", got)
	}
	step(w.accept("L", "s1", Ballot{}, false, nil))
	if ref, ok := m.PendingList(); !ok || ref != l || m.UsableHead() != testRef("root") {
		t.Errorf("accepted, not final: %v %v", ref, ok)
	}
	step(w.applied("L", "bob"))
	step(w.vote("L", "s1", Ballot{}, nil))
	if _, ok := m.PendingList(); ok || len(m.ListChanges()) != 0 || m.UsableHead() != l {
		t.Error("a list change that is final still counts as under way")
	}
	if _, ok := m.ListAt(testRef("nothing")); ok || m.Readies(testRef("nothing")) != nil {
		t.Error("a list nobody set")
	}
}
