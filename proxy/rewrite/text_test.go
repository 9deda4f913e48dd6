package rewrite

import (
	"encoding/json"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestCatalogueIsWholeInEachLanguage: each text is there in each language, with the same arguments.
func TestCatalogueIsWholeInEachLanguage(t *testing.T) {
	verbs := func(s string) int { return strings.Count(s, "%s") }
	for l, texts := range catalogue {
		if len(texts) != int(messages) {
			t.Errorf("language %d has %d texts, want %d", l, len(texts), messages)
		}
		for m := range messages {
			text, english := texts[m], catalogue[English][m]
			if text == "" || verbs(text) != verbs(english) || strings.Count(text, "%") != verbs(text) || l != int(English) && text == english {
				t.Errorf("language %d says %q for %q", l, text, english)
			}
		}
	}
}

func TestParseLanguage(t *testing.T) {
	for name, want := range map[string]Language{"de": German, "de_AT.UTF-8": German, "DE-ch": German, "de_DE@euro": German, "en_GB": English, "C": English, "C.UTF-8": English, "POSIX": English} {
		if got, ok := ParseLanguage(name); !ok || got != want {
			t.Errorf("%q is %v (%v)", name, got, ok)
		}
	}
	for _, name := range []string{"", "fr_FR.UTF-8", "deutsch"} {
		if _, ok := ParseLanguage(name); ok {
			t.Errorf("%q is a language of the catalogue", name)
		}
	}
}

func TestNoticesAboutARoom(t *testing.T) {
	for _, before := range []string{"$0123456789abcdefghijklmnopqrstuvwxyzABCDEFG", "$1~old:example.org", "$-_:x"} {
		n := RoomNotice("@me:x", 7, 1234, id.EventID(before), "hello")
		f, ok := parse(n.Raw)
		if !ok || f.text("type") != "m.room.message" || f.text("sender") != "@me:x" || f.text("event_id") != string(n.ID) || string(f["origin_server_ts"]) != "1234" ||
			f.object("content").text("body") != "hello" || f.object("content").text("msgtype") != "m.notice" {
			t.Errorf("the notice is %s", n.Raw)
		}
		if got, is := Noticed(string(n.ID)); got != before || !is {
			t.Errorf("it follows %s (%t), want %s", got, is, before)
		}
		if got := Original(string(n.ID)); got != string(n.ID) {
			t.Errorf("what is done to it is done to %s", got)
		}
		if other := RoomNotice("@me:x", 8, 1234, id.EventID(before), "hello"); other.ID == n.ID {
			t.Error("two notices have one id")
		}
		// What replaces the notice of an unreadable message keeps its own form.
		if _, is := Noticed(ownPrefix + before[1:]); is {
			t.Errorf("a replacement of %s is a notice", before)
		}
		if got := Original(ownPrefix + before[1:]); got != before {
			t.Errorf("a replacement of %s counts as %s", before, got)
		}
	}
}

// TestANoticeStandsForAnotherEventOnlyWhereItIsRead: who answers, reacts to or edits
// a notice does nothing to the message that stands before it.
func TestANoticeStandsForAnotherEventOnlyWhereItIsRead(t *testing.T) {
	const notice, first = "$mls-proxy-notice-7~X", "$mls-proxy-notice-8~"
	for _, content := range []string{
		`{"m.relates_to":{"rel_type":"m.annotation","event_id":"` + notice + `","key":"+"}}`,
		`{"m.relates_to":{"m.in_reply_to":{"event_id":"` + notice + `"}}}`,
		`{"m.relates_to":{"rel_type":"m.replace","event_id":"` + first + `"}}`,
		`{"pinned":["$y","` + notice + `"]}`,
		`{"redacts":"` + notice + `"}`,
	} {
		if got, is := Originals(json.RawMessage(content)); !is || string(got) != content {
			t.Errorf("%s became %s (%t)", content, got, is)
		}
	}
	for _, tt := range []struct {
		in, want string
		some     bool
	}{
		{`{"m.fully_read":"` + notice + `","m.read":"` + notice + `"}`, `{"m.fully_read":"$X","m.read":"$X"}`, true},
		{`{"m.fully_read":"` + first + `","m.read":"$mls-proxy-y"}`, `{"m.read":"$y"}`, true},
		{`{"m.fully_read":"` + first + `","m.read.private":"` + first + `"}`, `{}`, false},
		{`{}`, `{}`, true},
		{`{"thread_id":"main"}`, `{"thread_id":"main"}`, true},
		{``, ``, true},
		{`nonsense`, `nonsense`, true},
	} {
		if got, some := Marks(json.RawMessage(tt.in)); string(got) != tt.want || some != tt.some {
			t.Errorf("%s became %s (%t), want %s (%t)", tt.in, got, some, tt.want, tt.some)
		}
	}
}

// german is a view whose person is spoken to in German.
type german struct{ known }

func (german) Language() Language { return German }

func TestNoticesAreInThePersonsLanguage(t *testing.T) {
	v := german{known{
		"$other":  opened("@b:x", "m.room.message", `{"body":"hello"}`),
		"$shared": {State: Opened, Sender: "@a:x", SharedBy: "@c:x", Type: "m.room.message", Content: json.RawMessage(`{"body":"told"}`)},
	}}
	for _, row := range []struct{ event, kind, content, want string }{
		{"$other", rooms.TypeEncrypted, cipher, "Der Homeserver nennt einen anderen Absender als @b:x"},
		{"$shared", rooms.TypeEncrypted, cipher, "[weitergegeben von @c:x] told"},
		{"$plain", "m.room.message", `{"body":"offen","msgtype":"m.text"}`, "[nicht verschlüsselt] offen"},
	} {
		room, raw := evt(mlsRoom, row.event, "@a:x", row.kind, row.content, "")
		if got := string(One(room, raw, v).Raw); !strings.Contains(got, row.want) {
			t.Errorf("%s lacks %q", got, row.want)
		}
	}
	late := Replacement(Event{ID: "$e", Sender: "@a:x"}, Reading{State: Opened, Type: "m.reaction", Content: json.RawMessage(`{}`), Language: German})
	if !strings.Contains(string(late), "[kam verspätet: m.reaction]") {
		t.Errorf("what came late is %s", late)
	}
}
