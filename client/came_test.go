package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestStateThatComesWhileTheStateIsRead: an answer with a room's state may be from before what /sync brought while it was
// under way. What came is not undone by it, and what was missed meanwhile is read again.
func TestStateThatComesWhileTheStateIsRead(t *testing.T) {
	for name, shown := range map[string]bool{"/sync shows it": true, "/sync leaves it out": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			alice.mu.Lock()
			alice.rooms[room].state.lose()
			alice.mu.Unlock()
			read := false
			alice.hs.stateRead = func() {
				read = true
				if !shown {
					w.s.leftOut = func(evt *Event) bool { return evt.StateKey != nil }
					alice.ident.limit = 1
				}
				if err := carol.hs.Leave(w.ctx, room); err != nil {
					t.Fatal(err)
				}
				for _, txn := range []string{"1", "2"} {
					if _, err := bob.hs.Send(w.ctx, room, "m.other", txn, json.RawMessage(`{}`)); err != nil {
						t.Fatal(err)
					}
				}
				if err := alice.SyncOnce(w.ctx, 0); err != nil {
					t.Fatal(err)
				}
				w.s.leftOut, alice.ident.limit = nil, 100
			}
			alice.Step(w.ctx)
			if !read {
				t.Fatal("the state was not read: the test shows nothing")
			}
			alice.turn()
			alice.mu.Lock()
			is := alice.rooms[room].state.membership(carol.UserID())
			alice.mu.Unlock()
			if is != rooms.MembershipLeave {
				t.Errorf("alice sees that carol is %q", is)
			}
		})
	}
}

// TestDeviceThatComesWhileDevicesAreRead: a list of devices may be from before the notice that it changed. It is then read
// again.
func TestDeviceThatComesWhileDevicesAreRead(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	read := false
	alice.ident.read = map[id.UserID]func(){bob.UserID(): func() {
		read = true
		w.register("bob", "BOB2")
		alice.ident.changed(bob.UserID())
	}}
	alice.ident.changed(bob.UserID())
	w.settle(alice)
	if !read {
		t.Fatal("the devices were not read: the test shows nothing")
	}
	members, err := alice.Members(w.ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(members, func(m Member) bool { return m.Device == "BOB2" && m.Leaf > 0 }) {
		t.Errorf("the group has %v", members)
	}
}

// TestDevicesThatChangeWithoutEnd: a server that says with each reading of a user's devices that they changed does not keep
// others from writing.
func TestDevicesThatChangeWithoutEnd(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	read := 0
	var again func()
	again = func() {
		read++
		alice.ident.read = map[id.UserID]func(){bob.UserID(): again}
		alice.ident.changed(bob.UserID())
	}
	again()
	w.settle(alice)
	w.send(alice, room, "all the same")
	w.settle(bob)
	bob.wantTexts("all the same")
	if before := read; before < maxOvertaken {
		t.Fatalf("the devices were read %d times: the test shows nothing", before)
	}
	// Once it is quiet a new device is found.
	alice.ident.read = nil
	w.register("bob", "BOB2")
	w.now.add(identity.StaleAfter)
	w.settle(alice)
	members, err := alice.Members(w.ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(members, func(m Member) bool { return m.Device == "BOB2" && m.Leaf > 0 }) {
		t.Errorf("the group has %v", members)
	}
}

// TestFilesLeavePlaceForWhatTheRoomNeeds: events that name files and other events without end do not keep the room's state
// and its members' devices from being read.
func TestFilesLeavePlaceForWhatTheRoomNeeds(t *testing.T) {
	r := &room{needs: map[string]*need{}}
	for i := range 2 * maxNeeds {
		r.want(fmt.Sprint("media:", i), &need{file: &rooms.File{}})
		r.want(fmt.Sprint("event:", i), &need{event: "$e"})
	}
	r.want("state", &need{state: true})
	r.want("devices", &need{users: []id.UserID{"@a:x"}})
	if len(r.needs) != maxNeeds+2 || r.needs["state"] == nil || r.needs["devices"] == nil {
		t.Errorf("%d needs, state %v, devices %v", len(r.needs), r.needs["state"], r.needs["devices"])
	}
}

// TestWelcomeOfSomebodyWhoseJoinDidNotCome: the homeserver has not shown that the sender of a Welcome is in the room. The
// state is read before the Welcome is refused.
func TestWelcomeOfSomebodyWhoseJoinDidNotCome(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{History: "joined"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	if _, err := bob.Join(w.ctx, string(room), nil); err != nil {
		t.Fatal(err)
	}
	bob.turn()
	bob.mu.Lock()
	key := string(alice.UserID())
	state := bob.rooms[room].state
	state.set(&Event{ID: "$before", Type: rooms.TypeMember, Sender: alice.UserID(), StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)})
	known := state.Known
	bob.mu.Unlock()
	if !known || bob.epoch(room) > 0 {
		t.Fatal("the Welcome does not come after the state: the test shows nothing")
	}
	w.settle()
	w.sameEpoch(room, alice, bob)
	for _, evt := range w.s.log {
		if evt.Type == rooms.TypeCommit && evt.Sender == bob.UserID() {
			t.Error("bob did not take the Welcome and joined by himself")
		}
	}
}

// TestModuleThatSpokeIsNotWaitedFor: the first /sync of a room shows once more how modules came in, after the state was
// read. A module that has spoken since is not waited for.
func TestModuleThatSpokeIsNotWaitedFor(t *testing.T) {
	w := newWorld(t)
	w.addModule("two.example")
	alice, carol := w.device("alice", "ALICE1"), w.device("carol:three.example", "CAROL1")
	bob := w.device("bob:two.example", "BOB1")
	room := w.createRoom(alice, CreateOptions{})
	w.must(func() error { return alice.Invite(w.ctx, room, carol.UserID()) })
	w.join(carol, room)
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	w.now.add(time.Minute)
	carol.mu.Lock()
	defer carol.mu.Unlock()
	bot := botOf("two.example")
	last := carol.rooms[room].state.Entries[rooms.TypeHead][string(bot)].Event
	again := &syncRoom{}
	for _, evt := range w.s.log {
		if evt.StateKey != nil && *evt.StateKey == string(bot) && (evt.Type == rooms.TypeMember || evt.ID == last) {
			again.Timeline = append(again.Timeline, evt)
		}
	}
	if len(again.Timeline) != 3 {
		t.Fatalf("%d events, want the module's invite, join and head", len(again.Timeline))
	}
	carol.fileRoom(room, again)
	if wait := carol.rooms[room].quietUntil() - carol.mono(); wait > 0 {
		t.Errorf("carol keeps quiet for %v", wait)
	}
}

// TestLeafOfSomebodyWhoseJoinDidNotCome: where a homeserver leaves the join of a new
// member out of /sync, their leaf is no reason to put them out.
func TestLeafOfSomebodyWhoseJoinDidNotCome(t *testing.T) {
	w := newWorld(t)
	alice, bob, carol := w.device("alice", "ALICE1"), w.device("bob", "BOB1"), w.device("carol", "CAROL1")
	room := w.createRoom(alice, CreateOptions{History: "joined"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.must(func() error { return alice.Invite(w.ctx, room, carol.UserID()) })
	w.settle()
	w.s.leftOut = func(evt *Event) bool {
		return evt.Type == rooms.TypeMember && evt.Sender == carol.UserID()
	}
	w.join(carol, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	if info, err := alice.Room(w.ctx, room); err != nil || info.Devices != 3 {
		t.Errorf("%d devices in the group (%v), want 3", info.Devices, err)
	}
	for _, u := range carol.got {
		if _, out := u.(*Removed); out {
			t.Error("carol was put out")
		}
	}
	w.send(carol, room, "here I am")
	w.settle()
	bob.wantTexts("here I am")
}

// TestAdmissionComesAfterTheInvite: what a room says before the invite is not shown to who was invited. Their admission
// comes after it, however fast the outbox is, so that they come in by themselves when nobody else is there.
func TestAdmissionComesAfterTheInvite(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{})
	bob.ident.own().packages = nil // nobody can add bob
	w.settle()
	invited := false
	alice.hs.before = func(kind string) {
		if kind == "membership/invite" {
			invited = true
			alice.Flush(w.ctx)
		}
	}
	if err := alice.Invite(w.ctx, room, bob.UserID()); err != nil {
		t.Fatal(err)
	}
	if !invited {
		t.Fatal("nothing was sent during the invite: the test shows nothing")
	}
	w.settle(alice)
	var order []string
	for _, evt := range w.s.log {
		if evt.Type == rooms.TypeAdmit || evt.Type == rooms.TypeMember && *evt.StateKey == string(bob.UserID()) {
			order = append(order, evt.Type)
		}
	}
	if want := []string{rooms.TypeMember, rooms.TypeAdmit}; !slices.Equal(order, want) {
		t.Errorf("the room has %v, want %v", order, want)
	}
	if _, err := bob.Join(w.ctx, string(room), nil); err != nil {
		t.Fatal(err)
	}
	w.settle(bob)
	if bob.epoch(room) == 0 {
		t.Error("bob did not come in by himself")
	}
}

// TestAdmissionGoesOutWhereTheInviteFails: the homeserver may have taken an invite whose answer says that it failed.
func TestAdmissionGoesOutWhereTheInviteFails(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{})
	w.settle()
	alice.hs.fail = errRefused
	if err := alice.Invite(w.ctx, room, bob.UserID()); !errors.Is(err, errRefused) {
		t.Fatalf("the invite ended with %v", err)
	}
	w.settle(alice)
	if !slices.ContainsFunc(w.s.log, func(evt *Event) bool { return evt.Type == rooms.TypeAdmit }) {
		t.Error("the admission stays in the outbox")
	}
}

// TestOwnJoinThatDidNotCome: a /sync that shows a room as joined, and in its timeline the invite without the join, does
// not make the device take itself for gone.
func TestOwnJoinThatDidNotCome(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{History: "joined"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	w.s.leftOut = func(evt *Event) bool { return evt.Type == rooms.TypeMember && evt.Sender == bob.UserID() }
	if _, err := bob.Join(w.ctx, string(room), nil); err != nil {
		t.Fatal(err)
	}
	is := func() rooms.Membership {
		bob.mu.Lock()
		defer bob.mu.Unlock()
		return bob.rooms[room].state.membership(bob.UserID())
	}
	bob.Step(w.ctx)
	if is() != rooms.MembershipJoin {
		t.Fatal("the state is not read before /sync: the test shows nothing")
	}
	bob.turn()
	if is() != rooms.MembershipJoin {
		t.Fatalf("bob takes himself for %q", is())
	}
	w.settle()
	w.send(bob, room, "here I am")
	w.settle()
	alice.wantTexts("here I am")
}
