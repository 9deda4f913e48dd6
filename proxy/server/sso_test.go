package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/matrix-mls/matrix-mls/internal/hstest"
	"github.com/matrix-mls/matrix-mls/proxy/account"
)

// TestLoginBySingleSignOn: the browser that a client opens goes to the homeserver twice, once for the MLS device and once
// for the client; the second login of the same user makes no second MLS device, the last logout ends it.
func TestLoginBySingleSignOn(t *testing.T) {
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
	// What a client's own page is told in the end.
	tokens := make(chan string, 1)
	app := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { tokens <- r.URL.Query().Get("loginToken") }))
	t.Cleanup(app.Close)
	post := func(path, token string, body any, into any) int {
		t.Helper()
		raw, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, proxy.URL+path, bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if raw, err = io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		if into != nil && json.Unmarshal(raw, into) != nil {
			t.Fatalf("%s: %s", path, raw)
		}
		return resp.StatusCode
	}
	devices := func() int {
		h.Mu.Lock()
		defer h.Mu.Unlock()
		return len(h.Devices["@sso:one"])
	}

	// A token that did not come by the proxy makes no session without an MLS device.
	if code := post("/_matrix/client/v3/login", "", map[string]string{"type": "m.login.token", "token": "good-token"}, nil); code == http.StatusOK || devices() != 0 {
		t.Errorf("a login without an MLS device: %d, %d devices are left", code, devices())
	}
	var sessions []string
	for n := range 2 {
		resp, err := http.Get(proxy.URL + "/_matrix/client/v3/login/sso/redirect?redirectUrl=" + url.QueryEscape(app.URL+"/app"))
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("the browser ended at %s: %s %s", resp.Request.URL.Path, resp.Status, raw)
		}
		var made struct {
			User   string `json:"user_id"`
			Token  string `json:"access_token"`
			Device string `json:"device_id"`
			Known  struct {
				HS struct {
					URL string `json:"base_url"`
				} `json:"m.homeserver"`
			} `json:"well_known"`
		}
		if code := post("/_matrix/client/v3/login", "", map[string]string{"type": "m.login.token", "token": <-tokens}, &made); code != http.StatusOK || made.User != "@sso:one" || made.Known.HS.URL != proxy.URL {
			t.Fatalf("the client's login: %d %+v", code, made)
		}
		if want := n + 2; devices() != want {
			t.Errorf("%d devices after login %d, want %d", devices(), n+1, want)
		}
		a, err := accounts.Get("@sso:one")
		if err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, made.Token)
		if a.UserID() != "@sso:one" {
			t.Errorf("the account is %s's", a.UserID())
		}
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "@sso:one", "client.db")); len(files) != 1 {
		t.Errorf("the account's store is %q", files)
	}
	for n, token := range sessions {
		if code := post("/_matrix/client/v3/logout", token, map[string]string{}, nil); code != http.StatusOK {
			t.Errorf("logout %d: %d", n+1, code)
		}
	}
	if devices() != 0 {
		t.Errorf("%d devices are left after the last logout", devices())
	}
}

func TestBrowsersThatDidNotComeByTheProxy(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"guessed?loginToken=theirs", "?loginToken=theirs", "guessed"} {
		resp, body := w.do("GET", ssoPath+path)
		if resp.StatusCode < 400 || strings.Contains(body, "theirs") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if len(w.asked) != 0 {
		t.Errorf("the homeserver was asked %q", w.asked)
	}
	var b browsers
	now := time.Unix(1_700_000_000, 0)
	once, late := b.send("here", now), b.send("there", now)
	if to, ok := b.back(once, now.Add(time.Minute)); !ok || to != "here" {
		t.Errorf("got %q, %v", to, ok)
	}
	if _, ok := b.back(once, now.Add(time.Minute)); ok {
		t.Error("an address was good twice")
	}
	if _, ok := b.back(late, now.Add(ssoTime)); ok {
		t.Error("an address was good for longer than it says")
	}
	first := b.send("first", now)
	for n := range maxLogon {
		b.send(fmt.Sprint(n), now)
	}
	if _, ok := b.back(first, now); ok || len(b.to) > maxLogon {
		t.Errorf("%d logins are under way, the first of them: %v", len(b.to), ok)
	}
}
