// Benchfederation measures what a commit costs in rooms of several servers and writes the figures into a page.
//
//	benchfederation [-part simulated|real] [-page docs/federation-cost.md]
//
// Real: three homeservers with modules on this machine, by BenchmarkFederation of e2e. Simulated: rooms of 3 to 100 servers
// in virtual time, by BenchmarkCost of federation; drawn beside the page as federation-*.svg. Run it in the project's
// folder. The figures are those of the benchmarks, under the commit's name, with the machine and its load.
package main

import (
	"errors"
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
	"sync"
	"time"

	"github.com/matrix-mls/matrix-mls/tools/figures"
)

// A result is what one benchmark reported: its name without "Benchmark", and values by their units.
type result struct {
	name   string
	values map[string]float64
}

var parts = []struct {
	name    string
	measure func(page string) (text string, err error)
}{
	{"real", real3},
	{"simulated", simulated},
}

func main() {
	part := flag.String("part", "", "measure this part only")
	page := flag.String("page", "docs/federation-cost.md", "the page that the figures go into")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*part, *page); err != nil {
		fmt.Fprintf(os.Stderr, "benchfederation: %v\n", err)
		os.Exit(1)
	}
}

// run measures the parts at the same time: the simulation is done long before the real servers, which have to wait for two
// minutes, are measured; and its figures do not depend on the machine.
func run(part, page string) error {
	texts, errs := make([]string, len(parts)), make([]error, len(parts))
	before := figures.Load()
	var wg sync.WaitGroup
	found := false
	for i, p := range parts {
		if part == "" || part == p.name {
			found = true
			wg.Go(func() { texts[i], errs[i] = p.measure(page) })
		}
	}
	if !found {
		return fmt.Errorf("no part is called %q", part)
	}
	wg.Wait()
	head := fmt.Sprintf("%s, %s, %s, Go %s. `make bench-federation`.\nLoad of the machine (1, 5, 15 minutes): %s, then %s.\n\n", figures.Commit(),
		time.Now().UTC().Format("2006-01-02"), figures.Processors(), strings.TrimPrefix(runtime.Version(), "go"), before, figures.Load())
	for i, p := range parts {
		if errs[i] == nil && texts[i] != "" {
			fmt.Print(head, texts[i], "\n")
			errs[i] = figures.Replace(page, "benchfederation "+p.name, head+texts[i])
		}
		if errs[i] != nil {
			errs[i] = fmt.Errorf("%s: %w", p.name, errs[i])
		}
	}
	return errors.Join(errs...)
}

var benchLine = regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// benchmark runs a benchmark once and returns what it reported.
func benchmark(pkg, name string) ([]result, error) {
	cmd := exec.Command("go", "test", pkg, "-run", "^$", "-bench", "^Benchmark"+name+"$", "-benchtime", "1x", "-count", "1", "-timeout", "20m")
	cmd.Stderr = os.Stderr
	raw, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("Benchmark%s of %s: %w\n%s", name, pkg, err, raw)
	}
	var out []result
	for line := range strings.Lines(string(raw)) {
		m := benchLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		r := result{name: m[1], values: make(map[string]float64)}
		fields := strings.Fields(m[2])
		for i := 0; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("a line of Benchmark%s that cannot be read: %q", name, line)
			}
			r.values[fields[i+1]] = v
		}
		out = append(out, r)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("Benchmark%s of %s reported nothing:\n%s", name, pkg, raw)
	}
	return out, nil
}

// param returns the value of "key=" in a benchmark's name.
func (r result) param(key string) string {
	for part := range strings.SplitSeq(r.name, "/") {
		if v, ok := strings.CutPrefix(part, key+"="); ok {
			return v
		}
	}
	return ""
}

// aim is the most that an epoch may take, in times of an ordinary event.
const aim = 2.5

func real3(string) (string, error) {
	results, err := benchmark("./e2e", "Federation")
	if err != nil {
		return "", err
	}
	byName := make(map[string]map[string]float64, len(results))
	for _, r := range results {
		byName[strings.TrimPrefix(r.name, "Federation/")] = r.values
	}
	series, alone, idle := byName["series"], byName["alone"], byName["idle"]
	if series == nil || alone == nil || idle == nil {
		return "", fmt.Errorf("want the figures series, alone and idle, have those of %d benchmarks", len(byName))
	}
	var b strings.Builder
	ms := func(unit string) string { return fmt.Sprintf("%.0f ms", series[unit]) }
	verdict := "met"
	if series["hops"] > aim {
		verdict = "missed"
	}
	fmt.Fprintln(&b, "| time, median | |")
	fmt.Fprintln(&b, "| --- | --- |")
	fmt.Fprintf(&b, "| an ordinary event, sent until /sync at both other servers shows it | %s |\n", ms("ms-bare"))
	fmt.Fprintf(&b, "| a commit, made until every client holds its epoch | %s |\n", ms("ms-epoch"))
	fmt.Fprintf(&b, "| … by the client whose server's module accepts | %s |\n", ms("ms-epoch-own"))
	fmt.Fprintf(&b, "| … by the clients of the other two | %s |\n", ms("ms-epoch-others"))
	fmt.Fprintf(&b, "| commit / ordinary event | %.2f (aim: at most %.1f, %s) |\n", series["hops"], aim, verdict)
	fmt.Fprintf(&b, "| a commit by itself, made until every client knows it to be final | %.1f s |\n", alone["s-to-final"])
	fmt.Fprintf(&b, "\n| for each commit | one after the other, every %.1f s | each by itself |\n", series["s-between"])
	fmt.Fprintln(&b, "| --- | --- | --- |")
	for _, row := range []struct{ text, unit, format string }{
		{"events", "events/commit", "%.2f"}, {"… accepts", "accepts/commit", "%.2f"}, {"… applied", "applied/commit", "%.2f"}, {"… votes", "votes/commit", "%.2f"},
		{"… heads", "heads/commit", "%.2f"}, {"… others", "others/commit", "%.2f"}, {"bytes of federated events", "B/commit", "%.0f"},
		{"… of these the commit", "B-itself/commit", "%.0f"}, {"bytes of media", "B-media/commit", "%.0f"}, {"least time between two votes of a module", "s-vote-gap", "%.1f s"},
	} {
		fmt.Fprintf(&b, "| %s | "+row.format+" | "+row.format+" |\n", row.text, series[row.unit], alone[row.unit])
	}
	fmt.Fprintf(&b, "\nThe idle room, watched for %.0f s on all three servers: %.0f events, %.0f bytes of media.\n", idle["s-idle"], idle["events-idle"], idle["B-media-idle"])
	return b.String(), nil
}

var paces = map[string]string{"1m0s": "a minute", "1s": "a second"}

// sequencers says how many of the servers order a room.
func sequencers(list string) string {
	if list == "16" {
		return "all, up to 16"
	}
	return list
}

func simulated(page string) (string, error) {
	results, err := benchmark("./federation", "Cost")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintln(&b, "| a commit | sequencers | servers | events | of these applied | votes | bytes | of these the commit | everybody's epoch, hops | bare event, hops | ratio | final after |")
	fmt.Fprintln(&b, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, r := range results {
		v := r.values
		if v["accepts/commit"] != 1 || v["events-idle"] != 0 {
			return "", fmt.Errorf("%s: %g accepts a commit, %g events in an idle hour: want 1 and 0", r.name, v["accepts/commit"], v["events-idle"])
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %.2f | %.2f | %.2f | %.0f | %.0f | %.2f | %.2f | %.2f | %.1f s |\n", paces[r.param("pace")], sequencers(r.param("list")), r.param("servers"),
			v["events/commit"], v["applied/commit"], v["votes/commit"], v["B/commit"], v["B-itself/commit"],
			v["hops-to-epoch"], v["hops-bare"], v["hops-to-epoch"]/v["hops-bare"], v["s-to-final"])
	}
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', 3, 64) }
	bytes := func(v float64) string { return number(v/1000) + " kB" }
	dir := filepath.Dir(page)
	for _, d := range []struct {
		file, title, unit string
		value             func(float64) string
	}{
		{"federation-events.svg", "Events for a commit", "events/commit", number},
		{"federation-bytes.svg", "Bytes of events for a commit", "B/commit", bytes},
	} {
		p := &figures.Plot{Title: d.title, Across: "servers", Value: d.value}
		for _, list := range []string{"3", "16"} {
			for _, pace := range []string{"1m0s", "1s"} {
				p.Curves = append(p.Curves, figures.Curve{Name: fmt.Sprintf("%s sequencers, a commit %s", sequencers(list), paces[pace]), Points: points(results, d.unit, list, pace), Dashed: pace == "1s"})
			}
		}
		if err := draw(dir, d.file, p); err != nil {
			return "", err
		}
	}
	return b.String(), draw(dir, "federation-hops.svg", &figures.Plot{Title: "Time in hops, 3 sequencers, a commit a minute", Across: "servers", Value: number, Curves: []figures.Curve{
		{Name: "a commit, until every client has its epoch", Points: points(results, "hops-to-epoch", "3", "1m0s")},
		{Name: "an ordinary event, until every server has it", Points: points(results, "hops-bare", "3", "1m0s"), Dashed: true},
	}})
}

func points(results []result, unit, list, pace string) map[int]float64 {
	out := make(map[int]float64)
	for _, r := range results {
		if n, err := strconv.Atoi(r.param("servers")); err == nil && r.param("list") == list && r.param("pace") == pace {
			out[n] = r.values[unit]
		}
	}
	return out
}

func draw(dir, file string, p *figures.Plot) error {
	if slices.ContainsFunc(p.Curves, func(c figures.Curve) bool { return len(c.Points) < 2 }) {
		return fmt.Errorf("%s: a curve of fewer than two points", file)
	}
	return os.WriteFile(filepath.Join(dir, file), []byte(p.SVG()), 0o644)
}
