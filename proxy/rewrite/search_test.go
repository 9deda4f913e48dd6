package rewrite

import (
	"encoding/json"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

func TestRank(t *testing.T) {
	for _, tt := range []struct {
		text, search string
		found        bool
	}{
		{"Hello World", "world", true},
		{"Hello World", "WORLD hello", true},
		{"Hello World", "world mars", false},
		{"Hello World", "wor", true}, // a word begins with it
		{"Hello World", "orld", false},
		{"hello-world", "world", true},
		{"über Straße", "Über", true},
		{"ein Straßenfest", "straße", true},
		{"今日は世界", "世界", true},
		{"x", "", false},
		{"", "x", false},
		{"x", "...", false},
		{"orld world", "orld", true},
		{"\xff\xfeworld", "world", true},
	} {
		if got := Rank(tt.text, Terms(tt.search)); (got > 0) != tt.found {
			t.Errorf("%q in %q ranks %v, want found %v", tt.search, tt.text, got, tt.found)
		}
	}
	if whole, part, twice := Rank("the cat", Terms("cat")), Rank("the cats", Terms("cat")), Rank("cat cat", Terms("cat")); whole <= part || twice <= whole {
		t.Errorf("a word ranks %v, a part of one %v, a word twice %v", whole, part, twice)
	}
	if n := Rank(strings.Repeat("cat ", 1000), Terms("cat")); n > 10 {
		t.Errorf("a repeated word ranks %v", n)
	}
}

func TestSearchRequest(t *testing.T) {
	s, events, err := ParseSearch([]byte(`{"search_categories":{"room_events":{"search_term":"Two words","order_by":"recent","keys":["content.body"],"event_context":{"before_limit":1,"after_limit":900,"include_profile":true},
		"groupings":{"group_by":[{"key":"room_id"},{"key":"other"},{"key":"sender"}]},"include_state":true,
		"filter":{"limit":7,"rooms":["!a:x","!b:x"],"not_rooms":["!b:x"],"senders":["@a:x"],"not_types":["m.sticker"]}},"other":{"x":1}}}`))
	if err != nil || !events {
		t.Fatal(events, err)
	}
	if !s.Recent || !s.State || s.Limit != 7 || strings.Join(s.Terms, "+") != "two+words" || strings.Join(s.Groups, "+") != "room_id+sender" || *s.Context != (Around{1, maxAround, true}) {
		t.Errorf("%+v, context %+v", s, s.Context)
	}
	for room, want := range map[id.RoomID]bool{"!a:x": true, "!b:x": false, "!c:x": false} {
		if s.Wants(room) != want {
			t.Errorf("it wants %s: %v", room, !want)
		}
	}
	event := func(sender, eventType string) Event {
		return MessageEvent("!a:x", "$e", 1, opened(sender, eventType, `{"body":"x"}`))
	}
	if !s.Keeps(event("@a:x", "m.room.message")) || s.Keeps(event("@b:x", "m.room.message")) || s.Keeps(event("@a:x", "m.sticker")) {
		t.Error("the filter keeps what it should not, or not what it should")
	}
	raw := string(s.In([]id.RoomID{"!p:x"}))
	if !strings.Contains(raw, `"rooms":["!p:x"]`) || !strings.Contains(raw, `"other":{"x":1}`) || !strings.Contains(raw, "Two words") || strings.Contains(raw, "groupings") || !strings.Contains(raw, `"senders":["@a:x"]`) {
		t.Errorf("the homeserver gets %s", raw)
	}
	s, _, err = ParseSearch([]byte(`{"search_categories":{"room_events":{"search_term":"x","keys":["content.name"],"filter":{"rooms":[],"limit":-4}}}}`))
	if err != nil || len(s.Terms) != 0 || s.Recent || s.Limit != 1 || s.Wants("!a:x") || s.Context != nil {
		t.Errorf("%+v, %v", s, err)
	}
	for _, raw := range []string{``, `[]`, `5`} {
		if _, _, err := ParseSearch([]byte(raw)); err == nil {
			t.Errorf("%q is taken for a search", raw)
		}
	}
	if _, events, err := ParseSearch([]byte(`{"search_categories":{"room_events":5}}`)); events || err != nil {
		t.Errorf("a search of nothing: %v, %v", events, err)
	}
}

func TestSearchAnswer(t *testing.T) {
	_, cipherEvent := evt(mlsRoom, "$unknown", "@a:x", "m.room.encrypted", cipher, `,"room_id":"`+mlsRoom+`"`)
	a, err := ParseSearchAnswer([]byte(`{"search_categories":{"room_events":{"count":3,"next_batch":"n","highlights":["plain"],"state":{"!p:x":[]},"groups":{"room_id":{}},
		"results":[4,{"rank":0.5,"result":{"room_id":"!p:x","event_id":"$p","sender":"@b:x","type":"m.room.message","content":{"body":"plain"},"origin_server_ts":9},"context":{"start":"s","events_before":[]}},
		{"rank":1,"result":`+string(cipherEvent)+`}]}}}`), view)
	if err != nil || a.Count != 3 || a.Next != "n" || len(a.Found) != 1 || a.Found[0].Room != "!p:x" || a.Found[0].Event.Time != 9 || a.Found[0].Rank != 0.5 {
		t.Fatalf("%+v, %v", a, err)
	}
	s, _, _ := ParseSearch([]byte(`{"search_categories":{"room_events":{"search_term":"hello plain","include_state":true,"groupings":{"group_by":[{"key":"room_id"},{"key":"sender"}]}}}}`))
	found := append(a.Found, Found{Room: mlsRoom, Event: MessageEvent(mlsRoom, "$open", 5, view["$open"]), Rank: 2})
	raw, err := a.Encode(s, found, 4, "next", map[id.RoomID][]json.RawMessage{mlsRoom: {json.RawMessage(`{"type":"m.room.name"}`)}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"count":4`, `"next_batch":"next"`, `"highlights":["plain","hello"]`, `"body":"hello"`, `"context":{"events_before":[],"start":"s"}`, `"!p:x":[]`, `"m.room.name"`,
		`"groups":{"room_id":{"!mls:x":{"order":2,"results":["$open"]},"!p:x":{"order":1,"results":["$p"]}},"sender":{"@a:x":{"order":2,"results":["$open"]},"@b:x":{"order":1,"results":["$p"]}}}`,
	} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("%s\nlacks %s", raw, want)
		}
	}
	if a, err = ParseSearchAnswer(nil, view); err != nil {
		t.Fatal(err)
	}
	if raw, err = a.Encode(s, nil, 0, "", nil); err != nil || !strings.Contains(string(raw), `"results":[]`) || strings.Contains(string(raw), "next_batch") {
		t.Errorf("nothing was found: %s, %v", raw, err)
	}
	page, err := ParsePage(mlsRoom, []byte(`{"start":"s","events_before":[{"type":"m.room.message","content":{"body":"a"},"sender":"@x:x"},{"type":"m.room.message","content":{"body":"b"}}],"state":[{"type":"m.room.member","state_key":"@a:x","content":{"displayname":"A","membership":"join"}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	around := string(AroundOf(page, view, &Around{Before: 1, Profile: true}))
	if strings.Count(around, `"body"`) != 1 || !strings.Contains(around, `"profile_info":{"@a:x":{"displayname":"A"}}`) || !strings.Contains(around, `"start":"s"`) || !strings.Contains(around, `"events_after":[]`) {
		t.Errorf("around it is %s", around)
	}
}
