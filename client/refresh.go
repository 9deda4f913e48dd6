package client

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/mls"
)

// When a device renews its keys by itself (recovery from compromise): if it has sent something
// since its last path, refreshAfter and up to refreshSpread after that, or after so many messages;
// and once it has joined with a key package of last resort. Those who joined together would all
// be due at once, and a commit is large while much of the tree has no keys: so it waits as long as
// any committer does, and refreshPause after another one in the room.
const (
	refreshAfter    = 7 * 24 * time.Hour
	refreshSpread   = 24 * time.Hour
	refreshMessages = 10_000
	refreshPause    = 10 * time.Second
)

// refreshTime returns when a leaf whose last path is from since renews its keys.
func refreshTime(group []byte, leaf mls.LeafIndex, since time.Time) time.Time {
	h := sha256.Sum256(binary.BigEndian.AppendUint32(append([]byte("refresh"), group...), uint32(leaf)))
	return since.Add(refreshAfter + time.Duration(binary.BigEndian.Uint64(h[:])%uint64(refreshSpread)))
}

// refreshDue tells whether a commit with a fresh path is due on schedule.
func (c *Client) refreshDue(r *room, e *epoch) bool {
	if r.rec.LastPath == 0 {
		r.rec.LastPath = c.now().Unix()
	}
	return r.rec.Renew || r.rec.Sent > refreshMessages ||
		r.rec.Sent > 0 && !c.now().Before(refreshTime(e.group.GroupID(), e.group.OwnLeafIndex(), time.Unix(r.rec.LastPath, 0)))
}

// noteRefresh remembers when a commit that only brings fresh keys, or as little else, came
// onto the head.
func (c *Client) noteRefresh(r *room, e *epoch) {
	if known, ok := r.machine.Known(e.ref); ok && !known.External && known.Founding == nil && len(known.Added)+len(known.Removed) == 0 {
		r.refreshedAt = c.mono()
	}
}

// refreshFrom returns from when on the room bears a further scheduled commit.
func (r *room) refreshFrom() time.Duration {
	if r.refreshedAt == 0 {
		return 0
	}
	return r.refreshedAt + refreshPause
}

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
