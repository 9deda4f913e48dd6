package mls

// ProposalTypeSelfRemove is the code point that draft-ietf-mls-extensions-10
// suggests; it is not assigned yet. A leaf that supports SelfRemove lists it in
// its Capabilities; DefaultCapabilities leave it out. Others may use another
// number: see docs/decisions.
const ProposalTypeSelfRemove ProposalType = 0x000a

// SelfRemove proposes to remove the member who proposes it. Unlike a Remove, it
// can be committed by who joins by an external Commit. Every member must list
// ProposalTypeSelfRemove, and it must be sent in a PublicMessage, at most once
// in an epoch (draft-ietf-mls-extensions, Section 6.3).
func SelfRemove() Proposal { return Proposal{Type: ProposalTypeSelfRemove} }

// validateSelfRemove checks who proposes a SelfRemove, and that the group is one
// that may.
func (pc *proposalContext) validateSelfRemove(sender Sender) error {
	if sender.Type != SenderTypeMember {
		return invalid("self-remove/not-by-member", "", "a SelfRemove comes from a sender that is no member")
	}
	if pc.tree.leaf(sender.LeafIndex) == nil {
		return invalid("framing/sender-leaf-blank", "6.1", "leaf %d is blank", sender.LeafIndex)
	}
	if !pc.tree.supportsProposal(ProposalTypeSelfRemove) {
		return invalid("proposal/type-unsupported", "12.2", "a member does not support SelfRemove")
	}
	return nil
}

// supportsProposal tells whether every member lists a proposal type.
func (t *ratchetTree) supportsProposal(p ProposalType) bool {
	return t.profiles.every(func(c *Capabilities) bool { return c.SupportsProposal(p) })
}

// admit checks what must hold for a proposal message beside the proposal: a
// SelfRemove is public, so that those who join can use it, and the sender's only
// one in the epoch.
func (c *proposalCache) admit(p *Proposal, sender Sender, wf WireFormat) error {
	if p.Type != ProposalTypeSelfRemove {
		return nil
	}
	if wf != WireFormatPublicMessage {
		return invalid("self-remove/private-message", "", "a SelfRemove must be sent in a PublicMessage")
	}
	for _, q := range c.list {
		if q.proposal.Type == ProposalTypeSelfRemove && q.sender == sender {
			return invalid("self-remove/repeated", "", "a second SelfRemove of leaf %d in this epoch", sender.LeafIndex)
		}
	}
	return nil
}

// checkSelfRemove checks a SelfRemove of a Commit. committer is nil for an
// external Commit.
func checkSelfRemove(p *CommittedProposal, committer *LeafIndex) error {
	if !p.ByRef {
		return invalid("self-remove/by-value", "", "a SelfRemove by value; it is committed by reference only")
	}
	if committer != nil && p.Sender.Type == SenderTypeMember && p.Sender.LeafIndex == *committer {
		return invalid("self-remove/own", "", "the Commit removes its committer")
	}
	return nil
}

// takeSelfRemove checks a SelfRemove that who joins got with the GroupInfo. The
// membership tag is for members to check. draft-ietf-mls-extensions, Section
// 6.3.
func (e *epoch) takeSelfRemove(m *Message, cache *proposalCache) (*ProposalMessage, error) {
	if m.public == nil || m.public.auth.content.contentType != ContentTypeProposal || m.public.auth.content.proposal.Type != ProposalTypeSelfRemove {
		return nil, unexpected(m, "is not a SelfRemove; ExternalJoinOptions.SelfRemoves takes nothing else")
	}
	ac := &m.public.auth
	if err := e.checkFrame(ac.content.groupID, ac.content.epoch, true); err != nil {
		return nil, err
	}
	if err := e.verify(ac); err != nil {
		return nil, err
	}
	return e.cacheProposal(ac, cache)
}
