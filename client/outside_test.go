package client

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestNothingIsEncryptedForWhoIsOutOfTheRoom: the group still has bob, who left the room and was asked back before his device
// saw it. What he wants encrypted for another program is refused at once, and costs no message key.
func TestNothingIsEncryptedForWhoIsOutOfTheRoom(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	encrypt := func() error {
		return w.backgroundOf(func() error {
			_, err := bob.EncryptEvent(w.ctx, room, "m.room.message", map[string]string{"msgtype": "m.text", "body": "hello"})
			return err
		}, bob)
	}
	if err := encrypt(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(bob.hs.Leave(w.ctx, room), alice.hs.Invite(w.ctx, room, bob.UserID(), "")); err != nil {
		t.Fatal(err)
	}
	w.settle(bob)
	bob.mu.Lock()
	inGroup := bob.rooms[room].head() != nil
	bob.mu.Unlock()
	if !inGroup {
		t.Fatal("bob's device has no group any more: the test proves nothing")
	}
	kept := len(bob.keptMessages(room))
	err := encrypt()
	if !errors.Is(err, errNotIn) || !strings.Contains(err.Error(), string(room)) || errors.Is(err, context.Canceled) {
		t.Errorf("encrypting outside of the room: %v", err)
	}
	if n := len(bob.keptMessages(room)); kept != 1 || n != kept {
		t.Errorf("bob's device keeps %d messages, %d before: it encrypted one", n, kept)
	}
}

// TestAnExternalCommitThatIsSurpassed: who waits outside gives up a commit of theirs where a module shows a newer head, or
// the module on whose head it was made another one, be it of a shorter branch.
func TestAnExternalCommitThatIsSurpassed(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.settle()
	alice.mu.Lock()
	defer alice.mu.Unlock()
	r := alice.rooms[room]
	e := r.head()
	on := rooms.Hash(e.ref)
	head := func(ref rooms.Hash, epoch uint64, era uint64) *rooms.HeadContent {
		h := &rooms.HeadContent{Group: e.group.GroupID(), Accepted: &rooms.EventRef{Ref: ref, Epoch: epoch}}
		h.Era = era
		return h
	}
	mine, other := botOf("one.example"), rooms.Hash{1}
	same := head(on, e.number, 0)
	for _, tc := range []struct {
		name    string
		pending *pending
		by      *rooms.HeadContent // what the module shows whose head was chosen; nil: nothing
		shown   *rooms.HeadContent
		want    bool
	}{
		{"nothing waits", nil, same, head(other, e.number+1, 1), false},
		{"a commit of a member", &pending{Parent: on}, same, head(other, e.number+1, 1), false},
		{"the head that it is made on", &pending{Parent: on, External: true}, head(other, e.number, 0), same, false},
		{"another one, no newer", &pending{Parent: on, External: true}, same, head(other, e.number, 0), false},
		{"another one, and of the chosen module nothing", &pending{Parent: on, External: true}, nil, head(other, e.number, 0), false},
		{"a newer one", &pending{Parent: on, External: true}, same, head(other, e.number+1, 0), true},
		{"one of a newer era", &pending{Parent: on, External: true}, same, head(other, e.number-1, 1), true},
		{"one of the chosen module, of a shorter branch", &pending{Parent: on, External: true}, head(other, e.number-1, 0), head(other, e.number-1, 0), true},
	} {
		raw := json.RawMessage(tc.name)
		r.pending, r.joinBy, r.joinEra = tc.pending, mine, 0
		r.state.Entries[rooms.TypeHead] = map[string]stateEntry{}
		if tc.by != nil {
			r.state.Entries[rooms.TypeHead][string(mine)] = stateEntry{Sender: mine, Content: raw}
			r.state.heads = map[id.UserID]readHead{mine: {raw, tc.by}}
		}
		if got := r.surpassed(tc.shown); got != tc.want {
			t.Errorf("%s: surpassed %t, want %t", tc.name, got, tc.want)
		}
	}
}
