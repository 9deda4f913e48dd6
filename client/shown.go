package client

import (
	"context"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// takeShown takes over the receipts that modules' heads rest on, where the homeserver
// did not show them: one that soft-fails an accept or a vote never does, and the next one
// may be long in coming. See rooms.Looks.
func (c *Client) takeShown(ctx context.Context, r *room) error {
	now := c.mono()
	event := func(bot id.UserID) id.EventID { return r.state.Entries[rooms.TypeHead][string(bot)].Event }
	for bot, evt := range r.shownBy {
		if !slices.Contains(r.showMore, bot) {
			delete(r.shownBy, bot)
			if r.looks.Stop(bot); event(bot) == evt {
				r.looks.CameTrue(bot)
			}
		}
	}
	for _, bot := range r.showMore {
		if evt := event(bot); r.shownBy[bot] != evt {
			if r.shownBy == nil {
				r.shownBy = map[id.UserID]id.EventID{}
			}
			r.shownBy[bot] = evt
			r.looks.Note(bot, now)
		}
	}
	for _, bot := range r.looks.Due(now) {
		head, final := r.machine.Head(), r.machine.NewestFinal()
		waits, err := c.lookAt(ctx, r, bot)
		if err != nil {
			return err
		}
		if waits {
			r.looks.Asked(bot, now)
			continue
		}
		if r.machine == nil {
			return nil // this device was removed
		}
		r.looks.Looked(bot, now, r.machine.Head() != head || r.machine.NewestFinal() != final)
	}
	return nil
}

// lookAt takes over what a module's head shows. It reports whether the head's proof chain
// has to be downloaded first.
func (c *Client) lookAt(ctx context.Context, r *room, bot id.UserID) (waits bool, err error) {
	head := r.state.head(bot)
	raw := c.proofShown(r, bot, head)
	if raw == nil {
		return head != nil && head.ProofFile != nil, nil
	}
	shown, err := head.Shown(r.machine, raw)
	if err != nil {
		return false, nil // it proves nothing
	}
	b := &batch{}
	err = rooms.TakeShown(r.machine, shown, func(s *rooms.ShownEvent) error {
		if r.machine == nil {
			return nil // this device was removed
		}
		acts, err := r.machine.Step(s.Event)
		if err != nil {
			return nil // it proves nothing here
		}
		b.machine = true
		return c.act(ctx, r, acts, b)
	})
	if err != nil {
		if rerr := c.reload(ctx, r); rerr != nil {
			c.fatal = rerr
		}
		return false, err
	}
	if !b.machine {
		return false, nil
	}
	return false, c.commitBatch(ctx, r, b)
}

// proofShown returns the proof chain of a head, nil if there is none. One that has to be
// fetched comes with the next look.
func (c *Client) proofShown(r *room, bot id.UserID, head *rooms.HeadContent) []byte {
	if head == nil || head.ProofFile == nil {
		if head == nil {
			return nil
		}
		return head.Proof
	}
	raw, ok := r.media[fileKey(head.ProofFile)]
	if !ok {
		if key := "media:" + fileKey(head.ProofFile); r.tried["need/"+key] <= c.mono() {
			r.want(key, &need{file: head.ProofFile, by: bot})
		}
		return nil
	}
	return raw
}
