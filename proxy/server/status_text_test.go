package server

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// TestPagesAreWholeInEachLanguage: each text is there in each language, with the same arguments; the templates have the same
// marks and values in the same order, and other words between them.
func TestPagesAreWholeInEachLanguage(t *testing.T) {
	verbs := func(s string) int { return strings.Count(s, "%s") }
	marks := regexp.MustCompile(`\{\{[^}]*\}\}|<[^>]*>`)
	letters := regexp.MustCompile(`\pL`)
	same := []string{"mls-proxy", "Clients", "' verify --recovery-key"} // in all languages
	for l := range pageCatalogue {
		if len(pageCatalogue[l]) != int(pageTexts) {
			t.Errorf("language %d has %d texts, want %d", l, len(pageCatalogue[l]), pageTexts)
		}
		for m := range pageTexts {
			text, english := pageCatalogue[l][m], pageCatalogue[rewrite.English][m]
			if text == "" || verbs(text) != verbs(english) || strings.Count(text, "%") != verbs(text) || l != int(rewrite.English) && text == english {
				t.Errorf("language %d says %q for %q", l, text, english)
			}
		}
		if l == int(rewrite.English) {
			continue
		}
		got, want := marks.FindAllString(statusSources[l], -1), marks.FindAllString(statusSources[rewrite.English], -1)
		if !slices.Equal(got, want) {
			for i := range min(len(got), len(want)) {
				if got[i] != want[i] {
					t.Fatalf("the pages of language %d have %s where the English ones have %s", l, got[i], want[i])
				}
			}
			t.Fatalf("the pages of language %d have %d marks, the English ones %d", l, len(got), len(want))
		}
		texts, english := marks.Split(statusSources[l], -1), marks.Split(statusSources[rewrite.English], -1)
		for i, text := range texts {
			if letters.MatchString(english[i]) != letters.MatchString(text) || text == english[i] && letters.MatchString(text) && !slices.Contains(same, strings.TrimSpace(text)) {
				t.Errorf("language %d says %q for %q", l, text, english[i])
			}
		}
	}
}

// TestThePagesAreInThePersonsLanguage: as a whole, with the words that are not in the templates.
func TestThePagesAreInThePersonsLanguage(t *testing.T) {
	w := newWorld(t)
	w.server.o.Language = rewrite.German
	for path, want := range map[string][]string{
		"/_mls/the-secret/":       {`<html lang="de">`, "Der Homeserver", "Noch hat sich niemand angemeldet"},
		"/_mls/other/":            {`<html lang="de">`, "Welche Adresse?", "mit einem Geheimnis", "sie steht in der Datei the-file"},
		"/_mls/the-secret/room":   {"Kein solcher Raum", `oder keinen solchen Raum. <span lang="en">`},
		ssoPath + "x":             {"Keine Anmeldung", "kein Anmelde-Token"},
		ssoPath + "x?loginToken=": {"Keine Anmeldung"},
		ssoPath + "x?loginToken=t": {
			"Keine Anmeldung im Gang", "eine Viertelstunde lang",
		},
	} {
		_, body := w.do("GET", path)
		for _, text := range want {
			if !strings.Contains(body, text) {
				t.Errorf("%s lacks %q: %s", path, text, body)
			}
		}
	}
	// What the system says is in English, and said to be so.
	w.hs.Close()
	if _, body := w.do("GET", "/_mls/the-secret/"); !strings.Contains(body, `antwortet nicht: <span lang="en">`) {
		t.Errorf("a homeserver that does not answer: %s", body)
	}
	for membership, want := range map[string]string{"join": "im Raum", "invite": "eingeladen", "leave": "nicht mehr im Raum", "ban": "verbannt", "knock": "bittet um Einlass", "<b>": ""} {
		rec := httptest.NewRecorder()
		w.server.page(rec, http.StatusOK, "room", "room", roomPage{Members: []client.Member{{User: "@a:x", Device: "A", Membership: membership}}})
		if body := rec.Body.String(); !strings.Contains(body, "<td>"+want+"</td><td><span") {
			t.Errorf("a membership %q is not %q: %s", membership, want, body)
		}
	}
	room := client.RoomInfo{Membership: "join", Phase: "member", Epoch: 7, Status: federation.StatusFinal, Blocked: []string{"why"}, Standstill: "why"}
	if got, want := roomState(rewrite.German, room), "Epoche 7, endgültig; Senden wartet; nichts wird endgültig"; got != want {
		t.Errorf("the state is %q, want %q", got, want)
	}
	if got, want := roomState(rewrite.English, room), "epoch 7, final; sending waits; nothing becomes final"; got != want {
		t.Errorf("the state is %q, want %q", got, want)
	}
	if got := trustText(rewrite.German, client.Member{Device: "D", Verification: client.ChangedUser}); !strings.HasPrefix(got, "WARNUNG: ") {
		t.Errorf("changed keys are %q", got)
	}
}
