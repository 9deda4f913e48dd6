package homeserver

import (
	"bytes"
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

	"github.com/rs/zerolog"
	"go.mau.fi/util/ptr"
	"maunium.net/go/mautrix"
	mas "maunium.net/go/mautrix/appservice"
	"maunium.net/go/mautrix/id"
)

// Software is the kind of a homeserver, where it makes a difference.
type Software string

// The homeservers that differ in what the module needs.
const (
	Auto     Software = "auto"
	Synapse  Software = "synapse"
	Dendrite Software = "dendrite"
)

// Options says how to reach the homeserver.
type Options struct {
	Address      string // http(s)://host:port or unix:/path
	Domain       string // server name
	Registration *mas.Registration
	Software     Software
	DeviceID     id.DeviceID // the bot's device, where the homeserver gives one
	Timeout      time.Duration
	// ResponseLimit bounds any JSON answer; zero value: 64 MiB, since the
	// state of a large room is long.
	ResponseLimit int64
	// Observe is called after each request with what was asked, how long it
	// took and what came of it; may be nil.
	Observe func(op string, took time.Duration, err error)
}

// Client is a [Homeserver] over HTTP, as the module's bot. It is safe for use
// by several goroutines.
type Client struct {
	opts  Options
	bot   *mautrix.Client
	plain *mautrix.Client // without a token
}

var _ Homeserver = (*Client)(nil)

// New makes a client. It does not connect.
func New(o Options) (*Client, error) {
	if o.Timeout <= 0 {
		o.Timeout = time.Minute
	}
	if o.ResponseLimit <= 0 {
		o.ResponseLimit = 64 << 20
	}
	as, err := mas.CreateFull(mas.CreateOpts{
		Registration:     o.Registration,
		HomeserverDomain: o.Domain,
		HomeserverURL:    o.Address,
	})
	if err != nil {
		return nil, fmt.Errorf("homeserver: %w", err)
	}
	// One attempt for each call: who calls decides when to try again, and
	// what is more urgent meanwhile.
	as.DefaultHTTPRetries = 0
	as.HTTPClient.Timeout = o.Timeout
	if as.HTTPClient.Transport == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxIdleConnsPerHost = 16
		transport.Proxy = nil // the homeserver is next door
		as.HTTPClient.Transport = transport
	}
	as.HTTPClient.Jar = nil
	as.UserAgent = "matrix-mls"
	bot := as.BotClient()
	bot.StateStore = nil
	bot.IgnoreRateLimit = true
	bot.ResponseSizeLimit = o.ResponseLimit
	plain := as.NewMautrixClient("")
	plain.StateStore, plain.IgnoreRateLimit, plain.ResponseSizeLimit = nil, true, o.ResponseLimit
	plain.AccessToken, plain.SetAppServiceUserID = "", false
	return &Client{opts: o, bot: bot, plain: plain}, nil
}

// UserID implements [Homeserver].
func (c *Client) UserID() id.UserID { return c.bot.UserID }

// ServerName implements [Homeserver].
func (c *Client) ServerName() string { return c.opts.Domain }

// do runs one request and names its outcome.
func (c *Client) do(ctx context.Context, op string, p mautrix.FullRequest) ([]byte, *http.Response, error) {
	return c.as(ctx, c.bot, op, p)
}

func (c *Client) as(ctx context.Context, who *mautrix.Client, op string, p mautrix.FullRequest) ([]byte, *http.Response, error) {
	// The client library logs whole requests; whole events belong in no log.
	quiet := zerolog.Nop()
	start := time.Now()
	p.MaxAttempts = 1
	p.SensitiveContent = true
	body, resp, err := who.MakeFullRequestWithResp(quiet.WithContext(ctx), p)
	err = wrapError(op, err)
	took := time.Since(start)
	if c.opts.Observe != nil {
		c.opts.Observe(op, took, err)
	}
	zerolog.Ctx(ctx).Trace().Err(err).Str("op", op).Dur("duration", took).Msg("Asked the homeserver")
	return body, resp, err
}

func (c *Client) call(ctx context.Context, op, method string, path mautrix.PrefixableURLPath, query url.Values, req, resp any) error {
	p := mautrix.FullRequest{Method: method, URL: c.url(path, query), ResponseJSON: resp}
	if raw, ok := req.(json.RawMessage); ok {
		p.RequestBytes = raw
		p.Headers = http.Header{"Content-Type": {"application/json"}}
	} else if req != nil {
		p.RequestJSON = req
	}
	_, _, err := c.do(ctx, op, p)
	return err
}

func (c *Client) url(path mautrix.PrefixableURLPath, query url.Values) string {
	flat := make(map[string]string, len(query))
	for key := range query {
		flat[key] = query.Get(key)
	}
	return c.bot.BuildURLWithQuery(path, flat)
}

// wrapError names what went wrong. The library's own error holds the request
// with its token, so only the cause below it is kept.
func wrapError(op string, err error) error {
	if err == nil {
		return nil
	}
	out := &Error{Op: op, Kind: ErrUnreachable}
	var he mautrix.HTTPError
	if !errors.As(err, &he) {
		out.Err = err
		if errors.Is(err, mautrix.ErrBodyReadReachedLimit) || errors.Is(err, mautrix.ErrResponseTooLong) {
			out.Kind = ErrTooLarge
		}
		return out
	}
	switch {
	case errors.Is(he.WrappedError, mautrix.ErrBodyReadReachedLimit), errors.Is(he.WrappedError, mautrix.ErrResponseTooLong):
		out.Kind = ErrTooLarge
		return out
	case he.Response == nil:
		out.Err = certificate(bareCause(he.WrappedError))
		return out
	}
	out.Status = he.Response.StatusCode
	if he.RespError != nil {
		out.Code, out.Text = he.RespError.ErrCode, cut(he.RespError.Err, 200)
	}
	switch {
	case he.WrappedError != nil && out.Status < 300:
		out.Kind, out.Text = ErrServer, "the answer could not be read"
	case out.Status == http.StatusTooManyRequests || out.Code == "M_LIMIT_EXCEEDED":
		out.Kind, out.After = ErrRateLimited, retryAfter(&he)
	case out.Status == http.StatusUnauthorized:
		out.Kind = ErrUnauthorized
	case out.Status == http.StatusRequestEntityTooLarge || out.Code == "M_TOO_LARGE":
		out.Kind = ErrTooLarge
	case out.Status == http.StatusForbidden && (out.Code == "M_UNKNOWN_TOKEN" || out.Code == "M_MISSING_TOKEN"):
		out.Kind = ErrUnauthorized
	case out.Status == http.StatusForbidden:
		out.Kind = ErrForbidden
	case out.Status == http.StatusNotFound:
		out.Kind = ErrNotFound
	case out.Status >= 500 || out.Status == http.StatusRequestTimeout:
		out.Kind = ErrServer
	default:
		out.Kind = ErrBadRequest
	}
	return out
}

// bareCause drops the URL that net/http puts in front of an error: it names
// rooms and, for an application service, the acting user.
func bareCause(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// maxWait bounds what a homeserver can make the module wait for.
const maxWait = 10 * time.Minute

func retryAfter(he *mautrix.HTTPError) time.Duration {
	wait := time.Second
	if s, err := strconv.ParseFloat(he.Response.Header.Get("Retry-After"), 64); err == nil && s >= 0 && s < 1e6 {
		wait = time.Duration(s * float64(time.Second))
	}
	if he.RespError != nil {
		if ms, ok := he.RespError.ExtraData["retry_after_ms"].(float64); ok && ms >= 0 && ms < 1e9 {
			wait = time.Duration(ms * float64(time.Millisecond))
		}
	}
	return min(max(wait, 50*time.Millisecond), maxWait)
}

func cut(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > n {
		return s[:n]
	}
	return s
}

// SendEvent implements [Homeserver].
func (c *Client) SendEvent(ctx context.Context, room id.RoomID, eventType, txnID string, content json.RawMessage) (id.EventID, error) {
	var resp mautrix.RespSendEvent
	err := c.call(ctx, "send event", http.MethodPut,
		mautrix.ClientURLPath{"v3", "rooms", room, "send", eventType, txnID}, nil, content, &resp)
	return resp.EventID, err
}

// SendState implements [Homeserver].
func (c *Client) SendState(ctx context.Context, room id.RoomID, eventType, stateKey string, content json.RawMessage) (id.EventID, error) {
	var resp mautrix.RespSendEvent
	err := c.call(ctx, "send state", http.MethodPut,
		mautrix.ClientURLPath{"v3", "rooms", room, "state", eventType, stateKey}, nil, content, &resp)
	return resp.EventID, err
}

// Event implements [Homeserver].
func (c *Client) Event(ctx context.Context, room id.RoomID, event id.EventID) (*Event, error) {
	var raw json.RawMessage
	err := c.call(ctx, "fetch event", http.MethodGet, mautrix.ClientURLPath{"v3", "rooms", room, "event", event}, nil, nil, &raw)
	if err != nil {
		return nil, err
	}
	ev, err := ParseEvent(raw, room)
	if err == nil && ev.ID != event {
		err = errors.New("the answer is another event")
	}
	if err != nil {
		return nil, &Error{Op: "fetch event", Kind: ErrServer, Err: err}
	}
	return ev, nil
}

// Messages implements [Homeserver].
func (c *Client) Messages(ctx context.Context, room id.RoomID, req MessagesRequest) (*MessagesPage, error) {
	query := url.Values{"dir": {string(Backward)}, "limit": {"100"}}
	if req.Dir == Forward {
		query.Set("dir", string(Forward))
	}
	if req.Limit > 0 {
		query.Set("limit", strconv.Itoa(req.Limit))
	}
	if req.From != "" {
		query.Set("from", req.From)
	}
	if req.To != "" {
		query.Set("to", req.To)
	}
	if len(req.Types) > 0 {
		filter, err := json.Marshal(map[string]any{"types": req.Types})
		if err != nil {
			return nil, fmt.Errorf("homeserver: %w", err)
		}
		query.Set("filter", string(filter))
	}
	var resp struct {
		Start string            `json:"start"`
		End   string            `json:"end"`
		Chunk []json.RawMessage `json:"chunk"`
	}
	err := c.call(ctx, "fetch messages", http.MethodGet, mautrix.ClientURLPath{"v3", "rooms", room, "messages"}, query, nil, &resp)
	if err != nil {
		return nil, err
	}
	return &MessagesPage{Events: parseEvents(resp.Chunk, room), Start: resp.Start, End: resp.End}, nil
}

// State implements [Homeserver].
func (c *Client) State(ctx context.Context, room id.RoomID) ([]*Event, error) {
	var resp []json.RawMessage
	err := c.call(ctx, "fetch state", http.MethodGet, mautrix.ClientURLPath{"v3", "rooms", room, "state"}, nil, nil, &resp)
	return parseEvents(resp, room), err
}

// StateContent implements [Homeserver].
func (c *Client) StateContent(ctx context.Context, room id.RoomID, eventType, stateKey string) (json.RawMessage, error) {
	var resp json.RawMessage
	err := c.call(ctx, "fetch state event", http.MethodGet,
		mautrix.ClientURLPath{"v3", "rooms", room, "state", eventType, stateKey}, nil, nil, &resp)
	return resp, err
}

// Members implements [Homeserver].
func (c *Client) Members(ctx context.Context, room id.RoomID) ([]*Event, error) {
	var resp struct {
		Chunk []json.RawMessage `json:"chunk"`
	}
	err := c.call(ctx, "fetch members", http.MethodGet, mautrix.ClientURLPath{"v3", "rooms", room, "members"}, nil, nil, &resp)
	return parseEvents(resp.Chunk, room), err
}

// Join implements [Homeserver].
func (c *Client) Join(ctx context.Context, room id.RoomID, via []string) error {
	u, err := url.Parse(c.url(mautrix.ClientURLPath{"v3", "join", room}, nil))
	if err != nil {
		return fmt.Errorf("homeserver: %w", err)
	}
	query := u.Query()
	for _, server := range via {
		query.Add("server_name", server)
		query.Add("via", server)
	}
	u.RawQuery = query.Encode()
	_, _, err = c.do(ctx, "join", mautrix.FullRequest{Method: http.MethodPost, URL: u.String(), RequestJSON: struct{}{}})
	return err
}

// Leave implements [Homeserver].
func (c *Client) Leave(ctx context.Context, room id.RoomID, reason string) error {
	body := map[string]string{}
	if reason != "" {
		body["reason"] = reason
	}
	return c.call(ctx, "leave", http.MethodPost, mautrix.ClientURLPath{"v3", "rooms", room, "leave"}, nil, body, nil)
}

// JoinedRooms implements [Homeserver].
func (c *Client) JoinedRooms(ctx context.Context) ([]id.RoomID, error) {
	var resp mautrix.RespJoinedRooms
	err := c.call(ctx, "list rooms", http.MethodGet, mautrix.ClientURLPath{"v3", "joined_rooms"}, nil, nil, &resp)
	return resp.JoinedRooms, err
}

// CreateRoom implements [Homeserver].
func (c *Client) CreateRoom(ctx context.Context, name string) (id.RoomID, error) {
	var resp mautrix.RespCreateRoom
	err := c.call(ctx, "create room", http.MethodPost, mautrix.ClientURLPath{"v3", "createRoom"}, nil,
		map[string]string{"preset": "private_chat", "visibility": "private", "name": name}, &resp)
	return resp.RoomID, err
}

// Upload implements [Homeserver].
func (c *Client) Upload(ctx context.Context, data []byte, contentType string) (id.ContentURIString, error) {
	var resp mautrix.RespMediaUpload
	_, _, err := c.do(ctx, "upload", mautrix.FullRequest{
		Method:       http.MethodPost,
		URL:          c.url(mautrix.MediaURLPath{"v3", "upload"}, nil),
		Headers:      http.Header{"Content-Type": {contentType}},
		RequestBytes: data,
		ResponseJSON: &resp,
	})
	return id.ContentURIString(resp.ContentURI.String()), err
}

// Download implements [Homeserver].
func (c *Client) Download(ctx context.Context, uri id.ContentURIString, limit int64) ([]byte, error) {
	mxc, err := uri.Parse()
	if err != nil || mxc.Homeserver == "" || mxc.FileID == "" {
		return nil, &Error{Op: "download", Kind: ErrBadRequest, Err: fmt.Errorf("%q is no mxc address", cut(string(uri), 100))}
	}
	start := time.Now()
	data, err := c.download(ctx, mxc, limit)
	if c.opts.Observe != nil {
		c.opts.Observe("download", time.Since(start), err)
	}
	return data, err
}

func (c *Client) download(ctx context.Context, mxc id.ContentURI, limit int64) ([]byte, error) {
	quiet := zerolog.Nop()
	_, resp, err := c.bot.MakeFullRequestWithResp(quiet.WithContext(ctx), mautrix.FullRequest{
		Method:           http.MethodGet,
		URL:              c.url(mautrix.ClientURLPath{"v1", "media", "download", mxc.Homeserver, mxc.FileID}, nil),
		MaxAttempts:      1,
		DontReadResponse: true,
	})
	if resp != nil {
		defer resp.Body.Close()
	}
	if err != nil {
		return nil, wrapError("download", err)
	}
	tooLarge := &Error{Op: "download", Kind: ErrTooLarge, Text: fmt.Sprintf("more than %d bytes", limit)}
	if resp.ContentLength > limit {
		return nil, tooLarge
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, &Error{Op: "download", Kind: ErrUnreachable, Err: bareCause(err)}
	case int64(len(data)) > limit:
		return nil, tooLarge
	}
	return data, nil
}

// UploadLimit implements [Homeserver].
func (c *Client) UploadLimit(ctx context.Context) (int64, error) {
	var resp struct {
		Size int64 `json:"m.upload.size"`
	}
	err := c.call(ctx, "fetch media settings", http.MethodGet, mautrix.ClientURLPath{"v1", "media", "config"}, nil, nil, &resp)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrBadRequest) {
		err = c.call(ctx, "fetch media settings", http.MethodGet, mautrix.MediaURLPath{"v3", "config"}, nil, nil, &resp)
	}
	return resp.Size, err
}

// SetProfileField implements [Homeserver].
func (c *Client) SetProfileField(ctx context.Context, field string, value any) error {
	return c.call(ctx, "set profile", http.MethodPut,
		mautrix.ClientURLPath{"v3", "profile", c.UserID(), field}, nil, map[string]any{field: value}, nil)
}

// ProfileField implements [Homeserver].
func (c *Client) ProfileField(ctx context.Context, user id.UserID, field string) (json.RawMessage, error) {
	var resp map[string]json.RawMessage
	err := c.call(ctx, "fetch profile", http.MethodGet, mautrix.ClientURLPath{"v3", "profile", user, field}, nil, nil, &resp)
	return resp[field], err
}

// Whoami implements [Homeserver].
func (c *Client) Whoami(ctx context.Context) (id.UserID, id.DeviceID, error) {
	var resp mautrix.RespWhoami
	err := c.call(ctx, "whoami", http.MethodGet, mautrix.ClientURLPath{"v3", "account", "whoami"}, nil, nil, &resp)
	return resp.UserID, resp.DeviceID, err
}

// Versions implements [Homeserver].
func (c *Client) Versions(ctx context.Context) (*Versions, error) {
	var body struct {
		Versions []string        `json:"versions"`
		Unstable map[string]bool `json:"unstable_features"`
	}
	// Synapse refuses a token that it does not know even here.
	_, resp, err := c.as(ctx, c.plain, "fetch versions", mautrix.FullRequest{
		Method: http.MethodGet, URL: c.plain.BuildClientURL("versions"), ResponseJSON: &body,
	})
	if err != nil {
		return nil, err
	}
	out := &Versions{Spec: body.Versions, Features: body.Unstable}
	if resp != nil {
		out.Server = cut(resp.Header.Get("Server"), 100)
		if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			out.Date = date
		}
	}
	return out, nil
}

// Ping implements [Homeserver].
func (c *Client) Ping(ctx context.Context, txnID string) (time.Duration, error) {
	var resp mautrix.RespAppservicePing
	err := c.call(ctx, "ping", http.MethodPost,
		mautrix.ClientURLPath{"v1", "appservice", c.opts.Registration.ID, "ping"}, nil, &mautrix.ReqAppservicePing{TxnID: txnID}, &resp)
	return time.Duration(resp.DurationMS) * time.Millisecond, err
}

// EnsureBot implements [Homeserver].
func (c *Client) EnsureBot(ctx context.Context, displayName string) error {
	user, device, err := c.Whoami(ctx)
	if err != nil || user != c.UserID() {
		// Synapse answers whoami for a sender that was never registered;
		// Dendrite makes it at start. Registering again is harmless.
		if err := c.register(ctx); err != nil {
			return err
		}
		if user, device, err = c.Whoami(ctx); err != nil {
			return err
		}
	}
	if user != c.UserID() {
		return &Error{Op: "whoami", Kind: ErrUnauthorized, Text: "the token belongs to " + cut(string(user), 100)}
	}
	if err := c.register(ctx); err != nil {
		return err
	}
	if err := c.ensureDevice(ctx, device); err != nil {
		return err
	}
	if displayName == "" {
		return nil
	}
	current, err := c.ProfileField(ctx, c.UserID(), "displayname")
	if err == nil && bytes.Equal(current, quoted(displayName)) {
		return nil
	}
	// A homeserver that keeps names to itself is no reason not to serve.
	if err := c.SetProfileField(ctx, "displayname", displayName); err != nil && IsTemporary(err) {
		return err
	}
	return nil
}

func quoted(s string) []byte {
	out, _ := json.Marshal(s) // a string always encodes
	return out
}

// register makes the bot's account; that it exists is no error.
func (c *Client) register(ctx context.Context) error {
	err := c.call(ctx, "register the bot", http.MethodPost, mautrix.ClientURLPath{"v3", "register"}, nil, &mautrix.ReqRegister[any]{
		Username:     c.opts.Registration.SenderLocalpart,
		Type:         mautrix.AuthTypeAppservice,
		InhibitLogin: true,
	}, nil)
	var e *Error
	if errors.As(err, &e) && e.Code == "M_USER_IN_USE" {
		return nil
	}
	return err
}

// ensureDevice gives the bot a device: by MSC4190 (PUT /devices) where the
// homeserver has it, as a Synapse with that option, which then refuses the
// other way; else by an application service's log-in. What the module does
// needs no device, so a homeserver that offers neither is fine.
func (c *Client) ensureDevice(ctx context.Context, device id.DeviceID) error {
	if device == c.opts.DeviceID || c.opts.DeviceID == "" {
		return nil
	}
	if c.opts.Software != Dendrite {
		err := c.call(ctx, "make the bot's device", http.MethodPut,
			mautrix.ClientURLPath{"v3", "devices", c.opts.DeviceID}, nil, map[string]string{"display_name": "matrix-mls"}, nil)
		if err == nil {
			return nil
		}
		if IsTemporary(err) {
			return err
		}
	}
	// The token that comes back is not used: the application service's own
	// token acts for the bot.
	err := c.call(ctx, "make the bot's device", http.MethodPost, mautrix.ClientURLPath{"v3", "login"}, nil, &mautrix.ReqLogin{
		Type:                     mautrix.AuthTypeAppservice,
		Identifier:               mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: string(c.UserID())},
		DeviceID:                 c.opts.DeviceID,
		InitialDeviceDisplayName: "matrix-mls",
	}, nil)
	if err != nil && IsTemporary(err) && !errors.Is(err, ErrUnauthorized) {
		return err
	}
	return nil
}

// NewRegistration is the registration that the module needs: it acts as its
// bot, owns its user names, sees the rooms the bot is in and no others, and is
// never rate limited.
func NewRegistration(appID, address, botLocalpart, asToken, hsToken string, users []string) *mas.Registration {
	reg := &mas.Registration{
		ID:              appID,
		URL:             address,
		AppToken:        asToken,
		ServerToken:     hsToken,
		SenderLocalpart: botLocalpart,
		RateLimited:     ptr.Ptr(false),
		MSC4190:         true,
	}
	for _, regex := range users {
		reg.Namespaces.UserIDs = append(reg.Namespaces.UserIDs, mas.Namespace{Regex: regex, Exclusive: true})
	}
	return reg
}
