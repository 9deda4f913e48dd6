package mls

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// ExtensionTypeLastResort marks a KeyPackage that may be used more than once
// when a client has no other left (RFC 9420, Section 16.8). It is what OpenMLS
// and mls-rs read and write, from earlier versions of draft-ietf-mls-extensions;
// version 10 has ComponentLastResort instead.
const ExtensionTypeLastResort ExtensionType = 0x000a

// A KeyPackage lets others add its client to groups (RFC 9420, Section 10). A
// KeyPackage obtained from this package must not be changed.
type KeyPackage struct {
	Version     ProtocolVersion
	CipherSuite CipherSuite
	InitKey     HPKEPublicKey
	LeafNode    *LeafNode
	Extensions  []Extension
	Signature   []byte

	raw     []byte
	content int // length of raw before the signature
}

func (kp *KeyPackage) unmarshal(s *reader) bool {
	start := s.String
	var version, suite uint16
	if !s.ReadUint16(&version) || !s.ReadUint16(&suite) || !readOpaqueVec(s, (*[]byte)(&kp.InitKey)) {
		return false
	}
	kp.Version, kp.CipherSuite = ProtocolVersion(version), CipherSuite(suite)
	kp.LeafNode = new(LeafNode)
	if !kp.LeafNode.unmarshal(s) || !readExtensions(s, &kp.Extensions) {
		return false
	}
	kp.content = len(s.since(start))
	if !readOpaqueVec(s, &kp.Signature) {
		return false
	}
	kp.raw = s.since(start)
	return true
}

func (kp *KeyPackage) appendTo(b []byte) []byte { return append(b, kp.raw...) }

// Ref returns the hash reference by which Welcomes name the KeyPackage
// (RFC 9420, Section 5.2); nil if its suite is neither Supported nor Experimental.
func (kp *KeyPackage) Ref() KeyPackageRef {
	if kp.CipherSuite.check() != nil {
		return nil
	}
	return KeyPackageRef(RefHash(kp.CipherSuite, "MLS 1.0 KeyPackage Reference", kp.raw))
}

// Message returns the KeyPackage as an MLSMessage.
func (kp *KeyPackage) Message() []byte {
	return kp.appendTo(appendMessageHeader(nil, WireFormatKeyPackage))
}

// LastResort tells whether the KeyPackage may be used more than once: by an
// extension of its own or by a component of an app_data_dictionary.
func (kp *KeyPackage) LastResort() bool {
	if _, ok := findExtension(kp.Extensions, ExtensionTypeLastResort); ok {
		return true
	}
	data, ok := findExtension(kp.Extensions, ExtensionTypeAppDataDictionary)
	if !ok {
		return false
	}
	d, err := ParseAppDataDictionary(data)
	if err != nil {
		return false
	}
	_, ok = d.Get(ComponentLastResort)
	return ok
}

// Validate checks the KeyPackage for a group with the given suite, including
// its lifetime (RFC 9420, Section 10.1). Commit and Process do so, too.
func (kp *KeyPackage) Validate(cfg *Config, cs CipherSuite) error {
	if err := cfg.checkSuite(cs); err != nil {
		return err
	}
	if err := kp.checkForm(cfg, cs); err != nil {
		return err
	}
	if err := kp.checkClock(cfg); err != nil {
		return err
	}
	return kp.verifySignatures()
}

// checkForm checks all of RFC 9420, Section 10.1, but the two signatures and
// whether the time is within the lifetime.
func (kp *KeyPackage) checkForm(cfg *Config, cs CipherSuite) error {
	if kp.raw == nil {
		return invalid("key-package/signature-invalid", "10.1", "the KeyPackage was not made or parsed by this package")
	}
	if kp.Version != MLS10 {
		return invalid("key-package/version-differs", "10.1", "the KeyPackage has version %d", kp.Version)
	}
	if kp.CipherSuite != cs {
		return invalid("key-package/cipher-suite-differs", "10.1", "the KeyPackage has suite %v where %v is due", kp.CipherSuite, cs)
	}
	if err := checkExtensions(kp.Extensions, inKeyPackage); err != nil {
		return err
	}
	if err := cs.validateHPKEPublicKey(kp.InitKey); err != nil {
		return invalid("key-package/init-key-malformed", "10", "init_key: %w", err)
	}
	if bytes.Equal(kp.InitKey, kp.LeafNode.EncryptionKey) {
		return invalid("key-package/init-key-equals-encryption-key", "10.1", "init_key and the leaf's encryption_key are equal")
	}
	err := kp.LeafNode.checkSource(LeafNodeSourceKeyPackage)
	if err == nil {
		err = kp.LeafNode.checkForm(cfg, cs)
	}
	if err == nil {
		err = kp.LeafNode.checkLifetime(cfg)
	}
	if err != nil {
		return invalid("key-package/leaf-invalid", "10.1", "%w", err)
	}
	return nil
}

// checkClock checks that the KeyPackage may be used now.
func (kp *KeyPackage) checkClock(cfg *Config) error {
	if err := kp.LeafNode.checkClock(cfg); err != nil {
		return invalid("key-package/leaf-invalid", "10.1", "%w", err)
	}
	return nil
}

// verifySignatures checks the signatures of the KeyPackage and of its leaf. It
// reads only, so that many may be checked at once.
func (kp *KeyPackage) verifySignatures() error {
	if err := kp.LeafNode.verifySignature(kp.CipherSuite, nil, nil, 0); err != nil {
		return invalid("key-package/leaf-invalid", "10.1", "%w", err)
	}
	if err := VerifyWithLabel(kp.CipherSuite, kp.LeafNode.SignatureKey, "KeyPackageTBS", kp.raw[:kp.content], kp.Signature); err != nil {
		return invalid("key-package/signature-invalid", "10.1", "KeyPackage signature: %w", err)
	}
	return nil
}

// LeafOptions describe a leaf of our own. Only Credential is needed.
type LeafOptions struct {
	Credential Credential

	// Capabilities of the leaf. Nil means those of the leaf that it replaces in
	// the group, or DefaultCapabilities, with experimental suites if the Config
	// allows them. The leaf's own extension and credential types are added.
	Capabilities *Capabilities

	// Lifetime of a KeyPackage. Nil means from an hour ago for 84 days.
	Lifetime *Lifetime

	LeafExtensions       []Extension
	KeyPackageExtensions []Extension

	// LastResort adds the last_resort extension to a KeyPackage.
	LastResort bool
}

// leaf returns an unsigned leaf with these options. caps are its capabilities if
// the options have none.
func (o *LeafOptions) leaf(caps Capabilities, key SignaturePrivateKey, encryptionKey HPKEPublicKey) (*LeafNode, error) {
	l := &LeafNode{
		EncryptionKey: encryptionKey,
		SignatureKey:  key.Public(),
		Credential:    o.Credential,
		Extensions:    o.LeafExtensions,
	}
	if o.Capabilities != nil {
		l.Capabilities = *o.Capabilities
	} else {
		l.Capabilities = caps
		if !caps.SupportsCredential(o.Credential.Type) {
			l.Capabilities.Credentials = append(slices.Clip(caps.Credentials), o.Credential.Type)
		}
		for i := range o.LeafExtensions {
			if t := o.LeafExtensions[i].Type; !l.Capabilities.SupportsExtension(t) {
				l.Capabilities.Extensions = append(slices.Clip(l.Capabilities.Extensions), t)
			}
		}
	}
	if err := l.Capabilities.check(); err != nil {
		return nil, err
	}
	return l, nil
}

// A KeyPackageBundle is a KeyPackage with the private keys that belong to it.
// JoinWelcome uses it up, unless it is one of last resort.
type KeyPackageBundle struct {
	keyPackage *KeyPackage
	initKey    hpkePrivateKey // nil when used up
	leafKey    hpkePrivateKey
	signature  SignaturePrivateKey
}

// NewKeyPackage makes a KeyPackage and its private keys. Store the bundle
// before the KeyPackage is given away.
func NewKeyPackage(cfg *Config, cs CipherSuite, key SignaturePrivateKey, o LeafOptions) (*KeyPackageBundle, error) {
	if err := cfg.checkSuite(cs); err != nil {
		return nil, err
	}
	b := &KeyPackageBundle{signature: key}
	var initPub, leafPub HPKEPublicKey
	var err error
	if b.initKey, initPub, err = cs.generateKeyPair(cfg.rand()); err != nil {
		return nil, fmt.Errorf("mls: generating an init key: %w", err)
	}
	if b.leafKey, leafPub, err = cs.generateKeyPair(cfg.rand()); err != nil {
		return nil, fmt.Errorf("mls: generating a leaf key: %w", err)
	}
	l, err := o.leaf(cfg.capabilities(), key, leafPub)
	if err != nil {
		return nil, err
	}
	l.Source = LeafNodeSourceKeyPackage
	l.Lifetime = defaultLifetime(cfg.now())
	if o.Lifetime != nil {
		l.Lifetime = *o.Lifetime
	}
	exts := o.KeyPackageExtensions
	if o.LastResort {
		exts = append(exts[:len(exts):len(exts)], Extension{Type: ExtensionTypeLastResort})
	}
	// RFC 9420, Section 10: the leaf's capabilities list the extensions of
	// the KeyPackage.
	listed := &l.Capabilities.Extensions
	for i := range exts {
		if t := exts[i].Type; !l.Capabilities.SupportsExtension(t) {
			*listed = append((*listed)[:len(*listed):len(*listed)], t)
		}
	}
	if l, err = l.sign(cs, key, nil, 0); err != nil {
		return nil, err
	}
	raw := binary.BigEndian.AppendUint16(nil, uint16(MLS10))
	raw = binary.BigEndian.AppendUint16(raw, uint16(cs))
	raw = appendOpaqueVec(raw, initPub)
	raw = l.appendTo(raw)
	raw = appendExtensions(raw, exts)
	sig, err := SignWithLabel(cs, key, "KeyPackageTBS", raw)
	if err != nil {
		return nil, fmt.Errorf("mls: signing a KeyPackage: %w", err)
	}
	b.keyPackage = new(KeyPackage)
	if err := unmarshal(appendOpaqueVec(raw, sig), b.keyPackage); err != nil {
		return nil, fmt.Errorf("mls: the options give a KeyPackage that nobody could read: %w", err)
	}
	if err = b.keyPackage.checkForm(cfg, cs); err == nil {
		err = b.keyPackage.checkClock(cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("mls: the options give a KeyPackage that others refuse: %w", err)
	}
	return b, nil
}

// KeyPackage returns the public part.
func (b *KeyPackageBundle) KeyPackage() *KeyPackage { return b.keyPackage }

// Message returns the KeyPackage as an MLSMessage.
func (b *KeyPackageBundle) Message() []byte { return b.keyPackage.Message() }

// Ref returns the KeyPackage's hash reference.
func (b *KeyPackageBundle) Ref() KeyPackageRef { return b.keyPackage.Ref() }

// Used tells whether a join has used the bundle up.
func (b *KeyPackageBundle) Used() bool { return b.initKey == nil }

// Zero wipes the private HPKE keys, as far as Go lets us.
func (b *KeyPackageBundle) Zero() {
	secret(b.initKey).zero()
	secret(b.leafKey).zero()
	b.initKey, b.leafKey = nil, nil
}

// consume forgets the init key of a bundle that was used. RFC 9420, Section
// 16.8. The leaf key lives on in the group, which has its own copy.
func (b *KeyPackageBundle) consume() {
	if !b.keyPackage.LastResort() {
		b.Zero()
	}
}

const bundleFormat = 1

// MarshalBinary encodes the bundle with its private keys: keep it as safe as
// them. A used bundle has nothing to keep.
func (b *KeyPackageBundle) MarshalBinary() ([]byte, error) {
	if b.Used() {
		return nil, errors.New("mls: the KeyPackage is used up; there is nothing to store")
	}
	out := []byte{bundleFormat}
	out = b.keyPackage.appendTo(out)
	out = appendOpaqueVec(out, b.initKey)
	out = appendOpaqueVec(out, b.leafKey)
	return appendOpaqueVec(out, b.signature.Bytes()), nil
}

// UnmarshalKeyPackageBundle decodes what MarshalBinary gave.
func UnmarshalKeyPackageBundle(data []byte) (*KeyPackageBundle, error) {
	s := newReader(bytes.Clone(data))
	b := &KeyPackageBundle{keyPackage: new(KeyPackage)}
	var format uint8
	var sig []byte
	if !s.ReadUint8(&format) {
		return nil, fmt.Errorf("mls: reading a stored KeyPackage: %w", s.error())
	}
	if format != bundleFormat {
		return nil, fmt.Errorf("mls: a stored KeyPackage has format %d; this version reads %d", format, bundleFormat)
	}
	if !b.keyPackage.unmarshal(s) || !readOpaqueVec(s, (*[]byte)(&b.initKey)) ||
		!readOpaqueVec(s, (*[]byte)(&b.leafKey)) || !readOpaqueVec(s, &sig) {
		return nil, fmt.Errorf("mls: reading a stored KeyPackage: %w", s.error())
	}
	if !s.Empty() {
		return nil, errors.New("mls: reading a stored KeyPackage: bytes follow it")
	}
	cs := b.keyPackage.CipherSuite
	if err := cs.check(); err != nil {
		return nil, err
	}
	var err error
	if b.signature, err = ParseSignaturePrivateKey(cs, sig); err != nil {
		return nil, fmt.Errorf("mls: reading a stored KeyPackage: %w", err)
	}
	return b, b.check()
}

// check makes sure that the private keys belong to the public ones.
func (b *KeyPackageBundle) check() error {
	cs := b.keyPackage.CipherSuite
	for _, k := range []struct {
		priv hpkePrivateKey
		pub  HPKEPublicKey
	}{{b.initKey, b.keyPackage.InitKey}, {b.leafKey, b.keyPackage.LeafNode.EncryptionKey}} {
		pub, err := cs.publicKey(k.priv)
		if err != nil {
			return fmt.Errorf("mls: private key of a KeyPackage: %w", err)
		}
		if !bytes.Equal(pub, k.pub) {
			return errors.New("mls: a private key does not belong to its KeyPackage")
		}
	}
	if !bytes.Equal(b.signature.Public(), b.keyPackage.LeafNode.SignatureKey) {
		return errors.New("mls: the signature key does not belong to the KeyPackage")
	}
	return nil
}

// Format prints the KeyPackage's reference and nothing secret, whatever the
// verb.
func (b *KeyPackageBundle) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "mls.KeyPackageBundle(%x)", []byte(b.Ref()))
}
