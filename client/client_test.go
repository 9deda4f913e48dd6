package client

import (
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"
)

func (w *world) createRoom(d *testDevice, o CreateOptions) id.RoomID {
	w.t.Helper()
	var room id.RoomID
	w.must(func() (err error) {
		room, err = d.CreateRoom(w.ctx, o)
		return err
	})
	return room
}

func (w *world) send(d *testDevice, room id.RoomID, text string) id.EventID {
	w.t.Helper()
	var evt id.EventID
	w.must(func() (err error) {
		evt, err = d.SendText(w.ctx, room, text)
		return err
	})
	return evt
}

func (w *world) join(d *testDevice, room id.RoomID) {
	w.t.Helper()
	w.must(func() error {
		_, err := d.Join(w.ctx, string(room), nil)
		return err
	})
}

func TestTwoUsersTalk(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{Name: "talk"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	w.join(bob, room)
	w.settle()
	w.send(alice, room, "hello bob")
	w.send(bob, room, "hello alice")
	w.settle()
	want := []string{"hello bob", "hello alice"}
	for _, d := range []*testDevice{alice, bob} {
		if got := d.texts(); !slices.Equal(got, want) {
			t.Errorf("%s got %q, want %q", d.ident.device, got, want)
		}
	}
	if a, b := alice.epoch(room), bob.epoch(room); a != b || a == 0 {
		t.Errorf("epochs %d and %d", a, b)
	}
}
