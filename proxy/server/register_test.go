package server

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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

// TestWhatARegistrationSaidBeforeCounts: homeservers keep with its session what a registration began with, so that some
// clients send nothing else later. What belongs to another registration, or to one that is over, does not count.
func TestWhatARegistrationSaidBeforeCounts(t *testing.T) {
	h := hstest.New(t, true)
	base, err := url.Parse(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	accounts, err := account.Open(t.Context(), account.Options{Dir: t.TempDir(), Homeserver: h.URL, Note: t.Logf, Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(accounts.Close)
	proxy := httptest.NewServer(New(Options{Homeserver: base, Accounts: accounts, Log: zerolog.Nop()}))
	t.Cleanup(proxy.Close)
	const (
		answer = `"auth":{"type":"m.login.dummy","session":"s"}`
		wrong  = `"auth":{"type":"m.login.email.identity","session":"s"}`
	)
	for _, tt := range []struct {
		name, body string
		status     int
		says, user string
		devices    int // -1: there is no such user
	}{
		{"begins with a password", `{"username":"ann","password":"secret"}`, 401, `"session":"s"`, "ann", -1},
		{"answers something else", `{` + wrong + `}`, 401, `"session":"s"`, "ann", -1},
		{"answers another registration", `{"username":"ann","auth":{"type":"m.login.dummy","session":"t"}}`, 400, "no account was made", "ann", -1},
		{"answers no registration", `{"username":"ann","auth":{"type":"m.login.dummy"}}`, 400, "no account was made", "ann", -1},
		{"answers", `{` + answer + `}`, 200, `"well_known"`, "ann", 2},
		{"that one is over", `{"username":"ben",` + answer + `}`, 400, "no account was made", "ben", -1},
		{"begins without a password", `{"username":"cid"}`, 401, `"session":"s"`, "cid", -1},
		{"answers to that", `{` + answer + `}`, 400, "no account was made", "cid", -1},
		{"answers nothing", `{"username":"dan","auth":{}}`, 401, `"session":"s"`, "dan", -1},
		{"answers with what is no answer", `{"username":"dan","auth":7}`, 400, "no account was made", "dan", -1},
		{"begins without a login", `{"username":"eve","inhibit_login":true}`, 401, `"session":"s"`, "eve", -1},
		{"answers without a login", `{` + answer + `}`, 200, `"@eve:one"`, "eve", 0},
		{"begins without a login again", `{"username":"fay","inhibit_login":true}`, 401, `"session":"s"`, "fay", -1},
		{"gets one and has no password", `{"username":"fay",` + answer + `}`, 500, "the account is made", "fay", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, err := http.Post(proxy.URL+"/_matrix/client/v3/register", "application/json", strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			raw, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != tt.status || !strings.Contains(string(raw), tt.says) {
				t.Errorf("%d %s, %v; want %d and %q", resp.StatusCode, raw, err, tt.status, tt.says)
			}
			h.Mu.Lock()
			defer h.Mu.Unlock()
			devices, made := h.Devices[id.UserID("@"+tt.user+":one")]
			if made != (tt.devices >= 0) || made && len(devices) != tt.devices {
				t.Errorf("that there is such an account is %t, with %d devices; want %d", made, len(devices), tt.devices)
			}
		})
	}
}

// TestRegistrationsAreForgotten: after a while, also where nobody asks, and where there are too many; those that somebody
// goes on with stay. Too long ones are not kept.
func TestRegistrationsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r registrations
		long := strings.Repeat("x", maxRegistration+1)
		r.keep("", "p", false, time.Now())
		r.keep(long, "p", false, time.Now())
		r.keep("s", long, false, time.Now())
		r.keep("s", "", false, time.Now())
		if len(r.begun) != 0 {
			t.Fatalf("%d are kept, want none", len(r.begun))
		}
		r.keep("a", "p", false, time.Now())
		r.keep("b", "q", false, time.Now())
		<-time.After(registrationTime - time.Second)
		r.keep("a", "p", false, time.Now())
		<-time.After(2 * time.Second)
		a, _ := r.find("a", time.Now())
		if b, ok := r.find("b", time.Now()); ok || a.password != "p" || b.password != "" {
			t.Errorf("the passwords are %q and %q", a.password, b.password)
		}
		<-time.After(registrationTime)
		synctest.Wait()
		if r.mu.Lock(); len(r.begun) != 0 || len(r.order) != 0 {
			t.Errorf("%d are kept that nobody went on with", len(r.begun))
		}
		r.mu.Unlock()
		for n := range maxRegistrations + 1 {
			r.keep(fmt.Sprint(n), "p", false, time.Now())
		}
		_, oldest := r.find("0", time.Now())
		if next, _ := r.find("1", time.Now()); len(r.begun) != maxRegistrations || oldest || next.password != "p" {
			t.Errorf("%d are kept, not the newest", len(r.begun))
		}
	})
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
