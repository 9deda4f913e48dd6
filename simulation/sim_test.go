package simulation

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/internal/simnet"
	"github.com/matrix-mls/matrix-mls/internal/simrecord"
	"github.com/matrix-mls/matrix-mls/rooms"
)

var (
	simSeeds = flag.Int("sim.seeds", 0, "runs of TestSimulate; 0: 50 and 10 of -sim.worse, or 2 with -race")
	simWorse = flag.Int("sim.worse", 0, "runs of TestSimulate after these in whose rooms modules, members and servers may lie and be lost")
	simFirst = flag.Int64("sim.first", 1, "first seed of TestSimulate")
	simSteps = flag.Int("sim.steps", 60, "steps of a run")
	simWhole = flag.Bool("sim.whole", false, "do not shrink what failed")
	simWrite = flag.Bool("sim.record", false, "write what TestSimulate ran into docs/robustness.md")
)

// workDir is where a run keeps its databases: in memory, where there is a file
// system for it.
func workDir(t testing.TB) string {
	for _, at := range []string{"/dev/shm", ""} {
		if dir, err := os.MkdirTemp(at, "matrix-mls-sim-"); err == nil {
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			return dir
		}
	}
	t.Fatal("no place for the databases")
	return ""
}

// run runs a script in a directory of its own.
func run(t testing.TB, sc script, sum *stats) (*world, error) {
	dir := filepath.Join(workDir(t), "run")
	defer os.RemoveAll(dir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return simulate(sc, dir, sum)
}

// TestSimulate runs seeds and checks the properties after every step. A failure
// prints the seed and a shrunk script; kept in testdata it is a test. Its subtests
// say which seeds ran to their end.
func TestSimulate(t *testing.T) {
	var sum stats
	kinds := slices.Clone(kindsOfRooms)
	start, cpu := time.Now(), simrecord.CPUTime()
	failed, count, worse := 0, *simSeeds, *simWorse
	switch {
	case testing.Short():
		count, worse = 3, 0
	case count == 0 && raceEnabled:
		count = 2
	case count == 0 && *simFirst == 1:
		count, worse = 50, 10
	case count == 0:
		count = 50
	}
	blocks, seeds := blocksOf(*simFirst, count), fmt.Sprintf("%d–%d", *simFirst, *simFirst+int64(count)-1)
	if worse > 0 {
		blocks, seeds = append(blocks, blocksOf(firstWorse+1, worse)...), fmt.Sprintf("%s, %d–%d", seeds, firstWorse+1, firstWorse+worse)
		count += worse
	}
	for _, b := range blocks {
		t.Run(fmt.Sprintf("steps=%d/seeds=%d-%d", *simSteps, b.first, b.last), func(t *testing.T) {
			for seed := b.first; seed <= b.last && failed < 5; seed++ {
				sc, k := scriptOf(seed, *simSteps), kindOf(kinds, seed)
				began := simrecord.CPUTime()
				_, err := run(t, sc, &k.stats)
				if k.rooms++; k.rooms == 1 {
					k.first = seed
				}
				if testing.Verbose() {
					fmt.Fprintf(os.Stderr, "seed %d: %v\n", seed, (simrecord.CPUTime() - began).Round(time.Millisecond))
				}
				if err == nil {
					continue
				}
				failed++
				t.Errorf("seed %d (%s): %v", seed, sc.faults, err)
				if failed == 1 && !*simWhole {
					small := shrink(t, sc, err.(*violation).property)
					_, err := run(t, small, nil)
					t.Logf("shrunk, to keep as a file in testdata:\n# %v\n%s", err, small)
				}
			}
		})
	}
	for i := range kinds {
		k := &kinds[i]
		sum.add(&k.stats)
		for _, what := range k.missing() {
			if *simSteps >= 60 && failed == 0 {
				t.Errorf("in %d rooms from seed %d on there was no %s: the rooms do not contain what they promise", k.rooms, k.first, what)
			}
		}
	}
	used := simrecord.CPUTime() - cpu
	t.Logf("%d seeds x %d steps in %v (%v of CPU time a seed): %s", count, *simSteps, time.Since(start).Round(time.Millisecond),
		(used / time.Duration(count)).Round(time.Millisecond), &sum)
	if *simWrite {
		simrecord.Add(t, "Whole rooms", "Written by `go test ./simulation -run TestSimulate -sim.record`.",
			"| when | commit | seeds | steps | failed | CPU time a seed | what happened | machine |",
			fmt.Sprintf("| %s | %s | %s | %d | %d | %v | %s | %s |", time.Now().UTC().Format("2006-01-02 15:04"), simrecord.Revision(), seeds, *simSteps,
				failed, (used/time.Duration(count)).Round(time.Millisecond), &sum, simrecord.Machine()))
	}
}

// roomKind is a range of seeds, and what its rooms came to.
type roomKind struct {
	from  int64 // its first seed
	first int64 // the first that ran
	rooms int
	stats
}

var kindsOfRooms = []roomKind{{from: 0}, {from: firstLie}, {from: firstWorse}}

// enough rooms of a kind show everything that they may contain. The first ones of two
// kinds, those of make test, are known to show it sooner.
const enough = 200

func kindOf(kinds []roomKind, seed int64) *roomKind {
	i := len(kinds) - 1
	for kinds[i].from > seed {
		i--
	}
	return &kinds[i]
}

// missing names what never happened in enough rooms of a kind, of what they may
// contain.
func (k *roomKind) missing() (out []string) {
	for _, what := range []struct {
		name  string
		count int
		from  int64 // in rooms from this seed on
	}{
		{"final", k.finals, 0}, {"takeover that was asked for", k.takeovers, 0}, {"provisional accept", k.provisional, 0},
		{"head that gave way", k.rewinds, 0}, {"cut of which both sides went on", k.sides, 0}, {"era", k.eras, 0}, {"crash", k.crashes, 0},
		{"lie", k.lies, firstLie},
		{"disk that was put back", k.restores, firstWorse}, {"membership that was forgotten", k.resets, firstWorse},
		{"list by hand", k.lists, firstWorse}, {"module that hung", k.hangs, firstWorse},
	} {
		need := enough
		switch {
		case what.from == firstWorse && k.first == firstWorse+1:
			need = 10
		case k.first == 1:
			need = 50
		}
		if what.from <= k.from && what.count == 0 && k.rooms >= need {
			out = append(out, what.name)
		}
	}
	return out
}

// TestRunsRepeat: a run follows from its script, byte for byte, also with a module that
// lies, members who make commits that some cannot apply, and long cuts (the last).
func TestRunsRepeat(t *testing.T) {
	seeds, steps := []int64{1, 4, 7, firstWorse + 3}, *simSteps/2
	if raceEnabled {
		seeds, steps = seeds[3:], *simSteps/6
	}
	for _, seed := range seeds {
		var sums [2]string
		for i := range sums {
			w, err := run(t, scriptOf(seed, steps), nil)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if s := w.stats; seed > firstWorse && !raceEnabled && (s.lies == 0 || s.takeovers == 0) {
				t.Errorf("seed %d: %d lies and %d takeovers: it does not show what it should", seed, s.lies, s.takeovers)
			}
			sums[i] = fmt.Sprintf("%x after %d events", w.digest.Sum(nil), w.truth.events)
		}
		if sums[0] != sums[1] {
			t.Errorf("seed %d: once %s, once %s", seed, sums[0], sums[1])
		}
	}
}

// simBlock is how many seeds a subtest of TestSimulate runs.
const simBlock = 10

type block struct{ first, last int64 }

// blocksOf divides seeds.
func blocksOf(first int64, count int) []block {
	var out []block
	for last := first + int64(count) - 1; first <= last; first += simBlock {
		out = append(out, block{first, min(first+simBlock-1, last)})
	}
	return out
}

// TestKeptScripts repeats what once failed, or is worth keeping.
func TestKeptScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in testdata: %v", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		sc, err := parseScript(string(text))
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if raceEnabled && len(sc.steps) > 30 {
			continue // all of them run without the race detector
		}
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			if _, err := run(t, sc, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// shrink leaves out steps while the same property still breaks.
func shrink(t testing.TB, sc script, property string) script {
	breaks := func(c script) bool {
		_, err := run(t, c, nil)
		v, ok := err.(*violation)
		return ok && v.property == property
	}
	tries := 0
	for size := (len(sc.steps) + 1) / 2; size > 0; size /= 2 {
		for i := 0; i+size <= len(sc.steps) && tries < 120; tries++ {
			c := sc
			c.steps = slices.Concat(sc.steps[:i], sc.steps[i+size:])
			if breaks(c) {
				sc = c
			} else {
				i += size
			}
		}
	}
	return sc
}

// TestWhatMakesACommitCount: an accept for it or above it, and of an era, which needs
// none, the word of somebody who applied it.
func TestWhatMakesACommitCount(t *testing.T) {
	w := newWorld(script{seed: 1}, "")
	low, high, side := federation.Ref{1}, federation.Ref{2}, federation.Ref{3}
	for _, c := range []*commit{{ref: low}, {ref: high, parent: low, depth: 1}, {ref: side, depth: 1}} {
		w.commits[c.ref] = c
	}
	want := func(when string, ref federation.Ref, era, want bool) {
		t.Helper()
		if got := w.counts(ref, era); got != want {
			t.Errorf("%s: counts %v, want %v", when, got, want)
		}
	}
	want("a commit", low, false, false)
	want("an era", side, true, false)
	raw, err := rooms.Encode(rooms.AppliedOf(&federation.Applied{Ref: side, Hash: [32]byte{1}, Signature: make([]byte, 64)}))
	if err != nil {
		t.Fatal(err)
	}
	w.commits[side].sender = "@author:s.test"
	at := w.net.Add("s.test")
	w.sent(at, &simnet.Event{Type: rooms.TypeApplied, Sender: "@author:s.test", Content: raw})
	want("an era that its author applied", side, true, false)
	w.sent(at, &simnet.Event{Type: rooms.TypeApplied, Sender: "@u:s.test", Content: raw})
	want("an era that somebody applied", side, true, true)
	want("a commit that somebody applied", side, false, false)
	raw, err = rooms.Encode(rooms.AcceptOf(&federation.Accept{Config: low, Ref: high, Parent: low, Epoch: 2, Chain: federation.Chain{Counter: 1}, Signature: make([]byte, 64)}))
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = rooms.Encode(&rooms.RepostContent{Type: rooms.TypeAccept, Sender: "@m:s.test", Content: raw}); err != nil {
		t.Fatal(err)
	}
	w.sent(at, &simnet.Event{Type: rooms.TypeRepost, Sender: "@m:s.test", Content: raw}) // the accept itself was kept back
	want("a commit below an accept", low, false, true)
	want("a commit beside it", side, false, false)
}

// TestWhoHeldACommitAsAccepted: a device that holds a commit is asked for it; one that
// does no more had it on its head before.
func TestWhoHeldACommitAsAccepted(t *testing.T) {
	leaf := federation.Leaf{User: "@alice:s.test", Key: make([]byte, 32)}
	list := []federation.Sequencer{{Server: "s.test", User: "@m:s.test", ReceiptKey: make([]byte, 32)}}
	root, waits := federation.Ref{1}, federation.Ref{2}
	m, err := federation.New(federation.Config{Room: "!room:s.test"}, federation.Base{
		Ref: root, Config: root, GroupID: []byte("g"), Suite: uint16(suite), Policy: federation.Policy{Sequencers: list}, Leaves: []federation.Leaf{leaf},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Step(&federation.Commit{Ref: waits, Parent: root, Epoch: 1, AuthorUser: leaf.User}); err != nil {
		t.Fatal(err)
	}
	held := &probe.Held{Machine: m}
	d := &device{w: newWorld(script{seed: 1}, ""), probe: &probe.Client{Inspect: func(id.RoomID) *probe.Held { return held }}}
	d.observed.init()
	want := func(when string, ref federation.Ref, want bool) {
		t.Helper()
		if got := d.accepted(ref); got != want {
			t.Errorf("%s: accepted %v, want %v", when, got, want)
		}
	}
	gone := federation.Ref{3}
	want("a commit that waits", waits, false)
	want("a commit that it never had", gone, false)
	d.told(&client.EpochChanged{Ref: waits})
	d.told(&client.EpochChanged{Ref: gone})
	want("a commit that waits again", waits, false)
	want("a commit that it held", gone, true)
	held = &probe.Held{}
	want("a commit that it held until it was removed", waits, true)
	want("a commit that it never had, and removed", federation.Ref{4}, false)
}
