package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
)

// Relations that stand beside the ciphertext, too, and by which the store finds
// messages.
const (
	RelationEdit   = "m.replace"
	RelationThread = "m.thread"
)

// relationReference is that of the answers to a poll, of which a user's latest counts.
const relationReference = "m.reference"

// relationOf tells what a message is an edit of, or which thread it is in.
func relationOf(content json.RawMessage) (target id.EventID, relation string) {
	var c struct {
		New     json.RawMessage `json:"m.new_content"`
		Relates struct {
			Type  string     `json:"rel_type"`
			Event id.EventID `json:"event_id"`
		} `json:"m.relates_to"`
	}
	if json.Unmarshal(content, &c) != nil || len(c.Relates.Event) > 255 {
		return "", ""
	}
	switch c.Relates.Type {
	case RelationEdit:
		if len(c.New) == 0 || c.New[0] != '{' {
			return "", ""
		}
	case RelationThread:
	default:
		return "", ""
	}
	return c.Relates.Event, c.Relates.Type
}

// relationsIndexed is up to where a store from before messages were found by their
// relations was gone through, or that it was.
const (
	relationsIndexed = "relations-indexed"
	allIndexed       = "all"
)

// indexRelations has the messages of a store from before be found by their relations.
func (c *Client) indexRelations(ctx context.Context) error {
	after := int64(math.MinInt64)
	switch at, err := c.st.GetKV(ctx, relationsIndexed); {
	case err == nil && string(at) == allIndexed:
		return nil
	case err == nil:
		if after, err = strconv.ParseInt(string(at), 10, 64); err != nil {
			return fmt.Errorf("client: stored value %q: %w", relationsIndexed, err)
		}
	case !errors.Is(err, store.ErrNotFound):
		return err
	}
	for {
		page, err := c.st.TimelineSince(ctx, "", after, store.MaxTimelinePage)
		if err != nil { // it is for who reads it to say so
			c.log.Err(err).Msg("Old messages cannot be gone through for edits and threads, at the next start it is tried again")
			return nil
		}
		done := allIndexed
		if len(page) == store.MaxTimelinePage {
			after = page[len(page)-1].Seq
			done = strconv.FormatInt(after, 10)
		}
		err = c.st.Do(ctx, func(ctx context.Context) error {
			for _, item := range page {
				msg := new(Message)
				if !strings.HasPrefix(string(item.EventID), "$") || json.Unmarshal(item.Data, msg) != nil {
					continue
				}
				target, relation := relationOf(msg.Content)
				if target == "" || item.Target == target && item.Relation == relation {
					continue
				}
				if err := c.st.Relate(ctx, item.Seq, target, relation); err != nil {
					return err
				}
			}
			return c.st.PutKV(ctx, relationsIndexed, []byte(done))
		})
		if err != nil || done == allIndexed {
			return err
		}
	}
}
