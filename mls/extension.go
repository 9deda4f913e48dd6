package mls

import (
	"encoding/binary"
	"slices"
)

// An ExtensionType names an extension (RFC 9420, Section 17.3).
type ExtensionType uint16

// Extension types of RFC 9420.
const (
	ExtensionTypeApplicationID        ExtensionType = 1
	ExtensionTypeRatchetTree          ExtensionType = 2
	ExtensionTypeRequiredCapabilities ExtensionType = 3
	ExtensionTypeExternalPub          ExtensionType = 4
	ExtensionTypeExternalSenders      ExtensionType = 5
)

// A ProposalType names a kind of proposal (RFC 9420, Section 17.4).
type ProposalType uint16

// Proposal types of RFC 9420.
const (
	ProposalTypeAdd                    ProposalType = 1
	ProposalTypeUpdate                 ProposalType = 2
	ProposalTypeRemove                 ProposalType = 3
	ProposalTypePSK                    ProposalType = 4
	ProposalTypeReInit                 ProposalType = 5
	ProposalTypeExternalInit           ProposalType = 6
	ProposalTypeGroupContextExtensions ProposalType = 7
)

// An Extension is a typed value in a KeyPackage, LeafNode, GroupContext or
// GroupInfo (RFC 9420, Section 13.4).
type Extension struct {
	Type ExtensionType
	Data []byte
}

// RequiredCapabilities lists what every member must support (RFC 9420, Section
// 11.1).
type RequiredCapabilities struct {
	Extensions  []ExtensionType
	Proposals   []ProposalType
	Credentials []CredentialType
}

// An ExternalSender may propose to the group without being a member (RFC 9420,
// Section 12.1.8.1).
type ExternalSender struct {
	SignatureKey SignaturePublicKey
	Credential   Credential
}

// isDefaultExtension reports whether every client supports t, so that it is
// not listed in capabilities (RFC 9420, Section 7.2).
func isDefaultExtension(t ExtensionType) bool {
	return t >= ExtensionTypeApplicationID && t <= ExtensionTypeExternalSenders
}

// isDefaultProposal reports whether every client supports t (RFC 9420, Section
// 7.2).
func isDefaultProposal(t ProposalType) bool {
	return t >= ProposalTypeAdd && t <= ProposalTypeGroupContextExtensions
}

// isGREASE reports whether v is one of the values that stand for nothing
// (RFC 9420, Section 13.5).
func isGREASE(v uint16) bool {
	return v&0x0f0f == 0x0a0a && v>>8 == v&0xff && v != 0xfafa
}

// An extensionPlace is a structure that carries extensions.
type extensionPlace int

const (
	inKeyPackage extensionPlace = iota
	inLeafNode
	inGroupContext
	inGroupInfo
)

var extensionPlaces = [...]struct {
	name     string
	dup      Rule
	defaults []ExtensionType // RFC 9420, Section 17.3: where each default type may appear
}{
	inKeyPackage:   {"KeyPackage", "codec/duplicate-extension-key-package", nil},
	inLeafNode:     {"LeafNode", "codec/duplicate-extension-leaf-node", []ExtensionType{ExtensionTypeApplicationID}},
	inGroupContext: {"GroupContext", "codec/duplicate-extension-group-context", []ExtensionType{ExtensionTypeRequiredCapabilities, ExtensionTypeExternalSenders}},
	inGroupInfo:    {"GroupInfo", "codec/duplicate-extension-group-info", []ExtensionType{ExtensionTypeRatchetTree, ExtensionTypeExternalPub}},
}

// checkExtensions checks what must hold for the extensions of one structure,
// whatever the group: one of each type, in a place where it belongs, with a
// well-formed body where RFC 9420 defines it.
func checkExtensions(exts []Extension, place extensionPlace) error {
	p := &extensionPlaces[place]
	seen := make(map[ExtensionType]bool, len(exts))
	for i := range exts {
		e := &exts[i]
		// RFC 9420, Section 13.4: at most one extension of any type.
		if seen[e.Type] {
			return invalid(p.dup, "13.4", "extension type %d appears twice in a %s", e.Type, p.name)
		}
		seen[e.Type] = true
		// RFC 9420, Section 17.3: each default extension has its place.
		if isDefaultExtension(e.Type) && !slices.Contains(p.defaults, e.Type) {
			return invalid("codec/extension-wrong-place", "17.3", "extension type %d does not belong in a %s", e.Type, p.name)
		}
		if e.Type != ExtensionTypeRatchetTree && len(e.Data) > defaultMaxExtensionSize {
			return invalid("codec/vector-over-limit", "", "extension type %d of %d bytes in a %s is over the limit of %d", e.Type, len(e.Data), p.name, defaultMaxExtensionSize)
		}
		var err error
		switch e.Type {
		case ExtensionTypeApplicationID, ExtensionTypeExternalPub:
			var body opaqueBody
			err = unmarshalExtension(e, &body)
		case ExtensionTypeRequiredCapabilities:
			_, err = ParseRequiredCapabilities(e.Data)
		case ExtensionTypeExternalSenders:
			_, err = ParseExternalSenders(e.Data)
		case ExtensionTypeAppDataDictionary:
			// Elsewhere it is for those who know it.
			if place == inGroupContext {
				_, err = ParseAppDataDictionary(e.Data)
			}
		case ExtensionTypeRatchetTree:
			// Read once, with the tree, by the one who uses it.
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// opaqueBody is an extension body that is one opaque<V>.
type opaqueBody []byte

func (o *opaqueBody) unmarshal(s *reader) bool { return readOpaqueVec(s, (*[]byte)(o)) }

// unmarshalExtension reads the whole body of a known extension. RFC 9420,
// Section 13.4: nothing may follow it.
func unmarshalExtension(e *Extension, v interface{ unmarshal(*reader) bool }) error {
	s := newReader(e.Data)
	if !v.unmarshal(s) {
		return s.error()
	}
	if !s.Empty() {
		return invalid("codec/trailing-bytes-extension", "13.4", "%d bytes follow the body of extension type %d", len(s.String), e.Type)
	}
	return nil
}

func findExtension(exts []Extension, t ExtensionType) ([]byte, bool) {
	for i := range exts {
		if exts[i].Type == t {
			return exts[i].Data, true
		}
	}
	return nil, false
}

func (e *Extension) unmarshal(s *reader) bool {
	if !s.ReadUint16((*uint16)(&e.Type)) {
		return false
	}
	limit := uint32(defaultMaxExtensionSize)
	if e.Type == ExtensionTypeRatchetTree {
		limit = defaultMaxMessageSize
	}
	return readOpaqueVecMax(s, &e.Data, limit)
}

func (e *Extension) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(e.Type))
	return appendOpaqueVec(b, e.Data)
}

// maxExtensions bounds a list of extensions when it is read.
const maxExtensions = 1000

func readExtensions(s *reader, out *[]Extension) bool {
	*out = nil
	return readVector(s, func(s *reader) bool {
		var e Extension
		if !e.unmarshal(s) {
			return false
		}
		if len(*out) >= maxExtensions {
			return s.fail("codec/vector-over-limit", "", "more than %d extensions", maxExtensions)
		}
		*out = append(*out, e)
		return true
	})
}

func appendExtensions(b []byte, exts []Extension) []byte {
	return appendVector(b, func(b []byte) []byte {
		for i := range exts {
			b = exts[i].appendTo(b)
		}
		return b
	})
}

// cloneExtensions copies the extensions with their data.
func cloneExtensions(exts []Extension) []Extension {
	out := make([]Extension, len(exts))
	for i, e := range exts {
		out[i] = Extension{Type: e.Type, Data: slices.Clone(e.Data)}
	}
	return out
}

// readUint16s reads a vector of 16-bit values.
func readUint16s[T ~uint16](s *reader, out *[]T) bool {
	*out = nil
	return readVector(s, func(s *reader) bool {
		var v uint16
		if !s.ReadUint16(&v) {
			return false
		}
		*out = append(*out, T(v))
		return true
	})
}

func appendUint16s[T ~uint16](b []byte, vs []T) []byte {
	b = appendVarint(b, 2*len(vs))
	for _, v := range vs {
		b = binary.BigEndian.AppendUint16(b, uint16(v))
	}
	return b
}

// Extension returns the required_capabilities extension for a GroupContext.
func (r *RequiredCapabilities) Extension() Extension {
	return Extension{Type: ExtensionTypeRequiredCapabilities, Data: r.appendTo(nil)}
}

// ParseRequiredCapabilities reads the body of a required_capabilities extension.
func ParseRequiredCapabilities(data []byte) (*RequiredCapabilities, error) {
	r := new(RequiredCapabilities)
	if err := unmarshalExtension(&Extension{Type: ExtensionTypeRequiredCapabilities, Data: data}, r); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *RequiredCapabilities) unmarshal(s *reader) bool {
	return readUint16s(s, &r.Extensions) && readUint16s(s, &r.Proposals) && readUint16s(s, &r.Credentials)
}

func (r *RequiredCapabilities) appendTo(b []byte) []byte {
	b = appendUint16s(b, r.Extensions)
	b = appendUint16s(b, r.Proposals)
	return appendUint16s(b, r.Credentials)
}

// ExternalSendersExtension returns the external_senders extension for a
// GroupContext. A sender's index in it is what its proposals carry.
func ExternalSendersExtension(senders []ExternalSender) Extension {
	data := appendVector(nil, func(b []byte) []byte {
		for i := range senders {
			b = appendOpaqueVec(b, senders[i].SignatureKey)
			b = senders[i].Credential.appendTo(b)
		}
		return b
	})
	return Extension{Type: ExtensionTypeExternalSenders, Data: data}
}

// ParseExternalSenders reads the body of an external_senders extension.
func ParseExternalSenders(data []byte) ([]ExternalSender, error) {
	var l externalSenders
	if err := unmarshalExtension(&Extension{Type: ExtensionTypeExternalSenders, Data: data}, &l); err != nil {
		return nil, err
	}
	return l, nil
}

type externalSenders []ExternalSender

func (l *externalSenders) unmarshal(s *reader) bool {
	return readVector(s, func(s *reader) bool {
		var e ExternalSender
		if !readOpaqueVec(s, (*[]byte)(&e.SignatureKey)) || !e.Credential.unmarshal(s) {
			return false
		}
		*l = append(*l, e)
		return true
	})
}
