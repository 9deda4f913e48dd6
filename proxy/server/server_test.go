package server

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/trust"
)

// world is a proxy in front of a homeserver that notes what it is asked.
type world struct {
	server *Server
	t      *testing.T
	proxy  *httptest.Server
	page   *httptest.Server // the status page
	hs     *httptest.Server
	asked  []string
	reply  func(w http.ResponseWriter, r *http.Request)
	log    strings.Builder
}

func newWorld(t *testing.T, origins ...string) *world {
	t.Helper()
	w := &world{t: t, reply: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{}`) }}
	w.hs = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		w.asked = append(w.asked, r.Method+" "+r.URL.EscapedPath()+" "+r.URL.RawQuery+" "+r.Header.Get("Authorization"))
		w.reply(out, r)
	}))
	t.Cleanup(w.hs.Close)
	accounts, err := account.Open(t.Context(), account.Options{Dir: t.TempDir(), Homeserver: w.hs.URL, Note: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(accounts.Close)
	base, err := url.Parse(w.hs.URL)
	if err != nil {
		t.Fatal(err)
	}
	w.server = New(Options{Homeserver: base, Accounts: accounts, Origins: origins, Status: Status{Token: statusToken, Where: "the-file"}, Log: zerolog.New(&w.log)})
	w.proxy = httptest.NewServer(w.server)
	t.Cleanup(w.proxy.Close)
	w.page = httptest.NewServer(http.HandlerFunc(w.server.status))
	t.Cleanup(w.page.Close)
	return w
}

func (w *world) do(method, path string, header ...string) (*http.Response, string) {
	w.t.Helper()
	return w.at(w.proxy, method, path, header...)
}

func (w *world) at(server *httptest.Server, method, path string, header ...string) (*http.Response, string) {
	w.t.Helper()
	return w.request(server, "{}", method, path, header...)
}

// with makes a request with a body.
func (w *world) with(body, method, path string, header ...string) (*http.Response, string) {
	w.t.Helper()
	return w.request(w.proxy, body, method, path, header...)
}

func (w *world) request(server *httptest.Server, said, method, path string, header ...string) (*http.Response, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, server.URL+path, strings.NewReader(said))
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp, string(body)
}

func code(body string) string {
	var e struct {
		Code string `json:"errcode"`
	}
	_ = json.Unmarshal([]byte(body), &e)
	return e.Code
}

func TestWhatIsListedGoesThroughWithItsTokenInTheHeader(t *testing.T) {
	w := newWorld(t)
	resp, body := w.do("GET", "/_matrix/client/r0/profile/@a%2Fb:x/displayname?access_token=secret&x=%26", "Accept", "application/json")
	if resp.StatusCode != http.StatusOK || body != "{}" {
		t.Fatalf("%s %s", resp.Status, body)
	}
	if want := "GET /_matrix/client/r0/profile/@a%2Fb:x/displayname x=%26 Bearer secret"; len(w.asked) != 1 || w.asked[0] != want {
		t.Errorf("the homeserver was asked %q, want %q", w.asked, want)
	}
}

func TestRequestsThatNeverReachTheHomeserver(t *testing.T) {
	for _, tt := range []struct {
		name, method, path string
		header             []string
		status             int
		code               string
	}{
		{"a path that is not listed", "GET", "/_matrix/client/unstable/com.example/x", nil, 404, "M_UNRECOGNIZED"},
		{"search without a token", "POST", "/_matrix/client/v3/search", nil, 401, "M_MISSING_TOKEN"},
		{"link preview", "GET", "/_matrix/media/v3/preview_url?url=x", nil, 404, "M_UNRECOGNIZED"},
		{"the homeserver's admin API", "GET", "/_synapse/admin/v1/users/@a:x", nil, 404, "M_UNRECOGNIZED"},
		{"registration of a guest", "POST", "/_matrix/client/v3/register?kind=guest", nil, 403, "M_FORBIDDEN"},
		{"an address for a later upload", "POST", "/_matrix/media/v1/create", nil, 404, "M_UNRECOGNIZED"},
		{"an upload to an address made before", "PUT", "/_matrix/media/v3/upload/x/abc", nil, 404, "M_UNRECOGNIZED"},
		{"the upgrade of a room without a token", "POST", "/_matrix/client/v3/rooms/!r:x/upgrade", nil, 401, "M_MISSING_TOKEN"},
		{"a login without password", "POST", "/_matrix/client/v3/login", nil, 403, "M_FORBIDDEN"},
		{"events without a token", "GET", "/_matrix/client/v3/sync", nil, 401, "M_MISSING_TOKEN"},
		{"a token that is none", "GET", "/_matrix/client/v3/sync", []string{"Authorization", "Basic x"}, 401, "M_MISSING_TOKEN"},
		{"a file above", "GET", "/_matrix/client/v1/media/download/hs/.._mls_00112233445566778899aabbccddeeff", nil, 404, "M_NOT_FOUND"},
		{"a named file above", "GET", "/_matrix/media/v3/download/hs/.._mls_00112233445566778899aabbccddeeff/name", nil, 404, "M_NOT_FOUND"},
		{"a thumbnail above", "GET", "/_matrix/media/v3/thumbnail/hs/._mls_00112233445566778899aabbccddeeff", []string{"Authorization", "Bearer x"}, 404, "M_NOT_FOUND"},
		{"a file with a path", "GET", "/_matrix/media/v3/download/hs/a%2fb", nil, 404, "M_NOT_FOUND"},
		{"a server with a path", "GET", "/_matrix/media/v3/download/h%2fs/a", nil, 404, "M_NOT_FOUND"},
		{"another name for this machine", "GET", "/_matrix/client/versions", []string{"Host", "evil.example"}, 403, "M_FORBIDDEN"},
		{"another page", "GET", "/_matrix/client/versions", []string{"Origin", "https://evil.example"}, 403, "M_FORBIDDEN"},
		{"a picture in a page that begins a login", "GET", "/_matrix/client/v3/login/sso/redirect?redirectUrl=x", []string{"Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"}, 403, "M_FORBIDDEN"},
		{"a frame in a page that begins a login", "GET", "/_matrix/client/v3/login/sso/redirect?redirectUrl=x", []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, 403, "M_FORBIDDEN"},
		{"a page without origin", "GET", "/_matrix/client/versions", []string{"Origin", "null"}, 403, "M_FORBIDDEN"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			resp, body := w.do(tt.method, tt.path, tt.header...)
			if resp.StatusCode != tt.status || code(body) != tt.code {
				t.Errorf("%d %s, want %d %s", resp.StatusCode, body, tt.status, tt.code)
			}
			if len(w.asked) != 0 {
				t.Errorf("the homeserver was asked %q", w.asked)
			}
		})
	}
}

func TestPagesThatAreAllowed(t *testing.T) {
	w := newWorld(t, "https://app.element.io")
	for _, origin := range []string{"https://app.element.io", "http://localhost:8080", "http://127.0.0.1"} {
		resp, _ := w.do("OPTIONS", "/_matrix/client/v3/sync", "Origin", origin)
		if resp.StatusCode != http.StatusNoContent || resp.Header.Get("Access-Control-Allow-Origin") != origin {
			t.Errorf("%s: %d, allowed %q", origin, resp.StatusCode, resp.Header.Get("Access-Control-Allow-Origin"))
		}
	}
	w.reply = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		fmt.Fprint(w, `{}`)
	}
	resp, _ := w.do("GET", "/_matrix/client/v3/capabilities", "Origin", "http://localhost:8080")
	if got := resp.Header.Values("Access-Control-Allow-Origin"); len(got) != 1 || got[0] != "http://localhost:8080" {
		t.Errorf("the homeserver's own rule came through: %q", got)
	}
}

func TestTheProxyNamesItself(t *testing.T) {
	w := newWorld(t)
	_, body := w.do("GET", "/.well-known/matrix/client")
	if want := `{"m.homeserver":{"base_url":"` + w.proxy.URL + `"}}`; body != want {
		t.Errorf("got %s, want %s", body, want)
	}
}

func TestFeaturesAndFlowsThatAreNotServedAreNotOffered(t *testing.T) {
	w := newWorld(t)
	w.reply = func(out http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/versions") {
			fmt.Fprint(out, `{"versions":["v1.11"],"unstable_features":{"org.matrix.msc3575":true,"org.matrix.simplified_msc3575":true,"org.matrix.e2e_cross_signing":true}}`)
			return
		}
		fmt.Fprint(out, `{"flows":[{"type":"m.login.sso","identity_providers":[{"id":"x","name":"X"}]},{"type":"m.login.password"},{"type":"m.login.token"},{"type":"com.example.else"}]}`)
	}
	if _, body := w.do("GET", "/_matrix/client/versions"); body != `{"unstable_features":{"org.matrix.e2e_cross_signing":true,"org.matrix.simplified_msc3575":true},"versions":["v1.11"]}` {
		t.Errorf("versions: %s", body)
	}
	if _, body := w.do("GET", "/_matrix/client/v3/login"); body != `{"flows":[{"identity_providers":[{"id":"x","name":"X"}],"type":"m.login.sso"},{"type":"m.login.password"},{"type":"m.login.token"}]}` {
		t.Errorf("flows: %s", body)
	}
}

func TestAHomeserverThatIsAway(t *testing.T) {
	w := newWorld(t)
	w.hs.Close()
	for _, path := range []string{"/_matrix/client/v3/capabilities?access_token=secret", "/_matrix/client/v3/sync?access_token=secret", "/_matrix/client/versions"} {
		resp, body := w.do("GET", path)
		if resp.StatusCode != http.StatusBadGateway || code(body) != "M_UNKNOWN" || strings.Contains(body, "secret") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if strings.Contains(w.log.String(), "secret") {
		t.Errorf("the token is in the log: %s", w.log.String())
	}
}

// TestAHomeserverThatStartsAnewIsUsedAgain: by the clients' requests and by the MLS device, while the program runs on.
func TestAHomeserverThatStartsAnewIsUsedAgain(t *testing.T) {
	w := newDeviceWorld(t)
	path := "/_matrix/client/v3/rooms/" + string(plainRoom) + "/send/m.room.message/t"
	w.mu.Lock()
	w.gone = true
	w.mu.Unlock()
	w.front.CloseClientConnections()
	if status, body := w.do("PUT", path, `{"body":"x"}`); status != http.StatusBadGateway || code(body) != "M_UNKNOWN" {
		t.Errorf("while it is away: %d %s", status, body)
	}
	w.mu.Lock()
	w.tells = map[string]any{"invite": map[id.RoomID]any{newRoom: map[string]any{"invite_state": map[string]any{"events": []any{map[string]any{
		"type": "m.room.member", "state_key": deviceUser, "sender": "@b:one", "content": map[string]string{"membership": "invite"},
	}}}}}}
	w.gone = false
	w.mu.Unlock()
	if status, body := w.do("PUT", path, `{"body":"x"}`); status != http.StatusOK {
		t.Errorf("when it is back: %d %s", status, body)
	}
	w.until(func() bool {
		info, err := w.account().Client().Room(t.Context(), newRoom)
		return err == nil && info.Membership == "invite"
	})
}

func TestATokenOfNobodyIsRefusedByTheHomeserver(t *testing.T) {
	w := newWorld(t)
	w.reply = func(out http.ResponseWriter, _ *http.Request) {
		out.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(out, `{"errcode":"M_UNKNOWN_TOKEN","error":"no"}`)
	}
	resp, body := w.do("GET", "/_matrix/client/v3/sync?access_token=x")
	if resp.StatusCode != http.StatusUnauthorized || body != `{"errcode":"M_UNKNOWN_TOKEN","error":"no"}` {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestServeListensOnThisMachineOnly(t *testing.T) {
	listener, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := New(Options{Homeserver: &url.URL{Scheme: "http", Host: "x"}}).Serve(t.Context(), listener); err == nil {
		t.Error("it serves other machines")
	}
}

type panics struct{}

func (panics) RoundTrip(*http.Request) (*http.Response, error) { panic("broken") }

// TestAPanicOfARequestIsSaid: net/http survives it, and nobody else says it.
func TestAPanicOfARequestIsSaid(t *testing.T) {
	var said strings.Builder
	s := New(Options{Homeserver: &url.URL{Scheme: "http", Host: "hs.example"}, Transport: panics{}, Log: zerolog.New(&said)})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, listener) }()
	if resp, err := http.Get("http://" + listener.Addr().String() + "/_matrix/client/versions"); err == nil {
		resp.Body.Close()
		t.Errorf("it was answered with %s", resp.Status)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := said.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "A request could not be handled") || !strings.Contains(got, "broken") {
		t.Errorf("it said %q, want one line about the panic", got)
	}
}

func TestAClientIsToldOfACertificateThatIsNotTrusted(t *testing.T) {
	w := httptest.NewRecorder()
	New(Options{Homeserver: &url.URL{Scheme: "https", Host: "one"}, Log: zerolog.Nop()}).failed(w, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil), trust.Of("one", x509.UnknownAuthorityError{}))
	for _, part := range []string{"M_UNKNOWN", "does not trust who signed the certificate of one", "update-ca-certificates"} {
		if !strings.Contains(w.Body.String(), part) {
			t.Errorf("no %q in %s", part, w.Body)
		}
	}
}
