package rooms

import (
	"bytes"
	"crypto/sha256"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// CommitRef returns the ref of a commit: SHA-256 over the PublicMessage without
// its membership tag, that is over version, wire format, content, signature and
// confirmation tag. The membership tag is left out, as everybody who knows the
// epoch could make another.
func CommitRef(m *mls.Message) (federation.Ref, error) {
	sender, public := m.Sender()
	if !public || m.ContentType() != mls.ContentTypeCommit {
		return federation.Ref{}, refuse(RuleContentMalformed, "message", "is no commit in a PublicMessage")
	}
	raw := m.Raw()
	// RFC 9420, Sections 6.1 and 6.2: both tags are MACs of the suite, so they
	// have the same length, and they end the message.
	tag := appendVarVec(nil, m.ConfirmationTag())
	if sender.Type == mls.SenderTypeMember {
		if len(raw) < 2*len(tag) {
			return federation.Ref{}, refuse(RuleContentMalformed, "commit", "ends before its tags")
		}
		raw = raw[:len(raw)-len(tag)]
	}
	if !bytes.HasSuffix(raw, tag) {
		return federation.Ref{}, refuse(RuleContentMalformed, "commit", "its tags have different lengths")
	}
	return sha256.Sum256(raw), nil
}

// SameButTags tells whether two commits in PublicMessages say the same under the same
// signature, and differ in nothing but their confirmation and membership tags, which
// the signature does not cover.
func SameButTags(a, b *mls.Message) bool {
	x, y := signedPart(a), signedPart(b)
	return x != nil && bytes.Equal(x, y)
}

// signedPart returns a commit up to its tags, which may be of any length, nil if the
// message is none.
func signedPart(m *mls.Message) []byte {
	if m.ContentType() != mls.ContentTypeCommit || m.SignatureEnd() == 0 {
		return nil
	}
	return m.Raw()[:m.SignatureEnd()]
}

// OutsideCommit reads what a commit event says of its place in the tree, without
// its parent's epoch: the author signed it, and the ref is over it. base is the
// group at the commit where what is kept begins, before the one that it continues,
// if any. ok is false for a commit of another group, which may still be founded.
func OutsideCommit(c *CommitContent, base, before []byte) (out federation.Outside, ok bool, err error) {
	m, err := mls.ParseMessage(c.Message)
	if err != nil {
		return out, false, err
	}
	ref, err := CommitRef(m)
	if err != nil {
		return out, false, err
	}
	aad, err := DecodeCommitAAD(m.AuthenticatedData())
	if err != nil {
		return out, false, err
	}
	if aad.Parent != federation.Ref(c.Parent) || m.Epoch()+1 != c.Epoch {
		return out, false, refuse(RuleParentMismatch, "commit "+ref.Short(), "the event names parent and epoch, its author signed others")
	}
	past := len(before) > 0 && bytes.Equal(m.GroupID(), before)
	return federation.Outside{Ref: ref, Parent: aad.Parent, Epoch: c.Epoch, Past: past}, past || bytes.Equal(m.GroupID(), base), nil
}

// RootRef returns the ref of an epoch that no commit made: SHA-256 over the
// GroupInfo that founds a group.
func RootRef(m *mls.Message) (federation.Ref, error) {
	if m.GroupInfo() == nil {
		return federation.Ref{}, refuse(RuleContentMalformed, "message", "is no GroupInfo")
	}
	return sha256.Sum256(m.Raw()), nil
}
