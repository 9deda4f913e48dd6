package client

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// TestSeenEventsAreForgotten: the names of events that were processed long ago are
// forgotten, and nobody can bring up again what they stood for by naming it.
func TestSeenEventsAreForgotten(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	first := w.send(alice, room, "once")
	w.settle()
	bob.wantTexts("once")
	bob.limits.GapPages = 1
	var sent []id.EventID
	for i := range bob.keptSeen() + 3*seenEvery {
		evt, err := alice.hs.Send(w.ctx, room, "org.example.other", fmt.Sprint("other", i), json.RawMessage(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		sent = append(sent, evt)
		if i%90 == 0 {
			bob.turn()
		}
	}
	bob.turn()
	seen := func(evt id.EventID) bool {
		t.Helper()
		is, err := bob.st.Seen(w.ctx, room, evt)
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	if seen(first) {
		t.Error("the first message is remembered still")
	}
	for _, evt := range sent[len(sent)-bob.keptSeen():] {
		if !seen(evt) {
			t.Fatalf("%s is forgotten", evt)
		}
	}
	bob.got = nil
	bob.mu.Lock()
	bob.rooms[room].want("event:"+string(first), &need{event: first}) // as if a message or a commit named it
	bob.mu.Unlock()
	for range 10 {
		bob.turn()
		w.now.add(time.Second)
	}
	for _, u := range bob.got {
		switch u := u.(type) {
		case *Message, *Undecryptable:
			t.Errorf("bob was told of an old message again: %+v", u)
		}
	}
}
