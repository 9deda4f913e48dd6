package client

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/internal/faults"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestFault makes happen to a device what it has to survive.
func TestFault(t *testing.T) {
	faults.Run(t, "client", map[string]func(t *testing.T){
		"F01-killed-at-every-write-point":   faultKilledAtWritePoints,
		"F02-killed-while-decrypting":       faultKilledWhileDecrypting,
		"F06-damaged-log":                   faultDamagedLog,
		"F11-answer-lost":                   faultAnswerLost,
		"F14-partition-of-two":              faultPartition,
		"F15-majority-gone-for-good":        faultMajorityGone,
		"F16-state-reset":                   faultStateReset,
		"F17-clocks":                        faultClocks,
		"F18-commit-that-some-cannot-apply": faultCannotApply,
		"F19-server-withholds":              faultServerWithholds,
		"F20-many-committers":               faultManyCommitters,
		"F21-old-copy":                      faultOldCopy,
		"F21-two-copies":                    faultTwoCopies,
		"F21-restored-backup":               faultRestoredBackup,
	})
}

// faultKilledWhileDecrypting kills carol's client at each write point that a
// received message passes. Message or ciphertext is there afterwards, and a key
// that was used opens nothing any more.
func faultKilledWhileDecrypting(t *testing.T) {
	story := func(t *testing.T, at int) []string {
		x := newRefusing(t)
		x.bob.sendAlone(x.room, "one")
		x.bob.sendAlone(x.room, "two")
		k := &crasher{at: at}
		x.carol.crashAt = k.point
		x.carol.Client.crashAt = k.point
		for range 4 {
			x.tolerantTurn(x.carol)
		}
		x.carol.crashAt, x.carol.Client.crashAt = nil, nil
		x.settle()
		x.carol.wantTexts("one", "two")
		x.checkNonces()
		again := x.last(rooms.TypeEncrypted)
		x.show(x.byBob(rooms.TypeEncrypted, again.Content))
		x.settle()
		x.carol.wantTexts("one", "two")
		if x.carol.Refusals()["framing/generation-consumed"] != 1 {
			t.Errorf("the used key: refused %v", x.carol.Refusals())
		}
		x.wantWorks()
		return k.names
	}
	points := story(t, 0)
	if len(points) < 4 {
		t.Fatalf("only %d write points: %v", len(points), points)
	}
	for i, name := range points {
		t.Run(fmt.Sprintf("%02d-%s", i+1, name), func(t *testing.T) { story(t, i+1) })
	}
}

// faultAnswerLost: the homeserver took a message, a commit and a Welcome, and
// its answer never came.
func faultAnswerLost(t *testing.T) {
	x := newRefusing(t)
	dave := x.device("dave", "DAVE1")
	x.settle()
	lost := map[string]int{}
	x.alice.hs.after = func(kind string) error {
		if lost[kind]++; lost[kind] == 1 {
			return errUnreachableNow
		}
		return nil
	}
	x.send(x.alice, x.room, "once")
	x.must(func() error { return x.alice.Invite(x.ctx, x.room, dave.UserID()) })
	x.join(dave, x.room)
	x.settle()
	for kind, least := range map[string]int{"send/" + rooms.TypeEncrypted: 1 /* its echo settles it */, "send/" + rooms.TypeCommit: 1, "to-device": 2} {
		if lost[kind] < least {
			t.Errorf("%s was tried %d times, want %d: again after the lost answer", kind, lost[kind], least)
		}
	}
	x.sameEpoch(x.room, x.alice, x.bob, x.carol, dave)
	x.bob.wantTexts("once")
	n := 0
	for _, evt := range x.s.log {
		if evt.Type == rooms.TypeEncrypted && evt.Sender == x.alice.UserID() {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d ciphertexts of one message are in the room", n)
	}
	x.wantWorks()
}

// faultStateReset: state resolution forgets bob's membership, so that he is out though nobody put him out: he is taken
// out of the group, everybody is told what happened, he as well where his homeserver says it, and an invite brings him back.
func faultStateReset(t *testing.T) {
	for _, row := range []struct {
		name   string
		count  int    // of bob's memberships, the newest, that are forgotten
		now    string // what counts then
		bob    bool   // his homeserver tells him
		gap    bool   // no /sync shows it, and the whole state is read for another reason
		notNow bool   // what took its place is no older membership, but a leave
	}{
		{"an older one counts again", 2, "leave", true, false, false},
		{"none counts", 5, "none", false, true, false},
		{"he leaves", 0, "leave", true, false, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			x := newRefusing(t)
			x.must(func() error { return x.bob.Leave(x.ctx, x.room) })
			x.settle()
			x.must(func() error { return x.carol.Invite(x.ctx, x.room, x.bob.UserID()) })
			x.join(x.bob, x.room)
			x.settle()
			x.sameEpoch(x.room, x.alice, x.bob, x.carol)
			x.s.forget(x.room, x.bob.UserID(), row.count)
			if row.notNow {
				x.must(func() error { return x.bob.Leave(x.ctx, x.room) })
			}
			for _, d := range x.all {
				d.got = nil
			}
			for _, text := range []string{"one", "two", "three"} { // what shows it
				x.must(func() error { _, err := x.carol.SendText(x.ctx, x.room, text); return err })
			}
			x.settle()
			for _, d := range []*testDevice{x.alice, x.carol} {
				if row.gap {
					d.mu.Lock()
					d.rooms[x.room].state.lose()
					d.rooms[x.room].want("state", &need{state: true})
					d.mu.Unlock()
				}
			}
			x.settle()
			x.sameEpoch(x.room, x.alice, x.carol)
			if info, _ := x.alice.Room(x.ctx, x.room); info.Devices != 2 {
				t.Errorf("%d devices in the group, want 2: the room says that bob is out", info.Devices)
			}
			told := func(d *testDevice) (reasons []string) {
				for _, u := range d.got {
					if w, ok := u.(*Warning); ok && w.Kind == SetBackWarning && w.Sender == x.bob.UserID() && w.Room == x.room {
						reasons = append(reasons, w.Reason)
					}
				}
				return reasons
			}
			want := []string{row.now}
			if row.notNow {
				want = nil
			}
			for _, d := range []*testDevice{x.alice, x.carol} {
				if !slices.ContainsFunc(d.got, func(u Update) bool {
					e, ok := u.(*EpochChanged)
					return ok && slices.Contains(e.Removed, x.bob.UserID())
				}) {
					t.Errorf("%s is not told that bob is out", d.ident.device)
				}
				if got := told(d); !slices.Equal(got, want) {
					t.Errorf("%s is told that the homeserver forgot bob's membership, and what counts instead: %q, want %q", d.ident.device, got, want)
				}
			}
			if got := told(x.bob); row.bob && !slices.Equal(got, want) {
				t.Errorf("bob is told that his membership was forgotten, and what counts instead: %q, want %q", got, want)
			}
			x.send(x.alice, x.room, "without bob")
			x.settle()
			if slices.Contains(x.bob.texts(), "without bob") {
				t.Error("bob read what was sent without him")
			}
			x.must(func() error { return x.carol.Invite(x.ctx, x.room, x.bob.UserID()) })
			x.join(x.bob, x.room)
			x.settle()
			x.sameEpoch(x.room, x.alice, x.bob, x.carol)
			x.send(x.alice, x.room, "with bob")
			x.settle()
			if texts := x.bob.texts(); len(texts) == 0 || texts[len(texts)-1] != "with bob" {
				t.Errorf("bob is back and reads %q", texts)
			}
			x.wantWorks()
		})
	}
}

// faultClocks: clocks that are wrong. Coordination uses none; the lifetime of a
// key package does.
func faultClocks(t *testing.T) {
	for name, skew := range map[string]time.Duration{
		"an hour ahead": 59 * time.Minute, "an hour behind": -59 * time.Minute,
	} {
		t.Run(name, func(t *testing.T) {
			x := newRefusing(t)
			dave := x.device("dave", "DAVE1")
			x.settle()
			x.alice.skew = skew // adds him
			x.alice.restart()
			dave.skew = -skew
			dave.restart()
			x.must(func() error { return x.alice.Invite(x.ctx, x.room, dave.UserID()) })
			x.join(dave, x.room)
			x.settle()
			x.sameEpoch(x.room, x.alice, x.bob, x.carol, dave)
			x.wantWorks()
		})
	}
	t.Run("jumps while it runs", func(t *testing.T) {
		x := newRefusing(t)
		for _, skew := range []time.Duration{48 * time.Hour, -48 * time.Hour, 0, 24 * 365 * 80 * time.Hour} { // the last: 2106
			x.carol.skew = skew
			x.send(x.carol, x.room, "now")
			x.must(func() error { return x.carol.ChangePolicySelf(x.room) })
			x.settle()
			x.sameEpoch(x.room, x.alice, x.bob, x.carol)
		}
		x.bob.wantTexts("now", "now", "now", "now")
	})
	t.Run("a leap second, which comes twice", func(t *testing.T) {
		x := newRefusing(t)
		var passed atomic.Int64
		last := time.Date(2016, 12, 31, 23, 59, 58, 0, time.UTC)
		for _, d := range []*testDevice{x.alice, x.bob, x.carol} {
			d.wall = func() time.Time {
				at := time.Duration(passed.Load())
				if d == x.carol && at >= 2*time.Second { // the others' machines spread it over a day
					at -= time.Second
				}
				return last.Add(at)
			}
		}
		var want []string
		for i := range 10 {
			passed.Store(int64(time.Duration(i) * 500 * time.Millisecond))
			want = append(want, fmt.Sprint("now ", i))
			x.send(x.carol, x.room, want[i])
			x.must(func() error { return x.carol.ChangePolicySelf(x.room) })
			x.settle()
			x.sameEpoch(x.room, x.alice, x.bob, x.carol)
		}
		x.bob.wantTexts(want...)
		x.wantWorks()
	})
	t.Run("hours back while it runs", func(t *testing.T) {
		x := newRefusing(t)
		dave := x.device("dave", "DAVE1")
		x.settle()
		for _, d := range []*testDevice{x.alice, x.carol} {
			d.skew = -7 * time.Hour // not started again: its monotonic clock goes on
		}
		x.send(x.carol, x.room, "seven hours ago")
		x.must(func() error { return x.alice.Invite(x.ctx, x.room, dave.UserID()) })
		x.join(dave, x.room)
		x.settle()
		x.sameEpoch(x.room, x.alice, x.bob, x.carol, dave)
		x.bob.wantTexts("seven hours ago")
		x.wantWorks()
	})
	t.Run("key packages of another century", func(t *testing.T) {
		x := newRefusing(t)
		dave := x.device("dave", "DAVE1")
		x.settle()
		x.alice.skew = 24 * 365 * 80 * time.Hour
		x.alice.restart()
		before := x.picture(x.alice)
		key := string(dave.UserID())
		x.must(func() error { return x.alice.Invite(x.ctx, x.room, dave.UserID()) })
		x.settle(x.alice)
		if after := x.picture(x.alice); after != before {
			t.Errorf("%s is in by a key package that has expired 80 years ago", key)
		}
		x.alice.skew = 0
		x.alice.restart()
		x.join(dave, x.room)
		x.settle()
		x.sameEpoch(x.room, x.alice, x.bob, x.carol, dave)
		x.wantWorks()
	})
	t.Run("what others made under a wrong clock", func(t *testing.T) {
		x := newRefusing(t)
		dave := x.device("dave", "DAVE1")
		x.settle()
		const late = -2 * 365 * 24 * time.Hour
		past := &mls.Config{Rand: newSeeded("long ago"), Now: func() time.Time { return time.Now().Add(late) }}
		dave.ident.own().packages = nil
		dave.ident.stock(t, x.cs, 1, past)
		x.alice.skew = late // to her it has not expired
		x.must(func() error { return x.alice.Invite(x.ctx, x.room, dave.UserID()) })
		x.join(dave, x.room)
		x.settle()
		x.carol.mu.Lock()
		group := x.carol.rooms[x.room].head().group
		leaf := mls.LeafNode{}
		if i, ok := group.FindLeaf(dave.ident.own().mlsKeys[x.cs].Public()); ok {
			l, _ := group.Leaf(i)
			leaf = *l
		}
		x.carol.mu.Unlock()
		if leaf.Source != mls.LeafNodeSourceKeyPackage || int64(leaf.Lifetime.NotAfter) >= time.Now().Unix() {
			t.Fatalf("dave's leaf has source %v and lives until %d: the test proves nothing", leaf.Source, leaf.Lifetime.NotAfter)
		}
		// Those whose clocks are right follow: who adds has to look at the lifetime, or a clock would part the group.
		x.sameEpoch(x.room, x.alice, x.bob, x.carol, dave)
		x.wantWorks()
	})
}

// faultServerWithholds: carol's server keeps one of bob's messages from her, and
// later sends two in the wrong order. She is told that one is missing, and never
// shown something wrong.
func faultServerWithholds(t *testing.T) {
	x := newRefusing(t)
	x.send(x.bob, x.room, "one")
	x.settle()
	x.bob.sendAlone(x.room, "kept from carol")
	hidden := x.last(rooms.TypeEncrypted)
	x.s.mu.Lock()
	hidden.RoomID = "!hidden:" + testServer
	x.s.mu.Unlock()
	x.bob.sendAlone(x.room, "three")
	x.settle(x.carol)
	x.carol.wantTexts("one", "three")
	i := slices.IndexFunc(x.carol.got, func(u Update) bool { m, ok := u.(*Message); return ok && m.Body() == "three" && m.Missing == 1 })
	if i < 0 {
		t.Error("carol is not told that a message before this one is missing")
	}
	// It comes after all, and is shown.
	x.s.mu.Lock()
	hidden.RoomID = x.room
	x.s.append(&Event{RoomID: x.room, Type: hidden.Type, Sender: hidden.Sender, Content: hidden.Content})
	x.s.mu.Unlock()
	x.settle(x.carol)
	x.carol.wantTexts("one", "three", "kept from carol")
	x.wantWorks()
}

// faultManyCommitters: all of eight members change something at once.
// Everybody's change is in after at most four more commits than there are
// members.
func faultManyCommitters(t *testing.T) {
	const n = 8
	x := newRefusing(t)
	members := []*testDevice{x.alice, x.bob, x.carol}
	for i := len(members); i < n; i++ {
		d := x.device(fmt.Sprintf("m%d", i), fmt.Sprintf("M%d", i))
		x.must(func() error { return x.alice.Invite(x.ctx, x.room, d.UserID()) })
		x.join(d, x.room)
		members = append(members, d)
	}
	x.settle()
	x.sameEpoch(x.room, members...)
	before := x.alice.epoch(x.room)
	var guests []*testDevice
	for i := range n {
		guests = append(guests, x.device(fmt.Sprintf("g%d", i), fmt.Sprintf("G%d", i)))
	}
	x.settle(members...)
	for i, d := range members {
		if err := d.Invite(x.ctx, x.room, guests[i].UserID()); err != nil {
			t.Fatal(err)
		}
	}
	commits := x.count(rooms.TypeCommit)
	for _, d := range members {
		d.Step(x.ctx)
		d.Flush(x.ctx)
	}
	if raced := x.count(rooms.TypeCommit) - commits; raced < n {
		t.Errorf("%d commits at once, want %d", raced, n)
	}
	in := func() bool {
		info, err := x.alice.Room(x.ctx, x.room)
		return err == nil && info.Devices == 2*n
	}
	for range 60 {
		if in() {
			break
		}
		x.order()
		for _, d := range members {
			d.turn()
		}
		x.now.add(2 * time.Second)
	}
	took := x.alice.epoch(x.room) - before
	t.Logf("figures: the changes of %d members at once were in after %d accepted commits", n, took)
	if !in() || took > n+4 {
		t.Errorf("all are in: %v, after %d accepted commits, want at most %d", in(), took, n+4)
	}
}

// TestAResetOfManyMembershipsIsToldOnce: a person is not told of each member where state resolution forgot many.
func TestAResetOfManyMembershipsIsToldOnce(t *testing.T) {
	for _, many := range []int{maxSetBacks, maxSetBacks + 1, 2 * maxWarned} {
		x := newRefusing(t)
		user := func(n int) id.UserID { return id.UserID(fmt.Sprintf("@u%03d:one", n)) }
		for n := range many {
			key := string(user(n))
			x.show(&Event{Type: rooms.TypeMember, StateKey: &key, Sender: x.alice.UserID(), Content: json.RawMessage(`{"membership":"ban"}`)})
		}
		x.settle()
		for n := range many {
			x.s.forget(x.room, user(n), 1)
		}
		x.alice.got = nil
		x.send(x.carol, x.room, "what shows it")
		x.settle()
		for range 3 { // also where the state is read again
			x.alice.mu.Lock()
			r := x.alice.rooms[x.room]
			r.state.lose()
			r.want("state", &need{state: true})
			x.alice.mu.Unlock()
			x.settle()
		}
		var told []*Warning
		for _, u := range x.alice.got {
			if w, ok := u.(*Warning); ok && w.Kind == SetBackWarning {
				told = append(told, w)
			}
		}
		if many <= maxSetBacks {
			if len(told) != many || told[0].Sender != user(0) {
				t.Errorf("alice is told %d times that %d memberships were forgotten, want of each", len(told), many)
			}
			continue
		}
		if len(told) != 1 || told[0].Sender != "" || told[0].Detail != fmt.Sprintf("%d: @u000:one, @u001:one, @u002:one, @u003:one, @u004:one, …", many) || !strings.Contains(told[0].Text, told[0].Detail) {
			t.Errorf("alice is told %d times that %d memberships were forgotten, want once, of the first of them: %+v", len(told), many, told[:min(len(told), 1)])
		}
	}
}
