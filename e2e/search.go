package e2e

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	_ "modernc.org/sqlite" // reads the homeservers' and modules' databases
)

// A Hit is a place where a searched text was found.
type Hit struct {
	Text string
	Form string // as it is, or how it was written there
	Path string
}

func (h Hit) String() string { return fmt.Sprintf("%q (%s) in %s", h.Text, h.Form, h.Path) }

// A Search is what was looked through and what was found.
type Search struct {
	Files int
	Bytes int64
	Hits  []Hit
}

// Search looks for texts in everything that the servers' side has written: databases (each file as it is, and every
// value of every table), write-ahead logs, media, logs, configuration, a dump of PostgreSQL, and what was recorded of the
// wire. It looks for the text itself and for its hex and base64 forms, for all texts at once: it goes through everything
// once. Texts have 12 bytes at least. What the clients keep is not looked at: it is theirs.
func (w *World) Search(ctx context.Context, texts ...string) (*Search, error) {
	if w.wire != nil { // its file lies among the others
		if err := w.wire.Settle(ctx); err != nil {
			return nil, err
		}
	}
	forms, err := newNeedles(texts)
	if err != nil {
		return nil, err
	}
	found := &Search{}
	skip := filepath.Join(w.Dir(), "clients")
	err = filepath.WalkDir(w.Dir(), func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // a homeserver deleted it meanwhile
		case err != nil:
			return err
		case e.IsDir() && (path == skip || path == w.bin || e.Name() == "pg"):
			return fs.SkipDir
		case !e.Type().IsRegular():
			return nil
		}
		if w.wire != nil && path == w.wire.path {
			return found.lookInBlocks(forms, path)
		}
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		found.look(forms, path, raw)
		if bytes.HasPrefix(raw, []byte("SQLite format 3\x00")) {
			return found.lookInSQLite(ctx, forms, path)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("e2e: search: %w", err)
	}
	if w.HasPostgres() {
		dump := filepath.Join(w.Dir(), "dump.sql")
		if err := w.Dump(ctx, dump); err != nil {
			return nil, err
		}
		raw, err := os.ReadFile(dump)
		if err = errors.Join(err, os.Remove(dump)); err != nil {
			return nil, fmt.Errorf("e2e: search: %w", err)
		}
		found.look(forms, "PostgreSQL", raw)
	}
	return found, nil
}

// needles are texts that are looked for all at once, each as it is and in the forms that things are written in, by their
// first eight bytes.
type needles struct {
	by    map[uint64][]*needle
	first [1 << 16]bool // the first two bytes of any
}

type needle struct {
	text, form string
	bytes      string
}

const (
	shortest = 12  // of a text, so that each form has eight bytes
	longest  = 128 // of what is looked for of a text: its beginning
)

// newNeedles makes needles of texts.
func newNeedles(texts []string) (*needles, error) {
	n := &needles{by: map[uint64][]*needle{}}
	for _, text := range texts {
		if len(text) < shortest {
			return nil, fmt.Errorf("e2e: search: %q is too short to be found nowhere else", text)
		}
		beginning := text[:min(len(text), longest)]
		add := func(form, s string) {
			key := binary.LittleEndian.Uint64([]byte(s))
			n.by[key] = append(n.by[key], &needle{text, form, s})
			n.first[uint16(key)] = true
		}
		add("as it is", beginning)
		small := hex.EncodeToString([]byte(beginning))
		add("hex", small)
		if large := strings.ToUpper(small); large != small {
			add("hex", large)
		}
		for shift := range 3 { // base64 of a longer string that holds the text at any place
			whole := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + beginning))
			inner := whole[(shift*4+2)/3 : len(whole)-2]
			add("base64", inner)
			if url := strings.NewReplacer("+", "-", "/", "_").Replace(inner); url != inner {
				add("base64url", url)
			}
		}
	}
	return n, nil
}

// look goes through bytes, and returns what is in them, each once. It has nothing that another goroutine sees, and the race
// detector would make it ten times slower.
//
//go:norace
func (n *needles) look(data []byte) (hit []*needle) {
	for i := 0; i+8 <= len(data); i++ {
		if !n.first[uint16(data[i])|uint16(data[i+1])<<8] {
			continue
		}
		for _, one := range n.by[binary.LittleEndian.Uint64(data[i:])] {
			if len(data)-i >= len(one.bytes) && string(data[i:i+len(one.bytes)]) == one.bytes && !slices.Contains(hit, one) {
				hit = append(hit, one)
			}
		}
	}
	return hit
}

func (s *Search) look(forms *needles, path string, raw []byte) {
	s.Files++
	s.Bytes += int64(len(raw))
	s.found(path, forms.look(raw))
}

// found notes what is at a place, once.
func (s *Search) found(path string, hit []*needle) {
	for _, one := range hit {
		if h := (Hit{one.text, one.form, path}); !slices.Contains(s.Hits, h) {
			s.Hits = append(s.Hits, h)
		}
	}
}

// lookInBlocks goes through a file that may not fit into memory.
func (s *Search) lookInBlocks(forms *needles, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	s.Files++
	block, kept := make([]byte, 4<<20), 0
	for {
		n, err := io.ReadFull(file, block[kept:])
		s.Bytes += int64(n)
		s.found(path, forms.look(block[:kept+n]))
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
		kept = copy(block, block[len(block)-overlap:])
	}
}

// lookInSQLite reads every value, since a long one lies in pieces in the file.
func (s *Search) lookInSQLite(ctx context.Context, forms *needles, path string) error {
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro&_pragma=busy_timeout(10000)")
	if err != nil {
		return err
	}
	defer db.Close()
	var tables []string
	rows, err := db.QueryContext(ctx, "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'")
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return errors.Join(err, rows.Close())
		}
		tables = append(tables, name)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, table := range tables {
		if err := s.lookInTable(ctx, forms, db, path, table); err != nil {
			return fmt.Errorf("%s, table %s: %w", path, table, err)
		}
	}
	return nil
}

func (s *Search) lookInTable(ctx context.Context, forms *needles, db *sql.DB, path, table string) error {
	rows, err := db.QueryContext(ctx, `SELECT * FROM "`+strings.ReplaceAll(table, `"`, `""`)+`"`)
	if err != nil {
		return err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	values := make([]sql.RawBytes, len(columns))
	into := make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		for i, v := range values {
			if hit := forms.look(v); hit != nil {
				s.found(path+" "+table+"."+columns[i], hit)
			}
		}
	}
	return rows.Err()
}
