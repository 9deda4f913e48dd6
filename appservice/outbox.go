package appservice

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
)

// outbox sends what the engine put to be sent. Within a room and priority the
// order is kept; the urgent goes before the rest; several rooms go at once.
type outbox struct {
	hs       homeserver.Homeserver
	store    *store.Store
	metrics  *metrics.Metrics
	parallel int
	backoff  time.Duration
	maximum  time.Duration
	now      func() time.Time
	settled  func() // called after rows were sent or refused for good
	crash    func(point string)

	wake chan struct{}

	mu     sync.Mutex
	paused time.Time               // no request before this: the homeserver said so
	held   map[id.RoomID]time.Time // nothing into this room before that
}

// maxHold bounds how long the engine can keep a room waiting at once.
const maxHold = time.Minute

// HoldRoom lets nothing be sent into a room for d from now on; zero ends that.
func (o *outbox) HoldRoom(room id.RoomID, d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if d <= 0 {
		delete(o.held, room)
		o.Wake()
		return
	}
	until := o.now().Add(min(d, maxHold))
	if o.held == nil {
		o.held = make(map[id.RoomID]time.Time)
	}
	o.held[room] = until
}

// holds returns the rooms that are held, and when the first of them is free.
func (o *outbox) holds() (rooms map[id.RoomID]bool, first time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.now()
	rooms = make(map[id.RoomID]bool, len(o.held))
	for room, until := range o.held {
		left := until.Sub(now)
		if left <= 0 {
			delete(o.held, room)
			continue
		}
		rooms[room] = true
		if first == 0 || left < first {
			first = left
		}
	}
	return rooms, first
}

func (o *outbox) Wake() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run sends until ctx ends.
func (o *outbox) run(ctx context.Context) {
	log := zerolog.Ctx(ctx)
	trouble := o.backoff
	for {
		wait, err := o.round(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.Error().Err(err).Dur("retry_in", trouble).Msg("Could not read what is to be sent")
			wait, trouble = trouble, min(2*trouble, o.maximum)
		default:
			trouble = o.backoff
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-o.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// idleWait is how long the worker sleeps when nothing is to be sent and nobody
// wakes it.
const idleWait = time.Minute

// priorities is how many there are.
const priorities = 4

// round sends all that is due and tells how long nothing will be.
func (o *outbox) round(ctx context.Context) (time.Duration, error) {
	for ctx.Err() == nil {
		if wait := o.pause(); wait > 0 {
			return wait, nil
		}
		// A held room has at most one row of each priority in the way.
		held, firstFree := o.holds()
		rows, err := o.store.DueOutbox(ctx, 4*o.parallel+priorities*len(held))
		if err != nil {
			return 0, err
		}
		due := len(rows)
		rows = slices.DeleteFunc(rows, func(row *store.OutboxRow) bool { return held[row.Room] })
		if due > 0 && len(rows) == 0 {
			return firstFree, nil
		}
		if len(rows) == 0 {
			at, waiting, err := o.store.NextDue(ctx)
			if err != nil || !waiting {
				return idleWait, err
			}
			return min(max(at.Sub(o.now()), time.Millisecond), idleWait), nil
		}
		o.sendAll(ctx, rows)
	}
	return 0, ctx.Err()
}

func (o *outbox) pause() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.paused.Sub(o.now())
}

// sendAll sends the most urgent row of each room, several rooms at once.
func (o *outbox) sendAll(ctx context.Context, rows []*store.OutboxRow) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, o.parallel)
	seen := make(map[id.RoomID]bool, len(rows))
	for _, row := range rows {
		if seen[row.Room] {
			continue
		}
		seen[row.Room] = true
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			o.sendOne(ctx, row)
		})
	}
	wg.Wait()
}

func (o *outbox) sendOne(ctx context.Context, row *store.OutboxRow) {
	log := zerolog.Ctx(ctx).With().Stringer("room_id", row.Room).Str("event_type", row.Type).Str("txn_id", row.TxnID).Logger()
	if o.pause() > 0 {
		return // rate limited while this batch was under way
	}
	// A process that was stopped for a while may not be the one that sends.
	err := o.store.Owned(ctx)
	if err != nil {
		log.Error().Err(err).Msg("Could not see whether this process may still send")
		o.hold(o.backoff)
		return
	}
	o.crash(crashSending)
	var event id.EventID
	if row.Kind == store.OutboxState {
		event, err = o.hs.SendState(ctx, row.Room, row.Type, row.StateKey, row.Content)
	} else {
		event, err = o.hs.SendEvent(ctx, row.Room, row.Type, row.TxnID, row.Content)
	}
	// What the homeserver answered is noted even if the module is stopping.
	note, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	switch {
	case err == nil:
		o.crash(crashSent)
		if err = o.store.SentOutbox(note, row.ID, event); err != nil {
			log.Error().Err(err).Msg("Sent an event but could not note it, it will be sent again under the same id")
			o.hold(o.backoff)
			return
		}
		o.crash(crashSentNoted)
		o.metrics.Inc(metrics.SentName, "sent")
		log.Debug().Stringer("event_id", event).Msg("Sent an event")
		o.settled()
	case ctx.Err() != nil:
		// Stopping: the row stays as it is.
	case homeserver.IsTemporary(err):
		wait := o.delay(row.Attempts)
		var he *homeserver.Error
		if errors.As(err, &he) && errors.Is(err, homeserver.ErrRateLimited) {
			wait = he.After
			o.hold(wait)
			o.metrics.Inc(metrics.RateLimited)
		}
		o.metrics.Inc(metrics.SentName, "retry")
		log.Warn().Err(err).Int("attempt", row.Attempts+1).Dur("retry_in", wait).Msg("Could not send an event yet")
		if err = o.store.RetryOutbox(note, row.ID, o.now().Add(wait), err.Error()); err != nil {
			log.Error().Err(err).Msg("Could not note a failed attempt")
			o.hold(wait)
		}
	default:
		o.metrics.Inc(metrics.SentName, "refused")
		log.Error().Err(err).Msg("The homeserver refused an event for good")
		if err = o.store.FailOutbox(note, row.ID, err.Error()); err != nil {
			log.Error().Err(err).Msg("Could not note a refusal")
			o.hold(o.backoff)
			return
		}
		o.settled()
	}
}

// hold keeps the worker from sending anything for a while.
func (o *outbox) hold(wait time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if until := o.now().Add(wait); until.After(o.paused) {
		o.paused = until
	}
}

// delay is the wait after a number of failed attempts.
func (o *outbox) delay(attempts int) time.Duration {
	wait := o.backoff
	for range min(attempts, 20) {
		if wait *= 2; wait >= o.maximum {
			return o.maximum
		}
	}
	return wait
}
