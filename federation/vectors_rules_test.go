package federation

import "slices"

// ruleCases are rooms of one rule each: who leaves the rule out, or reads it the
// other way, comes to another outcome.
func ruleCases() []VectorCase {
	var out []VectorCase
	for _, cases := range [][]ruleCase{boundRules, newcomerRules, setRules, vouchRules, choiceRules, eraRules} {
		for _, c := range cases {
			w := newWorld()
			base, evs := c.tell(w)
			out = append(out, VectorCase{Name: "rule-" + c.name, About: c.about, Room: testRoom, Base: base, Events: evs})
		}
	}
	return append(out, formCase())
}

type ruleCase struct {
	name, about string
	tell        func(w *world) (Base, []Event)
}

var (
	ruleList  = []string{"s1", "s2", "s3"}
	ruleUsers = []string{"alice", "bob", "carol"}
	oneOne    = Ballot{Round: 1, Rank: 1}
)

func (w *world) plainBase() Base { return w.base(ruleList, []string{"alice"}, ruleUsers) }

// lateBase begins at commit a, of epoch 1.
func (w *world) lateBase() Base {
	base := w.plainBase()
	w.commit("a", "root", "alice", commitSpec{})
	base.Ref, base.Epoch, base.Config = testRef("a"), 1, testRef("root")
	return base
}

// vouched is a commit, and a statement of a member who could apply it.
func (w *world) vouched(name, parent, author, by string) []Event {
	return []Event{w.commit(name, parent, author, commitSpec{}), w.applied(name, by)}
}

func lastVote(name string, round uint64) *LastVote {
	return &LastVote{Ballot: Ballot{Round: round}, Ref: testRef(name)}
}

// fork is a with b and c on it and x beside it, all vouched for, a and b
// accepted in ballot 0.0.
func (w *world) fork() []Event {
	return slices.Concat(w.vouched("a", "root", "alice", "bob"), w.vouched("b", "a", "bob", "carol"), w.vouched("c", "a", "carol", "bob"),
		w.vouched("x", "root", "bob", "carol"), []Event{w.accept("a", "s1", Ballot{}, false, nil), w.accept("b", "s1", Ballot{}, false, nil)})
}

// opened is an accept in ballot 1.1 with promises, each of a sequencer with its
// last vote; nil: none.
func (w *world) opened(name string, ps ...*Promise) *Accept {
	return w.accept(name, "s2", oneOne, false, ps)
}

func (w *world) one(by string, last *LastVote) *Promise { return w.promise("root", by, oneOne, last) }

// Section 5.3 of docs/epochs.md, seen from the root.
var boundRules = []ruleCase{
	{"bound", "a new ballot has to extend the last vote that its promises report", func(w *world) (Base, []Event) {
		base := w.plainBase()
		two := Ballot{Round: 2, Rank: 2}
		return base, append(w.fork(), w.opened("c", w.one("s1", lastVote("a", 0)), w.one("s3", nil)),
			w.accept("x", "s3", two, false, []*Promise{w.promise("root", "s1", two, lastVote("a", 0)), w.promise("root", "s3", two, nil)}))
	}},
	{"bound-base", "a last vote for the root, which no accept backs, counts as one for the list's base: it is not above the newest final", func(w *world) (Base, []Event) {
		base := w.plainBase()
		return base, append(w.fork(), w.opened("c", w.one("s1", lastVote("a", 0)), w.one("s3", lastVote("root", 1))))
	}},
	{"bound-final", "a last vote for the newest final commit counts, backed or not", func(w *world) (Base, []Event) {
		base := w.plainBase()
		return base, append(w.fork(), w.vote("a", "s1", Ballot{}, nil), w.vote("a", "s3", Ballot{}, nil),
			w.opened("c", w.one("s2", nil), w.one("s3", lastVote("a", 1))))
	}},
	{"bound-votable", "a last vote for a commit that is not votable does not count", func(w *world) (Base, []Event) {
		base := w.plainBase()
		evs := []Event{w.commit("a", "root", "alice", commitSpec{}), w.commit("b", "a", "alice", commitSpec{}), w.commit("c", "a", "alice", commitSpec{}),
			w.accept("b", "s1", Ballot{}, false, nil)}
		return base, append(evs, w.opened("c", w.one("s1", lastVote("a", 0)), w.one("s3", nil)))
	}},
	{"bound-above", "a last vote above the newest final commit, in a ballot in which no accept backs it, does not count", func(w *world) (Base, []Event) {
		base := w.plainBase()
		return base, append(slices.Concat(w.fork(), w.vouched("d", "c", "carol", "bob")), w.vote("a", "s1", Ballot{}, nil), w.vote("a", "s3", Ballot{}, nil),
			w.opened("d", w.one("s2", nil), w.one("s3", lastVote("c", 1))))
	}},
	{"bound-from", "a last vote below what its ballot had to extend is not backed", func(w *world) (Base, []Event) {
		base := w.plainBase()
		two := Ballot{Round: 2, Rank: 2}
		return base, append(w.fork(), w.vote("b", "s1", Ballot{}, nil), w.opened("b", w.one("s1", lastVote("b", 0)), w.one("s2", nil)),
			w.accept("c", "s3", two, false, []*Promise{
				w.promise("root", "s2", two, &LastVote{Ballot: oneOne, Ref: testRef("a")}), w.promise("root", "s3", two, nil)}))
	}},
	{"bound-once", "two promises of one promiser, and another: more than q, so the accept is not valid", func(w *world) (Base, []Event) {
		base := w.plainBase()
		return base, append(w.fork(), w.opened("x", w.one("s1", nil), w.one("s1", lastVote("a", 0)), w.one("s3", nil)))
	}},
	{"bound-next", "a promise that does not count and q that do: more than q, so the accept is not valid", func(w *world) (Base, []Event) {
		base := w.plainBase()
		return base, append(w.fork(), w.opened("x", w.one("s1", lastVote("never held", 0)), w.one("s1", nil), w.one("s3", nil)))
	}},
	{"bound-all", "an accept that shows more than q promises is not valid", func(w *world) (Base, []Event) {
		base := w.plainBase()
		return base, append(w.fork(), w.opened("x", w.one("s2", nil), w.one("s3", nil), w.one("s1", lastVote("a", 0))))
	}},
}

// Sections 5.3 and 8, seen from above the root.
var newcomerRules = []ruleCase{
	{"newcomer-base", "a last vote for the base counts and binds, backed or not", func(w *world) (Base, []Event) {
		base := w.lateBase()
		return base, append(slices.Concat(w.vouched("b", "a", "bob", "carol"), w.vouched("c", "a", "carol", "bob")),
			w.accept("b", "s1", Ballot{}, false, nil), w.opened("c", w.one("s2", lastVote("b", 0)), w.one("s3", lastVote("a", 1))))
	}},
	{"newcomer-final", "a last vote for the newest final commit above the base counts, backed or not, as for who starts at the root", func(w *world) (Base, []Event) {
		base := w.lateBase()
		return base, append(slices.Concat(w.vouched("b", "a", "bob", "carol"), w.vouched("c", "b", "carol", "bob"), w.vouched("d", "b", "alice", "bob")),
			w.accept("c", "s1", Ballot{}, false, nil), w.vote("b", "s1", Ballot{}, nil), w.vote("b", "s2", Ballot{}, nil),
			w.opened("d", w.one("s2", nil), w.one("s3", lastVote("b", 1))))
	}},
	{"newcomer-below", "a last vote for what lies below the base binds like one for the base, and sets aside those of lower ballots", func(w *world) (Base, []Event) {
		base := w.lateBase()
		base.Ref, base.Epoch = testRef("b"), 2
		return w.outvoted(base)
	}},
	{"newcomer-old", "a last vote for a commit below the base counts", func(w *world) (Base, []Event) {
		base := w.lateBase()
		return base, append(slices.Concat(w.vouched("b", "a", "bob", "carol"), w.vouched("c", "a", "carol", "bob")),
			w.accept("b", "s1", Ballot{}, false, nil), w.opened("c", w.one("s2", lastVote("root", 0)), w.one("s3", nil)))
	}},
	{"newcomer-new-group", "above a founding commit epochs begin again; a last vote for a commit of the group before still counts", afterNewGroup},
	{"newcomer-beside", "a commit of the epoch after the base's on an unknown parent lies beside, one above it waits", func(w *world) (Base, []Event) {
		base := w.lateBase()
		w.commit("z1", "root", "bob", commitSpec{})
		evs := []Event{w.commit("z2", "z1", "bob", commitSpec{})}
		y1 := w.commit("y1", "root", "bob", commitSpec{})
		y2 := w.commit("y2", "y1", "carol", commitSpec{})
		y2.Epoch, w.epochs["y2"] = 3, 3
		evs = append(evs, y1, y2, w.commit("b", "a", "bob", commitSpec{}), w.commit("c", "b", "carol", commitSpec{}))
		for i, name := range []string{"z2", "y2"} {
			b := Ballot{Round: uint64(1 + i), Rank: 1}
			evs = append(evs, w.accept([]string{"b", "c"}[i], "s2", b, false, []*Promise{
				w.promise("root", "s2", b, nil), w.promise("root", "s3", b, lastVote(name, 0))}))
		}
		return base, evs
	}},
}

// outvoted is a room whose list's first sequencer, cut off, voted for c, and whose
// third one, in the next round, for a alone: ballot 2.2 is bound to a, goes on beside
// c, and stays. Nobody lies. It begins at a commit of the way a, b, d, e.
func (w *world) outvoted(base Base) (Base, []Event) {
	evs := slices.Concat(w.vouched("a", "root", "alice", "bob"), w.vouched("b", "a", "bob", "carol"), w.vouched("c", "b", "carol", "bob"),
		w.vouched("d", "b", "alice", "bob"), w.vouched("e", "d", "bob", "carol"))
	two := Ballot{Round: 2, Rank: 2}
	for _, n := range []string{"a", "b", "c"} {
		evs = append(evs, w.accept(n, "s1", Ballot{}, false, nil))
	}
	evs = append(evs, w.vote("c", "s1", Ballot{}, nil))
	opened := []*Promise{w.one("s2", nil), w.one("s3", nil)}
	for _, n := range []string{"a", "b", "d"} {
		evs = append(evs, w.opened(n, opened...))
	}
	evs = append(evs, w.vote("a", "s3", oneOne, nil))
	again := []*Promise{w.promise("root", "s1", two, lastVote("c", 0)), w.promise("root", "s3", two, &LastVote{Ballot: oneOne, Ref: testRef("a")})}
	for _, n := range []string{"d", "e"} {
		evs = append(evs, w.accept(n, "s3", two, false, again))
	}
	return base, append(evs, w.vote("b", "s1", two, nil), w.vote("b", "s3", two, nil))
}

// afterNewGroup is a room that a newcomer enters at epoch 3, and in which a group
// is founded anew.
func afterNewGroup(w *world) (Base, []Event) {
	base := w.plainBase()
	for i, n := range []string{"a", "b", "c"} {
		w.commit(n, append([]string{"root"}, "a", "b")[i], "alice", commitSpec{})
	}
	base.Ref, base.Epoch, base.Config = testRef("c"), 3, testRef("root")
	evs := append(w.vouched("close", "c", "alice", "bob"), w.commit("b", "a", "alice", commitSpec{}), w.accept("b", "s1", Ballot{}, false, nil),
		w.accept("close", "s1", Ballot{}, false, nil))
	f := w.commit("found", "close", "alice", commitSpec{})
	f.Epoch, w.epochs["found"] = 1, 1
	f.Founding = &Founding{GroupID: []byte("group two"), Suite: 1, Leaves: []Leaf{w.leaf("alice/2"), w.leaf("bob/2"), w.leaf("carol/2")}}
	w.group = []byte("group two")
	evs = append(evs, f, w.applied("found", "bob/2"), w.accept("found", "s1", Ballot{}, false, nil))
	evs = append(evs, slices.Concat(w.vouched("next", "found", "bob/2", "alice/2"), w.vouched("other", "found", "carol/2", "bob/2"))...)
	return base, append(evs, w.accept("next", "s1", Ballot{}, false, nil), w.opened("other", w.one("s2", lastVote("b", 0)), w.one("s3", nil)),
		w.vote("found", "s1", Ballot{}, nil), w.vote("found", "s2", Ballot{}, nil))
}

// waitingVote is a vote for a commit that never comes.
func (w *world) waitingVote(by string) *Vote {
	w.commit("never held", "root", "alice", commitSpec{})
	return w.vote("never held", by, Ballot{}, nil)
}

// Section 4.
var setRules = []ruleCase{
	{"base", "what names the base changes nothing and carries nothing in", func(w *world) (Base, []Event) {
		base := w.lateBase()
		other := w.commit("a", "elsewhere", "alice", commitSpec{})
		w.parent["a"], w.config["a"] = "root", "root"
		evs := append(w.vouched("b", "a", "bob", "carol"), other, w.commit("x", "a", "alice", commitSpec{}), w.accept("b", "s1", Ballot{}, false, nil))
		accept := w.accept("a", "s1", Ballot{}, false, nil)
		accept.Votes = []*Vote{w.vote("b", "s1", Ballot{}, nil)}
		w.signed("s1", accept)
		forged := w.accept("a", "s2", Ballot{}, true, nil)
		forged.Signature[5] ^= 1
		reject := w.reject("a", "bob", "path/secret")
		reject.Signature[5] ^= 1
		return base, append(evs, accept, forged, reject, w.vote("a", "s2", Ballot{}, []Proof{{Applied: w.applied("x", "bob")}}),
			w.vote("b", "s2", Ballot{}, nil), w.applied("a", "bob"), w.applied("a", "nobody"))
	}},
	{"carried", "what a receipt carries is an event once the receipt is in the set", func(w *world) (Base, []Event) {
		base := w.plainBase()
		var evs []Event
		for _, n := range []string{"a", "b", "c", "d", "e", "f"} {
			evs = append(evs, w.commit(n, "root", "alice", commitSpec{}))
		}
		proof := func(name string) []Proof { return []Proof{{Applied: w.applied(name, "bob")}} }
		lame := w.applied("f", "bob")
		lame.Signature[5] ^= 1
		w.commit("g", "a", "bob", commitSpec{}) // never comes
		last := lastVote("c", 0)
		last.Proofs = proof("c")
		in := w.accept("d", "s1", Ballot{}, false, nil)
		in.Votes = []*Vote{w.vote("d", "s1", Ballot{}, proof("d"))}
		w.signed("s1", in)
		waits := w.accept("g", "s1", Ballot{}, false, nil)
		waits.Votes = []*Vote{w.vote("e", "s1", Ballot{}, proof("e"))}
		w.signed("s1", waits)
		return base, append(evs, w.vote("a", "s1", Ballot{Round: 1, Rank: 7}, proof("a")), w.vote("g", "s2", Ballot{}, proof("b")), w.one("s3", last), in, waits,
			w.vote("f", "s2", Ballot{}, []Proof{{Applied: lame}}), w.vote("f", "s3", Ballot{}, []Proof{{Applied: w.applied("f", "carol")}}))
	}},
	{"carried-votes", "an accept carries votes of its signer alone", func(w *world) (Base, []Event) {
		base := w.plainBase()
		evs := append(w.vouched("a", "root", "alice", "bob"), w.vouched("b", "a", "bob", "carol")...)
		carrying := func(name, by string, v *Vote) Event {
			a := w.accept(name, "s1", Ballot{}, false, nil)
			a.Votes = []*Vote{v}
			w.signed("s1", a)
			return a
		}
		w.commit("g", "b", "bob", commitSpec{}) // never comes
		return base, append(evs, carrying("b", "s1", w.vote("b", "s2", Ballot{}, nil)), carrying("b", "s1", w.vote("b", "s1", Ballot{Round: 1, Rank: 3}, nil)),
			carrying("a", "s1", w.vote("g", "s1", Ballot{}, nil)))
	}},
	{"too-old-root", "at the root a commit of epoch 0 is too old", func(w *world) (Base, []Event) {
		base := w.plainBase()
		w.commit("g", "a", "bob", commitSpec{})
		late := w.accept("g", "s1", Ballot{}, false, nil)
		zero := w.commit("z", "y", "bob", commitSpec{})
		zero.Epoch = 0
		early := w.accept("g", "s1", Ballot{}, false, nil) // waits, as any accept without its commit
		early.Epoch = 0
		w.signed("s1", early)
		return base, append(w.vouched("a", "root", "alice", "bob"), late, zero, early)
	}},
	{"cfg", "under a commit that sets no list a receipt waits for ever, under a list that does not govern its commit it is refused", func(w *world) (Base, []Event) {
		base := w.plainBase()
		evs := append(w.vouched("a", "root", "alice", "bob"), w.vouched("b", "a", "bob", "carol")...)
		evs = append(evs, w.commit("l", "root", "alice", commitSpec{list: []string{"s1"}, admins: []string{"alice"}}))
		for _, n := range []string{"a", "l"} {
			a, v, p := w.accept("b", "s1", Ballot{}, false, nil), w.vote("b", "s1", Ballot{}, nil), w.promise("root", "s1", Ballot{Round: 1}, nil)
			a.Config, v.Config, p.Config = testRef(n), testRef(n), testRef(n)
			w.signed("s1", a)
			w.signed("s1", v)
			w.signed("s1", p)
			evs = append(evs, a, v, p)
		}
		return base, evs
	}},
	{"evidence", "lists that are not in force, promises that differ in their chain, a last vote below one of its own ballot", func(w *world) (Base, []Event) {
		base := w.plainBase()
		evs := append(w.vouched("a", "root", "alice", "bob"), w.vouched("b", "a", "bob", "carol")...)
		evs = append(evs, w.commit("l", "root", "alice", commitSpec{list: []string{"s4"}, admins: []string{"alice"}}),
			w.commit("m", "l", "bob", commitSpec{}), w.commit("n", "l", "carol", commitSpec{}),
			w.accept("m", "s4", Ballot{}, false, nil), w.accept("n", "s4", Ballot{}, false, nil))
		return base, append(evs, w.one("s1", nil), w.one("s1", nil), w.vote("b", "s2", Ballot{}, nil), w.one("s2", lastVote("a", 0)),
			w.vote("a", "s3", Ballot{}, nil), w.one("s3", lastVote("b", 0)), w.waitingVote("s1"))
	}},
	{"heirs-policy", "an era by heirs leaves the rest of the policy as it is written", func(w *world) (Base, []Event) {
		w.heirs = []string{"bob/x"}
		base := w.base(ruleList, []string{"alice", "bob"}, ruleUsers)
		spec := func(admins ...string) commitSpec {
			return commitSpec{era: 1, heirs: []string{"bob"}, list: []string{"s4"}, admins: admins}
		}
		other, wide := w.commit("e1", "root", "bob", spec("bob", "alice")), w.commit("e2", "root", "bob", spec("alice", "bob"))
		wide.Policy.Window = DefaultWindow
		return base, []Event{other, wide, w.commit("e3", "root", "bob", spec("alice", "bob")), w.applied("e3", "carol")}
	}},
}

// Section 5.1.
var vouchRules = []ruleCase{
	{"vouch-external", "an external commit on top vouches for nothing, though its author's leaf was there", func(w *world) (Base, []Event) {
		base := w.plainBase()
		return base, []Event{w.commit("a", "root", "alice", commitSpec{}), w.accept("a", "s1", Ballot{}, false, nil),
			w.commit("k", "a", "bob", commitSpec{external: true, remove: []string{"bob"}})}
	}},
	{"vouch-founding", "neither a founding commit nor a leaf of its tree vouches for what lies below it", func(w *world) (Base, []Event) {
		base := w.plainBase()
		evs := []Event{w.commit("close", "root", "alice", commitSpec{}), w.accept("close", "s1", Ballot{}, false, nil)}
		f := w.commit("found", "close", "bob", commitSpec{})
		f.Epoch, w.epochs["found"] = 1, 1
		f.Founding = &Founding{GroupID: []byte("group two"), Suite: 1, Leaves: []Leaf{w.leaf("alice/2"), w.leaf("bob/2"), w.leaf("carol/2")}}
		w.group = []byte("group two")
		return base, append(evs, f, w.accept("found", "s1", Ballot{}, false, nil), w.applied("found", "carol/2"), w.applied("found", "bob/2"))
	}},
}

// Sections 5.4, 5.7 and 5.8.
var choiceRules = []ruleCase{
	{"equivocal", "an accept below two that prove equivocation keeps its ballot", func(w *world) (Base, []Event) {
		base := w.plainBase()
		return base, append(w.fork(), w.accept("c", "s1", Ballot{}, false, nil), w.accept("x", "s2", Ballot{}, true, nil))
	}},
	{"equivocal-final", "above the newest final of the list an accept beside it proves nothing; below, and beside, it does", func(w *world) (Base, []Event) {
		base := w.plainBase()
		return base, append(w.fork(), w.vote("a", "s1", Ballot{}, nil), w.vote("a", "s2", Ballot{}, nil),
			w.accept("x", "s1", Ballot{}, false, nil), w.accept("c", "s2", Ballot{Rank: 1}, true, nil))
	}},
	{"change-last", "a list change that is not final comes after every other accepted child", func(w *world) (Base, []Event) {
		base := w.plainBase()
		l := w.commit("l", "root", "alice", commitSpec{list: []string{"s1", "s4"}, admins: []string{"alice"}})
		return base, []Event{l, w.accept("l", "s1", Ballot{}, false, nil), w.commit("c", "root", "bob", commitSpec{}), w.accept("c", "s2", Ballot{}, true, nil)}
	}},
	{"window-parent", "the window is that of the parent's policy", func(w *world) (Base, []Event) {
		base := w.plainBase()
		var evs []Event
		up := "root"
		for i, window := range []int{1, 8, 0, 0} {
			var s commitSpec
			if window > 0 {
				w.window, s.admins = window, []string{"alice"}
			}
			n := string(rune('a' + i))
			evs = append(evs, w.commit(n, up, ruleUsers[i%2], s), w.applied(n, "carol"), w.accept(n, "s1", Ballot{}, false, nil))
			up = n
		}
		return base, evs
	}},
	{"freeze-parent", "freeze counts from the commit after the one that sets it", func(w *world) (Base, []Event) {
		base := w.plainBase()
		a := w.commit("a", "root", "alice", commitSpec{admins: []string{"alice"}})
		a.Policy.OnPartition = OnPartitionFreeze
		return base, []Event{a, w.accept("a", "s1", Ballot{}, false, nil), w.commit("b", "a", "bob", commitSpec{}), w.accept("b", "s1", Ballot{}, false, nil)}
	}},
}

// heirsEra is an era commit by heirs on parent, which bob, carol or dave vouches
// for.
func (w *world) heirsEra(parent, author, voucher string, signers ...string) []Event {
	return []Event{w.commit("e", parent, author, commitSpec{era: 1, heirs: signers, list: []string{"s4"}, admins: []string{"alice"}}), w.applied("e", voucher)}
}

// Section 5.6.
var eraRules = []ruleCase{
	{"era-ancestors", "an era commit is votable whatever lies below it", func(w *world) (Base, []Event) {
		base := w.base(ruleList, []string{"alice"}, []string{"bob", "carol"})
		return base, []Event{w.commit("a", "root", "bob", commitSpec{add: []string{"alice/2"}}), w.accept("a", "s1", Ballot{}, false, nil),
			w.commit("e", "a", "alice/2", commitSpec{era: 1, list: []string{"s4"}, admins: []string{"alice"}}), w.applied("e", "bob"),
			w.commit("d", "e", "alice/2", commitSpec{}), w.applied("d", "bob"), w.accept("d", "s4", Ballot{}, false, nil), w.vote("d", "s4", Ballot{}, nil)}
	}},
	{"era-not-followed", "an era commit that does not count is never stepped on, though what is above it is final", func(w *world) (Base, []Event) {
		base := w.plainBase()
		return base, []Event{w.commit("e", "root", "carol", commitSpec{era: 1, list: []string{"s4"}, admins: []string{"carol"}}), w.applied("e", "bob"),
			w.commit("d", "e", "carol", commitSpec{}), w.applied("d", "bob"), w.accept("d", "s4", Ballot{}, false, nil), w.vote("d", "s4", Ballot{}, nil)}
	}},
	{"era-parent", "an era on a commit that is not accepted does not count", func(w *world) (Base, []Event) {
		base := w.plainBase()
		return base, append(w.vouched("a", "root", "bob", "carol"),
			w.commit("e", "a", "alice", commitSpec{era: 1, list: []string{"s4"}, admins: []string{"alice"}}), w.applied("e", "bob"))
	}},
	{"heirs-final", "heirs are those of the newest final, not of the parent", func(w *world) (Base, []Event) {
		w.heirs = []string{"bob/x"}
		base := w.plainBase()
		evs := append(w.vouched("a", "root", "alice", "bob"), w.heirsEra("a", "bob", "carol", "bob")...)
		w.heirs = []string{"carol/y"}
		return base, append(evs, w.commit("b", "a", "alice", commitSpec{admins: []string{"alice"}}), w.applied("b", "bob"),
			w.accept("b", "s1", Ballot{}, false, nil), w.vote("b", "s1", Ballot{}, nil), w.vote("b", "s2", Ballot{}, nil))
	}},
	{"heirs-half", "heirs of half of the servers open no era", func(w *world) (Base, []Event) {
		w.heirs = []string{"bob/x", "carol/y"}
		return w.plainBase(), w.heirsEra("root", "bob", "carol", "bob")
	}},
	{"heirs-servers", "servers are counted, not heirs", func(w *world) (Base, []Event) {
		w.heirs = []string{"bob/x", "dave/x", "carol/y", "erin/z"}
		base := w.base(ruleList, []string{"alice"}, []string{"alice", "bob", "carol", "dave", "erin"})
		return base, w.heirsEra("root", "bob", "carol", "bob", "dave")
	}},
	{"heirs-signers", "one heir of each server is enough, and the author is one", func(w *world) (Base, []Event) {
		w.heirs = []string{"bob/x", "dave/x", "erin/x", "carol/y"}
		base := w.base(ruleList, []string{"alice"}, []string{"alice", "bob", "carol", "dave", "erin"})
		return base, w.heirsEra("root", "bob", "alice", "carol")
	}},
	{"heirs-present", "only heirs with a leaf at the newest final are counted", func(w *world) (Base, []Event) {
		w.heirs = []string{"bob/x", "erin/y"}
		return w.plainBase(), w.heirsEra("root", "bob", "carol", "bob")
	}},
	{"heirs-author", "an era by heirs has an heir for its author", func(w *world) (Base, []Event) {
		w.heirs = []string{"bob/x"}
		return w.plainBase(), w.heirsEra("root", "carol", "bob", "bob")
	}},
}
