// Package probe lets the simulator of whole rooms (package simulation) see what
// clients and modules hold, drive them by hand, stop them between two writes and
// leave out one of their rules. Being internal, it cannot be filled in by any
// program outside of this project; a client or module that is given no probe is
// as it always is.
package probe

import (
	"context"
	"encoding/json"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Client is given to client.Open.
type Client struct {
	// Point hears of each point between two writes. An error undoes the write
	// that is under way.
	Point func(point string) error
	// Without names rules to leave out: see the constants below.
	Without map[string]bool
	// Blind tells of a commit of others whether this device cannot open it: its
	// author encrypted no path secret, or a wrong one, to it.
	Blind func(ref federation.Ref) bool

	// Inspect is set by Open. It returns what the client holds of a room, nil if
	// it knows none. What it points to is the client's own: look, and change
	// nothing.
	Inspect func(room id.RoomID) *Held
	// Woken is set by Open. It tells whether Step and Flush are asked for.
	Woken func() (step, flush bool)
	// Idle is set by Open. It does what a /sync does that ended at a time without
	// anything new.
	Idle func(ctx context.Context, at time.Time) error
}

// Rules that a client can be told to leave out, so that a property breaks.
const (
	Barrier = "barrier" // nothing is sent to whom the room has put out
	Forget  = "forget"  // epochs are forgotten beyond the window
	Rejoin  = "rejoin"  // who cannot follow joins again
	Copies  = "copies"  // who runs on an old copy sends nothing before it has fresh keys

	Accept    = "accept"    // a Welcome goes out once its commit is accepted
	Packages  = "packages"  // a key package serves one Welcome
	Confirm   = "confirm"   // a newcomer is told that it is confirmed once what it came in with is final
	Proof     = "proof"     // a module's head is taken if it is proven
	Proposals = "proposals" // of proposals only a module's are taken, for a reason that the device sees
	Unready   = "unready"   // a list of modules that are not ready is given up
	Removes   = "removes"   // who is out goes before anybody comes in
	Once      = "once"      // a message that was sent again is shown once
	Stale     = "stale"     // nobody joins again on what lies below the newest final commit they know
	Behind    = "behind"    // who comes in again keeps the epochs it was in, for what comes late
	Admission = "admission" // who is in the room is let into the group by a member's user, not by being there
	Signed    = "signed"    // a device is let in if its user's self-signing key has signed it
	Resend    = "resend"    // what was sent on a branch that lost is sent again
	Durable   = "durable"   // a ratchet's step is on disk before its ciphertext leaves
	Leavers   = "leavers"   // a commit takes out who has left
)

// Rules that a module can be told to leave out.
const (
	Tags      = "tags"      // a commit counts if its author signed the confirmation tag that it has
	Inclusion = "inclusion" // a commit is not accepted that leaves in whose Remove the module has proposed for a while
)

// Held is what a client holds of a room's group.
type Held struct {
	Phase       string
	Machine     *federation.Machine // nil: none
	Epochs      map[federation.Ref]*mls.Group
	Join        federation.Ref // the commit that this device came in with
	Unconfirmed bool
	Pending     federation.Ref // the own commit that waits for its accept, zero if none does
	Queued      int            // messages that are not sent
	Blocked     []string       // why messages wait
	Members     map[id.UserID]rooms.Member
}

// Module is given to appservice.New. The module is then not to be run: it does
// one thing after another, when told to.
type Module struct {
	Clock func() time.Duration // monotonic
	// Point hears of each point between two writes.
	Point func(point string)
	// Without names rules to leave out: Tags, Inclusion.
	Without map[string]bool

	// These are set by New.
	Start   func(ctx context.Context) error                           // after New, once
	Deliver func(ctx context.Context, events []json.RawMessage) error // what a transaction of the homeserver does
	Round   func(ctx context.Context) (next time.Duration, err error) // one round over the inbox, and what is due
	Send    func(ctx context.Context) (wait time.Duration, err error) // sends what is due
	Woken   func() bool                                               // whether another round is asked for
	Machine func(room id.RoomID) *federation.Machine                  // nil: it follows no group
	Group   func(room id.RoomID, ref federation.Ref) (*mls.PublicGroup, error)
}
