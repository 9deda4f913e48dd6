package federation

import (
	"bytes"
	"slices"
	"sort"
)

// voucher is a member's word for a commit: a statement, or a commit of its own
// on top.
type voucher struct {
	user    string
	leaf    uint32
	since   int
	applied *Applied
	commit  Ref
}

// keptVouchers is how many users' vouchers a commit keeps. Two suffice for
// every question evaluate asks (the two users whose leaves have been in the
// tree longest); more would only lengthen memory.
const keptVouchers = 4

func (v *voucher) before(o *voucher) bool {
	if v.since != o.since {
		return v.since < o.since
	}
	if v.user != o.user {
		return v.user < o.user
	}
	if v.leaf != o.leaf {
		return v.leaf < o.leaf
	}
	if (v.applied != nil) != (o.applied != nil) {
		return v.applied != nil
	}
	if v.applied != nil {
		return bytes.Compare(v.applied.Signature, o.applied.Signature) < 0
	}
	return less(v.commit, o.commit)
}

// reduce sorts vouchers and keeps the first of each user, at most max users.
// The result depends only on the set, so it can be applied step by step.
func reduce(vs []voucher, max int) []voucher {
	sort.SliceStable(vs, func(i, j int) bool { return vs[i].before(&vs[j]) })
	out := vs[:0]
next:
	for _, v := range vs {
		for i := range out {
			if out[i].user == v.user {
				continue next
			}
		}
		if len(out) == max {
			break
		}
		out = append(out, v)
	}
	return out
}

// vouch records a voucher for n and reports whether the set changed.
func (n *node) vouch(v voucher) bool {
	vs := reduce(append(append([]voucher(nil), n.vouchers...), v), keptVouchers)
	same := len(vs) == len(n.vouchers)
	for i := 0; same && i < len(vs); i++ {
		a, b := &vs[i], &n.vouchers[i]
		same = !a.before(b) && !b.before(a)
	}
	if same {
		return false
	}
	n.vouchers = vs
	return true
}

// checked reports whether the very statement is held: it was checked then.
func (n *node) checked(a *Applied) bool {
	return slices.ContainsFunc(n.vouchers, func(v voucher) bool {
		return v.applied != nil && v.leaf == a.Leaf && v.applied.Hash == a.Hash && bytes.Equal(v.applied.Signature, a.Signature)
	})
}

// covers reports whether a voucher for a descendant of r, or r itself, vouches
// for r: another user's leaf, in the tree since r's parent.
func (m *Machine) covers(v *voucher, r *node) bool {
	if r.alone {
		return true
	}
	return (v.since < r.depth || !m.keeps(ruleSinceParent)) && (v.user != r.c.AuthorUser || !m.keeps(ruleNotAuthor))
}

// WouldVouch reports whether a statement of a leaf of one commit's tree, that it
// applied that commit, would vouch for another one, which is the same or lies
// below it.
func (m *Machine) WouldVouch(at Ref, index uint32, ref Ref) bool {
	d, ok := m.nodes[at]
	r, ok2 := m.nodes[ref]
	if !ok || !ok2 || r.c == nil || !d.extends(r) {
		return false
	}
	l, ok := d.leaf(index)
	return ok && m.covers(&voucher{user: l.user, leaf: index, since: l.since}, r)
}

// Vouchers returns, in order, the leaves of one commit's tree for which WouldVouch
// holds: who can say what makes another commit votable, the same or one below it.
func (m *Machine) Vouchers(at, ref Ref) []uint32 {
	d, ok := m.nodes[at]
	r, ok2 := m.nodes[ref]
	if !ok || !ok2 || r.c == nil || !d.extends(r) {
		return nil
	}
	out := make([]uint32, 0, d.leaves)
	d.anyLeaf(func(index uint32, l *leaf) bool {
		if m.covers(&voucher{user: l.user, leaf: index, since: l.since}, r) {
			out = append(out, index)
		}
		return false
	})
	slices.Sort(out)
	return out
}

// Unvouched returns the lowest commit on the head's branch above the newest final
// one that nobody has vouched for, and for which no leaf of the head's tree could:
// whoever could has left. Neither it nor what lies above it becomes final, unless
// the word of one who left is still under way, the head moves to another branch,
// or an era is opened above it. ok is false if there is none.
func (m *Machine) Unvouched() (ref Ref, ok bool) {
	for x := m.head; x != m.final && x != nil; x = x.up {
		if x.c == nil || x.vouched {
			continue
		}
		if !m.head.anyLeaf(func(index uint32, l *leaf) bool {
			return m.covers(&voucher{user: l.user, leaf: index, since: l.since}, x)
		}) {
			ref, ok = x.ref, true
		}
	}
	return ref, ok
}

// evaluateVouching sets the standing of every commit.
func (m *Machine) evaluateVouching() {
	since := m.keeps(ruleSinceParent)
	for i := len(m.order) - 1; i >= 0; i-- {
		n := m.order[i]
		n.standing = standing{anyVoucher: len(n.vouchers) > 0}
		for j := range n.vouchers {
			if v := &n.vouchers[j]; v.since < n.depth || !since {
				n.addBest(v)
			}
		}
		for _, k := range n.kids {
			for _, v := range k.best {
				if v != nil && (v.since < n.depth || !since) {
					n.addBest(v)
				}
			}
			n.anyVoucher = n.anyVoucher || k.anyVoucher
		}
		n.vouched = n.c == nil || n.alone && n.anyVoucher
		for _, v := range n.best {
			n.vouched = n.vouched || v != nil && (v.user != n.c.AuthorUser || !m.keeps(ruleNotAuthor))
		}
	}
	for _, n := range m.order {
		n.votable = n.vouched && (n.up == nil || n.isEra() || n.up.votable)
		n.doubt = n.reject != nil && !n.vouched
	}
}

// addBest keeps v if it is among the first two, of different users.
func (s *standing) addBest(v *voucher) {
	b := &s.best
	switch {
	case b[0] == nil || b[0].user != v.user && v.before(b[0]):
		b[1], b[0] = b[0], v
	case b[0].user == v.user:
		if v.before(b[0]) {
			b[0] = v
		}
	case b[1] == nil || v.before(b[1]):
		b[1] = v
	}
}

// proofs gathers statements that show that top and every commit below it, down
// to but not including low, are vouched for.
func (m *Machine) proofs(low, top *node) []Proof {
	var chosen []voucher
	var todo []*node
	for x := top; x != nil && x != low && x.c != nil; x = x.up {
		todo = append(todo, x)
		if x.isEra() {
			break
		}
	}
	for i := len(todo) - 1; i >= 0; i-- {
		r := todo[i]
		if m.covered(chosen, r) {
			continue
		}
		if v, ok := m.findVoucher(r, r); ok {
			chosen = append(chosen, v)
		}
	}
	out := make([]Proof, 0, len(chosen))
	for _, v := range chosen {
		if v.applied != nil {
			out = append(out, Proof{Applied: v.applied})
		} else {
			out = append(out, Proof{Commit: v.commit})
		}
	}
	return out
}

// covered reports whether one of the chosen vouchers, all found at r's
// ancestors or their descendants, vouches for r too. A voucher found from an
// ancestor may sit on another branch, so only those whose commit descends from
// r count.
func (m *Machine) covered(chosen []voucher, r *node) bool {
	for i := range chosen {
		if m.covers(&chosen[i], r) && r.holds(&chosen[i]) {
			return true
		}
	}
	return false
}

// holds reports whether the voucher is found at n or below it.
func (n *node) holds(v *voucher) bool {
	for i := range n.vouchers {
		if !n.vouchers[i].before(v) && !v.before(&n.vouchers[i]) {
			return true
		}
	}
	for _, k := range n.kids {
		if k.holds(v) {
			return true
		}
	}
	return false
}

// findVoucher searches the deepest voucher for r at n and its descendants.
func (m *Machine) findVoucher(n, r *node) (voucher, bool) {
	for _, k := range n.kids {
		if k.anyVoucher {
			if v, ok := m.findVoucher(k, r); ok {
				return v, true
			}
		}
	}
	for _, v := range n.vouchers {
		if m.covers(&v, r) {
			return v, true
		}
	}
	return voucher{}, false
}
