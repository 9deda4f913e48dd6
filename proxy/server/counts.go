package server

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/proxy/route"
)

// counts corrects what a /sync says is unread in MLS rooms: the homeserver sees no
// text. It takes in the user's receipts and push rules that the answer brings.
func (s *Server) counts(v *view, answer *rewrite.Sync, asked rewrite.Selection) {
	if rules := answer.PushRules(); rules != nil {
		v.sess.account.TakePushRules(rules)
	}
	receipts := map[id.RoomID][]account.Receipt{}
	var windows []*rewrite.Window
	for _, w := range answer.Windows() {
		if !w.Joined || !v.MLS(w.Room) {
			continue
		}
		windows = append(windows, w)
		for _, r := range w.Receipts(v.sess.user) {
			receipts[w.Room] = append(receipts[w.Room], account.Receipt{Event: r.Event, Thread: r.Thread})
		}
	}
	v.sess.account.ReadUpTo(v.ctx, receipts)
	for _, w := range windows {
		all, threads := w.Counts(asked)
		w.SetCounts(v.unread(w.Room, all, threads))
	}
}

// unread corrects counts of a room.
func (v *view) unread(room id.RoomID, all rewrite.Counts, threads map[string]rewrite.Counts) (rewrite.Counts, map[string]rewrite.Counts) {
	var said map[string]account.Counts
	if threads != nil {
		said = map[string]account.Counts{}
		for thread, c := range threads {
			said[thread] = account.Counts(c)
		}
	}
	main, by := v.sess.account.Unread(v.ctx, room, account.Counts(all), said)
	out := map[string]rewrite.Counts{}
	for thread, c := range by {
		out[thread] = rewrite.Counts(c)
	}
	return rewrite.Counts(main), out
}

// marker passes receipts and read markers on with the ids that the homeserver
// knows (POST …/receipt/{type}/{eventId} and …/read_markers).
func (s *Server) marker(w http.ResponseWriter, r *http.Request, sess *session, m route.Match) {
	body, ok := read(w, r, maxRequest)
	if !ok {
		return
	}
	body, some := rewrite.Marks(body)
	if !some {
		answer(w, http.StatusOK, struct{}{})
		return
	}
	resp, err := s.again(r, body)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	room := id.RoomID(m.Params["room"])
	if resp.status == http.StatusOK && sess.account.Client().IsMLS(room) {
		var marked struct {
			Thread  string     `json:"thread_id"`
			Read    id.EventID `json:"m.read"`
			Private id.EventID `json:"m.read.private"`
		}
		_ = json.Unmarshal(body, &marked)
		list := []account.Receipt{}
		if kind := m.Params["type"]; kind == "m.read" || kind == "m.read.private" {
			list = append(list, account.Receipt{Event: id.EventID(m.Params["event"]), Thread: marked.Thread})
		}
		if _, isReceipt := m.Params["type"]; !isReceipt {
			for _, event := range []id.EventID{marked.Read, marked.Private} {
				if event != "" {
					list = append(list, account.Receipt{Event: event})
				}
			}
		}
		sess.account.ReadUpTo(r.Context(), map[id.RoomID][]account.Receipt{room: list})
	}
	s.passed(w, resp, sess)
}

// forget passes on that a user forgets a room, and forgets it, too.
func (s *Server) forget(w http.ResponseWriter, r *http.Request, sess *session, room id.RoomID) {
	body, ok := read(w, r, maxRequest)
	if !ok {
		return
	}
	resp, err := s.again(r, body)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	if resp.status == http.StatusOK {
		if err := sess.account.Forget(r.Context(), room); err != nil {
			s.o.Log.Err(err).Msg("What is kept of a forgotten room cannot be deleted")
		}
	}
	s.passed(w, resp, sess)
}

// maxNotices bounds an answer to /notifications.
const maxNotices = 100

// notifications answers GET /notifications. The homeserver lists ciphertexts;
// what they hold is judged here. What it does not list, because it was told to
// notify of mentions only, is on the first page.
func (s *Server) notifications(w http.ResponseWriter, r *http.Request, sess *session) {
	v := s.view(r.Context(), sess)
	query := r.URL.Query()
	limit, err := strconv.Atoi(query.Get("limit"))
	if err != nil || limit < 1 {
		limit = 20
	}
	limit = min(limit, maxNotices)
	highlights := query.Get("only") == "highlight"
	query.Del("only")
	kept := []rewrite.Notice{}
	if query.Get("from") == "" {
		// One place is left for the homeserver: the next page begins after it.
		kept = v.unlisted(r.Context(), highlights, limit-1)
	}
	soon, done := context.WithTimeout(r.Context(), openWait)
	defer done()
	var next string
	for range maxPages {
		// Never more than what is missing: the rest begins where the page ends.
		query.Set("limit", strconv.Itoa(max(1, limit-len(kept))))
		resp, err := s.ask(r.Context(), http.MethodGet, pathOf(r.Context()), query, sess.token, nil)
		if err != nil {
			s.failed(w, r, err)
			return
		}
		if resp.status != http.StatusOK {
			s.passed(w, resp, sess)
			return
		}
		for room, events := range rewrite.NoticeEvents(resp.body) {
			v.await(soon, room, events)
		}
		list, token, err := rewrite.Notices(resp.body, v)
		if err != nil {
			refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be read")
			return
		}
		for _, n := range list {
			if n.Judge && v.MLS(n.Room) && !n.Event.Notice {
				sender, eventType, content := rewrite.ContentOf(n.Event.Raw)
				actions, notify := sess.account.Judge(r.Context(), n.Room, sender, eventType, content)
				if !notify {
					continue
				}
				if actions != nil {
					n.SetActions(actions)
				}
			}
			if !highlights || n.Highlighted() {
				kept = append(kept, n)
			}
		}
		stuck := token == next
		next = token
		if len(kept) >= limit || next == "" || stuck {
			break
		}
		query.Set("from", next)
	}
	rewrite.SortNotices(kept)
	body := map[string]any{}
	raws := make([]json.RawMessage, 0, len(kept))
	for _, n := range kept {
		raws = append(raws, n.Raw())
	}
	body["notifications"] = raws
	if next != "" {
		body["next_token"] = next
	}
	answer(w, http.StatusOK, body)
}

// unlisted are unread messages that notify, in rooms whose ciphertexts do not.
func (v *view) unlisted(ctx context.Context, highlights bool, limit int) []rewrite.Notice {
	out := []rewrite.Notice{}
	for _, m := range v.sess.account.Unlisted(ctx, limit) {
		n := rewrite.NewNotice(m.Room, v.message(m))
		if actions, _ := v.sess.account.Judge(ctx, m.Room, m.Sender, m.Type, m.Content); actions != nil {
			n.SetActions(actions)
		}
		if !highlights || n.Highlighted() {
			out = append(out, n)
		}
	}
	return out
}
