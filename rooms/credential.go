package rooms

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/mls"
)

// Credential is the identity of a leaf as MSC4256 lays it out: user id, device
// id and signature key, each a vector with the variable-size length of RFC
// 9420, Section 2.1.2, inside a basic credential.
type Credential struct {
	User   id.UserID
	Device id.DeviceID
	Key    mls.SignaturePublicKey
}

// String returns the user and device for messages to people.
func (c Credential) String() string { return string(c.User) + " " + string(c.Device) }

// MLS returns the basic credential for a leaf.
func (c Credential) MLS() mls.Credential {
	var b []byte
	b = appendVarVec(b, []byte(c.User))
	b = appendVarVec(b, []byte(c.Device))
	b = appendVarVec(b, c.Key)
	return mls.BasicCredential(b)
}

// appendVarVec appends v with a length as in RFC 9420, Section 2.1.2.
func appendVarVec(b, v []byte) []byte {
	if n := len(v); n < 64 {
		b = append(b, byte(n))
	} else {
		b = append(b, 0x40|byte(n>>8), byte(n))
	}
	return append(b, v...)
}

// readVarVec reads a vector of at most atMost bytes. Lengths that are not in
// their shortest form are refused.
func readVarVec(s *cryptobyte.String, out *[]byte, atMost int) bool {
	var first uint8
	if !s.ReadUint8(&first) {
		return false
	}
	n := int(first & 0x3f)
	switch first >> 6 {
	case 0:
	case 1:
		var second uint8
		if !s.ReadUint8(&second) {
			return false
		}
		if n = n<<8 | int(second); n < 64 {
			return false
		}
	default: // lengths from 16,384 on: nothing here is so long
		return false
	}
	return n <= atMost && s.ReadBytes(out, n)
}

// ParseCredential reads the identity of a leaf's credential. Anything but a
// basic credential in exactly the layout of [Credential] is refused with
// [RuleCredentialMalformed].
func ParseCredential(c *mls.Credential) (*Credential, error) {
	bad := func(format string, args ...any) error {
		return refuse(RuleCredentialMalformed, "credential", format, args...)
	}
	if c.Type != mls.CredentialTypeBasic {
		return nil, bad("type %d, want a basic credential", c.Type)
	}
	s := cryptobyte.String(c.Identity)
	var user, device, key []byte
	if !readVarVec(&s, &user, maxName) || !readVarVec(&s, &device, maxName) || !readVarVec(&s, &key, maxKeySize) || !s.Empty() {
		return nil, bad("is not user id, device id and signature key")
	}
	out := &Credential{User: id.UserID(user), Device: id.DeviceID(device), Key: key}
	if err := CheckUserID(out.User); err != nil {
		return nil, bad("%w", err)
	}
	if err := checkDeviceID(out.Device); err != nil {
		return nil, bad("%w", err)
	}
	if len(key) == 0 {
		return nil, bad("has no signature key")
	}
	return out, nil
}

func checkDeviceID(device id.DeviceID) error {
	if device == "" || len(device) > maxName || !json.Valid(appendCanonicalString(nil, string(device))) {
		return malformed("device id", "is empty or too long")
	}
	for _, c := range device {
		if c < ' ' || c == 0x7f || c == 0xfffd {
			return malformed("device id", "holds control characters or invalid UTF-8")
		}
	}
	return nil
}

// CredentialOf reads and checks the credential of a leaf: its layout, and that
// the key in it is the leaf's.
func CredentialOf(leaf *mls.LeafNode) (*Credential, error) {
	c, err := ParseCredential(&leaf.Credential)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(c.Key, leaf.SignatureKey) {
		return nil, refuse(RuleDeviceNotCredential, "leaf of "+c.String(), "the key in its credential is not the leaf's").
			with("the device has to be added again")
	}
	return c, nil
}

// Authenticator judges the form of credentials for package mls (RFC 9420,
// Section 5.3.1). Whether a device is the user's is [CheckBinding]'s to say:
// that takes keys from the homeserver, and can change while a leaf stays.
type Authenticator struct{}

var _ mls.Authenticator = Authenticator{}

// ValidateCredential implements mls.Authenticator.
func (Authenticator) ValidateCredential(leaf *mls.LeafNode) error {
	_, err := CredentialOf(leaf)
	return err
}

// SameClient implements mls.Authenticator: the same device of the same user.
func (Authenticator) SameClient(old, next *mls.LeafNode) bool {
	a, errA := ParseCredential(&old.Credential)
	b, errB := ParseCredential(&next.Credential)
	return errA == nil && errB == nil && a.User == b.User && a.Device == b.Device
}

// SuiteKeyAlgorithm returns the algorithm under which a device publishes its
// signature key, and its key packages, for a cipher suite (MSC4256).
func SuiteKeyAlgorithm(cs mls.CipherSuite) id.KeyAlgorithm {
	return id.KeyAlgorithm(KeyPackagePrefix + cs.String())
}

// DeviceKeyID returns the id of a device's signature key for a suite inside
// the keys of its device_keys.
func DeviceKeyID(cs mls.CipherSuite, device id.DeviceID) id.KeyID {
	return id.NewKeyID(SuiteKeyAlgorithm(cs), string(device))
}

// KeyPackageID returns the id of a key package among a device's one-time keys.
// It always holds a colon: some homeservers do not survive ids without one.
func KeyPackageID(cs mls.CipherSuite, ref mls.KeyPackageRef) id.KeyID {
	return id.NewKeyID(SuiteKeyAlgorithm(cs), EncodeBase64(ref))
}

// ParseKeyPackageID reads the id of a key package.
func ParseKeyPackageID(key id.KeyID) (mls.CipherSuite, mls.KeyPackageRef, error) {
	algorithm, text, ok := strings.Cut(string(key), ":")
	if ok {
		cs, known := SuiteOfAlgorithm(id.KeyAlgorithm(algorithm))
		ref, err := DecodeBase64(text)
		if known && err == nil && len(ref) > 0 && len(ref) <= 64 {
			return cs, ref, nil
		}
	}
	return 0, nil, malformed("key id", "%.120q is no key package", string(key))
}

// SuiteOfAlgorithm is the inverse of [SuiteKeyAlgorithm], over the suites of
// this build.
func SuiteOfAlgorithm(algorithm id.KeyAlgorithm) (mls.CipherSuite, bool) {
	name, ok := strings.CutPrefix(string(algorithm), KeyPackagePrefix)
	if !ok {
		return 0, false
	}
	for _, cs := range allSuites() {
		if cs.String() == name {
			return cs, true
		}
	}
	return 0, false
}

// allSuites are the suites of this build, the experimental ones included: that a
// device publishes a key for one gives nobody anything.
func allSuites() []mls.CipherSuite {
	return append(mls.SupportedCipherSuites(), mls.ExperimentalCipherSuites()...)
}

// DeviceKeys is a device as its homeserver describes it, with its own
// signature checked.
type DeviceKeys struct {
	User    id.UserID
	Device  id.DeviceID
	Ed25519 []byte                                     // the device's own key
	MLS     map[mls.CipherSuite]mls.SignaturePublicKey // signature keys for MLS

	signed     []byte            // canonical JSON under the signatures
	signatures map[string]string // of the same user: key id → base64

	against     []byte // the self-signing key that Against looked for
	crossSigned bool   // what it found
}

// ParseDeviceKeys reads an entry of device_keys in a /keys/query response that
// was found under the given user and device, and checks that the device signed
// it itself.
func ParseDeviceKeys(raw json.RawMessage, user id.UserID, device id.DeviceID) (*DeviceKeys, error) {
	what := fmt.Sprintf("device keys of %s %s", user, device)
	var c struct {
		User   id.UserID         `json:"user_id"`
		Device id.DeviceID       `json:"device_id"`
		Keys   map[string]string `json:"keys"`
	}
	signed, signatures, err := parseSigned(raw, user, &c)
	if err != nil {
		return nil, inContent(what, err)
	}
	if c.User != user || c.Device != device {
		return nil, refuse(RuleDeviceNotCredential, what, "they say that they are of %.80q %.80q", c.User, c.Device)
	}
	if err := checkDeviceID(device); err != nil {
		return nil, inContent(what, err)
	}
	d := &DeviceKeys{User: user, Device: device, MLS: make(map[mls.CipherSuite]mls.SignaturePublicKey), signed: signed, signatures: signatures}
	own := "ed25519:" + string(device)
	if d.Ed25519, err = decodeBase64(c.Keys[own]); err != nil || weakEd25519Key(d.Ed25519) {
		return nil, refuse(RuleDeviceNotCredential, what, "have no usable Ed25519 key")
	}
	if !d.signedBy(own, d.Ed25519) {
		return nil, refuse(RuleDeviceNotCredential, what, "are not signed by the device").with("log the device out and in again")
	}
	for _, cs := range allSuites() {
		text, ok := c.Keys[string(DeviceKeyID(cs, device))]
		if !ok {
			continue
		}
		key, err := DecodeBase64(text)
		if err != nil {
			return nil, inContent(what, err)
		}
		d.MLS[cs] = key
	}
	return d, nil
}

func (d *DeviceKeys) signedBy(keyID string, key []byte) bool {
	sig, err := decodeBase64(d.signatures[keyID])
	return err == nil && verifyEd25519(key, d.signed, sig)
}

// CrossSignedBy tells whether the self-signing key of the device's user has
// signed the device.
func (d *DeviceKeys) CrossSignedBy(c *CrossSigning) bool {
	switch {
	case c == nil || c.User != d.User:
		return false
	case len(d.against) > 0 && bytes.Equal(d.against, c.SelfSigning):
		return d.crossSigned
	}
	return d.signedBy("ed25519:"+EncodeBase64(c.SelfSigning), c.SelfSigning)
}

// Against returns the keys with the answer to CrossSignedBy for the given identity,
// which is asked for whenever the members of a group are compared, and follows from
// keys and signatures that never change here.
func (d *DeviceKeys) Against(c *CrossSigning) *DeviceKeys {
	out := *d
	out.against = nil
	if c != nil && c.User == d.User {
		out.crossSigned = out.CrossSignedBy(c)
		out.against = bytes.Clone(c.SelfSigning)
	}
	return &out
}

// AgainstOnly does what Against does and keeps no signatures beside the answer: a list of
// the devices of a large room takes less memory, and of another identity than the given
// one it says from then on that it has not signed the device.
func (d *DeviceKeys) AgainstOnly(c *CrossSigning) *DeviceKeys {
	out := d.Against(c)
	if len(out.against) > 0 {
		out.signed, out.signatures = nil, nil
	}
	return out
}

// CrossSigning is the public cross-signing keys of a user, with the signature
// of the master key over the self-signing key checked.
type CrossSigning struct {
	User        id.UserID
	Master      []byte
	SelfSigning []byte

	masterSigned []byte // canonical JSON of the master key
	masterRaw    json.RawMessage
}

// SignedBy tells whether a key of another user (its user-signing key) or a
// device of this user has signed the master key: that user or device vouches
// for this identity. keyID is the id without its algorithm: the key itself in
// base64, or the device id.
func (c *CrossSigning) SignedBy(user id.UserID, keyID string, key []byte) bool {
	_, signatures, err := parseSigned(c.masterRaw, user, &struct{}{})
	if err != nil {
		return false
	}
	sig, err := decodeBase64(signatures["ed25519:"+keyID])
	return err == nil && verifyEd25519(key, c.masterSigned, sig)
}

// ParseCrossSigning reads the entries of master_keys and self_signing_keys of a
// user in a /keys/query response.
func ParseCrossSigning(master, selfSigning json.RawMessage, user id.UserID) (*CrossSigning, error) {
	what := "cross-signing keys of " + string(user)
	msk, masterSigned, _, err := parseCrossSigningKey(master, user, "master")
	if err != nil {
		return nil, inContent(what, err)
	}
	ssk, signed, signatures, err := parseCrossSigningKey(selfSigning, user, "self_signing")
	if err != nil {
		return nil, inContent(what, err)
	}
	sig, err := decodeBase64(signatures["ed25519:"+EncodeBase64(msk)])
	if err != nil || !verifyEd25519(msk, signed, sig) {
		return nil, refuse(RuleDeviceKeyNotCrossSigned, what, "the self-signing key is not signed by the master key").
			with("%s has to set up cross-signing again", user)
	}
	if bytes.Equal(msk, ssk) {
		return nil, refuse(RuleDeviceKeyNotCrossSigned, what, "master and self-signing key are the same")
	}
	return &CrossSigning{User: user, Master: msk, SelfSigning: ssk, masterSigned: masterSigned, masterRaw: bytes.Clone(master)}, nil
}

// ParseUserSigning reads the entry of user_signing_keys of a user, which only
// the user's own devices see, and checks that the master key signed it.
func ParseUserSigning(raw json.RawMessage, cross *CrossSigning) ([]byte, error) {
	what := "user-signing key of " + string(cross.User)
	usk, signed, signatures, err := parseCrossSigningKey(raw, cross.User, "user_signing")
	if err != nil {
		return nil, inContent(what, err)
	}
	sig, err := decodeBase64(signatures["ed25519:"+EncodeBase64(cross.Master)])
	if err != nil || !verifyEd25519(cross.Master, signed, sig) {
		return nil, refuse(RuleDeviceKeyNotCrossSigned, what, "is not signed by the master key")
	}
	return usk, nil
}

func parseCrossSigningKey(raw json.RawMessage, user id.UserID, usage string) (key, signed []byte, signatures map[string]string, err error) {
	var c struct {
		User  id.UserID         `json:"user_id"`
		Usage []string          `json:"usage"`
		Keys  map[string]string `json:"keys"`
	}
	if signed, signatures, err = parseSigned(raw, user, &c); err != nil {
		return nil, nil, nil, err
	}
	if c.User != user {
		return nil, nil, nil, malformed(usage+" key", "is of %.80q", c.User)
	}
	found := false
	for _, u := range c.Usage {
		found = found || u == usage
	}
	if !found || len(c.Keys) != 1 {
		return nil, nil, nil, malformed(usage+" key", "has not exactly one key for this usage")
	}
	for keyID, text := range c.Keys {
		key, err = decodeBase64(text)
		if err != nil || keyID != "ed25519:"+text || weakEd25519Key(key) {
			return nil, nil, nil, malformed(usage+" key", "is no usable Ed25519 key")
		}
	}
	return key, signed, signatures, nil
}

// parseSigned reads a signed JSON object (Matrix specification, appendices,
// "Signing JSON"): its canonical bytes without signatures and unsigned, and the
// signatures of one user.
func parseSigned(raw json.RawMessage, user id.UserID, out any) (signed []byte, signatures map[string]string, err error) {
	v, err := parseJSON(raw, canonicalNumbers)
	if err != nil {
		return nil, nil, err
	}
	if v.kind != jsonObject {
		return nil, nil, malformed("", "is a JSON %v, want an object", v.kind)
	}
	if err := decodeObject(raw, out, canonicalNumbers); err != nil {
		return nil, nil, err
	}
	signatures = make(map[string]string)
	if all := v.member("signatures"); all != nil {
		if mine := all.member(string(user)); mine != nil && mine.kind == jsonObject {
			for i, k := range mine.keys {
				if mine.vals[i].kind == jsonString {
					signatures[k] = mine.vals[i].str
				}
			}
		}
	}
	return v.appendCanonical(nil, "signatures", "unsigned"), signatures, nil
}

// Known is what this device has learned of a user before. Zero values mean:
// nothing yet.
type Known struct {
	Master   []byte // master key seen first, verified, or named in an admission
	Verified bool   // a person compared the master key
	Device   []byte // Ed25519 key of the device when it was seen first
}

// CheckBinding tells whether a leaf's credential is bound to a Matrix device as
// the room's required verification says. device and cross come from
// /keys/query of the credential's user; nil means that the homeserver does not
// know any. The error names the user, the device and a remedy.
func CheckBinding(cred *Credential, cs mls.CipherSuite, device *DeviceKeys, cross *CrossSigning, known Known, need Verification) error {
	what := "device " + string(cred.Device) + " of " + string(cred.User)
	if device == nil || device.User != cred.User || device.Device != cred.Device {
		return refuse(RuleDeviceNotCredential, what, "its homeserver knows no such device").
			with("remove it, or let its user log in again")
	}
	if key, ok := device.MLS[cs]; !ok || !bytes.Equal(key, cred.Key) {
		return refuse(RuleDeviceNotCredential, what, "the device does not publish the leaf's key for %v", cs).
			with("let the device update its keys, or remove it")
	}
	if cross != nil && cross.User != cred.User {
		return refuse(RuleDeviceKeyNotCrossSigned, what, "the cross-signing keys are of %s", cross.User)
	}
	// Device ids and cross-signing keys share a name space in signatures: a
	// device named like such a key could pass off one's signature as the other's.
	if cross != nil {
		for _, k := range [][]byte{cross.Master, cross.SelfSigning} {
			if string(cred.Device) == EncodeBase64(k) || bytes.Equal(k, device.Ed25519) || bytes.Equal(k, cred.Key) {
				return refuse(RuleDeviceNotCredential, what, "is named like, or uses, a cross-signing key").with("remove it")
			}
		}
	}
	if len(known.Master) > 0 && (cross == nil || !bytes.Equal(known.Master, cross.Master)) && need != VerifyNone {
		r := refuse(RuleIdentityChanged, what, "the master key of %s is not the one known before", cred.User)
		if known.Verified {
			return r.with("you verified the old one: verify %s again before you trust this device", cred.User)
		}
		return r.with("ask %s whether they reset their keys, then accept the new identity", cred.User)
	}
	switch need {
	case VerifyNone:
		return nil
	case VerifyTOFU:
		if len(known.Device) > 0 && !bytes.Equal(known.Device, device.Ed25519) {
			return refuse(RuleIdentityChanged, what, "its key is not the one seen first").with("remove it, or accept the new key")
		}
		return nil
	case VerifyCross:
		if cross == nil {
			return refuse(RuleDeviceKeyNotCrossSigned, what, "%s has no cross-signing keys", cred.User).
				with("%s has to set up cross-signing", cred.User)
		}
		if !device.CrossSignedBy(cross) {
			return refuse(RuleDeviceKeyNotCrossSigned, what, "it is not signed by its user's self-signing key").
				with("%s has to verify the device from another one, or with the recovery key", cred.User)
		}
		return nil
	}
	return refuse(RuleDeviceKeyNotCrossSigned, what, "required verification %d is unknown", need)
}
