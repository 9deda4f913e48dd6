package federation

import (
	"time"
)

// The properties, as far as this layer can express them, with the numbers they
// have in the design. Each names the faults under which it is claimed.

// extends reports whether a is b or above it, in the tree of everything sent.
func (s *sim) extends(a, b Ref) bool {
	for s.depth[a] > s.depth[b] {
		a = s.commits[a].Parent
	}
	return a == b
}

// observe checks a node after it took something in.
func (s *sim) observe(x *simNode) {
	m := x.m
	f := simFinal{m.era.ref, m.final.ref}
	if f != x.finalAt {
		if !m.head.extends(m.final) {
			broken("2 finality", "%s: final %s is not on the head", x.name, f.final.Short())
		}
		if x.finalAt.era == f.era && !s.extends(f.final, x.finalAt.final) && !s.lied() {
			broken("2 finality", "%s: final %s gave way to %s", x.name, x.finalAt.final.Short(), f.final.Short())
		}
		g, ok := s.finals[f.era]
		if !ok {
			g = f.era
			s.finals[f.era] = g
		}
		switch {
		case s.extends(f.final, g):
			for r := f.final; r != g; r = s.commits[r].Parent {
				s.stats.finals++
				if n := s.nodeOf(x, r); n != nil {
					if n.listChange() {
						s.stats.lists++
					}
					s.judgeFinal(n)
				}
			}
			s.finals[f.era] = f.final
		case !s.extends(g, f.final):
			if !s.lied() {
				broken("2 finality", "%s and %s are final in one era, seen by %s", f.final.Short(), g.Short(), x.name)
			}
			s.conflict = true
		}
		x.finalAt = f
	}
	s.sameSet(x)
	s.judgeEra(x)
	if !x.module {
		s.judgeUsable(x)
	}
	// 3: along the head each epoch is one above the last, whatever was rewound.
	for n := m.head; n.up != nil && n != m.final; n = n.up {
		if n.epoch != n.up.epoch+1 && n.c.Founding == nil {
			broken("3 epoch monotonicity", "%s: epoch %d on %d", x.name, n.epoch, n.up.epoch)
		}
	}
}

// nodeOf returns a commit as some machine holds it: modules drop old ones.
func (s *sim) nodeOf(x *simNode, r Ref) *node {
	if n := x.m.nodes[r]; n != nil {
		return n
	}
	for _, y := range s.members {
		if n := y.m.nodes[r]; n != nil {
			return n
		}
	}
	return nil
}

// lied reports whether the run has a sequencer that signs what it should not:
// then agreement is not claimed, only evidence.
func (s *sim) lied() bool { return s.liar != nil }

// judgeFinal: with one bad member or server no commit becomes final that no
// honest user but its author could apply.
func (s *sim) judgeFinal(n *node) {
	r := n.ref
	if s.cannot[r] == "" || n.alone {
		return
	}
	for _, y := range s.members {
		if y == s.bad || y.user == n.c.AuthorUser || !y.holds[r] {
			continue
		}
		for _, i := range y.leaves {
			if l, ok := n.leaf(i); ok && l.user == y.user && l.since < n.depth {
				return
			}
		}
	}
	broken("2 applied before final", "%s by %s (%s) is final, and nobody else applied it", r.Short(), n.c.AuthorUser, s.cannot[r])
}

// judge holds an honest module to what it signed before.
func (s *sim) judge(x *simNode, r Receipt) {
	g := s.signed[x.name]
	link, hash := r.Link(), r.Hash(Scope{Room: simRoom})
	if a, ok := r.(*Accept); ok {
		for _, v := range a.Votes {
			s.judge(x, v)
		}
	}
	byCounter := s.chainOf[x.name]
	if byCounter == nil {
		byCounter = map[uint64]Ref{}
		s.chainOf[x.name] = byCounter
	}
	if old, ok := byCounter[link.Counter]; ok && old != hash {
		broken("15 crash safety", "%s signed two receipts with counter %d", x.name, link.Counter)
	}
	if link.Counter != g.counter+1 {
		broken("15 crash safety", "%s signed counter %d after %d", x.name, link.Counter, g.counter)
	}
	g.counter, byCounter[link.Counter] = link.Counter, hash
	switch r := r.(type) {
	case *Promise:
		if !g.promised[r.Config].Less(r.Ballot) {
			broken("15 crash safety", "%s promised %s after %s", x.name, r.Ballot, g.promised[r.Config])
		}
		g.promised[r.Config] = r.Ballot
		last := g.vote[r.Config]
		if (last == nil) != (r.LastVote == nil) || last != nil && (last.Ref != r.LastVote.Ref || last.Ballot != r.LastVote.Ballot) {
			broken("15 crash safety", "%s does not report its last vote", x.name)
		}
		if r.Promiser == r.Ballot.Rank {
			s.stats.takeovers++
		}
	case *Vote:
		if r.Ballot.Less(g.promised[r.Config]) {
			broken("15 crash safety", "%s voted in %s below its promise %s", x.name, r.Ballot, g.promised[r.Config])
		}
		if last := g.vote[r.Config]; last != nil && last.Ballot == r.Ballot && (last.Ref == r.Ref || !s.extends(r.Ref, last.Ref)) {
			broken("15 crash safety", "%s voted twice in %s", x.name, r.Ballot)
		}
		g.vote[r.Config] = r
	case *Accept:
		if r.Provisional {
			s.stats.provisionals++
			break
		}
		if r.Ballot.Less(g.promised[r.Config]) {
			broken("15 crash safety", "%s accepted in %s below its promise %s", x.name, r.Ballot, g.promised[r.Config])
		}
		if g.accepts[r.Config] == nil {
			g.accepts[r.Config] = map[Ballot]*Accept{}
		}
		if last := g.accepts[r.Config][r.Ballot]; last != nil && !s.extends(r.Ref, last.Ref) {
			broken("15 crash safety", "%s accepted two chains in %s", x.name, r.Ballot)
		} else if last != nil || r.Ballot.Round == 0 {
			s.judgeWindow(x, r.Ref)
		}
		g.accepts[r.Config][r.Ballot] = r
	}
}

// judgeWindow: bounded forks. A new commit is accepted only while fewer than
// window votable ones lie above the newest final its sequencer knows.
func (s *sim) judgeWindow(x *simNode, ref Ref) {
	n := x.m.nodes[ref]
	if n.c.OnlyRemoves {
		return
	}
	k := 0
	for y := n.up; y != nil && !y.final && y.c != nil; y = y.up {
		if y.votable {
			k++
		}
	}
	if k >= n.up.policy.window() {
		broken("7 bounded forks", "%s accepts on %d votable commits, the window is %d", x.name, k, n.up.policy.window())
	}
}

// sameSet: 1: whoever held the same set of events, at whatever time and however
// they came, saw the same.
func (s *sim) sameSet(x *simNode) {
	if x.untold || x == s.liar || x.m.base.ref != s.root || s.without&rulePersist != 0 {
		return
	}
	got := simOutcome{x.name, x.m.head.ref, x.m.SafeHead(), x.m.final.ref, x.m.era.ref}
	want, ok := s.outcome[x.sum]
	if !ok {
		s.outcome[x.sum] = got
		return
	}
	if s.stats.compared++; want.head != got.head || want.safe != got.safe || want.final != got.final || want.era != got.era {
		broken("1 convergence", "%s and %s hold the same %d events: heads %s and %s, finals %s and %s, eras %s and %s", want.name, x.name, len(x.in),
			want.head.Short(), got.head.Short(), want.final.Short(), got.final.Short(), want.era.Short(), got.era.Short())
	}
}

// judgeEra: 2, 17: an era that counts is followed, and one opened by somebody
// who is no admin any more, or by too few heirs, is not.
func (s *sim) judgeEra(x *simNode) {
	m := x.m
	for _, n := range m.order {
		if n.isEra() && n.vouched && n.eraNo > m.era.eraNo && n.up.eraBase == m.era && m.eraValid(n) {
			broken("2 finality", "%s stays in era %d although era %d counts", x.name, m.era.eraNo, n.eraNo)
		}
	}
	e := m.era
	if e == m.base {
		return
	}
	signers := s.commits[e.ref].Era.Signers
	left := e.up.eraBase.newest
	if !e.c.Era.ByHeirs && !left.policy.admin(e.c.AuthorUser) {
		broken("17 no server's act alone", "%s follows an era by %s, who is no admin at the newest final", x.name, e.c.AuthorUser)
	}
	if e.c.Era.ByHeirs && len(signers) < 2 && left.policy.Heirs != nil {
		here := map[string]bool{}
		for _, h := range left.policy.Heirs {
			left.anyLeaf(func(_ uint32, l *leaf) bool { here[h.Server] = here[h.Server] || l.user == h.User; return false })
		}
		k := 0
		for _, ok := range here {
			if ok {
				k++
			}
		}
		if k > 1 {
			broken("17 no server's act alone", "%s follows an era by one heir of %d servers", x.name, k)
		}
	}
}

// judgeUsable: 7: what a client sends on lies at most window votable commits
// above the newest final, but for Removes.
func (s *sim) judgeUsable(x *simNode) {
	u, k := x.m.nodes[x.m.UsableHead()], 0
	for n := u; n != x.m.final; n = n.up {
		if n.votable && !n.final && !n.c.OnlyRemoves {
			k++
		}
		if n.listChange() && !n.final {
			broken("7 bounded forks", "%s sends above a list change that is not final", x.name)
		}
		if s.script.faults.freeze && !n.final {
			broken("7 bounded forks", "%s sends on what is not final although the room freezes", x.name)
		}
	}
	if w := u.policy.window(); k > w {
		broken("7 bounded forks", "%s sends %d votable commits above the newest final, the window is %d", x.name, k, w)
	}
}

func (s *sim) evidence(x *simNode, e Evidence) {
	s.stats.evidence++
	if s.liar == nil || e.Signer.Server != s.liar.name {
		broken("2 evidence", "%s holds evidence (%s) against %s, which is honest", x.name, e.Kind, e.Signer.Server)
	}
	s.proof[e.Signer.Server] = true
}

// end heals everything, lets the room settle and checks what is claimed then.
func (s *sim) end() {
	s.rng, s.calm, s.lossPct, s.at = newSimRand(uint64(s.script.seed)), true, 0, len(s.script.steps)
	s.parted()
	for _, x := range s.nodes {
		x.group = 0
		if !x.up && !x.killed {
			s.restart(x)
		}
	}
	for _, x := range s.nodes {
		x.inbox, x.lost = append(x.inbox, x.lost...), nil
		if s.without&ruleRepost == 0 {
			x.inbox, x.hidden = append(x.inbox, x.hidden...), nil
		}
	}
	s.settle()
	s.converged("after healing")
	s.leave()
	if s.claimed() {
		s.progressed()
		for i, y := range s.members {
			if y == s.bad || i > 1 {
				continue
			}
			n := y.buildOn()
			if _, in := y.device(n); !in || !y.holds[n.ref] {
				continue
			}
			y.last = Ref{}
			c := s.commit(y, 0)
			s.settle()
			s.converged("after a commit")
			s.progressed()
			if !s.claimed() {
				break
			}
			if c != nil && !y.m.Final(c.Ref) {
				broken("10 bounded censorship", "the commit of %s is %s after everything settled", y.name, y.m.Status(c.Ref))
			}
		}
	}
	s.fresh()
	s.joined()
	s.readAll()
	if s.conflict && !s.proof[s.liar.name] {
		broken("2 evidence", "two finals conflict and nothing proves it")
	}
}

// shut reports whether a liar that is proven shut the list: the room does not come to
// rest, or every ballot has to extend a commit beside the newest final. Honest modules
// vote for neither then, so progress is claimed again above an era only.
func (s *sim) shut(m *Machine) bool {
	if !s.lied() || !s.proof[s.liar.name] {
		return false
	}
	n := m.boundTo(m.serving())
	return s.restless || n != nil && !n.extends(m.final) && !m.final.extends(n)
}

// leave lets an admin leave a list that a liar shut, by an era on the head with the
// honest modules.
func (s *sim) leave() {
	up := s.upMember()
	if up == nil || !s.shut(up.m) {
		return
	}
	live := s.twoHonest()
	for _, y := range s.members {
		if !y.up || y == s.bad {
			continue
		}
		s.follow(y)
		n := y.m.head
		leaf, in := y.device(n)
		if !in || !y.holds[n.ref] || !n.policy.admin(y.user) || !y.m.final.policy.admin(y.user) || n != n.eraBase && !n.acc.any() {
			continue
		}
		p := clonePolicy(n.policy)
		p.Sequencers = nil
		for _, x := range s.modules {
			if x.up && !x.m.retired && x != s.liar {
				p.Sequencers = append(p.Sequencers, testSequencerOf(x.name))
			}
		}
		if len(p.Sequencers) == 0 {
			return
		}
		s.restless = false
		s.put(y, &Commit{Ref: s.newRef(), Parent: n.ref, Epoch: n.epoch + 1, Author: leaf, AuthorUser: y.user, Policy: p, Era: &Era{Number: n.eraNo + 1}})
		s.settle()
		s.converged("after an era")
		if live && s.shut(up.m) {
			broken("2 a live majority regains finality", "an era by %s does not leave the list that a liar shut", y.user)
		}
		return
	}
}

// settle runs until nothing happens for longer than the longest wait of a
// takeover. The modules of a list that waits to be set say ever more rarely that
// they are ready, each side by itself: until five leave a gap of that length takes
// some ten hours, 300 turns.
func (s *sim) settle() { s.settleFor(20) }

func (s *sim) settleFor(patience int) {
	for i, idle := 0, 0; idle < patience; i++ {
		if i == 380+patience {
			if s.lied() && s.proof[s.liar.name] {
				// Votes split by a proven liar can hold up a list until an era
				// leaves it: progress is not claimed, equal heads are.
				s.restless = true
				s.drain()
				return
			}
			broken("2 a live majority regains finality", "the room does not come to rest")
		}
		before := len(s.log)
		if before > flood {
			broken("2 a live majority regains finality", "the room is flooded: %d events", before)
		}
		waits := false
		for _, x := range s.nodes {
			s.pump(x, 1<<20)
		}
		for _, x := range s.nodes {
			waits = waits || x.up && len(x.inbox) > 0
		}
		if idle++; waits || len(s.log) > before {
			idle = 0
			s.now += 3 * time.Second
		} else {
			s.now += 130 * time.Second
		}
	}
}

// flood is how many events no room of a few hundred steps comes to.
const flood = 5000

// drain gives everyone what is on its way, until nothing is.
func (s *sim) drain() {
	for again := true; again; {
		again = false
		for _, x := range s.nodes {
			for x.up && len(x.inbox) > 0 {
				id := x.inbox[0]
				x.inbox, again = x.inbox[1:], true
				s.feed(x, id)
			}
			if x.up && !x.module {
				s.follow(x)
			}
		}
	}
}

// converged: 1 and 7: equal sets of events, equal heads, for all that are up. A
// liar that keeps a vote to itself may know of a final that nobody else can.
func (s *sim) converged(when string) {
	var first *simNode
	for _, x := range s.nodes {
		if !x.up || x.unsent {
			continue
		}
		if first == nil {
			first = x
			continue
		}
		s.same(first, x.name, x.m, when)
	}
}

func (s *sim) same(a *simNode, name string, m *Machine, when string) {
	switch {
	case a.m.head.ref != m.head.ref:
		broken("1 convergence", "%s: head of %s is %s, of %s is %s", when, a.name, a.m.head.ref.Short(), name, m.head.ref.Short())
	case a.m.final.ref != m.final.ref || a.m.era.eraNo != m.era.eraNo:
		broken("1 convergence", "%s: final of %s is %s, of %s is %s", when, a.name, a.m.final.ref.Short(), name, m.final.ref.Short())
	case a.m.SafeHead() != m.SafeHead():
		broken("1 convergence", "%s: what to build on differs between %s and %s", when, a.name, name)
	}
}

// fresh feeds everything to a new machine in another order: 1, 16.
func (s *sim) fresh() {
	up := s.upMember()
	m, err := Unmarshal(up.cfg, s.founding)
	if err != nil {
		panic(err)
	}
	for _, i := range s.rng.Perm(len(s.log)) {
		_, _ = m.Step(s.told(s.log[i])) // what is refused is refused in every order
	}
	s.same(up, "a newcomer", m, "in another order")
	s.lostAccepts(up)
}

// lostAccepts: 16: which accepts of a ballot's chain somebody lost changes
// nothing, as long as he has one further up. What they carried is known.
func (s *sim) lostAccepts(up *simNode) {
	if s.lied() {
		return // accepts off one chain are compared with each other
	}
	top := map[Ref]map[Ballot]*Accept{}
	for _, ev := range s.log {
		if a, ok := ev.(*Accept); ok && !a.Provisional {
			if top[a.Config] == nil {
				top[a.Config] = map[Ballot]*Accept{}
			}
			if o := top[a.Config][a.Ballot]; o == nil || s.depth[a.Ref] > s.depth[o.Ref] {
				top[a.Config][a.Ballot] = a
			}
		}
	}
	m, err := Unmarshal(up.cfg, s.founding)
	if err != nil {
		panic(err)
	}
	lost := 0
	for _, ev := range s.log {
		if a, ok := ev.(*Accept); ok && !a.Provisional && a.Ref != top[a.Config][a.Ballot].Ref && s.extends(top[a.Config][a.Ballot].Ref, a.Ref) {
			lost++
			for _, v := range a.Votes {
				_, _ = m.Step(v)
			}
			for _, p := range a.Promises {
				_, _ = m.Step(p)
			}
			continue
		}
		_, _ = m.Step(s.told(ev))
	}
	if lost > 0 {
		s.same(up, "who lost them", m, "without the lower accepts of each ballot")
	}
}

// claimed reports whether what is votable becomes final, and commits get there.
func (s *sim) claimed() bool { return !s.restless && s.live() && !s.shut(s.upMember().m) }

// live reports whether the list at the head has a majority of honest, running
// sequencers, and two honest users hold the head.
func (s *sim) live() bool {
	if !s.twoHonest() {
		return false
	}
	m := s.upMember().m
	for x := m.boundTo(m.serving()); x != nil && x != m.final && x.up != nil; x = x.up {
		if x.listChange() && !x.final && !s.majority(x.policy.Sequencers) {
			return false // a minority's vote may have made it final: it waits for its list, or for an era
		}
	}
	list, _, _ := m.list(m.serving())
	return s.majority(list)
}

// twoHonest reports whether two honest users hold the head, with leaves that
// lasted since the newest final.
func (s *sim) twoHonest() bool {
	users := map[string]bool{}
	for _, x := range s.members {
		if !x.up || x == s.bad {
			continue
		}
		n := x.m.head
		if i, in := x.device(n); in && x.holds[n.ref] {
			if l, ok := x.m.final.leaf(i); ok && l.user == x.user {
				users[x.user] = true
			}
		}
	}
	return len(users) >= 2
}

// majority reports whether a list has a majority of honest, running sequencers.
func (s *sim) majority(list List) bool {
	up := 0
	for _, q := range list {
		for _, x := range s.modules {
			if x.name == q.Server && x.up && !x.m.retired && x != s.liar {
				up++
			}
		}
	}
	return up >= list.Quorum()
}

// progressed: 2: a live majority regains finality, for all that is votable.
func (s *sim) progressed() {
	if !s.claimed() {
		return
	}
	for _, x := range s.members {
		for n := x.m.head; x.up && n != x.m.final; n = n.up {
			if n.votable && !(n.listChange() && !s.majority(n.policy.Sequencers)) {
				broken("2 a live majority regains finality", "%s is votable and never becomes final (%s of list %s; newest final %s)",
					n.ref.Short(), x.m.Status(n.ref), n.governing().Short(), x.m.final.ref.Short())
			}
		}
	}
}

// readAll: 4: no message of an author who is on the head stays on a branch that lost, and
// each member whose device was there when it was last sent can read it.
func (s *sim) readAll() {
	for i, msg := range s.msgs {
		a := msg.author
		if a == s.bad || !a.up || a.at != a.m.head.ref {
			continue
		}
		last := a.m.nodes[msg.epochs[len(msg.epochs)-1]]
		if _, in := a.device(a.m.head); !in {
			continue
		}
		if !a.m.head.extends(last) {
			broken("4 no lost message", "message %d of %s stayed on a branch that lost", i, a.name)
		}
	}
	for _, y := range s.members {
		if y.up && y.at == y.m.head.ref {
			s.readable(y)
		}
	}
}

// readable: 4: who has come to a head where its device is can read what was sent in
// the epochs below it in which that device was, wherever its author is by now.
func (s *sim) readable(y *simNode) {
	is, in := y.device(y.m.head)
	if y == s.bad || !in {
		return
	}
	for i, msg := range s.msgs {
		last := y.m.nodes[msg.epochs[len(msg.epochs)-1]]
		if msg.author == s.bad || last == nil || y.holds[last.ref] || s.cannot[last.ref] != "" || !y.m.head.extends(last) {
			continue
		}
		if was, in := y.device(last); in && was == is {
			broken("4 no lost message", "%s cannot read message %d of %s in %s", y.name, i, msg.author.name, last.ref.Short())
		}
	}
}
