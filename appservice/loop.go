package appservice

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
)

const (
	// inboxBatch is how many events one reading of the inbox takes.
	inboxBatch = 100
	// maxFailures is how often one event may fail while the database works,
	// before it is put aside: the events behind it must not wait for ever.
	maxFailures = 5

	rulePanic  = "internal/panic"
	ruleFailed = "internal/failed"
)

// loop is the state of the engine's goroutine.
type loop struct {
	*Service
	failing  *store.InboxEvent // the event that failed last
	failures int
	ticked   time.Duration // when the engine last did what is due
}

// tickAtLeast is how often the engine does what is due while the inbox is not
// empty.
const tickAtLeast = time.Second

// runEngine is the one goroutine in which the engine works.
func (s *Service) runEngine(ctx context.Context) {
	for !s.connected.Load() {
		if !sleep(ctx, 100*time.Millisecond) {
			return
		}
	}
	wait := time.Second
	for {
		err := s.reconcileRooms(ctx)
		if err == nil {
			err = s.engine.Start(ctx)
		}
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		s.metrics.Inc(metrics.EngineErrors)
		s.log.Error().Err(err).Dur("retry_in", wait).Msg("Could not start with the rooms")
		if !sleep(ctx, wait) {
			return
		}
		wait = min(2*wait, 30*time.Second)
	}
	l := &loop{Service: s}
	backoff := 100 * time.Millisecond
	for ctx.Err() == nil {
		s.heartbeat.Store(int64(max(s.monotonic(), 1)))
		start := time.Now()
		next, err := l.round(ctx)
		s.metrics.Observe(metrics.EngineSeconds, time.Since(start).Seconds())
		wait := time.Minute
		switch {
		case ctx.Err() != nil:
			return
		case s.takenOver(err):
			return
		case err != nil:
			s.metrics.Inc(metrics.EngineErrors)
			s.log.Error().Err(err).Dur("retry_in", backoff).Msg("A round over the inbox failed")
			if !sleep(ctx, backoff) {
				return
			}
			backoff = min(2*backoff, 10*time.Second)
			continue
		case next > 0:
			wait = min(max(next-s.monotonic(), 0), wait)
		}
		backoff = 100 * time.Millisecond
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-s.wake:
		case <-s.reconcile:
			if err := s.reconcileRooms(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn().Err(err).Msg("Could not compare the rooms with the homeserver's")
				go func() {
					if sleep(ctx, 10*time.Second) {
						s.wakeReconcile()
					}
				}()
			}
		}
		timer.Stop()
	}
}

// takenOver ends the module if another process has taken over the database:
// what this one holds in memory is not what is stored any more, so it must sign
// nothing.
func (s *Service) takenOver(err error) bool {
	if !errors.Is(err, store.ErrTakenOver) {
		return false
	}
	select {
	case s.ended <- fmt.Errorf("appservice: %w", err):
	default: // it is ending already
	}
	return true
}

// round tells the engine what was sent, hands it what came in, and lets it do
// what is due.
func (l *loop) round(ctx context.Context) (next time.Duration, err error) {
	if err := l.store.Owned(ctx); err != nil {
		return 0, err
	}
	for ctx.Err() == nil {
		more, err := l.settle(ctx)
		if err != nil {
			return 0, err
		}
		rows, err := l.store.NextInbox(ctx, inboxBatch)
		if err != nil {
			return 0, err
		}
		if len(rows) == 0 {
			l.drained.Store(true)
			if !more {
				break
			}
			if l.monotonic()-l.ticked >= tickAtLeast {
				if _, err := l.tick(ctx); err != nil {
					return 0, err
				}
			}
		}
		for _, ev := range rows {
			if err := l.handle(ctx, ev); err != nil {
				return 0, err
			}
			l.heartbeat.Store(int64(max(l.monotonic(), 1)))
			if l.monotonic()-l.ticked >= tickAtLeast {
				if _, err := l.tick(ctx); err != nil {
					return 0, err
				}
			}
		}
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	return l.tick(ctx)
}

// tick lets the engine do what is due.
func (l *loop) tick(ctx context.Context) (next time.Duration, err error) {
	var panicked error
	l.ticked = l.monotonic()
	next, err = func() (next time.Duration, err error) {
		defer l.catch("tick", &panicked)
		if l.skipped.Swap(false) {
			if err := l.engine.Recheck(ctx); err != nil {
				l.skipped.Store(true)
				return 0, err
			}
		}
		if stirred := l.stir.take(); len(stirred) > 0 {
			if err := l.engine.Recheck(ctx, stirred...); err != nil {
				return 0, err
			}
		}
		return l.engine.Tick(ctx, l.monotonic())
	}()
	if panicked != nil {
		return 0, panicked
	}
	return next, err
}

// handle hands one event to the engine. A failure of the database or of the
// engine itself comes back; an event that fails again and again while the
// database works is put aside.
func (l *loop) handle(ctx context.Context, ev *store.InboxEvent) error {
	about, log := eventLog(ctx, ev)
	var panicked error
	err := func() error {
		defer l.catch("event", &panicked)
		return l.engine.HandleEvent(about, ev)
	}()
	rule := ruleFailed
	switch {
	case panicked != nil:
		rule = rulePanic
	case err == nil:
		after, readErr := l.store.Inbox(ctx, ev.EventID)
		if readErr != nil {
			return readErr
		}
		if after.Status != store.InboxNew {
			l.failing, l.failures = nil, 0
			return nil
		}
		// It would come again for ever.
		err = fmt.Errorf("appservice: internal: the engine left event %s as it was", ev.EventID)
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		if l.failing == nil || l.failing.EventID != ev.EventID {
			l.failing, l.failures = ev, 0
		}
		if l.failures++; l.failures < maxFailures {
			return err
		}
		if pingErr := l.store.Ping(ctx); pingErr != nil {
			return err
		}
	}
	if err == nil {
		err = panicked
	}
	log.Error().Err(err).Str("rule", rule).Msg("Put an event aside that could not be handled")
	l.metrics.Rejected(rule)
	l.failing, l.failures = nil, 0
	return l.store.Tx(ctx, func(ctx context.Context) error {
		if err := l.store.PutRefusal(ctx, &store.Refusal{Room: ev.Room, Event: ev.EventID, Rule: rule, Detail: err.Error()}); err != nil {
			return err
		}
		return l.store.FinishInbox(ctx, ev.EventID, store.InboxRefused, rule)
	})
}

// catch turns a panic of the engine into an error.
func (l *loop) catch(where string, err *error) {
	if l.probe != nil {
		return
	}
	if cause := recover(); cause != nil {
		l.panicked("engine "+where, cause)
		*err = fmt.Errorf("appservice: internal: the engine panicked in %s", where)
	}
}

// settle tells the engine what was sent and what was refused for good, of so many
// rows as one reading takes, and reports whether more may wait.
func (l *loop) settle(ctx context.Context) (more bool, err error) {
	rows, err := l.store.SettledOutbox(ctx, inboxBatch)
	if err != nil || len(rows) == 0 {
		return false, err
	}
	// All in one transaction: a database that waits for the disk does so at each.
	panicked, err := l.settleRows(ctx, rows)
	if panicked == nil {
		return len(rows) == inboxBatch, err
	}
	for _, row := range rows {
		panicked, err := l.settleRows(ctx, []*store.OutboxRow{row})
		if panicked != nil {
			// It would panic again.
			err = l.store.AckOutbox(ctx, row.ID)
		}
		if err != nil {
			return false, err
		}
	}
	return len(rows) == inboxBatch, nil
}

// settleRows tells the engine of rows in one transaction, and that it panicked.
func (l *loop) settleRows(ctx context.Context, rows []*store.OutboxRow) (panicked, err error) {
	err = l.store.Tx(ctx, func(ctx context.Context) error {
		for _, row := range rows {
			err := func() error {
				defer l.catch("settle", &panicked)
				if row.Status == store.OutboxSent {
					return l.engine.Sent(ctx, row, row.EventID)
				}
				return l.engine.Failed(ctx, row)
			}()
			if err == nil {
				err = panicked
			}
			if err == nil {
				err = l.store.AckOutbox(ctx, row.ID)
			}
			if err != nil {
				return err
			}
			l.crash(crashSettling)
		}
		return nil
	})
	return panicked, err
}

// reconcileRooms adds rooms that the bot is in and the database does not know:
// it was lost, or an invitation was taken by hand.
func (s *Service) reconcileRooms(ctx context.Context) error {
	joined, err := s.hs.JoinedRooms(ctx)
	if err != nil {
		return err
	}
	own, err := s.store.Get(ctx, keyProbeRoom)
	if err != nil {
		return err
	}
	for _, room := range joined {
		if string(room) == own || s.filter.has(room) && !s.filter.hasLeft(room) {
			continue
		}
		if s.filter.hasLeft(room) {
			if err := s.store.SetRoomStatus(ctx, room, store.RoomJoined); err != nil {
				return err
			}
		}
		if err := s.store.NoteRoom(ctx, room, store.RoomJoined); err != nil {
			return err
		}
		s.filter.add(room)
		s.log.Info().Stringer("room_id", room).Msg("Found a room that the database did not know the bot to be in")
	}
	return nil
}
