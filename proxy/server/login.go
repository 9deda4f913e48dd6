package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/proxy/account"
)

const (
	passwordLogin = "m.login.password"
	ssoLogin      = "m.login.sso"
	tokenLogin    = "m.login.token"
)

// maxLogin bounds the body of a login.
const maxLogin = 64 << 10

// refusedFeatures begin the names of unstable features that clients prefer to
// what the proxy rewrites.
var refusedFeatures = []string{"org.matrix.msc3575", "org.matrix.msc4140", "org.matrix.msc2965", "org.matrix.msc3814"}

// versions hands on what the homeserver can, without what the proxy refuses.
func (s *Server) versions(w http.ResponseWriter, r *http.Request) {
	resp, err := s.again(r, nil)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	var body map[string]json.RawMessage
	var features map[string]json.RawMessage
	if resp.status != http.StatusOK || json.Unmarshal(resp.body, &body) != nil || json.Unmarshal(body["unstable_features"], &features) != nil {
		resp.pass(w)
		return
	}
	for name := range features {
		for _, prefix := range refusedFeatures {
			if strings.HasPrefix(name, prefix) {
				delete(features, name)
			}
		}
	}
	if body["unstable_features"], err = json.Marshal(features); err != nil {
		s.failed(w, r, err)
		return
	}
	answer(w, http.StatusOK, body)
}

// loginFlows offers what gives the proxy a device of its own: the password, and
// single sign-on.
func (s *Server) loginFlows(w http.ResponseWriter, r *http.Request) {
	resp, err := s.again(r, nil)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	var body struct {
		Flows []map[string]json.RawMessage `json:"flows"`
	}
	if resp.status != http.StatusOK || json.Unmarshal(resp.body, &body) != nil {
		resp.pass(w)
		return
	}
	flows, browser := []any{}, false
	for _, f := range body.Flows {
		switch string(f["type"]) {
		case `"` + passwordLogin + `"`:
			flows = append(flows, map[string]string{"type": passwordLogin})
		case `"` + ssoLogin + `"`:
			flows, browser = append(flows, f), true // with the names of the providers
		}
	}
	if browser {
		flows = append(flows, map[string]string{"type": tokenLogin}) // how it ends
	}
	answer(w, http.StatusOK, map[string]any{"flows": flows})
}

// login logs the client in, and makes the MLS device by the same password. A
// client that comes from a browser has one already.
func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	body, ok := read(w, r, maxLogin)
	if !ok {
		return
	}
	var req struct {
		Type     string `json:"type"`
		Password string `json:"password"`
	}
	if err := json.Unmarshal(body, &req); err != nil {
		refuse(w, http.StatusBadRequest, "M_NOT_JSON", "the login is not JSON")
		return
	}
	if req.Type != passwordLogin && req.Type != tokenLogin {
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", "only a login with a password, or by single sign-on in a browser, gives the proxy a device of its own")
		return
	}
	resp, err := s.again(r, body)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	if resp.status != http.StatusOK {
		resp.pass(w)
		return
	}
	s.enter(w, r, resp, "log in again", func(user id.UserID, device id.DeviceID) error {
		if req.Type == passwordLogin {
			_, err := s.o.Accounts.Login(r.Context(), user, req.Password, device)
			return err
		}
		return s.o.Accounts.Join(r.Context(), user, device)
	})
}

// register makes an account, and its MLS device by the password that the account
// gets. What the homeserver wants to know first, and asks for by its refusals, it is
// told by the client (Matrix client-server API, "User-Interactive Authentication").
func (s *Server) register(w http.ResponseWriter, r *http.Request) {
	if kind := r.URL.Query().Get("kind"); kind != "" && kind != "user" {
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", "a guest has no device that rooms with MLS let in: make an account")
		return
	}
	body, ok := read(w, r, maxLogin)
	if !ok {
		return
	}
	var req struct {
		Password string          `json:"password"`
		Later    bool            `json:"inhibit_login"`
		Auth     json.RawMessage `json:"auth"`
	}
	if err := json.Unmarshal(body, &req); err != nil {
		refuse(w, http.StatusBadRequest, "M_NOT_JSON", "the registration is not JSON")
		return
	}
	// What asks without an answer to anything only wants to know what it will be asked.
	var auth struct {
		Type    string `json:"type"`
		Session string `json:"session"`
	}
	broken := len(req.Auth) > 0 && json.Unmarshal(req.Auth, &auth) != nil
	answers := broken || auth.Type != "" || auth.Session != ""
	password, later := req.Password, req.Later
	if known, _ := s.begun.find(auth.Session, time.Now()); answers {
		later = later || known.later
		if password == "" {
			password = known.password
		}
	}
	// After the account is made it would be too late: nobody could log in to it here.
	if answers && password == "" && !later {
		refuse(w, http.StatusBadRequest, "M_MISSING_PARAM", "no account was made: a registration has to bring the password that the account gets, by which the proxy makes the MLS device, at its beginning or now; "+
			"an account without one is made with inhibit_login, and used here by single sign-on")
		return
	}
	resp, err := s.again(r, body)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	var said struct {
		Session string `json:"session"`
		Token   string `json:"access_token"`
	}
	_ = json.Unmarshal(resp.body, &said)
	switch resp.status {
	case http.StatusUnauthorized:
		s.begun.keep(said.Session, password, later, time.Now())
	case http.StatusOK:
		s.begun.done(auth.Session)
	}
	// What an earlier request said of a login counts where the homeserver takes it so.
	if resp.status != http.StatusOK || req.Later || later && said.Token == "" {
		resp.pass(w)
		return
	}
	s.enter(w, r, resp, "the account is made: log in with its password", func(user id.UserID, device id.DeviceID) error {
		_, err := s.o.Accounts.Login(r.Context(), user, password, device)
		return err
	})
}

// visit sends a browser to a page of the homeserver's, which is no page of the
// proxy's: such as one that asks for what a client cannot ask for.
func (s *Server) visit(w http.ResponseWriter, r *http.Request) {
	page := *s.o.Homeserver
	page.RawPath = strings.TrimRight(page.EscapedPath(), "/") + pathOf(r.Context())
	page.Path, _ = url.PathUnescape(page.RawPath)
	query := r.URL.Query()
	query.Del("access_token") // an address is kept in histories, and the page wants none
	page.RawQuery = query.Encode()
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, page.String(), http.StatusFound)
}

// enter answers a client that has just got a session, once its user has an MLS
// device. Without one, the session is given up.
func (s *Server) enter(w http.ResponseWriter, r *http.Request, resp *reply, next string, device func(id.UserID, id.DeviceID) error) {
	var made struct {
		User   id.UserID   `json:"user_id"`
		Device id.DeviceID `json:"device_id"`
		Token  string      `json:"access_token"`
	}
	var full map[string]json.RawMessage
	if err := json.Unmarshal(resp.body, &made); err != nil || json.Unmarshal(resp.body, &full) != nil || made.User == "" || made.Device == "" || made.Token == "" {
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer to the login is not one")
		return
	}
	if err := device(made.User, made.Device); err != nil {
		s.o.Log.Warn().Err(err).Msg("The MLS device could not be made")
		// Without it the session is of no use, and nobody else knows it yet.
		if _, err := s.ask(context.WithoutCancel(r.Context()), http.MethodPost, "/_matrix/client/v3/logout", nil, made.Token, []byte("{}")); err != nil {
			s.o.Log.Warn().Str("error", redact(err)).Msg("A session that was given up is still there")
		}
		text := "the MLS device of the account could not be made; " + next + ", and see what mls-proxy run printed"
		if errors.Is(err, identity.ErrPasswordRefused) {
			text = "the homeserver does not take the password for a second device; " + next
		}
		if errors.Is(err, account.ErrNoDevice) {
			text = "the account has no MLS device here: log in by single sign-on through the proxy, from its beginning"
		}
		refuse(w, http.StatusInternalServerError, "M_UNKNOWN", text)
		return
	}
	// Clients take the address from here, if it is there.
	full["well_known"], _ = json.Marshal(map[string]any{"m.homeserver": map[string]string{"base_url": base(r)}})
	answer(w, http.StatusOK, full)
}

// logout ends the client's session; with the last one, the MLS device ends.
func (s *Server) logout(w http.ResponseWriter, r *http.Request, all bool) {
	token := tokenOf(r.Header, r.URL.Query())
	if token == "" {
		refuse(w, http.StatusUnauthorized, "M_MISSING_TOKEN", "there is no session to end")
		return
	}
	o, err := s.owner(r.Context(), w, token)
	if errors.Is(err, errAnswered) {
		return
	}
	var resp *reply
	if err == nil {
		resp, err = s.again(r, []byte("{}"))
	}
	if err != nil {
		s.failed(w, r, err)
		return
	}
	if resp.status != http.StatusOK {
		resp.pass(w)
		return
	}
	s.sessions.drop(sessionTag(token))
	ctx := context.WithoutCancel(r.Context())
	if all {
		err = s.o.Accounts.LogoutAll(ctx, o.user)
	} else {
		err = s.o.Accounts.Logout(ctx, o.user, o.device)
	}
	if err != nil {
		// The client's own session is over all the same.
		s.o.Log.Err(err).Msg("The MLS device could not be ended")
	}
	resp.pass(w)
}
