package appservice

import (
	"bytes"
	"context"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A receipt that reached no homeserver of those who could post it again, because its
// module kept it to itself and is gone, or because they all soft-failed it, may still
// stand in a head that was published above it. Members follow such a head (see package
// client); a module that did not would never serve them again. So the modules, too,
// take from the heads of the listed ones what their proof chains hold: the votes for
// what they show as final, and the accept of their newest commit. Each is signed, and
// checked like one that came by itself.

const (
	// takeWait is how long a receipt may come later than a head that rests on it. The
	// wait doubles while something is missing all the same.
	takeWait   = 3 * time.Second
	takeTimes  = 6  // with the same head
	takeSteps  = 16 // of its proof chain, the newest ones
	takeAtOnce = 4  // of these: each can hold hundreds of signatures to check
)

// shown is a head that was not compared yet with what the machine holds, or that shows
// more.
type shown struct {
	at    time.Duration // when it is looked at
	times int           // how often it was
}

// noteShown has a head looked at a little later. One that moves on and on is looked at
// all the same.
func (r *room) noteShown(sender id.UserID, now time.Duration) {
	s := r.shown[sender]
	if s == nil {
		if r.shown == nil {
			r.shown = make(map[id.UserID]*shown)
		}
		s = &shown{at: now + takeWait}
		r.shown[sender] = s
	}
	s.at, s.times = min(s.at, now+takeWait), 0
}

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
		r.noteShown(sender, now)
	}
}

// showsMore reports whether a head shows a commit as accepted, or as final, that the
// machine does not hold as such.
func (r *room) showsMore(head *rooms.HeadContent) bool {
	if head.Accepted == nil || len(head.Proof) == 0 && head.ProofFile == nil {
		return false
	}
	final := r.m.NewestFinal()
	for _, ref := range []federation.Ref{r.m.Head(), final} {
		if scope, ok := r.m.ScopeAt(ref); !ok || !bytes.Equal(scope.Group, head.Group) {
			return false // the group was founded anew, and that is not final yet
		}
	}
	newer := func(shown *rooms.EventRef) bool {
		if known, ok := r.m.Known(final); ok {
			return shown.Epoch > known.Epoch
		}
		return federation.Ref(shown.Ref) != r.m.Base() && !r.m.TooOld(shown.Epoch)
	}
	if a := head.Accepted; !r.m.Accepted(federation.Ref(a.Ref)) && newer(a) {
		return true
	}
	f := head.Final
	return f != nil && !r.m.Final(federation.Ref(f.Ref)) && newer(f)
}

// takeShown takes over the receipts that heads rest on and that did not come, and
// returns when there is more to look at.
func (e *Engine) takeShown(ctx context.Context, r *room, now time.Duration) (next time.Duration, err error) {
	if !r.live() {
		return 0, nil
	}
	r.noteList(now)
	var due []id.UserID
	for sender, s := range r.shown {
		if now >= s.at {
			due = append(due, sender)
		}
	}
	slices.Sort(due)
	for _, sender := range due {
		s, head := r.shown[sender], r.heads[sender]
		if !r.lists(sender) || head == nil || s.times >= takeTimes || !r.showsMore(head) {
			delete(r.shown, sender)
			continue
		}
		s.times++
		s.at = now + takeWait<<s.times
		receipts, err := e.receiptsShown(r, head)
		if err != nil {
			e.d.Metrics.Rejected(ruleOf(err))
			delete(r.shown, sender) // nothing is in it, whenever it is looked at
			continue
		}
		if len(receipts) == 0 {
			continue
		}
		err = e.update(ctx, r, func(ctx context.Context) error {
			for _, ev := range receipts {
				if err := e.takeReceiptShown(ctx, r, ev); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	for _, s := range r.shown {
		if next == 0 || s.at < next {
			next = s.at
		}
	}
	return next, nil
}

// takeReceiptShown takes one receipt, or a statement that one rests on, and keeps it
// for those who miss it. What is wrong with it shows nothing.
func (e *Engine) takeReceiptShown(ctx context.Context, r *room, ev federation.Event) error {
	var config federation.Ref
	var rank uint32
	switch ev := ev.(type) {
	case *federation.Accept:
		config, rank = ev.Config, ev.Ballot.Rank
	case *federation.Vote:
		config, rank = ev.Config, ev.Voter
	}
	receipt, ok := ev.(federation.Receipt)
	var kind string
	var raw []byte
	if ok {
		name, content := rooms.ReceiptOf(receipt)
		var err error
		if raw, err = rooms.Encode(content); err != nil {
			return nil // no event could bring it to those who do not see the head
		}
		kind = name
	}
	switch err := e.step(ctx, r, ev); {
	case federationRule(err) != "":
		return nil
	case err != nil || !ok:
		return err
	}
	list, held := r.m.ListAt(config)
	if !held || int(rank) >= len(list) {
		return nil // it waits
	}
	return e.keepReceipt(ctx, r, &message{sender: id.UserID(list[rank].User), kind: kind, content: raw}, ev)
}

// receiptsShown returns what a head's proof chain holds above what is final here:
// statements and votes in the order of its steps, then the accept of its newest commit.
// A chain that has to be fetched comes with the next look.
func (e *Engine) receiptsShown(r *room, head *rooms.HeadContent) (out []federation.Event, err error) {
	raw := []byte(head.Proof)
	if file := head.ProofFile; file != nil {
		data, bad, ok := e.media.get(file.SHA256)
		if !ok || bad != nil {
			if !ok {
				e.download(r, file)
			}
			return nil, bad
		}
		raw = data
	}
	chain, err := rooms.DecodeProof(raw)
	if err != nil {
		return nil, err
	}
	newest := chain.Steps[max(0, len(chain.Steps)-takeSteps):]
	steps := 0
	for i, step := range newest {
		wanted := func(v *federation.Vote) bool { return r.m.Held(v.Ref) && !r.m.Final(v.Ref) }
		if i < len(newest)-1 && (steps >= takeAtOnce || !slices.ContainsFunc(step.Votes, wanted)) {
			continue // it lies below the base, is final, or comes with the next look
		}
		steps++
		for _, p := range step.Vouchers {
			if p.Applied != nil && r.m.Held(p.Applied.Ref) {
				out = append(out, p.Applied)
			}
		}
		voters := make(map[uint32]bool)
		for _, v := range step.Votes {
			final := head.Final != nil && v.Ref == federation.Ref(head.Final.Ref)
			if voters[v.Voter] || !final && !r.m.Held(v.Ref) {
				continue
			}
			voters[v.Voter] = true
			if final {
				v.EventID = string(head.Final.Event)
			}
			out = append(out, v)
		}
	}
	if a := chain.Accept; a != nil && a.Ref == federation.Ref(head.Accepted.Ref) {
		a.EventID = string(head.Accepted.Event)
		out = append(out, a)
	}
	return out, nil
}
