package mls

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// A welcomeForgery is a Welcome by a member that skips its own checks. Whoever
// makes a Welcome chooses the joiner secret, so that all fits together.
type welcomeForgery struct {
	context    func(c *groupContext)
	exts       []Extension // of the GroupInfo, beside the tree
	noTree     bool
	tree       []byte
	psks       []PreSharedKeyID
	pskSecret  secret
	pathSecret secret
	signer     *LeafIndex
	signature  func(sig []byte)
	tag        func(tag []byte)
	suite      CipherSuite
	info       func(ciphertext []byte)
	secrets    func(ct *hpkeCiphertext)
	joiner     int // length of the joiner secret
}

// forgeWelcome makes a Welcome to g's epoch, in which the bundle's leaf is.
func (w *world) forgeWelcome(g *Group, b *KeyPackageBundle, f welcomeForgery) *Message {
	w.t.Helper()
	cs := w.cs
	joiner := bytes.Repeat([]byte{9}, cs.HashLen())
	if f.joiner > 0 {
		joiner = joiner[:f.joiner]
	}
	ctx := g.context
	if f.context != nil {
		f.context(&ctx)
	}
	raw := ctx.appendTo(nil)
	e := newEpochSecrets(cs, joiner, f.pskSecret, raw)
	tag := cs.mac(e.confirmation, ctx.confirmedTranscriptHash)
	if f.tag != nil {
		f.tag(tag)
	}
	exts := f.exts
	if f.tree == nil {
		f.tree = g.RatchetTree()
	}
	if !f.noTree {
		exts = append(exts, Extension{ExtensionTypeRatchetTree, f.tree})
	}
	signer := g.own
	if f.signer != nil {
		signer = *f.signer
	}
	info, err := signGroupInfo(cs, g.signature, raw, exts, tag, signer)
	w.check(err)
	if f.signature != nil {
		f.signature(info[len(info)-8:])
	}
	key, nonce := cs.welcomeKey(e.welcome)
	wel := &Welcome{cipherSuite: cs, encryptedGroupInfo: cs.aeadSeal(key, nonce, nil, info)}
	if f.suite != 0 {
		wel.cipherSuite = f.suite
	}
	if f.info != nil {
		f.info(wel.encryptedGroupInfo)
	}
	gs := groupSecrets{joinerSecret: joiner, pathSecret: f.pathSecret, psks: f.psks}
	ct, err := newSealer(cs, "Welcome", wel.encryptedGroupInfo).seal(b.keyPackage.InitKey, gs.appendTo(nil), w.cfg.Rand)
	w.check(err)
	if f.secrets != nil {
		f.secrets(&ct)
	}
	wel.secrets = []encryptedGroupSecrets{{b.Ref(), ct}}
	return w.parse(wel.appendTo(appendMessageHeader(nil, WireFormatWelcome)))
}

// invited makes a group to which a client was added that has yet to join.
func (w *world) invited() (*Group, *KeyPackageBundle) {
	w.t.Helper()
	gs := w.group(3)
	b := w.bundle("new")
	_, gs = w.commit(gs, 0, CommitOptions{Proposals: []Proposal{Add(b.KeyPackage())}, ForcePath: true})
	return gs[0], b
}

// refuseJoin joins by a Welcome that must be refused, and leave the bundle as
// it was.
func (w *world) refuseJoin(m *Message, b *KeyPackageBundle, o JoinOptions) error {
	w.t.Helper()
	before, err := b.MarshalBinary()
	w.check(err)
	_, err = JoinWelcome(w.cfg, m, b, o)
	after, err2 := b.MarshalBinary()
	if err2 != nil || !bytes.Equal(before, after) {
		w.t.Error("a refused Welcome has changed the bundle")
	}
	return err
}

// welcomeRow is a row about a Welcome.
func welcomeRow(rule Rule, f func(w *world, g *Group) welcomeForgery) rejectCase {
	return rejectCase{row: rule, each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		g, b := w.invited()
		stored, err := b.MarshalBinary()
		w.check(err)
		again, err := UnmarshalKeyPackageBundle(stored)
		w.check(err)
		_, err = JoinWelcome(w.cfg, w.forgeWelcome(g, again, welcomeForgery{}), again, JoinOptions{})
		w.check(err)
		return w.refuseJoin(w.forgeWelcome(g, b, f(w, g)), b, JoinOptions{})
	}}
}

// originRow is a row about a group that says it goes on for another.
func originRow(rule Rule, usage ResumptionPSKUsage, context func(c *groupContext)) rejectCase {
	return rejectCase{row: rule, each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		old := w.group(3)
		if usage == ResumptionPSKUsageReInit {
			r := &ReInit{GroupID: []byte("next"), Version: MLS10, CipherSuite: w.cs}
			_, old = w.commit(old, 0, CommitOptions{Proposals: []Proposal{r.Proposal()}})
		}
		// The new group: member0 creates it, adds the others.
		id := PreSharedKeyID{Type: PSKTypeResumption, Usage: usage, GroupID: []byte("group"), Epoch: old[0].Epoch(), Nonce: w.nonce()}
		psk, err := w.cs.pskSecret([]PreSharedKeyID{id}, []secret{old[0].secrets.resumption})
		w.check(err)
		join := func(works bool, context func(c *groupContext), names ...string) error {
			creator, err := CreateGroup(w.cfg, w.cs, []byte("next"), w.key(), w.options("member0"), nil)
			w.check(err)
			b := w.bundle("member1")
			adds := []Proposal{Add(b.KeyPackage())}
			for _, name := range names {
				adds = append(adds, Add(w.bundle(name).KeyPackage()))
			}
			c, err := creator.Commit(CommitOptions{Proposals: adds})
			w.check(err)
			m := w.forgeWelcome(c.Merge(), b, welcomeForgery{psks: []PreSharedKeyID{id}, pskSecret: psk.clone(), context: context})
			o := JoinOptions{Resumption: []*Group{old[1]}}
			if works {
				_, err := JoinWelcome(w.cfg, m, b, o)
				return err
			}
			return w.refuseJoin(m, b, o)
		}
		w.check(join(true, nil, "member2"))
		switch {
		case context != nil:
			return join(false, context, "member2")
		case usage == ResumptionPSKUsageReInit:
			return join(false, nil)
		default:
			return join(false, nil, "stranger")
		}
	}}
}

var welcomeRejects = []rejectCase{
	{row: "welcome/no-secrets-for-us", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		g, b := w.invited()
		return w.refuseJoin(w.forgeWelcome(g, b, welcomeForgery{}), w.bundle("other"), JoinOptions{})
	}},
	{row: "welcome/cipher-suite", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		g, b := w.invited()
		if err := w.refuseJoin(w.forgeWelcome(g, b, welcomeForgery{context: func(c *groupContext) { c.cipherSuite = otherSuite(cs) }}), b, JoinOptions{}); !hasRule(err, "welcome/cipher-suite") {
			t.Errorf("in the GroupInfo: %v", err)
		}
		return w.refuseJoin(w.forgeWelcome(g, b, welcomeForgery{suite: otherSuite(cs)}), b, JoinOptions{})
	}},
	welcomeRow("welcome/secrets-undecryptable", func(w *world, g *Group) welcomeForgery {
		return welcomeForgery{secrets: func(ct *hpkeCiphertext) { ct.Ciphertext[3] ^= 1 }}
	}),
	{row: "welcome/psk-missing", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		g, b := w.invited()
		id := PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("unknown"), Nonce: w.nonce()}
		return w.refuseJoin(w.forgeWelcome(g, b, welcomeForgery{psks: []PreSharedKeyID{id}}), b, JoinOptions{})
	}},
	{row: "welcome/two-reinit-or-branch-psks", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		g, b := w.invited()
		id := PreSharedKeyID{Type: PSKTypeResumption, Usage: ResumptionPSKUsageBranch, GroupID: []byte("group"), Epoch: 1, Nonce: w.nonce()}
		id2 := id
		id2.Usage = ResumptionPSKUsageReInit
		return w.refuseJoin(w.forgeWelcome(g, b, welcomeForgery{psks: []PreSharedKeyID{id, id2}}), b, JoinOptions{Resumption: []*Group{g}})
	}},
	welcomeRow("welcome/group-info-signature", func(w *world, g *Group) welcomeForgery {
		other := LeafIndex(1) // signed by another than it says
		return welcomeForgery{signer: &other}
	}),
	{row: "welcome/signer-blank", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		g, b := w.invited()
		for _, i := range []LeafIndex{4, 1 << 31, 1<<32 - 1} {
			if err := w.refuseJoin(w.forgeWelcome(g, b, welcomeForgery{signer: &i}), b, JoinOptions{}); !hasRule(err, "welcome/signer-blank") {
				t.Errorf("leaf %d: %v", i, err)
			}
		}
		i := LeafIndex(5)
		return w.refuseJoin(w.forgeWelcome(g, b, welcomeForgery{signer: &i}), b, JoinOptions{})
	}},
	{row: "welcome/group-id-in-use", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		g, b := w.invited()
		return w.refuseJoin(w.forgeWelcome(g, b, welcomeForgery{}), b, JoinOptions{InUse: func(id []byte) bool { return string(id) == "group" }})
	}},
	{row: "welcome/own-leaf-absent", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		g, _ := w.invited()
		b := w.bundle("stranger")
		if err := w.refuseJoin(w.forgeWelcome(g, b, welcomeForgery{}), b, JoinOptions{}); !hasRule(err, "welcome/own-leaf-absent") {
			t.Errorf("a stranger: %v", err)
		}
		// The key is there, in another leaf than that of the KeyPackage.
		var twin *KeyPackageBundle
		w.forgePackage(packageForgery{key: &g.signature, name: "member0", bundle: &twin})
		return w.refuseJoin(w.forgeWelcome(g, twin, welcomeForgery{}), twin, JoinOptions{})
	}},
	welcomeRow("welcome/path-secret-mismatch", func(w *world, g *Group) welcomeForgery {
		return welcomeForgery{pathSecret: bytes.Repeat([]byte{1}, w.cs.HashLen())}
	}),
	welcomeRow("welcome/confirmation-tag", func(w *world, g *Group) welcomeForgery {
		return welcomeForgery{tag: func(tag []byte) { tag[0] ^= 1 }}
	}),
	{row: "welcome/extension-unsupported", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		g, b := w.invited()
		return w.refuseJoin(w.forgeWelcome(g, b, welcomeForgery{context: func(c *groupContext) {
			c.extensions = []Extension{{Type: testExtension}}
		}}), b, JoinOptions{})
	}},
	{row: "welcome/ratchet-tree-absent", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		g, b := w.invited()
		m := w.forgeWelcome(g, b, welcomeForgery{noTree: true})
		err := w.refuseJoin(m, b, JoinOptions{})
		_, err2 := JoinWelcome(w.cfg, m, b, JoinOptions{RatchetTree: g.RatchetTree()})
		w.check(err2)
		return err
	}},
	originRow("welcome/reinit-epoch", ResumptionPSKUsageReInit, func(c *groupContext) { c.epoch = 2 }),
	{row: "welcome/reinit-parameters", each: func(t *testing.T, cs CipherSuite) error {
		for name, context := range map[string]func(c *groupContext){
			"group id":   func(c *groupContext) { c.groupID = []byte("another") },
			"extensions": func(c *groupContext) { c.extensions = []Extension{(&RequiredCapabilities{}).Extension()} },
		} {
			row := originRow("welcome/reinit-parameters", ResumptionPSKUsageReInit, context)
			if err := row.each(t, cs); !hasRule(err, "welcome/reinit-parameters") {
				t.Errorf("%s: %v", name, err)
			}
		}
		return originRow("welcome/reinit-parameters", ResumptionPSKUsageReInit, func(c *groupContext) { c.groupID = nil }).each(t, cs)
	}},
	originRow("welcome/reinit-members", ResumptionPSKUsageReInit, nil),
	{row: "welcome/branch-parameters", each: func(t *testing.T, cs CipherSuite) error {
		w, other := newWorld(t, cs), newWorld(t, otherSuite(cs))
		old := w.group(2)
		id := PreSharedKeyID{Type: PSKTypeResumption, Usage: ResumptionPSKUsageBranch, GroupID: []byte("group"), Epoch: 1, Nonce: other.nonce()}
		psk, err := other.cs.pskSecret([]PreSharedKeyID{id}, []secret{old[0].secrets.resumption})
		w.check(err)
		creator, err := CreateGroup(other.cfg, other.cs, []byte("branch"), other.key(), other.options("member0"), nil)
		w.check(err)
		b := other.bundle("member1")
		c, err := creator.Commit(CommitOptions{Proposals: []Proposal{Add(b.KeyPackage())}})
		w.check(err)
		m := other.forgeWelcome(c.Merge(), b, welcomeForgery{psks: []PreSharedKeyID{id}, pskSecret: psk})
		return other.refuseJoin(m, b, JoinOptions{Resumption: []*Group{old[1]}})
	}},
	originRow("welcome/branch-members", ResumptionPSKUsageBranch, nil),
	{row: "welcome/replayed", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		g, b := w.invited()
		m := w.forgeWelcome(g, b, welcomeForgery{})
		joined, err := JoinWelcome(w.cfg, m, b, JoinOptions{})
		w.check(err)
		before := snapshot(joined)
		_, err = JoinWelcome(w.cfg, m, b, JoinOptions{})
		if !bytes.Equal(before, snapshot(joined)) {
			t.Error("the refused Welcome changed the group")
		}
		return cause(err, "welcome/replayed")
	}},
}

// dutyRejects are duties of our own that concern whole groups.
var dutyRejects = []rejectCase{
	{row: "state/commit-does-not-mutate", holds: func(t *testing.T, cs CipherSuite) {
		w := newWorld(t, cs)
		gs := w.group(4)
		raw, _, err := gs[1].Propose(Remove(3), FramingOptions{})
		w.check(err)
		w.accept(gs[0], w.parse(raw))
		w.accept(gs[2], w.parse(raw))
		b := w.bundle("new")
		before := [][]byte{snapshot(gs[0]), snapshot(gs[2])}
		for _, o := range []CommitOptions{{}, {Pending: true}, {Pending: true, Proposals: []Proposal{Add(b.KeyPackage())}, WelcomeRatchetTree: true}} {
			c, err := gs[0].Commit(o)
			w.check(err)
			w.accept(gs[2], w.parse(c.Message()))
			c.Merge().Zero()
			if !bytes.Equal(before[0], snapshot(gs[0])) || !bytes.Equal(before[1], snapshot(gs[2])) {
				t.Fatal("a Commit that was not merged has changed a group")
			}
		}
	}},
	{row: "state/welcome-before-acceptance", holds: func(t *testing.T, cs CipherSuite) {
		// Why a Welcome waits until its Commit is accepted, and that nothing
		// of it travels with the Commit: who is welcomed to an epoch that
		// lost can neither read nor reach the group.
		w := newWorld(t, cs)
		gs := w.group(3)
		b := w.bundle("new")
		lost, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{Add(b.KeyPackage())}, WelcomeRatchetTree: true})
		w.check(err)
		welcome := w.parse(lost.Welcome()).Welcome()
		if bytes.Contains(lost.Message(), welcome.encryptedGroupInfo) || bytes.Contains(lost.Message(), welcome.secrets[0].ciphertext.Ciphertext) {
			t.Error("the Commit carries its Welcome")
		}
		if len(welcome.Recipients()) != 1 || !bytes.Equal(welcome.Recipients()[0], b.Ref()) || welcome.CipherSuite() != cs {
			t.Error("the Welcome is for somebody else")
		}
		_, next := w.commit(gs, 1, CommitOptions{})
		early, err := JoinWelcome(w.cfg, w.parse(lost.Welcome()), b, JoinOptions{})
		w.check(err)
		raw, err := early.Encrypt([]byte("hello?"), nil)
		w.check(err)
		if _, err := next[0].Process(w.parse(raw)); err == nil {
			t.Error("a message of an epoch that lost is read")
		}
		raw, err = next[0].Encrypt([]byte("secret"), nil)
		w.check(err)
		if _, err := early.Process(w.parse(raw)); err == nil {
			t.Error("who was welcomed too early reads the group")
		}
	}},
	{row: "state/init-key-deleted", holds: func(t *testing.T, cs CipherSuite) {
		w := newWorld(t, cs)
		g, b := w.invited()
		init := b.initKey
		leaf := b.leafKey.clone()
		joined, err := JoinWelcome(w.cfg, w.forgeWelcome(g, b, welcomeForgery{}), b, JoinOptions{})
		w.check(err)
		if !allZero(init) || !b.Used() {
			t.Error("the init key is still there")
		}
		if !bytes.Equal(joined.keys[joined.own.node()].priv, leaf) {
			t.Error("the leaf key is gone from the group")
		}
	}},
	{row: "state/error-leaves-state", holds: func(t *testing.T, cs CipherSuite) {
		// Every single byte of a Commit, a proposal and a message altered.
		w := newWorld(t, cs)
		gs := w.group(3)
		c, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{Remove(2)}})
		w.check(err)
		p, _, err := lenient(gs[0]).Propose(Remove(2), FramingOptions{Private: true})
		w.check(err)
		sent, err := gs[2].Encrypt([]byte("text"), nil)
		w.check(err)
		before := snapshot(gs[1])
		for _, raw := range [][]byte{c.Message(), p, sent} {
			step := 1 + len(raw)/60
			for i := 0; i < len(raw); i += step {
				bad := slices.Clone(raw)
				bad[i] ^= 0x40
				m, err := ParseMessage(bad)
				if err == nil {
					_, err = gs[1].Process(m)
				}
				if v := (*ValidationError)(nil); !errors.As(err, &v) {
					t.Errorf("byte %d altered: got %v, want a refusal by rule", i, err)
				}
				if !bytes.Equal(before, snapshot(gs[1])) {
					t.Fatalf("byte %d altered: the refusal changed the group", i)
				}
			}
		}
		for _, raw := range [][]byte{c.Message(), p, sent} {
			w.accept(gs[1], w.parse(raw))
		}
	}},
}
