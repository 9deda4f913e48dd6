package client

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// telling is a room of three whose devices send delivery receipts.
func (w *world) telling(limits Limits) (room id.RoomID, alice, bob, carol *testDevice) {
	w.t.Helper()
	room, alice, bob, carol = w.three("shared")
	for _, d := range w.all {
		d.tells, d.bounds = true, limits
		d.restart()
	}
	w.settle()
	return room, alice, bob, carol
}

// later lets time pass in which everybody acts, longer than receipts wait.
func (w *world) later() {
	w.t.Helper()
	for range 10 {
		w.settle()
		w.now.add(receiptEvery / 5)
	}
}

func (w *world) receiptsOf(d *testDevice) (n int) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for _, evt := range w.s.log {
		if evt.Type == rooms.TypeReceipt && evt.Sender == d.UserID() {
			n++
		}
	}
	return n
}

// reached are the devices that have a message, as its sender knows.
func (d *testDevice) reached(room id.RoomID, event id.EventID) string {
	d.w.t.Helper()
	list, err := d.Delivery(d.w.ctx, room, event)
	if err != nil {
		d.w.t.Fatal(err)
	}
	var out []string
	for _, to := range list {
		mark := "-"
		if to.Received {
			mark = "+"
		}
		out = append(out, mark+string(to.Device))
	}
	return strings.Join(out, " ")
}

func TestASenderSeesWhoHasReceived(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.telling(Limits{})
	w.all = []*testDevice{alice, bob}
	first := w.send(alice, room, "one")
	if got := alice.reached(room, first); got != "-BOB1 -CAROL1" {
		t.Errorf("at once: %s", got)
	}
	w.later()
	if got := alice.reached(room, first); got != "+BOB1 -CAROL1" {
		t.Errorf("after bob received it: %s", got)
	}
	// Carol comes back: one receipt for all that she missed.
	last := w.send(alice, room, "two")
	w.later()
	w.all = append(w.all, carol)
	w.later()
	for _, evt := range []id.EventID{first, last} {
		if got := alice.reached(room, evt); got != "+BOB1 +CAROL1" {
			t.Errorf("in the end: %s", got)
		}
	}
	if n := w.receiptsOf(carol); n != 1 {
		t.Errorf("carol sent %d receipts, want 1", n)
	}
	if n := w.receiptsOf(alice); n != 0 {
		t.Errorf("alice sent %d receipts for receipts", n)
	}
	for _, d := range w.all { // silent: nobody is shown a receipt
		if list, err := d.Messages(w.ctx, room, "", 10); err != nil || len(list) != 2 {
			t.Errorf("%s has %d messages (%v)", d.ident.device, len(list), err)
		}
	}
	if !slices.ContainsFunc(alice.got, func(u Update) bool {
		told, ok := u.(*Delivered)
		return ok && told.Room == room && told.User == carol.UserID() && told.Device == "CAROL1"
	}) {
		t.Error("alice was not told of carol's receipt")
	}
	alice.restart()
	if got := alice.reached(room, last); got != "+BOB1 +CAROL1" {
		t.Errorf("after a restart: %s", got)
	}
	if _, err := bob.Delivery(w.ctx, room, last); err == nil {
		t.Error("bob knows who received a message of alice's")
	}
}

func TestReceiptsAreRare(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.telling(Limits{})
	start := w.now.get()
	for range 20 {
		w.send(alice, room, "again")
		w.settle()
	}
	w.later()
	most := int((w.now.get()-start)/receiptEvery) + 1
	if n := w.receiptsOf(bob); n == 0 || n > most {
		t.Errorf("bob sent %d receipts in %s, at most %d are right", n, w.now.get()-start, most)
	}
	w = newWorld(t)
	room, alice, bob, _ = w.telling(Limits{ReceiptDevices: 2})
	evt := w.send(alice, room, "in a large room")
	w.later()
	if n := w.receiptsOf(bob); n != 0 {
		t.Errorf("bob sent %d receipts in a group above the limit", n)
	}
	if _, err := alice.Delivery(w.ctx, room, evt); err == nil {
		t.Error("alice knows who received it")
	}
}

// TestAReceiptSpeaksForItsDeviceAlone: what was never sent is not received, and nobody speaks for another device.
func TestAReceiptSpeaksForItsDeviceAlone(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.telling(Limits{})
	w.all = []*testDevice{alice}
	evt := w.send(alice, room, "one")
	w.all = []*testDevice{alice, bob}
	carol.tells, bob.tells = false, false
	bob.restart()
	w.settle()
	msg, err := alice.Message(w.ctx, room, evt)
	if err != nil {
		t.Fatal(err)
	}
	for _, ack := range []rooms.Ack{
		{Ref: rooms.Hash(msg.Ref), Leaf: msg.Leaf, Generation: msg.Generation + 1}, // never sent
		{Ref: rooms.Hash(msg.Ref), Leaf: msg.Leaf + 1, Generation: msg.Generation}, // of another sender
		{Ref: rooms.Hash{1}, Leaf: msg.Leaf, Generation: msg.Generation},           // of another epoch
	} {
		w.forgeReceipt(bob, room, ack)
	}
	w.settle()
	if got := alice.reached(room, evt); got != "-BOB1 -CAROL1" {
		t.Errorf("after forged receipts: %s", got)
	}
	w.forgeReceipt(bob, room, rooms.Ack{Ref: rooms.Hash(msg.Ref), Leaf: msg.Leaf, Generation: msg.Generation})
	w.settle()
	if got := alice.reached(room, evt); got != "+BOB1 -CAROL1" {
		t.Errorf("after bob's own word: %s", got)
	}
}

// forgeReceipt has a device say what it is told to.
func (w *world) forgeReceipt(d *testDevice, room id.RoomID, acks ...rooms.Ack) {
	w.t.Helper()
	w.forge(d, room, &rooms.ReceiptPayload{Acks: acks})
}

func (w *world) forge(d *testDevice, room id.RoomID, receipt *rooms.ReceiptPayload) {
	w.t.Helper()
	payload, err := rooms.Encode(receipt)
	if err != nil {
		w.t.Fatal(err)
	}
	var content json.RawMessage
	w.must(func() (err error) {
		content, err = d.EncryptEvent(w.ctx, room, rooms.TypeReceipt, payload)
		return err
	})
	if _, err := d.hs.Send(w.ctx, room, rooms.TypeReceipt, time.Now().String(), content); err != nil {
		w.t.Fatal(err)
	}
}

// TestAMissingMessageIsNotReceived: a receipt ends before the first message that did not come, until it does.
func TestAMissingMessageIsNotReceived(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.telling(Limits{})
	w.all = []*testDevice{alice, bob}
	one := w.send(alice, room, "one")
	w.later()
	w.all = []*testDevice{alice}
	two := w.send(alice, room, "two")
	hidden := w.hide(func(evt *Event) bool { return evt.ID == two })
	three := w.send(alice, room, "three")
	w.all = []*testDevice{alice, bob}
	w.later()
	if got := alice.reached(room, one) + ", " + alice.reached(room, two) + ", " + alice.reached(room, three); got != "+BOB1 -CAROL1, -BOB1 -CAROL1, -BOB1 -CAROL1" {
		t.Errorf("while the second is missing: %s", got)
	}
	w.show(hidden)
	w.later()
	if got := alice.reached(room, two) + ", " + alice.reached(room, three); got != "+BOB1 -CAROL1, +BOB1 -CAROL1" {
		t.Errorf("after it came: %s", got)
	}
}

// TestReceiptsOverAChangeOfEpoch: a receipt that waited while the group changed is made anew.
func TestReceiptsOverAChangeOfEpoch(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.telling(Limits{})
	evt := w.send(alice, room, "before")
	w.settle()
	w.must(func() error { return alice.Kick(w.ctx, room, carol.UserID(), "") })
	w.all = []*testDevice{alice, bob}
	w.later()
	if got := alice.reached(room, evt); !strings.Contains(got, "+BOB1") {
		t.Errorf("after the change: %s", got)
	}
	for _, d := range w.all {
		d.mu.Lock()
		for _, row := range d.roomRows(room) {
			if row.item.Kind == kindReceipt {
				t.Errorf("%s has a receipt in its outbox", d.ident.device)
			}
		}
		d.mu.Unlock()
	}
}

// TestReceiptsTakeNoPlaceOfMessages: they go last, all rooms share one pace, and what the homeserver says of the rate of a
// receipt holds up no message.
func TestReceiptsTakeNoPlaceOfMessages(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.telling(Limits{})
	c := bob.Client
	c.mu.Lock()
	receipt := &outRow{item: &store.OutboxItem{ID: 1, Room: room, Kind: kindReceipt, State: stateReady}}
	proof := &outRow{item: &store.OutboxItem{ID: 2, Room: room, Kind: kindProof, State: stateReady}}
	c.settleRow(w.ctx, receipt, "", &RateLimitError{RetryAfter: time.Minute})
	if receipt.held < c.mono()+time.Minute || c.limited > c.mono() || c.receiptsAt < c.mono()+time.Minute {
		t.Errorf("after a refused receipt: held %v, limited %v, receipts from %v, now %v", receipt.held, c.limited, c.receiptsAt, c.mono())
	}
	c.rows = []*outRow{receipt, proof}
	if row, _ := c.nextRow(); row != proof {
		t.Errorf("next is %+v", row)
	}
	c.rows = nil
	for kind := range map[string]bool{kindCommit: true, kindProof: true, kindWelcome: true, kindChat: true} {
		if kindPriority(kind) >= kindPriority(kindReceipt) {
			t.Errorf("%s goes after receipts", kind)
		}
	}
	c.receiptsAt = c.mono() + receiptPace
	r := c.rooms[room]
	r.receiptAt = 0
	if c.receiptDue(r) != c.receiptsAt {
		t.Error("a room has a pace of its own")
	}
	c.receiptsAt = 0
	c.mu.Unlock()
	// One receipt is made, and another room's would wait.
	w.send(alice, room, "one")
	w.later()
	if n := w.receiptsOf(bob); n != 1 {
		t.Errorf("bob sent %d receipts", n)
	}
	if c.mu.Lock(); c.receiptsAt == 0 {
		t.Error("the receipt counts for no pace")
	}
	c.mu.Unlock()
}

// TestAReceiptThatSaysNothingNewIsNotTold: of a receipt there is one word, and none if it says what was known.
func TestAReceiptThatSaysNothingNewIsNotTold(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.telling(Limits{})
	w.send(alice, room, "one")
	w.send(alice, room, "two")
	w.later()
	told := func() (n int) {
		for _, u := range alice.got {
			if d, ok := u.(*Delivered); ok && d.User == bob.UserID() {
				n++
			}
		}
		return n
	}
	receipts := w.receiptsOf(bob) // both in one, unless somebody's commit lets more time pass in between
	if n := told(); n != receipts || n == 0 {
		t.Fatalf("alice was told %d times, and bob sent %d receipts", n, receipts)
	}
	alice.mu.Lock()
	r := alice.rooms[room]
	e := r.head()
	payload, err := rooms.Encode(&rooms.ReceiptPayload{Acks: []rooms.Ack{{Ref: rooms.Hash(e.ref), Leaf: uint32(e.group.OwnLeafIndex()), Generation: 0}}})
	if err != nil {
		t.Fatal(err)
	}
	b := &batch{}
	alice.handleDelivery(w.ctx, r, e, &Event{Sender: bob.UserID()}, &Message{Type: rooms.TypeReceipt, Sender: bob.UserID(), Device: "BOB1", Content: payload}, b)
	if err := alice.commitBatch(w.ctx, r, b); err != nil {
		t.Error(err)
	}
	alice.mu.Unlock()
	w.settle()
	if n := told(); n != receipts {
		t.Errorf("alice was told %d times in the end, of %d receipts", n, receipts)
	}
}
