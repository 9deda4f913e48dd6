package server

import (
	"encoding/json"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// What is known of a session's rooms counts for the request that begins where its last answer ended, once.
func TestAbreastCountsForTheNextRequestAlone(t *testing.T) {
	a, tag, other := newAbreast(), [32]byte{1}, [32]byte{2}
	rooms := func() map[id.RoomID]bool { return map[id.RoomID]bool{"!r:x": true} }
	a.put(tag, "s1", rooms())
	for _, row := range []struct {
		name string
		tag  [32]byte
		from string
		want bool
	}{{"another session", other, "s1", false}, {"another place", tag, "s0", false}, {"the next", tag, "s1", true}, {"the same again", tag, "s1", false}} {
		if got := a.take(row.tag, row.from); got["!r:x"] != row.want {
			t.Errorf("%s: %v", row.name, got)
		}
	}
	for n := range 2 * maxOwners {
		a.put([32]byte{3, byte(n), byte(n >> 8)}, "s", rooms())
	}
	if len(a.all) != maxOwners || len(a.order) != maxOwners {
		t.Errorf("%d sessions, %d in order", len(a.all), len(a.order))
	}
}

// A room is open for messages ahead where the device has come to the last event that the client was shown of it. What is no
// ciphertext the client may have before the device.
func TestARoomIsOpenOnceTheDeviceHasComeAsFar(t *testing.T) {
	w := newDeviceWorld(t)
	now := time.Now().UnixMilli()
	event := func(name, eventType string, state bool) map[string]any {
		evt := map[string]any{"event_id": name, "type": eventType, "sender": "@b:one", "origin_server_ts": now, "content": map[string]any{"algorithm": "io.github.matrix-mls.v1"}}
		if state {
			evt["state_key"] = ""
		}
		return evt
	}
	ciphertext, state, redaction := event("$read", "m.room.encrypted", false), event("$state", "m.room.name", true), event("$taken-back", "m.room.redaction", false)
	w.tell(map[string]any{"join": map[id.RoomID]any{mlsRoom: map[string]any{"timeline": map[string]any{"events": []any{ciphertext}}}}})
	w.until(func() bool { // the device has come to it: it is refused
		return w.account().Read(t.Context(), mlsRoom, "$read", time.Now()).State != account.Waiting
	})
	old := event("$old", "m.room.encrypted", false)
	old["origin_server_ts"] = 1
	v := w.server.view(t.Context(), &session{user: deviceUser, account: w.account()})
	for _, tc := range []struct {
		name    string
		came    []any
		limited bool
		was     bool
		want    bool
	}{
		{"nothing came", nil, false, true, true},
		{"nothing came, and it was not open", nil, false, false, false},
		{"what the device has come to", []any{ciphertext}, false, false, true},
		{"state before that", []any{state, ciphertext}, false, false, true},
		{"that after a gap", []any{ciphertext}, true, false, true},
		{"a gap", nil, true, true, false},
		{"state alone", []any{state}, false, true, false},
		{"a redaction alone", []any{redaction}, false, true, false},
		{"state after what the device has come to", []any{ciphertext, state}, false, true, false},
		{"a redaction after it", []any{ciphertext, redaction}, false, true, false},
		{"a message from long ago", []any{old}, false, true, false},
	} {
		raw, err := json.Marshal(map[string]any{"rooms": map[string]any{"join": map[id.RoomID]any{
			mlsRoom: map[string]any{"timeline": map[string]any{"events": tc.came, "limited": tc.limited}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		answer, err := rewrite.ParseSync(raw)
		if err != nil {
			t.Fatal(err)
		}
		rooms := map[id.RoomID]bool{}
		if tc.was {
			rooms[mlsRoom] = true
		}
		v.open(t.Context(), answer.Windows(), rooms)
		if rooms[mlsRoom] != tc.want {
			t.Errorf("%s: open %t, want %t", tc.name, rooms[mlsRoom], tc.want)
		}
	}
}
