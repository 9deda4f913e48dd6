package client

import (
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestACommitThatWasPassedIsNotSent: a commit beside one in doubt waits to be sent, as where the homeserver limits
// the rate. Once the other one is final it is not sent any more, whether anything else is to be committed or not.
func TestACommitThatWasPassedIsNotSent(t *testing.T) {
	for _, more := range []bool{false, true} {
		name := "nothing else to commit"
		if more {
			name = "something else to commit"
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			turns := func(n int) {
				for range n {
					w.order()
					for _, d := range w.all {
						d.turn()
					}
					w.now.add(time.Second)
				}
			}
			w.module.noVouching = true
			w.s.held[rooms.TypeApplied] = true
			below := alice.headRef(room)
			w.must(func() error { return bob.ChangePolicySelf(room) })
			turns(3)
			w.sameEpoch(room, alice, bob, carol)
			head := alice.headRef(room)
			carol.mu.Lock()
			r, b := carol.rooms[room], &batch{}
			err := carol.sendReject(r, head, below, "test/cannot-apply", b)
			if err == nil {
				err = carol.commitBatch(w.ctx, r, b)
			}
			carol.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range []*testDevice{alice, carol} { // neither vouches for it
				d.mu.Lock()
				r := d.rooms[room]
				if r.rec.Failed == nil {
					r.rec.Failed = map[string]string{}
				}
				r.rec.Failed[head.String()], r.rec.Rejected = "test", map[string]bool{head.String(): true}
				d.mu.Unlock()
			}
			alice.mu.Lock()
			alice.limited = alice.mono() + time.Hour
			alice.mu.Unlock()
			waits := func() bool {
				alice.mu.Lock()
				defer alice.mu.Unlock()
				p := alice.rooms[room].pending
				return p != nil && p.EventID == "" && p.Parent == rooms.Hash(below)
			}
			carol.turn()
			for range 20 { // the others commit nothing meanwhile
				if waits() {
					break
				}
				w.order()
				alice.turn()
				w.now.add(time.Second)
			}
			if !waits() {
				t.Fatal("alice makes no commit beside the one in doubt, or sends it: the test proves nothing")
			}
			w.module.noVouching = false
			w.s.held[rooms.TypeApplied] = false
			carol.mu.Lock()
			delete(carol.rooms[room].rec.Failed, head.String())
			delete(carol.rooms[room].rec.Rejected, head.String())
			delete(carol.rooms[room].rec.Vouched, head.String())
			carol.rooms[room].vouchAt[head] = 1 // at once
			carol.mu.Unlock()
			carol.turn()
			if more {
				alice.mu.Lock()
				alice.rooms[room].rec.Refresh = true
				alice.mu.Unlock()
			}
			turns(10)
			alice.mu.Lock()
			final := alice.rooms[room].machine.Final(head)
			alice.limited = 0
			alice.mu.Unlock()
			if !final {
				t.Fatal("the commit that was in doubt does not become final: the test proves nothing")
			}
			w.settle()
			w.s.mu.Lock()
			defer w.s.mu.Unlock()
			for _, evt := range w.s.log {
				if content, err := rooms.DecodeCommit(evt.Content); evt.Type == rooms.TypeCommit && evt.Sender == alice.UserID() && err == nil && content.Parent == rooms.Hash(below) {
					t.Error("alice sends a commit below what is final")
				}
			}
		})
	}
}

// TestACommitThatWasPassedWhileItWasSentIsNotSentAgain: it was given up while its request was under way, and that fails.
func TestACommitThatWasPassedWhileItWasSentIsNotSentAgain(t *testing.T) {
	for name, fails := range map[string]error{"rate limit": &RateLimitError{RetryAfter: 30 * time.Second}, "no answer": errUnreachableNow} {
		t.Run(name, func(t *testing.T) {
			x := newRefusing(t)
			var lost rooms.Hash
			x.alice.hs.before = func(kind string) {
				if kind != "send/"+rooms.TypeCommit || !lost.IsZero() {
					return
				}
				x.alice.hs.fail = fails
				x.alice.mu.Lock()
				defer x.alice.mu.Unlock()
				r, b := x.alice.rooms[x.room], &batch{}
				lost = r.pending.Ref
				x.alice.loseCommit(r, b)
				if err := x.alice.commitBatch(x.ctx, r, b); err != nil {
					t.Error(err)
				}
			}
			x.must(func() error { return x.alice.ChangePolicySelf(x.room) })
			for range 10 {
				x.alice.turn()
			}
			if lost.IsZero() {
				t.Fatal("alice sends no commit: the test proves nothing")
			}
			x.alice.mu.Lock()
			for _, row := range x.alice.roomRows(x.room) {
				if row.item.Kind == kindCommit && row.ref() == federation.Ref(lost) {
					t.Error("the commit that was given up waits to be sent again")
				}
			}
			x.alice.mu.Unlock()
			for range 20 {
				x.settle()
				x.now.add(5 * time.Second)
			}
			for _, evt := range x.s.log {
				if evt.Type != rooms.TypeCommit {
					continue
				}
				content, err := rooms.DecodeCommit(evt.Content)
				if err != nil {
					continue
				}
				if msg, err := mls.ParseMessage(content.Message); err == nil {
					if ref, err := rooms.CommitRef(msg); err == nil && rooms.Hash(ref) == lost {
						t.Error("the commit that was given up is sent")
					}
				}
			}
			x.sameEpoch(x.room, x.alice, x.bob, x.carol)
		})
	}
}
