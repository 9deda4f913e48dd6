package simulation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice"
	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/internal/simnet"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// module is a homeserver's module: the service of package appservice on its
// database, driven by hand.
type module struct {
	disk
	w      *world
	name   string
	user   id.UserID
	server *simnet.Server
	clock  clock

	st       *store.Store
	probe    *probe.Module
	metrics  *metrics.Metrics
	up       bool
	away     time.Duration
	lost     bool // for good
	life     int
	began    time.Duration // when it was started
	next     time.Duration
	seen     int
	withhold bool // it keeps its receipts to itself
	liar     bool
	forged   map[id.EventID]bool // what it sent behind its own back
	posted   []json.RawMessage   // its heads
	accept   *federation.Accept  // the newest that it signed
	vote     *federation.Vote
	backup   image // a copy of its disk; nil: none
	observed
	signed
}

func (w *world) newModule(server *simnet.Server) *module {
	m := &module{w: w, name: "module " + server.Name, user: id.UserID("@" + rooms.BotLocalpart + ":" + server.Name), server: server, clock: w.newClock()}
	m.disk = disk{path: filepath.Join(w.dir, fmt.Sprintf("module%d.db", len(w.modules))), node: m.name}
	m.forged = map[id.EventID]bool{}
	m.observed.init()
	m.signed.init()
	server.Bot = m.user
	w.modules = append(w.modules, m)
	return m
}

func (m *module) start() {
	m.life++
	ctx := m.w.ctx
	st, err := store.Open(ctx, store.Config{Type: "sqlite3", URI: m.path, MaxOpenConns: 1}, m.clock.wall)
	if err == nil {
		err = st.Upgrade(ctx)
	}
	if err != nil {
		m.w.fail("open the database of %s: %v", m.name, err)
	}
	m.st, m.up, m.dead = st, true, false
	cfg := config.Default()
	cfg.Homeserver.Domain = m.server.Name
	m.metrics = metrics.New("simulation")
	m.probe = &probe.Module{Clock: m.clock.mono, Point: func(name string) { m.strike(m.w, name) }, Without: map[string]bool{}}
	if m.w.lying {
		m.probe.Without[string(m.w.script.without)] = true
	}
	_, err = appservice.New(ctx, appservice.Options{
		Config: cfg, Store: st, Homeserver: &bot{m: m}, Metrics: m.metrics, Log: m.w.logger(m.name),
		Rand: m.w.reader(fmt.Sprintf("%s life %d", m.name, m.life)), Now: m.clock.wall, Getenv: func(string) string { return "" }, Probe: m.probe,
	})
	if err == nil {
		err = m.probe.Start(m.ctx())
	}
	if m.dead {
		m.bury()
		return
	}
	if err != nil {
		m.w.fail("start %s: %v", m.name, err)
	}
	m.next, m.seen, m.began = m.w.net.Now, -1, m.w.net.Now
}

func (m *module) ctx() context.Context { return m.w.logger(m.name).WithContext(m.w.ctx) }

func (m *module) stop() {
	if m.up {
		_ = m.st.Close()
		m.up = false
	}
}

func (m *module) bury() {
	_ = m.st.Close()
	m.up = false
	m.restore()
	m.away = m.w.net.Now + time.Duration(1+m.w.rng.IntN(40))*time.Second
	m.next = m.away
}

// turn lets the module do all it can do now.
func (m *module) turn() {
	if !m.up || m.lost {
		return
	}
	now := m.w.net.Now
	for n := 0; ; n++ {
		if n == 200 {
			m.w.fail("%s does not come to rest", m.name)
		}
		if m.seen != m.server.Changes {
			m.seen = m.server.Changes
			for _, batch := range batches(m.unaware(m.server.Pushes()), 50) {
				if err := m.probe.Deliver(m.ctx(), batch); err != nil && !m.dead {
					m.w.fail("%s: a transaction failed: %v", m.name, err)
				}
				if m.dead {
					m.server.Unpush(batch)
				}
			}
		}
		next, err := m.probe.Round(m.ctx())
		if err != nil && !m.dead {
			m.w.fail("%s: %v", m.name, err)
		}
		wait, err := m.probe.Send(m.ctx())
		m.w.raise()
		if err != nil && !m.dead {
			m.w.fail("%s: %v", m.name, err)
		}
		if m.dead {
			m.bury()
			return
		}
		m.w.observeModule(m)
		m.next = now + time.Minute
		if next > 0 {
			m.next = min(m.next, m.clock.world(next))
		}
		m.next = min(m.next, now+max(wait, time.Millisecond))
		if m.seen == m.server.Changes && !m.probe.Woken() && (next == 0 || m.clock.world(next) > now) {
			return
		}
	}
}

func batches(list []json.RawMessage, size int) (out [][]json.RawMessage) {
	for len(list) > 0 {
		n := min(size, len(list))
		out, list = append(out, list[:n]), list[n:]
	}
	return out
}

func (m *module) machine() *federation.Machine {
	if !m.up || m.lost {
		return nil
	}
	return m.probe.Machine(m.w.room)
}

// bot is a module's access to its homeserver.
type bot struct {
	homeserver.Homeserver
	m *module
}

func (b *bot) request(name string, do func() error) error {
	if b.m.dead {
		return &homeserver.Error{Op: name, Kind: homeserver.ErrUnreachable}
	}
	if b.m.strike(b.m.w, name) {
		return &homeserver.Error{Op: name, Kind: homeserver.ErrUnreachable}
	}
	err := do()
	if b.m.strike(b.m.w, name+" answered") {
		return &homeserver.Error{Op: name, Kind: homeserver.ErrUnreachable}
	}
	switch {
	case errors.Is(err, simnet.ErrUnreachable):
		return &homeserver.Error{Op: name, Kind: homeserver.ErrServer, Status: http.StatusBadGateway}
	case errors.Is(err, simnet.ErrRefused):
		return &homeserver.Error{Op: name, Kind: homeserver.ErrForbidden, Status: http.StatusForbidden}
	case errors.Is(err, errNone):
		return &homeserver.Error{Op: name, Kind: homeserver.ErrNotFound, Status: http.StatusNotFound}
	}
	return err
}

var errNone = errors.New("simulation: not found")

func toModule(e *simnet.Event) *homeserver.Event {
	ev, err := homeserver.ParseEvent(e.Raw(), e.Room)
	if err != nil {
		return nil
	}
	return ev
}

func (m *module) toModuleAll(list []*simnet.Event) (out []*homeserver.Event) {
	for _, e := range list {
		if ev := toModule(e); ev != nil && !m.forged[e.ID] && !m.kept(e) {
			out = append(out, ev)
		}
	}
	return out
}

func (b *bot) UserID() id.UserID  { return b.m.user }
func (b *bot) ServerName() string { return b.m.server.Name }

func (b *bot) joined(room id.RoomID) error {
	if b.m.server.Membership(room, b.m.user) != "join" {
		return simnet.ErrRefused
	}
	return nil
}

func (b *bot) SendEvent(_ context.Context, room id.RoomID, eventType, txnID string, content json.RawMessage) (evt id.EventID, err error) {
	err = b.request("send "+eventType, func() error {
		if err := b.joined(room); err != nil {
			return err
		}
		evt = b.m.server.Once(b.m.user, txnID, func() id.EventID {
			b.m.w.judgeModule(b.m, eventType, content)
			b.m.note(eventType, content)
			if b.m.withhold && b.m.withholds(eventType) {
				return id.EventID("$withheld-" + txnID)
			}
			return b.m.server.Send(b.m.user, room, eventType, nil, slices.Clone(content)).ID
		})
		return nil
	})
	return evt, err
}

func (b *bot) SendState(_ context.Context, room id.RoomID, eventType, stateKey string, content json.RawMessage) (evt id.EventID, err error) {
	err = b.request("state "+eventType, func() error {
		if err := b.joined(room); err != nil {
			return err
		}
		b.m.note(eventType, content)
		evt = b.m.server.Send(b.m.user, room, eventType, &stateKey, slices.Clone(content)).ID
		return nil
	})
	return evt, err
}

func (b *bot) Event(_ context.Context, room id.RoomID, event id.EventID) (out *homeserver.Event, err error) {
	err = b.request("event", func() error {
		e := b.m.server.Knows(room, event)
		if e == nil || b.m.forged[event] {
			return errNone
		}
		out = toModule(e)
		return nil
	})
	return out, err
}

func (b *bot) Messages(_ context.Context, room id.RoomID, req homeserver.MessagesRequest) (page *homeserver.MessagesPage, err error) {
	err = b.request("messages", func() error {
		if err := b.joined(room); err != nil {
			return err
		}
		page = &homeserver.MessagesPage{}
		list, next := b.m.server.Page(room, b.m.user, req.From, min(req.Limit, b.m.w.page))
		for _, e := range b.m.toModuleAll(list) {
			if len(req.Types) == 0 || slices.Contains(req.Types, e.Type) {
				page.Events = append(page.Events, e)
			}
		}
		page.End = next
		return nil
	})
	return page, err
}

func (b *bot) State(_ context.Context, room id.RoomID) (out []*homeserver.Event, err error) {
	err = b.request("state", func() error {
		if err := b.joined(room); err != nil {
			return err
		}
		out = b.m.toModuleAll(b.m.server.State(room))
		return nil
	})
	return out, err
}

func (b *bot) Join(_ context.Context, room id.RoomID, _ []string) error {
	return b.request("join", func() error {
		if err := b.m.server.JoinRoom(room, b.m.user); err != nil {
			return err
		}
		if b.m.server.Membership(room, b.m.user) != "join" {
			key := string(b.m.user)
			b.m.server.Send(b.m.user, room, rooms.TypeMember, &key, json.RawMessage(`{"membership":"join"}`))
		}
		return nil
	})
}

func (b *bot) Leave(_ context.Context, room id.RoomID, _ string) error {
	return b.request("leave", func() error {
		key := string(b.m.user)
		b.m.server.Send(b.m.user, room, rooms.TypeMember, &key, json.RawMessage(`{"membership":"leave"}`))
		return nil
	})
}

func (b *bot) JoinedRooms(context.Context) (out []id.RoomID, err error) {
	err = b.request("joined rooms", func() error {
		if b.m.w.room != "" && b.m.server.Membership(b.m.w.room, b.m.user) == "join" {
			out = append(out, b.m.w.room)
		}
		return nil
	})
	return out, err
}

func (b *bot) Upload(_ context.Context, data []byte, _ string) (uri id.ContentURIString, err error) {
	err = b.request("upload", func() error {
		uri = id.ContentURIString(b.m.server.Upload(data))
		return nil
	})
	return uri, err
}

func (b *bot) Download(_ context.Context, uri id.ContentURIString, limit int64) (data []byte, err error) {
	err = b.request("download", func() error {
		data, err = b.m.server.Download(string(uri), limit)
		return err
	})
	return data, err
}
