package mls

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
)

// ErrPendingProposals is returned by Encrypt while valid proposals wait for a
// Commit (RFC 9420, Section 12.4). Commit them first.
var ErrPendingProposals = errors.New("mls: proposals are waiting; commit them before sending application data")

// ErrOwnMessage is returned by Process for a PrivateMessage that names the
// group's own member as its sender. It was not verified: a server may
// have echoed it, or another member may have put our leaf into the sender data,
// so nothing follows from it. A Commit of ours as a PublicMessage is refused as
// commit/own-not-pending instead; compare it with StagedCommit.Message.
var ErrOwnMessage = errors.New("mls: the message is our own")

// ErrZeroed is returned by a group whose secrets were wiped.
var ErrZeroed = errors.New("mls: the secrets of this epoch were wiped")

// A Group is one member's state in one epoch: what belongs to the epoch, which
// never changes, and the epoch's ratchets, which Encrypt and Process move on.
// The next epoch is another Group, which a Commit gives by way of
// StagedCommit.Merge; the old one stays as it is until it is dropped. There
// must be one Group only for an epoch, because two would use message keys
// twice. A Group is not safe for concurrent use.
type Group struct {
	*epoch
	own       LeafIndex
	signature SignaturePrivateKey
	keys      nodeKeys
	secrets   *epochSecrets
	past      []pastEpoch // resumption PSKs, the oldest first

	ratchets *secretTree
	cache    proposalCache

	origin *Group // while the first Commit of its successor is made
}

// A pastEpoch keeps the resumption PSK of an epoch that is over.
type pastEpoch struct {
	epoch uint64
	psk   secret
}

// maxPastEpochs is how many resumption PSKs of past epochs a group keeps.
const maxPastEpochs = 16

// CreateGroup makes a group with one member: us. RFC 9420, Section 11.
// extensions are those of the GroupContext.
func CreateGroup(cfg *Config, cs CipherSuite, groupID []byte, key SignaturePrivateKey, o LeafOptions, extensions []Extension) (*Group, error) {
	if err := cfg.checkSuite(cs); err != nil {
		return nil, err
	}
	b, err := NewKeyPackage(cfg, cs, key, o)
	if err != nil {
		return nil, err
	}
	if err := checkExtensions(extensions, inGroupContext); err != nil {
		return nil, err
	}
	if err := cfg.checkExternalSenders(extensions); err != nil {
		return nil, err
	}
	t := newTree(cs, 2)
	t.add(b.keyPackage.LeafNode)
	if err := t.checkMembers(extensions); err != nil {
		return nil, fmt.Errorf("mls: the creator's leaf does not fit the group's extensions: %w", err)
	}
	t.finish()
	e := &epoch{cfg: cfg, tree: t, signers: new(signers), context: groupContext{
		version:     MLS10,
		cipherSuite: cs,
		groupID:     bytes.Clone(groupID),
		treeHash:    t.rootHash(),
		extensions:  cloneExtensions(extensions),
	}}
	e.contextRaw = e.context.appendTo(nil)
	es := make(secret, cs.HashLen())
	if _, err := io.ReadFull(cfg.rand(), es); err != nil {
		return nil, fmt.Errorf("mls: reading randomness: %w", err)
	}
	g := &Group{epoch: e, signature: key, secrets: newEpochSecretsFromEpochSecret(cs, es)}
	es.zero()
	g.keys = nodeKeys{0: {b.leafKey, b.keyPackage.LeafNode.EncryptionKey}}
	b.initKey.zero()
	// RFC 9420, Section 11: the first confirmation tag is over an empty
	// confirmed transcript hash.
	e.confirmationTag = cs.mac(g.secrets.confirmation, e.context.confirmedTranscriptHash)
	e.interim = cs.interimTranscriptHash(e.context.confirmedTranscriptHash, e.confirmationTag)
	g.start()
	return g, nil
}

// start makes the ratchets of the epoch.
func (g *Group) start() {
	g.ratchets = newSecretTree(g.context.cipherSuite, g.secrets.encryption, g.tree.size)
	g.secrets.encryption = nil
	g.secrets.zeroWelcome()
}

// OwnLeafIndex returns our leaf.
func (g *Group) OwnLeafIndex() LeafIndex { return g.own }

// OwnLeaf returns our leaf node.
func (g *Group) OwnLeaf() *LeafNode { return g.tree.leaf(g.own) }

// EpochAuthenticator returns a value that members can compare to make sure
// that they are in the same epoch (RFC 9420, Section 8.7).
func (g *Group) EpochAuthenticator() []byte { return bytes.Clone(g.secrets.authenticator) }

// Export derives a secret for use outside of MLS (RFC 9420, Section 8.5).
func (g *Group) Export(label string, context []byte, length int) ([]byte, error) {
	if g.ratchets == nil {
		return nil, ErrZeroed
	}
	return g.secrets.export(g.context.cipherSuite, label, context, length)
}

// ResumptionPSK returns the epoch's resumption PSK (RFC 9420, Section 8.6), for
// a Config.PSK of another group. It is a secret.
func (g *Group) ResumptionPSK() []byte { return bytes.Clone(g.secrets.resumption) }

// PendingProposals returns the proposals that arrived or were made in this
// epoch.
func (g *Group) PendingProposals() []ProposalMessage { return g.cache.messages() }

func (c *proposalCache) messages() []ProposalMessage {
	out := make([]ProposalMessage, len(c.list))
	for i, p := range c.list {
		out[i] = ProposalMessage{Ref: bytes.Clone(p.ref), Sender: p.sender, Proposal: p.proposal}
	}
	return out
}

// GroupInfoOptions say what a GroupInfo holds beside what it must.
type GroupInfoOptions struct {
	RatchetTree bool // the whole tree
	ExternalPub bool // what an external Commit needs
	Extensions  []Extension
}

// GroupInfo returns a signed GroupInfo of this epoch as an MLSMessage. RFC
// 9420, Section 12.4.3.
func (g *Group) GroupInfo(o GroupInfoOptions) ([]byte, error) {
	if g.ratchets == nil {
		return nil, ErrZeroed
	}
	raw, err := g.groupInfo(o)
	if err != nil {
		return nil, err
	}
	return append(appendMessageHeader(nil, WireFormatGroupInfo), raw...), nil
}

func (g *Group) groupInfo(o GroupInfoOptions) ([]byte, error) {
	var exts []Extension
	if o.RatchetTree {
		exts = append(exts, Extension{ExtensionTypeRatchetTree, g.RatchetTree()})
	}
	if o.ExternalPub {
		priv, pub, err := g.secrets.externalKeyPair(g.context.cipherSuite)
		if err != nil {
			return nil, fmt.Errorf("mls: deriving the external key: %w", err)
		}
		priv.zero()
		exts = append(exts, Extension{ExtensionTypeExternalPub, appendOpaqueVec(nil, pub)})
	}
	exts = append(exts, o.Extensions...)
	if err := checkExtensions(exts, inGroupInfo); err != nil {
		return nil, err
	}
	raw, err := signGroupInfo(g.context.cipherSuite, g.signature, g.contextRaw, exts, g.confirmationTag, g.own)
	if err != nil {
		return nil, fmt.Errorf("mls: signing a GroupInfo: %w", err)
	}
	return raw, nil
}

// Encrypt returns plaintext as a PrivateMessage to the group. aad is sent in
// the clear, but authenticated. It moves the ratchet on: store RatchetState
// before the message leaves.
func (g *Group) Encrypt(plaintext, aad []byte) ([]byte, error) {
	switch {
	case g.ratchets == nil:
		return nil, ErrZeroed
	case g.reinit != nil:
		return nil, invalid("framing/group-closed", "12.4.2", "the group is closed by a ReInit")
	case len(g.cache.list) > 0:
		// RFC 9420, Section 12.4.
		return nil, invalid("state/send-with-pending-proposals", "12.4", "%w", ErrPendingProposals)
	}
	ac, err := g.sign(framedContent{contentType: ContentTypeApplication, applicationData: plaintext, authenticatedData: aad}, WireFormatPrivateMessage)
	if err != nil {
		return nil, err
	}
	return g.protect(ac)
}

// sign frames content of this epoch as ours.
func (g *Group) sign(c framedContent, wf WireFormat) (*authenticatedContent, error) {
	c.groupID = g.context.groupID
	c.epoch = g.context.epoch
	c.sender = Sender{Type: SenderTypeMember, LeafIndex: g.own}
	ac, err := signContent(g.context.cipherSuite, g.signature, wf, c, g.contextRaw)
	if err != nil {
		return nil, fmt.Errorf("mls: signing a message: %w", err)
	}
	return ac, nil
}

// protect makes an MLSMessage of signed content.
func (g *Group) protect(ac *authenticatedContent) ([]byte, error) {
	cs := g.context.cipherSuite
	if ac.wireFormat == WireFormatPublicMessage {
		return sendable(ac.publicMessage(cs, g.secrets.membership, g.contextRaw))
	}
	padding := 0
	if g.cfg != nil {
		padding = g.cfg.PaddingSize
	}
	raw, err := protectPrivate(cs, ac, g.ratchets, g.secrets.senderData, g.cfg.limits(), padding, g.cfg.rand(), g.cfg.onSeal())
	if err != nil {
		return nil, err
	}
	return sendable(raw)
}

// sendable refuses messages of ours that ParseMessage does not take.
func sendable(raw []byte) ([]byte, error) {
	if len(raw) > defaultMaxMessageSize {
		return nil, fmt.Errorf("mls: a message of %d bytes is over the limit of %d, and nobody would read it; send less at once", len(raw), defaultMaxMessageSize)
	}
	return raw, nil
}

// FramingOptions say how a handshake message is framed.
type FramingOptions struct {
	AuthenticatedData []byte
	Private           bool // as PrivateMessage
}

func (o *FramingOptions) wireFormat() WireFormat {
	if o.Private {
		return WireFormatPrivateMessage
	}
	return WireFormatPublicMessage
}

// Propose returns a message that proposes p, and keeps the proposal so that a
// Commit may name it: store RatchetState before the message leaves.
func (g *Group) Propose(p Proposal, o FramingOptions) ([]byte, ProposalRef, error) {
	return g.propose(p, nil, o)
}

// ProposeUpdate proposes to give our leaf a new key, and what the options say.
// A nil leaf keeps credential, capabilities and extensions.
func (g *Group) ProposeUpdate(leaf *LeafOptions, o FramingOptions) ([]byte, ProposalRef, error) {
	if g.ratchets == nil {
		return nil, nil, ErrZeroed
	}
	cs := g.context.cipherSuite
	priv, pub, err := cs.generateKeyPair(g.cfg.rand())
	if err != nil {
		return nil, nil, err
	}
	l, err := g.newLeaf(leaf, g.signature, pub)
	if err != nil {
		return nil, nil, err
	}
	l.Source = LeafNodeSourceUpdate
	if l, err = l.sign(cs, g.signature, g.context.groupID, g.own); err != nil {
		return nil, nil, err
	}
	return g.propose(Proposal{Type: ProposalTypeUpdate, Update: l}, priv, o)
}

func (g *Group) propose(p Proposal, leafKey hpkePrivateKey, o FramingOptions) ([]byte, ProposalRef, error) {
	if g.ratchets == nil {
		return nil, nil, ErrZeroed
	}
	if g.reinit != nil {
		return nil, nil, invalid("framing/group-closed", "12.4.2", "the group is closed by a ReInit")
	}
	if p.Type == ProposalTypeUpdate && leafKey == nil || !p.complete() {
		return nil, nil, fmt.Errorf("mls: proposal type %d is incomplete or has a method of its own", p.Type)
	}
	p, err := fillNonce(p, g.context.cipherSuite, g.cfg.rand())
	if err != nil {
		return nil, nil, err
	}
	self := Sender{Type: SenderTypeMember, LeafIndex: g.own}
	pc := proposalContext{cfg: g.cfg, ctx: &g.context, tree: g.tree}
	if err := pc.validate(&p, self); err != nil {
		return nil, nil, err
	}
	if err := g.cache.admit(&p, self, o.wireFormat()); err != nil {
		return nil, nil, err
	}
	if err := g.cache.room(&p, self, g.cfg.limits()); err != nil {
		return nil, nil, err
	}
	ac, err := g.sign(framedContent{contentType: ContentTypeProposal, proposal: p, authenticatedData: o.AuthenticatedData}, o.wireFormat())
	if err != nil {
		return nil, nil, err
	}
	msg, err := g.protect(ac)
	if err != nil {
		return nil, nil, err
	}
	ref := g.proposalRef(ac)
	g.cache.add(&cachedProposal{ref: ref, proposal: p, sender: self, leafKey: leafKey})
	return msg, ref, nil
}

// fillNonce gives a PSK proposal without a nonce a random one.
func fillNonce(p Proposal, cs CipherSuite, rand io.Reader) (Proposal, error) {
	if p.Type != ProposalTypePSK || p.PSK == nil || len(p.PSK.Nonce) > 0 {
		return p, nil
	}
	id := *p.PSK
	id.Nonce = make([]byte, cs.HashLen())
	if _, err := io.ReadFull(rand, id.Nonce); err != nil {
		return p, fmt.Errorf("mls: reading randomness: %w", err)
	}
	p.PSK = &id
	return p, nil
}

// newLeaf returns a leaf, not yet signed, that may follow our present one.
func (g *Group) newLeaf(o *LeafOptions, key SignaturePrivateKey, pub HPKEPublicKey) (*LeafNode, error) {
	old := g.OwnLeaf()
	if o != nil {
		return o.leaf(old.Capabilities, key, pub)
	}
	return &LeafNode{
		EncryptionKey: pub,
		SignatureKey:  key.Public(),
		Credential:    old.Credential,
		Capabilities:  old.Capabilities,
		Extensions:    old.Extensions,
	}, nil
}

// Process checks a message of this epoch. An *ApplicationMessage has used up
// its key and a *ProposalMessage is kept for a Commit: store RatchetState
// before acting on them. A *StagedCommit has changed nothing. After an error
// the group is as it was.
func (g *Group) Process(m *Message) (Processed, error) {
	if g.ratchets == nil {
		return nil, ErrZeroed
	}
	switch {
	case m.public != nil:
		ac := &m.public.auth
		if err := g.checkFrame(ac.content.groupID, ac.content.epoch, true); err != nil {
			return nil, err
		}
		key, err := g.signatureKey(&ac.content)
		if err != nil {
			return nil, err
		}
		if err := m.public.verifyMembershipTag(g.context.cipherSuite, g.secrets.membership, g.contextRaw); err != nil {
			return nil, err
		}
		if err := g.verifyWith(ac, key); err != nil {
			return nil, err
		}
		if ac.content.contentType == ContentTypeProposal {
			return g.cacheProposal(ac, &g.cache)
		}
		return processedCommit(g.stage(ac))

	case m.private != nil:
		p := m.private
		if err := g.checkFrame(p.groupID, p.epoch, p.contentType != ContentTypeApplication); err != nil {
			return nil, err
		}
		ac, use, err := unprotectPrivate(g.context.cipherSuite, p, g.ratchets, g.secrets.senderData, g.cfg.limits(), g.contextRaw, g.signers, g.privateSigner)
		if err != nil {
			return nil, err
		}
		switch ac.content.contentType {
		case ContentTypeProposal:
			pm, err := g.cacheProposal(ac, &g.cache)
			if err != nil {
				use.drop()
				return nil, err
			}
			use.commit()
			return pm, nil
		case ContentTypeCommit:
			// A Commit leaves the group as it is: the key can be used
			// again, and goes with the epoch.
			use.drop()
			return processedCommit(g.stage(ac))
		}
		msg := &ApplicationMessage{
			Sender:            ac.content.sender.LeafIndex,
			AuthenticatedData: ac.content.authenticatedData,
			Plaintext:         ac.content.applicationData,
			Generation:        use.generation,
			Skipped:           use.skips(),
			Overtaken:         use.ahead == nil,
			Epoch:             ac.content.epoch,
		}
		use.commit()
		return msg, nil
	}
	return nil, unexpected(m, "is not for a group to process")
}

// ProcessBeside does what Process does with a PublicMessage, as if the given
// proposals had come before it, and leaves the group as it is: it keeps neither
// them nor m, if that is a proposal. Of the proposals those that are not valid,
// or not in the clear, are left out, and a Commit that names one of them fails.
// It is for Commits that may never be accepted, and for looking at a proposal
// before it is kept, since a group that keeps one sends nothing until it is
// committed (RFC 9420, Section 12.4).
func (g *Group) ProcessBeside(proposals []*Message, m *Message) (Processed, error) {
	if m.public == nil {
		return nil, unexpected(m, "is no PublicMessage")
	}
	beside := *g
	beside.cache = g.cache.clone()
	for _, p := range proposals {
		if p.public != nil && p.ContentType() == ContentTypeProposal {
			_, _ = beside.Process(p) // one that is not valid fails the Commit that names it
		}
	}
	return beside.Process(m)
}

// Public returns what a server sees of the epoch, without its proposals. The two
// share the tree.
func (g *Group) Public() *PublicGroup { return &PublicGroup{epoch: g.epoch} }

func processedCommit(s *StagedCommit, err error) (Processed, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// privateSigner returns the signature key of the sender of a PrivateMessage.
func (g *Group) privateSigner(i LeafIndex) (SignaturePublicKey, error) {
	if i == g.own {
		return nil, ErrOwnMessage
	}
	if !g.tree.occupied(i) {
		return nil, invalid("framing/sender-data-blank-leaf", "6.3.2", "the sender is leaf %d, where no member is", i)
	}
	return g.tree.signatureKeyOf(uint32(i.node())), nil
}

// psk finds a pre-shared key.
func (g *Group) psk(id *PreSharedKeyID) (secret, bool) {
	if s, ok := g.ownPSK(id); ok {
		return s, true
	}
	if g.origin != nil {
		if s, ok := g.origin.ownPSK(id); ok {
			return s, true
		}
	}
	return g.cfg.psk(id)
}

// ownPSK finds a resumption PSK of this group.
func (g *Group) ownPSK(id *PreSharedKeyID) (secret, bool) {
	if id.Type == PSKTypeResumption && bytes.Equal(id.GroupID, g.context.groupID) {
		if id.Epoch == g.context.epoch {
			return g.secrets.resumption, g.ratchets != nil // nothing is left after Zero
		}
		for i := range g.past {
			if g.past[i].epoch == id.Epoch {
				return g.past[i].psk, true
			}
		}
	}
	return nil, false
}

func (c *Config) psk(id *PreSharedKeyID) (secret, bool) {
	if c == nil || c.PSK == nil {
		return nil, false
	}
	s, ok := c.PSK(*id)
	return secret(s), ok
}

// pskSecret combines the PSKs of a Commit.
func pskSecret(cs CipherSuite, ids []PreSharedKeyID, find func(*PreSharedKeyID) (secret, bool)) (secret, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	psks := make([]secret, len(ids))
	for i := range ids {
		var ok bool
		if psks[i], ok = find(&ids[i]); !ok {
			return nil, invalid("commit/psk-unavailable", "12.4.2", "a pre-shared key of the Commit is not at hand")
		}
	}
	return cs.pskSecret(ids, psks)
}

// advance makes the group of the next epoch from a transition, with our leaf's
// and path's keys, and its confirmation tag. initSecret and commitSecret are
// wiped unless they belong to g.
func advance(t *transition, own LeafIndex, key SignaturePrivateKey, keys nodeKeys, initSecret, commitSecret, psks secret) (*Group, []byte) {
	cs := t.context.cipherSuite
	contextRaw := t.context.appendTo(nil)
	if commitSecret == nil {
		commitSecret = make(secret, cs.HashLen())
	}
	joiner := cs.joinerSecret(initSecret, commitSecret, contextRaw)
	commitSecret.zero()
	n := &Group{own: own, signature: key, keys: keys, secrets: newEpochSecrets(cs, joiner, psks, contextRaw)}
	joiner.zero()
	return n, cs.mac(n.secrets.confirmation, t.context.confirmedTranscriptHash)
}

// settle completes a group made by advance.
func (n *Group) settle(t *transition, from *epoch, tag []byte) {
	n.epoch = t.epoch(from, tag)
	n.ratchets = newSecretTree(n.context.cipherSuite, n.secrets.encryption, n.tree.size)
	n.secrets.encryption = nil
}

// inherit takes over the resumption PSKs of the epoch before.
func (n *Group) inherit(g *Group) {
	past := g.past[max(0, len(g.past)-maxPastEpochs+1):]
	n.past = append(slices.Clone(past), pastEpoch{g.context.epoch, g.secrets.resumption.clone()})
}

// stage checks a Commit by somebody else. RFC 9420, Section 12.4.2.
func (g *Group) stage(ac *authenticatedContent) (*StagedCommit, error) {
	sender := ac.content.sender
	if sender.Type == SenderTypeMember && sender.LeafIndex == g.own {
		return nil, invalid("commit/own-not-pending", "14", "the Commit is our own; merge the StagedCommit that Commit returned. If there is none, another copy of this state made it")
	}
	cs := g.context.cipherSuite
	if n := len(ac.confirmationTag); n != cs.HashLen() {
		return nil, invalid("commit/confirmation-tag-truncated", "12.4.2", "a confirmation tag of %d bytes where %d are due", n, cs.HashLen())
	}
	t, err := g.next(ac, &g.cache, 0)
	if err != nil {
		return nil, err
	}
	s := newStagedCommit(t, ac)
	if t.removes(g.own) {
		// We cannot follow: the new epoch's secrets are not for us.
		return s, nil
	}
	psks, err := pskSecret(cs, t.psks, g.psk)
	if err != nil {
		return nil, err
	}
	defer psks.zero()
	keys := g.keys
	for _, p := range t.proposals {
		if p.Proposal.Type == ProposalTypeUpdate && p.Sender.LeafIndex == g.own {
			if keys, err = g.updatedKeys(p.Proposal.Update); err != nil {
				return nil, err
			}
		}
	}
	initSecret := g.secrets.init
	if t.external {
		priv, pub, err := g.secrets.externalKeyPair(cs)
		if err != nil {
			return nil, err
		}
		initSecret, err = cs.externalInitDecap(priv, pub, t.externalInit)
		priv.zero()
		if err != nil {
			return nil, err
		}
		defer initSecret.zero()
	}
	var commitSecret secret
	if t.commit.path != nil {
		keys, commitSecret, err = t.tree.openPath(g.own, keys, t.steps, t.commit.path, t.added, t.provision)
		if err != nil {
			return nil, err
		}
	} else {
		keys = keys.keep(t.tree)
	}
	n, _ := advance(t, g.own, g.signature, keys, initSecret, commitSecret, psks)
	if !cs.verifyMAC(n.secrets.confirmation, ac.confirmationTag, t.context.confirmedTranscriptHash) {
		n.secrets.zero()
		return nil, invalid("commit/confirmation-tag-wrong", "12.4.2", "the confirmation tag is not that of the Commit; the committer is in another state")
	}
	n.secrets.zeroWelcome()
	n.settle(t, g.epoch, ac.confirmationTag)
	n.inherit(g)
	s.next = n
	return s, nil
}

// updatedKeys returns our keys with the leaf key of an Update of ours.
func (g *Group) updatedKeys(l *LeafNode) (nodeKeys, error) {
	for _, p := range g.cache.list {
		if p.leafKey != nil && bytes.Equal(p.proposal.Update.EncryptionKey, l.EncryptionKey) {
			return nodeKeys{g.own.node(): {p.leafKey.clone(), l.EncryptionKey}}, nil
		}
	}
	return nil, invalid("commit/path-secret-undecryptable", "7.5", "an Update of ours is committed whose private key is lost")
}

// Zero wipes the group's secrets, as far as Go lets us. Secrets that the next
// epoch needs live on there.
func (g *Group) Zero() {
	g.secrets.zero()
	if g.ratchets != nil {
		g.ratchets.zero()
	}
	for _, p := range g.cache.list {
		p.leafKey.zero()
	}
	g.ratchets = nil
	g.cache = proposalCache{}
	g.keys = nil
	g.past = nil
}

// Format prints which epoch it is and nothing secret, whatever the verb.
func (g *Group) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "mls.Group(%x, epoch %d, leaf %d)", g.context.groupID, g.context.epoch, g.own)
}
