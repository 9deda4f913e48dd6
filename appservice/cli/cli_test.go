package cli

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/matrix-mls/matrix-mls/internal/patience"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"matrix-mls": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			code := Run(ctx, Env{Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr, Environ: os.Environ(), Version: "1.2.3-test"})
			stop()
			os.Exit(int(code))
		},
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			port, err := freePort()
			if err != nil {
				return err
			}
			env.Setenv("PORT", strconv.Itoa(port))
			hs := httptest.NewServer(http.HandlerFunc(fakeHomeserver))
			env.Defer(hs.Close)
			env.Setenv("HS", hs.URL)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits,
			"await": await,
		},
	})
}

// nextPort is below the range from which the kernel hands out ports, and below
// those of the lab's servers: nobody else gets it before the module listens.
var nextPort = func() *atomic.Int64 {
	n := new(atomic.Int64)
	n.Store(10_000 + rand.Int64N(8_000))
	return n
}()

func freePort() (int, error) {
	for range 100 {
		port := int(nextPort.Add(1))
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("no port is free")
}

// fakeHomeserver is one that knows the module and does what it asks.
func fakeHomeserver(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch path := r.URL.Path; {
	case path == "/_matrix/client/versions":
		fmt.Fprint(w, `{"versions":["v1.1","v1.15"]}`)
	case !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer "):
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errcode":"M_MISSING_TOKEN"}`)
	case strings.HasSuffix(path, "/whoami"):
		fmt.Fprint(w, `{"user_id":"@_mls_bot:mls.test","device_id":"MLSMODULE"}`)
	case strings.HasSuffix(path, "/register"):
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"errcode":"M_USER_IN_USE"}`)
	case strings.HasSuffix(path, "/joined_rooms"):
		fmt.Fprint(w, `{"joined_rooms":[]}`)
	case strings.HasSuffix(path, "/ping"):
		fmt.Fprint(w, `{"duration_ms":3}`)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errcode":"M_UNRECOGNIZED"}`)
	}
}

// exits runs a command and compares its exit code: exits CODE command args...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE command args...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if exit := new(exec.ExitError); err != nil {
		if !asExit(err, &exit) {
			ts.Fatalf("%s: %v", args[1], err)
		}
		code = exit.ExitCode()
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

func asExit(err error, target **exec.ExitError) bool {
	exit, ok := err.(*exec.ExitError)
	*target = exit
	return ok
}

// await asks an address until it answers with a status: await URL STATUS
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await URL STATUS")
	}
	if !answersWithin(patience.Hang, args[0], args[1]) {
		ts.Fatalf("%s never answered %s", args[0], args[1])
	}
}

// answersWithin asks an address again and again until it answers with a status,
// or with any if that is empty.
func answersWithin(limit time.Duration, url, status string) bool {
	elapsed, stop := patience.Watch()
	defer stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for elapsed() < limit {
		resp, err := http.Get(url)
		if err == nil {
			_ = resp.Body.Close()
			if status == "" || strconv.Itoa(resp.StatusCode) == status {
				return true
			}
		}
		<-tick.C
	}
	return false
}

func TestUsageFitsOneScreen(t *testing.T) {
	lines := strings.Split(strings.TrimRight(usage, "\n"), "\n")
	if len(lines) > 24 {
		t.Errorf("the usage page has %d lines", len(lines))
	}
	for i, line := range lines {
		if len(line) > 100 {
			t.Errorf("line %d has %d characters", i+1, len(line))
		}
	}
	if !strings.HasPrefix(usage, "Example: ") {
		t.Error("the usage page does not start with an example")
	}
}

func TestExitCodesAreDistinct(t *testing.T) {
	seen := make(map[Code]bool)
	for _, c := range Codes {
		if seen[c.Code] {
			t.Errorf("exit code %d stands twice in the table", c.Code)
		}
		seen[c.Code] = true
	}
}
