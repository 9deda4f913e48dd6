package server

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// evil are headers of a homeserver that wants something of a browser.
var evil = map[string]string{
	"Service-Worker-Allowed": "/", "Set-Cookie": "a=b", "Refresh": "0; url=http://evil.example", "Link": "</x>; rel=preload; as=script", "Clear-Site-Data": `"*"`,
	"Content-Security-Policy": "default-src *", "Content-Security-Policy-Report-Only": "default-src 'none'; report-uri http://evil.example", "X-Content-Type-Options": "none",
	"Www-Authenticate": `Basic realm="your password"`, "Access-Control-Allow-Origin": "*", "Alt-Svc": `h2=":1"`, "Location": "http://evil.example", "X-Anything": "x",
}

// TestNothingOfTheHomeserversIsAPage: nor a script, nor does it set anything in a browser, whatever it says, in an answer
// that is handed on, one that is read, a file, a refusal.
func TestNothingOfTheHomeserversIsAPage(t *testing.T) {
	const versions, capabilities, file, thumbnail = "/_matrix/client/versions", "/_matrix/client/v3/capabilities", "/_matrix/media/v3/download/evil/page", "/_matrix/client/v1/media/thumbnail/evil/page"
	for _, tt := range []struct {
		name, path  string
		status      int
		typ, saved  string // of the homeserver
		want, wants string // type and disposition of the proxy
	}{
		{"an answer that is read", versions, 200, "text/html", "", "application/json", ""},
		{"an answer that is handed on", capabilities, 200, "text/html", "", "application/json", ""},
		{"a script", capabilities, 200, "text/javascript", "", "application/json", ""},
		{"without a type", capabilities, 200, "", "", "application/json", ""},
		{"a refusal", capabilities, 404, "text/html", "", "application/json", ""},
		{"a refusal that is read", versions, 500, "text/html", "", "application/json", ""},
		{"elsewhere", capabilities, 302, "text/html", "", "application/json", ""},
		{"a file that is a page", file, 200, "text/html; charset=utf-8", "inline", "application/octet-stream", "attachment"},
		{"a file that is a script", file, 200, "text/javascript", "", "application/octet-stream", "attachment"},
		{"another that is", file, 200, "application/javascript", "", "application/octet-stream", "attachment"},
		{"a picture that is a document", file, 200, "image/svg+xml", "inline; filename=a.svg", "application/octet-stream", `attachment; filename=a.svg`},
		{"a file without a type", file, 200, "", "", "application/octet-stream", "attachment"},
		{"a picture", file, 200, "image/png", `inline; filename="a b.png"`, "image/png", `inline; filename="a b.png"`},
		{"a part of a film", file, 206, "video/mp4", "", "video/mp4", "inline"},
		{"a name of other letters", file, 200, "image/png", "inline; filename*=utf-8''%C3%A4.png", "image/png", "inline; filename*=utf-8''%C3%A4.png"},
		{"a picture to be saved", file, 200, "image/png", "attachment; filename=a.png", "image/png", "attachment; filename=a.png"},
		{"a thumbnail", thumbnail, 200, "image/jpeg", "", "image/jpeg", "inline"},
		{"a file that is refused", file, 404, "text/html", "", "application/json", ""},
		{"a file elsewhere", file, 307, "text/html", "", "application/json", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.reply = func(out http.ResponseWriter, _ *http.Request) {
				for name, value := range evil {
					out.Header().Set(name, value)
				}
				out.WriteHeader(http.StatusEarlyHints)
				out.Header()["Content-Type"] = nil
				if tt.typ != "" {
					out.Header().Set("Content-Type", tt.typ)
				}
				if tt.saved != "" {
					out.Header().Set("Content-Disposition", tt.saved)
				}
				out.Header().Set("Etag", `"1"`)
				out.WriteHeader(tt.status)
				fmt.Fprint(out, `{}`)
			}
			follow := http.DefaultClient.CheckRedirect
			http.DefaultClient.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			defer func() { http.DefaultClient.CheckRedirect = follow }()
			resp, _ := w.do("GET", tt.path, "Origin", "http://localhost:8080")
			h := resp.Header
			if resp.StatusCode != tt.status || h.Get("Content-Type") != tt.want || h.Get("Content-Disposition") != tt.wants {
				t.Errorf("%d %q %q, want %d %q %q", resp.StatusCode, h.Get("Content-Type"), h.Get("Content-Disposition"), tt.status, tt.want, tt.wants)
			}
			for _, policy := range h.Values("Content-Security-Policy") {
				if !strings.HasPrefix(policy, "sandbox; default-src 'none'") {
					t.Errorf("a page may do %q", policy)
				}
			}
			if len(h.Values("Content-Security-Policy")) != 1 || strings.Join(h.Values("X-Content-Type-Options"), " ") != "nosniff" || strings.Join(h.Values("Access-Control-Allow-Origin"), " ") != "http://localhost:8080" {
				t.Errorf("headers %v", h)
			}
			for name, value := range evil {
				// A file may lie elsewhere (MSC3860).
				if h.Get(name) == value && (name != "Location" || tt.name != "a file elsewhere") {
					t.Errorf("%s goes through", name)
				}
			}
			if streamed := tt.path != versions; streamed && h.Get("Etag") != `"1"` {
				t.Error("what clients need of the headers does not go through")
			}
		})
	}
}

// TestABrowserGetsNeitherPagesNorScripts: where a client is answered, but for files, which may be looked at, and logins.
func TestABrowserGetsNeitherPagesNorScripts(t *testing.T) {
	const capabilities, file, sso, stage = "/_matrix/client/v3/capabilities", "/_matrix/media/v3/download/hs/file", "/_matrix/client/v3/login/sso/redirect?redirectUrl=x", "/_matrix/client/v3/auth/m.login.recaptcha/fallback/web?session=x"
	follow := http.DefaultClient.CheckRedirect
	http.DefaultClient.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	defer func() { http.DefaultClient.CheckRedirect = follow }()
	for _, tt := range []struct {
		path, header, value string
		status              int
	}{
		{capabilities, "Sec-Fetch-Site", "cross-site", 200},
		{capabilities, "Sec-Fetch-Dest", "empty", 200},
		{capabilities, "Sec-Fetch-Dest", "document", 403},
		{capabilities, "Sec-Fetch-Dest", "script", 403},
		{capabilities, "Sec-Fetch-Dest", "image", 403},
		{capabilities, "Sec-Fetch-Dest", "style", 403},
		{"/.well-known/matrix/client", "Sec-Fetch-Dest", "document", 403},
		{"/_matrix/client/versions", "Service-Worker", "script", 403},
		{file, "Sec-Fetch-Dest", "empty", 200},
		{file, "Sec-Fetch-Dest", "image", 200},
		{file, "Sec-Fetch-Dest", "video", 200},
		{file, "Sec-Fetch-Dest", "audio", 200},
		{file, "Sec-Fetch-Dest", "document", 200},
		{file, "Sec-Fetch-Dest", "iframe", 403},
		{file, "Sec-Fetch-Dest", "script", 403},
		{file, "Sec-Fetch-Dest", "serviceworker", 403},
		{file, "Sec-Fetch-Dest", "worker", 403},
		{file, "Sec-Fetch-Dest", "object", 403},
		{file, "Service-Worker", "script", 403},
		{sso, "Sec-Fetch-Dest", "document", 302},
		{sso, "Service-Worker", "script", 403},
		{stage, "Sec-Fetch-Dest", "document", 302},
	} {
		w := newWorld(t)
		resp, body := w.do("GET", tt.path, tt.header, tt.value)
		if resp.StatusCode != tt.status {
			t.Errorf("%s, %s %s: %d %s, want %d", tt.path, tt.header, tt.value, resp.StatusCode, body, tt.status)
		}
		if tt.status == http.StatusForbidden && len(w.asked) != 0 {
			t.Errorf("%s, %s %s: the homeserver was asked %q", tt.path, tt.header, tt.value, w.asked)
		}
	}
}

// TestAHomeserverDoesNotLeaveHTTP: what it says over another protocol, nobody looks at.
func TestAHomeserverDoesNotLeaveHTTP(t *testing.T) {
	w := newWorld(t)
	var asked http.Header
	w.reply = func(out http.ResponseWriter, r *http.Request) {
		asked = r.Header
		out.Header().Set("Connection", "Upgrade")
		out.Header().Set("Upgrade", "websocket")
		out.WriteHeader(http.StatusSwitchingProtocols)
	}
	resp, body := w.do("GET", "/_matrix/client/v3/capabilities", "Connection", "Upgrade", "Upgrade", "websocket")
	if resp.StatusCode != http.StatusBadGateway || code(body) != "M_UNKNOWN" || asked.Get("Upgrade") != "" {
		t.Errorf("%d %s, asked with %v", resp.StatusCode, body, asked)
	}
}
