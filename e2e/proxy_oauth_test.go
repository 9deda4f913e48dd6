package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/internal/hstest"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/proxy/terminal"
)

// An authService is what a Synapse leaves logins to: an issuer of tokens, which tells the homeserver what they are good for,
// and which devices there are, as matrix-authentication-service does.
type authService struct {
	*httptest.Server
	*hstest.Issuer
	h    *hstest.Server // keeps the tokens
	user string         // the localpart of whoever logs in

	ends func(token string) (ends, over bool) // nil: all end, and none is over by itself

	mu         sync.Mutex
	homeserver string
}

const authSecret = "between-the-two"

func newAuthService(t *testing.T, user string, lasts time.Duration) *authService {
	a := &authService{h: hstest.New(t, true), user: user}
	a.h.Mu.Lock()
	a.h.Lasts = lasts
	a.h.Mu.Unlock()
	a.Issuer = hstest.NewIssuer(t, a.h, "")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		var all map[string]any
		if err := json.Unmarshal(a.Metadata(), &all); err != nil {
			t.Error(err)
		}
		all["account_management_uri"] = a.Issuer.URL + "account"
		_ = json.NewEncoder(w).Encode(all)
	})
	mux.HandleFunc("POST /oauth2/introspect", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+authSecret {
			t.Error("the homeserver does not know the secret")
		}
		answer := map[string]any{"active": false}
		if device := a.deviceOf(r.FormValue("token")); device != "" {
			if err := a.tell(r.Context(), "upsert_device", map[string]string{"localpart": user, "device_id": device}); err != nil {
				t.Error(err)
			}
			answer = map[string]any{"active": true, "sub": "1", "username": user, "scope": "urn:matrix:client:api:* urn:matrix:client:device:" + device}
			ends := true
			if a.ends != nil {
				ends, _ = a.ends(r.FormValue("token"))
			}
			if ends {
				answer["expires_in"] = int(lasts.Seconds())
			}
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
	a.Server = httptest.NewServer(mux)
	t.Cleanup(a.Server.Close)
	return a
}

// deviceOf finds the device of a token that is good.
func (a *authService) deviceOf(token string) string {
	if a.ends != nil {
		if _, over := a.ends(token); over {
			return ""
		}
	}
	a.h.Mu.Lock()
	defer a.h.Mu.Unlock()
	for name, d := range a.h.Devices[a.User] {
		if d.Token == token && !d.Over {
			return name
		}
	}
	return ""
}

// tell makes a request that only the service may make of the homeserver.
func (a *authService) tell(ctx context.Context, what string, body any) error {
	a.mu.Lock()
	homeserver := a.homeserver
	a.mu.Unlock()
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, homeserver+"/_synapse/mas/"+what, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+authSecret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// serves makes the user at the homeserver.
func (a *authService) serves(ctx context.Context, s *lab.Server) error {
	a.mu.Lock()
	a.homeserver = s.BaseURL
	a.mu.Unlock()
	a.h.Mu.Lock()
	a.User = id.UserID("@" + a.user + ":" + s.ServerName)
	a.h.Mu.Unlock()
	return a.tell(ctx, "provision_user", map[string]string{"localpart": a.user})
}

func (a *authService) renewed() int {
	a.h.Mu.Lock()
	defer a.h.Mu.Unlock()
	return a.Renewed
}

// TestProxyDelegatedLogin: a Synapse leaves logins to an issuer of tokens that last two seconds. A person logs in in a
// browser, the device is signed, and its tokens are renewed while it is used; a logout ends it at the issuer.
func TestProxyDelegatedLogin(t *testing.T) {
	s := &story{TB: t, ctx: t.Context(), began: time.Now()}
	service := newAuthService(t, "fay", 2*time.Second)
	ctx, cancel := context.WithTimeout(s.ctx, 15*time.Minute)
	defer cancel()
	w, err := e2e.Start(ctx, e2e.Options{
		Options: lab.Options{Synapse: 1, SynapseSettings: map[string]any{
			"matrix_authentication_service": map[string]any{"enabled": true, "endpoint": service.Server.URL, "secret": authSecret},
			"password_config":               map[string]any{"enabled": false},
		}},
		WithoutModule: []string{"syn1"}, Bin: s.TempDir(), // there is no room
	})
	s.must(err)
	s.Cleanup(func() {
		if t.Failed() {
			if dir, err := w.KeepLogs("e2e-oauth"); err == nil {
				t.Log("logs are in", dir)
			}
		}
		s.must(w.Close())
	})
	s.w = w
	server := w.Server("syn1")
	s.must(service.serves(ctx, server))
	s.step("Synapse is there")

	state := s.TempDir()
	run := func(args ...string) string {
		t.Helper()
		stdout, stderr := newOutput(), newOutput()
		env := &terminal.Env{
			Stdin: strings.NewReader(""), Stdout: stdout, Stderr: stderr, Getenv: func(string) string { return "" }, Cwd: state,
			OpenBrowser: func(address string) error {
				go func() { // a browser, whose person says yes to everything
					if resp, err := http.Get(address); err == nil {
						resp.Body.Close()
					}
				}()
				return nil
			},
		}
		if code := terminal.Main(s.soon(), append([]string{"--state", state, "--json"}, args...), env); code != terminal.ExitOK {
			t.Fatalf("mls-proxy %q: exit code %d\n%s%s", args, code, stdout, stderr)
		}
		return stdout.String()
	}
	var in struct {
		User   id.UserID   `json:"user_id"`
		Device id.DeviceID `json:"device_id"`
	}
	s.must(json.Unmarshal([]byte(run("login", "--sso", "--homeserver", server.BaseURL)), &in))
	if in.User != service.User || in.Device == "" {
		t.Fatalf("%s logged in, as %s", in.User, in.Device)
	}
	s.step("logged in")
	run("verify", "--bootstrap")
	s.eventually("its tokens were renewed", func() string {
		if said := run("verify"); !strings.Contains(said, `"verified":true`) {
			return said
		}
		if service.renewed() < 2 {
			return "not yet"
		}
		return ""
	})
	run("logout")
	service.h.Mu.Lock()
	defer service.h.Mu.Unlock()
	if len(service.Revoked) != 1 || service.Revoked[0] != in.Device.String() {
		t.Errorf("ended at the issuer is %q, want %s", service.Revoked, in.Device)
	}
}
