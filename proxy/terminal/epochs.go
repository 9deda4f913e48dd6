package terminal

import (
	"context"
	"fmt"
	"os"

	"github.com/matrix-mls/matrix-mls/client"
)

// runEpochs draws a room's epochs: as text here, or as SVG into a file. The text has
// no colours, so there is nothing for NO_COLOR to turn off.
func runEpochs(ctx context.Context, c *call) error {
	svg := c.flags.String("svg", "", "write a picture to `FILE` (-: standard output)")
	force := c.flags.Bool("force", false, "overwrite an existing file")
	if err := c.parse(ctx, 1, 1, func() error {
		if c.json && *svg == "-" {
			return usagef("--json and --svg - both want standard output")
		}
		return nil
	}); err != nil {
		return err
	}
	return c.inRoom(ctx, func(cli *client.Client, r client.RoomInfo) error {
		p, err := cli.EpochPicture(ctx, r.ID)
		if err != nil {
			return err
		}
		switch {
		case *svg == "-":
			c.printf("%s", p.SVG())
			return nil
		case *svg != "":
			return c.writePicture(r, *svg, *force, p.SVG())
		case c.json:
			return c.printJSON(p)
		}
		c.printf("%s", p.Text())
		return nil
	})
}

func (c *call) writePicture(r client.RoomInfo, path string, force bool, data []byte) error {
	path = c.env.path(path)
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
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
		return c.printJSON(map[string]any{"room_id": r.ID, "path": path, "size": len(data)})
	}
	c.printf("Wrote %s (%d bytes).\n", clean(path), len(data))
	return nil
}
