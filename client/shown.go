package client

import (
	"context"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A homeserver that soft-fails an accept or a vote never shows it, and the next one
// may be long in coming. The heads of the modules are state, which it has to show, and
// their proof chains hold the newest accept and the votes for the newest final commit.
// Each is signed, so it counts wherever it is read.

const (
	// takeWait is how long a receipt may come later than a head that rests on it. The
	// wait doubles while something is missing all the same.
	takeWait  = 3 * time.Second
	takeTimes = 6 // with the same heads
)

// showsMore tells whether a listed module's head shows a commit as accepted, or as
// final, that this device was not told of as such.
func (c *Client) showsMore(r *room, e *epoch, head *rooms.HeadContent) bool {
	if string(head.Group) != string(e.group.GroupID()) || len(head.Proof) == 0 && head.ProofFile == nil {
		return false
	}
	final := r.machine.NewestFinal()
	scope, ok := r.machine.ScopeAt(final)
	if ok && string(scope.Group) != string(head.Group) {
		return false // the group was founded anew, and that is not final yet
	}
	newer := func(shown *rooms.EventRef) bool {
		if known, ok := r.machine.Known(final); ok {
			return shown.Epoch > known.Epoch
		}
		return !r.machine.TooOld(shown.Epoch)
	}
	if a := head.Accepted; !r.machine.Accepted(federation.Ref(a.Ref)) && federation.Ref(a.Ref) != r.machine.Base() && newer(a) {
		return true
	}
	f := head.Final
	return f != nil && !r.machine.Final(federation.Ref(f.Ref)) && federation.Ref(f.Ref) != r.machine.Base() && newer(f)
}

// takeShown takes over the receipts that modules' heads rest on, where the homeserver
// did not show them.
func (c *Client) takeShown(ctx context.Context, r *room) error {
	if len(r.showMore) == 0 {
		r.takeAt, r.taken, r.takenFrom = 0, 0, nil
		return nil
	}
	now := c.mono()
	for _, bot := range r.showMore {
		if evt := r.state.Entries[rooms.TypeHead][string(bot)].Event; r.takenFrom[bot] != evt {
			if r.takenFrom == nil {
				r.takenFrom = map[id.UserID]id.EventID{}
			}
			r.takenFrom[bot], r.taken = evt, 0
			if r.takeAt == 0 || now+takeWait < r.takeAt { // a module that moves on and on delays no other's
				r.takeAt = now + takeWait
			}
		}
	}
	if r.takeAt == 0 || now < r.takeAt {
		return nil
	}
	b := &batch{}
	for _, bot := range r.showMore {
		for _, ev := range c.receiptsShown(r, bot) {
			if receipt, ok := ev.(federation.Receipt); ok {
				_, content := rooms.ReceiptOf(receipt)
				if _, err := rooms.Encode(content); err != nil {
					continue // no event could bring it to those who do not see the head
				}
			}
			acts, err := r.machine.Step(ev)
			if err != nil {
				continue // it proves nothing here
			}
			b.machine = true
			if err := c.act(ctx, r, acts, b); err != nil {
				if rerr := c.reload(ctx, r); rerr != nil {
					c.fatal = rerr
				}
				return err
			}
			if r.machine == nil {
				return c.commitBatch(ctx, r, b) // this device was removed
			}
		}
	}
	r.taken++
	r.takeAt = 0
	if r.taken < takeTimes {
		r.takeAt = now + takeWait<<r.taken
	}
	if !b.machine {
		return nil
	}
	return c.commitBatch(ctx, r, b)
}

// receiptsShown returns the accept of a head's newest accepted commit, and the votes
// for its newest final one. What it has to fetch for that comes with the next try.
func (c *Client) receiptsShown(r *room, bot id.UserID) (out []federation.Event) {
	head := r.state.head(bot)
	if head == nil || head.Accepted == nil {
		return nil
	}
	raw := []byte(head.Proof)
	if file := head.ProofFile; file != nil {
		var ok bool
		if raw, ok = r.media[fileKey(file)]; !ok {
			if key := "media:" + fileKey(file); r.tried["need/"+key] <= c.mono() {
				r.want(key, &need{file: file, by: bot})
			}
			return nil
		}
	}
	chain, err := rooms.DecodeProof(raw)
	if err != nil {
		return nil
	}
	if n := len(chain.Steps); n > 0 && head.Final != nil {
		for _, v := range chain.Steps[n-1].Votes {
			if v.Ref == federation.Ref(head.Final.Ref) {
				v.EventID = string(head.Final.Event)
			} else if !r.machine.Held(v.Ref) {
				continue // it comes with the commits above
			}
			out = append(out, v)
		}
	}
	if a := chain.Accept; a != nil && a.Ref == federation.Ref(head.Accepted.Ref) {
		a.EventID = string(head.Accepted.Event)
		out = append(out, a)
	}
	return out
}
