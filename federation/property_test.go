package federation

import (
	"fmt"
	"math/rand"
	"slices"
	"testing"
)

// history makes a random room: branches, accepts in several ballots, lies,
// votes, statements, eras and list changes.
func history(rng *rand.Rand) (*world, Base, []Event) {
	w := newWorld()
	lists := [][]string{{"s1"}, {"s1", "s2", "s3"}, {"s1", "s2"}}
	list := lists[rng.Intn(len(lists))]
	users := []string{"alice", "bob", "carol"}
	base := w.base(list, []string{"alice", "bob"}, users)
	names := []string{"root"}
	eras := map[string]uint64{}
	present := map[string][]string{"root": users}
	var evs []Event
	var promises []*Promise
	pick := func() string {
		// Mostly near the tip, sometimes far below.
		if rng.Intn(3) > 0 {
			return names[len(names)-1-rng.Intn(min(3, len(names)))]
		}
		return names[rng.Intn(len(names))]
	}
	for i := 0; i < 14; i++ {
		name, parent := fmt.Sprintf("c%d", i), pick()
		in := present[parent]
		spec := commitSpec{}
		author := in[rng.Intn(len(in))]
		now := slices.Clone(in)
		era := eras[parent]
		switch k := rng.Intn(12); {
		case k == 0 && len(in) < 5:
			who := fmt.Sprintf("dave/%d", i)
			spec.add, now = []string{who}, append(now, who)
		case k == 1 && len(in) > 2:
			out := in[0]
			if out == author {
				out = in[1]
			}
			spec.remove = []string{out}
			now = slices.DeleteFunc(now, func(s string) bool { return s == out })
		case k == 2:
			spec.list, spec.admins = lists[rng.Intn(len(lists))], []string{"alice"}
		case k == 3:
			era++
			spec.era, spec.list, spec.admins = era, lists[rng.Intn(len(lists))], []string{"alice", "bob"}
		case k == 4:
			author = fmt.Sprintf("erin/%d", i)
			spec.external, now = true, append(now, author)
		}
		eras[name], present[name] = era, now
		evs = append(evs, w.commit(name, parent, author, spec))
		names = append(names, name)
	}
	for i := 0; i < 60; i++ {
		name := names[1+rng.Intn(len(names)-1)]
		config := w.config[w.parent[name]]
		l := w.lists[config]
		by := l[rng.Intn(len(l))]
		switch rng.Intn(7) {
		case 0, 1:
			evs = append(evs, w.accept(name, l[0], Ballot{}, false, nil))
		case 2:
			evs = append(evs, w.accept(name, by, Ballot{}, true, nil))
		case 3:
			in := present[name]
			evs = append(evs, w.applied(name, in[rng.Intn(len(in))]))
		case 4:
			evs = append(evs, w.vote(name, by, Ballot{Round: uint64(rng.Intn(2))}, nil))
		case 5:
			in := present[w.parent[name]]
			evs = append(evs, w.reject(name, in[rng.Intn(len(in))], "update-path/decrypt"))
		case 6:
			b := Ballot{Round: uint64(1 + rng.Intn(2)), Rank: uint32(rng.Intn(len(l)))}
			promises = nil
			for _, s := range l {
				if rng.Intn(4) == 0 {
					continue
				}
				var last *LastVote
				if v := names[1+rng.Intn(len(names)-1)]; rng.Intn(2) == 0 && w.config[w.parent[v]] == config {
					last = &LastVote{Ref: testRef(v)}
				}
				p := w.promise(config, s, b, last)
				promises = append(promises, p)
				evs = append(evs, p)
			}
			evs = append(evs, w.accept(name, l[b.Rank], b, false, promises))
		}
	}
	return w, base, evs
}

func outcome(w *world, m *Machine) string {
	s := w.state(m)
	for _, n := range m.order {
		s += fmt.Sprintf("%s vouched=%v votable=%v doubt=%v final=%v counts=%v %v\n", w.name(n.ref), n.vouched, n.votable, n.doubt, n.final, n.counts, n.acc)
	}
	return s
}

// TestEqualSetsGiveEqualHeads feeds one set of events in many orders, with
// repetitions and restarts between, and wants one outcome.
func TestEqualSetsGiveEqualHeads(t *testing.T) {
	seeds := 150
	if testing.Short() {
		seeds = 40
	}
	deep, finals, eras := 0, 0, 0
	for seed := 0; seed < seeds; seed++ {
		rng := rand.New(rand.NewSource(int64(seed)))
		w, base, evs := history(rng)
		var want string
		for order := 0; order < 5; order++ {
			shuffled := slices.Clone(evs)
			if order > 0 {
				rng.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
				for i := 0; i < len(evs)/3; i++ {
					shuffled = append(shuffled, evs[rng.Intn(len(evs))])
				}
			}
			m, err := New(testConfig(""), base)
			if err != nil {
				t.Fatal(err)
			}
			for i, ev := range shuffled {
				_, _ = m.Step(ev) // what one order refuses, all must refuse
				if order > 1 && i%17 == 5 {
					data, err := m.MarshalBinary()
					if err != nil {
						t.Fatal(err)
					}
					if m, err = Unmarshal(testConfig(""), data); err != nil {
						t.Fatalf("seed %d, order %d, step %d: %v", seed, order, i, err)
					}
				}
				checkInvariants(t, seed, m)
			}
			got := outcome(w, m)
			if order == 0 {
				want = got
				deep = max(deep, m.head.depth)
				if m.final != m.base {
					finals++
				}
				if m.era != m.base {
					eras++
				}
			} else if got != want {
				t.Fatalf("seed %d, order %d\ngot  %s\nwant %s", seed, order, got, want)
			}
		}
	}
	// The generator must reach what the test is about.
	if deep < 4 || finals < seeds/10 || eras < seeds/20 {
		t.Fatalf("the histories are too tame: depth %d, %d with finals, %d with eras", deep, finals, eras)
	}
}

// checkInvariants holds what must be true after every step.
func checkInvariants(t *testing.T, seed int, m *Machine) {
	t.Helper()
	if !m.head.extends(m.final) || !m.final.extends(m.era) {
		t.Fatalf("seed %d: head %s, final %s and era %s are not on one path", seed, m.head.ref.Short(), m.final.ref.Short(), m.era.ref.Short())
	}
	for x := m.head; x != m.era; x = x.up {
		if !x.acc.any() {
			t.Fatalf("seed %d: commit %s on the head is not accepted", seed, x.ref.Short())
		}
		if x.eraBase != m.era {
			t.Fatalf("seed %d: the head crosses an era", seed)
		}
	}
	for _, n := range m.order {
		if n.final && n != m.base && !n.votable {
			t.Fatalf("seed %d: commit %s is final and not votable", seed, n.ref.Short())
		}
	}
}

// TestSequencerIsDeterministic runs one script of commits and ticks twice and
// wants the same actions byte for byte, also over restarts.
func TestSequencerIsDeterministic(t *testing.T) {
	run := func(restarts bool) string {
		w := newWorld()
		rng := rand.New(rand.NewSource(7))
		m, err := New(testConfig("s1"), w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob", "carol"}))
		if err != nil {
			t.Fatal(err)
		}
		out, tip := "", "root"
		users := []string{"alice", "bob", "carol"}
		for i := 0; i < 60; i++ {
			name := fmt.Sprintf("c%d", i)
			acts, err := m.Step(w.commit(name, tip, users[rng.Intn(3)], commitSpec{}))
			if err != nil {
				t.Fatal(err)
			}
			acts = append(acts, m.Tick(m.now+1e9)...)
			for _, a := range acts {
				if s, ok := a.(Send); ok {
					out += fmt.Sprintf("%x\n", s.Receipt.SignedBytes(Scope{Room: testRoom}))
				}
			}
			if rng.Intn(3) > 0 {
				tip = w.name(m.Head())
			}
			if restarts && i%10 == 9 {
				data, err := m.MarshalBinary()
				if err != nil {
					t.Fatal(err)
				}
				now := m.now
				if m, err = Unmarshal(testConfig("s1"), data); err != nil {
					t.Fatal(err)
				}
				m.now = now
				if _, err := m.Step(Resume{}); err != nil {
					t.Fatal(err)
				}
			}
		}
		return out
	}
	a, b := run(false), run(false)
	if a != b || a == "" {
		t.Fatal("two equal runs gave different receipts")
	}
	if run(true) == "" {
		t.Fatal("a run with restarts signed nothing")
	}
}

// TestCompactionKeepsTheHead runs a long room and checks that memory is bounded
// and the chain goes on.
func TestCompactionKeepsTheHead(t *testing.T) {
	w := newWorld()
	cfg := testConfig("s1")
	cfg.Limits.Keep = 8
	cfg.VoteDelay = -1
	m, err := New(cfg, w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob"}))
	if err != nil {
		t.Fatal(err)
	}
	tip, forgotten := "root", 0
	for i := 0; i < 200; i++ {
		name := fmt.Sprintf("c%d", i)
		if i == 50 { // a round with promises must survive compaction
			bad := w.commit("bad", tip, "bob", commitSpec{})
			if _, err := m.Step(bad); err != nil {
				t.Fatal(err)
			}
			m.Tick(m.now + 1e9)
			if _, err := m.Step(w.reject("bad", "alice", "x/y")); err != nil {
				t.Fatal(err)
			}
		}
		acts, err := m.Step(w.commit(name, tip, []string{"alice", "bob"}[i%2], commitSpec{}))
		if err != nil {
			t.Fatal(err)
		}
		acts = append(acts, m.Tick(m.now+1e9)...)
		if i == 50 {
			acts = append(acts, m.Tick(m.now+6e9)...)
		}
		for _, a := range acts {
			if f, ok := a.(Forget); ok {
				forgotten += len(f.Refs)
			}
		}
		if w.name(m.Head()) != name {
			t.Fatalf("step %d: head %s, want %s\n%s", i, w.name(m.Head()), name, w.state(m))
		}
		tip = name
		data, err := m.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if m, err = Unmarshal(cfg, data); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if _, err := m.Step(Resume{}); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.order) > 30 || forgotten < 150 {
		t.Fatalf("%d commits kept, %d forgotten", len(m.order), forgotten)
	}
	if m.own[m.base.config].promised.Round != 1 {
		t.Fatal("the story did not open a round")
	}
}
