package rewrite

import (
	"encoding/json"
	"slices"

	"maunium.net/go/mautrix/id"
)

// Sliding is the answer to a simplified sliding sync (MSC4186). What is not about
// events of rooms stays as it came, known or not.
type Sliding struct {
	body, rooms, extensions fields
	windows                 []*Window
}

// ParseSliding reads an answer. Nothing of it has to be there.
func ParseSliding(raw []byte) (*Sliding, error) {
	body, ok := parse(raw)
	if !ok {
		return nil, ErrNotAnObject
	}
	s := &Sliding{body: body, rooms: body.object("rooms"), extensions: body.object("extensions")}
	ids := make([]string, 0, len(s.rooms))
	for roomID := range s.rooms {
		ids = append(ids, roomID)
	}
	slices.Sort(ids)
	for _, roomID := range ids {
		room, ok := parse(s.rooms[roomID])
		if !ok {
			continue
		}
		w := &Window{Room: id.RoomID(roomID), Joined: true, PrevBatch: room.text("prev_batch"), room: room, flat: true}
		for _, list := range strippedLists {
			w.Joined = w.Joined && !room.has(list)
		}
		_ = json.Unmarshal(room["limited"], &w.Limited)
		_ = json.Unmarshal(room["timeline"], &w.raws)
		s.windows = append(s.windows, w)
	}
	return s, nil
}

// strippedLists are what a room has that the user is invited to.
var strippedLists = []string{"invite_state", "stripped_state", "knock_state"}

// Windows are the timelines, in the order of room ids.
func (s *Sliding) Windows() []*Window { return s.windows }

// Pos is where the next sync begins.
func (s *Sliding) Pos() string { return s.body.text("pos") }

// Rewrite rewrites all events.
func (s *Sliding) Rewrite(v View) {
	for _, w := range s.windows {
		var live int
		_ = json.Unmarshal(w.room["num_live"], &live)
		first := len(w.raws) - live // of those that are live
		w.Events = make([]Event, 0, len(w.raws))
		for i, raw := range w.raws {
			e := One(w.Room, raw, v)
			if e.Raw != nil {
				w.Events = append(w.Events, e)
				continue
			}
			w.Lost++
			if i >= first {
				live--
			}
		}
		if w.room.has("num_live") {
			w.room["num_live"], _ = json.Marshal(max(live, 0))
		}
		if w.room.has("required_state") {
			w.room["required_state"] = rewriteList(w.Room, w.room["required_state"], v)
		}
		for _, list := range strippedLists {
			var events []json.RawMessage
			if json.Unmarshal(w.room[list], &events) == nil && w.room.has(list) {
				kept, _ := strippedList(w.Room, events, v)
				w.room[list], _ = json.Marshal(kept)
			}
		}
	}
	if toDevice := s.extensions.object("to_device"); toDevice != nil {
		withoutProtocol(toDevice)
		s.extensions["to_device"] = toDevice.raw()
	}
}

// Receipts are a user's read receipts that the answer brings along, by room.
func (s *Sliding) Receipts(user id.UserID) map[id.RoomID][]Receipt {
	out := map[id.RoomID][]Receipt{}
	for room, raw := range s.extensions.object("receipts").object("rooms") {
		if list := ReceiptsOf(raw, user); len(list) > 0 {
			out[id.RoomID(room)] = list
		}
	}
	return out
}

// PushRules is the content of m.push_rules, if the answer brings that along.
func (s *Sliding) PushRules() json.RawMessage {
	var events []json.RawMessage
	_ = json.Unmarshal(s.extensions.object("account_data")["global"], &events)
	return pushRules(events)
}

// SlidingCounts are what the homeserver says is unread in a room.
func (w *Window) SlidingCounts() (all Counts) {
	_ = json.Unmarshal(w.room.raw(), &all)
	return all
}

// SetSlidingCounts puts other counts in their place. Where the homeserver says
// nothing, nothing unread is not said either.
func (w *Window) SetSlidingCounts(all Counts) {
	for key, n := range map[string]int{"notification_count": all.Notify, "highlight_count": all.Highlight} {
		if n != 0 || w.room.has(key) {
			w.room[key], _ = json.Marshal(n)
		}
	}
}

// Add puts an event of the proxy's own at the end of a room's window, as a live
// one. A room that the answer does not name is added.
func (s *Sliding) Add(room id.RoomID, e Event) {
	i := slices.IndexFunc(s.windows, func(w *Window) bool { return w.Room == room && w.Joined })
	if i < 0 {
		s.windows = append(s.windows, &Window{Room: room, Joined: true, room: fields{}, flat: true})
		i = len(s.windows) - 1
	}
	w := s.windows[i]
	w.Events = append(w.Events, e)
	var live int
	_ = json.Unmarshal(w.room["num_live"], &live)
	w.room["num_live"], _ = json.Marshal(live + 1)
}

// Encode writes the answer.
func (s *Sliding) Encode() ([]byte, error) {
	for _, w := range s.windows {
		if len(w.Events) > 0 {
			events, err := json.Marshal(Raws(w.Events))
			if err != nil {
				return nil, err
			}
			w.room["timeline"] = events
		} else {
			delete(w.room, "timeline")
		}
		if w.room.has("limited") {
			w.room["limited"], _ = json.Marshal(w.Limited)
		}
		if w.PrevBatch != "" {
			w.room["prev_batch"] = quote(w.PrevBatch)
		}
		if s.rooms == nil {
			s.rooms = fields{}
		}
		s.rooms[string(w.Room)] = w.room.raw()
	}
	if s.rooms != nil {
		s.body["rooms"] = s.rooms.raw()
	}
	if s.extensions != nil {
		s.body["extensions"] = s.extensions.raw()
	}
	return json.Marshal(s.body)
}

// QuietSliding is the answer to a sliding sync that is answered before the
// homeserver has news: nothing new, and the next one begins where this one did.
func QuietSliding(pos string) *Sliding {
	empty := json.RawMessage("{}")
	return &Sliding{body: fields{"pos": quote(pos), "lists": empty, "rooms": empty, "extensions": empty}}
}
