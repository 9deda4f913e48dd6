package rewrite

import (
	"encoding/json"
	"slices"
	"strings"
	"unicode"

	"maunium.net/go/mautrix/id"
)

// Terms are the words that a search is for, folded. All of them have to be there.
func Terms(search string) []string {
	return strings.FieldsFunc(strings.ToLower(search), func(r rune) bool { return !inWord(r) })
}

func inWord(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) || unicode.IsMark(r) }

// unspaced are scripts that do not part words by spaces.
var unspaced = []*unicode.RangeTable{unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar}

// Rank tells how well a text answers a search: 0 if a term is missing, else the
// more the more often the terms are there. A word matches a term that it begins
// with; in scripts without spaces the term may stand anywhere.
func Rank(text string, terms []string) float64 {
	if len(terms) == 0 {
		return 0
	}
	text = strings.ToLower(text)
	var rank float64
	for _, term := range terms {
		found := 0.0
		anywhere := strings.ContainsFunc(term, func(r rune) bool { return unicode.In(r, unspaced...) })
		for at := 0; found < 10; {
			i := strings.Index(text[at:], term)
			if i < 0 {
				break
			}
			i += at
			before := lastRune(text[:i])
			after := firstRune(text[i+len(term):])
			switch {
			case !anywhere && inWord(before):
			case inWord(after):
				found += 0.5 // part of a word
			default:
				found++
			}
			at = i + len(term)
		}
		if found == 0 {
			return 0
		}
		rank += found
	}
	return rank / float64(len(terms))
}

func lastRune(s string) (last rune) {
	for i := len(s) - 1; i >= 0 && len(s)-i <= 4; i-- {
		if s[i] < 0x80 || s[i] >= 0xc0 {
			for _, r := range s[i:] {
				return r
			}
		}
	}
	return 0
}

func firstRune(s string) rune {
	for _, r := range s {
		return r
	}
	return 0
}

// BodyOf is the text of a message that a search looks through.
func BodyOf(content json.RawMessage) string {
	var c struct {
		Body string `json:"body"`
		File string `json:"filename"`
	}
	if json.Unmarshal(content, &c) != nil {
		return ""
	}
	if c.File != "" && c.File != c.Body {
		return c.Body + "\n" + c.File
	}
	return c.Body
}

// Search is what a client asks POST /search for, of events in rooms.
type Search struct {
	Terms   []string
	Recent  bool // the newest first, else the best
	Limit   int
	Context *Around // nil: none is wanted
	Groups  []string
	State   bool
	Filter  SearchFilter

	body, categories, events fields
	selection                Selection
}

// Around is how much is wanted around what was found.
type Around struct {
	Before  int
	After   int
	Profile bool
}

// SearchFilter says whose messages in which rooms are looked through. Nil lists
// are none.
type SearchFilter struct {
	Rooms      []id.RoomID `json:"rooms"`
	NotRooms   []id.RoomID `json:"not_rooms"`
	Senders    []id.UserID `json:"senders"`
	NotSenders []id.UserID `json:"not_senders"`
}

// maxSearch bounds a page of what was found, and what is shown around each.
const maxSearch, maxAround = 100, 20

// ParseSearch reads a request to POST /search. Events is false if it is not for
// events of rooms.
func ParseSearch(raw json.RawMessage) (s *Search, events bool, err error) {
	body, ok := parse(raw)
	if !ok {
		return nil, false, ErrNotAnObject
	}
	s = &Search{body: body, categories: body.object("search_categories"), Limit: 10}
	if s.events = s.categories.object("room_events"); s.events == nil {
		return s, false, nil
	}
	var keys []string
	_ = json.Unmarshal(s.events["keys"], &keys)
	if len(keys) == 0 || slices.Contains(keys, "content.body") {
		s.Terms = Terms(s.events.text("search_term"))
	}
	s.Recent = s.events.text("order_by") == "recent"
	s.State = string(s.events["include_state"]) == "true"
	filter := s.events.object("filter")
	_ = json.Unmarshal(filter.raw(), &s.Filter)
	if s.Filter.Rooms == nil && filter.has("rooms") {
		s.Filter.Rooms = []id.RoomID{}
	}
	_ = json.Unmarshal(filter["limit"], &s.Limit)
	s.Limit = max(1, min(s.Limit, maxSearch))
	s.selection = selection(filter)
	if around := s.events.object("event_context"); around != nil {
		s.Context = &Around{Before: 5, After: 5, Profile: string(around["include_profile"]) == "true"}
		_ = json.Unmarshal(around["before_limit"], &s.Context.Before)
		_ = json.Unmarshal(around["after_limit"], &s.Context.After)
		s.Context.Before = max(0, min(s.Context.Before, maxAround))
		s.Context.After = max(0, min(s.Context.After, maxAround))
	}
	var grouping struct {
		By []struct {
			Key string `json:"key"`
		} `json:"group_by"`
	}
	_ = json.Unmarshal(s.events["groupings"], &grouping)
	for _, by := range grouping.By {
		if (by.Key == "room_id" || by.Key == "sender") && !slices.Contains(s.Groups, by.Key) {
			s.Groups = append(s.Groups, by.Key)
		}
	}
	return s, true, nil
}

// In makes the request that the homeserver gets: of these rooms only.
func (s *Search) In(rooms []id.RoomID) json.RawMessage {
	filter := s.events.object("filter")
	if filter == nil {
		filter = fields{}
	}
	filter["rooms"], _ = json.Marshal(rooms)
	filter["limit"], _ = json.Marshal(s.Limit)
	s.events["filter"] = filter.raw()
	delete(s.events, "groupings") // they are made of what all found
	s.categories["room_events"] = s.events.raw()
	s.body["search_categories"] = s.categories.raw()
	return s.body.raw()
}

// Wants tells whether a room is looked through.
func (s *Search) Wants(room id.RoomID) bool {
	return (s.Filter.Rooms == nil || slices.Contains(s.Filter.Rooms, room)) && !slices.Contains(s.Filter.NotRooms, room)
}

// Keeps tells whether a message is one of those that are wanted.
func (s *Search) Keeps(e Event) bool {
	return (s.Filter.Senders == nil || slices.Contains(s.Filter.Senders, e.Sender)) && !slices.Contains(s.Filter.NotSenders, e.Sender) &&
		s.selection.passes(e.Raw)
}

// Found is an event that was found.
type Found struct {
	Room  id.RoomID
	Event Event
	Rank  float64
	// Context is what is around it, nil if that is not wanted.
	Context json.RawMessage
}

func (f Found) raw() json.RawMessage {
	out := fields{"result": f.Event.Raw}
	out["rank"], _ = json.Marshal(f.Rank)
	if f.Context != nil {
		out["context"] = f.Context
	}
	return out.raw()
}

// SearchAnswer is what the homeserver found.
type SearchAnswer struct {
	Found      []Found
	Count      int
	Highlights []string
	Next       string

	body, categories, events fields
}

// ParseSearchAnswer reads and rewrites what the homeserver found. Nil is an answer
// in which nothing was found.
func ParseSearchAnswer(raw json.RawMessage, v View) (*SearchAnswer, error) {
	if raw == nil {
		return &SearchAnswer{body: fields{}, categories: fields{}, events: fields{}}, nil
	}
	body, ok := parse(raw)
	if !ok {
		return nil, ErrNotAnObject
	}
	a := &SearchAnswer{body: body, categories: body.object("search_categories")}
	if a.categories == nil {
		a.categories = fields{}
	}
	if a.events = a.categories.object("room_events"); a.events == nil {
		a.events = fields{}
	}
	_ = json.Unmarshal(a.events["count"], &a.Count)
	_ = json.Unmarshal(a.events["highlights"], &a.Highlights)
	a.Next = a.events.text("next_batch")
	var results []json.RawMessage
	_ = json.Unmarshal(a.events["results"], &results)
	for _, raw := range results {
		f, ok := parse(raw)
		if !ok {
			continue
		}
		result, _ := parse(f["result"])
		found := Found{Room: id.RoomID(result.text("room_id"))}
		if found.Event = One(found.Room, f["result"], v); found.Event.Raw == nil || found.Event.Notice {
			continue
		}
		_ = json.Unmarshal(f["rank"], &found.Rank)
		if around := f.object("context"); around != nil {
			for _, list := range []string{"events_before", "events_after"} {
				if around.has(list) {
					around[list] = rewriteList(found.Room, around[list], v)
				}
			}
			found.Context = around.raw()
		}
		a.Found = append(a.Found, found)
	}
	return a, nil
}

// Encode writes an answer with all that was found, and where the rest begins.
func (a *SearchAnswer) Encode(s *Search, found []Found, count int, next string, state map[id.RoomID][]json.RawMessage) ([]byte, error) {
	results := make([]json.RawMessage, 0, len(found))
	for _, f := range found {
		results = append(results, f.raw())
	}
	e := a.events
	var err error
	set := func(key string, value any) {
		raw, merr := json.Marshal(value)
		if merr != nil {
			err = merr
		}
		e[key] = raw
	}
	set("results", results)
	set("count", count)
	highlights := slices.Clone(a.Highlights)
	for _, term := range s.Terms {
		if !slices.Contains(highlights, term) {
			highlights = append(highlights, term)
		}
	}
	set("highlights", highlights)
	delete(e, "groups")
	if len(s.Groups) > 0 {
		set("groups", groups(s.Groups, found))
	}
	delete(e, "next_batch")
	if next != "" {
		set("next_batch", next)
	}
	if s.State {
		all := e.object("state")
		if all == nil {
			all = fields{}
		}
		for room, events := range state {
			raw, merr := json.Marshal(events)
			if merr != nil {
				err = merr
			}
			all[string(room)] = raw
		}
		e["state"] = all.raw()
	}
	if err != nil {
		return nil, err
	}
	a.categories["room_events"] = e.raw()
	a.body["search_categories"] = a.categories.raw()
	return json.Marshal(a.body)
}

// group is what was found in one room, or of one sender.
type group struct {
	Order   int          `json:"order"`
	Results []id.EventID `json:"results"`
}

func groups(by []string, found []Found) map[string]map[string]*group {
	out := map[string]map[string]*group{}
	for _, key := range by {
		out[key] = map[string]*group{}
		for _, f := range found {
			name := string(f.Room)
			if key == "sender" {
				name = string(f.Event.Sender)
			}
			g := out[key][name]
			if g == nil {
				g = &group{Order: len(out[key]) + 1}
				out[key][name] = g
			}
			g.Results = append(g.Results, f.Event.ID)
		}
	}
	return out
}

// AroundOf makes what is around a found event of an answer to GET …/context.
func AroundOf(p *Page, v View, want *Around) json.RawMessage {
	cut := func(list string, n int) []json.RawMessage {
		events, _ := List(p.room, p.Came(list), v)
		return Raws(events[:min(len(events), n)])
	}
	out := fields{}
	out["events_before"], _ = json.Marshal(cut("events_before", want.Before))
	out["events_after"], _ = json.Marshal(cut("events_after", want.After))
	for _, key := range []string{"start", "end"} {
		if p.body.has(key) {
			out[key] = p.body[key]
		}
	}
	if want.Profile {
		profiles := fields{}
		for _, raw := range p.Came("state") {
			f, _ := parse(raw)
			if f.text("type") != "m.room.member" {
				continue
			}
			profile := fields{}
			for _, key := range []string{"displayname", "avatar_url"} {
				if content := f.object("content"); content.has(key) {
					profile[key] = content[key]
				}
			}
			profiles[f.text("state_key")] = profile.raw()
		}
		out["profile_info"] = profiles.raw()
	}
	return out.raw()
}
