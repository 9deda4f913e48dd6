package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
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
	status, raw, err := c.request(c.s.soon(), method, path, body)
	c.s.must(err)
	return status, raw
}

func (c *plainClient) request(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.HomeserverURL.String(), "/")+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.AccessToken)
	resp, err := c.Client.Client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, raw, err
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

// rooted takes a path of the table apart: its root, and the rest as it is for each version.
func rooted(path string) (root, rest string) {
	for _, one := range []string{"_matrix/client/r0/", "_matrix/client/v3/", "_matrix/media/r0/", "_matrix/media/v1/", "_matrix/media/v3/"} {
		if rest, ok := strings.CutPrefix(path, one); ok {
			return "/" + strings.TrimSuffix(one, "/"), rest
		}
	}
	return "/" + path, path
}

// ofMembers are the kinds of paths that change who is in a room: they have a story of their own, TestProxyMembership.
var ofMembers = []route.Kind{route.Invite, route.Join, route.Leave, route.Kick, route.Ban, route.Forget, route.CreateRoom}

// paths walks the paths of the API that carry events of a room, each of them a subtest, in each version that it has: those of
// the proxy's own table, so that none of it is left out.
func (c *plainClient) paths(t *testing.T, alice *e2e.Device, room id.RoomID, first *event.Event, secret string, reacted id.EventID) {
	t.Helper()
	s, in, at := c.s, "/rooms/"+url.PathEscape(string(room)), url.PathEscape(string(first.ID))
	search, err := json.Marshal(map[string]any{"search_categories": map[string]any{"room_events": map[string]any{
		"search_term": secret, "order_by": "recent", "filter": map[string]any{"rooms": []id.RoomID{room}},
	}}})
	s.must(err)
	shows := func(method, path string, body []byte, want string) {
		s.Helper()
		status, raw := c.ask(method, path, body)
		if status != http.StatusOK || !json.Valid(raw) || !bytes.Contains(raw, []byte(want)) {
			s.Errorf("%d %s, want %q in it", status, raw, want)
		}
		c.hides(raw)
	}
	refuses := func(method, path, body string, status int, want string) {
		s.Helper()
		if got, raw := c.ask(method, path, []byte(body)); got != status || !bytes.Contains(raw, []byte(want)) || !bytes.Contains(raw, []byte(`"errcode"`)) {
			s.Errorf("%d %s, want %d and %q", got, raw, status, want)
		}
	}
	reads := func(path, want string) func(string) {
		return func(root string) { shows(http.MethodGet, root+path, nil, want) }
	}
	relations := func(rel, want string) func(string) {
		return func(string) { shows(http.MethodGet, "/_matrix/client/v1"+in+"/relations/"+at+rel, nil, want) }
	}
	const megolm = `{"algorithm":"m.megolm.v1.aes-sha2"}`
	syncs := 60
	own := "$mls-proxy-" + strings.TrimPrefix(string(first.ID), "$") // the id of an edit of the proxy's
	checks := map[string]func(root string){
		"GET sync": func(root string) {
			syncs++ // Synapse answers a first /sync that is like the one before with what it said then
			shows(http.MethodGet, root+"/sync?filter="+url.QueryEscape(fmt.Sprintf(`{"room":{"timeline":{"limit":%d}}}`, syncs)), nil, secret)
		},
		"GET rooms/{room}/messages":        reads(in+"/messages?dir=b&limit=60", secret),
		"GET rooms/{room}/context/{event}": reads(in+"/context/"+at, "message 0: "+secret),
		"GET rooms/{room}/event/{event}":   reads(in+"/event/"+at, "message 0: "+secret),
		"GET rooms/{room}/state":           reads(in+"/state", `"m.room.create"`),
		"GET rooms/{room}/members":         reads(in+"/members", string(alice.UserID())),
		"GET notifications":                func(root string) { c.isNotified(alice, room, root) },
		"POST search":                      func(root string) { shows(http.MethodPost, root+"/search", search, "message 4: "+secret) },
		"GET rooms/{room}/state/{type}": func(root string) {
			refuses(http.MethodGet, root+in+"/state/m.room.encryption", "", http.StatusNotFound, "M_NOT_FOUND")
			shows(http.MethodGet, root+in+"/state/m.room.create", nil, `"room_version"`)
		},
		"GET rooms/{room}/state/{type}/{key}": func(root string) {
			refuses(http.MethodGet, root+in+"/state/m.room.encryption/", "", http.StatusNotFound, "M_NOT_FOUND")
			shows(http.MethodGet, root+in+"/state/m.room.member/"+url.PathEscape(string(alice.UserID())), nil, `"join"`)
		},
		"PUT rooms/{room}/state/{type}": func(root string) {
			refuses(http.MethodPut, root+in+"/state/m.room.encryption", megolm, http.StatusForbidden, "encrypted already")
		},
		"PUT rooms/{room}/state/{type}/{key}": func(root string) {
			refuses(http.MethodPut, root+in+"/state/m.room.encryption/", megolm, http.StatusForbidden, "encrypted already")
		},
		"PUT rooms/{room}/send/{type}/{txn}":    func(root string) { c.says(alice, room, root) },
		"PUT rooms/{room}/redact/{event}/{txn}": func(root string) { c.takesBack(alice, room, root, c.says(alice, room, root)) },
		"POST rooms/{room}/upgrade": func(root string) {
			refuses(http.MethodPost, root+in+"/upgrade", `{"new_version":"11"}`, http.StatusForbidden, "cannot upgrade MLS rooms")
		},
		"POST rooms/{room}/receipt/{type}/{event}": func(root string) {
			shows(http.MethodPost, root+in+"/receipt/m.read/"+url.PathEscape(own), []byte(`{}`), "{}")
		},
		"POST rooms/{room}/read_markers": func(root string) {
			shows(http.MethodPost, root+in+"/read_markers", []byte(`{"m.fully_read":"`+own+`"}`), "{}")
			shows(http.MethodGet, root+"/user/"+url.PathEscape(string(c.UserID))+in+"/account_data/m.fully_read", nil, `"`+string(first.ID)+`"`)
		},
		"GET _matrix/client/v1/rooms/{room}/relations/{event}":              relations("", "in a thread"),
		"GET _matrix/client/v1/rooms/{room}/relations/{event}/{rel}":        relations("/m.thread", "in a thread"),
		"GET _matrix/client/v1/rooms/{room}/relations/{event}/{rel}/{type}": relations("/m.annotation/m.reaction", string(reacted)),
		"GET _matrix/client/v1/rooms/{room}/threads":                        func(path string) { shows(http.MethodGet, "/_matrix/client/v1"+in+"/threads", nil, "in a thread") },
		"GET _matrix/client/v1/rooms/{room}/hierarchy":                      func(string) { c.seesHierarchy(room) },
		"GET _matrix/client/v1/rooms/{room}/timestamp_to_event":             func(string) { c.findsByTime(room, first) },
		"POST _matrix/client/unstable/org.matrix.simplified_msc3575/sync":   func(string) { c.slide(alice, room, "said later: "+secret) },

		"POST upload": func(root string) {
			name, data := c.uploads(root)
			c.downloads("/_matrix/client/v1/media/download/"+name, data)
		},
	}
	for pattern, query := range map[string]string{
		"download/{server}/{media}": "", "download/{server}/{media}/{name}": "", "thumbnail/{server}/{media}": "?width=32&height=32",
	} {
		path, file := strings.Split(pattern, "{")[0], ""
		if strings.HasSuffix(pattern, "{name}") {
			file = "/a.txt"
		}
		checks["GET "+pattern] = func(root string) {
			name, data := c.uploads("/_matrix/media/v3")
			c.downloads(root+"/"+path+name+file+query, data)
		}
		checks["GET _matrix/client/v1/media/"+pattern] = func(string) {
			name, data := c.uploads("/_matrix/media/v3")
			c.downloads("/_matrix/client/v1/media/"+path+name+file+query, data)
		}
	}
	s.part(t, "pages behind a limited sync", func() { c.pagesBehind(alice, room) })
	s.part(t, "threads, filters, receipts and markers", func() { c.lookAround(room, first, secret) })
	s.part(t, "search in pages and by rank", func() { c.search(room, secret) })
	s.part(t, "relations of a kind and type", func() { c.reactions(room, first.ID, reacted) })
	for _, p := range route.Paths() {
		if !p.Kind.Events() || slices.Contains(ofMembers, p.Kind) {
			continue
		}
		root, rest := rooted(p.Path)
		check := checks[p.Method+" "+rest]
		if check == nil {
			s.Errorf("%s %s can carry events, and has no subtest", p.Method, p.Path)
			continue
		}
		s.part(t, label(p), func() { check(root) })
	}
}

// directly is the client, without the proxy.
func (c *plainClient) directly() *plainClient {
	c.s.Helper()
	cli, err := mautrix.NewClient(c.server.BaseURL, c.UserID, c.AccessToken)
	c.s.must(err)
	return &plainClient{Client: cli, s: c.s, server: c.server}
}

// pagesBehind lets somebody say more than a /sync brings, and pages back from where that says it begins to where the client
// was: all of it comes, in order, once.
func (c *plainClient) pagesBehind(alice *e2e.Device, room id.RoomID) {
	s := c.s
	s.Helper()
	reached := token("reached")
	_, err := alice.SendText(s.soon(), room, reached)
	s.must(err)
	known := c.reads(room, reached).ID
	since, text := c.since, token("behind")
	var want []string
	var sent []id.EventID
	for i := range 24 {
		want = append(want, fmt.Sprintf("%d %s", i, text))
		evt, err := alice.SendText(s.soon(), room, want[i])
		s.must(err)
		sent = append(sent, evt)
	}
	c.reads(room, want[len(want)-1]) // its homeserver has them all
	const filter = `{"room":{"timeline":{"limit":7}}}`
	resp, err := c.SyncRequest(s.soon(), 0, since, filter, false, "")
	s.must(err)
	joined := resp.Rooms.Join[room]
	if joined == nil || !joined.Timeline.Limited || joined.Timeline.PrevBatch == "" || len(joined.Timeline.Events) > 7 {
		s.Fatalf("the sync from %s is %+v, want a limited one of at most 7 events", since, joined)
	}
	back := slices.Clone(joined.Timeline.Events)
	slices.Reverse(back)
	// Where a page of Dendrite's ends, it passes over other events of the same depth.
	limit := 5
	if c.server.Kind != "synapse" {
		limit = 500
	}
	isKnown := func(e *event.Event) bool { return e.ID == known }
	for from := joined.Timeline.PrevBatch; !slices.ContainsFunc(back, isKnown); {
		page, err := c.Messages(s.soon(), room, from, "", mautrix.DirectionBackward, nil, limit)
		s.must(err)
		back = append(back, page.Chunk...)
		if from = page.End; from == "" {
			break
		}
	}
	seen, got := map[id.EventID]bool{}, []string{}
	for _, e := range back {
		if seen[e.ID] {
			s.Errorf("%s came twice", e.ID)
		}
		if seen[e.ID] = true; strings.HasSuffix(body(e), " "+text) {
			got = append(got, body(e))
		}
	}
	slices.Reverse(got)
	if c.server.Kind != "synapse" {
		want = c.without(room, joined.Timeline.PrevBatch, want, sent, seen)
	}
	if !slices.Equal(got, want) {
		s.Errorf("the sync and the pages behind it have %q, want %q", got, want)
	}
	s.step("it paged back to where it was")
}

// without leaves out of what was said what Dendrite passed over where the window of its /sync ends: an event of the
// same depth as the window's oldest one is in no page from there on, with the proxy or without. Through the proxy
// it can be read by its id all the same.
func (c *plainClient) without(room id.RoomID, from string, said []string, sent []id.EventID, seen map[id.EventID]bool) []string {
	c.s.Helper()
	missing := func(evt id.EventID) bool { return !seen[evt] }
	last := len(sent)
	for last > 0 && !missing(sent[last-1]) {
		last--
	}
	first := last
	for first > 0 && missing(sent[first-1]) {
		first--
	}
	if first == last || last == len(sent) {
		return said // the newest are not at the end of a page
	}
	page, err := c.directly().Messages(c.s.soon(), room, from, "", mautrix.DirectionBackward, nil, 500)
	c.s.must(err)
	for i := first; i < last; i++ {
		if slices.ContainsFunc(page.Chunk, func(e *event.Event) bool { return e.ID == sent[i] }) {
			return said // the homeserver gives it, and the proxy does not
		}
		e, err := c.GetEvent(c.s.soon(), room, sent[i])
		c.s.must(err)
		if body(e) != said[i] {
			c.s.Errorf("by its id, message %d is %q, want %q", i, body(e), said[i])
		}
		c.s.step("Dendrite passed over message %d where its window ends", i)
	}
	return slices.Concat(said[:first], said[last:])
}

// isNotified lets somebody say something that notifies, and looks for it in the list of what did.
func (c *plainClient) isNotified(alice *e2e.Device, room id.RoomID, root string) {
	s := c.s
	s.Helper()
	text := token("notified")
	sent, err := alice.SendText(s.soon(), room, text)
	s.must(err)
	c.reads(room, text)
	list := func(query string) (raw []byte, found bool) {
		s.Helper()
		status, raw := c.ask(http.MethodGet, root+"/notifications?limit=50"+query, nil)
		var answer struct {
			Notifications []struct {
				Room  id.RoomID `json:"room_id"`
				Read  bool      `json:"read"`
				Event struct {
					ID      id.EventID      `json:"event_id"`
					Type    string          `json:"type"`
					Content json.RawMessage `json:"content"`
				} `json:"event"`
			} `json:"notifications"`
		}
		if err := json.Unmarshal(raw, &answer); err != nil || status != http.StatusOK {
			s.Fatalf("/notifications: %d %s", status, raw)
		}
		c.hides(raw)
		for _, n := range answer.Notifications {
			if n.Event.ID == sent {
				found = true
				if n.Room != room || n.Read || n.Event.Type != "m.room.message" || !strings.Contains(string(n.Event.Content), text) {
					s.Errorf("the list has %+v, want the message %q, unread", n, text)
				}
			}
		}
		return raw, found
	}
	// Dendrite lists in its own time.
	s.eventually("the list of what notified has what was said", func() string {
		if raw, found := list(""); !found {
			return string(raw)
		}
		return ""
	})
	if raw, found := list("&only=highlight"); found {
		s.Errorf("what highlights has it, too: %s", raw)
	}
}

// seesHierarchy asks for the rooms of a space, which an ordinary room answers for itself: all of it is as the homeserver
// has it, but for how the room is encrypted.
func (c *plainClient) seesHierarchy(room id.RoomID) {
	s := c.s
	s.Helper()
	rooms := func(of *plainClient) (list []map[string]any, raw []byte) {
		s.Helper()
		status, raw := of.ask(http.MethodGet, "/_matrix/client/v1/rooms/"+url.PathEscape(string(room))+"/hierarchy", nil)
		var answer struct{ Rooms []map[string]any }
		if err := json.Unmarshal(raw, &answer); err != nil || status != http.StatusOK {
			s.Fatalf("/hierarchy: %d %s", status, raw)
		}
		return answer.Rooms, raw
	}
	got, raw := rooms(c)
	c.hides(raw)
	if len(got) != 1 || got[0]["room_id"] != string(room) || c.server.Kind == "synapse" && got[0]["name"] != "Through the proxy" { // Dendrite does not name rooms of others
		s.Errorf("/hierarchy shows %s", raw)
	}
	want, direct := rooms(c.directly())
	s.Logf("the homeserver shows %s", direct)
	for _, room := range want {
		delete(room, "encryption")
		delete(room, "im.nheko.summary.encryption")
	}
	if !reflect.DeepEqual(got, want) {
		s.Errorf("/hierarchy shows %v, want %v", got, want)
	}
}

// findsByTime asks for the event of a time, where the homeserver can tell. In the place of one that clients are not shown
// the next one that they are is named.
func (c *plainClient) findsByTime(room id.RoomID, first *event.Event) {
	s := c.s
	s.Helper()
	type named struct {
		Event id.EventID `json:"event_id"`
		Time  int64      `json:"origin_server_ts"`
	}
	in, direct := "/rooms/"+url.PathEscape(string(room)), c.directly()
	ask := func(of *plainClient, at int64, dir string) (n named, status int) {
		s.Helper()
		status, raw := of.ask(http.MethodGet, fmt.Sprintf("/_matrix/client/v1%s/timestamp_to_event?ts=%d&dir=%s", in, at, dir), nil)
		s.must(json.Unmarshal(raw, &n))
		return n, status
	}
	if _, status := ask(direct, first.Timestamp, "f"); status != http.StatusOK && c.server.Kind != "synapse" {
		if _, got := ask(c, first.Timestamp, "f"); got != status {
			s.Errorf("the homeserver answers with %d, the proxy with %d", status, got)
		}
		s.step("the homeserver finds no event by its time, and says so")
		return
	}
	read := func(of *plainClient, path string, into any) {
		s.Helper()
		if status, raw := of.ask(http.MethodGet, "/_matrix/client/v3"+in+path, nil); status != http.StatusOK || json.Unmarshal(raw, into) != nil {
			s.Fatalf("%s: %d %s", path, status, raw)
		}
	}
	// What the homeserver has, what of that clients are shown, and what it has around an event.
	type list struct{ Chunk []named }
	var all, page list
	read(direct, "/messages?dir=b&limit=200", &all)
	read(c, "/messages?dir=b&limit=300", &page)
	looked := map[string]int{}
	for _, e := range all.Chunk {
		if slices.Contains(page.Chunk, e) {
			continue
		}
		var around struct {
			Before []named `json:"events_before"`
			After  []named `json:"events_after"`
		}
		for dir, side := range map[string]*[]named{"f": &around.After, "b": &around.Before} {
			if looked[dir] >= 3 {
				continue
			}
			if n, status := ask(direct, e.Time, dir); status != http.StatusOK || n != e { // another one of the same time
				continue
			}
			read(direct, "/context/"+url.PathEscape(string(e.Event))+"?limit=40", &around)
			next := slices.IndexFunc(*side, func(o named) bool { return slices.Contains(page.Chunk, o) })
			if next < 0 {
				continue
			}
			looked[dir]++
			if got, status := ask(c, e.Time, dir); status != http.StatusOK || got != (*side)[next] {
				s.Errorf("at %d (%s) the homeserver names %s, which is not shown, the proxy %d %+v, want %+v", e.Time, dir, e.Event, status, got, (*side)[next])
			}
		}
	}
	if looked["f"] == 0 || looked["b"] == 0 {
		s.Errorf("the homeserver named %v events that clients are not shown: the test proves nothing", looked)
	}
	want, _ := ask(direct, first.Timestamp, "f")
	if got, status := ask(c, first.Timestamp, "f"); status != http.StatusOK || want.Event == first.ID && got != want {
		s.Errorf("at the time of %s the proxy names %d %+v, want %+v", first.ID, status, got, want)
	}
}

// TestProxyMembership: a person behind a proxy makes rooms, lets others in, puts them out, joins and leaves, by each path
// and version that there is, each of them a subtest; the group follows.
func TestProxyMembership(t *testing.T) {
	s := tell(t, "sqlite")
	alice, carol := s.person("syn2", "alice"), s.person("syn1", "carol")
	user, err := s.w.AddUser(s.ctx, "syn1", fmt.Sprintf("plain%d", people.Add(1)))
	s.must(err)
	p := s.proxy("syn1")
	bob := p.client(user)
	var said []string
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
		said = append(said, text)
		s.hears(alice, bob.UserID, bob.send(made.Room, "m.room.message", "1", map[string]any{"msgtype": "m.text", "body": text}))
		s.part(t, "POST "+version+" rooms {room} kick", func() {
			does(in(made.Room)+"/kick", whom(alice))
			s.gone(alice, made.Room)
		})
		s.part(t, "POST "+version+" rooms {room} ban", func() {
			does(in(made.Room)+"/ban", whom(carol))
			s.gone(carol, made.Room)
		})
		writes := func(room id.RoomID, user id.UserID, content string) {
			s.Helper()
			status, raw := bob.ask(http.MethodPut, root+in(room)+"/state/m.room.member/"+url.PathEscape(string(user)), []byte(content))
			if status != http.StatusOK || !bytes.Contains(raw, []byte(`"event_id":"$`)) {
				s.Fatalf("%s for %s: %d %s", content, user, status, raw)
			}
		}
		s.part(t, "PUT "+version+" rooms {room} state m.room.member {user}", func() {
			writes(made.Room, carol.UserID(), `{"membership":"leave"}`) // the end of the ban
			writes(made.Room, bob.UserID, `{"membership":"join","displayname":"Bob"}`)
			var other struct {
				Room id.RoomID `json:"room_id"`
			}
			s.must(json.Unmarshal(does("/createRoom", `{"preset":"private_chat","initial_state":[{"type":"m.room.encryption","state_key":"","content":{"algorithm":"m.megolm.v1.aes-sha2"}}]}`), &other))
			for _, d := range []*e2e.Device{alice, carol} {
				writes(other.Room, d.UserID(), `{"membership":"invite"}`)
				s.join(d, other.Room, here)
			}
			writes(other.Room, alice.UserID(), `{"membership":"leave","reason":"enough"}`)
			s.gone(alice, other.Room)
			writes(other.Room, carol.UserID(), `{"membership":"ban"}`)
			s.gone(carol, other.Room)
			writes(other.Room, bob.UserID, `{"membership":"leave"}`)
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
	s.blind(said)
	for _, p := range route.Paths() {
		if slices.Contains(ofMembers, p.Kind) && !slices.Contains(s.parts, label(p)) {
			t.Errorf("%s %s has no subtest", p.Method, p.Path)
		}
	}
}

// says sends a message by a path, and waits until alice has heard it.
func (c *plainClient) says(alice *e2e.Device, room id.RoomID, root string) id.EventID {
	c.s.Helper()
	in, text := root+"/rooms/"+url.PathEscape(string(room)), token("said")
	status, raw := c.ask(http.MethodPut, in+"/send/m.room.message/"+text, []byte(`{"msgtype":"m.text","body":"`+text+`"}`))
	var sent struct {
		Event id.EventID `json:"event_id"`
	}
	if err := json.Unmarshal(raw, &sent); status != http.StatusOK || err != nil || sent.Event == "" {
		c.s.Fatalf("%d %s", status, raw)
	}
	if m := c.s.hears(alice, c.UserID, sent.Event); !strings.Contains(string(m.Content), text) {
		c.s.Errorf("alice heard %s, want %q in it", m.Content, text)
	}
	return sent.Event
}

// takesBack redacts a message.
func (c *plainClient) takesBack(alice *e2e.Device, room id.RoomID, root string, event id.EventID) {
	c.s.Helper()
	in := root + "/rooms/" + url.PathEscape(string(room))
	status, raw := c.ask(http.MethodPut, in+"/redact/"+url.PathEscape(string(event))+"/"+token("txn"), []byte(`{}`))
	if status != http.StatusOK {
		c.s.Fatalf("%d %s", status, raw)
	}
	if alice.Server.Kind == "synapse" { // what another server redacts Dendrite does not show by /sync
		_, err := alice.Wait(c.s.soon(), "the redaction", func(u client.Update) bool {
			r, ok := u.(*client.Redaction)
			return ok && r.Target == event
		})
		c.s.must(err)
	}
	status, raw = c.ask(http.MethodGet, in+"/event/"+url.PathEscape(string(event)), nil)
	if status != http.StatusOK || bytes.Contains(raw, []byte(`"body"`)) {
		c.s.Errorf("what was taken back is shown: %d %s", status, raw)
	}
	c.hides(raw)
}

// uploads uploads a file by the media paths of a version, and returns its name.
func (c *plainClient) uploads(root string) (name string, data []byte) {
	c.s.Helper()
	data = []byte(token("media"))
	var made struct {
		URI id.ContentURIString `json:"content_uri"`
	}
	status, raw := c.ask(http.MethodPost, root+"/upload?filename=a.txt", data)
	if err := json.Unmarshal(raw, &made); status != http.StatusOK || err != nil {
		c.s.Fatalf("upload: %d %s", status, raw)
	}
	mxc, err := made.URI.Parse()
	c.s.must(err)
	direct, err := mautrix.NewClient(c.server.BaseURL, c.UserID, c.AccessToken)
	c.s.must(err)
	if got, err := direct.DownloadBytes(c.s.soon(), mxc); err != nil || bytes.Contains(got, data) || len(got) != len(data) {
		c.s.Errorf("at the homeserver the file is %q, %v", got, err)
	}
	return mxc.Homeserver + "/" + mxc.FileID, data
}

// downloads gets a file that was uploaded, also in the place of a thumbnail.
func (c *plainClient) downloads(path string, want []byte) {
	c.s.Helper()
	if status, raw := c.ask(http.MethodGet, path, nil); status != http.StatusOK || !bytes.Equal(raw, want) {
		c.s.Errorf("%s gives %d %q, want %q", path, status, raw, want)
	}
}
