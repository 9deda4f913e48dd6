package appservice

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"

	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/store"
)

// Several processes may run on one PostgreSQL database. One works; the others
// stand by, answer the homeserver with an error that makes it try again, and
// take over when the one that works hands over, loses its connections, or stops
// to show that it lives.
const (
	beatEvery    = time.Second
	standbyLook  = 500 * time.Millisecond
	standbyStill = 3 * time.Second // a beat that stands still so long is that of a process that hangs
	standbyMost  = 2 * standbyLook // what one look counts at most: who stood still, or had no database, saw no beats meanwhile
	standbyGone  = 2               // looks in sequence that find a process without connections
)

// watch decides when a waiting process takes over.
type watch struct {
	seen  store.Holder
	at    time.Duration // of the last look
	still time.Duration // for how long the holder and its beat were seen so
	gone  int
}

// due reports whether to take over now, on the monotonic clock.
func (w *watch) due(h store.Holder, now time.Duration) bool {
	w.still += min(now-w.at, standbyMost)
	w.at = now
	if h.Process != w.seen.Process || h.Beat != w.seen.Beat {
		w.still = 0
	}
	if h.Process != w.seen.Process || h.Connected {
		w.gone = 0
	}
	if !h.Connected {
		w.gone++
	}
	w.seen = h
	return h.Process == "" || w.gone >= standbyGone || w.still >= standbyStill
}

// StandBy waits until this process may work on the database, and makes it the
// one that does. It returns at once on SQLite, where [Service.Run] sees by the
// address whether another runs. Meanwhile it answers on the module's address, if
// that is free: live yes, ready no, everything else with an error to be retried.
func StandBy(ctx context.Context, cfg *config.Config, st *store.Store, log zerolog.Logger) error {
	if !st.Shared() {
		return nil
	}
	var server *http.Server
	defer func() {
		if server != nil {
			_ = server.Close() // also frees the address, for the one that works
		}
	}()
	started := time.Now()
	var w watch
	for told := false; ; {
		h, err := st.Holder(ctx)
		if err == nil && w.due(h, time.Since(started)) {
			var took bool
			if took, err = st.TakeOver(ctx, h); err == nil && took {
				if told {
					log.Warn().Msg("The process that worked on the database is gone: taking over")
				}
				go func() { // the service may have much to do before it beats itself
					_ = beat(ctx, st, log)
				}()
				return nil
			}
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			log.Error().Err(err).Dur("retry_in", standbyLook).Msg("Could not see whether another process works on the database")
		case !told && time.Since(started) >= standbyStill/2:
			told = true
			log.Info().Msg("Another process works on the database: standing by")
			l, err := listen(cfg.AppService.Hostname, cfg.AppService.Port)
			if err != nil {
				log.Info().Err(err).Msg("The address is taken while this process stands by; it is needed at the takeover")
				break
			}
			server = newServer(StandbyHandler())
			go serveStandby(server, l, log)
		}
		if !sleep(ctx, standbyLook) {
			return ctx.Err()
		}
	}
}

func serveStandby(server *http.Server, l net.Listener, log zerolog.Logger) {
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		log.Error().Err(err).Msg("Could not answer while standing by")
	}
}

// ReasonStandby is the reason of a process that stands by for being neither ready nor active.
const ReasonStandby = "standing by: another process works on the database"

// StandbyHandler answers while another process works.
func StandbyHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_matrix/mau/live", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, struct{}{})
	})
	for _, path := range []string{"ready", "active"} {
		mux.HandleFunc("GET /_matrix/mau/"+path, func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, http.StatusServiceUnavailable, Readiness{Reason: ReasonStandby})
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		mautrix.RespError{ErrCode: "M_UNKNOWN", Err: "This process stands by", StatusCode: http.StatusServiceUnavailable}.Write(w)
	})
	return mux
}

// beat shows the processes that stand by that this one works, until ctx ends or
// another has taken over.
func beat(ctx context.Context, st *store.Store, log zerolog.Logger) error {
	for {
		once, cancel := context.WithTimeout(ctx, standbyStill)
		err := st.Beat(once)
		cancel()
		switch {
		case errors.Is(err, store.ErrTakenOver):
			return err
		case err != nil && ctx.Err() == nil:
			log.Warn().Err(err).Msg("Could not show the database that this process works")
		}
		if !sleep(ctx, beatEvery) {
			return nil
		}
	}
}

func (s *Service) runBeat(ctx context.Context) {
	if s.store.Shared() {
		s.takenOver(beat(ctx, s.store, s.log))
	}
}
