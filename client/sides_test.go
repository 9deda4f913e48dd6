package client

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// fakeNet joins fake servers. Every event reaches every server in the order of
// its sender's log, at once or when a cut is mended.
type fakeNet struct {
	mu       sync.Mutex
	servers  []*fakeServer
	side     map[string]int // servers on different sides do not reach each other
	clock    int64
	now      func() int64 // if set, the clock's time; else each event takes a second
	events   int
	nextRoom int
	lose     string                    // to-device messages that do not arrive: "to" or "from" a user
	welcomes []json.RawMessage         // that were sent
	before   map[id.EventID]id.EventID // of a state event: the one it replaced where it was sent
}

func (n *fakeNet) add(name string, s *fakeServer) *fakeServer {
	s.fakeNet, s.name = n, name
	s.txns, s.held, s.sentIn = map[string]id.EventID{}, map[string]bool{}, map[id.EventID][2]string{}
	n.servers = append(n.servers, s)
	return s
}

func (s *fakeServer) reaches(name string) bool { return s.side[s.name] == s.side[name] }

// when does something now, or once the named server can be reached.
func (s *fakeServer) when(name string, do func()) {
	if s.reaches(name) {
		do()
		return
	}
	s.late = append(s.late, do)
}

func (s *fakeServer) federate(evt *Event) {
	for _, peer := range s.servers {
		if peer != s {
			s.when(peer.name, func() { peer.log = append(peer.log, evt) })
		}
	}
}

// resolve picks among two state events of one key: the one that replaced the
// other, else a ban, else a leave, else the later one.
func (s *fakeServer) resolve(old, evt *Event) *Event {
	if old == nil || s.replaced(evt, old) {
		return evt
	}
	if s.replaced(old, evt) {
		return old
	}
	rank := func(e *Event) int {
		var content struct {
			Membership string `json:"membership"`
		}
		_ = json.Unmarshal(e.Content, &content)
		return strings.Index("leave ban", content.Membership) + 1
	}
	if a, b := rank(old), rank(evt); a != b && evt.Type == rooms.TypeMember {
		if a > b {
			return old
		}
		return evt
	}
	if old.Timestamp > evt.Timestamp {
		return old
	}
	return evt
}

func (s *fakeServer) replaced(evt, old *Event) bool {
	for at, ok := evt.ID, true; ok; at, ok = s.before[at] {
		if at == old.ID {
			return true
		}
	}
	return false
}

// addServer opens another homeserver, with a module.
func (w *world) addServer(name string) *fakeModule {
	s := w.s.add(name, &fakeServer{media: w.s.media, toDevice: w.s.toDevice, users: w.s.users})
	s.log = append(s.log, w.s.log...)
	m := w.addModule(name)
	m.s, m.hs.s = s, s
	return m
}

// modules returns the modules of all servers.
func (w *world) modules() []*fakeModule { return append([]*fakeModule{w.module}, w.more...) }

// cut splits the servers: the named ones from all others.
func (w *world) cut(names ...string) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.side = map[string]int{}
	for _, name := range names {
		w.s.side[name] = 1
	}
}

// mend lets everything through that waited.
func (w *world) mend() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.side = nil
	for _, s := range w.s.servers {
		late := s.late
		s.late = nil
		for _, do := range late {
			do()
		}
	}
}

// seat brings a module into a room, as an invite by a member would.
func (w *world) seat(by *testDevice, room id.RoomID, m *fakeModule) {
	w.s.mu.Lock()
	by.hs.putState(room, rooms.TypeMember, string(m.bot), map[string]string{"membership": "invite"})
	w.s.mu.Unlock()
	w.settle()
}

// sequencer returns the module's entry in a list.
func (m *fakeModule) sequencer() federation.Sequencer {
	return federation.Sequencer{Server: m.s.name, User: string(m.bot), ReceiptKey: pub(m.key)}
}

// apart makes a room with one user and one module on each of n servers. All
// modules are in its list.
func (w *world) apart(n int, change func(p *rooms.Policy)) (room id.RoomID, users []*testDevice) {
	w.t.Helper()
	w.pace = time.Second // takeovers take long
	names := []string{"alice", "bob", "carol", "dave", "erin"}
	for i := 1; i < n; i++ {
		w.addServer(fmt.Sprintf("s%d.example", i+1))
	}
	for i := range n {
		users = append(users, w.deviceOn(w.modules()[i].s, names[i], strings.ToUpper(names[i])+"1"))
	}
	room = w.createRoom(users[0], CreateOptions{History: "shared"})
	for i := 1; i < n; i++ {
		w.seat(users[0], room, w.modules()[i])
		w.must(func() error { return users[0].Invite(w.ctx, room, users[i].UserID()) })
		w.join(users[i], room)
	}
	w.settle()
	w.must(func() error {
		return users[0].ChangePolicy(w.ctx, room, func(p *rooms.Policy) {
			p.Sequencers, p.Manual = nil, true
			for _, m := range w.modules() {
				p.Sequencers = append(p.Sequencers, m.sequencer())
			}
			if change != nil {
				change(p)
			}
		})
	})
	w.settle()
	w.sameEpoch(room, users...)
	for _, u := range users {
		u.got = nil
	}
	return room, users
}

// sealed records every key and nonce that encrypts, over all devices, branches,
// restarts and rollbacks. None may encrypt two things. The same again is what a
// crash before the ratchet was durable makes: the first never left.
func (w *world) sealed(at, what [32]byte) {
	w.sealMu.Lock()
	defer w.sealMu.Unlock()
	if old, again := w.seals[at]; again && old != what {
		w.t.Error("a message key encrypts two things")
	}
	w.seals[at] = what
}
