package rewrite

import (
	"encoding/json"
	"strings"
	"testing"

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
