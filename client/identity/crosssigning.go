package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
)

const (
	kvTrustedMaster = "identity/master"        // our master key, as a person or this device vouches for it
	kvCrossSigning  = "identity/cross_signing" // seeds of the three private keys
)

var (
	// ErrCrossSigningExists reports a bootstrap where the user has
	// cross-signing keys: making new ones would invalidate every verification.
	ErrCrossSigningExists = errors.New("identity: cross-signing is set up already; verify this device with the recovery key or from another device")
	// ErrNoCrossSigning reports that the user has no cross-signing keys.
	ErrNoCrossSigning = errors.New("identity: cross-signing is not set up yet")
	// ErrNoRecovery reports that no keys are kept under a recovery key.
	ErrNoRecovery = errors.New("identity: no recovery key was ever set up for this account; verify this device from another device")
	// ErrWrongRecoveryKey reports a recovery key that does not fit.
	ErrWrongRecoveryKey = errors.New("identity: this is not the recovery key of this account")
	// ErrSecretStorageExists reports a bootstrap where the account has a
	// recovery key already: the new keys go under that one.
	ErrSecretStorageExists = errors.New("identity: this account has a recovery key already; give it, so that the new keys are kept under it")
)

// Status is how far this device is verified.
type Status struct {
	HasCrossSigning bool   // the user has cross-signing keys
	MasterKey       string // unpadded base64
	MasterTrusted   bool   // this device knows that they are the user's
	DeviceSigned    bool   // other people see this device as the user's
	CanSign         bool   // this device can sign others of the user's devices
}

// Status asks the homeserver how far this device is verified.
func (i *Identity) Status(ctx context.Context) (*Status, error) {
	own := i.UserID()
	if own == "" {
		return nil, ErrNotLoggedIn
	}
	if err := i.st.MarkDeviceListOutdated(ctx, own); err != nil {
		return nil, err
	}
	i.lists.outdate(own)
	u, err := i.Devices(ctx, own)
	if err != nil {
		return nil, err
	}
	s := &Status{HasCrossSigning: u.cross != nil, MasterKey: u.MasterKey, MasterTrusted: u.MasterState == MasterOwn}
	if d := u.Devices[i.DeviceID()]; d != nil {
		s.DeviceSigned = d.CrossSigned
	}
	seeds, err := i.crossSigningSeeds(ctx)
	if err != nil {
		return nil, err
	}
	s.CanSign = seeds != nil && s.MasterTrusted
	return s, nil
}

// AwaitSignature returns once the homeserver has a signature of the user on this device. Who verified it interactively
// may sign it only when the end was said by both, so it can come after the end. A homeserver that fails is asked again. If it
// does not come in time, the error is that of ctx, with the homeserver's last one.
func (i *Identity) AwaitSignature(ctx context.Context) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		s, err := i.Status(ctx)
		switch {
		case ctx.Err() != nil:
			return errors.Join(ctx.Err(), err)
		case err == nil && s.DeviceSigned:
			return nil
		}
		again := time.NewTimer(wait)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return ctx.Err()
		}
	}
}

// UIA authenticates a request that a homeserver wants confirmed (Matrix
// client-server API, "User-Interactive Authentication").
type UIA struct {
	// Password, when the account has one.
	Password string
	// Browser is called with the address of a page that the user visits and
	// completes, for accounts without a password; it returns when the user
	// says that this is done.
	Browser func(url string) error
}

func (u UIA) callback(cli *mautrix.Client, user id.UserID) mautrix.UIACallback {
	return func(resp *mautrix.RespUserInteractive) any {
		if u.Password != "" && resp.HasSingleStageFlow(mautrix.AuthTypePassword) {
			return &mautrix.ReqUIAuthLogin{
				BaseAuthData: mautrix.BaseAuthData{Type: mautrix.AuthTypePassword, Session: resp.Session},
				User:         user.String(), Password: u.Password,
			}
		}
		if u.Browser != nil && resp.HasSingleStageFlow(mautrix.AuthTypeSSO) {
			page := cli.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "auth", mautrix.AuthTypeSSO, "fallback", "web"}, map[string]string{"session": resp.Session})
			if u.Browser(page) == nil {
				return map[string]string{"session": resp.Session}
			}
		}
		return nil
	}
}

// Bootstrap sets cross-signing up for a user who has none, signs this device,
// and keeps the private keys at the homeserver under a recovery key, which it
// returns: show it once, nobody can find it again. Where the account has a
// recovery key for other secrets, pass that one; the result is then the same.
func (i *Identity) Bootstrap(ctx context.Context, auth UIA, recoveryKey string) (string, error) {
	ctx = i.quiet(ctx)
	s, err := i.Status(ctx)
	if err != nil {
		return "", err
	}
	if s.HasCrossSigning {
		return "", ErrCrossSigningExists
	}
	mach, cli, err := i.machine(ctx)
	if err != nil {
		return "", err
	}
	defer mach.Destroy()
	key, isNew, err := i.secretStorageKey(ctx, mach, recoveryKey)
	if err != nil {
		return "", err
	}
	keys, err := mach.GenerateCrossSigningKeys()
	if err != nil {
		return "", fmt.Errorf("identity: make cross-signing keys: %w", err)
	}
	// The private keys are safe before the public ones are the user's.
	if err := mach.UploadCrossSigningKeysToSSSS(ctx, key, keys); err != nil {
		return "", fmt.Errorf("identity: keep the cross-signing keys: %w", err)
	}
	if err := mach.PublishCrossSigningKeys(ctx, keys, auth.callback(cli, i.UserID())); err != nil {
		if status(err) == http.StatusUnauthorized || status(err) == http.StatusForbidden {
			return "", fmt.Errorf("identity: publish the cross-signing keys: %w", ErrPasswordRefused)
		}
		return "", fmt.Errorf("identity: publish the cross-signing keys: %w", err)
	}
	if isNew {
		if err := mach.SSSS.SetDefaultKeyID(ctx, key.ID); err != nil {
			return "", fmt.Errorf("identity: make the recovery key the account's: %w", err)
		}
	}
	return key.RecoveryKey(), i.signOwn(ctx, mach)
}

// secretStorageKey makes the key that the private keys are kept under, or
// opens the account's.
func (i *Identity) secretStorageKey(ctx context.Context, mach *crypto.OlmMachine, recoveryKey string) (key *ssss.Key, isNew bool, err error) {
	keyID, meta, err := mach.SSSS.GetDefaultKeyData(ctx)
	switch {
	case errors.Is(err, ssss.ErrNoDefaultKeyAccountDataEvent), errors.Is(err, ssss.ErrNoKeyFieldInAccountDataEvent), errors.Is(err, mautrix.MNotFound):
		if recoveryKey != "" { // the caller expects that it goes on being the account's
			return nil, false, ErrNoRecovery
		}
		key, err = mach.SSSS.GenerateAndUploadKey(ctx, "")
		if err != nil {
			return nil, false, fmt.Errorf("identity: make a recovery key: %w", err)
		}
		return key, true, nil
	case err != nil:
		return nil, false, fmt.Errorf("identity: ask for the account's recovery key: %w", err)
	case recoveryKey == "":
		return nil, false, ErrSecretStorageExists
	}
	key, err = openSecretStorage(meta, keyID, recoveryKey)
	return key, false, err
}

// maxPassphraseRounds bounds what a homeserver can make us compute.
const maxPassphraseRounds = 10_000_000

// openSecretStorage makes the key from what a person has: the recovery key, or
// the passphrase it was made from.
func openSecretStorage(meta *ssss.KeyMetadata, keyID, text string) (*ssss.Key, error) {
	key, err := meta.VerifyRecoveryKey(keyID, text)
	if err == nil || errors.Is(err, ssss.ErrUnverifiableKey) {
		return key, nil // one that cannot be checked here is checked by what it opens
	}
	if p := meta.Passphrase; p != nil && p.Iterations > 0 && p.Iterations <= maxPassphraseRounds && (p.Bits == 0 || p.Bits == 256) {
		if key, err = meta.VerifyPassphrase(keyID, text); err == nil {
			return key, nil
		}
	}
	return nil, ErrWrongRecoveryKey
}

// Recover fetches the user's private cross-signing keys with the recovery key,
// or with the passphrase it was made from, signs this device with them and trusts the user's master key.
func (i *Identity) Recover(ctx context.Context, recoveryKey string) error {
	ctx = i.quiet(ctx)
	s, err := i.Status(ctx)
	if err != nil {
		return err
	}
	if !s.HasCrossSigning {
		return ErrNoCrossSigning
	}
	mach, _, err := i.machine(ctx)
	if err != nil {
		return err
	}
	defer mach.Destroy()
	keyID, meta, err := mach.SSSS.GetDefaultKeyData(ctx)
	if errors.Is(err, ssss.ErrNoDefaultKeyAccountDataEvent) || errors.Is(err, ssss.ErrNoKeyFieldInAccountDataEvent) || errors.Is(err, mautrix.MNotFound) {
		return ErrNoRecovery
	}
	if err != nil {
		return fmt.Errorf("identity: ask for the account's recovery key: %w", err)
	}
	key, err := openSecretStorage(meta, keyID, recoveryKey)
	if err != nil {
		return err
	}
	if err := mach.FetchCrossSigningKeysFromSSSS(ctx, key); err != nil {
		if errors.Is(err, mautrix.MNotFound) {
			return ErrNoRecovery
		}
		return fmt.Errorf("identity: open the cross-signing keys: %w", err)
	}
	if got := mach.CrossSigningKeys.MasterKey.PublicKey().String(); got != s.MasterKey {
		return fmt.Errorf("identity: the recovery key holds another master key than the homeserver publishes; somebody has reset the keys since")
	}
	return i.signOwn(ctx, mach)
}

// signOwn signs this device with the machine's self-signing key and the master
// key with the device, and keeps the private keys.
func (i *Identity) signOwn(ctx context.Context, mach *crypto.OlmMachine) error {
	if err := mach.SignOwnDevice(ctx, mach.OwnIdentity()); err != nil {
		return fmt.Errorf("identity: sign this device: %w", err)
	}
	if err := mach.SignOwnMasterKey(ctx); err != nil {
		return fmt.Errorf("identity: sign the master key: %w", err)
	}
	seeds, err := json.Marshal(mach.ExportCrossSigningKeys())
	if err != nil {
		return fmt.Errorf("identity: keep the cross-signing keys: %w", err)
	}
	defer clear(seeds)
	err = i.st.Do(ctx, func(ctx context.Context) error {
		if err := i.st.PutKV(ctx, kvCrossSigning, seeds); err != nil {
			return err
		}
		return i.st.PutKV(ctx, kvTrustedMaster, []byte(mach.CrossSigningKeys.MasterKey.PublicKey()))
	})
	if err != nil {
		return err
	}
	return i.ownListChanged(ctx)
}

// ownListChanged has our own devices asked for again: signatures changed.
func (i *Identity) ownListChanged(ctx context.Context) error {
	i.verifier.reset()
	own := i.UserID()
	users, err := i.st.DeviceListUsers(ctx)
	if err != nil {
		return err
	}
	// Whether others are verified depends on our keys.
	for _, u := range users {
		i.lists.outdate(u)
	}
	if err := i.st.MarkDeviceListOutdated(ctx, own); err != nil {
		return err
	}
	i.notifyChanged(own)
	return i.publishSignature(ctx)
}

// trustedMaster returns the master key of ours that this device knows to be
// right, or "".
func (i *Identity) trustedMaster(ctx context.Context) (string, error) {
	master, err := i.st.GetKV(ctx, kvTrustedMaster)
	if errors.Is(err, store.ErrNotFound) {
		return "", nil
	}
	return string(master), err
}

func (i *Identity) crossSigningSeeds(ctx context.Context) (*crypto.CrossSigningSeeds, error) {
	data, err := i.st.GetKV(ctx, kvCrossSigning)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer clear(data)
	seeds := new(crypto.CrossSigningSeeds)
	if err := json.Unmarshal(data, seeds); err != nil {
		return nil, errors.New("identity: the stored cross-signing keys are damaged")
	}
	return seeds, nil
}

// SignDevice signs another device of the user's with the self-signing key, for
// a person who compared its key.
func (i *Identity) SignDevice(ctx context.Context, device id.DeviceID) error {
	ctx = i.quiet(ctx)
	mach, _, err := i.machine(ctx)
	if err != nil {
		return err
	}
	defer mach.Destroy()
	if mach.CrossSigningKeys == nil {
		return errors.New("identity: this device does not hold the user's keys; verify it with the recovery key first")
	}
	if err := i.listsChanged(ctx, nil, []id.UserID{i.UserID()}, false); err != nil {
		return err
	}
	u, err := i.Devices(ctx, i.UserID())
	if err != nil {
		return err
	}
	d := u.Devices[device]
	if d == nil {
		return fmt.Errorf("identity: there is no device %s", device)
	}
	err = mach.SignOwnDevice(ctx, &id.Device{UserID: i.UserID(), DeviceID: device, SigningKey: id.Ed25519(d.Ed25519)})
	if err != nil {
		return fmt.Errorf("identity: sign device %s: %w", device, err)
	}
	return i.ownListChanged(ctx)
}

// machine returns mautrix's crypto machine for this device, for cross-signing
// and verification only: it knows no Olm session, and its memory ends with it.
func (i *Identity) machine(ctx context.Context) (*crypto.OlmMachine, *mautrix.Client, error) {
	a, cli, err := i.current()
	if err != nil {
		return nil, nil, err
	}
	own := new(mautrix.Client)
	own.HomeserverURL, own.UserID, own.DeviceID, own.AccessToken = cli.HomeserverURL, cli.UserID, cli.DeviceID, cli.AccessToken
	own.UserAgent, own.Client, own.Log = cli.UserAgent, cli.Client, cli.Log
	own.Store = mautrix.NewMemorySyncStore()
	own.Syncer = mautrix.NewDefaultSyncer()
	own.Crypto = noCrypto{}
	own.DefaultHTTPRetries = 2
	memory := crypto.NewMemoryStore(nil)
	if err := memory.PutAccount(ctx, a.olm); err != nil {
		return nil, nil, fmt.Errorf("identity: load the device keys: %w", err)
	}
	mach := crypto.NewOlmMachine(own, &own.Log, memory, noRooms{})
	if err := mach.Load(ctx); err != nil {
		return nil, nil, fmt.Errorf("identity: load the device keys: %w", err)
	}
	seeds, err := i.crossSigningSeeds(ctx)
	if err != nil {
		return nil, nil, err
	}
	if seeds != nil {
		if err := mach.ImportCrossSigningKeys(*seeds); err != nil {
			return nil, nil, fmt.Errorf("identity: load the cross-signing keys: %w", err)
		}
	}
	return mach, own, nil
}

// noRooms tells the machine of no encrypted rooms: Megolm is not spoken here.
type noRooms struct{}

func (noRooms) IsEncrypted(context.Context, id.RoomID) (bool, error) { return false, nil }
func (noRooms) GetEncryptionEvent(context.Context, id.RoomID) (*event.EncryptionEventContent, error) {
	return nil, nil
}
func (noRooms) FindSharedRooms(context.Context, id.UserID) ([]id.RoomID, error) { return nil, nil }
