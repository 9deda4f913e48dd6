package server

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// TestAListToComeIsShownBesideTheOneInForce: on the overview and the room's page, in
// each language.
func TestAListToComeIsShownBesideTheOneInForce(t *testing.T) {
	info := client.RoomInfo{Modules: []string{"one", "two"}, ModulesTo: []string{"two", "three"}}
	for l, want := range map[rewrite.Language]string{rewrite.English: "one, two (being changed to two, three)", rewrite.German: "one, two (wird geändert zu two, three)"} {
		for name, data := range map[string]any{
			"overview": overview{Accounts: []accountView{{Status: &account.Status{}, Rooms: []roomView{{RoomInfo: info}}}}}, "room": roomPage{RoomInfo: info},
		} {
			var page bytes.Buffer
			if err := statusPages[l].ExecuteTemplate(&page, name, data); err != nil || !strings.Contains(page.String(), want) {
				t.Errorf("%s: no %q (%v) in %s", name, want, err, &page)
			}
		}
	}
}

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

// TestWhatTheSDKSaysIsInThePersonsLanguage: each reason that it names is in the catalogue, and its own words are not shown.
func TestWhatTheSDKSaysIsInThePersonsLanguage(t *testing.T) {
	named := func(file, what string, least int) (out []string) {
		t.Helper()
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(what+` += "([a-z-]+)"`).FindAllSubmatch(source, -1) {
			out = append(out, string(m[1]))
		}
		if len(out) < least {
			t.Fatalf("%d %s were found in %s", len(out), what, file)
		}
		return out
	}
	told := map[string]string{}
	once := func(kind string, texts ...string) {
		t.Helper()
		for _, text := range texts {
			if before, is := told[text]; text == "" || is || strings.Contains(text, "in words") || strings.Contains(text, "%!") {
				t.Errorf("%s is told as %q, as %q is", kind, text, before)
			}
			told[text] = kind
		}
	}
	for _, kind := range named("../../client/blocked.go", "BlockKind", 6) {
		b := client.Block{Kind: client.BlockKind(kind), User: "@b:x", Device: "B", Servers: []string{"one.example"}, Text: "in words"}
		once(kind, blockText(rewrite.English, b), blockText(rewrite.German, b))
	}
	once("another", blockText(rewrite.English, client.Block{Text: "in words"}), blockText(rewrite.German, client.Block{Text: "in words"}))
	for _, why := range slices.Concat(named("../../rooms/membership.go", "RemoveReason", 7), named("../../rooms/membership.go", "AbsentReason", 4), named("../../client/membership.go", "Why", 2)) {
		m := client.Member{User: "@b:x", Why: client.Why(why), Note: "in words"}
		once(why, noteText(rewrite.English, m), noteText(rewrite.German, m))
	}
	w := newWorld(t)
	w.server.o.Language = rewrite.German
	rec := httptest.NewRecorder()
	w.server.page(rec, http.StatusOK, "room", "room", roomPage{
		RoomInfo: client.RoomInfo{Blocked: []client.Block{{Kind: client.BlockLeft, User: "@b:x", Text: "in words"}}},
		NoCode:   w.server.why(fmt.Errorf("%w (!r:x)", client.ErrNoGroup)), Stands: w.server.standing(client.RoomInfo{Standing: &client.Standstill{Silent: []string{"one.example"}}}, "!r:x", "/dir"),
		Members: []client.Member{{User: "@b:x", Why: client.WhyNoMLS, Note: "in words"}},
	})
	body := rec.Body.String()
	if strings.Contains(body, `lang="en"`) || strings.Contains(body, "in words") {
		t.Errorf("there is English on the German page: %s", body)
	}
	for _, want := range []string{"@b:x hat den Raum verlassen", "kein Gerät mit MLS", "Es gibt nichts zu vergleichen: wartet darauf", "kann ein Admin oder ein Erbe"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q: %s", want, body)
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
		server := w.page
		if strings.HasPrefix(path, ssoPath) {
			server = w.proxy
		}
		_, body := w.at(server, "GET", path)
		for _, text := range want {
			if !strings.Contains(body, text) {
				t.Errorf("%s lacks %q: %s", path, text, body)
			}
		}
	}
	// What the system says is in English, and said to be so.
	w.hs.Close()
	if _, body := w.at(w.page, "GET", "/_mls/the-secret/"); !strings.Contains(body, `antwortet nicht: <span lang="en">`) {
		t.Errorf("a homeserver that does not answer: %s", body)
	}
	for membership, want := range map[string]string{"join": "im Raum", "invite": "eingeladen", "leave": "nicht mehr im Raum", "ban": "verbannt", "knock": "bittet um Einlass", "<b>": ""} {
		rec := httptest.NewRecorder()
		w.server.page(rec, http.StatusOK, "room", "room", roomPage{Members: []client.Member{{User: "@a:x", Device: "A", Membership: membership}}})
		if body := rec.Body.String(); !strings.Contains(body, "<td>"+want+"</td><td></td>") {
			t.Errorf("a membership %q is not %q: %s", membership, want, body)
		}
	}
	room := client.RoomInfo{Membership: "join", Phase: "member", Epoch: 7, Status: federation.StatusFinal, Blocked: []client.Block{{Text: "why"}}, Standstill: "why"}
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
