package terminal

import (
	"context"
	"fmt"
	"os"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/sealed"
)

func runExport(ctx context.Context, c *call) error {
	keyFile := c.flags.String("key-file", "", "seal with the key in `FILE`, which is made if it is missing")
	passFile := c.flags.String("passphrase-file", "", "read the passphrase from `FILE` (- is standard input)")
	if err := c.parse(ctx, 1, -1); err != nil {
		return err
	}
	cli, err := c.s.client(ctx)
	if err != nil {
		return err
	}
	var rooms []id.RoomID
	for _, name := range c.args[1:] {
		r, err := c.s.room(ctx, cli, name)
		if err != nil {
			return err
		}
		rooms = append(rooms, r.ID)
	}
	secret, err := c.backupSecret(ctx, "file", *keyFile, *passFile, true)
	if err != nil {
		return err
	}
	path := c.env.path(c.args[0])
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write the messages: %w", err)
	}
	n, err := cli.Export(ctx, f, sealed.Secret{Passphrase: secret.Passphrase, Key: secret.Key}, rooms)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(path)
		return err
	}
	if c.json {
		return c.printJSON(map[string]any{"file": path, "messages": n})
	}
	c.printf("Wrote %s: %d messages, and no keys. mls-proxy import reads it on another device.\n", clean(path), n)
	return nil
}

func runImport(ctx context.Context, c *call) error {
	keyFile := c.flags.String("key-file", "", "the key that opens the file is in `FILE`")
	passFile := c.flags.String("passphrase-file", "", "read the passphrase from `FILE` (- is standard input)")
	if err := c.parse(ctx, 1, 1); err != nil {
		return err
	}
	f, err := os.Open(c.env.path(c.args[0]))
	if err != nil {
		return fmt.Errorf("read the messages: %w", err)
	}
	defer f.Close()
	secret, err := c.backupSecret(ctx, "file", *keyFile, *passFile, false)
	if err != nil {
		return err
	}
	cli, err := c.s.client(ctx)
	if err != nil {
		return err
	}
	got, err := cli.Import(ctx, f, sealed.Secret{Passphrase: secret.Passphrase, Key: secret.Key})
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(map[string]any{
			"user_id": got.By.User, "device_id": got.By.Device, "messages": got.Messages, "known": got.Known, "dropped": got.Dropped, "strange": got.Strange,
		})
	}
	c.printf("Took in %d messages; %d were here already.\n", got.Messages, got.Known)
	c.notef("the file says that %s made it, which nobody has signed: the messages are shown as from a file of theirs", clean(got.By.User.String()))
	if got.Dropped > 0 {
		c.notef("%d messages were left out: the homeserver has no such message, or it was taken back", got.Dropped)
	}
	if got.Strange > 0 {
		c.notef("%d messages are of rooms that this device is not in: join them, then import the file again", got.Strange)
	}
	return nil
}
