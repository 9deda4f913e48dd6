package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// federated is a room of three servers with modules: alice, an admin, of the
// creator's, bob and carol of the others.
func (w *world) federated(change func(p *rooms.Policy)) (room id.RoomID, alice, bob, carol *testDevice) {
	w.t.Helper()
	w.addModule("two.example")
	w.addModule("three.example")
	alice, bob, carol = w.device("alice", "ALICE1"), w.device("bob:two.example", "BOB1"), w.device("carol:three.example", "CAROL1")
	w.must(func() (err error) {
		room, err = alice.CreateRoom(w.ctx, CreateOptions{Name: "Federated", Policy: change})
		return err
	})
	for _, d := range []*testDevice{bob, carol} {
		w.must(func() error { return alice.Invite(w.ctx, room, d.UserID()) })
		w.join(d, room)
	}
	w.settle()
	return room, alice, bob, carol
}

// rest lets time pass, so that what clients do by themselves is done. One choice
// may follow another: heirs are named before all modules have spoken.
func (w *world) rest() {
	w.t.Helper()
	for range 3 {
		w.now.add(autoWait)
		w.settle()
		if !slices.ContainsFunc(w.all, (*testDevice).choosing) {
			return
		}
	}
}

// choosing tells whether a device is about to change a policy by itself.
func (d *testDevice) choosing() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.rooms {
		if !d.dead && r.auto != nil {
			return true
		}
	}
	return false
}

func (d *testDevice) sequencers(room id.RoomID) *SequencersInfo {
	d.w.t.Helper()
	info, err := d.Sequencers(d.w.ctx, room)
	if err != nil {
		d.w.t.Fatal(err)
	}
	return info
}

func servers(info *SequencersInfo) []string {
	var out []string
	for _, s := range info.List {
		out = append(out, s.Server)
	}
	return out
}

func (w *world) wantServers(room id.RoomID, devices []*testDevice, want ...string) {
	w.t.Helper()
	for _, d := range devices {
		info := d.sequencers(room)
		if diff := cmp.Diff(want, servers(info)); diff != "" {
			w.t.Errorf("modules that %s sees (-want +got):\n%s", d.ident.device, diff)
		}
		if info.Change != nil {
			w.t.Errorf("%s sees a change under way: %+v", d.ident.device, info.Change)
		}
	}
}

func TestThreeServersGetThreeSequencers(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(nil)
	all := []*testDevice{alice, bob, carol}
	w.rest()
	w.wantServers(room, all, testServer, "two.example", "three.example")
	for _, d := range all {
		info := d.sequencers(room)
		if info.Quorum != 2 || info.Manual || info.Era != 0 || len(info.Without) != 0 || len(info.Others) != 0 {
			t.Errorf("%s sees %+v", d.ident.device, info)
		}
		if want := []id.UserID{bob.UserID(), carol.UserID()}; !slices.Equal(slices.Sorted(slices.Values(info.Heirs)), want) {
			t.Errorf("heirs that %s sees: %v, want %v", d.ident.device, info.Heirs, want)
		}
		for _, s := range info.List {
			if s.State != SequencerServes {
				t.Errorf("%s sees %s as %q", d.ident.device, s.Server, s.State)
			}
		}
	}
	// The room works on, with finals by two of three.
	w.more[1].down = true
	w.send(bob, room, "by three modules")
	dave := w.device("dave:two.example", "DAVE1")
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave)
	carol.wantTexts("by three modules")
	if info := alice.sequencers(room); info.Final != info.Epoch {
		t.Errorf("final epoch %d of %d with one module of three away", info.Final, info.Epoch)
	}
}

func TestTwoServersKeepOneSequencer(t *testing.T) {
	w := newWorld(t)
	w.addModule("two.example")
	alice, bob := w.device("alice", "ALICE1"), w.device("bob:two.example", "BOB1")
	var room id.RoomID
	w.must(func() (err error) {
		room, err = alice.CreateRoom(w.ctx, CreateOptions{})
		return err
	})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	w.rest()
	w.wantServers(room, []*testDevice{alice, bob}, testServer)
	info := bob.sequencers(room)
	if !slices.Equal(info.Heirs, []id.UserID{bob.UserID()}) {
		t.Errorf("heirs %v, want the second server's user", info.Heirs)
	}
	if len(info.Others) != 1 || info.Others[0].Server != "two.example" {
		t.Errorf("modules that are not listed: %+v", info.Others)
	}
	// What nobody caused ends nobody's rest.
	before := alice.epoch(room)
	w.rest()
	w.rest()
	if alice.epoch(room) != before {
		t.Errorf("epoch %d, %d before: clients go on changing the policy", alice.epoch(room), before)
	}
}

func TestAdminsNameTheSequencers(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	all := []*testDevice{alice, bob, carol}
	w.rest()
	w.wantServers(room, all, testServer)
	if len(alice.sequencers(room).Heirs) != 0 {
		t.Error("heirs were named by themselves")
	}
	if err := bob.SetSequencers(w.ctx, room, testServer); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("bob, no admin, names the modules: %v", err)
	}
	if err := alice.SetSequencers(w.ctx, room, testServer, "nowhere.example"); !errors.Is(err, ErrNoModuleOf) || !strings.Contains(err.Error(), "nowhere.example") {
		t.Errorf("a server without a module: %v", err)
	}
	if err := alice.DropSequencers(w.ctx, room, testServer); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("the last module is dropped: %v", err)
	}
	w.must(func() error { return alice.AddSequencers(w.ctx, room, "two.example", "@_mls_bot:three.example") })
	w.settle()
	w.wantServers(room, all, testServer, "two.example", "three.example")
	w.must(func() error { return alice.DropSequencers(w.ctx, room, testServer) })
	w.settle()
	w.rest()
	w.wantServers(room, all, "two.example", "three.example")
	w.send(carol, room, "without the creator's module")
	w.settle()
	alice.wantTexts("without the creator's module")
	w.must(func() error { return alice.AutoSequencers(w.ctx, room, true) })
	w.settle()
	w.rest()
	w.wantServers(room, all, "two.example", "three.example", testServer)
}

// TestListWaitsForItsModules: a list whose majority is not ready does not come
// into force, says so, and holds nobody up.
func TestListWaitsForItsModules(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	w.more[0].down, w.more[1].down = true, true
	w.now.add(time.Second)
	ctx, cancel := w.timeout(40 * time.Second)
	defer cancel()
	err := w.background(func() error { return alice.SetSequencers(ctx, room, testServer, "two.example", "three.example") })
	if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "waiting for two.example, three.example") {
		t.Fatalf("a list without a majority that is ready: %v", err)
	}
	change := bob.sequencers(room).Change
	if change == nil || change.Accepted || change.Needs != 2 || change.By != alice.UserID() || change.List[1].State != SequencerUnready {
		t.Errorf("bob sees the change %+v", change)
	}
	// Others go on, and the admin herself after a while.
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	w.settle()
	w.must(func() error { return alice.Kick(w.ctx, room, carol.UserID(), "") })
	w.settle()
	w.sameEpoch(room, alice, bob, dave)
	w.wantServers(room, []*testDevice{alice, bob, dave}, testServer)
	// Once the modules are there, the change comes into force by itself.
	w.more[0].down, w.more[1].down = false, false
	w.now.add(listPause)
	w.settle()
	w.wantServers(room, []*testDevice{alice, bob, dave}, testServer, "two.example", "three.example")
}

// TestADisplacedListIsNoListToCome: another commit was accepted in the place of the one that names the list. Nothing is final
// yet, so that it is still held.
func TestADisplacedListIsNoListToCome(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	w.more[0].down, w.more[1].down = true, true
	ctx, cancel := w.timeout(40 * time.Second)
	defer cancel()
	if err := w.background(func() error { return alice.SetSequencers(ctx, room, testServer, "two.example", "three.example") }); !errors.Is(err, ErrNotReady) {
		t.Fatal(err)
	}
	before := bob.epoch(room)
	if change := bob.sequencers(room).Change; change == nil || len(change.List) != 3 {
		t.Fatalf("the list to come: %+v", change)
	}
	w.module.noVouching = true // so it accepts and cannot vote
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	w.settle()
	for _, d := range []*testDevice{alice, bob, carol} {
		d.mu.Lock()
		held := len(d.rooms[room].machine.ListChanges())
		d.mu.Unlock()
		if info := d.sequencers(room); held != 1 || info.Epoch <= before || info.Final > before || info.Change != nil {
			t.Errorf("%s holds %d changes at epoch %d (final %d, before %d) and sees %+v to come", d.ident.device, held, info.Epoch, info.Final, before, info.Change)
		}
	}
}

// TestAModuleThatCannotBeInvitedIsNotWaitedFor: nobody will come, and the error says so in words of its own.
func TestAModuleThatCannotBeInvitedIsNotWaitedFor(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.federated(func(p *rooms.Policy) { p.Manual = true })
	err := w.background(func() error { return alice.CallModule(w.ctx, room, "nonsense.example") })
	if !errors.Is(err, ErrNoModuleOf) || !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "could not be invited") || strings.Contains(err.Error(), "context") {
		t.Errorf("a module that there is none of: %v", err)
	}
}

// A notice names the servers that the error names, and no present module that speaks last.
func TestListChangeNamesWhomItWaitsFor(t *testing.T) {
	for _, tc := range []struct {
		name                  string
		list                  []SequencerInfo
		want, absent, rekeyed []string
	}{
		{"newcomers first", []SequencerInfo{{Server: "s1", State: SequencerUnready, present: true}, {Server: "s2", State: SequencerUnready}, {Server: "s3", State: SequencerReady}}, []string{"s2"}, nil, nil},
		{"a present one is lost", []SequencerInfo{{Server: "s1", State: SequencerAbsent, present: true}, {Server: "s2", State: SequencerNewKey}}, []string{"s1", "s2"}, []string{"s1"}, []string{"s2"}},
		{"the present ones last", []SequencerInfo{{Server: "s1", State: SequencerUnready, present: true}, {Server: "s2", State: SequencerReady}}, []string{"s1"}, nil, nil},
	} {
		l := &ListChange{List: tc.list, Needs: 2}
		got, absent, rekeyed := l.waiting()
		if !slices.Equal(got, tc.want) || !slices.Equal(absent, tc.absent) || !slices.Equal(rekeyed, tc.rekeyed) {
			t.Errorf("%s: the notice names %q (absent %q, another key %q), want %q (%q, %q)", tc.name, got, absent, rekeyed, tc.want, tc.absent, tc.rekeyed)
		}
		_, after, _ := strings.Cut(l.missing(), "waiting for ")
		for i, part := range strings.Split(after, ", ") {
			if server, _, _ := strings.Cut(part, " "); i >= len(tc.want) || server != tc.want[i] {
				t.Errorf("%s: the error names %q, want %q", tc.name, after, tc.want)
			}
		}
	}
}

// TestListChangeNamesWhoOfThePresentListDoesNotServe: where their word is waited for.
func TestListChangeNamesWhoOfThePresentListDoesNotServe(t *testing.T) {
	l := &ListChange{
		List: []SequencerInfo{{Server: "s2", State: SequencerReady}, {Server: "s3", State: SequencerAbsent}}, Needs: 1,
		gone: []SequencerInfo{{Server: "s1", State: SequencerNewKey, present: true}},
	}
	for _, l.Accepted = range []bool{false, true} {
		servers, absent, rekeyed := l.waiting()
		if !slices.Equal(servers, []string{"s1"}) || absent != nil || !slices.Equal(rekeyed, []string{"s1"}) {
			t.Errorf("accepted %t: it names %q, absent %q, another key %q, want s1 with another key", l.Accepted, servers, absent, rekeyed)
		}
		if got := l.missing(); !strings.Contains(got, "s1 (its module announces another key)") || strings.Contains(got, "s3") {
			t.Errorf("accepted %t: it says %q", l.Accepted, got)
		}
	}
}

// TestListThatNobodyIsReadyForComesToRest: a list whose modules are lost is tried
// ever more rarely, then no more, and leaves room for the admin's other commits.
// Once one of the modules speaks, it is tried again.
func TestListThatNobodyIsReadyForComesToRest(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	w.more[0].down, w.more[1].down = true, true
	w.now.add(time.Second)
	ctx, cancel := w.timeout(40 * time.Second)
	defer cancel()
	if err := w.background(func() error { return alice.SetSequencers(ctx, room, testServer, "two.example", "three.example") }); !errors.Is(err, ErrNotReady) {
		t.Fatal(err)
	}
	commits := func() (n int) {
		w.s.mu.Lock()
		defer w.s.mu.Unlock()
		for _, evt := range w.s.log {
			if evt.Type == rooms.TypeCommit && evt.Sender == alice.UserID() {
				n++
			}
		}
		return n
	}
	before := commits() - 1
	for range 24 * 2 {
		w.now.add(30 * time.Minute)
		w.settle()
		w.now.add(listWait)
		w.settle()
	}
	if n := commits() - before; n != listTries {
		t.Errorf("%d list changes in a day, want %d", n, listTries)
	}
	w.must(func() error { return alice.Kick(w.ctx, room, carol.UserID(), "") })
	w.settle()
	w.sameEpoch(room, alice, bob)
	w.more[0].down, w.more[1].down = false, false
	w.now.add(listPause << 6)
	w.settle()
	w.wantServers(room, []*testDevice{alice, bob}, testServer, "two.example", "three.example")
}

// TestAPolicyDoesNotWaitForAListThatDoesNotCome: what an admin changes while a list of modules that they named waits for
// modules that are lost is committed without the list, which waits on, and takes nothing back once it comes: by
// itself, or because it is named once more.
func TestAPolicyDoesNotWaitForAListThatDoesNotCome(t *testing.T) {
	t.Run("the list comes by itself", func(t *testing.T) { policyBesideList(t, false) })
	t.Run("the list is named again", func(t *testing.T) { policyBesideList(t, true) })
}

func policyBesideList(t *testing.T, again bool) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	for _, m := range w.more {
		m.down = true
	}
	w.now.add(time.Second)
	ctx, cancel := w.timeout(40 * time.Second)
	defer cancel()
	if err := w.background(func() error { return alice.SetSequencers(ctx, room, testServer, "two.example", "three.example") }); !errors.Is(err, ErrNotReady) {
		t.Fatal(err)
	}
	change := func(d *testDevice, fn func(p *rooms.Policy)) {
		t.Helper()
		ctx, cancel := w.timeout(2 * time.Minute)
		defer cancel()
		if err := w.background(func() error { return d.ChangePolicy(ctx, room, fn) }); err != nil {
			t.Fatalf("a change beside a list that does not come: %v", err)
		}
	}
	want := func(window int, list ...string) {
		t.Helper()
		w.sameEpoch(room, alice, bob, carol)
		for _, d := range []*testDevice{alice, bob, carol} {
			if diff := cmp.Diff(list, servers(d.sequencers(room))); diff != "" {
				t.Errorf("modules that %s sees (-want +got):\n%s", d.ident.device, diff)
			}
		}
		for _, d := range []*testDevice{alice, bob, carol} {
			d.mu.Lock()
			p, err := rooms.PolicyOf(d.rooms[room].head().group)
			d.mu.Unlock()
			if err != nil || p.Window != window || !p.IsAdmin(bob.UserID()) {
				t.Errorf("%s has the window %d, bob as an admin: %v (%v); want %d", d.ident.device, p.Window, p.IsAdmin(bob.UserID()), err, window)
			}
		}
	}
	change(alice, func(p *rooms.Policy) { p.Window, p.Admins = 7, append(p.Admins, bob.UserID()) })
	w.settle()
	want(7, testServer)
	alice.restart()
	change(bob, func(p *rooms.Policy) { p.Window = 9 }) // alice's list does not take this back
	w.settle()
	want(9, testServer)
	for _, m := range w.more {
		m.down = false
	}
	if again {
		w.must(func() error { return alice.SetSequencers(w.ctx, room, testServer, "two.example", "three.example") })
		w.settle()
	} else {
		for range 8 {
			w.now.add(listPause)
			w.settle()
		}
	}
	want(9, testServer, "two.example", "three.example")
}

// TestHeirsDoNotWaitForAListThatDoesNotCome: an admin's client names heirs though the modules that it chose beside them
// are lost before they are ready.
func TestHeirsDoNotWaitForAListThatDoesNotCome(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	for _, m := range w.more {
		m.down = true
	}
	w.must(func() error { return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Manual = false }) })
	for range 4 {
		w.now.add(listWait)
		w.settle()
	}
	w.sameEpoch(room, alice, bob, carol)
	if diff := cmp.Diff([]string{testServer}, servers(bob.sequencers(room))); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
	bob.mu.Lock()
	defer bob.mu.Unlock()
	policy, err := rooms.PolicyOf(bob.rooms[room].head().group)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []*testDevice{bob, carol} {
		if !policy.IsHeir(d.UserID()) {
			t.Errorf("%s is no heir: %v", d.UserID(), policy.Heirs)
		}
	}
}

// TestModulesThatShowHeadsAndAreNeverReady: each head of a module that was not ready
// speaks for another try, but above one commit for one more at the most: the module
// takes no more than a few commits of one author there.
func TestModulesThatShowHeadsAndAreNeverReady(t *testing.T) {
	bot := botOf("two.example")
	r := &room{state: newRoomState("!r:x"), tried: map[string]time.Duration{}}
	tries := func(parent federation.Ref) (n int) {
		for i := range 100 {
			if r.tried["list"] == 0 {
				n++
				if pause := r.listFailed(parent); pause == 0 {
					r.tried["list"] = 1 << 60
				} else {
					r.tried["list"] = pause
				}
				r.unready[bot] = r.state.Entries[rooms.TypeHead][string(bot)].Event
			}
			key := string(bot)
			r.state.set(&Event{ID: id.EventID(fmt.Sprint("$head", parent.Short(), i)), Type: rooms.TypeHead, Sender: bot, StateKey: &key, Content: json.RawMessage(`{}`)})
			r.listAgain(parent)
		}
		return n
	}
	for i := range 3 {
		if n := tries(federation.Ref{byte(i + 1)}); n != listTries+1 {
			t.Errorf("%d list changes above one commit, want %d", n, listTries+1)
		}
		r.listAgain(federation.Ref{byte(i + 2)}) // the group has gone on
	}
}

// TestNobodySendsUnderAListToCome: messages go out in the epoch below a list
// change that is not final.
func TestNobodySendsUnderAListToCome(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	before := alice.epoch(room)
	w.module.noVouching = true // so it cannot vote
	ctx, cancel := w.timeout(40 * time.Second)
	defer cancel()
	err := w.background(func() error { return alice.SetSequencers(ctx, room, testServer, "two.example", "three.example") })
	if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "not yet made it final") {
		t.Fatalf("a list change that nobody votes for: %v", err)
	}
	if alice.epoch(room) != before+1 {
		t.Fatalf("epoch %d, want the list change %d", alice.epoch(room), before+1)
	}
	w.send(bob, room, "meanwhile")
	w.settle()
	for _, u := range carol.got {
		if m, ok := u.(*Message); ok && m.Epoch != before {
			t.Errorf("a message of epoch %d, the newest in force is %d", m.Epoch, before)
		}
	}
	carol.wantTexts("meanwhile")
	w.wantServers2(room, alice, testServer)
}

// TestAListThatWasSlowCountsAsNoFailure: a list change that is left aside, as it does not become final for a while, is not
// brought again at once; and once it is final nothing of that is left.
func TestAListThatWasSlowCountsAsNoFailure(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.federated(func(p *rooms.Policy) { p.Manual = true })
	w.module.noVouching = true // so it cannot vote
	ctx, cancel := w.timeout(40 * time.Second)
	defer cancel()
	if err := w.background(func() error { return alice.SetSequencers(ctx, room, testServer, "two.example", "three.example") }); !errors.Is(err, ErrNotReady) {
		t.Fatalf("a list change that nobody votes for: %v", err)
	}
	state := func() (failures int, waits bool) {
		alice.mu.Lock()
		defer alice.mu.Unlock()
		r := alice.rooms[room]
		now := alice.mono()
		alice.buildOn(r, now)
		alice.buildOn(r, now+listWait)
		return r.listFailures, r.tried["list"] > now+listWait
	}
	if failures, waits := state(); failures != 1 || !waits {
		t.Fatalf("left aside: %d failures, waits: %v; want one, and that it waits", failures, waits)
	}
	alice.mu.Lock()
	defer alice.mu.Unlock()
	r := alice.rooms[room]
	if r.listCame(r.machine.NewestFinal()); r.listFailures != 1 || r.tried["list"] == 0 {
		t.Errorf("what is final does not hold it: %d failures, and none until %v", r.listFailures, r.tried["list"])
	}
	if r.listCame(r.listAside); r.listFailures != 0 || r.tried["list"] > 0 {
		t.Errorf("final after all: %d failures, and none until %v", r.listFailures, r.tried["list"])
	}
}

func (w *world) wantServers2(room id.RoomID, d *testDevice, want ...string) {
	w.t.Helper()
	info := d.sequencers(room)
	if diff := cmp.Diff(want, servers(info)); diff != "" {
		w.t.Errorf("modules in force (-want +got):\n%s", diff)
	}
	if info.Change == nil || !info.Change.Accepted {
		w.t.Fatalf("change under way: %+v", info.Change)
	}
	// What is shown of the room in short is the same.
	var to []string
	for _, s := range info.Change.List {
		to = append(to, s.Server)
	}
	short, err := d.Room(w.ctx, room)
	if err != nil || !slices.Equal(short.Modules, want) || !slices.Equal(short.ModulesTo, to) {
		w.t.Errorf("in short: %v, being changed to %v, %v; want %v, %v", short.Modules, short.ModulesTo, err, want, to)
	}
}

func TestRoomWithoutOwnModule(t *testing.T) {
	w := newWorld(t)
	w.addModule("two.example")
	w.module.down = true
	delete(w.s.users, w.module.bot)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob:two.example", "BOB1")
	var room id.RoomID
	ctx, cancel := w.timeout(30 * time.Second)
	defer cancel()
	if err := w.background(func() (err error) {
		_, err = alice.CreateRoom(ctx, CreateOptions{})
		return err
	}); !errors.Is(err, ErrNoModule) {
		t.Errorf("a room without any module: %v", err)
	}
	w.must(func() (err error) {
		room, err = alice.CreateRoom(w.ctx, CreateOptions{Invite: []id.UserID{bob.UserID()}})
		return err
	})
	w.join(bob, room)
	w.settle()
	w.wantServers(room, []*testDevice{alice, bob}, "two.example")
	if info := alice.sequencers(room); !slices.Equal(info.Without, []string{testServer}) {
		t.Errorf("servers without a module: %v", info.Without)
	}
	w.send(alice, room, "ordered by another server's module")
	w.settle()
	bob.wantTexts("ordered by another server's module")
}

// TestKeyOfOneModuleIsRotatedByTheOthers: with a majority alive, a module that
// lost its key comes back by a change of the list, without an era.
func TestKeyOfOneModuleIsRotatedByTheOthers(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(nil)
	w.rest()
	all := []*testDevice{alice, bob, carol}
	w.wantServers(room, all, testServer, "two.example", "three.example")
	w.more[0].loseDatabase(room)
	w.settle()
	if state := alice.sequencers(room).List[1].State; state != SequencerNewKey {
		t.Errorf("the module that lost its key is shown as %q", state)
	}
	w.must(func() error { return alice.RepairSequencer(w.ctx, room) })
	w.settle()
	w.wantServers(room, all, testServer, "two.example", "three.example")
	for _, d := range all {
		info := d.sequencers(room)
		if info.Era != 0 || info.Manual || info.List[1].State != SequencerServes || string(info.List[1].Key) != string(pub(w.more[0].key)) {
			t.Errorf("%s sees era %d and %+v", d.ident.device, info.Era, info.List[1])
		}
	}
	// A quorum with the module that came back.
	w.more[1].down = true
	w.send(carol, room, "on")
	w.must(func() error { return alice.Kick(w.ctx, room, carol.UserID(), "") })
	w.settle()
	if info := bob.sequencers(room); info.Final != info.Epoch {
		t.Errorf("final epoch %d of %d", info.Final, info.Epoch)
	}
}

// TestHeadsThatAreNoModules: any user can post a head; it makes them no module.
func TestHeadsThatAreNoModules(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.federated(func(p *rooms.Policy) { p.Manual = true })
	for _, test := range []struct {
		name   string
		sender id.UserID
		server string
	}{
		{"a user of the server", bob.UserID(), "two.example"},
		{"a module in another server's name", "@_mls_bot:two.example", "four.example"},
		{"who is not in the room", "@_mls_bot:four.example", "four.example"},
	} {
		t.Run(test.name, func(t *testing.T) {
			raw, err := rooms.Encode(&rooms.HeadContent{Version: rooms.Version, ReceiptKey: rooms.Bytes(pub(edKey(newSeeded("mallory")))), Server: test.server})
			if err != nil {
				t.Fatal(err)
			}
			hs := &fakeTransport{s: w.s, user: test.sender}
			if _, err := hs.SendState(w.ctx, room, rooms.TypeHead, string(test.sender), raw); err != nil {
				t.Fatal(err)
			}
			w.settle(alice)
			for _, m := range alice.sequencers(room).Others {
				if string(m.Key) == string(pub(edKey(newSeeded("mallory")))) {
					t.Errorf("%s counts as the module of %s", m.User, m.Server)
				}
			}
		})
	}
}

func TestLiarsAreShownAndNotTakenBack(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.federated(func(p *rooms.Policy) { p.Manual = true })
	w.must(func() error { return alice.AddSequencers(w.ctx, room, "two.example", "three.example") })
	w.settle()
	alice.mu.Lock()
	r := alice.rooms[room]
	liar, _ := r.moduleOf("two.example")
	alice.noteLiar(r, federation.Evidence{Kind: federation.EvidenceVotes, Signer: liar})
	alice.mu.Unlock()
	if state := alice.sequencers(room).List[1].State; state != SequencerLied {
		t.Errorf("the liar is shown as %q", state)
	}
	w.must(func() error { return alice.DropSequencers(w.ctx, room, "two.example") })
	w.settle()
	if err := alice.AddSequencers(w.ctx, room, "two.example"); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("the liar is taken back with the key it lied with: %v", err)
	}
	w.must(func() error { return alice.AutoSequencers(w.ctx, room, true) })
	w.settle()
	w.rest()
	w.wantServers(room, []*testDevice{alice}, testServer, "three.example")
}
