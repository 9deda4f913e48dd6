package federation

import (
	"math/bits"
	"slices"
)

// Reason says why the fork choice prefers a commit to its sibling. Those from
// ReasonUnaccepted on say why a commit is not in the choice at all.
type Reason string

// The reasons, in the order in which the fork choice asks.
const (
	ReasonEra          Reason = "era"           // the preferred one leads to the newest era
	ReasonFinal        Reason = "final"         // it, or a commit above it, is final
	ReasonListChange   Reason = "list-change"   // the other is a list change that is not final
	ReasonBallot       Reason = "ballot"        // it is accepted in a ballot, the other without a majority only
	ReasonHigherBallot Reason = "higher-ballot" // it is accepted in a higher ballot
	ReasonItself       Reason = "itself"        // an accept names it, the other has one of a descendant only
	ReasonEquivocation Reason = "equivocation"  // only one who signed contradicting accepts accepted the other
	ReasonRank         Reason = "rank"          // it is accepted, without a majority, by the lower rank
	ReasonRef          Reason = "ref"           // nothing else decides: it has the lower ref

	// Of two eras that count.
	ReasonEraNumber Reason = "era-number" // it has the higher number
	ReasonEraAdmin  Reason = "era-admin"  // an admin opened it, heirs the other
	ReasonEraFinal  Reason = "era-final"  // it lies above the deeper final commit
	ReasonEraRef    Reason = "era-ref"    // nothing else decides: it has the lower ref

	ReasonUnaccepted   Reason = "unaccepted"    // no valid accept covers it
	ReasonEraUnvouched Reason = "era-unvouched" // an era that no member vouched for
	ReasonEraRefused   Reason = "era-refused"   // an era whose author was not entitled to open it
)

// Survey is what a machine knows of a room's commits, copied for people to look
// at; see package picture. Equal sets of events give equal surveys, but for
// Stalled and Provisional, which are this process's own.
type Survey struct {
	Room                           string
	Head, Safe, Usable, Final, Era Ref
	EraNumber                      uint64
	Base                           Ref
	FromRoot                       bool // the base is the room's founding epoch
	// Commits are all that are held, the base first and each behind its parent.
	Commits []Surveyed
	// Sequencers is the list that governs what comes above the head.
	Sequencers List
	// Asked is the highest ballot that a sequencer asks for and nothing is accepted
	// in yet; nil: none.
	Asked *SurveyedBallot
	// Devices are the leaves of the head's tree, in their order.
	Devices []SurveyedLeaf
	// Overridden are finals of the era before that the head's era does not keep.
	Overridden []Ref
	// Missing are commits that are named and not held.
	Missing []Missing
	// Liars are sequencers that two held receipts prove to have lied.
	Liars       []Liar
	Window      int // of the policy at the head
	Stalled     bool
	Provisional bool // this machine goes on without a majority
}

// Surveyed is one commit. The base has no author.
type Surveyed struct {
	Ref, Parent   Ref
	Epoch         uint64
	Depth         int
	Author        string
	External      bool
	Adds, Removes []string // users, once for each leaf
	Status        Status
	OnHead        bool
	ListChange    bool
	Lists         List // what it sets, if it sets a list
	PolicyChange  bool
	Era           uint64 // that it opens; 0: none
	ByHeirs       bool
	Suite         uint16 // of a commit that founds a successor group; else 0
	Accepts       []SurveyedAccept
	Votes         []string // servers that voted for it, or above it, in one ballot
	VoteBallot    Ballot
	Quorum        int // votes, or promises, that its list asks for; 0: no list governs it
	RejectedBy    string
	RejectRule    string
	Vouched       bool
	Final         bool
	// Why another commit comes before this one, Beside, if this one is not on the
	// head and its parent is.
	Why    Reason
	Beside Ref
}

// SurveyedAccept is how one sequencer accepted a commit.
type SurveyedAccept struct {
	Server      string
	Ballot      Ballot // zero if Provisional
	Provisional bool
	Itself      bool // the accept names the commit, not only one above it
	Liar        bool // it contradicts another accept of that ballot, whether or not the fork choice asks
}

// SurveyedBallot is a ballot that its owner asks for.
type SurveyedBallot struct {
	Ballot   Ballot
	Server   string
	Promises int
	Quorum   int
}

// SurveyedLeaf is a device in the group, and the newest commit that it is known
// to have applied: by a commit that it made, a statement that it signed, or what
// the caller has seen of it.
type SurveyedLeaf struct {
	Leaf    uint32
	User    string
	Since   uint64 // epoch in which it came into the group, or the base's
	Reached Ref    // on the head; zero: nothing is known
	// Beside is a commit beside the head that it is known to have applied, above
	// which nothing on the head is known of it; zero: none.
	Beside Ref
}

// Missing is a commit that is not held, with how many events wait for it.
type Missing struct {
	Ref    Ref
	Events int
}

// Liar is a sequencer that held receipts prove to have lied.
type Liar struct {
	Signer Sequencer
	Kind   EvidenceKind
	Ballot Ballot
}

// Seen is what a caller knows of a member beside the events: that the leaf of the
// tree at Ref uses, or used, that epoch. A message is such a sign.
type Seen struct {
	Leaf uint32
	Ref  Ref
}

// Survey returns what is known of all commits.
func (m *Machine) Survey(seen ...Seen) *Survey {
	s := &Survey{
		Room: m.cfg.Room, Head: m.head.ref, Safe: m.cut(m.head).ref, Usable: m.UsableHead(), Final: m.final.ref,
		Era: m.era.ref, EraNumber: m.era.eraNo, Base: m.base.ref, FromRoot: m.complete, Window: m.head.policy.window(),
		Stalled: m.Stalled() > 0, Provisional: m.Provisional(), Overridden: m.Overridden(m.era.ref),
	}
	if list, _, ok := m.list(m.serving()); ok {
		s.Sequencers = clonePolicy(&Policy{Sequencers: list}).Sequencers
	}
	path := make(map[*node]bool, m.head.depth-m.base.depth+1)
	for x := m.head; x != nil; x = x.up {
		path[x] = true
	}
	receipts := m.surveyReceipts(s)
	chosen := make(map[*node]*node) // by parent
	for x := range path {
		if x.up != nil {
			chosen[x.up] = x
		}
	}
	for _, n := range m.order {
		s.Commits = append(s.Commits, m.surveyCommit(n, path, chosen, receipts[n]))
	}
	s.Devices = m.surveyLeaves(path, seen)
	waits := make(map[Ref]int)
	for _, w := range m.waiting {
		if m.nodes[w.on] == nil {
			waits[w.on]++
		}
	}
	for _, ref := range sortedRefs(waits) {
		s.Missing = append(s.Missing, Missing{ref, waits[ref]})
	}
	return s
}

// surveyed are the receipts that speak for a commit.
type surveyed struct {
	accepts []SurveyedAccept // by rank; at most one of each
	ranks   []uint32
	voters  uint64
	ballot  Ballot // of the voters
}

func (m *Machine) surveyCommit(n *node, path map[*node]bool, chosen map[*node]*node, r *surveyed) Surveyed {
	out := Surveyed{
		Ref: n.ref, Epoch: n.epoch, Depth: n.depth, Status: m.Status(n.ref), OnHead: path[n],
		Vouched: n.vouched, Final: n.final, ListChange: n.listChange(),
	}
	if n.sets {
		out.Lists = clonePolicy(n.policy).Sequencers
	}
	if n.up == nil {
		return out
	}
	out.Parent, out.Author, out.External = n.up.ref, n.c.AuthorUser, n.c.External
	out.PolicyChange = n.c.Policy != nil && n.c.Era == nil && !out.ListChange
	for _, l := range n.c.Added {
		out.Adds = append(out.Adds, l.User)
	}
	for _, i := range n.c.Removed {
		if l, ok := n.up.leaf(i); ok {
			out.Removes = append(out.Removes, l.user)
		}
	}
	if n.c.Founding != nil {
		out.Suite = n.suite
	}
	if n.isEra() {
		out.Era, out.ByHeirs = n.eraNo, n.c.Era.ByHeirs
	}
	if n.reject != nil {
		out.RejectRule = n.reject.Rule
		if l, ok := n.up.leaf(n.reject.Leaf); ok {
			out.RejectedBy = l.user
		}
	}
	if list, _, ok := m.list(n.governing()); ok {
		out.Quorum = list.Quorum()
		if r != nil {
			out.Accepts, out.VoteBallot = r.accepts, r.ballot
			for rank := range list {
				if r.voters&(1<<rank) != 0 {
					out.Votes = append(out.Votes, list[rank].Server)
				}
			}
		}
	}
	if !path[n] && path[n.up] {
		if c := chosen[n.up]; c != nil {
			out.Beside = c.ref
		}
		out.Why = m.why(n, chosen[n.up])
	}
	return out
}

// why says why n, whose parent is on the head, is not: c is the one that is, nil
// at the head itself.
func (m *Machine) why(n, c *node) Reason {
	switch {
	case n.isEra() && !m.eraValid(n):
		return ReasonEraRefused
	case n.isEra() && !n.vouched:
		return ReasonEraUnvouched
	case n.isEra():
		_, why := m.preferEra(m.era, n)
		return why
	case !n.acc.any() || c == nil:
		return ReasonUnaccepted
	case c.depth <= m.era.depth: // the walk begins at the era's base
		if !c.isEra() && c.eraBase.newest.extends(c) {
			return ReasonFinal // as in its own era
		}
		return ReasonEra
	case m.final.extends(c):
		return ReasonFinal
	}
	_, why := m.prefer(c, n)
	return why
}

// surveyReceipts finds the accepts and votes for each commit, and what they show of
// their signers.
func (m *Machine) surveyReceipts(s *Survey) map[*node]*surveyed {
	out := make(map[*node]*surveyed, len(m.order))
	at := func(n *node) *surveyed {
		if out[n] == nil {
			out[n] = new(surveyed)
		}
		return out[n]
	}
	for _, base := range m.order {
		rs := m.lists[base.config]
		if base != m.base && !base.sets || rs == nil {
			continue
		}
		list, config := base.policy.Sequencers, base.config
		if base == m.base {
			list, _, _ = m.list(config)
		}
		m.surveyLies(s, rs, list)
		if base != m.base && !m.active(base) {
			continue
		}
		m.surveyAccepts(rs, list, config, at)
		m.surveyVotes(rs, list, config, at)
		if config == m.serving() {
			s.Asked = asked(rs, list)
		}
	}
	for _, r := range out {
		order := make([]int, len(r.ranks))
		for i := range order {
			order[i] = i
		}
		slices.SortFunc(order, func(a, b int) int { return int(r.ranks[a]) - int(r.ranks[b]) })
		accepts := make([]SurveyedAccept, len(order))
		for i, j := range order {
			accepts[i] = r.accepts[j]
		}
		r.accepts = accepts
	}
	return out
}

func (m *Machine) surveyAccepts(rs *receipts, list List, config Ref, at func(*node) *surveyed) {
	note := func(top *node, rank uint32, a SurveyedAccept) {
		a.Server = list[rank].Server
		for x := top; x != nil && x.governing() == config; x = x.up {
			r := at(x)
			a.Itself = x == top
			if i := slices.Index(r.ranks, rank); i >= 0 {
				if old := &r.accepts[i]; a.Itself && old.Ballot == a.Ballot && old.Provisional == a.Provisional {
					old.Itself, old.Liar = true, old.Liar && a.Liar
				}
				if a.Liar || !r.accepts[i].Liar {
					break // and so have all below
				}
				r.accepts[i] = a
				continue
			}
			r.ranks, r.accepts = append(r.ranks, rank), append(r.accepts, a)
		}
	}
	// The highest ballot of each sequencer is what counts, and any before an accept
	// without a majority.
	_, base, _ := m.list(config)
	newest := m.newestOf(config, base)
	for i := len(rs.valid) - 1; i >= 0; i-- {
		v := &rs.valid[i]
		chain := m.oneChain(v)
		for _, c := range v.covers {
			beside := m.base
			if c.top != newest && c.top.extends(newest) {
				beside = newest // what lies beside that takes nothing from it
			}
			note(c.top, v.ballot.Rank, SurveyedAccept{Ballot: v.ballot, Liar: !chain && v.besides(c.top, beside)})
		}
	}
	for _, a := range rs.accepts {
		if a.Provisional && !a.node.sets {
			note(a.node, a.Ballot.Rank, SurveyedAccept{Provisional: true})
		}
	}
}

func (m *Machine) surveyVotes(rs *receipts, list List, config Ref, at func(*node) *surveyed) {
	for i, j := 0, 0; i < len(rs.votes); i = j {
		voted := make(map[*node]uint64)
		for ; j < len(rs.votes) && rs.votes[j].Ballot == rs.votes[i].Ballot; j++ {
			v := rs.votes[j]
			if !v.node.votable {
				continue
			}
			bit := uint64(1) << v.Voter
			for x := v.node; x != nil && x.governing() == config && voted[x]&bit == 0; x = x.up {
				voted[x] |= bit
			}
		}
		for n, who := range voted {
			// The most votes in one ballot; of equal ones those in the higher.
			if r := at(n); bits.OnesCount64(who) >= bits.OnesCount64(r.voters) {
				r.voters, r.ballot = who, rs.votes[i].Ballot
			}
		}
	}
}

// maxOff is how many accepts of a ballot, which contradict each other, a vote of
// their author is held against.
const maxOff = 64

// surveyLies finds who signed receipts that exclude each other: what findEvidence
// reports when the second of them comes, without the pairs.
func (m *Machine) surveyLies(s *Survey, rs *receipts, list List) {
	type lie struct {
		rank uint32
		kind EvidenceKind
	}
	told := make(map[lie]bool)
	found := func(kind EvidenceKind, rank uint32, b Ballot) {
		if !told[lie{rank, kind}] {
			told[lie{rank, kind}] = true
			s.Liars = append(s.Liars, Liar{Signer: cloneSequencer(list[rank]), Kind: kind, Ballot: b})
		}
	}
	var last Ballot
	for i, a := range rs.accepts {
		if a.Provisional || i > 0 && a.Ballot == last {
			continue
		}
		last = a.Ballot
		all := rs.acceptsIn(a.Ballot)
		top := all[0].node
		for _, x := range all {
			if x.node.depth > top.depth {
				top = x.node
			}
		}
		m.mark(top, 0)
		chain := true
		for _, x := range all {
			chain = chain && x.node.marked == m.marks
		}
		against := all[:min(len(all), maxOff)]
		if chain {
			against = []heldAccept{{node: top}}
		} else {
			found(EvidenceAccepts, a.Ballot.Rank, a.Ballot)
		}
		for _, v := range rs.votesIn(a.Ballot) {
			for _, x := range against {
				if v.Voter == a.Ballot.Rank && offChain(x.node, v.node) {
					found(EvidenceOwner, v.Voter, v.Ballot)
					break
				}
			}
		}
	}
	for i, j := 0, 0; i < len(rs.votes); i = j {
		top := make(map[uint32]*node)
		for ; j < len(rs.votes) && rs.votes[j].Ballot == rs.votes[i].Ballot; j++ {
			if v := rs.votes[j]; top[v.Voter] == nil || v.node.depth > top[v.Voter].depth {
				top[v.Voter] = v.node
			}
		}
		for _, v := range rs.votes[i:j] {
			if offChain(top[v.Voter], v.node) {
				found(EvidenceVotes, v.Voter, v.Ballot)
			}
		}
	}
	for i, p := range rs.promises { // in order of ballots, those of one promiser side by side
		if i > 0 && rs.promises[i-1].Ballot == p.Ballot && rs.promises[i-1].Promiser == p.Promiser {
			found(EvidencePromises, p.Promiser, p.Ballot)
		}
		for _, v := range rs.votes {
			if m.hides(p, v.Vote) {
				found(EvidenceHidden, p.Promiser, p.Ballot)
				break
			}
		}
	}
}

// asked finds the highest ballot that its owner asks for, above all that anything is
// accepted in.
func asked(rs *receipts, list List) *SurveyedBallot {
	for i := len(rs.promises) - 1; i >= 0; i-- { // in order of ballots
		p := rs.promises[i]
		if top, ok := rs.highest(); ok && !top.Less(p.Ballot) {
			return nil
		}
		if p.Promiser != p.Ballot.Rank || int(p.Ballot.Rank) >= len(list) {
			continue
		}
		out := &SurveyedBallot{Ballot: p.Ballot, Server: list[p.Ballot.Rank].Server, Quorum: list.Quorum()}
		var who uint64
		for _, o := range rs.promises {
			if o.Ballot == p.Ballot && int(o.Promiser) < len(list) {
				who |= 1 << o.Promiser
			}
		}
		out.Promises = bits.OnesCount64(who)
		return out
	}
	return nil
}

func cloneSequencer(s Sequencer) Sequencer {
	s.ReceiptKey = slices.Clone(s.ReceiptKey)
	return s
}

// surveyLeaves says how far each leaf of the head's tree is known to have come.
func (m *Machine) surveyLeaves(path map[*node]bool, seen []Seen) []SurveyedLeaf {
	table := m.head.table()
	type reach struct{ head, beside, fork *node }
	reached := make(map[uint32]*reach, len(table))
	fork := make(map[*node]*node, len(m.order)) // the deepest commit of the head below each
	chain := make(map[int]*node, len(path))
	for x := range path {
		chain[x.depth] = x
	}
	holds := func(n *node, index uint32, since int) {
		f, l := fork[n], table[index]
		if l == nil || l.since != since || since > f.depth {
			return // another member's leaf, or one of another branch
		}
		r := reached[index]
		if r == nil {
			r = new(reach)
			reached[index] = r
		}
		if r.head == nil || f.depth > r.head.depth {
			r.head = f
		}
		if f != n && (r.beside == nil || n.depth > r.beside.depth) {
			r.beside, r.fork = n, f
		}
	}
	for _, n := range m.order {
		if fork[n] = n; !path[n] {
			fork[n] = fork[n.up]
		}
		for i := range n.vouchers {
			holds(n, n.vouchers[i].leaf, n.vouchers[i].since)
		}
		// The author of an accepted commit holds its epoch, too.
		if n.c != nil && (n.acc.any() || n.isEra() && path[n]) {
			if l, ok := n.leaf(n.c.Author); ok && l.user == n.c.AuthorUser {
				holds(n, n.c.Author, l.since)
			}
		}
	}
	for _, w := range seen {
		if n := m.nodes[w.Ref]; n != nil {
			if l, ok := n.leaf(w.Leaf); ok {
				holds(n, w.Leaf, l.since)
			}
		}
	}
	out := make([]SurveyedLeaf, 0, len(table))
	for i, l := range table {
		d := SurveyedLeaf{Leaf: i, User: l.user, Since: m.base.epoch}
		if c := chain[l.since]; c != nil {
			d.Since = c.epoch
		}
		if r := reached[i]; r != nil {
			d.Reached = r.head.ref
			if r.beside != nil && r.fork.depth >= r.head.depth {
				d.Beside = r.beside.ref
			}
		}
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b SurveyedLeaf) int { return int(int64(a.Leaf) - int64(b.Leaf)) })
	return out
}
