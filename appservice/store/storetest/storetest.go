// Package storetest opens databases for tests: SQLite always, PostgreSQL where
// the run asks for it.
//
// MLS_TEST_POSTGRES is "start" for a private PostgreSQL, or the postgres:// URL
// of one whose user may create databases. With MLS_TEST_REQUIRE=postgres a run
// without it fails.
package storetest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/lab"
)

// Each runs a test on every kind of database that the run promises. open opens
// the test's database, which is empty at first, as often as it is called.
func Each(t *testing.T, test func(t *testing.T, cfg store.Config)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { test(t, SQLite(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, Postgres(t)) })
}

// SQLite is a new file.
func SQLite(t *testing.T) store.Config {
	t.Helper()
	return store.Config{Type: "sqlite3", URI: filepath.Join(t.TempDir(), "test.db")}
}

// Postgres is a new database. The test is skipped where the run has none, and
// fails where the run promises one.
func Postgres(t *testing.T) store.Config {
	t.Helper()
	where := os.Getenv("MLS_TEST_POSTGRES")
	switch {
	case where == "start":
		return store.Config{Type: "postgres", URI: lab.Postgres(t)}
	case where != "":
		return store.Config{Type: "postgres", URI: createDatabase(t, where)}
	case slices.Contains(strings.Split(os.Getenv("MLS_TEST_REQUIRE"), ","), "postgres"):
		t.Fatal("this run promises PostgreSQL (MLS_TEST_REQUIRE) and has none: set MLS_TEST_POSTGRES")
	}
	t.Skip("no PostgreSQL in this run: set MLS_TEST_POSTGRES=start")
	return store.Config{}
}

func createDatabase(t *testing.T, server string) string {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatalf("MLS_TEST_POSTGRES is no URL")
	}
	admin, err := sql.Open("postgres", server)
	if err != nil {
		t.Fatal(err)
	}
	var nonce [6]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		t.Fatal(err)
	}
	name := "mls_test_" + hex.EncodeToString(nonce[:])
	if _, err := admin.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatalf("creating a test database: %v", err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Errorf("dropping the test database: %v", err)
		}
		_ = admin.Close()
	})
	u.Path = "/" + name
	return u.String()
}

// Open opens a database and brings it up to date. now may be nil for the real
// clock.
func Open(t *testing.T, cfg store.Config, now func() time.Time) *store.Store {
	t.Helper()
	if now == nil {
		now = time.Now
	}
	st, err := store.Open(context.Background(), cfg, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	if err := st.Upgrade(context.Background()); err != nil {
		t.Fatal(err)
	}
	return st
}
