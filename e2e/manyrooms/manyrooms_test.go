package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	for _, o := range []options{{database: "sqlite", processes: 1}, {database: "postgres", processes: 1}, {database: "postgres", processes: 2}} {
		t.Run(fmt.Sprintf("%s/%d", o.database, o.processes), func(t *testing.T) {
			o.rooms, o.members, o.bin, o.calm, o.idle, o.say = 3, 4, bin, 200*time.Millisecond, time.Millisecond, t.Logf
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
				if a.Median > 0 && a.Worst >= a.Median {
					accepted++
				}
			}
			// Of two processes one is stopped and started again, and the other killed; one is both.
			if len(rep.Acts) != 10 || accepted != 5 || len(rep.Peaks) != 3 {
				t.Errorf("got %d acts, of which %d were accepted, and memory of %d processes", len(rep.Acts), accepted, len(rep.Peaks))
			}
			for _, p := range rep.Peaks {
				if p.RSS <= 0 {
					t.Errorf("process %s had no memory", p.Process)
				}
			}
			if text := rep.text(); strings.Count(text, "\n| ") != 4+len(rep.Acts)+len(rep.Peaks) || !strings.Contains(text, "3 rooms of 4 members, "+o.database) {
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
	_, err := run(ctx, options{rooms: 1, members: 2, processes: 1, database: "sqlite", bin: bin, say: t.Logf})
	if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "its last words") || !strings.Contains(err.Error(), "ended by itself: exit status 7") {
		t.Errorf("got %v", err)
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
