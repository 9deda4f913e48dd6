package cli

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
)

// TestEpochsAreDrawn draws a room that the database holds, in all forms.
func TestEpochsAreDrawn(t *testing.T) {
	dir := t.TempDir()
	file, database := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "mls.db")
	text, err := config.Render(config.Example(), map[string]string{
		"homeserver.domain": "mls.test", "appservice.as_token": "as-token-0123456789", "appservice.hs_token": "hs-token-0123456789", "database.uri": database,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	m, err := federation.New(federation.Config{Room: "!r:mls.test"}, federation.Base{
		Ref: federation.Ref{1}, GroupID: []byte("group"), Suite: 1, Leaves: []federation.Leaf{{User: "@alice:mls.test\x1b[2J", Key: key}},
		Policy: federation.Policy{Sequencers: federation.List{{Server: "mls.test", User: "@_mls_bot:mls.test", ReceiptKey: key}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	st, err := store.Open(ctx, store.Config{Type: "sqlite3", URI: database}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Upgrade(ctx); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*store.Room{{ID: "!r:mls.test", Status: store.RoomServing, Machine: raw}, {ID: "!empty:mls.test", Status: store.RoomJoined}} {
		if err := st.PutRoom(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	run := func(want Code, args ...string) string {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if code := Run(ctx, Env{Args: append([]string{"epochs", "-c", file}, args...), Stdout: &stdout, Stderr: &stderr}); code != want {
			t.Errorf("epochs %v: exit code %d, want %d: %s", args, code, want, &stderr)
		}
		if want != Done && !strings.Contains(stderr.String(), "hint: ") {
			t.Errorf("epochs %v: no hint: %s", args, &stderr)
		}
		return stdout.String()
	}
	const room = "!r:mls.test"
	if got := run(Done, room); !strings.Contains(got, "as the module of mls.test sees it") || !strings.Contains(got, "HEAD, final, the founding epoch") || !strings.Contains(got, "@alice:mls.test�[2J") || strings.Contains(got, "\x1b") {
		t.Errorf("text: %q", got)
	}
	if got := run(Done, room, "--json"); !json.Valid([]byte(got)) || !strings.Contains(got, `"room_id":"!r:mls.test"`) {
		t.Errorf("JSON: %s", got)
	}
	if got := run(Done, room, "--svg", "-"); !strings.HasSuffix(got, "</svg>\n") {
		t.Errorf("SVG: %s", got)
	}
	svg := filepath.Join(dir, "room.svg")
	run(Done, room, "--svg", svg)
	if raw, err := os.ReadFile(svg); err != nil || !strings.HasSuffix(string(raw), "</svg>\n") {
		t.Errorf("the file: %v %s", err, raw)
	}
	run(Conflict, room, "--svg", svg)
	run(Failed, "!empty:mls.test")
}
