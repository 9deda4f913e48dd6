package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/id"
)

const (
	putInboxQuery = `
		INSERT INTO inbox (event_id, room_id, sender, type, state_key, raw, source, status, rule, received_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
		ON CONFLICT (event_id) DO NOTHING`
	inboxColumns = `SELECT seq, event_id, room_id, sender, type, state_key, raw, source, status, rule, received_at FROM inbox `
	// The first of each room, then the second of each, and so on.
	nextInboxQuery = inboxColumns + `WHERE seq IN (
		SELECT seq FROM (
			SELECT seq, ROW_NUMBER() OVER (PARTITION BY room_id ORDER BY seq) AS n FROM inbox WHERE status='new'
		) AS r ORDER BY n, seq LIMIT $1) ORDER BY seq`
	getInboxQuery  = inboxColumns + `WHERE event_id=$1`
	roomInboxQuery = inboxColumns + `WHERE room_id=$1 AND status=$2 ORDER BY seq LIMIT $3`
	finishInbox    = `UPDATE inbox SET status=$2, rule=$3 WHERE event_id=$1`
	forgetInboxRaw = `UPDATE inbox SET raw='' WHERE raw<>'' AND status IN ('done', 'refused', 'ignored') AND received_at<$1`
	forgetInboxRow = `DELETE FROM inbox WHERE status IN ('done', 'refused', 'ignored') AND received_at<$1`
	// State is read anew, not looked at again.
	reopenRoomQuery = `UPDATE inbox SET status='new', rule='' WHERE room_id=$1 AND status IN ('done', 'refused', 'ignored') AND raw<>'' AND state_key IS NULL`
	renewInboxQuery = `UPDATE inbox SET status='new', rule='', raw=$2, received_at=$3 WHERE event_id=$1 AND status IN ('refused', 'ignored')`
	// Of each sender the oldest; the rules follow from $3 on.
	reopenInboxQuery = `UPDATE inbox SET status='new', rule='' WHERE seq IN (
		SELECT seq FROM (
			SELECT seq, ROW_NUMBER() OVER (PARTITION BY sender ORDER BY seq) AS n FROM inbox
			WHERE room_id=$1 AND status='refused' AND raw<>'' AND rule IN (%s)
		) AS r WHERE n<=$2)`
	fullestRoomQuery   = `SELECT room_id FROM inbox WHERE status='waiting' GROUP BY room_id ORDER BY COUNT(*) DESC, room_id LIMIT 1`
	oldestWaitingQuery = inboxColumns + `WHERE room_id=$1 AND status='waiting' AND sender=(
		SELECT sender FROM inbox WHERE room_id=$1 AND status='waiting' GROUP BY sender ORDER BY COUNT(*) DESC, sender LIMIT 1
		) ORDER BY seq LIMIT 1`
	newestInboxQuery = inboxColumns + `WHERE room_id=$1 AND type=$2 AND status=$3 AND raw<>'' ORDER BY seq DESC LIMIT $4`
	countInboxQuery  = `SELECT COUNT(*), COALESCE(MIN(received_at), 0) FROM inbox WHERE status=$1`
)

// InboxStatus is how far an event has come.
type InboxStatus string

// The states of an inbox row. Only InboxNew rows come from NextInbox; waiting
// rows lack something (a parent, a media file) and are looked up by room.
const (
	InboxNew     InboxStatus = "new"
	InboxWaiting InboxStatus = "waiting"
	InboxDone    InboxStatus = "done"
	InboxRefused InboxStatus = "refused"
	InboxIgnored InboxStatus = "ignored"
)

// Source says which way an event came in.
type Source string

// The ways in.
const (
	SourceTransaction Source = "transaction"
	SourceMessages    Source = "messages"
	SourceEvent       Source = "event"
	SourceState       Source = "state"
)

// InboxEvent is an event taken in.
type InboxEvent struct {
	Seq        int64 // order of arrival; set by the store
	EventID    id.EventID
	Room       id.RoomID
	Sender     id.UserID
	Type       string
	StateKey   *string
	Raw        json.RawMessage // empty once the event was dealt with and is old
	Source     Source
	Status     InboxStatus
	Rule       string // why it was refused
	ReceivedAt time.Time
}

// PutInbox stores events and returns those that were not known. A known event
// id changes nothing, whatever comes with it.
func (st *Store) PutInbox(ctx context.Context, events ...*InboxEvent) (fresh []*InboxEvent, err error) {
	err = st.Tx(ctx, func(ctx context.Context) error {
		fresh = fresh[:0]
		for _, ev := range events {
			if ev.Status == "" {
				ev.Status = InboxNew
			}
			now := st.now()
			res, err := st.exec(ctx, putInboxQuery, clean(string(ev.EventID)), clean(string(ev.Room)),
				clean(string(ev.Sender)), clean(ev.Type), cleanPtr(ev.StateKey), clean(string(ev.Raw)),
				string(ev.Source), string(ev.Status), clean(ev.Rule), now.UnixMilli())
			if err != nil {
				return wrap("storing an event", err)
			}
			if n, err := res.RowsAffected(); err != nil {
				return wrap("storing an event", err)
			} else if n > 0 {
				ev.ReceivedAt = now
				fresh = append(fresh, ev)
			}
		}
		return nil
	})
	return fresh, err
}

// NextInbox returns new events, as many of each room as there is place for, in
// the order they came in: many events of one room delay no other.
func (st *Store) NextInbox(ctx context.Context, limit int) ([]*InboxEvent, error) {
	rows, err := st.db.Query(ctx, nextInboxQuery, limit)
	return collect(rows, err, "reading the inbox", scanInbox)
}

// RoomInbox returns a room's events in one state, oldest first.
func (st *Store) RoomInbox(ctx context.Context, room id.RoomID, status InboxStatus, limit int) ([]*InboxEvent, error) {
	rows, err := st.db.Query(ctx, roomInboxQuery, string(room), string(status), limit)
	return collect(rows, err, "reading a room's inbox", scanInbox)
}

// NewestInbox returns a room's events of a type in one state whose JSON is still
// there, newest first.
func (st *Store) NewestInbox(ctx context.Context, room id.RoomID, eventType string, status InboxStatus, limit int) ([]*InboxEvent, error) {
	rows, err := st.db.Query(ctx, newestInboxQuery, string(room), eventType, string(status), limit)
	return collect(rows, err, "reading a room's inbox", scanInbox)
}

// Inbox returns one event, or [ErrNotFound].
func (st *Store) Inbox(ctx context.Context, event id.EventID) (*InboxEvent, error) {
	ev, err := scanInbox(st.db.QueryRow(ctx, getInboxQuery, string(event)))
	return ev, wrap("reading an event", err)
}

// FinishInbox marks an event. Call it in the transaction that holds the
// event's effect.
func (st *Store) FinishInbox(ctx context.Context, event id.EventID, status InboxStatus, rule string) error {
	_, err := st.exec(ctx, finishInbox, string(event), string(status), clean(rule))
	return wrap("marking an event", err)
}

// ReopenRoom has a room's events looked at again, as far as their JSON is still
// there.
func (st *Store) ReopenRoom(ctx context.Context, room id.RoomID) error {
	_, err := st.exec(ctx, reopenRoomQuery, string(room))
	return wrap("opening a room's events again", err)
}

// ReopenInbox has events of a room looked at again that were refused by one of
// some rules: of each sender the oldest, as many as perSender says. It returns
// how many these are.
func (st *Store) ReopenInbox(ctx context.Context, room id.RoomID, perSender int, rules ...string) (int64, error) {
	args := []any{string(room), perSender}
	places := make([]string, len(rules))
	for i, rule := range rules {
		args = append(args, rule)
		places[i] = fmt.Sprintf("$%d", len(args))
	}
	res, err := st.exec(ctx, fmt.Sprintf(reopenInboxQuery, strings.Join(places, ", ")), args...)
	if err != nil {
		return 0, wrap("opening events again", err)
	}
	n, err := res.RowsAffected()
	return n, wrap("opening events again", err)
}

// RenewInbox has an event looked at again that was put aside, with its JSON as
// it came now.
func (st *Store) RenewInbox(ctx context.Context, ev *InboxEvent) error {
	_, err := st.exec(ctx, renewInboxQuery, string(ev.EventID), clean(string(ev.Raw)), st.millis())
	return wrap("opening an event again", err)
}

// OldestWaiting returns the oldest event of the sender of whom the most events
// wait in a room; without a room, in the one where the most wait. If none waits
// the error is [ErrNotFound].
func (st *Store) OldestWaiting(ctx context.Context, room id.RoomID) (*InboxEvent, error) {
	if room == "" {
		if err := st.db.QueryRow(ctx, fullestRoomQuery).Scan(&room); err != nil {
			return nil, wrap("reading what waits", err)
		}
	}
	ev, err := scanInbox(st.db.QueryRow(ctx, oldestWaitingQuery, string(room)))
	return ev, wrap("reading what waits", err)
}

// CountInbox counts events in one state and tells when the oldest came.
func (st *Store) CountInbox(ctx context.Context, status InboxStatus) (n int, oldest time.Time, err error) {
	var ms int64
	err = st.db.QueryRow(ctx, countInboxQuery, string(status)).Scan(&n, &ms)
	if n > 0 {
		oldest = time.UnixMilli(ms)
	}
	return n, oldest, wrap("counting the inbox", err)
}

// TrimInbox drops the JSON of finished events that are older than keepRaw and
// whole rows older than keepRow. An event that comes again after that is taken
// in again, and its effect is found to be there already.
func (st *Store) TrimInbox(ctx context.Context, keepRaw, keepRow time.Duration) error {
	now := st.now()
	if _, err := st.exec(ctx, forgetInboxRaw, now.Add(-keepRaw).UnixMilli()); err != nil {
		return wrap("trimming the inbox", err)
	}
	_, err := st.exec(ctx, forgetInboxRow, now.Add(-keepRow).UnixMilli())
	return wrap("trimming the inbox", err)
}

func scanInbox(row dbutil.Scannable) (*InboxEvent, error) {
	var ev InboxEvent
	var raw string
	var ms int64
	err := row.Scan(&ev.Seq, &ev.EventID, &ev.Room, &ev.Sender, &ev.Type, &ev.StateKey, &raw,
		&ev.Source, &ev.Status, &ev.Rule, &ms)
	if err != nil {
		return nil, err
	}
	ev.Raw, ev.ReceivedAt = json.RawMessage(raw), time.UnixMilli(ms)
	return &ev, nil
}

func cleanPtr(s *string) *string {
	if s == nil {
		return nil
	}
	c := clean(*s)
	return &c
}
