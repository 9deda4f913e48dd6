package server

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// TestRelationsComeInPagesOfTheSizeAskedFor: what the homeserver and the store have comes once, in order, and no more of it at
// once than the client asked for.
func TestRelationsComeInPagesOfTheSizeAskedFor(t *testing.T) {
	pages := [][]int{{20, 19, 14}, {13, 5}, {1}} // of the homeserver, the newest first
	here := []int{2, 3, 15, 16, 17, 18, 21}
	for _, forward := range []bool{false, true} {
		there := pages
		want := []int{21, 20, 19, 18, 17, 16, 15, 14, 13, 5, 3, 2, 1}
		if forward {
			there = [][]int{{1}, {5, 13}, {14, 19, 20}}
			slices.Reverse(want)
		}
		for limit := 0; limit <= 14; limit++ {
			t.Run(fmt.Sprintf("forward %t, %d at a time", forward, limit), func(t *testing.T) {
				var got []int
				for from, calls := "", 0; ; calls++ {
					if calls > 50 {
						t.Fatal("it does not end")
					}
					at, ours := decodeRelated(from)
					if ours {
						from = at.There
					}
					var n int
					_, _ = fmt.Sscan(from, &n)
					var came []json.RawMessage
					next := ""
					if !at.Over {
						for _, e := range there[n] {
							came = append(came, fmt.Appendf(nil, `{"event_id":"$%02d"}`, e))
						}
						if n+1 < len(there) {
							next = fmt.Sprint(n + 1)
						}
					}
					var a, b []rewrite.Event
					for _, raw := range at.after(came) {
						var evt struct {
							ID id.EventID `json:"event_id"`
						}
						var e int
						_ = json.Unmarshal(raw, &evt)
						_, _ = fmt.Sscanf(string(evt.ID), "$%d", &e)
						a = append(a, rewrite.Event{ID: evt.ID, Time: int64(e)})
					}
					if calls == 0 || ours {
						for _, e := range here {
							b = append(b, rewrite.Event{ID: id.EventID(fmt.Sprintf("$%02d", e)), Time: int64(e)})
						}
					}
					page := a
					if b != nil {
						page, next = at.merge(a, b, limit, next, forward)
						if calls == 0 && limit == 0 && len(page) != len(a)+len(b) {
							t.Fatalf("a page of %d without a limit, want all of %d and %d", len(page), len(a), len(b))
						}
						if limit > 0 && len(page) > limit {
							t.Fatalf("a page of %d", len(page))
						}
					}
					for _, e := range page {
						got = append(got, int(e.Time))
					}
					if from = next; from == "" {
						break
					}
				}
				if limit == 0 { // in order in each page alone
					slices.SortFunc(got, func(a, b int) int { return slices.Index(want, a) - slices.Index(want, b) })
				}
				if !slices.Equal(got, want) {
					t.Errorf("got %v, want %v", got, want)
				}
			})
		}
	}
}
