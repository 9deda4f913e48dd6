package mls

import (
	"bytes"
	"encoding/binary"
)

// maxCommitEntries bounds the vectors of a Commit when it is read. It is above
// all limits that a Config can sensibly set.
const maxCommitEntries = 1 << 16

// maxWelcomePSKs does the same for the PSKs of a Welcome.
const maxWelcomePSKs = 1 << 10

// A commit carries out proposals and starts a new epoch (RFC 9420, Section
// 12.4).
type commit struct {
	proposals []proposalOrRef
	path      *updatePath
}

// A proposalOrRef is a proposal by value or by reference.
type proposalOrRef struct {
	proposal *Proposal
	ref      ProposalRef
}

const (
	proposalByValue = 1
	proposalByRef   = 2
)

func (c *commit) unmarshal(s *reader) bool {
	ok := readVector(s, func(s *reader) bool {
		if len(c.proposals) >= maxCommitEntries {
			return s.fail("proposal-list/too-many", "", "a Commit with more than %d proposals", maxCommitEntries)
		}
		var kind uint8
		if !s.ReadUint8(&kind) {
			return false
		}
		var p proposalOrRef
		switch kind {
		case proposalByValue:
			p.proposal = new(Proposal)
			if !readProposal(s, p.proposal) {
				return false
			}
		case proposalByRef:
			if !readOpaqueVec(s, (*[]byte)(&p.ref)) {
				return false
			}
		default:
			return s.fail("codec/unknown-proposal-or-ref", "12.4", "ProposalOrRef type %d is not defined", kind)
		}
		c.proposals = append(c.proposals, p)
		return true
	})
	var present bool
	if !ok || !readOptional(s, &present) {
		return false
	}
	if !present {
		return true
	}
	c.path = new(updatePath)
	return c.path.unmarshal(s)
}

func (c *commit) appendTo(b []byte) []byte {
	b = appendVector(b, func(b []byte) []byte {
		for i := range c.proposals {
			if p := &c.proposals[i]; p.proposal != nil {
				b = appendProposal(append(b, proposalByValue), p.proposal)
			} else {
				b = appendOpaqueVec(append(b, proposalByRef), p.ref)
			}
		}
		return b
	})
	b = appendOptional(b, c.path != nil)
	if c.path != nil {
		b = c.path.appendTo(b)
	}
	return b
}

// size is about the size of the encoding, and not less where Adds make it large.
func (c *commit) size() int {
	n := 256
	for i := range c.proposals {
		n += 64
		if p := c.proposals[i].proposal; p != nil && p.Add != nil {
			n += len(p.Add.raw)
		}
	}
	if c.path != nil {
		n += len(c.path.leaf.raw)
		for i := range c.path.nodes {
			n += 64
			for k := range c.path.nodes[i].ciphertexts {
				n += 16 + len(c.path.nodes[i].ciphertexts[k].KEMOutput) + len(c.path.nodes[i].ciphertexts[k].Ciphertext)
			}
		}
	}
	return n
}

// An updatePath gives a committer's direct path new keys (RFC 9420, Section
// 7.6).
type updatePath struct {
	leaf  *LeafNode
	nodes []updatePathNode
}

type updatePathNode struct {
	encryptionKey HPKEPublicKey
	ciphertexts   []hpkeCiphertext
}

func (p *updatePath) unmarshal(s *reader) bool {
	p.leaf = new(LeafNode)
	if !p.leaf.unmarshal(s) {
		return false
	}
	return readVector(s, func(s *reader) bool {
		// A tree of 2^32 leaves, more than an index can name, has 32 levels.
		if len(p.nodes) >= 32 {
			return s.fail("commit/path-length", "7.6", "an UpdatePath of more than 32 nodes")
		}
		var n updatePathNode
		if !readOpaqueVec(s, (*[]byte)(&n.encryptionKey)) {
			return false
		}
		ok := readVector(s, func(s *reader) bool {
			if len(n.ciphertexts) >= maxCommitEntries {
				return s.fail("commit/path-ciphertext-count", "7.6", "an UpdatePathNode with more than %d ciphertexts", maxCommitEntries)
			}
			var ct hpkeCiphertext
			if !ct.unmarshal(s) {
				return false
			}
			n.ciphertexts = append(n.ciphertexts, ct)
			return true
		})
		p.nodes = append(p.nodes, n)
		return ok
	})
}

func (p *updatePath) appendTo(b []byte) []byte {
	b = p.leaf.appendTo(b)
	return appendVector(b, func(b []byte) []byte {
		for i := range p.nodes {
			n := &p.nodes[i]
			b = appendOpaqueVec(b, n.encryptionKey)
			b = appendVector(b, func(b []byte) []byte {
				for k := range n.ciphertexts {
					b = n.ciphertexts[k].appendTo(b)
				}
				return b
			})
		}
		return b
	})
}

// GroupInfo describes a group at the start of an epoch, signed by a member
// (RFC 9420, Section 12.4.3).
type GroupInfo struct {
	context         groupContext
	contextRaw      []byte
	extensions      []Extension
	confirmationTag []byte
	signer          LeafIndex
	signature       []byte

	raw     []byte
	content int
}

func (gi *GroupInfo) unmarshal(s *reader) bool {
	start := s.String
	if !gi.context.unmarshal(s) {
		return false
	}
	gi.contextRaw = s.since(start)
	if !readExtensions(s, &gi.extensions) ||
		!readOpaqueVec(s, &gi.confirmationTag) ||
		!s.ReadUint32((*uint32)(&gi.signer)) {
		return false
	}
	gi.content = len(s.since(start))
	if !readOpaqueVec(s, &gi.signature) {
		return false
	}
	gi.raw = s.since(start)
	return true
}

func (gi *GroupInfo) appendTo(b []byte) []byte { return append(b, gi.raw...) }

// signGroupInfo encodes and signs a GroupInfo.
func signGroupInfo(cs CipherSuite, key SignaturePrivateKey, contextRaw []byte, exts []Extension, tag []byte, signer LeafIndex) ([]byte, error) {
	b := append([]byte(nil), contextRaw...)
	b = appendExtensions(b, exts)
	b = appendOpaqueVec(b, tag)
	b = binary.BigEndian.AppendUint32(b, uint32(signer))
	sig, err := SignWithLabel(cs, key, "GroupInfoTBS", b)
	if err != nil {
		return nil, err
	}
	return appendOpaqueVec(b, sig), nil
}

// verifySignature checks the signature of a GroupInfo with its signer's key.
func (gi *GroupInfo) verifySignature(key SignaturePublicKey) error {
	if err := VerifyWithLabel(gi.context.cipherSuite, key, "GroupInfoTBS", gi.raw[:gi.content], gi.signature); err != nil {
		return invalid("welcome/group-info-signature", "12.4.3.1", "GroupInfo signature: %w", err)
	}
	return nil
}

// Verify checks the signature of the GroupInfo with the key of its signer.
func (gi *GroupInfo) Verify(key SignaturePublicKey) error {
	if err := gi.context.cipherSuite.check(); err != nil {
		return err
	}
	return gi.verifySignature(key)
}

// CipherSuite returns the group's suite.
func (gi *GroupInfo) CipherSuite() CipherSuite { return gi.context.cipherSuite }

// GroupID returns the group's identifier.
func (gi *GroupInfo) GroupID() []byte { return bytes.Clone(gi.context.groupID) }

// Epoch returns the epoch that the GroupInfo describes.
func (gi *GroupInfo) Epoch() uint64 { return gi.context.epoch }

// TreeHash returns the hash of the epoch's ratchet tree.
func (gi *GroupInfo) TreeHash() []byte { return bytes.Clone(gi.context.treeHash) }

// ConfirmedTranscriptHash returns the epoch's confirmed transcript hash.
func (gi *GroupInfo) ConfirmedTranscriptHash() []byte {
	return bytes.Clone(gi.context.confirmedTranscriptHash)
}

// ConfirmationTag returns the confirmation tag of the epoch.
func (gi *GroupInfo) ConfirmationTag() []byte { return bytes.Clone(gi.confirmationTag) }

// Signer returns the member who signed the GroupInfo.
func (gi *GroupInfo) Signer() LeafIndex { return gi.signer }

// Extensions returns the extensions of the GroupInfo.
func (gi *GroupInfo) Extensions() []Extension { return cloneExtensions(gi.extensions) }

// GroupExtensions returns the extensions of the GroupContext.
func (gi *GroupInfo) GroupExtensions() []Extension { return cloneExtensions(gi.context.extensions) }

// Welcome carries what new members need (RFC 9420, Section 12.4.3.1).
type Welcome struct {
	cipherSuite        CipherSuite
	secrets            []encryptedGroupSecrets
	encryptedGroupInfo []byte
}

type encryptedGroupSecrets struct {
	newMember  KeyPackageRef
	ciphertext hpkeCiphertext
}

func (w *Welcome) unmarshal(s *reader) bool {
	var suite uint16
	if !s.ReadUint16(&suite) {
		return false
	}
	w.cipherSuite = CipherSuite(suite)
	return readVector(s, func(s *reader) bool {
		if len(w.secrets) >= maxCommitEntries {
			return s.fail("codec/vector-over-limit", "", "a Welcome for more than %d members", maxCommitEntries)
		}
		var e encryptedGroupSecrets
		if !readOpaqueVec(s, (*[]byte)(&e.newMember)) || !e.ciphertext.unmarshal(s) {
			return false
		}
		w.secrets = append(w.secrets, e)
		return true
	}) && readOpaqueVec(s, &w.encryptedGroupInfo)
}

func (w *Welcome) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(w.cipherSuite))
	b = appendVector(b, func(b []byte) []byte {
		for i := range w.secrets {
			b = appendOpaqueVec(b, w.secrets[i].newMember)
			b = w.secrets[i].ciphertext.appendTo(b)
		}
		return b
	})
	return appendOpaqueVec(b, w.encryptedGroupInfo)
}

// CipherSuite returns the group's suite.
func (w *Welcome) CipherSuite() CipherSuite { return w.cipherSuite }

// Recipients returns the references of the KeyPackages that the Welcome is for.
func (w *Welcome) Recipients() []KeyPackageRef {
	refs := make([]KeyPackageRef, len(w.secrets))
	for i := range w.secrets {
		refs[i] = w.secrets[i].newMember
	}
	return refs
}

// groupSecrets is what a Welcome tells one new member.
type groupSecrets struct {
	joinerSecret secret
	pathSecret   secret // nil without a path
	psks         []PreSharedKeyID
}

func (g *groupSecrets) unmarshal(s *reader) bool {
	var present bool
	if !readOpaqueVec(s, (*[]byte)(&g.joinerSecret)) || !readOptional(s, &present) {
		return false
	}
	if present && !readOpaqueVec(s, (*[]byte)(&g.pathSecret)) {
		return false
	}
	return readVector(s, func(s *reader) bool {
		if len(g.psks) >= maxWelcomePSKs {
			return s.fail("codec/vector-over-limit", "", "GroupSecrets with more than %d PSKs", maxWelcomePSKs)
		}
		var id PreSharedKeyID
		ok := id.unmarshal(s)
		g.psks = append(g.psks, id)
		return ok
	})
}

func (g *groupSecrets) appendTo(b []byte) []byte {
	b = appendOpaqueVec(b, g.joinerSecret)
	b = appendOptional(b, g.pathSecret != nil)
	if g.pathSecret != nil {
		b = appendOpaqueVec(b, g.pathSecret)
	}
	return appendVector(b, func(b []byte) []byte {
		for i := range g.psks {
			b = g.psks[i].appendTo(b)
		}
		return b
	})
}
