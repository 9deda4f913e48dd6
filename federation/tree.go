package federation

import (
	"bytes"
	"sort"
	"time"
)

// leaf is an occupied leaf with the depth of the commit since which its member
// has been in the tree without a break.
type leaf struct {
	user  string
	key   []byte
	since int
}

// node is a commit in the tree. Facts come first; what evaluate derives from
// the whole set of events is in derived.
type node struct {
	c       *Commit // nil in the base
	ref     Ref
	up      *node
	kids    []*node // by ref
	depth   int
	epoch   uint64
	group   []byte
	suite   uint16
	policy  *Policy
	config  Ref  // names the list governing this node's children
	sets    bool // this node sets that list
	eraNo   uint64
	eraBase *node
	alone   bool // no other user's leaf lasts from the parent into this commit
	seq     uint64
	leaves  int
	changes map[uint32]*leaf // nil value: removed; in the base the whole table
	whole   bool             // changes is the whole table

	vouchers []voucher
	reject   *Rejected

	standing
	derived
	marked uint64 // see Machine.mark

	// What the caller was told, and timers of this process.
	toldFinal, toldDoubt      bool
	doubtT, votableT, heldUpT timer
}

// timer runs while what it is named for holds.
type timer struct {
	on    bool
	since time.Duration
}

// run starts the timer if it does not run, and stops it if on is false.
func (t *timer) run(on bool, now time.Duration) {
	if on && !t.on {
		t.since = now
	}
	t.on = on
}

// over reports whether the timer has been running for d.
func (t *timer) over(now, d time.Duration) bool { return t.on && now-t.since >= d }

// isEra reports whether the node opens an era.
func (n *node) isEra() bool { return n.c != nil && n.c.Era != nil }

// listChange reports whether the node sets a list by the old list's vote.
func (n *node) listChange() bool { return n.sets && n.up != nil && !n.isEra() }

// governing returns the name of the list governing the node, zero for an era
// commit and the base.
func (n *node) governing() Ref {
	if n.up == nil || n.isEra() {
		return Ref{}
	}
	return n.up.config
}

func (n *node) scope(room string) Scope { return Scope{Room: room, Group: n.group} }

// leaf returns the leaf at index i in the tree of n.
func (n *node) leaf(i uint32) (*leaf, bool) {
	for x := n; x != nil; x = x.up {
		if l, ok := x.changes[i]; ok {
			return l, l != nil
		}
		if x.whole {
			break
		}
	}
	return nil, false
}

// anyLeaf reports whether a leaf in the tree of n meets f. The order of visits
// is not fixed, so what f does must not depend on it.
func (n *node) anyLeaf(f func(uint32, *leaf) bool) bool {
	var seen map[uint32]bool
	for x := n; x != nil; x = x.up {
		for i, l := range x.changes {
			if seen[i] {
				continue
			}
			if l != nil && f(i, l) {
				return true
			}
		}
		if x.whole {
			break
		}
		if seen == nil {
			seen = make(map[uint32]bool)
		}
		for i := range x.changes {
			seen[i] = true
		}
	}
	return false
}

// table returns the whole leaf table of n.
func (n *node) table() map[uint32]*leaf {
	t := make(map[uint32]*leaf, n.leaves)
	seen := make(map[uint32]bool)
	for x := n; x != nil; x = x.up {
		for i, l := range x.changes {
			if !seen[i] {
				seen[i] = true
				if l != nil {
					t[i] = l
				}
			}
		}
		if x.whole {
			break
		}
	}
	return t
}

// extends reports whether n is base or a descendant of it.
func (n *node) extends(base *node) bool {
	x := n
	for x != nil && x.depth > base.depth {
		x = x.up
	}
	return x == base
}

// forkOf returns the last common commit of a and b.
func forkOf(a, b *node) *node {
	for a != b {
		if a == nil || b == nil {
			return nil
		}
		if a.depth >= b.depth {
			a = a.up
		} else {
			b = b.up
		}
	}
	return a
}

func less(a, b Ref) bool { return bytes.Compare(a[:], b[:]) < 0 }

func (m *Machine) newBase(b Base) (*node, error) {
	if b.Ref.IsZero() {
		return nil, refuse(RuleMalformed, b.Ref, "base without a ref")
	}
	if err := m.checkPolicy(b.Ref, &b.Policy); err != nil {
		return nil, err
	}
	if len(b.GroupID) == 0 || len(b.GroupID) > maxID {
		return nil, refuse(RuleMalformed, b.Ref, "group id of %d bytes", len(b.GroupID))
	}
	if len(b.Leaves) == 0 || len(b.Leaves) > m.cfg.Limits.Leaves {
		return nil, refuse(RuleTooMany, b.Ref, "base with %d leaves", len(b.Leaves))
	}
	n := &node{
		ref: b.Ref, epoch: b.Epoch, group: bytes.Clone(b.GroupID), suite: b.Suite,
		policy: clonePolicy(&b.Policy), config: b.Config, eraNo: b.Era,
		changes: make(map[uint32]*leaf, len(b.Leaves)), whole: true, leaves: len(b.Leaves),
	}
	n.eraBase = n
	if n.config.IsZero() || n.config == b.Ref {
		n.config, n.sets = b.Ref, true
	}
	for _, l := range b.Leaves {
		if err := checkLeaf(b.Ref, l); err != nil {
			return nil, err
		}
		if _, ok := n.changes[l.Index]; ok {
			return nil, refuse(RuleLeaf, b.Ref, "leaf %d twice", l.Index)
		}
		n.changes[l.Index] = &leaf{user: l.User, key: bytes.Clone(l.Key)}
	}
	return n, nil
}

func checkLeaf(ref Ref, l Leaf) error {
	if l.User == "" || len(l.User) > maxID || len(l.Key) == 0 || len(l.Key) > maxKey {
		return refuse(RuleMalformed, ref, "leaf %d without user or key", l.Index)
	}
	return nil
}

func (m *Machine) checkPolicy(ref Ref, p *Policy) error {
	if len(p.Sequencers) > m.cfg.Limits.List {
		return refuse(RuleTooMany, ref, "list of %d sequencers, at most %d", len(p.Sequencers), m.cfg.Limits.List)
	}
	for i, s := range p.Sequencers {
		if s.Server == "" || len(s.Server) > maxID || s.User == "" || len(s.User) > maxID || len(s.ReceiptKey) != 32 {
			return refuse(RuleMalformed, ref, "sequencer %d is incomplete", i)
		}
		for _, o := range p.Sequencers[:i] {
			if bytes.Equal(o.ReceiptKey, s.ReceiptKey) || o.User == s.User {
				return refuse(RuleMalformed, ref, "sequencer %d is in the list twice", i)
			}
		}
	}
	if len(p.Admins) > 1024 || len(p.Heirs) > 1024 {
		return refuse(RuleTooMany, ref, "too many admins or heirs")
	}
	if p.Window < 0 || p.Takeover < 0 || p.HeirsWait < 0 || p.OnPartition > OnPartitionFreeze {
		return refuse(RuleMalformed, ref, "policy value out of range")
	}
	return nil
}

func clonePolicy(p *Policy) *Policy {
	c := *p
	c.Sequencers = append(List(nil), p.Sequencers...)
	for i := range c.Sequencers {
		c.Sequencers[i].ReceiptKey = bytes.Clone(c.Sequencers[i].ReceiptKey)
	}
	c.Admins = append([]string(nil), p.Admins...)
	c.Heirs = append([]Heir(nil), p.Heirs...)
	return &c
}

func (p *Policy) admin(user string) bool {
	for _, a := range p.Admins {
		if a == user {
			return true
		}
	}
	return false
}

func (p *Policy) window() int {
	if p.Window == 0 {
		return DefaultWindow
	}
	return p.Window
}

// equalButList reports whether two policies differ in nothing but the list.
func (p *Policy) equalButList(o *Policy) bool {
	if p.Takeover != o.Takeover || p.HeirsWait != o.HeirsWait || p.Window != o.Window || p.OnPartition != o.OnPartition ||
		len(p.Admins) != len(o.Admins) || len(p.Heirs) != len(o.Heirs) {
		return false
	}
	for i := range p.Admins {
		if p.Admins[i] != o.Admins[i] {
			return false
		}
	}
	for i := range p.Heirs {
		if p.Heirs[i] != o.Heirs[i] {
			return false
		}
	}
	return true
}

// checkCommitForm checks what needs no parent.
func (m *Machine) checkCommitForm(c *Commit) error {
	switch {
	case c.Ref.IsZero() || c.Parent.IsZero() || c.Ref == c.Parent:
		return refuse(RuleMalformed, c.Ref, "ref or parent is missing")
	case c.AuthorUser == "" || len(c.AuthorUser) > maxID:
		return refuse(RuleMalformed, c.Ref, "author is missing")
	case len(c.EventID) > maxID || len(c.ParentEvent) > maxID || len(c.Barred) > 1024:
		return refuse(RuleMalformed, c.Ref, "event id or reason is too long")
	case len(c.Removed)+len(c.Updated)+len(c.Added) > 3*m.cfg.Limits.Leaves:
		return refuse(RuleTooMany, c.Ref, "too many leaf changes")
	case c.Era != nil && len(c.Era.Signers) > 1024:
		return refuse(RuleTooMany, c.Ref, "too many signers of an era")
	case c.Era != nil && c.Policy == nil:
		return refuse(RuleEra, c.Ref, "an era commit must set a list")
	case c.Era != nil && len(c.Policy.Sequencers) == 0:
		return refuse(RuleEra, c.Ref, "an era commit with an empty list")
	}
	if c.Policy != nil {
		if err := m.checkPolicy(c.Ref, c.Policy); err != nil {
			return err
		}
	}
	for _, ls := range [][]Leaf{c.Updated, c.Added} {
		for _, l := range ls {
			if err := checkLeaf(c.Ref, l); err != nil {
				return err
			}
		}
	}
	if f := c.Founding; f != nil {
		if len(f.GroupID) == 0 || len(f.GroupID) > maxID || len(f.Leaves) == 0 || len(f.Leaves) > m.cfg.Limits.Leaves {
			return refuse(RuleMalformed, c.Ref, "founding commit without group id or leaves")
		}
		for _, l := range f.Leaves {
			if err := checkLeaf(c.Ref, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// newNode checks a commit against its parent and makes its node, without
// linking it.
func (m *Machine) newNode(up *node, c *Commit) (*node, error) {
	n := &node{
		c: c, ref: c.Ref, up: up, depth: up.depth + 1, epoch: c.Epoch, group: up.group, suite: up.suite,
		policy: up.policy, config: up.config, eraNo: up.eraNo, eraBase: up.eraBase, leaves: up.leaves,
		changes: make(map[uint32]*leaf),
	}
	if c.Policy != nil {
		n.policy = clonePolicy(c.Policy)
		n.sets = c.Era != nil || !n.policy.Sequencers.Equal(up.policy.Sequencers)
	}
	if n.sets {
		n.config = c.Ref
	}
	if c.Era != nil {
		if c.Era.Number != up.eraNo+1 {
			return nil, refuse(RuleEra, c.Ref, "era %d above era %d", c.Era.Number, up.eraNo)
		}
		if c.Era.ByHeirs && !n.policy.equalButList(up.policy) {
			return nil, refuse(RuleEra, c.Ref, "an heirs' era changes more than the list")
		}
		n.eraNo, n.eraBase = c.Era.Number, n
	}
	if c.Founding != nil {
		n.group, n.suite, n.whole = bytes.Clone(c.Founding.GroupID), c.Founding.Suite, true
		n.leaves = len(c.Founding.Leaves)
		for _, l := range c.Founding.Leaves {
			if _, ok := n.changes[l.Index]; ok {
				return nil, refuse(RuleLeaf, c.Ref, "leaf %d twice", l.Index)
			}
			n.changes[l.Index] = &leaf{user: l.User, key: bytes.Clone(l.Key), since: n.depth}
		}
		n.alone = true
		return n, nil
	}
	if c.Epoch != up.epoch+1 {
		return nil, refuse(RuleMalformed, c.Ref, "epoch %d above epoch %d", c.Epoch, up.epoch)
	}
	if !c.External {
		if a, ok := up.leaf(c.Author); !ok || a.user != c.AuthorUser {
			return nil, refuse(RuleUnentitled, c.Ref, "author leaf %d is not a leaf of %s", c.Author, c.AuthorUser)
		}
	}
	if err := n.change(c); err != nil {
		return nil, err
	}
	if n.leaves < 1 || n.leaves > m.cfg.Limits.Leaves {
		return nil, refuse(RuleTooMany, c.Ref, "tree of %d leaves, at most %d", n.leaves, m.cfg.Limits.Leaves)
	}
	if c.External {
		if a, ok := n.changes[c.Author]; !ok || a == nil || a.user != c.AuthorUser || a.since != n.depth {
			return nil, refuse(RuleUnentitled, c.Ref, "an external commit that does not add its author")
		}
	}
	n.alone = !n.anyLeaf(func(_ uint32, l *leaf) bool { return l.user != c.AuthorUser && l.since <= up.depth })
	return n, nil
}

// change applies the commit's leaf changes.
func (n *node) change(c *Commit) error {
	for _, i := range c.Removed {
		if _, ok := n.leaf(i); !ok {
			return refuse(RuleLeaf, c.Ref, "removes leaf %d, which is blank", i)
		}
		n.changes[i] = nil
		n.leaves--
	}
	for _, u := range c.Updated {
		old, ok := n.leaf(u.Index)
		if !ok || old.user != u.User {
			return refuse(RuleLeaf, c.Ref, "updates leaf %d, which is not a leaf of %s", u.Index, u.User)
		}
		n.changes[u.Index] = &leaf{user: u.User, key: bytes.Clone(u.Key), since: old.since}
	}
	for _, a := range c.Added {
		if _, ok := n.leaf(a.Index); ok {
			return refuse(RuleLeaf, c.Ref, "adds leaf %d, which is occupied", a.Index)
		}
		n.changes[a.Index] = &leaf{user: a.User, key: bytes.Clone(a.Key), since: n.depth}
		n.leaves++
	}
	return nil
}

// link puts a checked node into the tree.
func (m *Machine) link(n *node) {
	m.nodes[n.ref] = n
	i := sort.Search(len(n.up.kids), func(i int) bool { return less(n.ref, n.up.kids[i].ref) })
	n.up.kids = append(n.up.kids, nil)
	copy(n.up.kids[i+1:], n.up.kids[i:])
	n.up.kids[i] = n
	i = sort.Search(len(m.order), func(i int) bool {
		o := m.order[i]
		return o.depth > n.depth || o.depth == n.depth && less(n.ref, o.ref)
	})
	m.order = append(m.order, nil)
	copy(m.order[i+1:], m.order[i:])
	m.order[i] = n
	if n.c != nil && n.c.Founding != nil {
		m.refounded = true
	}
	m.tellsNew = true
}

// list returns the list that the ref names, if it is held.
func (m *Machine) list(config Ref) (List, *node, bool) {
	if config == m.base.config {
		return m.base.policy.Sequencers, m.base, true
	}
	if n, ok := m.nodes[config]; ok && n.sets {
		return n.policy.Sequencers, n, true
	}
	return nil, nil, false
}

// room reports whether another child of n that no receipt names is kept.
func (m *Machine) room(n *node, author string) error {
	total, own, all := 0, 0, 0
	for _, x := range m.order {
		if x.c != nil && !x.acc.any() {
			all++
		}
	}
	if all >= m.cfg.Limits.Unnamed {
		return refuse(RuleTooMany, n.ref, "%d commits wait that no receipt names", all)
	}
	for _, k := range n.kids {
		if k.acc.any() {
			continue
		}
		total++
		if k.c.AuthorUser == author {
			own++
		}
	}
	if total >= m.cfg.Limits.Children {
		return refuse(RuleTooMany, n.ref, "%d commits wait on one parent", total)
	}
	if own >= m.cfg.Limits.ByAuthor {
		return refuse(RuleTooMany, n.ref, "%d commits of one user wait on one parent", own)
	}
	return nil
}
