package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A device that lost the way to the head comes back by an external commit
// (RFC 9420, Section 12.4.3.2) that takes its old leaf out. It shows that it was
// in the group before: with the resumption PSK of the last epoch it shares with
// the head, if everybody who has to follow can have that PSK, else with a
// rooms.RejoinProof. The secrets for the proof are derived when an epoch is
// entered and outlive the epoch.
const (
	keptRejoinSecrets = 1024 // epochs back to which a proof can be made and checked
	maxResumption     = 15   // epochs back to which package mls keeps resumption PSKs
)

// keepRejoinSecret derives and keeps an epoch's rejoin secret.
func (c *Client) keepRejoinSecret(b *batch, r *room, e *epoch) {
	secret, err := e.group.Export(rooms.ExporterRejoin, nil, rooms.RejoinSecretSize)
	if err != nil {
		b.do(func(context.Context) error { return fmt.Errorf("client: epoch %d of %s: %w", e.number, r.id, err) })
		return
	}
	level := r.levelOf(e)
	r.rec.Top = max(r.rec.Top, level)
	b.do(func(ctx context.Context) error {
		defer clear(secret)
		if err := c.st.PutRejoinSecret(ctx, r.id, e.ref[:], level, secret); err != nil {
			return err
		}
		if level%16 != 0 || level < keptRejoinSecrets {
			return nil
		}
		return c.st.PruneRejoinSecrets(ctx, r.id, level-keptRejoinSecrets)
	})
}

// rejoin is how a device comes back on a head.
type rejoin struct {
	keep   bool // the coordination holds the head: it goes on
	proof  *rooms.RejoinProof
	psk    *mls.PreSharedKeyID
	common *mls.Group // whose resumption PSK that is
}

// planRejoin checks that a head on which this device would come back does not
// undo what it knows, and finds what shows that it was in the group before.
func (c *Client) planRejoin(ctx context.Context, roomID id.RoomID, bot id.UserID, head *rooms.HeadContent, own *mls.LeafIndex) (*rejoin, error) {
	parent, group, epoch := federation.Ref(head.Accepted.Ref), []byte(head.Group), head.Accepted.Epoch
	c.mu.Lock()
	defer c.mu.Unlock()
	out := &rejoin{}
	r := c.rooms[roomID]
	if r == nil {
		return out, nil
	}
	if r.machine != nil && !c.without[probe.Stale] {
		final := r.machine.NewestFinal()
		known, ok := r.machine.Known(final)
		if scope, held := r.machine.ScopeAt(final); held && string(scope.Group) != string(group) {
			ok = false // one that follows it, as a module has proven
		}
		switch {
		case r.machine.Held(parent):
			if !r.machine.Accepted(parent) && r.machine.Extends(parent, final) && c.provenAbove(r, bot, head, final) {
				break // the Welcome it came by misled it about the list: it begins anew
			}
			if !r.machine.Extends(parent, final) || !r.machine.Extends(r.machine.SafeHead(), parent) {
				return nil, errRefusedUpdate(ruleStaleGroupInfo, "the module shows a commit that is not on the accepted chain, or lies below the newest final one")
			}
			out.keep = !r.rec.JoinRef.IsZero()
		case ok && epoch <= known.Epoch:
			return nil, errRefusedUpdate(ruleStaleGroupInfo, "the module shows an epoch below the newest final one")
		}
	}
	if own == nil {
		return out, nil
	}
	common, secret, err := c.commonSecret(ctx, r, parent)
	if err != nil || secret == nil {
		return out, err
	}
	defer clear(secret)
	if e := r.epochs[common]; out.keep && e != nil && epoch-e.number <= maxResumption {
		plan, ok := r.machine.Heal(common, parent, uint32(e.group.OwnLeafIndex()))
		if ok && plan.Resume {
			out.common = e.group
			out.psk = &mls.PreSharedKeyID{
				Type: mls.PSKTypeResumption, Usage: mls.ResumptionPSKUsageApplication, GroupID: e.group.GroupID(), Epoch: e.number,
			}
			return out, nil
		}
	}
	out.proof = rooms.NewRejoinProof(common, parent, secret)
	return out, nil
}

// provenAbove tells whether a module proves its head, with a final commit that is
// held here above the given one, or, where it is not proven yet that this device
// joined at a final one, at it.
func (c *Client) provenAbove(r *room, bot id.UserID, head *rooms.HeadContent, final federation.Ref) bool {
	p, err := c.proofOf(r, bot, head)
	return err == nil && p.Accepted == federation.Ref(head.Accepted.Ref) && (r.rec.Unconfirmed || p.Final != final) && r.machine.Extends(p.Final, final)
}

// ruleStaleGroupInfo is the rule of heads that would undo what is known.
const ruleStaleGroupInfo rooms.Rule = "external-commit/stale-group-info"

// commonSecret returns the newest epoch on the way to a head of which this
// device has the rejoin secret, or, where the way is not known, the newest final
// one or the newest at all.
func (c *Client) commonSecret(ctx context.Context, r *room, parent federation.Ref) (federation.Ref, []byte, error) {
	get := func(ref federation.Ref) ([]byte, error) {
		secret, err := c.st.RejoinSecret(ctx, r.id, ref[:])
		if errors.Is(err, store.ErrNotFound) {
			return nil, nil
		}
		return secret, err
	}
	if r.machine != nil && r.machine.Held(parent) {
		for at := parent; ; {
			if secret, err := get(at); err != nil || secret != nil {
				return at, secret, err
			}
			known, ok := r.machine.Known(at)
			if !ok {
				return federation.Ref{}, nil, nil
			}
			at = known.Parent
		}
	}
	if r.machine != nil {
		final := r.machine.NewestFinal()
		if secret, err := get(final); err != nil || secret != nil {
			return final, secret, err
		}
	}
	raw, secret, err := c.st.NewestRejoinSecret(ctx, r.id)
	if errors.Is(err, store.ErrNotFound) {
		return federation.Ref{}, nil, nil
	}
	var ref federation.Ref
	copy(ref[:], raw)
	return ref, secret, err
}

// checkRejoin holds an external commit that takes the place of a device's old
// leaf against what shows that the device was in the group: without that, who
// has stolen its signature key could take its place. A leaf that has never
// committed may be of a device that never got its Welcome, so it needs to show
// nothing. The verdict is this device's own: one that came later cannot check.
func (c *Client) checkRejoin(ctx context.Context, r *room, tree rooms.Tree, checked *rooms.CheckedCommit, staged rooms.Staged) error {
	if !checked.Rejoin || checked.Author.User == c.UserID() && checked.Author.Device == c.DeviceID() {
		return nil
	}
	spoke := false
	for _, l := range checked.Removed {
		if leaf, ok := tree.Leaf(l.Index); ok && l.Cred.User == checked.Author.User && l.Cred.Device == checked.Author.Device {
			spoke = spoke || leaf.Source != mls.LeafNodeSourceKeyPackage
		}
	}
	unproven := func(err error) error {
		return &rooms.Refusal{Rule: rooms.RuleRejoinUnproven, What: "rejoin of " + checked.Author.String(), Err: err, Opinion: true,
			Remedy: "if it is a new copy of that device, log it out and log in anew"}
	}
	proof := checked.AAD.Rejoin
	if proof == nil {
		if _, private := staged.(*mls.StagedCommit); private {
			for _, p := range staged.Proposals() {
				if p.Proposal.Type == mls.ProposalTypePSK && p.Proposal.PSK.Type == mls.PSKTypeResumption {
					return nil // this device holds that PSK, and the confirmation tag is right
				}
			}
		}
		if !spoke {
			return nil
		}
		return unproven(errors.New("it shows nothing of the epochs it was in"))
	}
	secret, err := c.st.RejoinSecret(ctx, r.id, proof.Common[:])
	if errors.Is(err, store.ErrNotFound) {
		if !spoke {
			return nil
		}
		return unproven(errors.New("its proof is of an epoch this device does not know"))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	defer clear(secret)
	if err := proof.Verify(checked.AAD.Parent, secret); err != nil {
		return unproven(err)
	}
	return nil
}

// stuck gives up a branch this device cannot follow and joins anew. What it
// holds stays until the new place is accepted.
func (c *Client) stuck(r *room, ref federation.Ref, by id.UserID) {
	if c.without[probe.Rejoin] {
		return
	}
	text := "this device cannot follow the group's newest commits and joins again"
	if by != "" {
		text = fmt.Sprintf("this device could not apply a commit by %s (%s) which others have applied, and joins again", by, ref.Short())
	}
	c.warn(r, "stuck/"+ref.String(), &Warning{Rule: ruleCannotFollow, Kind: BehindWarning, Sender: by, Text: text})
	r.rec.Phase = phaseJoining
	r.resyncAt = c.mono() // our leaf in the tree is no sign of a Welcome
	// What it came in with before did not last: each time it waits for longer, or a device that the others do
	// not want in the group would make them change their keys all the time.
	r.joinAt = c.mono() + min(joinDelay<<min(r.stuckTimes, 10), maxJoinWait)
	r.stuckTimes++
	r.joinTries = 0
	if !r.unwelcome.IsZero() && rooms.Hash(r.unwelcome) == r.rec.JoinRef {
		// A member objected, and the others went on without this device: its user was put out after they were let in,
		// which a device that came later has not seen. Somebody has to let them in again.
		r.keepAdmissions(c.UserID(), nil)
	}
	r.unwelcome = federation.Ref{}
	r.notify()
}

// elsewhere tells whether the room's modules publish another branch than the one
// a newcomer joined at: its joining commit was displaced. A single module may be
// cut off and show what is over, so none may show ours.
func (r *room) elsewhere() bool {
	e := r.head()
	if e == nil || !r.rec.Unconfirmed {
		return false
	}
	policy, err := e.policy()
	if err != nil {
		return false
	}
	other := false
	for _, seq := range policy.Sequencers {
		head := r.state.head(id.UserID(seq.User))
		if head == nil || head.Accepted == nil || string(head.Group) != string(e.group.GroupID()) {
			continue
		}
		ref := federation.Ref(head.Accepted.Ref)
		if r.machine.Held(ref) {
			return false
		}
		level, _ := r.level(head.Group, head.Accepted.Epoch)
		other = other || level >= r.rec.JoinEpoch || r.rec.OldHeads[id.UserID(seq.User)] != head.Accepted.Ref
	}
	return other
}

// noteHeads remembers what the modules showed when this device joined: a head
// from before, of a module that is gone since, is no other branch.
func (r *room) noteHeads() {
	r.rec.OldHeads = map[id.UserID]rooms.Hash{}
	for _, bot := range r.state.bots() {
		if head := r.state.head(bot); head != nil && head.Accepted != nil && len(r.rec.OldHeads) < maxOldHeads {
			r.rec.OldHeads[bot] = head.Accepted.Ref
		}
	}
}

const maxOldHeads = 64

// joinPatience is how long an own external commit waits for its accept. The
// module may be in a takeover, so each wait is twice as long as the last. Where no module
// can accept anything for days a room is not filled with such commits; the last one counts
// as soon as one can, and where a module shows a newer head it waits for maxJoinWait at most.
func joinPatience(tries int) time.Duration {
	return min(joinAcceptWait<<min(tries, 10), maxJoinPatience)
}

const (
	maxJoinWait     = 10 * time.Minute
	maxJoinPatience = 4 * time.Hour
)
