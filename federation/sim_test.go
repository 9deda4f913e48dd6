package federation

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand"
	"slices"
	"strings"
	"time"
)

// The simulator of the coordination layer: modules and members on machines of
// their own, a virtual clock, a network that drops, repeats, reorders, delays
// and splits, disks that lose what was not written, members and sequencers that
// lie. The key schedule is a set: a member holds the secrets of an epoch if it
// could apply the commit that made it. A run is a list of steps; what a step
// does depends on its own numbers and on the state, so that steps can be left
// out when a failure is shrunk.

type simOp uint8

const (
	opPump    simOp = iota // some nodes take in part of what waits for them, and tick
	opPumpAll              // every node does
	opTime                 // time passes
	opCommit               // a member commits
	opMessage              // a member sends
	opCrash                // a node dies, now or at its next write
	opRestart              // a node starts from its disk
	opSplit                // the network falls into parts
	opHeal                 // and is whole again
	opSync                 // a node gets what it missed from whom it reaches
	opLoss                 // how much is lost from now on
	opLie                  // the bad sequencer signs something
	opBad                  // the bad member, or the server that swaps tags, acts
	opOld                  // a module starts from an old backup
	opRepost               // a module posts again what other servers hide
	opJoin                 // somebody comes who sees nothing of the past but a proof
	opHeirs                // heirs open an era
	opCount
)

var simOpNames = [opCount]string{"pump", "pump-all", "time", "commit", "message", "crash", "restart", "split", "heal", "sync",
	"loss", "lie", "bad", "old", "repost", "join", "heirs"}

type simStep struct {
	op      simOp
	a, b, c uint32
}

// simFaults says what a run may contain, and so which properties it claims.
type simFaults struct {
	n           int
	crash       bool
	split       bool
	loss        bool
	eras        bool
	listChange  bool
	badMember   bool // one member's commits cannot be applied, by nobody or by some
	swapServer  bool // one server swaps confirmation tags
	liar        bool // one sequencer signs what it should not
	oldBackup   bool
	killForGood bool
	softFail    bool // servers hide some events until a module posts them again
	newcomers   bool
	heirs       bool
	majority    bool // killed for good may be more than a majority survives
	freeze      bool // on_partition
	shortKeep   bool // modules drop what lies a few commits below the newest final
	relist      bool // who changed the list and lost the race does it again
	refound     bool // groups are closed for new ones, whose epochs begin again
	three       bool // the network falls into up to three parts (older scripts: two)
	driver      bool // commits reach a machine once their parents did, as drivers give them (older scripts do without)
}

func (f simFaults) String() string {
	s := fmt.Sprintf("n=%d", f.n)
	for _, x := range []struct {
		on   bool
		name string
	}{{f.crash, "crash"}, {f.split, "split"}, {f.loss, "loss"}, {f.eras, "eras"}, {f.listChange, "list-change"}, {f.badMember, "bad-member"},
		{f.swapServer, "swap-server"}, {f.liar, "liar"}, {f.oldBackup, "old-backup"}, {f.killForGood, "killed"},
		{f.softFail, "soft-fail"}, {f.newcomers, "newcomers"}, {f.heirs, "heirs"}, {f.majority, "majority"}, {f.freeze, "freeze"},
		{f.shortKeep, "short-keep"}, {f.relist, "relist"}, {f.refound, "refound"}, {f.three, "three"}, {f.driver, "driver"}} {
		if x.on {
			s += " " + x.name
		}
	}
	return s
}

func parseFaults(s string) (simFaults, error) {
	var f simFaults
	for _, w := range strings.Fields(s) {
		on := map[string]*bool{"crash": &f.crash, "split": &f.split, "loss": &f.loss, "eras": &f.eras, "list-change": &f.listChange,
			"bad-member": &f.badMember, "swap-server": &f.swapServer, "liar": &f.liar, "old-backup": &f.oldBackup, "killed": &f.killForGood,
			"soft-fail": &f.softFail, "newcomers": &f.newcomers, "heirs": &f.heirs, "majority": &f.majority, "freeze": &f.freeze,
			"short-keep": &f.shortKeep, "relist": &f.relist, "refound": &f.refound, "three": &f.three, "driver": &f.driver}
		if p := on[w]; p != nil {
			*p = true
		} else if _, err := fmt.Sscanf(w, "n=%d", &f.n); err != nil {
			return f, fmt.Errorf("fault %q is unknown", w)
		}
	}
	return f, nil
}

type simScript struct {
	seed   int64
	faults simFaults
	steps  []simStep
}

// simScriptOf makes the script of a seed.
func simScriptOf(seed int64, steps int) simScript {
	rng := rand.New(rand.NewSource(seed))
	f := simFaults{n: 1 + rng.Intn(5), crash: rng.Intn(2) == 0, split: rng.Intn(2) == 0, loss: rng.Intn(2) == 0}
	switch rng.Intn(8) {
	case 0, 1:
		f.badMember = true
	case 2:
		f.swapServer = true
	case 3:
		f.liar = f.n > 2
	}
	f.eras = rng.Intn(4) == 0
	f.listChange = rng.Intn(3) == 0
	f.oldBackup = f.crash && rng.Intn(6) == 0
	f.killForGood = f.n > 2 && rng.Intn(6) == 0
	f.softFail = rng.Intn(3) == 0
	f.newcomers = rng.Intn(3) == 0
	f.heirs = rng.Intn(6) == 0
	f.majority = f.crash && f.n > 1 && (f.eras || f.heirs) && rng.Intn(2) == 0
	f.freeze = rng.Intn(10) == 0
	f.shortKeep = rng.Intn(4) == 0 && !f.eras && !f.heirs // an era may begin below what is kept
	f.relist = f.listChange && rng.Intn(3) > 0
	f.refound = rng.Intn(4) == 0
	f.driver = true
	// Drawn from a source of its own, so that all else in a seed's room is what it was before.
	f.three = f.split && newSimRand(uint64(seed)^0x3a11).Intn(2) == 0
	return simScript{seed: seed, faults: f, steps: simSteps(rng, f, steps)}
}

func simSteps(rng *rand.Rand, f simFaults, steps int) []simStep {
	weights := [opCount]int{opPump: 40, opPumpAll: 3, opTime: 16, opCommit: 16, opMessage: 5, opSync: 5, opRestart: 3, opHeal: 1}
	if f.crash {
		weights[opCrash] = 4
	}
	if f.split {
		weights[opSplit] = 3
	}
	if f.loss {
		weights[opLoss] = 2
	}
	if f.liar {
		weights[opLie] = 14
	}
	if f.badMember || f.swapServer {
		weights[opBad] = 5
	}
	if f.oldBackup {
		weights[opOld] = 1
	}
	if f.softFail {
		weights[opRepost] = 2
	}
	if f.newcomers {
		weights[opJoin] = 1
	}
	if f.heirs {
		weights[opHeirs] = 3
	}
	total := 0
	for _, w := range weights {
		total += w
	}
	out := make([]simStep, steps)
	for i := range out {
		k := rng.Intn(total)
		op := simOp(0)
		for k >= weights[op] {
			k -= weights[op]
			op++
		}
		out[i] = simStep{op, rng.Uint32() >> 8, rng.Uint32() >> 8, rng.Uint32() >> 8}
	}
	return out
}

// simNode is a module or a member's client.
type simNode struct {
	name   string
	module bool
	cfg    Config
	m      *Machine
	up     bool
	killed bool // for good
	dies   int  // the last step that may end or save it; later its disk does not matter
	group  int
	rate   int // its clock's speed, in percent
	offset time.Duration

	inbox   []int        // events on their way
	lost    []int        // events it has to get from others
	hidden  []int        // events its server does not show until they are posted again
	sum     uint64       // of the events in the machine
	in      map[int]bool // these events, if sum says so
	orphans []int        // commits whose parents it does not hold: a driver cannot check them
	untold  bool         // the machine may hold more than sum says
	unsent  bool         // it holds what it signed and never sends
	fresh   []int        // taken in since the disk was written
	has     map[int]bool
	blob    []byte
	old     []byte // a backup
	oldHas  map[int]bool
	posted  []int // own receipts in the room
	crash   int   // what happens at the next write that is followed by sending; 0: nothing
	finalAt simFinal

	// members
	user     string
	founder  uint32   // its leaf in the founding epoch
	leaves   []uint32 // all leaves its device ever had, oldest first
	at       Ref
	holds    map[Ref]bool
	applied  map[Ref]bool
	rejected map[Ref]bool
	told     map[Ref]bool // commits whose rejoin was asked for
	last     Ref          // own newest commit
	sent     []int
	list     List   // that it wants, with relist
	removes  []Leaf // to do after a heal, before adds
	adds     []Leaf
}

type simFinal struct{ era, final Ref }

// simOutcome is what everyone who holds the same set of events must see.
type simOutcome struct {
	name                   string
	head, safe, final, era Ref
}

type simMessage struct {
	author *simNode
	epochs []Ref // first and later ones, under the same message id
}

// sim is one run.
type sim struct {
	script   simScript
	at       int // the present step
	without  rule
	rng      *rand.Rand // of the present step
	now      time.Duration
	nodes    []*simNode
	modules  []*simNode // in order of the first list, then one that is not listed
	members  []*simNode
	log      []Event
	commits  map[Ref]*Commit
	depth    map[Ref]int
	era      map[Ref]Ref // base of the era a commit lies in
	group    map[Ref]int // which of the room's groups, one after the other, made a commit
	cannot   map[Ref]string
	someCan  map[Ref]int
	finals   map[Ref]Ref           // deepest final anyone saw, by era
	outcome  map[uint64]simOutcome // of a set of events, for whoever holds it first
	late     []*simNode            // newcomers
	msgs     []*simMessage
	verify   map[Ref]string
	acts     io.Writer // what every machine wants done; nil: nobody asks
	nextRef  int
	nextIdx  uint32
	lossPct  int
	liar     *simNode
	bad      *simNode
	lies     Chain
	proof    map[string]bool // sequencers that evidence names
	chainOf  map[string]map[uint64]Ref
	signed   map[string]*simSigned
	calm     bool // nothing bad happens any more
	conflict bool
	restless bool // a proven liar keeps the room from coming to rest
	root     Ref
	base     Base
	founding []byte // a client's machine before anything happened
	redone   []uint32
	rootList List

	// figures
	stats simStats
}

type simStats struct {
	commits, finals, takeovers, provisionals, lists, eras, bads, crashes, evidence, events int
	retired, messages, resent, joined, compared, rewinds, groups, splits, threes           int
}

// cut counts a partition, and whether it is one into three parts.
func (s *simStats) cut(nodes []*simNode) {
	parts := map[int]bool{}
	for _, x := range nodes {
		parts[x.group] = true
	}
	if len(parts) > 1 {
		s.splits++
	}
	if len(parts) > 2 {
		s.threes++
	}
}

// simSigned is what an honest module is held to.
type simSigned struct {
	counter  uint64
	promised map[Ref]Ballot
	vote     map[Ref]*Vote
	accepts  map[Ref]map[Ballot]*Accept
}

type violation struct{ property, detail string }

func (v *violation) Error() string { return v.property + ": " + v.detail }

func broken(property, format string, args ...any) {
	panic(&violation{property, fmt.Sprintf(format, args...)})
}

const simRoom = "!sim:example.org"

func simVerify(suite uint16, key, content, sig []byte) error {
	if h := sha256.Sum256(append(append([]byte("leaf "), key...), content...)); string(h[:8]) != string(sig) {
		return errors.New("leaf signature does not match")
	}
	return nil
}

func simSign(key, content []byte) []byte {
	h := sha256.Sum256(append(append([]byte("leaf "), key...), content...))
	return h[:8]
}

func leafKey(index uint32) []byte { return binary.BigEndian.AppendUint32([]byte("key"), index) }

var simKeys = func() map[string]ed25519.PrivateKey {
	out := map[string]ed25519.PrivateKey{}
	for i := range 8 {
		name := fmt.Sprintf("s%d", i+1)
		out[name] = testKey(name)
	}
	return out
}()

func newSim(script simScript, without rule) *sim {
	s := &sim{script: script, without: without, commits: map[Ref]*Commit{}, depth: map[Ref]int{}, era: map[Ref]Ref{}, group: map[Ref]int{}, cannot: map[Ref]string{},
		someCan: map[Ref]int{}, finals: map[Ref]Ref{}, verify: map[Ref]string{}, proof: map[string]bool{},
		outcome: map[uint64]simOutcome{}, chainOf: map[string]map[uint64]Ref{}, signed: map[string]*simSigned{}, root: testRef("sim root")}
	s.rng = rand.New(rand.NewSource(script.seed))
	n := script.faults.n
	users := []string{"alice", "bob", "carol", "dave"}
	policy := Policy{Admins: []string{"alice", "bob"}, Window: []int{3, 6, 16}[s.rng.Intn(3)]}
	for i := range n {
		policy.Sequencers = append(policy.Sequencers, testSequencerOf(fmt.Sprintf("s%d", i+1)))
	}
	if script.faults.heirs {
		policy.Heirs = []Heir{{"bob", "x2"}, {"carol", "x3"}, {"dave", "x4"}}
	}
	if script.faults.freeze && without&ruleFreeze == 0 {
		policy.OnPartition = OnPartitionFreeze
	}
	base := Base{Ref: s.root, GroupID: []byte("group"), Suite: 1, Policy: policy}
	for i, u := range users {
		base.Leaves = append(base.Leaves, Leaf{Index: uint32(i), User: u, Key: leafKey(uint32(i))})
	}
	s.base = base
	s.nextIdx, s.rootList = uint32(len(users)), policy.Sequencers
	s.era[s.root] = s.root
	add := func(name string, cfg Config) *simNode {
		cfg.Room, cfg.Verify, cfg.without, cfg.verified = simRoom, simVerify, without&^rulesOfDrivers, s.verify
		cfg.Limits = Limits{Keep: 1000, ByAuthor: 1000, Children: 1000, Waiting: 4096, Receipts: 1 << 20}
		if script.faults.shortKeep && cfg.Self != nil {
			cfg.Limits.Keep = 3
		}
		m, err := New(cfg, base)
		if err != nil {
			panic(err)
		}
		x := &simNode{name: name, cfg: cfg, m: m, up: true, has: map[int]bool{}, oldHas: map[int]bool{}, in: map[int]bool{}, rate: 90 + s.rng.Intn(21),
			offset: time.Duration(s.rng.Intn(1000)) * time.Second, finalAt: simFinal{s.root, s.root}}
		s.persist(x)
		x.old = x.blob
		s.nodes = append(s.nodes, x)
		return x
	}
	for i := range n + 1 {
		name := fmt.Sprintf("s%d", i+1)
		x := add(name, Config{Self: &Identity{Server: name, User: "@mls:" + name, Key: simKeys[name]}})
		x.module = true
		s.modules = append(s.modules, x)
		s.signed[name] = &simSigned{promised: map[Ref]Ballot{}, vote: map[Ref]*Vote{}, accepts: map[Ref]map[Ballot]*Accept{}}
	}
	for i, u := range users {
		x := add(u, Config{})
		x.user, x.founder, x.leaves, x.at = u, uint32(i), []uint32{uint32(i)}, s.root
		x.holds, x.applied, x.rejected = map[Ref]bool{s.root: true}, map[Ref]bool{}, map[Ref]bool{}
		x.told = map[Ref]bool{}
		s.founding = x.blob
		s.members = append(s.members, x)
	}
	for i, st := range script.steps {
		if st.op == opCrash || st.op == opOld {
			s.modules[int(st.a)%len(s.modules)].dies = i + 1
		}
	}
	if script.faults.liar {
		s.liar = s.modules[s.rng.Intn(n)]
		s.lies.Counter = 1 << 32
	}
	if script.faults.badMember {
		s.bad = s.members[1+s.rng.Intn(3)]
	}
	return s
}

func pub(x *simNode) []byte {
	if !x.module {
		return nil
	}
	return x.cfg.Self.Key.Public().(ed25519.PublicKey)
}

func testSequencerOf(name string) Sequencer {
	return Sequencer{Server: name, User: "@mls:" + name, ReceiptKey: simKeys[name].Public().(ed25519.PublicKey)}
}

func (s *sim) persist(x *simNode) {
	if x.blob != nil && x.dies <= s.at && x.crash == 0 {
		x.fresh = nil // nobody will read it
		return
	}
	b, err := x.m.MarshalBinary()
	if err != nil {
		panic(err)
	}
	x.blob, x.fresh = b, nil
}

// post puts an event into the room: to everyone it reaches, sooner or later.
func (s *sim) post(from *simNode, ev Event) int {
	id := len(s.log)
	s.log = append(s.log, ev)
	s.stats.events++
	s.spread(from, id)
	return id
}

func (s *sim) spread(from *simNode, id int) {
	for _, x := range s.nodes {
		switch {
		case x == from:
			x.inbox = append(x.inbox, id) // its own server always has it
		case s.script.faults.softFail && !s.calm && s.rng.Intn(8) == 0:
			x.hidden = append(x.hidden, id)
		case x.group != from.group || s.rng.Intn(100) < s.lossPct:
			x.lost = append(x.lost, id)
		default:
			x.inbox = append(x.inbox, id)
		}
	}
}

func (s *sim) run() (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case *violation:
			err = r
		default:
			err = &violation{"no panic", fmt.Sprint(r)}
			if s.without == 0 {
				panic(r)
			}
		}
	}()
	for i, st := range s.script.steps {
		s.at = i
		s.rng = newSimRand(uint64(s.script.seed)*31 + uint64(st.a)<<32 + uint64(st.b)<<8 + uint64(st.op))
		s.step(st)
	}
	s.end()
	return nil
}

func newSimRand(seed uint64) *rand.Rand { return rand.New(&fastSource{seed}) }

// String writes a script in the form that parseScript reads.
func (sc simScript) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d\nfaults %s\n", sc.seed, sc.faults)
	for _, st := range sc.steps {
		fmt.Fprintf(&b, "%s %d %d %d\n", simOpNames[st.op], st.a, st.b, st.c)
	}
	return b.String()
}

func parseScript(text string) (simScript, error) {
	var sc simScript
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
			op := slices.Index(simOpNames[:], word)
			if op < 0 {
				return sc, fmt.Errorf("step %q is unknown", line)
			}
			st := simStep{op: simOp(op)}
			_, err = fmt.Sscan(rest, &st.a, &st.b, &st.c)
			sc.steps = append(sc.steps, st)
		}
		if err != nil {
			return sc, fmt.Errorf("line %q: %w", line, err)
		}
	}
	return sc, nil
}

// shrink leaves out steps while the same property still breaks.
func shrink(sc simScript, without rule, property string) simScript {
	breaks := func(c simScript) bool {
		v, ok := newSim(c, without).run().(*violation)
		return ok && v.property == property
	}
	tries := 0
	for size := len(sc.steps) / 2; size > 0; size /= 2 {
		for i := 0; i+size <= len(sc.steps) && tries < 200; tries++ {
			c := sc
			c.steps = slices.Concat(sc.steps[:i], sc.steps[i+size:])
			if breaks(c) {
				sc = c
			} else {
				i += size
			}
		}
	}
	return sc
}

// fastSource is splitmix64: a step's dice must be cheap to make.
type fastSource struct{ x uint64 }

func (f *fastSource) Seed(seed int64) { f.x = uint64(seed) }
func (f *fastSource) Int63() int64    { return int64(f.Uint64() >> 1) }
func (f *fastSource) Uint64() uint64 {
	f.x += 0x9e3779b97f4a7c15
	z := f.x
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (s *sim) step(st simStep) {
	node := s.nodes[int(st.a)%len(s.nodes)]
	member := s.members[int(st.a)%len(s.members)]
	switch st.op {
	case opPump:
		for _, i := range s.rng.Perm(len(s.nodes)) {
			if s.rng.Intn(3) == 0 {
				s.pump(s.nodes[i], 1+int(st.b)%8)
			}
		}
	case opPumpAll:
		for _, i := range s.rng.Perm(len(s.nodes)) {
			s.pump(s.nodes[i], 1+int(st.b)%12)
		}
	case opTime:
		s.now += []time.Duration{1, 2, 5, 6, 11, 31, 47, 95}[st.a%8] * time.Second
	case opCommit:
		s.commit(member, st.b)
	case opMessage:
		s.message(member)
	case opCrash:
		node = s.modules[int(st.a)%len(s.modules)]
		if st.b%4 == 0 {
			s.die(node)
		} else {
			node.crash = int(st.b % 4)
		}
	case opRestart:
		for _, x := range s.nodes {
			if !x.up && !x.killed && s.rng.Intn(2) == 0 {
				s.restart(x)
			}
		}
	case opSplit:
		parts := newSimRand(uint64(s.script.seed)*37 + uint64(st.c))
		three := s.script.faults.three && parts.Intn(3) > 0
		for _, x := range s.nodes {
			x.group = s.rng.Intn(2)
			if three && parts.Intn(3) == 0 {
				x.group = 2
			}
		}
		s.stats.cut(s.nodes)
	case opHeal:
		if st.b%2 == 0 {
			for _, x := range s.nodes {
				x.group = 0
			}
		}
	case opSync:
		s.sync(node)
	case opLoss:
		s.lossPct = []int{0, 10, 30, 60}[st.a%4]
	case opLie:
		s.lie(st)
	case opBad:
		s.misbehave(st)
	case opRepost:
		s.repost(s.modules[int(st.a)%len(s.modules)])
	case opJoin:
		if len(s.late) < 3 {
			s.join(s.modules[int(st.a)%len(s.modules)])
		}
	case opHeirs:
		s.heirsEra(member, st.b%4 == 0)
	case opOld:
		x := s.modules[int(st.a)%len(s.modules)]
		if st.b%3 > 0 {
			x.old, x.oldHas = x.blob, maps.Clone(x.has)
			for _, id := range x.fresh {
				delete(x.oldHas, id)
			}
		} else if x.up && !x.killed {
			s.stats.crashes++
			x.fresh = nil
			for id := range x.has {
				x.lost = append(x.lost, id)
			}
			x.lost = append(x.lost, x.inbox...)
			slices.Sort(x.lost)
			x.lost = slices.DeleteFunc(slices.Compact(x.lost), func(id int) bool { return x.oldHas[id] })
			x.has, x.blob, x.inbox, x.untold = maps.Clone(x.oldHas), x.old, nil, true
			s.restart(x)
		}
	}
}

func (s *sim) die(x *simNode) {
	if !x.up {
		return
	}
	s.stats.crashes++
	x.up, x.crash = false, 0
	for _, id := range x.fresh {
		delete(x.has, id)
		x.inbox = append(x.inbox, id)
		x.takeOut(id)
	}
	x.fresh = nil
	if s.script.faults.majority && x.module && s.rng.Intn(3) == 0 {
		x.killed = true
		return
	}
	if s.script.faults.killForGood && x.module && !s.quorumWithout(x) {
		return
	}
	if s.script.faults.killForGood && x.module && s.rng.Intn(3) == 0 {
		x.killed = true
	}
}

// quorumWithout reports whether a majority of the first list lives on without x.
func (s *sim) quorumWithout(x *simNode) bool {
	live := 0
	for _, o := range s.modules[:s.script.faults.n] {
		if o != x && !o.killed {
			live++
		}
	}
	return live >= s.script.faults.n/2+1
}

// restart starts a node from its disk. Its driver first reads back its own
// receipts from its own server, then lets it sign; what was in the outbox is
// sent again, unchanged.
func (s *sim) restart(x *simNode) {
	m, err := Unmarshal(x.cfg, x.blob)
	if err != nil {
		panic(err)
	}
	x.m, x.up = m, true
	if s.without&rulePersist == 0 {
		for _, id := range x.posted {
			s.feed(x, id)
		}
	}
	if _, err := m.Step(Resume{}); err != nil {
		panic(err)
	}
	if m.Retired() {
		s.stats.retired++
	}
	x.finalAt = simFinal{}
	s.observe(x)
}

func (s *sim) sync(x *simNode) {
	if !x.up {
		return
	}
	rest := x.lost[:0]
	for _, id := range x.lost {
		reach := false
		for _, o := range s.nodes {
			if o.up && o.group == x.group && o.has[id] {
				reach = true
				break
			}
		}
		if reach {
			x.inbox = append(x.inbox, id)
		} else {
			rest = append(rest, id)
		}
	}
	x.lost = rest
}

// feed gives an event to a node's machine. A commit waits outside it until its
// parent is there, as it cannot be checked before; of one that never will be the
// machine is told that much.
func (s *sim) feed(x *simNode, id int) {
	s.step1(x, id)
	for again := true; again && x.up; {
		again = false
		for i, o := range x.orphans {
			if c := s.log[o].(*Commit); x.m.Held(c.Parent) || s.placeOf(x, c) != placeOpen {
				x.orphans, again = slices.Delete(x.orphans, i, i+1), true
				s.step1(x, o)
				break
			}
		}
	}
}

// placeOf says what a driver knows of a commit whose parent its machine does not
// hold. Epochs compare within a group.
func (s *sim) placeOf(x *simNode, c *Commit) simPlace {
	switch group := s.group[x.m.base.ref]; {
	case c.Founding != nil && !x.m.Beside(c.Parent, math.MaxUint64), s.group[c.Ref] > group:
		return placeOpen
	case s.group[c.Ref] == group && c.Founding == nil && x.m.TooOld(c.Epoch):
		return placeBelow
	case s.group[c.Ref] < group:
		return placeBeside
	case x.m.Beside(c.Parent, c.Epoch):
		return placeBeside
	}
	return placeOpen
}

type simPlace uint8

const (
	placeOpen   simPlace = iota // it may still come
	placeBelow                  // too old
	placeBeside                 // beside what is kept
)

func (s *sim) step1(x *simNode, id int) {
	ev := s.log[id]
	if c, ok := ev.(*Commit); ok && s.script.faults.driver && !x.m.Held(c.Parent) {
		switch place := s.placeOf(x, c); place {
		case placeOpen:
			if !slices.Contains(x.orphans, id) {
				x.orphans = append(x.orphans, id)
			}
			return
		case placeBelow:
			return
		case placeBeside:
			ev = Outside{Ref: c.Ref, Parent: c.Parent, Epoch: c.Epoch, Past: s.group[c.Ref] < s.group[x.m.base.ref]}
		}
	}
	acts, err := x.m.Step(s.told(ev))
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			panic(err)
		}
	}
	if !x.has[id] {
		x.has[id] = true
		x.fresh = append(x.fresh, id)
		x.putIn(id)
	}
	s.carryOut(x, acts)
}

// told is what a machine is told of an event: the event, unless the run leaves a rule
// out that way.
func (s *sim) told(ev Event) Event {
	c, ok := ev.(*Commit)
	if !ok || s.without&ruleHeirs == 0 || c.Era == nil || !c.Era.ByHeirs {
		return ev
	}
	all, era := *c, *c.Era
	era.Signers = nil
	for _, h := range s.base.Policy.Heirs {
		era.Signers = append(era.Signers, h.User)
	}
	all.Era = &era
	return &all
}

// pump lets a node take in up to k of what waits for it, in any order and some
// of it twice, and then do what it owes.
func (s *sim) pump(x *simNode, k int) {
	if !x.up {
		return
	}
	for ; k > 0 && len(x.inbox) > 0; k-- {
		i := s.rng.Intn(len(x.inbox))
		if s.calm {
			i = 0
		}
		id := x.inbox[i]
		if s.calm || s.rng.Intn(12) > 0 {
			x.inbox = slices.Delete(x.inbox, i, i+1)
		}
		s.feed(x, id)
	}
	s.carryOut(x, x.m.Tick(x.offset+s.now*time.Duration(x.rate)/100))
	if !x.up {
		return
	}
	if !x.module {
		s.act(x)
	}
	s.observe(x)
}

// carryOut is the driver: it writes, then sends, and may die between.
func (s *sim) carryOut(x *simNode, acts []Action) {
	var sends []Receipt
	for _, a := range acts {
		if s.acts != nil {
			s.writeDown(x, a)
		}
		switch a := a.(type) {
		case Send:
			sends = append(sends, a.Receipt)
		case Doubt:
			if !x.module {
				s.vouch(x, a.Ref)
			}
		case Evidence:
			s.evidence(x, a)
		case HeadChanged:
			if a.Fork != a.From {
				s.stats.rewinds++
			}
		}
	}
	if len(sends) == 0 {
		if s.rng.Intn(8) == 0 {
			s.persist(x)
		}
		return
	}
	if x == s.liar && s.lies.Counter > 1<<32 {
		x.unsent = true
		return
	}
	crash := x.crash
	if s.calm {
		crash = 0
	}
	defer func() { x.crash = 0 }()
	if s.without&rulePersist != 0 {
		for _, r := range sends {
			s.send(x, r)
		}
		if crash != 0 {
			s.die(x)
			return
		}
		s.persist(x)
		return
	}
	if crash == 1 { // before the write
		s.die(x)
		return
	}
	s.persist(x)
	for i, r := range sends {
		if crash == 2 || crash == 3 && i > 0 {
			// Died before sending; the outbox is sent by the next process.
			for _, r := range sends[i:] {
				s.send(x, r)
			}
			s.die(x)
			return
		}
		s.send(x, r)
	}
}

func (s *sim) send(x *simNode, r Receipt) {
	s.judge(x, r)
	id := s.post(x, r)
	x.posted = append(x.posted, id)
	x.putIn(id) // its machine has it before the room
}

func (x *simNode) putIn(id int) {
	if !x.in[id] {
		x.in[id] = true
		x.sum ^= (&fastSource{uint64(id)}).Uint64()
	}
}

func (x *simNode) takeOut(id int) {
	if x.in[id] && !slices.Contains(x.posted, id) {
		delete(x.in, id)
		x.sum ^= (&fastSource{uint64(id)}).Uint64()
	}
}
