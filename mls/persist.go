package mls

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// What a group stores comes in two parts: EpochState, which is the same for as
// long as the epoch lasts, and RatchetState, which Encrypt, Propose and Process
// change. Both hold secrets. Each begins with the number of its format.
const (
	epochStateFormat   = 1
	ratchetStateFormat = 1
	stagedCommitFormat = 1
	// stagedOnFormat: of the next epoch's tree only what differs from its parent's.
	stagedOnFormat = 2
)

func readFormat(s *reader, want uint8, what string) error {
	var format uint8
	if !s.ReadUint8(&format) {
		return fmt.Errorf("mls: reading a stored %s: it is empty", what)
	}
	if format != want {
		return fmt.Errorf("mls: a stored %s has format %d; this version reads %d", what, format, want)
	}
	return nil
}

// appendTo encodes what is public of an epoch.
func (e *epoch) appendTo(b []byte) []byte {
	return appendOpaqueVec(e.appendHead(b), e.tree.appendTo(nil))
}

// appendHead encodes what is public of an epoch, but for its tree.
func (e *epoch) appendHead(b []byte) []byte {
	b = appendOpaqueVec(b, e.contextRaw)
	b = appendOpaqueVec(b, e.confirmationTag)
	b = appendOpaqueVec(b, e.interim)
	b = appendOptional(b, e.reinit != nil)
	if e.reinit != nil {
		b = e.reinit.appendTo(b)
	}
	return b
}

// readEpoch reads an epoch from our own store.
func readEpoch(cfg *Config, s *reader) (*epoch, error) {
	e, err := readHead(cfg, s)
	if err != nil {
		return nil, err
	}
	var tree []byte
	if !readOpaqueVec(s, &tree) {
		return nil, s.error()
	}
	t, err := parseTree(e.context.cipherSuite, tree, cfg.limits())
	if err != nil {
		return nil, err
	}
	return e, e.plant(t)
}

// plant gives an epoch from our own store its tree.
func (e *epoch) plant(t *ratchetTree) error {
	t.finish()
	if !bytes.Equal(t.rootHash(), e.context.treeHash) {
		return invalid("tree/tree-hash", "12.4.3.1", "the stored tree is not that of the epoch; restore the state from a backup or join again")
	}
	e.tree = t
	return nil
}

// readHead reads what appendHead wrote.
func readHead(cfg *Config, s *reader) (*epoch, error) {
	e := &epoch{cfg: cfg, signers: new(signers)}
	var closed bool
	if !readOpaqueVec(s, &e.contextRaw) || !readOpaqueVec(s, &e.confirmationTag) ||
		!readOpaqueVec(s, &e.interim) || !readOptional(s, &closed) {
		return nil, s.error()
	}
	if closed {
		e.reinit = new(ReInit)
		if !e.reinit.unmarshal(s) {
			return nil, s.error()
		}
	}
	if err := unmarshal(e.contextRaw, &e.context); err != nil {
		return nil, err
	}
	cs := e.context.cipherSuite
	if err := cfg.checkSuite(cs); err != nil {
		return nil, err
	}
	return e, nil
}

// EpochState returns what does not change in this epoch. It holds secrets. A
// group whose secrets were wiped has none.
func (g *Group) EpochState() []byte {
	if g.ratchets == nil {
		return nil
	}
	return g.appendMember(g.epoch.appendTo([]byte{epochStateFormat}))
}

// appendMember encodes what a member knows of the epoch that others do not.
func (g *Group) appendMember(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(g.own))
	b = appendOpaqueVec(b, g.signature.Bytes())
	b = appendVector(b, func(b []byte) []byte {
		nodes := make([]nodeIndex, 0, len(g.keys))
		for x := range g.keys {
			nodes = append(nodes, x)
		}
		slices.Sort(nodes)
		for _, x := range nodes {
			b = binary.BigEndian.AppendUint32(b, uint32(x))
			b = appendOpaqueVec(b, g.keys[x].priv)
		}
		return b
	})
	b = g.secrets.appendTo(b)
	return appendVector(b, func(b []byte) []byte {
		for i := range g.past {
			b = binary.BigEndian.AppendUint64(b, g.past[i].epoch)
			b = appendOpaqueVec(b, g.past[i].psk)
		}
		return b
	})
}

// RatchetState returns what messages of this epoch have changed: the ratchets
// and the proposals. It holds secrets. Store it after Encrypt, Propose and
// Process, before a message is sent or acted on.
// A group whose secrets were wiped has none.
func (g *Group) RatchetState() []byte {
	if g.ratchets == nil {
		return nil
	}
	b := []byte{ratchetStateFormat}
	b = binary.BigEndian.AppendUint64(b, g.context.epoch)
	b = appendOpaqueVec(b, g.context.confirmedTranscriptHash)
	b = g.ratchets.appendTo(b)
	return g.cache.appendTo(b)
}

// appendTo encodes the proposals for our own store.
func (c *proposalCache) appendTo(b []byte) []byte {
	return appendVector(b, func(b []byte) []byte {
		for _, p := range c.list {
			b = p.appendTo(b)
		}
		return b
	})
}

func (p *cachedProposal) appendTo(b []byte) []byte {
	b = appendOpaqueVec(b, p.ref)
	b = p.sender.appendTo(b)
	b = appendProposal(b, &p.proposal)
	return appendOpaqueVec(b, p.leafKey)
}

func (c *proposalCache) unmarshal(s *reader) bool { return readVector(s, c.unmarshalOne) }

func (c *proposalCache) unmarshalOne(s *reader) bool {
	p := new(cachedProposal)
	if len(c.list) >= maxCommitEntries || !readOpaqueVec(s, (*[]byte)(&p.ref)) ||
		!p.sender.unmarshal(s) || !readProposal(s, &p.proposal) {
		return false
	}
	var key []byte
	if !readOpaqueVec(s, &key) {
		return false
	}
	if len(key) > 0 {
		p.leafKey = key
	}
	c.add(p)
	return true
}

// LoadGroup restores a group from its two states. They must come from our own
// store, and ratchetState must be the newest that was stored: an older one
// would use keys twice.
func LoadGroup(cfg *Config, epochState, ratchetState []byte) (*Group, error) {
	g, err := loadEpochState(cfg, epochState)
	if err != nil {
		return nil, fmt.Errorf("mls: reading a stored group: %w", err)
	}
	if err := g.readRatchets(bytes.Clone(ratchetState)); err != nil {
		return nil, err
	}
	return g, nil
}

// readRatchets reads what RatchetState gave.
func (g *Group) readRatchets(ratchetState []byte) error {
	s := newReader(ratchetState)
	if err := readFormat(s, ratchetStateFormat, "ratchet state"); err != nil {
		return err
	}
	var n uint64
	var transcript []byte
	if !s.ReadUint64(&n) || !readOpaqueVec(s, &transcript) {
		return fmt.Errorf("mls: reading a stored ratchet state: %w", s.error())
	}
	if n != g.context.epoch || !bytes.Equal(transcript, g.context.confirmedTranscriptHash) {
		return fmt.Errorf("mls: the stored ratchet state is of epoch %d, the group is in epoch %d or on another branch", n, g.context.epoch)
	}
	var ok bool
	if g.ratchets, ok = unmarshalSecretTree(g.context.cipherSuite, s); !ok || !g.cache.unmarshal(s) {
		return fmt.Errorf("mls: reading a stored ratchet state: %w", s.error())
	}
	if !s.Empty() {
		return errors.New("mls: reading a stored ratchet state: bytes follow it")
	}
	return nil
}

func loadEpochState(cfg *Config, data []byte) (*Group, error) {
	s := newReader(bytes.Clone(data))
	if err := readFormat(s, epochStateFormat, "group"); err != nil {
		return nil, err
	}
	e, err := readEpoch(cfg, s)
	if err != nil {
		return nil, err
	}
	return readMember(e, s)
}

// readMember reads what appendMember wrote, with which the data must end.
func readMember(e *epoch, s *reader) (*Group, error) {
	cs := e.context.cipherSuite
	g := &Group{epoch: e, keys: make(nodeKeys), secrets: new(epochSecrets)}
	var sig []byte
	if !s.ReadUint32((*uint32)(&g.own)) || !readOpaqueVec(s, &sig) {
		return nil, s.error()
	}
	own := e.tree.leaf(g.own)
	if own == nil {
		return nil, fmt.Errorf("our leaf %d is blank", g.own)
	}
	var err error
	if g.signature, err = ParseSignaturePrivateKey(cs, sig); err != nil {
		return nil, err
	}
	if !bytes.Equal(g.signature.Public(), own.SignatureKey) {
		return nil, errors.New("the signature key is not that of our leaf")
	}
	ok := readVector(s, func(s *reader) bool {
		var x uint32
		var priv []byte
		if !s.ReadUint32(&x) || !readOpaqueVec(s, &priv) {
			return false
		}
		n := nodeIndex(x)
		if !n.inTree(e.tree.size) || e.tree.blank(n) || !n.contains(g.own.node()) {
			return s.fail("codec/truncated-anywhere", "", "a key for node %d, which is not above our leaf", x)
		}
		g.keys[n] = nodeKey{priv, e.tree.publicKey(n)}
		return true
	})
	if !ok || !g.secrets.unmarshal(s) {
		return nil, s.error()
	}
	ok = readVector(s, func(s *reader) bool {
		var p pastEpoch
		if len(g.past) >= maxPastEpochs || !s.ReadUint64(&p.epoch) || !readOpaqueVec(s, (*[]byte)(&p.psk)) {
			return false
		}
		g.past = append(g.past, p)
		return true
	})
	if !ok {
		return nil, s.error()
	}
	if !s.Empty() {
		return nil, errors.New("bytes follow the group")
	}
	if _, ok := g.keys[g.own.node()]; !ok {
		return nil, errors.New("the key of our leaf is missing")
	}
	return g, nil
}

// MarshalBinary encodes a Commit of ours, with the epoch it leads to, so that
// nothing is lost between sending and merging. It holds secrets. Delete it in the
// transaction that stores the merged group: merged twice, it is two groups of one
// epoch, which would use message keys twice.
func (s *StagedCommit) MarshalBinary() ([]byte, error) {
	b, err := s.appendTo(stagedCommitFormat)
	if err != nil {
		return nil, err
	}
	b = appendOpaqueVec(b, s.next.EpochState())
	return appendOpaqueVec(b, s.next.RatchetState()), nil
}

// MarshalOn encodes what MarshalBinary does, without the part of the tree that the
// Commit leaves as it is in the epoch it was made in: nearly all of a large group.
// [UnmarshalStagedCommit] then needs that group.
func (s *StagedCommit) MarshalOn(g *Group) ([]byte, error) {
	b, err := s.appendTo(stagedOnFormat)
	if err != nil {
		return nil, err
	}
	b = appendOpaqueVec(b, s.next.EpochHead())
	b = appendOpaqueVec(b, s.next.TreeDelta(g))
	return appendOpaqueVec(b, s.next.RatchetState()), nil
}

// appendTo encodes a Commit of ours but for the epoch that it leads to.
func (s *StagedCommit) appendTo(format uint8) ([]byte, error) {
	if s.message == nil || s.next == nil {
		return nil, errors.New("mls: only Commits of our own are stored; process others again")
	}
	if s.next.ratchets == nil {
		return nil, ErrZeroed
	}
	b := []byte{format}
	b = appendOpaqueVec(b, s.message)
	b = appendOptional(b, s.welcome != nil)
	if s.welcome != nil {
		b = s.welcome.appendTo(b)
	}
	b = s.sender.appendTo(b)
	b = binary.BigEndian.AppendUint32(b, uint32(s.committer))
	b = appendOpaqueVec(b, s.authenticatedData)
	b = appendVector(b, func(b []byte) []byte {
		for i := range s.proposals {
			p := &s.proposals[i]
			b = p.Sender.appendTo(b)
			b = appendOptional(b, p.ByRef)
			b = appendProposal(b, &p.Proposal)
		}
		return b
	})
	for _, list := range [][]LeafIndex{s.added, s.updated} {
		b = appendVector(b, func(b []byte) []byte {
			for _, i := range list {
				b = binary.BigEndian.AppendUint32(b, uint32(i))
			}
			return b
		})
	}
	b = appendVector(b, func(b []byte) []byte {
		for _, r := range s.removed {
			b = binary.BigEndian.AppendUint32(b, uint32(r.Index))
			b = r.Leaf.appendTo(b)
		}
		return b
	})
	return appendOptional(b, s.hasPath), nil
}

// UnmarshalStagedCommit decodes what MarshalBinary or MarshalOn gave, from our own store. g
// is the group that the Commit was made from, in that epoch and branch and of that
// member, which is checked; nil for an external Commit, and for one that founds a
// group.
func UnmarshalStagedCommit(cfg *Config, g *Group, data []byte) (*StagedCommit, error) {
	s := newReader(bytes.Clone(data))
	format := uint8(stagedCommitFormat)
	if len(data) > 0 && data[0] == stagedOnFormat {
		format = stagedOnFormat
	}
	if err := readFormat(s, format, "commit"); err != nil {
		return nil, err
	}
	c := new(StagedCommit)
	var epochState, delta, ratchetState []byte
	if !c.unmarshal(s) || !readOpaqueVec(s, &epochState) || format == stagedOnFormat && !readOpaqueVec(s, &delta) || !readOpaqueVec(s, &ratchetState) {
		return nil, fmt.Errorf("mls: reading a stored commit: %w", s.error())
	}
	if !s.Empty() {
		return nil, errors.New("mls: reading a stored commit: bytes follow it")
	}
	var err error
	switch {
	case format == stagedCommitFormat:
		c.next, err = LoadGroup(cfg, epochState, ratchetState)
	case g == nil:
		return nil, errors.New("mls: the stored commit holds a part of its tree; pass the group that it was made from")
	default:
		c.next, err = (&StoredGroup{Head: epochState, From: g, Deltas: [][]byte{delta}, RatchetState: ratchetState}).Load(cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("mls: reading a stored commit: %w", err)
	}
	if g != nil && !g.leadsTo(c.next) {
		return nil, errors.New("mls: the stored commit was not made from this group and epoch, or not by this member; drop it, and commit again")
	}
	c.epoch = c.next.context.epoch
	c.confirmationTag = c.next.confirmationTag
	c.reinit = c.next.reinit
	c.tree = c.next.tree
	c.extensions = c.next.context.extensions
	if c.committerLeaf = c.tree.leaf(c.committer); c.committerLeaf == nil {
		return nil, errors.New("mls: reading a stored commit: its committer is not in the group")
	}
	return c, nil
}

// leadsTo tells whether next came from a Commit of ours in this epoch: it holds the
// epoch's resumption PSK, which no other branch of the group has.
func (g *Group) leadsTo(next *Group) bool {
	if !bytes.Equal(g.context.groupID, next.context.groupID) || g.context.epoch+1 != next.context.epoch || g.own != next.own || len(next.past) == 0 {
		return false
	}
	last := next.past[len(next.past)-1]
	return last.epoch == g.context.epoch && subtle.ConstantTimeCompare(last.psk, g.secrets.resumption) == 1
}

func (c *StagedCommit) unmarshal(s *reader) bool {
	var present bool
	if !readOpaqueVec(s, &c.message) || !readOptional(s, &present) {
		return false
	}
	if present {
		c.welcome = new(Welcome)
		if !c.welcome.unmarshal(s) {
			return false
		}
	}
	if !c.sender.unmarshal(s) || !s.ReadUint32((*uint32)(&c.committer)) || !readOpaqueVec(s, &c.authenticatedData) {
		return false
	}
	ok := readVector(s, func(s *reader) bool {
		var p CommittedProposal
		if len(c.proposals) >= maxCommitEntries || !p.Sender.unmarshal(s) || !readOptional(s, &p.ByRef) || !readProposal(s, &p.Proposal) {
			return false
		}
		c.proposals = append(c.proposals, p)
		return true
	})
	for _, list := range []*[]LeafIndex{&c.added, &c.updated} {
		ok = ok && readVector(s, func(s *reader) bool {
			var i uint32
			if !s.ReadUint32(&i) {
				return false
			}
			*list = append(*list, LeafIndex(i))
			return true
		})
	}
	return ok && readVector(s, func(s *reader) bool {
		r := RemovedLeaf{Leaf: new(LeafNode)}
		if !s.ReadUint32((*uint32)(&r.Index)) || !r.Leaf.unmarshal(s) {
			return false
		}
		c.removed = append(c.removed, r)
		return true
	}) && readOptional(s, &c.hasPath)
}
