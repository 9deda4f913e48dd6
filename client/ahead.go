package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TakeAhead opens messages that another session of the user has just been shown, before this device's own /sync brings
// them: a homeserver makes the two answers one after the other, and whoever has the first would wait for the second.
//
// events are what a room's timeline has brought since the caller last saw this device come to its end, the oldest first
// and none left out, but for those of this project's other types. Only messages are taken, of epochs that are at hand;
// with the first event that is anything else, or that waits for something, everything is left to the own /sync. What was
// taken is processed: the own /sync does not bring it again, nor does TakeAhead take what that has brought. That a message
// came late, because of what stands before it and is of this project's other types, shows when the own /sync has come to
// it: then a [MessageMarked] is told. An error is of the store.
func (c *Client) TakeAhead(ctx context.Context, roomID id.RoomID, events []*Event) error {
	ctx = context.WithoutCancel(ctx) // what was begun is ended
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil || r.machine == nil || r.rec.Phase != phaseMember || r.rec.Membership != "join" || r.looking() || c.closed || c.fatal != nil || !c.hasSynced() {
		return nil
	}
	waiting, idle, err := c.idle(ctx, r)
	if err != nil || !idle {
		return err // what came before is first
	}
	// What is done after a message, such as acknowledging it, is done when the own /sync brings it: now somebody waits.
	for _, evt := range events {
		if known, err := c.has(ctx, roomID, evt); err != nil {
			return err
		} else if known || slices.ContainsFunc(waiting, func(item *store.InboxItem) bool { return item.EventID == evt.ID }) {
			continue
		}
		ref, ok := r.atHand(evt)
		if !ok || evt.Sender == c.UserID() || !c.wanted(r, evt) {
			return nil
		}
		b := &batch{soon: true}
		taken := *evt
		taken.RoomID, taken.Unsigned = roomID, Unsigned{} // it is said to the other session
		err = c.handleSafely(ctx, r, &inboxData{Event: &taken, At: c.now().UnixMilli()}, b)
		if err != nil {
			// It is as if it had not been here: the own /sync brings it.
			if b.machine || b.torn || len(b.entered) > 0 || errors.Is(err, errStore) {
				if rerr := c.reload(ctx, r); rerr != nil {
					c.fatal = errors.Join(err, rerr)
				}
			}
			if errors.Is(err, errStore) {
				return err
			}
			return nil
		}
		c.markSettled(b, r, taken.ID, &taken)
		r.noteTaken(taken.ID, ref)
		b.then(r.notify)
		if err := c.commitBatch(ctx, r, b); err != nil {
			return fmt.Errorf("client: take a message ahead: %w", err)
		}
	}
	return nil
}

// idle returns what waits in a room's inbox, and tells whether nothing of it could be processed now.
func (c *Client) idle(ctx context.Context, r *room) (waiting []*store.InboxItem, idle bool, err error) {
	waiting, err = c.st.Inbox(ctx, r.id)
	return waiting, !slices.ContainsFunc(waiting, func(item *store.InboxItem) bool { return item.WaitsFor == "" || r.arrived(item.WaitsFor) }), err
}

// has tells whether an event was processed, or is a message that this device has sent.
func (c *Client) has(ctx context.Context, roomID id.RoomID, evt *Event) (bool, error) {
	seen, err := c.st.Seen(ctx, roomID, evt.ID)
	if err != nil || seen || evt.Sender != c.UserID() {
		return seen, err
	}
	switch _, err := c.st.TimelineEvent(ctx, roomID, evt.ID); {
	case err == nil:
		return true, nil
	case errors.Is(err, store.ErrNotFound):
		return false, nil
	default:
		return false, err
	}
}

// atHand tells whether an event is a ciphertext of an epoch that this device holds, so that nothing has to come before it,
// and of which.
func (r *room) atHand(evt *Event) (ref federation.Ref, ok bool) {
	if evt.Type != rooms.TypeEncrypted || evt.StateKey != nil || evt.ID == "" || evt.Sender == "" || evt.Timestamp == 0 {
		return ref, false
	}
	content, err := rooms.DecodeEncrypted(evt.Content)
	if err != nil {
		return ref, false
	}
	msg, err := mls.ParseMessage(content.Ciphertext)
	if err != nil {
		return ref, false
	}
	aad, err := rooms.DecodeMessageAAD(msg.AuthenticatedData())
	if err != nil {
		return ref, false
	}
	ref = federation.Ref(aad.Head)
	e := r.epochs[ref]
	return ref, e != nil && r.machine.Accepted(ref) && string(msg.GroupID()) == string(e.group.GroupID())
}

// takenAhead is a message that was taken ahead, of an epoch.
type takenAhead struct {
	Event id.EventID `json:"event"`
	Ref   rooms.Hash `json:"ref"`
}

// maxTaken bounds those that the own /sync has not come to: it may leave some out.
const maxTaken = 256

func (r *room) noteTaken(event id.EventID, ref federation.Ref) {
	r.rec.Taken = append(r.rec.Taken, takenAhead{event, rooms.Hash(ref)})
	if n := len(r.rec.Taken) - maxTaken; n > 0 {
		r.rec.Taken = slices.Delete(r.rec.Taken, 0, n)
	}
}

// wasTaken returns what is known of a message that was taken ahead, nil if it was not, and forgets it.
func (r *room) wasTaken(event id.EventID) *takenAhead {
	at := slices.IndexFunc(r.rec.Taken, func(t takenAhead) bool { return t.Event == event })
	if at < 0 {
		return nil
	}
	taken := r.rec.Taken[at]
	r.rec.Taken = slices.Delete(slices.Clone(r.rec.Taken), at, at+1)
	return &taken
}

// cameTo looks at a message that was taken ahead, to which the own /sync has come: what stands before it there, and was not
// processed yet, may say that it is late. Then its row in the inbox is for looking again in its turn.
func (c *Client) cameTo(ctx context.Context, roomID id.RoomID, event id.EventID) error {
	r := c.rooms[roomID]
	if r == nil {
		return nil
	}
	taken := r.wasTaken(event)
	if taken == nil || r.machine == nil {
		return nil
	}
	_, idle, err := c.idle(ctx, r)
	if err != nil || idle && !r.late(federation.Ref(taken.Ref)) {
		return err
	}
	raw, err := json.Marshal(inboxData{Event: &Event{ID: event}, Taken: taken})
	if err != nil {
		return fmt.Errorf("client: inbox: %w", err)
	}
	return c.st.AddInbox(ctx, &store.InboxItem{Room: roomID, EventID: event, Data: raw})
}

// markTaken says of a message that was taken ahead that it came late, if that shows now.
func (c *Client) markTaken(ctx context.Context, r *room, taken *takenAhead, b *batch) error {
	ref := federation.Ref(taken.Ref)
	if r.machine == nil || !r.late(ref) {
		return nil
	}
	item, err := c.st.TimelineEvent(ctx, r.id, taken.Event)
	if errors.Is(err, store.ErrNotFound) {
		return nil // it was refused
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	msg, err := messageOf(item)
	if err != nil {
		return err
	}
	late, removed := msg.Late, msg.Removed
	r.markLate(msg)
	if msg.Late == late && msg.Removed == removed {
		return nil
	}
	after, err := c.cursor(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	if item.Data, err = encodeKept(msg); err != nil {
		return fmt.Errorf("client: message %s: %w", taken.Event, err)
	}
	b.do(func(ctx context.Context) error { return c.st.UpdateTimeline(ctx, item) })
	if item.Seq <= after { // else it is handed on as it is now
		b.then(func() { c.tell(&MessageMarked{msg}) })
	}
	return nil
}
