package client

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// headRef returns a device's head in a room.
func (d *testDevice) headRef(room id.RoomID) federation.Ref {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.rooms[room]; r != nil && r.machine != nil {
		return r.machine.Head()
	}
	return federation.Ref{}
}

// until lets everybody act until a condition holds, and reports whether it did.
func (w *world) until(rounds int, cond func() bool) bool {
	w.t.Helper()
	for range rounds {
		if cond() {
			return true
		}
		w.order()
		for _, d := range w.all {
			d.turn()
		}
		w.now.add(2e9)
	}
	return cond()
}

// received returns the bodies of a device's messages, sorted: after a split no
// two servers agree on an order.
func (d *testDevice) received() []string {
	out := d.texts()
	slices.Sort(out)
	return out
}

// wantOneLossAHeal: who moves to another branch is told so once, and not for each
// epoch there.
func (d *testDevice) wantOneLossAHeal() {
	d.w.t.Helper()
	var last *EpochChanged
	for _, u := range d.got {
		e, ok := u.(*EpochChanged)
		if !ok {
			continue
		}
		if last != nil && e.Lost && e.Parent == last.Ref {
			d.w.t.Errorf("%s is told of a loss at epoch %d, which follows the one before", d.ident.device, e.Epoch)
		}
		last = e
	}
}

func faultPartition(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(3, nil)
	alice, bob, carol := u[0], u[1], u[2]
	dave, erin := w.deviceOn(w.modules()[2].s, "dave", "DAVE1"), w.deviceOn(w.modules()[2].s, "erin", "ERIN1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave)
	fork := alice.headRef(room)
	w.send(alice, room, "together")
	w.settle()

	w.cut("s3.example")
	w.send(alice, room, "majority, old epoch")
	w.send(carol, room, "minority, old epoch")
	w.must(func() error { return alice.Ban(w.ctx, room, dave.UserID(), "") })
	w.must(func() error { return carol.Invite(w.ctx, room, erin.UserID()) })
	w.join(erin, room)
	if !w.until(400, func() bool { return erin.epoch(room) > 0 && alice.headRef(room) != fork }) {
		t.Fatalf("a side stands still: erin's epoch %d", erin.epoch(room))
	}
	w.send(alice, room, "majority")
	w.send(bob, room, "majority too")
	w.send(carol, room, "minority")
	w.send(erin, room, "minority, new member")
	w.send(dave, room, "minority, banned elsewhere")
	w.settle()
	if alice.headRef(room) == carol.headRef(room) || carol.headRef(room) == fork {
		t.Fatal("the sides did not part: the test proves nothing")
	}

	w.mend()
	w.settle()
	w.sameEpoch(room, alice, bob, carol, erin)
	for _, d := range []*testDevice{alice, bob, carol, erin} {
		d.wantOneLossAHeal()
	}
	all := []string{"majority", "majority too", "majority, old epoch", "minority", "minority, banned elsewhere", "minority, new member", "minority, old epoch", "together"}
	for _, d := range []*testDevice{alice, bob, carol} {
		if got := d.received(); !slices.Equal(got, all) {
			t.Errorf("%s got\n%q, want\n%q", d.ident.device, got, all)
		}
	}
	for _, text := range erin.received() {
		if strings.Contains(text, "together") || strings.Contains(text, "old epoch") {
			t.Errorf("erin reads %q from before she came", text)
		}
	}
	for _, text := range dave.received() {
		if text == "majority" || text == "majority too" {
			t.Errorf("dave reads %q, sent after his ban", text)
		}
	}
	alice.mu.Lock()
	leaves := rooms.LeavesOf(alice.rooms[room].head().group, dave.UserID())
	alice.mu.Unlock()
	if len(leaves) > 0 {
		t.Errorf("dave, banned on one side, has %d leaves", len(leaves))
	}
	w.checkNonces()
}

func TestPolicyChangesOfBothSidesSurviveTheHeal(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(3, func(p *rooms.Policy) { p.Admins = append(p.Admins, "@carol:s3.example") })
	alice, bob, carol := u[0], u[1], u[2]
	w.cut("s3.example")
	fork := alice.headRef(room)
	w.must(func() error {
		return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Admins = append(p.Admins, bob.UserID()) })
	})
	w.must(func() error {
		return carol.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Admit = rooms.AdmitAdmins })
	})
	if alice.headRef(room) == carol.headRef(room) || carol.headRef(room) == fork {
		t.Fatal("the sides did not part: the test proves nothing")
	}
	w.mend()
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	alice.mu.Lock()
	policy, err := rooms.PolicyOf(alice.rooms[room].head().group)
	alice.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if !policy.IsAdmin(bob.UserID()) || policy.Admit != rooms.AdmitAdmins {
		t.Errorf("admins %v, admit %d: a side's change is lost", policy.Admins, policy.Admit)
	}
}

func TestDemotedAdminsChangeIsNotMadeAgain(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(3, func(p *rooms.Policy) { p.Admins = append(p.Admins, "@carol:s3.example") })
	alice, bob, carol := u[0], u[1], u[2]
	w.cut("s3.example")
	w.must(func() error {
		return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Admins = []id.UserID{alice.UserID()} })
	})
	w.must(func() error {
		return carol.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Admit = rooms.AdmitAdmins })
	})
	w.mend()
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	alice.mu.Lock()
	policy, err := rooms.PolicyOf(alice.rooms[room].head().group)
	alice.mu.Unlock()
	if err != nil || policy.Admit != rooms.AdmitMembers || policy.IsAdmin(carol.UserID()) {
		t.Errorf("policy %+v (%v), want carol's change gone with her office", policy, err)
	}
	if !carol.warned(rooms.RulePolicyNotEntitled) {
		t.Error("carol was not told that her change is gone")
	}
}

// wantReceived checks a device's messages whatever their order.
func (d *testDevice) wantReceived(want ...string) {
	d.w.t.Helper()
	slices.Sort(want)
	if got := d.received(); !slices.Equal(got, want) {
		d.w.t.Errorf("%s got %q, want %q", d.ident.device, got, want)
	}
}

// In a cut of seconds, too, a message comes too late if the others commit often enough meanwhile: before it was sent, or
// after.
func TestMessagesThatComeTooLateAfterAShortCut(t *testing.T) {
	for _, tc := range []struct {
		name           string
		commits, again int
		whole          bool          // nothing is cut
		before         bool          // the message is sent before the commits are
		long           bool          // the first of them two minutes before the last
		unseen         bool          // the last of them so shortly before the end that nothing shows that it was held up, but the one below
		quiet          bool          // nobody commits for two minutes at the cut's beginning
		fast           time.Duration // the clock of the author's homeserver
		others         time.Duration // the clock of the others' homeservers
		slow           time.Duration // the author's clock
		set            time.Duration // by so much it is set forward when the message is sent
	}{
		{name: "within what is kept", commits: 3},
		{name: "sent after", commits: 4, again: 1},
		{name: "sent before", commits: 4, again: 1, before: true},
		{name: "a longer one", commits: 4, again: 1, before: true, long: true},
		{name: "its end unseen", commits: 4, again: 1, before: true, unseen: true},
		{name: "a longer one, quiet at first", commits: 4, again: 1, before: true, long: true, quiet: true},
		{name: "nothing cut", commits: 4, whole: true, before: true},
		{name: "a slow clock", commits: 4, again: 1, before: true, slow: 40 * time.Minute},
		{name: "a slow clock, sent after", commits: 4, again: 1, slow: 40 * time.Minute},
		{name: "a slow clock, within what is kept", commits: 3, before: true, slow: 40 * time.Minute},
		{name: "a slow clock, nothing cut", commits: 4, whole: true, before: true, slow: 40 * time.Minute},
		{name: "the clock is set right meanwhile", commits: 4, again: 1, before: true, slow: 40 * time.Minute, set: 40 * time.Minute},
		{name: "the clock is set right meanwhile, nothing cut", commits: 4, whole: true, before: true, slow: 40 * time.Minute, set: 40 * time.Minute},
		{name: "the homeserver is fast", commits: 4, whole: true, before: true, fast: 70 * time.Second},
		{name: "the homeserver is fast, and cut off", commits: 4, again: 1, before: true, fast: 70 * time.Second},
		{name: "the homeserver is a day fast", commits: 4, whole: true, before: true, fast: 24 * time.Hour},
		{name: "the others' homeservers are fast", commits: 4, whole: true, before: true, others: 70 * time.Second},
		{name: "the others' homeservers are fast, and cut off", commits: 4, again: 1, before: true, others: 70 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			room, u := w.apart(3, nil)
			alice, bob, carol := u[0], u[1], u[2]
			w.oneClock()
			w.step = time.Second
			carol.skew = -tc.slow
			for i, m := range w.modules() {
				m.s.fast = tc.others
				if i == 2 {
					m.s.fast = tc.fast
				}
			}
			w.send(alice, room, "together")
			w.send(bob, room, "us, too")
			w.settle()
			if !tc.whole {
				w.cut("s3.example")
			}
			if tc.before {
				w.send(carol, room, "unheard")
				carol.skew += tc.set
			}
			if tc.quiet {
				w.now.add(2 * time.Minute)
			}
			pass := func() {
				w.now.add(heldUpAfter)
				carol.turn()
			}
			for i := range tc.commits {
				if tc.unseen && i == tc.commits-1 {
					pass()
					w.step = 100 * time.Millisecond
				}
				if tc.long && i == 1 {
					w.now.add(2 * time.Minute)
				}
				w.must(func() error { return bob.ChangePolicySelf(room) })
				w.settle()
			}
			if !tc.unseen {
				pass()
			}
			if !tc.before {
				w.send(carol, room, "unheard")
			}
			w.mend()
			w.settle()
			w.sameEpoch(room, alice, bob, carol)
			for _, d := range []*testDevice{alice, bob, carol} {
				d.wantReceived("together", "us, too", "unheard")
			}
			again := 0
			for _, row := range carol.rows {
				again += row.data.Late
			}
			if again != tc.again {
				t.Errorf("sent again %d times, want %d", again, tc.again)
			}
			w.checkNonces()
		})
	}
}

// A message that was sent while the others could not be reached, in an epoch that both sides share, comes too late for
// them once they have forgotten the keys of that epoch. Its author sees that by how late their commits come.
func TestMessagesThatCameTooLateAreSentAgain(t *testing.T) {
	for _, tc := range []struct {
		name           string
		commits, again int
	}{{"within what is kept", 3, 0}, {"beyond what is kept", 5, 1}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			room, u := w.apart(3, nil)
			alice, bob, carol := u[0], u[1], u[2]
			w.send(alice, room, "together")
			w.settle()
			shared := carol.headRef(room)
			w.cut("s3.example")
			w.send(carol, room, "unheard")
			w.settle()
			for range tc.commits {
				w.must(func() error { return bob.ChangePolicySelf(room) })
				w.settle()
			}
			if carol.headRef(room) != shared {
				t.Fatal("carol's side went on by itself: the test proves nothing")
			}
			carol.skew = 10 * time.Minute // which the cut lasts
			carol.turn()
			w.mend()
			w.settle()
			w.sameEpoch(room, alice, bob, carol)
			for _, d := range []*testDevice{alice, bob, carol} {
				if got := d.received(); !slices.Equal(got, []string{"together", "unheard"}) {
					t.Errorf("%s got %q", d.ident.device, got)
				}
			}
			again := 0
			for _, row := range carol.rows {
				again += row.data.Late
			}
			if again != tc.again {
				t.Errorf("sent again %d times, want %d", again, tc.again)
			}
			w.checkNonces()
		})
	}
}

// What a newcomer says in the epoch that it came in with, in a cut, is sent again as well.
func TestMessagesOfANewcomerThatCameTooLateAreSentAgain(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(3, nil)
	alice, bob := u[0], u[1]
	var dora *testDevice
	for i, found := 0, false; !found; i++ { // somebody may commit right after the join
		if i == 5 {
			t.Fatal("no newcomer's head is the epoch that it came in with")
		}
		dora = w.deviceOn(w.modules()[2].s, fmt.Sprintf("dora%d", i), "DORA1")
		w.must(func() error { return alice.Invite(w.ctx, room, dora.UserID()) })
		w.join(dora, room)
		w.settle()
		dora.mu.Lock()
		m := dora.rooms[room].machine
		found = m.Head() == m.Base()
		dora.mu.Unlock()
	}
	for _, d := range []*testDevice{alice, bob, dora} {
		d.got = nil
	}
	w.cut("s3.example")
	w.send(dora, room, "unheard")
	w.settle()
	for range 5 {
		w.must(func() error { return bob.ChangePolicySelf(room) })
		w.settle()
	}
	dora.skew = 10 * time.Minute // which the cut lasts
	dora.turn()
	w.mend()
	w.settle()
	w.sameEpoch(room, alice, bob, dora)
	for _, d := range []*testDevice{alice, bob, dora} {
		d.wantReceived("unheard")
	}
	w.checkNonces()
}
