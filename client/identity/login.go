package identity

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/id"
)

// Login says where and as whom to log in.
type Login struct {
	// Homeserver is a base URL (https://matrix.example.org) or a server name,
	// which is looked up by .well-known. Empty means the server of User.
	Homeserver string
	// User is a full user id or a localpart.
	User string
	// DeviceName is shown in the user's list of sessions.
	DeviceName string
}

// ErrPasswordRefused reports a wrong user name or password.
var ErrPasswordRefused = errors.New("identity: the homeserver refused the user name or password")

// LoginPassword logs in with a password, which makes a new device, and
// publishes the device's keys and key packages. A device that the homeserver
// wants to log in again ([ErrSoftLogout]) stays the same.
//
// A token that lasts is preferred, since it is good in a backup, too. Where the
// homeserver's end after a time, one is taken that can be renewed.
func (i *Identity) LoginPassword(ctx context.Context, l Login, password string) error {
	if l.User == "" {
		return errors.New("identity: log in: no user name was given")
	}
	return i.login(ctx, l, func(cli *mautrix.Client, device id.DeviceID) (*loggedIn, error) {
		req := &mautrix.ReqLogin{
			Type:       mautrix.AuthTypePassword,
			Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: l.User},
			Password:   password, DeviceID: device, InitialDeviceDisplayName: l.DeviceName,
		}
		in, err := i.askLogin(ctx, cli, req)
		if err != nil || in.session.RenewAt == 0 || in.session.RefreshToken != "" {
			return in, err
		}
		first := in
		req.DeviceID, req.RefreshToken = in.device, true
		if in, err = i.askLogin(ctx, cli, req); err != nil && device == "" {
			err = errors.Join(err, i.endSession(context.WithoutCancel(ctx), cli.HomeserverURL.String(), first.session))
		}
		return in, err
	})
}

// LoginBrowser logs in in a browser on this machine: by OAuth 2.0 where the
// homeserver leaves logins to an issuer of its own, else by single sign-on. open
// is called with the address of a page that the user visits, and the browser is
// sent back to a listener on the loopback interface. LoginBrowser returns when
// that happened or ctx ends. As with [Identity.LoginPassword], a device that has
// to log in again stays the same.
func (i *Identity) LoginBrowser(ctx context.Context, l Login, open func(url string) error) error {
	return i.login(ctx, l, func(cli *mautrix.Client, device id.DeviceID) (*loggedIn, error) {
		meta, err := i.authMetadata(ctx, cli)
		if err != nil {
			return nil, err
		}
		if meta != nil {
			return i.loginOAuth(ctx, cli, meta, device, l.DeviceName, open)
		}
		token, err := ssoToken(ctx, cli, open)
		if err != nil {
			return nil, err
		}
		return i.loginToken(ctx, cli, token, device, l.DeviceName)
	})
}

// Session is a login that no device has taken into use.
type Session struct {
	scratch *Identity
	base    string
	in      *loggedIn
}

// RedeemToken logs in with a login token, which a homeserver gives a browser at
// the end of its single sign-on, and which is good once. Whoever calls it hands
// the session to [Identity.LoginSession], or ends it. l names the homeserver by its base URL.
func RedeemToken(ctx context.Context, o Options, l Login, token string) (*Session, error) {
	scratch := &Identity{http: o.HTTP, now: time.Now, log: zerolog.Nop()}
	if scratch.http == nil {
		scratch.http = &http.Client{Timeout: 3 * time.Minute}
	}
	base := strings.TrimRight(l.Homeserver, "/")
	cli, err := mautrix.NewClient(base, "", "")
	if err != nil {
		return nil, fmt.Errorf("identity: homeserver %s: %w", base, err)
	}
	cli.Client = scratch.http
	in, err := scratch.loginToken(ctx, cli, token, "", l.DeviceName)
	if err != nil {
		return nil, err
	}
	return &Session{scratch: scratch, base: base, in: in}, nil
}

// UserID is the user who logged in.
func (s *Session) UserID() id.UserID { return s.in.user }

// End ends a session that no device has taken into use.
func (s *Session) End(ctx context.Context) error {
	return s.scratch.endSession(ctx, s.base, s.in.session)
}

// LoginSession makes a session's device this one, and publishes its keys and key
// packages. If that fails, the session is ended.
func (i *Identity) LoginSession(ctx context.Context, s *Session) error {
	if i.LoggedIn() {
		return errors.Join(ErrLoggedIn, s.End(context.WithoutCancel(ctx)))
	}
	return i.begin(ctx, s.base, s.in)
}

func (i *Identity) loginToken(ctx context.Context, cli *mautrix.Client, token string, device id.DeviceID, name string) (*loggedIn, error) {
	// The token is good for one login: there is no asking again, as with a password.
	return i.askLogin(ctx, cli, &mautrix.ReqLogin{
		Type: mautrix.AuthTypeToken, Token: token, DeviceID: device, InitialDeviceDisplayName: name, RefreshToken: true,
	})
}

// login makes the device: resolve, check, log in, keep, publish.
func (i *Identity) login(ctx context.Context, l Login, ask func(cli *mautrix.Client, device id.DeviceID) (*loggedIn, error)) error {
	a, _, err := i.current()
	if err == nil { // the device is there: it may have to log in again
		switch err := i.Check(ctx); {
		case errors.Is(err, ErrSoftLogout):
		case errors.Is(err, ErrTokenRejected):
			return err
		default:
			return ErrLoggedIn
		}
		l.Homeserver = a.server
	}
	base, err := i.resolve(ctx, l)
	if err != nil {
		return err
	}
	cli, err := mautrix.NewClient(base, "", "")
	if err != nil {
		return fmt.Errorf("identity: homeserver %s: %w", base, err)
	}
	cli.Client = i.http
	if a != nil {
		return i.loginAgain(ctx, cli, a, ask)
	}
	in, err := ask(cli, "")
	if err != nil {
		return err
	}
	return i.begin(ctx, base, in)
}

// begin takes a new device into use.
func (i *Identity) begin(ctx context.Context, base string, in *loggedIn) error {
	if err := i.adopt(ctx, base, in); err != nil {
		return errors.Join(err, i.endSession(context.WithoutCancel(ctx), base, in.session))
	}
	if err := i.publish(ctx); err != nil {
		// The session was made a moment ago and nobody else knows it: without
		// it the login can be tried again.
		return errors.Join(err, i.Logout(context.WithoutCancel(ctx), true))
	}
	return nil
}

// loginAgain gives a device that is there a new session.
func (i *Identity) loginAgain(ctx context.Context, cli *mautrix.Client, a *account, ask func(*mautrix.Client, id.DeviceID) (*loggedIn, error)) error {
	in, err := ask(cli, a.deviceID)
	if err != nil {
		return err
	}
	if in.user != a.userID || in.device != a.deviceID {
		return errors.Join(
			fmt.Errorf("identity: this is device %s of %s, and %s logged in: %w", a.deviceID, a.userID, in.user, ErrLoggedIn),
			i.endSession(context.WithoutCancel(ctx), a.server, in.session))
	}
	if err := i.put(ctx, a, in.session); err != nil {
		return err
	}
	return i.publish(ctx)
}

// put takes a new session of a device into use. A renewal under way ends first,
// and does not take its place.
func (i *Identity) put(ctx context.Context, a *account, s session) error {
	if err := a.renewal.enter(ctx); err != nil {
		return err
	}
	defer a.renewal.leave()
	i.mu.Lock()
	defer i.mu.Unlock()
	old := a.secrets.session
	a.secrets.session = s
	if err := i.saveAccount(ctx, a); err != nil {
		a.secrets.session = old
		return err
	}
	a.renewal.refused, a.renewal.failed = "", nil
	return nil
}

// askLogin makes the request of a login.
func (i *Identity) askLogin(ctx context.Context, cli *mautrix.Client, req *mautrix.ReqLogin) (*loggedIn, error) {
	base := cli.HomeserverURL
	var resp mautrix.RespLogin
	err := i.do(ctx, cli, http.MethodPost, cli.BuildClientURL("v3", "login"), req, &resp)
	if err != nil {
		if status(err) == http.StatusForbidden {
			if req.Type == mautrix.AuthTypeToken {
				return nil, fmt.Errorf("identity: log in at %s: the homeserver does not take the browser's login token", base)
			}
			return nil, ErrPasswordRefused
		}
		return nil, fmt.Errorf("identity: log in at %s: %w", base, err)
	}
	if resp.AccessToken == "" || resp.DeviceID == "" {
		return nil, fmt.Errorf("identity: log in at %s: the answer has no device or token", base)
	}
	if _, _, err := resp.UserID.Parse(); err != nil {
		return nil, fmt.Errorf("identity: log in at %s: the answer has no valid user id: %w", base, err)
	}
	return &loggedIn{user: resp.UserID, device: resp.DeviceID, session: session{
		AccessToken: resp.AccessToken, RefreshToken: resp.RefreshToken,
		RenewAt: renewAt(i.now(), time.Duration(resp.ExpiresInMS)*time.Millisecond),
	}}, nil
}

// LoginToken uses a device that exists already, such as a bot's: its access
// token must belong to a device without keys of its own, or the keys that it
// published are replaced.
//
// The token stays the caller's: LoginToken never ends its session. If the keys
// cannot be published, the device is kept all the same ([Identity.LoggedIn]),
// since the homeserver may have some of its keys already; a later sync
// publishes what is missing, and so does LoginToken called again with the same
// token. Another token is refused with [ErrLoggedIn].
func (i *Identity) LoginToken(ctx context.Context, homeserver, accessToken string) error {
	if a, _, err := i.current(); err == nil {
		if i.showing(a) != accessToken {
			return ErrLoggedIn
		}
		return i.publish(ctx)
	}
	base, err := i.resolve(ctx, Login{Homeserver: homeserver})
	if err != nil {
		return err
	}
	cli, err := mautrix.NewClient(base, "", accessToken)
	if err != nil {
		return fmt.Errorf("identity: homeserver %s: %w", base, err)
	}
	cli.Client = i.http
	var resp mautrix.RespWhoami
	if err := i.do(ctx, cli, http.MethodGet, cli.BuildClientURL("v3", "account", "whoami"), nil, &resp); err != nil {
		return fmt.Errorf("identity: log in at %s: %w", base, err)
	}
	if resp.DeviceID == "" {
		return fmt.Errorf("identity: log in at %s: the token belongs to no device", base)
	}
	if err := i.adopt(ctx, base, &loggedIn{user: resp.UserID, device: resp.DeviceID, session: session{AccessToken: accessToken}}); err != nil {
		return err
	}
	return i.publish(ctx)
}

// showing is the access token of the moment.
func (i *Identity) showing(a *account) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return a.secrets.AccessToken
}

// adopt makes the keys of a new device and keeps them in the store.
func (i *Identity) adopt(ctx context.Context, base string, in *loggedIn) error {
	olmAccount := crypto.NewOlmAccount()
	olmAccount.Shared = true // its keys are published by this package
	pickled, err := olmAccount.Internal.Pickle(pickleKey)
	if err != nil {
		return fmt.Errorf("identity: make the device keys: %w", err)
	}
	a := &account{userID: in.user, deviceID: in.device, server: base, olm: olmAccount,
		secrets: accountSecrets{session: in.session, Device: pickled}}
	return i.use(ctx, a)
}

// publish gives the homeserver the keys of a device that was adopted.
func (i *Identity) publish(ctx context.Context) error {
	if err := i.PublishDeviceKeys(ctx); err != nil {
		return err
	}
	return i.EnsureKeyPackages(ctx)
}

// Logout ends the device's session at the homeserver and empties the store.
// The store is emptied even if the homeserver cannot be reached, or wants the
// device to log in again first ([ErrSoftLogout]), when force is set; the device
// then stays in the user's list of sessions.
func (i *Identity) Logout(ctx context.Context, force bool) error {
	a, cli, err := i.current()
	if err != nil {
		return err
	}
	i.mu.Lock()
	current := a.secrets.session
	i.mu.Unlock()
	if current.OAuth != nil {
		err = i.revoke(ctx, current)
	} else {
		err = i.do(ctx, cli, http.MethodPost, cli.BuildClientURL("v3", "logout"), struct{}{}, &struct{}{})
	}
	// A device that only has to log in again is still in the user's list.
	if err != nil && !force && (!errors.Is(err, ErrTokenRejected) || errors.Is(err, ErrSoftLogout)) {
		return fmt.Errorf("identity: log out: %w", err)
	}
	return i.Forget(ctx)
}

// Forget empties the store and leaves the session as it is: another copy of the
// store may be in use.
func (i *Identity) Forget(ctx context.Context) error {
	if err := i.st.Wipe(ctx); err != nil {
		return err
	}
	i.mu.Lock()
	i.account, i.client = nil, nil
	i.mu.Unlock()
	i.lists.init()
	i.packages.init()
	return nil
}

// endSession ends a session that was not taken into use.
func (i *Identity) endSession(ctx context.Context, base string, s session) error {
	if s.OAuth != nil {
		return i.revoke(ctx, s)
	}
	cli, err := mautrix.NewClient(base, "", s.AccessToken)
	if err != nil {
		return err
	}
	cli.Client = i.http
	if err := i.do(ctx, cli, http.MethodPost, cli.BuildClientURL("v3", "logout"), struct{}{}, &struct{}{}); err != nil {
		return fmt.Errorf("identity: end the session that was just made: %w", err)
	}
	return nil
}

// resolve finds the base URL of a homeserver.
func (i *Identity) resolve(ctx context.Context, l Login) (string, error) {
	hs := l.Homeserver
	if strings.HasPrefix(hs, "https://") || strings.HasPrefix(hs, "http://") {
		return strings.TrimRight(hs, "/"), nil
	}
	if hs == "" {
		_, server, err := id.UserID(l.User).Parse()
		if err != nil || server == "" {
			return "", errors.New("identity: log in: name the homeserver, or give the full user id (@you:example.org)")
		}
		hs = server
	}
	wellKnown, err := mautrix.DiscoverClientAPIWithClient(ctx, i.http, hs)
	if err != nil {
		return "", fmt.Errorf("identity: find the homeserver %s: %w", hs, err)
	}
	if wellKnown != nil && wellKnown.Homeserver.BaseURL != "" {
		return strings.TrimRight(wellKnown.Homeserver.BaseURL, "/"), nil
	}
	return "https://" + hs, nil
}

// ssoToken runs the browser part of m.login.sso and returns the login token
// (Matrix client-server API, "SSO client login").
func ssoToken(ctx context.Context, cli *mautrix.Client, open func(string) error) (string, error) {
	flows, err := cli.GetLoginFlows(ctx)
	if err != nil {
		return "", fmt.Errorf("identity: ask for the ways to log in: %w", err)
	}
	if !slices.ContainsFunc(flows.Flows, func(f mautrix.LoginFlow) bool { return f.Type == mautrix.AuthTypeSSO }) {
		return "", errors.New("identity: this homeserver has no single sign-on; log in with a password")
	}
	var token string
	page := func(redirect string) string {
		return cli.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "login", "sso", "redirect"}, map[string]string{"redirectUrl": redirect})
	}
	// The random path keeps other pages and programs from handing us a token
	// of their own account.
	err = visit(ctx, "/login/"+rand.Text(), page, open, func(q url.Values) (bool, error) {
		token = q.Get("loginToken")
		return token != "", nil
	})
	return token, err
}
