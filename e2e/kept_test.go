package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A keeper stands for a homeserver that keeps events from a device for good, whatever it is asked for.
type keeper struct {
	mu   sync.Mutex
	from id.UserID // whose ciphertexts it keeps from now on; "": nobody's
	kept map[string]bool
}

// keeps says whose ciphertexts it keeps from now on.
func (k *keeper) keeps(user id.UserID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.from = user
}

func (k *keeper) has(event id.EventID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept[string(event)]
}

func (k *keeper) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return resp, err
	}
	raw, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var answer any
	if dec.Decode(&answer) == nil {
		k.mu.Lock()
		answer, gone := k.without(answer)
		k.mu.Unlock()
		if raw, err = json.Marshal(answer); err != nil {
			return nil, err
		}
		if gone { // it was asked for by its id
			resp.StatusCode, raw = http.StatusNotFound, []byte(`{"errcode":"M_NOT_FOUND","error":"Event not found."}`)
		}
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
	resp.Header.Set("Content-Length", strconv.Itoa(len(raw)))
	return resp, nil
}

// without takes what is kept out of all lists of an answer, and tells whether the whole is such an event.
func (k *keeper) without(v any) (rest any, gone bool) {
	switch v := v.(type) {
	case map[string]any:
		event, _ := v["event_id"].(string)
		if v["type"] == rooms.TypeEncrypted && k.from != "" && v["sender"] == string(k.from) && event != "" {
			k.kept[event] = true
		}
		if k.kept[event] && v["type"] != nil {
			return nil, true
		}
		for name, part := range v {
			if rest, gone := k.without(part); gone {
				delete(v, name)
			} else {
				v[name] = rest
			}
		}
	case []any:
		list := []any{}
		for _, part := range v {
			if rest, gone := k.without(part); !gone {
				list = append(list, rest)
			}
		}
		return list, false
	}
	return v, false
}

// asksFor tells how a device's homeserver keeps messages of another one from it. The next one shows it, the device asks the one
// that sent them, inside the group, and they come once more, by events that the homeserver cannot tell from others. They are
// shown once, and nobody is told that something is missing.
func (s *story) asksFor(room id.RoomID, k *keeper, alice, bob *e2e.Device) {
	s.Helper()
	k.keeps(alice.UserID())
	kept := map[string]id.EventID{}
	for i := range 2 {
		text := token(fmt.Sprintf("kept %d", i))
		event, err := alice.SendText(s.soon(), room, text)
		s.must(err)
		kept[text] = event
	}
	s.eventually("bob's homeserver keeps what alice says", func() string {
		for _, event := range kept {
			if !k.has(event) {
				return "it has not come to " + string(event)
			}
		}
		return ""
	})
	k.keeps("")
	s.say(room, "what follows", alice, bob)
	for _, event := range kept { // at the homeserver's own address it is there, at the one that bob has it is not
		path := "/_matrix/client/v3/rooms/" + url.PathEscape(string(room)) + "/event/" + url.PathEscape(string(event))
		for c, status := range map[*http.Client]int{http.DefaultClient: http.StatusOK, {Transport: k}: http.StatusNotFound} {
			req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, bob.Server.BaseURL+path, nil)
			s.must(err)
			req.Header.Set("Authorization", "Bearer "+bob.User.AccessToken)
			resp, err := c.Do(req)
			s.must(err)
			resp.Body.Close()
			if resp.StatusCode != status {
				s.Fatalf("%s is answered with %s, want %d: the test shows nothing", event, resp.Status, status)
			}
		}
	}
	s.step("bob's homeserver has kept %d messages", len(kept))

	for text := range kept {
		if bob.Has(room, text) {
			s.Fatalf("bob was shown %q: the test shows nothing", text)
		}
	}
	for i := 0; i < 8; i++ {
		bob.Skip(15 * time.Second)
		alice.Skip(15 * time.Second)
		s.say(room, fmt.Sprintf("while bob waits: %d", i), alice, bob)
		missing := 0
		for text := range kept {
			if !bob.Has(room, text) {
				missing++
			}
		}
		if missing == 0 {
			break
		}
	}
	for text, event := range kept {
		m, err := bob.WaitText(s.soon(), room, text)
		s.must(err)
		if m.Sender != alice.UserID() || m.Device != alice.DeviceID() || m.EventID == event {
			s.Errorf("bob got %q as of %s %s in %s, sent in %s", text, m.Sender, m.Device, m.EventID, event)
		}
	}
	s.step("bob has them")
	bob.Skip(10 * time.Minute)
	s.talk(room, "with all there is", alice, bob)
	for _, d := range []*e2e.Device{alice, bob} {
		shown := map[string]int{}
		for _, u := range d.Updates() {
			switch u := u.(type) {
			case *client.Message:
				shown[u.Body()]++
			case *client.Warning:
				if u.Kind == client.MissingWarning {
					s.Errorf("%s is told: %s", d.Name, u.Text)
				}
			}
		}
		list, err := d.Messages(s.ctx, room, "", 1000)
		s.must(err)
		for _, m := range list {
			shown[m.Body()] += 100
		}
		for text := range kept {
			if shown[text] != 101 {
				s.Errorf("%s was shown %q %d times, and has it %d times", d.Name, text, shown[text]%100, shown[text]/100)
			}
		}
	}
}
