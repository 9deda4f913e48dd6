package rewrite

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"maunium.net/go/mautrix/id"
)

// maxValue bounds an event of a list that is rewritten as it comes, and what else
// stands beside the list.
const maxValue = 2 << 20

// errValueTooLarge reports an event larger than any homeserver takes.
var errValueTooLarge = errors.New("rewrite: an event of the homeserver's answer is too large")

// WriteList rewrites an answer that consists of a list of events, or of an object
// with one under a name, and writes it event by event: never more than one is held.
// Where it returns an error, what was written is not a whole answer.
func WriteList(w io.Writer, in io.Reader, room id.RoomID, list string, v View) error {
	budget := &budgetReader{in: in}
	l := &listWriter{w: w, d: json.NewDecoder(budget), budget: budget}
	if list == "" {
		l.open('[')
		l.events(room, v)
	} else {
		l.open('{')
		l.object(room, list, v)
	}
	return l.err
}

// budgetReader gives out what one value may take.
type budgetReader struct {
	in   io.Reader
	left int
}

// Read implements io.Reader.
func (b *budgetReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errValueTooLarge
	}
	n, err := b.in.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// listWriter keeps the first error, and does nothing after it.
type listWriter struct {
	w      io.Writer
	d      *json.Decoder
	budget *budgetReader
	err    error
}

func (l *listWriter) write(p []byte) {
	if l.err == nil {
		_, l.err = l.w.Write(p)
	}
}

func (l *listWriter) next() (t json.Token) {
	l.budget.left = maxValue
	if l.err == nil {
		t, l.err = l.d.Token()
	}
	return t
}

func (l *listWriter) value() (raw json.RawMessage) {
	l.budget.left = maxValue
	if l.err == nil {
		l.err = l.d.Decode(&raw)
	}
	return raw
}

func (l *listWriter) more() bool {
	l.budget.left = maxValue
	return l.err == nil && l.d.More()
}

// open takes in how an object or a list begins.
func (l *listWriter) open(want json.Delim) {
	if t := l.next(); l.err == nil && t != want {
		l.err = fmt.Errorf("%w: it begins with %v", ErrNotAnObject, t)
	}
}

// events rewrites the rest of a list.
func (l *listWriter) events(room id.RoomID, v View) {
	l.write([]byte{'['})
	some := false
	for l.more() {
		raw := l.value()
		if l.err != nil {
			return
		}
		e := One(room, raw, v)
		if e.Raw == nil {
			continue
		}
		if some {
			l.write([]byte{','})
		}
		some = true
		l.write(e.Raw)
	}
	l.next() // its end
	l.write([]byte{']'})
}

// object rewrites the rest of an object.
func (l *listWriter) object(room id.RoomID, list string, v View) {
	l.write([]byte{'{'})
	some := false
	for l.more() {
		key, _ := l.next().(string)
		if l.err != nil {
			return
		}
		if some {
			l.write([]byte{','})
		}
		some = true
		l.write(quote(key))
		l.write([]byte{':'})
		if key == list {
			l.open('[')
			l.events(room, v)
			continue
		}
		l.write(l.value())
	}
	l.next() // its end
	l.write([]byte{'}'})
}
