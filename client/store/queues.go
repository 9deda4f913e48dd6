package store

import (
	"context"
	"fmt"
	"sync"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/id"
)

const (
	addOutboxQuery = `INSERT INTO outbox (room_id, txn_id, kind, ref, state, data) VALUES ($1, $2, $3, $4, $5, $6)
		RETURNING id`
	updateOutboxQuery = `UPDATE outbox SET kind = $2, ref = $3, state = $4, data = $5 WHERE id = $1`
	listOutboxQuery   = `SELECT id, room_id, txn_id, kind, ref, state, data FROM outbox
		WHERE $1 = '' OR room_id = $1 ORDER BY id`
	deleteOutboxQuery = `DELETE FROM outbox WHERE id = $1`

	addInboxQuery = `INSERT INTO inbox (room_id, event_id, waits_for, data) VALUES ($1, $2, $3, $4)
		ON CONFLICT (room_id, event_id) DO UPDATE SET waits_for = excluded.waits_for, data = excluded.data`
	listInboxQuery   = `SELECT room_id, event_id, waits_for FROM inbox WHERE room_id = $1 ORDER BY seq`
	loadInboxQuery   = `SELECT data FROM inbox WHERE room_id = $1 AND event_id = $2`
	inboxRoomsQuery  = `SELECT DISTINCT room_id FROM inbox ORDER BY room_id`
	deleteInboxQuery = `DELETE FROM inbox WHERE room_id = $1 AND event_id = $2`

	inInboxQuery = `SELECT COUNT(*) FROM inbox WHERE room_id = $1 AND event_id = $2`

	markSeenQuery   = `INSERT INTO seen (room_id, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	isSeenQuery     = `SELECT COUNT(*) FROM seen WHERE room_id = $1 AND event_id = $2`
	forgetSeenQuery = `DELETE FROM seen WHERE room_id = $1 AND event_id = $2`
	pruneSeenQuery  = `DELETE FROM seen WHERE seq IN (
		SELECT seq FROM seen WHERE room_id = $1 AND event_id LIKE '$%' AND seq <= (
			SELECT seq FROM seen WHERE room_id = $1 ORDER BY seq DESC LIMIT 1 OFFSET $2)
		ORDER BY seq LIMIT $3)`
)

// OutboxItem is something to send. Kind, State and Ref are the client's own
// words for it; TxnID is the transaction id under which it is sent, so that a
// repeated sending makes no second event.
type OutboxItem struct {
	ID    int64
	Room  id.RoomID
	TxnID string
	Kind  string
	Ref   []byte
	State string
	Data  []byte
}

// AddOutbox queues an item and sets its ID.
func (s *Store) AddOutbox(ctx context.Context, item *OutboxItem) error {
	sealed, err := s.seal(item.Data, place("outbox", item.TxnID))
	if err != nil {
		return err
	}
	return s.insert(ctx, "outbox", addOutboxQuery,
		[]any{item.Room, item.TxnID, item.Kind, blob(item.Ref), item.State, sealed}, &item.ID)
}

// UpdateOutbox writes a queued item's kind, ref, state and data.
func (s *Store) UpdateOutbox(ctx context.Context, item *OutboxItem) error {
	sealed, err := s.seal(item.Data, place("outbox", item.TxnID))
	if err != nil {
		return err
	}
	return s.exec(ctx, "outbox", updateOutboxQuery, item.ID, item.Kind, blob(item.Ref), item.State, sealed)
}

// Outbox lists the queued items of a room, or of all rooms when room is empty,
// in the order in which they were queued.
func (s *Store) Outbox(ctx context.Context, room id.RoomID) (all []*OutboxItem, err error) {
	err = s.sealedList(ctx, "outbox", listOutboxQuery, []any{room}, func(row dbutil.Scannable, sealed *[]byte) ([]byte, func([]byte), error) {
		item := new(OutboxItem)
		err := row.Scan(&item.ID, &item.Room, &item.TxnID, &item.Kind, &item.Ref, &item.State, sealed)
		return place("outbox", item.TxnID), func(plain []byte) { item.Data = plain; all = append(all, item) }, err
	})
	return all, err
}

// DeleteOutbox removes a queued item.
func (s *Store) DeleteOutbox(ctx context.Context, itemID int64) error {
	return s.exec(ctx, "outbox", deleteOutboxQuery, itemID)
}

// InboxItem is a received event that cannot be processed yet. WaitsFor is the
// client's own word for what is missing.
type InboxItem struct {
	Room     id.RoomID
	EventID  id.EventID
	WaitsFor string
	Data     []byte
}

// AddInbox keeps a received event; an item with the same event id is replaced.
func (s *Store) AddInbox(ctx context.Context, item *InboxItem) error {
	sealed, err := s.seal(item.Data, place("inbox", item.Room.String(), item.EventID.String()))
	if err != nil {
		return err
	}
	defer s.inboxes.added(item.Room) // the connection is still held, or it was written
	return s.exec(ctx, "inbox", addInboxQuery, item.Room, item.EventID, item.WaitsFor, sealed)
}

// emptyInboxes are the rooms in which nothing waits, so that a client of many rooms need not ask for each of them whenever
// it looks at what there is to do.
type emptyInboxes struct {
	mu    sync.Mutex
	adds  int // events added so far
	rooms map[id.RoomID]struct{}
}

func (e *emptyInboxes) added(room id.RoomID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.adds++
	delete(e.rooms, room)
}

// is tells whether a room's inbox is empty, and how many events were added until now.
func (e *emptyInboxes) is(room id.RoomID) (empty bool, adds int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, empty = e.rooms[room]
	return empty, e.adds
}

// found notes a room whose inbox was found empty, if nothing was added to any since there were so many.
func (e *emptyInboxes) found(room id.RoomID, adds int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.adds != adds {
		return
	}
	if e.rooms == nil {
		e.rooms = map[id.RoomID]struct{}{}
	}
	e.rooms[room] = struct{}{}
}

// Inbox lists a room's waiting events in the order in which they came, without
// their Data: after a long absence that is more than fits into memory.
func (s *Store) Inbox(ctx context.Context, room id.RoomID) (all []*InboxItem, err error) {
	empty, adds := s.inboxes.is(room)
	if empty {
		return nil, nil
	}
	err = s.each(ctx, "inbox", listInboxQuery, []any{room}, func(row dbutil.Scannable) error {
		item := new(InboxItem)
		err := row.Scan(&item.Room, &item.EventID, &item.WaitsFor)
		all = append(all, item)
		return err
	})
	if err == nil && len(all) == 0 && ctx.Value(inWrite{s}) == nil { // a transaction may be undone
		s.inboxes.found(room, adds)
	}
	return all, err
}

// LoadInbox reads the Data of a listed item. It returns [ErrNotFound] if the item
// was removed since.
func (s *Store) LoadInbox(ctx context.Context, item *InboxItem) error {
	var sealed []byte
	if err := s.one(ctx, "inbox", loadInboxQuery, []any{item.Room, item.EventID}, &sealed); err != nil {
		return err
	}
	plain, err := s.open(sealed, place("inbox", item.Room.String(), item.EventID.String()))
	if err != nil {
		return fmt.Errorf("store: an event of inbox: %w", err)
	}
	item.Data = plain
	return nil
}

// InboxRooms lists the rooms with waiting events.
func (s *Store) InboxRooms(ctx context.Context) (rooms []id.RoomID, err error) {
	err = s.each(ctx, "inbox", inboxRoomsQuery, nil, func(row dbutil.Scannable) error {
		var r id.RoomID
		err := row.Scan(&r)
		rooms = append(rooms, r)
		return err
	})
	return rooms, err
}

// DeleteInbox removes a waiting event.
func (s *Store) DeleteInbox(ctx context.Context, room id.RoomID, event id.EventID) error {
	return s.exec(ctx, "inbox", deleteInboxQuery, room, event)
}

// InInbox reports whether an event waits to be processed.
func (s *Store) InInbox(ctx context.Context, room id.RoomID, event id.EventID) (bool, error) {
	var n int
	err := s.one(ctx, "inbox", inInboxQuery, []any{room, event}, &n)
	return n > 0, err
}

// MarkSeen notes that an event was processed and reports whether this is the
// first time. It belongs into the same Do as the event's effect.
func (s *Store) MarkSeen(ctx context.Context, room id.RoomID, event id.EventID) (first bool, err error) {
	err = s.write(ctx, false, func(ctx context.Context) error {
		res, err := s.db.Exec(ctx, markSeenQuery, room, event)
		if err != nil {
			return fmt.Errorf("store: write seen: %w", err)
		}
		n, err := res.RowsAffected()
		if err != nil {
			return fmt.Errorf("store: write seen: %w", err)
		}
		first = n == 1
		return nil
	})
	return first, err
}

// Seen reports whether an event was processed.
func (s *Store) Seen(ctx context.Context, room id.RoomID, event id.EventID) (bool, error) {
	var n int
	err := s.one(ctx, "seen", isSeenQuery, []any{room, event}, &n)
	return n > 0, err
}

// ForgetSeen has events taken for such that were never processed.
func (s *Store) ForgetSeen(ctx context.Context, room id.RoomID, events []id.EventID) error {
	for _, event := range events {
		if err := s.exec(ctx, "seen", forgetSeenQuery, room, event); err != nil {
			return err
		}
	}
	return nil
}

// PruneSeen forgets room events that were processed before the newest keep ones, at
// most atMost of them, the oldest first. What came by to-device messages is not
// forgotten.
func (s *Store) PruneSeen(ctx context.Context, room id.RoomID, keep, atMost int) error {
	return s.exec(ctx, "seen", pruneSeenQuery, room, keep, atMost)
}
