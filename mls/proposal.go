package mls

import (
	"bytes"
	"encoding/binary"
)

// A Proposal is one change to a group (RFC 9420, Section 12.1). Of the fields
// after Type only the one for the type counts.
type Proposal struct {
	Type ProposalType

	Add          *KeyPackage     // ProposalTypeAdd
	Update       *LeafNode       // ProposalTypeUpdate
	Remove       LeafIndex       // ProposalTypeRemove
	PSK          *PreSharedKeyID // ProposalTypePSK
	ReInit       *ReInit         // ProposalTypeReInit
	ExternalInit []byte          // ProposalTypeExternalInit: the kem_output
	Extensions   []Extension     // ProposalTypeGroupContextExtensions

	AppDataUpdate *AppDataUpdate // ProposalTypeAppDataUpdate
	AppEphemeral  *AppEphemeral  // ProposalTypeAppEphemeral
}

// A ReInit closes a group in favour of a new one (RFC 9420, Section 12.1.5).
type ReInit struct {
	GroupID     []byte
	Version     ProtocolVersion
	CipherSuite CipherSuite
	Extensions  []Extension
}

// Add proposes to add the client of a KeyPackage.
func Add(kp *KeyPackage) Proposal { return Proposal{Type: ProposalTypeAdd, Add: kp} }

// Remove proposes to remove a member.
func Remove(leaf LeafIndex) Proposal { return Proposal{Type: ProposalTypeRemove, Remove: leaf} }

// PSK proposes to mix a pre-shared key into the next epoch. An empty nonce is
// filled in at random.
func PSK(id PreSharedKeyID) Proposal { return Proposal{Type: ProposalTypePSK, PSK: &id} }

// GroupContextExtensions proposes to replace all extensions of the group.
func GroupContextExtensions(exts []Extension) Proposal {
	return Proposal{Type: ProposalTypeGroupContextExtensions, Extensions: exts}
}

// Proposal returns the proposal to go on in the group that r describes.
func (r *ReInit) Proposal() Proposal { return Proposal{Type: ProposalTypeReInit, ReInit: r} }

func readProposal(s *reader, p *Proposal) bool {
	*p = Proposal{}
	var t uint16
	if !s.ReadUint16(&t) {
		return false
	}
	p.Type = ProposalType(t)
	switch p.Type {
	case ProposalTypeAdd:
		p.Add = new(KeyPackage)
		return p.Add.unmarshal(s)
	case ProposalTypeUpdate:
		p.Update = new(LeafNode)
		return p.Update.unmarshal(s)
	case ProposalTypeRemove:
		return s.ReadUint32((*uint32)(&p.Remove))
	case ProposalTypePSK:
		p.PSK = new(PreSharedKeyID)
		return p.PSK.unmarshal(s)
	case ProposalTypeReInit:
		p.ReInit = new(ReInit)
		return p.ReInit.unmarshal(s)
	case ProposalTypeExternalInit:
		return readOpaqueVec(s, &p.ExternalInit)
	case ProposalTypeGroupContextExtensions:
		return readExtensions(s, &p.Extensions)
	case ProposalTypeSelfRemove:
		return true
	case ProposalTypeAppDataUpdate:
		p.AppDataUpdate = new(AppDataUpdate)
		return p.AppDataUpdate.unmarshal(s)
	case ProposalTypeAppEphemeral:
		p.AppEphemeral = new(AppEphemeral)
		return p.AppEphemeral.unmarshal(s)
	}
	if isGREASE(t) {
		return s.fail("proposal/type-grease", "13.5", "proposal type %#04x stands for nothing", t)
	}
	// RFC 9420, Section 12.2: a type that not every member supports; we, for
	// one, do not list it.
	return s.fail("proposal/type-unsupported", "12.2", "proposal type %#04x is not supported", t)
}

func appendProposal(b []byte, p *Proposal) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(p.Type))
	switch p.Type {
	case ProposalTypeAdd:
		return p.Add.appendTo(b)
	case ProposalTypeUpdate:
		return p.Update.appendTo(b)
	case ProposalTypeRemove:
		return binary.BigEndian.AppendUint32(b, uint32(p.Remove))
	case ProposalTypePSK:
		return p.PSK.appendTo(b)
	case ProposalTypeReInit:
		return p.ReInit.appendTo(b)
	case ProposalTypeExternalInit:
		return appendOpaqueVec(b, p.ExternalInit)
	case ProposalTypeGroupContextExtensions:
		return appendExtensions(b, p.Extensions)
	case ProposalTypeSelfRemove:
		return b
	case ProposalTypeAppDataUpdate:
		return p.AppDataUpdate.appendTo(b)
	case ProposalTypeAppEphemeral:
		return p.AppEphemeral.appendTo(b)
	}
	panic("mls: internal: encoding a proposal of unknown type")
}

func (r *ReInit) unmarshal(s *reader) bool {
	var version, suite uint16
	if !readOpaqueVec(s, &r.GroupID) || !s.ReadUint16(&version) || !s.ReadUint16(&suite) {
		return false
	}
	r.Version, r.CipherSuite = ProtocolVersion(version), CipherSuite(suite)
	return readExtensions(s, &r.Extensions)
}

func (r *ReInit) appendTo(b []byte) []byte {
	b = appendOpaqueVec(b, r.GroupID)
	b = binary.BigEndian.AppendUint16(b, uint16(r.Version))
	b = binary.BigEndian.AppendUint16(b, uint16(r.CipherSuite))
	return appendExtensions(b, r.Extensions)
}

// complete tells whether the field for the type is set.
func (p *Proposal) complete() bool {
	switch p.Type {
	case ProposalTypeAdd:
		return p.Add != nil && p.Add.raw != nil
	case ProposalTypeUpdate:
		return p.Update != nil && p.Update.raw != nil
	case ProposalTypePSK:
		return p.PSK != nil
	case ProposalTypeReInit:
		return p.ReInit != nil
	case ProposalTypeAppDataUpdate:
		return p.AppDataUpdate != nil
	case ProposalTypeAppEphemeral:
		return p.AppEphemeral != nil
	case ProposalTypeRemove, ProposalTypeExternalInit, ProposalTypeGroupContextExtensions, ProposalTypeSelfRemove:
		return true
	}
	return false
}

// requiresPath tells whether a Commit with the proposal needs a path. RFC
// 9420, Section 17.4: the column "Path Required".
func (t ProposalType) requiresPath() bool {
	switch t {
	case ProposalTypeUpdate, ProposalTypeRemove, ProposalTypeExternalInit, ProposalTypeGroupContextExtensions, ProposalTypeSelfRemove:
		return true
	}
	return false
}

// A proposalContext is what one proposal is checked against.
type proposalContext struct {
	cfg  *Config
	ctx  *groupContext
	tree *ratchetTree

	// Set while a Commit's list is checked: signatures of KeyPackages are
	// collected instead of checked one by one.
	keyPackages *[]*KeyPackage
	// Set for the first Commit of a group made by ReInit or Branch.
	bootstrap ResumptionPSKUsage
	// Set for what others sent, whose KeyPackages may have expired since.
	received bool
}

// validate checks one proposal by itself. RFC 9420, Section 12.1. What depends
// on the other proposals of a Commit is checked with the list.
func (pc *proposalContext) validate(p *Proposal, sender Sender) error {
	cs := pc.ctx.cipherSuite
	switch p.Type {
	case ProposalTypeAdd:
		err := p.Add.checkForm(pc.cfg, cs)
		if err == nil && (!pc.received || pc.cfg.checkReceivedLifetimes()) {
			err = p.Add.checkClock(pc.cfg)
		}
		if err != nil {
			return invalid("proposal/add-invalid-key-package", "12.1.1", "%w", err)
		}
		if pc.keyPackages != nil {
			*pc.keyPackages = append(*pc.keyPackages, p.Add)
			return nil
		}
		if err := p.Add.verifySignatures(); err != nil {
			return invalid("proposal/add-invalid-key-package", "12.1.1", "%w", err)
		}

	case ProposalTypeUpdate:
		if sender.Type != SenderTypeMember {
			return invalid("proposal/update-from-nonmember", "12.1.2", "an Update comes from a sender that is no member")
		}
		if err := pc.validateUpdate(p.Update, sender.LeafIndex); err != nil {
			return invalid("proposal/update-invalid-leaf", "12.1.2", "%w", err)
		}

	case ProposalTypeRemove:
		if uint32(p.Remove) >= pc.tree.size {
			return invalid("proposal/remove-out-of-range", "12.1.3", "a Remove of leaf %d in a tree of %d", p.Remove, pc.tree.size)
		}
		if pc.tree.leaf(p.Remove) == nil {
			return invalid("proposal/remove-blank-leaf", "12.1.3", "a Remove of leaf %d, where no member is", p.Remove)
		}

	case ProposalTypePSK:
		return pc.validatePSK(p.PSK)

	case ProposalTypeReInit:
		if p.ReInit.Version < pc.ctx.version {
			return invalid("proposal/reinit-version-lower", "12.1.5", "a ReInit to version %d", p.ReInit.Version)
		}
		if !pc.received {
			// Nobody could follow, and the group would be closed for good.
			if p.ReInit.Version != MLS10 {
				return invalid("proposal/reinit-nowhere", "12.1.5", "a ReInit to version %d, which is not supported", p.ReInit.Version)
			}
			if err := pc.cfg.checkSuite(p.ReInit.CipherSuite); err != nil {
				return invalid("proposal/reinit-nowhere", "12.1.5", "%w", err)
			}
		}
		if err := checkExtensions(p.ReInit.Extensions, inGroupContext); err != nil {
			return err
		}
		return pc.cfg.checkExternalSenders(p.ReInit.Extensions)

	case ProposalTypeExternalInit:
		if sender.Type != SenderTypeNewMemberCommit {
			return invalid("proposal/external-init-by-member", "12.1.6", "an ExternalInit outside an external Commit")
		}

	case ProposalTypeGroupContextExtensions:
		if err := checkExtensions(p.Extensions, inGroupContext); err != nil {
			return err
		}
		return pc.cfg.checkExternalSenders(p.Extensions)

	case ProposalTypeSelfRemove:
		return pc.validateSelfRemove(sender)

	case ProposalTypeAppDataUpdate:
		return pc.validateAppDataUpdate(p.AppDataUpdate)

	case ProposalTypeAppEphemeral:
		return pc.validateAppEphemeral(p.AppEphemeral)

	default:
		return invalid("proposal/type-unsupported", "12.2", "proposal type %#04x is not supported", uint16(p.Type))
	}
	return nil
}

// validateUpdate checks the leaf of an Update by the member at index.
func (pc *proposalContext) validateUpdate(l *LeafNode, index LeafIndex) error {
	cs := pc.ctx.cipherSuite
	old := pc.tree.leaf(index)
	if old == nil {
		return invalid("framing/sender-leaf-blank", "6.1", "leaf %d is blank", index)
	}
	if err := l.checkSource(LeafNodeSourceUpdate); err != nil {
		return err
	}
	if err := l.checkForm(pc.cfg, cs); err != nil {
		return err
	}
	if bytes.Equal(old.EncryptionKey, l.EncryptionKey) {
		return invalid("leaf-node/encryption-key-unchanged", "7.3", "the encryption_key is the old one")
	}
	if !pc.cfg.sameClient(old, l) {
		return invalid("leaf-node/credential-not-successor", "5.3.1", "the credential is not one that may follow the old")
	}
	return l.verifySignature(cs, nil, pc.ctx.groupID, index)
}

func (pc *proposalContext) validatePSK(id *PreSharedKeyID) error {
	// Parsing refuses others; this is for what our own application asks for.
	switch {
	case id.Type != PSKTypeExternal && id.Type != PSKTypeResumption:
		return invalid("codec/unknown-psk-type", "8.4", "PSK type %d is not defined", id.Type)
	case id.Type == PSKTypeResumption && (id.Usage < ResumptionPSKUsageApplication || id.Usage > ResumptionPSKUsageBranch):
		return invalid("codec/unknown-resumption-usage", "8.4", "resumption PSK usage %d is not defined", id.Usage)
	}
	if n := pc.ctx.cipherSuite.HashLen(); len(id.Nonce) != n {
		return invalid("proposal/psk-nonce-length", "12.1.4", "a PSK nonce of %d bytes where %d are due", len(id.Nonce), n)
	}
	if id.Type != PSKTypeResumption {
		return nil
	}
	switch id.Usage {
	case ResumptionPSKUsageReInit:
		if pc.bootstrap != ResumptionPSKUsageReInit {
			return invalid("proposal/psk-usage-reinit", "12.1.4", "a PSK of usage reinit outside the start of a group after a ReInit")
		}
	case ResumptionPSKUsageBranch:
		if pc.bootstrap != ResumptionPSKUsageBranch {
			return invalid("proposal/psk-usage-branch", "12.1.4", "a PSK of usage branch outside the start of a branched group")
		}
	}
	return nil
}
