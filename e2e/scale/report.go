package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/matrix-mls/matrix-mls/e2e/machine"
)

// report is what is written down of a run.
type report struct {
	Commit     string           `json:"commit"`
	Date       string           `json:"date"`
	Go         string           `json:"go"`
	Processors int              `json:"processors"`
	LoadBefore string           `json:"load_before"`
	LoadAfter  string           `json:"load_after"`
	Leaves     int              `json:"leaves"`
	Users      int              `json:"users"`
	Driven     int              `json:"driven"`
	PerUser    int              `json:"per_user"`
	Starts     int              `json:"starts"`
	Seconds    float64          `json:"seconds"` // of the last start
	Peak       map[string]int64 `json:"peak_rss"`
	Traffic    traffic          `json:"traffic"` // of all clients, since the last start
	Costs      []*cost          `json:"costs"`
	Megolm     []*cost          `json:"megolm,omitempty"`
	Proxied    *proxied         `json:"proxied,omitempty"`
}

// report prints the figures and writes them into the file.
func (s *scale) report() error {
	r := &report{
		Commit: machine.Commit(), Date: time.Now().UTC().Format("2006-01-02"), Go: strings.TrimPrefix(runtime.Version(), "go"), Processors: runtime.NumCPU(),
		LoadBefore: s.load, LoadAfter: machine.LoadAverage(), Leaves: s.options.leaves, Users: len(s.st.Driven) + len(s.st.Crowd), Driven: len(s.st.Driven), PerUser: s.perUser,
		Starts: s.st.Starts, Seconds: time.Since(s.began).Seconds(), Peak: map[string]int64{}, Traffic: s.http.now(), Costs: s.costs, Megolm: s.megolm, Proxied: s.proxied,
	}
	for _, server := range servers {
		for _, name := range []string{"module-" + server, server} {
			p, err := s.process(name)
			if err != nil {
				return err
			}
			r.Peak[name] = s.peak(name, p)
		}
	}
	own, err := machine.Of(os.Getpid())
	if err != nil {
		return err
	}
	r.Peak["clients"] = s.peak("clients", own)
	s.say.end()
	fmt.Print(r.text())
	if s.json == "" {
		return nil
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(s.json, append(raw, '\n'), 0o644)
}

func (r *report) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d leaves, %d users, %d whole clients; commit %s, %s, %d processors, Go %s. Load of the machine (1, 5, 15 minutes): %s, then %s.\n\n",
		r.Leaves, r.Users, r.Driven, r.Commit, r.Date, r.Processors, r.Go, r.LoadBefore, r.LoadAfter)
	fmt.Fprintln(&b, "| act | time | clients' CPU | modules' CPU | homeservers' CPU | largest module | events | bytes of events | media | to-device | bytes |")
	fmt.Fprintln(&b, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, list := range [][]*cost{r.Costs, r.Megolm} {
		for _, c := range list {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %d | %s | %s | %d | %s |\n", c.Name, seconds(c.Seconds), seconds(c.Client), seconds(c.Modules), seconds(c.Homes),
				size(c.RSS), c.count(), size(c.Bytes), size(c.Media), c.Traffic.ToDevice, size(c.Traffic.ToDeviceBytes))
		}
	}
	fmt.Fprintf(&b, "\nMost memory ever: module of syn1 %s, of syn2 %s, of den1 %s; all %d clients together %s.\n",
		size(r.Peak["module-syn1"]), size(r.Peak["module-syn2"]), size(r.Peak["module-den1"]), r.Driven, size(r.Peak["clients"]))
	if r.Proxied != nil {
		fmt.Fprintf(&b, "\n%s", r.Proxied.text())
	}
	return b.String()
}

func seconds(s float64) string {
	if s < 10 {
		return fmt.Sprintf("%.2f s", s)
	}
	return fmt.Sprintf("%.0f s", s)
}

func size(n int64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%d B", n)
	case n < 1_000_000:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}
