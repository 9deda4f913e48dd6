package mls

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
)

// commitInfo is what a checked Commit says about itself.
type commitInfo struct {
	sender            Sender
	committer         LeafIndex
	epoch             uint64
	authenticatedData []byte
	proposals         []CommittedProposal
	added             []LeafIndex
	removed           []RemovedLeaf
	updated           []LeafIndex
	reinit            *ReInit
	confirmationTag   []byte
	hasPath           bool
	committerLeaf     *LeafNode
	tree              *ratchetTree // of the next epoch
	extensions        []Extension
}

// Sender returns who sent the Commit: a member, or a new member that joins by it.
func (c *commitInfo) Sender() Sender { return c.sender }

// Committer returns the committer's leaf, in the next epoch if it joins.
func (c *commitInfo) Committer() LeafIndex { return c.committer }

// External tells whether the Commit is by a new member.
func (c *commitInfo) External() bool { return c.sender.Type == SenderTypeNewMemberCommit }

// Epoch returns the number of the epoch that the Commit begins.
func (c *commitInfo) Epoch() uint64 { return c.epoch }

// AuthenticatedData returns what the committer sent beside the Commit.
func (c *commitInfo) AuthenticatedData() []byte { return c.authenticatedData }

// Proposals returns what was committed.
func (c *commitInfo) Proposals() []CommittedProposal { return c.proposals }

// Added returns the leaves of members added by Add proposals.
func (c *commitInfo) Added() []LeafIndex { return c.added }

// Removed returns the members that the Commit removes.
func (c *commitInfo) Removed() []RemovedLeaf { return c.removed }

// Updated returns the leaves replaced by Update proposals.
func (c *commitInfo) Updated() []LeafIndex { return c.updated }

// CommitterLeaf returns the committer's leaf in the next epoch.
func (c *commitInfo) CommitterLeaf() *LeafNode { return c.committerLeaf }

// Members yields the members of the next epoch in the order of their leaves.
func (c *commitInfo) Members() iter.Seq2[LeafIndex, *LeafNode] { return c.tree.members() }

// Leaf returns the member at i in the next epoch, if there is one.
func (c *commitInfo) Leaf(i LeafIndex) (*LeafNode, bool) {
	l := c.tree.leaf(i)
	return l, l != nil
}

// MemberCount returns the number of members of the next epoch.
func (c *commitInfo) MemberCount() int { return int(c.tree.count) }

// Extensions returns the extensions of the next epoch's GroupContext.
func (c *commitInfo) Extensions() []Extension { return cloneExtensions(c.extensions) }

// Extension returns the body of an extension of the next epoch's GroupContext.
func (c *commitInfo) Extension(t ExtensionType) ([]byte, bool) {
	return findExtension(c.extensions, t)
}

// TreeHash returns the hash of the next epoch's ratchet tree.
func (c *commitInfo) TreeHash() []byte { return bytes.Clone(c.tree.rootHash()) }

// HasPath tells whether the committer's leaf was replaced.
func (c *commitInfo) HasPath() bool { return c.hasPath }

// ReInit returns the ReInit that closes the group, or nil.
func (c *commitInfo) ReInit() *ReInit { return c.reinit }

// ConfirmationTag returns the Commit's confirmation tag.
func (c *commitInfo) ConfirmationTag() []byte { return bytes.Clone(c.confirmationTag) }

func newCommitInfo(t *transition, ac *authenticatedContent) commitInfo {
	return commitInfo{
		sender:            ac.content.sender,
		committer:         t.committer,
		epoch:             t.context.epoch,
		authenticatedData: ac.content.authenticatedData,
		proposals:         t.proposals,
		added:             t.added,
		removed:           t.removed,
		updated:           t.updated,
		reinit:            t.reinit,
		confirmationTag:   ac.confirmationTag,
		hasPath:           t.commit.path != nil,
		committerLeaf:     t.tree.leaf(t.committer),
		tree:              t.tree,
		extensions:        t.context.extensions,
	}
}

// A StagedCommit is a Commit, ours or another member's, checked in full and
// ready to be merged. It may as well be dropped.
type StagedCommit struct {
	commitInfo
	next *Group // nil when the Commit removes us

	// Of a Commit of ours.
	message []byte
	welcome *Welcome
}

func (*StagedCommit) processed() {}

func newStagedCommit(t *transition, ac *authenticatedContent) *StagedCommit {
	return &StagedCommit{commitInfo: newCommitInfo(t, ac)}
}

// Message returns the Commit of ours as an MLSMessage, nil for another's.
func (s *StagedCommit) Message() []byte { return s.message }

// Welcome returns the Welcome for all members that a Commit of ours adds, nil
// if there are none. RFC 9420, Section 14: send it once the Commit is accepted.
func (s *StagedCommit) Welcome() []byte {
	if s.welcome == nil {
		return nil
	}
	return s.welcome.appendTo(appendMessageHeader(nil, WireFormatWelcome))
}

// WelcomeFor returns the Welcome with the secrets for one new member only.
func (s *StagedCommit) WelcomeFor(ref KeyPackageRef) ([]byte, error) {
	if s.welcome != nil {
		for i := range s.welcome.secrets {
			if e := &s.welcome.secrets[i]; bytes.Equal(e.newMember, ref) {
				w := *s.welcome
				w.secrets = []encryptedGroupSecrets{*e}
				return w.appendTo(appendMessageHeader(nil, WireFormatWelcome)), nil
			}
		}
	}
	return nil, errors.New("mls: the Commit does not add this KeyPackage; pass the reference of one that it adds")
}

// GroupInfo returns a GroupInfo of the next epoch, signed by us.
func (s *StagedCommit) GroupInfo(o GroupInfoOptions) ([]byte, error) {
	if s.next == nil {
		return nil, errors.New("mls: the Commit removes us; there is no GroupInfo of its epoch")
	}
	return s.next.GroupInfo(o)
}

// SelfRemoved tells whether the Commit removes us.
func (s *StagedCommit) SelfRemoved() bool { return s.next == nil }

// EpochAuthenticator returns that of the next epoch, nil if we are removed.
func (s *StagedCommit) EpochAuthenticator() []byte {
	if s.next == nil {
		return nil
	}
	return s.next.EpochAuthenticator()
}

// Merge returns the group of the next epoch, always the same one, and nil if
// the Commit removes us. It cannot fail.
func (s *StagedCommit) Merge() *Group { return s.next }

// CommitOptions say what a Commit holds. The zero value gives our leaf and path
// new keys and nothing else.
type CommitOptions struct {
	Proposals   []Proposal    // by value
	Pending     bool          // all proposals of this epoch that can be committed, by reference
	PendingRefs []ProposalRef // these proposals by reference

	// A Commit of Adds, PSKs and ReInit needs no path, and has none unless
	// ForcePath is set. NoPath makes a Commit fail that needs one.
	ForcePath bool
	NoPath    bool

	AuthenticatedData []byte
	Private           bool // as PrivateMessage; this moves our ratchet on: store RatchetState

	WelcomeRatchetTree  bool // put the tree into the Welcome
	WelcomeExternalPub  bool // put the external key into the Welcome
	GroupInfoExtensions []Extension

	NewSignatureKey *SignaturePrivateKey // our signature key from the next epoch on
	Leaf            *LeafOptions         // what our leaf becomes; nil keeps it
}

// Commit makes a Commit. The group is left as it is; StagedCommit.Merge gives
// that of the next epoch. RFC 9420, Section 12.4.1.
func (g *Group) Commit(o CommitOptions) (*StagedCommit, error) {
	return g.commit(&o, 0)
}

func (g *Group) commit(o *CommitOptions, bootstrap ResumptionPSKUsage) (*StagedCommit, error) {
	if g.ratchets == nil {
		return nil, ErrZeroed
	}
	if g.reinit != nil {
		return nil, invalid("framing/group-closed", "12.4.2", "the group is closed by a ReInit")
	}
	if g.context.epoch == 1<<64-1 {
		return nil, invalid("commit/epoch-overflow", "8.1", "the group is in its last epoch")
	}
	cs := g.context.cipherSuite
	rand := g.cfg.rand()
	commit := new(commit)
	list, err := g.gather(o, commit)
	if err != nil {
		return nil, err
	}
	t := &transition{committer: g.own, commit: commit}
	if t.change, err = g.applyProposals(list, g.own, bootstrap, false); err != nil {
		return nil, err
	}
	psks, err := pskSecret(cs, t.psks, g.psk)
	if err != nil {
		return nil, err
	}
	defer psks.zero()

	if o.NoPath && (t.needsPath || o.ForcePath || o.NewSignatureKey != nil || o.Leaf != nil) {
		return nil, errors.New("mls: the Commit needs a path; leave NoPath unset")
	}
	key := g.signature
	if o.NewSignatureKey != nil {
		key = *o.NewSignatureKey
	}
	var path *newPath
	keys := g.keys
	if t.needsPath || o.ForcePath || o.NewSignatureKey != nil || o.Leaf != nil {
		path, err = t.tree.createPath(g.own, rand, func(pub HPKEPublicKey, parentHash []byte) (*LeafNode, error) {
			l, err := g.newLeaf(o.Leaf, key, pub)
			if err != nil {
				return nil, err
			}
			l.Source = LeafNodeSourceCommit
			l.ParentHash = parentHash
			if l, err = l.sign(cs, key, g.context.groupID, g.own); err != nil {
				return nil, err
			}
			return l, g.checkPathLeaf(l, g.own, g.OwnLeaf(), nil)
		})
		if err != nil {
			return nil, err
		}
		defer path.zero()
		keys = path.keys
	}
	if err := t.check(t.committer, path != nil); err != nil {
		return nil, err
	}
	t.finish(g.epoch)
	var commitSecret secret
	if path != nil {
		if commit.path, err = path.encrypt(t.tree, t.added, t.provision, rand); err != nil {
			return nil, err
		}
		commitSecret = path.commitSecret
	} else {
		keys = keys.keep(t.tree)
	}

	wf := WireFormatPublicMessage
	if o.Private {
		wf = WireFormatPrivateMessage
	}
	ac, err := g.sign(framedContent{contentType: ContentTypeCommit, commit: commit, authenticatedData: o.AuthenticatedData}, wf)
	if err != nil {
		return nil, err
	}
	t.context.confirmedTranscriptHash = cs.confirmedTranscriptHash(g.interim, ac)
	n, tag := advance(t, g.own, key, keys, g.secrets.init, commitSecret, psks)
	ac.confirmationTag = tag
	n.settle(t, g.epoch, tag)
	n.inherit(g)

	s := newStagedCommit(t, ac)
	s.next = n
	if len(t.added) > 0 {
		if s.welcome, err = n.makeWelcome(t, path, o); err != nil {
			return nil, err
		}
	}
	n.secrets.zeroWelcome()
	if s.message, err = g.protect(ac); err != nil {
		return nil, err
	}
	return s, nil
}

// gather lists the proposals of a Commit of ours and sets them in commit.
func (g *Group) gather(o *CommitOptions, commit *commit) ([]CommittedProposal, error) {
	self := Sender{Type: SenderTypeMember, LeafIndex: g.own}
	list := make([]CommittedProposal, 0, len(o.PendingRefs)+len(o.Proposals))
	commit.proposals = make([]proposalOrRef, 0, cap(list))
	byRef := func(p *cachedProposal) {
		list = append(list, CommittedProposal{Proposal: p.proposal, Sender: p.sender, ByRef: true})
		commit.proposals = append(commit.proposals, proposalOrRef{ref: p.ref})
	}
	for _, ref := range o.PendingRefs {
		p := g.cache.get(ref)
		if p == nil {
			return nil, invalid("proposal/ref-unknown", "12.4", "a proposal to commit is not of this epoch")
		}
		byRef(p)
	}
	values := make([]CommittedProposal, 0, len(o.Proposals))
	for i, p := range o.Proposals {
		if !p.complete() {
			return nil, fmt.Errorf("mls: proposal %d of the Commit is incomplete", i)
		}
		p, err := fillNonce(p, g.context.cipherSuite, g.cfg.rand())
		if err != nil {
			return nil, err
		}
		values = append(values, CommittedProposal{Proposal: p, Sender: self})
	}
	if o.Pending {
		for _, p := range g.selectPending(append(slices.Clone(list), values...)) {
			if !slices.ContainsFunc(o.PendingRefs, func(r ProposalRef) bool { return bytes.Equal(r, p.ref) }) {
				byRef(p)
			}
		}
	}
	for i := range values {
		list = append(list, values[i])
		commit.proposals = append(commit.proposals, proposalOrRef{proposal: &values[i].Proposal})
	}
	return list, nil
}

// selectPending returns the cached proposals that can be committed beside the
// given ones: a member cannot stop Commits by proposals that are right one by
// one and wrong together. RFC 9420, Section 12.2: where two exclude each other,
// Removes go before the rest, and otherwise what came first wins.
func (g *Group) selectPending(fixed []CommittedProposal) []*cachedProposal {
	s := &selection{g: g, tree: g.tree.change(), exts: g.context.extensions, plain: g.context.extensions}
	s.req, _ = requiredCapabilities(s.exts)
	pc := proposalContext{cfg: g.cfg, ctx: &g.context, tree: g.tree}
	for i := range fixed {
		s.take(&fixed[i].Proposal, fixed[i].Sender)
	}
	var out []*cachedProposal
	for _, turn := range [][]ProposalType{
		{ProposalTypeSelfRemove},
		{ProposalTypeRemove},
		{ProposalTypeGroupContextExtensions},
		{ProposalTypeAppDataUpdate, ProposalTypeAppEphemeral},
		{ProposalTypeUpdate, ProposalTypeAdd, ProposalTypePSK},
		{ProposalTypeReInit},
	} {
		for _, p := range g.cache.list {
			if slices.Contains(turn, p.proposal.Type) && pc.validate(&p.proposal, p.sender) == nil && s.take(&p.proposal, p.sender) {
				out = append(out, p)
			}
		}
	}
	return out
}

// A selection is a list of proposals that fit together.
type selection struct {
	g         *Group
	tree      *ratchetTree // its leaves are those after the proposals
	exts      []Extension
	req       *RequiredCapabilities
	touched   []LeafIndex
	initKeys  []HPKEPublicKey
	psks      []PreSharedKeyID
	appData   []*AppDataUpdate
	ephemeral bool        // an AppEphemeral is among them
	plain     []Extension // exts without the effect of appData
	gce       bool
	reinit    bool
	n         int
}

// take adds a proposal if it fits.
func (s *selection) take(p *Proposal, sender Sender) bool {
	if s.reinit || s.n >= s.g.cfg.limits().MaxProposals || !s.fits(p, sender) {
		return false
	}
	s.n++
	return true
}

func (s *selection) fits(p *Proposal, sender Sender) bool {
	switch p.Type {
	case ProposalTypeRemove, ProposalTypeSelfRemove:
		leaf := p.Remove
		if p.Type == ProposalTypeSelfRemove {
			leaf = sender.LeafIndex
		}
		if leaf == s.g.own || slices.Contains(s.touched, leaf) || s.tree.leaf(leaf) == nil {
			return false
		}
		s.touched = append(s.touched, leaf)
		s.tree.setLeaf(leaf, nil)
		return true

	case ProposalTypeAppEphemeral:
		if !s.tree.supportsProposal(p.Type) {
			return false
		}
		s.ephemeral = true
		return true

	case ProposalTypeAppDataUpdate:
		updates := append(s.appData[:len(s.appData):len(s.appData)], p.AppDataUpdate)
		exts, err := s.g.cfg.updateAppData(s.plain, updates)
		if err != nil || !s.tree.supportsProposal(p.Type) || !s.tree.profiles.every(func(c *Capabilities) bool { return c.supportsGroup(exts, s.req) == nil }) {
			return false
		}
		s.appData, s.exts = updates, exts
		return true

	case ProposalTypeGroupContextExtensions:
		req, err := requiredCapabilities(p.Extensions)
		if s.gce || err != nil || keepsDictionary(s.g.context.extensions, p.Extensions) != nil {
			return false
		}
		exts, err := s.g.cfg.updateAppData(p.Extensions, s.appData)
		if err != nil || !s.tree.profiles.every(func(c *Capabilities) bool { return c.supportsGroup(exts, req) == nil }) {
			return false
		}
		s.gce, s.exts, s.plain, s.req = true, exts, p.Extensions, req
		return true

	case ProposalTypeUpdate:
		i := sender.LeafIndex
		if i == s.g.own || slices.Contains(s.touched, i) || !s.fitsLeaf(p.Update, i) {
			return false
		}
		s.touched = append(s.touched, i)
		s.tree.setLeaf(i, p.Update)
		return true

	case ProposalTypeAdd:
		if slices.ContainsFunc(s.initKeys, func(k HPKEPublicKey) bool { return bytes.Equal(k, p.Add.InitKey) }) ||
			s.tree.count >= uint32(s.g.cfg.limits().MaxMembers) || !s.fitsLeaf(p.Add.LeafNode, noLeaf) {
			return false
		}
		// A client that is there may be added only with its Remove.
		if i, ok := s.g.tree.findSignatureKey(p.Add.LeafNode.SignatureKey); ok && s.tree.leaf(i) != nil {
			return false
		}
		s.initKeys = append(s.initKeys, p.Add.InitKey)
		s.tree.setLeaf(s.tree.place(), p.Add.LeafNode)
		return true

	case ProposalTypePSK:
		_, ok := s.g.psk(p.PSK)
		if !ok || len(s.psks) >= s.g.cfg.limits().MaxPSKs || slices.ContainsFunc(s.psks, func(id PreSharedKeyID) bool { return id.equal(p.PSK) }) {
			return false
		}
		s.psks = append(s.psks, *p.PSK)
		return true

	case ProposalTypeReInit:
		s.reinit = s.n == 0
		return s.reinit
	}
	return false
}

// noLeaf is no place in any tree.
const noLeaf = LeafIndex(1<<32 - 1)

// fitsLeaf tells whether a leaf may come into the tree, in place of the one at
// i if that is in the tree.
func (s *selection) fitsLeaf(l *LeafNode, i LeafIndex) bool {
	if at, ok := s.tree.findSignatureKey(l.SignatureKey); ok && at != i || s.tree.hasEncryptionKey(l.EncryptionKey) {
		return false
	}
	if l.Capabilities.supportsGroup(s.exts, s.req) != nil ||
		len(s.appData) > 0 && !l.Capabilities.SupportsProposal(ProposalTypeAppDataUpdate) ||
		s.ephemeral && !l.Capabilities.SupportsProposal(ProposalTypeAppEphemeral) {
		return false
	}
	for t := range s.tree.profiles.credentials {
		if !l.Capabilities.SupportsCredential(t) {
			return false
		}
	}
	return s.tree.profiles.every(func(c *Capabilities) bool { return c.SupportsCredential(l.Credential.Type) })
}

// makeWelcome makes the Welcome for the members that a Commit of ours adds. n
// is the group of the next epoch. RFC 9420, Section 12.4.3.1.
func (n *Group) makeWelcome(t *transition, path *newPath, o *CommitOptions) (*Welcome, error) {
	cs := n.context.cipherSuite
	info, err := n.groupInfo(GroupInfoOptions{RatchetTree: o.WelcomeRatchetTree, ExternalPub: o.WelcomeExternalPub, Extensions: o.GroupInfoExtensions})
	if err != nil {
		return nil, err
	}
	key, nonce := cs.welcomeKey(n.secrets.welcome)
	w := &Welcome{cipherSuite: cs, encryptedGroupInfo: cs.aeadSeal(key, nonce, nil, info)}
	key.zero()
	nonce.zero()

	seal := newSealer(cs, "Welcome", w.encryptedGroupInfo)
	pubs := make([]HPKEPublicKey, len(t.added))
	for i, kp := range t.addedKeys {
		pubs[i] = kp.InitKey
	}
	w.secrets = make([]encryptedGroupSecrets, len(pubs))
	cts, err := seal.sealAll(n.cfg.rand(), pubs, func(i int) secret {
		w.secrets[i].newMember = t.addedKeys[i].Ref()
		gs := groupSecrets{joinerSecret: n.secrets.joiner, psks: t.psks}
		if path != nil {
			gs.pathSecret = path.secretFor(t.committer, t.added[i])
		}
		return gs.appendTo(nil)
	})
	if err != nil {
		return nil, fmt.Errorf("mls: encrypting the secrets of a Welcome: %w", err)
	}
	for i := range cts {
		w.secrets[i].ciphertext = cts[i]
	}
	return w, nil
}

// sealAll encrypts to many keys. What is encrypted is wiped. The randomness is
// read in order beforehand, so that the work may be spread.
func (s *sealer) sealAll(rand io.Reader, pubs []HPKEPublicKey, plaintext func(i int) secret) ([]hpkeCiphertext, error) {
	n := s.info.cs.suite().kem.nrand
	seeds := make(secret, n*len(pubs))
	if _, err := io.ReadFull(rand, seeds); err != nil {
		return nil, fmt.Errorf("mls: reading randomness: %w", err)
	}
	defer seeds.zero()
	out := make([]hpkeCiphertext, len(pubs))
	err := forkJoin(len(pubs), func(i int) (err error) {
		pt := plaintext(i)
		out[i], err = s.seal(pubs[i], pt, bytes.NewReader(seeds[i*n:(i+1)*n]))
		pt.zero()
		return err
	})
	return out, err
}

// Format prints which epoch it leads to and nothing secret, whatever the verb.
func (s *StagedCommit) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "mls.StagedCommit(to epoch %d, by leaf %d)", s.epoch, s.committer)
}
