package mls

import (
	"bytes"
	"errors"
	"fmt"
)

// A PublicGroup follows a group from its public messages, without being a
// member: a server's view. It checks all that needs no secret; membership and
// confirmation tags are beyond it. Like a Group it stands for one epoch, and
// Commits give the next by way of PublicStagedCommit.Merge. It is not safe for
// concurrent use.
type PublicGroup struct {
	*epoch
	cache proposalCache
}

// NewPublicGroup starts from a GroupInfo, which it checks in full. ratchetTree
// is used when the GroupInfo does not hold the tree.
func NewPublicGroup(cfg *Config, groupInfo *Message, ratchetTree []byte) (*PublicGroup, error) {
	gi := groupInfo.groupInfo
	if gi == nil {
		return nil, unexpected(groupInfo, "is not a GroupInfo")
	}
	e, err := newEpoch(cfg, gi, ratchetTree)
	if err != nil {
		return nil, err
	}
	return &PublicGroup{epoch: e}, nil
}

// PendingProposals returns the proposals that arrived in this epoch.
func (p *PublicGroup) PendingProposals() []ProposalMessage { return p.cache.messages() }

// Process checks a public handshake message of this epoch. A *ProposalMessage
// is kept for a Commit; a *PublicStagedCommit has changed nothing.
func (p *PublicGroup) Process(m *Message) (Processed, error) {
	if m.public == nil {
		return nil, unexpected(m, "cannot be followed without being a member")
	}
	ac := &m.public.auth
	if err := p.checkFrame(ac.content.groupID, ac.content.epoch, true); err != nil {
		return nil, err
	}
	if err := p.verify(ac); err != nil {
		return nil, err
	}
	if ac.content.contentType == ContentTypeProposal {
		pm, err := p.cacheProposal(ac, &p.cache)
		if err != nil {
			return nil, err
		}
		return pm, nil
	}
	if n := len(ac.confirmationTag); n != p.context.cipherSuite.HashLen() {
		return nil, invalid("commit/confirmation-tag-truncated", "12.4.2", "a confirmation tag of %d bytes where %d are due", n, p.context.cipherSuite.HashLen())
	}
	t, err := p.next(ac, &p.cache, 0)
	if err != nil {
		return nil, err
	}
	return &PublicStagedCommit{
		commitInfo: newCommitInfo(t, ac),
		next:       &PublicGroup{epoch: t.epoch(p.epoch, ac.confirmationTag)},
	}, nil
}

// ProcessBeside does what Process does, as if the given proposals had come before
// m, and leaves the group as it is: see [Group.ProcessBeside].
func (p *PublicGroup) ProcessBeside(proposals []*Message, m *Message) (Processed, error) {
	beside := PublicGroup{epoch: p.epoch, cache: p.cache.clone()}
	for _, m := range proposals {
		if m.public != nil && m.ContentType() == ContentTypeProposal {
			_, _ = beside.Process(m) // one that is not valid fails the Commit that names it
		}
	}
	return beside.Process(m)
}

// A PublicStagedCommit is a Commit that a PublicGroup has checked.
type PublicStagedCommit struct {
	commitInfo
	next *PublicGroup
}

func (*PublicStagedCommit) processed() {}

// Merge returns the group of the next epoch. It cannot fail.
func (s *PublicStagedCommit) Merge() *PublicGroup { return s.next }

// VerifyGroupInfo checks that a GroupInfo is the committer's, for the epoch that
// the Commit begins: signature, GroupContext and so tree hash, and confirmation
// tag.
func (s *PublicStagedCommit) VerifyGroupInfo(m *Message) error {
	gi := m.groupInfo
	if gi == nil {
		return unexpected(m, "is not a GroupInfo")
	}
	if gi.signer != s.committer {
		return invalid("welcome/group-info-signature", "12.4.3.1", "the GroupInfo is signed by leaf %d, not by the committer, leaf %d", gi.signer, s.committer)
	}
	return s.next.VerifyGroupInfo(m)
}

// VerifyGroupInfo checks that a GroupInfo is of this epoch and signed by a
// member.
func (e *epoch) VerifyGroupInfo(m *Message) error {
	gi := m.groupInfo
	if gi == nil {
		return unexpected(m, "is not a GroupInfo")
	}
	signer := e.tree.leaf(gi.signer)
	if signer == nil {
		return invalid("welcome/signer-blank", "12.4.3.1", "the GroupInfo is signed by leaf %d, where no member is", gi.signer)
	}
	if !bytes.Equal(gi.contextRaw, e.contextRaw) {
		switch {
		case !bytes.Equal(gi.context.groupID, e.context.groupID):
			return invalid("framing/group-id", "6", "the GroupInfo is of another group")
		case gi.context.epoch != e.context.epoch:
			return invalid("external-commit/stale-group-info", "12.4.3.2", "the GroupInfo is of epoch %d, this is epoch %d", gi.context.epoch, e.context.epoch)
		case !bytes.Equal(gi.context.treeHash, e.context.treeHash):
			return invalid("tree/tree-hash", "12.4.3.1", "the GroupInfo names another tree")
		}
		return invalid("commit/transcript-forked", "8.2", "the GroupInfo is of another branch of the group")
	}
	if !bytes.Equal(gi.confirmationTag, e.confirmationTag) {
		return invalid("welcome/confirmation-tag", "12.4.3.1", "the GroupInfo has another confirmation tag")
	}
	if err := gi.verifySignature(signer.SignatureKey); err != nil {
		return err
	}
	return checkExtensions(gi.extensions, inGroupInfo)
}

const publicGroupFormat = 1

// MarshalBinary encodes the group with the proposals that it keeps.
func (p *PublicGroup) MarshalBinary() ([]byte, error) {
	b := p.epoch.appendTo([]byte{publicGroupFormat})
	return p.cache.appendTo(b), nil
}

// UnmarshalPublicGroup decodes what MarshalBinary gave. The data must come from
// our own store: the tree is not validated again, beyond its hash.
func UnmarshalPublicGroup(cfg *Config, data []byte) (*PublicGroup, error) {
	s := newReader(bytes.Clone(data))
	if err := readFormat(s, publicGroupFormat, "public group"); err != nil {
		return nil, err
	}
	e, err := readEpoch(cfg, s)
	if err != nil {
		return nil, fmt.Errorf("mls: reading a stored public group: %w", err)
	}
	p := &PublicGroup{epoch: e}
	if !p.cache.unmarshal(s) {
		return nil, fmt.Errorf("mls: reading a stored public group: %w", s.error())
	}
	if !s.Empty() {
		return nil, errors.New("mls: reading a stored public group: bytes follow it")
	}
	return p, nil
}
