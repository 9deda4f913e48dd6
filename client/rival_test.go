package client

import (
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestWhoSeesAnothersCommitClaimsNothing: while one member's commit waits for its accept, the others, whose timers run out,
// use up none of the key packages of whom it adds. If no module answers, they try all the same.
func TestWhoSeesAnothersCommitClaimsNothing(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.settle()
	ident, user := w.register("late", "D1")
	ident.addPackages(w, w.cs, 20, newSeeded("late"))
	left := func() int {
		return len(slices.DeleteFunc(slices.Clone(ident.own().packages), func(b *mls.KeyPackageBundle) bool { return b == nil }))
	}
	had := left()
	w.module.down = true
	w.must(func() error { return alice.Invite(w.ctx, room, user) })
	wait := func(d time.Duration) {
		for end := w.now.get() + d; w.now.get() < end; w.now.add(250 * time.Millisecond) {
			w.order()
			for _, d := range w.all {
				d.turn()
			}
		}
	}
	wait(8 * time.Second) // all timers have run out
	if used := had - left(); used != 1 {
		t.Fatalf("%d key packages of one device were claimed, want 1", used)
	}
	wait(time.Minute)
	if used := had - left(); used < 2 {
		t.Error("nobody else tries where one member's commit is not accepted")
	}
	w.module.down = false
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	if info, err := alice.Room(w.ctx, room); err != nil || info.Devices != 4 {
		t.Errorf("%d devices in the group, want 4 (%v)", info.Devices, err)
	}
	if members, err := alice.Members(w.ctx, room); err != nil || !slices.ContainsFunc(members, func(m Member) bool { return m.User == id.UserID(user) && m.Device != "" }) {
		t.Errorf("the newcomer is not in the group (%v)", err)
	}
}

// TestWhoGaveWayIsNotDueWithAllOthers: where nobody's commit is accepted the members that let one go first try afterwards as
// far apart as their timers had been.
func TestWhoGaveWayIsNotDueWithAllOthers(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	others := []*testDevice{bob, carol}
	for _, name := range []string{"dave", "erin", "frank", "grace"} {
		d := w.device(name, strings.ToUpper(name)+"1")
		w.must(func() error { return alice.Invite(w.ctx, room, d.UserID()) })
		w.join(d, room)
		others = append(others, d)
	}
	w.settle()
	_, user := w.register("late", "D1")
	w.module.down = true
	w.must(func() error { return alice.Invite(w.ctx, room, user) })
	for end := w.now.get() + committerGrace + rooms.CommitterSpan + time.Second; w.now.get() < end; w.now.add(250 * time.Millisecond) {
		w.order()
		for _, d := range w.all {
			d.turn()
		}
	}
	due := map[time.Duration]bool{}
	for _, d := range others {
		d.mu.Lock()
		r := d.rooms[room]
		e, until := r.head(), r.rivalAt+rivalWait
		after, own := r.commitAt-until, rooms.CommitterDelay(e.ref, e.group.OwnLeafIndex(), e.group.MemberCount())
		d.mu.Unlock()
		if r.rivalOn != e.ref || after != own {
			t.Errorf("%s is due %s after all have given way, want %s", d.ident.device, after, own)
		}
		due[after] = true
	}
	if len(due) < 2 { // of seven, each is due at once in one of seven cases: four and more of them now and then
		t.Errorf("%d devices are due at %d times", len(others), len(due))
	}
}
