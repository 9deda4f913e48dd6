// Package store keeps the state of one device of one account in one SQLite
// file: the account, key packages, group states, ratchets, queues and the
// decrypted timeline. Every value is sealed under the store key before it
// reaches SQLite; room ids, event ids, commit refs and counters are not.
//
// # Duties of the caller
//
// Writes that belong together go into one [Store.Do]. The transaction travels
// in the context: inside Do use the inner context for every call, and do
// nothing that waits for the network. When Do returns nil the writes are on
// disk (write-ahead log, synchronous=FULL); only then may anything that
// depends on them leave the machine. A ratchet step in particular is stored
// before its ciphertext is sent.
//
// Waiting for the disk takes milliseconds. What may come once more after a power
// cut, such as a message that the homeserver still has, is written with
// [Store.DoSoon] instead.
package store

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"
	"go.mau.fi/util/dbutil"

	"github.com/matrix-mls/matrix-mls/internal/sqlite"
)

var (
	// ErrNotFound reports that the row asked for is not there.
	ErrNotFound = errors.New("store: not found")
	// ErrLocked reports that another process has the store open.
	ErrLocked = errors.New("store: another process has this store open")
	// ErrDamaged reports that pages of the file are missing or torn.
	ErrDamaged = errors.New("store: the store's file is damaged")
	// ErrWrongKey reports that the store was sealed under another key, or that
	// a value was changed on disk.
	ErrWrongKey = errors.New("store: the store key does not open this store")
)

//go:embed upgrades/*.sql
var upgradeFiles embed.FS

// owner is written into the database, so that the file of another program is
// refused instead of altered.
const owner = "matrix-mls client"

// cacheSize is how many KiB of the file SQLite keeps in memory, beside what the system does: a program with several
// accounts has as many stores.
const cacheSize = 512

const (
	kvCheck      = "store/check"
	kvSettled    = "store/settled"
	checkContent = "matrix-mls store"
)

// Options says how to open a store.
type Options struct {
	// Path of the SQLite file; its directory is made, readable by its owner
	// only, when it is missing.
	Path string
	// Key seals every value. See [LoadKey].
	Key Key
	// Log receives the traces of slow or failing queries; it may be nil.
	// Values never appear in it.
	Log *zerolog.Logger
	// Rand is the source of nonces, crypto/rand when nil.
	Rand io.Reader
	// OnDurable is called, if it is set, when all that was written until then is on
	// disk, before anybody writes more: for tests of what a power cut leaves.
	OnDurable func()
}

// Store is an open store. It is safe for concurrent use.
type Store struct {
	db   *dbutil.Database
	aead cipher.AEAD
	rand io.Reader
	path string
	key  Key // for backups

	onDurable func()

	writing sync.Mutex // held by the one who writes
	soon    bool       // the connection does not wait for the disk now

	written   atomic.Int64  // transactions since Open
	folded    atomic.Int64  // of these, until the last Fold
	pending   atomic.Bool   // something may not be on disk
	unsettled chan struct{} // see Unsettled

	inboxes emptyInboxes
}

// Open opens or creates the store at o.Path and upgrades its schema. It fails
// with [ErrLocked] while another process has it open, and with [ErrWrongKey]
// when it was made with another key.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(o.Path), 0o700); err != nil {
		return nil, fmt.Errorf("store: create the directory: %w", err)
	}
	// SQLite makes its files with the mode of the database file.
	f, err := os.OpenFile(o.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: open the database file: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("store: open the database file: %w", err)
	}
	aead, err := newAEAD(o.Key)
	if err != nil {
		return nil, err
	}
	// One connection that keeps the lock: a second process would step the same
	// ratchets.
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: o.Path}).EscapedPath(), RawQuery: url.Values{
		"_txlock": {"immediate"},
		"_pragma": {
			"busy_timeout(250)", "locking_mode(EXCLUSIVE)", "journal_mode(WAL)", "synchronous(FULL)", "fullfsync(1)", // macOS waits for the disk only then
			"wal_autocheckpoint(" + strconv.Itoa(mostPages) + ")", "cache_size(-" + strconv.Itoa(cacheSize) + ")", "secure_delete(ON)", "foreign_keys(ON)", "trusted_schema(OFF)",
		},
	}.Encode()}).String()
	var logger dbutil.DatabaseLogger = dbutil.NoopLogger
	if o.Log != nil {
		logger = dbutil.ZeroLogger(o.Log.With().Str("component", "store").Logger())
	}
	db, err := dbutil.NewFromConfig(owner, dbutil.Config{
		PoolConfig:        dbutil.PoolConfig{Type: sqlite.Name, URI: dsn, MaxOpenConns: 1, MaxIdleConns: 1},
		DeadlockDetection: true,
	}, logger)
	if err != nil {
		return nil, fmt.Errorf("store: open %s: %w", o.Path, err)
	}
	var table dbutil.UpgradeTable
	table.RegisterFSPath(upgradeFiles, "upgrades")
	db.UpgradeTable = table
	s := &Store{db: db, aead: aead, rand: o.Rand, path: o.Path, key: slices.Clone(o.Key), onDurable: o.OnDurable, unsettled: make(chan struct{}, 1)}
	// A process that ended just now may have left what is not on disk.
	s.note(true)
	if s.rand == nil {
		s.rand = rand.Reader
	}
	if err := s.start(ctx); err != nil {
		db.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) start(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	if err := s.db.Upgrade(ctx); err != nil {
		if isBusy(err) {
			return ErrLocked
		}
		return fmt.Errorf("store: upgrade the schema of %s: %w", s.path, err)
	}
	// An empty write takes the lock for good.
	err := s.Do(ctx, func(ctx context.Context) error {
		got, err := s.GetKV(ctx, kvCheck)
		switch {
		case errors.Is(err, ErrNotFound):
			return s.PutKV(ctx, kvCheck, []byte(checkContent))
		case err != nil:
			return err
		case string(got) != checkContent:
			return ErrWrongKey
		}
		return nil
	})
	if isBusy(err) {
		return ErrLocked
	}
	return err
}

// check looks through the file: what a copy, a disk or a crash has torn is better
// noticed now than when a room needs it.
func (s *Store) check(ctx context.Context) error {
	var verdict string
	err := s.db.QueryRow(ctx, "PRAGMA quick_check(1)").Scan(&verdict)
	var coded interface{ Code() int }
	const corrupt, notADatabase = 11, 26
	switch {
	case isBusy(err):
		return ErrLocked
	case errors.As(err, &coded) && (coded.Code()&0xff == corrupt || coded.Code()&0xff == notADatabase):
		return fmt.Errorf("%w: %s: %w", ErrDamaged, s.path, err)
	case err != nil:
		return fmt.Errorf("store: check %s: %w", s.path, err)
	case verdict != "ok":
		return fmt.Errorf("%w: %s: %s", ErrDamaged, s.path, verdict)
	}
	return nil
}

// isBusy tells SQLite's "somebody else has the lock" apart. The driver's error
// type carries the code; dbutil wraps some errors in text only.
func isBusy(err error) bool {
	if err == nil {
		return false
	}
	var coded interface{ Code() int }
	if errors.As(err, &coded) {
		const sqliteBusy = 5
		return coded.Code()&0xff == sqliteBusy
	}
	return strings.Contains(err.Error(), "SQLITE_BUSY")
}

// Close folds the write-ahead log into the database file and releases it.
func (s *Store) Close() error {
	_, _ = s.db.Exec(context.Background(), "PRAGMA wal_checkpoint(TRUNCATE)")
	defer clear(s.key)
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("store: close: %w", err)
	}
	return nil
}

// Scrub folds the write-ahead log into the database file and empties it. Deleted
// values are overwritten in the file (secure_delete); the log would keep them
// until it is written over.
func (s *Store) Scrub(ctx context.Context) error {
	if _, err := s.db.Exec(ctx, "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		return fmt.Errorf("store: empty the write-ahead log: %w", err)
	}
	return nil
}

// The write-ahead log is folded into the database file by Fold, between two messages, once so many transactions are in it;
// if nobody calls that, by the write with which it has so many pages.
const (
	foldAfter = 256
	foldAgain = 16 // after one that failed
	mostPages = 4000
)

// Grown tells whether it is time for Fold.
func (s *Store) Grown() bool { return s.written.Load()-s.folded.Load() >= foldAfter }

// Written counts the transactions since the store was opened: for who calls Fold while there are none.
func (s *Store) Written() int64 { return s.written.Load() }

// Fold folds the write-ahead log into the database file: that takes longer than a message should wait. What was written
// with DoSoon is durable afterwards.
func (s *Store) Fold(ctx context.Context) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.folded.Store(s.written.Load() - foldAfter + foldAgain)
	if _, err := s.db.Exec(ctx, "PRAGMA wal_checkpoint(PASSIVE)"); err != nil {
		return fmt.Errorf("store: fold the write-ahead log: %w", err)
	}
	s.folded.Store(s.written.Load())
	return nil
}

// Path returns the path of the database file.
func (s *Store) Path() string { return s.path }

// Do runs fn in one transaction, which is committed when fn returns nil and
// undone otherwise. The transaction travels in fn's context; a Do inside a Do
// joins it. When Do returns nil the writes are durable, and so are all before them.
func (s *Store) Do(ctx context.Context, fn func(ctx context.Context) error) error {
	return s.write(ctx, false, func(ctx context.Context) error { return s.db.DoTxn(ctx, nil, fn) })
}

// DoSoon does what Do does without waiting for the disk. The end of this process,
// however sudden, loses none of the writes. A power cut may: of all that was written
// the last then is missing, in whole transactions, back to the last Do that wrote
// something at the most. So nothing that rests on them may leave the machine before
// such a Do, unless it may happen again.
func (s *Store) DoSoon(ctx context.Context, fn func(ctx context.Context) error) error {
	return s.write(ctx, true, func(ctx context.Context) error { return s.db.DoTxn(ctx, nil, fn) })
}

// Settle makes durable what was written with DoSoon, if no later Do has.
func (s *Store) Settle(ctx context.Context) error {
	if ctx.Value(inWrite{s}) == nil && !s.pending.Load() {
		return nil
	}
	return s.PutKV(ctx, kvSettled, nil) // sealed with a nonce of its own: it differs each time
}

// Unsettled has a value once something may be written that is not durable, until that
// was received: for who calls Settle a while after.
func (s *Store) Unsettled() <-chan struct{} { return s.unsettled }

// note keeps whether something may not be on disk.
func (s *Store) note(pending bool) {
	if s.pending.Swap(pending) || !pending {
		return
	}
	select {
	case s.unsettled <- struct{}{}:
	default:
	}
}

// inWrite marks the context of whoever writes.
type inWrite struct{ s *Store }

// write calls fn, which writes, with the connection waiting for the disk or not.
// Inside of a transaction that is decided already.
func (s *Store) write(ctx context.Context, soon bool, fn func(ctx context.Context) error) error {
	if ctx.Value(inWrite{s}) != nil {
		return fn(ctx)
	}
	_ = s.db.Execable(ctx) // panics where this goroutine is in a transaction and ctx is not: it would wait for itself
	s.writing.Lock()
	defer s.writing.Unlock()
	s.written.Add(1)
	if s.soon != soon {
		query := "PRAGMA synchronous=FULL"
		if soon {
			query = "PRAGMA synchronous=NORMAL"
		}
		if _, err := s.db.Exec(context.WithoutCancel(ctx), query); err != nil {
			return fmt.Errorf("store: set how %s is written: %w", s.path, err)
		}
		s.soon = soon
	}
	ctx, outside := context.WithValue(ctx, inWrite{s}, true), ctx
	if soon {
		s.note(true)
		return fn(ctx)
	}
	if s.onDurable == nil && !s.pending.Load() {
		return fn(ctx)
	}
	before := s.changes(outside)
	err := fn(ctx)
	if err == nil && s.changes(outside) != before { // else there was nothing to wait for
		s.note(false)
		if s.onDurable != nil {
			s.onDurable()
		}
	}
	return err
}

// changes counts the rows that were written since the store was opened.
func (s *Store) changes(ctx context.Context) (n int64) {
	_ = s.one(ctx, "", "SELECT total_changes()", nil, &n)
	return n
}

// exec runs a statement and names the table in its error.
func (s *Store) exec(ctx context.Context, table, query string, args ...any) error {
	return s.write(ctx, false, func(ctx context.Context) error {
		if _, err := s.db.Exec(ctx, query, args...); err != nil {
			return fmt.Errorf("store: write %s: %w", table, err)
		}
		return nil
	})
}

// insert runs a statement that returns something of the row it writes.
func (s *Store) insert(ctx context.Context, table, query string, args []any, dest ...any) error {
	return s.write(ctx, false, func(ctx context.Context) error { return s.one(ctx, table, query, args, dest...) })
}

// one runs a query for one row.
func (s *Store) one(ctx context.Context, table, query string, args []any, dest ...any) error {
	err := s.db.QueryRow(ctx, query, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("store: read %s: %w", table, err)
	}
	return nil
}

// each runs a query and calls scan for every row. The rows are read to their
// end before each returns, as there is one connection.
func (s *Store) each(ctx context.Context, table, query string, args []any, scan func(dbutil.Scannable) error) error {
	rows, err := s.db.Query(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("store: read %s: %w", table, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return fmt.Errorf("store: read %s: %w", table, err)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("store: read %s: %w", table, err)
	}
	return nil
}
