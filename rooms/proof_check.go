package rooms

import (
	"bytes"
	"crypto/ed25519"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// Proven is what a proof chain shows. Whoever relies on it still has to find
// Attested in the users' own devices.
type Proven struct {
	Root    federation.Ref
	Creator id.UserID
	// Attested are the devices that the chain rests on beside the sequencers:
	// the one that founded the group, and those that opened an era. Each has to be
	// a cross-signed device of its user, and Creator the room's.
	Attested []Attested
	Policy   *Policy // of the newest step that changes it
	// Groups are the ids of the room's groups, first the root's: another follows
	// after each ReInit. The last is that of Accepted.
	Groups   [][]byte
	Config   federation.Ref // the commit that set the list
	Era      uint64
	Final    federation.Ref // the newest final commit that is shown
	Epoch    uint64         // that it makes
	Accepted federation.Ref // the commit at the end of the path
	// Chain are the commits that are shown on the way to Accepted: the root, the
	// steps and the path. What lies between two steps is not shown.
	Chain []ProvenCommit
	Lists map[federation.Ref]ProvenList // that were in force, by the commit that set them
}

// ProvenCommit is a commit that a proof chain leads through.
type ProvenCommit struct {
	Ref    federation.Ref
	Group  []byte
	Epoch  uint64         // that it makes
	Config federation.Ref // the commit that set the list governing what follows
	Era    uint64
}

// ProvenList is a list of sequencers that was in force.
type ProvenList struct {
	List federation.List
	Era  uint64 // in which it was set
}

// Attested is a device by its signature key.
type Attested struct {
	User  id.UserID
	Suite mls.CipherSuite
	Key   []byte
}

// proofCommit is what the message of a commit says.
type proofCommit struct {
	ref, parent federation.Ref
	epoch       uint64
	group       []byte
	aad         *CommitAAD
	policy      *Policy // nil: no change
	msg         *mls.Message
}

// parseProofCommit reads a commit of a chain. Its ref is over all that it says.
func parseProofCommit(raw []byte) (*proofCommit, error) {
	m, err := mls.ParseMessage(raw)
	if err != nil {
		return nil, &Refusal{Rule: RuleContentMalformed, What: "proof: commit", Err: err}
	}
	c := &proofCommit{msg: m, group: m.GroupID(), aad: &CommitAAD{}}
	if gi := m.GroupInfo(); gi != nil { // founds the group's successor
		if c.ref, err = RootRef(m); err != nil {
			return nil, err
		}
		for _, e := range gi.Extensions() {
			if e.Type == ExtensionFounding {
				aad, err := DecodeMessageAAD(e.Data)
				if err != nil {
					return nil, err
				}
				c.parent = aad.Head
			}
		}
		if c.parent.IsZero() {
			return nil, refuse(RuleParentMismatch, "proof: commit", "a founding commit without parent")
		}
		c.epoch = gi.Epoch()
		c.policy, err = policyIn(gi.GroupExtensions())
		return c, err
	}
	if c.ref, err = CommitRef(m); err != nil {
		return nil, err
	}
	if c.aad, err = DecodeCommitAAD(m.AuthenticatedData()); err != nil {
		return nil, err
	}
	c.parent, c.epoch = c.aad.Parent, m.Epoch()+1
	if exts, ok := m.CommitExtensions(); ok {
		c.policy, err = policyIn(exts)
	}
	return c, err
}

// proofChecker goes through a chain.
type proofChecker struct {
	scope  federation.Scope
	out    *Proven
	list   federation.List
	last   federation.Ref // the step before
	policy *Policy
	group  []byte // id of the group: another after a ReInit
}

// Check goes through the chain from the group's beginning: each step is final by
// the list that was in force at it, or opens an era as the policy then allowed;
// the last is the final commit, and the path leads from it to accepted. The
// error is [RuleFinalNotProven] if the chain holds no wrong thing but does not
// reach as far.
func (p *ProofChain) Check(room id.RoomID, accepted federation.Ref) (*Proven, error) {
	c := &proofChecker{scope: federation.Scope{Room: string(room)}, out: &Proven{}}
	if err := c.root(p.Root, room); err != nil {
		return nil, inContent("proof: root", err)
	}
	for i := range p.Steps {
		if err := c.step(&p.Steps[i], i == len(p.Steps)-1); err != nil {
			return nil, inContent("proof", err)
		}
	}
	c.out.Policy = c.policy
	if err := c.path(p, accepted); err != nil {
		return nil, inContent("proof: path", err)
	}
	return c.out, nil
}

// root checks the beginning: a group that its only member founded for this room.
func (c *proofChecker) root(raw []byte, room id.RoomID) error {
	m, err := mls.ParseMessage(raw)
	if err != nil || m.GroupInfo() == nil {
		return malformed("", "is no GroupInfo")
	}
	group, err := mls.NewPublicGroup(&mls.Config{Authenticator: Authenticator{}, ExperimentalSuites: true}, m, nil)
	if err != nil {
		return &Refusal{Rule: RuleContentMalformed, Err: err}
	}
	if c.policy, err = PolicyOf(group); err != nil {
		return err
	}
	leaf, ok := group.Leaf(m.GroupInfo().Signer())
	if !ok || group.MemberCount() != 1 || group.Epoch() != 0 {
		return refuse(RuleRoomNotGroup, "", "is no beginning: epoch %d with %d leaves", group.Epoch(), group.MemberCount())
	}
	founder, err := CredentialOf(leaf)
	if err != nil {
		return err
	}
	switch {
	case c.policy.Room != room:
		return refuse(RuleRoomNotGroup, "", "the group belongs to room %s", c.policy.Room)
	case founder.User != c.policy.Creator:
		return refuse(RuleSenderNotCredential, "", "founded by a device of %s, its policy names %s", founder.User, c.policy.Creator)
	}
	ref, err := RootRef(m)
	if err != nil {
		return err
	}
	c.out.Root, c.out.Creator, c.out.Config, c.out.Final, c.last = ref, c.policy.Creator, ref, ref, ref
	c.out.Attested = []Attested{{founder.User, group.CipherSuite(), founder.Key}}
	c.list, c.group = c.policy.Sequencers, group.GroupID()
	c.out.Groups = [][]byte{c.group}
	c.note(ref, 0)
	return nil
}

// step checks one commit.
func (c *proofChecker) step(s *ProofStep, last bool) error {
	commit, err := parseProofCommit(s.Commit.Message)
	if err != nil {
		return err
	}
	founds := commit.msg.GroupInfo() != nil
	switch {
	case !founds && !bytes.Equal(commit.group, c.group):
		return refuse(RuleRoomNotGroup, "", "step %s is of another group", commit.ref.Short())
	case !founds && commit.epoch <= c.out.Epoch:
		return refuse(RuleParentMismatch, "", "epoch %d comes after epoch %d", commit.epoch, c.out.Epoch)
	case commit.policy == nil && commit.aad.Era == 0 && !last:
		return malformed("", "step %s changes nothing", commit.ref.Short())
	case commit.policy != nil && commit.policy.Room != c.policy.Room:
		return refuse(RuleRoomNotGroup, "", "its policy names room %s", commit.policy.Room)
	case commit.policy != nil && commit.policy.Creator != c.policy.Creator:
		return refuse(RulePolicyNotEntitled, "", "its policy names another creator")
	}
	if commit.aad.Era > 0 {
		err = c.era(s, commit)
	} else {
		err = c.voted(s, commit)
	}
	if err != nil {
		return err
	}
	if commit.policy != nil {
		if commit.aad.Era > 0 || !c.list.Equal(commit.policy.Sequencers) {
			c.list, c.out.Config = commit.policy.Sequencers, commit.ref
		}
		c.policy = commit.policy
	}
	c.enter(commit)
	c.out.Final, c.out.Epoch, c.last = commit.ref, commit.epoch, commit.ref
	c.note(commit.ref, commit.epoch)
	return nil
}

// note remembers a commit of the chain, and the list in force above it.
func (c *proofChecker) note(ref federation.Ref, epoch uint64) {
	if c.out.Lists == nil {
		c.out.Lists = make(map[federation.Ref]ProvenList)
	}
	c.out.Lists[c.out.Config] = ProvenList{c.list, c.out.Era}
	c.out.Chain = append(c.out.Chain, ProvenCommit{ref, c.group, epoch, c.out.Config, c.out.Era})
}

// enter notes the group that a commit is of: another one if it founds it.
func (c *proofChecker) enter(commit *proofCommit) {
	if !bytes.Equal(c.group, commit.group) {
		c.out.Groups = append(c.out.Groups, commit.group)
	}
	c.group = commit.group
}

// voted checks that a majority of the list voted for a commit, in one ballot,
// and that members vouched for it.
func (c *proofChecker) voted(s *ProofStep, commit *proofCommit) error {
	if len(s.CoSignatures) > 0 {
		return malformed("cosignatures", "stand in an era of heirs only")
	}
	chain, err := chainAbove(s, commit)
	if err != nil {
		return err
	}
	voted := make(map[uint32]bool)
	for _, v := range s.Votes {
		switch {
		case v.Config != c.out.Config:
			return refuse(RuleReceiptForged, "vote", "under list %s, in force is %s", v.Config.Short(), c.out.Config.Short())
		case v.Ballot != s.Votes[0].Ballot || v.Ballot.Round == 0 && v.Ballot.Rank != 0:
			return refuse(RuleReceiptForged, "vote", "in another ballot")
		case !slices.Contains(chain, v.Ref):
			return refuse(RuleReceiptForged, "vote", "for another commit")
		case int64(v.Voter) >= int64(len(c.list)) || voted[v.Voter]:
			return refuse(RuleReceiptForged, "vote", "by rank %d, which is not in the list or voted already", v.Voter)
		case v.Chain.Counter == 0:
			return malformed("counter", "is missing")
		}
		if err := v.VerifySignature(c.scope, ed25519.PublicKey(c.list[v.Voter].ReceiptKey)); err != nil {
			return &Refusal{Rule: RuleReceiptForged, What: "vote of " + c.list[v.Voter].User, Err: err}
		}
		voted[v.Voter] = true
	}
	if len(voted) < c.list.Quorum() {
		return refuse(RuleFinalNotProven, "", "%d votes for %s, want %d of %d", len(voted), commit.ref.Short(), c.list.Quorum(), len(c.list))
	}
	return c.vouched(s, chain, "")
}

// chainAbove returns the refs of a step's commit and of those above it.
func chainAbove(s *ProofStep, commit *proofCommit) ([]federation.Ref, error) {
	chain := []federation.Ref{commit.ref}
	for i := range s.Above {
		above, err := parseProofCommit(s.Above[i].Message)
		if err != nil {
			return nil, err
		}
		switch {
		case above.parent != chain[len(chain)-1]:
			return nil, refuse(RuleParentMismatch, "", "%s is shown above %s and is not on it", above.ref.Short(), chain[len(chain)-1].Short())
		case above.aad.Era > 0:
			return nil, refuse(RuleParentMismatch, "", "%s opens an era", above.ref.Short())
		}
		chain = append(chain, above.ref)
	}
	return chain, nil
}

// vouched checks the statements that votes rest on, or an era: with the leaf
// keys that the chain names, which modules' signatures over the statements bind.
// Those of except do not count.
func (c *proofChecker) vouched(s *ProofStep, chain []federation.Ref, except id.UserID) error {
	all := slices.Clone(s.Vouchers)
	for _, v := range s.Votes {
		all = append(all, v.Proofs...)
	}
	shown := false
	for _, p := range all {
		if p.Applied == nil {
			for i := range s.Vouching {
				w, err := parseProofCommit(s.Vouching[i].Message)
				if err != nil {
					return err
				}
				if w.ref != p.Commit || !slices.Contains(chain, w.parent) {
					continue // vouches for another commit of the same votes
				}
				key, err := c.signer(s, w, s.Vouching[i].Context, w.ref)
				if err != nil {
					return err
				}
				shown = shown || except == "" || id.UserID(key.Leaf.User) != except
			}
			continue
		}
		key, ok := proofKey(s.Keys, p.Applied.Ref, p.Applied.Leaf)
		if !ok || !slices.Contains(chain, p.Applied.Ref) {
			continue
		}
		scope := federation.Scope{Room: c.scope.Room, Group: key.Group}
		if err := VerifyLeafSignature(key.Suite, key.Leaf.Key, p.Applied.Content(scope), p.Applied.Signature); err != nil {
			return err
		}
		shown = shown || except == "" || id.UserID(key.Leaf.User) != except
	}
	if !shown {
		return refuse(RuleFinalNotProven, "", "nobody is shown who vouched for %s", chain[0].Short())
	}
	return nil
}

func proofKey(keys []federation.ProofKey, ref federation.Ref, leaf uint32) (*federation.ProofKey, bool) {
	for i := range keys {
		if keys[i].Ref == ref && keys[i].Leaf.Index == leaf {
			return &keys[i], true
		}
	}
	return nil, false
}

// signer checks a member's signature over a commit, and returns whose it is: at
// is under which ref its leaf is listed.
func (c *proofChecker) signer(s *ProofStep, commit *proofCommit, context []byte, at federation.Ref) (*federation.ProofKey, error) {
	sender, ok := commit.msg.Sender()
	if !ok || sender.Type != mls.SenderTypeMember {
		return nil, refuse(RuleFinalNotProven, "", "%s is not by a member", commit.ref.Short())
	}
	key, ok := proofKey(s.Keys, at, uint32(sender.LeafIndex))
	if !ok {
		return nil, refuse(RuleFinalNotProven, "", "the leaf that made %s is not shown", commit.ref.Short())
	}
	m, err := mls.ParseMessage(context)
	if err != nil || m.GroupInfo() == nil {
		return nil, malformed("context", "is no GroupInfo")
	}
	if err := commit.msg.VerifySender(m.GroupInfo(), key.Leaf.Key); err != nil {
		return nil, &Refusal{Rule: RuleReceiptForged, What: "commit " + commit.ref.Short(), Err: err}
	}
	return key, nil
}

// era checks who opened an era: an admin, or heirs of more than half of the
// servers that have heirs, by the policy that was proven before.
func (c *proofChecker) era(s *ProofStep, commit *proofCommit) error {
	switch {
	case commit.aad.Era != c.out.Era+1:
		return refuse(RuleEraNotEntitled, "", "era %d after era %d", commit.aad.Era, c.out.Era)
	case len(s.Votes) > 0:
		return malformed("votes", "stand at an era, which has none")
	}
	chain, err := chainAbove(s, commit)
	if err != nil {
		return err
	}
	author, err := c.signer(s, commit, s.Commit.Context, commit.parent)
	if err != nil {
		return err
	}
	user := id.UserID(author.Leaf.User)
	c.attest(author)
	if commit.policy == nil { // it names the same list
		commit.policy = c.policy
	}
	if !commit.aad.ByHeirs {
		if !c.policy.IsAdmin(user) {
			return refuse(RuleFinalNotProven, "", "era %d is by %s, who is not shown to be an admin", commit.aad.Era, user)
		}
		if len(s.CoSignatures) > 0 {
			return malformed("cosignatures", "stand in an era of heirs only")
		}
	} else if err := c.heirs(s, commit, user); err != nil {
		return err
	}
	c.out.Era = commit.aad.Era
	return c.vouched(s, chain, user)
}

func (c *proofChecker) heirs(s *ProofStep, commit *proofCommit, author id.UserID) error {
	if CheckHeirsChange(c.policy, commit.policy) != nil {
		return refuse(RuleFinalNotProven, "", "the policy before era %d is not shown", commit.aad.Era)
	}
	if !c.policy.IsHeir(author) {
		return refuse(RuleFinalNotProven, "", "era %d is by %s, who is not shown to be an heir", commit.aad.Era, author)
	}
	yes := map[string]bool{serverOf(author): true}
	content := EraContent(commit.group, commit.aad.Era, commit.parent, commit.policy.Sequencers)
	for _, sig := range s.CoSignatures {
		key, ok := proofKey(s.Keys, commit.parent, sig.Leaf)
		if !ok {
			continue
		}
		if err := mls.VerifyWithLabel(mls.CipherSuite(key.Suite), key.Leaf.Key, LabelCoSignature, content, sig.Sig); err != nil {
			return &Refusal{Rule: RuleEraNotEntitled, What: "co-signature of " + key.Leaf.User, Err: err}
		}
		if user := id.UserID(key.Leaf.User); c.policy.IsHeir(user) {
			yes[serverOf(user)] = true
			c.attest(key)
		}
	}
	servers := make(map[string]bool)
	for _, h := range c.policy.Heirs {
		servers[h.Server] = true
	}
	if 2*len(yes) <= len(servers) {
		// Fewer suffice where heirs have left the group; nothing here shows that.
		return refuse(RuleFinalNotProven, "", "heirs of %d servers opened era %d, of %d that have heirs", len(yes), commit.aad.Era, len(servers))
	}
	return nil
}

func (c *proofChecker) attest(key *federation.ProofKey) {
	a := Attested{id.UserID(key.Leaf.User), mls.CipherSuite(key.Suite), key.Leaf.Key}
	if !slices.ContainsFunc(c.out.Attested, func(o Attested) bool { return o.User == a.User && o.Suite == a.Suite && bytes.Equal(o.Key, a.Key) }) {
		c.out.Attested = append(c.out.Attested, a)
	}
}

// path checks the commits between the newest final that is shown and the
// accepted one.
func (c *proofChecker) path(p *ProofChain, accepted federation.Ref) error {
	at := c.last
	var tip *proofCommit
	for i := range p.Path {
		commit, err := parseProofCommit(p.Path[i].Message)
		if err != nil {
			return err
		}
		switch {
		case commit.parent != at:
			return refuse(RuleParentMismatch, "", "%s is shown above %s and is not on it", commit.ref.Short(), at.Short())
		case commit.aad.Era > 0 || commit.policy != nil && !c.list.Equal(commit.policy.Sequencers):
			return refuse(RuleFinalNotProven, "", "%s sets a list that is not final", commit.ref.Short())
		case commit.msg.GroupInfo() == nil && !bytes.Equal(commit.group, c.group):
			return refuse(RuleRoomNotGroup, "", "%s is of another group", commit.ref.Short())
		case commit.msg.GroupInfo() != nil && commit.policy.Creator != c.policy.Creator:
			return refuse(RulePolicyNotEntitled, "", "its policy names another creator")
		}
		c.enter(commit)
		c.note(commit.ref, commit.epoch)
		at, tip = commit.ref, commit
	}
	c.out.Accepted = at
	if at != accepted {
		return refuse(RuleFinalNotProven, "", "it ends at %s, not at %s", at.Short(), accepted.Short())
	}
	a := p.Accept
	if tip == nil {
		if a != nil {
			return malformed("accept", "is for a final commit")
		}
		return nil
	}
	switch {
	case a == nil:
		return refuse(RuleFinalNotProven, "", "no accept for %s is shown", at.Short())
	case a.Config != c.out.Config || a.Ref != at || a.Parent != tip.parent || a.Epoch != tip.epoch || a.Chain.Counter == 0:
		return refuse(RuleReceiptForged, "accept", "is for another commit or list")
	}
	return checkAccept(c.scope, c.list, a)
}

// checkAccept checks that a sequencer of a list signed an accept, and shows the promises
// that its ballot takes.
func checkAccept(scope federation.Scope, list federation.List, a *federation.Accept) error {
	if int64(a.Ballot.Rank) >= int64(len(list)) || a.Ballot.Round == 0 && a.Ballot.Rank != 0 && !a.Provisional {
		return refuse(RuleReceiptForged, "accept", "of rank %d in a list of %d", a.Ballot.Rank, len(list))
	}
	if err := a.VerifySignature(scope, ed25519.PublicKey(list[a.Ballot.Rank].ReceiptKey)); err != nil {
		return &Refusal{Rule: RuleReceiptForged, What: "accept of " + list[a.Ballot.Rank].User, Err: err}
	}
	if a.Ballot.Round == 0 {
		return nil
	}
	promised := make(map[uint32]bool)
	for _, q := range a.Promises {
		if q.Config != a.Config || q.Ballot != a.Ballot || int64(q.Promiser) >= int64(len(list)) || promised[q.Promiser] {
			return refuse(RuleReceiptForged, "promise", "is for another ballot or list, or comes twice")
		}
		if err := q.VerifySignature(scope, ed25519.PublicKey(list[q.Promiser].ReceiptKey)); err != nil {
			return &Refusal{Rule: RuleReceiptForged, What: "promise of " + list[q.Promiser].User, Err: err}
		}
		promised[q.Promiser] = true
	}
	if len(promised) < list.Quorum() {
		return refuse(RuleReceiptForged, "accept", "with %d promises, want %d of %d", len(promised), list.Quorum(), len(list))
	}
	return nil
}
