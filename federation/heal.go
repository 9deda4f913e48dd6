package federation

import "sort"

// HealPlan says what a member must do when the head left its branch. It is a
// pure function of the tree; what of it the room still wants (a ban on either
// side wins) is the caller's to check against the room's state.
type HealPlan struct {
	From, To Ref
	// Fork is the last common commit: go back to its epoch state.
	Fork Ref
	// Path are the commits to process from Fork to To, lowest first.
	Path []Ref
	// Undone are the own branch's commits above Fork, lowest first. What was sent
	// in their epochs is encrypted again on To, under the same message ids; members
	// of Fork may also read the branch itself.
	Undone []Ref
	// Removes are leaves of To that Undone had removed: they come first.
	Removes []Leaf
	// Adds are leaves that only Undone added, of users who were not removed on
	// either branch since. Indices are those they had on the losing branch.
	Adds []Leaf
	// Policies are the commits of Undone that changed the policy, lowest first.
	Policies []Ref
	// Member is set if the leaf that the caller had at Fork is in the tree at To.
	Member bool
	// Resume is set if every leaf at To was in the group at Fork already: then,
	// and only then, an external commit may carry the resumption PSK of Fork.
	Resume bool
}

// Heal plans the way from the commit whose epoch a member is in to the head.
// own is the member's leaf index at from. It reports false if one of the two is
// not held any more, or they have no common commit: then the member rejoins.
func (m *Machine) Heal(from, to Ref, own uint32) (HealPlan, bool) {
	a, ok := m.nodes[from]
	b, ok2 := m.nodes[to]
	if !ok || !ok2 {
		return HealPlan{}, false
	}
	fork := forkOf(a, b)
	p := HealPlan{From: from, To: to, Fork: fork.ref, Path: m.Path(fork.ref, to), Undone: m.Path(fork.ref, from)}
	for _, r := range p.Undone {
		if n := m.nodes[r]; n.policy != n.up.policy {
			p.Policies = append(p.Policies, r)
		}
	}
	if refounded(fork, a) || refounded(fork, b) {
		return p, true // leaves of different groups are not compared
	}
	common, left, head := fork.table(), a.table(), b.table()
	p.Resume = true
	for i, l := range head {
		p.Resume = p.Resume && sameMember(common[i], l)
		if sameMember(common[i], l) && !sameMember(left[i], l) {
			p.Removes = append(p.Removes, Leaf{Index: i, User: l.user, Key: append([]byte(nil), l.key...)})
		}
	}
	gone := make(map[string]bool) // users whom a branch removed
	for _, t := range []map[uint32]*leaf{left, head} {
		users := make(map[string]bool)
		for _, l := range t {
			users[l.user] = true
		}
		for _, l := range common {
			gone[l.user] = gone[l.user] || !users[l.user]
		}
	}
	have := make(map[string]bool)
	for _, l := range head {
		have[string(l.key)] = true
	}
	for i, l := range left {
		if !sameMember(common[i], l) && !gone[l.user] && !have[string(l.key)] {
			p.Adds = append(p.Adds, Leaf{Index: i, User: l.user, Key: append([]byte(nil), l.key...)})
		}
	}
	sortLeaves(p.Removes)
	sortLeaves(p.Adds)
	p.Member = common[own] != nil && sameMember(common[own], left[own]) && sameMember(common[own], head[own])
	return p, true
}

// sameMember reports whether two entries of one leaf index, on two branches
// from a common commit, are the same member: there without a break since before
// the fork.
func sameMember(a, b *leaf) bool {
	return a != nil && b != nil && a.user == b.user && a.since == b.since
}

// refounded reports whether the group was founded anew between a commit and its
// descendant.
func refounded(from, to *node) bool {
	for x := to; x != from; x = x.up {
		if x.c.Founding != nil {
			return true
		}
	}
	return false
}

func sortLeaves(ls []Leaf) {
	sort.Slice(ls, func(i, j int) bool { return ls[i].Index < ls[j].Index })
}

// SuiteAt returns the cipher suite of the epoch that a commit makes.
func (m *Machine) SuiteAt(ref Ref) (uint16, bool) {
	n, ok := m.nodes[ref]
	if !ok {
		return 0, false
	}
	return n.suite, true
}
