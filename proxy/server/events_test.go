package server

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestTheEventOfATimeIsOneThatIsShown: where the homeserver names one of the protocol's, the next one is named that clients
// are shown, in the direction that is asked for.
func TestTheEventOfATimeIsOneThatIsShown(t *testing.T) {
	event := func(n int, eventType string) string {
		return fmt.Sprintf(`{"event_id":"$%d","type":%q,"sender":"@b:one","origin_server_ts":%d,"content":{}}`, n, eventType, n)
	}
	ours := event(5, rooms.TypeCommit)
	for _, tt := range []struct {
		name, dir         string
		context, messages string
		status            int
		says              string
	}{
		{"it is shown itself", "f", `{"event":` + event(5, "m.room.message") + `}`, "", 200, `{"event_id":"$5","origin_server_ts":5}`},
		{"one after it", "f", `{"event":` + ours + `,"events_after":[` + event(6, rooms.TypeVote) + `,` + event(7, "m.room.message") + `],"events_before":[` + event(4, "m.room.message") + `]}`, "", 200, `{"event_id":"$7","origin_server_ts":7}`},
		{"one before it", "b", `{"event":` + ours + `,"events_after":[` + event(7, "m.room.message") + `],"events_before":[` + event(4, rooms.TypeVote) + `,` + event(3, "m.room.message") + `]}`, "", 200, `{"event_id":"$3","origin_server_ts":3}`},
		{"one farther away", "f", `{"event":` + ours + `,"events_after":[` + event(6, rooms.TypeVote) + `],"end":"e"}`, `{"chunk":[` + event(8, rooms.TypeApplied) + `,` + event(9, "m.room.message") + `],"end":"f"}`, 200, `{"event_id":"$9","origin_server_ts":9}`},
		{"none", "f", `{"event":` + ours + `,"events_after":[],"end":"e"}`, `{"chunk":[]}`, 404, "M_NOT_FOUND"},
		{"none, without an end", "f", `{"event":` + ours + `,"events_after":[],"end":"e"}`, `{"chunk":[` + event(8, rooms.TypeApplied) + `],"end":"e"}`, 404, "M_NOT_FOUND"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newDeviceWorld(t)
			w.mu.Lock()
			w.get = func(_ id.RoomID, what string, query url.Values) (int, string) {
				switch {
				case what == "timestamp_to_event":
					return 200, `{"event_id":"$5","origin_server_ts":5}`
				case strings.HasPrefix(what, "context/$5"):
					return 200, tt.context
				case what == "messages" && query.Get("dir") == tt.dir && query.Get("from") == "e":
					return 200, tt.messages
				}
				return 0, ""
			}
			w.mu.Unlock()
			status, body := w.do("GET", "/_matrix/client/v1/rooms/"+string(mlsRoom)+"/timestamp_to_event?ts=5&dir="+tt.dir, "")
			if status != tt.status || !strings.Contains(body, tt.says) {
				t.Errorf("%d %s, want %d %s", status, body, tt.status, tt.says)
			}
		})
	}
}
