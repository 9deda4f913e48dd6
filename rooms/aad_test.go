package rooms

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

func fullAAD() *CommitAAD {
	return &CommitAAD{
		Parent: federation.Ref{1}, Era: 3, ByHeirs: true,
		Admissions: []Admission{{Room: testRoom, Group: Bytes{1}, User: bob, MasterKey: EncodeBase64(make([]byte, 32)), Ref: Hash{2}, Leaf: 4, Sig: make(Bytes, 64)}},
		Rejoin:     NewRejoinProof(federation.Ref{5}, federation.Ref{1}, make([]byte, RejoinSecretSize)),
	}
}

func TestCommitAAD(t *testing.T) {
	for name, a := range map[string]*CommitAAD{"smallest": {Parent: federation.Ref{1}}, "full": fullAAD()} {
		t.Run(name, func(t *testing.T) {
			raw, err := a.Encode()
			must(t, err)
			got, err := DecodeCommitAAD(raw)
			must(t, err)
			if diff := cmp.Diff(a, got); diff != "" {
				t.Errorf("round trip (-want +got):\n%s", diff)
			}
			for n := range raw {
				if _, err := DecodeCommitAAD(raw[:n]); err == nil {
					t.Errorf("accepted after %d of %d bytes", n, len(raw))
				}
			}
			_, err = DecodeCommitAAD(append(raw, 0))
			wantRule(t, err, RuleAADMalformed)
		})
	}
	for name, raw := range map[string][]byte{
		"empty":         nil,
		"version":       append([]byte{2}, make([]byte, 44)...),
		"no parent":     append([]byte{1}, make([]byte, 44)...),
		"bool of two":   append(append([]byte{1}, bytes.Repeat([]byte{1}, 40)...), 2, 0, 0, 0),
		"heirs, no era": append(append(append([]byte{1}, bytes.Repeat([]byte{1}, 32)...), make([]byte, 8)...), 1, 0, 0, 0),
		"too long":      make([]byte, maxAADSize+1),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := DecodeCommitAAD(raw)
			wantRule(t, err, RuleAADMalformed)
		})
	}
}

func TestMessageAAD(t *testing.T) {
	got, err := DecodeMessageAAD(MessageAAD{Head: federation.Ref{7}}.Encode())
	if err != nil || got.Head != (federation.Ref{7}) {
		t.Errorf("round trip: %v, %v", got, err)
	}
	for _, raw := range [][]byte{nil, {1}, make([]byte, 33), append([]byte{2}, bytes.Repeat([]byte{1}, 32)...), append([]byte{1}, make([]byte, 32)...), append([]byte{1}, bytes.Repeat([]byte{1}, 33)...)} {
		_, err := DecodeMessageAAD(raw)
		wantRule(t, err, RuleAADMalformed)
	}
}

func TestRejoinProof(t *testing.T) {
	secret := bytes.Repeat([]byte{9}, RejoinSecretSize)
	head := federation.Ref{1}
	p := NewRejoinProof(federation.Ref{5}, head, secret)
	must(t, p.Verify(head, secret))
	wantRule(t, p.Verify(federation.Ref{2}, secret), RuleReceiptForged)
	wantRule(t, p.Verify(head, make([]byte, RejoinSecretSize)), RuleReceiptForged)
	wantRule(t, p.Verify(head, nil), RuleReceiptForged)
	other := *p
	other.Common = federation.Ref{6}
	wantRule(t, other.Verify(head, secret), RuleReceiptForged)
}

func TestAdmission(t *testing.T) {
	g := newGroup(t, testPolicy())
	b := newDevice(t, bob, "LAPTOP")
	g.add(b)
	tree, policy := g.creator.group, testPolicy()
	good, err := SignAdmission(b.group, testRoom, g.head, b.group.OwnLeafIndex(), b.key, carol, bytes.Repeat([]byte{3}, 32))
	must(t, err)
	by, err := VerifyAdmission(tree, policy, good, nil)
	if err != nil || by != bob {
		t.Fatalf("admitted by %q, %v, want bob", by, err)
	}
	for _, test := range []struct {
		name string
		edit func(a *Admission)
		rule Rule
	}{
		{"another user", func(a *Admission) { a.User = dave }, RuleAddWithoutAdmission},
		{"another room", func(a *Admission) { a.Room = otherRoom }, RuleAddWithoutAdmission},
		{"another group", func(a *Admission) { a.Group = Bytes{1} }, RuleAddWithoutAdmission},
		{"another master key", func(a *Admission) { a.MasterKey = "" }, RuleAddWithoutAdmission},
		{"another leaf", func(a *Admission) { a.Leaf = 0 }, RuleAddWithoutAdmission},
		{"a blank leaf", func(a *Admission) { a.Leaf = 900 }, RuleAddWithoutAdmission},
		{"another commit", func(a *Admission) { a.Ref[0]++ }, RuleAddWithoutAdmission},
		{"signature", func(a *Admission) { a.Sig[3] ^= 1 }, RuleAddWithoutAdmission},
		{"no signature", func(a *Admission) { a.Sig = nil }, RuleContentMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := *good
			a.Sig, a.Group = bytes.Clone(good.Sig), bytes.Clone(good.Group)
			test.edit(&a)
			_, err := VerifyAdmission(tree, policy, &a, nil)
			wantRule(t, err, test.rule)
		})
	}
	// The same device can have the same leaf and key in two groups, so that the
	// signature alone does not tell them apart.
	t.Run("signed for another room", func(t *testing.T) {
		a, err := SignAdmission(b.group, otherRoom, g.head, b.group.OwnLeafIndex(), b.key, carol, nil)
		must(t, err)
		_, err = VerifyAdmission(tree, policy, a, nil)
		wantRule(t, err, RuleAddWithoutAdmission)
	})
	t.Run("signed for another group", func(t *testing.T) {
		a := *good
		a.Group = Bytes{1, 2, 3}
		a.Sig, err = mls.SignWithLabel(testSuite, b.key, LabelAdmission, a.content())
		must(t, err)
		_, err = VerifyAdmission(tree, policy, &a, nil)
		wantRule(t, err, RuleAddWithoutAdmission)
	})
	t.Run("not entitled", func(t *testing.T) {
		strict := testPolicy()
		strict.Admit = AdmitAdmins
		_, err := VerifyAdmission(tree, strict, good, nil)
		wantRule(t, err, RuleAddWithoutAdmission)
	})
	t.Run("removed since", func(t *testing.T) {
		_, err := VerifyAdmission(tree, policy, good, func(u id.UserID, since federation.Ref) bool { return u == carol && since == g.head })
		wantRule(t, err, RuleAddWithoutAdmission)
	})
	t.Run("its author left", func(t *testing.T) {
		g.merge(g.commit(g.creator, nil, mls.CommitOptions{Proposals: []mls.Proposal{mls.Remove(1)}}))
		_, err := VerifyAdmission(g.creator.group, policy, good, nil)
		wantRule(t, err, RuleAddWithoutAdmission)
	})
	t.Run("master key", func(t *testing.T) {
		must(t, good.CheckAdmittedKey(&CrossSigning{User: carol, Master: bytes.Repeat([]byte{3}, 32)}))
		wantRule(t, good.CheckAdmittedKey(&CrossSigning{User: carol, Master: bytes.Repeat([]byte{4}, 32)}), RuleIdentityChanged)
		wantRule(t, good.CheckAdmittedKey(nil), RuleIdentityChanged)
	})
}

func TestStatements(t *testing.T) {
	g := newGroup(t, testPolicy())
	a := g.creator
	scope := federation.Scope{Room: string(testRoom), Group: a.group.GroupID()}
	s, err := SignApplied(testSuite, a.key, scope, g.head, 0, a.group.EpochAuthenticator())
	must(t, err)
	must(t, VerifyLeafSignature(uint16(testSuite), a.cred.Key, s.Content(scope), s.Signature))
	scope.Room = string(otherRoom)
	wantRule(t, VerifyLeafSignature(uint16(testSuite), a.cred.Key, s.Content(scope), s.Signature), RuleReceiptForged)
	r, err := SignReject(testSuite, a.key, scope, g.head, 0, "commit/tag")
	must(t, err)
	must(t, VerifyLeafSignature(uint16(testSuite), a.cred.Key, r.Content(scope), r.Signature))
	r.Rule = "other"
	wantRule(t, VerifyLeafSignature(uint16(testSuite), a.cred.Key, r.Content(scope), r.Signature), RuleReceiptForged)
}

func TestRefs(t *testing.T) {
	g := newGroup(t, testPolicy())
	b := newDevice(t, bob, "LAPTOP")
	g.add(b)
	m := g.commit(b, nil, mls.CommitOptions{})
	raw := bytes.Clone(m.staged.Message())
	refOf := func(raw []byte) (federation.Ref, error) {
		p, err := mls.ParseMessage(raw)
		must(t, err)
		return CommitRef(p)
	}
	want, err := refOf(raw)
	must(t, err)
	last := len(raw) - 1
	raw[last] ^= 1 // the membership tag
	if got, err := refOf(raw); err != nil || got != want {
		t.Errorf("the ref depends on the membership tag: %v, %v", got, err)
	}
	raw[last-40] ^= 1 // the confirmation tag
	if got, err := refOf(raw); err != nil || got == want {
		t.Errorf("the ref does not depend on the confirmation tag: %v, %v", got, err)
	}
	app, err := b.group.Encrypt([]byte("x"), MessageAAD{Head: g.head}.Encode())
	must(t, err)
	_, err = refOf(app)
	wantRule(t, err, RuleContentMalformed)
	p, err := mls.ParseMessage(app)
	must(t, err)
	_, err = RootRef(p)
	wantRule(t, err, RuleContentMalformed)
	if aad, err := DecodeMessageAAD(p.AuthenticatedData()); err != nil || aad.Head != g.head {
		t.Errorf("head in the message: %v, %v", aad, err)
	}
}

func TestCommitBundle(t *testing.T) {
	b := &CommitBundle{Message: []byte{1, 2}, Proposals: [][]byte{{3}, {4, 5}}, GroupInfo: []byte{6}}
	testBundle(t, b)
	b.KeyPackages = [][]byte{{7}, {8, 9}}
	testBundle(t, b)
	if (&CommitBundle{KeyPackages: [][]byte{make([]byte, MaxInline+1)}}).Inline() {
		t.Error("key packages do not count for what fits into an event")
	}
	raw, err := (&CommitBundle{}).Encode()
	must(t, err)
	_, err = DecodeCommitBundle(append(raw, 0, 0)) // an empty list is absent
	wantRule(t, err, RuleContentMalformed)
}

func testBundle(t *testing.T, b *CommitBundle) {
	t.Helper()
	raw, err := b.Encode()
	must(t, err)
	got, err := DecodeCommitBundle(raw)
	must(t, err)
	if diff := cmp.Diff(b, got); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
	short := *b
	short.KeyPackages = nil
	without, err := short.Encode()
	must(t, err)
	for n := range raw {
		if n == len(without) {
			continue // no key packages
		}
		_, err := DecodeCommitBundle(raw[:n])
		wantRule(t, err, RuleContentMalformed)
	}
	_, err = DecodeCommitBundle(append(raw, 0))
	wantRule(t, err, RuleContentMalformed)
	_, err = DecodeCommitBundle([]byte{1, 0xff, 0xff, 0xff, 0xff})
	wantRule(t, err, RuleContentMalformed)
	c := &CommitContent{}
	c.SetInline(b)
	if diff := cmp.Diff(b, c.Bundle()); diff != "" || !b.Inline() || (&CommitBundle{Message: make([]byte, MaxInline+1)}).Inline() {
		t.Errorf("inline (-want +got):\n%s", diff)
	}
}

func FuzzCommitAAD(f *testing.F) {
	raw, err := fullAAD().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := DecodeCommitAAD(raw)
		if err != nil {
			return
		}
		if again, err := a.Encode(); err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("decodes, but encodes to %x, %v", again, err)
		}
	})
}
