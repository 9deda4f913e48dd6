package client

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// keepDurable copies the files of a device's store while all in them is on disk.
func (d *testDevice) keepDurable() {
	for _, end := range []string{"", "-wal"} {
		raw, err := os.ReadFile(d.path + end)
		if err != nil {
			d.w.t.Error(err)
		}
		if err := os.WriteFile(d.path+".durable"+end, raw, 0o600); err != nil {
			d.w.t.Error(err)
		}
	}
}

// powerCut restarts a device with what a power cut leaves at the worst: what was
// written since the disk was waited for last is gone.
func (d *testDevice) powerCut() {
	d.w.t.Helper()
	if err := d.st.Close(); err != nil {
		d.w.t.Fatal(err)
	}
	for _, end := range []string{"", "-wal"} {
		if err := os.Rename(d.path+".durable"+end, d.path+end); err != nil {
			d.w.t.Fatal(err)
		}
	}
	d.open()
}

// TestPowerCut cuts the power at some of the writes of a device's story: one in which it
// joins, commits, sends and receives, by itself or fed by its caller's syncer, with what
// another session is shown first or without it, and one in which it is put out of the room. Nothing is lost, nothing is read twice, and no key is
// used twice. Where nothing was written but what an empty /sync leaves, the power stays.
func TestPowerCut(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(w *world, alice, bob *testDevice, crash func())
		fed    bool
		ahead  bool
		step   int // of the writes, every how manyeth
		least  int // write points
	}{
		{"talks", (*world).script, false, false, 6, 20},
		{"is fed", (*world).script, true, false, 11, 20},
		{"is kicked", (*world).kickScript, false, false, 1, 4},
		{"is fed and kicked", (*world).kickScript, true, false, 1, 4},
		{"talks, and reads what others are shown first", (*world).script, false, true, 11, 20},
		{"is kicked, and reads what others are shown first", (*world).kickScript, false, true, 1, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			story := func(t *testing.T, k *crasher) {
				w := newWorld(t)
				alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
				alice.cuts, alice.fed, alice.ahead = true, test.fed, test.ahead
				alice.restart()
				alice.cut = alice.powerCut
				test.script(w, alice, bob, func() {
					alice.crashAt = k.point
					alice.Client.crashAt = k.point
				})
				alice.powerCut()
				w.settle()
				w.checkNonces()
				if rules := alice.Refusals(); rules[ruleCopied] != 0 {
					t.Errorf("alice takes her own store for a copy: %v", rules)
				}
				for _, u := range alice.got {
					if warning, ok := u.(*Warning); ok && warning.Kind == CopyWarning {
						t.Errorf("alice takes her own store for a copy: %s", warning.Text)
					}
				}
				for room := range alice.rooms {
					alice.wantOnce(room)
				}
			}
			count := &crasher{}
			story(t, count)
			all := os.Getenv("MLS_CRASH_POINTS") == "all"
			var points []int
			for i, name := range count.names {
				if idle := name == "sync-filed" && (i+1 == len(count.names) || count.names[i+1] == name); !idle || all {
					points = append(points, i)
				}
			}
			if len(points) < test.least {
				t.Fatalf("%d write points, want more of a story", len(points))
			}
			for n, i := range points {
				if n%test.step != 0 && !all {
					continue
				}
				t.Run(fmt.Sprintf("%03d-%s", i+1, count.names[i]), func(t *testing.T) { story(t, &crasher{at: i + 1}) })
			}
		})
	}
}

// kickScript is a story in which bob puts alice out of the room, where she had not read
// the last message, and lets her in again.
func (w *world) kickScript(alice, bob *testDevice, crash func()) {
	t := w.t
	t.Helper()
	dave := w.device("dave", "DAVE1")
	room := w.createRoom(bob, CreateOptions{History: "shared"})
	for _, d := range []*testDevice{alice, dave} {
		w.must(func() error { return bob.Invite(w.ctx, room, d.UserID()) })
		w.join(d, room)
		w.settle()
	}
	w.send(alice, room, "a0")
	w.settle()
	crash()
	bob.sendAlone(room, "b0")
	if err := bob.Kick(w.ctx, room, alice.UserID(), ""); err != nil {
		t.Fatal(err)
	}
	for range 40 {
		w.module.turn()
		bob.turn()
		dave.turn()
		w.tolerantTurn(alice)
		w.now.add(time.Second)
	}
	if alice.crashAt != nil {
		alice.crashAt = nil
		alice.restart()
	}
	w.settle()
	if info, err := alice.Room(w.ctx, room); err != nil || info.Membership != "leave" || info.Phase != "removed" {
		t.Errorf("alice, who was put out, stands as %q, %q (%v)", info.Membership, info.Phase, err)
	}
	bob.sendAlone(room, "b1")
	w.settle()
	w.must(func() error { return bob.Invite(w.ctx, room, alice.UserID()) })
	w.join(alice, room)
	w.settle()
	w.send(bob, room, "b2")
	w.send(alice, room, "a1")
	w.settle()
	if got := alice.kept(room); !slices.Equal(got, []string{"a0", "b0", "b2", "a1"}) {
		t.Errorf("alice has %q, want what was said while she was in the room", got)
	}
	dave.wantTexts("a0", "b0", "b1", "b2", "a1")
	w.sameEpoch(room, alice, bob, dave)
	w.checkNonces()
}

// kept are the texts of a room in a device's store, in order.
func (d *testDevice) kept(room id.RoomID) (texts []string) {
	d.w.t.Helper()
	messages, err := d.Messages(d.w.ctx, room, "", 100)
	if err != nil {
		d.w.t.Fatal(err)
	}
	for _, msg := range messages {
		texts = append(texts, msg.Body())
	}
	return texts
}

// wantOnce checks that no message stands twice in a room.
func (d *testDevice) wantOnce(room id.RoomID) {
	d.w.t.Helper()
	messages, err := d.Messages(d.w.ctx, room, "", 100)
	if err != nil {
		d.w.t.Fatal(err)
	}
	var ids []string
	for _, msg := range messages {
		ids = append(ids, msg.ID)
	}
	slices.Sort(ids)
	if len(slices.Compact(slices.Clone(ids))) != len(ids) {
		d.w.t.Errorf("%s has a message twice: %q", d.ident.device, ids)
	}
}

// TestHowOftenOneMessageWaitsForTheDisk counts what a message costs: sending waits for the
// disk before the ciphertext leaves, and once more when it was answered.
func TestHowOftenOneMessageWaitsForTheDisk(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	waits := map[*testDevice]int{}
	for _, d := range []*testDevice{alice, bob} {
		d.durable = func() { waits[d]++ }
	}
	alice.sendAlone(room, "once")
	if waits[alice] != 3 { // and once for the caller who did not wait
		t.Errorf("sending waited %d times for the disk, want 3", waits[alice])
	}
	clear(waits)
	for _, d := range []*testDevice{alice, bob} {
		d.turn()
	}
	if waits[alice]+waits[bob] != 0 {
		t.Errorf("the echo waited %d times for the disk, receiving %d times, want 0", waits[alice], waits[bob])
	}
	bob.wantTexts("once")
}

// TestPowerCutKeepsAWelcome: the homeserver gives a to-device message once.
func TestPowerCutKeepsAWelcome(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{History: "shared"})
	bob.cuts = true
	bob.restart()
	w.all = []*testDevice{alice}
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle()
	if err := bob.SyncOnce(w.ctx, 0); err != nil {
		t.Fatal(err)
	}
	bob.powerCut()
	items, err := bob.st.Inbox(w.ctx, room)
	if err != nil || len(items) != 1 || !strings.HasPrefix(string(items[0].EventID), "to-device/") {
		t.Errorf("after a power cut %d events wait, want the Welcome (%v)", len(items), err)
	}
}

// TestWhatWasTakenBackStaysGoneAfterAPowerCut: the homeserver has a message, its author
// takes it back, and the device forgets both, or that it was sent at all. What the
// homeserver shows of it then has nothing in it any more.
func TestWhatWasTakenBackStaysGoneAfterAPowerCut(t *testing.T) {
	for name, test := range map[string]struct {
		noTxns bool   // the homeserver does not say under which transaction id an event was sent
		lost   string // what of the sending the device does not live to see
		moves  bool   // the head moves meanwhile
	}{
		"sent, and a commit":             {noTxns: true, moves: true},
		"sent":                           {noTxns: true},
		"come back, and a commit":        {noTxns: true, lost: "answer", moves: true},
		"come back":                      {noTxns: true, lost: "answer"},
		"cut while it is sent, a commit": {lost: "all", moves: true},
		"cut while it is sent":           {lost: "all"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			w.s.noTxns = test.noTxns
			alice.cuts = true
			alice.restart()
			w.settle()
			if test.lost != "" {
				alice.hs.after = func(kind string) error {
					if kind != "send/"+rooms.TypeEncrypted {
						return nil
					}
					alice.hs.after = nil
					return errors.New("the answer is lost")
				}
			}
			alice.sendAlone(room, "taken back")
			sent := w.encryptedBy(alice.UserID())
			if len(sent) != 1 {
				t.Fatalf("%d events went out, want one", len(sent))
			}
			if test.lost != "all" {
				alice.takeIn()
			}
			if _, err := carol.hs.Redact(w.ctx, room, sent[0], "t", ""); err != nil { // a moderator
				t.Fatal(err)
			}
			if test.lost != "all" {
				alice.takeIn()
			}
			if test.moves {
				before := bob.headRef(room)
				w.all = slices.DeleteFunc(w.all, func(d *testDevice) bool { return d == alice })
				w.must(func() error { return bob.Refresh(w.ctx, room) })
				w.settle()
				w.all = append(w.all, alice)
				if bob.headRef(room) == before {
					t.Fatal("the head stands: the test proves nothing")
				}
			}
			alice.powerCut()
			w.settle()
			w.sameEpoch(room, alice, bob, carol)
			if again := w.encryptedBy(alice.UserID()); len(again) != 1 {
				t.Errorf("what was taken back went out again, as %q", again[1:])
			}
			if rows := alice.keptMessages(room); len(rows) != 0 {
				t.Errorf("%d messages are kept in the outbox, want none", len(rows))
			}
			messages, err := alice.Messages(w.ctx, room, "", 100)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range messages {
				if string(m.Content) != "{}" {
					t.Errorf("the timeline has %s", m.Content)
				}
			}
			w.send(alice, room, "after")
			w.settle()
			bob.wantTexts("after")
		})
	}
}

// takeIn lets a device take in what came, and nothing go out.
func (d *testDevice) takeIn() {
	d.w.t.Helper()
	if err := d.SyncOnce(d.w.ctx, 0); err != nil {
		d.w.t.Fatal(err)
	}
	d.Step(d.w.ctx)
}

// encryptedBy are the events in which a user sent something encrypted, in order.
func (w *world) encryptedBy(user id.UserID) (out []id.EventID) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for _, evt := range w.s.log {
		if evt.Type == rooms.TypeEncrypted && evt.Sender == user {
			out = append(out, evt.ID)
		}
	}
	return out
}
