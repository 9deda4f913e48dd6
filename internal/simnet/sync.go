package simnet

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sort"

	"maunium.net/go/mautrix/id"
)

// Sync is what a device gets by one /sync.
type Sync struct {
	Next     string
	Join     map[id.RoomID]*Joined
	Leave    map[id.RoomID][]*Event
	Invite   map[id.RoomID][]*Event
	ToDevice []*Event
	Changed  []id.UserID // whose devices are to be looked at again
}

// Joined is the part of a Sync that concerns one room.
type Joined struct {
	State     []*Event // beside the timeline
	Timeline  []*Event
	Limited   bool
	PrevBatch string
}

// at returns a user's membership at a place of the stream.
func (r *room) at(user id.UserID, place int) string {
	is := ""
	for _, c := range r.members[user] {
		if c.at > place {
			break
		}
		is = c.is
	}
	return is
}

// moved tells whether a user's membership changed since a place of the stream: who
// came in and was put out in between is told, too.
func (r *room) moved(user id.UserID, since int) bool {
	list := r.members[user]
	return len(list) > 0 && list[len(list)-1].at > since
}

// Sync answers a /sync of a device. The same token gives the same events again.
func (s *Server) Sync(user id.UserID, dev id.DeviceID, since string, limit int) *Sync {
	var from, fromDevice, fromUsers int
	if since != "" {
		_, _ = fmt.Sscanf(since, "s%d_%d_%d", &from, &fromDevice, &fromUsers)
	}
	queue := s.inbox[device{user, dev}]
	out := &Sync{
		Next: fmt.Sprintf("s%d_%d_%d", len(s.stream), len(queue), len(s.changed)),
		Join: map[id.RoomID]*Joined{}, Leave: map[id.RoomID][]*Event{}, Invite: map[id.RoomID][]*Event{},
	}
	for _, m := range queue[min(fromDevice, len(queue)):] {
		out.ToDevice = append(out.ToDevice, m.ev)
	}
	changed := map[id.UserID]bool{}
	for _, c := range s.changed[min(fromUsers, len(s.changed)):] {
		changed[c.user] = true
	}
	out.Changed = slices.Sorted(maps.Keys(changed))
	byRoom := map[id.RoomID][]item{}
	for _, it := range s.stream[min(from, len(s.stream)):] {
		byRoom[it.room] = append(byRoom[it.room], it)
	}
	for roomID, items := range byRoom {
		r := s.room(roomID)
		is, was := r.at(user, len(s.stream)), r.at(user, from)
		switch {
		case is == "join":
			if j := s.joined(r, user, was, items, limit); j != nil {
				out.Join[roomID] = j
			}
		case is == "invite" && was != "invite":
			out.Invite[roomID] = s.stripped(r, user)
		case (is == "leave" || is == "ban") && (was == "join" || was == "invite" || r.moved(user, from)):
			j := s.joined(r, user, was, items, limit)
			for i, e := range j.Timeline { // up to the end
				if e.Type == typeMember && e.StateKey != nil && *e.StateKey == string(user) && membershipOf(e) != "join" && membershipOf(e) != "invite" {
					j.Timeline = j.Timeline[:i+1]
					break
				}
			}
			out.Leave[roomID] = append(j.State, j.Timeline...)
		}
	}
	return out
}

// joined collects what is new in a room for a user who is in it.
func (s *Server) joined(r *room, user id.UserID, was string, items []item, limit int) *Joined {
	j := &Joined{}
	fresh := was != "join"
	visible := r.visibleSince(user)
	reset := map[id.UserID]bool{}
	deepest := 0 // of what is left out
	leaveOut := func(list []*Event) {
		for _, e := range list {
			deepest = max(deepest, e.depth)
		}
	}
	for _, it := range items {
		switch {
		case it.ev == nil && it.user == "": // what came before is in the history only
			leaveOut(j.Timeline)
			deepest = max(deepest, it.deep)
			j.Limited, j.Timeline = true, nil
		case it.ev == nil:
			reset[it.user] = true
		case r.known[it.ev.ID] != nil && it.ev.depth >= visible:
			j.Timeline = append(j.Timeline, it.ev)
		}
	}
	if n := len(j.Timeline) - limit; n > 0 {
		leaveOut(j.Timeline[:n])
		j.Limited, j.Timeline = true, j.Timeline[n:]
	}
	if fresh {
		// A room that is new: its state, and the newest events.
		j.State = s.State(r.id)
		newest := r.history[sort.Search(len(r.history), func(i int) bool { return r.history[i].depth >= visible }):]
		if len(newest) > limit {
			newest = newest[len(newest)-limit:]
		}
		if len(newest) > len(j.Timeline) {
			j.Timeline = slices.Clone(newest)
		}
		j.Limited = true
	} else if j.Limited {
		j.State = s.State(r.id)
	}
	if len(j.Timeline) > 0 {
		// Streams have the order of arrival, the history that of depth: paging begins
		// above all that is left out.
		first := *slices.MinFunc(j.Timeline, compareEvents)
		if deepest >= first.depth {
			first = Event{depth: deepest + 1}
		}
		j.PrevBatch = place(&first)
	}
	for _, who := range slices.Sorted(maps.Keys(reset)) {
		if e := r.current(typeMember, string(who)); e != nil && !fresh && !j.Limited {
			j.State = append(j.State, e)
		}
	}
	if len(j.Timeline) == 0 && len(j.State) == 0 && !j.Limited {
		return nil
	}
	return j
}

// stripped is what an invited user sees of a room.
func (s *Server) stripped(r *room, user id.UserID) (out []*Event) {
	if e := r.current(typeMember, string(user)); e != nil {
		out = append(out, e)
	} else if e := r.invites[user]; e != nil {
		out = append(out, e)
	}
	// The inviting server sends some of the room's state along.
	for _, o := range s.net.Servers {
		if or := o.room(r.id); or.in {
			if e := or.current("m.room.encryption", ""); e != nil {
				out = append(out, e)
			}
			if e := or.current("m.room.create", ""); e != nil {
				out = append(out, e)
			}
			break
		}
	}
	return out
}

// Pushes takes what waits for the application service.
func (s *Server) Pushes() []json.RawMessage {
	out := s.pushes
	s.pushes = nil
	return out
}

// Unpush puts back what the application service did not answer for.
func (s *Server) Unpush(events []json.RawMessage) {
	s.pushes = append(slices.Clone(events), s.pushes...)
}

// SendToDevice sends a message to a device. It comes in the order of its sender's
// messages, however long the way was cut.
func (s *Server) SendToDevice(from id.UserID, kind string, to id.UserID, dev id.DeviceID, content json.RawMessage) {
	o := s.net.Server(ServerOf(to))
	if o == nil {
		return
	}
	s.net.after(s, o, func() {
		key := device{to, dev}
		o.inbox[key] = append(o.inbox[key], toDevice{len(o.inbox[key]), &Event{Type: kind, Sender: from, Content: content}})
		o.Changes++
	})
}

// Once remembers what a transaction of a user led to: it is done at most once.
func (s *Server) Once(user id.UserID, txn string, do func() id.EventID) id.EventID {
	key := string(user) + " " + txn
	if known, ok := s.txns[key]; ok {
		return known
	}
	s.txns[key] = do()
	return s.txns[key]
}

// Upload keeps media and returns its address.
func (s *Server) Upload(data []byte) string {
	mxc := fmt.Sprintf("mxc://%s/m%d", s.Name, len(s.net.media))
	s.net.media[mxc] = slices.Clone(data)
	s.copies[mxc] = true
	return mxc
}

// Download returns media of any server.
func (s *Server) Download(mxc string, limit int64) ([]byte, error) {
	data, ok := s.net.media[mxc]
	switch {
	case !ok || int64(len(data)) > limit:
		return nil, ErrRefused
	case s.copies[mxc]:
		return slices.Clone(data), nil
	}
	var origin string
	for i := len("mxc://"); i < len(mxc) && mxc[i] != '/'; i++ {
		origin += string(mxc[i])
	}
	if !s.Reaches(origin) {
		return nil, ErrUnreachable
	}
	s.copies[mxc] = true
	return slices.Clone(data), nil
}

// Media returns everything that was ever uploaded.
func (n *Net) Media() map[string][]byte { return n.media }
