package rooms

import (
	"bytes"
	"iter"

	"golang.org/x/crypto/cryptobyte"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// Tree is what this package reads of a group's epoch. *mls.Group and
// *mls.PublicGroup have these methods.
type Tree interface {
	CipherSuite() mls.CipherSuite
	GroupID() []byte
	Epoch() uint64
	Leaf(i mls.LeafIndex) (*mls.LeafNode, bool)
	Members() iter.Seq2[mls.LeafIndex, *mls.LeafNode]
	Extension(t mls.ExtensionType) ([]byte, bool)
}

// PolicyOf reads the policy of a group.
func PolicyOf(t Tree) (*Policy, error) {
	data, ok := t.Extension(ExtensionPolicy)
	if !ok {
		return nil, refuse(RulePolicyMalformed, "group", "has no policy: it is no group of a Matrix room")
	}
	return DecodePolicy(data)
}

// content returns the bytes under an admission's signature.
func (a *Admission) content() []byte {
	b := []byte{aadVersion}
	b = appendVec(b, a.Room)
	b = appendVec(b, a.Group)
	b = appendVec(b, a.User)
	b = appendVec(b, a.MasterKey)
	b = append(b, a.Ref[:]...)
	return appendUint32(b, a.Leaf)
}

// Size is what an admission takes in a commit's authenticated data, in bytes.
func (a *Admission) Size() int { return len(a.content()) + len(a.Sig) + 8 }

func (a *Admission) readContent(s cryptobyte.String) bool {
	var version uint8
	return s.ReadUint8(&version) && version == aadVersion &&
		readVec(&s, &a.Room, maxName) && readVec(&s, &a.Group, maxName) && readVec(&s, &a.User, maxName) &&
		readVec(&s, &a.MasterKey, 64) && readHash(&s, &a.Ref) && s.ReadUint32(&a.Leaf) && s.Empty()
}

// SignAdmission lets a user into a group, in the name of a leaf of the epoch
// that the commit head made. master is the user's Ed25519 master key; nil if it
// is not known.
func SignAdmission(t Tree, room id.RoomID, head federation.Ref, leaf mls.LeafIndex, key mls.SignaturePrivateKey, user id.UserID, master []byte) (*Admission, error) {
	a := &Admission{Room: room, Group: t.GroupID(), User: user, Ref: Hash(head), Leaf: uint32(leaf)}
	if len(master) > 0 {
		a.MasterKey = EncodeBase64(master)
	}
	sig, err := mls.SignWithLabel(t.CipherSuite(), key, LabelAdmission, a.content())
	if err != nil {
		return nil, err
	}
	a.Sig = sig
	return a, a.validate()
}

// VerifyAdmission checks an admission against the epoch it is used in: it is
// for this room and group, signed by a leaf that is still a member, whose user
// the policy lets admit others. It returns that user.
//
// removedSince tells whether a commit above the given one removed the user: an
// admission does not outlive a kick. It may be nil where that is not known.
func VerifyAdmission(t Tree, policy *Policy, a *Admission, removedSince func(user id.UserID, since federation.Ref) bool) (id.UserID, error) {
	what := "admission of " + string(a.User)
	if err := a.validate(); err != nil {
		return "", inContent(what, err)
	}
	if a.Room != policy.Room || !bytes.Equal(a.Group, t.GroupID()) {
		return "", refuse(RuleAddWithoutAdmission, what, "is for another room or group")
	}
	leaf, ok := t.Leaf(mls.LeafIndex(a.Leaf))
	if !ok {
		return "", refuse(RuleAddWithoutAdmission, what, "the member who signed it, leaf %d, is not in the group any more", a.Leaf).with("another member has to admit them")
	}
	by, err := CredentialOf(leaf)
	if err != nil {
		return "", inContent(what, err)
	}
	if err := mls.VerifyWithLabel(t.CipherSuite(), leaf.SignatureKey, LabelAdmission, a.content(), a.Sig); err != nil {
		return "", &Refusal{Rule: RuleAddWithoutAdmission, What: what, Err: err, Remedy: "a member has to admit them again"}
	}
	if !policy.MayAdmit(by.User) {
		return "", refuse(RuleAddWithoutAdmission, what, "%s may not admit users under the group's policy", by.User).with("ask an admin: %s", userList(policy.Admins))
	}
	if removedSince != nil && removedSince(a.User, federation.Ref(a.Ref)) {
		return "", refuse(RuleAddWithoutAdmission, what, "was made before the user was removed").with("a member has to admit them again").opinion()
	}
	return by.User, nil
}

// CheckAdmittedKey compares the master key that an admission names with the
// one the homeserver shows for the user.
func (a *Admission) CheckAdmittedKey(cross *CrossSigning) error {
	if a.MasterKey == "" || cross != nil && EncodeBase64(cross.Master) == a.MasterKey {
		return nil
	}
	return refuse(RuleIdentityChanged, "admission of "+string(a.User), "names another master key than the user's homeserver shows").
		with("ask %s whether they reset their keys, and admit them again", a.User)
}
