package homeserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"maunium.net/go/mautrix/id"
)

// MaxEventBytes bounds the JSON of one event as a homeserver hands it out: the
// event itself has at most 65,536 bytes, and "unsigned" may repeat the content
// that it replaced.
const MaxEventBytes = 256 << 10

// maxIDBytes bounds every identifier of an event, as the Matrix specification
// does.
const maxIDBytes = 255

// ParseEvent reads an event in the client format. room stands in where the
// event does not name its room, as in /messages of some homeservers; an event
// that names another room is refused.
func ParseEvent(raw json.RawMessage, room id.RoomID) (*Event, error) {
	if len(raw) > MaxEventBytes {
		return nil, fmt.Errorf("event of %d bytes is too large", len(raw))
	}
	if !utf8.Valid(raw) {
		return nil, errors.New("event is not UTF-8")
	}
	var e struct {
		ID       id.EventID      `json:"event_id"`
		Room     id.RoomID       `json:"room_id"`
		Sender   id.UserID       `json:"sender"`
		Type     string          `json:"type"`
		StateKey *string         `json:"state_key"`
		Content  json.RawMessage `json:"content"`
		Redacts  any             `json:"redacts"`
		Time     float64         `json:"origin_server_ts"`
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return nil, fmt.Errorf("event is malformed: %w", err)
	}
	if e.Room == "" {
		e.Room = room
	}
	if room != "" && e.Room != room {
		return nil, errors.New("event belongs to another room")
	}
	for name, value := range map[string]string{
		"event_id": string(e.ID), "room_id": string(e.Room), "sender": string(e.Sender), "type": e.Type,
	} {
		if value == "" {
			return nil, fmt.Errorf("event has no %s", name)
		}
		if err := checkID(name, value); err != nil {
			return nil, err
		}
	}
	if e.StateKey != nil {
		if err := checkID("state_key", *e.StateKey); err != nil {
			return nil, err
		}
	}
	if len(e.Content) == 0 || e.Content[0] != '{' {
		return nil, errors.New("event has no content object")
	}
	out := &Event{ID: e.ID, Room: e.Room, Sender: e.Sender, Type: e.Type, StateKey: e.StateKey, Content: e.Content, Raw: raw}
	if e.Type == "m.room.redaction" {
		out.Redacts = redacts(e.Redacts, e.Content)
	}
	if e.Time > 0 && e.Time < math.MaxInt64/1e7 {
		out.Time = time.UnixMilli(int64(e.Time))
	}
	return out, nil
}

// redacts finds what a redaction names: in its content since room version 11,
// beside it before.
func redacts(outside any, content json.RawMessage) id.EventID {
	var c struct {
		Redacts any `json:"redacts"`
	}
	_ = json.Unmarshal(content, &c)
	for _, v := range []any{c.Redacts, outside} {
		if s, ok := v.(string); ok && s != "" && checkID("redacts", s) == nil {
			return id.EventID(s)
		}
	}
	return ""
}

func checkID(name, value string) error {
	if len(value) > maxIDBytes {
		return fmt.Errorf("event's %s is longer than %d bytes", name, maxIDBytes)
	}
	for i := range len(value) {
		if value[i] == 0 {
			return fmt.Errorf("event's %s holds a NUL byte", name)
		}
	}
	return nil
}

// parseEvents reads a list and leaves out what is malformed: the rest of a page
// must not be lost to one bad event.
func parseEvents(raws []json.RawMessage, room id.RoomID) []*Event {
	out := make([]*Event, 0, len(raws))
	for _, raw := range raws {
		if ev, err := ParseEvent(raw, room); err == nil {
			out = append(out, ev)
		}
	}
	return out
}
