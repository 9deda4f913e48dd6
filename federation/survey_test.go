package federation

import (
	"fmt"
	"maps"
	"math/rand"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
)

// checkSurvey holds a survey against the machine it was made of, and every reason
// against the facts that it claims.
func checkSurvey(t *testing.T, name string, m *Machine, s *Survey) {
	t.Helper()
	if s.Head != m.Head() || s.Final != m.NewestFinal() || len(s.Commits) != len(m.order) || len(s.Devices) != m.head.leaves {
		t.Fatalf("%s: the survey is of another machine", name)
	}
	at := make(map[Ref]*Surveyed)
	for i := range s.Commits {
		at[s.Commits[i].Ref] = &s.Commits[i]
	}
	for i := range s.Commits {
		c := &s.Commits[i]
		n := m.nodes[c.Ref]
		if c.OnHead != m.head.extends(n) || c.Status != m.Status(c.Ref) {
			t.Fatalf("%s: %s stands elsewhere", name, c.Ref.Short())
		}
		up := at[c.Parent]
		if i > 0 && (up == nil || up.Depth != c.Depth-1 || s.Commits[i-1].Depth > c.Depth) {
			t.Fatalf("%s: %s is out of order", name, c.Ref.Short())
		}
		if votes := len(c.Votes); c.Quorum > 0 && n.final && !n.isEra() && votes < c.Quorum {
			t.Fatalf("%s: %s is final with %d votes of %d", name, c.Ref.Short(), votes, c.Quorum)
		} else if votes >= c.Quorum && votes > 0 && !n.final {
			t.Fatalf("%s: %s is not final with %d votes of %d", name, c.Ref.Short(), votes, c.Quorum)
		}
		if n.governing() != (Ref{}) && (n.acc.ballot || n.acc.own || n.acc.indirect) != (len(c.Accepts) > 0) {
			t.Fatalf("%s: %s is accepted %+v, the survey says %+v", name, c.Ref.Short(), n.acc, c.Accepts)
		}
		asks := i > 0 && up.OnHead && !c.OnHead
		if (c.Why != "") != asks || !asks {
			if (c.Why != "") != asks {
				t.Fatalf("%s: %s has the reason %q", name, c.Ref.Short(), c.Why)
			}
			continue
		}
		w := at[c.Beside]
		if w == nil != (c.Parent == s.Head) || w != nil && (!w.OnHead || w.Parent != c.Parent) {
			t.Fatalf("%s: %s is beside %s", name, c.Ref.Short(), c.Beside.Short())
		}
		checkReason(t, name, m, n, m.nodes[c.Beside], c.Why)
	}
}

// checkReason says a reason anew, from the rules of docs/epochs.md.
func checkReason(t *testing.T, name string, m *Machine, n, w *node, why Reason) {
	t.Helper()
	var holds bool
	switch why {
	case ReasonUnaccepted:
		holds = !n.acc.any()
	case ReasonEraRefused:
		holds = n.isEra() && !n.counts && !m.eraValid(n)
	case ReasonEraUnvouched:
		holds = n.isEra() && !n.counts && !n.vouched
	case ReasonEraNumber:
		holds = n.counts && m.era.eraNo > n.eraNo
	case ReasonEraAdmin:
		holds = n.counts && m.era.eraNo == n.eraNo && n.c.Era.ByHeirs && !m.era.c.Era.ByHeirs
	case ReasonEraFinal:
		holds = n.counts && deepestFinal(m.era.up) > deepestFinal(n.up)
	case ReasonEraRef:
		holds = n.counts && deepestFinal(m.era.up) == deepestFinal(n.up) && less(m.era.ref, n.ref)
	case ReasonEra:
		holds = m.era.extends(w)
	case ReasonFinal:
		holds = slices.ContainsFunc(m.order, func(x *node) bool { return x.final && x.extends(w) })
	case ReasonListChange:
		holds = n.listChange() && !n.final && !w.listChange()
	case ReasonBallot:
		holds = w.acc.ballot && !n.acc.ballot && (n.acc.own || !n.acc.equivocal)
	case ReasonHigherBallot:
		holds = w.acc.ballot && n.acc.ballot && n.acc.highest.Less(w.acc.highest)
	case ReasonItself:
		holds = !w.acc.ballot && w.acc.own && !n.acc.own && !n.acc.equivocal
	case ReasonEquivocation:
		holds = (w.acc.ballot || w.acc.own) && !n.acc.ballot && !n.acc.own && n.acc.equivocal
	case ReasonRank:
		holds = w.acc.own && n.acc.own && w.acc.ownRank < n.acc.ownRank
	case ReasonRef:
		holds = less(w.ref, n.ref) && w.acc.ballot == n.acc.ballot && w.acc.highest == n.acc.highest
	}
	if !holds {
		t.Fatalf("%s: the reason %q for %s does not hold", name, why, n.ref.Short())
	}
}

// allReasons are the reasons that a survey can give.
var allReasons = []Reason{ReasonEra, ReasonFinal, ReasonListChange, ReasonBallot, ReasonHigherBallot, ReasonItself, ReasonEquivocation, ReasonRank, ReasonRef,
	ReasonEraNumber, ReasonEraAdmin, ReasonEraFinal, ReasonEraRef, ReasonUnaccepted, ReasonEraUnvouched, ReasonEraRefused}

// TestSurveyExplainsEveryFork surveys random rooms, in several orders, and the
// stories: every reason that there is comes up, and equal sets give equal surveys.
func TestSurveyExplainsEveryFork(t *testing.T) {
	met, kinds := make(map[Reason]int), make(map[EvidenceKind]int)
	look := func(name string, m *Machine) *Survey {
		s := m.Survey()
		checkSurvey(t, name, m, s)
		for _, c := range s.Commits {
			met[c.Why]++
		}
		return s
	}
	for seed := range 60 {
		rng := rand.New(rand.NewSource(int64(seed)))
		_, base, evs := history(rng)
		var want *Survey
		for order := range 3 {
			shuffled := slices.Clone(evs)
			if order > 0 {
				rng.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			}
			m, err := New(testConfig(""), base)
			if err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprintf("seed %d, order %d", seed, order)
			lies := make(map[string]bool)
			for _, ev := range shuffled {
				acts, _ := m.Step(ev)
				for _, a := range acts {
					if a, ok := a.(Evidence); ok {
						lies[a.Config.Short()+" "+a.Signer.Server+" "+string(a.Kind)] = true
						kinds[a.Kind]++
					}
				}
				if order == 2 {
					look(name, m)
				}
			}
			before, err := m.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			got := look(name, m)
			if told := liesOf(m); !maps.Equal(lies, told) {
				t.Fatalf("%s: the evidence is of %v, the survey has %v", name, lies, told)
			}
			if after, err := m.MarshalBinary(); err != nil || string(after) != string(before) {
				t.Fatalf("%s: looking changed the machine (%v)", name, err)
			}
			if want == nil {
				want = got
			} else if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("%s: %s", name, diff)
			}
		}
	}
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, f := range files {
		s := &story{}
		datadriven.RunTest(t, f, func(t *testing.T, d *datadriven.TestData) string {
			out := s.run(t, d)
			look(f, s.m)
			return out
		})
	}
	if len(kinds) < 5 {
		t.Errorf("only %v were told", kinds)
	}
	rivalEras(t, func(m *Machine) { look("eras", m) })
	for _, why := range allReasons {
		if met[why] == 0 {
			t.Errorf("no room has the reason %q", why)
		}
	}
}

// liesOf returns what the survey of a machine finds, by list.
func liesOf(m *Machine) map[string]bool {
	out := make(map[string]bool)
	for _, n := range m.order {
		if rs := m.lists[n.config]; rs != nil && (n == m.base || n.sets) {
			list, _, _ := m.list(n.config)
			s := new(Survey)
			m.surveyLies(s, rs, list)
			for _, l := range s.Liars {
				out[n.config.Short()+" "+l.Signer.Server+" "+string(l.Kind)] = true
			}
		}
	}
	return out
}

// rivalEras is a room in which two eras begin on one commit, where only their refs
// decide, and then a third on one of them, whose number does.
func rivalEras(t *testing.T, look func(*Machine)) {
	w := newWorld()
	m, err := New(testConfig(""), w.base([]string{"hub"}, []string{"alice", "bob"}, []string{"alice", "bob", "carol"}))
	if err != nil {
		t.Fatal(err)
	}
	era := func(name, on, by string, no uint64) {
		c := w.commit(name, on, by, commitSpec{era: no, list: []string{"s2"}, admins: []string{"alice", "bob"}})
		for _, ev := range []Event{c, w.applied(name, "carol")} {
			if _, err := m.Step(ev); err != nil {
				t.Fatal(err)
			}
		}
		look(m)
	}
	era("e1", "root", "alice", 1)
	era("e2", "root", "bob", 1)
	era("f", "e1", "alice", 2)
}

// StoryMachines returns the machines that the rooms of a story end with.
func StoryMachines(t *testing.T, file string) []*Machine {
	t.Helper()
	var out []*Machine
	s := &story{}
	datadriven.RunTest(t, file, func(t *testing.T, d *datadriven.TestData) string {
		text := s.run(t, d)
		if d.Cmd == "room" {
			out = append(out, s.m)
		}
		out[len(out)-1] = s.m
		return text
	})
	return out
}
