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
	token := ""
	for range c.limits.HistoryPages {
		page, next, err := c.hs.Messages(ctx, roomID, token, 100)
		if err != nil {
			return nil, fmt.Errorf("client: what %s may be given of %s: %w", user, roomID, err)
		}
		for _, evt := range page {
			switch {
			case evt.StateKey == nil && evt.Type == rooms.TypeEncrypted:
				if _, err := rooms.DecodeEncrypted(evt.Content); err == nil && len(grant) < c.limits.History {
					grant[evt.ID] = true
				}
			case evt.StateKey == nil:
			case evt.Type == rooms.TypeHistoryVisibility && *evt.StateKey == "":
				return grant, nil
			case visibility == "invited" && evt.Type == rooms.TypeMember && *evt.StateKey == string(user) && isInvite(evt):
				return grant, nil
			}
		}
		if next == "" || next == token || len(page) == 0 {
			break
		}
		token = next
	}
	return grant, nil
}

func isInvite(evt *Event) bool {
	var content struct {
		Membership rooms.Membership `json:"membership"`
	}
	return json.Unmarshal(evt.Content, &content) == nil && content.Membership == rooms.MembershipInvite
}
