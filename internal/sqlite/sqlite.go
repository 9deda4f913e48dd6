// Package sqlite registers the SQLite that the stores are kept in: modernc.org/sqlite, with the statements that a
// connection was asked for kept prepared. The stores ask for the same hundred again and again, and preparing one
// costs more than most of them do.
package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"

	"modernc.org/sqlite"
)

// Name is the driver's name for [sql.Open]. Addresses are those of modernc.org/sqlite.
const Name = "sqlite-kept"

// keeps is how many statements one connection keeps, some kilobytes each. The one that was used longest ago gives way.
const keeps = 128

func init() { sql.Register(Name, new(keeper)) }

type keeper struct{ sqlite.Driver }

// Open opens a connection.
func (k *keeper) Open(name string) (driver.Conn, error) {
	c, err := k.Driver.Open(name)
	if err != nil {
		return nil, err
	}
	below, ok := c.(lower)
	if !ok {
		return nil, errors.Join(fmt.Errorf("sqlite: a connection is a %T, which lacks what is built on", c), c.Close())
	}
	return &conn{lower: below, kept: make(map[string]*statement)}, nil
}

// lower is what a connection of modernc.org/sqlite is, as far as database/sql asks for it.
type lower interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// conn is a connection. As any driver's it is used by one goroutine at a time.
type conn struct {
	lower
	kept map[string]*statement
	uses uint64 // counts them
}

type statement struct {
	prepared
	used uint64 // the connection's uses when it was used last
	busy bool   // its rows are open
}

// prepared is what a statement of modernc.org/sqlite is.
type prepared interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// keepable says whether a query is one statement that reads or changes rows. What changes the schema, a setting of the
// connection or a transaction comes once; and a text with a semicolon may be several statements.
func keepable(query string) bool {
	verb, _, _ := strings.Cut(strings.TrimSpace(query), " ")
	verb, _, _ = strings.Cut(verb, "\n")
	switch strings.ToUpper(strings.TrimSpace(verb)) {
	case "SELECT", "INSERT", "UPDATE", "DELETE":
		return !strings.Contains(query, ";")
	}
	return false
}

// statement returns a query prepared, or nil if it is none to keep, or its rows are being read.
func (c *conn) statement(ctx context.Context, query string) (*statement, error) {
	c.uses++
	if s := c.kept[query]; s != nil {
		if s.busy {
			return nil, nil
		}
		s.used = c.uses
		return s, nil
	}
	if !keepable(query) || len(c.kept) >= keeps && !c.giveUpOne() {
		return nil, nil
	}
	below, err := c.lower.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	p, ok := below.(prepared)
	if !ok {
		return nil, errors.Join(fmt.Errorf("sqlite: a statement is a %T, which lacks what is built on", below), below.Close())
	}
	s := &statement{prepared: p, used: c.uses}
	c.kept[query] = s
	return s, nil
}

// giveUpOne closes the statement that was used longest ago, unless all are busy.
func (c *conn) giveUpOne() bool {
	var oldest string
	var found *statement
	for query, s := range c.kept {
		if !s.busy && (found == nil || s.used < found.used) {
			oldest, found = query, s
		}
	}
	if found == nil {
		return false
	}
	delete(c.kept, oldest)
	return found.Close() == nil
}

// ExecContext runs a query that gives no rows.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	s, err := c.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return c.lower.ExecContext(ctx, query, args)
	}
	return s.ExecContext(ctx, args)
}

// QueryContext runs a query for its rows.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	s, err := c.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return c.lower.QueryContext(ctx, query, args)
	}
	r, err := s.QueryContext(ctx, args)
	if err != nil {
		return nil, err
	}
	s.busy = true
	return &rows{Rows: r, of: s}, nil
}

// Close closes the connection and what it keeps.
func (c *conn) Close() error {
	errs := make([]error, 0, 1)
	for query, s := range c.kept {
		delete(c.kept, query)
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, c.lower.Close())...)
}

// rows are those of a kept statement, which is free again when they are closed.
type rows struct {
	driver.Rows
	of *statement
}

// Close ends the reading.
func (r *rows) Close() error {
	r.of.busy = false
	return r.Rows.Close()
}
