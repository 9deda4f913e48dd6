// Package simnet is a federation of homeservers in memory, for simulations: one
// virtual clock, links that are slow, lose, reorder and can be cut, servers that
// keep what they have to themselves or show it too late, and state that is
// resolved where servers learned of it in different orders. It knows nothing of
// MLS, clients or modules: their views of a homeserver are made of it.
//
// What the servers do is what Synapse and Dendrite were seen to do. An event that
// was held up comes to the room's history; it may come to /sync as a gap only
// ("limited"), and to an application service not at all. Nothing here is
// concurrent, and all chance comes from one seeded source, so a run repeats.
package simnet

import (
	"cmp"
	"container/heap"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"
)

// Errors of requests.
var (
	ErrRefused     = errors.New("simnet: refused")     // repeating it does not help
	ErrUnreachable = errors.New("simnet: unreachable") // another server does not answer
)

// Event is a room event.
type Event struct {
	ID       id.EventID
	Room     id.RoomID
	Type     string
	Sender   id.UserID
	StateKey *string
	Time     int64 // the sender's server's claim, in Unix milliseconds
	Content  json.RawMessage
	Redacts  id.EventID

	prev   []*Event // the newest events that its server knew
	depth  int
	before *Event // of a state event: the one that it replaced where it was sent
	raw    json.RawMessage
}

// Raw returns the event in the client format.
func (e *Event) Raw() json.RawMessage {
	if e.raw == nil {
		raw, err := json.Marshal(struct {
			ID       id.EventID      `json:"event_id"`
			Room     id.RoomID       `json:"room_id"`
			Type     string          `json:"type"`
			Sender   id.UserID       `json:"sender"`
			StateKey *string         `json:"state_key,omitempty"`
			Time     int64           `json:"origin_server_ts"`
			Content  json.RawMessage `json:"content"`
			Redacts  id.EventID      `json:"redacts,omitempty"`
		}{e.ID, e.Room, e.Type, e.Sender, e.StateKey, e.Time, e.Content, e.Redacts})
		if err != nil {
			panic(err)
		}
		e.raw = raw
	}
	return e.raw
}

// ServerOf returns the server part of a user id.
func ServerOf(user id.UserID) string {
	_, server, _ := strings.Cut(string(user), ":")
	return server
}

// Links says how the links between servers behave.
type Links struct {
	Delay    time.Duration // the least an event takes
	Jitter   time.Duration // what it may take on top: events overtake each other
	LostPct  int           // of 100 events so many are lost, until a later one shows that they are missing, or a minute passes
	GapPct   int           // of 100 events that were missing so many come to the history alone
	MutePct  int           // so many come to /sync and to no application service
	TwicePct int           // of 100 events so many reach an application service twice
}

// Net joins servers.
type Net struct {
	Servers []*Server
	Links   Links
	// Now is the virtual time. Advance moves it.
	Now time.Duration
	// Wall is the time of the servers' clocks at Now zero, in Unix milliseconds.
	Wall int64
	// Sent hears of every event where it is sent, before anybody else.
	Sent func(at *Server, e *Event)
	// Hide decides, of an event that comes to a server over federation, whether
	// that server soft-fails it: nothing there ever shows it.
	Hide func(at *Server, e *Event) bool

	rng    *rand.Rand
	queue  queue
	order  int
	events int
	media  map[string][]byte
	users  map[id.UserID]*User
}

// New makes an empty federation.
func New(seed uint64) *Net {
	return &Net{rng: rand.New(rand.NewPCG(seed, 0x5e1f)), media: map[string][]byte{}, users: map[id.UserID]*User{}}
}

// Server is a homeserver.
type Server struct {
	Name string
	// Changes counts what is new for its clients and its application service.
	Changes int
	// Bot is the user of its application service.
	Bot id.UserID

	net     *Net
	group   int // servers of different groups do not reach each other
	rooms   map[id.RoomID]*room
	stream  []item
	pushes  []json.RawMessage // for the application service
	inbox   map[device][]toDevice
	changed []changedUser
	cached  map[id.UserID]*DeviceList // of users, as last heard of
	txns    map[string]id.EventID
	copies  map[string]bool                     // media of other servers that are here
	late    map[id.RoomID]map[string][]delivery // held up, by the server they come from
}

type device struct {
	user   id.UserID
	device id.DeviceID
}

type toDevice struct {
	at int
	ev *Event
}

type changedUser struct {
	at   int
	user id.UserID
}

// item is a place in a server's stream: an event, or the end of a gap.
type item struct {
	room id.RoomID
	ev   *Event    // nil: what lies before it in the room is in the history only
	user id.UserID // of a membership that changed without an event
	deep int       // at the end of a gap: the depth of the deepest event in it
}

// room is a room as one server has it.
type room struct {
	id      id.RoomID
	in      bool // a user of this server is, or was, in it
	known   map[id.EventID]*Event
	hidden  map[id.EventID]bool
	dropped map[id.EventID]bool // state events that resolution forgot
	history []*Event            // by depth
	state   map[stateKey][]*Event
	members map[id.UserID][]change // memberships of this server's users over time
	outside []*Event               // came while no user of this server was in the room
	newest  []*Event               // of which no later one is known
	gap     bool                   // something came to the history alone since the last pushed event
	deepest int                    // of what did
	invites map[id.UserID]*Event   // by which this server knows of the room
}

type stateKey struct{ kind, key string }

type change struct {
	at int
	is string
}

// Add opens a server.
func (n *Net) Add(name string) *Server {
	s := &Server{
		Name: name, net: n, rooms: map[id.RoomID]*room{}, inbox: map[device][]toDevice{}, cached: map[id.UserID]*DeviceList{},
		txns: map[string]id.EventID{}, copies: map[string]bool{}, late: map[id.RoomID]map[string][]delivery{},
	}
	n.Servers = append(n.Servers, s)
	return s
}

// Server returns a server by its name, nil if there is none.
func (n *Net) Server(name string) *Server {
	for _, s := range n.Servers {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Split parts the servers: each is in the group that is given for it.
func (n *Net) Split(groups []int) {
	for i, s := range n.Servers {
		s.group = groups[i%len(groups)]
	}
}

// Heal mends all links. What a cut held up comes within seconds, most of it
// without being pushed.
func (n *Net) Heal() {
	for _, s := range n.Servers {
		s.group = 0
	}
	for _, s := range n.Servers {
		rooms := make([]id.RoomID, 0, len(s.late))
		for r := range s.late {
			rooms = append(rooms, r)
		}
		slices.Sort(rooms)
		for _, r := range rooms {
			for _, from := range n.Servers {
				held := s.late[r][from.Name]
				n.catchUp(held)
			}
		}
		clear(s.late)
	}
	for i := range n.queue {
		if n.queue[i].do != nil && n.queue[i].held {
			n.queue[i].held, n.queue[i].at = false, n.Now+n.latency()
		}
	}
	heap.Init(&n.queue)
}

// Parted tells whether any two servers do not reach each other.
func (n *Net) Parted() bool {
	for _, s := range n.Servers {
		if s.group != n.Servers[0].group {
			return true
		}
	}
	return false
}

// Side names the part of a cut network that a server is in. Servers of one side
// reach each other; while nothing is cut all have the same.
func (s *Server) Side() int { return s.group }

// Reaches tells whether two servers reach each other.
func (s *Server) Reaches(name string) bool {
	o := s.net.Server(name)
	return o != nil && o.group == s.group
}

// delivery is something under way to a server.
type delivery struct {
	at    time.Duration
	order int
	from  *Server
	to    *Server
	ev    *Event
	held  bool
	do    func() // in place of an event
}

// class is how an event comes to a server.
type class int

const (
	full  class = iota // to clients and to the application service
	muted              // to clients
	gap                // to the history; clients are told that something is missing
)

func (n *Net) latency() time.Duration {
	d := n.Links.Delay
	if n.Links.Jitter > 0 {
		d += time.Duration(n.rng.Int64N(int64(n.Links.Jitter)))
	}
	return d
}

func (n *Net) push(d delivery) {
	n.order++
	d.order = n.order
	heap.Push(&n.queue, d)
}

// after does something at a server once it can be reached from another.
func (n *Net) after(from, to *Server, do func()) {
	if from == to {
		do()
		return
	}
	n.push(delivery{at: n.Now + n.latency(), from: from, to: to, do: do})
}

// lateClass draws how an event comes that was held up.
func (n *Net) lateClass() class {
	switch k := n.rng.IntN(100); {
	case k < n.Links.GapPct:
		return gap
	case k < n.Links.GapPct+n.Links.MutePct:
		return muted
	}
	return full
}

// asked is how many missing events a server asks for by themselves; those before
// them come to the history alone.
const asked = 10

// catchUp brings what was held up between two servers: all of it, or, as after a
// longer cut, the newest event, which shows that the others are missing.
func (n *Net) catchUp(held []delivery) {
	if n.rng.IntN(2) == 0 && len(held) > 0 {
		// The newest that was sent, not what came last: links may have held it up.
		held = []delivery{slices.MaxFunc(held, func(a, b delivery) int { return compareEvents(a.ev, b.ev) })}
	}
	at := n.Now + n.latency()
	for i, d := range held {
		d.at = at + time.Duration(i)*time.Millisecond
		n.push(d)
	}
}

// Next returns when the next event comes to a server.
func (n *Net) Next() (time.Duration, bool) {
	if len(n.queue) == 0 || n.queue[0].held {
		return 0, false
	}
	return n.queue[0].at, true
}

// Advance lets time pass, and brings what is due.
func (n *Net) Advance(to time.Duration) {
	for len(n.queue) > 0 && !n.queue[0].held && n.queue[0].at <= to {
		d := heap.Pop(&n.queue).(delivery)
		n.Now = max(n.Now, d.at)
		switch {
		case d.to.group != d.from.group && d.do != nil:
			d.held = true
			n.push(d)
		case d.to.group != d.from.group:
			byServer := d.to.late[d.ev.Room]
			if byServer == nil {
				byServer = map[string][]delivery{}
				d.to.late[d.ev.Room] = byServer
			}
			byServer[d.from.Name] = append(byServer[d.from.Name], d)
		case d.do != nil:
			d.do()
		default:
			d.to.receive(d.ev)
		}
	}
	n.Now = max(n.Now, to)
}

type queue []delivery

func (q queue) Len() int      { return len(q) }
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q queue) Less(i, j int) bool {
	a, b := &q[i], &q[j]
	if a.held != b.held {
		return b.held
	}
	if a.at != b.at {
		return a.at < b.at
	}
	return a.order < b.order
}
func (q *queue) Push(x any) { *q = append(*q, x.(delivery)) }
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

func (s *Server) room(roomID id.RoomID) *room {
	r := s.rooms[roomID]
	if r == nil {
		r = &room{
			id: roomID, known: map[id.EventID]*Event{}, hidden: map[id.EventID]bool{}, dropped: map[id.EventID]bool{},
			state: map[stateKey][]*Event{}, members: map[id.UserID][]change{}, invites: map[id.UserID]*Event{},
		}
		s.rooms[roomID] = r
	}
	return r
}

// Send sends an event as a user of this server. Who sends it is not checked:
// a server can say anything in the names of its own users.
func (s *Server) Send(sender id.UserID, roomID id.RoomID, kind string, stateKey *string, content json.RawMessage) *Event {
	n, r := s.net, s.room(roomID)
	n.events++
	e := &Event{
		ID: id.EventID(fmt.Sprintf("$%d:%s", n.events, s.Name)), Room: roomID, Type: kind, Sender: sender, StateKey: stateKey,
		Time: n.Wall + n.Now.Milliseconds(), Content: content, prev: slices.Clone(r.newest), depth: 1,
	}
	for _, p := range e.prev {
		e.depth = max(e.depth, p.depth+1)
	}
	if stateKey != nil {
		e.before = r.current(kind, *stateKey)
	}
	if n.Sent != nil {
		n.Sent(s, e)
	}
	r.in = true
	s.take(r, e, full)
	invited := s.invited(e)
	for _, o := range n.Servers {
		if o == s {
			continue
		}
		at := n.Now + n.latency()
		if n.rng.IntN(100) < n.Links.LostPct {
			at += time.Minute
		}
		n.push(delivery{at: at, from: s, to: o, ev: e})
		if invited != "" && ServerOf(invited) == o.Name {
			n.after(s, o, func() { o.takeInvite(e, invited) })
		}
	}
	return e
}

// invited returns whom an event invites, "" for nobody.
func (s *Server) invited(e *Event) id.UserID {
	if e.Type == typeMember && e.StateKey != nil && membershipOf(e) == "invite" {
		return id.UserID(*e.StateKey)
	}
	return ""
}

// takeInvite lets a server that is not in the room know of an invite to it.
func (s *Server) takeInvite(e *Event, user id.UserID) {
	r := s.room(e.Room)
	r.invites[user] = e
	if r.in {
		return
	}
	s.stream = append(s.stream, item{room: r.id, ev: e, user: user})
	s.note(r, user)
	s.Changes++
	if user == s.Bot {
		s.pushes = append(s.pushes, e.Raw())
	}
}

// receive takes an event that came over federation, and before it those that it
// shows to be missing.
func (s *Server) receive(e *Event) {
	r := s.room(e.Room)
	switch {
	case r.has(e):
		return
	case !r.in:
		r.outside = append(r.outside, e)
		return
	}
	missing := r.missing(e)
	for i, m := range missing {
		c := s.net.lateClass()
		if len(missing)-i > asked {
			c = gap
		}
		s.admit(r, m, c)
	}
	s.admit(r, e, full)
}

// admit takes an event, or keeps it to itself.
func (s *Server) admit(r *room, e *Event, c class) {
	if s.net.Hide != nil && s.net.Hide(s, e) {
		r.hidden[e.ID] = true
		return
	}
	s.take(r, e, c)
}

func (r *room) has(e *Event) bool { return r.known[e.ID] != nil || r.hidden[e.ID] }

// missing returns what leads to an event and is not here, oldest first.
func (r *room) missing(e *Event) (out []*Event) {
	seen := map[*Event]bool{e: true}
	for list := slices.Clone(e.prev); len(list) > 0; {
		p := list[len(list)-1]
		list = list[:len(list)-1]
		if seen[p] || r.has(p) {
			continue
		}
		seen[p] = true
		out = append(out, p)
		list = append(list, p.prev...)
	}
	slices.SortFunc(out, compareEvents)
	return out
}

// take puts an event into the room.
func (s *Server) take(r *room, e *Event, c class) {
	r.put(e)
	s.Changes++
	switch {
	case c == gap: // the next event shows that something is missing
		r.gap, r.deepest = true, max(r.deepest, e.depth)
	case r.gap:
		s.stream = append(s.stream, item{room: r.id, deep: r.deepest}, item{room: r.id, ev: e})
		r.gap, r.deepest = false, 0
	default:
		s.stream = append(s.stream, item{room: r.id, ev: e})
	}
	if e.Type == typeMember && e.StateKey != nil {
		if user := id.UserID(*e.StateKey); c == gap && ServerOf(user) == s.Name {
			s.stream = append(s.stream, item{room: r.id, user: user}) // who is put out is told
		}
		s.note(r, id.UserID(*e.StateKey))
	}
	if c == full {
		s.pushes = append(s.pushes, e.Raw())
		if s.net.Links.TwicePct > 0 && s.net.rng.IntN(100) < s.net.Links.TwicePct {
			s.pushes = append(s.pushes, e.Raw())
		}
	}
}

// note keeps how the membership of a user changes along the stream.
func (s *Server) note(r *room, user id.UserID) {
	if ServerOf(user) != s.Name {
		return
	}
	is := r.membership(user)
	list := r.members[user]
	if len(list) > 0 && list[len(list)-1].is == is {
		return
	}
	r.members[user] = append(list, change{len(s.stream), is})
}

func compareEvents(a, b *Event) int {
	if a.depth != b.depth {
		return cmp.Compare(a.depth, b.depth)
	}
	return strings.Compare(string(a.ID), string(b.ID))
}

const typeMember = "m.room.member"

func membershipOf(e *Event) string {
	if e == nil {
		return ""
	}
	var content struct {
		Membership string `json:"membership"`
	}
	_ = json.Unmarshal(e.Content, &content)
	return content.Membership
}

// current returns the state event of a type and key: the same on all servers that
// hold the same events, in whatever order they came.
func (r *room) current(kind, key string) *Event {
	list := r.state[stateKey{kind, key}]
	var best *Event
	replaced := map[*Event]bool{}
	for _, e := range list {
		for b := e.before; b != nil && !replaced[b]; b = b.before {
			replaced[b] = true
		}
	}
	for _, e := range list {
		if !replaced[e] && !r.dropped[e.ID] && (best == nil || outranks(e, best)) {
			best = e
		}
	}
	if best != nil {
		return best
	}
	// What it replaced counts again if resolution forgot the newest.
	for _, e := range list {
		if !r.dropped[e.ID] && (best == nil || e.depth > best.depth) {
			best = e
		}
	}
	return best
}

// outranks picks among state events of which neither replaced the other: a ban,
// else a kick, else the later one. An invite gives way to everything else: where its user
// is in the room, the rules of authorization refuse it.
func outranks(a, b *Event) bool {
	if a.Type == typeMember {
		rank := func(e *Event) int {
			switch m := membershipOf(e); {
			case m == "ban":
				return 2
			case m == "leave" && string(e.Sender) != *e.StateKey:
				return 1
			case m == "invite":
				return -1
			}
			return 0
		}
		if x, y := rank(a), rank(b); x != y {
			return x > y
		}
	}
	if a.Time != b.Time {
		return a.Time > b.Time
	}
	return a.ID > b.ID
}

func (r *room) membership(user id.UserID) string {
	if e := r.current(typeMember, string(user)); e != nil {
		return membershipOf(e)
	}
	return membershipOf(r.invites[user])
}

// Membership returns a user's membership as this server sees it.
func (s *Server) Membership(roomID id.RoomID, user id.UserID) string {
	return s.room(roomID).membership(user)
}

// In tells whether this server takes part in a room.
func (s *Server) In(roomID id.RoomID) bool { return s.room(roomID).in }

// Members returns who is, was or is invited in a room, in order.
func (s *Server) Members(roomID id.RoomID) (out []id.UserID) {
	for key := range s.room(roomID).state {
		if key.kind == typeMember {
			out = append(out, id.UserID(key.key))
		}
	}
	slices.Sort(out)
	return out
}

// State returns the current state of a room.
func (s *Server) State(roomID id.RoomID) (out []*Event) {
	r := s.room(roomID)
	for key := range r.state {
		if e := r.current(key.kind, key.key); e != nil {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, compareEvents)
	return out
}

// Forget lets state resolution at this server forget a user's newest membership.
// No event tells of that: clients learn of it by the state of a /sync, or, where
// they are not told, not at all.
func (s *Server) Forget(roomID id.RoomID, user id.UserID, told bool) bool {
	r := s.room(roomID)
	e := r.current(typeMember, string(user))
	kept := 0
	for _, old := range r.state[stateKey{typeMember, string(user)}] {
		if !r.dropped[old.ID] {
			kept++
		}
	}
	if e == nil || kept < 2 {
		return false
	}
	r.dropped[e.ID] = true
	if !told {
		return true
	}
	s.stream = append(s.stream, item{room: roomID, user: user})
	s.note(r, user)
	s.Changes++
	return true
}

// JoinRoom makes this server take part in a room: it gets the room from another
// server that it reaches and that is in it.
func (s *Server) JoinRoom(roomID id.RoomID, user id.UserID) error {
	r := s.room(roomID)
	if !r.in {
		var via *Server
		for _, o := range s.net.Servers {
			if o != s && o.group == s.group && o.room(roomID).in {
				via = o
				break
			}
		}
		if via == nil {
			return ErrUnreachable
		}
		from := via.room(roomID)
		m := from.membership(user)
		if m == "" {
			m = r.membership(user)
		}
		if m != "invite" && m != "join" && !from.public() {
			return ErrRefused
		}
		r.in = true
		for _, e := range from.history {
			s.takeOld(r, e)
		}
		if e := r.invites[user]; e != nil && r.known[e.ID] == nil {
			s.takeOld(r, e)
		}
		late := r.outside
		r.outside = nil
		for _, e := range late {
			s.receive(e)
		}
	}
	switch r.membership(user) {
	case "invite", "join":
	default:
		if !r.public() {
			return ErrRefused
		}
	}
	return nil
}

// put adds an event to the room.
func (r *room) put(e *Event) {
	r.known[e.ID] = e
	at, _ := slices.BinarySearchFunc(r.history, e, compareEvents)
	r.history = slices.Insert(r.history, at, e)
	if e.StateKey != nil {
		key := stateKey{e.Type, *e.StateKey}
		r.state[key] = append(r.state[key], e)
	}
	r.newest = slices.DeleteFunc(r.newest, func(p *Event) bool { return slices.Contains(e.prev, p) })
	if i := slices.IndexFunc(r.history[at+1:], func(later *Event) bool { return slices.Contains(later.prev, e) }); i < 0 {
		r.newest = append(r.newest, e)
	}
}

// takeOld takes an event from before this server was in the room.
func (s *Server) takeOld(r *room, e *Event) {
	r.put(e)
	if e.Type == typeMember && e.StateKey != nil {
		s.note(r, id.UserID(*e.StateKey))
	}
}

func (r *room) public() bool {
	e := r.current("m.room.join_rules", "")
	return e != nil && strings.Contains(string(e.Content), `"public"`)
}

// Knows returns an event that this server shows, nil if it does not.
func (s *Server) Knows(roomID id.RoomID, event id.EventID) *Event { return s.room(roomID).known[event] }

// All returns what this server shows of a room, oldest first.
func (s *Server) All(roomID id.RoomID) []*Event { return s.room(roomID).history }

// Page returns up to limit events of a room before a place in its history, newest
// first, of those that a user may see; "" is the end.
func (s *Server) Page(roomID id.RoomID, user id.UserID, from string, limit int) (out []*Event, next string) {
	r := s.room(roomID)
	at := len(r.history)
	if from != "" {
		var mark Event
		if n, _ := fmt.Sscanf(from, "h%d_%s", &mark.depth, &mark.ID); n > 0 {
			at, _ = slices.BinarySearchFunc(r.history, &mark, compareEvents)
		}
	}
	since := r.visibleSince(user)
	for at > 0 && len(out) < limit {
		at--
		if r.history[at].depth < since {
			return out, ""
		}
		out = append(out, r.history[at])
	}
	if at > 0 {
		next = place(r.history[at])
	}
	return out, next
}

// place names the place before an event in a room's history.
func place(e *Event) string { return fmt.Sprintf("h%d_%s", e.depth, e.ID) }

// visibleSince returns the depth of the first event that a user may see.
func (r *room) visibleSince(user id.UserID) int {
	visibility := "shared"
	if e := r.current("m.room.history_visibility", ""); e != nil {
		var content struct {
			Visibility string `json:"history_visibility"`
		}
		_ = json.Unmarshal(e.Content, &content)
		visibility = content.Visibility
	}
	if visibility == "shared" || visibility == "world_readable" {
		return 0
	}
	since := 0
	for _, e := range r.state[stateKey{typeMember, string(user)}] {
		switch m := membershipOf(e); {
		case m == "invite" && visibility == "invited" || m == "join":
			if since == 0 || e.depth < since {
				since = e.depth
			}
		}
	}
	return since
}

// Visible tells whether a user may see an event.
func (s *Server) Visible(e *Event, user id.UserID) bool {
	return e.depth >= s.room(e.Room).visibleSince(user)
}
