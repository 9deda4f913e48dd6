package appservice

import (
	"context"
	"io"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
)

// Deps is what the engine works with.
type Deps struct {
	HS      homeserver.Homeserver
	Store   *store.Store
	Keys    *Keys
	Config  *config.Config
	Metrics *metrics.Metrics

	Monotonic func() time.Duration // since the process started; never jumps
	Rand      io.Reader

	Wake       func() // asks for a round over the inbox and a Tick; safe from any goroutine
	WakeOutbox func() // to be called after a transaction that put rows to send
	// HoldRoom lets nothing be sent into a room for a while; zero ends that.
	// Dendrite loses its first join of a room if events come in around it.
	HoldRoom func(room id.RoomID, d time.Duration)
	// NoteStatus hears what the module has become in a room.
	NoteStatus func(room id.RoomID, status store.RoomStatus)

	Now func() time.Time // nil: time.Now

	crash  func(point string) // see crashPoints
	inline bool               // what asks the homeserver runs in the engine's goroutine
}

// roomEngine is the shell's view of the [Engine]. All methods are called from
// one goroutine, never two at a time. An error means storage or internal
// trouble, and the same call comes again; what an event holds is never an
// error. A panic is caught, counted and takes the event out of the way.
type roomEngine interface {
	// Start loads the rooms, once, after the database is up to date and the
	// homeserver answered.
	Start(ctx context.Context) error
	// HandleEvent takes one event out of the inbox: it does not return nil
	// before the row is marked as something else than new.
	HandleEvent(ctx context.Context, ev *store.InboxEvent) error
	// Recheck compares rooms with their history as soon as it can: those named,
	// or all, since something that the homeserver pushed had to be skipped.
	Recheck(ctx context.Context, rooms ...id.RoomID) error
	// Tick does what is due. It returns when it wants to be called again, on
	// the clock of Deps.Monotonic; 0 means when something comes in.
	Tick(ctx context.Context, now time.Duration) (next time.Duration, err error)
	// Sent and Failed run in the transaction that notes that the engine
	// knows what became of a row.
	Sent(ctx context.Context, row *store.OutboxRow, event id.EventID) error
	Failed(ctx context.Context, row *store.OutboxRow) error
}
