package server

import (
	"context"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/matrix-mls/matrix-mls/proxy/route"
)

// What the homeserver says stands at the proxy's own address, which is this
// machine's. A page of its making there could register a service worker, which
// answers in the proxy's place from then on, over restarts, and asks the proxy for
// whatever it likes. So nothing of it is a page or a script: its type and its
// headers are the proxy's to choose, a browser that takes it for a page all the
// same is to put it into a sandbox, and one that asks for a script gets none. The
// status page has an address of its own besides.

// sandbox is for all that is no page of the proxy's own.
const sandbox = "sandbox; default-src 'none'; frame-ancestors 'none'"

// fileSandbox is for files, which a browser may show by themselves.
const fileSandbox = "sandbox; default-src 'none'; script-src 'none'; style-src 'unsafe-inline'; media-src 'self'"

// kept are the homeserver's headers that go on to the client.
var kept = []string{
	"Accept-Ranges", "Cache-Control", "Content-Encoding", "Content-Length", "Content-Range", "Etag", "Expires", "Last-Modified", "Retry-After",
}

// keep drops the headers that are not listed in kept or also.
func keep(h http.Header, also ...string) {
	for name := range h {
		if !slices.Contains(kept, name) && !slices.Contains(also, name) {
			h.Del(name)
		}
	}
}

// onlyJSON makes JSON of an answer, whatever it is.
func onlyJSON(resp *http.Response) {
	keep(resp.Header)
	resp.Header.Set("Content-Type", "application/json")
}

// onlyFile makes of an answer a file that is shown or saved, and does nothing. A
// homeserver may send the client elsewhere for it (MSC3860).
func onlyFile(resp *http.Response) {
	if resp.StatusCode >= http.StatusMultipleChoices {
		also := []string{}
		if resp.StatusCode < http.StatusBadRequest {
			also = append(also, "Location")
		}
		keep(resp.Header, also...)
		resp.Header.Set("Content-Type", "application/json")
		return
	}
	kind, disposition := shownAs(resp.Header.Get("Content-Type"))
	said, params, _ := mime.ParseMediaType(resp.Header.Get("Content-Disposition"))
	if said != "" && said != "inline" {
		disposition = "attachment"
	}
	if name := params["filename"]; name != "" {
		if named := mime.FormatMediaType(disposition, map[string]string{"filename": name}); named != "" {
			disposition = named
		}
	}
	keep(resp.Header)
	resp.Header.Set("Content-Type", kind)
	resp.Header.Set("Content-Disposition", disposition)
}

// mayBe tells whether a browser may use what is at a path as it says that it will
// (Fetch Metadata Request Headers, Section 2.1; Service Workers, "Service-Worker").
// A request without these is a program's, or an old browser's.
func mayBe(r *http.Request, kind route.Kind) bool {
	if r.Header.Get("Service-Worker") != "" {
		return false
	}
	switch strings.ToLower(r.Header.Get("Sec-Fetch-Dest")) {
	case "", "empty":
		return true
	case "document":
		return kind == route.DownloadMedia || kind == route.SSO || kind == route.Page
	case "image", "audio", "video", "track":
		return kind == route.DownloadMedia
	}
	return false
}

type untracedKey struct{}

// untraced makes requests without what package httputil notes of them: it hands on
// an answer that comes before the answer (status 1xx) with all its headers, and
// takes those of the proxy's own away then.
type untraced struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (u untraced) RoundTrip(r *http.Request) (*http.Response, error) {
	if ctx, ok := r.Context().Value(untracedKey{}).(context.Context); ok {
		r = r.WithContext(ctx)
	}
	return u.RoundTripper.RoundTrip(r)
}
