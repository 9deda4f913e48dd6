package appservice

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// ShutdownTime is how long a stopping module finishes what it has begun.
const ShutdownTime = 10 * time.Second

// Options is what a [Service] is made of. Config, Store and Homeserver are
// required; the store must be upgraded.
type Options struct {
	Config     *config.Config
	Store      *store.Store
	Homeserver homeserver.Homeserver
	Metrics    *metrics.Metrics
	Log        zerolog.Logger
	Version    string
	Rand       io.Reader           // zero value: crypto/rand
	Now        func() time.Time    // zero value: time.Now
	Getenv     func(string) string // zero value: os.Getenv

	// crash is called at each of crashPoints, and may not come back: tests end
	// the module there.
	crash func(point string)
	// Probe is for the simulator.
	Probe *probe.Module
	// newEngine replaces the engine in tests of the shell.
	newEngine func(Deps) roomEngine
}

// Service is the running module.
type Service struct {
	cfg     *config.Config
	store   *store.Store
	hs      homeserver.Homeserver
	metrics *metrics.Metrics
	log     zerolog.Logger
	rand    io.Reader
	keys    *Keys
	now     func() time.Time
	started time.Time
	clock   func() time.Duration // in tests, in place of the time since started
	crash   func(point string)
	notify  notifier
	engine  roomEngine
	filter  *filter
	outbox  *outbox
	stir    stir
	rate    commandRate
	version string
	probe   *probe.Module

	wake      chan struct{}
	reconcile chan struct{}
	declines  chan id.RoomID
	orders    chan order
	ended     chan error    // another process has taken over
	bodies    chan struct{} // transactions that are being read and stored

	connected atomic.Bool  // the homeserver takes the module's token
	linked    atomic.Bool  // the homeserver's ping came back
	heard     atomic.Int64 // when the homeserver last called the module, in Unix milliseconds
	away      atomic.Int64 // since when the homeserver does not answer, in Unix milliseconds; 0 while it does
	drained   atomic.Bool  // the inbox was empty once
	skipped   atomic.Bool  // a transaction was skipped; rooms must be compared
	stopping  atomic.Bool  // the module ends
	heartbeat atomic.Int64 // of the engine's goroutine, monotonic
}

// New makes a module. Keys that the database lacks are made here.
func New(ctx context.Context, o Options) (*Service, error) {
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Probe != nil {
		o.crash = o.Probe.Point
	}
	if o.crash == nil {
		o.crash = atPoint
	}
	keys, made, err := EnsureKeys(ctx, o.Store, o.Rand)
	if err != nil {
		return nil, err
	}
	o.crash(crashKeysMade)
	if made > 0 {
		o.Log.Info().Int("keys", made).Msg("Made the keys that the database lacked")
	}
	known, err := o.Store.KnownRooms(ctx)
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg: o.Config, store: o.Store, hs: o.Homeserver, metrics: o.Metrics, log: o.Log, rand: o.Rand, keys: keys, now: o.Now,
		started: time.Now(), crash: o.crash, version: o.Version, probe: o.Probe, notify: newNotifier(o.Getenv),
		filter: &filter{
			bot: o.Homeserver.UserID(), accepts: o.Config.AcceptsInviteFrom, maximum: o.Config.Rooms.Maximum,
			now: o.Now, known: make(map[id.RoomID]struct{}, len(known)), left: make(map[id.RoomID]struct{}),
		},
		wake:      make(chan struct{}, 1),
		reconcile: make(chan struct{}, 1),
		declines:  make(chan id.RoomID, 100),
		orders:    make(chan order, commandsWaiting),
		ended:     make(chan error, 1),
		bodies:    make(chan struct{}, bodiesAtOnce),
	}
	for room, status := range known {
		s.filter.add(room)
		s.noteStatus(room, status)
	}
	s.outbox = &outbox{
		hs: s.hs, store: s.store, metrics: s.metrics, parallel: o.Config.Outbox.Parallel,
		backoff: o.Config.Outbox.Backoff.D(), maximum: o.Config.Outbox.BackoffMaximum.D(),
		now: o.Now, settled: s.Wake, crash: o.crash, wake: make(chan struct{}, 1),
	}
	deps := Deps{
		HS: s.hs, Store: s.store, Keys: keys, Config: s.cfg, Metrics: s.metrics,
		Monotonic: s.monotonic, Rand: o.Rand, Wake: s.Wake, WakeOutbox: s.outbox.Wake,
		HoldRoom: s.outbox.HoldRoom, NoteStatus: s.noteStatus, Now: o.Now, crash: o.crash, inline: o.Probe != nil,
	}
	if o.newEngine != nil {
		s.engine = o.newEngine(deps)
	} else {
		s.engine = NewEngine(deps)
	}
	if o.Probe != nil {
		s.underProbe(o.Probe)
	}
	return s, nil
}

func (s *Service) monotonic() time.Duration {
	if s.clock != nil {
		return s.clock()
	}
	return time.Since(s.started)
}

// noteStatus lets the filter know which rooms the bot is in.
func (s *Service) noteStatus(room id.RoomID, status store.RoomStatus) {
	if status == store.RoomLeft {
		s.filter.leave(room)
	} else {
		s.filter.add(room)
	}
}

// Wake asks for a round over the inbox.
func (s *Service) Wake() { poke(s.wake) }

func (s *Service) wakeReconcile() { poke(s.reconcile) }

// wakeGapCheck makes the engine compare rooms with their history, after
// something the homeserver pushed had to be skipped.
func (s *Service) wakeGapCheck() {
	s.skipped.Store(true)
	s.Wake()
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *Service) decline(room id.RoomID) {
	select {
	case s.declines <- room:
	default: // the invitation stays open; nothing depends on it
	}
}

// Run serves until ctx ends, then finishes what it has begun within
// [ShutdownTime]. It returns nil after an orderly stop.
func (s *Service) Run(ctx context.Context) error {
	listener, err := listen(s.cfg.AppService.Hostname, s.cfg.AppService.Port)
	if err != nil {
		return err
	}
	servers := []*http.Server{newServer(s.Handler())}
	listeners := []net.Listener{listener}
	if s.cfg.Metrics.Enabled && s.cfg.Metrics.Listen != "" {
		l, err := net.Listen("tcp", s.cfg.Metrics.Listen)
		if err != nil {
			_ = listener.Close()
			return fmt.Errorf("appservice: cannot listen for metrics: %w", err)
		}
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", s.metrics.Handler())
		servers, listeners = append(servers, newServer(mux)), append(listeners, l)
	}
	// Not before the address is taken: a second start by mistake ends there and
	// leaves the running module in peace.
	if err := s.store.Own(ctx); err != nil {
		for _, l := range listeners {
			_ = l.Close()
		}
		return err
	}
	s.log.Info().Str("address", listener.Addr().String()).Msg("Listening for the homeserver")

	work, cancel := context.WithCancel(s.log.WithContext(context.WithoutCancel(ctx)))
	defer cancel()
	failed := make(chan error, len(servers))
	var serving, working sync.WaitGroup
	for i, server := range servers {
		serving.Go(func() {
			if err := server.Serve(listeners[i]); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("appservice: serving failed: %w", err)
			}
		})
	}
	for name, task := range map[string]func(context.Context){
		"engine": s.runEngine, "outbox": s.runOutbox, "link": s.runLink, "away": s.runAway,
		"chores": s.runChores, "beat": s.runBeat, "gauges": s.runGauges, "declines": s.runDeclines, "commands": s.runCommands, "invites": s.runInvites, "watchdog": s.runWatchdog,
	} {
		working.Go(func() { s.guard(work, name, task) })
	}

	select {
	case <-ctx.Done():
	case err = <-failed:
	case err = <-s.ended:
	}
	s.stopping.Store(true)
	s.tellSystemd("STOPPING=1")
	s.log.Info().Msg("Stopping")
	deadline, stop := context.WithTimeout(context.Background(), ShutdownTime)
	defer stop()
	for _, server := range servers {
		if closeErr := server.Shutdown(deadline); closeErr != nil {
			s.log.Warn().Err(closeErr).Msg("Some requests were cut off")
			_ = server.Close()
		}
	}
	serving.Wait()
	cancel()
	finished := make(chan struct{})
	go func() { working.Wait(); close(finished) }()
	select {
	case <-finished:
	case <-deadline.Done():
		return errors.Join(err, errors.New("appservice: some work did not end in time; it is taken up at the next start"))
	}
	// Only now may another process go on where this one ended.
	if releaseErr := s.store.Release(deadline); releaseErr != nil {
		s.log.Warn().Err(releaseErr).Msg("Could not hand over the database, another process waits a few seconds for it")
	}
	return err
}

// guard runs a task and starts it again if an invariant breaks in it.
func (s *Service) guard(ctx context.Context, name string, task func(context.Context)) {
	for ctx.Err() == nil {
		if func() (ended bool) {
			defer func() {
				if cause := recover(); cause != nil {
					s.panicked(name, cause)
				}
			}()
			task(ctx)
			return true
		}() {
			return
		}
		sleep(ctx, time.Second)
	}
}

// sleep waits, and tells whether ctx still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (s *Service) runOutbox(ctx context.Context) {
	for !s.connected.Load() {
		if !sleep(ctx, 200*time.Millisecond) {
			return
		}
	}
	s.outbox.run(ctx)
}

// runLink makes the bot's account work and asks the homeserver to call back.
// The call back also ends the homeserver's own waiting after a failure.
func (s *Service) runLink(ctx context.Context) {
	wait := time.Second
	for {
		err := s.hs.EnsureBot(ctx, s.cfg.AppService.Bot.Displayname)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Error().Err(err).Dur("retry_in", wait).Msg("The homeserver does not accept the module yet, see `matrix-mls doctor`")
		if !sleep(ctx, wait) {
			return
		}
		wait = min(2*wait, 30*time.Second)
	}
	s.connected.Store(true)
	s.log.Info().Stringer("user_id", s.hs.UserID()).Msg("The homeserver accepts the module")
	s.publishProfile(ctx)
	wait = time.Second
	for {
		took, err := s.hs.Ping(ctx, s.nonce("ping"))
		switch {
		case err == nil:
			s.linked.Store(true)
			s.log.Info().Dur("duration", took).Msg("The homeserver reaches the module")
		case ctx.Err() != nil:
			return
		case errors.Is(err, homeserver.ErrNotFound) && s.callBack(ctx):
			s.linked.Store(true)
			s.log.Info().Msg("The homeserver reaches the module")
			return
		default:
			s.linked.Store(false)
			s.log.Error().Err(err).Dur("retry_in", wait).Msg("The homeserver does not reach the module, see `matrix-mls doctor`")
		}
		if err == nil {
			wait = 10 * time.Minute
		}
		if !sleep(ctx, wait) {
			return
		}
		wait = min(2*wait, 10*time.Minute)
	}
}

// publishProfile says in the bot's profile what it is, for clients of servers
// whose bot has another name. Homeservers without fields of one's own (before
// Matrix 1.16) refuse it, and nothing rests on it.
func (s *Service) publishProfile(ctx context.Context) {
	profile := rooms.ModuleProfile{Version: rooms.Version, ReceiptKey: rooms.Bytes(s.keys.Receipt.Public().(ed25519.PublicKey))}
	want, err := json.Marshal(profile)
	if err != nil {
		s.log.Error().Err(err).Msg("Could not write the bot's profile")
		return
	}
	if have, err := s.hs.ProfileField(ctx, s.hs.UserID(), rooms.KeyModule); err == nil {
		var decoded *rooms.ModuleProfile
		if decoded, err = rooms.DecodeModuleProfile(have); err == nil && decoded.Version == profile.Version && bytes.Equal(decoded.ReceiptKey, profile.ReceiptKey) {
			return
		}
	}
	if err := s.hs.SetProfileField(ctx, rooms.KeyModule, json.RawMessage(want)); err != nil {
		s.log.Debug().Err(err).Msg("The homeserver does not take the module's profile field")
	}
}

// callBack tests the link where the homeserver has no ping: what the bot sends
// into a room of its own comes back as a transaction.
func (s *Service) callBack(ctx context.Context) bool {
	before := s.heard.Load()
	if _, err := SendProbe(ctx, s.hs, s.store, s.nonce("probe"), 1); err != nil {
		s.log.Warn().Err(err).Msg("Could not test the link to the homeserver")
		return false
	}
	for range 100 {
		if s.heard.Load() > before {
			return true
		}
		if !sleep(ctx, 100*time.Millisecond) {
			return false
		}
	}
	return false
}

func (s *Service) nonce(prefix string) string {
	var b [9]byte
	if _, err := io.ReadFull(s.rand, b[:]); err != nil {
		return prefix + "-0"
	}
	return prefix + "-" + hex.EncodeToString(b[:])
}

// runDeclines leaves rooms whose invitation is not taken.
func (s *Service) runDeclines(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case room := <-s.declines:
			if err := s.hs.Leave(ctx, room, "This module does not serve rooms of this inviter"); err != nil {
				s.log.Warn().Err(err).Stringer("room_id", room).Msg("Could not decline an invitation")
			}
		}
	}
}

// runChores drops finished work that is old.
func (s *Service) runChores(ctx context.Context) {
	for sleep(ctx, time.Hour) {
		r := &s.cfg.Retention
		err := errors.Join(
			s.store.TrimInbox(ctx, r.RawEvents.D(), r.EventIDs.D()),
			s.store.TrimOutbox(ctx, r.Sent.D()),
			s.store.TrimRefusals(ctx, r.Refusals),
		)
		// Rooms where there never was a group, once no event of theirs is left.
		gone, trimErr := s.store.TrimRooms(ctx, r.EventIDs.D())
		for _, room := range gone {
			s.filter.forget(room)
		}
		if err = errors.Join(err, trimErr); err != nil && ctx.Err() == nil {
			s.log.Error().Err(err).Msg("Could not drop old rows")
		}
	}
}

// runGauges keeps the gauges true.
func (s *Service) runGauges(ctx context.Context) {
	for {
		s.takenOver(s.store.Owned(ctx))
		if err := s.gauge(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn().Err(err).Msg("Could not count what waits")
		}
		if !sleep(ctx, 10*time.Second) {
			return
		}
	}
}

func (s *Service) gauge(ctx context.Context) error {
	age := func(oldest time.Time) float64 {
		if oldest.IsZero() {
			return 0
		}
		return max(s.now().Sub(oldest).Seconds(), 0)
	}
	n, oldest, err := s.store.CountInbox(ctx, store.InboxNew)
	if err != nil {
		return err
	}
	s.metrics.Set(metrics.InboxRows, float64(n), string(store.InboxNew))
	s.metrics.Set(metrics.InboxAge, age(oldest))
	if n, _, err = s.store.CountInbox(ctx, store.InboxWaiting); err != nil {
		return err
	}
	s.metrics.Set(metrics.InboxRows, float64(n), string(store.InboxWaiting))
	n, oldest, _, err = s.store.CountOutbox(ctx, store.OutboxWaiting)
	if err != nil {
		return err
	}
	s.metrics.Set(metrics.OutboxRows, float64(n), string(store.OutboxWaiting))
	s.metrics.Set(metrics.OutboxAge, age(oldest))
	if n, _, _, err = s.store.CountOutbox(ctx, store.OutboxRefused); err != nil {
		return err
	}
	s.metrics.Set(metrics.OutboxRows, float64(n), "failed")
	counts, err := s.store.CountRooms(ctx)
	if err != nil {
		return err
	}
	for _, status := range []store.RoomStatus{store.RoomInvited, store.RoomJoined, store.RoomServing, store.RoomLeft} {
		s.metrics.Set(metrics.Rooms, float64(counts[status]), string(status))
	}
	ready := 0.0
	if s.notReady(ctx) == "" {
		ready = 1
	}
	s.metrics.Set(metrics.Ready, ready)
	return nil
}

// runWatchdog tells systemd that the module is ready, and lives.
func (s *Service) runWatchdog(ctx context.Context) {
	if s.notify.socket == "" {
		<-ctx.Done()
		return
	}
	for ready := false; ; {
		if !ready && s.connected.Load() && s.drained.Load() {
			ready = true
			s.tellSystemd("READY=1")
		}
		if s.notify.watchdog > 0 && s.monotonic()-time.Duration(s.heartbeat.Load()) < 5*time.Minute {
			s.tellSystemd("WATCHDOG=1")
		}
		wait := time.Second
		if ready {
			wait = time.Minute
			if s.notify.watchdog > 0 {
				wait = min(wait, s.notify.watchdog)
			}
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

func (s *Service) tellSystemd(state string) {
	if err := s.notify.send(state); err != nil {
		s.log.Warn().Err(err).Msg("Could not tell systemd how the module does")
	}
}
