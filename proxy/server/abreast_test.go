package server

import (
	"testing"

	"maunium.net/go/mautrix/id"
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
