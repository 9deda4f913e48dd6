// Package store keeps everything the module must not forget: the events it
// took in, what it has still to send, the rooms it serves with their commits,
// public group states and receipts, and its keys.
//
// One code path serves SQLite and PostgreSQL. Every method takes a context and
// joins the transaction that [Store.Tx] put into it, so the driver writes a
// room's new state, the rows to send and the mark on the event that caused
// them together or not at all.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	_ "github.com/lib/pq" // registers "postgres"
	"github.com/rs/zerolog"
	"go.mau.fi/util/dbutil"

	"github.com/matrix-mls/matrix-mls/internal/sqlite"
)

//go:embed upgrades/*.sql
var upgradeFiles embed.FS

// Owner marks the database as ours; another program's database is refused.
const Owner = "matrix-mls"

// SchemaVersion is the schema that this build writes.
func SchemaVersion() int { return len(upgradeTable()) }

func upgradeTable() dbutil.UpgradeTable {
	var table dbutil.UpgradeTable
	table.RegisterFSPath(upgradeFiles, "upgrades")
	return table
}

// Errors that callers branch on.
var (
	ErrNotFound      = errors.New("store: not found")
	ErrSchemaTooNew  = errors.New("store: the database was written by a newer version")
	ErrForeignTables = errors.New("store: the database belongs to another program")
	ErrTakenOver     = errors.New("store: another running module has taken over this database")
	ErrDamaged       = errors.New("store: the database file is damaged")
)

// Config says which database to open.
type Config struct {
	Type         string        // "sqlite3" or "postgres"
	URI          string        // a file name for SQLite, a connection string for PostgreSQL
	MaxOpenConns int           // zero value: 4 for SQLite, 20 for PostgreSQL
	BusyTimeout  time.Duration // SQLite: wait for a lock this long; zero value: 5 s
}

// Store is an open database.
type Store struct {
	db   *dbutil.Database
	cfg  Config
	path string // the SQLite file; empty for PostgreSQL
	now  func() time.Time

	self  string      // names this process among those on the database
	owner atomic.Bool // Own or TakeOver was called, and did it
	beats atomic.Uint64
}

// Open opens the database and checks that it answers; it does not change it.
// Call [Store.Upgrade] before anything else.
func Open(ctx context.Context, cfg Config, now func() time.Time) (*Store, error) {
	if cfg.BusyTimeout <= 0 {
		cfg.BusyTimeout = 5 * time.Second
	}
	var nonce [16]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, fmt.Errorf("store: drawing a process id: %w", err)
	}
	st := &Store{cfg: cfg, now: now, self: hex.EncodeToString(nonce[:])}
	var raw *sql.DB
	var err error
	switch cfg.Type {
	case "sqlite3", "sqlite":
		if cfg.MaxOpenConns <= 0 {
			cfg.MaxOpenConns = 4
		}
		var dsn string
		if dsn, st.path, err = sqliteDSN(cfg); err != nil {
			return nil, err
		}
		if err = prepareFile(st.path); err != nil {
			return nil, err
		}
		raw, err = sql.Open(sqlite.Name, dsn)
	case "postgres":
		if cfg.MaxOpenConns <= 0 {
			cfg.MaxOpenConns = 20
		}
		var dsn string
		if dsn, err = postgresDSN(cfg.URI, processName(st.self)); err != nil {
			return nil, err
		}
		raw, err = sql.Open("postgres", dsn)
	default:
		return nil, fmt.Errorf("store: unknown database type %q, want sqlite3 or postgres", cfg.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("store: opening the %s database: %w", cfg.Type, err)
	}
	raw.SetMaxOpenConns(cfg.MaxOpenConns)
	raw.SetMaxIdleConns(cfg.MaxOpenConns)
	raw.SetConnMaxIdleTime(5 * time.Minute)
	if st.db, err = dbutil.NewWithDB(raw, cfg.Type); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("store: %w", err)
	}
	st.db.Owner = Owner
	st.db.IgnoreForeignTables = false
	st.db.UpgradeTable = upgradeTable()
	if err = raw.PingContext(ctx); err != nil {
		_ = raw.Close()
		if isDamaged(err) {
			return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, st.path, err)
		}
		return nil, fmt.Errorf("store: the %s database does not answer: %w", cfg.Type, err)
	}
	return st, nil
}

// SQLitePath is the file that an SQLite database's address names.
func SQLitePath(uri string) string {
	name, _, _ := strings.Cut(uri, "?")
	return strings.TrimPrefix(strings.TrimPrefix(name, "file:"), "//")
}

// sqliteDSN turns a file name or a file: address into a data source name for
// the driver, with the settings that durability rests on.
func sqliteDSN(cfg Config) (dsn, path string, err error) {
	// Options that stand in the address are for other drivers, or would undo
	// ours.
	path = SQLitePath(cfg.URI)
	if path == "" {
		return "", "", errors.New("store: the SQLite database has no file name")
	}
	values := make(url.Values)
	for _, pragma := range []string{
		"foreign_keys(1)", "journal_mode(WAL)", "synchronous(FULL)", "fullfsync(1)", // macOS waits for the disk only then
		fmt.Sprintf("busy_timeout(%d)", cfg.BusyTimeout.Milliseconds()),
	} {
		values.Add("_pragma", pragma)
	}
	values.Set("_txlock", "immediate")
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + values.Encode(), path, nil
}

// postgresDSN adds bounds to a connection string that names none: a server that
// hangs, or a transaction that was left open, must not stop the module for
// ever. The connections carry the process's name, by which another knows whether
// it is there.
func postgresDSN(uri, process string) (string, error) {
	bounds := [][2]string{
		{"connect_timeout", "10"}, // s
		{"statement_timeout", "30000"},
		{"idle_in_transaction_session_timeout", "60000"}, // ms
	}
	if !strings.HasPrefix(uri, "postgres://") && !strings.HasPrefix(uri, "postgresql://") {
		for _, b := range bounds {
			if !strings.Contains(uri, b[0]) {
				uri += " " + b[0] + "=" + b[1]
			}
		}
		return uri + " application_name=" + process, nil
	}
	u, err := url.Parse(uri)
	if err != nil {
		// url.Parse repeats the address with the password in it.
		return "", errors.New("store: the PostgreSQL address is no URL; special characters in the password must be percent-encoded")
	}
	query := u.Query()
	for _, b := range bounds {
		if !query.Has(b[0]) {
			query.Set(b[0], b[1])
		}
	}
	query.Set("application_name", process)
	u.RawQuery = query.Encode()
	return u.String(), nil
}

// prepareFile creates the database file readable by its owner alone, since it
// holds the module's keys.
func prepareFile(path string) error {
	if path == ":memory:" {
		return errors.New("store: an SQLite database in memory would lose the module's keys; name a file")
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("store: cannot write the SQLite database: %w", err)
	}
	return f.Close()
}

// Path is the SQLite file's absolute name, or empty for PostgreSQL.
func (st *Store) Path() string {
	if st.path == "" {
		return ""
	}
	if abs, err := filepath.Abs(st.path); err == nil {
		return abs
	}
	return st.path
}

// Dialect is "sqlite3" or "postgres".
func (st *Store) Dialect() string { return st.db.Dialect.String() }

// SetLogger makes schema upgrades speak through log. Queries are never logged
// with their arguments.
func (st *Store) SetLogger(log zerolog.Logger) {
	st.db.Log = dbutil.ZeroLogger(log.With().Str("component", "store").Logger(), dbutil.ZeroLogSettings{})
}

// Upgrade brings the schema up to date. It refuses a newer schema, a database
// that belongs to another program, and an SQLite file with pages missing or torn
// ([ErrDamaged]), before anything is written to it.
func (st *Store) Upgrade(ctx context.Context) error {
	if err := st.check(ctx); err != nil {
		return err
	}
	err := st.db.Upgrade(ctx)
	switch {
	case err == nil:
		return nil
	case isDamaged(err):
		return fmt.Errorf("%w: %s: %w", ErrDamaged, st.path, err)
	case errors.Is(err, dbutil.ErrUnsupportedDatabaseVersion):
		return fmt.Errorf("%w: %w", ErrSchemaTooNew, err)
	case errors.Is(err, dbutil.ErrForeignTables), errors.Is(err, dbutil.ErrNotOwned):
		return fmt.Errorf("%w: %w", ErrForeignTables, err)
	}
	return fmt.Errorf("store: upgrading the schema: %w", err)
}

// check looks through an SQLite file: what a copy, a disk or a crash has torn is
// better noticed now than when a room needs it. PostgreSQL looks after its own.
func (st *Store) check(ctx context.Context) error {
	if st.db.Dialect != dbutil.SQLite {
		return nil
	}
	var verdict string
	err := st.db.QueryRow(ctx, "PRAGMA quick_check(1)").Scan(&verdict)
	switch {
	case isDamaged(err):
		return fmt.Errorf("%w: %s: %w", ErrDamaged, st.path, err)
	case err != nil:
		return fmt.Errorf("store: checking the database file: %w", err)
	case verdict != "ok":
		return fmt.Errorf("%w: %s: %s", ErrDamaged, st.path, verdict)
	}
	return nil
}

// isDamaged tells SQLite's "malformed" and "not a database" apart from other
// errors. The driver's error type carries the code.
func isDamaged(err error) bool {
	const corrupt, notADatabase = 11, 26
	var coded interface{ Code() int }
	if !errors.As(err, &coded) {
		return false
	}
	code := coded.Code() & 0xff
	return code == corrupt || code == notADatabase
}

// Version reads the schema version without changing anything; 0 means empty.
func (st *Store) Version(ctx context.Context) (int, error) {
	exists, err := st.db.TableExists(ctx, st.db.VersionTable)
	if err != nil || !exists {
		return 0, wrap("reading the schema version", err)
	}
	var version int
	err = st.db.QueryRow(ctx, "SELECT version FROM version LIMIT 1").Scan(&version)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return version, wrap("reading the schema version", err)
}

// CopyBeforeUpgrade copies an SQLite database beside itself, so that an upgrade
// of the schema can be taken back, and returns the copy's name. A PostgreSQL
// database is not copied: its admin has backups of it.
func (st *Store) CopyBeforeUpgrade(ctx context.Context, version int) (string, error) {
	if st.path == "" {
		return "", nil
	}
	name := fmt.Sprintf("%s.before-v%d-%s", st.Path(), version+1, st.now().UTC().Format("20060102-150405"))
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", wrap("copying the database", err)
	}
	if err = f.Close(); err == nil {
		_, err = st.db.Exec(ctx, "VACUUM INTO $1", name)
	}
	return name, wrap("copying the database", err)
}

// Close closes the database.
func (st *Store) Close() error { return st.db.Close() }

// Ping checks that the database answers.
func (st *Store) Ping(ctx context.Context) error {
	return wrap("asking the database", st.db.RawDB.PingContext(ctx))
}

// Setting reads a setting of the open database, such as SQLite's journal_mode
// or PostgreSQL's server_version, for the self-check.
func (st *Store) Setting(ctx context.Context, name string) (string, error) {
	for _, r := range name {
		if r != '_' && (r < 'a' || r > 'z') {
			return "", fmt.Errorf("store: %q is no setting's name", name)
		}
	}
	query := "SHOW " + name
	if st.db.Dialect == dbutil.SQLite {
		query = "PRAGMA " + name
	}
	var value string
	err := st.db.QueryRow(ctx, query).Scan(&value)
	return value, wrap("reading the setting "+name, err)
}

type inTx struct{}

// Tx runs fn in one transaction: every Store method called with the context
// that fn gets takes part in it. A call inside a transaction joins it. fn must
// not wait for the network. If fn panics, the transaction is undone and the
// panic goes on.
func (st *Store) Tx(ctx context.Context, fn func(ctx context.Context) error) error {
	if ctx.Value(inTx{}) == nil {
		ctx = context.WithValue(ctx, inTx{}, true)
		outer := fn
		fn = func(ctx context.Context) error {
			if err := st.Owned(ctx); err != nil {
				return err
			}
			return outer(ctx)
		}
	}
	var panicked *txPanic
	err := st.db.DoTxn(ctx, nil, func(ctx context.Context) (err error) {
		defer func() {
			if cause := recover(); cause != nil {
				var known bool
				if panicked, known = cause.(*txPanic); !known {
					panicked = &txPanic{cause, debug.Stack()}
				}
				err = errPanicked
			}
		}()
		return fn(ctx)
	})
	if panicked != nil {
		panic(panicked)
	}
	return err
}

var errPanicked = errors.New("store: a transaction's function panicked")

// txPanic carries a panic past the end of its transaction.
type txPanic struct {
	cause any
	stack []byte
}

// String tells what panicked, and where.
func (p *txPanic) String() string { return fmt.Sprintf("%v\n%s", p.cause, p.stack) }

// LockRoom keeps other module processes on the same PostgreSQL away from a
// room until the transaction ends. On SQLite the write lock does that already.
func (st *Store) LockRoom(ctx context.Context, room string) error {
	if st.db.Dialect != dbutil.Postgres {
		return nil
	}
	_, err := st.db.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", room)
	return wrap("locking a room", err)
}

func (st *Store) millis() int64 { return st.now().UnixMilli() }

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%w: %s", ErrNotFound, what)
	}
	return fmt.Errorf("store: %s: %w", what, err)
}

// clean makes any text storable in both databases: PostgreSQL takes neither
// NUL nor invalid UTF-8.
func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// collect reads all rows of a query.
func collect[T any](rows dbutil.Rows, err error, what string, scan func(dbutil.Scannable) (T, error)) ([]T, error) {
	if err != nil {
		return nil, wrap(what, err)
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		item, err := scan(rows)
		if err != nil {
			return nil, wrap(what, err)
		}
		out = append(out, item)
	}
	return out, wrap(what, rows.Err())
}
