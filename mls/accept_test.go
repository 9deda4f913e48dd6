package mls

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestAccept is the other half of the reject table: what looks odd and must be
// taken all the same.
func TestAccept(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, cs CipherSuite)
	}{
		{"unknown-extensions", acceptUnknownExtensions},
		{"unknown-capabilities", acceptUnknownCapabilities},
		{"grease", acceptGREASE},
		{"capabilities-in-any-order", acceptCapabilitiesOrder},
		{"expired-leaf-in-tree", acceptExpiredLeaf},
		{"add-without-path", acceptAddWithoutPath},
		{"empty-commit-with-path", acceptEmptyCommit},
		{"commit-that-removes-us", acceptOwnRemoval},
		{"own-message-echoed", acceptEcho},
		{"out-of-order-in-window", acceptOutOfOrder},
		{"message-of-kept-past-epoch", acceptPastEpoch},
		{"padding-of-any-length", acceptPadding},
		{"psk-of-both-kinds", acceptPSKs},
		{"external-commit-removes-own-leaf", acceptResync},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, cs := range rejectSuites {
				t.Run(fmt.Sprintf("suite=%d", cs), func(t *testing.T) { c.run(t, cs) })
			}
		})
	}
}

const unknownExtension ExtensionType = 0xf123

// joinWith adds a client with the given leaf to a group of two and checks that
// everybody arrives in the same epoch.
func joinWith(t *testing.T, cs CipherSuite, o LeafOptions, c CommitOptions) (members []*Group) {
	t.Helper()
	cfg := testConfig(t)
	gs := newTestGroup(t, cfg, cs, 2)
	key, err := GenerateSignatureKey(cs, cfg.rand())
	noError(t, err)
	if o.Credential.Type == 0 {
		o.Credential = BasicCredential([]byte("newcomer"))
	}
	bundle, err := NewKeyPackage(cfg, cs, key, o)
	noError(t, err)
	c.Proposals = []Proposal{Add(mustParse(t, bundle.Message()).KeyPackage())}
	c.WelcomeRatchetTree = true
	sc, err := gs[0].Commit(c)
	noError(t, err)
	joined, err := JoinWelcome(cfg, mustParse(t, sc.Welcome()), bundle, JoinOptions{})
	noError(t, err)
	members = []*Group{sc.Merge(), mustFollow(t, gs[1], mustParse(t, sc.Message())), joined}
	sameEpoch(t, members)
	return members
}

// sameEpoch checks that all are in one epoch and read each other.
func sameEpoch(t *testing.T, gs []*Group) {
	t.Helper()
	for _, g := range gs {
		wantBytes(t, "epoch authenticator", g.EpochAuthenticator(), gs[0].EpochAuthenticator())
		wantBytes(t, "tree hash", g.TreeHash(), gs[0].TreeHash())
	}
	for _, from := range gs {
		m := mustEncrypt(t, from, "text")
		for _, to := range gs {
			if to != from {
				mustRead(t, to, m, "text")
			}
		}
	}
}

func mustRead(t *testing.T, g *Group, m *Message, want string) {
	t.Helper()
	p, err := g.Process(m)
	noError(t, err)
	app, ok := p.(*ApplicationMessage)
	if !ok {
		t.Fatalf("processed a %T", p)
	}
	wantBytes(t, "plaintext", app.Plaintext, []byte(want))
}

func acceptUnknownExtensions(t *testing.T, cs CipherSuite) {
	gs := joinWith(t, cs, LeafOptions{
		LeafExtensions:       []Extension{{Type: unknownExtension, Data: []byte("leaf")}}, // is listed by itself
		KeyPackageExtensions: []Extension{{Type: unknownExtension, Data: []byte("package")}},
	}, CommitOptions{GroupInfoExtensions: []Extension{{Type: unknownExtension, Data: []byte("info")}}})
	leaf, _ := gs[0].Leaf(2)
	if data, ok := leaf.Extension(unknownExtension); !ok || string(data) != "leaf" {
		t.Errorf("the leaf's unknown extension is %q, %v", data, ok)
	}
}

func acceptUnknownCapabilities(t *testing.T, cs CipherSuite) {
	c := DefaultCapabilities()
	c.Versions = append(c.Versions, 0x0700)
	c.CipherSuites = append(c.CipherSuites, 0x0fff, 0xf001)
	c.Extensions = append(c.Extensions, 0x0777)
	c.Proposals = append(c.Proposals, 0x0888)
	c.Credentials = append(c.Credentials, 0x0999)
	gs := joinWith(t, cs, LeafOptions{Capabilities: &c}, CommitOptions{})
	leaf, _ := gs[1].Leaf(2)
	if !leaf.Capabilities.SupportsProposal(0x0888) {
		t.Error("an unknown capability was lost")
	}
}

// RFC 9420, Section 13.5: the seven places where GREASE may appear.
func acceptGREASE(t *testing.T, cs CipherSuite) {
	grease := Extension{Type: 0x3a3a, Data: []byte("nothing")}
	c := DefaultCapabilities()
	c.CipherSuites = append([]CipherSuite{0x0a0a}, c.CipherSuites...)
	c.Extensions = append(c.Extensions, 0x1a1a, grease.Type)
	c.Proposals = append(c.Proposals, 0xeaea)
	c.Credentials = append(c.Credentials, 0x2a2a)
	gs := joinWith(t, cs, LeafOptions{
		Capabilities:         &c,
		LeafExtensions:       []Extension{grease},
		KeyPackageExtensions: []Extension{grease},
	}, CommitOptions{GroupInfoExtensions: []Extension{grease}})
	for _, v := range []uint16{0x0a0a, 0x1a1a, 0xeaea} {
		if !isGREASE(v) {
			t.Errorf("%#04x is GREASE", v)
		}
	}
	for _, v := range []uint16{0, 1, 0xfafa, 0x0a1a, 0x1b1b} {
		if isGREASE(v) {
			t.Errorf("%#04x is no GREASE", v)
		}
	}
	mustCommit(t, gs[2], CommitOptions{})
}

func acceptCapabilitiesOrder(t *testing.T, cs CipherSuite) {
	c := DefaultCapabilities()
	for i, j := 0, len(c.CipherSuites)-1; i < j; i, j = i+1, j-1 {
		c.CipherSuites[i], c.CipherSuites[j] = c.CipherSuites[j], c.CipherSuites[i]
	}
	c.Extensions = []ExtensionType{0xf123, 0x0777, 0xf123}
	c.Credentials = []CredentialType{0x0999, CredentialTypeX509, CredentialTypeBasic}
	joinWith(t, cs, LeafOptions{Capabilities: &c}, CommitOptions{})
}

func acceptExpiredLeaf(t *testing.T, cs CipherSuite) {
	cfg := testConfig(t)
	gs := newTestGroup(t, cfg, cs, 3)
	// Years later nobody has committed, and somebody joins.
	late := *cfg
	late.Now = func() time.Time { return testNow().AddDate(3, 0, 0) }
	gs[0].cfg = &late
	bundle := newTestClient(t, &late, cs, 9)
	sc, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{Add(bundle.KeyPackage())}})
	noError(t, err)
	joined, err := JoinWelcome(&late, mustParse(t, sc.Welcome()), bundle, JoinOptions{RatchetTree: sc.Merge().RatchetTree()})
	noError(t, err)
	gs[1].cfg = &late
	sameEpoch(t, []*Group{sc.Merge(), joined, mustFollow(t, gs[1], mustParse(t, sc.Message()))})
}

func acceptAddWithoutPath(t *testing.T, cs CipherSuite) {
	a, b := pair(t, cs)
	sc, err := a.Commit(CommitOptions{Proposals: []Proposal{Add(newTestClient(t, a.cfg, cs, 9).KeyPackage())}})
	noError(t, err)
	if sc.HasPath() || mustParse(t, sc.Message()).public.auth.content.commit.path != nil {
		t.Error("a Commit of Adds has a path that nobody asked for")
	}
	sameEpoch(t, []*Group{sc.Merge(), mustFollow(t, b, mustParse(t, sc.Message()))})
}

func acceptEmptyCommit(t *testing.T, cs CipherSuite) {
	a, b := pair(t, cs)
	for _, private := range []bool{false, true} {
		sc, err := a.Commit(CommitOptions{Private: private})
		noError(t, err)
		if !sc.HasPath() || len(sc.Proposals()) != 0 {
			t.Errorf("path %v, %d proposals", sc.HasPath(), len(sc.Proposals()))
		}
		b = mustFollow(t, b, mustParse(t, sc.Message()))
		a = sc.Merge()
		sameEpoch(t, []*Group{a, b})
	}
}

func acceptOwnRemoval(t *testing.T, cs CipherSuite) {
	a, b := pair(t, cs)
	m, _ := mustCommit(t, a, CommitOptions{Proposals: []Proposal{Remove(b.OwnLeafIndex())}})
	p, err := b.Process(m)
	noError(t, err)
	sc := p.(*StagedCommit)
	if !sc.SelfRemoved() || sc.Merge() != nil || sc.EpochAuthenticator() != nil {
		t.Error("who was removed goes on")
	}
}

func acceptEcho(t *testing.T, cs CipherSuite) {
	a, _ := pair(t, cs)
	m := mustEncrypt(t, a, "text")
	if err := refuse(t, a, m); !errors.Is(err, ErrOwnMessage) {
		t.Errorf("got %v, want ErrOwnMessage", err)
	}
}

func acceptOutOfOrder(t *testing.T, cs CipherSuite) {
	a, b := pair(t, cs)
	var ms []*Message
	for i := range 20 {
		ms = append(ms, mustEncrypt(t, a, fmt.Sprint(i)))
	}
	for _, i := range []int{5, 19, 0, 18, 1, 17, 2, 16, 3, 15, 4, 14, 13, 6, 12, 7, 11, 8, 10, 9} {
		mustRead(t, b, ms[i], fmt.Sprint(i))
	}
	if b.ratchets.skipped != 0 {
		t.Errorf("%d keys are left", b.ratchets.skipped)
	}
}

func acceptPastEpoch(t *testing.T, cs CipherSuite) {
	a, b := pair(t, cs)
	late := mustEncrypt(t, a, "late")
	m, a2 := mustCommit(t, a, CommitOptions{})
	b2 := mustFollow(t, b, m)
	sameEpoch(t, []*Group{a2, b2})
	// The group of the epoch before is still there, and stored by itself.
	kept, err := LoadGroup(b.cfg, b.EpochState(), b.RatchetState())
	noError(t, err)
	mustRead(t, kept, late, "late")
}

func acceptPadding(t *testing.T, cs CipherSuite) {
	a, b := pair(t, cs)
	sizes := make(map[int]bool)
	for _, padding := range []int{0, 1, 64, 256, 4096} {
		padded := *a.cfg
		padded.PaddingSize = padding
		a.cfg = &padded
		for _, n := range []int{0, 1, 100, 300} {
			m := mustEncrypt(t, a, string(bytes.Repeat([]byte("x"), n)))
			if padding > 0 && (len(m.private.ciphertext)-aeadOverhead)%padding != 0 {
				t.Errorf("%d bytes padded to %d are %d", n, padding, len(m.private.ciphertext)-aeadOverhead)
			}
			if padding == 4096 {
				sizes[len(m.private.ciphertext)] = true
			}
			mustRead(t, b, m, string(bytes.Repeat([]byte("x"), n)))
		}
	}
	if len(sizes) != 1 {
		t.Errorf("padding shows %d sizes", len(sizes))
	}
	for n := range 40 {
		mustRead(t, b, forgedMessage{g: a, ct: ContentTypeApplication, text: "text", padding: make([]byte, n)}.private(t), "text")
	}
}

func acceptPSKs(t *testing.T, cs CipherSuite) {
	a, b := pair(t, cs)
	for _, g := range []*Group{a, b} {
		with := *g.cfg
		with.PSK = func(id PreSharedKeyID) ([]byte, bool) {
			return []byte("shared secret"), id.Type == PSKTypeExternal && string(id.ID) == "shared"
		}
		g.cfg = &with
	}
	m, a2 := mustCommit(t, a, CommitOptions{Proposals: []Proposal{
		PSK(PreSharedKeyID{Type: PSKTypeExternal, ID: []byte("shared")}),
		PSK(PreSharedKeyID{Type: PSKTypeResumption, Usage: ResumptionPSKUsageApplication, GroupID: a.GroupID(), Epoch: a.Epoch()}),
	}})
	sameEpoch(t, []*Group{a2, mustFollow(t, b, m)})
}

func acceptResync(t *testing.T, cs CipherSuite) {
	a, b := pair(t, cs)
	info, err := a.GroupInfo(GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	noError(t, err)
	own := b.OwnLeafIndex()
	key, err := GenerateSignatureKey(cs, b.cfg.rand())
	noError(t, err)
	sc, err := ExternalJoin(b.cfg, mustParse(t, info), key, ExternalJoinOptions{
		Leaf: LeafOptions{Credential: BasicCredential([]byte("client1"))}, Resync: &own,
	})
	noError(t, err)
	a2 := mustFollow(t, a, mustParse(t, sc.Message()))
	if a2.MemberCount() != 2 {
		t.Errorf("%d members, want 2", a2.MemberCount())
	}
	sameEpoch(t, []*Group{a2, sc.Merge()})
}
