// Scaleplots draws what acts in a room cost against the leaves of its tree, from the figures that make scale writes.
//
//	scaleplots [-dir docs] .lab/scale-50.json .lab/scale-500.json …
//
// It takes at least two runs, of different sizes, and writes DIR/scale-FIGURE.svg.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/matrix-mls/matrix-mls/tools/figures"
)

func main() {
	dir := flag.String("dir", "docs", "where the drawings go")
	flag.Parse()
	if err := run(*dir, flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "scaleplots: %v\n", err)
		os.Exit(1)
	}
}

// report is what is read of a run's figures.
type report struct {
	Leaves int              `json:"leaves"`
	Driven int              `json:"driven"`
	Peak   map[string]int64 `json:"peak_rss"`
	Costs  []cost           `json:"costs"`
	Megolm []cost           `json:"megolm"`
}

type cost struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Client  float64 `json:"client_cpu_seconds"`
	Bytes   float64 `json:"event_bytes"`
	Traffic struct {
		ToDevice      float64 `json:"to_device"`
		ToDeviceBytes float64 `json:"to_device_bytes"`
	} `json:"traffic"`
}

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
	return act(name, func(r *report, c cost) float64 { return c.Client / float64(max(r.Driven, 1)) })
}

const (
	commit  = "a commit by the same client"
	remove  = "remove that user"
	megolm  = "Megolm: remove a user, and the next message of one client"
	message = "a message"
	entry   = "a device comes while nobody else is there (external commit)"
)

var drawings = []struct {
	file, title string
	value       func(float64) string
	lines       []line
}{
	{"time", "Until all whole clients have it", seconds, []line{
		{name: "a commit", of: took(commit)}, {name: "remove a user", of: took(remove)},
		{name: "a message", of: took(message)}, {name: "an external commit", of: took(entry)},
	}},
	{"cpu", "Processor time of one client", seconds, []line{
		{name: "another's commit", of: used(commit)}, {name: "a user is removed", of: used(remove)}, {name: "a message", of: used(message)},
	}},
	{"memory", "Most memory", size, []line{
		{name: "a whole client", of: func(r *report) float64 { return float64(r.Peak["clients"]) / float64(max(r.Driven, 1)) }},
		{name: "a module", of: func(r *report) float64 {
			return float64(max(r.Peak["module-syn1"], r.Peak["module-syn2"], r.Peak["module-den1"]))
		}},
	}},
	{"bytes", "What the removal of a user sends", size, []line{
		{name: "MLS: events", of: act(remove, func(_ *report, c cost) float64 { return c.Bytes })},
		{name: "Megolm: to-device messages, of one sender", dashed: true, of: act(megolm, func(_ *report, c cost) float64 { return c.Traffic.ToDeviceBytes })},
	}},
}

func run(dir string, files []string) error {
	var all []*report
	sizes := map[int]bool{}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		r := new(report)
		if err := json.Unmarshal(raw, r); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if r.Leaves < 1 {
			return fmt.Errorf("%s: these are no figures of make scale", name)
		}
		all = append(all, r)
		sizes[r.Leaves] = true
	}
	if len(sizes) < 2 {
		return errors.New("two runs of different sizes make a curve: make scale N=50, make scale N=100")
	}
	for _, d := range drawings {
		p := &figures.Plot{Title: d.title, Across: "leaves", Value: d.value}
		for _, l := range d.lines {
			c := figures.Curve{Name: l.name, Dashed: l.dashed, Points: map[int]float64{}}
			for _, r := range all {
				if v := l.of(r); v > 0 {
					c.Points[r.Leaves] = v
				}
			}
			if len(c.Points) > 0 {
				p.Curves = append(p.Curves, c)
			}
		}
		if len(p.Curves) == 0 {
			return fmt.Errorf("no run measured what %q shows", d.title)
		}
		if err := os.WriteFile(filepath.Join(dir, "scale-"+d.file+".svg"), []byte(p.SVG()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func seconds(s float64) string {
	if s < 1 {
		return fmt.Sprintf("%.3g ms", s*1e3)
	}
	return fmt.Sprintf("%.3g s", s)
}

func size(n float64) string {
	switch {
	case n < 1e3:
		return fmt.Sprintf("%.3g B", n)
	case n < 1e6:
		return fmt.Sprintf("%.3g kB", n/1e3)
	}
	return fmt.Sprintf("%.3g MB", n/1e6)
}
