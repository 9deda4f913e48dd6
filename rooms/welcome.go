package rooms

import (
	"bytes"

	"maunium.net/go/mautrix/id"

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
