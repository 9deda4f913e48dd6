package appservice

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestEngineComesBackWhenItIsInvitedAgain: a module that was put out and invited again at once comes back, whichever of
// the two it hears of first: some homeservers tell of invites in another way.
func TestEngineComesBackWhenItIsInvitedAgain(t *testing.T) {
	for name, swapped := range map[string]bool{"in order": false, "the invite first": true} {
		t.Run(name, func(t *testing.T) {
			storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
				m, r, a, _ := pair(t, dbCfg)
				key := string(bot)
				r.hs.mu.Lock()
				r.hs.push = false
				r.hs.mu.Unlock()
				var told []*homeserver.Event
				for _, membership := range []string{"leave", "invite"} {
					told = append(told, r.hs.add(r.id, alice, rooms.TypeMember, &key, map[string]any{"membership": membership}))
				}
				if swapped {
					told[0], told[1] = told[1], told[0]
				}
				r.hs.mu.Lock()
				r.hs.push = true
				r.hs.pushed = append(r.hs.pushed, told...)
				r.hs.mu.Unlock()
				m.settleFor(10 * time.Second)
				if got := m.e.rooms[r.id].status; got != store.RoomServing {
					t.Fatalf("the module's status is %s after it was invited again", got)
				}
				c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
				m.settleFor(10 * time.Second)
				if got := m.machine(r.id).Head(); got != c.ref {
					t.Errorf("head %s, want the commit that came then", got.Short())
				}
				// An invite that is told of twice brings nobody back who is put out later.
				r.hs.mu.Lock()
				for _, ev := range told {
					if membership(ev.Content) == "invite" {
						again := *ev
						again.ID += "-again"
						r.hs.pushed = append(r.hs.pushed, &again)
					}
				}
				r.hs.mu.Unlock()
				m.settleFor(10 * time.Second)
				r.hs.add(r.id, alice, rooms.TypeMember, &key, map[string]any{"membership": "leave"})
				m.settleFor(10 * time.Second)
				if got := m.e.rooms[r.id].status; got != store.RoomLeft {
					t.Errorf("the module's status is %s after it was put out", got)
				}
			})
		})
	}
}

// invitedHS gives no state of rooms that the bot is not in, as homeservers do, and may not say which it is in.
type invitedHS struct {
	*roomHS
	silent bool
}

func (h invitedHS) JoinedRooms(ctx context.Context) ([]id.RoomID, error) {
	if h.silent {
		return nil, errors.New("the homeserver does not answer")
	}
	return h.roomHS.JoinedRooms(ctx)
}

func (h invitedHS) State(ctx context.Context, room id.RoomID) ([]*homeserver.Event, error) {
	if joined, _ := h.roomHS.JoinedRooms(ctx); !slices.Contains(joined, room) {
		return nil, &homeserver.Error{Op: "read the state", Kind: homeserver.ErrForbidden, Status: 403}
	}
	return h.roomHS.State(ctx, room)
}

// TestEngineRemembersThatItIsInvitedAgain: a module that is killed before it has learned whether it is still in a room
// that it was invited to again comes back all the same.
func TestEngineRemembersThatItIsInvitedAgain(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, _, _ := pair(t, dbCfg)
		m.as = invitedHS{r.hs, true}
		m.start()
		m.settle()
		key := string(bot)
		for _, membership := range []string{"leave", "invite"} {
			r.hs.add(r.id, alice, rooms.TypeMember, &key, map[string]any{"membership": membership})
		}
		m.settleFor(10 * time.Second)
		m.as = invitedHS{r.hs, false}
		m.start()
		m.settleFor(10 * time.Second)
		if got := m.e.rooms[r.id].status; got != store.RoomServing {
			t.Errorf("the module's status is %s after it was invited again, and killed", got)
		}
		if joined, _ := r.hs.JoinedRooms(m.ctx); !slices.Contains(joined, r.id) {
			t.Error("the module did not come back after it was invited again, and killed")
		}
	})
}
