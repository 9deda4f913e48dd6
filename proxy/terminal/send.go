package terminal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	matrix "maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
)

const maxText = 40_000 // bytes of one message

// waitsHint keeps who interrupts a send, and scripts, from sending twice.
const waitsHint = "do not send it again at once: mls-proxy tail sends what waits, mls-proxy history ROOM shows what was sent"

func runSend(ctx context.Context, c *call) error {
	file := c.flags.String("file", "", "send the file at `PATH`, encrypted")
	ask := c.flags.Bool("ask-receipts", false, "ask who has received it, also in a large group")
	var text string
	err := c.parse(ctx, 1, -1, func() error {
		if text = strings.Join(c.args[1:], " "); (text == "") == (*file == "") {
			return c.misused()
		}
		if !utf8.ValidString(text) {
			return notText("the message")
		}
		if len(text) > maxText {
			return tooLong("the message", maxText)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if text == "-" {
		var err error
		if text, err = readAll(c.env.Stdin, maxText); err != nil {
			return err
		}
		if text == "" {
			return usagef("standard input was empty")
		}
	}
	return c.inRoom(ctx, func(cli *client.Client, r client.RoomInfo) error {
		// A device that is not let in until it is verified would wait for nothing.
		if r.MLS && r.Membership == "join" && r.Phase != "member" && r.Phase != "removed" {
			if err := c.verified(ctx); err != nil {
				return err
			}
		}
		wait, cancel := context.WithTimeout(ctx, settleTime)
		defer cancel()
		var event id.EventID
		var err error
		if *file != "" {
			event, err = sendFile(wait, cli, r.ID, c.env.path(*file), *ask)
		} else {
			event, err = cli.SendWith(wait, r.ID, matrix.EventMessage.Type, &matrix.MessageEventContent{MsgType: matrix.MsgText, Body: text}, client.SendOptions{Receipts: *ask})
		}
		if errors.Is(err, context.Canceled) && ctx.Err() != nil {
			return failf(ExitPending, waitsHint, "interrupted: %w", err)
		}
		if err != nil {
			return err
		}
		if r, err = cli.Room(ctx, r.ID); err != nil {
			return err
		}
		if c.json {
			return c.printJSON(map[string]any{"room_id": r.ID, "event_id": event, "epoch": r.Epoch})
		}
		c.printf("Sent to %s, epoch %s (%s).\n", title(r), epochText(r), event)
		return nil
	})
}

func sendFile(ctx context.Context, cli *client.Client, room id.RoomID, path string, ask bool) (id.EventID, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", usagef("%s is no regular file", clean(path))
	}
	return cli.SendFile(ctx, room, client.File{Name: filepath.Base(path), Body: f, Receipts: ask})
}

func runGet(ctx context.Context, c *call) error {
	output := c.flags.String("output", "", "write to `PATH` (default: the file's name, here)")
	force := c.flags.Bool("force", false, "overwrite an existing file")
	if err := c.parse(ctx, 2, 2); err != nil {
		return err
	}
	return c.inRoom(ctx, func(cli *client.Client, r client.RoomInfo) error {
		msg, err := cli.Message(ctx, r.ID, id.EventID(c.args[1]))
		if err != nil {
			return failf(ExitFailure, "mls-proxy tail --json shows event ids", "there is no message %s in %s: %w", clean(c.args[1]), title(r), err)
		}
		content, data, err := cli.DownloadFile(ctx, msg)
		if err != nil {
			return err
		}
		path := *output
		if path == "" {
			path = fileName(content.GetFileName())
		}
		path = c.env.path(path)
		flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
		if *force {
			flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
		}
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		if c.json {
			return c.printJSON(map[string]any{"room_id": r.ID, "event_id": msg.EventID, "path": path, "size": len(data)})
		}
		c.printf("Wrote %s (%d bytes).\n", clean(path), len(data))
		return nil
	})
}

// fileName makes a sender's file name a name in the present directory.
func fileName(name string) string {
	name = clean(filepath.Base(filepath.Clean("/" + strings.ReplaceAll(name, `\`, "/"))))
	name = strings.TrimLeft(name, ".")
	if name == "" || name == "/" {
		return "attachment"
	}
	if len(name) > 200 {
		name = name[len(name)-200:]
	}
	return name
}
