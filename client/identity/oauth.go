package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// A homeserver can leave logins to an issuer of tokens (Matrix client-server API,
// "OAuth 2.0 API", since Matrix 1.15): this program registers there as a client,
// gets a code by the user's browser (RFC 6749, Section 4.1, with RFC 7636 and
// RFC 8252), and tokens for the code.

// oauthSession is what the tokens of a login by OAuth 2.0 are renewed with.
type oauthSession struct {
	ClientID   string `json:"client_id"`
	Token      string `json:"token_endpoint"`
	Revocation string `json:"revocation_endpoint,omitempty"`
}

// authMetadata is what a homeserver says of its issuer.
type authMetadata struct {
	Issuer        string   `json:"issuer"`
	Authorization string   `json:"authorization_endpoint"`
	Token         string   `json:"token_endpoint"`
	Registration  string   `json:"registration_endpoint"`
	Revocation    string   `json:"revocation_endpoint"`
	Challenges    []string `json:"code_challenge_methods_supported"`
	NamesIssuer   bool     `json:"authorization_response_iss_parameter_supported"` // RFC 9207

	scopes string // before the words of the scopes
}

const (
	// oauthPath is where the browser comes back to. It is the same each time, so
	// that an issuer can see that it knows the client; the state is the secret.
	oauthPath   = "/login/callback"
	projectPage = "https://github.com/matrix-mls/matrix-mls"
	maxOAuth    = 1 << 20 // bytes of an issuer's answer
)

// authMetadata asks the homeserver for its issuer; nil means that it has none.
func (i *Identity) authMetadata(ctx context.Context, cli *mautrix.Client) (*authMetadata, error) {
	for _, place := range []struct {
		path   mautrix.ClientURLPath
		scopes string
	}{
		{mautrix.ClientURLPath{"v1", "auth_metadata"}, "urn:matrix:client:"},
		{mautrix.ClientURLPath{"unstable", "org.matrix.msc2965", "auth_metadata"}, "urn:matrix:org.matrix.msc2967.client:"},
	} {
		var meta authMetadata
		err := i.do(ctx, cli, http.MethodGet, cli.BuildURL(place.path), nil, &meta)
		if code := status(err); code == http.StatusNotFound || code == http.StatusMethodNotAllowed || errors.Is(err, mautrix.MUnrecognized) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("identity: ask for the issuer of tokens: %w", err)
		}
		meta.scopes = place.scopes
		return &meta, meta.check(cli.HomeserverURL)
	}
	return nil, nil
}

// check looks at the issuer's addresses, where codes and tokens are sent to. Only a
// homeserver of this machine has an issuer here.
func (m *authMetadata) check(homeserver *url.URL) error {
	here := loopback(homeserver)
	safeAddress := func(address string) bool { return safeAddress(address, here) }
	for name, address := range map[string]string{"issuer": m.Issuer, "authorization_endpoint": m.Authorization, "token_endpoint": m.Token} {
		if !safeAddress(address) {
			return fmt.Errorf("identity: the homeserver's issuer of tokens has no %s with https", name)
		}
	}
	if m.Registration == "" {
		return errors.New("identity: the homeserver's issuer of tokens lets no new clients in (it has no registration_endpoint): log in with a password, if the account has one")
	}
	if !safeAddress(m.Registration) || m.Revocation != "" && !safeAddress(m.Revocation) {
		return errors.New("identity: the homeserver's issuer of tokens has an address without https")
	}
	if !slices.Contains(m.Challenges, "S256") {
		return errors.New("identity: the homeserver's issuer of tokens does not protect its codes (no PKCE with S256)")
	}
	return nil
}

// safeAddress tells whether secrets may be sent to an address: by https, or, if
// here is set, to this machine.
func safeAddress(address string, here bool) bool {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return false
	}
	return u.Scheme == "https" || u.Scheme == "http" && here && loopback(u)
}

// loopback tells whether an address is of this machine.
func loopback(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// loginOAuth makes a session of a device, a new one if none is named.
func (i *Identity) loginOAuth(ctx context.Context, cli *mautrix.Client, meta *authMetadata, device id.DeviceID, name string, open func(string) error) (*loggedIn, error) {
	clientID, err := i.registerOAuth(ctx, meta, name)
	if err != nil {
		return nil, err
	}
	isNew := device == ""
	if isNew {
		device = id.DeviceID(rand.Text()[:12])
	}
	state, verifier := rand.Text(), rand.Text()+rand.Text()
	challenge := sha256.Sum256([]byte(verifier))
	var redirect, code string
	page := func(to string) string {
		redirect = to
		u, _ := url.Parse(meta.Authorization) // it was checked
		q := u.Query()
		for key, value := range map[string]string{
			"response_type": "code", "response_mode": "query", "client_id": clientID, "redirect_uri": to, "state": state,
			"scope":          meta.scopes + "api:* " + meta.scopes + "device:" + device.String(),
			"code_challenge": base64.RawURLEncoding.EncodeToString(challenge[:]), "code_challenge_method": "S256",
		} {
			q.Set(key, value)
		}
		u.RawQuery = q.Encode()
		return u.String()
	}
	err = visit(ctx, oauthPath, page, open, func(q url.Values) (bool, error) {
		if subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(state)) != 1 {
			return false, nil // another page's, or program's
		}
		if iss := q.Get("iss"); iss != meta.Issuer && (iss != "" || meta.NamesIssuer) { // RFC 9207, Section 2.4
			return false, errors.New("identity: the browser was sent back by another issuer than the homeserver's")
		}
		if q.Has("error") {
			return false, fmt.Errorf("identity: the login was refused: %s", oauthError(q.Get("error"), q.Get("error_description")))
		}
		code = q.Get("code")
		return code != "", nil
	})
	if err != nil {
		return nil, err
	}
	oauth := &oauthSession{ClientID: clientID, Token: meta.Token, Revocation: meta.Revocation}
	made, err := i.askTokens(ctx, oauth, url.Values{
		"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {redirect}, "client_id": {clientID}, "code_verifier": {verifier},
	})
	if err != nil {
		return nil, fmt.Errorf("identity: get tokens for the login: %w", err)
	}
	in, err := i.ownerOAuth(ctx, cli, device, made)
	if err != nil {
		return nil, errors.Join(err, i.revoke(context.WithoutCancel(ctx), made))
	}
	if isNew && name != "" {
		i.nameDevice(ctx, cli, in, name)
	}
	return in, nil
}

// ownerOAuth asks the homeserver whose a new session is.
func (i *Identity) ownerOAuth(ctx context.Context, cli *mautrix.Client, device id.DeviceID, made session) (*loggedIn, error) {
	own, err := mautrix.NewClient(cli.HomeserverURL.String(), "", made.AccessToken)
	if err != nil {
		return nil, err
	}
	own.Client = i.http
	var who mautrix.RespWhoami
	if err := i.do(ctx, own, http.MethodGet, own.BuildClientURL("v3", "account", "whoami"), nil, &who); err != nil {
		return nil, fmt.Errorf("identity: ask whose the new session is: %w", err)
	}
	if _, _, err := who.UserID.Parse(); err != nil {
		return nil, fmt.Errorf("identity: the new session has no valid user id: %w", err)
	}
	if who.DeviceID != device {
		return nil, fmt.Errorf("identity: the issuer made a session of device %q, and %s was asked for", who.DeviceID, device)
	}
	return &loggedIn{user: who.UserID, device: device, session: made}, nil
}

// nameDevice says what the device is called in the user's list; an issuer may
// call it otherwise.
func (i *Identity) nameDevice(ctx context.Context, cli *mautrix.Client, in *loggedIn, name string) {
	own, err := mautrix.NewClient(cli.HomeserverURL.String(), in.user, in.session.AccessToken)
	if err == nil {
		own.Client = i.http
		err = i.do(ctx, own, http.MethodPut, own.BuildClientURL("v3", "devices", in.device.String()), map[string]string{"display_name": name}, &struct{}{})
	}
	if err != nil {
		i.log.Warn().Err(err).Msg("The device could not be named")
	}
}

// registerOAuth makes this program known to the issuer (RFC 7591).
func (i *Identity) registerOAuth(ctx context.Context, meta *authMetadata, name string) (string, error) {
	if name == "" {
		name = "mls-proxy"
	}
	raw, err := json.Marshal(map[string]any{
		"client_name": name, "client_uri": projectPage, "application_type": "native",
		"redirect_uris":  []string{"http://127.0.0.1" + oauthPath}, // with any port (RFC 8252, Section 7.3)
		"response_types": []string{"code"}, "grant_types": []string{"authorization_code", "refresh_token"},
		"token_endpoint_auth_method": "none",
	})
	if err != nil {
		return "", err
	}
	var made struct {
		ClientID string `json:"client_id"`
	}
	if err := i.askIssuer(ctx, meta.Registration, "application/json", raw, &made); err != nil {
		return "", fmt.Errorf("identity: register at the issuer of tokens: %w", err)
	}
	if made.ClientID == "" {
		return "", errors.New("identity: register at the issuer of tokens: the answer has no client_id")
	}
	return made.ClientID, nil
}

// askTokens asks the issuer for tokens (RFC 6749, Sections 4.1.3 and 6).
func (i *Identity) askTokens(ctx context.Context, oauth *oauthSession, form url.Values) (session, error) {
	var made struct {
		AccessToken  string  `json:"access_token"`
		RefreshToken string  `json:"refresh_token"`
		TokenType    string  `json:"token_type"`
		ExpiresIn    float64 `json:"expires_in"` // seconds
	}
	if err := i.askIssuer(ctx, oauth.Token, "application/x-www-form-urlencoded", []byte(form.Encode()), &made); err != nil {
		return session{}, err
	}
	if made.AccessToken == "" || !strings.EqualFold(made.TokenType, "Bearer") {
		return session{}, errors.New("identity: the issuer's answer has no token that this program can use")
	}
	// A token for longer than a year is one that lasts.
	lasts := time.Duration(0)
	if made.ExpiresIn > 0 && made.ExpiresIn < 365*24*3600 {
		lasts = time.Duration(made.ExpiresIn * float64(time.Second))
	}
	return session{AccessToken: made.AccessToken, RefreshToken: made.RefreshToken, RenewAt: renewAt(i.now(), lasts), OAuth: oauth}, nil
}

// renewOAuth makes the next tokens from a refresh token.
func (i *Identity) renewOAuth(ctx context.Context, s session) (session, error) {
	next, err := i.askTokens(ctx, s.OAuth, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {s.RefreshToken}, "client_id": {s.OAuth.ClientID}})
	var refused *issuerError
	if errors.As(err, &refused) && (refused.code == "invalid_grant" || refused.code == "invalid_client" || refused.code == "unauthorized_client") {
		return session{}, errRenewalRefused
	}
	if err == nil && next.RefreshToken == "" { // the old one goes on
		next.RefreshToken = s.RefreshToken
	}
	return next, err
}

// revoke ends a session at the issuer (RFC 7009), which ends the device.
func (i *Identity) revoke(ctx context.Context, s session) error {
	if s.OAuth.Revocation == "" {
		return errors.New("identity: the issuer of tokens has no address for ending sessions; end this one in your account's list of sessions")
	}
	form := url.Values{"token": {s.AccessToken}, "token_type_hint": {"access_token"}, "client_id": {s.OAuth.ClientID}}
	if s.RefreshToken != "" { // which is good for longer
		form.Set("token", s.RefreshToken)
		form.Set("token_type_hint", "refresh_token")
	}
	return i.askIssuer(ctx, s.OAuth.Revocation, "application/x-www-form-urlencoded", []byte(form.Encode()), nil)
}

// issuerError is an error answer of the issuer (RFC 6749, Section 5.2).
type issuerError struct {
	status     int
	code, text string
}

func (e *issuerError) Error() string {
	if e.code == "" {
		return fmt.Sprintf("identity: the issuer of tokens answers with status %d", e.status)
	}
	return "identity: the issuer of tokens says: " + oauthError(e.code, e.text)
}

// oauthError shows an error of the issuer's, within bounds.
func oauthError(code, text string) string {
	if text != "" {
		code += ": " + text
	}
	return fmt.Sprintf("%.300q", code)
}

// askIssuer posts to the issuer. Redirects are not followed: a body may hold a
// secret.
func (i *Identity) askIssuer(ctx context.Context, address, kind string, body []byte, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(string(body)))
	if err != nil {
		return errors.New("identity: an address of the issuer of tokens is not one")
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Accept", "application/json")
	cli := *i.http
	cli.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := cli.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxOAuth+1))
	if err != nil {
		return err
	}
	if len(raw) > maxOAuth {
		return errors.New("identity: the issuer's answer is too large")
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		e := &issuerError{status: resp.StatusCode}
		var said struct {
			Error string `json:"error"`
			Text  string `json:"error_description"`
		}
		if json.Unmarshal(raw, &said) == nil {
			e.code, e.text = said.Error, said.Text
		}
		return e
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return errors.New("identity: the issuer's answer is not JSON")
	}
	return nil
}
