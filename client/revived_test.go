package client

import (
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestAnEndedMembershipDoesNotComeBackBySync: a Synapse's /sync may show, as the state after a timeline, the join of who
// was kicked before. It lifts no barrier: the full state is read before anything is sent.
func TestAnEndedMembershipDoesNotComeBackBySync(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	c := alice.Client
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[room]
	user := string(bob.UserID())
	entry := r.state.Entries[rooms.TypeMember][user]
	join := &Event{ID: entry.Event, Type: rooms.TypeMember, StateKey: &user, Sender: entry.Sender, Content: entry.Content}
	leave := &Event{ID: "$leave", Type: rooms.TypeMember, StateKey: &user, Sender: alice.UserID(), Content: []byte(`{"membership":"leave"}`)}
	if !r.state.Known || r.state.membership(bob.UserID()) != rooms.MembershipJoin {
		t.Fatal("bob is not in the room")
	}
	c.fileRoom(room, &syncRoom{Timeline: []*Event{leave}})
	c.plan(r)
	if c.blockedBy(room) == nil {
		t.Error("nothing holds messages back after the leave")
	}
	c.fileRoom(room, &syncRoom{State: []*Event{join}})
	c.plan(r)
	if r.state.membership(bob.UserID()) != rooms.MembershipLeave || r.state.Known || c.blockedBy(room) == nil {
		t.Errorf("bob is %q, the state is known: %v, sending waits for %v", r.state.membership(bob.UserID()), r.state.Known, c.blockedBy(room))
	}
	// What the full state says counts, also if it is a join that had ended.
	var all []*Event
	for kind, byKey := range r.state.Entries {
		for key, e := range byKey {
			if kind != rooms.TypeMember || key != user {
				all = append(all, &Event{ID: e.Event, Type: kind, StateKey: &key, Sender: e.Sender, Content: e.Content})
			}
		}
	}
	r.state.begin()
	r.state.replace(append(all, join))
	if r.state.membership(bob.UserID()) != rooms.MembershipJoin || !r.state.Known || r.state.revives(join) {
		t.Error("the full state does not count")
	}
	// A new join is none that had ended, also where the state after the timeline shows it before the invite that it took.
	c.fileRoom(room, &syncRoom{Timeline: []*Event{leave}})
	invite := &Event{ID: "$invite", Type: rooms.TypeMember, StateKey: &user, Sender: alice.UserID(), Content: []byte(`{"membership":"invite"}`)}
	again := *join
	again.ID = id.EventID("$again")
	c.fileRoom(room, &syncRoom{State: []*Event{&again}, Timeline: []*Event{invite, &again}})
	if r.state.membership(bob.UserID()) != rooms.MembershipJoin || !r.state.Known {
		t.Errorf("bob comes back as %q; the state is known: %v", r.state.membership(bob.UserID()), r.state.Known)
	}
	// The invite that a join took is none any more, either.
	c.fileRoom(room, &syncRoom{State: []*Event{invite}})
	if r.state.membership(bob.UserID()) != rooms.MembershipJoin || r.state.Known {
		t.Errorf("an old invite makes bob %q; the state is known: %v", r.state.membership(bob.UserID()), r.state.Known)
	}
}
