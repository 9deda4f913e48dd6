package appservice

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/federation/picture"
)

// wholeRoom is as room version 12 names rooms.
const wholeRoom = "!cGXRWRoWaOzrZ9ag4m6vMn8lwdYzfS1ZEXS4dwmbmeM"

const adminToken = "planted-admin-token-0123"

// look asks for a page.
func (b *bench) look(path string, auth func(r *http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	if auth != nil {
		auth(r)
	}
	w := httptest.NewRecorder()
	b.Handler().ServeHTTP(w, r)
	return w
}

func bearer(token string) func(r *http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

func epochsPath(room string) string { return "/_mls/rooms/" + url.PathEscape(room) + "/epochs" }

func TestPagesForAdmins(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		pair(t, dbCfg) // a room with a group
		cfg := testConfig()
		cfg.Admin.Token = adminToken
		b := newBench(t, dbCfg, cfg, nil)
		for _, room := range []id.RoomID{"!office:mls.test", "!<script>\u202e:mls.test", wholeRoom} {
			if err := b.store.NoteRoom(context.Background(), room, store.RoomJoined); err != nil {
				t.Fatal(err)
			}
		}
		room := epochsPath("!room:mls.test")
		for _, row := range []struct {
			path   string
			status int
			kind   string
			want   []string
		}{
			{"/_mls/", 200, "text/html; charset=utf-8", []string{`<a href="rooms/%21room:mls.test/epochs">!room:mls.test</a>`, "!office:mls.test", "!&lt;script&gt;�:mls.test", "serving", ">" + wholeRoom + "<"}},
			{"/_mls/?page=2", 200, "text/html; charset=utf-8", []string{"No rooms.", "Page before"}},
			{"/_mls/?page=-1", 400, "application/json", nil},
			{room, 200, "text/html; charset=utf-8", []string{"<svg ", "</svg>", "<pre>", "epoch 1", "as the module of mls.test sees it", `href="../../"`}},
			{room + ".svg", 200, "image/svg+xml", []string{"<?xml ", "HEAD, accepted", "accepted by mls.test in ballot 0.0"}},
			{room + ".txt", 200, "text/plain; charset=utf-8", []string{"HEAD, accepted", "the head: @"}},
			{epochsPath("!office:mls.test"), 404, "application/json", []string{"no group yet"}},
			{epochsPath("!none:mls.test"), 404, "application/json", []string{"does not know"}},
			{epochsPath("!a/b"), 404, "application/json", []string{"does not know"}},
			{"/_mls/rooms/", 404, "application/json", nil},
		} {
			w := b.look(row.path, bearer(adminToken))
			if w.Code != row.status || w.Header().Get("Content-Type") != row.kind {
				t.Errorf("%s: %d %s", row.path, w.Code, w.Header().Get("Content-Type"))
			}
			for _, want := range row.want {
				if !strings.Contains(w.Body.String(), want) {
					t.Errorf("%s lacks %q:\n%s", row.path, want, w.Body)
				}
			}
			if row.status != 200 {
				continue // answered as the whole interface does
			}
			for key, want := range map[string]string{
				"Content-Security-Policy": picture.ContentSecurityPolicy(), "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
			} {
				if got := w.Header().Get(key); got != want {
					t.Errorf("%s: %s is %q", row.path, key, got)
				}
			}
			if strings.Contains(w.Body.String(), "<script") || strings.Contains(w.Body.String(), "\u202e") {
				t.Errorf("%s shows a hostile name as it is:\n%s", row.path, w.Body)
			}
		}
	})
}

func TestPagesWantTheToken(t *testing.T) {
	cfg := testConfig()
	cfg.Admin.Token = adminToken
	b := newBench(t, storetest.SQLite(t), cfg, nil)
	refused := 0
	for _, row := range []struct {
		name string
		auth func(r *http.Request)
		want int
	}{
		{"bearer", bearer(adminToken), 200},
		{"basic", func(r *http.Request) { r.SetBasicAuth("whoever", adminToken) }, 200},
		{"basic without a name", func(r *http.Request) { r.SetBasicAuth("", adminToken) }, 200},
		{"none", nil, 401},
		{"empty", bearer(""), 401},
		{"wrong", bearer(adminToken + "x"), 401},
		{"half", bearer(adminToken[:10]), 401},
		{"the homeserver's", bearer(hsToken), 401},
		{"the module's", bearer(cfg.AppService.ASToken), 401},
		{"as a name", func(r *http.Request) { r.SetBasicAuth(adminToken, "") }, 401},
		{"in the query", func(r *http.Request) { r.URL.RawQuery = "access_token=" + adminToken }, 401},
		{"twice", func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer x", "Bearer " + adminToken} }, 401},
		{"malformed", func(r *http.Request) { r.Header.Set("Authorization", "Basic %%%") }, 401},
	} {
		t.Run(row.name, func(t *testing.T) {
			code := "M_UNKNOWN_TOKEN"
			if slices.Contains([]string{"none", "empty", "as a name", "in the query", "twice", "malformed"}, row.name) {
				code = "M_MISSING_TOKEN"
			}
			for _, path := range []string{"/_mls/", epochsPath("!room:mls.test"), epochsPath("!room:mls.test") + ".svg", epochsPath("!room:mls.test") + ".txt"} {
				w := b.look(path, row.auth)
				if row.want == 200 && path != "/_mls/" {
					continue
				}
				if w.Code != row.want {
					t.Errorf("%s: %d", path, w.Code)
				}
				if row.want == 401 {
					if !strings.Contains(w.Body.String(), `"`+code+`"`) {
						t.Errorf("%s: %s, want %s", path, w.Body, code)
					}
					refused++
					if !strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Basic ") {
						t.Errorf("%s: a browser is not told to ask", path)
					}
				}
			}
		})
	}
	if got := b.rejected(ruleAdminToken); int(got) != refused {
		t.Errorf("%v refusals counted, want %d", got, refused)
	}
	if w := b.look("/_matrix/mau/live", nil); w.Code != 200 {
		t.Errorf("live: %d", w.Code)
	}
}

func TestNoPagesWithoutAToken(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	for _, auth := range []func(r *http.Request){nil, bearer(""), func(r *http.Request) { r.SetBasicAuth("", "") }} {
		if w := b.look("/_mls/", auth); w.Code != 404 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
}

func TestNoAdminTokenReachesTheLog(t *testing.T) {
	cfg, log := testConfig(), new(logBuffer)
	cfg.Admin.Token = adminToken
	b := newBench(t, storetest.SQLite(t), cfg, log)
	for _, auth := range []func(r *http.Request){nil, bearer(adminToken), bearer(adminToken + "x"), func(r *http.Request) { r.SetBasicAuth("x", adminToken) }} {
		for _, path := range []string{"/_mls/", epochsPath("!none:mls.test"), "/_mls/?token=" + adminToken} {
			if w := b.look(path, auth); strings.Contains(w.Body.String(), adminToken) {
				t.Errorf("%s tells the token:\n%s", path, w.Body)
			}
		}
	}
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	if w := b.look("/_mls/", bearer(adminToken)); w.Code != 500 {
		t.Errorf("without a database: %d", w.Code)
	}
	if text := log.String(); !strings.Contains(text, "Could not make a page") || strings.Contains(text, adminToken) {
		t.Errorf("the log: %s", text)
	}
}
