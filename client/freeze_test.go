package client

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestFrozenSideTalksOnInItsEpoch(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(3, func(p *rooms.Policy) { p.OnPartition = federation.OnPartitionFreeze })
	alice, bob, carol := u[0], u[1], u[2]
	erin := w.deviceOn(w.modules()[2].s, "erin", "ERIN1")
	w.cut("s3.example")
	before := carol.epoch(room)
	w.must(func() error { return carol.Invite(w.ctx, room, erin.UserID()) })
	w.until(200, func() bool { return false })
	if carol.epoch(room) != before || erinIn(carol, room, erin) {
		t.Errorf("the frozen side uses epoch %d, want %d", carol.epoch(room), before)
	}
	w.send(carol, room, "frozen, not mute")
	w.must(func() error { return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 8 }) })
	w.send(alice, room, "the majority goes on")
	w.mend()
	w.until(200, func() bool { return erinIn(alice, room, erin) })
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	bob.wantReceived("frozen, not mute", "the majority goes on")
}

// TestBarrierWinsOverFreezeAndWindow: who was banned on a side that cannot remove
// them gets nothing more, and the people on that side are told why nothing goes.
func TestBarrierWinsOnASideWithoutMajority(t *testing.T) {
	for _, freeze := range []bool{false, true} {
		t.Run(map[bool]string{false: "fork", true: "freeze"}[freeze], func(t *testing.T) {
			w := newWorld(t)
			room, u := w.apart(3, func(p *rooms.Policy) {
				if freeze {
					p.OnPartition = federation.OnPartitionFreeze
				}
				p.Admins = append(p.Admins, "@carol:s3.example")
			})
			alice, carol := u[0], u[2]
			dave := w.deviceOn(w.modules()[2].s, "dave", "DAVE1")
			w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
			w.join(dave, room)
			w.settle()
			w.cut("s3.example")
			w.modules()[2].down = !freeze // the side has no sequencer at all
			if err := carol.Ban(w.ctx, room, dave.UserID(), ""); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(w.ctx)
			done := make(chan error, 1)
			go func() { _, err := carol.SendText(ctx, room, "not for dave"); done <- err }()
			w.until(100, func() bool { return len(carol.roomRowsOf(room)) > 1 })
			w.until(100, func() bool { return false })
			info, err := carol.Room(w.ctx, room)
			if err != nil {
				t.Fatal(err)
			}
			if said := fmt.Sprint(info.Blocked); !strings.Contains(said, "majority") || info.Blocked[len(info.Blocked)-1].Kind != BlockMajority {
				t.Errorf("carol is told %q, want that her side has no majority", said)
			}
			cancel()
			if err := <-done; err == nil {
				t.Error("the message went out")
			} else if !strings.Contains(err.Error(), "majority") {
				t.Errorf("Send says %v", err)
			}
			dave.wantTexts()
			w.modules()[2].down = false
			w.mend()
			w.settle()
			w.sameEpoch(room, u...)
			dave.wantTexts()
			alice.wantReceived("not for dave") // it waited in the outbox
		})
	}
}
