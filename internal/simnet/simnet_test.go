package simnet

import (
	"encoding/json"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
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

// TestAnInviteTakesNobodyOut: who invites somebody that came in on the other side of a cut does not take them out, as no
// homeserver lets an invite be the membership of who is in the room.
func TestAnInviteTakesNobodyOut(t *testing.T) {
	const room, user = "!r:a.test", "@u:a.test"
	n := New(1)
	a, b := n.Add("a.test"), n.Add("b.test")
	key := user
	member := func(s *Server, by, is string) {
		s.Send(id.UserID(by), room, typeMember, &key, json.RawMessage(`{"membership":"`+is+`"}`))
	}
	a.room(room).in, b.room(room).in = true, true
	member(a, "@o:a.test", "invite")
	n.Advance(time.Second)
	n.Split([]int{0, 1})
	member(a, user, "join")
	n.Advance(2 * time.Second)
	member(b, "@o:b.test", "invite")
	n.Heal()
	n.Advance(3 * time.Minute)
	for _, s := range n.Servers {
		if is := s.Membership(room, user); is != "join" {
			t.Errorf("%s has the membership %q", s.Name, is)
		}
	}
}
