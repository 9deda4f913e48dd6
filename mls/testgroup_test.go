package mls

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"
)

// testRand returns randomness that is the same in every run of a test.
func testRand(tb testing.TB) io.Reader { return rand.NewChaCha8(sha256.Sum256([]byte(tb.Name()))) }

// testNow is what tests take for the present.
func testNow() time.Time { return time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC) }

func testConfig(tb testing.TB) *Config { return &Config{Rand: testRand(tb), Now: testNow} }

// newTestClient makes a KeyPackage for the client named "client<i>".
func newTestClient(tb testing.TB, cfg *Config, cs CipherSuite, i int) *KeyPackageBundle {
	tb.Helper()
	key, err := GenerateSignatureKey(cs, cfg.rand())
	if err != nil {
		tb.Fatal(err)
	}
	b, err := NewKeyPackage(cfg, cs, key, LeafOptions{Credential: BasicCredential(fmt.Appendf(nil, "client%d", i))})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// newTestGroup returns the n members of a group that is in epoch 1, or for n
// = 1 in epoch 0.
func newTestGroup(tb testing.TB, cfg *Config, cs CipherSuite, n int, extensions ...Extension) []*Group {
	tb.Helper()
	key, err := GenerateSignatureKey(cs, cfg.rand())
	if err != nil {
		tb.Fatal(err)
	}
	g, err := CreateGroup(cfg, cs, []byte("group"), key, LeafOptions{Credential: BasicCredential([]byte("client0"))}, extensions)
	if err != nil {
		tb.Fatal(err)
	}
	if n == 1 {
		return []*Group{g}
	}
	var bundles []*KeyPackageBundle
	var adds []Proposal
	for i := 1; i < n; i++ {
		b := newTestClient(tb, cfg, cs, i)
		bundles = append(bundles, b)
		adds = append(adds, Add(b.KeyPackage()))
	}
	sc, err := g.Commit(CommitOptions{Proposals: adds})
	if err != nil {
		tb.Fatal(err)
	}
	groups := []*Group{sc.Merge()}
	w := mustParse(tb, sc.Welcome())
	for _, b := range bundles {
		j, err := JoinWelcome(cfg, w, b, JoinOptions{RatchetTree: groups[0].RatchetTree()})
		if err != nil {
			tb.Fatal(err)
		}
		groups = append(groups, j)
	}
	return groups
}

func mustParse(tb testing.TB, raw []byte) *Message {
	tb.Helper()
	m, err := ParseMessage(raw)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

func mustEncrypt(tb testing.TB, g *Group, text string) *Message {
	tb.Helper()
	raw, err := g.Encrypt([]byte(text), []byte("aad"))
	if err != nil {
		tb.Fatal(err)
	}
	return mustParse(tb, raw)
}

// mustCommit makes a Commit and returns it with the committer's next group.
func mustCommit(tb testing.TB, g *Group, o CommitOptions) (*Message, *Group) {
	tb.Helper()
	sc, err := g.Commit(o)
	if err != nil {
		tb.Fatal(err)
	}
	return mustParse(tb, sc.Message()), sc.Merge()
}

// mustFollow processes a Commit and returns the next group.
func mustFollow(tb testing.TB, g *Group, m *Message) *Group {
	tb.Helper()
	p, err := g.Process(m)
	if err != nil {
		tb.Fatal(err)
	}
	sc, ok := p.(*StagedCommit)
	if !ok {
		tb.Fatalf("processed a %T, want a *StagedCommit", p)
	}
	return sc.Merge()
}

// groupState is everything that a group stores.
func groupState(g *Group) []byte {
	return append(bytes.Clone(g.EpochState()), g.RatchetState()...)
}

// refuse feeds a message that must be refused, and checks that the group is
// unchanged.
func refuse(t *testing.T, g *Group, m *Message) error {
	t.Helper()
	before := groupState(g)
	_, err := g.Process(m)
	if !bytes.Equal(before, groupState(g)) {
		t.Error("the refused message changed the group")
	}
	return err
}
