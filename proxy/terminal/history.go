package terminal

import (
	"context"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func runHistory(ctx context.Context, c *call) error {
	lines := c.flags.Int("lines", 50, "show the last `N` messages")
	before := c.flags.String("before", "", "show those before `EVENT`")
	ask := c.flags.Bool("ask", false, "ask your other devices for what was said before this one joined, and wait for it")
	share := c.flags.String("share", "", "for an admin: whether members' devices give whom they invite what was said before, `on|off`")
	err := c.parse(ctx, 1, 1, func() error {
		if *share != "" && *share != "on" && *share != "off" {
			return usagef("--share is on or off")
		}
		if *lines < 1 || *lines > 1000 {
			return usagef("--lines is 1 to 1000")
		}
		return nil
	})
	if err != nil {
		return err
	}
	updates := c.s.subscribe(ctx)
	return c.inRoom(ctx, func(cli *client.Client, r client.RoomInfo) error {
		if *share != "" {
			return c.shareHistory(ctx, cli, r, *share == "on")
		}
		if *ask {
			if err := c.askHistory(ctx, cli, r, updates); err != nil {
				return err
			}
		}
		list, err := cli.Messages(ctx, r.ID, id.EventID(*before), *lines)
		if err != nil {
			return failf(ExitFailure, "mls-proxy history --json shows event ids", "read the messages of %s: %w", title(r), err)
		}
		for _, m := range list {
			if c.json {
				if err := c.printJSON(struct {
					Kind string `json:"kind"`
					*client.Message
				}{"message", m}); err != nil {
					return err
				}
				continue
			}
			c.printf("%s %s\n", time.UnixMilli(m.Timestamp).Format(time.DateTime), messageLine(m))
		}
		return nil
	})
}

// shareHistory changes whether a room's members give newcomers its history.
func (c *call) shareHistory(ctx context.Context, cli *client.Client, r client.RoomInfo, on bool) error {
	wait, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	rule, text := rooms.HistoryNone, "Newcomers to %s get nothing of what was said before.\n"
	if on {
		rule, text = rooms.HistoryShared, "Who is invited to %s from now on gets what was said before from who invited them, as far as the room's history visibility shows it.\n"
	}
	if err := cli.ChangePolicy(wait, r.ID, func(p *rooms.Policy) { p.History = rule }); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(map[string]any{"room_id": r.ID, "share": on})
	}
	c.printf(text, title(r))
	return nil
}

// askHistory asks the devices that may have a room's history and waits until all of them have given
// what they have.
func (c *call) askHistory(ctx context.Context, cli *client.Client, r client.RoomInfo, updates <-chan client.Update) error {
	n, err := cli.AskHistory(ctx, r.ID)
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	got := 0
	for cli.HistoryAsked(r.ID) {
		select {
		case u := <-updates:
			h, ok := u.(*client.HistoryReceived)
			if !ok || h.Room != r.ID {
				continue
			}
			got += h.Messages
			if c.json {
				if err := c.printJSON(historyJSON(h)); err != nil {
					return err
				}
			} else {
				c.notef("%s", historyText(h))
			}
		case <-time.After(time.Second): // the last answer may have been another's
		case <-wait.Done():
			if got > 0 {
				return nil
			}
			return failf(ExitPending, "it comes when one of them is online; mls-proxy tail waits for it", "%d devices were asked for what was said in %s, and none has answered yet", n, title(r))
		}
	}
	return nil
}

// messageLine shows a message with who wrote it and how sure that is.
func messageLine(m *client.Message) string {
	sure := verificationText(m.Verification)
	switch {
	case m.From != nil && m.From.File:
		sure = "from a file of " + clean(m.From.User.String())
	case m.From != nil && !m.From.Own:
		sure = "shared by " + clean(m.From.User.String())
	case m.From != nil:
		sure = "from your device " + clean(m.From.Device.String())
	}
	return fmt.Sprintf("%s (%s, %s, epoch %d): %s", clean(m.Sender.String()), clean(m.Device.String()), sure, m.Epoch, messageText(m))
}

func historyText(h *client.HistoryReceived) string {
	text := fmt.Sprintf("%d earlier messages came from ", h.Messages)
	if h.Own {
		text += "your device " + clean(h.Device.String())
	} else {
		text += clean(h.User.String()) + ", on whose word they are shown"
	}
	if h.Dropped > 0 {
		text += fmt.Sprintf("; %d were left out, since the homeserver has no such message", h.Dropped)
	}
	return text
}

func historyJSON(h *client.HistoryReceived) map[string]any {
	return map[string]any{
		"kind": "history", "room_id": h.Room, "user_id": h.User, "device_id": h.Device, "messages": h.Messages, "dropped": h.Dropped, "last": h.Last,
	}
}
