package federation

import "testing"

// TestUnvouched: a commit that waits for the word of somebody who is still there is
// no trouble; one that waits for who has left is, until an era is opened above it.
func TestUnvouched(t *testing.T) {
	w := newWorld()
	m, err := New(Config{Room: testRoom, Verify: testVerify, Self: nil}, w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob"}))
	if err != nil {
		t.Fatal(err)
	}
	step := func(when, want string, events ...Event) {
		t.Helper()
		for _, ev := range events {
			if _, err := m.Step(ev); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
		}
		got := ""
		if ref, ok := m.Unvouched(); ok {
			got = w.name(ref)
		}
		if got != want {
			t.Errorf("%s: %q is unvouched, want %q", when, got, want)
		}
	}
	commit := func(name, on, by string, s commitSpec) []Event {
		return []Event{w.commit(name, on, by, s), w.accept(name, "s1", Ballot{}, false, nil)}
	}
	step("at the beginning", "")
	step("bob may vouch", "", commit("a", "root", "alice", commitSpec{})...)
	step("carol, who has just come, may not, but bob", "", commit("b", "a", "alice", commitSpec{add: []string{"carol"}})...)
	step("bob has left", "a", commit("c", "b", "alice", commitSpec{remove: []string{"bob"}})...)
	step("above it carol may vouch", "a", commit("d", "c", "alice", commitSpec{})...)
	step("and does", "a", w.applied("d", "carol"))

	era := w.commit("E", "d", "alice", commitSpec{era: 1, list: []string{"s1"}})
	step("an era that nobody has vouched for", "a", era)
	step("one that counts", "", w.applied("E", "carol"))
	if m.NewestFinal() != testRef("E") {
		t.Errorf("the newest final commit is %s", w.name(m.NewestFinal()))
	}
	for name, want := range map[string]uint64{"d": 0, "E": 1} { // a Welcome into d names the era of d
		if got, ok := m.EraAt(testRef(name)); !ok || got != want {
			t.Errorf("%s lies in era %d (%v), want %d", name, got, ok, want)
		}
	}
	if _, ok := m.EraAt(testRef("nothing")); ok {
		t.Error("a commit that is not held lies in an era")
	}

	// Without an era: his word was under way when he left.
	w = newWorld()
	if m, err = New(Config{Room: testRoom, Verify: testVerify, Self: nil}, w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob"})); err != nil {
		t.Fatal(err)
	}
	step("again", "a", append(commit("a", "root", "alice", commitSpec{}), commit("c", "a", "alice", commitSpec{remove: []string{"bob"}})...)...)
	step("his word was under way", "", w.applied("a", "bob"))
	if !m.Votable(testRef("a")) {
		t.Error("it does not count")
	}
}
