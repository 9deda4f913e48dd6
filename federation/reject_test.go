package federation

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"testing"
)

// reachAB is a room with two accepted commits, a (vouched by bob) and b on top.
func reachAB(t *testing.T, self string) (*world, *Machine) {
	t.Helper()
	w := newWorld()
	m, err := New(testConfig(self), w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob", "carol"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range []Event{w.commit("a", "root", "alice", commitSpec{}), w.commit("b", "a", "bob", commitSpec{}), w.commit("x", "root", "carol", commitSpec{})} {
		if _, err := m.Step(ev); err != nil {
			t.Fatal(err)
		}
	}
	return w, m
}

func TestReject(t *testing.T) {
	resign := func(by string, r Receipt) Receipt {
		if err := r.Sign(Scope{Room: testRoom}, testKey(by)); err != nil {
			t.Fatal(err)
		}
		return r
	}
	forged := map[string]func(w *world) Event{
		"accept signature": func(w *world) Event { a := w.accept("a", "s1", Ballot{}, false, nil); a.Signature[3] ^= 1; return a },
		"accept signature cut": func(w *world) Event {
			a := w.accept("a", "s1", Ballot{}, false, nil)
			a.Signature = a.Signature[:63]
			return a
		},
		"accept by another listed key": func(w *world) Event { return resign("s2", w.accept("a", "s1", Ballot{}, false, nil)) },
		"accept by a stranger's key":   func(w *world) Event { return resign("evil", w.accept("a", "s1", Ballot{}, false, nil)) },
		"accept of another room": func(w *world) Event {
			a := w.accept("a", "s1", Ballot{}, false, nil)
			if err := a.Sign(Scope{Room: "!other:example.org"}, testKey("s1")); err != nil {
				t.Fatal(err)
			}
			return a
		},
		"accept with another parent": func(w *world) Event {
			a := w.accept("a", "s1", Ballot{}, false, nil)
			a.Parent = testRef("x")
			return resign("s1", a)
		},
		"accept with another epoch": func(w *world) Event {
			a := w.accept("a", "s1", Ballot{}, false, nil)
			a.Epoch = 7
			return resign("s1", a)
		},
		"accept under a list that does not govern": func(w *world) Event {
			a := w.accept("b", "s1", Ballot{}, false, nil)
			a.Config = testRef("root")
			b := *a
			b.Ref = testRef("l2")
			return b.under(w, resign)
		},
		"accept in a ballot beyond the list": func(w *world) Event {
			return resign("s1", &Accept{Config: testRef("root"), Ballot: Ballot{Round: 1, Rank: 9}, Ref: testRef("a"), Parent: testRef("root"), Epoch: 1, Chain: w.link("s1")})
		},
		"accept of round 0 by rank 1": func(w *world) Event { return w.accept("a", "s2", Ballot{Rank: 1}, false, nil) },
		"accept with a promise for another ballot": func(w *world) Event {
			p := w.promise("root", "s2", Ballot{Round: 2, Rank: 0}, nil)
			return w.accept("a", "s1", Ballot{Round: 1, Rank: 0}, false, []*Promise{p})
		},
		"accept with a forged promise": func(w *world) Event {
			p := w.promise("root", "s2", Ballot{Round: 1, Rank: 0}, nil)
			resign("s1", p)
			return w.accept("a", "s1", Ballot{Round: 1, Rank: 0}, false, []*Promise{p})
		},
		"vote signature":       func(w *world) Event { v := w.vote("a", "s1", Ballot{}, nil); v.Signature[0] ^= 1; return v },
		"vote in another name": func(w *world) Event { return resign("s2", w.vote("a", "s1", Ballot{}, nil)) },
		"vote by no member":    func(w *world) Event { v := w.vote("a", "s1", Ballot{}, nil); v.Voter = 3; return resign("s1", v) },
		"promise signature":    func(w *world) Event { return resign("s1", w.promise("root", "s2", Ballot{Round: 1}, nil)) },
		"promise reports above": func(w *world) Event {
			return w.promise("root", "s2", Ballot{Round: 1}, &LastVote{Ballot: Ballot{Round: 1}, Ref: testRef("a")})
		},
		"ready signature":   func(w *world) Event { return resign("evil", w.ready("root", "s1")) },
		"applied signature": func(w *world) Event { a := w.applied("a", "bob"); a.Signature[9] ^= 1; return a },
		"applied by another leaf's key": func(w *world) Event {
			a := w.applied("a", "bob")
			a.Leaf = w.index("carol")
			return a
		},
		"applied of a blank leaf": func(w *world) Event { return w.applied("a", "nobody") },
		"applied of another group": func(w *world) Event {
			a := w.applied("a", "bob")
			a.Signature = ed25519.Sign(testKey("leaf bob"), a.Content(Scope{Room: testRoom, Group: []byte("other")}))
			return a
		},
		"applied with another hash": func(w *world) Event { a := w.applied("a", "bob"); a.Hash[0] ^= 1; return a },
		"applied moved to another commit": func(w *world) Event {
			a := w.applied("a", "bob")
			a.Ref = testRef("b")
			return a
		},
		"reject signature": func(w *world) Event { r := w.reject("a", "bob", "x/y"); r.Rule = "y/z"; return r },
		"reject passed off as applied": func(w *world) Event {
			r := w.reject("a", "bob", "x/y")
			return &Applied{Ref: r.Ref, Leaf: r.Leaf, Signature: r.Signature}
		},
	}
	t.Run("matrix/receipt-forged", func(t *testing.T) {
		for name, make := range forged {
			t.Run(name, func(t *testing.T) {
				w, m := reachAB(t, "")
				if name == "accept under a list that does not govern" {
					if _, err := m.Step(w.commit("l2", "root", "alice", commitSpec{list: []string{"s2"}, admins: []string{"alice"}})); err != nil {
						t.Fatal(err)
					}
				}
				wantRefused(t, m, make(w), RuleForged)
			})
		}
	})

	commits := map[string]struct {
		rule Rule
		ev   func(w *world) *Commit
	}{
		"federation/not-by-leaf-user": {RuleUnentitled, func(w *world) *Commit {
			c := w.commit("c", "b", "alice", commitSpec{})
			c.AuthorUser = "bob"
			return c
		}},
		"federation/external-adds-another": {RuleUnentitled, func(w *world) *Commit {
			c := w.commit("c", "b", "dave", commitSpec{external: true})
			c.AuthorUser = "erin"
			return c
		}},
		"federation/leaf-unknown":  {RuleLeaf, func(w *world) *Commit { return w.commit("c", "b", "alice", commitSpec{remove: []string{"nobody"}}) }},
		"federation/leaf-occupied": {RuleLeaf, func(w *world) *Commit { return w.commit("c", "b", "alice", commitSpec{add: []string{"bob"}}) }},
		"federation/epoch-jump":    {RuleMalformed, func(w *world) *Commit { c := w.commit("c", "b", "alice", commitSpec{}); c.Epoch = 9; return c }},
		"federation/ref-reused":    {RuleDuplicate, func(w *world) *Commit { c := w.commit("c", "x", "alice", commitSpec{}); c.Ref = testRef("b"); return c }},
		"federation/era-invalid": {RuleEra, func(w *world) *Commit {
			return w.commit("c", "b", "alice", commitSpec{era: 2, list: []string{"s1"}, admins: []string{"alice"}})
		}},
		"federation/era-without-list": {RuleEra, func(w *world) *Commit { return w.commit("c", "b", "alice", commitSpec{era: 1}) }},
		"federation/heirs-change-admins": {RuleEra, func(w *world) *Commit {
			return w.commit("c", "b", "alice", commitSpec{era: 1, heirs: []string{"alice"}, list: []string{"s1"}, admins: []string{"bob"}})
		}},
		"federation/list-twice": {RuleMalformed, func(w *world) *Commit { return w.commit("c", "b", "alice", commitSpec{list: []string{"s1", "s1"}}) }},
		"federation/own-parent": {RuleMalformed, func(w *world) *Commit { c := w.commit("c", "b", "alice", commitSpec{}); c.Parent = c.Ref; return c }},
	}
	for name, tc := range commits {
		t.Run(name, func(t *testing.T) {
			w, m := reachAB(t, "")
			wantRefused(t, m, tc.ev(w), tc.rule)
		})
	}
}

// under makes the accept for l2, a list change, pretend that its own list
// governs it.
func (a Accept) under(w *world, resign func(string, Receipt) Receipt) Event {
	a.Config, a.Parent, a.Epoch = testRef("l2"), testRef("root"), 1
	return resign("s2", &a)
}

func wantRefused(t *testing.T, m *Machine, ev Event, rule Rule) {
	t.Helper()
	before, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	acts, err := m.Step(ev)
	var e *Error
	if !errors.As(err, &e) || e.Rule != rule {
		t.Fatalf("got error %v, want rule %s", err, rule)
	}
	if len(acts) != 0 {
		t.Fatalf("got %d actions beside the error", len(acts))
	}
	after, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Fatal("a refused event changed the state")
	}
}

// TestBounds floods each pool and checks that it stays within its limit.
func TestBounds(t *testing.T) {
	w := newWorld()
	cfg := testConfig("")
	cfg.Limits = Limits{Waiting: 10, Children: 6, ByAuthor: 3, Receipts: 5}
	m, err := New(cfg, w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob", "carol"}))
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i := 0; i < 20; i++ {
		name := fmt.Sprintf("k%d", i)
		if _, err := m.Step(w.commit(name, "root", []string{"alice", "bob", "carol"}[i%3], commitSpec{})); err != nil {
			refused++
		}
		orphan := w.commit("o"+name, "o"+name+"parent", "alice", commitSpec{})
		orphan.Epoch = 2
		if _, err := m.Step(orphan); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Step(w.applied("z"+name, "bob")); err != nil {
			t.Fatal(err)
		}
		_, _ = m.Step(w.accept("k0", "s1", Ballot{}, false, nil))
	}
	if got := len(m.base.kids); got != 7 || refused != 13 {
		t.Errorf("got %d children and %d refused, want 7 (one accepted) and 13", got, refused)
	}
	if got := len(m.waiting); got != 20 {
		t.Errorf("got %d waiting, want 10 commits and 10 statements", got)
	}
	if got := m.lists[testRef("root")].len(); got != 5 {
		t.Errorf("got %d receipts, want 5", got)
	}
	// A commit that something names passes the bound.
	c := w.commit("named", "root", "alice", commitSpec{})
	if _, err := m.Step(w.applied("named", "bob")); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Step(c); err != nil {
		t.Errorf("a commit that a statement names: %v", err)
	}
}

func FuzzUnmarshal(f *testing.F) {
	w := newWorld()
	m, err := New(testConfig("s1"), w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob"}))
	if err != nil {
		f.Fatal(err)
	}
	for _, ev := range []Event{w.commit("a", "root", "alice", commitSpec{}), w.applied("a", "bob"), w.reject("a", "alice", "x"),
		w.commit("e", "a", "alice", commitSpec{era: 1, list: []string{"s2"}, admins: []string{"alice"}}), w.applied("unknown", "bob")} {
		if _, err := m.Step(ev); err != nil {
			f.Fatal(err)
		}
		m.Tick(m.now + 6e9)
		data, err := m.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Unmarshal(testConfig("s1"), data)
		if err != nil {
			return
		}
		again, err := m.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		n, err := Unmarshal(testConfig("s1"), again)
		if err != nil {
			t.Fatalf("what was saved does not load: %v", err)
		}
		if n.Head() != m.Head() || n.NewestFinal() != m.NewestFinal() {
			t.Fatal("head or final changed over a restart")
		}
		n.Tick(1e9)
	})
}
