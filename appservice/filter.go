package appservice

import (
	"encoding/json"
	"strings"
	"sync"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// stateTypes are the state events that matter to a group: who is a member, who
// may do what, and whether the room is still the group's.
var stateTypes = map[string]bool{
	rooms.TypeCreate:            true,
	rooms.TypeMember:            true,
	rooms.TypePowerLevels:       true,
	rooms.TypeEncryption:        true,
	rooms.TypeJoinRules:         true,
	rooms.TypeHistoryVisibility: true,
	rooms.TypeGuestAccess:       true,
	"m.room.tombstone":          true,
	"m.room.server_acl":         true,
	"m.room.third_party_invite": true,
}

const typeRedaction = "m.room.redaction"

// verdict is what becomes of an event that the homeserver pushed.
type verdict int

const (
	drop     verdict = iota // none of ours: it leaves no trace
	keep                    // for the inbox
	invite                  // an invitation for the bot, to be accepted
	decline                 // an invitation for the bot, to be refused
	stranger                // of ours, in a room that the module does not know
)

// filter decides what to keep, before anything touches the database.
type filter struct {
	bot     id.UserID
	accepts func(id.UserID) bool // whose invitations are taken
	maximum int                  // of rooms

	mu    sync.RWMutex
	known map[id.RoomID]struct{}
}

func (f *filter) judge(ev *homeserver.Event) verdict {
	f.mu.RLock()
	_, known := f.known[ev.Room]
	full := len(f.known) >= f.maximum
	f.mu.RUnlock()

	switch {
	case ev.Type == rooms.TypeMember && ev.StateKey != nil && *ev.StateKey == string(f.bot):
		if membership(ev.Content) != "invite" {
			if known {
				return keep
			}
			return drop
		}
		switch {
		case !f.accepts(ev.Sender), !known && full:
			return decline
		case known:
			return keep
		}
		return invite
	case ev.Type == typeProbe:
		return drop
	case strings.HasPrefix(ev.Type, rooms.Prefix):
		if !known {
			return stranger
		}
		return keep
	case known && ev.StateKey != nil && stateTypes[ev.Type]:
		return keep
	case known && ev.Type == typeRedaction:
		return keep
	}
	return drop
}

func (f *filter) add(room id.RoomID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known[room] = struct{}{}
}

func (f *filter) has(room id.RoomID) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	_, ok := f.known[room]
	return ok
}

func membership(content json.RawMessage) string {
	var c struct {
		Membership string `json:"membership"`
	}
	if json.Unmarshal(content, &c) != nil {
		return ""
	}
	return c.Membership
}
