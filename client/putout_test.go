package client

import (
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestWhoIsPutOutHoldsNothingForLong: a device that was put out by a commit that is not final
// yet, whose user is kicked and invited again while it is off, does not hold its epochs until
// the user decides.
func TestWhoIsPutOutHoldsNothingForLong(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.settle()
	w.module.noVouching = true
	gone := func(is bool) {
		w.s.mu.Lock()
		w.s.users[bob.UserID()].devices[bob.DeviceID()].gone = is
		w.s.mu.Unlock()
		for _, d := range []*testDevice{alice, carol} {
			d.ident.changed(bob.UserID())
		}
	}
	gone(true)
	for range 20 {
		for range 6 {
			w.order()
			alice.turn()
			carol.turn()
			bob.turn()
		}
		if !alice.has(room, bob) {
			break
		}
		w.now.add(rooms.CredentialGrace)
	}
	for range 5 {
		bob.turn()
	}
	holds := func() (n int) {
		bob.mu.Lock()
		defer bob.mu.Unlock()
		return len(bob.rooms[room].epochs)
	}
	if holds() == 0 {
		t.Fatal("a commit that is not final took its epochs: the test shows nothing")
	}
	gone(false)
	bob.dead = true // it is off
	w.module.noVouching = false
	w.must(func() error { return alice.Kick(w.ctx, room, bob.UserID(), "") })
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	for range 60 {
		w.order()
		alice.turn()
		carol.turn()
		w.now.add(3 * time.Second)
	}
	bob.dead = false
	for range 10 {
		bob.turn()
	}
	for range 200 {
		w.order()
		bob.turn()
		w.now.add(time.Minute)
	}
	if n := holds(); n > 0 {
		t.Errorf("put out, and invited again, it still holds %d epochs after 200 minutes", n)
	}
	w.join(bob, room)
	w.settle()
	w.must(func() error { _, err := bob.SendText(w.ctx, room, "back"); return err })
	w.settle()
	alice.wantTexts("back")
	w.checkNonces()
}
