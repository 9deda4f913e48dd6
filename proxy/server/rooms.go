package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/proxy/route"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	// sendWait is for how long a client waits for a message that cannot be sent
	// yet, before it is asked to come again.
	sendWait = 25 * time.Second
	// changeWait is for how long a change of a room may take, whether the client
	// waits for it or not.
	changeWait = 2 * time.Minute
	// inviteWait is for how long a join waits for the MLS device to hear of the
	// invite, if there is one.
	inviteWait = time.Second
)

// send takes a message into a room (PUT …/send/{type}/{txnId}). In an MLS room
// it goes out through the MLS device, encrypted, or not at all.
func (s *Server) send(w http.ResponseWriter, r *http.Request, sess *session, m route.Match) {
	room, eventType, txn := id.RoomID(m.Params["room"]), m.Params["type"], m.Params["txn"]
	if strings.HasPrefix(eventType, rooms.Prefix) {
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", "events of that type are the MLS device's to send")
		return
	}
	if s.later(w, r) {
		return
	}
	body, ok := read(w, r, maxRequest)
	if !ok {
		return
	}
	if body, ok = s.originals(w, body); !ok {
		return
	}
	cli := sess.account.Client()
	if !cli.IsMLS(room) {
		// The device may not have heard yet that it is one now.
		if s.isPlain(w, r, sess, room) {
			s.sendPlain(w, r, sess, room, body)
		}
		return
	}
	switch why := unsendable(eventType, body); {
	case why != "":
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", why)
		return
	case eventType == "m.room.redaction":
		refuse(w, http.StatusBadRequest, "M_UNKNOWN", "redactions go by PUT …/redact/{eventId}/{txnId}")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.sendWait)
	defer cancel()
	content, err := s.single(ctx, sess, sess.account, body)
	if err != nil {
		s.notSingle(w, r, err)
		return
	}
	if content, err = s.attach(ctx, sess, content); errors.Is(err, errAsItIs) {
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", "the client uploaded the attached file without a name and a type, as one that it had encrypted by itself, and sends no key for it: upload it again with its type, as application/pdf for scan.pdf, instead of application/octet-stream")
		return
	}
	if errors.Is(err, errNoKey) {
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", "the key of the attached file is not there any more, since the message that it came with was removed, or its room forgotten: upload the file again")
		return
	}
	if err != nil {
		s.o.Log.Err(err).Msg("The key of a file cannot be read")
		refuse(w, http.StatusInternalServerError, "M_UNKNOWN", "the key of the attached file cannot be read")
		return
	}
	event, err := cli.SendOnce(ctx, room, eventType, content, string(sess.device)+"/"+eventType+"/"+txn)
	if err != nil && r.Context().Err() == nil {
		s.waits(r.Context(), sess, room, err)
	}
	if err != nil && errors.Is(err, client.ErrNoGroup) && !sess.account.Verified(r.Context()) {
		wait(w, "the message waits: rooms do not let the proxy's device in until it is verified; on its machine: mls-proxy --state '"+sess.account.Dir()+"' verify --recovery-key")
		return
	}
	if err != nil {
		switch sess.account.Session(context.WithoutCancel(r.Context())) {
		case account.SessionSoft:
			wait(w, "the message waits: the homeserver wants the proxy's device to log in again; end mls-proxy run, run on its machine: mls-proxy --state '"+sess.account.Dir()+"' login, and start it again; or log in through it once more with another client, with the password")
			return
		case account.SessionOver:
			refuse(w, http.StatusForbidden, "M_FORBIDDEN", "the homeserver has ended the session of the proxy's device: log out and in again through the proxy")
			return
		}
		s.refusal(w, r, err)
		return
	}
	s.sent.note(sess.tag, room, event, txn)
	answer(w, http.StatusOK, map[string]id.EventID{"event_id": event})
}

// later refuses an event that the homeserver is to send later, in whatever room: that
// may be an MLS room by then. Clients are not told that it could.
func (s *Server) later(w http.ResponseWriter, r *http.Request) bool {
	if !client.IsDelayed(r.URL.Query()) {
		return false
	}
	refuse(w, http.StatusBadRequest, "M_UNRECOGNIZED", "an event is sent at once or not at all: its room may be an MLS room later")
	return true
}

// isPlain asks the homeserver whether a room that the MLS device does not know as
// an MLS room is none. It answers the client if that is not certain.
func (s *Server) isPlain(w http.ResponseWriter, r *http.Request, sess *session, room id.RoomID) bool {
	for _, eventType := range []string{rooms.TypeCreate, rooms.TypeEncryption} {
		path := "/_matrix/client/v3/rooms/" + url.PathEscape(string(room)) + "/state/" + eventType + "/"
		resp, err := s.ask(r.Context(), http.MethodGet, path, nil, sess.token, nil)
		if err != nil {
			s.failed(w, r, err)
			return false
		}
		err = client.CheckPlain(eventType, resp.status, resp.body)
		switch {
		case err == nil:
		case resp.status == http.StatusOK:
			wait(w, "nothing goes out in clear: "+plain(err))
			return false
		case resp.code() == "": // it is not the homeserver that answers
			refuse(w, http.StatusBadGateway, "M_UNKNOWN", "nothing is sent: whether the room is encrypted cannot be asked; what should be the homeserver "+s.o.Homeserver.Host+" answers "+strconv.Itoa(resp.status)+" and no Matrix error")
			return false
		default:
			s.passed(w, resp, sess)
			return false
		}
	}
	return true
}

// unsendable says why an event must not go into an MLS room.
func unsendable(eventType string, body []byte) string {
	if eventType == rooms.TypeEncrypted {
		return "the client has encrypted this message by itself, for a room that is encrypted with MLS: nobody in it could read it. Turn the client's own encryption off for this room, or log in without it"
	}
	var content map[string]json.RawMessage
	if json.Unmarshal(body, &content) != nil || content == nil {
		return "the content of an event is a JSON object"
	}
	return ""
}

// sendPlain passes a message on into a room that is no MLS room. The guard lets
// nothing out in clear if it has become one meanwhile.
func (s *Server) sendPlain(w http.ResponseWriter, r *http.Request, sess *session, room id.RoomID, body []byte) {
	body, err := s.publish(r.Context(), sess, body)
	if err != nil {
		s.unpublished(w, err)
		return
	}
	if sess.account.Client().IsMLS(room) { // while a file was made public for it
		wait(w, "the room has just become an MLS room")
		return
	}
	// A connection that the homeserver has closed meanwhile is no refusal: the
	// request is made again.
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	r.Body, _ = r.GetBody()
	r.ContentLength, r.TransferEncoding = int64(len(body)), nil
	proxy := s.reverse(&client.Guard{Client: sess.account.Client(), Base: upstream{s.o.Transport}}, onlyJSON)
	proxy.ErrorHandler = s.refusal
	proxy.ServeHTTP(w, r)
}

// refusal tells the client why the MLS device did not do something.
func (s *Server) refusal(w http.ResponseWriter, r *http.Request, err error) {
	var limited *client.RateLimitError
	var homeserver mautrix.HTTPError
	switch {
	case r.Context().Err() != nil: // what waits goes out later
		s.stopped(w)
	case errors.As(err, &limited):
		wait(w, "the homeserver limits how much is sent")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, client.ErrClosed), errors.Is(err, client.ErrNoGroup),
		errors.Is(err, client.ErrBarrier), errors.Is(err, client.ErrSuiteChange):
		text := plain(err)
		for _, end := range []string{" (" + context.DeadlineExceeded.Error() + ")", ": " + context.DeadlineExceeded.Error()} {
			text = strings.TrimSuffix(text, end) // that it was waited for is all that this says
		}
		wait(w, "not yet: "+text)
	case errors.Is(err, client.ErrTooLarge):
		refuse(w, http.StatusRequestEntityTooLarge, "M_TOO_LARGE", plain(err))
	case errors.As(err, &homeserver) && homeserver.RespError != nil && homeserver.Response != nil:
		refuse(w, homeserver.Response.StatusCode, homeserver.RespError.ErrCode, homeserver.RespError.Err)
	case errors.Is(err, client.ErrRemoved), errors.Is(err, client.ErrNotAllowed), errors.Is(err, client.ErrNoModule), errors.Is(err, client.ErrNoRoom):
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", plain(err))
	case isNetwork(err):
		s.failed(w, r, err)
	default:
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", plain(err))
	}
}

// plain is an error without the names of packages.
func plain(err error) string {
	text := redact(err)
	for _, prefix := range []string{"client: ", "guard: ", "identity: ", "rooms: "} {
		text = strings.ReplaceAll(text, prefix, "")
	}
	return text
}

// setState takes a state event into a room. State is not encrypted, in MLS
// rooms either; how a room is encrypted is not the client's to change.
func (s *Server) setState(w http.ResponseWriter, r *http.Request, sess *session, m route.Match) {
	room, eventType := id.RoomID(m.Params["room"]), m.Params["type"]
	if strings.HasPrefix(eventType, rooms.Prefix) {
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", "events of that type are the MLS device's to send")
		return
	}
	if s.later(w, r) {
		return
	}
	body, ok := read(w, r, maxRequest)
	if !ok {
		return
	}
	if eventType == rooms.TypeEncryption {
		if sess.account.Client().IsMLS(room) {
			refuse(w, http.StatusForbidden, "M_FORBIDDEN", "this room is encrypted already, with MLS, by the proxy; the client has nothing to turn on")
			return
		}
		asks, err := asksForMLS(body)
		if err != nil {
			refuse(w, http.StatusBadRequest, "M_BAD_JSON", plain(err))
			return
		}
		if asks {
			refuse(w, http.StatusForbidden, "M_FORBIDDEN", "mls-proxy enable turns a room into an MLS room: it takes more than this event")
			return
		}
		if !s.isPlain(w, r, sess, room) { // the device may not have heard yet that it is one
			return
		}
	}
	if eventType == rooms.TypeMember && s.memberEvent(w, r, sess, room, id.UserID(m.Params["key"]), body) {
		return
	}
	if body, ok = s.originals(w, body); !ok {
		return
	}
	if rewrite.IsMessage(eventType) && sess.account.Client().IsMLS(room) {
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", "state is not encrypted, so messages of an MLS room are none; send them by PUT …/send/{type}/{txnId}")
		return
	}
	s.published(w, r, sess, body)
}

// setProfile takes a display name or an avatar, which everybody may see.
func (s *Server) setProfile(w http.ResponseWriter, r *http.Request, sess *session) {
	if body, ok := read(w, r, maxRequest); ok {
		s.published(w, r, sess, body)
	}
}

// asksForMLS tells whether the content of an m.room.encryption names MLS. One that
// can be read in two ways is an error.
func asksForMLS(content []byte) (bool, error) {
	var c struct {
		Algorithm json.RawMessage `json:"algorithm"`
	}
	if err := rooms.DecodeObject(content, &c); err != nil {
		return false, err
	}
	var name string // anything else names nothing, and is the homeserver's to refuse
	_ = json.Unmarshal(c.Algorithm, &name)
	return name == rooms.Algorithm, nil
}

// forward makes the client's request with a body that was read.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, sess *session, body []byte) {
	resp, err := s.again(r, body)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	s.passed(w, resp, sess)
}

// upgrade refuses to upgrade an MLS room: the new one would have the encryption
// and nobody's keys.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request, sess *session, room id.RoomID) {
	if sess.account.Client().IsMLS(room) {
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", "this proxy cannot upgrade MLS rooms; make a new one and invite its members")
		return
	}
	s.stream.ServeHTTP(w, r)
}
