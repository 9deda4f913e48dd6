package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestLostReceiptKeyIsRepairedByAnEra(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.send(alice, room, "before")
	w.settle()
	// The module loses its database: new keys, and it rebuilds from the room.
	w.module.loseDatabase(room)
	w.settle()
	var proposed bool
	for _, u := range alice.got {
		if warning, ok := u.(*Warning); ok && warning.Rule == ruleKeyLost {
			proposed = strings.Contains(warning.Text, fmt.Sprintf("mls-proxy repair '%s'", room))
		}
	}
	if !proposed {
		t.Error("the admin's client does not propose the repair")
	}
	if err := carol.RepairSequencer(w.ctx, room); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("carol, no admin, repairs: %v", err)
	}
	before := alice.epoch(room)
	w.must(func() error { return alice.RepairSequencer(w.ctx, room) })
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	if err := alice.RepairSequencer(w.ctx, room); !errors.Is(err, ErrNothingToRepair) {
		t.Errorf("a repair of what is whole: %v", err)
	}
	if alice.epoch(room) <= before {
		t.Fatalf("epoch %d after the repair, %d before", alice.epoch(room), before)
	}
	// The room works on, and newcomers can join.
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	w.settle()
	w.send(dave, room, "after")
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave)
	carol.wantTexts("before", "after")
}

func TestRepairOvertakesAWaitingCommit(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.settle()
	w.module.loseDatabase(room)
	w.settle()
	// The admin first tries what she wanted to do, which waits for an accept.
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle()
	before := alice.epoch(room)
	w.must(func() error { return alice.RepairSequencer(w.ctx, room) })
	w.settle()
	w.join(dave, room)
	w.settle()
	if alice.epoch(room) <= before {
		t.Errorf("epoch %d, want one above %d", alice.epoch(room), before)
	}
	w.send(dave, room, "in the new era")
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave)
	carol.wantTexts("in the new era")
}

func TestPolicyChange(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	if err := bob.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 4 }); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("bob, no admin, changes the policy: %v", err)
	}
	w.must(func() error {
		return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Admins = append(p.Admins, bob.UserID()) })
	})
	w.settle()
	w.must(func() error {
		return bob.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Admit = rooms.AdmitAdmins })
	})
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	if err := carol.Invite(w.ctx, room, "@x:"+testServer); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("carol invites although only admins may: %v", err)
	}
}

func TestKickedUserComesBackByANewInvite(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.must(func() error { return alice.Kick(w.ctx, room, bob.UserID(), "") })
	w.settle()
	if !slices.ContainsFunc(bob.got, func(u Update) bool { r, ok := u.(*Removed); return ok && r.By == alice.UserID() }) {
		t.Error("bob was not told that he was removed")
	}
	w.send(alice, room, "without bob")
	w.must(func() error { return carol.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	w.send(alice, room, "with bob")
	w.settle()
	bob.wantTexts("with bob")
}

func TestOldAdmissionDoesNotOutliveAKick(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.must(func() error { return alice.Kick(w.ctx, room, bob.UserID(), "") })
	w.settle()
	// The server lets bob in again without any member's word.
	w.join(bob, room)
	w.settle()
	if info, _ := alice.Room(w.ctx, room); info.Devices != 2 {
		t.Errorf("%d devices in the group, want 2: nobody admitted bob again", info.Devices)
	}
	w.send(alice, room, "not for bob")
	w.settle()
	bob.wantTexts()
	carol.wantTexts("not for bob")
}

func TestRateLimitSendsCommitsFirst(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	if err := alice.Kick(w.ctx, room, bob.UserID(), ""); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		go func() { _, _ = alice.SendText(w.ctx, room, fmt.Sprint("m", i)) }()
	}
	for len(alice.roomRowsOf(room)) < 3 {
		alice.Deliver(w.ctx)
	}
	alice.Step(w.ctx)
	alice.hs.fail = &RateLimitError{RetryAfter: 30 * time.Second}
	before := len(w.s.log)
	next := alice.Flush(w.ctx)
	if len(w.s.log) != before {
		t.Fatal("something was sent against the rate limit")
	}
	if want := w.now.get() + 30*time.Second; next != want {
		t.Fatalf("tried again at %v, want %v", next, want)
	}
	w.now.add(29 * time.Second)
	alice.Flush(w.ctx)
	if len(w.s.log) != before {
		t.Fatal("something was sent before the time the homeserver named")
	}
	w.now.add(2 * time.Second)
	w.settle()
	var order []string
	for _, evt := range w.s.log[before:] {
		if evt.Sender == alice.UserID() && evt.StateKey == nil {
			order = append(order, evt.Type)
		}
	}
	if len(order) < 4 || order[0] != rooms.TypeCommit {
		t.Errorf("alice sent %q, want the commit first", order)
	}
	if n := len(carol.texts()); n != 3 {
		t.Errorf("carol got %d messages, want 3", n)
	}
}

func (d *testDevice) roomRowsOf(room id.RoomID) []*outRow {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.roomRows(room)
}

func TestLargeCommitAndTreeGoByMedia(t *testing.T) {
	w := newWorld(t)
	alice := w.device("alice", "ALICE1")
	room := w.createRoom(alice, CreateOptions{History: "shared"})
	last := w.device("last", "LAST1")
	invite := []id.UserID{last.UserID()}
	for i := range 150 {
		ident, _ := w.register(fmt.Sprint("user", i), "D1")
		invite = append(invite, ident.user)
	}
	for _, user := range invite {
		// All are invited before the engine acts, so one commit adds them.
		if err := alice.Invite(w.ctx, room, user); err != nil {
			t.Fatal(err)
		}
	}
	w.settle(alice)
	w.join(last, room)
	w.settle()
	w.sameEpoch(room, alice, last)
	w.send(last, room, "big room")
	w.settle()
	alice.wantTexts("big room")
	files := 0
	for _, evt := range w.s.log {
		if evt.Type == rooms.TypeCommit {
			if content, err := rooms.DecodeCommit(evt.Content); err == nil && content.File != nil {
				files++
			}
		}
		if len(evt.Content) > rooms.MaxEventSize {
			t.Errorf("an event of type %s has %d bytes", evt.Type, len(evt.Content))
		}
	}
	if files == 0 {
		t.Error("no commit went by media")
	}
}

func TestDeviceThatLostTrackJoinsAgain(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.all = []*testDevice{alice, bob} // carol is away
	w.must(func() error { return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 8 }) })
	w.settle(alice, bob)
	// The commit carol missed is gone from her server for good.
	w.s.mu.Lock()
	for i := len(w.s.log) - 1; ; i-- {
		if w.s.log[i].Type == rooms.TypeCommit {
			w.s.log[i] = &Event{ID: w.s.log[i].ID, RoomID: "!elsewhere:" + testServer, Type: "gone", Sender: w.s.log[i].Sender, Content: json.RawMessage("{}")}
			break
		}
	}
	w.s.mu.Unlock()
	w.all = []*testDevice{alice, bob, carol}
	for range 40 {
		w.module.turn()
		for _, d := range w.all {
			d.turn()
		}
		w.now.add(3 * time.Second)
	}
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	w.send(carol, room, "back")
	w.settle()
	alice.wantTexts("back")
}

func TestLoggedOutDeviceIsRemoved(t *testing.T) {
	for _, tc := range []struct {
		name string
		own  bool // another device of the same user is online
	}{{"by another device of the user", true}, {"by the others after a minute", false}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, _ := w.three("shared")
			bob2 := w.device("bob", "BOB2")
			w.settle()
			w.sameEpoch(room, alice, bob, bob2)
			w.all = slices.DeleteFunc(w.all, func(d *testDevice) bool { return d == bob2 || !tc.own && d == bob })
			w.s.mu.Lock()
			w.s.users[bob.UserID()].devices["BOB2"].gone = true
			w.s.mu.Unlock()
			for _, d := range w.all {
				d.ident.changed(bob.UserID())
			}
			w.settle()
			info, _ := alice.Room(w.ctx, room)
			if want := map[bool]int{true: 3, false: 4}[tc.own]; info.Devices != want {
				t.Fatalf("%d devices at once, want %d", info.Devices, want)
			}
			if !tc.own {
				if len(info.Blocked) == 0 {
					t.Error("sending is not blocked while the leaf fails its check")
				}
				w.now.add(rooms.CredentialGrace)
				w.settle() // the devices are read once more
				w.settle()
				if info, _ = alice.Room(w.ctx, room); info.Devices != 3 {
					t.Errorf("%d devices after a minute, want 3", info.Devices)
				}
			}
		})
	}
}

// TestQuietRoomHidesNoMissingAccept: that servers join one after the other, for each
// of which the room is quiet, does not put off what a person is told about a commit
// that was sent.
func TestQuietRoomHidesNoMissingAccept(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.module.down = true
	alice.mu.Lock()
	alice.rooms[room].rec.Refresh = true
	alice.mu.Unlock()
	w.settle(alice, bob)
	for i := range 6 {
		alice.mu.Lock()
		alice.rooms[room].hush(botOf(fmt.Sprintf("joins%d.example", i)), alice.mono()+quietTime)
		alice.mu.Unlock()
		alice.turn()
		w.now.add(acceptWait / 4)
	}
	told := slices.ContainsFunc(alice.got, func(u Update) bool {
		warning, ok := u.(*Warning)
		return ok && warning.Rule == ruleNoAccept
	})
	if !told {
		t.Error("nobody is told that the module accepts nothing")
	}
}
