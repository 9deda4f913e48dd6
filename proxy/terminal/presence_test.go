package terminal

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/internal/hstest"
	"github.com/matrix-mls/matrix-mls/internal/patience"
)

// heard is what a program has said so far.
type heard struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.buf.Write(p)
}

func (h *heard) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.buf.String()
}

// await waits until something is said.
func (h *heard) await(t *testing.T, text string) {
	t.Helper()
	end, tick := time.NewTimer(patience.Hang), time.NewTicker(10*time.Millisecond)
	defer end.Stop()
	defer tick.Stop()
	for !strings.Contains(h.String(), text) {
		select {
		case <-end.C:
			t.Fatalf("it never said %q, but %s", text, h)
		case <-tick.C:
		}
	}
}

// begin runs a verb until the test ends it.
func begin(t *testing.T, args ...string) (stdout, stderr *heard, stop func() int) {
	t.Helper()
	env, _, _ := testEnv(t)
	stdout, stderr = new(heard), new(heard)
	env.Stdout, env.Stderr = stdout, stderr
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() { ended <- Main(ctx, args, env) }()
	stop = sync.OnceValue(func() int { cancel(); return <-ended })
	t.Cleanup(func() { stop() })
	return stdout, stderr, stop
}

func TestRunSaysThatNoHomeserverAnswers(t *testing.T) {
	var up atomic.Bool
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !up.Load() {
			w.WriteHeader(http.StatusNotFound)
		}
		fmt.Fprint(w, `{"versions":["v1.11"]}`)
	}))
	defer h.Close()
	_, stderr, stop := begin(t, "--state", filepath.Join(t.TempDir(), "state"), "run", "--homeserver", h.URL, "--listen", "127.0.0.1:0")
	stderr.await(t, "no homeserver answers at "+h.URL+": HTTP 404 for /_matrix/client/versions; it is asked until one does")
	stderr.await(t, "hint: check the address and the network: curl "+h.URL+"/_matrix/client/versions")
	up.Store(true)
	stderr.await(t, "the homeserver at "+h.URL+" answers, after ")
	if code := stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if n := strings.Count(stderr.String(), "homeserver answers at"); n != 1 {
		t.Errorf("said %d times: %s", n, stderr)
	}
}

func TestTailSaysThatTheHomeserverWentAndIsBack(t *testing.T) {
	h := hstest.New(t, true)
	target, err := url.Parse(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	var down atomic.Bool
	forward := httputil.NewSingleHostReverseProxy(target)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			panic(http.ErrAbortHandler) // the connection ends
		}
		forward.ServeHTTP(w, r)
	}))
	defer front.Close()
	for _, mode := range []string{"text", "json"} {
		t.Run(mode, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			env, _, said := testEnv(t)
			env.Stdin = strings.NewReader("secret\n")
			if code := Main(t.Context(), []string{"--state", dir, "login", "@a:one", "--homeserver", front.URL, "--password-file", "-"}, env); code != 0 {
				t.Fatalf("login: %d %s", code, said)
			}
			args := []string{"--state", dir, "tail"}
			if mode == "json" {
				args = append(args, "--json")
			}
			stdout, stderr, stop := begin(t, args...)
			end, tick := time.NewTimer(patience.Hang), time.NewTicker(10*time.Millisecond)
			defer end.Stop()
			defer tick.Stop()
			for listening := false; !listening; { // it serves verbs once it shows messages
				conn, err := net.Dial("unix", filepath.Join(dir, "control.sock"))
				if listening = err == nil; listening {
					conn.Close()
				}
				select {
				case <-end.C:
					t.Fatalf("tail does not begin: %s", stderr)
				case <-tick.C:
				}
			}
			down.Store(true)
			front.CloseClientConnections()
			stdout.await(t, "the homeserver at "+front.URL+" does not answer any more: ")
			down.Store(false)
			stdout.await(t, "the homeserver at "+front.URL+" answers again, after ")
			if code := stop(); code != 0 {
				t.Errorf("exit code %d: %s", code, stderr)
			}
			lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
			if len(lines) != 2 {
				t.Errorf("%d lines: %s", len(lines), stdout)
			}
			for i, line := range lines {
				var got struct {
					Kind    string
					Answers bool
					Since   int64
				}
				switch err := json.Unmarshal([]byte(line), &got); {
				case mode == "text" && !strings.Contains(line, []string{" !! the", " -- the"}[i]):
					t.Errorf("line %d: %s", i, line)
				case mode == "json" && (err != nil || got.Kind != "homeserver" || got.Answers != (i == 1) || got.Since == 0):
					t.Errorf("line %d: %v %s", i, err, line)
				}
			}
		})
	}
}

func TestALookUpThatTakesLongIsSaid(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // and nobody answers there
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	env, _, _ := testEnv(t)
	stderr := new(heard)
	env.Stderr = stderr
	c := &call{env: env}
	_, err = c.lookUp(t.Context(), l.Addr().String(), 10*time.Millisecond, 500*time.Millisecond)
	if code, hint := explain(err); code != ExitUnreachable || !strings.Contains(hint, "base URL") {
		t.Errorf("exit code %d, %q: %v", code, hint, err)
	}
	if want := "waiting for https://" + l.Addr().String() + "/.well-known/matrix/client"; !strings.Contains(stderr.String(), want) {
		t.Errorf("no %q in %q", want, stderr)
	}
}

// TestSecretsInAnAddressAreNotSaid: who gives a password or token in the address of a homeserver does not read it in a log.
func TestSecretsInAnAddressAreNotSaid(t *testing.T) {
	for _, address := range []string{"https://user:hush@matrix.example.org", "https://matrix.example.org/?access_token=hush", "https://matrix.example.org/#hush"} {
		_, err := new(call).homeserverURL(t.Context(), address)
		if err == nil || strings.Contains(err.Error(), "hush") || !strings.Contains(err.Error(), "https://matrix.example.org") {
			t.Errorf("%s: %v", address, err)
		}
	}
}
