package mls

import (
	"bytes"
	"slices"
)

// A CommittedProposal is a proposal of a Commit with its sender: the committer
// for proposals by value.
type CommittedProposal struct {
	Proposal Proposal
	Sender   Sender
	ByRef    bool
}

// A RemovedLeaf is a member that a Commit removes.
type RemovedLeaf struct {
	Index LeafIndex
	Leaf  *LeafNode
}

// A change is what the proposals of a Commit do to a group, before its path.
type change struct {
	proposals    []CommittedProposal
	tree         *ratchetTree // under construction
	extensions   []Extension
	psks         []PreSharedKeyID
	added        []LeafIndex // sorted, as leaves are filled from left to right
	addedKeys    []*KeyPackage
	updated      []LeafIndex
	removed      []RemovedLeaf
	reinit       *ReInit
	externalInit []byte
	resync       *LeafNode // the leaf that an external Commit takes the place of
	gce          bool
	needsPath    bool
}

// removes tells whether the change removes the member at i.
func (c *change) removes(i LeafIndex) bool {
	return slices.ContainsFunc(c.removed, func(r RemovedLeaf) bool { return r.Index == i })
}

// applyProposals checks the proposals of a Commit by a member and carries them
// out on a copy of the tree. RFC 9420, Sections 12.2 and 12.3.
func (e *epoch) applyProposals(list []CommittedProposal, committer LeafIndex, bootstrap ResumptionPSKUsage, received bool) (*change, error) {
	lim := e.cfg.limits()
	most := lim.MaxProposals
	if bootstrap != 0 && !received {
		// RFC 9420, Section 11.2: the first Commit of a group that continues another brings all members at once. Nobody
		// but its founder handles it: the others join by its Welcome.
		most = max(most, lim.MaxMembers)
	}
	if len(list) > most {
		return nil, invalid("proposal-list/too-many", "", "a Commit of %d proposals is over the limit of %d", len(list), most)
	}
	var packages []*KeyPackage
	pc := proposalContext{cfg: e.cfg, ctx: &e.context, tree: e.tree, keyPackages: &packages, bootstrap: bootstrap, received: received}
	touched := make(map[LeafIndex]ProposalType)
	signatureKeys := make(map[string]bool)
	initKeys := make(map[string]bool)
	c := &change{proposals: list, extensions: e.context.extensions, needsPath: len(list) == 0}
	for i := range list {
		p := &list[i].Proposal
		sender := list[i].Sender
		switch {
		case p.Type == ProposalTypeExternalInit:
			// RFC 9420, Section 12.2: not in a regular Commit.
			return nil, invalid("proposal-list/external-init", "12.2", "%w",
				invalid("proposal/external-init-by-member", "12.1.6", "an ExternalInit in a Commit by a member"))
		case p.Type == ProposalTypeUpdate && sender.Type == SenderTypeMember && sender.LeafIndex == committer:
			return nil, invalid("proposal-list/own-update", "12.2", "the Commit holds an Update by its committer")
		case p.Type == ProposalTypeRemove && p.Remove == committer:
			return nil, invalid("proposal-list/own-remove", "12.2", "the Commit removes its committer")
		case p.Type == ProposalTypeSelfRemove:
			if err := checkSelfRemove(&list[i], &committer); err != nil {
				return nil, err
			}
		}
		if err := pc.validate(p, sender); err != nil {
			return nil, err
		}
		c.needsPath = c.needsPath || p.Type.requiresPath()

		switch p.Type {
		case ProposalTypeUpdate, ProposalTypeRemove, ProposalTypeSelfRemove:
			// A SelfRemove is a Remove of its sender.
			leaf, kind := sender.LeafIndex, ProposalTypeRemove
			switch p.Type {
			case ProposalTypeUpdate:
				kind = ProposalTypeUpdate
			case ProposalTypeRemove:
				leaf = p.Remove
			}
			before, twice := touched[leaf]
			touched[leaf] = kind
			switch {
			case !twice:
			case before != kind:
				return nil, invalid("proposal-list/update-and-remove-one-leaf", "12.2", "an Update and a Remove of leaf %d", leaf)
			case p.Type == ProposalTypeUpdate:
				return nil, invalid("proposal-list/two-updates-one-leaf", "12.2", "two Updates of leaf %d", leaf)
			default:
				return nil, invalid("proposal-list/two-removes-one-leaf", "12.2", "two Removes of leaf %d", leaf)
			}
		case ProposalTypeAdd:
			if signatureKeys[string(p.Add.LeafNode.SignatureKey)] {
				return nil, invalid("proposal-list/same-client-added-twice", "12.2", "two Adds of one client")
			}
			if initKeys[string(p.Add.InitKey)] {
				return nil, invalid("proposal-list/same-init-key-added-twice", "12.2", "two Adds with one init_key")
			}
			signatureKeys[string(p.Add.LeafNode.SignatureKey)] = true
			initKeys[string(p.Add.InitKey)] = true
		case ProposalTypePSK:
			if err := c.addPSK(p.PSK, lim); err != nil {
				return nil, err
			}
		case ProposalTypeGroupContextExtensions:
			if c.gce {
				return nil, invalid("proposal-list/two-gce", "12.2", "two GroupContextExtensions proposals")
			}
			c.gce = true
			c.extensions = p.Extensions
		case ProposalTypeReInit:
			if len(list) > 1 {
				return nil, invalid("proposal-list/reinit-with-others", "12.2", "a ReInit beside other proposals")
			}
			c.reinit = p.ReInit
		}
	}
	// RFC 9420, Section 12.2: no client is added that is there and stays.
	for _, kp := range packages {
		if i, ok := e.tree.findSignatureKey(kp.LeafNode.SignatureKey); ok && touched[i] != ProposalTypeRemove {
			return nil, invalid("proposal-list/add-existing-member", "12.2", "an Add of the client at leaf %d", i)
		}
	}
	err := verifyMany(e.context.cipherSuite, len(packages),
		func(i int, f func(pub SignaturePublicKey, label string, content, sig []byte)) {
			kp, l := packages[i], packages[i].LeafNode
			f(l.SignatureKey, "LeafNodeTBS", l.tbs(nil, 0), l.Signature)
			f(l.SignatureKey, "KeyPackageTBS", kp.raw[:kp.content], kp.Signature)
		},
		func(i int) error {
			if err := packages[i].verifySignatures(); err != nil {
				return invalid("proposal/add-invalid-key-package", "12.1.1", "%w", err)
			}
			return nil
		})
	if err != nil {
		return nil, err
	}
	if n := int(e.tree.count) + len(packages); n > lim.MaxMembers {
		return nil, invalid("tree/too-large", "", "a group of up to %d members is over the limit of %d", n, lim.MaxMembers)
	}

	// RFC 9420, Section 12.3: Updates, then Removes, then Adds. SelfRemoves
	// come between the first two (draft-ietf-mls-extensions, Section 6.3).
	c.tree = e.tree.change()
	for i := range list {
		if p := &list[i]; p.Proposal.Type == ProposalTypeUpdate {
			c.tree.update(p.Sender.LeafIndex, p.Proposal.Update)
			c.updated = append(c.updated, p.Sender.LeafIndex)
		}
	}
	for i := range list {
		if p := &list[i]; p.Proposal.Type == ProposalTypeSelfRemove {
			c.remove(e, p.Sender.LeafIndex)
		}
	}
	for i := range list {
		if p := &list[i]; p.Proposal.Type == ProposalTypeRemove {
			c.remove(e, p.Proposal.Remove)
		}
	}
	if err := c.applyAppData(e.cfg, e.context.extensions); err != nil {
		return nil, err
	}
	if len(c.removed) > 0 {
		c.tree.truncate()
	}
	for _, kp := range packages {
		c.added = append(c.added, c.tree.add(kp.LeafNode))
		c.addedKeys = append(c.addedKeys, kp)
	}
	return c, nil
}

// remove removes the member at i.
func (c *change) remove(e *epoch, i LeafIndex) {
	c.removed = append(c.removed, RemovedLeaf{i, e.tree.leaf(i)})
	c.tree.remove(i)
}

// addPSK notes a PSK of the Commit.
func (c *change) addPSK(id *PreSharedKeyID, lim *Limits) error {
	for i := range c.psks {
		if id.equal(&c.psks[i]) {
			return invalid("proposal-list/duplicate-psk-id", "12.2", "two proposals of one PSK")
		}
	}
	if len(c.psks) >= lim.MaxPSKs {
		return invalid("proposal-list/too-many", "", "a Commit with more than %d PSKs, which is the limit", lim.MaxPSKs)
	}
	c.psks = append(c.psks, *id)
	return nil
}

func (id *PreSharedKeyID) equal(o *PreSharedKeyID) bool {
	return bytes.Equal(id.appendTo(nil), o.appendTo(nil))
}

// applyExternal checks the proposals of an external Commit and carries them out
// on a copy of the tree. RFC 9420, Sections 12.2 and 12.4.3.2. leaf is the
// path's leaf. It returns the new member's place.
func (e *epoch) applyExternal(list []CommittedProposal, leaf *LeafNode, received bool) (*change, LeafIndex, error) {
	lim := e.cfg.limits()
	if len(list) > lim.MaxProposals {
		return nil, 0, invalid("proposal-list/too-many", "", "a Commit of %d proposals is over the limit of %d", len(list), lim.MaxProposals)
	}
	pc := proposalContext{cfg: e.cfg, ctx: &e.context, tree: e.tree, received: received}
	c := &change{proposals: list, extensions: e.context.extensions, needsPath: true}
	inits := 0
	var resync *LeafIndex
	leaving := make(map[LeafIndex]bool)
	for i := range list {
		p := &list[i].Proposal
		if list[i].ByRef && p.Type != ProposalTypeSelfRemove {
			return nil, 0, invalid("external-commit/by-reference", "12.4.3.2", "a proposal by reference in an external Commit")
		}
		switch p.Type {
		case ProposalTypeExternalInit, ProposalTypeRemove, ProposalTypePSK, ProposalTypeAppDataUpdate, ProposalTypeAppEphemeral:
		case ProposalTypeSelfRemove:
			if err := checkSelfRemove(&list[i], nil); err != nil {
				return nil, 0, err
			}
		default:
			return nil, 0, invalid("external-commit/other-proposal", "12.2", "proposal type %d in an external Commit", p.Type)
		}
		if err := pc.validate(p, list[i].Sender); err != nil {
			return nil, 0, err
		}
		switch p.Type {
		case ProposalTypeExternalInit:
			inits++
			c.externalInit = p.ExternalInit
		case ProposalTypeRemove:
			if resync != nil {
				return nil, 0, invalid("external-commit/two-removes", "12.2", "two Removes in an external Commit")
			}
			old := e.tree.leaf(p.Remove)
			if !e.cfg.sameClient(old, leaf) {
				return nil, 0, invalid("external-commit/remove-other-identity", "12.2", "an external Commit removes leaf %d, which is another client", p.Remove)
			}
			resync = &p.Remove
			c.resync = old
		case ProposalTypeSelfRemove:
			if leaving[list[i].Sender.LeafIndex] {
				return nil, 0, invalid("proposal-list/two-removes-one-leaf", "12.2", "two SelfRemoves of leaf %d", list[i].Sender.LeafIndex)
			}
			leaving[list[i].Sender.LeafIndex] = true
		case ProposalTypePSK:
			if err := c.addPSK(p.PSK, lim); err != nil {
				return nil, 0, err
			}
		}
	}
	switch {
	case inits == 0:
		return nil, 0, invalid("external-commit/no-external-init", "12.2", "an external Commit without ExternalInit")
	case inits > 1:
		return nil, 0, invalid("external-commit/two-external-init", "12.2", "%d ExternalInit proposals in an external Commit", inits)
	case resync != nil && leaving[*resync]:
		// draft-ietf-mls-extensions, Section 6.3: the Remove is invalid.
		return nil, 0, invalid("proposal-list/two-removes-one-leaf", "12.2", "a SelfRemove and a Remove of leaf %d", *resync)
	case int(e.tree.count) >= lim.MaxMembers && resync == nil && len(leaving) == 0:
		return nil, 0, invalid("tree/too-large", "", "the group has %d members, which is the limit", e.tree.count)
	}
	c.tree = e.tree.change()
	for i := range list {
		if list[i].Proposal.Type == ProposalTypeSelfRemove {
			c.remove(e, list[i].Sender.LeafIndex)
		}
	}
	if resync != nil {
		c.remove(e, *resync)
	}
	if err := c.applyAppData(e.cfg, e.context.extensions); err != nil {
		return nil, 0, err
	}
	if len(c.removed) > 0 {
		c.tree.truncate()
	}
	return c, c.tree.place(), nil
}

// check checks the tree that a Commit leads to. RFC 9420, Section 12.2: no
// leaf may be invalid in it; Section 12.1.7 if the extensions change.
// committer is the leaf that the path replaced, if hasPath is set.
func (c *change) check(committer LeafIndex, hasPath bool) error {
	err := c.checkNewLeaves(committer, hasPath)
	if err == nil {
		err = c.tree.checkMembers(c.extensions)
	}
	if err == nil {
		return nil
	}
	if v, ok := err.(*ValidationError); ok && c.gce {
		switch {
		case v.Section == "13.4":
			err = invalid("proposal/gce-extension-unsupported", "12.1.7", "%w", err)
		case v.Rule == "leaf-node/required-extension-missing" || v.Rule == "leaf-node/required-proposal-missing" || v.Rule == "leaf-node/required-credential-missing":
			err = invalid("proposal/gce-required-unsupported", "12.1.7", "%w", err)
		}
	}
	return invalid("proposal-list/tree-invalid-after", "12.2", "%w", err)
}

// checkNewLeaves checks that those who come in or change support the credential
// types in use. RFC 9420, Section 7.3.
func (c *change) checkNewLeaves(committer LeafIndex, hasPath bool) error {
	leaves := append(slices.Clone(c.updated), c.added...)
	if hasPath {
		leaves = append(leaves, committer)
	}
	for _, t := range c.tree.profiles.credentialTypes() {
		if c.tree.profiles.every(func(c *Capabilities) bool { return c.SupportsCredential(t) }) {
			continue
		}
		for _, i := range leaves {
			if l := c.tree.leaf(i); l != nil && !l.Capabilities.SupportsCredential(t) {
				return invalid("leaf-node/credential-types-in-use-unsupported", "7.3", "leaf %d does not support credential type %d, which is in use", i, t)
			}
		}
	}
	return nil
}
