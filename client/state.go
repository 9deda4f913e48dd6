package client

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// stateEntry is one piece of room state.
type stateEntry struct {
	Event   id.EventID      `json:"event,omitempty"`
	Sender  id.UserID       `json:"sender"`
	Content json.RawMessage `json:"content"`
	Loose   bool            `json:"loose,omitempty"` // a head from the timeline: its bot may not set state
}

// roomState is the part of a room's state that matters to a group, as the own
// homeserver shows it. It can take access away, never give it.
type roomState struct {
	// Entries is keyed by event type, then state key.
	Entries map[string]map[string]stateEntry `json:"entries"`
	// Known is set once the full state was read, and reset by a gap.
	Known bool `json:"known,omitempty"`

	room id.RoomID
	view *rooms.RoomState
	read *stateRead // the full state is being read
	// asWritten says of statePart that nothing changed since it was written.
	asWritten cleanParts
	// headsChanged are the state keys of the heads of which the newest is not written.
	headsChanged map[string]bool
	oldHeads     bool // an older version wrote them in one piece, which is there yet
	heads        map[id.UserID]readHead
	// first tells whose heads go first where there are too many; nil: nobody's.
	first func(user id.UserID) bool
}

// readHead is a head as it was read last.
type readHead struct {
	raw  json.RawMessage
	head *rooms.HeadContent
}

// stored is what is written of the state: the heads, which change with every few
// commits, beside the rest, which is long in a large room.
func (s *roomState) stored() *roomState {
	rest := &roomState{Entries: maps.Clone(s.Entries), Known: s.Known}
	delete(rest.Entries, rooms.TypeHead)
	return rest
}

// changed notes that what is stored of an entry is not the newest.
func (s *roomState) changed(eventType, key string) {
	if eventType != rooms.TypeHead {
		s.asWritten.lose(statePart)
		return
	}
	if s.headsChanged == nil {
		s.headsChanged = map[string]bool{}
	}
	s.headsChanged[key] = true
}

// maxHeads bounds the heads of a room that are kept: any member can post one.
const maxHeads = 4 * rooms.MaxSequencers

// admitHead tells whether there is room for a user's head. Where there is none, that of
// somebody who counts for less gives way.
func (s *roomState) admitHead(user id.UserID) bool {
	byKey := s.Entries[rooms.TypeHead]
	if _, known := byKey[string(user)]; known || len(byKey) < maxHeads {
		return true
	}
	last, most := "", s.headRank(user)
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		if rank := s.headRank(id.UserID(key)); rank > most {
			last, most = key, rank
		}
	}
	if last == "" {
		return false
	}
	delete(byKey, last)
	s.changed(rooms.TypeHead, last)
	return true
}

// headRank says how much the head of a user counts where there are too many, 0 the most.
// It takes power to be a functional member, or the server of who has power over the room's encryption to be
// its module; a server to have a bot's name, of which one machine has as many as it wants; and anybody can join.
func (s *roomState) headRank(user id.UserID) int {
	switch joined := s.membership(user) == rooms.MembershipJoin; {
	case s.first != nil && s.first(user):
		return 0
	case joined && (slices.Contains(s.view.Functional, user) || s.view.MayShow(user)):
		return 1
	case joined && isBot(user):
		return 2
	case joined:
		return 3
	}
	return 4
}

// stateRead is what comes while the full state is being read: the answer may be
// from before it.
type stateRead struct {
	came []*Event
	size int  // of their contents, in bytes
	lost bool // and more that is not here
}

func newRoomState(room id.RoomID) *roomState {
	return &roomState{Entries: map[string]map[string]stateEntry{}, room: room, view: rooms.NewRoomState(room)}
}

const (
	maxStateMembers = 50_000
	typeTombstone   = "m.room.tombstone"
	typeServerACL   = "m.room.server_acl"
	typeRoomName    = "m.room.name"
)

func keptState(eventType string) bool {
	switch eventType {
	case rooms.TypeCreate, rooms.TypeEncryption, rooms.TypeMember, rooms.TypePowerLevels, rooms.TypeJoinRules,
		rooms.TypeHistoryVisibility, rooms.TypeFunctionalMembers, rooms.TypeHead, typeTombstone, typeServerACL, typeRoomName:
		return true
	}
	return false
}

// maxCame and maxCameBytes bound the events that are kept while the full state is being read.
const (
	maxCame      = 10_000
	maxCameBytes = 8 << 20
)

// begin notes that the full state is asked for now; replace ends that.
func (s *roomState) begin() { s.read = &stateRead{} }

// lose notes that state events were missed, or may have been.
func (s *roomState) lose() {
	if s.Known {
		s.asWritten.lose(statePart)
	}
	s.Known = false
	if s.read != nil {
		s.read.lost = true
	}
}

// set takes in a state event and reports whether it is new.
func (s *roomState) set(evt *Event) bool {
	if evt.StateKey == nil || !keptState(evt.Type) || len(evt.Content) > rooms.MaxEventSize {
		return false
	}
	if evt.Type == rooms.TypeHead && (*evt.StateKey != string(evt.Sender) || !s.admitHead(evt.Sender)) {
		return false // nobody reads it
	}
	byKey := s.Entries[evt.Type]
	if byKey == nil {
		byKey = map[string]stateEntry{}
		s.Entries[evt.Type] = byKey
	}
	old, known := byKey[*evt.StateKey]
	if known && old.Event == evt.ID && evt.ID != "" && len(evt.Content) <= len(old.Content) {
		return false // a longer content of one event is the whole one, see replace
	}
	if !known && len(byKey) >= maxStateMembers {
		return false
	}
	s.changed(evt.Type, *evt.StateKey)
	byKey[*evt.StateKey] = stateEntry{Event: evt.ID, Sender: evt.Sender, Content: evt.Content}
	if s.read != nil && len(s.read.came) < maxCame && s.read.size+len(evt.Content) <= maxCameBytes {
		s.read.came, s.read.size = append(s.read.came, evt), s.read.size+len(evt.Content)
	} else if s.read != nil {
		s.read.lost = true
	}
	// Content that cannot be read counts as absent: Apply sees to that.
	_ = s.view.Apply(evt.Type, *evt.StateKey, evt.Sender, evt.ID, evt.Content)
	return true
}

// revives tells whether an event is a membership that had ended. A Synapse's /sync
// may show one as the state after a timeline (MSC4222) in which its user spoke,
// though the leave came before; only the full state can tell whether it counts again.
func (s *roomState) revives(evt *Event) bool {
	return evt.Type == rooms.TypeMember && evt.StateKey != nil && s.view.Ended(id.UserID(*evt.StateKey), evt.ID)
}

// rebuild makes the view from the entries.
func (s *roomState) rebuild() {
	if s.Entries == nil {
		s.Entries = map[string]map[string]stateEntry{}
	}
	s.view = rooms.NewRoomState(s.room)
	for eventType, byKey := range s.Entries {
		for key, entry := range byKey {
			_ = s.view.Apply(eventType, key, entry.Sender, entry.Event, entry.Content)
		}
	}
	s.view.Succeed(rooms.NewRoomState(s.room), nil) // what was written counted
}

// replace takes in the full state. What an event says never changes, so what
// was known of one stays: Dendrite answers /state with redacted copies of the
// state that a remote join once fetched, though nobody redacted it. What came
// since it was asked for is newer. It returns the memberships that state resolution
// forgot meanwhile.
func (s *roomState) replace(events []*Event) []rooms.SetBack {
	s.asWritten.lose(statePart)
	old, before, read := s.Entries, s.view, s.read
	if read == nil {
		read = &stateRead{}
	}
	s.read = nil
	s.Entries = map[string]map[string]stateEntry{}
	s.view = rooms.NewRoomState(s.room)
	// The heads come last: which of them count says the rest.
	others := slices.DeleteFunc(slices.Clone(events), func(evt *Event) bool { return evt.Type == rooms.TypeHead })
	heads := slices.DeleteFunc(slices.Clone(events), func(evt *Event) bool { return evt.Type != rooms.TypeHead })
	for _, evt := range slices.Concat(others, heads) {
		if evt.StateKey != nil && evt.ID != "" {
			if known, ok := old[evt.Type][*evt.StateKey]; ok && known.Event == evt.ID && len(known.Content) > len(evt.Content) {
				whole := *evt
				whole.Content = known.Content
				evt = &whole
			}
		}
		s.set(evt)
	}
	for key, entry := range old[rooms.TypeHead] {
		if _, ok := s.Entries[rooms.TypeHead][key]; entry.Loose && !ok {
			s.setLooseHead(entry)
		}
	}
	back := s.view.Succeed(before, func(user id.UserID) bool {
		return read.lost || slices.ContainsFunc(read.came, func(evt *Event) bool { return evt.Type == rooms.TypeMember && *evt.StateKey == string(user) })
	})
	for _, evt := range read.came {
		s.set(evt)
	}
	for key := range old[rooms.TypeHead] {
		if _, ok := s.Entries[rooms.TypeHead][key]; !ok {
			s.changed(rooms.TypeHead, key)
		}
	}
	s.Known = !read.lost
	return back
}

// setLooseHead takes in a head that stands in the timeline.
func (s *roomState) setLooseHead(entry stateEntry) {
	byKey := s.Entries[rooms.TypeHead]
	if byKey == nil {
		byKey = map[string]stateEntry{}
		s.Entries[rooms.TypeHead] = byKey
	}
	if old, ok := byKey[string(entry.Sender)]; (!ok || old.Loose) && s.admitHead(entry.Sender) {
		entry.Loose = true
		s.changed(rooms.TypeHead, string(entry.Sender))
		byKey[string(entry.Sender)] = entry
	}
}

func (s *roomState) content(eventType, key string) json.RawMessage {
	return s.Entries[eventType][key].Content
}

func (s *roomState) membership(user id.UserID) rooms.Membership {
	return s.view.Members[user].Membership
}

func (s *roomState) isMLS() bool { return s.view.IsMLS() }

// name returns the room's name, or "".
func (s *roomState) name() string {
	var content struct {
		Name string `json:"name"`
	}
	if json.Unmarshal(s.content(typeRoomName, ""), &content) != nil {
		return ""
	}
	return content.Name
}

// maxReadHeads bounds the heads that are kept as they were read.
const maxReadHeads = 16

// head returns the P.head of a module's bot, nil if it has none. It is for reading:
// the next call returns the same.
func (s *roomState) head(bot id.UserID) *rooms.HeadContent {
	entry, ok := s.Entries[rooms.TypeHead][string(bot)]
	if !ok || entry.Sender != bot {
		return nil
	}
	if known, ok := s.heads[bot]; ok && len(entry.Content) > 0 && len(known.raw) == len(entry.Content) && &known.raw[0] == &entry.Content[0] {
		return known.head
	}
	head, err := rooms.DecodeHead(entry.Content)
	if err != nil {
		head = nil
	}
	if s.heads == nil || len(s.heads) >= maxReadHeads {
		s.heads = map[id.UserID]readHead{}
	}
	s.heads[bot] = readHead{entry.Content, head}
	return head
}

// bots returns the bots that posted a P.head, in order.
func (s *roomState) bots() []id.UserID {
	var out []id.UserID
	for key, entry := range s.Entries[rooms.TypeHead] {
		if key == string(entry.Sender) {
			out = append(out, entry.Sender)
		}
	}
	slices.Sort(out)
	return out
}

// serverOf returns the server part of a user id.
func serverOf(user id.UserID) string {
	_, server, _ := strings.Cut(string(user), ":")
	return server
}

// botOf returns the user id of a server's module.
func botOf(server string) id.UserID {
	return id.UserID("@" + rooms.BotLocalpart + ":" + server)
}

func isBot(user id.UserID) bool {
	return strings.HasPrefix(string(user), "@"+rooms.BotLocalpart+":")
}
