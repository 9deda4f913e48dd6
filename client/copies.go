package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A store that was brought back from a backup, or that two programs use in turn,
// holds ratchets that are behind those in use: what is encrypted with them would
// use message keys twice. So, once a room's state is known to be an old copy
// (store.Restore marks it, or the room shows what this copy never did), nothing
// is encrypted in an epoch the other copy can have sent in. The device commits
// with a fresh path, or joins again; only from that epoch on does it send. The
// other copy cannot follow into it, and notices by that commit. The same goes for an
// epoch that a key package opens which the other copy may have had, too.

// ruleCopied is the rule of rooms whose state here is an old copy.
const ruleCopied = "client/copied-store"

// errCopied says why messages wait in such a room.
var errCopied = errors.New("client: this device's store is an old copy; messages wait until it has made fresh keys")

// errNotSynced: what happened since the program last ran is not known yet.
var errNotSynced = errors.New("client: the first sync is not done")

// copied notes that another copy of this device's state is ahead.
func (c *Client) copied(r *room, why string) {
	if c.without[probe.Copies] {
		return
	}
	// Without fresh keys yet it may be copied for the sake of a shared key package alone.
	fresh := !r.rec.Copied || r.rec.FreshFrom.IsZero()
	c.shareBundles = true
	r.distrust()
	if fresh {
		c.warn(r, "copied/"+r.machine.Head().String(), &Warning{
			Rule: ruleCopied, Sender: c.UserID(), Kind: CopyWarning,
			Text: "the store of this device is an old copy, or another program uses a copy of it (" + why + "); this device makes fresh keys before it sends. Never run two copies; to use another machine, log in anew",
		})
	}
	r.notify()
	c.poke()
}

// distrust takes the room's ratchets for those of another copy, too.
func (r *room) distrust() {
	r.rec.Copied, r.rec.FreshFrom, r.rec.Refresh = true, rooms.Hash{}, true
	for _, own := range r.own {
		own.Fresh = false
	}
}

// enteredBy looks at the key package that opened an epoch of a room. If it is shared it may
// have opened that epoch before: what is encrypted there would use message keys twice. It is
// also where another copy was noticed and that is not written yet.
func (c *Client) enteredBy(r *room, shared bool) {
	if (shared || c.shareBundles) && !c.without[probe.Copies] {
		r.distrust()
	}
}

// mayEncrypt tells whether an epoch's ratchets are this copy's alone.
func (r *room) mayEncrypt(e *epoch) bool {
	if !r.rec.Copied {
		return true
	}
	from := federation.Ref(r.rec.FreshFrom)
	return !from.IsZero() && (e.ref == from || r.machine.Extends(e.ref, from) || !r.machine.Held(from))
}

// watchCopy asks for a fresh leaf while the head's epoch may be another copy's.
func (c *Client) watchCopy(r *room) {
	if e := r.sendEpoch(); e != nil && !r.mayEncrypt(e) {
		r.rec.Refresh = true
	}
}

// settleFresh notes that an own commit with a path, made by this copy after it
// knew itself to be one, is on the head.
func (r *room) settleFresh(own *pending, e *epoch) {
	if r.rec.Copied && own.Fresh {
		r.rec.FreshFrom = rooms.Hash(e.ref)
	}
}

// ownUnknown looks at a message of our user that is none of this store's.
func (c *Client) ownUnknown(r *room, e *epoch, msg *mls.Message, evt id.EventID) {
	if e.group.SentElsewhere(msg) {
		c.copied(r, fmt.Sprintf("message %s was sent by it", evt))
	}
}

// checkOwnCommit looks at a commit by our own leaf that is none of this store's. Who
// posts it may name any leaf: only the signature tells.
func (c *Client) checkOwnCommit(r *room, e *epoch, ref federation.Ref, msg *mls.Message, evt id.EventID) {
	sender, ok := msg.Sender()
	if ok && sender.Type == mls.SenderTypeMember && sender.LeafIndex == e.group.OwnLeafIndex() && !slices.Contains(r.rec.Mine, rooms.Hash(ref)) && e.group.CheckSignature(msg) == nil && !c.twinOfOwn(r, e, msg) {
		c.copied(r, fmt.Sprintf("commit %s was made by it", evt))
	}
}

// twinOfOwn tells whether a commit is one of this store's but for its tags, which a
// homeserver can change.
func (c *Client) twinOfOwn(r *room, e *epoch, msg *mls.Message) bool {
	for ref, own := range r.own {
		if federation.Ref(own.Parent) != e.ref || own.External || own.Founding {
			continue
		}
		staged, err := c.stage(r, e, ref, nil, nil)
		if err != nil {
			continue
		}
		if mine, err := mls.ParseMessage(staged.Message()); err == nil && rooms.SameButTags(mine, msg) {
			return true
		}
	}
	return false
}

// maxMine bounds the own commits that are remembered: one of them may come back
// long after it lost its race.
const maxMine = 32

func (r *room) noteMine(ref rooms.Hash) {
	r.rec.Mine = append(r.rec.Mine, ref)
	if n := len(r.rec.Mine) - maxMine; n > 0 {
		r.rec.Mine = slices.Delete(r.rec.Mine, 0, n)
	}
}

// noteSuperseded looks at a commit that takes this device out: if it is by the
// device's own key, another copy has taken its place, and this one stays out, or
// the two would take turns for ever.
func (c *Client) noteSuperseded(r *room, commit *federation.Commit) bool {
	if !commit.External || commit.AuthorUser != string(c.UserID()) || r.own[commit.Ref] != nil {
		return false
	}
	suite, ok := r.machine.SuiteAt(commit.Ref)
	if !ok {
		return false
	}
	key, err := c.ident.SignatureKey(mls.CipherSuite(suite))
	if err != nil || !slices.ContainsFunc(commit.Added, func(l federation.Leaf) bool { return bytes.Equal(l.Key, key.Public()) }) {
		return false
	}
	r.rec.Superseded = true
	c.warn(r, "superseded/"+commit.Ref.String(), &Warning{
		Rule: ruleCopied, Sender: c.UserID(), Kind: SupersededWarning,
		Text: "another copy of this device, perhaps one restored from a backup, is in use and has taken its place in the group; this copy stays out. " +
			"Use the other one and delete this one's keys; a logout here would end both. To use two machines, log in on each",
	})
	return true
}

// markRestored lets every room of a restored store begin with fresh keys, those that
// the device comes into with a key package from before the restore, too.
func (c *Client) markRestored(ctx context.Context) error {
	if restored, err := c.st.Restored(ctx); err != nil || !restored {
		return err
	}
	b := &batch{}
	for _, r := range c.rooms {
		if r.machine == nil {
			continue
		}
		c.copied(r, "it was restored from a backup")
		// What was encrypted with the old ratchets is encrypted again; receivers
		// show a message once, whichever copy sent it.
		c.requeueAll(b, r)
		for _, row := range c.roomRows(r.id) {
			if row.data.Plain != nil && row.item.State == stateReady {
				data := row.data
				data.Content = nil
				data.Try++
				c.saveRow(b, row, stateQueued, federation.Ref{}, data)
			}
		}
	}
	err := c.st.Do(ctx, func(ctx context.Context) error {
		for _, op := range b.ops {
			if err := op(ctx); err != nil {
				return err
			}
		}
		for _, r := range c.rooms {
			if err := c.saveRoom(ctx, r); err != nil {
				return err
			}
		}
		if err := c.ident.ShareBundles(ctx); err != nil {
			return err
		}
		return c.st.ClearRestored(ctx)
	})
	if err != nil {
		return fmt.Errorf("client: begin with a restored store: %w", err)
	}
	c.shareBundles = false
	for _, fn := range b.after {
		fn()
	}
	return nil
}
