package client

import (
	"context"
	"fmt"
	"runtime"
	"runtime/pprof"
	"syscall"
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
			_, user := w.enroll(w.s, fmt.Sprint("crowd", i), "D1", 1)
			if err := alice.Invite(w.ctx, room, user); err != nil {
				w.t.Fatal(err)
			}
		}
		w.settle(alice)
	}
}

// cpuTime returns what processor time this process has used: on a machine that does other things, too, it says more than
// the clock.
func cpuTime() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkCatchUp is a client that was away while others made 1,000 commits: it reads the room's history, and goes through
// every epoch. The homeserver is in memory; what the client waits for on the clock (virtual-s) is not in the time.
func BenchmarkCatchUp(b *testing.B) {
	for _, c := range []struct{ leaves, commits int }{{3, 100}, {3, 400}, {3, 1000}, {103, 400}, {103, 1000}, {1000, 100}, {1000, 1000}} {
		leaves, commits := c.leaves, c.commits
		b.Run(fmt.Sprintf("leaves=%d/commits=%d", leaves, commits), func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				w := newWorld(b)
				room, alice, bob, carol := w.three("shared")
				w.crowd(alice, room, leaves-3)
				w.settle()
				w.all = []*testDevice{alice, carol}
				was := bob.epoch(room)
				for i := range commits {
					by := []*testDevice{alice, carol}[i%2]
					if wanted, err := by.wantRefresh(w.ctx, room); err != nil || !wanted {
						b.Fatalf("commit %d of %d: another is under way, or it failed (%v)", i+1, commits, err)
					}
					epoch := alice.epoch(room)
					for turns := 0; alice.epoch(room) == epoch || carol.epoch(room) == epoch; turns++ {
						if turns == 600 {
							b.Fatalf("commit %d of %d: alice is at epoch %d and carol at %d after %d turns", i+1, commits, alice.epoch(room), carol.epoch(room), turns)
						}
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
				most, wrote := before.HeapAlloc, 0
				var cpu time.Duration
				entered := map[uint64]bool{}
				bob.Client.crashAt = func(point string) error {
					if point == "room-commit" {
						if head := bob.rooms[room].head(); head != nil {
							entered[head.group.Epoch()] = true
						}
					}
					if wrote++; wrote%200 == 0 { // what is held, without what waits for the garbage collector
						b.StopTimer()
						cpu += cpuTime()
						runtime.GC()
						runtime.ReadMemStats(&now)
						most = max(most, now.HeapAlloc)
						cpu -= cpuTime()
						b.StartTimer()
					}
					return nil
				}
				from := w.now.get()
				b.StartTimer()
				for turns := 0; len(bob.texts()) == 0; turns++ {
					if turns == 600 {
						b.Fatalf("at epoch %d of %d after %v", bob.epoch(room), alice.epoch(room), w.now.get()-from)
					}
					cpu -= cpuTime()
					pprof.Do(w.ctx, pprof.Labels("phase", "catch-up"), func(context.Context) { bob.turn() })
					cpu += cpuTime()
					w.now.add(100 * time.Millisecond)
				}
				b.StopTimer()
				b.ReportMetric((w.now.get() - from).Seconds(), "virtual-s")
				b.ReportMetric(cpu.Seconds(), "cpu-s")
				b.ReportMetric(float64(most-before.HeapAlloc)/(1<<20), "MiB-held")
				w.sameEpoch(room, alice, bob)
				for epoch := was + 1; epoch <= was+uint64(commits); epoch++ {
					if !entered[epoch] {
						b.Fatalf("bob, who came from epoch %d to %d, did not go through epoch %d", was, bob.epoch(room), epoch)
					}
				}
			}
		})
	}
}

// BenchmarkFirstMessage is a newcomer to a large room, whose users have eight devices each: it sees the invite, joins, takes the Welcome and the tree, checks
// everybody in it, and reads a message that was sent after it was added. The homeserver is in memory; what the newcomer
// waits for on the clock (virtual-s) is not in the time.
func BenchmarkFirstMessage(b *testing.B) {
	for _, leaves := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("leaves=%d", leaves), func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				w := newWorld(b)
				alice := w.device("alice", "ALICE1")
				room := w.plain(alice, (leaves-2)/8, 8, func(i int) string { return fmt.Sprint("crowd", i) })
				w.settle(alice)
				w.must(func() error { return alice.EnableMLS(w.ctx, room) })
				w.settle(alice)
				late := w.device("late", "LATE1")
				w.all = []*testDevice{alice}
				w.must(func() error { return alice.Invite(w.ctx, room, late.UserID()) })
				w.settle(alice)
				w.send(alice, room, "welcome")
				w.settle(alice)
				if info, err := alice.Room(w.ctx, room); err != nil || info.Devices < leaves-8 {
					b.Fatalf("%d devices in the group, want some %d (%v)", info.Devices, leaves, err)
				}
				w.all = []*testDevice{late}
				from, cpu := w.now.get(), -cpuTime()
				b.StartTimer()
				pprof.Do(w.ctx, pprof.Labels("phase", "newcomer"), func(context.Context) {
					w.join(late, room)
					for turns := 0; len(late.texts()) == 0; turns++ {
						if turns == 600 {
							b.Fatalf("nothing is read after %v", w.now.get()-from)
						}
						w.order()
						late.turn()
						w.now.add(100 * time.Millisecond)
					}
				})
				b.StopTimer()
				cpu += cpuTime()
				b.ReportMetric(cpu.Seconds(), "cpu-s")
				b.ReportMetric((w.now.get() - from).Seconds(), "virtual-s")
			}
		})
	}
}
