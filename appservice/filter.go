package appservice

import (
	"encoding/json"
	"strings"
	"sync"
	"time"

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
	now     func() time.Time

	mu    sync.Mutex
	known map[id.RoomID]struct{}
	left  map[id.RoomID]struct{} // those of them that the bot is not in any more

	hour    time.Time      // when the present hour of invitations began
	invites map[string]int // in that hour, by the inviter's server
}

// Bounds of what other servers' users can make the bot do.
const (
	invitesPerHour = 100    // of one server's users
	invitesServers = 10_000 // that are counted one by one
)

// mayInvite counts an invitation. Users of the own server are its admin's
// business.
func (f *filter) mayInvite(user id.UserID) bool {
	_, server, err := user.Parse()
	_, own, _ := f.bot.Parse()
	if err != nil || server == own {
		return err == nil
	}
	if now := f.now(); f.invites == nil || now.Sub(f.hour) >= time.Hour || now.Before(f.hour) {
		f.hour, f.invites = now, make(map[string]int)
	}
	if _, counted := f.invites[server]; !counted && len(f.invites) >= invitesServers {
		server = "" // the rest share one account
	}
	f.invites[server]++
	return f.invites[server] <= invitesPerHour
}

func (f *filter) judge(ev *homeserver.Event) verdict {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, known := f.known[ev.Room]
	_, left := f.left[ev.Room]
	full := len(f.known)-len(f.left) >= f.maximum

	switch {
	case ev.Type == rooms.TypeMember && ev.StateKey != nil && *ev.StateKey == string(f.bot):
		if membership(ev.Content) != "invite" {
			if known {
				return keep
			}
			return drop
		}
		switch {
		case !f.accepts(ev.Sender):
			return decline
		case known && !left:
			return keep
		case full, !f.mayInvite(ev.Sender):
			return decline
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
	delete(f.left, room)
}

// leave notes that the bot is not in a room any more: it does not count.
func (f *filter) leave(room id.RoomID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.known[room]; known {
		f.left[room] = struct{}{}
	}
}

// forget notes that nothing is known of a room any more.
func (f *filter) forget(room id.RoomID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, room)
	delete(f.left, room)
}

func (f *filter) has(room id.RoomID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.known[room]
	return ok
}

// hasLeft reports whether a room is known as one that the bot is not in.
func (f *filter) hasLeft(room id.RoomID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.left[room]
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
