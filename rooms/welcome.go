package rooms

import (
	"bytes"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// CheckUnsolicited tells whether a Welcome may be opened at all: this device's
// user is invited to the room or in it. A homeserver, or a stranger, that sends
// one for another room is refused with [RuleUnsolicitedKey].
func CheckUnsolicited(w *WelcomeContent, s *RoomState, own id.UserID) error {
	if w.Room != s.Room {
		return refuse(RuleWelcomeNotForUs, "welcome", "is for room %s, not %s", w.Room, s.Room)
	}
	switch s.Members[own].Membership {
	case MembershipJoin, MembershipInvite, MembershipKnock:
		return nil
	}
	return refuse(RuleUnsolicitedKey, "welcome", "nobody has invited this user to room %s", w.Room)
}

// CheckJoined holds a group that was joined by a Welcome against what came with
// it: the group belongs to the room, the sender of the to-device event has a
// leaf in it, and the own leaf is this device.
func CheckJoined(w *WelcomeContent, sender id.UserID, own *Credential, t Tree, ownLeaf mls.LeafIndex) (*Policy, error) {
	p, err := PolicyOf(t)
	if err != nil {
		return nil, inContent("welcome", err)
	}
	if p.Room != w.Room {
		return nil, refuse(RuleWelcomeNotForUs, "welcome", "names room %s, the group belongs to %s", w.Room, p.Room)
	}
	leaf, ok := t.Leaf(ownLeaf)
	if !ok {
		return nil, refuse(RuleWelcomeNotForUs, "welcome", "the group has no leaf for this device")
	}
	cred, err := CredentialOf(leaf)
	if err != nil {
		return nil, inContent("welcome", err)
	}
	if cred.User != own.User || cred.Device != own.Device || !bytes.Equal(cred.Key, own.Key) {
		return nil, refuse(RuleWelcomeNotForUs, "welcome", "adds %s, this device is %s", cred, own)
	}
	if !hasUser(t, sender) {
		return nil, refuse(RuleUnsolicitedKey, "welcome", "sent by %s, who is not in the group", sender)
	}
	return p, nil
}

// CheckWelcome tells whether a proof shows that the commit which a Welcome belongs to
// was accepted: it stands in the chain, or the accept that came with it is by a list
// that was in force. t is the group that the Welcome opens. The error is
// [RuleFinalNotProven] if a newer proof may show it.
//
// An accepted commit may lie on a branch that lost. Who enters below a final commit that
// is proven has to come up to it before it counts for anything.
func (p *Proven) CheckWelcome(w *WelcomeContent, t Tree) error {
	policy, err := PolicyOf(t)
	if err != nil {
		return inContent("welcome", err)
	}
	if !slices.ContainsFunc(p.Groups, func(id []byte) bool { return bytes.Equal(id, t.GroupID()) }) {
		return refuse(RuleFinalNotProven, "welcome", "it opens a group that is not shown")
	}
	named := func(config federation.Ref, era uint64) error {
		if federation.Ref(w.Cfg) != config || w.Era != era {
			return refuse(RuleWelcomeNotForUs, "welcome", "names list %s and era %d, its commit lies under list %s in era %d", federation.Ref(w.Cfg).Short(), w.Era, config.Short(), era)
		}
		return nil
	}
	for _, at := range p.Chain {
		if at.Ref != federation.Ref(w.Ref) {
			continue
		}
		if !bytes.Equal(at.Group, t.GroupID()) || at.Epoch != t.Epoch() {
			return refuse(RuleWelcomeNotForUs, "welcome", "it opens another epoch than its commit makes")
		}
		return named(at.Config, at.Era)
	}
	if w.Accept == nil {
		return refuse(RuleFinalNotProven, "welcome", "nothing shows that its commit was accepted")
	}
	a := w.Accept.Receipt()
	by, ok := p.Lists[a.Config]
	if !ok {
		return refuse(RuleFinalNotProven, "welcome", "its commit was accepted under list %s, which is not shown", a.Config.Short())
	}
	if a.Epoch != t.Epoch() {
		return refuse(RuleReceiptForged, "welcome", "its accept is for epoch %d, it opens epoch %d", a.Epoch, t.Epoch())
	}
	if err := checkAccept(federation.Scope{Room: string(w.Room)}, by.List, a); err != nil {
		return inContent("welcome", err)
	}
	if by.List.Equal(policy.Sequencers) {
		return named(a.Config, by.Era)
	}
	return named(a.Ref, by.Era) // it sets another list
}
