package mls

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// The states of persist.go are whole. In a large group little of them changes
// with an epoch or a message, and what is here is that little:
//
//	a new epoch     EpochHead, and TreeDelta from an epoch that is stored
//	a message       RatchetChanges
//
// A StoredGroup, or for servers a StoredPublicGroup, puts the parts together again. The tree and its deltas are
// public; heads and ratchet pages hold secrets and are to be overwritten or
// deleted with the epoch that they belong to (RFC 9420, Section 9.2), which the
// deltas, needed by later epochs, outlive.
const (
	epochHeadFormat   = 1
	treeDeltaFormat   = 1
	ratchetPageFormat = 2
	publicHeadFormat  = 1

	// uncountedPages is the format of first pages that do not say how many follow.
	uncountedPages = 1
)

// EpochHead returns what EpochState does, without the tree. It holds secrets. A
// group whose secrets were wiped has none.
func (g *Group) EpochHead() []byte {
	if g.ratchets == nil {
		return nil
	}
	return g.appendMember(g.appendHead([]byte{epochHeadFormat}))
}

// TreeDelta returns how the ratchet tree differs from that of another epoch of
// the group, usually an earlier one. A Commit changes as many nodes as its path
// and its proposals touch. Nothing of it is secret.
func (e *epoch) TreeDelta(from TreeHolder) []byte {
	a, b := from.ratchetTree(), e.tree
	out := []byte{treeDeltaFormat}
	out = binary.BigEndian.AppendUint32(out, b.size)
	return appendVector(out, func(out []byte) []byte {
		for i, c := range b.chunks {
			if i < len(a.chunks) && a.chunks[i] == c {
				continue
			}
			for k := range c.slots {
				x := nodeIndex(i<<treeChunkBits + k)
				if uint32(x) >= b.nodes() {
					break
				}
				var old treeSlot
				if uint32(x) < a.nodes() {
					old = *a.slot(x)
				}
				s := &c.slots[k]
				if sameNode(s, &old) {
					continue
				}
				out = binary.BigEndian.AppendUint32(out, uint32(x))
				switch {
				case s.leaf != nil:
					out = append(append(out, nodeTypeLeaf), s.leaf.raw...)
				case s.parent != nil:
					out = s.parent.appendTo(append(out, nodeTypeParent))
				default:
					out = append(out, 0)
				}
			}
		}
		return out
	})
}

// sameNode compares two nodes. Trees of neighbouring epochs share most of them.
func sameNode(a, b *treeSlot) bool {
	switch {
	case a.leaf == b.leaf && a.parent == b.parent:
		return true
	case a.leaf != nil && b.leaf != nil:
		return bytes.Equal(a.leaf.raw, b.leaf.raw)
	case a.parent != nil && b.parent != nil:
		return bytes.Equal(a.parent.encryptionKey, b.parent.encryptionKey) &&
			bytes.Equal(a.parent.parentHash, b.parent.parentHash) &&
			slices.Equal(a.parent.unmergedLeaves, b.parent.unmergedLeaves)
	}
	return false
}

// A TreeHolder is a *Group or a *PublicGroup.
type TreeHolder interface {
	ratchetTree() *ratchetTree
	sharedSigners() *signers
}

func (e *epoch) ratchetTree() *ratchetTree { return e.tree }
func (e *epoch) sharedSigners() *signers   { return e.signers }

// applyDelta changes a tree under construction as TreeDelta says.
func (t *ratchetTree) applyDelta(delta []byte, lim *Limits) error {
	s := newReader(delta)
	s.entries += 2 * lim.MaxMembers
	if err := readFormat(s, treeDeltaFormat, "tree delta"); err != nil {
		return err
	}
	var size uint32
	if !s.ReadUint32(&size) {
		return s.error()
	}
	if size == 0 || size != fullLeafCount(size) || uint64(size) > uint64(fullLeafCount(uint32(lim.MaxMembers))) {
		return fmt.Errorf("mls: a stored tree delta leads to a tree of %d leaves", size)
	}
	for t.size < size {
		t.extend()
	}
	for x := nodeIndex(2*size - 1); uint32(x) < t.nodes(); x++ {
		t.setNode(x, nil, nil)
	}
	for t.size > size {
		t.truncate()
	}
	// It halves as often as it can; what the delta fills again may lie farther out.
	for t.size < size {
		t.extend()
	}
	ok := readVector(s, func(s *reader) bool {
		var x uint32
		var kind uint8
		if !s.ReadUint32(&x) || !s.ReadUint8(&kind) {
			return false
		}
		if x >= t.nodes() {
			return s.fail("codec/truncated-anywhere", "", "node %d of a stored tree delta is outside of the tree", x)
		}
		switch isLeaf := nodeIndex(x).isLeaf(); {
		case kind == nodeTypeLeaf && isLeaf:
			l := new(LeafNode)
			if !l.unmarshal(s) {
				return false
			}
			t.setNode(nodeIndex(x), l, nil)
		case kind == nodeTypeParent && !isLeaf:
			p := new(parentNode)
			if !p.unmarshal(s) {
				return false
			}
			t.setNode(nodeIndex(x), nil, p)
		case kind == 0:
			t.setNode(nodeIndex(x), nil, nil)
		default:
			return s.fail("codec/unknown-node-type", "", "node %d of a stored tree delta has type %d", x, kind)
		}
		return true
	})
	if !ok {
		return s.error()
	}
	if !s.Empty() {
		return errors.New("mls: bytes follow a stored tree delta")
	}
	if size > 1 && t.last <= size/2 { // nobody has written it, and its hashes would be as many as it claims to have nodes
		return fmt.Errorf("mls: a stored tree delta leads to a tree of %d leaves, of which only %d are needed", size, t.last)
	}
	return nil
}

func (t *ratchetTree) setNode(x nodeIndex, l *LeafNode, p *parentNode) {
	if x.isLeaf() {
		t.setLeaf(x.leaf(), l)
	} else {
		t.setParent(x, p)
	}
}

// A RatchetPage is a part of an epoch's RatchetState that is stored by itself.
type RatchetPage struct {
	ID   uint64 // names the page in its epoch
	Data []byte // nil: the page is to be deleted
}

// Kinds of pages, the upper half of an ID; the lower half says which.
const (
	pageHead     = 0
	pageNode     = 1
	pageLeaf     = 2
	pageProposal = 3
)

func pageID(kind uint64, i uint32) uint64 { return kind<<32 | uint64(i) }

// RatchetChanges returns the pages that differ from what was stored when
// RatchetStored was last called, in the order of their IDs; before its first
// call, all pages. They hold secrets: write them in place of those with the same
// ID, in one transaction, and call RatchetStored when it is done. As with
// RatchetState, that comes before a message is sent or acted on.
func (g *Group) RatchetChanges() []RatchetPage {
	t := g.ratchets
	if t == nil {
		return nil
	}
	if t.stale == nil {
		t.stale = make(map[uint64]struct{})
		for n := range t.nodes {
			t.touch(pageNode, uint32(n))
		}
		for i := range t.ratchets {
			t.touch(pageLeaf, uint32(i))
		}
		g.cache.stored = 0
	}
	pages := make([]RatchetPage, 0, 1+len(t.stale)+len(g.cache.list)-g.cache.stored)
	head := []byte{ratchetPageFormat}
	head = binary.BigEndian.AppendUint64(head, g.context.epoch)
	head = appendOpaqueVec(head, g.context.confirmedTranscriptHash)
	head = binary.BigEndian.AppendUint64(head, t.seq)
	head = binary.BigEndian.AppendUint32(head, uint32(len(t.nodes)+len(t.ratchets)+len(g.cache.list)))
	pages = append(pages, RatchetPage{pageID(pageHead, 0), head})
	for id := range t.stale {
		p := RatchetPage{ID: id}
		if i := uint32(id); id>>32 == pageNode {
			if s := t.nodes[nodeIndex(i)]; s != nil {
				p.Data = bytes.Clone(s)
			}
		} else if l := t.ratchets[LeafIndex(i)]; l != nil {
			p.Data = l.application.appendTo(l.handshake.appendTo(nil))
		}
		pages = append(pages, p)
	}
	for i := g.cache.stored; i < len(g.cache.list); i++ {
		pages = append(pages, RatchetPage{pageID(pageProposal, uint32(i)), g.cache.list[i].appendTo(nil)})
	}
	slices.SortFunc(pages, func(a, b RatchetPage) int { return cmp.Compare(a.ID, b.ID) })
	return pages
}

// RatchetStored says that what RatchetChanges gave was stored, and that nothing
// was done to the group since.
func (g *Group) RatchetStored() {
	if g.ratchets != nil {
		clear(g.ratchets.stale)
		g.cache.stored = len(g.cache.list)
	}
}

// touch notes that a page has changed, once somebody stores pages.
func (t *secretTree) touch(kind uint64, i uint32) {
	if t.stale != nil {
		t.stale[pageID(kind, i)] = struct{}{}
	}
}

// readPages puts RatchetPages together.
func (g *Group) readPages(pages []RatchetPage) error {
	pages = slices.Clone(pages)
	slices.SortFunc(pages, func(a, b RatchetPage) int { return cmp.Compare(a.ID, b.ID) })
	if len(pages) == 0 || pages[0].ID != pageID(pageHead, 0) {
		return errors.New("mls: the first of the stored ratchet pages is missing")
	}
	cs := g.context.cipherSuite
	t := &secretTree{cs: cs, nLeaves: fullLeafCount(g.tree.size), nodes: make(map[nodeIndex]secret),
		ratchets: make(map[LeafIndex]*leafRatchets), stale: make(map[uint64]struct{})}
	for k, p := range pages {
		if k > 0 && p.ID == pages[k-1].ID {
			return fmt.Errorf("mls: stored ratchet page %#x is there twice", p.ID)
		}
		s := newReader(bytes.Clone(p.Data))
		i := uint32(p.ID)
		ok := false
		switch p.ID >> 32 {
		case pageHead:
			format := uint8(ratchetPageFormat)
			if len(p.Data) > 0 && p.Data[0] == uncountedPages {
				format = uncountedPages
			}
			if err := readFormat(s, format, "ratchet page"); err != nil {
				return err
			}
			var n uint64
			var transcript []byte
			var count uint32
			ok = s.ReadUint64(&n) && readOpaqueVec(s, &transcript) && s.ReadUint64(&t.seq) && (format == uncountedPages || s.ReadUint32(&count))
			if ok && format != uncountedPages && int64(count) != int64(len(pages)-1) {
				return fmt.Errorf("mls: of %d stored ratchet pages %d are there; restore the state from a backup, or join again", count, len(pages)-1)
			}
			if ok && (n != g.context.epoch || !bytes.Equal(transcript, g.context.confirmedTranscriptHash)) {
				return fmt.Errorf("mls: the stored ratchet pages are of epoch %d, the group is in epoch %d or on another branch", n, g.context.epoch)
			}
		case pageNode:
			var v secret
			ok = nodeIndex(i).inTree(t.nLeaves) && readSecret(s, &v, cs.HashLen())
			t.nodes[nodeIndex(i)] = v
		case pageLeaf:
			l := new(leafRatchets)
			ok = i < t.nLeaves && l.handshake.unmarshal(s, cs) && l.application.unmarshal(s, cs)
			t.ratchets[LeafIndex(i)] = l
			t.skipped += len(l.handshake.skipped) + len(l.application.skipped)
		case pageProposal:
			ok = int64(i) == int64(len(g.cache.list)) && g.cache.unmarshalOne(s)
		}
		if !ok || !s.Empty() {
			return fmt.Errorf("mls: stored ratchet page %#x cannot be read: %w", p.ID, s.error())
		}
	}
	g.cache.stored = len(g.cache.list)
	g.ratchets = t
	return nil
}

// plantParts gives an epoch from our own store the tree that its parts make. With
// from they are the differences from that epoch's tree, with which it then shares
// what is the same.
func (e *epoch) plantParts(from TreeHolder, tree []byte, deltas [][]byte) error {
	lim := e.cfg.limits()
	var t *ratchetTree
	if from != nil {
		t = from.ratchetTree().change()
		e.signers = from.sharedSigners()
	} else {
		var err error
		if t, err = parseTree(e.context.cipherSuite, bytes.Clone(tree), lim); err != nil {
			return err
		}
	}
	for _, d := range deltas {
		if err := t.applyDelta(bytes.Clone(d), lim); err != nil {
			return err
		}
	}
	return e.plant(t)
}

// EpochHead returns what MarshalBinary does, without the tree. Nothing of it is
// secret. It changes with each proposal that the group keeps.
func (p *PublicGroup) EpochHead() []byte {
	return p.cache.appendTo(p.appendHead([]byte{publicHeadFormat}))
}

// A StoredPublicGroup is a PublicGroup in the parts that it was stored in.
type StoredPublicGroup struct {
	Head   []byte     // EpochHead of the epoch, with its proposals
	Tree   []byte     // RatchetTree of this epoch or of another
	From   TreeHolder // that other epoch, in place of Tree if it is not nil: the trees then share memory
	Deltas [][]byte   // TreeDeltas from there to this epoch, in order
}

// Load restores the group. The parts must come from our own store: the tree is
// not validated again, beyond its hash.
func (st *StoredPublicGroup) Load(cfg *Config) (*PublicGroup, error) {
	p, err := st.load(cfg)
	if err != nil {
		return nil, fmt.Errorf("mls: reading a stored public group: %w", err)
	}
	return p, nil
}

func (st *StoredPublicGroup) load(cfg *Config) (*PublicGroup, error) {
	s := newReader(bytes.Clone(st.Head))
	if err := readFormat(s, publicHeadFormat, "epoch of a public group"); err != nil {
		return nil, err
	}
	e, err := readHead(cfg, s)
	if err != nil {
		return nil, err
	}
	p := &PublicGroup{epoch: e}
	if !p.cache.unmarshal(s) {
		return nil, s.error()
	}
	if !s.Empty() {
		return nil, errors.New("bytes follow the group")
	}
	return p, e.plantParts(st.From, st.Tree, st.Deltas)
}

// A StoredGroup is a group in the parts that it was stored in.
type StoredGroup struct {
	Head   []byte     // EpochHead of the epoch
	Tree   []byte     // RatchetTree of this epoch or of another
	From   TreeHolder // that other epoch, in place of Tree if it is not nil: the trees then share memory
	Deltas [][]byte   // TreeDeltas from there to this epoch, in order

	// What changed by messages: either the newest RatchetState or all pages, not
	// both. Pages without Data are those to be deleted, and are left out.
	RatchetState []byte
	Pages        []RatchetPage
}

// Load restores the group. The parts must come from our own store, and the
// ratchets must be the newest that were stored: older ones would use keys twice.
func (st *StoredGroup) Load(cfg *Config) (*Group, error) {
	g, err := st.load(cfg)
	if err != nil {
		return nil, fmt.Errorf("mls: reading a stored group: %w", err)
	}
	return g, nil
}

func (st *StoredGroup) load(cfg *Config) (*Group, error) {
	s := newReader(bytes.Clone(st.Head))
	if err := readFormat(s, epochHeadFormat, "epoch"); err != nil {
		return nil, err
	}
	e, err := readHead(cfg, s)
	if err != nil {
		return nil, err
	}
	if err := e.plantParts(st.From, st.Tree, st.Deltas); err != nil {
		return nil, err
	}
	g, err := readMember(e, s)
	if err != nil {
		return nil, err
	}
	if st.RatchetState != nil && len(st.Pages) > 0 {
		return nil, errors.New("both a RatchetState and ratchet pages are given, of which one is older; pass what was stored last")
	}
	if st.RatchetState != nil {
		return g, g.readRatchets(bytes.Clone(st.RatchetState))
	}
	return g, g.readPages(st.Pages)
}
