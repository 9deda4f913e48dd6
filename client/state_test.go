package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
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
