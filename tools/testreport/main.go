// Testreport runs the project's tests in stages and counts them.
//
//	testreport all     everything: unit tests, vectors, interop, servers, end to end
//	testreport fast    no servers and no foreign libraries
//	testreport soak    faults that take long or need root
//	testreport STAGE   one stage of all
//
// A stage fails when a test fails, when a test that must be in it did not run, and, in all but fast, when a test was
// skipped: what is promised either ran or is missing. What failed is told once more at the end, for who sees only that
// of a long run; the last line counts everything.
//
// With all, stages that only compute run beside those that wait for servers, on what these leave of the processors. What
// they say is printed when each ends.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

const module = "github.com/matrix-mls/matrix-mls/"

// withoutRace leaves SQLite, which is C in Go's syntax, without the race detector's instructions, and the C library below
// it without those that check pointers, in the tests as in the programs that they build. All that these look at is outside
// of Go's heap, where there is nothing for them to see, and more than a third of the time of the tests went there. The driver,
// and all else, keeps them.
const withoutRace = "-gcflags=modernc.org/sqlite/lib=-race=false -gcflags=modernc.org/libc=-d=checkptr=0"

// A stage is one run of go test, or of a command that reports as go test -json does.
type stage struct {
	name     string
	command  []string
	status   bool // the command speaks to people: its exit status is one test's result
	packages func(all []string) []string
	timeout  time.Duration // for each package, or for the command; idleTimes that beside others
	waits    bool          // much of its time it waits for servers
	idle     bool          // it only computes, and no clock decides about it: it may run beside one that waits
	flags    []string
	args     []string // for the test program
	env      []string // on top of ours
	require  []string // top-level tests that must have run and passed
	lists    []list   // and those that a file names
	allow    bool     // skipped tests are only counted
}

// A list is a file that names tests that must have run and passed.
type list struct {
	file  string
	names func(line []string) []string // by package and test
}

// matrixRejects is what both the module and the SDK have to refuse.
var matrixRejects = list{"internal/rejects/matrix.txt", func(line []string) []string {
	return []string{"appservice/TestReject/matrix/" + line[0], "client/TestReject/matrix/" + line[0]}
}}

// survived is what has to be survived, as far as make test, or make soak, makes it happen.
func survived(soak bool) list {
	return list{"internal/faults/faults.txt", func(line []string) []string {
		if soak != (len(line) > 2) {
			return nil
		}
		return []string{line[1] + "/TestFault/" + line[0]}
	}}
}

// rules is what the specification is left without, one by one: a property must break.
var rules = list{"federation/spec/mutations.txt", func(line []string) []string {
	if line[0] == "#" {
		return nil
	}
	return []string{"federation/spec/TestSpec/without-" + line[0]}
}}

func (l *list) read() ([]string, error) {
	raw, err := os.ReadFile(l.file)
	if err != nil {
		return nil, fmt.Errorf("testreport: the tests that must have run: %w", err)
	}
	var out []string
	for line := range strings.Lines(string(raw)) {
		if fields := strings.Fields(line); len(fields) > 0 {
			out = append(out, l.names(fields)...)
		}
	}
	return out, nil
}

// only returns the packages at or below one of the folders; but, all others.
func only(folders ...string) func([]string) []string {
	return func(all []string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(p string) bool { return !below(p, folders) })
	}
}

func but(folders ...string) func([]string) []string {
	return func(all []string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(p string) bool { return below(p, folders) })
	}
}

// exactly returns one package, without those below it.
func exactly(folder string) func([]string) []string {
	return func(all []string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(p string) bool { return p != module+folder })
	}
}

// seeds names the parts of TestSimulate, of so many seeds each, that together run so many.
func seeds(count, steps, part int) []string {
	var out []string
	for first := 1; first <= count; first += part {
		out = append(out, fmt.Sprintf("TestSimulate/steps=%d/seeds=%d-%d", steps, first, min(first+part-1, count)))
	}
	return out
}

func below(pkg string, folders []string) bool {
	rel := strings.TrimPrefix(pkg, module)
	return slices.ContainsFunc(folders, func(f string) bool { return rel == f || strings.HasPrefix(rel, f+"/") })
}

var stages = []stage{
	{name: "unit", packages: but("lab", "interop", "e2e"), timeout: 45 * time.Minute, flags: []string{"-race"},
		require: []string{"TestVectors"}, lists: []list{matrixRejects, survived(false)}},
	{name: "lab", waits: true, packages: only("lab"), timeout: 20 * time.Minute, flags: []string{"-race"},
		require: []string{"TestFederatedServers"}},
	{name: "e2e", waits: true, packages: only("e2e"), timeout: 60 * time.Minute, flags: []string{"-race"},
		require: []string{"TestConversation", "TestLargeRoom", "TestPartition", "TestServersLostForGood", "TestCreatorLostForGood", "TestThreeServersGetThreeSequencers",
			"TestModulesKilledAtEveryWritePoint", "TestSecondProcessTakesOver", "TestForgersAndLiars", "TestStrangersOfAnotherSuite", "TestChangeOfSuite",
			"TestProxyRealClients", "TestProxyDeviceIsVerifiedByAnotherClient", "TestProxyConversation", "TestProxyKilled", "TestProxyStatusPage"}},
	{name: "simulate", idle: true, packages: exactly("federation"), timeout: 15 * time.Minute, flags: []string{"-run=^TestSimulate$"},
		args: []string{"-sim.seeds=500", "-sim.steps=300"}, require: seeds(500, 300, 100)},
	// Most rules are left out without the race detector only, so not in the stage above.
	{name: "rooms", idle: true, packages: exactly("simulation"), timeout: 25 * time.Minute,
		flags:   []string{"-run=^(TestSimulate|TestPropertiesTurnRed|TestKeptScripts|TestKeptScriptsTurnRed|TestRunsRepeat)$"},
		args:    []string{"-sim.seeds=50", "-sim.worse=10", "-sim.steps=60"},
		require: append(seeds(50, 60, 10), "TestSimulate/steps=60/seeds=200001-200010", "TestPropertiesTurnRed", "TestKeptScripts/back-again-and-not-wanted", "TestKeptScriptsTurnRed/behind", "TestRunsRepeat")},
	// With the race detector, in the first stage, a few members stand for many.
	{name: "large", idle: true, packages: exactly("client"), timeout: 10 * time.Minute,
		flags:   []string{"-run=^(TestAllRefreshAtOnce|TestScheduledRefreshesAreNoStorm|TestAwayForLongHoldsLittle)$"},
		require: []string{"TestAllRefreshAtOnce", "TestScheduledRefreshesAreNoStorm", "TestAwayForLongHoldsLittle"}},
	{name: "spec", idle: true, command: []string{"python3", "-B", "federation/spec/check.py", "-json", "ci"}, timeout: 15 * time.Minute,
		require: []string{"TestSpec/rounds", "TestSpec/shed-small", "TestSpec/change-small", "TestSpec/dead", "TestSpec/lapse"}, lists: []list{rules}},
	{name: "interop", idle: true, packages: only("interop"), timeout: 15 * time.Minute, flags: []string{"-race"},
		require: []string{"TestInterop"}},
	{name: "mutate-ci", idle: true, command: []string{"make", "-s", "mutate-ci"}, status: true, timeout: 15 * time.Minute},
	{name: "fuzz-ci", idle: true, command: []string{"make", "-s", "fuzz-ci"}, status: true, timeout: 15 * time.Minute},
	{name: "cover", idle: true, command: []string{"make", "-s", "cover"}, status: true, timeout: 15 * time.Minute},
}

// soak is what takes long or needs root, before make soak runs everything again and again.
var soak = stage{name: "soak", packages: only("appservice", "client", "e2e"), timeout: 2 * time.Hour, flags: []string{"-run=^(TestFault|TestPowerCut)$"},
	env: []string{"MLS_SOAK=1", "MLS_CRASH_POINTS=all"}, lists: []list{survived(true)},
	require: []string{"client/TestFault/F01-killed-at-every-write-point", "appservice/TestFault/F01-killed-at-every-write-point/sqlite/signed/kill-20",
		"appservice/TestFault/F01-killed-at-every-write-point/postgres/signed/kill-20"}}

var fast = stage{name: "fast", packages: but("lab", "interop", "e2e"), timeout: 4 * time.Minute, flags: []string{"-short"},
	require: []string{"TestVectors"}, lists: []list{matrixRejects}, allow: true}

// event is a line of go test -json.
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Elapsed    float64
	Output     string
}

type counts struct{ passed, failed, skipped int }

func main() {
	which := "all"
	if len(os.Args) > 1 {
		which = os.Args[1]
	}
	var todo []stage
	switch which {
	case "all":
		todo = stages
	case "fast":
		todo = []stage{fast}
	case "soak":
		todo = []stage{soak}
	default:
		for _, s := range stages {
			if s.name == which {
				todo = append(todo, s)
			}
		}
	}
	if len(todo) == 0 || len(os.Args) > 2 {
		hint := "all, fast, soak"
		for _, s := range stages {
			hint += ", " + s.name
		}
		fmt.Fprintln(os.Stderr, "testreport: unknown stage\nhint: "+hint)
		os.Exit(2)
	}
	out, err := exec.Command("go", "list", "./...").Output()
	if err != nil {
		fmt.Fprintf(os.Stderr, "testreport: list the packages: %v\n", err)
		os.Exit(1)
	}
	if !tell(os.Stdout, runAll(&locked{to: os.Stdout}, todo, strings.Fields(string(out)))) {
		os.Exit(1)
	}
}

// A result is what a stage came to: a line for each thing that was wrong, with the last words of a test that failed.
type result struct {
	counts
	stage string
	wrong []string
}

// tell ends the report and says whether all is well.
func tell(out io.Writer, results []result) bool {
	var total counts
	var wrong []string
	for _, r := range results {
		total.passed, total.failed = total.passed+r.passed, total.failed+r.failed
		for _, w := range r.wrong {
			wrong = append(wrong, r.stage+": "+w)
		}
	}
	if len(wrong) > 0 && total.failed == 0 {
		total.failed = 1 // something that is no test failed: a build, a missing test, a skipped one
	}
	fmt.Fprintln(out)
	for _, w := range wrong[:min(len(wrong), 20)] {
		fmt.Fprintln(out, w)
	}
	if more := len(wrong) - 20; more > 0 {
		fmt.Fprintf(out, "and %d more\n", more)
	}
	fmt.Fprintf(out, "%d passed, %d failed\n", total.passed, total.failed)
	return len(wrong) == 0
}

// run runs the stage, beside others or not, and prints what it does.
func (s *stage) run(out io.Writer, all []string, beside bool) result {
	began := time.Now()
	wrong := func(text string) result {
		fmt.Fprintf(out, "== %s: %s\n", s.name, text)
		return result{stage: s.name, wrong: []string{text}}
	}
	timeout := s.timeout
	var args []string
	if beside {
		timeout *= idleTimes
		args = lowest()
	}
	if s.command == nil {
		packages := s.packages(all)
		if len(packages) == 0 {
			return wrong("no packages")
		}
		fmt.Fprintf(out, "== %s: %d packages\n", s.name, len(packages))
		args = slices.Concat(args, []string{"go", "test", "-json", "-count=1", "-timeout=" + timeout.String()}, s.flags, packages, s.args)
		timeout = 0 // go test sees to it
	} else {
		fmt.Fprintf(out, "== %s: %s\n", s.name, strings.Join(s.command, " "))
		args = slices.Concat(args, s.command)
	}
	env := s.env
	if slices.Contains(s.flags, "-race") {
		env = append(slices.Clone(env), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" "+withoutRace))
	}
	r := report{out: out, results: map[string]string{}, output: map[string][]string{}, words: map[string]string{}}
	readErr, err := r.follow(args, env, timeout)
	if s.status {
		r.status("make/"+s.name, err == nil)
	}
	c, kinds := r.count()
	bad := r.failed()
	if readErr != nil {
		bad = append(bad, readErr.Error())
	}
	require := slices.Clone(s.require)
	for _, l := range s.lists {
		names, err := l.read()
		if err != nil {
			fmt.Fprintln(out, err)
			bad = append(bad, err.Error())
		}
		require = append(require, names...)
	}
	for _, name := range require {
		if !r.ran(name) {
			fmt.Fprintf(out, "MISSING %s: no such test passed in this stage\n", name)
			bad = append(bad, "MISSING "+name)
		}
	}
	if c.skipped > 0 && !s.allow {
		fmt.Fprintf(out, "SKIPPED %d tests, which counts as a failure: %s\n", c.skipped, strings.Join(r.skipped(), ", "))
		bad = append(bad, "SKIPPED "+strings.Join(r.skipped(), ", "))
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		fmt.Fprintf(out, "   %-10s %5d ok %5d bad\n", kind, kinds[kind].passed, kinds[kind].failed)
	}
	if err != nil && len(bad) == 0 {
		bad = append(bad, fmt.Sprintf("%s: %v, though no test failed", strings.Join(args, " "), err))
	}
	verdict := "ok"
	if len(bad) > 0 {
		verdict = "FAILED"
	}
	left := ""
	if c.skipped > 0 {
		left = fmt.Sprintf(", %d left out", c.skipped)
	}
	fmt.Fprintf(out, "== %s: %s, %d tests%s, %.0f s\n\n", s.name, verdict, c.passed+c.failed, left, time.Since(began).Seconds())
	return result{c, s.name, bad}
}

// report gathers what go test says. Tests are keyed by package and name, with a slash between.
type report struct {
	out     io.Writer
	results map[string]string
	output  map[string][]string
	words   map[string]string // the last line that a failed test said of itself
	// packages are those that failed, which may be with no test of theirs: one that does not build, or that panics outside.
	packages []string
	said     string // the last line that reports no test
	last     time.Time
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	r.last = time.Now()
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				r.add(&e)
			} else {
				fmt.Fprintf(r.out, "%s", line)
				if text := strings.TrimSpace(string(line)); text != "" {
					r.said = text
				}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("testreport: read the output of go test: %w", err)
		}
	}
}

func (r *report) add(e *event) {
	key := e.Package + "/" + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		r.output[key] = append(r.output[key], e.Output)
	case "pass", "fail", "skip":
		if e.Test != "" {
			r.results[key] = e.Action
			if e.Action == "fail" {
				r.words[key] = lastWords(r.output[key])
				fmt.Fprintf(r.out, "--- FAIL %s (%.2f s)\n%s", strings.TrimPrefix(key, module), e.Elapsed, strings.Join(r.output[key], ""))
			}
			delete(r.output, key)
			if time.Since(r.last) > 10*time.Second { // a sign of life in a long package
				r.last = time.Now()
				fmt.Fprintf(r.out, "   … %d tests, now %s\n", len(r.results), strings.TrimPrefix(key, module))
			}
			return
		}
		r.last = time.Now()
		if e.Action == "fail" {
			r.packages = append(r.packages, strings.TrimPrefix(e.Package, module))
			fmt.Fprint(r.out, strings.Join(r.output[key], ""))
			for k, lines := range r.output { // tests that a panic or a timeout cut short
				if strings.HasPrefix(k, e.Package+"/Test") {
					fmt.Fprint(r.out, strings.Join(lines, ""))
					r.results[k] = "fail"
				}
			}
		}
		if e.Action != "skip" { // a package without tests
			fmt.Fprintf(r.out, "   %-4s %s %.1f s\n", e.Action, strings.TrimPrefix(e.Package, module), e.Elapsed)
		}
	}
}

// count counts the tests that have no subtests, by kind.
func (r *report) count() (counts, map[string]*counts) {
	parents := map[string]bool{}
	for key := range r.results {
		for i := strings.LastIndexByte(key, '/'); i > 0; i = strings.LastIndexByte(key[:i], '/') {
			parents[key[:i]] = true
		}
	}
	var all counts
	kinds := map[string]*counts{}
	for key, result := range r.results {
		if parents[key] && result != "fail" {
			continue
		}
		if parents[key] && r.childFailed(key) {
			continue
		}
		kind := kindOf(key)
		if kinds[kind] == nil {
			kinds[kind] = new(counts)
		}
		for _, c := range []*counts{&all, kinds[kind]} {
			switch result {
			case "pass":
				c.passed++
			case "fail":
				c.failed++
			case "skip":
				c.skipped++
			}
		}
	}
	return all, kinds
}

func (r *report) childFailed(parent string) bool {
	for key, result := range r.results {
		if result == "fail" && strings.HasPrefix(key, parent+"/") {
			return true
		}
	}
	return false
}

// kindOf names what a test is counted as: a folder, or vectors, rejects, fuzz seeds and examples by their names.
func kindOf(key string) string {
	rel := strings.TrimPrefix(key, module)
	for prefix, kind := range map[string]string{"/TestVectors": "vectors", "/TestReject": "rejects", "/Fuzz": "fuzz seeds",
		"/Example": "examples", "/TestSpec/": "models"} {
		if strings.Contains(rel, prefix) {
			return kind
		}
	}
	folder, _, _ := strings.Cut(rel, "/")
	return folder
}

// failed names each test that failed and has no failed subtest, and each package that failed without one.
func (r *report) failed() []string {
	var out []string
	for key, result := range r.results {
		if result == "fail" && !r.childFailed(key) {
			out = append(out, strings.TrimSpace(strings.TrimPrefix(key, module)+"  "+r.words[key]))
		}
	}
	for _, p := range r.packages {
		if !slices.ContainsFunc(out, func(test string) bool {
			return strings.HasPrefix(test, p+"/Test") || strings.HasPrefix(test, p+"/Fuzz")
		}) {
			out = append(out, p+" failed, and no test in it")
		}
	}
	slices.Sort(out)
	return out
}

// lastWords returns the last line of a test's output that is not go test's own, cut to 200 bytes.
func lastWords(output []string) string {
	for _, line := range slices.Backward(output) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "--- ") && !strings.HasPrefix(line, "=== ") {
			return line[:min(len(line), 200)]
		}
	}
	return ""
}

func (r *report) ran(name string) bool {
	for key, result := range r.results {
		if result == "pass" && strings.HasSuffix(key, "/"+name) {
			return true
		}
	}
	return false
}

func (r *report) skipped() []string {
	var out []string
	for key, result := range r.results {
		if result == "skip" {
			out = append(out, strings.TrimPrefix(key, module))
		}
	}
	slices.Sort(out)
	return out
}
