package client

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// sendAsking sends a text that asks for receipts.
func (w *world) sendAsking(d *testDevice, room id.RoomID, text string) (evt id.EventID) {
	w.t.Helper()
	w.must(func() (err error) {
		evt, err = d.SendWith(w.ctx, room, "m.room.message", map[string]string{"msgtype": "m.text", "body": text}, SendOptions{Receipts: true})
		return err
	})
	return evt
}

// receiptTimes are when a device sent its receipts, on the server's clock.
func (w *world) receiptTimes(d *testDevice) (out []time.Duration) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for _, evt := range w.s.log {
		if evt.Type == rooms.TypeReceipt && evt.Sender == d.UserID() {
			out = append(out, time.Duration(evt.Timestamp)*time.Millisecond)
		}
	}
	return out
}

// TestReceiptsOnRequest: in a large group a message is acknowledged if it asks for that, with all that came before it.
func TestReceiptsOnRequest(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.telling(Limits{ReceiptDevices: 2})
	w.oneClock()
	before := w.send(alice, room, "before")
	w.later()
	if n := w.receiptsOf(bob) + w.receiptsOf(carol); n != 0 {
		t.Fatalf("%d receipts that nobody asked for", n)
	}
	one := w.sendAsking(alice, room, "one")
	w.send(alice, room, "right after it")
	w.later()
	if got := alice.reached(room, before) + ", " + alice.reached(room, one); got != "+BOB1 +CAROL1, +BOB1 +CAROL1" {
		t.Errorf("after the request: %s", got)
	}
	if b, c := w.receiptsOf(bob), w.receiptsOf(carol); b != 1 || c != 1 {
		t.Errorf("%d and %d receipts for one request", b, c)
	}
	// The next answer waits, over a restart, and holds for what was said until then.
	for _, d := range w.all {
		d.restart()
	}
	two := w.sendAsking(alice, room, "two")
	three := w.sendAsking(alice, room, "three")
	for _, d := range w.all {
		d.restart()
	}
	w.later()
	w.later()
	w.later()
	if got := alice.reached(room, two) + ", " + alice.reached(room, three); got != "+BOB1 +CAROL1, +BOB1 +CAROL1" {
		t.Errorf("after the pause: %s", got)
	}
	for _, d := range []*testDevice{bob, carol} {
		times := w.receiptTimes(d)
		for i := 1; i < len(times); i++ {
			if pause := times[i] - times[i-1]; pause < 3*askedPause {
				t.Errorf("%s answered again after %s", d.ident.device, pause)
			}
		}
		if n := len(times); n < 2 || n > 3 {
			t.Errorf("%s sent %d receipts", d.ident.device, n)
		}
	}
	if _, err := bob.Delivery(w.ctx, room, two); !errors.Is(err, ErrNoReceipts) {
		t.Errorf("bob knows of alice's message: %v", err)
	}
}

// TestWhoAsksAllTheTimeIsAnsweredSeldom: a member makes the others send no more than it could send itself, and all members
// together no more than a small group sends.
func TestWhoAsksAllTheTimeIsAnsweredSeldom(t *testing.T) {
	for _, askers := range []int{1, 2} {
		t.Run(fmt.Sprint(askers), func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.telling(Limits{ReceiptDevices: 2})
			w.oneClock()
			start := w.now.get()
			for i := range 60 {
				for _, d := range []*testDevice{alice, carol}[:askers] {
					w.sendAsking(d, room, fmt.Sprint(i))
				}
				w.settle()
				w.now.add(10 * time.Second)
			}
			took := w.now.get() - start
			most := askers * (1 + int(took/(3*askedPause)))
			if n := w.receiptsOf(bob); n < 3 || n > most {
				t.Errorf("bob sent %d receipts in %s, at most %d are right", n, took, most)
			}
		})
	}
}

// TestAGroupsAskersAreBounded: each user has one entry, and there are not more of them than are answered in a while.
func TestAGroupsAskersAreBounded(t *testing.T) {
	w := newWorld(t)
	room, _, bob, _ := w.telling(Limits{ReceiptDevices: 2})
	bob.mu.Lock()
	defer bob.mu.Unlock()
	r := bob.rooms[room]
	e := r.head()
	for i := range 3 * maxAskers {
		for device := range uint32(2) {
			bob.asked(r, e, &Message{Sender: id.UserID(fmt.Sprintf("@u%d:%s", i, testServer)), Leaf: uint32(i)*2 + device, asks: true}, 0, true)
		}
	}
	if n := len(r.rec.Askers); n != maxAskers {
		t.Errorf("%d users who asked are kept", n)
	}
	bob.answered(r, e)
	w.now.add(askedPause * 3)
	if !bob.asked(r, e, &Message{Sender: "@new:" + testServer, asks: true}, 0, true) || len(r.rec.Askers) != 1 {
		t.Errorf("later: %d users", len(r.rec.Askers))
	}
}

// TestARequestThatOvertookIsAnsweredLater: what was missing when a request came is acknowledged when it comes.
func TestARequestThatOvertookIsAnsweredLater(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.telling(Limits{ReceiptDevices: 2})
	w.oneClock()
	w.all = []*testDevice{alice}
	first := w.send(alice, room, "first")
	hidden := w.hide(func(evt *Event) bool { return evt.ID == first })
	asking := w.sendAsking(alice, room, "asking")
	w.all = []*testDevice{alice, bob}
	w.later()
	if got := alice.reached(room, asking); got != "-BOB1 -CAROL1" {
		t.Errorf("while one is missing: %s", got)
	}
	w.show(hidden)
	w.later()
	if got := alice.reached(room, asking); got != "+BOB1 -CAROL1" {
		t.Errorf("after it came: %s", got)
	}
	w.send(alice, room, "unasked")
	w.later()
	if n := w.receiptsOf(bob) - questions(room, alice.UserID(), bob); n != 1 { // beside that it asks for the first
		t.Errorf("bob sent %d receipts", n)
	}
}

// TestARequestHasToFit: what does not fit into an event is refused before it is in the outbox, where nobody could be told.
func TestARequestHasToFit(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.three("shared")
	content := func(n int) map[string]string {
		return map[string]string{"msgtype": "m.text", "body": strings.Repeat("x", n)}
	}
	n := rooms.MaxPlaintext
	for ; n > 0; n-- {
		plain, err := contentJSON(content(n))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := checkedPlaintext(room, "m.room.message", plain, rooms.NewMessageID([16]byte{})); err == nil {
			break
		}
	}
	if _, err := alice.SendWith(w.ctx, room, "m.room.message", content(n), SendOptions{Receipts: true}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("the error is %v", err)
	}
}

// TestReceiptsOfAnOlderStore: what was kept in one record for all devices goes on to count.
func TestReceiptsOfAnOlderStore(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.telling(Limits{})
	w.all = []*testDevice{alice}
	evt := w.send(alice, room, "one")
	w.settle()
	msg, err := alice.Message(w.ctx, room, evt)
	if err != nil {
		t.Fatal(err)
	}
	ref := rooms.Hash(msg.Ref)
	var d delivery
	if err := alice.getJSON(w.ctx, deliveryKey(room, ref), &d); err != nil {
		t.Fatal(err)
	}
	if d.Devices, err = alice.receivers(w.ctx, room, ref, &d); err != nil || len(d.Devices) != 2 {
		t.Fatalf("%d devices, %v", len(d.Devices), err)
	}
	for i := range d.Devices {
		if d.Devices[i].Device == "CAROL1" {
			d.Devices[i].Count = 1
		}
	}
	if err := alice.st.DeleteKV(w.ctx, receiversKey(room, ref)); err != nil {
		t.Fatal(err)
	}
	if err := alice.putJSON(w.ctx, deliveryKey(room, ref), &d); err != nil {
		t.Fatal(err)
	}
	if got := alice.reached(room, evt); got != "-BOB1 +CAROL1" {
		t.Errorf("before: %s", got)
	}
	w.all = []*testDevice{alice, bob}
	two := w.send(alice, room, "two")
	w.later()
	if got := alice.reached(room, evt) + ", " + alice.reached(room, two); got != "+BOB1 +CAROL1, +BOB1 -CAROL1" {
		t.Errorf("after: %s", got)
	}
	_ = carol
	// What is kept of an epoch goes with it.
	if err := alice.forgetDelivery(w.ctx, room, ref); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"delivery/", "receivers/", "received/"} {
		if keys, err := alice.st.KVKeys(w.ctx, prefix, 10); err != nil || len(keys) != 0 {
			t.Errorf("left: %v, %v", keys, err)
		}
	}
	if _, err := alice.st.GetKV(w.ctx, deliveryKey(room, ref)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the record is still there: %v", err)
	}
}
