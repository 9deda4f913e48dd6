package doctor

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice"
	"github.com/matrix-mls/matrix-mls/appservice/setup"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// world is a homeserver and a module that a test spoils.
type world struct {
	t          *testing.T
	mu         sync.Mutex
	media      []byte
	date       time.Time
	standsBy   bool
	special    map[string]func(w http.ResponseWriter, r *http.Request) // by a part of the path
	dir        string
	hs, module *httptest.Server
	ready      string // the module's answer
	lastCall   int64
	away       int64
	now        time.Time
}

func answer(status int, body string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}
}

func (wd *world) homeserver(w http.ResponseWriter, r *http.Request) {
	wd.mu.Lock()
	defer wd.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Date", wd.date.UTC().Format(http.TimeFormat))
	body, _ := io.ReadAll(r.Body)
	for part, h := range wd.special {
		if strings.Contains(r.URL.Path, part) {
			r.Body = io.NopCloser(bytes.NewReader(body))
			h(w, r)
			return
		}
	}
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, "/versions"):
		fmt.Fprint(w, `{"versions":["r0.6.1","v1.15"]}`)
	case strings.HasSuffix(path, "/whoami"):
		fmt.Fprint(w, `{"user_id":"@_mls_bot:mls.test"}`)
	case strings.HasSuffix(path, "/ping"):
		fmt.Fprint(w, `{"duration_ms":2}`)
	case strings.HasSuffix(path, "/media/config"):
		fmt.Fprint(w, `{"m.upload.size":52428800}`)
	case strings.HasSuffix(path, "/upload"):
		wd.media = body
		fmt.Fprint(w, `{"content_uri":"mxc://mls.test/x"}`)
	case strings.Contains(path, "/media/download/"):
		_, _ = w.Write(wd.media)
	case strings.HasSuffix(path, "/createRoom"):
		fmt.Fprint(w, `{"room_id":"!probe:mls.test"}`)
	case strings.Contains(path, "/send/"):
		wd.lastCall++
		fmt.Fprint(w, `{"event_id":"$x"}`)
	default:
		answer(404, `{"errcode":"M_NOT_FOUND"}`)(w, r)
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	now := time.Unix(1_800_000_000, 0)
	wd := &world{t: t, date: now, now: now, dir: t.TempDir(), special: make(map[string]func(http.ResponseWriter, *http.Request))}
	wd.hs = httptest.NewServer(http.HandlerFunc(wd.homeserver))
	t.Cleanup(wd.hs.Close)
	wd.module = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wd.mu.Lock()
		defer wd.mu.Unlock()
		if wd.standsBy {
			appservice.StandbyHandler().ServeHTTP(w, r)
			return
		}
		if r.URL.Path == "/metrics" {
			fmt.Fprintln(w, "mls_ready 1")
			return
		}
		if wd.ready != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(appservice.Readiness{Reason: wd.ready, LastCall: wd.lastCall, Away: wd.away})
	}))
	t.Cleanup(wd.module.Close)
	hsConfig := filepath.Join(wd.dir, "homeserver.yaml")
	if err := os.WriteFile(hsConfig, []byte("server_name: mls.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := setup.Run(context.Background(), setup.Options{
		HomeserverConfig: hsConfig, Config: wd.config(), Registration: wd.registration(), Address: wd.hs.URL,
		Listen: strings.TrimPrefix(wd.module.URL, "http://"), Out: io.Discard,
	}); err != nil {
		t.Fatal(err)
	}
	return wd
}

func (wd *world) config() string       { return filepath.Join(wd.dir, "config.yaml") }
func (wd *world) registration() string { return filepath.Join(wd.dir, "registration.yaml") }

func (wd *world) run(environ ...string) *Report {
	return Run(wd.t.Context(), Options{Config: wd.config(), Registration: wd.registration(), Environ: environ, Version: "test",
		Now: func() time.Time { return wd.now }})
}

func (wd *world) store() *store.Store {
	return storetest.Open(wd.t, store.Config{Type: "sqlite3", URI: filepath.Join(wd.dir, "matrix-mls.db")}, func() time.Time { return wd.now })
}

func TestHealthyInstallation(t *testing.T) {
	report := newWorld(t).run()
	if report.Failed() || report.Count(OK) != len(probes) {
		var out bytes.Buffer
		_ = report.WriteText(&out, false)
		t.Errorf("a healthy installation is judged:\n%s", &out)
	}
	if len(probes) < 20 {
		t.Errorf("%d probes", len(probes))
	}
}

func TestDoctorThatIsStoppedBlamesNothing(t *testing.T) {
	wd := newWorld(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	wd.special["/whoami"] = func(w http.ResponseWriter, _ *http.Request) {
		stop()
		fmt.Fprint(w, `{"user_id":"@_mls_bot:mls.test"}`)
	}
	report := Run(ctx, Options{Config: wd.config(), Registration: wd.registration(), Version: "test", Now: func() time.Time { return wd.now }})
	var out bytes.Buffer
	_ = report.WriteText(&out, false)
	if !report.Stopped || report.Failed() || len(report.Results) == 0 || len(report.Results) >= len(probes) || !strings.Contains(out.String(), "stopped: ") {
		t.Errorf("stopped in the middle, doctor says:\n%s", &out)
	}
}

func TestVerdicts(t *testing.T) {
	edit := func(wd *world, file, old, replacement string) {
		text, err := os.ReadFile(file)
		if err != nil {
			wd.t.Fatal(err)
		}
		if !strings.Contains(string(text), old) {
			wd.t.Fatalf("%s lacks %q", file, old)
		}
		if err := os.WriteFile(file, []byte(strings.Replace(string(text), old, replacement, 1)), 0o600); err != nil {
			wd.t.Fatal(err)
		}
	}
	for name, row := range map[string]struct {
		spoil  func(wd *world)
		probe  string
		status Status
		says   string // part of detail, cause or next step
	}{
		"unknown key":               {func(wd *world) { edit(wd, wd.config(), "    domain:", "    domian:") }, "config", Fail, "did you mean domain"},
		"configuration open to all": {func(wd *world) { _ = os.Chmod(wd.config(), 0o644) }, "config", Warn, "chmod"},
		"registration missing":      {func(wd *world) { _ = os.Remove(wd.registration()) }, "registration", Warn, "matrix-mls -g"},
		"registration limited":      {func(wd *world) { edit(wd, wd.registration(), "rate_limited: false", "rate_limited: true") }, "registration", Fail, "rate_limited"},
		"database missing":          {func(wd *world) { _ = os.Remove(filepath.Join(wd.dir, "matrix-mls.db")) }, "database", Fail, "setup"},
		"database empty":            {func(wd *world) { _ = os.Truncate(filepath.Join(wd.dir, "matrix-mls.db"), 0) }, "database", Fail, "empty"},
		"database damaged": {func(wd *world) {
			_ = os.WriteFile(filepath.Join(wd.dir, "matrix-mls.db"), []byte(strings.Repeat("x", 8192)), 0o600)
		}, "database", Fail, ""},
		"database readable by others": {func(wd *world) { _ = os.Chmod(filepath.Join(wd.dir, "matrix-mls.db"), 0o644) }, "database", Warn, "chmod 600"},
		"homeserver down":             {func(wd *world) { wd.hs.Close() }, "homeserver", Fail, "curl"},
		"homeserver's certificate not trusted": {func(wd *world) {
			hs := httptest.NewUnstartedServer(http.HandlerFunc(wd.homeserver))
			hs.Config.ErrorLog = log.New(io.Discard, "", 0)
			hs.StartTLS()
			wd.t.Cleanup(hs.Close)
			edit(wd, wd.config(), wd.hs.URL, hs.URL)
		}, "homeserver", Fail, "x509: certificate signed by unknown authority this machine does not trust who signed the homeserver's certificate add the authority's"},
		"homeserver without TLS":   {func(wd *world) { edit(wd, wd.config(), wd.hs.URL, strings.Replace(wd.hs.URL, "http:", "https:", 1)) }, "homeserver", Fail, "the homeserver speaks no TLS there"},
		"homeserver is a web page": {func(wd *world) { wd.special["/versions"] = answer(200, "<html>") }, "homeserver", Fail, "client API"},
		"homeserver is very old":   {func(wd *world) { wd.special["/versions"] = answer(200, `{"versions":["r0.6.1"]}`) }, "homeserver", Fail, "upgrade"},
		"clock ahead":              {func(wd *world) { wd.date = wd.now.Add(-time.Hour) }, "clock", Warn, "ahead of"},
		"clock behind":             {func(wd *world) { wd.date = wd.now.Add(time.Hour) }, "clock", Warn, "behind"},
		"registration not loaded":  {func(wd *world) { wd.special["/whoami"] = answer(401, `{"errcode":"M_UNKNOWN_TOKEN"}`) }, "token", Fail, "restarted"},
		"token of someone else":    {func(wd *world) { wd.special["/whoami"] = answer(200, `{"user_id":"@other:mls.test"}`) }, "token", Fail, "@other:mls.test"},
		"bot deactivated":          {func(wd *world) { wd.special["/whoami"] = answer(403, `{"errcode":"M_FORBIDDEN"}`) }, "token", Fail, "start the module"},
		"bot of another name": {func(wd *world) {
			wd.special["/whoami"] = answer(403, `{"errcode":"M_FORBIDDEN","error":"Application service cannot masquerade as this user (@_mls_bot:mls.test)."}`)
		}, "token", Fail, "the homeserver has loaded an older registration"},
		"registration without an address": {func(wd *world) { edit(wd, wd.registration(), "url: "+wd.module.URL, "url: ''") }, "registration", Fail, "url is empty, should be http"},
		"registration without the bot": {func(wd *world) {
			edit(wd, wd.registration(), "@_mls_bot:", "@else:")
			edit(wd, wd.registration(), "@_mls_.*", "@else.*")
		},
			"registration", Fail, "namespaces.users does not cover @_mls_bot:mls.test, should be ^@"},
		"module stopped":   {func(wd *world) { wd.module.Close() }, "module", Warn, "systemctl"},
		"module not ready": {func(wd *world) { wd.ready = "the inbox has not been read yet" }, "module", Warn, "inbox"},
		"module without its homeserver": {func(wd *world) {
			wd.ready, wd.away = "the homeserver has not answered since 2026-12-01T12:00:00Z", 1_796_126_400_000
		}, "module", Warn, "not answered since 2026-12-01T12:00:00Z the homeserver is down, or homeserver.address"},
		"link broken":               {func(wd *world) { wd.special["/ping"] = answer(502, `{"errcode":"M_CONNECTION_FAILED"}`) }, "link", Fail, "firewall"},
		"link with an old hs_token": {func(wd *world) { wd.special["/ping"] = answer(502, `{"errcode":"M_BAD_STATUS"}`) }, "link", Fail, "hs_token"},
		"link with another answer":  {func(wd *world) { wd.special["/ping"] = answer(502, `{"errcode":"M_BAD_STATUS","error":"HTTP 403"}`) }, "link", Fail, "hs_token"},
		"link to who stands by": {func(wd *world) {
			wd.standsBy = true
			wd.special["/ping"] = answer(502, `{"errcode":"M_BAD_STATUS","error":"HTTP 503"}`)
		}, "link", Fail, "the process at appservice.address stands by"},
		"link to a front that knows nobody": {func(wd *world) { wd.special["/ping"] = answer(502, `{"errcode":"M_BAD_STATUS","error":"HTTP 503"}`) }, "link", Fail, "/_matrix/mau/active"},
		"metrics of who stands by":          {func(wd *world) { wd.standsBy = true }, "metrics", Warn, "the process at appservice.address stands by"},
		"link with another id":              {func(wd *world) { wd.special["/ping"] = answer(403, `{"errcode":"M_FORBIDDEN"}`) }, "link", Fail, "id"},
		"no ping, call back works":          {func(wd *world) { wd.special["/ping"] = answer(404, `{"errcode":"M_UNRECOGNIZED"}`) }, "link", OK, "less than"},
		"media refused":                     {func(wd *world) { wd.special["/upload"] = answer(403, `{"errcode":"M_FORBIDDEN"}`) }, "media", Fail, "disk"},
		"media changed":                     {func(wd *world) { wd.special["/media/download"] = answer(200, "else") }, "media", Fail, "proxy"},
		"media lost":                        {func(wd *world) { wd.special["/media/download"] = answer(404, `{"errcode":"M_NOT_FOUND"}`) }, "media", Fail, "media store"},
		"media limit too low":               {func(wd *world) { wd.special["/media/config"] = answer(200, `{"m.upload.size":1000}`) }, "media", Fail, "max_upload_size"},
		"rate limited": {func(wd *world) {
			wd.special["/send/"] = answer(429, `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":5}`)
		}, "sending", Fail, "rate_limited: false"},
		"events bounded by a proxy": {func(wd *world) {
			wd.special["/send/"] = func(w http.ResponseWriter, r *http.Request) {
				if body, _ := io.ReadAll(r.Body); len(body) > 10_000 {
					answer(413, "<html>too large</html>")(w, r)
					return
				}
				answer(200, `{"event_id":"$x"}`)(w, r)
			}
		}, "sending", Fail, "proxy"},
		"receipt key missing": {func(wd *world) {
			path := filepath.Join(wd.dir, "other.db")
			st := storetest.Open(wd.t, store.Config{Type: "sqlite3", URI: path}, nil)
			_ = st.Close()
			_ = os.Rename(path, filepath.Join(wd.dir, "matrix-mls.db"))
		}, "receipt-key", Fail, "setup"},
		"receipt key unlike the room's": {func(wd *world) {
			key := base64.RawStdEncoding.EncodeToString(make([]byte, ed25519.PublicKeySize))
			wd.special["/state/"] = answer(200, `{"receipt_key":"`+key+`"}`)
			_ = wd.store().NoteRoom(context.Background(), "!r", store.RoomJoined)
		}, "receipt-key", Fail, "two modules"},
		"receipt key unlike the group's": {func(wd *world) {
			seed, _ := wd.store().Key(context.Background(), appservice.KeyReceipt)
			own := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
			head, err := json.Marshal(map[string]string{
				"receipt_key": base64.RawStdEncoding.EncodeToString(own),
				"group_info":  base64.RawStdEncoding.EncodeToString(groupListing(wd.t, "@_mls_bot:mls.test", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey))),
			})
			if err != nil {
				wd.t.Fatal(err)
			}
			wd.special["/state/"] = answer(200, string(head))
			_ = wd.store().NoteRoom(context.Background(), "!r", store.RoomJoined)
		}, "receipt-key", Fail, "mls-proxy repair"},
		"inbox stuck": {func(wd *world) {
			_, _ = wd.store().PutInbox(context.Background(), &store.InboxEvent{EventID: "$1", Room: "!r", Sender: "@a:b", Type: "t", Raw: []byte("{}"), Source: store.SourceTransaction})
			wd.now = wd.now.Add(time.Hour)
			wd.date = wd.now
		}, "queues", Fail, "not dealt with"},
		"outbox stuck": {func(wd *world) {
			_ = wd.store().PutOutbox(context.Background(), &store.OutboxRow{Room: "!r", Type: "t", Content: []byte("{}")})
			wd.now = wd.now.Add(time.Hour)
			wd.date = wd.now
		}, "queues", Fail, "1 event waits to be sent"},
		"events refused for good": {func(wd *world) {
			st := wd.store()
			row := &store.OutboxRow{Room: "!r", Type: "t", Content: []byte("{}")}
			_ = st.PutOutbox(context.Background(), row)
			_ = st.FailOutbox(context.Background(), row.ID, "forbidden")
			_ = st.AckOutbox(context.Background(), row.ID)
		}, "queues", Warn, "kicked"},
		"registration claims rooms": {func(wd *world) {
			edit(wd, wd.registration(), "    users:", "    rooms:\n        - regex: '!.*'\n          exclusive: false\n    users:")
		}, "namespaces", Warn, "rooms !.*"},
		"a room's state damaged": {func(wd *world) {
			_ = wd.store().PutRoom(context.Background(), &store.Room{ID: "!torn:mls.test", Status: store.RoomServing, Machine: []byte("x")})
		}, "rooms", Fail, "!torn:mls.test"},
		"as many rooms as may be": {func(wd *world) {
			edit(wd, wd.config(), "    maximum: 10000", "    maximum: 1")
			_ = wd.store().NoteRoom(context.Background(), "!r", store.RoomJoined)
		}, "rooms", Fail, "rooms.maximum"},
		"two sequencers": {func(wd *world) { wd.serve("!two:mls.test", 2) }, "sequencers", Warn, "!two:mls.test"},
		"restored and not compared": {func(wd *world) {
			wd.serve("!r:mls.test", 1)
			_ = wd.store().Set(context.Background(), store.KeyRestored, "x 2026-01-01T00:00:00Z")
		}, "restored", Warn, "!r:mls.test"},
		"a bug met": {func(wd *world) {
			_ = wd.store().PutRefusal(context.Background(), &store.Refusal{Room: "!r:mls.test", Rule: "internal/panic", Detail: "x"})
		}, "refusals", Fail, "report"},
		"a sequencer lies": {func(wd *world) {
			_ = wd.store().PutRefusal(context.Background(), &store.Refusal{Room: "!r:mls.test", Rule: "federation/votes-off-one-chain", Detail: "@_mls_bot:far.test signed two receipts that contradict each other"})
		}, "refusals", Fail, "@_mls_bot:far.test"},
		"metrics elsewhere": {func(wd *world) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				wd.t.Fatal(err)
			}
			_ = l.Close()
			edit(wd, wd.config(), "    listen: ''", "    listen: "+l.Addr().String())
		}, "metrics", Warn, "metrics.listen"},
	} {
		t.Run(name, func(t *testing.T) {
			wd := newWorld(t)
			wd.t = t
			row.spoil(wd)
			report := wd.run()
			var got Result
			for _, r := range report.Results {
				if r.ID == row.probe {
					got = r
				}
				if r.Status == Fail && (r.Detail == "" || r.Cause == "" || r.Next == "") {
					t.Errorf("probe %s failed without detail, cause or next step: %+v", r.ID, r)
				}
			}
			if got.Status != row.status || !strings.Contains(got.Detail+" "+got.Cause+" "+got.Next, row.says) {
				t.Errorf("probe %s is %+v, want %s with %q", row.probe, got, row.status, row.says)
			}
			if report.Failed() != (report.Count(Fail) > 0) || (row.status == Fail) != report.Failed() {
				t.Errorf("the report as a whole: failed %v", report.Failed())
			}
			var out bytes.Buffer
			if err := report.WriteJSON(&out); err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{"as_token", "hs_token"} {
				for _, line := range strings.Split(registrationText(t, wd), "\n") {
					if secret, ok := strings.CutPrefix(line, key+": "); ok && strings.Contains(out.String(), secret) {
						t.Errorf("the report shows the %s", key)
					}
				}
			}
		})
	}
}

// serve puts a room with a group into the database, with so many sequencers.
func (wd *world) serve(room id.RoomID, sequencers int) {
	wd.t.Helper()
	var list federation.List
	for i := range sequencers {
		key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i + 1)}, ed25519.SeedSize)).Public().(ed25519.PublicKey)
		list = append(list, federation.Sequencer{Server: fmt.Sprintf("s%d.test", i), User: fmt.Sprintf("@_mls_bot:s%d.test", i), ReceiptKey: key})
	}
	m, err := federation.New(federation.Config{Room: string(room), Verify: rooms.VerifyLeafSignature}, federation.Base{
		Ref: federation.Ref{1}, GroupID: []byte("group"), Suite: 1, Policy: federation.Policy{Sequencers: list, Admins: []string{"@a:mls.test"}},
		Leaves: []federation.Leaf{{User: "@a:mls.test", Key: []byte{1}}},
	})
	if err != nil {
		wd.t.Fatal(err)
	}
	saved, err := m.MarshalBinary()
	if err != nil {
		wd.t.Fatal(err)
	}
	if err := wd.store().PutRoom(context.Background(), &store.Room{ID: room, Status: store.RoomServing, Machine: saved, Data: []byte("{}")}); err != nil {
		wd.t.Fatal(err)
	}
}

func TestOwnerOnPostgres(t *testing.T) {
	cfg := storetest.Postgres(t)
	ctx := t.Context()
	d := &doctor{st: storetest.Open(t, cfg, nil)}
	look := func() Result {
		r := Result{Status: OK}
		probeOwner(ctx, d, &r)
		return r
	}
	if r := look(); r.Status != OK || !strings.Contains(r.Detail, "none at the moment") {
		t.Errorf("before any process: %+v", r)
	}
	works, err := store.Open(ctx, cfg, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if err := works.Own(ctx); err != nil {
		t.Fatal(err)
	}
	if r := look(); r.Status != OK || !strings.Contains(r.Detail, "one process works") {
		t.Errorf("while one works: %+v", r)
	}
	if err := works.Close(); err != nil { // as when it is killed
		t.Fatal(err)
	}
	deadline, tick := time.NewTimer(patience.Hang), time.NewTicker(20*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for { // PostgreSQL takes a moment to see it
		r := look()
		if r.Status == Warn {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("after it was killed: %+v", r)
		case <-tick.C:
		}
	}
}

func registrationText(t *testing.T, wd *world) string {
	t.Helper()
	text, err := os.ReadFile(wd.registration())
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

func TestFrozenRooms(t *testing.T) {
	for _, row := range []struct {
		frozen []id.RoomID
		want   string
	}{
		{[]id.RoomID{"!ice:mls.test"}, "1 room is frozen: !ice:mls.test"},
		{[]id.RoomID{"!ice:mls.test", "!snow:mls.test"}, "2 rooms are frozen: !ice:mls.test, !snow:mls.test"},
	} {
		var r Result
		r.sequencers(row.frozen, nil, 3)
		if r.Status != Warn || r.Detail != row.want {
			t.Errorf("%+v, want %q", r, row.want)
		}
		for _, part := range []string{"`mls-proxy era ROOM SERVER…`", "no other user's device has come yet: nothing to do", "`matrix-mls epochs ROOM` says what each commit waits for"} {
			if !strings.Contains(r.Next, part) {
				t.Errorf("the next step %q lacks %q", r.Next, part)
			}
		}
	}
}

func TestCountsAreWords(t *testing.T) {
	for n, want := range map[int]string{0: "0 warnings", 1: "1 warning", 2: "2 warnings"} {
		var out bytes.Buffer
		report := &Report{Results: slices.Repeat([]Result{{Status: Warn}}, n)}
		if err := report.WriteText(&out, false); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("\n0 ok, %s, 0 failed, 0 skipped\n", want); !strings.HasSuffix(out.String(), want) {
			t.Errorf("%d warnings: %q", n, out.String())
		}
	}
}

func TestColourIsNeverAlone(t *testing.T) {
	report := newWorld(t).run()
	var plain, coloured bytes.Buffer
	if err := report.WriteText(&plain, false); err != nil {
		t.Fatal(err)
	}
	if err := report.WriteText(&coloured, true); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(plain.String(), "\x1b") || !strings.Contains(coloured.String(), "\x1b[32mok") {
		t.Error("colours are not as asked for")
	}
	if !strings.Contains(plain.String(), "ok    config") {
		t.Errorf("the verdict is no word:\n%s", &plain)
	}
}

// groupListing returns the GroupInfo of a group whose policy lists a module
// under a receipt key.
func groupListing(t *testing.T, bot string, key []byte) []byte {
	t.Helper()
	const suite = mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	sign, err := mls.GenerateSignatureKey(suite, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cred := rooms.Credential{User: "@alice:mls.test", Device: "A", Key: sign.Public()}
	policy := rooms.DefaultPolicy("!r", cred.User, federation.Sequencer{Server: "mls.test", User: bot, ReceiptKey: key})
	extensions, err := rooms.GroupExtensions(policy, nil)
	if err != nil {
		t.Fatal(err)
	}
	group, err := mls.CreateGroup(&mls.Config{Authenticator: rooms.Authenticator{}}, suite, make([]byte, rooms.GroupIDSize), sign, rooms.LeafOptions(cred), extensions)
	if err != nil {
		t.Fatal(err)
	}
	info, err := group.GroupInfo(mls.GroupInfoOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return info
}
