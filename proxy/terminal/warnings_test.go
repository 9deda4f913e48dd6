package terminal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestWarningsAreLinesForPeople: each stands in one line, without addresses' queries,
// stacks and what could move the cursor.
func TestWarningsAreLinesForPeople(t *testing.T) {
	var out bytes.Buffer
	w := &warnings{out: &out, now: func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }}
	log := w.log()
	log.Debug().Msg("Not for people")
	log.Info().Msg("Nor this")
	log.Warn().Err(&url.Error{Op: "Get", URL: "http://one/_matrix/client/v3/sync?filter=planted&since=s1", Err: errors.New("refused")}).Dur("retry_in", time.Second).Str("component", "mls").Msg("Sync failed, will try again")
	log.Error().Any("panic", "index out of range").Bytes("stack", []byte("goroutine 1")).Str("room_id", "!r:one").Str("rule", "a/rule").Msg("MLS cannot go on")
	log.Err(errors.New("first line\nsecond \x1b[2Jline")).Int("attempt", 3).Msg("A file could not be stored")
	log.Warn().Err(errors.New(strings.Repeat("ü", 2*warningRunes))).Msg("It is long")
	want := []string{
		`mls-proxy: 03:04:05 warning: sync failed, will try again: Get "http://one/_matrix/client/v3/sync": refused`,
		`mls-proxy: 03:04:05 error: MLS cannot go on: index out of range (room id !r:one, rule a/rule)`,
		"mls-proxy: 03:04:05 error: a file could not be stored: first line second \uFFFD[2Jline (attempt 3)",
		"mls-proxy: 03:04:05 warning: it is long: ü",
	}
	got := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(got) != len(want) {
		t.Fatalf("printed %q, want %d lines", got, len(want))
	}
	for i, line := range got {
		if i == len(got)-1 {
			if n := len([]rune(line)); n != warningRunes+1 || !strings.HasPrefix(line, want[i]) {
				t.Errorf("a long line has %d characters: %s", n, line)
			}
		} else if line != want[i] {
			t.Errorf("printed %s, want %s", line, want[i])
		}
	}
}

// TestWarningsAreNotRepeated: what goes on happening is said every ten minutes, with how
// often it happened; causes that differ are said at once, a few of each message.
func TestWarningsAreNotRepeated(t *testing.T) {
	var out bytes.Buffer
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	w := &warnings{out: &out, now: func() time.Time { return now }}
	log := w.log()
	printed := func() []string {
		defer out.Reset()
		return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	}
	for port := range 100 { // every five seconds
		log.Warn().Err(fmt.Errorf("dial 127.0.0.1:%d: refused", port)).Msg("Sync failed")
		now = now.Add(5 * time.Second)
	}
	if got := printed(); len(got) != 1 {
		t.Errorf("printed %q, want one line", got)
	}
	log.Warn().Err(errors.New("the disk is full")).Msg("Sync failed")
	log.Warn().Err(errors.New("dial 127.0.0.1:1: refused")).Msg("Another message")
	if got := printed(); len(got) != 2 || !strings.Contains(got[0], "disk is full") || !strings.Contains(got[1], "another message") {
		t.Errorf("of another cause and another message it printed %q", got)
	}
	now = now.Add(warningTime)
	log.Warn().Err(errors.New("dial 127.0.0.1:1: refused")).Msg("Sync failed")
	if got, want := printed(), "mls-proxy: 03:18:20 warning: sync failed: dial 127.0.0.1:1: refused (and 99 like it since 03:00:00)"; len(got) != 1 || got[0] != want {
		t.Errorf("after ten minutes it printed %q, want %q", got, want)
	}
	for room := range 100 {
		log.Warn().Str("room_id", fmt.Sprintf("!%s:x", strings.Repeat("r", room))).Msg("Failed to process a room")
	}
	if got := printed(); len(got) != warningKinds {
		t.Errorf("printed %d lines of one message, want %d", len(got), warningKinds)
	}
	for n := range 2 * maxWarnings {
		log.Warn().Msg(strings.Repeat("m", n))
	}
	if len(w.seen) > maxWarnings {
		t.Errorf("%d messages are remembered, want %d at the most", len(w.seen), maxWarnings)
	}
}

// TestRunPrintsWarnings: what the program's answers and pages refer to is there without
// -v, once, and without what clients sent.
func TestRunPrintsWarnings(t *testing.T) {
	h := httptest.NewServer(http.NotFoundHandler())
	h.Close() // nobody is there
	dir := filepath.Join(t.TempDir(), "state")
	env, _, _ := testEnv(t)
	said, to := io.Pipe()
	env.Stderr = to
	ready, all := make(chan string, 1), make(chan string, 1)
	go func() {
		var text strings.Builder
		buf := make([]byte, 4096)
		for begun := false; ; {
			n, err := said.Read(buf)
			text.Write(buf[:n])
			if _, after, ok := strings.Cut(text.String(), "clients log in at "); ok && !begun && strings.Contains(after, "status page") {
				address, _, _ := strings.Cut(after, ",")
				ready <- address
				begun = true
			}
			if err != nil {
				all <- text.String()
				return
			}
		}
	}()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan int, 1)
	go func() {
		ended <- Main(ctx, []string{"--state", dir, "run", "--homeserver", h.URL, "--listen", "127.0.0.1:0"}, env)
		to.Close()
	}()
	var address string
	select {
	case address = <-ready:
	case code := <-ended:
		t.Fatalf("it ended with %d: %s", code, <-all)
	}
	raw, err := os.ReadFile(filepath.Join(dir, statusName))
	if err != nil {
		t.Fatal(err)
	}
	page, err := url.Parse(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if address == "http://"+page.Host {
		t.Error("the status page is at the clients' address")
	}
	for range 3 {
		resp, err := http.Post(address+"/_matrix/client/v3/login?access_token=planted-4711", "application/json",
			strings.NewReader(`{"type":"m.login.password","user":"@a:one","password":"planted-4712"}`))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadGateway {
			t.Errorf("a login without the homeserver was answered with %d", resp.StatusCode)
		}
	}
	stop()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
	out := <-all
	if n := strings.Count(out, "warning: the homeserver did not answer: "); n != 1 {
		t.Errorf("that the homeserver did not answer is said %d times, want once, in %q", n, out)
	}
	if strings.Contains(out, "planted") {
		t.Errorf("what a client sent is printed: %q", out)
	}
}
