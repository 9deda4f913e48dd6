package client

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// maxWelcomesWaiting and maxWelcomesBy bound the Welcomes that wait in one room, in
// all and of one sender. They are counted apart, or the events of a busy room would
// push out the way into it.
const (
	maxWelcomesWaiting = 64
	maxWelcomesBy      = 8
)

// welcomeAge is how long a Welcome waits for the commit that it belongs to, and for
// what shows that it is not a lie. They come by ways of their own, and after a cut
// one may be much the later.
const welcomeAge = 24 * time.Hour

// welcomeWaits are the waits that end then. For its user to join a Welcome waits for
// as long as that takes.
var welcomeWaits = []string{"welcomed", "parent", "media", "files", "head", "state", "looked"}

// A waitingEvent is what trimInbox has to know of an event in the inbox: with thousands of
// commits to go through, each as large as its tree is, all that wait are not read again for each.
type waitingEvent struct {
	toDevice  bool
	encrypted bool      // a message
	sender    id.UserID // empty: it cannot be read
	at        int64     // unix milliseconds when it came
}

// waitingEvent returns what has to be known of an event in the inbox. It returns
// [store.ErrNotFound] if it was settled.
func (c *Client) waitingEvent(ctx context.Context, r *room, item *store.InboxItem) (*waitingEvent, error) {
	if w := r.waiting[item.EventID]; w != nil {
		return w, nil
	}
	if err := c.st.LoadInbox(ctx, item); err != nil {
		return nil, err
	}
	var data inboxData
	err := json.Unmarshal(item.Data, &data)
	item.Data = nil
	if err != nil {
		return &waitingEvent{}, nil
	}
	return data.waiting(), nil
}

// waiting returns what has to be known of an event while it waits.
func (data *inboxData) waiting() *waitingEvent {
	w := &waitingEvent{toDevice: data.ToDevice, at: data.At}
	if data.Event != nil {
		w.sender, w.encrypted = data.Event.Sender, data.Event.Type == rooms.TypeEncrypted
	}
	return w
}

// waitsAhead tells whether what waits is a receipt ahead of its commit.
func waitsAhead(item *store.InboxItem) bool {
	return item != nil && strings.HasPrefix(item.WaitsFor, aheadWait)
}

// whileLacking is how many times as much waits while a commit is asked for, or the file of one: in a large room those of a long
// absence are all in files, and a homeserver may have left out one. What was given up could never be read.
const whileLacking = 20

// trimInbox bounds what waits: above the limit the oldest events are given up, and
// Welcomes of those for whom least speaks; of these also what has waited for too
// long.
func (c *Client) trimInbox(ctx context.Context, r *room, items []*store.InboxItem) error {
	items = slices.DeleteFunc(items, func(item *store.InboxItem) bool { return item == nil })
	over, err := c.excess(ctx, r, items)
	if err != nil || len(over) == 0 {
		return err
	}
	// Some may have been settled by other events: they do not count.
	rows, err := c.st.Inbox(ctx, r.id)
	if err != nil {
		return err
	}
	left := make(map[id.EventID]bool, len(rows))
	for _, row := range rows {
		left[row.EventID] = true
	}
	over, err = c.excess(ctx, r, slices.DeleteFunc(items, func(item *store.InboxItem) bool { return !left[item.EventID] }))
	if err != nil {
		return err
	}
	for _, item := range over {
		b := &batch{}
		if evt, err := c.waitingCiphertext(ctx, item); err != nil {
			return err
		} else if evt != nil {
			r.noteGivenUp(evt)
		}
		b.do(func(ctx context.Context) error {
			if _, err := c.st.MarkSeen(ctx, r.id, item.EventID); err != nil {
				return err
			}
			if err := c.noteRefused(ctx, r.id, item.EventID, ruleOverLimit); err != nil {
				return err
			}
			return c.st.DeleteInbox(ctx, r.id, item.EventID)
		})
		c.count(ruleOverLimit)
		if err := c.commitBatch(ctx, r, b); err != nil {
			return err
		}
	}
	return nil
}

// excess returns which of the events that wait in a room are given up.
func (c *Client) excess(ctx context.Context, r *room, items []*store.InboxItem) ([]*store.InboxItem, error) {
	var waiting, ahead, over []*store.InboxItem // ahead: receipts, which take no place of a message or a commit
	var welcomes []waitingWelcome               // the oldest first
	now := c.now()
	known := make(map[id.EventID]*waitingEvent, len(items))
	for _, item := range items {
		w, err := c.waitingEvent(ctx, r, item)
		if errors.Is(err, store.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, err
		}
		known[item.EventID] = w
		if w.toDevice {
			kind, _, _ := strings.Cut(item.WaitsFor, ":")
			lost := slices.Contains(welcomeWaits, kind) && now.Sub(time.UnixMilli(w.at)) > welcomeAge
			if lost || w.sender == "" {
				over = append(over, item)
			} else {
				welcomes = append(welcomes, waitingWelcome{item, w.sender})
			}
			continue
		}
		if waitsAhead(item) {
			ahead = append(ahead, item)
			continue
		}
		waiting = append(waiting, item)
		if w.encrypted && now.Sub(time.UnixMilli(w.at)) > c.limits.WaitingAge && r.rec.Phase == phaseMember {
			c.warnOnce(r, "waiting/"+string(item.EventID), &Undecryptable{
				Room: r.id, EventID: item.EventID, Sender: w.sender, Reason: "waits for " + item.WaitsFor,
			})
		}
	}
	r.waiting = known
	limit := c.limits.Waiting
	if r.lacksCommit() {
		limit *= whileLacking
	}
	for _, list := range [][]*store.InboxItem{waiting, ahead} {
		if n := len(list) - limit; n > 0 {
			over = append(over, list[:n]...)
		}
	}
	return append(over, excessWelcomes(welcomes, func(sender id.UserID) int { return c.speaksFor(r, sender) })...), nil
}

// waitingCiphertext returns the event of an inbox row if it is a ciphertext, else nil.
func (c *Client) waitingCiphertext(ctx context.Context, item *store.InboxItem) (*Event, error) {
	if err := c.st.LoadInbox(ctx, item); errors.Is(err, store.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var data inboxData
	err := json.Unmarshal(item.Data, &data)
	item.Data = nil
	if err != nil || data.ToDevice || data.Event == nil || data.Event.Type != rooms.TypeEncrypted && data.Event.Type != rooms.TypeReceipt {
		return nil, nil // what cannot be read was no message
	}
	return data.Event, nil
}

// A waitingWelcome is a Welcome in the inbox.
type waitingWelcome struct {
	item   *store.InboxItem
	sender id.UserID
}

// trustedPower is the power level of those whom rooms let put others out.
const trustedPower = 50

// speaksFor ranks who sends a Welcome: least those who are not in the room, most
// whoever invited this user or let them in.
func (c *Client) speaksFor(r *room, sender id.UserID) int {
	switch {
	case sender == r.rec.Inviter || sender == r.rec.Admitter:
		return 3
	case r.state.Known && r.state.membership(sender) != rooms.MembershipJoin:
		return 0
	case r.state.view.PowerOf(sender) >= trustedPower:
		return 2
	}
	return 1
}

// excessWelcomes takes Welcomes out, until what is left is within bounds: of one
// sender the oldest; of all first those of whom least speaks for, of these the
// busiest one's, and among as busy ones the oldest. list begins with the oldest.
func excessWelcomes(list []waitingWelcome, speaksFor func(sender id.UserID) int) (over []*store.InboxItem) {
	by, rank := map[id.UserID]int{}, map[id.UserID]int{}
	for _, w := range list {
		if by[w.sender]++; by[w.sender] == 1 {
			rank[w.sender] = speaksFor(w.sender)
		}
	}
	drop := func(at int) {
		by[list[at].sender]--
		over = append(over, list[at].item)
		list = slices.Delete(list, at, at+1)
	}
	for at := 0; at < len(list); {
		if by[list[at].sender] > maxWelcomesBy {
			drop(at)
		} else {
			at++
		}
	}
	for len(list) > maxWelcomesWaiting {
		worst := 0
		for at, w := range list {
			if v := list[worst]; rank[w.sender] < rank[v.sender] || rank[w.sender] == rank[v.sender] && by[w.sender] > by[v.sender] {
				worst = at
			}
		}
		drop(worst)
	}
	return over
}
