package appservice

import (
	"cmp"
	"slices"
	"strings"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// The trees of a room's newest epochs are kept in memory, as what comes next builds
// on them. All of them are in the database, or follow from one that is and the
// commits since, so that those of rooms in which nothing happens can go.
const (
	treesInMemory = 16 << 20 // bytes, about, of all rooms
	leafBytes     = 700      // of a tree, for each leaf
	epochBytes    = 8 << 10  // of an epoch that shares its tree with the one before
	epochLeaf     = 8        // and beside that for each leaf
)

// holdTree keeps a group's state in memory.
func (e *Engine) holdTree(r *room, ref federation.Ref, pg *mls.PublicGroup) {
	r.groups[ref] = pg
	e.treesGrew = true
}

// treeBytes is about what the trees of a room take.
func (r *room) treeBytes() (sum int) {
	most := 0
	for _, pg := range r.groups {
		n := pg.MemberCount()
		sum += epochBytes + epochLeaf*n
		most = max(most, n)
	}
	return sum + leafBytes*most
}

// putTreesAway forgets trees that can be had again if all together are too many: of
// rooms that were used longest ago first, and of each those that nothing new builds
// on; then also the others. What waits to be committed on the head is in its tree
// alone, which stays; proposals of epochs that are over keep none. So more than the
// bound is held where members of many rooms wait to be removed; and a room that is
// larger than it, of some 17,000 leaves, loads its tree again for each commit.
func (e *Engine) putTreesAway() {
	if !e.treesGrew {
		return
	}
	e.treesGrew = false
	sum := 0
	for _, r := range e.rooms {
		sum += r.treeBytes()
	}
	most := e.treesMost
	if sum <= most {
		return
	}
	list := make([]*room, 0, len(e.rooms))
	for _, r := range e.rooms {
		if len(r.groups) > 0 {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b *room) int {
		return cmp.Or(cmp.Compare(a.touched, b.touched), strings.Compare(string(a.id), string(b.id)))
	})
	for _, heads := range []bool{false, true} {
		for _, r := range list {
			if sum <= most*3/4 { // not again at the next commit
				return
			}
			had := r.treeBytes()
			for ref, pg := range r.groups {
				if r.m != nil && (ref == r.m.Head() || ref == r.m.SafeHead()) && (!heads || len(pg.PendingProposals()) > 0) {
					continue
				}
				delete(r.groups, ref)
			}
			sum -= had - r.treeBytes()
		}
	}
}
