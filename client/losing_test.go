package client

import (
	"slices"
	"testing"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestWhatADeviceReadsThatTheWinningBranchRemoved: what was sent on a branch that lost, the
// members of the head read, and it is sent to them again. A device that the winning branch
// removed, and the losing one did not, was sent it, too: it shows what comes before it knows
// of the Remove, and nothing after, of neither branch; then it holds no epoch any more.
func TestWhatADeviceReadsThatTheWinningBranchRemoved(t *testing.T) {
	for _, test := range []struct {
		name string
		off  bool // while the sides were parted
		late bool // what was sent on the losing branch comes after what the winning one did
		want []string
	}{
		{"it was on the losing branch", false, false, []string{"losing"}},
		{"it was off and the losing branch comes first", true, false, []string{"losing"}},
		{"it was off and the losing branch comes last", true, true, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			room, u := w.apart(3, nil)
			alice, bob, carol := u[0], u[1], u[2]
			dave := w.deviceOn(w.modules()[2].s, "dave", "DAVE1")
			w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
			w.join(dave, room)
			w.settle()
			w.sameEpoch(room, alice, bob, carol, dave)
			fork := alice.headRef(room)

			w.cut("s3.example")
			present := slices.Clone(w.all)
			if test.off {
				present = slices.DeleteFunc(present, func(d *testDevice) bool { return d == dave })
			}
			w.s.mu.Lock()
			w.s.users[dave.UserID()].devices[dave.DeviceID()].gone = true // logged out, which one side hears of
			w.s.mu.Unlock()
			for _, d := range []*testDevice{alice, bob} {
				d.ident.changed(dave.UserID())
			}
			must := func(fn func() error) {
				if err := w.backgroundOf(fn, present...); err != nil {
					t.Fatal(err)
				}
			}
			must(func() error { return carol.ChangePolicySelf(room) })
			for range 20 {
				w.settle(present...)
				w.now.add(rooms.CredentialGrace)
			}
			if alice.has(room, dave) || !carol.has(room, dave) || carol.headRef(room) == fork || alice.headRef(room) == carol.headRef(room) {
				t.Fatal("one side does not remove dave's device, or the other does: the test proves nothing")
			}
			lost := carol.headRef(room)
			must(func() error { _, err := alice.SendText(w.ctx, room, "winning"); return err })
			must(func() error { _, err := carol.SendText(w.ctx, room, "losing"); return err })
			w.settle(present...)
			var hidden *Event
			if s := w.modules()[2].s; test.late {
				w.s.mu.Lock()
				at := slices.IndexFunc(s.log, func(e *Event) bool { return e.Type == rooms.TypeEncrypted && e.Sender == carol.UserID() })
				hidden, s.log[at] = s.log[at], &Event{ID: "$elsewhere", RoomID: "!elsewhere:example.org"}
				w.s.mu.Unlock()
			}

			w.mend()
			carol.ident.changed(dave.UserID())
			w.settle(present...)
			w.sameEpoch(room, alice, bob, carol)
			for range 4 {
				w.settle()
				w.now.add(rooms.CredentialGrace)
			}
			for _, d := range []*testDevice{alice, bob, carol} {
				d.wantReceived("winning", "losing")
				if d.has(room, dave) {
					t.Errorf("dave's device is in the group again for %s", d.UserID())
				}
			}
			if test.late {
				w.s.mu.Lock()
				s := w.modules()[2].s
				s.log = append(s.log, hidden)
				w.s.mu.Unlock()
				w.settle()
				if !dave.toldUndecryptable(rooms.RuleMemberNotInRoom) {
					t.Error("dave's device does not say why it cannot read what came late")
				}
			}
			if got := dave.received(); !slices.Equal(got, test.want) {
				t.Errorf("dave's device shows %q, want %q", got, test.want)
			}
			if held := dave.held(room); len(held) > 0 {
				t.Errorf("dave's device still holds %d epochs, the losing one among them: %v", len(held), held[lost] != nil)
			}
			w.checkNonces()
		})
	}
}

// TestADevicePutOutByACommitThatIsDisplaced: a device that one side took out of the group,
// for it took it for a stranger, keeps what it has until that is final. The other side's
// branch wins: the device goes on there, without joining again, and reads what was said
// there before it knew of it.
func TestADevicePutOutByACommitThatIsDisplaced(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(3, nil)
	alice, bob, carol := u[0], u[1], u[2]
	dave := w.deviceOn(w.modules()[2].s, "dave", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave)
	dave.mu.Lock()
	joined := dave.rooms[room].rec.JoinRef
	dave.mu.Unlock()
	stranger := func(is bool, told ...*testDevice) {
		w.s.mu.Lock()
		w.s.users[dave.UserID()].devices[dave.DeviceID()].gone = is
		w.s.mu.Unlock()
		for _, d := range told {
			d.ident.changed(dave.UserID())
		}
	}

	w.cut("s3.example")
	w.send(alice, room, "where they part")
	w.must(func() error { return alice.ChangePolicySelf(room) })
	w.send(bob, room, "on the winning branch")
	stranger(true, carol)
	for range 20 {
		w.settle()
		w.now.add(rooms.CredentialGrace)
	}
	if carol.has(room, dave) || !alice.has(room, dave) {
		t.Fatal("one side does not take dave's device out, or the other does: the test proves nothing")
	}
	if _, err := dave.Room(w.ctx, room); !slices.ContainsFunc(dave.got, func(u Update) bool { _, ok := u.(*Removed); return ok }) {
		t.Fatalf("dave's device is not told that it is out (%v)", err)
	}

	stranger(false, alice, bob, carol, dave)
	w.mend()
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave)
	dave.wantReceived("where they part", "on the winning branch")
	dave.mu.Lock()
	r := dave.rooms[room]
	if r.rec.JoinRef != joined || r.rec.Phase != phaseMember {
		t.Errorf("dave's device joined again, at %x, and is %s", r.rec.JoinRef, r.rec.Phase)
	}
	if r.rec.PutOut != 0 {
		t.Errorf("dave's device passes for put out, since %d", r.rec.PutOut)
	}
	dave.mu.Unlock()
	w.send(dave, room, "back")
	w.settle()
	for _, d := range []*testDevice{alice, bob, carol} {
		d.wantReceived("where they part", "on the winning branch", "back")
	}
	w.checkNonces()
}
