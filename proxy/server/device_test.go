package server

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/internal/hstest"
	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/proxy/account"
)

const (
	deviceUser = id.UserID("@a:one")
	mlsRoom    = id.RoomID("!mls:one")   // the MLS device knows it
	newRoom    = id.RoomID("!new:one")   // one with MLS that it has not heard of
	plainRoom  = id.RoomID("!plain:one") // one without encryption
)

// mlsEncryption is the state of an MLS room.
const mlsEncryption = `{"algorithm":"io.github.matrix-mls.v1"}`

// deviceWorld is a proxy with one account, whose MLS device knows of mlsRoom, in
// front of a homeserver in memory with rooms.
type deviceWorld struct {
	t        *testing.T
	hs       *hstest.Server
	front    *httptest.Server // the homeserver, as the program meets it
	dir      string           // of the accounts
	accounts *account.Set
	server   *Server
	proxy    *httptest.Server
	token    string // of the client's session

	mu    sync.Mutex
	asked []string // requests about rooms that may change something: method, path below /rooms, body
	// state answers what is asked of a room's state in place of what it is, if it does not return 0.
	state func(room id.RoomID, eventType string) (status int, body string)
	// get answers what is read of a room, if it does not return 0.
	get func(room id.RoomID, what string, query url.Values) (status int, body string)
	// member is what the state says of a user who is asked for.
	member map[string]string
	// tells is what the device's next /sync says of rooms.
	tells map[string]any
	// refuses is the end of paths that are forbidden.
	refuses string
	away    bool // no /sync is answered
	gone    bool // nothing is answered
}

func newDeviceWorld(t *testing.T) *deviceWorld {
	t.Helper()
	w := &deviceWorld{t: t, hs: hstest.New(t, true), member: map[string]string{}}
	w.tells = w.joined()
	base, err := url.Parse(w.hs.URL)
	if err != nil {
		t.Fatal(err)
	}
	rest := httputil.NewSingleHostReverseProxy(base)
	rest.ModifyResponse, rest.ErrorLog = w.addRooms, log.New(io.Discard, "", 0)
	// While it is gone it hangs up, and keeps its address, which something else could take.
	w.front = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		gone, refuses := w.gone, w.refuses
		w.mu.Unlock()
		if gone {
			panic(http.ErrAbortHandler)
		}
		if refuses != "" && strings.HasSuffix(r.URL.Path, refuses) {
			out.WriteHeader(http.StatusForbidden)
			fmt.Fprint(out, `{"errcode":"M_FORBIDDEN","error":"no"}`)
			return
		}
		for _, prefix := range []string{"/_matrix/client/v3/rooms/", "/_matrix/client/r0/rooms/", "/_matrix/client/v1/rooms/"} {
			if in, ok := strings.CutPrefix(r.URL.Path, prefix); ok {
				w.answer(out, r, in)
				return
			}
		}
		if strings.HasPrefix(r.URL.Path, "/_matrix/client/v3/pushrules") {
			fmt.Fprint(out, `{"global":{}}`)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/sync") {
			w.mu.Lock()
			away := w.away
			if w.tells != nil {
				query := r.URL.Query()
				query.Set("timeout", "0")
				r.URL.RawQuery = query.Encode()
			}
			w.mu.Unlock()
			if away {
				<-r.Context().Done()
				return
			}
		}
		rest.ServeHTTP(out, r)
	}))
	t.Cleanup(w.front.Close)
	w.dir = t.TempDir()
	w.hs.Mu.Lock()
	w.token = w.hs.Add(deviceUser, "ONE").Token
	w.hs.Mu.Unlock()
	w.start()
	if _, err := w.accounts.Login(t.Context(), deviceUser, "secret", "ONE"); err != nil {
		t.Fatal(err)
	}
	if err := w.account().Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !w.account().Client().IsMLS(mlsRoom) {
		t.Fatal("the device does not know its room: the test proves nothing")
	}
	return w
}

// start starts the program, with the accounts that are in its folder.
func (w *deviceWorld) start() {
	w.t.Helper()
	accounts, err := account.Open(w.t.Context(), account.Options{
		Dir: w.dir, Homeserver: w.front.URL, Note: w.t.Logf, Getenv: func(string) string { return "" }, Log: zerolog.Nop(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(accounts.Close)
	base, err := url.Parse(w.front.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	w.accounts, w.server = accounts, New(Options{Homeserver: base, Accounts: accounts, Log: zerolog.Nop()})
	w.proxy = httptest.NewServer(w.server)
	w.t.Cleanup(w.proxy.Close)
}

func (w *deviceWorld) account() *account.Account {
	w.t.Helper()
	a, err := w.accounts.Get(deviceUser)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// joined is what /sync says of the room that the device knows.
func (w *deviceWorld) joined() map[string]any {
	return map[string]any{"join": map[id.RoomID]any{mlsRoom: map[string]any{
		"state": map[string]any{"events": w.stateOf(mlsRoom)}, "timeline": map[string]any{"events": []any{}},
	}}}
}

// addRooms tells the device of rooms.
func (w *deviceWorld) addRooms(resp *http.Response) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !strings.HasSuffix(resp.Request.URL.Path, "/sync") || resp.StatusCode != http.StatusOK || w.tells == nil {
		return nil
	}
	var body map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		return err
	}
	body["rooms"], w.tells = w.tells, nil
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	resp.Body, resp.ContentLength = io.NopCloser(strings.NewReader(string(raw))), int64(len(raw))
	resp.Header.Set("Content-Length", fmt.Sprint(len(raw)))
	return nil
}

// tell tells the device of rooms by its /sync, which is waiting.
func (w *deviceWorld) tell(rooms map[string]any) {
	w.t.Helper()
	w.mu.Lock()
	w.tells = rooms
	w.mu.Unlock()
	// Something else that is new ends the wait.
	if status, body := w.do("PUT", "/_matrix/client/v3/sendToDevice/com.example.wake/1", `{"messages":{"`+string(deviceUser)+`":{"*":{}}}}`); status != http.StatusOK {
		w.t.Fatalf("%d %s", status, body)
	}
}

// until waits until something is so, and looks again at each update of the device.
func (w *deviceWorld) until(is func() bool) {
	w.t.Helper()
	hang := time.After(patience.Hang)
	for a := w.account(); ; {
		changed := a.Changed()
		if is() {
			return
		}
		select {
		case <-changed:
		case <-hang:
			w.t.Fatal("it never comes to that")
		}
	}
}

// stateOf is a room's state.
func (w *deviceWorld) stateOf(room id.RoomID) []map[string]any {
	event := func(eventType, key, content string) map[string]any {
		return map[string]any{
			"event_id": "$" + eventType, "type": eventType, "state_key": key, "sender": deviceUser, "origin_server_ts": 1, "content": json.RawMessage(content),
		}
	}
	out := []map[string]any{event("m.room.create", "", `{"room_version":"11"}`), event("m.room.member", string(deviceUser), `{"membership":"join"}`)}
	if room != plainRoom {
		out = append(out, event("m.room.encryption", "", mlsEncryption))
	}
	return out
}

// answer answers what is asked of rooms.
func (w *deviceWorld) answer(out http.ResponseWriter, r *http.Request, in string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name, rest, _ := strings.Cut(in, "/")
	room := id.RoomID(name)
	out.Header().Set("Content-Type", "application/json")
	if r.Method != http.MethodGet {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.t.Error(err)
		}
		w.asked = append(w.asked, r.Method+" "+rest+" "+string(body))
		fmt.Fprint(out, `{"event_id":"$made"}`)
		return
	}
	if w.get != nil {
		if status, body := w.get(room, rest, r.URL.Query()); status != 0 {
			out.WriteHeader(status)
			fmt.Fprint(out, body)
			return
		}
	}
	eventType, key, _ := strings.Cut(strings.TrimPrefix(rest, "state/"), "/")
	if w.state != nil {
		if status, body := w.state(room, eventType); status != 0 {
			out.WriteHeader(status)
			fmt.Fprint(out, body)
			return
		}
	}
	if rest == "state" {
		if err := json.NewEncoder(out).Encode(w.stateOf(room)); err != nil {
			w.t.Error(err)
		}
		return
	}
	if is := w.member[key]; eventType == "m.room.member" && is != "" {
		fmt.Fprintf(out, `{"event_id":"$says","content":{"membership":%q}}`, is)
		return
	}
	for _, evt := range w.stateOf(room) {
		if evt["type"] == eventType && evt["state_key"] == key {
			if err := json.NewEncoder(out).Encode(evt["content"]); err != nil {
				w.t.Error(err)
			}
			return
		}
	}
	out.WriteHeader(http.StatusNotFound)
	fmt.Fprint(out, `{"errcode":"M_NOT_FOUND","error":"there is none"}`)
}

// changes returns what reached the homeserver about rooms that may have changed something.
func (w *deviceWorld) changes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.asked...)
}

// do makes a request as the client.
func (w *deviceWorld) do(method, path, body string) (int, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.proxy.URL+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}
