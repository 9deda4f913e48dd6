package identity

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

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
// publishes the device's keys and key packages.
func (i *Identity) LoginPassword(ctx context.Context, l Login, password string) error {
	if l.User == "" {
		return errors.New("identity: log in: no user name was given")
	}
	return i.login(ctx, l, func(cli *mautrix.Client) (*mautrix.ReqLogin, error) {
		return &mautrix.ReqLogin{
			Type:       mautrix.AuthTypePassword,
			Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: l.User},
			Password:   password,
		}, nil
	})
}

// LoginSSO logs in by the homeserver's single sign-on: open is called with the
// address of a page that the user visits in a browser on this machine, and the
// browser is sent back to a listener on the loopback interface. LoginSSO
// returns when that happened or ctx ends.
func (i *Identity) LoginSSO(ctx context.Context, l Login, open func(url string) error) error {
	return i.login(ctx, l, func(cli *mautrix.Client) (*mautrix.ReqLogin, error) {
		token, err := ssoToken(ctx, cli, open)
		if err != nil {
			return nil, err
		}
		return &mautrix.ReqLogin{Type: mautrix.AuthTypeToken, Token: token}, nil
	})
}

// login makes the device: resolve, check, log in, keep, publish.
func (i *Identity) login(ctx context.Context, l Login, request func(*mautrix.Client) (*mautrix.ReqLogin, error)) error {
	if i.LoggedIn() {
		return ErrLoggedIn
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
	req, err := request(cli)
	if err != nil {
		return err
	}
	req.InitialDeviceDisplayName = l.DeviceName
	var resp mautrix.RespLogin
	err = i.do(ctx, cli, http.MethodPost, cli.BuildClientURL("v3", "login"), req, &resp)
	if err != nil {
		if status(err) == http.StatusForbidden {
			return ErrPasswordRefused
		}
		return fmt.Errorf("identity: log in at %s: %w", base, err)
	}
	if resp.AccessToken == "" || resp.DeviceID == "" {
		return fmt.Errorf("identity: log in at %s: the answer has no device or token", base)
	}
	if _, _, err := resp.UserID.Parse(); err != nil {
		return fmt.Errorf("identity: log in at %s: the answer has no valid user id: %w", base, err)
	}
	if err := i.adopt(ctx, base, resp.UserID, resp.DeviceID, resp.AccessToken); err != nil {
		return err
	}
	if err := i.publish(ctx); err != nil {
		// The session was made a moment ago and nobody else knows it: without
		// it the login can be tried again.
		return errors.Join(err, i.Logout(context.WithoutCancel(ctx), true))
	}
	return nil
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
		if a.secrets.AccessToken != accessToken {
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
	if err := i.adopt(ctx, base, resp.UserID, resp.DeviceID, accessToken); err != nil {
		return err
	}
	return i.publish(ctx)
}

// adopt makes the keys of a new device and keeps them in the store.
func (i *Identity) adopt(ctx context.Context, base string, user id.UserID, device id.DeviceID, token string) error {
	olmAccount := crypto.NewOlmAccount()
	olmAccount.Shared = true // its keys are published by this package
	pickled, err := olmAccount.Internal.Pickle(pickleKey)
	if err != nil {
		return fmt.Errorf("identity: make the device keys: %w", err)
	}
	a := &account{userID: user, deviceID: device, server: base, olm: olmAccount,
		secrets: accountSecrets{AccessToken: token, Device: pickled}}
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
// The store is emptied even if the homeserver cannot be reached when force is
// set; the device then stays in the user's list of sessions.
func (i *Identity) Logout(ctx context.Context, force bool) error {
	_, cli, err := i.current()
	if err != nil {
		return err
	}
	err = i.do(ctx, cli, http.MethodPost, cli.BuildClientURL("v3", "logout"), struct{}{}, &struct{}{})
	if err != nil && !errors.Is(err, ErrTokenRejected) && !force {
		return fmt.Errorf("identity: log out: %w", err)
	}
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
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("identity: listen for the browser: %w", err)
	}
	// The random path keeps other pages and programs from handing us a token
	// of their own account.
	path := "/login/" + rand.Text()
	tokens := make(chan string, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		token := r.URL.Query().Get("loginToken")
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-store")
		message := "You are logged in. You can close this page and go back to the terminal."
		if token == "" {
			w.WriteHeader(http.StatusBadRequest)
			message = "The homeserver sent no login token. Close this page and try again."
		}
		fmt.Fprintf(w, "<!DOCTYPE html><html lang=en><title>mls-proxy</title><p>%s</p></html>", html.EscapeString(message))
		if token != "" {
			select {
			case tokens <- token:
			default:
			}
		}
	})
	server := &http.Server{
		Handler: mux, ReadTimeout: 10 * time.Second, ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10,
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // ends with ErrServerClosed, below
	}()
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if server.Shutdown(stop) != nil {
			server.Close()
		}
		<-served
	}()
	redirect := "http://" + listener.Addr().String() + path
	page := cli.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "login", "sso", "redirect"}, map[string]string{"redirectUrl": redirect})
	if _, err := url.Parse(page); err != nil {
		return "", fmt.Errorf("identity: address of the login page: %w", err)
	}
	if err := open(page); err != nil {
		return "", fmt.Errorf("identity: open a browser: %w", err)
	}
	select {
	case token := <-tokens:
		return token, nil
	case <-ctx.Done():
		return "", fmt.Errorf("identity: no answer from the browser: %w", ctx.Err())
	}
}
