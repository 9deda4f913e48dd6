package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/store"
)

// Bounds of what is looked at for one event's reactions, and of how many there are.
const (
	relatedPages = 20 // of store.MaxTimelinePage
	maxReactions = 500
)

// Reactions are the reactions to a message, oldest first: they stand inside
// ciphertexts, so the homeserver knows of none. What came after the message is
// looked through; reactions to what this device could not read are not known.
func (a *Account) Reactions(ctx context.Context, room id.RoomID, to id.EventID) ([]*client.Message, error) {
	return reactions(ctx, a.st, room, to)
}

func reactions(ctx context.Context, st *store.Store, room id.RoomID, to id.EventID) (out []*client.Message, err error) {
	target, err := st.TimelineEvent(ctx, room, to)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	after := target.Seq
	for range relatedPages {
		page, err := st.TimelineSince(ctx, room, after, store.MaxTimelinePage)
		if err != nil {
			return nil, err
		}
		for _, row := range page {
			after = row.Seq
			if row.Type != "m.reaction" || pending(row) {
				continue
			}
			m := new(client.Message)
			if err := json.Unmarshal(row.Data, m); err != nil {
				return nil, fmt.Errorf("account: message %s: %w", row.EventID, err)
			}
			var content struct {
				Relates struct {
					Type  string     `json:"rel_type"`
					Event id.EventID `json:"event_id"`
				} `json:"m.relates_to"`
			}
			if json.Unmarshal(m.Content, &content) == nil && content.Relates.Type == "m.annotation" && content.Relates.Event == to {
				out = append(out, m)
			}
		}
		if len(page) < store.MaxTimelinePage || len(out) >= maxReactions {
			break
		}
	}
	return out[:min(len(out), maxReactions)], nil
}
