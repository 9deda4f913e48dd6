package mls

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

// A WireFormat says what an MLSMessage holds (RFC 9420, Section 17.2).
type WireFormat uint16

// Wire formats of RFC 9420.
const (
	WireFormatPublicMessage  WireFormat = 1
	WireFormatPrivateMessage WireFormat = 2
	WireFormatWelcome        WireFormat = 3
	WireFormatGroupInfo      WireFormat = 4
	WireFormatKeyPackage     WireFormat = 5
)

// A ContentType says what a framed message holds (RFC 9420, Section 6).
type ContentType uint8

// Content types of RFC 9420.
const (
	ContentTypeApplication ContentType = 1
	ContentTypeProposal    ContentType = 2
	ContentTypeCommit      ContentType = 3
)

// A SenderType says who sent a message (RFC 9420, Section 6).
type SenderType uint8

// Sender types of RFC 9420.
const (
	SenderTypeMember            SenderType = 1
	SenderTypeExternal          SenderType = 2
	SenderTypeNewMemberProposal SenderType = 3
	SenderTypeNewMemberCommit   SenderType = 4
)

// A Sender says who sent a message (RFC 9420, Section 6).
type Sender struct {
	Type      SenderType
	LeafIndex LeafIndex // of a member
	Index     uint32    // of an external sender, in the external_senders extension
}

func (p *Sender) unmarshal(s *reader) bool {
	*p = Sender{}
	if !s.ReadUint8((*uint8)(&p.Type)) {
		return false
	}
	switch p.Type {
	case SenderTypeMember:
		return s.ReadUint32((*uint32)(&p.LeafIndex))
	case SenderTypeExternal:
		return s.ReadUint32(&p.Index)
	case SenderTypeNewMemberProposal, SenderTypeNewMemberCommit:
		return true
	}
	return s.fail("codec/unknown-sender-type", "6", "sender type %d", p.Type)
}

func (p *Sender) appendTo(b []byte) []byte {
	b = append(b, byte(p.Type))
	switch p.Type {
	case SenderTypeMember:
		b = binary.BigEndian.AppendUint32(b, uint32(p.LeafIndex))
	case SenderTypeExternal:
		b = binary.BigEndian.AppendUint32(b, p.Index)
	}
	return b
}

func (ct *ContentType) unmarshal(s *reader) bool {
	if !s.ReadUint8((*uint8)(ct)) {
		return false
	}
	if *ct < ContentTypeApplication || *ct > ContentTypeCommit {
		return s.fail("codec/unknown-content-type", "6", "content type %d", *ct)
	}
	return true
}

// A framedContent is the FramedContent of RFC 9420, Section 6. Of the three
// kinds of content the one that contentType names is set.
type framedContent struct {
	groupID           []byte
	epoch             uint64
	sender            Sender
	authenticatedData []byte
	contentType       ContentType

	applicationData []byte
	proposal        Proposal
	commit          *commit

	body []byte // the content's encoding
	raw  []byte // the whole encoding: what is signed and hashed
}

func (c *framedContent) unmarshal(s *reader) bool {
	start := s.String
	if !readOpaqueVec(s, &c.groupID) ||
		!s.ReadUint64(&c.epoch) ||
		!c.sender.unmarshal(s) ||
		!readOpaqueVec(s, &c.authenticatedData) ||
		!c.contentType.unmarshal(s) ||
		!c.unmarshalBody(s) {
		return false
	}
	c.raw = s.since(start)
	return true
}

func (c *framedContent) unmarshalBody(s *reader) bool {
	start := s.String
	ok := false
	switch c.contentType {
	case ContentTypeApplication:
		ok = readOpaqueVec(s, &c.applicationData)
	case ContentTypeProposal:
		ok = readProposal(s, &c.proposal)
	case ContentTypeCommit:
		c.commit = new(commit)
		ok = c.commit.unmarshal(s)
	}
	c.body = s.since(start)
	return ok
}

// encode sets raw, and body as a part of it.
func (c *framedContent) encode() {
	size := len(c.body)
	if c.commit != nil {
		size = c.commit.size()
	}
	b := c.appendHeader(make([]byte, 0, c.headerSize()+size))
	n := len(b)
	c.raw = c.appendBody(b)
	c.body = c.raw[n:]
}

// headerSize is the size of what appendHeader appends.
func (c *framedContent) headerSize() int {
	n := varintSize(len(c.groupID)) + len(c.groupID) + 8 + 1 + varintSize(len(c.authenticatedData)) + len(c.authenticatedData) + 1
	if c.sender.Type == SenderTypeMember || c.sender.Type == SenderTypeExternal {
		n += 4
	}
	return n
}

func (c *framedContent) appendHeader(b []byte) []byte {
	b = appendOpaqueVec(b, c.groupID)
	b = binary.BigEndian.AppendUint64(b, c.epoch)
	b = c.sender.appendTo(b)
	b = appendOpaqueVec(b, c.authenticatedData)
	return append(b, byte(c.contentType))
}

func (c *framedContent) appendTo(b []byte) []byte {
	if c.raw != nil {
		return append(b, c.raw...)
	}
	return c.appendBody(c.appendHeader(b))
}

func (c *framedContent) appendBody(b []byte) []byte {
	switch {
	case c.body != nil:
		return append(b, c.body...)
	case c.contentType == ContentTypeApplication:
		return appendOpaqueVec(b, c.applicationData)
	case c.contentType == ContentTypeProposal:
		return appendProposal(b, &c.proposal)
	}
	return c.commit.appendTo(b)
}

// bodySize is the size of what appendBody appends, for content that encode was
// called for or that is application data.
func (c *framedContent) bodySize() int {
	if c.body != nil {
		return len(c.body)
	}
	return varintSize(len(c.applicationData)) + len(c.applicationData)
}

// An authenticatedContent is the AuthenticatedContent of RFC 9420, Section 6.
type authenticatedContent struct {
	wireFormat      WireFormat
	content         framedContent
	signature       []byte
	confirmationTag []byte // of a Commit

	// Of a PrivateMessage that is on its way: a buffer with the body at some
	// place, and room around it for what is signed and for the message.
	buf    []byte
	bodyAt int
}

// signedRoom is the room before the FramedContentTBS in a buffer: for a label
// and two lengths.
const signedRoom = 64

func (ac *authenticatedContent) unmarshal(s *reader) bool {
	return s.ReadUint16((*uint16)(&ac.wireFormat)) &&
		ac.content.unmarshal(s) &&
		ac.unmarshalAuth(s)
}

// unmarshalAuth reads the FramedContentAuthData.
func (ac *authenticatedContent) unmarshalAuth(s *reader) bool {
	if !readOpaqueVec(s, &ac.signature) {
		return false
	}
	if ac.content.contentType != ContentTypeCommit {
		return true
	}
	// RFC 9420, Section 6.1: a Commit has a confirmation tag.
	if s.Empty() {
		return s.fail("framing/confirmation-tag-missing", "6.1", "a Commit without confirmation tag")
	}
	if !readOpaqueVec(s, &ac.confirmationTag) {
		return false
	}
	if len(ac.confirmationTag) == 0 {
		return s.fail("framing/confirmation-tag-missing", "6.1", "a Commit with an empty confirmation tag")
	}
	return true
}

func (ac *authenticatedContent) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(ac.wireFormat))
	b = ac.content.appendTo(b)
	return ac.appendAuth(b)
}

func (ac *authenticatedContent) appendAuth(b []byte) []byte {
	b = appendOpaqueVec(b, ac.signature)
	if ac.content.contentType == ContentTypeCommit {
		b = appendOpaqueVec(b, ac.confirmationTag)
	}
	return b
}

// The FramedContentTBS of RFC 9420, Section 6.1, is a head, the content and a
// tail.
func (ac *authenticatedContent) appendTBSHead(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(MLS10))
	return binary.BigEndian.AppendUint16(b, uint16(ac.wireFormat))
}

func (ac *authenticatedContent) appendTBSTail(b, groupContext []byte) []byte {
	switch ac.content.sender.Type {
	case SenderTypeMember, SenderTypeNewMemberCommit:
		b = append(b, groupContext...)
	}
	return b
}

// signed returns the SignContent over the FramedContentTBS (RFC 9420, Section
// 5.1.2). It is built around the body where that is in ac.buf already: it may
// be long.
func (ac *authenticatedContent) signed(groupContext []byte) []byte {
	c := &ac.content
	size := c.bodySize()
	header := c.headerSize()
	if c.raw != nil {
		header = len(c.raw) - size
	}
	buf, at := ac.buf, ac.bodyAt
	if buf == nil {
		at = signedRoom + 4 + header
		// Behind the body there is room for the group context, or for what
		// follows in a PrivateMessage.
		buf = make([]byte, at, at+size+max(len(groupContext), privateRoom))
		buf = c.appendBody(buf)
		if ac.wireFormat == WireFormatPrivateMessage {
			ac.buf, ac.bodyAt = buf, at
		}
	}
	b := ac.appendTBSTail(buf[:at+size], groupContext)
	head := at - 4 - header
	if h := ac.appendTBSHead(b[:head]); c.raw != nil {
		copy(b[len(h):], c.raw[:header]) // as it was received
	} else {
		c.appendHeader(h)
	}
	var stack [signedRoom]byte
	label := appendOpaqueVec(stack[:0], "MLS 1.0 "+framedContentLabel)
	label = appendVarint(label, len(b)-head)
	b = b[head-len(label):]
	copy(b, label)
	return b
}

const framedContentLabel = "FramedContentTBS"

// signContent signs content for one wire format (RFC 9420, Section 6.1).
// groupContext is the encoded context of the current epoch.
func signContent(cs CipherSuite, key SignaturePrivateKey, wf WireFormat, content framedContent, groupContext []byte) (*authenticatedContent, error) {
	if content.contentType != ContentTypeApplication {
		content.encode()
	}
	ac := &authenticatedContent{wireFormat: wf, content: content}
	var err error
	ac.signature, err = cs.sign(key, ac.signed(groupContext))
	if err != nil {
		return nil, err
	}
	return ac, nil
}

// verifySignature verifies the signature under the sender's key. groupContext
// is the encoded context of the message's epoch.
func (ac *authenticatedContent) verifySignature(cs CipherSuite, kept *signers, pub SignaturePublicKey, groupContext []byte) error {
	if err := cs.verify(kept, pub, ac.signed(groupContext), ac.signature); err != nil {
		return invalid("framing/signature-invalid", "6.1", "signature of the message: %w", err)
	}
	return nil
}

// A publicMessage is the PublicMessage of RFC 9420, Section 6.2.
type publicMessage struct {
	auth          authenticatedContent
	membershipTag []byte
}

func (m *publicMessage) unmarshal(s *reader) bool {
	m.auth.wireFormat = WireFormatPublicMessage
	if !m.auth.content.unmarshal(s) || !m.auth.unmarshalAuth(s) {
		return false
	}
	if m.auth.content.sender.Type != SenderTypeMember {
		return true
	}
	if s.Empty() {
		return s.fail("framing/membership-tag-missing", "6.2", "a PublicMessage of a member without membership tag")
	}
	return readOpaqueVec(s, &m.membershipTag)
}

func (m *publicMessage) appendTo(b []byte) []byte {
	b = m.auth.content.appendTo(b)
	b = m.auth.appendAuth(b)
	if m.auth.content.sender.Type == SenderTypeMember {
		b = appendOpaqueVec(b, m.membershipTag)
	}
	return b
}

// surplus explains what follows a PublicMessage: a tag where none belongs.
func (m *publicMessage) surplus(rest []byte) error {
	s := newReader(rest)
	var tag []byte
	if readOpaqueVec(s, &tag) && s.Empty() {
		if m.auth.content.contentType != ContentTypeCommit && m.auth.content.sender.Type == SenderTypeMember {
			return invalid("framing/confirmation-tag-on-proposal", "6.1", "a confirmation tag on a message that is no Commit")
		}
		if m.auth.content.sender.Type != SenderTypeMember {
			return invalid("framing/membership-tag-on-nonmember", "6.2", "a membership tag on a message that no member sent")
		}
	}
	return invalid("codec/trailing-bytes-message", "6", "%d bytes follow the message", len(rest))
}

// validate makes the checks that need no group.
func (m *publicMessage) validate() error {
	c := &m.auth.content
	// RFC 9420, Section 6: application data must be encrypted.
	if c.contentType == ContentTypeApplication {
		return invalid("framing/application-in-public", "6", "application data in a PublicMessage")
	}
	// RFC 9420, Section 6: who may send what.
	switch c.sender.Type {
	case SenderTypeExternal:
		if c.contentType != ContentTypeProposal {
			return invalid("proposal/external-sender-not-proposal", "6.1", "an external sender sent content of type %d", c.contentType)
		}
	case SenderTypeNewMemberProposal:
		if c.contentType != ContentTypeProposal || c.proposal.Type != ProposalTypeAdd {
			return invalid("proposal/new-member-not-add", "6.1", "a new member proposed something else than to be added")
		}
	case SenderTypeNewMemberCommit:
		if c.contentType != ContentTypeCommit {
			return invalid("external-commit/wrong-sender-type", "6.1", "a joining member sent content of type %d", c.contentType)
		}
	}
	return nil
}

// tbm is the AuthenticatedContentTBM of RFC 9420, Section 6.2, in parts: what
// was encoded or received already is not copied.
func (ac *authenticatedContent) tbm(groupContext []byte) [][]byte {
	raw := ac.content.raw
	if raw == nil {
		raw = ac.content.appendTo(nil)
	}
	return [][]byte{ac.appendTBSHead(nil), raw, ac.appendTBSTail(nil, groupContext), ac.appendAuth(nil)}
}

// membershipMAC is over the AuthenticatedContentTBM of RFC 9420, Section 6.2.
func (ac *authenticatedContent) membershipMAC(cs CipherSuite, key secret, groupContext []byte) []byte {
	return cs.mac(key, ac.tbm(groupContext)...)
}

// verifyMembershipTag verifies the tag of a member's message; others have none.
func (m *publicMessage) verifyMembershipTag(cs CipherSuite, key secret, groupContext []byte) error {
	if m.auth.content.sender.Type != SenderTypeMember {
		return nil
	}
	if len(m.membershipTag) != cs.HashLen() {
		return invalid("framing/membership-tag-truncated", "6.2", "membership tag of %d bytes, want %d", len(m.membershipTag), cs.HashLen())
	}
	if !cs.verifyMAC(key, m.membershipTag, m.auth.tbm(groupContext)...) {
		return invalid("framing/membership-tag-wrong", "6.2", "membership tag does not match")
	}
	return nil
}

// publicMessage returns the content as a whole MLSMessage. The membership key
// is used for senders that are members.
func (ac *authenticatedContent) publicMessage(cs CipherSuite, membershipKey secret, groupContext []byte) []byte {
	m := publicMessage{auth: *ac}
	if ac.content.sender.Type == SenderTypeMember {
		m.membershipTag = ac.membershipMAC(cs, membershipKey, groupContext)
	}
	b := make([]byte, 0, 4+len(ac.content.raw)+len(ac.signature)+256)
	return m.appendTo(appendMessageHeader(b, WireFormatPublicMessage))
}

// A privateMessage is the PrivateMessage of RFC 9420, Section 6.3.
type privateMessage struct {
	groupID             []byte
	epoch               uint64
	contentType         ContentType
	authenticatedData   []byte
	encryptedSenderData []byte
	ciphertext          []byte
}

func (m *privateMessage) unmarshal(s *reader) bool {
	return readOpaqueVec(s, &m.groupID) &&
		s.ReadUint64(&m.epoch) &&
		m.contentType.unmarshal(s) &&
		readOpaqueVec(s, &m.authenticatedData) &&
		readOpaqueVec(s, &m.encryptedSenderData) &&
		readOpaqueVec(s, &m.ciphertext)
}

func (m *privateMessage) appendTo(b []byte) []byte {
	b = m.appendContentAAD(b)
	b = appendOpaqueVec(b, m.encryptedSenderData)
	return appendOpaqueVec(b, m.ciphertext)
}

// appendSenderAAD appends the SenderDataAAD (RFC 9420, Section 6.3.2).
func (m *privateMessage) appendSenderAAD(b []byte) []byte {
	b = appendOpaqueVec(b, m.groupID)
	b = binary.BigEndian.AppendUint64(b, m.epoch)
	return append(b, byte(m.contentType))
}

// appendContentAAD appends the PrivateContentAAD (RFC 9420, Section 6.3.1).
func (m *privateMessage) appendContentAAD(b []byte) []byte {
	return appendOpaqueVec(m.appendSenderAAD(b), m.authenticatedData)
}

// senderDataKey returns key and nonce of the sender data (RFC 9420, Section
// 6.3.2).
func (cs CipherSuite) senderDataKey(senderDataSecret secret, ciphertext []byte) (key, nonce secret) {
	sample := ciphertext[:min(len(ciphertext), cs.HashLen())]
	key = cs.expandWithLabel(senderDataSecret, "key", sample, cs.suite().nk)
	nonce = cs.expandWithLabel(senderDataSecret, "nonce", sample, aeadNonceSize)
	return key, nonce
}

// privateRoom is the room that a PrivateMessage needs behind its body when it
// is not padded much: for an Ed25519 signature and the tag.
const privateRoom = 128

// protectPrivate encrypts a member's signed content, and moves its ratchet on.
// It returns a whole MLSMessage. The content is padded to a multiple of
// paddingSize.
func protectPrivate(cs CipherSuite, ac *authenticatedContent, st *secretTree, senderDataSecret secret, lim *Limits, paddingSize int, rand io.Reader, onSeal func(use, content [32]byte)) ([]byte, error) {
	c := &ac.content
	if c.sender.Type != SenderTypeMember {
		return nil, invalid("framing/private-from-nonmember", "6.3.2", "only members can send a PrivateMessage")
	}
	if ac.wireFormat != WireFormatPrivateMessage {
		return nil, fmt.Errorf("mls: internal: content signed for wire format %d sent as PrivateMessage", ac.wireFormat)
	}
	var guard [4]byte
	if _, err := io.ReadFull(rand, guard[:]); err != nil {
		return nil, fmt.Errorf("mls: reading randomness: %w", err)
	}

	// RFC 9420, Section 6.3.1: PrivateMessageContent.
	size := c.bodySize() + varintSize(len(ac.signature)) + len(ac.signature)
	if c.contentType == ContentTypeCommit {
		size += varintSize(len(ac.confirmationTag)) + len(ac.confirmationTag)
	}
	if paddingSize > 0 {
		size = (size + paddingSize - 1) / paddingSize * paddingSize
	}
	size += aeadOverhead
	if size > maxVarint {
		return nil, fmt.Errorf("mls: a message of %d bytes is too large", size)
	}
	m := privateMessage{groupID: c.groupID, epoch: c.epoch, contentType: c.contentType, authenticatedData: c.authenticatedData}
	aad := m.appendContentAAD(make([]byte, 0, 4+len(m.groupID)+9+4+len(m.authenticatedData)))

	// The whole message is built in one place, and encrypted there: where it
	// was signed, if there is room.
	const senderData = 12 + aeadOverhead
	head := 4 + len(aad) + 1 + senderData + varintSize(size)
	buf, start := ac.buf, ac.bodyAt
	if ac.buf = nil; start < head || cap(buf)-start < size {
		buf, start = c.appendBody(make([]byte, head, head+size)), head
	}
	b := appendMessageHeader(buf[start-head:start-head], WireFormatPrivateMessage)
	b = append(b, aad...)
	b = appendVarint(b, senderData)
	encryptedSenderData := b[len(b) : len(b)+senderData]
	appendVarint(b[:len(b)+senderData], size)
	b = ac.appendAuth(buf[start-head : start+c.bodySize()])
	start = head
	clear(b[len(b) : start+size-aeadOverhead]) // padding
	b = b[: start+size-aeadOverhead : start+size]

	key, nonce, generation, err := st.next(c.sender.LeafIndex, c.contentType, lim)
	if err != nil {
		return nil, err
	}
	if onSeal != nil {
		h := sha256.New()
		h.Write(key)
		h.Write(nonce)
		onSeal([32]byte(h.Sum(nil)), sha256.Sum256(b[start:]))
	}
	for i := range guard {
		nonce[i] ^= guard[i]
	}
	// Encrypted in place: what was plaintext is gone.
	b = cs.newAEAD(key).Seal(b[:start], nonce, b[start:], aad)
	key.zero()
	nonce.zero()

	// RFC 9420, Section 6.3.2: sender data.
	sd := binary.BigEndian.AppendUint32(encryptedSenderData[:0], uint32(c.sender.LeafIndex))
	sd = binary.BigEndian.AppendUint32(sd, generation)
	sd = append(sd, guard[:]...)
	key, nonce = cs.senderDataKey(senderDataSecret, b[start:])
	cs.newAEAD(key).Seal(sd[:0], nonce, sd, m.appendSenderAAD(aad[:0]))
	key.zero()
	nonce.zero()
	return b, nil
}

// unprotectPrivate decrypts a message and verifies its signature. It changes
// nothing in the secret tree: that is for the returned keyUse to do, once the
// whole message is accepted. signer returns the signature key of a leaf, or the
// reason to refuse its messages.
func unprotectPrivate(cs CipherSuite, m *privateMessage, st *secretTree, senderDataSecret secret, lim *Limits, groupContext []byte, kept *signers, signer func(LeafIndex) (SignaturePublicKey, error)) (*authenticatedContent, *keyUse, error) {
	// A signature alone is longer than the sample.
	if len(m.ciphertext) < max(cs.HashLen(), aeadOverhead) {
		return nil, nil, invalid("framing/sender-data-sample-short", "6.3.2", "ciphertext of %d bytes is too short", len(m.ciphertext))
	}
	aad := m.appendSenderAAD(make([]byte, 0, 4+len(m.groupID)+9+4+len(m.authenticatedData)))
	key, nonce := cs.senderDataKey(senderDataSecret, m.ciphertext)
	sd, ok := cs.aeadOpen(key, nonce, aad, m.encryptedSenderData)
	key.zero()
	nonce.zero()
	if !ok || len(sd) != 12 {
		return nil, nil, invalid("framing/sender-data-undecryptable", "6.3.2", "the sender data does not open: it was altered or belongs to another epoch")
	}
	leaf := LeafIndex(binary.BigEndian.Uint32(sd))
	generation := binary.BigEndian.Uint32(sd[4:])

	pub, err := signer(leaf)
	if err != nil {
		return nil, nil, err
	}
	use, err := st.use(leaf, m.contentType, generation, lim)
	if err != nil {
		return nil, nil, err
	}
	ac, err := m.open(cs, use, leaf, sd[8:12], aad, len(groupContext))
	if err == nil {
		err = ac.verifySignature(cs, kept, pub, groupContext)
	}
	if err != nil {
		use.drop()
		return nil, nil, err
	}
	return ac, use, nil
}

// open decrypts and reads the content, into a buffer with room for a group
// context of the given size.
func (m *privateMessage) open(cs CipherSuite, use *keyUse, leaf LeafIndex, guard, aad []byte, groupContext int) (*authenticatedContent, error) {
	var nonce [aeadNonceSize]byte
	copy(nonce[:], use.nonce)
	for i := range guard {
		nonce[i] ^= guard[i]
	}
	aad = m.appendContentAAD(aad[:0])
	ac := &authenticatedContent{wireFormat: WireFormatPrivateMessage, content: framedContent{
		groupID:           m.groupID,
		epoch:             m.epoch,
		sender:            Sender{Type: SenderTypeMember, LeafIndex: leaf},
		authenticatedData: m.authenticatedData,
		contentType:       m.contentType,
	}}
	at := signedRoom + 4 + ac.content.headerSize()
	buf := make([]byte, at, at+len(m.ciphertext)+groupContext)
	buf, ok := cs.aeadOpenTo(buf, use.key, nonce[:], aad, m.ciphertext)
	clear(nonce[:])
	if !ok {
		return nil, invalid("framing/aead-fails", "6.3.1", "the ciphertext of leaf %d, generation %d does not open", leaf, use.generation)
	}
	s := newReader(buf[at:])
	if !ac.content.unmarshalBody(s) {
		return nil, invalid("framing/content-type-mismatch", "6.3.1", "the content is not of type %d, which the message names: %w", m.contentType, s.error())
	}
	if !ac.unmarshalAuth(s) {
		return nil, s.error()
	}
	// RFC 9420, Section 6.3.1: padding is all zero.
	for _, b := range s.String {
		if b != 0 {
			return nil, invalid("framing/padding-nonzero", "6.3.1", "padding that is not zero")
		}
	}
	if ac.content.contentType != ContentTypeApplication {
		ac.content.encode()
		return ac, nil
	}
	// What follows the body gives way to what is signed.
	ac.signature = bytes.Clone(ac.signature)
	ac.buf, ac.bodyAt = buf, at
	return ac, nil
}
