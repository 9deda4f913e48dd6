package simnet

import (
	"encoding/json"
	"testing"
	"time"
)

// TestWhatACutHeldUpCanBeFound: after a cut, in the order of sending the newest event
// of a server comes at least, also where links held up an older one for longer. By
// that one the others are found.
func TestWhatACutHeldUpCanBeFound(t *testing.T) {
	for seed := range uint64(20) {
		n := New(seed)
		a, b := n.Add("a.test"), n.Add("b.test")
		say := func(s *Server, text string) *Event {
			return s.Send("@u:"+"a.test", "!r:a.test", "m.room.message", nil, json.RawMessage(`{"body":"`+text+`"}`))
		}
		b.room("!r:a.test").in = true
		say(a, "before")
		n.Advance(time.Second)
		n.Split([]int{0, 1})
		n.Links.LostPct = 100
		old := say(a, "held up for a minute")
		n.Links.LostPct = 0
		newest := say(a, "the newest")
		n.Advance(2 * time.Minute)
		n.Heal()
		n.Advance(3 * time.Minute)
		for _, e := range []*Event{old, newest} {
			if b.Knows("!r:a.test", e.ID) == nil {
				t.Errorf("seed %d: %s never comes", seed, e.Content)
			}
		}
	}
}
