package client

import (
	"context"
	"errors"
	"fmt"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// EraOpened reports that the room goes on in a new era: its list of modules was
// replaced without the word of the old one.
type EraOpened struct {
	Room    id.RoomID
	Era     uint64
	By      id.UserID
	ByHeirs bool
	Signers []id.UserID // of heirs: all who signed
	Servers []string    // whose modules order the commits now
	// Overrides are the commits that were final in the era before and are not in
	// this one's history.
	Overrides []Overridden
}

// Overridden is a commit that was final and does not count any more.
type Overridden struct {
	Epoch uint64
	Ref   federation.Ref
	By    id.UserID
}

func (*EraOpened) update() {}

// OpenEra lets an admin replace a room's list of modules without the word of the
// present one: for rooms of whose modules a majority is lost for good. servers
// are those whose modules go on, in order. What the old modules made final and
// this device does not know of is overridden; members are told. While a majority
// lives SetSequencers does the same and overrides nothing.
//
// An heir may do so once nothing became final for the policy's HeirsWait although
// something waits ([ErrHeirsWait] before), together with heirs of other servers:
// more than half of the servers that have heirs. Their clients consent by
// themselves when the same holds on their clocks. A room that does not stand
// still has nothing to inherit.
func (c *Client) OpenEra(ctx context.Context, roomID id.RoomID, servers ...string) error {
	if len(servers) == 0 {
		return fmt.Errorf("%w: a new era needs the name of one server at least whose module goes on", ErrNotAllowed)
	}
	heir := false
	_, e, err := c.lockForEra(ctx, roomID)
	if err == nil {
		var policy *rooms.Policy
		if policy, err = e.policy(); err == nil {
			heir = !policy.IsAdmin(c.UserID()) && policy.IsHeir(c.UserID())
		}
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if heir {
		return c.openHeirsEra(ctx, roomID, servers)
	}
	if err := c.wantPolicy(ctx, roomID, true, func(r *room, p *rooms.Policy) (err error) {
		p.Sequencers, err = r.listOf(servers)
		return err
	}); err != nil {
		return err
	}
	return c.await(ctx, roomID, c.eraOpen)
}

// standsAt returns what memberOf does and, where the head is a commit that this device
// cannot read, the epoch below what is in doubt: an era is opened there. The caller
// holds the lock.
func (c *Client) standsAt(roomID id.RoomID) (*room, *epoch, error) {
	r, e, err := c.memberOf(roomID)
	if errors.Is(err, ErrNoGroup) {
		if at := c.rooms[roomID]; at.rec.Phase == phaseMember && at.machine != nil {
			if e := at.epochs[at.machine.SafeHead()]; e != nil {
				return at, e, nil
			}
		}
	}
	return r, e, err
}

// lockForEra returns what standsAt does and waits where lockMember does, with the lock
// held, also where it returns an error. The modules that would settle what is in doubt
// may be those that are lost.
func (c *Client) lockForEra(ctx context.Context, roomID id.RoomID) (*room, *epoch, error) {
	c.mu.Lock()
	if r, e, err := c.standsAt(roomID); err == nil {
		return r, e, nil
	}
	c.mu.Unlock()
	return c.lockMember(ctx, roomID)
}

// eraOpen returns nil once the era that our user asked for is open.
func (c *Client) eraOpen(r *room) error {
	switch {
	case r.policyError != nil:
		return r.policyError
	case r.head() == nil:
		return ErrNoGroup
	case r.rec.NewEra:
		return fmt.Errorf("client: the new era is not open yet: a member of another user has to apply its first commit")
	}
	return nil
}

// tellEra reports a new era, if the head moved into one.
func (c *Client) tellEra(r *room, was uint64, final federation.Ref) {
	number, base := r.machine.EraOf()
	if number <= was {
		return
	}
	opened := &EraOpened{Room: r.id, Era: number}
	if known, ok := r.machine.Known(base); ok {
		opened.By = id.UserID(known.AuthorUser)
		if era := known.Era; era != nil && era.ByHeirs {
			opened.ByHeirs = true
			for _, user := range era.Signers {
				opened.Signers = append(opened.Signers, id.UserID(user))
			}
		}
		if known.Policy != nil {
			for _, s := range known.Policy.Sequencers {
				opened.Servers = append(opened.Servers, s.Server)
			}
		}
	}
	if fork, ok := r.machine.Fork(final, base); ok {
		for _, ref := range r.machine.Path(fork, final) {
			if known, ok := r.machine.Known(ref); ok && known.Era == nil {
				opened.Overrides = append(opened.Overrides, Overridden{Epoch: known.Epoch, Ref: ref, By: id.UserID(known.AuthorUser)})
			}
		}
	}
	if r.rec.NewEra { // somebody else's came first
		r.rec.NewEra, r.rec.Policy, r.rec.PolicyOn = false, nil, nil
	}
	r.rec.HeirsEra, r.rec.EraProposals = nil, nil
	c.log.Warn().Stringer("room_id", r.id).Uint64("era", number).Int("overrides", len(opened.Overrides)).Msg("The room goes on in a new era")
	c.tell(opened)
}
