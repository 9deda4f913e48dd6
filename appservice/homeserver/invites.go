package homeserver

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// invitesOnly is a /sync filter that leaves out whatever can be left out: invites come all the same.
const invitesOnly = `{"presence":{"types":[]},"account_data":{"types":[]},"room":{"timeline":{"limit":1,"types":["none"]},` +
	`"state":{"types":["none"]},"ephemeral":{"types":[]},"account_data":{"types":[]}}}`

// PushesInvites tells whether transactions bring the bot's invites to rooms of
// other servers. Dendrite 0.15.2 pushes only those to rooms it is in already;
// the others are in the bot's own /sync.
func (c *Client) PushesInvites() bool { return c.opts.Software != Dendrite }

// Invites waits up to the given time for invites that came after since, which
// is empty at first and then lists all that are open. It returns the bot's
// membership events, each with its room, and the next since.
func (c *Client) Invites(ctx context.Context, since string, wait time.Duration) (invites []json.RawMessage, next string, err error) {
	query := url.Values{"filter": {invitesOnly}, "set_presence": {"offline"}}
	if since != "" {
		query.Set("since", since)
		query.Set("timeout", strconv.FormatInt(wait.Milliseconds(), 10))
	}
	var resp struct {
		NextBatch string `json:"next_batch"`
		Rooms     struct {
			Invite map[id.RoomID]struct {
				State struct {
					Events []map[string]json.RawMessage `json:"events"`
				} `json:"invite_state"`
			} `json:"invite"`
		} `json:"rooms"`
	}
	err = c.call(ctx, "wait for invites", http.MethodGet, mautrix.ClientURLPath{"v3", "sync"}, query, nil, &resp)
	if err != nil {
		return nil, since, err
	}
	bot := quoted(string(c.UserID()))
	for room, invited := range resp.Rooms.Invite {
		for _, ev := range invited.State.Events {
			// Of the stripped state only the invite itself has an event id.
			if string(ev["type"]) != string(quoted(rooms.TypeMember)) || string(ev["state_key"]) != string(bot) || ev["event_id"] == nil {
				continue
			}
			ev["room_id"] = quoted(string(room))
			raw, err := json.Marshal(ev)
			if err != nil {
				return nil, since, err
			}
			invites = append(invites, raw)
		}
	}
	return invites, resp.NextBatch, nil
}
