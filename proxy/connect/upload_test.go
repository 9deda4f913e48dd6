package connect

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestAnUploadWaitsForAServerThatDoesNotRead: who is there, but is too busy to read for a while, is not given up, and gets
// it all. The length of what is sent may be known or not.
func TestAnUploadWaitsForAServerThatDoesNotRead(t *testing.T) {
	const (
		limit = 2 * time.Second
		size  = 16 << 20 // more than lies in buffers between the two
	)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(2 * limit): // the kernel counts, in its own time
		case <-r.Context().Done():
		}
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	}))
	t.Cleanup(server.Close)
	for name, body := range map[string]io.Reader{
		"known":   bytes.NewReader(make([]byte, size)),
		"unknown": io.LimitReader(zeros{}, size),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			through := transport(limit)
			defer through.CloseIdleConnections()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, body)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := through.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if got, err := io.ReadAll(resp.Body); err != nil || string(got) != fmt.Sprint(size, nil) {
				t.Errorf("%q, %v; want %d bytes", got, err, size)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
