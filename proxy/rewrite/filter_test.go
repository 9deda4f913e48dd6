package rewrite

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

func TestFilterLetsCiphertextsPassAndNoneOfOurEvents(t *testing.T) {
	const no = `"not_types":["io.github.matrix-mls.*"]`
	for _, tt := range []struct{ in, want string }{
		{`{"types":["m.room.message"]}`, `{` + no + `,"types":["m.room.message","m.room.encrypted"]}`},
		{`{"types":["m.room.*"]}`, `{` + no + `,"types":["m.room.*"]}`},
		{`{"not_types":["m.room.encrypted","m.x"]}`, `{"not_types":["m.x","io.github.matrix-mls.*"]}`},
		{`{"not_types":["m.*d","m.r*.e*"]}`, `{` + no + `}`},
		{`{"not_types":"m.x"}`, `{"not_types":"m.x"}`},
		{`{"contains_url":true,"limit":5}`, `{"limit":5,` + no + `}`},
		{`{"types":[]}`, `{` + no + `,"types":[]}`},
		{`{}`, `{` + no + `}`},
		{`nonsense`, `nonsense`},
	} {
		if got := string(RoomFilter(json.RawMessage(tt.in))); got != tt.want {
			t.Errorf("RoomFilter(%s) = %s, want %s", tt.in, got, tt.want)
		}
		if tt.in == `nonsense` {
			continue
		}
		sync := `{"a":1,"room":{"state":{"lazy_load_members":true},"timeline":` + tt.in + `}}`
		want := `{"a":1,"room":{"state":{"lazy_load_members":true,` + no + `},"timeline":` + tt.want + `}}`
		if got := string(SyncFilter(json.RawMessage(sync))); got != want {
			t.Errorf("SyncFilter(%s) = %s, want %s", sync, got, want)
		}
	}
	want := `{"room":{"state":{` + no + `},"timeline":{` + no + `}}}`
	if got := string(SyncFilter(json.RawMessage(`{}`))); got != want {
		t.Errorf("who does not filter gets %s, want %s", got, want)
	}
	if got := string(SyncFilter(json.RawMessage(`nonsense`))); got != `nonsense` {
		t.Errorf("nonsense gets %s", got)
	}
}

func TestOnlyWhatWasAskedForIsLeftOfWhatCiphertextsHeld(t *testing.T) {
	all := []string{"m.room.message", "m.reaction", "m.sticker", "com.example.x"}
	for _, tt := range []struct{ filter, want string }{
		{`{}`, "m.room.message m.reaction m.sticker com.example.x"},
		{`nonsense`, "m.room.message m.reaction m.sticker com.example.x"},
		{`{"types":["m.room.message"]}`, "m.room.message"},
		{`{"types":["m.room.*","com*x"]}`, "m.room.message com.example.x"},
		{`{"types":[]}`, ""},
		{`{"not_types":["m.room.message"]}`, "m.reaction m.sticker com.example.x"},
		{`{"not_types":["m.*"]}`, "com.example.x"},
		{`{"not_types":["*"]}`, ""},
		{`{"types":["m.*"],"not_types":["m.r*n"]}`, "m.room.message m.sticker"},
		{`{"contains_url":true}`, "m.sticker"},
		{`{"contains_url":false,"types":["m.*"]}`, "m.room.message m.reaction"},
	} {
		for name, asked := range map[string]Selection{"page": SelectionOf(json.RawMessage(tt.filter)), "sync": TimelineOf(json.RawMessage(`{"room":{"timeline":` + tt.filter + `}}`))} {
			var events []Event
			for _, kind := range all {
				content := `{}`
				if kind == "m.sticker" {
					content = `{"url":"mxc://x/y"}`
				}
				events = append(events, Event{Raw: json.RawMessage(fmt.Sprintf(`{"type":%q,"content":%s}`, kind, content))})
			}
			kept := asked.Keep(events)
			var got []string
			for _, e := range kept {
				got = append(got, TypeOf(e.Raw))
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("%s %s keeps %q, want %q", name, tt.filter, got, tt.want)
			}
		}
	}
}

func TestMoreOfAWindowComesByTheClientsOwnFilter(t *testing.T) {
	for _, tt := range []struct{ filter, want string }{
		{`{"room":{"timeline":{"limit":5,"not_senders":["@a:x"],"types":["m.room.message"]},"state":{"lazy_load_members":true}}}`, `{"lazy_load_members":true,"not_senders":["@a:x"],"not_types":["io.github.matrix-mls.*"],"types":["m.room.message","m.room.encrypted"]}`},
		{`{"room":{"timeline":{"limit":5}}}`, `{"not_types":["io.github.matrix-mls.*"]}`},
		{`{"presence":{"types":[]}}`, `{"not_types":["io.github.matrix-mls.*"]}`},
	} {
		asked := TimelineOf(json.RawMessage(tt.filter))
		if got := string(asked.More); got != tt.want {
			t.Errorf("%s leads to %s, want %s", tt.filter, got, tt.want)
		}
	}
}

func TestSelectionShrinksAWindowThatIsThenFilledWithTheMembersOfWhatCame(t *testing.T) {
	member := func(user, name string) json.RawMessage {
		return json.RawMessage(`{"type":"m.room.member","state_key":"` + user + `","content":{"displayname":"` + name + `"}}`)
	}
	_, message := evt(mlsRoom, "$open", "@a:x", "m.room.encrypted", cipher, "")
	_, reaction := evt(mlsRoom, "$react", "@a:x", "m.room.encrypted", cipher, "")
	for _, list := range stateLists {
		s, err := ParseSync([]byte(`{"rooms":{"join":{"` + mlsRoom + `":{"` + list + `":{"events":[` + string(member("@a:x", "A")) + `]},"timeline":{"events":[` + string(message) + `,` + string(reaction) + `],"limited":true}}}}}`))
		if err != nil {
			t.Fatal(err)
		}
		s.Rewrite(view, SelectionOf(json.RawMessage(`{"types":["m.room.message"]}`)))
		w := s.Windows()[0]
		if len(w.Events) != 1 {
			t.Errorf("%d events are left", len(w.Events))
		}
		w.AddState([]Event{{Raw: member("@a:x", "older")}, {Raw: member("@b:x", "B")}})
		out, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if want := `"` + list + `":{"events":[` + string(member("@a:x", "A")) + `,` + string(member("@b:x", "B")) + `]}`; !strings.Contains(string(out), want) {
			t.Errorf("%s\nlacks %s", out, want)
		}
	}
}

func TestAFilterTakesNoticesAsMessagesOfTheUsersOwn(t *testing.T) {
	for _, tt := range []struct {
		filter string
		want   bool
	}{
		{`{}`, true},
		{`{"room":{"rooms":["!r:x"],"timeline":{"limit":1,"types":["m.room.*"],"senders":["@me:x"],"rooms":["!r:x"]}}}`, true},
		{`{"room":{"not_rooms":["!o:x"],"timeline":{"not_types":["m.reaction"],"not_senders":["@you:x"],"contains_url":false}}}`, true},
		{`{"room":{"timeline":{"types":["m.reaction"]}}}`, false},
		{`{"room":{"timeline":{"not_types":["m.room.message"]}}}`, false},
		{`{"room":{"rooms":["!o:x"]}}`, false},
		{`{"room":{"rooms":[]}}`, false},
		{`{"room":{"not_rooms":["!r:x"]}}`, false},
		{`{"room":{"timeline":{"not_rooms":["!r:x"]}}}`, false},
		{`{"room":{"timeline":{"senders":["@you:x"]}}}`, false},
		{`{"room":{"timeline":{"not_senders":["@me:x"]}}}`, false},
		{`{"room":{"timeline":{"contains_url":true}}}`, false},
	} {
		s := TimelineOf(json.RawMessage(tt.filter))
		if got := s.TakesNotice("!r:x", "@me:x"); got != tt.want {
			t.Errorf("%s takes it: %t", tt.filter, got)
		}
	}
}

func TestIdsOfTheProxysOwnEventsStayHere(t *testing.T) {
	if got := Original("$mls-proxy-abc"); got != "$abc" {
		t.Errorf("the original is %s", got)
	}
	if got := Original("$abc"); got != "$abc" {
		t.Errorf("the original of another is %s", got)
	}
	for _, tt := range []struct{ in, want string }{
		{`{"body":"$mls-proxy-x","m.relates_to":{"m.in_reply_to":{"event_id":"$mls-proxy-x"}}}`, `{"body":"$mls-proxy-x","m.relates_to":{"m.in_reply_to":{"event_id":"$x"}}}`},
		{`{"m.fully_read":"$mls-proxy-x","m.read":"$y","m.read.private":"$mls-proxy-z"}`, `{"m.fully_read":"$x","m.read":"$y","m.read.private":"$z"}`},
		{`{"pinned":["$mls-proxy-x","$y"]}`, `{"pinned":["$x","$y"]}`},
		{`{"thread_id":"main"}`, `{"thread_id":"main"}`},
		{`{"a":[{"thread_id":"$mls-proxy-x"}]}`, `{"a":[{"thread_id":"$x"}]}`},
		{`{ "event_id" : "$y" }`, `{ "event_id" : "$y" }`},
		{`nonsense`, `nonsense`},
		{``, ``},
	} {
		if got, notice := Originals(json.RawMessage(tt.in)); string(got) != tt.want || notice {
			t.Errorf("%s became %s (notice: %t), want %s", tt.in, got, notice, tt.want)
		}
	}
}

func TestStateContentHidesHowTheRoomIsEncrypted(t *testing.T) {
	const algorithm = "io.github.matrix-mls.v1"
	for _, tt := range []struct{ room, kind, in, want string }{
		{mlsRoom, "m.room.create", `{"room_version":"11","org.matrix.msc4245.encryption_algorithm":"` + algorithm + `"}`, `{"room_version":"11"}`},
		{mlsRoom, "m.room.create", `{"content":{"org.matrix.msc4245.encryption_algorithm":"` + algorithm + `"},"type":"m.room.create"}`, `{"content":{},"type":"m.room.create"}`},
		{mlsRoom, "m.room.encryption", `{"algorithm":"x"}`, ``},
		{"!new:x", "m.room.encryption", `{"algorithm":"` + algorithm + `"}`, ``},
		{"!new:x", "m.room.encryption", `{"content":{"algorithm":"` + algorithm + `"}}`, ``},
		{"!megolm:x", "m.room.encryption", `{"algorithm":"m.megolm.v1.aes-sha2"}`, `{"algorithm":"m.megolm.v1.aes-sha2"}`},
		{mlsRoom, "m.room.name", `{"name":"N"}`, `{"name":"N"}`},
		{mlsRoom, "io.github.matrix-mls.head", `{"a":1}`, ``},
	} {
		if got := string(StateContent(id.RoomID(tt.room), tt.kind, json.RawMessage(tt.in), view)); got != tt.want {
			t.Errorf("%s %s became %q, want %q", tt.kind, tt.in, got, tt.want)
		}
	}
}

func TestAFilterThatLeavesOutSendersIsKnown(t *testing.T) {
	for filter, want := range map[string]bool{
		`{}`: true, `{"room":{"timeline":{"limit":1,"types":["m.room.message"]},"rooms":["!r:x"]}}`: true,
		`{"room":{"timeline":{"senders":["@a:x"]}}}`: false, `{"room":{"timeline":{"not_senders":["@a:x"]}}}`: false,
	} {
		s := TimelineOf(json.RawMessage(filter))
		if got := s.TakesAllSenders(); got != want {
			t.Errorf("%s: %v", filter, got)
		}
	}
	if s := (Selection{Unknown: true}); s.TakesAllSenders() {
		t.Error("a filter that is not known takes all senders")
	}
}
