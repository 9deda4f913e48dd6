package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// ErrSoftLogout reports that the homeserver wants the device to log in again. It
// is still the same device: a login into the same store keeps its keys and its
// place in rooms. It is an [ErrTokenRejected], too.
var ErrSoftLogout = fmt.Errorf("%w: it is still the same device, whose keys stay", ErrTokenRejected)

// session is what a device shows the homeserver, and how it gets the next. It is
// part of the sealed account.
type session struct {
	AccessToken  string        `json:"access_token"`
	RefreshToken string        `json:"refresh_token,omitempty"`
	RenewAt      int64         `json:"renew_at,omitempty"` // Unix milliseconds; 0 if the token lasts
	OAuth        *oauthSession `json:"oauth,omitempty"`    // of a login by OAuth 2.0
}

// Format prints no token, whatever the verb.
func (session) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[secret]")) }

// renewMargin is how long before its end a token is renewed.
const renewMargin = 30 * time.Second

// renewAt says when to renew a token that lasts for a time from now.
func renewAt(now time.Time, lasts time.Duration) int64 {
	if lasts <= 0 {
		return 0
	}
	return now.Add(lasts - min(renewMargin, lasts/4)).UnixMilli()
}

// renewal keeps the renewals of a session apart, and remembers what was refused.
type renewal struct {
	once    sync.Once
	slot    chan struct{} // holds one while a session is renewed or put in the place of another
	refused string        // the refresh token that the homeserver did not take
	failed  error         // of the last try, if it may work later
	until   time.Time
}

func (r *renewal) busy() chan struct{} {
	r.once.Do(func() { r.slot = make(chan struct{}, 1) })
	return r.slot
}

// enter waits until nobody else renews the session, or ctx ends.
func (r *renewal) enter(ctx context.Context) error {
	select {
	case r.busy() <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("identity: the session is being renewed: %w", ctx.Err())
	}
}

// try enters if nobody else renews the session.
func (r *renewal) try() bool {
	select {
	case r.busy() <- struct{}{}:
		return true
	default:
		return false
	}
}

func (r *renewal) leave() { <-r.busy() }

// sessionTransport shows the homeserver the device's token of the moment, and
// renews it: before it ends, or when the homeserver no longer takes it.
type sessionTransport struct {
	i    *Identity
	a    *account
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *sessionTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Header.Get("Authorization") == "" { // it wants no token
		return t.next.RoundTrip(r)
	}
	token, err := t.i.token(r.Context(), t.a, "")
	if err != nil {
		return nil, closing(r, err)
	}
	resp, err := t.next.RoundTrip(withToken(r, token))
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !unknownToken(resp) {
		return resp, err
	}
	fresh, err := t.i.token(r.Context(), t.a, token)
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	if fresh == token {
		return resp, nil
	}
	again := withToken(r, fresh)
	if r.Body != nil && r.Body != http.NoBody {
		if r.GetBody == nil { // whoever asks again has the new token
			return resp, nil
		}
		if again.Body, err = r.GetBody(); err != nil {
			resp.Body.Close()
			return nil, err
		}
	}
	resp.Body.Close()
	return t.next.RoundTrip(again)
}

func withToken(r *http.Request, token string) *http.Request {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

// closing does what a RoundTripper has to do with the body of a request that is
// not made.
func closing(r *http.Request, err error) error {
	if r.Body != nil {
		r.Body.Close()
	}
	return err
}

// maxRefusal bounds an error of the homeserver's that is looked into.
const maxRefusal = 64 << 10

// unknownToken looks into a 401; the answer can be read again.
func unknownToken(resp *http.Response) bool {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(raw), resp.Body), resp.Body}
	var e struct {
		Code string `json:"errcode"`
	}
	return err == nil && json.Unmarshal(raw, &e) == nil && e.Code == mautrix.MUnknownToken.ErrCode
}

// token returns the device's access token. It is renewed before it ends, or if
// it is the one that the homeserver did not take. The new one is in the store
// before it is used: a homeserver takes the old refresh token until then. If it
// cannot be renewed for now, the error says so; if it never can, the token is
// the old one.
func (i *Identity) token(ctx context.Context, a *account, refused string) (string, error) {
	due := func() (s session, due bool) {
		i.mu.Lock()
		defer i.mu.Unlock()
		s = a.secrets.session
		return s, s.AccessToken == refused || s.RenewAt != 0 && i.now().UnixMilli() >= s.RenewAt
	}
	s, renew := due()
	if !renew || s.RefreshToken == "" {
		return s.AccessToken, nil
	}
	if s.AccessToken != refused {
		if !a.renewal.try() {
			return s.AccessToken, nil // it lasts a little, and is being renewed
		}
	} else if err := a.renewal.enter(ctx); err != nil {
		return "", err
	}
	defer a.renewal.leave()
	if s, renew = due(); !renew || s.RefreshToken == a.renewal.refused { // another request was first
		return s.AccessToken, nil
	}
	if a.renewal.failed != nil && i.now().Before(a.renewal.until) {
		if s.AccessToken != refused {
			return s.AccessToken, nil // it may last a little
		}
		return "", a.renewal.failed
	}
	// A renewal that was begun is seen through, whoever asked for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTime)
	defer cancel()
	var next session
	var err error
	if s.OAuth != nil {
		next, err = i.renewOAuth(ctx, s)
	} else {
		next, err = i.renew(ctx, a.server, s)
	}
	if errors.Is(err, errRenewalRefused) {
		a.renewal.refused, a.renewal.failed = s.RefreshToken, nil
		i.log.Warn().Msg("The homeserver does not renew this device's session")
		return s.AccessToken, nil
	}
	if err != nil {
		a.renewal.failed, a.renewal.until = fmt.Errorf("identity: renew the session: %w", err), i.now().Add(renewPause)
		if s.AccessToken != refused {
			i.log.Warn().Err(err).Msg("The session could not be renewed yet")
			return s.AccessToken, nil
		}
		return "", a.renewal.failed
	}
	a.renewal.failed = nil
	i.mu.Lock()
	defer i.mu.Unlock()
	a.secrets.session = next
	if err := i.saveAccount(ctx, a); err != nil {
		a.secrets.session = s
		return "", err
	}
	return next.AccessToken, nil
}

const (
	renewTime  = 10 * time.Second // bounds a renewal
	renewPause = 5 * time.Second  // after one that did not work
)

var errRenewalRefused = errors.New("identity: the session is not renewed")

// renew makes the next tokens from a refresh token (Matrix client-server API,
// "Refreshing access tokens").
func (i *Identity) renew(ctx context.Context, base string, s session) (session, error) {
	cli, err := mautrix.NewClient(base, "", "")
	if err != nil {
		return session{}, err
	}
	cli.Client = i.http
	var resp struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresInMS  int64  `json:"expires_in_ms"`
	}
	err = i.do(ctx, cli, http.MethodPost, cli.BuildClientURL("v3", "refresh"), map[string]string{"refresh_token": s.RefreshToken}, &resp)
	if code := status(err); errors.Is(err, ErrTokenRejected) || code == http.StatusUnauthorized || code == http.StatusForbidden {
		return session{}, errRenewalRefused
	}
	if err != nil {
		return session{}, err
	}
	if resp.AccessToken == "" {
		return session{}, errors.New("identity: the answer has no token")
	}
	next := session{AccessToken: resp.AccessToken, RefreshToken: resp.RefreshToken, RenewAt: renewAt(i.now(), time.Duration(resp.ExpiresInMS)*time.Millisecond)}
	if next.RefreshToken == "" { // the old one goes on
		next.RefreshToken = s.RefreshToken
	}
	return next, nil
}

// Check asks the homeserver whether it still takes the device's session. It
// returns [ErrSoftLogout] or [ErrTokenRejected] if it does not.
func (i *Identity) Check(ctx context.Context) error {
	_, cli, err := i.current()
	if err != nil {
		return err
	}
	var who mautrix.RespWhoami
	return i.do(ctx, cli, http.MethodGet, cli.BuildClientURL("v3", "account", "whoami"), nil, &who)
}

// loggedIn is a session that was just made.
type loggedIn struct {
	user    id.UserID
	device  id.DeviceID
	session session
}

// Format prints whose login it is, and no token: fmt does not ask what lies inside.
func (l loggedIn) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "%s on %s", l.device, l.user) }
