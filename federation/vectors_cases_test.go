package federation

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"math/rand"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// VectorCase is a room and everything that was ever sent in it: the source of a
// test vector. vectors_test.go, which may use package rooms, writes it down.
type VectorCase struct {
	Name, About string
	Room        string
	Base        Base
	Events      []Event
	Edits       map[int]func(content string) string // of the JSON of some events, by index
	Compacts    bool                                // the story drops what is old; its outcome is not that of the set
}

// VectorCases returns the rooms of the stories, of some that only this file
// tells, of random histories and of small runs of the simulator. What they sign
// is signed again, by sign for a leaf whose key has the given seed.
func VectorCases(t *testing.T, sign func(seed, content []byte) []byte) []VectorCase {
	t.Helper()
	var out []VectorCase
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, f := range files {
		s := &story{}
		datadriven.RunTest(t, f, s.run)
		name := strings.TrimSuffix(filepath.Base(f), ".txt")
		for i, c := range s.rooms {
			if c.Compacts || len(c.Events) == 0 {
				continue
			}
			c.Name, c.About = "story-"+name, "testdata/"+name+".txt"
			if i > 0 {
				c.Name += fmt.Sprintf("-%d", i+1)
			}
			out = append(out, c)
		}
	}
	out = append(out, toldHere(t)...)
	out = append(out, ruleCases()...)
	for i := range 12 {
		c := randomCase(int64(1000 + i))
		c.Name = fmt.Sprintf("random-%02d", i)
		out = append(out, c)
	}
	for i := range 6 {
		c := lateCase(t, randomCase(int64(2000+i)), int64(i))
		c.Name = fmt.Sprintf("late-%02d", i)
		out = append(out, c)
	}
	for i, seed := range vectorSeeds {
		c := simCase(t, seed, i%2 == 1)
		c.Name = fmt.Sprintf("run-%02d", i)
		out = append(out, c)
	}
	for i := range out {
		newResigner(&out[i], sign).all()
	}
	return out
}

// randomCase returns a room full of lies.
func randomCase(seed int64) VectorCase {
	_, base, evs := history(rand.New(rand.NewSource(seed)))
	return VectorCase{Name: fmt.Sprintf("seed-%d", seed), About: "random commits, receipts and statements, most of them lies", Room: testRoom, Base: base,
		Events: evs}
}

// simCase returns a run of the simulator, or a part of one: then not all is
// settled, and some of what is named is missing.
func simCase(t *testing.T, seed int64, part bool) VectorCase {
	t.Helper()
	s := newSim(simScriptOf(seed, 70), 0)
	if err := s.run(); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	c := VectorCase{Name: fmt.Sprintf("run-%d", seed), About: fmt.Sprintf("seed %d of the simulator: %s", seed, s.script.faults), Room: simRoom,
		Base: s.base, Events: s.log}
	if part {
		c.About += ", a part of its events"
		rng := rand.New(rand.NewSource(seed))
		c.Events = slices.DeleteFunc(c.Events[:len(c.Events)*3/4], func(Event) bool { return rng.Intn(12) == 0 })
	}
	return c
}

// lateCase is a room seen by who begins at one of its commits above the root.
func lateCase(t *testing.T, c VectorCase, seed int64) VectorCase {
	t.Helper()
	m, err := New(Config{Room: c.Room, Verify: func(uint16, []byte, []byte, []byte) error { return nil }}, c.Base)
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range c.Events {
		_, _ = m.Step(ev)
	}
	if len(m.order) < 2 {
		return c
	}
	at := m.order[1+rand.New(rand.NewSource(seed)).Intn((len(m.order)+1)/2)]
	c.Base = Base{Ref: at.ref, Epoch: at.epoch, Era: at.eraNo, Config: at.config, GroupID: at.group, Suite: at.suite, Policy: *at.policy}
	for i, l := range at.table() {
		c.Base.Leaves = append(c.Base.Leaves, Leaf{Index: i, User: l.user, Key: l.key})
	}
	slices.SortFunc(c.Base.Leaves, func(a, b Leaf) int { return int(a.Index) - int(b.Index) })
	c.Name, c.About = "late-"+c.Name, c.About+fmt.Sprintf("; seen from depth %d", at.depth)
	return c
}

// FreshCases returns rooms that are in no vector: random ones, whole runs of the
// simulator and parts of runs, in turn; the second half of each twelve is seen
// from above the root.
func FreshCases(t *testing.T, first, n int64, sign func(seed, content []byte) []byte) []VectorCase {
	t.Helper()
	var out []VectorCase
	for seed := first; seed < first+n; seed++ {
		var c VectorCase
		switch seed % 3 {
		case 0:
			c = randomCase(seed)
		default:
			c = simCase(t, seed, seed%3 == 1)
		}
		if seed%12 >= 6 {
			c = lateCase(t, c, seed)
		}
		newResigner(&c, sign).all()
		out = append(out, c)
	}
	return out
}

// vectorSeeds are runs of the simulator that have much in them for their size.
var vectorSeeds = []int64{3, 10, 37, 67, 108, 80, 88, 155, 147, 211, 272, 205, 299, 327, 24, 364, 50, 373, 387, 339}

// toldHere are rooms that no story tells.
func toldHere(t *testing.T) []VectorCase {
	t.Helper()
	var out []VectorCase
	add := func(name, about string, base Base, evs ...Event) {
		out = append(out, VectorCase{Name: name, About: about, Room: testRoom, Base: base, Events: evs})
	}
	three, users := []string{"s1", "s2", "s3"}, []string{"alice", "bob", "carol"}

	w := newWorld()
	base := w.base(three, []string{"alice"}, users)
	evs := []Event{w.commit("a", "root", "alice", commitSpec{}), w.commit("b", "a", "bob", commitSpec{}), w.commit("x", "root", "carol", commitSpec{})}
	flip := func(sig []byte) { sig[3] ^= 1 }
	a1 := w.accept("a", "s1", Ballot{}, false, nil)
	flip(a1.Signature)
	a2 := w.accept("x", "s1", Ballot{}, false, nil)
	a2.Parent = testRef("a")
	w.signed("s1", a2)
	a3 := w.accept("x", "s1", Ballot{}, false, nil)
	a3.Epoch = 2
	w.signed("s1", a3)
	a4 := w.accept("x", "s2", Ballot{}, false, nil) // not the owner of round 0
	p1 := w.promise("root", "s1", Ballot{Round: 1, Rank: 1}, nil)
	p2 := w.promise("root", "s2", Ballot{Round: 1, Rank: 1}, nil)
	p3 := w.promise("root", "s3", Ballot{Round: 1, Rank: 2}, nil)
	a5 := w.accept("x", "s2", Ballot{Round: 1, Rank: 1}, false, []*Promise{p1, p3})
	a6 := w.accept("x", "s2", Ballot{Round: 1, Rank: 1}, false, []*Promise{p2})
	a7 := w.accept("x", "s2", Ballot{Round: 1, Rank: 1}, false, []*Promise{p2, p2})
	p4 := w.promise("root", "s1", Ballot{Round: 2, Rank: 1}, &LastVote{Ballot: Ballot{Round: 2, Rank: 1}, Ref: testRef("x")})
	p5 := w.promise("root", "s1", Ballot{Round: 2, Rank: 1}, nil)
	flip(p5.Signature)
	a8 := w.accept("x", "s2", Ballot{Round: 2, Rank: 1}, false, []*Promise{p5, p2})
	v1 := w.vote("x", "s1", Ballot{}, nil)
	v1.Voter = 1
	v2 := w.vote("x", "s3", Ballot{}, nil)
	flip(v2.Signature)
	v3 := w.vote("x", "s2", Ballot{Round: 0, Rank: 1}, nil)
	v4 := w.vote("x", "s2", Ballot{Round: 1, Rank: 7}, nil)
	r1 := w.reject("x", "bob", "path/secret")
	r1.Rule = "path/other"
	ap1 := w.applied("x", "bob")
	flip(ap1.Signature)
	ap2 := w.applied("x", "alice")
	ap2.Leaf = w.index("bob")
	ap3 := w.applied("x", "bob")
	ap3.Hash[0] ^= 1
	ap4 := &Applied{Ref: r1.Ref, Leaf: r1.Leaf, Signature: r1.Signature}
	ap5 := w.applied("x", "nobody")
	good := w.accept("b", "s1", Ballot{}, false, nil)
	add("told-refused", "receipts and statements with a wrong signature, signer, parent, epoch, ballot or leaf", base,
		append(evs, a1, a2, a3, a4, a5, a6, a7, p3, p4, p5, a8, v1, v2, v3, v4, r1, ap1, ap2, ap3, ap4, ap5, good)...)

	w = newWorld()
	base = w.base(three, []string{"alice"}, users)
	wrong := w.commit("h", "root", "alice", commitSpec{})
	wrong.AuthorUser = "bob"
	jump := w.commit("j", "root", "alice", commitSpec{})
	jump.Epoch = 5
	ext := w.commit("k", "root", "dave", commitSpec{external: true})
	ext.AuthorUser = "erin"
	own := w.commit("l", "root", "alice", commitSpec{})
	own.Parent = own.Ref
	add("told-refused-commits", "facts that contradict the parent's tree or policy", base, wrong, jump, ext, own,
		w.commit("m", "root", "alice", commitSpec{remove: []string{"nobody"}}), w.commit("n", "root", "alice", commitSpec{add: []string{"bob"}}),
		w.commit("o", "root", "alice", commitSpec{era: 2, list: []string{"s1"}, admins: []string{"alice"}}),
		w.commit("p", "root", "alice", commitSpec{era: 1}),
		w.commit("q", "root", "alice", commitSpec{era: 1, heirs: []string{"alice"}, list: []string{"s1"}, admins: []string{"bob"}}),
		w.commit("r", "root", "alice", commitSpec{list: []string{"s1", "s1"}}),
		w.commit("s", "m", "alice", commitSpec{}), w.commit("a", "root", "bob", commitSpec{}), w.accept("a", "s1", Ballot{}, false, nil))

	// A group is founded anew: its statements are bound to the new group id, and
	// nobody's leaf lasts into it.
	w = newWorld()
	base = w.base(three, []string{"alice"}, users)
	evs = []Event{w.commit("close", "root", "alice", commitSpec{}), w.accept("close", "s1", Ballot{}, false, nil), w.applied("close", "bob")}
	f := w.commit("found", "close", "alice", commitSpec{})
	f.Epoch, w.epochs["found"] = 1, 1
	f.Founding = &Founding{GroupID: []byte("group two"), Suite: 1, Leaves: []Leaf{w.leaf("alice/2"), w.leaf("bob/2"), w.leaf("carol/2")}}
	oldScope := w.applied("found", "carol/2")
	w.group = []byte("group two")
	evs = append(evs, f, w.accept("found", "s1", Ballot{}, false, nil), oldScope, w.applied("found", "bob/2"), w.commit("next", "found", "bob/2", commitSpec{}),
		w.accept("next", "s1", Ballot{}, false, nil), w.applied("next", "alice/2"), w.vote("next", "s1", Ballot{}, nil), w.vote("next", "s3", Ballot{}, nil))
	add("told-refounded", "a founding commit replaces group id and leaves", base, evs...)

	// Commits without finality: how far a client may go.
	for _, freeze := range []bool{false, true} {
		w = newWorld()
		w.window = 2
		base = w.base(three, []string{"alice"}, users)
		name := "told-window"
		if freeze {
			base.Policy.OnPartition, name = OnPartitionFreeze, "told-freeze"
		}
		evs = nil
		up := "root"
		for i, s := range []commitSpec{{}, {onlyRemoves: true, remove: []string{"carol"}}, {}, {}, {}} {
			n := fmt.Sprintf("c%d", i)
			evs = append(evs, w.commit(n, up, users[i%2], s), w.accept(n, "s1", Ballot{}, false, nil))
			up = n
		}
		evs = append(evs, w.vote("c0", "s1", Ballot{}, nil), w.vote("c0", "s2", Ballot{}, nil))
		if freeze {
			evs = evs[:len(evs)-1]
		}
		add(name, "votable commits above the newest final; a commit of Removes only does not count", base, evs...)
	}

	// A partition, a takeover, and a provisional branch that loses.
	w = newWorld()
	base = w.base(three, []string{"alice"}, users)
	p := newPeers(t, w, base, "s2", "s3")
	evs = []Event{w.commit("a", "root", "alice", commitSpec{}), w.accept("a", "s1", Ballot{}, false, nil), w.commit("b", "a", "bob", commitSpec{})}
	p.step(evs...)
	side := []Event{w.commit("s", "a", "carol", commitSpec{}), w.accept("s", "s1", Ballot{}, true, nil), w.commit("t", "s", "alice", commitSpec{}),
		w.accept("t", "s1", Ballot{}, true, nil), w.applied("s", "bob")}
	p.run(50, "s2", "s3")
	p.step(w.applied("b", "alice"))
	p.run(9, "s2", "s3")
	evs = append(evs, w.applied("b", "alice"))
	seen := map[Ref]bool{}
	for _, n := range []string{"s2", "s3"} {
		rs := p.ms[n].lists[testRef("root")]
		var own []Receipt
		for _, x := range rs.promises {
			own = append(own, x)
		}
		for _, x := range rs.accepts {
			own = append(own, x.Accept)
		}
		for _, x := range rs.votes {
			own = append(own, x.Vote)
		}
		for _, r := range own {
			if h := r.Hash(Scope{Room: testRoom}); !seen[h] {
				seen[h] = true
				evs = append(evs, r)
			}
		}
	}
	add("told-partition", "two modules take over; the third goes on provisionally", base, append(evs, side...)...)
	add("told-side-branch", "the side branch alone, before the parts meet", base, append([]Event{evs[0], evs[1], evs[2]}, side...)...)

	// A newcomer's beginning above the root.
	w = newWorld()
	late := w.base(three, []string{"alice"}, users)
	ca := w.commit("a", "root", "alice", commitSpec{})
	cb := w.commit("b", "a", "bob", commitSpec{})
	late.Ref, late.Epoch, late.Config = testRef("a"), 1, testRef("root")
	pr := []*Promise{
		w.promise("root", "s2", Ballot{Round: 1, Rank: 1}, &LastVote{Ref: testRef("a")}),
		w.promise("root", "s3", Ballot{Round: 1, Rank: 1}, &LastVote{Ref: testRef("root")}),
	}
	add("told-newcomer", "begins at a commit whose receipts it does not hold", late, ca, cb, w.accept("a", "s1", Ballot{}, false, nil),
		pr[0], pr[1], w.accept("b", "s2", Ballot{Round: 1, Rank: 1}, false, pr), w.applied("b", "carol"), w.vote("b", "s2", Ballot{Round: 1, Rank: 1}, nil),
		w.vote("b", "s3", Ballot{Round: 1, Rank: 1}, nil), w.vote("a", "s1", Ballot{}, nil))

	// The same beginning, and a liar's promise that tells of a last vote for what
	// is final, in a ballot that never was: who starts there cannot tell, so that it
	// counts for everybody. Nobody votes on it.
	w = newWorld()
	late = w.base(three, []string{"alice"}, users)
	w.commit("a", "root", "alice", commitSpec{})
	late.Ref, late.Epoch, late.Config = testRef("a"), 1, testRef("root")
	evs = []Event{w.commit("b", "a", "bob", commitSpec{}), w.accept("b", "s1", Ballot{}, false, nil), w.applied("b", "carol"),
		w.vote("b", "s1", Ballot{}, nil), w.vote("b", "s3", Ballot{}, nil),
		w.commit("c", "b", "carol", commitSpec{}), w.commit("x", "b", "alice", commitSpec{}), w.accept("c", "s1", Ballot{}, false, nil),
		w.applied("c", "bob"), w.applied("x", "bob")}
	pr = []*Promise{
		w.promise("root", "s2", Ballot{Round: 2, Rank: 2}, &LastVote{Ref: testRef("c")}),
		w.promise("root", "s3", Ballot{Round: 2, Rank: 2}, &LastVote{Ballot: Ballot{Round: 1}, Ref: testRef("b")}),
	}
	evs = append(evs, w.accept("x", "s3", Ballot{Round: 2, Rank: 2}, false, pr))
	add("told-newcomer-lie", "a promise that tells of a vote nobody could cast, seen from above the root", late, evs...)

	// A last vote for a commit that is still to come does not count, one for a
	// commit below the base does.
	evs = slices.Clone(evs)
	w.commit("later", "b", "alice", commitSpec{})
	for i, name := range []string{"later", "root"} {
		b := Ballot{Round: uint64(3 + i), Rank: 2}
		evs = append(evs, w.accept([]string{"x", "c"}[i], "s3", b, false, []*Promise{
			w.promise("root", "s2", b, &LastVote{Ref: testRef(name)}), w.promise("root", "s3", b, nil)}))
	}
	add("told-newcomer-waits", "promises that report commits which are not held", late, evs...)

	// Last votes for a branch beside the base: it is not still to come, so they
	// count, and bind to nothing. Where a link of the branch is missing they wait.
	w = newWorld()
	late = w.base(three, []string{"alice"}, users)
	w.commit("a", "root", "alice", commitSpec{})
	late.Ref, late.Epoch, late.Config = testRef("a"), 1, testRef("root")
	evs = []Event{w.commit("z1", "root", "bob", commitSpec{}), w.commit("z2", "z1", "bob", commitSpec{}), w.commit("z3", "z2", "carol", commitSpec{}),
		w.accept("z3", "s1", Ballot{}, false, nil), w.commit("b", "a", "bob", commitSpec{}), w.commit("c", "b", "carol", commitSpec{})}
	w.commit("y1", "root", "bob", commitSpec{})
	w.commit("y2", "y1", "bob", commitSpec{})
	evs = append(evs, w.commit("y3", "y2", "carol", commitSpec{}))
	for i, name := range []string{"z3", "y3"} {
		b := Ballot{Round: uint64(1 + i), Rank: 2}
		evs = append(evs, w.accept([]string{"b", "c"}[i], "s3", b, false, []*Promise{
			w.promise("root", "s2", b, &LastVote{Ref: testRef(name)}), w.promise("root", "s3", b, nil)}))
	}
	add("told-newcomer-branch", "promises that report commits on a branch beside the base", late, evs...)
	return out
}

// resigner gives the leaves of a case keys of suite 1 and signs everything
// again: the tests' statements are signed in shorter ways. What was forged stays
// forged.
type resigner struct {
	c      *VectorCase
	sign   func(seed, content []byte) []byte
	leaves map[string][]byte // seed of the new key, by old key
	groups [][]byte
	keys   []ed25519.PrivateKey
	old    map[Ref]Receipt
	done   map[Ref]Receipt
}

func newResigner(c *VectorCase, sign func(seed, content []byte) []byte) *resigner {
	s := &resigner{c: c, sign: sign, leaves: map[string][]byte{}, old: map[Ref]Receipt{}, done: map[Ref]Receipt{}}
	for _, n := range []string{"s1", "s2", "s3", "s4", "s5", "s6", "hub", "new", "evil"} {
		s.keys = append(s.keys, testKey(n))
	}
	return s
}

func (s *resigner) leavesOf(ls []Leaf) []Leaf {
	var out []Leaf
	for _, l := range ls {
		seed := sha256.Sum256(append([]byte("vector leaf "), l.Key...))
		s.leaves[string(l.Key)] = seed[:]
		l.Key = ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
		out = append(out, l)
	}
	return out
}

func (s *resigner) all() {
	c := s.c
	s.groups = [][]byte{c.Base.GroupID}
	c.Base.Leaves = s.leavesOf(c.Base.Leaves)
	for i, ev := range c.Events {
		if ev, ok := ev.(*Commit); ok {
			d := cloneCommit(ev)
			d.EventID, d.ParentEvent, d.Barred = "", "", ""
			d.Added, d.Updated = s.leavesOf(d.Added), s.leavesOf(d.Updated)
			if d.Founding != nil {
				d.Founding.Leaves = s.leavesOf(d.Founding.Leaves)
				s.groups = append(s.groups, d.Founding.GroupID)
			}
			c.Events[i] = d
		}
	}
	for _, ev := range c.Events {
		if r, ok := ev.(Receipt); ok {
			s.collect(r)
		}
	}
	for i, ev := range c.Events {
		switch ev := ev.(type) {
		case *Applied:
			c.Events[i] = s.applied(ev)
		case *Rejected:
			d := *ev
			d.EventID = ""
			d.Signature = s.statement(ev.Signature, ev.Content)
			c.Events[i] = &d
		case Receipt:
			c.Events[i] = s.receipt(ev)
		}
	}
}

func (s *resigner) scope() Scope { return Scope{Room: s.c.Room} }

func (s *resigner) collect(r Receipt) {
	s.old[r.Hash(s.scope())] = r
	if a, ok := r.(*Accept); ok {
		for _, p := range a.Promises {
			s.collect(p)
		}
		for _, v := range a.Votes {
			s.collect(v)
		}
	}
}

// statement signs again what a leaf had signed.
func (s *resigner) statement(sig []byte, content func(Scope) []byte) []byte {
	verify := testVerify
	if s.c.Room == simRoom {
		verify = simVerify
	}
	for _, g := range s.groups {
		b := content(Scope{Room: s.c.Room, Group: g})
		for key, seed := range s.leaves {
			if verify(1, []byte(key), b, sig) == nil {
				return s.sign(seed, b)
			}
		}
	}
	return bytes.Repeat([]byte{7}, 64)
}

func (s *resigner) applied(a *Applied) *Applied {
	d := *a
	d.EventID = ""
	d.Signature = s.statement(a.Signature, a.Content)
	return &d
}

func (s *resigner) proofs(ps []Proof) []Proof {
	out := append([]Proof(nil), ps...)
	for i := range out {
		if out[i].Applied != nil {
			out[i].Applied = s.applied(out[i].Applied)
		}
	}
	return out
}

func (s *resigner) chain(c Chain) Chain {
	if r, ok := s.old[c.Prev]; ok {
		c.Prev = s.receipt(r).Hash(s.scope())
	}
	return c
}

// receipt returns the new form of a receipt.
func (s *resigner) receipt(r Receipt) Receipt {
	h := r.Hash(s.scope())
	if d, ok := s.done[h]; ok {
		return d
	}
	var key ed25519.PrivateKey
	for _, k := range s.keys {
		if r.VerifySignature(s.scope(), k.Public().(ed25519.PublicKey)) == nil {
			key = k
		}
	}
	var out Receipt
	switch r := r.(type) {
	case *Accept:
		d := cloneAccept(r)
		d.EventID = ""
		for i, p := range d.Promises {
			d.Promises[i] = s.receipt(p).(*Promise)
		}
		for i, v := range d.Votes {
			d.Votes[i] = s.receipt(v).(*Vote)
		}
		d.Chain = s.chain(r.Chain)
		out = d
	case *Vote:
		d := cloneVote(r)
		d.EventID, d.Proofs, d.Chain = "", s.proofs(r.Proofs), s.chain(r.Chain)
		out = d
	case *Promise:
		d := clonePromise(r)
		if d.LastVote != nil {
			d.LastVote.Proofs = s.proofs(r.LastVote.Proofs)
		}
		d.Chain = s.chain(r.Chain)
		out = d
	case *Ready:
		d := cloneReady(r)
		d.Chain = s.chain(r.Chain)
		out = d
	}
	if key != nil {
		if err := out.Sign(s.scope(), key); err != nil {
			panic(err)
		}
	}
	s.done[h] = out
	return out
}
