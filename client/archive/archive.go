// Package archive reads and writes messages that one device of a person hands to
// another, or to a file: plaintexts with what is known of where they came from,
// never a key of a group.
//
// An archive is a sealed file (package sealed) of lines of JSON. The first is a
// [Header]; each that follows is a [Message].
package archive

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/sealed"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	magic   = "matrix-mls history v1\n"
	version = 1
	// MaxLine bounds one message, in bytes of JSON. A plaintext fits into an event.
	MaxLine = 128 << 10
)

// ErrContent reports an archive that was sealed by who knows the secret and holds
// something else than messages.
var ErrContent = errors.New("archive: not what an archive holds")

// Header says who made an archive.
type Header struct {
	Version int         `json:"version"`
	User    id.UserID   `json:"user_id"`
	Device  id.DeviceID `json:"device_id"`
}

// Message is one message.
type Message struct {
	Room      id.RoomID       `json:"room_id"`
	EventID   id.EventID      `json:"event_id"`
	Sender    id.UserID       `json:"sender"`
	Device    id.DeviceID     `json:"device_id"`
	Type      string          `json:"type"`
	Content   json.RawMessage `json:"content"`
	ID        string          `json:"mid"`       // the message's own id inside the ciphertext
	Timestamp int64           `json:"timestamp"` // the homeserver's, unix milliseconds
	Epoch     uint64          `json:"epoch"`
	// SharedBy is another user who gave the message to the device that made the
	// archive, which could not read it itself.
	SharedBy id.UserID `json:"shared_by,omitempty"`
	// FromFile says that the device took the message from a file, made by SharedBy as
	// the file says.
	FromFile bool `json:"from_file,omitempty"`
}

// Check tells whether the message is one that a room with MLS can hold.
func (m *Message) Check() error {
	plain := rooms.Plaintext{Type: m.Type, Content: m.Content, Room: m.Room, MessageID: m.ID}
	if _, err := plain.Encode(); err != nil {
		return fmt.Errorf("%w: %w", ErrContent, err)
	}
	if err := rooms.CheckUserID(m.Sender); err != nil {
		return fmt.Errorf("%w: %w", ErrContent, err)
	}
	if m.SharedBy != "" {
		if err := rooms.CheckUserID(m.SharedBy); err != nil {
			return fmt.Errorf("%w: %w", ErrContent, err)
		}
	}
	switch {
	case !strings.HasPrefix(string(m.EventID), "$") || len(m.EventID) > 255:
		return fmt.Errorf("%w: an event id", ErrContent)
	case m.Device == "" || len(m.Device) > 255:
		return fmt.Errorf("%w: a device id", ErrContent)
	case strings.HasPrefix(m.Type, rooms.Prefix):
		return fmt.Errorf("%w: an event of the protocol", ErrContent)
	}
	return nil
}

// Writer writes an archive.
type Writer struct {
	w *sealed.Writer
}

// NewWriter begins an archive.
func NewWriter(w io.Writer, s sealed.Secret, h Header, random io.Reader) (*Writer, error) {
	sw, err := sealed.NewWriter(w, magic, s, random)
	if err != nil {
		return nil, err
	}
	h.Version = version
	out := &Writer{w: sw}
	_, err = out.line(&h)
	return out, err
}

// Add writes a message and returns how many bytes it took.
func (w *Writer) Add(m *Message) (int, error) {
	if err := m.Check(); err != nil {
		return 0, err
	}
	return w.line(m)
}

func (w *Writer) line(v any) (int, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return 0, fmt.Errorf("archive: %w", err)
	}
	if b.Len() > MaxLine {
		return 0, fmt.Errorf("%w: a message of %d bytes", ErrContent, b.Len())
	}
	return w.w.Write(b.Bytes())
}

// Close ends the archive. It does not close what is below.
func (w *Writer) Close() error { return w.w.Close() }

// Reader reads an archive.
type Reader struct {
	Header Header
	in     *bufio.Reader
}

// NewReader opens an archive of at most limit bytes of messages.
func NewReader(r io.Reader, s sealed.Secret, limit int64) (*Reader, error) {
	sr, err := sealed.NewReader(r, magic, s, limit)
	if err != nil {
		return nil, err
	}
	out := &Reader{in: bufio.NewReaderSize(sr, MaxLine)}
	if err := out.line(&out.Header); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: it is empty", ErrContent)
	} else if err != nil {
		return nil, err
	}
	if out.Header.Version != version {
		return nil, fmt.Errorf("%w: version %d; a newer mls-proxy may read it", ErrContent, out.Header.Version)
	}
	return out, nil
}

// Next returns the next message, io.EOF after the last. What came before another
// error may be only a part of what was put in.
func (r *Reader) Next() (*Message, error) {
	m := new(Message)
	if err := r.line(m); err != nil {
		return nil, err
	}
	return m, m.Check()
}

func (r *Reader) line(v any) error {
	line, err := r.in.ReadSlice('\n')
	switch {
	case errors.Is(err, io.EOF) && len(line) == 0:
		return io.EOF
	case errors.Is(err, bufio.ErrBufferFull):
		return fmt.Errorf("%w: a line has more than %d bytes", ErrContent, MaxLine)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: a line has no end", ErrContent)
	case err != nil:
		return err
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fmt.Errorf("%w: a line is no JSON of a message", ErrContent)
	}
	return nil
}
