package client

import (
	"fmt"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestAdmissionsGoWhenTheyWereUsed: what is kept of who was admitted does not grow with everybody who ever came in.
func TestAdmissionsGoWhenTheyWereUsed(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.settle()
	for _, d := range []*testDevice{alice, bob, carol} {
		d.mu.Lock()
		for user := range d.rooms[room].rec.Admissions {
			if user != d.UserID() {
				t.Errorf("%s keeps the admission of %s, who is in the group for good", d.UserID(), user)
			}
		}
		d.mu.Unlock()
	}
	// An admission whose user has not come in stays, over a restart as well.
	dave := w.device("dave", "DAVE1")
	w.all = []*testDevice{alice, bob, carol}
	dave.ident.own().packages = nil
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle()
	alice.restart()
	w.settle()
	alice.mu.Lock()
	_, kept := alice.rooms[room].rec.Admissions[dave.UserID()]
	alice.mu.Unlock()
	if !kept {
		t.Error("the admission of somebody who has not come in is gone")
	}
}

// TestInviteWhereAdmissionsAreFull: neither what strangers posted nor who came in long ago keeps anybody from inviting.
func TestInviteWhereAdmissionsAreFull(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	fill := func(of id.UserID, good bool) {
		t.Helper()
		alice.mu.Lock()
		defer alice.mu.Unlock()
		r := alice.rooms[room]
		r.rec.Admissions = map[id.UserID]rooms.Admission{}
		if err := alice.admitUser(r, r.head(), of); err != nil {
			t.Fatal(err)
		}
		one := r.rec.Admissions[of]
		for i := range maxAdmissions - 1 {
			a := one
			a.User = id.UserID(fmt.Sprintf("@nobody%d:s.test", i))
			if good {
				if err := alice.admitUser(r, r.head(), a.User); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if !alice.admit(r, &a) {
				t.Fatalf("%d admissions are too many", i)
			}
		}
		if len(r.rec.Admissions) != maxAdmissions {
			t.Fatalf("%d admissions", len(r.rec.Admissions))
		}
	}
	fill(bob.UserID(), false)
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave)

	// Where all of them are good, whoever invites is told.
	fill("@nobody:s.test", true)
	erin := w.device("erin", "ERIN1")
	err := w.background(func() error { return alice.Invite(w.ctx, room, erin.UserID()) })
	if want := fmt.Sprintf("client: %d users were admitted to %s and are not in its group yet: wait until they are, before you invite %s", maxAdmissions, room, erin.UserID()); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
