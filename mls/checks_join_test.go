package mls

import (
	"bytes"
	"fmt"
	"testing"
)

// What a tree can have wrong, beside the rows about trees.
func TestTreesThatDoNotFit(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		for name, x := range map[string]struct {
			edit func(f *treeForgery)
			rule Rule
		}{
			"an unmerged leaf to the left": {func(f *treeForgery) {
				f.edit(9, func(p *parentNode) { p.unmergedLeaves = []LeafIndex{0} })
			}, "tree/unmerged-not-descendant"},
			"another leaf between": {func(f *treeForgery) {
				f.edit(1, func(p *parentNode) { p.unmergedLeaves = []LeafIndex{1} })
				f.edit(5, func(p *parentNode) { p.unmergedLeaves = []LeafIndex{2} })
				f.edit(3, func(p *parentNode) { p.unmergedLeaves = []LeafIndex{2} })
				f.edit(7, func(p *parentNode) { p.unmergedLeaves = append([]LeafIndex{1}, p.unmergedLeaves...) })
			}, "tree/unmerged-gap"},
			"a lifetime that ends before it begins": {func(f *treeForgery) {
				f.nodes[14].leaf = compacted(f.w.forgePackage(packageForgery{leaf: func(l *LeafNode) { l.Lifetime = Lifetime{NotBefore: 2, NotAfter: 1} }}).LeafNode)
			}, "leaf-node/lifetime-inverted"},
			"members without what is required": {func(f *treeForgery) {
				e := *f.g.epoch
				e.context.extensions = []Extension{(&RequiredCapabilities{Extensions: []ExtensionType{testExtension}}).Extension()}
				f.g.epoch = &e
			}, "leaf-node/required-extension-missing"},
		} {
			f := w.forgeTree(8, 6)
			x.edit(f)
			if err := f.join(f.encode(), nil); !hasRule(err, x.rule) {
				t.Errorf("%s: %v, want %s", name, err, x.rule)
			}
		}
		// A member who fills a parent with a key of no use, in a tree that is
		// right otherwise.
		f := w.forgeTree(8, 6)
		tree := f.g.tree.change()
		steps := tree.filteredDirectPath(f.g.own)
		pubs := make([]HPKEPublicKey, len(steps))
		for i := range pubs {
			_, pub, err := w.cs.generateKeyPair(w.cfg.Rand)
			w.check(err)
			pubs[i] = pub
		}
		pubs[0] = pubs[0][1:]
		_, leafPub, err := w.cs.generateKeyPair(w.cfg.Rand)
		w.check(err)
		l, err := f.g.newLeaf(nil, f.g.signature, leafPub)
		w.check(err)
		l.Source, l.ParentHash = LeafNodeSourceCommit, tree.setPath(f.g.own, steps, pubs)
		l, err = l.sign(w.cs, f.g.signature, []byte("group"), f.g.own)
		w.check(err)
		tree.setLeaf(f.g.own, l)
		tree.finish()
		if err := f.join(tree.appendTo(nil), nil); !hasRule(err, "crypto/public-key-wrong-length") {
			t.Errorf("a parent's key of no use: %v", err)
		}
	})
}

// Welcomes whose parts were sealed by a member who lies about them.
func TestWelcomesByLiars(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		g, b := w.invited()
		altered := welcomeForgery{info: func(ct []byte) { ct[0] ^= 1 }}
		if err := w.refuseJoin(w.forgeWelcome(g, b, altered), b, JoinOptions{}); !hasRule(err, "welcome/secrets-undecryptable") {
			t.Errorf("a GroupInfo that does not open: %v", err)
		}
		// The first leaf is blank, and ours is nowhere.
		gs := w.group(3)
		_, gs = w.commit(gs, 1, CommitOptions{Proposals: []Proposal{Remove(0)}})
		stranger := w.bundle("stranger")
		if err := w.refuseJoin(w.forgeWelcome(gs[0], stranger, welcomeForgery{}), stranger, JoinOptions{}); !hasRule(err, "welcome/own-leaf-absent") {
			t.Errorf("a group that we are not in: %v", err)
		}
		// A path secret where there is no path.
		fresh := w.group(3)
		b = w.bundle("new")
		_, fresh = w.commit(fresh, 0, CommitOptions{Proposals: []Proposal{Add(b.KeyPackage())}, NoPath: true})
		secret := welcomeForgery{pathSecret: bytes.Repeat([]byte{1}, w.cs.HashLen())}
		if err := w.refuseJoin(w.forgeWelcome(fresh[0], b, secret), b, JoinOptions{}); !hasRule(err, "welcome/path-secret-mismatch") {
			t.Errorf("a path secret for a blank node: %v", err)
		}
	})
}

// A group that says it goes on for another is checked against that one.
func TestSuccessorsThatDoNotFit(t *testing.T) {
	for _, cs := range rejectSuites[:4] {
		t.Run(fmt.Sprintf("suite=%d", cs), func(t *testing.T) {
			w := newWorld(t, cs)
			open := w.group(2)
			reinit := func(suite CipherSuite) []*Group {
				r := &ReInit{GroupID: []byte("next"), Version: MLS10, CipherSuite: suite}
				_, closed := w.commit(w.group(2), 0, CommitOptions{Proposals: []Proposal{r.Proposal()}})
				return closed
			}
			right, elsewhere := reinit(cs), reinit(otherSuite(cs))
			join := func(old *Group, have []*Group) error {
				id := PreSharedKeyID{Type: PSKTypeResumption, Usage: ResumptionPSKUsageReInit, GroupID: []byte("group"), Epoch: old.Epoch(), Nonce: w.nonce()}
				psk, err := w.cs.pskSecret([]PreSharedKeyID{id}, []secret{old.secrets.resumption})
				w.check(err)
				creator, err := CreateGroup(w.cfg, w.cs, []byte("next"), w.key(), w.options("member0"), nil)
				w.check(err)
				b := w.bundle("member1")
				c, err := creator.Commit(CommitOptions{Proposals: []Proposal{Add(b.KeyPackage())}})
				w.check(err)
				return w.refuseJoin(w.forgeWelcome(c.Merge(), b, welcomeForgery{psks: []PreSharedKeyID{id}, pskSecret: psk}), b, JoinOptions{Resumption: have})
			}
			if err := join(elsewhere[1], elsewhere[1:]); !hasRule(err, "welcome/reinit-parameters") {
				t.Errorf("another suite than the ReInit names: %v", err)
			}
			if err := join(open[1], open[1:]); !hasRule(err, "welcome/reinit-parameters") {
				t.Errorf("a group that was not closed: %v", err)
			}
			// The PSK alone, from wherever, does not stand for the group.
			w.cfg.PSK = func(id PreSharedKeyID) ([]byte, bool) { return right[1].secrets.resumption, true }
			if err := join(right[1], nil); !hasRule(err, "welcome/psk-missing") {
				t.Errorf("without the group that was closed: %v", err)
			}
		})
	}
}

// Application data needs an application, and what is not there is not removed.
func TestAppDataWithoutApplication(t *testing.T) {
	w := newAppDataWorld(t)
	o := w.appDataLeaf("member0")
	g, err := CreateGroup(nil, w.cs, []byte("group"), w.key(), LeafOptions{Credential: o.Credential, Capabilities: o.Capabilities}, nil)
	w.check(err)
	for _, p := range []Proposal{update(0x8001, "x"), (&AppEphemeral{Component: 0x8001, Data: []byte("x")}).Proposal()} {
		_, _, err := g.Propose(p, FramingOptions{})
		wantRule(t, err, "app-data/component-unknown")
		_, err = g.Commit(CommitOptions{Proposals: []Proposal{p}})
		wantRule(t, err, "app-data/component-unknown")
	}
	gs := w.appDataGroup()
	_, _, err = gs[0].Propose(removal(0x8001), FramingOptions{})
	wantRule(t, err, "app-data/remove-absent")
	// There, and gone by another proposal of the same Commit.
	_, gs = w.commit(gs, 0, CommitOptions{Proposals: []Proposal{update(0x8001, "data")}})
	_, err = gs[0].Commit(CommitOptions{Proposals: []Proposal{GroupContextExtensions(nil), removal(0x8001)}})
	wantRule(t, err, "app-data/remove-absent")
}

// A dictionary has as many components as whoever joins can read, and no more.
func TestAppDataOfManyComponents(t *testing.T) {
	w := newAppDataWorld(t)
	var d AppDataDictionary
	for i := range maxComponents {
		d = append(d, ComponentData{Component: ComponentID(0x8100 + i)})
	}
	full := w.appDataGroup(d.Extension())
	_, err := full[0].Commit(CommitOptions{Proposals: []Proposal{update(0x8001, "one more")}})
	wantRule(t, err, "app-data/dictionary-too-large")
	_, err = w.appDataGroup(d[1:].Extension())[0].Commit(CommitOptions{Proposals: []Proposal{update(0x8001, "the last")}})
	w.check(err)
}
