package client

import (
	"cmp"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// Anybody whom the homeserver lets can invite a user to any number of rooms, and fill each
// invite. Of a room that nothing but an invite speaks of, what is kept is bounded; it goes
// once the invite was declined or withdrawn, and where there are too many.

const (
	// maxInvites bounds the rooms that are kept for an invite's sake. One that was
	// forgotten can be joined all the same.
	maxInvites = 256
	// maxInviteState bounds the state, in bytes, that is kept of one invite: a few events.
	maxInviteState = 64 << 10
)

// ruleInvites is the rule of invites that were forgotten because there were too many.
const ruleInvites = "client/invites-over-limit"

func (c *Client) fileInvite(roomID id.RoomID, stripped []*Event) *room {
	r := c.room(roomID)
	invited := &Invited{Room: roomID}
	alone := c.onlyInvited(r) || r.strange()
	if alone {
		stripped = boundInvite(stripped, c.own)
		r.state.replace(nil) // what other invites showed
		r.state.lose()
	}
	for _, evt := range stripped {
		if evt.StateKey == nil {
			continue
		}
		r.state.set(evt)
		if c.own(evt) {
			invited.By = evt.Sender
			r.rec.Inviter = evt.Sender
			c.noteAdmission(r, evt)
		}
	}
	invited.MLS = r.state.isMLS()
	_, invited.Admits = r.rec.Admissions[c.UserID()]
	if r.rec.Membership != "invite" {
		if alone {
			r.rec.InvitedAt = c.now().UnixNano()
		}
		r.rec.Membership = "invite"
		r.comeBack()
		c.tell(invited)
	}
	return r
}

// boundInvite leaves out of an invite's state what is too much. The invite itself comes first.
func boundInvite(stripped []*Event, own func(*Event) bool) (out []*Event) {
	size := 0
	for _, first := range []bool{true, false} {
		for _, evt := range stripped {
			if own(evt) == first && size+len(evt.Content) <= maxInviteState {
				size += len(evt.Content)
				out = append(out, evt)
			}
		}
	}
	return out
}

// onlyInvited tells whether all that is known of a room comes from invites: there is nothing
// of a group, nothing to read and nothing to send.
func (c *Client) onlyInvited(r *room) bool {
	switch r.rec.Membership {
	case "invite", string(rooms.MembershipLeave), string(rooms.MembershipBan):
	default:
		return false
	}
	return (r.rec.Phase == phaseNone || r.rec.Phase == phaseRemoved) && r.machine == nil && len(r.epochs) == 0 && len(r.own) == 0 &&
		len(r.rec.Group) == 0 && len(r.rec.Former) == 0 && r.rec.Switch == nil && r.rec.History == nil && len(c.roomRows(r.id)) == 0
}

// declined tells whether a room is known from an invite alone that does not stand any more.
func (c *Client) declined(r *room) bool {
	return r.rec.InvitedAt > 0 && r.rec.Membership != "invite" && c.onlyInvited(r)
}

// excessInvites takes out of memory the rooms above the bound that only invites speak of. All
// servers, and on each all users, that invited keep as many, the newest, so that nobody alone
// can push out the invites of others. Those that do not stand any more go before all.
func (c *Client) excessInvites() (over []*room) {
	for _, r := range c.rooms {
		if c.onlyInvited(r) {
			over = append(over, r)
		}
	}
	if len(over) <= maxInvites {
		return nil
	}
	slices.SortFunc(over, func(a, b *room) int {
		return cmp.Or(cmp.Compare(b.rec.InvitedAt, a.rec.InvitedAt), strings.Compare(string(a.id), string(b.id)))
	})
	ended := func(r *room) int {
		if r.rec.Membership == "invite" {
			return 0
		}
		return 1
	}
	byServer, byUser := map[string]int{}, map[id.UserID]int{} // kept
	for range maxInvites {
		best := slices.Index(over, slices.MinFunc(over, func(a, b *room) int { // the first of equals
			return cmp.Or(ended(a)-ended(b), byServer[serverOf(a.rec.Inviter)]-byServer[serverOf(b.rec.Inviter)], byUser[a.rec.Inviter]-byUser[b.rec.Inviter])
		}))
		byServer[serverOf(over[best].rec.Inviter)]++
		byUser[over[best].rec.Inviter]++
		over = slices.Delete(over, best, best+1)
	}
	for _, r := range over {
		delete(c.rooms, r.id)
	}
	return over
}
