package homeserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/internal/patience"
)

const asToken = "as-token-planted-0123456789"

// server is a homeserver that answers as a test says, and remembers what it
// was asked.
type server struct {
	*httptest.Server
	mu     sync.Mutex
	asked  []string
	answer func(w http.ResponseWriter, r *http.Request)
}

func newServer(t *testing.T, answer func(w http.ResponseWriter, r *http.Request)) (*server, *Client) {
	t.Helper()
	s := &server{answer: answer}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		s.mu.Lock()
		s.asked = append(s.asked, r.Method+" "+r.URL.EscapedPath()+" "+string(body))
		s.mu.Unlock()
		if strings.HasSuffix(r.URL.Path, "/versions") {
			if r.Header.Get("Authorization") != "" || r.URL.RawQuery != "" {
				t.Error("the token was shown where none is needed")
			}
		} else if r.Header.Get("Authorization") != "Bearer "+asToken {
			t.Errorf("%s %s without the token", r.Method, r.URL.Path)
		}
		if r.URL.Query().Get("access_token") != "" {
			t.Error("the token stands in the query")
		}
		w.Header().Set("Content-Type", "application/json")
		s.answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s, client(t, s.URL, patience.Hang)
}

func client(t *testing.T, address string, timeout time.Duration) *Client {
	t.Helper()
	c, err := New(Options{
		Address: address, Domain: "mls.test", Timeout: timeout, DeviceID: "MLSMODULE", Software: Auto, ResponseLimit: 1 << 20,
		Registration: NewRegistration("matrix-mls", "http://module", "_mls_bot", asToken, "hs-token-planted", []string{"@_mls_.*"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func fails(status int, header, body string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		if header != "" {
			w.Header().Set("Retry-After", header)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}
}

func TestErrorsAreTyped(t *testing.T) {
	for name, row := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		kind   error
		after  time.Duration
		retry  bool
	}{
		"rate limit in the body":     {fails(429, "", `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":2500}`), ErrRateLimited, 2500 * time.Millisecond, true},
		"rate limit in the header":   {fails(429, "3", `{"errcode":"M_LIMIT_EXCEEDED"}`), ErrRateLimited, 3 * time.Second, true},
		"rate limit without a time":  {fails(429, "", `{"errcode":"M_LIMIT_EXCEEDED"}`), ErrRateLimited, time.Second, true},
		"rate limit for a year":      {fails(429, "", `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":31536000000}`), ErrRateLimited, time.Second, true},
		"rate limit for an hour":     {fails(429, "3600", `{}`), ErrRateLimited, maxWait, true},
		"rate limit below zero":      {fails(429, "", `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":-5}`), ErrRateLimited, time.Second, true},
		"not found":                  {fails(404, "", `{"errcode":"M_NOT_FOUND"}`), ErrNotFound, 0, false},
		"forbidden":                  {fails(403, "", `{"errcode":"M_FORBIDDEN","error":"not in room"}`), ErrForbidden, 0, false},
		"token":                      {fails(401, "", `{"errcode":"M_UNKNOWN_TOKEN"}`), ErrUnauthorized, 0, true},
		"token as Dendrite says it":  {fails(403, "", `{"errcode":"M_UNKNOWN_TOKEN"}`), ErrUnauthorized, 0, true},
		"too large":                  {fails(413, "", `{"errcode":"M_TOO_LARGE"}`), ErrTooLarge, 0, false},
		"too large, Dendrite's code": {fails(413, "", `{"errcode":"M_BAD_JSON"}`), ErrTooLarge, 0, false},
		"malformed":                  {fails(400, "", `{"errcode":"M_BAD_JSON"}`), ErrBadRequest, 0, false},
		"gateway":                    {fails(502, "", `<html>bad gateway</html>`), ErrServer, 0, true},
		"no JSON":                    {fails(200, "", `<html>`), ErrServer, 0, true},
		"answer too long":            {fails(200, "", `{"event_id":"`+strings.Repeat("x", 2<<20)+`"}`), ErrTooLarge, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := newServer(t, row.answer)
			_, err := c.SendEvent(t.Context(), "!r:mls.test", "x", "txn", json.RawMessage(`{"planted":"content-0123"}`))
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, row.kind) {
				t.Fatalf("error %v, want %v", err, row.kind)
			}
			if e.After != row.after || e.Retry() != row.retry || IsTemporary(err) != row.retry {
				t.Errorf("after %v, retry %v; want %v, %v", e.After, e.Retry(), row.after, row.retry)
			}
			if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, asToken) || strings.Contains(text, "content-0123") {
				t.Errorf("the error shows too much: %s", text)
			}
			if len(s.asked) != 1 {
				t.Errorf("%d requests, want one: who calls decides on the next", len(s.asked))
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	s, _ := newServer(t, nil)
	address := s.URL
	s.Close()
	c := client(t, address, patience.Hang)
	_, err := c.Versions(t.Context())
	if !errors.Is(err, ErrUnreachable) || !IsTemporary(err) {
		t.Errorf("error %v, want ErrUnreachable", err)
	}
	if strings.Contains(err.Error(), "user_id=") || strings.Contains(err.Error(), asToken) {
		t.Errorf("the error shows the request: %v", err)
	}
}

func TestSlowHomeserverIsGivenUp(t *testing.T) {
	release := make(chan struct{})
	s, _ := newServer(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	c := client(t, s.URL, 50*time.Millisecond)
	if _, _, err := c.Whoami(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("error %v, want ErrUnreachable", err)
	}
}

func TestRequests(t *testing.T) {
	s, c := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "/messages"):
			fmt.Fprint(w, `{"start":"s","end":"e","chunk":[
				{"event_id":"$1","room_id":"!r","sender":"@a:b","type":"t","content":{},"origin_server_ts":1000},
				{"event_id":"$bad"},
				{"event_id":"$2","sender":"@a:b","type":"t","state_key":"k","content":{"x":1}},
				{"event_id":"$3","room_id":"!other","sender":"@a:b","type":"t","content":{}}]}`)
		case strings.Contains(r.URL.Path, "/event/"):
			fmt.Fprint(w, `{"event_id":"$1","room_id":"!r","sender":"@a:b","type":"t","content":{}}`)
		case strings.Contains(r.URL.Path, "/joined_rooms"):
			fmt.Fprint(w, `{"joined_rooms":["!a","!b"]}`)
		default:
			fmt.Fprint(w, `{"event_id":"$sent","content_uri":"mxc://mls.test/abc"}`)
		}
	})
	ctx := t.Context()
	if event, err := c.SendEvent(ctx, "!r:x", "io.t", "txn/1", json.RawMessage(`{"a":1}`)); err != nil || event != "$sent" {
		t.Error(event, err)
	}
	if _, err := c.SendState(ctx, "!r:x", "io.t", "@bot:x", json.RawMessage(`{"b":2}`)); err != nil {
		t.Error(err)
	}
	page, err := c.Messages(ctx, "!r", MessagesRequest{Dir: Forward, From: "t", Types: []string{"a"}})
	if err != nil || len(page.Events) != 2 || page.Events[1].ID != "$2" || page.Events[1].Room != "!r" || page.End != "e" {
		t.Errorf("messages: %+v, %v", page, err)
	}
	if got, err := c.Event(ctx, "!r", "$1"); err != nil || got.ID != "$1" {
		t.Error(got, err)
	}
	if _, err := c.Event(ctx, "!r", "$2"); !errors.Is(err, ErrServer) {
		t.Errorf("another event than asked for was taken: %v", err)
	}
	if list, err := c.JoinedRooms(ctx); err != nil || len(list) != 2 {
		t.Error(list, err)
	}
	if err := c.Join(ctx, "!r:x", []string{"a.test", "b.test"}); err != nil {
		t.Error(err)
	}
	if uri, err := c.Upload(ctx, []byte("tree"), "application/octet-stream"); err != nil || uri != "mxc://mls.test/abc" {
		t.Error(uri, err)
	}
	want := []string{
		`PUT /_matrix/client/v3/rooms/%21r:x/send/io.t/txn%2F1 {"a":1}`,
		`PUT /_matrix/client/v3/rooms/%21r:x/state/io.t/@bot:x {"b":2}`,
		`GET /_matrix/client/v3/rooms/%21r/messages `,
		`GET /_matrix/client/v3/rooms/%21r/event/$1 `,
		`GET /_matrix/client/v3/rooms/%21r/event/$2 `,
		`GET /_matrix/client/v3/joined_rooms `,
		`POST /_matrix/client/v3/join/%21r:x {}`,
		`POST /_matrix/media/v3/upload tree`,
	}
	if diff := cmp.Diff(want, s.asked); diff != "" {
		t.Error(diff)
	}
}

func TestDownloadIsBounded(t *testing.T) {
	body := strings.Repeat("x", 5000)
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request){
		"announced":   func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) },
		"unannounced": func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); fmt.Fprint(w, body) },
	} {
		t.Run(name, func(t *testing.T) {
			_, c := newServer(t, answer)
			if got, err := c.Download(t.Context(), "mxc://a/b", 5000); err != nil || len(got) != 5000 {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if _, err := c.Download(t.Context(), "mxc://a/b", 4999); !errors.Is(err, ErrTooLarge) {
				t.Errorf("error %v, want ErrTooLarge", err)
			}
		})
	}
	_, c := newServer(t, nil)
	for _, uri := range []id.ContentURIString{"", "http://a/b", "mxc://a", "mxc:///b"} {
		if _, err := c.Download(t.Context(), uri, 10); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%q: %v", uri, err)
		}
	}
}

func TestEnsureBot(t *testing.T) {
	for name, row := range map[string]struct {
		whoami, devices, register, login func(http.ResponseWriter, *http.Request)
		want                             error
		asks, never                      []string
	}{
		"Synapse, fresh": {
			whoami: fails(200, "", `{"user_id":"@_mls_bot:mls.test"}`), register: fails(200, "", `{"user_id":"@_mls_bot:mls.test"}`),
			devices: fails(201, "", `{}`), asks: []string{"register", "devices/MLSMODULE"}, never: []string{"/login"},
		},
		"Dendrite": {
			whoami:   fails(200, "", `{"user_id":"@_mls_bot:mls.test","device_id":"_mls_bot"}`),
			register: fails(400, "", `{"errcode":"M_USER_IN_USE"}`), devices: fails(404, "", `{"errcode":"M_NOT_FOUND"}`),
			login: fails(200, "", `{"access_token":"another","device_id":"MLSMODULE"}`), asks: []string{"/login"},
		},
		"device there": {
			whoami:   fails(200, "", `{"user_id":"@_mls_bot:mls.test","device_id":"MLSMODULE"}`),
			register: fails(400, "", `{"errcode":"M_USER_IN_USE"}`), never: []string{"/login", "devices/"},
		},
		"no device to be had": {
			whoami:   fails(200, "", `{"user_id":"@_mls_bot:mls.test"}`),
			register: fails(400, "", `{"errcode":"M_USER_IN_USE"}`), devices: fails(404, "", `{}`), login: fails(403, "", `{"errcode":"M_FORBIDDEN"}`),
		},
		"registration not loaded": {
			whoami: fails(401, "", `{"errcode":"M_UNKNOWN_TOKEN"}`), register: fails(401, "", `{"errcode":"M_UNKNOWN_TOKEN"}`), want: ErrUnauthorized,
		},
		"another's token": {
			whoami: fails(200, "", `{"user_id":"@other:mls.test"}`), register: fails(400, "", `{"errcode":"M_USER_IN_USE"}`), want: ErrUnauthorized,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				handlers := map[string]func(http.ResponseWriter, *http.Request){
					"whoami": row.whoami, "devices/": row.devices, "register": row.register, "login": row.login,
					"profile": fails(200, "", `{"displayname":"MLS"}`),
				}
				for part, h := range handlers {
					if strings.Contains(r.URL.Path, part) && h != nil {
						h(w, r)
						return
					}
				}
				t.Errorf("unexpected request %s %s", r.Method, r.URL.Path)
			})
			err := c.EnsureBot(t.Context(), "MLS")
			if !errors.Is(err, row.want) {
				t.Fatalf("EnsureBot = %v, want %v", err, row.want)
			}
			all := strings.Join(s.asked, "\n")
			for _, part := range row.asks {
				if !strings.Contains(all, part) {
					t.Errorf("never asked for %s", part)
				}
			}
			for _, part := range row.never {
				if strings.Contains(all, part) {
					t.Errorf("asked for %s", part)
				}
			}
			if strings.Contains(all, "register") && !strings.Contains(all, `"inhibit_login":true`) {
				t.Error("a registration that logs in is refused by Synapse")
			}
		})
	}
}

func TestNothingOfARequestIsLogged(t *testing.T) {
	var out bytes.Buffer
	log := zerolog.New(&out).Level(zerolog.TraceLevel)
	ctx := log.WithContext(context.Background())
	_, c := newServer(t, fails(403, "", `{"errcode":"M_FORBIDDEN","error":"no"}`))
	if _, err := c.SendEvent(ctx, "!r", "t", "x", json.RawMessage(`{"planted":"content-0123"}`)); err == nil {
		t.Fatal("no error")
	}
	if err := c.SetProfileField(ctx, "field", "content-0123"); err == nil {
		t.Fatal("no error")
	}
	if !strings.Contains(out.String(), "send event") {
		t.Fatalf("the requests were not logged at trace: %s", &out)
	}
	for _, secret := range []string{asToken, "content-0123", "hs-token"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("the log holds %s:\n%s", secret, &out)
		}
	}
}

func TestVersionsReadsTheClock(t *testing.T) {
	_, c := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", "Mon, 23 Nov 2026 16:00:00 GMT")
		w.Header().Set("Server", "Synapse/1.163.2")
		fmt.Fprint(w, `{"versions":["v1.1","v1.15"],"unstable_features":{"a":true}}`)
	})
	v, err := c.Versions(t.Context())
	if err != nil || v.Date.Unix() != 1795449600 || v.Server != "Synapse/1.163.2" || len(v.Spec) != 2 || !v.Features["a"] {
		t.Errorf("Versions = %+v, %v", v, err)
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add([]byte(`{"event_id":"$1","room_id":"!r","sender":"@a:b","type":"t","state_key":"","content":{},"origin_server_ts":1}`))
	f.Add([]byte(`{"event_id":"$1","content":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		ev, err := ParseEvent(raw, "")
		if err != nil {
			return
		}
		again, err := ParseEvent(ev.Raw, ev.Room)
		if err != nil || again.ID != ev.ID || again.Type != ev.Type {
			t.Errorf("an event that was taken is not taken again: %v", err)
		}
	})
}
