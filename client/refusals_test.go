package client

import (
	"context"
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

func TestRefusalsAreBounded(t *testing.T) {
	w := newWorld(t)
	d := w.device("alice", "ALICE1")
	const room, other = id.RoomID("!room:" + testServer), id.RoomID("!other:" + testServer)
	next := 0
	note := func(n int) {
		t.Helper()
		if err := d.st.Do(w.ctx, func(ctx context.Context) error {
			for range n {
				if err := d.noteRefused(ctx, room, id.EventID(fmt.Sprint("$", next)), "rule"); err != nil {
					return err
				}
				next++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	wantKept := func(first int) {
		t.Helper()
		for _, n := range []int{0, max(first-1, 0), min(first, next-1), next - 1} {
			if _, kept, err := d.Refused(w.ctx, room, id.EventID(fmt.Sprint("$", n))); err != nil || kept != (n >= first) {
				t.Errorf("note %d of %d: kept %v (%v), want those from %d on", n, next, kept, err, first)
				return
			}
		}
	}
	if err := d.noteRefused(w.ctx, other, "$other", "rule"); err != nil {
		t.Fatal(err)
	}
	note(maxRefused)
	wantKept(0)
	note(3)
	wantKept(3)
	d.skew = refusedAge - time.Hour
	note(1)
	wantKept(4)
	d.skew = refusedAge + time.Hour
	note(maxRefused / 2)
	wantKept(maxRefused + 3) // two old ones for each new
	if _, kept, err := d.Refused(w.ctx, other, "$other"); err != nil || !kept {
		t.Errorf("another room's note: kept %v, %v", kept, err)
	}
	// Notes without numbers are from a version that never dropped any.
	if err := d.st.PutKV(w.ctx, refusedKey(room, "$before"), []byte("rule")); err != nil {
		t.Fatal(err)
	}
	if err := d.st.DeleteKV(w.ctx, refusedBounded); err != nil {
		t.Fatal(err)
	}
	d.restart()
	if _, kept, err := d.Refused(w.ctx, room, "$before"); err != nil || kept {
		t.Errorf("a note without number: kept %v, %v", kept, err)
	}
}
