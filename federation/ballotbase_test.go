package federation

import (
	"testing"
	"time"
)

// readinessRunsOut plays a room of three sequencers in which s1 and s2 vote for
// a list change that nobody else hears of; its ready receipts then grow too old,
// s1 asks for ballots that s3 alone answers, and a sibling waits. It returns what
// somebody sees who holds every event.
func readinessRunsOut(t *testing.T, without rule) (*world, *Machine) {
	t.Helper()
	w := newWorld()
	base := w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob", "carol"})
	all, err := New(testConfig(""), base)
	if err != nil {
		t.Fatal(err)
	}
	ms := map[string]*Machine{"all": all}
	for _, n := range []string{"s1", "s2", "s3"} {
		cfg := testConfig(n)
		cfg.without = without
		if ms[n], err = New(cfg, base); err != nil {
			t.Fatal(err)
		}
	}
	give := func(ev Event, to ...string) {
		t.Helper()
		for _, n := range append(to, "all") {
			if _, err := ms[n].Step(ev); err != nil {
				t.Fatal(err)
			}
		}
	}
	now := time.Duration(0)
	// run lets seconds pass for one module, heard by some others.
	run := func(seconds int, n string, to ...string) {
		t.Helper()
		for range seconds {
			now += time.Second
			for _, a := range ms[n].Tick(now) {
				if s, ok := a.(Send); ok {
					t.Logf("%v %s: %s", now, n, w.describe(s.Receipt))
					give(s.Receipt, to...)
				}
			}
		}
	}
	for _, ev := range []Event{
		w.commit("a", "root", "alice", commitSpec{}),
		w.commit("l", "a", "bob", commitSpec{list: []string{"s1", "s2", "s4"}, admins: []string{"alice"}}),
		w.applied("l", "alice"), w.applied("a", "carol"), w.ready("l", "s4"),
	} {
		give(ev, "s1", "s2", "s3")
	}
	for _, n := range []string{"s2", "s1", "s3", "s2", "s1"} { // ready receipts, accepts
		run(1, n, "s1", "s2", "s3")
	}
	run(7, "s1")
	run(7, "s2")
	if !all.Final(testRef("l")) {
		t.Fatal("the list change is not final")
	}
	now += 11 * time.Minute
	give(w.commit("x", "a", "carol", commitSpec{}), "s1", "s3")
	give(w.applied("x", "alice"), "s1", "s3")
	run(8, "s3") // its vote is lost, like the others
	for range 3 {
		run(400, "s1", "s3")
		run(1, "s3", "s1")
		run(8, "s1", "s3")
		run(8, "s3", "s1")
	}
	return w, all
}

// TestNobodyVotesBelowWhatABallotMustExtend: a vote in a later ballot stands for
// all that its voter gives up, so it may not lie below what the ballot's promises
// bound it to, not even while a list change there is not ready any more.
func TestNobodyVotesBelowWhatABallotMustExtend(t *testing.T) {
	w, all := readinessRunsOut(t, 0)
	if all.Final(testRef("x")) || w.name(all.NewestFinal()) != "l" {
		t.Errorf("final besides the list change: %s", w.state(all))
	}
	if ps := all.lists[testRef("root")].promises; len(ps) == 0 {
		t.Error("nobody asked for a ballot")
	}
	_, all = readinessRunsOut(t, ruleBallotBase)
	if !all.Final(testRef("x")) || !all.Final(testRef("l")) {
		t.Error("without the rule the story is the same")
	}
}
