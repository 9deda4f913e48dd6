package rooms

import (
	"crypto/ed25519"
	"slices"
	"testing"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// nextPackage makes a key package of a device for another group.
func nextPackage(t *testing.T, seed uint64, d *testDevice, cs mls.CipherSuite) Bytes {
	t.Helper()
	key, cred := d.key, d.cred
	if cs != testSuite {
		var err error
		key, err = mls.GenerateSignatureKey(cs, newSeed(seed))
		must(t, err)
		cred.Key = key.Public()
	}
	b, err := mls.NewKeyPackage(testConfig(seed), cs, key, LeafOptions(cred))
	must(t, err)
	return b.Message()
}

// TestReInit checks who may close a group for another suite, and what such a
// commit has to bring.
func TestReInit(t *testing.T) {
	const next = mls.MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519
	old := testPolicy()
	old.SuiteFloor = []Suite{testSuite, next}
	g := newGroup(t, old)
	b := newDevice(t, bob, "LAPTOP")
	g.add(b)
	packages := []Bytes{nextPackage(t, 20, b, next), nextPackage(t, 21, g.creator, next)}
	stranger := nextPackage(t, 22, newDevice(t, carol, "PHONE"), next)
	second := nextPackage(t, 23, newDevice(t, bob, "PHONE"), next)
	foreign := nextPackage(t, 24, b, testSuite)
	for name, test := range map[string]struct {
		by       *testDevice
		packages []Bytes
		policy   func(p *Policy)
		edit     func(r *mls.ReInit)
		rule     Rule
	}{
		"by an admin":                  {},
		"by a member":                  {by: b, rule: RulePolicyNotEntitled},
		"without key packages":         {packages: []Bytes{}, rule: RuleFoundingIncomplete},
		"a device without key package": {packages: packages[:1], rule: RuleFoundingIncomplete},
		"one more user":                {packages: append(packages[:2:2], stranger), rule: RuleAddWithoutAdmission},
		"one more device":              {packages: append(packages[:2:2], second), rule: RuleAddWithoutAdmission},
		"a key package twice":          {packages: append(packages[:2:2], packages[0]), rule: RuleAddWithoutAdmission},
		"of another suite":             {packages: []Bytes{foreign, packages[1]}, rule: RuleContentMalformed},
		"no key package":               {packages: []Bytes{{1}, packages[1]}, rule: RuleContentMalformed},
		"another room":                 {policy: func(p *Policy) { p.Room = otherRoom }, rule: RuleRoomNotGroup},
		"another creator":              {policy: func(p *Policy) { p.Creator = bob }, rule: RulePolicyNotEntitled},
		"other modules":                {policy: func(p *Policy) { p.Sequencers[0].ReceiptKey[0]++ }, rule: RulePolicyNotEntitled},
		"no predecessor":               {policy: func(p *Policy) { p.Predecessor = nil }, rule: RuleParentMismatch},
		"another predecessor":          {policy: func(p *Policy) { p.Predecessor.Ref[0]++ }, rule: RuleParentMismatch},
		"another group before it":      {policy: func(p *Policy) { p.Predecessor.Group[0]++ }, rule: RuleParentMismatch},
		"another setting":              {policy: func(p *Policy) { p.Window++ }},
		"a short group id":             {edit: func(r *mls.ReInit) { r.GroupID = []byte{1} }, rule: RuleContentMalformed},
		"the same group id":            {edit: func(r *mls.ReInit) { r.GroupID = g.creator.group.GroupID() }, rule: RuleContentMalformed},
		"a suite below the floor":      {edit: func(r *mls.ReInit) { r.CipherSuite = 2 }, rule: RuleNoCommonSuite},
		"no policy":                    {edit: func(r *mls.ReInit) { r.Extensions = nil }, rule: RulePolicyMalformed},
		"no duty to the policy": {edit: func(r *mls.ReInit) {
			r.Extensions = slices.DeleteFunc(slices.Clone(r.Extensions), func(e mls.Extension) bool { return e.Type == mls.ExtensionTypeRequiredCapabilities })
		}, rule: RulePolicyMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			if test.by == nil {
				test.by = g.creator
			}
			if test.packages == nil {
				test.packages = packages
			}
			p := old.Successor(g.creator.group.GroupID(), g.head)
			if test.policy != nil {
				test.policy(p)
			}
			r, err := NewReInit(p, slices.Repeat([]byte{7}, GroupIDSize), next, nil)
			must(t, err)
			if test.edit != nil {
				test.edit(r)
			}
			m := g.commit(test.by, nil, mls.CommitOptions{Proposals: []mls.Proposal{r.Proposal()}})
			m.in.Content.KeyPackages = test.packages
			_, err = CheckCommit(m.in)
			if test.rule == "" {
				must(t, err)
			} else {
				wantRule(t, err, test.rule)
			}
		})
	}
}

// TestSuccessorKeepsPolicy checks that a successor changes nothing but what it
// continues, and shares nothing.
func TestSuccessorKeepsPolicy(t *testing.T) {
	p := testPolicy()
	q := p.Successor([]byte("group"), federation.Ref{1})
	q.Predecessor = nil
	if !p.Equal(q) {
		t.Errorf("got %+v, want %+v", q, p)
	}
	q.Admins[0] = bob
	if p.Admins[0] != alice {
		t.Error("the successor shares its lists")
	}
}

// TestFoundingHasTheSameDevices refuses successors with more or fewer devices.
func TestFoundingHasTheSameDevices(t *testing.T) {
	g := newGroup(t, testPolicy())
	b, phone, c := newDevice(t, bob, "LAPTOP"), newDevice(t, bob, "PHONE"), newDevice(t, carol, "LAPTOP")
	g.add(b)
	two := leafNodes(g.creator.group)
	g.add(phone)
	three := leafNodes(g.creator.group)
	g.add(c)
	four := leafNodes(g.creator.group)
	must(t, sameDevices(two, []*mls.LeafNode{two[1], two[0]}))
	wantRule(t, sameDevices(three, two), RuleFoundingIncomplete)
	wantRule(t, sameDevices(two, three), RuleAddWithoutAdmission)
	wantRule(t, sameDevices(three, four), RuleAddWithoutAdmission)
	wantRule(t, sameDevices(two, []*mls.LeafNode{two[0], two[1], two[1]}), RuleAddWithoutAdmission)
	wantRule(t, sameDevices(append(two, two[1]), two), RuleFoundingIncomplete)
}

// TestSuites checks which suites rooms can use, their names, and what is weaker.
func TestSuites(t *testing.T) {
	const hybrid, mldsa = Suite(0xf0d1), Suite(0xf0d9)
	for s, want := range map[Suite]bool{1: true, 2: true, 7: true, 8: false, hybrid: true, 0xf0d5: true, mldsa: false, 0xf0ff: false} {
		if UsableSuite(s) != want {
			t.Errorf("UsableSuite(%v) = %v, want %v", s, !want, want)
		}
	}
	for text, want := range map[string]Suite{"1": 1, "2": 2, "0xf0d1": hybrid, hybrid.String(): hybrid, "mls_128_dhkemp256_aes128gcm_sha256_p256": 2} {
		if got, err := ParseSuite(text); err != nil || got != want {
			t.Errorf("ParseSuite(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "8", "x", "0xf0d9", "-1", "65537"} {
		_, err := ParseSuite(text)
		wantRule(t, err, RuleNoCommonSuite)
	}
	for _, test := range []struct {
		from, to Suite
		want     bool
	}{
		{1, 3, false}, {1, 2, true}, {2, 1, false}, {4, 1, true}, {1, 4, false}, {1, hybrid, false}, {hybrid, 1, true}, {hybrid, 4, true},
		{0xf0d5, hybrid, true}, {hybrid, 0xf0d3, true},
	} {
		if got := Weaker(test.from, test.to); got != test.want {
			t.Errorf("Weaker(%v, %v) = %v", test.from, test.to, got)
		}
	}
	d, i := newDevice(t, alice, "PHONE"), newIdentity(alice)
	obj := i.device(t, d, ed25519Key(50), false)
	delete(obj, "signatures")
	obj["keys"].(map[string]string)[string(DeviceKeyID(hybrid, "PHONE"))] = EncodeBase64(d.cred.Key)
	signJSON(t, obj, alice, map[string]ed25519.PrivateKey{"PHONE": ed25519Key(50)})
	keys, err := ParseDeviceKeys(rawJSON(t, obj), alice, "PHONE")
	must(t, err)
	if string(keys.MLS[hybrid]) != string(d.cred.Key) {
		t.Errorf("experimental keys of a device are not read: %v", keys.MLS)
	}
	if cs, ref, err := ParseKeyPackageID(KeyPackageID(hybrid, mls.KeyPackageRef{1})); err != nil || cs != hybrid || len(ref) != 1 {
		t.Errorf("key package id of an experimental suite: %v, %x, %v", cs, ref, err)
	}
}

// TestProofChainAcrossFounding shows a newcomer that a group follows from one
// that a ReInit closed.
func TestProofChainAcrossFounding(t *testing.T) {
	w := newProofWorld(t)
	b, c := newDevice(t, bob, "LAPTOP"), newDevice(t, carol, "TABLET")
	w.join(b, c)
	old := w.g.creator.group
	p, err := PolicyOf(old)
	must(t, err)
	r, err := NewReInit(p.Successor(old.GroupID(), w.g.head), slices.Repeat([]byte{7}, GroupIDSize), testSuite, nil)
	must(t, err)
	m := w.g.commit(w.g.creator, nil, mls.CommitOptions{Proposals: []mls.Proposal{r.Proposal()}})
	var bundles []*mls.KeyPackageBundle
	var packages []*mls.KeyPackage
	for i, d := range []*testDevice{w.g.creator, b, c} {
		kp, err := mls.NewKeyPackage(testConfig(uint64(60+i)), testSuite, d.key, LeafOptions(d.cred))
		must(t, err)
		m.in.Content.KeyPackages = append(m.in.Content.KeyPackages, kp.Message())
		if d != w.g.creator {
			bundles, packages = append(bundles, kp), append(packages, kp.KeyPackage())
		}
	}
	info, err := m.staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
	must(t, err)
	m.in.Content.GroupInfo = info
	w.take(m, true)
	parent := w.g.head
	closed := w.g.creator.group
	if w.modules[0].NewestFinal() != parent {
		t.Fatal("the ReInit is not final")
	}

	staged, err := closed.ReInitGroup(w.g.creator.key, LeafOptions(w.g.creator.cred), packages, mls.CommitOptions{WelcomeRatchetTree: true})
	must(t, err)
	info, err = staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true, Extensions: []mls.Extension{FoundingExtension(parent)}})
	must(t, err)
	gi, err := mls.ParseMessage(info)
	must(t, err)
	ref, err := RootRef(gi)
	must(t, err)
	next, err := mls.NewPublicGroup(testConfig(70), gi, staged.Merge().RatchetTree())
	must(t, err)
	in := CommitInput{
		Room: testRoom, Sender: alice, Event: "$f", Ref: ref, Tree: closed, Parent: parent,
		Content: &CommitContent{Epoch: 1, Parent: Hash(parent), Founding: true, GroupInfo: info},
	}
	facts, err := CheckFounding(in, closed.ReInit(), next)
	must(t, err)
	w.contents[ref] = in.Content
	w.run(facts)
	check := func(final federation.Ref) *Proven {
		t.Helper()
		got, err := w.chain(0).Check(testRoom, w.modules[0].SafeHead())
		must(t, err)
		if got.Final != final || got.Accepted != ref || len(got.Groups) != 2 || string(got.Groups[0]) != string(old.GroupID()) || string(got.Groups[1]) != string(r.GroupID) {
			t.Errorf("proven %+v", got)
		}
		return got
	}
	check(parent) // accepted only
	welcome, err := mls.ParseMessage(staged.Welcome())
	must(t, err)
	b.group, err = mls.JoinWelcome(b.cfg, welcome, bundles[0], mls.JoinOptions{Resumption: []*mls.Group{b.group}})
	must(t, err)
	scope := federation.Scope{Room: string(testRoom), Group: r.GroupID}
	a, err := SignApplied(testSuite, b.key, scope, ref, b.group.OwnLeafIndex(), b.group.EpochAuthenticator())
	must(t, err)
	w.run(a)
	if got := check(ref); got.Policy.Predecessor == nil || got.Epoch != 1 {
		t.Errorf("epoch %d, policy %+v", got.Epoch, got.Policy)
	}
	_, err = DecodeProof(w.chain(0).Encode())
	must(t, err)
}
