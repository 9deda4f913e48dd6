package mls

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
)

// ExternalJoinOptions say how we join.
type ExternalJoinOptions struct {
	Leaf LeafOptions

	// RatchetTree is the tree when it is not in the GroupInfo.
	RatchetTree []byte

	// Resync removes our old leaf at this place, which must be the same
	// client's. A client whose signature key is in the tree needs it.
	Resync *LeafIndex

	PSKs []PreSharedKeyID

	// Resumption are groups whose resumption PSKs are among PSKs: our old
	// state, for instance.
	Resumption []*Group

	// SelfRemoves are the SelfRemove messages of the epoch. Who joins must
	// fetch them beside the GroupInfo and commit them.
	SelfRemoves []*Message

	AuthenticatedData []byte
}

// ExternalJoin makes a Commit by which we join a group. RFC 9420, Section
// 12.4.3.2. The message is a PublicMessage; merge once it is accepted.
func ExternalJoin(cfg *Config, groupInfo *Message, key SignaturePrivateKey, o ExternalJoinOptions) (*StagedCommit, error) {
	gi := groupInfo.groupInfo
	if gi == nil {
		return nil, unexpected(groupInfo, "is not a GroupInfo")
	}
	e, err := newEpoch(cfg, gi, o.RatchetTree)
	if err != nil {
		return nil, err
	}
	data, ok := findExtension(gi.extensions, ExtensionTypeExternalPub)
	if !ok {
		return nil, invalid("external-commit/no-external-pub", "12.4.3.2", "the GroupInfo has no external_pub; ask for one that has")
	}
	var external opaqueBody
	if err := unmarshalExtension(&Extension{ExtensionTypeExternalPub, data}, &external); err != nil {
		return nil, err
	}
	cs := e.context.cipherSuite
	if err := cs.validateHPKEPublicKey(HPKEPublicKey(external)); err != nil {
		return nil, fmt.Errorf("mls: external_pub: %w", err)
	}
	if e.context.epoch == 1<<64-1 {
		return nil, invalid("commit/epoch-overflow", "8.1", "the group is in its last epoch")
	}
	rand := cfg.rand()
	kemOutput, initSecret, err := cs.externalInitEncap(HPKEPublicKey(external), rand)
	if err != nil {
		return nil, fmt.Errorf("mls: external init: %w", err)
	}
	defer initSecret.zero()

	sender := Sender{Type: SenderTypeNewMemberCommit}
	proposals := []Proposal{{Type: ProposalTypeExternalInit, ExternalInit: kemOutput}}
	if o.Resync != nil {
		proposals = append(proposals, Remove(*o.Resync))
	}
	for _, id := range o.PSKs {
		proposals = append(proposals, PSK(id))
	}
	commit := new(commit)
	var list []CommittedProposal
	for _, p := range proposals {
		if p, err = fillNonce(p, cs, rand); err != nil {
			return nil, err
		}
		list = append(list, CommittedProposal{Proposal: p, Sender: sender})
		commit.proposals = append(commit.proposals, proposalOrRef{proposal: &p})
	}
	var cache proposalCache
	for _, m := range o.SelfRemoves {
		p, err := e.takeSelfRemove(m, &cache)
		if err != nil {
			return nil, err
		}
		list = append(list, CommittedProposal{Proposal: p.Proposal, Sender: p.Sender, ByRef: true})
		commit.proposals = append(commit.proposals, proposalOrRef{ref: p.Ref})
	}
	// The proposals are checked against what our leaf will be.
	draft, err := o.Leaf.leaf(cfg.capabilities(), key, nil)
	if err != nil {
		return nil, err
	}
	t := &transition{external: true, commit: commit}
	if t.change, t.committer, err = e.applyExternal(list, draft, false); err != nil {
		return nil, err
	}
	path, err := t.tree.createPath(t.committer, rand, func(pub HPKEPublicKey, parentHash []byte) (*LeafNode, error) {
		draft.Source = LeafNodeSourceCommit
		draft.EncryptionKey = pub
		draft.ParentHash = parentHash
		l, err := draft.sign(cs, key, e.context.groupID, t.committer)
		if err != nil {
			return nil, err
		}
		return l, e.checkPathLeaf(l, t.committer, nil, t.resync)
	})
	if err != nil {
		return nil, err
	}
	defer path.zero()
	if err := t.check(t.committer, true); err != nil {
		if v := new(ValidationError); o.Resync == nil && errors.As(err, &v) && v.Cause() == "leaf-node/signature-key-not-unique" {
			return nil, fmt.Errorf("%w; if that leaf is our own, set ExternalJoinOptions.Resync", err)
		}
		return nil, err
	}
	t.finish(e)
	if commit.path, err = path.encrypt(t.tree, nil, t.provision, rand); err != nil {
		return nil, err
	}
	psks, err := pskSecret(cs, t.psks, func(id *PreSharedKeyID) (secret, bool) {
		for _, g := range o.Resumption {
			if g == nil {
				continue
			}
			if s, ok := g.ownPSK(id); ok {
				return s, true
			}
		}
		return cfg.psk(id)
	})
	if err != nil {
		return nil, err
	}
	defer psks.zero()

	ac, err := signContent(cs, key, WireFormatPublicMessage, framedContent{
		groupID:           e.context.groupID,
		epoch:             e.context.epoch,
		sender:            sender,
		authenticatedData: o.AuthenticatedData,
		contentType:       ContentTypeCommit,
		commit:            commit,
	}, e.contextRaw)
	if err != nil {
		return nil, fmt.Errorf("mls: signing an external Commit: %w", err)
	}
	t.context.confirmedTranscriptHash = cs.confirmedTranscriptHash(e.interim, ac)
	n, tag := advance(t, t.committer, key, path.keys, initSecret, path.commitSecret, psks)
	ac.confirmationTag = tag
	n.settle(t, e, tag)
	n.secrets.zeroWelcome()

	s := newStagedCommit(t, ac)
	s.next = n
	s.message = ac.publicMessage(cs, nil, nil)
	return s, nil
}

// NewExternalProposal makes a proposal by an external sender, who is number
// senderIndex in the group's external_senders extension. RFC 9420, Section
// 12.1.8.
func NewExternalProposal(cs CipherSuite, groupID []byte, epoch uint64, senderIndex uint32, key SignaturePrivateKey, p Proposal, authenticatedData []byte) ([]byte, error) {
	switch p.Type {
	case ProposalTypeAdd, ProposalTypeRemove, ProposalTypePSK, ProposalTypeReInit, ProposalTypeGroupContextExtensions,
		ProposalTypeAppDataUpdate, ProposalTypeAppEphemeral:
	default:
		return nil, invalid("proposal/external-sender-type", "12.1.8", "proposal type %d is not for external senders", p.Type)
	}
	return proposalFromOutside(cs, groupID, epoch, Sender{Type: SenderTypeExternal, Index: senderIndex}, key, p, authenticatedData)
}

// NewMemberProposal makes a proposal by which the client of a KeyPackage asks
// to be added. RFC 9420, Section 12.1.8.
func NewMemberProposal(groupID []byte, epoch uint64, bundle *KeyPackageBundle, authenticatedData []byte) ([]byte, error) {
	if bundle.Used() {
		return nil, invalid("key-package/reused", "16.8", "the KeyPackage has been used to join already")
	}
	kp := bundle.keyPackage
	return proposalFromOutside(kp.CipherSuite, groupID, epoch, Sender{Type: SenderTypeNewMemberProposal}, bundle.signature, Add(kp), authenticatedData)
}

func proposalFromOutside(cs CipherSuite, groupID []byte, epoch uint64, sender Sender, key SignaturePrivateKey, p Proposal, aad []byte) ([]byte, error) {
	if err := cs.check(); err != nil {
		return nil, err
	}
	if !p.complete() {
		return nil, errors.New("mls: the proposal is incomplete")
	}
	p, err := fillNonce(p, cs, rand.Reader)
	if err != nil {
		return nil, err
	}
	ac, err := signContent(cs, key, WireFormatPublicMessage, framedContent{
		groupID:           bytes.Clone(groupID),
		epoch:             epoch,
		sender:            sender,
		authenticatedData: aad,
		contentType:       ContentTypeProposal,
		proposal:          p,
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("mls: signing a proposal: %w", err)
	}
	return ac.publicMessage(cs, nil, nil), nil
}
