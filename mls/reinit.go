package mls

import (
	"bytes"
	"errors"
	"fmt"
)

// group returns the old group that a resumption PSK is of.
func (o *JoinOptions) group(id *PreSharedKeyID) *Group {
	if id.Type != PSKTypeResumption {
		return nil
	}
	for _, g := range append([]*Group{o.Successor}, o.Resumption...) {
		if g != nil && bytes.Equal(g.context.groupID, id.GroupID) && g.secrets != nil {
			if _, ok := g.ownPSK(id); ok {
				return g
			}
		}
	}
	return nil
}

// checkOrigin checks a group that says it follows another by ReInit or branches
// off it. RFC 9420, Sections 11.2 and 11.3.
func checkOrigin(e *epoch, id *PreSharedKeyID, o *JoinOptions) error {
	if id == nil {
		return nil
	}
	old := o.group(id)
	if old == nil {
		return invalid("welcome/psk-missing", "12.4.3.1", "the group that this one comes from is not at hand; pass it as Resumption")
	}
	if e.context.epoch != 1 {
		return invalid("welcome/reinit-epoch", "11.2", "a group made from another begins with epoch %d", e.context.epoch)
	}
	if id.Usage == ResumptionPSKUsageBranch {
		if e.context.version != old.context.version || e.context.cipherSuite != old.context.cipherSuite {
			return invalid("welcome/branch-parameters", "11.3", "version or suite of the branch is not that of the group")
		}
		// Every member of the branch is one of the group.
		if l := missingMember(e, old.epoch); l != nil {
			return invalid("welcome/branch-members", "11.3", "a member of the branch is not in the group")
		}
		return nil
	}
	r := old.reinit
	if r == nil {
		return invalid("welcome/reinit-parameters", "11.2", "the old group was not closed by a ReInit")
	}
	if id.Epoch != old.context.epoch {
		// Who was removed before the ReInit knows PSKs of earlier epochs.
		return invalid("welcome/reinit-psk-epoch", "11.2", "the resumption PSK is of epoch %d, the group was closed in epoch %d", id.Epoch, old.context.epoch)
	}
	if !bytes.Equal(r.GroupID, e.context.groupID) || r.Version != e.context.version || r.CipherSuite != e.context.cipherSuite ||
		!bytes.Equal(appendExtensions(nil, r.Extensions), appendExtensions(nil, e.context.extensions)) {
		return invalid("welcome/reinit-parameters", "11.2", "the new group is not the one that the ReInit describes")
	}
	// Every member of the old group is in the new one.
	if l := missingMember(old.epoch, e); l != nil {
		return invalid("welcome/reinit-members", "11.2", "a member of the old group is not in the new one")
	}
	return nil
}

// missingMember returns a member of a that has no counterpart in b. Clients are
// known by their signature key, or where keys changed, by the Authenticator.
func missingMember(a, b *epoch) *LeafNode {
	used := make(map[LeafIndex]bool)
	var rest []*LeafNode
	for _, l := range a.tree.members() {
		if i, ok := b.tree.findSignatureKey(l.SignatureKey); ok {
			used[i] = true
		} else {
			rest = append(rest, l)
		}
	}
	// Those left are compared by credential first, so that the Authenticator
	// is asked about every pair only for clients whose credential changed.
	byCredential := make(map[string][]LeafIndex)
	for i, l := range b.tree.members() {
		if !used[i] {
			c := string(l.Credential.appendTo(nil))
			byCredential[c] = append(byCredential[c], i)
		}
	}
	asked := 0
next:
	for _, l := range rest {
		for _, i := range byCredential[string(l.Credential.appendTo(nil))] {
			if !used[i] && b.cfg.sameClient(l, b.tree.leaf(i)) {
				used[i] = true
				continue next
			}
		}
		for i, m := range b.tree.members() {
			if asked++; asked > maxClientPairs {
				return l
			}
			if !used[i] && b.cfg.sameClient(l, m) {
				used[i] = true
				continue next
			}
		}
		return l
	}
	return nil
}

// maxClientPairs bounds how often the Authenticator is asked for one join.
const maxClientPairs = 1 << 16

// ReInitGroup makes the group that a ReInit asks for, with the members that the
// KeyPackages are of: all of the old group but us. RFC 9420, Section 11.2. The
// result is the staged Commit to epoch 1 with its Welcome; there is nobody to
// send the Commit to.
func (g *Group) ReInitGroup(key SignaturePrivateKey, leaf LeafOptions, members []*KeyPackage, o CommitOptions) (*StagedCommit, error) {
	if g.ratchets == nil {
		return nil, ErrZeroed
	}
	r := g.reinit
	if r == nil {
		return nil, errors.New("mls: the group was not closed by a ReInit; commit one first")
	}
	return g.successor(r.CipherSuite, r.GroupID, r.Extensions, ResumptionPSKUsageReInit, key, leaf, members, o)
}

// Branch makes a group of some of this group's members and us. RFC 9420,
// Section 11.3. The result is the staged Commit to epoch 1 with its Welcome.
func (g *Group) Branch(groupID []byte, extensions []Extension, key SignaturePrivateKey, leaf LeafOptions, members []*KeyPackage, o CommitOptions) (*StagedCommit, error) {
	if g.ratchets == nil {
		return nil, ErrZeroed
	}
	return g.successor(g.context.cipherSuite, groupID, extensions, ResumptionPSKUsageBranch, key, leaf, members, o)
}

func (g *Group) successor(cs CipherSuite, groupID []byte, exts []Extension, usage ResumptionPSKUsage, key SignaturePrivateKey, leaf LeafOptions, members []*KeyPackage, o CommitOptions) (*StagedCommit, error) {
	if bytes.Equal(groupID, g.context.groupID) {
		return nil, errors.New("mls: a group made from another needs a group ID of its own")
	}
	n, err := CreateGroup(g.cfg, cs, groupID, key, leaf, exts)
	if err != nil {
		return nil, err
	}
	id := PreSharedKeyID{Type: PSKTypeResumption, Usage: usage, GroupID: g.context.groupID, Epoch: g.context.epoch}
	o.Proposals = append(o.Proposals[:len(o.Proposals):len(o.Proposals)], PSK(id))
	for _, kp := range members {
		o.Proposals = append(o.Proposals, Add(kp))
	}
	n.origin = g
	s, err := n.commit(&o, usage)
	n.origin = nil
	if err != nil {
		return nil, err
	}
	filled := s.proposals[len(o.Proposals)-len(members)-1].Proposal.PSK
	if err := checkOrigin(s.next.epoch, filled, &JoinOptions{Resumption: []*Group{g}}); err != nil {
		return nil, fmt.Errorf("mls: the members do not fit: %w", err)
	}
	return s, nil
}
