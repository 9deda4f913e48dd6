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
		if len(texts) != len(catalogue[English]) {
			t.Errorf("language %d has %d texts, want %d", l, len(texts), len(catalogue[English]))
		}
		for m, text := range texts {
			english := catalogue[English][m]
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
		if got := Original(string(n.ID)); got != before {
			t.Errorf("for receipts it counts as %s, want %s", got, before)
		}
		if other := RoomNotice("@me:x", 8, 1234, id.EventID(before), "hello"); other.ID == n.ID {
			t.Error("two notices have one id")
		}
		// What replaces the notice of an unreadable message keeps its own form.
		if got := Original(ownPrefix + before[1:]); got != before {
			t.Errorf("a replacement of %s counts as %s", before, got)
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
