package client

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/canonicaljson"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const testServer = "test.example"

// fakeServer is a homeserver in memory: one ordered log of events, memberships
// as the events say, media, to-device queues and keys. It is for the logic of
// the engine only; what real homeservers do is tested end to end.
type fakeServer struct {
	*fakeNet
	name     string
	fast     time.Duration // of its clock
	log      []*Event
	late     []func() // what waits until the cut to this server is mended
	media    map[string][]byte
	toDevice map[string][]*Event // user/device
	users    map[id.UserID]*fakeUser
	txns     map[string]id.EventID
	held     map[string]bool // event types, and ids, that neither /sync (a gap) nor the history shows
	// sentIn names the device that sent an event, and the transaction id it did so under.
	sentIn map[id.EventID][2]string
	noTxns bool // it does not tell a device under which transaction id it sent an event
	// leftOut, if set, names events that are in the history and never shown by /sync.
	leftOut func(evt *Event) bool
	sent    [][]byte // contents of all message events, to look for plaintext in
	// forgotten are memberships that state resolution forgot, each from the event at that place of the log on.
	forgotten map[id.EventID]int
}

type fakeUser struct {
	master, self ed25519.PrivateKey
	devices      map[id.DeviceID]*fakeDevice
	known        rooms.Known // what others learned of the user before
	unknown      bool        // the homeserver has not got the user's keys yet
}

type fakeDevice struct {
	key      ed25519.PrivateKey
	mlsKeys  map[mls.CipherSuite]mls.SignaturePrivateKey
	packages []*mls.KeyPackageBundle
	signed   bool // cross-signed
	gone     bool
}

func newFakeServer() *fakeServer {
	net := &fakeNet{clock: time.Now().UnixMilli(), before: map[id.EventID]id.EventID{}}
	return net.add(testServer, &fakeServer{
		media: map[string][]byte{}, toDevice: map[string][]*Event{}, users: map[id.UserID]*fakeUser{},
	})
}

// seeded is a reader of reproducible bytes.
type seeded struct {
	mu  sync.Mutex
	src *rand.ChaCha8
}

func (s *seeded) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.src.Read(p)
}

func newSeeded(name string) io.Reader {
	var seed [32]byte
	if copy(seed[:], name) < len(name) {
		seed = sha256.Sum256([]byte(name))
	}
	return &seeded{src: rand.NewChaCha8(seed)}
}

func edKey(r io.Reader) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(r, seed); err != nil {
		panic(err)
	}
	return ed25519.NewKeyFromSeed(seed)
}

func b64(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

// signJSON signs an object in the Matrix way.
func signJSON(obj map[string]any, user id.UserID, keys map[string]ed25519.PrivateKey) json.RawMessage {
	canonical, err := canonicaljson.Marshal(obj)
	if err != nil {
		panic(err)
	}
	sigs := map[string]string{}
	for name, key := range keys {
		sigs["ed25519:"+name] = b64(ed25519.Sign(key, canonical))
	}
	obj["signatures"] = map[string]any{string(user): sigs}
	raw, err := json.Marshal(obj)
	if err != nil {
		panic(err)
	}
	return raw
}

func pub(key ed25519.PrivateKey) []byte { return key.Public().(ed25519.PublicKey) }

// devicesOf returns a user's device list as identity would.
func (s *fakeServer) devicesOf(user id.UserID) *identity.UserDevices {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[user]
	if u == nil || u.unknown {
		return identity.NewUserDevices(user, nil, nil, rooms.Known{})
	}
	crossKey := func(usage string, key ed25519.PrivateKey) json.RawMessage {
		return signJSON(map[string]any{
			"user_id": user, "usage": []string{usage}, "keys": map[string]string{"ed25519:" + b64(pub(key)): b64(pub(key))},
		}, user, map[string]ed25519.PrivateKey{b64(pub(u.master)): u.master})
	}
	cross, err := rooms.ParseCrossSigning(crossKey("master", u.master), crossKey("self_signing", u.self), user)
	if err != nil {
		panic(err)
	}
	var list []*rooms.DeviceKeys
	for device, d := range u.devices {
		if d.gone {
			continue
		}
		keys := map[string]string{"ed25519:" + string(device): b64(pub(d.key))}
		for cs, key := range d.mlsKeys {
			keys[string(rooms.DeviceKeyID(cs, device))] = b64(key.Public())
		}
		signers := map[string]ed25519.PrivateKey{string(device): d.key}
		if d.signed {
			signers[b64(pub(u.self))] = u.self
		}
		parsed, err := rooms.ParseDeviceKeys(signJSON(map[string]any{
			"user_id": user, "device_id": device, "algorithms": []string{}, "keys": keys,
		}, user, signers), user, device)
		if err != nil {
			panic(err)
		}
		list = append(list, parsed)
	}
	return identity.NewUserDevices(user, list, cross, u.known)
}

// append adds an event to the log.
func (s *fakeServer) append(evt *Event) id.EventID {
	if s.now != nil {
		s.clock = max(s.clock+1, s.now())
	} else {
		s.clock += 1000
	}
	evt.ID = id.EventID(fmt.Sprintf("$event%d", s.events))
	s.events++
	evt.Timestamp = s.clock + s.fast.Milliseconds()
	if evt.StateKey != nil {
		if now := s.state(evt.RoomID, len(s.log))[[2]string{evt.Type, *evt.StateKey}]; now != nil {
			s.before[evt.ID] = now.ID
		}
	}
	s.log = append(s.log, evt)
	if evt.StateKey == nil {
		s.sent = append(s.sent, evt.Content)
	}
	s.federate(evt)
	return evt.ID
}

func (s *fakeServer) state(room id.RoomID, upTo int) map[[2]string]*Event {
	out := map[[2]string]*Event{}
	for _, evt := range s.log[:upTo] {
		if at, is := s.forgotten[evt.ID]; is && at < upTo {
			continue
		}
		if evt.RoomID == room && evt.StateKey != nil {
			key := [2]string{evt.Type, *evt.StateKey}
			out[key] = s.resolve(out[key], evt)
		}
	}
	return out
}

// forget lets state resolution forget the newest memberships of a user, so many, with the next event.
func (s *fakeServer) forget(room id.RoomID, user id.UserID, count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forgotten == nil {
		s.forgotten = map[id.EventID]int{}
	}
	for _, evt := range slices.Backward(s.log) {
		if count > 0 && evt.RoomID == room && evt.Type == rooms.TypeMember && *evt.StateKey == string(user) {
			s.forgotten[evt.ID] = len(s.log)
			count--
		}
	}
}

func membershipIn(state map[[2]string]*Event, user id.UserID) string {
	evt := state[[2]string{rooms.TypeMember, string(user)}]
	if evt == nil {
		return ""
	}
	var content struct {
		Membership string `json:"membership"`
	}
	_ = json.Unmarshal(evt.Content, &content)
	return content.Membership
}

func sortedState(state map[[2]string]*Event) []*Event {
	out := make([]*Event, 0, len(state))
	for _, evt := range state {
		out = append(out, evt)
	}
	slices.SortFunc(out, func(a, b *Event) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// sync answers a /sync of one device.
func (s *fakeServer) sync(user id.UserID, device id.DeviceID, since string, limit int) *mautrix.RespSync {
	s.mu.Lock()
	defer s.mu.Unlock()
	from, _ := strconv.Atoi(since)
	key := string(user) + "/" + string(device)
	resp := map[string]any{"next_batch": strconv.Itoa(len(s.log))}
	join, invite, leave := map[id.RoomID]any{}, map[id.RoomID]any{}, map[id.RoomID]any{}
	seen := map[id.RoomID]bool{}
	for _, evt := range s.log {
		if seen[evt.RoomID] {
			continue
		}
		seen[evt.RoomID] = true
		now, before := s.state(evt.RoomID, len(s.log)), s.state(evt.RoomID, from)
		is, was := membershipIn(now, user), membershipIn(before, user)
		start := from
		var state []*Event
		if is == "join" && was != "join" {
			// A newly joined room: full state, and the events since the invite.
			start = len(s.log)
			for i, e := range s.log {
				if e.RoomID == evt.RoomID && e.Type == rooms.TypeMember && e.StateKey != nil && *e.StateKey == string(user) {
					start = min(start, i)
				}
			}
			state = sortedState(now)
		}
		var timeline []*Event
		first := len(s.log)
		for i := len(s.log) - 1; i >= start; i-- {
			if s.log[i].RoomID != evt.RoomID || s.held[s.log[i].Type] || s.held[string(s.log[i].ID)] || s.leftOut != nil && s.leftOut(s.log[i]) {
				continue
			}
			if len(timeline) >= limit {
				break
			}
			timeline, first = append(timeline, s.log[i]), i
		}
		slices.Reverse(timeline)
		for key, e := range now {
			if len(s.forgotten) > 0 && was == "join" && e != before[key] && !slices.Contains(s.log[from:], e) {
				state = append(state, e)
			}
		}
		limited := false
		for i := start; i < first; i++ {
			limited = limited || s.log[i].RoomID == evt.RoomID && !s.held[s.log[i].Type]
		}
		switch {
		case is == "join" && (len(timeline) > 0 || was != "join"):
			join[evt.RoomID] = map[string]any{
				"state":    map[string]any{"events": state},
				"timeline": map[string]any{"events": s.shown(key, timeline...), "limited": limited, "prev_batch": strconv.Itoa(first)},
			}
		case is == "invite" && was != "invite":
			invite[evt.RoomID] = map[string]any{"invite_state": map[string]any{"events": []*Event{
				now[[2]string{rooms.TypeMember, string(user)}], now[[2]string{rooms.TypeEncryption, ""}],
			}}}
		case (is == "leave" || is == "ban") && (was == "join" || was == "invite"):
			if was == "invite" { // of the room, its user sees nothing but the end of the invite
				timeline = slices.DeleteFunc(timeline, func(e *Event) bool {
					return e.Type != rooms.TypeMember || e.StateKey == nil || *e.StateKey != string(user)
				})
			}
			leave[evt.RoomID] = map[string]any{"state": map[string]any{"events": state}, "timeline": map[string]any{"events": s.shown(key, timeline...)}}
		}
	}
	resp["rooms"] = map[string]any{"join": join, "invite": invite, "leave": leave}
	resp["to_device"] = map[string]any{"events": s.toDevice[key]}
	s.toDevice[key] = nil
	raw, err := json.Marshal(resp)
	if err != nil {
		panic(err)
	}
	out := new(mautrix.RespSync)
	if err := json.Unmarshal(raw, out); err != nil {
		panic(err)
	}
	return out
}

// shown returns events as a device is given them: of what was redacted nothing is left,
// and who sent an event is told under which transaction id.
func (s *fakeServer) shown(device string, events ...*Event) []*Event {
	redacted := map[id.EventID]bool{}
	for _, evt := range s.log {
		redacted[evt.Redacts] = evt.Redacts != ""
	}
	out := make([]*Event, 0, len(events))
	for _, evt := range events {
		clone := *evt
		if redacted[evt.ID] && evt.StateKey == nil {
			clone.Content = json.RawMessage("{}")
		}
		if in := s.sentIn[evt.ID]; in[0] == device && !s.noTxns {
			clone.Unsigned.TransactionID = in[1]
		}
		out = append(out, &clone)
	}
	return out
}

// fakeTransport is one user's access.
type fakeTransport struct {
	// refusesState is a type of state that the homeserver does not let the user set.
	refusesState string
	s            *fakeServer
	user         id.UserID
	device       id.DeviceID
	fail         error     // the next request fails with it, once
	noState      bool      // it does not give a room's state
	noHistory    id.RoomID // a room whose history it does not give now
	uploads      []int     // bytes of the user's files
	stalls       bool      // it does not answer at all then
	noEvents     bool      // it answers with errors where it is asked for an event by its name
	asked        int       // requests for single events
	// stall is called, if set, before a file is looked for.
	stall func(ctx context.Context, mxc string)
	// stateRead is called, once, when a room's state was read and the answer is under way.
	stateRead func()
	// after is called when a request has had its effect: its error goes out
	// instead of the answer.
	after  func(kind string) error
	before func(kind string)
	// change, if set, is what the homeserver makes of an event's content.
	change func(eventType string, content json.RawMessage) json.RawMessage
	// created is called before the answer to createRoom goes out.
	created func(room id.RoomID)
}

func (t *fakeTransport) key() string { return string(t.user) + "/" + string(t.device) }

func (t *fakeTransport) enter(kind string) error {
	if t.before != nil {
		t.before(kind)
	}
	if err := t.fail; err != nil {
		t.fail = nil
		return err
	}
	return nil
}

func (t *fakeTransport) lost(kind string) error {
	if t.after == nil {
		return nil
	}
	return t.after(kind)
}

func (t *fakeTransport) Send(_ context.Context, room id.RoomID, eventType, txnID string, content json.RawMessage) (id.EventID, error) {
	if err := t.enter("send/" + eventType); err != nil {
		return "", err
	}
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if membershipIn(t.s.state(room, len(t.s.log)), t.user) != "join" {
		return "", errRefused
	}
	key := string(t.user) + txnID
	if known := t.s.txns[key]; known != "" {
		return known, t.lost("send/" + eventType)
	}
	content = slices.Clone(content)
	if t.change != nil {
		content = t.change(eventType, content)
	}
	evt := t.s.append(&Event{RoomID: room, Type: eventType, Sender: t.user, Content: content})
	t.s.txns[key], t.s.sentIn[evt] = evt, [2]string{t.key(), txnID}
	return evt, t.lost("send/" + eventType)
}

func (t *fakeTransport) putState(room id.RoomID, eventType, stateKey string, content any) id.EventID {
	raw, err := json.Marshal(content)
	if err != nil {
		panic(err)
	}
	return t.s.append(&Event{RoomID: room, Type: eventType, Sender: t.user, StateKey: &stateKey, Content: raw})
}

func (t *fakeTransport) SendState(_ context.Context, room id.RoomID, eventType, stateKey string, content json.RawMessage) (id.EventID, error) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if eventType == t.refusesState {
		return "", fmt.Errorf("fake: no power: %w", errRefused)
	}
	return t.putState(room, eventType, stateKey, content), t.lost("state/" + eventType)
}

func (t *fakeTransport) Redact(_ context.Context, room id.RoomID, target id.EventID, _, reason string) (id.EventID, error) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	raw, _ := json.Marshal(map[string]any{"redacts": target, "reason": reason})
	return t.s.append(&Event{RoomID: room, Type: "m.room.redaction", Sender: t.user, Content: raw, Redacts: target}), nil
}

func (t *fakeTransport) Event(_ context.Context, room id.RoomID, eventID id.EventID) (*Event, error) {
	if t.noEvents {
		return nil, errors.New("the homeserver does not answer")
	}
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.asked++
	for _, evt := range t.s.log {
		if evt.ID == eventID && evt.RoomID == room {
			return t.s.shown(t.key(), evt)[0], nil
		}
	}
	return nil, errRefused
}

func (t *fakeTransport) Messages(ctx context.Context, room id.RoomID, from string, limit int) ([]*Event, string, error) {
	if t.before != nil {
		t.before("messages")
	}
	if room == t.noHistory && t.stalls {
		<-ctx.Done()
		return nil, "", ctx.Err()
	}
	if room == t.noHistory {
		return nil, "", errors.New("the homeserver does not answer")
	}
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	at := len(t.s.log)
	if from != "" {
		at, _ = strconv.Atoi(from)
	}
	var out []*Event
	for at > 0 && len(out) < limit {
		at--
		if t.s.log[at].RoomID == room && !t.s.held[t.s.log[at].Type] && !t.s.held[string(t.s.log[at].ID)] {
			out = append(out, t.s.log[at])
		}
	}
	next := ""
	if at > 0 {
		next = strconv.Itoa(at)
	}
	return t.s.shown(t.key(), out...), next, nil
}

func (t *fakeTransport) State(_ context.Context, room id.RoomID) ([]*Event, error) {
	if t.noState {
		return nil, errors.New("the homeserver does not answer")
	}
	t.s.mu.Lock()
	state := sortedState(t.s.state(room, len(t.s.log)))
	t.s.mu.Unlock()
	if came := t.stateRead; came != nil {
		t.stateRead = nil
		came()
	}
	return state, nil
}

func (t *fakeTransport) CreateRoom(_ context.Context, req json.RawMessage) (id.RoomID, error) {
	var body struct {
		Invite       []id.UserID        `json:"invite"`
		Creation     map[string]any     `json:"creation_content"`
		InitialState []rooms.StateEvent `json:"initial_state"`
		Power        map[string]any     `json:"power_level_content_override"`
	}
	if err := json.Unmarshal(req, &body); err != nil {
		return "", err
	}
	room := t.makeRoom(body.Invite, body.Creation, body.InitialState, body.Power)
	if t.created != nil {
		t.created(room)
	}
	return room, nil
}

func (t *fakeTransport) makeRoom(invite []id.UserID, creation map[string]any, initial []rooms.StateEvent, power map[string]any) id.RoomID {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.s.nextRoom++
	room := id.RoomID(fmt.Sprintf("!room%d:%s", t.s.nextRoom, t.s.name))
	t.putState(room, rooms.TypeCreate, "", creation)
	t.putState(room, rooms.TypeMember, string(t.user), map[string]string{"membership": "join"})
	power["users"] = map[string]int{string(t.user): 100}
	t.putState(room, rooms.TypePowerLevels, "", power)
	for _, state := range initial {
		t.putState(room, state.Type, state.StateKey, state.Content)
	}
	for _, user := range invite {
		t.putState(room, rooms.TypeMember, string(user), map[string]string{"membership": "invite"})
	}
	return room
}

func (t *fakeTransport) membership(room id.RoomID, user id.UserID, membership string) error {
	if err := t.enter("membership/" + membership); err != nil {
		return err
	}
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.putState(room, rooms.TypeMember, string(user), map[string]string{"membership": membership})
	return nil
}

func (t *fakeTransport) Invite(_ context.Context, room id.RoomID, user id.UserID, _ string) error {
	if isBot(user) {
		if t.s.users[user] == nil {
			return errRefused
		}
	}
	return t.membership(room, user, "invite")
}
func (t *fakeTransport) Leave(_ context.Context, room id.RoomID) error {
	return t.membership(room, t.user, "leave")
}
func (t *fakeTransport) Kick(_ context.Context, room id.RoomID, user id.UserID, _ string) error {
	return t.membership(room, user, "leave")
}
func (t *fakeTransport) Ban(_ context.Context, room id.RoomID, user id.UserID, _ string) error {
	return t.membership(room, user, "ban")
}
func (t *fakeTransport) Join(_ context.Context, room string, _ []string) (id.RoomID, error) {
	return id.RoomID(room), t.membership(id.RoomID(room), t.user, "join")
}

func (t *fakeTransport) Upload(_ context.Context, data []byte, _ string) (string, error) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	mxc := fmt.Sprintf("mxc://%s/media%d", t.s.name, len(t.s.media))
	t.s.media[mxc] = slices.Clone(data)
	t.uploads = append(t.uploads, len(data))
	return mxc, nil
}

func (t *fakeTransport) Download(ctx context.Context, mxc string, limit int64) ([]byte, error) {
	if t.before != nil {
		t.before("download")
	}
	if t.stall != nil {
		t.stall(ctx, mxc)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	data, ok := t.s.media[mxc]
	if !ok || !t.s.reaches(strings.SplitN(strings.TrimPrefix(mxc, "mxc://"), "/", 2)[0]) || int64(len(data)) > limit {
		return nil, errRefused
	}
	return slices.Clone(data), nil
}

func (t *fakeTransport) SendToDevice(_ context.Context, eventType, txnID string, messages map[id.UserID]map[id.DeviceID]json.RawMessage) error {
	if err := t.enter("to-device"); err != nil {
		return err
	}
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	key := "to-device/" + string(t.user) + txnID
	if t.s.txns[key] != "" {
		return t.lost("to-device")
	}
	t.s.txns[key] = "sent"
	for user, devices := range messages {
		for device, content := range devices {
			if eventType == rooms.TypeWelcome {
				t.s.welcomes = append(t.s.welcomes, content)
			}
			if t.s.lose == "to "+string(user) || t.s.lose == "from "+string(t.user) {
				continue
			}
			q := string(user) + "/" + string(device)
			t.s.when(serverOf(user), func() {
				t.s.toDevice[q] = append(t.s.toDevice[q], &Event{Type: eventType, Sender: t.user, Content: content})
			})
		}
	}
	return t.lost("to-device")
}

// fakeIdentity is a device whose keys are in the fake server's hands.
type fakeIdentity struct {
	s       *fakeServer
	user    id.UserID
	device  id.DeviceID
	limit   int // events of one room in one sync
	bundles map[string][]byte
	shared  map[string]bool // which of them another copy has, too
	changed func(user id.UserID)
	// read is called, once, when devices of the user were read and the answer is under way.
	read map[id.UserID]func()
	// old is what is known of users about whose new devices the server says nothing.
	old   map[id.UserID]*identity.UserDevices
	asked []id.UserID // whose devices were asked for anew
	// claims are for how many devices each claim asked.
	claims []int
	// opened counts the Welcomes whose key package was looked up.
	opened int
	// around, if set, is called to do what the homeserver does for a /sync.
	around func(work func())
}

func (i *fakeIdentity) UserID() id.UserID     { return i.user }
func (i *fakeIdentity) DeviceID() id.DeviceID { return i.device }
func (i *fakeIdentity) own() *fakeDevice      { return i.s.users[i.user].devices[i.device] }
func (i *fakeIdentity) SignatureKey(cs mls.CipherSuite) (mls.SignaturePrivateKey, error) {
	key, ok := i.own().mlsKeys[cs]
	if !ok {
		return key, fmt.Errorf("fake: no signature key for %s", cs)
	}
	return key, nil
}
func (i *fakeIdentity) LeafOptions(cs mls.CipherSuite) (mls.LeafOptions, error) {
	return leafOptions(i.user, i.device, i.own().mlsKeys, cs), nil
}

func leafOptions(user id.UserID, device id.DeviceID, keys map[mls.CipherSuite]mls.SignaturePrivateKey, cs mls.CipherSuite) mls.LeafOptions {
	o := rooms.LeafOptions(rooms.Credential{User: user, Device: device, Key: keys[cs].Public()})
	o.Capabilities.CipherSuites = slices.Sorted(maps.Keys(keys))
	return o
}
func (i *fakeIdentity) Suites() []mls.CipherSuite { return slices.Sorted(maps.Keys(i.own().mlsKeys)) }
func (i *fakeIdentity) Sync(ctx context.Context, req identity.SyncRequest) (*identity.SyncResponse, error) {
	if req.Timeout > 0 { // a long poll
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	var resp *mautrix.RespSync
	sync := func() { resp = i.s.sync(i.user, i.device, req.Since, i.limit) }
	if i.around != nil {
		i.around(sync)
	} else {
		sync()
	}
	return &identity.SyncResponse{RespSync: *resp}, nil
}
func (i *fakeIdentity) ProcessSync(context.Context, *identity.SyncResponse) error { return nil }
func (i *fakeIdentity) ProcessRespSync(context.Context, *mautrix.RespSync) error  { return nil }
func (i *fakeIdentity) OnDevicesChanged(fn func(user id.UserID))                  { i.changed = fn }
func (i *fakeIdentity) Outdate(_ context.Context, user id.UserID) error {
	i.asked = append(i.asked, user)
	delete(i.old, user)
	if i.changed != nil {
		i.changed(user)
	}
	return nil
}
func (i *fakeIdentity) DevicesOf(_ context.Context, users []id.UserID) (map[id.UserID]*identity.UserDevices, error) {
	out := map[id.UserID]*identity.UserDevices{}
	for _, user := range users {
		if out[user] = i.old[user]; out[user] == nil {
			out[user] = i.s.devicesOf(user)
		}
	}
	for _, user := range users {
		i.s.mu.Lock() // more than one may ask at once
		came := i.read[user]
		delete(i.read, user)
		i.s.mu.Unlock()
		if came != nil {
			came()
		}
	}
	return out, nil
}
func (i *fakeIdentity) ClaimKeyPackages(_ context.Context, cs mls.CipherSuite, targets []identity.Target) ([]identity.Claimed, error) {
	out := make([]identity.Claimed, len(targets))
	i.claims = append(i.claims, len(targets))
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	for n, target := range targets {
		out[n].Target = target
		d := i.s.users[target.User].devices[target.Device]
		at := -1
		if d != nil && i.s.reaches(serverOf(target.User)) {
			at = slices.IndexFunc(d.packages, func(b *mls.KeyPackageBundle) bool { return b.KeyPackage().CipherSuite == cs })
		}
		if at < 0 {
			out[n].Err = identity.ErrNoKeyPackage
			continue
		}
		out[n].KeyPackage = d.packages[at].KeyPackage()
		d.packages = slices.Delete(d.packages, at, at+1)
	}
	return out, nil
}
func (i *fakeIdentity) Bundle(_ context.Context, refs []mls.KeyPackageRef) (*mls.KeyPackageBundle, bool, error) {
	i.opened++
	for _, ref := range refs {
		if raw, ok := i.bundles[string(ref)]; ok {
			bundle, err := mls.UnmarshalKeyPackageBundle(raw)
			return bundle, i.shared[string(ref)], err
		}
	}
	return nil, false, errors.New("fake: not ours")
}
func (i *fakeIdentity) ShareBundles(context.Context) error {
	for ref := range i.bundles {
		i.shared[ref] = true
	}
	return nil
}
func (i *fakeIdentity) ConsumeBundle(_ context.Context, ref mls.KeyPackageRef) error {
	delete(i.bundles, string(ref))
	return nil
}

// world is a server with a module and devices.
type world struct {
	t      testing.TB
	ctx    context.Context
	s      *fakeServer
	module *fakeModule   // of testServer
	more   []*fakeModule // of other servers
	ends   []deadline
	all    []*testDevice
	now    testClock
	pace   time.Duration // of background
	step   time.Duration // between two turns of settle

	sealMu sync.Mutex
	seals  map[[32]byte][32]byte // hash of a key and nonce → hash of what they encrypted
	cs     mls.CipherSuite
	suites []mls.CipherSuite // that devices have, if not only cs
	// follows are suites that modules have keys for beside cs.
	follows []mls.CipherSuite
}

// testDevice is a client with its store, which survives restarts.
type testDevice struct {
	*Client
	w       *world
	ident   *fakeIdentity
	hs      *fakeTransport
	st      *store.Store
	path    string
	got     []Update
	told    func(u Update) // called with each update, if set
	crashAt func(point string) error
	dead    bool
	skew    time.Duration    // of its wall clock
	wall    func() time.Time // if set, its wall clock without the skew
	asks    bool             // for history, by itself
	tells   bool             // what it has received
	bounds  Limits
	cuts    bool   // what of its store is on disk is kept, for powerCut
	cut     func() // in place of a restart after a crash
	durable func() // called when all was written and is on disk
	fed     bool   // what came is asked for by its caller's syncer, which hands it over
	ahead   bool   // another session is shown everything first, see TakeAhead
	token   string // of that syncer, on disk as soon as Feed has returned
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, ctx: t.Context(), seals: map[[32]byte][32]byte{}, s: newFakeServer(), cs: mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519, pace: 250 * time.Millisecond, step: 4 * time.Second}
	w.now.set(time.Second)
	w.module = newFakeModule(w, testServer)
	return w
}

// addModule starts the module of another server. Its rooms are those of the one
// log: that servers see different things is tested elsewhere.
func (w *world) addModule(server string) *fakeModule {
	w.t.Helper()
	m := newFakeModule(w, server)
	w.more = append(w.more, m)
	return m
}

// deadline ends a context at a time of the world.
type deadline struct {
	at  time.Duration
	end context.CancelFunc
}

// timeout returns a context that ends on the world's clock.
func (w *world) timeout(d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(w.ctx)
	w.ends = append(w.ends, deadline{w.now.get() + d, cancel})
	return ctx, cancel
}

// order lets all modules act.
func (w *world) order() {
	w.t.Helper()
	for _, d := range w.ends {
		if w.now.get() >= d.at {
			d.end()
		}
	}
	w.module.turn()
	for _, m := range w.more {
		m.turn()
	}
}

// device logs a device of a user ("name", or "name:server") in; the first one of
// a user makes the user.
func (w *world) device(user, device string) *testDevice {
	w.t.Helper()
	return w.deviceOn(w.s, user, device)
}

// deviceOn logs a device in on one of several servers.
func (w *world) deviceOn(s *fakeServer, user, device string) *testDevice {
	w.t.Helper()
	ident, userID := w.registerOn(s, user, device)
	td := &testDevice{w: w, ident: ident, hs: &fakeTransport{s: s, user: userID, device: id.DeviceID(device)}, path: filepath.Join(w.t.TempDir(), "store.db")}
	td.open()
	w.all = append(w.all, td)
	for _, other := range w.all {
		if other != td && other.ident.changed != nil {
			other.ident.changed(userID)
		}
	}
	return td
}

// register makes the keys of a device, without a client that runs.
func (w *world) register(user, device string) (*fakeIdentity, id.UserID) {
	w.t.Helper()
	return w.registerOn(w.s, user, device)
}

func (w *world) registerOn(s *fakeServer, user, device string) (*fakeIdentity, id.UserID) {
	w.t.Helper()
	return w.enroll(s, user, device, 20)
}

// enroll makes the keys of a device, with so many key packages of each suite.
func (w *world) enroll(s *fakeServer, user, device string, packages int) (*fakeIdentity, id.UserID) {
	w.t.Helper()
	userID := id.UserID("@" + user + ":" + s.name)
	if strings.Contains(user, ":") {
		userID = id.UserID("@" + user)
	}
	random := newSeeded(user + device)
	w.s.mu.Lock()
	u := w.s.users[userID]
	if u == nil {
		u = &fakeUser{master: edKey(newSeeded(user + "master")), self: edKey(newSeeded(user + "self")), devices: map[id.DeviceID]*fakeDevice{}}
		w.s.users[userID] = u
	}
	d := &fakeDevice{key: edKey(random), mlsKeys: map[mls.CipherSuite]mls.SignaturePrivateKey{}, signed: true}
	u.devices[id.DeviceID(device)] = d
	w.s.mu.Unlock()
	suites := w.suites
	if suites == nil {
		suites = []mls.CipherSuite{w.cs}
	}
	for _, cs := range suites {
		key, err := mls.GenerateSignatureKey(cs, random)
		if err != nil {
			w.t.Fatal(err)
		}
		d.mlsKeys[cs] = key
	}
	ident := &fakeIdentity{s: s, user: userID, device: id.DeviceID(device), limit: 100, bundles: map[string][]byte{}, shared: map[string]bool{}}
	for _, cs := range suites {
		ident.addPackages(w, cs, packages, random)
	}
	return ident, userID
}

// addPackages puts key packages of a suite where others claim them.
func (i *fakeIdentity) addPackages(w *world, cs mls.CipherSuite, n int, random io.Reader) {
	w.t.Helper()
	i.stock(w.t, cs, n, &mls.Config{Rand: random, ExperimentalSuites: true})
}

// stock is addPackages with a configuration for making them.
func (i *fakeIdentity) stock(t testing.TB, cs mls.CipherSuite, n int, cfg *mls.Config) {
	t.Helper()
	leaf, err := i.LeafOptions(cs)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		bundle, err := mls.NewKeyPackage(cfg, cs, i.own().mlsKeys[cs], leaf)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := bundle.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		i.bundles[string(bundle.Ref())] = raw
		i.own().packages = append(i.own().packages, bundle)
	}
}

func (d *testDevice) open() {
	d.w.t.Helper()
	st, err := store.Open(d.w.ctx, store.Options{Path: d.path, Key: make(store.Key, 32), OnDurable: func() {
		if d.durable != nil {
			d.durable()
		}
		if d.cuts {
			d.keepDurable()
		}
	}})
	if err != nil {
		d.w.t.Fatal(err)
	}
	d.st = st
	if d.cuts {
		d.keepDurable()
	}
	c, err := Open(d.w.ctx, Options{
		Store: st, Identity: d.ident, Transport: d.hs, Log: d.logger(),
		Handler: func(_ context.Context, u Update) {
			d.got = append(d.got, u)
			if d.told != nil {
				d.told(u)
			}
		},
		Now: func() time.Time {
			if d.wall != nil {
				return d.wall().Add(d.skew)
			}
			return time.Now().Add(d.skew)
		},
		Monotonic: func() time.Duration { return d.w.now.get() },
		OnSeal:    d.w.sealed,

		AskHistory: d.asks, Receipts: d.tells, Limits: d.bounds,
		Rand: newSeeded(fmt.Sprintf("%s%s%d%s", filepath.Base(d.path), d.ident.device, d.w.s.events, d.ident.user)),
	})
	if err != nil {
		d.w.t.Fatal(err)
	}
	c.crashAt = d.crashAt
	d.Client = c
	d.dead = false
	d.w.t.Cleanup(func() {
		if d.st == st {
			_ = st.Close()
		}
	})
}

// logger writes to the test's log when CLIENT_TEST_LOG is set.
func (d *testDevice) logger() zerolog.Logger {
	if os.Getenv("CLIENT_TEST_LOG") == "" {
		return zerolog.Nop()
	}
	return zerolog.New(zerolog.NewTestWriter(d.w.t)).With().Str("device", string(d.ident.device)).Logger()
}

// crash throws away what is in memory and opens the store again.
func (d *testDevice) restart() {
	d.w.t.Helper()
	if err := d.st.Close(); err != nil {
		d.w.t.Fatal(err)
	}
	d.open()
}

// turn lets a device do everything it can do now.
func (d *testDevice) turn() {
	d.w.t.Helper()
	if d.dead {
		return
	}
	if d.ahead {
		d.takeAll()
	}
	if err := d.take(); err != nil && d.crashAt == nil {
		d.w.t.Fatalf("sync of %s: %v", d.ident.device, err)
	}
	d.Step(d.w.ctx)
	d.Flush(d.w.ctx)
	d.Exchange(d.w.ctx)
	if err := d.Deliver(d.w.ctx); err != nil && d.crashAt == nil {
		d.w.t.Fatalf("deliver to %s: %v", d.ident.device, err)
	}
}

// take lets a device take in what came.
func (d *testDevice) take() error {
	if !d.fed {
		return d.SyncOnce(d.w.ctx, 0)
	}
	s, key := d.ident.s, string(d.ident.user)+"/"+string(d.ident.device)
	s.mu.Lock()
	given := s.toDevice[key]
	s.mu.Unlock()
	resp := s.sync(d.ident.user, d.ident.device, d.token, d.ident.limit)
	if err := d.Feed(d.w.ctx, resp); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.toDevice[key] = append(given, s.toDevice[key]...) // asked from the same token again, it gives them again
		return err
	}
	d.token = resp.NextBatch
	return nil
}

// leftLying fails the test if a step ended with something still to be fetched: nothing would ask for it before the next
// event comes. It is for when no call runs beside, which may be about to say what it needs.
func (d *testDevice) leftLying() {
	d.w.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fatal != nil || d.crashAt != nil || d.beside {
		return
	}
	for _, r := range d.rooms {
		files := 0
		for _, n := range r.needs {
			if n.file != nil {
				files++
			}
		}
		for key, n := range r.needs {
			if n.notFor <= d.mono() && (n.file == nil || files <= maxMediaCache) {
				d.w.t.Fatalf("%s leaves %s lying in %s", d.ident.device, key, r.id)
			}
		}
	}
}

// settle lets everybody act until nothing happens for a while.
func (w *world) settle(devices ...*testDevice) {
	w.t.Helper()
	if len(devices) == 0 {
		devices = w.all
	}
	w.s.mu.Lock()
	most := w.s.events + 3000
	w.s.mu.Unlock()
	for quiet, rounds := 0, 0; quiet < 3; {
		w.s.mu.Lock()
		before := w.s.events
		w.s.mu.Unlock()
		w.order()
		for _, d := range devices {
			d.turn()
			d.leftLying()
		}
		w.now.add(w.step)
		w.s.mu.Lock()
		after := w.s.events
		w.s.mu.Unlock()
		if before == after && !w.committing(devices) {
			quiet++
		} else {
			quiet = 0
		}
		if rounds++; after > most || rounds > 1000 {
			w.t.Fatal("the devices never come to rest")
		}
	}
	for _, d := range devices {
		d.checkClean()
	}
}

// committing tells whether one of the devices is about to make a commit: it lets
// others go first, for a time that follows from the head and its leaf.
func (w *world) committing(devices []*testDevice) bool {
	now := w.now.get()
	return slices.ContainsFunc(devices, func(d *testDevice) bool {
		if d.dead {
			return false
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, r := range d.rooms {
			if r.commitAt > now {
				return true
			}
		}
		return false
	})
}

// oneClock lets the wall clocks of servers and devices go on with the monotonic one.
func (w *world) oneClock() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	start := w.s.clock - w.now.get().Milliseconds()
	w.s.now = func() int64 { return start + w.now.get().Milliseconds() }
	for _, d := range w.all {
		d.wall = func() time.Time { return time.UnixMilli(w.s.now()) }
	}
}

// testClock is the monotonic clock of a world. A client's own goroutines read it
// while the test moves it.
type testClock struct{ at atomic.Int64 }

func (c *testClock) get() time.Duration  { return time.Duration(c.at.Load()) }
func (c *testClock) set(d time.Duration) { c.at.Store(int64(d)) }
func (c *testClock) add(d time.Duration) { c.at.Add(int64(d)) }

// background runs a blocking method of a client while everybody acts. Some act once more after it returned.
func (w *world) background(fn func() error) error {
	w.t.Helper()
	return w.backgroundOf(fn, w.all...)
}

// backgroundOf runs it while the modules and some devices alone act.
func (w *world) backgroundOf(fn func() error, devices ...*testDevice) error {
	w.t.Helper()
	done := make(chan error, 1)
	go func() { done <- fn() }()
	// Some methods wait on the real clock, however fast the turns go.
	for n, start := 0, time.Now(); n < 4000 || time.Since(start) < patience.Hang; n++ {
		select {
		case err := <-done:
			return err
		default:
		}
		w.order()
		for _, d := range devices {
			d.turn()
		}
		if n < 4000 {
			w.now.add(w.pace)
		}
	}
	return errors.New("background: it never ends")
}

func (w *world) must(fn func() error) {
	w.t.Helper()
	if err := w.background(fn); err != nil {
		w.t.Fatal(err)
	}
}

// texts returns the bodies a device received, in order.
func (d *testDevice) texts() []string {
	var out []string
	for _, u := range d.got {
		if msg, ok := u.(*Message); ok {
			out = append(out, msg.Body())
		}
	}
	return out
}

func (d *testDevice) epoch(room id.RoomID) uint64 {
	info, err := d.Room(d.w.ctx, room)
	if err != nil {
		return 0
	}
	return info.Epoch
}
