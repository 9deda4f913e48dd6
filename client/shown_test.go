package client

import (
	"strings"
	"testing"

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
