package store_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
)

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Unix(1_800_000_000, 0)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func event(n int, room string) *store.InboxEvent {
	key := ""
	return &store.InboxEvent{
		EventID: id.EventID(fmt.Sprintf("$%s-%d", room, n)), Room: id.RoomID(room), Sender: "@u:test", Type: "m.room.member",
		StateKey: &key, Raw: json.RawMessage(`{"n":1}`), Source: store.SourceTransaction,
	}
}

func ids[T any](list []T, get func(T) id.EventID) (out []id.EventID) {
	for _, x := range list {
		out = append(out, get(x))
	}
	return out
}

func TestInboxKnowsEventsByID(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx, c := context.Background(), newClock()
		st := storetest.Open(t, cfg, c.now)
		first := []*store.InboxEvent{event(1, "!a"), event(2, "!a"), event(1, "!b")}
		fresh, err := st.PutInbox(ctx, first...)
		if err != nil || len(fresh) != 3 {
			t.Fatalf("first time: %d new, %v", len(fresh), err)
		}
		other := event(1, "!a")
		other.Raw = json.RawMessage(`{"n":2}`)
		fresh, err = st.PutInbox(ctx, other, event(3, "!a"))
		if err != nil || len(fresh) != 1 || fresh[0].EventID != "$!a-3" {
			t.Fatalf("repeat: %v new, %v", ids(fresh, func(e *store.InboxEvent) id.EventID { return e.EventID }), err)
		}
		rows, err := st.NextInbox(ctx, 10)
		if err != nil {
			t.Fatal(err)
		}
		want := []id.EventID{"$!a-1", "$!a-2", "$!b-1", "$!a-3"}
		if diff := cmp.Diff(want, ids(rows, func(e *store.InboxEvent) id.EventID { return e.EventID })); diff != "" {
			t.Errorf("order of arrival was lost: %s", diff)
		}
		if string(rows[0].Raw) != `{"n":1}` {
			t.Errorf("a repeat replaced the event: %s", rows[0].Raw)
		}
		if err := st.FinishInbox(ctx, "$!a-1", store.InboxDone, ""); err != nil {
			t.Fatal(err)
		}
		if err := st.FinishInbox(ctx, "$!a-2", store.InboxRefused, "codec/x"); err != nil {
			t.Fatal(err)
		}
		if err := st.FinishInbox(ctx, "$!b-1", store.InboxWaiting, ""); err != nil {
			t.Fatal(err)
		}
		if rows, _ = st.NextInbox(ctx, 10); len(rows) != 1 || rows[0].EventID != "$!a-3" {
			t.Errorf("finished events come again: %d", len(rows))
		}
		if ev, err := st.Inbox(ctx, "$!a-2"); err != nil || ev.Rule != "codec/x" || ev.StateKey == nil {
			t.Errorf("refused event reads back as %+v, %v", ev, err)
		}
		if rows, err := st.RoomInbox(ctx, "!b", store.InboxWaiting, 5); err != nil || len(rows) != 1 {
			t.Errorf("waiting events of a room: %d, %v", len(rows), err)
		}
		if _, err := st.Inbox(ctx, "$none"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("unknown event: %v, want ErrNotFound", err)
		}

		c.add(48 * time.Hour)
		if err := st.TrimInbox(ctx, 24*time.Hour, 72*time.Hour); err != nil {
			t.Fatal(err)
		}
		if ev, err := st.Inbox(ctx, "$!a-1"); err != nil || len(ev.Raw) != 0 {
			t.Errorf("old text of a finished event stayed: %+v, %v", ev, err)
		}
		if ev, err := st.Inbox(ctx, "$!a-3"); err != nil || len(ev.Raw) == 0 {
			t.Errorf("text of an unfinished event went: %+v, %v", ev, err)
		}
		c.add(48 * time.Hour)
		if err := st.TrimInbox(ctx, 24*time.Hour, 72*time.Hour); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Inbox(ctx, "$!a-1"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("an old finished event stayed: %v", err)
		}
		if n, oldest, err := st.CountInbox(ctx, store.InboxNew); err != nil || n != 1 || oldest.IsZero() {
			t.Errorf("CountInbox = %d, %v, %v", n, oldest, err)
		}
	})
}

func TestInboxTakesHostileText(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		st := storetest.Open(t, cfg, nil)
		ev := event(1, "!a")
		ev.Sender, ev.Type, ev.Raw = "@\x00:\xff", "t\x00", json.RawMessage("{\"x\":\"\xff\x00\"}")
		if _, err := st.PutInbox(ctx, ev); err != nil {
			t.Fatalf("an event's text failed the database: %v", err)
		}
		if err := st.PutRefusal(ctx, &store.Refusal{Room: "!\x00", Event: "$\xfe", Rule: "r", Detail: strings.Repeat("é\x00", 400)}); err != nil {
			t.Fatalf("a refusal's text failed the database: %v", err)
		}
	})
}

func TestInboxParallelRepeatsHaveOneEffect(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		st := storetest.Open(t, cfg, nil)
		var wg sync.WaitGroup
		var mu sync.Mutex
		total := 0
		for range 20 {
			wg.Go(func() {
				fresh, err := st.PutInbox(ctx, event(1, "!a"), event(2, "!a"))
				mu.Lock()
				defer mu.Unlock()
				total += len(fresh)
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if total != 2 {
			t.Errorf("%d events counted as new, want 2", total)
		}
	})
}

func put(t *testing.T, st *store.Store, room string, priority int, tag string) *store.OutboxRow {
	t.Helper()
	row := &store.OutboxRow{Room: id.RoomID(room), Type: "x", Content: json.RawMessage(`{"a":1}`), Priority: priority, Tag: tag}
	if err := st.PutOutbox(context.Background(), row); err != nil {
		t.Fatal(err)
	}
	return row
}

func tags(rows []*store.OutboxRow) (out []string) {
	for _, r := range rows {
		out = append(out, r.Tag)
	}
	return out
}

func TestOutboxOrder(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx, c := context.Background(), newClock()
		st := storetest.Open(t, cfg, c.now)
		a1 := put(t, st, "!a", store.PriorityRest, "a-rest-1")
		put(t, st, "!a", store.PriorityRest, "a-rest-2")
		a3 := put(t, st, "!a", store.PriorityReceipt, "a-receipt-1")
		put(t, st, "!a", store.PriorityReceipt, "a-receipt-2")
		put(t, st, "!b", store.PriorityProposal, "b-proposal-1")

		due := func() []string {
			rows, err := st.DueOutbox(ctx, 10)
			if err != nil {
				t.Fatal(err)
			}
			return tags(rows)
		}
		if diff := cmp.Diff([]string{"a-receipt-1", "b-proposal-1", "a-rest-1"}, due()); diff != "" {
			t.Error(diff)
		}
		// A row that must wait holds back those behind it in its room and
		// priority, and no others.
		if err := st.RetryOutbox(ctx, a3.ID, c.now().Add(time.Minute), "no"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"b-proposal-1", "a-rest-1"}, due()); diff != "" {
			t.Error(diff)
		}
		if err := st.SentOutbox(ctx, a1.ID, "$sent"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"b-proposal-1", "a-rest-2"}, due()); diff != "" {
			t.Error(diff)
		}
		c.add(time.Minute)
		rows, err := st.DueOutbox(ctx, 1)
		if err != nil || len(rows) != 1 || rows[0].Tag != "a-receipt-1" || rows[0].Attempts != 1 || rows[0].TxnID != a3.TxnID {
			t.Errorf("the retried row reads back as %+v, %v", rows, err)
		}
		if at, waiting, err := st.NextDue(ctx); err != nil || !waiting || at.After(c.now()) {
			t.Errorf("NextDue = %v, %v, %v", at, waiting, err)
		}

		settled, err := st.SettledOutbox(ctx, 10)
		if err != nil || len(settled) != 1 || settled[0].EventID != "$sent" {
			t.Fatalf("SettledOutbox = %+v, %v", settled, err)
		}
		if err := st.FailOutbox(ctx, a3.ID, "forbidden"); err != nil {
			t.Fatal(err)
		}
		for _, rowID := range []int64{a1.ID, a3.ID} {
			if err := st.AckOutbox(ctx, rowID); err != nil {
				t.Fatal(err)
			}
		}
		if settled, _ = st.SettledOutbox(ctx, 10); len(settled) != 0 {
			t.Errorf("%d rows are told twice", len(settled))
		}
		if n, _, _, err := st.CountOutbox(ctx, store.OutboxRefused); err != nil || n != 1 {
			t.Errorf("refused = %d, %v", n, err)
		}
		if rows, err := st.TaggedOutbox(ctx, "!a", "a-rest-1"); err != nil || len(rows) != 1 || rows[0].Status != store.OutboxDone {
			t.Errorf("TaggedOutbox = %+v, %v", rows, err)
		}
		c.add(time.Hour)
		if err := st.TrimOutbox(ctx, time.Minute); err != nil {
			t.Fatal(err)
		}
		if n, _, _, _ := st.CountOutbox(ctx, store.OutboxDone); n != 0 {
			t.Errorf("%d sent rows stayed", n)
		}
		if n, _, _, _ := st.CountOutbox(ctx, store.OutboxWaiting); n != 3 {
			t.Errorf("%d rows wait, want 3", n)
		}
	})
}

func TestOutboxTransactionIDsDiffer(t *testing.T) {
	st := storetest.Open(t, storetest.SQLite(t), nil)
	seen := make(map[string]bool)
	for range 50 {
		row := put(t, st, "!a", 0, "")
		if seen[row.TxnID] {
			t.Fatal("a transaction id came twice")
		}
		seen[row.TxnID] = true
	}
	if err := st.PutOutbox(context.Background(), &store.OutboxRow{Room: "!a", Type: "x", Content: json.RawMessage("{")}); err == nil {
		t.Error("content that is no JSON was taken")
	}
}

func TestTransactionIsWholeOrNothing(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		st := storetest.Open(t, cfg, nil)
		if _, err := st.PutInbox(ctx, event(1, "!a")); err != nil {
			t.Fatal(err)
		}
		broken := errors.New("broken")
		err := st.Tx(ctx, func(ctx context.Context) error {
			if err := st.LockRoom(ctx, "!a"); err != nil {
				return err
			}
			if err := st.PutRoom(ctx, &store.Room{ID: "!a", Status: store.RoomServing}); err != nil {
				return err
			}
			if err := st.PutOutbox(ctx, &store.OutboxRow{Room: "!a", Type: "x", Content: json.RawMessage("{}")}); err != nil {
				return err
			}
			if err := st.FinishInbox(ctx, "$!a-1", store.InboxDone, ""); err != nil {
				return err
			}
			return broken
		})
		if !errors.Is(err, broken) {
			t.Fatalf("Tx = %v, want the error of its function", err)
		}
		if _, err := st.Room(ctx, "!a"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the room stayed: %v", err)
		}
		if n, _, _, _ := st.CountOutbox(ctx, store.OutboxWaiting); n != 0 {
			t.Error("the row to send stayed")
		}
		if ev, _ := st.Inbox(ctx, "$!a-1"); ev.Status != store.InboxNew {
			t.Error("the mark on the event stayed")
		}
	})
}

func TestPanicUndoesTheTransaction(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		cfg.MaxOpenConns = 1 // a connection that is not given back stops everything
		ctx := context.Background()
		st := storetest.Open(t, cfg, nil)
		for range 3 {
			func() {
				defer func() {
					if cause := recover(); cause == nil || !strings.Contains(fmt.Sprint(cause), "planted") {
						t.Errorf("recovered %v, want the planted panic", cause)
					}
				}()
				_ = st.Tx(ctx, func(ctx context.Context) error {
					if err := st.NoteRoom(ctx, "!a", store.RoomJoined); err != nil {
						return err
					}
					return st.Tx(ctx, func(context.Context) error { panic("planted") })
				})
			}()
		}
		if known, err := st.KnownRooms(ctx); err != nil || len(known) != 0 {
			t.Errorf("rooms = %v, %v after the panic", known, err)
		}
	})
}

func TestRoomsAndGroups(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx, c := context.Background(), newClock()
		st := storetest.Open(t, cfg, c.now)
		if err := st.NoteRoom(ctx, "!a", store.RoomInvited); err != nil {
			t.Fatal(err)
		}
		room := &store.Room{ID: "!a", Status: store.RoomServing, GroupID: "00ff", Head: "aa", Epoch: 7, Token: "t1",
			LastEvent: "$x", Machine: []byte{0, 1, 255}, Data: json.RawMessage(`{"k":1}`)}
		if err := st.PutRoom(ctx, room); err != nil {
			t.Fatal(err)
		}
		if err := st.NoteRoom(ctx, "!a", store.RoomInvited); err != nil {
			t.Fatal(err)
		}
		got, err := st.Room(ctx, "!a")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(room, got, cmpopts.IgnoreFields(store.Room{}, "UpdatedAt")); diff != "" {
			t.Error(diff)
		}
		if err := errors.Join(st.SetRoomToken(ctx, "!a", "t2", "$y"), st.SetRoomStatus(ctx, "!a", store.RoomLeft)); err != nil {
			t.Fatal(err)
		}
		if all, err := st.Rooms(ctx); err != nil || len(all) != 1 || all[0].Token != "t2" || all[0].Status != store.RoomLeft {
			t.Errorf("Rooms = %+v, %v", all, err)
		}
		if known, err := st.KnownRooms(ctx); err != nil || known["!a"] != store.RoomLeft {
			t.Errorf("KnownRooms = %v, %v", known, err)
		}

		commit := &store.Commit{Ref: "r1", Parent: "r0", Epoch: 1, EventID: "$c", Sender: "@u:t", Status: "seen", Content: json.RawMessage(`{"m":"x"}`)}
		sibling := &store.Commit{Ref: "r2", Parent: "r0", Epoch: 1, EventID: "$d", Sender: "@v:t", Status: "seen", Content: json.RawMessage(`{}`)}
		if err := errors.Join(st.PutCommit(ctx, "!a", commit), st.PutCommit(ctx, "!a", sibling), st.SetCommitStatus(ctx, "!a", "r1", "accepted")); err != nil {
			t.Fatal(err)
		}
		commit.Status = "accepted"
		if got, err := st.Commit(ctx, "!a", "r1"); err != nil || cmp.Diff(commit, got) != "" {
			t.Errorf("Commit: %v %s", err, cmp.Diff(commit, got))
		}
		if kids, err := st.Children(ctx, "!a", "r0"); err != nil || len(kids) != 2 || kids[0].Ref != "r1" {
			t.Errorf("Children = %+v, %v", kids, err)
		}
		if got, err := st.CommitByEvent(ctx, "!a", "$d"); err != nil || got.Ref != "r2" {
			t.Errorf("CommitByEvent = %+v, %v", got, err)
		}
		if err := errors.Join(st.PutGroup(ctx, "!a", "r1", []byte{1, 0, 2}), st.PutGroup(ctx, "!a", "r1", []byte{3, 0})); err != nil {
			t.Fatal(err)
		}
		if state, err := st.Group(ctx, "!a", "r1"); err != nil || !cmp.Equal(state, []byte{3, 0}) {
			t.Errorf("Group = %v, %v", state, err)
		}
		receipt := &store.Receipt{Hash: "h1", Kind: "accept", Signer: "k", Ref: "r1", Counter: 1, Content: json.RawMessage(`{}`)}
		if err := st.PutReceipt(ctx, "!a", receipt); err != nil {
			t.Fatal(err)
		}
		seen := *receipt
		seen.EventID = "$e"
		again := seen
		again.EventID = "$later"
		if err := errors.Join(st.PutReceipt(ctx, "!a", &seen), st.PutReceipt(ctx, "!a", &again),
			st.PutReceipt(ctx, "!a", &store.Receipt{Hash: "h2", Kind: "vote", Signer: "k", Ref: "r1", Counter: 2, Content: json.RawMessage(`{}`)})); err != nil {
			t.Fatal(err)
		}
		if got, err := st.Receipt(ctx, "!a", "h1"); err != nil || got.EventID != "$e" {
			t.Errorf("Receipt = %+v, %v", got, err)
		}
		if got, err := st.NewestReceipt(ctx, "!a", "k"); err != nil || got.Hash != "h2" {
			t.Errorf("NewestReceipt = %+v, %v", got, err)
		}
		if err := st.PutMedia(ctx, "!a", &store.Media{SHA256: "s", URI: "mxc://t/1", Size: 3, Purpose: "tree", Ref: "r1"}); err != nil {
			t.Fatal(err)
		}
		if list, err := st.RoomMedia(ctx, "!a", "tree", 5); err != nil || len(list) != 1 || list[0].URI != "mxc://t/1" {
			t.Errorf("RoomMedia = %+v, %v", list, err)
		}
		if err := st.PutGroup(ctx, "!unknown", "r", nil); err == nil {
			t.Error("a group of an unknown room was stored: foreign keys are off")
		}
		if err := st.DeleteRoom(ctx, "!a"); err != nil {
			t.Fatal(err)
		}
		if n, err := st.CountCommits(ctx, "!a"); err != nil || n != 0 {
			t.Errorf("%d commits outlived their room, %v", n, err)
		}
		if _, err := st.Group(ctx, "!a", "r1"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a group outlived its room: %v", err)
		}
	})
}

func TestKeysAreNeverReplaced(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		st := storetest.Open(t, cfg, nil)
		if made, err := st.PutNewKey(ctx, "receipt", []byte{1}); err != nil || !made {
			t.Fatalf("first key: %v, %v", made, err)
		}
		if made, err := st.PutNewKey(ctx, "receipt", []byte{2}); err != nil || made {
			t.Fatalf("second key of that name: %v, %v", made, err)
		}
		if key, err := st.Key(ctx, "receipt"); err != nil || !cmp.Equal(key, []byte{1}) {
			t.Errorf("Key = %v, %v", key, err)
		}
		if v, err := st.Get(ctx, "none"); err != nil || v != "" {
			t.Errorf("Get of nothing = %q, %v", v, err)
		}
		if err := errors.Join(st.Set(ctx, "n", "1"), st.Set(ctx, "n", "2")); err != nil {
			t.Fatal(err)
		}
		if v, err := st.Get(ctx, "n"); err != nil || v != "2" {
			t.Errorf("Get = %q, %v", v, err)
		}
		for i := range 5 {
			if err := st.PutRefusal(ctx, &store.Refusal{Rule: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := st.TrimRefusals(ctx, 2); err != nil {
			t.Fatal(err)
		}
		if list, err := st.Refusals(ctx, 10); err != nil || len(list) != 2 || list[0].Rule != "4" {
			t.Errorf("Refusals = %+v, %v", list, err)
		}
	})
}

func TestSurvivesReopening(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		st := storetest.Open(t, cfg, nil)
		if v, err := st.Version(ctx); err != nil || v != store.SchemaVersion() {
			t.Fatalf("Version = %d, %v", v, err)
		}
		if _, err := st.PutInbox(ctx, event(1, "!a")); err != nil {
			t.Fatal(err)
		}
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
		st = storetest.Open(t, cfg, nil)
		if rows, err := st.NextInbox(ctx, 5); err != nil || len(rows) != 1 {
			t.Errorf("after reopening: %d rows, %v", len(rows), err)
		}
	})
}

func faultSchemas(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		driver := map[string]string{"sqlite3": "sqlite", "postgres": "postgres"}[cfg.Type]
		raw, err := sql.Open(driver, cfg.URI)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		if _, err := raw.Exec("CREATE TABLE state_groups_state (x TEXT)"); err != nil {
			t.Fatal(err)
		}
		st, err := store.Open(ctx, cfg, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if err := st.Upgrade(ctx); !errors.Is(err, store.ErrForeignTables) {
			t.Errorf("Synapse's database: %v, want ErrForeignTables", err)
		}
		if _, err := raw.Exec("DROP TABLE state_groups_state"); err != nil {
			t.Fatal(err)
		}
		if err := st.Upgrade(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := raw.Exec("UPDATE version SET version=999, compat=998"); err != nil {
			t.Fatal(err)
		}
		if err := st.Upgrade(ctx); !errors.Is(err, store.ErrSchemaTooNew) {
			t.Errorf("newer schema: %v, want ErrSchemaTooNew", err)
		}
	})
}

func TestSQLiteIsDurableAndPrivate(t *testing.T) {
	ctx, cfg := context.Background(), storetest.SQLite(t)
	cfg.URI += "?_pragma=synchronous(OFF)&_pragma=foreign_keys(0)"
	st := storetest.Open(t, cfg, nil)
	for name, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "fullfsync": "1", "foreign_keys": "1", "busy_timeout": "5000"} {
		if got, err := st.Setting(ctx, name); err != nil || got != want {
			t.Errorf("%s = %q, %v, want %q", name, got, err, want)
		}
	}
	info, err := os.Stat(st.Path())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, %v, want 0600", info.Mode(), err)
	}
	if copied, err := st.CopyBeforeUpgrade(ctx, 1); err != nil {
		t.Error(err)
	} else if info, err := os.Stat(copied); err != nil || info.Size() == 0 || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy is %+v, %v", info, err)
	}
	if _, err := st.Setting(ctx, "x; DROP TABLE kv"); err == nil {
		t.Error("a setting's name was not checked")
	}
	if _, err := store.Open(ctx, store.Config{Type: "sqlite3", URI: ":memory:"}, time.Now); err == nil {
		t.Error("a database in memory was opened")
	}
}

func TestPostgresHasTimeouts(t *testing.T) {
	ctx := context.Background()
	cfg := storetest.Postgres(t)
	cfg.URI += "&idle_in_transaction_session_timeout=5000"
	st := storetest.Open(t, cfg, nil)
	for name, want := range map[string]string{"statement_timeout": "30s", "idle_in_transaction_session_timeout": "5s"} {
		if got, err := st.Setting(ctx, name); err != nil || got != want {
			t.Errorf("%s = %q, %v, want %q", name, got, err, want)
		}
	}
}

func TestOpenErrorsHideThePassword(t *testing.T) {
	_, err := store.Open(context.Background(), store.Config{Type: "postgres", URI: "postgres://mls:hunter2secret@127.0.0.1:1/x?sslmode=disable"}, time.Now)
	if err == nil {
		t.Fatal("a database that is not there was opened")
	}
	if strings.Contains(err.Error(), "hunter2secret") {
		t.Errorf("the error shows the password: %v", err)
	}
	for _, uri := range []string{
		"postgres://mls:hunter2secret@[::bad", "postgres://mls:hunter2secret%zz@127.0.0.1/x",
		"host=127.0.0.1 port=1 user=mls password=hunter2secret sslmode=disable", "password=hunter2secret nonsense",
	} {
		_, err = store.Open(context.Background(), store.Config{Type: "postgres", URI: uri}, time.Now)
		if err == nil || strings.Contains(err.Error(), "hunter2secret") {
			t.Errorf("%v", err)
		}
	}
}

func TestTheNewestProcessOwnsTheDatabase(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		first, second := storetest.Open(t, cfg, nil), storetest.Open(t, cfg, nil)
		write := func(st *store.Store, room string) error {
			return st.Tx(ctx, func(ctx context.Context) error {
				return st.Tx(ctx, func(ctx context.Context) error { return st.NoteRoom(ctx, id.RoomID(room), store.RoomInvited) })
			})
		}
		if err := first.Own(ctx); err != nil {
			t.Fatal(err)
		}
		if err := write(first, "!a"); err != nil {
			t.Fatalf("before the other came: %v", err)
		}
		if err := second.Own(ctx); err != nil {
			t.Fatal(err)
		}
		if err := write(first, "!b"); !errors.Is(err, store.ErrTakenOver) {
			t.Errorf("the older process wrote: %v", err)
		}
		if err := write(second, "!c"); err != nil {
			t.Errorf("the newer process: %v", err)
		}
		known, err := second.KnownRooms(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want := map[id.RoomID]store.RoomStatus{"!a": store.RoomInvited, "!c": store.RoomInvited}
		if diff := cmp.Diff(want, known); diff != "" {
			t.Error(diff)
		}
	})
}

func TestTrimRoomsForgetsWhatWasNothing(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		now := time.Unix(1790000000, 0)
		st := storetest.Open(t, cfg, func() time.Time { return now })
		for _, r := range []*store.Room{
			{ID: "!nothing", Status: store.RoomLeft}, {ID: "!event", Status: store.RoomLeft}, {ID: "!signed", Status: store.RoomLeft},
			{ID: "!group", Status: store.RoomLeft, Machine: []byte{1}}, {ID: "!there", Status: store.RoomJoined},
		} {
			if err := st.PutRoom(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := st.PutInbox(ctx, &store.InboxEvent{EventID: "$1", Room: "!event", Raw: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
		if err := st.PutReceipt(ctx, "!signed", &store.Receipt{Hash: "00", Kind: "vote", Content: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []int{0, 1, 0} {
			gone, err := st.TrimRooms(ctx, time.Hour)
			if err != nil || len(gone) != want || want == 1 && gone[0] != "!nothing" {
				t.Fatalf("got %v, %v, want %d rooms forgotten", gone, err, want)
			}
			now = now.Add(2 * time.Hour)
		}
	})
}

func TestOneOfTwoThatWaitTakesOver(t *testing.T) {
	ctx, cfg := context.Background(), storetest.Postgres(t)
	first := storetest.Open(t, cfg, nil)
	if err := errors.Join(first.Own(ctx), first.Beat(ctx)); err != nil {
		t.Fatal(err)
	}
	second, third := storetest.Open(t, cfg, nil), storetest.Open(t, cfg, nil)
	seen, err := second.Holder(ctx)
	if err != nil || seen.Process == "" || !seen.Connected {
		t.Fatalf("Holder = %+v, %v", seen, err)
	}
	if err := first.Beat(ctx); err != nil {
		t.Fatal(err)
	}
	if later, err := third.Holder(ctx); err != nil || later.Beat == seen.Beat || later.Process != seen.Process {
		t.Errorf("after a beat: %+v, %v; before %+v", later, err, seen)
	}
	// The first hangs in the middle of a transaction, with the row locked.
	inside, resume, ended := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		ended <- first.Tx(ctx, func(ctx context.Context) error {
			close(inside)
			<-resume
			return first.Set(ctx, "late", "1")
		})
	}()
	<-inside
	if took, err := second.TakeOver(ctx, seen); err != nil || !took {
		t.Fatalf("TakeOver = %v, %v", took, err)
	}
	if took, err := third.TakeOver(ctx, seen); err != nil || took {
		t.Errorf("a third took over as well: %v, %v", took, err)
	}
	close(resume)
	if err := <-ended; err == nil {
		t.Error("a transaction of a process that was taken over was committed")
	}
	// Single statements are no way around, either.
	for range 3 { // the first attempts may meet connections that were ended
		if err = first.Set(ctx, "late", "2"); errors.Is(err, store.ErrTakenOver) {
			break
		}
	}
	if !errors.Is(err, store.ErrTakenOver) {
		t.Errorf("Set of a process that was taken over: %v", err)
	}
	if late, err := second.Get(ctx, "late"); err != nil || late != "" {
		t.Errorf("it wrote %q, %v", late, err)
	}
	if err := second.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if h, err := third.Holder(ctx); err != nil || h.Process != "" {
		t.Errorf("after an orderly end: %+v, %v", h, err)
	}
	if took, err := third.TakeOver(ctx, store.Holder{}); err != nil || !took {
		t.Errorf("TakeOver of nobody = %v, %v", took, err)
	}
	if err := second.Beat(ctx); !errors.Is(err, store.ErrTakenOver) {
		t.Errorf("Beat after handing over and being followed: %v", err)
	}
}
