package client

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// toldOf returns the texts of a device's warnings by one rule.
func (d *testDevice) toldOf(rule string) (texts []string) {
	for _, u := range d.got {
		if warning, ok := u.(*Warning); ok && warning.Rule == rule {
			texts = append(texts, warning.Text)
		}
	}
	return texts
}

func (d *testDevice) standstill(room id.RoomID) string {
	d.w.t.Helper()
	info, err := d.Room(d.w.ctx, room)
	if err != nil {
		d.w.t.Fatal(err)
	}
	return info.Standstill
}

// TestAdminIsToldHowToGoOn: where most modules are silent for ten minutes although
// something waits, an admin is told the command that goes on without them, once, and
// nobody's program does it. Everybody sees how the room stands.
func TestAdminIsToldHowToGoOn(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	w.must(func() error { return alice.SetSequencers(w.ctx, room, testServer, "two.example", "three.example") })
	w.settle()
	w.module.down, w.more[0].down = true, true
	w.now.add(time.Hour) // nothing waits
	w.settle()
	dave := w.device("dave:two.example", "DAVE1")
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.settle()
	w.now.add(8 * time.Minute)
	w.settle()
	if got := alice.toldOf(ruleStandstill); len(got) != 0 || alice.standstill(room) != "" {
		t.Fatalf("after eight minutes alice is told %q", got)
	}
	w.now.add(4 * time.Minute)
	w.settle()
	for range 4 { // the third module goes on provisionally meanwhile
		w.now.add(11 * time.Minute)
		w.settle()
	}
	command := fmt.Sprintf("mls-proxy era '%s' three.example", room)
	got := alice.toldOf(ruleStandstill)
	if len(got) != 1 || !strings.HasSuffix(got[0], command) || !strings.Contains(got[0], testServer+", two.example") {
		t.Errorf("alice is told %q, want %q once", got, command)
	}
	for _, d := range []*testDevice{bob, carol} {
		if got := d.toldOf(ruleStandstill); len(got) != 0 && !d.mayOpen(room) {
			t.Errorf("%s, who can do nothing, is told %q", d.UserID(), got)
		}
		if text := d.standstill(room); !strings.Contains(text, testServer+", two.example") {
			t.Errorf("%s sees %q", d.UserID(), text)
		}
	}
	for _, d := range []*testDevice{alice, bob, carol} {
		if info := d.sequencers(room); info.Era != 0 {
			t.Fatalf("%s is in era %d: nobody asked for one", d.UserID(), info.Era)
		}
	}
	w.must(func() error { return alice.OpenEra(w.ctx, room, "three.example") })
	w.settle()
	w.join(dave, room)
	w.settle()
	w.send(dave, room, "on without them")
	w.settle()
	carol.wantTexts("on without them")
	w.now.add(time.Hour)
	w.settle()
	for _, d := range []*testDevice{alice, bob, carol} {
		if text := d.standstill(room); text != "" {
			t.Errorf("after the era %s sees %q", d.UserID(), text)
		}
	}
	if again := alice.toldOf(ruleStandstill); len(again) != 1 {
		t.Errorf("after the era alice is told %q", again)
	}
}

// TestAdminWhoWasAwayIsToldHowToGoOn: what lost modules sent before an admin's device started is no sign of life.
func TestAdminWhoWasAwayIsToldHowToGoOn(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	w.must(func() error { return alice.SetSequencers(w.ctx, room, testServer, "two.example", "three.example") })
	w.settle()
	alice.dead = true
	w.must(func() error { return bob.Refresh(w.ctx, room) })
	w.settle(bob, carol)
	w.rest()
	w.module.down, w.more[0].down = true, true
	dave := w.device("dave:two.example", "DAVE1")
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.settle(bob, carol)
	alice.skew = 2 * time.Hour // that long she was away
	alice.restart()
	w.settle()
	for range 5 {
		w.now.add(11 * time.Minute)
		w.settle()
	}
	want := fmt.Sprintf("mls-proxy era '%s' ", room)
	if got := alice.toldOf(ruleStandstill); len(got) != 1 || !strings.Contains(got[0], want) || !strings.Contains(got[0], testServer+", two.example") {
		t.Errorf("alice is told %q, want %q", got, want)
	}
}

// TestNoCommandHoldsWhatOthersMadeUp: what is shown to be pasted into a shell holds nothing that a shell would run.
func TestNoCommandHoldsWhatOthersMadeUp(t *testing.T) {
	for _, s := range []string{"", "-x", "a b", "a;reboot", "$(reboot)", "a\nb", "a'b", "a`b`", "a\u202eb", "a|b", "a&b", "a>b", "a\\b", "é.example"} {
		if plainServer(s) {
			t.Errorf("the server %q goes into a command", s)
		}
		if plainRoom(id.RoomID("!"+s)) && s != "-x" {
			t.Errorf("the room %q goes into a command", "!"+s)
		}
	}
	for _, s := range []string{"two.example", "two.example:8448", "[::1]:80", "10.0.0.1", "a-b.example"} {
		if !plainServer(s) || !plainRoom(id.RoomID("!room:"+s)) {
			t.Errorf("%q does not go into a command", s)
		}
	}
	if !plainRoom("!Ab_c-9~x./=+") {
		t.Error("a room id without a server does not go into a command")
	}
	r := &room{}
	policy := &rooms.Policy{}
	if got := r.goOnWith([]string{"a;reboot", "two.example"}, policy, "own.example"); len(got) != 1 || got[0] != "two.example" {
		t.Errorf("proposed are %q", got)
	}
}

func (d *testDevice) mayOpen(room id.RoomID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rooms[room].mayOpenEra(d.UserID())
}

// TestStandstillThatEndsByItself: modules that were only away are none that a person
// has to replace; the room goes on with them, in its era.
func TestStandstillThatEndsByItself(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.module.down = true
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.settle()
	w.now.add(11 * time.Minute)
	w.settle()
	text := alice.standstill(room)
	if want := fmt.Sprintf("mls-proxy era '%s' SERVER", room); !strings.Contains(text, want) {
		t.Errorf("alice, whose room has no other module, sees %q, want %q", text, want)
	}
	w.module.down = false
	w.settle()
	w.join(dave, room)
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave)
	for _, d := range []*testDevice{alice, bob, carol} {
		if text := d.standstill(room); text != "" {
			t.Errorf("%s sees %q when the module is back", d.UserID(), text)
		}
		if info := d.sequencers(room); info.Era != 0 {
			t.Errorf("%s is in era %d", d.UserID(), info.Era)
		}
	}
}

// TestHeirIsToldHowToGoOn: a default room of two servers, of which the creator's is
// lost; the other side's heir is told the command that goes on alone.
func TestHeirIsToldHowToGoOn(t *testing.T) {
	w := newWorld(t)
	w.addModule("two.example")
	alice, bob, bea := w.device("alice", "ALICE1"), w.device("bob:two.example", "BOB1"), w.device("bea:two.example", "BEA1")
	var room id.RoomID
	w.must(func() (err error) {
		room, err = alice.CreateRoom(w.ctx, CreateOptions{})
		return err
	})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	w.rest()
	w.must(func() error { return alice.Invite(w.ctx, room, bea.UserID()) })
	w.join(bea, room)
	w.settle()
	w.rest()
	alice.dead, w.module.down = true, true
	dave := w.device("dave:two.example", "DAVE1")
	w.must(func() error { return bea.Invite(w.ctx, room, dave.UserID()) })
	w.settle(bob, bea, dave)
	w.now.add(11 * time.Minute)
	w.settle(bob, bea, dave)
	command := fmt.Sprintf("mls-proxy era '%s' two.example", room)
	if got := bob.toldOf(ruleStandstill); len(got) != 1 || !strings.HasSuffix(got[0], command) || !strings.Contains(got[0], "heir") {
		t.Fatalf("bob, an heir, is told %q, want %q once", got, command)
	}
	w.must(func() error { return bob.OpenEra(w.ctx, room, "two.example") })
	w.settle(bob, bea, dave)
	w.join(dave, room)
	w.settle(bob, bea, dave)
	w.send(dave, room, "without the creator")
	w.settle(bob, bea, dave)
	bea.wantTexts("without the creator")
	if text := bob.standstill(room); text != "" {
		t.Errorf("after the era bob sees %q", text)
	}
}
