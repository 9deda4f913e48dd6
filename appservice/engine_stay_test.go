package appservice

import (
	"context"
	"fmt"
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

// TestEngineWaitsOnceForARemove: what a module waits for is the Remove of who is gone, not each proposal of it. Nobody keeps
// them in by making one epoch after another; but who came back and is gone again is waited for anew.
func TestEngineWaitsOnceForARemove(t *testing.T) {
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprint("comes back ", back), func(t *testing.T) {
			storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
				m, r, a, _ := pair(t, dbCfg)
				is := func(membership string) {
					r.hs.state(r.id, bob, rooms.TypeMember, string(bob), map[string]any{"membership": membership})
					m.settleFor(2 * time.Second)
				}
				is("leave")
				for i := range 2 { // less than the wait in each epoch, and more than it in both
					c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
					m.settleFor(6 * time.Second)
					if got := m.machine(r.id).Head(); got != c.ref {
						t.Fatalf("commit %d, of %s, is not accepted: %v", i, c.ref.Short(), m.refusals())
					}
					r.merge(c)
				}
				if back {
					is("join")
					is("leave")
				}
				c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
				m.settle()
				if got := m.machine(r.id).Head() == c.ref; got != back {
					t.Errorf("a commit that leaves in who is gone is accepted: %v, want %v", got, back)
				}
			})
		})
	}
}
