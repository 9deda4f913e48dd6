package mls

import (
	"bytes"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// The benchmarks go from bytes to bytes: parsing, validation and encoding are
// inside, the ratchet tree is out of band, credentials look like
// "@member17:example.org", and Commits are PublicMessages. In a full group
// every member has committed once, so that no node of the tree is blank; a
// fresh one was just created by one Commit that added everybody.

// benchSizes runs f for suites and sizes of groups; the large sizes are for
// suite 1 only.
func benchSizes(b *testing.B, f func(b *testing.B, cs CipherSuite, n int)) {
	for _, cs := range SupportedCipherSuites() {
		for _, n := range []int{10, 100, 1000, 5000} {
			if n > 100 && cs != MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519 {
				continue
			}
			b.Run(fmt.Sprintf("suite=%d/n=%d", cs, n), func(b *testing.B) {
				b.ReportAllocs()
				f(b, cs, n)
			})
		}
	}
}

// A stopwatch is a b.Loop that also reports the median time of a round, which
// says more than the mean on a machine that does other things, too.
type stopwatch struct {
	b      *testing.B
	last   time.Time
	rounds []time.Duration
}

func watch(b *testing.B) *stopwatch {
	// What making the group left behind is not for the rounds to collect.
	runtime.GC()
	return &stopwatch{b: b}
}

func (w *stopwatch) loop() bool {
	if now := time.Now(); !w.last.IsZero() && len(w.rounds) < 1<<16 {
		w.rounds = append(w.rounds, now.Sub(w.last))
	}
	if !w.b.Loop() {
		slices.Sort(w.rounds)
		w.b.ReportMetric(float64(w.rounds[len(w.rounds)/2]), "median-ns")
		return false
	}
	w.last = time.Now()
	return true
}

type benchKey struct {
	cs CipherSuite
	n  int
}

var benchMu sync.Mutex // guards the two maps
var fullGroups, freshGroups = make(map[benchKey][]*Group), make(map[benchKey][]*Group)

// keepOnly forgets the groups of other sizes, so that the collector has no more
// to do than in a program with one group. The caller holds benchMu.
func keepOnly(k benchKey) {
	for _, m := range []map[benchKey][]*Group{fullGroups, freshGroups} {
		maps.DeleteFunc(m, func(other benchKey, _ []*Group) bool { return other != k })
	}
}

func benchConfig(b testing.TB) *Config {
	return &Config{Rand: testRand(b), Now: testNow, Limits: Limits{MaxProposals: 10_000}}
}

func benchLeaf(i int) LeafOptions {
	return LeafOptions{Credential: BasicCredential(fmt.Appendf(nil, "@member%d:example.org", i))}
}

// fullGroup returns the members 0, n/2 and 1 of a group of n in which everybody
// has committed once. The Commits are made in the tree alone, without the
// messages.
func fullGroup(b testing.TB, cs CipherSuite, n int) (first, far, near *Group) {
	b.Helper()
	benchMu.Lock()
	defer benchMu.Unlock()
	keepOnly(benchKey{cs, n})
	if g := fullGroups[benchKey{cs, n}]; g != nil {
		return g[0], g[1], g[2]
	}
	cfg := benchConfig(b)
	groupID := []byte("!room:example.org")
	t := newTree(cs, 2*n)
	sigs := make([]SignaturePrivateKey, n)
	for i := range n {
		sigs[i] = mustSignatureKey(b, cs)
		_, pub := mustKeyPair(b, cs)
		o := benchLeaf(i)
		l, err := o.leaf(cfg.capabilities(), sigs[i], pub)
		if err != nil {
			b.Fatal(err)
		}
		l.Source = LeafNodeSourceUpdate
		if l, err = l.sign(cs, sigs[i], groupID, LeafIndex(i)); err != nil {
			b.Fatal(err)
		}
		t.add(l)
	}
	all := make(nodeKeys)
	for i := range LeafIndex(n) {
		p, err := t.createPath(i, cfg.rand(), func(pub HPKEPublicKey, parentHash []byte) (*LeafNode, error) {
			o := benchLeaf(int(i))
			l, err := o.leaf(cfg.capabilities(), sigs[i], pub)
			if err != nil {
				return nil, err
			}
			l.Source, l.ParentHash = LeafNodeSourceCommit, parentHash
			return l.sign(cs, sigs[i], groupID, i)
		})
		if err != nil {
			b.Fatal(err)
		}
		for x, k := range p.keys {
			all[x] = k
		}
	}
	t.finish()
	epochSecret := cs.hash([]byte("epoch secret"))
	var groups []*Group
	for _, own := range []LeafIndex{0, LeafIndex(n / 2), 1} {
		e := &epoch{cfg: cfg, tree: t, signers: new(signers), context: groupContext{
			version: MLS10, cipherSuite: cs, groupID: groupID, epoch: uint64(n),
			treeHash: t.rootHash(), confirmedTranscriptHash: cs.hash([]byte("transcript")),
		}}
		e.contextRaw = e.context.appendTo(nil)
		g := &Group{epoch: e, own: own, signature: sigs[own], keys: make(nodeKeys), secrets: newEpochSecretsFromEpochSecret(cs, epochSecret)}
		for x, ok := own.node(), true; ok; x, ok = x.parent(t.size) {
			if k, ok := all[x]; ok {
				g.keys[x] = k
			}
		}
		e.confirmationTag = cs.mac(g.secrets.confirmation, e.context.confirmedTranscriptHash)
		e.interim = cs.interimTranscriptHash(e.context.confirmedTranscriptHash, e.confirmationTag)
		g.start()
		groups = append(groups, g)
	}
	fullGroups[benchKey{cs, n}] = groups
	return groups[0], groups[1], groups[2]
}

// freshGroup returns the creator and the last member of a new group.
func freshGroup(b testing.TB, cs CipherSuite, n int) (creator, last *Group) {
	b.Helper()
	benchMu.Lock()
	defer benchMu.Unlock()
	keepOnly(benchKey{cs, n})
	if g := freshGroups[benchKey{cs, n}]; g != nil {
		return g[0], g[1]
	}
	cfg := benchConfig(b)
	kps, bundle := benchPackages(b, cfg, cs, n)
	welcome, g := benchCreate(b, cfg, cs, kps)
	raw, err := UnmarshalKeyPackageBundle(bundle)
	if err != nil {
		b.Fatal(err)
	}
	j, err := JoinWelcome(cfg, mustParse(b, welcome), raw, JoinOptions{RatchetTree: g.RatchetTree()})
	if err != nil {
		b.Fatal(err)
	}
	freshGroups[benchKey{cs, n}] = []*Group{g, j}
	return g, j
}

// benchPackages returns n-1 KeyPackages and the bundle of the last.
func benchPackages(b testing.TB, cfg *Config, cs CipherSuite, n int) (kps [][]byte, last []byte) {
	b.Helper()
	for i := 1; i < n; i++ {
		bundle, err := NewKeyPackage(cfg, cs, mustSignatureKey(b, cs), benchLeaf(i))
		if err != nil {
			b.Fatal(err)
		}
		kps = append(kps, bundle.Message())
		if i == n-1 {
			if last, err = bundle.MarshalBinary(); err != nil {
				b.Fatal(err)
			}
		}
	}
	return kps, last
}

func benchCreate(b testing.TB, cfg *Config, cs CipherSuite, kps [][]byte) (welcome []byte, g *Group) {
	b.Helper()
	g, err := CreateGroup(cfg, cs, []byte("!room:example.org"), mustSignatureKey(b, cs), benchLeaf(0), nil)
	if err != nil {
		b.Fatal(err)
	}
	adds := make([]Proposal, len(kps))
	for i, raw := range kps {
		adds[i] = Add(mustParse(b, raw).KeyPackage())
	}
	sc, err := g.Commit(CommitOptions{Proposals: adds})
	if err != nil {
		b.Fatal(err)
	}
	return sc.Welcome(), sc.Merge()
}

func reportWire(b *testing.B, n int) { b.ReportMetric(float64(n), "wire-B") }

func BenchmarkKeyPackage(b *testing.B) {
	for _, cs := range SupportedCipherSuites() {
		b.Run(fmt.Sprintf("suite=%d", cs), func(b *testing.B) {
			b.ReportAllocs()
			key := mustSignatureKey(b, cs)
			n := 0
			for w := watch(b); w.loop(); {
				kp, err := NewKeyPackage(nil, cs, key, benchLeaf(1))
				if err != nil {
					b.Fatal(err)
				}
				n = len(kp.Message())
			}
			reportWire(b, n)
		})
	}
}

// BenchmarkCreate makes a group of n by one Commit without a path.
func BenchmarkCreate(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		cfg := benchConfig(b)
		kps, _ := benchPackages(b, cfg, cs, n)
		size := 0
		for w := watch(b); w.loop(); {
			w, _ := benchCreate(b, cfg, cs, kps)
			size = len(w)
		}
		reportWire(b, size)
	})
}

// BenchmarkJoin joins a new group by its Welcome.
func BenchmarkJoin(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		cfg := benchConfig(b)
		kps, bundle := benchPackages(b, cfg, cs, n)
		welcome, g := benchCreate(b, cfg, cs, kps)
		tree := g.RatchetTree()
		for w := watch(b); w.loop(); {
			kp, err := UnmarshalKeyPackageBundle(bundle)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := JoinWelcome(cfg, mustParse(b, welcome), kp, JoinOptions{RatchetTree: tree}); err != nil {
				b.Fatal(err)
			}
		}
		reportWire(b, len(tree))
	})
}

func benchCommit(b *testing.B, g *Group, o CommitOptions) {
	b.Helper()
	size := 0
	for w := watch(b); w.loop(); {
		sc, err := g.Commit(o)
		if err != nil {
			b.Fatal(err)
		}
		size = len(sc.Message())
		sc.Merge()
	}
	reportWire(b, size)
}

func benchProcess(b *testing.B, from, to *Group) {
	b.Helper()
	m, _ := mustCommit(b, from, CommitOptions{})
	raw := m.Raw()
	for w := watch(b); w.loop(); {
		p, err := to.Process(mustParse(b, raw))
		if err != nil {
			b.Fatal(err)
		}
		if p.(*StagedCommit).Merge() == nil {
			b.Fatal("removed")
		}
	}
	reportWire(b, len(raw))
}

// BenchmarkCommitFull gives a member of a full group new keys.
func BenchmarkCommitFull(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, _, _ := fullGroup(b, cs, n)
		benchCommit(b, g, CommitOptions{})
	})
}

// BenchmarkProcessFull follows such a Commit, from the other half of the tree.
func BenchmarkProcessFull(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, far, _ := fullGroup(b, cs, n)
		benchProcess(b, g, far)
	})
}

// BenchmarkCommitFresh gives the creator of a fresh group new keys.
func BenchmarkCommitFresh(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, _ := freshGroup(b, cs, n)
		benchCommit(b, g, CommitOptions{})
	})
}

// BenchmarkProcessFresh follows such a Commit, as the last member.
func BenchmarkProcessFresh(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, last := freshGroup(b, cs, n)
		benchProcess(b, g, last)
	})
}

// BenchmarkAddOne adds one member to a full group, Welcome included.
func BenchmarkAddOne(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, _, _ := fullGroup(b, cs, n)
		bundle, err := NewKeyPackage(g.cfg, cs, mustSignatureKey(b, cs), benchLeaf(n))
		if err != nil {
			b.Fatal(err)
		}
		raw := bundle.Message()
		commit, welcome := 0, 0
		for w := watch(b); w.loop(); {
			sc, err := g.Commit(CommitOptions{Proposals: []Proposal{Add(mustParse(b, raw).KeyPackage())}})
			if err != nil {
				b.Fatal(err)
			}
			commit, welcome = len(sc.Message()), len(sc.Welcome())
			sc.Merge()
		}
		reportWire(b, commit)
		b.ReportMetric(float64(welcome), "welcome-B")
	})
}

// BenchmarkRemoveOne removes the last member of a full group.
func BenchmarkRemoveOne(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, _, _ := fullGroup(b, cs, n)
		benchCommit(b, g, CommitOptions{Proposals: []Proposal{Remove(LeafIndex(n - 1))}})
	})
}

// BenchmarkExternalJoin joins a full group by an external Commit.
func BenchmarkExternalJoin(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, _, _ := fullGroup(b, cs, n)
		info, err := g.GroupInfo(GroupInfoOptions{ExternalPub: true})
		if err != nil {
			b.Fatal(err)
		}
		tree, key := g.RatchetTree(), mustSignatureKey(b, cs)
		size := 0
		for w := watch(b); w.loop(); {
			sc, err := ExternalJoin(g.cfg, mustParse(b, info), key, ExternalJoinOptions{Leaf: benchLeaf(n), RatchetTree: tree})
			if err != nil {
				b.Fatal(err)
			}
			size = len(sc.Message())
			sc.Merge()
		}
		reportWire(b, size)
	})
}

// BenchmarkPublicStart begins to follow a full group without being a member.
func BenchmarkPublicStart(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, _, _ := fullGroup(b, cs, n)
		info, err := g.GroupInfo(GroupInfoOptions{})
		if err != nil {
			b.Fatal(err)
		}
		tree := g.RatchetTree()
		for w := watch(b); w.loop(); {
			if _, err := NewPublicGroup(g.cfg, mustParse(b, info), tree); err != nil {
				b.Fatal(err)
			}
		}
		reportWire(b, len(tree))
	})
}

// BenchmarkPublicProcess follows a Commit without being a member.
func BenchmarkPublicProcess(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, _, _ := fullGroup(b, cs, n)
		info, err := g.GroupInfo(GroupInfoOptions{RatchetTree: true})
		if err != nil {
			b.Fatal(err)
		}
		pg, err := NewPublicGroup(g.cfg, mustParse(b, info), nil)
		if err != nil {
			b.Fatal(err)
		}
		m, _ := mustCommit(b, g, CommitOptions{})
		raw := m.Raw()
		for w := watch(b); w.loop(); {
			p, err := pg.Process(mustParse(b, raw))
			if err != nil {
				b.Fatal(err)
			}
			p.(*PublicStagedCommit).Merge()
		}
		reportWire(b, len(raw))
	})
}

func benchTexts(b *testing.B, f func(b *testing.B, from, to *Group, text []byte)) {
	for _, cs := range SupportedCipherSuites() {
		for _, size := range []int{32, 1024, 16384} {
			b.Run(fmt.Sprintf("suite=%d/size=%d", cs, size), func(b *testing.B) {
				b.ReportAllocs()
				n := 100
				if cs == MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519 {
					n = 5000
				}
				from, to, _ := fullGroup(b, cs, n)
				f(b, from, to, make([]byte, size))
			})
		}
	}
}

// BenchmarkEncrypt encrypts a message to a group of 100, with suite 1 of 5,000.
func BenchmarkEncrypt(b *testing.B) {
	benchTexts(b, func(b *testing.B, from, _ *Group, text []byte) {
		size := 0
		for w := watch(b); w.loop(); {
			raw, err := from.Encrypt(text, nil)
			if err != nil {
				b.Fatal(err)
			}
			size = len(raw)
		}
		reportWire(b, size)
	})
}

// BenchmarkDecrypt decrypts such messages in their order.
func BenchmarkDecrypt(b *testing.B) {
	benchTexts(b, func(b *testing.B, from, to *Group, text []byte) {
		// The same batch is read again and again, with the ratchets put back.
		from.ratchets = newSecretTree(from.CipherSuite(), from.CipherSuite().hash(nil), from.tree.size)
		to.ratchets = newSecretTree(from.CipherSuite(), from.CipherSuite().hash(nil), from.tree.size)
		before := to.ratchets.appendTo(nil)
		batch := make([][]byte, 500)
		for i := range batch {
			var err error
			if batch[i], err = from.Encrypt(text, nil); err != nil {
				b.Fatal(err)
			}
		}
		i := 0
		for w := watch(b); w.loop(); {
			if i == len(batch) {
				b.StopTimer()
				to.ratchets, _ = unmarshalSecretTree(to.CipherSuite(), newReader(before))
				i = 0
				b.StartTimer()
			}
			if _, err := to.Process(mustParse(b, batch[i])); err != nil {
				b.Fatal(err)
			}
			i++
		}
		reportWire(b, len(batch[0]))
	})
}

// BenchmarkMessage encrypts a message of 32 bytes and decrypts it.
func BenchmarkMessage(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		from, to, _ := fullGroup(b, cs, n)
		secret := cs.hash(nil)
		from.ratchets = newSecretTree(cs, bytes.Clone(secret), from.tree.size)
		to.ratchets = newSecretTree(cs, secret, from.tree.size)
		for w := watch(b); w.loop(); {
			raw, err := from.Encrypt(make([]byte, 32), nil)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := to.Process(mustParse(b, raw)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkSave encodes the whole state of a member of a full group.
func BenchmarkSave(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, _, _ := fullGroup(b, cs, n)
		size := 0
		for w := watch(b); w.loop(); {
			size = len(g.EpochState()) + len(g.RatchetState())
		}
		b.ReportMetric(float64(size), "state-B")
	})
}

// BenchmarkSaveRatchet encodes what a message changes.
func BenchmarkSaveRatchet(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, _, _ := fullGroup(b, cs, n)
		if _, err := g.Encrypt([]byte("text"), nil); err != nil {
			b.Fatal(err)
		}
		size := 0
		for w := watch(b); w.loop(); {
			size = len(g.RatchetState())
		}
		b.ReportMetric(float64(size), "state-B")
	})
}

// BenchmarkSaveEpoch encodes what a Commit changes.
func BenchmarkSaveEpoch(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, far, _ := fullGroup(b, cs, n)
		m, _ := mustCommit(b, g, CommitOptions{})
		next := mustFollow(b, far, m)
		size := 0
		for w := watch(b); w.loop(); {
			size = len(next.EpochHead()) + len(next.TreeDelta(far))
		}
		b.ReportMetric(float64(size), "state-B")
	})
}

// BenchmarkSaveRatchetStep encodes what one message changes.
func BenchmarkSaveRatchetStep(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, far, _ := fullGroup(b, cs, n)
		m, _ := mustCommit(b, g, CommitOptions{})
		next := mustFollow(b, far, m)
		if _, err := next.Encrypt([]byte("text"), nil); err != nil {
			b.Fatal(err)
		}
		next.RatchetChanges()
		next.RatchetStored()
		size := 0
		for w := watch(b); w.loop(); {
			// As Encrypt does.
			next.ratchets.touch(pageLeaf, uint32(next.own))
			size = 0
			for _, p := range next.RatchetChanges() {
				size += 8 + len(p.Data)
			}
			next.RatchetStored()
		}
		b.ReportMetric(float64(size), "state-B")
	})
}

// BenchmarkLoad reads the whole state of a member of a full group.
func BenchmarkLoad(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, _, _ := fullGroup(b, cs, n)
		es, rs := g.EpochState(), g.RatchetState()
		for w := watch(b); w.loop(); {
			if _, err := LoadGroup(g.cfg, es, rs); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(es)+len(rs)), "state-B")
	})
}

// BenchmarkHeap loads copies of a full group, and reports what one holds in
// memory.
func BenchmarkHeap(b *testing.B) {
	benchSizes(b, func(b *testing.B, cs CipherSuite, n int) {
		g, _, _ := fullGroup(b, cs, n)
		es, rs := g.EpochState(), g.RatchetState()
		heap := func() float64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return float64(m.HeapAlloc)
		}
		before := heap()
		var copies []*Group
		for w := watch(b); w.loop(); {
			g, err := LoadGroup(g.cfg, bytes.Clone(es), bytes.Clone(rs))
			if err != nil {
				b.Fatal(err)
			}
			if len(copies) < 4 {
				copies = append(copies, g)
			}
		}
		b.ReportMetric((heap()-before)/float64(len(copies)), "heap-B")
		runtime.KeepAlive(copies)
	})
}
