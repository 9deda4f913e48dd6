package server

import (
	"context"
	"errors"
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// slidingSync answers a simplified sliding sync (MSC4186). A homeserver that has
// none says so.
func (s *Server) slidingSync(w http.ResponseWriter, r *http.Request, sess *session) {
	body, ok := read(w, r, maxRequest)
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if err := sess.account.Ready(ctx); err != nil {
		wait(w, "the MLS device has not heard from the homeserver since the proxy began")
		return
	}
	v := s.view(ctx, sess)
	query := r.URL.Query()
	pos := query.Get("pos")
	takes := func(id.RoomID) bool { return true }
	resp, err := s.news(ctx, sess, func() (*reply, error) {
		return s.ask(ctx, http.MethodPost, pathOf(ctx), query, sess.token, body)
	}, func() bool {
		quiet := rewrite.QuietSliding(pos)
		if pos == "" || !s.replace(quiet, v, takes) {
			return false
		}
		s.hand(w, quiet, v)
		return true
	})
	if errors.Is(err, errAnswered) {
		return
	}
	if err != nil {
		s.failed(w, r, err)
		return
	}
	if resp.status != http.StatusOK {
		s.passed(w, resp, sess)
		return
	}
	answer, err := rewrite.ParseSliding(resp.body)
	if err != nil {
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be read")
		return
	}
	rooms := s.abreast.take(sess.tag, slidingFrom(pos))
	v.open(ctx, answer.Windows(), rooms)
	s.abreast.put(sess.tag, slidingFrom(answer.Pos()), rooms)
	answer.Rewrite(v)
	// The members who sent what fills a window come along: a client that asked
	// for them alone ($LAZY) has no others.
	s.fillAll(v, answer.Windows(), "", rewrite.Selection{More: rewrite.RoomFilter([]byte(`{"lazy_load_members":true}`))}, lost)
	receipts := map[id.RoomID][]account.Receipt{}
	for room, list := range answer.Receipts(sess.user) {
		for _, receipt := range list {
			if v.MLS(room) {
				receipts[room] = append(receipts[room], account.Receipt{Event: receipt.Event, Thread: receipt.Thread})
			}
		}
	}
	if rules := answer.PushRules(); rules != nil {
		sess.account.TakePushRules(rules)
	}
	sess.account.ReadUpTo(ctx, receipts)
	for _, window := range answer.Windows() {
		s.shown.note(sess.tag, window.Room, window.Events)
		if window.Joined && v.MLS(window.Room) {
			all, _ := v.unread(window.Room, window.SlidingCounts(), nil)
			window.SetSlidingCounts(all)
		}
	}
	s.replace(answer, v, takes)
	s.hand(w, answer, v)
}

// lost is how many events a window of a sliding sync needs, which has earlier ones:
// its request cannot say that our own events are not wanted. As with /sync, one that
// is still half full stays as it is.
func lost(window *rewrite.Window, _ rewrite.Selection) int {
	if !window.Limited || !window.Joined || window.Lost <= len(window.Events) {
		return 0
	}
	return min(window.Lost, maxFill)
}

// slidingFrom names where a sliding sync begins, for abreast.
func slidingFrom(pos string) string { return "pos " + pos }
