package server

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// searchToken is where a search goes on, at the homeserver and here.
type searchToken struct {
	There string `json:"t,omitempty"` // the homeserver's page
	Skip  int    `json:"s,omitempty"` // of which so many were shown
	Over  bool   `json:"o,omitempty"` // the homeserver has no more
	Here  int64  `json:"h,omitempty"` // the position of the last that was shown, or how many were
	Done  bool   `json:"d,omitempty"` // there are no more here
	Count int    `json:"c,omitempty"` // found here so far
}

const searchPrefix = "mls-"

func (t searchToken) encode() string {
	raw, _ := json.Marshal(t)
	return searchPrefix + base64.RawURLEncoding.EncodeToString(raw)
}

func decodeSearchToken(s string) (t searchToken, ok bool) {
	if s == "" {
		return t, true
	}
	rest, ok := strings.CutPrefix(s, searchPrefix)
	if !ok {
		return t, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(rest)
	return t, err == nil && json.Unmarshal(raw, &t) == nil && t.Skip >= 0
}

// search answers POST /search. Messages of MLS rooms are looked for in the
// account's own store; the homeserver is asked for those of the other rooms, if
// there are any: a word that is only looked for in encrypted rooms stays here.
func (s *Server) search(w http.ResponseWriter, r *http.Request, sess *session) {
	body, ok := read(w, r, maxRequest)
	if !ok {
		return
	}
	query, events, err := rewrite.ParseSearch(body)
	if err != nil {
		refuse(w, http.StatusBadRequest, "M_NOT_JSON", "the request is not JSON")
		return
	}
	at, ok := decodeSearchToken(r.URL.Query().Get("next_batch"))
	if !ok {
		refuse(w, http.StatusBadRequest, "M_INVALID_PARAM", "next_batch is not from an answer to this search")
		return
	}
	if !events {
		resp, err := s.again(r, body)
		if err != nil {
			s.failed(w, r, err)
			return
		}
		s.passed(w, resp, sess)
		return
	}
	if err := sess.account.Ready(r.Context()); err != nil {
		wait(w, "the MLS device has not heard from the homeserver since the proxy began")
		return
	}
	v := s.view(r.Context(), sess)
	mls, plain, ok := s.searched(w, r, v, query)
	if !ok {
		return
	}
	var there json.RawMessage
	if len(plain) > 0 && !at.Over {
		params := url.Values{}
		if at.There != "" {
			params.Set("next_batch", at.There)
		}
		resp, err := s.ask(r.Context(), http.MethodPost, pathOf(r.Context()), params, sess.token, query.In(plain))
		if err != nil {
			s.failed(w, r, err)
			return
		}
		// Dendrite may have no search: what is here is found all the same.
		if resp.status != http.StatusOK && (len(mls) == 0 || resp.status != http.StatusNotFound && resp.status != http.StatusNotImplemented) {
			s.passed(w, resp, sess)
			return
		}
		if resp.status == http.StatusOK {
			there = resp.body
		}
	}
	answer, err := rewrite.ParseSearchAnswer(there, v)
	if err != nil {
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be read")
		return
	}
	here, err := s.found(r.Context(), v, query, mls, at)
	if err != nil {
		s.o.Log.Err(err).Msg("Messages cannot be searched")
		refuse(w, http.StatusInternalServerError, "M_UNKNOWN", "the messages of encrypted rooms cannot be read from the store")
		return
	}
	found, next := merge(query, answer, here, at)
	if query.Context != nil {
		for i := range found {
			if found[i].Context == nil {
				found[i].Context = s.around(v, found[i], query.Context)
			}
		}
	}
	state := map[id.RoomID][]json.RawMessage{}
	if query.State {
		for _, f := range found {
			if _, have := state[f.Room]; !have && v.MLS(f.Room) {
				state[f.Room] = s.stateOf(v, f.Room)
			}
		}
	}
	raw, err := answer.Encode(query, found, answer.Count+next.Count, next.text(), state)
	if err != nil {
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be rewritten")
		return
	}
	answerRaw(w, http.StatusOK, raw)
}

func (t searchToken) text() string {
	if t.Over && t.Done {
		return ""
	}
	return t.encode()
}

// searched are the joined rooms that a search is about, by whether they are MLS
// rooms.
func (s *Server) searched(w http.ResponseWriter, r *http.Request, v *view, query *rewrite.Search) (mls map[id.RoomID]bool, plain []id.RoomID, ok bool) {
	resp, err := s.ask(r.Context(), http.MethodGet, "/_matrix/client/v3/joined_rooms", nil, v.sess.token, nil)
	if err != nil {
		s.failed(w, r, err)
		return nil, nil, false
	}
	if resp.status != http.StatusOK {
		s.passed(w, resp, v.sess)
		return nil, nil, false
	}
	var joined struct {
		Rooms []id.RoomID `json:"joined_rooms"`
	}
	if json.Unmarshal(resp.body, &joined) != nil {
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be read")
		return nil, nil, false
	}
	mls, plain = apart(joined.Rooms, query, v.MLS, v.joined)
	return mls, plain, true
}

// apart parts rooms by whether they are MLS rooms. One that the device has not heard
// of may be: it is left out, so that no word goes out for it.
func apart(joined []id.RoomID, query *rewrite.Search, isMLS, known func(id.RoomID) bool) (mls map[id.RoomID]bool, plain []id.RoomID) {
	mls = map[id.RoomID]bool{}
	for _, room := range joined {
		switch {
		case !query.Wants(room):
		case isMLS(room):
			mls[room] = true
		case known(room):
			plain = append(plain, room)
		}
	}
	return mls, plain
}

// joined tells whether the device knows that the user is in a room.
func (v *view) joined(room id.RoomID) bool {
	info, err := v.sess.account.Client().Room(v.ctx, room)
	return err == nil && info.Membership == "join"
}

// found looks through the messages of MLS rooms: a page of the newest, or all that
// come after a number of the best.
func (s *Server) found(ctx context.Context, v *view, query *rewrite.Search, mls map[id.RoomID]bool, at searchToken) (hits hits, err error) {
	if len(mls) == 0 || len(query.Terms) == 0 || at.Done {
		return hits, nil
	}
	rank := func(m *client.Message) float64 {
		if !mls[m.Room] || m.Type != "m.room.message" {
			return 0
		}
		n := rewrite.Rank(rewrite.BodyOf(m.Content), query.Terms)
		if n > 0 && !query.Keeps(rewrite.MessageEvent(m.Room, m.EventID, m.Timestamp, rewrite.Reading{Sender: m.Sender, Type: m.Type, Content: m.Content})) {
			return 0
		}
		return n
	}
	var only id.RoomID
	if len(mls) == 1 {
		for room := range mls {
			only = room
		}
	}
	var list []account.Match
	if query.Recent {
		list, hits.before, err = v.sess.account.Search(ctx, only, at.Here, query.Limit, rank)
	} else {
		list, err = v.sess.account.Best(ctx, only, rank)
		list = list[max(0, min(int(at.Here), len(list))):]
	}
	for _, m := range list {
		if len(hits.list) == query.Limit {
			hits.more = true
			break
		}
		hits.list = append(hits.list, rewrite.Found{Room: m.Message.Room, Event: v.message(m.Message), Rank: m.Rank})
		hits.seqs = append(hits.seqs, m.Seq)
	}
	return hits, err
}

// hits are messages that were found here.
type hits struct {
	list   []rewrite.Found
	seqs   []int64
	before int64 // of the newest: where the rest begins, 0 if there is none
	more   bool  // of the best: there are more
}

// merge takes a page of what was found at the homeserver and here, in the order
// that is wanted, and says where the rest begins.
func merge(query *rewrite.Search, answer *rewrite.SearchAnswer, here hits, at searchToken) (found []rewrite.Found, next searchToken) {
	next = at
	there := answer.Found[min(at.Skip, len(answer.Found)):]
	i, j := 0, 0
	for len(found) < query.Limit && (i < len(there) || j < len(here.list)) {
		if i == len(there) && answer.Next != "" || j == len(here.list) && (here.before != 0 || here.more) {
			break // what comes next there may be before what is left here
		}
		first := j == len(here.list)
		if i < len(there) && j < len(here.list) {
			first = there[i].Rank >= here.list[j].Rank
			if query.Recent {
				first = there[i].Event.Time >= here.list[j].Event.Time
			}
		}
		if first {
			found = append(found, there[i])
			i++
			continue
		}
		found = append(found, here.list[j])
		next.Here = here.seqs[j]
		if !query.Recent {
			next.Here = at.Here + int64(j+1)
		}
		j++
	}
	next.Count += j
	next.Skip += i
	if i == len(there) {
		next.There, next.Skip, next.Over = answer.Next, 0, answer.Next == ""
	}
	if j == len(here.list) {
		next.Done = !here.more
		if query.Recent {
			next.Done, next.Here = here.before == 0, here.before
		}
	}
	return found, next
}

// around asks what is around an event, nil if that is not to be had.
func (s *Server) around(v *view, f rewrite.Found, want *rewrite.Around) json.RawMessage {
	path := "/_matrix/client/v3/rooms/" + url.PathEscape(string(f.Room)) + "/context/" + url.PathEscape(string(f.Event.ID))
	params := url.Values{"limit": {strconv.Itoa(min(100, 4*max(want.Before, want.After, 1)))}, "filter": {`{"lazy_load_members":true}`}}
	resp, err := s.ask(v.ctx, http.MethodGet, path, params, v.sess.token, nil)
	if err != nil || resp.status != http.StatusOK {
		return nil
	}
	page, err := rewrite.ParsePage(f.Room, resp.body)
	if err != nil {
		return nil
	}
	return rewrite.AroundOf(page, v, want)
}

// stateOf asks for a room's state.
func (s *Server) stateOf(v *view, room id.RoomID) []json.RawMessage {
	resp, err := s.ask(v.ctx, http.MethodGet, "/_matrix/client/v3/rooms/"+url.PathEscape(string(room))+"/state", nil, v.sess.token, nil)
	var events []json.RawMessage
	if err != nil || resp.status != http.StatusOK || json.Unmarshal(resp.body, &events) != nil {
		return nil
	}
	kept, _ := rewrite.List(room, events, v)
	return rewrite.Raws(kept)
}
