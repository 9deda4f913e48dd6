package rooms

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"

	"maunium.net/go/mautrix/id"
)

// Bounds of a plaintext. A PrivateMessage adds about 200 bytes.
const (
	MaxPlaintext    = 40000 // padded JSON inside one event
	minBucket       = 256
	wholeBucket     = 4096
	maxMessageIDLen = 64
)

// Plaintext is what a PrivateMessage holds: an event type and content, the
// room it belongs to, and an id that stays the same when the message is
// encrypted again, so that receivers show it once. With AskReceipts its sender
// asks for delivery receipts where none are sent unasked; Again names the ciphertext
// in which the message went out before, if it is sent again because somebody missed it.
type Plaintext struct {
	Type        string          `json:"type"`
	Content     json.RawMessage `json:"content"`
	Room        id.RoomID       `json:"room_id"`
	MessageID   string          `json:"io.github.matrix-mls.mid"`
	AskReceipts bool            `json:"io.github.matrix-mls.receipts,omitempty"`
	Again       *Earlier        `json:"io.github.matrix-mls.again,omitempty"`
	StateKey    *string         `json:"state_key,omitempty"`
}

// Earlier names another ciphertext of the same device.
type Earlier struct {
	Ref        Hash   `json:"ref"` // its epoch
	Generation uint32 `json:"generation"`
}

// NewMessageID returns a message id from 16 random bytes.
func NewMessageID(random [16]byte) string { return EncodeBase64(random[:]) }

// Encode returns the bytes to encrypt: JSON, padded with spaces to one of a few
// sizes, so that the length of a ciphertext tells little. A content that does
// not fit into an event is refused with [RuleEventTooLarge].
func (p *Plaintext) Encode() ([]byte, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	raw, err := encodeJSON(p)
	if err != nil {
		return nil, err
	}
	if _, err := parseJSON(raw, anyNumbers); err != nil {
		return nil, inContent("message", err)
	}
	size := bucket(len(raw))
	if size > MaxPlaintext {
		return nil, refuse(RuleEventTooLarge, "message", "%d bytes, at most %d fit into an event", len(raw), MaxPlaintext).with("send it as a file")
	}
	return append(raw, bytes.Repeat([]byte{' '}, size-len(raw))...), nil
}

// bucket returns the padded size of n bytes: powers of two up to 4 kB, then
// whole multiples of 4 kB, and for what barely fits the largest size.
func bucket(n int) int {
	size := minBucket
	for size < n && size < wholeBucket {
		size *= 2
	}
	if n > size {
		size = (n + wholeBucket - 1) / wholeBucket * wholeBucket
	}
	if size > MaxPlaintext && n <= MaxPlaintext {
		return MaxPlaintext
	}
	return size
}

// DecodePlaintext reads a decrypted message that was sent into a room. One that
// names another room is refused with [RuleRoomNotGroup].
func DecodePlaintext(raw []byte, room id.RoomID) (*Plaintext, error) {
	p := new(Plaintext)
	if err := decodeObject(raw, p, anyNumbers); err != nil {
		return nil, inContent("message", err)
	}
	if err := p.validate(); err != nil {
		return nil, inContent("message", err)
	}
	if p.Room != room {
		return nil, refuse(RuleRoomNotGroup, "message", "was written for room %s and sent into %s", p.Room, room)
	}
	return p, nil
}

func (p *Plaintext) validate() error {
	if p.Type == "" || len(p.Type) > 255 {
		return malformed("type", "has to have 1 to 255 bytes")
	}
	if p.Type == TypeEncrypted {
		return malformed("type", "is a ciphertext inside a ciphertext")
	}
	content := bytes.TrimSpace(p.Content)
	if len(content) == 0 || content[0] != '{' {
		return malformed("content", "is not an object")
	}
	if p.MessageID == "" || len(p.MessageID) > maxMessageIDLen {
		return malformed(KeyMessageID, "has to have 1 to %d bytes", maxMessageIDLen)
	}
	for _, c := range p.MessageID {
		if c <= ' ' || c > '~' {
			return malformed(KeyMessageID, "holds other than printable ASCII characters")
		}
	}
	if p.Again != nil {
		if err := needHash(KeyAgain, p.Again.Ref); err != nil {
			return err
		}
	}
	return checkID("room_id", string(p.Room), '!')
}

// OuterRelation returns the m.relates_to of a content as far as a homeserver
// needs it to list threads and relations: the kind of relation and the event it
// names. A reaction has none: it is counted by its key, which stays inside, and
// homeservers refuse an annotation without one. Nothing else goes out: kinds of
// relations that homeservers do not know, and what does not look like the id of
// an event, stay inside. It returns nil if there is nothing to tell. What is
// inside the ciphertext alone counts; see
// [Plaintext.Event].
func OuterRelation(content json.RawMessage, roomVersion string) json.RawMessage {
	var c struct {
		Relation *struct {
			Type     string     `json:"rel_type"`
			Event    id.EventID `json:"event_id"`
			Fallback bool       `json:"is_falling_back"`
			Reply    *struct {
				Event id.EventID `json:"event_id"`
			} `json:"m.in_reply_to"`
		} `json:"m.relates_to"`
	}
	if decodeObject(content, &c, anyNumbers) != nil || c.Relation == nil {
		return nil
	}
	r := c.Relation
	out := map[string]any{}
	if (r.Type == "m.thread" || r.Type == "m.replace" || r.Type == "m.reference") && isEventID(r.Event, roomVersion) {
		out["rel_type"], out["event_id"] = r.Type, r.Event
		if r.Fallback {
			out["is_falling_back"] = true
		}
	}
	if r.Reply != nil && isEventID(r.Reply.Event, roomVersion) {
		out["m.in_reply_to"] = map[string]any{"event_id": r.Reply.Event}
	}
	if len(out) == 0 {
		return nil
	}
	return mustJSON(out)
}

// isEventID tells whether an id is one of an event in a room of a version: a SHA-256
// in Base64, or, in versions 1 and 2 alone, a name and a server, which could be any
// text.
func isEventID(event id.EventID, roomVersion string) bool {
	rest, ok := strings.CutPrefix(string(event), "$")
	if !ok || len(event) > 255 {
		return false
	}
	if roomVersion != "1" && roomVersion != "2" {
		for _, encoding := range []*base64.Encoding{base64.RawURLEncoding, base64.RawStdEncoding} {
			if sum, err := encoding.Strict().DecodeString(rest); err == nil && len(sum) == sha256.Size && len(rest) == encoding.EncodedLen(sha256.Size) {
				return true
			}
		}
		return false
	}
	for _, c := range []byte(rest) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte("-_+/.:[]=", c) >= 0:
		default:
			return false
		}
	}
	local, server, named := strings.Cut(rest, ":")
	return named && local != "" && server != ""
}

// CheckUnencrypted tells whether an event may stand unencrypted in the timeline
// of a room with MLS. Messages, edits and reactions may not: they are refused
// with [RulePlaintext], and a client shows them, if at all, as unprotected.
// Synapse sends events of its own in its users' names to join branches of a
// room's event graph; they say nothing.
func CheckUnencrypted(eventType string, state bool) error {
	switch {
	case state, eventType == TypeEncrypted, eventType == "m.room.redaction", eventType == "org.matrix.dummy_event", strings.HasPrefix(eventType, Prefix):
		return nil
	}
	return refuse(RulePlaintext, "event of type "+shorten(eventType), "is not encrypted").
		with("do not trust it: the homeserver could have written it")
}

// CheckToDevice tells whether a to-device event may say anything about a room
// with MLS. Keys of other protocols may not (CVE-2022-39251).
func CheckToDevice(eventType string) error {
	switch eventType {
	case TypeWelcome, TypeAdmit, TypeRejoinRequest, TypeKeyPackageRequest, TypeKeyPackage, TypeHistoryRequest, TypeHistoryBundle:
		return nil
	}
	return refuse(RuleMegolmForMLS, "to-device event of type "+shorten(eventType), "carries nothing for a room with MLS")
}

func shorten(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}
