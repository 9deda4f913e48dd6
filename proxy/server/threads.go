package server

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// Bounds of a page of threads, and its size if the client does not say.
const (
	maxThreads   = 50
	usualThreads = 10
)

// threads answers GET /rooms/{room}/threads. Where the homeserver has no such list,
// that of an MLS room is made of what the account's device could read.
func (s *Server) threads(w http.ResponseWriter, r *http.Request, sess *session, room id.RoomID) {
	v := s.view(r.Context(), sess)
	query := r.URL.Query()
	before, own := strings.CutPrefix(query.Get("from"), searchPrefix)
	position := int64(1<<63 - 1)
	if own {
		var err error
		if position, err = strconv.ParseInt(before, 10, 64); err != nil || !v.MLS(room) {
			refuse(w, http.StatusBadRequest, "M_INVALID_PARAM", "from is not of this list")
			return
		}
	} else {
		resp, err := s.ask(r.Context(), http.MethodGet, pathOf(r.Context()), query, sess.token, nil)
		if err != nil {
			s.failed(w, r, err)
			return
		}
		if resp.status != http.StatusOK {
			if resp.code() != "M_UNRECOGNIZED" || !v.MLS(room) {
				s.passed(w, resp, sess)
				return
			}
		} else {
			page, err := rewrite.ParsePage(room, resp.body)
			if err != nil {
				refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be read")
				return
			}
			page.Rewrite(v, "chunk")
			s.encode(w, page)
			return
		}
	}
	all, err := sess.account.Threads(r.Context(), room)
	if err != nil {
		s.o.Log.Err(err).Msg("Threads cannot be read from the store")
		refuse(w, http.StatusInternalServerError, "M_UNKNOWN", "the threads of this room cannot be read from the store")
		return
	}
	limit, err := strconv.Atoi(query.Get("limit"))
	if err != nil || limit < 1 {
		limit = usualThreads
	}
	limit = min(limit, maxThreads)
	chunk := []rewrite.Event{}
	body := map[string]any{}
	for _, t := range all {
		if t.Seq >= position || query.Get("include") == "participated" && !t.Participated {
			continue
		}
		if limit == 0 {
			body["next_batch"] = searchPrefix + strconv.FormatInt(position, 10)
			break
		}
		limit--
		position = t.Seq
		if root := s.rootOf(v, room, t.Root); root.Raw != nil {
			chunk = append(chunk, rewrite.WithThread(root, v.message(t.Latest), t.Count, t.Participated))
		}
	}
	body["chunk"] = rewrite.Raws(chunk)
	answer(w, http.StatusOK, body)
}

// rootOf asks for the event that a thread begins with.
func (s *Server) rootOf(v *view, room id.RoomID, event id.EventID) rewrite.Event {
	path := "/_matrix/client/v3/rooms/" + url.PathEscape(string(room)) + "/event/" + url.PathEscape(string(event))
	resp, err := s.ask(v.ctx, http.MethodGet, path, nil, v.sess.token, nil)
	if err != nil || resp.status != http.StatusOK {
		return rewrite.Event{}
	}
	return rewrite.One(room, resp.body, v)
}
