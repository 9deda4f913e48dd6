package appservice

import (
	"sync"
	"time"

	"maunium.net/go/mautrix/id"
)

// After a cut between two servers a homeserver may push no more than the newest
// event of a room, whatever its type, and put the others into the room's history
// alone. So when a server speaks in a room after it was silent there for a while,
// the room is compared with its history.

const (
	stirSilence = time.Minute // shorter silences mean nothing
	stirTracked = 100_000     // pairs of room and server; above that, the count begins anew
	stirRooms   = 10_000      // rooms to be compared at a time
)

// stir notices servers that speak again.
type stir struct {
	mu    sync.Mutex
	heard map[stirKey]time.Duration
	rooms map[id.RoomID]struct{}
}

type stirKey struct {
	room   id.RoomID
	server string
}

// note hears an event of a room the module is in and reports whether the room is
// to be compared with its history.
func (s *stir) note(room id.RoomID, sender id.UserID, own string, now time.Duration) bool {
	_, server, err := sender.Parse()
	if err != nil || server == own {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := stirKey{room, server}
	last, known := s.heard[key]
	if s.heard == nil || !known && len(s.heard) >= stirTracked {
		s.heard = make(map[stirKey]time.Duration)
	}
	s.heard[key] = now
	if !known || now-last < stirSilence || len(s.rooms) >= stirRooms {
		return false
	}
	if s.rooms == nil {
		s.rooms = make(map[id.RoomID]struct{})
	}
	s.rooms[room] = struct{}{}
	return true
}

// add has a room compared.
func (s *stir) add(room id.RoomID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rooms == nil {
		s.rooms = make(map[id.RoomID]struct{})
	}
	if len(s.rooms) < stirRooms {
		s.rooms[room] = struct{}{}
	}
}

// take returns the rooms to be compared, and forgets them.
func (s *stir) take() (out []id.RoomID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for room := range s.rooms {
		out = append(out, room)
	}
	s.rooms = nil
	return out
}
