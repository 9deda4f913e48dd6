package federation

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
	"time"
)

// codec writes or reads the persisted state; one function per type does both,
// so that they cannot disagree.
type codec struct {
	reading bool
	version uint32
	buf     []byte
	err     error
}

var errState = errors.New("federation: saved state is damaged; restore a backup or rebuild the room")

func (c *codec) fail() {
	if c.err == nil {
		c.err = errState
	}
}

func (c *codec) take(n int) []byte {
	if c.err != nil || n < 0 || n > len(c.buf) {
		c.fail()
		return nil
	}
	out := c.buf[:n]
	c.buf = c.buf[n:]
	return out
}

func (c *codec) u64(v *uint64) {
	if !c.reading {
		c.buf = binary.BigEndian.AppendUint64(c.buf, *v)
	} else if b := c.take(8); b != nil {
		*v = binary.BigEndian.Uint64(b)
	}
}

func (c *codec) u32(v *uint32) {
	if !c.reading {
		c.buf = binary.BigEndian.AppendUint32(c.buf, *v)
	} else if b := c.take(4); b != nil {
		*v = binary.BigEndian.Uint32(b)
	}
}

func (c *codec) u16(v *uint16) {
	x := uint32(*v)
	c.u32(&x)
	if x > 0xffff {
		c.fail()
	}
	*v = uint16(x)
}

func (c *codec) int(v *int) {
	x := uint64(*v)
	c.u64(&x)
	if x > 1<<62 {
		c.fail()
		return
	}
	*v = int(x)
}

func (c *codec) bool(v *bool) {
	var x uint32
	if *v {
		x = 1
	}
	c.u32(&x)
	if x > 1 {
		c.fail()
	}
	*v = x == 1
}

func (c *codec) ref(r *Ref) {
	if !c.reading {
		c.buf = append(c.buf, r[:]...)
	} else if b := c.take(len(r)); b != nil {
		copy(r[:], b)
	}
}

func (c *codec) bytes(v *[]byte) {
	n := uint32(len(*v))
	c.u32(&n)
	if !c.reading {
		c.buf = append(c.buf, *v...)
	} else if b := c.take(int(n)); b != nil && n > 0 {
		*v = bytes.Clone(b)
	}
}

func (c *codec) str(v *string) {
	b := []byte(*v)
	c.bytes(&b)
	if c.reading {
		*v = string(b)
	}
}

// count codes a length. Each element takes at least four bytes, which bounds
// what a damaged length can allocate.
func (c *codec) count(n int) int {
	x := uint32(n)
	c.u32(&x)
	if c.reading && int64(x)*4 > int64(len(c.buf)) {
		c.fail()
		return 0
	}
	return int(x)
}

func slice[T any](c *codec, s *[]T, f func(*T)) {
	n := c.count(len(*s))
	if c.reading {
		*s = nil
		if n > 0 {
			*s = make([]T, n)
		}
	}
	for i := 0; i < len(*s) && c.err == nil; i++ {
		f(&(*s)[i])
	}
}

func pointer[T any](c *codec, p **T, f func(*T)) {
	has := *p != nil
	c.bool(&has)
	if !has || c.err != nil {
		return
	}
	if c.reading {
		*p = new(T)
	}
	f(*p)
}

func must[T any](c *codec, p **T, f func(*T)) {
	if c.reading {
		*p = new(T)
	}
	f(*p)
}

func (c *codec) ballot(b *Ballot) { c.u64(&b.Round); c.u32(&b.Rank) }
func (c *codec) link(l *Chain)    { c.u64(&l.Counter); c.ref(&l.Prev) }

func (c *codec) duration(d *time.Duration) {
	x := uint64(*d)
	c.u64(&x)
	*d = time.Duration(x)
}

func (c *codec) list(l *List) {
	s := []Sequencer(*l)
	slice(c, &s, func(s *Sequencer) { c.str(&s.Server); c.str(&s.User); c.bytes(&s.ReceiptKey) })
	*l = s
}

func (c *codec) policy(p *Policy) {
	c.list(&p.Sequencers)
	slice(c, &p.Admins, func(s *string) { c.str(s) })
	slice(c, &p.Heirs, func(h *Heir) { c.str(&h.User); c.str(&h.Server) })
	c.duration(&p.Takeover)
	c.duration(&p.HeirsWait)
	c.int(&p.Window)
	x := uint16(p.OnPartition)
	c.u16(&x)
	p.OnPartition = OnPartition(x)
}

func (c *codec) leaf(l *Leaf) { c.u32(&l.Index); c.str(&l.User); c.bytes(&l.Key) }

func (c *codec) commit(x *Commit) {
	c.ref(&x.Ref)
	c.ref(&x.Parent)
	c.str(&x.EventID)
	c.str(&x.ParentEvent)
	c.u64(&x.Epoch)
	c.u32(&x.Author)
	c.str(&x.AuthorUser)
	c.bool(&x.External)
	slice(c, &x.Removed, func(v *uint32) { c.u32(v) })
	slice(c, &x.Updated, c.leaf)
	slice(c, &x.Added, c.leaf)
	pointer(c, &x.Policy, c.policy)
	pointer(c, &x.Era, func(e *Era) {
		c.u64(&e.Number)
		c.bool(&e.ByHeirs)
		slice(c, &e.Signers, func(s *string) { c.str(s) })
	})
	pointer(c, &x.Founding, func(f *Founding) {
		c.bytes(&f.GroupID)
		c.u16(&f.Suite)
		slice(c, &f.Leaves, c.leaf)
	})
	c.bool(&x.OnlyRemoves)
	c.str(&x.Barred)
}

func (c *codec) applied(a *Applied) {
	c.ref(&a.Ref)
	c.u32(&a.Leaf)
	h := Ref(a.Hash)
	c.ref(&h)
	a.Hash = h
	c.bytes(&a.Signature)
	c.str(&a.EventID)
}

func (c *codec) rejected(r *Rejected) {
	c.ref(&r.Ref)
	c.u32(&r.Leaf)
	c.str(&r.Rule)
	c.bytes(&r.Signature)
	c.str(&r.EventID)
}

func (c *codec) proof(p *Proof) { pointer(c, &p.Applied, c.applied); c.ref(&p.Commit) }

func (c *codec) vote(v *Vote) {
	c.ref(&v.Config)
	c.ballot(&v.Ballot)
	c.u32(&v.Voter)
	c.ref(&v.Ref)
	slice(c, &v.Proofs, c.proof)
	c.link(&v.Chain)
	c.bytes(&v.Signature)
	c.str(&v.EventID)
}

func (c *codec) lastVote(v *LastVote) {
	c.ballot(&v.Ballot)
	c.ref(&v.Ref)
	slice(c, &v.Proofs, c.proof)
	if c.version >= 4 {
		c.u64(&v.Epoch)
	}
}

func (c *codec) promise(p *Promise) {
	c.ref(&p.Config)
	c.ballot(&p.Ballot)
	c.u32(&p.Promiser)
	pointer(c, &p.LastVote, c.lastVote)
	c.link(&p.Chain)
	c.bytes(&p.Signature)
}

func (c *codec) accept(a *Accept) {
	c.ref(&a.Config)
	c.ballot(&a.Ballot)
	c.bool(&a.Provisional)
	c.ref(&a.Ref)
	c.ref(&a.Parent)
	c.u64(&a.Epoch)
	slice(c, &a.Promises, func(p **Promise) { must(c, p, c.promise) })
	slice(c, &a.Votes, func(v **Vote) { must(c, v, c.vote) })
	c.link(&a.Chain)
	c.bytes(&a.Signature)
	c.str(&a.EventID)
}

func (c *codec) ready(r *Ready) {
	c.ref(&r.Config)
	c.u32(&r.Member)
	c.link(&r.Chain)
	c.bytes(&r.Signature)
}

// The kinds of events in saved states.
const (
	kindCommit uint32 = 1 + iota
	kindAccept
	kindVote
	kindPromise
	kindReady
	kindApplied
	kindRejected
)

// event codes an event with its kind in front.
func (c *codec) event(ev *Event) {
	_, kind := signatureOf(*ev)
	c.u32(&kind)
	switch kind {
	case kindCommit:
		codeAs(c, ev, c.commit)
	case kindAccept:
		codeAs(c, ev, c.accept)
	case kindVote:
		codeAs(c, ev, c.vote)
	case kindPromise:
		codeAs(c, ev, c.promise)
	case kindReady:
		codeAs(c, ev, c.ready)
	case kindApplied:
		codeAs(c, ev, c.applied)
	case kindRejected:
		codeAs(c, ev, c.rejected)
	default:
		c.fail()
	}
}

func codeAs[T any, P interface {
	*T
	Event
}](c *codec, ev *Event, f func(*T)) {
	if c.reading {
		v := P(new(T))
		f(v)
		*ev = v
		return
	}
	f((*ev).(P))
}

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
}

type savedOwn struct {
	config Ref
	ownState
}

// Version 2 added the promises that an own ballot was opened with, version 3
// the proof chain of what was dropped, version 4 the epochs of last votes.
const stateVersion = 4

func (c *codec) state(s *saved) {
	version := uint32(stateVersion)
	c.u32(&version)
	if version < 1 || version > stateVersion {
		c.err = fmt.Errorf("federation: saved state has version %d, this program reads versions 1 to %d", version, stateVersion)
		return
	}
	c.version = version
	must(c, &s.base, c.base)
	slice(c, &s.commits, func(n **node) {
		must(c, n, func(n *node) {
			must(c, &n.c, c.commit)
			c.u64(&n.seq)
		})
	})
	slice(c, &s.events, c.event)
	slice(c, &s.waiting, func(w *waitingEvent) { c.ref(&w.on); c.event(&w.ev) })
	slice(c, &s.own, func(o *savedOwn) {
		c.ref(&o.config)
		c.ballot(&o.promised)
		c.ref(&o.accept)
		c.ref(&o.ownState.base)
		c.bool(&o.open)
		pointer(c, &o.lastVote, c.lastVote)
		if c.version >= 2 {
			slice(c, &o.shown, func(p **Promise) { must(c, p, c.promise) })
		}
	})
	c.u64(&s.counter)
	c.ref(&s.prev)
	c.bool(&s.retired)
	c.bool(&s.complete)
	c.u64(&s.seq)
	if c.version >= 3 {
		slice(c, &s.steps, c.step)
		c.bool(&s.fromRoot)
	} else {
		s.fromRoot = s.complete
	}
}

func (c *codec) step(s *ProofStep) {
	c.ref(&s.Ref)
	c.ref(&s.Parent)
	c.str(&s.EventID)
	c.u64(&s.Epoch)
	c.list(&s.Sets)
	c.u64(&s.Era)
	c.ref(&s.Config)
	slice(c, &s.Votes, func(v **Vote) { must(c, v, c.vote) })
	slice(c, &s.Above, func(l *ProofLink) { c.ref(&l.Ref); c.ref(&l.Parent); c.str(&l.EventID) })
	slice(c, &s.Vouchers, c.proof)
	slice(c, &s.Keys, func(k *ProofKey) { c.ref(&k.Ref); c.leaf(&k.Leaf); c.bytes(&k.Group); c.u16(&k.Suite) })
}

type savedLeaf struct {
	index uint32
	leaf
}

func (c *codec) base(n *node) {
	c.ref(&n.ref)
	c.int(&n.depth)
	c.u64(&n.epoch)
	c.bytes(&n.group)
	c.u16(&n.suite)
	must(c, &n.policy, c.policy)
	c.ref(&n.config)
	c.bool(&n.sets)
	c.u64(&n.eraNo)
	var ls []savedLeaf
	if !c.reading {
		for i, l := range n.changes {
			ls = append(ls, savedLeaf{i, *l})
		}
		sort.Slice(ls, func(i, j int) bool { return ls[i].index < ls[j].index })
	}
	slice(c, &ls, func(l *savedLeaf) { c.u32(&l.index); c.str(&l.user); c.bytes(&l.key); c.int(&l.since) })
	slice(c, &n.vouchers, func(v *voucher) {
		c.str(&v.user)
		c.u32(&v.leaf)
		c.int(&v.since)
		pointer(c, &v.applied, c.applied)
		c.ref(&v.commit)
	})
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
	c := &codec{buf: make([]byte, 0, m.saved+m.saved/8)}
	c.state(&s)
	m.saved = len(c.buf)
	return c.buf, c.err
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
	if len(s.waiting) > 2*m.cfg.Limits.Waiting {
		return nil, errState
	}
	m.waiting = s.waiting
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
	c.note(r.Link().Counter, r.Hash(Scope{Room: m.cfg.Room}))
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
	table, list := to.table(), to.config
	kept := map[Ref]bool{list: true}
	var forgotten []Ref
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
			delete(m.nodes, n.ref)
		}
	}
	m.order = order
	to.up, to.c, to.reject = nil, nil, nil
	to.changes, to.whole, to.eraBase = table, true, to
	to.sets = to.config == to.ref
	m.base, m.complete, m.refounded = to, false, false
	for _, n := range m.order[1:] {
		m.refounded = m.refounded || n.c.Founding != nil
	}
	if m.era.depth <= to.depth {
		m.era = to
	}
	m.dropReceipts(kept)
	m.evaluate()
	sort.Slice(forgotten, func(i, j int) bool { return less(forgotten[i], forgotten[j]) })
	return forgotten
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
