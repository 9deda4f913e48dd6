package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/matrix-mls/matrix-mls/e2e/machine"
	"github.com/matrix-mls/matrix-mls/lab"
)

// bench is a run.
type bench struct {
	o     options
	dir   string
	h     *homeserver
	c     *crowd
	procs []*process // nil: does not run
	base  []string   // addresses, see client
	died  context.CancelCauseFunc
	begun []int        // how often each was started
	gone  float64      // processor time of the processes that were stopped, in seconds
	now   int          // processes that are being measured
	lab   *lab.Servers // PostgreSQL; nil: there is none
	rep   *report
}

// process is a process of the module.
type process struct {
	*exec.Cmd
	name    string        // for people
	stopped atomic.Bool   // is to end
	ended   chan struct{} // closed when it has
	err     error         // how; read it after that
}

// run measures everything.
func run(ctx context.Context, o options) (rep *report, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "matrix-mls-manyrooms-")
	if err != nil {
		return nil, err
	}
	b := &bench{o: o, dir: dir, rep: &report{Commit: machine.Commit(), Date: time.Now().UTC().Format("2006-01-02"), Go: strings.TrimPrefix(runtime.Version(), "go"), Processors: runtime.NumCPU(), LoadBefore: machine.LoadAverage(),
		Rooms: o.rooms, Members: o.members, Database: o.database, Processes: o.processes}}
	defer func() {
		if err != nil {
			b.rep.Failed = err.Error()
			err = fmt.Errorf("%w\nhint: the module's logs are in %s; they end with\n%s", err, dir, b.logs())
			return
		}
		err = os.RemoveAll(dir)
	}()
	defer func() { err = errors.Join(err, b.end()) }()
	ctx, b.died = context.WithCancelCause(ctx)
	defer b.died(nil)
	if err = b.begin(ctx); err == nil {
		err = b.measure(ctx)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	b.rep.LoadAfter = machine.LoadAverage()
	return b.rep, err
}

// maxShownLog is how much of the end of each log an error shows, in bytes.
const maxShownLog = 4000

func (b *bench) logs() string {
	var out strings.Builder
	for i := range b.o.processes {
		raw, err := os.ReadFile(b.log(i))
		if err != nil {
			raw = []byte(err.Error())
		}
		fmt.Fprintf(&out, "process %d: %s\n", i, raw[max(0, len(raw)-maxShownLog):])
	}
	return out.String()
}

func (b *bench) log(i int) string { return filepath.Join(b.dir, fmt.Sprintf("module%d.log", i)) }

// socket is where a process of the module listens. Nobody can take it meanwhile, as a port.
func (b *bench) socket(i int) string { return filepath.Join(b.dir, fmt.Sprintf("module%d.sock", i)) }

// client speaks with the processes of the module by their addresses.
func (b *bench) client() *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(b.dir, host+".sock"))
	}}}
}

func (b *bench) measure(ctx context.Context) error {
	parts := []func(context.Context) error{b.enter, b.grow, b.settle, b.rest, b.work, b.again}
	if b.o.processes == 2 {
		parts = append(parts, b.second, b.rest, b.work, b.takeOver)
	}
	for _, part := range parts {
		if err := part(ctx); err != nil {
			return err
		}
	}
	if list := b.h.unknown(); len(list) > 0 {
		return fmt.Errorf("the module asked for what this homeserver does not have, so the figures are worth nothing: %s", strings.Join(list, ", "))
	}
	return nil
}

// begin starts the homeserver and one process of the module, which know nothing.
func (b *bench) begin(ctx context.Context) error {
	database, err := b.database(ctx)
	if err != nil {
		return err
	}
	for i := range b.o.processes {
		b.base = append(b.base, fmt.Sprintf("http://module%d", i))
	}
	asToken, hsToken := token(), token()
	b.h = newHomeserver(asToken, hsToken, b.client(), b.base...)
	if b.c, err = newCrowd(b.h, b.o.rooms, b.o.members); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: b.h.handler(), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }() // ends with the program
	go b.h.push(ctx)
	for i := range b.o.processes {
		config := map[string]any{
			"homeserver": map[string]any{"address": "http://" + l.Addr().String(), "domain": serverName, "software": "synapse"},
			"appservice": map[string]any{
				"address": b.base[i], "hostname": b.socket(i), "as_token": asToken, "hs_token": hsToken,
				"bot": map[string]any{"username": "_mls_bot", "displayname": ""},
			},
			"database": database,
			"logging":  map[string]any{"min_level": "warn", "writers": []any{map[string]any{"type": "stdout", "format": "json"}}},
		}
		raw, err := yaml.Marshal(config)
		if err == nil {
			err = os.WriteFile(b.config(i), raw, 0o600)
		}
		if err != nil {
			return err
		}
	}
	b.procs, b.begun, b.now = make([]*process, b.o.processes), make([]int, b.o.processes), 1
	if err := b.start(0); err != nil {
		return err
	}
	return b.answers(ctx, 0, ready)
}

func (b *bench) config(i int) string { return filepath.Join(b.dir, fmt.Sprintf("config%d.yaml", i)) }

func (b *bench) database(ctx context.Context) (map[string]any, error) {
	if b.o.database == "sqlite" {
		return map[string]any{"type": "sqlite3", "uri": filepath.Join(b.dir, "module.db")}, nil
	}
	var err error
	if b.lab, err = lab.Start(ctx, lab.Options{DurablePostgres: true}); err != nil {
		return nil, err
	}
	uri, err := b.lab.CreateDatabase(ctx, "module")
	return map[string]any{"type": "postgres", "uri": uri}, err
}

func token() string {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails
	return hex.EncodeToString(raw[:])
}

func (b *bench) start(i int) error {
	log, err := os.OpenFile(b.log(i), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	b.begun[i]++
	p := &process{Cmd: exec.Command(filepath.Join(b.o.bin, "matrix-mls"), "serve", "-c", b.config(i)), name: fmt.Sprintf("%d, start %d", i+1, b.begun[i]), ended: make(chan struct{})}
	p.Stdout, p.Stderr = log, log
	if err := p.Start(); err != nil {
		return err
	}
	b.procs[i] = p
	go func() {
		if p.err = p.Wait(); !p.stopped.Load() {
			b.died(fmt.Errorf("process %d of the module ended by itself: %w", i, cmp.Or(p.err, errors.New("exit code 0"))))
		}
		close(p.ended)
	}()
	return nil
}

// late is what a module says that was stopped with work under way that took longer than it waits.
const late = "some work did not end in time; it is taken up at the next start"

// stop ends a process, by force if the context ends before it has.
func (b *bench) stop(ctx context.Context, i int, sig os.Signal) error {
	p := b.procs[i]
	b.procs[i] = nil
	if use, err := machine.Of(p.Process.Pid); err == nil { // else it has ended by itself
		b.rep.Peaks = append(b.rep.Peaks, peak{p.name, use.Peak})
	}
	p.stopped.Store(true)
	if err := p.Process.Signal(sig); err != nil {
		return err
	}
	select {
	case <-p.ended:
	case <-ctx.Done():
		_ = p.Process.Kill() // it may have ended just now
		<-p.ended
		return fmt.Errorf("process %s did not end at %v: %w", p.name, sig, ctx.Err())
	}
	b.gone += (p.ProcessState.UserTime() + p.ProcessState.SystemTime()).Seconds()
	var exit *exec.ExitError
	if sig == syscall.SIGKILL && errors.As(p.err, &exit) {
		return nil
	}
	if raw, err := os.ReadFile(b.log(i)); errors.As(p.err, &exit) && err == nil && strings.Contains(string(raw), late) {
		b.o.say("the module says that %s", late)
		return nil
	}
	return p.err
}

func (b *bench) end() error {
	for i, cmd := range b.procs {
		if cmd != nil {
			_ = b.stop(context.Background(), i, syscall.SIGKILL) // it is only to be gone, and cannot resist
		}
	}
	if b.lab == nil {
		return nil
	}
	return b.lab.Close()
}

// What a process answers with 200: one that stands by lives, and one that does the module's work is ready, too.
const (
	live  = "live"
	ready = "ready"
)

// answers waits until a process is live, or ready.
func (b *bench) answers(ctx context.Context, i int, how string) error {
	client := b.client()
	defer client.CloseIdleConnections()
	return b.until(ctx, func() bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base[i]+"/_matrix/mau/"+how, nil)
		if err != nil {
			return false
		}
		resp, err := client.Do(req)
		if err != nil {
			return false
		}
		_ = resp.Body.Close() // the status is all of it
		return resp.StatusCode == http.StatusOK
	})
}

func (b *bench) until(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// used is what all processes of the module have used so far, those that were stopped among them, and what is in memory.
func (b *bench) used() (cpu float64, rss int64, err error) {
	cpu = b.gone
	for _, cmd := range b.procs {
		if cmd == nil {
			continue
		}
		p, err := machine.Of(cmd.Process.Pid)
		if err != nil {
			return 0, 0, err
		}
		cpu, rss = cpu+p.CPU, rss+p.RSS
	}
	return cpu, rss, nil
}

// act measures one act, which may return, in order, how long the module took to accept each commit. One that fails is
// written down as far as it came.
func (b *bench) act(ctx context.Context, name string, fn func() ([]time.Duration, error)) error {
	b.o.say("%s: %s …", time.Now().UTC().Format(time.TimeOnly), name)
	cpu, _, err := b.used()
	if err != nil {
		return err
	}
	requests, events := b.h.asked(), b.h.sent()
	began := time.Now()
	took, err := fn()
	a := &act{Name: name, Processes: b.now, Failed: err != nil, Seconds: time.Since(began).Seconds(), Accepts: len(took)}
	b.rep.Acts = append(b.rep.Acts, a)
	a.Requests, a.Events = b.h.asked()-requests, b.h.sent()-events
	if len(took) > 0 {
		a.Median = float64(took[len(took)/2].Microseconds()) / 1000
		a.Worst = float64(took[(len(took)*99+99)/100-1].Microseconds()) / 1000
	}
	after, rss, usedErr := b.used()
	if usedErr == nil {
		a.CPU, a.RSS = after-cpu, rss
	}
	b.o.say("… %.1f s, %.1f s of processor time, %.1f MiB, accepts %.0f ms in the median", a.Seconds, a.CPU, float64(a.RSS)/(1<<20), a.Median)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return usedErr
}

// enter invites the module into all rooms.
func (b *bench) enter(ctx context.Context) error {
	return b.act(ctx, "invited into all rooms at once, until it has joined and said its keys in each", func() ([]time.Duration, error) {
		for _, r := range b.c.rooms {
			if err := b.c.invite(r); err != nil {
				return nil, err
			}
		}
		return nil, b.until(ctx, func() bool { return b.c.introduced() == len(b.c.rooms) })
	})
}

// grow founds the groups and adds everybody.
func (b *bench) grow(ctx context.Context) error {
	if err := b.act(ctx, "all groups are founded", func() ([]time.Duration, error) {
		for _, r := range b.c.rooms {
			if err := b.c.found(r); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}); err != nil {
		return err
	}
	for from := 1; from < len(b.c.devices); from += addsPerCommit {
		list := b.c.devices[from:min(from+addsPerCommit, len(b.c.devices))]
		if err := b.act(ctx, fmt.Sprintf("%d members are added to each room", len(list)), func() ([]time.Duration, error) {
			return b.c.round(ctx, b.c.rooms, list)
		}); err != nil {
			return err
		}
	}
	return nil
}

// settle lets the module do what is left: newcomers get heads for two minutes, and votes wait.
func (b *bench) settle(ctx context.Context) error {
	return b.act(ctx, fmt.Sprintf("what growing leaves to do, until the module is silent for %v, or for %v", b.o.calm, b.o.settle), func() ([]time.Duration, error) {
		return nil, b.silent(ctx, b.o.calm, b.o.settle)
	})
}

// rest watches the module while nobody does anything. It compares each room with its history now and then.
func (b *bench) rest(ctx context.Context) error {
	return b.act(ctx, fmt.Sprintf("nothing happens for %v", b.o.idle), func() ([]time.Duration, error) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(b.o.idle):
			return nil, nil
		}
	})
}

// silent waits until nothing has been asked or sent for a time, or for as long as it may: of many rooms some are always
// being compared with their history.
func (b *bench) silent(ctx context.Context, d, most time.Duration) error {
	last := b.h.asked()
	begun := time.Now()
	since := begun
	return b.until(ctx, func() bool {
		if now := b.h.asked(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) >= d || time.Since(begun) >= most
	})
}

// work lets members commit: one after the other in different rooms, and in all rooms at once.
func (b *bench) work(ctx context.Context) error {
	n := min(len(b.c.rooms), 100)
	if err := b.act(ctx, fmt.Sprintf("%d commits, one after the other in as many rooms", n), func() (all []time.Duration, err error) {
		for _, r := range b.c.rooms[:n] {
			took, err := b.c.round(ctx, []*room{r}, nil)
			if err != nil {
				return nil, err
			}
			all = append(all, took...)
		}
		return slices.Sorted(slices.Values(all)), nil
	}); err != nil {
		return err
	}
	return b.everyRoom(ctx, "a commit in every room at once")
}

// everyRoom lets a member of every room commit at once.
func (b *bench) everyRoom(ctx context.Context, name string) error {
	return b.act(ctx, name, func() ([]time.Duration, error) { return b.c.round(ctx, b.c.rooms, nil) })
}

// oneRoom lets a member of one room commit.
func (b *bench) oneRoom(ctx context.Context) ([]time.Duration, error) {
	return b.c.round(ctx, b.c.rooms[:1], nil)
}

// afterwards measures what the module does once it is ready: it still has to compare each room with its history before
// it signs anything there.
func (b *bench) afterwards(ctx context.Context) error {
	if err := b.act(ctx, "the first commit after that", func() ([]time.Duration, error) { return b.oneRoom(ctx) }); err != nil {
		return err
	}
	return b.everyRoom(ctx, "then a commit in every room at once, until all are accepted")
}

// again restarts the module, and kills it.
func (b *bench) again(ctx context.Context) error {
	if err := b.act(ctx, "stopped and started again, until it is ready", func() ([]time.Duration, error) {
		if err := b.stop(ctx, 0, syscall.SIGTERM); err != nil {
			return nil, err
		}
		if err := b.start(0); err != nil {
			return nil, err
		}
		return nil, b.answers(ctx, 0, ready)
	}); err != nil {
		return err
	}
	if err := b.afterwards(ctx); err != nil {
		return err
	}
	return b.act(ctx, "killed and started again: from the kill until a commit is accepted", func() ([]time.Duration, error) {
		if err := b.stop(ctx, 0, syscall.SIGKILL); err != nil {
			return nil, err
		}
		if err := b.start(0); err != nil {
			return nil, err
		}
		return b.oneRoom(ctx)
	})
}

// second starts another process and waits until it stands by.
func (b *bench) second(ctx context.Context) error {
	b.now = 2
	return b.standby(ctx, 1)
}

// standby starts a process beside one that works. None of its start is measured.
func (b *bench) standby(ctx context.Context, i int) error {
	if err := b.start(i); err != nil {
		return err
	}
	return b.answers(ctx, i, live)
}

// takeOver stops the process that works, and kills the one that takes over, when the first stands by again.
func (b *bench) takeOver(ctx context.Context) error {
	if err := b.act(ctx, "stopped: the other process takes over, until it is ready", func() ([]time.Duration, error) {
		if err := b.stop(ctx, 0, syscall.SIGTERM); err != nil {
			return nil, err
		}
		return nil, b.answers(ctx, 1, ready)
	}); err != nil {
		return err
	}
	if err := b.afterwards(ctx); err != nil {
		return err
	}
	if err := b.standby(ctx, 0); err != nil {
		return err
	}
	return b.act(ctx, "killed: the other process takes over, from the kill until a commit is accepted", func() ([]time.Duration, error) {
		if err := b.stop(ctx, 1, syscall.SIGKILL); err != nil {
			return nil, err
		}
		return b.oneRoom(ctx)
	})
}
