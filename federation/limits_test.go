package federation

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// A vote that rides on an accept is the receipt before it: nothing is missing.
func TestAcceptBringsTheVoteBeforeIt(t *testing.T) {
	w := newWorld()
	hub, err := New(testConfig("hub"), w.base([]string{"hub"}, []string{"alice"}, []string{"alice", "bob"}))
	if err != nil {
		t.Fatal(err)
	}
	client, err := New(testConfig(""), w.base([]string{"hub"}, []string{"alice"}, []string{"alice", "bob"}))
	if err != nil {
		t.Fatal(err)
	}
	var sent []Receipt
	both := func(ev Event) {
		t.Helper()
		for _, m := range []*Machine{hub, client} {
			if _, err := m.Step(ev); err != nil {
				t.Fatal(err)
			}
		}
	}
	tick := func(at time.Duration) {
		t.Helper()
		sent = nil
		for _, a := range hub.Tick(at) {
			if s, ok := a.(Send); ok {
				sent = append(sent, s.Receipt)
			}
		}
		for _, r := range sent {
			acts, err := client.Step(r)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range acts {
				if f, ok := a.(Fetch); ok {
					t.Errorf("asked for receipt %d, which came inside the accept", f.Counter)
				}
			}
		}
	}
	both(w.commit("a", "root", "alice", commitSpec{}))
	tick(time.Second)
	both(w.applied("a", "bob"))
	both(w.commit("b", "a", "alice", commitSpec{}))
	tick(2 * time.Second)
	if len(sent) != 1 || len(sent[0].(*Accept).Votes) != 1 {
		t.Fatalf("got %v, want one accept with a vote on it", sent)
	}
}

// Commits that nobody vouches for are accepted up to what a machine keeps, then
// it waits: no receipt of its own is refused, and one voucher frees it.
func TestUnvouchedCommitsFillNoMachine(t *testing.T) {
	w := newWorld()
	cfg := testConfig("hub")
	cfg.Limits = Limits{Receipts: 64, Keep: 4}
	m, err := New(cfg, w.base([]string{"hub"}, []string{"alice"}, []string{"alice", "bob"}))
	if err != nil {
		t.Fatal(err)
	}
	parent := "root"
	for i := range 100 {
		name := fmt.Sprintf("c%d", i)
		if _, err := m.Step(w.commit(name, parent, "alice", commitSpec{})); err != nil {
			t.Fatal(err)
		}
		m.Tick(time.Duration(i) * time.Second)
		parent = name
	}
	head := w.name(m.Head())
	if head == "c99" || head == "root" {
		t.Fatalf("the head is %s: the limit was not reached, or nothing accepted", head)
	}
	if _, err := m.Step(w.applied(head, "bob")); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		m.Tick(time.Duration(200+10*i) * time.Second)
	}
	if m.Head() == testRef(head) || m.NewestFinal() == testRef("root") {
		t.Errorf("after a voucher the head is still %s, the newest final %s", w.name(m.Head()), w.name(m.NewestFinal()))
	}
}

// A receipt of the own key that the machine did not make retires the key even
// before the commit it is about has come.
func TestOwnReceiptForAnUnknownCommitRetiresTheKey(t *testing.T) {
	for _, kind := range []string{"accept", "vote", "promise"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld()
			m, err := New(testConfig("hub"), w.base([]string{"hub"}, []string{"alice"}, []string{"alice", "bob"}))
			if err != nil {
				t.Fatal(err)
			}
			a := w.commit("a", "root", "alice", commitSpec{})
			w.commit("b", "a", "alice", commitSpec{})
			var r Receipt
			switch kind {
			case "accept":
				r = w.accept("b", "hub", Ballot{}, false, nil)
			case "vote":
				r = w.vote("b", "hub", Ballot{}, []Proof{{Applied: w.applied("b", "bob")}})
			case "promise":
				w.lists["elsewhere"] = []string{"hub"}
				r = w.promise("elsewhere", "hub", Ballot{Round: 1}, nil)
			}
			if _, err := m.Step(r); err != nil {
				t.Fatal(err)
			}
			if !m.Retired() {
				t.Error("the key is not retired")
			}
			if _, err := m.Step(a); err != nil {
				t.Fatal(err)
			}
			if got := w.actions(m.Tick(time.Second)); got != "" {
				t.Errorf("signed with a retired key: %s", got)
			}
		})
	}
	t.Run("forged", func(t *testing.T) {
		w := newWorld()
		m, err := New(testConfig("hub"), w.base([]string{"hub"}, []string{"alice"}, []string{"alice", "bob"}))
		if err != nil {
			t.Fatal(err)
		}
		w.commit("a", "root", "alice", commitSpec{})
		w.commit("b", "a", "alice", commitSpec{})
		a := w.accept("b", "hub", Ballot{}, false, nil)
		a.Signature[3] ^= 1
		wantRefused(t, m, a, RuleForged) // at once, though its commit has not come
		if m.Retired() {
			t.Error("a forged receipt retired the key")
		}
	})
}

// One member builds a long chain that nobody accepts: it ends at a limit, and
// what a receipt names is taken all the same.
func TestUnnamedCommitsAreBounded(t *testing.T) {
	w := newWorld()
	cfg := testConfig("")
	cfg.Limits.Unnamed = 10
	m, err := New(cfg, w.base([]string{"hub"}, []string{"alice"}, []string{"alice", "bob"}))
	if err != nil {
		t.Fatal(err)
	}
	parent := "root"
	for i := range 12 {
		name := fmt.Sprintf("c%d", i)
		_, err = m.Step(w.commit(name, parent, "bob", commitSpec{}))
		parent = name
		if err != nil {
			break
		}
	}
	var e *Error
	if !errors.As(err, &e) || e.Rule != RuleTooMany || parent != "c10" {
		t.Fatalf("at %s: %v, want %s at c10", parent, err, RuleTooMany)
	}
	if _, err := m.Step(w.accept("c10", "hub", Ballot{}, false, nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Step(w.commit("c10", "c9", "bob", commitSpec{})); err != nil {
		t.Fatal(err)
	}
	if got := w.name(m.Head()); got != "c10" {
		t.Errorf("head %s, want c10", got)
	}
}

// A module that runs on an old disk learns it from one receipt that it is shown, whoever
// shows it and whether what it is about is held or not; from what its key did not sign
// it learns nothing.
func TestShownReceiptsRetireTheKey(t *testing.T) {
	scope := Scope{Room: testRoom}
	shown := func(r Receipt) Shown {
		sig, _ := signatureOf(r)
		return Shown{Signed: r.SignedBytes(scope), Signature: sig}
	}
	w := newWorld()
	base := w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"})
	w.commit("a", "root", "alice", commitSpec{})
	w.commit("b", "a", "alice", commitSpec{})
	w.lists["elsewhere"] = []string{"s1"}
	receipts := map[string]Receipt{
		"accept":  w.accept("b", "s1", Ballot{}, false, nil),
		"vote":    w.vote("b", "s1", Ballot{}, []Proof{{Applied: w.applied("b", "bob")}}),
		"promise": w.promise("elsewhere", "s1", Ballot{Round: 1}, nil),
		"ready":   w.ready("elsewhere", "s1"),
	}
	machine := func(self string) *Machine {
		t.Helper()
		m, err := New(testConfig(self), base)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for name, r := range receipts {
		m := machine("s1")
		acts, err := m.Step(shown(r))
		if err != nil {
			t.Fatal(err)
		}
		if !m.Retired() || w.actions(acts) == "" {
			t.Errorf("%s: it was never made, and the key is not retired", name)
		}
		refused := func(m *Machine, what string, s Shown) {
			t.Helper()
			wantRefused(t, m, s, RuleForged)
			if m.Retired() {
				t.Errorf("%s, %s: the key is retired", name, what)
			}
		}
		good := shown(r)
		refused(machine("s2"), "another's", good)
		refused(machine(""), "shown to a member's machine", good)
		changed := slices.Clone(good.Signed)
		changed[len(changed)-33]++ // the counter
		refused(machine("s1"), "changed", Shown{Signed: changed, Signature: good.Signature})
		refused(machine("s1"), "empty", Shown{})
		refused(machine("s1"), "cut short", Shown{Signed: good.Signed[:60], Signature: good.Signature})
		key := testConfig("s1").Self.Key
		other := r.SignedBytes(Scope{Room: "!other:example.org"})
		refused(machine("s1"), "of another room", Shown{Signed: other, Signature: ed25519.Sign(key, other)})
		none := append(begin("applied", scope), make([]byte, 64)...)
		refused(machine("s1"), "no receipt", Shown{Signed: none, Signature: ed25519.Sign(key, none)})
	}
	t.Run("its own", func(t *testing.T) {
		w := newWorld()
		m, err := New(testConfig("hub"), w.base([]string{"hub"}, []string{"alice"}, []string{"alice", "bob"}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Step(w.commit("a", "root", "alice", commitSpec{})); err != nil {
			t.Fatal(err)
		}
		var made []Receipt
		for _, a := range m.Tick(time.Second) {
			if s, ok := a.(Send); ok {
				made = append(made, s.Receipt)
			}
		}
		if len(made) != 1 {
			t.Fatalf("signed %d receipts, want 1", len(made))
		}
		if acts, err := m.Step(shown(made[0])); err != nil || len(acts) > 0 || m.Retired() {
			t.Errorf("its own receipt: %v, %v, retired %v", acts, err, m.Retired())
		}
		// One beside it, by another copy of the database.
		w.commit("b", "root", "bob", commitSpec{})
		twin := w.accept("b", "hub", Ballot{}, false, nil)
		if twin.Chain.Counter != made[0].Link().Counter {
			t.Fatalf("counters %d and %d, want the same", twin.Chain.Counter, made[0].Link().Counter)
		}
		if _, err := m.Step(shown(twin)); err != nil || !m.Retired() {
			t.Errorf("another receipt with the counter of one that was made: %v, retired %v", err, m.Retired())
		}
	})
}

// What is shown of a list's receipts is the newest of each key, or where that is
// large the newest that is not, beside its name.
func TestShownReceipts(t *testing.T) {
	w := newWorld()
	m, err := New(testConfig(""), w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"}))
	if err != nil {
		t.Fatal(err)
	}
	step := func(ev Event) {
		t.Helper()
		if _, err := m.Step(ev); err != nil {
			t.Fatal(err)
		}
	}
	step(w.commit("a", "root", "alice", commitSpec{}))
	accept := w.accept("a", "s1", Ballot{}, false, nil)
	step(accept)
	small := w.vote("a", "s2", Ballot{}, []Proof{{Applied: w.applied("a", "bob")}})
	step(small)
	step(w.commit("b", "a", "alice", commitSpec{}))
	step(w.accept("b", "s1", Ballot{}, false, nil))
	var proofs []Proof
	for range 20 {
		proofs = append(proofs, Proof{Applied: w.applied("b", "bob")})
	}
	large := w.vote("b", "s2", Ballot{}, proofs)
	step(large)
	list := List{testSequencer("s2"), testSequencer("s3"), testSequencer("s1")}
	scope := Scope{Room: testRoom}
	for _, again := range []bool{false, true} {
		if again {
			raw, err := m.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			if m, err = Unmarshal(testConfig(""), raw); err != nil {
				t.Fatal(err)
			}
		}
		for limit, want := range map[int][]Receipt{0: {large, small, nil}, 10_000: {large, nil}} {
			got := m.ShownReceipts(list, limit)
			if len(got) != len(want) {
				t.Fatalf("limit %d: %d marks, want %d", limit, len(got), len(want))
			}
			for i, mark := range got {
				if i == len(got)-1 { // the newest of s1
					if mark.Counter != 2 || len(mark.Signed) == 0 {
						t.Errorf("limit %d: of s1 receipt %d is shown, want 2", limit, mark.Counter)
					}
				} else if mark.Hash != want[i].Hash(scope) || mark.Counter != want[i].Link().Counter {
					t.Errorf("limit %d: mark %d names receipt %d", limit, i, mark.Counter)
				}
				shows := mark.Hash != large.Hash(scope) || limit > 0
				if at, err := LinkOf(scope, mark.Key, mark.Signed, mark.Signature); (err == nil) != shows || shows && (at.Counter != mark.Counter || HashOf(mark.Signed, mark.Signature) != mark.Hash) {
					t.Errorf("limit %d: mark %d shows %v, %v; want it to show %v", limit, i, at, err, shows)
				}
			}
		}
	}
}

// An era names the final commits that it overrides.
func TestOverridden(t *testing.T) {
	c, _, _ := newChainWorld(t, Limits{}, "s1")
	c.final("a", commitSpec{})
	c.final("b", commitSpec{})
	c.final("c", commitSpec{})
	c.step(c.commit("e", "a", "alice", commitSpec{era: 1, list: []string{"s2"}, admins: []string{"alice"}}), c.applied("e", "bob"))
	got := ""
	for _, r := range c.m.Overridden(testRef("e")) {
		got += c.name(r)
	}
	if c.m.Head() != testRef("e") || got != "bc" {
		t.Errorf("head %s, overridden %q, want e and bc", c.name(c.m.Head()), got)
	}
}

// TestLastVotesBesideTheBase: a module comes back whose last vote lies on a branch
// that others never held and cannot check any more. Once they know that it is
// beside what they keep, its promise counts, in whatever order they hear of it.
func TestLastVotesBesideTheBase(t *testing.T) {
	for _, order := range [][]string{{"z2", "z3", "promise"}, {"promise", "z2", "z3"}, {"z2", "promise", "z3"}} {
		w := newWorld()
		base := w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"})
		base.Ref, base.Epoch, base.Config = testRef("a"), 1, testRef("root")
		w.names[base.Ref], w.epochs["a"], w.config["a"] = "a", 1, "root"
		evs := map[string]Event{}
		for i, name := range []string{"z1", "z2", "z3"} {
			c := w.commit(name, []string{"root", "z1", "z2"}[i], "bob", commitSpec{})
			evs[name] = Outside{Ref: c.Ref, Parent: c.Parent, Epoch: c.Epoch}
		}
		p := newPeers(t, w, base, "s3")
		p.step(w.commit("b", "a", "alice", commitSpec{}))
		p.run(61, "s3")
		p.want("s3: promise ballot=1.2 last=none counter=1")
		evs["promise"] = w.promise("root", "s2", Ballot{Round: 1, Rank: 2}, &LastVote{Ref: testRef("z3")})
		for i, name := range order {
			if m := p.ms["s3"]; name != "promise" && !m.Beside(evs[name].(Outside).Parent, evs[name].(Outside).Epoch) {
				t.Fatalf("%v: %s may still come", order, name)
			}
			p.step(evs[name])
			if p.run(1, "s3"); i < 2 && len(p.sent) > 0 {
				t.Errorf("%v: opened its ballot too early: %q", order, p.sent)
			}
		}
		p.want("s3: accept b ballot=1.2 list=root counter=2 promises=2")
		// And after a restart.
		data, err := p.ms["s3"].MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		m, err := Unmarshal(testConfig("s3"), data)
		if err != nil || !m.Beside(testRef("z3"), 99) || !m.Accepted(testRef("b")) {
			t.Errorf("%v: read again: %v, z3 beside %v, b accepted %v", order, err, m.Beside(testRef("z3"), 99), m.Accepted(testRef("b")))
		}
	}
}

// TestAcceptsBeforeTheirGroup: a group is founded anew, and its epochs begin again
// below those that a newcomer knows. Accepts that come before the founding commit,
// whose tree may have to be fetched, count once it is there.
func TestAcceptsBeforeTheirGroup(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob"})
	base.Ref, base.Epoch, base.Config = testRef("a"), 9, testRef("root")
	w.epochs["a"], w.epochs["f"], w.config["a"] = 9, 1, "root"
	f := w.commit("f", "a", "alice", commitSpec{})
	f.Founding = &Founding{GroupID: []byte("next"), Suite: 1, Leaves: base.Leaves}
	c := w.commit("c", "f", "alice", commitSpec{})
	m, err := New(testConfig(""), base)
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range []Event{w.accept("f", "s1", Ballot{}, false, nil), w.accept("c", "s1", Ballot{}, false, nil)} {
		if acts, err := m.Step(ev); err != nil {
			t.Fatal(err)
		} else if a := ev.(*Accept); a.Ref == c.Ref && len(acts) > 0 {
			t.Errorf("an accept that may be about anything asks for something: %s", w.actions(acts))
		}
	}
	for i := range 1000 { // of long ago
		name := fmt.Sprint("old", i)
		w.commit(name, fmt.Sprint("older", i), "alice", commitSpec{})
		if _, err := m.Step(w.accept(name, "s1", Ballot{}, false, nil)); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.waiting) > m.cfg.Limits.Waiting {
		t.Errorf("%d events wait", len(m.waiting))
	}
	if _, err := m.Step(f); err != nil {
		t.Fatal(err)
	}
	if m.Head() != f.Ref {
		t.Errorf("head %s, want the founding commit: its accept came first", w.name(m.Head()))
	}
	for _, ev := range []Event{c, w.accept("c", "s1", Ballot{}, false, nil)} {
		if _, err := m.Step(ev); err != nil {
			t.Fatal(err)
		}
	}
	if m.Head() != c.Ref {
		t.Errorf("head %s, want c", w.name(m.Head()))
	}
}

// TestLastVotesForWhatIsToComeBuryNothing: in a group that was founded anew epochs
// begin again, so what a last vote names and nobody has brought yet may be taken for
// something of long ago. What is built on it, and said of it, waits for it.
func TestLastVotesForWhatIsToComeBuryNothing(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"})
	base.Ref, base.Epoch, base.Config = testRef("a"), 30, testRef("root")
	w.names[base.Ref], w.epochs["a"], w.epochs["f"], w.config["a"] = "a", 30, 1, "root"
	cfg := testConfig("")
	cfg.Limits.Keep = 2
	m, err := New(cfg, base)
	if err != nil {
		t.Fatal(err)
	}
	c := &chainWorld{world: w, t: t, m: m, tip: "f", list: []string{"s1", "s2", "s3"}}
	f := w.commit("f", "a", "alice", commitSpec{})
	f.Founding = &Founding{GroupID: []byte("next"), Suite: 1, Leaves: base.Leaves}
	w.group = f.Founding.GroupID
	c.step(f, w.accept("f", "s1", Ballot{}, false, nil))
	c.final("c1", commitSpec{})
	c.final("c2", commitSpec{})
	w.commit("c3", "c2", "alice", commitSpec{})
	d, e := w.commit("d", "c3", "alice", commitSpec{}), w.commit("e", "d", "alice", commitSpec{})
	c.step(w.promise("root", "s2", Ballot{Round: 1, Rank: 1}, &LastVote{Ref: d.Ref}))
	c.final("c3", commitSpec{})
	if m.Base() == base.Ref || m.Held(d.Ref) {
		t.Fatalf("base %s: nothing was dropped", w.name(m.Base()))
	}
	restart := func() {
		data, err := m.MarshalBinary()
		if err == nil {
			m, err = Unmarshal(cfg, data)
		}
		if err != nil {
			t.Fatal(err)
		}
		c.m = m
	}
	restart()
	if m.Beside(d.Ref, e.Epoch) {
		t.Error("what is built on it never comes, it says")
	}
	c.step(e, w.accept("e", "s1", Ballot{}, false, nil))
	restart()
	c.step(d)
	if m.Head() != e.Ref {
		t.Errorf("the head is %s, want e", w.name(m.Head()))
	}
}

// TestWaitingReceiptsOfAnybody: what is about a commit that nobody has cannot be judged yet, and anybody can
// make it up. It is bounded by bytes, and pushes out nothing that a listed sequencer signed; what shows already
// that no sequencer of its list signed it is refused.
func TestWaitingReceiptsOfAnybody(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob", "carol"})
	m, err := New(testConfig(""), base)
	if err != nil {
		t.Fatal(err)
	}
	orphan := func(i int, config string) *Vote {
		name := fmt.Sprint("nobody has ", i)
		w.commit(name, fmt.Sprint("nor its parent ", i), "alice", commitSpec{})
		w.config[w.parent[name]] = config
		return w.vote(name, "s1", Ballot{}, nil)
	}
	honest := orphan(0, "root")
	if _, err := m.Step(honest); err != nil {
		t.Fatal(err)
	}
	proofs := slices.Repeat([]Proof{{Applied: w.applied("root", "bob")}}, 100)
	for i := range 300 {
		forged, unknown := orphan(1+i, "root"), orphan(1000+i, fmt.Sprint("no list ", i))
		forged.Proofs, unknown.Proofs = proofs, proofs
		forged.Signature = slices.Repeat([]byte{1}, 64)
		wantRefused(t, m, forged, RuleForged)
		if _, err := m.Step(unknown); err != nil {
			t.Fatal(err)
		}
	}
	check := func(m *Machine) {
		t.Helper()
		size := 0
		for _, w := range m.waiting {
			size += w.size
		}
		if size > maxOthersWaiting+10_000 || len(m.waiting) < 3 {
			t.Errorf("%d events of %d bytes wait", len(m.waiting), size)
		}
		if first := m.waiting[0]; !sameEvent(first.ev, honest) || !first.listed {
			t.Error("what a listed sequencer signed gave way")
		}
	}
	check(m)
	raw, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Unmarshal(testConfig(""), raw)
	if err != nil {
		t.Fatal(err)
	}
	check(again)
}

// TestWaitingReceiptsAfterARestart: which receipts give way to others does not depend on
// when the list that they name came or went, for a machine that was read back does not know.
func TestWaitingReceiptsAfterARestart(t *testing.T) {
	c, _, cfg := newChainWorld(t, Limits{Keep: 4, Waiting: 8}, "s1")
	same := func(when string, listed int) {
		t.Helper()
		raw, err := c.m.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Unmarshal(cfg, raw)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for i, w := range c.m.waiting {
			if w.listed {
				n++
			}
			if o := again.waiting[i]; o.listed != w.listed || o.size != w.size || o.on != w.on {
				t.Errorf("%s: event %d waits as %v of %d bytes, after a restart as %v of %d", when, i, w.listed, w.size, o.listed, o.size)
			}
		}
		if n != listed {
			t.Errorf("%s: %d receipts count as a listed sequencer's, want %d", when, n, listed)
		}
	}
	orphan := func(name, config, by string) *Vote {
		c.commit(name, "nor its parent "+name, "alice", commitSpec{})
		c.config[c.parent[name]] = config
		return c.vote(name, by, Ballot{}, nil)
	}
	step := func(ev Event) {
		t.Helper()
		if _, err := c.m.Step(ev); err != nil {
			t.Fatal(err)
		}
	}
	// The list is not held yet.
	change := c.commit("change", "root", "alice", commitSpec{list: []string{"s2"}, admins: []string{"alice"}})
	good, forged := orphan("x", "change", "s2"), orphan("y", "change", "s2")
	forged.Signature = slices.Repeat([]byte{1}, 64)
	step(good)
	step(forged)
	step(orphan("z", "root", "s1"))
	same("before the list", 1)
	step(change)
	same("with the list", 2)
	if len(c.m.waiting) != 2 {
		t.Errorf("%d receipts wait, want the two that listed sequencers signed", len(c.m.waiting))
	}
	// The list is dropped again.
	for i := range 20 {
		c.final(fmt.Sprint("c", i), commitSpec{})
	}
	if c.m.Base() == testRef("root") {
		t.Fatal("nothing was dropped")
	}
	same("without the list", 1)
}

// An accept says in which event its commit is; a statement is in an event of its own, in which no commit is found.
// Both wait for the commit; receipts of listed sequencers are counted.
func TestOnlyReceiptsSayWhereTheirCommitIs(t *testing.T) {
	w := newWorld()
	m, err := New(testConfig(""), w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob"}))
	if err != nil {
		t.Fatal(err)
	}
	w.commit("a", "root", "alice", commitSpec{})
	accept, applied := w.accept("a", "s1", Ballot{}, false, nil), w.applied("a", "bob")
	rejected := &Rejected{Ref: applied.Ref, Leaf: applied.Leaf, Rule: "tree/tree-hash", Signature: applied.Signature}
	accept.EventID, applied.EventID, rejected.EventID = "$commit", "$applied", "$rejected"
	for i, ev := range []Event{applied, rejected, accept} {
		acts, err := m.Step(ev)
		if err != nil {
			t.Fatal(err)
		}
		hint := "no fetch"
		for _, a := range acts {
			if f, ok := a.(Fetch); ok {
				hint = f.EventID
			}
		}
		if want := []string{"", "", "$commit"}[i]; hint != want {
			t.Errorf("for %T the commit is looked for in %q, want %q", ev, hint, want)
		}
		if n, want := m.Waiting(), []int{0, 0, 1}[i]; n != want {
			t.Errorf("%d receipts wait, want %d", n, want)
		}
	}
}
