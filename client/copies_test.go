package client

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// faultDamagedLog: the write-ahead log of bob's store is cut, torn or changed while his
// client does not run. Where the store opens as it was a while ago, that is noticed: no
// message key is used twice, and nothing is lost.
func faultDamagedLog(t *testing.T) {
	back := 0
	for name, damage := range map[string]func(log []byte) []byte{
		"as it was":           func(log []byte) []byte { return log },
		"gone":                func(log []byte) []byte { return nil },
		"cut in the middle":   func(log []byte) []byte { return log[:len(log)/2] },
		"its last page torn":  func(log []byte) []byte { clear(log[len(log)-2000:]); return log },
		"zeros in a third":    func(log []byte) []byte { clear(log[len(log)/3 : len(log)*2/3]); return log },
		"a bit of its header": func(log []byte) []byte { log[17] ^= 1; return log },
		"a bit near its end":  func(log []byte) []byte { log[len(log)*7/8] ^= 1; return log },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			w.send(bob, room, "before")
			w.settle()
			bob.restart() // what was written is in the file, and the log begins anew
			for _, text := range []string{"one", "two", "three"} {
				w.send(bob, room, text)
				w.settle()
			}
			files := map[string][]byte{}
			for _, end := range []string{"", "-wal"} {
				raw, err := os.ReadFile(bob.path + end)
				if err != nil {
					t.Fatal(err)
				}
				files[end] = raw
			}
			if len(files["-wal"]) < 8*4096 {
				t.Fatalf("the log has %d bytes: the test proves nothing", len(files["-wal"]))
			}
			files["-wal"] = damage(files["-wal"])
			path := filepath.Join(t.TempDir(), "damaged.db")
			for end, raw := range files {
				if err := os.WriteFile(path+end, raw, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			bob.put(path) // is not refused: the file itself is whole
			kept := bob.kept(room)
			bob.got = nil
			w.send(bob, room, "after")
			w.settle()
			w.sameEpoch(room, alice, bob, carol)
			for _, d := range []*testDevice{alice, carol} {
				if got := d.texts(); !slices.Equal(got, []string{"before", "one", "two", "three", "after"}) {
					t.Errorf("%s got %q", d.ident.device, got)
				}
			}
			w.checkNonces() // and the world's recorder finds no key twice
			switch {
			case len(kept) < 4:
				back++
				if !bob.warned(ruleCopied) {
					t.Errorf("bob has %q, and is not told that his store is an old one", kept)
				}
			case name == "as it was" && bob.warned(ruleCopied):
				t.Error("bob's store is taken for an old one")
			}
		})
	}
	if back == 0 {
		t.Error("no damage set the store back: the test proves nothing")
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
	path := bob.restored()
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

// TestOldCopyIsAddedAgain: a store from before the device came into a room holds no ratchets of
// it, only the key package that opens them, and the Welcome comes once more.
func TestOldCopyIsAddedAgain(t *testing.T) {
	for _, tc := range []struct {
		name     string
		restored bool // by [store.Restore], which marks it; else another room shows that it is a copy
	}{{"restored", true}, {"noticed elsewhere", false}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
			room, other := w.createRoom(alice, CreateOptions{}), w.createRoom(alice, CreateOptions{})
			if !tc.restored {
				w.must(func() error { return alice.Invite(w.ctx, other, bob.UserID()) })
				w.join(bob, other)
			}
			w.settle()
			old, kept := bob.copyStore(), maps.Clone(bob.ident.bundles)
			if tc.restored {
				old = bob.restored()
			}
			w.s.welcomes = nil
			w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
			w.join(bob, room)
			w.settle()
			w.sameEpoch(room, alice, bob)
			head := bob.headRef(room)
			w.send(bob, room, "by the first copy")
			if !tc.restored {
				w.send(bob, other, "by the first copy, elsewhere")
			}
			w.settle()
			w.hide(func(evt *Event) bool {
				return evt.RoomID == room && evt.Type == rooms.TypeEncrypted && evt.Sender == bob.UserID()
			})

			bob.ident.bundles, bob.got = kept, nil
			bob.put(old)
			if !tc.restored {
				w.until(60, func() bool { return bob.warned(ruleCopied) })
			}
			w.s.mu.Lock()
			queue := string(bob.UserID()) + "/" + string(bob.DeviceID())
			w.s.toDevice[queue] = append(w.s.toDevice[queue], &Event{Type: rooms.TypeWelcome, Sender: alice.UserID(), Content: w.s.welcomes[0]})
			w.s.mu.Unlock()
			w.settle()
			w.send(bob, room, "by the old copy")
			w.settle()
			w.sameEpoch(room, alice, bob)
			if bob.headRef(room) == head {
				t.Error("the old copy sent in the epoch that the first copy sent in")
			}
			if got := alice.texts(); got[len(got)-1] != "by the old copy" {
				t.Errorf("alice got %q", got)
			}
			w.checkNonces()
		})
	}
}

// restored makes a backup of a device's store, and restores it elsewhere.
func (d *testDevice) restored() (path string) {
	d.w.t.Helper()
	secret := store.BackupSecret{Key: bytes.Repeat(store.Key{9}, store.KeySize)}
	var backup bytes.Buffer
	if err := d.st.Backup(d.w.ctx, &backup, secret); err != nil {
		d.w.t.Fatal(err)
	}
	path = filepath.Join(d.w.t.TempDir(), "restored.db")
	if _, err := store.Restore(d.w.ctx, &backup, path, secret); err != nil {
		d.w.t.Fatal(err)
	}
	return path
}

// TestOldCopyIsAddedAgainBeforeItIsWritten: that another copy was noticed in one room counts for a Welcome into the next also
// where the disk did not take the step that noticed it.
func TestOldCopyIsAddedAgainBeforeItIsWritten(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	first, second := w.createRoom(alice, CreateOptions{}), w.createRoom(alice, CreateOptions{}) // in the order in which rooms are looked at
	w.must(func() error { return alice.Invite(w.ctx, first, bob.UserID()) })
	w.join(bob, first)
	w.settle()
	old, kept := bob.copyStore(), maps.Clone(bob.ident.bundles)
	w.s.welcomes = nil
	w.must(func() error { return alice.Invite(w.ctx, second, bob.UserID()) })
	w.join(bob, second)
	w.settle()
	w.send(bob, second, "by the first copy")
	w.send(bob, first, "by the first copy, elsewhere")
	w.settle()
	byBob := func(room id.RoomID) func(evt *Event) bool {
		return func(evt *Event) bool {
			return evt.RoomID == room && evt.Type == rooms.TypeEncrypted && evt.Sender == bob.UserID()
		}
	}
	w.hide(byBob(second))
	shows := w.hide(byBob(first))
	bob.ident.bundles, bob.got = kept, nil
	bob.put(old)
	for range 5 { // all but the Welcome is at hand
		bob.turn()
	}
	w.show(shows)
	w.s.mu.Lock()
	queue := string(bob.UserID()) + "/" + string(bob.DeviceID())
	w.s.toDevice[queue] = append(w.s.toDevice[queue], &Event{Type: rooms.TypeWelcome, Sender: alice.UserID(), Content: w.s.welcomes[0]})
	w.s.mu.Unlock()
	refused := false
	bob.Client.crashAt = func(string) error {
		if refused || !bob.shareBundles {
			return nil
		}
		refused = true
		clear(bob.ident.shared) // it is written in the same transaction
		return errors.New("the disk is full")
	}
	if err := bob.SyncOnce(w.ctx, 0); err != nil {
		t.Fatal(err)
	}
	bob.Step(w.ctx)
	bob.Client.crashAt = nil
	bob.mu.Lock()
	e := bob.rooms[second].head()
	if !refused || e == nil {
		t.Fatalf("the step was refused: %t; the Welcome opened %v: the test shows nothing", refused, e)
	}
	if bob.rooms[second].mayEncrypt(e) {
		t.Error("the old copy sends in the epoch that the first copy sent in")
	}
	bob.mu.Unlock()
	w.send(bob, second, "by the old copy")
	w.settle()
	w.checkNonces()
}

// TestACopyIsNoticedInARoomThatASharedKeyPackageOpened: such a room has no keys of its own yet, which says nothing of the other
// key packages, nor of the store.
func TestACopyIsNoticedInARoomThatASharedKeyPackageOpened(t *testing.T) {
	w := newWorld(t)
	room, _, bob, _ := w.three("shared")
	w.settle()
	old := bob.copyStore()
	w.send(bob, room, "by the first copy")
	w.settle()
	bob.put(old)
	bob.got = nil
	bob.mu.Lock()
	clear(bob.ident.shared)
	bob.enteredBy(bob.rooms[room], true)
	bob.mu.Unlock()
	w.settle()
	if !bob.warned(ruleCopied) {
		t.Error("bob is not told that his store is an old copy")
	}
	if len(bob.ident.shared) == 0 {
		t.Error("the key packages that the other copy has pass for this one's alone")
	}
	w.send(bob, room, "by the old copy")
	w.settle()
	w.checkNonces()
}

// TestTheCopyThatIsOutIsToldWhy: of two copies of a device the one whose place the other
// took is not told that it was removed alone: a logout there would end both.
func TestTheCopyThatIsOutIsToldWhy(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	w.settle()
	copied := bob.restored()
	w.must(func() error { return bob.ChangePolicySelf(room) })
	w.send(bob, room, "by the first copy")
	w.settle()
	first := bob.path
	bob.put(copied)
	w.send(bob, room, "by the restored copy")
	w.settle()
	w.sameEpoch(room, alice, bob)

	bob.put(first)
	bob.got = nil
	w.settle()
	info, err := bob.Room(w.ctx, room)
	if err != nil || info.Phase != "removed" || !info.Superseded {
		t.Fatalf("the first copy is %+v, %v", info, err)
	}
	told := false
	for _, u := range bob.got {
		switch u := u.(type) {
		case *Removed:
			if told = true; !u.Superseded {
				t.Error("it is told that it was removed, and not by whom")
			}
		case *Warning:
			if u.Kind == SupersededWarning && !strings.Contains(u.Text, "perhaps one restored from a backup, is in use") {
				t.Errorf("it is warned: %s", u.Text)
			}
		}
	}
	if !told || !bob.warned(ruleCopied) {
		t.Errorf("told %v, warned %v", told, bob.warned(ruleCopied))
	}
	_, err = bob.Send(w.ctx, room, "m.room.message", []byte(`{"body":"x","msgtype":"m.text"}`))
	if !errors.Is(err, ErrSuperseded) || !errors.Is(err, ErrRemoved) {
		t.Errorf("it sends: %v", err)
	}
}
