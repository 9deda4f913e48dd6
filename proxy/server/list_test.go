package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// TestMembersComeWholeOrNotAtAll: who reads half of a room's members does not take that for all of them.
func TestMembersComeWholeOrNotAtAll(t *testing.T) {
	const member = `{"type":"m.room.member","state_key":"@a:x","content":{"membership":"join"}}`
	many := strings.Repeat(member+",", 5000)
	for _, tt := range []struct {
		name   string
		reply  func(w http.ResponseWriter)
		status int
		body   string // "": the answer breaks off
	}{
		{"all", func(w http.ResponseWriter) { fmt.Fprint(w, `{"chunk":[`+many+member+`]}`) }, 200, `{"chunk":[` + many + member + `]}`},
		{"a refusal", func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"errcode":"M_FORBIDDEN"}`)
		}, 403, `{"errcode":"M_FORBIDDEN"}`},
		{"no list", func(w http.ResponseWriter) { fmt.Fprint(w, `[]`) }, 502, `{"errcode":"M_UNKNOWN","error":"mls-proxy: the homeserver's answer cannot be read"}`},
		{"half of them", func(w http.ResponseWriter) { fmt.Fprint(w, `{"chunk":[`+many) }, 200, ""},
		{"a broken connection", func(w http.ResponseWriter) {
			fmt.Fprint(w, `{"chunk":[`+many)
			panic(http.ErrAbortHandler)
		}, 200, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if got, want := r.URL.String()+" "+r.Header.Get("Authorization"), "/_matrix/client/v3/rooms/!r:x/members?at=t Bearer secret"; got != want {
					t.Errorf("asked for %s, want %s", got, want)
				}
				tt.reply(w)
			}))
			defer hs.Close()
			base, err := url.Parse(hs.URL)
			if err != nil {
				t.Fatal(err)
			}
			s := New(Options{Homeserver: base, Log: zerolog.Nop()})
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r = r.WithContext(context.WithValue(r.Context(), pathKey{}, r.URL.Path))
				s.list(w, r, &session{}, "!r:x", "chunk")
			}))
			defer front.Close()
			resp, err := http.Get(front.URL + "/_matrix/client/v3/rooms/!r:x/members?at=t&access_token=secret")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.status || (err != nil) != (tt.body == "") || err == nil && string(body) != tt.body {
				t.Errorf("%s, %d bytes, %v: %.200s", resp.Status, len(body), err, body)
			}
		})
	}
}

func TestAnAnswerThatIsTooLargeIsSaidToBe(t *testing.T) {
	w := httptest.NewRecorder()
	s := New(Options{Homeserver: &url.URL{Scheme: "http", Host: "x"}, Log: zerolog.Nop()})
	s.failed(w, httptest.NewRequestWithContext(t.Context(), "GET", "http://localhost/", nil), fmt.Errorf("asked: %w", errTooLarge))
	if w.Code != http.StatusBadGateway || code(w.Body.String()) != "M_TOO_LARGE" || !strings.Contains(w.Body.String(), "64 MiB") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
