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
