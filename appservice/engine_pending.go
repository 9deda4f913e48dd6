package appservice

import (
	"context"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
)

// Engine follows the rooms.
type Engine struct{ d Deps }

// NewEngine makes an engine.
func NewEngine(d Deps) *Engine { return &Engine{d} }

// Start implements the shell's view.
func (e *Engine) Start(context.Context) error { return nil }

// HandleEvent implements the shell's view.
func (e *Engine) HandleEvent(ctx context.Context, ev *store.InboxEvent) error {
	return e.d.Store.FinishInbox(ctx, ev.EventID, store.InboxIgnored, "")
}

// Recheck implements the shell's view.
func (e *Engine) Recheck(context.Context) error { return nil }

// Tick implements the shell's view.
func (e *Engine) Tick(context.Context, time.Duration) (time.Duration, error) { return 0, nil }

// Sent implements the shell's view.
func (e *Engine) Sent(context.Context, *store.OutboxRow, id.EventID) error { return nil }

// Failed implements the shell's view.
func (e *Engine) Failed(context.Context, *store.OutboxRow) error { return nil }
