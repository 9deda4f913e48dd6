// Scaleplots writes what acts in a room cost against the leaves of its tree into a page, as tables and drawings, from the
// figures that make scale writes.
//
//	scaleplots [-page docs/scale.md] .lab/scale-50.json .lab/scale-500.json …
//	scaleplots -measure 10,50,200 -program bin/scale [-keep docs/figures] [-page docs/scale.md]
//
// It takes at least two runs, of different sizes. The drawings go beside the page, as scale-FIGURE.svg. With -measure it
// makes the runs first, one after the other, in the folder .lab, and keeps their figures, which name the commit that each was
// made at, as docs/figures/scale-LEAVES.json: all of it takes hours, which need not be the same ones. A run whose figures are
// kept is not made again, one that was interrupted goes on, and every run that is kept there is in the page.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/matrix-mls/matrix-mls/tools/figures"
)

const mark = "scaleplots"

func main() {
	page := flag.String("page", "docs/scale.md", "the page that the tables go into, with the drawings beside it")
	sizes := flag.String("measure", "", "make the runs with so many leaves first")
	program := flag.String("program", "bin/scale", "with -measure: what makes them; matrix-mls is beside it")
	work := flag.String("work", ".lab", "with -measure: where they are made")
	keep := flag.String("keep", "docs/figures", "with -measure: where their figures are kept")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *page, *sizes, *program, *work, *keep, flag.Args())
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "scaleplots: %v\n", err)
		os.Exit(1)
	}
}

// measure makes the runs and returns the files with the figures of these and of all that were kept before.
func measure(ctx context.Context, sizes, program, work, keep string) ([]string, error) {
	if err := os.MkdirAll(keep, 0o755); err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(sizes, ",") {
		leaves, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("%q is no number of leaves", field)
		}
		dir := filepath.Join(work, fmt.Sprintf("figures-%d", leaves))
		file := filepath.Join(keep, fmt.Sprintf("scale-%d.json", leaves))
		if _, err := os.Stat(file); err == nil {
			fmt.Fprintf(os.Stderr, "scaleplots: %d leaves: measured before (delete %s to do it anew)\n", leaves, file)
			continue
		}
		// Few whole clients, the same in all runs, so that the machine's processors are not theirs.
		args := []string{"-n", field, "-driven", "6", "-dir", dir, "-bin", filepath.Dir(program), "-json", file}
		fmt.Fprintf(os.Stderr, "scaleplots: %s %s\n", program, strings.Join(args, " "))
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Stderr = os.Stderr // what it prints is in the file, too
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = time.Minute
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("%d leaves: %w\nhint: the same command goes on where this one ended", leaves, err)
		}
	}
	return filepath.Glob(filepath.Join(keep, "scale-*.json"))
}

// report is what is read of a run's figures.
type report struct {
	Commit     string           `json:"commit"`
	Date       string           `json:"date"`
	Go         string           `json:"go"`
	LoadBefore string           `json:"load_before"`
	LoadAfter  string           `json:"load_after"`
	Leaves     int              `json:"leaves"`
	Users      int              `json:"users"`
	Driven     int              `json:"driven"`
	PerUser    int              `json:"per_user"`
	Starts     int              `json:"starts"`
	Seconds    float64          `json:"seconds"`
	Peak       map[string]int64 `json:"peak_rss"`
	Costs      []cost           `json:"costs"`
	Megolm     []cost           `json:"megolm"`
}

type cost struct {
	Name    string             `json:"name"`
	Seconds float64            `json:"seconds"`
	Client  float64            `json:"client_cpu_seconds"`
	Modules float64            `json:"modules_cpu_seconds"`
	RSS     float64            `json:"module_rss"`
	Events  map[string]float64 `json:"events"`
	Bytes   float64            `json:"event_bytes"`
	Sizes   map[string]float64 `json:"event_bytes_by_type"`
	Media   float64            `json:"media_bytes"`
	Traffic struct {
		ToDevice      float64 `json:"to_device"`
		ToDeviceBytes float64 `json:"to_device_bytes"`
	} `json:"traffic"`
}

// head is the type of the events that modules publish on their own account; how many there are depends on how long an
// act took, and on whether somebody has just joined.
const head = "io.github.matrix-mls.head"

func (c cost) events() (n float64) {
	for kind, k := range c.Events {
		if kind != head {
			n += k
		}
	}
	return n
}

func (c cost) bytes() float64 { return c.Bytes - c.Sizes[head] }

func (r *report) cost(name string) (cost, bool) {
	for _, list := range [][]cost{r.Costs, r.Megolm} {
		for _, c := range list {
			if c.Name == name {
				return c, true
			}
		}
	}
	return cost{}, false
}

// each is a whole client's share of what all of them have or do.
func (r *report) each(v float64) float64 { return v / float64(max(r.Driven, 1)) }

func (r *report) module() float64 {
	return float64(max(r.Peak["module-syn1"], r.Peak["module-syn2"], r.Peak["module-den1"]))
}

// A line is one curve of a drawing. What it gives for a run is left out where it is 0: the axes are logarithmic.
type line struct {
	name   string
	dashed bool
	of     func(r *report) float64
}

func act(name string, value func(r *report, c cost) float64) func(*report) float64 {
	return func(r *report) float64 {
		c, ok := r.cost(name)
		if !ok {
			return 0
		}
		return value(r, c)
	}
}

func took(name string) func(*report) float64 {
	return act(name, func(_ *report, c cost) float64 { return c.Seconds })
}

func used(name string) func(*report) float64 {
	return act(name, func(r *report, c cost) float64 { return r.each(c.Client) })
}

const (
	commit  = "a commit by the same client"
	remove  = "remove that user"
	megolm  = "Megolm: remove a user, and the next message of one client"
	message = "a message"
	entry   = "a device comes while nobody else is there (external commit)"
	healed  = "heal after a partition"
)

var drawings = []struct {
	file, title string
	value       func(float64) string
	lines       []line
}{
	{"time", "Until all whole clients have it", seconds, []line{
		{name: "a removal", of: took(remove)}, {name: "a message", of: took(message)},
		{name: "an external commit", of: took(entry)}, {name: "a heal after a partition", of: took(healed)},
	}},
	{"cpu", "Processor time of one whole client", seconds, []line{
		{name: "another's commit", of: used(commit)}, {name: "a user is removed", of: used(remove)}, {name: "a message", of: used(message)},
	}},
	{"memory", "The most memory that it ever had", size, []line{
		{name: "a whole client", of: func(r *report) float64 { return r.each(float64(r.Peak["clients"])) }},
		{name: "a module", of: (*report).module},
	}},
	{"bytes", "What the removal of a user sends", size, []line{
		{name: "MLS: events, without heads", of: act(remove, func(_ *report, c cost) float64 { return c.bytes() })},
		{name: "MLS: these, and files at all three servers", of: act(remove, func(_ *report, c cost) float64 { return c.bytes() + max(c.Media, 0) })},
		{name: "Megolm: to-device messages of one sender", dashed: true, of: act(megolm, func(_ *report, c cost) float64 { return c.Traffic.ToDeviceBytes })},
	}},
}

// tables are what the page shows of every act.
var tables = []struct {
	title, text string
	value       func(r *report, c cost) string
}{
	{"Time", "until every whole client has it.", func(_ *report, c cost) string { return seconds(c.Seconds) }},
	{"Processor time of one whole client", "on average, until it has come to rest.", func(r *report, c cost) string { return seconds(r.each(c.Client)) }},
	{"Processor time of all three modules", "", func(_ *report, c cost) string { return seconds(c.Modules) }},
	{"Memory of the largest module afterwards", "", func(_ *report, c cost) string { return size(c.RSS) }},
	{"Events, and their bytes", "in the room, without heads.", func(_ *report, c cost) string { return fmt.Sprintf("%.0f, %s", c.events(), size(c.bytes())) }},
	{"Bytes of media", "that the homeservers keep, all three of them together.", func(_ *report, c cost) string { return size(max(c.Media, 0)) }},
	{"To-device messages, and their bytes", "", func(_ *report, c cost) string {
		return fmt.Sprintf("%.0f, %s", c.Traffic.ToDevice, size(c.Traffic.ToDeviceBytes))
	}},
}

// grows are acts whose names say how large the run is; the page has them in one row.
var grows = []struct{ before, after, row string }{
	{"switch the room of ", " devices to MLS", "switch the room to MLS, with the users who are in it"},
	{"add ", " devices in batches", "add the others in batches"},
	{"all ", " whole clients commit at once", "all whole clients commit at once"},
}

func row(name string) string {
	for _, g := range grows {
		if n, ok := strings.CutPrefix(name, g.before); ok {
			if n, ok = strings.CutSuffix(n, g.after); ok {
				if _, err := strconv.Atoi(n); err == nil {
					return g.row
				}
			}
		}
	}
	return name
}

func run(ctx context.Context, page, sizes, program, work, keep string, files []string) error {
	if sizes != "" {
		measured, err := measure(ctx, sizes, program, work, keep)
		if err != nil {
			return err
		}
		files = append(files, measured...)
	}
	var all []*report
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		r := new(report)
		if err := json.Unmarshal(raw, r); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if r.Leaves < 1 || len(r.Costs) == 0 {
			return fmt.Errorf("%s: these are no figures of make scale", name)
		}
		if i := slices.IndexFunc(all, func(o *report) bool { return o.Leaves == r.Leaves }); i >= 0 {
			return fmt.Errorf("%s: a second run with %d leaves", name, r.Leaves)
		}
		for _, list := range [][]cost{r.Costs, r.Megolm} {
			for i := range list {
				list[i].Name = row(list[i].Name)
				if c := list[i]; c.Events[head] > 0 && c.Sizes[head] == 0 {
					return fmt.Errorf("%s: how large the heads are is not in it: make scale writes it now", name)
				}
			}
		}
		all = append(all, r)
	}
	if len(all) < 2 {
		return errors.New("two runs of different sizes make a curve: make scale N=50, make scale N=100")
	}
	slices.SortFunc(all, func(a, b *report) int { return cmp.Compare(a.Leaves, b.Leaves) })
	text, err := draw(all, filepath.Dir(page))
	if err != nil {
		return err
	}
	return figures.Replace(page, mark, "\n"+origin(all)+text+tabulate(all)+"\n")
}

// origin says where the figures come from.
func origin(all []*report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, Go %s.\n\n", figures.Processors(), all[len(all)-1].Go)
	fmt.Fprintln(&b, "| leaves | users | whole clients | devices of a user | commit | date | load (1, 5, 15 minutes) before | and after | took | a module's most memory | a whole client's |")
	fmt.Fprintln(&b, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, r := range all {
		took := seconds(r.Seconds)
		if r.Starts > 1 {
			took = fmt.Sprintf("%s since start %d", took, r.Starts)
		}
		fmt.Fprintf(&b, "| %d | %d | %d | %d | %s | %s | %s | %s | %s | %s | %s |\n", r.Leaves, r.Users, r.Driven, r.PerUser, r.Commit, r.Date,
			r.LoadBefore, r.LoadAfter, took, size(r.module()), size(r.each(float64(r.Peak["clients"]))))
	}
	return b.String()
}

// draw draws everything, and returns what shows it in the page.
func draw(all []*report, dir string) (string, error) {
	var b strings.Builder
	b.WriteString("\n")
	for _, d := range drawings {
		p := &figures.Plot{Title: d.title, Across: "leaves", Value: d.value}
		for _, l := range d.lines {
			c := figures.Curve{Name: l.name, Dashed: l.dashed, Points: map[int]float64{}}
			for _, r := range all {
				if v := l.of(r); v > 0 {
					c.Points[r.Leaves] = v
				}
			}
			if len(c.Points) > 1 {
				p.Curves = append(p.Curves, c)
			}
		}
		if len(p.Curves) == 0 {
			return "", fmt.Errorf("no two runs measured what %q shows", d.title)
		}
		file := "scale-" + d.file + ".svg"
		if err := os.WriteFile(filepath.Join(dir, file), []byte(p.SVG()), 0o644); err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "![%s](%s)\n", d.title, file)
	}
	return b.String(), nil
}

// tabulate writes a table of each figure, acts against sizes.
func tabulate(all []*report) string {
	var names []string // in the order of the largest run, which is the last
	for _, r := range slices.Backward(all) {
		for _, list := range [][]cost{r.Costs, r.Megolm} {
			for _, c := range list {
				if !slices.Contains(names, c.Name) {
					names = append(names, c.Name)
				}
			}
		}
	}
	var b strings.Builder
	for _, t := range tables {
		fmt.Fprintf(&b, "\n**%s**", t.title)
		if t.text != "" {
			fmt.Fprintf(&b, ", %s", t.text)
		}
		b.WriteString("\n\n| act, leaves: |")
		for _, r := range all {
			fmt.Fprintf(&b, " %d |", r.Leaves)
		}
		b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(all)) + "\n")
		for _, name := range names {
			line, any := "| "+name+" |", false
			for i := range all {
				value := ""
				if c, ok := all[i].cost(name); ok && (c.Events != nil || t.title == tables[0].title) { // of some there is only the time
					value, any = t.value(all[i], c), true
				}
				line += " " + value + " |"
			}
			if any {
				b.WriteString(line + "\n")
			}
		}
	}
	return b.String()
}

func seconds(s float64) string {
	switch {
	case s == 0:
		return "0 s"
	case s < 1:
		return fmt.Sprintf("%.3g ms", s*1e3)
	case s < 1000:
		return fmt.Sprintf("%.3g s", s)
	}
	return fmt.Sprintf("%.0f s", s)
}

func size(n float64) string {
	switch {
	case n < 1e3:
		return fmt.Sprintf("%.0f B", n)
	case n < 999.5e3:
		return fmt.Sprintf("%.3g kB", n/1e3)
	case n < 999.5e6:
		return fmt.Sprintf("%.3g MB", n/1e6)
	}
	return fmt.Sprintf("%.3g GB", n/1e9)
}
