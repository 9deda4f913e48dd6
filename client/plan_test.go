package client

import (
	"fmt"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestPlanGrowsWithTheTree: who should be in the group is compared with who is in one pass over the tree, not in one for
// each user: with thousands of both, every epoch would cost each client minutes.
func TestPlanGrowsWithTheTree(t *testing.T) {
	w := newWorld(t)
	alice := w.device("alice", "ALICE")
	var room id.RoomID
	w.must(func() (err error) {
		room, err = alice.CreateRoom(w.ctx, CreateOptions{})
		return err
	})
	users := 0
	grow := func(to int) (anew, again float64) {
		t.Helper()
		for ; users < to; users++ {
			ident, user := w.register(fmt.Sprint("user", users), "D1")
			ident.addPackages(w, w.cs, 1, newSeeded(string(user)))
			w.must(func() error { return alice.Invite(w.ctx, room, user) })
		}
		w.settle()
		info, err := alice.Room(w.ctx, room)
		if err != nil || info.Devices != to+1 {
			t.Fatalf("%d devices in the group, want %d (%v)", info.Devices, to+1, err)
		}
		alice.mu.Lock()
		defer alice.mu.Unlock()
		r := alice.rooms[room]
		least := func(f func()) float64 { // whatever else allocates in this process does so now and then
			n := testing.AllocsPerRun(1, f)
			for range 9 {
				n = min(n, testing.AllocsPerRun(1, f))
			}
			return n
		}
		anew = least(func() {
			r.planned, r.leaves = false, nil
			alice.plan(r)
		})
		return anew, least(func() { alice.plan(r) })
	}
	few, _ := grow(12)
	many, again := grow(48)
	if again > 150 {
		t.Errorf("%.0f allocations where nothing has changed: the tree was read", again)
	}
	if many > 6*few {
		t.Errorf("a plan takes %.0f allocations for 13 devices, %.0f for 49", few, many)
	}
	t.Logf("%.0f allocations for 13 devices, %.0f for 49, %.0f where nothing has changed", few, many, again)
}

// TestManyWithLongNamesAreAdded: the admissions of all whom one commit could take may be more than it can hold; the rest
// comes with the next.
func TestManyWithLongNamesAreAdded(t *testing.T) {
	w := newWorld(t)
	alice := w.device("alice", "ALICE")
	room := id.RoomID("!plain:" + testServer)
	const users = 180
	w.s.mu.Lock()
	alice.hs.putState(room, rooms.TypeCreate, "", map[string]string{})
	alice.hs.putState(room, rooms.TypeMember, string(alice.UserID()), map[string]string{"membership": "join"})
	alice.hs.putState(room, rooms.TypePowerLevels, "", map[string]any{"users": map[string]int{string(alice.UserID()): 100}})
	w.s.mu.Unlock()
	for i := range users {
		ident, user := w.register(fmt.Sprintf("u%d%s", i, strings.Repeat("long", 50)), "D1")
		ident.addPackages(w, w.cs, 1, newSeeded(string(user)))
		w.s.mu.Lock()
		alice.hs.putState(room, rooms.TypeMember, string(user), map[string]string{"membership": "join"})
		w.s.mu.Unlock()
	}
	w.settle()
	w.must(func() error { return alice.EnableMLS(w.ctx, room) })
	w.settle()
	if info, err := alice.Room(w.ctx, room); err != nil || info.Devices != users+1 {
		t.Fatalf("%d devices in the group, want %d (%v)", info.Devices, users+1, err)
	}
}
