package client

import (
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// handleProposal keeps a module's proposal to remove a leaf, if its reason is
// in this device's own view of the room. Nothing else is taken from a module.
func (c *Client) handleProposal(r *room, evt *Event, b *batch) error {
	content, err := rooms.DecodeProposal(evt.Content)
	if err != nil {
		return err
	}
	if r.machine == nil {
		return nil // committed, or proposed again, by the time this device is in
	}
	e := r.epochs[federation.Ref(content.Parent)]
	if e == nil {
		return nil
	}
	msg, err := mls.ParseMessage(content.Message)
	if err != nil {
		return err
	}
	if sender, public := msg.Sender(); !public || sender.Type != mls.SenderTypeExternal && !c.without[probe.Proposals] || msg.ContentType() != mls.ContentTypeProposal {
		return errRefusedUpdate(rooms.RuleExternalProposalNotEntitled, "the proposal is not by a module of the group")
	}
	// A group that remembers a proposal sends nothing until it is committed
	// (RFC 9420, Section 12.4), so it is looked at first.
	processed, err := e.group.ProcessBeside(nil, msg)
	if err != nil {
		return err
	}
	proposal, ok := processed.(*mls.ProposalMessage)
	if !ok {
		return errRefusedUpdate(rooms.RuleContentMalformed, "the message of a proposal is none")
	}
	if err := c.checkProposal(r, e, proposal); err != nil && !c.without[probe.Proposals] {
		if proposal.Proposal.Type == mls.ProposalTypeRemove {
			r.rec.Contested = rooms.Hash(e.ref)
		}
		return err
	}
	if _, err := e.group.Process(msg); err != nil {
		return err
	}
	if r.rec.Proposals == nil {
		r.rec.Proposals = map[string]keptProposal{}
	}
	if len(r.rec.Proposals) < maxKeptProposals {
		r.rec.Proposals[rooms.EncodeBase64(proposal.Ref)] = keptProposal{On: rooms.Hash(e.ref), Raw: content.Message}
	}
	c.putRatchet(b, r, e)
	r.planned = false
	return nil
}

const maxKeptProposals = 500

// keptProposal is a proposal of a module, as a commit names it by reference.
type keptProposal struct {
	On  rooms.Hash  `json:"on"` // the epoch, by its commit
	Raw rooms.Bytes `json:"raw"`
}
