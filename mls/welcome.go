package mls

import (
	"bytes"
)

// JoinOptions are what a Welcome may need beside the KeyPackage.
type JoinOptions struct {
	// RatchetTree is the tree when it is not in the Welcome: the body of a
	// ratchet_tree extension.
	RatchetTree []byte

	// Resumption are groups whose resumption PSKs the Welcome may use. One of
	// them must be the old group when the new one comes from a ReInit or is a
	// branch.
	Resumption []*Group

	// Successor is the closed group that the new one must follow by its ReInit:
	// a Welcome that does not prove it with the old group's last resumption PSK
	// is refused. Nil takes other groups as well. It counts as one of Resumption.
	Successor *Group

	// InUse tells whether we are in a group already, or have been; nil for no. It
	// is what stops a Welcome that is delivered again for a bundle of last
	// resort: to join by it twice would use message keys twice.
	InUse func(groupID []byte) bool
}

// JoinWelcome joins a group. RFC 9420, Section 12.4.3.1. It uses the bundle up
// unless it is one of last resort: store the group and delete the bundle in one
// step. After an error the bundle is as it was. With one of last resort the caller
// must not join by the same Welcome twice: see JoinOptions.InUse.
func JoinWelcome(cfg *Config, welcome *Message, bundle *KeyPackageBundle, o JoinOptions) (*Group, error) {
	w := welcome.welcome
	if w == nil {
		return nil, unexpected(welcome, "is not a Welcome")
	}
	if bundle.Used() {
		return nil, invalid("key-package/reused", "16.8", "%w",
			invalid("welcome/replayed", "16.8", "the KeyPackage has been used to join already"))
	}
	if err := cfg.checkSuite(w.cipherSuite); err != nil {
		return nil, err
	}
	gs, err := w.open(bundle)
	if err != nil {
		return nil, err
	}
	defer func() {
		gs.joinerSecret.zero()
		gs.pathSecret.zero()
	}()
	g, err := joinWelcome(cfg, w, gs, bundle, &o)
	if err != nil {
		return nil, err
	}
	bundle.consume()
	return g, nil
}

// open decrypts the secrets that are for the bundle.
func (w *Welcome) open(bundle *KeyPackageBundle) (*groupSecrets, error) {
	kp := bundle.keyPackage
	ref := kp.Ref()
	for i := range w.secrets {
		e := &w.secrets[i]
		if !bytes.Equal(e.newMember, ref) {
			continue
		}
		if w.cipherSuite != kp.CipherSuite {
			return nil, invalid("welcome/cipher-suite", "12.4.3.1", "the Welcome is for suite %v, our KeyPackage for %v", w.cipherSuite, kp.CipherSuite)
		}
		pt, err := w.cipherSuite.decryptWithLabel(bundle.initKey, kp.InitKey, "Welcome", w.encryptedGroupInfo, e.ciphertext)
		if err != nil {
			return nil, invalid("welcome/secrets-undecryptable", "12.4.3.1", "the secrets for our KeyPackage: %w", err)
		}
		gs := new(groupSecrets)
		if err := unmarshal(pt, gs); err != nil {
			return nil, err
		}
		return gs, nil
	}
	return nil, invalid("welcome/no-secrets-for-us", "12.4.3.1", "the Welcome is not for this KeyPackage")
}

func joinWelcome(cfg *Config, w *Welcome, gs *groupSecrets, bundle *KeyPackageBundle, o *JoinOptions) (*Group, error) {
	cs := w.cipherSuite
	kp := bundle.keyPackage
	lim := cfg.limits()
	if len(gs.psks) > lim.MaxPSKs {
		return nil, invalid("proposal-list/too-many", "", "a Welcome with %d PSKs is over the limit of %d", len(gs.psks), lim.MaxPSKs)
	}
	var origin *PreSharedKeyID // of a group that goes on or branches off
	for i := range gs.psks {
		id := &gs.psks[i]
		if len(id.Nonce) != cs.HashLen() {
			return nil, invalid("proposal/psk-nonce-length", "12.1.4", "a PSK nonce of %d bytes where %d are due", len(id.Nonce), cs.HashLen())
		}
		if id.Type == PSKTypeResumption && id.Usage != ResumptionPSKUsageApplication {
			if origin != nil {
				return nil, invalid("welcome/two-reinit-or-branch-psks", "12.4.3.1", "two PSKs of usage reinit or branch")
			}
			origin = id
		}
	}
	if o.Successor != nil && (origin == nil || origin.Usage != ResumptionPSKUsageReInit || o.group(origin) != o.Successor) {
		return nil, invalid("welcome/not-successor", "11.2", "the group does not follow the closed one: the Welcome has no resumption PSK of it for a ReInit")
	}
	psks, err := pskSecret(cs, gs.psks, func(id *PreSharedKeyID) (secret, bool) {
		if old := o.group(id); old != nil {
			return old.psk(id)
		}
		return cfg.psk(id)
	})
	if err != nil {
		return nil, invalid("welcome/psk-missing", "12.4.3.1", "%w", err)
	}
	defer psks.zero()

	// The GroupInfo.
	if len(gs.joinerSecret) != cs.HashLen() {
		return nil, invalid("welcome/secrets-undecryptable", "12.4.3.1", "a joiner secret of %d bytes where %d are due", len(gs.joinerSecret), cs.HashLen())
	}
	ws := cs.welcomeSecret(gs.joinerSecret, psks)
	key, nonce := cs.welcomeKey(ws)
	ws.zero()
	raw, ok := cs.aeadOpen(key, nonce, nil, w.encryptedGroupInfo)
	key.zero()
	nonce.zero()
	if !ok {
		return nil, invalid("welcome/secrets-undecryptable", "12.4.3.1", "the GroupInfo does not decrypt; the Welcome was altered or a PSK is a different one")
	}
	gi := new(GroupInfo)
	if err := unmarshal(raw, gi); err != nil {
		return nil, err
	}
	if gi.context.cipherSuite != cs {
		return nil, invalid("welcome/cipher-suite", "12.4.3.1", "the GroupInfo is for suite %v, the Welcome for %v", gi.context.cipherSuite, cs)
	}
	if o.InUse != nil && o.InUse(gi.context.groupID) {
		return nil, invalid("welcome/group-id-in-use", "12.4.3.1", "we are in this group already")
	}
	// RFC 9420, Section 13.4: we support the extensions of the group.
	if err := kp.LeafNode.Capabilities.supportsGroup(gi.context.extensions, nil); err != nil {
		return nil, invalid("welcome/extension-unsupported", "13.4", "our KeyPackage and the group: %w", err)
	}
	e, err := newEpoch(cfg, gi, o.RatchetTree)
	if err != nil {
		return nil, err
	}
	if err := checkOrigin(e, origin, o); err != nil {
		return nil, err
	}

	// Our place.
	own, ok := e.tree.findSignatureKey(kp.LeafNode.SignatureKey)
	if !ok || !bytes.Equal(e.tree.leaf(own).raw, kp.LeafNode.raw) {
		return nil, invalid("welcome/own-leaf-absent", "12.4.3.1", "no leaf of the group is that of our KeyPackage")
	}
	g := &Group{epoch: e, own: own, signature: bundle.signature}
	g.keys = nodeKeys{own.node(): {bundle.leafKey.clone(), kp.LeafNode.EncryptionKey}}
	if gs.pathSecret != nil {
		if g.keys, err = e.tree.welcomePath(own, gi.signer, g.keys, gs.pathSecret); err != nil {
			return nil, err
		}
	}

	// The key schedule.
	g.secrets = newEpochSecrets(cs, gs.joinerSecret, psks, e.contextRaw)
	if !cs.verifyMAC(g.secrets.confirmation, gi.confirmationTag, e.context.confirmedTranscriptHash) {
		g.secrets.zero()
		return nil, invalid("welcome/confirmation-tag", "12.4.3.1", "the confirmation tag is not that of the epoch")
	}
	g.start()
	return g, nil
}

// newEpoch makes an epoch of a GroupInfo and checks everything in it that needs
// no secret. RFC 9420, Section 12.4.3.1. tree is used when the GroupInfo holds
// none.
func newEpoch(cfg *Config, gi *GroupInfo, tree []byte) (*epoch, error) {
	cs := gi.context.cipherSuite
	if err := cfg.checkSuite(cs); err != nil {
		return nil, err
	}
	if err := checkExtensions(gi.context.extensions, inGroupContext); err != nil {
		return nil, err
	}
	if err := cfg.checkExternalSenders(gi.context.extensions); err != nil {
		return nil, err
	}
	if err := checkExtensions(gi.extensions, inGroupInfo); err != nil {
		return nil, err
	}
	if data, ok := findExtension(gi.extensions, ExtensionTypeRatchetTree); ok {
		tree = data
	}
	if tree == nil {
		return nil, invalid("welcome/ratchet-tree-absent", "12.4.3.3", "the ratchet tree is not in the GroupInfo; fetch it and pass it along")
	}
	t, err := parseTree(cs, bytes.Clone(tree), cfg.limits())
	if err != nil {
		return nil, err
	}
	signer := t.leaf(gi.signer)
	if signer == nil {
		return nil, invalid("welcome/signer-blank", "12.4.3.1", "the GroupInfo is signed by leaf %d, where no member is", gi.signer)
	}
	if err := gi.verifySignature(signer.SignatureKey); err != nil {
		return nil, err
	}
	if err := t.validate(cfg, &gi.context); err != nil {
		return nil, err
	}
	e := &epoch{
		cfg:             cfg,
		contextRaw:      bytes.Clone(gi.contextRaw),
		tree:            t,
		signers:         new(signers),
		confirmationTag: bytes.Clone(gi.confirmationTag),
		interim:         cs.interimTranscriptHash(gi.context.confirmedTranscriptHash, gi.confirmationTag),
	}
	if err := unmarshal(e.contextRaw, &e.context); err != nil {
		return nil, err
	}
	return e, nil
}

// welcomePath derives the keys above a new member from the path secret of the
// node it shares with the committer. RFC 9420, Section 12.4.3.1.
func (t *ratchetTree) welcomePath(own, committer LeafIndex, keys nodeKeys, ps secret) (nodeKeys, error) {
	if own == committer {
		return nil, invalid("welcome/path-secret-mismatch", "12.4.3.1", "the Welcome is signed by our own leaf")
	}
	var steps []pathStep
	for x := commonAncestor(own.node(), committer.node()); ; {
		if t.parent(x) != nil {
			steps = append(steps, pathStep{node: x})
		} else if len(steps) == 0 {
			return nil, invalid("welcome/path-secret-mismatch", "12.4.3.1", "the path secret is for a blank node")
		}
		p, ok := x.parent(t.size)
		if !ok {
			break
		}
		x = p
	}
	keys, commitSecret, err := t.mergePath(keys, ps.clone(), steps)
	if err != nil {
		return nil, invalid("welcome/path-secret-mismatch", "12.4.3.1", "%w", err)
	}
	commitSecret.zero()
	return keys, nil
}
