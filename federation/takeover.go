package federation

import "time"

const (
	maxBackOff   = 4       // waits double at most this often: 16 ×
	maxRoundJump = 1 << 20 // a request this many rounds ahead is not answered: rounds must not run out
	provisional  = 2       // own promises in sequence that q did not answer, before provisional accepts
	maxReadyWait = 8 * time.Hour
)

// turn is this process' view of whose turn it is under a list. A restart starts
// it again.
type turn struct {
	mark       progress
	running    bool
	since      time.Duration
	asked      bool // an own promise stands and q have not answered
	unanswered int  // own promises in sequence that q did not answer
	held       int  // waits in sequence in which no ballot would have helped
	rounds     int  // own promises since the newest final
	backOff    int  // how often the wait doubled; a new final sets it back
}

// progress is what restarts the wait.
type progress struct {
	config, final, accepted Ref
	promised                Ballot
}

// answer promises the highest ballot above the own promise that its owner asks
// for by a promise of its own. Each ballot is answered once.
func (m *Machine) answer(b *batch, config Ref, rank uint32, o *ownState, rs *receipts) bool {
	for i := len(rs.promises) - 1; i >= 0; i-- { // sorted by ballot
		p := rs.promises[i]
		if !o.promised.Less(p.Ballot) {
			return false
		}
		if p.Promiser != p.Ballot.Rank || p.Promiser == rank || p.Ballot.Round > o.promised.Round+maxRoundJump {
			continue
		}
		if !m.space(config, 1) {
			return false
		}
		m.promise(b, config, rank, o, p.Ballot)
		return true
	}
	return false
}

// promise gives up every lower ballot and reports the last vote.
func (m *Machine) promise(b *batch, config Ref, rank uint32, o *ownState, ballot Ballot) {
	p := &Promise{Config: config, Ballot: ballot, Promiser: rank, LastVote: o.lastVote}
	o.promised, o.accept, o.base, o.open, o.shown = ballot, Ref{}, Ref{}, ballot.Rank != rank, nil
	m.sign(b, p)
}

// highest returns the highest ballot in which a valid accept is held.
func (rs *receipts) highest() (Ballot, bool) {
	if len(rs.valid) == 0 {
		return Ballot{}, false
	}
	return rs.valid[len(rs.valid)-1].ballot, true
}

// nextBallot returns the lowest ballot of an own rank above all that is
// promised or accepted in.
func nextBallot(o *ownState, rs *receipts, rank uint32) Ballot {
	top := o.promised
	if h, ok := rs.highest(); ok && top.Less(h) {
		top = h
	}
	if top.Round > 0 && top.Rank < rank {
		return Ballot{Round: top.Round, Rank: rank}
	}
	return Ballot{Round: top.Round + 1, Rank: rank}
}

// blocked returns the lowest commit on the head, above the newest final, that
// holds up its siblings: one in doubt, or a list change that nobody vouches for,
// or whose sequencers are not ready any more.
func (m *Machine) blocked(config Ref) *node {
	var out *node
	for x := m.head; x != nil && x != m.final && x.up != nil; x = x.up {
		if x.governing() == config && (x.doubt || m.heldUp(x)) {
			out = x
		}
	}
	return out
}

// heldUp reports whether n is a list change that cannot be voted for.
func (m *Machine) heldUp(n *node) bool {
	return n.listChange() && !n.final && (!n.votable || !m.listReady(n))
}

// acceptable reports whether this module would accept n if its turn came.
func (m *Machine) acceptable(n *node) bool {
	return !n.isEra() && !n.doubt && n.c.Barred == "" && (!n.listChange() || m.listReady(n))
}

// stalled reports whether a commit waits, or a votable one is not final. With
// ours set, what no ballot helps does not count: a list change whose sequencers
// are not ready any more, and all else once a ballot is bound to that.
func (m *Machine) stalled(config Ref, ours bool) bool {
	if ours {
		if m.boundUnready(config) {
			return false
		}
		if n := m.boundTo(config); n != nil && !m.head.extends(n) {
			return !n.final
		}
	}
	for x := m.head; x != nil && x != m.final; x = x.up {
		if x.governing() == config && x.votable && !x.final && !(ours && x.listChange() && !m.listReady(x)) {
			return true
		}
	}
	at, held := m.head, m.blocked(config)
	if held != nil {
		at = held.up
	}
	if at.config != config {
		return false
	}
	top, _ := m.receiptsOf(config).highest()
	for _, k := range at.kids {
		switch {
		case k == held || !m.acceptable(k):
		case !k.acc.ballot:
			return true
		case k.acc.highest.Less(top):
			// Beside what holds it up, one that a lower ballot accepted waits as well:
			// if the owner is gone, only a takeover brings it back.
			if held != nil {
				return true
			}
		case k.listChange() && k.votable && !k.final:
			return true // the head may be its sibling
		}
	}
	return false
}

// boundTo returns what the highest ballot accepted in had to extend, nil if there
// is none.
func (m *Machine) boundTo(config Ref) *node {
	rs := m.lists[config]
	if rs == nil || !m.keeps(ruleBallotBase) {
		return nil
	}
	top, _ := rs.highest()
	var out *node
	for _, v := range rs.in(top) {
		if out == nil || v.from.depth > out.depth {
			out = v.from
		}
	}
	return out
}

// boundUnready reports whether the highest ballot accepted in had to extend a list
// change that is not ready: only its own sequencers, or an era, help.
func (m *Machine) boundUnready(config Ref) bool {
	for x := m.boundTo(config); x != nil && x != m.final && x.governing() == config; x = x.up {
		if x.listChange() && !x.final && !m.listReady(x) {
			return true
		}
	}
	return false
}

// takeoverWait is the wait of a rank after the owner of the current ballot.
func (m *Machine) takeoverWait(list List, policy *Policy, rank uint32, o *ownState) time.Duration {
	d := policy.Takeover
	if d <= 0 {
		d = DefaultTakeover
	}
	n := len(list)
	turns := (int(rank) - int(o.promised.Rank) + n) % n
	if turns == 0 {
		turns = n
	}
	return d * time.Duration(turns) << m.turn.backOff
}

// takeOver asks for a higher ballot of its own when nothing moved for its wait.
// The promise is the request.
func (m *Machine) takeOver(b *batch, config Ref, rank uint32, list List, o *ownState, rs *receipts) bool {
	if !m.keeps(ruleTakeover) || len(list) == 1 {
		return false // one sequencer answers itself
	}
	t := &m.turn
	mark := progress{config: config, final: m.final.ref, promised: o.promised}
	if h, ok := rs.highest(); ok {
		var top *node
		for _, v := range rs.in(h) {
			if top == nil || v.top.depth > top.depth {
				top = v.top
			}
		}
		mark.accepted = top.ref
	}
	if mark.config != t.mark.config || mark.final != t.mark.final {
		*t = turn{}
	}
	if mark.accepted != t.mark.accepted && t.running {
		t.asked, t.unanswered = false, 0
	}
	if o.promised.Rank != rank && len(m.promisesFor(rs, o.promised)) >= list.Quorum() {
		// A majority is there: it answered somebody, and no request of this module
		// stands any more. If that owner is gone, all who asked in vain ask again.
		t.asked, t.unanswered = false, 0
	}
	unready := m.boundUnready(config)
	if !unready {
		t.held = 0
	}
	if !m.stalled(config, !unready) {
		t.running, t.mark = false, mark
		return false
	}
	if !t.running || mark != t.mark {
		t.running, t.since, t.mark = true, m.now, mark
		return false
	}
	if t.unanswered >= provisional && m.keeps(ruleAskTwice) {
		return false // the request stands; who comes back answers it or asks itself
	}
	if m.now-t.since < m.takeoverWait(list, m.head.policy, rank, o) || !m.space(config, m.spare()) {
		return false
	}
	if unready { // no ballot helps: it asks nobody
		t.held, t.since = min(t.held+1, provisional), m.now
		return false
	}
	if t.rounds > 0 { // answered or not, the last own round made nothing final
		t.backOff = min(t.backOff+1, maxBackOff)
	}
	if t.asked {
		t.unanswered++
		if t.unanswered >= provisional && m.keeps(ruleAskTwice) {
			return false
		}
	}
	m.promise(b, config, rank, o, nextBallot(o, rs, rank))
	t.asked, t.since, t.mark.promised = true, m.now, o.promised
	t.rounds++
	return true
}

// acceptProvisionally goes on without a majority once two own promises in
// sequence were not answered, or no ballot would have helped for two waits:
// usable, never final. It accepts beside a list change that is not final.
func (m *Machine) acceptProvisionally(b *batch, config Ref, rank uint32, rs *receipts) bool {
	if !m.keeps(ruleProvisional) || !m.Provisional() {
		return false
	}
	at := m.cut(m.head)
	for x := at; x != m.final && x.up != nil; x = x.up {
		if x.listChange() && !x.final {
			at = x.up
		}
	}
	if at.config != config || at.policy.OnPartition == OnPartitionFreeze || !m.space(config, m.spare()) {
		return false
	}
	var due []*node
	for _, k := range at.kids {
		if k.acc.any() && !k.doubt && (!k.listChange() || k.final) {
			return false // it stands already, here or where the head is
		}
		if k.acc.any() || !m.acceptable(k) || k.sets || !k.c.OnlyRemoves && m.windowFull(at) {
			continue
		}
		due = append(due, k)
	}
	if len(due) == 0 {
		return false
	}
	m.fairest(at, due)
	n := due[0]
	m.sign(b, &Accept{Config: config, Ballot: Ballot{Rank: rank}, Provisional: true, Ref: n.ref, Parent: n.c.Parent,
		Epoch: n.epoch, EventID: n.c.EventID})
	return true
}

// announceReady says that this module would serve under a list that waits to be
// set, and says so again before it is forgotten. The owner of the current ballot
// speaks only when its word is the one that is missing.
func (m *Machine) announceReady(b *batch) bool {
	config := m.serving()
	for _, n := range m.order {
		if !n.listChange() || n.final || n.governing() != config || n.c.Barred != "" || n.doubt || !m.candidate(n) {
			continue
		}
		rank, ok := m.rankIn(n.ref)
		if !ok || !m.space(n.ref, 1) {
			continue
		}
		var own *heldReady
		others, newest := 0, time.Duration(0)
		for _, r := range m.receiptsOf(n.ref).readies {
			switch age := m.now - r.age.since; {
			case !r.age.on:
			case r.Member == rank:
				own = r
			case age <= readyMaxAge:
				others++
				newest = max(newest, r.age.since)
			}
		}
		said := m.readied[n.ref]
		if own != nil {
			age := m.now - own.age.since
			if age < readyMaxAge/2 {
				continue
			}
			// It answers another who says so after that, and an owner who accepts the
			// change anew. Unasked they say so ever more rarely.
			if !(n.acc.ballot && said.ballot.Less(n.acc.highest)) {
				if newest-own.age.since < readyMaxAge/2 && age < said.wait() {
					continue
				}
				said.count++
			}
		}
		if old, ok := m.rankIn(config); ok && m.ownState(config).promised.Rank == old {
			if q := n.policy.Sequencers.Quorum(); others >= q || others+1 < q {
				continue
			}
		}
		said.ballot = n.acc.highest
		m.readied[n.ref] = said
		m.sign(b, &Ready{Config: n.ref, Member: rank})
		return true
	}
	return false
}

// readied is what this process said of its own for a list change.
type readied struct {
	count  int    // ready receipts after the first that no accept asked for
	ballot Ballot // in which the change was accepted then
}

// wait is how long after its last ready receipt a module says so again unasked.
func (r readied) wait() time.Duration { return min(readyMaxAge/2<<min(r.count, 10), maxReadyWait) }

// candidate reports whether a list change is accepted, or could be next. An
// accepted one may have been voted for, and binds, though a sibling has the head.
func (m *Machine) candidate(n *node) bool {
	return n.up.extends(m.final) && m.head.extends(n.up) && (n.acc.any() || n.up == m.head || n.up == m.cut(m.head))
}

// wakes calls f with the times at which a wait of this module ends.
func (m *Machine) wakes(f func(time.Duration)) {
	config := m.serving()
	rank, ok := m.rankIn(config)
	list, _, _ := m.list(config)
	if ok && m.turn.running && len(list) > 1 && !m.Provisional() {
		f(m.turn.since + m.takeoverWait(list, m.head.policy, rank, m.ownState(config)))
	}
	for _, n := range m.order {
		if n.listChange() && !n.final {
			for _, r := range m.receiptsOf(n.ref).readies {
				if said := m.readied[n.ref]; r.age.on && m.mine(n.policy.Sequencers[r.Member].ReceiptKey) {
					f(r.age.since + said.wait())
				}
			}
		}
	}
}

func (m *Machine) takeover() time.Duration {
	if d := m.head.policy.Takeover; d > 0 {
		return d
	}
	return DefaultTakeover
}

// Provisional reports whether this module goes on without a majority.
func (m *Machine) Provisional() bool {
	return m.turn.unanswered >= provisional || m.turn.held >= provisional
}

// Stalled returns for how long, on this machine's clock, a commit has been
// waiting or votable without a new final.
func (m *Machine) Stalled() time.Duration {
	if !m.stall.on {
		return 0
	}
	return m.now - m.stall.since
}

// HeirsDue reports whether the condition of an heirs' era holds on this
// machine's clock: nothing became final for heirs_wait although something waits.
func (m *Machine) HeirsDue() bool {
	d := m.final.policy.HeirsWait
	if d <= 0 {
		d = DefaultHeirsWait
	}
	return m.stall.over(m.now, d)
}

// runStall keeps the clock of HeirsDue, in clients too.
func (m *Machine) runStall() {
	if m.stallFinal != m.final.ref {
		m.stall, m.stallFinal = timer{}, m.final.ref
	}
	m.stall.run(m.stalled(m.serving(), false), m.now)
}

// UsableHead returns the newest commit on the head in whose epoch a client may
// send: not above a list change that is not final, not beyond the room's window,
// and with on_partition freeze only what is final.
func (m *Machine) UsableHead() Ref {
	var path []*node
	for x := m.head; x != m.final && x != nil; x = x.up {
		path = append(path, x)
	}
	out, votable := m.final, 0
	for i := len(path) - 1; i >= 0; i-- {
		n := path[i]
		if n.listChange() && !n.final || n.up.policy.OnPartition == OnPartitionFreeze && !n.final {
			break
		}
		if n.votable && !n.final && !n.c.OnlyRemoves {
			if votable++; votable > n.up.policy.window() {
				break
			}
		}
		out = n
	}
	return out.ref
}
