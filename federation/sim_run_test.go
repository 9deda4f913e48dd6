package federation

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/internal/simrecord"
)

var (
	simSeeds  = flag.Int("sim.seeds", 0, "runs of TestSimulate; 0: 500, or 20 with -race")
	simFirst  = flag.Int64("sim.first", 1, "first seed of TestSimulate")
	simCount  = flag.Int("sim.steps", 300, "steps of a run")
	simRecord = flag.Bool("sim.record", false, "write what TestSimulate ran into docs/robustness.md")
	simSearch = flag.Int("sim.search", 0, "search so many seeds for each rule of TestRulesMatter, and rewrite its script")
	simRule   = flag.String("sim.rule", "", "search for this rule alone")
)

// TestSimulate runs seeds and checks the properties after every step. A failure
// prints the seed and a shrunk script; kept in simdata it is a test. Its subtests
// say which seeds ran to their end.
func TestSimulate(t *testing.T) {
	var sum simStats
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // many small worlds that die at once
	start, cpu := time.Now(), simrecord.CPUTime()
	failed, count, rev := 0, *simSeeds, simrecord.Revision() // not what the tree is set to meanwhile
	switch {
	case testing.Short():
		count = 15
	case count == 0 && raceEnabled:
		count = 20
	case count == 0:
		count = 500
	}
	last := *simFirst + int64(count) - 1
	for first := *simFirst; first <= last; first += simBlock {
		end := min(first+simBlock-1, last)
		t.Run(fmt.Sprintf("steps=%d/seeds=%d-%d", *simCount, first, end), func(t *testing.T) {
			for seed := first; seed <= end && failed < 10; seed++ {
				if err := simulate(t, seed, failed == 0, &sum); err != nil {
					failed++
				}
			}
		})
	}
	for _, what := range sum.missing() {
		if failed == 0 && count >= 500 && *simCount >= 300 {
			t.Errorf("in %d rooms there was no %s: they do not contain what they promise", count, what)
		}
	}
	wall, used := time.Since(start), simrecord.CPUTime()-cpu
	each := (used / time.Duration(count)).Round(100 * time.Microsecond)
	t.Logf("%d seeds x %d steps in %v (%v of CPU time, %v a seed): %s", count, *simCount, wall.Round(time.Millisecond),
		used.Round(time.Millisecond), each, &sum)
	if *simRecord {
		record(t, "| when | commit | seeds | steps | failed | CPU time a seed | what happened | machine |",
			fmt.Sprintf("| %s | %s | %d–%d | %d | %d | %v | %s | %s |", time.Now().UTC().Format("2006-01-02 15:04"), rev, *simFirst,
				last, *simCount, failed, each, &sum, simrecord.Machine()))
	}
}

// simBlock is how many seeds a subtest of TestSimulate runs.
const simBlock = 100

// simulate runs one seed; with tell set a failure is shrunk.
func simulate(t *testing.T, seed int64, tell bool, sum *simStats) error {
	t.Helper()
	sc := simScriptOf(seed, *simCount)
	s := newSim(sc, 0)
	err := s.run()
	sum.add(&s.stats)
	if err == nil {
		return nil
	}
	t.Errorf("seed %d (%s): %v", seed, sc.faults, err)
	if tell {
		small := shrink(sc, 0, err.(*violation).property)
		again := newSim(small, 0)
		t.Logf("shrunk, to keep as a file in simdata:\n# %v\n%s\n%s", again.run(), small, again.tail(40))
	}
	return err
}

// TestRunsRepeat: what every machine wants done follows from the seed, byte for byte,
// whoever lies.
func TestRunsRepeat(t *testing.T) {
	for _, liar := range []bool{true, false} {
		var sum simStats
		seeds, lies := 0, 0
		for seed := int64(1); seeds < 3; seed++ {
			sc := simScriptOf(seed, 300)
			if sc.faults.n < 3 || sc.faults.liar != liar {
				continue
			}
			seeds++
			var runs [2]bytes.Buffer
			for i := range runs {
				s := newSim(sc, 0)
				s.acts = &runs[i]
				if err := s.run(); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if i == 0 {
					sum.add(&s.stats)
					lies += int(max(s.lies.Counter, 1<<32) - 1<<32)
				}
			}
			if !bytes.Equal(runs[0].Bytes(), runs[1].Bytes()) {
				t.Errorf("seed %d (%s): two runs differ from byte %d of %d on", seed, sc.faults, firstDifference(runs[0].Bytes(), runs[1].Bytes()), runs[0].Len())
			}
		}
		if sum.takeovers == 0 || liar && lies == 0 {
			t.Errorf("%d takeovers and %d lies in %d rooms: they do not show what they should", sum.takeovers, lies, seeds)
		}
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// writeDown writes what a machine wants done, and when.
func (s *sim) writeDown(x *simNode, a Action) {
	raw, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(s.acts, "%v %s %T %s\n", s.now, x.name, a, raw)
}

// TestKeptScripts repeats what once failed, or is worth keeping.
func TestKeptScripts(t *testing.T) {
	files, err := filepath.Glob("simdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in simdata: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			if err := newSim(readScript(t, f), 0).run(); err != nil {
				t.Error(err)
			}
		})
	}
}

func readScript(t *testing.T, file string) simScript {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sc, err := parseScript(string(text))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return sc
}

// record puts a row into docs/robustness.md.
func record(t *testing.T, head, row string) {
	t.Helper()
	simrecord.Add(t, "Coordination core", "Written by `go test ./federation -run 'TestSimulate|TestRulesMatter' -sim.record`.", head, row)
}

func (s *simStats) add(o *simStats) {
	s.commits += o.commits
	s.finals += o.finals
	s.takeovers += o.takeovers
	s.provisionals += o.provisionals
	s.lists += o.lists
	s.eras += o.eras
	s.bads += o.bads
	s.crashes += o.crashes
	s.evidence += o.evidence
	s.events += o.events
	s.retired += o.retired
	s.messages += o.messages
	s.resent += o.resent
	s.joined += o.joined
	s.compared += o.compared
	s.rewinds += o.rewinds
	s.groups += o.groups
	s.splits += o.splits
	s.threes += o.threes
}

// missing names what never happened.
func (s *simStats) missing() (out []string) {
	for _, what := range []struct {
		name  string
		count int
	}{
		{"final", s.finals}, {"takeover", s.takeovers}, {"provisional accept", s.provisionals}, {"list change", s.lists}, {"era", s.eras},
		{"bad commit", s.bads}, {"crash", s.crashes}, {"evidence", s.evidence}, {"key that was retired", s.retired}, {"message sent again", s.resent},
		{"newcomer", s.joined}, {"head that gave way", s.rewinds}, {"founding commit", s.groups}, {"partition into three", s.threes},
	} {
		if what.count == 0 {
			out = append(out, what.name)
		}
	}
	return out
}

func (s *simStats) String() string {
	return fmt.Sprintf("%d commits, %d of them bad, %d finals, %d takeovers asked for, %d provisional accepts, %d list changes, %d eras, %d founding commits, %d crashes, "+
		"%d partitions (%d into three), %d keys retired, %d messages, %d sent again, %d newcomers, heads gave way %d times, %d equal sets compared, %d events", s.commits, s.bads, s.finals, s.takeovers, s.provisionals, s.lists, s.eras, s.groups, s.crashes,
		s.splits, s.threes, s.retired, s.messages, s.resent, s.joined, s.rewinds, s.compared, s.events)
}
