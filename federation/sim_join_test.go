package federation

import "slices"

// Soft failures, newcomers and parted sides.

// repost lets a module post again what it holds and others' servers hide. Those
// whom the module reaches get it.
func (s *sim) repost(x *simNode) {
	if !x.up || s.without&ruleRepost != 0 {
		return
	}
	for _, y := range s.nodes {
		rest := y.hidden[:0]
		for _, id := range y.hidden {
			if x.has[id] && y.group == x.group {
				y.inbox = append(y.inbox, id)
			} else {
				rest = append(rest, id)
			}
		}
		y.hidden = rest
	}
}

// join brings somebody who knows the room's root and what a module shows: the
// newest final commit with its tree and its proof. Of what was sent before, its
// server has a part.
func (s *sim) join(from *simNode) {
	if !from.up || from == s.liar {
		return
	}
	m := from.m
	f := m.final
	p := m.ProofChain()
	s.judgeProof(from, p)
	base := Base{Ref: f.ref, Epoch: f.epoch, Era: f.eraNo, Config: f.config, GroupID: f.group, Suite: f.suite, Policy: *clonePolicy(f.policy), Proof: &p}
	for i, l := range f.table() {
		base.Leaves = append(base.Leaves, Leaf{Index: i, User: l.user, Key: l.key})
	}
	sortLeaves(base.Leaves)
	cfg := s.members[0].cfg
	fresh, err := New(cfg, base)
	if err != nil {
		panic(err)
	}
	x := &simNode{name: "late", cfg: cfg, m: fresh, up: true, has: map[int]bool{}, in: map[int]bool{}, rate: 100, group: from.group, at: f.ref, untold: true}
	for id := range s.log {
		if s.rng.Intn(2) == 0 {
			x.inbox = append(x.inbox, id)
		} else {
			x.lost = append(x.lost, id)
		}
	}
	s.stats.joined++
	s.late = append(s.late, x)
}

// judgeProof checks a proof as a newcomer does, and: 14: what it would show as
// confirmed is not beside a final commit.
func (s *sim) judgeProof(x *simNode, p ProofChain) {
	if !p.FromRoot {
		broken("14 newcomers", "the proof of %s does not begin at the root", x.name)
	}
	list, config := s.rootList, s.root
	at := s.root
	for _, st := range p.Steps {
		if st.Era == 0 {
			voters := map[uint32]bool{}
			above := map[Ref]bool{st.Ref: true}
			end := st.Ref
			for _, l := range st.Above {
				if l.Parent != end {
					broken("14 newcomers", "%s shows a way that does not go from %s to %s", x.name, end.Short(), l.Ref.Short())
				}
				end, above[l.Ref] = l.Ref, true
			}
			for _, v := range st.Votes {
				if st.Config != config || v.Config != config || int(v.Voter) >= len(list) || !above[v.Ref] || v.Ballot != st.Votes[0].Ballot ||
					s.verify[v.Hash(Scope{Room: simRoom})] != string(list[v.Voter].ReceiptKey) {
					broken("14 newcomers", "%s shows a vote that does not count for %s", x.name, st.Ref.Short())
				}
				voters[v.Voter] = true
			}
			if len(voters) < list.Quorum() {
				broken("14 newcomers", "%s shows %d votes for %s, want %d", x.name, len(voters), st.Ref.Short(), list.Quorum())
			}
		}
		at = st.Ref
		if st.Sets != nil {
			list, config = st.Sets, st.Ref
		}
	}
	if p.Proven && at != p.Final {
		broken("14 newcomers", "%s proves %s and says it is %s", x.name, at.Short(), p.Final.Short())
	}
	if len(p.Steps) > 0 && !s.lied() {
		if g, ok := s.finals[s.era[at]]; ok && !s.extends(at, g) && !s.extends(g, at) {
			broken("14 newcomers", "%s proves %s, which is beside the final %s", x.name, at.Short(), g.Short())
		}
	}
}

// joined: 1, 14: who joined late follows everyone else, unless an era began below
// where it joined.
func (s *sim) joined() {
	a := s.upMember()
	if a == nil {
		return
	}
	for _, x := range s.late {
		x.inbox = append(x.inbox, x.lost...)
		x.lost = nil
		for _, id := range x.inbox {
			s.feed(x, id)
		}
		for id := range s.log {
			if !slices.Contains(x.inbox, id) {
				s.feed(x, id)
			}
		}
		if s.extends(a.m.head.ref, x.at) {
			s.same(a, x.name, x.m, "who joined late")
		}
	}
}

func (s *sim) upMember() *simNode {
	for _, x := range s.members {
		if x.up {
			return x
		}
	}
	return nil
}

// parted lets each side of the network settle for itself: 1: a side sees one
// head. 10: one honest sequencer that is reached suffices for a member's commit.
func (s *sim) parted() {
	if !s.script.faults.split || s.lied() {
		return
	}
	for _, x := range s.nodes {
		if s.without&ruleRepost == 0 {
			x.hidden, x.lost = nil, append(x.lost, x.hidden...)
		}
		if !x.up && !x.killed {
			s.restart(x)
		}
	}
	for range s.nodes {
		for _, x := range s.nodes {
			s.sync(x)
			for x.up && len(x.inbox) > 0 {
				id := x.inbox[0]
				x.inbox = x.inbox[1:]
				s.feed(x, id)
			}
		}
	}
	s.settle()
	if s.restless {
		return
	}
	for group := range 3 {
		var side []*simNode
		for _, x := range s.nodes {
			if x.group == group && x.up {
				side = append(side, x)
			}
		}
		if len(side) == 0 {
			continue
		}
		for _, x := range side[1:] {
			s.same(side[0], x.name, x.m, "on one side")
		}
		for _, x := range side {
			if !x.module && x != s.bad {
				s.oneSuffices(x, side)
				break
			}
		}
	}
}

func (s *sim) oneSuffices(x *simNode, side []*simNode) {
	n := x.buildOn()
	list, _, ok := x.m.list(x.m.serving())
	reached := false
	for _, y := range side {
		if _, in := list.Rank(pub(y)); y.module && in && !y.m.retired {
			reached = true
		}
	}
	if _, in := x.device(n); !ok || !reached || !in || !x.holds[n.ref] || x.m.windowFull(n) || n.policy.OnPartition == OnPartitionFreeze ||
		x.m.cut(x.m.head) != x.m.head || x.m.serving() != n.config {
		return
	}
	x.last = Ref{}
	c := s.commit(x, 0)
	if c == nil || c.External {
		return
	}
	s.settleFor(60) // two waits of 16 times the rank's turn, one after the other
	if !s.restless && x.buildOn() == n {
		broken("10 bounded censorship", "on its side of the network, %s reaches a sequencer, but nothing is accepted on %s, where its commit is %s", x.name, n.ref.Short(), x.m.Status(c.Ref))
	}
}
