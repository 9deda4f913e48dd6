package client

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// missed returns what a device was told of messages that did not come: how many, of
// each gap.
func (d *testDevice) missed() (out []string) {
	for _, u := range d.got {
		if warning, ok := u.(*Warning); ok && warning.Kind == MissingWarning {
			out = append(out, warning.Sender.String()+" "+warning.Reason+" "+warning.Detail)
		}
	}
	return out
}

// lateMissing lets as much time pass as a message may be late.
func (w *world) lateMissing() {
	w.t.Helper()
	w.settle()
	w.now.add(missingWait)
	w.settle()
}

// sendHidden lets a device send a message that the homeserver then keeps to itself, while
// nobody else looks.
func (w *world) sendHidden(d *testDevice, room id.RoomID, text string) *Event {
	w.t.Helper()
	all := w.all
	w.all = []*testDevice{d}
	evt := w.send(d, room, text)
	w.all = all
	return w.hide(func(e *Event) bool { return e.ID == evt })
}

// TestMessagesThatAServerKeepsAreMissed: the next message of the same device shows it, also if it is the first of its
// epoch that was kept, and over a restart.
func TestMessagesThatAServerKeepsAreMissed(t *testing.T) {
	for _, tt := range []struct {
		name          string
		before, after bool // one message comes before those that do not; the device starts anew before the next
		hidden        int
	}{
		{"after one that came", true, false, 1},
		{"the first of an epoch", false, false, 1},
		{"the first two", false, false, 2},
		{"before a restart", true, true, 1},
		{"the first, before a restart", false, true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, _ := w.three("shared")
			if tt.before {
				w.send(alice, room, "before")
				w.settle()
			}
			for range tt.hidden {
				w.sendHidden(alice, room, "kept")
			}
			w.settle()
			if tt.after {
				bob.restart()
			}
			w.send(alice, room, "after")
			w.settle()
			at := slices.IndexFunc(bob.got, func(u Update) bool { m, ok := u.(*Message); return ok && m.Body() == "after" })
			if at < 0 || bob.got[at].(*Message).Missing != uint32(tt.hidden) {
				t.Errorf("bob got %+v, want that %d are missing", bob.got, tt.hidden)
			}
			if got := bob.missed(); got != nil {
				t.Errorf("told at once, while it may only be late: %q", got)
			}
			bob.restart() // what is to be told is not forgotten
			w.lateMissing()
			if got, want := bob.missed(), []string{string(alice.UserID()) + " ALICE1 " + string(rune('0'+tt.hidden))}; !slices.Equal(got, want) {
				t.Errorf("bob was told %q, want %q", got, want)
			}
			w.lateMissing()
			if n := len(bob.missed()); n != 1 {
				t.Errorf("told %d times", n)
			}
		})
	}
}

// TestNothingIsMissedThatCameOtherwise: neither what is only late, nor what was redacted before it came, nor what
// was sent in another epoch, nor receipts, nor what was said before a newcomer was there.
func TestNothingIsMissedThatCameOtherwise(t *testing.T) {
	t.Run("late", func(t *testing.T) {
		w := newWorld(t)
		room, alice, bob, _ := w.three("shared")
		hidden := w.sendHidden(alice, room, "late")
		w.send(alice, room, "after")
		w.settle()
		w.show(hidden)
		w.lateMissing()
		bob.wantTexts("after", "late")
		if got := bob.missed(); got != nil {
			t.Errorf("bob was told %q", got)
		}
	})
	for _, order := range []string{"before the next", "after it"} {
		t.Run("redacted, and seen "+order, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			w.all = []*testDevice{alice, carol}
			evt := w.send(alice, room, "taken back")
			if _, err := alice.Redact(w.ctx, room, evt, ""); err != nil {
				t.Fatal(err)
			}
			var hidden *Event
			if order == "after it" {
				hidden = w.hide(func(e *Event) bool { return e.ID == evt })
			}
			w.send(alice, room, "after")
			w.all = []*testDevice{alice, bob, carol}
			w.settle()
			if hidden != nil {
				w.show(hidden)
			}
			w.lateMissing()
			if got := bob.missed(); got != nil {
				t.Errorf("bob was told %q", got)
			}
			if left := bob.rooms[room].rec; len(left.Accounted) != 0 || len(left.Missing) != 0 {
				t.Errorf("there is left %v, %v", left.Accounted, left.Missing)
			}
		})
	}
	t.Run("sent again in the next epoch", func(t *testing.T) {
		w := newWorld(t)
		room, alice, bob, _ := w.three("shared")
		alice.sendAlone(room, "one")
		w.must(func() error { return bob.Refresh(w.ctx, room) })
		alice.sendAlone(room, "two")
		w.send(alice, room, "three")
		w.lateMissing()
		for _, d := range w.all {
			if got := d.missed(); got != nil {
				t.Errorf("%s was told %q", d.ident.device, got)
			}
		}
	})
	t.Run("delivery receipts", func(t *testing.T) {
		w := newWorld(t)
		room, alice, bob, carol := w.telling(Limits{})
		for range 3 {
			w.send(alice, room, "to be received")
			w.later()
			w.send(bob, room, "an answer")
			w.later()
		}
		if w.receiptsOf(bob) == 0 {
			t.Fatal("bob sent no receipt: the test proves nothing")
		}
		w.lateMissing()
		for _, d := range []*testDevice{alice, bob, carol} {
			if got := d.missed(); got != nil {
				t.Errorf("%s was told %q", d.ident.device, got)
			}
		}
	})
	for _, history := range []string{"joined", "invited", "shared"} {
		t.Run("said before a newcomer was there, history "+history, func(t *testing.T) {
			w := newWorld(t)
			room, alice, _, _ := w.three(history)
			dave := w.device("dave", "DAVE1")
			w.all = slices.DeleteFunc(w.all, func(d *testDevice) bool { return d == dave })
			w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
			w.settle()
			w.sendHidden(alice, room, "before dave")
			w.all = append(w.all, dave)
			w.join(dave, room)
			w.settle()
			w.send(alice, room, "to dave, too")
			w.lateMissing()
			if dave.texts() == nil {
				t.Fatal("dave read nothing: the test proves nothing")
			}
			if got := dave.missed(); got != nil {
				t.Errorf("dave was told %q", got)
			}
			// From the next epoch on it is noticed.
			w.must(func() error { return alice.Refresh(w.ctx, room) })
			w.settle()
			w.sendHidden(alice, room, "kept from dave")
			w.send(alice, room, "after")
			w.lateMissing()
			if got, want := dave.missed(), []string{string(alice.UserID()) + " ALICE1 1"}; !slices.Equal(got, want) {
				t.Errorf("dave was told %q, want %q", got, want)
			}
		})
	}
}

// TestSendersOfRedactedMessagesAreBounded: a server can make up as many as it likes.
func TestSendersOfRedactedMessagesAreBounded(t *testing.T) {
	w := newWorld(t)
	room, _, bob, _ := w.three("shared")
	bob.mu.Lock()
	defer bob.mu.Unlock()
	r := bob.rooms[room]
	for i := range 3 * maxAccounted {
		r.notePruned(&Event{Type: rooms.TypeEncrypted, Sender: id.UserID(fmt.Sprint("@", i, ":x")), Content: []byte("{}")})
	}
	if n := len(r.rec.Accounted); n != maxAccounted {
		t.Errorf("%d senders are remembered", n)
	}
}

// TestNobodyPushesOutTheGapsOfOthers: of too many gaps the oldest of the user who has most of them goes.
func TestNobodyPushesOutTheGapsOfOthers(t *testing.T) {
	of := func(m missing) id.UserID { return m.User }
	list := []missing{{User: "@bob:x", Below: 1}}
	for i := range uint32(2 * maxMissing) {
		list = boundOf(append(list, missing{User: "@alice:x", Below: i}), maxMissing, of)
	}
	if len(list) != maxMissing || list[0].User != "@bob:x" || list[1].Below != maxMissing+1 {
		t.Errorf("%d gaps are kept, the first ones %+v", len(list), list[:2])
	}
	for i := range uint32(maxMissing / 2) {
		list = boundOf(append(list, missing{User: id.UserID(fmt.Sprint("@", i, ":x"))}), maxMissing, of)
	}
	if len(list) != maxMissing || list[0].User != "@bob:x" {
		t.Errorf("%d gaps are kept, the first one %+v", len(list), list[0])
	}
}

// TestARedactionHidesNoGap: a message that came redacted is laid to a gap, which is looked for all the same; and to
// none of a later epoch.
func TestARedactionHidesNoGap(t *testing.T) {
	// redacted has alice take back a message before bob sees it.
	redacted := func(w *world, room id.RoomID, alice *testDevice) {
		t.Helper()
		all := w.all
		w.all = []*testDevice{alice}
		evt := w.send(alice, room, "taken back")
		if _, err := alice.Redact(w.ctx, room, evt, ""); err != nil {
			t.Fatal(err)
		}
		w.all = all
		w.settle()
	}
	t.Run("of the epoch before: it is looked for", func(t *testing.T) {
		w := newWorld(t)
		room, alice, bob, _ := w.three("shared")
		redacted(w, room, alice)
		w.must(func() error { return alice.Refresh(w.ctx, room) })
		w.settle()
		stop := w.leaveOut(bob.hs.s, alice)
		w.send(alice, room, "left out")
		w.settle()
		stop()
		w.send(alice, room, "after")
		w.lateMissing()
		bob.wantTexts("after", "left out")
		if got := bob.missed(); got != nil {
			t.Errorf("bob was told %q", got)
		}
	})
	t.Run("of an earlier epoch", func(t *testing.T) {
		w := newWorld(t)
		room, alice, bob, _ := w.three("shared")
		redacted(w, room, alice)
		for range 2 {
			w.must(func() error { return alice.Refresh(w.ctx, room) })
			w.settle()
		}
		w.sendHidden(alice, room, "kept")
		w.send(alice, room, "after")
		w.lateMissing()
		if got, want := bob.missed(), []string{string(alice.UserID()) + " ALICE1 1"}; !slices.Equal(got, want) {
			t.Errorf("bob was told %q, want %q", got, want)
		}
	})
}

// TestAServerThatKeepsOneMessageNowAndThen: a further gap puts off nothing, each is told in its time.
func TestAServerThatKeepsOneMessageNowAndThen(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	for i := range 8 {
		w.sendHidden(alice, room, "kept")
		w.send(alice, room, "after")
		w.settle()
		w.now.add(missingWait * 3 / 4)
		w.settle()
		if n := len(bob.missed()); n < i {
			t.Errorf("after %d gaps, %d are told", i+1, n)
		}
	}
}

// TestGapsOfOneDeviceAreBounded: those beyond are one, and the first keep their time.
func TestGapsOfOneDeviceAreBounded(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	for range maxMissingOf + 3 {
		w.sendHidden(alice, room, "kept")
		w.send(alice, room, "after")
	}
	w.settle()
	if n := len(bob.rooms[room].rec.Missing); n != maxMissingOf {
		t.Errorf("%d gaps are kept", n)
	}
	w.lateMissing()
	one := string(alice.UserID()) + " ALICE1 "
	if got, want := bob.missed(), []string{one + "1", one + "1", one + "1", one + "4"}; !slices.Equal(got, want) {
		t.Errorf("bob was told %q, want %q", got, want)
	}
}

// TestALateMessageFillsItsOwnGap and no other one of its device.
func TestALateMessageFillsItsOwnGap(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	first := w.sendHidden(alice, room, "late")
	w.send(alice, room, "after")
	w.lateMissing()
	w.sendHidden(alice, room, "kept")
	w.send(alice, room, "last")
	w.settle()
	w.show(first)
	w.lateMissing()
	bob.wantTexts("after", "last", "late")
	if n := len(bob.missed()); n != 2 {
		t.Errorf("bob was told of %q, want two gaps", bob.missed())
	}
}

// TestAGapIsToldOnceItWasLookedFor: not before /sync answered after a start, nor while the history cannot be read;
// and a restart begins no new wait.
func TestAGapIsToldOnceItWasLookedFor(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	base := time.Now()
	bob.wall = func() time.Time { return base.Add(w.now.get()) }
	bob.hs.noHistory = room
	w.sendHidden(alice, room, "kept")
	w.send(alice, room, "after")
	for range 60 { // longer than one look is tried
		w.settle()
		w.now.add(20 * time.Second)
	}
	if got := bob.missed(); got != nil {
		t.Errorf("told without the history: %q", got)
	}
	bob.restart()
	bob.hs.noHistory = ""
	for range 5 {
		bob.Step(w.ctx)
		bob.Flush(w.ctx)
		if err := bob.Deliver(w.ctx); err != nil {
			t.Fatal(err)
		}
		w.now.add(missingPause)
	}
	if got := bob.missed(); got != nil {
		t.Errorf("told before /sync answered: %q", got)
	}
	asked := 0
	bob.hs.before = func(kind string) {
		if kind == "messages" {
			asked++
		}
	}
	w.settle()
	w.now.add(missingPause)
	w.settle()
	if n := len(bob.missed()); n != 1 || asked == 0 {
		t.Errorf("told %d times after the history was read %d times", n, asked)
	}
}

// TestAGapIsLookedForThoughOneWasJustBefore: the pause between two looks only puts it off.
func TestAGapIsLookedForThoughOneWasJustBefore(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.sendHidden(alice, room, "kept")
	w.send(alice, room, "after")
	w.settle()
	stop := w.leaveOut(bob.hs.s, alice)
	w.send(alice, room, "left out")
	w.settle()
	stop()
	w.send(alice, room, "last")
	w.lateMissing()
	w.now.add(missingPause)
	w.settle()
	bob.wantTexts("after", "last", "left out")
	if got, want := bob.missed(), []string{string(alice.UserID()) + " ALICE1 1"}; !slices.Equal(got, want) {
		t.Errorf("bob was told %q, want %q", got, want)
	}
}

// TestWhatTheDeviceGaveUpIsNotMissed: no server is blamed for a ciphertext that waited while too many did.
func TestWhatTheDeviceGaveUpIsNotMissed(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	bob.limits.Waiting = 1
	w.all = []*testDevice{alice, carol}
	w.must(func() error { return alice.Refresh(w.ctx, room) })
	w.settle()
	commit := alice.rooms[room].rec.Events[alice.headRef(room).String()]
	hidden := w.hide(func(e *Event) bool { return e.ID == commit })
	w.send(alice, room, "given up")
	w.send(alice, room, "given up, too")
	var waits []string
	for i := range whileLacking { // as the commit is asked for
		waits = append(waits, fmt.Sprint("waits ", i))
		w.send(alice, room, waits[i])
	}
	bob.turn()
	if got := bob.waiting(room); len(got) != whileLacking {
		t.Fatalf("%d wait: the test proves nothing", len(got))
	}
	w.all = []*testDevice{alice, bob, carol}
	w.show(hidden)
	w.settle()
	w.send(alice, room, "after")
	w.lateMissing()
	bob.wantTexts(append(waits, "after")...)
	if got := bob.missed(); got != nil {
		t.Errorf("bob was told %q", got)
	}
}

// TestARefusedMessageShowsWhatIsMissing: the ratchet moved, so nothing else will.
func TestARefusedMessageShowsWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.sendHidden(alice, room, "kept")
	w.all = []*testDevice{alice}
	evt := w.send(alice, room, "under another name")
	w.all = []*testDevice{alice, bob, carol}
	hidden := w.hide(func(e *Event) bool { return e.ID == evt })
	hidden.Sender = carol.UserID()
	w.show(hidden)
	w.settle(bob)
	w.send(alice, room, "after")
	w.lateMissing()
	bob.wantTexts("after")
	if got, want := bob.missed(), []string{string(alice.UserID()) + " ALICE1 1"}; !slices.Equal(got, want) {
		t.Errorf("bob was told %q, want %q", got, want)
	}
}
