package client

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// shownSince returns what another session of the device's user is shown of a room's timeline since the log had n events:
// the proxy asks for none of the protocol's own.
func (d *testDevice) shownSince(room id.RoomID, n int) (out []*Event) {
	d.ident.s.mu.Lock()
	defer d.ident.s.mu.Unlock()
	for _, evt := range d.ident.s.shown("", d.ident.s.log[n:]...) {
		if evt.RoomID == room && (evt.StateKey != nil || evt.Type == rooms.TypeEncrypted || evt.Type == "m.room.redaction") {
			out = append(out, evt)
		}
	}
	return out
}

// logged is how many events the homeserver has.
func (d *testDevice) logged() int {
	d.ident.s.mu.Lock()
	defer d.ident.s.mu.Unlock()
	return len(d.ident.s.log)
}

// takeAhead takes events ahead and hands on what came of it, without a /sync.
func (d *testDevice) takeAhead(room id.RoomID, events ...*Event) {
	d.w.t.Helper()
	if err := d.TakeAhead(d.w.ctx, room, events); err != nil {
		d.w.t.Fatal(err)
	}
	if err := d.Deliver(d.w.ctx); err != nil {
		d.w.t.Fatal(err)
	}
}

// takeAll takes ahead what the own /sync has not brought yet.
func (d *testDevice) takeAll() {
	d.w.t.Helper()
	token := d.token
	if !d.fed {
		raw, err := d.st.GetKV(d.w.ctx, syncTokenKey)
		if err != nil {
			return
		}
		token = string(raw)
	}
	from, _ := strconv.Atoi(token)
	d.mu.Lock()
	rooms := slices.Sorted(maps.Keys(d.rooms))
	d.mu.Unlock()
	for _, room := range rooms {
		if err := d.TakeAhead(d.w.ctx, room, d.shownSince(room, from)); err != nil && d.crashAt == nil {
			d.w.t.Fatal(err)
		}
	}
}

// A message that another session was shown first is opened then, once, and is no other one when the own /sync brings it.
func TestMessagesAreTakenAhead(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.settle()
	before := bob.logged()
	alice.sendAlone(room, "one")
	carol.sendAlone(room, "two")
	alice.sendAlone(room, "three")
	events := bob.shownSince(room, before)
	bob.takeAhead(room, events[:2]...)
	bob.wantTexts("one", "two")
	bob.takeAhead(room, events...) // the answer comes again, with one more
	bob.wantTexts("one", "two", "three")
	w.settle()
	bob.wantTexts("one", "two", "three")
	bob.takeAhead(room, events...) // after the own /sync
	bob.restart()
	w.settle()
	bob.takeAhead(room, events...)
	bob.wantTexts("one", "two", "three")
	if n := len(bob.Refusals()); n != 0 {
		t.Errorf("refused: %v", bob.Refusals())
	}
	bob.wantOnce(room)
}

// What the own /sync has brought and the engine has not looked at yet comes first.
func TestTheOwnSyncComesFirst(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.settle()
	alice.sendAlone(room, "one")
	if err := bob.SyncOnce(w.ctx, 0); err != nil {
		t.Fatal(err)
	}
	before := bob.logged()
	alice.sendAlone(room, "two")
	bob.takeAhead(room, bob.shownSince(room, before)...)
	bob.wantTexts()
	w.settle()
	bob.wantTexts("one", "two")
}

// What needs more than an epoch that is at hand is left to the own /sync, and what follows it in the room, too.
func TestNothingIsTakenAheadOfWhatItNeeds(t *testing.T) {
	other := "other"
	for name, first := range map[string]func(w *world, room id.RoomID, alice, bob *testDevice) *Event{
		"another epoch": func(w *world, room id.RoomID, alice, bob *testDevice) *Event {
			if _, err := alice.wantRefresh(w.ctx, room); err != nil {
				w.t.Fatal(err)
			}
			carol := w.all[2]
			epoch := alice.epoch(room)
			for range 20 { // bob does not hear of it
				alice.turn()
				carol.turn()
				w.order()
			}
			if alice.epoch(room) == epoch {
				w.t.Fatal("the commit does not come")
			}
			before := alice.logged()
			alice.sendAlone(room, "first")
			return bob.shownSince(room, before)[0]
		},
		"state": func(w *world, room id.RoomID, alice, bob *testDevice) *Event {
			return &Event{ID: "$state", RoomID: room, Type: "m.room.name", StateKey: &other, Sender: alice.UserID(), Timestamp: 1, Content: json.RawMessage(`{}`)}
		},
		"no ciphertext": func(w *world, room id.RoomID, alice, bob *testDevice) *Event {
			return &Event{ID: "$redacted", RoomID: room, Type: rooms.TypeEncrypted, Sender: alice.UserID(), Timestamp: 1, Content: json.RawMessage(`{}`)}
		},
		"one of the own user's": func(w *world, room id.RoomID, alice, bob *testDevice) *Event {
			before := alice.logged()
			alice.sendAlone(room, "first")
			evt := *bob.shownSince(room, before)[0]
			evt.Sender = bob.UserID()
			return &evt
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, _ := w.three("shared")
			w.settle()
			evt := first(w, room, alice, bob)
			before := bob.logged()
			alice.sendAlone(room, "second")
			bob.takeAhead(room, append([]*Event{evt}, bob.shownSince(room, before)...)...)
			bob.wantTexts()
			w.settle()
			if got := bob.texts(); len(got) == 0 || got[len(got)-1] != "second" {
				t.Errorf("bob reads %q", got)
			}
			if rules := bob.Refusals(); len(rules) != 0 {
				t.Errorf("refused: %v", rules)
			}
		})
	}
}

// A ciphertext that cannot be opened is left to the own /sync, which may bring the right one; a forged sender is
// refused at once: the key is used.
func TestAForgedMessageIsNotTakenAhead(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.settle()
	before := bob.logged()
	alice.sendAlone(room, "one")
	evt := *bob.shownSince(room, before)[0]
	content, err := rooms.DecodeEncrypted(evt.Content)
	if err != nil {
		t.Fatal(err)
	}
	torn := evt
	torn.Content, err = rooms.Encode(&rooms.EncryptedContent{Algorithm: content.Algorithm, Ciphertext: append(content.Ciphertext[:len(content.Ciphertext)-1:len(content.Ciphertext)-1], content.Ciphertext[len(content.Ciphertext)-1]^1)})
	if err != nil {
		t.Fatal(err)
	}
	bob.takeAhead(room, &torn)
	bob.wantTexts()
	if rules := bob.Refusals(); len(rules) != 0 {
		t.Errorf("refused: %v", rules)
	}
	w.settle()
	bob.wantTexts("one")

	before = bob.logged()
	alice.sendAlone(room, "two")
	forged := *bob.shownSince(room, before)[0]
	forged.Sender = carol.UserID()
	bob.takeAhead(room, &forged)
	bob.wantTexts("one")
	if n := bob.Refusals()[string(rooms.RuleSenderNotCredential)]; n != 1 {
		t.Errorf("refused: %v", bob.Refusals())
	}
}

// A device that is not in the room, has not synced or is closed takes nothing.
func TestNothingIsTakenAheadOfTheFirstSync(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.settle()
	before := bob.logged()
	alice.sendAlone(room, "one")
	events := bob.shownSince(room, before)
	bob.restart()
	bob.synced = make(chan struct{})
	bob.takeAhead(room, events...)
	bob.takeAhead("!other:one", events...)
	bob.wantTexts()
	close(bob.synced)
	bob.once.Do(func() {})
	bob.takeAhead(room, events...)
	bob.wantTexts("one")
}

// A device that is killed at any write while it takes messages ahead reads each once, and uses no key twice.
func TestKilledWhileMessagesAreTakenAhead(t *testing.T) {
	for at := 1; ; at++ {
		w := newWorld(t)
		room, alice, bob, _ := w.three("shared")
		w.settle()
		before := bob.logged()
		for _, text := range []string{"one", "two", "three"} {
			alice.sendAlone(room, text)
		}
		events := bob.shownSince(room, before)
		k := &crasher{at: at}
		bob.Client.crashAt = k.point
		err := bob.TakeAhead(w.ctx, room, events)
		bob.restart()
		w.settle()
		bob.takeAhead(room, events...)
		bob.wantTexts("one", "two", "three")
		bob.wantOnce(room)
		w.checkNonces()
		if err == nil {
			if at <= len(events) {
				t.Errorf("%d messages were taken in %d writes", len(events), at-1)
			}
			return
		}
	}
}
