package account

import (
	"context"
	"maps"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/mls"
)

// Stock is how many key packages of a suite lie at the homeserver.
type Stock struct {
	Suite      mls.CipherSuite
	Have, Want int
	Known      bool // Have counts
}

// Status is what an account's device says of itself.
type Status struct {
	User          id.UserID
	Device        id.DeviceID
	Dir           string
	Verified      bool // signed by its user
	VerifiedKnown bool
	Session       Session
	Synced        bool // the device has heard from the homeserver since it was started
	Sessions      int  // of clients that use the proxy
	Stock         []Stock
	Refused       map[string]uint64 // events since the start, by rule
}

// SoftLogout tells whether the device has to log in again, and stays the same.
func (s *Status) SoftLogout() bool { return s.Session == SessionSoft }

// Ended tells whether the homeserver has ended the device.
func (s *Status) Ended() bool { return s.Session == SessionOver }

// All are the accounts whose devices run, by user.
func (s *Set) All() []*Account {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Account, 0, len(s.accounts))
	for _, user := range slices.Sorted(maps.Keys(s.accounts)) {
		out = append(out, s.accounts[user])
	}
	return out
}

// Broken are the folders of accounts that could not be opened.
func (s *Set) Broken() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.broken))
}

// Status tells how the device is. It may ask the homeserver.
func (a *Account) Status(ctx context.Context) (*Status, error) {
	sessions, err := a.sessions(ctx)
	if err != nil {
		return nil, err
	}
	s := &Status{
		User: a.ident.UserID(), Device: a.ident.DeviceID(), Dir: a.dir, Synced: a.heard(ctx),
		Sessions: len(sessions), Refused: a.cli.Refusals(),
	}
	s.Session = a.Session(ctx)
	s.Verified, s.VerifiedKnown = a.verification(ctx)
	have, want := a.ident.Stock()
	for _, cs := range a.ident.Suites() {
		s.Stock = append(s.Stock, Stock{Suite: cs, Have: have[cs], Want: want[cs], Known: have != nil})
	}
	return s, nil
}

// heard tells whether the device has heard from the homeserver since it was
// started, or does so in a moment.
func (a *Account) heard(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second) // what was asked before may have taken all of ctx
	defer cancel()
	return a.Ready(ctx) == nil
}
