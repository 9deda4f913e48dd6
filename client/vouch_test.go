package client

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A member that was away for more commits than a window keeps of epochs vouches all
// the same for the one that waits for its word alone.
func TestVouchingForAnEpochNotKept(t *testing.T) {
	w := newWorld(t)
	alice, bob, carol := w.device("alice", "ALICE1"), w.device("bob", "BOB1"), w.device("carol", "CAROL1")
	room := w.createRoom(alice, CreateOptions{History: "shared", Policy: func(p *rooms.Policy) { p.Window = 2 }})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	w.all = []*testDevice{alice, carol}
	w.must(func() error { return alice.Invite(w.ctx, room, carol.UserID()) })
	w.join(carol, room)
	w.settle()
	final := func() (federation.Ref, federation.Ref) {
		alice.mu.Lock()
		defer alice.mu.Unlock()
		m := alice.rooms[room].machine
		return m.NewestFinal(), m.Head()
	}
	for i := range 4 {
		w.must(func() error {
			return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Admit = []rooms.AdmitPolicy{rooms.AdmitAdmins, rooms.AdmitMembers}[i%2] })
		})
		w.settle()
	}
	if f, head := final(); f == head {
		t.Fatal("everything is final without bob: the test proves nothing")
	}
	w.all = append(slices.Clone(w.all), bob)
	w.settle()
	if f, head := final(); f != head {
		t.Errorf("newest final %s, head %s: nobody vouched", f.Short(), head.Short())
	}
}

// TestAdminIsToldThatNobodyCanVouch: a commit waits for the word of a member who is
// away, which is no trouble. Once he has left, nothing becomes final any more; an
// admin is told what to do about it, and it helps.
func TestAdminIsToldThatNobodyCanVouch(t *testing.T) {
	w := newWorld(t)
	alice, bob, carol := w.device("alice", "ALICE1"), w.device("bob", "BOB1"), w.device("carol", "CAROL1")
	room := w.createRoom(alice, CreateOptions{History: "shared"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	bob.dead = true
	w.must(func() error { return alice.Refresh(w.ctx, room) })
	w.must(func() error { return alice.Invite(w.ctx, room, carol.UserID()) })
	w.join(carol, room)
	told := func(d *testDevice) (text string) {
		for _, u := range d.got {
			if warning, ok := u.(*Warning); ok && warning.Rule == ruleUnvouched {
				text += warning.Text
			}
		}
		return text
	}
	final := func() bool {
		alice.mu.Lock()
		defer alice.mu.Unlock()
		m := alice.rooms[room].machine
		return m.NewestFinal() == m.Head()
	}
	w.settle()
	w.now.add(2 * unvouchedWait)
	w.settle()
	if text := told(alice); text != "" || final() {
		t.Fatalf("while bob may still vouch: final %v, alice is told: %s", final(), text)
	}
	w.must(func() error { return alice.Kick(w.ctx, room, bob.UserID(), "") })
	w.settle()
	if text := told(alice); text != "" {
		t.Errorf("alice is told while bob's word may be under way: %s", text)
	}
	w.now.add(unvouchedWait)
	w.settle()
	text := told(alice)
	if want := "mls-proxy era '" + string(room) + "' " + testServer; strings.Count(text, want) != 1 || final() {
		t.Errorf("final %v, alice is told %q, want %q once", final(), text, want)
	}
	if text := told(carol); text != "" {
		t.Errorf("carol, who is no admin, is told: %s", text)
	}
	w.must(func() error { return alice.OpenEra(w.ctx, room, testServer) })
	w.settle()
	if !final() {
		t.Error("the era does not help")
	}
	w.now.add(2 * unvouchedWait)
	w.settle()
	if again := told(alice); again != text {
		t.Errorf("after the era alice is told again: %s", again)
	}
}

// TestAWordThatBecomesDueMeanwhileIsNotForgotten: on a busy machine the turn of a member who waits to vouch may come after
// the room was looked at for that, and before the timer is set.
func TestAWordThatBecomesDueMeanwhileIsNotForgotten(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{History: "shared"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	if err := w.backgroundOf(func() error { return alice.Refresh(w.ctx, room) }, alice); err != nil {
		t.Fatal(err)
	}
	for turns := 0; ; turns++ {
		if turns == 100 {
			t.Fatal("bob never waits to vouch")
		}
		w.order()
		bob.turn()
		bob.mu.Lock()
		r := bob.rooms[room]
		due := r.vouchDue
		if due > 0 {
			w.now.add(due - bob.mono() + rooms.VoucherGrace)
			if next := bob.nextTimer(r, bob.mono()); next != bob.mono()+overdueIn {
				t.Errorf("its turn came %v ago, and the room is looked at again at %v, it is %v", bob.mono()-due, next, bob.mono())
			}
		}
		bob.mu.Unlock()
		if due > 0 {
			break
		}
	}
	w.settle()
	alice.mu.Lock()
	defer alice.mu.Unlock()
	if m := alice.rooms[room].machine; m.NewestFinal() != m.Head() {
		t.Error("nobody vouched")
	}
}

// TestATimerThatRunsOutWhileARoomIsLookedAt: what became due after the look began is not forgotten until
// something else happens.
func TestATimerThatRunsOutWhileARoomIsLookedAt(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.three("shared")
	w.settle()
	alice.mu.Lock()
	defer alice.mu.Unlock()
	r, since := alice.rooms[room], alice.mono()
	r.commitAt = since + time.Second
	w.now.add(2 * time.Second)
	if next, want := alice.nextTimer(r, since), alice.mono()+overdueIn; next != want {
		t.Errorf("the room is looked at again at %v, want %v", next, want)
	}
	if next := alice.nextTimer(r, alice.mono()); next == alice.mono()+overdueIn {
		t.Error("it is looked at again for what it was looked at for")
	}
}
