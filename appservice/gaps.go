package appservice

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// The homeserver's pushes are not a complete log. So every room is compared
// with its history: when the module starts, now and then, and when an event
// names another that is not here.

// Bounds of one comparison.
const (
	gapPages    = 100      // of 100 events each, in one request to read the history
	gapBytes    = 64 << 20 // of events held in memory at a time
	gapPause    = 2 * time.Second
	gapPauseMax = 10 * time.Minute
	maxWants    = 64
	wantTries   = 8
)

// gap is how far a room was compared with its history.
type gap struct {
	wanted   bool // a comparison is due
	complete bool // one ended since the module started, and what it found was handled
	draining bool // one ended, and what it found is in the inbox
	pause    pause
	next     time.Duration // the next regular one
	from     string        // where one that was cut short goes on
	cut      bool
	kept     []*homeserver.Event // what was found so far, newest first
	size     int                 // of these
	newest   id.EventID          // where the search began
}

// want is something that another event names and the module does not hold.
type want struct {
	fetch federation.Fetch
	first bool // a module's head names it: what leads there comes with it
	pause pause
}

// want notes that something is missing.
func (r *room) want(f federation.Fetch) {
	if f.Commit.IsZero() {
		r.wantReceipt(f) // only the history knows where it is
		return
	}
	w := r.wants[f.Commit]
	if w == nil {
		if len(r.wants) >= maxWants {
			r.gap.wanted = true
			return
		}
		r.wants[f.Commit] = &want{fetch: f}
		return
	}
	if w.fetch.EventID == "" {
		w.fetch.EventID = f.EventID
	}
}

// fillGaps asks the homeserver for what is missing and returns when there is
// more to ask.
func (e *Engine) fillGaps(r *room, now time.Duration) (next time.Duration) {
	at := func(t time.Duration) {
		if t > now && (next == 0 || t < next) {
			next = t
		}
	}
	if r.m != nil {
		refs := make([]federation.Ref, 0, len(r.wants))
		for ref := range r.wants {
			refs = append(refs, ref)
		}
		slices.SortFunc(refs, func(a, b federation.Ref) int {
			if r.wants[a].first != r.wants[b].first {
				if r.wants[a].first {
					return -1
				}
				return 1
			}
			return compareRefs(a, b)
		})
		for _, ref := range refs {
			w := r.wants[ref]
			switch {
			case r.m.Held(ref) || w.pause.tries >= wantTries:
				delete(r.wants, ref)
			case !w.pause.ready(now):
				at(w.pause.until)
			case w.fetch.EventID != "" && w.pause.tries%2 == 0:
				w.pause.fail(now, gapPause, gapPauseMax)
				e.fetchEvent(r, id.EventID(w.fetch.EventID))
				at(w.pause.until)
			default:
				w.pause.fail(now, gapPause, gapPauseMax)
				r.gap.wanted = true
				if w.pause.tries >= 3 {
					r.anew.refs = append(r.anew.refs, ref)
				}
				at(w.pause.until)
			}
		}
		at(r.fillReceipts(now))
	}
	if r.gap.next > 0 && now >= r.gap.next {
		r.gap.wanted, r.needState = true, true
		r.gap.next = 0
	}
	// Without the state the founding epoch would wait, and all that follows it.
	if (r.gap.wanted || r.gap.cut) && (r.loaded || r.m != nil) {
		if r.gap.pause.ready(now) {
			e.compare(r)
		}
		at(r.gap.pause.until)
	}
	at(r.gap.next)
	return next
}

// fetchEvent gets one event that another names.
func (e *Engine) fetchEvent(r *room, event id.EventID) {
	e.jobs.add(&job{room: r.id, key: "event " + string(event), run: func(ctx context.Context) func(context.Context) error {
		ev, err := e.d.HS.Event(ctx, r.id, event)
		return func(ctx context.Context) error {
			if e.rooms[r.id] != r {
				return nil
			}
			if err != nil {
				if !homeserver.IsTemporary(err) {
					r.gap.wanted = true
				}
				roomLog(ctx, r.id).Debug().Err(err).Stringer("event_id", event).Msg("Could not fetch an event")
				return nil
			}
			_, err := e.takeIn(ctx, r, store.SourceEvent, ev)
			return err
		}
	}})
}

// passing are refusals that may not stand when the event comes again.
var passing = []string{ruleTooManyWait, ruleWaitedTooLong, string(federation.RuleTooMany), string(rooms.RuleMediaHash)}

// takeIn puts events that were fetched into the inbox. One that was put aside
// when it came first gets another chance.
func (e *Engine) takeIn(ctx context.Context, r *room, source store.Source, events ...*homeserver.Event) (fresh int, err error) {
	var rows []*store.InboxEvent
	for _, ev := range events {
		if ev.Room != r.id || !strings.HasPrefix(ev.Type, rooms.Prefix) {
			continue
		}
		rows = append(rows, inboxRow(ev, source))
	}
	if len(rows) == 0 {
		return 0, nil
	}
	err = e.d.Store.Tx(ctx, func(ctx context.Context) error {
		added, err := e.d.Store.PutInbox(ctx, rows...)
		if err != nil {
			return err
		}
		fresh = len(added)
		if source != store.SourceEvent {
			return nil
		}
		for _, row := range rows {
			old, err := e.d.Store.Inbox(ctx, row.EventID)
			if err != nil {
				return err
			}
			if old.Status == store.InboxIgnored || old.Status == store.InboxRefused && slices.Contains(passing, old.Rule) {
				if err := e.d.Store.RenewInbox(ctx, row); err != nil {
					return err
				}
				fresh++
			}
		}
		return nil
	})
	if err == nil {
		e.d.crash(crashGapStored)
	}
	if fresh > 0 {
		e.d.Metrics.Add(metrics.Gaps, float64(fresh), "filled")
		e.d.Wake()
	}
	return fresh, err
}

// compared is what a comparison with the history found.
type compared struct {
	events []*homeserver.Event // unknown ones, newest first
	size   int
	newest id.EventID
	from   string // where to go on; empty: it is complete
	err    error
}

// compare pages back through a room's history until it meets what is known.
func (e *Engine) compare(r *room) {
	from, stop := r.gap.from, r.data.Compared
	if r.m == nil { // the group's beginning is to be found
		stop = ""
	}
	e.jobs.add(&job{room: r.id, key: "history", run: func(ctx context.Context) func(context.Context) error {
		res := e.readHistory(ctx, r.id, from, stop)
		return func(ctx context.Context) error {
			if e.rooms[r.id] != r {
				return nil
			}
			return e.gotHistory(ctx, r, res)
		}
	}})
}

// readHistory runs in a goroutine of its own; the database may be read from
// any.
func (e *Engine) readHistory(ctx context.Context, room id.RoomID, from string, stop id.EventID) compared {
	var res compared
	seen := make(map[id.EventID]bool)
	met := false // the event where the last search began
	for pages := range gapPages {
		page, err := e.d.HS.Messages(ctx, room, homeserver.MessagesRequest{From: from, Dir: homeserver.Backward, Limit: 100, Types: rooms.PowerLevelTypes()})
		if err != nil {
			if pages > 0 { // what was read is not read again
				break
			}
			res.err = err
			return res
		}
		ours, old := 0, 0
		for _, ev := range page.Events {
			if !strings.HasPrefix(ev.Type, rooms.Prefix) || seen[ev.ID] {
				continue
			}
			met = met || ev.ID == stop
			if ours == 0 && pages == 0 {
				res.newest = ev.ID
			}
			seen[ev.ID] = true
			ours++
			_, err := e.d.Store.Inbox(ctx, ev.ID)
			switch {
			case err == nil:
				old++
			case errors.Is(err, store.ErrNotFound):
				res.events = append(res.events, ev)
				res.size += len(ev.Raw)
			default:
				res.err = err
				return res
			}
		}
		// A page of known events alone ends nothing: what the homeserver failed
		// to push may lie behind any number of them. The search ends where the
		// last one began, and there only if nothing of that page is new: events
		// from afar are put in where they belong, not at the end.
		if page.End == "" || page.End == from || met && ours == old {
			return res
		}
		from = page.End
		if res.size > gapBytes {
			break
		}
	}
	res.from = from
	return res
}

func (e *Engine) gotHistory(ctx context.Context, r *room, res compared) error {
	log := roomLog(ctx, r.id)
	now := e.d.Monotonic()
	if res.err != nil {
		r.gap.pause.fail(now, gapPause, gapPauseMax)
		log.Warn().Err(res.err).Msg("Could not compare a room with its history yet")
		return nil
	}
	if r.gap.from == "" {
		r.gap.newest = res.newest
	}
	r.gap.kept, r.gap.size = append(r.gap.kept, res.events...), r.gap.size+res.size
	r.gap.from, r.gap.cut = res.from, res.from != ""
	if r.gap.cut && r.gap.size < gapBytes {
		return nil // the older ones are handled first
	}
	events := r.gap.kept
	r.gap.kept, r.gap.size = nil, 0
	slices.Reverse(events)
	fresh, err := e.takeIn(ctx, r, store.SourceMessages, events...)
	if err != nil {
		return err
	}
	if fresh > 0 {
		if r.gap.complete {
			e.d.Metrics.Add(metrics.Gaps, float64(fresh), "found")
		}
		log.Info().Int("events", fresh).Msg("Found events in a room's history")
	}
	r.gap.wanted = false
	if r.gap.cut {
		return nil
	}
	if r.gap.newest != "" && r.gap.newest != r.data.Compared {
		// What was found is in the inbox, so it is not looked for again.
		r.data.Compared, r.dirty = r.gap.newest, true
		if err := e.update(ctx, r, func(context.Context) error { return nil }); err != nil {
			return err
		}
	}
	if len(r.wants) > 0 && fresh == 0 {
		r.gap.pause.fail(now, gapPause, gapPauseMax)
	} else {
		r.gap.pause.reset()
		r.gap.pause.until = now + gapPause
	}
	if !r.gap.complete {
		// What was found is handled before the module signs anything.
		r.gap.draining = true
		e.d.Wake()
	}
	r.retryWaiting = true
	r.gap.next = now + e.d.Config.Rooms.GapCheck.D()
	r.tryBootstrap = true
	return nil
}

func (e *Engine) nonce() string {
	var b [12]byte
	if _, err := io.ReadFull(e.d.Rand, b[:]); err != nil {
		return fmt.Sprintf("%d", e.d.Monotonic())
	}
	return hex.EncodeToString(b[:])
}
