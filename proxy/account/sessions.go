package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
)

// sessionsKey keeps the devices of the clients that use the proxy.
const sessionsKey = "proxy/sessions"

// ownKeysKey keeps those of them whose clients encrypt by themselves, see NoteKeys.
const ownKeysKey = "proxy/own-keys"

// maxSessions bounds them: the oldest is forgotten.
const maxSessions = 100

func (a *Account) sessions(ctx context.Context) ([]id.DeviceID, error) {
	return a.devices(ctx, sessionsKey)
}

// devices reads a list of devices.
func (a *Account) devices(ctx context.Context, key string) (all []id.DeviceID, err error) {
	raw, err := a.st.GetKV(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("account: sessions: %w", err)
	}
	return all, nil
}

// putSessions keeps the sessions, and of what is noted of them that of no other.
func (a *Account) putSessions(ctx context.Context, all []id.DeviceID) error {
	noted, err := a.devices(ctx, ownKeysKey)
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(noted), func(d id.DeviceID) bool { return !slices.Contains(all, d) })
	return a.st.Do(ctx, func(ctx context.Context) error {
		if len(left) < len(noted) {
			if err := a.putDevices(ctx, ownKeysKey, left); err != nil {
				return err
			}
		}
		return a.putDevices(ctx, sessionsKey, all)
	})
}

func (a *Account) putDevices(ctx context.Context, key string, all []id.DeviceID) error {
	raw, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("account: sessions: %w", err)
	}
	return a.st.PutKV(ctx, key, raw)
}

// NoteKeys notes that a client published keys of its own for its device: it encrypts
// by itself, in rooms without MLS.
func (a *Account) NoteKeys(ctx context.Context, session id.DeviceID) error {
	a.sessionMu.Lock()
	defer a.sessionMu.Unlock()
	all, err := a.sessions(ctx)
	if err != nil || !slices.Contains(all, session) {
		return err
	}
	noted, err := a.devices(ctx, ownKeysKey)
	if err != nil || slices.Contains(noted, session) {
		return err
	}
	return a.putDevices(ctx, ownKeysKey, append(noted, session))
}

// HasKeys tells whether that was noted of a client's session.
func (a *Account) HasKeys(ctx context.Context, session id.DeviceID) (bool, error) {
	noted, err := a.devices(ctx, ownKeysKey)
	return slices.Contains(noted, session), err
}

// addSession notes that a client uses the account.
func (a *Account) addSession(ctx context.Context, session id.DeviceID) error {
	a.sessionMu.Lock()
	defer a.sessionMu.Unlock()
	all, err := a.sessions(ctx)
	if err != nil || slices.Contains(all, session) {
		return err
	}
	all = append(all, session)
	if n := len(all) - maxSessions; n > 0 {
		all = slices.Delete(all, 0, n)
	}
	return a.putSessions(ctx, all)
}

// dropSession forgets a client and returns how many are left.
func (a *Account) dropSession(ctx context.Context, session id.DeviceID) (left int, err error) {
	a.sessionMu.Lock()
	defer a.sessionMu.Unlock()
	all, err := a.sessions(ctx)
	if err != nil {
		return 0, err
	}
	all = slices.DeleteFunc(all, func(d id.DeviceID) bool { return d == session })
	return len(all), a.putSessions(ctx, all)
}

// pruneSessions forgets the clients whose devices the homeserver no longer has,
// because another session ended theirs, and returns how many are left: none if
// the MLS device's own session was ended too, as a change of the password does.
// If the homeserver cannot be asked, all are.
func (a *Account) pruneSessions(ctx context.Context) (left int, err error) {
	resp, err := a.ident.Client().GetDevicesInfo(ctx)
	there := map[id.DeviceID]bool{}
	if err == nil {
		for _, d := range resp.Devices {
			there[d.DeviceID] = true
		}
	}
	over := false
	if errors.Is(err, mautrix.MUnknownToken) {
		check := a.ident.Check(ctx)
		over = errors.Is(check, identity.ErrTokenRejected) && !errors.Is(check, identity.ErrSoftLogout)
	}
	a.sessionMu.Lock()
	defer a.sessionMu.Unlock()
	all, listErr := a.sessions(ctx)
	if listErr != nil {
		return 0, listErr
	}
	if over {
		return 0, a.putSessions(ctx, nil)
	}
	if err != nil || !there[a.ident.DeviceID()] { // no list, or not this account's
		return len(all), nil
	}
	kept := slices.DeleteFunc(slices.Clone(all), func(d id.DeviceID) bool { return !there[d] })
	if len(kept) == len(all) {
		return len(all), nil
	}
	return len(kept), a.putSessions(ctx, kept)
}

// Has tells whether a client's session was made through this proxy.
func (a *Account) Has(ctx context.Context, session id.DeviceID) (bool, error) {
	all, err := a.sessions(ctx)
	return slices.Contains(all, session), err
}
