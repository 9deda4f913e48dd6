// Benchplots measures what operations of mls cost against the size of the group, and what the cryptography in them costs
// alone, and draws both as SVG.
//
//	benchplots [-dir docs]
//
// Run it in the project's folder on a machine with nothing else to do. It writes DIR/speed-OPERATION.svg, and prints a
// Markdown table of how far above the floor each operation is, under the commit's name. Of three runs, each the
// median of its rounds, the median counts: the tables of benchpeers do the same.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/matrix-mls/matrix-mls/tools/figures"
)

// A plot compares the benchmark NAME with FloorNAME.
type plot struct{ name, file, title string }

var plots = []plot{
	{"ProcessFull", "process", "Process a commit, full tree"},
	{"CommitFull", "commit", "Make and merge a commit, full tree"},
	{"PublicProcess", "follow", "Follow a commit as a server, full tree"},
	{"Create", "create", "Create the group by one commit"},
	{"Join", "join", "Join by Welcome"},
	{"Message", "message", "Encrypt and decrypt 32 B"},
}

func main() {
	dir := flag.String("dir", "docs", "where the drawings go")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*dir); err != nil {
		fmt.Fprintf(os.Stderr, "benchplots: %v\n", err)
		os.Exit(1)
	}
}

type curve map[int]float64 // size of the group: nanoseconds

func run(dir string) error {
	curves, err := measure()
	if err != nil {
		return err
	}
	fmt.Printf("%s, %d processors.\n\n", figures.Commit(), runtime.NumCPU())
	fmt.Println("| operation | n | measured | floor | above it |")
	fmt.Println("| --- | --- | --- | --- | --- |")
	for _, p := range plots {
		got, floor := curves[p.name], curves["Floor"+p.name]
		if len(got) == 0 || len(floor) != len(got) {
			return fmt.Errorf("%s: %d sizes measured, %d of the floor", p.name, len(got), len(floor))
		}
		if err := os.WriteFile(filepath.Join(dir, "speed-"+p.file+".svg"), []byte(draw(p.title, got, floor).SVG()), 0o644); err != nil {
			return err
		}
		for _, n := range sizes(got) {
			fmt.Printf("| %s | %d | %s | %s | %.2f × |\n", p.title, n, duration(got[n]), duration(floor[n]), got[n]/floor[n])
		}
	}
	return nil
}

var benchLine = regexp.MustCompile(`^Benchmark(\w+)/suite=1/n=(\d+)(?:-\d+)?\s.*?([0-9.e+]+) median-ns`)

func measure() (map[string]curve, error) {
	names := make([]string, len(plots))
	for i, p := range plots {
		names[i] = p.name
	}
	pattern := "^Benchmark(Floor)?(" + strings.Join(names, "|") + ")$/^suite=1$"
	cmd := exec.Command("go", "test", "./mls", "-run", "^$", "-bench", pattern, "-benchtime", "300ms", "-count", "3", "-timeout", "30m")
	cmd.Stderr = os.Stderr
	raw, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("the benchmarks of mls: %w\n%s", err, raw)
	}
	runs := make(map[string]map[int][]float64)
	for line := range strings.Lines(string(raw)) {
		m := benchLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		n, err := strconv.Atoi(m[2])
		if err != nil {
			return nil, err
		}
		ns, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			return nil, err
		}
		if runs[m[1]] == nil {
			runs[m[1]] = make(map[int][]float64)
		}
		runs[m[1]][n] = append(runs[m[1]][n], ns)
	}
	curves := make(map[string]curve, len(runs))
	for name, byN := range runs {
		curves[name] = make(curve, len(byN))
		for n, all := range byN {
			slices.Sort(all)
			curves[name][n] = all[len(all)/2]
		}
	}
	return curves, nil
}

func sizes(c curve) []int {
	var out []int
	for n := range c {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func duration(ns float64) string {
	if ns < 1e6 {
		return fmt.Sprintf("%.3g µs", ns/1e3)
	}
	return fmt.Sprintf("%.3g ms", ns/1e6)
}

func draw(title string, got, floor curve) *figures.Plot {
	return &figures.Plot{Title: title, Across: "members", Value: duration, Curves: []figures.Curve{
		{Name: "mls", Points: got},
		{Name: "floor of the primitives", Points: floor, Dashed: true},
	}}
}
