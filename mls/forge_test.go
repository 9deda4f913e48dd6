package mls

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

// cause returns the ValidationError of a rule in err's chain of causes, and err
// itself if there is none.
func cause(err error, rule Rule) error {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if v, ok := e.(*ValidationError); ok && v.Rule == rule {
			return v
		}
	}
	return err
}

// lenient returns g with an Authenticator that takes everything.
func lenient(g *Group) *Group {
	n := *g
	e := *g.epoch
	c := *g.cfg
	c.Authenticator = vectorAuthenticator{}
	e.cfg = &c
	n.epoch = &e
	return &n
}

// A packageForgery makes a KeyPackage with right signatures and wrong content.
type packageForgery struct {
	name      string
	key       *SignaturePrivateKey
	leaf      func(l *LeafNode)    // before it is signed
	after     func(raw []byte)     // the leaf's bytes after it is signed
	version   ProtocolVersion      // 0 for MLS10
	suite     CipherSuite          // 0 for the world's
	initKey   HPKEPublicKey        // nil for a fresh one
	sameKey   bool                 // init_key is the leaf's encryption_key
	exts      []Extension          // of the KeyPackage
	signature func(sig []byte)     // of the KeyPackage
	bundle    **KeyPackageBundle   // where the private keys go
	caps      *Capabilities        // of the leaf
	sign      *SignaturePrivateKey // signs in place of key
}

func (w *world) forgePackage(f packageForgery) *KeyPackage {
	w.t.Helper()
	key := w.key()
	if f.key != nil {
		key = *f.key
	}
	signer := key
	if f.sign != nil {
		signer = *f.sign
	}
	initPriv, initPub, err := w.cs.generateKeyPair(w.cfg.Rand)
	w.check(err)
	leafPriv, leafPub, err := w.cs.generateKeyPair(w.cfg.Rand)
	w.check(err)
	if f.initKey != nil {
		initPub = f.initKey
	}
	if f.sameKey {
		initPub = leafPub
	}
	if f.name == "" {
		f.name = "forger"
	}
	l := &LeafNode{
		EncryptionKey: leafPub, SignatureKey: key.Public(), Credential: BasicCredential([]byte(f.name)),
		Capabilities: DefaultCapabilities(), Source: LeafNodeSourceKeyPackage, Lifetime: defaultLifetime(w.cfg.now()),
	}
	if f.caps != nil {
		l.Capabilities = *f.caps
	}
	if f.leaf != nil {
		f.leaf(l)
	}
	l, err = l.sign(w.cs, signer, []byte("group"), 0)
	w.check(err)
	raw := l.appendTo(nil)
	if f.after != nil {
		f.after(raw)
	}
	if f.version == 0 {
		f.version = MLS10
	}
	if f.suite == 0 {
		f.suite = w.cs
	}
	b := binary.BigEndian.AppendUint16(nil, uint16(f.version))
	b = binary.BigEndian.AppendUint16(b, uint16(f.suite))
	b = appendOpaqueVec(b, initPub)
	b = append(b, raw...)
	b = appendExtensions(b, f.exts)
	sig, err := SignWithLabel(w.cs, signer, "KeyPackageTBS", b)
	w.check(err)
	if f.signature != nil {
		f.signature(sig)
	}
	kp := new(KeyPackage)
	w.check(unmarshal(appendOpaqueVec(b, sig), kp))
	if f.bundle != nil {
		*f.bundle = &KeyPackageBundle{keyPackage: kp, initKey: initPriv, leafKey: leafPriv, signature: key}
	}
	return kp
}

// A commitForgery is a Commit that skips the checks of its maker. Left as it is, it
// is valid.
type commitForgery struct {
	proposals []proposalOrRef
	apply     func(t *ratchetTree) // what the proposals do to the tree
	added     []LeafIndex
	exts      []Extension // of the new GroupContext; nil keeps them
	psks      secret

	path     bool
	key      *SignaturePrivateKey                             // new signature key of the leaf
	pubs     func(pubs []HPKEPublicKey)                       // the path's public keys, before they are hashed
	leafKey  HPKEPublicKey                                    // encryption key of the leaf
	leaf     func(l *LeafNode)                                // before it is signed
	bind     func(id []byte, i LeafIndex) ([]byte, LeafIndex) // group and place that the leaf is signed for
	editPath func(p *updatePath)                              // after it is encrypted
	secrets  func(i int, ps secret) secret                    // what is encrypted for a step
	tag      func(tag []byte) []byte
	epoch    *uint64
}

func byValue(ps ...Proposal) []proposalOrRef {
	var out []proposalOrRef
	for _, p := range ps {
		out = append(out, proposalOrRef{proposal: &p})
	}
	return out
}

// forge makes a Commit as g's member.
func (w *world) forge(g *Group, f commitForgery) *Message {
	w.t.Helper()
	cs := w.cs
	c := &commit{proposals: f.proposals}
	t := &transition{committer: g.own, commit: c, change: &change{tree: g.tree.change(), extensions: g.context.extensions, added: f.added}}
	if f.exts != nil {
		t.extensions = f.exts
	}
	if f.apply != nil {
		f.apply(t.tree)
	}
	key := g.signature
	if f.key != nil {
		key = *f.key
	}
	var commitSecret secret
	var path *newPath
	if f.path {
		_, leafPub, err := cs.generateKeyPair(w.cfg.Rand)
		w.check(err)
		first := make(secret, cs.HashLen())
		_, err = io.ReadFull(w.cfg.Rand, first)
		w.check(err)
		steps := t.tree.filteredDirectPath(g.own)
		secrets, keys, cmt, err := derivePath(cs, first, steps)
		w.check(err)
		commitSecret = cmt
		pubs := make([]HPKEPublicKey, len(keys))
		for i := range keys {
			pubs[i] = keys[i].pub
		}
		if f.pubs != nil {
			f.pubs(pubs)
		}
		parentHash := t.tree.setPath(g.own, steps, pubs)
		if f.leafKey != nil {
			leafPub = f.leafKey
		}
		l, err := g.newLeaf(nil, key, leafPub)
		w.check(err)
		l.Source, l.ParentHash = LeafNodeSourceCommit, parentHash
		if f.leaf != nil {
			f.leaf(l)
		}
		id, i := g.context.groupID, g.own
		if f.bind != nil {
			id, i = f.bind(id, i)
		}
		l, err = l.sign(cs, key, id, i)
		w.check(err)
		t.tree.setLeaf(g.own, l)
		if f.secrets != nil {
			for i := range secrets {
				secrets[i].secret = f.secrets(i, secrets[i].secret)
			}
		}
		path = &newPath{leaf: l, secrets: secrets}
	}
	t.finish(g.epoch)
	if path != nil {
		var err error
		c.path, err = path.encrypt(t.tree, f.added, t.provision, w.cfg.Rand)
		w.check(err)
		if f.editPath != nil {
			f.editPath(c.path)
		}
	}
	content := framedContent{
		groupID: g.context.groupID, epoch: g.context.epoch, contentType: ContentTypeCommit, commit: c,
		sender: Sender{Type: SenderTypeMember, LeafIndex: g.own},
	}
	if f.epoch != nil {
		content.epoch = *f.epoch
	}
	ac, err := signContent(cs, g.signature, WireFormatPublicMessage, content, g.contextRaw)
	w.check(err)
	t.context.confirmedTranscriptHash = cs.confirmedTranscriptHash(g.interim, ac)
	n, tag := advance(t, g.own, key, nil, g.secrets.init, commitSecret, f.psks)
	n.secrets.zeroWelcome()
	if f.tag != nil {
		tag = f.tag(tag)
	}
	ac.confirmationTag = tag
	return w.parse(ac.publicMessage(cs, g.secrets.membership, g.contextRaw))
}

// propose makes a proposal message as g's member without checking it.
func (w *world) propose(g *Group, p Proposal) *Message {
	w.t.Helper()
	ac, err := g.sign(framedContent{contentType: ContentTypeProposal, proposal: p}, WireFormatPublicMessage)
	w.check(err)
	raw, err := g.protect(ac)
	w.check(err)
	return w.parse(raw)
}

// updateLeaf makes a leaf for an Update by g's member.
func (w *world) updateLeaf(g *Group, edit func(l *LeafNode), key *SignaturePrivateKey, id []byte, i LeafIndex) *LeafNode {
	w.t.Helper()
	_, pub, err := w.cs.generateKeyPair(w.cfg.Rand)
	w.check(err)
	k := g.signature
	if key != nil {
		k = *key
	}
	l, err := g.newLeaf(nil, k, pub)
	w.check(err)
	l.Source = LeafNodeSourceUpdate
	if edit != nil {
		edit(l)
	}
	l, err = l.sign(w.cs, k, id, i)
	w.check(err)
	return l
}

// refuse feeds a message that must be refused and leave the group as it is.
func (w *world) refuse(g *Group, m *Message) error {
	w.t.Helper()
	before := snapshot(g)
	_, err := g.Process(m)
	if !bytes.Equal(before, snapshot(g)) {
		w.t.Error("the refused message changed the group")
	}
	return err
}

// refusePublic feeds a message that a server must refuse, and that must leave
// what it follows as it is.
func (w *world) refusePublic(p *PublicGroup, m *Message) error {
	w.t.Helper()
	before, err := p.MarshalBinary()
	w.check(err)
	_, refusal := p.Process(m)
	after, err := p.MarshalBinary()
	w.check(err)
	if !bytes.Equal(before, after) {
		w.t.Error("the refused message changed the public group")
	}
	return refusal
}

// accept feeds a message that must be accepted.
func (w *world) accept(g *Group, m *Message) Processed {
	w.t.Helper()
	p, err := g.Process(m)
	w.check(err)
	return p
}

// refuseAdd feeds a Commit that adds a KeyPackage, and a proposal that would.
// Both must be refused for the same rule.
func (w *world) refuseAdd(gs []*Group, kp *KeyPackage, rule Rule) error {
	w.t.Helper()
	m := w.forge(gs[0], commitForgery{
		proposals: byValue(Add(kp)), path: true, added: []LeafIndex{LeafIndex(gs[0].tree.last)},
		apply: func(t *ratchetTree) { t.add(kp.LeafNode) },
	})
	err := cause(w.refuse(gs[1], m), rule)
	if err2 := w.refuse(gs[1], w.propose(gs[0], Add(kp))); !hasRule(err2, rule) {
		w.t.Errorf("as a proposal: %v, want %s", err2, rule)
	}
	return err
}

func newRejectWorld(t *testing.T) *world {
	return newWorld(t, MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519)
}

// TestForgeriesAreValid makes sure that what the reject tests alter is right to
// begin with.
func TestForgeriesAreValid(t *testing.T) {
	for _, cs := range rejectSuites {
		w := newWorld(t, cs)
		gs := w.group(4)
		kp := w.forgePackage(packageForgery{})
		up := w.updateLeaf(gs[3], nil, nil, []byte("group"), 3)
		proposal := w.propose(gs[3], Proposal{Type: ProposalTypeUpdate, Update: up})
		for _, g := range gs[:3] {
			w.accept(g, proposal)
		}
		for _, f := range []commitForgery{
			{path: true},
			{proposals: byValue(Add(kp)), added: []LeafIndex{4}, apply: func(t *ratchetTree) { t.add(kp.LeafNode) }},
			{proposals: byValue(Add(kp)), path: true, added: []LeafIndex{4}, apply: func(t *ratchetTree) { t.add(kp.LeafNode) }},
			{proposals: byValue(Remove(2)), path: true, apply: func(t *ratchetTree) { t.remove(2); t.truncate() }},
			{proposals: []proposalOrRef{{ref: gs[0].PendingProposals()[0].Ref}}, path: true, apply: func(t *ratchetTree) { t.update(3, up) }},
		} {
			m := w.forge(gs[0], f)
			for _, g := range gs[1:3] {
				w.accept(g, m)
			}
		}
	}
}
