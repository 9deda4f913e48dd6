package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// httpFace serves the few requests of a mautrix bot from the fake server.
type httpFace struct {
	s      *fakeServer
	d      *testDevice
	mu     sync.Mutex
	bodies []string
}

func (h *httpFace) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	h.mu.Lock()
	h.bodies = append(h.bodies, r.URL.Path+" "+string(body))
	h.mu.Unlock()
	path, _ := url.PathUnescape(r.URL.EscapedPath())
	reply := func(v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	switch {
	case strings.HasSuffix(path, "/filter"):
		reply(map[string]string{"filter_id": "1"})
	case strings.HasSuffix(path, "/sync"):
		resp := h.s.sync(h.d.ident.user, h.d.ident.device, r.URL.Query().Get("since"), 100)
		if len(resp.Rooms.Join) == 0 && len(resp.Rooms.Invite) == 0 {
			select { // a long poll
			case <-r.Context().Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
		reply(resp)
	case strings.Contains(path, "/send/"):
		parts := strings.Split(path, "/")
		n := len(parts)
		evt, err := h.d.hs.Send(r.Context(), id.RoomID(parts[n-4]), parts[n-2], parts[n-1], body)
		if err != nil {
			w.WriteHeader(http.StatusForbidden)
			reply(map[string]string{"errcode": "M_FORBIDDEN"})
			return
		}
		reply(map[string]any{"event_id": evt})
	default:
		w.WriteHeader(http.StatusNotFound)
		reply(map[string]string{"errcode": "M_UNRECOGNIZED"})
	}
}

func TestMautrixBotGetsMLSRooms(t *testing.T) {
	w := newWorld(t)
	alice, bot := w.device("alice", "ALICE1"), w.device("robot", "ROBOT1")
	room := w.createRoom(alice, CreateOptions{})
	w.must(func() error { return alice.Invite(w.ctx, room, bot.UserID()) })
	w.join(bot, room)
	w.settle()
	w.all = []*testDevice{alice} // from here on the bot runs by itself
	// The engine's clock has to go on by itself too.
	var clock sync.Mutex
	began := time.Now()
	at := w.now.get()
	bot.mono = func() time.Duration {
		clock.Lock()
		defer clock.Unlock()
		return at + time.Since(began)
	}

	face := &httpFace{s: w.s, d: bot}
	server := httptest.NewServer(face)
	defer server.Close()
	cli, err := mautrix.NewClient(server.URL, bot.UserID(), "token")
	if err != nil {
		t.Fatal(err)
	}
	cli.DeviceID = bot.DeviceID()
	syncer := mautrix.NewDefaultSyncer()
	cli.Syncer = syncer
	helper := NewCryptoHelper(cli, bot.Client)
	ctx, cancel := context.WithCancel(w.ctx)
	if err := helper.Init(ctx); err != nil {
		t.Fatal(err)
	}
	cli.Crypto = helper
	answered := make(chan error, 2)
	syncer.OnEventType(event.EventMessage, func(ctx context.Context, evt *event.Event) {
		if evt.Sender == cli.UserID {
			return
		}
		if !evt.Mautrix.WasEncrypted || evt.Content.AsMessage().Body != "planted-plaintext question" {
			answered <- errors.New("the handler got something else than the decrypted question")
			return
		}
		_, err := cli.SendReaction(ctx, evt.RoomID, evt.ID, "planted-plaintext-key")
		answered <- err
		_, err = cli.SendText(ctx, evt.RoomID, "planted-plaintext answer")
		answered <- err
	})
	stopped := make(chan error, 1)
	go func() { stopped <- cli.SyncWithContext(ctx) }()
	w.send(alice, room, "planted-plaintext question")
	for range 2 {
		select {
		case err := <-answered:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(patience.Hang):
			t.Fatal("the bot never answered")
		}
	}
	for range 200 {
		alice.turn()
		if len(alice.texts()) >= 3 {
			break
		}
	}
	var got []string
	for _, u := range alice.got {
		if msg, ok := u.(*Message); ok {
			got = append(got, msg.Type+" "+msg.Body())
		}
	}
	want := "m.room.message planted-plaintext question|m.reaction |m.room.message planted-plaintext answer"
	if strings.Join(got, "|") != want {
		t.Errorf("alice got %q", got)
	}
	cancel()
	<-stopped
	if err := bot.Close(); err != nil {
		t.Error(err)
	}
	face.mu.Lock()
	defer face.mu.Unlock()
	for _, body := range face.bodies {
		if strings.Contains(body, "planted-plaintext") {
			t.Errorf("plaintext left the bot: %.120s", body)
		}
	}
}

type recorder struct {
	reqs  []*http.Request
	state func(path string) (int, string) // of a room that is asked about
	asked int
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodGet {
		r.asked++
		status, body := r.state(req.URL.Path)
		return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	req.Body = io.NopCloser(strings.NewReader(string(body)))
	r.reqs = append(r.reqs, req)
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("{}")), Request: req}, nil
}

func TestGuard(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.three("shared")
	base := "https://hs.example/_matrix/client/"
	escaped := url.PathEscape(string(room))
	foreign := url.PathEscape("!other:" + testServer)
	for _, tc := range []struct {
		name, method, path, body string
		encrypted, refused       bool
	}{
		{"reaction", "PUT", "v3/rooms/" + escaped + "/send/m.reaction/t1", `{"m.relates_to":{"key":"secret"}}`, true, false},
		{"message", "PUT", "v3/rooms/" + escaped + "/send/m.room.message/t2", `{"body":"secret"}`, true, false},
		{"custom type", "PUT", "r0/rooms/" + escaped + "/send/com.example.x%2Fy/t3", `{"body":"secret"}`, true, false},
		{"delayed", "PUT", "v3/rooms/" + escaped + "/send/m.room.message/t4?org.matrix.msc4140.delay=5", `{"body":"secret"}`, true, false},
		{"own ciphertext", "PUT", "v3/rooms/" + escaped + "/send/m.room.encrypted/t5", `{"algorithm":"` + rooms.Algorithm + `","ciphertext":"AAEC"}`, false, false},
		{"Megolm", "PUT", "v3/rooms/" + escaped + "/send/m.room.encrypted/t6", `{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"secret"}`, false, true},
		{"not JSON", "PUT", "v3/rooms/" + escaped + "/send/m.room.message/t7", `secret`, false, true},
		{"other room", "PUT", "v3/rooms/" + foreign + "/send/m.room.message/t8", `{"body":"secret"}`, false, false},
		{"delayed in an other room", "PUT", "v3/rooms/" + foreign + "/send/m.room.message/t14?org.matrix.msc4140.delay=5", `{"body":"secret"}`, false, true},
		{"delayed with a parent in an other room", "PUT", "v3/rooms/" + foreign + "/send/m.room.message/t15?org.matrix.msc4140.parent_delay_id=x", `{"body":"secret"}`, false, true},
		{"redaction", "PUT", "v3/rooms/" + escaped + "/send/m.room.redaction/t9", `{"redacts":"$x"}`, false, false},
		{"state", "PUT", "v3/rooms/" + escaped + "/state/m.room.name", `{"name":"n"}`, false, false},
		{"without transaction", "POST", "v3/rooms/" + escaped + "/send/m.room.message", `{"body":"secret"}`, false, true},
		{"POST with transaction", "POST", "v3/rooms/" + escaped + "/send/m.room.message/t10", `{"body":"secret"}`, false, true},
		{"without transaction, PUT", "PUT", "v3/rooms/" + escaped + "/send/m.room.message/", `{"body":"secret"}`, false, true},
		{"escaped words", "PUT", "v3/%72ooms/" + escaped + "/%73end/m.room.message/t11", `{"body":"secret"}`, true, false},
		{"unescaped room", "PUT", "unstable/rooms/" + string(room) + "/send/m.room.message/t12", `{"body":"secret"}`, true, false},
		{"prefix in front", "PUT", "../../proxy/rooms/x/_matrix/client/v3/rooms/" + escaped + "/send/m.room.message/t13", `{"body":"secret"}`, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rec := &recorder{state: func(path string) (int, string) {
				if strings.HasSuffix(path, "/state/m.room.create/") {
					return 200, `{"room_version":"11"}`
				}
				return 404, `{"errcode":"M_NOT_FOUND"}`
			}}
			guard := &Guard{Client: alice.Client, Base: rec}
			req, err := http.NewRequestWithContext(t.Context(), tc.method, base+tc.path, strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			_, err = guard.RoundTrip(req)
			if tc.refused {
				if err == nil || len(rec.reqs) > 0 {
					t.Fatalf("it went out (%v)", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			out := rec.reqs[0]
			body, _ := io.ReadAll(out.Body)
			if tc.encrypted {
				if strings.Contains(string(body), "secret") || !strings.Contains(out.URL.Path, "/send/m.room.encrypted/") {
					t.Fatalf("%s went out with %s", out.URL, body)
				}
				if _, err := rooms.DecodeEncrypted(body); err != nil {
					t.Error(err)
				}
				if out.ContentLength != int64(len(body)) || out.URL.RawQuery != req.URL.RawQuery {
					t.Errorf("length %d of %d, query %q", out.ContentLength, len(body), out.URL.RawQuery)
				}
			} else if string(body) != tc.body || out.URL.String() != req.URL.String() {
				t.Errorf("%s %s was changed to %s %s", req.URL, tc.body, out.URL, body)
			}
		})
	}
}

func TestGuardAsksAboutRoomsThatNoSyncHasShown(t *testing.T) {
	w := newWorld(t)
	alice := w.device("alice", "ALICE1")
	put := func(rec *recorder, room string) error {
		req, err := http.NewRequestWithContext(t.Context(), "PUT", "https://hs.example/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/send/m.room.message/t?user_id=%40bot%3Ahs", strings.NewReader(`{"body":"secret"}`))
		if err != nil {
			t.Fatal(err)
		}
		_, err = (&Guard{Client: alice.Client, Base: rec}).RoundTrip(req)
		return err
	}
	const made = `{"room_version":"11"}`
	for _, tc := range []struct {
		name, room, create, body string
		status                   int
		sent                     bool
	}{
		{"MLS", "!mls:x", made, `{"algorithm":"` + rooms.Algorithm + `"}`, 200, false},
		{"none", "!none:x", made, `{"errcode":"M_NOT_FOUND"}`, 404, true},
		{"Megolm", "!megolm:x", made, `{"algorithm":"m.megolm.v1.aes-sha2"}`, 200, true}, // the other helper's
		{"made for MLS, contested", "!contested:x", `{"` + rooms.KeyCreateAlgorithm + `":"` + rooms.Algorithm + `"}`, `{"algorithm":"m.megolm.v1.aes-sha2"}`, 200, false},
		{"made for MLS, not set", "!unset:x", `{"` + rooms.KeyCreateAlgorithm + `":"` + rooms.Algorithm + `"}`, `{"errcode":"M_NOT_FOUND"}`, 404, false},
		{"encrypted with nothing", "!nothing:x", made, `{}`, 200, false},
		{"without a beginning", "!unmade:x", "", `{"errcode":"M_NOT_FOUND"}`, 404, false},
		{"forbidden", "!forbidden:x", made, `{"errcode":"M_FORBIDDEN"}`, 403, false},
		{"not a homeserver", "!proxy:x", made, `<html>`, 404, false},
		{"down", "!down:x", made, `{}`, 502, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var paths []string
			rec := &recorder{state: func(p string) (int, string) {
				paths = append(paths, p)
				switch {
				case !strings.HasSuffix(p, "/m.room.create/"):
					return tc.status, tc.body
				case tc.create == "":
					return 404, `{"errcode":"M_NOT_FOUND"}`
				}
				return 200, tc.create
			}}
			err := put(rec, tc.room)
			if tc.sent != (err == nil) || tc.sent != (len(rec.reqs) == 1) {
				t.Fatalf("sent %d, error %v", len(rec.reqs), err)
			}
			at := "/_matrix/client/v3/rooms/" + tc.room + "/state/"
			if paths[0] != at+"m.room.create/" || len(paths) > 1 && paths[1] != at+"m.room.encryption/" {
				t.Errorf("asked for %q", paths)
			}
			once := rec.asked
			_ = put(rec, tc.room)
			if again := rec.asked > once; again == tc.sent {
				t.Errorf("asked %d times; only an answer that it is no MLS room is kept", rec.asked)
			}
		})
	}
}
