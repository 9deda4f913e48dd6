package main

import (
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
	for _, o := range []options{{database: "sqlite", processes: 1}, {database: "postgres", processes: 2}} {
		t.Run(o.database, func(t *testing.T) {
			o.rooms, o.members, o.bin, o.calm, o.idle, o.say = 3, 4, bin, 200*time.Millisecond, time.Millisecond, t.Logf
			rep, err := run(t.Context(), o)
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
			if len(rep.Acts) != 10 || accepted != 5 || len(rep.Peak) != 1 {
				t.Errorf("got %d acts, of which %d were accepted, and memory of %d processes", len(rep.Acts), accepted, len(rep.Peak))
			}
			if text := rep.text(); strings.Count(text, "\n| ") != 2+len(rep.Acts) || !strings.Contains(text, "3 rooms of 4 members, "+o.database) {
				t.Errorf("the report is\n%s", text)
			}
		})
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
