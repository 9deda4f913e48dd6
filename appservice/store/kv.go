package store

import (
	"context"
	"errors"
	"time"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/id"
)

const (
	putKeyQuery   = `INSERT INTO keys (name, secret, created_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING`
	getKeyQuery   = `SELECT secret FROM keys WHERE name=$1`
	keyNamesQuery = `SELECT name FROM keys ORDER BY name`

	putKVQuery = `INSERT INTO kv (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value=excluded.value`
	getKVQuery = `SELECT value FROM kv WHERE name=$1`

	deleteKVQuery = `DELETE FROM kv WHERE name=$1`

	putRefusalQuery  = `INSERT INTO refusals (room_id, event_id, rule, detail, at) VALUES ($1, $2, $3, $4, $5)`
	refusalsQuery    = `SELECT room_id, event_id, rule, detail, at FROM refusals ORDER BY id DESC LIMIT $1`
	trimRefusalQuery = `DELETE FROM refusals WHERE id <= (SELECT COALESCE(MAX(id), 0) FROM refusals) - $1`
)

// KeyRestored names, in the table of small values, the newest restore of the
// database from a backup. The database may then be older than what the module
// has signed.
const KeyRestored = "restored"

// PutNewKey stores a private key under a name and tells whether it was new. A
// key is never overwritten.
func (st *Store) PutNewKey(ctx context.Context, name string, secret []byte) (bool, error) {
	res, err := st.exec(ctx, putKeyQuery, name, secret, st.millis())
	if err != nil {
		return false, wrap("storing a key", err)
	}
	n, err := res.RowsAffected()
	return n > 0, wrap("storing a key", err)
}

// Key returns a private key, or [ErrNotFound].
func (st *Store) Key(ctx context.Context, name string) (secret []byte, err error) {
	err = st.db.QueryRow(ctx, getKeyQuery, name).Scan(&secret)
	return secret, wrap("reading the key "+name, err)
}

// KeyNames lists the names of the keys.
func (st *Store) KeyNames(ctx context.Context) ([]string, error) {
	rows, err := st.db.Query(ctx, keyNamesQuery)
	return collect(rows, err, "reading key names", func(row dbutil.Scannable) (name string, err error) {
		err = row.Scan(&name)
		return name, err
	})
}

// Set stores a small value under a name.
func (st *Store) Set(ctx context.Context, name, value string) error {
	_, err := st.exec(ctx, putKVQuery, name, clean(value))
	return wrap("storing "+name, err)
}

// Get returns a small value, or "" if there is none.
func (st *Store) Get(ctx context.Context, name string) (value string, err error) {
	err = wrap("reading "+name, st.db.QueryRow(ctx, getKVQuery, name).Scan(&value))
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	return value, err
}

// Unset drops a small value.
func (st *Store) Unset(ctx context.Context, name string) error {
	_, err := st.exec(ctx, deleteKVQuery, name)
	return wrap("dropping "+name, err)
}

// Refusal says why an input was refused.
type Refusal struct {
	Room   id.RoomID
	Event  id.EventID
	Rule   string
	Detail string // cut to 500 bytes
	At     time.Time
}

// PutRefusal notes a refusal.
func (st *Store) PutRefusal(ctx context.Context, r *Refusal) error {
	detail := r.Detail
	if len(detail) > 500 {
		detail = detail[:500]
	}
	_, err := st.exec(ctx, putRefusalQuery, clean(string(r.Room)), clean(string(r.Event)), clean(r.Rule), clean(detail), st.millis())
	return wrap("noting a refusal", err)
}

// Refusals returns the newest refusals.
func (st *Store) Refusals(ctx context.Context, limit int) ([]*Refusal, error) {
	rows, err := st.db.Query(ctx, refusalsQuery, limit)
	return collect(rows, err, "reading refusals", func(row dbutil.Scannable) (*Refusal, error) {
		var r Refusal
		var ms int64
		err := row.Scan(&r.Room, &r.Event, &r.Rule, &r.Detail, &ms)
		r.At = time.UnixMilli(ms)
		return &r, err
	})
}

// TrimRefusals keeps the newest n refusals.
func (st *Store) TrimRefusals(ctx context.Context, n int) error {
	_, err := st.exec(ctx, trimRefusalQuery, n)
	return wrap("trimming refusals", err)
}
