package appservice

import (
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// junk posts commits whose parents nobody has.
func (r *mlsRoom) junk(by *device, n int) {
	r.t.Helper()
	content, err := rooms.DecodeCommit(r.make(by, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}).raw)
	must(r.t, err)
	for i := range n {
		parent := rooms.Hash{0xff, byte(i), byte(i >> 8)}
		aad, err := (&rooms.CommitAAD{Parent: federation.Ref(parent)}).Encode()
		must(r.t, err)
		staged, err := by.group.Commit(mls.CommitOptions{AuthenticatedData: aad, ForcePath: true})
		must(r.t, err)
		content.Parent, content.ParentEvent, content.Message = parent, "", staged.Message()
		raw, err := rooms.Encode(content)
		must(r.t, err)
		r.hs.add(r.id, by.cred.User, rooms.TypeCommit, nil, raw)
	}
}

// byMedia moves what a commit holds into media.
func (r *mlsRoom) byMedia(m *module, c *madeCommit) {
	r.t.Helper()
	content, err := rooms.DecodeCommit(c.raw)
	must(r.t, err)
	data, err := content.Bundle().Encode()
	must(r.t, err)
	uri, err := r.hs.Upload(m.ctx, data, "")
	must(r.t, err)
	content.File = rooms.NewFile(uri, data)
	content.Message, content.Proposals, content.GroupInfo = nil, nil, nil
	c.raw, err = rooms.Encode(content)
	must(r.t, err)
}

func TestEngineKeepsPlaceForWhoDoesNotFlood(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, b := pair(t, dbCfg)
		m.cfg.Limits.WaitingPerRoom = 8
		r.junk(b, 20)
		m.settle()
		c := r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
		r.byMedia(m, c)
		r.post(c)
		m.settleFor(2 * time.Second)
		if got := m.machine(r.id).Head(); got != c.ref {
			t.Errorf("got head %s, want %s, which waited for its media; refused: %v", got.Short(), c.ref.Short(), m.refusals())
		}
		if n, _, err := m.st.CountInbox(m.ctx, store.InboxWaiting); err != nil || n > 8 {
			t.Errorf("%d events wait, %v", n, err)
		}
	})
}

func TestEngineBoundsWhatWaitsInAllRooms(t *testing.T) {
	hs := newRoomHS()
	m := newModule(t, storetest.SQLite(t), hs)
	m.cfg.Limits.WaitingTotal = 12
	var quiet *mlsRoom
	var of []*device
	for _, room := range []id.RoomID{"!quiet:mls.test", "!loud:mls.test"} {
		r := newRoom(t, hs, room)
		m.settle()
		of = append(of, r.found())
		m.settle()
		if quiet == nil {
			quiet = r
			r.junk(of[0], 2)
		} else {
			r.junk(of[1], 30)
		}
	}
	m.settle()
	rows, err := m.st.RoomInbox(m.ctx, quiet.id, store.InboxWaiting, 100)
	must(t, err)
	n, _, err := m.st.CountInbox(m.ctx, store.InboxWaiting)
	must(t, err)
	if n != 12 || len(rows) != 2 {
		t.Errorf("%d events wait, %d of them in the quiet room, want 12 and 2", n, len(rows))
	}
}

func TestEngineLooksAgainWhenTheParentCame(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		for _, test := range []struct {
			name string
			time time.Duration // until the parent comes
			room int           // places for what waits
		}{{"more than there is place for", time.Minute, 3}, {"later than anything waits", time.Hour, 100}} {
			t.Run(test.name, func(t *testing.T) {
				m, r, a, _ := pair(t, dbCfg)
				m.cfg.Limits.WaitingPerRoom = test.room
				lost := r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
				lost.event = "$far-away"
				r.merge(lost)
				last := lost
				for i := range 8 {
					last = r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
					if i == 1 {
						r.byMedia(m, last)
					}
					r.merge(r.post(last))
				}
				m.settle()
				for range 12 {
					m.settle()
					m.now += test.time / 12
				}
				r.hs.add(r.id, alice, rooms.TypeCommit, nil, lost.raw)
				m.settleFor(3 * time.Second)
				if got := m.machine(r.id).Head(); got != last.ref {
					k, _ := m.machine(r.id).Known(got)
					t.Errorf("got to epoch %d, want the end of the chain; refused: %v", k.Epoch, m.refusals())
				}
			})
			if dbCfg.Type == "postgres" {
				dbCfg = storetest.Postgres(t)
			} else {
				dbCfg = storetest.SQLite(t)
			}
		}
	})
}

// What was trimmed comes back whole when it is fetched.
func TestEngineTakesWhatWasFetchedAgain(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, _ := pair(t, dbCfg)
		c := r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
		r.hs.push = false
		r.post(c)
		ev, err := r.hs.Event(m.ctx, r.id, c.event)
		must(t, err)
		row := inboxRow(ev, store.SourceTransaction)
		row.Raw, row.Status, row.Rule = nil, store.InboxRefused, ruleWaitedTooLong
		_, err = m.st.PutInbox(m.ctx, row)
		must(t, err)
		m.e.rooms[r.id].want(federation.Fetch{Commit: c.ref, EventID: string(c.event)})
		m.settleFor(3 * time.Second)
		if got := m.machine(r.id).Head(); got != c.ref {
			t.Errorf("got head %s, want %s", got.Short(), c.ref.Short())
		}
	})
}
