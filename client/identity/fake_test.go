package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/mls"
)

// homeserver is the part of a homeserver that this package talks to.
type homeserver struct {
	t         *testing.T
	url       string
	fallback  bool // serves fallback keys, as Synapse does
	mu        sync.Mutex
	devices   map[id.UserID]map[string]*fakeDevice
	cross     map[id.UserID]map[string]json.RawMessage // usage → key
	account   map[string]json.RawMessage
	uploads   int
	queries   int
	limited   int             // requests answered with 429 next
	failures  map[string]bool // servers that /keys/query cannot reach
	wake      chan struct{}
	nextLogin int
}

type fakeDevice struct {
	token    string
	keys     json.RawMessage
	otk      []fakeKey
	fallback map[string]fakeKey // by algorithm
	used     map[string]bool
	inbox    []map[string]any
	changed  []id.UserID
}

type fakeKey struct {
	id    string
	value json.RawMessage
}

func algorithmOf(keyID string) string { a, _, _ := strings.Cut(keyID, ":"); return a }

func newHomeserver(t *testing.T, fallback bool) *homeserver {
	h := &homeserver{
		t: t, fallback: fallback, devices: map[id.UserID]map[string]*fakeDevice{}, failures: map[string]bool{},
		cross: map[id.UserID]map[string]json.RawMessage{}, account: map[string]json.RawMessage{}, wake: make(chan struct{}),
	}
	mux := http.NewServeMux()
	handle := func(pattern string, fn func(me *fakeDevice, user id.UserID, body map[string]json.RawMessage, r *http.Request) (int, any)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			h.mu.Lock()
			defer h.mu.Unlock()
			w.Header().Set("Content-Type", "application/json")
			reply := func(code int, v any) {
				w.WriteHeader(code)
				if err := json.NewEncoder(w).Encode(v); err != nil {
					t.Error(err)
				}
			}
			if h.limited > 0 {
				h.limited--
				reply(429, map[string]any{"errcode": "M_LIMIT_EXCEEDED", "error": "slow down", "retry_after_ms": 50})
				return
			}
			user, me := h.caller(r)
			if me == nil && !strings.Contains(r.URL.Path, "/login") {
				reply(401, map[string]any{"errcode": "M_UNKNOWN_TOKEN", "error": "no such token"})
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
	handle("GET "+v3+"/login", func(*fakeDevice, id.UserID, map[string]json.RawMessage, *http.Request) (int, any) {
		return 200, map[string]any{"flows": []map[string]string{{"type": "m.login.password"}, {"type": "m.login.sso"}, {"type": "m.login.token"}}}
	})
	handle("POST "+v3+"/login", h.login)
	handle("POST "+v3+"/logout", func(me *fakeDevice, user id.UserID, _ map[string]json.RawMessage, _ *http.Request) (int, any) {
		for name, d := range h.devices[user] {
			if d == me {
				delete(h.devices[user], name)
			}
		}
		return 200, map[string]any{}
	})
	handle("POST "+v3+"/keys/upload", h.upload)
	handle("POST "+v3+"/keys/query", h.query)
	handle("POST "+v3+"/keys/claim", h.claim)
	handle("POST "+v3+"/keys/device_signing/upload", func(_ *fakeDevice, user id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
		if h.cross[user] == nil {
			h.cross[user] = map[string]json.RawMessage{}
		}
		if body["auth"] == nil {
			return 401, map[string]any{"session": "s", "flows": []map[string]any{{"stages": []string{"m.login.password"}}}}
		}
		var auth struct{ Password string }
		if json.Unmarshal(body["auth"], &auth) != nil || auth.Password != "secret" {
			return 401, map[string]any{"errcode": "M_FORBIDDEN", "error": "wrong", "session": "s", "flows": []map[string]any{{"stages": []string{"m.login.password"}}}}
		}
		for _, usage := range []string{"master", "self_signing", "user_signing"} {
			h.cross[user][usage] = body[usage+"_key"]
		}
		h.announce(user)
		return 200, map[string]any{}
	})
	handle("POST "+v3+"/keys/signatures/upload", h.signatures)
	handle("PUT "+v3+"/sendToDevice/{type}/{txn}", func(_ *fakeDevice, user id.UserID, body map[string]json.RawMessage, r *http.Request) (int, any) {
		var messages map[id.UserID]map[string]json.RawMessage
		if err := json.Unmarshal(body["messages"], &messages); err != nil {
			t.Error(err)
		}
		for to, devices := range messages {
			for name, d := range h.devices[to] {
				for _, key := range []string{name, "*"} {
					if content, ok := devices[key]; ok {
						d.inbox = append(d.inbox, map[string]any{"type": r.PathValue("type"), "sender": user, "content": content})
					}
				}
			}
		}
		h.poke()
		return 200, map[string]any{}
	})
	handle("GET "+v3+"/user/{user}/account_data/{type}", func(_ *fakeDevice, user id.UserID, _ map[string]json.RawMessage, r *http.Request) (int, any) {
		if v, ok := h.account[user.String()+r.PathValue("type")]; ok {
			return 200, v
		}
		return 404, map[string]any{"errcode": "M_NOT_FOUND", "error": "none"}
	})
	handle("PUT "+v3+"/user/{user}/account_data/{type}", func(_ *fakeDevice, user id.UserID, body map[string]json.RawMessage, r *http.Request) (int, any) {
		raw, err := json.Marshal(body)
		if err != nil {
			t.Error(err)
		}
		h.account[user.String()+r.PathValue("type")] = raw
		return 200, map[string]any{}
	})
	mux.HandleFunc("GET "+v3+"/sync", h.sync)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("unexpected request %s %s", r.Method, r.URL.Path)
		w.WriteHeader(404)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	h.url = server.URL
	return h
}

func (h *homeserver) caller(r *http.Request) (id.UserID, *fakeDevice) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	for user, devices := range h.devices {
		for _, d := range devices {
			if token != "" && d.token == token {
				return user, d
			}
		}
	}
	return "", nil
}

func (h *homeserver) poke() {
	close(h.wake)
	h.wake = make(chan struct{})
}

func (h *homeserver) announce(user id.UserID) {
	for _, devices := range h.devices {
		for _, d := range devices {
			d.changed = append(d.changed, user)
		}
	}
	h.poke()
}

func (h *homeserver) login(_ *fakeDevice, _ id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
	var req struct {
		Type, Password, Token string
		Identifier            struct{ User string }
	}
	raw, _ := json.Marshal(body)
	if json.Unmarshal(raw, &req) != nil {
		return 400, map[string]any{"errcode": "M_BAD_JSON"}
	}
	user := id.UserID(req.Identifier.User)
	switch {
	case req.Type == "m.login.password" && req.Password == "secret":
	case req.Type == "m.login.token" && req.Token == "good-token":
		user = "@sso:one"
	default:
		return 403, map[string]any{"errcode": "M_FORBIDDEN", "error": "no"}
	}
	if !strings.HasPrefix(string(user), "@") {
		user = "@" + user + ":one"
	}
	h.nextLogin++
	name := fmt.Sprintf("DEV%d", h.nextLogin)
	if h.devices[user] == nil {
		h.devices[user] = map[string]*fakeDevice{}
	}
	h.devices[user][name] = &fakeDevice{token: "token-" + name, fallback: map[string]fakeKey{}, used: map[string]bool{}}
	return 200, map[string]any{"user_id": user, "device_id": name, "access_token": "token-" + name}
}

func (h *homeserver) upload(me *fakeDevice, user id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
	if len(body) > 0 {
		h.uploads++
	}
	if keys := body["device_keys"]; keys != nil {
		me.keys = keys
		h.announce(user)
	}
	var otk, fallback map[string]json.RawMessage
	_ = json.Unmarshal(body["one_time_keys"], &otk)
	_ = json.Unmarshal(body["fallback_keys"], &fallback)
	for keyID, value := range otk {
		if !strings.Contains(keyID, ":") {
			h.t.Errorf("one-time key %q without a colon", keyID)
		}
		me.otk = append(me.otk, fakeKey{keyID, value})
	}
	if h.fallback {
		for keyID, value := range fallback {
			me.fallback[algorithmOf(keyID)] = fakeKey{keyID, value}
			me.used[algorithmOf(keyID)] = false
		}
	}
	return 200, map[string]any{"one_time_key_counts": me.counts()}
}

func (d *fakeDevice) counts() map[string]int {
	counts := map[string]int{}
	for _, k := range d.otk {
		counts[algorithmOf(k.id)]++
	}
	return counts
}

func (h *homeserver) query(_ *fakeDevice, _ id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
	h.queries++
	var ask map[id.UserID][]string
	if err := json.Unmarshal(body["device_keys"], &ask); err != nil {
		h.t.Error(err)
	}
	devices := map[id.UserID]map[string]json.RawMessage{}
	failures := map[string]any{}
	keys := map[string]map[id.UserID]json.RawMessage{"master": {}, "self_signing": {}, "user_signing": {}}
	for user := range ask {
		if h.failures[user.Homeserver()] {
			failures[user.Homeserver()] = map[string]any{}
			continue
		}
		devices[user] = map[string]json.RawMessage{}
		for name, d := range h.devices[user] {
			if d.keys != nil {
				devices[user][name] = d.keys
			}
		}
		for usage, key := range h.cross[user] {
			keys[usage][user] = key
		}
	}
	return 200, map[string]any{
		"device_keys": devices, "failures": failures,
		"master_keys": keys["master"], "self_signing_keys": keys["self_signing"], "user_signing_keys": keys["user_signing"],
	}
}

func (h *homeserver) claim(_ *fakeDevice, _ id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
	var ask map[id.UserID]map[string]string
	if err := json.Unmarshal(body["one_time_keys"], &ask); err != nil {
		h.t.Error(err)
	}
	out := map[id.UserID]map[string]map[string]json.RawMessage{}
	for user, devices := range ask {
		out[user] = map[string]map[string]json.RawMessage{}
		for name, algorithm := range devices {
			d := h.devices[user][name]
			if d == nil {
				continue
			}
			var key *fakeKey
			for n, k := range d.otk {
				if algorithmOf(k.id) == algorithm {
					key, d.otk = &k, append(d.otk[:n:n], d.otk[n+1:]...)
					break
				}
			}
			if f, ok := d.fallback[algorithm]; key == nil && ok {
				key, d.used[algorithm] = &f, true
			}
			if key != nil {
				out[user][name] = map[string]json.RawMessage{key.id: key.value}
			}
		}
	}
	return 200, map[string]any{"one_time_keys": out, "failures": map[string]any{}}
}

// signatures adds uploaded signatures to the stored keys.
func (h *homeserver) signatures(_ *fakeDevice, user id.UserID, body map[string]json.RawMessage, _ *http.Request) (int, any) {
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
			if d := h.devices[id.UserID(target)][name]; d != nil {
				merge(&d.keys, object)
			} else if master := h.cross[id.UserID(target)]["master"]; master != nil && strings.Contains(string(master), name) {
				merge(&master, object)
				h.cross[id.UserID(target)]["master"] = master
			} else {
				return 200, map[string]any{"failures": map[string]any{target: name}}
			}
		}
		h.announce(id.UserID(target))
	}
	return 200, map[string]any{}
}

// sync waits until there is something to say, at most as long as asked.
func (h *homeserver) sync(w http.ResponseWriter, r *http.Request) {
	timeout, err := time.ParseDuration(r.URL.Query().Get("timeout") + "ms")
	if err != nil {
		h.t.Error(err)
	}
	deadline := time.After(timeout)
	for done := false; ; {
		h.mu.Lock()
		_, me := h.caller(r)
		if me == nil {
			h.mu.Unlock()
			w.WriteHeader(401)
			fmt.Fprint(w, `{"errcode":"M_UNKNOWN_TOKEN","error":"no such token"}`)
			return
		}
		if len(me.inbox) > 0 || len(me.changed) > 0 || done {
			resp := map[string]any{
				"next_batch": "n", "to_device": map[string]any{"events": me.inbox},
				"device_lists": map[string]any{"changed": me.changed}, "device_one_time_keys_count": me.counts(),
			}
			if h.fallback {
				unused := []string{}
				for algorithm := range me.fallback {
					if !me.used[algorithm] {
						unused = append(unused, algorithm)
					}
				}
				resp["device_unused_fallback_key_types"] = unused
			}
			me.inbox, me.changed = nil, nil
			h.mu.Unlock()
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(resp); err != nil {
				h.t.Error(err)
			}
			return
		}
		wake := h.wake
		h.mu.Unlock()
		select {
		case <-wake:
		case <-deadline:
			done = true
		case <-r.Context().Done():
			return
		}
	}
}

func (h *homeserver) device(i *Identity) *fakeDevice {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.devices[i.UserID()][i.DeviceID().String()]
}

var suites = []mls.CipherSuite{1, 3}

// openIdentity opens an identity on a store of its own.
func openIdentity(t *testing.T, now func() time.Time) *Identity {
	t.Helper()
	st, err := store.Open(t.Context(), store.Options{Path: filepath.Join(t.TempDir(), "client.db"), Key: make(store.Key, store.KeySize)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	i, err := Open(t.Context(), Options{Store: st, Suites: suites, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// login returns a logged-in device of a user.
func (h *homeserver) loginDevice(user id.UserID) *Identity {
	h.t.Helper()
	i := openIdentity(h.t, nil)
	if err := i.LoginPassword(h.t.Context(), Login{Homeserver: h.url, User: string(user), DeviceName: "test"}, "secret"); err != nil {
		h.t.Fatal(err)
	}
	return i
}

// syncOnce takes what there is.
func syncOnce(t *testing.T, i *Identity) {
	t.Helper()
	resp, err := i.Sync(t.Context(), SyncRequest{Since: "n"})
	if err != nil {
		t.Fatal(err)
	}
	if err := i.ProcessSync(t.Context(), resp); err != nil {
		t.Fatal(err)
	}
}

// keepSyncing syncs until the test ends.
func keepSyncing(t *testing.T, all ...*Identity) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, i := range all {
		wg.Go(func() {
			for ctx.Err() == nil {
				resp, err := i.Sync(ctx, SyncRequest{Since: "n", Timeout: 10 * time.Second})
				if err == nil {
					err = i.ProcessSync(ctx, resp)
				}
				if err != nil && ctx.Err() == nil {
					t.Errorf("sync: %v", err)
					return
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
}
