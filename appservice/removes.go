package appservice

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	// replanDelay lets a member event that belongs to a new commit come in
	// before the tree is compared with the room.
	replanDelay = time.Second
	// removesAtOnce is how many Remove proposals the module posts in one epoch;
	// members take ten of one sender.
	removesAtOnce = 8
	// externalsInARow is how many external commits, which cannot carry
	// proposals, may follow one another while Removes wait.
	externalsInARow = 3
	// maxLeaving bounds the users of a room of whom it is known since when their
	// Removes wait.
	maxLeaving = 1024
)

// heldProposal is a Remove that waits to be committed.
type heldProposal struct {
	leaf  mls.LeafIndex
	user  id.UserID // whose leaf it is
	since time.Duration
}

// takeProposal follows a proposal, so that it is known when a commit names it.
func (e *Engine) takeProposal(ctx context.Context, r *room, msg *message) (outcome, error) {
	p, err := rooms.DecodeProposal(msg.content)
	if err != nil {
		return done, err
	}
	if r.m == nil {
		return waiting, nil
	}
	parent := federation.Ref(p.Parent)
	if !r.m.Held(parent) {
		if c, ok := r.m.Known(r.m.Head()); ok && p.Epoch <= c.Epoch {
			return ignored, nil // for an epoch that is over
		}
		r.want(federation.Fetch{Commit: parent})
		return waiting, nil
	}
	if r.m.Extends(r.m.NewestFinal(), parent) && parent != r.m.NewestFinal() {
		return ignored, nil
	}
	tree, err := e.group(ctx, r, parent)
	if err != nil {
		return done, err
	}
	m, err := mls.ParseMessage(p.Message)
	if err != nil {
		return done, err
	}
	sender, public := m.Sender()
	if !public || m.ContentType() != mls.ContentTypeProposal {
		return done, refusal(string(rooms.RuleContentMalformed), "the message of a proposal event is no public proposal")
	}
	for _, old := range tree.PendingProposals() {
		if old.Sender == sender && old.Proposal.Type == mls.ProposalTypeRemove && holds(r.proposals[parent], old.Proposal.Remove) && sender.Type == mls.SenderTypeExternal && bytes.Equal(old.AuthenticatedData, m.AuthenticatedData()) {
			return done, nil
		}
	}
	// Before the tree remembers it.
	if p, _ := m.Proposal(); sender.Type == mls.SenderTypeExternal {
		if err := rooms.CheckExternalProposal(p, sender, nil); err != nil {
			return done, err
		}
	}
	got, err := tree.Process(m)
	if err != nil {
		return done, err
	}
	pm, ok := got.(*mls.ProposalMessage)
	if !ok {
		return done, refusal(string(rooms.RuleContentMalformed), "the message of a proposal event is no proposal")
	}
	if pm.Proposal.Type == mls.ProposalTypeRemove && !holds(r.proposals[parent], pm.Proposal.Remove) && len(r.proposals[parent]) < 1024 {
		e.hold(r, tree, parent, pm.Proposal.Remove)
	}
	return done, nil
}

// hold notes a Remove that waits to be committed. Of who is gone from the room the
// wait began with the first proposal: each ends with its epoch, or a member could
// keep them in by making one epoch after another.
func (e *Engine) hold(r *room, tree *mls.PublicGroup, parent federation.Ref, index mls.LeafIndex) {
	p := heldProposal{leaf: index, since: e.d.Monotonic()}
	if leaf, ok := tree.Leaf(index); ok {
		if cred, err := rooms.CredentialOf(leaf); err == nil {
			p.user = cred.User
		}
	}
	if gone := r.gone(); gone != nil && gone(p.user) {
		if since, ok := r.leaving[p.user]; ok {
			p.since = since
		} else {
			r.waits(p.user, p.since)
		}
	}
	r.proposals[parent] = append(r.proposals[parent], p)
}

// waits notes since when Removes of a user wait.
func (r *room) waits(user id.UserID, since time.Duration) {
	if r.leaving == nil {
		r.leaving = make(map[id.UserID]time.Duration)
	}
	if _, known := r.leaving[user]; known || len(r.leaving) < maxLeaving {
		r.leaving[user] = since
	}
}

// went compares who is gone with who was, before the room's state changed. Of who
// came back nothing waits; of who is gone since, it waits from now on.
func (r *room) went(was func(user id.UserID) bool, now time.Duration) {
	gone := r.gone()
	if gone == nil {
		return
	}
	maps.DeleteFunc(r.leaving, func(user id.UserID, _ time.Duration) bool { return !gone(user) })
	for _, held := range r.proposals {
		for i, p := range held {
			if gone(p.user) && !was(p.user) {
				held[i].since = now
				r.waits(p.user, now)
			}
		}
	}
}

// proposalsTaken is how many proposal events are looked through after a start.
const proposalsTaken = 200

// retakeProposals takes the proposals of the head's epoch once more: what is
// held of them is in memory only, and commits must not skip them after a
// restart.
func (e *Engine) retakeProposals(ctx context.Context, r *room) error {
	rows, err := e.d.Store.NewestInbox(ctx, r.id, rooms.TypeProposal, store.InboxDone, proposalsTaken)
	if err != nil {
		return err
	}
	for _, ev := range slices.Backward(rows) {
		parsed, err := homeserver.ParseEvent(ev.Raw, r.id)
		if err != nil {
			continue
		}
		p, err := rooms.DecodeProposal(parsed.Content)
		if err != nil || federation.Ref(p.Parent) != r.m.Head() && federation.Ref(p.Parent) != r.m.SafeHead() {
			continue
		}
		msg := &message{event: ev.EventID, sender: ev.Sender, kind: ev.Type, content: parsed.Content}
		if _, err := e.takeProposal(ctx, r, msg); err != nil && ruleOf(err) == ruleFailed {
			return err
		}
	}
	return nil
}

func holds(ps []heldProposal, leaf mls.LeafIndex) bool {
	for _, p := range ps {
		if p.leaf == leaf {
			return true
		}
	}
	return false
}

// skips says why this module does not accept a commit: it leaves out Removes of
// users who are gone, which the module has held for a while. External commits
// cannot carry proposals, so a few of them are let through.
func (e *Engine) skips(r *room, parent federation.Ref, c *rooms.CheckedCommit) string {
	gone := r.gone()
	if gone == nil || e.without[probe.Inclusion] {
		return ""
	}
	tree := r.groups[parent]
	left := 0
	for _, p := range r.proposals[parent] {
		if e.d.Monotonic()-p.since < e.d.Config.Rooms.InclusionWait.D() {
			continue
		}
		leaf, ok := tree.Leaf(p.leaf)
		if !ok || !c.Commit.External && uint32(p.leaf) == c.Commit.Author {
			continue // nobody can remove itself
		}
		if cred, err := rooms.CredentialOf(leaf); err != nil || !gone(cred.User) {
			continue
		}
		removed := false
		for _, l := range c.Removed {
			removed = removed || l.Index == p.leaf
		}
		if !removed {
			left++
		}
	}
	if left == 0 {
		return ""
	}
	if c.Commit.External {
		row := 0
		for ref := parent; row < externalsInARow; row++ {
			known, ok := r.m.Known(ref)
			if !ok || !known.External {
				return ""
			}
			ref = known.Parent
		}
	}
	return fmt.Sprintf("%s: %d leaves of users who are gone stay in the group", ruleInclusion, left)
}

const tagRemove = "remove:"

// removeRefused hears that the homeserver refused a Remove proposal, as it does
// before the bot's join has reached it everywhere: it is made again after a
// while, since members send nothing until the leaf is gone.
func (e *Engine) removeRefused(r *room, row *store.OutboxRow) {
	if !strings.HasPrefix(row.Tag, tagRemove) {
		return
	}
	delete(r.proposed, row.Tag)
	r.removePause.fail(e.d.Monotonic(), 2*time.Second, 5*time.Minute)
	r.planDirty, r.planAt = true, max(r.planAt, r.removePause.until)
}

// proposeRemoves posts a Remove proposal for each leaf whose user left the room
// or is banned, again in each epoch in which it is still there.
func (e *Engine) proposeRemoves(ctx context.Context, r *room) error {
	r.planDirty = false
	head := r.m.SafeHead()
	tree, err := e.group(ctx, r, head)
	if err != nil {
		if ruleOf(err) != ruleFailed {
			return nil
		}
		return err
	}
	if tree.ReInit() != nil {
		return nil
	}
	key, index, ok := e.externalSender(tree)
	if !ok {
		return nil
	}
	policy, err := rooms.PolicyOf(tree)
	if err != nil {
		return nil // no commit of such a policy is ever followed
	}
	plan := rooms.MakePlan(rooms.Inputs{State: r.state, Policy: policy, Leaves: rooms.GroupLeaves(tree)})
	maps.DeleteFunc(r.leaving, func(user id.UserID, _ time.Duration) bool { // whose leaves are gone, too
		return !slices.ContainsFunc(plan.Removes, func(rm rooms.PlannedRemove) bool { return rm.Cred.User == user })
	})
	pending := make(map[mls.LeafIndex]bool)
	mine := 0
	for _, p := range tree.PendingProposals() {
		if p.Sender.Type == mls.SenderTypeExternal && p.Proposal.Type == mls.ProposalTypeRemove {
			pending[p.Proposal.Remove] = true
			if p.Sender.Index == index {
				mine++
			}
		}
	}
	return e.update(ctx, r, func(ctx context.Context) error {
		for _, rm := range plan.Removes {
			tag := fmt.Sprintf("%s%s:%d", tagRemove, head, rm.Leaf)
			// Only what the room says plainly is a reason: an event that has
			// not come yet is none.
			if rm.Reason != rooms.RemoveLeft && rm.Reason != rooms.RemoveBanned || !r.gone()(rm.Cred.User) || pending[rm.Leaf] || r.proposed[tag] {
				continue
			}
			if mine >= removesAtOnce {
				return nil
			}
			sent, err := e.d.Store.TaggedOutbox(ctx, r.id, tag)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(sent, func(row *store.OutboxRow) bool {
				return row.Status != store.OutboxFailed && row.Status != store.OutboxRefused
			}) {
				continue
			}
			if err := e.proposeRemove(ctx, r, tree, head, key, index, rm, tag); err != nil {
				return err
			}
			r.proposed[tag] = true
			mine++
		}
		return nil
	})
}

func (e *Engine) proposeRemove(ctx context.Context, r *room, tree *mls.PublicGroup, head federation.Ref, key mls.SignaturePrivateKey, index uint32, rm rooms.PlannedRemove, tag string) error {
	aad := rooms.MessageAAD{Head: head}
	message, err := mls.NewExternalProposal(tree.CipherSuite(), tree.GroupID(), tree.Epoch(), index, key, mls.Remove(rm.Leaf), aad.Encode())
	if err != nil {
		return err
	}
	raw, err := rooms.Encode(&rooms.ProposalContent{Epoch: tree.Epoch(), Parent: rooms.Hash(head), Message: message, Reason: rm.Event})
	if err != nil {
		return err
	}
	e.d.Metrics.Inc(metrics.Removals)
	roomLog(ctx, r.id).Info().Uint32("leaf", uint32(rm.Leaf)).Str("reason", string(rm.Reason)).Msg("Proposed to remove a leaf")
	return e.put(ctx, r, &store.OutboxRow{Type: rooms.TypeProposal, Content: raw, Priority: store.PriorityProposal, Tag: tag})
}

// externalSender finds the module among a group's external senders.
func (e *Engine) externalSender(tree *mls.PublicGroup) (mls.SignaturePrivateKey, uint32, bool) {
	key, ok := e.d.Keys.External[tree.CipherSuite().SignatureScheme()]
	if !ok {
		return key, 0, false
	}
	senders, err := rooms.ExternalSendersOf(tree)
	if err != nil {
		return key, 0, false
	}
	for i, s := range senders {
		if bytes.Equal(s.SignatureKey, key.Public()) && id.UserID(s.Credential.Identity) == e.d.HS.UserID() {
			return key, uint32(i), true
		}
	}
	return key, 0, false
}
