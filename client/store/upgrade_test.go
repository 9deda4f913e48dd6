package store

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"go.mau.fi/util/dbutil"
)

// oldStore makes a store with the schema of an earlier version.
func oldStore(t *testing.T, version, path string) *Store {
	t.Helper()
	s, err := openOld(t, version, path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// openOld opens a store as an earlier version does.
func openOld(t *testing.T, version, path string) (*Store, error) {
	t.Helper()
	aead, err := newAEAD(testKey)
	if err != nil {
		t.Fatal(err)
	}
	db, err := dbutil.NewFromConfig(owner, dbutil.Config{
		PoolConfig: dbutil.PoolConfig{Type: "sqlite", URI: "file:" + path, MaxOpenConns: 1, MaxIdleConns: 1},
	}, dbutil.NoopLogger)
	if err != nil {
		t.Fatal(err)
	}
	var table dbutil.UpgradeTable
	table.RegisterFSPath(os.DirFS("testdata").(interface {
		fs.ReadDirFS
		fs.ReadFileFS
	}), version)
	db.UpgradeTable = table
	s := &Store{db: db, aead: aead, rand: bytes.NewReader(make([]byte, 1<<16)), path: path}
	if err := s.start(t.Context()); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func (s *Store) schema(ctx context.Context) (out []string, err error) {
	for _, table := range []string{
		"account", "kv", "key_packages", "device_lists", "rooms", "machines", "epochs", "trees", "ratchets", "ratchet_pages", "rejoin_secrets",
		"pending_commits", "outbox", "inbox", "seen", "timeline",
	} {
		err = errors.Join(err, s.each(ctx, table, "SELECT name || ' ' || type || ' ' || \"notnull\" || ' ' || pk FROM pragma_table_info('"+table+"') ORDER BY name", nil, func(row dbutil.Scannable) error {
			var column string
			err := row.Scan(&column)
			out = append(out, table+": "+column)
			return err
		}))
	}
	return out, err
}

func faultSchemas(t *testing.T) {
	ctx := t.Context()
	fresh, err := openTest(t, filepath.Join(t.TempDir(), "fresh.db")).schema(ctx)
	if err != nil || len(fresh) < 60 {
		t.Fatalf("%d columns (%v)", len(fresh), err)
	}
	for _, version := range []string{"v1", "v2", "v3", "v4", "v5"} {
		t.Run(version, func(t *testing.T) {
			newer := filepath.Join(t.TempDir(), "newer.db")
			if err := openTest(t, newer).Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := openOld(t, version, newer); !errors.Is(err, dbutil.ErrUnsupportedDatabaseVersion) {
				t.Errorf("a program of that version opens a newer store: %v", err)
			}
			path := filepath.Join(t.TempDir(), "old.db")
			old := oldStore(t, version, path)
			sealed, err := old.seal([]byte("whole epoch"), place("epochs", room.String(), "r"))
			if err != nil {
				t.Fatal(err)
			}
			insert := "INSERT INTO epochs (room_id, ref, parent, number, state) VALUES ($1, $2, $3, 7, $4)"
			if version >= "v3" {
				insert = "INSERT INTO epochs (room_id, ref, parent, number, state, whole) VALUES ($1, $2, $3, 7, $4, TRUE)"
			}
			err = errors.Join(
				old.exec(ctx, "epochs", insert, room, []byte("r"), []byte("p"), sealed),
				old.exec(ctx, "seen", "INSERT INTO seen (room_id, event_id) VALUES ($1, '$seen')", room),
				old.PutOldRatchet(ctx, room, []byte("r"), []byte("whole ratchet")), old.PutRoom(ctx, room, []byte("record")),
			)
			if err = errors.Join(err, old.db.Close()); err != nil {
				t.Fatal(err)
			}
			s := openTest(t, path)
			got, err := s.schema(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(fresh) {
				t.Errorf("%d columns, a fresh store has %d", len(got), len(fresh))
			}
			for i := range min(len(got), len(fresh)) {
				if got[i] != fresh[i] {
					t.Errorf("%s, a fresh store has %s", got[i], fresh[i])
				}
			}
			e, err := s.Epoch(ctx, room, []byte("r"))
			if err != nil || !e.Whole || e.Number != 7 || string(e.State) != "whole epoch" {
				t.Errorf("epoch %+v (%v)", e, err)
			}
			if raw, err := s.OldRatchet(ctx, room, []byte("r")); err != nil || string(raw) != "whole ratchet" {
				t.Errorf("ratchet %q (%v)", raw, err)
			}
			if raw, err := s.Room(ctx, room); err != nil || string(raw) != "record" {
				t.Errorf("record %q (%v)", raw, err)
			}
			if seen, err := s.Seen(ctx, room, "$seen"); err != nil || !seen {
				t.Errorf("an event that was processed: %v (%v)", seen, err)
			}
		})
	}
}

func TestTreesOfDifferences(t *testing.T) {
	ctx := t.Context()
	s := openTest(t, filepath.Join(t.TempDir(), "client.db"))
	ref := func(b byte) []byte { return []byte{b} }
	put := func(name, parent byte, whole bool, depth int) {
		t.Helper()
		if err := s.PutTree(ctx, &Tree{Room: room, Ref: ref(name), Parent: ref(parent), Whole: whole, Depth: depth, Bytes: 10 * depth, Data: ref(name)}); err != nil {
			t.Fatal(err)
		}
	}
	put('a', 0, true, 0)
	put('b', 'a', false, 1)
	put('c', 'b', false, 2)
	put('x', 'b', false, 2) // another branch
	put('d', 'c', true, 0)
	whole, deltas, depth, size, err := s.Tree(ctx, room, ref('c'))
	if err != nil || string(whole) != "a" || len(deltas) != 2 || string(deltas[0])+string(deltas[1]) != "bc" || depth != 2 || size != 20 {
		t.Errorf("tree %q and %q, depth %d, %d bytes (%v)", whole, deltas, depth, size, err)
	}
	if err := errors.Join(s.PutEpoch(ctx, &Epoch{Room: room, Ref: ref('x')}), s.PutEpoch(ctx, &Epoch{Room: room, Ref: ref('d')}), s.PruneTrees(ctx, room)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[byte]bool{'a': true, 'b': true, 'x': true, 'd': true, 'c': false} {
		if _, _, _, _, err := s.Tree(ctx, room, ref(name)); (err == nil) != want {
			t.Errorf("tree %c is kept: %v, want %v", name, err == nil, want)
		}
	}
	put('l', 'l', false, 1) // a loop, as only a damaged file has it
	if _, _, _, _, err := s.Tree(ctx, room, ref('l')); err == nil {
		t.Error("a loop of differences leads to a tree")
	}
}
