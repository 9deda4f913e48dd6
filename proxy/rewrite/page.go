package rewrite

import (
	"encoding/json"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// Page is an answer with lists of events of one room: /messages, /context,
// /relations.
type Page struct {
	body fields
	room id.RoomID
}

// ParsePage reads an answer about a room.
func ParsePage(room id.RoomID, raw []byte) (*Page, error) {
	body, ok := parse(raw)
	if !ok {
		return nil, ErrNotAnObject
	}
	return &Page{body: body, room: room}, nil
}

// Came are the events of a list as the homeserver sent them.
func (p *Page) Came(list string) []json.RawMessage {
	var events []json.RawMessage
	_ = json.Unmarshal(p.body[list], &events)
	return events
}

// Text is a value of the answer such as "end", empty if there is none.
func (p *Page) Text(key string) string { return p.body.text(key) }

// SetText changes such a value, and takes it away if it is empty.
func (p *Page) SetText(key, value string) {
	if value == "" {
		delete(p.body, key)
		return
	}
	p.body[key] = quote(value)
}

// Set puts events in the place of a list.
func (p *Page) Set(list string, events []Event) {
	p.body[list], _ = json.Marshal(Raws(events))
}

// SetState puts state events in the place of the page's, if there are any.
func (p *Page) SetState(events []json.RawMessage) {
	if len(events) > 0 {
		p.body["state"], _ = json.Marshal(events)
	}
}

// Select leaves out of a list what was not asked for.
func (p *Page) Select(list string, asked Selection) {
	if !p.body.has(list) {
		return
	}
	var events []Event
	for _, raw := range p.Came(list) {
		events = append(events, Event{Raw: raw})
	}
	kept := asked.Keep(events)
	p.Set(list, kept)
}

// Rewrite rewrites lists that are there.
func (p *Page) Rewrite(v View, lists ...string) (notices []Event) {
	for _, list := range lists {
		if !p.body.has(list) {
			continue
		}
		events, _ := List(p.room, p.Came(list), v)
		for _, e := range events {
			if e.Notice {
				notices = append(notices, e)
			}
		}
		p.Set(list, events)
	}
	return notices
}

// RewriteOne rewrites the event under a key. It returns false if that is to be
// left out.
func (p *Page) RewriteOne(v View, key string) (Event, bool) {
	e := One(p.room, p.body[key], v)
	if e.Raw != nil {
		p.body[key] = e.Raw
	}
	return e, e.Raw != nil
}

// Encode writes the answer.
func (p *Page) Encode() ([]byte, error) { return json.Marshal(p.body) }

// Hierarchy rewrites what a homeserver says of a space and the rooms in it: of an MLS
// room not how it is encrypted, and of each the state that clients may see.
func Hierarchy(raw []byte, v View) ([]byte, error) {
	body, ok := parse(raw)
	if !ok {
		return nil, ErrNotAnObject
	}
	var list []json.RawMessage
	if body.has("rooms") && json.Unmarshal(body["rooms"], &list) != nil {
		return nil, ErrNotAnObject
	}
	for i, raw := range list {
		f, ok := parse(raw)
		if !ok {
			return nil, ErrNotAnObject
		}
		room := id.RoomID(f.text("room_id"))
		mls := v.MLS(room)
		names := []string{"encryption", "im.nheko.summary.encryption"}
		for _, name := range names {
			mls = mls || f.text(name) == rooms.Algorithm
		}
		for _, name := range names {
			if mls {
				delete(f, name)
			}
		}
		if f.has("children_state") {
			var state []json.RawMessage
			if json.Unmarshal(f["children_state"], &state) != nil {
				return nil, ErrNotAnObject
			}
			kept, _ := strippedList(room, state, v)
			f["children_state"], _ = json.Marshal(kept)
		}
		list[i] = f.raw()
	}
	if list != nil {
		body["rooms"], _ = json.Marshal(list)
	}
	return json.Marshal(body)
}
