package federation

import (
	"fmt"
	"slices"
	"sort"
)

// saved is the persisted form of a machine.
type saved struct {
	base     *node
	commits  []*node
	events   []Event // statements, then receipts, in a fixed order
	waiting  []waitingEvent
	own      []savedOwn
	counter  uint64
	prev     Ref
	retired  bool
	complete bool
	seq      uint64
	steps    []ProofStep
	fromRoot bool
	gone     []goneCommit
}

type goneCommit struct {
	ref   Ref
	epoch uint64
}

type savedOwn struct {
	config Ref
	ownState
}

// Version 2 added the promises that an own ballot was opened with, version 3
// the proof chain of what was dropped, version 4 the epochs of last votes, version
// 5 the proof's steps that change a policy, version 6 the dropped commits on
// branches.
const stateVersion = 6

func (c *codec) state(s *saved) {
	must(c, &s.base, c.base)
	c.rest(s)
}

// rest codes what may change while the base stays.
func (c *codec) rest(s *saved) {
	slice(c, &s.base.vouchers, func(v *voucher) { c.fields(&v.user, &v.leaf, &v.since, &v.applied, &v.commit) })
	slice(c, &s.commits, func(n **node) {
		must(c, n, func(n *node) {
			must(c, &n.c, c.commit)
			c.fields(&n.seq)
		})
	})
	slice(c, &s.events, c.event)
	slice(c, &s.waiting, func(w *waitingEvent) { c.fields(&w.on); c.event(&w.ev) })
	slice(c, &s.own, func(o *savedOwn) {
		c.fields(&o.config, &o.promised, &o.accept, &o.ownState.base, &o.open, &o.lastVote)
		if c.version >= 2 {
			c.fields(&o.shown)
		}
	})
	c.fields(&s.counter, &s.prev, &s.retired, &s.complete, &s.seq)
	if c.version >= 3 {
		slice(c, &s.steps, c.step)
		c.fields(&s.fromRoot)
	} else {
		s.fromRoot = s.complete
	}
	if c.version >= 6 {
		slice(c, &s.gone, func(g *goneCommit) { c.fields(&g.ref, &g.epoch) })
	}
}

type savedLeaf struct {
	index uint32
	leaf
}

// base codes the version and what never changes of a base.
func (c *codec) base(n *node) {
	version := uint32(stateVersion)
	c.u32(&version)
	if version < 1 || version > stateVersion {
		c.err = fmt.Errorf("federation: saved state has version %d, this program reads versions 1 to %d", version, stateVersion)
		return
	}
	c.version = version
	c.fields(&n.ref, &n.depth, &n.epoch, &n.group, &n.suite)
	must(c, &n.policy, c.policy)
	c.fields(&n.config, &n.sets, &n.eraNo)
	var ls []savedLeaf
	if !c.reading {
		for i, l := range n.changes {
			ls = append(ls, savedLeaf{i, *l})
		}
		sort.Slice(ls, func(i, j int) bool { return ls[i].index < ls[j].index })
	}
	slice(c, &ls, func(l *savedLeaf) { c.fields(&l.index, &l.user, &l.key, &l.since) })
	if c.reading {
		n.changes, n.whole, n.leaves, n.eraBase = make(map[uint32]*leaf, len(ls)), true, len(ls), n
		for i := range ls {
			n.changes[ls[i].index] = &ls[i].leaf
		}
	}
}

// MarshalBinary returns the machine's state; equal states give equal bytes. It
// holds no key.
func (m *Machine) MarshalBinary() ([]byte, error) {
	base, rest, err := m.MarshalParts()
	return slices.Concat(base, rest), err
}

// MarshalParts returns what MarshalBinary does in two parts, to be joined again for
// [Unmarshal]. The first has the leaves of the group in it, and changes only when
// the commit does at which the machine begins: once in Limits.Keep final commits. The
// caller does not change it.
func (m *Machine) MarshalParts() (base, rest []byte, err error) {
	if m.savedOf != m.base {
		c := &codec{}
		c.base(m.base)
		if c.err != nil {
			return nil, nil, c.err
		}
		m.savedBase, m.savedOf = slices.Clip(c.buf), m.base
	}
	s := saved{
		base: m.base, commits: m.order[1:], waiting: m.waiting, counter: m.counter, prev: m.prev,
		retired: m.retired, complete: m.complete, seq: m.seq, steps: m.proofSteps, fromRoot: m.fromRoot,
	}
	for _, n := range m.order[1:] {
		for _, v := range n.vouchers {
			if v.applied != nil {
				s.events = append(s.events, v.applied)
			}
		}
		if n.reject != nil {
			s.events = append(s.events, n.reject)
		}
	}
	for _, config := range sortedRefs(m.lists) {
		rs := m.lists[config]
		for _, a := range rs.accepts {
			s.events = append(s.events, a.Accept)
		}
		for _, v := range rs.votes {
			s.events = append(s.events, v.Vote)
		}
		for _, p := range rs.promises {
			s.events = append(s.events, p)
		}
		for _, r := range rs.readies {
			s.events = append(s.events, r.Ready)
		}
	}
	for _, config := range sortedRefs(m.own) {
		s.own = append(s.own, savedOwn{config, *m.own[config]})
	}
	for _, r := range sortedRefs(m.gone) {
		s.gone = append(s.gone, goneCommit{r, m.gone[r]})
	}
	c := &codec{version: stateVersion, buf: make([]byte, 0, m.saved+m.saved/8)}
	c.rest(&s)
	m.saved = len(c.buf)
	return m.savedBase, c.buf, c.err
}

func sortedRefs[T any](m map[Ref]T) []Ref {
	out := make([]Ref, 0, len(m))
	for r := range m {
		out = append(out, r)
	}
	sort.Slice(out, func(i, j int) bool { return less(out[i], out[j]) })
	return out
}

// Unmarshal restores a machine that MarshalBinary saved. A module's machine
// signs nothing until it is given Resume. Receipts and statements were checked
// before they were saved; they are not checked again.
func Unmarshal(cfg Config, data []byte) (*Machine, error) {
	c := &codec{reading: true, buf: data}
	var s saved
	c.state(&s)
	if c.err == nil && len(c.buf) != 0 {
		c.fail()
	}
	if c.err != nil {
		return nil, c.err
	}
	m := &Machine{cfg: cfg}
	m.init()
	if s.base.ref.IsZero() || len(s.base.changes) == 0 || s.base.config.IsZero() || m.checkPolicy(s.base.ref, s.base.policy) != nil {
		return nil, errState
	}
	m.setBase(s.base)
	m.complete, m.counter, m.prev, m.retired, m.seq = s.complete, s.counter, s.prev, s.retired, s.seq
	m.proofSteps, m.fromRoot = s.steps, s.fromRoot
	for _, g := range s.gone {
		m.gone[g.ref] = g.epoch
	}
	for _, raw := range s.commits {
		if err := m.checkCommitForm(raw.c); err != nil {
			return nil, fmt.Errorf("%w: %v", errState, err)
		}
		up, ok := m.nodes[raw.c.Parent]
		if _, twice := m.nodes[raw.c.Ref]; !ok || twice {
			return nil, errState
		}
		n, err := m.newNode(up, raw.c)
		if err != nil {
			return nil, fmt.Errorf("%w: %v", errState, err)
		}
		n.seq = raw.seq
		m.link(n)
		if !raw.c.External && raw.c.Founding == nil {
			l, _ := up.leaf(raw.c.Author)
			up.vouch(voucher{user: l.user, leaf: raw.c.Author, since: l.since, commit: raw.c.Ref})
		}
	}
	for _, ev := range s.events {
		if err := m.restore(ev); err != nil {
			return nil, err
		}
	}
	if len(s.waiting) > 4*m.cfg.Limits.Waiting {
		return nil, errState
	}
	m.waiting = s.waiting
	for i, w := range m.waiting {
		m.waiting[i].size = sizeOf(w.ev)
		m.waiting[i].listed, _ = m.signedByListed(w.ev)
	}
	for i := range s.own {
		o := s.own[i].ownState
		m.own[s.own[i].config] = &o
	}
	m.evaluate()
	m.told()
	return m, nil
}

// restore puts back an event that was checked before it was saved.
func (m *Machine) restore(ev Event) error {
	var r Receipt
	var list List
	var signer uint32
	held := func(config, ref Ref) (*receipts, *node, bool) {
		n, ok := m.nodes[ref]
		l, _, ok2 := m.list(config)
		list = l
		return m.receiptsOf(config), n, ok && ok2 && n.governing() == config
	}
	ok := true
	switch ev := ev.(type) {
	case *Applied:
		n, held := m.nodes[ev.Ref]
		if !held {
			return errState
		}
		l, occupied := n.leaf(ev.Leaf)
		if !occupied {
			return errState
		}
		n.vouch(voucher{user: l.user, leaf: ev.Leaf, since: l.since, applied: ev})
		return nil
	case *Rejected:
		n, held := m.nodes[ev.Ref]
		if !held || n.up == nil {
			return errState
		}
		n.reject = ev
		return nil
	case *Accept:
		rs, n, good := held(ev.Config, ev.Ref)
		rs.accepts = append(rs.accepts, heldAccept{ev, n})
		ok = good
		r, signer = ev, ev.Ballot.Rank
	case *Vote:
		rs, n, good := held(ev.Config, ev.Ref)
		rs.votes = append(rs.votes, heldVote{ev, n})
		ok = good
		r, signer = ev, ev.Voter
	case *Promise:
		list, _, ok = m.list(ev.Config)
		rs := m.receiptsOf(ev.Config)
		rs.promises = append(rs.promises, ev)
		if ev.LastVote != nil && m.nodes[ev.LastVote.Ref] == nil {
			rs.fresh = append(rs.fresh, ev) // findEvidence looks again when the commit comes
		}
		r, signer = ev, ev.Promiser
	case *Ready:
		list, _, ok = m.list(ev.Config)
		rs := m.receiptsOf(ev.Config)
		rs.readies = append(rs.readies, &heldReady{Ready: ev})
		r, signer = ev, ev.Member
	default:
		return errState
	}
	if !ok || int64(signer) >= int64(len(list)) {
		return errState
	}
	key := string(list[signer].ReceiptKey)
	c := m.chains[key]
	if c == nil {
		c = &chainMemory{hashes: make(map[uint64]Ref)}
		m.chains[key] = c
	}
	c.note(m.linkOf(r))
	return nil
}

// compact drops what lies far below the newest final, and branches that left
// the head there, once twice Limits.Keep commits have gathered.
func (m *Machine) compact() []Ref {
	keep := m.cfg.Limits.Keep
	if m.final.depth-m.base.depth < 2*keep {
		return nil
	}
	to := m.final
	for to.depth > m.final.depth-keep {
		to = to.up
	}
	if to.isEra() || !to.final {
		return nil // a base must be an ordinary final commit; the next step will do
	}
	m.keepProofs(to)
	past := m.pastVotes()
	table, list := to.table(), to.config
	kept := map[Ref]bool{list: true}
	var forgotten []Ref
	var lost []*node
	order := m.order[:0:0]
	for _, n := range m.order {
		if n.extends(to) {
			order = append(order, n)
			kept[n.ref] = true
			if n.sets {
				kept[n.config] = true
			}
			if n.eraBase.depth <= to.depth {
				n.eraBase = to
			}
		} else {
			forgotten = append(forgotten, n.ref)
			lost = append(lost, n)
			delete(m.nodes, n.ref)
		}
	}
	m.order = order
	to.up, to.c, to.reject = nil, nil, nil
	to.changes, to.whole, to.eraBase = table, true, to
	to.sets = to.config == to.ref
	m.base, m.complete, m.refounded = to, false, false
	for r, epoch := range m.gone {
		if epoch == unplaced { // as long as a last vote names it, it comes back below
			delete(m.gone, r)
		}
	}
	for _, n := range lost {
		m.drop(n.ref, n.epoch)
	}
	for _, w := range slices.Clone(m.waiting) {
		if c, ok := w.ev.(*Commit); ok && m.beside(c.Parent, c.Epoch, c.Founding != nil) {
			m.drop(c.Ref, c.Epoch)
		}
	}
	for _, v := range past { // in a group that was founded anew their epochs may lie above the base's
		if !m.dropped(v.Ref, v.Epoch) && len(m.gone) < maxGone {
			m.gone[v.Ref] = unplaced
		}
	}
	for r, epoch := range m.gone { // not what is unplaced
		if m.below(epoch) {
			delete(m.gone, r)
		}
	}
	for _, n := range m.order[1:] {
		m.refounded = m.refounded || n.c.Founding != nil
	}
	if m.era.depth <= to.depth {
		m.era = to
	}
	m.dropReceipts(kept)
	m.listsWent()
	m.evaluate()
	sort.Slice(forgotten, func(i, j int) bool { return less(forgotten[i], forgotten[j]) })
	return forgotten
}

// pastVotes returns the last votes, in promises that are held, for what lies below
// or beside what is kept.
func (m *Machine) pastVotes() []*LastVote {
	var out []*LastVote
	note := func(ps []*Promise) {
		for _, p := range ps {
			if v := p.LastVote; v != nil && m.nodes[v.Ref] == nil && m.dropped(v.Ref, v.Epoch) {
				out = append(out, v)
			}
		}
	}
	for _, config := range sortedRefs(m.lists) {
		rs := m.lists[config]
		note(rs.promises)
		for _, a := range rs.accepts {
			note(a.Promises)
		}
	}
	return out
}

// dropReceipts forgets receipts about commits that are not held any more, and
// promises that no accept still carries.
func (m *Machine) dropReceipts(kept map[Ref]bool) {
	for config, rs := range m.lists {
		if !kept[config] {
			delete(m.lists, config)
			continue
		}
		accepts, votes := rs.accepts[:0:0], rs.votes[:0:0]
		for _, a := range rs.accepts {
			if kept[a.Ref] && a.Ref != m.base.ref {
				accepts = append(accepts, a)
			}
		}
		for _, v := range rs.votes {
			if !kept[v.Ref] || v.Ref == m.base.ref {
				continue
			}
			votes = append(votes, v)
		}
		live := make(map[Ballot]bool)
		for _, a := range accepts {
			live[a.Ballot] = true
		}
		if o := m.own[config]; o != nil {
			live[o.promised] = true
		}
		promises := rs.promises[:0:0]
		for _, p := range rs.promises {
			if live[p.Ballot] {
				promises = append(promises, p)
			}
		}
		rs.accepts, rs.votes, rs.promises, rs.fresh = accepts, votes, promises, nil
	}
	for config := range m.own {
		if !kept[config] {
			delete(m.own, config)
		}
	}
	rest := m.waiting[:0]
	for _, w := range m.waiting {
		if c, ok := w.ev.(*Commit); !ok || !m.TooOld(c.Epoch) {
			rest = append(rest, w)
		}
	}
	clear(m.waiting[len(rest):])
	m.waiting = rest
}
