package rewrite

import (
	"encoding/json"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// ours matches the types of this project's own events, which no client is shown.
const ours = rooms.Prefix + "*"

// RoomFilter makes of a client's filter of one room (/messages, /context) the one for the homeserver: it lets ciphertexts pass,
// which may be anything that the client asks for, and asks for no events of this project's (Matrix client-server API,
// "Filtering"). What the client did not ask for is then left out by a [Selection].
func RoomFilter(raw json.RawMessage) json.RawMessage {
	f, ok := parse(raw)
	if !ok {
		return raw
	}
	forHomeserver(f)
	return f.raw()
}

// SyncFilter does the same with a filter of /sync.
func SyncFilter(raw json.RawMessage) json.RawMessage {
	f, ok := parse(raw)
	if !ok {
		return raw
	}
	room := orNew(f.object("room"))
	timeline, state := orNew(room.object("timeline")), orNew(room.object("state"))
	forHomeserver(timeline)
	withoutOurs(state)
	room["timeline"], room["state"] = timeline.raw(), state.raw()
	f["room"] = room.raw()
	return f.raw()
}

func orNew(f fields) fields {
	if f == nil {
		return fields{}
	}
	return f
}

// forHomeserver lets ciphertexts pass and leaves our own events out.
func forHomeserver(f fields) {
	passCiphertexts(f)
	withoutOurs(f)
}

func withoutOurs(f fields) {
	var not []string
	if f.has("not_types") && json.Unmarshal(f["not_types"], &not) != nil {
		return // the homeserver refuses it
	}
	f["not_types"], _ = json.Marshal(append(not, ours))
}

func passCiphertexts(f fields) {
	var types, not []string
	if f.has("types") && json.Unmarshal(f["types"], &types) == nil && len(types) > 0 && !matches(types, rooms.TypeEncrypted) {
		f["types"], _ = json.Marshal(append(types, rooms.TypeEncrypted))
	}
	if f.has("not_types") && json.Unmarshal(f["not_types"], &not) == nil {
		kept := []string{}
		for _, t := range not {
			if !glob(t, rooms.TypeEncrypted) {
				kept = append(kept, t)
			}
		}
		f["not_types"], _ = json.Marshal(kept)
	}
	delete(f, "contains_url") // it is inside
}

// Selection is what a client's filter says of events that may be ciphertexts at
// the homeserver. The zero value lets all pass.
type Selection struct {
	types, not []string
	some       bool // types counts
	url        *bool
	within     []fields // the filters of rooms and senders, of /sync
	// Limit is how many events the client wants in a window; 0: it does not say.
	Limit int
	// Threads: unread counts are wanted for each thread.
	Threads bool
	// Unknown: the homeserver has a filter that is not known here.
	Unknown bool
	// More is the filter of one room, for the homeserver, by which more of a
	// window's events are to be had; nil if there is none.
	More json.RawMessage
}

// SelectionOf reads a filter of one room (/messages, /context).
func SelectionOf(filter json.RawMessage) Selection {
	f, _ := parse(filter)
	return selection(f)
}

// TimelineOf reads a filter of /sync.
func TimelineOf(filter json.RawMessage) Selection {
	f, _ := parse(filter)
	room := f.object("room")
	timeline := room.object("timeline")
	s := selection(timeline)
	timeline = orNew(timeline)
	s.within = []fields{room, timeline}
	if json.Unmarshal(timeline["limit"], &s.Limit) != nil {
		s.Limit = 0
	}
	s.Threads = string(timeline["unread_thread_notifications"]) == "true"
	forHomeserver(timeline)
	delete(timeline, "limit")
	delete(timeline, "unread_thread_notifications")
	if string(room.object("state")["lazy_load_members"]) == "true" {
		timeline["lazy_load_members"] = json.RawMessage("true")
	}
	s.More = timeline.raw()
	return s
}

func selection(f fields) (s Selection) {
	s.some = f.has("types") && json.Unmarshal(f["types"], &s.types) == nil
	if json.Unmarshal(f["not_types"], &s.not) != nil {
		s.not = nil
	}
	if json.Unmarshal(f["contains_url"], &s.url) != nil {
		s.url = nil
	}
	return s
}

// Keep leaves out the events that were not asked for.
func (s *Selection) Keep(events []Event) []Event {
	if !s.some && len(s.not) == 0 && s.url == nil {
		return events
	}
	return slices.DeleteFunc(slices.Clone(events), func(e Event) bool { return !s.passes(e.Raw) })
}

func (s *Selection) passes(raw json.RawMessage) bool {
	f, _ := parse(raw)
	t := f.text("type")
	if s.some && !matches(s.types, t) || matches(s.not, t) {
		return false
	}
	return s.url == nil || *s.url == (f.object("content").text("url") != "")
}

// TakesNotice tells whether a filter of /sync lets a notice about a room pass,
// which is a message of the user's own.
func (s *Selection) TakesNotice(room id.RoomID, user id.UserID) bool {
	if s.some && !matches(s.types, "m.room.message") || matches(s.not, "m.room.message") || s.url != nil && *s.url {
		return false
	}
	for _, f := range s.within {
		if !f.lets("rooms", string(room)) || !f.lets("senders", string(user)) {
			return false
		}
	}
	return true
}

// TakesAllSenders tells whether a filter of /sync lets pass whatever anybody has sent into a room that it takes.
func (s *Selection) TakesAllSenders() bool {
	return !s.Unknown && !slices.ContainsFunc(s.within, func(f fields) bool { return f.has("senders") || f.has("not_senders") })
}

// lets tells whether a filter's lists KEY and not_KEY let something pass.
func (f fields) lets(key, value string) bool {
	var only, not []string
	if f.has(key) && json.Unmarshal(f[key], &only) == nil && only != nil && !slices.Contains(only, value) {
		return false
	}
	return !f.has("not_"+key) || json.Unmarshal(f["not_"+key], &not) != nil || !slices.Contains(not, value)
}

func matches(patterns []string, t string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return glob(p, t) })
}

// glob matches a type with a pattern, in which * stands for any text.
func glob(pattern, t string) bool {
	first, rest, ok := strings.Cut(pattern, "*")
	if !ok {
		return pattern == t
	}
	if t, ok = strings.CutPrefix(t, first); !ok {
		return false
	}
	parts := strings.Split(rest, "*")
	last := parts[len(parts)-1]
	for _, part := range parts[:len(parts)-1] {
		_, after, found := strings.Cut(t, part)
		if !found {
			return false
		}
		t = after
	}
	return strings.HasSuffix(t, last)
}
