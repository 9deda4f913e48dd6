package client

import (
	"context"
	"testing"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestACommitThatSkipsAProposedRemoveIsMadeAgain: a module accepts no commit that
// leaves out a Remove which it proposed. Where nobody else commits, its author makes
// another one, and tries again now and then where the module is mistaken.
func TestACommitThatSkipsAProposedRemoveIsMadeAgain(t *testing.T) {
	commits := func(w *world) (n int) {
		for _, evt := range w.s.log {
			if evt.Type == rooms.TypeCommit {
				n++
			}
		}
		return n
	}
	for name, restart := range map[string]bool{"who left meanwhile": false, "before a restart": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
			room := w.createRoom(alice, CreateOptions{History: "shared"})
			w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
			w.join(bob, room)
			w.settle()
			before, made := alice.epoch(room), commits(w)
			ctx, cancel := context.WithCancel(w.ctx)
			cancel()
			_ = alice.ChangePolicy(ctx, room, func(p *rooms.Policy) { p.Window = 7 })
			alice.Step(w.ctx) // it is made, and not sent yet
			bob.dead = true
			if err := bob.hs.Leave(w.ctx, room); err != nil {
				t.Fatal(err)
			}
			w.module.turn()
			w.module.bars = true
			w.module.proposeRemove(room, bob.UserID(), "$reason")
			alice.turn()
			w.module.turn()
			if commits(w) != made+1 || alice.epoch(room) != before {
				t.Fatalf("%d commits, epoch %d: want one more that is not accepted", commits(w)-made, alice.epoch(room))
			}
			if restart {
				alice.restart()
			}
			w.now.add(acceptWait)
			w.settle()
			w.now.add(acceptWait)
			w.settle()
			info, _ := alice.Room(w.ctx, room)
			if info.Devices != 1 || info.Epoch == before {
				t.Fatalf("%d devices in epoch %d, want bob out of the group", info.Devices, info.Epoch)
			}
			if policy := alice.policy(room); policy.Window != 7 {
				t.Errorf("window %d, want what alice asked for", policy.Window)
			}
			w.send(alice, room, "alone")
		})
	}
	for name, learns := range map[string]bool{"whom the module takes for gone": true, "whom it always does": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			w.module.bars = true
			w.module.proposeRemove(room, bob.UserID(), "$lie")
			w.settle()
			before, made := alice.epoch(room), commits(w)
			ctx, cancel := context.WithCancel(w.ctx)
			cancel()
			_ = alice.ChangePolicy(ctx, room, func(p *rooms.Policy) { p.Window = 7 })
			w.settle()
			w.now.add(acceptWait)
			w.settle()
			if n := commits(w) - made; n != 2 || alice.epoch(room) != before {
				t.Fatalf("%d commits, epoch %d, want two and none of them accepted", n, alice.epoch(room))
			}
			alice.restart()
			w.module.bars = !learns
			for range 20 {
				w.now.add(10 * acceptWait)
				w.settle()
			}
			if learns && (alice.epoch(room) != before+1 || bob.policy(room).Window != 7) {
				t.Errorf("epoch %d, window %d, want what alice asked for", alice.epoch(room), bob.policy(room).Window)
			}
			if n := commits(w) - made; !learns && n != 1+maxContests {
				t.Errorf("%d commits, want %d", n, 1+maxContests)
			}
			w.sameEpoch(room, alice, bob, carol)
		})
	}
}
