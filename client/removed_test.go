package client

import (
	"context"
	"slices"
	"testing"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestMessagesOfARemovedDevice: a device that was taken out of the group while its user
// stays in the room sends what it was told to once it is in again. Of who is put out of
// the room nothing goes out later.
func TestMessagesOfARemovedDevice(t *testing.T) {
	for name, kicked := range map[string]bool{"its user stays": false, "its user is put out": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			other := w.device("bob", "BOB2")
			w.settle()
			w.sameEpoch(room, alice, bob, carol, other)
			w.send(bob, room, "before")
			w.settle()
			ctx, cancel := context.WithCancel(w.ctx)
			cancel()
			_, _ = bob.SendText(ctx, room, "waits") // and bob's device does nothing for a while
			if n := len(bob.roomRowsOf(room)); n == 0 {
				t.Fatal("nothing waits")
			}
			away := func(gone bool) {
				w.s.mu.Lock()
				w.s.users[bob.UserID()].devices[bob.DeviceID()].gone = gone
				w.s.mu.Unlock()
				for _, d := range w.all {
					d.ident.changed(bob.UserID())
				}
			}
			if kicked {
				_ = alice.Kick(ctx, room, bob.UserID(), "") // it does not wait either
			} else {
				away(true)
			}
			for range 20 {
				w.settle(alice, carol, other)
				w.now.add(rooms.CredentialGrace)
			}
			for _, d := range []*testDevice{alice, carol} {
				if info, err := d.Room(w.ctx, room); err != nil || info.Devices != map[bool]int{false: 3, true: 2}[kicked] {
					t.Fatalf("%d devices in the group (%v)", info.Devices, err)
				}
			}
			bob.turn()
			if !slices.ContainsFunc(bob.got, func(u Update) bool { _, ok := u.(*Removed); return ok }) {
				t.Fatal("bob was not told that he is out of the group")
			}
			if kicked {
				w.must(func() error { return carol.Invite(w.ctx, room, bob.UserID()) })
				w.join(bob, room)
			} else {
				away(false)
			}
			for range 4 {
				w.settle()
			}
			w.sameEpoch(room, alice, bob, carol)
			want := map[bool][]string{false: {"before", "waits"}, true: {"before"}}[kicked]
			for _, d := range []*testDevice{alice, carol} {
				if got := d.received(); !slices.Equal(got, want) {
					t.Errorf("%s got %q, want %q", d.UserID(), got, want)
				}
			}
		})
	}
}
