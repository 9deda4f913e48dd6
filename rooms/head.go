package rooms

import (
	"bytes"
	"slices"

	"maunium.net/go/mautrix/id"

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

// Lists tells whether the group that a head shows names a user as the module of
// one of its sequencers. A module that was taken off the list goes on posting
// heads, at which nobody can join.
func (h *HeadContent) Lists(user id.UserID) bool {
	return slices.ContainsFunc(h.list(), func(s federation.Sequencer) bool { return s.User == string(user) })
}

// list returns the list of sequencers in the GroupInfo of what a head shows as
// accepted, nil if there is none.
func (h *HeadContent) list() federation.List {
	m, err := h.Parse()
	if err != nil {
		return nil
	}
	p, err := policyIn(m.GroupInfo().GroupExtensions())
	if err != nil || p == nil {
		return nil
	}
	return p.Sequencers
}

// Claimed returns what a head says without proving it, as far as that serves
// [Proven.CheckWelcome]: the commits that it names, and the list in their GroupInfo
// if that names its module with its key.
func (h *HeadContent) Claimed(module id.UserID) *Proven {
	if h.Accepted == nil || h.Root == nil {
		return nil
	}
	p := &Proven{Groups: [][]byte{h.Group}, Root: federation.Ref(h.Root.Ref), Config: federation.Ref(h.Cfg), Era: h.Era, Accepted: federation.Ref(h.Accepted.Ref)}
	if h.Cfg.IsZero() {
		p.Config, p.Era = p.Root, 0
	}
	if h.Final != nil {
		p.Final, p.Epoch = federation.Ref(h.Final.Ref), h.Final.Epoch
	}
	list := h.list()
	if slices.ContainsFunc(list, func(s federation.Sequencer) bool {
		return s.User == string(module) && bytes.Equal(s.ReceiptKey, h.ReceiptKey)
	}) {
		p.Chain = []ProvenCommit{{p.Accepted, h.Group, h.Accepted.Epoch, p.Config, p.Era}}
		p.Lists = map[federation.Ref]ProvenList{p.Config: {list, p.Era}}
	}
	return p
}

// CheckSnapshot compares the hash of a tree that was fetched with the one its
// snapshot, and so a member-signed GroupInfo, names.
func (s *Snapshot) CheckSnapshot(treeHash []byte) error {
	if !bytes.Equal(s.TreeHash, treeHash) {
		return refuse(RuleMediaHash, "ratchet tree", "is not the one the snapshot names").with("ask a member for another snapshot")
	}
	return nil
}

// Check compares what a head says with the proof chain it shows, and returns
// what that proves. raw is the chain: [HeadContent.Proof], or what was
// downloaded for ProofFile. The error is [RuleFinalNotProven] if the head shows
// nothing wrong and too little: a newcomer then shows the room as unconfirmed.
func (h *HeadContent) Check(room id.RoomID, raw []byte) (*Proven, error) {
	if h.Accepted == nil || h.Final == nil || h.Root == nil || len(raw) == 0 {
		return nil, refuse(RuleFinalNotProven, "head", "shows no proof of its final commit").with("the room is shown as unconfirmed until its next commit is final")
	}
	p, err := DecodeProof(raw)
	if err != nil {
		return nil, err
	}
	got, err := p.Check(room, federation.Ref(h.Accepted.Ref))
	if err != nil {
		return nil, err
	}
	config := h.Cfg
	if config.IsZero() {
		config = h.Root.Ref
	}
	switch {
	case got.Root != federation.Ref(h.Root.Ref):
		return nil, refuse(RuleRoomNotGroup, "head", "names another beginning than its proof")
	case got.Config != federation.Ref(config) || got.Era != h.Era:
		return nil, refuse(RuleReceiptForged, "head", "names another list or era than its proof")
	case got.Final != federation.Ref(h.Final.Ref):
		return got, refuse(RuleFinalNotProven, "head", "its newest final commit is not proven yet").with("the room is shown as unconfirmed until it is")
	}
	return got, nil
}

// OfList tells whether the GroupInfo that a head shows names this list. A proof says what
// was accepted by whom, and not which GroupInfo stands beside it: one of another branch,
// under a list of its author's, would be joined at in vain, or with its author.
func (h *HeadContent) OfList(list federation.List) bool { return list.Equal(h.list()) }
