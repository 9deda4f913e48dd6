package mls

import "testing"

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
}
