package client

import (
	"testing"

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
