package client

import (
	"encoding/json"
	"fmt"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestLateMessageOfWhoWasRemovedIsMarked(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	carol.sendAlone(room, "from a member") // nobody has fetched it yet
	bob.sendAlone(room, "from who is removed")
	w.s.held[rooms.TypeEncrypted] = true
	w.must(func() error { return alice.Kick(w.ctx, room, bob.UserID(), "") })
	w.settle(alice, carol)
	w.s.mu.Lock()
	w.s.held[rooms.TypeEncrypted] = false
	for _, evt := range w.s.log { // they come after the commit
		if evt.Type == rooms.TypeEncrypted {
			again := *evt
			w.s.append(&again)
		}
	}
	w.s.mu.Unlock()
	w.settle(alice, carol)
	alice.wantTexts("from a member", "from who is removed")
	for _, u := range alice.got {
		if msg, ok := u.(*Message); ok && (!msg.Late || msg.Removed != (msg.Sender == bob.UserID())) {
			t.Errorf("message of %s: late %v, of a removed device %v", msg.Sender, msg.Late, msg.Removed)
		}
	}
}

func TestRoomEventsDoNotPushOutAWelcome(t *testing.T) {
	w := newWorld(t)
	dave := w.device("dave", "DAVE1")
	const room = id.RoomID("!later:" + testServer)
	dave.mu.Lock()
	defer dave.mu.Unlock()
	r := dave.newRoom(room)
	dave.rooms[room] = r
	add := func(name, eventType string, toDevice bool) {
		raw, err := json.Marshal(inboxData{Event: &Event{ID: id.EventID(name), RoomID: room, Type: eventType}, ToDevice: toDevice})
		if err == nil {
			err = dave.st.AddInbox(w.ctx, &store.InboxItem{Room: room, EventID: id.EventID(name), Data: raw, WaitsFor: "join:"})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	add("welcome", rooms.TypeWelcome, true)
	for i := range dave.limits.Waiting + 5 {
		add(fmt.Sprint("$event", i), rooms.TypeCommit, false)
	}
	for i := range maxWelcomesWaiting + 5 {
		add(fmt.Sprint("forged", i), rooms.TypeWelcome, true)
	}
	if err := dave.drain(w.ctx, r); err != nil {
		t.Fatal(err)
	}
	items, err := dave.st.Inbox(w.ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	kept := map[string]int{}
	for _, item := range items {
		var data inboxData
		if err := json.Unmarshal(item.Data, &data); err != nil {
			t.Fatal(err)
		}
		kept[data.Event.Type]++
		if item.EventID == "welcome" {
			kept["the first"]++
		}
	}
	if kept[rooms.TypeCommit] != dave.limits.Waiting || kept[rooms.TypeWelcome] != maxWelcomesWaiting || kept["the first"] != 1 {
		t.Errorf("kept %v, want %d events and %d Welcomes with the first", kept, dave.limits.Waiting, maxWelcomesWaiting)
	}
}
