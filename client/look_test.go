package client

import (
	"slices"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// leaveOut hides from a server's /sync what these devices send from now on until
// the returned function is called.
func (w *world) leaveOut(s *fakeServer, from ...*testDevice) (stop func()) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	first, last := w.s.clock, int64(1<<62)
	s.leftOut = func(evt *Event) bool {
		return evt.Type == rooms.TypeEncrypted && evt.Timestamp > first && evt.Timestamp <= last &&
			slices.ContainsFunc(from, func(d *testDevice) bool { return d.UserID() == evt.Sender })
	}
	return func() {
		w.s.mu.Lock()
		defer w.s.mu.Unlock()
		last = w.s.clock
	}
}

// of returns what a device got of another, in order.
func (d *testDevice) of(author *testDevice) []string {
	d.Deliver(d.w.ctx)
	var out []string
	for _, u := range d.got {
		if m, ok := u.(*Message); ok && m.Sender == author.UserID() {
			out = append(out, m.Body())
		}
	}
	return out
}

// TestMessagesThatSyncLeavesOutAfterACut: a homeserver that was cut off shows only
// the newest of what others sent meanwhile. Nothing of what is shown says that
// anything is missing before it: the messages left out are each author's only
// ones of their epoch.
func TestMessagesThatSyncLeavesOutAfterACut(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(3, func(p *rooms.Policy) { p.Admins = append(p.Admins, "@carol:s3.example") })
	alice, bob, carol := u[0], u[1], u[2]
	w.cut("s3.example")
	fork := alice.headRef(room)
	w.must(func() error { return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 20 }) })
	w.settle()
	stop := w.leaveOut(carol.hs.s, alice, bob)
	w.send(alice, room, "alice one")
	w.send(bob, room, "bob one")
	w.settle()
	stop()
	w.must(func() error { return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 24 }) })
	w.settle()
	w.send(bob, room, "bob two")
	w.must(func() error {
		return carol.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Admit = rooms.AdmitAdmins })
	})
	w.settle()
	if alice.headRef(room) == carol.headRef(room) || carol.headRef(room) == fork {
		t.Fatal("the sides did not part: the test proves nothing")
	}
	w.mend()
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	if got, want := carol.of(alice), []string{"alice one"}; !slices.Equal(got, want) {
		t.Errorf("carol got %q of alice, want %q", got, want)
	}
	if got, want := carol.of(bob), []string{"bob one", "bob two"}; !slices.Equal(got, want) {
		t.Errorf("carol got %q of bob, want %q", got, want)
	}
}

// TestMissingGenerationIsLookedFor: a message of an author that others of the
// same epoch show to be missing is looked for.
func TestMissingGenerationIsLookedFor(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.send(alice, room, "one")
	w.settle()
	stop := w.leaveOut(bob.hs.s, alice)
	w.send(alice, room, "two")
	w.settle()
	stop()
	bob.wantTexts("one")
	w.send(alice, room, "three")
	w.settle()
	w.now.add(time.Minute)
	w.settle()
	bob.wantTexts("one", "three", "two") // it was shown before anything said so
}

// TestWhatComesWhileTheHistoryIsRead: what /sync brings meanwhile is newer than the
// history, and shown after it.
func TestWhatComesWhileTheHistoryIsRead(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.send(alice, room, "one")
	w.settle()
	stop := w.leaveOut(bob.hs.s, alice)
	w.send(alice, room, "two")
	w.settle()
	stop()
	read := false
	bob.hs.before = func(kind string) {
		if kind != "messages" || read {
			return
		}
		read = true
		w.queue(alice, room, "three")
		alice.turn()
		if err := bob.SyncOnce(w.ctx, 0); err != nil {
			t.Error(err)
		}
	}
	bob.mu.Lock()
	r := bob.rooms[room]
	bob.Client.look(r, r.head().ref, lookPages, true)
	bob.mu.Unlock()
	w.settle()
	if !read {
		t.Fatal("the history was not read")
	}
	bob.wantTexts("one", "two", "three")
}

// TestLookingBackGoesOn where the program ends, or the room is read from the store
// again, before the history was read.
func TestLookingBackGoesOn(t *testing.T) {
	for _, c := range []struct {
		name  string
		after func(w *world, bob *testDevice, r *room) error
	}{
		{"started anew", func(w *world, bob *testDevice, r *room) error {
			err := bob.commitBatch(w.ctx, r, &batch{})
			bob.mu.Unlock()
			bob.restart()
			bob.mu.Lock()
			return err
		}},
		{"read again", func(w *world, bob *testDevice, r *room) error { return bob.reload(w.ctx, r) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, _ := w.three("shared")
			w.send(alice, room, "one")
			w.settle()
			stop := w.leaveOut(bob.hs.s, alice)
			w.send(alice, room, "two")
			w.settle()
			stop()
			bob.wantTexts("one")
			bob.mu.Lock()
			r := bob.rooms[room]
			bob.Client.look(r, r.head().ref, lookPages, true)
			err := c.after(w, bob, r)
			bob.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			w.settle()
			bob.wantTexts("one", "two")
			w.now.add(lookAgain)
			w.settle()
			bob.mu.Lock()
			defer bob.mu.Unlock()
			if r := bob.rooms[room]; r.rec.Look != nil || len(r.needs) > 0 {
				t.Errorf("bob still looks for it: %v, %v", r.rec.Look, r.needs)
			}
		})
	}
}

// TestLookingBackEndsAtTheInvite: what was said before a user was invited is not theirs to read, and nobody tells them
// that they cannot.
func TestLookingBackEndsAtTheInvite(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.three("shared")
	w.send(alice, room, "before dora")
	w.settle()
	dora := w.device("dora", "DORA1")
	w.must(func() error { return alice.Invite(w.ctx, room, dora.UserID()) })
	w.join(dora, room)
	w.settle()
	w.send(alice, room, "one")
	w.settle()
	unreadable := func() (n int) {
		dora.Deliver(w.ctx)
		for _, u := range dora.got {
			if _, ok := u.(*Undecryptable); ok {
				n++
			}
		}
		return n
	}
	before := unreadable()
	stop := w.leaveOut(dora.hs.s, alice)
	w.send(alice, room, "two")
	w.settle()
	stop()
	w.send(alice, room, "three")
	w.settle()
	w.now.add(time.Minute)
	w.settle()
	dora.wantTexts("one", "three", "two")
	if n := unreadable(); n != before {
		t.Errorf("%d events were reported as unreadable, %d before the history was read again", n, before)
	}
}
