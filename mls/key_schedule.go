package mls

import (
	"encoding/binary"
	"fmt"
)

// A groupContext is what all members agree on in an epoch (RFC 9420, Section
// 8.1).
type groupContext struct {
	version                 ProtocolVersion
	cipherSuite             CipherSuite
	groupID                 []byte
	epoch                   uint64
	treeHash                []byte
	confirmedTranscriptHash []byte
	extensions              []Extension
}

func (c *groupContext) unmarshal(s *reader) bool {
	if !s.ReadUint16((*uint16)(&c.version)) {
		return false
	}
	if c.version != MLS10 {
		return s.fail("codec/unknown-version", "6", "protocol version %d in a GroupContext", c.version)
	}
	return s.ReadUint16((*uint16)(&c.cipherSuite)) &&
		readOpaqueVec(s, &c.groupID) &&
		s.ReadUint64(&c.epoch) &&
		readOpaqueVec(s, &c.treeHash) &&
		readOpaqueVec(s, &c.confirmedTranscriptHash) &&
		readExtensions(s, &c.extensions)
}

func (c *groupContext) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(c.version))
	b = binary.BigEndian.AppendUint16(b, uint16(c.cipherSuite))
	b = appendOpaqueVec(b, c.groupID)
	b = binary.BigEndian.AppendUint64(b, c.epoch)
	b = appendOpaqueVec(b, c.treeHash)
	b = appendOpaqueVec(b, c.confirmedTranscriptHash)
	return appendExtensions(b, c.extensions)
}

// epochSecrets are the secrets of one epoch (RFC 9420, Section 8, Table 4).
// The encryption secret belongs to the secret tree once that is made, and the
// joiner and welcome secrets to the Welcome.
type epochSecrets struct {
	joiner        secret
	welcome       secret
	senderData    secret
	encryption    secret
	exporter      secret
	external      secret
	confirmation  secret
	membership    secret
	resumption    secret
	authenticator secret
	init          secret
}

// joinerSecret begins the key schedule of a new epoch (RFC 9420, Section 8).
func (cs CipherSuite) joinerSecret(initSecret, commitSecret secret, groupContext []byte) secret {
	prk := cs.extract(initSecret, commitSecret)
	defer prk.zero()
	return cs.expandWithLabel(prk, "joiner", groupContext, cs.HashLen())
}

// memberSecret mixes in the PSKs; a nil pskSecret is all zero.
func (cs CipherSuite) memberSecret(joiner, pskSecret secret) secret {
	if pskSecret == nil {
		pskSecret = zeros[:cs.HashLen()]
	}
	return cs.extract(joiner, pskSecret)
}

// welcomeSecret is what protects the GroupInfo of a Welcome.
func (cs CipherSuite) welcomeSecret(joiner, pskSecret secret) secret {
	m := cs.memberSecret(joiner, pskSecret)
	defer m.zero()
	return cs.deriveSecret(m, "welcome")
}

// welcomeKey returns key and nonce of a Welcome's GroupInfo (RFC 9420, Section
// 12.4.3.1).
func (cs CipherSuite) welcomeKey(welcomeSecret secret) (key, nonce secret) {
	key = cs.expandWithLabel(welcomeSecret, "key", nil, cs.suite().nk)
	nonce = cs.expandWithLabel(welcomeSecret, "nonce", nil, aeadNonceSize)
	return key, nonce
}

// newEpochSecrets carries the key schedule on from the joiner secret. The
// result keeps a copy of it.
func newEpochSecrets(cs CipherSuite, joiner, pskSecret secret, groupContext []byte) *epochSecrets {
	member := cs.memberSecret(joiner, pskSecret)
	defer member.zero()
	epoch := cs.expandWithLabel(member, "epoch", groupContext, cs.HashLen())
	defer epoch.zero()
	e := newEpochSecretsFromEpochSecret(cs, epoch)
	e.joiner = joiner.clone()
	e.welcome = cs.deriveSecret(member, "welcome")
	return e
}

// newEpochSecretsFromEpochSecret derives the secrets of an epoch; a new group
// begins with a random epoch secret (RFC 9420, Section 11).
func newEpochSecretsFromEpochSecret(cs CipherSuite, epoch secret) *epochSecrets {
	return &epochSecrets{
		senderData:    cs.deriveSecret(epoch, "sender data"),
		encryption:    cs.deriveSecret(epoch, "encryption"),
		exporter:      cs.deriveSecret(epoch, "exporter"),
		external:      cs.deriveSecret(epoch, "external"),
		confirmation:  cs.deriveSecret(epoch, "confirm"),
		membership:    cs.deriveSecret(epoch, "membership"),
		resumption:    cs.deriveSecret(epoch, "resumption"),
		authenticator: cs.deriveSecret(epoch, "authentication"),
		init:          cs.deriveSecret(epoch, "init"),
	}
}

// externalKeyPair returns the key pair that external Commits use (RFC 9420,
// Section 8.3).
func (e *epochSecrets) externalKeyPair(cs CipherSuite) (hpkePrivateKey, HPKEPublicKey, error) {
	return cs.deriveKeyPair(e.external)
}

// export is MLS-Exporter (RFC 9420, Section 8.5).
func (e *epochSecrets) export(cs CipherSuite, label string, context []byte, n int) ([]byte, error) {
	// The output length is 16 bits wide, and at most 255 blocks of HKDF.
	if n < 0 || n > 1<<16-1 || n > 255*cs.HashLen() {
		return nil, invalid("crypto/exporter-length", "8.5", "cannot export %d bytes, at most %d", n, min(1<<16-1, 255*cs.HashLen()))
	}
	if len(label) > 1<<16-1 {
		return nil, fmt.Errorf("mls: exporter label of %d bytes is too long", len(label))
	}
	s := cs.deriveSecret(e.exporter, label)
	defer s.zero()
	return cs.expandWithLabel(s, "exported", cs.hash(context), n), nil
}

// list returns all secrets in the order in which they are stored.
func (e *epochSecrets) list() []*secret {
	return []*secret{
		&e.joiner, &e.welcome, &e.senderData, &e.encryption, &e.exporter, &e.external,
		&e.confirmation, &e.membership, &e.resumption, &e.authenticator, &e.init,
	}
}

// zero overwrites all secrets.
func (e *epochSecrets) zero() {
	for _, s := range e.list() {
		s.zero()
		*s = nil
	}
}

// zeroWelcome overwrites what only a Welcome needs.
func (e *epochSecrets) zeroWelcome() {
	e.joiner.zero()
	e.welcome.zero()
	e.joiner, e.welcome = nil, nil
}

// appendTo writes the secrets for storage; those that are gone stay so.
func (e *epochSecrets) appendTo(b []byte) []byte {
	for _, s := range e.list() {
		b = appendOpaqueVec(b, *s)
	}
	return b
}

func (e *epochSecrets) unmarshal(s *reader) bool {
	for _, f := range e.list() {
		var v []byte
		if !readOpaqueVecMax(s, &v, 64) {
			return false
		}
		if *f = nil; len(v) > 0 {
			*f = secret(v).clone()
		}
	}
	return true
}
