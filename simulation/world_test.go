package simulation

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/simnet"
)

// world is one run: servers with modules, devices of their users, one room, one
// clock.
type world struct {
	script  script
	ctx     context.Context
	dir     string
	rng     *rand.Rand // of the present step
	net     *simnet.Net
	modules []*module
	devices []*device
	room    id.RoomID
	calm    bool // nothing bad happens any more
	lying   bool // who may lie does

	swapping map[string]bool        // servers that swap tags
	lost     *module                // for good
	later    *violation             // to be raised after the turn
	cured    bool                   // an era has left the list that was shut
	conflict federation.Ref         // a final beside another, where a module lies
	wentOn   map[int]federation.Ref // what was accepted last on each side of the newest cut

	page     int // events of a page of /messages
	timeline int // events of a room in one /sync
	log      bytes.Buffer
	stats    stats
	truth
}

// violation is a property that does not hold.
type violation struct{ property, detail string }

func (v *violation) Error() string { return v.property + ": " + v.detail }

// broken ends the run.
func broken(property, format string, args ...any) {
	panic(&violation{property, fmt.Sprintf(format, args...)})
}

// fail ends the run for a reason that is no property: the simulation itself, or
// something that must not happen under any fault.
func (w *world) fail(format string, args ...any) { broken("no failure", format, args...) }

// clock is a node's clock: it runs at its own rate, and its wall clock is wrong.
type clock struct {
	w      *world
	offset time.Duration
	rate   int64 // in percent
	skew   time.Duration
}

func (w *world) newClock() clock {
	return clock{w: w, offset: time.Duration(1+w.rng.IntN(1000)) * time.Second, rate: int64(95 + w.rng.IntN(11)), skew: w.script.faults.wrong(w.rng)}
}

func (c clock) mono() time.Duration { return c.offset + c.w.net.Now*time.Duration(c.rate)/100 }

// world returns when a time on this clock is, on the world's.
func (c clock) world(at time.Duration) time.Duration {
	return (min(at, never/100)-c.offset)*100/time.Duration(c.rate) + 100
}

func (c clock) wall() time.Time { return time.UnixMilli(c.w.net.Wall).Add(c.w.net.Now + c.skew) }

// disk is where a process keeps its database, and how it dies: at a point between
// two writes, with the database as it is then.
type disk struct {
	path, node string
	dead       bool
	fuse       int // points until it dies; 0: it lives
	image      image
}

// image is what is on a disk.
type image map[string][]byte

var diskFiles = []string{"", "-wal"}

// strike tells whether the process dies at a point.
func (k *disk) strike(w *world, point string) bool {
	if k.dead || k.fuse == 0 {
		return k.dead
	}
	if k.fuse--; k.fuse > 0 {
		return false
	}
	k.dead, k.image = true, k.copy()
	w.stats.crashes++
	w.trace("%s dies at %s", k.node, point)
	return true
}

// copy returns what is on the disk.
func (k *disk) copy() image {
	out := image{}
	for _, suffix := range diskFiles {
		if data, err := os.ReadFile(k.path + suffix); err == nil {
			out[suffix] = data
		}
	}
	return out
}

// restore puts back what was on the disk when the process died.
func (k *disk) restore() {
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		_ = os.Remove(k.path + suffix)
	}
	for suffix, data := range k.image {
		if err := os.WriteFile(k.path+suffix, data, 0o600); err != nil {
			panic(err)
		}
	}
	k.image = nil
}

// trace tells what happens, where SIM_LOG asks for it.
func (w *world) trace(format string, args ...any) {
	if os.Getenv("SIM_LOG") != "" {
		fmt.Fprintf(os.Stderr, "%10.3fs -- %s\n", w.net.Now.Seconds(), fmt.Sprintf(format, args...))
	}
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// exists tells whether there is such a user.
func (w *world) exists(user id.UserID) bool {
	if w.net.User(user) != nil {
		return true
	}
	for _, m := range w.modules {
		if m.user == user {
			return true
		}
	}
	return false
}

// node is a module or a device.
type node interface {
	turn()
	due() time.Duration
	wake()
	title() string
}

func (d *device) title() string { return d.name }
func (m *module) title() string { return m.name }

func (d *device) due() time.Duration {
	if d.gone {
		return never
	}
	at := d.next
	if d.up && d.seen != d.server.Changes {
		at = d.w.net.Now
	}
	return max(at, d.away)
}

func (m *module) due() time.Duration {
	if m.lost {
		return never
	}
	at := m.next
	if m.up && m.seen != m.server.Changes {
		at = m.w.net.Now
	}
	return max(at, m.away)
}

const never = time.Duration(1) << 60

// wake starts a node that is down and may run again.
func (d *device) wake() {
	if !d.up && d.away <= d.w.net.Now {
		d.start()
	}
}

func (m *module) wake() {
	if !m.up && m.away <= m.w.net.Now {
		m.start()
	}
}

func (w *world) nodes() []node {
	out := make([]node, 0, len(w.modules)+len(w.devices))
	for _, m := range w.modules {
		out = append(out, m)
	}
	for _, d := range w.devices {
		out = append(out, d)
	}
	return out
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	end := w.net.Now + d
	nodes := w.nodes()
	turns := map[node]int{}
	for {
		w.rng.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		for _, n := range nodes {
			if n.due() <= w.net.Now {
				n.wake()
				n.turn()
				if turns[n]++; turns[n] > 2000 {
					w.fail("%s is never done: it wants to be called at %v, and it is %v", n.title(), n.due(), w.net.Now)
				}
			}
		}
		next := end
		if at, ok := w.net.Next(); ok {
			next = min(next, at)
		}
		for _, n := range nodes {
			next = min(next, n.due())
		}
		if w.net.Now >= end {
			return
		}
		w.net.Advance(max(next, w.net.Now+time.Millisecond))
	}
}

// until lets time pass until something holds, at most for a while.
func (w *world) until(limit time.Duration, cond func() bool) bool {
	for end := w.net.Now + limit; w.net.Now < end; {
		if cond() {
			return true
		}
		w.run(500 * time.Millisecond)
	}
	return cond()
}

// newWorld makes a world with a room in which everybody is.
func newWorld(sc script, dir string) *world {
	w := &world{
		script: sc, ctx: context.Background(), dir: dir, net: simnet.New(uint64(sc.seed)), rng: stepRand(sc.seed, 0), room: "!room:s1.test",
		page: 20, timeline: 20, swapping: map[string]bool{},
	}
	w.truth.init(w)
	w.net.Wall = 1_790_000_000_000
	w.net.Sent = w.sent
	w.net.Links = links
	return w
}

// stand tells where everybody stands.
func (w *world) stand() string {
	out := ""
	tell := func(name string, m *federation.Machine) {
		era, base := m.EraOf()
		out += fmt.Sprintf("%s: head %s safe %s usable %s final %s era %d %s stalled %v\n", name, m.Head().Short(), m.SafeHead().Short(), m.UsableHead().Short(),
			m.NewestFinal().Short(), era, base.Short(), m.Stalled())
		for _, ref := range m.Path(m.NewestFinal(), m.Head()) {
			c, _ := m.Known(ref)
			out += fmt.Sprintf("   %s by %s: %s, unvouched %v\n", ref.Short(), c.AuthorUser, m.Status(ref), slices.Contains(m.NeedsVouching(), ref))
		}
	}
	for _, m := range w.modules {
		if machine := m.machine(); machine != nil {
			tell(m.name, machine)
		}
	}
	for _, d := range w.devices {
		switch {
		case d.member():
			h := d.held()
			tell(fmt.Sprintf("%s at %s, %d queued, pending %s, unconfirmed %v, %q", d.name, d.server.Membership(w.room, d.user), h.Queued, h.Pending.Short(), h.Unconfirmed, h.Blocked), h.Machine)
		case d.up:
			out += fmt.Sprintf("%s at %s: %+v\n", d.name, d.server.Membership(w.room, d.user), d.held())
		default:
			out += d.name + " is down\n"
		}
	}
	return out
}

// links are those of a calm world.
var links = simnet.Links{Delay: 20 * time.Millisecond, Jitter: 60 * time.Millisecond, GapPct: 20, MutePct: 60}

// close ends all processes.
func (w *world) close() {
	for _, m := range w.modules {
		m.stop()
	}
	for _, d := range w.devices {
		d.stop()
	}
}

func server(i int) string { return fmt.Sprintf("s%d.test", i+1) }

// found makes servers, users, the room and its group.
func (w *world) found() {
	f := &w.script.faults
	names := []string{"alice", "bob", "carol", "dave", "erin", "frank"}
	for i := range f.servers {
		s := w.net.Add(server(i))
		if i < f.modules {
			w.newModule(s)
		}
	}
	for i := range f.users {
		user := id.UserID("@" + names[i] + ":" + server(i%f.servers))
		w.net.Register(user, w.reader(string(user)))
		w.newDevice(user, "D1")
	}
	for _, m := range w.modules {
		m.start()
	}
	for _, d := range w.devices {
		d.start()
	}
	creator := w.devices[0]
	w.allow(creator.user, creator.user)
	w.create(creator)
	if !w.until(time.Minute, func() bool { return creator.member() }) {
		w.fail("the room is not founded: %+v", creator.held())
	}
	for _, d := range w.devices[1:] {
		w.invite(creator, d.user)
		w.run(2 * time.Second)
		w.join(d)
		if !w.until(time.Minute, func() bool { return d.member() }) {
			w.fail("%s does not come in: %+v", d.name, d.held())
		}
	}
	if f.parted && !w.until(10*time.Minute, func() bool { return w.listed(creator) > 2 }) {
		w.fail("three modules are not listed: %d are", w.listed(creator))
	}
}

// listed returns how many modules order the room's commits, as a device sees it.
func (w *world) listed(d *device) int {
	m := d.held().Machine
	p, _ := m.PolicyAt(m.NewestFinal())
	return len(p.Sequencers)
}

// member tells whether a device is in the group.
func (d *device) member() bool {
	if !d.up || d.gone {
		return false
	}
	h := d.held()
	return h != nil && h.Phase == "member" && h.Machine != nil
}
