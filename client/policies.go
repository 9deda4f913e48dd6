package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// ChangePolicy lets an admin change the group's policy. It returns once the
// commit is accepted. What others changed meanwhile, in other fields, stays.
func (c *Client) ChangePolicy(ctx context.Context, roomID id.RoomID, change func(p *rooms.Policy)) error {
	return c.changePolicy(ctx, roomID, change, false)
}

func (c *Client) changePolicy(ctx context.Context, roomID id.RoomID, change func(p *rooms.Policy), era bool) error {
	named := false // it names the list of modules
	if err := c.wantPolicy(ctx, roomID, era, func(r *room, p *rooms.Policy) error {
		before := p.Clone()
		change(p)
		// One that was given up for a while stays so beside another change. Who changes nothing asks again for what waits.
		if named = !sameList(before, p) || p.Equal(before); named {
			r.tryList()
		}
		return nil
	}); err != nil {
		return err
	}
	return c.await(ctx, roomID, func(r *room) error {
		e := r.head()
		switch {
		case r.policyError != nil:
			return r.policyError
		case e == nil:
			return ErrNoGroup
		}
		due := c.policyDue(r, e)
		if due != nil && !named && !r.rec.NewEra { // a list that was named before may wait for its modules
			due = withoutList(e, due)
		}
		if r.rec.NewEra || due != nil {
			return errors.New("client: the commit is not accepted yet")
		}
		return nil
	})
}

// wantPolicy notes a change of the policy, which the next commit carries.
func (c *Client) wantPolicy(ctx context.Context, roomID id.RoomID, era bool, change func(r *room, p *rooms.Policy) error) error {
	lock := c.lockMember
	if era {
		lock = c.lockForEra
	}
	r, e, err := lock(ctx, roomID)
	defer c.mu.Unlock()
	if err != nil {
		return err
	}
	policy, err := e.policy()
	if err != nil {
		return err
	}
	if !policy.IsAdmin(c.UserID()) {
		return fmt.Errorf("%w: only an admin of the group changes its policy (%v)", ErrNotAllowed, policy.Admins)
	}
	have := policy.Clone()
	if r.rec.Policy != nil && !era { // one more change on top of the one under way
		policy = r.asked(e.ref, policy)
	}
	if err := change(r, policy); err != nil {
		return err
	}
	if _, err := policy.Encode(); err != nil {
		return err
	}
	b := &batch{}
	if p := r.pending; era && p != nil && !p.Era && !p.External {
		// It waits for an accept that nobody can sign any more. What it wanted is
		// planned anew in the new era.
		c.loseCommit(r, b)
	}
	if era {
		r.rec.Policy = nil
	}
	r.ask(e.ref, have, policy)
	r.rec.NewEra, r.policyError = era, nil
	if era {
		r.tryList()
	}
	if err := c.commitBatch(ctx, r, b); err != nil {
		return err
	}
	c.poke()
	return nil
}

// ask notes what our user asks for in an epoch that has a policy. What they asked for before, and no final epoch has yet, they ask
// for still: the commits that brought it may lose their places.
func (r *room) ask(ref federation.Ref, have, want *rooms.Policy) {
	on, from, at := have, (*rooms.Policy)(nil), rooms.Hash{}
	if r.rec.Policy != nil && r.rec.PolicyOn != nil {
		// Without what they asked for, but with what others changed since.
		on, from, at = have.Rebase(r.rec.Policy, r.rec.PolicyOn.Rebase(r.rec.Policy, have)), have, rooms.Hash(ref)
	}
	r.rec.Policy, r.rec.PolicyOn, r.rec.PolicyFrom, r.rec.PolicyAt = want, on, from, at
	r.rec.PolicyRef, r.rec.PolicyPart = rooms.Hash{}, rooms.Hash{}
}

// policyDue returns the policy that our user asked for, on top of the one of an
// epoch; nil if nothing is asked for, or that epoch has it. What another admin
// changed above the commit that brought it counts: the two would else change the
// same thing back and forth for ever.
func (c *Client) policyDue(r *room, e *epoch) *rooms.Policy {
	if r.rec.Policy == nil {
		return nil
	}
	have, err := e.policy()
	if err != nil {
		return nil
	}
	want := r.asked(e.ref, have)
	if want.Equal(have) {
		return nil
	}
	return want
}

// asked returns what our user asked for, on top of the policy of an epoch: where
// that has it, nothing; where it has all but the list of modules, only the list;
// and above where it was asked for only what was new there.
func (r *room) asked(ref federation.Ref, have *rooms.Policy) *rooms.Policy {
	has := func(commit rooms.Hash) bool {
		return !commit.IsZero() && r.machine.Extends(ref, federation.Ref(commit))
	}
	if has(r.rec.PolicyRef) {
		return have.Clone()
	}
	on := r.rec.PolicyOn
	if has(r.rec.PolicyAt) {
		on = r.rec.PolicyFrom
	}
	want := r.rec.Policy.Rebase(on, have)
	if !has(r.rec.PolicyPart) {
		return want
	}
	list := have.Clone()
	list.Sequencers, list.Manual = want.Sequencers, want.Manual
	return list
}

// withoutList returns a policy with the list of modules that an epoch has, nil if
// nothing is left of the change then. A list may wait for its modules for ever;
// what else an admin, or their client, changes does not wait with it.
func withoutList(e *epoch, policy *rooms.Policy) *rooms.Policy {
	have, err := e.policy()
	if err != nil {
		return nil
	}
	rest := policy.Clone()
	if !sameList(have, policy) { // that admins name the modules is said with their names
		rest.Sequencers, rest.Manual = have.Sequencers, have.Manual
	}
	if rest.Equal(have) {
		return nil
	}
	return rest
}

// policyDone forgets what our user asked for once a final epoch has it: until
// then the commit that brought it may still be displaced.
func (c *Client) policyDone(r *room) {
	if r.rec.Policy == nil || r.rec.NewEra {
		return
	}
	e := r.epochs[r.machine.NewestFinal()]
	if e == nil {
		return
	}
	if at := federation.Ref(r.rec.PolicyAt); !at.IsZero() && r.machine.Extends(e.ref, at) { // no other branch comes any more
		r.rec.PolicyOn, r.rec.PolicyFrom, r.rec.PolicyAt = r.rec.PolicyFrom, nil, rooms.Hash{}
	}
	due := c.policyDue(r, e)
	if part := federation.Ref(r.rec.PolicyPart); due != nil && !part.IsZero() && r.machine.Extends(e.ref, part) {
		if have, err := e.policy(); err == nil { // only the list is left to ask for
			r.rec.Policy, r.rec.PolicyOn, r.rec.PolicyPart = due, have, rooms.Hash{}
		}
	}
	if due == nil {
		r.rec.Policy, r.rec.PolicyOn, r.rec.PolicyFrom, r.rec.PolicyAt = nil, nil, nil, rooms.Hash{}
	}
}

// nextExtensions returns the group's extensions with a policy: the keys of the
// listed modules for proposals are those that they announce, or have.
func (c *Client) nextExtensions(r *room, e *epoch, policy *rooms.Policy) ([]mls.Extension, error) {
	had, err := rooms.ExternalSendersOf(e.group)
	if err != nil {
		return nil, err
	}
	var senders []mls.ExternalSender
	for _, seq := range policy.Sequencers {
		if head := r.state.head(id.UserID(seq.User)); head != nil {
			sender, err := rooms.ModuleSender(id.UserID(seq.User), head, e.group.CipherSuite())
			if err != nil {
				return nil, err
			}
			senders = append(senders, sender)
			continue
		}
		for _, sender := range had {
			if string(sender.Credential.Identity) == seq.User {
				senders = append(senders, sender)
			}
		}
	}
	return rooms.GroupExtensions(policy, senders)
}

// How the clients of admins act by themselves.
const (
	autoWait  = 10 * time.Second // a choice has to stand for so long
	listWait  = 30 * time.Second // a list change that is not accepted gives way to others
	listPause = 5 * time.Minute  // and is tried again then, twice as late each time
	listTries = 4                // on one commit; then not before the group or the modules change
	listNever = 10 * 365 * 24 * time.Hour
)

// choose compares the list and the heirs with what the defaults ask for, and
// notes the policy that the next commit of an admin brings.
func (c *Client) choose(r *room, e *epoch, policy *rooms.Policy, leaves []rooms.GroupLeaf) {
	if policy.Manual || !policy.IsAdmin(c.UserID()) {
		r.auto, r.autoAt = nil, 0
		return
	}
	want := policy.Clone()
	want.Sequencers = rooms.DefaultSequencers(policy, r.modules(), leaves)
	if slices.ContainsFunc(want.Sequencers, func(s federation.Sequencer) bool {
		return r.rec.Liars[rooms.EncodeBase64(s.ReceiptKey)] != "" && !slices.ContainsFunc(policy.Sequencers, func(o federation.Sequencer) bool { return o.Server == s.Server })
	}) {
		want.Sequencers = policy.Sequencers // no liar comes in by itself
	}
	want.Heirs = rooms.DefaultHeirs(policy, leaves)
	switch {
	case want.Equal(policy):
		r.auto, r.autoAt = nil, 0
	case r.auto == nil || !r.auto.Equal(want):
		r.auto, r.autoAt = want, c.mono()+autoWait
	}
}

// autoDue returns the policy that the defaults ask for on top of an epoch's, once
// that has stood for a while.
func (c *Client) autoDue(r *room, e *epoch, now time.Duration) *rooms.Policy {
	if r.auto == nil || now < r.autoAt || r.rec.Policy != nil || r.rec.NewEra || r.plannedOn != e.ref {
		return nil
	}
	return r.auto
}

// changesList tells whether a policy sets another list than an epoch's.
func changesList(e *epoch, policy *rooms.Policy) bool {
	have, err := e.policy()
	return err == nil && policy != nil && !sameList(have, policy)
}

func sameList(a, b *rooms.Policy) bool { return federation.List(a.Sequencers).Equal(b.Sequencers) }

// noteLiar remembers a module that contradicted itself.
func (c *Client) noteLiar(r *room, act federation.Evidence) {
	if r.rec.Liars == nil {
		r.rec.Liars = map[string]string{}
	}
	if len(r.rec.Liars) < maxWarned {
		r.rec.Liars[rooms.EncodeBase64(act.Signer.ReceiptKey)] = string(act.Kind)
	}
}

// handleHead takes in a head that a module posts into the timeline, where it may
// not set state.
func (c *Client) handleHead(r *room, evt *Event, b *batch) error {
	if _, err := rooms.DecodeHead(evt.Content); err != nil {
		return err
	}
	r.state.setLooseHead(stateEntry{Event: evt.ID, Sender: evt.Sender, Content: evt.Content})
	b.state, r.planned, r.headSeen = true, false, true
	return nil
}
