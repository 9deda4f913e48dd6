package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// These choose the active mutant in the test binary, and whether it prints a line for each refusal.
const (
	variable = "MUTANT"
	printing = "MUTANT_PRINT"
)

// table is the test whose rows are tests of their own here, named TestReject/area/row.
const table = "TestReject"

// A tester has the tests with all mutants in them.
type tester struct {
	binary, folder string
	reach          map[int]map[string]bool // the tests in which a validation refuses something
	took           map[string]time.Duration
}

// newTester builds the tests and runs them once without any mutation.
func newTester(folder, tmp string, files map[string][]byte) (*tester, error) {
	replace := map[string]string{}
	for name, text := range files {
		at := filepath.Join(tmp, filepath.Base(name))
		if err := os.WriteFile(at, text, 0o600); err != nil {
			return nil, err
		}
		full, err := filepath.Abs(name)
		if err != nil {
			return nil, err
		}
		replace[full] = at
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return nil, err
	}
	config, binary := filepath.Join(tmp, "overlay.json"), filepath.Join(tmp, "tests")
	if err := os.WriteFile(config, overlay, 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-overlay", config, "-o", binary, folder)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the tests with the mutants: %w\n%s", err, out)
	}
	t := &tester{binary: binary, folder: folder}
	// One test at a time, so that each refusal belongs to the test that was named last.
	out, err := t.run(context.Background(), 0, printing+"=1", "-test.v", "-test.parallel=1")
	if err != nil {
		return nil, fmt.Errorf("without any mutation the tests fail: %w\n%s", err, dull.ReplaceAll(out, nil))
	}
	t.read(out)
	return t, nil
}

// maxMemory is what the tests may map, in bytes. A mutant that wants more is noticed.
const maxMemory = 4 << 30

// run runs the tests with one variable set, for at most so much time of a processor, if that is not 0.
func (t *tester) run(ctx context.Context, most time.Duration, env string, args ...string) ([]byte, error) {
	seconds := "unlimited"
	if most > 0 {
		seconds = fmt.Sprint(int64(most / time.Second))
	}
	// A mutant may allocate without end, and run without one.
	limited := append([]string{"-c", `ulimit -v "$0" && ulimit -t "$1" && shift && exec "$@"`, fmt.Sprint(maxMemory >> 10), seconds,
		t.binary, "-test.short", "-test.timeout=0"}, args...)
	cmd := exec.CommandContext(ctx, "sh", limited...)
	cmd.Dir = t.folder
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), env, "GOMAXPROCS=1", "GOMEMLIMIT=1GiB")
	return cmd.CombinedOutput()
}

var (
	running = regexp.MustCompile(`^=== (?:RUN|CONT|NAME)\s+(\S+)$`)
	passed  = regexp.MustCompile(`^\s*--- PASS: (\S+) \(([0-9.]+s)\)$`)
	refused = regexp.MustCompile(`^mutant (\d+)$`)
	dull    = regexp.MustCompile(`(?m)^(?:=== .*|\s*--- PASS.*|mutant \d+)?\n`)
)

// read learns from the output of all tests which of them each validation refuses something in.
func (t *tester) read(out []byte) {
	t.reach, t.took = map[int]map[string]bool{}, map[string]time.Duration{}
	test := ""
	for _, line := range strings.Split(string(out), "\n") {
		if m := running.FindStringSubmatch(line); m != nil {
			test = unit(m[1])
		} else if m := refused.FindStringSubmatch(line); m != nil && test != "" {
			n, _ := strconv.Atoi(m[1])
			if t.reach[n] == nil {
				t.reach[n] = map[string]bool{}
			}
			t.reach[n][test] = true
		} else if m := passed.FindStringSubmatch(line); m != nil && unit(m[1]) == m[1] {
			t.took[m[1]], _ = time.ParseDuration(m[2])
		}
	}
}

// unit is what is run for a test: a row of the table, or else the whole test.
func unit(test string) string {
	parts := strings.Split(test, "/")
	n := 1
	if parts[0] == table {
		n = 3
	}
	return strings.Join(parts[:min(n, len(parts))], "/")
}

// pattern is the -test.run for some tests.
func pattern(tests []string) string {
	var out []string
	for _, test := range tests {
		parts := strings.Split(test, "/")
		for i := range parts {
			parts[i] = "^" + regexp.QuoteMeta(parts[i]) + "$"
		}
		out = append(out, strings.Join(parts, "/"))
	}
	return strings.Join(out, "|")
}

// try runs the tests that a mutant may be noticed by, until one fails, and says which.
func (t *tester) try(m *mutant) (by string, noticed bool) {
	var tests []string
	for test := range t.reach[m.n] {
		tests = append(tests, test)
	}
	// The row of the rule itself is the one to notice; else the quickest.
	cost := func(test string) time.Duration {
		if test == table+"/"+m.rule {
			return -1
		}
		return t.took[test]
	}
	slices.SortFunc(tests, func(a, b string) int {
		if c := int(cost(a) - cost(b)); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	for n, rest := 1, tests; len(rest) > 0; n *= 2 {
		batch := rest[:min(n, len(rest))]
		rest = rest[len(batch):]
		// A mutant that makes a test run for ever is noticed; one whose processor others have is not.
		limit := 2 * time.Minute
		for _, test := range batch {
			limit += 60 * t.took[test]
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*limit)
		out, err := t.run(ctx, limit, fmt.Sprintf("%s=%d", variable, m.n), "-test.failfast", "-test.run="+pattern(batch))
		undecided := ctx.Err() != nil
		cancel()
		if undecided {
			return fmt.Sprintf("undecided: the machine was too busy for its tests for %v", 10*limit), false
		}
		if err != nil {
			return noticedBy(out), true
		}
	}
	if len(tests) == 0 {
		return "no test has it refuse anything", false
	}
	return fmt.Sprintf("%d tests have it refuse something, and do without", len(tests)), false
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
