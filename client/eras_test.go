package client

import (
	"errors"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func (d *testDevice) eras() []*EraOpened {
	var out []*EraOpened
	for _, u := range d.got {
		if era, ok := u.(*EraOpened); ok {
			out = append(out, era)
		}
	}
	return out
}

// faultMajorityGone: two of three modules are lost for
// good; the room goes on in an era with the third. When they come back they
// follow it, and an admin can list them again.
func faultMajorityGone(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	all := []*testDevice{alice, bob, carol}
	w.must(func() error { return alice.SetSequencers(w.ctx, room, testServer, "two.example", "three.example") })
	w.settle()
	w.module.down, w.more[0].down = true, true
	w.send(bob, room, "before")
	w.settle()
	if err := bob.OpenEra(w.ctx, room, "three.example"); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("bob, no admin, opens an era: %v", err)
	}
	if err := alice.OpenEra(w.ctx, room); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("an era without a list: %v", err)
	}
	if err := alice.OpenEra(w.ctx, room, "nowhere.example"); !errors.Is(err, ErrNoModuleOf) {
		t.Errorf("an era with a module that is not there: %v", err)
	}
	w.must(func() error { return alice.OpenEra(w.ctx, room, "three.example") })
	w.settle()
	w.wantServers(room, all, "three.example")
	for _, d := range all {
		eras := d.eras()
		if len(eras) != 1 || eras[0].Era != 1 || eras[0].By != alice.UserID() || eras[0].ByHeirs || !slices.Equal(eras[0].Servers, []string{"three.example"}) {
			t.Errorf("%s was told of %+v", d.ident.device, eras)
		}
		if info := d.sequencers(room); info.Era != 1 || info.EraBy != alice.UserID() {
			t.Errorf("%s sees era %d by %s", d.ident.device, info.Era, info.EraBy)
		}
	}
	dave := w.device("dave:two.example", "DAVE1")
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	w.settle()
	w.send(dave, room, "in the new era")
	w.settle()
	carol.wantTexts("before", "in the new era")
	w.module.down, w.more[0].down = false, false
	w.settle()
	for _, m := range []*fakeModule{w.module, w.more[0]} {
		if era, _ := m.groups[room].machine.EraOf(); era != 1 {
			t.Errorf("the module of %s is in era %d when it comes back", m.server, era)
		}
	}
	w.must(func() error { return alice.AddSequencers(w.ctx, room, testServer, "two.example") })
	w.settle()
	w.wantServers(room, append(all, dave), "three.example", testServer, "two.example")
}

// TestOverriddenFinalsAreListed: a new era says which final commits it does not
// hold, and whose.
func TestOverriddenFinalsAreListed(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.federated(func(p *rooms.Policy) { p.Manual = true })
	before := alice.epoch(room)
	alice.mu.Lock()
	old := alice.rooms[room].machine.Head()
	alice.mu.Unlock()
	// Carol is removed, and everybody knows that this is final.
	w.must(func() error { return alice.Kick(w.ctx, room, id.UserID("@carol:three.example"), "") })
	w.settle()
	alice.mu.Lock()
	r := alice.rooms[room]
	final, head := r.machine.NewestFinal(), r.machine.Head()
	if final != head || final == old {
		t.Fatalf("final %s, head %s, before %s", final.Short(), head.Short(), old.Short())
	}
	// Seen from a device whose newest final was that commit, once the head is
	// in an era that was opened below it.
	policy, _ := r.machine.PolicyAt(old)
	group := r.epochs[head].group
	scope, _ := r.machine.ScopeAt(old)
	alice.mu.Unlock()
	_ = scope
	leaves := make([]federation.Leaf, 0)
	for _, l := range rooms.GroupLeaves(group) {
		leaves = append(leaves, federation.Leaf{Index: uint32(l.Index), User: string(l.Cred.User), Key: l.Cred.Key})
	}
	m, err := federation.New(federation.Config{Room: string(room), Verify: rooms.VerifyLeafSignature}, federation.Base{
		Ref: old, Epoch: before, GroupID: group.GroupID(), Suite: uint16(w.cs), Policy: policy, Leaves: leaves, Config: old,
	})
	if err != nil {
		t.Fatal(err)
	}
	step := func(ev federation.Event) {
		t.Helper()
		if _, err := m.Step(ev); err != nil {
			t.Fatal(err)
		}
	}
	step(&federation.Commit{Ref: final, Parent: old, Epoch: before + 1, Author: leaves[0].Index, AuthorUser: string(alice.UserID())})
	era := federation.Ref{1, 2, 3}
	p := policy
	p.Sequencers = policy.Sequencers[:1]
	step(&federation.Commit{Ref: era, Parent: old, Epoch: before + 1, Author: leaves[0].Index, AuthorUser: string(alice.UserID()), Policy: &p, Era: &federation.Era{Number: 1}})
	child := federation.Ref{1, 2, 4}
	step(&federation.Commit{Ref: child, Parent: era, Epoch: before + 2, Author: leaves[1].Index, AuthorUser: string(bob.UserID())})
	alice.mu.Lock()
	r.machine = m
	alice.tellEra(r, 0, final)
	told := alice.updates[len(alice.updates)-1].(*EraOpened)
	alice.mu.Unlock()
	if len(told.Overrides) != 1 || told.Overrides[0].Ref != final || told.Overrides[0].By != alice.UserID() || told.Overrides[0].Epoch != before+1 {
		t.Errorf("overridden: %+v", told.Overrides)
	}
}
