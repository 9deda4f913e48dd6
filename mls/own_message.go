package mls

// Sent returns how many application messages this member has encrypted in this
// epoch: the generation of the next one.
func (g *Group) Sent() uint32 {
	if g.ratchets == nil {
		return 0
	}
	if l := g.ratchets.ratchets[g.own]; l != nil {
		return l.application.generation
	}
	return 0
}

// Received returns the generation up to which every application message of a
// member in this epoch has been opened; false if the first has not, or if keys of
// messages that did not come were dropped.
func (g *Group) Received(sender LeafIndex) (generation uint32, ok bool) {
	if g.ratchets == nil {
		return 0, false
	}
	l := g.ratchets.ratchets[sender]
	if l == nil || l.application.floor > 0 {
		return 0, false
	}
	generation = l.application.generation
	if len(l.application.skipped) > 0 {
		generation = l.application.skipped[0].generation
	}
	if generation == 0 {
		return 0, false
	}
	return generation - 1, true
}

// Missing returns the generations of application messages of a member in this epoch
// that did not come though later ones did, and that could still be opened: at most
// limit, the first ones from from on, below below.
func (g *Group) Missing(sender LeafIndex, from, below uint32, limit int) (generations []uint32) {
	if g.ratchets == nil || g.ratchets.ratchets[sender] == nil {
		return nil
	}
	for _, k := range g.ratchets.ratchets[sender].application.skipped {
		if k.generation >= from && k.generation < below && len(generations) < limit {
			generations = append(generations, k.generation)
		}
	}
	return generations
}

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
