package rooms

import (
	"bytes"
	"crypto/ed25519"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// CheckGroupInfo tells whether a GroupInfo describes an epoch of the group that
// was followed so far: same group, and, where the tree is at hand, the same
// epoch with the same tree. One of an older epoch is refused: an external
// commit on it would undo what happened since.
func CheckGroupInfo(m *mls.Message, t Tree, treeHash []byte) error {
	gi := m.GroupInfo()
	switch {
	case gi == nil:
		return malformed("group_info", "is no GroupInfo")
	case !bytes.Equal(gi.GroupID(), t.GroupID()):
		return refuse(RuleRoomNotGroup, "group_info", "is of another group")
	case gi.Epoch() != t.Epoch():
		return refuse(RuleParentMismatch, "group_info", "is of epoch %d, the head is epoch %d", gi.Epoch(), t.Epoch()).with("ask another member for a newer one")
	case !bytes.Equal(gi.TreeHash(), treeHash):
		return refuse(RuleParentMismatch, "group_info", "names another tree than the head's")
	}
	return nil
}

// Parse checks that what a head says of its newest commit fits together, and
// returns its GroupInfo. The signature of the GroupInfo, and the tree against
// its hash, are checked by package mls when the tree is there; a head is a hint
// where to begin, never a proof.
func (h *HeadContent) Parse() (*mls.Message, error) {
	if h.Accepted == nil || len(h.GroupInfo) == 0 {
		return nil, malformed("head", "names no commit with its GroupInfo")
	}
	m, err := mls.ParseMessage(h.GroupInfo)
	if err != nil {
		return nil, &Refusal{Rule: RuleContentMalformed, What: "head: group_info", Err: err}
	}
	gi := m.GroupInfo()
	switch {
	case gi == nil:
		return nil, malformed("head", "its group_info is no GroupInfo")
	case !bytes.Equal(gi.GroupID(), h.Group):
		return nil, refuse(RuleRoomNotGroup, "head", "its GroupInfo is of another group")
	case gi.Epoch() != h.Accepted.Epoch:
		return nil, refuse(RuleParentMismatch, "head", "names epoch %d, its GroupInfo is of epoch %d", h.Accepted.Epoch, gi.Epoch())
	}
	if s := h.Snapshot; s != nil && s.AtCommit == h.Accepted.Ref && !bytes.Equal(s.TreeHash, gi.TreeHash()) {
		return nil, refuse(RuleMediaHash, "head", "its snapshot names another tree than its GroupInfo")
	}
	return m, nil
}

// CheckSnapshot compares the hash of a tree that was fetched with the one its
// snapshot, and so a member-signed GroupInfo, names.
func (s *Snapshot) CheckSnapshot(treeHash []byte) error {
	if !bytes.Equal(s.TreeHash, treeHash) {
		return refuse(RuleMediaHash, "ratchet tree", "is not the one the snapshot names").with("ask a member for another snapshot")
	}
	return nil
}

// VerifyFinal checks the votes of a head: a majority of the group's sequencers,
// in one ballot under the list that Cfg names, voted for Final. p is the
// policy of the group the newcomer has joined, which members have signed. So a
// module alone can neither make a newcomer take a commit for final nor give it
// a wrong name for the list. Without the votes (as right after a group was
// founded or a list was changed) the result is [RuleFinalNotProven], and the
// newcomer shows the room as unconfirmed.
func (h *HeadContent) VerifyFinal(p *Policy) error {
	unproven := func(format string, args ...any) error {
		return refuse(RuleFinalNotProven, "head", format, args...).with("the room is shown as unconfirmed until its next commit is final")
	}
	if h.Final == nil || h.Cfg.IsZero() || len(h.Votes) == 0 {
		return unproven("names no final commit with its votes")
	}
	list := federation.List(p.Sequencers)
	scope := federation.Scope{Room: string(p.Room), Group: h.Group}
	voted := make(map[uint32]bool)
	for i := range h.Votes {
		v := &h.Votes[i]
		switch {
		case v.Ref != h.Final.Ref || v.Cfg != h.Cfg || v.Ballot != h.Votes[0].Ballot:
			return unproven("a vote is for another commit, list or ballot")
		case int(v.Rank) >= len(list) || voted[v.Rank]:
			return refuse(RuleReceiptForged, "head", "a vote by rank %d, which is not in the list or voted already", v.Rank)
		}
		if err := v.Receipt().VerifySignature(scope, ed25519.PublicKey(list[v.Rank].ReceiptKey)); err != nil {
			return &Refusal{Rule: RuleReceiptForged, What: "head: vote of " + list[v.Rank].User, Err: err}
		}
		voted[v.Rank] = true
	}
	if len(voted) < list.Quorum() {
		return unproven("%d votes, want %d of %d", len(voted), list.Quorum(), len(list))
	}
	return nil
}
