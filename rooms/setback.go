package rooms

import (
	"cmp"
	"maps"
	"slices"

	"maunium.net/go/mautrix/id"
)

// SetBack is a membership that a room's state does not show any more although no
// event took its place: state resolution at the homeserver forgot it. Nobody left
// and nobody was put out, invited or banned by that, so a person has to be told.
type SetBack struct {
	User id.UserID
	Was  Member // what is forgotten
	Now  Member // an older one that counts again; the zero value if there is none
}

// endedKept is how many memberships of a user are remembered that others took the
// place of.
const endedKept = 4

// noteMember remembers what a member event takes the place of. Whether the event
// counts is not known: a server may show one that state resolution never takes.
func (s *RoomState) noteMember(user id.UserID, event id.EventID) {
	old := s.Members[user]
	if event == old.Event {
		return
	}
	if s.again == nil {
		s.again = make(map[id.UserID]bool)
	}
	s.again[user] = s.Ended(user, event)
	s.end(user, old, event)
	if s.unsure == nil {
		s.unsure = make(map[id.UserID]bool)
	}
	s.unsure[user] = true
}

// end puts old among the memberships of a user that have ended, and takes event out.
func (s *RoomState) end(user id.UserID, old Member, event id.EventID) {
	list := slices.DeleteFunc(slices.Clone(s.ended[user]), func(m Member) bool { return m.Event == old.Event || m.Event == event })
	if old.Event != "" { // else it was only assumed
		list = slices.Insert(list, 0, old)
	}
	if s.ended == nil {
		s.ended = make(map[id.UserID][]Member)
	}
	if len(list) == 0 {
		delete(s.ended, user)
		return
	}
	s.ended[user] = list[:min(len(list), endedKept)]
}

// Ended tells whether an event is a membership of a user that others have taken the
// place of, as far as that is remembered.
func (s *RoomState) Ended(user id.UserID, event id.EventID) bool {
	return event != "" && slices.ContainsFunc(s.ended[user], func(m Member) bool { return m.Event == event })
}

// since returns the memberships of a user that came after one that had ended, the
// last first.
func (s *RoomState) since(user id.UserID, event id.EventID) []Member {
	list := s.ended[user]
	at := slices.IndexFunc(list, func(m Member) bool { return m.Event == event })
	return append([]Member{s.Members[user]}, list[:max(at, 0)]...)
}

// Spoke notes that an event of a user's came which is no member event of theirs. The
// homeserver took it, so the membership that it showed before counts.
func (s *RoomState) Spoke(user id.UserID) { delete(s.unsure, user) }

// replaces tells whether the rules of rooms let a membership take the place of
// another: nobody invites who is in the room, or lets in who is banned.
func replaces(now, was Membership) bool {
	switch was {
	case MembershipJoin:
		return now != MembershipInvite && now != MembershipKnock
	case MembershipBan:
		return now == MembershipLeave || now == MembershipBan
	}
	return true
}

// Succeed lets s, into which the whole state that the homeserver gave was put, take
// the place of old, and tells what was set back, in the order of the users. came
// tells of which users a member event came while the state was asked for: the answer
// may be from before it. Such events are applied to s afterwards.
//
// A membership counts as set back if the state has none of that user, or another one
// that had ended. That one has to have ended indeed: of a room that was parted both
// sides' memberships come, one after the other, and neither took the place of the
// other. An invite that comes after a join is from where nobody knew of the join;
// and where the older one puts the user out, the later one has to have counted, for
// they may have shown it where nobody knew of that.
func (s *RoomState) Succeed(old *RoomState, came func(user id.UserID) bool) (back []SetBack) {
	s.unsure, s.again = nil, nil
	s.ended = maps.Clone(old.ended)
	for user, was := range old.Members {
		now, there := s.Members[user]
		if there && now.Event == was.Event {
			continue
		}
		had := old.Ended(user, now.Event) && now.Membership != was.Membership &&
			slices.ContainsFunc(old.since(user, now.Event), func(m Member) bool { return replaces(m.Membership, now.Membership) })
		s.end(user, was, now.Event)
		if was.Event == "" || came(user) || !there && len(s.Members) >= maxRoomMembers {
			continue
		}
		putOut := (now.Membership == MembershipLeave || now.Membership == MembershipBan) && now.Sender != user
		if !there || had && !old.again[user] && (!putOut || !old.unsure[user]) {
			back = append(back, SetBack{user, was, now})
		}
	}
	slices.SortFunc(back, func(a, b SetBack) int { return cmp.Compare(a.User, b.User) })
	return back
}
