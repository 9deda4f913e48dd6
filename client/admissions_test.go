package client

import (
	"fmt"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// small logs a device in that keeps few admissions: 32 in all, 2 of who is in the group.
func (w *world) small(user string) *testDevice {
	w.t.Helper()
	d := w.device(user, user+"1")
	if err := d.st.Close(); err != nil {
		w.t.Fatal(err)
	}
	d.bounds.Admissions = 32
	d.open()
	return d
}

func (d *testDevice) admitted(room id.RoomID) map[id.UserID]rooms.Admission {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rooms[room].rec.Admissions
}

// TestAdmissionsGoWhenTheyWereUsed: what is kept of who was admitted does not grow with everybody who ever came in.
func TestAdmissionsGoWhenTheyWereUsed(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.small("alice"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{History: "shared"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	for i := range 12 {
		_, user := w.register(fmt.Sprint("user", i), "D1")
		w.must(func() error { return alice.Invite(w.ctx, room, user) })
	}
	w.settle()
	for range 5 { // the epochs that are held go beyond all of them
		w.must(func() error { return alice.ChangePolicySelf(room) })
		w.settle()
	}
	// Those of users who have not come in stay, over a restart as well.
	var outside []id.UserID
	for i := range 6 {
		ident, user := w.register(fmt.Sprint("outside", i), "D1")
		ident.own().packages = nil
		w.must(func() error { return alice.Invite(w.ctx, room, user) })
		outside = append(outside, user)
	}
	w.settle()
	w.must(func() error { return alice.ChangePolicySelf(room) })
	alice.restart()
	w.settle()
	for _, user := range outside {
		if _, kept := alice.admitted(room)[user]; !kept {
			t.Errorf("the admission of %s, who has not come in, is gone", user)
		}
	}
	if n := len(alice.admitted(room)) - len(outside); n > 2 {
		t.Errorf("%d admissions of users who are in the group for good are kept", n)
	}
}

// TestReadmissionOutlivesTheCommitThatUsedTheFirst: who is put out and invited again before their first Add is final
// comes in again.
func TestReadmissionOutlivesTheCommitThatUsedTheFirst(t *testing.T) {
	w := newWorld(t)
	alice, bob, carol := w.small("alice"), w.small("bob"), w.small("carol")
	room := w.createRoom(alice, CreateOptions{History: "shared"})
	for _, d := range []*testDevice{bob, carol} {
		w.must(func() error { return alice.Invite(w.ctx, room, d.UserID()) })
		w.join(d, room)
	}
	w.must(func() error { return alice.Kick(w.ctx, room, bob.UserID(), "") })
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	w.join(bob, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
}

// TestInviteWhereAdmissionsAreFull: neither what strangers post, again and again, nor how many were admitted and have not
// come in keeps anybody from inviting.
func TestInviteWhereAdmissionsAreFull(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.small("alice"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{History: "shared"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	flood := func() {
		t.Helper()
		alice.mu.Lock()
		defer alice.mu.Unlock()
		r := alice.rooms[room]
		if err := alice.admitUser(r, r.head(), "@one:s.test"); err != nil {
			t.Fatal(err)
		}
		a := r.rec.Admissions["@one:s.test"]
		for i := range 100 {
			a.User = id.UserID(fmt.Sprintf("@nobody%d:s.test", i))
			alice.takeAdmission(r, &a, bob.UserID())
		}
		if n := len(r.rec.Admissions); n > 4 {
			t.Fatalf("%d admissions are kept, nearly all of which nobody can use", n)
		}
	}
	flood()
	flood()
	alice.mu.Lock()
	r := alice.rooms[room]
	for i := range 40 {
		if err := alice.admitUser(r, r.head(), id.UserID(fmt.Sprintf("@later%d:s.test", i))); err != nil {
			t.Fatal(err)
		}
	}
	n := len(r.rec.Admissions)
	alice.mu.Unlock()
	if n != 32 {
		t.Fatalf("%d admissions, want no more than 32", n)
	}
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	w.settle()
	w.sameEpoch(room, alice, bob, dave)
}
