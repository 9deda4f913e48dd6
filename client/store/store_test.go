package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"
)

var testKey = Key(bytes.Repeat([]byte{7}, KeySize))

func openTest(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Path: path, Key: testKey})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

const (
	room  = id.RoomID("!a:one")
	other = id.RoomID("!b:one")
)

func TestValuesSurviveReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "client.db")
	ctx := t.Context()
	s, err := Open(ctx, Options{Path: path, Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	ref, parent := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	epoch := &Epoch{Room: room, Ref: ref, Parent: parent, Number: 7, State: []byte("epoch state")}
	pending := &Pending{Room: room, Ref: ref, Parent: parent, EventID: "$e", Data: []byte("staged")}
	out := &OutboxItem{Room: room, TxnID: "t1", Kind: "message", Ref: ref, State: "new", Data: []byte("hello")}
	in := &InboxItem{Room: room, EventID: "$x", WaitsFor: "commit/abc", Data: []byte("raw")}
	line := &TimelineItem{Room: room, EventID: "$m", Mid: "m1", Sender: "@a:one", Type: "m.room.message", Timestamp: 5, Epoch: 7, Ref: ref, Data: []byte("{}")}
	kp := &KeyPackage{Ref: []byte("kp"), Suite: 1, Created: time.UnixMilli(10), Expires: time.UnixMilli(20), Bundle: []byte("bundle")}
	acc := &Account{UserID: "@a:one", DeviceID: "D", Homeserver: "https://one", Data: []byte("token")}
	err = s.Do(ctx, func(ctx context.Context) error {
		return errors.Join(
			s.PutAccount(ctx, acc), s.PutKV(ctx, "k", []byte("v")), s.PutRoom(ctx, room, []byte("record")),
			s.PutMachine(ctx, room, []byte("machine")), s.PutEpoch(ctx, epoch), s.PutRatchetPages(ctx, room, ref, []RatchetPage{{ID: 1 << 40, Data: []byte("ratchet")}}),
			s.PutPending(ctx, pending), s.AddOutbox(ctx, out), s.AddInbox(ctx, in), s.AddTimeline(ctx, line),
			s.AddKeyPackage(ctx, kp), s.PutDeviceList(ctx, "@b:one", []byte("devices"), false),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, path)
	check := func(name string, want any, got any, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: (-want +got)\n%s", name, d)
		}
	}
	gotAcc, err := s.Account(ctx)
	check("account", acc, gotAcc, err)
	gotKV, err := s.GetKV(ctx, "k")
	check("kv", []byte("v"), gotKV, err)
	gotRooms, err := s.Rooms(ctx)
	check("rooms", []Room{{room, []byte("record")}}, gotRooms, err)
	gotMachine, err := s.Machine(ctx, room)
	check("machine", []byte("machine"), gotMachine, err)
	gotEpoch, err := s.Epoch(ctx, room, ref)
	check("epoch", epoch, gotEpoch, err)
	pages, err := s.RatchetPages(ctx, room, ref)
	check("ratchet", []RatchetPage{{ID: 1 << 40, Data: []byte("ratchet")}}, pages, err)
	gotPending, err := s.Pending(ctx, room)
	check("pending", []*Pending{pending}, gotPending, err)
	gotOut, err := s.Outbox(ctx, "")
	check("outbox", []*OutboxItem{out}, gotOut, err)
	gotIn, err := s.Inbox(ctx, room)
	check("inbox", []*InboxItem{{Room: room, EventID: "$x", WaitsFor: "commit/abc"}}, gotIn, err)
	check("what an inbox item holds", nil, nil, s.LoadInbox(ctx, gotIn[0]))
	check("inbox with what it holds", []*InboxItem{in}, gotIn, nil)
	gotLine, err := s.TimelineByMid(ctx, room, "@a:one", "m1")
	check("timeline", line, gotLine, err)
	gotKP, err := s.KeyPackage(ctx, []byte("kp"))
	check("key package", kp, gotKP, err)
	gotList, outdated, err := s.DeviceList(ctx, "@b:one")
	check("device list", "devices false", fmt.Sprintf("%s %v", gotList, outdated), err)
}

func TestNothingReadableOnDisk(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "client.db")
	ctx := t.Context()
	s := openTest(t, path)
	secret := []byte("planted-plaintext-4711")
	ref := []byte("r")
	err := s.Do(ctx, func(ctx context.Context) error {
		return errors.Join(
			s.PutAccount(ctx, &Account{UserID: "@a:one", Data: secret}), s.PutKV(ctx, "k", secret), s.PutRoom(ctx, room, secret),
			s.PutMachine(ctx, room, secret), s.PutEpoch(ctx, &Epoch{Room: room, Ref: ref, State: secret}),
			s.PutRatchetPages(ctx, room, ref, []RatchetPage{{ID: 1, Data: secret}}), s.PutTree(ctx, &Tree{Room: room, Ref: ref, Whole: true, Data: secret}), s.PutPending(ctx, &Pending{Room: room, Ref: ref, Data: secret}),
			s.AddOutbox(ctx, &OutboxItem{Room: room, TxnID: "t", Data: secret}),
			s.AddInbox(ctx, &InboxItem{Room: room, EventID: "$x", Data: secret}),
			s.AddTimeline(ctx, &TimelineItem{Room: room, EventID: "$m", Type: string(secret), Data: secret}),
			s.AddKeyPackage(ctx, &KeyPackage{Ref: ref, Bundle: secret}), s.PutDeviceList(ctx, "@b:one", secret, false),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, secret) {
			t.Errorf("%s holds a value in plain text", filepath.Base(f))
		}
		found = found || bytes.Contains(b, []byte("@a:one"))
		if info, _ := os.Stat(f); info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", filepath.Base(f), info.Mode())
		}
	}
	if !found {
		t.Error("the search does not see the database: the user id, which is kept in clear, was not found")
	}
}

func TestDoUndoesOnError(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "client.db"))
	ctx := t.Context()
	stop := errors.New("stop")
	err := s.Do(ctx, func(ctx context.Context) error {
		if err := s.PutKV(ctx, "k", []byte("v")); err != nil {
			return err
		}
		return s.Do(ctx, func(ctx context.Context) error { return stop })
	})
	if !errors.Is(err, stop) {
		t.Fatalf("got %v, want the error of the function", err)
	}
	if _, err := s.GetKV(ctx, "k"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

func TestSealedValueIsBoundToItsPlace(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "client.db"))
	ctx := t.Context()
	if err := s.PutOldRatchet(ctx, room, []byte("r"), []byte("state")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.Exec(ctx, "UPDATE ratchets SET room_id = $1", other); err != nil {
		t.Fatal(err)
	}
	if _, err := s.OldRatchet(ctx, other, []byte("r")); !errors.Is(err, ErrWrongKey) {
		t.Errorf("a moved value opened: got %v, want ErrWrongKey", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "client.db")
	s, err := Open(t.Context(), Options{Path: path, Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("while it is open", func(t *testing.T) {
		second, err := Open(t.Context(), Options{Path: path, Key: testKey})
		if !errors.Is(err, ErrLocked) {
			t.Errorf("got %v, want ErrLocked", err)
		}
		if second != nil {
			second.Close()
		}
	})
	s.Close()
	t.Run("another key", func(t *testing.T) {
		_, err := Open(t.Context(), Options{Path: path, Key: bytes.Repeat([]byte{8}, KeySize)})
		if !errors.Is(err, ErrWrongKey) {
			t.Errorf("got %v, want ErrWrongKey", err)
		}
	})
	t.Run("a short key", func(t *testing.T) {
		if _, err := Open(t.Context(), Options{Path: path, Key: testKey[:16]}); err == nil {
			t.Error("a key of 16 bytes was taken")
		}
	})
}

func TestDeleteRoomLeavesOthers(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "client.db"))
	ctx := t.Context()
	for _, r := range []id.RoomID{room, other} {
		err := errors.Join(
			s.PutRoom(ctx, r, []byte("x")), s.PutMachine(ctx, r, []byte("x")), s.PutEpoch(ctx, &Epoch{Room: r, Ref: []byte("r")}),
			s.PutOldRatchet(ctx, r, []byte("r"), nil), s.PutRatchetPages(ctx, r, []byte("r"), []RatchetPage{{ID: 1, Data: []byte("x")}}), s.PutTree(ctx, &Tree{Room: r, Ref: []byte("r"), Whole: true}), s.PutRejoinSecret(ctx, r, []byte("r"), 1, []byte("x")), s.AddOutbox(ctx, &OutboxItem{Room: r, TxnID: string(r)}),
			s.AddTimeline(ctx, &TimelineItem{Room: r, EventID: "$m"}),
		)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.MarkSeen(ctx, r, "$m"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.DeleteRoom(ctx, room); err != nil {
		t.Fatal(err)
	}
	for _, table := range roomTables {
		var gone, kept int
		if err := s.one(ctx, table, "SELECT COUNT(*) FILTER (WHERE room_id = $1), COUNT(*) FILTER (WHERE room_id = $2) FROM "+table, []any{room, other}, &gone, &kept); err != nil {
			t.Fatal(err)
		}
		if gone != 0 {
			t.Errorf("%s keeps %d rows of the deleted room", table, gone)
		}
		if kept == 0 && table != "pending_commits" && table != "inbox" {
			t.Errorf("%s lost the rows of another room", table)
		}
	}
}

func TestSeenEventsAreForgottenInOrder(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "client.db"))
	ctx := t.Context()
	name := func(i int) id.EventID { return id.EventID(fmt.Sprintf("$%d", 1000-i)) }
	mark := func(r id.RoomID, event id.EventID) {
		t.Helper()
		if _, err := s.MarkSeen(ctx, r, event); err != nil {
			t.Fatal(err)
		}
	}
	mark(room, "to-device/welcome")
	for i := range 100 {
		mark(room, name(i))
		mark("!other", name(i))
	}
	kept := func(r id.RoomID) (first, n int) {
		t.Helper()
		for i := 99; i >= 0; i-- {
			if seen, err := s.Seen(ctx, r, name(i)); err != nil {
				t.Fatal(err)
			} else if seen {
				first, n = i, n+1
			}
		}
		return first, n
	}
	for _, want := range []int{70, 40, 20, 20} {
		if err := s.PruneSeen(ctx, room, 20, 30); err != nil {
			t.Fatal(err)
		}
		if first, n := kept(room); n != want || first != 100-want {
			t.Errorf("%d are kept, from the %d. on, want the newest %d", n, first, want)
		}
	}
	if _, n := kept("!other"); n != 100 {
		t.Errorf("%d of another room are kept, want all", n)
	}
	if seen, err := s.Seen(ctx, room, "to-device/welcome"); err != nil || !seen {
		t.Errorf("a Welcome that was processed is forgotten (%v)", err)
	}
}

func TestMarkSeenTellsTheFirstTime(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "client.db"))
	for i, want := range []bool{true, false} {
		if got, err := s.MarkSeen(t.Context(), room, "$e"); err != nil || got != want {
			t.Errorf("time %d: got %v, %v, want %v", i+1, got, err, want)
		}
	}
}

// TestInboxKnownToBeEmpty: it is remembered that a room's inbox is empty, until something is added to it, and
// not what a transaction that was undone, or one that is under way, sees of it.
func TestInboxKnownToBeEmpty(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "store.db"))
	add := func(ctx context.Context, event id.EventID) error {
		return s.AddInbox(ctx, &InboxItem{Room: room, EventID: event, Data: []byte("x")})
	}
	waiting := func(ctx context.Context, want ...id.EventID) {
		t.Helper()
		all, err := s.Inbox(ctx, room)
		got := []id.EventID{}
		for _, item := range all {
			got = append(got, item.EventID)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%q wait (%v), want %q", got, err, want)
		}
	}
	waiting(t.Context())
	if err := add(t.Context(), "$1"); err != nil {
		t.Fatal(err)
	}
	waiting(t.Context(), "$1")
	undone := errors.New("undone")
	if err := s.Do(t.Context(), func(ctx context.Context) error {
		if err := s.DeleteInbox(ctx, room, "$1"); err != nil {
			return err
		}
		waiting(ctx)
		return undone
	}); !errors.Is(err, undone) {
		t.Fatal(err)
	}
	waiting(t.Context(), "$1")
	if err := s.DeleteInbox(t.Context(), room, "$1"); err != nil {
		t.Fatal(err)
	}
	waiting(t.Context())
	if err := s.Do(t.Context(), func(ctx context.Context) error {
		if err := add(ctx, "$2"); err != nil {
			return err
		}
		waiting(ctx, "$2")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	waiting(t.Context(), "$2")

	// Whoever looked before an event was added, and notes what it saw after that, notes nothing.
	_, adds := s.inboxes.is(other)
	s.inboxes.added(other)
	s.inboxes.found(other, adds)
	if empty, _ := s.inboxes.is(other); empty {
		t.Error("a room to which something was added counts as one in which nothing waits")
	}
}

func TestInInboxUntilDeleted(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "client.db"))
	look := func(step string, want bool) {
		t.Helper()
		if got, err := s.InInbox(t.Context(), room, "$e"); err != nil || got != want {
			t.Errorf("%s: %v, %v", step, got, err)
		}
	}
	look("before", false)
	if err := s.AddInbox(t.Context(), &InboxItem{Room: room, EventID: "$e", Data: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	look("added", true)
	if err := s.DeleteInbox(t.Context(), room, "$e"); err != nil {
		t.Fatal(err)
	}
	look("deleted", false)
}

func TestTimelinePages(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "client.db"))
	ctx := t.Context()
	for i := range 5 {
		if err := s.AddTimeline(ctx, &TimelineItem{Room: room, EventID: id.EventID(fmt.Sprint("$", i)), Type: "t", Data: []byte{byte(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	ids := func(all []*TimelineItem, err error) (out string) {
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range all {
			out += item.EventID.String()
		}
		return out
	}
	last, err := s.TimelineEvent(ctx, room, "$4")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ name, got, want string }{
		{"newest two", ids(s.Timeline(ctx, room, 0, 2)), "$3$4"},
		{"before the last", ids(s.Timeline(ctx, room, last.Seq, 2)), "$2$3"},
		{"since", ids(s.TimelineSince(ctx, "", last.Seq-2, 10)), "$3$4"},
		{"other room", ids(s.TimelineSince(ctx, other, 0, 10)), ""},
	} {
		if row.got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, row.got, row.want)
		}
	}
}

func TestUpdateTimelineReplacesTheEcho(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "client.db"))
	ctx := t.Context()
	own := &TimelineItem{Room: room, EventID: "~txn", Mid: "m", Sender: "@a:one", Type: "t", Data: []byte("mine")}
	echo := &TimelineItem{Room: room, EventID: "$real", Mid: "m", Sender: "@a:one", Type: "t", Data: []byte("echo")}
	if err := errors.Join(s.AddTimeline(ctx, own), s.AddTimeline(ctx, echo)); err != nil {
		t.Fatal(err)
	}
	own.EventID = "$real"
	if err := s.UpdateTimeline(ctx, own); err != nil {
		t.Fatal(err)
	}
	all, err := s.Timeline(ctx, room, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]*TimelineItem{{Seq: own.Seq, Room: room, EventID: "$real", Mid: "m", Sender: "@a:one", Type: "t", Data: []byte("mine")}}, all); d != "" {
		t.Error(d)
	}
}

// TestRelated: of what is related to an event, what was redacted, what has not gone out and what is in another room do not count.
func TestRelated(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "client.db"))
	ctx := t.Context()
	const edit, thread = "m.replace", "m.thread"
	for _, item := range []*TimelineItem{
		{Room: room, EventID: "$root", Mid: "0", Sender: "@a:one"},
		{Room: room, EventID: "$e1", Mid: "1", Sender: "@a:one", Timestamp: 9, Target: "$root", Relation: edit},
		{Room: room, EventID: "$e3", Mid: "2", Sender: "@a:one", Timestamp: 7, Target: "$root", Relation: edit},
		{Room: room, EventID: "$e2", Mid: "3", Sender: "@a:one", Timestamp: 9, Target: "$root", Relation: edit},
		{Room: room, EventID: "$other", Mid: "4", Sender: "@b:one", Timestamp: 99, Target: "$root", Relation: edit},
		{Room: room, EventID: "~pending", Mid: "5", Sender: "@a:one", Timestamp: 99, Target: "$root", Relation: edit},
		{Room: other, EventID: "$e9", Mid: "6", Sender: "@a:one", Timestamp: 99, Target: "$root", Relation: edit},
		{Room: room, EventID: "$t1", Mid: "7", Sender: "@b:one", Timestamp: 99, Target: "$root", Relation: thread},
		{Room: room, EventID: "$t2", Mid: "8", Sender: "@a:one", Timestamp: 5, Target: "$root", Relation: thread},
		{Room: room, EventID: "$t3", Mid: "9", Sender: "@c:one", Timestamp: 5, Target: "$root", Relation: thread},
	} {
		if err := s.AddTimeline(ctx, item); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, edits, relations string, count int, by bool, last id.EventID) {
		t.Helper()
		list, err := s.NewestBy(ctx, room, "$root", edit, "@a:one", 2)
		var got string
		for _, item := range list {
			got += item.EventID.String()
		}
		kinds, err2 := s.Relations(ctx, room, "$root")
		slices.Sort(kinds)
		n, own, newest, err3 := s.Related(ctx, room, "$root", thread, "@c:one")
		if err := errors.Join(err, err2, err3); err != nil {
			t.Fatal(err)
		}
		if got != edits || strings.Join(kinds, " ") != relations || n != count || own != by || count > 0 && newest.EventID != last || count == 0 && newest != nil {
			t.Errorf("%s: edits %s, relations %q, %d in the thread, by the user %t, last %+v", when, got, kinds, n, own, newest)
		}
	}
	check("at first", "$e2$e1", "m.replace m.thread", 3, true, "$t3")
	for _, event := range []id.EventID{"$e2", "$t3"} {
		if err := s.RedactTimeline(ctx, room, event, func([]byte) ([]byte, error) { return nil, nil }); err != nil {
			t.Fatal(err)
		}
	}
	check("after redactions", "$e1$e3", "m.replace m.thread", 2, false, "$t2")
	for _, event := range []id.EventID{"$t1", "$t2"} {
		item, err := s.TimelineEvent(ctx, room, event)
		if err == nil {
			err = s.Relate(ctx, item.Seq, "", "")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	check("without a thread", "$e1$e3", "m.replace", 0, false, "")
}

func TestInboxRooms(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "client.db"))
	ctx := t.Context()
	for _, item := range []*InboxItem{{Room: other, EventID: "$1"}, {Room: room, EventID: "$2"}, {Room: other, EventID: "$3"}} {
		if err := s.AddInbox(ctx, item); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.InboxRooms(ctx)
	if d := cmp.Diff([]id.RoomID{room, other}, got); err != nil || d != "" {
		t.Error(err, d)
	}
}

func TestWipeEmptiesEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "client.db")
	s := openTest(t, path)
	ctx := t.Context()
	if err := errors.Join(s.PutAccount(ctx, &Account{UserID: "@a:one"}), s.PutKV(ctx, "k", nil), s.PutRoom(ctx, room, nil)); err != nil {
		t.Fatal(err)
	}
	if err := s.Wipe(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Account(ctx); !errors.Is(err, ErrNotFound) {
		t.Errorf("account: got %v", err)
	}
	if _, err := s.GetKV(ctx, "k"); !errors.Is(err, ErrNotFound) {
		t.Errorf("kv: got %v", err)
	}
	s.Close()
	if s, err := Open(ctx, Options{Path: path, Key: testKey}); err != nil {
		t.Errorf("open after a wipe: %v", err)
	} else {
		s.Close()
	}
}

func TestLoadKey(t *testing.T) {
	env := func(kv map[string]string) func(string) string { return func(k string) string { return kv[k] } }
	write := func(t *testing.T, path, content string, mode os.FileMode) string {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\n"
	t.Run("made on first use, then the same", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state", "store.key")
		a, err := LoadKey(KeyOptions{Path: path, Getenv: env(nil)})
		if err != nil {
			t.Fatal(err)
		}
		b, err := LoadKey(KeyOptions{Path: path, Getenv: env(nil)})
		if err != nil || !bytes.Equal(a, b) || len(a) != KeySize {
			t.Errorf("second load: %v, same %v, length %d", err, bytes.Equal(a, b), len(a))
		}
		if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v", info.Mode())
		}
	})
	t.Run("environment", func(t *testing.T) {
		path := write(t, filepath.Join(t.TempDir(), "k"), good, 0o600)
		k, err := LoadKey(KeyOptions{Path: "/nonexistent/k", Getenv: env(map[string]string{KeyFileEnv: path})})
		if err != nil || !bytes.Equal(k, testKey) {
			t.Errorf("got %v, equal %v", err, bytes.Equal(k, testKey))
		}
	})
	t.Run("systemd credential", func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, CredentialName), good, 0o400)
		k, err := LoadKey(KeyOptions{Path: "/nonexistent/k", Getenv: env(map[string]string{"CREDENTIALS_DIRECTORY": dir})})
		if err != nil || !bytes.Equal(k, testKey) {
			t.Errorf("got %v, equal %v", err, bytes.Equal(k, testKey))
		}
	})
	for _, row := range []struct {
		name, content string
		mode          os.FileMode
		want          string
	}{
		{"readable by others", good, 0o644, "can be read by others"},
		{"wrong length", "BwcH\n", 0o600, "32 bytes"},
		{"not base64", "!!!\n", 0o600, "32 bytes"},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := write(t, filepath.Join(t.TempDir(), "k"), row.content, row.mode)
			_, err := LoadKey(KeyOptions{Path: path, Getenv: env(nil)})
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q", err, row.want)
			}
		})
	}
	t.Run("no new key for an old store", func(t *testing.T) {
		dir := t.TempDir()
		db := write(t, filepath.Join(dir, "client.db"), "x", 0o600)
		_, err := LoadKey(KeyOptions{Path: filepath.Join(dir, "store.key"), Store: db, Getenv: env(nil)})
		if err == nil || !strings.Contains(err.Error(), "restore the key file") {
			t.Errorf("got %v", err)
		}
	})
}

func TestKeyNeverPrints(t *testing.T) {
	j, err := json.Marshal(testKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range []string{fmt.Sprint(testKey), fmt.Sprintf("%x", testKey), fmt.Sprintf("%#v", testKey), fmt.Sprintf("%v", struct{ K Key }{testKey}), string(j)} {
		if !strings.Contains(got, "[secret]") {
			t.Errorf("printed %q", got)
		}
	}
}

// TestDoSoonDoesNotWait tells writes that wait for the disk from those that do not.
func TestDoSoonDoesNotWait(t *testing.T) {
	ctx := t.Context()
	durable := 0
	s, err := Open(ctx, Options{Path: filepath.Join(t.TempDir(), "client.db"), Key: testKey, OnDurable: func() { durable++ }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	mode := func(ctx context.Context) (level int) {
		if err := s.one(ctx, "", "PRAGMA synchronous", nil, &level); err != nil {
			t.Fatal(err)
		}
		return level
	}
	var whole int // macOS waits for the disk itself only then
	if err := s.one(ctx, "", "PRAGMA fullfsync", nil, &whole); err != nil || whole != 1 {
		t.Errorf("fullfsync=%d (%v), want 1", whole, err)
	}
	const normal, full = 1, 2
	put := func(ctx context.Context) error { return s.PutKV(ctx, "key", []byte("value")) }
	for _, row := range []struct {
		name  string
		write func(want *int) error
		level int
		waits int
	}{
		{"at first", func(got *int) error {
			return s.Do(ctx, func(ctx context.Context) error { *got = mode(ctx); return put(ctx) })
		}, full, 1},
		{"soon", func(got *int) error {
			return s.DoSoon(ctx, func(ctx context.Context) error { *got = mode(ctx); return put(ctx) })
		}, normal, 0},
		{"a Do inside", func(got *int) error {
			return s.DoSoon(ctx, func(ctx context.Context) error {
				return s.Do(ctx, func(ctx context.Context) error { *got = mode(ctx); return put(ctx) })
			})
		}, normal, 0},
		{"a Do after it", func(got *int) error {
			return s.Do(ctx, func(ctx context.Context) error { *got = mode(ctx); return put(ctx) })
		}, full, 1},
		{"soon inside of a Do", func(got *int) error {
			return s.Do(ctx, func(ctx context.Context) error {
				return s.DoSoon(ctx, func(ctx context.Context) error { *got = mode(ctx); return put(ctx) })
			})
		}, full, 1},
		{"soon and undone", func(got *int) error {
			err := s.DoSoon(ctx, func(ctx context.Context) error { *got = mode(ctx); return ErrNotFound })
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("a transaction that fails says %v", err)
			}
			return nil
		}, normal, 0},
		{"one statement", func(got *int) error { err := put(ctx); *got = mode(ctx); return err }, full, 1},
		{"soon once more", func(got *int) error {
			return s.DoSoon(ctx, func(ctx context.Context) error { *got = mode(ctx); return put(ctx) })
		}, normal, 0},
		{"a row that gets a number", func(got *int) error {
			err := s.AddOutbox(ctx, &OutboxItem{Room: room, TxnID: "t", Kind: "chat", State: "ready", Data: []byte("data")})
			*got = mode(ctx)
			return err
		}, full, 1},
		{"soon, again", func(got *int) error {
			return s.DoSoon(ctx, func(ctx context.Context) error { *got = mode(ctx); return put(ctx) })
		}, normal, 0},
		{"settled", func(got *int) error { err := s.Settle(ctx); *got = mode(ctx); return err }, full, 1},
		{"settled already", func(got *int) error { err := s.Settle(ctx); *got = mode(ctx); return err }, full, 0},
	} {
		durable = 0
		var got int
		if err := row.write(&got); err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		if got != row.level || durable != row.waits {
			t.Errorf("%s: synchronous=%d, waited %d times, want %d and %d", row.name, got, durable, row.level, row.waits)
		}
	}
}

// TestUnsettledSaysOnceWhatWaits: who settles learns of the first write that may be lost,
// and of one that a Do has made durable meanwhile only once.
func TestUnsettledSaysOnceWhatWaits(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "client.db")
	durable := 0
	open := func() *Store {
		s, err := Open(ctx, Options{Path: path, Key: testKey, OnDurable: func() { durable++ }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	put := func(ctx context.Context) error { return s.PutKV(ctx, "key", []byte("value")) }
	waits := func() bool {
		select {
		case <-s.Unsettled():
			return true
		default:
			return false
		}
	}
	settles := func(when string, want int) {
		t.Helper()
		durable = 0
		if err := s.Settle(ctx); err != nil || durable != want {
			t.Errorf("%s: settling waited %d times for the disk, want %d (%v)", when, durable, want, err)
		}
	}
	waits() // from when it was opened
	settles("a store that was made just now", 0)
	for range 3 {
		if err := s.DoSoon(ctx, put); err != nil {
			t.Fatal(err)
		}
	}
	if !waits() || waits() {
		t.Error("three writes are not said once")
	}
	settles("three writes", 1)
	settles("nothing more", 0)
	if err := errors.Join(s.DoSoon(ctx, put), s.Do(ctx, put)); err != nil {
		t.Fatal(err)
	}
	settles("a Do has", 0)
	// One that reads has not.
	if err := errors.Join(s.DoSoon(ctx, put), s.Do(ctx, func(context.Context) error { return nil })); err != nil {
		t.Fatal(err)
	}
	settles("a Do that wrote nothing", 1)
	// What the process before left may not be on disk.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer s.Close()
	if !waits() {
		t.Error("after a start nothing is said to wait")
	}
	settles("after a start", 1)
}

// The write-ahead log is folded into the file by who asks for it, not by a write that somebody waits for.
func TestFold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	s, err := Open(t.Context(), Options{Path: path, Key: make(Key, 32)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	if err := s.Fold(t.Context()); err != nil { // the schema
		t.Fatal(err)
	}
	before := size()
	for n := 0; !s.Grown(); n++ {
		if n > 2*foldAfter {
			t.Fatal("it is never time to fold")
		}
		if err := s.PutKV(t.Context(), fmt.Sprint("key", n), make([]byte, 20_000)); err != nil { // 5 pages
			t.Fatal(err)
		}
	}
	if n := size(); n != before {
		t.Errorf("a write has folded the log: %d bytes, %d before", n, before)
	}
	// What failed is tried again soon.
	failing, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Fold(failing); err == nil || size() != before {
		t.Fatal("folded with a context that has ended")
	}
	for n := 0; !s.Grown(); n++ {
		if n > foldAfter/8 {
			t.Fatal("after it failed it is long not time to fold")
		}
		if err := s.PutKV(t.Context(), fmt.Sprint("again", n), make([]byte, 20_000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := size(); n < before+foldAfter*20_000 || s.Grown() {
		t.Errorf("after it was folded the file has %d bytes, %d before", n, before)
	}
	if got, err := s.GetKV(t.Context(), "key0"); err != nil || len(got) != 20_000 {
		t.Errorf("%d bytes (%v)", len(got), err)
	}
}
