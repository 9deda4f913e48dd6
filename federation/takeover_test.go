package federation

import (
	"math"
	"testing"
	"time"
)

// peers are modules that hear each other at once.
type peers struct {
	t    *testing.T
	w    *world
	ms   map[string]*Machine
	now  time.Duration
	sent []string
}

func newPeers(t *testing.T, w *world, base Base, names ...string) *peers {
	t.Helper()
	p := &peers{t: t, w: w, ms: map[string]*Machine{}}
	for _, n := range names {
		m, err := New(testConfig(n), base)
		if err != nil {
			t.Fatal(err)
		}
		p.ms[n] = m
	}
	return p
}

func (p *peers) step(evs ...Event) {
	p.t.Helper()
	for _, ev := range evs {
		for _, m := range p.ms {
			if _, err := m.Step(ev); err != nil {
				p.t.Fatal(err)
			}
		}
	}
}

// run lets time pass in seconds, in the order of the names.
func (p *peers) run(seconds int, names ...string) {
	p.t.Helper()
	for range seconds {
		p.now += time.Second
		for _, n := range names {
			for _, a := range p.ms[n].Tick(p.now) {
				if s, ok := a.(Send); ok {
					p.sent = append(p.sent, n+": "+p.w.describe(s.Receipt))
					p.step(s.Receipt)
				}
			}
		}
	}
}

func (p *peers) want(sent ...string) {
	p.t.Helper()
	for i := range max(len(sent), len(p.sent)) {
		got, want := "nothing", "nothing"
		if i < len(p.sent) {
			got = p.sent[i]
		}
		if i < len(sent) {
			want = sent[i]
		}
		if got != want {
			p.t.Fatalf("at %v, receipt %d: got %s, want %s\nall: %q", p.now, i, got, want, p.sent)
		}
	}
	p.sent = nil
}

// TestTakeover: the owner is gone. The next in rank asks after its wait, another
// promises, and the room goes on to finality without it.
func TestTakeover(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"})
	p := newPeers(t, w, base, "s2", "s3")
	p.step(w.commit("a", "root", "alice", commitSpec{}), w.accept("a", "s1", Ballot{}, false, nil),
		w.commit("b", "a", "bob", commitSpec{}))
	p.run(29, "s2", "s3")
	p.want("s2: vote a ballot=0.0 proofs=[commit(b)] counter=1", "s3: vote a ballot=0.0 proofs=[commit(b)] counter=1")
	p.run(9, "s2", "s3")
	p.want("s2: promise ballot=1.1 last=a@0.0 counter=2", "s3: promise ballot=1.1 last=a@0.0 counter=2",
		"s2: accept a ballot=1.1 list=root counter=3 promises=2", "s2: accept b ballot=1.1 list=root counter=4 promises=2")
	p.step(w.applied("b", "alice"))
	p.run(7, "s2", "s3")
	if got := p.w.name(p.ms["s3"].NewestFinal()); got != "b" {
		t.Errorf("newest final %s, want b", got)
	}
}

// TestMinorityGoesOn: nobody answers two requests in sequence, so one module
// alone accepts provisionally, asks no more, and the first sign of another brings
// it back to ballots.
func TestMinorityGoesOn(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"})
	p := newPeers(t, w, base, "s2", "s3")
	s3 := p.ms["s3"]
	delete(p.ms, "s3") // cut off
	a := w.commit("a", "root", "alice", commitSpec{})
	p.step(a)
	p.run(30+90+180+5, "s2")
	p.want("s2: promise ballot=1.1 last=none counter=1", "s2: promise ballot=2.1 last=none counter=2",
		"s2: provisional accept a ballot=0.1 list=root counter=3")
	if s := p.ms["s2"].Status(testRef("a")); s != StatusSideBranch {
		t.Errorf("a is %s, want a side branch", s)
	}
	p.run(3600, "s2")
	p.want()
	b := w.commit("b", "a", "bob", commitSpec{})
	p.step(b)
	p.run(1, "s2")
	p.want("s2: provisional accept b ballot=0.1 list=root counter=4")
	if !p.ms["s2"].Provisional() {
		t.Error("s2 does not say that it is alone")
	}
	// s3 is back and learns what happened.
	p.ms["s3"] = s3
	for _, r := range p.ms["s2"].lists[testRef("root")].promises {
		if _, err := s3.Step(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, ev := range []Event{a, b} {
		if _, err := s3.Step(ev); err != nil {
			t.Fatal(err)
		}
	}
	p.run(2, "s3", "s2")
	p.want("s3: promise ballot=2.1 last=none counter=1", "s2: accept b ballot=2.1 list=root counter=5 promises=2")
}

// TestFreezeMakesNoSideBranch: where a partition freezes the room, a minority
// accepts nothing.
func TestFreezeMakesNoSideBranch(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1", "s2"}, []string{"alice"}, []string{"alice", "bob"})
	base.Policy.OnPartition = OnPartitionFreeze
	p := newPeers(t, w, base, "s2")
	p.step(w.commit("a", "root", "alice", commitSpec{}))
	p.run(1000, "s2")
	p.want("s2: promise ballot=1.1 last=none counter=1", "s2: promise ballot=2.1 last=none counter=2")
}

// TestRoundsDoNotRunOut: a liar asks for the last round there is; nobody gives
// up every other round for it.
func TestRoundsDoNotRunOut(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"})
	p := newPeers(t, w, base, "s3")
	p.step(w.promise("root", "s2", Ballot{Round: math.MaxUint64, Rank: 1}, nil))
	p.run(3, "s3")
	p.want()
	p.step(w.promise("root", "s2", Ballot{Round: 7, Rank: 1}, nil))
	p.run(1, "s3")
	p.want("s3: promise ballot=7.1 last=none counter=1")
}

// TestListOfStrangers: a list change waits until those who are to serve say that
// they would, whether the old sequencer is among them or not.
func TestListOfStrangers(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob"})
	p := newPeers(t, w, base, "s1", "s2")
	p.step(w.commit("l", "root", "alice", commitSpec{list: []string{"s1", "s2"}, admins: []string{"alice"}}))
	p.run(2, "s1", "s2")
	p.want("s2: ready l counter=1", "s1: ready l counter=1", "s1: accept l ballot=0.0 list=root counter=2")
	p.step(w.applied("l", "bob"))
	p.run(6, "s1", "s2")
	p.want("s1: vote l ballot=0.0 proofs=[applied(l,leaf 1)] counter=3")
	p.step(w.commit("a", "l", "bob", commitSpec{}), w.applied("a", "alice"))
	p.run(8, "s1", "s2")
	if got := w.name(p.ms["s2"].NewestFinal()); got != "a" {
		t.Errorf("newest final %s, want a: the new list does not serve", got)
	}
}

// TestReadyAgainAndAgain: those who are to serve wait for days for a majority that
// can vote for the change. They say so ever more rarely, together, and never stop:
// whenever the majority comes back, it finds them ready before long.
func TestReadyAgainAndAgain(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"})
	names := []string{"s4", "s5", "s6"}
	p := newPeers(t, w, base, names...)
	p.step(w.commit("l", "root", "alice", commitSpec{list: names, admins: []string{"alice"}}))
	said := func(d time.Duration) int {
		for end := p.now + d; p.now < end; p.now += 9 * time.Second {
			p.run(1, names...)
		}
		n := len(p.sent)
		p.sent = nil
		return n
	}
	if n := said(24 * time.Hour); n < 18 || n > 36 {
		t.Errorf("%d ready receipts in a day, want at most twelve each", n)
	}
	if n := said(7 * 24 * time.Hour); n < 3*21-3 || n > 3*21+3 {
		t.Errorf("%d ready receipts in the week after, want one each in eight hours", n)
	}
}

// TestUnvouchedListChangeGivesWay: nobody vouches for a list change, another
// commit waits, and the owner's next round takes that one.
func TestUnvouchedListChangeGivesWay(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob"})
	p := newPeers(t, w, base, "s1", "s2")
	p.step(w.commit("l", "root", "alice", commitSpec{list: []string{"s1", "s2"}, admins: []string{"alice"}}))
	p.run(2, "s1", "s2")
	p.sent = nil
	p.step(w.commit("a", "root", "bob", commitSpec{}))
	p.run(29, "s1", "s2")
	p.want()
	p.run(4, "s1", "s2")
	p.want("s1: promise ballot=1.0 last=none counter=3", "s1: accept a ballot=1.0 list=root counter=4 promises=1")
	if got := w.name(p.ms["s2"].Head()); got != "a" {
		t.Errorf("head %s, want a", got)
	}
}

// TestUsableHead: where clients may send.
func TestUsableHead(t *testing.T) {
	build := func(t *testing.T, change func(*Base), list []string) (*world, *Machine) {
		w := newWorld()
		base := w.base([]string{"s1", "s2"}, []string{"alice"}, []string{"alice", "bob"})
		change(&base)
		m, err := New(testConfig(""), base)
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range []string{"a", "b", "c"} {
			spec := commitSpec{}
			if name == "c" && list != nil {
				spec = commitSpec{list: list, admins: []string{"alice"}}
			}
			for _, ev := range []Event{w.commit(name, []string{"root", "a", "b"}[i], "alice", spec),
				w.accept(name, "s1", Ballot{}, false, nil), w.applied(name, "bob")} {
				if _, err := m.Step(ev); err != nil {
					t.Fatal(err)
				}
			}
		}
		return w, m
	}
	for _, tt := range []struct {
		name, want string
		change     func(*Base)
		list       []string
	}{
		{"fork", "c", func(*Base) {}, nil},
		{"window", "b", func(b *Base) { b.Policy.Window = 2 }, nil},
		{"freeze", "root", func(b *Base) { b.Policy.OnPartition = OnPartitionFreeze }, nil},
		{"list change", "b", func(*Base) {}, []string{"s3"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, m := build(t, tt.change, tt.list)
			if got := w.name(m.UsableHead()); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// TestHeirsDue: ten minutes on the own clock with something waiting and nothing
// final; a new final starts it again.
func TestHeirsDue(t *testing.T) {
	w := newWorld()
	m, err := New(testConfig(""), w.base([]string{"s1"}, []string{"alice"}, []string{"alice", "bob"}))
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
	m.Tick(time.Hour)
	if m.HeirsDue() {
		t.Error("due although nothing waits")
	}
	step(w.commit("a", "root", "alice", commitSpec{}))
	m.Tick(2 * time.Hour)
	m.Tick(2*time.Hour + 9*time.Minute)
	if m.HeirsDue() {
		t.Error("due after nine minutes")
	}
	m.Tick(2*time.Hour + 10*time.Minute)
	if !m.HeirsDue() || m.Stalled() != 10*time.Minute {
		t.Errorf("due %v, stalled %v, want ten minutes", m.HeirsDue(), m.Stalled())
	}
	step(w.accept("a", "s1", Ballot{}, false, nil), w.applied("a", "bob"), w.vote("a", "s1", Ballot{}, []Proof{{Applied: w.applied("a", "bob")}}),
		w.commit("b", "a", "bob", commitSpec{}))
	m.Tick(2*time.Hour + 11*time.Minute)
	if m.HeirsDue() {
		t.Error("due although a commit just became final")
	}
}

// TestSavedTakeover: what a ballot was opened with survives a restart.
func TestSavedTakeover(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"})
	p := newPeers(t, w, base, "s2", "s3")
	p.step(w.commit("a", "root", "alice", commitSpec{}))
	p.run(35, "s2", "s3")
	p.want("s2: promise ballot=1.1 last=none counter=1", "s3: promise ballot=1.1 last=none counter=1",
		"s2: accept a ballot=1.1 list=root counter=2 promises=2")
	blob, err := p.ms["s2"].MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	m, err := Unmarshal(testConfig("s2"), blob)
	if err != nil {
		t.Fatal(err)
	}
	p.ms["s2"] = m
	// A third promise with a vote comes late: it must not show in the accepts.
	late := w.promise("root", "s1", Ballot{Round: 1, Rank: 1}, nil)
	p.step(late, Resume{}, w.commit("b", "a", "bob", commitSpec{}))
	p.run(1, "s2")
	p.want("s2: accept b ballot=1.1 list=root counter=4 promises=2 with vote a ballot=1.1 proofs=[commit(b)] counter=3")
}

// TestUnreadyListChangeGivesWay: those who were to serve are gone before anybody
// voted for a list change. Another commit waits, and the next round takes that one.
func TestUnreadyListChangeGivesWay(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"})
	p := newPeers(t, w, base, "s1", "s2", "s3")
	p.step(w.commit("l", "root", "alice", commitSpec{list: []string{"s4", "s5"}, admins: []string{"alice"}}), w.ready("l", "s4"), w.ready("l", "s5"))
	p.run(700, "s1", "s2", "s3")
	p.want("s1: accept l ballot=0.0 list=root counter=1")
	p.step(w.applied("l", "bob"), w.commit("a", "root", "bob", commitSpec{}), w.applied("a", "alice"))
	p.run(29, "s1", "s2", "s3")
	p.want()
	p.run(40, "s1", "s2", "s3")
	if got := w.name(p.ms["s2"].NewestFinal()); got != "a" {
		t.Errorf("newest final %s, want a; sent %q", got, p.sent)
	}
}

// TestBoundToUnreadyListChange: one module voted for a list change, then those who
// were to serve are gone. No ballot helps, so nobody asks for one: after two waits
// modules go on provisionally beside the list change, until it is ready again.
func TestBoundToUnreadyListChange(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1", "s2", "s3"}, []string{"alice"}, []string{"alice", "bob"})
	p := newPeers(t, w, base, "s1", "s2", "s3")
	l := w.commit("l", "root", "alice", commitSpec{list: []string{"s4", "s5"}, admins: []string{"alice"}})
	p.step(l, w.ready("l", "s4"), w.ready("l", "s5"))
	p.run(1, "s1", "s2", "s3")
	p.step(w.applied("l", "bob"))
	p.run(6, "s1")
	p.want("s1: accept l ballot=0.0 list=root counter=1", "s1: vote l ballot=0.0 proofs=[applied(l,leaf 1)] counter=2")
	p.now += 11 * time.Minute
	for _, m := range p.ms {
		m.Tick(p.now)
	}
	p.step(w.commit("a", "root", "bob", commitSpec{}))
	p.run(32, "s1", "s2", "s3")
	p.want("s1: promise ballot=1.0 last=l@0.0 counter=3", "s2: promise ballot=1.0 last=none counter=1", "s3: promise ballot=1.0 last=none counter=1",
		"s1: accept l ballot=1.0 list=root counter=4 promises=2")
	p.run(3600, "s1", "s2", "s3")
	p.want("s2: provisional accept a ballot=0.1 list=root counter=2")
	if got := w.name(p.ms["s1"].Head()); got != "a" {
		t.Errorf("head %s, want a", got)
	}
	p.step(w.commit("b", "a", "alice", commitSpec{}))
	p.run(1, "s1", "s2", "s3")
	p.want("s2: provisional accept b ballot=0.1 list=root counter=3")
	p.step(w.ready("l", "s4"), w.ready("l", "s5"))
	p.run(2, "s1", "s2", "s3")
	if got := w.name(p.ms["s1"].NewestFinal()); got != "l" {
		t.Errorf("newest final %s, want l; sent %q", got, p.sent)
	}
}

// TestAskedTwiceAndOvertaken: three of four, each cut off, ask twice in vain. The
// owner asks for a higher ballot and dies. When they meet they answer that one, see
// that a majority did, and ask again.
func TestAskedTwiceAndOvertaken(t *testing.T) {
	w := newWorld()
	base := w.base([]string{"s1", "s2", "s3", "s4"}, []string{"alice"}, []string{"alice", "bob"})
	p := newPeers(t, w, base, "s2", "s3", "s4")
	p.step(w.commit("a", "root", "alice", commitSpec{}), w.applied("a", "bob"))
	both, all := p.ms, []Event{}
	for _, n := range []string{"s2", "s3", "s4"} {
		p.ms = map[string]*Machine{n: both[n]}
		for range 4000 {
			p.now += time.Second
			for _, a := range both[n].Tick(p.now) {
				if s, ok := a.(Send); ok {
					all = append(all, s.Receipt)
				}
			}
		}
		if !both[n].Provisional() {
			t.Fatalf("%s has not asked twice in vain", n)
		}
	}
	p.ms = both
	p.step(all...)
	p.step(w.promise("root", "s1", Ballot{Round: 9}, nil))
	p.run(2000, "s2", "s3", "s4")
	for n, m := range both {
		if !m.Final(testRef("a")) {
			t.Errorf("%s: a is %s, after %q", n, m.Status(testRef("a")), p.sent)
		}
	}
}
