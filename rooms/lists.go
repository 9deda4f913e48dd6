package rooms

import "github.com/matrix-mls/matrix-mls/federation"

// ListInForce returns the list of sequencers under which a room's commits are
// accepted and made final now. A list whose commit is not final does not count yet,
// though the commit be accepted and on the head.
func ListInForce(m *federation.Machine) federation.List {
	policy, _ := m.PolicyAt(m.UsableHead())
	return policy.Sequencers
}

// ListToCome returns the commit of the list change that is farthest: accepted, or else
// waiting; of several that wait, own, or else the first. One beside the head lost its
// place to another commit, and is made anew, if at all.
func ListToCome(m *federation.Machine, own federation.Ref) (federation.Ref, bool) {
	var best federation.Ref
	head := m.Head()
	for _, ref := range m.ListChanges() {
		if known, ok := m.Known(ref); !ok || known.Barred != "" {
			continue
		}
		if !m.Extends(head, ref) && !m.Extends(ref, head) {
			continue
		}
		if best.IsZero() || m.Accepted(ref) && !m.Accepted(best) || ref == own {
			best = ref
		}
	}
	return best, !best.IsZero()
}
