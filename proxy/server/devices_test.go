package server

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/proxy/account"
)

// devices are the sessions of the account's user at the homeserver.
func (w *deviceWorld) devices() []string {
	w.hs.Mu.Lock()
	defer w.hs.Mu.Unlock()
	return slices.Sorted(maps.Keys(w.hs.Devices[deviceUser]))
}

// TestAChangeOfThePasswordKeepsTheMLSDevice: homeservers end all other sessions if they are not told not to.
func TestAChangeOfThePasswordKeepsTheMLSDevice(t *testing.T) {
	const password, auth = `"new_password":"changed"`, `"auth":{"type":"m.login.password","session":"s","password":"secret"}`
	for _, tt := range []struct {
		name string
		asks []string // one request after the other; all but the last are asked for the password
		ends bool     // other sessions
	}{
		{"nothing is said of other sessions", []string{`{` + password + `,` + auth + `}`}, true},
		{"in two requests", []string{`{` + password + `}`, `{` + password + `,` + auth + `}`}, true},
		{"in two requests, of which the second only proves who it is", []string{`{` + password + `}`, `{` + auth + `}`}, true},
		{"they are to stay, in two requests", []string{`{` + password + `,"logout_devices":false}`, `{` + auth + `}`}, false},
		{"they are to stay", []string{`{` + password + `,"logout_devices":false,` + auth + `}`}, false},
		{"they are to end", []string{`{` + password + `,"logout_devices":true,` + auth + `}`}, true},
		{"they are to end, in two requests", []string{`{` + password + `,"logout_devices":true}`, `{` + auth + `}`}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newDeviceWorld(t)
			own := w.account().Client().DeviceID().String()
			w.hs.Mu.Lock()
			w.hs.Add(deviceUser, "TV")
			w.hs.Mu.Unlock()
			if got, want := w.devices(), []string{own, "ONE", "TV"}; !slices.Equal(got, slices.Sorted(slices.Values(want))) {
				t.Fatalf("there are the sessions %q, want %q: the test proves nothing", got, want)
			}
			for i, body := range tt.asks {
				want := http.StatusOK
				if i < len(tt.asks)-1 {
					want = http.StatusUnauthorized
				}
				if status, answered := w.do("POST", "/_matrix/client/v3/account/password", body); status != want {
					t.Fatalf("%s: %d %s, want %d", body, status, answered, want)
				}
			}
			left := []string{own, "ONE"}
			if !tt.ends {
				left = append(left, "TV")
			}
			if got := w.devices(); !slices.Equal(got, slices.Sorted(slices.Values(left))) {
				t.Errorf("there are the sessions %q, want %q", got, left)
			}
			w.hs.Mu.Lock()
			changed := w.hs.Passwords[deviceUser]
			w.hs.Mu.Unlock()
			if changed != "changed" || w.account().Session(t.Context()) != account.SessionGood {
				t.Errorf("the password is %q, and the MLS device's session %d", changed, w.account().Session(t.Context()))
			}
		})
	}
	t.Run("they cannot be ended", func(t *testing.T) {
		w := newDeviceWorld(t)
		w.hs.Mu.Lock()
		w.hs.Add(deviceUser, "TV")
		w.hs.Mu.Unlock()
		w.mu.Lock()
		w.refuses = "/delete_devices"
		w.mu.Unlock()
		status, body := w.do("POST", "/_matrix/client/v3/account/password", `{`+password+`,"logout_devices":true,`+auth+`}`)
		if status != http.StatusBadGateway || code(body) != "M_UNKNOWN" || !strings.Contains(body, "the password is changed, but your other sessions are not ended: the homeserver refuses it (M_FORBIDDEN)") {
			t.Errorf("%d %s", status, body)
		}
	})
}

// TestAChangeOfThePasswordThatTheProxyForgot: where it started anew meanwhile, or much time went by, it does not know
// what the first request said, and whether other sessions are to end. It does not let the change go on then.
func TestAChangeOfThePasswordThatTheProxyForgot(t *testing.T) {
	const path = "/_matrix/client/v3/account/password"
	const begin, auth = `{"new_password":"changed"}`, `{"auth":{"type":"m.login.password","session":"s","password":"secret"}}`
	w := newDeviceWorld(t)
	w.hs.Mu.Lock()
	w.hs.Add(deviceUser, "TV")
	before := w.hs.Passwords[deviceUser]
	w.hs.Mu.Unlock()
	if status, body := w.do("POST", path, begin); status != http.StatusUnauthorized {
		t.Fatalf("%d %s", status, body)
	}
	w.server.changing.done("s")
	status, body := w.do("POST", path, auth)
	if status != http.StatusBadRequest || code(body) != "M_UNKNOWN" || !strings.Contains(body, "begin the change of the password anew") {
		t.Errorf("%d %s", status, body)
	}
	w.hs.Mu.Lock()
	after := w.hs.Passwords[deviceUser]
	w.hs.Mu.Unlock()
	if after != before {
		t.Error("the password is changed, and the other sessions stay")
	}
	if status, body := w.do("POST", path, begin); status != http.StatusUnauthorized {
		t.Fatalf("%d %s", status, body)
	}
	if status, body := w.do("POST", path, auth); status != http.StatusOK || slices.Contains(w.devices(), "TV") {
		t.Errorf("begun anew: %d %s, and the sessions %q", status, body, w.devices())
	}
}

// TestAForgottenPassword: who changes it without a session says by mail who it is.
func TestAForgottenPassword(t *testing.T) {
	for body, want := range map[string]string{
		`{"new_password":"x","auth":{"type":"m.login.email.identity"}}`:                       `false`,
		`{"new_password":"x","logout_devices":true,"auth":{"type":"m.login.email.identity"}}`: `true`,
	} {
		w := newWorld(t)
		var got map[string]json.RawMessage
		w.reply = func(out http.ResponseWriter, r *http.Request) {
			if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
				t.Error(err)
			}
			_, _ = out.Write([]byte(`{}`))
		}
		if resp, answered := w.with(body, "POST", "/_matrix/client/v3/account/password"); resp.StatusCode != http.StatusOK || string(got["logout_devices"]) != want || len(got) != 3 {
			t.Errorf("%s: %s %s, the homeserver got %s", body, resp.Status, answered, got)
		}
	}
}

// TestTheMLSDeviceIsEndedByNoClient, but for the logout of the last.
func TestTheMLSDeviceIsEndedByNoClient(t *testing.T) {
	w := newDeviceWorld(t)
	own := w.account().Client().DeviceID().String()
	const auth = `"auth":{"type":"m.login.password","session":"s","password":"secret"}`
	w.hs.Mu.Lock()
	for _, name := range []string{"TV", "TWO"} {
		w.hs.Add(deviceUser, name)
	}
	w.hs.Mu.Unlock()
	for _, tt := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"DELETE", "/devices/" + own, `{` + auth + `}`, 403, "M_FORBIDDEN"},
		{"DELETE", "/devices/" + own, ``, 403, "M_FORBIDDEN"},
		{"POST", "/delete_devices", `{"devices":["TV","` + own + `"],` + auth + `}`, 403, "M_FORBIDDEN"},
		{"POST", "/delete_devices", `{"devices":["` + own + `"]}`, 403, "M_FORBIDDEN"},
		{"DELETE", "/devices/TV", `{}`, 401, ""},
		{"DELETE", "/devices/TV", `{` + auth + `}`, 200, ""},
		{"POST", "/delete_devices", `{"devices":["TWO"]}`, 401, ""},
		{"POST", "/delete_devices", `{` + auth + `}`, 200, ""},
		{"GET", "/devices", ``, 200, ""},
	} {
		for _, version := range []string{"r0", "v3"} {
			if version == "r0" && tt.status != http.StatusForbidden { // hstest has the newer one
				continue
			}
			status, body := w.do(tt.method, "/_matrix/client/"+version+tt.path, tt.body)
			if status != tt.status || code(body) != tt.code || tt.code != "" && !strings.Contains(body, own+" is the proxy's own device") {
				t.Errorf("%s %s %s: %d %s, want %d %s", tt.method, tt.path, tt.body, status, body, tt.status, tt.code)
			}
		}
	}
	if got, want := w.devices(), []string{own, "ONE"}; !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("there are the sessions %q, want %q", got, want)
	}
}
