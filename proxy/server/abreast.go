package server

import (
	"context"
	"slices"
	"sync"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// abreast remembers how far the MLS device has come with what clients were shown. Where it has come to the end of a room,
// what a client's next answer brings of that room is the next for the device, too: it opens messages there and then,
// instead of waiting until its own /sync brings them. What is not remembered, or not known, is waited for.
type abreast struct {
	mu    sync.Mutex
	all   map[[32]byte]place
	order [][32]byte
}

// place is what is known of a session: with the answer to a request from there on, the device is to the end of these rooms.
type place struct {
	from  string
	rooms map[id.RoomID]bool
}

func newAbreast() *abreast { return &abreast{all: map[[32]byte]place{}} }

// take returns the rooms of which the device has come to where a session's request begins. It does so once: another
// request from the same place knows of none.
func (a *abreast) take(tag [32]byte, from string) map[id.RoomID]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, known := a.all[tag]
	if !known || p.from != from || p.rooms == nil {
		return map[id.RoomID]bool{}
	}
	a.all[tag] = place{}
	return p.rooms
}

// put keeps the rooms of which the device has come to where a session's next request begins.
func (a *abreast) put(tag [32]byte, from string, rooms map[id.RoomID]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.all[tag]; !known {
		a.order = append(a.order, tag)
	}
	a.all[tag] = place{from: from, rooms: rooms}
	for len(a.order) > maxOwners {
		delete(a.all, a.order[0])
		a.order = slices.Delete(a.order, 0, 1)
	}
}

// open lets the MLS device open what an answer brings: at once in the given rooms, of which it has come to where the
// answer begins, else once its own /sync has brought it, for which it is given a moment. Then rooms are those of which it
// has come to where the answer ends.
func (v *view) open(ctx context.Context, windows []*rewrite.Window, rooms map[id.RoomID]bool) {
	for _, w := range windows {
		if w.Joined && !w.Limited && rooms[w.Room] {
			v.sess.account.TakeAhead(ctx, w.Room, w.Came())
		}
	}
	ctx, done := context.WithTimeout(ctx, openWait)
	defer done()
	for _, w := range windows {
		some, came := v.await(ctx, w.Room, w.Came())
		switch {
		case came:
			rooms[w.Room] = true
		case some || w.Limited || len(w.Came()) > 0: // the device has not taken in what came
			delete(rooms, w.Room)
		}
	}
}
