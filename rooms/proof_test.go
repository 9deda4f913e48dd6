package rooms

import (
	"crypto/ed25519"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// proofWorld is a group whose commits modules order, and what a head of theirs
// shows.
type proofWorld struct {
	t        *testing.T
	g        *testGroup
	root     federation.Ref
	contents map[federation.Ref]*CommitContent
	modules  []*federation.Machine // by the seeds of their keys, from 1 on
	now      time.Duration
	infos    map[federation.Ref][]byte
}

func module(n uint64) federation.Sequencer {
	server := []string{"example.org", "example.net", "example.com"}[n-1]
	return federation.Sequencer{Server: server, User: "@" + BotLocalpart + ":" + server, ReceiptKey: []byte(ed25519Key(n)[32:])}
}

func newProofWorld(t *testing.T) *proofWorld {
	t.Helper()
	w := &proofWorld{t: t, g: newGroup(t, testPolicy()), contents: map[federation.Ref]*CommitContent{}, infos: map[federation.Ref][]byte{}}
	w.root = w.g.head
	// The beginning once more, as the group's first member signed it.
	info, err := w.g.creator.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	must(t, err)
	m, err := mls.ParseMessage(info)
	must(t, err)
	w.root, err = RootRef(m)
	must(t, err)
	w.g.head = w.root
	w.contents[w.root] = &CommitContent{GroupInfo: info}
	base, err := BaseFacts(w.g.creator.group, w.root, "$root", 0, federation.Ref{})
	must(t, err)
	for n := range uint64(3) {
		s := module(n + 1)
		m, err := federation.New(federation.Config{
			Room: string(testRoom), Verify: VerifyLeafSignature, VoteDelay: -1,
			Self: &federation.Identity{Server: s.Server, User: s.User, Key: ed25519.PrivateKey(ed25519Key(n + 1))},
		}, base)
		must(t, err)
		w.modules = append(w.modules, m)
	}
	return w
}

// run gives an event to all modules and lets them act until they rest.
func (w *proofWorld) run(events ...federation.Event) {
	w.t.Helper()
	queue := slices.Clone(events)
	for range 20 {
		for _, ev := range queue {
			for _, m := range w.modules {
				_, err := m.Step(ev)
				must(w.t, err)
			}
		}
		queue = nil
		w.now += time.Second
		for _, m := range w.modules {
			for _, act := range m.Tick(w.now) {
				if send, ok := act.(federation.Send); ok {
					queue = append(queue, send.Receipt)
				}
			}
		}
		if len(queue) == 0 {
			return
		}
	}
}

// commit lets a member commit; the others vouch if vouch is set.
func (w *proofWorld) commit(by *testDevice, aad *CommitAAD, vouch bool, change func(p *Policy), proposals ...mls.Proposal) federation.Ref {
	w.t.Helper()
	o := mls.CommitOptions{Proposals: proposals, ForcePath: true}
	if change != nil {
		p, err := PolicyOf(by.group)
		must(w.t, err)
		change(p)
		exts, err := GroupExtensions(p, []mls.ExternalSender{{SignatureKey: w.g.sender.Public(), Credential: mls.BasicCredential([]byte(testBot))}})
		must(w.t, err)
		o.Proposals = append(o.Proposals, mls.GroupContextExtensions(exts))
	}
	c := w.g.commit(by, aad, o)
	info, err := c.staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
	must(w.t, err)
	c.in.Content.GroupInfo = info
	w.take(c, vouch)
	return c.in.Ref
}

func (w *proofWorld) take(c *made, vouch bool) {
	w.t.Helper()
	checked, err := CheckCommit(c.in)
	must(w.t, err)
	w.contents[c.in.Ref] = c.in.Content
	w.run(checked.Commit)
	w.g.merge(c)
	if !vouch {
		return
	}
	for _, d := range w.g.members {
		if d.cred.User != c.by.cred.User {
			scope := federation.Scope{Room: string(testRoom), Group: d.group.GroupID()}
			a, err := SignApplied(testSuite, d.key, scope, c.in.Ref, d.group.OwnLeafIndex(), d.group.EpochAuthenticator())
			must(w.t, err)
			w.run(a)
			return
		}
	}
}

// join adds devices, whose adder's other device is none: the first is alone.
func (w *proofWorld) join(devices ...*testDevice) {
	w.t.Helper()
	before := w.g.head
	var o mls.CommitOptions
	aad := &CommitAAD{}
	for _, d := range devices {
		o.Proposals = append(o.Proposals, mls.Add(d.keyPackage()))
		aad.Admissions = append(aad.Admissions, *w.g.admit(w.g.creator, d.cred.User))
	}
	o.WelcomeRatchetTree = true
	c := w.g.commit(w.g.creator, aad, o)
	info, err := c.staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
	must(w.t, err)
	c.in.Content.GroupInfo = info
	_ = before
	w.take(c, false)
	for _, d := range devices {
		raw, err := c.staged.WelcomeFor(d.bundle.KeyPackage().Ref())
		must(w.t, err)
		m, err := mls.ParseMessage(raw)
		must(w.t, err)
		d.group, err = mls.JoinWelcome(d.cfg, m, d.bundle, mls.JoinOptions{})
		must(w.t, err)
		w.g.members = append(w.g.members, d)
	}
	// The author is alone with the newcomers: its own statement vouches.
	scope := federation.Scope{Room: string(testRoom), Group: w.g.creator.group.GroupID()}
	a, err := SignApplied(testSuite, w.g.creator.key, scope, c.in.Ref, w.g.creator.group.OwnLeafIndex(), w.g.creator.group.EpochAuthenticator())
	must(w.t, err)
	w.run(a)
}

// chain returns what a module shows.
func (w *proofWorld) chain(n int) *ProofChain {
	w.t.Helper()
	m := w.modules[n]
	chain := m.ProofChain()
	from := w.root
	if len(chain.Steps) > 0 {
		from = chain.Steps[len(chain.Steps)-1].Ref
	}
	head := m.SafeHead()
	p := NewProofChain(chain, w.root, m.Path(from, head), m.AcceptOf(head), func(ref federation.Ref) *CommitContent { return w.contents[ref] })
	if p == nil {
		w.t.Fatal("the module has no proof to show")
	}
	return p
}

// copied returns a chain that shares nothing with p.
func copied(t testing.TB, p *ProofChain) *ProofChain {
	t.Helper()
	out, err := DecodeProof(slices.Clone(p.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// history is a group from its beginning: heirs, a list of three, an admin's era
// with two, a final commit in it and an accepted one.
func history(t *testing.T) (w *proofWorld, bobs *testDevice) {
	w = newProofWorld(t)
	b, c := newDevice(t, bob, "LAPTOP"), newDevice(t, carol, "TABLET")
	w.join(b, c)
	w.commit(w.g.creator, nil, true, func(p *Policy) {
		p.Heirs = []federation.Heir{{User: string(bob), Server: "example.net"}, {User: string(carol), Server: "example.com"}}
	})
	w.commit(w.g.creator, nil, true, func(p *Policy) { p.Sequencers = []federation.Sequencer{module(1), module(2), module(3)} })
	w.commit(b, nil, true, nil)
	w.commit(w.g.creator, &CommitAAD{Era: 1}, true, func(p *Policy) { p.Sequencers = []federation.Sequencer{module(2), module(3)} })
	w.commit(b, nil, true, nil)
	w.commit(w.g.creator, nil, false, nil)
	return w, b
}

func TestProofChainFromTheBeginning(t *testing.T) {
	w, _ := history(t)
	m := w.modules[1]
	p := w.chain(1)
	for name, chain := range map[string]*ProofChain{"as it is": p, "encoded": copied(t, p)} {
		t.Run(name, func(t *testing.T) {
			got, err := chain.Check(testRoom, m.SafeHead())
			must(t, err)
			era, base := m.EraOf()
			if got.Root != w.root || got.Creator != alice || got.Final != m.NewestFinal() || got.Accepted != m.SafeHead() || got.Era != era || got.Config != base {
				t.Errorf("proven %+v", got)
			}
			if !federation.List(got.Policy.Sequencers).Equal(federation.List{module(2), module(3)}) {
				t.Errorf("list %v", got.Policy.Sequencers)
			}
			want := []Attested{{alice, testSuite, w.g.creator.cred.Key}}
			if diff := cmp.Diff(want, got.Attested); diff != "" {
				t.Errorf("devices to look for (-want +got):\n%s", diff)
			}
		})
	}
	if n := len(p.Steps); n != 4 {
		t.Errorf("%d steps, want heirs, list, era and final", n)
	}
	t.Logf("a chain of %d steps and %d accepted commits takes %d bytes", len(p.Steps), len(p.Path), len(p.Encode()))
}

// TestProofChainOfAnExperimentalSuite: the chain of a group that was founded in one is checked as any other. Whether that suite
// is used is for those to say who join the group, or follow it.
func TestProofChainOfAnExperimentalSuite(t *testing.T) {
	const hybrid = Suite(0xf0d1)
	cfg := testConfig(1)
	cfg.ExperimentalSuites = true
	key, err := mls.GenerateSignatureKey(hybrid, cfg.Rand)
	must(t, err)
	exts, err := GroupExtensions(testPolicy(), nil)
	must(t, err)
	leaf := LeafOptions(Credential{User: alice, Device: "PHONE", Key: key.Public()})
	leaf.Capabilities.CipherSuites = append(leaf.Capabilities.CipherSuites, hybrid)
	group, err := mls.CreateGroup(cfg, hybrid, make([]byte, GroupIDSize), key, leaf, exts)
	must(t, err)
	info, err := group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	must(t, err)
	m, err := mls.ParseMessage(info)
	must(t, err)
	root, err := RootRef(m)
	must(t, err)
	got, err := (&ProofChain{Root: info}).Check(testRoom, root)
	must(t, err)
	if got.Root != root || got.Final != root || len(got.Attested) != 1 || got.Attested[0].Suite != hybrid {
		t.Errorf("proven %+v", got)
	}
}

// TestWelcomeAgainstAProof: a newcomer enters at what the proof leads through, and at what a sequencer of a list that it shows accepted.
func TestWelcomeAgainstAProof(t *testing.T) {
	w, b := history(t)
	m := w.modules[1]
	ref := m.SafeHead()
	config, _ := m.ConfigAt(ref)
	newest, err := w.chain(1).Check(testRoom, ref)
	must(t, err)
	older := w.chain(1)
	older.Path, older.Accept = nil, nil
	final, err := older.Check(testRoom, m.NewestFinal())
	must(t, err)
	other, shown := *newest, *final
	other.Groups = [][]byte{{1}}
	shown.Lists = map[federation.Ref]ProvenList{w.root: final.Lists[w.root]}
	accept := AcceptOf(m.AcceptOf(ref))
	forged := *accept
	forged.Sig = slices.Clone(accept.Sig)
	forged.Sig[0] ^= 1
	for _, test := range []struct {
		name string
		by   *Proven
		edit func(welcome *WelcomeContent)
		want Rule
	}{
		{"in the chain", newest, func(*WelcomeContent) {}, ""},
		{"in the chain, with another era", newest, func(w *WelcomeContent) { w.Era = 0 }, RuleWelcomeNotForUs},
		{"in the chain, with another list", newest, func(w *WelcomeContent) { w.Cfg = w.Ref }, RuleWelcomeNotForUs},
		{"in the chain of another group", &other, func(*WelcomeContent) {}, RuleFinalNotProven},
		{"nothing shows it", final, func(*WelcomeContent) {}, RuleFinalNotProven},
		{"accepted", final, func(w *WelcomeContent) { w.Accept = accept }, ""},
		{"accepted, with another era", final, func(w *WelcomeContent) { w.Accept, w.Era = accept, 0 }, RuleWelcomeNotForUs},
		{"accepted, with another list", final, func(w *WelcomeContent) { w.Accept, w.Cfg = accept, w.Ref }, RuleWelcomeNotForUs},
		{"accepted under a list that is not shown", &shown, func(w *WelcomeContent) { w.Accept = accept }, RuleFinalNotProven},
		{"a forged accept", final, func(w *WelcomeContent) { w.Accept = &forged }, RuleReceiptForged},
	} {
		t.Run(test.name, func(t *testing.T) {
			welcome := &WelcomeContent{Room: testRoom, Ref: Hash(ref), Cfg: Hash(config), Era: 1}
			test.edit(welcome)
			if err := test.by.CheckWelcome(welcome, b.group); RuleOf(err) != test.want || (err == nil) != (test.want == "") {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestProofChainOfHeirs(t *testing.T) {
	w := newProofWorld(t)
	b, c := newDevice(t, bob, "LAPTOP"), newDevice(t, carol, "TABLET")
	w.join(b, c)
	w.commit(w.g.creator, nil, true, func(p *Policy) {
		p.Heirs = []federation.Heir{{User: string(bob), Server: "example.net"}, {User: string(carol), Server: "example.com"}}
	})
	list := []federation.Sequencer{module(2)}
	sig, err := SignEra(c.group, c.group.OwnLeafIndex(), c.key, 1, w.g.head, list)
	must(t, err)
	aad := &CommitAAD{Era: 1, ByHeirs: true}
	p, err := PolicyOf(b.group)
	must(t, err)
	p.Sequencers = list
	exts, err := GroupExtensions(p, nil)
	must(t, err)
	made := w.g.commit(b, aad, mls.CommitOptions{Proposals: []mls.Proposal{mls.GroupContextExtensions(exts)}, ForcePath: true})
	made.in.Content.CoSignatures = []CoSignature{sig}
	made.in.Content.GroupInfo, err = made.staged.GroupInfo(mls.GroupInfoOptions{})
	must(t, err)
	w.take(made, true)
	w.commit(c, nil, true, nil)
	m := w.modules[1]
	chain := w.chain(1)
	got, err := chain.Check(testRoom, m.SafeHead())
	must(t, err)
	var users []id.UserID
	for _, a := range got.Attested {
		users = append(users, a.User)
	}
	if !slices.Equal(users, []id.UserID{alice, bob, carol}) || got.Era != 1 {
		t.Errorf("era %d rests on devices of %v", got.Era, users)
	}
	for i := range chain.Steps {
		if len(chain.Steps[i].CoSignatures) == 0 {
			continue
		}
		less := copied(t, chain)
		less.Steps[i].CoSignatures = nil
		_, err := less.Check(testRoom, m.SafeHead())
		wantRule(t, err, RuleFinalNotProven)
		forged := copied(t, chain)
		forged.Steps[i].CoSignatures[0].Sig[3] ^= 1
		_, err = forged.Check(testRoom, m.SafeHead())
		wantRule(t, err, RuleEraNotEntitled)
	}
}

func TestRejectedProofChains(t *testing.T) {
	w, b := history(t)
	head := w.modules[1].SafeHead()
	good := w.chain(1)
	other := newProofWorld(t)
	other.g.t = t
	strange := ed25519Key(77)
	const heirs, list, era, final = 0, 1, 2, 3
	sign := func(v *federation.Vote, n uint64) {
		must(t, v.Sign(federation.Scope{Room: string(testRoom)}, ed25519.PrivateKey(ed25519Key(n))))
	}
	for _, test := range []struct {
		name string
		edit func(p *ProofChain)
		rule Rule
	}{
		{"root: not there", func(p *ProofChain) { p.Root = nil }, RuleContentMalformed},
		{"root: a commit", func(p *ProofChain) { p.Root = p.Steps[0].Commit.Message }, RuleContentMalformed},
		{"root: a later epoch", func(p *ProofChain) {
			info, err := b.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true})
			must(t, err)
			p.Root = info
		}, RuleRoomNotGroup},
		{"root: another group", func(p *ProofChain) {
			g := newGroup(t, DefaultPolicy(testRoom, alice, module(2)))
			info, err := g.creator.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true})
			must(t, err)
			p.Root = info
		}, RuleReceiptForged},
		{"root: of another room", func(p *ProofChain) {
			g := newGroup(t, DefaultPolicy(otherRoom, alice, module(1)))
			info, err := g.creator.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true})
			must(t, err)
			p.Root = info
		}, RuleRoomNotGroup},
		{"root: founder is not the creator", func(p *ProofChain) {
			g := newGroup(t, DefaultPolicy(testRoom, bob, module(1)))
			info, err := g.creator.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true})
			must(t, err)
			p.Root = info
		}, RuleSenderNotCredential},
		{"step: left out, a list", func(p *ProofChain) { p.Steps = slices.Delete(p.Steps, list, list+1) }, ""},
		{"step: left out, the era", func(p *ProofChain) { p.Steps = slices.Delete(p.Steps, era, era+1) }, RuleReceiptForged},
		{"step: twice", func(p *ProofChain) { p.Steps = slices.Insert(p.Steps, list, p.Steps[list]) }, RuleParentMismatch},
		{"step: in another order", func(p *ProofChain) { p.Steps[heirs], p.Steps[list] = p.Steps[list], p.Steps[heirs] }, RuleParentMismatch},
		{"step: the final is not there", func(p *ProofChain) { p.Steps = p.Steps[:final] }, RuleParentMismatch},
		{"commit: not there", func(p *ProofChain) { p.Steps[list].Commit.Message = nil }, RuleContentMalformed},
		{"commit: another one", func(p *ProofChain) { p.Steps[list].Commit.Message = p.Steps[final].Commit.Message }, RuleContentMalformed},
		{"commit: a byte of it", func(p *ProofChain) { m := p.Steps[final].Commit.Message; m[len(m)-40] ^= 1 }, RuleReceiptForged},
		{"votes: none", func(p *ProofChain) { p.Steps[final].Votes = nil }, RuleFinalNotProven},
		{"votes: too few", func(p *ProofChain) { p.Steps[final].Votes = p.Steps[final].Votes[:1] }, RuleFinalNotProven},
		{"votes: one twice", func(p *ProofChain) { v := p.Steps[final].Votes; v[1] = v[0] }, RuleReceiptForged},
		{"votes: signature", func(p *ProofChain) { p.Steps[final].Votes[0].Signature[5] ^= 1 }, RuleReceiptForged},
		{"votes: no signature", func(p *ProofChain) { p.Steps[final].Votes[0].Signature = nil }, RuleReceiptForged},
		{"votes: another's key", func(p *ProofChain) { sign(p.Steps[final].Votes[0], 1) }, RuleReceiptForged},
		{"votes: rank", func(p *ProofChain) { p.Steps[final].Votes[0].Voter = 7 }, RuleReceiptForged},
		{"votes: list", func(p *ProofChain) { v := p.Steps[final].Votes[0]; v.Config = w.root; sign(v, 2) }, RuleReceiptForged},
		{"votes: ref", func(p *ProofChain) { v := p.Steps[final].Votes[0]; v.Ref = w.root; sign(v, 2) }, RuleReceiptForged},
		{"votes: two ballots", func(p *ProofChain) {
			v := p.Steps[final].Votes[1]
			v.Ballot = federation.Ballot{Round: 1, Rank: 1}
			sign(v, 3)
		}, RuleReceiptForged},
		{"votes: round 0 of rank 1", func(p *ProofChain) {
			for i, v := range p.Steps[final].Votes {
				v.Ballot = federation.Ballot{Rank: 1}
				sign(v, uint64(i)+2)
			}
		}, RuleReceiptForged},
		{"votes: counter", func(p *ProofChain) { p.Steps[final].Votes[0].Chain.Counter = 0 }, RuleContentMalformed},
		{"votes: previous receipt", func(p *ProofChain) { p.Steps[final].Votes[0].Chain.Prev[1] ^= 1 }, RuleReceiptForged},
		{"votes: of the old list for the new era", func(p *ProofChain) { p.Steps[era].Votes = p.Steps[list].Votes }, RuleContentMalformed},
		{"vouchers: none", func(p *ProofChain) {
			p.Steps[final].Vouchers = nil
			for i, v := range p.Steps[final].Votes {
				v.Proofs = nil
				sign(v, uint64(i)+2)
			}
		}, RuleFinalNotProven},
		{"vouchers: keys are not there", func(p *ProofChain) { p.Steps[final].Keys = nil }, RuleFinalNotProven},
		{"vouchers: another key", func(p *ProofChain) { p.Steps[final].Keys[0].Leaf.Key = strange[32:] }, RuleReceiptForged},
		{"vouchers: group", func(p *ProofChain) { p.Steps[final].Keys[0].Group = []byte("x") }, RuleReceiptForged},
		{"vouchers: suite", func(p *ProofChain) { p.Steps[final].Keys[0].Suite = 2 }, RuleReceiptForged},
		{"vouchers: no suite", func(p *ProofChain) { p.Steps[final].Keys[0].Suite = 0 }, RuleReceiptForged},
		{"above: of somewhere else", func(p *ProofChain) { p.Steps[heirs].Above = p.Path }, RuleParentMismatch},
		{"above: not there", func(p *ProofChain) { p.Steps[heirs].Above = []ProofCommit{{}} }, RuleContentMalformed},
		{"cosignatures where no heirs are", func(p *ProofChain) { p.Steps[list].CoSignatures = []CoSignature{{Sig: Bytes{1}}} }, RuleContentMalformed},
		{"cosignatures at an admin's era", func(p *ProofChain) { p.Steps[era].CoSignatures = []CoSignature{{Sig: Bytes{1}}} }, RuleContentMalformed},
		{"era: context is not there", func(p *ProofChain) { p.Steps[era].Commit.Context = nil }, RuleContentMalformed},
		{"era: another context", func(p *ProofChain) { p.Steps[era].Commit.Context = p.Root }, RuleReceiptForged},
		{"era: the author's key is not there", func(p *ProofChain) {
			p.Steps[era].Keys = slices.DeleteFunc(p.Steps[era].Keys, func(k federation.ProofKey) bool { return k.Leaf.User == string(alice) })
		}, RuleFinalNotProven},
		{"era: another key of the author", func(p *ProofChain) {
			for i := range p.Steps[era].Keys {
				if p.Steps[era].Keys[i].Leaf.User == string(alice) {
					p.Steps[era].Keys[i].Leaf.Key = strange[32:]
				}
			}
		}, RuleReceiptForged},
		{"era: by somebody who is no admin", func(p *ProofChain) {
			for i := range p.Steps[era].Keys {
				if p.Steps[era].Keys[i].Leaf.User == string(alice) {
					p.Steps[era].Keys[i].Leaf.User = string(bob)
				}
			}
		}, RuleFinalNotProven},
		{"era: nobody vouched", func(p *ProofChain) { p.Steps[era].Vouchers, p.Steps[era].Vouching = nil, nil }, RuleFinalNotProven},
		{"path: not there", func(p *ProofChain) { p.Path, p.Accept = nil, nil }, RuleFinalNotProven},
		{"path: with an accept alone", func(p *ProofChain) { p.Path = nil }, RuleFinalNotProven},
		{"path: another commit", func(p *ProofChain) { p.Path[0] = p.Steps[heirs].Commit }, RuleParentMismatch},
		{"path: a commit that is none", func(p *ProofChain) { p.Path[0].Message = []byte{1} }, RuleContentMalformed},
		{"accept: not there", func(p *ProofChain) { p.Accept = nil }, RuleFinalNotProven},
		{"accept: signature", func(p *ProofChain) { p.Accept.Signature[1] ^= 1 }, RuleReceiptForged},
		{"accept: list", func(p *ProofChain) { p.Accept.Config = w.root }, RuleReceiptForged},
		{"accept: ref", func(p *ProofChain) { p.Accept.Ref = w.root }, RuleReceiptForged},
		{"accept: parent", func(p *ProofChain) { p.Accept.Parent = w.root }, RuleReceiptForged},
		{"accept: epoch", func(p *ProofChain) { p.Accept.Epoch++ }, RuleReceiptForged},
		{"accept: counter", func(p *ProofChain) { p.Accept.Chain.Counter = 0 }, RuleReceiptForged},
		{"accept: rank", func(p *ProofChain) { p.Accept.Ballot.Rank = 5 }, RuleReceiptForged},
		{"accept: provisional", func(p *ProofChain) { p.Accept.Provisional = true }, RuleReceiptForged},
		{"accept: a round without promises", func(p *ProofChain) {
			p.Accept.Ballot = federation.Ballot{Round: 1, Rank: 1}
			must(t, p.Accept.Sign(federation.Scope{Room: string(testRoom)}, ed25519.PrivateKey(ed25519Key(3))))
		}, RuleReceiptForged},
		{"accept: a promise of another ballot", func(p *ProofChain) {
			p.Accept.Ballot = federation.Ballot{Round: 1, Rank: 1}
			p.Accept.Promises = []*federation.Promise{{Config: p.Accept.Config, Ballot: federation.Ballot{Round: 2}}}
			must(t, p.Accept.Sign(federation.Scope{Room: string(testRoom)}, ed25519.PrivateKey(ed25519Key(3))))
		}, RuleReceiptForged},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := copied(t, good)
			test.edit(p)
			got, err := p.Check(testRoom, head)
			if test.rule == "" { // what else is checked then: by the head's own list
				if err == nil && got.Config == w.modules[1].ProofChain().Steps[1].Ref {
					t.Error("a list that was left out is in force")
				}
				return
			}
			wantRule(t, err, test.rule)
		})
	}
	t.Run("of another room", func(t *testing.T) {
		_, err := good.Check(otherRoom, head)
		wantRule(t, err, RuleRoomNotGroup)
	})
	t.Run("for another commit", func(t *testing.T) {
		_, err := good.Check(testRoom, w.root)
		wantRule(t, err, RuleFinalNotProven)
	})
}

// TestProofChainReceiptForms: what a chain holds is an event, so the rules for the form
// of events hold for it. Who signed it is no excuse.
func TestProofChainReceiptForms(t *testing.T) {
	w, _ := history(t)
	good := w.chain(1)
	some := federation.Ref{7}
	for _, test := range []struct {
		name string
		edit func(v *federation.Vote, a *federation.Accept, s *ProofStep)
		ok   bool
	}{
		{"as it is", func(*federation.Vote, *federation.Accept, *ProofStep) {}, true},
		{"vote: the highest number", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) {
			v.Chain.Counter, v.Ballot.Round = 1<<53-1, 1<<53-1
		}, true},
		{"vote: no counter", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) { v.Chain.Counter = 0 }, false},
		{"vote: a counter that JSON does not hold", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) { v.Chain.Counter = 1 << 53 }, false},
		{"vote: a huge counter", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) { v.Chain.Counter = 1 << 60 }, false},
		{"vote: the first receipt after another", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) {
			v.Chain = federation.Chain{Counter: 1, Prev: some}
		}, false},
		{"vote: the second receipt after none", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) {
			v.Chain = federation.Chain{Counter: 2}
		}, false},
		{"vote: round", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) { v.Ballot.Round = 1 << 53 }, false},
		{"vote: rank of its ballot", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) {
			v.Ballot = federation.Ballot{Round: 1, Rank: 16}
		}, false},
		{"vote: round 0 of rank 1", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) { v.Ballot = federation.Ballot{Rank: 1} }, false},
		{"vote: voter", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) { v.Voter = 16 }, false},
		{"vote: no list", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) { v.Config = federation.Ref{} }, false},
		{"vote: no commit", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) { v.Ref = federation.Ref{} }, false},
		{"vote: signature", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) { v.Signature = v.Signature[:63] }, false},
		{"vote: a proof of nothing", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) { v.Proofs = []federation.Proof{{}} }, false},
		{"vote: a statement without a signature", func(v *federation.Vote, _ *federation.Accept, _ *ProofStep) {
			v.Proofs = []federation.Proof{{Applied: &federation.Applied{Ref: some, Hash: some}}}
		}, false},
		{"accept: a counter that JSON does not hold", func(_ *federation.Vote, a *federation.Accept, _ *ProofStep) { a.Chain.Counter = 1 << 53 }, false},
		{"accept: the first receipt after another", func(_ *federation.Vote, a *federation.Accept, _ *ProofStep) {
			a.Chain = federation.Chain{Counter: 1, Prev: some}
		}, false},
		{"accept: epoch", func(_ *federation.Vote, a *federation.Accept, _ *ProofStep) { a.Epoch = 1 << 53 }, false},
		{"accept: round", func(_ *federation.Vote, a *federation.Accept, _ *ProofStep) { a.Ballot.Round = 1 << 53 }, false},
		{"accept: provisional in a round", func(_ *federation.Vote, a *federation.Accept, _ *ProofStep) {
			a.Provisional, a.Ballot.Round = true, 1
		}, false},
		{"accept: promises in round 0", func(_ *federation.Vote, a *federation.Accept, _ *ProofStep) {
			a.Promises = []*federation.Promise{promiseOn(a, 1)}
		}, false},
		{"accept: a promise", func(_ *federation.Vote, a *federation.Accept, _ *ProofStep) {
			a.Ballot.Round = 1
			a.Promises = []*federation.Promise{promiseOn(a, 1)}
		}, true},
		{"accept: a promise with a huge counter", func(_ *federation.Vote, a *federation.Accept, _ *ProofStep) {
			a.Ballot.Round = 1
			a.Promises = []*federation.Promise{promiseOn(a, 1<<53)}
		}, false},
		{"accept: a promise of a vote in a huge epoch", func(_ *federation.Vote, a *federation.Accept, _ *ProofStep) {
			a.Ballot.Round = 1
			a.Promises = []*federation.Promise{promiseOn(a, 1)}
			a.Promises[0].LastVote = &federation.LastVote{Ref: some, Epoch: 1 << 53}
		}, false},
		{"accept: a vote with a huge counter", func(v *federation.Vote, a *federation.Accept, _ *ProofStep) {
			huge := *v
			huge.Chain.Counter = 1 << 53
			a.Votes = []*federation.Vote{&huge}
		}, false},
		{"accept: nine votes", func(v *federation.Vote, a *federation.Accept, _ *ProofStep) {
			a.Votes = slices.Repeat([]*federation.Vote{v}, 9)
		}, false},
		{"statement: no commit", func(_ *federation.Vote, _ *federation.Accept, s *ProofStep) {
			s.Vouchers = append(s.Vouchers, federation.Proof{Applied: &federation.Applied{Hash: some, Signature: []byte{1}}})
		}, false},
		{"statement: no hash", func(_ *federation.Vote, _ *federation.Accept, s *ProofStep) {
			s.Vouchers = append(s.Vouchers, federation.Proof{Applied: &federation.Applied{Ref: some, Signature: []byte{1}}})
		}, false},
		{"statement: whole", func(_ *federation.Vote, _ *federation.Accept, s *ProofStep) {
			s.Vouchers = append(s.Vouchers, federation.Proof{Applied: &federation.Applied{Ref: some, Hash: some, Signature: []byte{1}}})
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := copied(t, good)
			s := &p.Steps[len(p.Steps)-1]
			test.edit(s.Votes[0], p.Accept, s)
			_, err := DecodeProof(p.Encode())
			if test.ok {
				must(t, err)
			} else {
				wantRule(t, err, RuleContentMalformed)
			}
		})
	}
}

// promiseOn is a promise for the ballot of an accept.
func promiseOn(a *federation.Accept, counter uint64) *federation.Promise {
	p := &federation.Promise{Config: a.Config, Ballot: a.Ballot, Chain: federation.Chain{Counter: counter}, Signature: make([]byte, 64)}
	if p.Ballot.Round == 0 {
		p.Ballot.Round = 1
	}
	if counter > 1 {
		p.Chain.Prev = federation.Ref{7}
	}
	return p
}

// TestHeadsHoldWhatJSONHolds: no module posts a head that homeservers refuse for its
// numbers.
func TestHeadsHoldWhatJSONHolds(t *testing.T) {
	head := func() *HeadContent {
		ref := func() *EventRef { return &EventRef{Ref: Hash{1}, Event: "$event", Epoch: 1<<53 - 1} }
		return &HeadContent{
			Version: Version, ReceiptKey: make(Bytes, 32), Era: 1<<53 - 1, Accepted: ref(), Final: ref(), Root: ref(),
			Receipts: []ReceiptRef{{Key: make(Bytes, 32), Counter: 1<<53 - 1, Hash: Hash{1}}},
		}
	}
	raw, err := Encode(head())
	must(t, err)
	_, err = DecodeHead(raw)
	must(t, err)
	for name, edit := range map[string]func(h *HeadContent){
		"counter": func(h *HeadContent) { h.Receipts[0].Counter++ }, "era": func(h *HeadContent) { h.Era++ },
		"epoch": func(h *HeadContent) { h.Accepted.Epoch++ },
	} {
		h := head()
		edit(h)
		if raw, err := Encode(h); err == nil {
			t.Errorf("%s: encoded as %s", name, raw)
		}
	}
}

// TestProofChainBits flips bits all over a chain: it then fails, or shows the
// same.
func TestProofChainBits(t *testing.T) {
	w, _ := history(t)
	head := w.modules[1].SafeHead()
	raw := w.chain(1).Encode()
	want, err := w.chain(1).Check(testRoom, head)
	must(t, err)
	stride := len(raw) / 400
	for at := 0; at < len(raw); at += stride {
		bad := slices.Clone(raw)
		bad[at] ^= 1 << (at % 8)
		p, err := DecodeProof(bad)
		if err != nil {
			continue
		}
		if got, err := p.Check(testRoom, head); err == nil {
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("byte %d: (-want +got):\n%s", at, diff)
			}
		}
	}
	for n := range 200 {
		if _, err := DecodeProof(raw[:len(raw)*n/200]); err == nil {
			t.Errorf("accepted after %d of %d bytes", len(raw)*n/200, len(raw))
		}
	}
	_, err = DecodeProof(append(slices.Clone(raw), 0))
	wantRule(t, err, RuleContentMalformed)
}

// FuzzProofChain: whatever decodes has one encoding, and checking it neither
// panics nor runs on. Its corpus holds a whole chain.
func FuzzProofChain(f *testing.F) {
	f.Add([]byte{proofVersion})
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := DecodeProof(raw)
		if err != nil {
			return
		}
		if got := p.Encode(); string(got) != string(raw) {
			t.Fatal("two encodings of one chain")
		}
		if got, err := p.Check(testRoom, federation.Ref{}); err == nil && len(got.Attested) == 0 {
			t.Fatal("a chain that rests on nobody")
		}
	})
}
