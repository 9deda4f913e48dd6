package client

import (
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestMediaOfALiar: files that never come take no more than their share of what is
// asked for, and are asked for less and less often. None is refused for good: one
// that can be had is got, however many were named before it.
func TestMediaOfALiar(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	bob.mu.Lock()
	head := bob.rooms[room].machine.Head()
	bob.mu.Unlock()
	const many = 2*maxFilesBy + 5
	name := func(i int) id.ContentURIString {
		return id.ContentURIString(fmt.Sprintf("mxc://%s/never%d", testServer, i))
	}
	for i := range many {
		raw, err := rooms.Encode(&rooms.CommitContent{Epoch: bob.epoch(room) + 1, Parent: rooms.Hash(head), File: rooms.NewFile(name(i), []byte{1})})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := alice.hs.Send(w.ctx, room, rooms.TypeCommit, fmt.Sprint("never", i), raw); err != nil {
			t.Fatal(err)
		}
	}
	asked := 0
	bob.hs.before = func(kind string) {
		if kind == "download" {
			asked++
		}
	}
	for range 60 {
		bob.turn()
		w.now.add(10 * time.Second)
	}
	if waiting := bob.waiting(room); len(waiting) != many {
		t.Errorf("%d events wait, want all %d: %q", len(waiting), many, waiting)
	}
	asked = 0
	for range 60 {
		bob.turn()
		w.now.add(10 * time.Second)
	}
	if asked == 0 || asked > 4*maxFilesBy {
		t.Errorf("files were asked for %d times in ten minutes, want one to four times for each of %d", asked, maxFilesBy)
	}
	w.s.mu.Lock()
	w.s.media[string(name(many-1))] = []byte{1}
	w.s.mu.Unlock()
	for range 120 {
		bob.turn()
		w.now.add(30 * time.Second)
	}
	if waiting := bob.waiting(room); len(waiting) != many-1 {
		t.Errorf("%d events wait, want %d: the last one's file is there", len(waiting), many-1)
	}
}

// TestFileThatALiarNames: what somebody else says of the file of a commit, by
// another hash or in an event that does not matter, leaves that commit alone.
func TestFileThatALiarNames(t *testing.T) {
	for name, lie := range map[string]func(content *rooms.CommitContent, file rooms.File, old uint64){
		"with another hash": func(content *rooms.CommitContent, file rooms.File, _ uint64) {
			file.SHA256[0] ^= 1
			content.File = &file
		},
		"in a commit of long ago": func(content *rooms.CommitContent, file rooms.File, old uint64) {
			content.Epoch, content.File = old, &file
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			before := alice.epoch(room)
			bob.dead = true
			head := alice.headRef(room)
			w.device("dave", "DAVE1").dead = true
			if _, err := carol.hs.Send(w.ctx, room, "m.other", "lie", []byte(`{}`)); err != nil {
				t.Fatal(err)
			}
			w.must(func() error { return alice.Invite(w.ctx, room, "@dave:"+testServer) })
			w.settle()
			w.send(carol, room, "in between")
			w.settle()
			mxc, data := w.toMedia(before + 1)
			content := &rooms.CommitContent{Epoch: before + 1, Parent: rooms.Hash(head)}
			bob.mu.Lock()
			lie(content, *rooms.NewFile(id.ContentURIString(mxc), data), bob.rooms[room].rec.JoinEpoch)
			bob.mu.Unlock()
			raw, err := rooms.Encode(content)
			if err != nil {
				t.Fatal(err)
			}
			lied := false
			w.s.mu.Lock()
			for _, evt := range w.s.log {
				if evt.Type == "m.other" {
					evt.Type, evt.Content, lied = rooms.TypeCommit, raw, true
				}
			}
			w.s.mu.Unlock()
			if !lied {
				t.Fatal("the lie is not there")
			}
			honest := w.hide(func(evt *Event) bool {
				content, err := rooms.DecodeCommit(evt.Content)
				return evt.Type == rooms.TypeCommit && evt.Sender == alice.UserID() && err == nil && content.Epoch == before+1
			})
			bob.dead = false
			for range 5 { // the lie is heard first, and its file cannot be had
				bob.turn()
				w.now.add(3 * time.Second)
			}
			w.show(honest)
			bob.turn()
			w.s.mu.Lock()
			w.s.media[mxc] = data
			w.s.mu.Unlock()
			w.now.add(2 * time.Minute)
			w.settle()
			bob.wantTexts("in between")
			w.sameEpoch(room, alice, bob, carol)
			if now := alice.epoch(room); now != before+1 {
				t.Errorf("epoch %d, want %d: bob joined again", now, before+1)
			}
		})
	}
}

// TestFilesThatJoiningAgainWaitsFor: a device waits with joining again for files of
// one sender in vain only once in an hour.
func TestFilesThatJoiningAgainWaitsFor(t *testing.T) {
	r := &room{tried: map[string]time.Duration{}, needs: map[string]*need{"media:a": {file: &rooms.File{}, lasts: true, by: "@liar:x"}}}
	if !r.awaitsFile(0) {
		t.Error("it does not wait for the first file")
	}
	r.waitedInVain(0)
	if r.awaitsFile(lagVain - 1) {
		t.Error("it waits for the same sender's file again")
	}
	if !r.awaitsFile(lagVain) {
		t.Error("after an hour it does not wait")
	}
	r.needs["media:b"] = &need{file: &rooms.File{}, lasts: true, by: "@honest:x"}
	if !r.awaitsFile(1) {
		t.Error("it does not wait for another sender's file")
	}
}
