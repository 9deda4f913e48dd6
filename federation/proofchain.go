package federation

import (
	"bytes"
	"math/bits"
	"slices"
)

// ProofChain is what shows a newcomer, who has no tree of the past, that a
// commit is the room's newest final one: from the root on every list change with
// the votes that made it final, every era commit, and the votes for the newest
// final. Whoever reads it checks each step by the list that the step before it
// sets, beginning with the root's.
type ProofChain struct {
	// FromRoot is set if the steps begin at the room's root. It is not set where a
	// machine began later and was given no chain, or where the oldest of more than
	// Limits.Proofs steps were dropped.
	FromRoot bool
	Steps    []ProofStep
	// Final is the newest final commit. Proven is set if the last step, or, where
	// there is none, the root, is that commit. Otherwise the last step, if it sets
	// no list, shows an older final commit.
	Final  Ref
	Proven bool
}

// ProofStep is a commit of a [ProofChain].
type ProofStep struct {
	Ref     Ref
	Parent  Ref
	EventID string // where it was seen, a hint
	Epoch   uint64
	// Sets is the list from this commit on, named by Ref; nil in a step that only
	// shows the newest final.
	Sets List
	// Policy is set if the commit changes the policy, and perhaps the list: who
	// may open an era stands there.
	Policy bool
	// Era is the number of the era that the commit opens; 0: none. Such a commit
	// has no votes: it counts by its author or signers, and by Vouchers.
	Era uint64
	// Config names the list whose votes are shown; zero in an era commit.
	Config Ref
	// Votes are those of q sequencers of Config in one ballot, by rank. Each names
	// this commit or the last of Above, or one between them.
	Votes []*Vote
	// Above are the commits from this one up to the highest that Votes name, at
	// an era up to where its voucher is, lowest first. It is empty where they name
	// the commit itself.
	Above []ProofLink
	// Vouchers show that this commit is vouched for.
	Vouchers []Proof
	// Keys are the leaf keys by which the statements in Votes and Vouchers are
	// signed, as far as they are held, in order of ref and leaf; in an era commit
	// also the leaves of its author and signers in its parent's tree, under the
	// parent's ref.
	Keys []ProofKey
}

// ProofLink is a commit on top of a commit.
type ProofLink struct {
	Ref, Parent Ref
	EventID     string
}

// ProofKey is the leaf that signed a statement about Ref, or made the commit
// Ref that vouches for its parent.
type ProofKey struct {
	Ref   Ref
	Leaf  Leaf
	Group []byte // scope of a statement about Ref
	Suite uint16
}

// maxAbove is how many commits a proof may show above its commit. Where the
// votes lie farther apart the step is left out until they have met.
const maxAbove = 32

// ProofChain returns the proof of the newest final commit. It is what is kept
// of the commits that were dropped, and what the held ones show.
func (m *Machine) ProofChain() ProofChain {
	c := ProofChain{FromRoot: m.fromRoot, Final: m.final.ref}
	for i := range m.proofSteps {
		c.Steps = append(c.Steps, cloneStep(&m.proofSteps[i]))
	}
	c.Steps = append(c.Steps, m.stepsTo(m.final)...)
	for x := m.final; x != m.base && !x.sets && x.c.Policy == nil; x = x.up { // an older final, where the newest shows too few votes yet
		if s, ok := m.step(x); ok {
			c.Steps = append(c.Steps, s)
			break
		}
	}
	c.Steps = onlyLastFinal(c.Steps)
	if len(c.Steps) > 0 {
		c.Proven = c.Steps[len(c.Steps)-1].Ref == c.Final
	} else {
		c.Proven = m.complete && m.final == m.base
	}
	return c
}

// FromRoot tells whether the machine holds all steps of its ProofChain from the room's
// root on.
func (m *Machine) FromRoot() bool { return m.fromRoot }

// onlyLastFinal leaves out steps that change neither list nor policy, but for the
// last step.
func onlyLastFinal(steps []ProofStep) []ProofStep {
	var out []ProofStep
	for i := range steps {
		if steps[i].Sets != nil || steps[i].Policy || i == len(steps)-1 {
			out = append(out, steps[i])
		}
	}
	return out
}

// stepsTo returns the steps of the commits above the base that set a list or
// change the policy, up to and including n, lowest first.
func (m *Machine) stepsTo(n *node) []ProofStep {
	var out []ProofStep
	for x := n; x != m.base; x = x.up {
		if x.sets || x.c.Policy != nil {
			if s, ok := m.step(x); ok {
				out = append(out, s)
			}
		}
	}
	slices.Reverse(out)
	return out
}

// step makes the proof of one commit above the base.
func (m *Machine) step(n *node) (ProofStep, bool) {
	s := ProofStep{Ref: n.ref, Parent: n.c.Parent, EventID: n.c.EventID, Epoch: n.epoch, Policy: n.c.Policy != nil}
	top, v, ok := m.nearestVoucher(n)
	if ok {
		p := Proof{Commit: v.commit}
		if v.applied != nil {
			p = Proof{Applied: v.applied}
		}
		s.Vouchers = cloneProofs([]Proof{p})
	}
	if n.sets {
		s.Sets = clonePolicy(n.policy).Sequencers
	}
	if n.isEra() {
		s.Era = n.eraNo
		if !ok || top.depth-n.depth > maxAbove {
			return s, false
		}
		s.Above = linksTo(n, top)
		signers := append([]string{n.c.AuthorUser}, n.c.Era.Signers...)
		n.up.anyLeaf(func(i uint32, l *leaf) bool {
			if slices.Contains(signers, l.user) {
				s.Keys = append(s.Keys, ProofKey{Ref: n.up.ref, Leaf: Leaf{Index: i, User: l.user, Key: bytes.Clone(l.key)}, Group: bytes.Clone(n.up.group), Suite: n.up.suite})
			}
			return false
		})
	} else {
		s.Config = n.governing()
		votes, top := m.votesFor(n)
		if votes == nil {
			return s, false
		}
		for _, v := range votes {
			s.Votes = append(s.Votes, cloneVote(v.Vote))
		}
		s.Above = linksTo(n, top)
	}
	m.addKeys(&s, s.Vouchers)
	for _, v := range s.Votes {
		m.addKeys(&s, v.Proofs)
	}
	slices.SortFunc(s.Keys, func(a, b ProofKey) int {
		if c := bytes.Compare(a.Ref[:], b.Ref[:]); c != 0 {
			return c
		}
		return int(int64(a.Leaf.Index) - int64(b.Leaf.Index))
	})
	return s, true
}

// linksTo returns the commits above n up to top, lowest first.
func linksTo(n, top *node) []ProofLink {
	var out []ProofLink
	for x := top; x != n; x = x.up {
		out = append(out, ProofLink{Ref: x.ref, Parent: x.c.Parent, EventID: x.c.EventID})
	}
	slices.Reverse(out)
	return out
}

// nearestVoucher returns a voucher for n that is found at n or as near above it
// as there is one, and where.
func (m *Machine) nearestVoucher(n *node) (*node, voucher, bool) {
	for level := []*node{n}; len(level) > 0; {
		var next []*node
		for _, x := range level {
			for i := range x.vouchers {
				if m.covers(&x.vouchers[i], n) {
					return x, x.vouchers[i], true
				}
			}
			next = append(next, x.kids...)
		}
		level = next
	}
	return nil, voucher{}, false
}

func (m *Machine) addKeys(s *ProofStep, ps []Proof) {
	for _, p := range ps {
		ref, at := p.Commit, (*node)(nil)
		var index uint32
		if p.Applied != nil {
			ref, index = p.Applied.Ref, p.Applied.Leaf
			at = m.nodes[ref]
		} else if n, ok := m.nodes[p.Commit]; ok && n.c != nil {
			at, index = n.up, n.c.Author
		}
		if at == nil || slices.ContainsFunc(s.Keys, func(k ProofKey) bool { return k.Ref == ref && k.Leaf.Index == index }) {
			continue
		}
		if l, ok := at.leaf(index); ok {
			s.Keys = append(s.Keys, ProofKey{Ref: ref, Leaf: Leaf{Index: index, User: l.user, Key: bytes.Clone(l.key)}, Group: bytes.Clone(at.group), Suite: at.suite})
		}
	}
}

// votesFor returns votes of q modules, in one ballot, for n or commits above it on
// one chain, and the highest commit they name. Of several such sets it is the one
// that reaches least far above n, of the lowest ballot. Where a lying owner accepted
// two chains, votes on both may make n final that are no set of this kind.
func (m *Machine) votesFor(n *node) ([]heldVote, *node) {
	config := n.governing()
	rs := m.lists[config]
	list, _, ok := m.list(config)
	if rs == nil || !ok {
		return nil, nil
	}
	var best []heldVote
	var top *node
	for i, j := 0, 0; i < len(rs.votes); i = j {
		voters := make(map[*node]uint64)
		for ; j < len(rs.votes) && rs.votes[j].Ballot == rs.votes[i].Ballot; j++ {
			v := rs.votes[j]
			if v.node.votable && v.node.depth <= n.depth+maxAbove && v.node.extends(n) {
				voters[v.node] |= 1 << v.Voter
			}
		}
		var high *node
		for x := range voters {
			if high != nil && (x.depth > high.depth || x.depth == high.depth && less(high.ref, x.ref)) {
				continue
			}
			var who uint64
			for y := x; y != n.up; y = y.up {
				who |= voters[y]
			}
			if bits.OnesCount64(who) >= list.Quorum() {
				high = x
			}
		}
		if high == nil || top != nil && high.depth >= top.depth {
			continue
		}
		nearest := make([]heldVote, len(list)) // of each voter
		for _, v := range rs.votes[i:j] {
			if voters[v.node] != 0 && high.extends(v.node) && (nearest[v.Voter].Vote == nil || v.node.depth < nearest[v.Voter].node.depth) {
				nearest[v.Voter] = v
			}
		}
		votes := slices.DeleteFunc(nearest, func(v heldVote) bool { return v.Vote == nil })
		slices.SortStableFunc(votes, func(a, b heldVote) int { return a.node.depth - b.node.depth })
		best, top = votes[:list.Quorum()], high
	}
	slices.SortFunc(best, func(a, b heldVote) int { return int(a.Voter) - int(b.Voter) })
	return best, top
}

// keepProofs keeps the steps of what compaction is about to drop, up to and
// including to. Of too many the oldest go.
func (m *Machine) keepProofs(to *node) {
	m.proofSteps = onlyLastFinal(append(m.proofSteps, m.stepsTo(to)...))
	if over := len(m.proofSteps) - m.cfg.Limits.Proofs; over > 0 {
		m.proofSteps = slices.Clone(m.proofSteps[over:])
		m.fromRoot = false
	}
}

func cloneStep(s *ProofStep) ProofStep {
	c := *s
	c.Sets, c.Above, c.Vouchers = clonePolicy(&Policy{Sequencers: s.Sets}).Sequencers, slices.Clone(s.Above), cloneProofs(s.Vouchers)
	c.Votes = nil
	for _, v := range s.Votes {
		c.Votes = append(c.Votes, cloneVote(v))
	}
	c.Keys = slices.Clone(s.Keys)
	for i := range c.Keys {
		c.Keys[i].Leaf.Key, c.Keys[i].Group = bytes.Clone(s.Keys[i].Leaf.Key), bytes.Clone(s.Keys[i].Group)
	}
	return c
}
