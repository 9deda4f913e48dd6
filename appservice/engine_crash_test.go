package appservice

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// errKilled is what a killed module panics with.
var errKilled = errors.New("killed")

// mortal is a whole module, shell and engine, that can be killed between any two
// writes. Its parts are called one after another; a killed one has no database
// any more, as a dead process has none.
type mortal struct {
	t   *testing.T
	hs  *roomHS
	cfg store.Config
	now time.Duration

	svc    *Service
	st     *store.Store
	loop   *loop
	unsent []*homeserver.Event // pushed, and not answered with 200

	mu     sync.Mutex
	at     string   // where to kill it
	left   int      // at this hit from now
	then   []string // and where after that, at the first hit
	hits   map[string]int
	dead   bool
	deaths int
}

func (m *mortal) clock() time.Time { return time.Unix(1_790_000_000, 0).Add(m.now) }

// crash kills the module if its time has come.
func (m *mortal) crash(point string) {
	m.mu.Lock()
	m.hits[point]++
	kill := false
	if point == m.at && m.left > 0 {
		m.left--
		kill = m.left == 0
	}
	if !kill {
		m.mu.Unlock()
		return
	}
	m.dead = true
	m.deaths++
	if len(m.then) > 0 {
		m.at, m.left, m.then = m.then[0], 1, m.then[1:]
	}
	m.mu.Unlock()
	_ = m.st.Close()
	if point == crashSending || point == crashSent || point == crashSentNoted {
		runtime.Goexit() // a goroutine of the outbox
	}
	panic(errKilled)
}

// live runs fn, and starts the module anew if it dies in it.
func (m *mortal) live(fn func() error) {
	m.t.Helper()
	var err error
	func() {
		defer func() {
			if cause := recover(); cause != nil && !m.dead {
				panic(cause)
			}
		}()
		err = fn()
	}()
	if m.dead {
		m.start()
		return
	}
	must(m.t, err)
}

func (m *mortal) start() {
	m.t.Helper()
	m.dead = false
	m.st = storetest.Open(m.t, m.cfg, m.clock)
	m.live(func() (err error) {
		cfg := testConfig()
		m.svc, err = New(context.Background(), Options{
			Config: cfg, Store: m.st, Homeserver: m.hs, Metrics: metrics.New("test"), Log: zerolog.Nop(), Now: m.clock,
			Getenv: func(string) string { return "" }, crash: m.crash,
		})
		if err != nil {
			return err
		}
		m.svc.clock = func() time.Duration { return m.now }
		m.svc.connected.Store(true)
		m.loop = &loop{Service: m.svc}
		return errors.Join(m.st.Own(context.Background()), m.svc.reconcileRooms(context.Background()), m.svc.engine.Start(context.Background()))
	})
}

func (m *mortal) engine() *Engine { return m.svc.engine.(*Engine) }

// push gives the homeserver's events to the module, again and again until it
// takes them.
func (m *mortal) push() bool {
	m.hs.mu.Lock()
	m.unsent = append(m.unsent, m.hs.pushed...)
	m.hs.pushed = nil
	m.hs.mu.Unlock()
	if len(m.unsent) == 0 {
		return false
	}
	var raws []string
	for _, ev := range m.unsent {
		raws = append(raws, string(ev.Raw))
	}
	req := httptest.NewRequest(http.MethodPut, "/_matrix/app/v1/transactions/1", strings.NewReader(`{"events":[`+strings.Join(raws, ",")+`]}`))
	req.Header.Set("Authorization", "Bearer "+hsToken)
	m.live(func() error {
		w := httptest.NewRecorder()
		m.svc.Handler().ServeHTTP(w, req)
		if w.Code == http.StatusOK {
			m.unsent = nil
		}
		return nil
	})
	return true
}

// settleFor lets the module work until nothing is under way, then the time pass.
func (m *mortal) settleFor(d time.Duration) {
	m.t.Helper()
	ctx := context.Background()
	for end := m.now + d; ; {
		next, busy := end, true
		for i := 0; busy; i++ {
			if i > 10_000 {
				m.t.Fatal("the module does not come to rest")
			}
			deaths := m.deaths
			busy = m.push()
			m.live(func() error {
				at, err := m.loop.round(ctx)
				if next = end; at > 0 {
					next = min(next, at)
				}
				return err
			})
			sent := len(m.hs.txns)
			m.live(func() error {
				wait, err := m.svc.outbox.round(ctx)
				next = min(next, m.now+wait)
				return err
			})
			m.hs.mu.Lock()
			busy = busy || len(m.hs.txns) != sent || len(m.hs.pushed) > 0
			m.hs.mu.Unlock()
			busy = busy || m.deaths != deaths
			if m.engine().jobs.busy() {
				busy = true
				select {
				case <-m.svc.wake:
				case <-time.After(50 * time.Millisecond):
				}
			}
			select {
			case <-m.svc.wake:
				busy = true
			case <-m.svc.outbox.wake:
				busy = true
			default:
			}
		}
		if m.now >= end {
			return
		}
		m.now = max(next, m.now+10*time.Millisecond)
	}
}

// life runs a room through all that makes the module write, with one death on
// the way, or more, and checks what is left. It returns how often each point was
// met.
func life(t *testing.T, cfg store.Config, at string, hit int, then ...string) map[string]int {
	t.Helper()
	hs := newRoomHS()
	m := &mortal{t: t, hs: hs, cfg: cfg, at: at, left: hit, then: then, hits: make(map[string]int)}
	m.start()
	r := newRoom(t, hs, "!room:mls.test")
	m.settleFor(time.Second)
	a, b := r.found(), newDevice(t, bob, "LAPTOP")
	m.settleFor(time.Second)
	accepted := func(c *madeCommit) *madeCommit {
		t.Helper()
		m.settleFor(time.Second)
		if got := m.engine().rooms[r.id].m.Head(); got != c.ref {
			t.Fatalf("the head is %s, want %s", got.Short(), c.ref.Short())
		}
		r.merge(c)
		return c
	}
	r.welcome(accepted(r.admit(b)), b)
	r.apply(b, r.head, b.group.EpochAuthenticator())
	m.settleFor(10 * time.Second) // the vote

	// Two commits at once.
	one, two := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})), r.post(r.make(b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
	m.settleFor(time.Second)
	won := one
	if m.engine().rooms[r.id].m.Head() == two.ref {
		won = two
	}
	accepted(won)
	r.apply(map[*madeCommit]*device{one: b, two: a}[won], r.head, a.group.EpochAuthenticator())
	m.settleFor(10 * time.Second)

	// A tree so large that it goes into media.
	var adds []mls.Proposal
	for i := range 60 {
		kp, err := mls.ParseMessage(newDevice(t, bob, id.DeviceID(fmt.Sprintf("D%d", i))).bundle.Message())
		must(t, err)
		adds = append(adds, mls.Add(kp.KeyPackage()))
	}
	accepted(r.post(r.make(b, rooms.CommitAAD{}, mls.CommitOptions{Proposals: adds, WelcomeRatchetTree: true})))
	r.apply(a, r.head, a.group.EpochAuthenticator())
	m.settleFor(3 * time.Minute)

	// One that is in the history alone.
	hs.mute = func(ev *homeserver.Event) bool { return ev.Type == rooms.TypeCommit }
	last := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
	hs.mute = nil
	m.settleFor(6 * time.Minute)
	accepted(last)
	r.apply(b, r.head, b.group.EpochAuthenticator())
	m.settleFor(20 * time.Second)
	machine := m.engine().rooms[r.id].m
	if machine.Head() != last.ref || machine.NewestFinal() != last.ref {
		t.Errorf("head %s, final %s, want %s", machine.Head().Short(), machine.NewestFinal().Short(), last.ref.Short())
	}

	// Every receipt once, and their chain without a gap or a fork.
	var counters []uint64
	accepts := make(map[rooms.Hash]int)
	for _, kind := range []string{rooms.TypeAccept, rooms.TypeVote} {
		for _, ev := range hs.events(r.id, kind) {
			got, err := rooms.DecodeReceipt(kind, "", ev.Content)
			must(t, err)
			receipt := got.(federation.Receipt)
			counters = append(counters, receipt.Link().Counter)
			if a, ok := got.(*federation.Accept); ok {
				accepts[rooms.Hash(a.Ref)]++
				for _, v := range a.Votes {
					counters = append(counters, v.Chain.Counter)
				}
			}
		}
	}
	slices.Sort(counters)
	for i, n := range counters {
		if n != uint64(i+1) {
			t.Errorf("the receipts in the room have the counters %v", counters)
			break
		}
	}
	if len(accepts) != 4 {
		t.Errorf("%d commits were accepted, want 4", len(accepts))
	}
	for ref, n := range accepts {
		if n != 1 {
			t.Errorf("commit %x was accepted %d times", ref[:4], n)
		}
	}
	if list, err := m.st.Refusals(context.Background(), 10); err != nil || len(list) > 0 {
		t.Errorf("refusals %+v, %v", list, err)
	}

	// The room shows a receipt of the module's key that it does not know.
	seed, err := m.st.Key(context.Background(), KeyReceipt)
	must(t, err)
	config, _ := machine.ConfigAt(last.ref)
	forged := &federation.Vote{Config: config, Ref: last.ref, Chain: federation.Chain{Counter: uint64(len(counters) + 5), Prev: last.ref}}
	must(t, forged.Sign(federation.Scope{Room: string(r.id)}, ed25519.NewKeyFromSeed(seed)))
	raw, err := rooms.Encode(rooms.VoteOf(forged))
	must(t, err)
	hs.add(r.id, bot, rooms.TypeVote, nil, raw)
	m.settleFor(3 * time.Minute)
	head := r.keys()
	if bytes.Equal(head.ReceiptKey, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)) {
		t.Error("the retired key is still announced")
	}
	later, err := m.st.Key(context.Background(), keyReceiptNext+"2")
	must(t, err)
	if !bytes.Equal(head.ReceiptKey, ed25519.NewKeyFromSeed(later).Public().(ed25519.PublicKey)) {
		t.Error("the key that is announced is not in the database")
	}
	if rows, err := m.st.NextInbox(context.Background(), 10); err != nil || len(rows) > 0 {
		t.Errorf("%d events are not dealt with, %v", len(rows), err)
	}
	var data roomData
	row, err := m.st.Room(context.Background(), r.id)
	must(t, err)
	must(t, json.Unmarshal(row.Data, &data))
	if row.Status != store.RoomServing || data.Key != 1 {
		t.Errorf("the room is %s with key %d", row.Status, data.Key)
	}
	if at != "" && m.deaths != 1 && hit == 1 && len(then) == 0 { // how often history is read differs from run to run
		t.Errorf("the module died %d times, want once", m.deaths)
	}
	return m.hits
}

func faultKilledAtWritePoints(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		hits := life(t, cfg, "", 0)
		for point := range hits {
			if !slices.Contains(crashPoints, point) {
				t.Errorf("point %q is not in the list", point)
			}
		}
		for _, point := range crashPoints {
			n := hits[point]
			if n == 0 {
				t.Errorf("point %q is never met", point)
				continue
			}
			// At the first, the last, and one between; the database makes no
			// difference to which. MLS_CRASH_POINTS=all: twenty times at each, in
			// lives with keys of their own, and from the first hit on.
			hits := []int{1, (n + 1) / 2, n}
			if cfg.Type == "postgres" {
				hits = []int{(n + 1) / 2}
			}
			if os.Getenv("MLS_CRASH_POINTS") == "all" {
				for k := range 20 {
					hit := 1 + k*n/20
					t.Run(fmt.Sprintf("%s/kill-%d", point, k+1), func(t *testing.T) { life(t, freshDatabase(t, cfg), point, hit) })
				}
				continue
			}
			for _, hit := range slices.Compact(hits) {
				t.Run(fmt.Sprintf("%s/%d", point, hit), func(t *testing.T) { life(t, freshDatabase(t, cfg), point, hit) })
			}
		}
	})
}
