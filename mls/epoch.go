package mls

import (
	"bytes"
	"iter"
	"maps"
	"math"
	"slices"
)

// An epoch is what everybody, member or not, can know of a group in one epoch.
// It is immutable.
type epoch struct {
	cfg             *Config
	context         groupContext
	contextRaw      []byte
	tree            *ratchetTree
	confirmationTag []byte
	interim         []byte   // interim transcript hash, confirmationTag included
	reinit          *ReInit  // set: the group is closed
	signers         *signers // shared with the epochs before and after
}

// CipherSuite returns the group's suite.
func (e *epoch) CipherSuite() CipherSuite { return e.context.cipherSuite }

// GroupID returns the group's identifier.
func (e *epoch) GroupID() []byte { return bytes.Clone(e.context.groupID) }

// Epoch returns the number of the epoch.
func (e *epoch) Epoch() uint64 { return e.context.epoch }

// Members yields the members in the order of their leaves.
func (e *epoch) Members() iter.Seq2[LeafIndex, *LeafNode] { return e.tree.members() }

// Leaf returns the member at i, if there is one.
func (e *epoch) Leaf(i LeafIndex) (*LeafNode, bool) {
	l := e.tree.leaf(i)
	return l, l != nil
}

// FindLeaf returns the member with a signature key, if there is one.
func (e *epoch) FindLeaf(key SignaturePublicKey) (LeafIndex, bool) {
	return e.tree.findSignatureKey(key)
}

// MemberCount returns the number of members.
func (e *epoch) MemberCount() int { return int(e.tree.count) }

// Extensions returns the extensions of the GroupContext.
func (e *epoch) Extensions() []Extension { return cloneExtensions(e.context.extensions) }

// Extension returns the body of the GroupContext's extension of type t.
func (e *epoch) Extension(t ExtensionType) ([]byte, bool) {
	data, ok := findExtension(e.context.extensions, t)
	return bytes.Clone(data), ok
}

// TreeHash returns the hash of the ratchet tree.
func (e *epoch) TreeHash() []byte { return bytes.Clone(e.context.treeHash) }

// ConfirmedTranscriptHash returns the hash over the group's Commits so far.
func (e *epoch) ConfirmedTranscriptHash() []byte {
	return bytes.Clone(e.context.confirmedTranscriptHash)
}

// ConfirmationTag returns the tag that proves knowledge of the epoch's secrets.
func (e *epoch) ConfirmationTag() []byte { return bytes.Clone(e.confirmationTag) }

// GroupContext returns the encoded GroupContext.
func (e *epoch) GroupContext() []byte { return bytes.Clone(e.contextRaw) }

// RatchetTree returns the tree as the body of a ratchet_tree extension.
func (e *epoch) RatchetTree() []byte { return e.tree.appendTo(nil) }

// ReInit returns the ReInit that closed the group, nil while it is open.
func (e *epoch) ReInit() *ReInit { return e.reinit }

// checkFrame checks that a message is for this group and epoch.
func (e *epoch) checkFrame(groupID []byte, n uint64, handshake bool) error {
	if !bytes.Equal(groupID, e.context.groupID) {
		return invalid("framing/group-id", "6", "the message is for another group")
	}
	if e.reinit != nil {
		return invalid("framing/group-closed", "12.4.2", "the group is closed by a ReInit")
	}
	switch {
	case n < e.context.epoch && handshake:
		return invalid("framing/epoch-old", "12.1", "the message is of epoch %d, this is epoch %d", n, e.context.epoch)
	case n < e.context.epoch:
		return invalid("framing/epoch-beyond-retention", "15.3", "the message is of epoch %d, this is epoch %d", n, e.context.epoch)
	case n > e.context.epoch:
		return invalid("framing/epoch-future", "12.4.2", "the message is of epoch %d, this is epoch %d", n, e.context.epoch)
	}
	return nil
}

// signatureKey returns the key with which a sender signs content. RFC 9420,
// Section 6.1.
func (e *epoch) signatureKey(c *framedContent) (SignaturePublicKey, error) {
	switch s := c.sender; s.Type {
	case SenderTypeMember:
		if uint32(s.LeafIndex) >= e.tree.size {
			return nil, invalid("framing/sender-leaf-out-of-range", "6.1", "the sender is leaf %d in a tree of %d", s.LeafIndex, e.tree.size)
		}
		if !e.tree.occupied(s.LeafIndex) {
			return nil, invalid("framing/sender-leaf-blank", "6.1", "the sender is leaf %d, where no member is", s.LeafIndex)
		}
		return e.tree.signatureKeyOf(uint32(s.LeafIndex.node())), nil

	case SenderTypeExternal:
		if c.contentType != ContentTypeProposal {
			return nil, invalid("proposal/external-sender-not-proposal", "6.1", "an external sender may send proposals only")
		}
		data, ok := findExtension(e.context.extensions, ExtensionTypeExternalSenders)
		if !ok {
			return nil, invalid("proposal/external-sender-index", "12.1.8.1", "the group has no external senders")
		}
		senders, err := ParseExternalSenders(data)
		if err != nil {
			return nil, err
		}
		if uint64(s.Index) >= uint64(len(senders)) {
			return nil, invalid("proposal/external-sender-index", "12.1.8.1", "external sender %d of %d", s.Index, len(senders))
		}
		// RFC 9420, Section 12.1.8: what an external sender may propose.
		switch c.proposal.Type {
		case ProposalTypeAdd, ProposalTypeRemove, ProposalTypePSK, ProposalTypeReInit, ProposalTypeGroupContextExtensions,
			ProposalTypeAppDataUpdate, ProposalTypeAppEphemeral:
		case ProposalTypeUpdate:
			return nil, invalid("proposal/external-sender-type", "12.1.8", "%w",
				invalid("proposal/update-from-nonmember", "12.1.2", "an Update from an external sender"))
		default:
			return nil, invalid("proposal/external-sender-type", "12.1.8", "proposal type %d from an external sender", c.proposal.Type)
		}
		return senders[s.Index].SignatureKey, nil

	case SenderTypeNewMemberProposal:
		if c.contentType != ContentTypeProposal || c.proposal.Type != ProposalTypeAdd {
			return nil, invalid("proposal/new-member-not-add", "6.1", "a new member may propose an Add only")
		}
		return c.proposal.Add.LeafNode.SignatureKey, nil

	case SenderTypeNewMemberCommit:
		if c.contentType != ContentTypeCommit {
			return nil, invalid("external-commit/wrong-sender-type", "12.4.3.2", "sender type new_member_commit sends something else")
		}
		if c.commit.path == nil {
			return nil, invalid("external-commit/no-path", "12.4.3.2", "an external Commit without path")
		}
		return c.commit.path.leaf.SignatureKey, nil
	}
	return nil, invalid("codec/unknown-sender-type", "6", "sender type %d", c.sender.Type)
}

// verify checks the signature of a message of this epoch.
func (e *epoch) verify(ac *authenticatedContent) error {
	key, err := e.signatureKey(&ac.content)
	if err != nil {
		return err
	}
	return e.verifyWith(ac, key)
}

// CheckSignature checks the signature of a member's PublicMessage of this epoch under
// the key of its sender's leaf (RFC 9420, Section 6.1). Nothing else of the message is
// checked, least of all its tags: anybody can have sent it again.
func (e *epoch) CheckSignature(m *Message) error {
	if m.public == nil {
		return invalid("framing/signature-invalid", "6.1", "the message is no PublicMessage")
	}
	ac := &m.public.auth
	if err := e.checkFrame(ac.content.groupID, ac.content.epoch, true); err != nil {
		return err
	}
	return e.verify(ac)
}

func (e *epoch) verifyWith(ac *authenticatedContent, key SignaturePublicKey) error {
	err := ac.verifySignature(e.context.cipherSuite, e.signers, key, e.contextRaw)
	switch {
	case err == nil:
		return nil
	case ac.content.sender.Type == SenderTypeNewMemberProposal:
		return invalid("proposal/new-member-signature-key", "6.1", "%w", err)
	case ac.content.sender.Type == SenderTypeNewMemberCommit:
		return invalid("external-commit/signature-other-key", "12.4.3.2", "%w", err)
	}
	return err
}

// A transition is a Commit checked and carried out as far as it goes without
// secrets.
type transition struct {
	*change
	committer LeafIndex
	external  bool
	commit    *commit
	steps     []pathStep // of the path, if there is one
	provision []byte     // the GroupContext to which path secrets are encrypted
	context   groupContext
}

// next checks a Commit and works out everything about the next epoch that is
// public. RFC 9420, Section 12.4.2. The message's signature has been checked.
func (e *epoch) next(ac *authenticatedContent, cache *proposalCache, bootstrap ResumptionPSKUsage) (*transition, error) {
	c := ac.content.commit
	t := &transition{commit: c, committer: ac.content.sender.LeafIndex}
	if e.context.epoch == math.MaxUint64 {
		return nil, invalid("commit/epoch-overflow", "8.1", "the group is in its last epoch")
	}
	list := make([]CommittedProposal, len(c.proposals))
	for i := range c.proposals {
		p := &c.proposals[i]
		if p.proposal != nil {
			list[i] = CommittedProposal{Proposal: *p.proposal, Sender: ac.content.sender}
			continue
		}
		cached := cache.get(p.ref)
		if cached == nil && ac.content.sender.Type == SenderTypeNewMemberCommit && !e.tree.supportsProposal(ProposalTypeSelfRemove) {
			// It cannot be a SelfRemove, and nothing else may be named.
			list[i] = CommittedProposal{ByRef: true, Sender: ac.content.sender}
			continue
		}
		if cached == nil {
			return nil, invalid("proposal/ref-unknown", "12.4", "the Commit names a proposal that did not arrive in this epoch; fetch it and try again")
		}
		list[i] = CommittedProposal{Proposal: cached.proposal, Sender: cached.sender, ByRef: true}
	}

	var old *LeafNode
	var err error
	switch ac.content.sender.Type {
	case SenderTypeMember:
		old = e.tree.leaf(t.committer)
		t.change, err = e.applyProposals(list, t.committer, bootstrap, true)
	case SenderTypeNewMemberCommit:
		t.external = true
		if c.path == nil {
			return nil, invalid("external-commit/no-path", "12.4.3.2", "an external Commit without path")
		}
		t.change, t.committer, err = e.applyExternal(list, c.path.leaf, true)
	default:
		return nil, invalid("external-commit/wrong-sender-type", "12.4.3.2", "a Commit from sender type %d", ac.content.sender.Type)
	}
	if err != nil {
		return nil, err
	}
	if c.path == nil && t.needsPath {
		return nil, invalid("commit/path-missing-update", "12.4", "the Commit's proposals ask for a path, and it has none")
	}
	if c.path != nil {
		if err := e.checkPathLeaf(c.path.leaf, t.committer, old, t.resync); err != nil {
			return nil, err
		}
		if t.steps, err = t.tree.applyPath(t.committer, c.path, t.added); err != nil {
			return nil, err
		}
	}
	if err := t.check(t.committer, c.path != nil); err != nil {
		return nil, err
	}
	t.finish(e)
	t.context.confirmedTranscriptHash = e.context.cipherSuite.confirmedTranscriptHash(e.interim, ac)
	return t, nil
}

// finish closes the new tree and sets the GroupContexts that follow from it.
func (t *transition) finish(e *epoch) {
	t.tree.finish()
	t.context = e.context
	t.context.epoch++
	t.context.treeHash = t.tree.rootHash()
	t.context.extensions = cloneExtensions(t.extensions)
	t.provision = t.context.appendTo(nil)
}

// checkPathLeaf checks the leaf of an UpdatePath. RFC 9420, Sections 7.3 and
// 12.4.2. old is the committer's leaf, nil for an external Commit; resync is the
// leaf that an external Commit takes the place of, if any (Section 12.2).
func (e *epoch) checkPathLeaf(l *LeafNode, index LeafIndex, old, resync *LeafNode) error {
	cs := e.context.cipherSuite
	if err := l.checkSource(LeafNodeSourceCommit); err != nil {
		return invalid("commit/path-leaf-source", "12.4.2", "%w", err)
	}
	if err := l.checkForm(e.cfg, cs); err != nil {
		return err
	}
	if old != nil {
		if bytes.Equal(old.EncryptionKey, l.EncryptionKey) {
			return invalid("commit/path-leaf-key-unchanged", "12.4.2", "%w",
				invalid("leaf-node/encryption-key-unchanged", "7.3", "the encryption_key is the committer's old one"))
		}
		if !e.cfg.sameClient(old, l) {
			return invalid("leaf-node/credential-not-successor", "5.3.1", "the credential is not one that may follow the committer's old")
		}
	}
	// Whether it is the same client was asked with the Remove.
	if resync != nil && bytes.Equal(resync.EncryptionKey, l.EncryptionKey) {
		return invalid("leaf-node/encryption-key-unchanged", "12.2", "the encryption_key is that of the leaf which the external Commit replaces")
	}
	return l.verifySignature(cs, e.signers, e.context.groupID, index)
}

// epoch returns the next epoch, once its confirmation tag is known.
func (t *transition) epoch(e *epoch, tag []byte) *epoch {
	n := &epoch{
		cfg:             e.cfg,
		context:         t.context,
		tree:            t.tree,
		confirmationTag: bytes.Clone(tag),
		reinit:          t.reinit,
		signers:         e.signers,
	}
	n.contextRaw = n.context.appendTo(nil)
	n.interim = n.context.cipherSuite.interimTranscriptHash(n.context.confirmedTranscriptHash, tag)
	return n
}

// A cachedProposal is a proposal that may be committed by reference.
type cachedProposal struct {
	ref      ProposalRef
	proposal Proposal
	sender   Sender
	leafKey  hpkePrivateKey // of an Update of our own
}

// A proposalCache holds the proposals of one epoch, in the order of arrival.
type proposalCache struct {
	list   []*cachedProposal
	byRef  map[string]*cachedProposal
	stored int // how many of list are stored as pages
	size   int // bytes of all, encoded
}

// clone returns a cache to which proposals can be added for themselves.
func (c *proposalCache) clone() proposalCache {
	out := *c
	out.list, out.byRef = slices.Clone(c.list), maps.Clone(c.byRef)
	return out
}

func (c *proposalCache) get(ref ProposalRef) *cachedProposal { return c.byRef[string(ref)] }

// room checks that one more proposal of a sender may be kept.
func (c *proposalCache) room(p *Proposal, sender Sender, lim *Limits) error {
	if size := c.size + len(appendProposal(nil, p)); size > lim.MaxMessageSize {
		return invalid("proposal-list/too-many", "", "the proposals of this epoch would take %d bytes, over the limit of %d; commit first", size, lim.MaxMessageSize)
	}
	n := 0
	for _, p := range c.list {
		if p.sender == sender {
			n++
		}
	}
	if n >= lim.MaxSenderProposals && sender.Type != SenderTypeExternal || len(c.list) >= lim.MaxCachedProposals {
		return invalid("proposal-list/too-many", "", "no room for another proposal in this epoch: %d of this sender, %d in all; commit first", n, len(c.list))
	}
	return nil
}

func (c *proposalCache) add(p *cachedProposal) {
	if c.get(p.ref) != nil {
		return
	}
	if c.byRef == nil {
		c.byRef = make(map[string]*cachedProposal)
	}
	c.byRef[string(p.ref)] = p
	c.list = append(c.list, p)
	c.size += len(appendProposal(nil, &p.proposal))
}

// proposalRef names a proposal message. RFC 9420, Section 5.2.
func (e *epoch) proposalRef(ac *authenticatedContent) ProposalRef {
	return ProposalRef(RefHash(e.context.cipherSuite, "MLS 1.0 Proposal Reference", ac.appendTo(nil)))
}

// cacheProposal checks a proposal message whose signature is right and keeps
// the proposal.
func (e *epoch) cacheProposal(ac *authenticatedContent, cache *proposalCache) (*ProposalMessage, error) {
	pc := proposalContext{cfg: e.cfg, ctx: &e.context, tree: e.tree, received: true}
	p := ac.content.proposal
	if err := pc.validate(&p, ac.content.sender); err != nil {
		return nil, err
	}
	ref := e.proposalRef(ac)
	if cache.get(ref) == nil {
		if err := cache.admit(&p, ac.content.sender, ac.wireFormat); err != nil {
			return nil, err
		}
		if err := cache.room(&p, ac.content.sender, e.cfg.limits()); err != nil {
			return nil, err
		}
		cache.add(&cachedProposal{ref: ref, proposal: p, sender: ac.content.sender})
	}
	return &ProposalMessage{Ref: bytes.Clone(ref), Sender: ac.content.sender, Proposal: p, AuthenticatedData: ac.content.authenticatedData}, nil
}

// A Processed is what Process made of a message: *ApplicationMessage,
// *ProposalMessage, *StagedCommit, or for a PublicGroup *PublicStagedCommit.
type Processed interface{ processed() }

// An ApplicationMessage is a decrypted message from a member.
type ApplicationMessage struct {
	Sender            LeafIndex
	AuthenticatedData []byte
	Plaintext         []byte
	Generation        uint32 // counts the sender's messages in the epoch
	// Skipped is how many messages of the sender this one overtook: they were sent
	// before it in the epoch, and none of them was opened yet.
	Skipped uint32
	// Overtaken: a later message of the sender was opened before this one.
	Overtaken bool
	Epoch     uint64
}

// A ProposalMessage is a valid proposal. It is kept, so that a Commit may name
// it, until the epoch ends.
type ProposalMessage struct {
	Ref               ProposalRef
	Sender            Sender
	Proposal          Proposal
	AuthenticatedData []byte
}

func (*ApplicationMessage) processed() {}
func (*ProposalMessage) processed()    {}
