package client

import (
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// requestsOf counts a device's questions for commits.
func (w *world) requestsOf(devices ...*testDevice) (n int) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for _, evt := range w.s.log {
		for _, d := range devices {
			if evt.Type == rooms.TypeRequest && evt.Sender == d.UserID() {
				n++
			}
		}
	}
	return n
}

// TestCommitThatTheHomeserverDoesNotGive: what neither /sync nor /event gives a
// module posts again, and nothing that was said since is lost: also where the
// homeserver does not say that it has none, but answers with errors.
func TestCommitThatTheHomeserverDoesNotGive(t *testing.T) {
	for name, noEvents := range map[string]bool{"has none": false, "answers with errors": true} {
		t.Run(name, func(t *testing.T) { testMissingCommit(t, noEvents) })
	}
}

func testMissingCommit(t *testing.T, noEvents bool) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	before := alice.epoch(room)
	bob.dead = true
	for range 2 { // one above the other
		alice.mu.Lock()
		alice.rooms[room].rec.Refresh = true
		alice.mu.Unlock()
		w.settle()
	}
	w.send(carol, room, "in between")
	w.settle()
	if got := alice.epoch(room); got != before+2 {
		t.Fatalf("epoch %d, want %d", got, before+2)
	}
	hidden := w.hideAll(func(evt *Event) bool {
		content, err := rooms.DecodeCommit(evt.Content)
		return evt.RoomID == room && evt.Type == rooms.TypeCommit && err == nil && content.Epoch > before
	})
	if len(hidden) != 2 {
		t.Fatalf("%d commits are hidden, want 2", len(hidden))
	}
	bob.dead = false
	bob.hs.noEvents = noEvents
	for range 40 {
		bob.turn()
		w.order()
		w.now.add(time.Second)
	}
	bob.wantTexts("in between")
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	if got := alice.epoch(room); got != before+2 {
		t.Errorf("epoch %d, want %d: bob joined again", got, before+2)
	}
	if n := w.requestsOf(bob); n == 0 || n > 3 {
		t.Errorf("bob asked %d times", n)
	}
}

// TestCommitsThatNobodyHas: for commits that are named and never were, which a lying
// member can do in messages, all members together ask a few times, then ever more
// rarely, and not for ever.
func TestCommitsThatNobodyHas(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	const named = 3 * requestAtOnce
	for _, d := range []*testDevice{alice, bob} {
		d.mu.Lock()
		for i := range named {
			d.miss(d.rooms[room], federation.Ref{9, byte(i)})
		}
		d.mu.Unlock()
	}
	for range 300 {
		alice.turn()
		bob.turn()
		w.now.add(2 * time.Second)
	}
	if n, most := w.requestsOf(alice, bob), (named/requestAtOnce+1)*(requestTimes+2); n < named/requestAtOnce || n > most {
		t.Errorf("%d questions in ten minutes, want %d at most", n, most)
	}
	before := w.requestsOf(alice, bob)
	for range 150 {
		alice.turn()
		bob.turn()
		w.now.add(10 * time.Minute)
	}
	if n, most := w.requestsOf(alice, bob)-before, 2*(24+6)*named/requestAtOnce; n < 20 || n > most {
		t.Errorf("%d questions in the day after, want one in an hour for each %d commits, %d at most", n, requestAtOnce, most)
	}
	alice.mu.Lock()
	defer alice.mu.Unlock()
	r := alice.rooms[room]
	if len(r.requests) > 0 {
		t.Errorf("after a day %d commits are asked for", len(r.requests))
	}
	for i := range 2 * maxRequests {
		alice.miss(r, federation.Ref{8, byte(i)})
	}
	if len(r.requests) != maxRequests {
		t.Errorf("%d commits are remembered, want %d", len(r.requests), maxRequests)
	}
	for _, q := range r.requests {
		q.times = requestTimes
	}
	last := federation.Ref{7}
	alice.miss(r, last)
	if len(r.requests) != maxRequests || r.requests[last] == nil {
		t.Error("a commit that is missing since now finds no place beside those that were asked for in vain")
	}
}
