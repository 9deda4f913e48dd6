package federation

import (
	"math/bits"
	"sort"
)

// derived is what evaluate makes of the set of events; never persisted.
type derived struct {
	best       []voucher
	anyVoucher bool
	vouched    bool
	votable    bool
	doubt      bool
	acc        acceptance
	final      bool
	counts     bool // era commits: the era counts
	newest     *node
}

// acceptance is how a commit is accepted, by itself or through a descendant
// under the same list.
type acceptance struct {
	ballot     bool // in a ballot, by an owner who did not equivocate there
	highest    Ballot
	own        bool // provisionally, by an accept that names the commit itself
	ownRank    uint32
	indirect   bool // provisionally through a descendant, or by an equivocator
	belowFinal bool // final, or below a final commit
}

func (a *acceptance) any() bool { return a.ballot || a.own || a.indirect || a.belowFinal }

func (a *acceptance) onlyProvisional() bool { return a.any() && !a.ballot && !a.belowFinal }

// evaluate computes everything that follows from the set of events.
func (m *Machine) evaluate() {
	for _, n := range m.order {
		n.derived = derived{}
	}
	m.evaluateVouching()
	m.base.final, m.base.votable, m.base.vouched = true, true, true
	for _, n := range m.order {
		if n == m.base {
			m.evaluateList(m.base.config, n)
		} else if n.sets && m.active(n) {
			m.evaluateList(n.ref, n)
		}
	}
	for i := len(m.order) - 1; i >= 0; i-- {
		if n := m.order[i]; n.final || n.acc.belowFinal {
			n.acc.belowFinal = true
			if n.up != nil && !n.isEra() {
				n.up.acc.belowFinal = true
			}
		}
	}
	m.chooseEra()
	m.final = m.era.newest
	m.walk()
}

// active reports whether the list that n sets can have receipts: an era's from
// the start, a list change's once it is final.
func (m *Machine) active(n *node) bool {
	return n == m.base || n.isEra() || n.final || !m.keeps(ruleListFinal)
}

// evaluateList judges the receipts under one list.
func (m *Machine) evaluateList(config Ref, base *node) {
	rs := m.lists[config]
	list, _, _ := m.list(config)
	if rs == nil || len(list) == 0 {
		return
	}
	m.evaluateVotes(rs, list, config)
	m.evaluateAccepts(rs, list, config, base)
}

func (m *Machine) evaluateAccepts(rs *receipts, list List, config Ref, base *node) {
	rs.valid = make(map[Ballot][]covered)
	var ballots []Ballot
	// rs.accepts is sorted by ballot: an accept may rest on one in a lower ballot.
	for _, a := range rs.accepts {
		n := m.nodes[a.Ref]
		if a.Provisional {
			if n.sets {
				continue
			}
			m.markProvisional(n, config, a.Ballot.Rank)
			continue
		}
		from := base
		if a.Ballot.Round > 0 {
			var ok bool
			if from, _, ok = m.ballotBase(rs, list, base, a.Ballot, a.Promises, n); !ok {
				continue
			}
		}
		if len(rs.valid[a.Ballot]) == 0 {
			ballots = append(ballots, a.Ballot)
		}
		rs.valid[a.Ballot] = append(rs.valid[a.Ballot], covered{n, from})
	}
	for _, b := range ballots {
		liars := equivocating(rs.valid[b])
		if !m.keeps(ruleEquivocatorLast) {
			liars = nil
		}
		for _, v := range rs.valid[b] {
			n := v.top
			for x := n; x != nil && x.governing() == config; x = x.up {
				if liars[n] {
					if x.acc.indirect {
						break // and so are all below
					}
					x.acc.indirect = true
					continue
				}
				if x.acc.ballot && !x.acc.highest.Less(b) {
					break // and so are all below
				}
				x.acc.ballot, x.acc.highest = true, b
				if !m.keeps(ruleChainCover) {
					break
				}
			}
		}
	}
}

func (m *Machine) markProvisional(n *node, config Ref, rank uint32) {
	if !n.acc.own || rank < n.acc.ownRank {
		n.acc.own, n.acc.ownRank = true, rank
	}
	for x := n.up; x != nil && x.governing() == config && !x.acc.indirect; x = x.up {
		x.acc.indirect = true
	}
}

// equivocating returns those of the commits accepted in one ballot that another
// of them does not extend and that do not extend it.
func equivocating(vs []covered) map[*node]bool {
	if len(vs) < 2 {
		return nil
	}
	ns := make([]*node, len(vs))
	for i := range vs {
		ns[i] = vs[i].top
	}
	deepest := ns[0]
	for _, n := range ns {
		if n.depth > deepest.depth {
			deepest = n
		}
	}
	chain := true
	for _, n := range ns {
		chain = chain && deepest.extends(n)
	}
	if chain {
		return nil
	}
	out := make(map[*node]bool)
	for i, a := range ns {
		for _, b := range ns[i+1:] {
			if !a.extends(b) && !b.extends(a) {
				out[a], out[b] = true, true
			}
		}
	}
	return out
}

// ballotBase returns the commit that the first accept of a ballot must extend,
// as the promises show it, the promises that count, and whether they are q. A
// target, if there is one, must extend it.
func (m *Machine) ballotBase(rs *receipts, list List, base *node, b Ballot, promises []*Promise, target *node) (*node, []*Promise, bool) {
	var seen uint64
	var counted []*Promise
	out, highest := base, (*LastVote)(nil)
	for _, p := range promises {
		if p.Ballot != b || int(p.Promiser) >= len(list) || seen&(1<<p.Promiser) != 0 {
			continue
		}
		v := p.LastVote
		if v == nil {
			seen |= 1 << p.Promiser
			counted = append(counted, p)
			continue
		}
		if !v.Ballot.Less(b) {
			continue
		}
		n, ok := m.nodes[v.Ref]
		if !ok {
			if m.complete {
				continue // fetched; the accept waits
			}
			// What is held begins above it, or it is on a branch that never
			// was on top of what is held: no honest owner accepts here then.
			seen |= 1 << p.Promiser
			counted = append(counted, p)
			continue
		}
		if (m.complete || n != m.base && !n.final) && !(n.votable && m.backed(rs, v.Ballot, n)) {
			continue
		}
		seen |= 1 << p.Promiser
		counted = append(counted, p)
		switch {
		case highest == nil, highest.Ballot.Less(v.Ballot):
		case v.Ballot.Less(highest.Ballot):
			continue
		case !m.keeps(ruleDeepestTie):
			if less(out.ref, n.ref) {
				continue
			}
		case n.depth < out.depth:
			continue
		case n.depth == out.depth && less(out.ref, n.ref):
			continue
		}
		out, highest = n, v
	}
	if bits.OnesCount64(seen) < list.Quorum() && m.keeps(ruleQuorumPromises) {
		return nil, nil, false
	}
	if !m.keeps(rulePromisedValue) {
		out = base
	}
	return out, counted, target == nil || target.extends(out)
}

// backed reports whether an honest module could have voted for n in the ballot:
// a valid accept covers it, and it extends what that ballot had to extend. A
// promise that tells of another last vote would set aside what lower ballots
// voted for, and no receipt of its author would show the lie.
func (m *Machine) backed(rs *receipts, b Ballot, n *node) bool {
	for _, v := range rs.valid[b] {
		if v.top.extends(n) && (n.extends(v.from) || !m.keeps(ruleBallotBase)) {
			return true
		}
	}
	return false
}

// evaluateVotes finds the commits that q modules voted for in one ballot.
func (m *Machine) evaluateVotes(rs *receipts, list List, config Ref) {
	q := list.Quorum()
	if !m.keeps(ruleVoteQuorum) {
		q = len(list) / 2
	}
	for i := 0; i < len(rs.votes); {
		j := i
		for j < len(rs.votes) && rs.votes[j].Ballot == rs.votes[i].Ballot {
			j++
		}
		voted := make(map[*node]uint64)
		for _, v := range rs.votes[i:j] {
			n := m.nodes[v.Ref]
			if !n.votable && m.keeps(ruleApplied) {
				continue // its proofs are not all held: no event yet
			}
			bit := uint64(1) << v.Voter
			for x := n; x != nil && x.governing() == config && voted[x]&bit == 0; x = x.up {
				voted[x] |= bit
				if bits.OnesCount64(voted[x]) >= q {
					x.final = true
				}
			}
		}
		i = j
	}
}

// chooseEra finds the newest final of each era and picks the era to walk.
func (m *Machine) chooseEra() {
	for _, n := range m.order {
		if n == m.base || n.isEra() {
			n.newest = n
		}
		e := n.eraBase
		if n.final && n != e && (n.depth > e.newest.depth || n.depth == e.newest.depth && less(n.ref, e.newest.ref)) {
			e.newest = n
		}
	}
	m.era = m.base
	for _, n := range m.order {
		if !n.isEra() || !n.vouched && m.keeps(ruleEraVouched) || !m.eraValid(n) {
			continue
		}
		n.counts, n.final = true, true
		if m.keeps(ruleEraFirst) && m.eraBefore(n, m.era) {
			m.era = n
		}
	}
}

// eraValid reports whether an era commit would count if it were vouched for.
func (m *Machine) eraValid(n *node) bool {
	left := n.up.eraBase
	if left != m.base && !left.counts {
		return false
	}
	if n.up != left && !n.up.acc.any() {
		return false
	}
	if n.c.Era.ByHeirs {
		return m.heirsEntitled(n, left.newest)
	}
	return n.up.policy.admin(n.c.AuthorUser) && (left.newest.policy.admin(n.c.AuthorUser) || !m.keeps(ruleEraAdminFinal))
}

// heirsEntitled reports whether heirs from more than half of the servers signed
// that have an heir in the list and in the tree at the newest final.
func (m *Machine) heirsEntitled(n, newest *node) bool {
	signed := make(map[string]bool)
	for _, u := range n.c.Era.Signers {
		signed[u] = true
	}
	signed[n.c.AuthorUser] = true
	present := make(map[string]bool)
	newest.anyLeaf(func(_ uint32, l *leaf) bool { present[l.user] = true; return false })
	servers, yes := make(map[string]bool), make(map[string]bool)
	author := false
	for _, h := range newest.policy.Heirs {
		if !present[h.User] {
			continue
		}
		servers[h.Server] = true
		if signed[h.User] {
			yes[h.Server] = true
		}
		author = author || h.User == n.c.AuthorUser
	}
	return author && len(yes) > len(servers)/2
}

// eraBefore reports whether era a is preferred to era b; both count.
func (m *Machine) eraBefore(a, b *node) bool {
	if a.eraNo != b.eraNo {
		return a.eraNo > b.eraNo
	}
	if b.c == nil {
		return false
	}
	if a.c.Era.ByHeirs != b.c.Era.ByHeirs {
		return !a.c.Era.ByHeirs
	}
	if da, db := deepestFinal(a.up), deepestFinal(b.up); da != db {
		return da > db
	}
	return less(a.ref, b.ref)
}

func deepestFinal(n *node) int {
	for n.up != nil && !n.final {
		n = n.up
	}
	return n.depth
}

// walk follows the fork choice from the era's base to the head.
func (m *Machine) walk() {
	// The subtree that holds the newest final comes first at every step.
	cur := m.final
	if !m.keeps(ruleFinalFirst) {
		cur = m.era
	}
	for {
		var next *node
		for _, k := range cur.kids {
			if k.isEra() || !k.acc.any() {
				continue
			}
			if next == nil || m.preferred(k, next) {
				next = k
			}
		}
		if next == nil {
			break
		}
		cur = next
	}
	m.head = cur
}

// preferred reports whether n comes before its sibling o in the fork choice;
// neither subtree holds a final commit of the era above the newest.
func (m *Machine) preferred(n, o *node) bool {
	if !m.keeps(ruleBallotFirst) {
		return less(n.ref, o.ref)
	}
	if a, b := n.listChange() && !n.final, o.listChange() && !o.final; a != b {
		return b
	}
	if n.acc.ballot != o.acc.ballot {
		return n.acc.ballot
	}
	if n.acc.ballot && n.acc.highest != o.acc.highest {
		return o.acc.highest.Less(n.acc.highest)
	}
	if !n.acc.ballot {
		if n.acc.own != o.acc.own {
			return n.acc.own
		}
		if n.acc.own && n.acc.ownRank != o.acc.ownRank {
			return n.acc.ownRank < o.acc.ownRank
		}
	}
	return less(n.ref, o.ref)
}

// sortAccepts orders accepts so that what one rests on comes before it.
func sortAccepts(as []*Accept) {
	sort.SliceStable(as, func(i, j int) bool {
		a, b := as[i], as[j]
		if a.Ballot != b.Ballot {
			return a.Ballot.Less(b.Ballot)
		}
		if a.Provisional != b.Provisional {
			return !a.Provisional
		}
		if a.Ref != b.Ref {
			return less(a.Ref, b.Ref)
		}
		return string(a.Signature) < string(b.Signature)
	})
}
