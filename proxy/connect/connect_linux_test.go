package connect

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/matrix-mls/matrix-mls/internal/deaf"
)

type connKey struct{}

// TestWhatWaitsOnADeadConnectionFailsSoon: a request that waits for its answer, and one that is made on a connection that
// died while nobody used it. The next ones go through.
func TestWhatWaitsOnADeadConnectionFailsSoon(t *testing.T) {
	const (
		limit   = 2 * time.Second
		bounded = time.Minute // what a system that was asked for nothing needs longer for
	)
	dies, lasts := make(chan error, 1), make(chan net.Conn, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn := r.Context().Value(connKey{}).(net.Conn)
		switch r.URL.Path {
		case "/waits":
			dies <- deaf.Make(conn)
			<-r.Context().Done()
		case "/last":
			lasts <- conn
			_, _ = io.WriteString(w, "answered")
		default:
			_, _ = io.WriteString(w, "answered")
		}
	}))
	server.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) }
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	through := transport(limit)
	defer through.CloseIdleConnections()
	ask := func(path string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), bounded)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, server.URL+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := through.RoundTrip(req)
		if ctx.Err() != nil {
			t.Fatalf("%s waited for a minute", path)
		}
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		return string(raw), err
	}
	if got, err := ask("/waits"); err == nil {
		t.Errorf("a dead connection answered %q", got)
	}
	if err := <-dies; err != nil {
		t.Fatal(err)
	}
	if got, err := ask("/last"); err != nil || got != "answered" {
		t.Fatalf("after a dead connection: %q, %v", got, err)
	}
	// The client keeps the connection. What it did not acknowledge before would be sent again and again, and be heard.
	last := <-lasts
	acknowledged(t, last)
	if err := deaf.Make(last); err != nil {
		t.Fatal(err)
	}
	if got, err := ask("/after"); err == nil {
		t.Errorf("a dead connection answered %q", got)
	}
	if n := unacknowledged(t, last); n != 0 {
		t.Errorf("%d bytes were sent on the dead connection all the same", n)
	}
	if got, err := ask("/after"); err != nil || got != "answered" {
		t.Errorf("after a dead connection: %q, %v", got, err)
	}
}

// acknowledged waits until the other side has acknowledged all that was sent.
func acknowledged(t *testing.T, conn net.Conn) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for unacknowledged(t, conn) > 0 {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}

// unacknowledged is how many bytes were sent that the other side has not acknowledged.
func unacknowledged(t *testing.T, conn net.Conn) int32 {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int32
	var errno syscall.Errno
	if err := raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&n)))
	}); err != nil || errno != 0 {
		t.Fatal(err, errno)
	}
	return n
}
