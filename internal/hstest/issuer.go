package hstest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

// Issuer gives out the tokens of a Server (Matrix client-server API, "OAuth 2.0
// API"): it lets clients register, sends the browser of the one user that it
// knows back with a code, and checks what is asked of it as strictly as the
// specifications let it. The Server's Mu guards it.
type Issuer struct {
	URL     string
	User    id.UserID
	Refuse  bool   // the user says no
	Says    string // the issuer's name in redirects, if it is another one than URL
	Silent  bool   // redirects do not name it
	Broken  bool   // it answers nothing but errors
	Renewed int    // tokens
	Revoked []string

	h       *Server
	t       testing.TB
	clients map[string][]string // redirect addresses
	codes   map[string]url.Values
}

// NewIssuer starts an issuer and leaves the homeserver's logins to it.
func NewIssuer(t testing.TB, h *Server, user id.UserID) *Issuer {
	s := &Issuer{User: user, h: h, t: t, clients: map[string][]string{}, codes: map[string]url.Values{}}
	mux := http.NewServeMux()
	for pattern, fn := range map[string]http.HandlerFunc{
		"POST /register": s.register, "GET /authorize": s.authorize, "POST /token": s.token, "POST /revoke": s.revoke,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			h.Mu.Lock()
			defer h.Mu.Unlock()
			if s.Broken {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			fn(w, r)
		})
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.URL = server.URL + "/"
	h.Mu.Lock()
	defer h.Mu.Unlock()
	h.Metadata = s.Metadata()
	return s
}

// Metadata is what the homeserver says of the issuer.
func (s *Issuer) Metadata() json.RawMessage {
	raw, err := json.Marshal(map[string]any{
		"issuer": s.URL, "authorization_endpoint": s.URL + "authorize", "token_endpoint": s.URL + "token", "registration_endpoint": s.URL + "register",
		"revocation_endpoint": s.URL + "revoke", "response_types_supported": []string{"code"}, "response_modes_supported": []string{"query", "fragment"},
		"grant_types_supported": []string{"authorization_code", "refresh_token"}, "code_challenge_methods_supported": []string{"S256"},
	})
	if err != nil {
		s.t.Error(err)
	}
	return raw
}

func (s *Issuer) answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.t.Error(err)
	}
}

func (s *Issuer) bad(w http.ResponseWriter, code, text string) {
	s.answer(w, http.StatusBadRequest, map[string]string{"error": code, "error_description": text})
}

func (s *Issuer) register(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Name      string   `json:"client_name"`
		Page      string   `json:"client_uri"`
		Kind      string   `json:"application_type"`
		Redirects []string `json:"redirect_uris"`
		Auth      string   `json:"token_endpoint_auth_method"`
		Grants    []string `json:"grant_types"`
	}
	if json.NewDecoder(r.Body).Decode(&req) != nil || !strings.HasPrefix(req.Page, "https://") || req.Kind != "native" || req.Auth != "none" ||
		!slices.Contains(req.Grants, "refresh_token") || len(req.Redirects) == 0 {
		s.bad(w, "invalid_client_metadata", "not the client of a program")
		return
	}
	for _, to := range req.Redirects {
		if u, err := url.Parse(to); err != nil || u.Scheme != "http" || u.Host != "127.0.0.1" {
			s.bad(w, "invalid_redirect_uri", to)
			return
		}
	}
	name := fmt.Sprintf("client-%d", len(s.clients)+1)
	s.clients[name] = req.Redirects
	s.answer(w, http.StatusCreated, map[string]string{"client_id": name})
}

// redirect tells whether a client may be sent to an address: it is one of its
// own, with any port (RFC 8252, Section 7.3).
func (s *Issuer) redirect(client, to string) bool {
	u, err := url.Parse(to)
	if err != nil {
		return false
	}
	u.Host = u.Hostname()
	return slices.Contains(s.clients[client], u.String())
}

func (s *Issuer) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	to := q.Get("redirect_uri")
	if !s.redirect(q.Get("client_id"), to) || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "" || q.Get("state") == "" {
		s.bad(w, "invalid_request", "not a request for a code")
		return
	}
	back := url.Values{"state": q["state"], "iss": {s.URL}}
	if s.Says != "" {
		back.Set("iss", s.Says)
	}
	if s.Silent {
		back.Del("iss")
	}
	if s.Refuse {
		back.Set("error", "access_denied")
	} else {
		code := fmt.Sprintf("code-%d", len(s.codes)+1)
		s.codes[code] = q
		back.Set("code", code)
	}
	http.Redirect(w, r, to+"?"+back.Encode(), http.StatusFound)
}

func (s *Issuer) token(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "" || r.ParseForm() != nil || s.clients[r.PostForm.Get("client_id")] == nil {
		s.bad(w, "invalid_client", "unknown")
		return
	}
	form := r.PostForm
	var d *Device
	switch form.Get("grant_type") {
	case "authorization_code":
		q := s.codes[form.Get("code")]
		sum := sha256.Sum256([]byte(form.Get("code_verifier")))
		if q == nil || q.Get("client_id") != form.Get("client_id") || q.Get("redirect_uri") != form.Get("redirect_uri") ||
			q.Get("code_challenge") != base64.RawURLEncoding.EncodeToString(sum[:]) || len(form.Get("code_verifier")) < 43 {
			s.bad(w, "invalid_grant", "not the code of this client")
			return
		}
		s.codes[form.Get("code")] = nil // good once
		var device string
		api := false
		for scope := range strings.FieldsSeq(q.Get("scope")) {
			if name, ok := strings.CutPrefix(scope, "urn:matrix:client:device:"); ok {
				device = name
			}
			api = api || scope == "urn:matrix:client:api:*"
		}
		if len(device) < 10 && !strings.HasPrefix(device, "DEV") || !api {
			s.bad(w, "invalid_scope", q.Get("scope"))
			return
		}
		d = s.h.Add(s.User, device)
	case "refresh_token":
		for _, known := range s.h.Devices[s.User] {
			if known.Refresh != "" && known.Refresh == form.Get("refresh_token") {
				d = known
			}
		}
		if d == nil {
			s.bad(w, "invalid_grant", "no such refresh token")
			return
		}
		s.Renewed++
	default:
		s.bad(w, "unsupported_grant_type", "")
		return
	}
	d.give(true)
	s.answer(w, http.StatusOK, map[string]any{
		"access_token": d.Token, "refresh_token": d.Refresh, "token_type": "Bearer", "expires_in": s.h.Lasts.Seconds(),
	})
}

func (s *Issuer) revoke(w http.ResponseWriter, r *http.Request) {
	if r.ParseForm() != nil || s.clients[r.PostForm.Get("client_id")] == nil {
		s.bad(w, "invalid_client", "unknown")
		return
	}
	for name, d := range s.h.Devices[s.User] {
		if token := r.PostForm.Get("token"); token == d.Refresh || token == d.Token {
			delete(s.h.Devices[s.User], name)
			s.Revoked = append(s.Revoked, name)
		}
	}
	s.answer(w, http.StatusOK, map[string]any{})
}
