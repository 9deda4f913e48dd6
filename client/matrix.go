package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	defaultRetryAfter = 2 * time.Second
	maxRetryAfter     = 10 * time.Minute
	maxSyncBytes      = 256 << 20
	maxJSONBytes      = 64 << 20
)

// matrixTransport is a Transport over a mautrix.Client.
type matrixTransport struct {
	cli *mautrix.Client
}

// NewTransport returns a Transport that uses the homeserver, token and HTTP
// client of cli. It neither uses nor changes cli.Crypto, Syncer or Store.
func NewTransport(cli *mautrix.Client) Transport {
	return &matrixTransport{cli: cli}
}

// do sends one request, once. Bodies are marked sensitive, so that mautrix
// never writes them to a log.
func (t *matrixTransport) do(ctx context.Context, method, target string, body, into any, limit int64) error {
	req := mautrix.FullRequest{
		Method: method, URL: target, RequestJSON: body, ResponseJSON: into,
		MaxAttempts: 1, SensitiveContent: true, ResponseSizeLimit: limit,
	}
	_, err := t.cli.MakeFullRequest(ctx, req)
	return wrapRateLimit(err)
}

func wrapRateLimit(err error) error {
	if err == nil {
		return nil
	}
	var httpErr mautrix.HTTPError
	if !errors.As(err, &httpErr) || httpErr.Response == nil || httpErr.Response.StatusCode != http.StatusTooManyRequests {
		return err
	}
	wait := defaultRetryAfter
	if httpErr.RespError != nil {
		if ms, ok := httpErr.RespError.ExtraData["retry_after_ms"].(float64); ok && ms >= 0 {
			wait = time.Duration(min(ms, float64(maxRetryAfter/time.Millisecond))) * time.Millisecond
		}
	}
	if seconds, perr := strconv.Atoi(httpErr.Response.Header.Get("Retry-After")); perr == nil && seconds > 0 {
		wait = max(wait, time.Duration(min(seconds, 600))*time.Second)
	}
	return &RateLimitError{RetryAfter: min(wait, maxRetryAfter)}
}

type respEventID struct {
	EventID id.EventID `json:"event_id"`
}

type respRoomID struct {
	RoomID id.RoomID `json:"room_id"`
}

func (t *matrixTransport) Send(ctx context.Context, room id.RoomID, eventType, txnID string, content json.RawMessage) (id.EventID, error) {
	var resp respEventID
	target := t.cli.BuildClientURL("v3", "rooms", room, "send", eventType, txnID)
	err := t.do(ctx, http.MethodPut, target, content, &resp, maxJSONBytes)
	return resp.EventID, err
}

func (t *matrixTransport) SendState(ctx context.Context, room id.RoomID, eventType, stateKey string, content json.RawMessage) (id.EventID, error) {
	var resp respEventID
	target := t.cli.BuildClientURL("v3", "rooms", room, "state", eventType, stateKey)
	err := t.do(ctx, http.MethodPut, target, content, &resp, maxJSONBytes)
	return resp.EventID, err
}

func (t *matrixTransport) Redact(ctx context.Context, room id.RoomID, eventID id.EventID, txnID, reason string) (id.EventID, error) {
	var resp respEventID
	body := map[string]string{}
	if reason != "" {
		body["reason"] = reason
	}
	target := t.cli.BuildClientURL("v3", "rooms", room, "redact", eventID, txnID)
	err := t.do(ctx, http.MethodPut, target, body, &resp, maxJSONBytes)
	return resp.EventID, err
}

func (t *matrixTransport) Event(ctx context.Context, room id.RoomID, eventID id.EventID) (*Event, error) {
	var evt Event
	target := t.cli.BuildClientURL("v3", "rooms", room, "event", eventID)
	if err := t.do(ctx, http.MethodGet, target, nil, &evt, maxJSONBytes); err != nil {
		return nil, err
	}
	evt.RoomID = room
	return &evt, nil
}

func (t *matrixTransport) Messages(ctx context.Context, room id.RoomID, from string, limit int) ([]*Event, string, error) {
	query := map[string]string{"dir": "b", "limit": strconv.Itoa(limit)}
	if from != "" {
		query["from"] = from
	}
	var resp struct {
		Chunk []*Event `json:"chunk"`
		End   string   `json:"end"`
	}
	target := t.cli.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "rooms", room, "messages"}, query)
	if err := t.do(ctx, http.MethodGet, target, nil, &resp, maxJSONBytes); err != nil {
		return nil, "", err
	}
	for _, evt := range resp.Chunk {
		evt.RoomID = room
	}
	return resp.Chunk, resp.End, nil
}

func (t *matrixTransport) State(ctx context.Context, room id.RoomID) ([]*Event, error) {
	var events []*Event
	if err := t.do(ctx, http.MethodGet, t.cli.BuildClientURL("v3", "rooms", room, "state"), nil, &events, maxSyncBytes); err != nil {
		return nil, err
	}
	for _, evt := range events {
		evt.RoomID = room
	}
	return events, nil
}

func (t *matrixTransport) CreateRoom(ctx context.Context, req json.RawMessage) (id.RoomID, error) {
	var resp respRoomID
	err := t.do(ctx, http.MethodPost, t.cli.BuildClientURL("v3", "createRoom"), req, &resp, maxJSONBytes)
	return resp.RoomID, err
}

// membershipAction posts one of the room membership verbs.
func (t *matrixTransport) membershipAction(ctx context.Context, room id.RoomID, verb string, user id.UserID, reason string) error {
	body := map[string]string{}
	if user != "" {
		body["user_id"] = string(user)
	}
	if reason != "" {
		body["reason"] = reason
	}
	return t.do(ctx, http.MethodPost, t.cli.BuildClientURL("v3", "rooms", room, verb), body, &struct{}{}, maxJSONBytes)
}

func (t *matrixTransport) Invite(ctx context.Context, room id.RoomID, user id.UserID, reason string) error {
	return t.membershipAction(ctx, room, "invite", user, reason)
}

func (t *matrixTransport) Leave(ctx context.Context, room id.RoomID) error {
	return t.membershipAction(ctx, room, "leave", "", "")
}

func (t *matrixTransport) Kick(ctx context.Context, room id.RoomID, user id.UserID, reason string) error {
	return t.membershipAction(ctx, room, "kick", user, reason)
}

func (t *matrixTransport) Ban(ctx context.Context, room id.RoomID, user id.UserID, reason string) error {
	return t.membershipAction(ctx, room, "ban", user, reason)
}

func (t *matrixTransport) Join(ctx context.Context, roomOrAlias string, via []string) (id.RoomID, error) {
	target := t.cli.BuildURLWithFullQuery(mautrix.ClientURLPath{"v3", "join", roomOrAlias}, func(q url.Values) {
		for _, server := range via {
			q.Add("via", server)
			q.Add("server_name", server)
		}
	})
	var resp respRoomID
	err := t.do(ctx, http.MethodPost, target, struct{}{}, &resp, maxJSONBytes)
	return resp.RoomID, err
}

func (t *matrixTransport) Upload(ctx context.Context, data []byte, contentType string) (string, error) {
	var resp struct {
		ContentURI string `json:"content_uri"`
	}
	req := mautrix.FullRequest{
		Method: http.MethodPost, URL: t.cli.BuildURL(mautrix.MediaURLPath{"v3", "upload"}),
		Headers: http.Header{"Content-Type": {contentType}}, RequestBytes: data, ResponseJSON: &resp,
		MaxAttempts: 1, SensitiveContent: true,
	}
	if _, err := t.cli.MakeFullRequest(ctx, req); err != nil {
		return "", wrapRateLimit(err)
	}
	if !strings.HasPrefix(resp.ContentURI, "mxc://") {
		return "", fmt.Errorf("client: the homeserver answered an upload without a content URI")
	}
	return resp.ContentURI, nil
}

func (t *matrixTransport) Download(ctx context.Context, mxc string, limit int64) ([]byte, error) {
	uri, err := id.ParseContentURI(mxc)
	if err == nil && !rooms.IsMediaAddress(mxc) {
		err = id.ErrInvalidContentURI
	}
	if err != nil {
		return nil, fmt.Errorf("client: download: %w", err)
	}
	_, resp, err := t.cli.MakeFullRequestWithResp(ctx, mautrix.FullRequest{
		Method: http.MethodGet, URL: t.cli.BuildClientURL("v1", "media", "download", uri.Homeserver, uri.FileID),
		DontReadResponse: true, MaxAttempts: 1,
		Handler: func(*http.Request, *http.Response, any, int64) ([]byte, error) { return nil, nil },
	})
	if err != nil {
		return nil, wrapRateLimit(err)
	}
	defer resp.Body.Close()
	if resp.ContentLength > limit {
		return nil, fmt.Errorf("client: download of %s: %d bytes, above the limit of %d: %w", mxc, resp.ContentLength, limit, errRefused)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("client: download of %s: %w", mxc, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("client: download of %s: above the limit of %d bytes: %w", mxc, limit, errRefused)
	}
	return data, nil
}

func (t *matrixTransport) SendToDevice(ctx context.Context, eventType, txnID string, messages map[id.UserID]map[id.DeviceID]json.RawMessage) error {
	target := t.cli.BuildClientURL("v3", "sendToDevice", eventType, txnID)
	return t.do(ctx, http.MethodPut, target, map[string]any{"messages": messages}, &struct{}{}, maxJSONBytes)
}

// fromMautrixSync takes what the engine needs from a /sync response.
func fromMautrixSync(resp *mautrix.RespSync) *syncBatch {
	out := &syncBatch{
		NextBatch: resp.NextBatch, ToDevice: fromMautrixEvents("", resp.ToDevice.Events),
		Join: map[id.RoomID]*syncRoom{}, Leave: map[id.RoomID]*syncRoom{}, Invite: map[id.RoomID][]*Event{},
	}
	for roomID, room := range resp.Rooms.Join {
		if room == nil {
			continue
		}
		joined := &syncRoom{
			State: fromMautrixEvents(roomID, room.State.Events), Timeline: fromMautrixEvents(roomID, room.Timeline.Events),
			Limited: room.Timeline.Limited, PrevBatch: room.Timeline.PrevBatch,
		}
		if room.StateAfter != nil { // MSC4222: the state at the end
			joined.State = fromMautrixEvents(roomID, room.StateAfter.Events)
		}
		out.Join[roomID] = joined
	}
	for roomID, room := range resp.Rooms.Leave {
		if room == nil {
			continue
		}
		out.Leave[roomID] = &syncRoom{
			State: fromMautrixEvents(roomID, room.State.Events), Timeline: fromMautrixEvents(roomID, room.Timeline.Events),
			Limited: room.Timeline.Limited, PrevBatch: room.Timeline.PrevBatch,
		}
	}
	for roomID, room := range resp.Rooms.Invite {
		if room != nil {
			out.Invite[roomID] = fromMautrixEvents(roomID, room.State.Events)
		}
	}
	return out
}

func fromMautrixEvents(roomID id.RoomID, events []*event.Event) []*Event {
	out := make([]*Event, 0, len(events))
	for _, evt := range events {
		if evt == nil {
			continue
		}
		out = append(out, fromMautrixEvent(roomID, evt))
	}
	return out
}

func fromMautrixEvent(roomID id.RoomID, evt *event.Event) *Event {
	content := evt.Content.VeryRaw
	if len(content) == 0 {
		content, _ = json.Marshal(&evt.Content)
	}
	if evt.RoomID != "" {
		roomID = evt.RoomID
	}
	return &Event{
		ID: evt.ID, RoomID: roomID, Type: evt.Type.Type, Sender: evt.Sender, StateKey: evt.StateKey,
		Timestamp: evt.Timestamp, Content: content, Redacts: evt.Redacts, Unsigned: unsignedOf(evt.Unsigned.TransactionID),
	}
}
