package mls

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"
)

// testTime is the present of all tests.
var testTime = time.Unix(1_800_000_000, 0)

// seeded returns deterministic randomness.
func seeded(seed uint64) io.Reader {
	var s [32]byte
	for i := range 8 {
		s[i] = byte(seed >> (8 * i))
	}
	return rand.NewChaCha8(s)
}

// A world is a set of clients that share a source of randomness.
type world struct {
	t    testing.TB
	cs   CipherSuite
	cfg  *Config
	psks map[string][]byte
}

func newWorld(t testing.TB, cs CipherSuite) *world {
	w := &world{t: t, cs: cs, psks: make(map[string][]byte)}
	w.cfg = &Config{
		Rand: seeded(uint64(cs)),
		Now:  func() time.Time { return testTime },
		PSK: func(id PreSharedKeyID) ([]byte, bool) {
			psk, ok := w.psks[string(id.ID)]
			return psk, ok && id.Type == PSKTypeExternal
		},
	}
	return w
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) key() SignaturePrivateKey {
	w.t.Helper()
	k, err := GenerateSignatureKey(w.cs, w.cfg.Rand)
	w.check(err)
	return k
}

func (w *world) options(name string) LeafOptions {
	return LeafOptions{Credential: BasicCredential([]byte(name))}
}

func (w *world) bundle(name string) *KeyPackageBundle {
	w.t.Helper()
	b, err := NewKeyPackage(w.cfg, w.cs, w.key(), w.options(name))
	w.check(err)
	return b
}

func (w *world) parse(raw []byte) *Message {
	w.t.Helper()
	m, err := ParseMessage(raw)
	w.check(err)
	return m
}

// create makes a group of one.
func (w *world) create(name string, exts ...Extension) *Group {
	w.t.Helper()
	g, err := CreateGroup(w.cfg, w.cs, []byte("group"), w.key(), w.options(name), exts)
	w.check(err)
	return g
}

// group makes a group of n members, each with its own state.
func (w *world) group(n int, exts ...Extension) []*Group {
	w.t.Helper()
	gs := []*Group{w.create("member0", exts...)}
	if n > 1 {
		var names []string
		for i := 1; i < n; i++ {
			names = append(names, fmt.Sprintf("member%d", i))
		}
		gs = w.add(gs, names...)
	}
	return gs
}

// add lets the first member add clients.
func (w *world) add(gs []*Group, names ...string) []*Group {
	w.t.Helper()
	var o CommitOptions
	var bundles []*KeyPackageBundle
	for _, name := range names {
		b := w.bundle(name)
		bundles = append(bundles, b)
		o.Proposals = append(o.Proposals, Add(b.KeyPackage()))
	}
	o.WelcomeRatchetTree = true
	c, next := w.commit(gs, 0, o)
	for _, b := range bundles {
		raw, err := c.WelcomeFor(b.Ref())
		w.check(err)
		g, err := JoinWelcome(w.cfg, w.parse(raw), b, JoinOptions{})
		w.check(err)
		next = append(next, g)
	}
	w.agree(next)
	return next
}

// commit lets member i commit and all others follow; those who are removed are
// left out.
func (w *world) commit(gs []*Group, i int, o CommitOptions) (*StagedCommit, []*Group) {
	w.t.Helper()
	c, err := gs[i].Commit(o)
	w.check(err)
	return c, w.follow(gs, gs[i], c)
}

// follow lets everybody but the committer process a Commit.
func (w *world) follow(gs []*Group, committer *Group, c *StagedCommit) []*Group {
	w.t.Helper()
	m := w.parse(c.Message())
	var next []*Group
	for _, g := range gs {
		if g == committer {
			next = append(next, c.Merge())
			continue
		}
		before := snapshot(g)
		p, err := g.Process(m)
		w.check(err)
		s, ok := p.(*StagedCommit)
		if !ok {
			w.t.Fatalf("processing a Commit gave a %T", p)
		}
		if !bytes.Equal(before, snapshot(g)) {
			w.t.Fatal("staging a Commit changed the group")
		}
		if n := s.Merge(); n != nil {
			next = append(next, n)
		} else if !s.SelfRemoved() {
			w.t.Fatal("no group after a Commit that does not remove us")
		}
	}
	w.agree(next)
	return next
}

// snapshot is a group's whole state.
func snapshot(g *Group) []byte { return append(g.EpochState(), g.RatchetState()...) }

// agree checks that the states are of one epoch, and that the trees hold.
func (w *world) agree(gs []*Group) {
	w.t.Helper()
	for _, g := range gs {
		if g.Epoch() != gs[0].Epoch() || !bytes.Equal(g.EpochAuthenticator(), gs[0].EpochAuthenticator()) {
			w.t.Fatalf("leaf %d is in another epoch than leaf %d", g.OwnLeafIndex(), gs[0].OwnLeafIndex())
		}
		if !bytes.Equal(g.TreeHash(), gs[0].TreeHash()) || !bytes.Equal(g.ConfirmedTranscriptHash(), gs[0].ConfirmedTranscriptHash()) {
			w.t.Fatal("trees or transcripts differ")
		}
		for x, k := range g.keys {
			pub, err := w.cs.publicKey(k.priv)
			w.check(err)
			if !bytes.Equal(pub, g.tree.publicKey(x)) {
				w.t.Fatalf("leaf %d holds a wrong key for node %d", g.own, x)
			}
		}
	}
	g := gs[0]
	fresh := mustReparse(w.t, g.tree)
	if !bytes.Equal(fresh.rootHash(), g.TreeHash()) {
		w.t.Fatal("the cached tree hash is wrong")
	}
	w.check(fresh.validate(w.cfg, &g.context))
	if fresh.count != g.tree.count || fresh.last != g.tree.last || fresh.size != g.tree.size {
		w.t.Fatalf("counts: %d/%d/%d, want %d/%d/%d", g.tree.count, g.tree.last, g.tree.size, fresh.count, fresh.last, fresh.size)
	}
	if fresh.encryptionKeys.used != g.tree.encryptionKeys.used || fresh.signatureKeys.used != g.tree.signatureKeys.used {
		w.t.Fatal("the key indexes have lost or kept entries")
	}
	for x := range nodeIndex(g.tree.nodes()) {
		if k := g.tree.publicKey(x); k != nil && !g.tree.hasEncryptionKey(k) {
			w.t.Fatalf("the key of node %d is not in the index", x)
		}
	}
}

func mustReparse(t testing.TB, tree *ratchetTree) *ratchetTree {
	t.Helper()
	fresh, err := parseTree(tree.cs, tree.appendTo(nil), (*Config)(nil).limits())
	if err != nil {
		t.Fatal(err)
	}
	fresh.finish()
	return fresh
}

// talk lets everybody send a message that all others read.
func (w *world) talk(gs []*Group) {
	w.t.Helper()
	for _, from := range gs {
		text := []byte(fmt.Sprintf("from leaf %d in epoch %d", from.OwnLeafIndex(), from.Epoch()))
		raw, err := from.Encrypt(text, []byte("aad"))
		w.check(err)
		m := w.parse(raw)
		for _, to := range gs {
			p, err := to.Process(m)
			if to == from {
				if !errors.Is(err, ErrOwnMessage) {
					w.t.Fatalf("own message: %v", err)
				}
				continue
			}
			w.check(err)
			a := p.(*ApplicationMessage)
			if !bytes.Equal(a.Plaintext, text) || a.Sender != from.OwnLeafIndex() || string(a.AuthenticatedData) != "aad" {
				w.t.Fatalf("got %q of leaf %d", a.Plaintext, a.Sender)
			}
		}
	}
}

func eachSuite(t *testing.T, f func(t *testing.T, w *world)) {
	for _, cs := range SupportedCipherSuites() {
		t.Run(fmt.Sprintf("suite=%d", cs), func(t *testing.T) {
			t.Parallel()
			f(t, newWorld(t, cs))
		})
	}
}

func TestGroupLife(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		gs := w.group(2)
		w.talk(gs)
		gs = w.add(gs, "carol", "dave", "erin")
		w.talk(gs)
		for i := range gs {
			_, gs = w.commit(gs, i, CommitOptions{})
		}
		w.talk(gs)
		_, gs = w.commit(gs, 1, CommitOptions{Proposals: []Proposal{Remove(2), Remove(4)}})
		if len(gs) != 3 || gs[0].MemberCount() != 3 {
			t.Fatalf("%d states and %d members, want 3", len(gs), gs[0].MemberCount())
		}
		w.talk(gs)
		gs = w.add(gs, "frank")
		if gs[3].OwnLeafIndex() != 2 {
			t.Fatalf("frank is at leaf %d, want the leftmost blank one", gs[3].OwnLeafIndex())
		}
		_, gs = w.commit(gs, 3, CommitOptions{})
		w.talk(gs)
	})
}

func TestProposalsByReference(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		for _, private := range []bool{false, true} {
			gs := w.group(5)
			frame := FramingOptions{Private: private, AuthenticatedData: []byte("why")}
			share := func(from int, raw []byte, ref ProposalRef) {
				t.Helper()
				m := w.parse(raw)
				for i, g := range gs {
					if i == from {
						continue
					}
					p, err := g.Process(m)
					w.check(err)
					if pm := p.(*ProposalMessage); !bytes.Equal(pm.Ref, ref) || string(pm.AuthenticatedData) != "why" {
						t.Fatalf("ref %x, want %x", pm.Ref, ref)
					}
				}
			}
			raw, ref, err := gs[1].ProposeUpdate(nil, frame)
			w.check(err)
			share(1, raw, ref)
			raw, ref, err = gs[2].Propose(Remove(4), frame)
			w.check(err)
			share(2, raw, ref)
			b := w.bundle("frank")
			raw, ref, err = gs[3].Propose(Add(b.KeyPackage()), frame)
			w.check(err)
			share(3, raw, ref)

			if _, err := gs[0].Encrypt([]byte("x"), nil); !errors.Is(err, ErrPendingProposals) {
				t.Fatalf("sending with proposals pending: %v", err)
			}
			// The member who proposed an Update comes back from its store.
			gs[1], err = LoadGroup(w.cfg, gs[1].EpochState(), gs[1].RatchetState())
			w.check(err)
			old := gs[1].OwnLeaf().EncryptionKey
			c, next := w.commit(gs, 0, CommitOptions{Pending: true, Private: private, WelcomeRatchetTree: true})
			if len(c.Proposals()) != 3 || len(c.Added()) != 1 || len(c.Removed()) != 1 || len(c.Updated()) != 1 {
				t.Fatalf("%d proposals, %d added, %d removed, %d updated", len(c.Proposals()), len(c.Added()), len(c.Removed()), len(c.Updated()))
			}
			if bytes.Equal(next[1].OwnLeaf().EncryptionKey, old) {
				t.Fatal("the Update had no effect")
			}
			frank, err := JoinWelcome(w.cfg, w.parse(c.Welcome()), b, JoinOptions{})
			w.check(err)
			next = append(next, frank)
			w.agree(next)
			w.talk(next)
		}
	})
}

func TestSiblingCommits(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(4)
	a, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{Remove(3)}})
	w.check(err)
	b, err := gs[0].Commit(CommitOptions{})
	w.check(err)
	c, err := gs[1].Commit(CommitOptions{})
	w.check(err)
	onA := w.follow(gs, gs[0], a)
	onB := w.follow(gs, gs[0], b)
	onC := w.follow(gs, gs[1], c)
	for _, branch := range [][]*Group{onA, onB, onC} {
		w.talk(branch)
	}
	if bytes.Equal(onA[0].EpochAuthenticator(), onB[0].EpochAuthenticator()) {
		t.Error("two branches have the same secrets")
	}
	if first := a.Merge(); first != a.Merge() {
		t.Error("Merge gives two groups for one epoch")
	}
	// The parent goes on to decrypt its epoch.
	w.talk(gs)
	// A Commit of one branch is refused on the other.
	d, err := onA[0].Commit(CommitOptions{})
	w.check(err)
	if _, err := onB[1].Process(w.parse(d.Message())); !hasRule(err, "framing/membership-tag-wrong") {
		t.Errorf("Commit of another branch: %v", err)
	}
}

// hasRule tells whether err or one of its causes is a ValidationError of a rule.
func hasRule(err error, rule Rule) bool {
	for err != nil {
		if v, ok := err.(*ValidationError); ok && v.Rule == rule {
			return true
		}
		err = errors.Unwrap(err)
	}
	return false
}

func TestExternalCommit(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		gs := w.group(3)
		pub := w.public(gs[0])
		info, err := gs[1].GroupInfo(GroupInfoOptions{ExternalPub: true})
		w.check(err)
		key := w.key()
		c, err := ExternalJoin(w.cfg, w.parse(info), key, ExternalJoinOptions{
			Leaf: w.options("zoe"), RatchetTree: gs[0].RatchetTree(), AuthenticatedData: []byte("hello"),
		})
		w.check(err)
		gs = append(w.follow(gs, nil, c), c.Merge())
		w.agree(gs)
		w.talk(gs)
		pub = w.followPublic(pub, c)

		// She loses her state and comes back in place of her old leaf.
		info, err = gs[0].GroupInfo(GroupInfoOptions{ExternalPub: true, RatchetTree: true})
		w.check(err)
		leaf := c.Committer()
		back, err := ExternalJoin(w.cfg, w.parse(info), w.key(), ExternalJoinOptions{Leaf: w.options("zoe"), Resync: &leaf})
		w.check(err)
		if len(back.Removed()) != 1 || back.Committer() != leaf {
			t.Fatalf("resync removed %d and joined at %d", len(back.Removed()), back.Committer())
		}
		w.followPublic(pub, back)
		gs = append(w.follow(gs[:3], nil, back), back.Merge())
		w.agree(gs)
		w.talk(gs)
	})
}

// public starts following a group without being a member.
func (w *world) public(g *Group) *PublicGroup {
	w.t.Helper()
	info, err := g.GroupInfo(GroupInfoOptions{})
	w.check(err)
	p, err := NewPublicGroup(w.cfg, w.parse(info), g.RatchetTree())
	w.check(err)
	return p
}

// followPublic lets a public group follow a Commit, by way of its store.
func (w *world) followPublic(p *PublicGroup, c *StagedCommit) *PublicGroup {
	w.t.Helper()
	raw, err := p.MarshalBinary()
	w.check(err)
	p, err = UnmarshalPublicGroup(w.cfg, raw)
	w.check(err)
	out, err := p.Process(w.parse(c.Message()))
	w.check(err)
	s := out.(*PublicStagedCommit)
	info, err := c.GroupInfo(GroupInfoOptions{ExternalPub: true})
	w.check(err)
	w.check(s.VerifyGroupInfo(w.parse(info)))
	n := s.Merge()
	if n.Epoch() != c.Epoch() || !bytes.Equal(n.TreeHash(), c.TreeHash()) ||
		!bytes.Equal(n.ConfirmedTranscriptHash(), c.Merge().ConfirmedTranscriptHash()) ||
		!bytes.Equal(n.ConfirmationTag(), c.ConfirmationTag()) || !bytes.Equal(n.RatchetTree(), c.Merge().RatchetTree()) {
		w.t.Fatal("the public group is in another state")
	}
	return n
}

func TestPublicGroupFollows(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(4)
	pub := w.public(gs[0])
	raw, _, err := gs[1].ProposeUpdate(nil, FramingOptions{})
	w.check(err)
	for _, g := range []*Group{gs[0], gs[2], gs[3]} {
		_, err := g.Process(w.parse(raw))
		w.check(err)
	}
	_, err = pub.Process(w.parse(raw))
	w.check(err)
	c, gs := w.commit(gs, 3, CommitOptions{Pending: true, Proposals: []Proposal{Remove(2), Add(w.bundle("new").KeyPackage())}})
	pub = w.followPublic(pub, c)
	c, _ = w.commit(gs, 1, CommitOptions{})
	w.followPublic(pub, c)
}

func TestExternalSenderProposes(t *testing.T) {
	w := newWorld(t, 1)
	bot := w.key()
	gs := w.group(3, ExternalSendersExtension([]ExternalSender{
		{SignatureKey: w.key().Public(), Credential: BasicCredential([]byte("other"))},
		{SignatureKey: bot.Public(), Credential: BasicCredential([]byte("bot"))},
	}))
	raw, err := NewExternalProposal(w.cs, gs[0].GroupID(), gs[0].Epoch(), 1, bot, Remove(2), nil)
	w.check(err)
	b := w.bundle("dora")
	join, err := NewMemberProposal(gs[0].GroupID(), gs[0].Epoch(), b, nil)
	w.check(err)
	for _, g := range gs {
		for _, m := range [][]byte{raw, join} {
			_, err := g.Process(w.parse(m))
			w.check(err)
		}
	}
	c, gs := w.commit(gs, 0, CommitOptions{Pending: true, WelcomeRatchetTree: true})
	if len(c.Removed()) != 1 || c.Removed()[0].Index != 2 || c.Proposals()[0].Sender.Type != SenderTypeExternal {
		t.Fatalf("got %+v", c.Proposals())
	}
	g, err := JoinWelcome(w.cfg, w.parse(c.Welcome()), b, JoinOptions{})
	w.check(err)
	w.talk(append(gs, g))
}

func TestPreSharedKeys(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		w.psks["shared"] = []byte("a secret that all know")
		gs := w.group(3)
		_, gs = w.commit(gs, 0, CommitOptions{})
		b := w.bundle("new")
		c, next := w.commit(gs, 1, CommitOptions{WelcomeRatchetTree: true, Proposals: []Proposal{
			PSK(PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("shared")}),
			Add(b.KeyPackage()),
		}})
		if c.HasPath() {
			t.Error("a Commit of a PSK and an Add has a path")
		}
		g, err := JoinWelcome(w.cfg, w.parse(c.Welcome()), b, JoinOptions{})
		w.check(err)
		w.talk(append(next, g))

		// Resumption of the epoch that is over and of the present one.
		_, gs = w.commit(gs, 1, CommitOptions{Proposals: []Proposal{
			PSK(PreSharedKeyID{Type: PSKTypeResumption, Usage: ResumptionPSKUsageApplication, GroupID: []byte("group"), Epoch: gs[0].Epoch() - 1}),
			PSK(PreSharedKeyID{Type: PSKTypeResumption, Usage: ResumptionPSKUsageApplication, GroupID: []byte("group"), Epoch: gs[0].Epoch()}),
		}})
		w.talk(gs)
	})
}

func TestReInitAndBranch(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(3)
	bundles := func(cs CipherSuite) (bs []*KeyPackageBundle, kps []*KeyPackage) {
		w.cs = cs
		for i := 1; i < 3; i++ {
			b := w.bundle(fmt.Sprintf("member%d", i))
			bs, kps = append(bs, b), append(kps, b.KeyPackage())
		}
		return bs, kps
	}
	join := func(s *StagedCommit, bs []*KeyPackageBundle) []*Group {
		out := []*Group{s.Merge()}
		for i, b := range bs {
			g, err := JoinWelcome(w.cfg, w.parse(s.Welcome()), b, JoinOptions{Resumption: []*Group{gs[i+1]}})
			w.check(err)
			out = append(out, g)
		}
		w.agree(out)
		w.talk(out)
		return out
	}
	bs, kps := bundles(1)
	s, err := gs[0].Branch([]byte("branch"), nil, w.key(), w.options("member0"), kps[:1], CommitOptions{WelcomeRatchetTree: true})
	w.check(err)
	join(s, bs[:1])

	re := &ReInit{GroupID: []byte("second"), Version: MLS10, CipherSuite: 3, Extensions: []Extension{(&RequiredCapabilities{}).Extension()}}
	_, gs = w.commit(gs, 1, CommitOptions{Proposals: []Proposal{re.Proposal()}})
	if gs[0].ReInit() == nil {
		t.Fatal("the group is not closed")
	}
	if _, err := gs[0].Encrypt([]byte("x"), nil); !hasRule(err, "framing/group-closed") {
		t.Errorf("sending in a closed group: %v", err)
	}
	if _, err := gs[0].Commit(CommitOptions{}); !hasRule(err, "framing/group-closed") {
		t.Errorf("committing in a closed group: %v", err)
	}
	// Closed it stays, through the store.
	gs[0], err = LoadGroup(w.cfg, gs[0].EpochState(), gs[0].RatchetState())
	w.check(err)
	bs, kps = bundles(3)
	if _, err := gs[0].ReInitGroup(w.key(), w.options("member0"), kps[:1], CommitOptions{}); !hasRule(err, "welcome/reinit-members") {
		t.Errorf("ReInit with a member missing: %v", err)
	}
	s, err = gs[0].ReInitGroup(w.key(), w.options("member0"), kps, CommitOptions{WelcomeRatchetTree: true})
	w.check(err)
	join(s, bs)
}

// TestReInitOfMoreMembersThanACommitMayAdd: a group can have grown, over many Commits, beyond what one of them may add.
func TestReInitOfMoreMembersThanACommitMayAdd(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(6)
	w.cfg.Limits.MaxProposals = 3
	re := &ReInit{GroupID: []byte("second"), Version: MLS10, CipherSuite: 3}
	_, gs = w.commit(gs, 0, CommitOptions{Proposals: []Proposal{re.Proposal()}})
	w.cs = 3
	var bs []*KeyPackageBundle
	var kps []*KeyPackage
	for i := 1; i < 6; i++ {
		b := w.bundle(fmt.Sprintf("member%d", i))
		bs, kps = append(bs, b), append(kps, b.KeyPackage())
	}
	s, err := gs[0].ReInitGroup(w.key(), w.options("member0"), kps, CommitOptions{WelcomeRatchetTree: true})
	w.check(err)
	raw, err := s.MarshalBinary()
	w.check(err)
	s, err = UnmarshalStagedCommit(w.cfg, nil, raw)
	w.check(err)
	next := []*Group{s.Merge()}
	for i, b := range bs {
		g, err := JoinWelcome(w.cfg, w.parse(s.Welcome()), b, JoinOptions{Successor: gs[i+1]})
		w.check(err)
		next = append(next, g)
	}
	w.agree(next)
	w.talk(next)
	w.cfg.Limits.MaxMembers = 5
	if _, err := gs[0].ReInitGroup(w.key(), w.options("member0"), kps, CommitOptions{}); !hasRule(err, "proposal-list/too-many") {
		t.Errorf("a successor of more members than a group may have: %v", err)
	}
}

func TestGroupContextExtensions(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(2)
	exts := []Extension{(&RequiredCapabilities{Credentials: []CredentialType{CredentialTypeBasic}}).Extension()}
	c, gs := w.commit(gs, 0, CommitOptions{Proposals: []Proposal{GroupContextExtensions(exts)}})
	if !c.HasPath() {
		t.Error("a Commit of GroupContextExtensions has no path")
	}
	if got := gs[1].Extensions(); len(got) != 1 || got[0].Type != ExtensionTypeRequiredCapabilities {
		t.Errorf("extensions: %v", got)
	}
	gs = w.add(gs, "carol")
	w.talk(gs)
}

func TestStagedCommitSurvivesCrash(t *testing.T) {
	for name, marshal := range map[string]func(c *StagedCommit, g *Group) ([]byte, error){
		"whole":     func(c *StagedCommit, _ *Group) ([]byte, error) { return c.MarshalBinary() },
		"on parent": (*StagedCommit).MarshalOn,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			gs := w.group(3)
			b := w.bundle("new")
			c, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{Remove(2), Add(b.KeyPackage())}, WelcomeRatchetTree: true, AuthenticatedData: []byte("aad")})
			w.check(err)
			raw, err := marshal(c, gs[0])
			w.check(err)
			g, err := LoadGroup(w.cfg, gs[0].EpochState(), gs[0].RatchetState())
			w.check(err)
			d, err := UnmarshalStagedCommit(w.cfg, g, raw)
			w.check(err)
			if !bytes.Equal(c.Message(), d.Message()) || !bytes.Equal(c.Welcome(), d.Welcome()) || d.Committer() != 0 || d.Epoch() != c.Epoch() ||
				len(d.Proposals()) != 2 || len(d.Added()) != 1 || len(d.Removed()) != 1 || string(d.AuthenticatedData()) != "aad" || d.CommitterLeaf() == nil {
				t.Fatal("the Commit has changed in the store")
			}
			again, err := marshal(d, gs[0])
			w.check(err)
			if !bytes.Equal(raw, again) {
				t.Fatal("the stored form has changed")
			}
			next := w.follow([]*Group{gs[1]}, nil, d)
			joined, err := JoinWelcome(w.cfg, w.parse(d.Welcome()), b, JoinOptions{})
			w.check(err)
			next = append(next, d.Merge(), joined)
			w.agree(next)
			w.talk(next)
		})
	}
}

// What is stored of a Commit in a large group is what the Commit changes.
func TestStagedCommitOnItsParentIsSmall(t *testing.T) {
	g := newTestGroup(t, testConfig(t), 1, 200)[0]
	c, err := g.Commit(CommitOptions{ForcePath: true})
	if err != nil {
		t.Fatal(err)
	}
	whole, err := c.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	small, err := c.MarshalOn(g)
	if err != nil {
		t.Fatal(err)
	}
	if tree := len(g.RatchetTree()); len(small) > len(whole)-tree*9/10 {
		t.Errorf("%d bytes, %d with a tree of %d", len(small), len(whole), tree)
	}
}

// A Commit and what it names are looked at without the group's keeping anything.
func TestProcessBesideLeavesTheGroup(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(4)
	server := w.public(gs[0])
	known, _, err := gs[1].Propose(Add(w.bundle("known").KeyPackage()), FramingOptions{})
	w.check(err)
	for _, g := range []interface {
		Process(m *Message) (Processed, error)
	}{gs[0], gs[2], server} {
		_, err := g.Process(w.parse(known))
		w.check(err)
	}
	removed, _, err := gs[2].Propose(Remove(3), FramingOptions{})
	w.check(err)
	private, _, err := gs[2].Propose(Remove(0), FramingOptions{Private: true})
	w.check(err)
	c, err := gs[2].Commit(CommitOptions{Pending: true})
	w.check(err)
	beside := []*Message{w.parse(private), w.parse(c.Message()), w.parse(removed)}
	before, seen := groupState(gs[0]), server.EpochHead()
	if _, err := gs[0].ProcessBeside(nil, w.parse(c.Message())); !hasRule(err, "proposal/ref-unknown") {
		t.Errorf("a Commit that names what did not come: %v", err)
	}
	if _, err := gs[0].ProcessBeside(beside, w.parse(c.Message())); !hasRule(err, "proposal/ref-unknown") {
		t.Errorf("a Commit that names a proposal that is not in the clear: %v", err)
	}
	if _, err := gs[0].ProcessBeside(nil, w.parse(private)); err == nil {
		t.Error("a proposal that is not in the clear is looked at")
	}
	pm, err := gs[0].ProcessBeside(nil, w.parse(removed))
	w.check(err)
	if p, ok := pm.(*ProposalMessage); !ok || p.Proposal.Remove != 3 {
		t.Errorf("the proposal is read as %+v", pm)
	}
	ref := pm.(*ProposalMessage).Ref
	c, err = gs[2].Commit(CommitOptions{PendingRefs: []ProposalRef{ref}})
	w.check(err)
	staged, err := gs[0].ProcessBeside(beside, w.parse(c.Message()))
	w.check(err)
	public, err := server.ProcessBeside(beside, w.parse(c.Message()))
	w.check(err)
	if !bytes.Equal(groupState(gs[0]), before) || !bytes.Equal(server.EpochHead(), seen) {
		t.Error("the group has changed")
	}
	next := staged.(*StagedCommit).Merge()
	if len(public.(*PublicStagedCommit).Removed()) != 1 || !bytes.Equal(public.(*PublicStagedCommit).Merge().TreeHash(), next.TreeHash()) {
		t.Error("the server sees another epoch")
	}
	w.agree([]*Group{next, c.Merge()})
	w.talk([]*Group{next, c.Merge()})
	if p := next.Public(); p.Epoch() != next.Epoch() || !bytes.Equal(p.GroupContext(), next.GroupContext()) || len(p.PendingProposals()) != 0 {
		t.Error("the public side is of another epoch")
	}
}

func TestKeyPackageBundleStore(t *testing.T) {
	eachSuite(t, func(t *testing.T, w *world) {
		b := w.bundle("alice")
		raw, err := b.MarshalBinary()
		w.check(err)
		c, err := UnmarshalKeyPackageBundle(raw)
		w.check(err)
		if !bytes.Equal(c.Ref(), b.Ref()) || !bytes.Equal(c.Message(), b.Message()) {
			t.Error("the KeyPackage has changed in the store")
		}
		for i := range raw {
			if _, err := UnmarshalKeyPackageBundle(raw[:i]); err == nil {
				t.Fatalf("%d of %d bytes were read as a bundle", i, len(raw))
			}
		}
	})
}

func TestStoredStatesAreExact(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(5)
	for i := range gs {
		_, gs = w.commit(gs, i, CommitOptions{})
	}
	w.talk(gs)
	_, _, err := gs[0].ProposeUpdate(nil, FramingOptions{})
	w.check(err)
	epochState, ratchetState := gs[0].EpochState(), gs[0].RatchetState()
	g, err := LoadGroup(w.cfg, epochState, ratchetState)
	w.check(err)
	if !bytes.Equal(g.EpochState(), epochState) || !bytes.Equal(g.RatchetState(), ratchetState) {
		t.Fatal("a stored group comes back different")
	}
	for _, n := range []int{0, 1, 2, len(epochState) / 2, len(epochState) - 1} {
		if _, err := LoadGroup(w.cfg, epochState[:n], ratchetState); err == nil {
			t.Errorf("%d bytes of epoch state were read", n)
		}
	}
	for _, n := range []int{0, 1, 9, len(ratchetState) / 2, len(ratchetState) - 1} {
		if _, err := LoadGroup(w.cfg, epochState, ratchetState[:n]); err == nil {
			t.Errorf("%d bytes of ratchet state were read", n)
		}
	}
	if _, err := LoadGroup(w.cfg, append([]byte{9}, epochState[1:]...), ratchetState); err == nil {
		t.Error("an unknown format was read")
	}
	_, next := w.commit(gs[1:], 0, CommitOptions{})
	if _, err := LoadGroup(w.cfg, epochState, next[0].RatchetState()); err == nil {
		t.Error("the ratchets of another epoch were read")
	}
}

func TestZeroEndsAGroup(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(2)
	raw, err := gs[1].Encrypt([]byte("x"), nil)
	w.check(err)
	m := w.parse(raw)
	_, next := w.commit(gs, 0, CommitOptions{})
	init, auth := gs[0].secrets.init, gs[0].secrets.authenticator
	gs[0].Zero()
	if !allZero(init) || !allZero(auth) {
		t.Error("secrets are still there")
	}
	if _, err := gs[0].Process(m); !errors.Is(err, ErrZeroed) {
		t.Errorf("Process: %v", err)
	}
	if _, err := gs[0].Encrypt(nil, nil); !errors.Is(err, ErrZeroed) {
		t.Errorf("Encrypt: %v", err)
	}
	if _, err := gs[0].Commit(CommitOptions{}); !errors.Is(err, ErrZeroed) {
		t.Errorf("Commit: %v", err)
	}
	if _, err := gs[0].Export("l", nil, 32); !errors.Is(err, ErrZeroed) {
		t.Errorf("Export: %v", err)
	}
	w.talk(next)
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return len(b) > 0
}

// A member may not stop Commits by proposals that are right one by one and
// wrong together.
func TestPendingProposalsThatClash(t *testing.T) {
	w := newWorld(t, 1)
	w.cfg.Limits.MaxSenderProposals = 100
	gs := w.group(5)
	exts := []Extension{(&RequiredCapabilities{Extensions: []ExtensionType{testExtension}}).Extension()}
	twin := w.key()
	update := func(i int, edit func(l *LeafNode), key *SignaturePrivateKey) Proposal {
		return Proposal{Type: ProposalTypeUpdate, Update: w.updateLeaf(gs[i], edit, key, []byte("group"), LeafIndex(i))}
	}
	first := w.bundle("new")
	for i, p := range []Proposal{
		update(3, nil, nil),
		update(3, nil, nil),
		Remove(4), Remove(4),
		update(2, nil, &twin),
		Add(w.forgePackage(packageForgery{key: &twin})),
		Add(first.KeyPackage()), Add(first.KeyPackage()),
		Add(w.forgePackage(packageForgery{key: &gs[1].signature})),
		Add(w.forgePackage(packageForgery{leaf: func(l *LeafNode) { l.EncryptionKey = gs[1].OwnLeaf().EncryptionKey }})),
		GroupContextExtensions(exts), GroupContextExtensions(nil), GroupContextExtensions(nil),
		PSK(PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("nobody has it"), Nonce: w.nonce()}),
		Remove(0),
		(&ReInit{GroupID: []byte("x"), Version: MLS10, CipherSuite: 1}).Proposal(),
	} {
		from := gs[3]
		if p.Type == ProposalTypeUpdate && i == 4 {
			from = gs[2]
		}
		if i == 8 {
			from = gs[2]
		}
		m := w.propose(from, p)
		for _, g := range gs[:3] {
			w.accept(g, m)
		}
	}
	c, err := gs[0].Commit(CommitOptions{Pending: true})
	w.check(err)
	w.accept(gs[1], w.parse(c.Message()))
	if len(c.Removed()) != 1 || len(c.Updated()) != 2 || len(c.Added()) != 1 {
		t.Errorf("%d removed, %d updated, %d added", len(c.Removed()), len(c.Updated()), len(c.Added()))
	}
}
