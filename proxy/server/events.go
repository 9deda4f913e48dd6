package server

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"

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

// relations answers GET /rooms/{room}/relations/{event}. The homeserver sees
// only ciphertexts, so it is not asked for a type of events; it knows the
// relations that stand outside the ciphertexts: edits, threads and references.
// Reactions are inside, and come from the account's own store, with the first page.
func (s *Server) relations(w http.ResponseWriter, r *http.Request, sess *session, m route.Match) {
	room := id.RoomID(m.Params["room"])
	v := s.view(r.Context(), sess)
	path, wanted, rel := m.Path, m.Params["type"], m.Params["rel"]
	if wanted != "" && v.MLS(room) {
		path = path[:strings.LastIndexByte(path, '/')]
	}
	resp, err := s.ask(r.Context(), http.MethodGet, path, r.URL.Query(), sess.token, nil)
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
	v.await(r.Context(), room, page.Came("chunk"))
	events, _ := rewrite.List(room, page.Came("chunk"), v)
	if v.MLS(room) && (rel == "" || rel == "m.annotation") && r.URL.Query().Get("from") == "" {
		if events, err = v.withReactions(room, id.EventID(m.Params["event"]), events, r.URL.Query().Get("dir") == "f"); err != nil {
			s.o.Log.Err(err).Msg("Reactions cannot be read from the store")
			refuse(w, http.StatusInternalServerError, "M_UNKNOWN", "the reactions to this message cannot be read from the store")
			return
		}
	}
	if wanted != "" {
		kept := events[:0]
		for _, e := range events {
			if rewrite.TypeOf(e.Raw) == wanted {
				kept = append(kept, e)
			}
		}
		events = kept
	}
	page.Set("chunk", events)
	s.encode(w, page)
}

// withReactions adds a message's reactions to events that relate to it, the newest
// first or last.
func (v *view) withReactions(room id.RoomID, to id.EventID, events []rewrite.Event, forward bool) ([]rewrite.Event, error) {
	reactions, err := v.sess.account.Reactions(v.ctx, room, to)
	if err != nil {
		return nil, err
	}
	for _, m := range reactions {
		if !slices.ContainsFunc(events, func(e rewrite.Event) bool { return e.ID == m.EventID }) {
			events = append(events, v.message(m))
		}
	}
	slices.SortStableFunc(events, func(a, b rewrite.Event) int {
		if forward {
			a, b = b, a
		}
		return cmp.Compare(b.Time, a.Time)
	})
	return events, nil
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
