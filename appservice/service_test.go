package appservice

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// logBuffer is a log that tests read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs the service on a Unix socket and returns a client for it and a
// function that stops it and gives Run's result.
func (b *bench) start(t *testing.T) (client *http.Client, stop func() error) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	b.cfg.AppService.Hostname, b.cfg.AppService.Port = socket, 0
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			conn, err := d.DialContext(ctx, "unix", socket)
			if err == nil || ctx.Err() != nil {
				return conn, err
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	}}
	var once sync.Once
	var result error
	stop = func() error {
		once.Do(func() {
			transport.CloseIdleConnections()
			cancel()
			result = <-done
		})
		return result
	}
	t.Cleanup(func() { _ = stop() })
	return &http.Client{Transport: transport, Timeout: patience.Hang}, stop
}

func call(t *testing.T, c *http.Client, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://module"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+hsToken)
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// eventually asks until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience.Hang)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline.C:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

func TestServiceServesAndStops(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		log := new(logBuffer)
		b := newBench(t, cfg, nil, log)
		b.engine.handle = func(ctx context.Context, ev *store.InboxEvent) error {
			err := b.store.Tx(ctx, func(ctx context.Context) error {
				if err := b.store.PutOutbox(ctx, &store.OutboxRow{Room: ev.Room, Type: "answer", Content: []byte(`{}`), Tag: string(ev.EventID)}); err != nil {
					return err
				}
				return b.store.FinishInbox(ctx, ev.EventID, store.InboxDone, "")
			})
			b.engine.d.WakeOutbox()
			return err
		}
		client, stop := b.start(t)
		eventually(t, "ready", func() bool {
			code, _ := call(t, client, "GET", "/_matrix/mau/ready", "")
			return code == http.StatusOK
		})
		code, _ := call(t, client, "PUT", "/_matrix/app/v1/transactions/1",
			`{"events":[`+invitation("$i", "!a")+`,`+ev("$c", "!a", rooms.TypeCommit, "-", `{"planted":"content-0123"}`)+`]}`)
		if code != http.StatusOK {
			t.Fatalf("answer %d", code)
		}
		eventually(t, "both answers sent and told", func() bool {
			b.engine.mu.Lock()
			defer b.engine.mu.Unlock()
			return len(b.engine.settled) == 2
		})
		if code, body := call(t, client, "GET", "/metrics", ""); code != 200 || !strings.Contains(body, `mls_events_total{result="stored"} 2`) {
			t.Errorf("metrics: %d\n%s", code, body)
		}
		if err := stop(); err != nil {
			t.Errorf("Run = %v after an orderly stop", err)
		}
	})
}

func TestNoSecretReachesTheLog(t *testing.T) {
	log := new(logBuffer)
	b := newBench(t, storetest.SQLite(t), nil, log)
	keys, _, err := EnsureKeys(t.Context(), b.store, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.engine.handle = func(ctx context.Context, ev *store.InboxEvent) error {
		switch ev.EventID {
		case "$panic":
			panic("planted panic")
		case "$fail":
			return errors.New("planted failure")
		}
		if err := b.store.PutOutbox(ctx, &store.OutboxRow{Room: "!a", Type: "t", Content: []byte(`{"x":"outgoing-planted-0123"}`)}); err != nil {
			return err
		}
		b.engine.d.WakeOutbox()
		return b.store.FinishInbox(ctx, ev.EventID, store.InboxDone, "")
	}
	client, stop := b.start(t)
	planted := `{"planted":"content-planted-0123"}`
	call(t, client, "PUT", "/_matrix/app/v1/transactions/1", `{"events":[`+strings.Join([]string{
		invitation("$i", "!a"), ev("$c", "!a", rooms.TypeCommit, "-", planted), ev("$panic", "!a", rooms.TypeCommit, "-", planted),
		ev("$fail", "!a", rooms.TypeCommit, "-", planted), `{"content":` + planted + `}`,
	}, ",")+`]}`)
	call(t, client, "PUT", "/_matrix/app/v1/transactions/2?access_token=query-planted-0123", "content-planted-0123")
	call(t, client, "POST", "/_matrix/app/v1/ping", `{"transaction_id":"x"}`)
	eventually(t, "poison put aside", func() bool {
		ev, err := b.store.Inbox(t.Context(), "$fail")
		return err == nil && ev.Status == store.InboxRefused
	})
	eventually(t, "answers sent", func() bool { return len(b.hs.all()) > 0 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	text := log.String()
	if !strings.Contains(text, `"level":"debug"`) || !strings.Contains(text, "$panic") {
		t.Fatalf("the session was not logged in full:\n%s", text)
	}
	secrets := []string{"as-token-planted", "hs-token-planted", "content-planted-0123", "outgoing-planted-0123", "query-planted-0123"}
	seed := keys.Receipt.Seed()
	secrets = append(secrets, fmt.Sprintf("%x", seed), string(seed))
	for _, key := range keys.External {
		secrets = append(secrets, fmt.Sprintf("%x", key.Bytes()))
	}
	for _, secret := range secrets {
		if strings.Contains(text, secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
}

func poisonIsPutAside(t *testing.T) {
	for name, row := range map[string]struct {
		handle func(context.Context, *store.InboxEvent) error
		rule   string
	}{
		"panic":            {func(context.Context, *store.InboxEvent) error { panic("planted") }, rulePanic},
		"error every time": {func(context.Context, *store.InboxEvent) error { return errors.New("planted") }, ruleFailed},
		"left as it was":   {func(context.Context, *store.InboxEvent) error { return nil }, ruleFailed},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, storetest.SQLite(t), nil, nil)
			b.engine.handle = func(ctx context.Context, ev *store.InboxEvent) error {
				if ev.EventID == "$poison" {
					return row.handle(ctx, ev)
				}
				return b.store.FinishInbox(ctx, ev.EventID, store.InboxDone, "")
			}
			b.txn("1", invitation("$i", "!a"), ev("$poison", "!a", rooms.TypeCommit, "-", `{}`), ev("$good", "!a", rooms.TypeCommit, "-", `{}`))
			l := &loop{Service: b.Service}
			var err error
			for range maxFailures {
				if _, err = l.round(t.Context()); err == nil {
					break
				}
			}
			if err != nil {
				t.Fatalf("the queue still stands: %v", err)
			}
			for event, want := range map[string]store.InboxStatus{"$i": store.InboxDone, "$poison": store.InboxRefused, "$good": store.InboxDone} {
				got, err := b.store.Inbox(t.Context(), id.EventID(event))
				if err != nil || got.Status != want {
					t.Errorf("%s is %s, %v, want %s", event, got.Status, err, want)
				}
			}
			if b.rejected(row.rule) != 1 {
				t.Errorf("%s counted %v times", row.rule, b.rejected(row.rule))
			}
		})
	}
}

func TestBrokenStorageLosesNoEvent(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	b.txn("1", invitation("$i", "!a"))
	l := &loop{Service: b.Service}
	b.engine.handle = func(context.Context, *store.InboxEvent) error {
		return errors.Join(errors.New("planted"), b.store.Close())
	}
	for range 3 * maxFailures {
		if _, err := l.round(t.Context()); err == nil {
			t.Fatal("a round succeeded without a database")
		}
	}
	if b.rejected(ruleFailed) != 0 {
		t.Error("an event was given up because the database was away")
	}
}

func TestEngineTickFailuresAreRepeated(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	l := &loop{Service: b.Service}
	b.engine.tick = func(time.Duration) (time.Duration, error) { panic("planted") }
	if _, err := l.round(t.Context()); err == nil {
		t.Error("a panic in Tick went unnoticed")
	}
	b.engine.tick = func(now time.Duration) (time.Duration, error) { return now + time.Minute, nil }
	b.wakeGapCheck()
	if next, err := l.round(t.Context()); err != nil || next < time.Minute || b.engine.rechecks != 1 {
		t.Errorf("round = %v, %v with %d rechecks", next, err, b.engine.rechecks)
	}
	if _, err := l.round(t.Context()); err != nil || b.engine.rechecks != 1 {
		t.Errorf("rechecked %d times, %v", b.engine.rechecks, err)
	}
}

func TestProfileIsPublishedOnce(t *testing.T) {
	cfg := storetest.SQLite(t)
	b := newBench(t, cfg, nil, nil)
	b.publishProfile(t.Context())
	if b.hs.profileSet != 1 {
		t.Fatalf("set %d times", b.hs.profileSet)
	}
	profile, err := rooms.DecodeModuleProfile(b.hs.profile)
	if err != nil || !bytes.Equal(profile.ReceiptKey, b.keys.Receipt.Public().(ed25519.PublicKey)) {
		t.Errorf("profile = %+v, %v", profile, err)
	}
	again := newBench(t, cfg, nil, nil)
	again.Service.hs = b.hs
	again.publishProfile(t.Context())
	if b.hs.profileSet != 1 {
		t.Error("an equal profile was set again")
	}
	other := newBench(t, storetest.SQLite(t), nil, nil)
	other.Service.hs = b.hs
	other.publishProfile(t.Context())
	if b.hs.profileSet != 2 {
		t.Error("a new receipt key was not published")
	}
}

func TestKeysAreMadeOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		st := storetest.Open(t, cfg, nil)
		first, made, err := EnsureKeys(t.Context(), st, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		schemes := make(map[mls.SignatureScheme]bool)
		for _, cs := range mls.SupportedCipherSuites() {
			schemes[cs.SignatureScheme()] = true
		}
		if made != 1+len(schemes) || len(first.External) != len(schemes) {
			t.Errorf("made %d keys and %d external ones, want one for each of %d schemes and the receipt key", made, len(first.External), len(schemes))
		}
		again, made, err := EnsureKeys(t.Context(), st, rand.Reader)
		if err != nil || made != 0 {
			t.Fatalf("second time: %d made, %v", made, err)
		}
		if !again.Receipt.Equal(first.Receipt) {
			t.Error("the receipt key changed")
		}
		for scheme, key := range first.External {
			if !bytes.Equal(key.Bytes(), again.External[scheme].Bytes()) {
				t.Errorf("the external sender key for %s changed", scheme)
			}
		}
	})
}

func TestDamagedReceiptKeyIsNotReplaced(t *testing.T) {
	st := storetest.Open(t, storetest.SQLite(t), nil)
	if _, err := st.PutNewKey(t.Context(), KeyReceipt, []byte{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := EnsureKeys(t.Context(), st, rand.Reader); err == nil {
		t.Error("a damaged receipt key was taken")
	}
}

func TestSystemdHears(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	n := newNotifier(func(name string) string {
		return map[string]string{"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000000"}[name]
	})
	if n.watchdog != 15*time.Second {
		t.Errorf("watchdog = %v, want half of what systemd waits", n.watchdog)
	}
	if err := n.send("READY=1"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if size, err := conn.Read(buf); err != nil || string(buf[:size]) != "READY=1" {
		t.Errorf("systemd heard %q, %v", buf[:size], err)
	}
	if err := newNotifier(func(string) string { return "" }).send("READY=1"); err != nil {
		t.Errorf("without systemd: %v", err)
	}
}

func TestListenReplacesADeadSocketOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := listen(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path, 0); err == nil {
		t.Error("a socket in use was replaced")
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = first.Close()
	second, err := listen(path, 0)
	if err != nil {
		t.Fatalf("a dead socket was not replaced: %v", err)
	}
	_ = second.Close()
}

func TestServiceEndsWhenAnotherTakesOverItsDatabase(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ready := func(client *http.Client) func() bool {
			return func() bool {
				code, _ := call(t, client, "GET", "/_matrix/mau/ready", "")
				return code == http.StatusOK
			}
		}
		first, second := newBench(t, cfg, nil, nil), newBench(t, cfg, nil, nil)
		client, stopFirst := first.start(t)
		eventually(t, "the first is ready", ready(client))
		client, stopSecond := second.start(t)
		eventually(t, "the second is ready", ready(client))
		first.Wake()
		eventually(t, "the first stops", first.stopping.Load)
		if err := stopFirst(); !errors.Is(err, store.ErrTakenOver) {
			t.Errorf("the first ended with %v", err)
		}
		if err := stopSecond(); err != nil {
			t.Errorf("the second ended with %v", err)
		}
	})
}
