package mls

import (
	"bytes"
	"fmt"
	"math"
	"testing"
)

// What a member keeps of the past is bounded: the PSKs of sixteen epochs.
func TestResumptionPSKsAreKeptForSixteenEpochs(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(2)
	first := gs[0].Epoch()
	for range 20 {
		_, gs = w.commit(gs, 0, CommitOptions{ForcePath: true})
	}
	at := gs[0].Epoch()
	psk := func(epoch uint64) Proposal {
		return PSK(PreSharedKeyID{Type: PSKTypeResumption, Usage: ResumptionPSKUsageApplication, GroupID: []byte("group"), Epoch: epoch})
	}
	for epoch := first; epoch <= at; epoch++ {
		_, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{psk(epoch)}})
		if epoch+16 < at {
			wantRule(t, err, "commit/psk-unavailable")
		} else {
			noError(t, err)
		}
	}
	stored, err := LoadGroup(w.cfg, gs[1].EpochState(), gs[1].RatchetState())
	noError(t, err)
	gs[1] = stored
	_, gs = w.commit(gs, 0, CommitOptions{Proposals: []Proposal{psk(at - 16)}})
	w.talk(gs)
}

func TestCachedProposalsAreBounded(t *testing.T) {
	w := newWorld(t, 1)
	w.cfg.Limits = Limits{MaxCachedProposals: 15}
	gs := w.group(4)
	send := func(i int) error {
		raw, _, err := gs[i].Propose(Add(w.bundle("x").KeyPackage()), FramingOptions{})
		if err != nil {
			return err
		}
		_, err = gs[3].Process(w.parse(raw))
		return err
	}
	for range 10 {
		noError(t, send(0))
	}
	before := snapshot(gs[3])
	m := w.propose(gs[0], Remove(1))
	wantRule(t, w.refuse(gs[3], m), "proposal-list/too-many") // of one sender
	for range 5 {
		noError(t, send(1))
	}
	wantRule(t, w.refuse(gs[3], w.propose(gs[2], Remove(1))), "proposal-list/too-many") // in all
	if bytes.Equal(before, snapshot(gs[3])) {
		t.Error("proposals within the limits were not kept")
	}
	// What is known already takes no room.
	raw, err := gs[3].Commit(CommitOptions{Pending: true})
	noError(t, err)
	if n := len(raw.Proposals()); n != 15 {
		t.Errorf("%d proposals are committed, want 15", n)
	}
}

// A few proposals may be as large as many.
func TestCachedProposalsAreBoundedInBytes(t *testing.T) {
	w := newWorld(t, 1)
	w.cfg.Limits = Limits{MaxMessageSize: 100_000}
	gs := w.wideGroup(2)
	large := func(n byte) Proposal {
		return GroupContextExtensions([]Extension{{Type: testExtension, Data: bytes.Repeat([]byte{n}, 60_000)}})
	}
	w.accept(gs[1], w.propose(gs[0], large(1)))
	wantRule(t, w.refuse(gs[1], w.propose(gs[0], large(2))), "proposal-list/too-many")
	_, _, err := gs[1].Propose(large(3), FramingOptions{})
	wantRule(t, err, "proposal-list/too-many")
	sc, err := gs[1].Commit(CommitOptions{Pending: true})
	w.check(err)
	if _, _, err := sc.Merge().Propose(large(3), FramingOptions{}); err != nil {
		t.Errorf("the next epoch has no room: %v", err)
	}
}

func TestPSKsAreBounded(t *testing.T) {
	w := newWorld(t, 1)
	gs := w.group(2)
	var ps []Proposal
	for i := range 33 {
		id := fmt.Appendf(nil, "psk %d", i)
		w.psks[string(id)] = id
		ps = append(ps, PSK(PreSharedKeyID{Type: PSKTypeExternal, ID: id, Nonce: w.nonce()}))
	}
	_, err := gs[0].Commit(CommitOptions{Proposals: ps})
	wantRule(t, err, "proposal-list/too-many")
	wantRule(t, w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(ps...)})), "proposal-list/too-many")
	c, _ := w.commit(gs, 0, CommitOptions{Proposals: ps[:32]})
	if n := len(c.Proposals()); n != 32 {
		t.Errorf("%d proposals, want 32", n)
	}
}

// Vectors whose entries are large enough to pass the budget of a reader have
// limits of their own.
func TestLongVectorsAreRefused(t *testing.T) {
	opaque := func(n int) []byte { return appendOpaqueVec(nil, make([]byte, n)) }
	rep := func(n int, b []byte) []byte { return appendOpaqueVec(nil, bytes.Repeat(b, n)) }
	ciphertext := append(opaque(32), opaque(32)...)
	leaf := unhex(t, goodLeaf)
	node := func(n int) []byte { return append(opaque(32), rep(n, ciphertext)...) }
	for name, c := range map[string]struct {
		v    func() wireType
		good []byte // with as many entries as there may be
		bad  []byte // with one more
		rule Rule
	}{
		"proposals": {func() wireType { return new(commit) },
			append(rep(1<<16, append([]byte{proposalByRef}, opaque(32)...)), 0),
			append(rep(1<<16+1, append([]byte{proposalByRef}, opaque(32)...)), 0), "proposal-list/too-many"},
		"path nodes": {func() wireType { return new(updatePath) },
			append(bytes.Clone(leaf), rep(32, node(1))...), append(bytes.Clone(leaf), rep(33, node(1))...), "commit/path-length"},
		"ciphertexts": {func() wireType { return new(updatePath) },
			append(bytes.Clone(leaf), rep(1, node(1<<16))...), append(bytes.Clone(leaf), rep(1, node(1<<16+1))...), "commit/path-ciphertext-count"},
		"recipients": {func() wireType { return new(Welcome) },
			append(append([]byte{0, 1}, rep(1<<16, append(opaque(32), ciphertext...))...), opaque(1)...),
			append(append([]byte{0, 1}, rep(1<<16+1, append(opaque(32), ciphertext...))...), opaque(1)...), "codec/vector-over-limit"},
		"psks": {func() wireType { return new(groupSecrets) },
			append([]byte{0, 0}, rep(1<<10, append([]byte{1}, append(opaque(4), opaque(32)...)...))...),
			append([]byte{0, 0}, rep(1<<10+1, append([]byte{1}, append(opaque(4), opaque(32)...)...))...), "codec/vector-over-limit"},
	} {
		t.Run(name, func(t *testing.T) {
			noError(t, unmarshal(c.good, c.v()))
			wantRule(t, unmarshal(c.bad, c.v()), c.rule)
		})
	}
}

// The zero value of each limit is its default, and so is what makes no sense.
func TestLimitsHaveDefaults(t *testing.T) {
	if l := (Limits{MaxForward: -1, MaxLifetime: -1}).withDefaults(); l != defaultLimits {
		t.Errorf("got %+v", l)
	}
	l := Limits{MaxPSKs: 3, MaxLifetime: math.MaxInt64}.withDefaults()
	if l.MaxPSKs != 3 || l.MaxLifetime != math.MaxInt64 || l.MaxForward != defaultLimits.MaxForward {
		t.Errorf("got %+v", l)
	}
}
