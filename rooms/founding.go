package rooms

import (
	"bytes"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// Successor returns the policy of the group that a ReInit made on the commit
// parent asks for: it is the same room's, and names the group it continues.
func (p *Policy) Successor(group []byte, parent federation.Ref) *Policy {
	next := p.Clone()
	next.Predecessor = &Predecessor{Group: bytes.Clone(group), Room: p.Room, Ref: Hash(parent)}
	return next
}

// NewReInit returns the ReInit that closes a group for one with another cipher
// suite, with the group's modules as external senders of the new one.
func NewReInit(p *Policy, groupID []byte, cs Suite, senders []mls.ExternalSender) (*mls.ReInit, error) {
	exts, err := GroupExtensions(p, senders)
	if err != nil {
		return nil, err
	}
	return &mls.ReInit{GroupID: groupID, Version: mls.MLS10, CipherSuite: cs, Extensions: exts}, nil
}

// checkReInit checks what a ReInit asks for: a group of the same room that
// continues this one, of a suite above the floor, and ordered by the same
// modules: another list takes a change of its own.
func (c *checker) checkReInit(r *mls.ReInit, author id.UserID) error {
	if !c.old.IsAdmin(author) {
		return refuse(RulePolicyNotEntitled, "", "%s is no admin and may not close the group for a new one", author).with("ask an admin: %s", userList(c.old.Admins))
	}
	next, err := policyIn(r.Extensions)
	if err != nil {
		return err
	}
	want := Predecessor{Group: c.in.Tree.GroupID(), Room: c.old.Room, Ref: Hash(c.in.Parent)}
	switch {
	case next.Room != c.old.Room:
		return refuse(RuleRoomNotGroup, "", "the group that follows belongs to room %s", next.Room)
	case next.Creator != c.old.Creator:
		return refuse(RulePolicyNotEntitled, "", "the group that follows names another creator")
	case !want.equal(next.Predecessor):
		return refuse(RuleParentMismatch, "", "the group that follows does not name this one as its predecessor")
	case !federation.List(c.old.Sequencers).Equal(next.Sequencers):
		return refuse(RulePolicyNotEntitled, "", "a change of suite sets another list of modules").with("change the list by itself")
	case r.Version != mls.MLS10 || len(r.GroupID) != GroupIDSize || bytes.Equal(r.GroupID, c.in.Tree.GroupID()):
		return refuse(RuleContentMalformed, "", "the group that follows has version %d and an id of %d bytes", r.Version, len(r.GroupID))
	case !c.old.MayUse(r.CipherSuite):
		return refuse(RuleNoCommonSuite, "", "cipher suite %v is below the floor that the group has agreed on", r.CipherSuite).
			with("let an admin change the floor first")
	}
	if err := checkRequired(r.Extensions); err != nil {
		return err
	}
	return c.checkKeyPackages(r)
}

// checkKeyPackages checks that a key package of the next suite rides with a
// ReInit for each leaf: the group is closed from here on, so whoever founds the
// next one must not have to wait for anybody. Their signatures are the founder's
// to check.
func (c *checker) checkKeyPackages(r *mls.ReInit) error {
	var have []*mls.LeafNode
	for _, raw := range c.in.Content.KeyPackages {
		m, err := mls.ParseMessage(raw)
		if err != nil {
			return &Refusal{Rule: RuleContentMalformed, What: "key_packages", Err: err}
		}
		kp := m.KeyPackage()
		if kp == nil || kp.CipherSuite != r.CipherSuite {
			return malformed("key_packages", "holds something else than key packages of %v", r.CipherSuite)
		}
		if _, err := CredentialOf(kp.LeafNode); err != nil {
			return err
		}
		have = append(have, kp.LeafNode)
	}
	if err := sameDevices(leafNodes(c.in.Tree), have); err != nil {
		return inContent("key_packages", err)
	}
	return nil
}

// FoundingExtension returns the extension by which the GroupInfo of a founding
// commit names the ReInit commit it follows; the founder's signature covers it.
func FoundingExtension(parent federation.Ref) mls.Extension {
	return mls.Extension{Type: ExtensionFounding, Data: MessageAAD{Head: parent}.Encode()}
}

// CheckFounding holds the founding commit of a group's successor against the
// commit that closed the old group, and returns what package federation needs.
// in.Content carries the founding GroupInfo, next is the epoch that it and its
// tree describe, which package mls has checked; in.Tree is the epoch that the
// commit in.Parent made, and closing its ReInit.
func CheckFounding(in CommitInput, closing *mls.ReInit, next Tree) (*federation.Commit, error) {
	c, err := checkFounding(in, closing, next)
	if err != nil {
		return nil, inCommit(in.Ref, err)
	}
	return c, nil
}

func checkFounding(in CommitInput, closing *mls.ReInit, next Tree) (*federation.Commit, error) {
	old, err := PolicyOf(in.Tree)
	if err != nil {
		return nil, err
	}
	p, err := PolicyOf(next)
	if err != nil {
		return nil, err
	}
	m, err := mls.ParseMessage(in.Content.GroupInfo)
	if err != nil || m.GroupInfo() == nil {
		return nil, malformed("group_info", "is no GroupInfo")
	}
	gi := m.GroupInfo()
	pre := p.Predecessor
	switch {
	case closing == nil:
		return nil, refuse(RuleParentMismatch, "", "its parent does not close the group")
	case in.Room != old.Room || p.Room != old.Room:
		return nil, refuse(RuleRoomNotGroup, "", "the new group belongs to room %s, the old one to %s", p.Room, old.Room)
	case !bytes.Equal(closing.GroupID, next.GroupID()) || closing.CipherSuite != next.CipherSuite():
		return nil, refuse(RuleParentMismatch, "", "group id or cipher suite is not what the ReInit names")
	case !bytes.Equal(gi.GroupID(), next.GroupID()) || gi.Epoch() != next.Epoch() || in.Content.Epoch != next.Epoch():
		return nil, refuse(RuleParentMismatch, "", "event, GroupInfo and tree are of different epochs")
	case pre == nil || !bytes.Equal(pre.Group, in.Tree.GroupID()) || pre.Room != old.Room:
		return nil, refuse(RuleParentMismatch, "", "the new group does not name the old one as its predecessor")
	case !namesParent(gi.Extensions(), in.Parent) || federation.Ref(in.Content.Parent) != in.Parent:
		return nil, refuse(RuleParentMismatch, "", "its founder did not sign %s as its parent", in.Parent.Short())
	}
	leaf, ok := next.Leaf(gi.Signer())
	if !ok {
		return nil, refuse(RuleSenderNotCredential, "", "its founder has no leaf")
	}
	founder, err := CredentialOf(leaf)
	if err != nil {
		return nil, err
	}
	if founder.User != in.Sender || !hasUser(in.Tree, founder.User) {
		return nil, refuse(RuleSenderNotCredential, "", "sent by %s, founded by a device of %s", in.Sender, founder.User)
	}
	if err := founderProven(in, founder); err != nil {
		return nil, err
	}
	leaves, err := leafTable(next)
	if err != nil {
		return nil, err
	}
	if err := sameDevices(leafNodes(in.Tree), leafNodes(next)); err != nil {
		return nil, err
	}
	f := p.Federation()
	return &federation.Commit{
		Ref: in.Ref, Parent: in.Parent, EventID: string(in.Event), ParentEvent: string(in.Content.ParentEvent), Epoch: next.Epoch(),
		Author: uint32(gi.Signer()), AuthorUser: string(founder.User), Policy: &f,
		Founding: &federation.Founding{GroupID: bytes.Clone(next.GroupID()), Suite: uint16(next.CipherSuite()), Leaves: leaves},
	}, nil
}

// sameDevices checks that the devices of some leaves are exactly those of
// others: a successor has those of the old group (RFC 9420, Section 11.2). Who
// should come or go does so by a commit, before or after.
func sameDevices(old, next []*mls.LeafNode) error {
	type device struct {
		user   id.UserID
		device id.DeviceID
	}
	count := make(map[device]int)
	users := make(map[id.UserID]bool)
	for _, leaf := range old {
		c, err := ParseCredential(&leaf.Credential)
		if err != nil {
			return err
		}
		count[device{c.User, c.Device}]++
		users[c.User] = true
	}
	for _, leaf := range next {
		c, err := ParseCredential(&leaf.Credential)
		if err != nil {
			return err
		}
		d := device{c.User, c.Device}
		if count[d]--; count[d] < 0 {
			if !users[c.User] {
				return refuse(RuleAddWithoutAdmission, "", "it has %s, who was not in the old group", c.User)
			}
			return refuse(RuleAddWithoutAdmission, "", "it has device %s, which was not in the old group", c)
		}
	}
	for _, leaf := range old { // in order, so that the refusal is the same for all
		c, _ := ParseCredential(&leaf.Credential)
		if count[device{c.User, c.Device}] > 0 {
			return refuse(RuleFoundingIncomplete, "", "device %s of the old group is missing", c)
		}
	}
	return nil
}

func leafNodes(t Tree) []*mls.LeafNode {
	var out []*mls.LeafNode
	for _, leaf := range t.Members() {
		out = append(out, leaf)
	}
	return out
}

// founderProven checks that a device of the old group founds the new one: by
// its key, or, where the new suite takes another one, by a signature with the
// old. The sender of an event is only its server's word.
func founderProven(in CommitInput, founder *Credential) error {
	for _, leaf := range in.Tree.Members() {
		if c, err := ParseCredential(&leaf.Credential); err == nil && c.User == founder.User && bytes.Equal(leaf.SignatureKey, founder.Key) {
			return nil
		}
	}
	content := foundingContent(in.Tree.GroupID(), in.Parent, in.Ref)
	for _, s := range in.Content.CoSignatures {
		leaf, ok := in.Tree.Leaf(mls.LeafIndex(s.Leaf))
		if !ok {
			continue
		}
		if c, err := CredentialOf(leaf); err != nil || c.User != founder.User {
			continue
		}
		if mls.VerifyWithLabel(in.Tree.CipherSuite(), leaf.SignatureKey, LabelFounding, content, s.Sig) == nil {
			return nil
		}
	}
	return refuse(RuleFounderUnproven, "", "no device of %s in the old group has signed it", founder.User)
}

func foundingContent(group []byte, parent, ref federation.Ref) []byte {
	b := []byte{aadVersion}
	b = appendVec(b, group)
	b = append(b, parent[:]...)
	return append(b, ref[:]...)
}

// SignFounding lets a leaf of the group that a ReInit closed, in the commit
// parent, consent to the founding commit ref of its successor. A founder whose
// key changes with the suite signs so with its old one; the result goes into
// CoSignatures of the founding commit.
func SignFounding(old Tree, leaf mls.LeafIndex, key mls.SignaturePrivateKey, parent, ref federation.Ref) (CoSignature, error) {
	sig, err := mls.SignWithLabel(old.CipherSuite(), key, LabelFounding, foundingContent(old.GroupID(), parent, ref))
	return CoSignature{Leaf: uint32(leaf), Sig: sig}, err
}

// namesParent tells whether extensions of a GroupInfo name a commit as parent.
func namesParent(exts []mls.Extension, parent federation.Ref) bool {
	for _, e := range exts {
		if e.Type == ExtensionFounding {
			aad, err := DecodeMessageAAD(e.Data)
			return err == nil && aad.Head == parent
		}
	}
	return false
}
