package client

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A homeserver puts the events of a server that was cut off where they belong: in
// the history, among events that it had shown before.
func TestGapAmongWhatWasRead(t *testing.T) {
	w := newWorld(t)
	room, alice, _, carol := w.three("shared")
	carol.ident.limit = 3
	w.send(alice, room, "held up")
	w.s.mu.Lock()
	at := slices.IndexFunc(w.s.log, func(evt *Event) bool { return evt.Type == rooms.TypeEncrypted })
	held := w.s.log[at]
	// In its place, where the others' positions stay right, one of a room that nobody is in.
	w.s.log[at] = &Event{ID: "$elsewhere", RoomID: "!elsewhere:example.org", Sender: held.Sender, Type: held.Type}
	w.s.mu.Unlock()
	for _, text := range []string{"one", "two"} {
		w.send(alice, room, text)
		carol.turn()
	}
	w.s.mu.Lock()
	w.s.log[at] = held
	w.s.mu.Unlock()
	w.all = slices.DeleteFunc(w.all, func(d *testDevice) bool { return d == carol })
	for _, text := range []string{"three", "four", "five", "six"} {
		w.send(alice, room, text)
	}
	w.settle(append(w.all, carol)...)
	got := carol.texts()
	slices.Sort(got)
	if want := []string{"five", "four", "held up", "one", "six", "three", "two"}; !slices.Equal(got, want) {
		t.Errorf("carol got %q, want %q", got, want)
	}
}

// withGap has carol miss more of a room than one /sync shows, while her homeserver
// does not give that room's history. She is in a second room, too.
func (w *world) withGap() (room, other id.RoomID, carol *testDevice) {
	w.t.Helper()
	room, alice, _, carol := w.three("shared")
	other = w.createRoom(alice, CreateOptions{})
	w.must(func() error { return alice.Invite(w.ctx, other, carol.UserID()) })
	w.join(carol, other)
	w.settle()
	carol.ident.limit, carol.hs.noHistory = 3, room
	w.all = slices.DeleteFunc(w.all, func(d *testDevice) bool { return d == carol })
	for _, text := range []string{"one", "two", "three", "four", "five", "six"} {
		w.send(alice, room, text)
	}
	w.send(alice, other, "elsewhere")
	return room, other, carol
}

// A homeserver that does not give the history of one room holds up no other room,
// and what it left out comes before what it showed, also after a restart.
func TestGapOfOneRoomHoldsUpNoOther(t *testing.T) {
	w := newWorld(t)
	_, _, carol := w.withGap()
	carol.turn()
	carol.wantTexts("elsewhere")
	carol.restart()
	carol.turn()
	carol.hs.noHistory = ""
	w.now.add(time.Minute)
	w.settle(append(w.all, carol)...)
	carol.wantTexts("elsewhere", "one", "two", "three", "four", "five", "six")
}

// Nor does one that does not answer at all.
func TestGapThatStallsHoldsUpNoOther(t *testing.T) {
	w := newWorld(t)
	_, _, carol := w.withGap()
	carol.hs.stalls, carol.pageWait = true, time.Millisecond
	ctx := w.ctx
	var cancel context.CancelFunc
	w.ctx, cancel = context.WithTimeout(ctx, patience.Hang)
	carol.turn() // without an end of its own it fails
	cancel()
	w.ctx = ctx
	carol.wantTexts("elsewhere")
	carol.hs.noHistory, carol.pageWait = "", pageTimeout
	w.now.add(time.Minute)
	w.settle(append(w.all, carol)...)
	carol.wantTexts("elsewhere", "one", "two", "three", "four", "five", "six")
}

// While a room's history cannot be had for long, what there is is shown, and the
// history asked for ever more rarely, but never given up.
func TestGapIsNotGivenUp(t *testing.T) {
	w := newWorld(t)
	_, _, carol := w.withGap()
	for range 60 {
		carol.turn()
		w.now.add(10 * time.Second)
	}
	carol.wantTexts("elsewhere", "four", "five", "six")
	asked := 0
	carol.hs.before = func(kind string) {
		if kind == "messages" {
			asked++
		}
	}
	for range 120 {
		carol.turn()
		w.now.add(time.Minute)
	}
	if asked < 4 || asked > 12 {
		t.Errorf("the history was asked for %d times in two hours, want about 8", asked)
	}
	carol.hs.noHistory = ""
	w.now.add(maxFileWait)
	w.settle(append(w.all, carol)...)
	got := carol.texts()
	slices.Sort(got)
	if want := []string{"elsewhere", "five", "four", "one", "six", "three", "two"}; !slices.Equal(got, want) {
		t.Errorf("carol got %q, want %q", got, want)
	}
	carol.mu.Lock()
	defer carol.mu.Unlock()
	for _, r := range carol.rooms {
		if r.rec.Look != nil && r.needs[lookLater] == nil {
			t.Errorf("carol still looks for it: %v", r.rec.Look)
		}
	}
}

// TestGapHoldsOneHeadOfEachModule: of the heads that modules published while a device
// was away, which are the most of a large room's history, the newest is held alone;
// whatever else there is comes in its order.
func TestGapHoldsOneHeadOfEachModule(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	bob.ident.limit = 3
	bob.turn()
	w.all = slices.DeleteFunc(w.all, func(d *testDevice) bool { return d == bob })
	var want []id.EventID
	heads := 0
	for i := range 20 {
		want = append(want, w.send(alice, room, fmt.Sprint("text", i)))
		w.must(func() error { return alice.Refresh(w.ctx, room) })
		w.settle()
	}
	w.s.mu.Lock()
	for _, evt := range w.s.log {
		if evt.RoomID == room && evt.Type == rooms.TypeHead {
			heads++
		}
	}
	at := strconv.Itoa(len(w.s.log))
	w.s.mu.Unlock()
	joined := &syncRoom{Limited: true, PrevBatch: at}
	if err := bob.fillGap(w.ctx, room, joined); err != nil {
		t.Fatal(err)
	}
	kept := 0
	var texts []id.EventID
	for _, evt := range joined.Timeline {
		switch {
		case evt.Type == rooms.TypeHead:
			kept++
		case slices.Contains(want, evt.ID):
			texts = append(texts, evt.ID)
		}
	}
	if heads < 10 || kept != 1 {
		t.Errorf("%d of %d heads are held, want 1", kept, heads)
	}
	if !slices.Equal(texts, want) {
		t.Errorf("the messages are %v, want %v", texts, want)
	}
	w.settle(append(w.all, bob)...)
	w.sameEpoch(room, alice, bob)
	if got := bob.texts(); len(got) != len(want) {
		t.Errorf("bob got %q", got)
	}
}

// TestGapsOfManyRoomsAreReadInTurn: a device that was away does not hold the gaps of all its rooms at once, and reads each
// in its order all the same, also where it is restarted meanwhile.
func TestGapsOfManyRoomsAreReadInTurn(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	var all []id.RoomID
	for range 3 {
		room := w.createRoom(alice, CreateOptions{})
		w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
		w.join(bob, room)
		all = append(all, room)
	}
	w.settle()
	bob.bounds.GapBytes = 1
	bob.restart()
	bob.turn()
	bob.ident.limit = 3
	w.all = []*testDevice{alice}
	for i := range 6 {
		for _, room := range all {
			w.send(alice, room, fmt.Sprint("text", i))
		}
	}
	asked := 0
	bob.hs.before = func(kind string) {
		if kind == "messages" {
			asked++
		}
	}
	if err := bob.SyncOnce(w.ctx, 0); err != nil {
		t.Fatal(err)
	}
	one := asked
	bob.restart()
	w.settle(alice, bob)
	if asked < 3*one || one == 0 {
		t.Errorf("%d pages were read with /sync, %d in all", one, asked)
	}
	for _, room := range all {
		var got []string
		for _, u := range bob.got {
			if m, ok := u.(*Message); ok && m.Room == room {
				got = append(got, m.Body())
			}
		}
		if want := []string{"text0", "text1", "text2", "text3", "text4", "text5"}; !slices.Equal(got, want) {
			t.Errorf("of %s bob got %q, want %q", room, got, want)
		}
	}
}

// TestInboxIsReadOneByOne: what waits in a room's inbox is not held in memory.
func TestInboxIsReadOneByOne(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	for i := range 5 {
		alice.sendAlone(room, fmt.Sprint(i))
	}
	if err := bob.SyncOnce(w.ctx, 0); err != nil {
		t.Fatal(err)
	}
	bob.mu.Lock()
	defer bob.mu.Unlock()
	items, err := bob.st.Inbox(w.ctx, room)
	if err != nil || len(items) < 5 {
		t.Fatalf("%d events in the inbox (%v)", len(items), err)
	}
	for n, item := range items {
		if item.Data != nil {
			t.Errorf("event %d was read with the list", n)
		}
		if _, err := bob.process(w.ctx, bob.rooms[room], item); err != nil {
			t.Error(err)
		}
		if item.Data != nil {
			t.Errorf("event %d is held after it was processed", n)
		}
	}
}
