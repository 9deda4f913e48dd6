package client

import (
	"crypto/sha256"
	"encoding/json"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestWrongAppliedHashNamesWhoSignedIt(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	bob.mu.Lock()
	r := bob.rooms[room]
	e := r.head()
	scope, ok := r.machine.ScopeAt(e.ref)
	key, err := bob.ident.SignatureKey(w.cs)
	bob.mu.Unlock()
	if err != nil || !ok {
		t.Fatal(err, ok)
	}
	other := sha256.Sum256([]byte("keys of another epoch"))
	applied, err := rooms.SignApplied(w.cs, key, scope, e.ref, e.group.OwnLeafIndex(), other[:])
	if err != nil {
		t.Fatal(err)
	}
	raw, err := rooms.Encode(rooms.AppliedOf(applied))
	if err != nil {
		t.Fatal(err)
	}
	// Carol posts it as a repost, in whose name she likes.
	repost, err := json.Marshal(map[string]any{"type": rooms.TypeApplied, "sender": alice.UserID(), "content": json.RawMessage(raw)})
	if err != nil {
		t.Fatal(err)
	}
	w.s.mu.Lock()
	w.s.append(&Event{RoomID: room, Type: rooms.TypeRepost, Sender: carol.UserID(), Content: repost})
	w.s.mu.Unlock()
	w.settle()
	var by []string
	for _, u := range carol.got {
		if warning, ok := u.(*Warning); ok && warning.Rule == string(rooms.RuleReceiptForged) {
			by = append(by, string(warning.Sender)+" "+warning.Text)
		}
	}
	if len(by) != 1 || !strings.HasPrefix(by[0], string(bob.UserID())+" "+string(bob.UserID())) {
		t.Errorf("told %q, want one warning that names %s", by, bob.UserID())
	}
}
