package client

import (
	"context"
	"encoding/json"
	"fmt"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// granted returns the events that a user may be given: encrypted ones, not
// redacted, that the room's history visibility shows to a member. What it was
// before it was last changed is not looked at: events from before that stay closed.
// Where it is "invited", what came before a join counts only if the walk finds the
// invite that the join followed.
func (c *Client) granted(ctx context.Context, roomID id.RoomID, user id.UserID) (map[id.EventID]bool, error) {
	c.mu.Lock()
	visibility := ""
	if r := c.rooms[roomID]; r != nil {
		visibility = r.state.view.HistoryVisibility
	}
	c.mu.Unlock()
	grant := map[id.EventID]bool{}
	if visibility != "shared" && visibility != "world_readable" && visibility != "invited" {
		return grant, nil
	}
	invited := visibility == "invited"
	var below []id.EventID // what came before the oldest join met so far
	joined := false
	token := ""
	for range c.limits.HistoryPages {
		page, next, err := c.hs.Messages(ctx, roomID, token, 100)
		if err != nil {
			return nil, fmt.Errorf("client: what %s may be given of %s: %w", user, roomID, err)
		}
		for _, evt := range page {
			switch {
			case evt.StateKey == nil && evt.Type == rooms.TypeEncrypted:
				if _, err := rooms.DecodeEncrypted(evt.Content); err != nil || len(grant)+len(below) >= c.limits.History {
					continue
				}
				if joined {
					below = append(below, evt.ID)
				} else {
					grant[evt.ID] = true
				}
			case evt.StateKey == nil:
			case evt.Type == rooms.TypeHistoryVisibility && *evt.StateKey == "":
				return grant, nil
			case invited && evt.Type == rooms.TypeMember && *evt.StateKey == string(user):
				membership := membershipOf(evt)
				if membership != rooms.MembershipInvite && membership != rooms.MembershipJoin {
					if !joined {
						clear(grant) // the user is not in the room any more
					}
					return grant, nil // what came before, the user did not see
				}
				for _, e := range below {
					grant[e] = true
				}
				below, joined = nil, true
				if membership == rooms.MembershipInvite {
					return grant, nil
				}
			}
		}
		if next == "" || next == token || len(page) == 0 {
			break
		}
		token = next
	}
	return grant, nil
}

func membershipOf(evt *Event) rooms.Membership {
	var content struct {
		Membership rooms.Membership `json:"membership"`
	}
	if json.Unmarshal(evt.Content, &content) != nil {
		return ""
	}
	return content.Membership
}
