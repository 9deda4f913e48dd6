package simulation

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// end mends everything, lets the room come to rest and checks what is claimed
// then.
func (w *world) end() {
	w.rng, w.calm = stepRand(w.script.seed, 2), true
	w.net.Links = links
	if w.script.without == "" {
		w.net.Hide = nil
	}
	w.honest()
	w.net.Heal()
	for _, m := range w.modules {
		m.fuse, m.away = 0, 0
	}
	for _, d := range w.devices {
		d.fuse, d.away = 0, 0
	}
	w.rest("after healing")
	w.converged("after healing")
	if w.stuck() && w.openEra() {
		w.cured = true
		w.rest("in a new era")
		w.converged("in a new era")
	}
	w.evident()
	w.included()
	// Everybody says one thing more, and an admin changes something.
	for _, d := range w.devices {
		if d.member() {
			_ = w.send(d)
		}
	}
	before, lasting := w.finalOf(w.devices[0]), w.lasting()
	if d := w.devices[0]; d.member() {
		window := 5
		if p, ok := d.held().Machine.PolicyAt(d.held().Machine.Head()); ok && p.Window == window {
			window = 7
		}
		_ = w.policy(d, func(p *rooms.Policy) { p.Window = window })
	}
	w.rest("after a commit")
	w.converged("after a commit")
	if after := w.finalOf(w.devices[0]); w.devices[0].member() && after == before && lasting > 1 && !w.shut() {
		broken("2 a live majority regains finality", "nothing became final after everything settled")
	}
	w.read()
	w.blind()
}

// in tells whether a device is in the group and its user in the room. Who was put
// out and asked back before it looked has a group, and may not send.
func (d *device) in() bool { return d.member() && d.server.Membership(d.w.room, d.user) == "join" }

// outside tells whether a device in the group cannot open its head. At the end that is so
// only where converged allows it: without an era that counts nobody gets past such a commit.
func (d *device) outside() bool {
	h := d.held()
	return h.Epochs[h.Machine.Head()] == nil
}

// lasting counts the users with a device that is there and whose leaf was in the
// group since the newest final commit: progress is claimed for two.
func (w *world) lasting() int {
	users := map[id.UserID]bool{}
	for _, d := range w.devices {
		if !d.in() {
			continue
		}
		m := d.held().Machine
		era, _ := m.EraOf()
		then, now := w.epochs[w.finals[era]], w.epochs[m.Head()]
		if then == nil || now == nil {
			continue
		}
		for _, l := range now.leaves {
			if l.Cred.User != d.user || l.Cred.Device != d.id {
				continue
			}
			lasts := true
			for ref := m.Head(); lasts && w.epochs[ref] != then; ref = w.commits[ref].parent {
				c, e := w.commits[ref], w.epochs[ref]
				lasts = c != nil && (e == nil || e.has(l)) && !(c.external && c.sender == d.user) // who comes back by itself begins anew
			}
			if lasts && then.has(l) {
				users[d.user] = true
			}
		}
	}
	return len(users)
}

// stuck tells whether the room waits for a new era: too few are left who could
// vouch for what is not final, and so nothing becomes final, and beyond the
// window nothing is committed. So does an era that nobody is left to vouch for: it
// counts once one of its other members comes into the room.
func (w *world) stuck() bool {
	if w.shut() {
		return true
	}
	if w.lasting() > 1 {
		return false
	}
	return slices.ContainsFunc(w.devices, func(d *device) bool {
		if !d.in() {
			return false
		}
		h := d.held()
		return h.Machine.NewestFinal() != h.Machine.Head() || w.opensEra(h.Pending)
	})
}

// shut tells whether the room's list of modules can make nothing final: a majority
// of it is lost, or one of them has lied and no era has left it yet.
func (w *world) shut() bool {
	if w.liar() != nil && !w.cured {
		return true
	}
	for _, d := range w.devices {
		if !d.in() {
			continue
		}
		m := d.held().Machine
		if p, ok := m.PolicyAt(m.Head()); ok {
			alive := 0
			for _, s := range p.Sequencers {
				if w.serves(s.Server, s.ReceiptKey) {
					alive++
				}
			}
			return alive < p.Sequencers.Quorum()
		}
	}
	return false
}

// serves tells whether a server has a module that is not lost, and whose key is
// the one that the group lists, if one is given: one that was put back has another.
func (w *world) serves(server string, key []byte) bool {
	return slices.ContainsFunc(w.modules, func(m *module) bool {
		return m.server.Name == server && !m.lost && (key == nil || m.up && bytes.Equal(m.receiptKey().Public().(ed25519.PublicKey), key))
	})
}

// openEra lets the room's admin, if one is there, open an era with the modules
// that it has: what a room needs that is stuck.
func (w *world) openEra() bool {
	admin := pick(w.devices, 0, func(d *device) bool { return d.member() && d.user == w.devices[0].user })
	if admin == nil {
		return false
	}
	m := admin.held().Machine
	p, ok := m.PolicyAt(m.Head())
	if !ok {
		return false
	}
	var servers []string
	for _, s := range p.Sequencers {
		if w.serves(s.Server, nil) {
			servers = append(servers, s.Server)
		}
	}
	for _, m := range w.modules {
		if len(servers) == 0 && !m.lost && m.server.Membership(w.room, m.user) == "join" {
			servers = append(servers, m.server.Name)
		}
	}
	if len(servers) == 0 {
		return false
	}
	w.stats.eras++
	_ = w.era(admin, servers)
	return true
}

// has tells whether a leaf is in an epoch, of the same device at the same place.
func (e *epoch) has(l rooms.GroupLeaf) bool {
	return slices.ContainsFunc(e.leaves, func(o rooms.GroupLeaf) bool {
		return o.Index == l.Index && o.Cred.User == l.Cred.User && o.Cred.Device == l.Cred.Device
	})
}

func (w *world) finalOf(d *device) federation.Ref {
	if !d.member() {
		return federation.Ref{}
	}
	return d.held().Machine.NewestFinal()
}

// rest runs until nothing happens any more, for longer than anybody waits.
func (w *world) rest(when string) {
	const quiet = 12 * time.Minute
	idle, start := w.net.Now, w.net.Now
	for w.net.Now-idle < quiet {
		before := w.truth.events
		w.run(20 * time.Second)
		if w.truth.events > before {
			idle = w.net.Now
		}
		if w.net.Now-start > 6*time.Hour {
			broken("7 bounded forks", "%s: the room does not come to rest", when)
		}
	}
	if w.stuck() {
		return
	}
	for _, d := range w.devices {
		if !d.in() {
			continue
		}
		if h := d.held(); !h.Pending.IsZero() || h.Queued > 0 {
			broken("10 bounded censorship", "%s: at %s a commit (%s) or %d messages wait for ever: %q", when, d.name, h.Pending.Short(), h.Queued, h.Blocked)
		}
	}
}

// converged: 1, 7, 16: all honest nodes that are up share head, newest final and
// era.
func (w *world) converged(when string) {
	type stand struct {
		name        string
		head, final federation.Ref
		era         uint64
	}
	var first *stand
	compare := func(name string, m *federation.Machine) {
		era, _ := m.EraOf()
		s := &stand{name, m.Head(), m.NewestFinal(), era}
		if s.final == m.Base() && first != nil && w.extends(s.final, first.final) {
			s.final = first.final // where it came in counts as final for itself
		}
		switch {
		case first == nil:
			first = s
		case s.head != first.head:
			broken("1 convergence", "%s: head of %s is %s, of %s is %s", when, first.name, first.head.Short(), s.name, s.head.Short())
		case s.final != first.final || s.era != first.era:
			broken("1 convergence", "%s: newest final of %s is %s, of %s is %s", when, first.name, first.final.Short(), s.name, s.final.Short())
		}
	}
	for _, m := range w.modules {
		if machine := m.machine(); machine != nil && m.server.Membership(w.room, m.user) == "join" {
			compare(m.name, machine)
		}
	}
	for _, d := range w.devices {
		if d.in() {
			h := d.held()
			compare(d.name, h.Machine)
			if d.outside() {
				if w.shut() && slices.Contains(h.Machine.NeedsVouching(), h.Machine.Head()) {
					continue // nobody accepts what gets round a commit that it cannot open, until there is an era
				}
				broken("1 convergence", "%s: %s does not hold the head", when, d.name)
			}
		}
	}
}

// included: 11 and 6, who is out of the room has no leaf; and who is in it and was
// let in has one for each device. That is claimed where commits are accepted: not while an era
// waits for somebody who vouches for it, or for an admin who is in the group to open it.
func (w *world) included() {
	d := pick(w.devices, 0, func(d *device) bool { return d.in() && !d.outside() })
	if d == nil || w.shut() {
		return // nobody is there, or can open the head
	}
	h := d.held()
	leaves := rooms.GroupLeaves(h.Epochs[h.Machine.Head()])
	for _, leaf := range leaves {
		if m := d.server.Membership(w.room, leaf.Cred.User); m != "join" && m != "invite" {
			broken("11 live proposals", "%s is out of the room (%s) and has a leaf", leaf.Cred.String(), m)
		}
		if w.net.User(leaf.Cred.User).Devices[leaf.Cred.Device] == nil {
			broken("11 live proposals", "%s is logged out and has a leaf", leaf.Cred.String())
		}
	}
	for _, x := range w.devices {
		stays := func(by id.UserID) bool { return !w.left[by] } // whose word counts
		if x.gone || w.left[x.user] || d.server.Membership(w.room, x.user) != "join" || !slices.ContainsFunc(w.admitted[x.user], stays) {
			continue
		}
		if x.superseded() {
			continue // until somebody logs in anew there
		}
		if !x.member() || !slices.ContainsFunc(leaves, func(l rooms.GroupLeaf) bool { return l.Cred.User == x.user && l.Cred.Device == x.id }) {
			broken("7 bounded forks", "%s is in the room and not in the group: %+v", x.name, x.held())
		}
	}
}

// read: 4, every message of an author who is still there is read once by every
// member whose device was in the group when it was sent.
func (w *world) read() {
	got := map[*device]map[string]int{}
	for _, d := range w.devices {
		if !d.member() {
			continue
		}
		list, err := d.c.Messages(w.ctx, w.room, "", 100_000)
		if err != nil {
			w.fail("%v", err)
		}
		got[d] = map[string]int{}
		for _, m := range list {
			got[d][m.Body()]++
		}
		for text, n := range got[d] {
			if n > 1 {
				broken("4 no lost message", "%s shows %q %d times", d.name, text, n)
			}
		}
	}
	for _, m := range w.messages {
		if got[m.author] == nil || w.left[m.author.user] || m.at <= m.author.restored {
			continue // or it is no more in the store that was put back
		}
		if len(m.refs) == 0 && m.author.in() && (m.author.outside() || w.shut()) {
			continue // who has left has to be taken out first, and nothing is accepted
		}
		if len(m.refs) == 0 {
			broken("4 no lost message", "%q of %s was never sent", m.text, m.author.name)
		}
		last := w.epochs[m.refs[len(m.refs)-1]]
		for d, texts := range got {
			if w.left[d.user] || m.at <= d.restored || !slices.ContainsFunc(last.leaves, func(l rooms.GroupLeaf) bool { return l.Cred.User == d.user && l.Cred.Device == d.id }) || !w.wasIn(d, m.refs[len(m.refs)-1]) {
				continue
			}
			if texts[m.text] != 1 {
				broken("4 no lost message", "%q of %s, sent in epoch %d, is not read by %s (%s)", m.text, m.author.name, last.number, d.name, w.became(d, m))
			}
		}
	}
}

// superseded tells whether a device that was put back has seen that what it was
// before has gone on without it: it stays out.
func (d *device) superseded() bool {
	return d.restored > 0 && slices.ContainsFunc(d.updates, func(u client.Update) bool {
		warning, ok := u.(*client.Warning)
		return ok && warning.Kind == client.SupersededWarning
	})
}

// became tells what became of a message at a device.
func (w *world) became(d *device, m *message) string {
	out := ""
	for _, evt := range m.events {
		seen, _ := d.st.Seen(w.ctx, w.room, evt)
		out += fmt.Sprintf("%s: at its server %v, processed %v", evt, d.server.Knows(w.room, evt) != nil, seen)
		items, _ := d.st.Inbox(w.ctx, w.room)
		for _, item := range items {
			if item.EventID == evt {
				out += ", waits for " + item.WaitsFor
			}
		}
	}
	for _, u := range d.updates {
		if u, ok := u.(*client.Undecryptable); ok && slices.Contains(m.events, u.EventID) {
			out += ", " + u.Reason
		}
	}
	return out
}

// wasIn tells whether a device had come into the group by an epoch. Who came in by
// itself while its Welcome was under way reads from there on.
// Where servers kept commits to themselves until a module posted them again, a
// device may have joined once more; it reads what was sent in epochs it entered. So does one that
// was put back to before a commit of its own: it can apply none of what follows, and joins again.
func (w *world) wasIn(d *device, at federation.Ref) bool {
	if w.script.faults.soft || w.script.faults.half || d.restored > 0 {
		return d.checked[at]
	}
	for ref := range d.checked {
		if w.extends(at, ref) {
			return true
		}
	}
	return false
}
