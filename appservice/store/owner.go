package store

import (
	"context"
	"database/sql"
	"strconv"

	"go.mau.fi/util/dbutil"
)

// One process writes at a time: what a module signs rests on what it holds in
// memory, so two on one database would sign two things that contradict each
// other. The table kv names the one that may. Every write looks there, in its own
// transaction, so a process that was only stopped writes nothing once it goes on.
// The owner also counts up a beat; who sees it stand still takes over.

const (
	keyHolder = "holder" // the process that may write; empty: none
	keyBeat   = "beat"   // what that process counts up

	takeHolderQuery = `INSERT INTO kv (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value=excluded.value`
	// Not over one that a third has taken it from meanwhile.
	swapHolderQuery = takeHolderQuery + ` WHERE kv.value=$3`
	seeHolderQuery  = `SELECT value FROM kv WHERE name=$1`
	connectedQuery  = `SELECT COUNT(*) FROM pg_stat_activity WHERE datname=current_database() AND application_name=$1`
	cutOffQuery     = `SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
		WHERE datname=current_database() AND application_name=$1 AND pid<>pg_backend_pid()`
)

// processName is what the connections of a process are called. PostgreSQL keeps
// 63 bytes of it.
func processName(self string) string { return "matrix-mls-" + self }

// Shared reports whether several processes can wait for each other on this
// database. On SQLite there is one machine, and so one address to listen on.
func (st *Store) Shared() bool { return st.db.Dialect == dbutil.Postgres }

// Own makes this process the one that writes, whoever was: from now on every
// write of another fails with [ErrTakenOver].
func (st *Store) Own(ctx context.Context) error {
	if st.owner.Load() {
		return st.Owned(ctx)
	}
	if _, err := st.db.Exec(ctx, takeHolderQuery, keyHolder, st.self); err != nil {
		return wrap("taking over the database", err)
	}
	st.owner.Store(true)
	return nil
}

// Holder is what a waiting process sees of the one that writes.
type Holder struct {
	Process   string // empty: nobody
	Beat      string
	Connected bool // it has connections to the database; PostgreSQL only
}

// Holder looks who writes. In a database without tables nobody does.
func (st *Store) Holder(ctx context.Context) (o Holder, err error) {
	exists, err := st.db.TableExists(ctx, "kv")
	if err != nil || !exists {
		return o, wrap("looking whose the database is", err)
	}
	if o.Process, err = st.Get(ctx, keyHolder); err != nil || o.Process == "" {
		return o, err
	}
	if o.Beat, err = st.Get(ctx, keyBeat); err != nil || !st.Shared() {
		return o, err
	}
	var n int
	err = st.db.QueryRow(ctx, connectedQuery, processName(o.Process)).Scan(&n)
	o.Connected = n > 0
	return o, wrap("looking whose the database is", err)
}

// TakeOver makes this process the one that writes in place of another, unless a
// third was quicker. Connections of the old one are ended, since a transaction
// that it left open would hold up this one.
func (st *Store) TakeOver(ctx context.Context, from Holder) (bool, error) {
	exists, err := st.db.TableExists(ctx, "kv")
	if err != nil {
		return false, wrap("taking over the database", err)
	}
	if !exists {
		return true, nil // it is new: [Store.Own] follows the upgrade
	}
	if from.Process != "" && st.Shared() {
		var n int
		if err := st.db.QueryRow(ctx, cutOffQuery, processName(from.Process)).Scan(&n); err != nil {
			return false, wrap("cutting off the process before", err)
		}
	}
	res, err := st.db.Exec(ctx, swapHolderQuery, keyHolder, st.self, from.Process)
	if err != nil {
		return false, wrap("taking over the database", err)
	}
	n, err := res.RowsAffected()
	if err != nil || n == 0 {
		return false, wrap("taking over the database", err)
	}
	st.owner.Store(true)
	return true, nil
}

// Beat shows the processes that wait that this one works.
func (st *Store) Beat(ctx context.Context) error {
	return st.Set(ctx, keyBeat, st.self+" "+strconv.FormatUint(st.beats.Add(1), 10))
}

// Release lets the next process take over at once.
func (st *Store) Release(ctx context.Context) error {
	if !st.owner.Load() {
		return nil
	}
	_, err := st.db.Exec(ctx, swapHolderQuery, keyHolder, "", st.self)
	return wrap("handing over the database", err)
}

// Owned returns [ErrTakenOver] if the database is not this process's any more.
// In a transaction it also keeps it so until the end: on PostgreSQL by a lock
// on the row, on SQLite as there is one writer at a time. Without [Store.Own]
// it asks nothing.
func (st *Store) Owned(ctx context.Context) error {
	if !st.owner.Load() {
		return nil
	}
	query := seeHolderQuery
	if st.Shared() {
		query += " FOR SHARE"
	}
	var now string
	if err := st.db.QueryRow(ctx, query, keyHolder).Scan(&now); err != nil {
		return wrap("looking whose the database is", err)
	}
	if now != st.self {
		return ErrTakenOver
	}
	return nil
}

// exec writes. Outside a transaction it makes one, so that the owner is checked
// in the same.
func (st *Store) exec(ctx context.Context, query string, args ...any) (res sql.Result, err error) {
	if ctx.Value(inTx{}) != nil || !st.owner.Load() {
		return st.db.Exec(ctx, query, args...)
	}
	err = st.Tx(ctx, func(ctx context.Context) error {
		res, err = st.db.Exec(ctx, query, args...)
		return err
	})
	return res, err
}
