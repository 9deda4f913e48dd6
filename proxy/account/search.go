package account

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/store"
)

// Search looks through what the device could read, newest first. There is no index
// of words: it would lie beside the messages, and would have to be sealed and
// deleted as they are. What is read is opened a page at a time and forgotten.

// Bounds of one search: messages that are looked at, at a time and in all, and
// matches that are put in order.
const (
	searchPage = 500
	maxLooked  = 50_000
	maxMatches = 1000
)

// Match is a message that was found.
type Match struct {
	Message *client.Message
	Seq     int64
	Rank    float64
}

// Search finds up to limit messages before a position (0: the newest) that rank
// more than nothing, newest first. Before is where the rest begins, 0 if there is
// none: after a limit's worth of matches, or of messages looked at.
func (a *Account) Search(ctx context.Context, room id.RoomID, position int64, limit int, rank func(*client.Message) float64) (found []Match, before int64, err error) {
	return search(ctx, a.st, room, position, limit, rank)
}

// Best puts the newest maxMatches among the newest maxLooked messages in order, the
// best first; of equals the newest.
func (a *Account) Best(ctx context.Context, room id.RoomID, rank func(*client.Message) float64) ([]Match, error) {
	found, _, err := search(ctx, a.st, room, 0, maxMatches, rank)
	slices.SortStableFunc(found, func(x, y Match) int {
		switch {
		case x.Rank > y.Rank:
			return -1
		case x.Rank < y.Rank:
			return 1
		}
		return 0
	})
	return found, err
}

func search(ctx context.Context, st *store.Store, room id.RoomID, position int64, limit int, rank func(*client.Message) float64) (found []Match, before int64, err error) {
	before = position
	for looked := 0; looked < maxLooked; {
		var page []*store.TimelineItem
		if room != "" {
			page, err = st.Timeline(ctx, room, before, searchPage)
			slices.Reverse(page)
		} else {
			page, err = st.TimelineBack(ctx, before, searchPage)
		}
		if err != nil {
			return nil, 0, err
		}
		for _, row := range page {
			before = row.Seq
			if pending(row) {
				continue
			}
			m := new(client.Message)
			if json.Unmarshal(row.Data, m) != nil {
				continue
			}
			if r := rank(m); r > 0 {
				found = append(found, Match{Message: m, Seq: row.Seq, Rank: r})
				if len(found) == limit {
					return found, before, nil
				}
			}
		}
		if looked += len(page); len(page) < searchPage {
			return found, 0, nil
		}
	}
	return found, before, nil
}

// pending tells whether a row is an own message that has not gone out: it has no
// event id yet.
func pending(row *store.TimelineItem) bool { return !strings.HasPrefix(string(row.EventID), "$") }
