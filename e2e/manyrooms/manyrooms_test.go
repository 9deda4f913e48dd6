package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/lab"
)

// TestSmall runs the whole measurement with a few small rooms on each database, so that it can be trusted with many.
func TestSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("starts programs")
	}
	root, err := lab.Root()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(bin, "matrix-mls"), "./cmd/matrix-mls")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the module: %v: %s", err, out)
	}
	for _, c := range []struct {
		options
		acts, accepted, peaks int
	}{
		{options{database: "sqlite", processes: 1}, 11, 6, 3},
		// Over the same rooms one of two processes is stopped and started again, and the other is killed.
		{options{database: "postgres", processes: 2}, 18, 11, 5},
	} {
		t.Run(fmt.Sprintf("%s/%d", c.database, c.processes), func(t *testing.T) {
			o := c.options
			o.rooms, o.members, o.bin, o.calm, o.settle, o.idle, o.say = 3, 4, bin, 200*time.Millisecond, time.Minute, time.Millisecond, t.Logf
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			rep, err := run(ctx, o)
			if err != nil {
				t.Fatal(err)
			}
			var accepted int
			for _, a := range rep.Acts {
				if a.RSS <= 0 {
					t.Errorf("%s: the module had no memory", a.Name)
				}
				if a.CPU < 0 || a.Failed {
					t.Errorf("%s: got %+v", a.Name, a)
				}
				if a.Accepts > 0 && a.Median > 0 && a.Worst >= a.Median {
					accepted++
				}
			}
			if len(rep.Acts) != c.acts || accepted != c.accepted || len(rep.Peaks) != c.peaks || rep.Failed != "" {
				t.Errorf("got %d acts, of which %d were accepted, and memory of %d processes", len(rep.Acts), accepted, len(rep.Peaks))
			}
			for _, p := range rep.Peaks {
				if p.RSS <= 0 {
					t.Errorf("process %s had no memory", p.Process)
				}
			}
			if text := rep.text(); strings.Count(text, "\n| ") != 2+2*c.processes+len(rep.Acts)+len(rep.Peaks) || !strings.Contains(text, "3 rooms of 4 members, "+o.database) {
				t.Errorf("the report is\n%s", text)
			}
		})
	}
}

// TestModuleThatDies: a run fails at once, with what the module said.
func TestModuleThatDies(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "matrix-mls"), []byte("#!/bin/sh\necho its last words\nexit 7\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	rep, err := run(ctx, options{rooms: 1, members: 2, processes: 1, database: "sqlite", bin: bin, say: t.Logf})
	if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "its last words") || !strings.Contains(err.Error(), "ended by itself: exit status 7") {
		t.Errorf("got %v", err)
	}
	if rep == nil || !strings.Contains(rep.Failed, "ended by itself: exit status 7") || rep.LoadAfter == "" || !strings.Contains(rep.text(), "**The run failed**") {
		t.Errorf("the report is %+v", rep)
	}
}

// TestActThatFails: what was measured of it is kept.
func TestActThatFails(t *testing.T) {
	b := &bench{o: options{say: t.Logf}, h: newHomeserver("", "", nil), rep: &report{}, now: 1, gone: 3}
	err := b.act(t.Context(), "a commit in every room", func() ([]time.Duration, error) {
		b.gone += 2 // a process was stopped meanwhile
		return []time.Duration{time.Second, 2 * time.Second, 3 * time.Second}, errors.New("the fourth did not come")
	})
	if err == nil || len(b.rep.Acts) != 1 {
		t.Fatalf("got %v and %d rows", err, len(b.rep.Acts))
	}
	if a := b.rep.Acts[0]; !a.Failed || a.Accepts != 3 || a.Median != 2000 || a.Worst != 3000 || a.CPU != 2 {
		t.Errorf("got %+v", a)
	}
	if text := b.rep.text(); !strings.Contains(text, "| a commit in every room (**not ended**) | ") {
		t.Errorf("the report is\n%s", text)
	}
}

// TestProcessThatDoesNotStop: the end of the context ends what waits for it, and the process.
func TestProcessThatDoesNotStop(t *testing.T) {
	bin, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "matrix-mls"), []byte("#!/bin/sh\ntrap '' TERM\necho up\nexec sleep 600\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	b := &bench{o: options{bin: bin, say: t.Logf}, dir: dir, procs: make([]*process, 1), begun: make([]int, 1), rep: &report{}}
	if err := b.start(0); err != nil {
		t.Fatal(err)
	}
	p := b.procs[0]
	if err := b.until(t.Context(), func() bool {
		raw, err := os.ReadFile(b.log(0))
		return err == nil && len(raw) > 0
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.stop(ctx, 0, syscall.SIGTERM); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	select {
	case <-p.ended:
	default:
		t.Error("the process runs on")
	}
}

// TestSilenceThatDoesNotCome: it is not waited for without an end.
func TestSilenceThatDoesNotCome(t *testing.T) {
	b := &bench{h: newHomeserver("", "", nil)}
	if err := b.silent(t.Context(), time.Hour, 10*time.Millisecond); err != nil {
		t.Error(err)
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for _, o := range []options{
		{rooms: 0, members: 2, processes: 1, database: "sqlite"}, {rooms: 1, members: 1, processes: 1, database: "sqlite"},
		{rooms: 1, members: 2, processes: 2, database: "sqlite"}, {rooms: 1, members: 2, processes: 1, database: "mysql"},
	} {
		if o.check() == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// TestMemoryIsHeldAgainstTheAim: the report says of each process whether it stayed within what it is to.
func TestMemoryIsHeldAgainstTheAim(t *testing.T) {
	text := (&report{Peaks: []peak{{"1, start 1", 128 << 20}, {"1, start 2", 128<<20 + 1<<10}}}).text()
	for _, want := range []string{"(aim 128 MiB)", "| 1, start 1 | 128.0 MiB | kept |", "| 1, start 2 | 128.0 MiB | **missed** |"} {
		if !strings.Contains(text, want) {
			t.Errorf("the report does not say %q:\n%s", want, text)
		}
	}
}
