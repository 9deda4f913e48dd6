package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/archive"
	"github.com/matrix-mls/matrix-mls/client/sealed"
)

// maxImport bounds the plaintext of an archive that is read from a file.
const maxImport = 8 << 30

// Export writes the messages of rooms, nil for all, into a sealed file, the newest
// of each room first. No key of a group is in it: who opens it reads what was said
// so far, and nothing else.
func (c *Client) Export(ctx context.Context, w io.Writer, secret sealed.Secret, rooms []id.RoomID) (messages int, err error) {
	out, err := archive.NewWriter(w, secret, archive.Header{User: c.UserID(), Device: c.DeviceID()}, c.rand)
	if err != nil {
		return 0, fmt.Errorf("client: export: %w", err)
	}
	if rooms == nil {
		all, err := c.Rooms(ctx)
		if err != nil {
			return 0, err
		}
		for _, r := range all {
			rooms = append(rooms, r.ID)
		}
	}
	for _, room := range rooms {
		for before := int64(0); ; {
			items, err := c.st.Timeline(ctx, room, before, 500)
			if err != nil {
				return messages, err
			}
			if len(items) == 0 {
				break
			}
			for _, item := range slices.Backward(items) {
				msg, err := messageOf(item)
				if err != nil {
					return messages, err
				}
				_, err = out.Add(archived(msg))
				if errors.Is(err, archive.ErrContent) {
					continue // what an archive cannot hold, no event can
				}
				if err != nil {
					return messages, fmt.Errorf("client: export: %w", err)
				}
				messages++
			}
			before = items[0].Seq
		}
	}
	if err := out.Close(); err != nil {
		return messages, fmt.Errorf("client: export: %w", err)
	}
	return messages, nil
}

// Imported is what Import took in.
type Imported struct {
	By       HistorySource // who made the file, as it says
	Messages int
	Known    int // were there already
	Dropped  int // of which the homeserver has no such event: another sender, redacted, or none
	Strange  int // of rooms that this device is not in
}

// importChunk is how many messages are compared and stored at once.
const importChunk = 500

// Import takes in what Export wrote, on this device or another one, for the rooms
// that this device is in. Each message is compared with the homeserver's event, as
// what another device hands over; Message.From says that it came from a file: who
// knows its secret can have written it, so this device gives no other user what is
// in it. Of a file
// that is damaged or cut off, what came before stays.
func (c *Client) Import(ctx context.Context, r io.Reader, secret sealed.Secret) (*Imported, error) {
	in, err := archive.NewReader(r, secret, maxImport)
	if err != nil {
		return nil, fmt.Errorf("client: import: %w", err)
	}
	got := &Imported{By: HistorySource{User: in.Header.User, Device: in.Header.Device, File: true}}
	var walk *historyWalk
	end := func() {}
	defer func() { end() }()
	var list []*archive.Message
	flush := func() error {
		if len(list) == 0 {
			return nil
		}
		var added, dropped int
		err := c.retry(ctx, func() (err error) {
			added, dropped, err = c.addHistory(ctx, walk, list, got.By)
			return err
		})
		got.Messages, got.Dropped, got.Known = got.Messages+added, got.Dropped+dropped, got.Known+len(list)-added-dropped
		list = nil
		return err
	}
	for {
		m, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return got, errors.Join(fmt.Errorf("client: import: %w", err), flush())
		}
		if walk == nil || walk.room != m.Room {
			if err := flush(); err != nil {
				return got, err
			}
			end()
			walk, end = c.walk(m.Room)
		}
		if info, err := c.Room(ctx, m.Room); err != nil || info.Membership != "join" || !info.MLS {
			got.Strange++
			continue
		}
		if list = append(list, m); len(list) == importChunk {
			if err := flush(); err != nil {
				return got, err
			}
		}
	}
	return got, flush()
}
