package rooms

import (
	"slices"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// era checks who opens an era.
func (c *checker) era() error {
	aad := c.out.AAD
	if aad.Era == 0 {
		return nil
	}
	if c.out.Commit.Policy == nil {
		// An era names its list, even an unchanged one: federation wants it said.
		f := c.out.Policy.Federation()
		c.out.Commit.Policy = &f
	}
	era := &federation.Era{Number: aad.Era, ByHeirs: aad.ByHeirs, Signers: []string{string(c.out.Author.User)}}
	if !aad.ByHeirs {
		if !c.old.IsAdmin(c.out.Author.User) {
			return refuse(RuleEraNotEntitled, "", "%s is no admin of the group", c.out.Author.User).with("ask an admin: %s", userList(c.old.Admins))
		}
		c.out.Commit.Era = era
		return nil
	}
	if c.external || !c.old.IsHeir(c.out.Author.User) {
		return refuse(RuleEraNotEntitled, "", "%s is no heir of the group", c.out.Author.User)
	}
	content := EraContent(c.in.Tree.GroupID(), aad.Era, c.in.Parent, c.out.Policy.Sequencers)
	for _, s := range c.in.Content.CoSignatures {
		leaf, ok := c.in.Tree.Leaf(mls.LeafIndex(s.Leaf))
		if !ok {
			return refuse(RuleEraNotEntitled, "", "co-signed by leaf %d, which does not exist", s.Leaf)
		}
		cred, err := CredentialOf(leaf)
		if err != nil {
			return err
		}
		if err := mls.VerifyWithLabel(c.in.Tree.CipherSuite(), leaf.SignatureKey, LabelCoSignature, content, s.Sig); err != nil {
			return &Refusal{Rule: RuleEraNotEntitled, What: "co-signature of " + cred.String(), Err: err}
		}
		if c.old.IsHeir(cred.User) && !slices.Contains(era.Signers, string(cred.User)) {
			era.Signers = append(era.Signers, string(cred.User))
		}
	}
	c.out.Commit.Era = era
	return nil
}

// EraContent returns what an heir signs to support an era: group, number,
// parent and the new list.
func EraContent(group []byte, number uint64, parent federation.Ref, list []federation.Sequencer) []byte {
	b := []byte{aadVersion}
	b = appendVec(b, group)
	b = appendUint64(b, number)
	b = append(b, parent[:]...)
	return appendList(b, list)
}

// SignEra supports an era of heirs with a leaf of the parent's tree.
func SignEra(t Tree, leaf mls.LeafIndex, key mls.SignaturePrivateKey, number uint64, parent federation.Ref, list []federation.Sequencer) (CoSignature, error) {
	sig, err := mls.SignWithLabel(t.CipherSuite(), key, LabelCoSignature, EraContent(t.GroupID(), number, parent, list))
	return CoSignature{Leaf: uint32(leaf), Sig: sig}, err
}
