package client

import "testing"

// TestMembersTellHowFarEachDeviceIsKnownToHaveCome: not how far this one has.
func TestMembersTellHowFarEachDeviceIsKnownToHaveCome(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.send(bob, room, "in this epoch")
	w.settle()
	before := alice.epoch(room)
	dave := w.device("dave", "DAVE1")
	w.all = []*testDevice{alice}
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) }) // who is in the group from then on
	w.settle()
	alice.restart()
	w.settle()
	now := alice.epoch(room)
	if now == before {
		t.Fatal("the epoch is the same: the test proves nothing")
	}
	members, err := alice.Members(w.ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Member{}
	for _, m := range members {
		got[string(m.Device)] = m
	}
	if m := got["ALICE1"]; !m.Heard || m.Epoch != now {
		t.Errorf("this device is at %d (known: %t), want %d", m.Epoch, m.Heard, now)
	}
	if m := got["BOB1"]; !m.Heard || m.Epoch != before {
		t.Errorf("bob is at %d (known: %t), want %d", m.Epoch, m.Heard, before)
	}
	if m, in := got["DAVE1"]; !in || m.Heard || m.Epoch != 0 {
		t.Errorf("dave is at %d (known: %t, in: %t), want that it is not known", m.Epoch, m.Heard, in)
	}
}

// TestMembersTellWhereThisDeviceIsFromTheStart: also where the room's record begins
// with the epoch that the device joined, whose commit it does not hold.
func TestMembersTellWhereThisDeviceIsFromTheStart(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.send(bob, room, "in the epoch that all joined")
	w.settle()
	for _, d := range []*testDevice{alice, bob, carol} {
		members, err := d.Members(w.ctx, room)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range members {
			if (m.Own || m.Device == "BOB1") && (!m.Heard || m.Epoch != d.epoch(room)) {
				t.Errorf("%s sees %s at %d (known: %t), want %d", d.DeviceID(), m.Device, m.Epoch, m.Heard, d.epoch(room))
			}
		}
	}
}
