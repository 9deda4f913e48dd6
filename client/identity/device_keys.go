package identity

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// uploadKeys is the body of POST /keys/upload. One-time keys of ours are plain
// strings, and mautrix's type knows no fallback keys.
type uploadKeys struct {
	DeviceKeys   *mautrix.DeviceKeys `json:"device_keys,omitempty"`
	OneTimeKeys  map[id.KeyID]string `json:"one_time_keys,omitempty"`
	FallbackKeys map[id.KeyID]string `json:"fallback_keys,omitempty"`
}

type uploadedKeys struct {
	Counts map[string]int `json:"one_time_key_counts"`
}

func (i *Identity) uploadKeys(ctx context.Context, cli *mautrix.Client, req *uploadKeys) (map[string]int, error) {
	var resp uploadedKeys
	if err := i.do(ctx, cli, http.MethodPost, cli.BuildClientURL("v3", "keys", "upload"), req, &resp); err != nil {
		return nil, err
	}
	return resp.Counts, nil
}

// deviceKeys returns the device's signed keys: Ed25519 and Curve25519 as every
// Matrix device has them, and one MLS signature key per cipher suite (MSC4256).
// The algorithms name ours only, so that nobody encrypts for it with Olm.
func (i *Identity) deviceKeys(a *account) (*mautrix.DeviceKeys, error) {
	dk := &mautrix.DeviceKeys{
		UserID: a.userID, DeviceID: a.deviceID,
		Algorithms: []id.Algorithm{rooms.Algorithm},
		Keys: mautrix.KeyMap{
			id.NewDeviceKeyID(id.KeyAlgorithmEd25519, a.deviceID):    a.olm.SigningKey().String(),
			id.NewDeviceKeyID(id.KeyAlgorithmCurve25519, a.deviceID): a.olm.IdentityKey().String(),
		},
	}
	for _, cs := range i.suites {
		key, err := mls.ParseSignaturePrivateKey(cs, a.secrets.SignatureKeys[uint16(cs)])
		if err != nil {
			return nil, fmt.Errorf("identity: signature key for %s: %w", cs, err)
		}
		dk.Keys[id.DeviceKeyID(rooms.DeviceKeyID(cs, a.deviceID))] = rooms.EncodeBase64(key.Public())
	}
	for cs, key := range i.others {
		dk.Keys[id.DeviceKeyID(rooms.DeviceKeyID(cs, a.deviceID))] = rooms.EncodeBase64(key)
	}
	sig, err := a.olm.SignJSON(dk)
	if err != nil {
		return nil, fmt.Errorf("identity: sign the device keys: %w", err)
	}
	dk.Signatures = signatures.NewSingleSignature(a.userID, id.KeyAlgorithmEd25519, a.deviceID.String(), sig)
	return dk, nil
}

// PublishDeviceKeys uploads the device's signed keys if the homeserver does not
// have them in this form.
func (i *Identity) PublishDeviceKeys(ctx context.Context) error {
	a, cli, err := i.current()
	if err != nil {
		return err
	}
	dk, err := i.deviceKeys(a)
	if err != nil {
		return err
	}
	plain, err := json.Marshal(dk.Keys)
	if err != nil {
		return fmt.Errorf("identity: encode the device keys: %w", err)
	}
	sum := sha256.Sum256(plain)
	published := base64.RawStdEncoding.EncodeToString(sum[:])
	i.mu.Lock()
	done := a.secrets.Published == published || strings.HasPrefix(a.secrets.Published, published+" ")
	i.mu.Unlock()
	if done {
		return nil
	}
	if _, err := i.uploadKeys(ctx, cli, &uploadKeys{DeviceKeys: dk}); err != nil {
		return fmt.Errorf("identity: publish the device keys: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	a.secrets.Published = published
	return i.saveAccount(ctx, a)
}

// publishSignature uploads the device's keys once more when the user's
// self-signing key has signed them, with that signature among their own. A
// homeserver adds the signature for those who ask it, but Dendrite tells no
// other server that it came: they would go on to see an unsigned device.
func (i *Identity) publishSignature(ctx context.Context) error {
	a, cli, err := i.current()
	if err != nil {
		return err
	}
	u, err := i.Devices(ctx, a.userID)
	if err != nil {
		return err
	}
	d := u.Devices[a.deviceID]
	if d == nil || !d.CrossSigned {
		return nil
	}
	record, _, err := i.record(ctx, a.userID)
	if err != nil || record == nil {
		return err
	}
	var signed struct {
		Signatures map[id.UserID]map[id.KeyID]string `json:"signatures"`
	}
	if err := json.Unmarshal(record.Devices[a.deviceID], &signed); err != nil {
		return fmt.Errorf("identity: read the signature of this device: %w", err)
	}
	keyID := id.NewKeyID(id.KeyAlgorithmEd25519, rooms.EncodeBase64(u.cross.SelfSigning))
	sig := signed.Signatures[a.userID][keyID]
	i.mu.Lock()
	base, by, _ := strings.Cut(a.secrets.Published, " ")
	i.mu.Unlock()
	if sig == "" || base == "" || by == string(keyID) {
		return nil
	}
	dk, err := i.deviceKeys(a)
	if err != nil {
		return err
	}
	dk.Signatures[a.userID][keyID] = sig
	if _, err := i.uploadKeys(ctx, cli, &uploadKeys{DeviceKeys: dk}); err != nil {
		return fmt.Errorf("identity: publish the signature of this device: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	a.secrets.Published = base + " " + string(keyID)
	return i.saveAccount(ctx, a)
}

// LeafOptions returns the options of this device's leaf in a group of the
// given cipher suite: credential and capabilities.
func (i *Identity) LeafOptions(cs mls.CipherSuite) (mls.LeafOptions, error) {
	a, _, err := i.current()
	if err != nil {
		return mls.LeafOptions{}, err
	}
	key, err := i.SignatureKey(cs)
	if err != nil {
		return mls.LeafOptions{}, err
	}
	o := rooms.LeafOptions(rooms.Credential{User: a.userID, Device: a.deviceID, Key: key.Public()})
	o.Capabilities.CipherSuites = i.Suites()
	return o, nil
}
