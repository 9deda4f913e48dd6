package mls

import (
	"bytes"
	"errors"
	"math"
	"testing"
)

// refusing is an Authenticator that knows a client it does not trust.
type refusing struct{ name string }

func (r refusing) ValidateCredential(l *LeafNode) error {
	if string(l.Credential.Identity) == r.name {
		return errors.New("unknown client")
	}
	return nil
}
func (refusing) SameClient(old, next *LeafNode) bool { return old.Credential.Equal(&next.Credential) }

// addRow is a row about a leaf in a KeyPackage: as it is, the KeyPackage is
// added, and forged it is refused.
func addRow(rule Rule, exts func(w *world) []Extension, f func(w *world, gs []*Group) packageForgery) rejectCase {
	return rejectCase{row: rule, each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		var e []Extension
		if exts != nil {
			e = exts(w)
		}
		gs := w.group(3, e...)
		w.add(gs, "honest")
		return w.refuseAdd(gs, w.forgePackage(f(w, gs)), rule)
	}}
}

func leafRow(rule Rule, edit func(w *world, l *LeafNode)) rejectCase {
	return addRow(rule, nil, func(w *world, gs []*Group) packageForgery {
		return packageForgery{leaf: func(l *LeafNode) { edit(w, l) }}
	})
}

// clockRow is a row about a KeyPackage at the wrong time: nobody adds it, and what
// others do with it is refused where the Config says so.
func clockRow(rule Rule, edit func(l *LeafNode)) rejectCase {
	return rejectCase{row: rule, each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		kp := w.forgePackage(packageForgery{leaf: edit})
		err := kp.Validate(w.cfg, cs)
		if v := new(ValidationError); !errors.As(err, &v) || v.Rule != "key-package/leaf-invalid" || v.Cause() != rule {
			t.Errorf("Validate: %v", err)
		}
		before := groupState(gs[0])
		if _, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{Add(kp)}}); !hasRule(err, rule) {
			t.Errorf("Commit: %v", err)
		}
		if _, _, err := gs[0].Propose(Add(kp), FramingOptions{}); !hasRule(err, rule) {
			t.Errorf("Propose: %v", err)
		}
		if !bytes.Equal(before, groupState(gs[0])) {
			t.Error("what was refused changed the group")
		}
		// By a committer whose clock is another.
		m := w.forge(gs[0], commitForgery{
			proposals: byValue(Add(kp)), path: true, added: []LeafIndex{LeafIndex(gs[0].tree.last)},
			apply: func(t *ratchetTree) { t.add(kp.LeafNode) },
		})
		w.accept(gs[1], m)
		w.cfg.CheckReceivedLifetimes = true
		return w.refuseAdd(gs, kp, rule)
	}}
}

const testExtension ExtensionType = 0xf0a1

// wideGroup makes a group whose members support testExtension, proposal type
// 0xf0a2 and credential type 0xf0a3.
func (w *world) wideGroup(n int, exts ...Extension) []*Group {
	w.t.Helper()
	w.cfg.Authenticator = refusing{}
	g, err := CreateGroup(w.cfg, w.cs, []byte("group"), w.key(), w.wideOptions("member0"), exts)
	w.check(err)
	gs := []*Group{g}
	for len(gs) < n {
		b, err := NewKeyPackage(w.cfg, w.cs, w.key(), w.wideOptions("wide"))
		w.check(err)
		c, next := w.commit(gs, 0, CommitOptions{Proposals: []Proposal{Add(b.KeyPackage())}, WelcomeRatchetTree: true})
		j, err := JoinWelcome(w.cfg, w.parse(c.Welcome()), b, JoinOptions{})
		w.check(err)
		gs = append(next, j)
	}
	return gs
}

func (w *world) wideOptions(name string) LeafOptions {
	o := w.options(name)
	c := wideCapabilities()
	o.Capabilities = &c
	return o
}

func wideCapabilities() Capabilities {
	c := DefaultCapabilities()
	c.Extensions = []ExtensionType{testExtension}
	c.Proposals = []ProposalType{0xf0a2}
	c.Credentials = append(c.Credentials, 0xf0a3)
	return c
}

// requiredRow is a row about required_capabilities: a leaf that lacks one.
func requiredRow(rule Rule, drop func(c *Capabilities)) rejectCase {
	return rejectCase{row: rule, each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.wideGroup(3, (&RequiredCapabilities{
			Extensions: []ExtensionType{testExtension}, Proposals: []ProposalType{0xf0a2}, Credentials: []CredentialType{0xf0a3},
		}).Extension())
		c := wideCapabilities()
		drop(&c)
		return func() error {
			kp := w.forgePackage(packageForgery{caps: &c})
			m := w.forge(gs[0], commitForgery{
				proposals: byValue(Add(kp)), path: true, added: []LeafIndex{LeafIndex(gs[0].tree.last)},
				apply: func(t *ratchetTree) { t.add(kp.LeafNode) },
			})
			// An Update that drops the capability is no better.
			up := w.updateLeaf(gs[2], func(l *LeafNode) { l.Capabilities = c }, nil, []byte("group"), gs[2].own)
			pm := w.accept(gs[1], w.propose(gs[2], Proposal{Type: ProposalTypeUpdate, Update: up})).(*ProposalMessage)
			err := w.refuse(gs[1], w.forge(gs[0], commitForgery{
				proposals: []proposalOrRef{{ref: pm.Ref}}, path: true,
				apply: func(t *ratchetTree) { t.update(gs[2].own, up) },
			}))
			if !hasRule(err, rule) {
				t.Errorf("Update: %v, want %s", err, rule)
			}
			// Nor a path.
			err = w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true, leaf: func(l *LeafNode) { l.Capabilities = c }}))
			if !hasRule(err, rule) {
				t.Errorf("path: %v, want %s", err, rule)
			}
			return cause(w.refuse(gs[1], m), rule)
		}()
	}}
}

var leafRejects = []rejectCase{
	{row: "leaf-node/credential-invalid", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		w.cfg.Authenticator = refusing{"mallory"}
		gs := w.group(2)
		// In a tree.
		info, err := lenientCreate(w, "mallory").GroupInfo(GroupInfoOptions{RatchetTree: true})
		w.check(err)
		if _, err := NewPublicGroup(w.cfg, w.parse(info), nil); !hasRule(err, "leaf-node/credential-invalid") || !hasRule(err, "tree/leaf-invalid") {
			t.Errorf("tree: %v", err)
		}
		return w.refuseAdd(gs, w.forgePackage(packageForgery{name: "mallory"}), "leaf-node/credential-invalid")
	}},
	{row: "leaf-node/credential-not-successor", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		w.accept(gs[1], w.forge(gs[0], commitForgery{path: true}))
		other := func(l *LeafNode) { l.Credential = BasicCredential([]byte("other")) }
		up := w.updateLeaf(gs[0], other, nil, []byte("group"), 0)
		if err := w.refuse(gs[1], w.propose(gs[0], Proposal{Type: ProposalTypeUpdate, Update: up})); !hasRule(err, "leaf-node/credential-not-successor") {
			t.Errorf("Update: %v", err)
		}
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true, leaf: other}))
	}},
	{row: "leaf-node/signature-invalid", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		return w.refuseAdd(gs, w.forgePackage(packageForgery{after: func(raw []byte) { raw[len(raw)-1] ^= 1 }}), "leaf-node/signature-invalid")
	}},
	{row: "leaf-node/signature-wrong-group", rule: "leaf-node/signature-invalid", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		for _, bind := range []struct {
			id []byte
			i  LeafIndex
		}{{[]byte("other group"), 0}, {[]byte("group"), 1}} {
			up := w.updateLeaf(gs[0], nil, nil, bind.id, bind.i)
			if err := w.refuse(gs[1], w.propose(gs[0], Proposal{Type: ProposalTypeUpdate, Update: up})); !hasRule(err, "leaf-node/signature-invalid") {
				t.Errorf("Update bound to %q, %d: %v", bind.id, bind.i, err)
			}
			if bind.i == 1 {
				break
			}
			err := w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true, bind: func([]byte, LeafIndex) ([]byte, LeafIndex) { return bind.id, bind.i }}))
			if !hasRule(err, "leaf-node/signature-invalid") {
				t.Errorf("path bound to %q, %d: %v", bind.id, bind.i, err)
			}
		}
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true, bind: func(id []byte, _ LeafIndex) ([]byte, LeafIndex) { return id, 1 }}))
	}},
	requiredRow("leaf-node/required-extension-missing", func(c *Capabilities) { c.Extensions = nil }),
	requiredRow("leaf-node/required-proposal-missing", func(c *Capabilities) { c.Proposals = nil }),
	requiredRow("leaf-node/required-credential-missing", func(c *Capabilities) { c.Credentials = c.Credentials[:1] }),
	{row: "leaf-node/credential-type-unsupported-by-members", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		w.cfg.Authenticator = refusing{}
		gs := w.group(2)
		c := wideCapabilities()
		kp := w.forgePackage(packageForgery{caps: &c, leaf: func(l *LeafNode) { l.Credential = Credential{Type: 0xf0a3, Identity: []byte("x")} }})
		wide := newWorld(t, cs).wideGroup(2)
		if _, err := wide[0].Commit(CommitOptions{Proposals: []Proposal{Add(kp)}}); err != nil {
			t.Errorf("where all support the type: %v", err)
		}
		return cause(w.refuse(gs[1], w.forge(gs[0], commitForgery{
			proposals: byValue(Add(kp)), added: []LeafIndex{2}, apply: func(t *ratchetTree) { t.add(kp.LeafNode) },
		})), "leaf-node/credential-type-unsupported-by-members")
	}},
	{row: "leaf-node/credential-types-in-use-unsupported", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.wideGroup(2)
		c := wideCapabilities()
		c.Credentials = []CredentialType{0xf0a3}
		kp := w.forgePackage(packageForgery{caps: &c, leaf: func(l *LeafNode) { l.Credential = Credential{Type: 0xf0a3, Identity: []byte("x")} }})
		return cause(w.refuse(gs[1], w.forge(gs[0], commitForgery{
			proposals: byValue(Add(kp)), path: true, added: []LeafIndex{2}, apply: func(t *ratchetTree) { t.add(kp.LeafNode) },
		})), "leaf-node/credential-types-in-use-unsupported")
	}},
	leafRow("leaf-node/credential-not-in-own-capabilities", func(w *world, l *LeafNode) { l.Capabilities.Credentials = []CredentialType{CredentialTypeX509} }),
	leafRow("leaf-node/cipher-suite-not-in-capabilities", func(w *world, l *LeafNode) {
		l.Capabilities.CipherSuites = []CipherSuite{otherSuite(w.cs)}
	}),
	leafRow("leaf-node/extension-not-in-capabilities", func(w *world, l *LeafNode) { l.Extensions = []Extension{{Type: testExtension}} }),
	clockRow("leaf-node/lifetime-expired", func(l *LeafNode) { l.Lifetime.NotAfter = uint64(testTime.Unix()) - 1 }),
	clockRow("leaf-node/lifetime-not-yet", func(l *LeafNode) { l.Lifetime.NotBefore = uint64(testTime.Unix()) + 3601 }),
	leafRow("leaf-node/lifetime-too-long", func(w *world, l *LeafNode) {
		l.Lifetime.NotAfter = l.Lifetime.NotBefore + uint64(w.cfg.limits().MaxLifetime) + 1
	}),
	leafRow("leaf-node/lifetime-inverted", func(w *world, l *LeafNode) {
		l.Lifetime = Lifetime{NotBefore: math.MaxUint64, NotAfter: math.MaxUint64 - 1}
	}),
	leafRow("leaf-node/source-not-key-package", func(w *world, l *LeafNode) { l.Source = LeafNodeSourceUpdate }),
	{row: "leaf-node/source-not-update", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		up := w.updateLeaf(gs[0], func(l *LeafNode) { l.Source = LeafNodeSourceCommit }, nil, []byte("group"), 0)
		return cause(w.refuse(gs[1], w.propose(gs[0], Proposal{Type: ProposalTypeUpdate, Update: up})), "leaf-node/source-not-update")
	}},
	{row: "leaf-node/source-not-commit", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		err := w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true, leaf: func(l *LeafNode) { l.Source = LeafNodeSourceKeyPackage }}))
		return cause(err, "leaf-node/source-not-commit")
	}},
	{row: "leaf-node/signature-key-not-unique", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		key := gs[2].signature
		// By the path, and by an Update.
		err := w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true, key: &key}))
		if !hasRule(err, "leaf-node/signature-key-not-unique") {
			t.Errorf("path: %v", err)
		}
		up := w.updateLeaf(gs[0], nil, &key, []byte("group"), 0)
		proposal := w.propose(gs[0], Proposal{Type: ProposalTypeUpdate, Update: up})
		for _, g := range gs[1:] {
			w.accept(g, proposal)
		}
		return cause(w.refuse(gs[1], w.forge(gs[2], commitForgery{
			proposals: []proposalOrRef{{ref: gs[1].PendingProposals()[0].Ref}}, path: true,
			apply: func(t *ratchetTree) { t.update(0, up) },
		})), "leaf-node/signature-key-not-unique")
	}},
	{row: "leaf-node/encryption-key-not-unique", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(3)
		_, gs = w.commit(gs, 2, CommitOptions{})
		keys := []HPKEPublicKey{gs[2].OwnLeaf().EncryptionKey, gs[2].tree.publicKey(rootIndex(gs[2].tree.size))}
		var err error
		for _, k := range keys {
			// In the path's leaf.
			if err := w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true, leafKey: k})); !hasRule(err, "leaf-node/encryption-key-not-unique") {
				t.Errorf("path: %v", err)
			}
		}
		// In an added leaf.
		kp := w.forgePackage(packageForgery{leaf: func(l *LeafNode) { l.EncryptionKey = keys[0] }})
		err = w.refuse(gs[1], w.forge(gs[0], commitForgery{
			proposals: byValue(Add(kp)), path: true, added: []LeafIndex{3}, apply: func(t *ratchetTree) { t.add(kp.LeafNode) },
		}))
		return cause(err, "leaf-node/encryption-key-not-unique")
	}},
	{row: "leaf-node/encryption-key-unchanged", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		err := w.refuse(gs[1], w.forge(gs[0], commitForgery{path: true, leafKey: gs[0].OwnLeaf().EncryptionKey}))
		if !hasRule(err, "leaf-node/encryption-key-unchanged") {
			t.Errorf("path: %v", err)
		}
		// Nor may who comes back by an external Commit keep the key.
		zero := LeafIndex(0)
		err = w.refuse(gs[1], w.forgeExternal(gs[0], externalForgery{name: "member0", remove: &zero, leafKey: gs[0].OwnLeaf().EncryptionKey,
			proposals: func(p Proposal) []proposalOrRef { return byValue(p, Remove(0)) }}))
		if !hasRule(err, "leaf-node/encryption-key-unchanged") {
			t.Errorf("external Commit: %v", err)
		}
		up := w.updateLeaf(gs[0], func(l *LeafNode) { l.EncryptionKey = gs[0].OwnLeaf().EncryptionKey }, nil, []byte("group"), 0)
		return cause(w.refuse(gs[1], w.propose(gs[0], Proposal{Type: ProposalTypeUpdate, Update: up})), "leaf-node/encryption-key-unchanged")
	}},
	{row: "leaf-node/default-types-listed", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		for _, c := range []Capabilities{
			{Extensions: []ExtensionType{ExtensionTypeRequiredCapabilities}},
			{Proposals: []ProposalType{ProposalTypeAdd}},
		} {
			d := DefaultCapabilities()
			d.Extensions, d.Proposals = c.Extensions, c.Proposals
			o := w.options("x")
			o.Capabilities = &d
			if _, err := NewKeyPackage(w.cfg, w.cs, w.key(), o); !hasRule(err, "leaf-node/default-types-listed") {
				t.Errorf("got %v", err)
			}
			// From peers it is tolerated.
			w.check(w.forgePackage(packageForgery{caps: &d}).Validate(w.cfg, w.cs))
		}
		o := w.options("x")
		o.Capabilities = &Capabilities{Extensions: []ExtensionType{ExtensionTypeApplicationID}}
		_, err := NewKeyPackage(w.cfg, w.cs, w.key(), o)
		return err
	}},
}

func lenientCreate(w *world, name string) *Group {
	w.t.Helper()
	c := *w.cfg
	c.Authenticator = vectorAuthenticator{}
	g, err := CreateGroup(&c, w.cs, []byte("group"), w.key(), w.options(name), nil)
	w.check(err)
	return g
}

func packageRow(rule Rule, f func(w *world, gs []*Group) packageForgery) rejectCase {
	return addRow(rule, nil, f)
}

// otherSuite returns a suite that is not cs.
func otherSuite(cs CipherSuite) CipherSuite {
	if cs == MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519 {
		return MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	}
	return MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519
}

var keyPackageRejects = []rejectCase{
	{row: "key-package/cipher-suite-differs", each: func(t *testing.T, cs CipherSuite) error {
		w, other := newWorld(t, cs), newWorld(t, otherSuite(cs))
		gs := w.group(2)
		return w.refuseAdd(gs, other.bundle("x").KeyPackage(), "key-package/cipher-suite-differs")
	}},
	packageRow("key-package/version-differs", func(*world, []*Group) packageForgery { return packageForgery{version: 2} }),
	{row: "key-package/version-differs-from-message", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		_, err := ParseMessage(w.forgePackage(packageForgery{}).Message())
		w.check(err)
		_, err = ParseMessage(w.forgePackage(packageForgery{version: 2}).Message())
		return err
	}},
	packageRow("key-package/leaf-invalid", func(*world, []*Group) packageForgery {
		return packageForgery{leaf: func(l *LeafNode) { l.Capabilities.Versions = nil }}
	}),
	{row: "key-package/signature-invalid", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		return w.refuseAdd(gs, w.forgePackage(packageForgery{signature: func(sig []byte) { sig[len(sig)-1] ^= 1 }}), "key-package/signature-invalid")
	}},
	packageRow("key-package/init-key-equals-encryption-key", func(*world, []*Group) packageForgery { return packageForgery{sameKey: true} }),
	{row: "key-package/init-key-malformed", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		return w.refuseAdd(gs, w.forgePackage(packageForgery{initKey: bytes.Repeat([]byte{1}, 7)}), "key-package/init-key-malformed")
	}},
	{row: "key-package/reused", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		for _, lastResort := range []bool{true, false} {
			o := w.options("new")
			o.LastResort = lastResort
			b, err := NewKeyPackage(w.cfg, w.cs, w.key(), o)
			w.check(err)
			c, _ := w.commit(gs, 0, CommitOptions{Proposals: []Proposal{Add(b.KeyPackage())}, WelcomeRatchetTree: true})
			_, err = JoinWelcome(w.cfg, w.parse(c.Welcome()), b, JoinOptions{})
			w.check(err)
			_, err = JoinWelcome(w.cfg, w.parse(c.Welcome()), b, JoinOptions{})
			if lastResort {
				w.check(err)
				continue
			}
			if _, err := b.MarshalBinary(); err == nil {
				t.Error("a bundle that is used up can be stored")
			}
			return err
		}
		return nil
	}},
}
