package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

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
			m, err := messageOf(row)
			if err != nil {
				return nil, err
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

// maxEdits bounds the edits of a message that are looked at for one that counts.
const maxEdits = 8

// Bundle is what belongs to a message, as far as this device could read it.
type Bundle struct {
	Edit   *client.Message // the newest, nil if there is none
	Thread *Thread         // that begins with the message, nil if none does
}

// Bundle returns what homeservers bundle with a message of a sender and a type, from
// what the device has read: some bundle nothing, and those that do know of ciphertexts
// only. It is not for messages that are edits themselves.
func (a *Account) Bundle(ctx context.Context, room id.RoomID, event id.EventID, sender id.UserID, eventType string) (Bundle, error) {
	return bundle(ctx, a.st, room, event, sender, eventType, a.ident.UserID())
}

func bundle(ctx context.Context, st *store.Store, room id.RoomID, event id.EventID, sender id.UserID, eventType string, own id.UserID) (out Bundle, err error) {
	relations, err := st.Relations(ctx, room, event)
	if err != nil {
		return out, err
	}
	for _, relation := range relations {
		switch relation {
		case client.RelationEdit: // by the sender alone, and of the same type
			edits, err := st.NewestBy(ctx, room, event, relation, sender, maxEdits)
			if err != nil {
				return out, err
			}
			if at := slices.IndexFunc(edits, func(edit *store.TimelineItem) bool { return edit.Type == eventType }); at >= 0 {
				if out.Edit, err = messageOf(edits[at]); err != nil {
					return out, err
				}
			}
		case client.RelationThread:
			count, by, last, err := st.Related(ctx, room, event, relation, own)
			if err != nil {
				return out, err
			}
			if count == 0 {
				continue // it was taken back meanwhile
			}
			latest, err := messageOf(last)
			if err != nil {
				return out, err
			}
			out.Thread = &Thread{Root: event, Latest: latest, Seq: last.Seq, Count: count, Participated: by || sender == own}
		}
	}
	return out, nil
}

func messageOf(row *store.TimelineItem) (*client.Message, error) {
	m := new(client.Message)
	if err := json.Unmarshal(row.Data, m); err != nil {
		return nil, fmt.Errorf("account: message %s: %w", row.EventID, err)
	}
	return m, nil
}
