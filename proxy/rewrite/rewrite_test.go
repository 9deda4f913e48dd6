package rewrite

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

const mlsRoom = "!mls:x"

// known is a View of one MLS room.
type known map[id.EventID]Reading

func (k known) MLS(room id.RoomID) bool { return room == mlsRoom }
func (k known) Read(_ id.RoomID, event id.EventID, _ int64) Reading {
	if r, ok := k[event]; ok {
		return r
	}
	return Reading{Text: "not yet", Later: true}
}

func opened(sender, eventType, content string) Reading {
	return Reading{State: Opened, Sender: id.UserID(sender), Type: eventType, Content: json.RawMessage(content)}
}

var view = known{
	"$open":  opened("@a:x", "m.room.message", `{"body":"hello","msgtype":"m.text"}`),
	"$react": opened("@a:x", "m.reaction", `{"m.relates_to":{"key":"+"}}`),
	"$own":   {State: Opened, Sender: "@a:x", Type: "m.room.message", Content: json.RawMessage(`{"body":"mine"}`), Transaction: "t1"},
	"$again": {State: Again},
	"$shared": {State: Opened, Sender: "@a:x", SharedBy: "@c:x", Type: "m.room.message",
		Content: json.RawMessage(`{"body":"told","formatted_body":"<b>told</b>","format":"org.matrix.custom.html","m.new_content":{"body":"anew","formatted_body":"<b>anew</b>"}}`)},
	"$redacts": opened("@a:x", "m.room.redaction", `{"redacts":"$open"}`),
	"$edit":    opened("@a:x", "m.room.message", `{"body":"* new","m.new_content":{"body":"new"},"m.relates_to":{"rel_type":"m.replace","event_id":"$open"}}`),
}

const cipher = `{"algorithm":"` + rooms.Algorithm + `","ciphertext":"AAAA"}`

func evt(room, eventID, sender, eventType, content, rest string) (id.RoomID, json.RawMessage) {
	return id.RoomID(room), json.RawMessage(`{"event_id":"` + eventID + `","sender":"` + sender + `","type":"` + eventType + `","content":` + content + `,"origin_server_ts":5` + rest + `}`)
}

func TestOne(t *testing.T) {
	type in struct{ room, event, sender, kind, content, rest string }
	for _, tt := range []struct {
		name    string
		in      in
		want    []string // in what comes out; nil: it is left out
		not     string
		notice  bool
		touched bool
	}{
		{"a message", in{mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, `,"unsigned":{"age":7}`}, []string{`"type":"m.room.message"`, `"body":"hello"`, `"age":7`, `"origin_server_ts":5`}, "ciphertext", false, true},
		{"a room that is not known yet", in{"!new:x", "$open", "@a:x", "m.room.encrypted", cipher, ""}, []string{`"body":"hello"`}, "ciphertext", false, true},
		{"a reaction", in{mlsRoom, "$react", "@a:x", "m.room.encrypted", cipher, ""}, []string{`"type":"m.reaction"`}, "ciphertext", false, true},
		{"an own message", in{mlsRoom, "$own", "@a:x", "m.room.encrypted", cipher, ""}, []string{`"transaction_id":"t1"`}, "ciphertext", false, true},
		{"one that another member gave", in{mlsRoom, "$shared", "@a:x", "m.room.encrypted", cipher, ""}, []string{`"body":"[shared by @c:x] told"`, `"body":"[shared by @c:x] anew"`, `"` + KeySharedBy + `":"@c:x"`}, "<b>", false, true},
		{"one that cannot be read", in{mlsRoom, "$unknown", "@a:x", "m.room.encrypted", cipher, ""}, []string{`"m.notice"`, `not yet`, KeyUnreadable}, "ciphertext", true, true},
		{"one under another sender's name", in{mlsRoom, "$open", "@evil:x", "m.room.encrypted", cipher, ""}, []string{`"m.notice"`, "@a:x"}, "hello", true, true},
		{"one that was sent again", in{mlsRoom, "$again", "@a:x", "m.room.encrypted", cipher, ""}, nil, "", false, true},
		{"a redacted one", in{mlsRoom, "$open", "@a:x", "m.room.encrypted", "{}", `,"unsigned":{"redacted_because":{"type":"m.room.redaction"}}`}, []string{`"content":{}`, `"type":"m.room.message"`}, "hello", false, true},
		{"Megolm in an MLS room", in{mlsRoom, "$x", "@a:x", "m.room.encrypted", `{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"BBBB"}`, ""}, []string{`"m.notice"`}, "BBBB", true, true},
		{"Megolm in its own room", in{"!megolm:x", "$x", "@a:x", "m.room.encrypted", `{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"BBBB"}`, ""}, []string{"BBBB"}, "notice", false, false},
		{"a message in a plain room", in{"!plain:x", "$x", "@a:x", "m.room.message", `{"body":"hi"}`, ""}, []string{`"body":"hi"`}, "encrypted", false, false},
		{"plaintext in an MLS room", in{mlsRoom, "$x", "@a:x", "m.room.message", `{"body":"hi","formatted_body":"<b>hi</b>","m.relates_to":{"rel_type":"m.replace","event_id":"$open"},"m.new_content":{"body":"forged"}}`, ""}, []string{"[not encrypted] hi"}, "relates_to", false, true},
		{"a plaintext reaction in an MLS room", in{mlsRoom, "$x", "@a:x", "m.reaction", `{"m.relates_to":{}}`, ""}, nil, "", false, true},
		{"a redaction", in{mlsRoom, "$x", "@a:x", "m.room.redaction", `{"redacts":"$open"}`, ""}, []string{`"m.room.redaction"`, `"redacts":"$open"`}, "", false, true},
		{"an event of the protocol", in{mlsRoom, "$x", "@a:x", rooms.TypeCommit, `{"a":1}`, ""}, nil, "", false, true},
		{"state of the protocol", in{"!plain:x", "$x", "@a:x", rooms.TypeHead, `{"a":1}`, `,"state_key":"@a:x"`}, nil, "", false, true},
		{"the room's encryption", in{"!new:x", "$x", "@a:x", "m.room.encryption", `{"algorithm":"` + rooms.Algorithm + `"}`, `,"state_key":""`}, nil, "", false, true},
		{"a contested encryption", in{mlsRoom, "$x", "@a:x", "m.room.encryption", `{"algorithm":"m.megolm.v1.aes-sha2"}`, `,"state_key":""`}, nil, "", false, true},
		{"another room's encryption", in{"!megolm:x", "$x", "@a:x", "m.room.encryption", `{"algorithm":"m.megolm.v1.aes-sha2"}`, `,"state_key":""`}, []string{"megolm"}, "", false, false},
		{"the create event", in{mlsRoom, "$x", "@a:x", "m.room.create", `{"room_version":"11","` + rooms.KeyCreateAlgorithm + `":"` + rooms.Algorithm + `"}`, `,"state_key":""`}, []string{`"room_version":"11"`}, rooms.KeyCreateAlgorithm, false, true},
		{"an invite with the room's state", in{"!new:x", "$x", "@a:x", "m.room.member", `{"membership":"invite"}`, `,"state_key":"@b:x","unsigned":{"age":7,"invite_room_state":[{"type":"m.room.encryption","state_key":"","content":{"algorithm":"` + rooms.Algorithm + `"}},{"type":"m.room.name","state_key":"","content":{"name":"N"}},{"type":"m.room.create","state_key":"","content":{"` + rooms.KeyCreateAlgorithm + `":"` + rooms.Algorithm + `"}}]}`}, []string{`"name":"N"`, `"age":7`, `"membership":"invite"`}, rooms.Algorithm, false, true},
		{"an invite with state without its content", in{"!new:x", "$x", "@a:x", "m.room.member", `{"membership":"invite"}`, `,"state_key":"@b:x","unsigned":{"invite_room_state":[{"type":"m.room.encryption","state_key":"","content":{}},{"type":"m.room.name","state_key":"","content":{}}]}`}, []string{`"m.room.name"`}, "m.room.encryption", false, true},
		{"an invite within an invite", in{"!new:x", "$x", "@a:x", "m.room.member", `{"membership":"invite"}`, `,"state_key":"@b:x","unsigned":{"invite_room_state":[{"type":"m.room.member","state_key":"@b:x","content":{},"unsigned":{"invite_room_state":[{"type":"m.room.encryption","state_key":"","content":{}}]}}]}`}, []string{`"state_key":"@b:x"`}, "m.room.encryption", false, true},
		{"an invite to a room with Megolm", in{"!megolm:x", "$x", "@a:x", "m.room.member", `{"membership":"invite"}`, `,"state_key":"@b:x","unsigned":{"invite_room_state":[{"type":"m.room.encryption","state_key":"","content":{"algorithm":"m.megolm.v1.aes-sha2"}}]}`}, []string{"megolm"}, "", false, false},
		{"a module's membership", in{mlsRoom, "$x", "@_mls_bot:x", "m.room.member", `{"membership":"join"}`, `,"state_key":"@_mls_bot:x"`}, []string{`"membership":"join"`}, "", false, false},
		{"a bundled edit", in{mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, `,"unsigned":{"m.relations":{"m.annotation":{"chunk":[]},"m.replace":{"event_id":"$edit","sender":"@a:x","type":"m.room.encrypted","content":` + cipher + `}}}`}, []string{`"* new"`, `"hello"`}, "m.annotation", false, true},
		{"a bundled edit by another", in{mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, `,"unsigned":{"m.relations":{"m.replace":{"event_id":"$edit","sender":"@evil:x","type":"m.room.encrypted","content":` + cipher + `}}}`}, []string{`"hello"`}, "m.replace", false, true},
		{"a bundled plaintext edit", in{mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, `,"unsigned":{"m.relations":{"m.replace":{"event_id":"$forged","sender":"@a:x","type":"m.room.message","content":{"body":"* x","m.relates_to":{"rel_type":"m.replace","event_id":"$open"}}}}}`}, []string{`"hello"`}, "m.replace", false, true},
		{"a bundled thread", in{mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, `,"unsigned":{"m.relations":{"m.thread":{"count":1,"latest_event":{"event_id":"$own","sender":"@a:x","type":"m.room.encrypted","content":` + cipher + `}}}}`}, []string{`"mine"`, `"count":1`}, "ciphertext", false, true},
		{"a message as state", in{mlsRoom, "$x", "@a:x", "m.room.message", `{"body":"forged"}`, `,"state_key":""`}, nil, "", false, true},
		{"a message as state of a plain room", in{"!plain:x", "$x", "@a:x", "m.room.message", `{"body":"hi"}`, `,"state_key":""`}, []string{`"body":"hi"`}, "", false, false},
		{"plaintext that is not quite redacted", in{mlsRoom, "$x", "@a:x", "m.room.message", `{"body":"hi"}`, `,"unsigned":{"redacted_because":false}`}, []string{"[not encrypted] hi"}, "", false, true},
		{"a redacted plaintext that is still there", in{mlsRoom, "$x", "@a:x", "m.reaction", `{"m.relates_to":{"key":"forged"}}`, `,"unsigned":{"redacted_because":{"type":"m.room.redaction"}}`}, []string{`"content":{}`}, "forged", false, true},
		{"bundled events of a kind not known", in{mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, `,"unsigned":{"m.relations":{"com.example.thread":{"latest_event":{"type":"m.room.message","content":{"body":"forged"}}},"m.reference":{"chunk":[]}}}`}, []string{`"hello"`, "m.reference"}, "forged", false, true},
		{"an encrypted redaction", in{mlsRoom, "$redacts", "@a:x", "m.room.encrypted", cipher, ""}, []string{`"m.notice"`}, `"redacts"`, true, true},
		{"keys that differ in case", in{mlsRoom, "$x", "@a:x", "m.room.message", `{"body":"hi"}`, `,"Type":"m.room.redaction","State_Key":""`}, []string{"[not encrypted] hi"}, "", false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			room, raw := evt(tt.in.room, tt.in.event, tt.in.sender, tt.in.kind, tt.in.content, tt.in.rest)
			got := One(room, raw, view)
			if (got.Raw == nil) != (tt.want == nil) {
				t.Fatalf("got %s", got.Raw)
			}
			for _, want := range tt.want {
				if !strings.Contains(string(got.Raw), want) {
					t.Errorf("%s\nlacks %s", got.Raw, want)
				}
			}
			if tt.not != "" && strings.Contains(string(got.Raw), tt.not) {
				t.Errorf("%s\nhas %s", got.Raw, tt.not)
			}
			if got.Notice != tt.notice || got.ID != id.EventID(tt.in.event) {
				t.Errorf("notice %v, id %s", got.Notice, got.ID)
			}
			if !tt.touched && string(got.Raw) != string(raw) {
				t.Errorf("%s\nbecame\n%s", raw, got.Raw)
			}
		})
	}
}

// TestAHierarchyTellsOfNoMLSRoomHowItIsEncrypted: a client would encrypt by itself there.
func TestAHierarchyTellsOfNoMLSRoomHowItIsEncrypted(t *testing.T) {
	const megolm = `"m.megolm.v1.aes-sha2"`
	child := `{"type":"m.space.child","state_key":"!c:x","sender":"@a:x","origin_server_ts":5,"content":{"via":["x"]}}`
	ours := `{"type":"` + rooms.TypeHead + `","state_key":"@a:x","sender":"@a:x","origin_server_ts":5,"content":{}}`
	set := `{"type":"m.room.encryption","state_key":"","sender":"@a:x","origin_server_ts":5,"content":{"algorithm":"` + rooms.Algorithm + `"}}`
	room := func(id, rest string) string { return `{"room_id":"` + id + `","name":"N"` + rest + `}` }
	for _, tt := range []struct{ name, in, want string }{
		{"known here", room(mlsRoom, `,"encryption":`+megolm+`,"im.nheko.summary.encryption":`+megolm), room(mlsRoom, "")},
		{"not known here", room("!new:x", `,"encryption":"`+rooms.Algorithm+`"`), room("!new:x", "")},
		{"by its older name", room("!new:x", `,"im.nheko.summary.encryption":"`+rooms.Algorithm+`"`), room("!new:x", "")},
		{"a room with Megolm", room("!megolm:x", `,"encryption":`+megolm), room("!megolm:x", `,"encryption":`+megolm)},
		{"a plain one", room("!plain:x", ""), room("!plain:x", "")},
		{"state", room(mlsRoom, `,"children_state":[`+child+","+ours+","+set+`]`), room(mlsRoom, `,"children_state":[`+child+`]`)},
	} {
		out, err := Hierarchy([]byte(`{"rooms":[`+tt.in+`],"next_batch":"n"}`), view)
		var got, want any
		if err == nil {
			err = json.Unmarshal(out, &got)
		}
		if json.Unmarshal([]byte(`{"rooms":[`+tt.want+`],"next_batch":"n"}`), &want) != nil || err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %s, %v", tt.name, out, err)
		}
	}
	for _, in := range []string{`[]`, `{"rooms":{}}`, `{"rooms":["x"]}`, `{"rooms":[{"children_state":"x"}]}`} {
		if out, err := Hierarchy([]byte(in), view); err == nil {
			t.Errorf("%s became %s", in, out)
		}
	}
}

func TestSyncIsRewrittenAndTheRestKept(t *testing.T) {
	_, message := evt(mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, "")
	_, commit := evt(mlsRoom, "$c", "@a:x", rooms.TypeCommit, "{}", "")
	_, encryption := evt(mlsRoom, "$e", "@a:x", "m.room.encryption", `{"algorithm":"`+rooms.Algorithm+`"}`, `,"state_key":""`)
	raw := `{"next_batch":"n","to_device":{"events":[{"type":"` + rooms.TypeWelcome + `","content":{}},{"type":"x"}]},"device_lists":{"changed":["@b:x"]},"unknown":1,"rooms":{
		"join":{"` + mlsRoom + `":{"summary":{"m.joined_member_count":2},"state":{"events":[` + string(encryption) + `]},"timeline":{"events":[` + string(message) + `,` + string(commit) + `],"limited":true,"prev_batch":"p"},"unread_notifications":{"highlight_count":1}}},
		"invite":{"!i:x":{"invite_state":{"events":[` + string(encryption) + `,{"type":"m.room.encryption","state_key":"","content":{}},{"type":"m.room.name","state_key":"","content":{"name":"N"}}]}}}}}`
	s, err := ParseSync([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	s.Rewrite(view, Selection{})
	w := s.Windows()[0]
	if !w.Limited || w.PrevBatch != "p" || len(w.Events) != 1 {
		t.Errorf("window %+v", w)
	}
	w.Prepend([]Event{{Raw: json.RawMessage(`{"event_id":"$earlier"}`)}}, "q")
	s.Add("!other:x", Event{Raw: json.RawMessage(`{"event_id":"$added"}`)})
	out, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Rooms struct {
			Join map[string]struct {
				State, Timeline struct {
					Events    []struct{ Event_ID, Type string }
					Limited   bool
					PrevBatch string `json:"prev_batch"`
				}
			}
			Invite map[string]struct {
				State struct {
					Events []struct{ Type string }
				} `json:"invite_state"`
			}
		}
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	joined := got.Rooms.Join[mlsRoom]
	if len(joined.State.Events) != 0 || len(joined.Timeline.Events) != 2 || joined.Timeline.Events[0].Event_ID != "$earlier" || joined.Timeline.Events[1].Type != "m.room.message" ||
		!joined.Timeline.Limited || joined.Timeline.PrevBatch != "q" {
		t.Errorf("the room became %+v", joined)
	}
	if other := got.Rooms.Join["!other:x"]; len(other.Timeline.Events) != 1 {
		t.Errorf("the added event: %+v", other)
	}
	if invite := got.Rooms.Invite["!i:x"]; len(invite.State.Events) != 1 || invite.State.Events[0].Type != "m.room.name" {
		t.Errorf("the invite became %+v", invite)
	}
	for _, want := range []string{`"to_device":{"events":[{"type":"x"}]}`, `"device_lists"`, `"unknown":1`, `"m.joined_member_count":2`, `"highlight_count":1`, `"next_batch":"n"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%s\nlacks %s", out, want)
		}
	}
}

func TestSyncWithoutWhatItUsuallyHas(t *testing.T) {
	for _, raw := range []string{`{}`, `{"next_batch":"n"}`, `{"next_batch":"n","rooms":{}}`, `{"next_batch":"n","rooms":{"join":{"!r:x":{}}}}`, `{"next_batch":"n","rooms":{"join":{"!r:x":{"timeline":{}}}}}`,
		`{"rooms":null}`, `{"rooms":{"join":{"!r:x":null}}}`, `{"rooms":{"invite":{"!r:x":{}}}}`} {
		s, err := ParseSync([]byte(raw))
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		s.Rewrite(view, Selection{})
		if out, err := s.Encode(); err != nil || !json.Valid(out) {
			t.Errorf("%s: %s, %v", raw, out, err)
		}
	}
	for _, raw := range []string{``, `[]`, `null`, `{`, `1`} {
		if _, err := ParseSync([]byte(raw)); err == nil {
			t.Errorf("%q is taken for an answer", raw)
		}
	}
}

func TestReplacementIsAnEditOfTheNotice(t *testing.T) {
	notice := Event{ID: "$e", Sender: "@a:x", Time: 9}
	got := string(Replacement(notice, opened("@a:x", "m.room.message", `{"body":"late","msgtype":"m.emote","m.relates_to":{"x":1}}`)))
	for _, want := range []string{`"sender":"@a:x"`, `"origin_server_ts":9`, `"m.new_content":{"body":"late","msgtype":"m.emote"}`, `"m.relates_to":{"event_id":"$e","rel_type":"m.replace"}`, `"event_id":"$mls-proxy-e"`, `"body":"* late"`} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nlacks %s", got, want)
		}
	}
	got = string(Replacement(notice, view["$edit"]))
	if !strings.Contains(got, `"m.new_content":{"body":"new"}`) {
		t.Errorf("of an edit: %s", got)
	}
	if got = string(Replacement(notice, view["$react"])); !strings.Contains(got, "came late: m.reaction") {
		t.Errorf("of a reaction: %s", got)
	}
}

func FuzzRewrite(f *testing.F) {
	_, message := evt(mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, "")
	f.Add([]byte(`{"next_batch":"n","rooms":{"join":{"` + mlsRoom + `":{"timeline":{"events":[` + string(message) + `]}}}}}`))
	f.Add([]byte(message))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if e := One(mlsRoom, raw, view); e.Raw != nil && !json.Valid(e.Raw) {
			t.Fatalf("%q became %q", raw, e.Raw)
		}
		s, err := ParseSync(raw)
		if err != nil {
			return
		}
		s.Rewrite(view, Selection{})
		if out, err := s.Encode(); err != nil || !json.Valid(out) {
			t.Fatalf("%q became %q, %v", raw, out, err)
		}
	})
}

// knowing is a View that knows what belongs to $open.
type knowing struct {
	known
	bundle Bundle
}

func (k knowing) Bundle(room id.RoomID, event id.EventID, sender id.UserID, eventType string) Bundle {
	if room == mlsRoom && event == "$open" && sender == "@a:x" && eventType == "m.room.message" || event == "$edit" || event == "$thread" {
		return k.bundle
	}
	return Bundle{}
}

// TestWhatIsKnownIsBundled: beside what the homeserver bundles, of which the newest edit counts.
func TestWhatIsKnownIsBundled(t *testing.T) {
	edit := func(event string, at int64, of string) Event {
		return MessageEvent(mlsRoom, id.EventID(event), at, opened("@a:x", "m.room.message", `{"body":"* known","m.new_content":{"body":"known"},"m.relates_to":{"rel_type":"m.replace","event_id":"`+of+`"}}`))
	}
	k := knowing{known: view, bundle: Bundle{Edit: edit("$known", 6, "$open"), Latest: MessageEvent(mlsRoom, "$last", 7, opened("@b:x", "m.room.message", `{"body":"last"}`)), Count: 4, Participated: true}}
	_, theirs := evt(mlsRoom, "$edit", "@a:x", "m.room.encrypted", cipher, "")
	bundled := func(v View, event, sender, content, rest string) (edit, latest string, count float64) {
		t.Helper()
		room, raw := evt(mlsRoom, event, sender, "m.room.encrypted", content, rest)
		var out struct {
			Unsigned struct {
				Age       int
				Relations map[string]map[string]any `json:"m.relations"`
			}
		}
		e := One(room, raw, v)
		if err := json.Unmarshal(e.Raw, &out); err != nil {
			t.Fatalf("%s: %v", e.Raw, err)
		}
		if strings.Contains(rest, `"age":7`) && out.Unsigned.Age != 7 {
			t.Errorf("%s has lost its age", e.Raw)
		}
		edit, _ = out.Unsigned.Relations["m.replace"]["event_id"].(string)
		if last, ok := out.Unsigned.Relations["m.thread"]["latest_event"].(map[string]any); ok {
			latest, _ = last["event_id"].(string)
		}
		count, _ = out.Unsigned.Relations["m.thread"]["count"].(float64)
		return edit, latest, count
	}
	older := k
	older.bundle.Edit = edit("$known", 4, "$open")
	same := k
	same.bundle.Edit = edit("$a", 5, "$open")
	elsewhere := k
	elsewhere.bundle.Edit = edit("$known", 6, "$else")
	inThread := knowing{known: known{"$thread": opened("@a:x", "m.room.message", `{"body":"x","m.relates_to":{"rel_type":"m.thread","event_id":"$open"}}`)}, bundle: k.bundle}
	inThread.bundle.Edit = edit("$known", 6, "$thread")
	has := `,"unsigned":{"age":7,"m.relations":{"m.replace":` + string(theirs) + `,"m.thread":{"latest_event":` + string(theirs) + `,"count":9}}}`
	for _, tt := range []struct {
		name                         string
		v                            View
		event, sender, content, rest string
		edit, latest                 string
		count                        float64
	}{
		{"nothing from the homeserver", k, "$open", "@a:x", cipher, "", "$known", "$last", 4},
		{"with other things", k, "$open", "@a:x", cipher, `,"unsigned":{"age":7}`, "$known", "$last", 4},
		{"an older one from the homeserver", k, "$open", "@a:x", cipher, has, "$known", "$edit", 9},
		{"a newer one from the homeserver", older, "$open", "@a:x", cipher, has, "$edit", "$edit", 9},
		{"one of the same time", same, "$open", "@a:x", cipher, has, "$edit", "$edit", 9},
		{"an edit of something else", elsewhere, "$open", "@a:x", cipher, "", "", "$last", 4},
		{"a redacted one", k, "$open", "@a:x", "{}", `,"unsigned":{"redacted_because":{"type":"m.room.redaction"}}`, "", "$last", 4},
		{"an edit", k, "$edit", "@a:x", cipher, "", "", "", 0},
		{"one in a thread", inThread, "$thread", "@a:x", cipher, "", "$known", "", 0},
		{"one that cannot be read", k, "$unknown", "@a:x", cipher, "", "", "", 0},
		{"one under another's name", k, "$open", "@evil:x", cipher, "", "", "", 0},
		{"a view that knows nothing", view, "$open", "@a:x", cipher, "", "", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			edit, latest, count := bundled(tt.v, tt.event, tt.sender, tt.content, tt.rest)
			if edit != tt.edit || latest != tt.latest || count != tt.count {
				t.Errorf("got the edit %q, and %q last of %v", edit, latest, count)
			}
		})
	}
}
