package federation

import (
	"fmt"
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
		if _, err := m.Step(a); err != nil {
			t.Fatal(err)
		}
		if m.Retired() {
			t.Error("a forged receipt retired the key")
		}
	})
}
