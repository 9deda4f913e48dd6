package e2e_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/interop"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A stranger is a user whose client is a thin shell around another MLS library: that holds the keys, joins groups,
// follows commits, encrypts and decrypts. Ours only speaks Matrix for it: it logs in, publishes the key of its one
// cipher suite, and puts MLS messages into events and takes them out. It follows what the module accepts, and makes no
// commits.
type stranger struct {
	s      *story
	name   string
	suite  mls.CipherSuite
	peer   *interop.Peer
	ident  *identity.Identity
	server *lab.Server
	user   lab.User
	http   *client.Transport

	mu      sync.Mutex
	came    chan struct{}
	joined  map[id.RoomID]*strangeRoom
	texts   map[id.RoomID][]string
	opened  map[id.EventID]json.RawMessage // contents of what was decrypted
	seen    map[id.EventID]bool            // what came
	waiting map[id.RoomID][]*strangeEvent
	fault   error
}

// strangeRoom is a room's group as the stranger knows it.
type strangeRoom struct {
	group interop.Hex
	ref   federation.Ref
	past  []federation.Ref // the epochs before, whose messages the library still opens
}

// strangePast is of how many epochs before its own the peer program lets a library open messages. They come: who sends may
// not have heard of a commit, and a busy Dendrite leaves events of other servers out of /sync until they are looked for.
const strangePast = 3

// moves puts the room into the epoch that a commit made.
func (r *strangeRoom) moves(ref federation.Ref) {
	r.past = append(r.past, r.ref)
	r.past = r.past[max(0, len(r.past)-strangePast):]
	r.ref = ref
}

type strangeEvent struct {
	ID      id.EventID      `json:"event_id"`
	Type    string          `json:"type"`
	Sender  id.UserID       `json:"sender"`
	Content json.RawMessage `json:"content"`
}

// stranger makes a user with a client of another library that has one cipher suite.
func (s *story) stranger(library, server string, suite mls.CipherSuite) *stranger {
	s.Helper()
	ctx := s.soon()
	w := s.w.Server(server)
	user, err := s.w.AddUser(ctx, server, fmt.Sprintf("%s%d", library, people.Add(1)))
	s.must(err)
	x := &stranger{
		s: s, name: user.Localpart, suite: suite, server: w, user: user, came: make(chan struct{}),
		joined: map[id.RoomID]*strangeRoom{}, texts: map[id.RoomID][]string{}, opened: map[id.EventID]json.RawMessage{}, seen: map[id.EventID]bool{}, waiting: map[id.RoomID][]*strangeEvent{},
	}
	x.peer, err = interop.Start(ctx, library, nil)
	s.must(err)
	s.Cleanup(func() { s.must(x.peer.Close()) })

	// The device comes first: its id stands in the credential.
	raw, err := e2e.API(ctx, w, user, http.MethodPost, "/login", map[string]any{
		"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": user.Localpart}, "password": user.Password,
		"initial_device_display_name": library,
	})
	s.must(err)
	var login struct {
		Token  string      `json:"access_token"`
		Device id.DeviceID `json:"device_id"`
	}
	s.must(json.Unmarshal(raw, &login))
	x.user.AccessToken = login.Token
	made, err := x.peer.Call("new_client", interop.Args{
		"client": x.name, "suite": uint16(suite), "tree_ext": false, "with_key": true,
		"identity": interop.Hex(append(vector(user.UserID), vector(string(login.Device))...)),
	})
	s.must(err)
	st, err := store.Open(ctx, store.Options{Path: filepath.Join(s.TempDir(), "stranger.db"), Key: make(store.Key, store.KeySize)})
	s.must(err)
	s.Cleanup(func() { s.must(st.Close()) })
	x.ident, err = identity.Open(ctx, identity.Options{
		Store: st, Suites: []mls.CipherSuite{}, Foreign: map[mls.CipherSuite]mls.SignaturePublicKey{suite: mls.SignaturePublicKey(made.SignatureKey)},
	})
	s.must(err)
	s.must(x.ident.LoginToken(ctx, w.BaseURL, login.Token))
	_, err = x.ident.Bootstrap(ctx, identity.UIA{Password: user.Password}, "")
	s.must(err)
	keys := map[string]string{}
	for range 3 {
		a, err := x.peer.Call("key_package", interop.Args{"client": x.name})
		s.must(err)
		m, err := mls.ParseMessage(a.KeyPackage)
		s.must(err)
		keys[string(rooms.KeyPackageID(suite, m.KeyPackage().Ref()))] = rooms.EncodeBase64(a.KeyPackage)
	}
	_, err = e2e.API(ctx, w, x.user, http.MethodPost, "/keys/upload", map[string]any{"one_time_keys": keys})
	s.must(err)
	transport := client.NewTransport(x.ident.Client())
	x.http = &transport

	loop, stop := context.WithCancel(s.ctx)
	var done sync.WaitGroup
	done.Go(func() { x.follow(loop) })
	s.Cleanup(func() { stop(); done.Wait() })
	s.step("%s is there", x.name)
	return x
}

func (x *stranger) id() id.UserID { return id.UserID(x.user.UserID) }

// vector writes a vector with the length of RFC 9420, Section 2.1.2.
func vector(s string) []byte {
	if len(s) < 64 {
		return append([]byte{byte(len(s))}, s...)
	}
	return append([]byte{0x40 | byte(len(s)>>8), byte(len(s))}, s...)
}

// follow syncs and hands what comes to the library.
func (x *stranger) follow(ctx context.Context) {
	since := ""
	for ctx.Err() == nil {
		resp, err := x.ident.Sync(ctx, identity.SyncRequest{Since: since, Filter: `{"room":{"timeline":{"limit":500}}}`, Timeout: 10 * time.Second})
		if err == nil {
			err = x.ident.ProcessSync(ctx, resp)
		}
		if err != nil {
			select { // a homeserver may fail now and then
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		since = resp.NextBatch
		x.mu.Lock()
		for _, evt := range resp.ToDevice.Events {
			if evt.Type.Type == rooms.TypeWelcome {
				x.note(x.welcome(ctx, evt.Content.VeryRaw))
			}
		}
		for room, joined := range resp.Rooms.Join {
			for _, evt := range joined.Timeline.Events {
				if evt.StateKey == nil && !x.seen[evt.ID] {
					x.seen[evt.ID] = true
					x.waiting[room] = append(x.waiting[room], &strangeEvent{evt.ID, evt.Type.Type, evt.Sender, evt.Content.VeryRaw})
				}
			}
			x.note(x.take(ctx, room))
		}
		close(x.came)
		x.came = make(chan struct{})
		x.mu.Unlock()
	}
}

func (x *stranger) note(err error) {
	if err != nil && x.fault == nil {
		x.fault = err
	}
}

// welcome lets the library join a group.
func (x *stranger) welcome(ctx context.Context, raw json.RawMessage) error {
	content, err := rooms.DecodeWelcome(raw)
	if err != nil {
		return err
	}
	tree := []byte(content.Snapshot.Tree)
	if f := content.Snapshot.File; f != nil {
		if tree, err = (*x.http).Download(ctx, string(f.MXC), f.Size); err != nil {
			return err
		}
	}
	a, err := x.peer.Call("join", interop.Args{"client": x.name, "welcome": interop.Hex(content.Welcome), "ratchet_tree": interop.Hex(tree)})
	if err != nil {
		return err
	}
	x.joined[content.Room] = &strangeRoom{group: a.Group, ref: federation.Ref(content.Ref)}
	return x.take(ctx, content.Room)
}

// take goes through a room's events until none of them can be used.
func (x *stranger) take(ctx context.Context, room id.RoomID) error {
	r := x.joined[room]
	if r == nil {
		return nil
	}
	commits := map[federation.Ref]*mls.Message{} // on the epoch that is held
	for moved := true; moved; {
		moved = false
		var rest []*strangeEvent
		clear(commits)
		for _, evt := range x.waiting[room] {
			if evt.Type != rooms.TypeCommit {
				continue
			}
			if content, err := rooms.DecodeCommit(evt.Content); err == nil && federation.Ref(content.Parent) == r.ref {
				if m, err := mls.ParseMessage(content.Message); err == nil {
					if ref, err := rooms.CommitRef(m); err == nil {
						commits[ref] = m
					}
				}
			}
		}
		for _, evt := range x.waiting[room] {
			used, err := x.use(room, r, evt, commits)
			if err != nil {
				return err
			}
			if !used {
				rest = append(rest, evt)
			}
			moved = moved || used
		}
		x.waiting[room] = rest
	}
	return nil
}

// use hands one event to the library, if it is time for it.
func (x *stranger) use(room id.RoomID, r *strangeRoom, evt *strangeEvent, commits map[federation.Ref]*mls.Message) (bool, error) {
	switch evt.Type {
	case rooms.TypeAccept:
		accept, err := rooms.DecodeAccept(evt.Content)
		if err != nil || commits[federation.Ref(accept.Ref)] == nil {
			return false, err
		}
		_, err = x.peer.Call("process", interop.Args{"client": x.name, "group": r.group, "message": interop.Hex(commits[federation.Ref(accept.Ref)].Raw())})
		if err != nil {
			return false, err
		}
		r.moves(federation.Ref(accept.Ref))
		clear(commits)
		return true, nil
	case rooms.TypeEncrypted:
		content, err := rooms.DecodeEncrypted(evt.Content)
		if err != nil {
			return false, err
		}
		m, err := mls.ParseMessage(content.Ciphertext)
		if err != nil {
			return false, err
		}
		aad, err := rooms.DecodeMessageAAD(m.AuthenticatedData())
		if err != nil || aad.Head != r.ref && !slices.Contains(r.past, aad.Head) {
			return false, err
		}
		a, err := x.peer.Call("process", interop.Args{"client": x.name, "group": r.group, "message": interop.Hex(content.Ciphertext)})
		switch {
		case errors.Is(err, interop.ErrRefused) && string(evt.Sender) == x.user.UserID:
			return true, nil // its own
		case err != nil:
			return false, err
		case a.Kind != "application":
			return true, nil
		}
		plain, err := rooms.DecodePlaintext(a.Plaintext, room)
		if err != nil {
			return false, err
		}
		var body struct {
			Body string `json:"body"`
		}
		if err := json.Unmarshal(plain.Content, &body); err != nil {
			return false, err
		}
		x.texts[room], x.opened[evt.ID] = append(x.texts[room], body.Body), plain.Content
		return true, nil
	}
	return false, nil
}

// accept joins a room on the homeserver, and, if asked, waits until the library is in the group.
func (x *stranger) accept(room id.RoomID, via string) {
	x.s.Helper()
	ctx := x.s.soon()
	for {
		_, err := e2e.API(ctx, x.server, x.user, http.MethodPost, "/join/"+url.PathEscape(string(room))+"?server_name="+url.QueryEscape(via), map[string]any{})
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			x.s.Fatal(err)
		}
		x.s.pause()
	}
}

// wait blocks until a condition, checked with the lock held, is true. Meanwhile it looks into the room now and then.
func (x *stranger) wait(room id.RoomID, what string, cond func() bool) {
	x.s.Helper()
	ctx := x.s.soon()
	look := time.NewTicker(2 * time.Second)
	defer look.Stop()
	for {
		x.mu.Lock()
		ok, came, fault := cond(), x.came, x.fault
		var texts, left []string
		for _, list := range x.texts {
			texts = append(texts, list...)
		}
		for _, evt := range x.waiting[room] {
			if evt.Type == rooms.TypeEncrypted || evt.Type == rooms.TypeCommit {
				left = append(left, evt.Type+" "+string(evt.ID))
			}
		}
		x.mu.Unlock()
		if ok {
			return
		}
		if fault != nil {
			x.s.Fatalf("%s waits for %s: %v", x.name, what, fault)
		}
		select {
		case <-came:
		case <-look.C:
			x.look(ctx, room)
		case <-ctx.Done():
			x.s.Fatalf("%s waits for %s; it read %q, and could not use %q", x.name, what, texts, left)
		}
	}
}

// in waits until the library is in the room's group.
func (x *stranger) in(room id.RoomID) {
	x.s.Helper()
	x.wait(room, "a Welcome", func() bool { return x.joined[room] != nil })
}

// reads waits until the library has decrypted a message.
func (x *stranger) reads(room id.RoomID, text string) {
	x.s.Helper()
	x.wait(room, fmt.Sprintf("the message %q", text), func() bool {
		for _, t := range x.texts[room] {
			if t == text {
				return true
			}
		}
		return false
	})
}

// look hands over what /sync left out: a busy Dendrite leaves events of other servers out. The SDK finds them, too.
func (x *stranger) look(ctx context.Context, room id.RoomID) {
	raw, err := e2e.API(ctx, x.server, x.user, http.MethodGet, "/rooms/"+url.PathEscape(string(room))+"/messages?dir=b&limit=200", nil)
	var page struct {
		Chunk []*struct {
			strangeEvent
			StateKey *string `json:"state_key"`
		} `json:"chunk"`
	}
	if err != nil || json.Unmarshal(raw, &page) != nil {
		return // asked again
	}
	slices.Reverse(page.Chunk)
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, evt := range page.Chunk {
		if evt.StateKey == nil && !x.seen[evt.ID] {
			x.seen[evt.ID] = true
			x.waiting[room] = append(x.waiting[room], &evt.strangeEvent)
		}
	}
	x.note(x.take(ctx, room))
}

// readsAlso waits until the library has decrypted what a member with the SDK read, and compares the bytes.
func (x *stranger) readsAlso(m *client.Message) {
	x.s.Helper()
	x.wait(m.Room, fmt.Sprintf("the event %s", m.EventID), func() bool { return x.opened[m.EventID] != nil })
	x.mu.Lock()
	defer x.mu.Unlock()
	if got := x.opened[m.EventID]; !bytes.Equal(got, m.Content) {
		x.s.Errorf("%s read %s, and the SDK %s", x.name, got, m.Content)
	}
}

// says lets the library encrypt a message, and sends it.
func (x *stranger) says(room id.RoomID, text string) {
	x.s.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	content, err := json.Marshal(map[string]string{"msgtype": "m.text", "body": text})
	x.s.must(err)
	plain := rooms.Plaintext{Type: "m.room.message", Content: content, Room: room, MessageID: base64.RawStdEncoding.EncodeToString([]byte(text))}
	raw, err := plain.Encode()
	x.s.must(err)
	r := x.joined[room]
	a, err := x.peer.Call("encrypt", interop.Args{"client": x.name, "group": r.group, "data": interop.Hex(raw), "aad": interop.Hex(rooms.MessageAAD{Head: r.ref}.Encode())})
	x.s.must(err)
	event, err := rooms.Encode(&rooms.EncryptedContent{Algorithm: rooms.Algorithm, Ciphertext: rooms.Bytes(a.Message)})
	x.s.must(err)
	_, err = (*x.http).Send(x.s.ctx, room, rooms.TypeEncrypted, fmt.Sprintf("stranger%d", people.Add(1)), event)
	x.s.must(err)
}

// TestStrangerReadsWhatCameLate: a message of an epoch before, which comes after the commit that ended it, is read, as the
// SDK reads it.
func TestStrangerReadsWhatCameLate(t *testing.T) {
	s := &story{TB: t, ctx: t.Context(), began: time.Now()}
	const room, suite = id.RoomID("!late:x"), mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	peer, err := interop.Start(s.soon(), interop.OpenMLS, nil)
	s.must(err)
	defer func() { s.must(peer.Close()) }()
	call := func(client, command string, args interop.Args) *interop.Answer {
		t.Helper()
		args["client"] = client
		a, err := peer.Call(command, args)
		s.must(err)
		return a
	}
	for _, name := range []string{"sender", "reader"} {
		call(name, "new_client", interop.Args{"suite": uint16(suite), "tree_ext": true})
	}
	group := interop.Hex("group")
	call("sender", "create_group", interop.Args{"group": group})
	commit := func(args interop.Args) *interop.Answer {
		t.Helper()
		args["group"] = group
		a := call("sender", "commit", args)
		call("sender", "merge_pending", interop.Args{"group": group})
		return a
	}
	added := commit(interop.Args{"key_packages": []interop.Hex{call("reader", "key_package", interop.Args{}).KeyPackage}, "path": true})
	joined := call("reader", "join", interop.Args{"welcome": added.Welcome})

	x := &stranger{
		s: s, name: "reader", peer: peer, came: make(chan struct{}), texts: map[id.RoomID][]string{}, opened: map[id.EventID]json.RawMessage{},
		joined: map[id.RoomID]*strangeRoom{room: {group: joined.Group, ref: federation.Ref{1}}}, waiting: map[id.RoomID][]*strangeEvent{},
	}
	comes := func(event id.EventID, kind string, content json.RawMessage, err error) {
		t.Helper()
		s.must(err)
		x.waiting[room] = append(x.waiting[room], &strangeEvent{ID: event, Type: kind, Sender: "@sender:x", Content: content})
		s.must(x.take(s.ctx, room))
	}
	// Each message is made in its epoch, and comes after the commit that ends it.
	head := x.joined[room].ref
	for i := range strangePast + 1 {
		text := fmt.Sprintf("message %d", i)
		plain, err := (&rooms.Plaintext{Type: "m.room.message", Content: json.RawMessage(`{"body":"` + text + `"}`), Room: room, MessageID: "AAAA"}).Encode()
		s.must(err)
		said := call("sender", "encrypt", interop.Args{"group": group, "data": interop.Hex(plain), "aad": interop.Hex(rooms.MessageAAD{Head: head}.Encode())})
		m, err := mls.ParseMessage(commit(interop.Args{"path": true}).Commit)
		s.must(err)
		ref, err := rooms.CommitRef(m)
		s.must(err)
		content, err := rooms.Encode(&rooms.CommitContent{Epoch: uint64(i + 2), Parent: rooms.Hash(head), ParentEvent: "$before", Message: rooms.Bytes(m.Raw()), GroupInfo: rooms.Bytes("any")})
		comes(id.EventID(fmt.Sprintf("$commit%d", i)), rooms.TypeCommit, content, err)
		content, err = rooms.Encode(&rooms.AcceptContent{
			ReceiptBase: rooms.ReceiptBase{Cfg: rooms.Hash{1}, Counter: 1, Sig: make(rooms.Bytes, 64)},
			Ref:         rooms.Hash(ref), Parent: rooms.Hash(head), Event: "$commit", Epoch: uint64(i + 2), Ballot: &rooms.Ballot{},
		})
		comes(id.EventID(fmt.Sprintf("$accept%d", i)), rooms.TypeAccept, content, err)
		if x.joined[room].ref != ref {
			t.Fatalf("the library did not follow commit %d", i)
		}
		content, err = rooms.Encode(&rooms.EncryptedContent{Algorithm: rooms.Algorithm, Ciphertext: rooms.Bytes(said.Message)})
		comes(id.EventID(fmt.Sprintf("$message%d", i)), rooms.TypeEncrypted, content, err)
		if !slices.Contains(x.texts[room], text) || x.fault != nil {
			t.Fatalf("after commit %d it read %q, %v", i, x.texts[room], x.fault)
		}
		head = ref
	}
}
