package terminal

import (
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/internal/hstest"
	"github.com/matrix-mls/matrix-mls/proxy/trust"
)

// TestLoginInABrowser: the browser that the verb opens comes back with the login,
// of single sign-on or of the homeserver's issuer of tokens.
func TestLoginInABrowser(t *testing.T) {
	for _, tt := range []struct {
		name   string
		issuer bool
		want   string
	}{
		{"single sign-on", false, "Logged in as @sso:one"},
		{"OAuth 2.0", true, "Logged in as @oauth:one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := hstest.New(t, true)
			if tt.issuer {
				hstest.NewIssuer(t, h, "@oauth:one")
			}
			env, stdout, stderr := testEnv(t)
			opened := ""
			env.OpenBrowser = func(page string) error {
				opened = page
				if !tt.issuer { // what the page would do in the end
					_, back, _ := strings.Cut(page, "redirectUrl=")
					back = strings.NewReplacer("%3A", ":", "%2F", "/").Replace(back)
					page = back + "?loginToken=good-token"
				}
				resp, err := http.Get(page)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				_, err = io.Copy(io.Discard, resp.Body)
				return err
			}
			state := filepath.Join(t.TempDir(), "state")
			if code := Main(t.Context(), []string{"--state", state, "login", "--sso", h.URL}, env); code != 0 {
				t.Fatalf("login: %d %s", code, stderr)
			}
			if !strings.Contains(stdout.String(), tt.want) {
				t.Errorf("got %q, want %q in it", stdout, tt.want)
			}
			if opened == "" || !strings.Contains(stderr.String(), opened) {
				t.Error("the address of the page is not printed")
			}
			env, _, stderr = testEnv(t)
			if code := Main(t.Context(), []string{"--state", state, "logout"}, env); code != 0 {
				t.Errorf("logout: %d %s", code, stderr)
			}
			for user, devices := range h.Devices {
				if len(devices) != 0 {
					t.Errorf("%d sessions of %s are left", len(devices), user)
				}
			}
		})
	}
}

func TestACertificateThatIsNotTrustedIsExplained(t *testing.T) {
	h := httptest.NewUnstartedServer(http.NotFoundHandler())
	h.Config.ErrorLog = log.New(io.Discard, "", 0)
	h.StartTLS()
	defer h.Close()
	host := strings.TrimPrefix(h.URL, "https://")
	for _, args := range [][]string{
		{"login", "@a:" + host, "--password-file", "-"},
		{"login", "@a:one", "--homeserver", h.URL, "--password-file", "-"},
		{"run", "--homeserver", host, "--listen", "127.0.0.1:0"},
	} {
		env, _, stderr := testEnv(t)
		env.Stdin = strings.NewReader("secret\n")
		code := Main(t.Context(), append([]string{"--state", filepath.Join(t.TempDir(), "state")}, args...), env)
		if code != ExitUnreachable {
			t.Errorf("%v: exit code %d, want %d", args, code, ExitUnreachable)
		}
		for _, part := range []string{"this machine does not trust who signed the certificate of " + host, "x509: certificate signed by unknown authority", "hint: ", "update-ca-certificates"} {
			if !strings.Contains(stderr.String(), part) {
				t.Errorf("%v: no %q in %s", args, part, stderr)
			}
		}
	}
	if !unconnected(fmt.Errorf("x: %w", trust.Of("one", x509.UnknownAuthorityError{}))) {
		t.Error("a verb waits for who is not trusted")
	}
}

// TestTheCopyThatIsOutDoesNotEndTheOthersSession: two copies of a device have one session,
// and the one that is out must not end the other's without a word.
func TestTheCopyThatIsOutDoesNotEndTheOthersSession(t *testing.T) {
	for _, row := range []struct {
		name  string
		flags []string
		over  bool // the homeserver has ended the session
		code  int
		says  string
		ends  bool // the session
	}{
		{"no flag", nil, false, ExitRefused, "another copy of this device is in use in !r:one", false},
		{"by force", []string{"--force"}, false, ExitRefused, "mls-proxy logout --keep-session", false},
		{"here alone", []string{"--keep-session"}, false, ExitOK, "its session goes on", false},
		{"both", []string{"--end-copies"}, false, ExitOK, "Logged out @a:one", true},
		{"a session that is over", []string{"--force"}, true, ExitOK, "Logged out @a:one", true},
		{"two minds", []string{"--keep-session", "--force"}, false, ExitUsage, "--force and --end-copies do not go with it", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := hstest.New(t, true)
			dir := login(t, h, "@a:one")
			s, err := openSession(t.Context(), &call{state: dir, env: &Env{Getenv: func(string) string { return "" }}})
			if err != nil {
				t.Fatal(err)
			}
			err = s.st.PutRoom(t.Context(), "!r:one", []byte(`{"membership":"join","phase":"removed","superseded":true}`))
			s.close()
			if err != nil {
				t.Fatal(err)
			}
			if row.over {
				h.Mu.Lock()
				clear(h.Devices["@a:one"])
				h.Mu.Unlock()
			}
			env, stdout, stderr := testEnv(t)
			code := Main(t.Context(), append([]string{"--state", dir, "logout"}, row.flags...), env)
			if said := stdout.String() + stderr.String(); code != row.code || !strings.Contains(said, row.says) {
				t.Errorf("exit code %d, %s; want %d, %q", code, said, row.code, row.says)
			}
			h.Mu.Lock()
			left := len(h.Devices["@a:one"])
			h.Mu.Unlock()
			if (left == 0) != row.ends {
				t.Errorf("%d devices are left", left)
			}
			env, _, _ = testEnv(t)
			if code := Main(t.Context(), []string{"--state", dir, "devices"}, env); (code == ExitNotLoggedIn) != (row.code == ExitOK) {
				t.Errorf("after it, devices ends with %d", code)
			}
		})
	}
}
