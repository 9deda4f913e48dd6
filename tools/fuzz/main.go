// Fuzz runs the project's fuzz targets, each for a time, and keeps the totals in docs/robustness.md.
//
//	fuzz -time 60s                            every target, and write what was done into the page
//	fuzz -time 20s -sample 12 -seed COMMIT    some of them, chosen by the seed; nothing is written
//	fuzz -time 20s -only mls                  those that match the expression, and write what was done into the page
//
// A target that finds something fails the run; the input is in the testdata/fuzz of its package.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

func main() {
	each := flag.Duration("time", time.Minute, "for how long to run each target")
	sample := flag.Int("sample", 0, "run only this many targets, and write no totals")
	seed := flag.String("seed", "", "chooses the sample, such as a commit's hash")
	only := flag.String("only", "", "run only targets that match this expression; the totals are written as with all")
	workers := flag.Int("p", runtime.NumCPU(), "how many to run at a time")
	page := flag.String("page", "docs/robustness.md", "where the totals stand")
	list := flag.Bool("list", false, "list the targets and stop")
	flag.Parse()
	if flag.NArg() > 0 || *each < time.Second {
		fmt.Fprintln(os.Stderr, "fuzz: give no arguments and at least a second\nhint: fuzz -time 60s")
		os.Exit(2)
	}
	if err := run(*each, *sample, *seed, *only, *page, *workers, *list); err != nil {
		fmt.Fprintf(os.Stderr, "fuzz: %v\n", err)
		os.Exit(1)
	}
}

// A target is one fuzz function.
type target struct {
	folder, name string
	binary       string
}

func (t target) String() string { return t.folder + "." + t.name }

// A result is what a run of a target did.
type result struct {
	target target
	execs  int64
	took   time.Duration
	output string
	err    error
}

func run(each time.Duration, sample int, seed, only, page string, workers int, list bool) error {
	targets, err := findTargets()
	if err != nil {
		return err
	}
	if only != "" {
		re, err := regexp.Compile(only)
		if err != nil {
			return err
		}
		targets = slices.DeleteFunc(targets, func(t target) bool { return !re.MatchString(t.String()) })
	}
	if sample > 0 {
		targets = choose(targets, sample, seed)
	}
	if len(targets) == 0 {
		return errors.New("no target")
	}
	if list {
		for _, t := range targets {
			fmt.Println(t)
		}
		return nil
	}
	tmp, err := os.MkdirTemp("", "fuzz-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	built := commit()
	if err := build(targets, tmp); err != nil {
		return err
	}
	cache, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		return fmt.Errorf("find the cache of found inputs: %w", err)
	}
	var mu sync.Mutex
	var results []result
	var wg sync.WaitGroup
	queue := make(chan target)
	for range max(1, workers) {
		wg.Go(func() {
			for t := range queue {
				r := t.fuzzBusy(each, filepath.Join(strings.TrimSpace(string(cache)), "fuzz", "matrix-mls", filepath.FromSlash(t.folder)))
				mu.Lock()
				results = append(results, r)
				if r.err != nil {
					fmt.Printf("FAIL %v: %v\n%s\n", t, r.err, r.output)
				} else {
					fmt.Printf("ok   %v: %d executions, %.0f s\n", t, r.execs, r.took.Seconds())
				}
				mu.Unlock()
			}
		})
	}
	for _, t := range targets {
		queue <- t
	}
	close(queue)
	wg.Wait()
	if sample == 0 {
		if err := record(page, built, results); err != nil {
			return err
		}
	}
	var bad []string
	var execs int64
	for _, r := range results {
		execs += r.execs
		if r.err != nil {
			bad = append(bad, r.target.String())
		}
	}
	fmt.Printf("%d targets, %d executions, %d found something\n", len(results), execs, len(bad))
	if len(bad) > 0 {
		return fmt.Errorf("%s: run the input that was written below testdata/fuzz with go test, mend what it shows, commit both, and add a row to %s", strings.Join(bad, ", "), page)
	}
	return nil
}

var declared = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(\w+ \*testing\.F\)`)

// findTargets returns all fuzz functions in the files that git would commit.
func findTargets() ([]target, error) {
	out, err := exec.Command("git", "ls-files", "-co", "--exclude-standard", "*_test.go").Output()
	if err != nil {
		return nil, fmt.Errorf("list the test files: %w", err)
	}
	var targets []target
	for _, file := range strings.Fields(string(out)) {
		src, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, and not yet committed
		}
		if err != nil {
			return nil, err
		}
		for _, m := range declared.FindAllSubmatch(src, -1) {
			targets = append(targets, target{folder: filepath.ToSlash(filepath.Dir(file)), name: string(m[1])})
		}
	}
	slices.SortFunc(targets, func(a, b target) int { return cmp.Compare(a.String(), b.String()) })
	return targets, nil
}

// choose takes n targets by their hash with the seed.
func choose(targets []target, n int, seed string) []target {
	hash := func(t target) uint64 {
		h := fnv.New64a()
		fmt.Fprintf(h, "%s\x00%v", seed, t)
		return h.Sum64()
	}
	slices.SortFunc(targets, func(a, b target) int { return cmp.Compare(hash(a), hash(b)) })
	return targets[:min(n, len(targets))]
}

// build makes one test binary for each package, which counts what inputs reach.
func build(targets []target, tmp string) error {
	made := map[string]string{}
	for i := range targets {
		t := &targets[i]
		if made[t.folder] == "" {
			binary := filepath.Join(tmp, strings.ReplaceAll(t.folder, "/", "-")+".test")
			out, err := exec.Command("go", "test", "-c", "-fuzz=Fuzz", "-o", binary, "./"+t.folder).CombinedOutput()
			if err != nil {
				return fmt.Errorf("build the tests of %s: %w\n%s", t.folder, err, out)
			}
			made[t.folder] = binary
		}
		t.binary = made[t.folder]
	}
	return nil
}

var (
	progress = regexp.MustCompile(`fuzz: elapsed: .*execs: (\d+)`)
	// On a busy machine there may be time for the known inputs only.
	baseline = regexp.MustCompile(`gathering baseline coverage: (\d+)/`)
)

// errIdle says that a target had no time to do anything.
var errIdle = errors.New("nothing was executed")

// fuzzBusy gives a target more time where the machine is too busy for it to begin.
func (t target) fuzzBusy(each time.Duration, cache string) result {
	r := t.fuzz(each, cache)
	if errors.Is(r.err, errIdle) {
		r = t.fuzz(6*each, cache)
	}
	return r
}

func (t target) fuzz(each time.Duration, cache string) result {
	began := time.Now()
	// An input that reaches something new is made smaller in at most 100 tries: by time, that would take most of it.
	cmd := exec.Command(t.binary, "-test.run=^$", "-test.fuzz=^"+t.name+"$", "-test.fuzztime="+each.String(), "-test.fuzzminimizetime=100x",
		"-test.parallel=1", "-test.timeout=0", "-test.fuzzcachedir="+cache)
	cmd.Dir = filepath.FromSlash(t.folder)
	out, err := cmd.CombinedOutput()
	r := result{target: t, took: time.Since(began), output: string(out), err: err}
	for _, line := range []*regexp.Regexp{baseline, progress} {
		for _, m := range line.FindAllSubmatch(out, -1) {
			if n, err := strconv.ParseInt(string(m[1]), 10, 64); err == nil && n > 0 {
				r.execs = n
			}
		}
	}
	// The end of the time can hit package testing's own work, which then fails without an input.
	if late := bytes.Contains(out, []byte("context deadline exceeded")) && !bytes.Contains(out, []byte("Failing input written")); late {
		r.err = nil
	}
	if r.err == nil && r.execs == 0 {
		r.err = errIdle
	}
	return r
}

// The totals stand between these lines of the page.
const (
	firstLine = "<!-- totals: written by make fuzz -->"
	lastLine  = "<!-- end of totals -->"
)

type total struct {
	execs   int64
	seconds int64
}

// record adds the results to the totals in the page.
func record(page, commit string, results []result) error {
	raw, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(raw, []byte(firstLine+"\n"))
	old, after, ok2 := bytes.Cut(rest, []byte(lastLine))
	if !ok || !ok2 {
		return fmt.Errorf("%s: the lines %q and %q are not there; write them where the totals should stand", page, firstLine, lastLine)
	}
	totals := map[string]total{}
	lines := bufio.NewScanner(bytes.NewReader(old))
	for lines.Scan() {
		// | `mls.FuzzCommit` | 1234 | 60 |
		cells := strings.Split(lines.Text(), "|")
		if len(cells) != 5 || !strings.Contains(cells[1], "`") {
			continue
		}
		execs, err1 := strconv.ParseInt(strings.TrimSpace(cells[2]), 10, 64)
		seconds, err2 := strconv.ParseInt(strings.TrimSpace(cells[3]), 10, 64)
		if err1 != nil || err2 != nil {
			return fmt.Errorf("%s: %q is not a line of totals", page, lines.Text())
		}
		totals[strings.Trim(cells[1], " `")] = total{execs, seconds}
	}
	for _, r := range results {
		t := totals[r.target.String()]
		totals[r.target.String()] = total{t.execs + r.execs, t.seconds + int64(r.took.Seconds())}
	}
	var names []string
	var sum total
	for name, t := range totals {
		names = append(names, name)
		sum.execs, sum.seconds = sum.execs+t.execs, sum.seconds+t.seconds
	}
	slices.Sort(names)
	var b bytes.Buffer
	b.Write(before)
	fmt.Fprintf(&b, "%s\n%d targets, %d executions, %.1f hours in all. Last run: commit %s, %s, on %s.\n\n", firstLine, len(names), sum.execs,
		float64(sum.seconds)/3600, commit, time.Now().UTC().Format("2006-01-02 15:04 UTC"), machine())
	b.WriteString("| target | executions | seconds |\n|---|---|---|\n")
	for _, name := range names {
		fmt.Fprintf(&b, "| `%s` | %d | %d |\n", name, totals[name].execs, totals[name].seconds)
	}
	b.WriteString(lastLine)
	b.Write(after)
	return os.WriteFile(page, b.Bytes(), 0o644)
}

func commit() string {
	out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// machine says what the run had: processors, and what they are where the system tells.
func machine() string {
	model := runtime.GOARCH
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(raw); m != nil {
			model = string(m[1])
		}
	}
	return fmt.Sprintf("%d processors (%s, %s)", runtime.NumCPU(), model, runtime.Version())
}
