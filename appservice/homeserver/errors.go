package homeserver

import (
	"errors"
	"fmt"
	"time"
)

// What a failed call means. Use errors.Is on what a [Homeserver] returns.
var (
	ErrRateLimited  = errors.New("rate limited")
	ErrNotFound     = errors.New("not found")
	ErrForbidden    = errors.New("forbidden")
	ErrTooLarge     = errors.New("too large")
	ErrUnauthorized = errors.New("token not accepted")
	ErrBadRequest   = errors.New("refused as malformed")
	ErrUnreachable  = errors.New("homeserver not reachable")
	ErrServer       = errors.New("homeserver failed")
)

// Error is a failed call. It never holds a token or an event's content.
type Error struct {
	Op     string        // what was asked, such as "send event"
	Kind   error         // one of the Err values of this package
	Status int           // HTTP status; 0 if there was no answer
	Code   string        // the Matrix error code, such as "M_FORBIDDEN"
	Text   string        // the homeserver's words, cut to 200 bytes
	After  time.Duration // for ErrRateLimited: how long to wait
	Err    error         // the cause below, if any
}

// Error implements error.
func (e *Error) Error() string {
	s := fmt.Sprintf("homeserver: %s: %v", e.Op, e.Kind)
	if e.Status != 0 {
		s += fmt.Sprintf(" (HTTP %d", e.Status)
		if e.Code != "" {
			s += " " + e.Code
		}
		s += ")"
	}
	if e.Text != "" {
		s += ": " + e.Text
	}
	if e.After > 0 {
		s += fmt.Sprintf(", retry after %v", e.After)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err != nil {
		return []error{e.Kind, e.Err}
	}
	return []error{e.Kind}
}

// Retry tells whether the same call can succeed later without anyone's act.
func (e *Error) Retry() bool {
	switch e.Kind {
	case ErrRateLimited, ErrUnreachable, ErrServer, ErrUnauthorized:
		// A token that is not accepted is usually a registration that the
		// homeserver has not loaded yet: an admin's act, but the work must
		// not be lost meanwhile.
		return true
	}
	return false
}

// IsTemporary tells whether err is an [Error] worth trying again, or no
// *Error at all (a cancelled context, a broken store).
func IsTemporary(err error) bool {
	var e *Error
	if errors.As(err, &e) {
		return e.Retry()
	}
	return err != nil
}
