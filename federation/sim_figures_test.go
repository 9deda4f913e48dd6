package federation

import (
	"fmt"
	"testing"
	"time"
)

// Rules that no property rests on are kept for what these figures say. They are
// in docs/robustness.md; each test fails if its rule stops being worth it.

// TestFigureNextRound: how long a commit waits beside one in doubt.
func TestFigureNextRound(t *testing.T) {
	wait := func(without rule, n int) time.Duration {
		w := newWorld()
		list := []string{"s1", "s2", "s3"}[:n]
		base := w.base(list, []string{"alice"}, []string{"alice", "bob", "carol"})
		p := &peers{t: t, w: w, ms: map[string]*Machine{}}
		for _, s := range list {
			cfg := testConfig(s)
			cfg.without = without
			m, err := New(cfg, base)
			if err != nil {
				t.Fatal(err)
			}
			p.ms[s] = m
		}
		p.step(w.commit("bad", "root", "bob", commitSpec{}))
		p.run(1, list...)
		p.step(w.reject("bad", "alice", "update-path/decrypt"), w.commit("good", "root", "carol", commitSpec{}))
		for i := range 300 {
			p.run(1, list...)
			if p.ms["s1"].Head() == testRef("good") {
				return time.Duration(i+1) * time.Second
			}
		}
		return 0
	}
	for _, n := range []int{1, 3} {
		with, without := wait(0, n), wait(ruleNextRound, n)
		t.Logf("%d sequencers: a commit beside one in doubt is accepted after %v; without the owner's next round after %v (0s: not in 300 s)", n, with, without)
		if with == 0 || with > 7*time.Second || without != 0 && without < 3*with {
			t.Errorf("%d sequencers: %v and %v", n, with, without)
		}
	}
}

// TestFigureOldestUser: how many of a user's commits are accepted while another
// user's always arrive first.
func TestFigureOldestUser(t *testing.T) {
	share := func(without rule) (out int) {
		w := newWorld()
		cfg := testConfig("s1")
		cfg.without = without
		m, err := New(cfg, w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob", "eve"}))
		if err != nil {
			t.Fatal(err)
		}
		head := "root"
		for i := range 100 {
			for _, u := range []string{"eve", "bob"} {
				if _, err := m.Step(w.commit(fmt.Sprintf("%s%d", u, i), head, u, commitSpec{})); err != nil {
					t.Fatal(err)
				}
			}
			m.Tick(time.Duration(i+1) * 10 * time.Second)
			if head = w.name(m.Head()); head == fmt.Sprintf("bob%d", i) {
				out++
			}
			if _, err := m.Step(w.applied(head, "alice")); err != nil {
				t.Fatal(err)
			}
			m.Tick(time.Duration(i+1)*10*time.Second + 6*time.Second)
		}
		return out
	}
	with, without := share(0), share(ruleOldestUser)
	t.Logf("of 100 races against a user whose commits always arrive first, the other wins %d; in order of arrival %d", with, without)
	if with < 45 || without > 5 {
		t.Errorf("%d and %d of 100", with, without)
	}
}

// TestFigureEquivocatorLast: how often a head gives way in rooms with a lying
// sequencer.
func TestFigureEquivocatorLast(t *testing.T) {
	rewinds := func(without rule) (heads, commits int) {
		for seed := int64(1); seed <= 40; seed++ {
			sc := simScriptOf(seed, 300)
			sc.faults = simFaults{n: 3 + int(seed%3), liar: true, crash: true, split: seed%2 == 0}
			sc.steps = simSteps(newSimRand(uint64(seed)), sc.faults, 300)
			s := newSim(sc, without)
			_ = s.run() // what breaks without a rule is not counted here
			heads += s.stats.rewinds
			commits += s.stats.commits
		}
		return heads, commits
	}
	with, c1 := rewinds(0)
	without, c2 := rewinds(ruleEquivocatorLast)
	t.Logf("40 rooms with a lying sequencer: heads give way %d times in %d commits; with its accepts ranked like others %d times in %d", with, c1, without, c2)
	if with == 0 || without == 0 {
		t.Error("nothing gave way: the figure says nothing")
	}
}
