package terminal

import (
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/internal/hstest"
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
