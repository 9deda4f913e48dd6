package interop_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/interop"
	"github.com/matrix-mls/matrix-mls/mls"
)

var (
	walkSeeds = flag.Int("seeds", 15, "how many random walks TestWalk takes")
	walkFirst = flag.Uint64("seed", 1, "the first walk's seed")
	walkSteps = flag.Int("steps", 60, "steps of a walk")
)

// maxWalkers bounds a walk's group, so that a step stays cheap.
const maxWalkers = 9

// TestWalk takes random walks: groups of members of all libraries in which one random thing happens after another, and
// after each step all members are compared. A failure prints the seed and what has happened; -seed N -seeds 1 takes
// that walk again.
//
//	go test ./interop -run Walk -seeds 100 -steps 200
func TestWalk(t *testing.T) {
	running := startPeers(t)
	for i := range *walkSeeds {
		seed := *walkFirst + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			w := &walk{rand: rand.New(rand.NewPCG(seed, 0)), seed: seed}
			w.scenario = scenario{t: t, peers: running, libraries: []string{ours, interop.OpenMLS, interop.MLSRs}}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("again: go test ./interop -run Walk -seed %d -seeds 1 -steps %d\nwhat happened:\n  %s", seed, *walkSteps, strings.Join(w.log, "\n  "))
				}
			})
			w.found()
			for range *walkSteps {
				w.step()
			}
		})
	}
}

// A walk is a scenario that writes itself.
type walk struct {
	scenario
	rand   *rand.Rand
	seed   uint64
	groups int               // that there were
	ids    uint64            // of PSKs and the like
	since  map[string]uint64 // the first epoch of each member
	late   []lateMessage
	log    []string
}

// A lateMessage was sent in an earlier epoch and has not arrived.
type lateMessage struct {
	from  string
	to    []string
	text  string
	raw   []byte
	epoch uint64
}

func (w *walk) note(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

func (w *walk) chance(percent int) bool { return w.rand.IntN(100) < percent }

func pick[T any](w *walk, from []T) T { return from[w.rand.IntN(len(from))] }

// short is a member's name in the list of steps.
func short(n named) string {
	_, rest, _ := strings.Cut(n.name, "/")
	return rest
}

func names(ms []named) string {
	var out []string
	for _, m := range ms {
		out = append(out, short(m))
	}
	return strings.Join(out, ", ")
}

// found begins a group: in the walk's suite, with one member of each library in random order.
func (w *walk) found() {
	w.groups++
	w.o = options{suite: mls.CipherSuite(1 + w.rand.IntN(3)), treeExt: w.chance(50)}
	w.tag = fmt.Sprintf("walk %d.%d/", w.seed, w.groups)
	w.gid = []byte(w.tag)
	w.late, w.since = nil, map[string]uint64{}
	order := slices.Clone(w.libraries)
	w.rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	first := w.client(order[0])
	w.note("group %d in suite %d, created by %s, tree inside: %v", w.groups, w.o.suite, short(first), w.o.treeExt)
	w.must(first.create(w.gid))
	w.members = []named{first}
	w.commit(first, request{path: true}, []named{w.client(order[1]), w.client(order[2])})
	w.after()
}

// after compares all members, and lets one speak.
func (w *walk) after() {
	w.t.Helper()
	w.agree()
	epoch := w.epoch()
	for _, m := range w.members {
		if _, ok := w.since[m.name]; !ok {
			w.since[m.name] = epoch
		}
	}
	w.arrive(epoch)
	w.speak()
}

// step does one random thing. What a group is too small or too large for is passed by, for an update.
func (w *walk) step() {
	w.t.Helper()
	w.wire()
	by := pick(w, w.members)
	switch n := w.rand.IntN(100); {
	case n < 12:
		w.add(by)
	case n < 20 && len(w.members) > 3:
		w.remove(by)
	case n < 38:
		w.byReference(by)
	case n < 46:
		w.joinExternally()
	case n < 52 && len(w.members) > 3:
		w.resync()
	case n < 60:
		id := w.sharePSK(w.members)
		w.note("%s commits the external PSK %x", short(by), id)
		w.commit(by, request{psks: [][]byte{id}, path: w.chance(50)}, nil)
	case n < 66 && w.shared(w.epoch()-1):
		epoch := w.epoch() - 1
		w.note("%s commits the resumption PSK of epoch %d", short(by), epoch)
		w.commit(by, request{resumption: []uint64{epoch}, path: w.chance(50)}, nil)
	case n < 72:
		w.note("%s changes the extensions", short(by))
		w.commit(by, request{extensions: requiring(fmt.Sprint("value ", w.id())), path: true}, nil)
	case n < 80:
		w.race(by)
	case n < 86:
		w.sendLate()
	case n < 88 && by.library != interop.OpenMLS: // which can not propose it
		w.reinit(by)
		return
	default:
		w.note("%s updates", short(by))
		w.commit(by, request{path: true}, nil)
	}
	w.after()
}

func (w *walk) id() uint64 {
	w.ids++
	return w.ids
}

// wire lets one member send its handshakes in the other wire format from now on.
func (w *walk) wire() {
	w.t.Helper()
	if !w.chance(25) {
		return
	}
	m, private := pick(w, w.members), w.chance(50)
	w.note("%s sends handshakes as PrivateMessage: %v", short(m), private)
	switch m := m.member.(type) {
	case *own:
		m.o.private = private
	case *foreign:
		_, err := m.call("set_wire", interop.Args{"private": private, "tree_ext": w.o.treeExt})
		w.must(err)
	}
}

// joiners are new clients, as many as there is room for and at most max.
func (w *walk) joiners(max int) []named {
	w.t.Helper()
	var out []named
	for range min(1+w.rand.IntN(max), maxWalkers-len(w.members)) {
		out = append(out, w.client(pick(w, w.libraries)))
	}
	return out
}

// leavers are members other than by that can go while one of each library stays.
func (w *walk) leavers(by named, max int) []named {
	left := map[string]int{}
	for _, m := range w.members {
		left[m.library]++
	}
	var out []named
	for _, i := range w.rand.Perm(len(w.members)) {
		m := w.members[i]
		if m.name != by.name && left[m.library] > 1 && len(out) < max {
			left[m.library]--
			out = append(out, m)
		}
	}
	return out
}

func (w *walk) add(by named) {
	w.t.Helper()
	joiners, path := w.joiners(3), w.chance(50)
	if len(joiners) == 0 {
		path = true
	}
	w.note("%s adds %s, path: %v", short(by), names(joiners), path)
	w.commit(by, request{path: path}, joiners)
}

func (w *walk) remove(by named) {
	w.t.Helper()
	gone := w.leavers(by, 1+w.rand.IntN(2))
	r := request{path: true}
	for _, m := range gone {
		r.removes = append(r.removes, w.index(m))
	}
	var joiners []named
	if w.chance(30) {
		joiners = w.joiners(2)
	}
	w.note("%s removes %s and adds %s", short(by), names(gone), names(joiners))
	w.commit(by, r, joiners, gone...)
}

// sharePSK makes an external PSK that these clients have.
func (w *walk) sharePSK(among []named) []byte {
	w.t.Helper()
	id := pskID(w.id())
	for _, m := range among {
		w.givePSK(m, id)
	}
	return id
}

func (w *walk) givePSK(m named, id []byte) {
	w.t.Helper()
	w.must(m.addPSK(id, append([]byte("a secret that all members know: "), id...)))
}

// shared tells whether all members were in an epoch.
func (w *walk) shared(epoch uint64) bool {
	for _, m := range w.members {
		if w.since[m.name] > epoch {
			return false
		}
	}
	return epoch > 0
}

// byReference sends proposals of several kinds by several members, which arrive at each member in another order, and
// commits them; now and then beside something by value, or after somebody else's commit of them was lost.
func (w *walk) byReference(by named) {
	w.t.Helper()
	var raws [][]byte
	var senders, joiners, gone []named
	propose := func(from named, what string, p proposal) {
		raw, err := from.propose(p)
		w.must(err)
		raws, senders = append(raws, raw), append(senders, from)
		w.note("%s proposes %s", short(from), what)
	}
	leaving := w.leavers(by, 1)
	updated := map[string]bool{}
	var psks [][]byte
	resumption, extensions := false, false
	for range 1 + w.rand.IntN(4) {
		from := pick(w, w.members)
		switch w.rand.IntN(6) {
		case 0:
			// Who joins has no PSK of an epoch before it.
			if resumption || len(w.members)+len(joiners) >= maxWalkers {
				continue
			}
			joiner := w.client(pick(w, w.libraries))
			for _, id := range psks {
				w.givePSK(joiner, id)
			}
			kp, err := joiner.keyPackage()
			w.must(err)
			joiners = append(joiners, joiner)
			propose(from, "to add "+short(joiner), proposal{add: kp})
		case 1:
			isLeaving := len(leaving) > 0 && leaving[0].name == from.name
			if from.name == by.name || updated[from.name] || isLeaving {
				continue
			}
			updated[from.name] = true
			propose(from, "an update", proposal{update: true})
		case 2:
			if len(gone) > 0 || len(leaving) == 0 || leaving[0].name == from.name {
				continue
			}
			gone = leaving
			i := w.index(gone[0])
			propose(from, "to remove "+short(gone[0]), proposal{remove: &i})
		case 3:
			id := w.sharePSK(append(slices.Clone(w.members), joiners...))
			psks = append(psks, id)
			propose(from, fmt.Sprintf("the external PSK %x", id), proposal{psk: id})
		case 4:
			epoch := w.epoch() - 1
			// OpenMLS commits such a PSK, but refuses to propose it.
			if resumption || len(joiners) > 0 || !w.shared(epoch) || from.library == interop.OpenMLS {
				continue
			}
			resumption = true
			propose(from, fmt.Sprintf("the resumption PSK of epoch %d", epoch), proposal{resumption: &epoch})
		case 5:
			if extensions {
				continue
			}
			extensions = true
			propose(from, "extensions", proposal{extensions: requiring(fmt.Sprint("value ", w.id()))})
		}
	}
	for _, m := range w.members {
		for _, i := range w.rand.Perm(len(raws)) {
			if senders[i].name != m.name {
				w.must(m.process(raws[i]))
			}
		}
	}
	if w.chance(20) {
		loser := pick(w, w.members)
		if !updated[loser.name] && !slices.ContainsFunc(gone, func(g named) bool { return g.name == loser.name }) {
			w.note("%s commits them, which is lost", short(loser))
			_, _, err := loser.commit(request{pending: true, path: true})
			w.must(err)
			w.must(loser.clear())
		}
	}
	r := request{pending: true, path: true}
	// In a commit with PSKs of both kinds OpenMLS takes them in another order than the commit has them: mls-rs and we
	// refuse its confirmation tag alike.
	if w.chance(30) && (by.library != interop.OpenMLS || len(psks) == 0 && !resumption) {
		r.psks = [][]byte{w.sharePSK(append(slices.Clone(w.members), joiners...))}
	}
	w.note("%s commits %d by reference and %d by value", short(by), len(raws), len(r.psks))
	commit, welcome, err := by.commit(r)
	w.must(err)
	w.finish(by, commit, welcome, joiners, gone...)
}

func (w *walk) joinExternally() {
	w.t.Helper()
	if len(w.members) >= maxWalkers {
		by := pick(w, w.members)
		w.remove(by)
		return
	}
	joiner, from := w.client(pick(w, w.libraries)), pick(w, w.members)
	var psks [][]byte
	if w.chance(40) {
		psks = [][]byte{w.sharePSK(append(slices.Clone(w.members), joiner))}
	}
	w.note("%s joins by itself from %s, with %d PSKs", short(joiner), short(from), len(psks))
	w.externalJoin(joiner, from, nil, psks...)
	w.members = append(w.members, joiner)
}

func (w *walk) resync() {
	w.t.Helper()
	back := pick(w, w.members)
	i := w.index(back)
	others := slices.DeleteFunc(slices.Clone(w.members), func(m named) bool { return m.name == back.name })
	from := pick(w, others)
	w.note("%s comes back by itself from %s", short(back), short(from))
	w.members = others
	w.externalJoin(back, from, &i)
	w.members = append(w.members, back)
	delete(w.since, back.name)
	w.late = slices.DeleteFunc(w.late, func(l lateMessage) bool { return l.from == back.name })
	for i := range w.late {
		w.late[i].to = slices.DeleteFunc(w.late[i].to, func(n string) bool { return n == back.name })
	}
}

// race lets one or more members commit at the same time; one wins.
func (w *walk) race(winner named) {
	w.t.Helper()
	for _, loser := range w.members {
		if loser.name == winner.name || !w.chance(50) {
			continue
		}
		r := request{path: true}
		if w.chance(50) {
			kp, err := w.client(pick(w, w.libraries)).keyPackage()
			w.must(err)
			r.adds = [][]byte{kp}
		}
		w.note("%s commits with %d adds, which is lost", short(loser), len(r.adds))
		_, _, err := loser.commit(r)
		w.must(err)
		w.must(loser.clear())
	}
	w.note("%s wins with an update", short(winner))
	w.commit(winner, request{path: true}, nil)
}

// speak lets a random member send some messages, which arrive at each other one in its own order, and not all of them.
func (w *walk) speak() {
	w.t.Helper()
	from := pick(w, w.members)
	var raws [][]byte
	for i := range 1 + w.rand.IntN(4) {
		raw, err := from.encrypt(fmt.Appendf(nil, "text %d", i), []byte("aad"))
		w.must(err)
		raws = append(raws, raw)
	}
	for _, to := range w.members {
		if to.name == from.name {
			continue
		}
		for _, i := range w.rand.Perm(len(raws)) {
			if i > 0 && w.chance(10) {
				continue // lost for this one
			}
			text, aad, err := to.decrypt(raws[i])
			w.must(err)
			if string(text) != fmt.Sprintf("text %d", i) || string(aad) != "aad" {
				w.t.Fatalf("%s sent text %d, %s read %q with %q", from.name, i, to.name, text, aad)
			}
		}
	}
}

// sendLate sends a message that will arrive in a later epoch, and updates.
func (w *walk) sendLate() {
	w.t.Helper()
	from, by := pick(w, w.members), pick(w, w.members)
	l := lateMessage{from: from.name, text: fmt.Sprint("late ", w.id()), epoch: w.epoch()}
	for _, m := range w.members {
		if m.name != from.name {
			l.to = append(l.to, m.name)
		}
	}
	var err error
	l.raw, err = from.encrypt([]byte(l.text), nil)
	w.must(err)
	w.late = append(w.late, l)
	w.note("%s sends what will be late, then %s updates", short(from), short(by))
	w.commit(by, request{path: true}, nil)
}

// arrive delivers late messages: by chance, and when the epoch is about to be forgotten.
func (w *walk) arrive(epoch uint64) {
	w.t.Helper()
	w.late = slices.DeleteFunc(w.late, func(l lateMessage) bool {
		if epoch-l.epoch < 2 && w.chance(50) {
			return false
		}
		w.note("the message of epoch %d arrives in epoch %d", l.epoch, epoch)
		for _, to := range w.members {
			if !slices.Contains(l.to, to.name) {
				continue
			}
			// mls-rs does not read what a member sent that has been removed since.
			if to.library == interop.MLSRs && !slices.ContainsFunc(w.members, func(m named) bool { return m.name == l.from }) {
				continue
			}
			text, _, err := to.decrypt(l.raw)
			w.must(err)
			if string(text) != l.text {
				w.t.Fatalf("%s read %q, want %q", to.name, text, l.text)
			}
		}
		return true
	})
}

// reinit closes the group, by value or by reference. Where all members can, they go on in the group that it names;
// OpenMLS can not, so either its members are removed before, or another group is begun.
func (w *walk) reinit(by named) {
	w.t.Helper()
	suite := w.o.suite
	if suite != 2 && w.chance(50) {
		suite = 4 - suite // 1 and 3 have the same signatures
	}
	gid := fmt.Appendf(nil, "after %s", w.gid)
	byReference := w.chance(50)
	if w.chance(40) {
		w.note("%s closes the group by a ReInit to suite %d, by reference: %v", short(by), suite, byReference)
		next := &mls.ReInit{GroupID: gid, Version: mls.MLS10, CipherSuite: suite}
		if byReference {
			w.propose(by, proposal{reinit: next})
			w.commit(by, request{pending: true, path: true}, nil)
		} else {
			w.commit(by, request{reinit: next, path: true}, nil)
		}
		w.agree()
		for _, m := range w.members {
			if o, ok := m.member.(*own); ok {
				if _, _, err := o.commit(request{path: true}); err == nil {
					w.t.Fatalf("%s commits in a group that is closed", m.name)
				}
			}
		}
		w.found()
		return
	}
	r := request{path: true}
	var gone, joiners []named
	width := 0
	for _, m := range w.members {
		if m.library == interop.OpenMLS {
			r.removes, gone = append(r.removes, w.index(m)), append(gone, m)
		} else {
			width = max(width, 1+int(w.index(m)))
		}
	}
	// mls-rs takes two trees of different width for different members, so no leaf may be blank.
	for range width - (len(w.members) - len(gone)) {
		joiners = append(joiners, w.client(pick(w, []string{ours, interop.MLSRs})))
	}
	w.note("%s removes %s and adds %s", short(by), names(gone), names(joiners))
	w.commit(by, r, joiners, gone...)
	w.after()
	founder := pick(w, w.members)
	w.note("%s closes the group by a ReInit to suite %d, by reference: %v; %s founds the next", short(by), suite, byReference, short(founder))
	w.reinitialize(by, founder, suite, gid, byReference)
	w.late, w.since = nil, map[string]uint64{}
	w.after()
	joiner := w.client(interop.OpenMLS)
	w.note("%s adds %s", short(by), short(joiner))
	w.commit(by, request{path: true}, []named{joiner})
	w.after()
}
