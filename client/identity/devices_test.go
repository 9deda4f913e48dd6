package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/internal/hstest"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestDevicesAreCachedUntilTheyChange(t *testing.T) {
	h := newHomeserver(t, true)
	a, b := h.loginDevice("@a:one"), h.loginDevice("@b:one")
	syncOnce(t, a)
	list := func() *UserDevices {
		t.Helper()
		u, err := a.Devices(t.Context(), b.UserID())
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if u := list(); u.Devices[b.DeviceID()] == nil || u.MasterState != MasterNone {
		t.Fatalf("devices %+v", u)
	}
	queries := h.Queries
	list()
	a.lists.init() // as after a restart
	list()
	if h.Queries != queries {
		t.Errorf("%d queries although nothing changed", h.Queries-queries)
	}
	var told []id.UserID
	a.OnDevicesChanged(func(u id.UserID) { told = append(told, u) })
	second := h.loginDevice("@b:one")
	syncOnce(t, a)
	if u := list(); u.Devices[second.DeviceID()] == nil {
		t.Error("the second device is missing")
	}
	if len(told) == 0 || told[0] != b.UserID() {
		t.Errorf("told %v", told)
	}
	// The homeserver may keep a change to itself.
	third := h.loginDevice("@b:one")
	if u := list(); u.Devices[third.DeviceID()] != nil {
		t.Fatal("the list was read though no sync spoke of it: this test tests nothing")
	}
	told = nil
	if err := a.Outdate(t.Context(), b.UserID()); err != nil {
		t.Fatal(err)
	}
	if u := list(); u.Devices[third.DeviceID()] == nil {
		t.Error("the third device is missing")
	}
	if len(told) != 1 || told[0] != b.UserID() {
		t.Errorf("told %v", told)
	}
}

// TestListThatChangesWhileItIsAskedFor: the answer may be from before the change. It is neither kept nor taken for that of
// a server that does not answer, which is asked again only after a while.
func TestListThatChangesWhileItIsAskedFor(t *testing.T) {
	h := newHomeserver(t, true)
	a, b := h.loginDevice("@a:one"), h.loginDevice("@b:two")
	syncOnce(t, a)
	for _, changes := range []int{1, maxAsked} {
		queries := h.Queries
		h.Answering = func() {
			if changes--; changes >= 0 {
				if err := a.listsChanged(t.Context(), []id.UserID{b.UserID()}, nil, false); err != nil {
					t.Error(err)
				}
			}
		}
		want := min(changes+1, maxAsked)
		if err := a.listsChanged(t.Context(), []id.UserID{b.UserID()}, nil, false); err != nil {
			t.Fatal(err)
		}
		u, err := a.Devices(t.Context(), b.UserID())
		if err != nil || u.Stale || u.Devices[b.DeviceID()] == nil {
			t.Errorf("got %+v, %v", u, err)
		}
		if n := h.Queries - queries; n != want {
			t.Errorf("%d queries, want %d", n, want)
		}
		h.Answering = nil
		queries = h.Queries
		if _, err := a.Devices(t.Context(), b.UserID()); err != nil {
			t.Fatal(err)
		}
		if again := h.Queries > queries; again != (want == maxAsked) {
			t.Errorf("asked again at the next look: %v", again)
		}
	}
}

func TestFirstSyncOutdatesEveryList(t *testing.T) {
	h := newHomeserver(t, true)
	a, b := h.loginDevice("@a:one"), h.loginDevice("@b:one")
	if _, err := a.Devices(t.Context(), b.UserID()); err != nil {
		t.Fatal(err)
	}
	queries := h.Queries
	resp, err := a.Sync(t.Context(), SyncRequest{})
	if err != nil {
		t.Fatal(err)
	}
	resp.DeviceLists.Changed = nil
	if err := a.ProcessSync(t.Context(), resp); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Devices(t.Context(), b.UserID()); err != nil || h.Queries == queries {
		t.Errorf("the list of before was used after a sync from the start, %v", err)
	}
}

func TestUnreachableServerKeepsWhatIsKnown(t *testing.T) {
	h := newHomeserver(t, true)
	a, b := h.loginDevice("@a:one"), h.loginDevice("@b:two")
	if _, err := a.Devices(t.Context(), b.UserID()); err != nil {
		t.Fatal(err)
	}
	h.Failures["two"] = true
	if err := a.listsChanged(t.Context(), []id.UserID{b.UserID()}, nil, false); err != nil {
		t.Fatal(err)
	}
	u, err := a.Devices(t.Context(), b.UserID())
	if err != nil || u.Devices[b.DeviceID()] == nil {
		t.Errorf("got %+v, %v", u, err)
	}
	u, err = a.Devices(t.Context(), "@nobody:two")
	if err != nil || len(u.Devices) != 0 || !u.Stale {
		t.Errorf("unknown user: got %+v, %v", u, err)
	}
	// It is not asked for each look, and asked again after a while.
	queries := h.Queries
	if _, err := a.Devices(t.Context(), b.UserID()); err != nil || h.Queries != queries {
		t.Errorf("%d queries at once, %v", h.Queries-queries, err)
	}
	delete(h.Failures, "two")
	now := time.Now().Add(StaleAfter)
	a.now = func() time.Time { return now }
	u, err = a.Devices(t.Context(), b.UserID())
	if err != nil || u.Stale || u.Devices[b.DeviceID()] == nil {
		t.Errorf("when the server is back: got %+v, %v", u, err)
	}
}

// TestAvoidedServerIsAskedAlone: Dendrite does not ask a server for a while that was out of reach, and lets each user
// about whom it knows nothing wait for that.
func TestAvoidedServerIsAskedAlone(t *testing.T) {
	h := newHomeserver(t, true)
	a := h.loginDevice("@a:one")
	users := []id.UserID{"@b:two", "@c:two", "@d:three", "@e:three"}
	devices := map[id.UserID]id.DeviceID{}
	for _, u := range users {
		devices[u] = h.loginDevice(u).DeviceID()
	}
	h.Avoided["two"], h.Failures["three"] = true, true
	all, err := a.DevicesOf(t.Context(), users)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range users {
		if reached := u.Homeserver() == "two"; all[u].Stale == reached || (all[u].Devices[devices[u]] != nil) != reached {
			t.Errorf("%s: got %+v", u, all[u])
		}
	}
	if h.Queries != 4 { // all, each of two, and one of three
		t.Errorf("%d queries, want 4", h.Queries)
	}
}

func TestServerThatIsHiddenKeepsWhatIsKnown(t *testing.T) {
	h := newHomeserver(t, true)
	a, b := h.loginDevice("@a:one"), h.loginDevice("@b:two")
	if _, err := a.Devices(t.Context(), b.UserID()); err != nil {
		t.Fatal(err)
	}
	h.Hidden["two"] = true
	// Our own list is asked for with it, so that there is an answer.
	if err := a.listsChanged(t.Context(), []id.UserID{a.UserID(), b.UserID()}, nil, false); err != nil {
		t.Fatal(err)
	}
	u, err := a.Devices(t.Context(), b.UserID())
	if err != nil || u.Devices[b.DeviceID()] == nil || !u.Stale {
		t.Errorf("got %+v, %v: who cannot be asked for is taken for logged out", u, err)
	}
	delete(h.Hidden, "two")
	now := time.Now().Add(StaleAfter)
	a.now = func() time.Time { return now }
	if u, err = a.Devices(t.Context(), b.UserID()); err != nil || u.Stale || u.Devices[b.DeviceID()] == nil {
		t.Errorf("when the server is back: got %+v, %v", u, err)
	}
}

// TestServerThatIsHiddenIsNoAnswerAboutNewcomers: of somebody whose keys were never seen a homeserver that hides their
// server says nothing: not that they have none.
func TestServerThatIsHiddenIsNoAnswerAboutNewcomers(t *testing.T) {
	h := newHomeserver(t, true)
	a, b, c := h.loginDevice("@a:one"), h.loginDevice("@b:two"), h.loginDevice("@c:one")
	h.Hidden["two"] = true
	all, err := a.DevicesOf(t.Context(), []id.UserID{b.UserID(), c.UserID(), "@ghost:one", "@ghost:three"})
	if err != nil {
		t.Fatal(err)
	}
	if u := all[b.UserID()]; len(u.Devices) > 0 || !u.Stale || u.Nothing {
		t.Errorf("got %+v: who cannot be asked for is taken for somebody without keys", u)
	}
	if u := all[c.UserID()]; u.Stale || u.Nothing || u.Devices[c.DeviceID()] == nil {
		t.Errorf("of the own server: got %+v", u)
	}
	if u := all["@ghost:one"]; u.Stale || u.Nothing {
		t.Errorf("without keys, of the own server: got %+v", u)
	}
	if u := all["@ghost:three"]; !u.Stale || !u.Nothing {
		t.Errorf("without keys, of a server that answers: got %+v", u)
	}
	h.Hidden, h.Avoided["two"] = map[string]bool{}, true // it answers about one user at a time
	now := time.Now().Add(StaleAfter)
	a.now = func() time.Time { return now }
	if u, err := a.Devices(t.Context(), b.UserID()); err != nil || u.Stale || u.Nothing || u.Devices[b.DeviceID()] == nil {
		t.Errorf("when the server is back: got %+v, %v", u, err)
	}
}

// TestUsersWithoutKeysHideNobody: a homeserver that says nothing of users of another
// server, and answers about one at a time, is asked about all of them in turn.
func TestUsersWithoutKeysHideNobody(t *testing.T) {
	h := newHomeserver(t, true)
	a, b := h.loginDevice("@a:one"), h.loginDevice("@z:two")
	h.Avoided["two"] = true
	users := []id.UserID{"@ghost1:two", "@ghost2:two", "@ghost3:two", "@ghost4:two", b.UserID()}
	now := time.Now()
	a.now = func() time.Time { return now }
	for range 3 {
		asked := h.Queries
		all, err := a.DevicesOf(t.Context(), users)
		if err != nil {
			t.Fatal(err)
		}
		if n := h.Queries - asked; n > 1+maxMisses+1 {
			t.Errorf("%d requests at once", n)
		}
		if u := all[b.UserID()]; u.Devices[b.DeviceID()] != nil {
			return
		}
		now = now.Add(StaleAfter)
	}
	t.Error("who has keys was not asked for in three turns")
}

func TestMasterStates(t *testing.T) {
	h := newHomeserver(t, true)
	a, b := h.loginDevice("@a:one"), h.loginDevice("@b:one")
	bootstrap(t, b)
	state := func() MasterState {
		t.Helper()
		syncOnce(t, a)
		u, err := a.Devices(t.Context(), b.UserID())
		if err != nil {
			t.Fatal(err)
		}
		if d := u.Devices[b.DeviceID()]; d == nil || !d.CrossSigned || d.Verified != (u.MasterState == MasterVerified) {
			t.Errorf("device %+v in state %s", d, u.MasterState)
		}
		return u.MasterState
	}
	if got := state(); got != MasterTOFU {
		t.Errorf("first seen: %s", got)
	}
	bootstrap(t, a)
	mach, _, err := a.machine(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u, err := a.Devices(t.Context(), b.UserID())
	if err != nil {
		t.Fatal(err)
	}
	if err := mach.SignUser(t.Context(), b.UserID(), id.Ed25519(u.MasterKey)); err != nil {
		t.Fatal(err)
	}
	if got := state(); got != MasterVerified {
		t.Errorf("signed by our user-signing key: %s", got)
	}
	if own, err := a.Devices(t.Context(), a.UserID()); err != nil || own.MasterState != MasterOwn || !own.Devices[a.DeviceID()].Verified {
		t.Errorf("own: %+v, %v", own, err)
	}
	// The user resets the keys.
	h.Mu.Lock()
	delete(h.Cross, b.UserID())
	for key := range h.AccountData {
		if strings.HasPrefix(key, b.UserID().String()) {
			delete(h.AccountData, key)
		}
	}
	h.Mu.Unlock()
	reset := h.loginDevice("@b:one")
	bootstrap(t, reset)
	if err := reset.SignDevice(t.Context(), b.DeviceID()); err != nil {
		t.Fatal(err)
	}
	if got := state(); got != MasterChanged {
		t.Errorf("after a reset: %s", got)
	}
	u, err = a.Devices(t.Context(), b.UserID())
	if err != nil {
		t.Fatal(err)
	}
	d := u.Devices[b.DeviceID()]
	cred := &rooms.Credential{User: b.UserID(), Device: b.DeviceID(), Key: d.MLSKeys[1]}
	if err := u.Check(cred, 1, rooms.VerifyCross); rooms.RuleOf(err) != rooms.RuleIdentityChanged {
		t.Errorf("check after a reset: %v", err)
	}
	if err := a.AcceptIdentity(t.Context(), b.UserID()); err != nil {
		t.Fatal(err)
	}
	if got := state(); got != MasterTOFU {
		t.Errorf("after accepting: %s", got)
	}
}

func TestForgedDevicesAreIgnored(t *testing.T) {
	h := newHomeserver(t, true)
	a, b := h.loginDevice("@a:one"), h.loginDevice("@b:one")
	bootstrap(t, b)
	good := h.device(b).Keys
	for _, row := range []struct {
		name, old, new string
	}{
		{"another user", `"user_id":"@b:one"`, `"user_id":"@c:one"`},
		{"another device", `"device_id":"` + b.DeviceID().String(), `"device_id":"X` + b.DeviceID().String()},
		{"a changed algorithm", rooms.Algorithm, "m.olm.v1.curve25519-aes-sha2"},
		{"no object", string(good), `"device"`},
	} {
		t.Run(row.name, func(t *testing.T) {
			forged := strings.Replace(string(good), row.old, row.new, 1)
			if forged == string(good) || !json.Valid([]byte(forged)) {
				t.Fatal("the forgery is none")
			}
			h.Mu.Lock()
			h.Devices["@b:one"][b.DeviceID().String()].Keys = json.RawMessage(forged)
			h.Mu.Unlock()
			if err := a.listsChanged(t.Context(), []id.UserID{"@b:one"}, nil, false); err != nil {
				t.Fatal(err)
			}
			u, err := a.Devices(t.Context(), "@b:one")
			if err != nil || len(u.Devices) != 0 {
				t.Errorf("got %+v, %v", u.Devices, err)
			}
		})
	}
}

func TestADeviceCannotComeBackWithAnotherKey(t *testing.T) {
	h := newHomeserver(t, true)
	a, b := h.loginDevice("@a:one"), h.loginDevice("@b:one")
	first, err := a.Devices(t.Context(), b.UserID())
	if err != nil {
		t.Fatal(err)
	}
	name := b.DeviceID()
	// The server removes the device, then shows one of the same name.
	h.Mu.Lock()
	saved := h.Devices[b.UserID()]
	h.Devices[b.UserID()] = map[string]*hstest.Device{}
	h.Mu.Unlock()
	if err := a.listsChanged(t.Context(), []id.UserID{b.UserID()}, nil, false); err != nil {
		t.Fatal(err)
	}
	if u, err := a.Devices(t.Context(), b.UserID()); err != nil || len(u.Devices) != 0 {
		t.Fatal(u, err)
	}
	h.Mu.Lock()
	h.Devices[b.UserID()] = map[string]*hstest.Device{}
	h.NextLogin = 1 // the next device gets the name DEV2
	h.Mu.Unlock()
	impostor := h.loginDevice("@b:one")
	if impostor.DeviceID() != name {
		t.Fatalf("the impostor is called %s, want %s", impostor.DeviceID(), name)
	}
	if err := a.listsChanged(t.Context(), []id.UserID{b.UserID()}, nil, false); err != nil {
		t.Fatal(err)
	}
	u, err := a.Devices(t.Context(), b.UserID())
	if err != nil {
		t.Fatal(err)
	}
	cred := &rooms.Credential{User: b.UserID(), Device: name, Key: u.Devices[name].MLSKeys[1]}
	if err := u.Check(cred, 1, rooms.VerifyTOFU); rooms.RuleOf(err) != rooms.RuleIdentityChanged {
		t.Errorf("got %v, want an identity that changed", err)
	}
	_, _ = first, saved
}

func TestAMalformedMemberHidesNobody(t *testing.T) {
	h := newHomeserver(t, true)
	a, b := h.loginDevice("@a:one"), h.loginDevice("@b:one")
	all, err := a.DevicesOf(t.Context(), []id.UserID{"@", b.UserID()})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 || len(all["@"].Devices) != 0 || all[b.UserID()].Devices[b.DeviceID()] == nil {
		t.Errorf("got %+v", all)
	}
}

func TestNoticesAreBounded(t *testing.T) {
	var d deviceLists
	d.init()
	d.outdate("@first:one")
	position := d.position()
	for n := range maxCachedLists + 5 {
		d.outdate(id.UserID(fmt.Sprintf("@u%d:one", n)))
	}
	if len(d.change) > maxCachedLists {
		t.Errorf("%d notices are kept", len(d.change))
	}
	if !d.changedSince("@u1:one", position) {
		t.Error("a forgotten notice counts as none")
	}
	if d.changedSince("@first:one", d.position()) {
		t.Error("an old notice counts as new")
	}
}

func TestStoreErrorsAreNotSwallowed(t *testing.T) {
	h := newHomeserver(t, true)
	a := h.loginDevice("@a:one")
	if err := a.st.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.listsChanged(t.Context(), []id.UserID{"@b:one"}, nil, false); err == nil {
		t.Error("a closed store was written to")
	} else if errors.Is(err, ErrNotLoggedIn) {
		t.Error(err)
	}
}
