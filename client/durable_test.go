package client

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestBanThatWasSeenHoldsBackWhatIsEncryptedAlready(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	alice.hs.fail = &RateLimitError{RetryAfter: time.Second} // encrypted for the epoch with bob in it, not sent yet
	alice.sendAlone(room, "late")
	if rows := alice.roomRowsOf(room); rows[0].item.State != stateReady {
		t.Fatalf("the message is %s, want it encrypted", rows[0].item.State)
	}
	w.s.mu.Lock()
	key := string(bob.UserID())
	w.s.append(&Event{RoomID: room, Type: rooms.TypeMember, StateKey: &key, Sender: carol.UserID(), Content: json.RawMessage(`{"membership":"ban"}`)})
	before := len(w.s.log)
	w.s.mu.Unlock()
	if err := alice.SyncOnce(w.ctx, 0); err != nil {
		t.Fatal(err)
	}
	w.now.add(2 * time.Second)
	alice.Flush(w.ctx) // the engine has not looked at the ban yet
	if len(w.s.log) != before {
		t.Fatal("a message that a banned device can read was sent after the ban was seen")
	}
	w.settle()
	carol.wantTexts("late")
	bob.wantTexts()
}

// sendAlone sends a message while nobody else does anything.
func (d *testDevice) sendAlone(room id.RoomID, text string) {
	d.w.t.Helper()
	ctx, cancel := context.WithCancel(d.w.ctx)
	cancel() // queue it and go
	if _, err := d.SendText(ctx, room, text); !errors.Is(err, context.Canceled) {
		d.w.t.Fatal(err)
	}
	d.Step(d.w.ctx)
	d.Flush(d.w.ctx)
}

func TestDeviceChangeHoldsMessagesUntilItWasLookedAt(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	alice.ident.changed(bob.UserID())
	alice.mu.Lock()
	why := alice.blockedBy(room)
	alice.mu.Unlock()
	if why == nil {
		t.Fatal("messages go out while bob's devices are not known")
	}
	w.settle()
	w.send(alice, room, "after")
	w.settle()
	bob.wantTexts("after")
}

func TestClosingLosesNoMessage(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	alice.sendAlone(room, "kept")
	if err := bob.SyncOnce(w.ctx, 0); err != nil {
		t.Fatal(err)
	}
	bob.mu.Lock()
	items, err := bob.st.Inbox(w.ctx, room)
	if err != nil || len(items) == 0 {
		t.Fatalf("%d events in the inbox (%v)", len(items), err)
	}
	gone, cancel := context.WithCancel(w.ctx)
	cancel()
	for _, item := range items {
		if _, err := bob.process(gone, bob.rooms[room], item); err != nil {
			t.Error(err)
		}
	}
	bob.mu.Unlock()
	bob.restart()
	w.settle()
	bob.wantTexts("kept")
}

func TestRoomThatHadAGroupNeverGoesBack(t *testing.T) {
	w := newWorld(t)
	room, _, bob, _ := w.three("shared")
	// The server says that bob left and came back to an unencrypted room.
	bob.mu.Lock()
	r := bob.rooms[room]
	b := &batch{}
	bob.removed(r, "", b)
	if err := bob.commitBatch(w.ctx, r, b); err != nil {
		t.Fatal(err)
	}
	r.comeBack()
	r.state = newRoomState(room)
	r.state.Known = true
	bob.mu.Unlock()
	if !bob.IsMLS(room) {
		t.Error("the room counts as unencrypted: its messages would leave in clear")
	}
}

func TestPanicRefusesTheEventOnly(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	alice.sendAlone(room, "first")
	bob.mu.Lock()
	bob.rooms[room].spoke = nil // writing to it panics
	bob.mu.Unlock()
	bob.turn()
	if n := bob.Refusals()[string(rulePanic)]; n != 1 {
		t.Fatalf("%d events refused by %s, want 1", n, rulePanic)
	}
	w.send(alice, room, "second")
	w.settle()
	bob.wantTexts("second")
}

func TestWarningsAreNotUsedUp(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.three("shared")
	alice.mu.Lock()
	defer alice.mu.Unlock()
	r := alice.rooms[room]
	for i := range 2 * maxWarned {
		alice.warn(r, string(rune(i)), &Warning{Rule: "x"})
	}
	before := len(alice.updates)
	alice.warn(r, "downgrade", &Warning{Rule: string(rooms.RuleAlgorithmDowngrade)})
	if len(alice.updates) != before+1 {
		t.Error("after many warnings the next is not told")
	}
	if len(r.rec.Warned) > maxWarned {
		t.Errorf("%d keys are remembered", len(r.rec.Warned))
	}
}
