package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
	"maunium.net/go/mautrix/pushrules"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/store"
)

const (
	unreadOwn    id.UserID = "@me:x"
	unreadPeer   id.UserID = "@peer:x"
	unreadRoomID           = id.RoomID("!r:x")
)

// defaultRules are of the server-default rules (Matrix client-server API,
// "Predefined Rules") those that matter here; more come before the others.
func defaultRules(t *testing.T, override, room string) *pushrules.PushRuleset {
	t.Helper()
	raw := `{"override":[` + override + `
		{"rule_id":".m.rule.is_user_mention","enabled":true,"default":true,"conditions":[{"kind":"event_property_contains","key":"content.m\\.mentions.user_ids","value":"@me:x"}],"actions":["notify",{"set_tweak":"sound","value":"default"},{"set_tweak":"highlight"}]},
		{"rule_id":".m.rule.is_room_mention","enabled":true,"default":true,"conditions":[{"kind":"event_property_is","key":"content.m\\.mentions.room","value":true},{"kind":"sender_notification_permission","key":"room"}],"actions":["notify",{"set_tweak":"highlight"}]},
		{"rule_id":".m.rule.reaction","enabled":true,"default":true,"conditions":[{"kind":"event_match","key":"type","pattern":"m.reaction"}],"actions":[]},
		{"rule_id":".m.rule.suppress_edits","enabled":true,"default":true,"conditions":[{"kind":"event_property_is","key":"content.m\\.relates_to.rel_type","value":"m.replace"}],"actions":[]}],
		"content":[{"rule_id":"word","enabled":true,"pattern":"kumquat","actions":["notify",{"set_tweak":"highlight"}]}],
		"room":[` + room + `],"sender":[{"rule_id":"@muted:x","enabled":true,"actions":[]}],
		"underride":[
		{"rule_id":".m.rule.message","enabled":true,"default":true,"conditions":[{"kind":"event_match","key":"type","pattern":"m.room.message"}],"actions":["notify"]},
		{"rule_id":".m.rule.encrypted","enabled":true,"default":true,"conditions":[{"kind":"event_match","key":"type","pattern":"m.room.encrypted"}],"actions":["notify"]}]}`
	set := new(pushrules.PushRuleset)
	if err := json.Unmarshal([]byte(raw), set); err != nil {
		t.Fatal(err)
	}
	return set
}

// counting is an account's store and what is said there.
type counting struct {
	t   *testing.T
	st  *store.Store
	u   *unread
	set *pushrules.PushRuleset
	n   int
}

func newCounting(t *testing.T, set *pushrules.PushRuleset) *counting {
	t.Helper()
	c := &counting{t: t, set: set}
	c.st = stored(t, filepath.Join(t.TempDir(), storeName), newKey(t)).st
	c.restart()
	return c
}

// restart forgets what was in memory.
func (c *counting) restart() {
	c.u = newUnread(c.st, unreadOwn, func(context.Context) (*pushrules.PushRuleset, error) { return c.set, nil }, func(id.RoomID) (client.RoomFacts, bool) {
		return client.RoomFacts{Version: "1", Joined: 3, DisplayName: "Me", Power: json.RawMessage(`{"users":{"@peer:x":50}}`)}, true
	})
}

func (c *counting) say(sender id.UserID, eventType, content string) id.EventID {
	c.t.Helper()
	c.n++
	evt := id.EventID(fmt.Sprintf("$%d:x", c.n))
	data, err := json.Marshal(&client.Message{Room: unreadRoomID, EventID: evt, Sender: sender, Type: eventType, Content: json.RawMessage(content), Timestamp: int64(1000 * c.n)})
	if err != nil {
		c.t.Fatal(err)
	}
	err = c.st.AddTimeline(c.t.Context(), &store.TimelineItem{
		Room: unreadRoomID, EventID: evt, Mid: string(evt), Sender: sender, Type: eventType, Timestamp: int64(1000 * c.n), Data: data,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return evt
}

func (c *counting) text(sender id.UserID, more string) id.EventID {
	c.t.Helper()
	return c.say(sender, "m.room.message", `{"msgtype":"m.text","body":"hello"`+more+`}`)
}

func (c *counting) read(receipts ...Receipt) {
	c.t.Helper()
	if err := c.u.read(c.t.Context(), map[id.RoomID][]Receipt{unreadRoomID: receipts}); err != nil {
		c.t.Fatal(err)
	}
}

// is checks the counts of the room where the homeserver says so many ciphertexts
// are unread.
func (c *counting) is(what string, said, notify, highlight int) {
	c.t.Helper()
	got, _, err := c.u.count(c.t.Context(), unreadRoomID, Counts{Notify: said}, nil)
	if err != nil || got != (Counts{notify, highlight}) {
		c.t.Errorf("%s: %+v, %v; want %d and %d", what, got, err, notify, highlight)
	}
}

const mention = `,"m.mentions":{"user_ids":["@me:x"]}`

func TestUnreadMessagesAreJudgedByWhatTheySay(t *testing.T) {
	c := newCounting(t, defaultRules(t, "", ""))
	first := c.text(unreadPeer, "")
	c.is("a message", 1, 1, 0)
	c.text(unreadPeer, mention)
	c.is("a mention", 2, 2, 1)
	c.say(unreadPeer, "m.reaction", `{"m.relates_to":{"rel_type":"m.annotation","event_id":"$1:x","key":"x"}}`)
	c.is("a reaction", 3, 2, 1)
	c.text(unreadPeer, `,"m.relates_to":{"rel_type":"m.replace","event_id":"$1:x"}`)
	c.is("an edit", 3, 2, 1)
	c.say(unreadPeer, "m.room.message", `{"msgtype":"m.text","body":"a Kumquat!"}`)
	c.is("a word", 4, 3, 2)
	c.text("@muted:x", "")
	c.is("a muted user", 4, 3, 2)
	c.text(unreadPeer, `,"m.mentions":{"room":true}`)
	c.is("a mention of the room", 5, 4, 3)
	c.text("@other:x", `,"m.mentions":{"room":true}`)
	c.is("a mention of the room by who may not", 6, 5, 3)
	c.is("two that cannot be read", 8, 7, 3)

	err := c.st.RedactTimeline(t.Context(), unreadRoomID, "$2:x", func(data []byte) ([]byte, error) { return []byte(`{"content":{}}`), nil })
	if err != nil {
		t.Fatal(err)
	}
	c.u.stale(unreadRoomID)
	c.is("the mention was redacted", 7, 6, 2)
	if err := c.st.RedactTimeline(t.Context(), unreadRoomID, "$unknown", nil); err != nil {
		t.Errorf("redacting what is not there: %v", err)
	}

	c.read(Receipt{Event: "$5:x"})
	c.is("read up to the word", 2, 2, 1)
	c.restart()
	c.is("after a restart", 2, 2, 1)
	c.read(Receipt{Event: first})
	c.is("a receipt of an earlier event", 2, 2, 1)
	c.read(Receipt{Event: "$amember:x", Sent: 7500})
	c.is("read up to an event that is no message", 1, 1, 0)
	c.read(Receipt{Event: "$unknown:x"})
	c.is("read up to what is not known", 1, 1, 0)
	c.is("all was read", 0, 0, 0)
	c.text(unreadOwn, "")
	c.text(unreadPeer, "")
	c.is("an own message between", 2, 1, 0)
	c.read(Receipt{Event: "$10:x"})
	c.is("as the homeserver has it", 0, 0, 0)
}

func TestWhatCameLateToTheDeviceIsNoMoreThanTheHomeserverSays(t *testing.T) {
	c := newCounting(t, defaultRules(t, "", ""))
	// What another device gave, of before this one was there, was never unread.
	if _, err := c.st.AddHistory(t.Context(), &store.TimelineItem{Room: unreadRoomID, EventID: "$given", Mid: "given", Sender: unreadPeer, Type: "m.room.message", Data: []byte(`{"content":{"body":"kumquat"}}`)}); err != nil {
		t.Fatal(err)
	}
	c.is("nothing but what was given", 1, 1, 0)
	c.text(unreadPeer, "")
	c.is("a message after what was given", 1, 1, 0)
	c.read(Receipt{Event: "$1:x"})
	c.text(unreadPeer, mention) // it was opened after the receipt of what came after it
	c.is("it was read elsewhere", 0, 0, 0)
	c.text(unreadPeer, "")
	c.is("one is new", 1, 1, 0)
}

func TestRoomsThatNotifyOfMentionsOnly(t *testing.T) {
	c := newCounting(t, defaultRules(t, "", `{"rule_id":"!r:x","enabled":true,"actions":[]}`))
	c.text(unreadPeer, "")
	c.text(unreadPeer, mention)
	c.is("a mention", 0, 1, 1)
	events, err := c.u.unlisted(t.Context(), unreadRoomID, newRuleset(c.set, unreadOwn), newJudged(client.RoomFacts{}))
	if err != nil || len(events) != 1 || events[0] != "$2:x" {
		t.Errorf("the homeserver does not list %v, %v", events, err)
	}
	c.text(unreadOwn, "")
	c.is("it was answered", 0, 0, 0)
	if events, err := c.u.unlisted(t.Context(), unreadRoomID, newRuleset(c.set, unreadOwn), newJudged(client.RoomFacts{})); err != nil || len(events) != 0 {
		t.Errorf("after an answer the homeserver does not list %v, %v", events, err)
	}
	c.text(unreadPeer, mention)
	c.read(Receipt{Event: "$4:x"})
	c.is("it was read", 0, 0, 0)
	if err := c.u.forget(t.Context(), unreadRoomID); err != nil {
		t.Fatal(err)
	}
	c.is("the room was forgotten", 0, 1, 1)
}

func TestARoomThatNotifiesOfEverythingCountsNoEventsOfTheProtocol(t *testing.T) {
	c := newCounting(t, defaultRules(t, "", `{"rule_id":"!r:x","enabled":true,"actions":["notify"]}`))
	c.text(unreadPeer, "")
	c.is("a message among commits", 9, 1, 0)
}

func TestUnreadThreads(t *testing.T) {
	c := newCounting(t, defaultRules(t, "", ""))
	root := c.text(unreadPeer, "")
	inThread := `,"m.relates_to":{"rel_type":"m.thread","event_id":"$1:x"}`
	c.text(unreadPeer, inThread+mention)
	c.text(unreadPeer, inThread)
	c.text(unreadPeer, `,"m.relates_to":{"rel_type":"m.replace","event_id":"$3:x"}`)
	check := func(what string, main, thread, wantMain, wantThread Counts) {
		t.Helper()
		said := map[string]Counts{}
		if thread != (Counts{}) {
			said[string(root)] = thread
		}
		got, by, err := c.u.count(t.Context(), unreadRoomID, main, said)
		if err != nil || got != wantMain || by[string(root)] != wantThread {
			t.Errorf("%s: %+v and %+v, %v; want %+v and %+v", what, got, by, err, wantMain, wantThread)
		}
	}
	check("a thread", Counts{1, 0}, Counts{2, 0}, Counts{1, 0}, Counts{2, 1})
	c.is("a client that does not ask for threads", 3, 3, 1)
	c.read(Receipt{Event: root, Thread: Main})
	check("the rest was read", Counts{}, Counts{2, 0}, Counts{}, Counts{2, 1})
	c.read(Receipt{Event: "$2:x", Thread: string(root)})
	check("part of the thread was read", Counts{}, Counts{1, 0}, Counts{}, Counts{1, 0})
	c.read(Receipt{Event: "$4:x"})
	check("all was read", Counts{}, Counts{}, Counts{}, Counts{})
	for i := range 3 * maxThreads {
		c.text(unreadPeer, "")
		c.read(Receipt{Event: id.EventID(fmt.Sprintf("$%d:x", c.n)), Thread: fmt.Sprintf("$root%d", i)})
	}
	if n := len(c.u.rooms[unreadRoomID].marks); n > maxThreads || c.u.rooms[unreadRoomID].marks[""].Event != "$4:x" {
		t.Errorf("receipts of %d threads are kept", n)
	}
}

func TestUnreadMessagesOfALongRoomAreBounded(t *testing.T) {
	c := newCounting(t, defaultRules(t, "", ""))
	for range maxItems + 60 {
		c.text(unreadPeer, mention)
	}
	c.is("many", maxItems+60, maxItems+60, maxItems)
	for range 20 {
		c.text(unreadPeer, mention)
	}
	c.is("and more", maxItems+80, maxItems+80, maxItems)
	r := c.u.rooms[unreadRoomID]
	if len(r.items) != maxItems || r.from != r.items[0].seq || r.upTo != int64(maxItems+80) {
		t.Errorf("%d events are kept, from %d to %d", len(r.items), r.from, r.upTo)
	}
	c.u.stale(unreadRoomID)
	c.is("few", 2, 2, 2)
	if n := len(r.items); n > 50 {
		t.Errorf("for two unread messages %d were read", n)
	}
}

func TestWithoutPushRulesTheHomeserversCountsStay(t *testing.T) {
	c := newCounting(t, nil)
	asked := 0
	c.u.rules.fetch = func(context.Context) (*pushrules.PushRuleset, error) { asked++; return nil, errors.New("away") }
	c.say(unreadPeer, "m.reaction", `{"x":1}`)
	c.is("nothing is known", 1, 1, 0)
	c.is("nothing is known", 1, 1, 0)
	if asked != 1 {
		t.Errorf("the homeserver was asked %d times", asked)
	}
	for _, odd := range []string{``, `[]`, `{}`, `{"global":{"override":[null]}}`, `{"global":5}`} {
		c.u.rules.take(json.RawMessage(odd))
	}
	c.is("rules that are none", 1, 1, 0)
	c.u.rules.take(json.RawMessage(`{"global":{"underride":[{"rule_id":"x","enabled":true,"conditions":[{"kind":"event_match","key":"type","pattern":"m.room.encrypted"}],"actions":["notify"]}]}}`))
	c.is("rules that a client was told", 1, 0, 0)
	// Rules that the homeserver does not have.
	c.text(unreadPeer, mention)
	c.text(unreadPeer, `,"m.mentions":{"user_ids":["@other:x"]}`)
	c.text(unreadPeer, `,"m.relates_to":{"rel_type":"m.replace","event_id":"$2:x"}`+mention)
	c.is("a mention by a rule that the homeserver lacks", 4, 2, 2)
}

func TestARuleThatCannotBeAppliedCountsAsForACiphertext(t *testing.T) {
	set := new(pushrules.PushRuleset)
	// An object is compared with an object; a sound that is no text.
	if err := json.Unmarshal([]byte(`{"override":[{"rule_id":"x","enabled":true,"conditions":[{"kind":"event_property_is","key":"content.a","value":{}}],"actions":["notify",{"set_tweak":"sound","value":5}]}]}`), set); err != nil {
		t.Fatal(err)
	}
	if v := judge(set, newJudged(client.RoomFacts{}), unreadRoomID, unreadPeer, "m.room.message", json.RawMessage(`{"a":{}}`)); v != (verdict{notify: true}) {
		t.Errorf("it says %+v", v)
	}
}

// TestAnOldTimeReadsNothingElse: the newest message claims to be older than what was
// read, and is read by that receipt no more than those before it.
func TestAnOldTimeReadsNothingElse(t *testing.T) {
	c := newCounting(t, defaultRules(t, "", ""))
	for range 3 {
		c.text(unreadPeer, "")
	}
	lies := &store.TimelineItem{Room: unreadRoomID, EventID: "$lies:x", Mid: "lies", Sender: unreadPeer, Type: "m.room.message", Timestamp: 1, Data: []byte(`{"content":{"body":"hello"}}`)}
	if err := c.st.AddTimeline(t.Context(), lies); err != nil {
		t.Fatal(err)
	}
	asked := 0
	receipts := map[id.RoomID][]Receipt{unreadRoomID: {{Event: "$amember:x"}, {Event: "$2:x", Thread: Main}}}
	sent := func(context.Context, id.RoomID, id.EventID) int64 { asked++; return 1500 }
	c.u.dated(t.Context(), receipts, sent)
	c.read(receipts[unreadRoomID][0])
	c.is("read up to a member's event", 4, 4, 0)
	if r := c.u.rooms[unreadRoomID]; r.marks[""].Seq != 1 {
		t.Errorf("the mark is at %+v", r.marks)
	}
	if c.u.dated(t.Context(), receipts, sent); asked != 1 || receipts[unreadRoomID][1].Sent != 0 {
		t.Errorf("%d events were asked for, want the one that is no message, once", asked)
	}
}

// TestReceiptsThatCannotBeKept: what is in memory is not ahead of the store.
func TestReceiptsThatCannotBeKept(t *testing.T) {
	c := newCounting(t, defaultRules(t, "", ""))
	c.text(unreadPeer, "")
	ctx, cancel := context.WithCancel(t.Context())
	c.is("a message", 1, 1, 0)
	errAway := errors.New("away")
	err := c.st.Do(ctx, func(ctx context.Context) error {
		if err := c.u.read(ctx, map[id.RoomID][]Receipt{unreadRoomID: {{Event: "$1:x"}}}); err != nil {
			t.Error(err)
		}
		cancel()
		// The store fails in the midst of the next room.
		if err := c.u.read(ctx, map[id.RoomID][]Receipt{unreadRoomID: {{Event: "$unread:x", Thread: "x"}}}); err == nil {
			t.Error("a store that fails keeps receipts")
		}
		return errAway
	})
	if !errors.Is(err, errAway) {
		t.Fatal(err)
	}
	c.is("the receipt was not kept", 1, 1, 0)
}

func TestThreadsAreNamedByEvents(t *testing.T) {
	c := newCounting(t, defaultRules(t, "", ""))
	for _, root := range []string{"$" + strings.Repeat("x", 255), "no event"} {
		for _, kind := range []string{"m.thread", "m.replace"} {
			c.text(unreadPeer, `,"m.relates_to":{"rel_type":"`+kind+`","event_id":"`+root+`"}`)
		}
	}
	c.is("threads of nothing", 4, 2, 0)
	for _, it := range c.u.rooms[unreadRoomID].items {
		if it.thread != Main || len(it.target) > 255 {
			t.Errorf("%s is in the thread %.10s…, its target has %d bytes", it.event, it.thread, len(it.target))
		}
	}
}
