package rooms

import (
	"bytes"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// GroupIDSize is the length of a group id: random bytes, bound to the room by
// the policy.
const GroupIDSize = 32

// LeafCapabilities returns what every leaf of this project supports: all suites
// of the build, basic credentials, and the policy extension.
func LeafCapabilities() mls.Capabilities {
	c := mls.DefaultCapabilities()
	if !slices.Contains(c.Extensions, ExtensionPolicy) {
		c.Extensions = append(c.Extensions, ExtensionPolicy)
	}
	return c
}

// LeafOptions returns the options of a device's leaf.
func LeafOptions(cred Credential) mls.LeafOptions {
	c := LeafCapabilities()
	return mls.LeafOptions{Credential: cred.MLS(), Capabilities: &c}
}

// GroupExtensions returns the extensions of the GroupContext: the policy, the
// modules' keys as external senders, and the duty of every leaf to support the
// policy.
func GroupExtensions(p *Policy, senders []mls.ExternalSender) ([]mls.Extension, error) {
	data, err := p.Encode()
	if err != nil {
		return nil, err
	}
	required := mls.RequiredCapabilities{
		Extensions:  []mls.ExtensionType{ExtensionPolicy},
		Credentials: []mls.CredentialType{mls.CredentialTypeBasic},
	}
	out := []mls.Extension{required.Extension(), {Type: ExtensionPolicy, Data: data}}
	if len(senders) > 0 {
		out = append(out, mls.ExternalSendersExtension(senders))
	}
	return out, nil
}

// ModuleSender returns a module's entry in the external senders of a group,
// from what its bot's [TypeHead] says: the key of the suite's scheme.
func ModuleSender(bot id.UserID, head *HeadContent, cs mls.CipherSuite) (mls.ExternalSender, error) {
	for _, s := range head.ExternalSenders {
		if s.Scheme == uint16(cs.SignatureScheme()) {
			return mls.ExternalSender{SignatureKey: mls.SignaturePublicKey(s.Key), Credential: mls.BasicCredential([]byte(bot))}, nil
		}
	}
	return mls.ExternalSender{}, refuse(RuleNoCommonSuite, "module "+string(bot), "has no key for proposals in groups with %v", cs).
		with("its admin has to run setup again")
}

// ExternalSendersOf returns the external senders of a group.
func ExternalSendersOf(t Tree) ([]mls.ExternalSender, error) {
	data, ok := t.Extension(mls.ExtensionTypeExternalSenders)
	if !ok {
		return nil, nil
	}
	return mls.ParseExternalSenders(data)
}

// GroupLeaves returns the leaves of an epoch with their credentials. A leaf
// whose credential does not parse has an empty one; [MakePlan] removes it.
func GroupLeaves(t Tree) []GroupLeaf {
	var out []GroupLeaf
	for i, leaf := range t.Members() {
		l := GroupLeaf{Index: i}
		if c, err := CredentialOf(leaf); err == nil {
			l.Cred = *c
		}
		out = append(out, l)
	}
	return out
}

// LeavesOf returns the leaves of a user's devices.
func LeavesOf(t Tree, user id.UserID) []GroupLeaf {
	var out []GroupLeaf
	prefix := appendVarVec(nil, []byte(user))
	for i, leaf := range t.Members() {
		if !bytes.HasPrefix(leaf.Credential.Identity, prefix) { // the user id comes first, with its length
			continue
		}
		if c, err := CredentialOf(leaf); err == nil && c.User == user {
			out = append(out, GroupLeaf{Index: i, Cred: *c})
		}
	}
	return out
}

// usersOf returns the users with a leaf.
func usersOf(t Tree) map[id.UserID]bool {
	users := make(map[id.UserID]bool)
	for _, leaf := range t.Members() {
		if c, err := ParseCredential(&leaf.Credential); err == nil {
			users[c.User] = true
		}
	}
	return users
}

// hasUser tells whether a user has a leaf, without reading the credentials in
// full: the user id comes first, with its length.
func hasUser(t Tree, user id.UserID) bool {
	prefix := appendVarVec(nil, []byte(user))
	for _, leaf := range t.Members() {
		if leaf.Credential.Type == mls.CredentialTypeBasic && bytes.HasPrefix(leaf.Credential.Identity, prefix) {
			return true
		}
	}
	return false
}

// BaseFacts returns where a federation machine starts: at the epoch of t, which
// the commit ref made. At the root era is 0 and config is zero; a newcomer that
// joined later passes the number of the era and the ref of the commit that set
// the list.
func BaseFacts(t Tree, ref federation.Ref, event id.EventID, era uint64, config federation.Ref) (federation.Base, error) {
	p, err := PolicyOf(t)
	if err != nil {
		return federation.Base{}, err
	}
	b := federation.Base{
		Ref: ref, EventID: string(event), Epoch: t.Epoch(), Era: era, Config: config,
		GroupID: bytes.Clone(t.GroupID()), Suite: uint16(t.CipherSuite()), Policy: p.Federation(),
	}
	b.Leaves, err = leafTable(t)
	return b, err
}

func leafTable(t Tree) ([]federation.Leaf, error) {
	var out []federation.Leaf
	for i, leaf := range t.Members() {
		c, err := CredentialOf(leaf)
		if err != nil {
			return nil, err
		}
		out = append(out, federationLeaf(i, c))
	}
	return out, nil
}

func federationLeaf(i mls.LeafIndex, c *Credential) federation.Leaf {
	return federation.Leaf{Index: uint32(i), User: string(c.User), Key: bytes.Clone(c.Key)}
}
