package mls

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestAccept is the other half of TestReject: what must not be refused.
func TestAccept(t *testing.T) {
	greases := []uint16{0x0a0a, 0x5a5a, 0xeaea}
	row := func(name string, f func(t *testing.T, w *world)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, cs := range rejectSuites[:4] {
				t.Run(fmt.Sprintf("suite=%d", cs), func(t *testing.T) { f(t, newWorld(t, cs)) })
			}
		})
	}
	row("unknown-extension-in-key-package", func(t *testing.T, w *world) {
		gs := w.group(2)
		o := w.options("new")
		o.KeyPackageExtensions = []Extension{{Type: 0xf0b1, Data: []byte("x")}}
		b, err := NewKeyPackage(w.cfg, w.cs, w.key(), o)
		w.check(err)
		c, gs := w.commit(gs, 0, CommitOptions{Proposals: []Proposal{Add(b.KeyPackage())}, WelcomeRatchetTree: true})
		g, err := JoinWelcome(w.cfg, w.parse(c.Welcome()), b, JoinOptions{})
		w.check(err)
		w.talk(append(gs, g))
	})
	row("unknown-extension-in-group-info", func(t *testing.T, w *world) {
		g, b := w.invited()
		_, err := JoinWelcome(w.cfg, w.forgeWelcome(g, b, welcomeForgery{exts: []Extension{{Type: 0xf0b1}}}), b, JoinOptions{})
		w.check(err)
	})
	row("unknown-extension-in-leaf-node-when-listed", func(t *testing.T, w *world) {
		gs := w.group(2)
		o := w.options("new")
		o.LeafExtensions = []Extension{{Type: 0xf0b1, Data: []byte("x")}}
		b, err := NewKeyPackage(w.cfg, w.cs, w.key(), o)
		w.check(err)
		c, gs := w.commit(gs, 0, CommitOptions{Proposals: []Proposal{Add(b.KeyPackage())}, WelcomeRatchetTree: true})
		g, err := JoinWelcome(w.cfg, w.parse(c.Welcome()), b, JoinOptions{})
		w.check(err)
		_, gs = w.commit(append(gs, g), 2, CommitOptions{})
		l, _ := gs[0].Leaf(2)
		if data, ok := l.Extension(0xf0b1); !ok || string(data) != "x" {
			t.Error("the extension is lost")
		}
	})
	row("unknown-capabilities", func(t *testing.T, w *world) {
		gs := w.group(2)
		c := Capabilities{
			Versions:     []ProtocolVersion{0xf0, MLS10},
			CipherSuites: []CipherSuite{0xf0b1, w.cs, 0xf0b2},
			Extensions:   []ExtensionType{0xf0b1},
			Proposals:    []ProposalType{0xf0b1},
			Credentials:  []CredentialType{0xf0b1, CredentialTypeBasic},
		}
		w.accept(gs[1], w.forge(gs[0], w.addForgery(gs[0], w.forgePackage(packageForgery{caps: &c}))))
	})
	row("grease", func(t *testing.T, w *world) {
		gs := w.group(2)
		c := DefaultCapabilities()
		var exts []Extension
		for _, v := range greases {
			c.Versions = append(c.Versions, ProtocolVersion(v))
			c.CipherSuites = append(c.CipherSuites, CipherSuite(v))
			c.Extensions = append(c.Extensions, ExtensionType(v))
			c.Proposals = append(c.Proposals, ProposalType(v))
			c.Credentials = append(c.Credentials, CredentialType(v))
			exts = append(exts, Extension{Type: ExtensionType(v)})
		}
		kp := w.forgePackage(packageForgery{caps: &c, exts: exts, leaf: func(l *LeafNode) { l.Extensions = exts }})
		w.accept(gs[1], w.forge(gs[0], w.addForgery(gs[0], kp)))
		g, b := w.invited()
		_, err := JoinWelcome(w.cfg, w.forgeWelcome(g, b, welcomeForgery{exts: exts}), b, JoinOptions{})
		w.check(err)
	})
	row("capabilities-in-any-order", func(t *testing.T, w *world) {
		gs := w.group(2)
		c := wideCapabilities()
		slices.Reverse(c.CipherSuites)
		slices.Reverse(c.Credentials)
		w.accept(gs[1], w.forge(gs[0], w.addForgery(gs[0], w.forgePackage(packageForgery{caps: &c}))))
	})
	row("expired-leaf-in-tree", func(t *testing.T, w *world) {
		gs := w.group(3)
		later := *w.cfg
		later.Now = func() time.Time { return testTime.Add(1000 * 24 * time.Hour) }
		w.cfg = &later
		for i := range gs {
			g, err := LoadGroup(w.cfg, gs[i].EpochState(), gs[i].RatchetState())
			w.check(err)
			gs[i] = g
		}
		gs = w.add(gs, "late")
		_, gs = w.commit(gs, 3, CommitOptions{})
		w.talk(gs)
	})
	row("commit-without-path-for-adds", func(t *testing.T, w *world) {
		gs := w.group(3)
		c, gs := w.commit(gs, 1, CommitOptions{Proposals: []Proposal{Add(w.bundle("a").KeyPackage()), Add(w.bundle("b").KeyPackage())}})
		if c.HasPath() {
			t.Error("the Commit has a path")
		}
		w.talk(gs)
	})
	row("empty-commit-with-path", func(t *testing.T, w *world) {
		c, gs := w.commit(w.group(3), 1, CommitOptions{})
		if !c.HasPath() {
			t.Error("the Commit has no path")
		}
		w.talk(gs)
	})
	row("commit-that-removes-us", func(t *testing.T, w *world) {
		gs := w.group(3)
		c, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{Remove(2)}})
		w.check(err)
		s := w.accept(gs[2], w.parse(c.Message())).(*StagedCommit)
		if !s.SelfRemoved() || s.Merge() != nil || s.EpochAuthenticator() != nil || len(s.Removed()) != 1 || s.CommitterLeaf() == nil {
			t.Errorf("got %+v", s.commitInfo)
		}
		// The old epoch can still be read.
		raw, err := gs[1].Encrypt([]byte("bye"), nil)
		w.check(err)
		w.accept(gs[2], w.parse(raw))
	})
	row("own-message-echoed", func(t *testing.T, w *world) {
		gs := w.group(2)
		before := snapshot(gs[0])
		raw, err := gs[0].Encrypt([]byte("text"), nil)
		w.check(err)
		if bytes.Equal(before, snapshot(gs[0])) {
			t.Fatal("sending has not moved the ratchet")
		}
		before = snapshot(gs[0])
		if _, err := gs[0].Process(w.parse(raw)); !errors.Is(err, ErrOwnMessage) {
			t.Errorf("own message: %v", err)
		}
		if !bytes.Equal(before, snapshot(gs[0])) {
			t.Error("the echo changed the group")
		}
		raw, ref, err := gs[0].Propose(Remove(1), FramingOptions{})
		w.check(err)
		if pm := w.accept(gs[0], w.parse(raw)).(*ProposalMessage); !bytes.Equal(pm.Ref, ref) || len(gs[0].PendingProposals()) != 1 {
			t.Error("the echo of a proposal is another proposal")
		}
	})
	row("out-of-order-inside-the-window", func(t *testing.T, w *world) {
		gs := w.group(2)
		var ms []*Message
		for i := range 20 {
			raw, err := gs[0].Encrypt([]byte{byte(i)}, nil)
			w.check(err)
			ms = append(ms, w.parse(raw))
		}
		slices.Reverse(ms)
		for i, m := range ms {
			a := w.accept(gs[1], m).(*ApplicationMessage)
			if a.Plaintext[0] != byte(19-i) || a.Generation != uint32(19-i) {
				t.Errorf("got %v in generation %d", a.Plaintext, a.Generation)
			}
			if first := i == 0; a.Overtaken == first || first && a.Skipped != 19 || !first && a.Skipped != 0 {
				t.Errorf("generation %d overtook %d, and was overtaken: %t", a.Generation, a.Skipped, a.Overtaken)
			}
			g, err := LoadGroup(w.cfg, gs[1].EpochState(), gs[1].RatchetState())
			w.check(err)
			gs[1] = g
		}
	})
	row("message-of-past-epoch", func(t *testing.T, w *world) {
		gs := w.group(3)
		raw, err := gs[0].Encrypt([]byte("late"), nil)
		w.check(err)
		_, next := w.commit(gs, 1, CommitOptions{})
		w.accept(gs[2], w.parse(raw))
		w.talk(next)
	})
	row("padding-of-any-length", func(t *testing.T, w *world) {
		gs := w.group(2)
		for _, n := range []int{1, 7, 64, 1024, 100_000} {
			c := *w.cfg
			c.PaddingSize = n
			e := *gs[0].epoch
			e.cfg = &c
			gs[0].epoch = &e
			raw, err := gs[0].Encrypt([]byte("text"), nil)
			w.check(err)
			m := w.parse(raw)
			if size := len(m.private.ciphertext) - aeadOverhead; size == 0 || size%n != 0 {
				t.Errorf("padding to %d gives %d bytes", n, size)
			}
			if a := w.accept(gs[1], m).(*ApplicationMessage); string(a.Plaintext) != "text" {
				t.Errorf("got %q", a.Plaintext)
			}
		}
	})
	row("both-kinds-of-psk", func(t *testing.T, w *world) {
		w.psks["k"] = []byte("psk")
		gs := w.group(3)
		raw, _, err := gs[2].Propose(PSK(PreSharedKeyID{Type: PSKTypeResumption, Usage: ResumptionPSKUsageApplication, GroupID: []byte("group"), Epoch: 1}), FramingOptions{})
		w.check(err)
		w.accept(gs[0], w.parse(raw))
		w.accept(gs[1], w.parse(raw))
		_, gs = w.commit(gs, 0, CommitOptions{Pending: true, Proposals: []Proposal{PSK(PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("k")})}})
		w.talk(gs)
	})
	row("external-commit-in-place-of-old-leaf", func(t *testing.T, w *world) {
		gs := w.group(3)
		two := LeafIndex(2)
		m := w.forgeExternal(gs[0], externalForgery{name: "member2", remove: &two, proposals: func(p Proposal) []proposalOrRef { return byValue(p, Remove(2)) }})
		s := w.accept(gs[1], m).(*StagedCommit)
		if s.Committer() != 2 || !s.External() {
			t.Errorf("joined at leaf %d", s.Committer())
		}
	})
}

// addForgery is a Commit that adds a KeyPackage behind all others.
func (w *world) addForgery(g *Group, kp *KeyPackage) commitForgery {
	return commitForgery{
		proposals: byValue(Add(kp)), path: true, added: []LeafIndex{LeafIndex(g.tree.last)},
		apply: func(t *ratchetTree) { t.add(kp.LeafNode) },
	}
}

// TestRandomWalk lets a group grow, shrink and change at random. After every
// step all members, and a server, agree; the tree is what a newcomer would
// accept. A failure names the seed.
func TestRandomWalk(t *testing.T) {
	steps := 40
	if testing.Short() {
		steps = 15
	}
	for seed := range uint64(4) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 1))
			w := newWorld(t, rejectSuites[0])
			gs := w.group(1)
			names := 0
			for range steps {
				pub := w.public(gs[0])
				from := r.IntN(len(gs))
				var o CommitOptions
				var bundles []*KeyPackageBundle
				gone := make(map[LeafIndex]bool)
				o.WelcomeRatchetTree = true
				o.ForcePath = r.IntN(2) == 0
				// Proposals by reference from others.
				send := func(raw []byte) {
					m := w.parse(raw)
					for _, g := range gs {
						w.accept(g, m)
					}
					_, err := pub.Process(m)
					w.check(err)
				}
				for i, g := range gs {
					if i != from && r.IntN(4) == 0 {
						raw, _, err := g.ProposeUpdate(nil, FramingOptions{})
						w.check(err)
						send(raw)
					}
				}
				if r.IntN(3) == 0 && len(gs) > 2 {
					i := gs[r.IntN(len(gs))].own
					if i != gs[from].own {
						raw, _, err := gs[from].Propose(Remove(i), FramingOptions{})
						w.check(err)
						send(raw)
						gone[i] = true
					}
				}
				o.Pending = true
				for range r.IntN(4) {
					if len(gs)+len(bundles) < 20 {
						names++
						b := w.bundle(fmt.Sprintf("walker%d", names))
						bundles = append(bundles, b)
						o.Proposals = append(o.Proposals, Add(b.KeyPackage()))
					}
				}
				for range r.IntN(3) {
					i := gs[r.IntN(len(gs))].own
					if i != gs[from].own && !gone[i] && len(gs)-len(gone) > 2 {
						gone[i] = true
						o.Proposals = append(o.Proposals, Remove(i))
					}
				}
				c, next := w.commit(gs, from, o)
				for _, b := range bundles {
					raw, err := c.WelcomeFor(b.Ref())
					w.check(err)
					g, err := JoinWelcome(w.cfg, w.parse(raw), b, JoinOptions{})
					w.check(err)
					next = append(next, g)
				}
				w.agree(next)
				pub = w.followPublic(pub, c)
				gs = next
				if r.IntN(8) == 0 {
					// Somebody lost everything and comes back.
					k := r.IntN(len(gs))
					leaf := gs[k].own
					info, err := gs[(k+1)%len(gs)].GroupInfo(GroupInfoOptions{ExternalPub: true, RatchetTree: true})
					w.check(err)
					e, err := ExternalJoin(w.cfg, w.parse(info), w.key(), ExternalJoinOptions{
						Leaf: LeafOptions{Credential: gs[k].OwnLeaf().Credential}, Resync: &leaf,
					})
					w.check(err)
					others := slices.Delete(slices.Clone(gs), k, k+1)
					gs = append(w.follow(others, nil, e), e.Merge())
					w.agree(gs)
					w.followPublic(pub, e)
				}
			}
			w.talk(gs)
		})
	}
}
