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

// TestWhoIsPutOutAndComesBackOnTheSameHead: a device that was put out by a commit which is not final, and that joins again above
// it, goes on with the coordination that it has. What was said in between is not its to read, and is not waited for; where it
// joined, and that it was put out, is as if that had not been.
func TestWhoIsPutOutAndComesBackOnTheSameHead(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	bob2 := w.device("bob", "BOB2")
	w.settle()
	w.sameEpoch(room, alice, bob, bob2, carol)
	bob.mu.Lock()
	joined := bob.rooms[room].rec.JoinRef
	bob.mu.Unlock()
	w.module.noVouching = true
	gone := func(is bool) {
		w.s.mu.Lock()
		w.s.users[bob.UserID()].devices[bob.DeviceID()].gone = is
		w.s.mu.Unlock()
		for _, d := range w.all {
			d.ident.changed(bob.UserID())
		}
	}
	gone(true)
	turns := func(until func() bool, step time.Duration) {
		t.Helper()
		for range 100 {
			for range 6 {
				w.order()
				for _, d := range w.all {
					d.turn()
				}
			}
			if until() {
				return
			}
			w.now.add(step)
		}
		t.Fatal("it does not come")
	}
	turns(func() bool { return !alice.has(room, bob) }, rooms.CredentialGrace/2)
	out := func() bool {
		bob.mu.Lock()
		defer bob.mu.Unlock()
		r := bob.rooms[room]
		return r.rec.Phase == phaseRemoved && r.machine != nil && r.rec.PutOut != 0
	}
	if !out() {
		t.Fatal("bob's device is not put out by what is not final: the test shows nothing")
	}
	alice.sendAlone(room, "in between")
	turns(func() bool { return len(carol.texts()) == 1 }, time.Second)
	if !out() {
		t.Fatal("bob's device came back too early")
	}
	bob.ident.own().packages = nil // nobody else lets it in
	gone(false)
	turns(func() bool { return bob.rooms[room].rec.Phase == phaseMember && bob.has(room, bob) }, 2*time.Second)
	w.module.noVouching = false
	w.settle()
	w.sameEpoch(room, alice, bob, bob2, carol)
	w.send(alice, room, "after")
	w.send(bob, room, "back")
	w.settle()
	bob.wantTexts("after", "back")
	carol.wantTexts("in between", "after", "back")
	bob.mu.Lock()
	r := bob.rooms[room]
	if r.rec.JoinRef != joined || r.rec.PutOut != 0 || r.rec.Unconfirmed || len(r.rec.Rejected) != 0 {
		t.Errorf("bob's device joined at %x, before at %x; put out at %d; unconfirmed %t; it objected to %v", r.rec.JoinRef, joined, r.rec.PutOut, r.rec.Unconfirmed, r.rec.Rejected)
	}
	bob.mu.Unlock()
	if rows := w.inbox(bob, room); len(rows) != 0 {
		t.Errorf("%d events wait", len(rows))
	}
	w.checkNonces()
}
