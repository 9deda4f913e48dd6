package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/internal/faults"
)

// TestFault makes happen to the module's database what it has to survive.
func TestFault(t *testing.T) {
	faults.Run(t, "appservice/store", map[string]func(t *testing.T){
		"F06-torn-file": faultTornFile,
		"F22-schemas":   faultSchemas,
	})
}

// faultTornFile: a file that was cut is never taken for a database, and a log
// that was cut costs what was in its last transactions at the most.
func faultTornFile(t *testing.T) {
	ctx := context.Background()
	const n = 200
	cfg := storetest.SQLite(t)
	st := storetest.Open(t, cfg, nil)
	event := func(i int) *store.InboxEvent {
		return &store.InboxEvent{EventID: id.EventID(fmt.Sprintf("$%d", i)), Room: "!a", Sender: "@a:b", Type: "t", Raw: make([]byte, 2000), Source: store.SourceTransaction}
	}
	if err := st.NoteRoom(ctx, "!a", store.RoomJoined); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, err := st.PutInbox(ctx, event(i)); err != nil {
			t.Fatal(err)
		}
	}
	copied := func(db, wal []byte) store.Config {
		t.Helper()
		path := filepath.Join(t.TempDir(), "copy.db")
		if err := os.WriteFile(path, db, 0o600); err != nil {
			t.Fatal(err)
		}
		if wal != nil {
			if err := os.WriteFile(path+"-wal", wal, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return store.Config{Type: "sqlite3", URI: path}
	}
	read := func(name string) []byte {
		t.Helper()
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	db, wal := read(cfg.URI), read(cfg.URI+"-wal")
	if len(wal) < 100<<10 {
		t.Fatalf("the log has %d bytes", len(wal))
	}
	for _, keep := range []int{len(wal), len(wal) - 1, len(wal) - 5000, len(wal) / 2, 33, 0} {
		t.Run(fmt.Sprintf("log cut to %d of %d bytes", keep, len(wal)), func(t *testing.T) {
			torn := storetest.Open(t, copied(db, wal[:keep]), nil)
			rows, err := torn.NextInbox(ctx, 2*n)
			if err != nil {
				t.Fatal(err)
			}
			for i, row := range rows {
				if row.EventID != event(i).EventID {
					t.Fatalf("row %d is %s: what was before the cut is not whole", i, row.EventID)
				}
			}
			if keep == len(wal) && len(rows) != n {
				t.Errorf("%d rows, want %d", len(rows), n)
			}
		})
	}
	if err := st.Close(); err != nil { // the log goes into the file
		t.Fatal(err)
	}
	db = read(cfg.URI)
	torn := map[string][]byte{
		"half of the file": db[:len(db)/2], "all but a page": db[:len(db)-4096], "half a page": db[:2000], "its beginning only": db[:50],
		"zeros in a quarter": append(append(append([]byte(nil), db[:len(db)/2]...), make([]byte, len(db)/4)...), db[len(db)/2+len(db)/4:]...),
		"another file":       []byte("this is no database, but somebody's notes that lay in the way\n"),
	}
	for name, raw := range torn {
		t.Run(name, func(t *testing.T) {
			cfg := copied(raw, nil)
			st, err := store.Open(ctx, cfg, time.Now)
			if err == nil {
				err = st.Upgrade(ctx)
				_ = st.Close()
			}
			if !errors.Is(err, store.ErrDamaged) {
				t.Fatalf("starting says %v, want %v", err, store.ErrDamaged)
			}
			if got := read(cfg.URI); string(got) != string(raw) {
				t.Error("the damaged file was written to")
			}
		})
	}
}
