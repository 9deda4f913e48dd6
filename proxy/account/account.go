// Package account holds the MLS devices behind the proxy: for each account that
// logged in through it one SDK client, a Matrix device of its own with its own
// /sync and its own sealed store.
package account

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Options says where accounts live and what they talk to.
type Options struct {
	// Dir has a folder for each account.
	Dir string
	// Homeserver is the base URL.
	Homeserver string
	// DeviceName is shown in the users' lists of sessions.
	DeviceName string
	// HTTP is the client for the homeserver, nil for the SDK's own.
	HTTP *http.Client
	Log  zerolog.Logger
	// Getenv finds the store key; see store.LoadKey.
	Getenv func(string) string
	// Serve, if set, lets other programs of the same person use a device that
	// has started, until the function it returns is called.
	Serve func(ctx context.Context, d Device) (stop func(), err error)
	// Note tells the person who runs the proxy something, in one line.
	Note func(format string, args ...any)
}

// Device is an MLS device that has started.
type Device struct {
	Dir      string
	Store    *store.Store
	Identity *identity.Identity
	Client   *client.Client
}

// ErrNoDevice reports a user for whom the proxy has no MLS device.
var ErrNoDevice = errors.New("account: this proxy has no device of that user; log in through the proxy")

// ErrUnavailable reports a user whose MLS device is there and cannot be used now.
var ErrUnavailable = errors.New("account: the MLS device of that user cannot be used now; the proxy said why when it started")

// Set is the accounts of one proxy. It is safe for concurrent use.
type Set struct {
	o Options

	mu       sync.Mutex
	accounts map[id.UserID]*Account
	broken   map[string]bool // folders of accounts that could not be opened
	closed   bool
	making   map[id.UserID]*sync.Mutex
}

// Open opens and starts every account that is there. An account that cannot be
// opened is left out, with a note; the others serve.
func Open(ctx context.Context, o Options) (*Set, error) {
	s := &Set{o: o, accounts: map[id.UserID]*Account{}, broken: map[string]bool{}, making: map[id.UserID]*sync.Mutex{}}
	entries, err := os.ReadDir(o.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("account: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(o.Dir, e.Name())
		if _, err := os.Stat(filepath.Join(dir, storeName)); err != nil {
			continue
		}
		a, err := s.open(ctx, dir)
		if err == nil && !a.ident.LoggedIn() { // logged out, or a login that did not come to its end
			a.Close()
			continue
		}
		if err == nil {
			err = a.start(ctx)
		}
		if err != nil {
			if a != nil {
				a.Close()
			}
			s.broken[e.Name()] = true
			o.Note("the account in %s is left out: %v", dir, err)
			continue
		}
		s.accounts[a.ident.UserID()] = a
	}
	return s, nil
}

// Close stops all accounts.
func (s *Set) Close() {
	s.mu.Lock()
	all := s.accounts
	s.accounts, s.closed = map[id.UserID]*Account{}, true
	s.mu.Unlock()
	for _, a := range all {
		a.Close()
	}
}

// Get returns the account of a user, ErrNoDevice, or ErrUnavailable: a client
// that was told that it is logged out might delete what it has.
func (s *Set) Get(user id.UserID) (*Account, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.accounts[user]; a != nil {
		return a, nil
	}
	if s.closed || s.broken[folder(user)] {
		return nil, ErrUnavailable
	}
	return nil, ErrNoDevice
}

// lock keeps logins and logouts of one user apart.
func (s *Set) lock(user id.UserID) (unlock func()) {
	s.mu.Lock()
	m := s.making[user]
	if m == nil {
		m = new(sync.Mutex)
		s.making[user] = m
	}
	s.mu.Unlock()
	m.Lock()
	return m.Unlock
}

// Login makes sure that a user who has just proven the password has an MLS
// device that the homeserver accepts, and notes the session of the client that
// logged in. Where the user has no cross-signing, it is set up, and the recovery
// key is left in the account's folder.
func (s *Set) Login(ctx context.Context, user id.UserID, password string, session id.DeviceID) (*Account, error) {
	defer s.lock(user)()
	a, err := s.Get(user)
	if err == nil {
		switch err := a.ident.Check(ctx); {
		case err == nil:
			return a, a.addSession(ctx, session)
		case errors.Is(err, identity.ErrSoftLogout): // it is still there
			if err := a.ident.LoginPassword(ctx, s.deviceOf(user), password); err != nil {
				return nil, err
			}
			a.renewed()
			return a, a.addSession(ctx, session)
		case !errors.Is(err, identity.ErrTokenRejected):
			return nil, fmt.Errorf("account: is the MLS device of %s still there: %w", user, err)
		}
		// The homeserver ended the device: rooms let a new one in.
		s.forget(user)
		err := a.end(ctx, true)
		a.Close()
		if err != nil {
			return nil, err
		}
	}
	a, err = s.make(ctx, user, identity.UIA{Password: password}, func(ident *identity.Identity) error {
		return ident.LoginPassword(ctx, s.deviceOf(user), password)
	})
	if err != nil {
		return nil, err
	}
	return a, a.addSession(ctx, session)
}

// LoginToken makes sure that the user whom a login token of single sign-on
// belongs to has an MLS device that the homeserver accepts. The token is good
// once: the client logs in with another, and is noted by Join.
func (s *Set) LoginToken(ctx context.Context, token string) (id.UserID, error) {
	made, err := identity.RedeemToken(ctx, identity.Options{HTTP: s.o.HTTP}, s.deviceOf(""), token)
	if err != nil {
		return "", err
	}
	user := made.UserID()
	defer s.lock(user)()
	give := func(err error) (id.UserID, error) {
		return user, errors.Join(err, made.End(context.WithoutCancel(ctx)))
	}
	switch a, err := s.Get(user); {
	case errors.Is(err, ErrNoDevice):
	case err != nil:
		return give(err)
	default:
		switch err := a.ident.Check(ctx); {
		case err == nil:
			return give(nil) // the one that is there goes on
		case errors.Is(err, identity.ErrSoftLogout):
			s.o.Note("the MLS device of %s has to log in again: end this program, run the following, and start it again: mls-proxy --state %s login --sso %s", user, a.dir, s.o.Homeserver)
			return give(ErrUnavailable)
		case !errors.Is(err, identity.ErrTokenRejected):
			return give(fmt.Errorf("account: is the MLS device of %s still there: %w", user, err))
		}
		// The homeserver ended the device: rooms let a new one in.
		if err := s.finish(ctx, user, a); err != nil {
			return give(err)
		}
	}
	// Where there is no cross-signing, homeservers take the first without asking again.
	used := false
	_, err = s.make(ctx, user, identity.UIA{}, func(ident *identity.Identity) error {
		used = true
		return ident.LoginSession(ctx, made)
	})
	if !used {
		return give(err)
	}
	return user, err
}

// Join notes the session of a client that logged in without its user's password.
// It returns ErrNoDevice if there is no MLS device that the homeserver accepts.
func (s *Set) Join(ctx context.Context, user id.UserID, session id.DeviceID) error {
	defer s.lock(user)()
	a, err := s.Get(user)
	if err != nil {
		return err
	}
	switch err := a.ident.Check(ctx); {
	case errors.Is(err, identity.ErrSoftLogout):
		return ErrUnavailable
	case errors.Is(err, identity.ErrTokenRejected):
		return ErrNoDevice
	case err != nil:
		return fmt.Errorf("account: is the MLS device of %s still there: %w", user, err)
	}
	return a.addSession(ctx, session)
}

// make opens the folder of a user who has no account, logs the device in if it
// is not, and starts it.
func (s *Set) make(ctx context.Context, user id.UserID, auth identity.UIA, login func(*identity.Identity) error) (*Account, error) {
	// The homeserver says who it is, and its word becomes the name of a folder.
	if err := rooms.CheckUserID(user); err != nil {
		return nil, fmt.Errorf("account: %w", err)
	}
	a, err := s.open(ctx, filepath.Join(s.o.Dir, folder(user)))
	if err != nil {
		return nil, err
	}
	was := a.ident.LoggedIn()
	if !was {
		err = login(a.ident)
	}
	if err == nil {
		err = s.enter(ctx, a, user, auth)
	}
	if err != nil {
		if !was { // a device that was there keeps its keys
			err = errors.Join(err, a.end(context.WithoutCancel(ctx), true))
		}
		a.Close()
		return nil, err
	}
	s.mu.Lock()
	s.accounts[user] = a
	delete(s.broken, folder(user))
	s.mu.Unlock()
	return a, nil
}

// deviceOf is how a user's MLS device logs in.
func (s *Set) deviceOf(user id.UserID) identity.Login {
	return identity.Login{Homeserver: s.o.Homeserver, User: user.String(), DeviceName: s.o.DeviceName}
}

// enter makes the device of an opened account cross-signed if it can, and starts
// it.
func (s *Set) enter(ctx context.Context, a *Account, user id.UserID, auth identity.UIA) error {
	if a.ident.UserID() != user {
		return fmt.Errorf("account: the folder of %s holds a device of %s", user, a.ident.UserID())
	}
	status, err := a.ident.Status(ctx)
	if err != nil {
		return err
	}
	switch {
	case !status.HasCrossSigning:
		key, err := a.ident.Bootstrap(ctx, auth, "")
		if errors.Is(err, identity.ErrSecretStorageExists) {
			s.o.Note("%s has a recovery key but no cross-signing: mls-proxy --state %s verify --bootstrap", user, a.dir)
			break
		}
		if auth.Password == "" && errors.Is(err, identity.ErrPasswordRefused) {
			s.o.Note("%s has no cross-signing, so rooms do not let the MLS device in yet: mls-proxy --state %s verify --bootstrap", user, a.dir)
			break
		}
		if err != nil {
			return err
		}
		path := filepath.Join(a.dir, "recovery-key")
		if err := os.WriteFile(path, []byte(key+"\n"), 0o600); err != nil {
			return fmt.Errorf("account: keep the recovery key: %w", err)
		}
		s.o.Note("cross-signing of %s is set up; the recovery key is in %s: write it down and delete the file", user, path)
	case !status.DeviceSigned:
		s.o.Note("the MLS device of %s is not verified, so rooms do not let it in yet: mls-proxy --state %s verify --recovery-key, or verify to compare emoji with another device", user, a.dir)
	}
	return a.start(ctx)
}

// Logout notes that the session of a client has ended. With the last one, the
// MLS device ends too: its keys and messages are deleted, even if the homeserver
// cannot be told.
func (s *Set) Logout(ctx context.Context, user id.UserID, session id.DeviceID) error {
	defer s.lock(user)()
	a, err := s.Get(user)
	if err != nil {
		return nil // nothing to end
	}
	left, err := a.dropSession(ctx, session)
	if err == nil && left > 0 {
		left, err = a.pruneSessions(ctx)
	}
	if err != nil || left > 0 {
		return err
	}
	return s.finish(ctx, user, a)
}

// LogoutAll ends the MLS device of a user all of whose sessions have ended.
func (s *Set) LogoutAll(ctx context.Context, user id.UserID) error {
	defer s.lock(user)()
	a, err := s.Get(user)
	if err != nil {
		return nil
	}
	return s.finish(ctx, user, a)
}

func (s *Set) finish(ctx context.Context, user id.UserID, a *Account) error {
	s.forget(user)
	err := a.end(ctx, true)
	a.Close()
	return err
}

func (s *Set) forget(user id.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.accounts, user)
}

// open opens the files of an account, or makes them.
func (s *Set) open(ctx context.Context, dir string) (*Account, error) {
	path := filepath.Join(dir, storeName)
	key, err := store.LoadKey(store.KeyOptions{Path: filepath.Join(dir, "store.key"), Store: path, Getenv: s.o.Getenv})
	if err != nil {
		return nil, err
	}
	st, err := store.Open(ctx, store.Options{Path: path, Key: key, Log: &s.o.Log})
	clear(key)
	if err != nil {
		return nil, err
	}
	ident, err := identity.Open(ctx, identity.Options{Store: st, Log: &s.o.Log, HTTP: s.o.HTTP})
	if err != nil {
		st.Close()
		return nil, err
	}
	return &Account{dir: dir, st: st, ident: ident, o: &s.o, log: s.o.Log, changed: make(chan struct{})}, nil
}

// storeName is what the other verbs of mls-proxy call it, too: an account's
// folder is a state directory for them.
const storeName = "client.db"

// folder is the name of an account's folder.
func folder(user id.UserID) string {
	name := url.PathEscape(user.String())
	if len(name) > 200 {
		sum := sha256.Sum256([]byte(user))
		return hex.EncodeToString(sum[:])
	}
	return name
}

// Account is one MLS device.
type Account struct {
	dir    string
	st     *store.Store
	ident  *identity.Identity
	o      *Options
	log    zerolog.Logger
	cli    *client.Client
	unread *unread
	stop   func() // ends Options.Serve

	sessionMu sync.Mutex // a session is added or dropped
	mediaMu   sync.Mutex // the key of a file is written
	noticeMu  sync.Mutex // a notice is added or handed on
	notices   *notices   // as in the store, or nil
	close     sync.Once
	ready     atomic.Bool

	verifiedMu sync.Mutex // and what it guards
	verified   bool
	verifiedAt time.Time
	session    Session
	checkedAt  time.Time

	mu      sync.Mutex
	changed chan struct{} // closed and replaced with every update
}

// start runs the device's client until Close.
func (a *Account) start(ctx context.Context) error {
	cli, err := client.Open(ctx, client.Options{Store: a.st, Identity: a.ident, Log: a.log, Handler: a.handle, AskHistory: true, Receipts: true})
	if err != nil {
		return err
	}
	a.cli = cli
	a.unread = newUnread(a.st, a.ident.UserID(), a.ident.Client().GetPushRules, cli.Facts)
	// It ends with the account, not with the request that began it.
	ctx = context.WithoutCancel(ctx)
	if err := cli.Start(ctx); err != nil || a.o.Serve == nil {
		return err
	}
	stop, err := a.o.Serve(ctx, Device{Dir: a.dir, Store: a.st, Identity: a.ident, Client: cli})
	if err != nil {
		a.o.Note("other verbs do not work on %s while this runs: %v", a.dir, err)
		return nil
	}
	a.stop = sync.OnceFunc(stop)
	return nil
}

// Close stops the client and closes the files.
func (a *Account) Close() {
	a.close.Do(func() {
		a.quit()
		_ = a.st.Close()
	})
}

// quit stops what runs.
func (a *Account) quit() {
	if a.stop != nil {
		a.stop()
	}
	if a.cli != nil {
		_ = a.cli.Close()
	}
}

// superseded tells whether another copy of the device, as of a backup, is in use: the
// session is that one's.
func (a *Account) superseded(ctx context.Context) bool {
	if a.cli == nil {
		return false
	}
	all, err := a.cli.Rooms(ctx)
	return err == nil && slices.ContainsFunc(all, func(r client.RoomInfo) bool { return r.Superseded })
}

// end stops the client, ends the device's session, unless another copy of it is in
// use, and deletes its keys. With force, the keys go even if the homeserver cannot be
// told.
func (a *Account) end(ctx context.Context, force bool) error {
	end := func() error { return a.ident.Logout(ctx, force) }
	if a.superseded(ctx) {
		end = func() error { return a.ident.Forget(ctx) }
	}
	a.quit()
	if !a.ident.LoggedIn() {
		return nil
	}
	if err := end(); err != nil {
		return fmt.Errorf("account: end the MLS device: %w", err)
	}
	return nil
}

// Ready waits until the device has heard from the homeserver since it was
// started: only then it is known what happened meanwhile.
func (a *Account) Ready(ctx context.Context) error {
	if a.ready.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	if err := a.cli.Synced(ctx); err != nil {
		return err
	}
	a.ready.Store(true)
	return nil
}

const readyWait = 20 * time.Second

// Client is the SDK client of the device.
func (a *Account) Client() *client.Client { return a.cli }

// UserID is the user whose device this is.
func (a *Account) UserID() id.UserID { return a.ident.UserID() }
