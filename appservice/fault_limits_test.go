package appservice

import (
	"bytes"
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/internal/faults"
	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// fill puts transactions until one is not taken, and returns the events that
// were.
func (b *bench) fill(t *testing.T, most int) (taken []id.EventID, full bool) {
	t.Helper()
	filler := `{"x":"` + strings.Repeat("x", 20<<10) + `"}`
	for i := range most {
		event := fmt.Sprintf("$fill%d", i)
		w := b.txn(event[1:], ev(event, "!a", rooms.TypeCommit, "-", filler))
		switch w.Code {
		case http.StatusOK:
			taken = append(taken, id.EventID(event))
		case http.StatusServiceUnavailable:
			return taken, true
		default:
			t.Fatalf("answer %d", w.Code)
		}
	}
	return taken, false
}

// wantWhole checks that a database is as it should be after a disk was full: it
// starts again, and holds each event that was answered, once.
func wantWhole(t *testing.T, cfg store.Config, taken []id.EventID) {
	t.Helper()
	again := newBench(t, cfg, nil, nil)
	defer again.store.Close()
	if got := again.inbox(t); len(got) < len(taken) || len(got) > len(taken)+2 {
		t.Errorf("%d events are in the inbox, %d were answered", len(got), len(taken))
	}
	for _, event := range taken {
		if _, err := again.store.Inbox(t.Context(), event); err != nil {
			t.Errorf("%s was answered with 200 and is gone: %v", event, err)
		}
	}
	db, err := sql.Open("sqlite", cfg.URI)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var verdict string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&verdict); err != nil || verdict != "ok" {
		t.Errorf("the database is %q, %v", verdict, err)
	}
}

// faultDiskFull lets every write beyond a size fail, as a full disk does.
func faultDiskFull(t *testing.T) {
	cfg := storetest.SQLite(t)
	b := newBench(t, cfg, nil, nil)
	b.txn("0", invitation("$i", "!a"))
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
			t.Fatal(err)
		}
	}
	defer restore()
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 2 << 20, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	taken, full := b.fill(t, 1000)
	if !full || len(taken) == 0 {
		t.Fatalf("%d events were taken, full: %v", len(taken), full)
	}
	if w := b.txn("again", ev("$again", "!a", rooms.TypeCommit, "-", `{"x":"`+strings.Repeat("y", 200<<10)+`"}`)); w.Code != http.StatusServiceUnavailable {
		t.Errorf("answer %d on a full disk, want 503", w.Code)
	}
	restore()
	if w := b.txn("later", ev("$later", "!a", rooms.TypeCommit, "-", `{}`)); w.Code != http.StatusOK {
		t.Errorf("answer %d when there is room again, without a restart", w.Code)
	}
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, cfg, append(taken, "$later"))
}

// faultSmallDisk is the same on a real small file system, and on one that
// becomes read-only. It needs root.
func faultSmallDisk(t *testing.T) {
	dir := t.TempDir()
	mount := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
			t.Fatalf("mount %s: %v: %s\nhint: this test needs root", strings.Join(args, " "), err, out)
		}
	}
	mount("-t", "tmpfs", "-o", "size=3m", "tmpfs", dir)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	cfg := store.Config{Type: "sqlite3", URI: filepath.Join(dir, "module.db")}
	b := newBench(t, cfg, nil, nil)
	b.txn("0", invitation("$i", "!a"))
	taken, full := b.fill(t, 1000)
	if !full {
		t.Fatal("the disk is never full")
	}
	mount("-o", "remount,size=8m", dir)
	if w := b.txn("later", ev("$later", "!a", rooms.TypeCommit, "-", `{}`)); w.Code != http.StatusOK {
		t.Errorf("answer %d when there is room again", w.Code)
	}
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, cfg, append(taken, "$later"))
	mount("-o", "remount,ro", dir)
	if _, err := store.Open(t.Context(), cfg, time.Now); err == nil {
		t.Error("a database on a read-only disk was opened")
	} else if !strings.HasPrefix(err.Error(), "store: ") {
		t.Errorf("opening says %v", err)
	}
	mount("-o", "remount,rw", dir)
}

// faultFailingDisk lets the device below the file system fail with I/O errors. It needs root.
func faultFailingDisk(t *testing.T) {
	disk := faults.NewDisk(t)
	cfg := store.Config{Type: "sqlite3", URI: filepath.Join(disk.Dir, "module.db")}
	b := newBench(t, cfg, nil, nil)
	b.txn("0", invitation("$i", "!a"))
	disk.Fail()
	taken, failed := b.fill(t, 1000)
	if !failed {
		t.Fatal("the disk never fails")
	}
	if w := b.txn("again", ev("$again", "!a", rooms.TypeCommit, "-", `{"x":"`+strings.Repeat("y", 200<<10)+`"}`)); w.Code != http.StatusServiceUnavailable {
		t.Errorf("answer %d on a disk that fails, want 503", w.Code)
	}
	disk.Mend()
	if w := b.txn("later", ev("$later", "!a", rooms.TypeCommit, "-", `{}`)); w.Code != http.StatusOK {
		t.Errorf("answer %d when the disk works again, without a restart", w.Code)
	}
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	disk.Again()
	wantWhole(t, cfg, append(taken, "$later"))
	t.Logf("figures: %d events taken before the disk failed", len(taken))
}

const childSocket = "MLS_FAULT_CHILD_SOCKET"

// TestFaultChild is the module that faultScarcity starves, in a process of its
// own.
func TestFaultChild(t *testing.T) {
	socket := os.Getenv(childSocket)
	if socket == "" {
		return // nobody has started this process for it
	}
	debug.SetMemoryLimit(96 << 20)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 64, Max: 64}); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.AppService.Hostname, cfg.AppService.Port = socket, 0
	b := newBench(t, storetest.SQLite(t), cfg, nil)
	done := make(chan error, 1)
	go func() { done <- b.Run(t.Context()) }()
	_, _ = io.Copy(io.Discard, os.Stdin) // until the other side has seen enough
	select {
	case err := <-done:
		t.Errorf("the module ended by itself: %v", err)
	default:
	}
}

// faultScarcity: 64 file descriptors and little memory. The module refuses work
// before it dies, and works again when it is left alone.
func faultScarcity(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	child := exec.Command(os.Args[0], "-test.run=^TestFaultChild$")
	child.Env = append(os.Environ(), childSocket+"="+socket)
	var out bytes.Buffer
	child.Stdout, child.Stderr = &out, &out
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	end := func() (err error) {
		once.Do(func() {
			_ = stdin.Close()
			err = child.Wait()
		})
		return err
	}
	defer func() { _ = end() }()
	put := func(txn, body string) (int, error) {
		client := &http.Client{Timeout: patience.Hang, Transport: &http.Transport{DisableKeepAlives: true, Dial: func(string, string) (net.Conn, error) { return net.Dial("unix", socket) }}}
		req, err := http.NewRequest(http.MethodPut, "http://module/_matrix/app/v1/transactions/"+txn, strings.NewReader(body))
		if err != nil {
			return 0, err
		}
		req.Header.Set("Authorization", "Bearer "+hsToken)
		resp, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	small := `{"events":[` + invitation("$i", "!a") + `]}`
	works := func() bool { code, err := put("small", small); return err == nil && code == http.StatusOK }
	eventually(t, "the module takes a transaction", works)

	// More connections than it has descriptors.
	var conns []net.Conn
	for range 200 {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			break // the socket's queue is full
		}
		conns = append(conns, conn)
	}
	if len(conns) < 64 {
		t.Fatalf("only %d connections", len(conns))
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
	eventually(t, "the module works after a flood of connections", works)

	// The largest transactions there are, many at once.
	pad := `{"events":[` + invitation("$i", "!a") + `],"x":"` + strings.Repeat("x", 31<<20) + `"}`
	var wg sync.WaitGroup
	codes := make([]int, 12)
	for i := range codes {
		wg.Go(func() { codes[i], _ = put(strconv.Itoa(i), pad) })
	}
	wg.Wait()
	taken := 0
	for _, code := range codes {
		switch code {
		case http.StatusOK:
			taken++
		case http.StatusServiceUnavailable, 0:
		default:
			t.Errorf("answer %d, want 200 or 503", code)
		}
	}
	eventually(t, "the module works after large transactions", works)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", child.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	peak := 0
	for line := range strings.Lines(string(status)) {
		if name, value, _ := strings.Cut(line, ":"); name == "VmHWM" {
			peak, _ = strconv.Atoi(strings.Fields(value)[0])
		}
	}
	t.Logf("figures: %d connections with 64 descriptors; 12 transactions of 31 MiB at once, %d taken, peak memory %d MiB", len(conns), taken, peak>>10)
	limit := 256 << 10
	if raceEnabled {
		limit *= 4
	}
	if peak == 0 || peak > limit {
		t.Errorf("the module took %d KiB, want at most %d", peak, limit)
	}
	if err := end(); err != nil {
		t.Errorf("the module did not survive: %v\n%s", err, &out)
	}
}
