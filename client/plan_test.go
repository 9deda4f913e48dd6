package client

import (
	"fmt"
	"strings"
	"testing"
	"time"

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

// plain makes an unencrypted room in which a device's user and others are, each with devices that nobody runs.
func (w *world) plain(by *testDevice, users, devices int, name func(i int) string) id.RoomID {
	w.t.Helper()
	room := id.RoomID("!plain:" + testServer)
	w.s.mu.Lock()
	by.hs.putState(room, rooms.TypeCreate, "", map[string]string{})
	by.hs.putState(room, rooms.TypeMember, string(by.UserID()), map[string]string{"membership": "join"})
	by.hs.putState(room, rooms.TypePowerLevels, "", map[string]any{"users": map[string]int{string(by.UserID()): 100}})
	w.s.mu.Unlock()
	for i := range users {
		var user id.UserID
		for n := range devices {
			_, user = w.enroll(w.s, name(i), fmt.Sprint("D", n+1), 1)
		}
		w.s.mu.Lock()
		by.hs.putState(room, rooms.TypeMember, string(user), map[string]string{"membership": "join"})
		w.s.mu.Unlock()
	}
	return room
}

// TestARoomOfManyIsSwitchedWhole: who switches a room lets in all who are in it, however many admissions are kept otherwise.
func TestARoomOfManyIsSwitchedWhole(t *testing.T) {
	w := newWorld(t)
	alice := w.small("alice")
	const users = 40
	room := w.plain(alice, users, 1, func(i int) string { return fmt.Sprint("u", i) })
	w.settle()
	w.must(func() error { return alice.EnableMLS(w.ctx, room) })
	w.settle()
	if info, err := alice.Room(w.ctx, room); err != nil || info.Devices != users+1 {
		t.Fatalf("%d devices in the group, want %d (%v)", info.Devices, users+1, err)
	}
}

// TestABulkAddIsBatched: who lets hundreds of devices in claims their key packages by a few requests, adds them by as few
// commits, and uploads one commit and one tree for each, not one for each device; after a restart in the middle it goes on
// where it was.
func TestABulkAddIsBatched(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			w := newWorld(t)
			alice := w.device("alice", "ALICE1")
			const users, devices = 53, 8 // 424: three commits
			room := w.plain(alice, users, devices, func(i int) string { return fmt.Sprint("u", i) })
			w.settle()
			if err := w.background(func() error { return alice.EnableMLS(w.ctx, room) }); err != nil {
				t.Fatal(err)
			}
			for range 200 {
				if !restart {
					break
				}
				alice.turn()
				w.order()
				w.now.add(time.Second)
				if n := alice.epoch(room); n > 0 {
					alice.restart()
					break
				}
			}
			w.settle()
			if info, err := alice.Room(w.ctx, room); err != nil || info.Devices != users*devices+1 {
				t.Fatalf("%d devices in the group, want %d (%v)", info.Devices, users*devices+1, err)
			}
			if n := alice.epoch(room); n != 3 {
				t.Errorf("%d commits were made, want 3", n)
			}
			claimed := 0
			for _, n := range alice.ident.claims {
				claimed += n
			}
			if most := 3; restart && len(alice.ident.claims) > most+1 || !restart && len(alice.ident.claims) != most {
				t.Errorf("key packages were claimed by requests for %v devices, want %d requests", alice.ident.claims, most)
			}
			if !restart && claimed != users*devices {
				t.Errorf("%d key packages were claimed for %d devices", claimed, users*devices)
			}
			w.s.mu.Lock()
			defer w.s.mu.Unlock()
			bytes := 0
			for _, n := range alice.hs.uploads {
				bytes += n
			}
			// Of a device its key package, twice: in its Add, and in the trees from then on; and what is encrypted to it.
			if files := len(alice.hs.uploads); files > 2*3 || bytes > 2*3*users*devices*500 {
				t.Errorf("%d files with %d bytes, want a commit, and a tree for whom it adds, of 3 commits", files, bytes)
			}
			for _, evt := range w.s.log {
				if len(evt.Content) > rooms.MaxEventSize {
					t.Errorf("an event of %s has %d bytes", evt.Type, len(evt.Content))
				}
			}
			t.Logf("claims for %v devices, files of %v bytes", alice.ident.claims, alice.hs.uploads)
		})
	}
}

// TestManyWithLongNamesAreAdded: the admissions of all whom one commit could take may be more than it can hold; the rest
// comes with the next.
func TestManyWithLongNamesAreAdded(t *testing.T) {
	w := newWorld(t)
	alice := w.device("alice", "ALICE")
	const users = 180
	room := w.plain(alice, users, 1, func(i int) string { return fmt.Sprintf("u%d%s", i, strings.Repeat("long", 50)) })
	w.settle()
	w.must(func() error { return alice.EnableMLS(w.ctx, room) })
	w.settle()
	if info, err := alice.Room(w.ctx, room); err != nil || info.Devices != users+1 {
		t.Fatalf("%d devices in the group, want %d (%v)", info.Devices, users+1, err)
	}
}
