package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// Event is a room or to-device event as the homeserver sent it: the content
// is kept as received bytes, for the strict decoders of the rooms package.
type Event struct {
	ID        id.EventID      `json:"event_id,omitempty"`
	RoomID    id.RoomID       `json:"room_id,omitempty"`
	Type      string          `json:"type"`
	Sender    id.UserID       `json:"sender"`
	StateKey  *string         `json:"state_key,omitempty"`
	Timestamp int64           `json:"origin_server_ts,omitempty"`
	Content   json.RawMessage `json:"content"`
	Redacts   id.EventID      `json:"redacts,omitempty"`
	Unsigned  Unsigned        `json:"unsigned,omitzero"`

	reposter id.UserID // who sent it again in the sender's name, as they say
}

// Unsigned is what the homeserver says beside an event, as far as it is needed.
type Unsigned struct {
	// TransactionID is the one under which this device sent the event.
	TransactionID string `json:"transaction_id,omitempty"`
}

// maxTxnID bounds the transaction ids that are looked at: ours are shorter.
const maxTxnID = 64

// UnmarshalJSON takes what it can use. It never fails: nobody has signed this, and an
// event is not refused for it.
func (u *Unsigned) UnmarshalJSON(raw []byte) error {
	var said struct {
		TransactionID any `json:"transaction_id"`
	}
	*u = Unsigned{}
	if json.Unmarshal(raw, &said) == nil {
		txn, _ := said.TransactionID.(string)
		*u = unsignedOf(txn)
	}
	return nil
}

func unsignedOf(txn string) Unsigned {
	if len(txn) > maxTxnID {
		return Unsigned{}
	}
	return Unsigned{TransactionID: txn}
}

// poster returns who is to blame for the event.
func (e *Event) poster() id.UserID {
	if e.reposter != "" {
		return e.reposter
	}
	return e.Sender
}

// syncRoom is the part of a sync response that concerns one room.
type syncRoom struct {
	State     []*Event // state before the timeline
	Timeline  []*Event
	Limited   bool   // events before the timeline were left out
	PrevBatch string // where paging backwards starts
}

// syncBatch is what one /sync brought.
type syncBatch struct {
	NextBatch string
	Join      map[id.RoomID]*syncRoom
	Leave     map[id.RoomID]*syncRoom
	Invite    map[id.RoomID][]*Event // stripped state
	ToDevice  []*Event
}

// Transport is the engine's view of a homeserver: the ordinary client-server
// API and nothing else; /sync goes through [Identity]. Its methods return [*RateLimitError] for a 429 and
// never retry by themselves, so that the engine decides what goes first.
type Transport interface {
	Send(ctx context.Context, room id.RoomID, eventType, txnID string, content json.RawMessage) (id.EventID, error)
	SendState(ctx context.Context, room id.RoomID, eventType, stateKey string, content json.RawMessage) (id.EventID, error)
	Redact(ctx context.Context, room id.RoomID, event id.EventID, txnID, reason string) (id.EventID, error)
	Event(ctx context.Context, room id.RoomID, event id.EventID) (*Event, error)
	// Messages pages backwards from a token ("" is the end of the room),
	// newest first; an empty next token means the start was reached.
	Messages(ctx context.Context, room id.RoomID, from string, limit int) (events []*Event, next string, err error)
	State(ctx context.Context, room id.RoomID) ([]*Event, error)
	CreateRoom(ctx context.Context, req json.RawMessage) (id.RoomID, error)
	Invite(ctx context.Context, room id.RoomID, user id.UserID, reason string) error
	Join(ctx context.Context, roomOrAlias string, via []string) (id.RoomID, error)
	Leave(ctx context.Context, room id.RoomID) error
	Kick(ctx context.Context, room id.RoomID, user id.UserID, reason string) error
	Ban(ctx context.Context, room id.RoomID, user id.UserID, reason string) error
	Upload(ctx context.Context, data []byte, contentType string) (mxc string, err error)
	// Download refuses anything above limit bytes before and while reading.
	Download(ctx context.Context, mxc string, limit int64) ([]byte, error)
	SendToDevice(ctx context.Context, eventType, txnID string, messages map[id.UserID]map[id.DeviceID]json.RawMessage) error
}

// RateLimitError reports that the homeserver asked us to wait.
type RateLimitError struct{ RetryAfter time.Duration }

func (e *RateLimitError) Error() string {
	return fmt.Sprintf("client: the homeserver limits the rate; trying again after %s", e.RetryAfter)
}

// isPermanent tells whether sending the same request again cannot help: the
// homeserver understood and refused it.
func isPermanent(err error) bool {
	var limited *RateLimitError
	if err == nil || errors.As(err, &limited) {
		return false
	}
	var httpErr mautrix.HTTPError
	if !errors.As(err, &httpErr) || httpErr.Response == nil {
		return errors.Is(err, errRefused)
	}
	if httpErr.RespError == nil || httpErr.RespError.ErrCode == "" {
		return false // not an answer of a homeserver: something stands in front of it
	}
	code := httpErr.Response.StatusCode
	return code >= 400 && code < 500 && code != 408 && code != 429 && code != 401
}

// isServerError tells whether the homeserver failed in handling a request. A
// first join of a room by a Dendrite server can do so and work a second later.
func isServerError(err error) bool {
	var httpErr mautrix.HTTPError
	return errors.As(err, &httpErr) && httpErr.Response != nil && httpErr.Response.StatusCode >= 500
}

// errRefused lets a Transport that is not HTTP report a permanent refusal.
var errRefused = errors.New("client: the homeserver refused the request")
