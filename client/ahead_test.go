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

// A message that another session was shown before the commits and accepts in front of it is marked when the own /sync has
// come to it: that it is late, and that its device was removed.
func TestMessagesTakenAheadAreMarkedAsLate(t *testing.T) {
	for _, tc := range []struct {
		name    string
		removed bool // the sender's device, before the message
		crash   bool // the program ends between /sync and looking at what it brought
		redact  bool // the message is taken back meanwhile
	}{{name: "late"}, {name: "removed", removed: true}, {name: "after a crash", removed: true, crash: true}, {name: "taken back", removed: true, redact: true}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			carol2 := w.device("carol", "CAROL2")
			w.settle()
			carol2.sendAlone(room, "late")
			hidden := w.hide(func(evt *Event) bool { return evt.Sender == carol.UserID() && evt.Type == rooms.TypeEncrypted })
			epoch := alice.epoch(room)
			if tc.removed {
				w.s.mu.Lock()
				w.s.users[carol.UserID()].devices["CAROL2"].gone = true
				w.s.mu.Unlock()
				alice.ident.changed(carol.UserID())
				carol.ident.changed(carol.UserID())
			} else if _, err := alice.wantRefresh(w.ctx, room); err != nil {
				t.Fatal(err)
			}
			w.settle(alice, carol) // bob hears nothing of it
			if alice.epoch(room) == epoch {
				t.Fatal("the commit does not come")
			}
			before := bob.logged()
			w.show(hidden)
			bob.takeAhead(room, bob.shownSince(room, before)...)
			bob.wantTexts("late")
			if tc.redact {
				w.s.append(&Event{RoomID: room, Type: "m.room.redaction", Sender: carol.UserID(), Redacts: hidden.ID, Content: json.RawMessage(`{}`)})
			}
			if tc.crash {
				if err := bob.SyncOnce(w.ctx, 0); err != nil {
					t.Fatal(err)
				}
				bob.restart()
			}
			w.settle(alice, bob, carol)
			marked := 0
			for _, u := range bob.got {
				switch u := u.(type) {
				case *Message:
					if u.Late || u.Removed {
						t.Error("it was known to be late at once: the test shows nothing")
					}
				case *MessageMarked:
					marked++
					if !u.Late || u.Removed != tc.removed || u.EventID != hidden.ID {
						t.Errorf("%s is marked as late %t, of a removed device %t", u.EventID, u.Late, u.Removed)
					}
				}
			}
			msg, err := bob.Message(w.ctx, room, hidden.ID)
			if err != nil || !msg.Late || msg.Removed != tc.removed || marked != 1 {
				t.Errorf("it is kept as %+v (%v), and %d marks were told, want 1", msg, err, marked)
			}
			if tc.redact && err == nil && string(msg.Content) != "{}" {
				t.Errorf("what was taken back says %s", msg.Content)
			}
			bob.mu.Lock()
			taken := len(bob.rooms[room].rec.Taken)
			bob.mu.Unlock()
			if rows := len(w.inbox(bob, room)); taken > 0 || rows > 0 {
				t.Errorf("left behind: %d notes, %d rows", taken, rows)
			}
		})
	}
}

// What the own /sync has come to is marked no more, nor does what it never brings gather.
func TestNotesOfMessagesTakenAheadAreBounded(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.settle()
	before := bob.logged()
	alice.sendAlone(room, "one")
	bob.takeAhead(room, bob.shownSince(room, before)...)
	notes := func() int {
		bob.mu.Lock()
		defer bob.mu.Unlock()
		return len(bob.rooms[room].rec.Taken)
	}
	if notes() != 1 {
		t.Errorf("%d notes, want 1", notes())
	}
	bob.restart()
	w.settle()
	if notes() != 0 {
		t.Errorf("%d notes once the own /sync has come, want none", notes())
	}
	for _, u := range bob.got {
		if _, ok := u.(*MessageMarked); ok {
			t.Error("a message that is not late was marked")
		}
	}
	bob.mu.Lock()
	defer bob.mu.Unlock()
	r := bob.rooms[room]
	for n := range 2 * maxTaken {
		r.noteTaken(id.EventID(strconv.Itoa(n)), r.machine.Head())
	}
	if len(r.rec.Taken) != maxTaken || r.wasTaken(id.EventID(strconv.Itoa(2*maxTaken-1))) == nil {
		t.Errorf("%d notes, want the newest %d", len(r.rec.Taken), maxTaken)
	}
}
