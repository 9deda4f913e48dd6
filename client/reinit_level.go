package client

import (
	"bytes"
	"slices"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A room's group can be closed by a ReInit and founded anew; the numbers of its
// epochs then begin at 1 again. A level counts on over all of the room's groups:
// the epoch that founds a successor lies one above the one that the ReInit made.
// Where one epoch has to be older than another, levels are compared.

// level returns the level of an epoch of a group; false if this device does not
// know where the group lies among the room's.
func (r *room) level(group []byte, epoch uint64) (uint64, bool) {
	if len(r.rec.Offsets) == 0 {
		// The room has had one group, as far as this device knows: what comes of
		// another one may be of the next, whose founding is still under way.
		return epoch, len(r.rec.Group) == 0 || bytes.Equal(group, r.rec.Group)
	}
	offset, ok := r.rec.Offsets[rooms.EncodeBase64(group)]
	return offset + epoch, ok
}

func (r *room) levelOf(e *epoch) uint64 {
	n, _ := r.level(e.group.GroupID(), e.number)
	return n
}

// levelAt returns the level of the epoch that a held commit makes.
func (r *room) levelAt(ref federation.Ref) (uint64, bool) {
	if e := r.epochs[ref]; e != nil {
		return r.levelOf(e), true
	}
	if r.machine == nil {
		return 0, false
	}
	known, ok := r.machine.Known(ref)
	if !ok {
		return 0, false
	}
	scope, ok := r.machine.ScopeAt(ref)
	if !ok {
		return 0, false
	}
	return r.level(scope.Group, known.Epoch)
}

// noteSuccessor notes that a group continues one that the commit at a level
// closed. Its id stands in the ReInit, so it is the same for every founding.
func (r *room) noteSuccessor(old, next []byte, closed uint64) {
	if r.rec.Offsets == nil {
		r.rec.Offsets = map[string]uint64{rooms.EncodeBase64(old): 0}
	}
	if key := rooms.EncodeBase64(next); len(r.rec.Offsets) < maxGroups {
		r.rec.Offsets[key] = closed
	}
}

// noteGroup puts a group that this device enters without having seen it founded
// above all that it knows.
func (r *room) noteGroup(group []byte) {
	if len(r.rec.Group) == 0 || bytes.Equal(r.rec.Group, group) {
		return
	}
	if _, ok := r.rec.Offsets[rooms.EncodeBase64(group)]; !ok {
		r.noteSuccessor(r.rec.Group, group, r.rec.Top)
	}
}

const maxGroups = 256

// former tells whether a group is one that the room had before the present one.
func (r *room) former(group []byte) bool {
	if bytes.Equal(group, r.rec.Group) {
		return false
	}
	return slices.ContainsFunc(r.rec.Former, func(id rooms.Bytes) bool { return bytes.Equal(id, group) })
}

// noteFormer remembers the groups before the one this device is in: what is
// still in the room's history of them is none of its concern.
func (r *room) noteFormer(groups ...[]byte) {
	for _, id := range groups {
		if len(r.rec.Former) < maxGroups && !slices.ContainsFunc(r.rec.Former, func(o rooms.Bytes) bool { return bytes.Equal(o, id) }) {
			r.rec.Former = append(r.rec.Former, id)
		}
	}
}

// noteBefore notes the groups before the one that this device has just joined, as
// far as its policy names them and heads prove them.
func (c *Client) noteBefore(r *room, e *epoch) {
	if policy, err := e.policy(); err == nil && policy.Predecessor != nil && policy.Predecessor.Room == r.id {
		r.noteFormer(policy.Predecessor.Group)
	}
	r.noteShown(c.shownBy(r, e.group.GroupID()), e.group.GroupID())
}

func (r *room) noteShown(s *shown, group []byte) {
	for _, p := range s.by {
		if i := slices.IndexFunc(p.Groups, func(id []byte) bool { return bytes.Equal(id, group) }); i > 0 {
			r.noteFormer(p.Groups[:i]...)
		}
	}
}

// refounding tells whether messages wait for the group that follows a ReInit.
func (r *room) refounding() bool {
	_, closed := r.closing()
	return closed && r.sendEpoch() == nil
}

// succeeds tells whether a group is one this device may enter where it is bound
// to another: a module proves, from the room's beginning, that the one continues
// the other. coming means that the proof is being fetched.
func (c *Client) succeeds(r *room, group, bound []byte) (ok, coming bool) {
	if bound == nil || bytes.Equal(group, bound) {
		return true, false
	}
	s := c.shownBy(r, bound)
	for _, p := range s.by {
		if continues(p, group, bound) {
			return true, false
		}
	}
	return false, s.coming
}

// continues tells whether a proof leads through one group to another.
func continues(p *rooms.Proven, group, bound []byte) bool {
	n := len(p.Groups)
	return n > 0 && bytes.Equal(p.Groups[n-1], group) && slices.ContainsFunc(p.Groups, func(id []byte) bool { return bytes.Equal(id, bound) })
}

// newer orders what proofs show: by era, then by how often the group was founded
// anew, then by epoch.
func newer(a, b *rooms.Proven) bool {
	switch {
	case a.Era != b.Era:
		return a.Era > b.Era
	case len(a.Groups) != len(b.Groups):
		return len(a.Groups) > len(b.Groups)
	}
	return a.Epoch > b.Epoch
}

// closing returns the commit with which the head's group was closed, and its
// epoch, until this device holds an epoch of the group that follows.
func (r *room) closing() (*epoch, bool) {
	if r.machine == nil || r.rec.Phase != phaseMember {
		return nil, false
	}
	e := r.lastRead()
	return e, e != nil && e.group.ReInit() != nil
}

// lastRead returns the highest epoch on the head's chain that this device holds.
func (r *room) lastRead() *epoch {
	at := r.machine.Head()
	for range 4 * maxWindow {
		if e := r.epochs[at]; e != nil {
			return e
		}
		known, ok := r.machine.Known(at)
		if !ok {
			break
		}
		at = known.Parent
	}
	return nil
}

// openEpoch returns the epoch to send in where ref is the newest: while a ReInit
// is not final, the one that it closes; from then on none, until the group that
// follows is founded.
func (r *room) openEpoch(ref federation.Ref) *epoch {
	e := r.epochs[ref]
	if e == nil || e.group.ReInit() == nil {
		return e
	}
	if r.machine.Final(ref) {
		return nil
	}
	return r.epochs[e.parent]
}

// suiteOf returns the cipher suite of the head's epoch, 0 if it is not known.
func (r *room) suiteOf() mls.CipherSuite {
	if e := r.head(); e != nil {
		return e.group.CipherSuite()
	}
	return 0
}
