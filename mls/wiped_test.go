package mls

import (
	"errors"
	"testing"
	"time"
)

// What an epoch hands on to the next survives its own end.
func TestZeroLeavesTheNextEpochAlone(t *testing.T) {
	w := newRejectWorld(t)
	gs := w.group(3)
	raw, _, err := gs[1].ProposeUpdate(nil, FramingOptions{})
	w.check(err)
	for _, i := range []int{0, 2} {
		_, err = gs[i].Process(w.parse(raw))
		w.check(err)
	}
	old := gs
	_, gs = w.commit(gs, 0, CommitOptions{Pending: true})
	for range 3 {
		for _, g := range old {
			g.Zero()
		}
		old = gs
		_, gs = w.commit(gs, 2, CommitOptions{})
		w.talk(gs)
	}
}

// A wiped group is no source of PSKs, which would be empty ones.
func TestWipedGroupsGiveNoPSKs(t *testing.T) {
	w := newRejectWorld(t)
	gs := w.group(3)
	info, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	w.check(err)
	id := PreSharedKeyID{Type: PSKTypeResumption, Usage: ResumptionPSKUsageApplication, GroupID: []byte("group"), Epoch: gs[0].Epoch()}
	two := LeafIndex(2)
	join := func(from *Group) error {
		_, err := ExternalJoin(w.cfg, w.parse(info), w.key(), ExternalJoinOptions{
			Leaf: w.options("member2"), Resync: &two, PSKs: []PreSharedKeyID{id}, Resumption: []*Group{nil, from},
		})
		return err
	}
	w.check(join(gs[2]))
	gs[2].Zero()
	if err := join(gs[2]); !hasRule(err, "commit/psk-unavailable") {
		t.Errorf("from a wiped group: %v", err)
	}
	sc, err := gs[0].Commit(CommitOptions{})
	w.check(err)
	sc.Merge().Zero()
	if _, err := sc.MarshalBinary(); !errors.Is(err, ErrZeroed) {
		t.Errorf("a wiped Commit is stored: %v", err)
	}
}

// Who was away follows a Commit although a KeyPackage in it has expired since:
// all others have taken it.
func TestWhoWasAwayFollowsAddsThatHaveExpired(t *testing.T) {
	w := newRejectWorld(t)
	gs := w.group(3)
	o := w.options("new")
	now := uint64(testTime.Unix())
	o.Lifetime = &Lifetime{now - 3600, now + 86400}
	b, err := NewKeyPackage(w.cfg, w.cs, w.key(), o)
	w.check(err)
	raw, _, err := gs[2].Propose(Add(b.KeyPackage()), FramingOptions{})
	w.check(err)
	_, err = gs[0].Process(w.parse(raw))
	w.check(err)
	sc, err := gs[0].Commit(CommitOptions{Pending: true, WelcomeRatchetTree: true})
	w.check(err)
	later := *w.cfg
	later.Now = func() time.Time { return testTime.Add(48 * time.Hour) }
	late := gs[1]
	late.epoch.cfg = &later
	_, err = late.Process(w.parse(raw))
	w.check(err)
	p, err := late.Process(w.parse(sc.Message()))
	w.check(err)
	joined, err := JoinWelcome(&later, w.parse(sc.Welcome()), b, JoinOptions{})
	w.check(err)
	w.agree([]*Group{sc.Merge(), p.(*StagedCommit).Merge(), joined})
}

// What members cannot read is refused before it is made.
func TestWhatNobodyReadsIsNotMade(t *testing.T) {
	large := Extension{Type: testExtension, Data: make([]byte, defaultMaxExtensionSize+1)}
	w := newRejectWorld(t)
	w.cfg.PSK = func(PreSharedKeyID) ([]byte, bool) { return []byte("psk"), true }
	g := w.wideGroup(2)[0]
	commit := func(p Proposal) error {
		_, err := g.Commit(CommitOptions{Proposals: []Proposal{p}})
		return err
	}
	for name, c := range map[string]struct {
		err  error
		rule Rule
	}{
		"a resumption PSK without usage": {commit(PSK(PreSharedKeyID{Type: PSKTypeResumption, GroupID: []byte("group"), Epoch: 1})), "codec/unknown-resumption-usage"},
		"a PSK without type":             {commit(PSK(PreSharedKeyID{ID: []byte("k")})), "codec/unknown-psk-type"},
		"a large extension":              {commit(GroupContextExtensions([]Extension{large})), "codec/vector-over-limit"},
		"a ReInit with one":              {commit((&ReInit{GroupID: []byte("n"), Version: MLS10, CipherSuite: w.cs, Extensions: []Extension{large}}).Proposal()), "codec/vector-over-limit"},
		"a GroupInfo with one":           {func() error { _, err := g.GroupInfo(GroupInfoOptions{Extensions: []Extension{large}}); return err }(), "codec/vector-over-limit"},
		"a group with one": {func() error {
			_, err := CreateGroup(w.cfg, w.cs, []byte("g"), w.key(), w.wideOptions("a"), []Extension{large})
			return err
		}(), "codec/vector-over-limit"},
	} {
		if !hasRule(c.err, c.rule) {
			t.Errorf("%s: %v, want %s", name, c.err, c.rule)
		}
	}
	for _, aad := range [][]byte{nil, make([]byte, 1<<20)} {
		if _, err := g.Encrypt(make([]byte, defaultMaxMessageSize-len(aad)), aad); err == nil {
			t.Error("a message of more than 16 MiB is made")
		}
	}
	if _, err := g.Commit(CommitOptions{AuthenticatedData: make([]byte, defaultMaxMessageSize)}); err == nil {
		t.Error("a Commit of more than 16 MiB is made")
	}
	if _, err := g.Commit(CommitOptions{Proposals: []Proposal{GroupContextExtensions([]Extension{{Type: testExtension, Data: large.Data[1:]}})}}); err != nil {
		t.Errorf("an extension of 64 KiB: %v", err)
	}
}

// An external sender need not make the nonce of a PSK, as members need not.
func TestExternalSendersFillInNonces(t *testing.T) {
	w := newRejectWorld(t)
	gs, key := w.sendersGroup(2)
	w.psks["k"] = []byte("psk")
	raw, err := NewExternalProposal(w.cs, []byte("group"), gs[0].Epoch(), 0, key, PSK(PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("k")}), nil)
	w.check(err)
	for _, g := range gs {
		_, err := g.Process(w.parse(raw))
		w.check(err)
	}
	_, gs = w.commit(gs, 0, CommitOptions{Pending: true})
	w.agree(gs)
}

// What callers get is theirs to change.
func TestReturnedExtensionsAreCopies(t *testing.T) {
	w := newRejectWorld(t)
	gs := w.wideGroup(2, Extension{Type: testExtension, Data: []byte("data")})
	raw, err := gs[0].GroupInfo(GroupInfoOptions{RatchetTree: true})
	w.check(err)
	info := w.parse(raw).GroupInfo()
	for _, b := range [][]byte{info.GroupID(), info.TreeHash(), info.ConfirmedTranscriptHash(), info.ConfirmationTag(), info.Extensions()[0].Data, info.GroupExtensions()[0].Data} {
		b[0] ^= 1
	}
	w.check(info.Verify(gs[0].OwnLeaf().SignatureKey))
	if string(info.GroupID()) != "group" || string(info.GroupExtensions()[0].Data) != "data" {
		t.Error("the GroupInfo has changed")
	}
	data, _ := gs[0].Extension(testExtension)
	data[0] = 'X'
	_, gs = w.commit(gs, 0, CommitOptions{})
	w.agree(gs)
}

func TestProposalRefsAreCopies(t *testing.T) {
	w := newRejectWorld(t)
	gs := w.group(3)
	raw, _, err := gs[0].Propose(Remove(2), FramingOptions{})
	w.check(err)
	p, err := gs[1].Process(w.parse(raw))
	w.check(err)
	p.(*ProposalMessage).Ref[0] ^= 1
	gs[1].PendingProposals()[0].Ref[0] ^= 1
	sc, err := gs[1].Commit(CommitOptions{Pending: true})
	w.check(err)
	_, err = gs[0].Process(w.parse(sc.Message()))
	w.check(err)
}

// A KeyPackage may be of a suite that nobody here knows.
func TestKeyPackageOfAnUnknownSuite(t *testing.T) {
	w := newRejectWorld(t)
	raw := w.bundle("x").Message()
	raw[6], raw[7] = 0x0a, 0x0a
	if ref := w.parse(raw).KeyPackage().Ref(); ref != nil {
		t.Errorf("reference %x", ref)
	}
}

func TestGenerateSignatureKeyWithoutRandomness(t *testing.T) {
	for _, cs := range rejectSuites {
		a, err := GenerateSignatureKey(cs, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := GenerateSignatureKey(cs, nil)
		if err != nil || string(a.Bytes()) == string(b.Bytes()) {
			t.Errorf("%v: the same key twice: %v", cs, err)
		}
	}
}

// A panic in a worker, such as one of an Authenticator, can be recovered where
// the library was called.
func TestPanicsOfWorkersReachTheCaller(t *testing.T) {
	for _, workers := range []int{1, 4} {
		func() {
			defer func() {
				if p := recover(); p != "seventh" {
					t.Errorf("%d workers: recovered %v", workers, p)
				}
			}()
			_ = forkJoinWith(workers, 100, func(i int) error {
				if i == 7 {
					panic("seventh")
				}
				return nil
			})
			t.Errorf("%d workers: no panic", workers)
		}()
	}
}
