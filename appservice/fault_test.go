package appservice

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/faults"
	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestFault makes happen to the module what it has to survive.
func TestFault(t *testing.T) {
	faults.Run(t, "appservice", map[string]func(t *testing.T){
		"F01-killed-at-every-write-point":      faultKilledAtWritePoints,
		"F01-killed-twice":                     faultKilledTwice,
		"F01-killed-twice-on-postgres":         faultKilledTwiceOnPostgres,
		"F03-database-server-gone":             faultDatabaseServerGone,
		"F03-database-fails-over":              faultDatabaseFailsOver,
		"F04-database-locked":                  faultDatabaseLocked,
		"F04-database-slow":                    faultDatabaseSlow,
		"F05-disk-full":                        faultDiskFull,
		"F05-small-disk":                       faultSmallDisk,
		"F05-failing-disk":                     faultFailingDisk,
		"F07-same-transaction-again":           faultSameTransaction,
		"F08-transaction-id-used-again":        faultTransactionIDAgain,
		"F09-transaction-with-more-events":     faultTransactionGrows,
		"F10-transactions-lost-late-reordered": faultTransactionsLost,
		"F11-answer-lost":                      faultAnswerLost,
		"F12-poison-event":                     faultPoison,
		"F13-ten-thousand-events-at-once":      faultTenThousandEvents,
		"F21-old-backup":                       faultOldBackup,
		"F23-stopped-under-load":               faultStoppedUnderLoad,
		"F24-few-files-little-memory":          faultScarcity,
	})
}

// faultKilledTwice kills the module at each pair of write points.
func faultKilledTwice(t *testing.T) { killTwice(t, storetest.SQLite) }

func faultKilledTwiceOnPostgres(t *testing.T) { killTwice(t, storetest.Postgres) }

func killTwice(t *testing.T, database func(t *testing.T) store.Config) {
	for _, first := range crashPoints {
		for _, second := range crashPoints {
			t.Run(first+"+"+second, func(t *testing.T) { life(t, database(t), first, 1, second) })
		}
	}
}

// faultDatabaseServerGone kills PostgreSQL below a running module, and cuts its
// connections.
func faultDatabaseServerGone(t *testing.T) {
	servers := lab.Run(t, lab.Options{Postgres: true})
	dsn, err := servers.CreateDatabase(t.Context(), "module")
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, store.Config{Type: "postgres", URI: dsn}, nil, nil)
	client, stop := b.start(t)
	ready := func(want int) func() bool {
		return func() bool {
			code, _ := call(t, client, "GET", "/_matrix/mau/ready", "")
			return code == want
		}
	}
	put := func(txn string) int {
		code, _ := call(t, client, "PUT", "/_matrix/app/v1/transactions/"+txn, `{"events":[`+invitation("$"+txn, "!a")+`]}`)
		return code
	}
	eventually(t, "ready", ready(http.StatusOK))
	if code := put("1"); code != http.StatusOK {
		t.Fatalf("answer %d", code)
	}
	if err := servers.Kill(t.Context(), "postgres"); err != nil {
		t.Fatal(err)
	}
	gone := patience.Measure(func() { eventually(t, "not ready without its database", ready(http.StatusServiceUnavailable)) })
	if code := put("2"); code != http.StatusServiceUnavailable {
		t.Errorf("answer %d without a database, want 503 so that the homeserver repeats it", code)
	}
	if err := servers.Start(t.Context(), "postgres"); err != nil {
		t.Fatal(err)
	}
	back := patience.Measure(func() { eventually(t, "ready again", ready(http.StatusOK)) })
	t.Logf("figures: not ready %v after the database was killed, ready %v after it was back", gone, back)
	if gone > 4*time.Second || back > 10*time.Second { // twice what is aimed at, on a busy machine
		t.Errorf("not ready after %v, want 2 s; ready again after %v, want 5 s", gone, back)
	}
	if code := put("2"); code != http.StatusOK {
		t.Errorf("answer %d with the database back", code)
	}
	// An admin, or a pooler in between, cuts the connections.
	admin, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	cut := func() {
		if _, err := admin.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		cut()
		eventually(t, "a transaction is taken", func() bool { return put(fmt.Sprintf("cut%d", i)) == http.StatusOK })
	}
	eventually(t, "all events handled", func() bool {
		for _, event := range []id.EventID{"$2", "$cut0", "$cut4"} {
			if ev, err := b.store.Inbox(t.Context(), event); err != nil || ev.Status != store.InboxDone {
				return false
			}
		}
		return true
	})
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
}

// faultDatabaseLocked: another holds the database. Nothing is answered as taken
// in that is not, nothing piles up, and all goes on when the lock is gone.
func faultDatabaseLocked(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		storetest.Open(t, cfg, nil) // makes the tables, however long that takes
		plain := cfg.URI
		var lock func() (unlock func())
		switch cfg.Type {
		case "postgres":
			cfg.URI += "&statement_timeout=500"
			lock = func() func() {
				return hold(t, "postgres", plain, "BEGIN; LOCK TABLE inbox IN ACCESS EXCLUSIVE MODE")
			}
		default:
			cfg.BusyTimeout = 300 * time.Millisecond
			lock = func() func() { return hold(t, "sqlite", plain, "BEGIN EXCLUSIVE") }
		}
		b := newBench(t, cfg, nil, nil)
		eventually(t, "an invitation is taken", func() bool { return b.txn("0", invitation("$i", "!a")).Code == http.StatusOK })
		before := runtime.NumGoroutine()
		unlock := lock()
		const n = 20
		took := patience.Measure(func() {
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					if w := b.txn(fmt.Sprint(i), ev(fmt.Sprintf("$%d", i), "!a", rooms.TypeCommit, "-", `{}`)); w.Code != http.StatusServiceUnavailable {
						t.Errorf("answer %d while the database is locked, want 503", w.Code)
					}
				})
			}
			wg.Wait()
		})
		t.Logf("figures: %d transactions answered within %v while the database was locked", n, took)
		if took > 20*time.Second {
			t.Errorf("the answers took %v", took)
		}
		unlock()
		for i := range n {
			eventually(t, "a transaction is taken", func() bool {
				return b.txn(fmt.Sprint(i), ev(fmt.Sprintf("$%d", i), "!a", rooms.TypeCommit, "-", `{}`)).Code == http.StatusOK
			})
		}
		if got := len(b.inbox(t)); got != n+1 {
			t.Errorf("%d events are in the inbox, want %d", got, n+1)
		}
		eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before+4 }) // the database's own
		if err := b.store.Ping(ctx); err != nil {
			t.Error(err)
		}
	})
}

// hold runs a statement on a connection of its own, and ends that connection
// when the function that it returns is called.
func hold(t *testing.T, driver, uri, statement string) (release func()) {
	t.Helper()
	db, err := sql.Open(driver, uri)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(t.Context())
	if err == nil {
		_, err = conn.ExecContext(t.Context(), statement)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := conn.ExecContext(context.Background(), "ROLLBACK"); err != nil {
			t.Error(err)
		}
		_ = conn.Close()
		_ = db.Close()
	}
}

func faultSameTransaction(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		events := []string{invitation("$i", "!a"), ev("$1", "!a", rooms.TypeCommit, "-", `{}`)}
		b := newBench(t, cfg, nil, nil)
		b.txn("1", events...)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if w := b.txn("1", events...); w.Code != http.StatusOK {
					t.Errorf("answer %d", w.Code)
				}
			})
		}
		wg.Wait()
		wantIDs(t, b.inbox(t), "$i", "$1")
		again := newBench(t, cfg, nil, nil) // after a restart
		again.txn("1", events...)
		wantIDs(t, again.inbox(t), "$i", "$1")
	})
}

// faultTransactionIDAgain: Synapse on SQLite counts from the start again.
func faultTransactionIDAgain(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		b := newBench(t, cfg, nil, nil)
		b.txn("1", invitation("$i", "!a"), ev("$1", "!a", rooms.TypeCommit, "-", `{}`))
		b.txn("1", ev("$2", "!a", rooms.TypeCommit, "-", `{}`))
		wantIDs(t, b.inbox(t), "$i", "$1", "$2")
		again := newBench(t, cfg, nil, nil)
		again.txn("1", ev("$3", "!a", rooms.TypeCommit, "-", `{}`))
		wantIDs(t, again.inbox(t), "$i", "$1", "$2", "$3")
	})
}

// faultTransactionGrows: Dendrite repeats a transaction with what came meanwhile.
func faultTransactionGrows(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		b := newBench(t, cfg, nil, nil)
		events := []string{invitation("$i", "!a")}
		want := []id.EventID{"$i"}
		for i := range 5 {
			name := fmt.Sprintf("$%d", i)
			events, want = append(events, ev(name, "!a", rooms.TypeCommit, "-", `{}`)), append(want, id.EventID(name))
			if w := b.txn("1700000000000", events...); w.Code != http.StatusOK {
				t.Fatalf("answer %d", w.Code)
			}
			wantIDs(t, b.inbox(t), want...)
		}
	})
}

// faultTransactionsLost: commits that reach the module never, an hour late, and
// before the ones they stand on.
func faultTransactionsLost(t *testing.T) {
	x := newRefusing(t)
	var want []federation.Ref
	lose := func(by *device) *homeserver.Event {
		x.hs.mute = func(*homeserver.Event) bool { return true }
		c := x.update(by)
		x.hs.mute = nil
		x.merge(c)
		want = append(want, c.ref)
		return x.hs.rooms[x.id][len(x.hs.rooms[x.id])-1]
	}
	for i := range 3 {
		lose([]*device{x.a, x.b}[i%2])
	}
	start := x.now
	for x.machine(x.id).Head() != want[len(want)-1] && x.now < start+time.Hour {
		x.settleFor(time.Minute)
	}
	t.Logf("figures: three lost commits found in the history %v after they were made", x.now-start)
	if x.now-start > x.cfg.Rooms.GapCheck.D()+2*time.Minute {
		t.Errorf("the lost commits were found after %v, want one check of the history (%v)", x.now-start, x.cfg.Rooms.GapCheck.D())
	}
	// Late by an hour, the last first, each in a transaction of its own.
	var late []*homeserver.Event
	x.hs.hide = func(ev *homeserver.Event) bool { return slices.Contains(late, ev) } // nor in the history until then
	for i := range 3 {
		late = append(late, lose([]*device{x.a, x.b}[i%2]))
	}
	x.settle()
	x.now += time.Hour
	x.settleFor(time.Minute)
	if x.machine(x.id).Head() == want[len(want)-1] {
		t.Fatal("the module knows what it was not told")
	}
	x.hs.hide = nil
	for _, ev := range slices.Backward(late) {
		x.hs.mu.Lock()
		x.hs.pushed = append(x.hs.pushed, ev)
		x.hs.mu.Unlock()
		x.settle()
	}
	x.settleFor(time.Minute)
	accepted := x.accepts()
	if got := accepted[len(accepted)-len(want):]; !slices.Equal(got, want) {
		t.Errorf("accepted %v, want each once in their order: %v", got, want)
	}
	x.apply(x.b, x.head, x.b.group.EpochAuthenticator())
	x.settleFor(10 * time.Second)
	x.wantWorks()
}

// faultAnswerLost: the homeserver took an event and its answer never came; the
// event is sent again under the same transaction id, also after a crash.
func faultAnswerLost(t *testing.T) {
	t.Run("by failures of every kind", outboxKeepsOneTransactionID)
	t.Run("by a crash", outboxResendsUnderTheSameID)
	t.Run("of our answer to a transaction", func(t *testing.T) {
		b := newBench(t, storetest.SQLite(t), nil, nil)
		client, stop := b.start(t)
		body := `{"events":[` + invitation("$i", "!a") + `]}`
		ctx, hangUp := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://module/_matrix/app/v1/transactions/1", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+hsToken)
		gone := make(chan struct{})
		b.crashPoint(func(point string) {
			if point == crashInboxStored {
				hangUp()
				<-gone // else the answer may be faster
			}
		})
		_, err = client.Do(req)
		close(gone)
		if err == nil {
			t.Fatal("the answer came all the same")
		}
		b.crashPoint(nil)
		if code, _ := call(t, client, "PUT", "/_matrix/app/v1/transactions/1", body); code != http.StatusOK {
			t.Errorf("answer %d to the repetition", code)
		}
		eventually(t, "the event is handled", func() bool {
			ev, err := b.store.Inbox(t.Context(), "$i")
			return err == nil && ev.Status == store.InboxDone
		})
		if err := stop(); err != nil {
			t.Error(err)
		}
		n := 0
		for _, event := range b.engine.handled {
			if event == "$i" {
				n++
			}
		}
		if n != 1 {
			t.Errorf("the event was handled %d times", n)
		}
	})
}

// faultPoison: contents and events that nothing can be made of. The good event
// behind them is dealt with within a second.
func faultPoison(t *testing.T) {
	t.Run("in transactions", poisonNeverStopsTheQueue)
	t.Run("in the engine", poisonIsPutAside)
	t.Run("at work", func(t *testing.T) {
		x := newRefusing(t)
		for i := range 50 {
			x.hs.add(x.id, bob, rooms.TypeCommit, nil, map[string]any{"epoch": i, "message": strings.Repeat("A", 4*i)})
		}
		good := x.update(x.a)
		took := patience.Measure(x.settle)
		t.Logf("figures: a good commit behind 50 bad ones was accepted after %v", took)
		if got := x.machine(x.id).Head(); got != good.ref || took > 5*time.Second {
			t.Errorf("head %s after %v, want %s", got.Short(), took, good.ref.Short())
		}
	})
}

// crashPoint sets what hears of the write points.
func (b *bench) crashPoint(fn func(point string)) {
	if fn == nil {
		fn = func(string) {}
	}
	b.pointMu.Lock()
	defer b.pointMu.Unlock()
	b.point = fn
}

// faultTenThousandEvents: what a homeserver has kept while the module was away.
// Each hundredth is a commit, the others are of every kind that is kept.
func faultTenThousandEvents(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		hs := newRoomHS()
		m := &mortal{t: t, hs: hs, cfg: cfg, hits: make(map[string]int)}
		m.start()
		r := newRoom(t, hs, "!room:mls.test")
		m.settleFor(time.Second)
		a, b := r.found(), newDevice(t, bob, "LAPTOP")
		m.settleFor(time.Second)
		c := r.admit(b)
		m.settleFor(time.Second)
		r.merge(c)
		r.welcome(c, b)
		for i := range 10_000 {
			switch {
			case i%100 == 0:
				c := r.post(r.make([]*device{a, b}[i/100%2], rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
				r.merge(c)
			case i%3 == 0:
				hs.state(r.id, alice, rooms.TypeMember, fmt.Sprintf("@u%d:far.test", i%50), map[string]any{"membership": []string{"invite", "leave"}[i%2]})
			default:
				hs.add(r.id, bob, rooms.TypeReceipt, nil, map[string]any{"n": i})
			}
		}
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		took := patience.Measure(func() { m.settleFor(10 * time.Second) })
		runtime.GC()
		runtime.ReadMemStats(&after)
		t.Logf("figures: 10,000 events, 100 of them commits, dealt with in %v; the heap grew by %d KiB", took, (int64(after.HeapInuse)-int64(before.HeapInuse))>>10)
		if got := m.engine().rooms[r.id].m.Head(); got != r.head {
			t.Errorf("head %s, want %s", got.Short(), r.head.Short())
		}
		if took > 2*time.Minute {
			t.Errorf("it took %v, want 2 minutes at the most", took)
		}
		if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 64<<20 {
			t.Errorf("the heap grew by %d bytes", grown)
		}
	})
}

// faultStoppedUnderLoad: as by SIGTERM, while transactions come in. What was
// answered is there afterwards.
func faultStoppedUnderLoad(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		b := newBench(t, cfg, nil, nil)
		client, stop := b.start(t)
		eventually(t, "ready", func() bool {
			code, _ := call(t, client, "GET", "/_matrix/mau/ready", "")
			return code == http.StatusOK
		})
		call(t, client, "PUT", "/_matrix/app/v1/transactions/0", `{"events":[`+invitation("$i", "!a")+`]}`)
		var mu sync.Mutex
		var answered []id.EventID
		var wg sync.WaitGroup
		asks, gone := context.WithCancel(t.Context())
		defer gone()
		for worker := range 4 {
			wg.Go(func() {
				for n := 0; ; n++ {
					event := fmt.Sprintf("$%d-%d", worker, n)
					req, err := http.NewRequest(http.MethodPut, "http://module/_matrix/app/v1/transactions/"+event[1:], strings.NewReader(`{"events":[`+ev(event, "!a", rooms.TypeCommit, "-", `{}`)+`]}`))
					if err != nil {
						t.Error(err)
						return
					}
					req.Header.Set("Authorization", "Bearer "+hsToken)
					resp, err := client.Do(req.WithContext(asks))
					if err != nil {
						return // it is gone
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if resp.StatusCode == http.StatusOK {
						mu.Lock()
						answered = append(answered, id.EventID(event))
						mu.Unlock()
					}
				}
			})
		}
		eventually(t, "some load", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(answered) > 40
		})
		took := patience.Measure(func() {
			if err := stop(); err != nil {
				t.Errorf("Run = %v under load", err)
			}
		})
		gone()
		wg.Wait()
		t.Logf("figures: stopped under load within %v", took)
		if took > 10*time.Second {
			t.Errorf("it took %v to stop", took)
		}
		again := newBench(t, cfg, nil, nil)
		for _, event := range answered {
			if _, err := again.store.Inbox(t.Context(), event); err != nil {
				t.Fatalf("%s was answered with 200 and is gone: %v", event, err)
			}
		}
		client, stop = again.start(t)
		eventually(t, "ready again", func() bool {
			code, _ := call(t, client, "GET", "/_matrix/mau/ready", "")
			return code == http.StatusOK
		})
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
