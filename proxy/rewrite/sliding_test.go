package rewrite

import (
	"encoding/json"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

func slide(t *testing.T, raw string) (*Sliding, func() string) {
	t.Helper()
	s, err := ParseSliding([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return s, func() string {
		out, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
}

func TestSlidingSync(t *testing.T) {
	_, message := evt(mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, "")
	_, commit := evt(mlsRoom, "$c", "@a:x", rooms.TypeCommit, "{}", "")
	_, unknown := evt(mlsRoom, "$unknown", "@a:x", "m.room.encrypted", cipher, "")
	_, encryption := evt(mlsRoom, "$s", "@a:x", "m.room.encryption", `{"algorithm":"`+rooms.Algorithm+`"}`, `,"state_key":""`)
	_, name := evt(mlsRoom, "$n", "@a:x", "m.room.name", `{"name":"N"}`, `,"state_key":""`)
	_, plain := evt("!plain:x", "$p", "@a:x", "m.room.message", `{"body":"plain"}`, "")
	s, encode := slide(t, `{"pos":"5","lists":{"all":{"count":3,"ops":[{"op":"SYNC"}]}},"rooms":{
		"`+mlsRoom+`":{"initial":true,"bump_stamp":77,"name":"N","joined_count":3,"notification_count":2,"highlight_count":0,"limited":true,"prev_batch":"pb","num_live":3,
			"timeline":[`+string(commit)+`,`+string(message)+`,`+string(commit)+`,`+string(unknown)+`],"required_state":[`+string(encryption)+`,`+string(name)+`]},
		"!plain:x":{"timeline":[`+string(plain)+`],"num_live":1,"limited":false},
		"!quiet:x":{"notification_count":0,"highlight_count":0},
		"!invite:x":{"invite_state":[{"type":"m.room.encryption","state_key":"","content":{"algorithm":"`+rooms.Algorithm+`"},"sender":"@a:x"},{"type":"m.room.name","state_key":"","content":{"name":"I"},"sender":"@a:x"}]},"!odd:x":7},
		"extensions":{"to_device":{"next_batch":"td","events":[{"type":"`+rooms.TypeWelcome+`","content":{}},{"type":"m.room_key_request","content":{}}]},"e2ee":{"device_one_time_keys_count":{"x":1}},
			"typing":{"rooms":{}},"account_data":{"global":[{"type":"m.push_rules","content":{"global":{}}}]},
			"receipts":{"rooms":{"`+mlsRoom+`":{"type":"m.receipt","content":{"$open":{"m.read":{"@me:x":{"ts":8}}}}}}}}}`)
	s.Rewrite(view)
	out := encode()
	for _, want := range []string{
		`"pos":"5"`, `"lists":{"all":{"count":3,"ops":[{"op":"SYNC"}]}}`, `"bump_stamp":77`, `"joined_count":3`, `"initial":true`, `"prev_batch":"pb"`, `"limited":true`, `"num_live":2`,
		`"body":"hello"`, KeyUnreadable, `"type":"m.room.name"`, `"body":"plain"`, `"name":"I"`, `"next_batch":"td"`, `"m.room_key_request"`, `"device_one_time_keys_count":{"x":1}`, `"!odd:x":7`,
		`"typing":{"rooms":{}}`, `"notification_count":2`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%s\nlacks %s", out, want)
		}
	}
	for _, not := range []string{"ciphertext", rooms.Prefix + "commit", rooms.TypeWelcome, "m.room.encryption"} {
		if strings.Contains(out, not) {
			t.Errorf("%s\nhas %s", out, not)
		}
	}
	byRoom := map[id.RoomID]*Window{}
	for _, w := range s.Windows() {
		byRoom[w.Room] = w
	}
	if w := byRoom[mlsRoom]; w.Lost != 2 || !w.Limited || !w.Joined || w.SlidingCounts() != (Counts{2, 0}) {
		t.Errorf("%+v", w)
	}
	if byRoom["!invite:x"].Joined {
		t.Error("an invite counts as a joined room")
	}
	if got := s.Receipts("@me:x")[mlsRoom]; len(got) != 1 || got[0] != (Receipt{"$open", ""}) || string(s.PushRules()) != `{"global":{}}` {
		t.Errorf("receipts %+v, push rules %s", got, s.PushRules())
	}
	// Filled again.
	w := byRoom[mlsRoom]
	w.Prepend([]Event{{Raw: plain}}, "earlier")
	w.AddState([]Event{{Raw: json.RawMessage(`{"type":"m.room.member","state_key":"@a:x"}`)}, {Raw: name}})
	w.SetSlidingCounts(Counts{1, 1})
	other := &Window{room: fields{}}
	if other.SetSlidingCounts(Counts{}); len(other.room) != 0 {
		t.Errorf("nothing unread became %s", other.room.raw())
	}
	s.Add(mlsRoom, Event{Raw: json.RawMessage(`{"late":1}`)})
	s.Add("!new:x", Event{Raw: json.RawMessage(`{"late":2}`)})
	out = encode()
	for _, want := range []string{`"prev_batch":"earlier"`, `"num_live":3`, `{"late":1}]`, `"!new:x":{"num_live":1,"timeline":[{"late":2}]}`, `"highlight_count":1`, `"state_key":"@a:x"`} {
		if !strings.Contains(out, want) {
			t.Errorf("%s\nlacks %s", out, want)
		}
	}
	if strings.Count(out, `"m.room.name"`) != 2 || !strings.Contains(out, `"timeline":[`+string(plain)+`,`) {
		t.Errorf("%s", out)
	}
}

func TestSlidingSyncOfOddAnswers(t *testing.T) {
	for _, raw := range []string{`{}`, `{"pos":"1"}`, `{"rooms":null,"extensions":null}`, `{"rooms":{"!a:x":{"timeline":7,"num_live":"x","required_state":{},"invite_state":5}},"extensions":{"to_device":{"events":{}},"receipts":{"rooms":[]}}}`} {
		s, encode := slide(t, raw)
		s.Rewrite(view)
		if out := encode(); !json.Valid([]byte(out)) || len(s.Receipts("@a:x")) != 0 {
			t.Errorf("%s became %s", raw, out)
		}
	}
	for _, raw := range []string{``, `[]`, `1`} {
		if _, err := ParseSliding([]byte(raw)); err == nil {
			t.Errorf("%q is taken for an answer", raw)
		}
	}
	quiet := QuietSliding("9")
	quiet.Add(mlsRoom, Event{Raw: json.RawMessage(`{}`)})
	if out, err := quiet.Encode(); err != nil || string(out) != `{"extensions":{},"lists":{},"pos":"9","rooms":{"!mls:x":{"num_live":1,"timeline":[{}]}}}` {
		t.Errorf("%s, %v", out, err)
	}
}

func FuzzSliding(f *testing.F) {
	_, message := evt(mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, "")
	f.Add([]byte(`{"pos":"1","rooms":{"` + mlsRoom + `":{"timeline":[` + string(message) + `],"num_live":1}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := ParseSliding(raw)
		if err != nil {
			return
		}
		s.Rewrite(view)
		if out, err := s.Encode(); err != nil || !json.Valid(out) {
			t.Fatalf("%q became %q, %v", raw, out, err)
		}
	})
}
