package terminal

import (
	"context"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
)

func runReceipts(ctx context.Context, c *call) error {
	if err := c.parse(ctx, 1, 2); err != nil {
		return err
	}
	return c.inRoom(ctx, func(cli *client.Client, r client.RoomInfo) error {
		var to []client.DeliveredTo
		var msg *client.Message
		var err error
		if len(c.args) == 2 {
			if msg, err = cli.Message(ctx, r.ID, id.EventID(c.args[1])); err != nil {
				return failf(ExitFailure, "mls-proxy history --json shows event ids", "there is no message %s in %s: %w", clean(c.args[1]), title(r), err)
			}
			to, err = cli.Delivery(ctx, r.ID, msg.EventID)
		} else {
			msg, to, err = cli.LastDelivery(ctx, r.ID)
		}
		if err != nil {
			return err
		}
		if c.json {
			return c.printJSON(map[string]any{"room_id": r.ID, "event_id": msg.EventID, "devices": to})
		}
		have := 0
		for _, d := range to {
			mark := "not known"
			if d.Received {
				mark = "received"
				have++
			}
			c.printf("%-10s %s %s\n", mark, clean(d.User.String()), clean(d.Device.String()))
		}
		c.printf("%d of %d devices have received and decrypted %s.\n", have, len(to), clean(msg.EventID.String()))
		return nil
	})
}
