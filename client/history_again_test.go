package client

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/archive"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// historyWaits makes a room with something to hand over, a second device of alice, and alice's
// first device, which is off.
func (w *world) historyWaits() (room id.RoomID, alice, second *testDevice) {
	w.t.Helper()
	room, alice, bob, _ := w.three("shared")
	w.verified(alice.UserID())
	w.send(bob, room, "before")
	second = w.device("alice", "ALICE2")
	w.settle()
	w.all = []*testDevice{second}
	return room, alice, second
}

// request is the id of what a device asked last.
func (d *testDevice) request(room id.RoomID) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rooms[room].rec.History.Request
}

// TestAskingAgainKeepsTheRequestThatIsOpen: who asks again before an answer has come gets
// that answer; who asks again later is answered when the giver's pause is over, and one
// request is answered once.
func TestAskingAgainKeepsTheRequestThatIsOpen(t *testing.T) {
	w := newWorld(t)
	room, alice, second := w.historyWaits()
	ask := func() string {
		t.Helper()
		w.must(func() error { _, err := second.AskHistory(w.ctx, room); return err })
		second.turn()
		return second.request(room)
	}
	first := ask()
	if again := ask(); again != first {
		t.Error("a request that is open was replaced at once")
	}
	second.skew = 2 * historyAgain
	if later := ask(); later == first {
		t.Error("a request that nobody answered was not replaced after minutes")
	}
	w.all = []*testDevice{alice, second}
	for len(second.history()) == 0 && w.now.get() < time.Hour {
		w.settle()
	}
	w.settle()
	if got := second.history(); len(got) != 1 || got[0].Messages != 1 || second.HistoryAsked(room) {
		t.Fatalf("the new device was told %+v", got)
	}
	ask()
	alice.turn()
	second.turn()
	if len(second.history()) != 1 || len(alice.tasks) != 1 {
		t.Errorf("the giver has %d tasks; the new device was told %d times", len(alice.tasks), len(second.history()))
	}
	w.now.add(4 * historyPause)
	w.settle()
	if len(second.history()) != 2 || len(alice.tasks) != 0 {
		t.Errorf("after the pause the giver has %d tasks; the new device was told %d times", len(alice.tasks), len(second.history()))
	}
	last := second.request(room)
	uploads := len(w.s.media)
	// The same request comes once more.
	req := &rooms.HistoryRequestContent{Room: room, Request: last, Device: second.DeviceID(), Suite: uint16(w.cs), Key: make(rooms.Bytes, 32)}
	req.Key[0] = 9
	if err := req.Sign(second.UserID(), second.ident.own().mlsKeys[w.cs]); err != nil {
		t.Fatal(err)
	}
	raw, err := rooms.Encode(req)
	if err != nil {
		t.Fatal(err)
	}
	to := map[id.UserID]map[id.DeviceID]json.RawMessage{alice.UserID(): {"ALICE1": raw}}
	if err := second.hs.SendToDevice(w.ctx, rooms.TypeHistoryRequest, "again", to); err != nil {
		t.Fatal(err)
	}
	w.now.add(24 * time.Hour / 2)
	w.settle()
	if got := len(w.s.media); got != uploads || len(alice.tasks) != 0 {
		t.Errorf("a request was answered again: %d uploads, were %d", got, uploads)
	}
}

// TestTheKeyOfARequestGoes: what nobody answers for a week cannot be answered later.
func TestTheKeyOfARequestGoes(t *testing.T) {
	w := newWorld(t)
	room, _, second := w.historyWaits()
	w.must(func() error { _, err := second.AskHistory(w.ctx, room); return err })
	second.turn()
	if !second.HistoryAsked(room) {
		t.Fatal("nobody was asked")
	}
	second.skew = historyAnswerTime + time.Minute
	second.turn()
	second.restart()
	if h := second.rooms[room].rec.History; h == nil || len(h.Key) != 0 || second.HistoryAsked(room) {
		t.Errorf("after a week there is %+v", h)
	}
}

// TestAHomeserverMayRefuseAFileTwice: a file that another server does not have yet
// comes all the same.
func TestAHomeserverMayRefuseAFileTwice(t *testing.T) {
	w := newWorld(t)
	room, alice, second := w.historyWaits()
	w.must(func() error { _, err := second.AskHistory(w.ctx, room); return err })
	w.all = []*testDevice{alice, second}
	second.turn()
	alice.turn()
	tries := 0
	var file []byte
	second.hs.stall = func(_ context.Context, mxc string) {
		w.s.mu.Lock()
		defer w.s.mu.Unlock()
		if tries++; tries == 1 {
			file = w.s.media[mxc]
			delete(w.s.media, mxc)
		} else if tries == 3 {
			w.s.media[mxc] = file
		}
	}
	for range 20 {
		second.turn()
		w.now.add(4 * time.Second)
	}
	if got := second.history(); tries != 3 || len(got) != 1 || got[0].Messages != 1 {
		t.Errorf("after %d tries the new device was told %+v", tries, got)
	}
}

// TestOnWhoseWord: whose word a message is shown on, an own device may say, nobody
// else; what was in a file stays marked as such from device to device.
func TestOnWhoseWord(t *testing.T) {
	w := newWorld(t)
	alice := w.device("alice", "ALICE1")
	me, bob, carol := alice.UserID(), id.UserID("@bob:"+testServer), id.UserID("@carol:"+testServer)
	own := HistorySource{User: me, Device: "ALICE2", Own: true}
	for name, tc := range map[string]struct {
		from     HistorySource
		sharedBy id.UserID
		file     bool
		want     HistorySource
	}{
		"an own device":                            {own, "", false, own},
		"an own device, shared by carol":           {own, carol, false, HistorySource{User: carol}},
		"an own device, from carol's file":         {own, carol, true, HistorySource{User: carol, File: true}},
		"an own device, from an own file":          {own, me, true, HistorySource{User: me, File: true}},
		"another user":                             {HistorySource{User: bob, Device: "B"}, "", false, HistorySource{User: bob, Device: "B"}},
		"another user, who says carol shared it":   {HistorySource{User: bob, Device: "B"}, carol, false, HistorySource{User: bob, Device: "B"}},
		"another user, who says it is mine":        {HistorySource{User: bob, Device: "B"}, me, true, HistorySource{User: bob, Device: "B"}},
		"a file that says it is mine":              {HistorySource{User: me, Device: "A", File: true}, "", false, HistorySource{User: me, Device: "A", File: true}},
		"a file of mine that says carol shared it": {HistorySource{User: me, Device: "A", File: true}, carol, false, HistorySource{User: me, Device: "A", File: true}},
	} {
		got := alice.givenMessage(&archive.Message{SharedBy: tc.sharedBy, FromFile: tc.file}, 0, tc.from)
		if *got.From != tc.want {
			t.Errorf("%s: shown as from %+v, want %+v", name, *got.From, tc.want)
		}
		// And an own device that gets it from this one has it from the same, or from this one.
		on := alice.givenMessage(archived(got), 0, own)
		if want := (HistorySource{User: tc.want.User, File: tc.want.File}); tc.want.Own && *on.From != own || !tc.want.Own && *on.From != want {
			t.Errorf("%s: handed on as from %+v", name, *on.From)
		}
	}
}

// TestARequestThatIsLostIsSentAgain: a to-device message may never come; the same request goes out once more, and again, until it is answered.
func TestARequestThatIsLostIsSentAgain(t *testing.T) {
	w := newWorld(t)
	room, alice, second := w.historyWaits()
	w.all = []*testDevice{alice, second}
	w.must(func() error { _, err := second.AskHistory(w.ctx, room); return err })
	lost := 0
	for range 2 {
		second.turn()
		w.s.mu.Lock()
		for key := range w.s.toDevice {
			if strings.HasSuffix(key, "/ALICE1") {
				lost += len(w.s.toDevice[key])
				w.s.toDevice[key] = nil
			}
		}
		w.s.mu.Unlock()
		w.now.add(2 * askAgainAfter)
	}
	if lost != 2 {
		t.Fatalf("%d requests were lost", lost)
	}
	first := second.request(room)
	for range 10 {
		w.settle()
		w.now.add(askAgainAfter)
	}
	if got := second.history(); len(got) != 1 || got[0].Messages != 1 || second.HistoryAsked(room) {
		t.Errorf("the new device was told %+v", got)
	}
	if first == "" {
		t.Error("there was no request")
	}
	w.now.add(askAgainMost)
	w.settle()
	if len(alice.tasks) != 0 || len(second.history()) != 1 {
		t.Errorf("after the answer the giver has %d tasks; the new device was told %d times", len(alice.tasks), len(second.history()))
	}
}

// TestOneEventThatIsGoneCostsNoOthers: what the homeserver does not show leaves nothing
// else out.
func TestOneEventThatIsGoneCostsNoOthers(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	content, err := rooms.Encode(&rooms.EncryptedContent{Algorithm: rooms.Algorithm, Ciphertext: rooms.Bytes{1}})
	if err != nil {
		t.Fatal(err)
	}
	const n = 350
	message := func(event id.EventID, i int) *archive.Message {
		return &archive.Message{
			Room: room, EventID: event, Sender: bob.UserID(), Device: "BOB1", Type: "m.room.message", ID: fmt.Sprint("m", i),
			Content: json.RawMessage(`{"msgtype":"m.text","body":"x"}`),
		}
	}
	var list []*archive.Message
	for i := range n {
		w.s.mu.Lock()
		evt := w.s.append(&Event{RoomID: room, Type: rooms.TypeEncrypted, Sender: bob.UserID(), Content: content})
		w.s.mu.Unlock()
		list = append(list, message(evt, i))
	}
	slices.Reverse(list)
	walk, end := alice.walk(room)
	defer end()
	from := HistorySource{User: alice.UserID(), Device: "ALICE2", Own: true}
	for _, chunk := range []struct {
		list           []*archive.Message
		added, dropped int
	}{
		{[]*archive.Message{list[0], message("$gone", n)}, 1, 1},
		{list[1:], n - 1, 0},
	} {
		if added, dropped, err := alice.addHistory(w.ctx, walk, chunk.list, from); err != nil || added != chunk.added || dropped != chunk.dropped {
			t.Errorf("%d were added, %d left out (%v); want %d and %d", added, dropped, err, chunk.added, chunk.dropped)
		}
	}
}

// TestWhatIsRedactedMeanwhileIsNotStored: what is redacted after it was compared, and
// before it is stored, is not stored.
func TestWhatIsRedactedMeanwhileIsNotStored(t *testing.T) {
	w := newWorld(t)
	room, alice, second := w.historyWaits()
	list, err := alice.Messages(w.ctx, room, "", 10)
	if err != nil || len(list) != 1 {
		t.Fatalf("alice has %d messages (%v)", len(list), err)
	}
	w.must(func() error { _, err := second.AskHistory(w.ctx, room); return err })
	second.turn()
	alice.turn()
	if err := second.SyncOnce(w.ctx, 0); err != nil {
		t.Fatal(err)
	}
	second.hs.before = func(kind string) {
		if kind != "messages" {
			return
		}
		second.hs.before = nil
		if _, err := alice.hs.Redact(w.ctx, room, list[0].EventID, "r", ""); err != nil {
			t.Error(err)
		}
		if err := second.SyncOnce(w.ctx, 0); err != nil {
			t.Error(err)
		}
		second.Step(w.ctx)
	}
	second.Exchange(w.ctx)
	if second.hs.before != nil {
		t.Error("nothing was compared")
	}
	if got := second.bodies(room); len(got) != 0 {
		t.Errorf("the new device has %q", got)
	}
}
