package appservice

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/metrics"
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

// TestEngineTellsOfMembershipsThatAreSetBack: state resolution forgets that bob is in the room, as the next comparison with
// the homeserver shows. The module tells its administrator. It proposes to remove him where he is out by an older membership; where
// he has none, that is left to the members: what is not known is no reason.
func TestEngineTellsOfMembershipsThatAreSetBack(t *testing.T) {
	for _, row := range []struct {
		name      string
		forgotten int // of bob's memberships, the newest
		leaves    bool
		want      float64
		proposes  bool
	}{{"an older one counts", 1, false, 1, true}, {"none counts", 10, false, 1, false}, {"he leaves", 0, true, 0, true}} {
		t.Run(row.name, func(t *testing.T) {
			m, r, _, _ := pair(t, storetest.SQLite(t))
			r.hs.state(r.id, bob, rooms.TypeMember, string(bob), map[string]any{"membership": "leave"})
			r.hs.state(r.id, bob, rooms.TypeMember, string(bob), map[string]any{"membership": "join"})
			m.settle()
			must(t, m.e.Recheck(m.ctx))
			m.settle()
			if got := m.metric(metrics.MembershipsSetBack); got != 0 {
				t.Fatalf("%v memberships are set back at first", got)
			}
			if row.leaves {
				r.hs.state(r.id, bob, rooms.TypeMember, string(bob), map[string]any{"membership": "leave"})
			}
			r.hs.mu.Lock()
			list, left := r.hs.rooms[r.id], row.forgotten
			for i := len(list) - 1; i >= 0; i-- {
				if ev := list[i]; left > 0 && ev.Type == rooms.TypeMember && *ev.StateKey == string(bob) {
					list, left = slices.Delete(slices.Clone(list), i, i+1), left-1
				}
			}
			r.hs.rooms[r.id] = list
			r.hs.mu.Unlock()
			must(t, m.e.Recheck(m.ctx))
			m.settleFor(time.Minute)
			if got := m.metric(metrics.MembershipsSetBack); got != row.want {
				t.Errorf("%v memberships are set back, want %v", got, row.want)
			}
			if got := len(r.hs.events(r.id, rooms.TypeProposal)) > 0; got != row.proposes {
				t.Errorf("the module proposes to remove him: %v, want %v", got, row.proposes)
			}
		})
	}
}
