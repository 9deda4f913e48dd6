package client

import (
	"slices"
	"testing"

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
