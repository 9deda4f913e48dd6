package federation

import (
	"slices"
	"testing"
)

func healMachine(t *testing.T) (*world, *Machine, func(name, parent, author string, s commitSpec)) {
	t.Helper()
	w := newWorld()
	m, err := New(testConfig(""), w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob", "carol", "mallory"}))
	if err != nil {
		t.Fatal(err)
	}
	return w, m, func(name, parent, author string, s commitSpec) {
		t.Helper()
		if _, err := m.Step(w.commit(name, parent, author, s)); err != nil {
			t.Fatal(err)
		}
	}
}

func usersOf(ls []Leaf) []string {
	var out []string
	for _, l := range ls {
		out = append(out, l.User)
	}
	return out
}

// TestHealPlan: both sides of a split changed the group; the loser goes back to
// the fork, follows the winners, and proposes its own changes again, Removes
// first, but nobody whom either side put out.
func TestHealPlan(t *testing.T) {
	w, m, commit := healMachine(t)
	commit("f", "root", "alice", commitSpec{})
	// the losing side adds dave and eve, and removes mallory
	commit("l1", "f", "bob", commitSpec{add: []string{"dave", "eve"}})
	commit("l2", "l1", "bob", commitSpec{remove: []string{"mallory"}})
	commit("l3", "l2", "dave", commitSpec{update: []string{"dave"}})
	// the winning side removes carol and adds frank
	commit("w1", "f", "alice", commitSpec{remove: []string{"carol"}})
	commit("w2", "w1", "alice", commitSpec{add: []string{"frank"}})

	p, ok := m.Heal(testRef("l3"), testRef("w2"), w.index("bob"))
	if !ok {
		t.Fatal("no plan")
	}
	if p.Fork != testRef("f") {
		t.Errorf("fork %s, want f", w.name(p.Fork))
	}
	if want := []Ref{testRef("w1"), testRef("w2")}; !slices.Equal(p.Path, want) {
		t.Errorf("path %v, want w1 w2", p.Path)
	}
	if want := []Ref{testRef("l1"), testRef("l2"), testRef("l3")}; !slices.Equal(p.Undone, want) {
		t.Errorf("undone %v, want l1 l2 l3", p.Undone)
	}
	if got := usersOf(p.Removes); !slices.Equal(got, []string{"mallory"}) {
		t.Errorf("removes %v, want mallory", got)
	}
	if got := usersOf(p.Adds); !slices.Equal(got, []string{"dave", "eve"}) {
		t.Errorf("adds %v, want dave and eve", got)
	}
	if !p.Member {
		t.Error("bob is a member of both branches")
	}
	if p.Resume {
		t.Error("frank was not in the group at the fork: no resumption PSK")
	}
	if p, _ := m.Heal(testRef("l3"), testRef("w1"), w.index("dave")); p.Member || !p.Resume {
		t.Errorf("dave, added by the losing branch: member %v, resume %v", p.Member, p.Resume)
	}
	if p, _ := m.Heal(testRef("l1"), testRef("w1"), w.index("carol")); p.Member {
		t.Error("carol was removed by the winning branch")
	}
}

// TestHealPlanBanWins: a user whom the winning branch removed is not added again
// because the losing branch gave them a second device.
func TestHealPlanBanWins(t *testing.T) {
	w, m, commit := healMachine(t)
	commit("l1", "root", "bob", commitSpec{add: []string{"mallory/2", "alice/2"}})
	commit("w1", "root", "alice", commitSpec{remove: []string{"mallory"}})
	p, _ := m.Heal(testRef("l1"), testRef("w1"), w.index("bob"))
	if got := usersOf(p.Adds); !slices.Equal(got, []string{"alice"}) {
		t.Errorf("adds %v, want alice's second device alone", got)
	}
	// And the other way round: the losing branch banned, the winning added.
	p, _ = m.Heal(testRef("w1"), testRef("l1"), w.index("alice"))
	if got := usersOf(p.Removes); !slices.Equal(got, []string{"mallory"}) {
		t.Errorf("removes %v, want mallory", got)
	}
}

// TestHealPlanForward: a head that merely moved on undoes nothing.
func TestHealPlanForward(t *testing.T) {
	w, m, commit := healMachine(t)
	commit("a", "root", "alice", commitSpec{})
	commit("b", "a", "bob", commitSpec{list: []string{"s1"}, admins: []string{"alice"}})
	p, ok := m.Heal(testRef("a"), testRef("b"), w.index("carol"))
	if !ok || len(p.Undone) != 0 || len(p.Path) != 1 || !p.Member || !p.Resume {
		t.Errorf("got %+v", p)
	}
	p, _ = m.Heal(testRef("b"), testRef("a"), w.index("carol"))
	if !slices.Equal(p.Policies, []Ref{testRef("b")}) {
		t.Errorf("policies %v, want b", p.Policies)
	}
	if _, ok := m.Heal(testRef("nowhere"), testRef("a"), 0); ok {
		t.Error("planned a way from a commit that is not held")
	}
}
