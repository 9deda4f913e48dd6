package server

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/internal/hstest"
	"github.com/matrix-mls/matrix-mls/proxy/account"
)

// TestWhoRegistersHasAnMLSDevice: what the homeserver asks first goes through; the account that is made then has a device
// of the proxy's beside the client's. One that could not be had leaves the account, and no session.
func TestWhoRegistersHasAnMLSDevice(t *testing.T) {
	h := hstest.New(t, true)
	base, err := url.Parse(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	accounts, err := account.Open(t.Context(), account.Options{Dir: dir, Homeserver: h.URL, Note: t.Logf, Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(accounts.Close)
	proxy := httptest.NewServer(New(Options{Homeserver: base, Accounts: accounts, Log: zerolog.Nop()}))
	t.Cleanup(proxy.Close)
	const auth = `,"auth":{"type":"m.login.dummy","session":"s"}`
	for _, tt := range []struct {
		name, user, password, more string
		status                     int
		says                       string
		devices                    int
	}{
		{"the homeserver asks first", "ann", "secret", "", 401, `"m.login.dummy"`, 0},
		{"and is told", "ann", "secret", auth, 200, `"well_known":{"m.homeserver":{"base_url":"` + proxy.URL, 2},
		{"a name that is taken", "ann", "secret", auth, 400, "M_USER_IN_USE", 2},
		{"a login that comes later", "ben", "secret", auth + `,"inhibit_login":true`, 200, `"@ben:one"`, 0},
		{"who has no password yet may ask", "cid", "", "", 401, `"m.login.dummy"`, 0},
		{"no password", "cid", "", auth, 400, "M_MISSING_PARAM", 0},
		{"nor with a token that lets in", "cid", "", `,"auth":{"type":"m.login.registration_token","token":"t","session":"s"}`, 400, "no account was made", 0},
		{"such an account is made without a login", "cid", "", auth + `,"inhibit_login":true`, 200, `"@cid:one"`, 0},
		{"a password that the homeserver does not take again", "dan", "other", auth, 500, "the account is made: log in with its password", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := `{"username":"` + tt.user + `","password":"` + tt.password + `"` + tt.more + `}`
			resp, err := http.Post(proxy.URL+"/_matrix/client/v3/register", "application/json", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			raw, err := io.ReadAll(resp.Body)
			if err != nil || !json.Valid(raw) || resp.StatusCode != tt.status || !strings.Contains(string(raw), tt.says) {
				t.Errorf("%d %s, %v; want %d and %q", resp.StatusCode, raw, err, tt.status, tt.says)
			}
			h.Mu.Lock()
			defer h.Mu.Unlock()
			devices, made := h.Devices[id.UserID("@"+tt.user+":one")]
			if made != (tt.status == 200 || tt.status == 500 || tt.devices > 0) {
				t.Errorf("that there is such an account is %t", made)
			}
			if n := len(devices); n != tt.devices {
				t.Errorf("%d devices, want %d", n, tt.devices)
			}
		})
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "@ann:one", "recovery-key")); len(files) != 1 {
		t.Errorf("the recovery keys are %q", files)
	}
}

// TestPagesOfTheHomeserverAreNotTheProxys: a browser that a client sends to one goes there itself.
func TestPagesOfTheHomeserverAreNotTheProxys(t *testing.T) {
	w := newWorld(t)
	direct := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := direct.Get(w.proxy.URL + "/_matrix/client/v3/auth/m.login.recaptcha/fallback/web?access_token=secret&session=s%26t")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if want := w.hs.URL + "/_matrix/client/v3/auth/m.login.recaptcha/fallback/web?session=s%26t"; resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != want {
		t.Errorf("%s to %s, want %s", resp.Status, resp.Header.Get("Location"), want)
	}
	if len(w.asked) != 0 {
		t.Errorf("the homeserver was asked %q", w.asked)
	}
}
