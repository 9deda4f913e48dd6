package appservice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"maunium.net/go/mautrix"

	"github.com/matrix-mls/matrix-mls/appservice/metrics"
)

// Handler is the module's HTTP interface: the Application Service API for the
// homeserver, live and ready for whoever supervises the module, active for what
// stands before several processes of it, metrics, and pages for admins.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /_matrix/app/v1/transactions/{txnID}", s.putTransaction)
	mux.HandleFunc("POST /_matrix/app/v1/ping", s.postPing)
	mux.HandleFunc("GET /_matrix/app/v1/users/{userID}", s.noSuchThing)
	mux.HandleFunc("GET /_matrix/app/v1/rooms/{roomAlias}", s.noSuchThing)
	mux.HandleFunc("GET /_matrix/mau/live", s.getLive)
	mux.HandleFunc("GET /_matrix/mau/ready", s.getReady)
	mux.HandleFunc("GET /_matrix/mau/active", s.getActive)
	if s.cfg.Metrics.Enabled && s.cfg.Metrics.Listen == "" {
		mux.Handle("GET /metrics", s.metrics.Handler())
	}
	if s.cfg.Admin.Token != "" {
		s.adminPages(mux)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		mautrix.MUnrecognized.WithMessage("The module does not serve this path").Write(w)
	})
	return s.recovered(mux)
}

// recovered is the outermost edge of every request: no panic ends the process.
func (s *Service) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if cause := recover(); cause != nil {
				s.panicked("request", cause)
				mautrix.MUnknown.WithMessage("The module failed").Write(w)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// panicked counts and reports a broken invariant.
func (s *Service) panicked(where string, cause any) {
	s.metrics.Inc(metrics.Panics)
	s.log.Error().Str("where", where).Str("panic", fmt.Sprint(cause)).Bytes("stack", debug.Stack()).
		Msg("A broken invariant of the module itself: please report this")
}

// getLive tells whether the process works at all.
func (s *Service) getLive(w http.ResponseWriter, _ *http.Request) {
	if last := s.heartbeat.Load(); last != 0 && s.monotonic()-time.Duration(last) > 5*time.Minute {
		writeJSON(w, http.StatusInternalServerError, map[string]string{"reason": "the engine has not moved for five minutes"})
		return
	}
	writeJSON(w, http.StatusOK, struct{}{})
}

// Readiness is the answer of the endpoints ready and active.
type Readiness struct {
	Reason string `json:"reason,omitempty"` // why the module is not
	// LastCall is when the homeserver last called the module, in Unix
	// milliseconds; 0 if it never did.
	LastCall int64 `json:"last_call"`
	// Away is since when the homeserver does not answer the module, in Unix
	// milliseconds; 0 while it does.
	Away int64 `json:"homeserver_away_since,omitempty"`
}

// getReady tells whether the module does its work now.
func (s *Service) getReady(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	answer := Readiness{Reason: s.notReady(ctx), LastCall: s.heard.Load(), Away: s.away.Load()}
	if answer.Reason != "" {
		s.metrics.Set(metrics.Ready, 0)
		writeJSON(w, http.StatusServiceUnavailable, answer)
		return
	}
	s.metrics.Set(metrics.Ready, 1)
	writeJSON(w, http.StatusOK, answer)
}

// getActive tells whether this process is the one that takes what the homeserver
// sends. It does not need the homeserver to have reached the module, as ready does:
// the homeserver reaches it through what asks here.
func (s *Service) getActive(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	answer := Readiness{LastCall: s.heard.Load(), Away: s.away.Load()}
	switch {
	case s.stopping.Load():
		answer.Reason = "the module is stopping"
	case s.store.Owned(ctx) != nil:
		answer.Reason = "the database does not answer, or another process works on it"
	default:
		writeJSON(w, http.StatusOK, answer)
		return
	}
	writeJSON(w, http.StatusServiceUnavailable, answer)
}

func (s *Service) notReady(ctx context.Context) string {
	switch {
	case s.stopping.Load():
		return "the module is stopping"
	case s.store.Ping(ctx) != nil:
		return "the database does not answer"
	case s.away.Load() != 0:
		return "the homeserver has not answered since " + time.UnixMilli(s.away.Load()).UTC().Format(time.RFC3339)
	case !s.connected.Load():
		return "the homeserver has not accepted the module yet"
	case !s.linked.Load() && s.heard.Load() == 0:
		return "the homeserver has not reached the module yet"
	case !s.drained.Load():
		return "the inbox has not been read yet"
	}
	return ""
}

// newServer sets every timeout: a slow or silent peer holds nothing for long.
func newServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       60 * time.Second,
		WriteTimeout:      90 * time.Second,
		IdleTimeout:       120 * time.Second,
		MaxHeaderBytes:    64 << 10,
	}
}

// listen opens the port or Unix socket that the homeserver calls.
func listen(hostname string, port uint16) (net.Listener, error) {
	if !strings.HasPrefix(hostname, "/") {
		l, err := net.Listen("tcp", net.JoinHostPort(hostname, fmt.Sprint(port)))
		if err != nil {
			return nil, fmt.Errorf("appservice: cannot listen for the homeserver: %w", err)
		}
		return l, nil
	}
	// A socket left by a process that died would stop the next; one that
	// answers belongs to a running copy.
	if conn, err := net.DialTimeout("unix", hostname, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("appservice: another process answers on %s", hostname)
	}
	if err := os.Remove(hostname); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("appservice: cannot replace the old socket: %w", err)
	}
	l, err := net.Listen("unix", hostname)
	if err != nil {
		return nil, fmt.Errorf("appservice: cannot listen for the homeserver: %w", err)
	}
	return l, nil
}
