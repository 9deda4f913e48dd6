package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// maxPublic bounds the epochs that are followed without their secrets.
const maxPublic = 64

// followPublic takes a commit that this device cannot open: its own secrets do
// not fit (cause says why), or it lies above one where they did not. If its
// public part holds, others may have opened it: it is a fact for the
// coordination, and this device says, of the first such commit, that it could
// not follow.
func (c *Client) followPublic(ctx context.Context, r *room, parent federation.Ref, msg *mls.Message, ref federation.Ref, content *rooms.CommitContent, evt *Event, cause error, b *batch) error {
	public, err := c.publicAt(ctx, r, parent)
	if err != nil {
		return err
	}
	if public == nil {
		if cause != nil {
			return cause
		}
		return waitParent(parent)
	}
	staged, err := stagePublic(public, msg, content.Proposals)
	if err != nil {
		if cause != nil {
			return cause
		}
		return err
	}
	next := staged.Merge()
	facts, err := c.checkCommit(ctx, r, public, staged, next, ref, content, evt)
	if facts == nil {
		return err
	}
	if cause == nil {
		cause = err
	}
	if cause != nil {
		c.cannotApply(r, ref, cause)
	}
	r.keepPublic(ref, next)
	return c.takeCommit(ctx, r, facts, content, evt, b)
}

func stagePublic(public *mls.PublicGroup, msg *mls.Message, proposals []rooms.Bytes) (*mls.PublicStagedCommit, error) {
	var beside []*mls.Message // the group would remember them; the commit may never be accepted
	for _, raw := range proposals {
		if p, err := mls.ParseMessage(raw); err == nil {
			beside = append(beside, p)
		}
	}
	processed, err := public.ProcessBeside(beside, msg)
	if err != nil {
		return nil, err
	}
	staged, ok := processed.(*mls.PublicStagedCommit)
	if !ok {
		return nil, errRefusedUpdate(rooms.RuleContentMalformed, "the message of a commit is none")
	}
	return staged, nil
}

func (r *room) keepPublic(ref federation.Ref, public *mls.PublicGroup) {
	if len(r.public) >= maxPublic {
		clear(r.public)
	}
	r.public[ref] = public
}

// publicAt returns the public side of an epoch whose secrets this device does
// not hold, following the commits from the nearest epoch at hand; nil if there
// is no way.
func (c *Client) publicAt(ctx context.Context, r *room, ref federation.Ref) (*mls.PublicGroup, error) {
	var chain []federation.Ref
	at := ref
	for r.public[at] == nil && r.epochs[at] == nil {
		known, ok := r.machine.Known(at)
		if !ok || len(chain) >= maxWindow {
			return nil, nil
		}
		chain = append(chain, at)
		if known.Founding != nil {
			break // its tree is its own
		}
		at = known.Parent
	}
	public := r.public[at]
	if e := r.epochs[at]; public == nil && e != nil {
		public = e.group.Public()
	}
	slices.Reverse(chain)
	for _, next := range chain {
		kept, err := c.storedCommit(ctx, r, next)
		if err != nil {
			return nil, err
		}
		if len(kept.GroupInfo) > 0 {
			info, err := mls.ParseMessage(kept.GroupInfo)
			if err != nil {
				return nil, nil
			}
			if public, err = mls.NewPublicGroup(c.mlsCfg, info, kept.Tree); err != nil {
				return nil, nil
			}
			r.keepPublic(next, public)
			continue
		}
		msg, err := mls.ParseMessage(kept.Message)
		if err != nil {
			return nil, nil
		}
		staged, err := stagePublic(public, msg, kept.Proposals)
		if err != nil {
			return nil, nil
		}
		public = staged.Merge()
		r.keepPublic(next, public)
	}
	return public, nil
}

// storedCommit reads back a commit that the coordination holds.
func (c *Client) storedCommit(ctx context.Context, r *room, ref federation.Ref) (*storedCommit, error) {
	if kept := r.keeping[ref]; kept != nil {
		return kept, nil
	}
	raw, err := c.st.GetKV(ctx, commitKey(r.id, ref))
	if err != nil {
		return nil, fmt.Errorf("%w: commit %s: %w", errStore, ref.Short(), err)
	}
	kept := new(storedCommit)
	if err := json.Unmarshal(raw, kept); err != nil {
		return nil, fmt.Errorf("client: commit %s: %w", ref.Short(), err)
	}
	return kept, nil
}

// ruleCannotFollow is the rule of commits whose secrets this device lacks.
const ruleCannotFollow = "client/cannot-follow"

// watchUnread looks after a head whose secrets this device does not hold. While
// nobody else has vouched for the commit that it could not open, it stays where
// it is and commits beside it; once others have, it joins again and names the
// author.
func (c *Client) watchUnread(ctx context.Context, r *room) error {
	head := r.machine.Head()
	if r.epochs[head] != nil {
		r.unread, r.unreadSince = federation.Ref{}, 0
		return nil
	}
	b := &batch{}
	if r.unread != head {
		r.unread = head
		e, err := c.enter(ctx, r, head, b)
		if err != nil && !errors.Is(err, errSelfRemoved) {
			return err
		}
		if len(b.ops) > 0 {
			if err := c.commitBatch(ctx, r, b); err != nil {
				return err
			}
		}
		if e != nil {
			return nil
		}
	}
	first := head
	for {
		known, ok := r.machine.Known(first)
		if !ok || r.epochs[known.Parent] != nil {
			break
		}
		first = known.Parent
	}
	if known, ok := r.machine.Known(first); ok && known.Founding != nil {
		return c.unwelcomed(ctx, r, first)
	}
	if slices.Contains(r.machine.NeedsVouching(), first) {
		return nil
	}
	b = &batch{}
	for _, ref := range r.machine.Path(first, head) {
		if known, ok := r.machine.Known(ref); ok && c.noteSuperseded(r, known) {
			c.removed(r, c.UserID(), b)
			return c.commitBatch(ctx, r, b)
		}
	}
	by := id.UserID("")
	if known, ok := r.machine.Known(first); ok {
		if c.noteSuperseded(r, known) {
			c.removed(r, c.UserID(), b)
			return c.commitBatch(ctx, r, b)
		}
		by = id.UserID(known.AuthorUser)
	}
	c.stuck(r, first, by)
	return c.commitBatch(ctx, r, &batch{})
}
