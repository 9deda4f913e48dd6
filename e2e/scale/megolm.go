package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
)

// olmClient is a device of a driven user with mautrix's own Megolm, which syncs and reads in one room.
type olmClient struct {
	user string // the server's name and the user's, for messages
	cli  *mautrix.Client
	mach *crypto.OlmMachine
	room id.RoomID

	mu     sync.Mutex
	came   chan struct{} // closed and replaced when a text comes
	texts  map[string]bool
	fault  error
	locked []*event.Event // whose keys are not there yet
}

// besideRooms tells the machine of the one room.
type besideRooms struct{ room id.RoomID }

func (b besideRooms) IsEncrypted(_ context.Context, room id.RoomID) (bool, error) {
	return room == b.room, nil
}

func (b besideRooms) GetEncryptionEvent(context.Context, id.RoomID) (*event.EncryptionEventContent, error) {
	return &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1}, nil
}

func (b besideRooms) FindSharedRooms(context.Context, id.UserID) ([]id.RoomID, error) {
	return []id.RoomID{b.room}, nil
}

// beside measures Megolm in a second room with the same people: of each driven user a device with mautrix's crypto, and
// the same devices of everybody else, which have one-time keys for Olm, too.
func (s *scale) beside(ctx context.Context) error {
	if !s.options.megolm {
		return nil
	}
	crowd := s.st.Crowd[s.st.Banned:]
	if err := s.besideRoom(ctx, crowd, true); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	var loops sync.WaitGroup
	defer loops.Wait()
	defer stop()
	clients := make(map[*driven]*olmClient, len(s.st.Driven))
	err := each(s, ctx, "clients with Megolm", s.st.Driven, func(d *driven) string { return d.Server }, func(ctx context.Context, d *driven) error {
		c, err := s.olm(ctx, d)
		s.mu.Lock()
		defer s.mu.Unlock()
		clients[d] = c
		return err
	})
	if err != nil {
		return err
	}
	for _, c := range clients {
		loops.Go(func() { c.loop(ctx) })
	}
	users := make([]id.UserID, 0, len(s.st.Driven)+len(crowd))
	for _, d := range s.st.Driven {
		users = append(users, id.UserID(d.User.UserID))
	}
	for _, m := range crowd {
		users = append(users, id.UserID(m.User.UserID))
	}
	sender := clients[s.st.Driven[0]]
	if err := s.known(ctx, sender, clients); err != nil {
		return err
	}
	s.want = len(clients)
	for n := range crowd {
		s.want += s.devicesOf(n + s.st.Banned)
	}
	speak := func(ctx context.Context) error { return s.speak(ctx, sender, users, clients) }
	for _, act := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"Megolm: a client's first message to everybody", speak},
		{"Megolm: a message", speak},
		{"Megolm: remove a user, and the next message of one client", func(ctx context.Context) error {
			gone := users[len(users)-1]
			users = users[:len(users)-1]
			if err := s.update(func() { crowd[len(crowd)-1].Beside = false }); err != nil { // a program that goes on lets them in again
				return err
			}
			if err := s.save(true); err != nil {
				return err
			}
			if err := s.plain(ctx, "/kick", map[string]any{"user_id": gone}); err != nil {
				return err
			}
			s.want -= s.devicesOf(len(s.st.Crowd) - 1)
			// What mautrix does when it sees that somebody left.
			if err := sender.mach.CryptoStore.RemoveOutboundGroupSession(ctx, s.st.Plain); err != nil {
				return err
			}
			return speak(ctx)
		}},
		{"Megolm: that user joins again, and the next message of one client", func(ctx context.Context) error {
			back := crowd[len(crowd)-1]
			users = append(users, id.UserID(back.User.UserID))
			path := url.PathEscape(string(s.st.Plain)) + "?server_name=" + url.QueryEscape(s.w.Server(s.st.Driven[0].Server).ServerName)
			if err := s.joinOne(ctx, back.Server, back.User, path); err != nil {
				return err
			}
			if err := s.update(func() { back.Beside = true }); err != nil {
				return err
			}
			s.want += s.devicesOf(len(s.st.Crowd) - 1)
			// What mautrix does when it sees that somebody joined.
			if err := sender.mach.CryptoStore.RemoveOutboundGroupSession(ctx, s.st.Plain); err != nil {
				return err
			}
			return speak(ctx)
		}},
	} {
		c, err := s.meter(ctx, s.st.Plain, act.name, act.do, nil)
		if err != nil {
			return err
		}
		s.megolm = append(s.megolm, c)
	}
	return nil
}

// known waits until the sender's homeserver has heard of every client's device: a key that is shared before leaves out
// those that it has not.
func (s *scale) known(ctx context.Context, sender *olmClient, all map[*driven]*olmClient) error {
	ask := map[id.UserID][]string{}
	for _, c := range all {
		ask[c.cli.UserID] = []string{}
	}
	for deadline := time.Now().Add(limit); ; {
		var have struct {
			Devices map[id.UserID]map[id.DeviceID]json.RawMessage `json:"device_keys"`
		}
		if err := s.http.call(ctx, http.MethodPost, sender.cli.HomeserverURL.String()+"/_matrix/client/v3/keys/query", sender.cli.AccessToken,
			map[string]any{"device_keys": ask}, &have); err != nil {
			return err
		}
		missing := ""
		for _, c := range all {
			if have.Devices[c.cli.UserID][c.cli.DeviceID] == nil {
				missing = c.user
			}
		}
		if missing == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server of %s has not heard of the new device of %s", sender.user, missing)
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
}

// plain makes a request about the room for Megolm as its creator.
func (s *scale) plain(ctx context.Context, path string, body any) error {
	first := s.st.Driven[0]
	return s.http.call(ctx, http.MethodPost, s.w.Server(first.Server).BaseURL+"/_matrix/client/v3/rooms/"+url.PathEscape(string(s.st.Plain))+path, first.User.AccessToken, body, nil)
}

// besideRoom makes the room, with Megolm or without encryption, and lets everybody join.
func (s *scale) besideRoom(ctx context.Context, crowd []*member, encrypted bool) error {
	first := s.st.Driven[0]
	if s.st.Plain == "" {
		var made struct {
			RoomID id.RoomID `json:"room_id"`
		}
		as := map[string]any{
			"preset": "public_chat", "name": "Beside", "room_version": client.DefaultRoomVersion,
			"power_level_content_override": map[string]int{"invite": 0}, // everybody may invite the own server's module
		}
		if encrypted {
			as["initial_state"] = []any{map[string]any{"type": "m.room.encryption", "state_key": "", "content": map[string]string{"algorithm": string(id.AlgorithmMegolmV1)}}}
		}
		if err := s.http.call(ctx, http.MethodPost, s.w.Server(first.Server).BaseURL+"/_matrix/client/v3/createRoom", first.User.AccessToken, as, &made); err != nil {
			return err
		}
		if err := s.update(func() { s.st.Plain = made.RoomID }); err != nil {
			return err
		}
	}
	path := url.PathEscape(string(s.st.Plain)) + "?server_name=" + url.QueryEscape(s.w.Server(first.Server).ServerName)
	join := func(ctx context.Context, d *driven) error { return s.joinOne(ctx, d.Server, d.User, path) }
	for _, d := range s.st.Driven[1:len(servers)] { // one of each server before the others
		if err := join(ctx, d); err != nil {
			return err
		}
	}
	if err := each(s, ctx, "driven users in the room beside", s.st.Driven[len(servers):], func(d *driven) string { return d.Server }, join); err != nil {
		return err
	}
	return s.joinAll(ctx, s.st.Plain, "users in the room beside", crowd, func(m *member) *bool { return &m.Beside })
}

// olm logs a driven user in on a device with Megolm.
func (s *scale) olm(ctx context.Context, d *driven) (*olmClient, error) {
	cli, err := mautrix.NewClient(s.w.Server(d.Server).BaseURL, "", "")
	if err != nil {
		return nil, err
	}
	cli.Client = s.http.client()
	cli.Client.Transport = &claimer{cli.Client.Transport}
	if _, err := cli.Login(ctx, &mautrix.ReqLogin{
		Type: mautrix.AuthTypePassword, Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: d.User.Localpart},
		Password: d.User.Password, InitialDeviceDisplayName: "Megolm", StoreCredentials: true,
	}); err != nil {
		return nil, err
	}
	c := &olmClient{user: d.User.UserID, cli: cli, room: s.st.Plain, came: make(chan struct{}), texts: map[string]bool{}}
	c.mach = crypto.NewOlmMachine(cli, nil, crypto.NewMemoryStore(nil), besideRooms{s.st.Plain})
	if err := c.mach.Load(ctx); err != nil {
		return nil, err
	}
	return c, c.mach.ShareKeys(ctx, 0)
}

// loop syncs until ctx ends.
func (c *olmClient) loop(ctx context.Context) {
	filter := fmt.Sprintf(`{"presence":{"types":[]},"account_data":{"types":[]},"room":{"rooms":[%q],"state":{"types":[]},"ephemeral":{"types":[]},"timeline":{"limit":50,"types":["m.room.encrypted"]}}}`, c.room)
	for since := ""; ctx.Err() == nil; {
		resp, err := c.cli.FullSyncRequest(ctx, mautrix.ReqSync{Timeout: 30_000, Since: since, FilterID: filter})
		if err != nil {
			c.mu.Lock()
			if ctx.Err() == nil {
				c.fault = err
			}
			close(c.came)
			c.came = make(chan struct{})
			c.mu.Unlock()
			return
		}
		c.mach.ProcessSyncResponse(ctx, resp, since)
		since = resp.NextBatch
		c.mu.Lock()
		if joined := resp.Rooms.Join[c.room]; joined != nil {
			c.locked = append(c.locked, joined.Timeline.Events...)
		}
		c.read(ctx)
		c.mu.Unlock()
	}
}

// read opens what can be opened now.
func (c *olmClient) read(ctx context.Context) {
	var left []*event.Event
	for _, evt := range c.locked {
		evt.RoomID = c.room
		if evt.Type != event.EventEncrypted {
			evt.Type.Class = event.MessageEventType
		}
		if evt.Content.Parsed == nil && evt.Content.ParseRaw(event.EventEncrypted) != nil {
			continue
		}
		plain, err := c.mach.DecryptMegolmEvent(ctx, evt)
		if err != nil {
			left = append(left, evt)
			continue
		}
		if msg := plain.Content.AsMessage(); msg != nil {
			c.texts[msg.Body] = true
		}
	}
	c.locked = left
	close(c.came)
	c.came = make(chan struct{})
}

// wait waits until a text was read.
func (c *olmClient) wait(ctx context.Context, text string) error {
	for {
		c.mu.Lock()
		done, fault, came, locked := c.texts[text], c.fault, c.came, len(c.locked)
		c.mu.Unlock()
		if done || fault != nil {
			return fault
		}
		select {
		case <-came:
		case <-ctx.Done():
			return fmt.Errorf("%s has not read the message, and cannot open %d others: %w", c.user, locked, ctx.Err())
		}
	}
}

// speak sends a text with the sender's session, which it shares with all devices of the users if it has none, and waits
// until all clients have read it.
func (s *scale) speak(ctx context.Context, sender *olmClient, users []id.UserID, all map[*driven]*olmClient) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	session, err := sender.mach.CryptoStore.GetOutboundGroupSession(ctx, s.st.Plain)
	if err != nil {
		return err
	}
	if session == nil || !session.Shared {
		if err := sender.mach.ShareGroupSession(ctx, s.st.Plain, users); err != nil {
			return err
		}
	}
	text := fmt.Sprintf("Megolm says: %d", time.Now().UnixNano())
	content, err := sender.mach.EncryptMegolmEvent(ctx, s.st.Plain, event.EventMessage, &event.MessageEventContent{MsgType: event.MsgText, Body: text})
	if err != nil {
		return err
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return err
	}
	if _, err := sender.cli.SendMessageEvent(ctx, s.st.Plain, event.EventEncrypted, json.RawMessage(raw), mautrix.ReqSendEvent{DontEncrypt: true}); err != nil {
		return err
	}
	errs := make(chan error, len(all))
	for _, c := range all {
		go func() { errs <- c.wait(ctx, text) }()
	}
	for range all {
		err = errors.Join(err, <-errs)
	}
	return err
}
