package client

import (
	"encoding/json"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestSendOnceSendsOnceForEachKey(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{Name: "once"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	w.join(bob, room)
	w.settle()
	once := func(key, text string) (evt id.EventID) {
		w.must(func() (err error) {
			evt, err = alice.SendOnce(w.ctx, room, "m.room.message", map[string]string{"msgtype": "m.text", "body": text}, key)
			return err
		})
		return evt
	}
	first := once("1", "hello")
	if again := once("1", "something else"); again != first {
		t.Errorf("the same key again: %s, want %s", again, first)
	}
	w.settle()
	if again := once("1", "hello"); again != first { // also when it has come back
		t.Errorf("the same key later: %s, want %s", again, first)
	}
	if other := once("2", "hello"); other == first {
		t.Errorf("another key is the event %s, too", other)
	}
	w.settle()
	if got, want := bob.texts(), []string{"hello", "hello"}; !slices.Equal(got, want) {
		t.Errorf("bob got %q, want %q", got, want)
	}
}

func TestMessagesAreKeptAsTheyWereWritten(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{Name: "bytes"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	w.join(bob, room)
	w.settle()
	const content = `{"msgtype":"m.text","body":"a<b>&c\u2028\u003c ","n":1.50}`
	w.must(func() error {
		_, err := alice.SendOnce(w.ctx, room, "m.room.message", json.RawMessage(content), "1")
		return err
	})
	w.settle()
	for _, d := range []*testDevice{alice, bob} {
		list, err := d.Messages(w.ctx, room, "", 10)
		if err != nil || len(list) != 1 || string(list[0].Content) != content {
			t.Errorf("%s has %d messages, %v", d.UserID(), len(list), err)
			for _, m := range list {
				t.Errorf("%s\nwant %s", m.Content, content)
			}
			continue
		}
		// As it is kept after it was sent again, or given by somebody.
		item, err := historyItem(list[0])
		if err != nil {
			t.Fatal(err)
		}
		if m, err := messageOf(item); err != nil || string(m.Content) != content {
			t.Errorf("as history %s keeps %s, %v", d.UserID(), item.Data, err)
		}
	}
	// As it is sent again after a restart.
	alice.restart()
	if rows := alice.keptMessages(room); len(rows) != 1 || string(rows[0].data.Plain.Content) != content {
		t.Errorf("the outbox keeps %d messages", len(rows))
	}
}

func TestWhyACiphertextWasRefusedIsKept(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	evt, err := alice.hs.Send(w.ctx, room, rooms.TypeEncrypted, "broken", []byte(`{"algorithm":"`+rooms.Algorithm+`","ciphertext":"AAAA"}`))
	if err != nil {
		t.Fatal(err)
	}
	good := w.send(alice, room, "readable")
	w.settle()
	rule, refused, err := bob.Refused(w.ctx, room, evt)
	if err != nil || !refused || rule == "" {
		t.Errorf("Refused = %q, %v, %v", rule, refused, err)
	}
	if rule, refused, err := bob.Refused(w.ctx, room, good); err != nil || refused {
		t.Errorf("a message that was read: %q, %v, %v", rule, refused, err)
	}
}
