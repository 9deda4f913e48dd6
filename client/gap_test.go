package client

import (
	"slices"
	"testing"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// A homeserver puts the events of a server that was cut off where they belong: in
// the history, among events that it had shown before.
func TestGapAmongWhatWasRead(t *testing.T) {
	w := newWorld(t)
	room, alice, _, carol := w.three("shared")
	carol.ident.limit = 3
	w.send(alice, room, "held up")
	w.s.mu.Lock()
	at := slices.IndexFunc(w.s.log, func(evt *Event) bool { return evt.Type == rooms.TypeEncrypted })
	held := w.s.log[at]
	// In its place, where the others' positions stay right, one of a room that nobody is in.
	w.s.log[at] = &Event{ID: "$elsewhere", RoomID: "!elsewhere:example.org", Sender: held.Sender, Type: held.Type}
	w.s.mu.Unlock()
	for _, text := range []string{"one", "two"} {
		w.send(alice, room, text)
		carol.turn()
	}
	w.s.mu.Lock()
	w.s.log[at] = held
	w.s.mu.Unlock()
	w.all = slices.DeleteFunc(w.all, func(d *testDevice) bool { return d == carol })
	for _, text := range []string{"three", "four", "five", "six"} {
		w.send(alice, room, text)
	}
	w.settle(append(w.all, carol)...)
	got := carol.texts()
	slices.Sort(got)
	if want := []string{"five", "four", "held up", "one", "six", "three", "two"}; !slices.Equal(got, want) {
		t.Errorf("carol got %q, want %q", got, want)
	}
}
