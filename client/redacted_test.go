package client

import (
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestWhatWasRedactedIsGone: what a redacted message said is in no store any more,
// and the facts that push rules ask for are known.
func TestWhatWasRedactedIsGone(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{Name: "talk"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	w.join(bob, room)
	w.settle()
	said := w.send(alice, room, "planted words")
	w.settle()
	if m, err := bob.Message(w.ctx, room, said); err != nil || m.Body() != "planted words" {
		t.Fatalf("bob has %+v, %v", m, err)
	}
	w.must(func() error { _, err := alice.Redact(w.ctx, room, said, ""); return err })
	w.must(func() error { _, err := alice.Redact(w.ctx, room, "$unknown", ""); return err })
	w.settle()
	for _, d := range []*testDevice{alice, bob} {
		m, err := d.Message(w.ctx, room, said)
		if err != nil || string(m.Content) != "{}" || m.Type != "m.room.message" || m.Sender != alice.UserID() {
			t.Errorf("%s has %+v, %v", d.UserID(), m, err)
		}
	}
	facts, ok := bob.Facts(room)
	if !ok || facts.Joined != 2 || len(facts.Power) == 0 || len(facts.Creators) != 1 || facts.Creators[0] != alice.UserID() {
		t.Errorf("bob's facts are %+v, %v", facts, ok)
	}
	if _, ok := bob.Facts("!unknown:x"); ok {
		t.Error("there are facts of a room that is not known")
	}
}

// TestWhatWasRedactedBeforeItWasOpenedIsGone: a ciphertext waits for the group when its
// redaction comes. Opened later, it is known and says nothing.
func TestWhatWasRedactedBeforeItWasOpenedIsGone(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	bob.hs.noState = true
	if _, err := bob.Join(w.ctx, string(room), nil); err != nil {
		t.Fatal(err)
	}
	w.settle(alice)
	said := w.send(alice, room, "planted words")
	w.settle(alice)
	for range 3 {
		bob.turn()
	}
	w.must(func() error { _, err := alice.Redact(w.ctx, room, said, ""); return err })
	w.settle(alice)
	for range 3 {
		bob.turn()
	}
	if waiting := bob.waiting(room); !slices.Contains(waiting, "group") {
		t.Fatalf("events wait for %q, none for the group", waiting)
	}
	bob.hs.noState = false
	w.settle()
	m, err := bob.Message(w.ctx, room, said)
	if err != nil || string(m.Content) != "{}" || slices.Contains(bob.texts(), "planted words") {
		t.Errorf("bob has %+v, %v, and was told %q", m, err, bob.texts())
	}
	if _, err := bob.st.GetKV(w.ctx, redactedKey(room, said)); err == nil {
		t.Error("it is still noted that it was redacted")
	}
}

// TestWhatWasTakenBackIsNotSentAgain: a message of a branch that lost is sent again,
// unless its author took it back.
func TestWhatWasTakenBackIsNotSentAgain(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(3, nil)
	alice, bob, carol := u[0], u[1], u[2]
	fork := alice.headRef(room)
	w.cut("s3.example")
	for _, d := range []*testDevice{alice, carol} {
		w.must(func() error { return d.Refresh(w.ctx, room) })
	}
	if !w.until(400, func() bool { return alice.headRef(room) != fork && carol.headRef(room) != fork }) {
		t.Fatal("a side stands still")
	}
	w.send(carol, room, "kept")
	said := w.send(carol, room, "taken back")
	w.must(func() error { _, err := carol.Redact(w.ctx, room, said, ""); return err })
	w.settle()
	if alice.headRef(room) == carol.headRef(room) || len(alice.received()) != 0 {
		t.Fatal("the sides did not part: the test proves nothing")
	}
	if n := len(carol.keptMessages(room)); n != 1 {
		t.Errorf("carol keeps %d messages to send again, want 1", n)
	}
	w.mend()
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	for _, d := range []*testDevice{alice, bob} {
		got := slices.DeleteFunc(d.received(), func(text string) bool { return text == "" }) // what was taken back says nothing
		if !slices.Equal(got, []string{"kept"}) {
			t.Errorf("%s got %q", d.ident.device, got)
		}
	}
}

// keptMessages are the rows of a room's outbox that hold a message.
func (d *testDevice) keptMessages(room id.RoomID) []*outRow {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(d.roomRows(room), func(row *outRow) bool { return row.data.Plain == nil })
}

// again lets a device send its last kept message once more.
func (d *testDevice) again(room id.RoomID) {
	d.w.t.Helper()
	rows := d.keptMessages(room)
	d.mu.Lock()
	defer d.mu.Unlock()
	b := &batch{}
	d.sendAgain(b, rows[len(rows)-1], rows[len(rows)-1].data)
	if err := d.commitBatch(d.w.ctx, d.rooms[room], b); err != nil {
		d.w.t.Fatal(err)
	}
}

// redactions are the events that were redacted, in order.
func (w *world) redactions() (out []id.EventID) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for _, evt := range w.s.log {
		if evt.Redacts != "" {
			out = append(out, evt.Redacts)
		}
	}
	return out
}

// TestWhatWasSentAgainIsTakenBackInAllItsEvents: whoever redacts a message knows of its first event alone.
func TestWhatWasSentAgainIsTakenBackInAllItsEvents(t *testing.T) {
	for _, onItsWay := range []bool{false, true} {
		w := newWorld(t)
		room, alice, bob, carol := w.three("shared")
		said := w.send(alice, room, "taken back")
		w.settle()
		alice.again(room)
		redact := func() {
			if _, err := alice.hs.Redact(w.ctx, room, said, "t", ""); err != nil {
				t.Fatal(err)
			}
		}
		alice.crashAt = func(point string) error {
			if point == "after-send-"+kindChat && onItsWay {
				redact()
				if err := alice.SyncOnce(w.ctx, 0); err != nil {
					t.Fatal(err)
				}
				alice.Step(w.ctx)
			}
			return nil
		}
		alice.Client.crashAt = alice.crashAt
		w.settle()
		if !onItsWay {
			rows := alice.keptMessages(room)
			if len(rows) != 1 || !slices.Equal(rows[0].data.Was, []id.EventID{said}) || rows[0].data.EventID == "" {
				t.Fatal("it was not sent again: the test proves nothing")
			}
			redact()
			w.settle()
		}
		w.s.mu.Lock()
		var sent []id.EventID
		for _, evt := range w.s.log {
			if evt.Type == rooms.TypeEncrypted && evt.Sender == alice.UserID() {
				sent = append(sent, evt.ID)
			}
		}
		w.s.mu.Unlock()
		if got := w.redactions(); len(sent) != 2 || !slices.Equal(got, sent) {
			t.Errorf("on its way %v: sent as %q, redacted are %q", onItsWay, sent, got)
		}
		if rows := alice.keptMessages(room); len(rows) != 0 {
			t.Errorf("on its way %v: %d messages are kept", onItsWay, len(rows))
		}
		w.sameEpoch(room, alice, bob, carol)
	}
}
