package server

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestNothingGoesOutInClear: each row of docs/proxy.md, "Never in clear". The client gets a Matrix error that says why, and nothing of
// what it wrote comes to the homeserver.
func TestNothingGoesOutInClear(t *testing.T) {
	const planted = "a planted word"
	// Of the state of a room that the device does not know, what is asked for under one type is answered like this.
	says := func(eventType string, status int, body string) func(w *deviceWorld) {
		return func(w *deviceWorld) {
			w.state = func(_ id.RoomID, asked string) (int, string) {
				if asked == eventType {
					return status, body
				}
				return 0, ""
			}
		}
	}
	const notFound, forbidden, page = `{"errcode":"M_NOT_FOUND","error":"no"}`, `{"errcode":"M_FORBIDDEN","error":"no"}`, `<html>Bad Gateway</html>`
	const limited = http.StatusTooManyRequests
	for n, tt := range []struct {
		name    string
		room    id.RoomID
		send    string // the path below the room, "" for one message
		body    string // "" for a message
		set     func(w *deviceWorld)
		status  int
		code    string
		says    string
		waits   bool   // the client is told to ask again once it has waited, and its person why
		because string // it waits
	}{
		{name: "how the room was made: 404", room: plainRoom, set: says(rooms.TypeCreate, 404, notFound), status: 404, code: "M_NOT_FOUND", says: "no"},
		{name: "how the room was made: 403", room: plainRoom, set: says(rooms.TypeCreate, 403, forbidden), status: 403, code: "M_FORBIDDEN", says: "no"},
		{name: "how the room was made: 502", room: plainRoom, set: says(rooms.TypeCreate, 502, page), status: 502, code: "M_UNKNOWN", says: "no Matrix error"},
		{name: "its encryption: 403", room: plainRoom, set: says(rooms.TypeEncryption, 403, forbidden), status: 403, code: "M_FORBIDDEN", says: "no"},
		{name: "its encryption: 404 of somebody else", room: plainRoom, set: says(rooms.TypeEncryption, 404, page), status: 502, code: "M_UNKNOWN", says: "no Matrix error"},
		{name: "its encryption: 502", room: plainRoom, set: says(rooms.TypeEncryption, 502, page), status: 502, code: "M_UNKNOWN", says: "no Matrix error"},
		{name: "its encryption: 200 without JSON", room: plainRoom, set: says(rooms.TypeEncryption, 200, page), status: limited, code: "M_LIMIT_EXCEEDED", says: "without JSON"},
		{name: "its encryption: emptied", room: plainRoom, set: says(rooms.TypeEncryption, 200, `{}`), status: limited, code: "M_LIMIT_EXCEEDED", says: "names no algorithm"},
		{name: "a room with MLS that the device has not heard of", room: newRoom, status: limited, code: "M_LIMIT_EXCEEDED", says: "nothing goes out in clear"},
		{name: "one that was made for MLS, and is said to have Megolm", room: newRoom, set: func(w *deviceWorld) {
			w.state = func(_ id.RoomID, asked string) (int, string) {
				switch asked {
				case rooms.TypeCreate:
					return 200, `{"room_version":"11","` + rooms.KeyCreateAlgorithm + `":"` + rooms.Algorithm + `"}`
				case rooms.TypeEncryption:
					return 200, `{"algorithm":"m.megolm.v1.aes-sha2"}`
				}
				return 0, ""
			}
		}, status: limited, code: "M_LIMIT_EXCEEDED", says: "nothing goes out in clear"},
		{name: "encryption contested: the device's room is said to have Megolm", room: mlsRoom, set: says(rooms.TypeEncryption, 200, `{"algorithm":"m.megolm.v1.aes-sha2"}`), status: limited, code: "M_LIMIT_EXCEEDED", says: "not yet", waits: true},
		{name: "encryption contested: the device's room is said to have none", room: mlsRoom, set: says(rooms.TypeEncryption, 404, notFound), status: limited, code: "M_LIMIT_EXCEEDED", says: "not yet", waits: true},
		{name: "not in the group yet", room: mlsRoom, status: limited, code: "M_LIMIT_EXCEEDED", says: "not in the room's group yet", waits: true, because: account.WaitsForEntry},
		{name: "the device is not verified", room: mlsRoom, set: (*deviceWorld).unverified, status: limited, code: "M_LIMIT_EXCEEDED", says: "verify --recovery-key", waits: true, because: account.WaitsForVerification},
		{name: "not synced since the start", room: mlsRoom, set: (*deviceWorld).silent, status: limited, code: "M_LIMIT_EXCEEDED", says: "not yet", waits: true},
		{name: "not synced since the start, in a room that the device does not know", room: newRoom, set: (*deviceWorld).silent, status: limited, code: "M_LIMIT_EXCEEDED", says: "nothing goes out in clear"},
		{name: "removed", room: mlsRoom, set: (*deviceWorld).removed, status: 403, code: "M_FORBIDDEN", says: "removed"},
		{name: "too large for an event", room: mlsRoom, body: `{"msgtype":"m.text","body":"` + planted + strings.Repeat("x", 70_000) + `"}`, status: 413, code: "M_TOO_LARGE", says: "large"},
		{name: "too large for the proxy", room: mlsRoom, body: `{"msgtype":"m.text","body":"` + planted + strings.Repeat("x", maxRequest) + `"}`, status: 413, code: "M_TOO_LARGE", says: "bytes"},
		{name: "encrypted by the client", room: mlsRoom, send: "send/m.room.encrypted/t", body: `{"ciphertext":"` + planted + `"}`, status: 403, code: "M_FORBIDDEN", says: "encrypted this message by itself"},
		{name: "m.room.encryption", room: mlsRoom, send: "state/m.room.encryption/", body: `{"algorithm":"m.megolm.v1.aes-sha2","x":"` + planted + `"}`, status: 403, code: "M_FORBIDDEN", says: "encrypted already"},
		{name: "a message as state", room: mlsRoom, send: "state/m.room.message/x", status: 403, code: "M_FORBIDDEN", says: "state is not encrypted"},
		{name: "no object", room: mlsRoom, body: `["` + planted + `"]`, status: 403, code: "M_FORBIDDEN", says: "JSON object"},
	} {
		version := []string{"r0", "v3"}[n%2] // they are served alike
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newDeviceWorld(t)
			if tt.set != nil {
				tt.set(w)
			}
			path, body := tt.send, tt.body
			if path == "" {
				path = "send/m.room.message/t"
			}
			if body == "" {
				body = `{"msgtype":"m.text","body":"` + planted + `"}`
			}
			if _, err := w.account().Notices(t.Context(), "ONE"); err != nil { // it is told of what comes from now on
				t.Fatal(err)
			}
			// What has to wait in vain does so for longer each time, until the wait is no shorter than what comes before it on this machine.
			w.server.sendWait = patience.Hang
			if tt.waits {
				w.server.sendWait = 50 * time.Millisecond
			}
			for {
				status, answered := w.do("PUT", "/_matrix/client/"+version+"/rooms/"+string(tt.room)+"/"+path, body)
				var e struct{ Errcode, Error string }
				if err := json.Unmarshal([]byte(answered), &e); err == nil && status == tt.status && e.Errcode == tt.code && strings.Contains(e.Error, tt.says) && !strings.Contains(e.Error, "context") && !strings.Contains(answered, planted) {
					break
				}
				if w.server.sendWait *= 2; status != limited || !tt.waits || w.server.sendWait > patience.Hang || strings.Contains(answered, planted) {
					t.Errorf("%d %s, want %d %s with %q", status, answered, tt.status, tt.code, tt.says)
					break
				}
			}
			if got := strings.Join(w.changes(), "\n"); strings.Contains(got, planted) {
				t.Errorf("the homeserver got %q", got)
			}
			told, err := w.account().Notices(t.Context(), "ONE")
			if err != nil {
				t.Fatal(err)
			}
			told = slices.DeleteFunc(told, func(n account.Notice) bool { return n.Kind != account.WaitsNotice })
			if tt.waits != (len(told) == 1) || tt.waits && (told[0].Room != tt.room || told[0].Reason != cmp.Or(tt.because, told[0].Reason)) {
				t.Errorf("the person is told %+v of what waits", told)
			}
			for _, n := range told {
				if text := noticeText(rewrite.German, n, "/dir"); strings.Contains(text, planted) || !strings.Contains(text, "wartet und geht von selbst hinaus") {
					t.Errorf("it is told as %q", text)
				}
			}
		})
	}
	t.Run("what may go out does", func(t *testing.T) {
		w := newDeviceWorld(t)
		status, answered := w.do("PUT", "/_matrix/client/v3/rooms/"+string(plainRoom)+"/send/m.room.message/t", `{"body":"`+planted+`"}`)
		if got := strings.Join(w.changes(), "\n"); status != http.StatusOK || !strings.Contains(got, planted) {
			t.Errorf("%d %s, the homeserver got %q", status, answered, got)
		}
	})
}

// unverified lets the account begin anew with a device that its user has not signed.
func (w *deviceWorld) unverified() {
	w.t.Helper()
	w.accounts.Close()
	w.dir = w.t.TempDir()
	w.mu.Lock()
	w.tells = w.joined()
	w.mu.Unlock()
	w.start()
	if _, err := w.accounts.Login(w.t.Context(), deviceUser, "secret", "ONE"); err != nil {
		w.t.Fatal(err)
	}
	if err := w.account().Ready(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if w.account().Verified(w.t.Context()) || !w.account().Client().IsMLS(mlsRoom) {
		w.t.Fatal("the device is verified, or does not know its room: the test proves nothing")
	}
}

// silent starts the program again while the homeserver answers no /sync.
func (w *deviceWorld) silent() {
	w.t.Helper()
	w.accounts.Close()
	w.mu.Lock()
	w.away = true
	w.mu.Unlock()
	w.start()
	if !w.account().Client().IsMLS(mlsRoom) {
		w.t.Fatal("the device has forgotten its room")
	}
}

// removed puts the account's user out of the room.
func (w *deviceWorld) removed() {
	w.t.Helper()
	w.tell(map[string]any{"leave": map[id.RoomID]any{mlsRoom: map[string]any{"timeline": map[string]any{"events": []any{map[string]any{
		"event_id": "$out", "type": "m.room.member", "state_key": deviceUser, "sender": "@b:one", "origin_server_ts": 2, "content": map[string]string{"membership": "leave"},
	}}}}}})
	w.until(func() bool {
		info, err := w.account().Client().Room(w.t.Context(), mlsRoom)
		return err == nil && info.Phase == "removed"
	})
}

// TestNothingIsSentLater: a room without encryption may be an MLS room by then.
func TestNothingIsSentLater(t *testing.T) {
	w := newDeviceWorld(t)
	for _, room := range []id.RoomID{plainRoom, newRoom} {
		for _, path := range []string{"/send/m.room.message/t", "/state/m.room.topic/", "/state/m.room.topic"} {
			for _, query := range []string{"org.matrix.msc4140.delay=5000", "org.matrix.msc4140.parent_delay_id=x", "delay=5000"} {
				status, body := w.do("PUT", "/_matrix/client/v3/rooms/"+url.PathEscape(string(room))+path+"?"+query, `{"body":"secret"}`)
				if status != http.StatusBadRequest || code(body) != "M_UNRECOGNIZED" {
					t.Errorf("%s%s?%s: %d %s", room, path, query, status, body)
				}
			}
		}
	}
}
