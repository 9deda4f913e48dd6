package e2e_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestEachServerOrders: whichever server a room is made on, its module orders the commits, the modules of all servers
// come into the room by themselves, and members on all servers read.
func TestEachServerOrders(t *testing.T) {
	for _, name := range []string{"sqlite", "postgres"} {
		for _, home := range []string{"syn1", "syn2", "den1"} {
			t.Run(name+"/"+home, func(t *testing.T) {
				s := tell(t, name)
				var all []*e2e.Device
				for _, server := range []string{"syn1", "syn2", "den1"} {
					d := s.person(server, "user")
					if server == home {
						all = append([]*e2e.Device{d}, all...)
					} else {
						all = append(all, d)
					}
				}
				room := s.room(client.CreateOptions{}, all[0], all[1:]...)
				s.talk(room, "all servers", all...)
				s.agree(room, all...)
				for _, d := range all {
					s.botJoins(all[0], room, d.Server.ServerName)
				}
				orderer := "@_mls_bot:" + all[0].Server.ServerName
				for _, d := range all {
					if got := s.acceptors(d, room); !slices.Equal(got, []string{orderer}) {
						t.Errorf("%s sees accepts by %v, want all of them by %s", d.Name, got, orderer)
					}
				}
			})
		}
	}
}

// botJoins waits until the module's bot of a server is in the room.
func (s *story) botJoins(d *e2e.Device, room id.RoomID, server string) {
	s.Helper()
	ctx := s.soon()
	for {
		raw, err := e2e.API(ctx, d.Server, d.User, http.MethodGet, "/rooms/"+url.PathEscape(string(room))+"/joined_members", nil)
		if err != nil {
			s.Fatalf("the bot of %s is not in the room: %v", server, err)
		}
		var joined struct {
			Joined map[string]json.RawMessage `json:"joined"`
		}
		s.must(json.Unmarshal(raw, &joined))
		if joined.Joined["@_mls_bot:"+server] != nil {
			return
		}
		s.pause()
	}
}

// acceptors lists who sent the accepts that a user's homeserver has, each once.
func (s *story) acceptors(d *e2e.Device, room id.RoomID) []string {
	s.Helper()
	raw, err := e2e.API(s.ctx, d.Server, d.User, http.MethodGet, "/rooms/"+url.PathEscape(string(room))+"/messages?dir=b&limit=500", nil)
	s.must(err)
	var page struct {
		Chunk []struct {
			Type   string `json:"type"`
			Sender string `json:"sender"`
		} `json:"chunk"`
	}
	s.must(json.Unmarshal(raw, &page))
	var out []string
	for _, ev := range page.Chunk {
		if ev.Type == rooms.TypeAccept && !slices.Contains(out, ev.Sender) {
			out = append(out, ev.Sender)
		}
	}
	return out
}
