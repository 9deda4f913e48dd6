package client

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// inOneAdd makes a room of n devices that run, of as many users, of which one switched the room
// to MLS and added all others by one commit; with key packages of last resort if they have no other.
func (w *world) inOneAdd(n int, lastResort bool) (room id.RoomID, members []*testDevice) {
	w.t.Helper()
	room = id.RoomID("!plain:" + testServer)
	for i := range n {
		d := w.device(fmt.Sprintf("m%d", i), fmt.Sprintf("M%d", i))
		if lastResort && i > 0 {
			d.ident.own().packages, d.ident.bundles = nil, map[string][]byte{}
			d.ident.addLastResort(w, newSeeded(fmt.Sprint("last resort ", i)))
		}
		members = append(members, d)
	}
	w.oneClock()
	w.s.mu.Lock()
	by := members[0]
	by.hs.putState(room, rooms.TypeCreate, "", map[string]string{})
	by.hs.putState(room, rooms.TypeMember, string(by.UserID()), map[string]string{"membership": "join"})
	by.hs.putState(room, rooms.TypePowerLevels, "", map[string]any{"users": map[string]int{string(by.UserID()): 100}})
	for _, d := range members[1:] {
		by.hs.putState(room, rooms.TypeMember, string(d.UserID()), map[string]string{"membership": "join"})
	}
	w.s.mu.Unlock()
	if err := w.backgroundOf(func() error { return by.EnableMLS(w.ctx, room) }, by); err != nil {
		w.t.Fatal(err)
	}
	w.settle(by)
	return room, members
}

// addLastResort gives others a key package of last resort to claim.
func (i *fakeIdentity) addLastResort(w *world, random interface{ Read([]byte) (int, error) }) {
	w.t.Helper()
	leaf, err := i.LeafOptions(w.cs)
	if err != nil {
		w.t.Fatal(err)
	}
	leaf.LastResort = true
	bundle, err := mls.NewKeyPackage(&mls.Config{Rand: random}, w.cs, i.own().mlsKeys[w.cs], leaf)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := bundle.MarshalBinary()
	if err != nil {
		w.t.Fatal(err)
	}
	i.bundles[string(bundle.Ref())] = raw
	i.own().packages = append(i.own().packages, bundle)
}

// speak lets devices say something, all in one epoch.
func (w *world) speak(room id.RoomID, devices ...*testDevice) {
	w.t.Helper()
	canceled, cancel := context.WithCancel(w.ctx)
	cancel()
	for _, d := range devices {
		_, _ = d.SendText(canceled, room, "a word") // it stays in the outbox
	}
	w.settle()
	for _, d := range devices {
		d.mu.Lock()
		if d.rooms[room].rec.Sent == 0 {
			w.t.Errorf("%s has sent nothing", d.ident.device)
		}
		d.mu.Unlock()
	}
}

// leafKeys returns the public keys of all leaves, by user, as a device sees them.
func (d *testDevice) leafKeys(room id.RoomID) map[id.UserID]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	keys := map[id.UserID]string{}
	for _, leaf := range d.rooms[room].head().group.Members() {
		cred, err := rooms.CredentialOf(leaf)
		if err != nil {
			d.w.t.Fatal(err)
		}
		keys[cred.User] = string(leaf.EncryptionKey)
	}
	return keys
}

// watchCommits lets everybody act, for a time or until done: each half second, in which a third of the devices hears
// of what came and the module of all, and whoever has something to do without that. It returns when commits were sent, and when the first device saw the epoch move.
func (w *world) watchCommits(room id.RoomID, span time.Duration, done func() bool, devices []*testDevice) (sent, accepted []time.Duration) {
	w.t.Helper()
	w.s.mu.Lock()
	at := len(w.s.log)
	w.s.mu.Unlock()
	epoch, due := devices[0].epoch(room), make([]time.Duration, len(devices))
	round, heard := 0, 3
	for end := w.now.get() + span; w.now.get() < end && !done(); {
		w.order()
		for i, d := range devices {
			if due[i] <= w.now.get() || heard > 0 && (round+i)%3 == 0 {
				d.turn()
			}
		}
		round++
		now := w.now.get()
		w.s.mu.Lock()
		news := w.s.log[at:]
		at = len(w.s.log)
		w.s.mu.Unlock()
		for _, evt := range news {
			if evt.Type == rooms.TypeCommit {
				sent = append(sent, now)
			}
		}
		for ; epoch < devices[0].epoch(room); epoch++ {
			accepted = append(accepted, now)
		}
		next := now + 500*time.Millisecond
		first := now + 10*time.Second
		for i, d := range devices {
			due[i] = d.timer(room)
			first = min(first, due[i])
		}
		if len(news) > 0 {
			heard = 3 // rounds until everybody has
		}
		if heard--; heard <= 0 { // nothing to do before a timer runs out
			next = max(next, first)
		}
		w.now.set(next)
	}
	return sent, accepted
}

// timer returns when a device has something to do next though nothing came.
func (d *testDevice) timer(room id.RoomID) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if at := d.nextTimer(d.rooms[room], d.mono()); at > 0 {
		return at
	}
	return math.MaxInt64
}

// most returns the largest number of times that lie within a span.
func most(times []time.Duration, span time.Duration) (n int) {
	for i := range times {
		j := i
		for j < len(times) && times[j] < times[i]+span {
			j++
		}
		n = max(n, j-i)
	}
	return n
}

// TestScheduledRefreshesAreNoStorm: members that one commit added, and who all spoke, are all due for fresh keys at the same
// time where they were off when the first of them was. They come in one after the other, one in ten seconds; at no time do
// more than a few commit side by side.
func TestScheduledRefreshesAreNoStorm(t *testing.T) {
	for _, c := range []struct {
		name       string
		n          int
		lastResort bool
	}{{"seven days later", 24, false}, {"who joined with a key package of last resort", 16, true}} {
		t.Run(c.name, func(t *testing.T) {
			n := c.n
			if raceEnabled || testing.Short() {
				n = 12
			}
			w := newWorld(t)
			room, members := w.inOneAdd(n, c.lastResort)
			targets := members
			if c.lastResort {
				targets = members[1:]
			} else {
				w.settle()
				w.sameEpoch(room, members...)
				w.speak(room, members...)
				wall := members[0].wall
				for _, d := range members {
					d.wall = func() time.Time { return wall().Add(refreshAfter + 24*time.Hour) }
				}
			}
			old := members[0].leafKeys(room)
			renewed := func() bool {
				now := members[0].leafKeys(room)
				return !slices.ContainsFunc(targets, func(d *testDevice) bool { return now[d.UserID()] == old[d.UserID()] })
			}
			sent, accepted := w.watchCommits(room, time.Hour, renewed, members)
			t.Logf("%d accepted commits of %d that were sent; in 10 s at most %d were sent and %d accepted", len(accepted), len(sent), most(sent, 10*time.Second), most(accepted, 10*time.Second))
			if !renewed() {
				t.Error("not everybody has fresh keys")
			}
			if len(accepted) != len(targets) {
				t.Errorf("%d commits were accepted, want %d", len(accepted), len(targets))
			}
			if got := most(accepted, 10*time.Second); got > 1 {
				t.Errorf("%d commits were accepted within 10 s, want 1", got)
			}
			// Who has no delay at all, and who had none for long enough before others heard of it: 2 or so on average, however
			// many there are.
			if got, few := most(sent, 10*time.Second), 8; got > few {
				t.Errorf("%d commits were sent within 10 s, want %d at most", got, few)
			}
			w.settle()
			w.sameEpoch(room, members...)
		})
	}
}

// TestKeysAreRenewedOnSchedule: a device renews its keys between seven and eight days after it last did, if it has sent something
// since, or after 10,000 messages; and whoever only adds others meanwhile, by commits without a path, has not.
func TestKeysAreRenewedOnSchedule(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.oneClock()
	wall, ahead := alice.wall, time.Duration(0)
	for _, d := range w.all {
		d.wall = func() time.Time { return wall().Add(ahead) }
	}
	w.send(bob, room, "the first word")
	w.settle()
	keys := func() map[id.UserID]string { return alice.leafKeys(room) }
	old := keys()
	want := func(when string, renewed ...bool) {
		t.Helper()
		w.settle()
		now := keys()
		for i, d := range []*testDevice{alice, bob, carol} {
			if got := now[d.UserID()] != old[d.UserID()]; got != renewed[i] {
				t.Errorf("%s: %s has renewed its keys: %t, want %t", when, d.ident.device, got, renewed[i])
			}
		}
		old = now
	}
	for day := range 7 {
		ahead = time.Duration(day)*24*time.Hour - time.Hour
		if day > 0 {
			ident, user := w.register(fmt.Sprint("guest", day), "D1")
			ident.own().packages = nil
			ident.addPackages(w, w.cs, 1, newSeeded(string(user)))
			w.must(func() error { return bob.Invite(w.ctx, room, user) })
		}
		want(fmt.Sprintf("day %d", day), false, false, false)
	}
	ahead = 8 * 24 * time.Hour
	want("after eight days", false, true, false)
	w.send(carol, room, "after eight days of silence")
	want("with the first word", false, false, true)
	w.must(func() error { return alice.Refresh(w.ctx, room) })
	want("asked for", true, false, false)
	alice.mu.Lock()
	alice.rooms[room].rec.Sent = 9_999
	alice.mu.Unlock()
	w.send(alice, room, "the ten thousandth")
	want("after 10,000 messages", false, false, false)
	w.send(alice, room, "one more")
	want("after more", true, false, false)
}

// TestRefreshesOfALargeRoomAreSpread: 5,000 leaves that one commit added are due over a day, each at its own time.
func TestRefreshesOfALargeRoomAreSpread(t *testing.T) {
	since := time.Unix(1_700_000_000, 0)
	inTen := map[int64]int{}
	for leaf := range mls.LeafIndex(5000) {
		due := refreshTime([]byte("a group"), leaf, since).Sub(since)
		if due < refreshAfter || due >= refreshAfter+refreshSpread {
			t.Fatalf("leaf %d is due after %v", leaf, due)
		}
		inTen[int64(due/(10*time.Minute))]++
	}
	for _, n := range inTen {
		if n > 60 { // that many go in ten minutes, one in ten seconds
			t.Errorf("%d leaves are due within ten minutes, want 60 at most", n)
		}
	}
	if refreshTime([]byte("a group"), 1, since) == refreshTime([]byte("another"), 1, since) {
		t.Error("a device is due in all its rooms at once")
	}
}
