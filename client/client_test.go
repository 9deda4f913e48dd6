package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func (w *world) createRoom(d *testDevice, o CreateOptions) id.RoomID {
	w.t.Helper()
	var room id.RoomID
	w.must(func() (err error) {
		room, err = d.CreateRoom(w.ctx, o)
		return err
	})
	return room
}

func (w *world) send(d *testDevice, room id.RoomID, text string) id.EventID {
	w.t.Helper()
	var evt id.EventID
	w.must(func() (err error) {
		evt, err = d.SendText(w.ctx, room, text)
		return err
	})
	return evt
}

func (w *world) join(d *testDevice, room id.RoomID) {
	w.t.Helper()
	w.must(func() error {
		_, err := d.Join(w.ctx, string(room), nil)
		return err
	})
}

func TestTwoUsersTalk(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{Name: "talk"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	w.join(bob, room)
	w.settle()
	w.send(alice, room, "hello bob")
	w.send(bob, room, "hello alice")
	w.settle()
	want := []string{"hello bob", "hello alice"}
	for _, d := range []*testDevice{alice, bob} {
		if got := d.texts(); !slices.Equal(got, want) {
			t.Errorf("%s got %q, want %q", d.ident.device, got, want)
		}
	}
	if a, b := alice.epoch(room), bob.epoch(room); a != b || a == 0 {
		t.Errorf("epochs %d and %d", a, b)
	}
}

// room3 makes a room with alice, bob and carol in it.
func (w *world) three(history string) (room id.RoomID, alice, bob, carol *testDevice) {
	w.t.Helper()
	alice, bob, carol = w.device("alice", "ALICE1"), w.device("bob", "BOB1"), w.device("carol", "CAROL1")
	room = w.createRoom(alice, CreateOptions{History: history})
	for _, d := range []*testDevice{bob, carol} {
		w.must(func() error { return alice.Invite(w.ctx, room, d.UserID()) })
		w.join(d, room)
	}
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	return room, alice, bob, carol
}

// sameEpoch checks that devices agree on the epoch, its tree and its secrets.
func (w *world) sameEpoch(room id.RoomID, devices ...*testDevice) {
	w.t.Helper()
	var want string
	for i, d := range devices {
		d.mu.Lock()
		e := d.rooms[room].head()
		var got string
		if e != nil {
			got = fmt.Sprintf("%d %x %x", e.number, e.group.TreeHash(), e.group.EpochAuthenticator())
		}
		d.mu.Unlock()
		if i == 0 {
			want = got
		}
		if got != want || got == "" {
			w.t.Fatalf("%s holds epoch %q, %s holds %q", d.ident.device, got, devices[0].ident.device, want)
		}
	}
}

func (d *testDevice) wantTexts(want ...string) {
	d.w.t.Helper()
	if got := d.texts(); !slices.Equal(got, want) {
		d.w.t.Errorf("%s got %q, want %q", d.ident.device, got, want)
	}
}

func TestHistoryVisibilityOfJoiners(t *testing.T) {
	for _, tc := range []struct {
		history string
		want    []string
	}{
		{"joined", []string{"after join"}},
		{"invited", []string{"after invite", "after join"}},
		{"shared", []string{"after invite", "after join"}},
		{"world_readable", []string{"after invite", "after join"}},
	} {
		t.Run(tc.history, func(t *testing.T) {
			w := newWorld(t)
			alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
			room := w.createRoom(alice, CreateOptions{History: tc.history})
			w.send(alice, room, "before invite")
			w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
			w.settle()
			w.send(alice, room, "after invite")
			w.settle()
			w.join(bob, room)
			w.settle()
			w.send(alice, room, "after join")
			w.settle()
			bob.wantTexts(tc.want...)
		})
	}
}

func TestSecondDeviceIsAddedByTheFirst(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	bob2 := w.device("bob", "BOB2")
	w.settle()
	w.sameEpoch(room, alice, bob, bob2, carol)
	w.send(bob2, room, "from my second device")
	w.settle()
	alice.wantTexts("from my second device")
	bob.wantTexts("from my second device")
}

func TestNewDeviceJoinsByItselfWhenNobodyIsOnline(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	bob2 := w.device("bob", "BOB2")
	w.settle(bob2) // nobody else acts
	w.settle()
	w.sameEpoch(room, alice, bob, bob2, carol)
}

func TestKickRemovesAllDevicesBeforeAnythingIsSent(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.must(func() error { return alice.Kick(w.ctx, room, bob.UserID(), "") })
	w.send(alice, room, "without bob")
	w.send(carol, room, "me too")
	w.settle()
	bob.wantTexts()
	carol.wantTexts("without bob", "me too")
	w.sameEpoch(room, alice, carol)
	if info, _ := bob.Room(w.ctx, room); info.Membership == "join" {
		t.Errorf("bob thinks he is still in the room: %+v", info)
	}
	// What was sent after the kick must not be readable with bob's old state.
	bob.mu.Lock()
	n := len(bob.rooms[room].epochs)
	bob.mu.Unlock()
	alice.mu.Lock()
	leaves := rooms.GroupLeaves(alice.rooms[room].head().group)
	alice.mu.Unlock()
	for _, leaf := range leaves {
		if leaf.Cred.User == bob.UserID() {
			t.Errorf("bob still has leaf %d (he holds %d epochs)", leaf.Index, n)
		}
	}
}

func TestLeaveIsCommittedByThoseWhoStay(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.must(func() error { return bob.Leave(w.ctx, room) })
	w.settle()
	w.sameEpoch(room, alice, carol)
	if info, _ := alice.Room(w.ctx, room); info.Devices != 2 {
		t.Errorf("%d devices, want 2", info.Devices)
	}
}

func TestModuleProposalIsCommittedByReference(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.must(func() error { return bob.Leave(w.ctx, room) })
	w.module.turn()
	w.module.proposeRemove(room, bob.UserID(), "$reason")
	w.settle()
	w.sameEpoch(room, alice, carol)
	found := false
	for _, evt := range w.s.log {
		if evt.Type == rooms.TypeCommit {
			if content, err := rooms.DecodeCommit(evt.Content); err == nil && len(content.Proposals) > 0 {
				found = true
			}
		}
	}
	if !found {
		t.Error("no commit names the module's proposal by reference")
	}
}

func TestReactionsEditsAndFilesAreEncrypted(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	target := w.send(alice, room, "planted-plaintext one")
	w.must(func() error { _, err := bob.React(w.ctx, room, target, "planted-plaintext-reaction"); return err })
	w.must(func() error { _, err := alice.Edit(w.ctx, room, target, "planted-plaintext two"); return err })
	w.must(func() error {
		_, err := alice.SendFile(w.ctx, room, File{Name: "planted-plaintext.txt", Body: strings.NewReader("planted-plaintext in a file")})
		return err
	})
	w.settle()
	var types []string
	var file *Message
	for _, u := range bob.got {
		if msg, ok := u.(*Message); ok {
			types = append(types, msg.Type)
			if strings.Contains(string(msg.Content), "m.file") || strings.Contains(string(msg.Content), `"file"`) {
				file = msg
			}
		}
	}
	if want := []string{"m.room.message", "m.reaction", "m.room.message", "m.room.message"}; !slices.Equal(types, want) {
		t.Fatalf("bob received %q, want %q", types, want)
	}
	_, data, err := bob.DownloadFile(w.ctx, file)
	if err != nil || string(data) != "planted-plaintext in a file" {
		t.Errorf("the file is %q, %v", data, err)
	}
	for _, content := range w.s.sent {
		if strings.Contains(string(content), "planted-plaintext") {
			t.Errorf("plaintext at the homeserver: %.200s", content)
		}
	}
	for mxc, data := range w.s.media {
		if strings.Contains(string(data), "planted-plaintext") {
			t.Errorf("plaintext in media %s", mxc)
		}
	}
}

func TestSwitchingAnUnencryptedRoom(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := id.RoomID("!plain:" + testServer)
	w.s.mu.Lock()
	alice.hs.putState(room, rooms.TypeCreate, "", map[string]string{})
	alice.hs.putState(room, rooms.TypeMember, string(alice.UserID()), map[string]string{"membership": "join"})
	alice.hs.putState(room, rooms.TypePowerLevels, "", map[string]any{"users": map[string]int{string(alice.UserID()): 100}})
	alice.hs.putState(room, rooms.TypeMember, string(bob.UserID()), map[string]string{"membership": "join"})
	w.s.mu.Unlock()
	w.settle()
	w.must(func() error { return alice.EnableMLS(w.ctx, room) })
	w.settle()
	w.sameEpoch(room, alice, bob)
	w.send(bob, room, "now encrypted")
	w.settle()
	alice.wantTexts("now encrypted")
}

// TestSwitchingGoesOnAfterAKill: a program that is killed while it switches a room, once the room is encrypted, goes on when it
// is started again, and lets in who was in the room before, by the room's rule.
func TestSwitchingGoesOnAfterAKill(t *testing.T) {
	for _, rule := range []string{"invite", "public"} {
		for _, founding := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/founding=%t", rule, founding), func(t *testing.T) {
				w := newWorld(t)
				alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
				room := id.RoomID("!plain:" + testServer)
				w.s.mu.Lock()
				alice.hs.putState(room, rooms.TypeCreate, "", map[string]string{})
				alice.hs.putState(room, rooms.TypeMember, string(alice.UserID()), map[string]string{"membership": "join"})
				alice.hs.putState(room, rooms.TypePowerLevels, "", map[string]any{"users": map[string]int{string(alice.UserID()): 100}})
				alice.hs.putState(room, rooms.TypeJoinRules, "", map[string]string{"join_rule": rule})
				alice.hs.putState(room, rooms.TypeMember, string(bob.UserID()), map[string]string{"membership": "join"})
				w.s.mu.Unlock()
				w.settle()
				w.module.down = true
				killed := errors.New("killed")
				if founding { // it waits for the module
					ctx, cancel := w.timeout(5 * time.Second)
					defer cancel()
					if err := w.background(func() error { return alice.EnableMLS(ctx, room) }); !errors.Is(err, ErrModuleSilent) {
						t.Fatalf("without a module: %v, want ErrModuleSilent", err)
					}
				} else {
					alice.hs.after = func(kind string) error {
						if kind == "state/"+rooms.TypeEncryption {
							return killed
						}
						return nil
					}
					if err := alice.EnableMLS(w.ctx, room); !errors.Is(err, killed) {
						t.Fatal(err)
					}
					alice.hs.after = nil
				}
				alice.restart()
				w.module.down = false
				if !founding { // or it has gone on by itself, as the user's room has MLS and no group
					if err := w.background(func() error { return alice.EnableMLS(w.ctx, room) }); err != nil && rooms.RuleOf(err) != rooms.RuleAlgorithmDowngrade {
						t.Fatal(err)
					}
				}
				w.settle()
				w.sameEpoch(room, alice, bob)
				w.send(bob, room, "now encrypted")
				w.settle()
				alice.wantTexts("now encrypted")
				alice.mu.Lock()
				defer alice.mu.Unlock()
				policy, err := rooms.PolicyOf(alice.rooms[room].head().group)
				if err != nil {
					t.Fatal(err)
				}
				if want := map[string]rooms.JoinPolicy{"invite": rooms.JoinAdmitted, "public": rooms.JoinOpen}[rule]; policy.Join != want {
					t.Errorf("the group lets in %v, want %v", policy.Join, want)
				}
			})
		}
	}
}

// TestSwitchingLetsInNobodyWhoIsGone: who was in the room when it was encrypted, and was put out before the group was
// founded, gets no admission that would let them in later.
func TestSwitchingLetsInNobodyWhoIsGone(t *testing.T) {
	w := newWorld(t)
	alice, bob, mallory := w.device("alice", "ALICE1"), w.device("bob", "BOB1"), w.device("mallory", "MALLORY1")
	room := id.RoomID("!plain:" + testServer)
	w.s.mu.Lock()
	alice.hs.putState(room, rooms.TypeCreate, "", map[string]string{})
	alice.hs.putState(room, rooms.TypePowerLevels, "", map[string]any{"users": map[string]int{string(alice.UserID()): 100}})
	for _, d := range []*testDevice{alice, bob, mallory} {
		d.hs.putState(room, rooms.TypeMember, string(d.UserID()), map[string]string{"membership": "join"})
	}
	w.s.mu.Unlock()
	w.settle()
	w.module.down = true
	ctx, cancel := w.timeout(5 * time.Second)
	defer cancel()
	if err := w.background(func() error { return alice.EnableMLS(ctx, room) }); err == nil {
		t.Fatal("the group was founded without a module")
	}
	w.s.mu.Lock()
	alice.hs.putState(room, rooms.TypeMember, string(mallory.UserID()), map[string]string{"membership": "leave"})
	w.s.mu.Unlock()
	w.settle()
	w.module.down = false
	w.settle()
	w.sameEpoch(room, alice, bob)
	alice.mu.Lock()
	defer alice.mu.Unlock()
	if _, admitted := alice.rooms[room].rec.Admissions[mallory.UserID()]; admitted {
		t.Error("mallory has an admission")
	}
}

// TestSwitchingThatTheHomeserverRefuses: the room stays as it is, and is no more followed than before.
func TestSwitchingThatTheHomeserverRefuses(t *testing.T) {
	w := newWorld(t)
	alice := w.device("alice", "ALICE1")
	room := id.RoomID("!plain:" + testServer)
	w.s.mu.Lock()
	alice.hs.putState(room, rooms.TypeCreate, "", map[string]string{})
	alice.hs.putState(room, rooms.TypeMember, string(alice.UserID()), map[string]string{"membership": "join"})
	alice.hs.putState(room, rooms.TypePowerLevels, "", map[string]any{"users": map[string]int{string(alice.UserID()): 100}})
	w.s.mu.Unlock()
	w.settle()
	alice.hs.refusesState = rooms.TypeEncryption
	if err := w.background(func() error { return alice.EnableMLS(w.ctx, room) }); !errors.Is(err, errRefused) {
		t.Fatalf("the room was switched, or: %v", err)
	}
	for range 2 {
		w.settle()
		if list, err := alice.Rooms(w.ctx); err != nil || len(list) != 0 {
			t.Errorf("%d MLS rooms are listed (%v), want none", len(list), err)
		}
		alice.restart()
	}
	alice.hs.refusesState = ""
	w.must(func() error { return alice.EnableMLS(w.ctx, room) })
	w.settle()
	if list, _ := alice.Rooms(w.ctx); len(list) != 1 || list[0].Epoch != 0 {
		t.Errorf("after the homeserver let it: %+v", list)
	}
}

// TestSwitchingLetsTheModuleShowItsKeys: when the module is invited it may set its
// head as state, or a device that follows the room only afterwards never sees
// it; and the room is not encrypted yet, or one without a module would stay so.
func TestSwitchingLetsTheModuleShowItsKeys(t *testing.T) {
	w := newWorld(t)
	alice := w.device("alice", "ALICE1")
	room := id.RoomID("!plain:" + testServer)
	w.s.mu.Lock()
	alice.hs.putState(room, rooms.TypeCreate, "", map[string]string{})
	alice.hs.putState(room, rooms.TypeMember, string(alice.UserID()), map[string]string{"membership": "join"})
	alice.hs.putState(room, rooms.TypePowerLevels, "", map[string]any{"users": map[string]int{string(alice.UserID()): 100}})
	w.s.mu.Unlock()
	w.settle()
	w.must(func() error { return alice.EnableMLS(w.ctx, room) })
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	bot := botOf(testServer)
	state, invited := rooms.NewRoomState(room), false
	for _, evt := range w.s.log {
		if evt.RoomID != room || evt.StateKey == nil {
			continue
		}
		if err := state.Apply(evt.Type, *evt.StateKey, evt.Sender, evt.ID, evt.Content); err != nil {
			t.Fatal(err)
		}
		if state.Members[bot].Membership != "" && !invited {
			invited = true
			if !state.CanSend(bot, rooms.TypeHead, true) {
				t.Error("the module was invited before it could set its head as state")
			}
			if state.Encryption != "" {
				t.Error("the room was encrypted before the module was invited")
			}
		}
	}
	if !invited {
		t.Fatal("no module was invited")
	}
}

func TestGapIsFilled(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	bob.ident.limit = 2
	all := w.all
	w.all = []*testDevice{alice, carol} // bob is away
	for i := range 7 {
		w.send(alice, room, fmt.Sprint("m", i))
	}
	w.all = all
	w.settle()
	bob.wantTexts("m0", "m1", "m2", "m3", "m4", "m5", "m6")
}

func TestAcceptIsNeededBeforeACommitIsUsed(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	before := alice.epoch(room)
	// Nobody sees what the module says, nor the heads that rest on it.
	w.s.held[rooms.TypeAccept], w.s.held[rooms.TypeVote], w.s.held[rooms.TypeHead] = true, true, true
	w.must(func() error { return alice.Kick(w.ctx, room, bob.UserID(), "") })
	w.settle()
	if alice.epoch(room) != before || carol.epoch(room) != before {
		t.Fatalf("epochs %d and %d without an accept, want %d", alice.epoch(room), carol.epoch(room), before)
	}
	for q, events := range w.s.toDevice {
		if len(events) > 0 {
			t.Errorf("a Welcome went to %s before the accept", q)
		}
	}
	// The accept is lost for good on /sync; the next event that names it
	// makes it fetched or superseded.
	w.s.held[rooms.TypeAccept], w.s.held[rooms.TypeVote] = false, false
	w.s.mu.Lock()
	for _, evt := range slices.Clone(w.s.log) {
		if evt.Type == rooms.TypeAccept {
			w.s.append(&Event{RoomID: evt.RoomID, Type: evt.Type, Sender: evt.Sender, Content: evt.Content})
		}
	}
	w.s.mu.Unlock()
	w.settle()
	w.sameEpoch(room, alice, carol)
	if alice.epoch(room) == before {
		t.Error("the Remove was never used")
	}
}

func TestRaceOfTwoCommitters(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	dave, erin := w.device("dave", "DAVE1"), w.device("erin", "ERIN1")
	// Both invite, and commit, before the module acts.
	w.module.deaf = false
	errs := make(chan error, 2)
	go func() { errs <- alice.Invite(w.ctx, room, dave.UserID()) }()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	go func() { errs <- bob.Invite(w.ctx, room, erin.UserID()) }()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	for _, d := range []*testDevice{alice, bob} {
		d.Step(w.ctx)
		d.Flush(w.ctx)
	}
	n := 0
	parents := map[string]int{}
	for _, evt := range w.s.log {
		if evt.Type == rooms.TypeCommit {
			content, err := rooms.DecodeCommit(evt.Content)
			if err != nil {
				t.Fatal(err)
			}
			parents[content.Parent.String()]++
			n = max(n, parents[content.Parent.String()])
		}
	}
	if n != 2 {
		t.Fatalf("%d commits on one parent, want a race of 2", n)
	}
	w.settle()
	w.join(dave, room)
	w.join(erin, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave, erin)
	w.send(erin, room, "everybody is in")
	w.settle()
	for _, d := range w.all {
		d.wantTexts("everybody is in")
	}
}

func TestStartAndCloseLeaveNothingRunning(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	began := time.Now()
	for _, d := range w.all {
		d.mono = func() time.Duration { return time.Minute + time.Since(began) }
		if err := d.Start(w.ctx); err != nil {
			t.Fatal(err)
		}
		if err := d.Start(w.ctx); err == nil {
			t.Error("a second Start was not refused")
		}
	}
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() { // the module acts on real time here
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
				w.now.set(time.Minute + time.Since(began))
				w.module.turn()
			}
		}
	}()
	ctx, cancel := context.WithTimeout(w.ctx, patience.Hang)
	defer cancel()
	room, err := alice.CreateRoom(ctx, CreateOptions{Invite: []id.UserID{bob.UserID()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := alice.Settle(ctx, room); err != nil {
		t.Fatal(err)
	}
	if _, err := bob.Join(ctx, string(room), nil); err != nil {
		t.Fatal(err)
	}
	if err := bob.Settle(ctx, room); err != nil {
		t.Fatal(err)
	}
	if _, err := bob.SendText(ctx, room, "running"); err != nil {
		t.Fatal(err)
	}
	close(stop)
	<-stopped
	for _, d := range w.all {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := d.st.Close(); err != nil {
			t.Error(err)
		}
		d.st = nil
	}
}
