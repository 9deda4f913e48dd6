package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/proxy/route"
)

// part makes a part of a story a subtest. Nothing of the rest is told if it fails.
func (s *story) part(t *testing.T, name string, do func()) {
	t.Helper()
	whole := s.TB
	ran := false
	ok := t.Run(name, func(t *testing.T) {
		s.TB, ran = t, true
		defer func() { s.TB = whole }()
		do()
	})
	if !ok {
		t.FailNow()
	}
	if ran { // -run may have asked for others
		s.parts = append(s.parts, name)
	}
}

// ask makes a request as it is written down.
func (c *plainClient) ask(method, path string, body []byte) (int, []byte) {
	c.s.Helper()
	req, err := http.NewRequestWithContext(c.s.soon(), method, strings.TrimSuffix(c.HomeserverURL.String(), "/")+path, bytes.NewReader(body))
	c.s.must(err)
	req.Header.Set("Authorization", "Bearer "+c.AccessToken)
	resp, err := c.Client.Client.Do(req)
	c.s.must(err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	c.s.must(err)
	return resp.StatusCode, raw
}

// hides checks that an answer shows neither what is encrypted nor how.
func (c *plainClient) hides(raw []byte) {
	c.s.Helper()
	for _, what := range []string{`"type":"m.room.encrypt`, `"type":"io.github.matrix-mls.`, `io.github.matrix-mls.v1`} {
		if bytes.Contains(raw, []byte(what)) {
			c.s.Errorf("the client is shown %s: %s", what, raw)
		}
	}
}

// label names the subtest of a path: its method, its version and what follows.
func label(p route.Path) string {
	path := strings.TrimPrefix(strings.TrimPrefix(p.Path, "_matrix/"), "client/")
	return p.Method + " " + strings.ReplaceAll(path, "/", " ")
}

// ofMembers are the kinds of paths that change who is in a room: they have a story of their own, TestProxyMembership.
var ofMembers = []route.Kind{route.Invite, route.Join, route.Leave, route.Kick, route.Ban, route.Forget, route.CreateRoom}

// TestProxyMembership: a person behind a proxy makes rooms, lets others in, puts them out, joins and leaves, by each path
// and version that there is, each of them a subtest; the group follows.
func TestProxyMembership(t *testing.T) {
	s := tell(t, "sqlite")
	alice, carol := s.person("syn2", "alice"), s.person("syn1", "carol")
	user, err := s.w.AddUser(s.ctx, "syn1", fmt.Sprintf("plain%d", people.Add(1)))
	s.must(err)
	p := s.proxy("syn1")
	bob := p.client(user)
	for _, version := range []string{"r0", "v3"} {
		root := "/_matrix/client/" + version
		does := func(path, body string) []byte {
			s.Helper()
			status, raw := bob.ask(http.MethodPost, root+path, []byte(body))
			if status != http.StatusOK {
				s.Fatalf("%s: %d %s", path, status, raw)
			}
			return raw
		}
		in := func(room id.RoomID) string { return "/rooms/" + url.PathEscape(string(room)) }
		whom := func(d *e2e.Device) string { return `{"user_id":"` + string(d.UserID()) + `"}` }
		here := &e2e.Device{Server: p.server}
		var made struct {
			Room id.RoomID `json:"room_id"`
		}
		s.part(t, "POST "+version+" createRoom", func() {
			s.must(json.Unmarshal(does("/createRoom", `{"preset":"private_chat","initial_state":[{"type":"m.room.encryption","state_key":"","content":{"algorithm":"m.megolm.v1.aes-sha2"}}]}`), &made))
			raw, err := e2e.API(s.soon(), p.server, lab.User{UserID: string(bob.UserID), AccessToken: bob.AccessToken}, http.MethodGet, in(made.Room)+"/state/m.room.encryption/", nil)
			if err != nil || !strings.Contains(string(raw), `"io.github.matrix-mls.v1"`) {
				s.Errorf("at the homeserver the room's encryption is %s, %v", raw, err)
			}
		})
		s.part(t, "POST "+version+" rooms {room} invite", func() {
			for _, d := range []*e2e.Device{alice, carol} {
				does(in(made.Room)+"/invite", whom(d))
				s.join(d, made.Room, here)
			}
		})
		text := token("to those who are in")
		s.hears(alice, bob.UserID, bob.send(made.Room, "m.room.message", "1", map[string]any{"msgtype": "m.text", "body": text}))
		s.part(t, "POST "+version+" rooms {room} kick", func() {
			does(in(made.Room)+"/kick", whom(alice))
			s.gone(alice, made.Room)
		})
		s.part(t, "POST "+version+" rooms {room} ban", func() {
			does(in(made.Room)+"/ban", whom(carol))
			s.gone(carol, made.Room)
		})
		var joined id.RoomID
		for i, path := range []string{"join {room}", "rooms {room} join"} {
			s.part(t, "POST "+version+" "+path, func() {
				var err error
				joined, err = alice.CreateRoom(s.soon(), client.CreateOptions{Name: version + " " + path})
				s.must(err)
				s.must(alice.Invite(s.soon(), joined, bob.UserID))
				ctx := s.soon()
				for invited := false; !invited; {
					resp, err := bob.sync(ctx, joined)
					s.must(err)
					invited = resp.Rooms.Invite[joined] != nil
				}
				does([]string{"/join/" + url.PathEscape(string(joined)), in(joined) + "/join"}[i], `{}`)
				_, err = alice.WaitEpoch(s.soon(), joined, "the plain client's device", func(u *client.EpochChanged) bool { return slices.Contains(u.Added, bob.UserID) })
				s.must(err)
			})
		}
		s.part(t, "POST "+version+" rooms {room} leave", func() {
			does(in(joined)+"/leave", `{}`)
			_, err := alice.WaitEpoch(s.soon(), joined, "its removal", func(u *client.EpochChanged) bool { return slices.Contains(u.Removed, bob.UserID) })
			s.must(err)
		})
		s.part(t, "POST "+version+" rooms {room} forget", func() {
			does(in(joined)+"/forget", `{}`)
			if status, raw := bob.ask(http.MethodGet, root+in(joined)+"/messages?dir=b", nil); status == http.StatusOK {
				s.Errorf("what was forgotten is still there: %s", raw)
			}
		})
	}
	for _, p := range route.Paths() {
		if slices.Contains(ofMembers, p.Kind) && !slices.Contains(s.parts, label(p)) {
			t.Errorf("%s %s has no subtest", p.Method, p.Path)
		}
	}
}

// paths walks the paths of the API that carry events of a room, each of them a subtest, in each version that it has.
func (c *plainClient) paths(t *testing.T, alice *e2e.Device, room id.RoomID, first *event.Event, secret string, reacted id.EventID) {
	t.Helper()
	s, in, at := c.s, "/rooms/"+url.PathEscape(string(room)), url.PathEscape(string(first.ID))
	search, err := json.Marshal(map[string]any{"search_categories": map[string]any{"room_events": map[string]any{
		"search_term": secret, "order_by": "recent", "filter": map[string]any{"rooms": []id.RoomID{room}},
	}}})
	s.must(err)
	for i, version := range []string{"r0", "v3"} {
		root := "/_matrix/client/" + version
		// Synapse answers a first /sync that is like the one before with what it said then.
		filter := url.QueryEscape(fmt.Sprintf(`{"room":{"timeline":{"limit":%d}}}`, 60+i))
		for _, tt := range []struct {
			name, method, path string
			body               []byte
			want               string
		}{
			{"sync", http.MethodGet, "/sync?filter=" + filter, nil, secret},
			{"messages", http.MethodGet, in + "/messages?dir=b&limit=60", nil, secret},
			{"context", http.MethodGet, in + "/context/" + at, nil, "message 0: " + secret},
			{"event", http.MethodGet, in + "/event/" + at, nil, "message 0: " + secret},
			{"state", http.MethodGet, in + "/state", nil, `"m.room.create"`},
			{"members", http.MethodGet, in + "/members", nil, string(alice.UserID())},
			{"search", http.MethodPost, "/search", search, "message 4: " + secret},
			{"notifications", http.MethodGet, "/notifications", nil, `"notifications"`},
		} {
			s.part(t, tt.method+" "+version+" "+tt.name, func() {
				status, raw := c.ask(tt.method, root+tt.path, tt.body)
				if status != http.StatusOK || !json.Valid(raw) || !bytes.Contains(raw, []byte(tt.want)) {
					s.Errorf("%d %s, want %q in it", status, raw, tt.want)
				}
				c.hides(raw)
			})
		}
		s.part(t, "GET "+version+" state m.room.encryption", func() {
			if status, raw := c.ask(http.MethodGet, root+in+"/state/m.room.encryption", nil); status != http.StatusNotFound {
				s.Errorf("%d %s", status, raw)
			}
		})
		s.part(t, "PUT "+version+" state m.room.encryption", func() {
			status, raw := c.ask(http.MethodPut, root+in+"/state/m.room.encryption", []byte(`{"algorithm":"m.megolm.v1.aes-sha2"}`))
			if status != http.StatusForbidden || !bytes.Contains(raw, []byte("encrypted already")) {
				s.Errorf("%d %s", status, raw)
			}
		})
		s.part(t, "PUT "+version+" send and redact", func() { c.takesBack(alice, room, root) })
	}
	for _, rel := range []string{"", "/m.thread", "/m.annotation"} {
		want := map[string]string{"": "in a thread", "/m.thread": "in a thread", "/m.annotation": string(reacted)}[rel]
		s.part(t, "GET v1 relations"+rel, func() {
			status, raw := c.ask(http.MethodGet, "/_matrix/client/v1"+in+"/relations/"+at+rel, nil)
			if status != http.StatusOK || !bytes.Contains(raw, []byte(want)) {
				s.Errorf("%d %s, want %q in it", status, raw, want)
			}
			c.hides(raw)
		})
	}
	s.part(t, "threads, filters, receipts and markers", func() { c.lookAround(room, first, secret) })
	s.part(t, "search in pages and by rank", func() { c.search(room, secret) })
	s.part(t, "relations of a kind and type", func() { c.reactions(room, first.ID, reacted) })
	s.part(t, "sliding sync", func() { c.slide(alice, room, "said later: "+secret) })
	s.part(t, "upload, download and thumbnail", c.media)
}

// takesBack sends a message and redacts it.
func (c *plainClient) takesBack(alice *e2e.Device, room id.RoomID, root string) {
	c.s.Helper()
	in, text, txn := root+"/rooms/"+url.PathEscape(string(room)), token("taken-back"), token("txn")
	status, raw := c.ask(http.MethodPut, in+"/send/m.room.message/"+txn, []byte(`{"msgtype":"m.text","body":"`+text+`"}`))
	var sent struct {
		Event id.EventID `json:"event_id"`
	}
	if err := json.Unmarshal(raw, &sent); status != http.StatusOK || err != nil || sent.Event == "" {
		c.s.Fatalf("%d %s", status, raw)
	}
	c.s.hears(alice, c.UserID, sent.Event)
	if status, raw = c.ask(http.MethodPut, in+"/redact/"+url.PathEscape(string(sent.Event))+"/"+txn, []byte(`{}`)); status != http.StatusOK {
		c.s.Fatalf("%d %s", status, raw)
	}
	if alice.Server.Kind == "synapse" { // what another server redacts Dendrite does not show by /sync
		_, err := alice.Wait(c.s.soon(), "the redaction", func(u client.Update) bool {
			r, ok := u.(*client.Redaction)
			return ok && r.Target == sent.Event
		})
		c.s.must(err)
	}
	status, raw = c.ask(http.MethodGet, in+"/event/"+url.PathEscape(string(sent.Event)), nil)
	if status != http.StatusOK || bytes.Contains(raw, []byte(`"body"`)) {
		c.s.Errorf("what was taken back is shown: %d %s", status, raw)
	}
	c.hides(raw)
}

// media uploads a file by each path that there is, and gets it by each, also in the place of a thumbnail.
func (c *plainClient) media() {
	c.s.Helper()
	for _, version := range []string{"r0", "v1", "v3"} {
		data := []byte(token("media"))
		var made struct {
			URI id.ContentURIString `json:"content_uri"`
		}
		status, raw := c.ask(http.MethodPost, "/_matrix/media/"+version+"/upload?filename=a.txt", data)
		if err := json.Unmarshal(raw, &made); status != http.StatusOK || err != nil {
			c.s.Fatalf("upload by %s: %d %s", version, status, raw)
		}
		mxc, err := made.URI.Parse()
		c.s.must(err)
		name := mxc.Homeserver + "/" + mxc.FileID
		for _, path := range []string{
			"/_matrix/media/r0/download/" + name, "/_matrix/media/v1/download/" + name, "/_matrix/media/v3/download/" + name + "/a.txt",
			"/_matrix/media/v3/thumbnail/" + name + "?width=32&height=32", "/_matrix/client/v1/media/download/" + name,
			"/_matrix/client/v1/media/download/" + name + "/a.txt", "/_matrix/client/v1/media/thumbnail/" + name + "?width=32&height=32",
		} {
			if status, raw := c.ask(http.MethodGet, path, nil); status != http.StatusOK || !bytes.Equal(raw, data) {
				c.s.Errorf("uploaded by %s, %s gives %d %q", version, path, status, raw)
			}
		}
		direct, err := mautrix.NewClient(c.server.BaseURL, c.UserID, c.AccessToken)
		c.s.must(err)
		if got, err := direct.DownloadBytes(c.s.soon(), mxc); err != nil || bytes.Contains(got, data) || len(got) != len(data) {
			c.s.Errorf("at the homeserver the file is %q, %v", got, err)
		}
	}
}
