package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// open opens a new database of one connection, in which t has the rows 1, 2 and 3.
func open(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open(Name, "file:"+filepath.Join(t.TempDir(), "a.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	db.SetMaxOpenConns(1)
	must(t, db, "CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT NOT NULL DEFAULT '')")
	for i := 1; i <= 3; i++ {
		must(t, db, "INSERT INTO t (id) VALUES (?)", i)
	}
	return db
}

func must(t *testing.T, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.Exec(query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// kept are the queries that the database's connection keeps, sorted.
func kept(t *testing.T, db *sql.DB) []string {
	t.Helper()
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var list []string
	if err := c.Raw(func(raw any) error {
		for query, s := range raw.(*conn).kept {
			if s.busy {
				t.Errorf("%q is busy, and nobody reads", query)
			}
			list = append(list, query)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func one(t *testing.T, q interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}, query string, args ...any) (n int) {
	t.Helper()
	if err := q.QueryRowContext(t.Context(), query, args...).Scan(&n); err != nil {
		t.Errorf("%s: %v", query, err)
	}
	return n
}

// One statement that reads or changes rows is kept, and answers by what it is given each time; anything else is not kept.
func TestStatementsAreKept(t *testing.T) {
	db := open(t)
	for i := 1; i <= 3; i++ {
		if n := one(t, db, "SELECT id FROM t WHERE id = ?", i); n != i {
			t.Errorf("asked for %d, got %d", i, n)
		}
	}
	must(t, db, "\n\tUPDATE t SET text = $1\n WHERE id = $2", "a", 1)
	must(t, db, "DELETE FROM t WHERE id = 3; DELETE FROM t WHERE id = 2")
	must(t, db, "PRAGMA foreign_keys = ON")
	if n := one(t, db, "SELECT COUNT(*) FROM t WHERE text = 'a'"); n != 1 {
		t.Errorf("%d rows, want the one", n)
	}
	if n := one(t, db, "WITH all_of(n) AS (SELECT COUNT(*) FROM t) SELECT n FROM all_of"); n != 1 {
		t.Errorf("%d rows are left, want 1", n)
	}
	want := []string{"\n\tUPDATE t SET text = $1\n WHERE id = $2", "INSERT INTO t (id) VALUES (?)", "SELECT COUNT(*) FROM t WHERE text = 'a'", "SELECT id FROM t WHERE id = ?"}
	if got := kept(t, db); !slices.Equal(got, want) {
		t.Errorf("kept are %q, want %q", got, want)
	}
}

// A query that is asked again while its rows are being read is asked beside them, and neither disturbs the other.
func TestQueryWithinItsOwnRows(t *testing.T) {
	db := open(t)
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	const query = "SELECT id FROM t WHERE id >= ? ORDER BY id"
	rows, err := tx.Query(query, 1)
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for rows.Next() {
		var id int
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		got = append(got, id, one(t, tx, query, id+1-id/3))
	}
	if err := errors.Join(rows.Err(), rows.Close(), tx.Commit()); err != nil {
		t.Fatal(err)
	}
	if want := []int{1, 2, 2, 3, 3, 3}; !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
	if n := one(t, db, query, 2); n != 2 {
		t.Errorf("afterwards it gives %d, want 2", n)
	}
}

// Rows that are left before their end, a statement that fails and one that is ended from outside leave the next use as it should be.
func TestStatementAfterAnInterruption(t *testing.T) {
	db := open(t)
	for range 3 {
		rows, err := db.Query("SELECT id FROM t")
		if err != nil || !rows.Next() || rows.Close() != nil {
			t.Fatalf("no first row: %v", err)
		}
		if _, err := db.Exec("INSERT INTO t (id) VALUES (?)", 3); err == nil || !strings.Contains(err.Error(), "UNIQUE") {
			t.Errorf("a row twice: %v", err)
		}
		if _, err := db.Exec("UPDATE t SET text = ? WHERE id = ?", "a"); err == nil {
			t.Error("an argument is missing, and it is not said")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := db.ExecContext(ctx, "UPDATE t SET text = ? WHERE id = ?", "a", 1); !errors.Is(err, context.Canceled) {
			t.Errorf("ended before it began: %v", err)
		}
	}
	must(t, db, "INSERT INTO t (id) VALUES (?)", 4)
	must(t, db, "UPDATE t SET text = ? WHERE id = ?", "b", 4)
	if n := one(t, db, "SELECT COUNT(*) FROM t"); n != 4 {
		t.Errorf("%d rows, want 4", n)
	}
	if n := one(t, db, "SELECT COUNT(*) FROM t WHERE text <> ''"); n != 1 {
		t.Errorf("%d changed rows, want 1", n)
	}
	kept(t, db)
}

// What a kept statement reads may change its shape, be rolled back or be gone.
func TestStatementsAcrossSchemas(t *testing.T) {
	db := open(t)
	width := func() int {
		rows, err := db.Query("SELECT * FROM t WHERE id = 1")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		names, err := rows.Columns()
		if err != nil || !rows.Next() {
			t.Fatalf("no row: %v", err)
		}
		into := make([]any, len(names))
		for i := range into {
			into[i] = new(any)
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	if n := width(); n != 2 {
		t.Errorf("%d columns, want 2", n)
	}
	must(t, db, "ALTER TABLE t ADD COLUMN more INTEGER")
	if n := width(); n != 3 {
		t.Errorf("after one was added %d columns, want 3", n)
	}
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("DELETE FROM t"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if n := one(t, db, "SELECT COUNT(*) FROM t"); n != 3 {
		t.Errorf("after a rollback %d rows, want 3", n)
	}
	must(t, db, "DROP TABLE t")
	if _, err := db.Exec("DELETE FROM t"); err == nil || !strings.Contains(err.Error(), "no such table") {
		t.Errorf("a table that is gone: %v", err)
	}
	must(t, db, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
	if n := one(t, db, "SELECT COUNT(*) FROM t"); n != 0 {
		t.Errorf("in a new table %d rows, want none", n)
	}
}

// No more is kept than there is room for: what was used longest ago goes, and what is read stays.
func TestOldStatementsGiveWay(t *testing.T) {
	db := open(t)
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	const read = "SELECT id FROM t ORDER BY id"
	rows, err := tx.Query(read)
	if err != nil || !rows.Next() {
		t.Fatalf("no first row: %v", err)
	}
	const often = "SELECT COUNT(*) FROM t"
	for i := range 3 * keeps {
		if n := one(t, tx, fmt.Sprintf("SELECT %d", i)); n != i {
			t.Errorf("asked for %d, got %d", i, n)
		}
		one(t, tx, often)
	}
	n := 1
	for rows.Next() {
		n++
	}
	if err := errors.Join(rows.Err(), rows.Close(), tx.Commit()); err != nil || n != 3 {
		t.Errorf("read %d rows, want 3: %v", n, err)
	}
	got := kept(t, db)
	if len(got) != keeps || !slices.Contains(got, read) || !slices.Contains(got, often) || slices.Contains(got, "SELECT 0") {
		t.Errorf("%d are kept, want %d, among them the one read and the one used often: %q", len(got), keeps, got)
	}
}
