package appservice

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	bot   = id.UserID("@_mls_bot:mls.test")
	alice = id.UserID("@alice:mls.test")
	bob   = id.UserID("@bob:far.test")
	carol = id.UserID("@carol:far.test")

	engineSuite = mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
)

// roomHS is a homeserver with rooms, in memory.
type roomHS struct {
	homeserver.Homeserver

	mu     sync.Mutex
	rooms  map[id.RoomID][]*homeserver.Event
	media  map[id.ContentURIString][]byte
	txns   map[string]id.EventID
	next   int
	push   bool                                // events reach the module by transaction
	hide   func(ev *homeserver.Event) bool     // not even in the history
	mute   func(ev *homeserver.Event) bool     // not pushed
	deny   func(kind string, key string) error // refusals of sends
	calls  map[string]int
	pushed []*homeserver.Event

	user   id.UserID // the bot
	server string
	prefix string                     // of event ids, so that those of several servers differ
	sent   func(ev *homeserver.Event) // hears of every event that begins here
}

func newRoomHS() *roomHS {
	return &roomHS{
		rooms: make(map[id.RoomID][]*homeserver.Event), media: make(map[id.ContentURIString][]byte),
		txns: make(map[string]id.EventID), calls: make(map[string]int), push: true, user: bot, server: "mls.test",
	}
}

func (h *roomHS) UserID() id.UserID  { return h.user }
func (h *roomHS) ServerName() string { return h.server }

func (h *roomHS) add(room id.RoomID, sender id.UserID, kind string, stateKey *string, content any) *homeserver.Event {
	raw, ok := content.(json.RawMessage)
	if !ok {
		var err error
		if raw, err = json.Marshal(content); err != nil {
			panic(err)
		}
	}
	h.mu.Lock()
	h.next++
	full := map[string]any{
		"event_id": fmt.Sprintf("$%s%d", h.prefix, h.next), "room_id": room, "sender": sender, "type": kind, "content": raw, "origin_server_ts": 1790000000000 + h.next,
	}
	if stateKey != nil {
		full["state_key"] = *stateKey
	}
	whole, err := json.Marshal(full)
	if err != nil {
		panic(err)
	}
	ev, err := homeserver.ParseEvent(whole, room)
	if err != nil {
		panic(err)
	}
	h.mu.Unlock()
	h.receive(ev, h.push && (h.mute == nil || !h.mute(ev)))
	if h.sent != nil {
		h.sent(ev)
	}
	return ev
}

// receive puts an event into the room, and may push it to the module.
func (h *roomHS) receive(ev *homeserver.Event, push bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rooms[ev.Room] = append(h.rooms[ev.Room], ev)
	if push {
		h.pushed = append(h.pushed, ev)
	}
}

func (h *roomHS) count(call string) {
	h.mu.Lock()
	h.calls[call]++
	h.mu.Unlock()
}

func (h *roomHS) SendEvent(_ context.Context, room id.RoomID, kind, txn string, content json.RawMessage) (id.EventID, error) {
	h.mu.Lock()
	known, ok := h.txns[txn]
	deny := h.deny
	h.mu.Unlock()
	if ok {
		return known, nil
	}
	if deny != nil {
		if err := deny(kind, ""); err != nil {
			return "", err
		}
	}
	ev := h.add(room, h.user, kind, nil, content)
	h.mu.Lock()
	h.txns[txn] = ev.ID
	h.mu.Unlock()
	return ev.ID, nil
}

func (h *roomHS) SendState(_ context.Context, room id.RoomID, kind, key string, content json.RawMessage) (id.EventID, error) {
	return h.add(room, h.user, kind, &key, content).ID, nil
}

func (h *roomHS) Event(_ context.Context, room id.RoomID, event id.EventID) (*homeserver.Event, error) {
	h.count("event")
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ev := range h.rooms[room] {
		if ev.ID == event && (h.hide == nil || !h.hide(ev)) {
			return ev, nil
		}
	}
	return nil, &homeserver.Error{Op: "event", Kind: homeserver.ErrNotFound, Status: 404}
}

func (h *roomHS) Messages(_ context.Context, room id.RoomID, req homeserver.MessagesRequest) (*homeserver.MessagesPage, error) {
	h.count("messages")
	h.mu.Lock()
	defer h.mu.Unlock()
	at := len(h.rooms[room])
	if req.From != "" {
		at, _ = strconv.Atoi(req.From)
	}
	page := &homeserver.MessagesPage{}
	for at > 0 && len(page.Events) < 10 {
		at--
		ev := h.rooms[room][at]
		if slices.Contains(req.Types, ev.Type) && (h.hide == nil || !h.hide(ev)) {
			page.Events = append(page.Events, ev)
		}
	}
	if at > 0 {
		page.End = strconv.Itoa(at)
	}
	return page, nil
}

func (h *roomHS) State(_ context.Context, room id.RoomID) ([]*homeserver.Event, error) {
	h.count("state")
	h.mu.Lock()
	defer h.mu.Unlock()
	newest := make(map[string]*homeserver.Event)
	for _, ev := range h.rooms[room] {
		if ev.StateKey != nil {
			newest[ev.Type+" "+*ev.StateKey] = ev
		}
	}
	var out []*homeserver.Event
	for _, ev := range newest {
		out = append(out, ev)
	}
	return out, nil
}

func (h *roomHS) Join(_ context.Context, room id.RoomID, _ []string) error {
	key := string(h.user)
	h.add(room, h.user, rooms.TypeMember, &key, map[string]any{"membership": "join"})
	return nil
}

func (h *roomHS) Leave(_ context.Context, room id.RoomID, _ string) error {
	key := string(h.user)
	h.add(room, h.user, rooms.TypeMember, &key, map[string]any{"membership": "leave"})
	return nil
}

func (h *roomHS) Upload(_ context.Context, data []byte, _ string) (id.ContentURIString, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	uri := id.ContentURIString(fmt.Sprintf("mxc://mls.test/%x", sha256.Sum256(data)))
	h.media[uri] = data
	return uri, nil
}

func (h *roomHS) Download(_ context.Context, uri id.ContentURIString, limit int64) ([]byte, error) {
	h.count("download")
	h.mu.Lock()
	defer h.mu.Unlock()
	data, ok := h.media[uri]
	if !ok {
		return nil, &homeserver.Error{Op: "download", Kind: homeserver.ErrNotFound, Status: 404}
	}
	return data, nil
}

// farHS is the same rooms as another server's module sees them.
type farHS struct {
	*roomHS
	user   id.UserID
	server string
	hidden func(ev *homeserver.Event) bool
}

func (h *farHS) UserID() id.UserID  { return h.user }
func (h *farHS) ServerName() string { return h.server }

func (h *farHS) SendEvent(_ context.Context, room id.RoomID, kind, txn string, content json.RawMessage) (id.EventID, error) {
	return h.add(room, h.user, kind, nil, content).ID, nil
}

func (h *farHS) SendState(_ context.Context, room id.RoomID, kind, key string, content json.RawMessage) (id.EventID, error) {
	return h.add(room, h.user, kind, &key, content).ID, nil
}

func (h *farHS) Messages(ctx context.Context, room id.RoomID, req homeserver.MessagesRequest) (*homeserver.MessagesPage, error) {
	page, err := h.roomHS.Messages(ctx, room, req)
	if err == nil && h.hidden != nil {
		page.Events = slices.DeleteFunc(page.Events, h.hidden)
	}
	return page, err
}

func (h *farHS) Event(ctx context.Context, room id.RoomID, event id.EventID) (*homeserver.Event, error) {
	ev, err := h.roomHS.Event(ctx, room, event)
	if err == nil && h.hidden != nil && h.hidden(ev) {
		return nil, &homeserver.Error{Op: "event", Kind: homeserver.ErrNotFound, Status: 404}
	}
	return ev, err
}

// module is an engine with its database, driven by hand.
type module struct {
	t    *testing.T
	seed byte
	hs   *roomHS
	as   homeserver.Homeserver
	st   *store.Store
	m    *metrics.Metrics
	cfg  *config.Config
	e    *Engine
	now  time.Duration
	next time.Duration // when the engine wants to be called again
	woke chan struct{}
	held []time.Duration // each time a room was kept quiet
	mute bool            // nothing of the outbox is sent

	noted []store.RoomStatus // what others were told of rooms
	ctx   context.Context
}

func newModule(t *testing.T, dbCfg store.Config, hs *roomHS) *module {
	t.Helper()
	return newModuleWithKeys(t, dbCfg, hs, 7)
}

func newModuleWithKeys(t *testing.T, dbCfg store.Config, hs *roomHS, seed byte) *module {
	t.Helper()
	cfg := config.Default()
	cfg.Homeserver.Domain = "mls.test"
	m := &module{t: t, seed: seed, hs: hs, as: hs, st: storetest.Open(t, dbCfg, nil), m: metrics.New("test"), cfg: cfg, woke: make(chan struct{}, 1)}
	m.ctx = zerolog.New(checkedLines{t: t, out: zerolog.NewTestWriter(t)}).Level(zerolog.InfoLevel).WithContext(context.Background())
	m.start()
	return m
}

// start starts an engine on the module's database, as after a crash: what the
// old one held in memory is lost.
func (m *module) start() {
	m.t.Helper()
	keys, _, err := EnsureKeys(m.ctx, m.st, rand.NewChaCha8([32]byte{m.seed}))
	must(m.t, err)
	m.e = NewEngine(Deps{
		HS: m.as, Store: m.st, Keys: keys, Config: m.cfg, Metrics: m.m, Rand: rand.NewChaCha8([32]byte{8}),
		Monotonic:  func() time.Duration { return m.now },
		Wake:       func() { poke(m.woke) },
		WakeOutbox: func() {},
		HoldRoom:   func(room id.RoomID, d time.Duration) { m.held = append(m.held, d) },
		NoteStatus: func(room id.RoomID, status store.RoomStatus) { m.noted = append(m.noted, status) },
	})
	must(m.t, m.e.Start(m.ctx))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// deliver puts what the homeserver pushed into the inbox, as the transaction
// handler does.
func (m *module) deliver() bool {
	m.hs.mu.Lock()
	pushed := m.hs.pushed
	m.hs.pushed = nil
	m.hs.mu.Unlock()
	for _, ev := range pushed {
		if ev.Type == rooms.TypeMember && *ev.StateKey == string(m.as.UserID()) {
			must(m.t, m.st.NoteRoom(m.ctx, ev.Room, store.RoomInvited))
		}
		if _, err := m.st.PutInbox(m.ctx, inboxRow(ev, store.SourceTransaction)); err != nil {
			m.t.Fatal(err)
		}
	}
	return len(pushed) > 0
}

// round is one round of the service's loop.
func (m *module) round() (busy bool) {
	m.t.Helper()
	busy = m.deliver()
	settled, err := m.st.SettledOutbox(m.ctx, 100)
	must(m.t, err)
	for _, row := range settled {
		busy = true
		must(m.t, m.st.Tx(m.ctx, func(ctx context.Context) error {
			if row.Status == store.OutboxSent {
				if err := m.e.Sent(ctx, row, row.EventID); err != nil {
					return err
				}
			} else if err := m.e.Failed(ctx, row); err != nil {
				return err
			}
			return m.st.AckOutbox(ctx, row.ID)
		}))
	}
	for {
		rows, err := m.st.NextInbox(m.ctx, 100)
		must(m.t, err)
		if len(rows) == 0 {
			break
		}
		busy = true
		for _, ev := range rows {
			about, _ := eventLog(m.ctx, ev)
			must(m.t, m.e.HandleEvent(about, ev))
		}
	}
	m.next, err = m.e.Tick(m.ctx, m.now)
	must(m.t, err)
	return m.send() || busy
}

// send sends what is in the outbox.
func (m *module) send() (busy bool) {
	m.t.Helper()
	for {
		if m.mute {
			return busy
		}
		due, err := m.st.DueOutbox(m.ctx, 10)
		must(m.t, err)
		if len(due) == 0 {
			return busy
		}
		for _, row := range due {
			busy = true
			var event id.EventID
			var err error
			if row.Kind == store.OutboxState {
				event, err = m.as.SendState(m.ctx, row.Room, row.Type, row.StateKey, row.Content)
			} else {
				event, err = m.as.SendEvent(m.ctx, row.Room, row.Type, row.TxnID, row.Content)
			}
			if err != nil {
				must(m.t, m.st.FailOutbox(m.ctx, row.ID, err.Error()))
				continue
			}
			must(m.t, m.st.SentOutbox(m.ctx, row.ID, event))
		}
	}
}

// settleFor runs rounds until nothing is under way, then lets the time pass, in
// steps of half a second.
func (m *module) settleFor(d time.Duration) {
	m.t.Helper()
	for end := m.now + d; ; m.now += 500 * time.Millisecond {
		for i := 0; ; i++ {
			if i > 10_000 {
				m.t.Fatal("the module does not come to rest")
			}
			if m.round() {
				continue
			}
			if !m.e.jobs.busy() {
				select {
				case <-m.woke:
					continue
				default:
				}
				break
			}
			select {
			case <-m.woke:
			case <-time.After(patience.Hang):
				m.t.Fatal("a request to the homeserver did not come back")
			}
		}
		if m.now >= end {
			return
		}
	}
}

func (m *module) settle() { m.t.Helper(); m.settleFor(0) }

func (m *module) machine(room id.RoomID) *federation.Machine {
	m.t.Helper()
	r := m.e.rooms[room]
	if r == nil || r.m == nil {
		m.t.Fatal("the module follows no group")
	}
	return r.m
}

// events returns a room's events of a type.
func (h *roomHS) events(room id.RoomID, kind string) (out []*homeserver.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ev := range h.rooms[room] {
		if ev.Type == kind {
			out = append(out, ev)
		}
	}
	return out
}

// device is a member's device.
type device struct {
	t      *testing.T
	cfg    *mls.Config
	cred   rooms.Credential
	key    mls.SignaturePrivateKey
	bundle *mls.KeyPackageBundle
	group  *mls.Group
}

func newDevice(t *testing.T, user id.UserID, name id.DeviceID) *device {
	t.Helper()
	seed := sha256.Sum256([]byte(string(user) + string(name)))
	d := &device{t: t, cfg: &mls.Config{Rand: rand.NewChaCha8(seed), Authenticator: rooms.Authenticator{}}}
	var err error
	d.key, err = mls.GenerateSignatureKey(engineSuite, d.cfg.Rand)
	must(t, err)
	d.cred = rooms.Credential{User: user, Device: name, Key: d.key.Public()}
	d.bundle, err = mls.NewKeyPackage(d.cfg, engineSuite, d.key, rooms.LeafOptions(d.cred))
	must(t, err)
	return d
}

// mlsRoom is a room with a group, seen by its members.
type mlsRoom struct {
	t       *testing.T
	hs      *roomHS
	id      id.RoomID
	head    federation.Ref
	event   id.EventID
	members []*device
}

func (h *roomHS) state(room id.RoomID, sender id.UserID, kind, key string, content any) *homeserver.Event {
	return h.add(room, sender, kind, &key, content)
}

// newRoom makes a room with the algorithm and invites the bot.
func newRoom(t *testing.T, hs *roomHS, room id.RoomID) *mlsRoom {
	t.Helper()
	events := map[string]int{}
	for _, kind := range rooms.PowerLevelTypes() {
		events[kind] = 0
	}
	hs.state(room, alice, rooms.TypeCreate, "", map[string]any{"creator": alice, rooms.KeyCreateAlgorithm: rooms.Algorithm, "room_version": "10"})
	hs.state(room, alice, rooms.TypeMember, string(alice), map[string]any{"membership": "join"})
	hs.state(room, alice, rooms.TypePowerLevels, "", map[string]any{"users": map[id.UserID]int{alice: 100}, "events": events})
	hs.state(room, alice, rooms.TypeEncryption, "", map[string]any{"algorithm": rooms.Algorithm})
	hs.state(room, alice, rooms.TypeMember, string(bot), map[string]any{"membership": "invite"})
	return &mlsRoom{t: t, hs: hs, id: room}
}

// keys reads what the bot says of itself.
func (r *mlsRoom) keys() *rooms.HeadContent {
	r.t.Helper()
	heads := r.hs.events(r.id, rooms.TypeHead)
	if len(heads) == 0 {
		r.t.Fatal("the bot said nothing of itself")
	}
	head, err := rooms.DecodeHead(heads[len(heads)-1].Content)
	must(r.t, err)
	return head
}

// found founds the group of alice's device.
func (r *mlsRoom) found() *device {
	r.t.Helper()
	d := newDevice(r.t, alice, "PHONE")
	head := r.keys()
	policy := rooms.DefaultPolicy(r.id, alice, federation.Sequencer{Server: "mls.test", User: string(bot), ReceiptKey: head.ReceiptKey})
	sender, err := rooms.ModuleSender(bot, head, engineSuite)
	must(r.t, err)
	exts, err := rooms.GroupExtensions(policy, []mls.ExternalSender{sender})
	must(r.t, err)
	d.group, err = mls.CreateGroup(d.cfg, engineSuite, []byte(fmt.Sprintf("%-32s", r.id)), d.key, rooms.LeafOptions(d.cred), exts)
	must(r.t, err)
	info, err := d.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	must(r.t, err)
	raw, err := rooms.Encode(&rooms.CommitContent{GroupInfo: info})
	must(r.t, err)
	m, err := mls.ParseMessage(info)
	must(r.t, err)
	r.head, err = rooms.RootRef(m)
	must(r.t, err)
	r.event = r.hs.add(r.id, alice, rooms.TypeCommit, nil, raw).ID
	r.members = []*device{d}
	return d
}

// commit is a commit that was made and not merged.
type madeCommit struct {
	by     *device
	staged *mls.StagedCommit
	ref    federation.Ref
	event  id.EventID
	raw    json.RawMessage
}

// make makes a commit on the members' head.
func (r *mlsRoom) make(by *device, aad rooms.CommitAAD, o mls.CommitOptions, proposals ...rooms.Bytes) *madeCommit {
	r.t.Helper()
	aad.Parent = r.head
	var err error
	o.AuthenticatedData, err = aad.Encode()
	must(r.t, err)
	staged, err := by.group.Commit(o)
	must(r.t, err)
	return r.made(by, staged, proposals)
}

func (r *mlsRoom) made(by *device, staged *mls.StagedCommit, proposals []rooms.Bytes) *madeCommit {
	r.t.Helper()
	info, err := staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
	must(r.t, err)
	raw, err := rooms.Encode(&rooms.CommitContent{
		Epoch: staged.Epoch(), Parent: rooms.Hash(r.head), ParentEvent: r.event, Message: staged.Message(), GroupInfo: info, Proposals: proposals,
	})
	must(r.t, err)
	m, err := mls.ParseMessage(staged.Message())
	must(r.t, err)
	ref, err := rooms.CommitRef(m)
	must(r.t, err)
	return &madeCommit{by: by, staged: staged, ref: ref, raw: raw}
}

func (r *mlsRoom) post(c *madeCommit) *madeCommit {
	c.event = r.hs.add(r.id, c.by.cred.User, rooms.TypeCommit, nil, c.raw).ID
	return c
}

// merge lets all members take a commit, after it was accepted.
func (r *mlsRoom) merge(c *madeCommit) {
	r.t.Helper()
	m, err := mls.ParseMessage(c.staged.Message())
	must(r.t, err)
	var stay []*device
	for _, d := range r.members {
		if d == c.by {
			d.group = c.staged.Merge()
		} else {
			p, err := d.group.Process(m)
			must(r.t, err)
			d.group = p.(*mls.StagedCommit).Merge()
		}
		if d.group != nil {
			stay = append(stay, d)
		}
	}
	r.members, r.head, r.event = stay, c.ref, c.event
}

// admit lets a user into the room and adds its device.
func (r *mlsRoom) admit(d *device) *madeCommit {
	r.t.Helper()
	by := r.members[0]
	r.hs.state(r.id, d.cred.User, rooms.TypeMember, string(d.cred.User), map[string]any{"membership": "join"})
	admission, err := rooms.SignAdmission(by.group, r.id, r.head, by.group.OwnLeafIndex(), by.key, d.cred.User, nil)
	must(r.t, err)
	kp, err := mls.ParseMessage(d.bundle.Message())
	must(r.t, err)
	return r.post(r.make(by, rooms.CommitAAD{Admissions: []rooms.Admission{*admission}}, mls.CommitOptions{
		Proposals: []mls.Proposal{mls.Add(kp.KeyPackage())}, WelcomeRatchetTree: true,
	}))
}

// welcome lets the device in, after the merge.
func (r *mlsRoom) welcome(c *madeCommit, d *device) {
	r.t.Helper()
	raw, err := c.staged.WelcomeFor(d.bundle.KeyPackage().Ref())
	must(r.t, err)
	m, err := mls.ParseMessage(raw)
	must(r.t, err)
	d.group, err = mls.JoinWelcome(d.cfg, m, d.bundle, mls.JoinOptions{})
	must(r.t, err)
	r.members = append(r.members, d)
}

// apply posts a member's statement that it applied the head.
func (r *mlsRoom) apply(d *device, ref federation.Ref, auth []byte) {
	r.t.Helper()
	a, err := rooms.SignApplied(engineSuite, d.key, federation.Scope{Room: string(r.id), Group: d.group.GroupID()}, ref, d.group.OwnLeafIndex(), auth)
	must(r.t, err)
	raw, err := rooms.Encode(rooms.AppliedOf(a))
	must(r.t, err)
	r.hs.add(r.id, d.cred.User, rooms.TypeApplied, nil, raw)
}

// accepts returns the refs that were accepted in a room, in order.
func (r *mlsRoom) accepts() (out []federation.Ref) {
	r.t.Helper()
	for _, ev := range r.hs.events(r.id, rooms.TypeAccept) {
		if ev.Sender != bot {
			continue
		}
		c, err := rooms.DecodeAccept(ev.Content)
		must(r.t, err)
		out = append(out, federation.Ref(c.Ref))
	}
	return out
}

// pair starts a module and a room with alice and bob in the group.
func pair(t *testing.T, dbCfg store.Config) (*module, *mlsRoom, *device, *device) {
	t.Helper()
	hs := newRoomHS()
	m := newModule(t, dbCfg, hs)
	r := newRoom(t, hs, "!room:mls.test")
	m.settle()
	a, b := r.found(), newDevice(t, bob, "LAPTOP")
	m.settle()
	c := r.admit(b)
	m.settle()
	if got := r.accepts(); len(got) != 1 || got[0] != c.ref {
		t.Fatalf("got accepts %v, want %v", got, c.ref)
	}
	r.merge(c)
	r.welcome(c, b)
	r.apply(b, r.head, b.group.EpochAuthenticator())
	m.settle()
	return m, r, a, b
}

func (m *module) refusals() (out []string) {
	m.t.Helper()
	list, err := m.st.Refusals(m.ctx, 1000)
	must(m.t, err)
	for _, r := range list {
		out = append(out, r.Rule+" "+strings.Split(r.Detail, "\n")[0])
	}
	return out
}
