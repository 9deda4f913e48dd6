package server

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/proxy/route"
)

// relations answers GET /rooms/{room}/relations/{event}. The homeserver sees
// only ciphertexts, so it is not asked for a type of events; it knows the
// relations that stand outside the ciphertexts: edits, threads and references.
// Reactions are inside, and come from the account's own store. A page that the
// homeserver's own token asks for has none of them: all came before.
func (s *Server) relations(w http.ResponseWriter, r *http.Request, sess *session, m route.Match) {
	room := id.RoomID(m.Params["room"])
	v := s.view(r.Context(), sess)
	path, wanted, rel, query := m.Path, m.Params["type"], m.Params["rel"], r.URL.Query()
	if wanted != "" && v.MLS(room) {
		path = path[:strings.LastIndexByte(path, '/')]
	}
	at, ours := decodeRelated(query.Get("from"))
	withOurs := v.MLS(room) && (rel == "" || rel == "m.annotation") && (ours || query.Get("from") == "")
	if ours {
		query.Del("from")
	}
	if at.There != "" {
		query.Set("from", at.There)
	}
	page, _ := rewrite.ParsePage(room, []byte("{}"))
	if !at.Over {
		resp, err := s.ask(r.Context(), http.MethodGet, path, query, sess.token, nil)
		if err != nil {
			s.failed(w, r, err)
			return
		}
		if resp.status != http.StatusOK {
			s.passed(w, resp, sess)
			return
		}
		if page, err = rewrite.ParsePage(room, resp.body); err != nil {
			refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be read")
			return
		}
	}
	came := at.after(page.Came("chunk"))
	v.await(r.Context(), room, came)
	events, _ := rewrite.List(room, came, v)
	events = ofType(events, wanted)
	if withOurs {
		reactions, err := v.reactions(room, id.EventID(m.Params["event"]))
		if err != nil {
			s.o.Log.Err(err).Msg("Reactions cannot be read from the store")
			refuse(w, http.StatusInternalServerError, "M_UNKNOWN", "the reactions to this message cannot be read from the store")
			return
		}
		limit, err := strconv.Atoi(query.Get("limit"))
		if err != nil {
			limit = 0
		}
		var next string
		events, next = at.merge(events, ofType(reactions, wanted), limit, page.Text("next_batch"), query.Get("dir") == "f")
		page.SetText("next_batch", next)
	}
	page.Set("chunk", events)
	s.encode(w, page)
}

func ofType(events []rewrite.Event, wanted string) []rewrite.Event {
	if wanted == "" {
		return events
	}
	return slices.DeleteFunc(events, func(e rewrite.Event) bool { return rewrite.TypeOf(e.Raw) != wanted })
}

// reactions are those to a message, from the account's store.
func (v *view) reactions(room id.RoomID, to id.EventID) (out []rewrite.Event, err error) {
	list, err := v.sess.account.Reactions(v.ctx, room, to)
	for _, m := range list {
		out = append(out, v.message(m))
	}
	return out, err
}

// related is where a list of relations goes on, at the homeserver and here.
type related struct {
	There string     `json:"t,omitempty"` // the homeserver's page
	After id.EventID `json:"a,omitempty"` // the last of it that was shown; "": none
	Over  bool       `json:"o,omitempty"` // the homeserver has no more
	Time  int64      `json:"h,omitempty"` // of the last reaction that was shown
	Here  id.EventID `json:"e,omitempty"` // that reaction; "": none
}

const relatedPrefix = "mls-related-"

func decodeRelated(s string) (t related, ok bool) {
	rest, ok := strings.CutPrefix(s, relatedPrefix)
	if !ok {
		return t, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(rest)
	if err != nil || json.Unmarshal(raw, &t) != nil {
		return related{}, false
	}
	return t, true
}

func (t related) encode() string {
	raw, _ := json.Marshal(t)
	return relatedPrefix + base64.RawURLEncoding.EncodeToString(raw)
}

// after leaves out of the homeserver's page what was shown of it.
func (t related) after(came []json.RawMessage) []json.RawMessage {
	at := slices.IndexFunc(came, func(raw json.RawMessage) bool {
		var evt struct {
			ID id.EventID `json:"event_id"`
		}
		return json.Unmarshal(raw, &evt) == nil && evt.ID == t.After && t.After != ""
	})
	return came[at+1:]
}

// merge takes a page of at most limit from what the homeserver has, of which the rest
// begins at next, and from the reactions here: the newest first, or last if forward is
// set. It returns where the list goes on, "" for nowhere. Who asks for no limit, 0, gets
// all reactions with the homeserver's page, as clients that read no other expect.
func (t related) merge(there, here []rewrite.Event, limit int, next string, forward bool) (page []rewrite.Event, rest string) {
	order := func(a, b rewrite.Event) int {
		c := cmp.Or(cmp.Compare(b.Time, a.Time), strings.Compare(string(b.ID), string(a.ID)))
		if forward {
			return -c
		}
		return c
	}
	shown := rewrite.Event{ID: t.Here, Time: t.Time}
	here = slices.DeleteFunc(slices.Clone(here), func(e rewrite.Event) bool {
		return t.Here != "" && order(e, shown) <= 0 || slices.ContainsFunc(there, func(o rewrite.Event) bool { return o.ID == e.ID })
	})
	slices.SortFunc(here, order)
	all := limit < 1
	for all || len(page) < limit {
		switch {
		case len(there) > 0 && (len(here) == 0 || order(there[0], here[0]) < 0):
			t.After = there[0].ID
			page, there = append(page, there[0]), there[1:]
			continue
		case len(here) > 0 && (all || len(there) > 0 || next == ""): // else what comes next there may be before it
			t.Here, t.Time = here[0].ID, here[0].Time
			page, here = append(page, here[0]), here[1:]
			continue
		}
		break
	}
	if all {
		return page, next
	}
	if len(there) == 0 {
		t.There, t.After, t.Over = next, "", next == ""
	}
	switch {
	case t.Over && len(here) == 0:
		return page, ""
	case len(there) == 0 && len(here) == 0:
		return page, next
	}
	return page, t.encode()
}
