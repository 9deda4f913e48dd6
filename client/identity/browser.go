package identity

import (
	"context"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// visit lets the user visit a page that ends in a redirect to a listener on the
// loopback interface, at a path there, and returns when that was called with a
// query that take wants, or when ctx ends. take may be called again after it
// wanted none; its error ends the visit.
func visit(ctx context.Context, path string, page func(redirect string) string, open func(string) error, take func(url.Values) (bool, error)) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("identity: listen for the browser: %w", err)
	}
	var mu sync.Mutex
	ended := false
	results := make(chan error, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		var taken bool
		var err error
		mu.Lock()
		if !ended { // a second call after the first was good finds nothing to do
			if taken, err = take(r.URL.Query()); taken || err != nil {
				ended = true
				results <- err
			}
		}
		mu.Unlock()
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-store")
		message := "Go back to the terminal: it says whether the login worked. You can close this page."
		switch {
		case err != nil:
			w.WriteHeader(http.StatusBadRequest)
			message = "The login did not come to its end. Close this page; the terminal says why."
		case !taken:
			w.WriteHeader(http.StatusBadRequest)
			message = "This page was called without a login. Close it and try again."
		}
		fmt.Fprintf(w, "<!DOCTYPE html><html lang=en><title>mls-proxy</title><p>%s</p></html>", html.EscapeString(message))
	})
	server := &http.Server{
		Handler: mux, ReadTimeout: 10 * time.Second, ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10,
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // ends with ErrServerClosed, below
	}()
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if server.Shutdown(stop) != nil {
			server.Close()
		}
		<-served
	}()
	if err := open(page("http://" + listener.Addr().String() + path)); err != nil {
		return fmt.Errorf("identity: open a browser: %w", err)
	}
	select {
	case err := <-results:
		return err
	case <-ctx.Done():
		return fmt.Errorf("identity: no answer from the browser: %w", ctx.Err())
	}
}
