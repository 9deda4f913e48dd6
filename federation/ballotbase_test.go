package federation

import (
	"slices"
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

// TestWhoStartsHigherJudgesBallotsAsOthersDo: a last vote for what lies below the
// base sets aside those of lower ballots for what lies above it, as it does where
// both are held.
func TestWhoStartsHigherJudgesBallotsAsOthersDo(t *testing.T) {
	w := newWorld()
	root := w.plainBase()
	_, evs := w.outvoted(root)
	starts := []Base{root}
	for i, n := range []string{"a", "b"} {
		late := root
		late.Ref, late.Epoch, late.Config = testRef(n), uint64(1+i), root.Ref
		starts = append(starts, late)
	}
	for _, base := range starts {
		m, err := New(testConfig(""), base)
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range evs {
			if _, err := m.Step(ev); err != nil && base.Ref == root.Ref {
				t.Fatal(err)
			}
		}
		if w.name(m.NewestFinal()) != "b" || w.name(m.Head()) != "e" {
			t.Errorf("from %s:\n%s", w.name(base.Ref), w.state(m))
		}
	}
}

// TestNobodyVotesBesideAHeldLastVote: a last vote that nobody can judge any more may
// be a lie. Readers take it, but who votes above the root extends what the others
// report as well.
func TestNobodyVotesBesideAHeldLastVote(t *testing.T) {
	for _, last := range []*LastVote{nil, lastVote("c", 0)} {
		w := newWorld()
		base := w.plainBase()
		_, evs := w.outvoted(base)
		base.Ref, base.Epoch, base.Config = testRef("b"), 2, base.Ref
		m, err := New(testConfig("s3"), base)
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range evs {
			switch ev := ev.(type) {
			case *Commit, *Applied:
				_, _ = m.Step(ev) // a is too old
			}
		}
		never := &LastVote{Ballot: Ballot{Round: 1}, Ref: testRef("a")}
		for _, ev := range []Event{w.accept("c", "s1", Ballot{}, false, nil), w.opened("d", w.one("s1", last), w.one("s2", never))} {
			if _, err := m.Step(ev); err != nil {
				t.Fatal(err)
			}
		}
		if w.name(m.Head()) != "d" {
			t.Fatalf("head %s, want d", w.name(m.Head()))
		}
		var votes []string
		for i := range 20 {
			for _, a := range m.Tick(time.Duration(i) * time.Second) {
				if s, ok := a.(Send); ok {
					if v, ok := s.Receipt.(*Vote); ok {
						votes = append(votes, w.name(v.Ref)+"@"+v.Ballot.String())
					}
				}
			}
		}
		want := []string{"d@1.1"}
		if last != nil {
			want = nil
		}
		if !slices.Equal(votes, want) {
			t.Errorf("last vote %v: votes %v, want %v", last, votes, want)
		}
	}
}

// TestALieThatOneCanJudgeBindsAllAlike: a liar reports a vote that never was for a commit beside the newest final, which
// who holds it can judge, and who starts above it cannot. What the ballot then had to extend is the same for both, so
// that a later promise is backed for both or for neither.
func TestALieThatOneCanJudgeBindsAllAlike(t *testing.T) {
	w := newWorld()
	root := w.plainBase()
	one, two := Ballot{Round: 1, Rank: 2}, Ballot{Round: 2, Rank: 2}
	last := func(name string, b Ballot) *LastVote { return &LastVote{Ballot: b, Ref: testRef(name)} }
	evs := slices.Concat(w.vouched("a", "root", "alice", "bob"), w.vouched("b1", "a", "bob", "carol"), w.vouched("b2", "b1", "carol", "bob"),
		w.vouched("c2", "b1", "bob", "carol"), w.vouched("x", "root", "bob", "carol"), w.vouched("y", "x", "carol", "bob"), []Event{
			w.accept("a", "s1", Ballot{}, false, nil), w.vote("a", "s1", Ballot{}, nil), w.vote("a", "s2", Ballot{}, nil),
			w.accept("b2", "s1", Ballot{}, false, nil), w.vote("b2", "s1", Ballot{}, nil),
			w.accept("b2", "s3", one, false, []*Promise{w.promise("root", "s1", one, last("b2", Ballot{})), w.promise("root", "s3", one, last("y", Ballot{Round: 1}))}),
			w.accept("c2", "s3", two, false, []*Promise{w.promise("root", "s1", two, last("b2", Ballot{})), w.promise("root", "s3", two, last("b1", one))}),
		})
	late := root
	late.Ref, late.Epoch, late.Config = testRef("a"), 1, root.Ref
	for _, base := range []Base{root, late} {
		m, err := New(testConfig(""), base)
		if err != nil {
			t.Fatal(err)
		}
		if base.Ref != root.Ref {
			// It knows of what lies beside, as who dropped it does.
			for _, ev := range evs {
				if c, ok := ev.(*Commit); ok && (w.name(c.Ref) == "x" || w.name(c.Ref) == "y") {
					m.gone[c.Ref] = c.Epoch
				}
			}
		}
		for _, ev := range evs {
			if _, err := m.Step(ev); err != nil && base.Ref == root.Ref {
				t.Fatal(err)
			}
		}
		if w.name(m.NewestFinal()) != "a" || w.name(m.Head()) != "c2" {
			t.Errorf("from %s:\n%s", w.name(base.Ref), w.state(m))
		}
	}
}

// TestLiesAndWhereOneStarts: a liar that accepts beside the final a and above it parts
// nobody. Nor does one that promises with a vote for a in a ballot that nobody accepted
// it in: who starts at a cannot tell, so that all read it alike. Nobody votes on it who
// can tell.
func TestLiesAndWhereOneStarts(t *testing.T) {
	for _, lie := range []string{"last vote", "two accepts"} {
		t.Run(lie, func(t *testing.T) {
			w := newWorld()
			root := w.plainBase()
			evs := append(w.fork(), w.vote("a", "s1", Ballot{}, nil), w.vote("a", "s2", Ballot{}, nil))
			heads := [2]string{"b", "b"}
			if lie == "last vote" {
				heads = [2]string{"c", "c"}
				evs = append(evs, w.opened("c", w.one("s2", lastVote("a", 0)), w.one("s3", lastVote("a", 1))))
			} else {
				evs = append(evs, w.accept("x", "s1", Ballot{}, false, nil), w.accept("c", "s2", Ballot{Rank: 1}, true, nil))
			}
			votes := []Event{w.vote("c", "s2", oneOne, nil), w.vote("c", "s3", oneOne, nil)}
			late := root
			late.Ref, late.Epoch, late.Config = testRef("a"), 1, root.Ref
			for i, base := range []Base{root, late} {
				m, err := New(testConfig(""), base)
				if err != nil {
					t.Fatal(err)
				}
				step := func(evs []Event) {
					for _, ev := range evs {
						if _, err := m.Step(ev); err != nil && i == 0 {
							t.Fatal(err)
						}
					}
				}
				step(evs)
				if got := w.name(m.Head()); got != heads[i] {
					t.Errorf("from %s: head %s, want %s", w.name(base.Ref), got, heads[i])
				}
				step(votes)
				if w.name(m.NewestFinal()) != "c" || w.name(m.Head()) != "c" {
					t.Errorf("from %s, with votes:\n%s", w.name(base.Ref), w.state(m))
				}
			}
		})
	}
}
