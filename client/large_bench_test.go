package client

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// clientCost counts what a client uses, while the homeserver in memory is not at work.
type clientCost struct {
	began time.Time
	wrote int64 // when it began
	time  time.Duration
	bytes int64 // written to files
	waits int   // for the disk
}

func (c *clientCost) start() { c.began, c.wrote = time.Now(), bytesWritten() }
func (c *clientCost) stop() {
	c.time += time.Since(c.began)
	c.bytes += bytesWritten() - c.wrote
}

// bytesWritten returns what this process has written to files so far, 0 where the system does not say.
func bytesWritten() int64 {
	raw, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(raw) {
		if rest, ok := bytes.CutPrefix(line, []byte("wchar: ")); ok {
			n, _ := strconv.ParseInt(string(bytes.TrimSpace(rest)), 10, 64)
			return n
		}
	}
	return 0
}

func (c *clientCost) report(b *testing.B, name string, n int) {
	b.ReportMetric(float64(c.time.Microseconds())/1000/float64(n), name+"-ms/op")
	b.ReportMetric(float64(c.bytes)/1000/float64(n), name+"-kB/op")
	b.ReportMetric(float64(c.waits)/float64(n), name+"-waits/op")
}

// largeRoom is a room with two clients and leaves that nobody runs.
func largeRoom(b *testing.B, leaves int) (w *world, room id.RoomID, alice, bob *testDevice) {
	w = newWorld(b)
	alice = w.device("alice", "ALICE1")
	room = w.createRoom(alice, CreateOptions{History: "shared"})
	w.crowd(alice, room, leaves-2)
	bob = w.device("bob", "BOB1")
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	w.sameEpoch(room, alice, bob)
	if info, err := alice.Room(w.ctx, room); err != nil || info.Devices != leaves {
		b.Fatalf("%d devices in the group, want %d (%v)", info.Devices, leaves, err)
	}
	return w, room, alice, bob
}

// profileHeap writes what of the heap is in use where BENCH_HEAP says.
func (w *world) profileHeap(b *testing.B) {
	path := os.Getenv("BENCH_HEAP")
	if path == "" {
		return
	}
	runtime.GC()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := pprof.WriteHeapProfile(f); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkLargeRoom is what a message and a commit cost a client in a large room: the one that sends, its own event when
// it comes back, the one that receives; the one that commits, and the one that follows, until the commit is final. The
// homeserver is in memory, and its work is not in the figures.
func BenchmarkLargeRoom(b *testing.B) {
	for _, leaves := range []int{10, 1000} {
		b.Run(fmt.Sprintf("leaves=%d", leaves), func(b *testing.B) {
			w, room, alice, bob := largeRoom(b, leaves)
			w.profileHeap(b)
			now := new(clientCost)
			for _, d := range w.all {
				d.ident.around = func(work func()) {
					now.stop()
					work()
					now.start()
				}
				d.hs.before = func(string) { now.stop() }
				d.hs.after = func(string) error { now.start(); return nil }
				d.durable = func() { now.waits++ }
			}
			run := func(into *clientCost, work func()) {
				now = into
				now.start()
				work()
				now.stop()
				now = new(clientCost)
			}
			b.Run("message", func(b *testing.B) {
				var send, echo, receive clientCost
				canceled, cancel := context.WithCancel(w.ctx)
				cancel()
				for i := range b.N {
					text := fmt.Sprint("message ", b.N, i)
					run(&send, func() {
						_, _ = alice.SendText(canceled, room, text)
						alice.Step(w.ctx)
						alice.Flush(w.ctx)
					})
					run(&echo, alice.turn)
					run(&receive, bob.turn)
					if got := bob.texts(); len(got) == 0 || got[len(got)-1] != text {
						b.Fatalf("bob has not read %q", text)
					}
					alice.got, bob.got = nil, nil
					w.now.add(time.Second)
				}
				send.report(b, "send", b.N)
				echo.report(b, "echo", b.N)
				receive.report(b, "receive", b.N)
			})
			b.Run("commit", func(b *testing.B) {
				var commit, follow clientCost
				for range b.N {
					epoch := alice.epoch(room)
					if _, err := alice.wantRefresh(w.ctx, room); err != nil {
						b.Fatal(err)
					}
					for turns := 0; turns < 8 || bob.epoch(room) == epoch; turns++ {
						if turns == 100 {
							b.Fatal("the commit does not come")
						}
						run(&commit, alice.turn)
						run(&follow, bob.turn)
						w.order()
						w.now.add(250 * time.Millisecond)
					}
					w.settle()
					w.sameEpoch(room, alice, bob)
				}
				commit.report(b, "commit", b.N)
				follow.report(b, "follow", b.N)
			})
		})
	}
}

// BenchmarkManyRooms is a look at all rooms of a device in which there is nothing to do. There is one after each message
// that it sends and each answer of its /sync, so that whoever has many rooms waits for it.
func BenchmarkManyRooms(b *testing.B) {
	for _, rooms := range []int{1, 200} {
		b.Run(fmt.Sprintf("rooms=%d", rooms), func(b *testing.B) {
			w := newWorld(b)
			alice := w.device("alice", "ALICE1")
			for range rooms {
				w.createRoom(alice, CreateOptions{History: "shared"})
			}
			w.settle()
			for b.Loop() {
				alice.Step(w.ctx)
			}
		})
	}
}
