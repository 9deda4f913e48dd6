package federation

import (
	"crypto/ed25519"
	"fmt"
	"testing"
)

// checkChain follows a proof as a newcomer does: with the root's list and the
// chain alone, no tree.
func checkChain(t *testing.T, root Ref, rootList List, c ProofChain) {
	t.Helper()
	list, config, era := rootList, root, uint64(0)
	for i, s := range c.Steps {
		keys := map[string]ProofKey{}
		for _, k := range s.Keys {
			keys[k.Ref.String()+fmt.Sprint(k.Leaf.Index)] = k
		}
		statements := func(ps []Proof) {
			for _, p := range ps {
				if p.Applied == nil {
					continue
				}
				k, ok := keys[p.Applied.Ref.String()+fmt.Sprint(p.Applied.Leaf)]
				if !ok || testVerify(k.Suite, k.Leaf.Key, p.Applied.Content(Scope{Room: testRoom, Group: k.Group}), p.Applied.Signature) != nil {
					t.Errorf("step %d: a statement about %s cannot be checked with the keys shown", i, p.Applied.Ref.Short())
				}
			}
		}
		statements(s.Vouchers)
		if s.Era > 0 {
			if s.Era != era+1 || len(s.Votes) != 0 || len(s.Vouchers) == 0 {
				t.Errorf("step %d: era %d above era %d with %d votes and %d vouchers", i, s.Era, era, len(s.Votes), len(s.Vouchers))
			}
			era = s.Era
		} else {
			if s.Config != config || len(s.Votes) != list.Quorum() {
				t.Fatalf("step %d: %d votes of list %s, want %d of %s", i, len(s.Votes), s.Config.Short(), list.Quorum(), config.Short())
			}
			above := map[Ref]bool{s.Ref: true}
			at := s.Ref
			for _, l := range s.Above {
				if l.Parent != at {
					t.Errorf("step %d: %s is not on %s", i, l.Ref.Short(), at.Short())
				}
				at, above[l.Ref] = l.Ref, true
			}
			voted := map[uint32]bool{}
			for _, v := range s.Votes {
				if voted[v.Voter] || v.Ballot != s.Votes[0].Ballot || v.Config != config || !above[v.Ref] {
					t.Errorf("step %d: vote by %d for %s in %s does not count", i, v.Voter, v.Ref.Short(), v.Ballot)
				}
				voted[v.Voter] = true
				if err := v.VerifySignature(Scope{Room: testRoom}, ed25519.PublicKey(list[v.Voter].ReceiptKey)); err != nil {
					t.Errorf("step %d: %v", i, err)
				}
				statements(v.Proofs)
			}
		}
		if s.Sets != nil {
			list, config = s.Sets, s.Ref
		} else if i != len(c.Steps)-1 {
			t.Errorf("step %d of %d sets no list", i, len(c.Steps))
		}
	}
	if len(c.Steps) > 0 && c.Proven != (c.Steps[len(c.Steps)-1].Ref == c.Final) {
		t.Errorf("proven %v, but the last step shows %s and the newest final is %s", c.Proven, c.Steps[len(c.Steps)-1].Ref.Short(), c.Final.Short())
	}
}

// chainWorld steps a client's machine through final commits.
type chainWorld struct {
	*world
	t    *testing.T
	m    *Machine
	tip  string
	list []string
}

func (c *chainWorld) step(evs ...Event) {
	c.t.Helper()
	for _, ev := range evs {
		if _, err := c.m.Step(ev); err != nil {
			c.t.Fatal(err)
		}
	}
}

// final adds a commit that becomes final by the first q of the list.
func (c *chainWorld) final(name string, spec commitSpec) {
	c.t.Helper()
	c.step(c.commit(name, c.tip, "alice", spec), c.applied(name, "bob"))
	proofs := []Proof{{Applied: c.applied(name, "bob")}}
	q := len(c.list)/2 + 1
	if spec.era == 0 {
		c.step(c.accept(name, c.list[0], Ballot{}, false, nil))
		for _, s := range c.list[:q] {
			c.step(c.vote(name, s, Ballot{}, proofs))
		}
	}
	if spec.list != nil {
		c.list = spec.list
	}
	c.tip = name
	if c.m.NewestFinal() != testRef(name) {
		c.t.Fatalf("%s is not final\n%s", name, c.state(c.m))
	}
}

func newChainWorld(t *testing.T, limits Limits, list ...string) (*chainWorld, Base, Config) {
	c := &chainWorld{world: newWorld(), t: t, tip: "root", list: list}
	base := c.base(list, []string{"alice"}, []string{"alice", "bob"})
	cfg := testConfig("")
	cfg.Limits = limits
	m, err := New(cfg, base)
	if err != nil {
		t.Fatal(err)
	}
	c.m = m
	return c, base, cfg
}

// TestProofChain runs a long room through list changes and an era, with
// compaction and restarts on the way: its chain always shows the newest final.
func TestProofChain(t *testing.T) {
	c, base, cfg := newChainWorld(t, Limits{Keep: 4}, "s1", "s2", "s3")
	if p := c.m.ProofChain(); !p.Proven || !p.FromRoot || len(p.Steps) != 0 {
		t.Errorf("at the root: %+v", p)
	}
	changes, era, eraAt := 0, 0, ""
	for i := range 59 {
		spec := commitSpec{}
		switch {
		case i == 20:
			spec.list, spec.era, spec.admins = []string{"s4", "s5"}, 1, []string{"alice"}
			era, eraAt = i, fmt.Sprintf("c%d", i)
		case i%7 == 3:
			spec.list, spec.admins = [][]string{{"s1", "s2"}, {"s3"}, {"s1", "s2", "s3"}}[i%3], []string{"alice"}
			changes++
		}
		c.final(fmt.Sprintf("c%d", i), spec)
		if i%5 == 2 {
			blob, err := c.m.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			if c.m, err = Unmarshal(cfg, blob); err != nil {
				t.Fatal(err)
			}
		}
		p := c.m.ProofChain()
		checkChain(t, base.Ref, base.Policy.Sequencers, p)
		want := changes
		if era > 0 {
			want++
		}
		if last := p.Steps[len(p.Steps)-1]; last.Sets == nil {
			want++
		}
		if !p.Proven || !p.FromRoot || len(p.Steps) != want {
			t.Fatalf("commit %d: proven %v, from the root %v, %d steps, want %d", i, p.Proven, p.FromRoot, len(p.Steps), want)
		}
	}
	if c.m.Base() == base.Ref || c.m.Held(testRef(eraAt)) {
		t.Fatal("nothing was dropped")
	}
	// A module that joined later begins at the newest final with the chain it was
	// shown, and goes on with it.
	shown := c.m.ProofChain()
	late := Base{Ref: testRef(c.tip), Epoch: c.epochs[c.tip], Era: 1, Config: testRef(c.config[c.tip]), GroupID: c.group, Suite: 1,
		Policy: *c.policy(c.list, []string{"alice"}), Leaves: []Leaf{c.leaf("alice"), c.leaf("bob")}, Proof: &shown}
	m, err := New(cfg, late)
	if err != nil {
		t.Fatal(err)
	}
	c.m = m
	if p := m.ProofChain(); !p.Proven || !p.FromRoot || len(p.Steps) != len(shown.Steps) {
		t.Errorf("a late module shows %d steps, proven %v", len(p.Steps), p.Proven)
	}
	c.final("late1", commitSpec{})
	c.final("late2", commitSpec{list: []string{"s2"}, admins: []string{"alice"}})
	c.final("late3", commitSpec{})
	p := m.ProofChain()
	checkChain(t, base.Ref, base.Policy.Sequencers, p)
	if !p.Proven || len(p.Steps) != len(shown.Steps)+1 {
		t.Errorf("%d steps, want %d; proven %v", len(p.Steps), len(shown.Steps)+1, p.Proven)
	}
}

// TestProofChainIsBounded: of too many list changes the oldest go, and the chain
// says that it does not begin at the root.
func TestProofChainIsBounded(t *testing.T) {
	c, _, _ := newChainWorld(t, Limits{Keep: 2, Proofs: 3}, "s1")
	for i := range 40 {
		spec := commitSpec{}
		if i%4 == 0 {
			spec.list, spec.admins = [][]string{{"s2"}, {"s1"}}[i/4%2], []string{"alice"}
		}
		c.final(fmt.Sprintf("c%d", i), spec)
	}
	if p := c.m.ProofChain(); p.FromRoot || len(c.m.proofSteps) != 3 || !p.Proven {
		t.Errorf("from the root %v, %d steps kept, proven %v", p.FromRoot, len(c.m.proofSteps), p.Proven)
	}
}

// TestProofChainOfVotesAbove: votes for different commits of one chain make the
// lower one final; the proof shows the way between them.
func TestProofChainOfVotesAbove(t *testing.T) {
	c, base, _ := newChainWorld(t, Limits{}, "s1", "s2", "s3")
	c.step(c.commit("a", "root", "alice", commitSpec{}), c.commit("b", "a", "alice", commitSpec{}), c.commit("c", "b", "alice", commitSpec{}),
		c.accept("c", "s1", Ballot{}, false, nil), c.applied("c", "bob"))
	proofs := []Proof{{Applied: c.applied("c", "bob")}}
	c.step(c.vote("a", "s1", Ballot{}, proofs), c.vote("c", "s2", Ballot{}, proofs))
	p := c.m.ProofChain()
	checkChain(t, base.Ref, base.Policy.Sequencers, p)
	if p.Final != testRef("a") || !p.Proven || len(p.Steps) != 1 || len(p.Steps[0].Above) != 2 {
		t.Fatalf("final %s, proven %v, steps %d", c.name(p.Final), p.Proven, len(p.Steps))
	}
	c.step(c.vote("c", "s1", Ballot{}, proofs))
	p = c.m.ProofChain()
	checkChain(t, base.Ref, base.Policy.Sequencers, p)
	if p.Final != testRef("c") || !p.Proven || len(p.Steps[0].Above) != 0 {
		t.Fatalf("final %s, proven %v, %d above", c.name(p.Final), p.Proven, len(p.Steps[0].Above))
	}
}

// TestProofChainKeepsToOneChain: where a lying owner accepted two chains, honest
// votes in its ballot lie on both. They make final what is below, but a proof
// shows one way.
func TestProofChainKeepsToOneChain(t *testing.T) {
	c, base, _ := newChainWorld(t, Limits{}, "s1", "s2", "s3", "s4", "s5")
	c.step(c.commit("a", "root", "alice", commitSpec{}), c.commit("b", "a", "alice", commitSpec{}), c.commit("c", "a", "alice", commitSpec{}),
		c.accept("b", "s1", Ballot{}, false, nil), c.accept("c", "s1", Ballot{}, false, nil), c.applied("b", "bob"), c.applied("c", "bob"))
	vote := func(by, name string) { c.step(c.vote(name, by, Ballot{}, []Proof{{Applied: c.applied(name, "bob")}})) }
	vote("s1", "b")
	vote("s2", "c")
	vote("s3", "c")
	p := c.m.ProofChain()
	checkChain(t, base.Ref, base.Policy.Sequencers, p)
	if p.Final != testRef("a") || p.Proven || len(p.Steps) != 0 {
		t.Fatalf("final %s, proven %v, %d steps", c.name(p.Final), p.Proven, len(p.Steps))
	}
	vote("s4", "a")
	p = c.m.ProofChain()
	checkChain(t, base.Ref, base.Policy.Sequencers, p)
	if p.Final != testRef("a") || !p.Proven || len(p.Steps) != 1 || len(p.Steps[0].Above) != 1 || p.Steps[0].Above[0].Ref != testRef("c") {
		t.Fatalf("final %s, proven %v, steps %+v", c.name(p.Final), p.Proven, p.Steps)
	}
}

// TestVotesInANewBallotShowTheirProofs: a vote that repeats the last one in a
// higher ballot stands alone in a newcomer's proof.
func TestVotesInANewBallotShowTheirProofs(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"})
	p := newPeers(t, w, base, "s2", "s3")
	p.step(w.commit("a", "root", "alice", commitSpec{}), w.accept("a", "s1", Ballot{}, false, nil), w.applied("a", "bob"))
	s3 := p.ms["s3"]
	delete(p.ms, "s3") // s2 votes, nobody hears it
	p.run(6, "s2")
	p.want("s2: vote a ballot=0.0 proofs=[applied(a,leaf 1)] counter=1")
	p.ms["s3"] = s3
	p.step(w.promise("root", "s3", Ballot{Round: 1, Rank: 2}, nil))
	p.run(1, "s2")
	p.want("s2: promise ballot=1.2 last=a@0.0 counter=2")
	promises := p.ms["s2"].lists[testRef("root")].promises
	p.step(w.accept("a", "s3", Ballot{Round: 1, Rank: 2}, false, promises))
	p.run(6, "s2")
	p.want("s2: vote a ballot=1.2 proofs=[applied(a,leaf 1)] counter=3")
}
