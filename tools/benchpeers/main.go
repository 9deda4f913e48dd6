// Benchpeers measures mls, OpenMLS and mls-rs in turns on the same processors and prints one Markdown table for all
// processors and one for a single thread.
//
//	benchpeers -peers PROGRAM [-sizes 1000,5000] [-rounds 3] [-samples FILE] [-least] [-write docs/speed.md]
//
// PROGRAM is interop/bench, built by interop/build-peer.sh bench. Run it in the project's folder on a machine with nothing
// else to do. With -write the tables replace what stands between the two marks in that file. With -samples what was
// measured is added to what FILE holds from before, so that rounds can be made one by one; -rounds 0 measures nothing more.
// Each round gives the median of its iterations, and of the rounds the median counts, or with -least the least: on a machine
// that does other things, too, those make everybody slower and nobody faster.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/matrix-mls/matrix-mls/tools/figures"
)

// A row compares one operation. ours is the benchmark in package mls, peer the operations of interop/bench that add up to
// it; metric is the unit that the benchmark reports instead of time.
type row struct {
	text   string
	ours   string
	peer   []string
	metric string
	sizes  bool // the cost may depend on the size of the group
	target float64
}

var rows = []row{
	{"process a commit, full tree", "ProcessFull", []string{"update_commit_process_far"}, "", true, 10},
	{"make and merge a commit, full tree", "CommitFull", []string{"update_commit", "update_commit_merge"}, "", true, 15},
	{"follow a commit as a server, full tree", "PublicProcess", []string{"public_group_process"}, "", true, 10},
	{"create the group by one commit", "Create", []string{"create", "create_merge"}, "", true, 1.5},
	{"join by Welcome", "Join", []string{"join"}, "", true, 2},
	{"make and merge a commit, new tree", "CommitFresh", []string{"update_commit_fresh", "update_commit_fresh_merge"}, "", true, 0},
	{"process a commit, new tree", "ProcessFresh", []string{"update_commit_fresh_process"}, "", true, 0},
	{"join by external commit", "ExternalJoin", []string{"external_join"}, "", true, 0},
	{"start to follow as a server", "PublicStart", []string{"public_group_start"}, "", true, 0},
	{"add one member", "AddOne", []string{"add_one"}, "", true, 0},
	{"remove one member", "RemoveOne", []string{"remove_one"}, "", true, 0},
	{"make a KeyPackage", "KeyPackage", []string{"keypackage"}, "", false, 0},
	{"encrypt 32 B", "Encrypt/size=32", []string{"encrypt_32"}, "", false, 1 / 1.5},
	{"decrypt 32 B", "Decrypt/size=32", []string{"decrypt_32"}, "", false, 1},
	{"encrypt 1 KiB", "Encrypt/size=1024", []string{"encrypt_1024"}, "", false, 0},
	{"decrypt 1 KiB", "Decrypt/size=1024", []string{"decrypt_1024"}, "", false, 0},
	{"encrypt 16 KiB", "Encrypt/size=16384", []string{"encrypt_16384"}, "", false, 1},
	{"decrypt 16 KiB", "Decrypt/size=16384", []string{"decrypt_16384"}, "", false, 1},
	{"store a new epoch", "SaveEpoch", []string{"save"}, "", true, 0},
	{"store a ratchet step", "SaveRatchetStep", []string{"save"}, "", true, 0},
	{"load a group", "Load", []string{"load"}, "", true, 1},
	{"heap of a loaded group", "Heap", []string{"memory_heap_per_group"}, "heap-B", true, 2},
}

// A measured value is keyed by who, what and the size of the group; 0 where the size does not matter.
type key struct {
	who, op string
	n       int
}

type results map[key][]float64

// of returns what counts of the rounds' values: the median, or the least.
func (r results) of(k key) float64 {
	v := slices.Sorted(slices.Values(r[k]))
	switch {
	case len(v) == 0:
		return math.NaN()
	case *least:
		return v[0]
	}
	return v[len(v)/2]
}

var least = flag.Bool("least", false, "of the rounds' medians take the least")

func main() {
	peers := flag.String("peers", "", "the program built from interop/bench")
	sizes := flag.String("sizes", "1000,5000", "sizes of groups, separated by commas: 10, 100, 1000, 5000")
	rounds := flag.Int("rounds", 3, "how often everything is measured; medians count")
	write := flag.String("write", "", "file to write the tables into")
	samples := flag.String("samples", "", "file that keeps what was measured")
	openmls := flag.String("openmls", "rustcrypto", "OpenMLS' cryptography: rustcrypto, which is the fastest, or libcrux")
	flag.Parse()
	if *peers == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*peers, *sizes, *openmls, *rounds, *samples, *write); err != nil {
		fmt.Fprintf(os.Stderr, "benchpeers: %v\n", err)
		os.Exit(1)
	}
}

func run(peers, sizes, openmls string, rounds int, samples, write string) error {
	var ns []int
	for s := range strings.SplitSeq(sizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("size %q is not a number", s)
		}
		ns = append(ns, n)
	}
	dir, err := os.MkdirTemp("", "benchpeers")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "mls.test")
	if out, err := exec.Command("go", "test", "-c", "-o", program, "./mls").CombinedOutput(); err != nil {
		return fmt.Errorf("building the benchmarks of mls: %w\n%s", err, out)
	}

	var out bytes.Buffer
	commit, err := exec.Command("git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return fmt.Errorf("asking git for the commit: %w", err)
	}
	var kept measured
	if err := kept.read(samples); err != nil {
		return err
	}
	before := figures.Load()
	modes := []int{runtime.NumCPU(), 1}
	all := make([]results, len(modes))
	for i := range all {
		all[i] = make(results)
	}
	for round := range rounds {
		for i, threads := range modes {
			fmt.Fprintf(os.Stderr, "benchpeers: round %d of %d, %d threads, load %s\n", round+1, rounds, threads, figures.Load())
			if err := measureOurs(all[i], program, ns, threads); err != nil {
				return err
			}
			for _, p := range []struct{ who, crypto string }{{"mls-rs", "awslc"}, {"openmls", openmls}} {
				if err := measurePeer(all[i], peers, p.who, p.crypto, sizes, threads); err != nil {
					return err
				}
			}
		}
	}
	kept.add(all, commit, rounds, before)
	if err := kept.write(samples); err != nil {
		return err
	}
	fmt.Fprintf(&out, "Commit `%s`, %s, %s, Go %s. %s of %d rounds in turns. `make bench-peers BENCH_SIZES=%s BENCH_ROUNDS=%d`.\n",
		strings.Join(kept.Commits, "`, `"), time.Now().UTC().Format("2006-01-02"), figures.Processors(), strings.TrimPrefix(runtime.Version(), "go"),
		map[bool]string{true: "Least medians", false: "Medians"}[*least], kept.Rounds, sizes, kept.Rounds)
	fmt.Fprintf(&out, "Load of the machine (1, 5, 15 minutes): %s.\n", strings.Join(append(kept.Loads, figures.Load()), ", then "))
	for i, threads := range modes {
		fmt.Fprintf(&out, "\n%s\n\n", map[bool]string{true: "**One thread**", false: fmt.Sprintf("**%d threads**", threads)}[threads == 1])
		table(&out, all[i], ns)
	}
	os.Stdout.Write(out.Bytes())
	if write == "" {
		return nil
	}
	return figures.Replace(write, "benchpeers", out.String())
}

// measured is what a file of samples holds.
type measured struct {
	Commits []string
	Rounds  int
	Loads   []string
	Samples []sample
}

type sample struct {
	Mode   int // index of the number of threads
	Who    string
	Op     string
	N      int
	Values []float64
}

func (m *measured) read(name string) error {
	if name == "" {
		return nil
	}
	raw, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(raw, m)
	}
	return err
}

// add adds new results to those of the file, and the file's to the results.
func (m *measured) add(all []results, commit []byte, rounds int, load string) {
	for _, s := range m.Samples {
		k := key{s.Who, s.Op, s.N}
		all[s.Mode][k] = append(all[s.Mode][k], s.Values...)
	}
	m.Samples = nil
	for mode, r := range all {
		for k, v := range r {
			m.Samples = append(m.Samples, sample{mode, k.who, k.op, k.n, v})
		}
	}
	if c := strings.TrimSpace(string(commit)); !slices.Contains(m.Commits, c) {
		m.Commits = append(m.Commits, c)
	}
	m.Rounds += rounds
	m.Loads = append(m.Loads, load)
}

func (m *measured) write(name string) error {
	if name == "" {
		return nil
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return os.WriteFile(name, raw, 0o644)
}

var benchLine = regexp.MustCompile(`^Benchmark(\w+)/suite=1(?:/n=(\d+)|/(size=\d+))?(?:-\d+)?\s+\d+\s+(.*)$`)

// measureOurs runs the benchmarks of package mls.
func measureOurs(r results, program string, ns []int, threads int) error {
	names := make(map[string]bool)
	for _, w := range rows {
		name, _, _ := strings.Cut(w.ours, "/")
		names[name] = true
	}
	sizes := make([]string, len(ns))
	for i, n := range ns {
		sizes[i] = strconv.Itoa(n)
	}
	pattern := fmt.Sprintf("^Benchmark(Floor)?(%s)$/^suite=1$/^(n=(%s)|size=.*)$", strings.Join(slices.Sorted(keys(names)), "|"), strings.Join(sizes, "|"))
	var raw []byte
	for _, pattern := range []string{pattern, "^BenchmarkKeyPackage$/^suite=1$"} {
		cmd := exec.Command(program, "-test.run=^$", "-test.bench="+pattern, "-test.benchtime=300ms", "-test.timeout=60m")
		cmd.Env = append(os.Environ(), fmt.Sprintf("GOMAXPROCS=%d", threads))
		cmd.Dir = "mls"
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("the benchmarks of mls: %w\n%s", err, out)
		}
		raw = append(raw, out...)
	}
	for line := range strings.Lines(string(raw)) {
		m := benchLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		op, n := m[1], 0
		if m[2] != "" {
			n, _ = strconv.Atoi(m[2])
		}
		if m[3] != "" {
			op += "/" + m[3]
		}
		fields := strings.Fields(m[4])
		for i := 0; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return fmt.Errorf("a line of the benchmarks that cannot be read: %q", line)
			}
			k := key{"ours", op + " " + fields[i+1], n}
			r[k] = append(r[k], v)
		}
	}
	return nil
}

// measurePeer runs interop/bench.
func measurePeer(r results, program, who, crypto, sizes string, threads int) error {
	cmd := exec.Command(program, "--peer", who, "--crypto", crypto, "--suite", "1", "--sizes", sizes, "--budget-ms", "300")
	cmd.Env = append(os.Environ(), fmt.Sprintf("RAYON_NUM_THREADS=%d", threads))
	cmd.Stderr = os.Stderr
	raw, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w", who, err)
	}
	s := bufio.NewScanner(bytes.NewReader(raw))
	for s.Scan() {
		var line struct {
			N      int     `json:"n"`
			Op     string  `json:"op"`
			Median float64 `json:"ns_median"`
			Iters  int     `json:"iters"`
			Bytes  float64 `json:"bytes"`
		}
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			return fmt.Errorf("%s: reading %q: %w", who, s.Text(), err)
		}
		v := line.Median
		if line.Iters == 0 {
			v = line.Bytes
		}
		k := key{who, line.Op, line.N}
		r[k] = append(r[k], v)
	}
	return s.Err()
}

func table(out *bytes.Buffer, r results, ns []int) {
	fmt.Fprintln(out, "| operation | n | mls | mls-rs | OpenMLS | best peer / mls | target |")
	fmt.Fprintln(out, "| --- | --- | --- | --- | --- | --- | --- |")
	for _, w := range rows {
		for _, n := range ns {
			if !w.sizes && n != ns[len(ns)-1] {
				continue
			}
			unit, show := "median-ns", duration
			if w.metric != "" {
				unit, show = w.metric, size
			}
			at := n
			if !w.sizes {
				at = 0
			}
			ours := r.of(key{"ours", w.ours + " " + unit, at})
			peer := func(who string) float64 {
				sum := 0.0
				for _, op := range w.peer {
					sum += r.of(key{who, op, n})
				}
				if sum < 100 { // OpenMLS stores inside of each operation
					return math.NaN()
				}
				return sum
			}
			a, b := peer("mls-rs"), peer("openmls")
			best := a
			if math.IsNaN(a) || !math.IsNaN(b) && b < a {
				best = b
			}
			goal := ""
			if w.target > 0 && n == ns[len(ns)-1] {
				goal = fmt.Sprintf("%.2g", w.target)
				if best/ours < w.target {
					goal += ", missed"
					if floor := r.of(key{"ours", "Floor" + w.ours + " " + unit, at}); !math.IsNaN(floor) {
						goal += fmt.Sprintf(" (%.2f × the floor)", ours/floor)
					}
				}
			}
			fmt.Fprintf(out, "| %s | %d | %s | %s | %s | %s | %s |\n", w.text, n, show(ours), show(a), show(b), ratio(best/ours), goal)
		}
	}
}

func ratio(x float64) string {
	switch {
	case math.IsNaN(x):
		return "–"
	case x >= 10:
		return fmt.Sprintf("%.0f ×", x)
	}
	return fmt.Sprintf("%.2f ×", x)
}

func duration(ns float64) string {
	switch {
	case math.IsNaN(ns):
		return "–"
	case ns < 1e6:
		return fmt.Sprintf("%.3g µs", ns/1e3)
	case ns < 1e9:
		return fmt.Sprintf("%.3g ms", ns/1e6)
	}
	return fmt.Sprintf("%.3g s", ns/1e9)
}

func size(b float64) string {
	if math.IsNaN(b) {
		return "–"
	}
	return fmt.Sprintf("%.2f MB", b/1e6)
}

func keys(m map[string]bool) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
