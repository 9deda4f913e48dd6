package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// createRequest is what the proxy looks at of POST /createRoom.
type createRequest struct {
	Name       string            `json:"name"`
	Topic      string            `json:"topic"`
	Invite     []id.UserID       `json:"invite"`
	Preset     string            `json:"preset"`
	Visibility string            `json:"visibility"`
	Direct     bool              `json:"is_direct"`
	Alias      string            `json:"room_alias_name"`
	Invite3PID []json.RawMessage `json:"invite_3pid"`
	Creation   struct {
		Type     string `json:"type"`
		Federate *bool  `json:"m.federate"`
	} `json:"creation_content"`
	State []createState `json:"initial_state"`
}

type createState struct {
	Type    string          `json:"type"`
	Key     string          `json:"state_key"`
	Content json.RawMessage `json:"content"`
}

// createRoom makes the room that the client asks for. A client that asks for an
// encrypted one, by whatever algorithm, gets an MLS room: nobody behind a proxy
// could read another.
func (s *Server) createRoom(w http.ResponseWriter, r *http.Request, sess *session) {
	body, ok := read(w, r, maxRequest)
	if !ok {
		return
	}
	var req createRequest
	if json.Unmarshal(body, &req) != nil {
		refuse(w, http.StatusBadRequest, "M_NOT_JSON", "the request is not JSON")
		return
	}
	encrypted := false
	for _, e := range req.State {
		if strings.HasPrefix(e.Type, rooms.Prefix) {
			refuse(w, http.StatusForbidden, "M_FORBIDDEN", "events of the type "+e.Type+" are the MLS device's to send")
			return
		}
		encrypted = encrypted || e.Type == rooms.TypeEncryption
	}
	if !encrypted {
		s.published(w, r, sess, body)
		return
	}
	if why := req.unfit(); why != "" {
		refuse(w, http.StatusBadRequest, "M_UNKNOWN", why)
		return
	}
	s.createMLS(w, r, sess, &req)
}

// unfit says why a request cannot be met with an MLS room.
func (req *createRequest) unfit() string {
	switch {
	case req.Alias != "":
		return "an encrypted room is made without an address; add it in the room's settings afterwards"
	case len(req.Invite3PID) > 0:
		return "only a user's id can be invited to an encrypted room"
	case req.Creation.Type != "":
		return "a room of the type " + req.Creation.Type + " cannot be encrypted"
	case req.Creation.Federate != nil && !*req.Creation.Federate:
		return "this proxy makes encrypted rooms that other servers can take part in; a room for this server alone it does not make"
	}
	return ""
}

func (s *Server) createMLS(w http.ResponseWriter, r *http.Request, sess *session, req *createRequest) {
	o := client.CreateOptions{
		Name: req.Name, Topic: req.Topic, Direct: req.Direct,
		Public: req.Preset == "public_chat" || req.Preset == "" && req.Visibility == "public",
	}
	var later []createState
	for _, e := range req.State {
		switch e.Type {
		case rooms.TypeEncryption:
		case rooms.TypeHistoryVisibility:
			var content struct {
				Visibility string `json:"history_visibility"`
			}
			_ = json.Unmarshal(e.Content, &content) // the SDK's default, if it says nothing
			o.History = content.Visibility
		default:
			later = append(later, e)
		}
	}
	// Begun is done, whether the client waits for it or not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), changeWait)
	defer cancel()
	cli := sess.account.Client()
	room, err := cli.CreateRoom(ctx, o)
	if err != nil {
		s.refusal(w, r, err)
		return
	}
	for _, e := range later {
		if err := s.putState(ctx, sess, room, e); err != nil {
			refuse(w, http.StatusBadGateway, "M_UNKNOWN", fmt.Sprintf("the room %s was made, but not its %s: %s", room, e.Type, plain(err)))
			return
		}
	}
	for _, user := range req.Invite {
		if err := cli.Invite(ctx, room, user); err != nil {
			s.refusal(w, r, fmt.Errorf("the room %s was made, but %s is not invited: %w", room, user, err))
			return
		}
	}
	answer(w, http.StatusOK, map[string]id.RoomID{"room_id": room})
}

// putState sets a state event of a new room.
func (s *Server) putState(ctx context.Context, sess *session, room id.RoomID, e createState) error {
	body, err := s.publish(ctx, sess, e.Content)
	if err != nil {
		return err
	}
	path := "/_matrix/client/v3/rooms/" + url.PathEscape(string(room)) + "/state/" + url.PathEscape(e.Type) + "/" + url.PathEscape(e.Key)
	resp, err := s.ask(ctx, http.MethodPut, path, nil, sess.token, body)
	if err == nil && resp.status != http.StatusOK {
		err = fmt.Errorf("the homeserver answers %d %s", resp.status, resp.code())
	}
	return err
}
