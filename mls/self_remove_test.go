package mls

import (
	"bytes"
	"testing"
)

// supporting returns the options of a leaf that lists draft proposal types.
func (w *world) supporting(name string, ps ...ProposalType) LeafOptions {
	c := w.cfg.capabilities()
	c.Proposals = append(c.Proposals, ps...)
	return LeafOptions{Credential: BasicCredential([]byte(name)), Capabilities: &c}
}

// groupOf makes a group of members with the given options.
func (w *world) groupOf(exts []Extension, options ...LeafOptions) []*Group {
	w.t.Helper()
	g, err := CreateGroup(w.cfg, w.cs, []byte("group"), w.key(), options[0], exts)
	w.check(err)
	o := CommitOptions{WelcomeRatchetTree: true}
	var bundles []*KeyPackageBundle
	for _, leaf := range options[1:] {
		b, err := NewKeyPackage(w.cfg, w.cs, w.key(), leaf)
		w.check(err)
		bundles = append(bundles, b)
		o.Proposals = append(o.Proposals, Add(b.KeyPackage()))
	}
	c, gs := w.commit([]*Group{g}, 0, o)
	for _, b := range bundles {
		g, err := JoinWelcome(w.cfg, w.parse(c.Welcome()), b, JoinOptions{})
		w.check(err)
		gs = append(gs, g)
	}
	w.agree(gs)
	return gs
}

// leavable makes a group of n members who all support SelfRemove.
func (w *world) leavable(n int) []*Group {
	w.t.Helper()
	var o []LeafOptions
	for i := range n {
		o = append(o, w.supporting("member"+string(rune('0'+i)), ProposalTypeSelfRemove))
	}
	return w.groupOf(nil, o...)
}

// leave lets a member propose its own removal, and all others hear of it.
func (w *world) leave(gs []*Group, i int, others ...interface {
	Process(*Message) (Processed, error)
}) *Message {
	w.t.Helper()
	raw, ref, err := gs[i].Propose(SelfRemove(), FramingOptions{})
	w.check(err)
	m := w.parse(raw)
	for k, g := range gs {
		if k != i {
			others = append(others, g)
		}
	}
	for _, g := range others {
		p, err := g.Process(m)
		w.check(err)
		pm := p.(*ProposalMessage)
		if !bytes.Equal(pm.Ref, ref) || pm.Proposal.Type != ProposalTypeSelfRemove || pm.Sender.LeafIndex != gs[i].OwnLeafIndex() {
			w.t.Fatalf("the SelfRemove arrived as %+v", pm)
		}
	}
	return m
}

func TestSelfRemove(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		gs := w.leavable(4)
		server := w.public(gs[0])
		w.leave(gs, 2, server)
		// The proposal survives storing.
		var err error
		gs[0], err = LoadGroup(w.cfg, gs[0].EpochState(), gs[0].RatchetState())
		w.check(err)
		c, next := w.commit(gs, 0, CommitOptions{Pending: true})
		if !c.HasPath() || len(c.Removed()) != 1 || c.Removed()[0].Index != 2 || len(next) != 3 {
			t.Fatalf("path %v, removed %v, %d members go on", c.HasPath(), c.Removed(), len(next))
		}
		p, err := server.Process(w.parse(c.Message()))
		w.check(err)
		if s := p.(*PublicStagedCommit); !bytes.Equal(s.TreeHash(), next[0].TreeHash()) || len(s.Removed()) != 1 {
			t.Fatal("the server sees another tree")
		}
		w.talk(next)
		stored, err := c.MarshalBinary()
		w.check(err)
		back, err := UnmarshalStagedCommit(w.cfg, gs[0], stored)
		w.check(err)
		if ps := back.Proposals(); len(ps) != 1 || ps[0].Proposal.Type != ProposalTypeSelfRemove || !ps[0].ByRef {
			t.Fatalf("the stored Commit came back with %+v", ps)
		}
	})
}

// Several leave at once while another updates, and one is removed by force.
func TestSelfRemoveWithOthers(t *testing.T) {
	w := newRejectWorld(t)
	gs := w.leavable(7)
	w.leave(gs, 2)
	w.leave(gs, 5)
	raw, _, err := gs[3].ProposeUpdate(nil, FramingOptions{})
	w.check(err)
	for i, g := range gs {
		if i != 3 {
			w.accept(g, w.parse(raw))
		}
	}
	// Who leaves can commit, but not its own removal.
	if c, err := gs[2].Commit(CommitOptions{Pending: true}); err != nil || len(c.Removed()) != 1 || c.Removed()[0].Index != 5 {
		t.Fatalf("a Commit by one who leaves: %v", err)
	}
	c, next := w.commit(gs, 0, CommitOptions{Pending: true, Proposals: []Proposal{Remove(6)}})
	if len(c.Removed()) != 3 || len(c.Updated()) != 1 || len(next) != 4 {
		t.Fatalf("%d removed, %d updated, %d go on", len(c.Removed()), len(c.Updated()), len(next))
	}
	w.talk(next)
	// A SelfRemove wins against the same member's Update and another's Remove.
	gs = next
	w.leave(gs, 1)
	raw, _, err = gs[1].ProposeUpdate(nil, FramingOptions{})
	w.check(err)
	raw2, _, err := gs[2].Propose(Remove(gs[1].OwnLeafIndex()), FramingOptions{})
	w.check(err)
	for i, g := range gs {
		if i != 1 {
			w.accept(g, w.parse(raw))
		}
		if i != 2 {
			w.accept(g, w.parse(raw2))
		}
	}
	c, next = w.commit(gs, 0, CommitOptions{Pending: true})
	if ps := c.Proposals(); len(ps) != 1 || ps[0].Proposal.Type != ProposalTypeSelfRemove || len(next) != 3 {
		t.Fatalf("committed %+v", ps)
	}
}

// Who joins by an external Commit takes those along who leave.
func TestSelfRemoveInExternalCommit(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		for _, resync := range []bool{false, true} {
			gs := w.leavable(5)
			server := w.public(gs[0])
			leaving := []*Message{w.leave(gs, 1, server), w.leave(gs, 4, server)}
			info, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
			w.check(err)
			o := ExternalJoinOptions{Leaf: w.supporting("late", ProposalTypeSelfRemove), SelfRemoves: leaving}
			gone := 2
			if resync {
				two := LeafIndex(2)
				o.Leaf, o.Resync, gone = w.supporting("member2", ProposalTypeSelfRemove), &two, 3
			}
			join, err := ExternalJoin(w.cfg, w.parse(info), w.key(), o)
			w.check(err)
			m := w.parse(join.Message())
			p, err := server.Process(m)
			w.check(err)
			if got := len(p.(*PublicStagedCommit).Removed()); got != gone {
				t.Errorf("the server sees %d removed, want %d", got, gone)
			}
			next := []*Group{join.Merge()}
			for i, g := range gs {
				s := w.accept(g, m).(*StagedCommit)
				if want := i == 1 || i == 4 || resync && i == 2; s.SelfRemoved() != want {
					t.Fatalf("member %d is removed: %v, want %v", i, s.SelfRemoved(), want)
				}
				if n := s.Merge(); n != nil {
					next = append(next, n)
				}
			}
			if len(next) != 6-gone {
				t.Fatalf("%d members, want %d", len(next), 6-gone)
			}
			w.agree(next)
			w.talk(next)
		}
	})
}

// selfRemoveRow is a row about a message that members and a server must refuse.
func selfRemoveRow(row, rule Rule, f func(w *world, gs []*Group) *Message) rejectCase {
	if rule == "" {
		rule = row
	}
	return rejectCase{row: row, rule: rule, run: func(t *testing.T) error {
		w := newRejectWorld(t)
		gs := w.leavable(4)
		pub := w.public(gs[1])
		m := f(w, gs)
		// The server has seen the same proposals as the member.
		for _, p := range gs[1].cache.list {
			pub.cache.add(p)
		}
		if m.public != nil {
			if err := w.refusePublic(pub, m); !hasRule(err, rule) {
				t.Errorf("as a server: %v, want %s", err, rule)
			}
		}
		return w.refuse(gs[1], m)
	}}
}

// forgeSelfRemove makes a SelfRemove message as g's member, with data to tell it
// from another one.
func (w *world) forgeSelfRemove(g *Group, wf WireFormat, aad string) *Message {
	w.t.Helper()
	ac, err := g.sign(framedContent{contentType: ContentTypeProposal, proposal: SelfRemove(), authenticatedData: []byte(aad)}, wf)
	w.check(err)
	raw, err := g.protect(ac)
	w.check(err)
	return w.parse(raw)
}

var selfRemoveRejects = []rejectCase{
	selfRemoveRow("self-remove/by-value", "", func(w *world, gs []*Group) *Message {
		if _, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{SelfRemove()}}); !hasRule(err, "self-remove/by-value") {
			w.t.Errorf("our own Commit: %v", err)
		}
		return w.forge(gs[0], commitForgery{proposals: byValue(SelfRemove()), path: true})
	}),
	selfRemoveRow("self-remove/own", "", func(w *world, gs []*Group) *Message {
		w.leave(gs, 0)
		ref := gs[0].PendingProposals()[0].Ref
		if _, err := gs[0].Commit(CommitOptions{PendingRefs: []ProposalRef{ref}}); !hasRule(err, "self-remove/own") {
			w.t.Errorf("our own Commit: %v", err)
		}
		return w.forge(gs[0], commitForgery{proposals: []proposalOrRef{{ref: ref}}, path: true})
	}),
	selfRemoveRow("self-remove/no-path", "commit/path-missing-update", func(w *world, gs []*Group) *Message {
		w.leave(gs, 2)
		if _, err := gs[0].Commit(CommitOptions{Pending: true, NoPath: true}); err == nil {
			w.t.Error("our own Commit needs no path")
		}
		return w.forge(gs[0], commitForgery{proposals: []proposalOrRef{{ref: gs[0].PendingProposals()[0].Ref}}, apply: func(t *ratchetTree) { t.remove(2) }})
	}),
	selfRemoveRow("self-remove/private-message", "", func(w *world, gs []*Group) *Message {
		if _, _, err := gs[0].Propose(SelfRemove(), FramingOptions{Private: true}); !hasRule(err, "self-remove/private-message") {
			w.t.Errorf("our own proposal: %v", err)
		}
		return w.forgeSelfRemove(gs[0], WireFormatPrivateMessage, "")
	}),
	selfRemoveRow("self-remove/repeated", "", func(w *world, gs []*Group) *Message {
		w.leave(gs, 2)
		if _, _, err := gs[2].Propose(SelfRemove(), FramingOptions{AuthenticatedData: []byte("again")}); !hasRule(err, "self-remove/repeated") {
			w.t.Errorf("our own proposal: %v", err)
		}
		return w.forgeSelfRemove(gs[2], WireFormatPublicMessage, "again")
	}),
	selfRemoveRow("self-remove/remove-of-same-leaf", "proposal-list/two-removes-one-leaf", func(w *world, gs []*Group) *Message {
		w.leave(gs, 2)
		ref := gs[0].PendingProposals()[0].Ref
		return w.forge(gs[0], commitForgery{proposals: append(byValue(Remove(2)), proposalOrRef{ref: ref}), path: true})
	}),
	selfRemoveRow("self-remove/update-of-same-leaf", "proposal-list/update-and-remove-one-leaf", func(w *world, gs []*Group) *Message {
		w.leave(gs, 2)
		raw, ref, err := gs[2].ProposeUpdate(nil, FramingOptions{})
		w.check(err)
		w.accept(gs[0], w.parse(raw))
		w.accept(gs[1], w.parse(raw))
		return w.forge(gs[0], commitForgery{proposals: []proposalOrRef{{ref: gs[0].PendingProposals()[0].Ref}, {ref: ref}}, path: true})
	}),
	selfRemoveRow("self-remove/ref-twice", "proposal-list/two-removes-one-leaf", func(w *world, gs []*Group) *Message {
		w.leave(gs, 2)
		ref := gs[0].PendingProposals()[0].Ref
		return w.forge(gs[0], commitForgery{proposals: []proposalOrRef{{ref: ref}, {ref: ref}}, path: true})
	}),
	{row: "self-remove/from-external-sender", rule: "proposal/external-sender-type", run: func(t *testing.T) error {
		w := newRejectWorld(t)
		key := w.key()
		exts := []Extension{ExternalSendersExtension([]ExternalSender{{SignatureKey: key.Public(), Credential: BasicCredential([]byte("server"))}})}
		gs := w.groupOf(exts, w.supporting("a", ProposalTypeSelfRemove), w.supporting("b", ProposalTypeSelfRemove))
		if _, err := NewExternalProposal(w.cs, gs[0].GroupID(), 1, 0, key, SelfRemove(), nil); !hasRule(err, "proposal/external-sender-type") {
			t.Errorf("making one: %v", err)
		}
		return w.refuse(gs[1], w.parse(w.external(gs[0], Sender{Type: SenderTypeExternal}, key, ContentTypeProposal, SelfRemove(), nil)))
	}},
	{row: "self-remove/not-by-member", run: func(t *testing.T) error {
		w := newRejectWorld(t)
		gs := w.leavable(2)
		pc := proposalContext{cfg: w.cfg, ctx: &gs[0].context, tree: gs[0].tree}
		p := SelfRemove()
		noError(t, pc.validate(&p, Sender{Type: SenderTypeMember, LeafIndex: 1}))
		return pc.validate(&p, Sender{Type: SenderTypeExternal})
	}},
	{row: "self-remove/unsupported", rule: "proposal/type-unsupported", run: func(t *testing.T) error {
		w := newRejectWorld(t)
		gs := w.groupOf(nil, w.supporting("a", ProposalTypeSelfRemove), w.supporting("b", ProposalTypeSelfRemove), w.options("c"))
		if _, _, err := gs[0].Propose(SelfRemove(), FramingOptions{}); !hasRule(err, "proposal/type-unsupported") {
			t.Errorf("our own proposal: %v", err)
		}
		return w.refuse(gs[1], w.forgeSelfRemove(gs[0], WireFormatPublicMessage, ""))
	}},
	selfRemoveRow("self-remove/external-commit-by-value", "self-remove/by-value", func(w *world, gs []*Group) *Message {
		return w.forgeExternal(gs[0], externalForgery{proposals: func(p Proposal) []proposalOrRef { return byValue(p, SelfRemove()) }})
	}),
	selfRemoveRow("self-remove/external-commit-ref-unknown", "proposal/ref-unknown", func(w *world, gs []*Group) *Message {
		return w.forgeExternal(gs[0], externalForgery{proposals: func(p Proposal) []proposalOrRef {
			return append(byValue(p), proposalOrRef{ref: make([]byte, 32)})
		}})
	}),
	selfRemoveRow("self-remove/external-commit-other-ref", "external-commit/by-reference", func(w *world, gs []*Group) *Message {
		m := w.propose(gs[2], Remove(3))
		ref := w.accept(gs[1], m).(*ProposalMessage).Ref
		return w.forgeExternal(gs[0], externalForgery{proposals: func(p Proposal) []proposalOrRef { return append(byValue(p), proposalOrRef{ref: ref}) }})
	}),
	selfRemoveRow("self-remove/external-commit-ref-twice", "proposal-list/two-removes-one-leaf", func(w *world, gs []*Group) *Message {
		w.leave(gs, 2)
		ref := gs[0].PendingProposals()[0].Ref
		return w.forgeExternal(gs[0], externalForgery{proposals: func(p Proposal) []proposalOrRef {
			return append(byValue(p), proposalOrRef{ref: ref}, proposalOrRef{ref: ref})
		}})
	}),
	selfRemoveRow("self-remove/external-commit-resync-of-leaver", "proposal-list/two-removes-one-leaf", func(w *world, gs []*Group) *Message {
		w.leave(gs, 2)
		ref := gs[0].PendingProposals()[0].Ref
		return w.forgeExternal(gs[0], externalForgery{name: "member2", proposals: func(p Proposal) []proposalOrRef {
			return append(byValue(p, Remove(2)), proposalOrRef{ref: ref})
		}})
	}),
	joinRow("self-remove/join-signature", "framing/signature-invalid", func(w *world, gs []*Group, m *Message) *Message {
		raw := bytes.Clone(m.Raw())
		// The signature ends before the membership tag and its length.
		raw[len(raw)-w.cs.HashLen()-2] ^= 1
		return w.parse(raw)
	}),
	joinRow("self-remove/join-old-epoch", "framing/epoch-old", func(w *world, gs []*Group, m *Message) *Message {
		_, next := w.commit(gs, 0, CommitOptions{ForcePath: true})
		copy(gs, next)
		return m
	}),
	joinRow("self-remove/join-other-group", "framing/group-id", func(w *world, gs []*Group, m *Message) *Message {
		g, err := CreateGroup(w.cfg, w.cs, []byte("other"), w.key(), w.supporting("x", ProposalTypeSelfRemove), nil)
		w.check(err)
		return w.forgeSelfRemove(g, WireFormatPublicMessage, "")
	}),
	joinRow("self-remove/join-repeated", "self-remove/repeated", func(w *world, gs []*Group, m *Message) *Message {
		return w.forgeSelfRemove(gs[2], WireFormatPublicMessage, "again")
	}),
}

// joinRow is a row about a SelfRemove that who joins gets beside the GroupInfo.
func joinRow(row, rule Rule, f func(w *world, gs []*Group, m *Message) *Message) rejectCase {
	return rejectCase{row: row, rule: rule, run: func(t *testing.T) error {
		w := newRejectWorld(t)
		gs := w.leavable(4)
		good := w.leave(gs, 2)
		join := func(ms ...*Message) error {
			info, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
			w.check(err)
			_, err = ExternalJoin(w.cfg, w.parse(info), w.key(), ExternalJoinOptions{Leaf: w.supporting("late", ProposalTypeSelfRemove), SelfRemoves: ms})
			return err
		}
		w.check(join(good))
		w.check(join())
		if err := join(w.propose(gs[1], Remove(3))); err == nil {
			t.Error("a Remove was taken for a SelfRemove")
		}
		bad := f(w, gs, good)
		if rule == "self-remove/repeated" {
			return join(good, bad)
		}
		return join(bad)
	}}
}
