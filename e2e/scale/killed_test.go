package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/e2e"
)

// TestKilledRunGoesOn kills the program, as the system would, while people join the room, while they are added to the
// group, and between two acts that it measures. Each time the same command goes on, and in the end the report is of one
// whole run.
func TestKilledRunGoesOn(t *testing.T) {
	if testing.Short() {
		t.Skip("starts homeservers")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "scale")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	work, figures := filepath.Join(dir, "run"), filepath.Join(dir, "figures.json")
	ended := false
	t.Cleanup(func() {
		if ended {
			return
		}
		if w, err := e2e.Attach(work); err == nil { // a kill leaves the servers running
			if logs, err := w.KeepLogs("e2e-scale-killed"); err == nil {
				t.Log("logs are in", logs)
			}
			if err := w.Down(context.WithoutCancel(t.Context()), true); err != nil {
				t.Error(err)
			}
		}
	})
	start := func(until string) (said string, reached bool, err error) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, "-n", "24", "-per-user", "2", "-early", "50", "-batch", "3", "-dir", work, "-json", figures, "-short", "-megolm=false", "-limit", "15m")
		out, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = io.Discard
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			t.Log(lines.Text())
			said += lines.Text() + "\n"
			if until != "" && strings.Contains(lines.Text(), until) {
				reached = true
				if err := cmd.Process.Kill(); err != nil {
					t.Error(err)
				}
			}
		}
		return said, reached, cmd.Wait()
	}
	kills := []string{"make the whole clients", "switch the room of", spoken}
	for i, at := range kills {
		said, reached, err := start(at)
		if !reached || err == nil {
			t.Fatalf("it was not killed at %q: %v", at, err)
		}
		if goes := strings.Contains(said, "going on with the run"); goes != (i > 0) {
			t.Errorf("start %d says that it goes on: %v", i+1, goes)
		}
	}
	if _, _, err := start(""); err != nil {
		t.Fatal(err)
	}
	ended = true
	raw, err := os.ReadFile(figures)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	if r.Leaves != 24 || r.Starts != len(kills)+1 {
		t.Errorf("the report is of %d leaves and %d starts, want 24 and %d", r.Leaves, r.Starts, len(kills)+1)
	}
	times := map[string]int{}
	for _, c := range r.Costs {
		times[c.Name]++
	}
	for _, a := range (&scale{options: options{short: true}}).acts() {
		if a.links {
			continue
		}
		if times[a.name] != 1 {
			t.Errorf("%s: measured %d times", a.name, times[a.name])
		}
	}
	for name, n := range times {
		if n != 1 {
			t.Errorf("%s stands in the report %d times", name, n)
		}
	}
}
