package store

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.mau.fi/util/dbutil"
)

// A backup is a gzip file of JSON lines: a header, one line for each row of
// each table, and a last line with the count and the SHA-256 of all lines
// before. It is the same for both databases, so it also moves a module from one
// to the other.

// Errors of a restore.
var (
	ErrNoBackup     = errors.New("store: this is no backup of matrix-mls, or it is damaged")
	ErrBackupSchema = errors.New("store: the backup was made by another version")
	ErrNotEmpty     = errors.New("store: the database is in use")
	ErrOwnerAtWork  = errors.New("store: a module works on the database")
)

const (
	backupFormat  = 1
	maxBackupLine = 256 << 20
	noTimeout     = "SET LOCAL statement_timeout=0" // PostgreSQL: a large table takes longer
)

type columnKind byte

const (
	colInt  columnKind = 'i'
	colText columnKind = 't'
	colBlob columnKind = 'b'
)

type backupTable struct {
	name    string
	order   string
	columns []string // name:kind
	serial  string   // column that the database numbers
}

// backupTables are all tables, those that others refer to first.
var backupTables = []backupTable{
	{"keys", "name", []string{"name:t", "secret:b", "created_at:i"}, ""},
	{"kv", "name", []string{"name:t", "value:t"}, ""},
	{"rooms", "room_id", []string{"room_id:t", "status:t", "group_id:t", "head:t", "epoch:i", "token:t", "last_event:t", "machine:b", "data:t", "updated_at:i"}, ""},
	{"commits", "room_id, ref", []string{"room_id:t", "ref:t", "parent:t", "epoch:i", "event_id:t", "sender:t", "status:t", "content:t"}, ""},
	{"public_groups", "room_id, ref", []string{"room_id:t", "ref:t", "state:b"}, ""},
	{"receipts", "room_id, hash", []string{"room_id:t", "hash:t", "kind:t", "signer:t", "ref:t", "counter:i", "event_id:t", "content:t"}, ""},
	{"media", "room_id, sha256", []string{"room_id:t", "sha256:t", "uri:t", "size:i", "purpose:t", "ref:t", "created_at:i"}, ""},
	{"inbox", "seq", []string{"seq:i", "event_id:t", "room_id:t", "sender:t", "type:t", "state_key:t", "raw:t", "source:t", "status:t", "rule:t", "received_at:i"}, "seq"},
	{"outbox", "id", []string{"id:i", "room_id:t", "txn_id:t", "kind:t", "type:t", "state_key:t", "content:t", "tag:t", "priority:i", "status:t", "attempts:i", "next_at:i", "event_id:t", "error:t", "created_at:i", "done_at:i"}, "id"},
	{"refusals", "id", []string{"id:i", "room_id:t", "event_id:t", "rule:t", "detail:t", "at:i"}, "id"},
}

func (t *backupTable) names() []string {
	out := make([]string, len(t.columns))
	for i, c := range t.columns {
		out[i] = c[:len(c)-2]
	}
	return out
}

func (t *backupTable) kind(i int) columnKind { return columnKind(t.columns[i][len(t.columns[i])-1]) }

// BackupHeader is the first line of a backup.
type BackupHeader struct {
	Format  int       `json:"matrix_mls_backup"`
	Schema  int       `json:"schema"`
	Version string    `json:"version"` // of the program
	Server  string    `json:"server"`
	Made    time.Time `json:"made"`
	// Config is where the module's configuration lay, and what it held.
	ConfigPath string `json:"config_path,omitempty"`
	Config     string `json:"config,omitempty"`
}

type backupEnd struct {
	Rows   int64  `json:"rows"`
	SHA256 string `json:"sha256"`
}

type backupRow struct {
	Table string            `json:"t"`
	Row   []json.RawMessage `json:"r"`
}

// Backup writes everything the database holds, as it is at one moment; the
// module may run meanwhile. progress hears of rows as they are written.
func (st *Store) Backup(ctx context.Context, w io.Writer, h BackupHeader, progress func(rows int64)) (rows int64, err error) {
	version, err := st.Version(ctx)
	if err != nil {
		return 0, err
	}
	if version != SchemaVersion() {
		return 0, fmt.Errorf("%w: the database has schema %d, this program writes %d", ErrBackupSchema, version, SchemaVersion())
	}
	h.Format, h.Schema, h.Made = backupFormat, version, st.now().UTC()
	z := gzip.NewWriter(w)
	out := &lineWriter{w: bufio.NewWriterSize(z, 1<<20), sum: sha256.New()}
	if err := out.line(h); err != nil {
		return 0, err
	}
	read := func(q func(query string, args ...any) (dbutil.Rows, error)) error {
		for i := range backupTables {
			if err := out.table(&backupTables[i], q, progress); err != nil {
				return err
			}
		}
		return nil
	}
	if st.Shared() {
		err = st.db.DoTxn(ctx, &dbutil.TxnOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}, func(ctx context.Context) error {
			if _, err := st.db.Exec(ctx, noTimeout); err != nil {
				return err
			}
			return read(func(query string, args ...any) (dbutil.Rows, error) { return st.db.Query(ctx, query, args...) })
		})
	} else {
		err = st.readCopy(ctx, read)
	}
	if err != nil {
		return out.rows, wrap("backing up", err)
	}
	end, err := json.Marshal(backupEnd{Rows: out.rows, SHA256: hex.EncodeToString(out.sum.Sum(nil))})
	if err == nil {
		_, err = out.w.Write(append(end, '\n'))
	}
	if err == nil {
		err = out.w.Flush()
	}
	if err == nil {
		err = z.Close()
	}
	return out.rows, wrap("backing up", err)
}

// readCopy reads a copy of an SQLite database, so that a running module does not
// wait for the reading.
func (st *Store) readCopy(ctx context.Context, read func(func(string, ...any) (dbutil.Rows, error)) error) error {
	dir, err := os.MkdirTemp(filepath.Dir(st.Path()), ".matrix-mls-backup-*") // mode 0700
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "copy.db")
	if _, err := st.db.Exec(ctx, "VACUUM INTO $1", name); err != nil {
		return err
	}
	raw, err := sql.Open("sqlite", "file:"+name+"?mode=ro")
	if err != nil {
		return err
	}
	defer raw.Close()
	db, err := dbutil.NewWithDB(raw, "sqlite3")
	if err != nil {
		return err
	}
	return read(func(query string, args ...any) (dbutil.Rows, error) { return db.Query(ctx, query, args...) })
}

type lineWriter struct {
	w    *bufio.Writer
	sum  hash.Hash
	rows int64
}

func (l *lineWriter) line(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	raw = append(raw, '\n')
	l.sum.Write(raw)
	_, err = l.w.Write(raw)
	return err
}

func (l *lineWriter) table(t *backupTable, q func(string, ...any) (dbutil.Rows, error), progress func(int64)) error {
	query := "SELECT " + strings.Join(t.names(), ", ") + " FROM " + t.name
	if t.name == "kv" {
		query += " WHERE name NOT IN ('" + keyHolder + "', '" + keyBeat + "')"
	}
	rows, err := q(query + " ORDER BY " + t.order)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		into := make([]any, len(t.columns))
		for i := range into {
			switch t.kind(i) {
			case colInt:
				into[i] = new(sql.NullInt64)
			case colText:
				into[i] = new(sql.NullString)
			default:
				into[i] = new([]byte)
			}
		}
		if err := rows.Scan(into...); err != nil {
			return err
		}
		out := backupRow{Table: t.name, Row: make([]json.RawMessage, len(into))}
		for i, v := range into {
			var plain any
			switch v := v.(type) {
			case *sql.NullInt64:
				if v.Valid {
					plain = v.Int64
				}
			case *sql.NullString:
				if v.Valid {
					plain = v.String
				}
			case *[]byte:
				if *v != nil {
					plain = *v // base64
				}
			}
			if out.Row[i], err = json.Marshal(plain); err != nil {
				return err
			}
		}
		if err := l.line(out); err != nil {
			return err
		}
		if l.rows++; progress != nil {
			progress(l.rows)
		}
	}
	return rows.Err()
}

// ReadBackupHeader reads a backup to its end, checks its sum and returns its
// header.
func ReadBackupHeader(r io.Reader) (*BackupHeader, int64, error) {
	var h *BackupHeader
	rows, err := readBackup(r, func(header *BackupHeader) error { h = header; return nil }, func(*backupTable, []json.RawMessage) error { return nil })
	return h, rows, err
}

// readBackup reads a backup and checks its sum at the end.
func readBackup(r io.Reader, header func(*BackupHeader) error, row func(*backupTable, []json.RawMessage) error) (int64, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoBackup, err)
	}
	lines := bufio.NewScanner(z)
	lines.Buffer(make([]byte, 1<<20), maxBackupLine)
	sum := sha256.New()
	tables := make(map[string]*backupTable)
	for i := range backupTables {
		tables[backupTables[i].name] = &backupTables[i]
	}
	var rows int64
	var end *backupEnd
	for first := true; lines.Scan(); first = false {
		line := lines.Bytes()
		switch {
		case end != nil:
			return rows, fmt.Errorf("%w: something follows its end", ErrNoBackup)
		case first:
			var h BackupHeader
			if err := json.Unmarshal(line, &h); err != nil || h.Format == 0 {
				return 0, fmt.Errorf("%w: it has no header", ErrNoBackup)
			}
			if h.Format != backupFormat || h.Schema != SchemaVersion() {
				return 0, fmt.Errorf("%w: matrix-mls %s, schema %d; this one has schema %d", ErrBackupSchema, h.Version, h.Schema, SchemaVersion())
			}
			if err := header(&h); err != nil {
				return 0, err
			}
		default:
			var r struct {
				backupRow
				backupEnd
			}
			if err := json.Unmarshal(line, &r); err != nil {
				return rows, fmt.Errorf("%w: line %d: %w", ErrNoBackup, rows+2, err)
			}
			if r.SHA256 != "" {
				end = &r.backupEnd
				continue
			}
			t := tables[r.Table]
			if t == nil || len(r.Row) != len(t.columns) {
				return rows, fmt.Errorf("%w: line %d is no row", ErrNoBackup, rows+2)
			}
			if err := row(t, r.Row); err != nil {
				return rows, err
			}
			rows++
		}
		sum.Write(line)
		sum.Write([]byte{'\n'})
	}
	switch err := lines.Err(); {
	case err != nil:
		return rows, fmt.Errorf("%w: %w", ErrNoBackup, err)
	case end == nil:
		return rows, fmt.Errorf("%w: it is cut short", ErrNoBackup)
	case end.Rows != rows || end.SHA256 != hex.EncodeToString(sum.Sum(nil)):
		return rows, fmt.Errorf("%w: its sum is wrong", ErrNoBackup)
	}
	return rows, nil
}

// Restore puts a backup into a database in which no module has worked yet, all
// of it or nothing. The module that starts on it compares every room before it
// signs: see [KeyRestored].
func (st *Store) Restore(ctx context.Context, r io.Reader, progress func(rows int64)) (rows int64, err error) {
	h, err := st.Holder(ctx)
	if err != nil {
		return 0, err
	}
	if h.Process != "" && h.Connected {
		return 0, ErrOwnerAtWork
	}
	used := 0
	for _, table := range []string{"rooms", "receipts", "outbox"} {
		var n int
		if err := st.db.QueryRow(ctx, "SELECT COUNT(*) FROM "+table).Scan(&n); err != nil {
			return 0, wrap("looking whether the database is empty", err)
		}
		used += n
	}
	if used > 0 {
		return 0, fmt.Errorf("%w: it holds rooms already", ErrNotEmpty)
	}
	err = st.Tx(ctx, func(ctx context.Context) error {
		if st.Shared() {
			if _, err := st.db.Exec(ctx, noTimeout); err != nil {
				return err
			}
		}
		for i := range backupTables { // what setup has made, such as keys that no room knows
			if _, err := st.db.Exec(ctx, "DELETE FROM "+backupTables[len(backupTables)-1-i].name); err != nil {
				return err
			}
		}
		var n int64
		rows, err = readBackup(r, func(*BackupHeader) error { return nil }, func(t *backupTable, row []json.RawMessage) error {
			if n++; progress != nil {
				progress(n)
			}
			return st.restoreRow(ctx, t, row)
		})
		if err != nil {
			return err
		}
		for i := range backupTables {
			t := &backupTables[i]
			if t.serial == "" || !st.Shared() {
				continue
			}
			query := fmt.Sprintf("SELECT setval(pg_get_serial_sequence('%s', '%s'), COALESCE((SELECT MAX(%s) FROM %s), 0)+1, false)", t.name, t.serial, t.serial, t.name)
			if _, err := st.db.Exec(ctx, query); err != nil {
				return err
			}
		}
		return st.Set(ctx, KeyRestored, st.self+" "+st.now().UTC().Format(time.RFC3339))
	})
	return rows, wrap("restoring", err)
}

func (st *Store) restoreRow(ctx context.Context, t *backupTable, row []json.RawMessage) error {
	places, args := make([]string, len(row)), make([]any, len(row))
	for i, raw := range row {
		places[i] = fmt.Sprintf("$%d", i+1)
		if string(raw) == "null" {
			continue
		}
		var err error
		switch t.kind(i) {
		case colInt:
			var v int64
			err = json.Unmarshal(raw, &v)
			args[i] = v
		case colText:
			var v string
			err = json.Unmarshal(raw, &v)
			args[i] = v
		default:
			v := []byte{}
			err = json.Unmarshal(raw, &v)
			args[i] = v
		}
		if err != nil {
			return fmt.Errorf("%w: a value of %s", ErrNoBackup, t.columns[i])
		}
	}
	_, err := st.db.Exec(ctx, "INSERT INTO "+t.name+" ("+strings.Join(t.names(), ", ")+") VALUES ("+strings.Join(places, ", ")+")", args...)
	return err
}
