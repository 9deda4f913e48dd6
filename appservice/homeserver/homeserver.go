// Package homeserver is the module's view of its own homeserver: the few calls
// of the Client-Server and Application Service APIs that it makes as its bot,
// the same on Synapse and on Dendrite, with errors that say what to do next.
//
// Nothing in this package retries by itself. A caller that gets an [Error]
// looks at Retry and After: a refusal that repeats for ever is told apart from
// one that passes.
package homeserver

import (
	"context"
	"encoding/json"
	"time"

	"maunium.net/go/mautrix/id"
)

// Homeserver is what the module needs from the homeserver beside it. All calls
// act as the module's bot. Every error is an *[Error].
type Homeserver interface {
	// UserID is the bot's user id; ServerName the homeserver's name.
	UserID() id.UserID
	ServerName() string

	// SendEvent sends a timeline event. The same txnID sent again gives the
	// same event id and no second event while the homeserver remembers it.
	SendEvent(ctx context.Context, room id.RoomID, eventType, txnID string, content json.RawMessage) (id.EventID, error)
	// SendState sets a state event. Dendrite answers a content that it has
	// already with the old event's id, so callers put something unique in.
	SendState(ctx context.Context, room id.RoomID, eventType, stateKey string, content json.RawMessage) (id.EventID, error)

	// Event fetches one event of a room the bot may see.
	Event(ctx context.Context, room id.RoomID, event id.EventID) (*Event, error)
	// Messages pages through a room's timeline.
	Messages(ctx context.Context, room id.RoomID, req MessagesRequest) (*MessagesPage, error)
	// State fetches the whole current state of a room.
	State(ctx context.Context, room id.RoomID) ([]*Event, error)
	// StateContent fetches the content of one state event.
	StateContent(ctx context.Context, room id.RoomID, eventType, stateKey string) (json.RawMessage, error)
	// Members fetches the membership events of a room.
	Members(ctx context.Context, room id.RoomID) ([]*Event, error)

	// Join joins a room, through the given servers if it is not known here.
	Join(ctx context.Context, room id.RoomID, via []string) error
	// Leave leaves a room or refuses an invitation.
	Leave(ctx context.Context, room id.RoomID, reason string) error
	// JoinedRooms lists the rooms the bot is in.
	JoinedRooms(ctx context.Context) ([]id.RoomID, error)

	// CreateRoom makes a private room of the bot alone, in which the link to
	// the homeserver is tested.
	CreateRoom(ctx context.Context, name string) (id.RoomID, error)

	// Upload stores media and returns its address.
	Upload(ctx context.Context, data []byte, contentType string) (id.ContentURIString, error)
	// Download fetches media. Over limit bytes it fails with [ErrTooLarge]
	// before reading (Content-Length) or while reading.
	Download(ctx context.Context, uri id.ContentURIString, limit int64) ([]byte, error)
	// UploadLimit is the homeserver's own limit in bytes; 0 if it names none.
	UploadLimit(ctx context.Context) (int64, error)

	// SetProfileField sets a field of the bot's profile.
	SetProfileField(ctx context.Context, field string, value any) error
	// ProfileField reads a field of any user's profile.
	ProfileField(ctx context.Context, user id.UserID, field string) (json.RawMessage, error)

	// Whoami tells whose token the module holds.
	Whoami(ctx context.Context) (user id.UserID, device id.DeviceID, err error)
	// Versions asks what the homeserver speaks. It needs no token.
	Versions(ctx context.Context) (*Versions, error)
	// Ping asks the homeserver to call the module back (Matrix 1.7,
	// POST /_matrix/client/v1/appservice/{id}/ping) and wakes its queue.
	Ping(ctx context.Context, txnID string) (time.Duration, error)
	// EnsureBot registers the bot if it does not exist and gives it a device
	// where the homeserver lets application services have one.
	EnsureBot(ctx context.Context, displayName string) error
}

// Event is an event as the homeserver gave it. Raw keeps every byte of it.
type Event struct {
	ID       id.EventID
	Room     id.RoomID
	Sender   id.UserID
	Type     string
	StateKey *string // nil for a timeline event
	Content  json.RawMessage
	Time     time.Time  // the sender's claim; never evidence
	Redacts  id.EventID // of a redaction: the event whose content it takes away
	Raw      json.RawMessage
}

// Direction of paging through a timeline.
type Direction byte

// The two directions: from new to old, and from old to new.
const (
	Backward Direction = 'b'
	Forward  Direction = 'f'
)

// MessagesRequest is one page asked of a room's timeline.
type MessagesRequest struct {
	From  string    // token; empty: the end that Dir starts at
	To    string    // token at which to stop; may be empty
	Dir   Direction // zero value means Backward
	Limit int       // zero value means 100; the homeserver may give less
	Types []string  // event types wanted; empty: all
}

// MessagesPage is one page of a timeline, in the order of the direction.
type MessagesPage struct {
	Events []*Event
	Start  string
	End    string // where to go on; empty when there is no more
}

// Versions is what GET /_matrix/client/versions said.
type Versions struct {
	Spec     []string
	Features map[string]bool
	// Date is the homeserver's clock by the answer's Date header; zero if
	// it sent none.
	Date time.Time
	// Server is the implementation's name and version, if it tells.
	Server string
}
