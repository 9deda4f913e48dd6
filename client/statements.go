package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// vouch posts P.applied for commits that wait for a member to vouch, when this
// device's turn has come, unless somebody does before.
func (c *Client) vouch(ctx context.Context, r *room) error {
	now := c.mono()
	r.vouchDue = 0
	for _, ref := range r.machine.NeedsVouching() {
		if _, failed := r.rec.Failed[ref.String()]; failed || r.rec.Vouched[ref.String()] {
			delete(r.vouchAt, ref)
			continue
		}
		e := r.epochs[ref]
		if e == nil {
			// An era is vouched for before it can be the head.
			b := &batch{}
			var err error
			if e, err = c.enter(ctx, r, ref, b); err != nil && !errors.Is(err, errSelfRemoved) {
				return err
			}
			if len(b.ops) > 0 {
				if err := c.commitBatch(ctx, r, b); err != nil {
					return err
				}
			}
		}
		if e == nil {
			e = r.lowestAbove(ref)
		}
		if e == nil || r.rec.Vouched[e.ref.String()] || !r.machine.WouldVouch(e.ref, uint32(e.group.OwnLeafIndex()), ref) {
			delete(r.vouchAt, ref)
			continue
		}
		at, set := r.vouchAt[ref]
		if !set {
			at = now + rooms.VoucherDelay(ref, e.group.OwnLeafIndex(), r.machine.Vouchers(e.ref, ref))
			r.vouchAt[ref] = at
		}
		if at > now {
			if r.vouchDue == 0 || at < r.vouchDue {
				r.vouchDue = at
			}
			continue
		}
		delete(r.vouchAt, ref)
		b := &batch{}
		if err := c.sendApplied(r, e, b); err != nil {
			return err
		}
		if err := c.commitBatch(ctx, r, b); err != nil {
			return err
		}
	}
	return nil
}

// ruleUnvouched is the rule of a commit for which whoever could vouch has left.
const ruleUnvouched = "client/unvouched"

// unvouchedWait is how long the word of one who left may be under way.
const unvouchedWait = time.Minute

// watchUnvouched tells an admin that nothing becomes final any more, since whoever
// could vouch for a commit has left: an era above it ends that.
func (c *Client) watchUnvouched(r *room) {
	ref, ok := r.machine.Unvouched()
	if !ok {
		r.unvouchedSince = 0
		return
	}
	now := c.mono()
	if r.unvouchedSince == 0 || r.unvouched != ref {
		r.unvouched, r.unvouchedSince = ref, now
	}
	e := r.head()
	if now < r.unvouchedSince+unvouchedWait || e == nil {
		return
	}
	policy, err := e.policy()
	if err != nil || !policy.IsAdmin(c.UserID()) {
		return
	}
	var servers []string
	for _, seq := range policy.Sequencers {
		if plainServer(seq.Server) {
			servers = append(servers, seq.Server)
		}
	}
	by := r.authorOf(ref)
	c.warn(r, "unvouched/"+ref.String(), &Warning{
		Sender: by, Rule: ruleUnvouched, Kind: UnvouchedWarning, Servers: servers,
		Text: fmt.Sprintf("everybody who could confirm a commit of %s has left the room, so nothing becomes final any more; an admin, as you are, opens a new era with the same modules: %s", by, command("era", r.id, servers...)),
	})
}

// lowestAbove returns the lowest epoch at hand between a commit and the head: who
// applied that one applied the commit, too, though its epoch is not kept any more.
func (r *room) lowestAbove(ref federation.Ref) *epoch {
	for _, at := range r.machine.Path(ref, r.machine.Head()) {
		if e := r.epochs[at]; e != nil && r.rec.Failed[at.String()] == "" {
			return e
		}
	}
	return nil
}

func (c *Client) sendApplied(r *room, e *epoch, b *batch) error {
	scope, ok := r.machine.ScopeAt(e.ref)
	if !ok {
		return nil
	}
	cs := e.group.CipherSuite()
	key, err := c.ident.SignatureKey(cs)
	if err != nil {
		return err
	}
	applied, err := rooms.SignApplied(cs, key, scope, e.ref, e.group.OwnLeafIndex(), e.group.EpochAuthenticator())
	if err != nil {
		return err
	}
	raw, err := rooms.Encode(rooms.AppliedOf(applied))
	if err != nil {
		return err
	}
	if r.rec.Vouched == nil {
		r.rec.Vouched = map[string]bool{}
	}
	r.rec.Vouched[e.ref.String()] = true
	_, err = c.addRow(b, r, kindProof, stateReady, e.ref, outData{Type: rooms.TypeApplied, Content: raw})
	return err
}

// sendReject says, once, that this device could not apply an accepted commit.
func (c *Client) sendReject(r *room, ref, parent federation.Ref, rule string, b *batch) error {
	e := r.epochs[parent]
	if e == nil {
		return nil
	}
	if r.rec.Rejected == nil {
		r.rec.Rejected = map[string]bool{}
	}
	r.rec.Rejected[ref.String()] = true
	scope, ok := r.machine.ScopeAt(parent)
	if !ok {
		return nil
	}
	cs := e.group.CipherSuite()
	key, err := c.ident.SignatureKey(cs)
	if err != nil {
		return err
	}
	rejected, err := rooms.SignReject(cs, key, scope, ref, e.group.OwnLeafIndex(), rule)
	if err != nil {
		return err
	}
	raw, err := rooms.Encode(rooms.RejectOf(rejected))
	if err != nil {
		return err
	}
	by := r.authorOf(ref)
	c.warn(r, "failed/"+ref.String(), &Warning{Sender: by, Rule: rule, Kind: NotAppliedWarning, Text: fmt.Sprintf("a commit of %s could not be applied here; this device said so", by)})
	_, err = c.addRow(b, r, kindProof, stateReady, ref, outData{Type: rooms.TypeReject, Content: raw})
	return err
}

// authorOf names who signed a commit.
func (r *room) authorOf(ref federation.Ref) id.UserID {
	known, _ := r.machine.Known(ref)
	return id.UserID(known.AuthorUser)
}

// object posts P.reject for an accepted commit that this device cannot, or
// will not, apply.
func (c *Client) object(r *room, ref, parent federation.Ref, b *batch) error {
	rule, failed := r.rec.Failed[ref.String()]
	if !failed || r.rec.Rejected[ref.String()] || r.machine == nil || !r.machine.Accepted(ref) {
		return nil
	}
	return c.sendReject(r, ref, parent, rule, b)
}
