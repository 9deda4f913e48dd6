package mls

import (
	"encoding/binary"
	"math"
	"testing"
)

// A forgedMessage is what one member makes against the rules.
type forgedMessage struct {
	g          *Group
	sender     Sender
	format     WireFormat // that is signed; zero is the one that is sent
	context    []byte     // that is signed; nil is the right one
	ct         ContentType
	outer      ContentType // that a PrivateMessage claims; zero is ct
	commit     *commit
	proposal   Proposal
	text       string
	noSign     bool
	generation *uint32 // that the sender data claims
	padding    []byte
}

// sign frames and signs the content.
func (f *forgedMessage) sign(t *testing.T, wf WireFormat) *authenticatedContent {
	t.Helper()
	if f.sender.Type == 0 {
		f.sender = Sender{Type: SenderTypeMember, LeafIndex: f.g.own}
	}
	if f.format == 0 {
		f.format = wf
	}
	if f.context == nil {
		f.context = f.g.contextRaw
	}
	ac, err := signContent(f.g.CipherSuite(), f.g.signature, f.format, framedContent{
		groupID: f.g.context.groupID, epoch: f.g.context.epoch, sender: f.sender, contentType: f.ct,
		commit: f.commit, proposal: f.proposal, applicationData: []byte(f.text),
	}, f.context)
	if err != nil {
		t.Fatal(err)
	}
	ac.wireFormat = wf
	if f.ct == ContentTypeCommit {
		ac.confirmationTag = make([]byte, f.g.CipherSuite().HashLen())
	}
	if f.noSign {
		ac.signature[10] ^= 1
	}
	return ac
}

// public sends it as a PublicMessage with a good membership tag.
func (f forgedMessage) public(t *testing.T) []byte {
	t.Helper()
	return f.sign(t, WireFormatPublicMessage).publicMessage(f.g.CipherSuite(), f.g.secrets.membership, f.g.contextRaw)
}

// private sends it as a PrivateMessage, written out here so that every part of
// it can be wrong.
func (f forgedMessage) private(t *testing.T) *Message {
	t.Helper()
	cs := f.g.CipherSuite()
	ac := f.sign(t, WireFormatPrivateMessage)
	if f.outer == 0 {
		f.outer = f.ct
	}
	key, nonce, generation, err := f.g.ratchets.next(f.g.own, f.outer, f.g.cfg.limits())
	if err != nil {
		t.Fatal(err)
	}
	if f.generation != nil {
		generation = *f.generation
	}
	m := privateMessage{groupID: f.g.context.groupID, epoch: f.g.context.epoch, contentType: f.outer}
	plaintext := append(ac.appendAuth(ac.content.appendBody(nil)), f.padding...)
	m.ciphertext = cs.aeadSeal(key, nonce, m.appendContentAAD(nil), plaintext)
	return f.withSenderData(t, m, f.sender.LeafIndex, generation)
}

func (f forgedMessage) withSenderData(t *testing.T, m privateMessage, leaf LeafIndex, generation uint32) *Message {
	t.Helper()
	cs := f.g.CipherSuite()
	sd := binary.BigEndian.AppendUint32(nil, uint32(leaf))
	sd = binary.BigEndian.AppendUint32(sd, generation)
	sd = append(sd, 0, 0, 0, 0)
	key, nonce := cs.senderDataKey(f.g.secrets.senderData, m.ciphertext)
	m.encryptedSenderData = cs.aeadSeal(key, nonce, m.appendSenderAAD(nil), sd)
	return mustParse(t, m.appendTo(appendMessageHeader(nil, WireFormatPrivateMessage)))
}

// blankGroup returns members 0 and 2 of a group whose leaf 1 is blank, and the
// one who was there, in the epoch before.
func blankGroup(t *testing.T, cs CipherSuite) (a, c, gone *Group) {
	t.Helper()
	gs := newTestGroup(t, testConfig(t), cs, 3)
	m, a := mustCommit(t, gs[0], CommitOptions{Proposals: []Proposal{Remove(1)}})
	return a, mustFollow(t, gs[2], m), gs[1]
}

func pair(t *testing.T, cs CipherSuite) (a, b *Group) {
	t.Helper()
	gs := newTestGroup(t, testConfig(t), cs, 2)
	return gs[0], gs[1]
}

// removeProposal is a proposal that is valid in a group of two.
func removeProposal(g *Group) Proposal { return Remove(1 - g.own) }

// reparse replaces a part of a message by other bytes of any length.
func editPublic(t *testing.T, raw []byte, edit func(m *publicMessage)) *Message {
	t.Helper()
	m := mustParse(t, raw)
	edit(m.public)
	return mustParse(t, m.public.appendTo(appendMessageHeader(nil, WireFormatPublicMessage)))
}

func editPrivate(t *testing.T, m *Message, edit func(m *privateMessage)) *Message {
	t.Helper()
	p := *m.private
	edit(&p)
	return mustParse(t, p.appendTo(appendMessageHeader(nil, WireFormatPrivateMessage)))
}

var framingRejects = []rejectCase{
	{row: "framing/group-id", each: func(t *testing.T, cs CipherSuite) error {
		a, _ := pair(t, cs)
		cfg := testConfig(t)
		key := mustSignatureKey(t, cs)
		other, err := CreateGroup(cfg, cs, []byte("other"), key, LeafOptions{Credential: BasicCredential([]byte("x"))}, nil)
		if err != nil {
			t.Fatal(err)
		}
		raw, _, err := a.Propose(removeProposal(a), FramingOptions{})
		if err != nil {
			t.Fatal(err)
		}
		wantRule(t, refuse(t, other, mustParse(t, raw)), "framing/group-id")
		c, _ := mustCommit(t, a, CommitOptions{})
		wantRule(t, refuse(t, other, c), "framing/group-id")
		_, b := pair(t, cs)
		return refuse(t, other, mustEncrypt(t, b, "text"))
	}},
	{row: "framing/epoch-old", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		m, a2 := mustCommit(t, a, CommitOptions{})
		mustFollow(t, b, m)
		raw, _, err := b.Propose(removeProposal(b), FramingOptions{Private: true})
		if err != nil {
			t.Fatal(err)
		}
		wantRule(t, refuse(t, a2, mustParse(t, raw)), "framing/epoch-old")
		return refuse(t, a2, m)
	}},
	{row: "framing/epoch-future", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		m, a2 := mustCommit(t, a, CommitOptions{})
		b2 := mustFollow(t, b, m)
		text := mustEncrypt(t, b2, "text")
		wantRule(t, refuse(t, a, text), "framing/epoch-future")
		_, err := a2.Process(text)
		noError(t, err)
		next, _ := mustCommit(t, b2, CommitOptions{})
		return refuse(t, a, next)
	}},
	{row: "framing/epoch-beyond-retention", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		text := mustEncrypt(t, b, "text")
		_, a2 := mustCommit(t, a, CommitOptions{})
		err := refuse(t, a2, text)
		// Who keeps the old group can read it.
		_, kept := a.Process(text)
		noError(t, kept)
		return err
	}},
	{row: "framing/sender-leaf-blank", each: func(t *testing.T, cs CipherSuite) error {
		a, c, _ := blankGroup(t, cs)
		m := forgedMessage{g: a, sender: Sender{Type: SenderTypeMember, LeafIndex: 1}, ct: ContentTypeProposal, proposal: Remove(2)}.public(t)
		return refuse(t, c, mustParse(t, m))
	}},
	{row: "framing/sender-leaf-out-of-range", each: func(t *testing.T, cs CipherSuite) error {
		a, c, _ := blankGroup(t, cs)
		var err error
		for _, leaf := range []LeafIndex{4, 5, 1 << 30, 1<<31 + 1, math.MaxUint32} {
			m := forgedMessage{g: a, sender: Sender{Type: SenderTypeMember, LeafIndex: leaf}, ct: ContentTypeProposal, proposal: Remove(2)}.public(t)
			err = refuse(t, c, mustParse(t, m))
			wantRule(t, err, "framing/sender-leaf-out-of-range")
		}
		return err
	}},
	{row: "framing/sender-removed-in-epoch", rule: "framing/sender-leaf-blank", each: func(t *testing.T, cs CipherSuite) error {
		a, c, gone := blankGroup(t, cs)
		// The one who left knows the epoch's number and nothing else of it.
		f := forgedMessage{g: gone, ct: ContentTypeProposal, proposal: Remove(2)}
		ac := f.sign(t, WireFormatPublicMessage)
		ac.content.epoch, ac.content.raw = a.Epoch(), nil
		ac.content.encode()
		return refuse(t, c, mustParse(t, ac.publicMessage(cs, gone.secrets.membership, gone.contextRaw)))
	}},
	{row: "framing/application-in-public", each: func(t *testing.T, cs CipherSuite) error {
		a, _ := pair(t, cs)
		_, err := ParseMessage(forgedMessage{g: a, ct: ContentTypeApplication, text: "text"}.public(t))
		return err
	}},
	{row: "framing/membership-tag-missing", each: func(t *testing.T, cs CipherSuite) error {
		a, _ := pair(t, cs)
		raw := forgedMessage{g: a, ct: ContentTypeProposal, proposal: removeProposal(a)}.public(t)
		_, err := ParseMessage(raw[:len(raw)-1-cs.HashLen()-varintSize(cs.HashLen())+1])
		return err
	}},
	{row: "framing/membership-tag-wrong", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		raw := forgedMessage{g: a, ct: ContentTypeProposal, proposal: removeProposal(a)}.public(t)
		for i := range cs.HashLen() {
			m := editPublic(t, raw, func(m *publicMessage) { m.membershipTag = flipped(m.membershipTag, i) })
			wantRule(t, refuse(t, b, m), "framing/membership-tag-wrong")
		}
		m := editPublic(t, raw, func(m *publicMessage) {
			m.membershipTag = m.auth.membershipMAC(cs, a.secrets.confirmation, a.contextRaw)
		})
		err := refuse(t, b, m)
		_, ok := b.Process(mustParse(t, raw))
		noError(t, ok)
		return err
	}},
	{row: "framing/membership-tag-truncated", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		raw := forgedMessage{g: a, ct: ContentTypeProposal, proposal: removeProposal(a)}.public(t)
		for n := range cs.HashLen() {
			m := editPublic(t, raw, func(m *publicMessage) { m.membershipTag = m.membershipTag[:n] })
			wantRule(t, refuse(t, b, m), "framing/membership-tag-truncated")
		}
		return refuse(t, b, editPublic(t, raw, func(m *publicMessage) { m.membershipTag = append(m.membershipTag, 0) }))
	}},
	{row: "framing/membership-tag-on-nonmember", each: func(t *testing.T, cs CipherSuite) error {
		a, _ := pair(t, cs)
		raw := forgedMessage{g: a, sender: Sender{Type: SenderTypeExternal}, ct: ContentTypeProposal, proposal: Remove(1)}.public(t)
		mustParse(t, raw)
		_, err := ParseMessage(appendOpaqueVec(raw, make([]byte, cs.HashLen())))
		return err
	}},
	{row: "framing/confirmation-tag-missing", each: func(t *testing.T, cs CipherSuite) error {
		a, _ := pair(t, cs)
		m, _ := mustCommit(t, a, CommitOptions{})
		m.public.auth.confirmationTag = nil
		_, err := ParseMessage(m.public.appendTo(appendMessageHeader(nil, WireFormatPublicMessage)))
		wantRule(t, err, "framing/confirmation-tag-missing")
		// In a Commit that joins, the tag comes last.
		ac := forgedMessage{g: a, sender: Sender{Type: SenderTypeNewMemberCommit}, ct: ContentTypeCommit, commit: m.public.auth.content.commit}
		raw := ac.public(t)
		mustParse(t, raw)
		_, err = ParseMessage(raw[:len(raw)-cs.HashLen()-varintSize(cs.HashLen())])
		return err
	}},
	{row: "framing/confirmation-tag-on-proposal", each: func(t *testing.T, cs CipherSuite) error {
		a, _ := pair(t, cs)
		raw := forgedMessage{g: a, ct: ContentTypeProposal, proposal: removeProposal(a)}.public(t)
		m := mustParse(t, raw).public
		b := append(appendMessageHeader(nil, WireFormatPublicMessage), m.auth.content.raw...)
		b = appendOpaqueVec(b, m.auth.signature)
		b = appendOpaqueVec(b, make([]byte, cs.HashLen()))
		_, err := ParseMessage(appendOpaqueVec(b, m.membershipTag))
		return err
	}},
	{row: "framing/signature-invalid", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		f := forgedMessage{g: a, ct: ContentTypeProposal, proposal: removeProposal(a), noSign: true}
		wantRule(t, refuse(t, b, mustParse(t, f.public(t))), "framing/signature-invalid")
		wantRule(t, refuse(t, b, forgedMessage{g: a, ct: ContentTypeApplication, text: "text", noSign: true}.private(t)), "framing/signature-invalid")
		return refuse(t, b, f.private(t))
	}},
	{row: "framing/signature-other-wire-format", rule: "framing/signature-invalid", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		f := forgedMessage{g: a, ct: ContentTypeProposal, proposal: removeProposal(a), format: WireFormatPrivateMessage}
		wantRule(t, refuse(t, b, mustParse(t, f.public(t))), "framing/signature-invalid")
		f.format = WireFormatPublicMessage
		return refuse(t, b, f.private(t))
	}},
	{row: "framing/signature-other-group-context", rule: "framing/signature-invalid", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		ctx := a.context
		ctx.epoch++
		f := forgedMessage{g: a, ct: ContentTypeProposal, proposal: removeProposal(a), context: ctx.appendTo(nil)}
		wantRule(t, refuse(t, b, mustParse(t, f.public(t))), "framing/signature-invalid")
		ctx = a.context
		ctx.treeHash = flipped(ctx.treeHash, 0)
		f.context = ctx.appendTo(nil)
		return refuse(t, b, f.private(t))
	}},
	{row: "framing/authenticated-data-changed", rule: "framing/aead-fails", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		raw, _, err := a.Propose(removeProposal(a), FramingOptions{AuthenticatedData: []byte("aad")})
		if err != nil {
			t.Fatal(err)
		}
		m := editPublic(t, raw, func(m *publicMessage) {
			m.auth.content.authenticatedData = []byte("AAD")
			m.auth.content.encode()
		})
		wantRule(t, refuse(t, b, m), "framing/membership-tag-wrong")
		// A member could make the tag, but not the signature.
		m = editPublic(t, raw, func(m *publicMessage) {
			m.auth.content.authenticatedData = []byte("AAD")
			m.auth.content.encode()
			m.membershipTag = m.auth.membershipMAC(cs, a.secrets.membership, a.contextRaw)
		})
		wantRule(t, refuse(t, b, m), "framing/signature-invalid")
		a, b = pair(t, cs)
		text := mustEncrypt(t, a, "text")
		err = refuse(t, b, editPrivate(t, text, func(m *privateMessage) { m.authenticatedData = []byte("AAD") }))
		_, ok := b.Process(text)
		noError(t, ok)
		return err
	}},
	{row: "framing/private-from-nonmember", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		var err error
		for _, s := range []SenderType{SenderTypeExternal, SenderTypeNewMemberProposal, SenderTypeNewMemberCommit} {
			f := forgedMessage{g: a, sender: Sender{Type: s}, ct: ContentTypeProposal, proposal: Remove(1)}
			_, err = protectPrivate(cs, f.sign(t, WireFormatPrivateMessage), a.ratchets, a.secrets.senderData, a.cfg.limits(), 0, a.cfg.rand(), nil)
			wantRule(t, err, "framing/private-from-nonmember")
			// On the wire there is only a leaf, whose signature it is not.
			wantRule(t, refuse(t, b, f.private(t)), "framing/signature-invalid")
		}
		return err
	}},
	{row: "framing/sender-data-undecryptable", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		m := mustEncrypt(t, a, "text")
		for i := range m.private.encryptedSenderData {
			bad := editPrivate(t, m, func(m *privateMessage) { m.encryptedSenderData = flipped(m.encryptedSenderData, i) })
			wantRule(t, refuse(t, b, bad), "framing/sender-data-undecryptable")
		}
		for n := range len(m.private.encryptedSenderData) {
			bad := editPrivate(t, m, func(m *privateMessage) { m.encryptedSenderData = m.encryptedSenderData[:n] })
			wantRule(t, refuse(t, b, bad), "framing/sender-data-undecryptable")
		}
		// Sender data of a wrong size, sealed by a member.
		bad := editPrivate(t, m, func(m *privateMessage) {
			key, nonce := cs.senderDataKey(a.secrets.senderData, m.ciphertext)
			m.encryptedSenderData = cs.aeadSeal(key, nonce, m.appendSenderAAD(nil), make([]byte, 11))
		})
		return refuse(t, b, bad)
	}},
	{row: "framing/sender-data-blank-leaf", each: func(t *testing.T, cs CipherSuite) error {
		a, c, _ := blankGroup(t, cs)
		m := mustEncrypt(t, a, "text")
		var err error
		for _, leaf := range []LeafIndex{1, 3, 4, 1 << 31, math.MaxUint32} {
			err = refuse(t, c, forgedMessage{g: a}.withSenderData(t, *m.private, leaf, 0))
			wantRule(t, err, "framing/sender-data-blank-leaf")
		}
		return err
	}},
	{row: "framing/sender-data-sample-short", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		m := mustEncrypt(t, a, "text")
		var err error
		for n := range cs.HashLen() {
			p := *m.private
			p.ciphertext = p.ciphertext[:n]
			err = refuse(t, b, forgedMessage{g: a}.withSenderData(t, p, 0, 0))
			wantRule(t, err, "framing/sender-data-sample-short")
		}
		return err
	}},
	{row: "framing/padding-nonzero", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		for _, padding := range [][]byte{{1}, {0, 0, 1}, {1, 0, 0}, append(make([]byte, 300), 0xff)} {
			m := forgedMessage{g: a, ct: ContentTypeApplication, text: "text", padding: padding}.private(t)
			wantRule(t, refuse(t, b, m), "framing/padding-nonzero")
		}
		_, err := b.Process(forgedMessage{g: a, ct: ContentTypeApplication, text: "text", padding: make([]byte, 300)}.private(t))
		noError(t, err)
		return refuse(t, b, forgedMessage{g: a, ct: ContentTypeProposal, proposal: removeProposal(a), padding: []byte{2}}.private(t))
	}},
	{row: "framing/aead-fails", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		m := mustEncrypt(t, a, "text")
		// Beyond the sample, or the sender data would not open.
		var err error
		for i := cs.HashLen(); i < len(m.private.ciphertext); i++ {
			err = refuse(t, b, editPrivate(t, m, func(m *privateMessage) { m.ciphertext = flipped(m.ciphertext, i) }))
			wantRule(t, err, "framing/aead-fails")
		}
		// The key is still there for the true message.
		got, ok := b.Process(m)
		noError(t, ok)
		wantBytes(t, "plaintext", got.(*ApplicationMessage).Plaintext, []byte("text"))
		return err
	}},
	{row: "framing/content-type-mismatch", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		text := mustEncrypt(t, a, "text")
		for ct := ContentTypeProposal; ct <= ContentTypeCommit; ct++ {
			m := editPrivate(t, text, func(m *privateMessage) { m.contentType = ct })
			wantRule(t, refuse(t, b, m), "framing/sender-data-undecryptable")
		}
		// Text that a member sends as a handshake message.
		m := forgedMessage{g: a, ct: ContentTypeApplication, outer: ContentTypeProposal, text: "\xff\xff\xff\xfftext"}.private(t)
		wantRule(t, refuse(t, b, m), "framing/content-type-mismatch")
		return refuse(t, b, forgedMessage{g: a, ct: ContentTypeApplication, outer: ContentTypeCommit, text: "text"}.private(t))
	}},
	{row: "framing/generation-consumed", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		ms := []*Message{mustEncrypt(t, a, "0"), mustEncrypt(t, a, "1"), mustEncrypt(t, a, "2")}
		var err error
		for _, i := range []int{2, 0, 1} {
			_, ok := b.Process(ms[i])
			noError(t, ok)
			err = refuse(t, b, ms[i])
			wantRule(t, err, "framing/generation-consumed")
		}
		return err
	}},
	{row: "framing/generation-too-old", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		limited := *b.cfg
		limited.Limits.MaxSkipped = 3
		b.cfg = &limited
		var ms []*Message
		for range 10 {
			ms = append(ms, mustEncrypt(t, a, "text"))
		}
		_, ok := b.Process(ms[9])
		noError(t, ok)
		var err error
		for i := range 6 {
			err = refuse(t, b, ms[i])
			wantRule(t, err, "framing/generation-too-old")
		}
		for i := 6; i < 9; i++ {
			_, ok := b.Process(ms[i])
			noError(t, ok)
		}
		return err
	}},
	{row: "framing/generation-too-far", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		_, ok := b.Process(mustEncrypt(t, a, "text"))
		noError(t, ok)
		var err error
		for _, g := range []uint32{1002, 1 << 20, math.MaxUint32 - 1, math.MaxUint32} {
			err = refuse(t, b, forgedMessage{g: a, ct: ContentTypeApplication, text: "text", generation: &g}.private(t))
			wantRule(t, err, "framing/generation-too-far")
		}
		// A thousand steps are taken, though the key is then a wrong one.
		g := uint32(1001)
		wantRule(t, refuse(t, b, forgedMessage{g: a, ct: ContentTypeApplication, text: "text", generation: &g}.private(t)), "framing/aead-fails")
		return err
	}},
	{row: "framing/group-closed", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		gone, staying := mustCommit(t, a, CommitOptions{Proposals: []Proposal{Remove(1)}})
		if next := mustFollow(t, b, gone); next != nil {
			t.Error("there is a next epoch for who was removed")
		}
		wantRule(t, refuse(t, b, mustEncrypt(t, staying, "text")), "framing/epoch-future")

		a, b = pair(t, cs)
		re := &ReInit{GroupID: []byte("next"), Version: MLS10, CipherSuite: cs}
		m, a2 := mustCommit(t, a, CommitOptions{Proposals: []Proposal{re.Proposal()}})
		b2 := mustFollow(t, b, m)
		if _, err := b2.Encrypt([]byte("text"), nil); err == nil {
			t.Error("a closed group encrypts")
		}
		c := forgedMessage{g: a2, ct: ContentTypeCommit, commit: &commit{}}.public(t)
		return refuse(t, b2, mustParse(t, c))
	}},
}
