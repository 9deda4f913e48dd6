// Package hstest is a homeserver in memory for tests.
package hstest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// Server is the part of a Server that this package talks to.
type Server struct {
	URL      string
	Fallback bool // serves fallback keys, as Synapse does

	Mu          sync.Mutex // guards what follows
	Devices     map[id.UserID]map[string]*Device
	Cross       map[id.UserID]map[string]json.RawMessage // usage → key
	AccountData map[string]json.RawMessage               // user and type → content
	Uploads     int
	Queries     int
	Limited     int                        // requests answered with 429 next
	Failures    map[string]bool            // servers that /keys/query cannot reach
	Avoided     map[string]bool            // servers that it asks only 10 s later for each user, as Dendrite does after a cut
	Hidden      map[string]bool            // servers that it cannot reach and does not name, as Dendrite does beside another answer
	NextLogin   int                        // the next device is one more
	LastKeys    map[string]json.RawMessage // device keys as last uploaded, by device
	Lasts       time.Duration              // how long the tokens last that are given from now on, 0 for ever
	Metadata    json.RawMessage            // of the issuer that logins are left to, nil for none
	Answering   func()                     // called while an answer to /keys/query is under way
	Passwords   map[id.UserID]string       // those that are not "secret"

	t      testing.TB
	wake   chan struct{}
	begun  map[string]json.RawMessage // the newest registration that was asked something
	asked  map[string]json.RawMessage // the newest change of a password, or end of sessions, that was
	logins map[string]bool            // tokens that single sign-on gave, true until they are used
}

// Device is a logged-in device.
type Device struct {
	Token    string
	Refresh  string // the refresh token, if there is one
	Over     bool   // the token's time is over: it is refused, with a soft logout
	Tokens   int    // given so far
	Keys     json.RawMessage
	OTK      []Key
	Fallback map[string]Key // by algorithm
	Used     map[string]bool
	Inbox    []map[string]any
	Changed  []id.UserID
}

// Key is a one-time or fallback key.
type Key struct {
	ID    string
	Value json.RawMessage
}

// AlgorithmOf returns the algorithm in a key id.
func AlgorithmOf(keyID string) string { a, _, _ := strings.Cut(keyID, ":"); return a }

// New starts a server that ends with the test.
func New(t testing.TB, fallback bool) *Server {
	h := &Server{
		t: t, Fallback: fallback, Devices: map[id.UserID]map[string]*Device{}, Failures: map[string]bool{}, Avoided: map[string]bool{}, Hidden: map[string]bool{},
		Cross: map[id.UserID]map[string]json.RawMessage{}, AccountData: map[string]json.RawMessage{}, wake: make(chan struct{}), logins: map[string]bool{},
		LastKeys: map[string]json.RawMessage{}, Passwords: map[id.UserID]string{},
	}
	mux := http.NewServeMux()
	handle := func(pattern string, fn func(me *Device, user id.UserID, body map[string]json.RawMessage, r *http.Request) (int, any)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			h.Mu.Lock()
			defer h.Mu.Unlock()
			w.Header().Set("Content-Type", "application/json")
			reply := func(code int, v any) {
				w.WriteHeader(code)
				if err := json.NewEncoder(w).Encode(v); err != nil {
					t.Error(err)
				}
			}
			if h.Limited > 0 {
				h.Limited--
				reply(429, map[string]any{"errcode": "M_LIMIT_EXCEEDED", "error": "slow down", "retry_after_ms": 50})
				return
			}
			user, me := h.caller(r)
			if open := strings.HasSuffix(r.URL.Path, "/login") || strings.HasSuffix(r.URL.Path, "/register") || strings.HasSuffix(r.URL.Path, "/refresh") || strings.HasSuffix(r.URL.Path, "/auth_metadata"); (me == nil || me.Over) && !open {
				reply(401, map[string]any{"errcode": "M_UNKNOWN_TOKEN", "error": "no such token", "soft_logout": me != nil})
				return
			}
			var body map[string]json.RawMessage
			if r.Method != http.MethodGet && json.NewDecoder(r.Body).Decode(&body) != nil {
				reply(400, map[string]any{"errcode": "M_NOT_JSON", "error": "no JSON"})
				return
			}
			code, v := fn(me, user, body, r)
			reply(code, v)
		})
	}
	const v3 = "/_matrix/client/v3"
	handle("GET "+v3+"/login", func(*Device, id.UserID, map[string]json.RawMessage, *http.Request) (int, any) {
		return 200, map[string]any{"flows": []map[string]string{{"type": "m.login.password"}, {"type": "m.login.sso"}, {"type": "m.login.token"}}}
	})
	handle("POST "+v3+"/login", h.login)
	handle("POST "+v3+"/register", h.register)
	handle("GET "+v3+"/account/whoami", func(me *Device, user id.UserID, _ map[string]json.RawMessage, _ *http.Request) (int, any) {
		for name, d := range h.Devices[user] {
			if d == me {
				return 200, map[string]any{"user_id": user, "device_id": name}
			}
		}
		return 500, map[string]any{"errcode": "M_UNKNOWN"}
	})
	handle("POST "+v3+"/refresh", h.refresh)
	handle("GET /_matrix/client/v1/auth_metadata", func(*Device, id.UserID, map[string]json.RawMessage, *http.Request) (int, any) {
		if h.Metadata == nil {
			return 404, map[string]any{"errcode": "M_UNRECOGNIZED"}
		}
		return 200, h.Metadata
	})
	handle("GET /_matrix/client/unstable/org.matrix.msc2965/auth_metadata", func(*Device, id.UserID, map[string]json.RawMessage, *http.Request) (int, any) {
		return 404, map[string]any{"errcode": "M_UNRECOGNIZED"}
	})
	handle("GET "+v3+"/devices", func(_ *Device, user id.UserID, _ map[string]json.RawMessage, _ *http.Request) (int, any) {
		list := []map[string]any{}
		for name := range h.Devices[user] {
			list = append(list, map[string]any{"device_id": name})
		}
		return 200, map[string]any{"devices": list}
	})
	handle("PUT "+v3+"/devices/{device}", func(*Device, id.UserID, map[string]json.RawMessage, *http.Request) (int, any) {
		return 200, map[string]any{}
	})
	handle("DELETE "+v3+"/devices/{device}", func(_ *Device, user id.UserID, body map[string]json.RawMessage, r *http.Request) (int, any) {
		return h.proven(user, body, func(map[string]json.RawMessage) { delete(h.Devices[user], r.PathValue("device")) })
	})
	handle("POST "+v3+"/delete_devices", func(_ *Device, user id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
		return h.proven(user, body, func(body map[string]json.RawMessage) {
			var names []string
			_ = json.Unmarshal(body["devices"], &names)
			for _, name := range names {
				delete(h.Devices[user], name)
			}
		})
	})
	handle("POST "+v3+"/account/password", func(me *Device, user id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
		return h.proven(user, body, func(body map[string]json.RawMessage) {
			var password string
			_ = json.Unmarshal(body["new_password"], &password)
			h.Passwords[user] = password
			for name, d := range h.Devices[user] {
				if d != me && string(body["logout_devices"]) != "false" {
					delete(h.Devices[user], name)
				}
			}
		})
	})
	handle("POST "+v3+"/logout", func(me *Device, user id.UserID, _ map[string]json.RawMessage, _ *http.Request) (int, any) {
		for name, d := range h.Devices[user] {
			if d == me {
				delete(h.Devices[user], name)
			}
		}
		return 200, map[string]any{}
	})
	handle("POST "+v3+"/keys/upload", h.upload)
	handle("POST "+v3+"/keys/query", h.query)
	handle("POST "+v3+"/keys/claim", h.claim)
	handle("POST "+v3+"/keys/device_signing/upload", func(_ *Device, user id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
		if h.Cross[user] == nil {
			h.Cross[user] = map[string]json.RawMessage{}
		}
		if body["auth"] == nil {
			return 401, map[string]any{"session": "s", "flows": []map[string]any{{"stages": []string{"m.login.password"}}}}
		}
		var auth struct{ Password string }
		if json.Unmarshal(body["auth"], &auth) != nil || auth.Password != "secret" {
			return 401, map[string]any{"errcode": "M_FORBIDDEN", "error": "wrong", "session": "s", "flows": []map[string]any{{"stages": []string{"m.login.password"}}}}
		}
		for _, usage := range []string{"master", "self_signing", "user_signing"} {
			h.Cross[user][usage] = body[usage+"_key"]
		}
		h.announce(user)
		return 200, map[string]any{}
	})
	handle("POST "+v3+"/keys/signatures/upload", h.signatures)
	handle("PUT "+v3+"/sendToDevice/{type}/{txn}", func(_ *Device, user id.UserID, body map[string]json.RawMessage, r *http.Request) (int, any) {
		var messages map[id.UserID]map[string]json.RawMessage
		if err := json.Unmarshal(body["messages"], &messages); err != nil {
			t.Error(err)
		}
		for to, devices := range messages {
			for name, d := range h.Devices[to] {
				for _, key := range []string{name, "*"} {
					if content, ok := devices[key]; ok {
						d.Inbox = append(d.Inbox, map[string]any{"type": r.PathValue("type"), "sender": user, "content": content})
					}
				}
			}
		}
		h.poke()
		return 200, map[string]any{}
	})
	handle("GET "+v3+"/user/{user}/account_data/{type}", func(_ *Device, user id.UserID, _ map[string]json.RawMessage, r *http.Request) (int, any) {
		if v, ok := h.AccountData[user.String()+r.PathValue("type")]; ok {
			return 200, v
		}
		return 404, map[string]any{"errcode": "M_NOT_FOUND", "error": "none"}
	})
	handle("PUT "+v3+"/user/{user}/account_data/{type}", func(_ *Device, user id.UserID, body map[string]json.RawMessage, r *http.Request) (int, any) {
		raw, err := json.Marshal(body)
		if err != nil {
			t.Error(err)
		}
		h.AccountData[user.String()+r.PathValue("type")] = raw
		return 200, map[string]any{}
	})
	mux.HandleFunc("GET "+v3+"/sync", h.sync)
	mux.HandleFunc("GET /_matrix/client/versions", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"versions":["v1.11"]}`)
	})
	handle("GET "+v3+"/joined_rooms", func(*Device, id.UserID, map[string]json.RawMessage, *http.Request) (int, any) {
		return 200, map[string]any{"joined_rooms": []string{}}
	})
	mux.HandleFunc("GET "+v3+"/login/sso/redirect", func(w http.ResponseWriter, r *http.Request) {
		h.Mu.Lock()
		defer h.Mu.Unlock()
		token := fmt.Sprintf("login-%d", len(h.logins)+1)
		h.logins[token] = true
		http.Redirect(w, r, r.URL.Query().Get("redirectUrl")+"?loginToken="+token, http.StatusFound)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("unexpected request %s %s", r.Method, r.URL.Path)
		w.WriteHeader(404)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	h.URL = server.URL
	return h
}

func (h *Server) caller(r *http.Request) (id.UserID, *Device) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	for user, devices := range h.Devices {
		for _, d := range devices {
			if token != "" && d.Token == token {
				return user, d
			}
		}
	}
	return "", nil
}

func (h *Server) poke() {
	close(h.wake)
	h.wake = make(chan struct{})
}

func (h *Server) announce(user id.UserID) {
	for _, devices := range h.Devices {
		for _, d := range devices {
			d.Changed = append(d.Changed, user)
		}
	}
	h.poke()
}

func (h *Server) login(_ *Device, _ id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
	var req struct {
		Type, Password, Token string
		Identifier            struct{ User string }
		Device                string `json:"device_id"`
		Refresh               bool   `json:"refresh_token"`
	}
	raw, _ := json.Marshal(body)
	if json.Unmarshal(raw, &req) != nil {
		return 400, map[string]any{"errcode": "M_BAD_JSON"}
	}
	user := id.UserID(req.Identifier.User)
	switch {
	case req.Type == "m.login.password" && req.Password == h.password(user):
	case req.Type == "m.login.token" && (req.Token == "good-token" || h.logins[req.Token]):
		if user = "@sso:one"; h.logins[req.Token] {
			h.logins[req.Token] = false
		}
	default:
		return 403, map[string]any{"errcode": "M_FORBIDDEN", "error": "no"}
	}
	if !strings.HasPrefix(string(user), "@") {
		user = "@" + user + ":one"
	}
	name := req.Device
	if name == "" {
		h.NextLogin++
		name = fmt.Sprintf("DEV%d", h.NextLogin)
	}
	d := h.Add(user, name)
	d.give(req.Refresh)
	return 200, h.given(d, map[string]any{"user_id": user, "device_id": name})
}

// register makes a user whose password is as everybody's, once a question was answered: what only answers it goes on with
// what was said before, as at a Synapse.
func (h *Server) register(_ *Device, _ id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
	var req struct {
		Username string
		Later    bool `json:"inhibit_login"`
		Auth     *struct{ Type, Session string }
	}
	if auth := body["auth"]; len(body) == 1 && auth != nil {
		body = map[string]json.RawMessage{"auth": auth}
		for name, value := range h.begun {
			if name != "auth" {
				body[name] = value
			}
		}
	}
	raw, _ := json.Marshal(body)
	if json.Unmarshal(raw, &req) != nil || req.Username == "" {
		return 400, map[string]any{"errcode": "M_BAD_JSON"}
	}
	user := id.UserID("@" + req.Username + ":one")
	switch {
	case h.Devices[user] != nil:
		return 400, map[string]any{"errcode": "M_USER_IN_USE", "error": "taken"}
	case req.Auth == nil || req.Auth.Type != "m.login.dummy" || req.Auth.Session != "s":
		h.begun = body
		return 401, map[string]any{"session": "s", "flows": []map[string]any{{"stages": []string{"m.login.dummy"}}}}
	case req.Later:
		h.Devices[user] = map[string]*Device{}
		return 200, map[string]any{"user_id": user}
	}
	h.NextLogin++
	name := fmt.Sprintf("DEV%d", h.NextLogin)
	d := h.Add(user, name)
	d.give(false)
	return 200, h.given(d, map[string]any{"user_id": user, "device_id": name})
}

// password is a user's.
func (h *Server) password(user id.UserID) string {
	if p, ok := h.Passwords[user]; ok {
		return p
	}
	return "secret"
}

// proven does something once the user has proven by the password who it is. What only does that goes on with what was
// said before, as at a Synapse.
func (h *Server) proven(user id.UserID, body map[string]json.RawMessage, do func(body map[string]json.RawMessage)) (int, any) {
	var auth struct{ Type, Password, Session string }
	_ = json.Unmarshal(body["auth"], &auth)
	if len(body) == 1 && body["auth"] != nil {
		body = h.asked
	}
	if auth.Type != "m.login.password" || auth.Session != "s" || auth.Password != h.password(user) {
		h.asked = body
		return 401, map[string]any{"session": "s", "flows": []map[string]any{{"stages": []string{"m.login.password"}}}}
	}
	do(body)
	return 200, map[string]any{}
}

// Add makes a device, or finds it. The caller holds Mu.
func (h *Server) Add(user id.UserID, name string) *Device {
	if h.Devices[user] == nil {
		h.Devices[user] = map[string]*Device{}
	}
	d := h.Devices[user][name]
	if d == nil {
		d = &Device{Token: "token-" + name + string(user), Fallback: map[string]Key{}, Used: map[string]bool{}}
		h.Devices[user][name] = d
	}
	return d
}

// give makes the next tokens of a device.
func (d *Device) give(refresh bool) {
	base, _, _ := strings.Cut(d.Token, "#")
	d.Tokens++
	d.Over, d.Refresh = false, ""
	if d.Tokens > 1 {
		d.Token = fmt.Sprintf("%s#%d", base, d.Tokens)
	}
	if refresh {
		d.Refresh = "refresh-" + d.Token
	}
}

// given adds the tokens to an answer.
func (h *Server) given(d *Device, answer map[string]any) map[string]any {
	answer["access_token"] = d.Token
	if d.Refresh != "" {
		answer["refresh_token"] = d.Refresh
	}
	if h.Lasts > 0 {
		answer["expires_in_ms"] = h.Lasts.Milliseconds()
	}
	return answer
}

func (h *Server) refresh(_ *Device, _ id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
	var token string
	if json.Unmarshal(body["refresh_token"], &token) == nil && token != "" {
		for _, devices := range h.Devices {
			for _, d := range devices {
				if d.Refresh == token {
					d.give(true)
					return 200, h.given(d, map[string]any{})
				}
			}
		}
	}
	return 401, map[string]any{"errcode": "M_UNKNOWN_TOKEN", "error": "no such refresh token"}
}

func (h *Server) upload(me *Device, user id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
	if len(body) > 0 {
		h.Uploads++
	}
	if keys := body["device_keys"]; keys != nil {
		me.Keys = keys
		var uploaded struct {
			DeviceID string `json:"device_id"`
		}
		_ = json.Unmarshal(keys, &uploaded)
		h.LastKeys[uploaded.DeviceID] = keys
		h.announce(user)
	}
	var otk, fallback map[string]json.RawMessage
	_ = json.Unmarshal(body["one_time_keys"], &otk)
	_ = json.Unmarshal(body["fallback_keys"], &fallback)
	for keyID, value := range otk {
		if !strings.Contains(keyID, ":") {
			h.t.Errorf("one-time key %q without a colon", keyID)
		}
		me.OTK = append(me.OTK, Key{keyID, value})
	}
	if h.Fallback {
		for keyID, value := range fallback {
			me.Fallback[AlgorithmOf(keyID)] = Key{keyID, value}
			me.Used[AlgorithmOf(keyID)] = false
		}
	}
	return 200, map[string]any{"one_time_key_counts": me.Counts()}
}

// Counts returns how many one-time keys there are of each algorithm.
func (d *Device) Counts() map[string]int {
	counts := map[string]int{}
	for _, k := range d.OTK {
		counts[AlgorithmOf(k.ID)]++
	}
	return counts
}

func (h *Server) query(_ *Device, _ id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
	h.Queries++
	if h.Answering != nil {
		defer h.Answering()
	}
	var ask map[id.UserID][]string
	var timeout int
	if err := json.Unmarshal(body["device_keys"], &ask); err != nil {
		h.t.Error(err)
	}
	if body["timeout"] == nil {
		timeout = 10_000
	} else if err := json.Unmarshal(body["timeout"], &timeout); err != nil {
		h.t.Error(err)
	}
	avoided := 0
	for user := range ask {
		if h.Avoided[user.Homeserver()] {
			avoided++
		}
	}
	devices := map[id.UserID]map[string]json.RawMessage{}
	failures := map[string]any{}
	keys := map[string]map[id.UserID]json.RawMessage{"master": {}, "self_signing": {}, "user_signing": {}}
	for user := range ask {
		if h.Failures[user.Homeserver()] || h.Avoided[user.Homeserver()] && timeout <= 10_000*avoided {
			failures[user.Homeserver()] = map[string]any{}
			continue
		}
		if h.Hidden[user.Homeserver()] {
			continue
		}
		devices[user] = map[string]json.RawMessage{}
		for name, d := range h.Devices[user] {
			if d.Keys != nil {
				devices[user][name] = d.Keys
			}
		}
		for usage, key := range h.Cross[user] {
			keys[usage][user] = key
		}
	}
	for user := range ask {
		if h.Hidden[user.Homeserver()] && len(devices) == 0 {
			failures[user.Homeserver()] = map[string]any{}
		}
	}
	return 200, map[string]any{
		"device_keys": devices, "failures": failures,
		"master_keys": keys["master"], "self_signing_keys": keys["self_signing"], "user_signing_keys": keys["user_signing"],
	}
}

func (h *Server) claim(_ *Device, _ id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
	var ask map[id.UserID]map[string]string
	if err := json.Unmarshal(body["one_time_keys"], &ask); err != nil {
		h.t.Error(err)
	}
	out := map[id.UserID]map[string]map[string]json.RawMessage{}
	for user, devices := range ask {
		out[user] = map[string]map[string]json.RawMessage{}
		for name, algorithm := range devices {
			d := h.Devices[user][name]
			if d == nil {
				continue
			}
			var key *Key
			for n, k := range d.OTK {
				if AlgorithmOf(k.ID) == algorithm {
					key, d.OTK = &k, append(d.OTK[:n:n], d.OTK[n+1:]...)
					break
				}
			}
			if f, ok := d.Fallback[algorithm]; key == nil && ok {
				key, d.Used[algorithm] = &f, true
			}
			if key != nil {
				out[user][name] = map[string]json.RawMessage{key.ID: key.Value}
			}
		}
	}
	return 200, map[string]any{"one_time_keys": out, "failures": map[string]any{}}
}

// signatures adds uploaded signatures to the stored keys.
func (h *Server) signatures(_ *Device, user id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
	merge := func(into *json.RawMessage, from json.RawMessage) {
		var a, b map[string]any
		if json.Unmarshal(*into, &a) != nil || json.Unmarshal(from, &b) != nil {
			h.t.Error("signatures of no object")
			return
		}
		all, _ := a["signatures"].(map[string]any)
		if all == nil {
			all = map[string]any{}
		}
		for signer, sigs := range b["signatures"].(map[string]any) {
			if all[signer] == nil {
				all[signer] = map[string]any{}
			}
			for keyID, sig := range sigs.(map[string]any) {
				all[signer].(map[string]any)[keyID] = sig
			}
		}
		a["signatures"] = all
		*into, _ = json.Marshal(a)
	}
	for target, raw := range body {
		var signed map[string]json.RawMessage
		if err := json.Unmarshal(raw, &signed); err != nil {
			h.t.Error(err)
		}
		for name, object := range signed {
			if d := h.Devices[id.UserID(target)][name]; d != nil {
				merge(&d.Keys, object)
			} else if master := h.Cross[id.UserID(target)]["master"]; master != nil && strings.Contains(string(master), name) {
				merge(&master, object)
				h.Cross[id.UserID(target)]["master"] = master
			} else {
				return 200, map[string]any{"failures": map[string]any{target: name}}
			}
		}
		h.announce(id.UserID(target))
	}
	return 200, map[string]any{}
}

// sync waits until there is something to say, at most as long as asked.
func (h *Server) sync(w http.ResponseWriter, r *http.Request) {
	timeout, err := time.ParseDuration(r.URL.Query().Get("timeout") + "ms")
	if err != nil {
		h.t.Error(err)
	}
	deadline := time.After(timeout)
	for done := false; ; {
		h.Mu.Lock()
		_, me := h.caller(r)
		if me == nil || me.Over {
			h.Mu.Unlock()
			w.WriteHeader(401)
			fmt.Fprintf(w, `{"errcode":"M_UNKNOWN_TOKEN","error":"no such token","soft_logout":%v}`, me != nil)
			return
		}
		if len(me.Inbox) > 0 || len(me.Changed) > 0 || done {
			resp := map[string]any{
				"next_batch": "n", "to_device": map[string]any{"events": me.Inbox},
				"device_lists": map[string]any{"changed": me.Changed}, "device_one_time_keys_count": me.Counts(),
			}
			if h.Fallback {
				unused := []string{}
				for algorithm := range me.Fallback {
					if !me.Used[algorithm] {
						unused = append(unused, algorithm)
					}
				}
				resp["device_unused_fallback_key_types"] = unused
			}
			me.Inbox, me.Changed = nil, nil
			h.Mu.Unlock()
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(resp); err != nil {
				h.t.Error(err)
			}
			return
		}
		wake := h.wake
		h.Mu.Unlock()
		select {
		case <-wake:
		case <-deadline:
			done = true
		case <-r.Context().Done():
			return
		}
	}
}
