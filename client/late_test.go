package client

import (
	"testing"

	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestLateMessageOfWhoWasRemovedIsMarked(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	carol.sendAlone(room, "from a member") // nobody has fetched it yet
	bob.sendAlone(room, "from who is removed")
	w.s.held[rooms.TypeEncrypted] = true
	w.must(func() error { return alice.Kick(w.ctx, room, bob.UserID(), "") })
	w.settle(alice, carol)
	w.s.mu.Lock()
	w.s.held[rooms.TypeEncrypted] = false
	for _, evt := range w.s.log { // they come after the commit
		if evt.Type == rooms.TypeEncrypted {
			again := *evt
			w.s.append(&again)
		}
	}
	w.s.mu.Unlock()
	w.settle(alice, carol)
	alice.wantTexts("from a member", "from who is removed")
	for _, u := range alice.got {
		if msg, ok := u.(*Message); ok && (!msg.Late || msg.Removed != (msg.Sender == bob.UserID())) {
			t.Errorf("message of %s: late %v, of a removed device %v", msg.Sender, msg.Late, msg.Removed)
		}
	}
}
