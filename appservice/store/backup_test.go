package store_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
)

// fill puts something into every table.
func fill(t *testing.T, st *store.Store) {
	t.Helper()
	ctx := context.Background()
	key := ""
	state := event(2, "!a")
	state.StateKey = &key
	_, inboxErr := st.PutInbox(ctx, event(1, "!a"), state)
	_, keyErr := st.PutNewKey(ctx, "receipt", []byte{0, 1, 255})
	err := errors.Join(inboxErr, keyErr,
		st.Set(ctx, "probe_room", "!probe"),
		st.PutRoom(ctx, &store.Room{ID: "!a", Status: store.RoomServing, Machine: []byte{1, 0}, Data: []byte(`{"x":"<é>"}`), Epoch: 7}),
		st.PutRoom(ctx, &store.Room{ID: "!b", Status: store.RoomJoined}),
		st.PutCommit(ctx, "!a", &store.Commit{Ref: "r1", Parent: "r0", Epoch: 1<<53 + 1, EventID: "$c", Sender: "@u:t", Status: "held", Content: []byte(`{"m":1}`)}),
		st.PutGroup(ctx, "!a", "r1", []byte{9, 0, 8}),
		st.PutReceipt(ctx, "!a", &store.Receipt{Hash: "h", Kind: "vote", Signer: "k", Ref: "r1", Counter: 3, Content: []byte(`{}`)}),
		st.PutMedia(ctx, "!a", &store.Media{SHA256: "s", URI: "mxc://t/1", Size: 3, Purpose: "tree"}),
		st.PutOutbox(ctx, &store.OutboxRow{Room: "!a", Type: "t", Content: []byte(`{"a":1}`), Tag: "receipt:h"}),
		st.PutRefusal(ctx, &store.Refusal{Room: "!a", Rule: "x"}),
	)
	if err != nil {
		t.Fatal(err)
	}
}

// lines returns a backup's rows; what a restore adds is left out.
func lines(t *testing.T, backup []byte) (out []string) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(backup))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, l := range all[1 : len(all)-1] {
		if !strings.Contains(l, store.KeyRestored) {
			out = append(out, l)
		}
	}
	return out
}

func backUp(t *testing.T, st *store.Store) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := st.Backup(context.Background(), &b, store.BackupHeader{Server: "mls.test"}, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBackupHoldsEverythingAndMovesBetweenDatabases(t *testing.T) {
	storetest.Each(t, func(t *testing.T, from store.Config) {
		storetest.Each(t, func(t *testing.T, to store.Config) {
			ctx := context.Background()
			a, b := storetest.Open(t, from, nil), storetest.Open(t, to, nil)
			if err := a.Own(ctx); err != nil { // a module works on it
				t.Fatal(err)
			}
			fill(t, a)
			backup := backUp(t, a)
			if _, err := b.PutNewKey(ctx, "receipt", []byte("of setup, never used")); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Restore(ctx, bytes.NewReader(backup), nil); err != nil {
				t.Fatal(err)
			}
			again := backUp(t, b)
			if diff := cmp.Diff(lines(t, backup), lines(t, again)); diff != "" {
				t.Errorf("restored (-was +is):\n%s", diff)
			}
			if h, err := b.Holder(ctx); err != nil || h.Process != "" {
				t.Errorf("the restored database belongs to %+v, %v", h, err)
			}
			if mark, err := b.Get(ctx, store.KeyRestored); err != nil || mark == "" {
				t.Errorf("nothing says that the database was restored: %q, %v", mark, err)
			}
			// It works on: new rows do not collide with the old.
			fresh, err := b.PutInbox(ctx, event(3, "!a"))
			if err != nil || len(fresh) != 1 {
				t.Errorf("after the restore: %v, %v", fresh, err)
			}
			if err := b.PutOutbox(ctx, &store.OutboxRow{Room: "!a", Type: "t", Content: []byte(`{}`)}); err != nil {
				t.Error(err)
			}
			if _, err := b.Restore(ctx, bytes.NewReader(backup), nil); !errors.Is(err, store.ErrNotEmpty) {
				t.Errorf("over a database in use: %v", err)
			}
		})
	})
}

func TestBackupNamesEveryColumn(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		st := storetest.Open(t, cfg, nil)
		fill(t, st)
		driver, query := "sqlite", `SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type='table' AND m.name NOT LIKE 'sqlite_%'`
		if cfg.Type == "postgres" {
			driver, query = "postgres", `SELECT table_name, column_name FROM information_schema.columns WHERE table_schema='public'`
		}
		raw, err := sql.Open(driver, cfg.URI)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		rows, err := raw.Query(query)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		have := make(map[string]int)
		for rows.Next() {
			var table, column string
			if err := rows.Scan(&table, &column); err != nil {
				t.Fatal(err)
			}
			if table != "version" && table != "database_owner" {
				have[table]++
			}
		}
		got := make(map[string]int)
		for _, l := range lines(t, backUp(t, st)) {
			var row struct {
				Table string            `json:"t"`
				Row   []json.RawMessage `json:"r"`
			}
			if err := json.Unmarshal([]byte(l), &row); err != nil {
				t.Fatal(err)
			}
			got[row.Table] = len(row.Row)
		}
		if diff := cmp.Diff(have, got); diff != "" {
			t.Errorf("tables and their number of columns (-database +backup):\n%s", diff)
		}
	})
}

func TestRestoreRefusesWhatIsDamagedAndChangesNothing(t *testing.T) {
	ctx := context.Background()
	st := storetest.Open(t, storetest.SQLite(t), nil)
	fill(t, st)
	backup := backUp(t, st)
	z, err := gzip.NewReader(bytes.NewReader(backup))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	pack := func(edit func(lines []string) []string) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, err := w.Write([]byte(strings.Join(edit(strings.SplitAfter(string(text), "\n")), "")))
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"empty":       {nil, store.ErrNoBackup},
		"cut short":   {backup[:len(backup)/2], store.ErrNoBackup},
		"no end":      {pack(func(l []string) []string { return l[:len(l)-2] }), store.ErrNoBackup},
		"row missing": {pack(func(l []string) []string { return slices.Delete(l, 3, 4) }), nil},
		"row changed": {pack(func(l []string) []string { l[1] = strings.Replace(l[1], "receipt", "reseipt", 1); return l }), store.ErrNoBackup},
		"row twice":   {pack(func(l []string) []string { return slices.Insert(l, 3, l[3]) }), nil},
		"newer":       {pack(func(l []string) []string { l[0] = strings.Replace(l[0], `"schema":1`, `"schema":999`, 1); return l }), store.ErrBackupSchema},
		"of others":   {pack(func(l []string) []string { l[0] = "{\"x\":1}\n"; return l }), store.ErrNoBackup},
		"tail":        {pack(func(l []string) []string { return append(l, l[1]) }), store.ErrNoBackup},
	} {
		t.Run(name, func(t *testing.T) {
			to := storetest.Open(t, storetest.SQLite(t), func() time.Time { return time.Unix(1790000000, 0) })
			if _, err := to.PutNewKey(ctx, "mine", []byte{7}); err != nil {
				t.Fatal(err)
			}
			before := lines(t, backUp(t, to))
			_, err := to.Restore(ctx, bytes.NewReader(c.data), nil)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if diff := cmp.Diff(before, lines(t, backUp(t, to))); diff != "" {
				t.Errorf("it changed the database:\n%s", diff)
			}
		})
	}
}

func TestRestoreRefusesADatabaseAtWork(t *testing.T) {
	ctx := context.Background()
	from := storetest.Open(t, storetest.SQLite(t), nil)
	backup := backUp(t, from)
	cfg := storetest.Postgres(t)
	works, to := storetest.Open(t, cfg, nil), storetest.Open(t, cfg, nil)
	if err := works.Own(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := to.Restore(ctx, bytes.NewReader(backup), nil); !errors.Is(err, store.ErrOwnerAtWork) {
		t.Errorf("beside a module at work: %v", err)
	}
}
