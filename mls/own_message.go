package mls

// SentElsewhere tells, of a message for which Process returns ErrOwnMessage,
// whether another copy of our state has sent it: it is signed by our leaf, and
// its key is one that this copy's ratchet has still to come to. The state here is
// then an old one, and would use message keys twice: do not encrypt in this epoch
// again. It changes nothing.
func (g *Group) SentElsewhere(m *Message) bool {
	if m.private == nil || g.ratchets == nil {
		return false
	}
	p := m.private
	if g.checkFrame(p.groupID, p.epoch, p.contentType != ContentTypeApplication) != nil {
		return false
	}
	own := false
	_, use, err := unprotectPrivate(g.context.cipherSuite, p, g.ratchets, g.secrets.senderData, g.cfg.limits(), g.contextRaw, g.signers,
		func(i LeafIndex) (SignaturePublicKey, error) {
			own = i == g.own
			return g.tree.signatureKeyOf(uint32(g.own.node())), nil
		})
	if err != nil {
		return false // a key that is used up, or no message of ours
	}
	use.drop()
	return own
}
