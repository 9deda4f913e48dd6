package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
)

// A delegatedServer is a Synapse that leaves logins to an issuer, as clients find it: what they ask of sessions the issuer
// answers, in the way of before OAuth 2.0 (as matrix-authentication-service does, to which a web server in front sends
// these paths), and everything else the Synapse.
type delegatedServer struct {
	*authService
	front *httptest.Server
	lasts time.Duration // of a token that can be renewed

	tokens struct {
		sync.Mutex
		logins  map[string]bool      // of single sign-on, that were not used
		made    int                  // logins and devices
		until   map[string]time.Time // of access tokens that end
		renewed map[string]int       // by device
	}
}

func (a *authService) inFrontOf(t *testing.T, s *lab.Server, lasts time.Duration) *delegatedServer {
	d := &delegatedServer{authService: a, lasts: lasts}
	d.tokens.logins, d.tokens.until, d.tokens.renewed = map[string]bool{}, map[string]time.Time{}, map[string]int{}
	synapse, err := url.Parse(s.BaseURL)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for _, version := range []string{"r0", "v3"} {
		root := "/_matrix/client/" + version
		mux.HandleFunc("GET "+root+"/login", func(w http.ResponseWriter, _ *http.Request) {
			d.answer(w, http.StatusOK, map[string]any{"flows": []map[string]string{{"type": "m.login.sso"}, {"type": "m.login.token"}}})
		})
		mux.HandleFunc("GET "+root+"/login/sso/redirect", d.sso)
		mux.HandleFunc("POST "+root+"/login", d.login)
		mux.HandleFunc("POST "+root+"/refresh", d.refresh)
		mux.HandleFunc("POST "+root+"/logout", d.logout)
	}
	mux.Handle("/", &httputil.ReverseProxy{
		FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(synapse) },
		ErrorLog: log.New(io.Discard, "", 0), // clients go away
	})
	d.front = httptest.NewServer(mux)
	t.Cleanup(d.front.Close)
	a.ends = func(token string) (ends, over bool) {
		d.tokens.Lock()
		defer d.tokens.Unlock()
		until, ends := d.tokens.until[token]
		return ends, ends && time.Now().After(until)
	}
	return d
}

func (d *delegatedServer) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// sso is the page on which the person has said yes.
func (d *delegatedServer) sso(w http.ResponseWriter, r *http.Request) {
	d.tokens.Lock()
	defer d.tokens.Unlock()
	d.tokens.made++
	token := fmt.Sprintf("login-%d", d.tokens.made)
	d.tokens.logins[token] = true
	to, err := url.Parse(r.URL.Query().Get("redirectUrl"))
	if err != nil {
		d.answer(w, http.StatusBadRequest, map[string]string{"errcode": "M_INVALID_PARAM", "error": "no address to come back to"})
		return
	}
	query := to.Query()
	query.Set("loginToken", token)
	to.RawQuery = query.Encode()
	http.Redirect(w, r, to.String(), http.StatusFound)
}

func (d *delegatedServer) login(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Type, Token string
		Device      string `json:"device_id"`
		Refresh     bool   `json:"refresh_token"`
	}
	_ = json.NewDecoder(r.Body).Decode(&req)
	d.tokens.Lock()
	good := d.tokens.logins[req.Token]
	delete(d.tokens.logins, req.Token)
	d.tokens.made++
	if req.Device == "" {
		req.Device = fmt.Sprintf("MADE%d", d.tokens.made)
	}
	d.tokens.Unlock()
	if req.Type != "m.login.token" || !good {
		d.answer(w, http.StatusForbidden, map[string]string{"errcode": "M_FORBIDDEN", "error": "no such login"})
		return
	}
	if err := d.tell(r.Context(), "upsert_device", map[string]string{"localpart": d.user, "device_id": req.Device}); err != nil {
		d.answer(w, http.StatusBadGateway, map[string]string{"errcode": "M_UNKNOWN", "error": err.Error()})
		return
	}
	d.answer(w, http.StatusOK, d.give(req.Device, req.Refresh))
}

// give makes a device's next tokens.
func (d *delegatedServer) give(device string, renewable bool) map[string]any {
	d.h.Mu.Lock()
	defer d.h.Mu.Unlock()
	made := d.h.Add(d.User, device)
	made.Tokens++
	made.Token, made.Refresh = fmt.Sprintf("access-%s-%d", device, made.Tokens), ""
	answer := map[string]any{"user_id": d.User, "device_id": device, "access_token": made.Token}
	if renewable {
		made.Refresh = "refresh-" + made.Token
		answer["refresh_token"], answer["expires_in_ms"] = made.Refresh, d.lasts.Milliseconds()
		d.tokens.Lock()
		defer d.tokens.Unlock()
		d.tokens.until[made.Token] = time.Now().Add(d.lasts)
	}
	return answer
}

func (d *delegatedServer) refresh(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Token string `json:"refresh_token"`
	}
	_ = json.NewDecoder(r.Body).Decode(&req)
	d.h.Mu.Lock()
	device := ""
	for name, one := range d.h.Devices[d.User] {
		if req.Token != "" && one.Refresh == req.Token {
			device = name
		}
	}
	d.h.Mu.Unlock()
	if device == "" {
		d.answer(w, http.StatusUnauthorized, map[string]string{"errcode": "M_UNKNOWN_TOKEN", "error": "no such refresh token"})
		return
	}
	d.tokens.Lock()
	d.tokens.renewed[device]++
	d.tokens.Unlock()
	d.answer(w, http.StatusOK, d.give(device, true))
}

func (d *delegatedServer) logout(w http.ResponseWriter, r *http.Request) {
	device := d.deviceOf(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	if device == "" {
		d.answer(w, http.StatusUnauthorized, map[string]any{"errcode": "M_UNKNOWN_TOKEN", "error": "no such token", "soft_logout": true})
		return
	}
	d.h.Mu.Lock()
	delete(d.h.Devices[d.User], device)
	d.h.Mu.Unlock()
	if err := d.tell(r.Context(), "delete_device", map[string]string{"localpart": d.user, "device_id": device}); err != nil {
		d.answer(w, http.StatusBadGateway, map[string]string{"errcode": "M_UNKNOWN", "error": err.Error()})
		return
	}
	d.answer(w, http.StatusOK, map[string]any{})
}

// renewals are how often tokens were renewed, of one device or of all others.
func (d *delegatedServer) renewals(device id.DeviceID, others bool) (n int) {
	d.tokens.Lock()
	defer d.tokens.Unlock()
	for name, times := range d.tokens.renewed {
		if (name == string(device)) != others {
			n += times
		}
	}
	return n
}

// browses goes through single sign-on as a client's browser, and returns the token that the client gets.
func (p *localProxy) browses() string {
	p.s.Helper()
	got := make(chan string, 1)
	page := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case got <- r.URL.Query().Get("loginToken"):
		default:
		}
	}))
	defer page.Close()
	req, err := http.NewRequestWithContext(p.s.soon(), http.MethodGet, p.url+"/_matrix/client/v3/login/sso/redirect?redirectUrl="+url.QueryEscape(page.URL+"/"), nil)
	p.s.must(err)
	resp, err := http.DefaultClient.Do(req)
	p.s.must(err)
	resp.Body.Close()
	select {
	case token := <-got:
		return token
	default:
		p.s.Fatalf("the browser ended at %s: %s\n%s", resp.Request.URL.Path, resp.Status, p.stderr)
		return ""
	}
}

// TestProxyDelegatedTalk: at a Synapse that leaves logins to an issuer, a program on matrix-js-sdk logs in through the
// browser and `mls-proxy run`, and does all that it does elsewhere, while the tokens of the MLS device end and are renewed.
// A second client of the same person has tokens that end, too, and renews them through the proxy.
func TestProxyDelegatedTalk(t *testing.T) {
	const lasts = 8 * time.Second
	s := &story{TB: t, began: time.Now()}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	t.Cleanup(cancel)
	s.ctx = ctx
	service := newAuthService(t, "fay", lasts)
	w, err := e2e.Start(ctx, e2e.Options{
		Options: lab.Options{Synapse: 1, Dendrite: 1, SynapseSettings: map[string]any{
			"matrix_authentication_service": map[string]any{"enabled": true, "endpoint": service.Server.URL, "secret": authSecret},
			"password_config":               map[string]any{"enabled": false},
		}},
		WithoutModule: []string{"syn1"}, // its users have no password, and need no module of their own
		Record:        true,
	})
	s.must(err)
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
		defer cancel()
		if err := s.of.blind(ctx); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			if dir, err := w.KeepLogs("e2e-delegated"); err == nil {
				t.Log("logs are in", dir)
			}
		}
		s.must(w.Close())
	})
	s.w, s.of = w, &shared{world: w}
	s.record()
	s.must(service.serves(ctx, w.Server("syn1")))
	front := service.inFrontOf(t, w.Server("syn1"), lasts)
	at := *w.Server("syn1")
	at.BaseURL = front.front.URL
	alice := s.person("den1", "alice")
	s.step("Synapse and its issuer are there")

	p := &localProxy{s: s, server: &at, state: filepath.Join(s.TempDir(), "state")}
	p.start()
	room, err := alice.CreateRoom(s.soon(), client.CreateOptions{Name: "Delegated"})
	s.must(err)
	fay, word := service.User, token("planted")
	dir, err := os.MkdirTemp("", "client")
	s.must(err)
	s.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := &realClient{s: s, name: "matrix-js-sdk", argv: realClients(t)["matrix-js-sdk"], dir: dir}
	data := bytes.Repeat([]byte(word+"\n"), (1<<20)/(len(word)+1)+1)[:1<<20]
	s.must(os.WriteFile(filepath.Join(dir, "file"), data, 0o600))
	args := func(mode, login string) []string {
		return []string{mode, p.url, "", login, string(room), word, dir}
	}
	c.run(s.ctx, args("first", p.browses())...)
	c.did("in")
	s.must(alice.Invite(s.soon(), room, fay))
	c.did("joined")
	_, err = alice.WaitEpoch(s.soon(), room, "its MLS device", func(u *client.EpochChanged) bool { return slices.Contains(u.Added, fay) })
	s.must(err)
	for i := range 5 {
		_, err := alice.SendText(s.soon(), room, fmt.Sprintf("message %d %s", i, word))
		s.must(err)
	}
	first := c.did("read")
	c.speaks(alice, fay, word, first.Event, data, func(*client.Message) {})
	c.ends()
	s.step("it spoke")

	// A client whose tokens end.
	second := p.clientOf(front, p.browses())
	s.eventually("the MLS device's tokens were renewed", func() string {
		if front.renewals(second.DeviceID, true) < 2 {
			return "not yet"
		}
		return ""
	})
	s.eventually("the client's token is over", func() string {
		_, err := second.Client.SyncRequest(s.soon(), 0, "", fmt.Sprintf(`{"room":{"timeline":{"limit":%d}}}`, time.Now().UnixNano()%500+1), false, "")
		if err == nil {
			return "it is good"
		}
		if !strings.Contains(err.Error(), "M_UNKNOWN_TOKEN") {
			return err.Error()
		}
		return ""
	})
	second.renews()
	if n := front.renewals(second.DeviceID, false); n != 1 {
		t.Errorf("the client's tokens were renewed %d times, want once", n)
	}
	after := token("after the renewal")
	status, raw := second.ask(http.MethodPut, "/_matrix/client/v3/rooms/"+url.PathEscape(string(room))+"/send/m.room.message/1", []byte(`{"msgtype":"m.text","body":"`+after+`"}`))
	var sent struct {
		Event id.EventID `json:"event_id"`
	}
	if json.Unmarshal(raw, &sent) != nil || status != http.StatusOK {
		t.Fatalf("with a token that was renewed: %d %s", status, raw)
	}
	s.hears(alice, fay, sent.Event)
	s.step("a client whose token was renewed spoke")

	var kept struct {
		Token string `json:"access_token"`
	}
	session, err := os.ReadFile(filepath.Join(dir, "session.json"))
	s.must(err)
	s.must(json.Unmarshal(session, &kept))
	s.must(s.of.plant(s.soon(), map[string]lab.User{"syn1": {UserID: string(fay), AccessToken: kept.Token}})) // others cannot be made there
	s.onlyMLS(alice, room)
	s.blind([]string{word, after})

	p.end()
	p.start()
	second.follow(p)
	c.run(s.ctx, args("again", "")...)
	c.remembers(word)
	c.did("left")
	c.ends()
	second.renews()
	_, err = second.Logout(s.soon())
	s.must(err)
	service.h.Mu.Lock()
	left := len(service.h.Devices[fay])
	service.h.Mu.Unlock()
	if left != 0 {
		t.Errorf("after the last logout the issuer has %d devices", left)
	}
}

// renewing is a client whose tokens end.
type renewing struct {
	*plainClient
	refresh string
}

// clientOf logs a client in that came back from its browser, and that can renew its tokens.
func (p *localProxy) clientOf(d *delegatedServer, login string) *renewing {
	p.s.Helper()
	cli, err := mautrix.NewClient(p.url, "", "")
	p.s.must(err)
	cli.Client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := cli.Login(p.s.soon(), &mautrix.ReqLogin{Type: mautrix.AuthTypeToken, Token: login, RefreshToken: true, StoreCredentials: true})
	p.s.must(err)
	if resp.UserID != d.User || resp.RefreshToken == "" || resp.ExpiresInMS != d.lasts.Milliseconds() {
		p.s.Fatalf("the login gave %s tokens that last %d ms, refresh token %t", resp.UserID, resp.ExpiresInMS, resp.RefreshToken != "")
	}
	return &renewing{&plainClient{Client: cli, s: p.s, server: p.server}, resp.RefreshToken}
}

// renews gets the client new tokens.
func (c *renewing) renews() {
	c.s.Helper()
	status, raw := c.ask(http.MethodPost, "/_matrix/client/v3/refresh", []byte(`{"refresh_token":"`+c.refresh+`"}`))
	var next struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	if json.Unmarshal(raw, &next) != nil || status != http.StatusOK || next.Access == "" || next.Refresh == "" {
		c.s.Fatalf("renewing: %d %s", status, raw)
	}
	c.AccessToken, c.refresh = next.Access, next.Refresh
}
