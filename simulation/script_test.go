package simulation

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// op is one kind of step.
type op uint8

const (
	opRun     op = iota // time passes
	opSend              // somebody says something
	opInvite            // somebody lets a user in
	opLeave             // a user leaves, is put out, or banned
	opLogin             // a user gets one more device, or loses it
	opPolicy            // an admin changes the policy
	opCrash             // a process dies at one of its next writes
	opAway              // a device is switched off for a while
	opSplit             // the servers do not all reach each other any more
	opHeal              // they do
	opLinks             // how much the links hold up
	opSoft              // what servers keep to themselves
	opForge             // a server lets a stranger in
	opList              // an admin changes the list of sequencers by hand
	opHang              // a module does nothing for a while, or is lost for good
	opReset             // state resolution forgets somebody's newest membership
	opBackup            // a disk is copied, or the copy put back
	opPropose           // somebody proposes what is not theirs to propose
	opSwap              // a server swaps confirmation tags, or does no more
	opLie               // a module signs what it should not, or keeps what it should not
	opPart              // the servers fall into sides, none of which is empty
	opEach              // on each side somebody says something and makes a commit
	opWait              // minutes pass
	opFake              // a server adds a device to a user's list
	opKeep              // a member leaves those who are out in the group
	opCount
)

var opNames = [opCount]string{"run", "send", "invite", "leave", "login", "policy", "crash", "away", "split", "heal", "links", "soft", "forge", "list", "hang", "reset", "backup", "propose", "swap", "lie", "part", "each", "wait", "fake", "keep"}

type step struct {
	op      op
	a, b, c uint32
}

// script is a run: a seed, what it may contain, and its steps. What a step does
// depends on its own numbers and on the state, so that steps can be left out.
type script struct {
	seed   int64
	faults faults
	steps  []step

	without mutant // for tests of the properties; it is not written down
}

// faults says what a run may contain, and so which properties it claims.
type faults struct {
	servers, modules, users int
	window                  int
	history                 string
	crash                   bool // processes die between two writes
	split                   bool
	loss                    bool // links hold events up, and show them in the history only
	away                    bool // devices are switched off
	members                 bool // users come and go
	devices                 bool // devices come and go
	skew                    bool // wall clocks are up to an hour wrong
	soft                    bool // servers soft-fail events of ours
	forge                   bool // servers invite strangers
	bad                     bool // a member makes commits that nobody can apply
	half                    bool // a member makes commits that only some can apply
	lists                   bool // lists of sequencers are changed by hand
	hang                    bool // modules hang for minutes, and one is lost for good
	reset                   bool // state resolution drops memberships
	backup                  bool // disks are put back to what they were
	propose                 bool // proposals are forged
	swap                    bool // servers swap confirmation tags
	liar                    bool // a listed module lies
	stale                   bool // servers keep the heads of other servers' modules to themselves, until the first heal; no seed draws it
	fake                    bool // servers add devices to their users' lists; no seed draws it
	keep                    bool // a member's commits take nobody out; no seed draws it
	parted                  bool // three modules are listed at the start, and cuts outlast the waits of a takeover
}

func (f *faults) flags() map[string]*bool {
	return map[string]*bool{
		"crash": &f.crash, "split": &f.split, "loss": &f.loss, "away": &f.away, "members": &f.members, "devices": &f.devices, "skew": &f.skew,
		"soft": &f.soft, "forge": &f.forge, "bad": &f.bad,
		"half": &f.half, "lists": &f.lists, "hang": &f.hang, "reset": &f.reset, "backup": &f.backup, "propose": &f.propose, "swap": &f.swap,
		"liar": &f.liar, "stale": &f.stale, "parted": &f.parted, "fake": &f.fake, "keep": &f.keep,
	}
}

func (f faults) String() string {
	s := fmt.Sprintf("servers=%d modules=%d users=%d window=%d history=%s", f.servers, f.modules, f.users, f.window, f.history)
	flags := f.flags()
	for _, name := range sortedKeys(flags) {
		if *flags[name] {
			s += " " + name
		}
	}
	return s
}

func parseFaults(s string) (f faults, err error) {
	for _, w := range strings.Fields(s) {
		name, value, given := strings.Cut(w, "=")
		numbers := map[string]*int{"servers": &f.servers, "modules": &f.modules, "users": &f.users, "window": &f.window}
		switch {
		case given && numbers[name] != nil:
			_, err = fmt.Sscan(value, numbers[name])
		case name == "history":
			f.history = value
		case f.flags()[w] != nil:
			*f.flags()[w] = true
		default:
			err = fmt.Errorf("fault %q is unknown", w)
		}
		if err != nil {
			return f, err
		}
	}
	return f, nil
}

// firstLie is the first seed in whose rooms members and servers may lie.
const firstLie = 100_000

// firstWorse is the first seed in whose rooms modules may lie and be lost, disks
// are put back, lists are changed by hand and so on: each of these in a third of
// the rooms, and each fault from before in a third, too.
const firstWorse = 200_000

// scriptOf makes the script of a seed.
func scriptOf(seed int64, steps int) script {
	rng := stepRand(seed, 1<<40)
	half := func() bool { return rng.IntN(2) == 0 }
	f := faults{servers: 1 + rng.IntN(4), window: []int{3, 6, 16}[rng.IntN(3)], history: []string{"shared", "invited", "joined"}[rng.IntN(3)]}
	f.modules = 1 + rng.IntN(f.servers)
	f.users = min(6, max(2, f.servers+rng.IntN(2)))
	f.crash, f.split, f.loss, f.away, f.members, f.devices, f.skew = half(), half(), half(), half(), half(), half(), rng.IntN(4) == 0
	if seed >= firstLie {
		f.soft, f.forge, f.bad = half(), half(), half()
	}
	if seed >= firstWorse {
		f.worsen(rng)
	}
	sc := script{seed: seed, faults: f, steps: stepsOf(rng, &f, steps)}
	sc.part(stepRand(seed, 1<<41))
	return sc
}

// part lets one room in four begin with three modules in its list, and puts two cuts
// into its steps that outlast the waits of a takeover: a module that nobody answers
// goes on provisionally after some ten minutes. It draws for itself, so that a seed's
// other rooms and steps are what they were before there were such cuts.
func (sc *script) part(rng *rand.Rand) {
	if rng.IntN(4) > 0 {
		return
	}
	f := &sc.faults
	f.parted = true
	f.servers, f.modules = max(3, f.servers), max(3, f.modules)
	f.users = max(f.users, f.servers)
	for range 2 {
		cut := []step{
			{op: opPart, a: rng.Uint32() >> 8, b: rng.Uint32() >> 8, c: rng.Uint32() >> 8}, {op: opEach, a: rng.Uint32() >> 8},
			{op: opWait, a: 12}, {op: opEach, a: rng.Uint32() >> 8}, {op: opWait, a: 2}, {op: opHeal},
		}
		sc.steps = slices.Insert(sc.steps, rng.IntN(len(sc.steps)+1), cut...)
	}
}

// worsen draws the faults of a room from firstWorse on.
func (f *faults) worsen(rng *rand.Rand) {
	third := func() bool { return rng.IntN(3) == 0 }
	f.skew = false
	for _, b := range []*bool{
		&f.crash, &f.split, &f.loss, &f.away, &f.members, &f.devices, &f.soft, &f.forge, &f.bad,
		&f.half, &f.lists, &f.hang, &f.reset, &f.backup, &f.propose, &f.swap, &f.liar,
	} {
		*b = third()
	}
	if f.hang || f.liar || f.lists { // who is left goes on
		f.servers = 3 + rng.IntN(2)
		f.modules = f.servers
		f.users = f.servers + rng.IntN(2)
	}
}

func stepsOf(rng *rand.Rand, f *faults, steps int) []step {
	weights := [opCount]int{opRun: 40, opSend: 24, opPolicy: 6, opHeal: 3}
	if f.members {
		weights[opInvite], weights[opLeave] = 6, 4
	}
	if f.devices {
		weights[opLogin] = 3
	}
	if f.crash {
		weights[opCrash] = 8
	}
	if f.away {
		weights[opAway] = 5
	}
	if f.split {
		weights[opSplit] = 4
	}
	if f.loss {
		weights[opLinks] = 5
	}
	if f.soft {
		weights[opSoft] = 4
	}
	if f.forge {
		weights[opForge] = 2
	}
	for o, on := range map[op]bool{opList: f.lists, opHang: f.hang, opReset: f.reset, opBackup: f.backup, opPropose: f.propose, opSwap: f.swap, opLie: f.liar} {
		if on {
			weights[o] = 5
		}
	}
	total := 0
	for _, w := range weights {
		total += w
	}
	out := make([]step, steps)
	for i := range out {
		k := rng.IntN(total)
		o := op(0)
		for k >= weights[o] {
			k -= weights[o]
			o++
		}
		out[i] = step{o, rng.Uint32() >> 8, rng.Uint32() >> 8, rng.Uint32() >> 8}
	}
	return out
}

func (f *faults) wrong(rng *rand.Rand) time.Duration {
	if !f.skew {
		return 0
	}
	return time.Duration(rng.IntN(7200)-3600) * time.Second
}

// policy changes the policy that the group begins with.
func (f *faults) policy(p *rooms.Policy) {
	if f.window > 0 {
		p.Window = f.window
	}
}

// stepRand is the chance of one step.
func stepRand(seed int64, step uint64) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(seed)*0x9e3779b97f4a7c15+1, step))
}

// String writes a script in the form that parseScript reads.
func (sc script) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d\nfaults %s\n", sc.seed, sc.faults)
	for _, st := range sc.steps {
		fmt.Fprintf(&b, "%s %d %d %d\n", opNames[st.op], st.a, st.b, st.c)
	}
	return b.String()
}

func parseScript(text string) (script, error) {
	var sc script
	for _, line := range strings.Split(text, "\n") {
		word, rest, _ := strings.Cut(line, " ")
		var err error
		switch {
		case line == "" || word == "#":
		case word == "seed":
			_, err = fmt.Sscan(rest, &sc.seed)
		case word == "faults":
			sc.faults, err = parseFaults(rest)
		default:
			o := slices.Index(opNames[:], word)
			if o < 0 {
				return sc, fmt.Errorf("step %q is unknown", line)
			}
			st := step{op: op(o)}
			numbers := []any{&st.a, &st.b, &st.c} // those at the end may be left out
			_, err = fmt.Sscan(rest, numbers[:min(len(strings.Fields(rest)), len(numbers))]...)
			sc.steps = append(sc.steps, st)
		}
		if err != nil {
			return sc, fmt.Errorf("line %q: %w", line, err)
		}
	}
	return sc, nil
}

// stats counts what happened.
type stats struct {
	commits, finals, messages, ciphertexts, seals, crashes, events, welcomes int
	accepts, provisional, votes, promises, rewinds, eras, lies               int
	lists, hangs, restores, resets, takeovers, sides                         int
}

func (s *stats) add(o *stats) {
	s.commits += o.commits
	s.finals += o.finals
	s.messages += o.messages
	s.ciphertexts += o.ciphertexts
	s.seals += o.seals
	s.crashes += o.crashes
	s.events += o.events
	s.welcomes += o.welcomes
	s.accepts += o.accepts
	s.provisional += o.provisional
	s.votes += o.votes
	s.promises += o.promises
	s.rewinds += o.rewinds
	s.eras += o.eras
	s.lies += o.lies
	s.lists += o.lists
	s.hangs += o.hangs
	s.restores += o.restores
	s.resets += o.resets
	s.takeovers += o.takeovers
	s.sides += o.sides
}

func (s *stats) String() string {
	return fmt.Sprintf("%d commits, %d finals, %d accepts (%d provisional), %d votes, %d promises (%d takeovers asked for), both sides of %d cuts went on, heads gave way %d times, %d eras, %d messages in %d ciphertexts, %d Welcomes, %d crashes, %d restores, %d modules that hung, %d lists by hand, %d memberships forgotten, %d lies, %d events",
		s.commits, s.finals, s.accepts, s.provisional, s.votes, s.promises, s.takeovers, s.sides, s.rewinds, s.eras, s.messages, s.ciphertexts, s.welcomes, s.crashes, s.restores, s.hangs, s.lists, s.resets, s.lies, s.events)
}
