package server

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

// TestMemberEventsGoThroughTheMLSDevice: a client that writes m.room.member by itself changes the group as one that asks
// for /invite, /kick, /ban or /leave does.
func TestMemberEventsGoThroughTheMLSDevice(t *testing.T) {
	const bob = "@b:one"
	for _, tt := range []struct {
		name    string
		room    id.RoomID
		user    id.UserID
		is      string // what the user was
		content string
		status  int
		says    string
		reaches string // what the homeserver is asked for, "" for nothing that changes anything
	}{
		{"an invite", mlsRoom, bob, "", `{"membership":"invite"}`, http.StatusTooManyRequests, "not in the room's group yet", ""},
		{"a kick", mlsRoom, bob, "join", `{"membership":"leave","reason":"enough"}`, 200, `{"event_id":"$says"}`, `POST kick {"reason":"enough","user_id":"@b:one"}`},
		{"an invite taken back", mlsRoom, bob, "invite", `{"membership":"leave"}`, 200, `{"event_id":"$says"}`, `POST kick {"user_id":"@b:one"}`},
		{"a ban", mlsRoom, bob, "join", `{"membership":"ban"}`, 200, `{"event_id":"$says"}`, `POST ban {"user_id":"@b:one"}`},
		{"the end of a ban", mlsRoom, bob, "ban", `{"membership":"leave"}`, 200, `{"event_id":"$made"}`, `PUT state/m.room.member/@b:one {"membership":"leave"}`},
		{"one's own leave", mlsRoom, deviceUser, "join", `{"membership":"leave"}`, 200, `{"event_id":"$says"}`, `POST leave {}`},
		{"one's own name", mlsRoom, deviceUser, "join", `{"displayname":"A","membership":"join"}`, 200, `{"event_id":"$made"}`, `PUT state/m.room.member/@a:one {"displayname":"A","membership":"join"}`},
		{"what can be read in two ways", mlsRoom, bob, "", `{"membership":"join","membership":"invite"}`, 400, "M_BAD_JSON", ""},
		{"an invite to a room with MLS that the device has not heard of", newRoom, bob, "", `{"membership":"invite"}`, http.StatusTooManyRequests, "nothing goes out in clear", ""},
		{"what can be read in two ways, to such a room", newRoom, bob, "", `{"membership":"join","membership":"invite"}`, http.StatusTooManyRequests, "nothing goes out in clear", ""},
		{"an invite to a room without", plainRoom, bob, "", `{"membership":"invite"}`, 200, `{"event_id":"$made"}`, `PUT state/m.room.member/@b:one {"membership":"invite"}`},
	} {
		for _, version := range []string{"r0", "v3"} {
			t.Run(tt.name+", "+version, func(t *testing.T) {
				t.Parallel()
				w := newDeviceWorld(t)
				if tt.is != "" {
					w.mu.Lock()
					w.member[string(tt.user)] = tt.is
					w.mu.Unlock()
				}
				status, body := w.do("PUT", "/_matrix/client/"+version+"/rooms/"+string(tt.room)+"/state/m.room.member/"+string(tt.user), tt.content)
				if status != tt.status || !strings.Contains(body, tt.says) {
					t.Errorf("%d %s, want %d and %q", status, body, tt.status, tt.says)
				}
				var want []string
				if tt.reaches != "" {
					want = []string{tt.reaches}
				}
				if got := w.changes(); !slices.Equal(got, want) {
					t.Errorf("the homeserver got %q, want %q", got, want)
				}
			})
		}
	}
}

// TestAnInviteToARoomThatTheDeviceDoesNotKnow: who is invited to an MLS room without its device is in the room and not in
// the group.
func TestAnInviteToARoomThatTheDeviceDoesNotKnow(t *testing.T) {
	for _, version := range []string{"r0", "v3"} {
		for room, want := range map[id.RoomID]string{newRoom: "", plainRoom: `POST invite {"user_id":"@b:one"}`} {
			t.Run(version+" "+string(room), func(t *testing.T) {
				t.Parallel()
				w := newDeviceWorld(t)
				status, body := w.do("POST", "/_matrix/client/"+version+"/rooms/"+string(room)+"/invite", `{"user_id":"@b:one"}`)
				got := strings.Join(w.changes(), "\n")
				if got != want || (status == 200) != (want != "") || want == "" && (status != http.StatusTooManyRequests || !strings.Contains(body, "nothing goes out in clear")) {
					t.Errorf("%d %s; the homeserver got %q, want %q", status, body, got, want)
				}
			})
		}
	}
}
