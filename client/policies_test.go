package client

import (
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestAdminsWhoDisagreeComeToRest(t *testing.T) {
	w := newWorld(t)
	id, alice, bob, carol := w.three("shared")
	alice2 := w.device("alice", "ALICE2")
	w.settle()
	w.sameEpoch(id, alice, bob, carol, alice2)
	before := alice.epoch(id)
	// Both want another window, neither knows of the other's wish, and nothing
	// becomes final meanwhile.
	w.module.noVouching = true
	for i, d := range []*testDevice{alice, alice2} {
		if err := d.wantPolicy(w.ctx, id, false, func(_ *room, p *rooms.Policy) error { p.Window = 3 + i; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	w.settle()
	w.sameEpoch(id, alice, bob, carol, alice2)
	if n := alice.epoch(id) - before; n > 2 {
		t.Errorf("%d epochs for two changes", n)
	}
}

// TestTwoChangesOfALosingBranch: an admin makes two changes one after the other on a side that loses. Both come after the
// heal.
func TestTwoChangesOfALosingBranch(t *testing.T) {
	w := newWorld(t)
	room, users := w.apart(3, nil)
	alice, bob, carol := users[0], users[1], users[2]
	w.cut(w.modules()[0].s.name)
	w.must(func() error { return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 7 }) })
	w.must(func() error {
		return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.HeirsWait = time.Hour })
	})
	w.must(func() error { return bob.Refresh(w.ctx, room) })
	w.must(func() error { return carol.Refresh(w.ctx, room) })
	w.mend()
	w.settle()
	for range 10 {
		w.now.add(30 * time.Second)
		w.settle()
	}
	w.sameEpoch(room, users...)
	p := bob.policy(room)
	if p.Window != 7 || p.HeirsWait != time.Hour {
		t.Errorf("window %d, heirs wait %v", p.Window, p.HeirsWait)
	}
}

// TestAnotherChangeDoesNotBringTheFirstBack: another admin changed the same thing above an accepted change, which is not final; one
// more change takes nothing of theirs back.
func TestAnotherChangeDoesNotBringTheFirstBack(t *testing.T) {
	w := newWorld(t)
	room, users := w.apart(5, nil)
	alice, bob := users[0], users[1]
	w.must(func() error {
		return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Admins = append(p.Admins, bob.UserID()) })
	})
	w.settle()
	w.cut(w.modules()[0].s.name, w.modules()[1].s.name)
	w.must(func() error { return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 7 }) })
	w.must(func() error { return bob.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 9 }) })
	w.must(func() error {
		return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.HeirsWait = time.Hour })
	})
	if p := alice.policy(room); p.Window != 9 || p.HeirsWait != time.Hour {
		t.Errorf("on the side: window %d, heirs wait %v", p.Window, p.HeirsWait)
	}
	w.mend()
	w.settle()
	for range 10 {
		w.now.add(30 * time.Second)
		w.settle()
	}
	w.sameEpoch(room, users...)
	if p := users[4].policy(room); p.Window != 9 || p.HeirsWait != time.Hour {
		t.Errorf("window %d, heirs wait %v", p.Window, p.HeirsWait)
	}
}

// TestTheSameListNamedAgainIsWaitedFor: an admin who names once more a list that waits for a module that is lost is not told that it is
// accepted.
func TestTheSameListNamedAgainIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	id, alice, _, _ := w.three("shared")
	lost := w.addModule("lost.example")
	lost.down = true
	for i := range 2 {
		ctx, cancel := w.timeout(time.Minute)
		err := w.background(func() error {
			return alice.ChangePolicy(ctx, id, func(p *rooms.Policy) {
				p.Sequencers = []federation.Sequencer{p.Sequencers[0], {Server: "lost.example", User: string(lost.bot), ReceiptKey: pub(lost.key)}}
				p.Manual = true
			})
		})
		cancel()
		if err == nil {
			t.Errorf("named %d times, it counts as accepted", i+1)
		}
		w.settle()
	}
}
