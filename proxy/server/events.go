package server

import (
	"encoding/json"
	"net/http"
	"net/url"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/proxy/route"
)

const notFound = "there is no such event in this room"

// fetch makes the client's request. It returns nil if the client has its answer
// already.
func (s *Server) fetch(w http.ResponseWriter, r *http.Request, sess *session) []byte {
	return s.fetchWith(w, r, sess, r.URL.Query())
}

// fetchWith makes the client's request with another query.
func (s *Server) fetchWith(w http.ResponseWriter, r *http.Request, sess *session, query url.Values) []byte {
	resp, err := s.ask(r.Context(), r.Method, pathOf(r.Context()), query, sess.token, nil)
	if err != nil {
		s.failed(w, r, err)
		return nil
	}
	if resp.status != http.StatusOK {
		s.passed(w, resp, sess)
		return nil
	}
	return resp.body
}

// context answers GET /rooms/{room}/context/{event}.
func (s *Server) context(w http.ResponseWriter, r *http.Request, sess *session, room id.RoomID) {
	query, asked := inline(r.URL.Query())
	body := s.fetchWith(w, r, sess, query)
	if body == nil {
		return
	}
	v := s.view(r.Context(), sess)
	page, err := rewrite.ParsePage(room, body)
	if err != nil {
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be read")
		return
	}
	for _, list := range []string{"events_before", "events_after"} {
		v.await(r.Context(), room, page.Came(list))
	}
	notices := page.Rewrite(v, "events_before", "events_after", "state")
	page.Select("events_before", asked)
	page.Select("events_after", asked)
	event, ok := page.RewriteOne(v, "event")
	if !ok {
		refuse(w, http.StatusNotFound, "M_NOT_FOUND", notFound)
		return
	}
	s.shown.note(sess.tag, room, append(notices, event))
	s.encode(w, page)
}

// event answers GET /rooms/{room}/event/{event}.
func (s *Server) event(w http.ResponseWriter, r *http.Request, sess *session, room id.RoomID) {
	body := s.fetch(w, r, sess)
	if body == nil {
		return
	}
	v := s.view(r.Context(), sess)
	v.await(r.Context(), room, []json.RawMessage{body})
	event := rewrite.One(room, body, v)
	if event.Raw == nil {
		refuse(w, http.StatusNotFound, "M_NOT_FOUND", notFound)
		return
	}
	s.shown.note(sess.tag, room, []rewrite.Event{event})
	answerRaw(w, http.StatusOK, event.Raw)
}

// whyNotice is why nothing can be done to a notice about a room.
const whyNotice = "this is a notice of the proxy's to you alone, which nobody else in the room sees: it cannot be answered, reacted to, edited or reported"

// onNotice answers what is asked of a notice about a room, which is nobody's event
// but the client's.
func (s *Server) onNotice(w http.ResponseWriter, m route.Match) {
	switch m.Kind {
	case route.Redact: // nothing is shown of it again
		answer(w, http.StatusOK, map[string]string{"event_id": m.Params["event"]})
	case route.Marker: // nothing was read before it
		answer(w, http.StatusOK, struct{}{})
	case route.Relations: // it has none
		answer(w, http.StatusOK, map[string][]string{"chunk": {}})
	case route.Context, route.Event:
		refuse(w, http.StatusNotFound, "M_NOT_FOUND", notFound)
	default:
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", whyNotice)
	}
}

// originals puts the ids that the homeserver knows into an event that a client
// sends, or refuses one that names a notice about a room.
func (s *Server) originals(w http.ResponseWriter, body []byte) ([]byte, bool) {
	body, notice := rewrite.Originals(body)
	if notice {
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", whyNotice)
	}
	return body, !notice
}

// atTime answers GET /rooms/{room}/timestamp_to_event. Where the homeserver names an
// event that clients are not shown, the next one that they are is named.
func (s *Server) atTime(w http.ResponseWriter, r *http.Request, sess *session, room id.RoomID) {
	body := s.fetch(w, r, sess)
	if body == nil {
		return
	}
	var named struct {
		Event id.EventID `json:"event_id"`
	}
	if json.Unmarshal(body, &named) != nil || named.Event == "" {
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be read")
		return
	}
	list, end, dir := "events_after", "end", "f"
	if r.URL.Query().Get("dir") == "b" {
		list, end, dir = "events_before", "start", "b"
	}
	in := "/_matrix/client/v3/rooms/" + url.PathEscape(string(room))
	path, query := in+"/context/"+url.PathEscape(string(named.Event)), url.Values{"limit": {"20"}}
	v := s.view(r.Context(), sess)
	for n := range maxPages {
		resp, err := s.ask(r.Context(), http.MethodGet, path, query, sess.token, nil)
		if err != nil {
			s.failed(w, r, err)
			return
		}
		if resp.status != http.StatusOK {
			s.passed(w, resp, sess)
			return
		}
		page, err := rewrite.ParsePage(room, resp.body)
		if err != nil {
			refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be read")
			return
		}
		if n == 0 {
			if _, ok := page.RewriteOne(v, "event"); ok {
				answerRaw(w, http.StatusOK, body)
				return
			}
		}
		came := page.Came(list)
		if shown, _ := rewrite.List(room, came, v); len(shown) > 0 {
			answer(w, http.StatusOK, map[string]any{"event_id": shown[0].ID, "origin_server_ts": shown[0].Time})
			return
		}
		from := page.Text(end)
		if from == "" || from == query.Get("from") || n > 0 && len(came) == 0 {
			break
		}
		list, end, path, query = "chunk", "end", in+"/messages", url.Values{"dir": {dir}, "from": {from}, "limit": {"100"}}
	}
	refuse(w, http.StatusNotFound, "M_NOT_FOUND", notFound)
}

// list answers what has one list of state events, of any length: GET
// /rooms/{room}/members has it under a name, /rooms/{room}/state has nothing else.
func (s *Server) list(w http.ResponseWriter, r *http.Request, sess *session, room id.RoomID, name string) {
	query := r.URL.Query()
	resp, err := s.begin(r.Context(), r.Method, pathOf(r.Context()), query, tokenOf(r.Header, query), nil)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		refusal, err := readReply(resp, maxRequest)
		if err != nil {
			s.failed(w, r, err)
			return
		}
		s.passed(w, refusal, sess)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	out := &begun{w: w}
	err = rewrite.WriteList(out, resp.Body, room, name, s.view(r.Context(), sess))
	switch {
	case err == nil:
	case out.some:
		s.o.Log.Warn().Str("error", redact(err)).Msg("A list of the homeserver's broke off")
		panic(http.ErrAbortHandler) // the client must not take it for a whole answer
	default:
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be read")
	}
}

// begun tells whether something of an answer is on its way.
type begun struct {
	w    http.ResponseWriter
	some bool
}

// Write implements io.Writer.
func (b *begun) Write(p []byte) (int, error) {
	b.some = true
	return b.w.Write(p)
}

// stateEvent answers GET /rooms/{room}/state/{type}/{key}.
func (s *Server) stateEvent(w http.ResponseWriter, r *http.Request, sess *session, m route.Match) {
	resp, err := s.again(r, nil)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	if resp.status == http.StatusOK {
		resp.body = rewrite.StateContent(id.RoomID(m.Params["room"]), m.Params["type"], resp.body, s.view(r.Context(), sess))
		if resp.body == nil {
			refuse(w, http.StatusNotFound, "M_NOT_FOUND", "the room has no such state")
			return
		}
	}
	s.passed(w, resp, sess)
}

// hierarchy answers GET /rooms/{room}/hierarchy.
func (s *Server) hierarchy(w http.ResponseWriter, r *http.Request, sess *session) {
	body := s.fetch(w, r, sess)
	if body == nil {
		return
	}
	out, err := rewrite.Hierarchy(body, s.view(r.Context(), sess))
	if err != nil {
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be read")
		return
	}
	answerRaw(w, http.StatusOK, out)
}
