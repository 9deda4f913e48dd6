package client

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// small logs a device in that keeps few admissions: 32 in all, 2 of who is in the group.
func (w *world) small(user string) *testDevice {
	w.t.Helper()
	d := w.device(user, user+"1")
	if err := d.st.Close(); err != nil {
		w.t.Fatal(err)
	}
	d.bounds.Admissions = 32
	d.open()
	return d
}

func (d *testDevice) admitted(room id.RoomID) map[id.UserID]rooms.Admission {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rooms[room].rec.Admissions
}

// TestAdmissionsGoWhenTheyWereUsed: what is kept of who was admitted does not grow with everybody who ever came in.
func TestAdmissionsGoWhenTheyWereUsed(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.small("alice"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{History: "shared"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	for i := range 12 {
		_, user := w.register(fmt.Sprint("user", i), "D1")
		w.must(func() error { return alice.Invite(w.ctx, room, user) })
	}
	w.settle()
	for range 5 { // the epochs that are held go beyond all of them
		w.must(func() error { return alice.ChangePolicySelf(room) })
		w.settle()
	}
	// Those of users who have not come in stay, over a restart as well.
	var outside []id.UserID
	for i := range 6 {
		ident, user := w.register(fmt.Sprint("outside", i), "D1")
		ident.own().packages = nil
		w.must(func() error { return alice.Invite(w.ctx, room, user) })
		outside = append(outside, user)
	}
	w.settle()
	w.must(func() error { return alice.ChangePolicySelf(room) })
	alice.restart()
	w.settle()
	for _, user := range outside {
		if _, kept := alice.admitted(room)[user]; !kept {
			t.Errorf("the admission of %s, who has not come in, is gone", user)
		}
	}
	if n := len(alice.admitted(room)) - len(outside); n > 2 {
		t.Errorf("%d admissions of users who are in the group for good are kept", n)
	}
}

// TestReadmissionOutlivesTheCommitThatUsedTheFirst: who is put out and invited again before their first Add is final
// comes in again.
func TestReadmissionOutlivesTheCommitThatUsedTheFirst(t *testing.T) {
	w := newWorld(t)
	alice, bob, carol := w.small("alice"), w.small("bob"), w.small("carol")
	room := w.createRoom(alice, CreateOptions{History: "shared"})
	for _, d := range []*testDevice{bob, carol} {
		w.must(func() error { return alice.Invite(w.ctx, room, d.UserID()) })
		w.join(d, room)
	}
	w.must(func() error { return alice.Kick(w.ctx, room, bob.UserID(), "") })
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	w.join(bob, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
}

// TestInviteWhereAdmissionsAreFull: neither what strangers post, again and again, nor how many were admitted and have not
// come in keeps anybody from inviting.
func TestInviteWhereAdmissionsAreFull(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.small("alice"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{History: "shared"})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	flood := func() {
		t.Helper()
		alice.mu.Lock()
		defer alice.mu.Unlock()
		r := alice.rooms[room]
		if err := alice.admitUser(r, r.head(), "@one:s.test"); err != nil {
			t.Fatal(err)
		}
		a := r.rec.Admissions["@one:s.test"]
		for i := range 100 {
			a.User = id.UserID(fmt.Sprintf("@nobody%d:s.test", i))
			alice.takeAdmission(r, &a, bob.UserID())
		}
		if n := len(r.rec.Admissions); n > 4 {
			t.Fatalf("%d admissions are kept, nearly all of which nobody can use", n)
		}
	}
	flood()
	flood()
	alice.mu.Lock()
	r := alice.rooms[room]
	for i := range 40 {
		if err := alice.admitUser(r, r.head(), id.UserID(fmt.Sprintf("@later%d:s.test", i))); err != nil {
			t.Fatal(err)
		}
	}
	n := len(r.rec.Admissions)
	alice.mu.Unlock()
	if n != 32 {
		t.Fatalf("%d admissions, want no more than 32", n)
	}
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	w.settle()
	w.sameEpoch(room, alice, bob, dave)
}

// TestWhoIsAdmittedTwiceComesInByEitherWord: where two members invite somebody at the same moment, the one whose word
// came later may leave before they come. The other's word lets them in: with the next commit, or by themselves.
func TestWhoIsAdmittedTwiceComesInByEitherWord(t *testing.T) {
	for _, alone := range []bool{false, true} {
		t.Run(map[bool]string{false: "added", true: "by themselves"}[alone], func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			dave := w.device("dave", "DAVE1")
			packages := dave.ident.own().packages
			dave.ident.own().packages = nil // nobody can add the device yet
			dave.dead = true                // it sees the later invite alone
			for _, d := range []*testDevice{alice, carol} {
				w.must(func() error { return d.Invite(w.ctx, room, dave.UserID()) })
				w.settle(alice, bob, carol)
			}
			bob.mu.Lock()
			r := bob.rooms[room]
			first, err := bob.admitter(r, new(r.rec.Admissions[dave.UserID()]))
			bob.mu.Unlock()
			if err != nil || first != carol.UserID() {
				t.Fatalf("the newest word is %s's (%v), want carol's: the test proves nothing", first, err)
			}
			w.must(func() error { return carol.Leave(w.ctx, room) })
			w.settle(alice, bob)
			bob.restart()
			if !alone {
				dave.ident.own().packages = packages
			}
			dave.dead = false
			w.join(dave, room)
			w.settle(alice, bob, dave)
			w.sameEpoch(room, alice, bob, dave)
		})
	}
}

// withoutPast takes out of a room, for whoever joins now, what was said and admitted before, as where its history is for
// those who have joined.
func (w *world) withoutPast(room id.RoomID) {
	w.t.Helper()
	if len(w.hideAll(func(evt *Event) bool { return evt.RoomID == room && evt.Type == rooms.TypeAdmit })) == 0 {
		w.t.Fatal("nobody was admitted: the test proves nothing")
	}
}

// TestWhoMayNotReadThePastComesInAlone: where history is for those who have joined, the homeserver does not show an invitee
// the admission that was sent before. It comes to their devices as well, so that they can come in while nobody is there,
// whichever of the two the homeserver brings first, also after a restart.
func TestWhoMayNotReadThePastComesInAlone(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(map[bool]string{false: "after the invite", true: "before the invite"}[late], func(t *testing.T) {
			w := newWorld(t)
			alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
			bob2 := w.device("bob", "BOB2")
			room := w.createRoom(alice, CreateOptions{History: "joined"})
			w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
			if late {
				invite := w.hide(func(evt *Event) bool {
					return evt.RoomID == room && evt.Type == rooms.TypeMember && *evt.StateKey == string(bob.UserID())
				})
				w.s.mu.Lock()
				w.s.log[slices.IndexFunc(w.s.log, func(evt *Event) bool { return evt.ID == "$elsewhere" })].Type = "hidden" // no state
				w.s.mu.Unlock()
				w.settle()
				bob.restart()
				w.show(invite)
			}
			w.settle()
			bob.restart()
			w.withoutPast(room)
			w.all = []*testDevice{bob, bob2}
			w.join(bob, room)
			w.settle()
			w.sameEpoch(room, bob, bob2)
			w.all = []*testDevice{alice, bob, bob2}
			w.settle()
			w.sameEpoch(room, alice, bob, bob2)
		})
	}
}

// TestOnlyTheInviterAdmitsByToDevice: what others send a device, before the invite and after it, lets nobody into another
// group, and does not take the place of the inviter's word.
func TestOnlyTheInviterAdmitsByToDevice(t *testing.T) {
	w := newWorld(t)
	alice, bob, mallory := w.device("alice", "ALICE1"), w.device("bob", "BOB1"), w.device("mallory", "MALLORY1")
	other := w.createRoom(mallory, CreateOptions{History: "joined"})
	room := w.createRoom(alice, CreateOptions{History: "joined"})
	w.settle()
	forge := func(n int) {
		mallory.mu.Lock()
		defer mallory.mu.Unlock()
		e := mallory.rooms[other].head()
		key, err := mallory.ident.SignatureKey(e.group.CipherSuite())
		if err != nil {
			t.Fatal(err)
		}
		a, err := rooms.SignAdmission(e.group, room, e.ref, e.group.OwnLeafIndex(), key, bob.UserID(), nil)
		if err != nil {
			t.Fatal(err)
		}
		a.Leaf = uint32(n)
		raw, err := rooms.Encode(a)
		if err != nil {
			t.Fatal(err)
		}
		w.s.mu.Lock()
		q := string(bob.UserID()) + "/" + string(bob.DeviceID())
		w.s.toDevice[q] = append(w.s.toDevice[q], &Event{Type: rooms.TypeAdmit, Sender: mallory.UserID(), Content: raw})
		w.s.mu.Unlock()
	}
	for n := range 3 {
		forge(n)
	}
	bob.turn()
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	for n := range 3 {
		forge(3 + n)
	}
	w.settle()
	bob.mu.Lock()
	kept, by := bob.rooms[room].admissionsOf(bob.UserID()), bob.rooms[room].rec.Admitter
	bob.mu.Unlock()
	if len(kept) != 1 || by != alice.UserID() {
		t.Errorf("%d admissions are kept, the first by %q, want alice's alone", len(kept), by)
	}
	if n := bob.Refusals()[string(rooms.RuleUnsolicitedKey)]; n != 6 {
		t.Errorf("%d refusals, want 6", n)
	}
	w.withoutPast(room)
	w.all = []*testDevice{bob}
	w.join(bob, room)
	for n := range 3 { // somebody outside the room, once more
		forge(6 + n)
		w.settle()
	}
	w.all = []*testDevice{alice, bob}
	w.settle()
	w.sameEpoch(room, alice, bob)
}

// TestTwoAdmissionsOfAUserAtMost: of a user's admissions two are kept, of different members, and what cannot be used
// takes the place of neither.
func TestTwoAdmissionsOfAUserAtMost(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	user := id.UserID("@dave:" + testServer)
	admission := func(d *testDevice) *rooms.Admission {
		d.mu.Lock()
		defer d.mu.Unlock()
		r := d.rooms[room]
		if err := d.admitUser(r, r.head(), user); err != nil {
			t.Fatal(err)
		}
		return new(r.rec.Admissions[user])
	}
	byBob, byCarol := admission(bob), admission(carol)
	alice.mu.Lock()
	r := alice.rooms[room]
	for range 3 {
		alice.takeAdmission(r, byBob, bob.UserID())
		alice.takeAdmission(r, byCarol, carol.UserID())
		for leaf := range uint32(4) {
			forged := *byCarol
			forged.Leaf, forged.Sig = leaf+1, append(rooms.Bytes{byte(leaf)}, forged.Sig[1:]...)
			alice.takeAdmission(r, &forged, carol.UserID())
		}
	}
	alice.mu.Unlock()
	kept := func() (by []id.UserID) {
		alice.mu.Lock()
		defer alice.mu.Unlock()
		r := alice.rooms[room]
		for _, a := range r.admissionsOf(user) {
			who, err := alice.admitter(r, &a)
			if err != nil {
				t.Errorf("kept: %v", err)
			}
			by = append(by, who)
		}
		return by
	}
	if got := kept(); !slices.Equal(got, []id.UserID{carol.UserID(), bob.UserID()}) {
		t.Errorf("the words of %s are kept, want carol's and bob's", got)
	}
	byAlice := admission(alice) // an own one goes first, and takes the place of the older
	if got := kept(); byAlice == nil || !slices.Equal(got, []id.UserID{alice.UserID(), carol.UserID()}) {
		t.Errorf("the words of %s are kept, want alice's and carol's", got)
	}
	w.must(func() error { return alice.ChangePolicySelf(room) })
	alice.restart()
	if got := kept(); !slices.Equal(got, []id.UserID{alice.UserID(), carol.UserID()}) {
		t.Errorf("the words of %s are kept after a restart, want alice's and carol's", got)
	}
	// Who is put out has nobody's word any more.
	w.must(func() error { return alice.Kick(w.ctx, room, user, "") })
	if got := kept(); len(got) != 0 {
		t.Errorf("the words of %s are kept for who was put out", got)
	}
}

// TestAdmissionsThatNameDifferentKeys: where one member let in who holds another key than the homeserver shows, that is
// said, and the word of one who did not know any key is not enough.
func TestAdmissionsThatNameDifferentKeys(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	dave := w.device("dave", "DAVE1").UserID()
	list := w.s.devicesOf(dave)
	shown, err := rooms.DecodeBase64(list.MasterKey)
	if err != nil {
		t.Fatal(err)
	}
	other := append([]byte{shown[0] ^ 1}, shown[1:]...)
	sign := func(d *testDevice, master []byte) rooms.Admission {
		d.mu.Lock()
		defer d.mu.Unlock()
		e := d.rooms[room].head()
		key, err := d.ident.SignatureKey(e.group.CipherSuite())
		if err != nil {
			t.Fatal(err)
		}
		a, err := rooms.SignAdmission(e.group, room, e.ref, e.group.OwnLeafIndex(), key, dave, master)
		if err != nil {
			t.Fatal(err)
		}
		return *a
	}
	for _, tc := range []struct {
		name        string
		keys        [2][]byte
		in, warned  bool
		unknownUser bool
	}{
		{"no keys", [2][]byte{nil, nil}, true, false, false},
		{"the one shown, none", [2][]byte{shown, nil}, true, false, false},
		{"another, none", [2][]byte{other, nil}, false, true, false},
		{"another, the one shown", [2][]byte{other, shown}, true, true, false},
		{"another, another", [2][]byte{other, other}, false, true, false},
		{"none shown yet", [2][]byte{shown, nil}, false, false, true},
	} {
		for _, turned := range []bool{false, true} {
			t.Run(fmt.Sprint(tc.name, " turned ", turned), func(t *testing.T) {
				kept := []rooms.Admission{sign(bob, tc.keys[0]), sign(carol, tc.keys[1])}
				if turned {
					slices.Reverse(kept)
				}
				alice.mu.Lock()
				defer alice.mu.Unlock()
				r := alice.rooms[room]
				r.keepAdmissions(dave, kept)
				alice.devs[dave], r.devices[dave] = list, true
				if tc.unknownUser {
					alice.devs[dave] = identity.NewUserDevices(dave, nil, nil, rooms.Known{})
				}
				e := r.head()
				policy, err := rooms.PolicyOf(e.group)
				if err != nil {
					t.Fatal(err)
				}
				a, warned := alice.letsIn(r, e, policy, dave)
				if (a != nil) != tc.in || (warned != nil) != tc.warned {
					t.Errorf("let in by %+v, told %v", a, warned)
				}
			})
		}
	}
}

// TestAnAdmissionThatMembersCallVoidIsNotUsedAgain: who came later cannot have seen that somebody was removed after they
// were admitted. Their device adds them once; the others object, and it does not add them again and again.
func TestAnAdmissionThatMembersCallVoidIsNotUsedAgain(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	dave := w.device("dave", "DAVE1")
	packages := dave.ident.own().packages
	dave.ident.own().packages, dave.dead = nil, true // nobody can add the device yet
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle()
	for _, d := range []*testDevice{alice, carol} {
		w.must(func() error { return d.ChangePolicySelf(room) })
		d.mu.Lock()
		r := d.rooms[room]
		r.rec.Removals = map[id.UserID]uint64{dave.UserID(): r.levelOf(r.head())}
		r.keepAdmissions(dave.UserID(), nil)
		d.mu.Unlock()
		w.settle()
	}
	dave.ident.own().packages = packages
	w.s.mu.Lock()
	before := len(w.s.log)
	w.s.mu.Unlock()
	for range 120 {
		w.settle()
		w.now.add(5 * time.Second)
	}
	w.s.mu.Lock()
	adds := 0
	for _, evt := range w.s.log[before:] {
		if content, err := rooms.DecodeCommit(evt.Content); evt.Type == rooms.TypeCommit && evt.Sender == bob.UserID() && err == nil {
			msg, err := mls.ParseMessage(content.Message)
			if err != nil {
				t.Fatal(err)
			}
			if aad, err := rooms.DecodeCommitAAD(msg.AuthenticatedData()); err == nil && len(aad.Admissions) > 0 {
				adds++
			}
		}
	}
	w.s.mu.Unlock()
	if adds != 1 {
		t.Errorf("bob adds dave %d times, want once", adds)
	}
	told := 0
	for _, u := range bob.got {
		if w, ok := u.(*Warning); ok && w.Kind == AdmissionWarning && w.Sender == dave.UserID() {
			told++
		}
	}
	if told != 1 {
		t.Errorf("bob is told %d times that dave has to be invited again, want once", told)
	}
	w.sameEpoch(room, alice, bob, carol)
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) }) // once more
	dave.dead = false
	w.join(dave, room)
	for range 20 {
		w.settle()
		w.now.add(5 * time.Second)
	}
	w.sameEpoch(room, alice, bob, carol, dave)
}

// TestAFalseObjectionToAnAdmissionHasNoEffect: a member calls a commit's admissions void after others vouched for it, or
// it is final. The client goes on letting in several users at once.
func TestAFalseObjectionToAnAdmissionHasNoEffect(t *testing.T) {
	w := newWorld(t)
	room, alice, _, carol := w.three("shared")
	// together invites two users, and tells how many admissions alice's commits since have, and the newest such commit.
	together := func(names ...string) (sizes []int, ref, parent federation.Ref) {
		w.s.mu.Lock()
		before := len(w.s.log)
		w.s.mu.Unlock()
		alice.mu.Lock()
		devices := len(rooms.GroupLeaves(alice.rooms[room].head().group))
		alice.mu.Unlock()
		give := func() {}
		for _, name := range names {
			d, before := w.device(name, strings.ToUpper(name)+"1"), give
			own := d.ident.own()
			packages := own.packages
			give = func() { before(); own.packages = packages }
			own.packages, d.dead = nil, true // nobody can add the device yet
			w.must(func() error { return alice.Invite(w.ctx, room, d.UserID()) })
		}
		w.settle()
		give()
		w.now.add(2 * time.Minute) // she tries to add each of them again a minute after the last time: now both are due
		for range 40 {
			alice.turn() // before the others
			w.settle()
			if alice.mu.Lock(); len(rooms.GroupLeaves(alice.rooms[room].head().group)) > devices+1 {
				alice.mu.Unlock()
				break
			}
			alice.mu.Unlock()
			w.now.add(5 * time.Second)
		}
		w.s.mu.Lock()
		defer w.s.mu.Unlock()
		for _, evt := range w.s.log[before:] {
			content, err := rooms.DecodeCommit(evt.Content)
			if evt.Type != rooms.TypeCommit || evt.Sender != alice.UserID() || err != nil {
				continue
			}
			msg, err := mls.ParseMessage(content.Message)
			if err != nil {
				t.Fatal(err)
			}
			if aad, err := rooms.DecodeCommitAAD(msg.AuthenticatedData()); err == nil && len(aad.Admissions) > 0 {
				if ref, err = rooms.CommitRef(msg); err != nil {
					t.Fatal(err)
				}
				sizes, parent = append(sizes, len(aad.Admissions)), aad.Parent
			}
		}
		return sizes, ref, parent
	}
	w.module.noVouching = true // it does not become final yet, as own commits below that are forgotten
	w.s.held[rooms.TypeApplied] = true
	sizes, ref, parent := together("dave", "erin")
	if !slices.Equal(sizes, []int{2}) {
		t.Fatalf("alice's commits have %v admissions, want 2 in one: the test proves nothing", sizes)
	}
	carol.mu.Lock()
	r, b := carol.rooms[room], &batch{}
	err := carol.sendReject(r, ref, parent, string(rooms.RuleAddWithoutAdmission), b)
	if err == nil {
		err = carol.commitBatch(w.ctx, r, b)
	}
	carol.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	w.settle()
	if !slices.ContainsFunc(w.s.log, func(evt *Event) bool { return evt.Type == rooms.TypeReject && evt.Sender == carol.UserID() }) {
		t.Fatal("carol says nothing: the test proves nothing")
	}
	w.module.noVouching = false
	w.s.held[rooms.TypeApplied] = false
	w.settle()
	if sizes, _, _ := together("frank", "grace"); !slices.Equal(sizes, []int{2}) {
		t.Errorf("alice's commits have %v admissions, want 2 in one", sizes)
	}
}
