package appservice

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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
)

// sent is something the fake homeserver took.
type sent struct {
	Room, Type, Key, Txn, Content string
}

// fakeHS is a homeserver that a test drives. Calls that a test does not expect
// end in a nil pointer.
type fakeHS struct {
	homeserver.Homeserver

	mu     sync.Mutex
	sent   []sent
	byTxn  map[string]id.EventID
	answer func(s sent) error // nil: take everything
	joined []id.RoomID
	left   []id.RoomID
	ensure error

	profile    json.RawMessage
	profileSet int
	ping       error
	versions   func() error
}

func newFakeHS() *fakeHS { return &fakeHS{byTxn: make(map[string]id.EventID)} }

func (f *fakeHS) UserID() id.UserID  { return "@_mls_bot:mls.test" }
func (f *fakeHS) ServerName() string { return "mls.test" }

func (f *fakeHS) take(s sent) (id.EventID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answer != nil {
		if err := f.answer(s); err != nil {
			return "", err
		}
	}
	if event, known := f.byTxn[s.Txn]; known && s.Txn != "" {
		return event, nil
	}
	f.sent = append(f.sent, s)
	event := id.EventID(fmt.Sprintf("$sent-%d", len(f.sent)))
	f.byTxn[s.Txn] = event
	return event, nil
}

func (f *fakeHS) SendEvent(_ context.Context, room id.RoomID, eventType, txn string, content json.RawMessage) (id.EventID, error) {
	return f.take(sent{string(room), eventType, "", txn, string(content)})
}

func (f *fakeHS) SendState(_ context.Context, room id.RoomID, eventType, key string, content json.RawMessage) (id.EventID, error) {
	return f.take(sent{string(room), eventType, key, "", string(content)})
}

func (f *fakeHS) JoinedRooms(context.Context) ([]id.RoomID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.joined, nil
}

func (f *fakeHS) Leave(_ context.Context, room id.RoomID, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = append(f.left, room)
	return nil
}

func (f *fakeHS) ProfileField(context.Context, id.UserID, string) (json.RawMessage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.profile == nil {
		return nil, &homeserver.Error{Op: "fetch profile", Kind: homeserver.ErrNotFound}
	}
	return f.profile, nil
}

func (f *fakeHS) SetProfileField(_ context.Context, _ string, value any) error {
	raw, err := json.Marshal(value)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.profile = raw
	f.profileSet++
	return err
}

func (f *fakeHS) EnsureBot(context.Context, string) error { return f.ensure }

func (f *fakeHS) Ping(context.Context, string) (time.Duration, error) {
	return time.Millisecond, f.ping
}

func (f *fakeHS) Versions(context.Context) (*homeserver.Versions, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.versions != nil {
		if err := f.versions(); err != nil {
			return nil, err
		}
	}
	return &homeserver.Versions{}, nil
}

func (f *fakeHS) all() []sent {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]sent(nil), f.sent...)
}

// fakeEngine marks every event as done, unless a test says otherwise.
type fakeEngine struct {
	d        Deps
	mu       sync.Mutex
	handled  []id.EventID
	settled  []string
	rechecks int
	stirred  []id.RoomID
	handle   func(ctx context.Context, ev *store.InboxEvent) error
	start    func() error
	tick     func(now time.Duration) (time.Duration, error)
	sent     func(row *store.OutboxRow) error
}

func (e *fakeEngine) Start(context.Context) error {
	if e.start != nil {
		return e.start()
	}
	return nil
}

func (e *fakeEngine) HandleEvent(ctx context.Context, ev *store.InboxEvent) error {
	e.mu.Lock()
	e.handled = append(e.handled, ev.EventID)
	e.mu.Unlock()
	if e.handle != nil {
		return e.handle(ctx, ev)
	}
	return e.d.Store.FinishInbox(ctx, ev.EventID, store.InboxDone, "")
}

func (e *fakeEngine) Recheck(_ context.Context, rooms ...id.RoomID) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(rooms) > 0 {
		e.stirred = append(e.stirred, rooms...)
		return nil
	}
	e.rechecks++
	return nil
}

func (e *fakeEngine) Tick(_ context.Context, now time.Duration) (time.Duration, error) {
	if e.tick != nil {
		return e.tick(now)
	}
	return 0, nil
}

func (e *fakeEngine) note(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.settled = append(e.settled, what)
}

func (e *fakeEngine) Sent(_ context.Context, row *store.OutboxRow, event id.EventID) error {
	if e.sent != nil {
		if err := e.sent(row); err != nil {
			return err
		}
	}
	e.note("sent " + row.Tag + " as " + string(event))
	return nil
}

func (e *fakeEngine) Failed(_ context.Context, row *store.OutboxRow) error {
	e.note("failed " + row.Tag)
	return nil
}

// bench is a service with everything around it faked but the database.
type bench struct {
	*Service
	hs     *fakeHS
	engine *fakeEngine
	m      *metrics.Metrics

	pointMu sync.Mutex
	point   func(point string) // hears of the write points
}

const hsToken = "hs-token-planted-0123456789"

func testConfig() *config.Config {
	cfg := config.Default()
	cfg.Homeserver.Domain = "mls.test"
	cfg.AppService.ASToken, cfg.AppService.HSToken = "as-token-planted-0123456789", hsToken
	cfg.Outbox.Backoff, cfg.Outbox.BackoffMaximum = config.Duration(10*time.Millisecond), config.Duration(80*time.Millisecond)
	return cfg
}

func newBench(t *testing.T, dbCfg store.Config, cfg *config.Config, logTo io.Writer) *bench {
	t.Helper()
	if cfg == nil {
		cfg = testConfig()
	}
	if logTo == nil {
		logTo = io.Discard
	}
	b := &bench{hs: newFakeHS(), engine: &fakeEngine{}, m: metrics.New("test")}
	st := storetest.Open(t, dbCfg, nil)
	var err error
	b.Service, err = New(context.Background(), Options{
		Config: cfg, Store: st, Homeserver: b.hs, Metrics: b.m, Log: zerolog.New(logTo).Level(zerolog.TraceLevel),
		Getenv:    func(string) string { return "" },
		newEngine: func(d Deps) roomEngine { b.engine.d = d; return b.engine },
		crash: func(point string) {
			b.pointMu.Lock()
			defer b.pointMu.Unlock()
			if b.point != nil {
				b.point(point)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}
