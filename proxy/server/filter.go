package server

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/proxy/route"
)

// maxFilter bounds a filter that is kept.
const maxFilter = 64 << 10

// everything is the filter of who does not filter.
const everything = "{}"

// inline takes the filter that stands in a query about one room: the homeserver
// gets it so that it lets ciphertexts pass, and none of our own events.
func inline(query url.Values) (url.Values, rewrite.Selection) {
	f := query.Get("filter")
	switch {
	case f == "":
		f = everything
	case !strings.HasPrefix(f, "{"):
		return query, rewrite.Selection{} // the homeserver says what is wrong with it
	}
	query.Set("filter", string(rewrite.RoomFilter(json.RawMessage(f))))
	return query, rewrite.SelectionOf(json.RawMessage(f))
}

// filtered takes the filter of a /sync, which stands in the query or was stored
// before. The id of a stored one is the homeserver's and a hash of what the
// client wanted: the homeserver keeps only what it is to let pass.
func (s *Server) filtered(r *http.Request, sess *session) (url.Values, rewrite.Selection, error) {
	query := r.URL.Query()
	f := query.Get("filter")
	if f == "" {
		f = everything
	}
	if strings.HasPrefix(f, "{") {
		query.Set("filter", string(rewrite.SyncFilter(json.RawMessage(f))))
		return query, rewrite.TimelineOf(json.RawMessage(f)), nil
	}
	stored := rewrite.Unkeyed(f)
	if stored == f {
		return query, rewrite.Selection{Unknown: true}, nil
	}
	query.Set("filter", stored)
	wanted, err := sess.account.Filter(r.Context(), f)
	if err != nil || wanted == nil {
		return query, rewrite.Selection{Unknown: true}, err
	}
	return query, rewrite.TimelineOf(wanted), nil
}

// filter stores a client's filter, so that it lets ciphertexts pass, and none of our own events.
func (s *Server) filter(w http.ResponseWriter, r *http.Request, sess *session) {
	body, ok := read(w, r, maxFilter)
	if !ok {
		return
	}
	resp, err := s.again(r, rewrite.SyncFilter(body))
	if err != nil {
		s.failed(w, r, err)
		return
	}
	var made struct {
		ID string `json:"filter_id"`
	}
	if resp.status != http.StatusOK || json.Unmarshal(resp.body, &made) != nil || made.ID == "" {
		s.passed(w, resp, sess)
		return
	}
	name := rewrite.Keyed(made.ID, bytes.TrimSpace(body))
	if err := sess.account.KeepFilter(r.Context(), name, body); err != nil {
		s.o.Log.Err(err).Msg("A client's filter could not be stored")
		refuse(w, http.StatusInternalServerError, "M_UNKNOWN", "the filter could not be stored; is the disk full?")
		return
	}
	answer(w, http.StatusOK, map[string]string{"filter_id": name})
}

// filterOf answers GET /user/{user}/filter/{filter}.
func (s *Server) filterOf(w http.ResponseWriter, r *http.Request, sess *session, m route.Match) {
	wanted, err := sess.account.Filter(r.Context(), m.Params["filter"])
	switch {
	case err != nil:
		s.o.Log.Err(err).Msg("A client's filter cannot be read")
		refuse(w, http.StatusInternalServerError, "M_UNKNOWN", "the stored filter cannot be read")
	case wanted != nil && m.Params["user"] == sess.user.String():
		answerRaw(w, http.StatusOK, wanted)
	default:
		s.stream.ServeHTTP(w, r)
	}
}
