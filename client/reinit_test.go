package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	suite1 = mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	suite2 = mls.MLS_128_DHKEMP256_AES128GCM_SHA256_P256
	suite3 = mls.MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519
	hybrid = mls.CipherSuite(0xf0d1) // X-Wing, Ed25519
)

// founding takes a founding commit, as package appservice does.
func (m *fakeModule) founding(evt *Event, g *moduleRoom, content *rooms.CommitContent, info *mls.Message, cfg *mls.Config) {
	t := m.w.t
	tree := []byte(content.Snapshot.Tree)
	if file := content.Snapshot.File; file != nil {
		var err error
		if tree, err = m.hs.Download(m.w.ctx, string(file.MXC), file.Size); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := rooms.RootRef(info)
	if err != nil {
		t.Fatal(err)
	}
	parent := federation.Ref(content.Parent)
	old := g.epochs[parent]
	if old == nil {
		t.Logf("module: a founding commit on an epoch that is not held")
		return
	}
	next, err := mls.NewPublicGroup(cfg, info, tree)
	if err != nil {
		t.Logf("module refuses a founding commit: %v", err)
		return
	}
	facts, err := rooms.CheckFounding(rooms.CommitInput{
		Room: evt.RoomID, Sender: evt.Sender, Event: evt.ID, Content: content, Ref: ref, Tree: old, Parent: parent,
	}, old.ReInit(), next)
	if err != nil {
		t.Logf("module refuses a founding commit: %v", err)
		return
	}
	g.contents[ref] = content
	g.epochs[ref], g.infos[ref], g.events[ref] = next, content.GroupInfo, evt.ID
	acts, err := g.machine.Step(facts)
	if err != nil {
		t.Logf("module refuses a founding commit: %v", err)
		return
	}
	m.act(evt.RoomID, g, acts)
}

func suitesWorld(t *testing.T, suites ...mls.CipherSuite) *world {
	w := newWorld(t)
	w.suites, w.follows = suites, suites
	return w
}

func (w *world) changeSuite(d *testDevice, room id.RoomID, suite mls.CipherSuite, o SuiteOptions) {
	w.t.Helper()
	w.must(func() error {
		_, err := d.ChangeSuite(w.ctx, room, suite, o)
		return err
	})
	w.settle()
}

func (w *world) wantSuite(room id.RoomID, suite mls.CipherSuite, devices ...*testDevice) {
	w.t.Helper()
	for _, d := range devices {
		if info, err := d.Room(w.ctx, room); err != nil || info.Suite != suite || info.Phase != "member" {
			w.t.Errorf("%s: suite %v, phase %q, %v, want %v", d.ident.device, info.Suite, info.Phase, err, suite)
		}
	}
	w.sameEpoch(room, devices...)
}

// TestChangeSuite moves a room through several suites: everybody goes along,
// messages go both ways, and the history stays.
func TestChangeSuite(t *testing.T) {
	w := suitesWorld(t, suite1, suite2, suite3, hybrid)
	w.module.experimental = true
	room, alice, bob, carol := w.three("shared")
	all := []*testDevice{alice, bob, carol}
	want := []string{"in 1"}
	w.send(alice, room, "in 1")
	for _, suite := range []mls.CipherSuite{suite3, suite2, hybrid, suite1} {
		w.changeSuite(alice, room, suite, SuiteOptions{Weaker: true})
		w.wantSuite(room, suite, all...)
		for _, d := range all {
			text := d.ident.user.Localpart() + " in " + suite.String()
			w.send(d, room, text)
			want = append(want, text)
		}
		w.settle()
		// The new group works like any other: commits, joins, removes.
		dave := w.device(fmt.Sprint("dave", uint16(suite)), "DAVE1")
		w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
		w.join(dave, room)
		w.settle()
		w.wantSuite(room, suite, append(all, dave)...)
		w.send(dave, room, "dave in "+suite.String())
		want = append(want, "dave in "+suite.String())
		w.settle()
		w.must(func() error { return alice.Kick(w.ctx, room, dave.UserID(), "") })
		w.settle()
	}
	for _, d := range all {
		d.wantTexts(want...)
		if n := slices.IndexFunc(d.got, func(u Update) bool { s, ok := u.(*SuiteChanged); return ok && s.From == suite1 && s.To == suite3 }); n < 0 {
			t.Errorf("%s was not told of the change", d.ident.device)
		}
	}
	for _, d := range all {
		d.restart()
	}
	w.send(carol, room, "after a restart")
	w.settle()
	w.wantSuite(room, suite1, all...)
	for _, d := range all {
		if got := d.texts(); got[len(got)-1] != "after a restart" {
			t.Errorf("%s did not get the message after a restart", d.ident.device)
		}
	}
	w.checkNonces()
}

// closed tells whether a device sees the head's group closed.
func (d *testDevice) closed(room id.RoomID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, closed := d.rooms[room].closing()
	return closed && d.rooms[room].machine.Final(e.ref)
}

// beginChange starts a change of suite without waiting for its end.
func (w *world) beginChange(d *testDevice, room id.RoomID, suite mls.CipherSuite) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.ctx)
	cancel()
	if _, err := d.ChangeSuite(ctx, room, suite, SuiteOptions{Weaker: true}); err == nil || ctx.Err() == nil {
		w.t.Fatalf("the change is done already: %v", err)
	}
}

// killBeforeFounding lets a device begin a change, and stops it when it has made
// the founding commit and not sent it.
func (w *world) killBeforeFounding(d *testDevice, room id.RoomID, suite mls.CipherSuite) {
	w.t.Helper()
	d.crashAt = func(point string) error {
		if point != "before-send-commit" {
			return nil
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if p := d.rooms[room].pending; p != nil && p.Founding {
			d.dead = true
			return errCrash
		}
		return nil
	}
	d.Client.crashAt = d.crashAt
	w.beginChange(d, room, suite)
	if !w.until(400, func() bool { return d.dead }) {
		w.t.Fatal("no founding commit is made")
	}
	d.crashAt = nil
}

// queue sends without waiting for it.
func (w *world) queue(d *testDevice, room id.RoomID, text string) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.ctx)
	cancel()
	if _, err := d.SendText(ctx, room, text); err == nil || ctx.Err() == nil {
		w.t.Fatalf("sent at once: %v", err)
	}
}

// TestMessagesWaitForTheNewGroup: what is sent while a group is founded anew goes
// out in the new one, once.
func TestMessagesWaitForTheNewGroup(t *testing.T) {
	w := suitesWorld(t, suite1, suite2)
	room, alice, bob, carol := w.three("shared")
	w.killBeforeFounding(alice, room, suite2)
	if !bob.closed(room) || !carol.closed(room) {
		t.Fatal("the group is not closed for all")
	}
	before := len(w.s.sent)
	w.queue(bob, room, "from bob, meanwhile")
	w.queue(carol, room, "from carol, meanwhile")
	ctx, cancel := w.timeout(3 * time.Second)
	defer cancel()
	if err := w.background(func() error { return bob.Settle(ctx, room) }); err == nil || !errors.Is(err, ErrSuiteChange) {
		t.Errorf("the room rests: %v", err)
	}
	for _, raw := range w.s.sent[before:] {
		if strings.Contains(string(raw), "ciphertext") {
			t.Error("a message went out in a closed group")
		}
	}
	alice.restart()
	w.settle()
	w.wantSuite(room, suite2, alice, bob, carol)
	for _, d := range []*testDevice{alice, bob, carol} {
		if diff := cmp.Diff([]string{"from bob, meanwhile", "from carol, meanwhile"}, d.received()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", d.ident.device, diff)
		}
	}
	for _, u := range bob.got {
		if m, ok := u.(*Message); ok && m.Epoch != 1 {
			t.Errorf("%q went out in epoch %d", m.Body(), m.Epoch)
		}
	}
}

// TestAnotherFounds: whoever closed the group is gone before it is founded anew,
// and any other member does it. Coming back, it finds itself in the new group.
func TestAnotherFounds(t *testing.T) {
	w := suitesWorld(t, suite1, suite2)
	room, alice, bob, carol := w.three("shared")
	w.killBeforeFounding(alice, room, suite2)
	closedAt := w.now.get()
	if !w.until(100, func() bool { s, _ := bob.Room(w.ctx, room); return s.Suite == suite2 }) {
		t.Fatal("nobody founds the group")
	}
	if waited := w.now.get() - closedAt; waited < foundWait {
		t.Errorf("others founded after %v, the author has %v", waited, foundWait)
	}
	w.settle(bob, carol)
	w.send(bob, room, "without alice")
	alice.restart()
	w.settle()
	w.send(alice, room, "back")
	w.settle()
	w.wantSuite(room, suite2, alice, bob, carol)
	for _, d := range []*testDevice{alice, bob, carol} {
		d.wantTexts("without alice", "back")
	}
	w.oneWelcomeForEach()
}

// oneWelcomeForEach checks that no key package got two Welcomes that were sent
// (property 13).
func (w *world) oneWelcomeForEach() {
	w.t.Helper()
	seen := map[string]bool{}
	for _, raw := range w.s.welcomes {
		content, err := rooms.DecodeWelcome(raw)
		if err != nil {
			w.t.Fatal(err)
		}
		msg, err := mls.ParseMessage(content.Welcome)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, ref := range msg.Welcome().Recipients() {
			if at := string(ref) + content.Ref.String(); !seen[at] && seen[string(ref)] {
				w.t.Errorf("key package %x was used twice", ref)
			} else {
				seen[at] = true
			}
			seen[string(ref)] = true
		}
	}
}

// TestTwoFoundings: two members found the new group at once; one of them is
// accepted, and the other follows it.
func TestTwoFoundings(t *testing.T) {
	w := suitesWorld(t, suite1, suite2)
	room, alice, bob, carol := w.three("shared")
	w.killBeforeFounding(alice, room, suite2)
	w.module.deaf = true // nothing is accepted for a while
	founded := func(d *testDevice) bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		p := d.rooms[room].pending
		return p != nil && p.Founding && p.EventID != ""
	}
	if !w.until(100, func() bool { return founded(bob) || founded(carol) }) {
		t.Fatal("nobody else founds the group")
	}
	alice.restart()
	if !w.until(100, func() bool { return founded(alice) }) {
		t.Fatal("alice does not send hers")
	}
	w.queue(alice, room, "a")
	w.queue(bob, room, "b")
	w.module.deaf = false
	w.module.again(room)
	w.settle()
	w.send(carol, room, "c")
	w.settle()
	w.wantSuite(room, suite2, alice, bob, carol)
	for _, d := range []*testDevice{alice, bob, carol} {
		if diff := cmp.Diff([]string{"a", "b", "c"}, d.received()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", d.ident.device, diff)
		}
	}
	w.oneWelcomeForEach()
}

// again shows a module all commits of a room once more.
func (m *fakeModule) again(room id.RoomID) {
	m.s.mu.Lock()
	log := slices.Clone(m.s.log)
	m.s.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, evt := range log {
		if evt.RoomID == room && evt.Type == rooms.TypeCommit {
			m.handle(evt)
		}
	}
}

// TestLostWelcomeIntoTheNewGroup: a member whose Welcome is lost joins by itself
// and reads what was sent meanwhile from then on.
func TestLostWelcomeIntoTheNewGroup(t *testing.T) {
	w := suitesWorld(t, suite1, suite2)
	room, alice, bob, carol := w.three("shared")
	w.s.lose = "to " + string(carol.UserID())
	w.changeSuite(alice, room, suite2, SuiteOptions{Weaker: true})
	w.s.lose = ""
	w.now.add(foundWelcomeWait)
	w.settle()
	w.wantSuite(room, suite2, alice, bob, carol)
	w.send(carol, room, "here again")
	w.settle()
	for _, d := range []*testDevice{alice, bob, carol} {
		d.wantTexts("here again")
	}
}

// TestWelcomeBeforeItsFounding: after a cut between servers the Welcome may come
// long before the homeserver has the founding commit. What was said in between
// is read all the same.
func TestWelcomeBeforeItsFounding(t *testing.T) {
	for _, test := range []struct {
		name    string
		later   time.Duration
		restart bool
		repost  bool
	}{
		{name: "at once", later: 0},
		{name: "when nobody asks for it any more", later: 5 * time.Minute},
		{name: "after a restart", later: 5 * time.Minute, restart: true},
		{name: "posted again", later: 5 * time.Minute, repost: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := suitesWorld(t, suite1, suite3)
			room, alice, bob, carol := w.three("shared")
			carol.dead = true
			w.s.held[rooms.TypeHead] = true // the modules' servers are beyond the cut too
			w.changeSuite(alice, room, suite3, SuiteOptions{})
			w.send(bob, room, "in the new group")
			w.settle()
			founding := w.hide(isFounding)
			carol.dead = false
			w.settle()
			for range test.later / (30 * time.Second) {
				w.now.add(30 * time.Second)
				w.settle()
			}
			if info, err := carol.Room(w.ctx, room); err != nil || info.Suite != suite1 {
				t.Fatalf("carol is in a group of %v already: %v", info.Suite, err)
			}
			if test.restart {
				carol.restart()
				w.settle()
			}
			if test.repost {
				raw, err := rooms.Encode(&rooms.RepostContent{Type: founding.Type, Sender: founding.Sender, Content: founding.Content})
				if err != nil {
					t.Fatal(err)
				}
				founding = &Event{ID: "$again", RoomID: room, Type: rooms.TypeRepost, Sender: bob.UserID(), Content: raw}
			}
			w.show(founding)
			w.now.add(foundWelcomeWait)
			w.settle()
			w.wantSuite(room, suite3, alice, bob, carol)
			carol.wantTexts("in the new group")
			if waiting := carol.waiting(room); len(waiting) > 0 {
				t.Errorf("still waits: %v", waiting)
			}
		})
	}
}

func isFounding(evt *Event) bool {
	content, err := rooms.DecodeCommit(evt.Content)
	return evt.Type == rooms.TypeCommit && err == nil && content.Founding
}

// TestEventsBeforeTheirFounding: in the group that follows epochs begin again.
// Until the founding commit is there, none of its messages and commits counts as
// old, low as their epochs are.
func TestEventsBeforeTheirFounding(t *testing.T) {
	w := suitesWorld(t, suite1, suite3)
	room, alice, bob, carol := w.three("shared")
	carol.dead = true
	w.s.held[rooms.TypeHead] = true // the modules are beyond the cut too
	w.changeSuite(alice, room, suite3, SuiteOptions{})
	w.send(bob, room, "in the new group")
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	w.settle()
	w.send(dave, room, "after a commit")
	w.settle()
	founding := w.hide(isFounding)
	key := string(carol.UserID()) + "/" + string(carol.DeviceID())
	w.s.mu.Lock()
	welcomes := w.s.toDevice[key]
	w.s.toDevice[key] = nil
	w.s.mu.Unlock()
	carol.dead = false
	w.settle()
	if info, err := carol.Room(w.ctx, room); err != nil || info.Suite != suite1 {
		t.Fatalf("carol is in a group of %v already: %v", info.Suite, err)
	}
	w.s.mu.Lock()
	w.s.toDevice[key] = welcomes
	w.s.mu.Unlock()
	w.show(founding)
	w.settle()
	w.wantSuite(room, suite3, alice, bob, carol, dave)
	carol.wantTexts("in the new group", "after a commit")
}

// TestLostWelcomesOfAll: nobody gets a Welcome into the founding that was
// accepted. They object to it, and another founding takes its place.
func TestLostWelcomesOfAll(t *testing.T) {
	w := suitesWorld(t, suite1, suite2)
	room, alice, bob, carol := w.three("shared")
	w.s.lose = "from " + string(alice.UserID())
	w.changeSuite(alice, room, suite2, SuiteOptions{Weaker: true})
	w.s.lose = ""
	for range 6 {
		w.now.add(10 * time.Second)
		w.settle()
	}
	w.wantSuite(room, suite2, alice, bob, carol)
	w.send(bob, room, "together")
	w.settle()
	for _, d := range []*testDevice{alice, bob, carol} {
		d.wantTexts("together")
	}
}

// TestAwayDuringTheChange: a member who was offline finds everything at once.
func TestAwayDuringTheChange(t *testing.T) {
	w := suitesWorld(t, suite1, suite2, suite3)
	room, alice, bob, carol := w.three("shared")
	w.send(bob, room, "before")
	carol.dead = true
	w.settle(alice, bob)
	w.send(alice, room, "in the old group")
	w.changeSuite(alice, room, suite3, SuiteOptions{})
	w.send(bob, room, "in the new one")
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	w.settle()
	w.send(dave, room, "dave, two epochs on")
	w.changeSuite(alice, room, suite2, SuiteOptions{Weaker: true})
	w.send(dave, room, "and in another suite")
	w.settle()
	carol.dead = false
	carol.ident.limit = 7 // with gaps, too
	w.settle()
	w.wantSuite(room, suite2, alice, bob, carol, dave)
	carol.wantTexts("before", "in the old group", "in the new one", "dave, two epochs on", "and in another suite")
}

// TestDevicesThatCannotFollow: they are listed, dropped if the admin says so, and
// come back by themselves once they can.
func TestDevicesThatCannotFollow(t *testing.T) {
	w := suitesWorld(t, suite1, suite2)
	room, alice, bob, carol := w.three("shared")
	w.suites = nil
	phone := w.device("bob", "BOBPHONE")
	old := w.device("dave", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, old.UserID()) })
	w.join(old, room)
	w.settle()
	w.wantSuite(room, suite1, alice, bob, carol, phone, old)
	var report *SuiteReport
	var err error
	w.must(func() error {
		report, err = alice.ChangeSuite(w.ctx, room, suite2, SuiteOptions{Weaker: true})
		return nil
	})
	if !errors.Is(err, ErrSuiteNotReady) || len(report.Missing) != 2 || report.Ready != 3 {
		t.Fatalf("report %+v, %v", report, err)
	}
	for _, name := range []string{"BOBPHONE", "DAVE1"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %s: %v", name, err)
		}
	}
	w.settle()
	w.wantSuite(room, suite1, alice, bob, carol, phone, old)

	w.changeSuite(alice, room, suite2, SuiteOptions{Weaker: true, Drop: true})
	w.rest()
	w.wantSuite(room, suite2, alice, bob, carol)
	for _, d := range []*testDevice{phone, old} {
		if info, _ := d.Room(w.ctx, room); info.Phase == "member" {
			t.Errorf("%s is still in", d.ident.device)
		}
	}
	w.send(alice, room, "without them")
	w.settle()
	if policy := alice.policy(room); len(policy.SuiteFloor) != 0 {
		t.Errorf("the floor stays at %v", policy.SuiteFloor)
	}
	members, err := alice.Members(w.ctx, room)
	if err != nil || !slices.ContainsFunc(members, func(m Member) bool { return m.User == old.UserID() && strings.Contains(m.Note, "suite") }) {
		t.Errorf("nobody says why dave is not in: %+v, %v", members, err)
	}
	// Their programs are updated.
	for _, d := range []*testDevice{phone, old} {
		key, err := mls.GenerateSignatureKey(suite2, newSeeded("new"+string(d.ident.device)))
		if err != nil {
			t.Fatal(err)
		}
		d.ident.own().mlsKeys[suite2] = key
		d.ident.addPackages(w, suite2, 5, newSeeded("packs"+string(d.ident.device)))
		for _, other := range w.all {
			other.ident.changed(d.UserID())
		}
		d.restart()
	}
	w.settle()
	for range 10 {
		w.now.add(30 * time.Second)
		w.settle()
	}
	w.wantSuite(room, suite2, alice, bob, carol, phone, old)
	w.send(old, room, "back")
	w.settle()
	phone.wantTexts("back")
}

func (d *testDevice) policy(room id.RoomID) *rooms.Policy {
	d.w.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := rooms.PolicyOf(d.rooms[room].head().group)
	if err != nil {
		d.w.t.Fatal(err)
	}
	return p
}

// TestInviteeOfAnotherSuite: a user whose devices lack the room's suite is
// refused, on both sides, with what helps; after a change of suite they get in.
func TestInviteeOfAnotherSuite(t *testing.T) {
	w := suitesWorld(t, suite1, suite2)
	room, alice, bob, carol := w.three("shared")
	w.suites = []mls.CipherSuite{suite2}
	dave := w.device("dave", "DAVE1")
	err := w.background(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	if !errors.Is(err, ErrSuite) || rooms.RuleOf(err) != rooms.RuleNoCommonSuite {
		t.Fatalf("invite: %v", err)
	}
	for _, part := range []string{"@dave:", "DAVE1", suite1.String(), "another suite"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the refusal does not say %q: %v", part, err)
		}
	}
	// Invited by a client that knows nothing of it.
	if err := alice.hs.Invite(w.ctx, room, dave.UserID(), ""); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.join(dave, room)
	for range 5 {
		w.now.add(joinDelay)
		w.settle()
	}
	ctx, cancel := w.timeout(time.Second)
	defer cancel()
	err = w.background(func() error { return dave.Settle(ctx, room) })
	if !errors.Is(err, ErrSuite) || !strings.Contains(err.Error(), "another suite") {
		t.Errorf("the newcomer is told: %v", err)
	}
	w.send(alice, room, "not for dave")
	w.changeSuite(alice, room, suite2, SuiteOptions{Weaker: true})
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	for range 5 {
		w.now.add(joinDelay)
		w.settle()
	}
	w.wantSuite(room, suite2, alice, bob, carol, dave)
	w.send(dave, room, "in after all")
	w.settle()
	for _, d := range []*testDevice{alice, bob, carol} {
		d.wantTexts("not for dave", "in after all")
	}
	dave.wantTexts("in after all")
	// A room that is made with dave begins with a suite that all have.
	other := w.createRoom(alice, CreateOptions{History: "shared", Invite: []id.UserID{dave.UserID()}})
	w.join(dave, other)
	w.settle()
	w.wantSuite(other, suite2, alice, dave)
}

// TestAdmittedBeforeJoinedAfter: who was invited before a change of suite gets in
// after it, without another invite.
func TestAdmittedBeforeJoinedAfter(t *testing.T) {
	w := suitesWorld(t, suite1, suite2)
	room, alice, bob, carol := w.three("joined")
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.settle()
	w.changeSuite(alice, room, suite2, SuiteOptions{Weaker: true})
	alice.dead, carol.dead = true, true
	w.settle(bob, dave)
	w.must(func() error { _, err := dave.Join(w.ctx, string(room), nil); return err })
	w.settle(bob, dave)
	alice.dead, carol.dead = false, false
	w.settle()
	w.wantSuite(room, suite2, alice, bob, carol, dave)
}

// TestNewcomerAfterAChange: a device that nobody adds joins by itself in the new
// group, whose beginning it follows through the old one.
func TestNewcomerAfterAChange(t *testing.T) {
	w := suitesWorld(t, suite1, suite2, suite3)
	room, alice, bob, carol := w.three("shared")
	w.changeSuite(alice, room, suite3, SuiteOptions{})
	w.changeSuite(alice, room, suite2, SuiteOptions{Weaker: true})
	w.rest()
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.s.lose = "to " + string(dave.UserID())
	w.settle()
	w.join(dave, room)
	for range 10 {
		w.now.add(joinRetry)
		w.settle()
	}
	w.wantSuite(room, suite2, alice, bob, carol, dave)
	if info, _ := dave.Room(w.ctx, room); info.Unconfirmed {
		t.Error("it stays unconfirmed")
	}
	w.send(dave, room, "hello")
	w.settle()
	bob.wantTexts("hello")
	dave.mu.Lock()
	defer dave.mu.Unlock()
	if n := len(dave.rooms[room].rec.Former); n != 2 {
		t.Errorf("it knows of %d groups before", n)
	}
	if n := len(dave.rooms[room].needs); n != 0 {
		t.Errorf("it looks for %d things of old groups", n)
	}
}

// TestTheFloorIsTakenBackAfterAnotherChange: an admin who changed the policy before gives a change of suite up. The floor that
// was set for it is taken back, also while a list of modules waits for one that is lost.
func TestTheFloorIsTakenBackAfterAnotherChange(t *testing.T) {
	t.Run("nothing waits", func(t *testing.T) { floorTakenBack(t, false) })
	t.Run("a list waits", func(t *testing.T) { floorTakenBack(t, true) })
}

func floorTakenBack(t *testing.T, waits bool) {
	w := suitesWorld(t, suite1, suite2)
	id, alice, bob, carol := w.three("shared")
	w.suites = []mls.CipherSuite{suite1}
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, id, dave.UserID()) })
	w.join(dave, id)
	w.settle()
	w.must(func() error { return alice.ChangePolicy(w.ctx, id, func(p *rooms.Policy) { p.Window = 7 }) })
	w.settle()
	if waits {
		lost := w.addModule("lost.example")
		lost.down = true
		if err := alice.wantPolicy(w.ctx, id, false, func(_ *room, p *rooms.Policy) error {
			p.Sequencers = append(p.Sequencers, federation.Sequencer{Server: "lost.example", User: string(lost.bot), ReceiptKey: pub(lost.key)})
			p.Manual = true
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			w.now.add(listWait)
			w.settle()
		}
	}
	w.module.noVouching = true // nothing becomes final, so that the group is not closed yet
	alice.mu.Lock()
	alice.rooms[id].rec.Suite = &suiteChange{Suite: suite2, Drop: []suiteDevice{{dave.UserID(), dave.DeviceID()}}}
	alice.mu.Unlock()
	if !w.until(100, func() bool { return len(alice.policy(id).SuiteFloor) > 0 }) {
		t.Fatal("no floor is set")
	}
	alice.dropSuite(id, errors.New("given up"))
	w.module.noVouching = false
	w.settle()
	w.sameEpoch(id, alice, bob, carol)
	if p := alice.policy(id); len(p.SuiteFloor) != 0 || p.Window != 7 {
		t.Errorf("the floor stays at %v, the window is %d", p.SuiteFloor, p.Window)
	}
	alice.mu.Lock()
	defer alice.mu.Unlock()
	if r := alice.rooms[id]; waits && (r.rec.Policy == nil || len(r.rec.Policy.Sequencers) != 2) {
		t.Error("the list is asked for no more")
	}
}

// TestWhoMayChangeTheSuite: what is refused before anything is sent.
func TestWhoMayChangeTheSuite(t *testing.T) {
	w := suitesWorld(t, suite1, suite2, suite3, hybrid)
	room, alice, bob, _ := w.three("shared")
	for name, test := range map[string]struct {
		by    *testDevice
		suite mls.CipherSuite
		o     SuiteOptions
		want  error
	}{
		"no admin":                 {bob, suite3, SuiteOptions{}, ErrNotAllowed},
		"the suite it has":         {alice, suite1, SuiteOptions{}, ErrSuite},
		"a weaker suite":           {alice, suite2, SuiteOptions{}, ErrSuite},
		"an unknown suite":         {alice, 99, SuiteOptions{Drop: true, Weaker: true}, ErrSuite},
		"a suite of no use":        {alice, 0xf0d9, SuiteOptions{Drop: true, Weaker: true}, ErrSuite},
		"a suite it does not have": {alice, 4, SuiteOptions{Drop: true, Weaker: true}, ErrSuite},
		"the module cannot follow": {alice, hybrid, SuiteOptions{Drop: true}, ErrSuiteNotReady},
	} {
		t.Run(name, func(t *testing.T) {
			events := w.s.events
			err := w.background(func() error {
				_, err := test.by.ChangeSuite(w.ctx, room, test.suite, test.o)
				return err
			})
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			w.settle()
			if w.s.events != events {
				t.Error("something was sent")
			}
		})
	}
	w.must(func() error {
		return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.SuiteFloor = []mls.CipherSuite{suite1, suite3} })
	})
	w.settle()
	if err := w.background(func() error {
		_, err := alice.ChangeSuite(w.ctx, room, suite2, SuiteOptions{Weaker: true})
		return err
	}); !errors.Is(err, ErrSuite) {
		t.Errorf("below the floor: %v", err)
	}
}

// TestTwoAdminsChangeTheSuite: of two changes at once one comes through, and the
// other admin is told.
func TestTwoAdminsChangeTheSuite(t *testing.T) {
	w := suitesWorld(t, suite1, suite2, suite3)
	room, alice, bob, carol := w.three("shared")
	w.must(func() error {
		return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Admins = append(p.Admins, bob.UserID()) })
	})
	w.settle()
	w.beginChange(alice, room, suite2)
	w.beginChange(bob, room, suite3)
	w.settle()
	info, err := carol.Room(w.ctx, room)
	if err != nil || info.Suite != suite2 && info.Suite != suite3 {
		t.Fatalf("suite %v, %v", info.Suite, err)
	}
	w.wantSuite(room, info.Suite, alice, bob, carol)
	loser := bob
	if info.Suite == suite3 {
		loser = alice
	}
	loser.mu.Lock()
	defer loser.mu.Unlock()
	if err := loser.rooms[room].suiteError; !errors.Is(err, ErrSuite) || loser.rooms[room].rec.Suite != nil {
		t.Errorf("the other admin is told %v", err)
	}
}

// TestChangeSuiteOfALargeRoom: trees and key packages too large for an event go
// to media.
func TestChangeSuiteOfALargeRoom(t *testing.T) {
	w := suitesWorld(t, suite1, suite3)
	room, alice, bob, carol := w.three("shared")
	for i := range 100 {
		w.register("carol", fmt.Sprintf("CAROL%d", i+2))
	}
	for _, d := range w.all {
		d.ident.changed(carol.UserID())
	}
	w.settle()
	if info, _ := bob.Room(w.ctx, room); info.Devices != 103 {
		t.Fatalf("%d devices", info.Devices)
	}
	w.changeSuite(alice, room, suite3, SuiteOptions{})
	w.wantSuite(room, suite3, alice, bob, carol)
	if info, _ := bob.Room(w.ctx, room); info.Devices != 103 {
		t.Errorf("%d devices", info.Devices)
	}
	for _, d := range []*testDevice{alice, bob, carol} {
		d.restart()
	}
	w.send(carol, room, "large")
	w.settle()
	bob.wantTexts("large")
}

// TestAloneChangesTheSuite: a user alone with their devices needs nobody.
func TestAloneChangesTheSuite(t *testing.T) {
	w := suitesWorld(t, suite1, suite2)
	alice := w.device("alice", "ALICE1")
	room := w.createRoom(alice, CreateOptions{})
	phone := w.device("alice", "PHONE")
	w.settle()
	w.changeSuite(alice, room, suite2, SuiteOptions{Weaker: true})
	w.wantSuite(room, suite2, alice, phone)
	w.send(phone, room, "note")
	w.settle()
	alice.wantTexts("note")
}

// TestChangeSuiteAcrossAPartition cuts a federation at different moments of a
// change. The sides end in one group, and every message comes once.
func TestChangeSuiteAcrossAPartition(t *testing.T) {
	for name, cutAt := range map[string]func(w *world, room id.RoomID, alice *testDevice){
		"before the ReInit": func(w *world, room id.RoomID, alice *testDevice) {
			w.must(func() error { _, err := alice.CheckSuite(w.ctx, room, suite2); return err })
			w.cut("s3.example")
			w.beginChange(alice, room, suite2)
		},
		"while it is sent": func(w *world, room id.RoomID, alice *testDevice) {
			w.beginChange(alice, room, suite2)
			w.until(400, func() bool { return alice.closedAt(room) })
			w.cut("s3.example")
		},
		"before the founding": func(w *world, room id.RoomID, alice *testDevice) {
			w.killBeforeFounding(alice, room, suite2)
			w.cut("s3.example")
			alice.restart()
		},
		"the admin alone, before the ReInit": func(w *world, room id.RoomID, alice *testDevice) {
			w.must(func() error { _, err := alice.CheckSuite(w.ctx, room, suite2); return err })
			w.cut(testServer)
			w.beginChange(alice, room, suite2)
		},
		"the admin alone, before the founding": func(w *world, room id.RoomID, alice *testDevice) {
			w.killBeforeFounding(alice, room, suite2)
			w.cut(testServer)
			alice.restart()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := suitesWorld(t, suite1, suite2)
			room, u := w.apart(3, nil)
			alice, bob, carol := u[0], u[1], u[2]
			cutAt(w, room, alice)
			var want []string
			for i := range 3 {
				for _, d := range u {
					text := fmt.Sprintf("%s %d", d.ident.device, i)
					w.queue(d, room, text)
					want = append(want, text)
				}
				for range 15 { // takeovers take half a minute
					w.order()
					for _, d := range w.all {
						d.turn()
					}
					w.now.add(2 * time.Second)
				}
			}
			slices.Sort(want)
			w.mend()
			w.settle()
			for range 10 {
				w.now.add(15 * time.Second)
				w.settle()
			}
			w.wantSuite(room, suite2, alice, bob, carol)
			w.send(bob, room, "healed")
			w.settle()
			want = append(want, "healed")
			for _, d := range u {
				if diff := cmp.Diff(want, d.received()); diff != "" {
					t.Errorf("%s (-want +got):\n%s", d.ident.device, diff)
				}
			}
			w.checkNonces()
		})
	}
}

// TestChangeSuiteWhileTheOtherSideCommits: a room moves to another suite while a server is
// cut off, whose side makes commits of its own meanwhile, and speaks in them. The sides end
// in the new group, and every message comes once.
func TestChangeSuiteWhileTheOtherSideCommits(t *testing.T) {
	w := suitesWorld(t, suite1, suite2)
	room, u := w.apart(3, nil)
	alice, bob, carol := u[0], u[1], u[2]
	w.must(func() error { _, err := alice.CheckSuite(w.ctx, room, suite2); return err })
	fork := carol.headRef(room)
	w.cut("s3.example")
	w.send(carol, room, "far, old epoch")
	w.beginChange(alice, room, suite2)
	w.must(func() error { return carol.ChangePolicySelf(room) })
	w.send(carol, room, "far, new epoch")
	if !w.until(400, func() bool { return alice.epochSuite(room) == suite2 && bob.epochSuite(room) == suite2 }) {
		t.Fatal("the room does not move")
	}
	w.send(alice, room, "near")
	w.send(bob, room, "near, too")
	w.must(func() error { return carol.ChangePolicySelf(room) })
	w.send(carol, room, "far, another epoch")
	if carol.headRef(room) == fork || carol.epochSuite(room) != suite1 || alice.epochSuite(room) != suite2 {
		t.Fatal("the sides did not part: the test proves nothing")
	}
	w.mend()
	w.settle()
	for range 10 {
		w.now.add(15 * time.Second)
		w.settle()
	}
	w.wantSuite(room, suite2, u...)
	w.send(carol, room, "healed")
	w.settle()
	want := []string{"far, another epoch", "far, new epoch", "far, old epoch", "healed", "near", "near, too"}
	for _, d := range u {
		if diff := cmp.Diff(want, d.received()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", d.ident.device, diff)
		}
	}
	w.checkNonces()
}

// closedAt tells whether a device's head is a ReInit, final or not.
func (d *testDevice) closedAt(room id.RoomID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, closed := d.rooms[room].closing()
	return closed
}

// TestChangeSuiteSurvivesCrashes kills the admin's client at each write point of
// a change.
func TestChangeSuiteSurvivesCrashes(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 5
	}
	for at := 1; ; at += step {
		w := suitesWorld(t, suite1, suite2)
		room, alice, bob, carol := w.three("shared")
		k := &crasher{at: at}
		alice.crashAt = k.point
		alice.Client.crashAt = k.point
		ctx, cancel := context.WithCancel(w.ctx)
		cancel()
		_, _ = alice.ChangeSuite(ctx, room, suite2, SuiteOptions{Weaker: true})
		for range 200 {
			w.order()
			for _, d := range []*testDevice{bob, carol} {
				d.turn()
			}
			w.tolerantTurn(alice)
			w.now.add(time.Second)
			if k.n >= at || alice.epochSuite(room) == suite2 && bob.epochSuite(room) == suite2 && carol.epochSuite(room) == suite2 {
				break
			}
		}
		crashed := k.n >= at
		alice.crashAt = nil
		alice.restart()
		w.settle()
		if alice.epochSuite(room) == suite1 { // before anything was kept
			w.changeSuite(alice, room, suite2, SuiteOptions{Weaker: true})
		}
		for range 5 {
			w.now.add(10 * time.Second)
			w.settle()
		}
		w.wantSuite(room, suite2, alice, bob, carol)
		w.send(alice, room, "alive")
		w.settle()
		for _, d := range []*testDevice{alice, bob, carol} {
			d.wantTexts("alive")
		}
		w.oneWelcomeForEach()
		if t.Failed() {
			t.Fatalf("crashed at point %d of %v", at, k.names)
		}
		if !crashed {
			t.Logf("%d write points", k.n)
			break
		}
	}
}

func (d *testDevice) epochSuite(room id.RoomID) mls.CipherSuite {
	info, err := d.Room(d.w.ctx, room)
	if err != nil {
		return 0
	}
	return info.Suite
}

// TestRoomOfAnExperimentalSuite: a room that is founded in one is as any other to those who offer it: a newcomer is shown, from
// the beginning on, that its list of modules follows.
func TestRoomOfAnExperimentalSuite(t *testing.T) {
	w := suitesWorld(t, suite1, hybrid)
	w.module.experimental = true
	alice, bob, carol := w.device("alice", "ALICE1"), w.device("bob", "BOB1"), w.device("carol", "CAROL1")
	room := w.createRoom(alice, CreateOptions{Policy: func(p *rooms.Policy) { p.SuiteOrder = []mls.CipherSuite{hybrid} }})
	for _, d := range []*testDevice{bob, carol} {
		w.must(func() error { return alice.Invite(w.ctx, room, d.UserID()) })
		w.join(d, room)
		w.settle()
	}
	w.wantSuite(room, hybrid, alice, bob, carol)
	for _, d := range []*testDevice{bob, carol} {
		if info, err := d.Room(w.ctx, room); err != nil || info.Unconfirmed {
			t.Errorf("%s: unconfirmed %v, %v", d.ident.device, info.Unconfirmed, err)
		}
		if n := d.Refusals(); len(n) > 0 {
			t.Errorf("%s refused %v", d.ident.device, n)
		}
	}
	w.send(carol, room, "hello")
	w.settle()
	for _, d := range []*testDevice{alice, bob, carol} {
		d.wantTexts("hello")
	}
}
