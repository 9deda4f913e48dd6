package rewrite

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestNotificationsOfSeveralRooms(t *testing.T) {
	_, message := evt(mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, "")
	_, commit := evt(mlsRoom, "$c", "@a:x", rooms.TypeCommit, "{}", "")
	_, other := evt("!plain:x", "$p", "@a:x", "m.room.message", `{"body":"plain"}`, "")
	got, next, err := Notices([]byte(`{"next_token":"n","notifications":[{"room_id":"`+mlsRoom+`","read":true,"ts":8,"actions":["notify",{"set_tweak":"highlight"}],"event":`+string(message)+`},{"room_id":"`+mlsRoom+`","event":`+string(commit)+`},{"room_id":"!plain:x","event":`+string(other)+`},5]}`), view)
	if err != nil || next != "n" || len(got) != 2 {
		t.Fatalf("%d entries, next %q, %v", len(got), next, err)
	}
	if came := NoticeEvents([]byte(`{"notifications":[{"room_id":"!a:x","event":{"x":1}},{"room_id":"!a:x","event":5},7,{"room_id":"!b:x"}]}`)); len(came["!a:x"]) != 2 || string(came["!a:x"][0]) != `{"x":1}` {
		t.Errorf("%s", came)
	}
	if got[0].Room != mlsRoom || got[0].Time() != 8 || !got[0].Highlighted() || got[1].Highlighted() {
		t.Errorf("%+v", got)
	}
	got[0].SetActions(json.RawMessage(`["notify"]`))
	if raw := string(got[0].Raw()); got[0].Highlighted() || !strings.Contains(raw, `"read":true`) || !strings.Contains(raw, `"hello"`) || strings.Contains(raw, "ciphertext") {
		t.Errorf("%s", raw)
	}
	if raw := string(got[1].Raw()); !strings.Contains(raw, `"plain"`) {
		t.Errorf("%s", raw)
	}
	for _, raw := range []string{`{}`, `{"notifications":null}`} {
		if got, next, err := Notices([]byte(raw), view); err != nil || len(got) != 0 || next != "" {
			t.Errorf("%s became %v, %q, %v", raw, got, next, err)
		}
	}
	if given := string(MessageEvent(mlsRoom, "$shared", 9, view["$shared"]).Raw); !strings.Contains(given, "[shared by @c:x] told") {
		t.Errorf("a message that another member gave is %s", given)
	}
	own := NewNotice(mlsRoom, MessageEvent(mlsRoom, "$open", 9, view["$open"]))
	for _, want := range []string{`"read":false`, `"ts":9`, `"origin_server_ts":9`, `"event_id":"$open"`, `"body":"hello"`, `"room_id":"` + mlsRoom + `"`} {
		if !strings.Contains(string(own.Raw()), want) {
			t.Errorf("%s\nlacks %s", own.Raw(), want)
		}
	}
}

func TestUnreadCountsOfASync(t *testing.T) {
	body := func(room string) *Window {
		t.Helper()
		s, err := ParseSync([]byte(`{"rooms":{"join":{"` + mlsRoom + `":{` + room + `}}}}`))
		if err != nil {
			t.Fatal(err)
		}
		return s.Windows()[0]
	}
	threads := TimelineOf([]byte(`{"room":{"timeline":{"unread_thread_notifications":true}}}`))
	if !threads.Threads || strings.Contains(string(threads.More), "unread") {
		t.Errorf("the filter became %+v, more %s", threads, threads.More)
	}
	w := body(`"unread_notifications":{"notification_count":3,"highlight_count":1,"more":5},"unread_thread_notifications":{"$t":{"notification_count":2}}`)
	all, by := w.Counts(threads)
	if all != (Counts{3, 1}) || fmt.Sprint(by) != "map[$t:{2 0}]" {
		t.Errorf("%+v and %v", all, by)
	}
	w.SetCounts(Counts{2, 2}, map[string]Counts{"$u": {1, 0}})
	raw := string(w.room.raw())
	for _, want := range []string{`"notification_count":2`, `"highlight_count":2`, `"more":5`, `"unread_thread_notifications":{"$u":{"notification_count":1,"highlight_count":0}}`} {
		if !strings.Contains(raw, want) {
			t.Errorf("%s\nlacks %s", raw, want)
		}
	}
	if all, by = body(`"unread_notifications":5,"unread_thread_notifications":null`).Counts(threads); all != (Counts{}) || by == nil {
		t.Errorf("of odd counts: %+v, %v", all, by)
	}
	if all, by = w.Counts(Selection{}); by != nil || all != (Counts{2, 2}) {
		t.Errorf("without threads: %+v, %v", all, by)
	}
	w = body(`"state":{}`)
	if w.SetCounts(Counts{}, nil); w.room.has("unread_notifications") {
		t.Error("nothing unread was added")
	}
	if w.SetCounts(Counts{1, 1}, nil); !w.room.has("unread_notifications") {
		t.Error("an unread message was not added")
	}
}

func TestReceiptsOfOneUser(t *testing.T) {
	s, err := ParseSync([]byte(`{"account_data":{"events":[5,{"type":"m.direct","content":{}},{"type":"m.push_rules","content":{"global":{}}}]},"rooms":{"join":{"` + mlsRoom + `":{"ephemeral":{"events":[1,{"type":"m.typing","content":{}},
		{"type":"m.receipt","content":{"$a":{"m.read":{"@a:x":{"ts":5},"@b:x":{"ts":6}}},"$b":{"m.read.private":{"@a:x":{"ts":7,"thread_id":"main"}},"m.read":5},"$c":{"m.read":{"@a:x":null}},"$d":4}}]}}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	got := s.Windows()[0].Receipts("@a:x")
	slices.SortFunc(got, func(a, b Receipt) int { return strings.Compare(string(a.Event), string(b.Event)) })
	if len(got) != 2 || got[0] != (Receipt{"$a", ""}) || got[1] != (Receipt{"$b", "main"}) {
		t.Errorf("%+v", got)
	}
	if rules := string(s.PushRules()); rules != `{"global":{}}` {
		t.Errorf("push rules %s", rules)
	}
	if s, err = ParseSync([]byte(`{}`)); err != nil || s.PushRules() != nil {
		t.Errorf("push rules of nothing: %v", err)
	}
}

func TestThreadIsBundledWithItsRoot(t *testing.T) {
	_, raw := evt(mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, `,"unsigned":{"age":7,"m.relations":{"m.reference":{"chunk":[]}}}`)
	root := One(mlsRoom, raw, view)
	got := string(WithThread(root, MessageEvent(mlsRoom, "$own", 9, view["$own"]), 3, true).Raw)
	for _, want := range []string{`"age":7`, `"m.reference"`, `"count":3`, `"current_user_participated":true`, `"latest_event":{`, `"body":"mine"`, `"body":"hello"`} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nlacks %s", got, want)
		}
	}
	if got := WithThread(Event{Raw: json.RawMessage(`5`)}, root, 1, false); string(got.Raw) != `5` {
		t.Errorf("what is no event became %s", got.Raw)
	}
}

// TestOfNoticesTheCiphertextsAreJudged: the homeserver saw what a member's event or a
// topic says, and an old one comes last whatever its time is.
func TestOfNoticesTheCiphertextsAreJudged(t *testing.T) {
	_, member := evt(mlsRoom, "$m", "@b:x", "m.room.member", `{"membership":"invite"}`, `,"state_key":"@a:x"`)
	_, message := evt(mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, "")
	list, _, err := Notices([]byte(`{"notifications":[{"room_id":"`+mlsRoom+`","ts":-9223372036854775808,"event":`+string(member)+`},{"room_id":"`+mlsRoom+`","ts":9223372036854775807,"event":`+string(message)+`}]}`), view)
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	if list[0].Judge || !list[1].Judge {
		t.Errorf("a member's event is judged: %v, a ciphertext: %v", list[0].Judge, list[1].Judge)
	}
	if SortNotices(list); list[0].Event.ID != "$open" {
		t.Error("the older one comes first")
	}
}
