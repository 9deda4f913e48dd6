package simnet

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"

	"maunium.net/go/mautrix/crypto/canonicaljson"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// User is an account with its cross-signing keys and devices.
type User struct {
	ID      id.UserID
	Devices map[id.DeviceID]*Device

	master, self ed25519.PrivateKey
	list         *DeviceList // as published
}

// Device is a device of a user.
type Device struct {
	ID       id.DeviceID
	Key      ed25519.PrivateKey
	MLS      map[mls.CipherSuite]mls.SignaturePrivateKey
	Packages []*mls.KeyPackage // at its homeserver
	Unsigned bool              // not cross-signed
}

// DeviceList is what a homeserver publishes of a user's devices.
type DeviceList struct {
	User    id.UserID
	Devices []*rooms.DeviceKeys
	Cross   *rooms.CrossSigning
}

func newKey(r io.Reader) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(r, seed); err != nil {
		panic(err)
	}
	return ed25519.NewKeyFromSeed(seed)
}

// Register makes a user with cross-signing keys.
func (n *Net) Register(user id.UserID, random io.Reader) *User {
	u := &User{ID: user, Devices: map[id.DeviceID]*Device{}, master: newKey(random), self: newKey(random)}
	u.list = u.publish()
	n.users[user] = u
	return u
}

// User returns a user, nil if there is none.
func (n *Net) User(user id.UserID) *User { return n.users[user] }

// Users returns all users, in order.
func (n *Net) Users() []id.UserID { return slices.Sorted(maps.Keys(n.users)) }

// Login adds a device.
func (n *Net) Login(user id.UserID, name id.DeviceID, random io.Reader, suites ...mls.CipherSuite) (*Device, error) {
	d := &Device{ID: name, Key: newKey(random), MLS: map[mls.CipherSuite]mls.SignaturePrivateKey{}}
	for _, cs := range suites {
		key, err := mls.GenerateSignatureKey(cs, random)
		if err != nil {
			return nil, err
		}
		d.MLS[cs] = key
	}
	n.users[user].Devices[name] = d
	n.DevicesChanged(user)
	return d, nil
}

// Logout takes a device away.
func (n *Net) Logout(user id.UserID, name id.DeviceID) {
	delete(n.users[user].Devices, name)
	n.DevicesChanged(user)
}

// DevicesChanged publishes a user's devices anew, and lets all servers know.
func (n *Net) DevicesChanged(user id.UserID) {
	u := n.users[user]
	u.list = u.publish()
	home, list := n.Server(ServerOf(user)), u.list
	for _, s := range n.Servers {
		n.after(home, s, func() {
			s.cached[user] = list
			s.changed = append(s.changed, changedUser{len(s.changed), user})
			s.Changes++
		})
	}
}

// Devices returns what a user's server publishes of them. stale means that it does
// not answer, and that the list is what it said last, nil if it never did.
func (s *Server) Devices(user id.UserID) (list *DeviceList, stale bool) {
	u := s.net.users[user]
	if u == nil {
		return &DeviceList{User: user}, false
	}
	if s.Reaches(ServerOf(user)) {
		s.cached[user] = u.list
		return u.list, false
	}
	return s.cached[user], true
}

// ErrNoPackage: a device has no key package left.
var ErrNoPackage = errors.New("simnet: no key package")

// Claim takes a key package of a device.
func (s *Server) Claim(user id.UserID, name id.DeviceID) (*mls.KeyPackage, error) {
	if !s.Reaches(ServerOf(user)) {
		return nil, ErrUnreachable
	}
	u := s.net.users[user]
	if u == nil || u.Devices[name] == nil || len(u.Devices[name].Packages) == 0 {
		return nil, ErrNoPackage
	}
	d := u.Devices[name]
	kp := d.Packages[0]
	d.Packages = d.Packages[1:]
	return kp, nil
}

func b64(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

func public(key ed25519.PrivateKey) []byte { return key.Public().(ed25519.PublicKey) }

// signJSON signs an object in the Matrix way.
func signJSON(obj map[string]any, user id.UserID, keys map[string]ed25519.PrivateKey) json.RawMessage {
	canonical, err := canonicaljson.Marshal(obj)
	if err != nil {
		panic(err)
	}
	sigs := map[string]string{}
	for name, key := range keys {
		sigs["ed25519:"+name] = b64(ed25519.Sign(key, canonical))
	}
	obj["signatures"] = map[string]any{string(user): sigs}
	raw, err := json.Marshal(obj)
	if err != nil {
		panic(err)
	}
	return raw
}

// publish makes a user's device list, as clients see it after checking it.
func (u *User) publish() *DeviceList {
	crossKey := func(usage string, key ed25519.PrivateKey) json.RawMessage {
		return signJSON(map[string]any{
			"user_id": u.ID, "usage": []string{usage}, "keys": map[string]string{"ed25519:" + b64(public(key)): b64(public(key))},
		}, u.ID, map[string]ed25519.PrivateKey{b64(public(u.master)): u.master})
	}
	list := &DeviceList{User: u.ID}
	var err error
	if list.Cross, err = rooms.ParseCrossSigning(crossKey("master", u.master), crossKey("self_signing", u.self), u.ID); err != nil {
		panic(err)
	}
	for _, name := range slices.Sorted(maps.Keys(u.Devices)) {
		d := u.Devices[name]
		keys := map[string]string{"ed25519:" + string(name): b64(public(d.Key))}
		for cs, key := range d.MLS {
			keys[string(rooms.DeviceKeyID(cs, name))] = b64(key.Public())
		}
		signers := map[string]ed25519.PrivateKey{string(name): d.Key}
		if !d.Unsigned {
			signers[b64(public(u.self))] = u.self
		}
		parsed, err := rooms.ParseDeviceKeys(signJSON(map[string]any{
			"user_id": u.ID, "device_id": name, "algorithms": []string{}, "keys": keys,
		}, u.ID, signers), u.ID, name)
		if err != nil {
			panic(err)
		}
		list.Devices = append(list.Devices, parsed)
	}
	return list
}
