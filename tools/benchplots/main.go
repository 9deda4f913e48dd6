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
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
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
	fmt.Printf("%s, %d processors.\n\n", commit(), runtime.NumCPU())
	fmt.Println("| operation | n | measured | floor | above it |")
	fmt.Println("| --- | --- | --- | --- | --- |")
	for _, p := range plots {
		got, floor := curves[p.name], curves["Floor"+p.name]
		if len(got) == 0 || len(floor) != len(got) {
			return fmt.Errorf("%s: %d sizes measured, %d of the floor", p.name, len(got), len(floor))
		}
		if err := os.WriteFile(filepath.Join(dir, "speed-"+p.file+".svg"), []byte(draw(p.title, got, floor)), 0o644); err != nil {
			return err
		}
		for _, n := range sizes(got) {
			fmt.Printf("| %s | %d | %s | %s | %.2f × |\n", p.title, n, duration(got[n]), duration(floor[n]), got[n]/floor[n])
		}
	}
	return nil
}

// commit names what was measured, and says if the work tree differs from it.
func commit() string {
	head, err := exec.Command("git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "Unknown commit"
	}
	name := "Commit `" + strings.TrimSpace(string(head)) + "`"
	if err := exec.Command("git", "diff", "--quiet", "HEAD", "--", "*.go").Run(); err != nil {
		name += " with changes"
	}
	return name
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

// The drawing has logarithmic axes.
const (
	width, height            = 640, 400
	left, right, top, bottom = 70, 20, 40, 50
)

func draw(title string, got, floor curve) string {
	lowX, highX := math.Inf(1), math.Inf(-1)
	lowY, highY := math.Inf(1), math.Inf(-1)
	for _, c := range []curve{got, floor} {
		for n, ns := range c {
			lowX, highX = min(lowX, math.Log10(float64(n))), max(highX, math.Log10(float64(n)))
			lowY, highY = min(lowY, math.Log10(ns)), max(highY, math.Log10(ns))
		}
	}
	lowY, highY = math.Floor(lowY), math.Ceil(highY)
	x := func(n int) float64 {
		return left + (math.Log10(float64(n))-lowX)/(highX-lowX)*(width-left-right)
	}
	y := func(ns float64) float64 {
		return height - bottom - (math.Log10(ns)-lowY)/(highY-lowY)*(height-top-bottom)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<title>%s</title>`+"\n", title)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="24" font-size="16" fill="#222">%s</text>`+"\n", left, title)
	for e := lowY; e <= highY; e++ {
		ns := math.Pow(10, e)
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end" fill="#555">%s</text>`+"\n",
			left, y(ns), width-right, left-8, y(ns)+4, duration(ns))
	}
	for _, n := range sizes(got) {
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle" fill="#555">%d</text>`+"\n",
			x(n), top, height-bottom, x(n), height-bottom+18, n)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle" fill="#555">members</text>`+"\n", (left+width-right)/2, height-12)
	for i, c := range []struct {
		points      curve
		name, color string
		dash        string
	}{{got, "mls", "#1d5fa8", ""}, {floor, "floor of the primitives", "#b5482a", ` stroke-dasharray="6 4"`}} {
		var path strings.Builder
		for k, n := range sizes(c.points) {
			fmt.Fprintf(&path, "%s%.1f %.1f", map[bool]string{true: "M", false: "L"}[k == 0], x(n), y(c.points[n]))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", x(n), y(c.points[n]), c.color)
		}
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="2"%s/>`+"\n", path.String(), c.color, c.dash)
		ly := top + 16 + 20*i
		fmt.Fprintf(&b, `<path d="M%d %dh30" stroke="%s" stroke-width="2"%s/><text x="%d" y="%d" fill="#222">%s</text>`+"\n", left+14, ly, c.color, c.dash, left+52, ly+4, c.name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
