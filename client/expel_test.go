package client

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

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

// A /sync that was under way when the homeserver confirmed our join, or our leave, shows our membership from before it.
func TestLateSyncDoesNotUndoOwnMove(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.settle()
	user := string(bob.UserID())
	member := func(membership string, sender id.UserID) *Event {
		return &Event{RoomID: room, Type: rooms.TypeMember, StateKey: &user, Sender: sender, Content: json.RawMessage(`{"membership":"` + membership + `"}`)}
	}
	invite := &syncBatch{Invite: map[id.RoomID][]*Event{room: {member("invite", alice.UserID())}}}
	joined := &syncBatch{Join: map[id.RoomID]*syncRoom{room: {State: []*Event{member("join", bob.UserID())}}}}
	left := &syncBatch{Leave: map[id.RoomID]*syncRoom{room: {State: []*Event{member("leave", alice.UserID())}}}}
	for _, step := range []struct {
		name  string
		moved *move
		batch *syncBatch
		began time.Duration
		want  string
	}{
		{"an invite from before the join", &move{"join", 100}, invite, 99, "join"},
		{"an end from before the join", &move{"join", 100}, left, 99, "join"},
		{"the join itself", &move{"join", 100}, joined, 99, "join"},
		{"an end after the join", nil, left, 99, "leave"},
		{"an invite", nil, invite, 100, "invite"},
		{"an end asked for after the join", &move{"join", 100}, left, 100, "leave"},
		{"a membership from before the leave", &move{"leave", 200}, joined, 199, "leave"},
		{"an invite from before the leave", &move{"leave", 200}, invite, 199, "leave"},
		{"an invite that comes late", &move{"join", 300}, invite, 300 + inviteLag - 1, "join"},
		{"an invite asked for after the join", &move{"join", 300}, invite, 300 + inviteLag, "invite"},
		{"an invite asked for after the leave", &move{"leave", 200}, invite, 200, "invite"},
	} {
		bob.mu.Lock()
		r := bob.rooms[room]
		if step.moved != nil {
			r.moved, r.rec.Membership = step.moved, step.moved.to
		}
		bob.mu.Unlock()
		if err := bob.file(w.ctx, step.batch, step.began, false); err != nil {
			t.Fatal(err)
		}
		bob.mu.Lock()
		if got := bob.rooms[room].rec.Membership; got != step.want {
			t.Errorf("after %s the membership is %q, want %q", step.name, got, step.want)
		}
		bob.mu.Unlock()
	}
}

// TestInviteThatIsAnsweredAtOnce: /sync may show the join before the answer to the
// invite is here. The user, or the module, is not taken for invited again.
func TestInviteThatIsAnsweredAtOnce(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	is := func(user id.UserID) rooms.Membership {
		alice.mu.Lock()
		defer alice.mu.Unlock()
		return alice.rooms[room].state.membership(user)
	}
	for _, user := range []id.UserID{bob.UserID(), w.module.bot} {
		if m := is(user); m != rooms.MembershipJoin {
			t.Fatalf("%s is %q, want in the room", user, m)
		}
		alice.noteMembership(room, user, rooms.MembershipInvite)
		if m := is(user); m != rooms.MembershipJoin {
			t.Errorf("%s is %q after the answer to an invite that was taken up", user, m)
		}
	}
	alice.noteMembership(room, "@dave:"+testServer, rooms.MembershipInvite)
	if m := is("@dave:" + testServer); m != rooms.MembershipInvite {
		t.Errorf("dave is %q, want invited", m)
	}
}

// TestSettleWaitsForTheState: who is not seen to have left is removed only after the
// room's state was read once more. Until then nothing has settled.
func TestSettleWaitsForTheState(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.settle()
	before := alice.epoch(room)
	alice.hs.noState = true
	alice.mu.Lock()
	r := alice.rooms[room]
	delete(r.state.Entries[rooms.TypeMember], string(bob.UserID()))
	r.state.rebuild()
	r.rec.Caused, r.planned = map[id.UserID]bool{bob.UserID(): true}, false
	alice.mu.Unlock()
	alice.turn()
	over, cancel := context.WithCancel(w.ctx)
	cancel()
	if err := alice.Settle(over, room); err == nil {
		t.Error("the room has settled while it is not known whether bob is in it")
	}
	alice.hs.noState = false
	w.must(func() error { return alice.Settle(w.ctx, room) })
	if now := alice.epoch(room); now != before {
		t.Errorf("epoch %d, want %d: bob is in the room", now, before)
	}
}
