package federation

import (
	"bytes"
	"math"
	"slices"
	"sort"
	"time"
)

// Machine is the state of one room's coordination. It is not safe for
// concurrent use.
type Machine struct {
	cfg  Config
	base *node
	// complete: the base is the room's root, so whatever is unknown is still to come.
	complete  bool
	gone      map[Ref]uint64 // commits beside the base, and what is built on them, with epochs above the base's
	refounded bool
	nodes     map[Ref]*node
	order     []*node // by depth, then ref
	lists     map[Ref]*receipts
	chains    map[string]*chainMemory // by receipt key
	waiting   []waitingEvent          // in order of arrival
	seq       uint64
	proven    map[Ref]bool // evidence that was reported, by the pair's hash
	tellsNew  bool         // commits or statements came since the standing was evaluated
	marks     uint64       // see mark

	// What ProofChain keeps of commits at or below the base.
	proofSteps []ProofStep
	fromRoot   bool

	own     map[Ref]*ownState // by list
	counter uint64
	prev    Ref
	resumed bool
	retired bool

	head, final, era *node

	// Timers of this process; a restart starts them again.
	now        time.Duration
	readied    map[Ref]readied // by list change
	turn       turn
	stall      timer
	stallFinal Ref

	dirty     bool
	saved     int     // bytes of the last saved state, without its base
	savedBase []byte  // the base as it is saved
	savedOf   *node   // which base that is
	signing   Receipt // an own receipt that is being recorded
}

// ownState is what a module promised and signed under one list.
type ownState struct {
	promised Ballot
	accept   Ref // last accept in the promised ballot, zero: none
	base     Ref // base of the promised ballot once it is open, round > 0
	open     bool
	shown    []*Promise // what an own ballot was opened with, and its accepts show
	lastVote *LastVote
}

// waitingEvent is an event that cannot be judged yet, by the ref it waits for.
type waitingEvent struct {
	on     Ref
	ev     Event
	listed bool // a receipt by a sequencer of a list that is held
	size   int  // as it is stored, in bytes
}

// chainMemory remembers the newest receipts of a key.
type chainMemory struct {
	hashes map[uint64]Ref
	top    uint64
	newest link // of the receipts that this process saw
	small  link // and of those of at most smallReceipt bytes
}

// link is a receipt in its key's chain.
type link struct {
	receipt Receipt
	hash    Ref
	size    int // of its signed bytes
}

// smallReceipt is up to how many signed bytes a receipt can always be shown.
const smallReceipt = 1024

// chainKept is how many receipts of a key are remembered to find gaps.
const chainKept = 256

// New makes a machine that starts at base. A module's machine may sign at once:
// give it Resume only after Unmarshal.
func New(cfg Config, base Base) (*Machine, error) {
	m := &Machine{cfg: cfg, resumed: true}
	m.init()
	n, err := m.newBase(base)
	if err != nil {
		return nil, err
	}
	m.setBase(n)
	m.complete = n.sets && base.Era == 0 && base.Epoch == 0
	m.fromRoot = m.complete
	if p := base.Proof; p != nil && !m.complete && len(p.Steps) <= m.cfg.Limits.Proofs {
		m.fromRoot = p.FromRoot
		for i := range p.Steps {
			m.proofSteps = append(m.proofSteps, cloneStep(&p.Steps[i]))
		}
	}
	m.evaluate()
	m.told()
	return m, nil
}

func (m *Machine) init() {
	m.cfg.Limits = m.cfg.Limits.withDefaults()
	m.nodes = make(map[Ref]*node)
	m.lists = make(map[Ref]*receipts)
	m.chains = make(map[string]*chainMemory)
	m.proven = make(map[Ref]bool)
	m.own = make(map[Ref]*ownState)
	m.tellsNew = true
	m.readied = make(map[Ref]readied)
	m.gone = make(map[Ref]uint64)
}

func (m *Machine) setBase(n *node) {
	m.base = n
	m.nodes[n.ref] = n
	m.order = []*node{n}
	m.head, m.final, m.era = n, n, n
}

// Step applies one input and returns what the caller must now do, in order:
// first persist every Save, then send every Send. An error means: nothing
// changed.
func (m *Machine) Step(ev Event) ([]Action, error) {
	if _, ok := ev.(Resume); ok {
		m.resumed = true
		return nil, nil
	}
	b := m.begin()
	if s, ok := ev.(Shown); ok {
		if err := m.takeShown(s, b); err != nil {
			return nil, err
		}
		return m.finish(b), nil
	}
	if err := m.record(ev, b); err != nil {
		return nil, err
	}
	return m.finish(b), nil
}

// batch collects the actions of one Step or Tick.
type batch struct {
	sends   []Action
	others  []Action
	fetched map[Ref]bool
	head    Ref
}

func (m *Machine) begin() *batch { return &batch{head: m.head.ref} }

func (b *batch) fetchCommit(ref Ref, hint string) {
	if !b.fetched[ref] {
		if b.fetched == nil {
			b.fetched = make(map[Ref]bool)
		}
		b.fetched[ref] = true
		b.others = append(b.others, Fetch{Commit: ref, EventID: hint})
	}
}

// finish turns what changed into actions.
func (m *Machine) finish(b *batch) []Action {
	var out []Action
	if m.dirty {
		out = append(out, Save{})
		m.dirty = false
	}
	out = append(out, b.sends...)
	if m.head.ref != b.head {
		h := HeadChanged{From: b.head, To: m.head.ref, Fork: m.base.ref}
		if from, ok := m.nodes[b.head]; ok {
			if f := forkOf(from, m.head); f != nil {
				h.Fork = f.ref
			}
		}
		out = append(out, h)
	}
	at := len(out)
	for x := m.head; x != nil; x = x.up {
		if x.final && !x.toldFinal {
			out = append(out, Finalized{Ref: x.ref})
		}
	}
	slices.Reverse(out[at:])
	for _, n := range m.order {
		if n.doubt && !n.toldDoubt {
			out = append(out, Doubt{Ref: n.ref, Rule: n.reject.Rule})
		}
	}
	m.told()
	out = append(out, b.others...)
	out = append(out, m.findEvidence()...)
	if f := m.compact(); len(f) > 0 {
		out = append(out, Forget{Refs: f})
	}
	return out
}

// told notes what the caller knows now.
func (m *Machine) told() {
	for _, n := range m.order {
		n.toldFinal, n.toldDoubt = n.final, n.doubt
	}
}

// record checks an event and puts it into the set.
func (m *Machine) record(ev Event, b *batch) error {
	changed, ref, err := m.put(ev, b)
	if err != nil {
		return err
	}
	if !changed {
		return nil
	}
	m.dirty = true
	if !ref.IsZero() {
		m.release(ref, b)
	}
	m.evaluate()
	return nil
}

// put records one event. It returns the ref of a commit that is new.
func (m *Machine) put(ev Event, b *batch) (changed bool, added Ref, err error) {
	switch ev := ev.(type) {
	case *Commit:
		return m.putCommit(ev, b)
	case *Accept:
		changed, err = m.putAccept(ev, b)
	case *Vote:
		changed, err = m.putVote(ev, b)
	case *Promise:
		changed, err = m.putPromise(ev, b)
	case *Ready:
		changed, err = m.putReady(ev, b)
	case *Applied:
		changed, err = m.putApplied(ev, b)
	case *Rejected:
		changed, err = m.putRejected(ev, b)
	case Outside:
		if _, ok := m.nodes[ev.Ref]; !ok && !m.complete && (ev.Past || m.Beside(ev.Parent, ev.Epoch)) {
			changed = m.drop(ev.Ref, ev.Epoch)
		}
	case Resume, Shown:
	default:
		err = refuse(RuleMalformed, Ref{}, "event of unknown type %T", ev)
	}
	return changed, added, err
}

// release records the events that waited for ref, and what these set free. One
// that turns out to be refused is dropped: it was never in the set.
func (m *Machine) release(ref Ref, b *batch) {
	free := []Ref{ref}
	for len(free) > 0 {
		on := free[0]
		free = free[1:]
		var due []Event
		rest := m.waiting[:0]
		for _, w := range m.waiting {
			if w.on == on {
				due = append(due, w.ev)
			} else {
				rest = append(rest, w)
			}
		}
		clear(m.waiting[len(rest):])
		m.waiting = rest
		for _, ev := range due {
			if _, added, err := m.put(ev, b); err == nil && !added.IsZero() {
				free = append(free, added)
			}
		}
	}
}

// wait keeps an event until the commit on is known. The pool is bounded: the
// oldest goes first, and comes back when it is fetched again. Anybody can make up
// what waits, so what a listed sequencer signed has places of its own.
func (m *Machine) wait(on Ref, ev Event, listed bool) bool {
	for _, w := range m.waiting {
		if w.on == on && sameEvent(w.ev, ev) {
			return false
		}
	}
	added := waitingEvent{on, ev, listed, sizeOf(ev)}
	m.waiting = append(m.waiting, added)
	// Commits, receipts of listed sequencers, accepts that are most likely too old, and all
	// other receipts and statements have places of their own.
	const (
		commits = iota
		checked
		old
		others
	)
	kind := func(w waitingEvent) int {
		switch ev := w.ev.(type) {
		case *Commit:
			return commits
		case *Accept:
			if m.oldAccept(ev) {
				return old
			}
		}
		if w.listed {
			return checked
		}
		return others
	}
	limits := map[int]struct{ count, size int }{
		commits: {m.cfg.Limits.Waiting, math.MaxInt}, checked: {m.cfg.Limits.Waiting, maxListedWaiting},
		old: {m.cfg.Limits.Waiting / 4, maxOthersWaiting}, others: {m.cfg.Limits.Waiting, maxOthersWaiting},
	}
	own := kind(added)
	count, size := 0, 0
	for i := len(m.waiting) - 1; i >= 0; i-- { // the newest first
		if w := m.waiting[i]; kind(w) == own {
			count, size = count+1, size+w.size
			if i < len(m.waiting)-1 && (count > limits[own].count || size > limits[own].size) {
				m.waiting = slices.Delete(m.waiting, i, i+1)
				count, size = count-1, size-w.size
			}
		}
	}
	return true
}

// What may wait for its commit, in bytes: receipts of listed sequencers, and others, which
// are written with each one that comes.
const (
	maxListedWaiting = 1 << 20
	maxOthersWaiting = 256 << 10
)

// awaited reports whether a waiting receipt or statement, or a waiting commit's
// parent, names ref.
func (m *Machine) awaited(ref Ref) bool {
	for _, w := range m.waiting {
		if w.on == ref {
			return true
		}
	}
	return false
}

func (m *Machine) putCommit(c *Commit, b *batch) (bool, Ref, error) {
	if err := m.checkCommitForm(c); err != nil {
		return false, Ref{}, err
	}
	if n, ok := m.nodes[c.Ref]; ok {
		if n.c != nil && n.c.Parent != c.Parent {
			return false, Ref{}, refuse(RuleDuplicate, c.Ref, "another parent than the commit of that ref that is held")
		}
		return false, Ref{}, nil
	}
	if c.Founding == nil && m.TooOld(c.Epoch) {
		return false, Ref{}, refuse(RuleTooOld, c.Ref, "epoch %d, and nothing at or below epoch %d is kept", c.Epoch, m.base.epoch)
	}
	if m.beside(c.Parent, c.Epoch, c.Founding != nil) {
		return m.drop(c.Ref, c.Epoch), Ref{}, nil
	}
	up, ok := m.nodes[c.Parent]
	if !ok {
		b.fetchCommit(c.Parent, c.ParentEvent)
		return m.wait(c.Parent, cloneCommit(c), false), Ref{}, nil
	}
	if !m.awaited(c.Ref) {
		if err := m.room(up, c.AuthorUser); err != nil {
			return false, Ref{}, err
		}
	}
	n, err := m.newNode(up, cloneCommit(c))
	if err != nil {
		return false, Ref{}, err
	}
	m.seq++
	n.seq = m.seq
	m.link(n)
	if n.sets {
		m.listCame(n.ref)
	}
	delete(m.gone, c.Ref)
	if !c.External && c.Founding == nil {
		l, _ := up.leaf(c.Author)
		up.vouch(voucher{user: l.user, leaf: c.Author, since: l.since, commit: c.Ref})
	}
	return true, c.Ref, nil
}

func cloneCommit(c *Commit) *Commit {
	d := *c
	d.Removed = append([]uint32(nil), c.Removed...)
	d.Updated = append([]Leaf(nil), c.Updated...)
	d.Added = append([]Leaf(nil), c.Added...)
	if c.Policy != nil {
		d.Policy = clonePolicy(c.Policy)
	}
	if c.Era != nil {
		e := *c.Era
		e.Signers = append([]string(nil), c.Era.Signers...)
		d.Era = &e
	}
	if c.Founding != nil {
		f := *c.Founding
		f.Leaves = append([]Leaf(nil), c.Founding.Leaves...)
		d.Founding = &f
	}
	return &d
}

// Head returns the head: what the fork choice gives.
func (m *Machine) Head() Ref { return m.head.ref }

// SafeHead returns the head cut back below the lowest commit in doubt: what new
// commits, snapshots and external joins build on.
func (m *Machine) SafeHead() Ref { return m.cut(m.head).ref }

// Overridden returns the final commits of the era that an era commit leaves
// which are not below it, lowest first: what the era overrides.
func (m *Machine) Overridden(era Ref) []Ref {
	n, ok := m.nodes[era]
	if !ok || !n.isEra() {
		return nil
	}
	var out []Ref
	for _, x := range m.order {
		if x.final && x.eraBase == n.up.eraBase && !n.extends(x) {
			out = append(out, x.ref)
		}
	}
	return out
}

// cut returns n cut back below the lowest commit in doubt.
func (m *Machine) cut(n *node) *node {
	out := n
	for x := n; x != nil; x = x.up {
		if x.doubt && x.up != nil {
			out = x.up
		}
		if x == m.era {
			break
		}
	}
	return out
}

// NewestFinal returns the newest final commit of the head's era.
func (m *Machine) NewestFinal() Ref { return m.final.ref }

// EraOf returns the number and the base of the head's era.
func (m *Machine) EraOf() (number uint64, base Ref) { return m.era.eraNo, m.era.ref }

// EraAt returns the number of the era that a held commit lies in.
func (m *Machine) EraAt(ref Ref) (number uint64, ok bool) {
	n, ok := m.nodes[ref]
	if !ok {
		return 0, false
	}
	return n.eraNo, true
}

// Base returns the commit where what is kept begins.
func (m *Machine) Base() Ref { return m.base.ref }

// maxGone is how many commits beside the base are remembered.
const maxGone = 1024

// Beside reports whether a commit that was made on parent and makes the given
// epoch is known to lie beside what is kept, and so never comes. It is about
// commits of the base's group whose parent is not held; see Outside.
func (m *Machine) Beside(parent Ref, epoch uint64) bool { return m.beside(parent, epoch, false) }

func (m *Machine) beside(parent Ref, epoch uint64, founding bool) bool {
	if _, ok := m.nodes[parent]; ok {
		return false
	}
	if m.lost(parent) {
		return true
	}
	// The base alone makes the epoch before that of its children.
	return !founding && !m.complete && !m.refounded && epoch <= m.base.epoch+1
}

// drop notes that a commit lies beside the base, and so do the commits that wait
// for it; receipts that do are forgotten. It reports whether that is new.
func (m *Machine) drop(ref Ref, epoch uint64) bool {
	fresh := false
	for todo := []Outside{{Ref: ref, Epoch: epoch}}; len(todo) > 0; todo = todo[1:] {
		at := todo[0]
		had, ok := m.gone[at.Ref]
		if (!ok && len(m.gone) < maxGone || had == unplaced) && !m.below(at.Epoch) {
			m.gone[at.Ref], fresh = at.Epoch, true
		}
		rest := m.waiting[:0]
		for _, w := range m.waiting {
			if w.on != at.Ref {
				rest = append(rest, w)
			} else if c, ok := w.ev.(*Commit); ok {
				todo = append(todo, Outside{Ref: c.Ref, Epoch: c.Epoch})
			}
		}
		clear(m.waiting[len(rest):])
		m.waiting = rest
	}
	return fresh
}

// unplaced stands in for the epoch of a commit that only a last vote names: it lies
// below what was dropped, or in a group that was founded since and is still to come.
const unplaced = math.MaxUint64

// lost reports whether a commit is known to lie beside what is kept.
func (m *Machine) lost(ref Ref) bool {
	epoch, ok := m.gone[ref]
	return ok && epoch != unplaced
}

// dropped reports whether a commit that is not held lies beside or below what is
// kept, and is not still to come. Above a founding commit epochs begin again, so
// one that has yet to come may be taken for one below until it does.
func (m *Machine) dropped(ref Ref, epoch uint64) bool {
	_, ok := m.gone[ref]
	return !m.complete && (ok || m.below(epoch))
}

func (m *Machine) below(epoch uint64) bool { return epoch <= m.base.epoch }

// TooOld reports whether a commit that makes the given epoch lies below
// everything that is kept.
func (m *Machine) TooOld(epoch uint64) bool { return !m.refounded && m.below(epoch) }

// Status returns where a commit stands.
func (m *Machine) Status(ref Ref) Status {
	n, ok := m.nodes[ref]
	onHead := ok && m.head.extends(n)
	switch {
	case !ok:
		return StatusUnknown
	case onHead && n.final || n == m.base:
		return StatusFinal
	case n.doubt:
		return StatusDoubt
	case !n.acc.any() && !(n.isEra() && onHead):
		return StatusWaiting
	case !onHead:
		return StatusDisplaced
	case n.acc.onlyProvisional():
		return StatusSideBranch
	case n.votable:
		return StatusVotable
	}
	return StatusAccepted
}

// Accepted reports whether a commit is accepted.
func (m *Machine) Accepted(ref Ref) bool {
	n, ok := m.nodes[ref]
	return ok && (n.acc.any() || n.isEra() && m.head.extends(n))
}

// Votable reports whether a commit and all below it are vouched for.
func (m *Machine) Votable(ref Ref) bool {
	n, ok := m.nodes[ref]
	return ok && n.votable
}

// Final reports whether a commit is final in its era.
func (m *Machine) Final(ref Ref) bool {
	n, ok := m.nodes[ref]
	return ok && n.final
}

// InDoubt reports whether a commit was rejected and nobody vouched for it.
func (m *Machine) InDoubt(ref Ref) bool {
	n, ok := m.nodes[ref]
	return ok && n.doubt
}

// Known returns the commit event of a ref, if it is held. The base has none.
func (m *Machine) Known(ref Ref) (*Commit, bool) {
	n, ok := m.nodes[ref]
	if !ok || n.c == nil {
		return nil, false
	}
	return cloneCommit(n.c), true
}

// Held reports whether a commit is in the tree.
func (m *Machine) Held(ref Ref) bool {
	_, ok := m.nodes[ref]
	return ok
}

// Waiting returns how many receipts of listed sequencers wait for commits that are
// not held, without accepts that are most likely too old. No more than
// [Limits].Waiting do; the oldest give way.
func (m *Machine) Waiting() (n int) {
	for _, w := range m.waiting {
		if a, ok := w.ev.(*Accept); w.listed && !(ok && m.oldAccept(a)) {
			n++
		}
	}
	return n
}

// Path returns the refs from the commit above from up to to, nil if from is no
// ancestor of to.
func (m *Machine) Path(from, to Ref) []Ref {
	a, ok := m.nodes[from]
	b, ok2 := m.nodes[to]
	if !ok || !ok2 || !b.extends(a) {
		return nil
	}
	out := make([]Ref, b.depth-a.depth)
	for i := len(out) - 1; i >= 0; i-- {
		out[i] = b.ref
		b = b.up
	}
	return out
}

// Extends reports whether ref is base or a descendant of it.
func (m *Machine) Extends(ref, base Ref) bool {
	a, ok := m.nodes[ref]
	b, ok2 := m.nodes[base]
	return ok && ok2 && a.extends(b)
}

// Fork returns the last common commit of two commits.
func (m *Machine) Fork(a, b Ref) (Ref, bool) {
	x, ok := m.nodes[a]
	y, ok2 := m.nodes[b]
	if !ok || !ok2 {
		return Ref{}, false
	}
	f := forkOf(x, y)
	return f.ref, true
}

// Children returns the refs of the commits on top of ref, in order.
func (m *Machine) Children(ref Ref) []Ref {
	n, ok := m.nodes[ref]
	if !ok {
		return nil
	}
	out := make([]Ref, len(n.kids))
	for i, k := range n.kids {
		out[i] = k.ref
	}
	return out
}

// PolicyAt returns the policy from a commit on.
func (m *Machine) PolicyAt(ref Ref) (Policy, bool) {
	n, ok := m.nodes[ref]
	if !ok {
		return Policy{}, false
	}
	return *clonePolicy(n.policy), true
}

// ConfigAt returns the ref that names the list governing the commit's children.
func (m *Machine) ConfigAt(ref Ref) (Ref, bool) {
	n, ok := m.nodes[ref]
	if !ok {
		return Ref{}, false
	}
	return n.config, true
}

// ScopeAt returns what receipts and statements about a commit are bound to.
func (m *Machine) ScopeAt(ref Ref) (Scope, bool) {
	n, ok := m.nodes[ref]
	if !ok {
		return Scope{}, false
	}
	return n.scope(m.cfg.Room), true
}

// Listed reports whether this module's receipt key is in the list that governs
// the head's children.
func (m *Machine) Listed() bool {
	_, ok := m.rankIn(m.serving())
	return ok
}

// Retired reports whether the own receipt key must not sign any more.
func (m *Machine) Retired() bool { return m.retired }

// Signed returns the counter of the newest receipt that this machine signed.
func (m *Machine) Signed() uint64 { return m.counter }

// Rekey begins the chain of a new receipt key, which has signed nothing yet:
// the one in Config.Self, after the key before it was retired. It signs once a
// list names it.
func (m *Machine) Rekey() {
	m.counter, m.prev, m.retired, m.dirty = 0, Ref{}, false, true
	m.own, m.readied, m.turn = make(map[Ref]*ownState), make(map[Ref]readied), turn{}
}

// NeedsVouching returns the commits that are waiting for a member to vouch, in
// order of depth: accepted ones on the head, list changes beside it, which have
// it only once they are final, and eras that would count.
func (m *Machine) NeedsVouching() []Ref {
	var out []Ref
	for _, n := range m.order {
		switch {
		case n.c == nil || n.vouched:
		case n.isEra() && m.eraValid(n):
			out = append(out, n.ref)
		case n.acc.any() && (m.head.extends(n) || n.listChange() && m.head.extends(n.up) && n.up.extends(m.final)):
			out = append(out, n.ref)
		}
	}
	return out
}

// ReceiptMark names the newest receipt of a key that the machine saw.
type ReceiptMark struct {
	Key     []byte
	Counter uint64
	Hash    Ref
	// Signed and Signature show the receipt: its hash is that over both.
	Signed, Signature []byte
}

// NewestReceipts returns the newest receipt of each key, in order of the keys.
func (m *Machine) NewestReceipts() []ReceiptMark {
	out := make([]ReceiptMark, 0, len(m.chains))
	for key, c := range m.chains {
		out = append(out, ReceiptMark{Key: []byte(key), Counter: c.top, Hash: c.hashes[c.top]})
	}
	sort.Slice(out, func(i, j int) bool { return string(out[i].Key) < string(out[j].Key) })
	return out
}

// ShownReceipts returns the newest receipt of each key of a list, in its order, shown as
// it was signed. Of those with more than limit signed bytes (1,024 at least) only the
// name is given, and with it the newest that is small enough.
func (m *Machine) ShownReceipts(list List, limit int) []ReceiptMark {
	s := Scope{Room: m.cfg.Room}
	var out []ReceiptMark
	for _, q := range list {
		c := m.chains[string(q.ReceiptKey)]
		if c == nil {
			continue
		}
		mark := func(l link, show bool) {
			k := ReceiptMark{Key: bytes.Clone(q.ReceiptKey), Counter: l.receipt.Link().Counter, Hash: l.hash}
			if show {
				sig, _ := signatureOf(l.receipt)
				k.Signed, k.Signature = l.receipt.SignedBytes(s), bytes.Clone(sig)
			}
			out = append(out, k)
		}
		fits := c.newest.size <= max(limit, smallReceipt)
		mark(c.newest, fits)
		if !fits && c.small.receipt != nil {
			mark(c.small, true)
		}
	}
	return out
}

// Knows reports whether the machine saw the receipt of a key with a counter, or
// one so much newer that it does not matter any more.
func (m *Machine) Knows(key []byte, counter uint64) bool {
	c := m.chains[string(key)]
	return c != nil && (c.top >= counter+chainKept || !c.hashes[counter].IsZero())
}
