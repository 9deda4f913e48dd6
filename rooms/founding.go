package rooms

import (
	"bytes"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

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
	members := usersOf(in.Tree)
	for _, l := range leaves {
		if !members[id.UserID(l.User)] {
			return nil, refuse(RuleAddWithoutAdmission, "", "the new group has %s, who was not in the old one", l.User)
		}
	}
	f := p.Federation()
	return &federation.Commit{
		Ref: in.Ref, Parent: in.Parent, EventID: string(in.Event), ParentEvent: string(in.Content.ParentEvent), Epoch: next.Epoch(),
		Author: uint32(gi.Signer()), AuthorUser: string(founder.User), Policy: &f,
		Founding: &federation.Founding{GroupID: bytes.Clone(next.GroupID()), Suite: uint16(next.CipherSuite()), Leaves: leaves},
	}, nil
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
