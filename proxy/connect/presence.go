package connect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	firstAnswer = 5 * time.Second  // for which the first answer is waited
	laterAnswer = 15 * time.Second // for which later ones are
	quiet       = 45 * time.Second // longer than a /sync that brings nothing: who is silent for so long is asked
	soonest     = 2 * time.Second  // between two questions to who is away,
	latest      = 30 * time.Second // growing to
	reminder    = 10 * time.Minute // after which it is said again that it is away
)

// versionsPath is asked to see whether there is a homeserver.
const versionsPath = "/_matrix/client/versions"

// State is whether the homeserver answers.
type State struct {
	Away  bool
	Since time.Time // when it went, also once it is back
	Err   error     // why it is thought to be away
	Begun bool      // it has answered before
	Again bool      // that it is away was said before
}

// Presence watches whether a homeserver answers the requests that go through it. It
// asks one of its own where one of them fails, and where there are none.
type Presence struct {
	next http.RoundTripper
	look chan struct{} // something changed, perhaps

	mu    sync.Mutex
	host  string    // of the homeserver, once Run has it
	heard time.Time // when it last answered
	away  bool
}

// NewPresence watches requests through another transport. Run has to be called.
func NewPresence(next http.RoundTripper) *Presence {
	return &Presence{next: next, look: make(chan struct{}, 1)}
}

// RoundTrip implements http.RoundTripper.
func (p *Presence) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := p.next.RoundTrip(req)
	if errors.Is(err, context.Canceled) || errors.Is(req.Context().Err(), context.Canceled) {
		return resp, err // who asked did not wait
	}
	p.note(req.URL.Host, err == nil && resp.StatusCode < http.StatusInternalServerError)
	return resp, err
}

// CloseIdleConnections closes those of the other transport.
func (p *Presence) CloseIdleConnections() {
	if c, ok := p.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// note keeps what a request showed, and looks where it shows something new.
func (p *Presence) note(host string, answered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if host != p.host {
		return
	}
	if answered {
		p.heard = time.Now()
	}
	if answered == p.away {
		select {
		case p.look <- struct{}{}:
		default:
		}
	}
}

// Run watches until ctx ends, and calls tell when the homeserver goes, comes back,
// and now and then while it is away. It is asked at once, unless it is known to
// answer.
func (p *Presence) Run(ctx context.Context, base *url.URL, known bool, tell func(State)) {
	p.mu.Lock()
	p.host, p.heard = base.Host, time.Now()
	p.mu.Unlock()
	s := State{Begun: known}
	var said time.Time
	limit, wait := firstAnswer, soonest
	for first := !known; ; first = false {
		if !first && !p.pause(ctx, s.Away, wait) {
			return
		}
		began := time.Now()
		err := p.ask(ctx, base, limit)
		limit = laterAnswer
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			wait = soonest
			p.set(false)
			if s.Away {
				s.Away, s.Err = false, nil
				tell(s)
			}
			s = State{Begun: true}
		default:
			if !s.Away {
				s.Away, s.Since, wait = true, began, soonest
				p.set(true)
			} else if wait = min(2*wait, latest); time.Since(said) < reminder {
				continue
			}
			s.Err = err
			tell(s)
			s.Again, said = true, time.Now()
		}
	}
}

func (p *Presence) set(away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = away
	if !away {
		p.heard = time.Now()
	}
}

// pause waits until it is time to ask: while the homeserver is away after a time or an
// answer of its, else after a request that failed, or a long silence.
func (p *Presence) pause(ctx context.Context, away bool, wait time.Duration) bool {
	for {
		if !away {
			p.mu.Lock()
			wait = quiet - time.Since(p.heard)
			p.mu.Unlock()
			if wait <= 0 {
				return ctx.Err() == nil
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-p.look:
			timer.Stop()
			return true
		case <-timer.C:
			if away {
				return true
			}
		}
	}
}

// ask asks which versions the homeserver speaks.
func (p *Presence) ask(ctx context.Context, base *url.URL, limit time.Duration) error {
	asked, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(asked, http.MethodGet, strings.TrimRight(base.String(), "/")+versionsPath, nil)
	if err != nil {
		return err
	}
	resp, err := p.next.RoundTrip(req)
	if err != nil {
		if asked.Err() != nil {
			return fmt.Errorf("no answer within %v", limit)
		}
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusTooManyRequests {
		return nil
	}
	var body struct {
		Versions []string `json:"versions"`
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("HTTP %d for %s", resp.StatusCode, versionsPath)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&body); err != nil || len(body.Versions) == 0 {
		return errors.New("what answers there is no homeserver: it names no versions at " + versionsPath)
	}
	return nil
}
