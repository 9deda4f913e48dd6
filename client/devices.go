package client

import (
	"context"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
)

// A notice that a user's devices changed comes once, and reading them takes time:
// a list that was read before the notice must not be taken for the answer to it.

// deviceNotices counts the notices.
type deviceNotices struct {
	last  map[id.UserID]uint64 // number of the last one about a user
	late  map[id.UserID]int    // readings in sequence that were overtaken by one
	count uint64
	floor uint64 // those up to this one are forgotten
}

const (
	maxNotices   = 10_000
	maxOvertaken = 3 // readings; then the list counts as stale, and is read again in a minute
)

// deviceLists is what was read of the devices of users, after a number of notices.
type deviceLists struct {
	of map[id.UserID]*identity.UserDevices
	at uint64
}

// noteDevices counts a notice. The caller holds c.mu.
func (c *Client) noteDevices(user id.UserID) {
	n := &c.notices
	n.count++
	if n.last == nil || len(n.last) >= maxNotices {
		n.last, n.late, n.floor = map[id.UserID]uint64{}, map[id.UserID]int{}, n.count
	}
	n.last[user] = n.count
}

// readDevices reads device lists, without the lock.
func (c *Client) readDevices(ctx context.Context, users []id.UserID) (*deviceLists, error) {
	c.mu.Lock()
	at := c.notices.count
	c.mu.Unlock()
	lists, err := c.ident.DevicesOf(ctx, users)
	if err != nil {
		return nil, err
	}
	return &deviceLists{of: lists, at: at}, nil
}

// keepDevices takes in lists, and has the room, if there is one, count on those of
// which no notice came since they were asked for. Of one that changes each time it
// is read it takes the newest for a stale one: a server that says without end that
// there is news must not keep the room from going on. The caller holds c.mu.
func (c *Client) keepDevices(r *room, lists *deviceLists) {
	for user, list := range lists.of {
		if max(c.notices.last[user], c.notices.floor) > lists.at {
			if c.notices.late[user]++; c.notices.late[user] < maxOvertaken {
				if c.devs[user] == nil {
					c.devs[user] = list
				}
				continue
			}
			stale := *list
			stale.Stale = true
			list = &stale
		}
		delete(c.notices.late, user)
		c.devs[user] = list
		if r != nil {
			r.devices[user] = true
		}
	}
}
