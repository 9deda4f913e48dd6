package federation

import (
	"bytes"
	"math/bits"
)

// derived is what evaluate makes of the set of events; never persisted.
type derived struct {
	acc    acceptance
	final  bool
	counts bool // era commits: the era counts
	newest *node
	voted  uint64 // who voted for it or above, in the ballot that is counted
}

// standing is what follows from commits and statements alone, whatever receipts
// there are.
type standing struct {
	best       [2]*voucher // of two users, the first in the order of vouchers
	anyVoucher bool
	vouched    bool
	votable    bool
	doubt      bool
}

// acceptance is how a commit is accepted, by itself or through a descendant
// under the same list.
type acceptance struct {
	ballot     bool // in a ballot, by an owner who did not equivocate there
	highest    Ballot
	own        bool // provisionally, by an accept that names the commit itself
	ownRank    uint32
	indirect   bool // provisionally through a descendant, or by an equivocator
	equivocal  bool // by an equivocator; then indirect is set too
	belowFinal bool // final, or below a final commit
}

func (a *acceptance) any() bool { return a.ballot || a.own || a.indirect || a.belowFinal }

func (a *acceptance) onlyProvisional() bool { return a.any() && !a.ballot && !a.belowFinal }

// evaluate computes everything that follows from the set of events.
func (m *Machine) evaluate() {
	if m.tellsNew {
		m.evaluateVouching()
		m.tellsNew = false
	}
	for _, n := range m.order {
		n.derived = derived{}
	}
	m.base.final = true
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
	if rs == nil {
		return
	}
	list, _, _ := m.list(config)
	m.evaluateVotes(rs, list, config)
	m.evaluateAccepts(rs, list, config, base)
}

func (m *Machine) evaluateAccepts(rs *receipts, list List, config Ref, base *node) {
	for i := range rs.valid {
		clear(rs.valid[i].covers)
	}
	rs.valid = rs.valid[:0]
	newest := m.newestOf(config, base)
	// rs.accepts is sorted by ballot: an accept may rest on one in a lower ballot.
	for _, a := range rs.accepts {
		n := a.node
		if a.Provisional {
			if !n.sets {
				m.markProvisional(n, config, a.Ballot.Rank)
			}
			continue
		}
		c := covered{top: n, from: base, known: base, reads: base}
		if a.Ballot.Round > 0 {
			reads, known, readable := m.ballotBase(rs, list, base, a.Ballot, a.Promises, n, nil, newest)
			var strict bool
			if c.from, c.known, strict = m.ballotBase(rs, list, base, a.Ballot, a.Promises, n, nil, nil); !strict {
				if !readable {
					continue
				}
				c.from, c.known, c.read = reads, known, true
			}
			if c.reads = reads; !readable {
				c.reads = c.from
			}
		}
		rs.addValid(a.Ballot, c)
	}
	for i := range rs.valid {
		v := &rs.valid[i]
		chain := !m.keeps(ruleEquivocatorLast) || m.oneChain(v)
		for _, c := range v.covers {
			n := c.top
			liar := !chain && v.besides(n, newest)
			for x := n; x != nil && x.governing() == config; x = x.up {
				if liar {
					if x.acc.equivocal {
						break // and so are all below
					}
					x.acc.indirect, x.acc.equivocal = true, true
					continue
				}
				if x.acc.ballot && !x.acc.highest.Less(v.ballot) {
					break // and so are all below
				}
				x.acc.ballot, x.acc.highest = true, v.ballot
				if !m.keeps(ruleChainCover) {
					break
				}
			}
		}
	}
}

// accepted are the commits that the valid accepts of one ballot name.
type accepted struct {
	ballot Ballot
	covers []covered
}

// covered is what a valid accept covers: the commit that it names, what its ballot
// had to extend, and what it would have had to without the last votes that this
// machine cannot judge; and what it had to extend for reading alone, which is the same
// for everybody. What is only read gives its accept a mark and is no ground to vote on.
type covered struct {
	top, from, known, reads *node
	read                    bool
}

func (rs *receipts) addValid(b Ballot, c covered) {
	if k := len(rs.valid); k > 0 && rs.valid[k-1].ballot == b {
		rs.valid[k-1].covers = append(rs.valid[k-1].covers, c)
		return
	}
	if len(rs.valid) < cap(rs.valid) { // with the memory of the last evaluation
		rs.valid = rs.valid[:len(rs.valid)+1]
	} else {
		rs.valid = append(rs.valid, accepted{})
	}
	v := &rs.valid[len(rs.valid)-1]
	v.ballot, v.covers = b, append(v.covers[:0], c)
}

// in returns what the valid accepts of a ballot cover.
func (rs *receipts) in(b Ballot) []covered {
	for i := range rs.valid {
		if rs.valid[i].ballot == b {
			return rs.valid[i].covers
		}
	}
	return nil
}

func (m *Machine) markProvisional(n *node, config Ref, rank uint32) {
	if !n.acc.own || rank < n.acc.ownRank {
		n.acc.own, n.acc.ownRank = true, rank
	}
	for x := n.up; x != nil && x.governing() == config && !x.acc.indirect; x = x.up {
		x.acc.indirect = true
	}
}

// oneChain reports whether all accepts of a ballot lie on one chain.
func (m *Machine) oneChain(v *accepted) bool {
	if len(v.covers) < 2 {
		return true
	}
	top, low := v.covers[0].top, v.covers[0].top.depth
	for _, c := range v.covers {
		if c.top.depth > top.depth {
			top = c.top
		}
		low = min(low, c.top.depth)
	}
	m.mark(top, low)
	for _, c := range v.covers {
		if c.top.marked != m.marks {
			return false
		}
	}
	return true
}

// newestOf returns the newest final commit of a list: its base if it made none final.
func (m *Machine) newestOf(config Ref, base *node) *node {
	newest := base
	for _, n := range m.order { // by depth, then ref
		if n.final && n.depth > newest.depth && n.governing() == config {
			newest = n
		}
	}
	return newest
}

// besides reports whether another accept of the ballot neither extends n nor is
// extended by it. Above the newest final commit of the list those count alone that
// lie there, too: who starts at it holds no others.
func (v *accepted) besides(n, newest *node) bool {
	above := n.extends(newest)
	for _, c := range v.covers {
		if above && !c.top.extends(newest) {
			continue
		}
		if !c.top.extends(n) && !n.extends(c.top) {
			return true
		}
	}
	return false
}

// mark marks top and the commits below it down to a depth, and no other.
func (m *Machine) mark(top *node, low int) {
	m.marks++
	for x := top; x != nil && x.depth >= low; x = x.up {
		x.marked = m.marks
	}
}

// ballotBase returns the commit that the first accept of a ballot must extend,
// as the promises show it, and whether q of them count. A target, if there is
// one, must extend it, and has no promises beside these. Those that count are added
// to counted. Known is what it
// would be without last votes for what lies below what is held: from, or above it.
//
// With the list's newest final commit it judges for reading alone: a last vote for
// what is not above that counts as one for the list's base, whether an accept backs it
// or not. Who starts at, or dropped all below, some commit up to there cannot tell,
// and nobody must come to another head than they.
func (m *Machine) ballotBase(rs *receipts, list List, base *node, b Ballot, promises []*Promise, target *node, counted *[]*Promise, newest *node) (from, known *node, ok bool) {
	var seen uint64
	from, known = base, base
	var highest, highestKnown *LastVote
	for _, p := range promises {
		if p.Ballot != b || int(p.Promiser) >= len(list) || seen&(1<<p.Promiser) != 0 {
			continue
		}
		var n *node
		if v := p.LastVote; v != nil {
			held := false
			switch n, held = m.nodes[v.Ref]; {
			case !v.Ballot.Less(b):
				continue
			case !held && !m.dropped(v.Ref, v.Epoch):
				continue // fetched; the accept waits
			case newest != nil && !(held && n != newest && n.extends(newest)):
				n = base
			case !held && base == m.base && m.TooOld(v.Epoch):
				// What backed it may have been dropped. Who holds it is bound to it, and so
				// to no more than lies below all that is held here.
				if m.outweighs(v, base, highest, from) {
					from, highest = base, v
				}
				n = nil
			case !held: // beside what is held: it binds to nothing
			case !m.complete && n == m.base, n.votable && m.backed(rs, v.Ballot, n, newest != nil):
			default:
				continue
			}
		}
		seen |= 1 << p.Promiser
		if counted != nil {
			*counted = append(*counted, p)
		}
		if v := p.LastVote; v != nil && n != nil {
			if m.outweighs(v, n, highest, from) {
				from, highest = n, v
			}
			if m.outweighs(v, n, highestKnown, known) {
				known, highestKnown = n, v
			}
		}
	}
	// Had an accept more promises than it needs, one that does not count yet could
	// bind it later, and those who voted for it meanwhile would have no accept.
	q := list.Quorum()
	if (bits.OnesCount64(seen) < q || target != nil && len(promises) > q) && m.keeps(ruleQuorumPromises) {
		return nil, nil, false
	}
	if !m.keeps(rulePromisedValue) {
		from, known = base, base
	}
	return from, known, target == nil || target.extends(from)
}

// outweighs reports whether a reported vote for n binds a new owner, and not the
// highest so far, for o: a higher ballot, then the deeper, then the lower ref.
func (m *Machine) outweighs(v *LastVote, n *node, highest *LastVote, o *node) bool {
	switch {
	case highest == nil:
		return true
	case highest.Ballot != v.Ballot:
		return highest.Ballot.Less(v.Ballot)
	case n.depth != o.depth && m.keeps(ruleDeepestTie):
		return n.depth > o.depth
	}
	return less(n.ref, o.ref)
}

// backed reports whether an honest module could have voted for n in the ballot:
// a valid accept covers it, and it extends what that ballot had to extend. A
// promise that tells of another last vote would set aside what lower ballots
// voted for, and no receipt of its author would show the lie.
func (m *Machine) backed(rs *receipts, b Ballot, n *node, read bool) bool {
	for _, v := range rs.in(b) {
		from := v.from
		if read {
			from = v.reads
		}
		if (read || !v.read) && v.top.extends(n) && (n.extends(from) || !m.keeps(ruleBallotBase)) {
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
	for i, j := 0, 0; i < len(rs.votes); i = j {
		for ; j < len(rs.votes) && rs.votes[j].Ballot == rs.votes[i].Ballot; j++ {
			v := rs.votes[j]
			n := v.node
			if !n.votable && m.keeps(ruleApplied) {
				continue // its proofs are not all held: no event yet
			}
			bit := uint64(1) << v.Voter
			for x := n; x != nil && x.governing() == config && x.voted&bit == 0; x = x.up {
				x.voted |= bit
				x.final = x.final || bits.OnesCount64(x.voted) >= q
			}
		}
		for _, v := range rs.votes[i:j] {
			for x := v.node; x != nil && x.voted != 0; x = x.up {
				x.voted = 0
			}
		}
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
	first, _ := m.preferEra(a, b)
	return first
}

// preferEra is eraBefore, with the reason, whichever of the two comes first.
func (m *Machine) preferEra(a, b *node) (first bool, why Reason) {
	if a.eraNo != b.eraNo {
		return a.eraNo > b.eraNo, ReasonEraNumber
	}
	if a.c == nil || b.c == nil {
		return b.c != nil, ReasonEraNumber // the era that was begun before what is held
	}
	if a.c.Era.ByHeirs != b.c.Era.ByHeirs {
		return !a.c.Era.ByHeirs, ReasonEraAdmin
	}
	if da, db := deepestFinal(a.up), deepestFinal(b.up); da != db {
		return da > db, ReasonEraFinal
	}
	return less(a.ref, b.ref), ReasonEraRef
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
	first, _ := m.prefer(n, o)
	return first
}

// prefer is preferred, with the reason, whichever of the two comes first.
func (m *Machine) prefer(n, o *node) (first bool, why Reason) {
	if !m.keeps(ruleBallotFirst) {
		return less(n.ref, o.ref), ReasonRef
	}
	if a, b := n.listChange() && !n.final, o.listChange() && !o.final; a != b {
		return b, ReasonListChange
	}
	// Why the one that is accepted in a ballot, or provisionally by an accept of
	// its own, comes before the other.
	before := func(loser *node, why Reason) Reason {
		if loser.acc.equivocal && !loser.acc.own {
			return ReasonEquivocation
		}
		return why
	}
	if n.acc.ballot != o.acc.ballot {
		if n.acc.ballot {
			return true, before(o, ReasonBallot)
		}
		return false, before(n, ReasonBallot)
	}
	if n.acc.ballot && n.acc.highest != o.acc.highest {
		return o.acc.highest.Less(n.acc.highest), ReasonHigherBallot
	}
	if !n.acc.ballot {
		if n.acc.own != o.acc.own {
			if n.acc.own {
				return true, before(o, ReasonItself)
			}
			return false, before(n, ReasonItself)
		}
		if n.acc.own && n.acc.ownRank != o.acc.ownRank {
			return n.acc.ownRank < o.acc.ownRank, ReasonRank
		}
	}
	return less(n.ref, o.ref), ReasonRef
}

// compare orders accepts so that what one rests on comes before it.
func (a *Accept) compare(b *Accept) int {
	switch {
	case a.Ballot != b.Ballot:
		return a.Ballot.compare(b.Ballot)
	case a.Provisional != b.Provisional:
		if b.Provisional {
			return -1
		}
		return 1
	case a.Ref != b.Ref:
		return bytes.Compare(a.Ref[:], b.Ref[:])
	}
	return bytes.Compare(a.Signature, b.Signature)
}
