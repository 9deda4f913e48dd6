package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Identity is what the engine needs of the device it runs on. It is
// implemented by *identity.Identity.
type Identity interface {
	UserID() id.UserID
	DeviceID() id.DeviceID
	SignatureKey(cs mls.CipherSuite) (mls.SignaturePrivateKey, error)
	LeafOptions(cs mls.CipherSuite) (mls.LeafOptions, error)
	Sync(ctx context.Context, req identity.SyncRequest) (*identity.SyncResponse, error)
	ProcessSync(ctx context.Context, resp *identity.SyncResponse) error
	ProcessRespSync(ctx context.Context, resp *mautrix.RespSync) error
	DevicesOf(ctx context.Context, users []id.UserID) (map[id.UserID]*identity.UserDevices, error)
	Outdate(ctx context.Context, user id.UserID) error
	OnDevicesChanged(fn func(user id.UserID))
	ClaimKeyPackages(ctx context.Context, cs mls.CipherSuite, targets []identity.Target) ([]identity.Claimed, error)
	Bundle(ctx context.Context, refs []mls.KeyPackageRef) (bundle *mls.KeyPackageBundle, shared bool, err error)
	ConsumeBundle(ctx context.Context, ref mls.KeyPackageRef) error
	ShareBundles(ctx context.Context) error
}

// Limits bounds what others can make a client hold or do. Zero fields mean the
// defaults.
type Limits struct {
	Waiting    int           // events of one room that wait for something; default 500, and 20 times as many while a file is awaited
	WaitingAge time.Duration // how long an event waits before it is reported; default 10 minutes
	PastEpochs int           // epochs kept below the newest final, for late messages; default 3
	PastAge    time.Duration // how long they are kept, and branches that lost; default 1 hour
	GapPages   int           // pages of 100 events read to fill one gap; default 50
	// GapBytes is what the rooms of one /sync may hold together, events that it left
	// out among it, until the gaps of the others are read one by one; default 16 MiB.
	GapBytes int
	FileSize int64 // bytes of one attachment; default 100 MiB
	// History bounds the messages of a room that are given to, or taken from,
	// another device, and HistoryPages the pages of 100 events that are read to
	// compare them with the homeserver's; defaults 10,000 and 200.
	History      int
	HistoryPages int
	// ReceiptDevices is the size of a group above which delivery receipts are sent
	// on request alone, see SendOptions.Receipts; default 10. Each device sends its
	// own, two a minute: those of 50 would be most of a room's events.
	ReceiptDevices int
	// Admissions bounds the users of a room whose admission to its group is kept;
	// default 4,096. Of those in the group already, a sixteenth of it is kept.
	Admissions int
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Waiting, 500)
	def(&l.PastEpochs, 3)
	def(&l.GapPages, 50)
	def(&l.GapBytes, 16<<20)
	def(&l.History, 10_000)
	def(&l.HistoryPages, 200)
	def(&l.ReceiptDevices, 10)
	def(&l.Admissions, 4096)
	if l.PastAge <= 0 {
		l.PastAge = time.Hour
	}
	if l.WaitingAge <= 0 {
		l.WaitingAge = 10 * time.Minute
	}
	if l.FileSize <= 0 {
		l.FileSize = 100 << 20
	}
	return l
}

// Options configures a Client. Store and Identity are required.
type Options struct {
	Store     *store.Store
	Identity  Identity
	Transport Transport // required unless Identity has a method Client() *mautrix.Client
	Log       zerolog.Logger
	// Suites is the order in which a new room's cipher suite is chosen; nil
	// means rooms.DefaultSuiteOrder.
	Suites []mls.CipherSuite
	// Handler receives messages and everything else worth telling a person.
	// It runs on one goroutine, in order.
	Handler func(ctx context.Context, update Update)
	Limits  Limits
	// AskHistory asks the user's other devices, once for each room, for the
	// messages from before this device joined. See [Client.AskHistory].
	AskHistory bool
	// Receipts has this device tell the group what it has received and decrypted,
	// and keep what others say of its messages: see [Client.Delivery]. It does so in
	// groups of up to Limits.ReceiptDevices devices, and in larger ones where a
	// message asks for it.
	Receipts bool
	// NoHistory has this device give nobody the messages that it has, not even
	// the user's own verified devices.
	NoHistory bool

	// For tests: the wall clock, a monotonic clock and randomness. They must be
	// safe for concurrent use.
	Now       func() time.Time
	Monotonic func() time.Duration
	Rand      io.Reader
	// OnSeal is mls.Config.OnSeal: a test records message keys by it.
	OnSeal func(use, content [32]byte)
	// Probe is for the simulator.
	Probe *probe.Client
}

// Errors that callers branch on.
var (
	ErrNotMLS  = errors.New("client: the room is not an MLS room")
	ErrNoGroup = errors.New("client: this device is not in the room's group yet")
	ErrNoRoom  = errors.New("client: the room is not known; join it first")
	ErrRemoved = errors.New("client: this device was removed from the room's group")
	// ErrSuperseded is an [ErrRemoved], too.
	ErrSuperseded   = fmt.Errorf("%w: another copy of this device, perhaps one restored from a backup, is in use", ErrRemoved)
	ErrModuleSilent = errors.New("client: the module has not answered yet; the room is encrypted now")
	ErrNoModule     = errors.New("client: no server of the room runs a module, so nobody can order its commits; invite a user of a server with one")
	ErrTooLarge     = errors.New("client: the event is too large; send it as a file")
	ErrBarrier      = errors.New("client: sending waits until only devices that may read are in the group")
	ErrClosed       = errors.New("client: the client is closed")
	ErrNotAllowed   = errors.New("client: the room's rules do not let this user do that")
)

// Client is one device of one account with its MLS groups. All methods are
// safe for concurrent use.
type Client struct {
	st     *store.Store
	ident  Identity
	hs     Transport
	log    zerolog.Logger
	limits Limits
	suites []mls.CipherSuite
	now    func() time.Time
	mono   func() time.Duration
	rand   io.Reader
	mlsCfg *mls.Config

	mu      sync.Mutex
	rooms   map[id.RoomID]*room
	rows    []*outRow // the outbox, in order
	waiters map[int64][]chan sendResult
	fetches fetches
	beside  bool          // files are fetched beside the engine's turns
	limited time.Duration // monotonic time before which nothing is sent into rooms
	// receiptsAt is the monotonic time before which no delivery receipt is made.
	receiptsAt time.Duration
	// resendAt is the monotonic time before which no message is sent again because it is
	// asked for.
	resendAt time.Duration
	devs     map[id.UserID]*identity.UserDevices // as last read
	notices  deviceNotices
	refusals map[string]uint64
	creating int // rooms that are being made
	// shareBundles: another copy of the store was noticed, which has its key packages, too.
	shareBundles bool
	plain        map[id.RoomID]bool        // rooms that the guard found to be none of ours
	patience     time.Duration             // memberWait
	pageWait     time.Duration             // pageTimeout
	steps        uint64                    // rounds of the engine
	crashAt      func(point string) error  // set by tests
	without      map[string]bool           // rules that the simulator leaves out
	inFiles      bool                      // a test has all commits in files, as in a large room
	blind        func(federation.Ref) bool // commits that it lets this device not open; nil: none

	// History that is handed over; see history.go.
	tasks                 []*historyTask
	given                 map[string]lastGiven
	histWake              chan struct{}
	askHistory, noHistory bool
	walks                 map[*historyWalk]bool
	receipts              bool // of delivery

	handler func(ctx context.Context, update Update)
	updates []Update // not durable; bounded
	wake    chan struct{}
	outWake chan struct{}
	updWake chan struct{}

	startMu sync.Mutex
	cancel  context.CancelFunc
	done    sync.WaitGroup
	synced  chan struct{} // closed after the first sync
	fedAt   time.Duration // when Feed had filed its last response
	syncAt  int64         // when the last response was filed, unix milliseconds; 0: unknown
	clocks  clocks        // of servers, against the one that syncAt is read on
	once    sync.Once
	fatal   error
	closed  bool // Close was called, and Start not again
}

const maxUpdates = 1000

// Open loads the rooms from the store. Nothing is sent before Start.
func Open(ctx context.Context, o Options) (*Client, error) {
	if o.Store == nil || o.Identity == nil {
		return nil, errors.New("client: Open needs a store and an identity")
	}
	c := &Client{
		st: o.Store, ident: o.Identity, hs: o.Transport, limits: o.Limits.withDefaults(), suites: o.Suites,
		log: o.Log.With().Str("component", "mls").Logger(), now: o.Now, mono: o.Monotonic, rand: o.Rand,
		rooms: map[id.RoomID]*room{}, waiters: map[int64][]chan sendResult{}, handler: o.Handler,
		wake: make(chan struct{}, 1), outWake: make(chan struct{}, 1), updWake: make(chan struct{}, 1),
		devs: map[id.UserID]*identity.UserDevices{}, synced: make(chan struct{}),
		given: map[string]lastGiven{}, walks: map[*historyWalk]bool{}, histWake: make(chan struct{}, 1), askHistory: o.AskHistory, noHistory: o.NoHistory, receipts: o.Receipts,
		patience: memberWait, pageWait: pageTimeout,
	}
	if c.hs == nil {
		source, ok := o.Identity.(interface{ Client() *mautrix.Client })
		if !ok || source.Client() == nil {
			return nil, errors.New("client: Open needs a transport or an identity that is logged in")
		}
		c.hs = NewTransport(source.Client())
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.mono == nil {
		start := time.Now()
		c.mono = func() time.Duration { return time.Since(start) }
	}
	if c.rand == nil {
		c.rand = rand.Reader
	}
	if len(c.suites) == 0 {
		c.suites = rooms.DefaultSuiteOrder()
	}
	c.mlsCfg = &mls.Config{Rand: c.rand, Now: c.now, Authenticator: rooms.Authenticator{}, OnSeal: o.OnSeal, PaddingSize: 64}
	c.mlsCfg.ExperimentalSuites = slices.ContainsFunc(c.offers(), mls.CipherSuite.Experimental)
	if err := c.load(ctx); err != nil {
		return nil, err
	}
	c.ident.OnDevicesChanged(c.devicesChanged)
	if o.Probe != nil {
		c.crashAt, o.Probe.Inspect, o.Probe.Woken, o.Probe.Idle, c.without, c.blind = o.Probe.Point, c.inspect, c.woken, c.idled, o.Probe.Without, o.Probe.Blind
	}
	return c, nil
}

// UserID returns the account's user id.
func (c *Client) UserID() id.UserID { return c.ident.UserID() }

// DeviceID returns the device's id.
func (c *Client) DeviceID() id.DeviceID { return c.ident.DeviceID() }

// Start syncs, processes and sends until ctx ends or Close is called.
func (c *Client) Start(ctx context.Context) error { return c.start(ctx, false) }

// StartFed does what Start does except for /sync: the caller's own syncer
// hands every response to Feed. A device must not be synced twice, since the
// homeserver deletes to-device events once one of the two has them.
func (c *Client) StartFed(ctx context.Context) error { return c.start(ctx, true) }

func (c *Client) start(ctx context.Context, fed bool) error {
	c.startMu.Lock()
	defer c.startMu.Unlock()
	if c.cancel != nil {
		return errors.New("client: already started")
	}
	ctx, c.cancel = context.WithCancel(ctx)
	c.mu.Lock()
	c.closed, c.beside = false, true
	c.mu.Unlock()
	loops := []func(context.Context){c.engineLoop, c.outboxLoop, c.updateLoop, c.historyLoop, c.settleLoop}
	if !fed {
		loops = append(loops, c.syncLoop)
	}
	for _, loop := range loops {
		c.done.Go(func() { loop(ctx) })
	}
	return nil
}

// Close stops what Start began and waits for it. The store stays open. Calls
// that wait, and later ones that would, return ErrClosed; what is in the outbox
// goes out once the client is started again. When Close returns nil all is on disk.
func (c *Client) Close() error {
	c.startMu.Lock()
	defer c.startMu.Unlock()
	if c.cancel == nil {
		return nil
	}
	c.cancel()
	// Who waits is told first: it may be the handler, which the loops wait for.
	c.tellClosed()
	c.done.Wait()
	c.cancel = nil
	err := c.st.Settle(context.Background())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beside = false
	return errors.Join(c.fatal, err)
}

// tellClosed ends all waiting for what a closed client does not do any more.
func (c *Client) tellClosed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for rowID, list := range c.waiters {
		for _, ch := range list {
			ch <- sendResult{err: ErrClosed}
		}
		delete(c.waiters, rowID)
	}
	for _, r := range c.rooms {
		r.notify()
	}
}

// settleTime bounds how old what a power cut takes from a client that has started can
// be: what came is written without waiting for the disk.
const settleTime = time.Second

// settleLoop has on disk what was written without waiting for it, once for all that
// was written in a while.
func (c *Client) settleLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return // Close settles
		case <-c.st.Unsettled():
		}
		for wait := settleTime; ; wait = 5 * settleTime {
			if sleep(ctx, wait) != nil {
				return
			}
			err := c.st.Settle(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			c.log.Err(err).Msg("What came is not on disk yet, will try again")
		}
		if err := c.fold(ctx); err != nil {
			c.log.Err(err).Msg("The store's log cannot be folded into its file, will try again")
		}
	}
}

// foldCalm is how long nothing is written before the store's log is folded, unless that is waited for in vain.
const (
	foldCalm  = 100 * time.Millisecond
	foldTries = 5
)

// fold folds the store's write-ahead log where it has grown, between messages: one that came meanwhile would wait.
func (c *Client) fold(ctx context.Context) error {
	for range foldTries {
		if !c.st.Grown() {
			return nil
		}
		before := c.st.Written()
		if sleep(ctx, foldCalm) != nil {
			return nil
		}
		if c.st.Written() == before {
			break
		}
	}
	return c.st.Fold(ctx)
}

// engineLoop processes rooms whenever something came or a timer is due.
func (c *Client) engineLoop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next := c.Step(ctx)
		wait := time.Minute
		if next > 0 {
			wait = max(next-c.mono(), 0)
		}
		timer.Reset(min(wait, time.Minute))
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
		}
	}
}

// Step does everything that can be done now except sending: it processes the
// inbox, fetches what is missing, and makes the commits that are due. It
// returns when, on the monotonic clock, it wants to be called again (0: when
// something comes). Start calls it; tests call it by themselves.
func (c *Client) Step(ctx context.Context) (next time.Duration) {
	c.mu.Lock()
	list := make([]*room, 0, len(c.rooms))
	for _, r := range c.rooms {
		list = append(list, r)
	}
	c.mu.Unlock()
	sortRooms(list)
	for _, r := range list {
		if ctx.Err() != nil {
			return 0
		}
		at := c.stepRoom(ctx, r.id)
		if at > 0 && (next == 0 || at < next) {
			next = at
		}
	}
	c.mu.Lock()
	c.steps++
	c.mu.Unlock()
	return next
}

func (c *Client) poke() { notifyChan(c.wake) }

func notifyChan(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// newID returns a random identifier.
func (c *Client) newID() (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(c.rand, b[:]); err != nil {
		return "", fmt.Errorf("client: randomness: %w", err)
	}
	return fmt.Sprintf("%x", b), nil
}

// crashpoint lets a test stop the client at a named write point.
func (c *Client) crashpoint(point string) error {
	if c.crashAt != nil {
		return c.crashAt(point)
	}
	return nil
}
