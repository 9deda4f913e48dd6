// Mutate removes each validation of a package in turn and tells which ones no test misses.
//
//	mutate [-sample 10 -seed COMMIT] [-list] [-only TEXT] ./mls
//
// A validation is an if or case whose body ends in a call of invalid or fail, such a call where no condition stands
// before it, or an if that hands on the error of a check. All mutants are compiled into one test binary, in which an
// environment variable chooses the one to be active: building it costs as much as building the tests once. Each mutant
// first meets the fast tests, and if it survives them all others. It fails if one survives that is not in the list of
// equivalent mutants (equivalent.txt), or if that list names one that is gone or does not survive.
package main

import (
	"bytes"
	"context"
	"encoding/json"
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
	"strings"
	"sync"
	"time"
)

// variable is what chooses the active mutant in the test binary.
const variable = "MUTANT"

// stages are what a mutant meets, until a test notices it: the tests that notice most, the others, and the slow ones.
var stages = [][]string{
	{"-test.run=^(TestReject|TestAccept|TestForgeriesAreValid)$/././^suite=1$"},
	{"-test.skip=^(TestVectors$|TestReject$/./././^suite=[1235]$)"},
	{"-test.run=^(TestVectors|TestReject)$"},
}

// stageLimit is when a mutant that makes a test run for ever counts as noticed.
const stageLimit = 10 * time.Minute

func main() {
	sample := flag.Int("sample", 1, "try one mutant of this many")
	seed := flag.String("seed", "", "chooses the sample, such as a commit's hash")
	list := flag.Bool("list", false, "list the mutants and stop")
	only := flag.String("only", "", "try only mutants whose description holds this text")
	workers := flag.Int("p", runtime.NumCPU(), "how many to try at a time")
	equivalents := flag.String("equivalent", "tools/mutate/equivalent.txt", "the list of mutants that change nothing")
	flag.Parse()
	if flag.NArg() != 1 || *sample < 1 {
		fmt.Fprintln(os.Stderr, "mutate: name one package's folder\nhint: mutate -sample 10 -seed $(git rev-parse HEAD) ./mls")
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *sample, *seed, *list, *only, *equivalents, *workers); err != nil {
		fmt.Fprintf(os.Stderr, "mutate: %v\n", err)
		os.Exit(1)
	}
}

func run(folder string, sample int, seed string, list bool, only, equivalents string, workers int) error {
	all, files, err := findMutants(folder)
	if err != nil {
		return err
	}
	same, err := readEquivalents(equivalents)
	if err != nil {
		return err
	}
	for key := range same {
		if !slices.ContainsFunc(all, func(m *mutant) bool { return m.key() == key }) {
			return fmt.Errorf("%s names a mutant that is gone: %s", equivalents, key)
		}
	}
	var chosen []*mutant
	for _, m := range all {
		if inSample(m, sample, seed) && strings.Contains(m.String(), only) {
			chosen = append(chosen, m)
		}
	}
	if list {
		for _, m := range chosen {
			fmt.Println(m)
		}
		return nil
	}
	tmp, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	began := time.Now()
	binary, err := build(folder, tmp, files)
	if err != nil {
		return err
	}
	t := &tester{binary: binary, folder: folder}
	for _, which := range stages[:2] {
		if out, ok := t.test(0, which); !ok {
			return fmt.Errorf("without any mutation the tests fail:\n%s", out)
		}
	}
	fmt.Printf("%d of %d validations to remove; the tests were built and run in %.0f s\n", len(chosen), len(all), time.Since(began).Seconds())
	survivors, wrong := t.all(chosen, same, workers)
	noticed := len(chosen) - len(survivors)
	fmt.Printf("%d validations removed, %d noticed, %d equivalent, %d survive, %.0f s\n",
		len(chosen), noticed, len(survivors)-wrong, wrong, time.Since(began).Seconds())
	if wrong > 0 {
		return errors.New("add tests that notice the survivors, or give the reason in " + equivalents + " why nothing can")
	}
	return nil
}

// inSample chooses a share of the mutants by hash, so that it does not depend on what else is in the package.
func inSample(m *mutant, sample int, seed string) bool {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s", seed, m.key())
	return h.Sum64()%uint64(sample) == 0
}

// readEquivalents reads the list: the keys of mutants, each followed by a line with the reason.
func readEquivalents(name string) (map[string]string, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	var key string
	for i, line := range strings.Split(string(raw), "\n") {
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case !strings.HasPrefix(line, "\t"):
			if key != "" {
				return nil, fmt.Errorf("%s:%d: the mutant before has no reason", name, i+1)
			}
			key = line
		case key == "":
			return nil, fmt.Errorf("%s:%d: a reason without its mutant", name, i+1)
		default:
			out[key], key = strings.TrimSpace(line), ""
		}
	}
	if key != "" {
		return nil, fmt.Errorf("%s: the last mutant has no reason", name)
	}
	return out, nil
}

// build compiles the tests with all mutants in them.
func build(folder, tmp string, files map[string][]byte) (string, error) {
	replace := map[string]string{}
	for name, text := range files {
		at := filepath.Join(tmp, filepath.Base(name))
		if err := os.WriteFile(at, text, 0o600); err != nil {
			return "", err
		}
		full, err := filepath.Abs(name)
		if err != nil {
			return "", err
		}
		replace[full] = at
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	config, binary := filepath.Join(tmp, "overlay.json"), filepath.Join(tmp, "tests")
	if err := os.WriteFile(config, overlay, 0o600); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-overlay", config, "-o", binary, folder)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the tests with the mutants: %w\n%s", err, out)
	}
	return binary, nil
}

type tester struct{ binary, folder string }

// test runs tests with one mutant active.
func (t *tester) test(n int, which []string) (out []byte, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), stageLimit)
	defer cancel()
	args := append([]string{"-test.short", "-test.failfast", "-test.timeout=0"}, which...)
	cmd := exec.CommandContext(ctx, t.binary, args...)
	cmd.Dir = t.folder
	cmd.WaitDelay = time.Second
	// A mutant may allocate without end.
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", variable, n), "GOMAXPROCS=1", "GOMEMLIMIT=1GiB")
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		out = append(out, "the tests did not end\n"...)
	}
	return out, err == nil
}

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// noticedBy names the first test that failed.
func noticedBy(out []byte) string {
	last := ""
	for _, m := range failed.FindAllSubmatch(out, -1) {
		if name := string(m[1]); last == "" || strings.HasPrefix(name, last+"/") {
			last = name
		}
	}
	if i := bytes.Index(out, []byte("panic: ")); last == "" && i >= 0 {
		line, _, _ := bytes.Cut(out[i:], []byte("\n"))
		return string(line)
	}
	if last == "" {
		return "a crash or a test that does not end"
	}
	return last
}

// all tries mutants and prints what happens. It returns those that survive, and how many of them should not.
func (t *tester) all(chosen []*mutant, same map[string]string, workers int) (survivors []*mutant, wrong int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	queue := make(chan *mutant)
	for range max(workers, 1) {
		wg.Go(func() {
			for m := range queue {
				var out []byte
				ok := true
				if area, row, found := strings.Cut(m.rule, "/"); found {
					// The test of the rule itself is the one to notice.
					out, ok = t.test(m.n, []string{"-test.run=^TestReject$/^" + area + "$/^" + row + "$/^suite=1$"})
				}
				for i := 0; ok && i < len(stages); i++ {
					out, ok = t.test(m.n, stages[i])
				}
				mu.Lock()
				reason, equivalent := same[m.key()]
				switch {
				case !ok && equivalent:
					wrong++
					survivors = append(survivors, m)
					fmt.Printf("NOT EQUIVALENT %v: noticed by %s; take it out of the list\n", m, noticedBy(out))
				case !ok:
					fmt.Printf("ok   %v: %s\n", m, noticedBy(out))
				case equivalent:
					survivors = append(survivors, m)
					fmt.Printf("same %v: %s\n", m, reason)
				default:
					wrong++
					survivors = append(survivors, m)
					fmt.Printf("SURVIVES %v\n", m)
				}
				mu.Unlock()
			}
		})
	}
	for _, m := range chosen {
		queue <- m
	}
	close(queue)
	wg.Wait()
	return survivors, wrong
}
