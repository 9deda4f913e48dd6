package client

import (
	"errors"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/federation/picture"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// picture draws a room as a device sees it. The lines of the text are joined, so
// that a test need not know where they break.
func (d *testDevice) picture(room id.RoomID) (p *picture.Picture, flat string) {
	d.w.t.Helper()
	p, err := d.EpochPicture(d.w.ctx, room)
	if err != nil {
		d.w.t.Fatal(err)
	}
	return p, strings.Join(strings.Fields(strings.ReplaceAll(p.Text(), "|", " ")), " ")
}

// TestPictureOfASplitRoom draws a room from both sides of a split, and after it.
func TestPictureOfASplitRoom(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(3, nil)
	alice, bob, carol := u[0], u[1], u[2]
	erin := w.deviceOn(w.modules()[2].s, "erin", "ERIN1")
	w.send(bob, room, "before")
	w.settle()
	fork := alice.headRef(room)
	if _, got := alice.picture(room); !strings.Contains(got, "as @alice:") || !strings.Contains(got, "ALICE1 (this device)") || !strings.Contains(got, "BOB1") {
		t.Errorf("before the split:\n%s", got)
	}

	w.cut("s3.example")
	w.must(func() error { return carol.Invite(w.ctx, room, erin.UserID()) })
	w.join(erin, room)
	w.must(func() error {
		return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Admins = append(p.Admins, bob.UserID()) })
	})
	if !w.until(400, func() bool { return erin.epoch(room) > 0 && alice.headRef(room) != fork && carol.headRef(room) != fork }) {
		t.Fatal("a side stands still")
	}
	if _, got := carol.picture(room); !strings.Contains(got, "This side goes on without a majority") || !strings.Contains(got, "accepted by s3.example without a majority") {
		t.Errorf("on the small side:\n%s", got)
	}
	lost := carol.headRef(room)

	w.mend()
	w.settle()
	w.sameEpoch(room, alice, bob, carol, erin)
	for _, d := range []*testDevice{alice, bob, carol} {
		p, got := d.picture(room)
		for _, want := range []string{"1 fork is held here", "displaced", "comes first: it is final", "made final by the votes of"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s does not see %q:\n%s", d.ident.device, want, p.Text())
			}
		}
		var heads, beside int
		for _, row := range p.Rows {
			if row.Head {
				heads++
			}
			if row.Lane == 1 && row.Mark == picture.MarkDisplaced && row.Ref == lost.String() {
				beside++
			}
		}
		if heads != 1 || beside != 1 || !strings.Contains(got, "the head: ") || !strings.Contains(got, "(this device)") {
			t.Errorf("%s sees %d heads, the lost one %d times:\n%s", d.ident.device, heads, beside, p.Text())
		}
	}
	// A message shows how far its sender has come.
	w.send(bob, room, "after")
	w.settle()
	if _, got := alice.picture(room); !strings.Contains(at(got, "the head: "), "BOB1") {
		t.Errorf("bob sent in the head's epoch:\n%s", got)
	}
	alice.restart()
	if _, got := alice.picture(room); !strings.Contains(at(got, "the head: "), "BOB1") {
		t.Errorf("after a restart:\n%s", got)
	}
}

// at returns a text from a word on, up to the next sentence of the list.
func at(s, word string) string {
	_, after, _ := strings.Cut(s, word)
	before, _, _ := strings.Cut(after, "epoch ")
	return before
}

func TestPictureNamesLiars(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(2, nil)
	alice := u[0]
	alice.mu.Lock()
	r := alice.rooms[room]
	liar, ok := r.moduleOf("s2.example")
	alice.noteLiar(r, federation.Evidence{Kind: federation.EvidenceHidden, Signer: liar})
	alice.mu.Unlock()
	if _, got := alice.picture(room); !ok || !strings.Contains(got, "Caught lying: s2.example signed a promise that hides a vote.") {
		t.Errorf("the liar (%v) is not named:\n%s", ok, got)
	}
}

func TestPictureOfNothing(t *testing.T) {
	w := newWorld(t)
	alice := w.device("alice", "ALICE1")
	if _, err := alice.EpochPicture(w.ctx, "!none:example.org"); !errors.Is(err, ErrNoRoom) {
		t.Errorf("got %v", err)
	}
}
