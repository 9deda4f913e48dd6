package federation

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
)

// What members, the bad member, the server that swaps tags and the bad
// sequencer do.

// device returns the leaf that a member's device has in the tree of n.
func (x *simNode) device(n *node) (uint32, bool) {
	for i := len(x.leaves) - 1; i >= 0; i-- {
		if l, ok := n.leaf(x.leaves[i]); ok && l.user == x.user {
			return x.leaves[i], true
		}
	}
	return 0, false
}

// buildOn returns what a member's commits build on: the head, below what is in
// doubt and below a list change that is not final.
func (x *simNode) buildOn() *node {
	out := x.m.cut(x.m.head)
	for n := out; n != x.m.final && n.up != nil; n = n.up {
		if n.listChange() && !n.final {
			out = n.up
		}
	}
	return out
}

// canApply reports whether a member derives the epoch of a commit whose parent's
// epoch it holds.
func (s *sim) canApply(x *simNode, n *node) bool {
	if n.c.External && slices.Contains(x.leaves, n.c.Author) {
		return true
	}
	if n.c.Founding != nil { // by its Welcome, and the secrets of the group before
		_, in := x.device(n)
		return in && x.holds[n.up.ref]
	}
	if !x.holds[n.up.ref] {
		return false
	}
	if _, ok := x.device(n); !ok {
		return false
	}
	switch s.cannot[n.ref] {
	case "":
		return true
	case "nobody":
		return x.user == n.c.AuthorUser
	case "half":
		return x.user == n.c.AuthorUser || n.ref[0]>>(x.founder%8)&1 == 1
	}
	return false // a swapped tag: not even the author
}

// follow goes to the head, as far as the member can apply it.
func (s *sim) follow(x *simNode) {
	head, moved := x.m.head, x.at != x.m.head.ref
	if x.at != head.ref {
		own, _ := x.device(x.m.nodes[x.at])
		plan, ok := x.m.Heal(x.at, head.ref, own)
		if !ok {
			broken("heal", "%s has no way from %s to %s", x.name, x.at.Short(), head.ref.Short())
		}
		if len(plan.Undone) > 0 {
			x.removes = append(x.removes, plan.Removes...)
			x.adds = append(x.adds, plan.Adds...)
		}
		cur := plan.Fork
		for _, r := range plan.Path {
			if s.derive(x, x.m.nodes[r]) || !x.holds[cur] {
				cur = r // what it does not hold it joined behind
			}
		}
		if x.holds[cur] {
			x.at = cur
		}
	}
	for _, r := range x.m.NeedsVouching() { // eras beside the head are checked too
		s.derive(x, x.m.nodes[r])
	}
	for _, id := range x.sent {
		msg := s.msgs[id]
		if last, ok := x.m.nodes[msg.epochs[len(msg.epochs)-1]]; x.at == head.ref && ok && !head.extends(last) {
			if _, in := x.device(head); in {
				msg.epochs = append(msg.epochs, x.at)
				s.stats.resent++
			}
		}
	}
	if moved && x.at == head.ref {
		s.readable(x)
	}
}

// derive makes the epoch of a commit, or says that it cannot.
func (s *sim) derive(x *simNode, n *node) bool {
	switch {
	case x.holds[n.ref]:
		return true
	case s.canApply(x, n):
		x.holds[n.ref] = true
		return true
	case x.holds[n.up.ref] && !x.rejected[n.ref]:
		if _, in := x.device(n); !in {
			return false
		}
		if leaf, ok := x.device(n.up); ok && (n.acc.any() || n.isEra()) {
			x.rejected[n.ref] = true
			r := &Rejected{Ref: n.ref, Leaf: leaf, Rule: "update-path/decrypt"}
			l, _ := n.up.leaf(leaf)
			r.Signature = simSign(l.key, r.Content(n.up.scope(simRoom)))
			s.post(x, r)
		}
	}
	return false
}

// vouch says that a member applied a commit.
func (s *sim) vouch(x *simNode, ref Ref) {
	n, ok := x.m.nodes[ref]
	if !ok || !x.holds[ref] || x.applied[ref] {
		return
	}
	if leaf, ok := x.device(n); ok {
		x.applied[ref] = true
		s.postApplied(x, n, leaf)
	}
}

func (s *sim) postApplied(x *simNode, n *node, leaf uint32) {
	l, ok := n.leaf(leaf)
	if !ok {
		return
	}
	a := &Applied{Ref: n.ref, Leaf: leaf, Hash: AppliedHash(n.ref[:])}
	a.Signature = simSign(l.key, a.Content(n.scope(simRoom)))
	s.post(x, a)
}

// act is what a member does after each batch.
func (s *sim) act(x *simNode) {
	s.follow(x)
	if s.calm || s.rng.Intn(3) == 0 {
		needs := x.m.NeedsVouching()
		for i := len(needs) - 1; i >= 0; i-- {
			if x.holds[needs[i]] && !x.applied[needs[i]] {
				s.vouch(x, needs[i])
				if !x.m.nodes[needs[i]].isEra() {
					break
				}
			}
		}
	}
	if s.calm && x != s.bad {
		s.repair(x)
	}
}

// repair is what a member does without being asked: come back into a group it
// lost, and do again what a heal undid.
func (s *sim) repair(x *simNode) {
	n := x.buildOn()
	if x.told[n.ref] {
		return
	}
	_, in := x.device(n)
	if in && x.holds[n.ref] && len(x.removes)+len(x.adds) == 0 {
		return
	}
	s.commit(x, 0)
}

func (s *sim) newRef() Ref {
	s.nextRef++
	var b [24]byte
	binary.BigEndian.PutUint64(b[:], uint64(s.script.seed))
	binary.BigEndian.PutUint64(b[8:], uint64(s.nextRef))
	return sha256.Sum256(b[:])
}

func (s *sim) put(x *simNode, c *Commit) {
	s.commits[c.Ref] = c
	s.depth[c.Ref] = s.depth[c.Parent] + 1
	s.era[c.Ref], s.group[c.Ref] = s.era[c.Parent], s.group[c.Parent]
	if c.Founding != nil {
		s.group[c.Ref]++
		s.stats.groups++
	}
	if c.Era != nil {
		s.era[c.Ref] = c.Ref
		s.stats.eras++
	}
	s.stats.commits++
	s.post(x, c)
}

// commit makes a commit on what new commits build on.
func (s *sim) commit(x *simNode, kind uint32) *Commit {
	if !x.up {
		return nil
	}
	s.follow(x)
	n := x.buildOn()
	c := &Commit{Ref: s.newRef(), Parent: n.ref, Epoch: n.epoch + 1, AuthorUser: x.user}
	leaf, in := x.device(n)
	if !in || !x.holds[n.ref] {
		// Rejoin by an external commit, never on what is not vouched for.
		if x.told[n.ref] || !n.votable {
			return nil
		}
		x.told[n.ref] = true
		c.External, c.Author = true, s.newLeaf()
		if in {
			c.Removed = []uint32{leaf}
		}
		c.Added = []Leaf{{Index: c.Author, User: x.user, Key: leafKey(c.Author)}}
		x.leaves = append(x.leaves, c.Author)
		s.put(x, c)
		return c
	}
	c.Author = leaf
	if last, ok := s.commits[x.last]; ok && last.Parent == n.ref && (s.calm || s.rng.Intn(4) > 0) {
		return nil // one waits already
	}
	if s.redo(x, n, c) {
		x.last = c.Ref
		s.put(x, c)
		return c
	}
	f := s.script.faults
	if x.list.Equal(n.policy.Sequencers) {
		x.list = nil
	}
	switch k := kind % 32; {
	case x.list != nil && !s.calm && n.policy.admin(x.user) && s.rng.Intn(2) == 0:
		p := clonePolicy(n.policy)
		p.Sequencers = x.list
		c.Policy = p
	case k < 10:
		c.Updated = []Leaf{{Index: leaf, User: x.user, Key: leafKey(leaf)}}
	case k < 14:
		i, u := s.newLeaf(), s.members[s.rng.Intn(len(s.members))].user
		c.Added = []Leaf{{Index: i, User: u, Key: leafKey(i)}}
	case k < 17:
		for i := range s.nextIdx {
			if l, ok := n.leaf(i); ok && i != leaf && (i >= uint32(len(s.members)) || k == 16 && l.user == "dave") {
				c.Removed, c.OnlyRemoves = []uint32{i}, true
				break
			}
		}
	case k < 22 && f.listChange && n.policy.admin(x.user):
		p := clonePolicy(n.policy)
		p.Sequencers = s.someList()
		c.Policy = p
		if f.relist {
			x.list = p.Sequencers
		}
	case k < 24 && f.eras && n.policy.admin(x.user) && (n == n.eraBase || n.acc.any()):
		p := clonePolicy(n.policy)
		p.Sequencers = s.someList()
		c.Policy, c.Era = p, &Era{Number: n.eraNo + 1}
	case k >= 25 && f.refound && n == x.m.final && n.c != nil && n.c.Founding == nil:
		c.Epoch = 1
		c.Founding = &Founding{GroupID: fmt.Appendf(nil, "group %d", s.nextRef), Suite: 1}
		for i := range n.table() {
			l, _ := n.leaf(i)
			c.Founding.Leaves = append(c.Founding.Leaves, Leaf{Index: i, User: l.user, Key: leafKey(i)})
		}
		sortLeaves(c.Founding.Leaves)
	case k == 24 && x.user == "alice":
		p := clonePolicy(n.policy)
		if p.admin("bob") {
			p.Admins = []string{"alice"}
		} else {
			p.Admins = []string{"alice", "bob"}
		}
		c.Policy = p
	}
	x.last = c.Ref
	s.put(x, c)
	return c
}

// redo fills a commit with what a heal undid: Removes first.
func (s *sim) redo(x *simNode, n *node, c *Commit) bool {
	own, _ := x.device(n)
	for len(x.removes) > 0 {
		l := x.removes[0]
		x.removes = x.removes[1:]
		if o, ok := n.leaf(l.Index); ok && o.user == l.User && l.Index != own {
			c.Removed, c.OnlyRemoves = []uint32{l.Index}, true
			x.removes = append([]Leaf{l}, x.removes...) // until it is gone
			return true
		}
	}
	for len(x.adds) > 0 {
		l := x.adds[0]
		x.adds = x.adds[1:]
		if _, ok := n.leaf(l.Index); ok || slices.Contains(s.redone, l.Index) {
			continue
		}
		s.redone = append(s.redone, l.Index)
		c.Added = []Leaf{l}
		return true
	}
	return false
}

// heirsEra opens an era by heirs: all of them who hold the head sign, or, where
// the run says so, fewer than it takes.
func (s *sim) heirsEra(x *simNode, few bool) {
	if !x.up {
		return
	}
	s.follow(x)
	n := x.m.head
	leaf, in := x.device(n)
	isHeir := func(u string) bool {
		return slices.ContainsFunc(n.policy.Heirs, func(h Heir) bool { return h.User == u })
	}
	if !in || !x.holds[n.ref] || !isHeir(x.user) || n != n.eraBase && !n.acc.any() {
		return
	}
	e := &Era{Number: n.eraNo + 1, ByHeirs: true, Signers: []string{x.user}}
	due := x.m.HeirsDue()
	for _, y := range s.members {
		if y != x && y.up && y.group == x.group && isHeir(y.user) && !few {
			e.Signers = append(e.Signers, y.user)
			due = due && y.m.HeirsDue()
		}
	}
	if !due && !few {
		return
	}
	p := clonePolicy(n.policy)
	p.Sequencers = s.someList()
	if len(p.Sequencers) == 0 {
		return
	}
	s.put(x, &Commit{Ref: s.newRef(), Parent: n.ref, Epoch: n.epoch + 1, Author: leaf, AuthorUser: x.user, Policy: p, Era: e})
}

func (s *sim) newLeaf() uint32 {
	s.nextIdx++
	return s.nextIdx - 1
}

func (s *sim) someList() List {
	var out List
	k := 1 + s.rng.Intn(len(s.modules))
	for _, i := range s.rng.Perm(len(s.modules)) {
		if x := s.modules[i]; !x.killed && x != s.liar && len(out) < k {
			out = append(out, testSequencerOf(x.name))
		}
	}
	if s.liar != nil && len(out) > 2 && s.rng.Intn(2) == 0 {
		out[s.rng.Intn(len(out))] = testSequencerOf(s.liar.name)
	}
	return out
}

// message sends in the epoch that clients may use, if this member is there.
func (s *sim) message(x *simNode) {
	if !x.up {
		return
	}
	s.follow(x)
	r := x.m.UsableHead()
	n := x.m.nodes[r]
	if _, in := x.device(n); !in || !x.holds[r] {
		return
	}
	x.sent = append(x.sent, len(s.msgs))
	s.msgs = append(s.msgs, &simMessage{author: x, epochs: []Ref{r}})
	s.stats.messages++
}

// misbehave is the bad member's turn, or the server's that swaps tags.
func (s *sim) misbehave(st simStep) {
	if s.script.faults.swapServer {
		// A twin of a waiting commit: same content, another tag, another ref.
		var waiting []*Commit
		for _, ev := range s.log {
			if c, ok := ev.(*Commit); ok && c.Era == nil && c.Founding == nil && !c.External && s.cannot[c.Ref] == "" {
				waiting = append(waiting, c)
			}
		}
		if len(waiting) == 0 {
			return
		}
		c := *waiting[len(waiting)-1-int(st.b)%min(3, len(waiting))]
		c.Ref = s.newRef()
		s.cannot[c.Ref] = "swap"
		s.stats.bads++
		s.put(s.members[int(st.c)%len(s.members)], &c)
		return
	}
	x := s.bad
	if x == nil || !x.up {
		return
	}
	switch st.b % 4 {
	case 0, 1:
		s.follow(x)
		n := x.buildOn()
		leaf, in := x.device(n)
		if !in || !x.holds[n.ref] {
			return
		}
		c := &Commit{Ref: s.newRef(), Parent: n.ref, Epoch: n.epoch + 1, Author: leaf, AuthorUser: x.user}
		s.cannot[c.Ref] = []string{"nobody", "half"}[st.c%2]
		s.stats.bads++
		if st.c%3 > 0 {
			i, friend := s.newLeaf(), "erin"
			c.Added = []Leaf{{Index: i, User: friend, Key: leafKey(i)}}
			s.put(x, c)
			// The one it added has a good Welcome and says so; it stands in for a
			// member that cannot know better.
			a := &Applied{Ref: c.Ref, Leaf: i, Hash: AppliedHash(c.Ref[:])}
			a.Signature = simSign(leafKey(i), a.Content(n.scope(simRoom)))
			s.post(x, a)
			return
		}
		s.put(x, c)
		s.postAppliedTo(x, c, leaf, n)
	case 2: // rejects what is good
		n := x.m.head
		if n.up == nil {
			return
		}
		if leaf, in := x.device(n.up); in {
			r := &Rejected{Ref: n.ref, Leaf: leaf, Rule: "update-path/decrypt"}
			l, _ := n.up.leaf(leaf)
			r.Signature = simSign(l.key, r.Content(n.up.scope(simRoom)))
			s.post(x, r)
		}
	case 3: // vouches for everything of its own
		for _, n := range x.m.order {
			if n.c != nil && n.c.AuthorUser == x.user && !x.applied[n.ref] {
				if leaf, in := x.device(n); in {
					x.applied[n.ref] = true
					s.postApplied(x, n, leaf)
					return
				}
			}
		}
	}
}

func (s *sim) postAppliedTo(x *simNode, c *Commit, leaf uint32, up *node) {
	l, _ := up.leaf(leaf)
	a := &Applied{Ref: c.Ref, Leaf: leaf, Hash: AppliedHash(c.Ref[:])}
	a.Signature = simSign(l.key, a.Content(up.scope(simRoom)))
	s.post(x, a)
}

// lie signs something with the bad sequencer's key.
func (s *sim) lie(st simStep) {
	x := s.liar
	if x == nil || !x.up {
		return
	}
	config := x.m.serving()
	rank, ok := x.m.rankIn(config)
	if !ok {
		return
	}
	list, _, _ := x.m.list(config)
	rs := x.m.receiptsOf(config)
	var ns []*node
	for _, n := range x.m.order {
		if n.governing() == config {
			ns = append(ns, n)
		}
	}
	if len(ns) == 0 {
		return
	}
	n := ns[len(ns)-1-int(st.b)%min(len(ns), 6)]
	ballots := []Ballot{{}}
	for _, p := range rs.promises {
		ballots = append(ballots, p.Ballot)
	}
	ballot := ballots[len(ballots)-1-int(st.c)%min(len(ballots), 3)]
	var r Receipt
	switch st.a % 6 {
	case 0, 1:
		if ballot.Rank != rank {
			return
		}
		a := &Accept{Config: config, Ballot: ballot, Ref: n.ref, Parent: n.c.Parent, Epoch: n.epoch}
		if ballot.Round > 0 {
			a.Promises = x.m.promisesFor(rs, ballot)
			if q := list.Quorum(); len(a.Promises) < q {
				return
			} else if st.c/3%4 < 3 {
				a.Promises = a.Promises[:q] // more make it void
			}
		}
		r = a
	case 2, 3:
		r = &Vote{Config: config, Ballot: ballot, Voter: rank, Ref: n.ref, Proofs: x.m.proofs(x.m.base, n)}
	case 4:
		if ballot.Round == 0 {
			ballot = Ballot{Round: 1, Rank: rank}
		}
		p := &Promise{Config: config, Ballot: ballot, Promiser: rank}
		if st.c%3 == 0 {
			p.LastVote = &LastVote{Ref: n.ref, Epoch: n.epoch, Proofs: x.m.proofs(x.m.base, n)}
		}
		r = p
	case 5:
		if n.sets {
			return
		}
		r = &Accept{Config: config, Ballot: Ballot{Rank: rank}, Provisional: true, Ref: n.ref, Parent: n.c.Parent, Epoch: n.epoch}
	}
	s.lies.Counter++
	switch r := r.(type) {
	case *Accept:
		r.Chain = s.lies
	case *Vote:
		r.Chain = s.lies
	case *Promise:
		r.Chain = s.lies
	}
	if err := r.Sign(Scope{Room: simRoom}, x.cfg.Self.Key); err != nil {
		panic(err)
	}
	s.lies.Prev = r.Hash(Scope{Room: simRoom})
	s.post(x, r)
}
