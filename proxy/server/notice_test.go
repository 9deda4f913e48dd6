package server

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/matrix-mls/matrix-mls/proxy/route"
)

// TestWhatIsDoneToANoticeIsDoneToNoMessage: a notice about a room looks like the
// user's own message, so that clients offer to remove it, and knows the message
// before it.
func TestWhatIsDoneToANoticeIsDoneToNoMessage(t *testing.T) {
	const notice, rest = "$mls-proxy-notice-7~X:x", "/_matrix/client/v3/rooms/!r:x/"
	asked := 0
	hs := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer hs.Close()
	base, err := url.Parse(hs.URL)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Homeserver: base, Log: zerolog.Nop()})
	for _, row := range []struct {
		method, path, body string
		status             int
		answer             string
	}{
		{"PUT", rest + "redact/" + notice + "/t", `{}`, 200, `{"event_id":"` + notice + `"}`},
		{"POST", rest + "report/" + notice, `{}`, 403, "to you alone"},
		{"GET", "/_matrix/client/v1/rooms/!r:x/relations/" + notice, ``, 200, `{"chunk":[]}`},
		{"PUT", rest + "send/m.reaction/t", `{"m.relates_to":{"rel_type":"m.annotation","key":"+","event_id":"` + notice + `"}}`, 403, "to you alone"},
		{"PUT", rest + "send/m.room.message/t", `{"m.relates_to":{"m.in_reply_to":{"event_id":"` + notice + `"}}}`, 403, "to you alone"},
		{"PUT", rest + "state/m.room.pinned_events", `{"pinned":["` + notice + `"]}`, 403, "to you alone"},
		{"POST", rest + "receipt/m.read/$mls-proxy-notice-7~", `{}`, 200, `{}`},
		{"POST", rest + "read_markers", `{"m.read":"$mls-proxy-notice-7~"}`, 200, `{}`},
		{"GET", rest + "event/$mls-proxy-notice-7~", ``, 404, "M_NOT_FOUND"},
	} {
		m := route.Classify(row.method, row.path)
		if event := m.Params["event"]; eventOf(m) != event {
			t.Errorf("%s %s is done to %s", row.method, row.path, eventOf(m))
		}
		r, w := httptest.NewRequest(row.method, "http://localhost"+row.path, strings.NewReader(row.body)), httptest.NewRecorder()
		s.serve(w, r, m, &session{})
		if w.Code != row.status || !strings.Contains(w.Body.String(), row.answer) {
			t.Errorf("%s %s: %d %s, want %d %s", row.method, row.path, w.Code, w.Body, row.status, row.answer)
		}
		if m.Params["event"] == "" {
			continue
		}
		w = httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != http.StatusUnauthorized {
			t.Errorf("%s %s without a token: %d %s", row.method, row.path, w.Code, w.Body)
		}
	}
	if asked != 0 {
		t.Errorf("the homeserver was asked %d times", asked)
	}
	for _, path := range []string{rest + "context/" + notice, rest + "event/" + notice} {
		if got := eventOf(route.Classify("GET", path)); got != "$X:x" {
			t.Errorf("%s is of %s", path, got)
		}
	}
	if got := eventOf(route.Classify("POST", rest+"receipt/m.read/"+notice)); got != "$X:x" {
		t.Errorf("it is read up to %s", got)
	}
}
