package client

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestWelcomesOfManyPushOutNoneThatCounts: many members with one bogus Welcome each
// push out neither those of who invited this user, nor of whom the room trusts, nor
// the newest; and those who are not in the room push out nobody.
func TestWelcomesOfManyPushOutNoneThatCounts(t *testing.T) {
	w := newWorld(t)
	dave := w.device("dave", "DAVE1")
	const room = id.RoomID("!later:" + testServer)
	dave.mu.Lock()
	defer dave.mu.Unlock()
	r := dave.newRoom(room)
	dave.rooms[room] = r
	inviter, admin, newest := id.UserID("@a:"+testServer), id.UserID("@b:"+testServer), id.UserID("@c:"+testServer)
	r.rec.Inviter, r.state.Known = inviter, true
	empty := ""
	raw, _ := json.Marshal(map[string]any{"users": map[id.UserID]int{admin: 100}})
	r.state.set(&Event{ID: "$power", Type: rooms.TypePowerLevels, Sender: admin, StateKey: &empty, Content: raw})
	joins := func(user id.UserID) {
		key := string(user)
		r.state.set(&Event{ID: id.EventID("$join" + key), Type: rooms.TypeMember, Sender: user, StateKey: &key, Content: json.RawMessage(`{"membership":"join"}`)})
	}
	add := func(sender id.UserID) {
		raw, err := json.Marshal(inboxData{Event: &Event{ID: id.EventID("welcome" + sender), RoomID: room, Type: rooms.TypeWelcome, Sender: sender}, ToDevice: true, At: dave.now().UnixMilli()})
		if err == nil {
			err = dave.st.AddInbox(w.ctx, &store.InboxItem{Room: room, EventID: id.EventID("welcome" + sender), Data: raw, WaitsFor: "join:"})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, user := range []id.UserID{inviter, admin} {
		joins(user)
		add(user)
	}
	for i := range maxWelcomesWaiting {
		liar := id.UserID(fmt.Sprintf("@liar%02d:%s", i, testServer))
		joins(liar)
		add(liar)
	}
	joins(newest)
	add(newest)
	for i := range maxWelcomesWaiting {
		add(id.UserID(fmt.Sprintf("@outside%02d:%s", i, testServer)))
	}
	if err := dave.drain(w.ctx, r); err != nil {
		t.Fatal(err)
	}
	var kept []id.UserID
	outside := 0
	for _, item := range w.inbox(dave, room) {
		kept = append(kept, item.Event.Sender)
		if strings.HasPrefix(string(item.Event.Sender), "@outside") {
			outside++
		}
	}
	if len(kept) != maxWelcomesWaiting || outside > 0 {
		t.Errorf("%d Welcomes are kept, %d of them of users who are not in the room; want %d and none", len(kept), outside, maxWelcomesWaiting)
	}
	for _, user := range []id.UserID{inviter, admin, newest} {
		if !slices.Contains(kept, user) {
			t.Errorf("the Welcome of %s is pushed out", user)
		}
	}
}

// TestWelcomeLooksAtHeadsLessAndLessOften: a Welcome that waits for a head is opened
// again ever more rarely, and at once when one comes; it is given up one day.
func TestWelcomeLooksAtHeadsLessAndLessOften(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	dave := w.device("dave:two.example", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle(alice, bob, carol)
	heads := w.hideAll(func(evt *Event) bool { return evt.RoomID == room && evt.Type == rooms.TypeHead })
	if len(heads) == 0 {
		t.Fatal("there is no head")
	}
	if _, err := dave.hs.Join(w.ctx, string(room), nil); err != nil {
		t.Fatal(err)
	}
	dave.turn()
	opened := dave.ident.opened
	for range 360 {
		dave.turn()
		w.now.add(10 * time.Second)
	}
	if waiting := dave.waiting(room); !slices.Contains(waiting, "head:") {
		t.Fatalf("no Welcome waits for a head: %q", waiting)
	}
	if n := dave.ident.opened - opened; n < 5 || n > 25 {
		t.Errorf("the Welcome was opened %d times in an hour, want about 18", n)
	}
	dave.skew = welcomeAge + time.Minute
	dave.turn()
	if waiting := dave.waiting(room); slices.Contains(waiting, "head:") {
		t.Errorf("after a day events wait for %q", waiting)
	}
}

// TestWelcomeIsNotTakenBeforeTheState: as long as a device does not know who is in
// the room, it takes no Welcome.
func TestWelcomeIsNotTakenBeforeTheState(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	bob.hs.noState = true
	if _, err := bob.Join(w.ctx, string(room), nil); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		bob.turn()
		w.now.add(time.Minute)
	}
	if waiting := bob.waiting(room); bob.epoch(room) > 0 || !slices.Contains(waiting, "state:") {
		t.Errorf("bob is in epoch %d without the state; events wait for %q", bob.epoch(room), waiting)
	}
	bob.hs.noState = false
	w.now.add(time.Minute)
	w.settle()
	w.sameEpoch(room, alice, bob)
	for _, evt := range w.s.log {
		if evt.Type == rooms.TypeCommit && evt.Sender == bob.UserID() {
			t.Error("bob did not take the Welcome and joined by himself")
		}
	}
}
