// Manyrooms measures the module with many rooms: how long it takes to get to know them, what it uses while nothing
// happens and while members commit, how long accepts take, and how long it is away when it is restarted or killed. With
// two processes it measures first one, and then, over the same rooms, one that works and one that stands by.
//
//	manyrooms [-rooms 1000] [-members 50] [-database sqlite|postgres] [-processes 1|2] [-bin bin] [-json file]
//
// The module is the real program with a real database. The homeserver is one in memory, in this process: Synapse takes
// hours to let 50 users join 1,000 rooms, and its own times would hide the module's. Members are real groups of mls.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

type options struct {
	rooms, members, processes int
	database, bin, json       string
	idle, calm, limit         time.Duration
	settle                    time.Duration                    // how long to wait at most until the module is silent
	say                       func(format string, args ...any) // tells what is done
}

func main() {
	o := options{say: func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }}
	flag.IntVar(&o.rooms, "rooms", 1000, "rooms")
	flag.IntVar(&o.members, "members", 50, "members of each room, with a device each")
	flag.IntVar(&o.processes, "processes", 1, "module processes on one database: 1, or 2 with postgres, of which one stands by after one alone was measured")
	flag.StringVar(&o.database, "database", "sqlite", "sqlite or postgres")
	flag.StringVar(&o.bin, "bin", "bin", "directory with the built matrix-mls")
	flag.StringVar(&o.json, "json", "", "write the figures to this file, too")
	flag.DurationVar(&o.idle, "idle", 6*time.Minute, "how long to watch the module while nothing happens: longer than gap_check, in which it compares every room with its history")
	flag.DurationVar(&o.calm, "calm", 20*time.Second, "how long the module is silent when it has nothing more to do")
	flag.DurationVar(&o.settle, "settle", 5*time.Minute, "how long to wait for that at most")
	flag.DurationVar(&o.limit, "limit", 3*time.Hour, "give up after this time")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	rep, err := run(ctx, o)
	cancel()
	stop()
	if rep != nil { // what was measured before something failed is worth having
		err = errors.Join(err, rep.write(o.json))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "manyrooms: %v\n", err)
		os.Exit(1)
	}
}

func (o *options) check() error {
	switch {
	case o.rooms < 1 || o.members < 2:
		return errors.New("at least one room and two members: raise -rooms, -members")
	case o.database != "sqlite" && o.database != "postgres":
		return fmt.Errorf("-database takes sqlite or postgres, not %q", o.database)
	case o.processes < 1 || o.processes > 2 || o.processes == 2 && o.database == "sqlite":
		return errors.New("-processes takes 1, or 2 with -database postgres: an SQLite file belongs to one process")
	}
	return nil
}

// report is what is written down of a run.
type report struct {
	Commit     string `json:"commit"`
	Date       string `json:"date"`
	Go         string `json:"go"`
	Processors int    `json:"processors"`
	LoadBefore string `json:"load_before"`
	LoadAfter  string `json:"load_after"`
	Rooms      int    `json:"rooms"`
	Members    int    `json:"members"`
	Database   string `json:"database"`
	Processes  int    `json:"processes"`
	Failed     string `json:"failed,omitempty"` // what ended the run before its end
	Acts       []*act `json:"acts"`
	Peaks      []peak `json:"peaks"` // of each process of the module, in the order in which they ended
}

// aim is what each process of the module is to stay within.
const aim = 128 << 20

// peak is the most memory that a process of the module ever had, in bytes.
type peak struct {
	Process string `json:"process"`
	RSS     int64  `json:"rss"`
}

// act is one row.
type act struct {
	Name      string  `json:"name"`
	Processes int     `json:"processes"`        // of the module
	Failed    bool    `json:"failed,omitempty"` // it did not come to its end, and the figures are of its beginning
	Seconds   float64 `json:"seconds"`
	CPU       float64 `json:"module_cpu_seconds"` // of all processes, those that ended meanwhile among them
	RSS       int64   `json:"module_rss"`         // of all processes
	Requests  int     `json:"requests"`
	Events    int     `json:"events"`
	Accepts   int     `json:"accepts,omitempty"`
	Median    float64 `json:"accept_median_ms,omitempty"`
	Worst     float64 `json:"accept_p99_ms,omitempty"`
}

func (r *report) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d rooms of %d members, %s, %d process(es) of the module; commit %s, %s, %d processors, Go %s. Load of the machine (1, 5, 15 minutes): %s, then %s.\n\n",
		r.Rooms, r.Members, r.Database, r.Processes, r.Commit, r.Date, r.Processors, r.Go, r.LoadBefore, r.LoadAfter)
	if r.Failed != "" {
		fmt.Fprintf(&b, "**The run failed**, and what follows is what came before: %s\n\n", r.Failed)
	}
	processes := 0
	for _, a := range r.Acts {
		if a.Processes != processes {
			if processes > 0 {
				fmt.Fprint(&b, "\nThe same rooms, with a process that works and one that stands by:\n\n")
			}
			fmt.Fprintln(&b, "| act | time | module's CPU | memory afterwards | requests | events | accept, median | accept, 99 of 100 |")
			fmt.Fprintln(&b, "| --- | --- | --- | --- | --- | --- | --- | --- |")
			processes = a.Processes
		}
		name := a.Name
		if a.Failed {
			name += " (**not ended**)"
		}
		median, worst := "", ""
		if a.Median > 0 {
			median, worst = fmt.Sprintf("%.0f ms", a.Median), fmt.Sprintf("%.0f ms", a.Worst)
		}
		fmt.Fprintf(&b, "| %s | %.2f s | %.2f s | %.1f MiB | %d | %d | %s | %s |\n", name, a.Seconds, a.CPU, float64(a.RSS)/(1<<20), a.Requests, a.Events, median, worst)
	}
	fmt.Fprintf(&b, "\n| process | most memory ever (aim %d MiB) | |\n| --- | --- | --- |\n", aim>>20)
	for _, p := range r.Peaks {
		kept := "kept"
		if p.RSS > aim {
			kept = "**missed**"
		}
		fmt.Fprintf(&b, "| %s | %.1f MiB | %s |\n", p.Process, float64(p.RSS)/(1<<20), kept)
	}
	return b.String()
}

// write prints the figures, and writes them into a file if one is named.
func (r *report) write(file string) error {
	fmt.Print(r.text())
	if file == "" {
		return nil
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(raw, '\n'), 0o644)
}
