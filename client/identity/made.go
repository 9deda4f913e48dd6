package identity

import (
	"bytes"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// NewUserDevices makes the device list of a user from keys that the caller has
// checked, as a source other than a homeserver's /keys/query would. Devices of
// a user with cross-signing keys are taken for cross-signed if CheckBinding
// says so when they are used. known is what was learned of the user before; the
// zero value takes the master key for the one that was seen first.
func NewUserDevices(user id.UserID, devices []*rooms.DeviceKeys, cross *rooms.CrossSigning, known rooms.Known) *UserDevices {
	u := &UserDevices{User: user, MasterState: MasterNone, Devices: make(map[id.DeviceID]*Device, len(devices)), cross: cross}
	if cross != nil {
		if len(known.Master) == 0 {
			known.Master = cross.Master
		}
		u.MasterKey, u.MasterState = rooms.EncodeBase64(cross.Master), MasterTOFU
		switch {
		case !bytes.Equal(known.Master, cross.Master):
			u.MasterState = MasterChanged
		case known.Verified:
			u.MasterState = MasterVerified
		}
	}
	u.known = known
	for _, keys := range devices {
		keys = keys.AgainstOnly(cross)
		d := &Device{ID: keys.Device, Ed25519: rooms.EncodeBase64(keys.Ed25519), MLSKeys: keys.MLS, keys: keys, firstSeen: keys.Ed25519}
		for cs, key := range keys.MLS {
			cred := &rooms.Credential{User: user, Device: keys.Device, Key: key}
			d.CrossSigned = u.cross != nil && rooms.CheckBinding(cred, cs, keys, cross, u.known, rooms.VerifyCross) == nil
			break
		}
		d.Verified = d.CrossSigned && known.Verified
		u.Devices[keys.Device] = d
	}
	return u
}
