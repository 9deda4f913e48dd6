package mls

import (
	"bytes"
	"testing"
)

// proposalRow is a row about one proposal: a member sends it, and commits it by
// value. Both are refused.
func proposalRow(rule Rule, make func(w *world, gs []*Group) Proposal) rejectCase {
	return rejectCase{row: rule, each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		_, gs = w.commit(gs, 0, CommitOptions{Proposals: []Proposal{Remove(1)}})
		p := make(w, gs)
		err := w.refuse(gs[1], w.propose(gs[0], p))
		err2 := w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(p), path: true}))
		if !hasRule(err2, rule) {
			t.Errorf("by value: %v, want %s", err2, rule)
		}
		before := snapshot(gs[0])
		if _, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{p}}); err == nil {
			t.Error("we commit it ourselves")
		}
		if !bytes.Equal(before, snapshot(gs[0])) {
			t.Error("a Commit that fails changes the group")
		}
		return cause(err, rule)
	}}
}

func (w *world) nonce() []byte { return bytes.Repeat([]byte{7}, w.cs.HashLen()) }

// external makes a proposal from outside without checks.
func (w *world) external(g *Group, sender Sender, key SignaturePrivateKey, ct ContentType, p Proposal, c *commit) []byte {
	w.t.Helper()
	ac, err := signContent(w.cs, key, WireFormatPublicMessage, framedContent{
		groupID: g.context.groupID, epoch: g.context.epoch, sender: sender, contentType: ct, proposal: p, commit: c,
	}, g.contextRaw)
	w.check(err)
	if ct == ContentTypeCommit {
		ac.confirmationTag = make([]byte, w.cs.HashLen())
	}
	return ac.publicMessage(w.cs, nil, nil)
}

// sendersGroup makes a group with one external sender.
func (w *world) sendersGroup(n int) ([]*Group, SignaturePrivateKey) {
	bot := w.key()
	gs := w.group(n, ExternalSendersExtension([]ExternalSender{{SignatureKey: bot.Public(), Credential: BasicCredential([]byte("bot"))}}))
	return gs, bot
}

var proposalRejects = []rejectCase{
	proposalRow("proposal/add-invalid-key-package", func(w *world, gs []*Group) Proposal {
		return Add(w.forgePackage(packageForgery{version: 2}))
	}),
	{row: "proposal/update-from-nonmember", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs, bot := w.sendersGroup(2)
		up := w.updateLeaf(gs[0], nil, nil, []byte("group"), 0)
		m := w.parse(w.external(gs[0], Sender{Type: SenderTypeExternal}, bot, ContentTypeProposal, Proposal{Type: ProposalTypeUpdate, Update: up}, nil))
		return cause(w.refuse(gs[1], m), "proposal/update-from-nonmember")
	}},
	{row: "proposal/update-invalid-leaf", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		for _, edit := range []func(l *LeafNode){
			func(l *LeafNode) { l.EncryptionKey = []byte{1, 2, 3} },
			func(l *LeafNode) { l.Capabilities.Credentials = nil },
			func(l *LeafNode) { l.Extensions = []Extension{{Type: testExtension}} },
		} {
			up := w.updateLeaf(gs[0], edit, nil, []byte("group"), 0)
			if err := w.refuse(gs[1], w.propose(gs[0], Proposal{Type: ProposalTypeUpdate, Update: up})); !hasRule(err, "proposal/update-invalid-leaf") {
				t.Errorf("got %v", err)
			}
		}
		up := w.updateLeaf(gs[0], func(l *LeafNode) { l.Capabilities.CipherSuites = nil }, nil, []byte("group"), 0)
		return w.refuse(gs[1], w.propose(gs[0], Proposal{Type: ProposalTypeUpdate, Update: up}))
	}},
	proposalRow("proposal/remove-blank-leaf", func(*world, []*Group) Proposal { return Remove(1) }),
	{row: "proposal/remove-out-of-range", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		for _, i := range []LeafIndex{2, 3, 1 << 31, 1<<32 - 1} {
			if err := w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(Remove(i)), path: true})); !hasRule(err, "proposal/remove-out-of-range") {
				t.Errorf("leaf %d: %v", i, err)
			}
		}
		return w.refuse(gs[1], w.propose(gs[0], Remove(2)))
	}},
	proposalRow("proposal/psk-nonce-length", func(*world, []*Group) Proposal {
		return PSK(PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("k"), Nonce: make([]byte, 31)})
	}),
	proposalRow("proposal/psk-usage-reinit", func(w *world, _ []*Group) Proposal {
		return PSK(PreSharedKeyID{Type: PSKTypeResumption, Usage: ResumptionPSKUsageReInit, GroupID: []byte("group"), Epoch: 1, Nonce: w.nonce()})
	}),
	proposalRow("proposal/psk-usage-branch", func(w *world, _ []*Group) Proposal {
		return PSK(PreSharedKeyID{Type: PSKTypeResumption, Usage: ResumptionPSKUsageBranch, GroupID: []byte("group"), Epoch: 1, Nonce: w.nonce()})
	}),
	proposalRow("proposal/reinit-version-lower", func(*world, []*Group) Proposal {
		return (&ReInit{GroupID: []byte("next"), Version: 0, CipherSuite: 1}).Proposal()
	}),
	proposalRow("proposal/external-init-by-member", func(*world, []*Group) Proposal {
		return Proposal{Type: ProposalTypeExternalInit, ExternalInit: make([]byte, 32)}
	}),
	{row: "proposal/gce-required-unsupported", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		for _, r := range []RequiredCapabilities{
			{Extensions: []ExtensionType{testExtension}}, {Proposals: []ProposalType{0xf0a2}}, {Credentials: []CredentialType{0xf0a3}},
		} {
			exts := []Extension{r.Extension()}
			err := w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(GroupContextExtensions(exts)), exts: exts, path: true}))
			if !hasRule(err, "proposal/gce-required-unsupported") {
				t.Errorf("%+v: %v", r, err)
			}
		}
		_, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{GroupContextExtensions([]Extension{(&RequiredCapabilities{Extensions: []ExtensionType{testExtension}}).Extension()})}})
		return cause(err, "proposal/gce-required-unsupported")
	}},
	{row: "proposal/gce-extension-unsupported", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		wide := newWorld(t, cs)
		exts := []Extension{{Type: testExtension, Data: []byte("x")}}
		wide.commit(wide.wideGroup(2), 0, CommitOptions{Proposals: []Proposal{GroupContextExtensions(exts)}})
		err := w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(GroupContextExtensions(exts)), exts: exts, path: true}))
		return cause(err, "proposal/gce-extension-unsupported")
	}},
	{row: "proposal/type-unsupported", each: func(t *testing.T, cs CipherSuite) error { return unknownProposal(t, cs, 0xf0a2) }},
	{row: "proposal/type-grease", each: func(t *testing.T, cs CipherSuite) error { return unknownProposal(t, cs, 0x0a0a) }},
	{row: "proposal/ref-unknown", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		_, ref, err := gs[0].Propose(Remove(2), FramingOptions{})
		w.check(err)
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{
			proposals: []proposalOrRef{{ref: ref}}, path: true, apply: func(t *ratchetTree) { t.remove(2); t.truncate() },
		}))
	}},
	{row: "proposal/ref-other-epoch", rule: "proposal/ref-unknown", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		raw, ref, err := gs[0].Propose(Remove(2), FramingOptions{})
		w.check(err)
		w.accept(gs[1], w.parse(raw))
		w.accept(gs[2], w.parse(raw))
		_, gs = w.commit(gs, 1, CommitOptions{})
		if _, err := gs[0].Commit(CommitOptions{PendingRefs: []ProposalRef{ref}}); !hasRule(err, "proposal/ref-unknown") {
			t.Errorf("our own Commit: %v", err)
		}
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{
			proposals: []proposalOrRef{{ref: ref}}, path: true, apply: func(t *ratchetTree) { t.remove(2); t.truncate() },
		}))
	}},
	{row: "proposal/external-sender-index", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs, bot := w.sendersGroup(3)
		send := func(g *Group, index uint32) *Message {
			raw, err := NewExternalProposal(w.cs, g.GroupID(), g.Epoch(), index, bot, Remove(2), nil)
			w.check(err)
			return w.parse(raw)
		}
		w.accept(gs[1], send(gs[1], 0))
		for _, i := range []uint32{1, 1<<32 - 1} {
			if err := w.refuse(gs[1], send(gs[1], i)); !hasRule(err, "proposal/external-sender-index") {
				t.Errorf("sender %d: %v", i, err)
			}
		}
		without := newWorld(t, cs).group(3)
		return w.refuse(without[1], send(without[1], 0))
	}},
	{row: "proposal/external-sender-type", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs, bot := w.sendersGroup(3)
		if _, err := NewExternalProposal(w.cs, []byte("group"), 1, 0, bot, Proposal{Type: ProposalTypeExternalInit}, nil); !hasRule(err, "proposal/external-sender-type") {
			t.Errorf("making it: %v", err)
		}
		return w.refuse(gs[1], w.parse(w.external(gs[1], Sender{Type: SenderTypeExternal}, bot, ContentTypeProposal, Proposal{Type: ProposalTypeExternalInit, ExternalInit: make([]byte, 32)}, nil)))
	}},
	{row: "proposal/external-sender-not-proposal", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs, bot := w.sendersGroup(3)
		raw := w.external(gs[1], Sender{Type: SenderTypeExternal}, bot, ContentTypeCommit, Proposal{}, &commit{})
		_, err := ParseMessage(raw)
		return err
	}},
	{row: "proposal/new-member-not-add", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		_, err := ParseMessage(w.external(gs[1], Sender{Type: SenderTypeNewMemberProposal}, w.key(), ContentTypeProposal, Remove(2), nil))
		return err
	}},
	{row: "proposal/new-member-signature-key", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		b := w.bundle("new")
		raw, err := NewMemberProposal(gs[0].GroupID(), gs[0].Epoch(), b, nil)
		w.check(err)
		w.accept(gs[0], w.parse(raw))
		return w.refuse(gs[1], w.parse(w.external(gs[1], Sender{Type: SenderTypeNewMemberProposal}, w.key(), ContentTypeProposal, Add(b.KeyPackage()), nil)))
	}},
	{row: "proposal/external-as-private", rule: "framing/private-from-nonmember", each: func(t *testing.T, cs CipherSuite) error {
		// The format has no place for such a sender; so it cannot be made.
		w := newWorld(t, cs)
		gs, bot := w.sendersGroup(2)
		ac, err := signContent(w.cs, bot, WireFormatPrivateMessage, framedContent{
			groupID: []byte("group"), epoch: 1, sender: Sender{Type: SenderTypeExternal}, contentType: ContentTypeProposal, proposal: Remove(1),
		}, nil)
		w.check(err)
		_, err = gs[0].protect(ac)
		return err
	}},
}

// unknownProposal sends a proposal of a type that nobody supports.
func unknownProposal(t *testing.T, cs CipherSuite, typ ProposalType) error {
	w := newWorld(t, cs)
	gs := w.group(2)
	body := []byte{byte(typ >> 8), byte(typ), 0}
	for _, ct := range []ContentType{ContentTypeProposal, ContentTypeCommit} {
		b := body
		if ct == ContentTypeCommit {
			b = append(appendOpaqueVec(nil, append([]byte{proposalByValue}, body...)), 0)
		}
		ac, err := gs[0].sign(framedContent{contentType: ct, body: b}, WireFormatPublicMessage)
		w.check(err)
		if ct == ContentTypeCommit {
			ac.confirmationTag = make([]byte, w.cs.HashLen())
		}
		raw, err := gs[0].protect(ac)
		w.check(err)
		if _, err = ParseMessage(raw); ct == ContentTypeCommit {
			return err
		} else if err == nil {
			t.Error("taken as a proposal")
		}
	}
	return nil
}

// listRow is a row about the proposals of one Commit. Our own Commit must
// refuse them, too.
func listRow(rule Rule, make func(w *world, gs []*Group) []Proposal) rejectCase {
	return rejectCase{row: rule, each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(4)
		ps := make(w, gs)
		before := snapshot(gs[0])
		if _, err := gs[0].Commit(CommitOptions{Proposals: ps}); !hasRule(err, rule) {
			t.Errorf("our own Commit: %v, want %s", err, rule)
		}
		if !bytes.Equal(before, snapshot(gs[0])) {
			t.Error("a Commit that fails changes the group")
		}
		return cause(w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(ps...), path: true})), rule)
	}}
}

// updateRow is a row about a Commit that names an Update of leaf 2, and one
// more proposal or Update.
func updateRow(rule Rule, more func(w *world, gs []*Group) []Proposal) rejectCase {
	return rejectCase{row: rule, each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(4)
		up := func(i int) *LeafNode { return w.updateLeaf(gs[i], nil, nil, []byte("group"), LeafIndex(i)) }
		m := w.propose(gs[2], Proposal{Type: ProposalTypeUpdate, Update: up(2)})
		refs := []proposalOrRef{{ref: w.accept(gs[1], m).(*ProposalMessage).Ref}}
		w.accept(gs[0], m)
		if more == nil {
			m = w.propose(gs[2], Proposal{Type: ProposalTypeUpdate, Update: up(2)})
			refs = append(refs, proposalOrRef{ref: w.accept(gs[1], m).(*ProposalMessage).Ref})
			w.accept(gs[0], m)
		} else {
			refs = append(refs, byValue(more(w, gs)...)...)
		}
		return cause(w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: refs, path: true})), rule)
	}}
}

var listRejects = []rejectCase{
	{row: "proposal-list/own-update", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		raw, ref, err := gs[0].ProposeUpdate(nil, FramingOptions{})
		w.check(err)
		w.accept(gs[1], w.parse(raw))
		if _, err := gs[0].Commit(CommitOptions{PendingRefs: []ProposalRef{ref}}); !hasRule(err, "proposal-list/own-update") {
			t.Errorf("our own Commit: %v", err)
		}
		c, err := gs[0].Commit(CommitOptions{Pending: true})
		w.check(err)
		if len(c.Proposals()) != 0 {
			t.Error("our own Update is among the proposals to commit")
		}
		// By value it is the committer's, too.
		up := w.updateLeaf(gs[0], nil, nil, []byte("group"), 0)
		if err := w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(Proposal{Type: ProposalTypeUpdate, Update: up}), path: true})); !hasRule(err, "proposal-list/own-update") {
			t.Errorf("by value: %v", err)
		}
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: []proposalOrRef{{ref: ref}}, path: true}))
	}},
	listRow("proposal-list/own-remove", func(*world, []*Group) []Proposal { return []Proposal{Remove(0)} }),
	updateRow("proposal-list/two-updates-one-leaf", nil),
	updateRow("proposal-list/update-and-remove-one-leaf", func(*world, []*Group) []Proposal { return []Proposal{Remove(2)} }),
	listRow("proposal-list/two-removes-one-leaf", func(*world, []*Group) []Proposal { return []Proposal{Remove(2), Remove(2)} }),
	listRow("proposal-list/same-client-added-twice", func(w *world, _ []*Group) []Proposal {
		key := w.key()
		return []Proposal{Add(w.forgePackage(packageForgery{key: &key})), Add(w.forgePackage(packageForgery{key: &key}))}
	}),
	listRow("proposal-list/same-init-key-added-twice", func(w *world, _ []*Group) []Proposal {
		a := w.bundle("a").KeyPackage()
		return []Proposal{Add(a), Add(w.forgePackage(packageForgery{initKey: a.InitKey}))}
	}),
	{row: "proposal-list/add-existing-member", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		again := w.forgePackage(packageForgery{key: &gs[2].signature})
		// With its Remove it is fine: a client that comes back.
		w.accept(gs[1], w.forge(gs[0], commitForgery{
			proposals: byValue(Add(again), Remove(2)), path: true, added: []LeafIndex{2},
			apply: func(t *ratchetTree) { t.remove(2); t.truncate(); t.add(again.LeafNode) },
		}))
		if _, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{Add(again)}}); !hasRule(err, "proposal-list/add-existing-member") {
			t.Errorf("our own Commit: %v", err)
		}
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(Add(again)), path: true}))
	}},
	listRow("proposal-list/duplicate-psk-id", func(w *world, _ []*Group) []Proposal {
		w.psks["k"] = []byte("psk")
		p := PSK(PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("k"), Nonce: w.nonce()})
		return []Proposal{p, p}
	}),
	listRow("proposal-list/two-gce", func(*world, []*Group) []Proposal {
		return []Proposal{GroupContextExtensions(nil), GroupContextExtensions(nil)}
	}),
	listRow("proposal-list/reinit-with-others", func(*world, []*Group) []Proposal {
		return []Proposal{(&ReInit{GroupID: []byte("next"), Version: MLS10, CipherSuite: 1}).Proposal(), Remove(2)}
	}),
	listRow("proposal-list/external-init", func(*world, []*Group) []Proposal {
		return []Proposal{{Type: ProposalTypeExternalInit, ExternalInit: make([]byte, 32)}}
	}),
	{row: "proposal-list/tree-invalid-after", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		kp := w.forgePackage(packageForgery{leaf: func(l *LeafNode) { l.EncryptionKey = gs[2].OwnLeaf().EncryptionKey }})
		if _, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{Add(kp)}}); !hasRule(err, "proposal-list/tree-invalid-after") {
			t.Errorf("our own Commit: %v", err)
		}
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{
			proposals: byValue(Add(kp)), added: []LeafIndex{3}, apply: func(t *ratchetTree) { t.add(kp.LeafNode) },
		}))
	}},
	{row: "proposal-list/too-many", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		w.cfg.Limits.MaxProposals = 3
		gs := w.group(4)
		var ps []Proposal
		for range 4 {
			ps = append(ps, Add(w.bundle("x").KeyPackage()))
		}
		if _, err := gs[0].Commit(CommitOptions{Proposals: ps}); !hasRule(err, "proposal-list/too-many") {
			t.Errorf("our own Commit: %v", err)
		}
		_, err := gs[0].Commit(CommitOptions{Proposals: ps[:3]})
		w.check(err)
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(ps...), path: true}))
	}},
}
