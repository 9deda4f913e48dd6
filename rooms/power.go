package rooms

import (
	"encoding/json"
	"slices"
	"strconv"

	"maunium.net/go/mautrix/id"
)

// PowerLevels are the parts of m.room.power_levels that matter here.
type PowerLevels struct {
	Users         map[id.UserID]int64
	UsersDefault  int64
	Events        map[string]int64
	EventsDefault int64
	StateDefault  int64
	Invite        int64
	Kick          int64
	Ban           int64
	Redact        int64
}

// defaultPower returns what holds in a room without the event.
func defaultPower() PowerLevels { return PowerLevels{} }

// level is a power level. Room versions before 10 allow strings.
type level int64

// UnmarshalJSON implements json.Unmarshaler.
func (l *level) UnmarshalJSON(raw []byte) error {
	text := string(raw)
	if len(text) > 2 && text[0] == '"' {
		text = text[1 : len(text)-1]
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n > maxSafeInt || n < -maxSafeInt {
		return malformed("", "is not a power level")
	}
	*l = level(n)
	return nil
}

func parsePower(content json.RawMessage) (PowerLevels, error) {
	fifty, zero := level(50), level(0)
	c := struct {
		Users         map[id.UserID]level `json:"users"`
		UsersDefault  level               `json:"users_default"`
		Events        map[string]level    `json:"events"`
		EventsDefault level               `json:"events_default"`
		StateDefault  level               `json:"state_default"`
		Invite        level               `json:"invite"`
		Kick          level               `json:"kick"`
		Ban           level               `json:"ban"`
		Redact        level               `json:"redact"`
	}{StateDefault: fifty, Invite: zero, Kick: fifty, Ban: fifty, Redact: fifty}
	err := decodeObject(content, &c, anyNumbers)
	if err != nil {
		// What cannot be read gives nobody any power.
		const nobody = maxSafeInt
		return PowerLevels{EventsDefault: nobody, StateDefault: nobody, Invite: nobody, Kick: nobody, Ban: nobody, Redact: nobody}, err
	}
	p := PowerLevels{
		Users: make(map[id.UserID]int64, len(c.Users)), UsersDefault: int64(c.UsersDefault),
		Events: make(map[string]int64, len(c.Events)), EventsDefault: int64(c.EventsDefault), StateDefault: int64(c.StateDefault),
		Invite: int64(c.Invite), Kick: int64(c.Kick), Ban: int64(c.Ban), Redact: int64(c.Redact),
	}
	for u, l := range c.Users {
		p.Users[u] = int64(l)
	}
	for t, l := range c.Events {
		p.Events[t] = int64(l)
	}
	return p, nil
}

// Of returns the power of a user. Creators of rooms of version 12 and later
// stand above all levels; see [RoomState.PowerOf].
func (p *PowerLevels) Of(user id.UserID) int64 {
	if l, ok := p.Users[user]; ok {
		return l
	}
	return p.UsersDefault
}

// Needed returns the power that sending an event takes.
func (p *PowerLevels) Needed(eventType string, state bool) int64 {
	if l, ok := p.Events[eventType]; ok {
		return l
	}
	if state {
		return p.StateDefault
	}
	return p.EventsDefault
}

// PowerOf returns the power of a user in the room.
func (s *RoomState) PowerOf(user id.UserID) int64 {
	if n, err := strconv.Atoi(s.RoomVersion); err == nil && n >= 12 && (user == s.Creator || slices.Contains(s.MoreCreators, user)) {
		return maxSafeInt
	}
	if l, ok := s.Power.Users[user]; !ok && user == s.Creator && s.Power.Users == nil {
		return 100 // a room without power levels is its creator's
	} else if ok {
		return l
	}
	return s.Power.UsersDefault
}

// CanSend tells whether a user may send an event of a type.
func (s *RoomState) CanSend(user id.UserID, eventType string, state bool) bool {
	return s.PowerOf(user) >= s.Power.Needed(eventType, state)
}

// CanKick tells whether a user may kick another out of the room.
func (s *RoomState) CanKick(user, other id.UserID) bool {
	return s.PowerOf(user) >= s.Power.Kick && s.PowerOf(user) > s.PowerOf(other)
}

// MayFound reports whether a user may found the room's group: its creator, or
// who has the power to turn the room into an encrypted one.
func (s *RoomState) MayFound(user id.UserID) bool {
	return s.Creator == user || s.CanSend(user, TypeEncryption, true)
}

// MayShow reports whether somebody shows the room's group as well as who may found it:
// a member who may, or the module of such a user's server, which could found it in that
// user's name just as well. Nobody else can have the name of that module's bot; one
// with another name is known by the room's list of service members, which takes
// power to change.
func (s *RoomState) MayShow(sender id.UserID) bool {
	if s.Members[sender].Membership != MembershipJoin {
		return false
	}
	if s.MayFound(sender) {
		return true
	}
	local, server, err := sender.Parse()
	if err != nil || local != BotLocalpart && !slices.Contains(s.Functional, sender) {
		return false
	}
	of := func(user id.UserID) bool {
		_, home, err := user.Parse()
		return err == nil && home == server && s.MayFound(user)
	}
	if of(s.Creator) || slices.ContainsFunc(s.MoreCreators, of) {
		return true
	}
	for user := range s.Power.Users {
		if of(user) {
			return true
		}
	}
	return false
}

// MissingPower returns the event types of this project that a user could not
// send: MLS does not work in a room whose members lack them.
func (s *RoomState) MissingPower(user id.UserID) []string {
	var missing []string
	for _, t := range PowerLevelTypes() {
		if !s.CanSend(user, t, t == TypeHead) {
			missing = append(missing, t)
		}
	}
	return missing
}
