package client

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// keeps returns whether a device keeps a room in memory, and in its store.
func (d *testDevice) keeps(room id.RoomID) (held, stored bool) {
	d.w.t.Helper()
	d.mu.Lock()
	held = d.rooms[room] != nil
	d.mu.Unlock()
	list, err := d.st.Rooms(d.w.ctx)
	if err != nil {
		d.w.t.Fatal(err)
	}
	for _, row := range list {
		stored = stored || row.ID == room
	}
	for _, part := range []string{statePart, admissionsPart} {
		keys, err := d.st.KVKeys(d.w.ctx, partKey(part, room), 1)
		if err != nil {
			d.w.t.Fatal(err)
		}
		stored = stored || len(keys) > 0
	}
	return held, stored
}

// TestAnInviteThatDoesNotStandIsForgotten: a room of which only an invite spoke goes with it. Who is invited again comes in.
func TestAnInviteThatDoesNotStandIsForgotten(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(w *world, room id.RoomID, alice, bob *testDevice)
	}{
		{"declined", func(w *world, room id.RoomID, _, bob *testDevice) {
			w.must(func() error { return bob.Leave(w.ctx, room) })
		}},
		{"declined elsewhere", func(w *world, room id.RoomID, _, bob *testDevice) {
			w.must(func() error { return bob.hs.Leave(w.ctx, room) })
		}},
		{"withdrawn", func(w *world, room id.RoomID, alice, bob *testDevice) {
			w.must(func() error { return alice.Kick(w.ctx, room, bob.UserID(), "") })
		}},
		{"banned", func(w *world, room id.RoomID, alice, bob *testDevice) {
			w.must(func() error { return alice.Ban(w.ctx, room, bob.UserID(), "") })
			w.settle()
			w.must(func() error { return alice.hs.Kick(w.ctx, room, bob.UserID(), "") }) // the ban ends
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
			room := w.createRoom(alice, CreateOptions{History: "shared"})
			w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
			w.settle()
			if held, stored := bob.keeps(room); !held || !stored {
				t.Fatalf("an invite that stands is held %t, stored %t", held, stored)
			}
			tc.end(w, room, alice, bob)
			w.settle()
			if held, stored := bob.keeps(room); held || stored {
				t.Errorf("an invite that does not stand is held %t, stored %t", held, stored)
			}
			bob.restart()
			if held, stored := bob.keeps(room); held || stored {
				t.Errorf("after a restart it is held %t, stored %t", held, stored)
			}
			w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
			w.settle()
			w.join(bob, room)
			w.settle()
			w.send(alice, room, "welcome")
			w.settle()
			bob.wantTexts("welcome")

			// What was said is kept after the end, and after a second invite that is declined.
			w.must(func() error { return bob.Leave(w.ctx, room) })
			w.settle()
			w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
			w.settle()
			w.must(func() error { return bob.Leave(w.ctx, room) })
			w.settle()
			bob.restart()
			if list, err := bob.Messages(w.ctx, room, "", 10); err != nil || len(list) != 1 {
				t.Errorf("%d messages of a room that was left, %v", len(list), err)
			}
			if held, stored := bob.keeps(room); !held || !stored {
				t.Errorf("a room that the user was in is held %t, stored %t", held, stored)
			}
		})
	}
}

// stranger is an invite, and what its homeserver says of the room.
func stranger(from, user id.UserID, more ...*Event) []*Event {
	key, none := string(user), ""
	return append([]*Event{
		{Type: rooms.TypeEncryption, StateKey: &none, Sender: from, Content: json.RawMessage(`{"algorithm":"` + rooms.Algorithm + `"}`)},
		{Type: rooms.TypeMember, StateKey: &key, Sender: from, Content: json.RawMessage(`{"membership":"invite"}`)},
	}, more...)
}

// TestInvitesAreBounded: of however many invites a client keeps so many, and the share of each server and user is the same.
func TestInvitesAreBounded(t *testing.T) {
	w := newWorld(t)
	room, _, bob, _ := w.three("shared")
	own := len(bob.rooms)
	n := 0
	invite := func(from id.UserID, count int) (last id.RoomID) {
		t.Helper()
		batch := &syncBatch{Invite: map[id.RoomID][]*Event{}}
		for range count {
			n++
			last = id.RoomID(fmt.Sprintf("!invite%d:evil", n))
			batch.Invite[last] = stranger(from, bob.UserID())
		}
		if err := bob.file(w.ctx, batch, 0, false); err != nil {
			t.Fatal(err)
		}
		w.now.add(time.Second)
		return last
	}
	bounded := func() {
		t.Helper()
		stored, err := bob.st.Rooms(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		bob.mu.Lock()
		held := len(bob.rooms)
		bob.mu.Unlock()
		if held > maxInvites+own || len(stored) != held {
			t.Errorf("%d rooms are held and %d stored, want the same, and at most %d", held, len(stored), maxInvites+own)
		}
		for _, part := range []string{statePart, admissionsPart} {
			if keys, err := bob.st.KVKeys(w.ctx, part+"/", 10*maxInvites); err != nil || len(keys) > held {
				t.Errorf("%d rooms have a part %q in the store, %v", len(keys), part, err)
			}
		}
	}
	stands := func(room id.RoomID, want bool) {
		t.Helper()
		if held, stored := bob.keeps(room); held != want || stored != want {
			t.Errorf("%s is held %t and stored %t, want %t", room, held, stored, want)
		}
	}
	friend := invite("@friend:good", 1)
	neighbour := invite("@neighbour:evil", 1)
	for n := range 10 {
		invite(id.UserID(fmt.Sprintf("@mallory%d:evil", n)), maxInvites/2)
		bounded()
	}
	newest := invite("@mallory0:evil", 1)
	bob.restart()
	invite("@mallory1:evil", 2*maxInvites) // at once
	bounded()
	for _, room := range []id.RoomID{friend, neighbour, newest} {
		stands(room, true)
	}
	if got := bob.Refusals()[ruleInvites]; got == 0 {
		t.Error("nothing says that invites were forgotten")
	}

	// What does not stand any more gives way, also where an older version kept it; the room that bob is in, and was in, does not.
	bob.mu.Lock()
	bob.rooms[newest].rec.Membership = "leave"
	bob.mu.Unlock()
	w.must(func() error { return bob.Leave(w.ctx, room) })
	invite("@late:other", 1)
	stands(newest, false)
	stands(room, true)
	w.settle()
	invite("@late:other", 2*maxInvites)
	stands(room, true)
	stands(friend, true)
	bounded()
}

// TestTheStateOfAnInviteIsBounded: however much an invite says of its room, and however often.
func TestTheStateOfAnInviteIsBounded(t *testing.T) {
	w := newWorld(t)
	_, _, bob, _ := w.three("shared")
	const room = "!large:evil"
	for round := range 3 {
		var more []*Event
		for n := range 20 {
			key := fmt.Sprintf("@u%d-%d:evil", round, n)
			more = append(more, &Event{Type: rooms.TypeMember, StateKey: &key, Sender: "@mallory:evil", Content: json.RawMessage(`{"membership":"join","x":"` + strings.Repeat("x", 20<<10) + `"}`)})
		}
		list := stranger("@mallory:evil", bob.UserID())
		batch := &syncBatch{Invite: map[id.RoomID][]*Event{room: slices.Concat(more, list)}} // the invite is the last of them
		if err := bob.file(w.ctx, batch, 0, false); err != nil {
			t.Fatal(err)
		}
	}
	bob.mu.Lock()
	defer bob.mu.Unlock()
	r, size := bob.rooms[room], 0
	for _, byKey := range r.state.Entries {
		for _, entry := range byKey {
			size += len(entry.Content)
		}
	}
	if size > maxInviteState {
		t.Errorf("%d bytes of one invite are kept, want at most %d", size, maxInviteState)
	}
	if r.rec.Inviter != "@mallory:evil" || r.state.membership(bob.UserID()) != rooms.MembershipInvite {
		t.Errorf("the invite itself was left out: by %q, %q", r.rec.Inviter, r.state.membership(bob.UserID()))
	}
}

// TestAWelcomeOutlivesTheInviteBeforeIt: one that comes with the end of an invite waits for the next.
func TestAWelcomeOutlivesTheInviteBeforeIt(t *testing.T) {
	w := newWorld(t)
	bob := w.device("bob", "BOB1")
	const room = "!r:evil"
	key := string(bob.UserID())
	welcome, err := rooms.Encode(&rooms.WelcomeContent{
		Room: room, CommitEvent: "$c", Ref: rooms.Hash{1}, Cfg: rooms.Hash{1}, Welcome: []byte{1},
		Snapshot: rooms.Snapshot{Tree: []byte{1}, TreeHash: make([]byte, 32), AtCommit: rooms.Hash{1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, batch := range []*syncBatch{
		{Invite: map[id.RoomID][]*Event{room: stranger("@alice:evil", bob.UserID())}},
		{
			Leave: map[id.RoomID]*syncRoom{room: {Timeline: []*Event{
				{ID: "$leave", RoomID: room, Type: rooms.TypeMember, StateKey: &key, Sender: "@alice:evil", Content: json.RawMessage(`{"membership":"leave"}`)},
			}}},
			ToDevice: []*Event{{Type: rooms.TypeWelcome, Sender: "@alice:evil", Content: welcome}},
		},
		{Invite: map[id.RoomID][]*Event{room: stranger("@alice:evil", bob.UserID())}},
	} {
		if err := bob.file(w.ctx, batch, 0, false); err != nil {
			t.Fatal(err)
		}
	}
	if waiting := w.inbox(bob, room); len(waiting) != 1 {
		t.Errorf("%d Welcomes wait, want 1", len(waiting))
	}
}
