package federation_test

import (
	"bytes"
	"container/heap"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	mathrand "math/rand"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// What a commit costs in a room of many servers on which nothing fails: the real
// machine in every module and client, real signatures and event contents, virtual
// time. A server and what is beside it are at no distance; between servers an
// event takes between a half and one and a half hops.

const (
	costHop       = 100 * time.Millisecond
	costPerServer = 3 // members on each server, one device each
	costSuite     = mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	costIdle      = time.Hour // watched when all is done
)

// costCase is a room.
type costCase struct {
	servers, list int
	pace          time.Duration // between commits
	commits       int
}

// costFigures is what a run shows.
type costFigures struct {
	sent, bytes map[string]int  // by event type; bytes of the contents
	epoch       []time.Duration // until the clients of every server hold a commit's epoch
	bare        []time.Duration // until an ordinary event from the same place is everywhere
	final       []time.Duration // until the clients of every server know a commit to be final
	voteGap     time.Duration   // shortest between two vote events of one module
	idle        int             // events sent in costIdle
}

func (f *costFigures) perCommit(counts map[string]int, types ...string) float64 {
	sum := 0
	for t, n := range counts {
		if len(types) == 0 || slices.Contains(types, t) {
			sum += n
		}
	}
	return float64(sum) / float64(f.sent[rooms.TypeCommit])
}

type costEvent struct {
	at  time.Duration
	seq int
	do  func()
}

type costQueue []costEvent

func (q costQueue) Len() int { return len(q) }
func (q costQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q costQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *costQueue) Push(x any)   { *q = append(*q, x.(costEvent)) }
func (q *costQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

type costWorld struct {
	tb testing.TB
	costCase
	now     time.Duration
	queue   costQueue
	seq     int
	rng     *mathrand.Rand
	scope   federation.Scope
	all     []*costServer
	keys    []mls.SignaturePrivateKey // of the leaves
	members int
	content int // bytes of a commit's content
	figures costFigures
	sentAt  map[federation.Ref]time.Duration
	holders map[federation.Ref]int // servers whose clients hold the epoch
	finals  map[federation.Ref]int // servers whose clients know it to be final
	votedAt map[*costServer]time.Duration
}

type costServer struct {
	index    int
	module   *federation.Machine // nil: it is not listed
	clients  *federation.Machine // all of the server's hold the same
	vouching map[federation.Ref]bool
	arrived  []time.Duration // of the last event from each server: they come in order
	wake     time.Duration   // when the module is ticked next
}

func newCostWorld(tb testing.TB, c costCase) *costWorld {
	tb.Helper()
	w := &costWorld{tb: tb, costCase: c, rng: mathrand.New(mathrand.NewSource(int64(c.servers*1000 + c.list))), members: c.servers * costPerServer,
		scope:  federation.Scope{Room: "!cost:s0.example.org", Group: bytes.Repeat([]byte{1}, rooms.GroupIDSize)},
		sentAt: map[federation.Ref]time.Duration{}, holders: map[federation.Ref]int{}, finals: map[federation.Ref]int{}, votedAt: map[*costServer]time.Duration{}}
	w.figures.sent, w.figures.bytes = map[string]int{}, map[string]int{}
	base := federation.Base{Ref: sha256.Sum256([]byte("root of the costs")), GroupID: w.scope.Group, Suite: uint16(costSuite),
		Policy: federation.Policy{Admins: []string{costUser(0)}}}
	var ids []federation.Identity
	for i := range c.list {
		seed := sha256.Sum256(fmt.Appendf(nil, "receipt key %d", i))
		who := federation.Identity{Server: costServerName(i), User: "@_mls_bot:" + costServerName(i), Key: ed25519.NewKeyFromSeed(seed[:])}
		ids = append(ids, who)
		base.Policy.Sequencers = append(base.Policy.Sequencers, federation.Sequencer{Server: who.Server, User: who.User, ReceiptKey: who.Key.Public().(ed25519.PublicKey)})
	}
	for i := range w.members {
		key, err := mls.GenerateSignatureKey(costSuite, rand.Reader)
		if err != nil {
			tb.Fatal(err)
		}
		w.keys = append(w.keys, key)
		base.Leaves = append(base.Leaves, federation.Leaf{Index: uint32(i), User: costUser(i), Key: key.Public()})
	}
	machine := func(self *federation.Identity) *federation.Machine {
		m, err := federation.New(federation.Config{Room: w.scope.Room, Self: self, Verify: rooms.VerifyLeafSignature}, base)
		if err != nil {
			tb.Fatal(err)
		}
		return m
	}
	for i := range c.servers {
		s := &costServer{index: i, clients: machine(nil), vouching: map[federation.Ref]bool{}, arrived: make([]time.Duration, c.servers)}
		if i < c.list {
			s.module = machine(&ids[i])
		}
		w.all = append(w.all, s)
	}
	w.content = costCommitSize(tb, w.members, base.Policy.Sequencers)
	return w
}

func costServerName(i int) string { return fmt.Sprintf("s%d.example.org", i) }
func costUser(i int) string {
	return fmt.Sprintf("@member%d:%s", i, costServerName(i/costPerServer))
}

func (w *costWorld) at(t time.Duration, do func()) {
	w.seq++
	heap.Push(&w.queue, costEvent{max(t, w.now), w.seq, do})
}

// hop draws how long an event takes from one server to another.
func (w *costWorld) hop(from, to int) time.Duration {
	if from == to {
		return 0
	}
	return costHop/2 + time.Duration(w.rng.Int63n(int64(costHop)))
}

// post sends an event from a server to all.
func (w *costWorld) post(from *costServer, ev federation.Event) {
	kind, size := w.sizeOf(ev)
	w.figures.sent[kind]++
	w.figures.bytes[kind] += size
	if kind == rooms.TypeVote {
		if last, ok := w.votedAt[from]; ok && (w.figures.voteGap == 0 || w.now-last < w.figures.voteGap) {
			w.figures.voteGap = w.now - last
		}
		w.votedAt[from] = w.now
	}
	for _, to := range w.all {
		at := max(w.now+w.hop(from.index, to.index), to.arrived[from.index])
		to.arrived[from.index] = at
		w.at(at, func() { w.deliver(to, ev) })
	}
}

func (w *costWorld) sizeOf(ev federation.Event) (kind string, size int) {
	var raw []byte
	var err error
	switch ev := ev.(type) {
	case *federation.Commit:
		return rooms.TypeCommit, w.content
	case *federation.Applied:
		kind = rooms.TypeApplied
		raw, err = rooms.Encode(rooms.AppliedOf(ev))
	case federation.Receipt:
		k, content := rooms.ReceiptOf(ev)
		kind = k
		raw, err = rooms.Encode(content)
	default:
		w.tb.Fatalf("an event of type %T", ev)
	}
	if err != nil {
		w.tb.Fatal(err)
	}
	return kind, len(raw)
}

func (w *costWorld) deliver(s *costServer, ev federation.Event) {
	if s.module != nil {
		acts, err := s.module.Step(ev)
		if err != nil {
			w.tb.Fatal(err)
		}
		w.carryOut(s, acts)
		w.tick(s)
	}
	acts, err := s.clients.Step(ev)
	if err != nil {
		w.tb.Fatal(err)
	}
	for _, a := range append(acts, s.clients.Tick(w.now)...) {
		switch a := a.(type) {
		case federation.HeadChanged:
			for _, ref := range s.clients.Path(a.From, a.To) {
				if w.holders[ref]++; w.holders[ref] == w.servers {
					w.figures.epoch = append(w.figures.epoch, w.now-w.sentAt[ref])
				}
			}
		case federation.Finalized:
			if w.finals[a.Ref]++; w.finals[a.Ref] == w.servers {
				w.figures.final = append(w.figures.final, w.now-w.sentAt[a.Ref])
			}
		}
	}
	w.vouch(s)
}

func (w *costWorld) tick(s *costServer) {
	w.carryOut(s, s.module.Tick(w.now))
	if next, ok := s.module.Next(); ok && (s.wake <= w.now || next < s.wake) {
		s.wake = next
		w.at(next, func() { w.tick(s) })
	}
}

func (w *costWorld) carryOut(s *costServer, acts []federation.Action) {
	for _, a := range acts {
		switch a := a.(type) {
		case federation.Send:
			w.post(s, a.Receipt)
		case federation.Evidence, federation.KeyRetired, federation.Doubt:
			w.tb.Fatalf("server %d: %T where nothing fails", s.index, a)
		}
	}
}

// vouch does what the SDK does: every member that could vouch sets its timer, and
// says that it applied the commit unless somebody else was heard first.
func (w *costWorld) vouch(s *costServer) {
	for _, ref := range s.clients.NeedsVouching() {
		if s.vouching[ref] {
			continue
		}
		s.vouching[ref] = true
		for i := range costPerServer {
			leaf := uint32(s.index*costPerServer + i)
			if !s.clients.WouldVouch(ref, leaf, ref) {
				continue
			}
			w.at(w.now+rooms.VoucherDelay(ref, mls.LeafIndex(leaf), s.clients.Vouchers(ref, ref)), func() {
				if !slices.Contains(s.clients.NeedsVouching(), ref) {
					return
				}
				applied, err := rooms.SignApplied(costSuite, w.keys[leaf], w.scope, ref, mls.LeafIndex(leaf), ref[:])
				if err != nil {
					w.tb.Fatal(err)
				}
				w.post(s, applied)
			})
		}
	}
}

// commit lets a member commit, and sends an ordinary event from the same place.
func (w *costWorld) commit(n int) {
	leaf := uint32(n*7) % uint32(w.members) // another server each time
	s := w.all[leaf/costPerServer]
	parent, ok := s.clients.Known(s.clients.UsableHead())
	c := &federation.Commit{Ref: sha256.Sum256(binary.BigEndian.AppendUint32([]byte("cost"), uint32(n))), Parent: s.clients.UsableHead(), Epoch: 1,
		Author: leaf, AuthorUser: costUser(int(leaf)), Updated: []federation.Leaf{{Index: leaf, User: costUser(int(leaf)), Key: w.keys[leaf].Public()}}}
	if ok {
		c.Epoch = parent.Epoch + 1
	}
	w.sentAt[c.Ref] = w.now
	var last time.Duration
	for to := range w.all {
		last = max(last, w.hop(s.index, to))
	}
	w.figures.bare = append(w.figures.bare, last)
	w.post(s, c)
}

func (w *costWorld) runUntil(end time.Duration) {
	for len(w.queue) > 0 && w.queue[0].at <= end {
		ev := heap.Pop(&w.queue).(costEvent)
		w.now = ev.at
		ev.do()
	}
	w.now = end
}

// run makes the commits, waits until all are final, and watches the idle room.
func (w *costWorld) run() *costFigures {
	for n := range w.commits {
		w.at(time.Duration(n+1)*w.pace, func() { w.commit(n) })
	}
	end := time.Duration(w.commits+1) * w.pace
	for ; len(w.figures.final) < w.commits; end += time.Second {
		if end > time.Duration(w.commits+1)*w.pace+2*time.Minute {
			w.tb.Fatalf("%d servers, %d sequencers: %d of %d commits are final", w.servers, w.list, len(w.figures.final), w.commits)
		}
		w.runUntil(end)
	}
	w.runUntil(end + 10*time.Second) // votes that are under way, as those of who is not needed for a quorum
	busy := w.figures.total()
	for _, s := range w.all { // a driver ticks at least once a second, whatever Next says
		if s.module == nil {
			continue
		}
		for t := w.now; t < w.now+costIdle; t += time.Second {
			w.at(t, func() { w.tick(s) })
		}
	}
	w.runUntil(w.now + costIdle)
	w.figures.idle = w.figures.total() - busy
	return &w.figures
}

func (f *costFigures) total() int {
	sum := 0
	for _, n := range f.sent {
		sum += n
	}
	return sum
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

// costCommitSize is how large the content of a commit is that one member of a
// group makes whose tree is full: everybody's path is there.
func costCommitSize(tb testing.TB, members int, list federation.List) int {
	tb.Helper()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	policy := rooms.DefaultPolicy("!cost:s0.example.org", id.UserID(costUser(0)), list...)
	var senders []mls.ExternalSender
	for _, s := range list {
		senders = append(senders, mls.ExternalSender{SignatureKey: s.ReceiptKey, Credential: mls.BasicCredential([]byte(s.User))})
	}
	extensions, err := rooms.GroupExtensions(policy, senders)
	must(err)
	bundle := func(i int) (*mls.KeyPackageBundle, mls.SignaturePrivateKey) {
		key, err := mls.GenerateSignatureKey(costSuite, rand.Reader)
		must(err)
		cred := rooms.Credential{User: id.UserID(costUser(i)), Device: "DEVICE", Key: key.Public()}
		b, err := mls.NewKeyPackage(nil, costSuite, key, rooms.LeafOptions(cred))
		must(err)
		return b, key
	}
	_, key := bundle(0)
	cred := rooms.Credential{User: id.UserID(costUser(0)), Device: "DEVICE", Key: key.Public()}
	founder, err := mls.CreateGroup(nil, costSuite, bytes.Repeat([]byte{1}, rooms.GroupIDSize), key, rooms.LeafOptions(cred), extensions)
	must(err)
	o := mls.CommitOptions{}
	bundles := make([]*mls.KeyPackageBundle, members)
	for i := 1; i < members; i++ {
		bundles[i], _ = bundle(i)
		m, err := mls.ParseMessage(bundles[i].Message())
		must(err)
		o.Proposals = append(o.Proposals, mls.Add(m.KeyPackage()))
	}
	staged, err := founder.Commit(o)
	must(err)
	groups := []*mls.Group{staged.Merge()}
	// The first leaf of each subtree beside the path of leaf 0 commits once.
	for i := 1; i < members; i *= 2 {
		raw, err := staged.WelcomeFor(bundles[i].Ref())
		must(err)
		m, err := mls.ParseMessage(raw)
		must(err)
		g, err := mls.JoinWelcome(nil, m, bundles[i], mls.JoinOptions{RatchetTree: groups[0].RatchetTree()})
		must(err)
		groups = append(groups, g)
	}
	for turn := len(groups) - 1; turn >= 0; turn-- {
		if staged, err = groups[turn].Commit(mls.CommitOptions{ForcePath: true}); err != nil {
			tb.Fatal(err)
		}
		for i, g := range groups {
			if i == turn {
				groups[i] = staged.Merge()
				continue
			}
			m, err := mls.ParseMessage(staged.Message())
			must(err)
			p, err := g.Process(m)
			must(err)
			groups[i] = p.(*mls.StagedCommit).Merge()
		}
	}
	info, err := staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
	must(err)
	content := &rooms.CommitContent{Epoch: 2, Parent: rooms.Hash{1}, ParentEvent: "$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}
	content.SetInline(&rooms.CommitBundle{Message: staged.Message(), GroupInfo: info})
	raw, err := rooms.Encode(content)
	must(err)
	return len(raw)
}

// costPaces are how often somebody commits: so rarely that each commit is final
// before the next, and so often that votes are batched.
var costPaces = []costCase{{pace: time.Minute, commits: 20}, {pace: time.Second, commits: 30}}

// TestCost holds a room of three servers to what it may cost.
func TestCost(t *testing.T) {
	for _, c := range costPaces {
		c.servers, c.list = 3, 3
		t.Run(fmt.Sprintf("pace=%v", c.pace), func(t *testing.T) {
			f := newCostWorld(t, c).run()
			t.Logf("%v, epochs after %v, final after %v, votes at least %v apart", f.sent, median(f.epoch), median(f.final), f.voteGap)
			if f.sent[rooms.TypeAccept] != c.commits {
				t.Errorf("%d accepts for %d commits", f.sent[rooms.TypeAccept], c.commits)
			}
			if f.sent[rooms.TypeApplied] > c.commits {
				t.Errorf("%d statements for %d commits", f.sent[rooms.TypeApplied], c.commits)
			}
			if f.voteGap < 5*time.Second {
				t.Errorf("a module sent two votes within %v", f.voteGap)
			}
			if others := f.total() - f.sent[rooms.TypeCommit] - f.sent[rooms.TypeAccept] - f.sent[rooms.TypeApplied] - f.sent[rooms.TypeVote]; others > 0 || f.idle > 0 {
				t.Errorf("%d other events, %d in the idle room", others, f.idle)
			}
			if m := median(f.epoch); 2*m > 5*median(f.bare) {
				t.Errorf("an epoch takes %v, a bare event %v", m, median(f.bare))
			}
		})
	}
}

// BenchmarkCost reports what commits cost in rooms of many servers. It measures no
// time: once is enough (-benchtime 1x).
func BenchmarkCost(b *testing.B) {
	for _, c := range costPaces {
		for _, list := range []int{3, 16} {
			for _, servers := range []int{3, 5, 10, 20, 50, 100} {
				c.servers, c.list = servers, min(list, servers)
				b.Run(fmt.Sprintf("pace=%v/list=%d/servers=%d", c.pace, list, servers), func(b *testing.B) {
					var f *costFigures
					for b.Loop() {
						f = newCostWorld(b, c).run()
					}
					b.ReportMetric(0, "ns/op")
					b.ReportMetric(f.perCommit(f.sent), "events/commit")
					b.ReportMetric(f.perCommit(f.bytes), "B/commit")
					b.ReportMetric(f.perCommit(f.bytes, rooms.TypeCommit), "B-itself/commit")
					b.ReportMetric(f.perCommit(f.sent, rooms.TypeAccept), "accepts/commit")
					b.ReportMetric(f.perCommit(f.sent, rooms.TypeApplied), "applied/commit")
					b.ReportMetric(f.perCommit(f.sent, rooms.TypeVote), "votes/commit")
					b.ReportMetric(float64(median(f.epoch))/float64(costHop), "hops-to-epoch")
					b.ReportMetric(float64(median(f.bare))/float64(costHop), "hops-bare")
					b.ReportMetric(median(f.final).Seconds(), "s-to-final")
					b.ReportMetric(float64(f.idle), "events-idle")
				})
			}
		}
	}
}
