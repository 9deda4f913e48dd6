// Package identity is one Matrix device of one account, and what that device
// knows about other devices: its access token, its signed device keys with the
// MLS signature keys in them, cross-signing and verification, the device lists
// of other users, and key packages. It gives a client everything about who is
// who; rooms and groups are not its business.
//
// # Duties of the caller
//
// After a login, hand every /sync response to [Identity.ProcessSync] before
// looking at its rooms. Delete a used key package with
// [Identity.ConsumeBundle] in the transaction that stores the joined group.
//
// The device is a device of its own, with its own token: it never shares the
// identity of another client. It does not speak Olm or Megolm, so it
// advertises rooms.Algorithm alone and uploads no Olm one-time keys, which
// leaves a homeserver's limit of one-time keys to MLS.
package identity

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

var (
	// ErrNotLoggedIn reports that the store holds no account.
	ErrNotLoggedIn = errors.New("identity: not logged in")
	// ErrLoggedIn reports a login into a store that holds an account.
	ErrLoggedIn = errors.New("identity: already logged in; log out first, or use another state directory")
	// ErrTokenRejected reports that the homeserver ended the session.
	ErrTokenRejected = errors.New("identity: the homeserver no longer accepts this device's token; log in again")
)

// Options configures an [Identity].
type Options struct {
	Store *store.Store
	// Log may be nil. No token, key or message ever appears in it.
	Log *zerolog.Logger
	// HTTP is the client for the homeserver; nil gives one with a timeout of
	// three minutes.
	HTTP *http.Client
	// Now tells the time, time.Now when nil.
	Now func() time.Time
	// Rand is the source of keys, crypto/rand when nil.
	Rand io.Reader
	// Suites are the cipher suites to offer, in the order of preference; nil
	// offers all supported ones. Experimental ones are offered if they are named.
	Suites []mls.CipherSuite
	// Foreign are signature keys, by suite, that another program holds: the
	// device publishes them, and the caller makes their key packages. No suite
	// may be in both.
	Foreign map[mls.CipherSuite]mls.SignaturePublicKey
	// Stock is how many key packages per suite lie at the homeserver; nil
	// gives [DefaultStock]. More than [MaxStock] together are not uploaded.
	Stock map[mls.CipherSuite]int
}

// Identity is a device. It is safe for concurrent use.
type Identity struct {
	st     *store.Store
	log    zerolog.Logger
	http   *http.Client
	now    func() time.Time
	rand   io.Reader
	suites []mls.CipherSuite
	others map[mls.CipherSuite]mls.SignaturePublicKey // Options.Foreign
	stock  map[mls.CipherSuite]int

	mu      sync.Mutex // guards what follows
	account *account
	client  *mautrix.Client
	changed []func(id.UserID)

	lists    deviceLists
	packages packages
	verifier verifier
}

// account is the logged-in device in memory.
type account struct {
	userID   id.UserID
	deviceID id.DeviceID
	server   string
	secrets  accountSecrets
	olm      *crypto.OlmAccount
	renewal  renewal
}

// accountSecrets is the sealed part of the stored account.
type accountSecrets struct {
	session
	Device        []byte            `json:"device"`         // the device's Ed25519 and Curve25519 keys, pickled
	SignatureKeys map[uint16][]byte `json:"signature_keys"` // by cipher suite
	Published     string            `json:"published"`      // hash of the device keys that the homeserver has
}

// pickleKey is not a secret: the pickle is part of a sealed value.
var pickleKey = []byte("matrix-mls")

// Open loads the account from the store, if there is one.
func Open(ctx context.Context, o Options) (*Identity, error) {
	i := &Identity{st: o.Store, http: o.HTTP, now: o.Now, rand: o.Rand, suites: slices.Clone(o.Suites), others: maps.Clone(o.Foreign), stock: o.Stock, log: zerolog.Nop()}
	if o.Log != nil {
		i.log = o.Log.With().Str("component", "identity").Logger()
	}
	if i.http == nil {
		i.http = &http.Client{Timeout: 3 * time.Minute}
	}
	if i.now == nil {
		i.now = time.Now
	}
	if i.rand == nil {
		i.rand = rand.Reader
	}
	if i.suites == nil {
		i.suites = mls.SupportedCipherSuites()
	}
	for _, cs := range i.suites {
		if !rooms.UsableSuite(cs) {
			return nil, fmt.Errorf("identity: cipher suite %s is not supported", cs)
		}
		if i.others[cs] != nil {
			return nil, fmt.Errorf("identity: cipher suite %s is this program's and another's", cs)
		}
	}
	if i.stock == nil {
		i.stock = DefaultStock(i.suites)
	}
	i.lists.init()
	i.packages.init()
	stored, err := o.Store.Account(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return i, nil
	}
	if err != nil {
		return nil, fmt.Errorf("identity: load the account: %w", err)
	}
	a := &account{userID: stored.UserID, deviceID: stored.DeviceID, server: stored.Homeserver}
	if err := json.Unmarshal(stored.Data, &a.secrets); err != nil {
		return nil, fmt.Errorf("identity: load the account: the stored value is damaged")
	}
	device, err := olm.AccountFromPickled(slices.Clone(a.secrets.Device), pickleKey)
	if err != nil {
		return nil, fmt.Errorf("identity: load the device keys: %w", err)
	}
	a.olm = &crypto.OlmAccount{Internal: device, Shared: true}
	if err := i.use(ctx, a); err != nil {
		return nil, err
	}
	return i, nil
}

// use makes a the account in use; new suites get their signature keys.
func (i *Identity) use(ctx context.Context, a *account) error {
	added := false
	for _, cs := range i.suites {
		if _, ok := a.secrets.SignatureKeys[uint16(cs)]; ok {
			continue
		}
		key, err := mls.GenerateSignatureKey(cs, i.rand)
		if err != nil {
			return fmt.Errorf("identity: make a signature key for %s: %w", cs, err)
		}
		if a.secrets.SignatureKeys == nil {
			a.secrets.SignatureKeys = map[uint16][]byte{}
		}
		a.secrets.SignatureKeys[uint16(cs)] = key.Bytes()
		added = true
	}
	if added {
		if err := i.saveAccount(ctx, a); err != nil {
			return err
		}
	}
	cli, err := mautrix.NewClient(a.server, a.userID, a.secrets.AccessToken)
	if err != nil {
		return fmt.Errorf("identity: homeserver %s: %w", a.server, err)
	}
	cli.DeviceID = a.deviceID
	cli.Client = i.withSession(a)
	cli.Log = zerolog.Nop() // what fails is returned, and mautrix logs whole requests
	i.mu.Lock()
	i.account, i.client = a, cli
	i.mu.Unlock()
	return nil
}

// withSession is the HTTP client for the homeserver that shows it the device's
// token.
func (i *Identity) withSession(a *account) *http.Client {
	c := *i.http
	if c.Transport == nil {
		c.Transport = http.DefaultTransport
	}
	c.Transport = &sessionTransport{i: i, a: a, next: c.Transport}
	return &c
}

// saveAccount writes the account. Once it is in use, i.mu is held.
func (i *Identity) saveAccount(ctx context.Context, a *account) error {
	data, err := json.Marshal(&a.secrets)
	if err != nil {
		return fmt.Errorf("identity: save the account: %w", err)
	}
	defer clear(data)
	err = i.st.PutAccount(ctx, &store.Account{UserID: a.userID, DeviceID: a.deviceID, Homeserver: a.server, Data: data})
	if err != nil {
		return fmt.Errorf("identity: save the account: %w", err)
	}
	return nil
}

// current returns the account and client, or ErrNotLoggedIn.
func (i *Identity) current() (*account, *mautrix.Client, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.account == nil {
		return nil, nil, ErrNotLoggedIn
	}
	return i.account, i.client, nil
}

// LoggedIn reports whether there is an account.
func (i *Identity) LoggedIn() bool {
	_, _, err := i.current()
	return err == nil
}

// UserID returns the account's user, or "" when nobody is logged in.
func (i *Identity) UserID() id.UserID {
	if a, _, err := i.current(); err == nil {
		return a.userID
	}
	return ""
}

// DeviceID returns the account's device, or "" when nobody is logged in.
func (i *Identity) DeviceID() id.DeviceID {
	if a, _, err := i.current(); err == nil {
		return a.deviceID
	}
	return ""
}

// Homeserver returns the base URL of the homeserver, or "".
func (i *Identity) Homeserver() string {
	if a, _, err := i.current(); err == nil {
		return a.server
	}
	return ""
}

// Client returns the mautrix client with the device's token, or nil when
// nobody is logged in. The caller may set its Syncer, Store and Crypto; this
// package uses none of them.
func (i *Identity) Client() *mautrix.Client {
	_, cli, _ := i.current()
	return cli
}

// Fingerprint returns the device's Ed25519 key in groups of four, as other
// clients show it.
func (i *Identity) Fingerprint() string {
	a, _, err := i.current()
	if err != nil {
		return ""
	}
	return a.olm.SigningKey().Fingerprint()
}

// Suites returns the cipher suites that the device offers.
func (i *Identity) Suites() []mls.CipherSuite { return slices.Clone(i.suites) }

// SignatureKey returns the device's signature key for a cipher suite.
func (i *Identity) SignatureKey(cs mls.CipherSuite) (mls.SignaturePrivateKey, error) {
	a, _, err := i.current()
	if err != nil {
		return mls.SignaturePrivateKey{}, err
	}
	raw, ok := a.secrets.SignatureKeys[uint16(cs)]
	if !ok {
		return mls.SignaturePrivateKey{}, fmt.Errorf("identity: this device has no signature key for %s", cs)
	}
	key, err := mls.ParseSignaturePrivateKey(cs, raw)
	if err != nil {
		return mls.SignaturePrivateKey{}, fmt.Errorf("identity: signature key for %s: %w", cs, err)
	}
	return key, nil
}

// OnDevicesChanged registers a function that is called, from within
// ProcessSync, with each user whose devices may have changed. It must not
// block.
func (i *Identity) OnDevicesChanged(fn func(id.UserID)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.changed = append(i.changed, fn)
}

func (i *Identity) notifyChanged(user id.UserID) {
	i.mu.Lock()
	fns := slices.Clone(i.changed)
	i.mu.Unlock()
	for _, fn := range fns {
		fn(user)
	}
}
