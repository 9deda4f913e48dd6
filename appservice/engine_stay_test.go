package appservice

import (
	"context"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// JoinedRooms reads the bot's memberships.
func (h *roomHS) JoinedRooms(context.Context) (out []id.RoomID, _ error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for room, events := range h.rooms {
		in := false
		for _, ev := range events {
			if ev.Type == rooms.TypeMember && ev.StateKey != nil && *ev.StateKey == string(h.user) {
				in = membership(ev.Content) == "join"
			}
		}
		if in {
			out = append(out, room)
		}
	}
	return out, nil
}

func TestEngineStaysWhenAnOldLeaveComesLate(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, _ := pair(t, dbCfg)
		key := string(bot)
		r.hs.mu.Lock()
		r.hs.push = false
		r.hs.mu.Unlock()
		late := r.hs.add(r.id, bot, rooms.TypeMember, &key, map[string]any{"membership": "leave"})
		r.hs.push = true
		r.hs.add(r.id, bot, rooms.TypeMember, &key, map[string]any{"membership": "join"})
		r.hs.pushed = append(r.hs.pushed, late) // behind the newer one
		c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settleFor(2 * time.Second)
		if got := m.machine(r.id).Head(); got != c.ref || m.e.rooms[r.id].status != store.RoomServing {
			t.Fatalf("status %s, head %s, want to go on", m.e.rooms[r.id].status, got.Short())
		}
		// A real one counts.
		r.hs.add(r.id, bot, rooms.TypeMember, &key, map[string]any{"membership": "leave"})
		m.settleFor(2 * time.Second)
		if got := m.e.rooms[r.id].status; got != store.RoomLeft {
			t.Errorf("got status %s after the bot left", got)
		}
	})
}

func TestEngineHoldsRemovesOverARestart(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, _ := pair(t, dbCfg)
		r.hs.state(r.id, bob, rooms.TypeMember, string(bob), map[string]any{"membership": "leave"})
		m.settleFor(5 * time.Second)
		m.start()
		m.settleFor(m.cfg.Rooms.InclusionWait.D() + 5*time.Second)
		n := len(r.accepts())
		r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settle()
		if got := len(r.accepts()); got != n {
			t.Error("after a restart a commit that skips a Remove was accepted")
		}
	})
}
