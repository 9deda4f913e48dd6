package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// Guard is an http.RoundTripper that lets no plaintext message event out to an
// MLS room: a request to send one is turned into the request to send its
// ciphertext. Requests that it does not know how to encrypt are refused.
type Guard struct {
	Client *Client
	Base   http.RoundTripper // http.DefaultTransport if nil
}

var _ http.RoundTripper = (*Guard)(nil)

// maxGuardedBody bounds the content of an event that the guard encrypts.
const maxGuardedBody = 1 << 20

// RoundTrip implements http.RoundTripper.
func (g *Guard) RoundTrip(req *http.Request) (*http.Response, error) {
	base := g.Base
	if base == nil {
		base = http.DefaultTransport
	}
	target, ok := parseSend(req.URL)
	if !ok || req.Method != http.MethodPut || !g.Client.IsMLS(target.room) {
		return base.RoundTrip(req)
	}
	body, err := readBody(req)
	if err != nil {
		return nil, err
	}
	switch {
	case target.eventType == rooms.TypeEncrypted && algorithmOf(body),
		strings.HasPrefix(target.eventType, rooms.Prefix),
		target.eventType == "m.room.redaction":
		return base.RoundTrip(withBody(req, body))
	case target.eventType == rooms.TypeEncrypted:
		return nil, fmt.Errorf("client: guard: %s: an m.room.encrypted event of another algorithm is bound for an MLS room", target.room)
	}
	content, err := g.Client.EncryptEvent(req.Context(), target.room, target.eventType, json.RawMessage(body))
	if err != nil {
		return nil, fmt.Errorf("client: guard: %s into %s: %w", target.eventType, target.room, err)
	}
	out := withBody(req, content)
	out.URL = target.as(req.URL, rooms.TypeEncrypted)
	return base.RoundTrip(out)
}

// sendTarget is a PUT …/rooms/{room}/send/{type}/{txn}.
type sendTarget struct {
	segments  []string // escaped
	at        int      // index of the type
	room      id.RoomID
	eventType string
}

// parseSend recognises the path of a request to send a message event, under
// any prefix and version of the client-server API.
func parseSend(u *url.URL) (sendTarget, bool) {
	segments := strings.Split(u.EscapedPath(), "/")
	for i := 0; i+4 < len(segments); i++ {
		if segments[i] != "rooms" || segments[i+2] != "send" {
			continue
		}
		room, err1 := url.PathUnescape(segments[i+1])
		eventType, err2 := url.PathUnescape(segments[i+3])
		if err1 != nil || err2 != nil || !strings.HasPrefix(room, "!") {
			continue
		}
		return sendTarget{segments: segments, at: i + 3, room: id.RoomID(room), eventType: eventType}, true
	}
	return sendTarget{}, false
}

// as returns the URL with another event type.
func (t sendTarget) as(u *url.URL, eventType string) *url.URL {
	segments := append([]string(nil), t.segments...)
	segments[t.at] = url.PathEscape(eventType)
	out := *u
	out.RawPath = strings.Join(segments, "/")
	out.Path, _ = url.PathUnescape(out.RawPath)
	return &out
}

func readBody(req *http.Request) ([]byte, error) {
	if req.Body == nil {
		return nil, errors.New("client: guard: a request to send an event has no body")
	}
	defer req.Body.Close()
	body, err := io.ReadAll(io.LimitReader(req.Body, maxGuardedBody+1))
	if err != nil {
		return nil, fmt.Errorf("client: guard: %w", err)
	}
	if len(body) > maxGuardedBody {
		return nil, fmt.Errorf("client: guard: %w", ErrTooLarge)
	}
	return body, nil
}

func withBody(req *http.Request, body []byte) *http.Request {
	out := req.Clone(req.Context())
	out.Body = io.NopCloser(bytes.NewReader(body))
	out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	out.ContentLength = int64(len(body))
	out.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return out
}
