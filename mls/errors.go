package mls

import (
	"errors"
	"fmt"
	"strings"
)

// A Rule is the stable name of a check that a message, key or state failed,
// such as "leaf-node/lifetime-expired": the area, a slash, and what was wrong.
// Callers may count, compare and report rules.
type Rule string

// ValidationError reports which rule an input broke. The group the input was
// meant for is unchanged.
//
// Where a part of the input was refused, the error of the whole wraps that of the
// part: "proposal/add-invalid-key-package", "key-package/leaf-invalid",
// "leaf-node/lifetime-expired". errors.As finds the outermost, which says what kind
// of input it was; Cause returns the innermost, which says what is wrong.
type ValidationError struct {
	Rule    Rule   // what was broken, such as "leaf-node/lifetime-expired"
	Section string // the section of RFC 9420 that asks for it, such as "7.3"; empty for rules of our own
	Err     error  // what happened; never holds secrets
}

// Error describes the broken rule.
func (e *ValidationError) Error() string {
	s := "mls: " + string(e.Rule)
	if e.Section != "" {
		s += " (RFC 9420, Section " + e.Section + ")"
	}
	if e.Err != nil {
		s += ": " + strings.ReplaceAll(strings.TrimPrefix(e.Err.Error(), "mls: "), ": mls: ", ": ")
	}
	return s
}

// Unwrap returns the cause.
func (e *ValidationError) Unwrap() error { return e.Err }

// Cause returns the innermost rule that was broken.
func (e *ValidationError) Cause() Rule {
	rule := e.Rule
	for err := error(e); ; {
		var v *ValidationError
		if !errors.As(err, &v) {
			return rule
		}
		rule, err = v.Rule, v.Err
	}
}

// invalid makes a ValidationError; the format may wrap a cause with %w.
func invalid(rule Rule, section, format string, args ...any) error {
	return newInvalid(rule, section, format, args...)
}

func newInvalid(rule Rule, section, format string, args ...any) *ValidationError {
	if len(args) == 0 {
		return &ValidationError{Rule: rule, Section: section, Err: errors.New(format)}
	}
	return &ValidationError{Rule: rule, Section: section, Err: fmt.Errorf(format, args...)}
}
