package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// createRequest is what the proxy looks at of POST /createRoom.
type createRequest struct {
	Name       string                     `json:"name"`
	Topic      string                     `json:"topic"`
	Invite     []id.UserID                `json:"invite"`
	Preset     string                     `json:"preset"`
	Visibility string                     `json:"visibility"`
	Direct     bool                       `json:"is_direct"`
	Alias      string                     `json:"room_alias_name"`
	Version    string                     `json:"room_version"`
	Power      json.RawMessage            `json:"power_level_content_override"`
	Invite3PID []json.RawMessage          `json:"invite_3pid"`
	Creation   map[string]json.RawMessage `json:"creation_content"`
	State      []createState              `json:"initial_state"`
}

// createKeys are the keys that are looked at. One that differs from them in case
// alone is refused: some homeservers take it for the same.
var createKeys = []string{
	"name", "topic", "invite", "preset", "visibility", "is_direct", "room_alias_name", "room_version",
	"power_level_content_override", "invite_3pid", "creation_content", "initial_state",
}

func decodeCreate(body []byte, req *createRequest) error {
	if err := rooms.DecodeObject(body, req); err != nil {
		return err
	}
	var all struct {
		State []map[string]json.RawMessage `json:"initial_state"`
	}
	var top map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(body, &top), rooms.DecodeObject(body, &all)); err != nil {
		return err
	}
	if err := sameInCase(top, createKeys); err != nil {
		return err
	}
	for _, e := range all.State {
		if err := sameInCase(e, []string{"type", "state_key", "content"}); err != nil {
			return err
		}
	}
	return nil
}

func sameInCase(object map[string]json.RawMessage, known []string) error {
	for key := range object {
		for _, k := range known {
			if key != k && strings.EqualFold(key, k) {
				return fmt.Errorf("the key %q is not one; %q is", key, k)
			}
		}
	}
	return nil
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
	if !json.Valid(body) {
		refuse(w, http.StatusBadRequest, "M_NOT_JSON", "the request is not JSON")
		return
	}
	if err := decodeCreate(body, &req); err != nil {
		refuse(w, http.StatusBadRequest, "M_BAD_JSON", plain(err))
		return
	}
	for key := range req.Creation {
		if key == rooms.KeyCreateAlgorithm || strings.HasPrefix(key, rooms.Prefix) {
			refuse(w, http.StatusForbidden, "M_FORBIDDEN", "how a room is encrypted is the MLS device's to say; ask for m.room.encryption in initial_state")
			return
		}
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
	}
	for key, value := range req.Creation {
		switch {
		case key == "type" && string(value) != `""` && string(value) != "null":
			return "a room of the type " + string(value) + " cannot be encrypted"
		case key == "m.federate" && string(value) != "true":
			return "this proxy makes encrypted rooms that other servers can take part in; a room for this server alone it does not make"
		case key != "type" && key != "m.federate" && key != "creator" && key != "room_version":
			return "an encrypted room is made without " + key + " in its creation_content"
		}
	}
	return ""
}

func (s *Server) createMLS(w http.ResponseWriter, r *http.Request, sess *session, req *createRequest) {
	o := client.CreateOptions{
		Name: req.Name, Topic: req.Topic, Direct: req.Direct,
		Public:  req.Preset == "public_chat" || req.Preset == "" && req.Visibility == "public",
		Version: req.Version, Power: req.Power,
	}
	if string(req.Power) == "null" {
		o.Power = nil
	}
	if req.Preset == "trusted_private_chat" {
		o.Power = trusting(sess.user, req, o.Power)
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
	if req.Visibility == "public" {
		if err := s.publicize(ctx, sess, room); err != nil {
			refuse(w, http.StatusBadGateway, "M_UNKNOWN", fmt.Sprintf("the room %s was made, but is not in the directory: %s", room, plain(err)))
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

// trusting are power levels by which the invited may do all that the creator may
// (Matrix client-server API, "trusted_private_chat"). From room version 12 on the
// creator stands above them. Levels that the client asks for stay as they are; if
// they name users, those alone have some.
func trusting(creator id.UserID, req *createRequest, asked json.RawMessage) json.RawMessage {
	levels := map[string]json.RawMessage{}
	if len(asked) > 0 && (json.Unmarshal(asked, &levels) != nil || levels == nil || levels["users"] != nil) {
		return asked
	}
	power := map[id.UserID]int{}
	if n, err := strconv.Atoi(req.Version); req.Version == "" || err == nil && n < 12 {
		power[creator] = 100
	}
	for _, user := range req.Invite {
		power[user] = 100
	}
	levels["users"], _ = json.Marshal(power)
	raw, _ := json.Marshal(levels)
	return raw
}

// publicize puts a room into the server's directory.
func (s *Server) publicize(ctx context.Context, sess *session, room id.RoomID) error {
	path := "/_matrix/client/v3/directory/list/room/" + url.PathEscape(string(room))
	return s.change(ctx, sess, path, json.RawMessage(`{"visibility":"public"}`))
}

// putState sets a state event of a new room.
func (s *Server) putState(ctx context.Context, sess *session, room id.RoomID, e createState) error {
	body, err := s.publish(ctx, sess, e.Content)
	if err != nil {
		return err
	}
	path := "/_matrix/client/v3/rooms/" + url.PathEscape(string(room)) + "/state/" + url.PathEscape(e.Type) + "/" + url.PathEscape(e.Key)
	return s.change(ctx, sess, path, body)
}

// change makes a PUT request that has to succeed.
func (s *Server) change(ctx context.Context, sess *session, path string, body []byte) error {
	resp, err := s.ask(ctx, http.MethodPut, path, nil, sess.token, body)
	if err == nil && resp.status != http.StatusOK {
		err = fmt.Errorf("the homeserver answers %d %s", resp.status, resp.code())
	}
	return err
}
