package client

import (
	"context"
	"fmt"

	"maunium.net/go/mautrix/id"
)

// Refresh commits in a room with a fresh path: what was copied from this device
// before opens nothing that is sent afterwards. Clients do so by themselves now and
// then; this is for somebody who does not want to wait. It returns once the commit
// is accepted.
func (c *Client) Refresh(ctx context.Context, roomID id.RoomID) error {
	for wanted := false; !wanted; {
		// A commit under way may be older than what was copied.
		if err := c.await(ctx, roomID, func(r *room) error {
			if r.pending != nil {
				return fmt.Errorf("client: a commit in %s waits for the module to accept it", r.id)
			}
			return nil
		}); err != nil {
			return err
		}
		var err error
		if wanted, err = c.wantRefresh(ctx, roomID); err != nil {
			return err
		}
	}
	return c.await(ctx, roomID, func(r *room) error {
		if r.rec.Refresh {
			return fmt.Errorf("client: the commit with fresh keys in %s is not accepted yet", r.id)
		}
		return nil
	})
}

// wantRefresh notes that a commit with a fresh path is due, unless another commit
// is under way.
func (c *Client) wantRefresh(ctx context.Context, roomID id.RoomID) (bool, error) {
	r, _, err := c.lockMember(ctx, roomID)
	defer c.mu.Unlock()
	if err != nil || r.pending != nil {
		return false, err
	}
	r.rec.Refresh = true
	if err := c.commitBatch(ctx, r, &batch{}); err != nil {
		return false, err
	}
	c.poke()
	return true, nil
}
