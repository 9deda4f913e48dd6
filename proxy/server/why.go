package server

import (
	"context"
	"errors"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// blockText says in a language why messages of a room wait. A kind that the catalogue
// does not have is told of as one of which nothing is known.
func blockText(l rewrite.Language, b client.Block) string {
	user := serverNames([]string{string(b.User)})
	switch b.Kind {
	case client.BlockLeft:
		return l.Text(rewrite.BlockedLeft, user)
	case client.BlockBanned:
		return l.Text(rewrite.BlockedBanned, user)
	case client.BlockDevice:
		return l.Text(rewrite.BlockedDevice, serverNames([]string{string(b.Device)}), user)
	case client.BlockServer:
		return l.Text(rewrite.BlockedServer, user)
	case client.BlockDoubt:
		return l.Text(rewrite.BlockedDoubt)
	case client.BlockMajority:
		return l.Text(rewrite.BlockedMajority, serverNames(b.Servers))
	}
	return l.Text(rewrite.BlockedOther)
}

// waitsText says why what a person wrote waits.
func waitsText(l rewrite.Language, n account.Notice, dir string) string {
	switch n.Reason {
	case account.WaitsForEntry:
		return l.Text(rewrite.WaitsForEntry)
	case account.WaitsForVerification:
		return l.Text(rewrite.WaitsForVerification, dir)
	case account.WaitsForLogin:
		return l.Text(rewrite.WaitsForLogin, dir)
	case account.WaitsForSuite:
		return l.Text(rewrite.WaitsForSuite)
	}
	return blockText(l, client.Block{Kind: client.BlockKind(n.Reason), User: n.User, Device: id.DeviceID(n.Detail), Servers: n.Servers})
}

// waits keeps a notice in the room that what its person wrote there waits, once the
// client has been told so: clients try again without a word.
func (s *Server) waits(ctx context.Context, sess *session, room id.RoomID, err error) {
	n := account.Notice{Room: room, Reason: account.WaitsForOther}
	switch {
	case errors.Is(err, client.ErrClosed):
		return
	case errors.Is(err, client.ErrSuiteChange):
		n.Reason = account.WaitsForSuite
	case errors.Is(err, client.ErrNoGroup):
		n.Reason = account.WaitsForEntry
		if !sess.account.Verified(ctx) {
			n.Reason = account.WaitsForVerification
		}
	case errors.Is(err, client.ErrBarrier):
		if info, err := sess.account.Client().Room(ctx, room); err == nil && len(info.Blocked) > 0 {
			b := info.Blocked[0]
			n.Reason, n.User, n.Detail, n.Servers = string(b.Kind), b.User, string(b.Device), b.Servers
		}
	case !errors.Is(err, context.DeadlineExceeded):
		return // it does not wait
	}
	if sess.account.Session(ctx) == account.SessionSoft {
		n = account.Notice{Room: room, Reason: account.WaitsForLogin}
	}
	sess.account.TellWaits(ctx, n)
}

// noteTexts are the remarks on members.
var noteTexts = map[client.Why]pageText{
	client.Why(rooms.RemoveLeft):       pageNoteLeft,
	client.Why(rooms.RemoveBanned):     pageNoteBanned,
	client.Why(rooms.RemoveDevice):     pageNoteDevice,
	client.Why(rooms.RemoveDuplicate):  pageNoteDuplicate,
	client.Why(rooms.RemoveSuite):      pageNoteSuite,
	client.Why(rooms.RemoveSilent):     pageNoteSilent,
	client.Why(rooms.RemoveMalformed):  pageNoteMalformed,
	client.Why(rooms.AbsentUnadmitted): pageNoteUnadmitted,
	client.Why(rooms.AbsentSuite):      pageNoteNoSuite,
	client.Why(rooms.AbsentCheck):      pageNoteCheck,
	client.Why(rooms.AbsentDevice):     pageNoteNoDevice,
	client.WhyNoMLS:                    pageNoteNoMLS,
	client.WhyNotYet:                   pageNoteNotYet,
}

// noteText says in a language why a device is not to be in the group, or why a user
// has none there.
func noteText(l rewrite.Language, m client.Member) string {
	if text, ok := noteTexts[m.Why]; ok {
		return sayIn(l, text)
	}
	return ""
}

// A said is a reason, in the person's language where the catalogue has it, else in
// English.
type said struct{ Text, English string }

// why is the reason for which the SDK did not do something, nil if it did.
func (s *Server) why(err error) *said {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, client.ErrSuperseded):
		return &said{Text: s.say(pageSuperseded)}
	case errors.Is(err, client.ErrRemoved):
		return &said{Text: s.say(pageRemoved)}
	case errors.Is(err, client.ErrNoGroup):
		return &said{Text: s.say(pageWaitsToBeLetIn)}
	}
	return &said{English: plain(err)}
}

// standing says that nothing in a room becomes final any more, "" if that is not so.
func (s *Server) standing(info client.RoomInfo, room id.RoomID, dir string) string {
	if info.Standing == nil {
		return ""
	}
	return standstillText(s.o.Language, info.Standing, room, dir)
}
