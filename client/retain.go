package client

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// prune wipes the epochs that nothing needs any more, own commits of as many, and
// messages that were sent in them. What stays is
//
//   - above the newest final: the epochs of the head's chain, to go back to, and
//     of branches beside it, each at most as many as the policy's window;
//   - below it: Limits.PastEpochs, for messages that come late;
//   - the last epoch that could be read, if the group was founded anew above it;
//   - branches that the newest final has left behind: as long as the epoch where
//     they parted, from which they could be derived again.
//
// What was left behind (leaveBehind) is kept like what lies below the newest final.
//
// What is not above the newest final goes after Limits.PastAge at the latest.
func (c *Client) prune(b *batch, r *room) {
	final := r.machine.NewestFinal()
	number, ok := r.levelAt(final)
	if !ok || c.without[probe.Forget] {
		return
	}
	now, past := c.mono(), uint64(c.limits.PastEpochs)
	last := r.lastRead() // while the head is not read: a Welcome into the group that follows needs it
	inUse := func(ref federation.Ref) bool {
		return last != nil && ref == last.ref || ref == final || ref == r.machine.Head() || ref == r.machine.UsableHead() || ref == r.machine.SafeHead()
	}
	var chain, beside []*epoch
	r.pruneAt = 0
	c.forgetSent(b, r, number)
	for ref, e := range r.epochs {
		if inUse(ref) {
			continue
		}
		if r.machine.Extends(ref, final) {
			delete(r.overSince, ref)
			if r.machine.Extends(r.machine.Head(), ref) {
				chain = append(chain, e)
			} else {
				beside = append(beside, e)
			}
			continue
		}
		since, known := r.overSince[ref]
		if !known {
			since = now
			r.overSince[ref] = now
		}
		until := since + c.limits.PastAge
		parted := r.levelOf(e)
		if fork, ok := r.machine.Fork(final, ref); ok {
			if at, ok := r.levelAt(fork); ok {
				parted = at
			}
		}
		if parted+past < number || now >= until {
			c.dropEpoch(b, r, ref)
			continue
		}
		r.pruneBy(until)
	}
	window := r.window()
	for _, list := range [][]*epoch{chain, beside} {
		slices.SortFunc(list, func(x, y *epoch) int { return cmp.Compare(r.levelOf(y), r.levelOf(x)) }) // the newest first
		for _, e := range list[min(window, len(list)):] {
			c.dropEpoch(b, r, e.ref)
		}
	}
	for ref, own := range r.own {
		if own == r.pending {
			continue
		}
		if at, ok := r.levelAt(ref); !ok || at <= number {
			if r.epochs[ref] == nil {
				wipeStaged(own.staged)
			}
			delete(r.own, ref)
			b.do(func(ctx context.Context) error { return c.st.DeletePending(ctx, r.id, ref[:]) })
		}
	}
	for ref := range r.staged { // siblings that lost before they were entered
		if !r.machine.Extends(ref, final) && (r.own[ref] == nil || r.own[ref].staged != r.staged[ref]) {
			r.dropStaged(ref)
		}
	}
	c.pruneBehind(b, r, number)
	for ref := range r.overSince {
		if r.epochs[ref] == nil {
			delete(r.overSince, ref)
		}
	}
	for key := range r.spoke {
		if r.epochs[key.ref] == nil {
			delete(r.spoke, key)
		}
	}
}

// pruneBy lets prune look again at a time, or before.
func (r *room) pruneBy(at time.Duration) {
	if r.pruneAt == 0 || at < r.pruneAt {
		r.pruneAt = at
	}
}

// leftBehind is an epoch that a device was in before it came in again on a branch that it could not
// follow: members who had not seen the next commit said something in it that may come yet.
type leftBehind struct {
	Ref rooms.Hash `json:"ref"`
	At  int64      `json:"at"` // when it was left, in seconds of the clock
}

// leaveBehind keeps the epochs of the group that this device is about to forget, as many as prune keeps
// below the newest final one and for as long. Messages are read in them, and nothing else is done.
func (c *Client) leaveBehind(r *room, b *batch) {
	if r.machine == nil || r.rec.PutOut != 0 || c.without[probe.Behind] {
		return
	}
	var kept []*epoch
	for ref, e := range r.epochs {
		if r.machine.Accepted(ref) {
			kept = append(kept, e)
		}
	}
	slices.SortFunc(kept, func(x, y *epoch) int {
		return cmp.Or(cmp.Compare(r.levelOf(y), r.levelOf(x)), bytes.Compare(x.ref[:], y.ref[:]))
	})
	now := c.mono()
	for _, e := range kept[:min(c.limits.PastEpochs, len(kept))] {
		delete(r.epochs, e.ref)
		r.keepBehind(e, now)
		r.rec.Behind = append(r.rec.Behind, leftBehind{Ref: rooms.Hash(e.ref), At: c.now().Unix()})
		r.pruneBy(now + c.limits.PastAge)
	}
	for len(r.rec.Behind) > c.limits.PastEpochs {
		c.dropBehind(b, r, federation.Ref(r.rec.Behind[0].Ref))
	}
}

// keepBehind puts an epoch among those that were left behind.
func (r *room) keepBehind(e *epoch, now time.Duration) {
	r.behind[e.ref], r.behindSince[e.ref] = e, now
}

// pruneBehind wipes what was left behind once the newest final, with this number, is far above it, or once it
// was kept for Limits.PastAge.
func (c *Client) pruneBehind(b *batch, r *room, number uint64) {
	for _, left := range slices.Clone(r.rec.Behind) {
		ref := federation.Ref(left.Ref)
		e, until := r.behind[ref], r.behindSince[ref]+c.limits.PastAge
		if e == nil || r.levelOf(e)+uint64(c.limits.PastEpochs) < number || c.mono() >= until || c.now().Sub(time.Unix(left.At, 0)) >= c.limits.PastAge {
			c.dropBehind(b, r, ref)
			continue
		}
		r.pruneBy(until)
	}
}

// dropBehind wipes an epoch that was left behind.
func (c *Client) dropBehind(b *batch, r *room, ref federation.Ref) {
	e := r.behind[ref]
	delete(r.behind, ref)
	delete(r.behindSince, ref)
	r.rec.Behind = slices.DeleteFunc(r.rec.Behind, func(left leftBehind) bool { return federation.Ref(left.Ref) == ref })
	if r.epochs[ref] == nil {
		c.wipeEpoch(b, r, ref, e)
	}
}

// dropStaged wipes a validated commit that was not entered.
func (r *room) dropStaged(ref federation.Ref) {
	staged := r.staged[ref]
	delete(r.staged, ref)
	if own := r.own[ref]; staged != nil && (own == nil || own.staged != staged) {
		wipeStaged(staged)
	}
}

// wipeStaged overwrites the secrets of an epoch that was never entered.
func wipeStaged(staged *mls.StagedCommit) {
	if staged == nil {
		return
	}
	if group := staged.Merge(); group != nil {
		group.Zero()
	}
}

// window is how many epochs above the newest final are kept.
func (r *room) window() int {
	if policy, ok := r.machine.PolicyAt(r.machine.NewestFinal()); ok && policy.Window > 0 {
		return policy.Window
	}
	return federation.DefaultWindow
}

// dropEpoch forgets an epoch in memory and store, and overwrites its secrets.
func (c *Client) dropEpoch(b *batch, r *room, ref federation.Ref) {
	e := r.epochs[ref]
	delete(r.epochs, ref)
	c.wipeEpoch(b, r, ref, e)
}

// wipeEpoch deletes what is stored of an epoch, and overwrites its secrets.
func (c *Client) wipeEpoch(b *batch, r *room, ref federation.Ref, e *epoch) {
	b.do(func(ctx context.Context) error { return c.st.DeleteEpoch(ctx, r.id, ref[:]) })
	if e != nil {
		b.then(e.group.Zero)
	}
	if !b.dropped {
		b.dropped = true
		b.then(func() {
			if err := c.st.Scrub(context.Background()); err != nil {
				c.log.Warn().Err(err).Stringer("room_id", r.id).Msg("Failed to overwrite deleted secrets")
			}
		})
	}
}
