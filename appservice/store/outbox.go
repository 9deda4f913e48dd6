package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/id"
)

const (
	putOutboxQuery = `
		INSERT INTO outbox (room_id, txn_id, kind, type, state_key, content, tag, priority, status, next_at, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'waiting', $9, $10) RETURNING id`
	outboxColumns = `SELECT id, room_id, txn_id, kind, type, state_key, content, tag, priority, status,
		attempts, next_at, event_id, error, created_at, done_at FROM outbox o `
	// The first waiting row of each room and priority, most urgent first.
	dueOutboxQuery = outboxColumns + `
		WHERE status='waiting' AND next_at<=$1 AND NOT EXISTS (
			SELECT 1 FROM outbox p WHERE p.status='waiting' AND p.room_id=o.room_id
				AND p.priority=o.priority AND p.id<o.id)
		ORDER BY priority, id LIMIT $2`
	nextDueQuery = `SELECT COALESCE(MIN(next_at), 0), COUNT(*) FROM outbox o
		WHERE status='waiting' AND NOT EXISTS (
			SELECT 1 FROM outbox p WHERE p.status='waiting' AND p.room_id=o.room_id
				AND p.priority=o.priority AND p.id<o.id)`
	roomOutboxQuery   = outboxColumns + `WHERE room_id=$1 AND status=$2 ORDER BY id LIMIT $3`
	taggedOutboxQuery = outboxColumns + `WHERE room_id=$1 AND tag=$2 ORDER BY id`
	retryOutboxQuery  = `UPDATE outbox SET attempts=attempts+1, next_at=$2, error=$3 WHERE id=$1`
	sentOutboxQuery   = `UPDATE outbox SET status='sent', event_id=$2, error='', done_at=$3 WHERE id=$1`
	failOutboxQuery   = `UPDATE outbox SET status='failed', attempts=attempts+1, error=$2, done_at=$3 WHERE id=$1`
	dropOutboxQuery   = `DELETE FROM outbox WHERE id=$1 AND status='waiting'`
	trimOutboxQuery   = `DELETE FROM outbox WHERE status IN ('done', 'refused') AND done_at<$1`
	// The ids are in an index: to order the rows by what is in the table would read all that wait.
	settledQuery   = outboxColumns + `WHERE id IN (SELECT id FROM outbox WHERE status IN ('sent', 'failed') ORDER BY id LIMIT $1) ORDER BY id`
	ackOutboxQuery = `UPDATE outbox SET status=CASE status WHEN 'sent' THEN 'done' ELSE 'refused' END
		WHERE id=$1 AND status IN ('sent', 'failed')`
	countOutboxQuery = `SELECT COUNT(*), COALESCE(MIN(created_at), 0), COALESCE(MAX(attempts), 0) FROM outbox WHERE status=$1`
)

// OutboxKind says how a row is sent.
type OutboxKind string

// The kinds of an outbox row.
const (
	OutboxEvent OutboxKind = "event" // PUT /send
	OutboxState OutboxKind = "state" // PUT /state
)

// Priorities: the lower goes first.
const (
	PriorityReceipt  = 0 // accepts, votes, promises, commits
	PriorityProposal = 5 // proposals, heads
	PriorityAgain    = 7 // receipts that were refused once: those behind them do not wait
	PriorityRest     = 9
)

// OutboxStatus is how far a row has come.
type OutboxStatus string

// The states of an outbox row.
const (
	OutboxWaiting OutboxStatus = "waiting"
	OutboxSent    OutboxStatus = "sent"    // sent; the engine has not been told
	OutboxFailed  OutboxStatus = "failed"  // refused for good; the engine has not been told
	OutboxDone    OutboxStatus = "done"    // sent, and the engine knows
	OutboxRefused OutboxStatus = "refused" // refused, and the engine knows
)

// OutboxRow is something to send, or that was sent.
type OutboxRow struct {
	ID       int64 // set by the store
	Room     id.RoomID
	TxnID    string // set by the store; the same for every attempt
	Kind     OutboxKind
	Type     string
	StateKey string
	Content  json.RawMessage
	Tag      string // the engine's own mark, such as a ref
	Priority int
	NotUntil time.Time // zero value: at once

	Status    OutboxStatus
	Attempts  int
	EventID   id.EventID
	Error     string
	CreatedAt time.Time
	DoneAt    time.Time
}

// PutOutbox stores something to send. Call it in the transaction of its cause.
// Content must be valid JSON.
func (st *Store) PutOutbox(ctx context.Context, row *OutboxRow) error {
	if !json.Valid(row.Content) {
		return fmt.Errorf("store: internal: outbox content of type %s is no JSON", row.Type)
	}
	if row.Kind == "" {
		row.Kind = OutboxEvent
	}
	var nonce [12]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return fmt.Errorf("store: drawing a transaction id: %w", err)
	}
	row.TxnID, row.Status, row.CreatedAt = "mls-"+hex.EncodeToString(nonce[:]), OutboxWaiting, st.now()
	var due int64
	if !row.NotUntil.IsZero() {
		due = row.NotUntil.UnixMilli()
	}
	err := st.db.QueryRow(ctx, putOutboxQuery, string(row.Room), row.TxnID, string(row.Kind), row.Type,
		row.StateKey, string(row.Content), row.Tag, row.Priority, due, row.CreatedAt.UnixMilli()).Scan(&row.ID)
	return wrap("storing something to send", err)
}

// DueOutbox returns rows that may be sent now: of each room and priority the
// oldest, the most urgent first.
func (st *Store) DueOutbox(ctx context.Context, limit int) ([]*OutboxRow, error) {
	rows, err := st.db.Query(ctx, dueOutboxQuery, st.millis(), limit)
	return collect(rows, err, "reading the outbox", scanOutbox)
}

// NextDue tells when the next row may be sent; ok is false if none waits.
func (st *Store) NextDue(ctx context.Context) (at time.Time, ok bool, err error) {
	var ms, n int64
	err = st.db.QueryRow(ctx, nextDueQuery).Scan(&ms, &n)
	return time.UnixMilli(ms), n > 0, wrap("reading the outbox", err)
}

// RoomOutbox returns a room's rows in one state, oldest first.
func (st *Store) RoomOutbox(ctx context.Context, room id.RoomID, status OutboxStatus, limit int) ([]*OutboxRow, error) {
	rows, err := st.db.Query(ctx, roomOutboxQuery, string(room), string(status), limit)
	return collect(rows, err, "reading a room's outbox", scanOutbox)
}

// TaggedOutbox returns a room's rows with the engine's mark, oldest first.
func (st *Store) TaggedOutbox(ctx context.Context, room id.RoomID, tag string) ([]*OutboxRow, error) {
	rows, err := st.db.Query(ctx, taggedOutboxQuery, string(room), tag)
	return collect(rows, err, "reading a room's outbox", scanOutbox)
}

// RetryOutbox notes a failed attempt and when to try again.
func (st *Store) RetryOutbox(ctx context.Context, rowID int64, at time.Time, cause string) error {
	_, err := st.exec(ctx, retryOutboxQuery, rowID, at.UnixMilli(), clean(cause))
	return wrap("noting an attempt", err)
}

// SentOutbox marks a row as sent.
func (st *Store) SentOutbox(ctx context.Context, rowID int64, event id.EventID) error {
	_, err := st.exec(ctx, sentOutboxQuery, rowID, clean(string(event)), st.millis())
	return wrap("marking a row as sent", err)
}

// FailOutbox marks a row as refused for good.
func (st *Store) FailOutbox(ctx context.Context, rowID int64, cause string) error {
	_, err := st.exec(ctx, failOutboxQuery, rowID, clean(cause), st.millis())
	return wrap("marking a row as refused", err)
}

// SettledOutbox returns rows that were sent or refused for good and of which
// the engine does not know yet.
func (st *Store) SettledOutbox(ctx context.Context, limit int) ([]*OutboxRow, error) {
	rows, err := st.db.Query(ctx, settledQuery, limit)
	return collect(rows, err, "reading what was sent", scanOutbox)
}

// AckOutbox notes that the engine knows what became of a row. Call it in the
// transaction of what the engine does about it.
func (st *Store) AckOutbox(ctx context.Context, rowID int64) error {
	_, err := st.exec(ctx, ackOutboxQuery, rowID)
	return wrap("noting what was sent", err)
}

// DropOutbox takes back a row that has become pointless. A row that was sent
// stays.
func (st *Store) DropOutbox(ctx context.Context, rowID int64) error {
	_, err := st.exec(ctx, dropOutboxQuery, rowID)
	return wrap("dropping a row", err)
}

// TrimOutbox drops finished rows older than keep.
func (st *Store) TrimOutbox(ctx context.Context, keep time.Duration) error {
	_, err := st.exec(ctx, trimOutboxQuery, st.now().Add(-keep).UnixMilli())
	return wrap("trimming the outbox", err)
}

// CountOutbox counts rows in one state, tells when the oldest was made and how
// often the most stubborn was tried.
func (st *Store) CountOutbox(ctx context.Context, status OutboxStatus) (n int, oldest time.Time, attempts int, err error) {
	var ms int64
	err = st.db.QueryRow(ctx, countOutboxQuery, string(status)).Scan(&n, &ms, &attempts)
	if n > 0 {
		oldest = time.UnixMilli(ms)
	}
	return n, oldest, attempts, wrap("counting the outbox", err)
}

func scanOutbox(row dbutil.Scannable) (*OutboxRow, error) {
	var o OutboxRow
	var content string
	var next, created, done int64
	err := row.Scan(&o.ID, &o.Room, &o.TxnID, &o.Kind, &o.Type, &o.StateKey, &content, &o.Tag, &o.Priority,
		&o.Status, &o.Attempts, &next, &o.EventID, &o.Error, &created, &done)
	if err != nil {
		return nil, err
	}
	o.Content, o.CreatedAt = json.RawMessage(content), time.UnixMilli(created)
	if next > 0 {
		o.NotUntil = time.UnixMilli(next)
	}
	if done > 0 {
		o.DoneAt = time.UnixMilli(done)
	}
	return &o, nil
}
