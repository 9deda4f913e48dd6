package client

import (
	"bytes"
	"errors"
	"testing"
)

// TestRefresh: who asks for fresh keys has others than before once the call
// returns, in an epoch that everybody holds, also where a commit without a path was
// under way.
func TestRefresh(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	dave := w.device("dave", "DAVE1")
	key := func() []byte {
		bob.mu.Lock()
		defer bob.mu.Unlock()
		return bytes.Clone(bob.rooms[room].head().group.OwnLeaf().EncryptionKey)
	}
	before, epoch := key(), bob.epoch(room)
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.must(func() error { return bob.Refresh(w.ctx, room) })
	w.settle()
	if bytes.Equal(before, key()) {
		t.Error("the leaf's key is the one from before")
	}
	if n := bob.epoch(room); n <= epoch {
		t.Errorf("epoch %d, before it was %d", n, epoch)
	}
	w.sameEpoch(room, alice, bob, carol)
	w.send(alice, room, "with fresh keys")
	w.settle()
	bob.wantTexts("with fresh keys")
	if err := dave.Refresh(w.ctx, room); !errors.Is(err, ErrNoGroup) {
		t.Errorf("who is not in the group: %v", err)
	}
}
