package account

import (
	"context"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
)

// maxReasons bounds the events of which it is known why they cannot be read.
const maxReasons = 4096

type place struct {
	room  id.RoomID
	event id.EventID
}

// reasons says why events cannot be read. Of the bounded number the ones noted
// last are kept.
type reasons struct {
	why   map[place]*client.Undecryptable
	order []place
}

func newReasons() reasons { return reasons{why: map[place]*client.Undecryptable{}} }

func (r *reasons) note(u *client.Undecryptable) {
	p := place{u.Room, u.EventID}
	if r.why[p] == nil {
		r.order = append(r.order, p)
	}
	r.why[p] = u
	for len(r.order) > maxReasons {
		delete(r.why, r.order[0])
		r.order = r.order[1:]
	}
}

// handle takes the client's updates.
func (a *Account) handle(_ context.Context, u client.Update) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if u, ok := u.(*client.Undecryptable); ok {
		a.reasons.note(u)
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

// Changed returns a channel that is closed with the next update.
func (a *Account) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}
