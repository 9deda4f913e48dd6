package appservice

import (
	"context"
	"fmt"
	"slices"
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
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// world is several homeservers with a module each, and the federation between
// them, which can be slow or cut. One clock drives all.
type world struct {
	t       *testing.T
	now     time.Duration
	servers []*worldServer

	mu    sync.Mutex
	wires map[[2]int]*wire
	// refuse soft-fails an event at a server: nothing there ever shows it.
	refuse func(at int, ev *homeserver.Event) bool
}

// wire carries events from one server to another.
type wire struct {
	delay time.Duration
	cut   bool
	queue []wireEvent
}

type wireEvent struct {
	ev   *homeserver.Event
	at   time.Duration
	held bool // it waited for the end of a cut
}

// worldServer is a homeserver with its module.
type worldServer struct {
	*module
	index int
	down  bool // the module does not run
}

func (w *world) name(i int) string { return fmt.Sprintf("s%d.test", i) }

func (w *world) user(i int) id.UserID { return id.UserID(fmt.Sprintf("@user%d:%s", i, w.name(i))) }

func (w *world) bot(i int) id.UserID { return id.UserID("@_mls_bot:" + w.name(i)) }

// newWorld makes n servers with modules that know nothing.
func newWorld(t *testing.T, n int, open func(i int) store.Config) *world {
	t.Helper()
	w := &world{t: t, wires: make(map[[2]int]*wire)}
	for i := range n {
		hs := newRoomHS()
		hs.user, hs.server, hs.prefix = w.bot(i), w.name(i), fmt.Sprintf("s%d-", i)
		hs.sent = func(ev *homeserver.Event) { w.federate(i, ev) }
		for j := range n {
			w.wires[[2]int{i, j}] = &wire{delay: 100 * time.Millisecond}
		}
		cfg := config.Default()
		cfg.Homeserver.Domain = w.name(i)
		m := &module{t: t, seed: byte(20 + i), hs: hs, as: hs, m: metrics.New("test"), cfg: cfg, woke: make(chan struct{}, 1)}
		log := zerolog.New(checkedLines{t, zerolog.NewTestWriter(t), zerolog.WarnLevel}).Level(zerolog.InfoLevel).With().Int("server", i).Logger()
		m.ctx = log.WithContext(context.Background())
		m.st = storetest.Open(t, open(i), nil)
		m.start()
		w.servers = append(w.servers, &worldServer{module: m, index: i})
	}
	return w
}

func sqliteWorld(t *testing.T, n int) *world {
	return newWorld(t, n, func(int) store.Config { return storetest.SQLite(t) })
}

// federate sends an event to all other servers.
func (w *world) federate(from int, ev *homeserver.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for to := range w.servers {
		if to == from {
			continue
		}
		l := w.wires[[2]int{from, to}]
		l.queue = append(l.queue, wireEvent{ev: ev, at: w.now + l.delay})
	}
}

// deliver brings what is due to the servers. Of what a cut held up, the newest
// alone is pushed to the module, as real homeservers do; the rest is in the
// history.
func (w *world) deliver() (busy bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for from := range w.servers {
		for to := range w.servers {
			l := w.wires[[2]int{from, to}]
			if l.cut {
				for i := range l.queue {
					l.queue[i].held = true
				}
				continue
			}
			for len(l.queue) > 0 && l.queue[0].at <= w.now {
				next := l.queue[0]
				l.queue = l.queue[1:]
				busy = true
				if w.refuse != nil && w.refuse(to, next.ev) {
					continue
				}
				w.servers[to].hs.receive(next.ev, !next.held || len(l.queue) == 0 || !l.queue[0].held)
			}
		}
	}
	return busy
}

// cut cuts the federation between two groups of servers.
func (w *world) cut(a, b []int) { w.link(a, b, true) }

// heal mends it.
func (w *world) heal(a, b []int) { w.link(a, b, false) }

func (w *world) link(a, b []int, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, i := range a {
		for _, j := range b {
			w.wires[[2]int{i, j}].cut, w.wires[[2]int{j, i}].cut = cut, cut
		}
	}
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	w.t.Helper()
	for end := w.now + d; ; w.now = w.nextDue(end) {
		for i := 0; ; i++ {
			if i > 1000 {
				w.t.Fatal("the servers do not come to rest")
			}
			busy := w.deliver()
			for _, s := range w.servers {
				if s.down {
					continue
				}
				s.now = w.now
				s.settle()
			}
			if !busy {
				break
			}
		}
		if w.now >= end {
			return
		}
	}
}

// nextDue returns when something is to be done again.
func (w *world) nextDue(end time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := end
	for _, s := range w.servers {
		if !s.down && s.next > 0 {
			at = min(at, s.next)
		}
	}
	for _, l := range w.wires {
		if !l.cut && len(l.queue) > 0 {
			at = min(at, l.queue[0].at)
		}
	}
	return max(at, w.now+10*time.Millisecond)
}

// stop kills a module.
func (w *world) stop(i int) { w.servers[i].down = true }

// restart starts a module anew on its database. What was pushed meanwhile comes
// now.
func (w *world) restart(i int) {
	w.t.Helper()
	w.servers[i].down = false
	w.servers[i].now = w.now
	w.servers[i].start()
}

// worldRoom is a room over all servers with one member on each.
type worldRoom struct {
	mlsRoom
	w       *world
	devices []*device // by server
	groups  map[*device]map[federation.Ref]*mls.Group
	events  map[federation.Ref]id.EventID
	parents map[federation.Ref]federation.Ref
}

func (w *world) at(d *device) int {
	for i := range w.servers {
		if d.cred.User == w.user(i) {
			return i
		}
	}
	w.t.Fatalf("%s lives nowhere", d.cred.User)
	return 0
}

// newRoom makes a room with a group of one device on each server, sequenced by
// the modules of the first n servers.
func (w *world) newRoom(n int, change func(p *rooms.Policy)) *worldRoom {
	w.t.Helper()
	t := w.t
	home := w.servers[0].hs
	r := &worldRoom{
		mlsRoom: mlsRoom{t: t, hs: home, id: "!room:s0.test"}, w: w, groups: make(map[*device]map[federation.Ref]*mls.Group),
		events: make(map[federation.Ref]id.EventID), parents: make(map[federation.Ref]federation.Ref),
	}
	events := map[string]int{}
	for _, kind := range rooms.PowerLevelTypes() {
		events[kind] = 0
	}
	creator := w.user(0)
	home.state(r.id, creator, rooms.TypeCreate, "", map[string]any{"creator": creator, rooms.KeyCreateAlgorithm: rooms.Algorithm, "room_version": "10"})
	home.state(r.id, creator, rooms.TypeMember, string(creator), map[string]any{"membership": "join"})
	home.state(r.id, creator, rooms.TypePowerLevels, "", map[string]any{"users": map[id.UserID]int{creator: 100}, "events": events, "state_default": 50})
	home.state(r.id, creator, rooms.TypeEncryption, "", map[string]any{"algorithm": rooms.Algorithm})
	for i := range w.servers {
		home.state(r.id, creator, rooms.TypeMember, string(w.bot(i)), map[string]any{"membership": "invite"})
	}
	w.run(25 * time.Second) // the quiet around joins among it
	var list []federation.Sequencer
	var senders []mls.ExternalSender
	for i := range n {
		head := w.keys(r.id, i)
		list = append(list, federation.Sequencer{Server: w.name(i), User: string(w.bot(i)), ReceiptKey: head.ReceiptKey})
		sender, err := rooms.ModuleSender(w.bot(i), head, engineSuite)
		must(t, err)
		senders = append(senders, sender)
	}
	policy := rooms.DefaultPolicy(r.id, creator, list...)
	if change != nil {
		change(policy)
	}
	exts, err := rooms.GroupExtensions(policy, senders)
	must(t, err)
	d := newDevice(t, creator, "DEVICE")
	group, err := mls.CreateGroup(d.cfg, engineSuite, fmt.Appendf(nil, "%-32s", r.id), d.key, rooms.LeafOptions(d.cred), exts)
	must(t, err)
	info, err := group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	must(t, err)
	raw, err := rooms.Encode(&rooms.CommitContent{GroupInfo: info})
	must(t, err)
	m, err := mls.ParseMessage(info)
	must(t, err)
	root, err := rooms.RootRef(m)
	must(t, err)
	r.events[root] = home.add(r.id, creator, rooms.TypeCommit, nil, raw).ID
	r.groups[d] = map[federation.Ref]*mls.Group{root: group}
	r.devices, r.head = []*device{d}, root
	w.run(time.Second)
	for i := 1; i < len(w.servers); i++ {
		r.admit(i)
	}
	w.run(10 * time.Second) // the votes
	for i := range w.servers {
		m := w.servers[i].machine(r.id)
		if m.Head() != r.head || m.NewestFinal() != r.head {
			t.Fatalf("server %d: head %s, final %s, want %s; refused: %v", i, m.Head().Short(), m.NewestFinal().Short(), r.head.Short(), w.servers[i].refusals())
		}
	}
	return r
}

// keys reads what the bot of a server says of itself, at that server.
func (w *world) keys(room id.RoomID, i int) *rooms.HeadContent {
	w.t.Helper()
	for _, ev := range slices.Backward(w.servers[i].hs.events(room, rooms.TypeHead)) {
		if ev.Sender == w.bot(i) {
			head, err := rooms.DecodeHead(ev.Content)
			must(w.t, err)
			return head
		}
	}
	w.t.Fatalf("the bot of server %d said nothing of itself", i)
	return nil
}

// admit lets the user of a server into the room and its device into the group,
// by a commit of the creator.
func (r *worldRoom) admit(i int) {
	r.t.Helper()
	by, d := r.devices[0], newDevice(r.t, r.w.user(i), "DEVICE")
	r.w.servers[0].hs.state(r.id, d.cred.User, rooms.TypeMember, string(d.cred.User), map[string]any{"membership": "join"})
	r.w.run(5 * time.Second)
	group := r.groups[by][r.head]
	admission, err := rooms.SignAdmission(group, r.id, r.head, group.OwnLeafIndex(), by.key, d.cred.User, nil)
	must(r.t, err)
	kp, err := mls.ParseMessage(d.bundle.Message())
	must(r.t, err)
	parent := r.head
	c := r.commitOn(parent, by, rooms.CommitAAD{Admissions: []rooms.Admission{*admission}}, mls.CommitOptions{
		Proposals: []mls.Proposal{mls.Add(kp.KeyPackage())}, WelcomeRatchetTree: true,
	})
	r.w.run(time.Second)
	raw, err := c.staged.WelcomeFor(d.bundle.KeyPackage().Ref())
	must(r.t, err)
	m, err := mls.ParseMessage(raw)
	must(r.t, err)
	d.group, err = mls.JoinWelcome(d.cfg, m, d.bundle, mls.JoinOptions{})
	must(r.t, err)
	r.apply(c)
	r.devices = append(r.devices, d)
	r.groups[d] = map[federation.Ref]*mls.Group{c.ref: d.group}
	r.head = c.ref
	if i > 1 {
		r.vouch(r.devices[1], c.ref)
	} else {
		r.vouch(d, c.ref) // the creator was alone
	}
	r.w.run(time.Second)
}

// commitOn makes a commit on any commit whose epoch the device has, and posts it
// at the device's server.
func (r *worldRoom) commitOn(parent federation.Ref, by *device, aad rooms.CommitAAD, o mls.CommitOptions) *madeCommit {
	r.t.Helper()
	head, event := r.head, r.event
	r.head, r.event, by.group = parent, r.events[parent], r.groups[by][parent]
	if by.group == nil {
		r.t.Fatalf("%s was never in the epoch of %s", by.cred.User, parent.Short())
	}
	c := r.make(by, aad, o)
	r.head, r.event = head, event
	c.event = r.w.servers[r.w.at(by)].hs.add(r.id, by.cred.User, rooms.TypeCommit, nil, c.raw).ID
	r.events[c.ref], r.parents[c.ref] = c.event, parent
	return c
}

// update makes a commit that changes nothing but its author's keys.
func (r *worldRoom) update(parent federation.Ref, by int) *madeCommit {
	r.t.Helper()
	return r.commitOn(parent, r.devices[by], rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
}

// apply lets devices take a commit: those of some servers, or all.
func (r *worldRoom) apply(c *madeCommit, servers ...int) {
	r.t.Helper()
	m, err := mls.ParseMessage(c.staged.Message())
	must(r.t, err)
	parent := r.parents[c.ref]
	for _, d := range r.devices {
		if len(servers) > 0 && !slices.Contains(servers, r.w.at(d)) || r.groups[d][parent] == nil || r.groups[d][c.ref] != nil {
			continue
		}
		if d == c.by {
			r.groups[d][c.ref] = c.staged.Merge()
			continue
		}
		p, err := r.groups[d][parent].Process(m)
		must(r.t, err)
		if g := p.(*mls.StagedCommit).Merge(); g != nil {
			r.groups[d][c.ref] = g
		}
	}
}

// vouch posts a member's statement that it applied a commit.
func (r *worldRoom) vouch(d *device, ref federation.Ref) {
	r.t.Helper()
	g := r.groups[d][ref]
	if g == nil {
		r.t.Fatalf("%s did not apply %s", d.cred.User, ref.Short())
	}
	a, err := rooms.SignApplied(engineSuite, d.key, federation.Scope{Room: string(r.id), Group: g.GroupID()}, ref, g.OwnLeafIndex(), g.EpochAuthenticator())
	must(r.t, err)
	raw, err := rooms.Encode(rooms.AppliedOf(a))
	must(r.t, err)
	r.w.servers[r.w.at(d)].hs.add(r.id, d.cred.User, rooms.TypeApplied, nil, raw)
}

// advance makes a commit on the head, lets it be accepted, applied and vouched
// for by another's device, and moves the room's head.
func (r *worldRoom) advance(by, voucher int) *madeCommit {
	r.t.Helper()
	c := r.update(r.head, by)
	r.w.run(time.Second)
	r.apply(c)
	r.vouch(r.devices[voucher], c.ref)
	r.head = c.ref
	return c
}

// heads tells where each running module's machine stands.
func (r *worldRoom) heads() (heads, finals []federation.Ref) {
	r.t.Helper()
	for _, s := range r.w.servers {
		if !s.down {
			heads, finals = append(heads, s.machine(r.id).Head()), append(finals, s.machine(r.id).NewestFinal())
		}
	}
	return heads, finals
}

// wantHead fails unless every running module is at a head, with it final.
func (r *worldRoom) wantHead(want federation.Ref) {
	r.t.Helper()
	heads, finals := r.heads()
	for i := range heads {
		if heads[i] != want || finals[i] != want {
			r.t.Errorf("server %d: head %s, final %s, want %s", i, heads[i].Short(), finals[i].Short(), want.Short())
		}
	}
}

// byType counts the room's events by type, all senders taken together or one.
func (r *worldRoom) byType(sender id.UserID) map[string]int {
	out := make(map[string]int)
	for _, s := range r.w.servers {
		s.hs.mu.Lock()
		for _, ev := range s.hs.rooms[r.id] {
			if _, home, err := ev.Sender.Parse(); err == nil && home == s.hs.server && (sender == "" || ev.Sender == sender) {
				out[ev.Type]++
			}
		}
		s.hs.mu.Unlock()
	}
	return out
}

// receipts returns what the module of a server posted of a type, in order.
func (r *worldRoom) receipts(server int, kind string) (out []*homeserver.Event) {
	for _, ev := range r.w.servers[server].hs.events(r.id, kind) {
		if ev.Sender == r.w.bot(server) {
			out = append(out, ev)
		}
	}
	return out
}
