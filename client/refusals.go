package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
)

// Why a ciphertext was refused is kept, so that whoever looks at it later can be
// told. Anybody in a room can send what is refused, so of each room the newest
// notes are kept, and none for ever: a note is stored under its event, and its
// number in the order of the room's notes says which event that is.

// How many notes of a room are kept, and for how long.
const (
	maxRefused = 1000
	refusedAge = 90 * 24 * time.Hour
)

func refusedKey(room id.RoomID, event id.EventID) string {
	return "refused/" + string(room) + "/" + string(event)
}

// refusals are the numbers of a room's notes: from First up to, and not, Next.
type refusals struct {
	First uint64 `json:"first"`
	Next  uint64 `json:"next"`
}

// refusal is what stands at such a number.
type refusal struct {
	Event id.EventID `json:"event"`
	At    int64      `json:"at"` // unix seconds
}

func refusalsKey(room id.RoomID) string { return "refusals/" + string(room) }

func refusalKey(room id.RoomID, number uint64) string {
	return fmt.Sprintf("refusal/%s/%d", room, number)
}

// Refused returns the rule by which an encrypted event was refused, and whether
// it was. That is known of the newest events that were.
func (c *Client) Refused(ctx context.Context, roomID id.RoomID, eventID id.EventID) (rule string, ok bool, err error) {
	raw, err := c.st.GetKV(ctx, refusedKey(roomID, eventID))
	if errors.Is(err, store.ErrNotFound) {
		return "", false, nil
	}
	return string(raw), err == nil, err
}

// noteRefused keeps why an event was refused, and forgets what is too old or too
// much.
func (c *Client) noteRefused(ctx context.Context, room id.RoomID, event id.EventID, rule string) error {
	n := new(refusals)
	if err := c.getJSON(ctx, refusalsKey(room), n); err != nil {
		return err
	}
	now := c.now()
	if err := c.putJSON(ctx, refusalKey(room, n.Next), &refusal{Event: event, At: now.Unix()}); err != nil {
		return err
	}
	n.Next++
	// Two for each new one: a clock that was set forward makes many too old at once.
	for range 2 {
		old := new(refusal)
		if err := c.getJSON(ctx, refusalKey(room, n.First), old); err != nil {
			return err
		}
		if n.Next-n.First <= maxRefused && now.Sub(time.Unix(old.At, 0)) <= refusedAge {
			break
		}
		if old.Event != event {
			if err := c.st.DeleteKV(ctx, refusedKey(room, old.Event)); err != nil {
				return err
			}
		}
		if err := c.st.DeleteKV(ctx, refusalKey(room, n.First)); err != nil {
			return err
		}
		n.First++
	}
	if err := c.putJSON(ctx, refusalsKey(room), n); err != nil {
		return err
	}
	return c.st.PutKV(ctx, refusedKey(room, event), []byte(rule))
}

// forgetRefused removes the notes of a room.
func (c *Client) forgetRefused(ctx context.Context, room id.RoomID) error {
	n := new(refusals)
	if err := c.getJSON(ctx, refusalsKey(room), n); err != nil {
		return err
	}
	for ; n.First < n.Next; n.First++ {
		old := new(refusal)
		if err := c.getJSON(ctx, refusalKey(room, n.First), old); err != nil {
			return err
		}
		for _, key := range []string{refusedKey(room, old.Event), refusalKey(room, n.First)} {
			if err := c.st.DeleteKV(ctx, key); err != nil {
				return err
			}
		}
	}
	return c.st.DeleteKV(ctx, refusalsKey(room))
}

// getJSON reads what putJSON wrote; v stays as it is if nothing was.
func (c *Client) getJSON(ctx context.Context, key string, v any) error {
	raw, err := c.st.GetKV(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("client: stored value %q: %w", key, err)
	}
	return nil
}

func (c *Client) putJSON(ctx context.Context, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("client: stored value %q: %w", key, err)
	}
	return c.st.PutKV(ctx, key, raw)
}

// refusedBounded marks stores whose notes all have numbers.
const refusedBounded = "refused-bounded"

// boundRefused drops the notes that were written before they had numbers.
func (c *Client) boundRefused(ctx context.Context) error {
	_, err := c.st.GetKV(ctx, refusedBounded)
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return c.st.Do(ctx, func(ctx context.Context) error {
		if err := c.st.DeleteKVs(ctx, "refused/"); err != nil {
			return err
		}
		return c.st.PutKV(ctx, refusedBounded, nil)
	})
}
