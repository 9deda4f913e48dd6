package simulation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/internal/simnet"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const suite = mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519

// device is a member's device: a client on its store, and what it has of its
// homeserver.
type device struct {
	disk
	w      *world
	name   string
	user   id.UserID
	id     id.DeviceID
	server *simnet.Server
	clock  clock

	st       *store.Store
	c        *client.Client
	probe    *probe.Client
	up       bool
	away     time.Duration // it is switched off until then
	gone     bool          // logged out, or left to itself: for good
	life     int           // how often it was started
	bad      bool          // its user's commits may be such that nobody can apply them
	stranger bool          // a server let its user in
	keeps    bool          // its commits leave those who are out in the group
	backup   image         // a copy of its disk; nil: none
	restored time.Duration // when it was put back last
	next     time.Duration // when it wants to be called, on the world's clock
	stepAt   time.Duration // the same for Step and Flush
	flushAt  time.Duration
	seen     int           // changes of its server that it has seen
	heard    time.Duration // when it had the newest answer to /sync; 0: none since it was started
	devices  func(user id.UserID)
	random   io.Reader // for key packages
	key      []byte    // public signature key

	sealing, sealed []sealed // message keys used: not durable yet, and durable
	updates         []client.Update
	observed
}

// newDevice logs a device in, without starting it.
func (w *world) newDevice(user id.UserID, name id.DeviceID) *device {
	d := &device{
		w: w, name: fmt.Sprintf("%s/%s", user, name), user: user, id: name, server: w.net.Server(simnet.ServerOf(user)),
		random: w.reader(string(user) + string(name)), clock: w.newClock(),
	}
	d.disk = disk{path: filepath.Join(w.dir, fmt.Sprintf("client%d.db", len(w.devices))), node: d.name}
	d.observed.init()
	at, err := w.net.Login(user, name, d.random, suite)
	if err != nil {
		w.fail("%v", err)
	}
	d.key = at.MLS[suite].Public()
	w.devices = append(w.devices, d)
	return d
}

// start opens the client on what its disk holds.
func (d *device) start() {
	d.life++
	random := d.w.reader(fmt.Sprintf("%s life %d", d.name, d.life))
	st, err := store.Open(d.w.ctx, store.Options{Path: d.path, Key: make(store.Key, store.KeySize), Rand: random})
	if err != nil {
		d.w.fail("open the store of %s: %v", d.name, err)
	}
	d.st, d.probe, d.up, d.dead = st, &probe.Client{Point: d.point, Without: map[string]bool{}, Blind: d.blind}, true, false
	if d.keeps {
		d.probe.Without[probe.Leavers] = true
	}
	if without := string(d.w.script.without); without != "" && d.w.lying {
		d.probe.Without[without] = true // the others know nothing of it
	}
	d.c, err = client.Open(d.w.ctx, client.Options{
		Store: st, Identity: &account{d}, Transport: &transport{d}, Log: d.w.logger(d.name),
		Handler: func(_ context.Context, u client.Update) { d.told(u) },
		Now:     d.clock.wall, Monotonic: d.clock.mono, Rand: random, OnSeal: d.onSeal, Probe: d.probe,
	})
	if err != nil {
		d.w.fail("open %s: %v", d.name, err)
	}
	d.out, d.newest = nil, federation.Ref{} // of what its disk had there may be less
	d.next, d.stepAt, d.flushAt, d.seen, d.heard, d.away = d.w.net.Now, 0, 0, -1, 0, 0
	d.replenish()
}

// told notes what the client tells its program.
func (d *device) told(u client.Update) {
	d.updates = append(d.updates, u)
	switch u := u.(type) {
	case *client.EpochChanged:
		d.entered[u.Ref] = true
	case *client.Warning:
		// State resolution forgets what stepReset makes it forget, and one side's membership where servers were parted.
		if f := d.w.script.faults; u.Kind == client.SetBackWarning && d.w.stats.resets == 0 && !f.split && !f.parted {
			d.w.later = &violation{"no false alarm", fmt.Sprintf("%s is told that a membership was forgotten: %s, %s", d.name, u.EventID, u.Text)}
		}
	case *client.Message: // 4, nobody shows one twice
		if at := d.shown[u.Body()]; u.Body() != "" && at != "" && at != u.EventID {
			d.w.later = &violation{"4 no lost message", fmt.Sprintf("%s shows %q once as %s, once as %s", d.name, u.Body(), at, u.EventID)}
		}
		d.shown[u.Body()] = u.EventID
	}
}

// replenish keeps key packages at the homeserver.
func (d *device) replenish() {
	at := d.w.net.User(d.user).Devices[d.id]
	if at == nil || len(at.Packages) >= 3 {
		return
	}
	leaf := rooms.LeafOptions(rooms.Credential{User: d.user, Device: d.id, Key: at.MLS[suite].Public()})
	for len(at.Packages) < 6 {
		bundle, err := mls.NewKeyPackage(&mls.Config{Rand: d.random, Now: d.clock.wall}, suite, at.MLS[suite], leaf)
		if err != nil {
			d.w.fail("%v", err)
		}
		raw, err := bundle.MarshalBinary()
		if err != nil {
			d.w.fail("%v", err)
		}
		err = d.st.AddKeyPackage(d.w.ctx, &store.KeyPackage{Ref: bundle.Ref(), Suite: uint16(suite), Created: d.clock.wall(), Expires: d.clock.wall().Add(time.Hour), Bundle: raw})
		if err != nil {
			d.w.fail("%v", err)
		}
		if err := d.w.secrets.bundle(d.name, raw, bundle.KeyPackage()); err != nil {
			d.w.fail("a key package of %s: %v", d.name, err)
		}
		at.Packages = append(at.Packages, bundle.KeyPackage())
	}
}

// stop ends the process without a crash.
func (d *device) stop() {
	if d.up {
		_ = d.st.Close()
		d.up = false
	}
}

// turn lets the client do all it can do now.
func (d *device) turn() {
	if !d.up || d.gone || d.away > d.w.net.Now {
		return
	}
	now := d.w.net.Now
	d.next = now + time.Minute
	d.stepAt, d.flushAt = min(d.stepAt, d.next), min(d.flushAt, d.next)
	for range 50 {
		var syncErr error
		step, flush := d.probe.Woken()
		if step {
			d.stepAt = now // a /sync may come before it
		}
		if flush {
			d.flushAt = now
		}
		switch {
		case d.seen != d.server.Changes:
			d.seen = d.server.Changes
			d.listened()
			syncErr = d.c.SyncOnce(d.w.ctx, 0)
			d.heard = now
		case d.stepAt <= now:
			d.stepAt = d.at(d.c.Step(d.w.ctx))
		case d.flushAt <= now:
			d.flushAt = d.at(d.c.Flush(d.w.ctx))
		default:
			d.next = min(d.next, d.stepAt, d.flushAt)
			return
		}
		if err := d.c.Deliver(d.w.ctx); err != nil && !d.dead {
			d.w.fail("deliver to %s: %v", d.name, err)
		}
		if d.dead {
			d.bury()
			return
		}
		d.flushSeals()
		d.w.raise()
		if syncErr != nil {
			d.w.fail("sync of %s: %v", d.name, syncErr)
		}
		d.w.observe(d)
	}
	d.next = now
}

// listened notes the answers to /sync that a device had while it waited for
// something new.
func (d *device) listened() {
	if d.heard = max(d.heard, d.away); d.heard == 0 {
		return // it was off, and asks for the first time
	}
	const wait = 30 * time.Second
	if last := d.heard + (d.w.net.Now - d.heard).Truncate(wait); last > d.heard {
		if err := d.probe.Idle(d.w.ctx, d.clock.wall().Add(last-d.w.net.Now)); err != nil {
			d.w.fail("sync of %s: %v", d.name, err)
		}
	}
}

// at returns when a method wants to be called again, on the world's clock.
func (d *device) at(next time.Duration) time.Duration {
	if next == 0 {
		return d.w.net.Now + time.Minute
	}
	return min(d.w.net.Now+time.Minute, d.clock.world(next))
}

// act calls a method of the client the way a program does that does not wait.
func (d *device) act(fn func(ctx context.Context) error) error {
	if !d.up || d.gone {
		return errDown
	}
	ctx, cancel := context.WithCancel(d.w.ctx)
	cancel()
	err := fn(ctx)
	if d.dead {
		d.bury()
		return errDown
	}
	d.flushSeals()
	d.w.raise()
	d.next, d.stepAt = d.w.net.Now, d.w.net.Now
	return err
}

var errDown = errors.New("simulation: the node is down")

// bury ends a process that died.
func (d *device) bury() {
	_ = d.st.Close()
	d.up, d.sealing = false, nil
	d.flushSeals()
	d.restore()
	d.away = d.w.net.Now + time.Duration(1+d.w.rng.IntN(40))*time.Second
	d.next = d.away
}

// held returns what the client holds of the room.
func (d *device) held() *probe.Held { return d.probe.Inspect(d.w.room) }

// sealed is one use of a message key.
type sealed struct{ use, content [32]byte }

func (d *device) onSeal(use, content [32]byte) {
	if !d.dead {
		d.sealing = append(d.sealing, sealed{use, content})
	}
}

// point is called before each write: what came before it is durable.
func (d *device) point(name string) error {
	if d.dead {
		return errDied
	}
	d.flushSeals()
	if d.strike(d.w, name) {
		d.sealing = nil // this write does not happen
		return errDied
	}
	d.sealed, d.sealing = d.sealing, nil
	return nil
}

var errDied = errors.New("simulation: the process died")

// flushSeals counts the message keys of what is durable.
func (d *device) flushSeals() {
	for _, s := range d.sealed {
		d.w.use(d, s)
	}
	d.sealed = nil
}

// transport is a device's access to its homeserver.
type transport struct{ d *device }

// request makes one request. The process may die before it reaches the
// homeserver, and before the answer is here.
func (t *transport) request(name string, do func() error) error {
	if t.d.dead {
		return errDied
	}
	t.d.flushSeals()
	if t.d.strike(t.d.w, name) {
		return errDied
	}
	err := do()
	if t.d.strike(t.d.w, name+" answered") {
		return errDied
	}
	return err
}

func refused(code int, errcode string) error {
	return mautrix.HTTPError{Response: &http.Response{StatusCode: code}, RespError: &mautrix.RespError{ErrCode: errcode, StatusCode: code}}
}

func (t *transport) answer(err error) error {
	switch {
	case errors.Is(err, simnet.ErrUnreachable):
		return refused(http.StatusBadGateway, "M_UNKNOWN")
	case errors.Is(err, simnet.ErrRefused):
		return refused(http.StatusForbidden, "M_FORBIDDEN")
	}
	return err
}

func fromNet(e *simnet.Event) *client.Event {
	return &client.Event{
		ID: e.ID, RoomID: e.Room, Type: e.Type, Sender: e.Sender, StateKey: e.StateKey, Timestamp: e.Time,
		Content: slices.Clone(e.Content), Redacts: e.Redacts,
	}
}

func fromNetAll(list []*simnet.Event) (out []*client.Event) {
	for _, e := range list {
		out = append(out, fromNet(e))
	}
	return out
}

func (t *transport) Send(_ context.Context, room id.RoomID, eventType, txnID string, content json.RawMessage) (evt id.EventID, err error) {
	s := t.d.server
	err = t.request("send "+eventType, func() error {
		if s.Membership(room, t.d.user) != "join" {
			return refused(http.StatusForbidden, "M_FORBIDDEN")
		}
		evt = s.Once(t.d.user, txnID, func() id.EventID {
			m := t.d.w.judgeSend(t.d, eventType, content)
			if eventType == rooms.TypeEncrypted {
				t.d.w.leak(t.d)
			}
			sent := t.d.w.tamper(t.d, eventType, slices.Clone(content))
			e := s.Send(t.d.user, room, eventType, nil, t.d.w.swapTag(t.d, eventType, sent))
			if m != nil {
				m.events = append(m.events, e.ID)
			}
			return e.ID
		})
		return nil
	})
	return evt, err
}

func (t *transport) SendState(_ context.Context, room id.RoomID, eventType, stateKey string, content json.RawMessage) (evt id.EventID, err error) {
	err = t.request("state "+eventType, func() error {
		if t.d.server.Membership(room, t.d.user) != "join" {
			return refused(http.StatusForbidden, "M_FORBIDDEN")
		}
		evt = t.d.server.Send(t.d.user, room, eventType, &stateKey, slices.Clone(content)).ID
		return nil
	})
	return evt, err
}

func (t *transport) Redact(context.Context, id.RoomID, id.EventID, string, string) (id.EventID, error) {
	return "", refused(http.StatusForbidden, "M_FORBIDDEN")
}

func (t *transport) Event(_ context.Context, room id.RoomID, eventID id.EventID) (evt *client.Event, err error) {
	err = t.request("event", func() error {
		e := t.d.server.Knows(room, eventID)
		if e == nil || !t.d.server.Visible(e, t.d.user) {
			return refused(http.StatusNotFound, "M_NOT_FOUND")
		}
		evt = fromNet(e)
		return nil
	})
	return evt, err
}

func (t *transport) Messages(_ context.Context, room id.RoomID, from string, limit int) (out []*client.Event, next string, err error) {
	err = t.request("messages", func() error {
		list, end := t.d.server.Page(room, t.d.user, from, min(limit, t.d.w.page))
		out, next = fromNetAll(list), end
		return nil
	})
	return out, next, err
}

func (t *transport) State(_ context.Context, room id.RoomID) (out []*client.Event, err error) {
	err = t.request("state", func() error {
		if t.d.server.Membership(room, t.d.user) != "join" {
			return refused(http.StatusForbidden, "M_FORBIDDEN")
		}
		out = fromNetAll(t.d.server.State(room))
		return nil
	})
	return out, err
}

func (t *transport) CreateRoom(_ context.Context, req json.RawMessage) (room id.RoomID, err error) {
	var body struct {
		Invite       []id.UserID        `json:"invite"`
		Creation     map[string]any     `json:"creation_content"`
		InitialState []rooms.StateEvent `json:"initial_state"`
		Power        map[string]any     `json:"power_level_content_override"`
	}
	if err := json.Unmarshal(req, &body); err != nil {
		return "", err
	}
	err = t.request("create room", func() error {
		room = id.RoomID("!room:" + t.d.server.Name)
		set := func(kind, key string, content any) {
			raw, err := json.Marshal(content)
			if err != nil {
				t.d.w.fail("%v", err)
			}
			t.d.server.Send(t.d.user, room, kind, &key, raw)
		}
		set(rooms.TypeCreate, "", body.Creation)
		set(rooms.TypeMember, string(t.d.user), map[string]string{"membership": "join"})
		body.Power["users"] = map[string]int{string(t.d.user): 100}
		body.Power["users_default"] = 0
		set(rooms.TypePowerLevels, "", body.Power)
		set(rooms.TypeJoinRules, "", map[string]string{"join_rule": "invite"})
		for _, s := range body.InitialState {
			set(s.Type, s.StateKey, s.Content)
		}
		for _, user := range body.Invite {
			set(rooms.TypeMember, string(user), map[string]string{"membership": "invite"})
		}
		return nil
	})
	return room, err
}

// member changes somebody's membership.
func (t *transport) member(room id.RoomID, user id.UserID, membership string) error {
	return t.request(membership, func() error {
		s := t.d.server
		own, is := s.Membership(room, t.d.user), s.Membership(room, user)
		switch {
		case user != t.d.user && own != "join",
			membership == "invite" && (is == "ban" || is == "join" || !t.d.w.exists(user)),
			membership != "ban" && membership != "leave" && is == "ban":
			return refused(http.StatusForbidden, "M_FORBIDDEN")
		}
		key := string(user)
		s.Send(t.d.user, room, rooms.TypeMember, &key, json.RawMessage(fmt.Sprintf(`{"membership":%q}`, membership)))
		return nil
	})
}

func (t *transport) Invite(_ context.Context, room id.RoomID, user id.UserID, _ string) error {
	return t.member(room, user, "invite")
}

func (t *transport) Leave(_ context.Context, room id.RoomID) error {
	return t.member(room, t.d.user, "leave")
}

func (t *transport) Kick(_ context.Context, room id.RoomID, user id.UserID, _ string) error {
	if t.d.w.script.without == kickSwallowed {
		return nil
	}
	return t.member(room, user, "leave")
}

func (t *transport) Ban(_ context.Context, room id.RoomID, user id.UserID, _ string) error {
	return t.member(room, user, "ban")
}

func (t *transport) Join(_ context.Context, room string, _ []string) (id.RoomID, error) {
	err := t.request("join", func() error {
		if err := t.d.server.JoinRoom(id.RoomID(room), t.d.user); err != nil {
			return t.answer(err)
		}
		if t.d.server.Membership(id.RoomID(room), t.d.user) != "join" {
			key := string(t.d.user)
			t.d.server.Send(t.d.user, id.RoomID(room), rooms.TypeMember, &key, json.RawMessage(`{"membership":"join"}`))
		}
		return nil
	})
	return id.RoomID(room), err
}

func (t *transport) Upload(_ context.Context, data []byte, _ string) (mxc string, err error) {
	err = t.request("upload", func() error {
		sealedIn("a file", data)
		mxc = t.d.server.Upload(data)
		return nil
	})
	return mxc, err
}

func (t *transport) Download(_ context.Context, mxc string, limit int64) (data []byte, err error) {
	err = t.request("download", func() error {
		data, err = t.d.server.Download(mxc, limit)
		return t.answer(err)
	})
	return data, err
}

func (t *transport) SendToDevice(_ context.Context, eventType, txnID string, messages map[id.UserID]map[id.DeviceID]json.RawMessage) error {
	return t.request("to-device", func() error {
		t.d.server.Once(t.d.user, txnID, func() id.EventID {
			for _, user := range sortedKeys(messages) {
				for _, dev := range sortedKeys(messages[user]) {
					sealedIn("what is sent to a device", messages[user][dev])
					t.d.w.judgeToDevice(t.d, eventType, user, dev, messages[user][dev])
					t.d.w.secrets.carried = append(t.d.w.secrets.carried, messages[user][dev])
					t.d.server.SendToDevice(t.d.user, eventType, user, dev, slices.Clone(messages[user][dev]))
				}
			}
			return "sent"
		})
		return nil
	})
}

// account is a device's Matrix identity.
type account struct{ d *device }

func (a *account) UserID() id.UserID     { return a.d.user }
func (a *account) DeviceID() id.DeviceID { return a.d.id }

func (a *account) SignatureKey(cs mls.CipherSuite) (mls.SignaturePrivateKey, error) {
	at := a.d.w.net.User(a.d.user).Devices[a.d.id]
	if at == nil {
		return mls.SignaturePrivateKey{}, errors.New("simulation: logged out")
	}
	return at.MLS[cs], nil
}

func (a *account) LeafOptions(cs mls.CipherSuite) (mls.LeafOptions, error) {
	key, err := a.SignatureKey(cs)
	if err != nil {
		return mls.LeafOptions{}, err
	}
	return rooms.LeafOptions(rooms.Credential{User: a.d.user, Device: a.d.id, Key: key.Public()}), nil
}

func (a *account) Sync(_ context.Context, req identity.SyncRequest) (*identity.SyncResponse, error) {
	t := transport{a.d}
	out := &identity.SyncResponse{}
	err := t.request("sync", func() error {
		s := a.d.server.Sync(a.d.user, a.d.id, req.Since, a.d.w.timeline)
		resp := mautrix.RespSync{NextBatch: s.Next}
		resp.Rooms.Join = map[id.RoomID]*mautrix.SyncJoinedRoom{}
		resp.Rooms.Leave = map[id.RoomID]*mautrix.SyncLeftRoom{}
		resp.Rooms.Invite = map[id.RoomID]*mautrix.SyncInvitedRoom{}
		for room, j := range s.Join {
			joined := &mautrix.SyncJoinedRoom{}
			joined.State.Events = toMautrix(j.State)
			joined.Timeline.Events, joined.Timeline.Limited, joined.Timeline.PrevBatch = toMautrix(j.Timeline), j.Limited, j.PrevBatch
			resp.Rooms.Join[room] = joined
		}
		for room, list := range s.Leave {
			left := &mautrix.SyncLeftRoom{}
			left.Timeline.Events = toMautrix(list)
			resp.Rooms.Leave[room] = left
		}
		for room, list := range s.Invite {
			invited := &mautrix.SyncInvitedRoom{}
			invited.State.Events = toMautrix(list)
			resp.Rooms.Invite[room] = invited
		}
		resp.ToDevice.Events = toMautrix(s.ToDevice)
		resp.DeviceLists.Changed = s.Changed
		out.RespSync = resp
		return nil
	})
	return out, err
}

func toMautrix(list []*simnet.Event) []*event.Event {
	out := make([]*event.Event, 0, len(list))
	for _, e := range list {
		out = append(out, &event.Event{
			ID: e.ID, RoomID: e.Room, Type: event.Type{Type: e.Type}, Sender: e.Sender, StateKey: e.StateKey, Timestamp: e.Time,
			Content: event.Content{VeryRaw: slices.Clone(e.Content)}, Redacts: e.Redacts,
		})
	}
	return out
}

func (a *account) ProcessSync(ctx context.Context, resp *identity.SyncResponse) error {
	return a.ProcessRespSync(ctx, &resp.RespSync)
}

func (a *account) ProcessRespSync(_ context.Context, resp *mautrix.RespSync) error {
	for _, user := range resp.DeviceLists.Changed {
		if a.d.devices != nil {
			a.d.devices(user)
		}
	}
	if !a.d.dead {
		a.d.replenish()
	}
	return nil
}

func (a *account) OnDevicesChanged(fn func(user id.UserID)) { a.d.devices = fn }

// Outdate finds nothing to do: every question goes to the server.
func (a *account) Outdate(context.Context, id.UserID) error { return nil }

func (a *account) DevicesOf(_ context.Context, users []id.UserID) (map[id.UserID]*identity.UserDevices, error) {
	t := transport{a.d}
	out := map[id.UserID]*identity.UserDevices{}
	err := t.request("devices", func() error {
		for _, user := range users {
			list, stale := a.d.server.Devices(user)
			if list == nil {
				list = &simnet.DeviceList{User: user}
			}
			u := identity.NewUserDevices(user, list.Devices, list.Cross, rooms.Known{})
			u.Stale = stale
			out[user] = u
		}
		return nil
	})
	return out, err
}

func (a *account) ClaimKeyPackages(_ context.Context, cs mls.CipherSuite, targets []identity.Target) ([]identity.Claimed, error) {
	t := transport{a.d}
	out := make([]identity.Claimed, len(targets))
	err := t.request("claim", func() error {
		for i, target := range targets {
			out[i].Target = target
			kp, err := a.d.server.Claim(target.User, target.Device)
			if err != nil {
				out[i].Err = identity.ErrNoKeyPackage
				continue
			}
			out[i].KeyPackage = kp
		}
		return nil
	})
	return out, err
}

func (a *account) Bundle(ctx context.Context, refs []mls.KeyPackageRef) (*mls.KeyPackageBundle, bool, error) {
	for _, ref := range refs {
		if kp, err := a.d.st.KeyPackage(ctx, ref); err == nil {
			bundle, err := mls.UnmarshalKeyPackageBundle(kp.Bundle)
			return bundle, kp.State == store.KeyPackageShared, err
		}
	}
	return nil, false, errors.New("simulation: not ours")
}

func (a *account) ShareBundles(ctx context.Context) error { return a.d.st.ShareKeyPackages(ctx) }

func (a *account) ConsumeBundle(ctx context.Context, ref mls.KeyPackageRef) error {
	return a.d.st.DeleteKeyPackage(ctx, ref)
}

// logger writes to standard error when SIM_LOG is set.
func (w *world) logger(node string) zerolog.Logger {
	if os.Getenv("SIM_LOG") == "" {
		return zerolog.New(&w.log).With().Str("node", node).Logger()
	}
	return zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, NoColor: true, PartsExclude: []string{zerolog.TimestampFieldName}}).
		Hook(zerolog.HookFunc(func(e *zerolog.Event, _ zerolog.Level, _ string) { e.Dur("at", w.net.Now) })).With().Str("node", node).Logger()
}

// reader is a source of reproducible bytes.
func (w *world) reader(name string) io.Reader {
	var seed [32]byte
	copy(seed[:], fmt.Sprintf("%016x", uint64(w.script.seed)))
	for i, b := range []byte(name) {
		seed[16+i%16] = seed[16+i%16]*31 + b
	}
	return rand.NewChaCha8(seed)
}
