package client

import (
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestDeviceThatTheHomeserverKeepsToItself: a homeserver does not always say that
// a user has a new device. Whoever knows an old list asks once more before it
// takes the device for a stranger: else it removes it, and others add it, without
// end.
func TestDeviceThatTheHomeserverKeepsToItself(t *testing.T) {
	for _, test := range []string{"the user's other device", "somebody else"} {
		t.Run(test, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			who := map[string]*testDevice{"the user's other device": alice, "somebody else": bob}[test]
			known := w.s.devicesOf(alice.UserID())
			w.all = slices.DeleteFunc(w.all, func(d *testDevice) bool { return d == who })
			hook := who.ident.changed
			who.ident.changed = nil
			who.ident.old = map[id.UserID]*identity.UserDevices{alice.UserID(): known}
			second := w.device("alice", "ALICE2")
			w.settle()
			w.pass(time.Minute)
			if !carol.has(room, second) {
				t.Fatal("the new device is not in the group")
			}
			who.ident.changed = hook
			who.ident.asked = nil
			w.all = append(w.all, who)
			w.settle()
			before := carol.epoch(room)
			for range 4 {
				w.pass(rooms.CredentialGrace)
			}
			if !carol.has(room, second) || !who.has(room, second) || carol.epoch(room) != before {
				t.Errorf("the new device is in the group: %t and %t; epoch %d, was %d", carol.has(room, second), who.has(room, second), carol.epoch(room), before)
			}
			if got := len(who.ident.asked); got != 1 {
				t.Errorf("the list was asked for anew %d times, want once", got)
			}
			// One that is gone is removed all the same.
			w.s.users[alice.UserID()].devices["ALICE2"].gone = true
			for _, d := range w.all {
				d.ident.changed(alice.UserID())
			}
			w.settle()
			w.pass(rooms.CredentialGrace)
			w.pass(rooms.CredentialGrace)
			if carol.has(room, second) {
				t.Error("a device that was logged out is in the group")
			}
		})
	}
}

// has tells whether another device is in the group.
func (d *testDevice) has(room id.RoomID, other *testDevice) bool {
	members, err := d.Members(d.w.ctx, room)
	if err != nil {
		d.w.t.Fatal(err)
	}
	return slices.ContainsFunc(members, func(m Member) bool { return m.User == other.UserID() && m.Device == other.DeviceID() })
}

// pass lets time go by.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	w.now.add(d)
	w.settle()
}
