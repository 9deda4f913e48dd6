package server

import (
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// TestWhoDoesNotFilterGetsNoneOfOurEvents: the homeserver leaves them out, so that they take no place in a window.
func TestWhoDoesNotFilterGetsNoneOfOurEvents(t *testing.T) {
	const no = `{"not_types":["io.github.matrix-mls.*"]}`
	query, asked := inline(url.Values{})
	if got := query.Get("filter"); got != no || asked.Limit != 0 {
		t.Errorf("a page is asked for with %q", got)
	}
	if query, _ = inline(url.Values{"filter": {"17"}}); query.Get("filter") != "17" {
		t.Errorf("what is no filter became %q", query.Get("filter"))
	}
	query, asked, err := (&Server{}).filtered(httptest.NewRequest("GET", "/_matrix/client/v3/sync?timeout=5", nil), nil)
	if got := query.Get("filter"); err != nil || got != `{"room":{"state":`+no+`,"timeline":`+no+`}}` || string(asked.More) != no || query.Get("timeout") != "5" {
		t.Errorf("/sync is asked for with %q, more of a window with %q: %v", got, asked.More, err)
	}
}

func TestWindowsThatAreFilled(t *testing.T) {
	for _, tt := range []struct {
		events, limit   int
		limited, joined bool
		want            int
	}{
		{4, 0, true, true, 6}, {0, 0, true, true, 10}, {5, 0, true, true, 0}, {4, 0, false, true, 0}, {4, 0, true, false, 0},
		{0, 1, true, true, 1}, {1, 1, true, true, 0}, {10, 50, true, true, 40}, {30, 50, true, true, 0}, {0, 5000, true, true, maxFill}, {0, -3, true, true, 10},
	} {
		w := &rewrite.Window{Events: make([]rewrite.Event, tt.events), Limited: tt.limited, Joined: tt.joined}
		if got := lacking(w, rewrite.Selection{Limit: tt.limit}); got != tt.want {
			t.Errorf("%+v: lacks %d", tt, got)
		}
	}
}
