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
// ciphertext. Requests that it does not know how to encrypt are refused, and so
// are those into a room of which nothing is known yet and that turns out to be
// an MLS room, and those that the homeserver is to send later.
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
	if !ok || req.Method == http.MethodGet || req.Method == http.MethodHead || req.Method == http.MethodOptions {
		return base.RoundTrip(req)
	}
	mls, known := g.Client.encryptionOf(target.room)
	if !known {
		// No state of this room has come by /sync yet.
		var err error
		if mls, err = g.ask(req, base, target); err != nil {
			return nil, err
		}
	}
	if !mls {
		if IsDelayed(req.URL.Query()) {
			return nil, fmt.Errorf("client: guard: %s: a message that is sent later may find an MLS room, and would be in clear there", target.room)
		}
		return base.RoundTrip(req)
	}
	if req.Method != http.MethodPut || !target.txn {
		return nil, fmt.Errorf("client: guard: %s: events go into an MLS room by PUT …/send/{type}/{txnId} only, not by %s", target.room, req.Method)
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

// IsDelayed tells whether the query of a request to send an event asks the homeserver
// to send it later, as it is (MSC4140).
func IsDelayed(query url.Values) bool {
	for key := range query {
		if strings.Contains(key, "delay") {
			return true
		}
	}
	return false
}

// encryptionOf tells whether a room is an MLS room, and whether this device
// knows enough of the room to say so.
func (c *Client) encryptionOf(roomID id.RoomID) (mls, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil {
		return false, c.plain[roomID]
	}
	return r.isMLS(), r.isMLS() || r.state.Known || c.plain[roomID]
}

// maxPlain bounds the rooms that were found unencrypted, or in other hands.
const maxPlain = 10_000

// ask reads the encryption of a room that this device has not synced: a bot
// that has just joined one must not write into it in clear. An answer that it
// is no MLS room is kept; when that changes, /sync says so.
func (g *Guard) ask(req *http.Request, base http.RoundTripper, target sendTarget) (mls bool, err error) {
	fail := func(err error) (bool, error) {
		return false, fmt.Errorf("client: guard: %s: whether the room is encrypted is not known yet, so nothing is sent; try again after the next sync: %w", target.room, err)
	}
	for _, eventType := range []string{rooms.TypeCreate, rooms.TypeEncryption} {
		get := req.Clone(req.Context())
		get.Method, get.Body, get.GetBody, get.ContentLength = http.MethodGet, nil, nil, 0
		get.Header.Del("Content-Type")
		get.Header.Del("Content-Length")
		get.URL = target.state(req.URL, eventType)
		resp, err := base.RoundTrip(get)
		if err != nil {
			return fail(err)
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, rooms.MaxEventSize))
		resp.Body.Close()
		if err != nil {
			return fail(err)
		}
		if err := CheckPlain(eventType, resp.StatusCode, body); err != nil {
			return fail(err)
		}
	}
	g.Client.notePlain(target.room)
	return false, nil
}

// CheckPlain reads a homeserver's answer to GET …/state/{eventType}/ for
// m.room.create and m.room.encryption. Both together show that a room is no MLS
// room if it returns nil for each: whoever changes the encryption of a room that
// was made for MLS does not make it a plain one. The error is [ErrNoGroup] for an
// MLS room.
func CheckPlain(eventType string, status int, body []byte) error {
	var answer map[string]json.RawMessage
	text := func(key string) (s string) {
		_ = json.Unmarshal(answer[key], &s)
		return s
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%s: the homeserver answers %d without JSON", eventType, status)
	}
	switch {
	case status == http.StatusOK && (text("algorithm") == rooms.Algorithm || text(rooms.KeyCreateAlgorithm) == rooms.Algorithm):
		return ErrNoGroup
	case status == http.StatusOK && (eventType == rooms.TypeCreate || text("algorithm") != ""):
		return nil
	case status == http.StatusOK:
		return fmt.Errorf("%s names no algorithm", eventType)
	case status == http.StatusNotFound && text("errcode") == "M_NOT_FOUND" && eventType == rooms.TypeEncryption:
		return nil
	}
	return fmt.Errorf("%s: the homeserver answers %d %q", eventType, status, text("errcode"))
}

func (c *Client) notePlain(roomID id.RoomID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.plain == nil || len(c.plain) >= maxPlain {
		c.plain = map[id.RoomID]bool{}
	}
	c.plain[roomID] = true
}

// sendTarget is a …/rooms/{room}/send/{type}, with or without a transaction id.
type sendTarget struct {
	segments  []string // escaped
	at        int      // index of the type
	room      id.RoomID
	eventType string
	txn       bool
}

// parseSend recognises the path of a request to send a message event, under
// any prefix and version of the client-server API, however it is escaped.
func parseSend(u *url.URL) (sendTarget, bool) {
	segments := strings.Split(u.EscapedPath(), "/")
	plain := make([]string, len(segments))
	for i, segment := range segments {
		var err error
		if plain[i], err = url.PathUnescape(segment); err != nil {
			plain[i] = segment
		}
	}
	for i := 0; i+3 < len(segments); i++ {
		if plain[i] != "rooms" || plain[i+2] != "send" || !strings.HasPrefix(plain[i+1], "!") {
			continue
		}
		return sendTarget{
			segments: segments, at: i + 3, room: id.RoomID(plain[i+1]), eventType: plain[i+3],
			txn: i+4 < len(segments) && segments[i+4] != "",
		}, true
	}
	return sendTarget{}, false
}

// as returns the URL with another event type.
func (t sendTarget) as(u *url.URL, eventType string) *url.URL {
	segments := append([]string(nil), t.segments...)
	segments[t.at] = url.PathEscape(eventType)
	return withPath(u, segments)
}

// state returns the URL of the room's state event of a type.
func (t sendTarget) state(u *url.URL, eventType string) *url.URL {
	segments := append([]string(nil), t.segments[:t.at]...)
	segments[t.at-1] = "state"
	out := withPath(u, append(segments, url.PathEscape(eventType), ""))
	query := url.Values{}
	for _, key := range []string{"access_token", "user_id", "device_id"} { // who asks
		if v := u.Query().Get(key); v != "" {
			query.Set(key, v)
		}
	}
	out.RawQuery = query.Encode()
	return out
}

func withPath(u *url.URL, segments []string) *url.URL {
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
