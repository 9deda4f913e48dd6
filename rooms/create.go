package rooms

import (
	"encoding/json"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"
)

// StateEvent is a state event to send.
type StateEvent struct {
	Type     string          `json:"type"`
	StateKey string          `json:"state_key"`
	Content  json.RawMessage `json:"content"`
}

// CreateOptions describe a new room. Only Bots and Nonce are needed.
type CreateOptions struct {
	Name, Topic, Alias string
	Preset             string // of the Matrix specification; "private_chat" if empty
	Direct             bool
	Invite             []id.UserID
	Version            string      // room version; the homeserver's default if empty
	HistoryVisibility  string      // "invited" if empty: keys go out with the invite
	Bots               []id.UserID // modules to invite; they do not count for the room's name
	Announcement       bool        // only moderators may send messages; handshakes stay open to all
	Nonce              string      // unique: state with equal content is swallowed by some homeservers
	InitialState       []StateEvent
	// Power, if set, is laid over the power levels, as the specification says of
	// power_level_content_override. The levels that a room with MLS needs stay.
	Power json.RawMessage
}

// HistoryVisibilities are the values of history_visibility in an
// m.room.history_visibility event (Matrix specification, "Room history visibility").
func HistoryVisibilities() []string {
	return []string{"invited", "joined", "shared", "world_readable"}
}

// createRequest is the body of POST /createRoom.
type createRequest struct {
	Name            string         `json:"name,omitempty"`
	Topic           string         `json:"topic,omitempty"`
	Alias           string         `json:"room_alias_name,omitempty"`
	Preset          string         `json:"preset"`
	Direct          bool           `json:"is_direct,omitempty"`
	Invite          []id.UserID    `json:"invite,omitempty"`
	Version         string         `json:"room_version,omitempty"`
	CreationContent map[string]any `json:"creation_content"`
	InitialState    []StateEvent   `json:"initial_state"`
	PowerLevels     map[string]any `json:"power_level_content_override"`
}

// CreateRequest returns the body of POST /createRoom for a room with MLS: the
// algorithm stands in m.room.create (MSC4245), which nobody can change, and in
// m.room.encryption, so that clients without MLS refuse to send plaintext;
// every event type of ours is open to all members.
func CreateRequest(o CreateOptions) (json.RawMessage, error) {
	if o.Preset == "" {
		o.Preset = "private_chat"
	}
	if o.HistoryVisibility == "" {
		o.HistoryVisibility = "invited"
	}
	if !slices.Contains(HistoryVisibilities(), o.HistoryVisibility) {
		return nil, malformed("history_visibility", "is none of %s", strings.Join(HistoryVisibilities(), ", "))
	}
	encryption, err := encryptionEvent(o.Nonce, nil)
	if err != nil {
		return nil, err
	}
	state := []StateEvent{encryption, {Type: TypeHistoryVisibility, Content: mustJSON(map[string]string{"history_visibility": o.HistoryVisibility})}}
	if len(o.Bots) > 0 {
		state = append(state, functionalMembers(o.Bots))
	}
	for _, s := range o.InitialState {
		switch s.Type {
		case TypeEncryption, TypeHistoryVisibility, TypeFunctionalMembers, TypePowerLevels, TypeCreate:
			return nil, malformed("initial_state", "%s is set by this package", s.Type)
		}
		state = append(state, s)
	}
	// The override replaces the whole map of the homeserver's defaults, so those
	// are repeated here.
	events := map[string]int{
		"m.room.name": 50, "m.room.avatar": 50, "m.room.canonical_alias": 50,
		TypePowerLevels: 100, TypeHistoryVisibility: 100, "m.room.tombstone": 100, "m.room.server_acl": 100,
		TypeEncryption: 100, TypeFunctionalMembers: 50,
	}
	for _, t := range PowerLevelTypes() {
		events[t] = 0
	}
	power, err := overridePower(o.Power, events)
	if err != nil {
		return nil, err
	}
	if o.Announcement {
		power["events_default"] = 50
	}
	invite := slices.Clone(o.Invite)
	for _, b := range o.Bots {
		if !slices.Contains(invite, b) {
			invite = append(invite, b)
		}
	}
	return encodeJSON(createRequest{
		Name: o.Name, Topic: o.Topic, Alias: o.Alias, Preset: o.Preset, Direct: o.Direct, Invite: invite, Version: o.Version,
		CreationContent: map[string]any{KeyCreateAlgorithm: Algorithm}, InitialState: state, PowerLevels: power,
	})
}

// overridePower returns power levels with those of events, and with what a
// client wants of others.
func overridePower(want json.RawMessage, events map[string]int) (map[string]any, error) {
	power := map[string]any{}
	if len(want) > 0 {
		var all map[string]json.RawMessage
		var known struct {
			Events       map[string]json.RawMessage `json:"events"`
			UsersDefault json.RawMessage            `json:"users_default"`
		}
		if err := decodeObject(want, &all, anyNumbers); err != nil {
			return nil, inContent("power levels", err)
		}
		if err := decodeObject(want, &known, anyNumbers); err != nil {
			return nil, inContent("power levels", err)
		}
		if level, err := powerLevel(known.UsersDefault); err != nil || level < 0 {
			return nil, inContent("power levels", malformed("users_default", "is not an integer from 0 on: every member has to send handshakes"))
		}
		for key, value := range all {
			power[key] = value
		}
		for t, raw := range known.Events {
			level, err := powerLevel(raw)
			if err != nil {
				return nil, inContent("power levels", err)
			}
			if slices.Contains(PowerLevelTypes(), t) || t == TypeEncryption && level < 100 {
				continue
			}
			events[t] = level
		}
	}
	power["events"] = events
	return power, nil
}

// powerLevel reads one level; absent is 0.
func powerLevel(raw json.RawMessage) (level int, err error) {
	if len(raw) == 0 || string(raw) == "null" {
		return 0, nil
	}
	if err := json.Unmarshal(raw, &level); err != nil {
		return 0, malformed("level", "is not an integer")
	}
	return level, nil
}

func encryptionEvent(nonce string, group []byte) (StateEvent, error) {
	if nonce == "" {
		return StateEvent{}, malformed("nonce", "is missing")
	}
	raw, err := Encode(&EncryptionContent{Algorithm: Algorithm, Group: group, Nonce: nonce})
	return StateEvent{Type: TypeEncryption, Content: raw}, err
}

func functionalMembers(bots []id.UserID) StateEvent {
	return StateEvent{Type: TypeFunctionalMembers, Content: mustJSON(map[string][]id.UserID{"service_members": bots})}
}

// mustJSON encodes maps and slices of strings, which cannot fail.
func mustJSON(v any) json.RawMessage {
	raw, err := encodeJSON(v)
	if err != nil {
		panic("rooms: internal: " + err.Error())
	}
	return raw
}

// SwitchState returns the state events, in order, that turn an existing
// unencrypted room into a room with MLS: power levels that leave our events to
// all members, the functional members, and m.room.encryption last, from which
// on nobody sends plaintext. current holds the room's present contents of
// m.room.power_levels and io.element.functional_members by type; what they say
// of other things is kept. A room that is encrypted already is refused: it
// becomes an MLS room by a room upgrade, so that nobody reads its old messages
// as protected by MLS.
func SwitchState(s *RoomState, current map[string]json.RawMessage, bots []id.UserID, nonce string) ([]StateEvent, error) {
	if s.Encryption != "" || s.CreateAlgorithm != "" || s.encryptionEvents > 0 {
		if s.IsMLS() {
			return nil, refuse(RuleAlgorithmDowngrade, "room "+string(s.Room), "is a room with MLS already").
				with("nothing is left to do: mls-proxy members ROOM shows who is in its group")
		}
		return nil, refuse(RuleMegolmForMLS, "room "+string(s.Room), "is encrypted with %.80q", s.Encryption).
			with("upgrade the room: the new one starts with MLS")
	}
	var out []StateEvent
	power := map[string]json.RawMessage{}
	if raw := current[TypePowerLevels]; len(raw) > 0 {
		if err := decodeObject(raw, &power, anyNumbers); err != nil {
			return nil, inContent("power levels", err)
		}
	}
	events := map[string]json.RawMessage{}
	if raw := power["events"]; len(raw) > 0 {
		if err := decodeObject(raw, &events, anyNumbers); err != nil {
			return nil, inContent("power levels", err)
		}
	}
	changed := false
	set := func(t, l string) {
		if string(events[t]) != l {
			events[t], changed = json.RawMessage(l), true
		}
	}
	for _, t := range PowerLevelTypes() {
		set(t, "0")
	}
	if s.Power.Needed(TypeEncryption, true) < 100 {
		set(TypeEncryption, "100")
	}
	if changed {
		power["events"] = mustJSON(events)
		out = append(out, StateEvent{Type: TypePowerLevels, Content: mustJSON(power)})
	}
	members := slices.Clone(s.Functional)
	for _, b := range bots {
		if !slices.Contains(members, b) {
			members = append(members, b)
		}
	}
	if len(members) > len(s.Functional) {
		functional := map[string]json.RawMessage{}
		if raw := current[TypeFunctionalMembers]; len(raw) > 0 {
			if err := decodeObject(raw, &functional, anyNumbers); err != nil {
				functional = map[string]json.RawMessage{}
			}
		}
		functional["service_members"] = mustJSON(members)
		out = append(out, StateEvent{Type: TypeFunctionalMembers, Content: mustJSON(functional)})
	}
	encryption, err := encryptionEvent(nonce, nil)
	if err != nil {
		return nil, err
	}
	return append(out, encryption), nil
}
