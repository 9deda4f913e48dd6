package client

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// copyStore copies a device's store file, as a person or a backup program would
// while the device is off.
func (d *testDevice) copyStore() string {
	d.w.t.Helper()
	if err := d.st.Close(); err != nil {
		d.w.t.Fatal(err)
	}
	raw, err := os.ReadFile(d.path)
	if err != nil {
		d.w.t.Fatal(err)
	}
	path := filepath.Join(d.w.t.TempDir(), "copy.db")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		d.w.t.Fatal(err)
	}
	d.open()
	return path
}

// put lets a device go on with another store file.
func (d *testDevice) put(path string) {
	d.w.t.Helper()
	if err := d.st.Close(); err != nil {
		d.w.t.Fatal(err)
	}
	d.path = path
	d.open()
}

func faultOldCopy(t *testing.T) {
	for _, tc := range []struct {
		name      string
		meanwhile func(w *world, room id.RoomID, alice, bob *testDevice)
	}{
		{"the other copy sent", func(w *world, room id.RoomID, _, bob *testDevice) {
			w.send(bob, room, "by the other copy")
		}},
		{"the other copy committed", func(w *world, room id.RoomID, _, bob *testDevice) {
			w.must(func() error { return bob.ChangePolicySelf(room) })
			w.send(bob, room, "by the other copy")
		}},
		{"others committed, the other copy sent", func(w *world, room id.RoomID, alice, bob *testDevice) {
			w.must(func() error { return alice.ChangePolicySelf(room) })
			w.send(bob, room, "by the other copy")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			w.send(bob, room, "before")
			w.settle()
			copied := bob.copyStore()
			tc.meanwhile(w, room, alice, bob)
			w.settle()
			before := bob.headRef(room)
			bob.put(copied)
			bob.got = nil
			w.send(bob, room, "by the copy")
			w.settle()
			w.sameEpoch(room, alice, bob, carol)
			if !bob.warned(ruleCopied) {
				t.Error("bob is not told that his store is an old copy")
			}
			if bob.headRef(room) == before {
				t.Error("the copy sent in the epoch of the other copy")
			}
			if got := carol.texts(); !slices.Equal(got, []string{"before", "by the other copy", "by the copy"}) {
				t.Errorf("carol got %q", got)
			}
			w.checkNonces() // and the world's recorder finds no key twice
		})
	}
}

// TestCommitThatOnlyNamesTheOwnLeaf: anybody can post a commit that names a leaf. Only
// one that is signed with the leaf's key shows that another copy of the store made it.
func TestCommitThatOnlyNamesTheOwnLeaf(t *testing.T) {
	for _, signed := range []bool{false, true} {
		t.Run(fmt.Sprint("signed ", signed), func(t *testing.T) {
			x := newRefusing(t)
			content, err := rooms.DecodeCommit(x.commit(x.alice, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
			if err != nil {
				t.Fatal(err)
			}
			msg, err := mls.ParseMessage(content.Message)
			if err != nil {
				t.Fatal(err)
			}
			if !signed {
				content.Message[msg.SignatureEnd()-1] ^= 1
			}
			raw, err := rooms.Encode(content)
			if err != nil {
				t.Fatal(err)
			}
			x.show(x.byBob(rooms.TypeCommit, raw))
			x.settle()
			x.alice.mu.Lock()
			copied := x.alice.rooms[x.room].rec.Copied
			x.alice.mu.Unlock()
			if copied != signed {
				t.Errorf("alice takes her store for an old copy: %v", copied)
			}
		})
	}
}

func TestCopyWithNothingNewBehindItIsNoCopy(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.send(bob, room, "before")
	w.settle()
	bob.put(bob.copyStore())
	head := bob.headRef(room)
	w.send(bob, room, "after")
	w.settle()
	if bob.headRef(room) != head || bob.warned(ruleCopied) {
		t.Error("a copy that lacks nothing makes fresh keys")
	}
	alice.wantTexts("before", "after")
}

func faultTwoCopies(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.must(func() error { return bob.ChangePolicySelf(room) })
	twin := &testDevice{w: w, ident: bob.ident, hs: bob.hs, path: bob.copyStore()}
	twin.open()
	w.all = append(w.all, twin)
	w.must(func() error { return bob.ChangePolicySelf(room) }) // the twin cannot follow
	w.until(120, func() bool { return false })
	w.settle()
	out := 0
	for _, d := range []*testDevice{bob, twin} {
		info, err := d.Room(w.ctx, room)
		if err != nil {
			t.Fatal(err)
		}
		if info.Phase == string(phaseRemoved) {
			out++
			if !d.warned(ruleCopied) {
				t.Error("the copy that is out was not told why")
			}
		}
	}
	if out != 1 {
		t.Errorf("%d copies are out, want one", out)
	}
	before := alice.epoch(room)
	w.until(120, func() bool { return false })
	if alice.epoch(room) != before {
		t.Errorf("the copies take turns: epoch %d, then %d", before, alice.epoch(room))
	}
	w.sameEpoch(room, alice, carol)
}

// faultRestoredBackup: even if the room shows nothing of another
// copy, for a homeserver may hide it.
func faultRestoredBackup(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.send(bob, room, "before")
	w.settle()
	secret := store.BackupSecret{Key: bytes.Repeat(store.Key{9}, store.KeySize)}
	var backup bytes.Buffer
	if err := bob.st.Backup(w.ctx, &backup, secret); err != nil {
		t.Fatal(err)
	}
	// One message goes out after the backup, and the restored copy never sees it.
	w.send(bob, room, "after the backup")
	w.settle()
	w.s.mu.Lock()
	hidden := w.s.log[len(w.s.log)-1]
	for _, evt := range w.s.log {
		if evt.Type == rooms.TypeEncrypted {
			hidden = evt
		}
	}
	hidden.RoomID = "!hidden:" + testServer
	w.s.mu.Unlock()

	path := filepath.Join(t.TempDir(), "restored.db")
	if _, err := store.Restore(w.ctx, &backup, path, secret); err != nil {
		t.Fatal(err)
	}
	before := bob.headRef(room)
	bob.got = nil
	bob.put(path)
	w.send(bob, room, "restored")
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	if bob.headRef(room) == before {
		t.Error("the restored copy sent in the epoch of the backup")
	}
	if !bob.warned(ruleCopied) {
		t.Error("bob was not told")
	}
	if got := carol.texts(); !slices.Equal(got, []string{"before", "after the backup", "restored"}) {
		t.Errorf("carol got %q", got)
	}
	// From then on it is a store like any other.
	head := bob.headRef(room)
	bob.restart()
	w.send(bob, room, "and on")
	w.settle()
	if bob.headRef(room) != head {
		t.Error("every start makes fresh keys")
	}
}
