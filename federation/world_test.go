package federation

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"
)

const testRoom = "!room:example.org"

func testKey(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("key " + name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func testRef(name string) Ref { return sha256.Sum256([]byte("commit " + name)) }

func testSequencer(name string) Sequencer {
	return Sequencer{Server: name + ".example", User: "@mls:" + name + ".example", ReceiptKey: testKey(name).Public().(ed25519.PublicKey)}
}

func testVerify(suite uint16, key, content, sig []byte) error {
	if suite != 1 || len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, content, sig) {
		return errors.New("leaf signature does not match")
	}
	return nil
}

// world makes commits, receipts and statements by name.
type world struct {
	leaves map[string]uint32
	names  map[Ref]string
	epochs map[string]uint64
	config map[string]string // list that governs a commit's children, by commit
	lists  map[string][]string
	parent map[string]string
	chains map[string]Chain
	group  []byte
	heirs  []string // "user/server"
	window int
}

func newWorld() *world {
	return &world{
		leaves: map[string]uint32{}, names: map[Ref]string{}, epochs: map[string]uint64{}, config: map[string]string{},
		lists: map[string][]string{}, parent: map[string]string{}, chains: map[string]Chain{}, group: []byte("group"),
	}
}

// user of the leaf "bob/2" is "bob".
func userOf(leaf string) string {
	u, _, _ := strings.Cut(leaf, "/")
	return u
}

func (w *world) index(leaf string) uint32 {
	i, ok := w.leaves[leaf]
	if !ok {
		i = uint32(len(w.leaves))
		w.leaves[leaf] = i
	}
	return i
}

func (w *world) leaf(name string) Leaf {
	return Leaf{Index: w.index(name), User: userOf(name), Key: testKey("leaf " + name).Public().(ed25519.PublicKey)}
}

func (w *world) policy(list, admins []string) *Policy {
	p := &Policy{Admins: admins, Window: w.window}
	for _, h := range w.heirs {
		user, server, _ := strings.Cut(h, "/")
		p.Heirs = append(p.Heirs, Heir{User: user, Server: server})
	}
	for _, s := range list {
		p.Sequencers = append(p.Sequencers, testSequencer(s))
	}
	return p
}

func (w *world) base(list, admins, leaves []string) Base {
	b := Base{Ref: testRef("root"), GroupID: w.group, Suite: 1, Policy: *w.policy(list, admins)}
	for _, l := range leaves {
		b.Leaves = append(b.Leaves, w.leaf(l))
	}
	w.names[b.Ref], w.config["root"], w.lists["root"] = "root", "root", list
	return b
}

type commitSpec struct {
	external, onlyRemoves bool
	add, remove, update   []string
	list, admins          []string
	era                   uint64
	heirs                 []string
	barred                string
}

func (w *world) commit(name, parent, author string, s commitSpec) *Commit {
	c := &Commit{
		Ref: testRef(name), Parent: testRef(parent), EventID: "$" + name, ParentEvent: "$" + parent,
		Author: w.index(author), AuthorUser: userOf(author), External: s.external, OnlyRemoves: s.onlyRemoves, Barred: s.barred,
	}
	if _, ok := w.epochs[name]; !ok {
		w.epochs[name] = w.epochs[parent] + 1
	}
	c.Epoch = w.epochs[name]
	w.names[c.Ref], w.parent[name] = name, parent
	w.config[name] = w.config[parent]
	for _, l := range s.remove {
		c.Removed = append(c.Removed, w.index(l))
	}
	for _, l := range s.update {
		c.Updated = append(c.Updated, w.leaf(l))
	}
	if s.external {
		s.add = append(s.add, author)
	}
	for _, l := range s.add {
		c.Added = append(c.Added, w.leaf(l))
	}
	if s.list != nil || s.admins != nil {
		list := s.list
		if list == nil {
			list = w.lists[w.config[parent]]
		} else {
			w.config[name], w.lists[name] = name, list
		}
		c.Policy = w.policy(list, s.admins)
	}
	if s.era > 0 {
		c.Era = &Era{Number: s.era, ByHeirs: s.heirs != nil, Signers: s.heirs}
	}
	return c
}

func (w *world) link(by string) Chain {
	c := w.chains[by]
	return Chain{Counter: c.Counter + 1, Prev: c.Prev}
}

func (w *world) signed(by string, r Receipt) {
	if err := r.Sign(Scope{Room: testRoom}, testKey(by)); err != nil {
		panic(err)
	}
	w.chains[by] = Chain{Counter: r.Link().Counter, Prev: r.Hash(Scope{Room: testRoom})}
}

// governing is the name of the list that governs a commit, and the rank of a
// sequencer in it.
func (w *world) governing(name, by string) (Ref, uint32) {
	config := w.config[w.parent[name]]
	for i, s := range w.lists[config] {
		if s == by {
			return testRef(config), uint32(i)
		}
	}
	return testRef(config), 0
}

func (w *world) accept(name, by string, ballot Ballot, provisional bool, promises []*Promise) *Accept {
	config, rank := w.governing(name, by)
	if provisional {
		ballot.Rank = rank
	}
	a := &Accept{Config: config, Ballot: ballot, Provisional: provisional, Ref: testRef(name), Parent: testRef(w.parent[name]),
		Epoch: w.epochs[name], Promises: promises, Chain: w.link(by), EventID: "$" + name}
	w.signed(by, a)
	return a
}

func (w *world) vote(name, by string, ballot Ballot, proofs []Proof) *Vote {
	config, rank := w.governing(name, by)
	v := &Vote{Config: config, Ballot: ballot, Voter: rank, Ref: testRef(name), Proofs: proofs, Chain: w.link(by), EventID: "$" + name}
	w.signed(by, v)
	return v
}

func (w *world) promise(config, by string, ballot Ballot, last *LastVote) *Promise {
	p := &Promise{Config: testRef(config), Ballot: ballot, LastVote: last, Chain: w.link(by)}
	if last != nil {
		last.Epoch = w.epochs[w.names[last.Ref]]
	}
	for i, s := range w.lists[config] {
		if s == by {
			p.Promiser = uint32(i)
		}
	}
	w.signed(by, p)
	return p
}

func (w *world) ready(config, by string) *Ready {
	r := &Ready{Config: testRef(config), Chain: w.link(by)}
	for i, s := range w.lists[config] {
		if s == by {
			r.Member = uint32(i)
		}
	}
	w.signed(by, r)
	return r
}

func (w *world) applied(name, leaf string) *Applied {
	a := &Applied{Ref: testRef(name), Leaf: w.index(leaf), Hash: AppliedHash([]byte(name)), EventID: "$applied"}
	a.Signature = ed25519.Sign(testKey("leaf "+leaf), a.Content(Scope{Room: testRoom, Group: w.group}))
	return a
}

func (w *world) reject(name, leaf, rule string) *Rejected {
	r := &Rejected{Ref: testRef(name), Leaf: w.index(leaf), Rule: rule, EventID: "$reject"}
	r.Signature = ed25519.Sign(testKey("leaf "+leaf), r.Content(Scope{Room: testRoom, Group: w.group}))
	return r
}

func testConfig(self string) Config {
	cfg := Config{Room: testRoom, Verify: testVerify}
	if self != "" {
		cfg.Self = &Identity{Server: self + ".example", User: "@mls:" + self + ".example", Key: testKey(self)}
	}
	return cfg
}

func (w *world) name(r Ref) string {
	if n, ok := w.names[r]; ok {
		return n
	}
	return r.Short()
}

func (w *world) describe(r Receipt) string {
	switch r := r.(type) {
	case *Accept:
		kind := "accept"
		if r.Provisional {
			kind = "provisional accept"
		}
		s := fmt.Sprintf("%s %s ballot=%s list=%s counter=%d", kind, w.name(r.Ref), r.Ballot, w.name(r.Config), r.Chain.Counter)
		if len(r.Promises) > 0 {
			s += fmt.Sprintf(" promises=%d", len(r.Promises))
		}
		for _, v := range r.Votes {
			s += " with " + w.describe(v)
		}
		return s
	case *Vote:
		var proofs []string
		for _, p := range r.Proofs {
			if p.Applied != nil {
				proofs = append(proofs, fmt.Sprintf("applied(%s,leaf %d)", w.name(p.Applied.Ref), p.Applied.Leaf))
			} else {
				proofs = append(proofs, "commit("+w.name(p.Commit)+")")
			}
		}
		return fmt.Sprintf("vote %s ballot=%s proofs=[%s] counter=%d", w.name(r.Ref), r.Ballot, strings.Join(proofs, " "), r.Chain.Counter)
	case *Promise:
		last := "none"
		if r.LastVote != nil {
			last = w.name(r.LastVote.Ref) + "@" + r.LastVote.Ballot.String()
		}
		return fmt.Sprintf("promise ballot=%s last=%s counter=%d", r.Ballot, last, r.Chain.Counter)
	case *Ready:
		return fmt.Sprintf("ready %s counter=%d", w.name(r.Config), r.Chain.Counter)
	}
	return "?"
}

func (w *world) actions(acts []Action) string {
	var b strings.Builder
	for _, a := range acts {
		switch a := a.(type) {
		case Save:
			b.WriteString("save\n")
		case Send:
			fmt.Fprintf(&b, "send %s\n", w.describe(a.Receipt))
		case HeadChanged:
			fmt.Fprintf(&b, "head %s -> %s (fork %s)\n", w.name(a.From), w.name(a.To), w.name(a.Fork))
		case Finalized:
			fmt.Fprintf(&b, "final %s\n", w.name(a.Ref))
		case Doubt:
			fmt.Fprintf(&b, "doubt %s: %s\n", w.name(a.Ref), a.Rule)
		case Fetch:
			if a.Commit.IsZero() {
				fmt.Fprintf(&b, "fetch receipt %d\n", a.Counter)
			} else {
				fmt.Fprintf(&b, "fetch commit %s at %s\n", w.name(a.Commit), a.EventID)
			}
		case Evidence:
			fmt.Fprintf(&b, "evidence %s against %s: %s | %s\n", a.Kind, a.Signer.User, w.describe(a.A), w.describe(a.B))
		case Forget:
			var ns []string
			for _, r := range a.Refs {
				ns = append(ns, w.name(r))
			}
			sort.Strings(ns)
			fmt.Fprintf(&b, "forget %s\n", strings.Join(ns, " "))
		case KeyRetired:
			fmt.Fprintf(&b, "key retired: the room knows receipt %d\n", a.Counter)
		}
	}
	return b.String()
}

func (w *world) state(m *Machine) string {
	var b strings.Builder
	n, era := m.EraOf()
	fmt.Fprintf(&b, "head=%s safe=%s final=%s era=%d@%s\n", w.name(m.Head()), w.name(m.SafeHead()), w.name(m.NewestFinal()), n, w.name(era))
	for _, x := range m.order {
		if x.c != nil {
			fmt.Fprintf(&b, "  %s on %s: %s\n", w.name(x.ref), w.name(x.up.ref), m.Status(x.ref))
		}
	}
	return b.String()
}

func parseBallot(s string) Ballot {
	var b Ballot
	fmt.Sscanf(s, "%d.%d", &b.Round, &b.Rank)
	return b
}

func parseDuration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		panic(err)
	}
	return d
}
