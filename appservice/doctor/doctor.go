// Package doctor checks an installation from every side and says, for each
// thing that is wrong, why it probably is and what to do next.
package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	mas "maunium.net/go/mautrix/appservice"

	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
)

// Status is the verdict of a probe.
type Status string

// The verdicts. A probe is skipped when another failed that it rests on.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
	Skip Status = "skip"
)

// Result is what a probe found.
type Result struct {
	ID     string `json:"id"`
	Title  string `json:"title"`
	Status Status `json:"status"`
	Detail string `json:"detail,omitempty"` // what was found
	Cause  string `json:"cause,omitempty"`  // why it probably is so
	Next   string `json:"next,omitempty"`   // what to do
}

// Report is what all probes found.
type Report struct {
	Version string   `json:"version"`
	Results []Result `json:"results"`
	// Stopped says that the context ended before all probes were made.
	Stopped bool `json:"stopped,omitempty"`
}

// Failed tells whether any probe failed.
func (r *Report) Failed() bool { return r.Count(Fail) > 0 }

// Count counts the probes with a verdict.
func (r *Report) Count(s Status) (n int) {
	for _, p := range r.Results {
		if p.Status == s {
			n++
		}
	}
	return n
}

// Options says what to check.
type Options struct {
	Config       string
	Registration string
	Environ      []string
	Version      string
	Now          func() time.Time // zero value: time.Now
}

// probe is one check. It fills in what it found.
type probe struct {
	id, title string
	needs     []string // ids of probes that must not have failed
	run       func(ctx context.Context, d *doctor, r *Result)
}

// doctor is what probes share.
type doctor struct {
	opts Options
	cfg  *config.Config
	reg  *mas.Registration
	st   *store.Store
	hs   *homeserver.Client
	now  func() time.Time

	versions    *homeserver.Versions
	versionsAt  time.Time
	roundTrip   time.Duration
	moduleLives bool
	standsBy    bool // what answers in the module's place stands by
}

// probeTime bounds each probe.
const probeTime = 45 * time.Second

// Run makes all probes in order.
func Run(ctx context.Context, o Options) *Report {
	d := &doctor{opts: o, now: o.Now}
	if d.now == nil {
		d.now = time.Now
	}
	defer func() {
		if d.st != nil {
			_ = d.st.Close()
		}
	}()
	report := &Report{Version: o.Version}
	status := make(map[string]Status)
	for _, p := range probes {
		r := Result{ID: p.id, Title: p.title, Status: OK}
		for _, need := range p.needs {
			if status[need] == Fail || status[need] == Skip {
				r.Status, r.Detail = Skip, "needs "+need
				break
			}
		}
		if r.Status != Skip {
			probeCtx, cancel := context.WithTimeout(ctx, probeTime)
			p.run(probeCtx, d, &r)
			cancel()
		}
		if ctx.Err() != nil { // what the probe found is that nobody waits for it
			report.Stopped = true
			break
		}
		status[p.id] = r.Status
		report.Results = append(report.Results, r)
	}
	return report
}

// Probes lists the probes as id and title, for the manual.
func Probes() (out [][2]string) {
	for _, p := range probes {
		out = append(out, [2]string{p.id, p.title})
	}
	return out
}

func (r *Result) fail(detail, cause, next string) {
	r.Status, r.Detail, r.Cause, r.Next = Fail, detail, cause, next
}

func (r *Result) warn(detail, cause, next string) {
	r.Status, r.Detail, r.Cause, r.Next = Warn, detail, cause, next
}

func (r *Result) ok(format string, args ...any) {
	r.Status, r.Detail = OK, fmt.Sprintf(format, args...)
}

// counted is a number with the words for one, or for others.
func counted(n int, one, others string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, others)
}

// WriteJSON writes the report for programs.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// WriteText writes the report for people. The verdict is a word, never only a
// colour.
func (r *Report) WriteText(w io.Writer, colour bool) error {
	var b strings.Builder
	for _, p := range r.Results {
		word := fmt.Sprintf("%-4s", p.Status)
		if colour {
			code := map[Status]string{OK: "32", Warn: "33", Fail: "31", Skip: "2"}[p.Status]
			word = "\x1b[" + code + "m" + word + "\x1b[0m"
		}
		fmt.Fprintf(&b, "%s  %-14s %s", word, p.ID, p.Title)
		if p.Detail != "" {
			fmt.Fprintf(&b, ": %s", p.Detail)
		}
		b.WriteByte('\n')
		if p.Cause != "" {
			fmt.Fprintf(&b, "      cause: %s\n", p.Cause)
		}
		if p.Next != "" {
			fmt.Fprintf(&b, "      next:  %s\n", p.Next)
		}
	}
	if r.Stopped {
		fmt.Fprintf(&b, "\nstopped: %d of %d probes were made\n", len(r.Results), len(probes))
	}
	fmt.Fprintf(&b, "\n%d ok, %s, %d failed, %d skipped\n", r.Count(OK), counted(r.Count(Warn), "warning", "warnings"), r.Count(Fail), r.Count(Skip))
	_, err := io.WriteString(w, b.String())
	return err
}
