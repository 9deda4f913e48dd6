package client

import (
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// lure is a Welcome that somebody makes by hand, for a commit that no other device made or follows.
type lure struct {
	w        *world
	by, whom *testDevice
	ref      federation.Ref
	next     *mls.Group // the epoch it opens, as who made it holds it
	commit   *rooms.CommitContent
	welcome  *rooms.WelcomeContent
}

// lure makes a commit on the group that by has in one room, and a Welcome to it for another.
func (w *world) lure(by, whom *testDevice, of, into id.RoomID, also ...*testDevice) *lure {
	w.t.Helper()
	by.mu.Lock()
	defer by.mu.Unlock()
	e := by.rooms[of].head()
	config, _ := by.rooms[of].machine.ConfigAt(e.ref)
	pack := whom.ident.own().packages[0].KeyPackage()
	options := mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(pack)}}
	for _, d := range also {
		options.Proposals = append(options.Proposals, mls.Add(d.ident.own().packages[0].KeyPackage()))
	}
	var err error
	if options.AuthenticatedData, err = (&rooms.CommitAAD{Parent: e.ref}).Encode(); err != nil {
		w.t.Fatal(err)
	}
	staged, err := e.group.Commit(options)
	if err != nil {
		w.t.Fatal(err)
	}
	welcome, err := staged.WelcomeFor(pack.Ref())
	if err != nil {
		w.t.Fatal(err)
	}
	info, err := staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
	if err != nil {
		w.t.Fatal(err)
	}
	msg, err := mls.ParseMessage(staged.Message())
	if err != nil {
		w.t.Fatal(err)
	}
	l := &lure{w: w, by: by, whom: whom, next: staged.Merge()}
	if l.ref, err = rooms.CommitRef(msg); err != nil {
		w.t.Fatal(err)
	}
	l.commit = &rooms.CommitContent{Epoch: staged.Epoch(), Parent: rooms.Hash(e.ref), Message: staged.Message(), GroupInfo: info}
	l.welcome = &rooms.WelcomeContent{Room: into, Ref: rooms.Hash(l.ref), Cfg: rooms.Hash(config), Welcome: welcome,
		Snapshot: rooms.Snapshot{Tree: l.next.RatchetTree(), TreeHash: l.next.TreeHash(), AtCommit: rooms.Hash(l.ref)}}
	return l
}

// accepted has a key sign that the commit is accepted, as a module of the list would.
func (l *lure) accepted(key *fakeModule) {
	l.w.t.Helper()
	a := &federation.Accept{Config: federation.Ref(l.welcome.Cfg), Ref: l.ref, Parent: federation.Ref(l.commit.Parent), Epoch: l.commit.Epoch, Chain: federation.Chain{Counter: 1}}
	if err := a.Sign(federation.Scope{Room: string(l.welcome.Room)}, key.key); err != nil {
		l.w.t.Fatal(err)
	}
	l.welcome.Accept = rooms.AcceptOf(a)
}

// post sends commit and Welcome.
func (l *lure) post() {
	l.w.t.Helper()
	raw, err := rooms.Encode(l.commit)
	if err != nil {
		l.w.t.Fatal(err)
	}
	if l.welcome.CommitEvent, err = l.by.hs.Send(l.w.ctx, l.welcome.Room, rooms.TypeCommit, "lure", raw); err != nil {
		l.w.t.Fatal(err)
	}
	if raw, err = rooms.Encode(l.welcome); err != nil {
		l.w.t.Fatal(err)
	}
	q := string(l.whom.UserID()) + "/" + string(l.whom.DeviceID())
	l.w.s.mu.Lock()
	defer l.w.s.mu.Unlock()
	l.w.s.toDevice[q] = append(l.w.s.toDevice[q], &Event{Type: rooms.TypeWelcome, Sender: l.by.UserID(), Content: raw})
}

// reads tells what the epoch of the Welcome opens of all that its device sent.
func (l *lure) reads() (n int) {
	l.w.t.Helper()
	l.w.s.mu.Lock()
	defer l.w.s.mu.Unlock()
	for _, evt := range l.w.s.log {
		if evt.Type != rooms.TypeEncrypted || evt.Sender != l.whom.UserID() {
			continue
		}
		content, err := rooms.DecodeEncrypted(evt.Content)
		if err != nil {
			l.w.t.Fatal(err)
		}
		msg, err := mls.ParseMessage(content.Ciphertext)
		if err != nil {
			l.w.t.Fatal(err)
		}
		if _, err := l.next.Process(msg); err == nil {
			n++
		}
	}
	return n
}

// TestWelcomeIntoAnotherGroup: who is in the room, and needs neither power nor admission for that, founds a group of their own for it,
// puts the room's founder and its module into it, and adds newcomers before others do; or admits to it whom they invite.
func TestWelcomeIntoAnotherGroup(t *testing.T) {
	for _, test := range []struct {
		name    string
		join    rooms.JoinPolicy
		invites bool
	}{
		{"admitted", rooms.JoinAdmitted, false},
		{"open", rooms.JoinOpen, false},
		{"open, and invited into it", rooms.JoinOpen, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			alice, mallory, bob := w.device("alice", "ALICE1"), w.device("mallory", "MALLORY1"), w.device("bob", "BOB1")
			room := w.createRoom(alice, CreateOptions{Public: true, Policy: func(p *rooms.Policy) { p.Join = test.join }})
			w.settle()
			if _, err := mallory.hs.Join(w.ctx, string(room), nil); err != nil {
				t.Fatal(err)
			}
			other := w.createRoom(mallory, CreateOptions{Policy: func(p *rooms.Policy) { p.Room, p.Creator = room, alice.UserID() }})
			w.settle()
			l := w.lure(mallory, bob, other, room, alice)
			l.accepted(w.module)
			if test.invites {
				mallory.mu.Lock()
				raw, err := rooms.Encode(&rooms.Admission{Room: room, Group: l.next.GroupID(), Ref: rooms.Hash(l.ref), User: bob.UserID(), Sig: make(rooms.Bytes, 64)})
				mallory.mu.Unlock()
				if err == nil {
					err = mallory.hs.Invite(w.ctx, room, bob.UserID(), "")
				}
				if err == nil {
					_, err = mallory.hs.Send(w.ctx, room, rooms.TypeAdmit, "admit", raw)
				}
				if err != nil {
					t.Fatal(err)
				}
				bob.turn()
			}
			l.post()
			w.join(bob, room)
			for range 5 {
				bob.turn()
			}
			if bob.headRef(room) == l.ref {
				t.Fatal("bob is in mallory's group")
			}
			if test.join == rooms.JoinAdmitted {
				return // nobody admits him
			}
			if bound := bob.rooms[room].boundTo(bob.UserID()); test.invites && bob.headRef(room).IsZero() && !slices.Equal(bound, l.next.GroupID()) {
				t.Fatal("bob is not bound to mallory's group: the test proves nothing")
			}
			if !w.until(300, func() bool { return bob.headRef(room) == alice.headRef(room) }) {
				t.Fatal("bob does not come into the room's group")
			}
			w.send(bob, room, "for the room alone")
			if n := l.reads(); n > 0 {
				t.Errorf("mallory reads %d messages", n)
			}
		})
	}
}

// TestWelcomeBesideWhatIsFinal: who was removed makes a commit on an epoch from before, and adds a newcomer with it whom others invited and
// admitted.
func TestWelcomeBesideWhatIsFinal(t *testing.T) {
	for _, test := range []struct {
		name   string
		accept func(l *lure)
		enters bool
		rule   rooms.Rule
	}{
		{"nobody accepted it", func(*lure) {}, false, ""},
		{"its accept is forged", func(l *lure) { l.accepted(newFakeModule(l.w, "evil.example")) }, false, rooms.RuleReceiptForged},
		// Where a list has several modules, commits are accepted that lose.
		{"it was accepted, and lost", func(l *lure) { l.accepted(l.w.module) }, true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			alice, mallory, bob := w.device("alice", "ALICE1"), w.device("mallory", "MALLORY1"), w.device("bob", "BOB1")
			room := w.createRoom(alice, CreateOptions{Public: true, Policy: func(p *rooms.Policy) { p.Join = rooms.JoinAdmitted }})
			w.settle()
			w.must(func() error { return alice.Invite(w.ctx, room, mallory.UserID()) })
			w.join(mallory, room)
			w.settle()
			l := w.lure(mallory, bob, room, room)
			test.accept(l)
			w.must(func() error { return alice.Kick(w.ctx, room, mallory.UserID(), "") })
			w.settle()
			w.join(mallory, room) // the room is public, its group is not
			w.settle()
			w.must(func() error { return alice.ChangePolicySelf(room) })
			w.settle()
			l.post()
			w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
			w.s.mu.Lock()
			q := string(bob.UserID()) + "/" + string(bob.DeviceID())
			w.s.toDevice[q] = slices.DeleteFunc(w.s.toDevice[q], func(evt *Event) bool { return evt.Sender == alice.UserID() }) // mallory was faster
			w.s.mu.Unlock()
			if _, err := bob.hs.Join(w.ctx, string(room), nil); err != nil {
				t.Fatal(err)
			}
			for range 5 {
				bob.turn()
			}
			if entered := bob.headRef(room) == l.ref; entered != test.enters {
				t.Errorf("bob is in the epoch of the Welcome: %t", entered)
			}
			if n := bob.Refusals()[string(rooms.RuleReceiptForged)]; (n > 0) != (test.rule != "") {
				t.Errorf("%d Welcomes were refused for a forged accept", n)
			}
			w.send(bob, room, "for the room alone")
			if !w.until(300, func() bool { return bob.headRef(room) == alice.headRef(room) }) {
				t.Fatal("bob does not come to the room's head")
			}
			w.settle()
			if n := l.reads(); n > 0 {
				t.Errorf("mallory reads %d messages", n)
			}
			alice.wantTexts("for the room alone")
		})
	}
}
