package mls

import (
	"bytes"
	"encoding/binary"
)

// A Message is an MLSMessage (RFC 9420, Section 6): what is sent from one
// client to others. Only its form was checked.
type Message struct {
	raw    []byte
	format WireFormat

	public     *publicMessage
	private    *privateMessage
	welcome    *Welcome
	groupInfo  *GroupInfo
	keyPackage *KeyPackage
}

// ParseMessage reads an MLSMessage. It keeps a copy of raw, refuses what does
// not end with the message, and more than 16 MiB.
func ParseMessage(raw []byte) (*Message, error) {
	if len(raw) > defaultMaxMessageSize {
		return nil, invalid("codec/vector-over-limit", "", "a message of %d bytes is over the limit of %d", len(raw), defaultMaxMessageSize)
	}
	raw = bytes.Clone(raw)
	m := new(Message)
	s := newReader(raw)
	if !m.unmarshal(s) {
		return nil, s.error()
	}
	if !s.Empty() {
		if m.public != nil {
			return nil, m.public.surplus(s.String)
		}
		return nil, invalid("codec/trailing-bytes-message", "6", "%d bytes follow the message", len(s.String))
	}
	if m.public != nil {
		if err := m.public.validate(); err != nil {
			return nil, err
		}
	}
	// RFC 9420, Section 10: the version is that of the message.
	if m.keyPackage != nil && m.keyPackage.Version != MLS10 {
		return nil, invalid("key-package/version-differs-from-message", "10", "a KeyPackage of version %d in a message of version %d", m.keyPackage.Version, MLS10)
	}
	return m, nil
}

// unexpected refuses a message where another kind is due.
func unexpected(m *Message, what string) error {
	name := map[WireFormat]string{WireFormatPublicMessage: "PublicMessage", WireFormatPrivateMessage: "PrivateMessage", WireFormatWelcome: "Welcome",
		WireFormatGroupInfo: "GroupInfo", WireFormatKeyPackage: "KeyPackage"}[m.format]
	return invalid("framing/wire-format-unexpected", "6", "a %s %s", name, what)
}

func (m *Message) unmarshal(s *reader) bool {
	start := s.String
	var version ProtocolVersion
	if !s.ReadUint16((*uint16)(&version)) {
		return false
	}
	if version != MLS10 {
		return s.fail("codec/unknown-version", "6", "protocol version %d, want %d", version, MLS10)
	}
	if !s.ReadUint16((*uint16)(&m.format)) {
		return false
	}
	var body interface{ unmarshal(*reader) bool }
	switch m.format {
	case WireFormatPublicMessage:
		m.public = new(publicMessage)
		body = m.public
	case WireFormatPrivateMessage:
		m.private = new(privateMessage)
		body = m.private
	case WireFormatWelcome:
		m.welcome = new(Welcome)
		body = m.welcome
	case WireFormatGroupInfo:
		m.groupInfo = new(GroupInfo)
		body = m.groupInfo
	case WireFormatKeyPackage:
		m.keyPackage = new(KeyPackage)
		body = m.keyPackage
	default:
		return s.fail("codec/unknown-wire-format", "6", "wire format %d", m.format)
	}
	if !body.unmarshal(s) {
		return false
	}
	m.raw = s.since(start)
	return true
}

// appendMessageHeader appends what comes before the body of an MLSMessage.
func appendMessageHeader(b []byte, wf WireFormat) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(MLS10))
	return binary.BigEndian.AppendUint16(b, uint16(wf))
}

// Raw returns the message's bytes. They must not be changed.
func (m *Message) Raw() []byte { return m.raw }

// WireFormat says what the message holds.
func (m *Message) WireFormat() WireFormat { return m.format }

// KeyPackage returns the KeyPackage, or nil if the message is something else.
func (m *Message) KeyPackage() *KeyPackage { return m.keyPackage }

// GroupInfo returns the GroupInfo, or nil if the message is something else.
func (m *Message) GroupInfo() *GroupInfo { return m.groupInfo }

// Welcome returns the Welcome, or nil if the message is something else.
func (m *Message) Welcome() *Welcome { return m.welcome }

// GroupID returns the group that a PublicMessage, PrivateMessage or GroupInfo
// is for, else nil.
func (m *Message) GroupID() []byte {
	switch {
	case m.public != nil:
		return m.public.auth.content.groupID
	case m.private != nil:
		return m.private.groupID
	case m.groupInfo != nil:
		return m.groupInfo.GroupID()
	}
	return nil
}

// Epoch returns the epoch of a PublicMessage, PrivateMessage or GroupInfo,
// else 0.
func (m *Message) Epoch() uint64 {
	switch {
	case m.public != nil:
		return m.public.auth.content.epoch
	case m.private != nil:
		return m.private.epoch
	case m.groupInfo != nil:
		return m.groupInfo.Epoch()
	}
	return 0
}

// ContentType returns the type of content of a PublicMessage or
// PrivateMessage, else 0.
func (m *Message) ContentType() ContentType {
	switch {
	case m.public != nil:
		return m.public.auth.content.contentType
	case m.private != nil:
		return m.private.contentType
	}
	return 0
}

// AuthenticatedData returns the data that a PublicMessage or PrivateMessage
// carries in the clear beside its content. It is the sender's only after the
// message was processed.
func (m *Message) AuthenticatedData() []byte {
	switch {
	case m.public != nil:
		return m.public.auth.content.authenticatedData
	case m.private != nil:
		return m.private.authenticatedData
	}
	return nil
}

// Sender returns who a PublicMessage claims to be from; ok is false for other
// messages.
func (m *Message) Sender() (sender Sender, ok bool) {
	if m.public == nil {
		return Sender{}, false
	}
	return m.public.auth.content.sender, true
}

// Proposal returns the proposal in a PublicMessage; ok is false for other
// messages. It is the sender's word only after its signature was checked.
func (m *Message) Proposal() (p Proposal, ok bool) {
	if m.public == nil || m.public.auth.content.contentType != ContentTypeProposal {
		return Proposal{}, false
	}
	return m.public.auth.content.proposal, true
}

// ConfirmationTag returns the confirmation tag of a Commit in a PublicMessage,
// else nil.
func (m *Message) ConfirmationTag() []byte {
	if m.public == nil {
		return nil
	}
	return m.public.auth.confirmationTag
}

// SignatureEnd returns how long the part of a PublicMessage is that ends with its
// signature: what follows are its tags. It is 0 for other messages.
func (m *Message) SignatureEnd() int {
	if m.public == nil {
		return 0
	}
	end := len(m.raw)
	if sender, _ := m.Sender(); sender.Type == SenderTypeMember {
		end -= len(appendOpaqueVec(nil, m.public.membershipTag))
	}
	if m.ContentType() == ContentTypeCommit {
		end -= len(appendOpaqueVec(nil, m.public.auth.confirmationTag))
	}
	return end
}

// CommitExtensions returns the extensions that a Commit in a PublicMessage
// proposes, by value, for the GroupContext (RFC 9420, Section 12.1.7); ok is
// false if it proposes none. They are the sender's word only after its
// signature was checked.
func (m *Message) CommitExtensions() (extensions []Extension, ok bool) {
	if m.public == nil || m.public.auth.content.commit == nil {
		return nil, false
	}
	for _, p := range m.public.auth.content.commit.proposals {
		if p.proposal != nil && p.proposal.Type == ProposalTypeGroupContextExtensions {
			return p.proposal.Extensions, true
		}
	}
	return nil, false
}

// VerifySender checks the signature of a PublicMessage under a key (RFC 9420,
// Section 6.1), for those who have no tree of its epoch: at is a GroupInfo of
// that epoch, and who holds the key is the caller's to know. Nothing else of the
// message is checked.
func (m *Message) VerifySender(at *GroupInfo, key SignaturePublicKey) error {
	if m.public == nil || at == nil {
		return invalid("framing/group-id", "6.2", "no PublicMessage, or no GroupInfo to check it against")
	}
	content := &m.public.auth.content
	switch {
	case !bytes.Equal(content.groupID, at.GroupID()):
		return invalid("framing/group-id", "6.2", "the message is of another group than the GroupInfo")
	case content.epoch < at.Epoch():
		return invalid("framing/epoch-old", "6.2", "the message is of epoch %d, the GroupInfo of epoch %d", content.epoch, at.Epoch())
	case content.epoch > at.Epoch():
		return invalid("framing/epoch-future", "6.2", "the message is of epoch %d, the GroupInfo of epoch %d", content.epoch, at.Epoch())
	}
	cs := at.CipherSuite()
	if err := cs.check(); err != nil {
		return err
	}
	return m.public.auth.verifySignature(cs, nil, key, at.contextRaw)
}
