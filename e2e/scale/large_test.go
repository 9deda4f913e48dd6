package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestLargeRoom grows a room to 500 leaves on real homeservers, and lets somebody come, speak and go, a module restart, and
// a device come in by itself. Each of these fails unless all whole clients are on one head with the right leaves, or have
// read the message; what is looked at here is what they cost: a member change is one event of its own and a few words about
// it, however many are in the room.
func TestLargeRoom(t *testing.T) {
	if testing.Short() {
		t.Skip("starts homeservers")
	}
	const leaves, perUser, whole = 500, 8, 6
	dir := filepath.Join(t.TempDir(), "run")
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		if w, err := e2e.Attach(dir); err == nil {
			if logs, err := w.KeepLogs("e2e-scale"); err == nil {
				t.Log("logs are in", logs)
			}
		}
	})
	o := options{
		leaves: leaves, perUser: perUser, driven: whole, early: 98, atOnce: 3, dir: dir, json: filepath.Join(dir, "figures.json"), short: true, hold: true,
		limit: 30 * time.Minute,
	}
	if err := run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(o.json)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	costs := map[string]*cost{}
	for _, c := range r.Costs {
		costs[c.Name] = c
	}
	for name, want := range map[string]struct {
		leaves, commits int
		toDevice        int64
	}{
		spoken:     {leaves, 0, 0},
		added:      {leaves + 1, 1, 1}, // the one message is the Welcome
		removed:    {leaves, 1, 0},
		banned:     {leaves - perUser, 1, 0}, // of a user with all their devices
		restarted:  {leaves - perUser, 0, 0},
		afterwards: {leaves - perUser, 1, 0},
		alone:      {leaves - perUser + 1, 1, 0},
		returned:   {leaves - perUser + 1, 0, 0},
		rebuilt:    {leaves - perUser + 1, 0, 0},
		ordering:   {leaves - perUser + 1, 2, 0}, // the change of the list, and what the module then orders
	} {
		c := costs[name]
		if c == nil {
			t.Errorf("%s: not measured", name)
			continue
		}
		if c.Leaves != want.leaves {
			t.Errorf("%s: the tree has %d leaves, want %d", name, c.Leaves, want.leaves)
		}
		if c.Traffic.ToDevice != want.toDevice || c.Traffic.Welcomes != want.toDevice {
			t.Errorf("%s: %d to-device messages, %d of them Welcomes; want %d, all of them", name, c.Traffic.ToDevice, c.Traffic.Welcomes, want.toDevice)
		}
		// Where a commit waits long, another member may make one beside it; it changes nothing if that is not accepted.
		commits := c.Events[rooms.TypeCommit]
		if commits < want.commits || commits > 2*want.commits {
			t.Errorf("%s: %d commits, want %d", name, commits, want.commits)
		}
		// Heads come as long as somebody has just joined, so their number is one of time.
		events, bytes := c.count()-c.Events[rooms.TypeHead], c.Bytes-c.Sizes[rooms.TypeHead]
		most := 8 + 12*want.commits
		if name == banned {
			most += len(servers) * perUser // each module proposes to remove each device, until one commit does
		}
		if events > most {
			t.Errorf("%s: %d events without heads, want %d at most: %v", name, events, most, c.Events)
		}
		if most := int64(16_000 + 80_000*want.commits); bytes > most {
			t.Errorf("%s: %d bytes of events without heads, want %d at most: %v", name, bytes, most, c.Sizes)
		}
	}
	// Everybody but the founder's device and the one that came by itself was let in by a Welcome; a whole client for which
	// that takes too long may come by itself, too, and a request may be made twice.
	if got, want := r.Traffic.Welcomes, int64(leaves-1+1); got < want-whole || got > want+want/20 {
		t.Errorf("%d Welcomes were sent for %d devices", got, want)
	}
	if r.Leaves != leaves || r.Driven != whole || r.Starts != 1 {
		t.Errorf("the report is of %d leaves, %d whole clients and start %d", r.Leaves, r.Driven, r.Starts)
	}
}
