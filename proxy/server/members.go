package server

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/route"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// memberChange is a change of who is in a room.
type memberChange struct {
	kind   route.Kind // Invite, Join, Leave, Kick or Ban
	room   id.RoomID
	user   id.UserID // whom it is about; "" is the client's own user
	reason string
	via    []string // of a join
}

// member changes who is in a room (POST …/invite and the like), through the MLS
// device where the room is an MLS room.
func (s *Server) member(w http.ResponseWriter, r *http.Request, sess *session, m route.Match) {
	room := id.RoomID(m.Params["room"])
	cli := sess.account.Client()
	if m.Kind == route.Join {
		// The client may have heard of an invite before the device.
		soon, cancel := context.WithTimeout(r.Context(), inviteWait)
		sess.account.AwaitRoom(soon, room)
		cancel()
	}
	info, err := cli.Room(r.Context(), room)
	if err != nil || !info.MLS || m.Kind == route.Join && info.Membership == "join" {
		// An invite alone lets nobody into a group: is the room none?
		if m.Kind != route.Invite || s.isPlain(w, r, sess, room) {
			s.stream.ServeHTTP(w, r)
		}
		return
	}
	body, ok := read(w, r, maxRequest)
	if !ok {
		return
	}
	var req struct {
		User   id.UserID `json:"user_id"`
		Reason string    `json:"reason"`
	}
	if len(body) > 0 && rooms.DecodeObject(body, &req) != nil {
		refuse(w, http.StatusBadRequest, "M_NOT_JSON", "the request is not JSON")
		return
	}
	if req.User == "" && m.Kind != route.Join && m.Kind != route.Leave {
		if m.Kind == route.Invite {
			refuse(w, http.StatusForbidden, "M_FORBIDDEN", "only a user's id can be invited to an MLS room")
		} else {
			refuse(w, http.StatusBadRequest, "M_MISSING_PARAM", "whom? user_id is missing")
		}
		return
	}
	query := r.URL.Query()
	joined, err := s.changeMembers(r.Context(), sess, memberChange{m.Kind, room, req.User, req.Reason, append(query["via"], query["server_name"]...)})
	if err != nil {
		s.refusal(w, r, err)
		return
	}
	result := map[string]id.RoomID{}
	if m.Kind == route.Join {
		result["room_id"] = joined
	}
	answer(w, http.StatusOK, result)
}

// changeMembers lets the MLS device change who is in a room. Begun is done, whether the
// client waits for it or not.
func (s *Server) changeMembers(ctx context.Context, sess *session, c memberChange) (joined id.RoomID, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeWait)
	defer cancel()
	cli := sess.account.Client()
	switch c.kind {
	case route.Join:
		return cli.Join(ctx, string(c.room), c.via)
	case route.Leave:
		return "", cli.Leave(ctx, c.room)
	case route.Invite:
		return "", cli.Invite(ctx, c.room, c.user)
	case route.Kick:
		return "", cli.Kick(ctx, c.room, c.user, c.reason)
	case route.Ban:
		return "", cli.Ban(ctx, c.room, c.user, c.reason)
	}
	return "", fmt.Errorf("server: internal: no way to do %d", c.kind)
}

// memberEvent takes an m.room.member event that a client writes by itself. In an
// MLS room one that changes who is in it is done as by the path for that: else the
// invited would be in the room and not in the group, and who was put out in the
// group. It returns false if the event is to go on as it is.
func (s *Server) memberEvent(w http.ResponseWriter, r *http.Request, sess *session, room id.RoomID, user id.UserID, body []byte) (done bool) {
	var content struct {
		Membership rooms.Membership `json:"membership"`
		Reason     string           `json:"reason"`
	}
	unread := rooms.DecodeObject(body, &content)
	info, err := sess.account.Client().Room(r.Context(), room)
	switch {
	case err != nil || !info.MLS:
		// An invite alone lets nobody into a group: is the room none?
		return (unread != nil || content.Membership == rooms.MembershipInvite) && !s.isPlain(w, r, sess, room)
	case unread != nil:
		refuse(w, http.StatusBadRequest, "M_BAD_JSON", plain(unread))
		return true
	}
	c := memberChange{room: room, user: user, reason: content.Reason}
	switch own := user == sess.user; {
	case content.Membership == rooms.MembershipInvite:
		c.kind = route.Invite
	case content.Membership == rooms.MembershipBan:
		c.kind = route.Ban
	case content.Membership == rooms.MembershipJoin && own && info.Membership != "join":
		c.kind = route.Join
	case content.Membership == rooms.MembershipLeave && own:
		c.kind = route.Leave
	case content.Membership == rooms.MembershipLeave:
		is, _, err := s.membership(r.Context(), sess, room, user)
		if err != nil {
			s.failed(w, r, err)
			return true
		}
		if is == rooms.MembershipBan { // to be banned no longer lets nobody in
			return false
		}
		c.kind = route.Kick
	default: // how one's own user is shown, or what the homeserver refuses
		return false
	}
	if _, err := s.changeMembers(r.Context(), sess, c); err != nil {
		s.refusal(w, r, err)
		return true
	}
	// It is done, whether the homeserver names its event now or not.
	answered := map[string]id.EventID{}
	if _, event, err := s.membership(r.Context(), sess, room, user); err == nil && event != "" {
		answered["event_id"] = event
	}
	answer(w, http.StatusOK, answered)
	return true
}

// membership asks the homeserver how a user stands to a room, "" for not at all, and
// which event says so, "" if it does not tell.
func (s *Server) membership(ctx context.Context, sess *session, room id.RoomID, user id.UserID) (rooms.Membership, id.EventID, error) {
	path := "/_matrix/client/v3/rooms/" + url.PathEscape(string(room)) + "/state/" + rooms.TypeMember + "/" + url.PathEscape(string(user))
	resp, err := s.ask(ctx, http.MethodGet, path, url.Values{"format": {"event"}}, sess.token, nil)
	if err != nil {
		return "", "", err
	}
	if resp.status != http.StatusOK {
		return "", "", nil
	}
	var evt struct {
		Event   id.EventID `json:"event_id"`
		Content struct {
			Membership rooms.Membership `json:"membership"`
		} `json:"content"`
		Membership rooms.Membership `json:"membership"` // where the homeserver gives no more than the content
	}
	if err := json.Unmarshal(resp.body, &evt); err != nil {
		return "", "", fmt.Errorf("server: a member event of the homeserver's: %w", err)
	}
	return cmp.Or(evt.Content.Membership, evt.Membership), evt.Event, nil
}
