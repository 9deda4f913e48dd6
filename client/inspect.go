package client

import (
	"context"
	"maps"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
)

// woken tells the simulator whether engine and outbox were asked to look again.
func (c *Client) woken() (engine, outbox bool) {
	select {
	case <-c.wake:
		engine = true
	default:
	}
	select {
	case <-c.outWake:
		outbox = true
	default:
	}
	return engine, outbox
}

// idled notes a /sync that ended at a time without anything new.
func (c *Client) idled(ctx context.Context, at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clocks.read(c.now().UnixMilli(), c.mono())
	stored, err := c.syncTime(at.UnixMilli())
	if err != nil {
		return err
	}
	if err := c.st.PutKV(ctx, syncTimeKey, stored); err != nil {
		return err
	}
	c.syncAt = at.UnixMilli()
	return nil
}

// inspect shows the simulator what this device holds of a room.
func (c *Client) inspect(roomID id.RoomID) *probe.Held {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil {
		return nil
	}
	held := &probe.Held{
		Phase: string(r.rec.Phase), Machine: r.machine, Epochs: make(map[federation.Ref]*mls.Group, len(r.epochs)),
		Join: federation.Ref(r.rec.JoinRef), Unconfirmed: r.rec.Unconfirmed, Members: maps.Clone(r.state.view.Members),
	}
	for _, why := range r.blocked {
		held.Blocked = append(held.Blocked, why.Text)
	}
	for ref, e := range r.epochs {
		held.Epochs[ref] = e.group
	}
	for ref, e := range r.behind {
		held.Epochs[ref] = e.group
	}
	if r.pending != nil {
		held.Pending = federation.Ref(r.pending.Ref)
	}
	for _, row := range c.roomRows(roomID) {
		if row.data.Plain != nil && row.item.State != stateSent {
			held.Queued++
		}
	}
	return held
}
