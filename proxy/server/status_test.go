package server

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/proxy/account"
)

const statusToken = "the-secret"

func TestTheStatusPageIsForWhoHasItsAddress(t *testing.T) {
	for _, tt := range []struct {
		name, method, path string
		header             []string
		status             int
		says               string
	}{
		{"the page", "GET", "/_mls/the-secret/", nil, 200, "Nobody has logged in yet"},
		{"without the last slash", "GET", "/_mls/the-secret", nil, 200, "Nobody has logged in yet"},
		{"typed into a browser", "GET", "/_mls/the-secret/", []string{"Sec-Fetch-Site", "none"}, 200, "Nobody"},
		{"by a link of its own", "GET", "/_mls/the-secret/", []string{"Sec-Fetch-Site", "same-origin"}, 200, "Nobody"},
		{"without a secret", "GET", "/_mls/", nil, 403, "it is in the file the-file"},
		{"without anything", "GET", "/_mls", nil, 403, "it is in the file the-file"},
		{"another secret", "GET", "/_mls/the-secreT/", nil, 403, "it is in the file the-file"},
		{"a part of the secret", "GET", "/_mls/the-secre/", nil, 403, "it is in the file the-file"},
		{"from another page", "GET", "/_mls/the-secret/", []string{"Sec-Fetch-Site", "cross-site"}, 403, "Other pages"},
		{"from another port of this machine", "GET", "/_mls/the-secret/", []string{"Sec-Fetch-Site", "same-site"}, 403, "Other pages"},
		{"by a script of this machine", "GET", "/_mls/the-secret/", []string{"Origin", "http://localhost:8080"}, 403, "Other pages"},
		{"by a script of an allowed page", "GET", "/_mls/the-secret/", []string{"Origin", "https://app.element.io"}, 403, "Other pages"},
		{"under another name", "GET", "/_mls/the-secret/", []string{"Host", "evil.example"}, 403, "127.0.0.1"},
		{"as a service worker", "GET", "/_mls/the-secret/", []string{"Service-Worker", "script"}, 404, "status page alone"},
		{"what clients ask for", "GET", "/_matrix/client/versions", nil, 404, "status page alone"},
		{"a form", "POST", "/_mls/the-secret/", nil, 405, "only to be read"},
		{"a page that is not there", "GET", "/_mls/the-secret/x", nil, 404, "no such page"},
		{"a room that is not there", "GET", "/_mls/the-secret/room?user=@a:x&room=!r:x", nil, 404, "no such account"},
		{"a picture that is not there", "GET", "/_mls/the-secret/epochs", nil, 404, "no such account"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, "https://app.element.io")
			resp, body := w.at(w.page, tt.method, tt.path, tt.header...)
			if resp.StatusCode != tt.status || !strings.Contains(body, tt.says) {
				t.Errorf("%d %s, want %d and %q", resp.StatusCode, body, tt.status, tt.says)
			}
			if tt.status != http.StatusOK && strings.Contains(body, statusToken) {
				t.Errorf("the secret is told: %s", body)
			}
			if resp.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Error("scripts of other pages may read it")
			}
			if policy := resp.Header.Get("Content-Security-Policy"); strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") && (!strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "script-src") ||
				resp.Header.Get("Referrer-Policy") != "no-referrer" || resp.Header.Get("Cache-Control") != "no-store") {
				t.Errorf("headers %v", resp.Header)
			}
		})
	}
}

// TestTheStatusPageIsNotAtTheClientsAddress: what the homeserver says stands there, and browsers take all of one address
// and port for one thing.
func TestTheStatusPageIsNotAtTheClientsAddress(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/_mls", "/_mls/", "/_mls/the-secret/", "/_mls/the-secret/room"} {
		if resp, body := w.do("GET", path); resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "it is in the file the-file") || strings.Contains(body, statusToken) {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if len(w.asked) != 0 {
		t.Errorf("the homeserver was asked %q", w.asked)
	}
}

func TestWithoutASecretThereIsNoStatusPage(t *testing.T) {
	accounts, err := account.Open(context.Background(), account.Options{Dir: t.TempDir(), Note: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	defer accounts.Close()
	s := New(Options{Homeserver: &url.URL{Scheme: "http", Host: "x"}, Accounts: accounts})
	for _, path := range []string{"/_mls/", "/_mls//", "/_mls//room"} {
		w := httptest.NewRecorder()
		s.status(w, httptest.NewRequestWithContext(t.Context(), "GET", "http://127.0.0.1"+path, nil))
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

// TestStatusPagesSayItInWordsAndTrustNoName: what others chose is text, and
// nothing is said by a colour or a mark alone.
func TestStatusPagesSayItInWordsAndTrustNoName(t *testing.T) {
	const evil = `<script>alert(1)</script>"onload=x`
	s := New(Options{Homeserver: &url.URL{Scheme: "http", Host: "x"}, Status: Status{Token: statusToken}})
	write := func(name string, data any) string {
		w := httptest.NewRecorder()
		s.page(w, http.StatusOK, evil, name, data)
		body := w.Body.String()
		if w.Code != http.StatusOK || strings.Contains(body, "<script") || strings.Contains(body, `"onload`) {
			t.Errorf("%d %s", w.Code, body)
		}
		return body
	}
	room := client.RoomInfo{ID: "!r:x", Name: evil, MLS: true, Membership: "join", Phase: "member", Epoch: 7, Blocked: []client.Block{{Kind: client.BlockDevice, User: evil, Device: evil}, {Kind: evil}, {Kind: client.BlockMajority, Servers: []string{evil}}}, Modules: []string{evil}, Standstill: evil}
	body := write("overview", overview{Homeserver: evil, Reached: "answers", Broken: []string{evil}, Accounts: []accountView{{
		Status:  &account.Status{User: evil, Device: evil, Dir: evil, VerifiedKnown: true, Stock: []account.Stock{{Suite: 1, Have: 3, Want: 50, Known: true}, {Suite: mls.CipherSuite(2), Want: 2}}},
		Trouble: evil, Refused: []count{{evil, 4}}, More: 5,
		Rooms: []roomView{{RoomInfo: room, Link: s.roomLink("room", evil, "!r:x")}},
	}}})
	for _, want := range []string{"3 of 50 for MLS_128_DHKEMX25519", "not known yet", "epoch 7, undecided; sending waits; nothing becomes final", "could not be opened", "has not heard", "rooms do not let it in", "5 more rooms", `<th scope="col">`} {
		if !strings.Contains(body, want) {
			t.Errorf("%s\nlacks %q", body, want)
		}
	}
	// What could not be asked is neither yes nor no.
	body = write("overview", overview{Accounts: []accountView{{Status: &account.Status{}, Trouble: evil}}})
	if strings.Contains(body, "No MLS rooms") || strings.Contains(body, "rooms do not let it in") || !strings.Contains(body, "the homeserver does not say") {
		t.Errorf("%s\nclaims what is not known", body)
	}
	body = write("room", roomPage{
		RoomInfo: room, Home: s.home(), Epochs: s.roomLink("epochs", evil, "!r:x"), User: evil, Device: evil,
		Stands: evil, Sent: evil, Delivery: []client.DeliveredTo{{User: evil, Device: evil, Received: true}, {User: "@g:x", Device: "G"}}, MoreSent: 3,
		Code: &client.ComparisonCode{Epoch: 7, Groups: []string{"00001", "22222"}},
		Members: []client.Member{
			{User: evil, Device: evil, Membership: evil, Note: evil, Why: evil, Verification: client.ChangedUser}, {User: "@b:x", Device: "B", Verification: client.VerifiedUser, Heard: true, Epoch: 7},
			{User: "@c:x", Device: "C", Verification: client.VerifiedDevice, Heard: true, Epoch: 5}, {User: "@d:x", Device: "D", Verification: client.Unverified}, {User: "@e:x"}, {User: "@f:x", Device: "F", Own: true},
		},
	})
	for _, want := range []string{"00001 22222", `<svg id="qr"`, "WARNING", "verified: you compared", "nobody compared yet", "NOT verified", "no device in the group", "this device", "<td>7, the newest</td>", "<td>5, as last heard</td>", "<td>D</td><td>not known</td>", "<td>@e:x</td><td></td><td></td>", "yes, as it says", "not known", "<strong>Nothing becomes final:</strong>", "3 more are not shown"} {
		if !strings.Contains(body, want) {
			t.Errorf("%s\nlacks %q", body, want)
		}
	}
	if body = write("room", roomPage{RoomInfo: client.RoomInfo{ID: id.RoomID("!r:x")}, NoCode: &said{Text: evil}, NoMembers: &said{English: evil}}); !strings.Contains(body, "nothing to compare") || !strings.Contains(body, "cannot be listed") {
		t.Errorf("%s", body)
	}
}
