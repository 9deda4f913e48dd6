package lab_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/matrix-mls/matrix-mls/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// call makes one client API request as the user and decodes the answer.
func call(t *testing.T, s *lab.Server, u lab.User, method, path string, body any) map[string]any {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, s.BaseURL+"/_matrix/client/v3"+path, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+u.AccessToken)
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	var out map[string]any
	if err := json.Unmarshal(answer, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func send(t *testing.T, s *lab.Server, u lab.User, room, text string) {
	t.Helper()
	call(t, s, u, "PUT", "/rooms/"+url.PathEscape(room)+"/send/m.room.message/"+url.PathEscape(text),
		map[string]string{"msgtype": "m.text", "body": text})
}

// sees reports whether the newest messages of the room hold the text.
func sees(t *testing.T, s *lab.Server, u lab.User, room, text string) bool {
	t.Helper()
	raw, err := json.Marshal(call(t, s, u, "GET", "/rooms/"+url.PathEscape(room)+"/messages?dir=b&limit=50", nil)["chunk"])
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(raw, []byte(`"`+text+`"`))
}

// eventually polls, since a homeserver has no way to tell us when it has sent something on.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(60 * time.Second)
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 60 s: %s", what)
		}
	}
}

func TestFederatedServers(t *testing.T) {
	for _, postgres := range []bool{false, true} {
		name := map[bool]string{false: "sqlite", true: "postgres"}[postgres]
		t.Run(name, func(t *testing.T) {
			hs := lab.Run(t, lab.Options{Synapse: 1, Dendrite: 1, Users: []string{"alice@syn1", "bob@den1"}, Proxy: true,
				HomeserverPostgres: postgres})
			syn, den := hs.Server("syn1"), hs.Server("den1")
			alice, bob := syn.Users["alice"], den.Users["bob"]
			room := call(t, syn, alice, "POST", "/createRoom",
				map[string]any{"preset": "private_chat", "invite": []string{bob.UserID}, "room_version": "10"})["room_id"].(string)
			call(t, den, bob, "POST", "/join/"+url.PathEscape(room)+"?server_name="+url.QueryEscape(syn.ServerName), struct{}{})
			send(t, syn, alice, room, "hello-bob")
			send(t, den, bob, room, "hello-alice")
			eventually(t, "both messages at both servers", func() bool {
				return sees(t, den, bob, room, "hello-bob") && sees(t, syn, alice, room, "hello-alice")
			})

			ctx := t.Context()
			for i, cut := range []func() error{
				func() error { return errors.Join(hs.Block(ctx, "syn1", "den1"), hs.Block(ctx, "den1", "syn1")) },
				func() error { return hs.Split(ctx, []string{"syn1"}, []string{"den1"}) },
			} {
				if err := cut(); err != nil {
					t.Fatal(err)
				}
				held := fmt.Sprintf("held-%d", i)
				send(t, syn, alice, room, held)
				send(t, syn, alice, room, "behind it")
				if sees(t, den, bob, room, held) {
					t.Fatal("a blocked link let a message through")
				}
				if err := hs.Unblock(ctx, "*", "*"); err != nil {
					t.Fatal(err)
				}
				send(t, den, bob, room, "wake-up")
				eventually(t, "the held message after the cut", func() bool { return sees(t, den, bob, room, held) })
			}

			if err := hs.Stop(ctx, "syn1"); err != nil {
				t.Fatal(err)
			}
			if resp, err := http.Get(syn.BaseURL + "/_matrix/client/versions"); err == nil {
				resp.Body.Close()
				t.Fatal("a stopped server answers")
			}
			if err := hs.Start(ctx, "syn1"); err != nil {
				t.Fatal(err)
			}
			if !sees(t, syn, alice, room, "hello-alice") {
				t.Fatal("a restarted server lost a message")
			}
			plantedIsFound(t, hs, "hello-alice", postgres)
		})
	}
}

// plantedIsFound shows that the places which the end-to-end tests search are where the servers keep text.
func plantedIsFound(t *testing.T, hs *lab.Servers, text string, postgres bool) {
	t.Helper()
	if postgres {
		dump := filepath.Join(t.TempDir(), "dump.sql")
		if err := hs.Dump(t.Context(), dump); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(dump)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(raw, []byte(text)) {
			t.Error("the dump of PostgreSQL lacks a message that both servers hold")
		}
		return
	}
	for _, s := range hs.All() {
		paths, err := s.Databases()
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, path := range paths {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			found = found || bytes.Contains(raw, []byte(text))
		}
		if !found {
			t.Errorf("no database file of %s (%d files) holds a message that the server holds", s.Name, len(paths))
		}
	}
}

func TestSpawnedProgramEndsWithTheRun(t *testing.T) {
	dir := t.TempDir()
	hs, err := lab.Start(t.Context(), lab.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := hs.Spawn(t.Context(), "module", "sh", "-c", "echo started; trap 'echo ended; exit' TERM; while :; do sleep 0.1; done"); err != nil {
		t.Fatal(err)
	}
	log := func() string {
		raw, err := os.ReadFile(filepath.Join(dir, "module.log"))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	eventually(t, "the program's first line", func() bool { return strings.Contains(log(), "started") })
	if err := hs.Spawn(t.Context(), "module", "true"); err == nil {
		t.Error("a second program took the name of a running one")
	}
	if err := hs.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log(), "ended") {
		t.Errorf("the program did not end with the run; its log: %q", log())
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := lab.Start(ctx, lab.Options{Synapse: 1}); err == nil {
		s.Close()
		t.Fatal("a cancelled start succeeded")
	}
	_, err := lab.Start(t.Context(), lab.Options{Synapse: 1, Registrations: map[string]string{"syn7": "/dev/null"}})
	if err == nil || !strings.Contains(err.Error(), "syn7") {
		t.Fatalf("a registration for an unknown server: got %v", err)
	}
}

func TestPostgresDatabasesAreSeparate(t *testing.T) {
	for i := range 2 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			db, err := sql.Open("postgres", lab.Postgres(t))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if _, err := db.ExecContext(t.Context(), "create table once (x int)"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestDurablePostgres: a cluster waits for the disk only if it is asked to.
func TestDurablePostgres(t *testing.T) {
	for _, durable := range []bool{false, true} {
		hs := lab.Run(t, lab.Options{Postgres: true, DurablePostgres: durable})
		dsn, err := hs.PostgresURL("postgres")
		if err != nil {
			t.Fatal(err)
		}
		db, err := sql.Open("postgres", dsn)
		if err != nil {
			t.Fatal(err)
		}
		for _, setting := range []string{"fsync", "synchronous_commit", "full_page_writes"} {
			var is string
			if err := db.QueryRowContext(t.Context(), "show "+setting).Scan(&is); err != nil {
				t.Error(err)
			}
			if want := map[bool]string{false: "off", true: "on"}[durable]; is != want {
				t.Errorf("%s is %s, want %s", setting, is, want)
			}
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}
