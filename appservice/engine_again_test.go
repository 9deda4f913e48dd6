package appservice

import (
	"slices"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func forbidden(string, string) error {
	return &homeserver.Error{Op: "send", Kind: homeserver.ErrForbidden, Status: 403}
}

func TestEngineProposesARemoveAgainThatWasRefused(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, _, _ := pair(t, dbCfg)
		tries := 0
		r.hs.deny = func(kind, key string) error {
			if kind != rooms.TypeProposal {
				return nil
			}
			tries++
			return forbidden(kind, key)
		}
		r.hs.state(r.id, bob, rooms.TypeMember, string(bob), map[string]any{"membership": "leave"})
		m.settleFor(time.Minute)
		if tries < 3 || tries > 10 {
			t.Errorf("tried %d times in a minute, want a few", tries)
		}
		r.hs.deny = nil
		m.settleFor(time.Minute)
		if got := len(r.hs.events(r.id, rooms.TypeProposal)); got != 1 {
			t.Errorf("got %d proposals when the homeserver took them, want 1", got)
		}
		m.start()
		m.settleFor(10 * time.Second)
		if got := len(r.hs.events(r.id, rooms.TypeProposal)); got != 1 {
			t.Errorf("got %d proposals after a restart, want 1", got)
		}
	})
}

func TestEngineSendsReceiptsBehindARefusedOne(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, _ := pair(t, dbCfg)
		refused := false
		r.hs.deny = func(kind, key string) error {
			if kind == rooms.TypeAccept && !refused {
				refused = true
				return forbidden(kind, key)
			}
			return nil
		}
		first := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settle()
		r.merge(first)
		second := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settle()
		if got := r.accepts(); !refused || !slices.Contains(got, second.ref) {
			t.Errorf("the accept behind a refused one waits: sent %v", got)
		}
		rows, err := m.st.RoomOutbox(m.ctx, r.id, store.OutboxWaiting, 10)
		must(t, err)
		if len(rows) != 1 || rows[0].Priority != store.PriorityAgain {
			t.Errorf("%d rows wait, want the refused accept", len(rows))
		}
	})
}
