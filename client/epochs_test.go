package client

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestEpochsOfAnOldStoreAreReadAndStoredInParts: what version 2 of the schema
// held of a room goes on, at the same place of every ratchet.
func TestEpochsOfAnOldStoreAreReadAndStoredInParts(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.send(bob, room, "one")
	w.settle()
	bob.mu.Lock()
	for _, e := range bob.rooms[room].epochs {
		err := bob.st.Do(w.ctx, func(ctx context.Context) error {
			return errors.Join(
				bob.st.DeleteEpoch(ctx, room, e.ref[:]), bob.st.PruneTrees(ctx, room),
				bob.st.PutEpoch(ctx, &store.Epoch{Room: room, Ref: e.ref[:], Parent: e.parent[:], Number: e.number, State: e.group.EpochState(), Whole: true}),
				bob.st.PutOldRatchet(ctx, room, e.ref[:], e.group.RatchetState()),
			)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	held := len(bob.rooms[room].epochs)
	bob.mu.Unlock()
	bob.restart()
	if n := len(bob.held(room)); n != held {
		t.Errorf("%d epochs after the upgrade, want %d", n, held)
	}
	w.send(bob, room, "two")
	w.send(alice, room, "three")
	w.must(func() error { return bob.ChangePolicySelf(room) })
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	carol.wantTexts("one", "two", "three")
	bob.mu.Lock()
	for ref := range bob.rooms[room].epochs {
		row, err := bob.st.Epoch(w.ctx, room, ref[:])
		if err != nil || row.Whole {
			t.Errorf("epoch %s is stored in one piece (%v)", ref.Short(), err)
		}
		if _, err := bob.st.OldRatchet(w.ctx, room, ref[:]); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the old ratchets of %s stay: %v", ref.Short(), err)
		}
	}
	bob.mu.Unlock()
	bob.restart()
	w.send(bob, room, "four")
	w.settle()
	carol.wantTexts("one", "two", "three", "four")
	w.checkNonces()
}

// TestWhatIsStoredGrowsWithTheLogarithm: an epoch and a message of a room ten
// times as large take little more room in the store.
func TestWhatIsStoredGrowsWithTheLogarithm(t *testing.T) {
	measure := func(members int) (epoch, message int) {
		w := newWorld(t)
		alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
		room := w.createRoom(alice, CreateOptions{History: "shared"})
		users := []id.UserID{bob.UserID()}
		for i := range members {
			ident, _ := w.register(fmt.Sprint("user", i), "D1")
			users = append(users, ident.user)
		}
		for _, user := range users {
			if err := alice.Invite(w.ctx, room, user); err != nil {
				t.Fatal(err)
			}
		}
		w.settle(alice)
		w.join(bob, room)
		w.settle()
		for range 3 { // the paths of the two are warm
			w.must(func() error { return alice.ChangePolicySelf(room) })
			w.must(func() error { return bob.ChangePolicySelf(room) })
		}
		w.settle()
		w.must(func() error { return bob.ChangePolicySelf(room) })
		alice.turn()
		alice.mu.Lock()
		e := alice.rooms[room].head()
		alice.mu.Unlock()
		head, _ := alice.st.Epoch(w.ctx, room, e.ref[:])
		whole, deltas, _, _, err := alice.st.Tree(w.ctx, room, e.ref[:])
		if err != nil || len(deltas) == 0 {
			t.Fatalf("the tree is not a difference: %d bytes and %d (%v)", len(whole), len(deltas), err)
		}
		epoch = len(head.State) + len(deltas[len(deltas)-1])
		pages := func() (sum int) {
			alice.mu.Lock()
			defer alice.mu.Unlock()
			if _, err := e.group.Encrypt([]byte("probe"), rooms.MessageAAD{Head: e.ref}.Encode()); err != nil {
				t.Fatal(err)
			}
			for _, p := range e.group.RatchetChanges() {
				sum += len(p.Data)
			}
			e.group.RatchetStored()
			return sum
		}
		pages()
		return epoch, pages()
	}
	smallEpoch, smallMessage := measure(15)
	largeEpoch, largeMessage := measure(150)
	t.Logf("15 members: %d bytes for an epoch, %d for a message; 150: %d and %d", smallEpoch, smallMessage, largeEpoch, largeMessage)
	if largeEpoch > 3*smallEpoch || largeMessage > smallMessage+64 {
		t.Errorf("150 members take %d bytes for an epoch and %d for a message, 15 take %d and %d", largeEpoch, largeMessage, smallEpoch, smallMessage)
	}
}

// TestOwnCommitIsStoredWithoutTheTree: of a large group nearly all stays as it is.
func TestOwnCommitIsStoredWithoutTheTree(t *testing.T) {
	w := newWorld(t)
	alice := w.device("alice", "ALICE1")
	room := w.createRoom(alice, CreateOptions{History: "shared"})
	w.crowd(alice, room, 60)
	for range 2 { // the first fills the tree's nodes on alice's path
		if _, err := alice.wantRefresh(w.ctx, room); err != nil {
			t.Fatal(err)
		}
		alice.Step(w.ctx)
		alice.restart()
		alice.mu.Lock()
		r := alice.rooms[room]
		if r.pending == nil {
			t.Fatal("the commit does not wait any more")
		}
		staged, err := alice.stage(r, r.head(), federation.Ref(r.pending.Ref), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := staged.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		got, tree := len(r.pending.Staged), len(r.head().group.RatchetTree())
		alice.mu.Unlock()
		if got > len(whole)-tree*3/4 {
			t.Errorf("a commit is stored with %d bytes; with the tree, which has %d, it would be %d", got, tree, len(whole))
		}
		epoch := alice.epoch(room)
		w.settle()
		if alice.epoch(room) != epoch+1 {
			t.Errorf("after a restart the commit leads from epoch %d to %d", epoch, alice.epoch(room))
		}
	}
}
