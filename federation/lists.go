package federation

import "slices"

// ListAt returns the list that a commit set, named by its ref.
func (m *Machine) ListAt(config Ref) (List, bool) {
	list, _, ok := m.list(config)
	if !ok {
		return nil, false
	}
	return clonePolicy(&Policy{Sequencers: list}).Sequencers, true
}

// ListChanges returns the list changes above the newest final that are held and
// not final, in order of depth: accepted ones and those that wait.
func (m *Machine) ListChanges() []Ref {
	var out []Ref
	for _, n := range m.order {
		if n.listChange() && !n.final && n.up.extends(m.final) {
			out = append(out, n.ref)
		}
	}
	return out
}

// PendingList returns the lowest list change on the head that is not final:
// nobody builds on it, and nobody sends in its epoch.
func (m *Machine) PendingList() (Ref, bool) {
	var out *node
	for x := m.head; x != nil && x != m.final; x = x.up {
		if x.listChange() && !x.final {
			out = x
		}
	}
	if out == nil {
		return Ref{}, false
	}
	return out.ref, true
}

// Readies returns the ranks of the modules that said they are ready for the list
// that a commit would set. How old that may be is the owner's and the voters'
// matter.
func (m *Machine) Readies(config Ref) []uint32 {
	rs := m.lists[config]
	if rs == nil {
		return nil
	}
	out := make([]uint32, 0, len(rs.readies))
	for _, r := range rs.readies {
		out = append(out, r.Member)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Governing returns the ref that names the list a commit is accepted under,
// zero for an era commit and for the base.
func (m *Machine) Governing(ref Ref) Ref {
	n, ok := m.nodes[ref]
	if !ok {
		return Ref{}
	}
	return n.governing()
}

// HeirServers returns the servers of the heirs that an heirs' era would need
// more than half of: those in the newest final's policy that still have an heir
// in its tree.
func (m *Machine) HeirServers() []string {
	present := make(map[string]bool)
	m.final.anyLeaf(func(_ uint32, l *leaf) bool { present[l.user] = true; return false })
	var out []string
	for _, h := range m.final.policy.Heirs {
		if present[h.User] && !slices.Contains(out, h.Server) {
			out = append(out, h.Server)
		}
	}
	slices.Sort(out)
	return out
}

// AcceptOf returns an accept that names a commit itself: in the highest ballot,
// else a provisional one; nil if none is held.
func (m *Machine) AcceptOf(ref Ref) *Accept {
	n, ok := m.nodes[ref]
	if !ok || m.lists[n.governing()] == nil {
		return nil
	}
	var best *Accept
	for _, a := range m.lists[n.governing()].accepts { // in order of ballots, provisional ones last within round 0
		if a.Ref == ref && (best == nil || best.Provisional || !a.Provisional) {
			best = a.Accept
		}
	}
	if best == nil {
		return nil
	}
	return cloneAccept(best)
}
