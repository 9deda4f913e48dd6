package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// warned tells whether a device told its person about a rule.
func (d *testDevice) warned(rule rooms.Rule) bool {
	return slices.ContainsFunc(d.got, func(u Update) bool { w, ok := u.(*Warning); return ok && w.Rule == string(rule) })
}

func TestForgedAdmissionDoesNotReplaceAGoodOne(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	dave := w.device("dave", "DAVE1")
	packages := dave.ident.own().packages
	dave.ident.own().packages = nil // nobody can add the device yet
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle(alice, bob)
	// Carol posts a copy whose signature is another leaf's.
	bob.mu.Lock()
	forged := bob.rooms[room].rec.Admissions[dave.UserID()]
	bob.mu.Unlock()
	forged.Leaf = 2
	raw, err := rooms.Encode(&forged)
	if err != nil {
		t.Fatal(err)
	}
	w.s.mu.Lock()
	w.s.append(&Event{RoomID: room, Type: rooms.TypeAdmit, Sender: carol.UserID(), Content: raw})
	w.s.mu.Unlock()
	bob.turn()
	bob.mu.Lock()
	kept := bob.rooms[room].rec.Admissions[dave.UserID()]
	bob.mu.Unlock()
	if kept.Leaf == 2 || kept.User != dave.UserID() {
		t.Error("the forged admission took the place of the good one: the user would stay out")
	}
	dave.ident.own().packages = packages
	w.join(dave, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave)
}

func TestWelcomesOfStrangersAreBounded(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	mallory := w.device("mallory", "MALLORY1")
	welcome := func(room id.RoomID, n int) json.RawMessage {
		raw, err := rooms.Encode(&rooms.WelcomeContent{
			Room: room, CommitEvent: id.EventID(fmt.Sprintf("$nothing%d", n)), Ref: rooms.Hash{1}, Cfg: rooms.Hash{1}, Welcome: []byte{1},
			Snapshot: rooms.Snapshot{Tree: []byte{1}, TreeHash: make([]byte, 32), AtCommit: rooms.Hash{1}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	before, err := alice.Rooms(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	w.s.mu.Lock()
	q := string(alice.UserID()) + "/" + string(alice.DeviceID())
	for n := range 3 * maxStrangeRooms {
		w.s.toDevice[q] = append(w.s.toDevice[q], &Event{Type: rooms.TypeWelcome, Sender: mallory.UserID(), Content: welcome(id.RoomID(fmt.Sprintf("!r%d:evil", n)), n)})
	}
	w.s.mu.Unlock()
	alice.turn()
	alice.mu.Lock()
	held := 0
	for _, r := range alice.rooms {
		if r.strange() {
			held++
		}
	}
	alice.mu.Unlock()
	if held > maxStrangeRooms {
		t.Errorf("a stranger made this device hold %d rooms", held)
	}
	if after, _ := alice.Rooms(w.ctx); len(after) != len(before) {
		t.Errorf("%d rooms are listed, want %d", len(after), len(before))
	}
	// One for a room that alice is in, but not in the group of yet, from
	// somebody who is not in the room: nothing that it names is fetched, and the
	// state is read for one of many alone.
	dave := w.device("dave", "DAVE1")
	w.module.deaf = true
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	dave.turn()
	fetched := false
	w.s.mu.Lock()
	q = string(dave.UserID()) + "/" + string(dave.DeviceID())
	const strangers, reads = 5, 1
	w.s.mu.Unlock()
	states := 0
	var read func()
	read = func() { states, dave.hs.stateRead = states+1, read }
	read()
	states = 0
	for n := range 2 * strangers { // a Welcome, and a turn without one
		if n%2 == 0 {
			w.s.mu.Lock()
			w.s.toDevice[q] = append(w.s.toDevice[q], &Event{Type: rooms.TypeWelcome, Sender: mallory.UserID(), Content: welcome(room, n/2)})
			w.s.mu.Unlock()
		}
		dave.turn()
		dave.mu.Lock()
		_, asks := dave.rooms[room].needs["event:$nothing0"]
		_, gaveUp := dave.rooms[room].tried["need/event:$nothing0"]
		fetched = fetched || asks || gaveUp
		dave.mu.Unlock()
	}
	if fetched {
		t.Error("a stranger's Welcome makes the device fetch what it names")
	}
	if n := dave.Refusals()[string(rooms.RuleUnsolicitedKey)]; n != strangers || states > reads {
		t.Errorf("%d refusals, want %d; the state was read %d times", n, strangers, states)
	}
}

// TestStrangersKeepNoWelcomeOut: however many rooms somebody makes up, before and after it, a Welcome of somebody else waits for its
// invite. Where many do, the newest are kept. What is dropped leaves nothing behind, and a start reads no more rooms than are kept.
func TestStrangersKeepNoWelcomeOut(t *testing.T) {
	w := newWorld(t)
	alice := w.device("alice", "ALICE1")
	told := 0
	send := func(from string, names ...string) {
		t.Helper()
		q := string(alice.UserID()) + "/" + string(alice.DeviceID())
		w.s.mu.Lock()
		for _, name := range names {
			told++
			raw, err := rooms.Encode(&rooms.WelcomeContent{
				Room: id.RoomID("!" + name + ":evil"), CommitEvent: id.EventID(fmt.Sprintf("$%d", told)), Ref: rooms.Hash{1}, Cfg: rooms.Hash{1}, Welcome: []byte{1},
				Snapshot: rooms.Snapshot{Tree: []byte{1}, TreeHash: make([]byte, 32), AtCommit: rooms.Hash{1}},
			})
			if err != nil {
				t.Fatal(err)
			}
			w.s.toDevice[q] = append(w.s.toDevice[q], &Event{Type: rooms.TypeWelcome, Sender: id.UserID("@" + from + ":evil"), Content: raw})
		}
		w.s.mu.Unlock()
	}
	come := func() {
		alice.turn()
		w.now.add(time.Second)
	}
	tell := func(from string, names ...string) {
		t.Helper()
		send(from, names...)
		come()
	}
	flood := func(from string) {
		t.Helper()
		for round := range 2 {
			var names []string
			for n := range maxStrangeRooms {
				names = append(names, fmt.Sprintf("%s-%d-%d", from, round, n))
			}
			tell(from, names...)
		}
	}
	kept := func(name string, n int) {
		t.Helper()
		room := id.RoomID("!" + name + ":evil")
		alice.mu.Lock()
		_, held := alice.rooms[room]
		alice.mu.Unlock()
		if waiting := len(w.inbox(alice, room)); held != (n > 0) || waiting != n {
			t.Errorf("%s: held %t with %d Welcomes, want %d", room, held, waiting, n)
		}
	}
	bounded := func() {
		t.Helper()
		stored, err := alice.st.Rooms(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		alice.mu.Lock()
		held := len(alice.rooms)
		alice.mu.Unlock()
		if held > maxStrangeRooms || len(stored) != held {
			t.Errorf("%d rooms are held and %d stored, want the same and at most %d", held, len(stored), maxStrangeRooms)
		}
	}
	flood("mallory")
	tell("friend", "before", "again", "again")
	flood("mallory")
	kept("before", 1)
	kept("again", 2)
	bounded()
	alice.restart()
	flood("mallory")
	kept("before", 1)
	bounded()
	// Each of many makes up one: none of them keeps out who comes after them.
	for n := range 2 * maxStrangeRooms {
		send(fmt.Sprint("mallory", n), fmt.Sprint("of-", n))
		if n%16 == 15 {
			come()
		}
	}
	kept("of-0", 0)
	kept(fmt.Sprint("of-", 2*maxStrangeRooms-1), 1)
	tell("friend", "after")
	kept("after", 1)
	bounded()
	for _, key := range []string{"state/", "head/", "admissions/", "others/", "sent/", "refused/", "refusals/", "refusal/"} {
		keys, err := alice.st.KVKeys(w.ctx, key, 10*maxStrangeRooms)
		if err != nil {
			t.Fatal(err)
		}
		if len(keys) > maxStrangeRooms {
			t.Errorf("%d keys begin with %q, want one at most for each room that is kept", len(keys), key)
		}
	}
}

func TestOnlyAHomeserversRefusalIsFinal(t *testing.T) {
	answer := func(code int, errcode string) error {
		err := mautrix.HTTPError{Response: &http.Response{StatusCode: code}}
		if errcode != "" {
			err.RespError = &mautrix.RespError{ErrCode: errcode}
		}
		return fmt.Errorf("wrapped: %w", err)
	}
	for _, tc := range []struct {
		name string
		err  error
		want bool
	}{
		{"forbidden", answer(403, "M_FORBIDDEN"), true},
		{"too large", answer(413, "M_TOO_LARGE"), true},
		{"a proxy in front", answer(404, ""), false},
		{"another proxy", answer(403, ""), false},
		{"token", answer(401, "M_UNKNOWN_TOKEN"), false},
		{"rate", answer(429, "M_LIMIT_EXCEEDED"), false},
		{"failed", answer(502, "M_UNKNOWN"), false},
		{"connection", errors.New("connection refused"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := isPermanent(tc.err); got != tc.want {
				t.Errorf("permanent: %v, want %v", got, tc.want)
			}
		})
	}
}

func TestLeavingGivesUpWhatWaits(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	bob.hs.fail = errUnreachableNow
	bob.sendAlone(room, "meant for then")
	if rows := bob.roomRowsOf(room); len(rows) != 1 {
		t.Fatalf("%d rows wait", len(rows))
	}
	if err := bob.Leave(w.ctx, room); err != nil { // before it is tried again
		t.Fatal(err)
	}
	if rows := bob.roomRowsOf(room); len(rows) != 0 {
		t.Errorf("%d messages wait in a room that was left", len(rows))
	}
	w.settle()
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	carol.wantTexts()
}

var errUnreachableNow = errors.New("fake: unreachable now")

func TestServerThatIsDownLogsNobodyOut(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	alice.mu.Lock()
	r := alice.rooms[room]
	alice.devs[bob.UserID()] = &identity.UserDevices{User: bob.UserID(), Stale: true, Devices: map[id.DeviceID]*identity.Device{}}
	r.devices[bob.UserID()], r.planned = true, false
	alice.plan(r)
	removes, blocked, again := len(r.todo.Removes), r.blocked, r.staleAt
	alice.mu.Unlock()
	if removes != 0 {
		t.Errorf("%d removes: a server that cannot be asked logs its users out", removes)
	}
	if len(blocked) != 1 {
		t.Errorf("blocked by %q: messages go to a leaf that nobody could check", blocked)
	}
	if again == 0 {
		t.Fatal("it is never asked again")
	}
	w.now.set(again)
	alice.turn()
	alice.mu.Lock()
	stale := alice.devs[bob.UserID()].Stale
	alice.mu.Unlock()
	if stale {
		t.Error("it was not asked again")
	}
	w.send(alice, room, "checked")
	w.settle()
	bob.wantTexts("checked")
}

func TestOnlyTheGroupOneBelongsToIsEntered(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	dave := w.device("dave", "DAVE1")
	bob.mu.Lock()
	r := bob.rooms[room]
	group := r.rec.Group
	if _, head, _ := bob.usableHead(r); head == nil {
		t.Error("a member cannot come back to its group")
	}
	r.rec.Bound = []byte("another group")
	if by, head, _ := bob.usableHead(r); head != nil {
		t.Errorf("a member would go over to a group that %s shows", by)
	}
	r.rec.Bound = group
	bob.mu.Unlock()

	// Dave is invited by alice, who says which group he is admitted to; the
	// Welcome and the head of another one are not for him.
	if err := alice.Invite(w.ctx, room, dave.UserID()); err != nil { // the admission is not posted before the invite
		t.Fatal(err)
	}
	dave.turn()
	w.join(dave, room)
	w.settle(alice, bob, dave)
	w.sameEpoch(room, alice, bob, dave)
	dave.mu.Lock()
	defer dave.mu.Unlock()
	r = dave.rooms[room]
	if r.rec.Inviter != alice.UserID() || r.rec.Admitter != alice.UserID() {
		t.Fatalf("invited by %q, admitted by %q", r.rec.Inviter, r.rec.Admitter)
	}
	r.comeBack() // as before he was in
	if !bytes.Equal(r.boundTo(dave.UserID()), group) {
		t.Error("the admission of whoever invited him does not say which group")
	}
	r.rec.Admitter = bob.UserID()
	if r.boundTo(dave.UserID()) != nil {
		t.Error("an admission that somebody else posted binds him")
	}
}

func TestPolicyOfANewRoomIsWhatWasAskedFor(t *testing.T) {
	for _, tc := range []struct {
		name   string
		public bool
		want   rooms.JoinPolicy
	}{{"private", false, rooms.JoinAdmitted}, {"public", true, rooms.JoinOpen}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			alice := w.device("alice", "ALICE1")
			// The homeserver answers late and shows the other join rule.
			rule := map[bool]string{true: "invite", false: "public"}[tc.public]
			alice.hs.created = func(room id.RoomID) {
				w.s.mu.Lock()
				alice.hs.putState(room, rooms.TypeJoinRules, "", map[string]string{"join_rule": rule})
				w.s.mu.Unlock()
				for range 3 {
					w.module.turn()
					_ = alice.SyncOnce(w.ctx, 0)
					alice.Step(w.ctx)
				}
			}
			asked := false
			room := w.createRoom(alice, CreateOptions{Public: tc.public, Policy: func(*rooms.Policy) { asked = true }})
			alice.mu.Lock()
			defer alice.mu.Unlock()
			policy, err := rooms.PolicyOf(alice.rooms[room].head().group)
			if err != nil {
				t.Fatal(err)
			}
			if policy.Join != tc.want || !asked {
				t.Errorf("joining is %v, want %v; the caller's policy was asked for: %v", policy.Join, tc.want, asked)
			}
		})
	}
}

func TestInvitedAgainReadsNothingBeforeTheJoin(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("joined")
	// Bob leaves and somebody's client without MLS invites him again, before
	// anybody could remove his leaf.
	w.s.mu.Lock()
	key := string(bob.UserID())
	w.s.append(&Event{RoomID: room, Type: rooms.TypeMember, StateKey: &key, Sender: bob.UserID(), Content: json.RawMessage(`{"membership":"leave"}`)})
	w.s.append(&Event{RoomID: room, Type: rooms.TypeMember, StateKey: &key, Sender: carol.UserID(), Content: json.RawMessage(`{"membership":"invite"}`)})
	w.s.mu.Unlock()
	w.all = []*testDevice{alice, carol}
	w.send(alice, room, "between")
	w.settle()
	if info, _ := alice.Room(w.ctx, room); info.Devices != 2 {
		t.Fatalf("%d devices in the group, want 2: bob has not joined", info.Devices)
	}
	w.all = []*testDevice{alice, carol, bob}
	w.must(func() error { return carol.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	w.send(alice, room, "after")
	w.settle()
	bob.wantTexts("after")
}

func TestInviteOfWhoJustLeftAdmitsThemToTheNextEpoch(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("joined")
	w.s.mu.Lock()
	key := string(bob.UserID())
	w.s.append(&Event{RoomID: room, Type: rooms.TypeMember, StateKey: &key, Sender: bob.UserID(), Content: json.RawMessage(`{"membership":"leave"}`)})
	w.s.mu.Unlock()
	if err := alice.SyncOnce(w.ctx, 0); err != nil {
		t.Fatal(err)
	}
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	w.send(carol, room, "again")
	w.settle()
	bob.wantTexts("again")
}

// A key package that rode in a commit which lost its race rides in the next
// one. If the head comes back to the first, its Welcome must not be sent too.
func TestKeyPackageServesOneWelcome(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.three("shared")
	other := w.device("alice", "ALICE2") // of the same user: its commits are not made final by alice's own
	w.settle()
	w.sameEpoch(room, alice, other)
	dave, erin := w.device("dave", "DAVE1"), w.device("erin", "ERIN1")
	w.module.noVouching = true
	w.s.held[rooms.TypeApplied] = true // nothing becomes final: the head may come back
	for _, err := range []error{other.Invite(w.ctx, room, erin.UserID()), alice.Invite(w.ctx, room, dave.UserID())} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []*testDevice{other, alice} { // the other's commit comes first and is accepted
		d.Step(w.ctx)
		d.Flush(w.ctx)
	}
	alice.mu.Lock()
	r := alice.rooms[room]
	lost := r.pending
	alice.mu.Unlock()
	for range 8 {
		w.module.turn()
		other.turn()
		alice.turn()
		w.now.add(time.Second)
	}
	alice.mu.Lock()
	defer alice.mu.Unlock()
	var won *pending
	for _, own := range r.own {
		if own.Settled && len(own.Welcomes) == 1 && own.Welcomes[0].User == dave.UserID() {
			won = own
		}
	}
	if lost == nil || won == nil || !lost.Lost || r.own[federation.Ref(lost.Ref)] != lost || !bytes.Equal(lost.Welcomes[0].KeyPackage, won.Welcomes[0].KeyPackage) {
		t.Fatalf("lost %t, held %t, won %t: want one key package in both commits", lost != nil && lost.Lost, lost != nil && r.own[federation.Ref(lost.Ref)] == lost, won != nil)
	}
	welcomes := func() (n int) {
		for _, row := range alice.rows {
			n += len(row.data.Welcomes)
		}
		return n
	}
	if n := welcomes(); n != 0 {
		t.Fatalf("%d Welcomes still wait", n)
	}
	ref, parent := federation.Ref(lost.Ref), r.epochs[federation.Ref(lost.Parent)]
	staged, err := alice.stage(r, parent, ref, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &batch{}
	alice.settleCommit(r, &epoch{ref: ref, parent: parent.ref, number: parent.number + 1, group: staged.Merge()}, b)
	if err := alice.commitBatch(w.ctx, r, b); err != nil {
		t.Fatal(err)
	}
	if n := welcomes(); n != 0 || !lost.Settled {
		t.Errorf("%d further Welcomes for a key package that served already", n)
	}
}

// A key package of last resort opens its Welcome again. A device that left, and was invited again, must not go back into
// an epoch that it was in: it would use the message keys of its leaf a second time.
func TestOldWelcomeIsRefused(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	kept := maps.Clone(bob.ident.bundles)
	room := w.createRoom(alice, CreateOptions{})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	w.sameEpoch(room, alice, bob)
	if len(w.s.welcomes) != 1 {
		t.Fatalf("%d Welcomes were sent", len(w.s.welcomes))
	}
	old := append(slices.Clone(w.s.welcomes[0][:len(w.s.welcomes[0])-1]), `,"again":1}`...) // another event to who looks at bytes
	w.must(func() error { return bob.Leave(w.ctx, room) })
	if !w.until(60, func() bool {
		members, err := alice.Members(w.ctx, room)
		return err == nil && !slices.ContainsFunc(members, func(m Member) bool { return m.User == bob.UserID() && m.Device != "" })
	}) {
		t.Fatal("bob's leaf stays")
	}

	w.module.deaf = true // he does not come in otherwise
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	bob.ident.bundles = kept
	w.s.mu.Lock()
	q := string(bob.UserID()) + "/" + string(bob.DeviceID())
	w.s.toDevice[q] = append(w.s.toDevice[q], &Event{Type: rooms.TypeWelcome, Sender: alice.UserID(), Content: old})
	w.s.mu.Unlock()
	for range 5 {
		bob.turn()
	}
	bob.mu.Lock()
	if n := len(bob.rooms[room].epochs); n != 0 {
		t.Errorf("bob entered %d epochs by an old Welcome", n)
	}
	bob.mu.Unlock()
	if n := bob.Refusals()[string(rooms.RuleWelcomeNotForUs)]; n != 1 {
		t.Errorf("%d refusals, want 1: %v", n, bob.Refusals())
	}
}
