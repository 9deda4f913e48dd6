// Package storetest opens databases for tests: SQLite, and a private PostgreSQL
// that the first test of a process starts.
//
// MLS_TEST_POSTGRES names another one instead, by the postgres:// URL of a user
// who may create databases, or leaves it out with "off", as -short does. With
// MLS_TEST_REQUIRE=postgres a run without it fails.
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
	if where == "off" || where == "" && testing.Short() {
		if slices.Contains(strings.Split(os.Getenv("MLS_TEST_REQUIRE"), ","), "postgres") {
			t.Fatal("this run promises PostgreSQL (MLS_TEST_REQUIRE) and leaves it out (MLS_TEST_POSTGRES=off or -short)")
		}
		t.Skip("this run leaves out PostgreSQL")
	}
	if where == "" || where == "start" {
		return store.Config{Type: "postgres", URI: lab.Postgres(t)}
	}
	return store.Config{Type: "postgres", URI: createDatabase(t, where)}
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
