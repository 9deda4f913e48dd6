package appservice

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
)

// readiness asks one of the endpoints for those who watch the module.
func (b *bench) readiness(t *testing.T, path string) (int, Readiness) {
	t.Helper()
	w := request(b.Handler(), "GET", "/_matrix/mau/"+path, "", "")
	var r Readiness
	if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return w.Code, r
}

func TestNotReadyWhileTheHomeserverIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(logBuffer)
		b := newBench(t, storetest.SQLite(t), nil, log)
		b.now = time.Now
		b.connected.Store(true)
		b.linked.Store(true)
		b.drained.Store(true)
		answer := func(err error) {
			b.hs.mu.Lock()
			defer b.hs.mu.Unlock()
			b.hs.versions = func() error { return err }
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go b.runAway(ctx)
		want := func(when string, ready int, away time.Time) {
			t.Helper()
			synctest.Wait()
			code, r := b.readiness(t, "ready")
			if code != ready || (r.Away != 0) != (ready != http.StatusOK) {
				t.Fatalf("%s: ready answers %d, %+v; want %d", when, code, r, ready)
			}
			if ready != http.StatusOK && (r.Away != away.UnixMilli() || !strings.Contains(r.Reason, "the homeserver has not answered since "+away.UTC().Format(time.RFC3339))) {
				t.Errorf("%s: %+v does not say since when (%v)", when, r, away)
			}
			// Nobody stops a module, or takes requests from it, for its homeserver.
			if code, _ := b.readiness(t, "live"); code != http.StatusOK {
				t.Errorf("%s: live answers %d", when, code)
			}
			if code, active := b.readiness(t, "active"); code != http.StatusOK || active.Away != r.Away {
				t.Errorf("%s: active answers %d, %+v", when, code, active)
			}
		}
		want("at the start", http.StatusOK, time.Time{})

		unreachable := &homeserver.Error{Op: "fetch versions", Kind: homeserver.ErrUnreachable}
		answer(unreachable)
		gone := time.Now().Add(awayEvery)
		<-time.After(awayEvery)
		want("one look in vain", http.StatusOK, time.Time{})
		<-time.After(awayAgain)
		want("away", http.StatusServiceUnavailable, gone)
		answer(&homeserver.Error{Op: "fetch versions", Kind: homeserver.ErrServer, Status: http.StatusBadGateway})
		<-time.After(time.Minute)
		want("away behind what stands before it", http.StatusServiceUnavailable, gone)
		answer(&homeserver.Error{Op: "fetch versions", Kind: homeserver.ErrRateLimited})
		<-time.After(awayAgain)
		want("back", http.StatusOK, time.Time{})

		answer(unreachable)
		gone = time.Now().Add(awayEvery)
		<-time.After(awayEvery + awayAgain)
		want("away again", http.StatusServiceUnavailable, gone)
		stop()
		synctest.Wait()
		for text, n := range map[string]int{"The homeserver does not answer": 2, "The homeserver answers again": 1} {
			if got := strings.Count(log.String(), text); got != n {
				t.Errorf("the log says %q %d times, want %d", text, got, n)
			}
		}
	})
}
