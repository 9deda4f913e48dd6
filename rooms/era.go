package rooms

import (
	"slices"

	"maunium.net/go/mautrix/id"

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
		cred, err := coSigner(c.in.Tree, s, content)
		if err != nil {
			return err
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

// coSigner checks a co-signature and returns whose it is.
func coSigner(t Tree, s CoSignature, content []byte) (*Credential, error) {
	leaf, ok := t.Leaf(mls.LeafIndex(s.Leaf))
	if !ok {
		return nil, refuse(RuleEraNotEntitled, "", "co-signed by leaf %d, which does not exist", s.Leaf)
	}
	cred, err := CredentialOf(leaf)
	if err != nil {
		return nil, err
	}
	if err := mls.VerifyWithLabel(t.CipherSuite(), leaf.SignatureKey, LabelCoSignature, content, s.Sig); err != nil {
		return nil, &Refusal{Rule: RuleEraNotEntitled, What: "co-signature of " + cred.String(), Err: err}
	}
	return cred, nil
}

// SupportEra makes the statement by which an heir, with a leaf of the parent's
// tree, supports an era of heirs.
func SupportEra(t Tree, leaf mls.LeafIndex, key mls.SignaturePrivateKey, number uint64, parent federation.Ref, list []federation.Sequencer) (*EraSupport, error) {
	s, err := SignEra(t, leaf, key, number, parent, list)
	if err != nil {
		return nil, err
	}
	e := &EraSupport{Era: number, Parent: Hash(parent), Leaf: s.Leaf, Sig: s.Sig}
	for _, q := range list {
		e.Sequencers = append(e.Sequencers, EraListItem{Server: q.Server, User: id.UserID(q.User), Key: q.ReceiptKey})
	}
	return e, nil
}

// List returns the list of the era.
func (e *EraSupport) List() []federation.Sequencer {
	var out []federation.Sequencer
	for _, s := range e.Sequencers {
		out = append(out, federation.Sequencer{Server: s.Server, User: string(s.User), ReceiptKey: s.Key})
	}
	return out
}

// CoSignature returns what goes into the era's commit.
func (e *EraSupport) CoSignature() CoSignature { return CoSignature{Leaf: e.Leaf, Sig: e.Sig} }

// Verify checks the statement against the parent's epoch and returns the heir
// who made it. Whether the user is an heir is the group policy's to say.
func (e *EraSupport) Verify(t Tree) (*Credential, error) {
	return coSigner(t, e.CoSignature(), EraContent(t.GroupID(), e.Era, federation.Ref(e.Parent), e.List()))
}
