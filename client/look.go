package client

import (
	"context"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
)

// A homeserver that could not reach others for a while leaves out of /sync, for
// good, part of what they sent meanwhile; /messages has it. Commits name their
// parents, so a missing one is asked for by its name, but no message names the
// one before it. A device that sees by anything that its stream of events has a
// gap therefore reads the history again, back to where both sides were together.

// lookback is how far the history is read.
type lookback struct {
	until []id.EventID // not beyond these
	pages int          // and no more of these
	// hold: the room's events wait for it, so that each author's messages come in
	// their order, and before the keys to read them with are dropped. What any
	// member of the room can bring about holds nothing.
	hold bool
	// gap is the first event of a timeline of /sync before which others are missing: it
	// is read on beyond it, back to where all was processed.
	gap id.EventID
	// again: what the coordination takes is handled once more, though it was processed.
	again bool
}

// gapHolds is for how many failures in sequence the room's events wait for what is
// missing before them. Then what there is is shown; it is asked for all the same.
const gapHolds = 3

// Keys of the two needs: now, and once more after a while, since the homeserver
// may be fetching the events itself.
const (
	lookNow   = "look/now"
	lookLater = "look/later"

	lookAgain = 10 * time.Second
	lookPause = 30 * time.Second // between two that hold nothing
	lookPages = 5                // where nothing says that much is missing
)

// look asks for the history since a commit that this device knows.
func (c *Client) look(r *room, since federation.Ref, pages int, hold bool) {
	now := c.mono()
	if !hold && now < r.tried[lookNow] {
		return
	}
	r.tried[lookNow] = now + lookPause
	l := &lookback{pages: pages, hold: hold}
	if until := c.commitEvent(r, since); until != "" {
		l.until = append(l.until, until)
	} else {
		l.pages = min(pages, lookPages)
	}
	c.askLook(r, &need{look: l})
}

// lookAfresh asks for the history since a commit that a Welcome opened, for a coordination that begins there: what it
// takes is handled once more.
func (c *Client) lookAfresh(r *room, since federation.Ref) {
	c.look(r, since, c.limits.GapPages, true)
	if n := r.needs[lookNow]; n != nil {
		n.look.again = true
		r.rec.Look.Again = true
	}
}

// lookGap asks for what is missing before an event that /sync showed first, not
// sooner than after a while.
func (c *Client) lookGap(r *room, first id.EventID, wait time.Duration) {
	c.askLook(r, &need{look: &lookback{gap: first, pages: c.limits.GapPages, hold: true}, notFor: c.mono() + wait})
}

// askLook asks for the history, beside what it is asked for already.
func (c *Client) askLook(r *room, n *need) {
	l := n.look
	if asked := r.needs[lookNow]; asked != nil { // it may be under way: what it brings is from before
		n.fail, n.notFor = asked.fail, max(asked.notFor, n.notFor)
		if asked.look.gap != "" {
			l.gap = asked.look.gap // the older one: what lies above it is read on the way
		}
		for _, e := range asked.look.until {
			if !slices.Contains(l.until, e) {
				l.until = append(l.until, e)
			}
		}
		l.pages, l.hold, l.again = max(l.pages, asked.look.pages), l.hold || asked.look.hold, l.again || asked.look.again
		delete(r.needs, lookNow)
	}
	r.want(lookNow, n)
	if l.hold {
		r.rec.Look = &keptLook{Until: l.until, Pages: l.pages, Gap: l.gap, Again: l.again}
	}
	c.poke()
}

// keptLook is a look into the history that is not done: it is done again after a
// restart.
type keptLook struct {
	Until []id.EventID `json:"until,omitempty"`
	Pages int          `json:"pages"`
	Gap   id.EventID   `json:"gap,omitempty"`
	Again bool         `json:"again,omitempty"`
}

// resumeLooks takes over what was to be looked for before the room was read from
// the store.
func (r *room) resumeLooks(needs map[string]*need) {
	if kept := r.rec.Look; kept != nil {
		r.needs[lookNow] = &need{look: &lookback{until: kept.Until, pages: kept.Pages, gap: kept.Gap, again: kept.Again, hold: true}}
	}
	for _, key := range []string{lookNow, lookLater} {
		if n := needs[key]; n != nil {
			r.needs[key] = n
		}
	}
	if r.needs[lookLater] != nil && needs[lookNow] == nil {
		delete(r.needs, lookNow) // that was done
	}
}

// looking tells whether the room's events wait for the history. They do not if the
// homeserver does not give it.
func (r *room) looking() bool {
	n := r.needs[lookNow]
	return n != nil && n.look.hold && (n.fail == 0 || n.look.gap != "" && n.fail < gapHolds)
}

// history reads a room's newest events, oldest first, and which events waited
// when it began: others that wait are newer.
func (c *Client) history(ctx context.Context, roomID id.RoomID, l *lookback) ([]*Event, map[id.EventID]bool, error) {
	waiting, err := c.st.Inbox(ctx, roomID)
	if err != nil {
		return nil, nil, err
	}
	held := map[id.EventID]bool{}
	for _, item := range waiting {
		held[item.EventID] = true
	}
	var out []*Event
	from, until := "", slices.Clone(l.until)
	passed, met, quiet := l.gap == "", false, 0
pages:
	for range l.pages {
		events, next, err := c.page(ctx, roomID, from)
		if err != nil {
			return nil, nil, err
		}
		fresh := false
		for _, evt := range events {
			if c.begins(evt) {
				break pages
			}
			if evt.StateKey == nil { // state is read by itself
				out = append(out, evt)
			}
			until = slices.DeleteFunc(until, func(e id.EventID) bool { return e == evt.ID })
			if passed = passed || evt.ID == l.gap; l.gap == "" || !passed || !c.wanted(nil, evt) {
				continue
			}
			seen, err := c.st.Seen(ctx, roomID, evt.ID)
			if err != nil {
				return nil, nil, err
			}
			met, fresh = met || seen, fresh || !seen
		}
		if quiet++; fresh || !met || !passed {
			quiet = 0
		}
		done := len(l.until) > 0
		if l.gap != "" {
			done = quiet >= gapQuiet
		}
		if next == "" || next == from || done && len(until) == 0 {
			break
		}
		from = next
	}
	slices.Reverse(out)
	return out, held, nil
}

// fileHistory puts what was not seen yet into the inbox, in the order of the
// history. What waits there already is put at its place, and what came since the
// history was read, at the end.
func (c *Client) fileHistory(ctx context.Context, r *room, key string, l *lookback, events []*Event, held map[id.EventID]bool) error {
	fresh := 0
	err := c.st.Do(ctx, func(ctx context.Context) error {
		fresh = 0
		items, err := c.st.Inbox(ctx, r.id)
		if err != nil {
			return err
		}
		waiting := map[id.EventID]*store.InboxItem{}
		for _, item := range items {
			waiting[item.EventID] = item
		}
		again := func(item *store.InboxItem) error {
			if err := c.st.LoadInbox(ctx, item); err != nil {
				return err
			}
			defer func() { item.Data = nil }()
			if err := c.st.DeleteInbox(ctx, r.id, item.EventID); err != nil {
				return err
			}
			return c.st.AddInbox(ctx, item)
		}
		for _, evt := range events {
			if evt.StateKey != nil || !c.wanted(r, evt) {
				continue
			}
			if item := waiting[evt.ID]; item != nil {
				if err := again(item); err != nil {
					return err
				}
				delete(waiting, evt.ID)
				continue
			}
			seen, err := c.st.Seen(ctx, r.id, evt.ID)
			if err != nil {
				return err
			}
			if seen && !(l.again && coordinates(evt.Type)) {
				continue
			}
			if seen {
				if err := c.st.ForgetSeen(ctx, r.id, []id.EventID{evt.ID}); err != nil {
					return err
				}
			} else {
				fresh++
			}
			if err := c.inboxStep(r.id, evt, false)(ctx); err != nil {
				return err
			}
		}
		for _, item := range items {
			if waiting[item.EventID] != nil && !held[item.EventID] {
				if err := again(item); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if fresh > 0 {
		c.log.Info().Stringer("room_id", r.id).Int("events", fresh).Msg("Found events in the history that the homeserver had left out")
	}
	if key == lookNow && (fresh > 0 || l.hold) {
		later := *l
		later.again = false
		r.want(lookLater, &need{look: &later, notFor: c.mono() + lookAgain})
	} else if r.rec.Look != nil && r.needs[lookNow] == nil {
		r.rec.Look = nil
		return c.commitBatch(ctx, r, &batch{})
	}
	return nil
}
