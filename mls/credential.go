package mls

import (
	"bytes"
	"encoding/binary"
)

// A CredentialType says what kind of credential a leaf carries (RFC 9420,
// Section 17.5).
type CredentialType uint16

// Credential types of RFC 9420.
const (
	CredentialTypeBasic CredentialType = 1
	CredentialTypeX509  CredentialType = 2
)

// A Credential binds a client's identity to its signature key (RFC 9420,
// Section 5.3). Whether the binding holds is for Config.Authenticator to say.
type Credential struct {
	Type CredentialType

	// Identity is the identity of a basic credential. Credentials of other
	// types than the two of RFC 9420 are one opaque vector, and this is it.
	Identity []byte

	// Certificates is the DER chain of an X.509 credential, the leaf's first.
	Certificates [][]byte
}

// BasicCredential returns a credential that is a bare identity.
func BasicCredential(identity []byte) Credential {
	return Credential{Type: CredentialTypeBasic, Identity: identity}
}

// Equal reports whether both have the same type and content.
func (c *Credential) Equal(o *Credential) bool {
	if c.Type != o.Type || len(c.Certificates) != len(o.Certificates) || !bytes.Equal(c.Identity, o.Identity) {
		return false
	}
	for i := range c.Certificates {
		if !bytes.Equal(c.Certificates[i], o.Certificates[i]) {
			return false
		}
	}
	return true
}

func (c *Credential) unmarshal(s *reader) bool {
	*c = Credential{}
	if !s.ReadUint16((*uint16)(&c.Type)) {
		return false
	}
	if c.Type != CredentialTypeX509 {
		return readOpaqueVecMax(s, &c.Identity, defaultMaxCredential)
	}
	start := s.String
	var chain []byte
	if !readOpaqueVecMax(s, &chain, defaultMaxCredential) {
		return false
	}
	s.String = start
	return readVector(s, func(s *reader) bool {
		var cert []byte
		if !readOpaqueVec(s, &cert) {
			return false
		}
		c.Certificates = append(c.Certificates, cert)
		return true
	})
}

func (c *Credential) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(c.Type))
	if c.Type != CredentialTypeX509 {
		return appendOpaqueVec(b, c.Identity)
	}
	return appendVector(b, func(b []byte) []byte {
		for _, cert := range c.Certificates {
			b = appendOpaqueVec(b, cert)
		}
		return b
	})
}
