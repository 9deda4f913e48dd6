package rewrite

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// ErrNotAnObject reports an answer that is not what the API promises.
var ErrNotAnObject = errors.New("rewrite: the homeserver's answer is no JSON object")

// Sync is the answer to GET /sync. What is not about events of rooms stays as it
// came, known or not.
type Sync struct {
	body, rooms fields
	groups      map[string]fields // join, leave, invite, knock: by room
	windows     []*Window
}

// Window is the timeline of a joined or left room.
type Window struct {
	Room      id.RoomID
	Joined    bool
	Events    []Event
	Limited   bool   // events are missing between the last sync and this window
	PrevBatch string // where they are to be had
	Lost      int    // events of a sliding sync that were left out

	raws           []json.RawMessage
	room, timeline fields
	flat           bool // of a sliding sync: the lists stand in the room itself
}

// stateLists are where a room of a /sync has its state.
var stateLists = []string{"state", "state_after", "org.matrix.msc4222.state_after"}

// ParseSync reads an answer. Nothing of it has to be there.
func ParseSync(raw []byte) (*Sync, error) {
	body, ok := parse(raw)
	if !ok {
		return nil, ErrNotAnObject
	}
	s := &Sync{body: body, rooms: body.object("rooms"), groups: map[string]fields{}}
	for _, kind := range []string{"join", "leave", "invite", "knock"} {
		s.groups[kind] = s.rooms.object(kind)
	}
	for _, kind := range []string{"join", "leave"} {
		ids := make([]string, 0, len(s.groups[kind]))
		for roomID := range s.groups[kind] {
			ids = append(ids, roomID)
		}
		slices.Sort(ids)
		for _, roomID := range ids {
			room, ok := parse(s.groups[kind][roomID])
			if !ok {
				continue
			}
			w := &Window{Room: id.RoomID(roomID), Joined: kind == "join", room: room, timeline: room.object("timeline")}
			w.PrevBatch = w.timeline.text("prev_batch")
			_ = json.Unmarshal(w.timeline["limited"], &w.Limited)
			_ = json.Unmarshal(w.timeline["events"], &w.raws)
			s.windows = append(s.windows, w)
		}
	}
	return s, nil
}

// Windows are the timelines, in the order of room ids.
func (s *Sync) Windows() []*Window { return s.windows }

// NextBatch is where the next sync begins.
func (s *Sync) NextBatch() string { return s.body.text("next_batch") }

// Came are the timeline's events as the homeserver sent them.
func (w *Window) Came() []json.RawMessage { return w.raws }

// Rewrite rewrites all events. Of the timelines only what was asked for stays.
func (s *Sync) Rewrite(v View, asked Selection) {
	for _, w := range s.windows {
		w.Events, _ = List(w.Room, w.raws, v)
		w.Events = asked.Keep(w.Events)
		for _, name := range stateLists {
			if list := w.room.object(name); list != nil {
				list["events"] = rewriteList(w.Room, list["events"], v)
				w.room[name] = list.raw()
			}
		}
	}
	if toDevice := s.body.object("to_device"); toDevice != nil {
		withoutProtocol(toDevice)
		s.body["to_device"] = toDevice.raw()
	}
	for kind, list := range map[string]string{"invite": "invite_state", "knock": "knock_state"} {
		for roomID, raw := range s.groups[kind] {
			room, ok := parse(raw)
			if !ok {
				continue
			}
			stripped := room.object(list)
			if stripped == nil {
				continue
			}
			var events []json.RawMessage
			_ = json.Unmarshal(stripped["events"], &events)
			kept, _ := strippedList(id.RoomID(roomID), events, v)
			stripped["events"], _ = json.Marshal(kept)
			room[list] = stripped.raw()
			s.groups[kind][roomID] = room.raw()
		}
	}
}

// withoutProtocol takes the protocol's own out of a list of to-device events: a client has
// no MLS device, and these are for none.
func withoutProtocol(toDevice fields) {
	var events []json.RawMessage
	if json.Unmarshal(toDevice["events"], &events) != nil || events == nil {
		return
	}
	events = slices.DeleteFunc(events, func(raw json.RawMessage) bool { return strings.HasPrefix(TypeOf(raw), rooms.Prefix) })
	toDevice["events"], _ = json.Marshal(events)
}

func rewriteList(room id.RoomID, raw json.RawMessage, v View) json.RawMessage {
	var events []json.RawMessage
	if json.Unmarshal(raw, &events) != nil {
		return json.RawMessage("[]")
	}
	kept, _ := List(room, events, v)
	out, err := json.Marshal(Raws(kept))
	if err != nil {
		return json.RawMessage("[]")
	}
	return out
}

// Prepend puts earlier events, oldest first, before a window's, and notes where
// still earlier ones are: a window that shrank is filled again.
func (w *Window) Prepend(earlier []Event, prevBatch string) {
	w.Events = append(slices.Clone(earlier), w.Events...)
	w.PrevBatch = prevBatch
}

// AddState adds state events, the members who sent a window's earlier events, to
// a window.
func (w *Window) AddState(events []Event) {
	if len(events) == 0 {
		return
	}
	if w.flat {
		var all []json.RawMessage
		_ = json.Unmarshal(w.room["required_state"], &all)
		w.room["required_state"], _ = json.Marshal(MergeState(all, Raws(events)))
		return
	}
	name := stateLists[0]
	for _, other := range stateLists[1:] {
		if w.room.has(other) {
			name = other
		}
	}
	list := w.room.object(name)
	if list == nil {
		list = fields{}
	}
	var all []json.RawMessage
	_ = json.Unmarshal(list["events"], &all)
	raws := MergeState(all, Raws(events))
	list["events"], _ = json.Marshal(raws)
	w.room[name] = list.raw()
}

// MergeState adds state events to a list that has others: for each type and key
// the first counts.
func MergeState(have, more []json.RawMessage) []json.RawMessage {
	key := func(raw json.RawMessage) string {
		f, _ := parse(raw)
		return f.text("type") + "\x00" + f.text("state_key")
	}
	known := map[string]bool{}
	for _, raw := range have {
		known[key(raw)] = true
	}
	for _, raw := range more {
		if k := key(raw); !known[k] {
			known[k] = true
			have = append(have, raw)
		}
	}
	return have
}

// Add puts an event of the proxy's own at the end of a joined room's window. A
// room that the answer does not name is added.
func (s *Sync) Add(room id.RoomID, e Event) {
	i := slices.IndexFunc(s.windows, func(w *Window) bool { return w.Room == room && w.Joined })
	if i < 0 {
		s.windows = append(s.windows, &Window{Room: room, Joined: true, room: fields{}, timeline: fields{}})
		i = len(s.windows) - 1
	}
	s.windows[i].Events = append(s.windows[i].Events, e)
}

// Encode writes the answer.
func (s *Sync) Encode() ([]byte, error) {
	for _, w := range s.windows {
		kind := "leave"
		if w.Joined {
			kind = "join"
		}
		if w.timeline == nil && len(w.Events) == 0 {
			s.groups[kind][string(w.Room)] = w.room.raw()
			continue
		}
		if w.timeline == nil {
			w.timeline = fields{}
		}
		events, err := json.Marshal(Raws(w.Events))
		if err != nil {
			return nil, err
		}
		w.timeline["events"] = events
		w.timeline["limited"], _ = json.Marshal(w.Limited)
		if w.PrevBatch != "" {
			w.timeline["prev_batch"] = quote(w.PrevBatch)
		}
		w.room["timeline"] = w.timeline.raw()
		if s.groups[kind] == nil {
			s.groups[kind] = fields{}
		}
		s.groups[kind][string(w.Room)] = w.room.raw()
	}
	rooms := s.rooms
	for kind, list := range s.groups {
		if list == nil {
			continue
		}
		if rooms == nil {
			rooms = fields{}
		}
		rooms[kind] = list.raw()
	}
	if rooms != nil {
		s.body["rooms"] = rooms.raw()
	}
	return json.Marshal(s.body)
}

// Quiet is the answer to a /sync that is answered before the homeserver has
// news: nothing new, and the next one begins where this one did.
func Quiet(since string) *Sync {
	return &Sync{body: fields{"next_batch": quote(since)}, groups: map[string]fields{}}
}
