package connect

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

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
	dies := make(chan error, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn := r.Context().Value(connKey{}).(net.Conn)
		switch r.URL.Path {
		case "/waits":
			dies <- deaf.Make(conn)
			<-r.Context().Done()
		case "/last":
			_, _ = io.WriteString(w, "answered")
			_ = http.NewResponseController(w).Flush()
			// The client has the whole answer once this returns, and keeps the connection.
			context.AfterFunc(r.Context(), func() { dies <- deaf.Make(conn) })
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
	if err := <-dies; err != nil {
		t.Fatal(err)
	}
	if got, err := ask("/after"); err == nil {
		t.Errorf("a dead connection answered %q", got)
	}
	if got, err := ask("/after"); err != nil || got != "answered" {
		t.Errorf("after a dead connection: %q, %v", got, err)
	}
}
