package client

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestAllRefreshAtOnce: an epoch takes one commit with a path, so the fresh keys of n members take n accepted commits,
// and a few more at the most; who was slower tries again by itself, and nobody is left behind.
func TestAllRefreshAtOnce(t *testing.T) {
	const n = 12
	x := newRefusing(t)
	members := []*testDevice{x.alice, x.bob, x.carol}
	for i := len(members); i < n; i++ {
		d := x.device(fmt.Sprintf("m%d", i), fmt.Sprintf("M%d", i))
		x.must(func() error { return x.alice.Invite(x.ctx, x.room, d.UserID()) })
		x.join(d, x.room)
		members = append(members, d)
	}
	x.settle()
	x.sameEpoch(x.room, members...)
	before, commits := x.alice.epoch(x.room), x.count(rooms.TypeCommit)
	done := make([]bool, n)
	for i, d := range members {
		if wanted, err := d.wantRefresh(x.ctx, x.room); err != nil || !wanted {
			t.Fatalf("member %d: %v, %v", i, wanted, err)
		}
	}
	left := n
	for turn := 0; left > 0 && turn < 20*n; turn++ {
		for i, d := range members {
			d.turn()
			if done[i] {
				continue
			}
			r, _, err := d.lockMember(x.ctx, x.room)
			if err == nil && !r.rec.Refresh {
				done[i] = true
				left--
			}
			d.mu.Unlock()
			if err != nil && !errors.Is(err, ErrNoRoom) {
				t.Fatalf("member %d: %v", i, err)
			}
		}
		x.order()
		x.now.add(2 * time.Second)
	}
	took := x.alice.epoch(x.room) - before
	t.Logf("the fresh keys of %d members at once were in after %d accepted commits, of %d that were sent", n, took, x.count(rooms.TypeCommit)-commits)
	if left > 0 || took > n+4 {
		t.Errorf("%d are not in, after %d accepted commits, want all after at most %d", left, took, n+4)
	}
}
