package server

import (
	"fmt"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// TestSearchesOfTwoSourcesAreMerged: page after page, everything that the homeserver and the store have comes once and in
// order.
func TestSearchesOfTwoSourcesAreMerged(t *testing.T) {
	event := func(n int) rewrite.Found {
		return rewrite.Found{Event: rewrite.Event{ID: id.EventID(fmt.Sprint("$", n)), Time: int64(n)}, Rank: float64(n)}
	}
	there := [][]int{{20, 19, 14}, {13, 5}, {1}} // pages of the homeserver
	here := []int{18, 17, 16, 15, 4, 3, 2}       // positions are the same numbers
	want := "20 19 18 17 16 15 14 13 5 4 3 2 1"
	for _, recent := range []bool{true, false} {
		for limit := 1; limit <= 14; limit++ {
			t.Run(fmt.Sprintf("recent %v, %d at a time", recent, limit), func(t *testing.T) {
				query := &rewrite.Search{Recent: recent, Limit: limit}
				var got []string
				for at, pages := (searchToken{}), 0; ; pages++ {
					if pages > 50 {
						t.Fatal("it does not end")
					}
					answer := new(rewrite.SearchAnswer)
					if !at.Over {
						var page int
						_, _ = fmt.Sscan(at.There, &page)
						for _, n := range there[page] {
							answer.Found = append(answer.Found, event(n))
						}
						if page+1 < len(there) {
							answer.Next = fmt.Sprint(page + 1)
						}
					}
					var h hits
					for i, n := range here {
						if at.Done || recent && at.Here != 0 && int64(n) >= at.Here || !recent && int64(i) < at.Here {
							continue
						}
						if len(h.list) == limit {
							h.more = true
							break
						}
						h.list, h.seqs = append(h.list, event(n)), append(h.seqs, int64(n))
					}
					if n := len(h.list); n == limit && h.seqs[n-1] != 2 {
						h.before = h.seqs[n-1]
					}
					found, next := merge(query, answer, h, at)
					if len(found) > limit {
						t.Fatalf("a page of %d", len(found))
					}
					for _, f := range found {
						got = append(got, strings.TrimPrefix(string(f.Event.ID), "$"))
					}
					text := next.text()
					if text == "" {
						break
					}
					var ok bool
					if at, ok = decodeSearchToken(text); !ok || at != next {
						t.Fatalf("%+v became %+v", next, at)
					}
				}
				if s := strings.Join(got, " "); s != want {
					t.Errorf("found %s, want %s", s, want)
				}
			})
		}
	}
	for _, odd := range []string{"x", "mls-", "mls-!!", "mls-e30x", searchPrefix + "eyJzIjotMX0"} {
		if _, ok := decodeSearchToken(odd); ok {
			t.Errorf("%q is taken for a position", odd)
		}
	}
}

// TestNoWordGoesOutForARoomThatTheDeviceDoesNotKnow: it may be an MLS room.
func TestNoWordGoesOutForARoomThatTheDeviceDoesNotKnow(t *testing.T) {
	query, _, err := rewrite.ParseSearch([]byte(`{"search_categories":{"room_events":{"search_term":"word","filter":{"not_rooms":["!other:x"]}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	mls, plain := apart([]id.RoomID{"!mls:x", "!plain:x", "!new:x", "!other:x"}, query,
		func(room id.RoomID) bool { return room == "!mls:x" }, func(room id.RoomID) bool { return room != "!new:x" })
	if len(mls) != 1 || !mls["!mls:x"] || len(plain) != 1 || plain[0] != "!plain:x" {
		t.Errorf("%v are searched here, %v at the homeserver", mls, plain)
	}
}
