package client

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
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
