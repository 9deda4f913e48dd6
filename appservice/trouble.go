package appservice

import (
	"time"

	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
)

const (
	troubleTime  = time.Minute      // what lasts shorter is none
	troubleEvery = 10 * time.Second // between two counts
	maxArrived   = 1024             // commits of a room whose finality is timed
)

// The kinds of trouble, as the metric names them.
const (
	troubleStalled     = "stalled"
	troubleFrozen      = "frozen"
	troubleProvisional = "provisional"
	troubleUnvouched   = "unvouched"
	troubleHeld        = "held"
)

var troubles = []string{troubleStalled, troubleFrozen, troubleProvisional, troubleUnvouched, troubleHeld}

// troubled tells what is wrong with a room at the moment.
func (r *room) troubled(kind string) bool {
	if r.m == nil || r.status == store.RoomLeft {
		return false
	}
	switch kind {
	case troubleStalled:
		return r.m.Stalled() > 0
	case troubleFrozen:
		return r.m.UsableHead() != r.m.Head()
	case troubleProvisional:
		return r.m.Provisional()
	case troubleUnvouched:
		_, is := r.m.Unvouched()
		return is
	default:
		return !r.resumed
	}
}

// noteTrouble keeps since when the room is in trouble, and returns the kinds that
// have lasted.
func (r *room) noteTrouble(now time.Duration) (lasting []string) {
	for _, kind := range troubles {
		if !r.troubled(kind) {
			delete(r.trouble, kind)
			continue
		}
		if r.trouble == nil {
			r.trouble = make(map[string]time.Duration)
		}
		since, ok := r.trouble[kind]
		if !ok {
			r.trouble[kind], since = now, now
		}
		if now-since >= troubleTime {
			lasting = append(lasting, kind)
		}
	}
	return lasting
}

// countTrouble counts the rooms in trouble.
func (e *Engine) countTrouble(now time.Duration) {
	if now < e.nextCount {
		return
	}
	e.nextCount = now + troubleEvery
	counts := make(map[string]int)
	for _, r := range e.rooms {
		for _, kind := range r.noteTrouble(now) {
			counts[kind]++
		}
	}
	for _, kind := range troubles {
		e.d.Metrics.Set(metrics.RoomsTroubled, float64(counts[kind]), kind)
	}
}
