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

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Dendrite 0.15 does this after another server joined the room.
func TestFullStateDoesNotEmptyKnownEvents(t *testing.T) {
	key := ""
	event := func(name, content string) *Event {
		return &Event{ID: id.EventID("$" + name), Type: typeRoomName, Sender: "@a:one", StateKey: &key, Content: json.RawMessage(content)}
	}
	s := newRoomState("!r:one")
	s.set(event("name", `{"name":"Lunch"}`))
	s.replace([]*Event{event("name", `{}`)})
	if got := s.name(); got != "Lunch" {
		t.Errorf("the same event with an empty content: name %q, want Lunch", got)
	}
	s.replace([]*Event{event("other", `{}`)})
	if got := s.name(); got != "" {
		t.Errorf("another event: name %q, want none", got)
	}
	s.replace(nil)
	if got := s.content(typeRoomName, ""); got != nil {
		t.Errorf("state that is gone: %s", got)
	}
}

// TestStateOfAnOlderVersion: the heads were stored in one piece with the rest, perhaps
// after a newer version had stored them apart.
func TestStateOfAnOlderVersion(t *testing.T) {
	for name, stale := range map[string][]byte{"never stored apart": nil, "stored apart before": []byte(`{"` + string(botOf(testServer)) + `":{"event":"$stale","sender":"` + string(botOf(testServer)) + `","content":{}}}`)} {
		t.Run(name, func(t *testing.T) { stateOfAnOlderVersion(t, stale) })
	}
}

func stateOfAnOlderVersion(t *testing.T, stale []byte) {
	w := newWorld(t)
	room, alice, _, _ := w.three("shared")
	bot := botOf(testServer)
	alice.mu.Lock()
	r := alice.rooms[room]
	want := r.state.head(bot)
	whole, err := json.Marshal(r.state)
	alice.mu.Unlock()
	heads := alice.st.DeleteKV(w.ctx, partKey(headsPart, room))
	if stale != nil {
		heads = alice.st.PutKV(w.ctx, partKey(headsPart, room), stale)
	}
	if err = errors.Join(err, alice.st.PutKV(w.ctx, partKey(statePart, room), whole), heads); err != nil || want == nil {
		t.Fatalf("alice has head %v of the module (%v)", want, err)
	}
	check := func(when string) {
		t.Helper()
		alice.restart()
		if got := alice.rooms[room].state.head(bot); got == nil || got.Accepted == nil || got.Accepted.Ref != want.Accepted.Ref {
			t.Errorf("%s alice has head %+v, want %+v", when, got, want)
		}
		if n := len(alice.rooms[room].state.Entries[rooms.TypeMember]); n < 3 {
			t.Errorf("%s alice knows %d members, want 3 and the module", when, n)
		}
	}
	check("with the old store")
	w.settle()
	alice.mu.Lock()
	err = alice.commitBatch(w.ctx, alice.rooms[room], &batch{state: true})
	want = alice.rooms[room].state.head(bot)
	alice.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	check("with the new one")
	var rest roomState
	raw, err := alice.st.GetKV(w.ctx, partKey(statePart, room))
	if err = errors.Join(err, json.Unmarshal(raw, &rest)); err != nil || len(rest.Entries[rooms.TypeHead]) > 0 || len(rest.Entries[rooms.TypeMember]) < 3 {
		t.Errorf("apart from the heads there are %d kinds of state, and %d heads (%v)", len(rest.Entries), len(rest.Entries[rooms.TypeHead]), err)
	}
}

// TestCoordinationIsStoredInParts: what names all leaves is written seldom, what an older
// version wrote in one piece is read, and who leaves keeps nothing of it.
func TestCoordinationIsStoredInParts(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	parts := func() (base, rest []byte) {
		t.Helper()
		base, err := alice.st.GetKV(w.ctx, partKey(machineBasePart, room))
		rest, rerr := alice.st.Machine(w.ctx, room)
		if err = errors.Join(err, rerr); err != nil {
			t.Fatal(err)
		}
		return base, rest
	}
	whole := func() []byte {
		t.Helper()
		alice.mu.Lock()
		defer alice.mu.Unlock()
		raw, err := alice.rooms[room].machine.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	if base, rest := parts(); !bytes.Contains(base, []byte(alice.UserID())) || !bytes.Equal(slices.Concat(base, rest), whole()) {
		t.Errorf("%d and %d bytes are stored of %d", len(base), len(rest), len(whole()))
	}
	alice.restart()
	w.settle()
	w.sameEpoch(room, alice, bob, carol)

	if err := errors.Join(alice.st.PutMachine(w.ctx, room, whole()), alice.st.DeleteKV(w.ctx, partKey(machineBasePart, room))); err != nil {
		t.Fatal(err)
	}
	alice.restart()
	w.must(func() error { return bob.ChangePolicySelf(room) })
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	if base, rest := parts(); !bytes.Equal(slices.Concat(base, rest), whole()) {
		t.Errorf("after one of an older version %d and %d bytes are stored of %d", len(base), len(rest), len(whole()))
	}
	alice.restart()
	w.settle()
	w.sameEpoch(room, alice, bob, carol)

	w.must(func() error { return alice.Leave(w.ctx, room) })
	w.settle()
	if _, err := alice.st.GetKV(w.ctx, partKey(machineBasePart, room)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("who left has the coordination's beginning: %v", err)
	}
}

// TestHeadsThatAnyMemberPosts: anybody can post heads under any key. Those under the sender's own name
// count alone, a room keeps a bounded number, and those of the room's modules before all others.
func TestHeadsThatAnyMemberPosts(t *testing.T) {
	w := newWorld(t)
	room, alice, _, carol := w.three("shared")
	w.settle()
	bot := botOf(testServer)
	alice.mu.Lock()
	want := alice.rooms[room].state.head(bot)
	alice.mu.Unlock()
	filler := strings.Repeat("y", 50_000)
	put := func(sender id.UserID, key string) {
		t.Helper()
		content, err := json.Marshal(map[string]string{"x": filler, "key": key})
		if err != nil {
			t.Fatal(err)
		}
		w.s.mu.Lock()
		defer w.s.mu.Unlock()
		w.s.append(&Event{RoomID: room, Type: rooms.TypeHead, Sender: sender, StateKey: &key, Content: content})
	}
	for n := range 100 {
		put(carol.UserID(), fmt.Sprint("key", n))
	}
	put(carol.UserID(), string(carol.UserID()))
	alice.turn()
	heads := func() int {
		alice.mu.Lock()
		defer alice.mu.Unlock()
		return len(alice.rooms[room].state.Entries[rooms.TypeHead])
	}
	if n := heads(); n != 2 {
		t.Errorf("alice keeps %d heads of two who posted any", n)
	}
	for n := range maxHeads + 20 {
		user := fmt.Sprintf("@m%d:%s", n, testServer)
		put(id.UserID(user), user)
	}
	alice.turn()
	w.settle()
	for _, restarted := range []bool{false, true} {
		if restarted {
			alice.restart()
		}
		if n := heads(); n > maxHeads {
			t.Errorf("alice keeps %d heads, want at most %d", n, maxHeads)
		}
		alice.mu.Lock()
		if got := alice.rooms[room].state.head(bot); got == nil || got.Accepted == nil || got.Accepted.Ref != want.Accepted.Ref {
			t.Errorf("alice has head %+v of the module (restarted: %v), want %+v", got, restarted, want)
		}
		alice.mu.Unlock()
	}
	keys, err := alice.st.KVKeys(w.ctx, headKey(room, ""), 1000)
	if err != nil || len(keys) != maxHeads {
		t.Errorf("%d heads are stored (%v), want %d", len(keys), err, maxHeads)
	}
}

// TestListedHeadsAreKept: where there are as many heads as are kept, a listed module's still finds its place,
// whoever came first, and who is in the room counts before who is not.
func TestListedHeadsAreKept(t *testing.T) {
	s := newRoomState("!r:one")
	s.first = func(user id.UserID) bool { return user == "@module:one" }
	head := func(user string) bool {
		return s.set(&Event{ID: id.EventID("$" + user), Type: rooms.TypeHead, Sender: id.UserID(user), StateKey: &user, Content: json.RawMessage(`{}`)})
	}
	for n := range maxHeads {
		if !head(fmt.Sprintf("@m%d:two", n)) {
			t.Fatalf("head %d is refused", n)
		}
	}
	if head("@late:two") {
		t.Error("there is room for one more of those who count as little")
	}
	joined := "@joined:two"
	s.set(&Event{ID: "$join", Type: rooms.TypeMember, Sender: id.UserID(joined), StateKey: &joined, Content: json.RawMessage(`{"membership":"join"}`)})
	for _, user := range []string{joined, "@module:one"} {
		if !head(user) {
			t.Errorf("no room for the head of %s", user)
		}
	}
	if n := len(s.Entries[rooms.TypeHead]); n != maxHeads {
		t.Errorf("%d heads, want %d", n, maxHeads)
	}
	var all []*Event
	for key, entry := range s.Entries[rooms.TypeHead] {
		all = append(all, &Event{ID: entry.Event, Type: rooms.TypeHead, Sender: entry.Sender, StateKey: &key, Content: entry.Content})
	}
	s.replace(all)
	if _, ok := s.Entries[rooms.TypeHead]["@module:one"]; !ok || len(s.Entries[rooms.TypeHead]) != maxHeads {
		t.Error("the full state lost it")
	}
}

// TestHeadsOfFoundersModulesAreKept: anybody with as many servers can have as many users with a bot's name in the
// room as heads are kept. Before the room's list is known the modules of those who may found its group count before
// them, which nobody else's server can have.
func TestHeadsOfFoundersModulesAreKept(t *testing.T) {
	s := newRoomState("!r:one")
	state := func(sender id.UserID, kind, key, content string) bool {
		return s.set(&Event{ID: id.EventID("$" + kind + key), Type: kind, Sender: sender, StateKey: &key, Content: json.RawMessage(content)})
	}
	join := func(user string) { state(id.UserID(user), rooms.TypeMember, user, `{"membership":"join"}`) }
	head := func(user string) bool { return state(id.UserID(user), rooms.TypeHead, user, `{}`) }
	state("@alice:one", rooms.TypeCreate, "", `{"room_version":"10"}`)
	state("@alice:one", rooms.TypePowerLevels, "", `{"users":{"@alice:one":100,"@bob:two":100,"@carol:three":50},"events":{"m.room.encryption":100}}`)
	for n := range maxHeads {
		user := string(botOf(fmt.Sprintf("evil:%d", 8000+n)))
		join(user)
		if !head(user) {
			t.Fatalf("head %d is refused", n)
		}
	}
	for user, want := range map[string]bool{"@_mls_bot:one": true, "@_mls_bot:two": true, "@_mls_bot:three": false, "@_mls_bot:four": false} {
		join(user)
		if got := head(user); got != want {
			t.Errorf("the head of %s is taken: %v, want %v", user, got, want)
		}
	}
	var all []*Event
	for kind, entries := range s.Entries {
		for key, entry := range entries {
			all = append(all, &Event{ID: entry.Event, Type: kind, Sender: entry.Sender, StateKey: &key, Content: entry.Content})
		}
	}
	s.replace(all)
	for _, user := range []string{"@_mls_bot:one", "@_mls_bot:two"} {
		if _, ok := s.Entries[rooms.TypeHead][user]; !ok {
			t.Errorf("the full state lost the head of %s", user)
		}
	}
}

// checkClean holds what a device takes for unchanged since it was written against the
// store.
func (d *testDevice) checkClean() {
	d.w.t.Helper()
	if d.dead {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for roomID, r := range d.rooms {
		for part, v := range map[string]any{
			admissionsPart: r.rec.Admissions, othersPart: r.rec.Others, statePart: r.state.stored(),
		} {
			if !r.asWritten.has(part) && !r.state.asWritten.has(part) {
				continue
			}
			want, err := json.Marshal(v)
			if err != nil {
				d.w.t.Fatal(err)
			}
			if got, err := d.st.GetKV(d.w.ctx, partKey(part, roomID)); err != nil || string(got) != string(want) {
				d.w.t.Errorf("the %s of %s at %s have changed and are not in the store: it has %s, want %s (%v)", part, roomID, d.ident.device, got, want, err)
			}
		}
		for user, entry := range r.state.Entries[rooms.TypeHead] {
			want, err := json.Marshal(entry)
			if got, gerr := d.st.GetKV(d.w.ctx, headKey(roomID, user)); !r.state.headsChanged[user] && (err != nil || string(got) != string(want)) {
				d.w.t.Errorf("the head of %s in %s at %s has changed and is not in the store (%v)", user, roomID, d.ident.device, gerr)
			}
		}
	}
}
