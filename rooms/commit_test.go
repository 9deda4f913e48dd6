package rooms

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

func TestCommitFactsOfMembers(t *testing.T) {
	g := newGroup(t, testPolicy())
	b, c := newDevice(t, bob, "LAPTOP"), newDevice(t, carol, "TABLET")
	g.add(b, c)

	// Bob removes Carol and adds another device of Alice.
	a2 := newDevice(t, alice, "WEB")
	m := g.commit(b, nil, mls.CommitOptions{Proposals: []mls.Proposal{mls.Remove(c.group.OwnLeafIndex()), mls.Add(a2.keyPackage())}})
	got, err := CheckCommit(m.in)
	if err != nil {
		t.Fatal(err)
	}
	want := &federation.Commit{
		Ref: m.in.Ref, Parent: g.head, EventID: "$commit", Epoch: 2, Author: 1, AuthorUser: string(bob),
		Removed: []uint32{2}, Added: []federation.Leaf{{Index: 2, User: string(alice), Key: a2.cred.Key}},
	}
	if diff := cmp.Diff(want, got.Commit); diff != "" {
		t.Errorf("facts differ (-want +got):\n%s", diff)
	}
	if len(got.Admitted) != 0 {
		t.Errorf("admitted %v, want nobody: Alice is a member", got.Admitted)
	}
	if got.Author.Device != "LAPTOP" || len(got.Removed) != 1 || got.Removed[0].Cred.User != carol {
		t.Errorf("author %v removed %v", got.Author, got.Removed)
	}
}

func TestCommitFactsAgreeForModuleAndMember(t *testing.T) {
	g := newGroup(t, testPolicy())
	b := newDevice(t, bob, "LAPTOP")
	info, err := g.creator.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	must(t, err)
	gi, err := mls.ParseMessage(info)
	must(t, err)
	public, err := mls.NewPublicGroup(testConfig(7), gi, nil)
	must(t, err)

	m := g.commit(g.creator, &CommitAAD{Admissions: []Admission{*g.admit(g.creator, bob)}}, mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(b.keyPackage())}, ForcePath: true})
	member, err := CheckCommit(m.in)
	must(t, err)
	msg, err := mls.ParseMessage(m.staged.Message())
	must(t, err)
	p, err := public.Process(msg)
	must(t, err)
	staged := p.(*mls.PublicStagedCommit)
	in := m.in
	in.Tree, in.Staged, in.Next = public, staged, staged.Merge()
	module, err := CheckCommit(in)
	must(t, err)
	if diff := cmp.Diff(member.Commit, module.Commit); diff != "" {
		t.Errorf("member and module see different facts (-member +module):\n%s", diff)
	}
	if by := module.Admitted[bob]; by != alice {
		t.Errorf("bob admitted by %q, want alice", by)
	}
}

func TestCommitFactsOfExternalJoin(t *testing.T) {
	g := newGroup(t, testPolicy())
	g.add(newDevice(t, bob, "LAPTOP"))
	info, err := g.creator.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	must(t, err)
	gi, err := mls.ParseMessage(info)
	must(t, err)
	join := func(d *testDevice, aad *CommitAAD, resync *mls.LeafIndex) *made {
		aad.Parent = g.head
		raw, err := aad.Encode()
		must(t, err)
		staged, err := mls.ExternalJoin(d.cfg, gi, d.key, mls.ExternalJoinOptions{Leaf: LeafOptions(d.cred), AuthenticatedData: raw, Resync: resync})
		must(t, err)
		return g.input(d, staged, g.creator.group)
	}

	c := newDevice(t, carol, "TABLET")
	t.Run("with admission", func(t *testing.T) {
		m := join(c, &CommitAAD{Admissions: []Admission{*g.admit(g.creator, carol)}}, nil)
		got, err := CheckCommit(m.in)
		must(t, err)
		if !got.Commit.External || got.Commit.Author != 2 || !slices.Equal(got.Commit.Removed, nil) || len(got.Commit.Added) != 1 || got.Rejoin {
			t.Errorf("facts %+v", got.Commit)
		}
	})
	t.Run("without admission", func(t *testing.T) {
		_, err := CheckCommit(join(c, &CommitAAD{}, nil).in)
		wantRule(t, err, RuleAddWithoutAdmission)
	})
	t.Run("new device of a member", func(t *testing.T) {
		if _, err := CheckCommit(join(newDevice(t, bob, "WEB"), &CommitAAD{}, nil).in); err != nil {
			t.Error(err)
		}
	})
	t.Run("resync", func(t *testing.T) {
		old := mls.LeafIndex(1)
		m := join(newDevice(t, bob, "LAPTOP"), &CommitAAD{}, &old)
		got, err := CheckCommit(m.in)
		must(t, err)
		if !got.Rejoin || !slices.Equal(got.Commit.Removed, []uint32{1}) || got.Commit.Author != 1 {
			t.Errorf("rejoin %v, facts %+v", got.Rejoin, got.Commit)
		}
	})
}

func TestCommitFactsOfNewKeys(t *testing.T) {
	g := newGroup(t, testPolicy())
	b := newDevice(t, bob, "LAPTOP")
	g.add(b)
	t.Run("of the committer", func(t *testing.T) {
		key, err := mls.GenerateSignatureKey(testSuite, newSeed(5))
		must(t, err)
		leaf := LeafOptions(Credential{bob, "LAPTOP", key.Public()})
		got, err := CheckCommit(g.commit(b, nil, mls.CommitOptions{NewSignatureKey: &key, Leaf: &leaf}).in)
		must(t, err)
		if want := []federation.Leaf{{Index: 1, User: string(bob), Key: key.Public()}}; !cmp.Equal(got.Commit.Updated, want) {
			t.Errorf("updated %+v, want %+v", got.Commit.Updated, want)
		}
	})
	t.Run("an Update proposal of a member", func(t *testing.T) {
		raw, _, err := b.group.ProposeUpdate(nil, mls.FramingOptions{AuthenticatedData: MessageAAD{Head: g.head}.Encode()})
		must(t, err)
		m, err := mls.ParseMessage(raw)
		must(t, err)
		_, err = g.creator.group.Process(m)
		must(t, err)
		got, err := CheckCommit(g.commit(g.creator, nil, mls.CommitOptions{Pending: true}).in)
		must(t, err)
		if len(got.Commit.Updated) != 0 || len(got.Commit.Added) != 0 {
			t.Errorf("facts %+v, want no change of keys", got.Commit)
		}
	})
}

func TestCommitChangesPolicy(t *testing.T) {
	g := newGroup(t, testPolicy())
	b := newDevice(t, bob, "LAPTOP")
	g.add(b)
	change := func(edit func(*Policy)) mls.CommitOptions {
		p := testPolicy()
		edit(p)
		exts := slices.Clone(g.creator.group.Extensions())
		data, err := p.Encode()
		must(t, err)
		for i := range exts {
			if exts[i].Type == ExtensionPolicy {
				exts[i].Data = data
			}
		}
		return mls.CommitOptions{Proposals: []mls.Proposal{mls.GroupContextExtensions(exts)}}
	}
	t.Run("by the admin", func(t *testing.T) {
		got, err := CheckCommit(g.commit(g.creator, nil, change(func(p *Policy) { p.Admins = append(p.Admins, bob) })).in)
		must(t, err)
		if got.Commit.Policy == nil || !slices.Equal(got.Commit.Policy.Admins, []string{string(alice), string(bob)}) || !got.Policy.IsAdmin(bob) {
			t.Errorf("policy %+v", got.Commit.Policy)
		}
	})
	t.Run("unchanged", func(t *testing.T) {
		got, err := CheckCommit(g.commit(b, nil, change(func(*Policy) {})).in)
		must(t, err)
		if got.Commit.Policy != nil {
			t.Errorf("policy %+v, want none", got.Commit.Policy)
		}
	})
	t.Run("by a member", func(t *testing.T) {
		_, err := CheckCommit(g.commit(b, nil, change(func(p *Policy) { p.Admins = append(p.Admins, bob) })).in)
		wantRule(t, err, RulePolicyNotEntitled)
	})
	t.Run("to another room", func(t *testing.T) {
		_, err := CheckCommit(g.commit(g.creator, nil, change(func(p *Policy) { p.Room = otherRoom })).in)
		wantRule(t, err, RuleRoomNotGroup)
	})
	t.Run("without policy", func(t *testing.T) {
		o := change(func(*Policy) {})
		o.Proposals[0].Extensions = slices.DeleteFunc(o.Proposals[0].Extensions, func(e mls.Extension) bool { return e.Type == ExtensionPolicy })
		_, err := CheckCommit(g.commit(g.creator, nil, o).in)
		wantRule(t, err, RulePolicyMalformed)
	})
	t.Run("without the duty to support it", func(t *testing.T) {
		o := change(func(*Policy) {})
		o.Proposals[0].Extensions = slices.DeleteFunc(o.Proposals[0].Extensions, func(e mls.Extension) bool { return e.Type == mls.ExtensionTypeRequiredCapabilities })
		_, err := CheckCommit(g.commit(g.creator, nil, o).in)
		wantRule(t, err, RulePolicyMalformed)
	})
	t.Run("external senders by a member", func(t *testing.T) {
		o := change(func(*Policy) {})
		o.Proposals[0].Extensions = slices.DeleteFunc(o.Proposals[0].Extensions, func(e mls.Extension) bool { return e.Type == mls.ExtensionTypeExternalSenders })
		_, err := CheckCommit(g.commit(b, nil, o).in)
		wantRule(t, err, RulePolicyNotEntitled)
	})
}

func TestEras(t *testing.T) {
	p := testPolicy()
	p.Heirs = []federation.Heir{{User: string(bob), Server: "example.net"}, {User: string(carol), Server: "example.com"}}
	g := newGroup(t, p)
	b, c := newDevice(t, bob, "LAPTOP"), newDevice(t, carol, "TABLET")
	g.add(b, c)
	next := *p
	next.Sequencers = []federation.Sequencer{{Server: "example.net", User: "@_mls_bot:example.net", ReceiptKey: []byte(ed25519Key(2)[32:])}}
	options := func(p *Policy) mls.CommitOptions {
		exts := slices.Clone(g.creator.group.Extensions())
		data, err := p.Encode()
		must(t, err)
		for i := range exts {
			if exts[i].Type == ExtensionPolicy {
				exts[i].Data = data
			}
		}
		return mls.CommitOptions{Proposals: []mls.Proposal{mls.GroupContextExtensions(exts)}}
	}
	t.Run("by an admin", func(t *testing.T) {
		got, err := CheckCommit(g.commit(g.creator, &CommitAAD{Era: 1}, options(&next)).in)
		must(t, err)
		if want := (&federation.Era{Number: 1, Signers: []string{string(alice)}}); !cmp.Equal(got.Commit.Era, want) {
			t.Errorf("era %+v, want %+v", got.Commit.Era, want)
		}
	})
	t.Run("by a member", func(t *testing.T) {
		_, err := CheckCommit(g.commit(b, &CommitAAD{Era: 1}, mls.CommitOptions{}).in)
		wantRule(t, err, RuleEraNotEntitled)
	})
	t.Run("by heirs", func(t *testing.T) {
		m := g.commit(b, &CommitAAD{Era: 1, ByHeirs: true}, options(&next))
		s, err := SignEra(c.group, c.group.OwnLeafIndex(), c.key, 1, g.head, next.Sequencers)
		must(t, err)
		m.in.Content.CoSignatures = []CoSignature{s}
		got, err := CheckCommit(m.in)
		must(t, err)
		if want := []string{string(bob), string(carol)}; !slices.Equal(got.Commit.Era.Signers, want) {
			t.Errorf("signers %v, want %v", got.Commit.Era.Signers, want)
		}
		s.Sig[5] ^= 1
		_, err = CheckCommit(m.in)
		wantRule(t, err, RuleEraNotEntitled)
	})
	t.Run("by heirs, begun by someone who is none", func(t *testing.T) {
		m := g.commit(g.creator, &CommitAAD{Era: 1, ByHeirs: true}, options(&next))
		s, err := SignEra(c.group, c.group.OwnLeafIndex(), c.key, 1, g.head, next.Sequencers)
		must(t, err)
		m.in.Content.CoSignatures = []CoSignature{s}
		_, err = CheckCommit(m.in)
		wantRule(t, err, RuleEraNotEntitled)
	})
	t.Run("heirs change more than the list", func(t *testing.T) {
		more := next
		more.Window = 3
		_, err := CheckCommit(g.commit(b, &CommitAAD{Era: 1, ByHeirs: true}, options(&more)).in)
		wantRule(t, err, RulePolicyNotEntitled)
	})
}

func TestOnlyRemoves(t *testing.T) {
	g := newGroup(t, testPolicy())
	b, c := newDevice(t, bob, "LAPTOP"), newDevice(t, carol, "TABLET")
	g.add(b, c)
	gone := func(u id.UserID) bool { return u == carol }
	for _, test := range []struct {
		name string
		o    mls.CommitOptions
		want bool
	}{
		{"remove of who left", mls.CommitOptions{Proposals: []mls.Proposal{mls.Remove(2)}}, true},
		{"remove of who stayed", mls.CommitOptions{Proposals: []mls.Proposal{mls.Remove(1)}}, false},
		{"path only", mls.CommitOptions{}, false},
		{"remove and add", mls.CommitOptions{Proposals: []mls.Proposal{mls.Remove(2), mls.Add(newDevice(t, alice, "WEB").keyPackage())}}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := g.commit(g.creator, nil, test.o)
			m.in.View.Gone = gone
			got, err := CheckCommit(m.in)
			must(t, err)
			if got.Commit.OnlyRemoves != test.want {
				t.Errorf("OnlyRemoves %v, want %v", got.Commit.OnlyRemoves, test.want)
			}
		})
	}
}

func TestBaseFactsStartAMachine(t *testing.T) {
	g := newGroup(t, testPolicy())
	base, err := BaseFacts(g.creator.group, g.head, "$root", 0, federation.Ref{})
	must(t, err)
	m, err := federation.New(federation.Config{Room: string(testRoom), Verify: VerifyLeafSignature}, base)
	must(t, err)
	b := newDevice(t, bob, "LAPTOP")
	c := g.commit(g.creator, &CommitAAD{Admissions: []Admission{*g.admit(g.creator, bob)}}, mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(b.keyPackage())}})
	got, err := CheckCommit(c.in)
	must(t, err)
	if _, err := m.Step(got.Commit); err != nil {
		t.Fatal(err)
	}
	if _, known := m.Known(c.in.Ref); !known {
		t.Error("the machine does not hold the commit")
	}
}

// TestFoundingCommit closes a group by ReInit and founds its successor, as a
// change of the cipher suite does.
func TestFoundingCommit(t *testing.T) {
	g := newGroup(t, testPolicy())
	b := newDevice(t, bob, "LAPTOP")
	g.add(b)
	p := testPolicy()
	p.Predecessor = &Predecessor{Group: g.creator.group.GroupID(), Room: testRoom, Ref: Hash(g.head)}
	exts, err := GroupExtensions(p, nil)
	must(t, err)
	reinit := &mls.ReInit{GroupID: slices.Repeat([]byte{7}, 32), Version: mls.MLS10, CipherSuite: testSuite, Extensions: exts}
	closing := g.commit(g.creator, nil, mls.CommitOptions{Proposals: []mls.Proposal{reinit.Proposal()}})
	fresh := nextPackage(t, 12, b, testSuite)
	closing.in.Content.KeyPackages = []Bytes{fresh, nextPackage(t, 13, g.creator, testSuite)}
	_, err = CheckCommit(closing.in)
	must(t, err)
	g.merge(closing)

	kp, err := mls.ParseMessage(fresh)
	must(t, err)
	founder := g.creator
	found := func(parent federation.Ref) (CommitInput, Tree) {
		staged, err := g.creator.group.ReInitGroup(founder.key, LeafOptions(founder.cred), []*mls.KeyPackage{kp.KeyPackage()}, mls.CommitOptions{})
		must(t, err)
		info, err := staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true, Extensions: []mls.Extension{FoundingExtension(parent)}})
		must(t, err)
		m, err := mls.ParseMessage(info)
		must(t, err)
		ref, err := RootRef(m)
		must(t, err)
		next, err := mls.NewPublicGroup(testConfig(13), m, staged.Merge().RatchetTree())
		must(t, err)
		return CommitInput{
			Room: testRoom, Sender: alice, Event: "$f", Ref: ref, Tree: g.creator.group, Parent: g.head,
			Content: &CommitContent{Epoch: 1, Parent: Hash(g.head), Founding: true, GroupInfo: info},
		}, next
	}
	in, next := found(g.head)
	got, err := CheckFounding(in, g.creator.group.ReInit(), next)
	must(t, err)
	if got.Founding == nil || len(got.Founding.Leaves) != 2 || got.Founding.Suite != uint16(testSuite) || got.AuthorUser != string(alice) || got.Epoch != 1 {
		t.Errorf("facts %+v", got)
	}
	for name, test := range map[string]struct {
		edit    func(*CommitInput)
		closing *mls.ReInit
		rule    Rule
	}{
		"nothing was closed": {func(*CommitInput) {}, nil, RuleParentMismatch},
		"another ReInit":     {func(*CommitInput) {}, &mls.ReInit{GroupID: []byte{1}, CipherSuite: testSuite}, RuleParentMismatch},
		"another sender":     {func(in *CommitInput) { in.Sender = bob }, reinit, RuleSenderNotCredential},
		"another room":       {func(in *CommitInput) { in.Room = otherRoom }, reinit, RuleRoomNotGroup},
		"another parent":     {func(in *CommitInput) { in.Parent[0]++; in.Content.Parent[0]++ }, reinit, RuleParentMismatch},
		"another epoch":      {func(in *CommitInput) { in.Content.Epoch = 2 }, reinit, RuleParentMismatch},
		"no GroupInfo":       {func(in *CommitInput) { in.Content.GroupInfo = nil }, reinit, RuleContentMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			edited := in
			content := *in.Content
			edited.Content = &content
			test.edit(&edited)
			_, err := CheckFounding(edited, test.closing, next)
			wantRule(t, err, test.rule)
		})
	}
	t.Run("signed for another parent", func(t *testing.T) {
		in, next := found(federation.Ref{1})
		_, err := CheckFounding(in, reinit, next)
		wantRule(t, err, RuleParentMismatch)
	})
	// Another key in the founder's name, as its server can make one, or a new
	// suite needs one.
	founder = newDevice(t, alice, "OTHER")
	founder.cred.Device = g.creator.cred.Device
	in, next = found(g.head)
	for name, test := range map[string]struct {
		by   *testDevice
		leaf mls.LeafIndex
		ref  federation.Ref
		rule Rule
	}{
		"a new key without consent":           {nil, 0, in.Ref, RuleFounderUnproven},
		"a new key, consent by itself":        {founder, 0, in.Ref, RuleFounderUnproven},
		"a new key, consent by another user":  {b, 1, in.Ref, RuleFounderUnproven},
		"a new key, consent to another group": {g.creator, 0, g.head, RuleFounderUnproven},
		"a new key, consent by no leaf":       {g.creator, 9, in.Ref, RuleFounderUnproven},
		"a new key, consent by the old leaf":  {g.creator, 0, in.Ref, ""},
	} {
		t.Run(name, func(t *testing.T) {
			content := *in.Content
			edited := in
			edited.Content = &content
			if test.by != nil {
				s, err := SignFounding(g.creator.group, test.leaf, test.by.key, g.head, test.ref)
				must(t, err)
				content.CoSignatures = []CoSignature{s}
			}
			_, err := CheckFounding(edited, reinit, next)
			if test.rule == "" {
				must(t, err)
			} else {
				wantRule(t, err, test.rule)
			}
		})
	}
}

// TestOpinionsKeepTheFacts checks that what one member alone refuses still goes
// to the ordering of commits, and what all refuse does not.
func TestOpinionsKeepTheFacts(t *testing.T) {
	g := newGroup(t, testPolicy())
	b := newDevice(t, bob, "LAPTOP")
	g.add(b)
	remove := g.commit(b, nil, mls.CommitOptions{Proposals: []mls.Proposal{mls.Remove(0)}})
	remove.in.View.MayRemove = func(id.UserID, GroupLeaf) bool { return false }
	again := g.commit(g.creator, &CommitAAD{Admissions: []Admission{*g.admit(b, carol)}}, mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(newDevice(t, carol, "X").keyPackage())}})
	again.in.View.RemovedSince = func(id.UserID, federation.Ref) bool { return true }
	for name, test := range map[string]struct {
		m    *made
		rule Rule
	}{
		"remove without reason": {remove, RuleRemoveNotEntitled},
		"removed since":         {again, RuleAddWithoutAdmission},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := CheckCommit(test.m.in)
			wantRule(t, err, test.rule)
			if got == nil || got.Commit == nil || !IsOpinion(err) {
				t.Fatalf("result %v, opinion %v", got, IsOpinion(err))
			}
			test.m.in.View = View{}
			plain, err := CheckCommit(test.m.in)
			must(t, err)
			if diff := cmp.Diff(plain.Commit, got.Commit); diff != "" {
				t.Errorf("an opinion changes the facts:\n%s", diff)
			}
		})
	}
	t.Run("own devices need no reason", func(t *testing.T) {
		own := newDevice(t, bob, "KITCHEN")
		g.add(own)
		m := g.commit(b, nil, mls.CommitOptions{Proposals: []mls.Proposal{mls.Remove(own.group.OwnLeafIndex())}})
		m.in.View.MayRemove = func(id.UserID, GroupLeaf) bool { return false }
		_, err := CheckCommit(m.in)
		must(t, err)
	})
	t.Run("what all refuse", func(t *testing.T) {
		m := g.commit(b, nil, mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(newDevice(t, carol, "X").keyPackage())}})
		got, err := CheckCommit(m.in)
		wantRule(t, err, RuleAddWithoutAdmission)
		if got != nil || IsOpinion(err) {
			t.Errorf("result %v, opinion %v", got, IsOpinion(err))
		}
	})
	t.Run("the next epoch is found without help", func(t *testing.T) {
		info, err := g.creator.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true, ExternalPub: true})
		must(t, err)
		gi, err := mls.ParseMessage(info)
		must(t, err)
		public, err := mls.NewPublicGroup(testConfig(7), gi, nil)
		must(t, err)
		aad := &CommitAAD{Parent: g.head}
		raw, err := aad.Encode()
		must(t, err)
		d := newDevice(t, bob, "WEB")
		staged, err := mls.ExternalJoin(d.cfg, gi, d.key, mls.ExternalJoinOptions{Leaf: LeafOptions(d.cred), AuthenticatedData: raw})
		must(t, err)
		m := g.input(d, staged, public)
		msg, err := mls.ParseMessage(staged.Message())
		must(t, err)
		p, err := public.Process(msg)
		must(t, err)
		m.in.Staged, m.in.Next = p.(*mls.PublicStagedCommit), nil
		got, err := CheckCommit(m.in)
		must(t, err)
		if got.Author.Device != "WEB" {
			t.Errorf("author %v", got.Author)
		}
	})
}
