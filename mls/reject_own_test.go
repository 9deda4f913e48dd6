package mls

import (
	"errors"
	"testing"
)

// noExternalSenders is an Authenticator that trusts one external sender only.
type noExternalSenders struct {
	refusing
	good string
}

func (a noExternalSenders) ValidateExternalSender(s *ExternalSender) error {
	if string(s.Credential.Identity) != a.good {
		return errors.New("unknown")
	}
	return nil
}

// ownRejects are rows beside those of the list.
var ownRejects = []rejectCase{
	{row: "welcome/reinit-psk-epoch", each: func(t *testing.T, cs CipherSuite) error {
		// Who is removed before the group is closed sees the ReInit, which is
		// public, and knows the resumption PSKs of its own epochs.
		w := newWorld(t, cs)
		gs := w.group(3)
		removed := gs[2]
		_, left := w.commit(gs, 0, CommitOptions{Proposals: []Proposal{Remove(2)}})
		r := &ReInit{GroupID: []byte("next"), Version: MLS10, CipherSuite: cs}
		_, left = w.commit(left, 0, CommitOptions{Proposals: []Proposal{r.Proposal()}})
		removed.epoch.reinit = r
		b0, b1 := w.bundle("member0"), w.bundle("member1")
		forged, err := removed.ReInitGroup(removed.signature, w.options("member2"), []*KeyPackage{b0.KeyPackage(), b1.KeyPackage()}, CommitOptions{WelcomeRatchetTree: true})
		w.check(err)
		return w.refuseJoin(w.parse(forged.Welcome()), b1, JoinOptions{Resumption: []*Group{left[1]}})
	}},
	{row: "welcome/not-successor", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		r := &ReInit{GroupID: []byte("next"), Version: MLS10, CipherSuite: cs}
		_, closed := w.commit(gs, 0, CommitOptions{Proposals: []Proposal{r.Proposal()}})
		stranger, err := CreateGroup(w.cfg, cs, []byte("next"), w.key(), w.options("mallory"), nil)
		w.check(err)
		b := w.bundle("member1")
		sc, err := stranger.Commit(CommitOptions{Proposals: []Proposal{Add(b.KeyPackage())}, WelcomeRatchetTree: true})
		w.check(err)
		// A branch of the closed group is no successor either.
		branch, err := closed[0].Branch([]byte("next"), nil, w.key(), w.options("member0"), []*KeyPackage{b.KeyPackage()}, CommitOptions{WelcomeRatchetTree: true})
		w.check(err)
		if err := w.refuseJoin(w.parse(branch.Welcome()), b, JoinOptions{Successor: closed[1]}); !hasRule(err, "welcome/not-successor") {
			t.Errorf("branch: %v", err)
		}
		err = w.refuseJoin(w.parse(sc.Welcome()), b, JoinOptions{Successor: closed[1]})
		// And the right one is taken, without being listed again.
		next, err2 := closed[0].ReInitGroup(closed[0].signature, w.options("member0"), []*KeyPackage{b.KeyPackage()}, CommitOptions{WelcomeRatchetTree: true})
		w.check(err2)
		_, err2 = JoinWelcome(w.cfg, w.parse(next.Welcome()), b, JoinOptions{Successor: closed[1]})
		w.check(err2)
		return err
	}},
	{row: "framing/wire-format-unexpected", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		gs := w.group(2)
		pub := w.public(gs[0])
		b := w.bundle("x")
		kp := w.parse(b.Message())
		text := w.parse(mustEncrypt(t, gs[0], "text").Raw())
		if err := w.refusePublic(pub, text); !hasRule(err, "framing/wire-format-unexpected") {
			t.Errorf("a server: %v", err)
		}
		if err := w.refuseJoin(text, b, JoinOptions{}); !hasRule(err, "framing/wire-format-unexpected") {
			t.Errorf("a join: %v", err)
		}
		for _, f := range []func() error{
			func() error { _, err := NewPublicGroup(w.cfg, kp, nil); return err },
			func() error { return gs[0].VerifyGroupInfo(kp) },
			func() error {
				_, err := ExternalJoin(w.cfg, kp, w.key(), ExternalJoinOptions{Leaf: w.options("x")})
				return err
			},
		} {
			if err := f(); !hasRule(err, "framing/wire-format-unexpected") {
				t.Errorf("where a GroupInfo is due: %v", err)
			}
		}
		return w.refuse(gs[1], kp)
	}},
	{row: "external-sender/credential-invalid", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		senders := func(name string) Extension {
			return ExternalSendersExtension([]ExternalSender{{SignatureKey: w.key().Public(), Credential: BasicCredential([]byte(name))}})
		}
		gs := w.group(2)
		bad := w.propose(gs[0], GroupContextExtensions([]Extension{senders("evil")}))
		commit := w.forge(gs[0], commitForgery{proposals: byValue(GroupContextExtensions([]Extension{senders("evil")})), path: true,
			exts: []Extension{senders("evil")}})
		w.cfg.Authenticator = noExternalSenders{good: "good"}
		for name, err := range map[string]error{
			"create": func() error {
				_, err := CreateGroup(w.cfg, cs, []byte("g"), w.key(), w.options("a"), []Extension{senders("evil")})
				return err
			}(),
			"commit": func() error {
				_, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{GroupContextExtensions([]Extension{senders("evil")})}})
				return err
			}(),
			"ReInit": func() error {
				_, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{(&ReInit{GroupID: []byte("n"), Version: MLS10, CipherSuite: cs, Extensions: []Extension{senders("evil")}}).Proposal()}})
				return err
			}(),
			"received": w.refuse(gs[1], commit),
		} {
			if !hasRule(err, "external-sender/credential-invalid") {
				t.Errorf("%s: %v", name, err)
			}
		}
		_, next := w.commit(gs, 0, CommitOptions{Proposals: []Proposal{GroupContextExtensions([]Extension{senders("good")})}})
		info, err := next[0].GroupInfo(GroupInfoOptions{RatchetTree: true})
		w.check(err)
		if _, err := NewPublicGroup(w.cfg, w.parse(info), nil); err != nil {
			t.Errorf("follow: %v", err)
		}
		w.cfg.Authenticator = noExternalSenders{good: "another"}
		if _, err := NewPublicGroup(w.cfg, w.parse(info), nil); !hasRule(err, "external-sender/credential-invalid") {
			t.Errorf("follow: %v", err)
		}
		return w.refuse(gs[1], bad)
	}},
	{row: "proposal/reinit-nowhere", each: func(t *testing.T, cs CipherSuite) error {
		w := newWorld(t, cs)
		g := w.group(2)[0]
		before := groupState(g)
		make := func(r ReInit) error {
			if _, _, err := g.Propose(r.Proposal(), FramingOptions{}); !hasRule(err, "proposal/reinit-nowhere") {
				t.Errorf("%v: as a proposal: %v", r, err)
			}
			_, err := g.Commit(CommitOptions{Proposals: []Proposal{r.Proposal()}})
			if string(before) != string(groupState(g)) {
				t.Error("the group has changed")
			}
			return err
		}
		wantRule(t, make(ReInit{GroupID: []byte("n"), Version: 99, CipherSuite: cs}), "proposal/reinit-nowhere")
		wantRule(t, make(ReInit{GroupID: []byte("n"), Version: MLS10, CipherSuite: 0x7777}), "proposal/reinit-nowhere")
		return make(ReInit{GroupID: []byte("n"), Version: MLS10, CipherSuite: hybrid})
	}},
}
