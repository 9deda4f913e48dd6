package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestARunningDemoIsLeftAlone: a second one in its directory deletes nothing, before or
// after the first has come to its end. What a demo left whose servers are gone is deleted.
func TestARunningDemoIsLeftAlone(t *testing.T) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Skip("no /proc")
	}
	started := strings.Fields(string(stat[strings.LastIndex(string(stat), ")")+1:]))[19]
	dir := filepath.Join(t.TempDir(), "lab", "demo")
	lock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), dir, "bin", 0); !errors.Is(err, errRuns) {
		t.Errorf("while the first is told: %v", err)
	}
	lock.Close()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("state.json", fmt.Sprintf(`{"dir": %q, "servers": {}, "programs": {"syn1": {"log": "x"}}}`, dir))
	write("syn1.pid", fmt.Sprintf(`{"pid": %d, "start": %q}`, os.Getpid(), started)) // it runs
	if err := run(t.Context(), dir, "bin", 0); !errors.Is(err, errRuns) || !strings.Contains(err.Error(), "syn1") {
		t.Errorf("while its servers run: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "state.json")); err != nil {
		t.Fatalf("the first one's files: %v", err)
	}
	write("syn1.pid", fmt.Sprintf(`{"pid": %d, "start": "1"}`, os.Getpid())) // another process has its number
	if err := clearOld(t.Context(), dir); err != nil {
		t.Errorf("after its servers ended: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is left is there: %v", err)
	}
}

func TestTakenPortsAreFoundBeforeAnythingStarts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := portsFree(l.Addr().(*net.TCPAddr).Port - 3); !errors.Is(err, errPorts) {
		t.Errorf("got %v, want errPorts", err)
	}
}
