package client

import (
	"testing"
	"time"
)

// TestAllRefreshAtOnce: an epoch takes one commit with a path, so the fresh keys of n members take n accepted commits,
// and a few more at the most; who was slower tries again by itself, and nobody is left behind. Who was slower twice lets
// others go first, so that not everybody makes a commit in every epoch.
func TestAllRefreshAtOnce(t *testing.T) {
	n := 50
	if raceEnabled || testing.Short() {
		n = 12
	}
	w := newWorld(t)
	room, members := w.inOneAdd(n, false)
	w.settle()
	w.sameEpoch(room, members...)
	for i, d := range members {
		if wanted, err := d.wantRefresh(w.ctx, room); err != nil || !wanted {
			t.Fatalf("member %d: %v, %v", i, wanted, err)
		}
	}
	left := func() (left int) {
		for _, d := range members {
			d.mu.Lock()
			if d.rooms[room].rec.Refresh {
				left++
			}
			d.mu.Unlock()
		}
		return left
	}
	sent, accepted := w.watchCommits(room, time.Hour, func() bool { return left() == 0 }, members)
	t.Logf("the fresh keys of %d members at once were in after %d accepted commits, of %d that were sent", n, len(accepted), len(sent))
	if left() > 0 || len(accepted) > n+4 {
		t.Errorf("%d are not in, after %d accepted commits, want all after at most %d", left(), len(accepted), n+4)
	}
	if len(sent) > 8*n {
		t.Errorf("%d commits were sent, want %d at most", len(sent), 8*n)
	}
	w.settle()
	w.sameEpoch(room, members...)
}
