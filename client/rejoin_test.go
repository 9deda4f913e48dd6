package client

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// blind makes a device unable to open commits from now on: its copy of the tree's
// private keys is damaged, as by a member who sent it a wrong path secret.
func (d *testDevice) blind(room id.RoomID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rooms[room].blind = true
}

func (d *testDevice) see(room id.RoomID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rooms[room].blind = false
}

// lastExternal returns the newest external commit of the log: its authenticated
// data, and whether it carries a resumption PSK.
func (w *world) lastExternal(room id.RoomID) (aad *rooms.CommitAAD, psk bool) {
	w.t.Helper()
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for _, evt := range slices.Backward(w.s.log) {
		if evt.Type != rooms.TypeCommit || evt.RoomID != room {
			continue
		}
		content, err := rooms.DecodeCommit(evt.Content)
		if err != nil || content.Epoch == 0 {
			continue
		}
		msg, err := mls.ParseMessage(content.Message)
		if err != nil {
			w.t.Fatal(err)
		}
		if sender, _ := msg.Sender(); sender.Type != mls.SenderTypeNewMemberCommit {
			continue
		}
		aad, err := rooms.DecodeCommitAAD(msg.AuthenticatedData())
		if err != nil {
			w.t.Fatal(err)
		}
		g := w.module.groups[room]
		for ref, staged := range g.staged {
			if ref == refOf(w, msg) {
				for _, p := range staged.Proposals() {
					psk = psk || p.Proposal.Type == mls.ProposalTypePSK
				}
			}
		}
		return aad, psk
	}
	w.t.Fatal("nobody joined by an external commit")
	return nil, false
}

func refOf(w *world, msg *mls.Message) federation.Ref {
	ref, err := rooms.CommitRef(msg)
	if err != nil {
		w.t.Fatal(err)
	}
	return ref
}

func faultCannotApply(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(w *world, room id.RoomID, alice *testDevice)
		psk    bool
	}{
		{"nobody new: with the resumption PSK", func(w *world, room id.RoomID, alice *testDevice) {
			w.must(func() error { return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 8 }) })
		}, true},
		{"a newcomer: with a proof", func(w *world, room id.RoomID, alice *testDevice) {
			dave := w.device("dave", "DAVE1")
			w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			w.must(func() error { return carol.ChangePolicySelf(room) })
			w.settle()
			carol.blind(room)
			tc.change(w, room, alice)
			w.settle()
			carol.see(room)
			w.until(60, func() bool { return carol.epoch(room) == alice.epoch(room) })
			w.settle()
			w.sameEpoch(room, alice, bob, carol)
			named := slices.ContainsFunc(carol.got, func(u Update) bool {
				warning, ok := u.(*Warning)
				return ok && warning.Rule == ruleCannotFollow && warning.Sender == alice.UserID()
			})
			if !named {
				t.Error("carol was not told whose commit she could not apply")
			}
			aad, psk := w.lastExternal(room)
			if psk != tc.psk || (aad.Rejoin != nil) == tc.psk {
				t.Errorf("psk %v, proof %v", psk, aad.Rejoin != nil)
			}
			w.send(carol, room, "back")
			w.settle()
			alice.wantTexts("back")
			if alice.warned(rooms.RuleRejoinUnproven) {
				t.Error("alice refuses the rejoin")
			}
		})
	}
}

// ChangePolicySelf lets a device commit a fresh path, so that its leaf is one
// that has spoken.
func (d *testDevice) ChangePolicySelf(room id.RoomID) error {
	d.mu.Lock()
	d.rooms[room].rec.Refresh = true
	d.mu.Unlock()
	return d.Settle(d.w.ctx, room)
}

func TestStolenSignatureKeyDoesNotTakeAPlace(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.must(func() error { return carol.ChangePolicySelf(room) })
	w.settle()
	before := alice.headRef(room)
	// Carol's signature key and token, on another machine: an empty store.
	thief := &testDevice{w: w, ident: carol.ident, hs: carol.hs, path: t.TempDir() + "/thief.db"}
	thief.open()
	w.all = []*testDevice{alice, bob, thief} // carol is away
	w.until(60, func() bool { return alice.warned(rooms.RuleRejoinUnproven) })
	w.settle()
	if !alice.warned(rooms.RuleRejoinUnproven) || !bob.warned(rooms.RuleRejoinUnproven) {
		t.Fatal("nobody objects to a device that shows nothing of its past")
	}
	alice.mu.Lock()
	r := alice.rooms[room]
	known, ok := r.machine.Known(r.machine.Head())
	final := r.machine.Extends(r.machine.NewestFinal(), r.machine.Head())
	alice.mu.Unlock()
	if ok && r.machine.Head() != before && known.External && final {
		t.Error("the thief's place became final")
	}
	w.all = []*testDevice{alice, bob}
	w.send(alice, room, "not for the thief")
	w.settle()
	thief.turn()
	thief.wantTexts()
	bob.wantTexts("not for the thief")
}

// TestCallsWaitWhileTheHeadIsInDoubt: a call that changes the group waits until a
// commit that this device cannot apply is settled.
func TestCallsWaitWhileTheHeadIsInDoubt(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	dave := w.device("dave", "DAVE1")
	carol.blind(room)
	alice.mu.Lock()
	alice.rooms[room].rec.Refresh = true
	alice.mu.Unlock()
	for range 6 {
		alice.turn()
		w.order()
	}
	carol.turn()
	carol.mu.Lock()
	_, _, err := carol.memberOf(room)
	carol.mu.Unlock()
	if !errors.Is(err, ErrNoGroup) {
		t.Fatalf("carol is in the group: %v", err)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	cancel()
	if err := carol.Invite(ctx, room, dave.UserID()); !errors.Is(err, ErrNoGroup) || !errors.Is(err, context.Canceled) {
		t.Errorf("a call whose time is up returns %v, want both why", err)
	}
	carol.patience = time.Millisecond
	if err := carol.Invite(w.ctx, room, dave.UserID()); !errors.Is(err, ErrNoGroup) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call that names no time returns %v, want both why", err)
	}
	carol.patience = memberWait
	invited := make(chan error, 1)
	go func() { invited <- carol.Invite(w.ctx, room, dave.UserID()) }()
	w.settle()
	carol.see(room)
	w.must(func() error { return <-invited })
	w.settle()
	w.join(dave, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave)
}
