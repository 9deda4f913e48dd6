package terminal

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/rs/zerolog"
)

// Bounds of what mls-proxy run prints of warnings without -v.
const (
	warningTime  = 10 * time.Minute // what was printed is printed again after it at the earliest
	warningKinds = 5                // lines of one message that differ, meanwhile
	warningRunes = 500              // of a line
	maxWarnings  = 256              // messages that are remembered: the program has fewer
)

// warnings prints what a log says for people: warnings and errors, each in a line
// that begins with the program's name and the time. What comes again soon is
// counted, and printed once more later with its number. It is an io.Writer of
// zerolog's lines; several may write at a time.
type warnings struct {
	out io.Writer
	now func() time.Time

	mu   sync.Mutex
	seen map[string]*repeated // by message
}

// repeated is what was printed of a message since a time.
type repeated struct {
	since time.Time
	lines map[string]bool // without numbers, which differ each time
	more  int             // that were not printed
}

// log is a log that prints warnings and errors.
func (w *warnings) log() zerolog.Logger { return zerolog.New(w).Level(zerolog.WarnLevel) }

// Write implements io.Writer.
func (w *warnings) Write(line []byte) (int, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(line, &fields); err != nil {
		return 0, fmt.Errorf("terminal: a line of the log: %w", err)
	}
	level, message, rest := asText(fields[zerolog.LevelFieldName]), asText(fields[zerolog.MessageFieldName]), describe(fields)
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	again, ok := w.worth(message, rest, now)
	if !ok {
		return len(line), nil
	}
	if level == zerolog.LevelWarnValue {
		level = "warning"
	}
	shown := clean(fmt.Sprintf("mls-proxy: %s %s: %s%s", now.Format(time.TimeOnly), level, uncapital(message), rest))
	if utf8.RuneCountInString(shown) > warningRunes {
		shown = string([]rune(shown)[:warningRunes]) + "…"
	}
	if _, err := fmt.Fprintln(w.out, shown+again); err != nil {
		return 0, err
	}
	return len(line), nil
}

// numbers are what makes two lines of one cause differ: ports, waits, counters.
var numbers = regexp.MustCompile(`[0-9]+`)

// worth tells whether a line is printed, and what stands behind it. The caller
// holds the lock.
func (w *warnings) worth(message, rest string, now time.Time) (again string, ok bool) {
	s := w.seen[message]
	if s == nil || now.Sub(s.since) >= warningTime {
		if s != nil && s.more > 0 {
			again = fmt.Sprintf(" (and %d like it since %s)", s.more, s.since.Format(time.TimeOnly))
		}
		s = &repeated{since: now, lines: map[string]bool{}}
		if w.seen == nil || len(w.seen) >= maxWarnings {
			w.seen = map[string]*repeated{}
		}
		w.seen[message] = s
	}
	key := numbers.ReplaceAllString(rest, "0")
	if s.lines[key] || len(s.lines) >= warningKinds {
		s.more++
		return "", false
	}
	s.lines[key] = true
	return again, true
}

// queries are those of addresses: what a client asked is nobody's business.
var queries = regexp.MustCompile(`(://[^\s"'?]*)\?[^\s"']*`)

// forVerbose are fields of the log that people are shown with -v only.
var forVerbose = []string{"component", "stack", "retry_in", "method", "query", "caller"}

// describe puts into words what a line of the log has beside its message: the
// error first, the rest in brackets.
func describe(fields map[string]json.RawMessage) string {
	var out strings.Builder
	for _, name := range []string{zerolog.ErrorFieldName, "panic"} {
		if v := asText(fields[name]); v != "" {
			out.WriteString(": " + queries.ReplaceAllString(v, "$1"))
		}
	}
	var more []string
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		switch name {
		case zerolog.LevelFieldName, zerolog.MessageFieldName, zerolog.TimestampFieldName, zerolog.ErrorFieldName, "panic":
			continue
		}
		if slices.Contains(forVerbose, name) {
			continue
		}
		more = append(more, strings.ReplaceAll(name, "_", " ")+" "+asText(fields[name]))
	}
	if len(more) > 0 {
		out.WriteString(" (" + strings.Join(more, ", ") + ")")
	}
	return out.String()
}

// asText is a JSON string as it reads, or another value as it is written.
func asText(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw)
}

// uncapital lets a message go on behind a colon; a word such as MLS stays.
func uncapital(s string) string {
	first, size := utf8.DecodeRuneInString(s)
	if second, _ := utf8.DecodeRuneInString(s[size:]); unicode.IsUpper(second) {
		return s
	}
	return string(unicode.ToLower(first)) + s[size:]
}
