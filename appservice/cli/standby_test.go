package cli

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/internal/patience"
)

// takeoverLimit is how long a process that stands by may take until it works.
const takeoverLimit = 5 * time.Second

// process is a module in a process of its own.
type process struct {
	t    *testing.T
	name string
	url  string
	cmd  *exec.Cmd
	out  *bytes.Buffer
	done chan error
}

const standbyToken = "hs-token-planted-0123456789"

func startProcess(t *testing.T, name string, db store.Config, hs string, port int) *process {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	text := fmt.Sprintf(`homeserver: {address: %q, domain: mls.test, software: synapse}
appservice: {hostname: 127.0.0.1, port: %d, address: "http://127.0.0.1:%d", as_token: as-token-planted-0123456789, hs_token: %s}
database: {type: postgres, uri: %q}
`, hs, port, port, standbyToken, db.URI)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, name: name, url: fmt.Sprintf("http://127.0.0.1:%d", port), out: new(bytes.Buffer), done: make(chan error, 1)}
	p.cmd = &exec.Cmd{Path: self, Args: []string{"matrix-mls", "serve", "-n", "-c", file}, Env: os.Environ(), Dir: dir, Stdout: p.out, Stderr: p.out}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		_ = p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%s said:\n%s", name, p.out)
		}
	})
	return p
}

func (p *process) await(path, status string, limit time.Duration) {
	p.t.Helper()
	if !answersWithin(limit, p.url+path, status) {
		p.t.Fatalf("%s did not answer %s on %s within %v", p.name, status, path, limit)
	}
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// ended waits for the exit code.
func (p *process) ended(limit time.Duration) int {
	p.t.Helper()
	select {
	case err := <-p.done:
		p.done <- err
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		p.t.Fatalf("%s does not end", p.name)
	}
	return -1
}

// push sends a transaction with an invitation and returns the answer's status.
func (p *process) push(n string) int {
	event := fmt.Sprintf(`{"event_id":"$%s","room_id":"!%s:mls.test","sender":"@alice:mls.test","type":"m.room.member","state_key":"@_mls_bot:mls.test","origin_server_ts":1,"content":{"membership":"invite"}}`, n, n)
	req, err := http.NewRequest(http.MethodPut, p.url+"/_matrix/app/v1/transactions/"+n, strings.NewReader(`{"events":[`+event+`]}`))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+standbyToken)
	client := http.Client{Timeout: patience.Hang}
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// pingActive calls back the process that says that it is active, as a homeserver does by the one address that it knows, with
// what passes its requests on behind it.
func pingActive(ports []int) bool {
	client := http.Client{Timeout: 5 * time.Second}
	for _, port := range ports {
		at := fmt.Sprintf("http://127.0.0.1:%d", port)
		resp, err := client.Get(at + "/_matrix/mau/active")
		if err != nil {
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			continue
		}
		req, err := http.NewRequest(http.MethodPost, at+"/_matrix/app/v1/ping", strings.NewReader(`{"transaction_id":"ping"}`))
		if err != nil {
			return false
		}
		req.Header.Set("Authorization", "Bearer "+standbyToken)
		if resp, err = client.Do(req); err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	return false
}

// TestTwoProcessesOnOneDatabase: of two processes on one PostgreSQL, behind one address, one works and the other takes over,
// whichever way the first ends. That it accepts commits then is shown on real homeservers (e2e.TestSecondProcessTakesOver).
func TestTwoProcessesOnOneDatabase(t *testing.T) {
	db := storetest.Postgres(t)
	ports := make([]int, 2)
	for i := range ports {
		var err error
		if ports[i], err = freePort(); err != nil {
			t.Fatal(err)
		}
	}
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/ping") && !pingActive(ports) {
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, `{"errcode":"M_CONNECTION_FAILED","error":"nobody is behind the module's address"}`)
			return
		}
		fakeHomeserver(w, r)
	}))
	t.Cleanup(hs.Close)
	a := startProcess(t, "a", db, hs.URL, ports[0])
	a.await("/_matrix/mau/ready", "200", patience.Hang)
	b := startProcess(t, "b", db, hs.URL, ports[1])
	b.await("/_matrix/mau/live", "200", patience.Hang)
	b.await("/_matrix/mau/ready", "503", patience.Hang)
	if got := a.push("1"); got != http.StatusOK {
		t.Fatalf("the process that works answers %d", got)
	}
	if got := b.push("2"); got != http.StatusServiceUnavailable {
		t.Errorf("the process that stands by answers %d, want 503, which homeservers repeat", got)
	}

	// Killed: its connections end with it.
	a.signal(syscall.SIGKILL)
	t.Logf("b works %v after SIGKILL", patience.Measure(func() { b.await("/_matrix/mau/ready", "200", takeoverLimit) }))
	if got := b.push("2"); got != http.StatusOK {
		t.Errorf("after the takeover: %d", got)
	}

	// Stopped: its connections stay, and it holds what it held.
	a = startProcess(t, "a again", db, hs.URL, ports[0])
	a.await("/_matrix/mau/ready", "503", patience.Hang)
	b.signal(syscall.SIGSTOP)
	t.Logf("a works %v after SIGSTOP", patience.Measure(func() { a.await("/_matrix/mau/ready", "200", takeoverLimit) }))
	late := make(chan int, 1)
	go func() { late <- b.push("3") }() // the kernel takes it, the process gets it when it goes on
	st := storetest.Open(t, db, nil)
	before, err := st.Holder(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	b.signal(syscall.SIGCONT)
	if code := b.ended(patience.Hang); code != int(TakenOver) {
		t.Errorf("the process that was stopped ended with %d, want %d", code, TakenOver)
	}
	if got := <-late; got == http.StatusOK {
		t.Error("a process that was taken over took a transaction in")
	}
	if after, err := st.Holder(context.Background()); err != nil || after.Process != before.Process {
		t.Errorf("the database went from %+v to %+v, %v", before, after, err)
	}
	for event, want := range map[id.EventID]bool{"$1": true, "$2": true, "$3": false} {
		_, err := st.Inbox(context.Background(), event)
		if known := err == nil; known != want {
			t.Errorf("the invitation %s is in the database: %v, want %v", event, known, want)
		}
	}

	// Stopped in order: the next goes on at once.
	c := startProcess(t, "c", db, hs.URL, ports[1])
	c.await("/_matrix/mau/ready", "503", patience.Hang)
	a.signal(syscall.SIGTERM)
	if code := a.ended(patience.Hang); code != int(Done) {
		t.Errorf("stopped in order it ended with %d", code)
	}
	t.Logf("c works %v after the other ended", patience.Measure(func() { c.await("/_matrix/mau/ready", "200", takeoverLimit) }))
}
