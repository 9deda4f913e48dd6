package client

import (
	"encoding/json"
	"testing"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// A /sync that was under way when a ban of ours was confirmed brings the user's
// join from before it. It must not lift the barrier.
func TestLateJoinDoesNotUndoOwnBan(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.settle()
	w.must(func() error { return alice.Ban(w.ctx, room, bob.UserID(), "") })
	user := string(bob.UserID())
	alice.mu.Lock()
	defer alice.mu.Unlock()
	r := alice.rooms[room]
	r.expelled[bob.UserID()] = expulsion{as: rooms.MembershipBan, until: alice.Client.mono() + 1e9}
	late := &Event{RoomID: room, Type: rooms.TypeMember, StateKey: &user, Sender: bob.UserID(), Content: json.RawMessage(`{"membership":"join"}`)}
	if !alice.Client.outdated(r, late) {
		t.Error("a join from before the ban counts")
	}
	shown := &Event{RoomID: room, Type: rooms.TypeMember, StateKey: &user, Sender: alice.UserID(), Content: json.RawMessage(`{"membership":"ban"}`)}
	if alice.Client.outdated(r, shown) {
		t.Error("the ban itself is taken for old")
	}
	if alice.Client.outdated(r, late) {
		t.Error("what comes after the ban was shown is taken for old")
	}
}
