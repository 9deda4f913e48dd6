package rooms

import (
	"bytes"
	"fmt"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// Staged is a commit that package mls has checked. *mls.StagedCommit and
// *mls.PublicStagedCommit have these methods.
type Staged interface {
	Sender() mls.Sender
	Committer() mls.LeafIndex
	Epoch() uint64
	AuthenticatedData() []byte
	Proposals() []mls.CommittedProposal
	Added() []mls.LeafIndex
	Removed() []mls.RemovedLeaf
	ReInit() *mls.ReInit
}

// View is what a client knows of the room beside the group. Each function may
// be nil: a module leaves them all out, and members then follow the commit all
// the same. None of them changes which commit is the head.
type View struct {
	// Gone tells whether a user has left the room or is banned.
	Gone func(user id.UserID) bool
	// MayRemove tells whether the view has a reason for a Remove of a leaf by a
	// member: the user is gone, the device is logged out or fails its check, the
	// author may kick the user.
	MayRemove func(author id.UserID, leaf GroupLeaf) bool
	// MeetsJoinRule tells whether a user has joined the room under a join rule
	// that needs no invite.
	MeetsJoinRule func(user id.UserID) bool
	// RemovedSince tells whether a commit above the given one removed a user.
	RemovedSince func(user id.UserID, since federation.Ref) bool
}

// CommitInput is a commit with all that is needed to hold it against the
// group's policy.
type CommitInput struct {
	Room    id.RoomID      // in which the event came
	Sender  id.UserID      // of the event
	Event   id.EventID     // of the event
	Content *CommitContent // of the event; CoSignatures and Admissions are used
	Ref     federation.Ref // [CommitRef]
	Tree    Tree           // the parent's epoch
	Parent  federation.Ref // the parent's ref
	Staged  Staged         // what package mls made of the message
	Next    Tree           // the epoch it makes; taken from Staged if nil
	View    View           // what else is known
}

// NextOf returns the epoch that a commit makes, nil if the commit removes us. It
// keeps the nil of a *mls.Group from becoming a Tree.
func NextOf(s *mls.StagedCommit) Tree {
	if g := s.Merge(); g != nil {
		return g
	}
	return nil
}

// committerLeaf returns the committer's leaf in the next epoch, nil if that
// epoch is not ours to see.
func (c *checker) committerLeaf() *mls.LeafNode {
	if c.in.Next == nil {
		return nil
	}
	leaf, _ := c.in.Next.Leaf(c.in.Staged.Committer())
	return leaf
}

// CheckedCommit is a commit that keeps to the group's policy.
type CheckedCommit struct {
	Commit   *federation.Commit // for the federation machine
	AAD      *CommitAAD
	Author   Credential
	Policy   *Policy // from this commit on
	Added    []GroupLeaf
	Removed  []GroupLeaf
	Admitted map[id.UserID]id.UserID // new users, and who admitted them; "" where the policy needs nobody
	Rejoin   bool                    // an external commit of a device that was a member
}

// CheckCommit holds a commit, which package mls has checked, against the policy
// of the group it was made in, and returns what package federation needs to
// know of it. The error is a [Refusal].
//
// A refusal by what the group has agreed on is everybody's, and the commit is no
// event. A refusal by the own view ([IsOpinion]) is one member's: the result is
// returned beside it and goes to the federation machine all the same, so that
// disagreement never changes the fork choice. That member sends a reject and
// does not apply the commit; if others vouch for it, it rejoins.
func CheckCommit(in CommitInput) (*CheckedCommit, error) {
	c := &checker{in: in, out: &CheckedCommit{Admitted: make(map[id.UserID]id.UserID)}}
	if in.Next == nil {
		switch s := in.Staged.(type) {
		case *mls.StagedCommit:
			c.in.Next = NextOf(s)
		case *mls.PublicStagedCommit:
			c.in.Next = s.Merge()
		}
	}
	var opinion error
	for _, step := range []func() error{c.binding, c.author, c.changes, c.policy, c.era, c.admissions, c.removes} {
		err := step()
		switch {
		case err == nil:
		case !IsOpinion(err):
			return nil, inCommit(in.Ref, err)
		case opinion == nil:
			opinion = inCommit(in.Ref, err)
		}
	}
	return c.out, opinion
}

func inCommit(ref federation.Ref, err error) error {
	return inContent("commit "+ref.Short(), err)
}

type checker struct {
	in       CommitInput
	out      *CheckedCommit
	old      *Policy
	external bool
	users    map[id.UserID]bool // with a leaf in the parent's tree, once needed
}

// binding checks that the commit belongs to this room and stands on its parent.
func (c *checker) binding() error {
	old, err := PolicyOf(c.in.Tree)
	if err != nil {
		return err
	}
	c.old = old
	if old.Room != c.in.Room {
		return refuse(RuleRoomNotGroup, "", "the group belongs to room %s, the event came in %s", old.Room, c.in.Room)
	}
	aad, err := DecodeCommitAAD(c.in.Staged.AuthenticatedData())
	if err != nil {
		return err
	}
	switch {
	case aad.Parent != c.in.Parent:
		return refuse(RuleParentMismatch, "", "its author signed parent %s, it is checked on %s", aad.Parent.Short(), c.in.Parent.Short())
	case federation.Ref(c.in.Content.Parent) != aad.Parent:
		return refuse(RuleParentMismatch, "", "the event names parent %s, its author signed %s", federation.Ref(c.in.Content.Parent).Short(), aad.Parent.Short())
	case c.in.Content.Epoch != c.in.Staged.Epoch():
		return refuse(RuleParentMismatch, "", "the event names epoch %d, the commit makes %d", c.in.Content.Epoch, c.in.Staged.Epoch())
	}
	c.out.AAD = aad
	return nil
}

// author checks that the event was sent by the user whose device committed.
func (c *checker) author() error {
	st := c.in.Staged
	c.external = st.Sender().Type == mls.SenderTypeNewMemberCommit
	var leaf *mls.LeafNode
	if c.external {
		leaf = c.committerLeaf()
	} else {
		leaf, _ = c.in.Tree.Leaf(st.Committer())
	}
	if leaf == nil {
		return refuse(RuleSenderNotCredential, "", "its author has no leaf")
	}
	cred, err := CredentialOf(leaf)
	if err != nil {
		return err
	}
	if cred.User != c.in.Sender {
		return refuse(RuleSenderNotCredential, "", "sent by %s, committed by a device of %s", c.in.Sender, cred.User)
	}
	c.out.Author = *cred
	c.out.Commit = &federation.Commit{
		Ref: c.in.Ref, Parent: c.in.Parent, EventID: string(c.in.Event), ParentEvent: string(c.in.Content.ParentEvent),
		Epoch: st.Epoch(), Author: uint32(st.Committer()), AuthorUser: string(cred.User), External: c.external,
	}
	return nil
}

// changes collects what the commit does to the leaves.
func (c *checker) changes() error {
	st, fc := c.in.Staged, c.out.Commit
	for _, r := range st.Removed() {
		fc.Removed = append(fc.Removed, uint32(r.Index))
		l := GroupLeaf{Index: r.Index}
		if cred, err := ParseCredential(&r.Leaf.Credential); err == nil {
			l.Cred = *cred
		}
		c.out.Removed = append(c.out.Removed, l)
		if c.external && l.Cred.User == c.out.Author.User && l.Cred.Device == c.out.Author.Device {
			c.out.Rejoin = true
		}
	}
	add := func(i mls.LeafIndex, leaf *mls.LeafNode) error {
		cred, err := CredentialOf(leaf)
		if err != nil {
			return err
		}
		fc.Added = append(fc.Added, federationLeaf(i, cred))
		c.out.Added = append(c.out.Added, GroupLeaf{Index: i, Cred: *cred})
		return nil
	}
	added, n := st.Added(), 0
	for _, p := range st.Proposals() {
		switch p.Proposal.Type {
		case mls.ProposalTypeAdd:
			if n >= len(added) {
				return fmt.Errorf("rooms: internal: %d leaves for more Adds", len(added))
			}
			if err := add(added[n], p.Proposal.Add.LeafNode); err != nil {
				return err
			}
			n++
		case mls.ProposalTypeUpdate:
			// Ours commit instead, but RFC 9420 lets members propose Updates.
			if err := c.update(p.Sender.LeafIndex, p.Proposal.Update); err != nil {
				return err
			}
		}
		if p.Sender.Type == mls.SenderTypeExternal && p.Proposal.Type != mls.ProposalTypeRemove {
			return refuse(RuleExternalProposalNotEntitled, "", "holds a proposal of type %d by a module, which may only propose Removes", p.Proposal.Type)
		}
		if p.Sender.Type == mls.SenderTypeNewMemberProposal {
			return refuse(RuleExternalProposalNotEntitled, "", "holds a proposal by someone who is not a member")
		}
	}
	if c.external {
		return add(st.Committer(), c.committerLeaf())
	}
	if leaf := c.committerLeaf(); leaf != nil {
		return c.update(st.Committer(), leaf)
	}
	return nil
}

// update notes that a member's leaf has another signature key.
func (c *checker) update(i mls.LeafIndex, leaf *mls.LeafNode) error {
	old, ok := c.in.Tree.Leaf(i)
	if ok && bytes.Equal(old.SignatureKey, leaf.SignatureKey) {
		return nil
	}
	cred, err := CredentialOf(leaf)
	if err == nil {
		c.out.Commit.Updated = append(c.out.Commit.Updated, federationLeaf(i, cred))
	}
	return err
}

// policy checks a change of the group's extensions.
func (c *checker) policy() error {
	c.out.Policy = c.old
	st, author := c.in.Staged, c.out.Author.User
	if r := st.ReInit(); r != nil {
		if err := c.checkReInit(r, author); err != nil {
			return err
		}
	}
	var gce *mls.Proposal
	for _, p := range st.Proposals() {
		if p.Proposal.Type == mls.ProposalTypeGroupContextExtensions {
			if p.Sender.Type != mls.SenderTypeMember && !(c.external && !p.ByRef) {
				return refuse(RuleExternalProposalNotEntitled, "", "a module changes the group's extensions")
			}
			if p.ByRef && p.Sender.LeafIndex != st.Committer() {
				// The committer answers for it, so it has to be entitled too.
				if leaf, ok := c.in.Tree.Leaf(p.Sender.LeafIndex); !ok || !adminLeaf(c.old, leaf) {
					return refuse(RulePolicyNotEntitled, "", "a change of policy was proposed by someone who is no admin")
				}
			}
			gce = &p.Proposal
		}
	}
	if gce == nil {
		return nil
	}
	next, err := policyIn(gce.Extensions)
	if err != nil {
		return err
	}
	if c.out.AAD.ByHeirs {
		err = CheckHeirsChange(c.old, next)
	} else {
		err = CheckChange(c.old, next, author)
	}
	if err != nil {
		return err
	}
	others := func(exts []mls.Extension) []mls.Extension {
		return slices.DeleteFunc(slices.Clone(exts), func(e mls.Extension) bool { return e.Type == ExtensionPolicy })
	}
	if !sameExtensions(others(gce.Extensions), c.in.Tree) && !c.old.IsAdmin(author) && !c.out.AAD.ByHeirs {
		return refuse(RulePolicyNotEntitled, "", "%s is no admin and may not change the group's extensions", author)
	}
	if err := checkRequired(gce.Extensions); err != nil {
		return err
	}
	a, err := c.old.Encode()
	if err != nil {
		return err
	}
	b, err := next.Encode()
	if err != nil {
		return err
	}
	if !bytes.Equal(a, b) {
		f := next.Federation()
		c.out.Commit.Policy, c.out.Policy = &f, next
	}
	return nil
}

func adminLeaf(p *Policy, leaf *mls.LeafNode) bool {
	cred, err := ParseCredential(&leaf.Credential)
	return err == nil && p.IsAdmin(cred.User)
}

func policyIn(exts []mls.Extension) (*Policy, error) {
	for _, e := range exts {
		if e.Type == ExtensionPolicy {
			return DecodePolicy(e.Data)
		}
	}
	return nil, refuse(RulePolicyMalformed, "", "takes the group's policy away")
}

// checkRequired checks that every future leaf has to support the policy.
func checkRequired(exts []mls.Extension) error {
	for _, e := range exts {
		if e.Type == mls.ExtensionTypeRequiredCapabilities {
			r, err := mls.ParseRequiredCapabilities(e.Data)
			if err == nil && slices.Contains(r.Extensions, ExtensionPolicy) {
				return nil
			}
		}
	}
	return refuse(RulePolicyMalformed, "", "frees leaves from the duty to support the policy")
}

// sameExtensions tells whether the tree's group has exactly these extensions
// beside the policy.
func sameExtensions(exts []mls.Extension, t Tree) bool {
	for _, e := range exts {
		if data, ok := t.Extension(e.Type); !ok || !bytes.Equal(data, e.Data) {
			return false
		}
	}
	for _, known := range []mls.ExtensionType{mls.ExtensionTypeExternalSenders, mls.ExtensionTypeRequiredCapabilities} {
		_, had := t.Extension(known)
		has := slices.ContainsFunc(exts, func(e mls.Extension) bool { return e.Type == known })
		if had != has {
			return false
		}
	}
	return true
}

// member tells whether a user has a leaf in the parent's tree.
func (c *checker) member(user id.UserID) bool {
	const few = 8 // look-ups that cost less than reading all credentials
	if c.users == nil && len(c.out.Added) <= few {
		return hasUser(c.in.Tree, user)
	}
	if c.users == nil {
		c.users = usersOf(c.in.Tree)
	}
	return c.users[user]
}

// admissions checks that every new user was admitted.
func (c *checker) admissions() error {
	var opinion error
	for _, l := range c.out.Added {
		user := l.Cred.User
		if _, done := c.out.Admitted[user]; done || c.member(user) {
			continue
		}
		if c.old.Join == JoinOpen || c.old.Join == JoinByRule && (c.in.View.MeetsJoinRule == nil || c.in.View.MeetsJoinRule(user)) {
			c.out.Admitted[user] = ""
			continue
		}
		var last error
		for _, list := range [][]Admission{c.out.AAD.Admissions, c.in.Content.Admissions} {
			for i := range list {
				if list[i].User != user {
					continue
				}
				by, err := VerifyAdmission(c.in.Tree, c.old, &list[i], c.in.View.RemovedSince)
				if err == nil {
					c.out.Admitted[user], last = by, nil
					break
				}
				if !IsOpinion(last) { // an admission that others take outweighs one that nobody takes
					last = err
				}
			}
			if _, done := c.out.Admitted[user]; done {
				break
			}
		}
		if _, done := c.out.Admitted[user]; done {
			continue
		}
		if last == nil {
			r := refuse(RuleAddWithoutAdmission, "", "adds %s, whom no member has admitted", user).with("a member who may invite has to admit them")
			if c.old.Join == JoinByRule { // the join rule is room state: others may see it otherwise
				r = r.opinion()
			}
			last = r
		}
		if !IsOpinion(last) {
			return last
		}
		opinion = last
	}
	return opinion
}

// removes checks Removes against the own view, where there is one.
func (c *checker) removes() error {
	removers := make(map[mls.LeafIndex]mls.Sender)
	var opinion error
	onlyGone := len(c.out.Removed) > 0 && c.in.View.Gone != nil && !c.external
	for _, p := range c.in.Staged.Proposals() {
		if p.Proposal.Type != mls.ProposalTypeRemove {
			onlyGone = false
			continue
		}
		removers[p.Proposal.Remove] = p.Sender
	}
	for _, l := range c.out.Removed {
		gone := c.in.View.Gone != nil && c.in.View.Gone(l.Cred.User)
		onlyGone = onlyGone && gone
		if gone || l.Cred.User == c.out.Author.User || l.Cred.User == "" || c.in.View.MayRemove == nil {
			continue
		}
		author := c.out.Author.User
		if s, ok := removers[l.Index]; ok && s.Type == mls.SenderTypeExternal {
			if !c.in.View.MayRemove("", l) {
				opinion = refuse(RuleExternalProposalNotEntitled, "", "a module removes %s, for which this device sees no reason in the room", l.Cred).opinion()
			}
			continue
		}
		if !c.old.IsAdmin(author) && !c.in.View.MayRemove(author, l) {
			opinion = refuse(RuleRemoveNotEntitled, "", "%s removes %s, for which this device sees no reason in the room", author, l.Cred).opinion()
		}
	}
	c.out.Commit.OnlyRemoves = onlyGone && len(removers) > 0
	return opinion
}

// CheckExternalProposal tells whether a member may take up a proposal that a
// module sent: a Remove, for a reason that the member sees in the room itself.
// justified is the member's own view.
func CheckExternalProposal(p mls.Proposal, sender mls.Sender, justified func(leaf mls.LeafIndex) bool) error {
	switch {
	case sender.Type != mls.SenderTypeExternal:
		return refuse(RuleExternalProposalNotEntitled, "proposal", "is not by a module of the group")
	case p.Type != mls.ProposalTypeRemove:
		return refuse(RuleExternalProposalNotEntitled, "proposal", "a module may only propose Removes, not type %d", p.Type)
	case justified != nil && !justified(p.Remove):
		return refuse(RuleExternalProposalNotEntitled, "proposal", "this device sees no reason in the room to remove leaf %d", p.Remove)
	}
	return nil
}
