package federation

import (
	"crypto/ed25519"
	"sort"
	"time"
)

// What this module does of its own accord. Every signature goes through sign,
// so that nothing leaves without a Save in front of it.

const (
	voteDelay   = 5 * time.Second  // a vote is posted at most this long after its commit became votable
	doubtDelay  = 5 * time.Second  // a commit in doubt holds up a sibling this long
	readyMaxAge = 10 * time.Minute // a ready receipt older than this does not count
	maxActs     = 256              // receipts signed in one Tick
	votedProofs = 24               // statements in one own vote
)

// Tick lets time pass: now is a monotonic clock's reading, with any origin. A
// module accepts, votes and opens rounds here.
func (m *Machine) Tick(now time.Duration) []Action {
	if now > m.now {
		m.now = now
	}
	m.runTimers()
	b := m.begin()
	if m.cfg.Self != nil && m.resumed && !m.retired {
		for i := 0; i < maxActs && !m.retired && m.sequence(b); i++ {
			m.runTimers()
		}
	}
	return m.finish(b)
}

// Next returns when Tick has something to do without a further event, and
// whether there is such a time.
func (m *Machine) Next() (time.Duration, bool) {
	if m.cfg.Self == nil || m.retired {
		return 0, false
	}
	var at time.Duration
	found := false
	add := func(t time.Duration) {
		if t > m.now && (!found || t < at) {
			at, found = t, true
		}
	}
	for _, n := range m.order {
		if n.votableT.on {
			add(n.votableT.since + m.voteDelay())
		}
		if n.doubtT.on {
			add(n.doubtT.since + doubtDelay)
		}
		if n.heldUpT.on {
			add(n.heldUpT.since + m.takeover())
		}
	}
	m.wakes(add)
	return at, found
}

func (m *Machine) voteDelay() time.Duration {
	switch d := m.cfg.VoteDelay; {
	case d < 0:
		return 0
	case d == 0 || d > voteDelay:
		return voteDelay
	default:
		return d
	}
}

// runTimers starts the clocks of what began and stops those of what ended.
func (m *Machine) runTimers() {
	m.runStall()
	if m.cfg.Self == nil {
		return
	}
	for _, n := range m.order {
		n.votableT.run(n.votable && !n.final, m.now)
		n.doubtT.run(n.doubt && m.siblingWaits(n), m.now)
		if !n.listChange() {
			continue
		}
		n.heldUpT.run(n.acc.any() && m.heldUp(n) && m.siblingInstead(n), m.now)
		if rs := m.lists[n.ref]; rs != nil {
			for _, r := range rs.readies {
				r.age.run(!n.final, m.now)
			}
		}
	}
}

// siblingWaits reports whether another commit that could be accepted waits
// beside n.
func (m *Machine) siblingWaits(n *node) bool {
	if n.up == nil {
		return false
	}
	for _, k := range n.up.kids {
		if k != n && m.acceptable(k) {
			return true
		}
	}
	return false
}

// siblingInstead reports whether a sibling waits that the owner would accept in
// place of a list change that is held up. One that had its turn, too, is none as
// long as n is acceptable: they would take turns for ever.
func (m *Machine) siblingInstead(n *node) bool {
	for _, k := range n.up.kids {
		if k != n && m.acceptable(k) && !(hadItsTurn(k) && m.acceptable(n)) {
			return true
		}
	}
	return false
}

// hadItsTurn reports whether n is a list change that was accepted and not vouched
// for: others go first.
func hadItsTurn(n *node) bool { return n.listChange() && n.acc.any() && !n.votable }

// serving returns the name of the list that is in force at the head.
func (m *Machine) serving() Ref {
	for n := m.head; n != nil; n = n.up {
		if n == m.base || n.isEra() || n.sets && m.active(n) || !n.sets && n.up == nil {
			return n.config
		}
	}
	return m.base.config
}

func (m *Machine) rankIn(config Ref) (uint32, bool) {
	list, _, ok := m.list(config)
	if !ok {
		return 0, false
	}
	for i, s := range list {
		if m.mine(s.ReceiptKey) {
			return uint32(i), true
		}
	}
	return 0, false
}

func (m *Machine) ownState(config Ref) *ownState {
	o := m.own[config]
	if o == nil {
		o = &ownState{open: true}
		m.own[config] = o
	}
	return o
}

// sequence does the next thing this module owes and reports whether it did
// anything.
func (m *Machine) sequence(b *batch) bool {
	if m.announceReady(b) {
		return true
	}
	config := m.serving()
	rank, ok := m.rankIn(config)
	if !ok {
		return false
	}
	list, base, _ := m.list(config)
	o := m.ownState(config)
	rs := m.receiptsOf(config)
	if m.answer(b, config, rank, o, rs) {
		return true
	}
	if o.promised.Rank == rank {
		if !o.open && m.openBallot(b, config, rank, list, base, o, rs) {
			return true
		}
		if o.open && (m.nextRound(b, config, rank, base, o, rs) || m.acceptNext(b, config, rank, base, o, rs)) {
			return true
		}
	}
	return m.vote(b, config, rank, base, o, rs, false) != nil ||
		m.takeOver(b, config, rank, list, o, rs) ||
		m.acceptProvisionally(b, config, rank, rs)
}

// tip returns this module's last accept in its ballot, or what the ballot
// starts from.
func (m *Machine) tip(base *node, o *ownState) *node {
	for _, r := range []Ref{o.accept, o.base} {
		if n, ok := m.nodes[r]; ok && !r.IsZero() {
			return n
		}
	}
	return base
}

// openBallot starts a ballot that q promises were gathered for: the first
// accept repeats the head, cut below doubt, if that extends the promises' base,
// else the base. The promises it was opened with are shown in all its accepts:
// another one that comes later could name another base.
func (m *Machine) openBallot(b *batch, config Ref, rank uint32, list List, base *node, o *ownState, rs *receipts) bool {
	var counted []*Promise
	if _, _, ok := m.ballotBase(rs, list, base, o.promised, m.promisesFor(rs, o.promised), nil, &counted, nil); !ok || !m.space(config, 2) {
		return false
	}
	if len(counted) > list.Quorum() {
		counted = counted[:list.Quorum()]
	}
	from, _, ok := m.ballotBase(rs, list, base, o.promised, counted, nil, nil, nil)
	if !ok {
		return false
	}
	target := from
	h := m.head
	if m.keeps(ruleCutDoubt) {
		h = m.cut(h)
	}
	if h.extends(from) && m.keeps(ruleReaccept) {
		for x := h; x != from; x = x.up {
			if x.governing() == config && (!x.listChange() || m.listReady(x) && (x.votable || !m.siblingWaits(x))) {
				target = x
				break
			}
		}
	}
	o.open, o.base, o.shown = true, from.ref, counted
	m.turn.asked, m.turn.unanswered = false, 0
	m.dirty = true
	if target == base || target == from && !m.keeps(ruleReaccept) {
		return true // the list's base needs no accept
	}
	m.signAccept(b, config, rank, o, rs, target)
	return true
}

// promisesFor returns one promise of each module for a ballot.
func (m *Machine) promisesFor(rs *receipts, ballot Ballot) []*Promise {
	var out []*Promise
	var seen uint64
	for _, p := range rs.promises {
		if p.Ballot == ballot && seen&(1<<p.Promiser) == 0 && len(out) < maxPromises {
			seen |= 1 << p.Promiser
			out = append(out, p)
		}
	}
	return out
}

// nextRound promises itself the next round if a commit on its chain has been
// in doubt for 5 s, or a list change unvouched or not ready for a takeover's wait,
// while a sibling waits. What the ballot had to extend no other round sheds.
func (m *Machine) nextRound(b *batch, config Ref, rank uint32, base *node, o *ownState, rs *receipts) bool {
	if !m.keeps(ruleNextRound) {
		return false
	}
	due := false
	for x := m.tip(base, o); x != nil && x != base && x.ref != o.base && x.governing() == config; x = x.up {
		due = due || x.doubtT.over(m.now, doubtDelay) || x.heldUpT.over(m.now, m.takeover())
	}
	if !due || !m.space(config, m.spare()) {
		return false
	}
	m.promise(b, config, rank, o, nextBallot(o, rs, rank))
	m.turn.asked = true
	return true
}

// acceptNext accepts one waiting commit on the last accept of the ballot.
func (m *Machine) acceptNext(b *batch, config Ref, rank uint32, base *node, o *ownState, rs *receipts) bool {
	tip := m.tip(base, o)
	if tip.config != config && m.keeps(ruleListStop) || !m.head.extends(tip) || m.cut(tip) != tip && m.keeps(ruleCutDoubt) ||
		!m.space(config, m.spare()) {
		return false
	}
	var due, held []*node
	for _, k := range tip.kids {
		switch {
		case !m.acceptable(k) || !k.c.OnlyRemoves && m.windowFull(tip):
		case hadItsTurn(k):
			held = append(held, k)
		default:
			due = append(due, k)
		}
	}
	if len(due) == 0 {
		due = held
	}
	if len(due) == 0 {
		return false
	}
	m.fairest(tip, due)
	if !m.keeps(rulePromisedValue) || !m.keeps(ruleDeepestTie) {
		due = due[len(due)-1:] // an owner that is bound to nothing may take any
	}
	m.signAccept(b, config, rank, o, rs, due[0])
	return true
}

// fairest sorts commits that wait on tip: that of the user whose last accepted
// commit is oldest comes first.
func (m *Machine) fairest(tip *node, due []*node) {
	last := make(map[string]int)
	for x := tip; x != nil && x.c != nil; x = x.up {
		if _, ok := last[x.c.AuthorUser]; !ok {
			last[x.c.AuthorUser] = x.depth
		}
	}
	age := func(n *node) int {
		if d, ok := last[n.c.AuthorUser]; ok {
			return d
		}
		return -1
	}
	sort.SliceStable(due, func(i, j int) bool {
		a, b := due[i], due[j]
		if age(a) != age(b) && m.keeps(ruleOldestUser) {
			return age(a) < age(b)
		}
		return a.seq < b.seq
	})
}

// windowFull reports whether the room's window of votable commits above the
// newest final is used up.
func (m *Machine) windowFull(tip *node) bool {
	n := 0
	for x := tip; x != nil && x != m.final && x.c != nil; x = x.up {
		if x.votable && !x.final {
			n++
		}
	}
	return n >= tip.policy.window() && m.keeps(ruleWindow)
}

// listReady reports whether a majority of the list that n would set posted
// ready receipts that are not too old.
func (m *Machine) listReady(n *node) bool {
	list := n.policy.Sequencers
	if len(list) == 0 {
		return false
	}
	count := 0
	if rs := m.lists[n.ref]; rs != nil {
		for _, r := range rs.readies {
			if r.age.on && m.now-r.age.since <= readyMaxAge {
				count++
			}
		}
	}
	return count >= list.Quorum()
}

// signAccept accepts n, with the owner's own vote on it if one is due.
func (m *Machine) signAccept(b *batch, config Ref, rank uint32, o *ownState, rs *receipts, n *node) {
	a := &Accept{Config: config, Ballot: o.promised, Ref: n.ref, Parent: n.c.Parent, Epoch: n.epoch, EventID: n.c.EventID}
	if o.promised.Round > 0 {
		a.Promises = o.shown
		if !m.keeps(rulePinnedPromises) {
			a.Promises = m.promisesFor(rs, o.promised)
		}
	}
	if !o.accept.IsZero() {
		_, base, _ := m.list(config)
		if v := m.vote(b, config, rank, base, o, rs, true); v != nil {
			a.Votes = []*Vote{v}
		}
	}
	o.accept = n.ref
	m.sign(b, a)
}

// vote votes for the deepest votable commit that an accept of the ballot
// covers, if it extends the last vote there. Riding on an accept it does not
// wait, and is not sent by itself.
func (m *Machine) vote(b *batch, config Ref, rank uint32, base *node, o *ownState, rs *receipts, riding bool) *Vote {
	var top, from *node
	ballot := o.promised
	if h, ok := rs.highest(); ok && !m.keeps(ruleHighestPromised) {
		ballot = h
	}
	for _, v := range rs.in(ballot) {
		if !v.read && (top == nil || v.top.depth > top.depth) {
			top, from = v.top, v.known
		}
	}
	// The head may be elsewhere: a list change that is not final ranks below every
	// other accepted commit, and becomes final by the votes it gets all the same.
	if top == nil || !top.extends(m.final) && !m.final.extends(top) || !m.space(config, 1) {
		return nil
	}
	if !m.keeps(ruleBallotBase) {
		from = base
	}
	if !top.extends(from) {
		return nil // a last vote that cannot be judged here set from aside: it may be a lie
	}
	// A later owner takes the vote in the highest ballot for all that was voted:
	// one below what this ballot had to extend would drop the rest.
	for !top.votable && m.keeps(ruleApplied) || top.listChange() && !top.final && !m.listReady(top) {
		if top == from || top.up == nil {
			return nil
		}
		top = top.up
	}
	if top == base || top.governing() != config || top.final {
		return nil
	}
	low := base
	if v := o.lastVote; v != nil {
		last, ok := m.nodes[v.Ref]
		if ok {
			if v.Ballot == ballot && (!top.extends(last) && m.keeps(ruleExtendVote) || top == last) {
				return nil
			}
			if v.Ballot == ballot && top.extends(last) {
				low = last // what a new ballot's votes rest on they show anew
			}
		}
	}
	if !riding {
		due := !top.votableT.on
		for x := top; x != nil && x != low; x = x.up {
			due = due || x.votableT.over(m.now, m.voteDelay())
		}
		if !due {
			return nil
		}
	}
	// What is final was shown with its proofs before; a vote shows the rest.
	for x := top; x != low; x = x.up {
		if x.final {
			low = x
			break
		}
	}
	// A vote has to fit into an event: with many proofs it goes in steps.
	proofs := m.proofs(low, top)
	for len(proofs) > votedProofs && top.up != low && top != from {
		top = top.up
		proofs = m.proofs(low, top)
	}
	if len(proofs) > maxProofs {
		return nil
	}
	v := &Vote{Config: config, Ballot: ballot, Voter: rank, Ref: top.ref, Proofs: proofs, EventID: top.c.EventID}
	o.lastVote = &LastVote{Ballot: v.Ballot, Ref: v.Ref, Proofs: v.Proofs, Epoch: top.epoch}
	m.signOnly(v)
	if !riding {
		m.sent(b, v)
	} else {
		m.keep(b, v)
	}
	return v
}

// signOnly gives a receipt its place in the chain and its signature.
func (m *Machine) signOnly(r Receipt) {
	link := Chain{Counter: m.counter + 1, Prev: m.prev}
	switch r := r.(type) {
	case *Accept:
		r.Chain = link
	case *Vote:
		r.Chain = link
	case *Promise:
		r.Chain = link
	case *Ready:
		r.Chain = link
	}
	s := Scope{Room: m.cfg.Room}
	if err := r.Sign(s, m.cfg.Self.Key); err != nil {
		panic("federation: internal: the receipt key was checked by mine")
	}
	m.counter, m.prev = link.Counter, r.Hash(s)
	if m.cfg.verified != nil {
		m.cfg.verified[m.prev] = string(m.cfg.Self.Key[ed25519.PrivateKeySize-ed25519.PublicKeySize:])
	}
	m.dirty = true
}

// keep records an own receipt.
func (m *Machine) keep(b *batch, r Receipt) {
	m.signing = r
	if _, _, err := m.put(r, b); err != nil {
		panic("federation: internal: own receipt refused: " + err.Error())
	}
	m.signing = nil
	m.evaluate()
}

func (m *Machine) sent(b *batch, r Receipt) {
	m.keep(b, r)
	b.sends = append(b.sends, Send{Receipt: r})
}

func (m *Machine) sign(b *batch, r Receipt) {
	m.signOnly(r)
	m.sent(b, r)
}
