package mls

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"
)

// A LeafNodeSource says how a LeafNode came into the tree.
type LeafNodeSource uint8

// Sources of RFC 9420, Section 7.2.
const (
	LeafNodeSourceKeyPackage LeafNodeSource = 1
	LeafNodeSourceUpdate     LeafNodeSource = 2
	LeafNodeSourceCommit     LeafNodeSource = 3
)

func (s LeafNodeSource) String() string {
	switch s {
	case LeafNodeSourceKeyPackage:
		return "key_package"
	case LeafNodeSourceUpdate:
		return "update"
	case LeafNodeSourceCommit:
		return "commit"
	}
	return fmt.Sprintf("leaf_node_source(%d)", uint8(s))
}

// Capabilities lists what a client supports (RFC 9420, Section 7.2). The
// default extensions and proposals are not listed: everybody supports them.
// Lists may hold values unknown to us.
type Capabilities struct {
	Versions     []ProtocolVersion
	CipherSuites []CipherSuite
	Extensions   []ExtensionType
	Proposals    []ProposalType
	Credentials  []CredentialType
}

// Lifetime is the time in which a KeyPackage may be used, in seconds since the
// Unix epoch (RFC 9420, Section 7.2).
type Lifetime struct {
	NotBefore uint64
	NotAfter  uint64
}

// A LeafNode describes one member (RFC 9420, Section 7.2). A LeafNode obtained
// from this package is shared and must not be changed.
type LeafNode struct {
	EncryptionKey HPKEPublicKey
	SignatureKey  SignaturePublicKey
	Credential    Credential
	Capabilities  Capabilities
	Source        LeafNodeSource
	Lifetime      Lifetime // for LeafNodeSourceKeyPackage
	ParentHash    []byte   // for LeafNodeSourceCommit
	Extensions    []Extension
	Signature     []byte

	raw     []byte // the encoding as received or signed
	content int    // length of raw before the signature
	capsAt  int    // where in raw Capabilities begin
	caps    []byte // the encoding of Capabilities, part of raw
}

// Extension returns the body of the leaf's extension of type t.
func (l *LeafNode) Extension(t ExtensionType) ([]byte, bool) {
	return findExtension(l.Extensions, t)
}

// maxCapabilities bounds each list of a Capabilities in bytes.
const maxCapabilities = 2 * 1024

func readCapabilityList[T ~uint16](s *reader, out *[]T) bool {
	var body []byte
	if !readOpaqueVecMax(s, &body, maxCapabilities) {
		return false
	}
	if len(body)%2 != 0 {
		return s.fail("codec/vector-element-truncated", "2.1.2", "a list of 16-bit values has %d bytes", len(body))
	}
	*out = make([]T, len(body)/2)
	for i := range *out {
		(*out)[i] = T(binary.BigEndian.Uint16(body[2*i:]))
	}
	return true
}

func (c *Capabilities) unmarshal(s *reader) bool {
	return readCapabilityList(s, &c.Versions) &&
		readCapabilityList(s, &c.CipherSuites) &&
		readCapabilityList(s, &c.Extensions) &&
		readCapabilityList(s, &c.Proposals) &&
		readCapabilityList(s, &c.Credentials)
}

func (c *Capabilities) appendTo(b []byte) []byte {
	b = appendUint16s(b, c.Versions)
	b = appendUint16s(b, c.CipherSuites)
	b = appendUint16s(b, c.Extensions)
	b = appendUint16s(b, c.Proposals)
	return appendUint16s(b, c.Credentials)
}

// SupportsExtension tells whether a client with these capabilities supports
// the extension type; default types always are.
func (c *Capabilities) SupportsExtension(t ExtensionType) bool {
	return isDefaultExtension(t) || slices.Contains(c.Extensions, t)
}

// SupportsProposal tells whether a client with these capabilities supports the
// proposal type; default types always are.
func (c *Capabilities) SupportsProposal(t ProposalType) bool {
	return isDefaultProposal(t) || slices.Contains(c.Proposals, t)
}

// SupportsCredential tells whether a client with these capabilities supports
// the credential type.
func (c *Capabilities) SupportsCredential(t CredentialType) bool {
	return slices.Contains(c.Credentials, t)
}

// DefaultCapabilities are the capabilities of a leaf whose LeafOptions name
// none: MLS 1.0, all suites of this build, and basic credentials.
func DefaultCapabilities() Capabilities {
	return Capabilities{
		Versions:     []ProtocolVersion{MLS10},
		CipherSuites: SupportedCipherSuites(),
		Credentials:  []CredentialType{CredentialTypeBasic},
	}
}

// check refuses to build capabilities that list default types. RFC 9420,
// Section 7.2: "MUST NOT"; tolerated when received.
func (c *Capabilities) check() error {
	for _, t := range c.Extensions {
		if isDefaultExtension(t) {
			return invalid("leaf-node/default-types-listed", "7.2", "capabilities list the default extension type %d; leave it out", t)
		}
	}
	for _, t := range c.Proposals {
		if isDefaultProposal(t) {
			return invalid("leaf-node/default-types-listed", "7.2", "capabilities list the default proposal type %d; leave it out", t)
		}
	}
	return nil
}

func (l *LeafNode) unmarshal(s *reader) bool { return l.unmarshalAfter(s, nil) }

// unmarshalAfter reads a leaf that probably has the same capabilities as prev,
// whose lists it then shares: in most groups all do.
func (l *LeafNode) unmarshalAfter(s *reader, prev *LeafNode) bool {
	start := s.String
	if !readOpaqueVec(s, (*[]byte)(&l.EncryptionKey)) ||
		!readOpaqueVec(s, (*[]byte)(&l.SignatureKey)) ||
		!l.Credential.unmarshal(s) {
		return false
	}
	l.capsAt = len(s.since(start))
	at := s.String
	if prev != nil && bytes.HasPrefix(s.String, prev.caps) {
		l.Capabilities = prev.Capabilities
		s.String = s.String[len(prev.caps):]
	} else if !l.Capabilities.unmarshal(s) {
		return false
	}
	l.caps = s.since(at)
	if !s.ReadUint8((*uint8)(&l.Source)) {
		return false
	}
	switch l.Source {
	case LeafNodeSourceKeyPackage:
		if !s.ReadUint64(&l.Lifetime.NotBefore) || !s.ReadUint64(&l.Lifetime.NotAfter) {
			return false
		}
	case LeafNodeSourceUpdate:
	case LeafNodeSourceCommit:
		if !readOpaqueVec(s, &l.ParentHash) {
			return false
		}
	default:
		return s.fail("codec/unknown-leaf-node-source", "7.2", "leaf_node_source %d is not defined", uint8(l.Source))
	}
	if !readExtensions(s, &l.Extensions) {
		return false
	}
	l.content = len(s.since(start))
	if !readOpaqueVec(s, &l.Signature) {
		return false
	}
	l.raw = s.since(start)
	return true
}

func (l *LeafNode) appendTo(b []byte) []byte { return append(b, l.raw...) }

// appendContent encodes everything before the signature.
func (l *LeafNode) appendContent(b []byte) []byte {
	b = appendOpaqueVec(b, l.EncryptionKey)
	b = appendOpaqueVec(b, l.SignatureKey)
	b = l.Credential.appendTo(b)
	b = l.Capabilities.appendTo(b)
	b = append(b, byte(l.Source))
	switch l.Source {
	case LeafNodeSourceKeyPackage:
		b = binary.BigEndian.AppendUint64(b, l.Lifetime.NotBefore)
		b = binary.BigEndian.AppendUint64(b, l.Lifetime.NotAfter)
	case LeafNodeSourceCommit:
		b = appendOpaqueVec(b, l.ParentHash)
	}
	return appendExtensions(b, l.Extensions)
}

// tbs returns LeafNodeTBS. RFC 9420, Section 7.2: a leaf from an Update or a
// Commit is bound to its group and position.
func (l *LeafNode) tbs(groupID []byte, index LeafIndex) []byte {
	if l.Source == LeafNodeSourceKeyPackage {
		return l.raw[:l.content:l.content]
	}
	b := make([]byte, 0, l.content+len(groupID)+8)
	b = append(b, l.raw[:l.content]...)
	b = appendOpaqueVec(b, groupID)
	return binary.BigEndian.AppendUint32(b, uint32(index))
}

// sign encodes and signs l and returns it as a peer would parse it.
func (l *LeafNode) sign(cs CipherSuite, key SignaturePrivateKey, groupID []byte, index LeafIndex) (*LeafNode, error) {
	l.raw = l.appendContent(nil)
	l.content = len(l.raw)
	sig, err := SignWithLabel(cs, key, "LeafNodeTBS", l.tbs(groupID, index))
	if err != nil {
		return nil, fmt.Errorf("mls: signing a leaf node: %w", err)
	}
	c := new(LeafNode)
	if err := unmarshal(appendOpaqueVec(l.raw, sig), c); err != nil {
		return nil, fmt.Errorf("mls: the options give a leaf node that nobody could read: %w", err)
	}
	return c, nil
}

func (l *LeafNode) verifySignature(cs CipherSuite, kept *signers, groupID []byte, index LeafIndex) error {
	if err := cs.verify(kept, l.SignatureKey, signedContent("LeafNodeTBS", l.tbs(groupID, index)), l.Signature); err != nil {
		return invalid("leaf-node/signature-invalid", "7.3", "leaf node signature: %w", err)
	}
	return nil
}

// sourceRules names the rule broken by a leaf of another source.
var sourceRules = map[LeafNodeSource]Rule{
	LeafNodeSourceKeyPackage: "leaf-node/source-not-key-package",
	LeafNodeSourceUpdate:     "leaf-node/source-not-update",
	LeafNodeSourceCommit:     "leaf-node/source-not-commit",
}

// checkSource checks the leaf_node_source. RFC 9420, Section 7.3.
func (l *LeafNode) checkSource(want LeafNodeSource) error {
	if l.Source != want {
		return invalid(sourceRules[want], "7.3", "leaf_node_source is %v where %v is due", l.Source, want)
	}
	return nil
}

// checkForm checks all of RFC 9420, Section 7.3, that concerns the leaf
// alone, short of its signature and its place among others: keys, credential,
// capabilities and extensions. Whether the signature key is one at all, the
// verification that follows says.
func (l *LeafNode) checkForm(cfg *Config, cs CipherSuite) error {
	if err := cs.validateHPKEPublicKey(l.EncryptionKey); err != nil {
		return fmt.Errorf("mls: encryption_key of a leaf node: %w", err)
	}
	if err := cs.SignatureScheme().checkPublicKey(l.SignatureKey); err != nil {
		return fmt.Errorf("mls: signature_key of a leaf node: %w", err)
	}
	lim := cfg.limits()
	n := len(l.Credential.Identity)
	for _, c := range l.Credential.Certificates {
		n += len(c)
	}
	if n > lim.MaxCredentialSize {
		return invalid("codec/vector-over-limit", "", "a credential of %d bytes is over the limit of %d", n, lim.MaxCredentialSize)
	}
	if err := checkExtensions(l.Extensions, inLeafNode); err != nil {
		return err
	}
	listed := slices.Contains(l.Capabilities.Versions, MLS10) && slices.Contains(l.Capabilities.CipherSuites, cs)
	if !listed && (cfg == nil || !cfg.AllowUnlistedCipherSuite) {
		return invalid("leaf-node/cipher-suite-not-in-capabilities", "7.2", "the capabilities do not list version mls10 and suite %v", cs)
	}
	if !l.Capabilities.SupportsCredential(l.Credential.Type) {
		return invalid("leaf-node/credential-not-in-own-capabilities", "7.2", "the capabilities do not list the leaf's credential type %d", l.Credential.Type)
	}
	for i := range l.Extensions {
		// RFC 9420, Section 7.3: extensions of the leaf are in capabilities.
		if e := &l.Extensions[i]; !l.Capabilities.SupportsExtension(e.Type) {
			return invalid("leaf-node/extension-not-in-capabilities", "7.3", "the capabilities do not list the leaf's extension type %d", e.Type)
		}
		if e := &l.Extensions[i]; len(e.Data) > lim.MaxExtensionSize {
			return invalid("codec/vector-over-limit", "", "extension type %d of %d bytes is over the limit of %d", e.Type, len(e.Data), lim.MaxExtensionSize)
		}
	}
	if l.Source == LeafNodeSourceKeyPackage && l.Lifetime.NotAfter < l.Lifetime.NotBefore {
		return invalid("leaf-node/lifetime-inverted", "7.2", "not_after %d is before not_before %d", l.Lifetime.NotAfter, l.Lifetime.NotBefore)
	}
	if err := cfg.validateCredential(l); err != nil {
		return invalid("leaf-node/credential-invalid", "7.3", "credential: %w", err)
	}
	return nil
}

// checkLifetime checks how long a KeyPackage's leaf lives. RFC 9420, Section 7.2.
func (l *LeafNode) checkLifetime(cfg *Config) error {
	if l.Source != LeafNodeSourceKeyPackage {
		return nil
	}
	lim := cfg.limits()
	lt := l.Lifetime
	switch {
	case lt.NotAfter < lt.NotBefore:
		return invalid("leaf-node/lifetime-inverted", "7.2", "not_after %d is before not_before %d", lt.NotAfter, lt.NotBefore)
	case lim.MaxLifetime != math.MaxInt64 && lt.NotAfter-lt.NotBefore > uint64(lim.MaxLifetime):
		return invalid("leaf-node/lifetime-too-long", "7.2", "a lifetime of %d seconds is over the limit of %d", lt.NotAfter-lt.NotBefore, lim.MaxLifetime)
	}
	return nil
}

// checkClock checks that the time is within the leaf's lifetime. RFC 9420, Section
// 7.3: for a KeyPackage that is about to be used; a leaf that sits in a tree, or in
// a Commit that was delivered late, may have expired.
func (l *LeafNode) checkClock(cfg *Config) error {
	if l.Source != LeafNodeSourceKeyPackage {
		return nil
	}
	lim := cfg.limits()
	now := max(cfg.now().Unix(), 0)
	switch lt := l.Lifetime; {
	case lt.NotAfter < uint64(now):
		return invalid("leaf-node/lifetime-expired", "7.3", "not_after %d has passed", lt.NotAfter)
	case lt.NotBefore > uint64(now)+uint64(lim.ClockSkew):
		return invalid("leaf-node/lifetime-not-yet", "7.3", "not_before %d is still to come", lt.NotBefore)
	}
	return nil
}

// defaultLifetime is the lifetime of a KeyPackage made now: 84 days, and an
// hour back for the clocks of others.
func defaultLifetime(now time.Time) Lifetime {
	return Lifetime{
		NotBefore: uint64(max(0, now.Add(-time.Hour).Unix())),
		NotAfter:  uint64(max(0, now.Add(84*24*time.Hour).Unix())),
	}
}

// supportsGroup checks a leaf against the extensions of a group. RFC 9420,
// Section 7.3 (required_capabilities) and Section 13.4: who is in a group
// supports its extensions.
func (c *Capabilities) supportsGroup(exts []Extension, req *RequiredCapabilities) error {
	if req != nil {
		for _, t := range req.Extensions {
			if !c.SupportsExtension(t) {
				return invalid("leaf-node/required-extension-missing", "7.3", "the capabilities do not list the required extension type %d", t)
			}
		}
		for _, t := range req.Proposals {
			if !c.SupportsProposal(t) {
				return invalid("leaf-node/required-proposal-missing", "7.3", "the capabilities do not list the required proposal type %d", t)
			}
		}
		for _, t := range req.Credentials {
			if !c.SupportsCredential(t) {
				return invalid("leaf-node/required-credential-missing", "7.3", "the capabilities do not list the required credential type %d", t)
			}
		}
	}
	for i := range exts {
		if t := exts[i].Type; !c.SupportsExtension(t) {
			return invalid("leaf-node/required-extension-missing", "13.4", "the capabilities do not list the group's extension type %d", t)
		}
	}
	return nil
}

// requiredCapabilities returns the required_capabilities of a GroupContext,
// nil if it has none.
func requiredCapabilities(exts []Extension) (*RequiredCapabilities, error) {
	data, ok := findExtension(exts, ExtensionTypeRequiredCapabilities)
	if !ok {
		return nil, nil
	}
	return ParseRequiredCapabilities(data)
}
