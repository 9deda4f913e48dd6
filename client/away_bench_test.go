package client

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// crowd lets users that nobody runs into a room: each with a device and a key package, which alice adds in the ordinary
// way. In batches, since an invite is a request.
func (w *world) crowd(alice *testDevice, room id.RoomID, leaves int) {
	w.t.Helper()
	for from := 0; from < leaves; from += 200 {
		for i := from; i < min(from+200, leaves); i++ {
			ident, user := w.register(fmt.Sprint("crowd", i), "D1")
			ident.own().packages = nil
			ident.addPackages(w, w.cs, 1, newSeeded(string(user)))
			if err := alice.Invite(w.ctx, room, user); err != nil {
				w.t.Fatal(err)
			}
		}
		w.settle(alice)
	}
}

// BenchmarkCatchUp is a client that was away while others made 1,000 commits: it reads the room's history, and goes through
// every epoch. The homeserver is in memory; what the client waits for on the clock (virtual-s) is not in the time.
func BenchmarkCatchUp(b *testing.B) {
	for _, c := range []struct{ leaves, commits int }{{3, 100}, {3, 1000}, {103, 1000}} {
		leaves, commits := c.leaves, c.commits
		b.Run(fmt.Sprintf("leaves=%d/commits=%d", leaves, commits), func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				w := newWorld(b)
				room, alice, bob, carol := w.three("shared")
				w.crowd(alice, room, leaves-3)
				w.settle()
				w.all = []*testDevice{alice, carol}
				for i := range commits {
					by := []*testDevice{alice, carol}[i%2]
					if _, err := by.wantRefresh(w.ctx, room); err != nil {
						b.Fatal(err)
					}
					for epoch := alice.epoch(room); alice.epoch(room) == epoch || carol.epoch(room) == epoch; {
						w.order()
						alice.turn()
						carol.turn()
						w.now.add(250 * time.Millisecond)
					}
				}
				w.send(alice, room, "the end")
				w.now.add(time.Minute)
				bob.got = nil
				var before, now runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				var most uint64
				from := w.now.get()
				b.StartTimer()
				for turns := 0; len(bob.texts()) == 0; turns++ {
					if turns == 600 {
						b.Fatalf("at epoch %d of %d after %v", bob.epoch(room), alice.epoch(room), w.now.get()-from)
					}
					bob.turn()
					w.now.add(100 * time.Millisecond)
					b.StopTimer()
					runtime.ReadMemStats(&now)
					most = max(most, now.HeapInuse)
					b.StartTimer()
				}
				b.StopTimer()
				b.ReportMetric((w.now.get() - from).Seconds(), "virtual-s")
				b.ReportMetric(float64(most-before.HeapInuse)/(1<<20), "MiB-more")
				w.sameEpoch(room, alice, bob)
			}
		})
	}
}

// BenchmarkFirstMessage is a newcomer to a large room: it sees the invite, joins, takes the Welcome and the tree, checks
// everybody in it, and reads a message that was sent after it was added. The homeserver is in memory; what the newcomer
// waits for on the clock (virtual-s) is not in the time.
func BenchmarkFirstMessage(b *testing.B) {
	for _, leaves := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("leaves=%d", leaves), func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				w := newWorld(b)
				alice := w.device("alice", "ALICE1")
				room := w.createRoom(alice, CreateOptions{History: "shared"})
				w.crowd(alice, room, leaves-2)
				late := w.device("late", "LATE1")
				w.all = []*testDevice{alice}
				w.must(func() error { return alice.Invite(w.ctx, room, late.UserID()) })
				w.settle(alice)
				w.send(alice, room, "welcome")
				w.settle(alice)
				if info, err := alice.Room(w.ctx, room); err != nil || info.Devices != leaves {
					b.Fatalf("%d devices in the group, want %d (%v)", info.Devices, leaves, err)
				}
				w.all = []*testDevice{late}
				from := w.now.get()
				b.StartTimer()
				w.join(late, room)
				for turns := 0; len(late.texts()) == 0; turns++ {
					if turns == 600 {
						b.Fatalf("nothing is read after %v", w.now.get()-from)
					}
					w.order()
					late.turn()
					w.now.add(100 * time.Millisecond)
				}
				b.StopTimer()
				b.ReportMetric((w.now.get() - from).Seconds(), "virtual-s")
			}
		})
	}
}
