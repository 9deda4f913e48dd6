package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/proxy/terminal"
)

// plainClient is a client without any encryption, and what it has been told.
type plainClient struct {
	*mautrix.Client
	s      *story
	server *lab.Server
	since  string
	filter string
	seen   []*event.Event
	asked  int // by counts, in all
}

func (p *localProxy) client(user lab.User) *plainClient {
	p.s.Helper()
	return &plainClient{Client: p.login(user), s: p.s, server: p.server}
}

// follow points the client at a proxy that has started anew.
func (c *plainClient) follow(p *localProxy) {
	c.s.Helper()
	var err error
	c.HomeserverURL, err = c.HomeserverURL.Parse(p.url)
	c.s.must(err)
}

// sync makes one /sync and keeps the room's events.
func (c *plainClient) sync(ctx context.Context, room id.RoomID) (*mautrix.RespSync, error) {
	resp, err := c.SyncRequest(ctx, 5000, c.since, c.filter, false, "")
	if err != nil {
		return nil, err
	}
	c.since = resp.NextBatch
	if joined := resp.Rooms.Join[room]; joined != nil {
		for _, e := range slices.Concat(joined.State.Events, joined.Timeline.Events) {
			e.RoomID = room
			c.take(e)
		}
	}
	return resp, nil
}

// take notes an event. Of a message that came late, the notice is edited, as every client does.
func (c *plainClient) take(e *event.Event) {
	var late struct {
		New     json.RawMessage `json:"m.new_content"`
		Relates struct {
			Event id.EventID `json:"event_id"`
		} `json:"m.relates_to"`
	}
	if !strings.HasPrefix(string(e.ID), "$mls-proxy-") || json.Unmarshal(e.Content.VeryRaw, &late) != nil || late.Relates.Event == "" {
		c.seen = append(c.seen, e)
		return
	}
	c.s.step("a notice was edited")
	for _, notice := range c.seen {
		if notice.ID == late.Relates.Event && notice.Sender == e.Sender {
			notice.Content.VeryRaw = late.New
		}
	}
}

// until syncs until the client has been told of an event that fits.
func (c *plainClient) until(what string, room id.RoomID, fits func(*event.Event) bool) *event.Event {
	c.s.Helper()
	return c.untilRepeated(what, room, fits, func() {})
}

// untilRepeated does something at once, and every ten seconds again, until the client has been told of an event that fits.
func (c *plainClient) untilRepeated(what string, room id.RoomID, fits func(*event.Event) bool, do func()) *event.Event {
	c.s.Helper()
	ctx := c.s.soon()
	var done time.Time
	for {
		if i := slices.IndexFunc(c.seen, fits); i >= 0 {
			return c.seen[i]
		}
		if time.Since(done) > 10*time.Second {
			done = time.Now()
			do()
		}
		if _, err := c.sync(ctx, room); err != nil {
			c.s.Fatalf("the client was not told of %s: %v; it knows %s", what, err, c.summary())
		}
	}
}

// accepts waits for an invite, joins, and waits until the inviter has the client's MLS device in the group.
func (c *plainClient) accepts(from *e2e.Device, room id.RoomID) {
	c.s.Helper()
	ctx := c.s.soon()
	for invited := false; !invited; {
		resp, err := c.sync(ctx, room)
		c.s.must(err)
		if invite := resp.Rooms.Invite[room]; invite != nil {
			invited = true
			for _, e := range invite.State.Events {
				if e.Type.Type == "m.room.encryption" {
					c.s.Errorf("the invite shows %s", e.Content.VeryRaw)
				}
			}
		}
	}
	_, err := c.JoinRoomByID(c.s.soon(), room)
	c.s.must(err)
	_, err = from.WaitEpoch(c.s.soon(), room, "the plain client's device", func(u *client.EpochChanged) bool { return slices.Contains(u.Added, c.UserID) })
	c.s.must(err)
	c.s.step("the plain client joined")
}

func (c *plainClient) summary() string {
	var out []string
	for _, e := range c.seen {
		out = append(out, e.Type.Type+" "+string(e.Content.VeryRaw))
	}
	return strings.Join(out, "\n")
}

// reads waits for a message with a text.
func (c *plainClient) reads(room id.RoomID, text string) *event.Event {
	c.s.Helper()
	return c.until("the message "+text, room, func(e *event.Event) bool { return e.Type.Type == "m.room.message" && body(e) == text })
}

func body(e *event.Event) string {
	var c struct {
		Body string `json:"body"`
	}
	_ = json.Unmarshal(e.Content.VeryRaw, &c)
	return c.Body
}

// hears waits until a device of the SDK has an event by its content.
func (s *story) hears(d *e2e.Device, from id.UserID, evt id.EventID) *client.Message {
	s.Helper()
	u, err := d.Wait(s.soon(), "the event "+evt.String(), func(u client.Update) bool {
		m, ok := u.(*client.Message)
		return ok && m.EventID == evt
	})
	s.must(err)
	m := u.(*client.Message)
	if m.Sender != from {
		s.Errorf("%s heard %s from %s, want %s", d.Name, evt, m.Sender, from)
	}
	return m
}

// TestProxyConversation: a client that knows nothing of MLS joins an MLS room through the proxy, reads and writes in
// it, and reads it again after a restart; nothing of it lies readable at the servers, and nothing but MLS was sent.
func TestProxyConversation(t *testing.T) {
	for _, servers := range [][2]string{{"syn1", "den1"}, {"den1", "syn1"}} {
		t.Run(servers[0]+" to "+servers[1], func(t *testing.T) {
			s := tell(t, "sqlite")
			alice := s.person(servers[0], "alice")
			user, err := s.w.AddUser(s.ctx, servers[1], fmt.Sprintf("plain%d", people.Add(1)))
			s.must(err)
			p := s.proxy(servers[1])
			bob := p.client(user)
			room, err := alice.CreateRoom(s.soon(), client.CreateOptions{Name: "Through the proxy"})
			s.must(err)
			s.must(alice.Invite(s.soon(), room, bob.UserID))
			bob.accepts(alice, room)
			secret := token("planted")
			for i := range 5 {
				_, err := alice.SendText(s.soon(), room, fmt.Sprintf("message %d: %s", i, secret))
				s.must(err)
			}
			var first *event.Event
			for i := range 5 {
				e := bob.reads(room, fmt.Sprintf("message %d: %s", i, secret))
				if first == nil {
					first = e
				}
			}
			if first.Sender != alice.UserID() {
				t.Errorf("it is from %s", first.Sender)
			}
			s.step("it read five messages")
			for _, e := range bob.seen {
				if e.Type.Type == "m.room.encryption" || e.Type.Type == "m.room.encrypted" || strings.HasPrefix(e.Type.Type, "io.github.matrix-mls.") {
					t.Errorf("the client was told of %s: %s", e.Type.Type, e.Content.VeryRaw)
				}
			}

			// Text, reply, edit, reaction.
			text, reply, edit, key := token("text"), token("reply"), token("edit"), token("key")
			sent := bob.send(room, "m.room.message", "1", map[string]any{"msgtype": "m.text", "body": text})
			if again := bob.send(room, "m.room.message", "1", map[string]any{"msgtype": "m.text", "body": text}); again != sent {
				t.Errorf("the same transaction made two events, %s and %s", sent, again)
			}
			replied := bob.send(room, "m.room.message", "2", map[string]any{"msgtype": "m.text", "body": reply, "m.relates_to": map[string]any{"m.in_reply_to": map[string]any{"event_id": first.ID}}})
			edited := bob.send(room, "m.room.message", "3", map[string]any{
				"msgtype": "m.text", "body": "* " + edit, "m.new_content": map[string]any{"msgtype": "m.text", "body": edit},
				"m.relates_to": map[string]any{"rel_type": "m.replace", "event_id": sent},
			})
			reacted := bob.send(room, "m.reaction", "4", map[string]any{"m.relates_to": map[string]any{"rel_type": "m.annotation", "event_id": first.ID, "key": key}})
			threaded := bob.send(room, "m.room.message", "thread", map[string]any{"msgtype": "m.text", "body": "in a thread: " + text, "m.relates_to": map[string]any{"rel_type": "m.thread", "event_id": first.ID}})
			for _, want := range []struct {
				event id.EventID
				text  string
			}{{sent, text}, {replied, string(first.ID)}, {edited, edit}, {reacted, key}, {threaded, "in a thread"}} {
				if m := s.hears(alice, bob.UserID, want.event); !strings.Contains(string(m.Content), want.text) {
					t.Errorf("alice heard %s, want %q in it", m.Content, want.text)
				}
			}
			s.step("it spoke")
			own := bob.reads(room, text)
			if own.ID != sent || own.Unsigned.TransactionID != "1" {
				t.Errorf("its own message came back as %s of transaction %q, want %s of 1", own.ID, own.Unsigned.TransactionID, sent)
			}
			bob.until("its reaction", room, func(e *event.Event) bool { return e.ID == reacted && e.Type.Type == "m.reaction" })
			bob.paths(t, alice, room, first, secret, reacted)
			var odd, inside, called string
			s.part(t, "refusals", func() { odd = bob.refusals(p, room) })
			s.part(t, "files", func() { inside = s.files(alice, bob, room) })
			s.part(t, "unread counts", func() { called = bob.unread(alice, room, sent) })

			// After a restart the whole history is there.
			p.end()
			p.start()
			bob.follow(p)
			bob.since, bob.seen = "", nil
			bob.counts(room, "", "after a restart", mautrix.UnreadNotificationCounts{HighlightCount: 1, NotificationCount: 1})
			history := bob.history(room)
			for _, want := range []string{"message 0: " + secret, "message 4: " + secret, text, reply, "* " + edit} {
				if !slices.ContainsFunc(history, func(e *event.Event) bool { return body(e) == want }) {
					t.Errorf("%q is not in the history", want)
				}
			}
			for _, e := range history {
				if e.Type.Type == "m.room.encryption" || e.Type.Type == "m.room.encrypted" || strings.HasPrefix(e.Type.Type, "io.github.matrix-mls.") {
					t.Errorf("the history has %s: %s", e.Type.Type, e.Content.VeryRaw)
				}
			}
			s.export(p, room, secret)
			after := token("after the restart")
			s.hears(alice, bob.UserID, bob.send(room, "m.room.message", "5", map[string]any{"msgtype": "m.text", "body": after}))
			s.step("it spoke after a restart")

			// What is not right in the room is said in the room.
			// A busy Dendrite leaves events of other servers out of /sync, so that alice may have to say it again.
			ctx, period := s.soon(), 0
			told := bob.untilRepeated("a notice", room, func(e *event.Event) bool {
				return strings.HasPrefix(body(e), "The room's encryption setting was changed")
			}, func() {
				period += 100
				_, err := e2e.API(ctx, alice.Server, alice.User, http.MethodPut, "/rooms/"+url.PathEscape(string(room))+"/state/m.room.encryption", map[string]any{"algorithm": "m.megolm.v1.aes-sha2", "rotation_period_msgs": period})
				s.must(err)
			})
			if told.Sender != bob.UserID || bob.SendReceipt(s.soon(), room, told.ID, event.ReceiptTypeRead, nil) != nil {
				t.Errorf("the notice is %+v, and cannot be read up to", told)
			}
			// What is sent where the setting is contested goes to the same group, encrypted as before.
			set, err := e2e.API(ctx, bob.server, lab.User{UserID: string(bob.UserID), AccessToken: bob.AccessToken}, http.MethodGet, "/rooms/"+url.PathEscape(string(room))+"/state/m.room.encryption/", nil)
			if err != nil || !strings.Contains(string(set), "m.megolm") {
				t.Errorf("at the client's homeserver the setting is %s, %v: what follows proves nothing", set, err)
			}
			contested := token("contested")
			if m := s.hears(alice, bob.UserID, bob.send(room, "m.room.message", "6", map[string]any{"msgtype": "m.text", "body": contested})); !strings.Contains(string(m.Content), contested) {
				t.Errorf("alice heard %s, want %q in it", m.Content, contested)
			}
			s.step("it spoke where the encryption setting is contested")

			s.onlyMLS(alice, room)
			s.blind([]string{secret, text, reply, edit, key, odd, after, inside, called, contested})
			_, err = bob.Logout(s.soon())
			s.must(err)
		})
	}
}

// TestProxyCreatesEncryptedRooms: what a client takes for a room with Megolm is an MLS room.
func TestProxyCreatesEncryptedRooms(t *testing.T) {
	s := tell(t, "sqlite")
	alice, carol := s.person("syn1", "alice"), s.person("den1", "carol")
	user, err := s.w.AddUser(s.ctx, "den1", fmt.Sprintf("plain%d", people.Add(1)))
	s.must(err)
	p := s.proxy("den1")
	bob := p.client(user)
	empty := ""
	made, err := bob.CreateRoom(s.soon(), &mautrix.ReqCreateRoom{
		Preset: "private_chat", PowerLevelOverride: &event.PowerLevelsEventContent{Users: map[id.UserID]int{bob.UserID: 100, alice.UserID(): 50}}, Topic: "A topic", RoomVersion: "10", Visibility: "public", Invite: []id.UserID{alice.UserID()}, InitialState: []*event.Event{
			{Type: event.StateEncryption, StateKey: &empty, Content: event.Content{Raw: map[string]any{"algorithm": "m.megolm.v1.aes-sha2"}}},
			{Type: event.StateGuestAccess, StateKey: &empty, Content: event.Content{Raw: map[string]any{"guest_access": "forbidden"}}},
		},
	})
	s.must(err)
	s.step("the room is made")
	// What was sent: Dendrite shows state without its content once another server has joined.
	bob.until("guest access", made.RoomID, func(e *event.Event) bool {
		return e.Type.Type == "m.room.guest_access" && strings.Contains(string(e.Content.VeryRaw), "forbidden")
	})
	s.join(alice, made.RoomID, &e2e.Device{Server: p.server})
	var listed struct{ Visibility string }
	raw, err := bob.get("directory", "list", "room", made.RoomID)
	s.must(err)
	s.must(json.Unmarshal(raw, &listed))
	if listed.Visibility != "public" {
		t.Errorf("in the directory the room is %q", listed.Visibility)
	}
	for eventType, want := range map[string]string{"m.room.power_levels": `"` + string(alice.UserID()) + `":50`, "m.room.create": `"room_version":"10"`} {
		if raw, err = bob.get("rooms", made.RoomID, "state", eventType); err != nil || !strings.Contains(string(raw), want) || strings.Contains(string(raw), "matrix-mls.v1") {
			t.Errorf("%s is %s, %v", eventType, raw, err)
		}
	}
	word := token("said")
	s.hears(alice, bob.UserID, bob.send(made.RoomID, "m.room.message", "1", map[string]any{"msgtype": "m.text", "body": word}))
	said, err := alice.SendText(s.soon(), made.RoomID, "answer to "+word)
	s.must(err)
	if e := bob.reads(made.RoomID, "answer to "+word); e.ID != said {
		t.Errorf("the answer is %s, want %s", e.ID, said)
	}
	// Who is put out through the proxy is removed from the group.
	in := "/rooms/" + url.PathEscape(string(made.RoomID))
	does := func(path, body string) {
		t.Helper()
		if status, raw := bob.ask(http.MethodPost, "/_matrix/client/"+path, []byte(body)); status != http.StatusOK {
			s.Fatalf("%s: %d %s", path, status, raw)
		}
	}
	whom := func(d *e2e.Device) string { return `{"user_id":"` + string(d.UserID()) + `"}` }
	s.part(t, "POST v3 invite", func() {
		does("v3"+in+"/invite", whom(carol))
		s.join(carol, made.RoomID, &e2e.Device{Server: p.server})
	})
	s.part(t, "POST r0 ban", func() {
		does("r0"+in+"/ban", whom(carol))
		s.gone(carol, made.RoomID)
	})
	s.part(t, "POST v3 unban and r0 invite", func() {
		does("v3"+in+"/unban", whom(carol))
		does("r0"+in+"/invite", whom(carol))
	})
	s.part(t, "POST v3 kick", func() {
		does("v3"+in+"/kick", whom(alice))
		s.gone(alice, made.RoomID)
	})
	s.part(t, "POST r0 leave", func() { does("r0"+in+"/leave", `{}`) })
	s.blind([]string{word})
}

func (c *plainClient) send(room id.RoomID, eventType, txn string, content any) id.EventID {
	c.s.Helper()
	resp, err := c.SendMessageEvent(c.s.soon(), room, event.NewEventType(eventType), content, mautrix.ReqSendEvent{TransactionID: txn})
	c.s.must(err)
	return resp.EventID
}

// get makes a request of the client-server API.
func (c *plainClient) get(path ...any) (json.RawMessage, error) {
	var raw json.RawMessage
	_, err := c.MakeRequest(c.s.soon(), http.MethodGet, c.BuildClientURL(append([]any{"v3"}, path...)...), nil, &raw)
	return raw, err
}

// counts waits until a /sync from the same position shows the room's unread counts.
func (c *plainClient) counts(room id.RoomID, since, what string, want mautrix.UnreadNotificationCounts) {
	c.s.Helper()
	ctx := c.s.soon()
	var got mautrix.UnreadNotificationCounts
	for {
		// Synapse answers the same request again with what it said then, for two minutes: no two are the same.
		c.asked++
		filter := fmt.Sprintf(`{"room":{"timeline":{"limit":%d}}}`, 10+c.asked)
		resp, err := c.SyncRequest(ctx, 0, since, filter, false, "")
		if err != nil {
			c.s.Fatalf("%s: the room has %+v unread, want %+v: %v", what, got, want, err)
		}
		got = mautrix.UnreadNotificationCounts{}
		if joined := resp.Rooms.Join[room]; joined != nil && joined.UnreadNotifications != nil {
			got = *joined.UnreadNotifications
		}
		if got == want {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// unread lets others say what counts and what does not, and reads it all but a last
// mention. It returns what was said.
func (c *plainClient) unread(alice *e2e.Device, room id.RoomID, sent id.EventID) string {
	c.s.Helper()
	counts := func(notify, highlight int) mautrix.UnreadNotificationCounts {
		return mautrix.UnreadNotificationCounts{NotificationCount: notify, HighlightCount: highlight}
	}
	read := func(evt id.EventID) {
		c.s.Helper()
		// Dendrite counts in its own time: what it counts after the receipt stays unread there.
		ctx := c.s.soon()
		for {
			list, err := e2e.API(ctx, c.server, lab.User{UserID: string(c.UserID), AccessToken: c.AccessToken}, http.MethodGet, "/notifications", nil)
			c.s.must(err)
			if strings.Contains(string(list), string(evt)) {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
		_, err := c.MakeRequest(c.s.soon(), http.MethodPost, c.BuildClientURL("v3", "rooms", room, "receipt", "m.read", evt), map[string]any{}, nil)
		c.s.must(err)
	}
	before := c.since
	text := token("called")
	mention := map[string]any{"msgtype": "m.text", "body": text, "m.mentions": map[string]any{"user_ids": []id.UserID{c.UserID}}}
	plain, err := alice.SendText(c.s.soon(), room, "before "+text)
	c.s.must(err)
	c.reads(room, "before "+text)
	read(plain)
	c.counts(room, before, "all was read", counts(0, 0))
	_, err = alice.SendText(c.s.soon(), room, "unread "+text)
	c.s.must(err)
	_, err = alice.Send(c.s.soon(), room, "m.room.message", mention)
	c.s.must(err)
	liked, err := alice.React(c.s.soon(), room, sent, "!")
	c.s.must(err)
	c.until("the reaction", room, func(e *event.Event) bool { return e.ID == liked })
	c.counts(room, before, "a message, a mention and a reaction", counts(2, 1))
	// The list has the mention, and only that when asked so.
	var list struct {
		Notifications []struct {
			Event struct {
				Type    string          `json:"type"`
				Content json.RawMessage `json:"content"`
			} `json:"event"`
		} `json:"notifications"`
	}
	raw, err := c.get("notifications")
	c.s.must(err)
	c.s.must(json.Unmarshal(raw, &list))
	if len(list.Notifications) < 2 || !strings.Contains(string(list.Notifications[0].Event.Content), text) || strings.Contains(string(raw), "m.reaction") {
		c.s.Errorf("/notifications shows %s", raw)
	}
	_, err = c.MakeRequest(c.s.soon(), http.MethodGet, c.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "notifications"}, map[string]string{"only": "highlight"}), nil, &raw)
	c.s.must(err)
	c.s.must(json.Unmarshal(raw, &list))
	if len(list.Notifications) != 1 || !strings.Contains(string(list.Notifications[0].Event.Content), "m.mentions") {
		c.s.Errorf("/notifications of highlights shows %s", raw)
	}
	last, err := alice.SendText(c.s.soon(), room, "last "+text)
	c.s.must(err)
	c.reads(room, "last "+text)
	c.counts(room, before, "one more message", counts(3, 1))
	read(last)
	c.counts(room, before, "all was read again", counts(0, 0))
	_, err = alice.Send(c.s.soon(), room, "m.room.message", mention)
	c.s.must(err)
	c.counts(room, before, "one more mention", counts(1, 1))
	c.s.step("the unread counts are right")
	return text
}

// search looks for what was said, two at a time and all at once.
func (c *plainClient) search(room id.RoomID, secret string) {
	c.s.Helper()
	var answer struct {
		Categories struct {
			Events struct {
				Results []struct {
					Result  event.Event `json:"result"`
					Context struct {
						Before []json.RawMessage `json:"events_before"`
						After  []json.RawMessage `json:"events_after"`
					} `json:"context"`
				} `json:"results"`
				Next string `json:"next_batch"`
			} `json:"room_events"`
		} `json:"search_categories"`
	}
	ask := func(next string, limit int, order string) []string {
		c.s.Helper()
		query := map[string]string{}
		if next != "" {
			query["next_batch"] = next
		}
		answer.Categories.Events.Results, answer.Categories.Events.Next = nil, ""
		req := map[string]any{"search_categories": map[string]any{"room_events": map[string]any{
			"search_term": secret, "order_by": order, "filter": map[string]any{"limit": limit, "rooms": []id.RoomID{room}},
			"event_context": map[string]any{"before_limit": 2, "after_limit": 2},
		}}}
		_, err := c.MakeRequest(c.s.soon(), http.MethodPost, c.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "search"}, query), req, &answer)
		c.s.must(err)
		var out []string
		for _, r := range answer.Categories.Events.Results {
			out = append(out, body(&r.Result))
			for _, raw := range slices.Concat(r.Context.Before, r.Context.After) {
				if strings.Contains(string(raw), `"type":"m.room.encrypted"`) || strings.Contains(string(raw), `"type":"io.github.matrix-mls.`) {
					c.s.Errorf("around what was found is %s", raw)
				}
			}
		}
		return out
	}
	var paged []string
	for next, n := "", 0; n < 10; n++ {
		page := ask(next, 2, "recent")
		if paged = append(paged, page...); len(page) > 2 {
			c.s.Errorf("a page of the search has %q", page)
		}
		if next = answer.Categories.Events.Next; next == "" {
			break
		}
	}
	best := ask("", 10, "rank")
	for what, got := range map[string][]string{"in pages": paged, "the best": best} {
		slices.Sort(got)
		var want []string
		for i := range 5 {
			want = append(want, fmt.Sprintf("message %d: %s", i, secret))
		}
		if !slices.Equal(got, want) {
			c.s.Errorf("the search found %s %q, want %q", what, got, want)
		}
	}
}

// slide follows the room by a simplified sliding sync, where the homeserver has that.
func (c *plainClient) slide(alice *e2e.Device, room id.RoomID, text string) {
	c.s.Helper()
	type slidingRoom struct {
		Timeline []*event.Event `json:"timeline"`
		State    []*event.Event `json:"required_state"`
		Live     int            `json:"num_live"`
	}
	pos := ""
	ask := func(ctx context.Context) (slidingRoom, error) {
		query := map[string]string{"timeout": "2000"}
		if pos != "" {
			query["pos"] = pos
		}
		var answer struct {
			Pos   string                    `json:"pos"`
			Rooms map[id.RoomID]slidingRoom `json:"rooms"`
		}
		var raw json.RawMessage
		_, err := c.MakeRequest(ctx, http.MethodPost, c.BuildURLWithQuery(mautrix.ClientURLPath{"unstable", "org.matrix.simplified_msc3575", "sync"}, query), map[string]any{
			"lists": map[string]any{"all": map[string]any{"ranges": [][2]int{{0, 20}}, "timeline_limit": 4, "required_state": [][2]string{
				{"m.room.encryption", ""}, {"m.room.name", ""}, {"m.room.create", ""}, {"m.room.member", "$LAZY"}}}},
			"extensions": map[string]any{"to_device": map[string]any{"enabled": true}, "receipts": map[string]any{"enabled": true}, "account_data": map[string]any{"enabled": true}},
		}, &raw)
		if err != nil {
			return slidingRoom{}, err
		}
		if strings.Contains(string(raw), `"type":"m.room.encrypt`) || strings.Contains(string(raw), "io.github.matrix-mls.v1") || strings.Contains(string(raw), `"type":"io.github.matrix-mls.`) {
			c.s.Errorf("the sliding sync shows %s", raw)
		}
		c.s.must(json.Unmarshal(raw, &answer))
		pos = answer.Pos
		return answer.Rooms[room], nil
	}
	first, err := ask(c.s.soon())
	if errors.Is(err, mautrix.MUnrecognized) && c.server.Kind != "synapse" {
		c.s.step("the homeserver has no sliding sync, and says so")
		return
	}
	c.s.must(err)
	if len(first.Timeline) < 2 || !slices.ContainsFunc(first.State, func(e *event.Event) bool { return e.Type.Type == "m.room.name" }) {
		c.s.Errorf("the sliding sync begins with %d events and the state %v, want at least 2 and a name", len(first.Timeline), first.State)
	}
	said, err := alice.SendText(c.s.soon(), room, text)
	c.s.must(err)
	ctx := c.s.soon()
	for {
		next, err := ask(ctx)
		c.s.must(err)
		i := slices.IndexFunc(next.Timeline, func(e *event.Event) bool { return e.ID == said || body(e) == "* "+text })
		if i >= 0 && strings.HasSuffix(body(next.Timeline[i]), text) {
			if next.Live < len(next.Timeline)-i {
				c.s.Errorf("of %d events %d are live, and the new one is number %d", len(next.Timeline), next.Live, i)
			}
			break
		}
	}
	c.s.step("it read a message by sliding sync")
}

// reactions asks for what relates to a message.
func (c *plainClient) reactions(room id.RoomID, to, want id.EventID) {
	c.s.Helper()
	for _, path := range [][]any{{"m.annotation"}, {"m.annotation", "m.reaction"}, {}} {
		var page struct {
			Chunk []struct {
				ID   id.EventID `json:"event_id"`
				Type string     `json:"type"`
			} `json:"chunk"`
		}
		_, err := c.MakeRequest(c.s.soon(), http.MethodGet, c.BuildClientURL(append([]any{"v1", "rooms", room, "relations", to}, path...)...), nil, &page)
		c.s.must(err)
		n := 0
		for _, e := range page.Chunk {
			if e.ID == want && e.Type == "m.reaction" {
				n++
			}
		}
		if n != 1 {
			c.s.Errorf("/relations%v shows %+v, want the reaction %s once", path, page.Chunk, want)
		}
	}
}

// lookAround reads an event in every other way there is.
func (c *plainClient) lookAround(room id.RoomID, first *event.Event, secret string) {
	c.s.Helper()
	got, err := c.GetEvent(c.s.soon(), room, first.ID)
	c.s.must(err)
	if got.Type.Type != "m.room.message" || !strings.Contains(string(got.Content.VeryRaw), secret) {
		c.s.Errorf("/event shows %s %s", got.Type.Type, got.Content.VeryRaw)
	}
	// What is around it differs between homeservers: it is what this one has.
	has, err := e2e.API(c.s.soon(), c.server, lab.User{UserID: string(c.UserID), AccessToken: c.AccessToken}, http.MethodGet,
		"/rooms/"+url.PathEscape(string(room))+"/context/"+url.PathEscape(string(first.ID)), nil)
	c.s.must(err)
	var there struct {
		Before []struct {
			ID   id.EventID `json:"event_id"`
			Type string     `json:"type"`
		} `json:"events_before"`
		After []struct {
			ID   id.EventID `json:"event_id"`
			Type string     `json:"type"`
		} `json:"events_after"`
	}
	c.s.must(json.Unmarshal(has, &there))
	around, err := c.get("rooms", room, "context", first.ID)
	c.s.must(err)
	// One that was sent again is left out, and was never read under its own id.
	read := map[id.EventID]bool{}
	for _, e := range c.seen {
		read[e.ID] = strings.HasSuffix(body(e), secret)
	}
	for _, e := range slices.Concat(there.Before, there.After) {
		if read[e.ID] && !strings.Contains(string(around), `"`+string(e.ID)+`"`) {
			c.s.Errorf("/context lacks %s: %s", e.ID, around)
		}
	}
	if !strings.Contains(string(around), "message 0: "+secret) ||
		strings.Contains(string(around), `"type":"m.room.encrypt`) || strings.Contains(string(around), `"type":"io.github.matrix-mls.`) {
		c.s.Errorf("/context shows %s", around)
	}
	state, err := c.get("rooms", room, "state")
	c.s.must(err)
	if strings.Contains(string(state), `"type":"m.room.encryption"`) || strings.Contains(string(state), `"type":"io.github.matrix-mls.`) {
		c.s.Errorf("/state shows %s", state)
	}
	if _, err := c.get("rooms", room, "state", "m.room.encryption"); !errors.Is(err, mautrix.MNotFound) {
		c.s.Errorf("/state/m.room.encryption: %v", err)
	}
	for _, path := range [][]any{{"v1", "rooms", room, "threads"}, {"v3", "notifications"}} {
		var raw json.RawMessage
		_, err := c.MakeRequest(c.s.soon(), http.MethodGet, c.BuildClientURL(path...), nil, &raw)
		if err != nil || strings.Contains(string(raw), `"type":"m.room.encrypted"`) || strings.Contains(string(raw), `"type":"io.github.matrix-mls.`) {
			c.s.Errorf("%v: %v %s", path, err, raw)
		}
		var list struct {
			Chunk []struct {
				ID       id.EventID `json:"event_id"`
				Unsigned struct {
					Relations struct {
						Thread struct {
							Latest struct {
								Content json.RawMessage `json:"content"`
							} `json:"latest_event"`
							Count        int  `json:"count"`
							Participated bool `json:"current_user_participated"`
						} `json:"m.thread"`
					} `json:"m.relations"`
				} `json:"unsigned"`
			} `json:"chunk"`
		}
		if path[0] != "v1" {
			continue
		}
		c.s.must(json.Unmarshal(raw, &list))
		if len(list.Chunk) != 1 || list.Chunk[0].ID != first.ID {
			c.s.Errorf("/threads shows %s, want the thread of %s", raw, first.ID)
			continue
		}
		if th := list.Chunk[0].Unsigned.Relations.Thread; th.Count != 1 || !th.Participated || !strings.Contains(string(th.Latest.Content), "in a thread: ") {
			c.s.Errorf("/threads shows %s, want one reply, an own one", raw)
		}
	}
	// Of what the ciphertexts hold, only what the client asks for; receipts and events by the id of an edit of the proxy's.
	stored, err := c.CreateFilter(c.s.soon(), &mautrix.Filter{Room: &mautrix.RoomFilter{Timeline: &mautrix.FilterPart{Limit: 3, Types: []event.Type{event.EventReaction}}}})
	c.s.must(err)
	if kept, err := c.get("user", c.UserID, "filter", stored.FilterID); err != nil || strings.Contains(string(kept), "m.room.encrypted") || !strings.Contains(string(kept), "m.reaction") {
		c.s.Errorf("the stored filter is %s, %v", kept, err)
	}
	only, err := c.SyncRequest(c.s.soon(), 0, "", stored.FilterID, false, "")
	c.s.must(err)
	if joined := only.Rooms.Join[room]; joined == nil || len(joined.Timeline.Events) != 1 || joined.Timeline.Events[0].Type.Type != "m.reaction" {
		c.s.Errorf("a filter for reactions gives %+v", joined)
	}
	own := "$mls-proxy-" + strings.TrimPrefix(string(first.ID), "$")
	if got, err = c.GetEvent(c.s.soon(), room, id.EventID(own)); err != nil || got.ID != first.ID {
		c.s.Errorf("the event of an edit of the proxy's: %v, %v", got, err)
	}
	_, err = c.MakeRequest(c.s.soon(), http.MethodPost, c.BuildClientURL("v3", "rooms", room, "receipt", "m.read", own), map[string]any{}, nil)
	c.s.must(err)
	_, err = c.MakeRequest(c.s.soon(), http.MethodPost, c.BuildClientURL("v3", "rooms", room, "read_markers"), map[string]any{"m.fully_read": own}, nil)
	c.s.must(err)
	if marker, err := c.get("user", c.UserID, "rooms", room, "account_data", "m.fully_read"); err != nil || !strings.Contains(string(marker), `"`+string(first.ID)+`"`) {
		c.s.Errorf("the read marker is at %s, %v; want %s", marker, err, first.ID)
	}
	// As many events as asked for, though most of the room's are not for the client.
	page, err := c.Messages(c.s.soon(), room, "", "", mautrix.DirectionBackward, nil, 5)
	c.s.must(err)
	if len(page.Chunk) != 5 || page.End == "" {
		c.s.Errorf("/messages shows %d events, end %q; want 5", len(page.Chunk), page.End)
	}
}

// export writes what the MLS device of the only account has of a room into a file, which shows nothing of it without
// the passphrase, and reads that in again: all of it is there already.
func (s *story) export(p *localProxy, room id.RoomID, secret string) {
	s.Helper()
	folders, _ := filepath.Glob(filepath.Join(p.state, "accounts", "*"))
	if len(folders) != 1 {
		s.Fatalf("the accounts are %v", folders)
	}
	dir := s.TempDir()
	run := func(passphrase string, args ...string) (int, string) {
		stdout, stderr := newOutput(), newOutput()
		env := &terminal.Env{Stdin: strings.NewReader(passphrase + "\n"), Stdout: stdout, Stderr: stderr, Getenv: func(string) string { return "" }, Cwd: dir}
		code := terminal.Main(s.soon(), append([]string{"--state", folders[0]}, args...), env)
		return code, stdout.String() + stderr.String()
	}
	if code, said := run("correct horse", "export", "messages", string(room), "--passphrase-file", "-"); code != terminal.ExitOK {
		s.Fatalf("export: exit code %d\n%s", code, said)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "messages"))
	s.must(err)
	if len(raw) == 0 || bytes.Contains(raw, []byte(secret)) || bytes.Contains(raw, []byte("m.room.message")) {
		s.Errorf("the file of %d bytes shows what was said", len(raw))
	}
	if code, said := run("another wrong horse", "import", "messages", "--passphrase-file", "-"); code != terminal.ExitRefused {
		s.Errorf("import with a wrong passphrase: exit code %d\n%s", code, said)
	}
	code, said := run("correct horse", "import", "messages", "--passphrase-file", "-", "--json")
	var got struct {
		Messages, Known, Dropped, Strange int
	}
	if code != terminal.ExitOK || json.Unmarshal([]byte(said), &got) != nil || got.Messages != 0 || got.Known < 10 || got.Dropped != 0 || got.Strange != 0 {
		s.Errorf("import: exit code %d\n%s", code, said)
	}
	s.step("its messages were written out and read in again")
}

// refusals tries what must not be possible, and sends a message by a path that is escaped in an odd way: it returns what
// that said.
func (c *plainClient) refusals(p *localProxy, room id.RoomID) string {
	c.s.Helper()
	_, err := c.SendStateEvent(c.s.soon(), room, event.StateEncryption, "", map[string]string{"algorithm": "m.megolm.v1.aes-sha2"})
	if !errors.Is(err, mautrix.MForbidden) || !strings.Contains(err.Error(), "encrypted already") {
		c.s.Errorf("turning Megolm on: %v", err)
	}
	_, err = c.SendMessageEvent(c.s.soon(), room, event.EventEncrypted, map[string]string{"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x", "session_id": "y"})
	if !errors.Is(err, mautrix.MForbidden) {
		c.s.Errorf("a Megolm message: %v", err)
	}
	// What the proxy does not do yet it says, and does nothing of it.
	for _, tt := range []struct {
		path string
		body any
		want string
	}{
		{c.BuildClientURL("v3", "rooms", room, "upgrade"), map[string]string{"new_version": "11"}, "cannot upgrade MLS rooms"},
		{c.BuildURL(mautrix.MediaURLPath{"v1", "create"}), map[string]string{}, "upload them by POST"},
		{c.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "register"}, map[string]string{"kind": "guest"}), map[string]string{}, "a guest has no device"},
	} {
		if _, err = c.MakeRequest(c.s.soon(), http.MethodPost, tt.path, tt.body, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			c.s.Errorf("%s: %v, want a refusal that says %q", tt.path, err, tt.want)
		}
	}
	if raw, err := c.get("rooms", room, "state", "m.room.tombstone"); err == nil {
		c.s.Errorf("the room has a successor: %s", raw)
	}
	// Another way to write the same path leads to the same place.
	odd := token("odd-path")
	raw, err := http.NewRequestWithContext(c.s.soon(), http.MethodPut, p.url+"/_matrix/client/r0/rooms/"+url.PathEscape(string(room))+"/%73end/m.room%2Emessage/odd?access_token="+c.AccessToken,
		strings.NewReader(`{"msgtype":"m.text","body":"`+odd+`"}`))
	c.s.must(err)
	resp, err := c.Client.Client.Do(raw)
	c.s.must(err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		c.s.Errorf("an escaped path: %s", resp.Status)
	}
	c.reads(room, odd)
	return odd
}

// files sends a file of a megabyte each way, and one into a room without encryption, which stays one. It returns a text
// that the encrypted ones hold.
func (s *story) files(alice *e2e.Device, bob *plainClient, room id.RoomID) string {
	s.Helper()
	inside := token("in-the-file")
	data := bytes.Repeat([]byte(inside+"\n"), (1<<20)/(len(inside)+1)+1)[:1<<20]

	up, err := bob.UploadBytesWithName(s.soon(), data, "text/plain", inside+".txt")
	s.must(err)
	sent := bob.send(room, "m.room.message", "file", map[string]any{
		"msgtype": "m.file", "body": "a file", "url": up.ContentURI.CUString(), "info": map[string]any{"size": len(data), "mimetype": "text/plain"},
	})
	content, got, err := alice.DownloadFile(s.soon(), s.hears(alice, bob.UserID, sent))
	s.must(err)
	if !bytes.Equal(got, data) || content.MsgType != event.MsgFile || content.URL != "" {
		s.Errorf("alice got a %s of %d bytes, url %q", content.MsgType, len(got), content.URL)
	}
	s.step("the plain client sent a file")

	sent, err = alice.SendFile(s.soon(), room, client.File{Name: "note.txt", MIME: "text/plain", Body: bytes.NewReader(data)})
	s.must(err)
	came := bob.until("the file", room, func(e *event.Event) bool { return e.ID == sent })
	var file struct {
		URL  id.ContentURIString `json:"url"`
		File json.RawMessage     `json:"file"`
	}
	s.must(json.Unmarshal(came.Content.VeryRaw, &file))
	if file.File != nil {
		s.Errorf("the client was told of the key: %s", came.Content.VeryRaw)
	}
	mxc, err := file.URL.Parse()
	s.must(err)
	if got, err = bob.DownloadBytes(s.soon(), mxc); err != nil || !bytes.Equal(got, data) {
		s.Errorf("the client got %d bytes, %v", len(got), err)
	}
	s.step("the plain client got a file")

	// Where nothing is encrypted, a file is what it was.
	open := []byte(token("public"))
	up, err = bob.UploadBytesWithName(s.soon(), open, "text/plain", "open.txt")
	s.must(err)
	plainRoom, err := bob.CreateRoom(s.soon(), &mautrix.ReqCreateRoom{Preset: "private_chat"})
	s.must(err)
	bob.send(plainRoom.RoomID, "m.room.message", "plain", map[string]any{"msgtype": "m.file", "body": "a file", "url": up.ContentURI.CUString()})
	came = bob.until("the file in the plain room", plainRoom.RoomID, func(e *event.Event) bool { return body(e) == "a file" && e.RoomID == plainRoom.RoomID })
	s.must(json.Unmarshal(came.Content.VeryRaw, &file))
	if mxc, err = file.URL.Parse(); err != nil || mxc == up.ContentURI {
		s.Fatalf("the file in a plain room is at %s, %v", file.URL, err)
	}
	direct, err := mautrix.NewClient(bob.server.BaseURL, bob.UserID, bob.AccessToken)
	s.must(err)
	if got, err := direct.DownloadBytes(s.soon(), mxc); err != nil || !bytes.Equal(got, open) {
		s.Errorf("in a plain room the file is %q, %v; want %q", got, err, open)
	}
	// A member who claims to have its key does not take it away.
	claimed, err := alice.Send(s.soon(), room, "m.room.message", map[string]any{"msgtype": "m.file", "body": "claimed", "file": map[string]any{
		"url": mxc.String(), "v": "v2", "iv": strings.Repeat("A", 22), "hashes": map[string]string{"sha256": strings.Repeat("A", 43)},
		"key": map[string]any{"kty": "oct", "alg": "A256CTR", "ext": true, "key_ops": []string{"encrypt", "decrypt"}, "k": strings.Repeat("A", 43)},
	}})
	s.must(err)
	bob.until("the claim", room, func(e *event.Event) bool { return e.ID == claimed })
	if got, err := bob.DownloadBytes(s.soon(), mxc); err != nil || !bytes.Equal(got, open) {
		s.Errorf("after a member's claim the file is %q, %v; want %q", got, err, open)
	}
	return inside
}

// history pages back to the beginning of what the client may see.
func (c *plainClient) history(room id.RoomID) []*event.Event {
	c.s.Helper()
	// Synapse answers a first sync that is like the one before with what it said then. Where a page of Dendrite's ends, it
	// passes over other events of the same depth, which two servers easily send at the same time: one page has to hold all.
	limit := 20
	if c.server.Kind != "synapse" {
		limit = 500
	}
	stored, err := c.CreateFilter(c.s.soon(), &mautrix.Filter{Room: &mautrix.RoomFilter{Timeline: &mautrix.FilterPart{Limit: limit}}})
	c.s.must(err)
	c.filter = stored.FilterID
	resp, err := c.sync(c.s.soon(), room)
	c.s.must(err)
	joined := resp.Rooms.Join[room]
	if joined == nil {
		c.s.Fatalf("the room is not in the initial sync")
		return nil
	}
	all, from := slices.Clone(joined.Timeline.Events), joined.Timeline.PrevBatch
	for pages := 0; from != ""; pages++ {
		page, err := c.Messages(c.s.soon(), room, from, "", mautrix.DirectionBackward, nil, limit)
		c.s.must(err)
		all = append(all, page.Chunk...)
		if pages > 50 {
			c.s.Fatalf("the history does not end")
		}
		if page.End == from || len(page.Chunk) == 0 {
			break
		}
		from = page.End
	}
	return all
}

// roomEvent is what a homeserver tells of an event.
type roomEvent struct {
	Type     string          `json:"type"`
	Sender   id.UserID       `json:"sender"`
	StateKey *string         `json:"state_key"`
	Content  json.RawMessage `json:"content"`
}

// roomEvents are the events of a room as a homeserver has them, newest first.
func (s *story) roomEvents(d *e2e.Device, room id.RoomID) (all []roomEvent) {
	s.Helper()
	for from := ""; ; {
		raw, err := e2e.API(s.soon(), d.Server, d.User, http.MethodGet, "/rooms/"+url.PathEscape(string(room))+"/messages?dir=b&limit="+roomPage+from, nil)
		s.must(err)
		var page struct {
			Chunk []roomEvent `json:"chunk"`
			End   string      `json:"end"`
		}
		s.must(json.Unmarshal(raw, &page))
		all = append(all, page.Chunk...)
		next := "&from=" + url.QueryEscape(page.End)
		if page.End == "" || next == from || len(page.Chunk) == 0 {
			return all
		}
		from = next
	}
}

// roomPage is as much as homeservers give at once. Where a page of Dendrite's ends, it passes over other events of the same
// depth.
const roomPage = "1000"

// onlyMLS looks at all messages of a room as the homeserver has them.
func (s *story) onlyMLS(d *e2e.Device, room id.RoomID) {
	s.Helper()
	ciphertexts, created := 0, false
	for _, e := range s.roomEvents(d, room) {
		created = created || e.Type == "m.room.create"
		var content struct {
			Algorithm string `json:"algorithm"`
		}
		_ = json.Unmarshal(e.Content, &content)
		switch {
		case e.StateKey != nil || strings.HasPrefix(e.Type, "io.github.matrix-mls.") || e.Type == "m.room.redaction" || string(e.Content) == "{}": // it was redacted
		case e.Type == "m.room.encrypted" && content.Algorithm == "io.github.matrix-mls.v1":
			ciphertexts++
		default:
			s.Errorf("the room has an event %s with the algorithm %q", e.Type, content.Algorithm)
		}
	}
	if !created {
		s.Errorf("the room's first event is not among those that were looked at")
	}
	if ciphertexts < 10 {
		s.Errorf("only %d ciphertexts in the room", ciphertexts)
	}
}
