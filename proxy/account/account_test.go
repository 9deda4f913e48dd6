package account

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/internal/hstest"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// stored is an account with a store and nothing else.
func stored(t *testing.T, path string, key store.Key) *Account {
	t.Helper()
	st, err := store.Open(t.Context(), store.Options{Path: path, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	a := &Account{st: st, changed: make(chan struct{})}
	t.Cleanup(a.Close)
	return a
}

func newKey(t *testing.T) store.Key {
	t.Helper()
	key := make(store.Key, store.KeySize)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	return key
}

func TestSessionsAreCountedOverRestarts(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), storeName), newKey(t)
	a := stored(t, path, key)
	for _, session := range []id.DeviceID{"ONE", "TWO", "ONE"} {
		if err := a.addSession(t.Context(), session); err != nil {
			t.Fatal(err)
		}
	}
	a.Close()
	a = stored(t, path, key)
	for _, tt := range []struct {
		session id.DeviceID
		want    bool
	}{{"ONE", true}, {"TWO", true}, {"OTHER", false}, {"", false}} {
		if has, err := a.Has(t.Context(), tt.session); err != nil || has != tt.want {
			t.Errorf("Has(%q) = %v, %v", tt.session, has, err)
		}
	}
	for _, tt := range []struct {
		session id.DeviceID
		left    int
	}{{"OTHER", 2}, {"ONE", 1}, {"ONE", 1}, {"TWO", 0}} {
		if left, err := a.dropSession(t.Context(), tt.session); err != nil || left != tt.left {
			t.Errorf("dropping %q leaves %d, %v; want %d", tt.session, left, err, tt.left)
		}
	}
	for i := range maxSessions + 5 {
		if err := a.addSession(t.Context(), id.DeviceID(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := a.sessions(t.Context()); err != nil || len(all) != maxSessions || all[0] != "5" {
		t.Errorf("%d sessions from %s on, %v", len(all), all[0], err)
	}
}

func TestTheFirstKeyOfAFileCountsAndLiesSealed(t *testing.T) {
	path := filepath.Join(t.TempDir(), storeName)
	a := stored(t, path, newKey(t))
	media := func(mime string) *Media {
		return &Media{MIME: mime, File: &event.EncryptedFileInfo{URL: "mxc://h/a"}}
	}
	if m, err := a.Media(t.Context(), "mxc://h/a"); m != nil || err != nil {
		t.Errorf("a file of which nothing is known: %+v, %v", m, err)
	}
	for _, m := range []*Media{media("first/planted"), media("second/x"), {Public: "mxc://h/public"}, {Public: "mxc://h/other"}} {
		if err := a.KeepMedia(t.Context(), "mxc://h/a", m); err != nil {
			t.Fatal(err)
		}
	}
	m, err := a.Media(t.Context(), "mxc://h/a")
	if err != nil || m.MIME != "first/planted" || m.Public != "mxc://h/public" || m.File.URL != "mxc://h/a" {
		t.Errorf("kept %+v, %v", m, err)
	}
	a.Close()
	raw, err := os.ReadFile(path)
	if err != nil || strings.Contains(string(raw), "first/planted") {
		t.Errorf("the key of a file is not sealed (%v)", err)
	}
}

// TestThatAClientHasKeysIsNotedWithItsSession: until that ends, over restarts.
func TestThatAClientHasKeysIsNotedWithItsSession(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), storeName), newKey(t)
	a := stored(t, path, key)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	noted := func(want ...id.DeviceID) {
		t.Helper()
		for _, session := range []id.DeviceID{"ONE", "TWO", "NONE"} {
			if has, err := a.HasKeys(t.Context(), session); err != nil || has != slices.Contains(want, session) {
				t.Errorf("%s has keys: %t, %v; those that do are %q", session, has, err, want)
			}
		}
	}
	for _, session := range []id.DeviceID{"ONE", "TWO"} {
		must(a.addSession(t.Context(), session))
	}
	noted()
	for _, session := range []id.DeviceID{"TWO", "TWO", "ONE", "NONE"} {
		must(a.NoteKeys(t.Context(), session))
	}
	noted("ONE", "TWO")
	a.Close()
	a = stored(t, path, key)
	noted("ONE", "TWO")
	_, err := a.dropSession(t.Context(), "ONE")
	must(err)
	must(a.addSession(t.Context(), "ONE")) // another client may have its name
	noted("TWO")
	for i := range maxSessions {
		must(a.addSession(t.Context(), id.DeviceID(fmt.Sprint(i))))
	}
	noted()
}

// TestTheKeysOfFilesGoWithTheLastMessageThatNamesThem: by a redaction, or with the room.
// What was uploaded here stays, since it may be named where nobody looks.
func TestTheKeysOfFilesGoWithTheLastMessageThatNamesThem(t *testing.T) {
	a := stored(t, filepath.Join(t.TempDir(), storeName), newKey(t))
	a.unread = newUnread(a.st, unreadOwn, nil, nil)
	file := func(key string) *event.EncryptedFileInfo {
		f := new(event.EncryptedFileInfo)
		f.Key.Key = key
		return f
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const uploaded, twice = "mxc://h/own", "mxc://h/twice"
	keyed, other := rewrite.Keyed(uploaded, []byte(`1`)), rewrite.Keyed("mxc://h/other", []byte(`2`))
	must(a.KeepMedia(t.Context(), twice, &Media{File: file("double"), Own: true, Single: file("k")}))
	must(a.KeepMedia(t.Context(), uploaded, &Media{File: file("k"), Own: true, Of: twice}))
	says := func(room id.RoomID, evt id.EventID) {
		t.Helper()
		must(a.KeepFiles(t.Context(), room, evt, []File{{keyed, &Media{File: file("k")}}, {other, &Media{File: file("o")}}}))
	}
	has := func(want bool, all ...string) {
		t.Helper()
		for _, mxc := range all {
			if m, err := a.Media(t.Context(), mxc); err != nil || (m != nil) != want {
				t.Errorf("the key of %s is %+v, %v; want it: %t", mxc, m, err, want)
			}
		}
	}
	says("!r:x", "$1")
	says("!r:x", "$1") // read again
	says("!r:x", "$2")
	says("!s:x", "$3")
	must(a.DropFiles(t.Context(), "!r:x", "$1"))
	must(a.DropFiles(t.Context(), "!r:x", "$1"))
	must(a.DropFiles(t.Context(), "!r:x", "$unknown"))
	has(true, keyed, other, uploaded, twice)
	a.changed = make(chan struct{})
	a.handle(t.Context(), &client.Redaction{Room: "!r:x", Target: "$2"})
	has(true, keyed, other, uploaded, twice)
	must(a.Forget(t.Context(), "!s:x"))
	has(false, keyed, other)
	has(true, uploaded, twice)
	if left, err := a.st.KVKeys(t.Context(), "proxy/files/", 10); err != nil || len(left) != 0 {
		t.Errorf("there is left %q, %v", left, err)
	}

	// One that many name stays.
	says("!r:x", "$4")
	must(a.DropFiles(t.Context(), "!r:x", "$4"))
	has(true, uploaded)
	has(false, keyed, other)
	for n := range maxNaming + 2 {
		says("!r:x", id.EventID(fmt.Sprint("$many", n)))
	}
	for n := range maxNaming + 2 {
		must(a.DropFiles(t.Context(), "!r:x", id.EventID(fmt.Sprint("$many", n))))
	}
	has(true, keyed, other)
	// What is read again is there again.
	must(a.KeepMedia(t.Context(), "mxc://h/y", &Media{File: file("y"), Own: true}))
	again := rewrite.Keyed("mxc://h/y", []byte(`3`))
	for range 2 {
		must(a.KeepFiles(t.Context(), "!r:x", "$5", []File{{again, &Media{File: file("another key")}}}))
		has(true, again)
		must(a.DropFiles(t.Context(), "!r:x", "$5"))
		has(false, again)
	}
	has(true, "mxc://h/y") // its key is another
}

// TestADeviceThatHasToLogInAgainStaysTheSame: after a soft logout the next login with
// the password brings it back; after the end of its session there is another.
func TestADeviceThatHasToLogInAgainStaysTheSame(t *testing.T) {
	h := hstest.New(t, true)
	accounts, err := Open(t.Context(), Options{Dir: t.TempDir(), Homeserver: h.URL, Note: t.Logf, Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	defer accounts.Close()
	login := func(session id.DeviceID) *Account {
		t.Helper()
		a, err := accounts.Login(t.Context(), "@a:one", "secret", session)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := login("ONE")
	device := a.Client().DeviceID()
	if got := a.Session(t.Context()); got != SessionGood {
		t.Errorf("after the login the session is %d", got)
	}
	h.Mu.Lock()
	h.Devices["@a:one"][device.String()].Over = true
	h.Mu.Unlock()
	a.renewed()
	status, err := a.Status(t.Context())
	if got := a.Session(t.Context()); got != SessionSoft || err != nil || !status.SoftLogout() || status.Ended() {
		t.Errorf("after a soft logout the session is %d, %+v, %v", got, status, err)
	}
	if again := login("TWO"); again != a || again.Client().DeviceID() != device || a.Session(t.Context()) != SessionGood {
		t.Errorf("the device was %s and is %s, in the session %d", device, again.Client().DeviceID(), a.Session(t.Context()))
	}
	h.Mu.Lock()
	n := len(h.Devices["@a:one"])
	delete(h.Devices["@a:one"], device.String())
	h.Mu.Unlock()
	if n != 1 {
		t.Errorf("the user has %d devices, want 1", n)
	}
	a.renewed()
	if got := a.Session(t.Context()); got != SessionOver {
		t.Errorf("after its end the session is %d", got)
	}
	if again := login("THREE"); again == a || again.Client().DeviceID() == device || again.Session(t.Context()) != SessionGood {
		t.Errorf("after its end the device is still %s", again.Client().DeviceID())
	}
}

// TestAUserWhoIsNoneHasNoFolder: the homeserver says whose a session is.
func TestAUserWhoIsNoneHasNoFolder(t *testing.T) {
	state := t.TempDir()
	s, err := Open(t.Context(), Options{Dir: filepath.Join(state, "accounts"), Homeserver: "http://127.0.0.1:1", Note: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, user := range []id.UserID{"..", ".", "", "@", "@a", "a:one", "accounts"} {
		if a, err := s.Login(t.Context(), user, "password", "D"); err == nil || a != nil {
			t.Errorf("%q has an account", user)
		}
	}
	for _, dir := range []string{state, filepath.Join(state, "accounts")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if entry.Name() != "accounts" || dir != state {
				t.Errorf("%s is left in %s", entry.Name(), dir)
			}
		}
	}
}

func TestFoldersOfUsers(t *testing.T) {
	long := id.UserID("@" + strings.Repeat("/", 200) + ":x")
	seen := map[string]bool{}
	for _, user := range []id.UserID{"@alice:example.org", "@a/../b:x", "@A:x", "@a:x", "@..:x", long} {
		name := folder(user)
		if seen[name] || name != filepath.Base(name) || name == "." || name == ".." || len(name) > 200 {
			t.Errorf("%q lives in %q", user, name)
		}
		seen[name] = true
	}
	if got := folder("@alice:example.org"); got != "@alice:example.org" {
		t.Errorf("a usual name becomes %q", got)
	}
}

func TestOpenLeavesOutWhatCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "@broken:x")
	if err := os.MkdirAll(broken, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, storeName), []byte("this is no database"), 0o600); err != nil {
		t.Fatal(err)
	}
	var notes []string
	s, err := Open(t.Context(), Options{Dir: dir, Homeserver: "http://127.0.0.1:1", Getenv: func(string) string { return "" }, Note: func(format string, args ...any) {
		notes = append(notes, fmt.Sprintf(format, args...))
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if len(notes) != 1 || !strings.Contains(notes[0], broken) {
		t.Errorf("notes %q", notes)
	}
	if _, err := s.Get("@broken:x"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Get of what cannot be opened: %v", err)
	}
	if _, err := s.Get("@nobody:x"); !errors.Is(err, ErrNoDevice) {
		t.Errorf("Get of nobody: %v", err)
	}
	s.Close()
	if _, err := s.Get("@nobody:x"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Get after the end: %v", err)
	}
}

// TestANetworkErrorEndsNoMLSDevice: only the homeserver's word ends a device, not
// that it cannot be asked.
func TestANetworkErrorEndsNoMLSDevice(t *testing.T) {
	h := hstest.New(t, true)
	base, err := url.Parse(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	through := httputil.NewSingleHostReverseProxy(base)
	for _, row := range []struct {
		name        string
		check, want int // what whoami answers with; how many sessions are left
	}{{"a soft logout", 0, 1}, {"then no answer", http.StatusBadGateway, 1}, {"an end", http.StatusUnauthorized, 0}} {
		down := false
		front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case down && strings.HasSuffix(r.URL.Path, "/devices"):
				w.WriteHeader(http.StatusUnauthorized)
				fmt.Fprint(w, `{"errcode":"M_UNKNOWN_TOKEN","error":"no","soft_logout":true}`)
			case down && strings.HasSuffix(r.URL.Path, "/whoami") && row.check == http.StatusUnauthorized:
				w.WriteHeader(row.check)
				fmt.Fprint(w, `{"errcode":"M_UNKNOWN_TOKEN","error":"no"}`)
			case down && strings.HasSuffix(r.URL.Path, "/whoami") && row.check == 0:
				w.WriteHeader(http.StatusUnauthorized)
				fmt.Fprint(w, `{"errcode":"M_UNKNOWN_TOKEN","error":"no","soft_logout":true}`)
			case down:
				w.WriteHeader(row.check)
			default:
				through.ServeHTTP(w, r)
			}
		}))
		a := stored(t, filepath.Join(t.TempDir(), storeName), newKey(t))
		ident, err := identity.Open(t.Context(), identity.Options{Store: a.st})
		if err != nil {
			t.Fatal(err)
		}
		a.ident = ident
		if err := ident.LoginPassword(t.Context(), identity.Login{Homeserver: front.URL, User: "@a:one"}, "secret"); err != nil {
			t.Fatal(err)
		}
		if err := a.addSession(t.Context(), "ONE"); err != nil {
			t.Fatal(err)
		}
		down = true
		if left, err := a.pruneSessions(t.Context()); err != nil || left != row.want {
			t.Errorf("%s: %d sessions are left (%v), want %d", row.name, left, err, row.want)
		}
		front.Close()
	}
}

// TestALoginThatCannotBeKeptLeavesNoSession: the device of a login token that has no
// place here is ended at the homeserver.
func TestALoginThatCannotBeKeptLeavesNoSession(t *testing.T) {
	h := hstest.New(t, true)
	dir := t.TempDir()
	accounts, err := Open(t.Context(), Options{Dir: dir, Homeserver: h.URL, Note: t.Logf, Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	defer accounts.Close()
	if err := os.WriteFile(filepath.Join(dir, folder("@sso:one")), nil, 0o600); err != nil { // where a folder should be
		t.Fatal(err)
	}
	user, err := accounts.LoginToken(t.Context(), "good-token")
	h.Mu.Lock()
	defer h.Mu.Unlock()
	if err == nil || user != "@sso:one" || len(h.Devices["@sso:one"]) != 0 {
		t.Errorf("%s: %v, %d devices are left", user, err, len(h.Devices["@sso:one"]))
	}
}

// TestTheLastClientOfACopyThatIsOutEndsThatCopyAlone: the MLS device's session is the
// other copy's.
func TestTheLastClientOfACopyThatIsOutEndsThatCopyAlone(t *testing.T) {
	for _, superseded := range []bool{false, true} {
		h := hstest.New(t, true)
		o := Options{Dir: t.TempDir(), Homeserver: h.URL, Note: t.Logf, Getenv: func(string) string { return "" }}
		accounts, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer accounts.Close()
		a, err := accounts.Login(t.Context(), "@a:one", "secret", "PHONE")
		if err != nil {
			t.Fatal(err)
		}
		if err := a.st.PutRoom(t.Context(), "!r:one", fmt.Appendf(nil, `{"membership":"join","phase":"removed","superseded":%v}`, superseded)); err != nil {
			t.Fatal(err)
		}
		accounts.Close()
		if accounts, err = Open(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		defer accounts.Close()
		if err := accounts.LogoutAll(t.Context(), "@a:one"); err != nil {
			t.Fatal(err)
		}
		h.Mu.Lock()
		left := len(h.Devices["@a:one"])
		h.Mu.Unlock()
		if (left == 1) != superseded {
			t.Errorf("another copy is in use: %v; the homeserver has %d devices", superseded, left)
		}
		if _, err := accounts.Get("@a:one"); !errors.Is(err, ErrNoDevice) {
			t.Errorf("the account is there: %v", err)
		}
	}
}
