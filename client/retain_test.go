package client

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// held lists the epochs a device holds.
func (d *testDevice) held(room id.RoomID) map[federation.Ref]*mls.Group {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[federation.Ref]*mls.Group{}
	for ref, e := range d.rooms[room].epochs {
		out[ref] = e.group
	}
	return out
}

// onDisk tells whether bytes stand in the store's files.
func (d *testDevice) onDisk(data []byte) bool {
	d.w.t.Helper()
	for _, name := range []string{d.path, d.path + "-wal"} {
		raw, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			d.w.t.Fatal(err)
		}
		if bytes.Contains(raw, data) {
			return true
		}
	}
	return false
}

func TestSecretsOfALosingBranchAreWipedAndDeleted(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(3, nil)
	alice, carol := u[0], u[2]
	erin := w.deviceOn(w.modules()[2].s, "erin", "ERIN1")
	w.cut("s3.example")
	w.must(func() error { return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 8 }) })
	w.must(func() error { return carol.Invite(w.ctx, room, erin.UserID()) })
	lost := federation.Ref{}
	if !w.until(400, func() bool { lost = carol.headRef(room); return erinIn(carol, room, erin) }) {
		t.Fatal("the minority stands still")
	}
	w.send(carol, room, "on the losing branch")
	secrets := carol.held(room)[lost]
	sealed, err := carol.st.SealedRatchets(w.ctx, room, lost[:])
	if err != nil || len(sealed) == 0 || !carol.onDisk(sealed[0]) {
		t.Fatalf("the ratchets of the losing branch are not on disk (%v): the test proves nothing", err)
	}
	w.mend()
	w.settle()
	w.sameEpoch(room, u...)
	if carol.headRef(room) == lost {
		t.Fatal("the minority's branch won: the test proves nothing")
	}
	w.now.add(time.Hour + time.Minute)
	w.settle()
	if carol.held(room)[lost] != nil {
		t.Error("carol still holds the losing branch")
	}
	if secret, err := secrets.Export("x", nil, 16); err == nil && !bytes.Equal(secret, make([]byte, 16)) {
		t.Error("the secrets of the losing branch are still in memory")
	}
	if _, err := secrets.Encrypt([]byte("x"), nil); err == nil {
		t.Error("the ratchets of the losing branch still work")
	}
	if _, err := carol.st.Epoch(w.ctx, room, lost[:]); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the store has the epoch: %v", err)
	}
	for _, blob := range sealed {
		if carol.onDisk(blob) {
			t.Error("the sealed ratchets of the losing branch are still in the store's files")
		}
	}
}

// erinIn tells whether a user is in the tree as a device sees it.
func erinIn(d *testDevice, room id.RoomID, who *testDevice) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.rooms[room].head()
	return e != nil && len(rooms.LeavesOf(e.group, who.UserID())) > 0
}

func TestRetainedEpochsStayWithinTheWindow(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.must(func() error { return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 3 }) })
	w.settle()
	// Nobody but alice is online: her commits are accepted, and never final.
	w.all = []*testDevice{alice}
	for range 8 {
		w.must(func() error { return alice.ChangePolicySelf(room) })
	}
	held := alice.held(room)
	alice.mu.Lock()
	r := alice.rooms[room]
	above := 0
	for ref := range held {
		if ref != r.machine.NewestFinal() && r.machine.Extends(ref, r.machine.NewestFinal()) {
			above++
		}
	}
	path := len(r.machine.Path(r.machine.NewestFinal(), r.machine.Head()))
	alice.mu.Unlock()
	if path < 8 {
		t.Fatalf("%d commits above the newest final: the test proves nothing", path)
	}
	if above > 3+1 {
		t.Errorf("%d epochs above the newest final are kept, want at most the window of 3 and the head", above)
	}
	w.all = []*testDevice{alice, bob}
	w.settle()
	w.sameEpoch(room, alice, bob)
}

// TestDroppedEpochIsNeverEnteredAgain: its ratchets would begin anew, and with
// them the keys of messages.
func TestDroppedEpochIsNeverEnteredAgain(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.three("shared")
	w.must(func() error { return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 2 }) })
	w.settle()
	w.all = []*testDevice{alice}
	first := alice.headRef(room)
	for range 5 {
		w.must(func() error { return alice.ChangePolicySelf(room) })
		w.send(alice, room, "in every epoch")
	}
	alice.mu.Lock()
	defer alice.mu.Unlock()
	r := alice.rooms[room]
	dropped := 0
	for _, ref := range r.machine.Path(first, r.machine.Head()) {
		if r.epochs[ref] != nil {
			continue
		}
		dropped++
		b := &batch{}
		e, err := alice.enter(w.ctx, r, ref, b)
		if e != nil || err != nil {
			t.Errorf("epoch of %s, in which alice has sent, is entered again (%v)", ref.Short(), err)
		}
	}
	if dropped == 0 {
		t.Error("no epoch was dropped: the test proves nothing")
	}
}

func TestRewindBeyondTheWindowIsARejoin(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(3, func(p *rooms.Policy) { p.Window = 2 })
	alice, carol := u[0], u[2]
	w.cut("s3.example")
	for range 5 { // nobody else is on that side to vouch: the window does not end it
		w.must(func() error { return carol.ChangePolicySelf(room) })
	}
	w.send(carol, room, "from far away")
	w.must(func() error { return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 8 }) })
	w.mend()
	w.until(120, func() bool { return carol.headRef(room) == alice.headRef(room) && carol.epoch(room) > 0 })
	w.settle()
	w.sameEpoch(room, u...)
	for _, d := range u {
		d.wantTexts("from far away")
	}
	w.checkNonces()
}
