package mls

import (
	"bytes"
	"testing"
)

// Draft proposals in a group that knows them, with some waiting for a Commit:
// no panic, and a refusal leaves the group as it was.
func FuzzProcessDraftProposals(f *testing.F) {
	w := newWorld(f, 1)
	w.cfg.AppData = testAppData{}
	gs := w.groupOf(nil, w.appDataAndLeave("a"), w.appDataAndLeave("b"), w.appDataAndLeave("c"))
	_, gs = w.commit(gs, 0, CommitOptions{Proposals: []Proposal{update(0x8001, "data")}})
	w.leave(gs, 2)
	g := gs[0]
	fg := &fuzzGroups{groups: gs, cfg: w.cfg, epoch: gs[1].EpochState(), ratchets: gs[1].RatchetState()}
	for _, p := range []Proposal{SelfRemove(), update(0x8001, "x"), removal(0x8001), (&AppEphemeral{Component: 0x8001, Data: []byte("x")}).Proposal()} {
		f.Add(w.propose(g, p).Raw(), true)
	}
	for _, o := range []CommitOptions{{Pending: true}, {Proposals: []Proposal{update(0x8002, "y"), update(0x8001, "z")}}, {Proposals: []Proposal{removal(0x8001)}}} {
		sc, err := g.Commit(o)
		w.check(err)
		f.Add(sc.Message(), true)
		f.Add(sc.Message(), false)
	}
	ref := g.PendingProposals()[0].Ref
	f.Add(w.forgeExternal(g, externalForgery{options: w.appDataAndLeave("late"), proposals: func(p Proposal) []proposalOrRef {
		return append(byValue(p), proposalOrRef{ref: ref})
	}}).Raw(), false)
	f.Fuzz(func(t *testing.T, raw []byte, resign bool) {
		if resign {
			if raw = fg.resign(raw); raw == nil {
				return
			}
		}
		m, err := ParseMessage(raw)
		if err != nil {
			return
		}
		var to *Group
		var p Processed
		boundedMemory(t, len(raw), func() func() {
			if to, err = LoadGroup(w.cfg, fg.epoch, fg.ratchets); err != nil {
				t.Fatal(err)
			}
			return func() { p, err = to.Process(m) }
		})
		if _, staged := p.(*StagedCommit); err != nil || staged {
			if !bytes.Equal(groupState(to), append(bytes.Clone(fg.epoch), fg.ratchets...)) {
				t.Errorf("the group has changed: %v", err)
			}
		}
	})
}

// Who joins takes SelfRemove messages from a server that may lie.
func FuzzExternalJoinSelfRemoves(f *testing.F) {
	w := newWorld(f, 1)
	gs := w.leavable(3)
	f.Add(w.leave(gs, 2).Raw())
	f.Add(w.propose(gs[1], Remove(2)).Raw())
	raw, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	w.check(err)
	info, key := w.parse(raw), w.key()
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := ParseMessage(raw)
		if err != nil {
			return
		}
		var sc *StagedCommit
		boundedMemory(t, len(info.Raw())+len(raw), func() func() {
			return func() {
				sc, err = ExternalJoin(w.cfg, info, key, ExternalJoinOptions{Leaf: w.supporting("late", ProposalTypeSelfRemove), SelfRemoves: []*Message{m}})
			}
		})
		if err == nil && len(sc.Removed()) != 1 {
			t.Errorf("%d members were removed by one SelfRemove", len(sc.Removed()))
		}
	})
}

// Keys, KEM outputs, ciphertexts and signatures of every suite: no panic,
// memory in proportion, and nothing of another size is taken.
func FuzzPrimitives(f *testing.F) {
	all := append(SupportedCipherSuites(), ExperimentalCipherSuites()...)
	privs := make([]hpkePrivateKey, len(all))
	pubs := make([]HPKEPublicKey, len(all))
	keys := make([]SignaturePublicKey, len(all))
	sigs := make([][]byte, len(all))
	for i, cs := range all {
		privs[i], pubs[i] = mustKeyPair(f, cs)
		key := mustSignatureKey(f, cs)
		keys[i] = key.Public()
		enc, _, err := cs.encap(pubs[i], testRand(f))
		if err != nil {
			f.Fatal(err)
		}
		if sigs[i], err = SignWithLabel(cs, key, "label", nil); err != nil {
			f.Fatal(err)
		}
		for _, raw := range [][]byte{pubs[i], enc, keys[i], sigs[i]} {
			f.Add(byte(i), raw)
		}
	}
	f.Fuzz(func(t *testing.T, which byte, raw []byte) {
		i := int(which) % len(all)
		cs := all[i]
		k := cs.suite().kem
		if _, _, err := cs.encap(raw, testRand(t)); err == nil && len(raw) != k.npk {
			t.Errorf("%v: a public key of %d bytes was taken", cs, len(raw))
		}
		if err := cs.validateHPKEPublicKey(raw); err == nil && len(raw) != k.npk {
			t.Errorf("%v: a public key of %d bytes is valid", cs, len(raw))
		}
		if _, err := cs.decap(privs[i], pubs[i], raw); err == nil && len(raw) != k.nenc {
			t.Errorf("%v: a KEM output of %d bytes was taken", cs, len(raw))
		}
		if VerifyWithLabel(cs, raw, "label", nil, sigs[i]) == nil && !bytes.Equal(raw, keys[i]) {
			t.Errorf("%v: a signature verifies under another key", cs)
		}
		boundedMemory(t, len(raw), func() func() {
			return func() {
				if VerifyWithLabel(cs, keys[i], "other label", nil, raw) == nil {
					t.Errorf("%v: a signature was made up", cs)
				}
				_ = VerifyWithLabel(cs, raw, "label", nil, raw)
				if _, err := cs.decryptWithLabel(privs[i], pubs[i], "label", nil, hpkeCiphertext{KEMOutput: raw, Ciphertext: raw}); err == nil {
					t.Errorf("%v: a ciphertext was made up", cs)
				}
			}
		})
	})
}

// appDataAndLeave returns a leaf that supports all draft proposals.
func (w *world) appDataAndLeave(name string) LeafOptions {
	o := w.appDataLeaf(name)
	o.Capabilities.Proposals = append(o.Capabilities.Proposals, ProposalTypeSelfRemove)
	return o
}
