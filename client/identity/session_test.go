package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/internal/hstest"
)

// clock is a time that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Unix(1_700_000_000, 0)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// lasts sets for how long tokens are good from now on.
func (h *homeserver) lasts(d time.Duration) {
	h.Mu.Lock()
	defer h.Mu.Unlock()
	h.Lasts = d
}

// change changes the homeserver's side of a device.
func (h *homeserver) change(i *Identity, fn func(*hstest.Device)) {
	d := h.device(i)
	h.Mu.Lock()
	defer h.Mu.Unlock()
	fn(d)
}

func TestTokenThatLastsIsPreferred(t *testing.T) {
	h := newHomeserver(t, true)
	i := h.loginDevice("@a:one")
	if d := h.device(i); d.Refresh != "" || d.Tokens != 1 {
		t.Errorf("refresh token %q, %d logins: a token that lasts was there to be had", d.Refresh, d.Tokens)
	}
	h.lasts(time.Hour)
	i = h.loginDevice("@b:one")
	if d := h.device(i); d.Refresh == "" || len(h.Devices["@b:one"]) != 1 {
		t.Errorf("refresh token %q, %d devices, want one device whose token can be renewed", d.Refresh, len(h.Devices["@b:one"]))
	}
}

func TestTokenIsRenewed(t *testing.T) {
	h := newHomeserver(t, true)
	h.lasts(5 * time.Minute)
	c := newClock()
	i := openIdentity(t, c.Now)
	if err := i.LoginPassword(t.Context(), Login{Homeserver: h.URL, User: "@a:one"}, "secret"); err != nil {
		t.Fatal(err)
	}
	given := func() int {
		d := h.device(i)
		h.Mu.Lock()
		defer h.Mu.Unlock()
		return d.Tokens
	}
	before := given()
	syncOnce(t, i)
	c.pass(4 * time.Minute)
	syncOnce(t, i)
	if given() != before {
		t.Error("a token that is good was renewed")
	}
	c.pass(40 * time.Second)
	syncOnce(t, i)
	if given() != before+1 {
		t.Errorf("%d renewals before the token's end, want 1", given()-before)
	}
	// A token that the homeserver no longer takes is renewed at once, once for
	// all who ask, and what was asked is asked again with its body.
	h.change(i, func(d *hstest.Device) { d.Over = true })
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := i.Devices(t.Context(), "@b:one"); err != nil {
				t.Error(err)
			}
			if err := i.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if given() != before+2 {
		t.Errorf("%d renewals, want 1", given()-before-1)
	}
}

// TestRenewedTokenIsStored: a program that is started again has the newest tokens.
func TestRenewedTokenIsStored(t *testing.T) {
	h := newHomeserver(t, true)
	h.lasts(5 * time.Minute)
	path := filepath.Join(t.TempDir(), "client.db")
	open := func() (*Identity, *store.Store) {
		st, err := store.Open(t.Context(), store.Options{Path: path, Key: make(store.Key, store.KeySize)})
		if err != nil {
			t.Fatal(err)
		}
		i, err := Open(t.Context(), Options{Store: st, Suites: suites})
		if err != nil {
			t.Fatal(err)
		}
		return i, st
	}
	i, st := open()
	if err := i.LoginPassword(t.Context(), Login{Homeserver: h.URL, User: "@a:one"}, "secret"); err != nil {
		t.Fatal(err)
	}
	for range 3 { // the tokens of before are no longer good after each
		h.change(i, func(d *hstest.Device) { d.Over = true })
		if err := i.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		st.Close()
		i, st = open()
	}
	defer st.Close()
	if err := i.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRenewalThatIsRefusedEndsTheSession(t *testing.T) {
	h := newHomeserver(t, true)
	h.lasts(5 * time.Minute)
	i := h.loginDevice("@a:one")
	h.change(i, func(d *hstest.Device) { d.Over, d.Refresh = true, "another" })
	for range 2 {
		if err := i.Check(t.Context()); !errors.Is(err, ErrTokenRejected) {
			t.Errorf("got %v, want ErrTokenRejected", err)
		}
	}
}

func TestSoftLogoutKeepsTheDevice(t *testing.T) {
	h := newHomeserver(t, true)
	i := h.loginDevice("@a:one")
	device, print := i.DeviceID(), i.Fingerprint()
	h.change(i, func(d *hstest.Device) { d.Over = true })
	if _, err := i.Sync(t.Context(), SyncRequest{}); !errors.Is(err, ErrSoftLogout) || !errors.Is(err, ErrTokenRejected) {
		t.Fatalf("got %v, want ErrSoftLogout", err)
	}
	if err := i.LoginPassword(t.Context(), Login{Homeserver: h.URL, User: "@b:one"}, "secret"); !errors.Is(err, ErrLoggedIn) {
		t.Errorf("another user's login: got %v, want ErrLoggedIn", err)
	}
	if n := len(h.Devices["@b:one"]); n != 0 {
		t.Errorf("%d sessions of the other user are left", n)
	}
	if err := i.LoginPassword(t.Context(), Login{User: "@a:one"}, "wrong"); !errors.Is(err, ErrPasswordRefused) {
		t.Errorf("wrong password: got %v", err)
	}
	if err := i.LoginPassword(t.Context(), Login{User: "@a:one"}, "secret"); err != nil {
		t.Fatal(err)
	}
	if i.DeviceID() != device || i.Fingerprint() != print {
		t.Error("it is another device now")
	}
	if err := i.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if err := i.LoginPassword(t.Context(), Login{User: "@a:one"}, "secret"); !errors.Is(err, ErrLoggedIn) {
		t.Errorf("a login of a device whose session is good: got %v, want ErrLoggedIn", err)
	}
}

// TestLogoutOfADeviceThatHasToLogInAgain: its keys go only with its session.
func TestLogoutOfADeviceThatHasToLogInAgain(t *testing.T) {
	h := newHomeserver(t, true)
	i := h.loginDevice("@a:one")
	h.change(i, func(d *hstest.Device) { d.Over = true })
	if err := i.Logout(t.Context(), false); !errors.Is(err, ErrSoftLogout) || !i.LoggedIn() {
		t.Fatalf("got %v, want ErrSoftLogout and the device", err)
	}
	if err := i.Logout(t.Context(), true); err != nil || i.LoggedIn() {
		t.Errorf("by force: %v", err)
	}
}

// TestALoginAndARenewalDoNotRace: the session of a new login is not replaced by one
// that an older session was renewed to, and nobody waits for a renewal for longer
// than they want, or without need.
func TestALoginAndARenewalDoNotRace(t *testing.T) {
	h := newHomeserver(t, true)
	h.lasts(5 * time.Minute)
	c := newClock()
	i := openIdentity(t, c.Now)
	if err := i.LoginPassword(t.Context(), Login{Homeserver: h.URL, User: "@a:one"}, "secret"); err != nil {
		t.Fatal(err)
	}
	a, _, err := i.current()
	if err != nil {
		t.Fatal(err)
	}
	before := i.showing(a)
	a.renewal.refused, a.renewal.failed = "before", errors.New("before")
	if err := a.renewal.enter(t.Context()); err != nil { // a renewal is under way
		t.Fatal(err)
	}
	c.pass(5 * time.Minute)
	ended, end := context.WithCancel(t.Context())
	end()
	if token, err := i.token(ended, a, ""); token != before || err != nil {
		t.Errorf("while the token is renewed: %q, %v, want the one that is there", token, err)
	}
	if token, err := i.token(ended, a, before); !errors.Is(err, context.Canceled) {
		t.Errorf("who waits for a token and is stopped: %q, %v", token, err)
	}
	if err := i.put(ended, a, session{AccessToken: "early"}); !errors.Is(err, context.Canceled) || i.showing(a) != before {
		t.Errorf("a login beside the renewal: %v, token %q", err, i.showing(a))
	}
	a.renewal.leave()
	if err := i.put(t.Context(), a, session{AccessToken: "new"}); err != nil || i.showing(a) != "new" {
		t.Errorf("a login after it: %v, token %q", err, i.showing(a))
	}
	if a.renewal.refused != "" || a.renewal.failed != nil {
		t.Error("what was refused before the login still counts")
	}
}

// browse visits a page as a browser does, redirects and all.
func browse(ctx context.Context) func(string) error {
	return func(page string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
}

func TestOAuthLogin(t *testing.T) {
	h := newHomeserver(t, true)
	h.lasts(5 * time.Minute)
	issuer := hstest.NewIssuer(t, h.Server, "@oauth:one")
	c := newClock()
	i := openIdentity(t, c.Now)
	visit := func(page string) error {
		u, err := url.Parse(page)
		if err != nil {
			return err
		}
		// Somebody who does not know the state cannot hand in a code of theirs.
		back, err := url.Parse(u.Query().Get("redirect_uri"))
		if err != nil {
			return err
		}
		for _, forged := range []url.Values{{"code": {"theirs"}}, {"code": {"theirs"}, "state": {"guessed"}}, {"error": {"access_denied"}}} {
			back.RawQuery = forged.Encode()
			resp, err := http.Get(back.String())
			if err != nil {
				return err
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusBadRequest {
				t.Errorf("%s: got %d, want 400", forged.Encode(), resp.StatusCode)
			}
		}
		return browse(t.Context())(page)
	}
	if err := i.LoginBrowser(t.Context(), Login{Homeserver: h.URL, DeviceName: "test"}, visit); err != nil {
		t.Fatal(err)
	}
	if i.UserID() != "@oauth:one" || h.device(i) == nil {
		t.Fatalf("logged in as %s, device %s", i.UserID(), i.DeviceID())
	}
	device := i.DeviceID()
	syncOnce(t, i)
	c.pass(5 * time.Minute)
	syncOnce(t, i)
	if issuer.Renewed != 1 {
		t.Errorf("%d renewals, want 1", issuer.Renewed)
	}

	// An issuer that does not answer is no end of the session.
	h.Mu.Lock()
	issuer.Broken = true
	h.Mu.Unlock()
	c.pass(5 * time.Minute)
	if err := i.Check(t.Context()); err != nil {
		t.Errorf("the token is still good at the homeserver: %v", err)
	}
	h.change(i, func(d *hstest.Device) { d.Over = true })
	if err := i.Check(t.Context()); err == nil || errors.Is(err, ErrTokenRejected) {
		t.Errorf("got %v, want an error that does not end the session", err)
	}
	h.Mu.Lock()
	issuer.Broken = false
	h.Mu.Unlock()
	c.pass(time.Minute)
	if err := i.Check(t.Context()); err != nil {
		t.Error(err)
	}

	// The issuer forgets the session, the homeserver keeps the device.
	h.change(i, func(d *hstest.Device) { d.Over, d.Refresh = true, "" })
	if err := i.Check(t.Context()); !errors.Is(err, ErrSoftLogout) {
		t.Errorf("got %v, want ErrSoftLogout", err)
	}
	if err := i.LoginBrowser(t.Context(), Login{}, browse(t.Context())); err != nil || i.DeviceID() != device {
		t.Errorf("login again: device %s, want %s: %v", i.DeviceID(), device, err)
	}
	if err := i.Logout(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if len(issuer.Revoked) != 1 || issuer.Revoked[0] != device.String() {
		t.Errorf("ended at the issuer: %v, want %s", issuer.Revoked, device)
	}
}

// TestAHomeserverElsewhereNamesNoIssuerHere: what would be asked there is a program
// of this machine's own.
func TestAHomeserverElsewhereNamesNoIssuerHere(t *testing.T) {
	for _, tt := range []struct {
		homeserver, token string
		want              bool
	}{
		{"https://one.example", "https://issuer.example/token", true},
		{"https://one.example", "http://127.0.0.1:631/token", false},
		{"http://localhost:8008", "http://127.0.0.1:631/token", true},
		{"http://[::1]:8008", "http://localhost/token", true},
		{"http://127.0.0.1:8008", "http://issuer.example/token", false},
	} {
		base, err := url.Parse(tt.homeserver)
		if err != nil {
			t.Fatal(err)
		}
		const good = "https://issuer.example/"
		m := authMetadata{Issuer: good, Authorization: good, Registration: good, Token: tt.token, Challenges: []string{"S256"}}
		if err := m.check(base); (err == nil) != tt.want {
			t.Errorf("%s of %s: %v", tt.token, tt.homeserver, err)
		}
	}
}

func TestOAuthLoginRefusals(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(h *hstest.Server, issuer *hstest.Issuer)
		want   string
	}{
		{"by the user", func(_ *hstest.Server, issuer *hstest.Issuer) { issuer.Refuse = true }, "access_denied"},
		{"of another issuer", func(_ *hstest.Server, issuer *hstest.Issuer) { issuer.Says = "https://evil.example/" }, "another issuer"},
		{"of no issuer where it says that it names itself", func(h *hstest.Server, issuer *hstest.Issuer) {
			h.Metadata = []byte(strings.Replace(string(h.Metadata), "{", `{"authorization_response_iss_parameter_supported":true,`, 1))
			issuer.Silent = true
		}, "another issuer"},
		{"of an issuer that is broken", func(_ *hstest.Server, issuer *hstest.Issuer) { issuer.Broken = true }, "status 502"},
		{"of codes without PKCE", func(h *hstest.Server, _ *hstest.Issuer) {
			h.Metadata = []byte(strings.Replace(string(h.Metadata), "S256", "plain", 1))
		}, "PKCE"},
		{"of tokens over the network in clear", func(h *hstest.Server, issuer *hstest.Issuer) {
			h.Metadata = []byte(strings.Replace(string(h.Metadata), `"token_endpoint":"`+issuer.URL, `"token_endpoint":"http://example.org/`, 1))
		}, "token_endpoint with https"},
		{"of new clients", func(h *hstest.Server, _ *hstest.Issuer) {
			h.Metadata = []byte(strings.Replace(string(h.Metadata), "registration_endpoint", "other_endpoint", 1))
		}, "no new clients"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHomeserver(t, true)
			issuer := hstest.NewIssuer(t, h.Server, "@oauth:one")
			h.Mu.Lock()
			tt.change(h.Server, issuer)
			h.Mu.Unlock()
			i := openIdentity(t, nil)
			err := i.LoginBrowser(t.Context(), Login{Homeserver: h.URL}, browse(t.Context()))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
			if i.LoggedIn() || len(h.Devices[id.UserID("@oauth:one")]) != 0 {
				t.Error("a device was made")
			}
		})
	}
}

// TestNoTokenPrints: whatever verb a log or an error is written with.
func TestNoTokenPrints(t *testing.T) {
	s := session{AccessToken: "access-token", RefreshToken: "refresh-token"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, v := range []any{s, &s, loggedIn{user: "@a:s.test", device: "D", session: s}, &loggedIn{session: s}} {
			if got := fmt.Sprintf(verb, v); strings.Contains(got, "-token") || strings.Contains(got, fmt.Sprintf("%x", "-token")) {
				t.Errorf("%s of a %T prints %q", verb, v, got)
			}
		}
	}
}
