package client

import (
	"fmt"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestReceiptsThatTheHomeserverKeeps: an accept, or votes, that a homeserver never
// shows count from the heads of the modules, which hold them.
func TestReceiptsThatTheHomeserverKeeps(t *testing.T) {
	for name, kept := range map[string][]string{
		"accepts":           {rooms.TypeAccept},
		"votes":             {rooms.TypeVote},
		"accepts and votes": {rooms.TypeAccept, rooms.TypeVote},
	} {
		for _, large := range []bool{false, true} {
			if large {
				name += ", proofs in media"
			}
			t.Run(name, func(t *testing.T) {
				w := newWorld(t)
				room, alice, bob, carol := w.three("shared")
				w.settle()
				w.module.proofInMedia = large
				for _, kind := range kept {
					w.s.held[kind] = true
				}
				before := bob.epoch(room)
				w.must(func() error {
					return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 7 })
				})
				for range 8 {
					w.settle()
				}
				for _, d := range []*testDevice{alice, bob, carol} {
					if got := d.epoch(room); got != before+1 {
						t.Errorf("%s: epoch %d, want %d", d.UserID(), got, before+1)
					}
					d.mu.Lock()
					m := d.rooms[room].machine
					if got := m.Status(m.Head()); got != federation.StatusFinal {
						t.Errorf("%s shows the change as %v", d.UserID(), got)
					}
					d.mu.Unlock()
					for _, u := range d.got {
						if warning, ok := u.(*Warning); ok && warning.Rule == ruleCannotFollow {
							t.Errorf("%s joined again: %s", d.UserID(), strings.TrimSpace(warning.Text))
						}
					}
				}
				w.send(bob, room, "after it")
				w.settle()
				carol.wantTexts("after it")
			})
		}
	}
}

// TestAHeadThatMovesOnAndOnDelaysNoOthers: what a module's head shows is taken in time,
// however often another's changes.
func TestAHeadThatMovesOnAndOnDelaysNoOthers(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.three("shared")
	alice.mu.Lock()
	defer alice.mu.Unlock()
	r := alice.rooms[room]
	bot := w.module.bot
	for i := range 8 {
		entry := r.state.Entries[rooms.TypeHead][string(bot)]
		entry.Event = id.EventID(fmt.Sprint("$head", i))
		r.state.Entries[rooms.TypeHead][string(bot)] = entry
		r.showMore = []id.UserID{bot}
		if err := alice.takeShown(w.ctx, r); err != nil {
			t.Fatal(err)
		}
		if r.takeAt == 0 || r.taken > 0 {
			return // it was tried
		}
		w.now.add(takeWait * 2 / 3)
	}
	t.Errorf("nothing was taken in %v", 8*takeWait*2/3)
}
