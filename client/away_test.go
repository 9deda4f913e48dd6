package client

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestAwayForMoreThanIsRead: a client that missed more events than it reads back, and than it lets wait, is in the group
// again all the same: it reads what is said from then on, and is read.
func TestAwayForMoreThanIsRead(t *testing.T) {
	for _, c := range []struct{ commits, waiting int }{{60, 0}, {60, 20}} {
		t.Run(fmt.Sprintf("%d commits, %d waiting", c.commits, c.waiting), func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			w.settle()
			bob.bounds.GapPages, bob.bounds.Waiting = 1, c.waiting
			bob.restart()
			bob.turn()
			w.all = []*testDevice{alice, carol}
			before := w.s.events
			for i := range c.commits {
				by := []*testDevice{alice, carol}[i%2]
				w.must(func() error { return by.Refresh(w.ctx, room) })
			}
			w.send(alice, room, "while bob was away")
			w.settle()
			if n := w.s.events - before; n <= 200 {
				t.Fatalf("%d events were missed: the test proves nothing", n)
			}
			w.now.add(time.Hour)
			w.all = []*testDevice{alice, bob, carol}
			from, was := w.now.get(), bob.epoch(room)
			if !w.until(400, func() bool { return bob.epoch(room) == alice.epoch(room) && bob.epoch(room) > was }) {
				t.Fatalf("bob is at epoch %d of %d after %v", bob.epoch(room), alice.epoch(room), w.now.get()-from)
			}
			t.Logf("%d events missed: after %v, by %d commits more", w.s.events-before, w.now.get()-from, int(alice.epoch(room)-was)-c.commits)
			w.settle()
			w.send(alice, room, "after")
			w.settle()
			w.send(bob, room, "I am back")
			w.settle()
			w.sameEpoch(room, alice, bob, carol)
			t.Logf("%q", bob.texts())
			if got := bob.texts(); !slices.Contains(got, "after") {
				t.Errorf("bob got %q", got)
			}
			if got := alice.texts(); !slices.Contains(got, "I am back") {
				t.Errorf("alice got %q", got)
			}
		})
	}
}

// TestAwayForLongHoldsLittle: however many commits a client missed, it holds a few of their epochs at a time, in memory and
// in its store, and nothing of those that it went through.
func TestAwayForLongHoldsLittle(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.all = []*testDevice{alice, carol}
	commits, kept := 160, 2*64+2 // the coordination keeps so many commits: see federation.Limits.Keep
	if raceEnabled || testing.Short() {
		commits = 30
	}
	for i := range commits {
		by := []*testDevice{alice, carol}[i%2]
		w.must(func() error { return by.Refresh(w.ctx, room) })
	}
	w.send(alice, room, "the end")
	w.settle()
	was := bob.epoch(room)
	most := map[string]int{}
	bob.Client.crashAt = func(point string) error {
		if r := bob.rooms[room]; point == "room-commit" {
			for what, n := range map[string]int{
				"epochs": len(r.epochs), "staged commits": len(r.staged), "public groups": len(r.public), "needs": len(r.needs), "fetched events": len(r.fetched),
				"files": len(r.media), "own commits": len(r.own), "warned": len(r.rec.Warned),
				"to vouch for": len(r.vouchAt), "tried": len(r.tried), "old epochs": len(r.overSince), "who spoke": len(r.spoke), "late commits": len(r.rec.Late),
			} {
				most[what] = max(most[what], n)
			}
			if n := max(len(r.rec.Events), len(r.rec.Vouched), len(r.rec.Failed)); n > kept {
				t.Errorf("of %d commits something is held", n)
			}
		}
		return nil
	}
	bob.turn()
	bob.Client.crashAt = nil
	if n := int(bob.epoch(room) - was); n != commits {
		t.Fatalf("bob went through %d epochs in one turn, want %d", n, commits)
	}
	bob.wantTexts("the end")
	for what, n := range most {
		if n > 64 {
			t.Errorf("%d %s are held at a time", n, what)
		}
	}
	if len(most) == 0 {
		t.Error("nothing was looked at: the test proves nothing")
	}
	if rows, err := bob.st.Epochs(w.ctx, room); err != nil || len(rows) > 8 {
		t.Errorf("%d epochs are stored (%v)", len(rows), err)
	}
	if keys, err := bob.st.KVKeys(w.ctx, "commit/", 1000); err != nil || len(keys) > kept {
		t.Errorf("%d commits are stored (%v)", len(keys), err)
	}
	w.all = []*testDevice{alice, bob, carol}
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
}

// TestAwayForCommitsInFiles: in a large room commits are in files, and while a client that was away fetches them more events wait than
// it lets wait otherwise. None is given up: it goes through every epoch and reads all that was said in them, and fetches
// each file once.
func TestAwayForCommitsInFiles(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.settle()
	bob.bounds.Waiting = 75
	bob.restart()
	bob.turn()
	w.all = []*testDevice{alice, carol}
	alice.Client.inFiles, carol.Client.inFiles = true, true
	var want []string
	commits := 40
	if !raceEnabled && !testing.Short() {
		commits = 300 // more than the coordination keeps accepts of that wait for their commits
	}
	for i := range commits {
		by := []*testDevice{alice, carol}[i%2]
		w.must(func() error { return by.Refresh(w.ctx, room) })
		want = append(want, fmt.Sprint("said ", i))
		w.send(by, room, want[i])
	}
	was, fetched := bob.epoch(room), map[string]int{}
	bob.hs.stall = func(_ context.Context, mxc string) { fetched[mxc]++ }
	ahead, asked := 0, bob.hs.asked
	bob.Client.crashAt = func(string) error {
		if r := bob.rooms[room]; r != nil && r.machine != nil {
			ahead = max(ahead, r.machine.Waiting())
		}
		return nil
	}
	w.now.add(time.Minute)
	for range 40 {
		bob.turn()
		w.now.add(time.Second)
	}
	if n := int(bob.epoch(room) - was); n != commits {
		t.Errorf("bob went through %d epochs, want %d", n, commits)
	}
	bob.wantTexts(want...)
	if bob.Client.crashAt = nil; ahead < aheadOfCommits/2 || ahead > aheadOfCommits {
		t.Errorf("%d receipts waited for their commits in the coordination, want some, and at most %d", ahead, aheadOfCommits)
	}
	for mxc, n := range fetched {
		if n > 1 {
			t.Errorf("%s was fetched %d times", mxc, n)
		}
	}
	if n := bob.hs.asked - asked; n > 0 {
		t.Errorf("%d events were asked for, and all had come", n)
	}
	if len(fetched) < commits {
		t.Errorf("%d files were fetched: the test proves nothing", len(fetched))
	}
	w.all = []*testDevice{alice, bob, carol}
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
}

// TestAwayBehindACommitLeftOut: of the commits that were made while a client was away one is on no page of the history, as
// where a page of Dendrite's ends, and can be had by its event. More is waiting for it than waits otherwise, and more receipts
// than the coordination keeps ahead of their commits: all that was said is read.
func TestAwayBehindACommitLeftOut(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.settle()
	w.all = []*testDevice{alice, carol}
	was, begin := bob.epoch(room), len(w.s.log)
	commits := 60
	if !raceEnabled && !testing.Short() {
		commits = 300
	}
	var want []string
	for i := range commits {
		by := []*testDevice{alice, carol}[i%2]
		w.must(func() error { return by.Refresh(w.ctx, room) })
		want = append(want, fmt.Sprint("said ", i))
		w.send(by, room, want[i])
	}
	w.settle()
	first := slices.IndexFunc(w.s.log[begin:], func(evt *Event) bool { return evt.Type == rooms.TypeCommit })
	w.s.held = map[string]bool{string(w.s.log[begin+first].ID): true}
	bob.bounds.Waiting = 60
	bob.restart()
	w.now.add(time.Minute)
	for range 10 {
		bob.turn()
		w.now.add(time.Second)
	}
	if n := int(bob.epoch(room) - was); n != commits {
		t.Errorf("bob went through %d epochs, want %d", n, commits)
	}
	bob.wantTexts(want...)
	if left := bob.waiting(room); len(left) > 0 {
		t.Errorf("it still waits for %q", left)
	}
	w.all = []*testDevice{alice, bob, carol}
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
}
