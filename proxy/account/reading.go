package account

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
)

// State is what became of an encrypted event.
type State int

// The states of encrypted events.
const (
	Waiting  State = iota // the device has not come to it, or lacks the keys
	Opened                // Message has it
	Repeated              // it repeats a message that came under another event id
	Refused               // Reason says why
	Before                // it is from before the device was in the group
)

// Reading is what became of an encrypted event.
type Reading struct {
	State   State
	Message *client.Message
	Reason  string
}

// beyondRetention is the SDK's reason for an event of an epoch that the device
// was not in, or has forgotten.
const beyondRetention = "matrix/epoch-beyond-retention"

// Recent tells whether the device may not have heard yet of an event that was
// sent at the given time: its /sync may be behind the client's.
func Recent(at time.Time) bool { return time.Since(at) < 2*time.Minute }

// Read tells what became of an encrypted event that was sent at the given time.
func (a *Account) Read(ctx context.Context, room id.RoomID, event id.EventID, at time.Time) Reading {
	msg, err := a.cli.Message(ctx, room, event)
	if err == nil {
		return Reading{State: Opened, Message: msg}
	}
	if !errors.Is(err, store.ErrNotFound) {
		a.log.Err(err).Msg("A message cannot be read from the store")
		return Reading{State: Waiting}
	}
	rule, refused, err := a.cli.Refused(ctx, room, event)
	if err != nil {
		a.log.Err(err).Msg("Why a message was refused cannot be read from the store")
		return Reading{State: Waiting}
	}
	switch {
	case rule == beyondRetention:
		return Reading{State: Before}
	case refused:
		return Reading{State: Refused, Reason: rule}
	}
	seen, err := a.st.Seen(ctx, room, event)
	if err == nil && seen {
		return Reading{State: Repeated}
	}
	if Recent(at) {
		return Reading{State: Waiting}
	}
	if waits, err := a.st.InInbox(ctx, room, event); err == nil && !waits {
		return Reading{State: Before} // it never came by the device's own /sync
	}
	return Reading{State: Waiting}
}

// verifiedTime is for how long it is not asked again whether the device is
// signed.
const verifiedTime = 5 * time.Second

// Verified tells whether the device is signed by its user, as far as is known:
// rooms do not let others in.
func (a *Account) Verified(ctx context.Context) bool {
	verified, known := a.verification(ctx)
	return verified || !known
}

// verification tells whether the device is signed by its user, if that is known.
func (a *Account) verification(ctx context.Context) (verified, known bool) {
	a.verifiedMu.Lock()
	defer a.verifiedMu.Unlock()
	if time.Since(a.verifiedAt) < verifiedTime {
		return a.verified, true
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	own, err := a.ident.Devices(ctx, a.ident.UserID())
	if err != nil {
		return false, false
	}
	d := own.Devices[a.ident.DeviceID()]
	a.verified, a.verifiedAt = d != nil && d.CrossSigned, time.Now()
	return a.verified, true
}

// Session is what the homeserver makes of the device's token.
type Session int

// The states of a session.
const (
	SessionGood Session = iota // or it cannot be asked
	SessionSoft                // the homeserver wants the device to log in again: it stays the same
	SessionOver                // the homeserver has ended the device
)

// Session tells whether the homeserver still takes the device's token. It is not
// asked again for a while.
func (a *Account) Session(ctx context.Context) Session {
	a.verifiedMu.Lock()
	defer a.verifiedMu.Unlock()
	if time.Since(a.checkedAt) < verifiedTime {
		return a.session
	}
	// The answer is for whoever asks next, too: not only while this client waits.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	a.session, a.checkedAt = SessionGood, time.Now()
	switch err := a.ident.Check(ctx); {
	case errors.Is(err, identity.ErrSoftLogout):
		a.session = SessionSoft
	case errors.Is(err, identity.ErrTokenRejected):
		a.session = SessionOver
	}
	return a.session
}

// renewed forgets what was known of the session: there is another.
func (a *Account) renewed() {
	a.verifiedMu.Lock()
	defer a.verifiedMu.Unlock()
	a.checkedAt = time.Time{}
}

// Dir is the folder of the account.
func (a *Account) Dir() string { return a.dir }

// TakeAhead lets the device open messages that a client's /sync has brought, if nothing has to come before them; see
// client.Client.TakeAhead. events are those of a room's timeline, as they came.
func (a *Account) TakeAhead(ctx context.Context, room id.RoomID, events []json.RawMessage) {
	list := make([]*client.Event, 0, len(events))
	for _, raw := range events {
		evt := new(client.Event)
		if json.Unmarshal(raw, evt) != nil {
			break // the device's own /sync brings it
		}
		list = append(list, evt)
	}
	if err := a.cli.TakeAhead(ctx, room, list); err != nil {
		a.log.Err(err).Stringer("room_id", room).Msg("A message that a client was shown cannot be opened before the device's own sync brings it")
	}
}

// Await returns once the device has come to the events, or ctx ends. It tells whether it has.
func (a *Account) Await(ctx context.Context, room id.RoomID, events []id.EventID) bool {
	// A repeated message is no update: look again now and then.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		changed := a.Changed()
		left := events[:0:0]
		for _, event := range events {
			if a.Read(ctx, room, event, time.Now()).State == Waiting {
				left = append(left, event)
			}
		}
		if events = left; len(events) == 0 {
			return true
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

// AwaitRoom returns once the device knows a room, or ctx ends. For what is no
// room id, such as an alias, it does not wait.
func (a *Account) AwaitRoom(ctx context.Context, room id.RoomID) {
	for {
		changed := a.Changed()
		if _, err := a.cli.Room(ctx, room); err == nil || room == "" || room[0] != '!' {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// handle takes the client's updates.
func (a *Account) handle(ctx context.Context, u client.Update) {
	a.tell(ctx, u)
	if redaction, ok := u.(*client.Redaction); ok {
		a.unread.stale(redaction.Room)
		if err := a.DropFiles(ctx, redaction.Room, redaction.Target); err != nil {
			a.log.Err(err).Msg("The keys of a redacted message's files cannot be deleted")
		}
	}
	a.news()
}

// news wakes up those who wait for something new.
func (a *Account) news() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.changed)
	a.changed = make(chan struct{})
}

// Changed returns a channel that is closed with the next update.
func (a *Account) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}
