package identity

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/internal/hstest"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestLoginPublishesKeys(t *testing.T) {
	h := newHomeserver(t, true)
	i := h.loginDevice("@a:one")
	d := h.device(i)
	keys, err := rooms.ParseDeviceKeys(d.Keys, i.UserID(), i.DeviceID())
	if err != nil {
		t.Fatal(err)
	}
	var plain struct {
		Algorithms []string
		Keys       map[string]string
	}
	if err := json.Unmarshal(d.Keys, &plain); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(plain.Algorithms); got != "["+rooms.Algorithm+"]" {
		t.Errorf("algorithms %s: nobody must encrypt for this device with Olm", got)
	}
	for _, cs := range suites {
		key, err := i.SignatureKey(cs)
		if err != nil {
			t.Fatal(err)
		}
		if string(keys.MLS[cs]) != string(key.Public()) {
			t.Errorf("%s: the published key is not the device's", cs)
		}
		algorithm := string(rooms.SuiteKeyAlgorithm(cs))
		if got, want := d.Counts()[algorithm], DefaultStock(suites)[cs]; got != want {
			t.Errorf("%s: %d key packages, want %d", cs, got, want)
		}
		if _, ok := d.Fallback[algorithm]; !ok {
			t.Errorf("%s: no key package of last resort", cs)
		}
	}
	if len(d.OTK) > MaxStock {
		t.Errorf("%d one-time keys, at most %d", len(d.OTK), MaxStock)
	}
}

// TestExperimentalAndForeignSuites: an experimental suite is offered, and claimed,
// only where it is named; keys that another program holds are published.
func TestExperimentalAndForeignSuites(t *testing.T) {
	const hybrid = mls.CipherSuite(0xf0d1)
	h := newHomeserver(t, true)
	key, err := mls.GenerateSignatureKey(2, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	open := func(o Options) (*Identity, error) {
		o.Store = openIdentity(t, nil).st
		return Open(t.Context(), o)
	}
	login := func(user string, o Options) *Identity {
		i, err := open(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := i.LoginPassword(t.Context(), Login{Homeserver: h.URL, User: user}, "secret"); err != nil {
			t.Fatal(err)
		}
		return i
	}
	a := login("@a:one", Options{Suites: []mls.CipherSuite{1, hybrid}, Foreign: map[mls.CipherSuite]mls.SignaturePublicKey{2: key.Public()}})
	keys, err := rooms.ParseDeviceKeys(h.device(a).Keys, a.UserID(), a.DeviceID())
	if err != nil {
		t.Fatal(err)
	}
	if len(keys.MLS) != 3 || string(keys.MLS[2]) != string(key.Public()) {
		t.Errorf("published keys %v", keys.MLS)
	}
	if n := h.device(a).Counts()[string(rooms.SuiteKeyAlgorithm(2))]; n != 0 {
		t.Errorf("%d key packages of a suite whose key another program holds", n)
	}
	target := []Target{{User: a.UserID(), Device: a.DeviceID(), Need: rooms.VerifyNone}}
	b := login("@b:one", Options{Suites: []mls.CipherSuite{hybrid}})
	got, err := b.ClaimKeyPackages(t.Context(), hybrid, target)
	if err != nil || got[0].Err != nil || got[0].KeyPackage.CipherSuite != hybrid {
		t.Errorf("claimed %+v, %v", got, err)
	}
	c := login("@c:one", Options{})
	if _, err := c.ClaimKeyPackages(t.Context(), hybrid, target); err == nil {
		t.Error("a device that does not offer an experimental suite claims one")
	}
	for name, o := range map[string]Options{
		"too large for a credential": {Suites: []mls.CipherSuite{0xf0d9}},
		"unknown":                    {Suites: []mls.CipherSuite{8}},
		"twice":                      {Suites: []mls.CipherSuite{2}, Foreign: map[mls.CipherSuite]mls.SignaturePublicKey{2: key.Public()}},
	} {
		if _, err := open(o); err == nil {
			t.Errorf("%s: offered", name)
		}
	}
}

func TestLoginRefused(t *testing.T) {
	h := newHomeserver(t, true)
	i := openIdentity(t, nil)
	err := i.LoginPassword(t.Context(), Login{Homeserver: h.URL, User: "a"}, "wrong-password-4711")
	if !errors.Is(err, ErrPasswordRefused) {
		t.Errorf("got %v, want ErrPasswordRefused", err)
	}
	if err != nil && strings.Contains(err.Error(), "4711") {
		t.Errorf("the error holds the password: %v", err)
	}
	if i.LoggedIn() {
		t.Error("logged in all the same")
	}
	if _, err := i.Status(t.Context()); !errors.Is(err, ErrNotLoggedIn) {
		t.Errorf("status: got %v", err)
	}
}

// TestALoginThatCannotPublishCanBeRepeated breaks the upload of keys after the
// login. The session that a password made is ended; the session of a token that
// somebody else made is left alone, and the device with it.
func TestALoginThatCannotPublishCanBeRepeated(t *testing.T) {
	h := newHomeserver(t, true)
	target, err := url.Parse(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	pass := httputil.NewSingleHostReverseProxy(target)
	var failFrom, uploads atomic.Int32 // the upload from which on all fail; 0: none
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/account/whoami") {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"user_id":"@bot:one","device_id":"BOT"}`)
			return
		}
		if from := failFrom.Load(); strings.HasSuffix(r.URL.Path, "/keys/upload") && uploads.Add(1) >= from && from > 0 {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"errcode":"M_FORBIDDEN","error":"not now"}`)
			return
		}
		pass.ServeHTTP(w, r)
	}))
	defer front.Close()
	devices := func(user id.UserID) int {
		h.Mu.Lock()
		defer h.Mu.Unlock()
		return len(h.Devices[user])
	}
	for from, name := range map[int32]string{1: "device keys", 2: "key packages"} {
		t.Run(name, func(t *testing.T) {
			uploads.Store(0)
			failFrom.Store(from)
			i := openIdentity(t, nil)
			if err := i.LoginPassword(t.Context(), Login{Homeserver: front.URL, User: "@a:one"}, "secret"); err == nil {
				t.Error("password: no error although nothing could be published")
			}
			if i.LoggedIn() || devices("@a:one") != 0 {
				t.Errorf("password: logged in %t, %d sessions left", i.LoggedIn(), devices("@a:one"))
			}

			h.Mu.Lock()
			h.Devices["@bot:one"] = map[string]*hstest.Device{"BOT": {Token: "operators-token", Fallback: map[string]hstest.Key{}, Used: map[string]bool{}}}
			h.Mu.Unlock()
			uploads.Store(0)
			if err := i.LoginToken(t.Context(), front.URL, "operators-token"); err == nil {
				t.Error("token: no error although nothing could be published")
			}
			if devices("@bot:one") != 1 {
				t.Fatal("the operator's token was logged out")
			}
			fingerprint := i.Fingerprint()
			failFrom.Store(0)
			if err := i.LoginToken(t.Context(), front.URL, "another-token"); !errors.Is(err, ErrLoggedIn) {
				t.Errorf("another token: got %v, want ErrLoggedIn", err)
			}
			if err := i.LoginToken(t.Context(), front.URL, "operators-token"); err != nil {
				t.Fatalf("token, again: %v", err)
			}
			if i.Fingerprint() != fingerprint {
				t.Error("the device came back with other keys")
			}
			if d := h.device(i); d.Keys == nil || len(d.OTK) == 0 {
				t.Error("the keys were not published the second time")
			}
		})
	}
}

func TestReopenKeepsTheDevice(t *testing.T) {
	h := newHomeserver(t, true)
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
	key, err := i.SignatureKey(1)
	if err != nil {
		t.Fatal(err)
	}
	before := i.Fingerprint()
	st.Close()
	uploads := h.Uploads
	i, st = open()
	defer st.Close()
	again, err := i.SignatureKey(1)
	if err != nil {
		t.Fatal(err)
	}
	if i.UserID() != "@a:one" || i.Fingerprint() != before || string(again.Bytes()) != string(key.Bytes()) {
		t.Error("the device is another one after reopening")
	}
	syncOnce(t, i)
	if h.Uploads != uploads {
		t.Errorf("%d uploads although nothing changed", h.Uploads-uploads)
	}
	if err := i.LoginPassword(t.Context(), Login{Homeserver: h.URL, User: "@b:one"}, "secret"); !errors.Is(err, ErrLoggedIn) {
		t.Errorf("second login: got %v, want ErrLoggedIn", err)
	}
}

func TestLogoutEmptiesTheStore(t *testing.T) {
	h := newHomeserver(t, true)
	i := h.loginDevice("@a:one")
	if err := i.Logout(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if i.LoggedIn() || len(h.Devices["@a:one"]) != 0 {
		t.Error("still logged in")
	}
	if all, err := i.st.KeyPackages(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%d key packages left, %v", len(all), err)
	}
}

func TestEndedSessionIsNamed(t *testing.T) {
	h := newHomeserver(t, true)
	i := h.loginDevice("@a:one")
	h.Mu.Lock()
	delete(h.Devices["@a:one"], i.DeviceID().String())
	h.Mu.Unlock()
	if _, err := i.Sync(t.Context(), SyncRequest{}); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("got %v, want ErrTokenRejected", err)
	}
}

func TestRateLimitIsObeyed(t *testing.T) {
	h := newHomeserver(t, true)
	i := h.loginDevice("@a:one")
	h.Limited = 2
	if _, err := i.Devices(t.Context(), "@b:one"); err != nil {
		t.Errorf("after two 429 answers: %v", err)
	}
	h.Limited = maxAttempts
	if _, err := i.Devices(t.Context(), "@c:one"); err == nil {
		t.Error("a homeserver that always limits was asked for ever")
	}
}

func TestSSOLoginTakesTheToken(t *testing.T) {
	h := newHomeserver(t, true)
	i := openIdentity(t, nil)
	visit := func(page string) error {
		u, err := url.Parse(page)
		if err != nil {
			return err
		}
		back, err := url.Parse(u.Query().Get("redirectUrl"))
		if err != nil {
			return err
		}
		if host := back.Hostname(); host != "127.0.0.1" {
			return fmt.Errorf("the browser would be sent to %s", host)
		}
		for _, try := range []struct {
			path, token string
			want        int
		}{{"/login/guessed", "bad-token", 404}, {back.Path, "", 400}, {back.Path, "good-token", 200}} {
			visit := *back
			visit.Path, visit.RawQuery = try.path, url.Values{"loginToken": {try.token}}.Encode()
			resp, err := http.Get(visit.String())
			if err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				return err
			}
			resp.Body.Close()
			if resp.StatusCode != try.want {
				return fmt.Errorf("%s: got %d, want %d", visit.String(), resp.StatusCode, try.want)
			}
		}
		return nil
	}
	if err := i.LoginBrowser(t.Context(), Login{Homeserver: h.URL}, visit); err != nil {
		t.Fatal(err)
	}
	if i.UserID() != "@sso:one" {
		t.Errorf("logged in as %s", i.UserID())
	}
}

func TestSSOLoginEndsWithTheContext(t *testing.T) {
	h := newHomeserver(t, true)
	i := openIdentity(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	err := i.LoginBrowser(ctx, Login{Homeserver: h.URL}, func(string) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestResolve(t *testing.T) {
	i := openIdentity(t, nil)
	for _, row := range []struct {
		name string
		in   Login
		want string
	}{
		{"base URL", Login{Homeserver: "https://m.example.org/"}, "https://m.example.org"},
		{"plain URL", Login{Homeserver: "http://127.0.0.1:8008"}, "http://127.0.0.1:8008"},
		{"neither homeserver nor full user id", Login{User: "alice"}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := i.resolve(t.Context(), row.in)
			if got != row.want || (err == nil) != (row.want != "") {
				t.Errorf("got %q, %v, want %q", got, err, row.want)
			}
		})
	}
}

func TestLeafOptionsMakeAnAcceptedKeyPackage(t *testing.T) {
	h := newHomeserver(t, true)
	i := h.loginDevice("@a:one")
	for _, cs := range suites {
		key, err := i.SignatureKey(cs)
		if err != nil {
			t.Fatal(err)
		}
		o, err := i.LeafOptions(cs)
		if err != nil {
			t.Fatal(err)
		}
		b, err := mls.NewKeyPackage(i.mlsConfig(), cs, key, o)
		if err != nil {
			t.Fatal(err)
		}
		cred, err := rooms.CredentialOf(b.KeyPackage().LeafNode)
		if err != nil || cred.User != i.UserID() || cred.Device != i.DeviceID() {
			t.Errorf("%s: credential %v, %v", cs, cred, err)
		}
		if !b.KeyPackage().LeafNode.Capabilities.SupportsExtension(rooms.ExtensionPolicy) {
			t.Errorf("%s: the leaf does not support the policy extension", cs)
		}
	}
	if _, err := i.LeafOptions(2); err == nil {
		t.Error("a suite that is not offered has leaf options")
	}
}

func TestDefaultStockStaysBelowTheLimit(t *testing.T) {
	for n := range len(mls.SupportedCipherSuites()) + 1 {
		total := 0
		for _, v := range DefaultStock(mls.SupportedCipherSuites()[:n]) {
			total += v
		}
		if total > MaxStock || n > 0 && total != MaxStock {
			t.Errorf("%d suites: %d key packages, want %d", n, total, MaxStock)
		}
	}
}

// bootstrap sets cross-signing up and returns the recovery key.
func bootstrap(t *testing.T, i *Identity) string {
	t.Helper()
	key, err := i.Bootstrap(t.Context(), UIA{Password: "secret"}, "")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestBootstrapThenRecover(t *testing.T) {
	h := newHomeserver(t, true)
	one := h.loginDevice("@a:one")
	if _, err := one.Bootstrap(t.Context(), UIA{Password: "wrong"}, ""); !errors.Is(err, ErrPasswordRefused) {
		t.Errorf("wrong password: got %v", err)
	}
	if err := one.Recover(t.Context(), "x"); !errors.Is(err, ErrNoCrossSigning) {
		t.Errorf("recover before there is anything: got %v", err)
	}
	key := bootstrap(t, one)
	two := h.loginDevice("@a:one")
	if s, err := two.Status(t.Context()); err != nil || !s.HasCrossSigning || s.DeviceSigned || s.MasterTrusted || s.CanSign {
		t.Errorf("status of a new device: %+v, %v", s, err)
	}
	if _, err := two.Bootstrap(t.Context(), UIA{Password: "secret"}, ""); !errors.Is(err, ErrCrossSigningExists) {
		t.Errorf("second bootstrap: got %v", err)
	}
	if err := two.Recover(t.Context(), "EsTb not a key"); !errors.Is(err, ErrWrongRecoveryKey) {
		t.Errorf("wrong recovery key: got %v", err)
	}
	if err := two.Recover(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	for _, i := range []*Identity{one, two} {
		if s, err := i.Status(t.Context()); err != nil || !s.DeviceSigned || !s.MasterTrusted || !s.CanSign {
			t.Errorf("%s: status %+v, %v", i.DeviceID(), s, err)
		}
	}
	three := h.loginDevice("@a:one")
	if err := two.SignDevice(t.Context(), three.DeviceID()); err != nil {
		t.Fatal(err)
	}
	if s, err := three.Status(t.Context()); err != nil || !s.DeviceSigned || s.MasterTrusted {
		t.Errorf("a device signed by another: %+v, %v", s, err)
	}
}

func TestRecoverRefusesAnotherMasterKey(t *testing.T) {
	h := newHomeserver(t, true)
	one := h.loginDevice("@a:one")
	key := bootstrap(t, one)
	other := h.loginDevice("@b:one")
	bootstrap(t, other)
	two := h.loginDevice("@a:one")
	h.Mu.Lock()
	h.Cross["@a:one"] = map[string]json.RawMessage{}
	for usage, raw := range h.Cross["@b:one"] { // the server swaps the keys
		h.Cross["@a:one"][usage] = json.RawMessage(strings.ReplaceAll(string(raw), "@b:one", "@a:one"))
	}
	h.Mu.Unlock()
	if err := two.Recover(t.Context(), key); err == nil {
		t.Error("a recovery key signed for a master key that is not in it")
	}
	if m, err := two.trustedMaster(t.Context()); err != nil || m != "" {
		t.Errorf("trusted %q, %v", m, err)
	}
}

func TestRecoverWithThePassphrase(t *testing.T) {
	h := newHomeserver(t, true)
	one := h.loginDevice("@a:one")
	mach, _, err := one.machine(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Another client has made a recovery key from a passphrase.
	key, err := mach.SSSS.GenerateAndUploadKey(t.Context(), "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if err := mach.SSSS.SetDefaultKeyID(t.Context(), key.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Bootstrap(t.Context(), UIA{Password: "secret"}, ""); !errors.Is(err, ErrSecretStorageExists) {
		t.Errorf("without it: got %v", err)
	}
	if got, err := one.Bootstrap(t.Context(), UIA{Password: "secret"}, key.RecoveryKey()); err != nil || got != key.RecoveryKey() {
		t.Fatalf("got %q, %v", got, err)
	}
	two := h.loginDevice("@a:one")
	if err := two.Recover(t.Context(), "wrong horse"); !errors.Is(err, ErrWrongRecoveryKey) {
		t.Errorf("wrong passphrase: got %v", err)
	}
	if err := two.Recover(t.Context(), "correct horse"); err != nil {
		t.Fatal(err)
	}
	if s, err := two.Status(t.Context()); err != nil || !s.DeviceSigned || !s.MasterTrusted {
		t.Errorf("status %+v, %v", s, err)
	}
}

func TestAHomeserverCannotMakeUsComputeForEver(t *testing.T) {
	meta := &ssss.KeyMetadata{Algorithm: ssss.AlgorithmAESHMACSHA2, Passphrase: &ssss.PassphraseMetadata{
		Algorithm: ssss.PassphraseAlgorithmPBKDF2, Iterations: 1 << 40, Salt: "s",
	}}
	if _, err := openSecretStorage(meta, "k", "passphrase"); !errors.Is(err, ErrWrongRecoveryKey) {
		t.Errorf("got %v", err)
	}
}

func TestSignatureIsPublishedWithTheKeys(t *testing.T) {
	h := newHomeserver(t, true)
	one, two := h.loginDevice("@a:one"), h.loginDevice("@a:one")
	bootstrap(t, one)
	if err := one.SignDevice(t.Context(), two.DeviceID()); err != nil {
		t.Fatal(err)
	}
	syncOnce(t, two)
	for _, i := range []*Identity{one, two} {
		u, err := i.Devices(t.Context(), i.UserID())
		if err != nil {
			t.Fatal(err)
		}
		keyID := "ed25519:" + rooms.EncodeBase64(u.cross.SelfSigning)
		h.Mu.Lock()
		last := h.LastKeys[i.DeviceID().String()]
		uploads := h.Uploads
		h.Mu.Unlock()
		if !strings.Contains(string(last), keyID) {
			t.Errorf("%s: the keys were last uploaded without the signature: servers that are told of an upload only never learn it", i.DeviceID())
		}
		i.lists.init()
		syncOnce(t, i)
		if h.Uploads != uploads {
			t.Errorf("%s: uploaded again although nothing changed", i.DeviceID())
		}
	}
}

func TestOnlyOneNameForUsers(t *testing.T) {
	h := newHomeserver(t, true)
	i := h.loginDevice("@a:one")
	for _, user := range []id.UserID{"", "a", "@a", "@a:", "!a:one"} {
		if _, err := i.Devices(t.Context(), user); err == nil {
			t.Errorf("%q was asked for", user)
		}
	}
}
