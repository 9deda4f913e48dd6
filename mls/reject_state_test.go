package mls

import (
	"bytes"
	"errors"
	"testing"
)

var stateRejects = []rejectCase{
	{row: "state/send-with-pending-proposals", holds: func(t *testing.T, cs CipherSuite) {
		a, b := pair(t, cs)
		raw, _, err := b.ProposeUpdate(nil, FramingOptions{})
		noError(t, err)
		_, err = a.Process(mustParse(t, raw))
		noError(t, err)
		for _, g := range []*Group{a, b} {
			before := groupState(g)
			_, err := g.Encrypt([]byte("text"), nil)
			wantRule(t, err, "state/send-with-pending-proposals")
			if !errors.Is(err, ErrPendingProposals) {
				t.Errorf("got %v, want ErrPendingProposals", err)
			}
			if !bytes.Equal(before, groupState(g)) {
				t.Error("the refusal changed the group")
			}
		}
		m, a2 := mustCommit(t, a, CommitOptions{Pending: true})
		b2 := mustFollow(t, b, m)
		_, err = b2.Process(mustEncrypt(t, a2, "text"))
		noError(t, err)
	}},
	{row: "state/consumed-secrets-gone", holds: func(t *testing.T, cs CipherSuite) {
		a, b := pair(t, cs)
		u, err := b.ratchets.use(a.own, ContentTypeApplication, 0, b.cfg.limits())
		noError(t, err)
		ratchet, key := bytes.Clone(u.leafNew.application.secret), bytes.Clone(u.key)
		u.drop()
		root := bytes.Clone(b.ratchets.nodes[rootIndex(b.tree.size)])
		if !bytes.Contains(groupState(b), root) {
			t.Fatal("the encryption secret is not where this test looks for it")
		}
		m := mustEncrypt(t, a, "text")
		_, err = b.Process(m)
		noError(t, err)
		for _, g := range []*Group{a, b} {
			state := groupState(g)
			for name, s := range map[string][]byte{"encryption secret": root, "ratchet secret": ratchet, "message key": key} {
				if bytes.Contains(state, s) {
					t.Errorf("member %d still stores the %s", g.own, name)
				}
			}
			if g.secrets.encryption != nil || g.secrets.joiner != nil || g.secrets.welcome != nil {
				t.Errorf("member %d keeps secrets of the key schedule that are used up", g.own)
			}
		}
		// The next epoch holds nothing of this one but its resumption PSK.
		old := []secret{b.secrets.init, b.secrets.senderData, b.secrets.membership, b.secrets.confirmation, b.secrets.exporter, b.secrets.external}
		c, _ := mustCommit(t, a, CommitOptions{})
		b2 := mustFollow(t, b, c)
		state := groupState(b2)
		for i, s := range old {
			if bytes.Contains(state, s) {
				t.Errorf("the next epoch stores secret %d of the one before", i)
			}
		}
		own := b.keys[b.own.node()].priv
		if !bytes.Contains(state, own) {
			t.Error("the leaf key, which is still in use, is not stored")
		}
	}},
	{row: "state/aead-limit", each: func(t *testing.T, cs CipherSuite) error {
		a, b := pair(t, cs)
		limited := *a.cfg
		limited.Limits.MaxAEADInputs = 3
		a.cfg = &limited
		for range 3 {
			_, err := b.Process(mustEncrypt(t, a, "text"))
			noError(t, err)
		}
		before := groupState(a)
		_, err := a.Encrypt([]byte("text"), nil)
		if !bytes.Equal(before, groupState(a)) {
			t.Error("the refusal changed the group")
		}
		// A Commit is the way on.
		_, a2 := mustCommit(t, a, CommitOptions{})
		mustEncrypt(t, a2, "text")
		return err
	}},
	{row: "state/nonce-reuse-after-restore", holds: func(t *testing.T, cs CipherSuite) {
		a, b := pair(t, cs)
		seen := make(map[uint32]bool)
		epoch := a.EpochState()
		for range 5 {
			m := mustEncrypt(t, a, "text")
			stored := a.RatchetState() // and then a crash, before the message leaves
			got, err := b.Process(m)
			noError(t, err)
			if g := got.(*ApplicationMessage).Generation; seen[g] {
				t.Fatalf("generation %d was used twice", g)
			} else {
				seen[g] = true
			}
			if a, err = LoadGroup(a.cfg, epoch, stored); err != nil {
				t.Fatal(err)
			}
		}
		// A ratchet state cannot be put under another epoch.
		_, a2 := mustCommit(t, a, CommitOptions{})
		if _, err := LoadGroup(a.cfg, a2.EpochState(), a.RatchetState()); err == nil {
			t.Error("the ratchets of the epoch before were taken")
		}
		// Where an old copy is used all the same, the reuse guard keeps the
		// nonces apart (RFC 9420, Section 6.3.1).
		copyA, err := LoadGroup(&Config{Now: testNow}, epoch, a.RatchetState())
		noError(t, err)
		m1, m2 := mustEncrypt(t, a, "one"), mustEncrypt(t, copyA, "one")
		if bytes.Equal(m1.private.ciphertext[:16], m2.private.ciphertext[:16]) {
			t.Error("two copies of a member encrypted under one key and nonce")
		}
	}},
}
