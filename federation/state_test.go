package federation

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var writeState = flag.Bool("state.write", false, "write the state of this version for TestStatesOfOldVersions; then it is kept for ever")

func stateFile(version int) string {
	return filepath.Join("statedata", fmt.Sprintf("v%d.bin", version))
}

// stateOfHistory makes the state whose bytes statedata holds as each
// version wrote them: a module that dropped old commits, lost an owner and took
// over, and voted under the list of a list change.
func stateOfHistory(t *testing.T) (*world, *Machine) {
	t.Helper()
	w := newWorld()
	cfg := testConfig("s2")
	cfg.Limits.Keep = 1
	m, err := New(cfg, w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"}))
	if err != nil {
		t.Fatal(err)
	}
	step := func(evs ...Event) {
		t.Helper()
		for _, ev := range evs {
			if _, err := m.Step(ev); err != nil {
				t.Fatal(err)
			}
		}
	}
	final := func(name, parent string, spec commitSpec) {
		t.Helper()
		step(w.commit(name, parent, "alice", spec))
		for _, s := range spec.list {
			if s != "s2" {
				step(w.ready(name, s))
			}
		}
		m.Tick(m.now + time.Second)
		applied := w.applied(name, "bob")
		step(w.accept(name, "s1", Ballot{}, false, nil), applied)
		for _, s := range []string{"s1", "s3"} {
			step(w.vote(name, s, Ballot{}, []Proof{{Applied: applied}}))
		}
		m.Tick(m.now + time.Second)
	}
	step(w.commit("z1", "root", "bob", commitSpec{}), w.commit("z2", "z1", "bob", commitSpec{}), w.commit("z3", "z2", "bob", commitSpec{}))
	final("a", "root", commitSpec{admins: []string{"alice"}})
	final("b", "a", commitSpec{list: []string{"s1", "s2", "s3", "s4"}, admins: []string{"alice"}})
	for _, name := range []string{"s1", "s3", "s4"} { // the votes of three of four from here on
		step(w.commit("x"+name, "b", "bob", commitSpec{add: []string{"carol/" + name}}))
	}
	step(w.accept("xs3", "s1", Ballot{}, false, nil), w.applied("xs3", "alice"), w.reject("xs4", "bob", "update-path/decrypt"))
	for range 6 {
		m.Tick(m.now + time.Second)
	}
	for i, name := range []string{"s1", "s3"} {
		step(w.vote("xs3", name, Ballot{}, []Proof{{Applied: w.applied("xs3", "alice")}}))
		step(w.commit(fmt.Sprint("y", i), "xs3", "alice", commitSpec{remove: []string{"carol/s3"}, onlyRemoves: true}))
	}
	step(w.accept("y0", "s4", Ballot{}, true, nil), w.applied("y0", "bob"))
	m.Tick(m.now + time.Second)
	m.Tick(m.now + 40*time.Second) // s1 is gone: a request of its own
	m.Tick(m.now + 40*time.Second)
	last := &LastVote{Ref: testRef("xs3"), Proofs: []Proof{{Applied: w.applied("xs3", "alice")}}}
	for _, name := range []string{"s3", "s4"} {
		step(w.promise("b", name, Ballot{Round: 1, Rank: 1}, last))
	}
	m.Tick(m.now + time.Second)
	w.epochs["unknown"] = 9
	step(w.applied("unknown", "bob"), w.commit("late", "unknown", "bob", commitSpec{}))
	if len(m.proofSteps) == 0 || len(m.gone) == 0 || !m.ownState(testRef("b")).open {
		t.Fatal("the history lacks what versions differ in")
	}
	return w, m
}

// TestStatesOfOldVersions: what an older program saved is read, with all that the
// version had, and saved in today's form.
func TestStatesOfOldVersions(t *testing.T) {
	w, m := stateOfHistory(t)
	now, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if *writeState {
		if err := os.WriteFile(stateFile(stateVersion), now, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for v := 1; v <= stateVersion; v++ {
		t.Run(fmt.Sprint("v", v), func(t *testing.T) {
			old, err := os.ReadFile(stateFile(v))
			if err != nil {
				t.Fatal(err)
			}
			got, err := Unmarshal(m.cfg, old)
			if err != nil {
				t.Fatal(err)
			}
			want := w.state(m)
			if v == 1 { // it knew no takeover
				want = strings.Replace(want, "y0 on xs3: votable", "y0 on xs3: side branch", 1)
			}
			if g := w.state(got); g != want {
				t.Errorf("got\n%swant\n%s", g, want)
			}
			o, own := got.ownState(testRef("b")), m.ownState(testRef("b"))
			if o.lastVote == nil || v > 1 && (o.lastVote.Ref != own.lastVote.Ref || o.promised != own.promised || len(o.shown) != len(own.shown)) {
				t.Errorf("own state %+v, want %+v", o, own)
			}
			if v >= 3 && len(got.proofSteps) == 0 || v >= 5 && len(got.proofSteps) != len(m.proofSteps) || v >= 6 && len(got.gone) != len(m.gone) {
				t.Errorf("%d steps of the proof and %d dropped commits, want %d and %d", len(got.proofSteps), len(got.gone), len(m.proofSteps), len(m.gone))
			}
			again, err := got.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			if again[3] != stateVersion {
				t.Errorf("saved again with version %d", again[3])
			}
			if v == stateVersion && !bytes.Equal(old, now) {
				t.Error("the form changed: it needs a new version")
			}
		})
	}
}

// TestTheBaseIsSavedApart: what a machine saves of its base, the leaves of a large group among it, stays the same bytes while
// events come; joined with the rest it is the whole state.
func TestTheBaseIsSavedApart(t *testing.T) {
	w, m := stateOfHistory(t)
	before, first, err := m.MarshalParts()
	if err != nil {
		t.Fatal(err)
	}
	if whole, err := m.MarshalBinary(); err != nil || !bytes.Equal(whole, append(bytes.Clone(before), first...)) {
		t.Fatalf("the two parts are not the whole (%v)", err)
	}
	if _, err := m.Step(w.commit("more", "y0", "alice", commitSpec{})); err != nil {
		t.Fatal(err)
	}
	after, rest, err := m.MarshalParts()
	if err != nil {
		t.Fatal(err)
	}
	if &before[0] != &after[0] || len(before) != len(after) {
		t.Error("the base was saved anew")
	}
	if bytes.Equal(first, rest) {
		t.Error("the rest does not show the commit")
	}
	got, err := Unmarshal(m.cfg, append(bytes.Clone(after), rest...))
	if err != nil {
		t.Fatal(err)
	}
	if g, want := w.state(got), w.state(m); g != want {
		t.Errorf("got\n%swant\n%s", g, want)
	}
}
