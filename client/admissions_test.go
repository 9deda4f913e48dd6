package client

import (
	"fmt"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
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
