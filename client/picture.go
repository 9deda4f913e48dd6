package client

import (
	"context"
	"fmt"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/federation/picture"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// pictureMessages is how many of the newest messages are looked at for how far
// their senders have come.
const pictureMessages = 500

// EpochPicture draws the epochs of a room as this device sees them: who made and
// accepted what, forks and why one side won, and how far the members' devices are
// known to have come. That a device has applied an epoch is known from its commits
// and statements, and from what it sent there.
func (c *Client) EpochPicture(ctx context.Context, roomID id.RoomID) (*picture.Picture, error) {
	seen, err := c.sentIn(ctx, roomID)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	switch {
	case r == nil:
		return nil, fmt.Errorf("%w (%s)", ErrNoRoom, roomID)
	case !r.isMLS():
		return nil, fmt.Errorf("%w (%s)", ErrNotMLS, roomID)
	case r.machine == nil && r.rec.Phase == phaseRemoved:
		return nil, r.outError()
	case r.machine == nil:
		return nil, fmt.Errorf("%w (%s)", ErrNoGroup, roomID)
	}
	o := picture.Options{
		Title: r.state.name(), Source: fmt.Sprintf("as %s (%s) sees it", c.UserID(), c.DeviceID()), Devices: map[uint32]string{},
		Own: func(uint32) bool { return false }, Liars: c.liarsOf(r),
	}
	if e := r.head(); e != nil {
		own := uint32(e.group.OwnLeafIndex())
		o.Own = func(leaf uint32) bool { return leaf == own }
		for _, leaf := range rooms.GroupLeaves(e.group) {
			o.Devices[uint32(leaf.Index)] = string(leaf.Cred.Device)
		}
	}
	return picture.Of(r.machine.Survey(append(seen, r.seen()...)...), o), nil
}

// sentIn tells in which epochs the devices of a room sent its newest messages.
func (c *Client) sentIn(ctx context.Context, roomID id.RoomID) (seen []federation.Seen, err error) {
	items, err := c.st.Timeline(ctx, roomID, 0, pictureMessages)
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		msg, err := messageOf(item)
		if err != nil {
			return nil, err
		}
		seen = append(seen, federation.Seen{Leaf: msg.Leaf, Ref: msg.Ref})
	}
	return seen, nil
}

// seen tells in which epochs devices were heard since the start, and which this one
// holds.
func (r *room) seen() (out []federation.Seen) {
	for key := range r.spoke { // delivery receipts among them, which are not kept
		out = append(out, federation.Seen{Leaf: key.leaf, Ref: key.ref})
	}
	if r.rec.Phase == phaseMember {
		for ref, e := range r.epochs {
			out = append(out, federation.Seen{Leaf: uint32(e.group.OwnLeafIndex()), Ref: ref})
		}
	}
	return out
}

// liarsOf returns the modules that were caught in a room, the listed ones and those
// present by name.
func (c *Client) liarsOf(r *room) []federation.Liar {
	known := r.modules()
	if policy, ok := r.machine.PolicyAt(r.machine.Head()); ok {
		known = append(known, policy.Sequencers...)
	}
	var out []federation.Liar
	told := make(map[string]bool)
	for _, s := range known {
		key := rooms.EncodeBase64(s.ReceiptKey)
		if kind := r.rec.Liars[key]; kind != "" && !told[key] {
			told[key] = true
			out = append(out, federation.Liar{Signer: s, Kind: federation.EvidenceKind(kind)})
		}
	}
	return out
}
