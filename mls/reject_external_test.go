package mls

import (
	"testing"
)

// An externalForgery is an external Commit without its maker's checks. Left as
// it is, it is valid.
type externalForgery struct {
	name      string
	proposals func(init Proposal) []proposalOrRef
	remove    *LeafIndex
	noPath    bool
	options   LeafOptions          // of the leaf; by name if it has no credential
	signer    *SignaturePrivateKey // of the message, in place of the leaf's
	leafKey   HPKEPublicKey        // in place of a fresh one
}

func (w *world) forgeExternal(g *Group, f externalForgery) *Message {
	w.t.Helper()
	cs := w.cs
	_, pub, err := g.secrets.externalKeyPair(cs)
	w.check(err)
	kem, initSecret, err := cs.externalInitEncap(pub, w.cfg.Rand)
	w.check(err)
	init := Proposal{Type: ProposalTypeExternalInit, ExternalInit: kem}
	c := &commit{proposals: byValue(init)}
	if f.proposals != nil {
		c.proposals = f.proposals(init)
	}
	tree := g.tree.change()
	if f.remove != nil {
		tree.remove(*f.remove)
		tree.truncate()
	}
	t := &transition{committer: tree.place(), external: true, commit: c, change: &change{tree: tree, extensions: g.context.extensions}}
	key := w.key()
	if f.name == "" {
		f.name = "joiner"
	}
	o := w.options(f.name)
	if f.options.Credential.Type != 0 {
		o = f.options
	}
	path, err := tree.createPath(t.committer, w.cfg.Rand, func(pub HPKEPublicKey, parentHash []byte) (*LeafNode, error) {
		if f.leafKey != nil {
			pub = f.leafKey
		}
		l, err := o.leaf(w.cfg.capabilities(), key, pub)
		w.check(err)
		l.Source, l.ParentHash = LeafNodeSourceCommit, parentHash
		return l.sign(cs, key, g.context.groupID, t.committer)
	})
	w.check(err)
	t.finish(g.epoch)
	if !f.noPath {
		c.path, err = path.encrypt(tree, nil, t.provision, w.cfg.Rand)
		w.check(err)
	}
	signer := key
	if f.signer != nil {
		signer = *f.signer
	}
	ac, err := signContent(cs, signer, WireFormatPublicMessage, framedContent{
		groupID: g.context.groupID, epoch: g.context.epoch, contentType: ContentTypeCommit, commit: c,
		sender: Sender{Type: SenderTypeNewMemberCommit},
	}, g.contextRaw)
	w.check(err)
	t.context.confirmedTranscriptHash = cs.confirmedTranscriptHash(g.interim, ac)
	_, ac.confirmationTag = advance(t, t.committer, key, nil, initSecret, path.commitSecret, nil)
	return w.parse(ac.publicMessage(cs, nil, nil))
}

// externalRow is a row about an external Commit. A server that follows the
// group must refuse it as well.
func externalRow(rule Rule, f func(w *world, gs []*Group) externalForgery) rejectCase {
	return rejectCase{row: rule, each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(4)
		pub := w.public(gs[0])
		valid := w.forgeExternal(gs[0], externalForgery{})
		w.accept(gs[1], valid)
		_, err := pub.Process(valid)
		w.check(err)
		m := w.forgeExternal(gs[0], f(w, gs))
		if err := w.refusePublic(pub, m); !hasRule(err, rule) {
			t.Errorf("as a server: %v, want %s", err, rule)
		}
		return w.refuse(gs[1], m)
	}}
}

var externalRejects = []rejectCase{
	externalRow("external-commit/no-external-init", func(*world, []*Group) externalForgery {
		return externalForgery{proposals: func(Proposal) []proposalOrRef { return nil }}
	}),
	externalRow("external-commit/two-external-init", func(*world, []*Group) externalForgery {
		return externalForgery{proposals: func(p Proposal) []proposalOrRef { return byValue(p, p) }}
	}),
	externalRow("external-commit/two-removes", func(w *world, gs []*Group) externalForgery {
		two := LeafIndex(2)
		return externalForgery{name: "member2", remove: &two, proposals: func(p Proposal) []proposalOrRef { return byValue(p, Remove(2), Remove(2)) }}
	}),
	externalRow("external-commit/remove-other-identity", func(w *world, gs []*Group) externalForgery {
		two := LeafIndex(2)
		return externalForgery{name: "member3", remove: &two, proposals: func(p Proposal) []proposalOrRef { return byValue(p, Remove(2)) }}
	}),
	{row: "external-commit/other-proposal", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		var err error
		for _, extra := range []Proposal{
			GroupContextExtensions(nil),
			(&ReInit{GroupID: []byte("next"), Version: MLS10, CipherSuite: 1}).Proposal(),
			{Type: ProposalTypeUpdate, Update: w.updateLeaf(gs[0], nil, nil, []byte("group"), 0)},
			Add(w.bundle("x").KeyPackage()),
		} {
			err = w.refuse(gs[1], w.forgeExternal(gs[0], externalForgery{proposals: func(p Proposal) []proposalOrRef { return byValue(p, extra) }}))
			if !hasRule(err, "external-commit/other-proposal") {
				t.Errorf("proposal type %d: %v", extra.Type, err)
			}
		}
		return err
	}},
	externalRow("external-commit/by-reference", func(w *world, gs []*Group) externalForgery {
		m := w.propose(gs[2], Remove(3))
		ref := w.accept(gs[1], m).(*ProposalMessage).Ref
		return externalForgery{proposals: func(p Proposal) []proposalOrRef { return append(byValue(p), proposalOrRef{ref: ref}) }}
	}),
	externalRow("external-commit/no-path", func(*world, []*Group) externalForgery { return externalForgery{noPath: true} }),
	externalRow("external-commit/signature-other-key", func(w *world, gs []*Group) externalForgery {
		key := w.key()
		return externalForgery{signer: &key}
	}),
	{row: "external-commit/wrong-sender-type", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		_, err := ParseMessage(w.external(gs[0], Sender{Type: SenderTypeNewMemberCommit}, w.key(), ContentTypeProposal, Remove(1), nil))
		return err
	}},
	{row: "external-commit/no-external-pub", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		info, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true})
		w.check(err)
		_, err = ExternalJoin(w.cfg, w.parse(info), w.key(), ExternalJoinOptions{Leaf: w.options("x")})
		return err
	}},
	{row: "external-commit/stale-group-info", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		info, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
		w.check(err)
		c, err := ExternalJoin(w.cfg, w.parse(info), w.key(), ExternalJoinOptions{Leaf: w.options("x")})
		w.check(err)
		w.check(gs[1].VerifyGroupInfo(w.parse(info)))
		_, gs = w.commit(gs, 0, CommitOptions{})
		// Members refuse who joins by it, and anybody who follows the group
		// can tell.
		if err := w.refuse(gs[1], w.parse(c.Message())); !hasRule(err, "framing/epoch-old") {
			t.Errorf("the Commit: %v", err)
		}
		return w.public(gs[1]).VerifyGroupInfo(w.parse(info))
	}},
	{row: "external-commit/policy-closed", rule: "leaf-node/credential-invalid", each: func(t *testing.T, cs CipherSuite) error {
		// Who may join is the application's to say, by its Authenticator or
		// with the staged Commit in hand.
		w := newWorld(t, cs)
		w.cfg.Authenticator = refusing{"stranger"}
		gs := w.group(2)
		w.accept(gs[1], w.forgeExternal(gs[0], externalForgery{}))
		return w.refuse(gs[1], w.forgeExternal(gs[0], externalForgery{name: "stranger"}))
	}},
}

// commitRow is a row about a Commit by a member, in a tree without blanks and
// in a fresh one.
func commitRow(rule Rule, f func(w *world, gs []*Group) commitForgery) rejectCase {
	return rejectCase{row: rule, each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(4)
		if err := w.refuse(gs[1], w.forge(gs[0], f(w, gs))); !hasRule(err, rule) {
			t.Errorf("fresh tree: %v, want %s", err, rule)
		}
		for i := range gs {
			_, gs = w.commit(gs, i, CommitOptions{})
		}
		w.accept(gs[1], w.forge(gs[0], commitForgery{path: true}))
		return w.refuse(gs[1], w.forge(gs[0], f(w, gs)))
	}}
}

var commitRejects = []rejectCase{
	{row: "commit/epoch", rule: "framing/epoch-old", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		m := w.forge(gs[0], commitForgery{path: true})
		_, gs = w.commit(gs, 1, CommitOptions{})
		future := gs[0].Epoch() + 1
		if err := w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true, epoch: &future})); !hasRule(err, "framing/epoch-future") {
			t.Errorf("future epoch: %v", err)
		}
		return w.refuse(gs[2], m)
	}},
	{row: "commit/path-missing-update", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(4)
		m := w.propose(gs[2], Proposal{Type: ProposalTypeUpdate, Update: w.updateLeaf(gs[2], nil, nil, []byte("group"), 2)})
		ref := w.accept(gs[1], m).(*ProposalMessage).Ref
		for name, f := range map[string]commitForgery{
			"nothing": {},
			"update":  {proposals: []proposalOrRef{{ref: ref}}},
			"gce":     {proposals: byValue(GroupContextExtensions(nil))},
		} {
			if err := w.refuse(gs[1], w.forge(gs[0], f)); !hasRule(err, "commit/path-missing-update") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := gs[0].Commit(CommitOptions{NoPath: true}); err == nil {
			t.Error("we make an empty Commit without path")
		}
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(Remove(3)), apply: func(t *ratchetTree) { t.remove(3) }}))
	}},
	commitRow("commit/path-length", func(w *world, gs []*Group) commitForgery {
		return commitForgery{path: true, editPath: func(p *updatePath) { p.nodes = p.nodes[:len(p.nodes)-1] }}
	}),
	commitRow("commit/path-ciphertext-count", func(w *world, gs []*Group) commitForgery {
		return commitForgery{path: true, editPath: func(p *updatePath) {
			n := &p.nodes[len(p.nodes)-1]
			n.ciphertexts = append(n.ciphertexts, n.ciphertexts[0])
		}}
	}),
	commitRow("commit/path-secret-undecryptable", func(w *world, gs []*Group) commitForgery {
		return commitForgery{path: true, editPath: func(p *updatePath) { p.nodes[0].ciphertexts[0].Ciphertext[0] ^= 1 }}
	}),
	commitRow("commit/path-public-key-mismatch", func(w *world, gs []*Group) commitForgery {
		return commitForgery{path: true, pubs: func(pubs []HPKEPublicKey) {
			_, pub, err := w.cs.generateKeyPair(w.cfg.Rand)
			w.check(err)
			pubs[len(pubs)-1] = pub
		}}
	}),
	commitRow("commit/path-key-reused", func(w *world, gs []*Group) commitForgery {
		return commitForgery{path: true, pubs: func(pubs []HPKEPublicKey) { pubs[0] = gs[3].OwnLeaf().EncryptionKey }}
	}),
	commitRow("commit/path-keys-equal", func(w *world, gs []*Group) commitForgery {
		return commitForgery{path: true, pubs: func(pubs []HPKEPublicKey) { pubs[1] = pubs[0] }}
	}),
	commitRow("commit/path-leaf-key-unchanged", func(w *world, gs []*Group) commitForgery {
		return commitForgery{path: true, leafKey: gs[0].OwnLeaf().EncryptionKey}
	}),
	commitRow("commit/path-leaf-source", func(w *world, gs []*Group) commitForgery {
		return commitForgery{path: true, leaf: func(l *LeafNode) { l.Source = LeafNodeSourceUpdate }}
	}),
	commitRow("commit/path-parent-hash", func(w *world, gs []*Group) commitForgery {
		return commitForgery{path: true, leaf: func(l *LeafNode) { l.ParentHash[0] ^= 1 }}
	}),
	{row: "commit/psk-unavailable", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		p := PSK(PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("unknown"), Nonce: w.nonce()})
		if _, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{p}}); !hasRule(err, "commit/psk-unavailable") {
			t.Errorf("our own Commit: %v", err)
		}
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(p)}))
	}},
	{row: "commit/confirmation-tag-wrong", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		for i := range gs[0].confirmationTag {
			err := w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true, tag: func(tag []byte) []byte { tag[i] ^= 1; return tag }}))
			if !hasRule(err, "commit/confirmation-tag-wrong") {
				t.Errorf("byte %d: %v", i, err)
			}
			if i == 2 {
				break
			}
		}
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true, tag: func(tag []byte) []byte { tag[len(tag)-1] ^= 0x80; return tag }}))
	}},
	{row: "commit/confirmation-tag-truncated", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		if err := w.refusePublic(w.public(gs[1]), w.forge(gs[0], commitForgery{path: true, tag: func(tag []byte) []byte { return tag[:8] }})); !hasRule(err, "commit/confirmation-tag-truncated") {
			t.Errorf("as a server: %v", err)
		}
		if err := w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true, tag: func(tag []byte) []byte { return append(tag, 0) }})); !hasRule(err, "commit/confirmation-tag-truncated") {
			t.Errorf("a longer tag: %v", err)
		}
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true, tag: func(tag []byte) []byte { return tag[:len(tag)-1] }}))
	}},
	{row: "commit/transcript-forked", rule: "framing/membership-tag-wrong", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		a, err := gs[0].Commit(CommitOptions{})
		w.check(err)
		b, err := gs[1].Commit(CommitOptions{})
		w.check(err)
		onA, onB := w.follow(gs, gs[0], a), w.follow(gs, gs[1], b)
		// A server, who has no key for the tag, tells by the signature.
		m := w.forge(onA[0], commitForgery{path: true})
		if err := w.refusePublic(w.public(onB[0]), m); !hasRule(err, "framing/signature-invalid") {
			t.Errorf("as a server: %v", err)
		}
		info, err := onA[0].GroupInfo(GroupInfoOptions{})
		w.check(err)
		if err := onB[0].VerifyGroupInfo(w.parse(info)); err == nil {
			t.Error("a GroupInfo of the other branch is taken")
		}
		return w.refuse(onB[2], m)
	}},
	{row: "commit/commit-by-removed", rule: "framing/sender-leaf-blank", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(4)
		removed := *gs[2]
		_, gs = w.commit(gs, 0, CommitOptions{Proposals: []Proposal{Remove(2)}})
		// Let it even know the epoch's secrets.
		forger := removed
		e := *gs[1].epoch
		forger.epoch, forger.secrets = &e, gs[1].secrets
		c := &commit{}
		ac, err := forger.sign(framedContent{contentType: ContentTypeCommit, commit: c}, WireFormatPublicMessage)
		w.check(err)
		ac.confirmationTag = make([]byte, cs.HashLen())
		raw, err := forger.protect(ac)
		w.check(err)
		return w.refuse(gs[1], w.parse(raw))
	}},
	{row: "commit/own-not-pending", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		c, err := gs[0].Commit(CommitOptions{})
		w.check(err)
		return w.refuse(gs[0], w.parse(c.Message()))
	}},
	{row: "commit/epoch-overflow", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		for i, g := range gs {
			e := *g.epoch
			e.context.epoch = 1<<64 - 1
			e.contextRaw = e.context.appendTo(nil)
			n := *g
			n.epoch = &e
			gs[i] = &n
		}
		if _, err := gs[0].Commit(CommitOptions{}); !hasRule(err, "commit/epoch-overflow") {
			t.Errorf("our own Commit: %v", err)
		}
		info, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
		w.check(err)
		if _, err := ExternalJoin(w.cfg, w.parse(info), w.key(), ExternalJoinOptions{Leaf: w.options("x")}); !hasRule(err, "commit/epoch-overflow") {
			t.Errorf("our own external Commit: %v", err)
		}
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true}))
	}},
}
