package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"
)

// A Verdict is what the journals of a room show.
type Verdict struct {
	Problems   []string
	Head       string // the one head at the end
	Devices    int    // that are in the group at the end
	Away       int    // that are stopped, and were in it when they were
	Out        int    // that were in it, and are not any more
	Messages   int
	Deliveries int      // of messages that had to come, to devices that had to get them
	Lost       int      // messages of branches that lost, which were sent again
	Late       int      // deliveries after later ones, of what came in any order, or was sent again
	Warnings   []string // what devices warned of, each once
}

func (v *Verdict) problem(format string, args ...any) {
	v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
}

// String sums the verdict up.
func (v *Verdict) String() string {
	return fmt.Sprintf("%d devices on head %s, %d away, %d out; %d messages, %d deliveries, %d messages of branches that lost, %d late; %d problems",
		v.Devices, short(v.Head), v.Away, v.Out, v.Messages, v.Deliveries, v.Lost, v.Late, len(v.Problems))
}

// message is one that a device of the journals sent.
type message struct {
	author       *reader
	mid, digest  string
	event        id.EventID // that it was sent as first
	ref          string     // of the epoch it was first shown in
	began, ended time.Duration
	lostAt       time.Duration // when its author saw its epoch leave the head; 0: never
}

// reader is a journal as the checker looks at it.
type reader struct {
	*Journal
	away    bool              // its client is stopped at the end
	in, out time.Duration     // when it came into the group first, and left it last; 0: never
	rest    *Entry            // the last one
	got     map[string]int    // by message id: how often
	order   map[string]int    // and as which one
	shown   map[string]*Entry // by message id
}

// node is an epoch as the journals tell it.
type node struct {
	parent  string
	author  id.UserID
	added   map[id.UserID]bool
	removed map[id.UserID]bool
}

// Check decides from nothing but the devices' own journals of a room whether all is well:
//
//   - every device that is in the group at the end is on one head, and sees the same members, who are the devices that
//     think they are in it, or did when they were stopped;
//   - it was shown every message that it had to get exactly once, and the messages of each author in the order they were
//     sent in: those sent in epochs it was in, and those of a branch that lost, once it was in the group when their author
//     went back;
//   - nobody was shown anything that its author does not own up to;
//   - a device that is out was shown nothing that began to be sent once its author knew of that;
//   - no key was used for two messages.
//
// What a user sent who is out at the end has to come only if those who put them out had been shown it before; else it may
// come in any order, as homeservers give it out by the history alone, if at all. What was sent
// again may come after later messages where lacks says that the homeserver of the device does not have it as it was sent
// first: Dendrite refuses for good what it cannot get the state before of. Without lacks, every homeserver has everything.
// It may come so, too, to a device that did not have to get it, as it came in later and could not read what was sent first.
func Check(room id.RoomID, journals []*Journal, lacks func(device *Journal, event id.EventID) bool) *Verdict {
	v := &Verdict{}
	if lacks == nil {
		lacks = func(*Journal, id.EventID) bool { return false }
	}
	c := checker{v: v, lacks: lacks, nodes: map[string]*node{}, members: map[string]map[id.UserID]bool{}}
	for _, j := range journals {
		c.read(room, j)
	}
	c.oneHead()
	c.messages()
	for _, r := range c.readers {
		c.complete(r)
		c.ordered(r)
		c.nothingAfter(r)
	}
	c.keys()
	slices.Sort(v.Problems)
	return v
}

type checker struct {
	v       *Verdict
	lacks   func(device *Journal, event id.EventID) bool
	readers []*reader
	nodes   map[string]*node
	members map[string]map[id.UserID]bool // by ref, as far as computed
	sent    []*message
	chain   map[string]bool // refs on the final head's chain
}

// read takes a journal in.
func (c *checker) read(room id.RoomID, j *Journal) {
	r := &reader{Journal: &Journal{Name: j.Name, User: j.User, Device: j.Device}, got: map[string]int{}, order: map[string]int{}, shown: map[string]*Entry{}}
	last, opened := "", false
	for i := range j.Entries {
		e := j.Entries[i]
		if e.Kind != Opened && e.Kind != Closed && e.Room != room {
			continue
		}
		// A program that ends between showing a message and noting that it did shows it again when it is back.
		again := e.Kind == Got && opened && e.Mid == last
		if e.Kind == Opened {
			opened = true
		} else if e.Kind == Got {
			last, opened = e.Mid, false
		}
		if again {
			continue
		}
		r.Entries = append(r.Entries, e)
	}
	for i := range r.Entries {
		e := &r.Entries[i]
		switch e.Kind {
		case Opened, Closed:
			r.away = e.Kind == Closed
		case Got:
			if r.got[e.Mid]++; r.got[e.Mid] == 1 {
				r.order[e.Mid], r.shown[e.Mid] = i, e
			}
			r.enter(e.At)
		case Entered:
			r.enter(e.At)
			r.out = 0
			c.learn(e)
		case Out:
			r.out = e.At
		case AtRest:
			r.rest = e
		case Warned:
			if w := r.Name + ": " + e.Rule + ": " + e.Text; !slices.Contains(c.v.Warnings, w) {
				c.v.Warnings = append(c.v.Warnings, w)
			}
		}
	}
	c.readers = append(c.readers, r)
}

func (r *reader) enter(at time.Duration) {
	if r.in == 0 {
		r.in = max(at, 1)
	}
}

// learn adds what an entry says of an epoch.
func (c *checker) learn(e *Entry) {
	n := c.nodes[e.Ref]
	if n == nil {
		n = &node{added: map[id.UserID]bool{}, removed: map[id.UserID]bool{}}
		c.nodes[e.Ref] = n
	}
	if e.Sender != "" {
		n.author = e.Sender
	}
	if zero := strings.Trim(e.Parent, "0") == ""; !zero {
		if n.parent != "" && n.parent != e.Parent {
			c.v.problem("epoch %s has the parents %s and %s", short(e.Ref), short(n.parent), short(e.Parent))
		}
		n.parent = e.Parent
	}
	for _, u := range e.Added {
		n.added[u] = true
	}
	for _, u := range e.Removed {
		n.removed[u] = true
	}
}

// was tells whether a user was in the group in an epoch: who made it or was added by it, and who was in the one before.
func (c *checker) was(user id.UserID, ref string) bool {
	for depth := 0; ref != "" && depth < 10_000; depth++ {
		n := c.nodes[ref]
		switch {
		case n == nil:
			return false
		case n.added[user] || n.author == user:
			return true
		case n.removed[user]:
			return false
		}
		ref = n.parent
	}
	return false
}

// isIn tells whether a device is in the group and there at the end.
func (r *reader) isIn() bool {
	return !r.away && r.in > 0 && r.out == 0 && r.rest != nil && r.rest.Ref != ""
}

// oneHead compares what the devices hold at the end.
func (c *checker) oneHead() {
	var first *reader
	var names []string
	for _, r := range c.readers {
		switch {
		case r.in == 0:
			continue
		case r.out > 0:
			c.v.Out++
			continue
		case r.away:
			c.v.Away++
			names = append(names, r.name())
			continue
		case r.rest == nil:
			c.v.problem("%s did not say what it holds at the end", r.Name)
			continue
		case r.rest.Ref == "":
			c.v.problem("%s is in no group at the end, and was not told that it was removed", r.Name)
			continue
		}
		c.v.Devices++
		names = append(names, r.name())
		if first == nil {
			first = r
			continue
		}
		if r.rest.Ref != first.rest.Ref {
			c.v.problem("%s is on head %s (epoch %d, era %d), %s on %s (epoch %d, era %d)", r.Name, short(r.rest.Ref), r.rest.Epoch, r.rest.Era,
				first.Name, short(first.rest.Ref), first.rest.Epoch, first.rest.Era)
		} else if !slices.Equal(r.rest.Members, first.rest.Members) {
			c.v.problem("%s sees the members %v, %s %v, both on %s", r.Name, r.rest.Members, first.Name, first.rest.Members, short(r.rest.Ref))
		}
	}
	if first == nil {
		c.v.problem("no device is in the group at the end")
		return
	}
	c.v.Head = first.rest.Ref
	slices.Sort(names)
	if !slices.Equal(names, first.rest.Members) {
		c.v.problem("%s sees the members %v, but those who say that they are in the group are %v", first.Name, first.rest.Members, names)
	}
	c.chain = map[string]bool{}
	for ref := c.v.Head; ref != "" && !c.chain[ref]; {
		c.chain[ref] = true
		if n := c.nodes[ref]; n != nil {
			ref = n.parent
		} else {
			ref = ""
		}
	}
}

// messages collects what was sent, as its authors tell it.
func (c *checker) messages() {
	for _, r := range c.readers {
		said := map[string]*Entry{}
		for i := range r.Entries {
			if e := &r.Entries[i]; e.Kind == Said {
				if said[e.Digest] != nil {
					c.v.problem("%s said the same twice: its journal does not tell the messages apart", r.Name)
				}
				said[e.Digest] = e
			}
		}
		own := map[string]bool{}
		for i := range r.Entries {
			e := &r.Entries[i]
			if e.Kind != Got || !e.Own || r.shown[e.Mid] != e {
				continue
			}
			m := &message{author: r, mid: e.Mid, digest: e.Digest, ref: e.Ref, began: e.At, ended: e.At}
			if s := said[e.Digest]; s != nil {
				m.began, m.event = s.Began, s.Event
				if s.Error == "" {
					m.ended = min(s.At, e.At)
				}
			}
			own[e.Digest] = true
			if c.chain != nil && !c.chain[m.ref] {
				c.v.Lost++
				for _, later := range r.Entries {
					if later.Kind == Entered && later.Lost && later.At >= m.began {
						m.lostAt = later.At
						break
					}
				}
			}
			c.sent = append(c.sent, m)
		}
		for digest, s := range said {
			if s.Error == "" && !own[digest] {
				c.v.problem("%s sent %s and is not shown its own message", r.Name, s.Event)
			}
		}
	}
	c.v.Messages = len(c.sent)
	slices.SortStableFunc(c.sent, func(a, b *message) int { return int(a.began - b.began) })
}

// overtaken tells whether a message's author is out at the end, and was put out by somebody who had not been shown the
// message: homeservers that know of a ban pass on nothing that the banned user sent without knowing of it.
func (c *checker) overtaken(m *message) bool {
	in, overtaken := false, false
	for _, r := range c.readers {
		in = in || r.User == m.author.User && r.in > 0 && r.out == 0
		for _, e := range r.Entries {
			if e.Kind == Did && e.Target == m.author.User && (e.Call == "ban" || e.Call == "kick" || e.Call == "leave") {
				shown := r.shown[m.mid]
				overtaken = overtaken || shown == nil || shown.At > e.Began
			}
		}
	}
	return overtaken && !in
}

// entitled tells whether a device has to be shown a message.
func (c *checker) entitled(r *reader, m *message) bool {
	if !r.isIn() || r == m.author {
		return r.isIn()
	}
	if c.overtaken(m) {
		return false
	}
	for _, e := range r.Entries { // who was out meanwhile begins anew
		if e.Kind == Out && e.At > m.began {
			return false
		}
	}
	return r.in < m.began && c.was(r.User, m.ref) || m.lostAt > 0 && r.in < m.lostAt
}

// complete checks that a device was shown everything it had to be shown once, and nothing else.
func (c *checker) complete(r *reader) {
	known := map[string]*message{}
	for _, m := range c.sent {
		known[m.mid] = m
		n := r.got[m.mid]
		if c.entitled(r, m) {
			c.v.Deliveries++
			if n == 0 {
				why := ""
				for _, e := range r.Entries {
					if e.Kind == Unreadable && e.Sender == m.author.User {
						why = " (it could not read " + string(e.Event) + ": " + e.Rule + ")"
					}
				}
				c.v.problem("%s was not shown message %s, which %s sent at %v in %s%s", r.Name, short(m.mid), m.author.Name, m.ended, short(m.ref), why)
			}
		}
		if n > 1 {
			c.v.problem("%s was shown message %s of %s %d times", r.Name, short(m.mid), m.author.Name, n)
		}
	}
	for mid, e := range r.shown {
		m := known[mid]
		switch {
		case m == nil:
			c.v.problem("%s was shown message %s of %s, which nobody says to have sent", r.Name, short(mid), e.Sender)
		case m.author.User != e.Sender || m.author.Device != e.Device || m.digest != e.Digest:
			c.v.problem("%s was shown message %s as of %s/%s, not as %s sent it", r.Name, short(mid), e.Sender, e.Device, m.author.Name)
		}
	}
}

// ordered checks that the messages of each author came in the order they were sent in.
func (c *checker) ordered(r *reader) {
	last := map[*reader]*message{} // of what has come, the one sent last
	for _, e := range r.Entries {
		if e.Kind != Got || r.got[e.Mid] == 0 {
			continue
		}
		for _, m := range c.sent {
			if m.mid != e.Mid || r.shown[m.mid] == nil || r.shown[m.mid].At != e.At {
				continue
			}
			prev := last[m.author]
			switch late := prev != nil && m.ended < prev.began; {
			case late && c.overtaken(m):
				c.v.Late++
			case late && m.event != "" && e.Event != m.event && (!c.entitled(r, m) || c.lacks(r.Journal, m.event)):
				c.v.Late++
			case late:
				c.v.problem("%s was shown message %s of %s after %s, which was sent later", r.Name, short(m.mid), m.author.Name, short(prev.mid))
			default:
				last[m.author] = m
			}
		}
	}
}

// nothingAfter checks that a device was shown nothing that an author began to send once it knew that the device's user is
// out: it had put the user out itself, or had seen the commit that removed them.
func (c *checker) nothingAfter(r *reader) {
	for _, author := range c.readers {
		if author.User == r.User {
			continue
		}
		var since time.Duration // when the author learned it; 0: it does not know
		type span struct{ from, to time.Duration }
		var spans []span
		for _, e := range author.Entries {
			out := e.Kind == Did && e.Error == "" && e.Target == r.User && (e.Call == "ban" || e.Call == "kick") ||
				e.Kind == Entered && slices.Contains(e.Removed, r.User) && !slices.Contains(e.Added, r.User) && e.Sender != r.User
			in := e.Kind == Did && e.Target == r.User && e.Call == "invite" || e.Kind == Entered && (slices.Contains(e.Added, r.User) || e.Sender == r.User)
			switch {
			case out && since == 0:
				since = e.At
			case in && since > 0:
				spans, since = append(spans, span{since, e.At}), 0
			}
		}
		if since > 0 {
			spans = append(spans, span{since, 1 << 62})
		}
		for _, m := range c.sent {
			if m.author != author || r.got[m.mid] == 0 {
				continue
			}
			for _, s := range spans {
				if m.began > s.from && m.ended < s.to {
					c.v.problem("%s was shown message %s, which %s began to send at %v and knew since %v that %s is out", r.Name, short(m.mid), author.Name, m.began, s.from, r.User)
				}
			}
		}
	}
}

// keys checks that no message key was used twice: an epoch, a leaf and a generation name one.
func (c *checker) keys() {
	type key struct {
		ref       string
		leaf, gen uint32
	}
	used := map[key]map[string]bool{}
	for _, r := range c.readers {
		for _, e := range r.Entries {
			if e.Kind != Got || e.Own { // an own message names no generation
				continue
			}
			k := key{e.Ref, e.Leaf, e.Gen}
			if used[k] == nil {
				used[k] = map[string]bool{}
			}
			used[k][e.Mid] = true
		}
	}
	for k, mids := range used {
		if len(mids) > 1 {
			c.v.problem("the key of epoch %s, leaf %d, generation %d was used for %v", short(k.ref), k.leaf, k.gen, slices.Sorted(maps.Keys(mids)))
		}
	}
}
