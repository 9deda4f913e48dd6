package appservice

import (
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestEngineHoldsFewTrees: where there is no place for trees none is held but the head's, for what is proposed in it; a
// room works on all the same.
func TestEngineHoldsFewTrees(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, b := pair(t, dbCfg)
		m.e.treesMost = 1
		wantHeld := func(n int) {
			t.Helper()
			groups := m.e.rooms[r.id].groups
			if len(groups) != n || n == 1 && groups[m.machine(r.id).Head()] == nil {
				t.Errorf("%d trees are held, want %d, of the head", len(groups), n)
			}
		}
		for range 20 {
			c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
			m.settle()
			r.merge(c)
			r.apply(b, c.ref, b.group.EpochAuthenticator())
			m.settleFor(6 * time.Second) // the vote
			if mach := m.machine(r.id); mach.Head() != c.ref || mach.NewestFinal() != c.ref {
				t.Fatalf("head %s, final %s, want %s; refused: %v", mach.Head().Short(), mach.NewestFinal().Short(), c.ref.Short(), m.refusals())
			}
			wantHeld(0)
		}
		r.hs.state(r.id, bob, rooms.TypeMember, string(bob), map[string]any{"membership": "leave"})
		m.settleFor(2 * time.Second)
		wantHeld(1)
		// The proposal of an epoch that is over keeps its tree no more.
		c := r.post(r.make(b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settleFor(2 * time.Second)
		r.merge(c)
		wantHeld(1)
		proposals := r.hs.events(r.id, rooms.TypeProposal)
		p, err := rooms.DecodeProposal(proposals[len(proposals)-1].Content)
		must(t, err)
		msg, err := mls.ParseMessage(p.Message)
		must(t, err)
		if _, err := a.group.Process(msg); err != nil {
			t.Fatal(err)
		}
		good := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{Pending: true}, p.Message))
		m.settleFor(2 * time.Second)
		if got := m.machine(r.id).Head(); got != good.ref || len(proposals) != 2 {
			t.Errorf("head %s after %d proposals, want the removal %s; refused: %v", got.Short(), len(proposals), good.ref.Short(), m.refusals())
		}
		wantHeld(0)
	})
}

// TestTreesOfRoomsThatRestGoFirst: of two rooms the one that was used longest ago loses its trees.
func TestTreesOfRoomsThatRestGoFirst(t *testing.T) {
	m, r, a, _ := pair(t, storetest.SQLite(t))
	for range 5 {
		c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settle()
		r.merge(c)
	}
	busy := m.e.rooms[r.id]
	idle := &room{id: "!idle:mls.test", touched: busy.touched - time.Minute, groups: map[federation.Ref]*mls.PublicGroup{}}
	for ref, pg := range busy.groups {
		idle.groups[ref] = pg
	}
	m.e.rooms[idle.id] = idle
	n := len(busy.groups)
	m.e.treesMost = busy.treeBytes() * 3 / 2
	m.e.treesGrew = true
	m.e.putTreesAway()
	if len(idle.groups) != 0 || len(busy.groups) != n || n < 5 {
		t.Errorf("%d trees of the room that rests are held, and %d of %d of the other", len(idle.groups), len(busy.groups), n)
	}
}

// TestEngineSparesHeadsWhereManyRoomsHaveNewcomers: a newcomer gets a new head within a second or two; where hundreds of
// rooms have newcomers within ten, and one for a commit and what makes it final.
func TestEngineSparesHeadsWhereManyRoomsHaveNewcomers(t *testing.T) {
	for crowd, want := range map[int]struct{ soon, late int }{0: {1, 2}, 400: {0, 1}} {
		t.Run(fmt.Sprint(crowd), func(t *testing.T) {
			m, r, a, b := pair(t, storetest.SQLite(t))
			m.settleFor(5 * time.Second)
			r.hs.state(r.id, carol, rooms.TypeMember, string(carol), map[string]any{"membership": "join"})
			for i := range crowd {
				room := &room{id: id.RoomID(fmt.Sprintf("!room%d:mls.test", i)), status: store.RoomLeft}
				room.joinerUntil = m.now + time.Hour
				m.e.rooms[room.id] = room
			}
			m.settleFor(30 * time.Second)
			before := len(r.hs.events(r.id, rooms.TypeHead))
			heads := func() int { return len(r.hs.events(r.id, rooms.TypeHead)) - before }
			c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
			m.settleFor(500 * time.Millisecond)
			r.merge(c)
			if got := heads(); got != want.soon {
				t.Errorf("%d heads at once, want %d", got, want.soon)
			}
			m.settleFor(time.Second)
			r.apply(b, c.ref, b.group.EpochAuthenticator())
			m.settleFor(9 * time.Second)
			if got := heads(); got != want.late {
				t.Errorf("%d heads after 10 seconds, want %d", got, want.late)
			}
			if head := r.keys(); head.Accepted == nil || federation.Ref(head.Accepted.Ref) != c.ref || head.Final == nil || federation.Ref(head.Final.Ref) != c.ref {
				t.Errorf("the newest head shows %+v as accepted and %+v as final", head.Accepted, head.Final)
			}
		})
	}
}

// TestUploadsThatWaitAreBounded: what is to be uploaded for a head is not made while much of other rooms waits, and is
// made when that is gone.
func TestUploadsThatWaitAreBounded(t *testing.T) {
	m, r, a, _ := pair(t, storetest.SQLite(t))
	r.hs.state(r.id, carol, rooms.TypeMember, string(carol), map[string]any{"membership": "join"})
	m.settleFor(5 * time.Second)
	m.e.jobs.held = jobsHeld // of other rooms
	for range 12 {
		c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settleFor(500 * time.Millisecond)
		r.merge(c)
	}
	m.settleFor(10 * time.Second)
	if !m.e.rooms[r.id].uploads {
		t.Error("the head that waits is made again each time the room is looked at")
	}
	if head := r.keys(); head.ProofFile != nil || federation.Ref(head.Accepted.Ref) == r.head || m.e.jobs.held != jobsHeld {
		t.Fatalf("the newest head shows %+v as accepted, with the proof %+v, while %d bytes wait", head.Accepted, head.ProofFile, m.e.jobs.held)
	}
	m.e.jobs.held = 0
	m.settleFor(3 * time.Second)
	if head := r.keys(); head.ProofFile == nil || federation.Ref(head.Accepted.Ref) != r.head || m.e.jobs.held != 0 {
		t.Errorf("the newest head shows %+v as accepted, with the proof %+v, while %d bytes wait", head.Accepted, head.ProofFile, m.e.jobs.held)
	}
}
