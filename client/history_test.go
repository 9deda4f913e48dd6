package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/sealed"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// verified lets all devices know the master key of a user to be the user's.
func (w *world) verified(user id.UserID) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.users[user].known = rooms.Known{Verified: true}
}

// asking logs a device in that asks for history.
func (w *world) asking(user, device string) *testDevice {
	w.t.Helper()
	d := w.device(user, device)
	w.all = w.all[:len(w.all)-1]
	d.asks = true
	d.restart()
	w.all = append(w.all, d)
	return d
}

// bodies are the texts of a room that a device has, oldest first.
func (d *testDevice) bodies(room id.RoomID) (out []string) {
	d.w.t.Helper()
	list, err := d.Messages(d.w.ctx, room, "", 1000)
	if err != nil {
		d.w.t.Fatal(err)
	}
	for _, m := range list {
		out = append(out, m.Body())
	}
	return out
}

// received is what a device was told of history.
func (d *testDevice) history() (out []*HistoryReceived) {
	for _, u := range d.got {
		if h, ok := u.(*HistoryReceived); ok {
			out = append(out, h)
		}
	}
	return out
}

func TestNewDeviceGetsTheHistoryFromAnOwnDevice(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.verified(alice.UserID())
	w.send(bob, room, "planted one")
	w.send(alice, room, "planted two")
	w.settle()
	second := w.asking("alice", "ALICE2")
	w.settle()
	w.send(bob, room, "planted three")
	w.settle()
	if got, want := second.bodies(room), []string{"planted one", "planted two", "planted three"}; !slices.Equal(got, want) {
		t.Fatalf("the new device has %q, want %q", got, want)
	}
	second.wantTexts("planted three") // the handler is not told what is old
	list, err := second.Messages(w.ctx, room, "", 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list[:2] {
		if m.From == nil || *m.From != (HistorySource{User: alice.UserID(), Device: "ALICE1", Own: true}) || m.Timestamp == 0 {
			t.Errorf("%q came from %+v", m.Body(), m.From)
		}
	}
	if list[0].Sender != bob.UserID() || list[1].Sender != alice.UserID() || list[2].From != nil {
		t.Errorf("senders are %s and %s, the last came from %+v", list[0].Sender, list[1].Sender, list[2].From)
	}
	// Paging goes on into what was given.
	if older, err := second.Messages(w.ctx, room, list[1].EventID, 10); err != nil || len(older) != 1 || older[0].EventID != list[0].EventID {
		t.Errorf("before the second message are %v (%v)", older, err)
	}
	got := second.history()
	if len(got) != 1 || got[0].Messages != 2 || !got[0].Last || got[0].Device != "ALICE1" {
		t.Errorf("the new device was told %+v", got)
	}
	if second.HistoryAsked(room) {
		t.Error("the new device still waits for an answer")
	}
	if raw, err := second.st.Room(w.ctx, room); err != nil || bytes.Contains(raw, []byte(`"key":"`)) && second.rooms[room].rec.History.Key != nil {
		t.Errorf("the key of the request is still there (%v)", err)
	}
	second.restart()
	if len(second.bodies(room)) != 3 {
		t.Error("the history is gone after a restart")
	}
	w.noPlaintext("planted")
}

// noPlaintext looks for a word in everything the server has.
func (w *world) noPlaintext(word string) {
	w.t.Helper()
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for mxc, data := range w.s.media {
		if bytes.Contains(data, []byte(word)) {
			w.t.Errorf("the media %s shows %q", mxc, word)
		}
	}
	for _, evt := range w.s.log {
		if bytes.Contains(evt.Content, []byte(word)) {
			w.t.Errorf("the event %s shows %q", evt.ID, word)
		}
	}
}

func TestHistoryIsGivenOnlyToVerifiedOwnDevices(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(w *world, alice, second *testDevice)
		raw    func(req *rooms.HistoryRequestContent)
		from   string // who asks, if not an own device
		refuse bool
	}{
		"an own verified device":                {},
		"a device that nobody signed":           {change: func(w *world, _, second *testDevice) { second.ident.own().signed = false }, refuse: true},
		"a master key that was seen first only": {change: func(w *world, alice, _ *testDevice) { w.s.users[alice.UserID()].known = rooms.Known{} }, refuse: true},
		"a master key that is not the one known": {change: func(w *world, alice, _ *testDevice) {
			w.s.users[alice.UserID()].known = rooms.Known{Verified: true, Master: make([]byte, 32)}
		}, refuse: true},
		"a device that is gone":       {change: func(w *world, _, second *testDevice) { second.ident.own().gone = true }, refuse: true},
		"a request with another key":  {raw: func(req *rooms.HistoryRequestContent) { req.Key[0] ^= 1 }, refuse: true},
		"a request of another device": {raw: func(req *rooms.HistoryRequestContent) { req.Device = "ALICE1" }, refuse: true},
		"another user":                {from: "bob", refuse: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, _ := w.three("shared")
			w.verified(alice.UserID())
			w.send(bob, room, "one")
			second := w.device("alice", "ALICE2")
			w.settle()
			if tc.change != nil {
				tc.change(w, alice, second)
			}
			asker := second
			if tc.from == "bob" {
				asker = bob
			}
			key, err := rooms.NewHistoryKey(newSeeded("history"))
			if err != nil {
				t.Fatal(err)
			}
			public, err := rooms.HistoryPublicKey(key)
			if err != nil {
				t.Fatal(err)
			}
			req := &rooms.HistoryRequestContent{Room: room, Request: "r", Device: asker.DeviceID(), Suite: uint16(w.cs), Key: public}
			if err := req.Sign(asker.UserID(), asker.ident.own().mlsKeys[w.cs]); err != nil {
				t.Fatal(err)
			}
			if tc.raw != nil {
				tc.raw(req)
			}
			raw, err := rooms.Encode(req)
			if err != nil {
				t.Fatal(err)
			}
			before := len(w.s.media)
			to := map[id.UserID]map[id.DeviceID]json.RawMessage{alice.UserID(): {"ALICE1": raw}}
			if err := asker.hs.SendToDevice(w.ctx, rooms.TypeHistoryRequest, "t", to); err != nil {
				t.Fatal(err)
			}
			w.all = []*testDevice{alice}
			w.settle()
			if gave := len(w.s.media) > before; gave == tc.refuse {
				t.Errorf("history was given: %v", gave)
			}
			if alice.mu.Lock(); len(alice.tasks) > 0 {
				t.Errorf("%d tasks are left", len(alice.tasks))
			}
			alice.mu.Unlock()
		})
	}
}

// TestHistoryIsComparedWithTheHomeserver: a device that gives what was never sent, or
// sent by others, or taken back, is not believed.
func TestHistoryIsComparedWithTheHomeserver(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.verified(alice.UserID())
	real := w.send(bob, room, "real")
	redacted := w.send(bob, room, "taken back")
	foreign := w.send(bob, room, "said by bob")
	w.settle()
	w.s.mu.Lock()
	for _, evt := range w.s.log {
		if evt.ID == redacted {
			evt.Content = json.RawMessage(`{}`)
		}
	}
	state := w.s.log[0].ID
	w.s.mu.Unlock()
	put := func(event id.EventID, sender id.UserID, mid, body string) {
		t.Helper()
		msg := &Message{
			Room: room, EventID: event, Sender: sender, Device: "X", Type: "m.room.message", ID: mid,
			Content: json.RawMessage(fmt.Sprintf(`{"msgtype":"m.text","body":%q}`, body)),
		}
		raw, err := json.Marshal(msg)
		if err != nil {
			t.Fatal(err)
		}
		if err := alice.st.AddTimeline(w.ctx, &store.TimelineItem{Room: room, EventID: event, Mid: mid, Sender: sender, Type: msg.Type, Data: raw}); err != nil {
			t.Fatal(err)
		}
	}
	put("$made-up", bob.UserID(), "m1", "made up")
	put(foreign, alice.UserID(), "m2", "said by alice")
	put(state, bob.UserID(), "m3", "in a state event")
	second := w.asking("alice", "ALICE2")
	w.settle()
	if got := second.bodies(room); !slices.Equal(got, []string{"real"}) {
		t.Errorf("the new device has %q", got)
	}
	if got := second.history(); len(got) != 1 || got[0].Dropped != 4 || got[0].Messages != 1 {
		t.Errorf("it was told %+v", got[0])
	}
	if msg, err := second.Message(w.ctx, room, real); err != nil || msg.Sender != bob.UserID() {
		t.Errorf("the real one is %+v (%v)", msg, err)
	}
}

// TestHistoryGoesOnAfterACrash: what is too much for one file comes in several, and
// neither end loses its place when it is killed.
func TestHistoryGoesOnAfterACrash(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.verified(alice.UserID())
	const n = 180
	var want []string
	for i := range n {
		body := fmt.Sprintf("%d %s", i, strings.Repeat("x", 39_000))
		want = append(want, body)
		content, err := rooms.Encode(&rooms.EncryptedContent{Algorithm: rooms.Algorithm, Ciphertext: rooms.Bytes{1}})
		if err != nil {
			t.Fatal(err)
		}
		w.s.mu.Lock()
		evt := w.s.append(&Event{RoomID: room, Type: rooms.TypeEncrypted, Sender: bob.UserID(), Content: content})
		w.s.mu.Unlock()
		raw, err := json.Marshal(&Message{
			Room: room, EventID: evt, Sender: bob.UserID(), Device: "BOB1", Type: "m.room.message", ID: fmt.Sprint("m", i),
			Content: json.RawMessage(fmt.Sprintf(`{"msgtype":"m.text","body":%q}`, body)),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := alice.st.AddTimeline(w.ctx, &store.TimelineItem{Room: room, EventID: evt, Mid: fmt.Sprint("m", i), Sender: bob.UserID(), Type: "m.room.message", Data: raw}); err != nil {
			t.Fatal(err)
		}
	}
	second := w.asking("alice", "ALICE2")
	// The giver is killed when it has sent the second part and has not noted it, the
	// taker when it is about to fetch its second part.
	sent, fetched := 0, 0
	var killed []string
	kill := func(what string) {
		killed = append(killed, what)
		panic("killed")
	}
	queue := fmt.Sprintf("%s/%s", second.UserID(), second.DeviceID())
	alice.hs.after = func(kind string) error {
		if q := w.s.toDevice[queue]; kind == "to-device" && len(q) > 0 && q[len(q)-1].Type == rooms.TypeHistoryBundle {
			if sent++; sent == 2 {
				kill("giver")
			}
		}
		return nil
	}
	second.hs.before = func(kind string) {
		if kind == "download" && sent > 0 {
			if fetched++; fetched == 2 {
				kill("taker")
			}
		}
	}
	for range 40 {
		w.order()
		for _, d := range w.all {
			func() {
				defer func() {
					if what := recover(); what == "killed" {
						d.restart()
						if d == alice && (len(d.tasks) != 1 || d.tasks[0].Part != 1) {
							t.Errorf("the giver goes on with %+v", d.tasks)
						}
					} else if what != nil {
						panic(what)
					}
				}()
				d.turn()
			}()
		}
		w.now.add(w.pace * 16)
	}
	if got := second.bodies(room); !slices.Equal(got, want) {
		t.Fatalf("the new device has %d messages, want %d in order", len(got), n)
	}
	// What it was told of the first part went with it, and the second counts once.
	if got := second.history(); len(got) != 2 || !got[1].Last {
		t.Errorf("it was told of %d parts", len(got))
	}
	if slices.Sort(killed); !slices.Equal(killed, []string{"giver", "taker"}) || sent != 4 {
		t.Errorf("%v were killed, %d parts were sent", killed, sent)
	}
}

// TestWhatADeviceOpenedItselfCounts: a message that a device opens takes the place of
// what it was told of it before.
func TestWhatADeviceOpenedItselfCounts(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	carol := w.all[2]
	w.all = w.all[:2]
	evt := w.send(bob, room, "as it was sent")
	w.settle()
	real, err := alice.Message(w.ctx, room, evt)
	if err != nil {
		t.Fatal(err)
	}
	told := *real
	told.Content, told.From = json.RawMessage(`{"msgtype":"m.text","body":"as somebody told"}`), &HistorySource{User: alice.UserID()}
	item, err := historyItem(&told)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := carol.storeHistory(w.ctx, room, []*store.TimelineItem{item}); err != nil || n != 1 {
		t.Fatalf("stored %d (%v)", n, err)
	}
	carol.askHistory = true
	if list := carol.toAsk(w.ctx); !slices.Contains(list, room) {
		t.Error("what came from elsewhere keeps carol from asking")
	}
	carol.askHistory = false
	carol.wantTexts()
	carol.turn()
	carol.wantTexts("as it was sent")
	if got := carol.bodies(room); !slices.Equal(got, []string{"as it was sent"}) {
		t.Errorf("carol has %q", got)
	}
	// And nobody can put something else in the place of what was opened.
	if n, err := carol.storeHistory(w.ctx, room, []*store.TimelineItem{item}); err != nil || n != 0 {
		t.Errorf("stored %d (%v)", n, err)
	}
}

func TestExportAndImport(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	elsewhere := w.createRoom(alice, CreateOptions{})
	w.send(bob, room, "planted one")
	taken := w.send(bob, room, "planted and taken back")
	w.send(alice, room, "planted two")
	w.send(alice, elsewhere, "planted elsewhere")
	w.settle()
	secret := sealed.Secret{Key: bytes.Repeat([]byte{7}, sealed.KeySize)}
	var file bytes.Buffer
	if n, err := alice.Export(w.ctx, &file, secret, nil); err != nil || n != 4 {
		t.Fatalf("exported %d messages (%v)", n, err)
	}
	raw := file.Bytes()
	if bytes.Contains(raw, []byte("planted")) {
		t.Error("the file shows what is in it")
	}
	w.s.mu.Lock()
	for _, evt := range w.s.log {
		if evt.ID == taken {
			evt.Content = json.RawMessage(`{}`)
		}
	}
	w.s.mu.Unlock()
	second := w.device("alice", "ALICE2")
	w.settle()
	if got := second.bodies(room); len(got) != 0 {
		t.Fatalf("the new device has %q before the import", got)
	}
	own := HistorySource{User: alice.UserID(), Device: "ALICE1", File: true} // nobody signed that it is hers
	for _, want := range []Imported{{By: own, Messages: 3, Dropped: 1}, {By: own, Known: 3, Dropped: 1}} {
		if got, err := second.Import(w.ctx, bytes.NewReader(raw), secret); err != nil || *got != want {
			t.Errorf("imported %+v (%v), want %+v", got, err, want)
		}
	}
	if got := second.bodies(room); !slices.Equal(got, []string{"planted one", "planted two"}) {
		t.Errorf("the new device has %q", got)
	}
	if got := second.bodies(elsewhere); !slices.Equal(got, []string{"planted elsewhere"}) {
		t.Errorf("of the other room it has %q", got)
	}
	list, err := second.Messages(w.ctx, room, "", 10)
	if err != nil || len(list) == 0 || list[0].From == nil || *list[0].From != own {
		t.Errorf("the messages are %+v (%v)", list, err)
	}
	// Somebody else reads it, too, but knows whose it is, and has what they had.
	if got, err := carol.Import(w.ctx, bytes.NewReader(raw), secret); err != nil || got.By.Own || got.Known != 3 || got.Strange != 1 {
		t.Errorf("carol imported %+v (%v)", got, err)
	}
	if _, err := second.Import(w.ctx, bytes.NewReader(raw), sealed.Secret{Key: make([]byte, sealed.KeySize)}); !errors.Is(err, sealed.ErrDamaged) {
		t.Errorf("with another passphrase: %v", err)
	}
	if _, err := second.Import(w.ctx, bytes.NewReader(raw[:len(raw)-1]), secret); !errors.Is(err, sealed.ErrDamaged) {
		t.Errorf("cut off: %v", err)
	}
}
