package appservice

import (
	"context"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A receipt that reached no homeserver of those who could post it again, because its
// module kept it to itself and is gone, or because they all soft-failed it, may still
// stand in a head that was published above it. Members follow such a head (see package
// client); a module that did not would never serve them again. So the modules, too,
// take from the heads of the listed ones what their proof chains hold (see rooms.Looks),
// which is checked like what came by itself.

// shownMark is what decides, beside a head itself, whether it is looked at: the list
// that governs what follows the room's head, and the groups of that and of what is final.
type shownMark struct {
	list         federation.Ref
	group, final string
}

// noteList has all heads looked at again once the list or the group is another: a module
// may be of the list from now on, and what it shows be of the group.
func (r *room) noteList(now time.Duration) {
	head, _ := r.m.ScopeAt(r.m.Head())
	final, _ := r.m.ScopeAt(r.m.NewestFinal())
	mark := shownMark{group: string(head.Group), final: string(final.Group)}
	mark.list, _ = r.m.ConfigAt(r.m.Head())
	if mark == r.shownMark {
		return
	}
	r.shownMark = mark
	for sender := range r.heads {
		r.looks.Note(sender, now)
	}
}

// takeShown takes over the receipts that heads rest on and that did not come, and
// returns when there is more to look at.
func (e *Engine) takeShown(ctx context.Context, r *room, now time.Duration) (next time.Duration, err error) {
	if !r.live() {
		return 0, nil
	}
	r.noteList(now)
	for _, sender := range r.looks.Due(now) {
		head := r.heads[sender]
		switch {
		case head == nil || !r.lists(sender):
			r.looks.Stop(sender)
			continue
		case !head.ShowsMore(r.m):
			r.looks.CameTrue(sender)
			continue
		}
		shown, waits, err := e.receiptsShown(r, head)
		if err != nil {
			e.d.Metrics.Rejected(ruleOf(err))
			r.looks.Looked(sender, now, false)
			r.looks.Stop(sender) // nothing is in it, whenever it is looked at
			continue
		}
		if waits {
			r.looks.Asked(sender, now)
			continue
		}
		before, final := r.m.Head(), r.m.NewestFinal()
		if len(shown) > 0 {
			err := e.update(ctx, r, func(ctx context.Context) error {
				return rooms.TakeShown(r.m, shown, func(s *rooms.ShownEvent) error { return e.takeReceiptShown(ctx, r, s) })
			})
			if err != nil {
				return 0, err
			}
		}
		r.looks.Looked(sender, now, r.m.Head() != before || r.m.NewestFinal() != final)
	}
	return r.looks.Next(), nil
}

// takeReceiptShown takes one receipt, or a statement that one rests on, and keeps it
// for those who miss it. What is wrong with it shows nothing.
func (e *Engine) takeReceiptShown(ctx context.Context, r *room, s *rooms.ShownEvent) error {
	var config federation.Ref
	var rank uint32
	switch ev := s.Event.(type) {
	case *federation.Accept:
		config, rank = ev.Config, ev.Ballot.Rank
	case *federation.Vote:
		config, rank = ev.Config, ev.Voter
	}
	switch err := e.step(ctx, r, s.Event); {
	case federationRule(err) != "":
		return nil
	case err != nil || s.Kind == "":
		return err
	}
	list, held := r.m.ListAt(config)
	if !held || int(rank) >= len(list) {
		return nil // it waits
	}
	return e.keepReceipt(ctx, r, &message{sender: id.UserID(list[rank].User), kind: s.Kind, content: s.Content}, s.Event)
}

// receiptsShown returns what a head's proof chain holds and the room's machine does not.
// A chain that has to be fetched comes with the next look: waits.
func (e *Engine) receiptsShown(r *room, head *rooms.HeadContent) (shown []rooms.ShownEvent, waits bool, err error) {
	raw, waits, err := e.proofShown(r, head)
	if waits || err != nil {
		return nil, waits, err
	}
	shown, err = head.Shown(r.m, raw)
	return shown, false, err
}
