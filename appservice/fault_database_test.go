package appservice

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// faultDatabaseFailsOver kills a PostgreSQL under load that another one follows,
// and promotes that one. The module's address names both. What was answered is
// there, and the module goes on without a restart.
func faultDatabaseFailsOver(t *testing.T) {
	servers := lab.Run(t, lab.Options{Postgres: true, DurablePostgres: true}) // it waits for its follower only then
	if _, err := servers.CreateDatabase(t.Context(), "module"); err != nil {
		t.Fatal(err)
	}
	ports, err := servers.Standby(t.Context(), "standby")
	if err != nil {
		t.Fatal(err)
	}
	primary, err := servers.PostgresURL("module")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(primary)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = "127.0.0.1,127.0.0.1"
	u.RawQuery = url.Values{"sslmode": {"disable"}, "port": {fmt.Sprintf("%d,%d", ports[0], ports[1])}, "target_session_attrs": {"read-write"}}.Encode()
	b := newBench(t, store.Config{Type: "postgres", URI: u.String()}, nil, nil)
	client, stop := b.start(t)
	ready := func(want int) func() bool {
		return func() bool {
			code, _ := call(t, client, "GET", "/_matrix/mau/ready", "")
			return code == want
		}
	}
	put := func(event id.EventID) int {
		code, _ := call(t, client, "PUT", "/_matrix/app/v1/transactions/"+string(event[1:]), `{"events":[`+invitation(string(event), "!a")+`]}`)
		return code
	}
	eventually(t, "ready", ready(http.StatusOK))

	// As a homeserver does: one transaction after the other, each until it is taken.
	var taken []id.EventID
	var n atomic.Int64
	end := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			event := id.EventID(fmt.Sprintf("$load%d", i))
			for put(event) != http.StatusOK {
				select {
				case <-end:
					return
				default:
				}
			}
			taken = append(taken, event)
			n.Add(1)
			select {
			case <-end:
				return
			default:
			}
		}
	}()
	endLoad := sync.OnceFunc(func() {
		close(end)
		<-done
	})
	defer endLoad()
	eventually(t, "transactions are taken", func() bool { return n.Load() >= 20 })
	if err := servers.Kill(t.Context(), "postgres"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "not ready without its database", ready(http.StatusServiceUnavailable))
	before := n.Load()
	follower, err := sql.Open("postgres", fmt.Sprintf("postgres://%s@127.0.0.1:%d/postgres?sslmode=disable", u.User.Username(), ports[1]))
	if err != nil {
		t.Fatal(err)
	}
	defer follower.Close()
	back := patience.Measure(func() {
		if _, err := follower.ExecContext(t.Context(), "SELECT pg_promote()"); err != nil {
			t.Error(err)
		}
		eventually(t, "ready again", ready(http.StatusOK))
	})
	eventually(t, "the load goes on", func() bool { return n.Load() >= before+20 })
	endLoad()
	t.Logf("figures: ready %v after the follower was promoted, %d transactions taken before, %d after", back, before, n.Load()-before)
	if back > 10*time.Second { // twice what is aimed at, on a busy machine
		t.Errorf("ready %v after the follower was promoted, want 5 s", back)
	}
	for _, event := range taken {
		eventually(t, "what was answered is handled", func() bool {
			row, err := b.store.Inbox(t.Context(), event)
			if err != nil {
				t.Fatalf("%s was answered with 200 and is gone: %v", event, err)
			}
			return row.Status == store.InboxDone
		})
	}
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
}

// slowLink stands between the module and a database, and keeps back each answer
// for as long as it is told.
type slowLink struct {
	net.Listener
	to    string
	delay atomic.Int64
	end   chan struct{}
	all   sync.WaitGroup
}

func newSlowLink(t *testing.T, to string) *slowLink {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &slowLink{Listener: ln, to: to, end: make(chan struct{})}
	l.all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			l.all.Go(func() { l.serve(conn) })
		}
	})
	t.Cleanup(func() {
		close(l.end)
		_ = ln.Close()
		l.all.Wait()
	})
	return l
}

func (l *slowLink) serve(conn net.Conn) {
	server, err := net.Dial("tcp", l.to)
	if err != nil {
		_ = conn.Close()
		return
	}
	over := make(chan struct{})
	var once sync.Once
	cut := func() {
		once.Do(func() {
			close(over)
			_, _ = conn.Close(), server.Close()
		})
	}
	l.all.Go(func() { // ends those that are open when the test ends
		select {
		case <-l.end:
		case <-over:
		}
		cut()
	})
	l.all.Go(func() {
		defer cut()
		_, _ = io.Copy(server, conn)
	})
	defer cut()
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if n > 0 {
			if delay := time.Duration(l.delay.Load()); delay > 0 {
				timer := time.NewTimer(delay)
				select {
				case <-timer.C:
				case <-over:
					timer.Stop()
					return
				}
			}
			if _, err := conn.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// faultDatabaseSlow: each answer of the database comes 5 s late. What the module
// cannot do in time it refuses, so that nothing piles up, and it goes on once
// the database is itself again.
func faultDatabaseSlow(t *testing.T) {
	cfg := storetest.Postgres(t)
	u, err := url.Parse(cfg.URI)
	if err != nil {
		t.Fatal(err)
	}
	link := newSlowLink(t, u.Host)
	u.Host = link.Addr().String()
	cfg.URI = u.String()
	b := newBench(t, cfg, nil, nil)
	eventually(t, "an invitation is taken", func() bool { return b.txn("0", invitation("$i", "!a")).Code == http.StatusOK })
	before := runtime.NumGoroutine()
	const n = 20
	event := func(i int) string { return ev(fmt.Sprintf("$%d", i), "!a", rooms.TypeCommit, "-", `{}`) }
	link.delay.Store(int64(5 * time.Second))
	var most, taken, refused atomic.Int64
	var wg sync.WaitGroup
	took := patience.Measure(func() {
		for i := range n {
			wg.Go(func() {
				switch code := b.txn(fmt.Sprint(i), event(i)).Code; code {
				case http.StatusOK:
					taken.Add(1)
				case http.StatusServiceUnavailable:
					refused.Add(1)
				default:
					t.Errorf("answer %d of a slow database, want 200 or 503", code)
				}
				most.Store(max(most.Load(), int64(runtime.NumGoroutine())))
			})
		}
		wg.Wait()
	})
	t.Logf("figures: %d transactions at once answered within %v, %d of them taken, %d refused; %d goroutines before, %d at most when one was answered", n, took, taken.Load(), refused.Load(), before, most.Load())
	if took > 90*time.Second { // the module's own bound for an answer
		t.Errorf("the answers took %v", took)
	}
	if taken.Load() == 0 || refused.Load() == 0 {
		t.Errorf("%d taken and %d refused: want both, as only so many wait for a slow database", taken.Load(), refused.Load())
	}
	if limit := int64(before + n + 30); most.Load() > limit { // the test's own, and a few connections
		t.Errorf("%d goroutines, want at most %d", most.Load(), limit)
	}
	link.delay.Store(0)
	for i := range n {
		eventually(t, "a transaction is taken", func() bool { return b.txn(fmt.Sprint(i), event(i)).Code == http.StatusOK })
	}
	if got := len(b.inbox(t)); got != n+1 {
		t.Errorf("%d events are in the inbox, want %d", got, n+1)
	}
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before+16 }) // the database's own, and the link's
	if err := b.store.Ping(context.Background()); err != nil {
		t.Error(err)
	}
}
