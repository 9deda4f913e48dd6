package appservice

import (
	"strings"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// wantMetric compares a metric at each of some servers.
func (w *world) wantMetric(when string, want float64, name string, labels []string, servers ...int) {
	w.t.Helper()
	for _, i := range servers {
		if got := w.servers[i].metric(name, labels...); got != want {
			w.t.Errorf("%s, server %d: %s%v = %v, want %v", when, i, name, labels, got, want)
		}
	}
}

// reject posts a member's word that it could not apply a commit.
func (r *worldRoom) reject(d *device, c *madeCommit) {
	r.t.Helper()
	g := r.groups[d][r.parents[c.ref]]
	reject, err := rooms.SignReject(engineSuite, d.key, federation.Scope{Room: string(r.id), Group: g.GroupID()}, c.ref, g.OwnLeafIndex(), "commit/confirmation-tag")
	must(r.t, err)
	raw, err := rooms.Encode(rooms.RejectOf(reject))
	must(r.t, err)
	r.w.servers[r.w.at(d)].hs.add(r.id, d.cred.User, rooms.TypeReject, nil, raw)
}

// TestTroubleIsCounted brings about what the alerts of contrib look at and
// TestSequencersCountWhatHappens does not: a commit in doubt, a frozen room, a new era
// and a liar. What the module says of the room names them, too.
func TestTroubleIsCounted(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(3, func(p *rooms.Policy) { p.OnPartition = federation.OnPartitionFreeze })
	all := []int{0, 1, 2}
	w.wantMetric("before", 0, metrics.Doubts, nil, all...)

	bad := r.update(r.head, 1)
	w.run(time.Second)
	r.reject(r.devices[2], bad)
	good := r.update(r.head, 2)
	w.run(10 * time.Second)
	r.apply(good)
	r.vouch(r.devices[0], good.ref)
	w.run(15 * time.Second)
	r.wantHead(good.ref)
	r.head = good.ref
	w.wantMetric("a commit in doubt", 1, metrics.Doubts, nil, all...)

	// Two modules are gone: what is accepted does not become final, and nobody uses it.
	w.stop(1)
	w.stop(2)
	r.update(r.head, 0)
	w.run(2 * time.Minute)
	if m := w.servers[0].machine(r.id); m.NewestFinal() == m.Head() {
		t.Fatalf("nothing waits to be final:\n%s", r.drawn(0))
	}
	w.wantMetric("frozen", 1, metrics.RoomsTroubled, []string{troubleFrozen}, 0)
	r.wantDrawn(0, "Frozen: members send in epoch ")
	w.wantMetric("frozen", 0, metrics.Eras, nil, 0)

	// The creator opens an era with the module that is left.
	by := r.devices[0]
	policy, err := rooms.PolicyOf(r.groups[by][r.head])
	must(t, err)
	head := w.keys(r.id, 0)
	policy.Sequencers = []federation.Sequencer{{Server: w.name(0), User: string(w.bot(0)), ReceiptKey: head.ReceiptKey}}
	sender, err := rooms.ModuleSender(w.bot(0), head, engineSuite)
	must(t, err)
	exts, err := rooms.GroupExtensions(policy, []mls.ExternalSender{sender})
	must(t, err)
	era := r.commitOn(r.head, by, rooms.CommitAAD{Era: 1}, mls.CommitOptions{Proposals: []mls.Proposal{mls.GroupContextExtensions(exts)}})
	w.run(time.Second)
	r.apply(era)
	r.vouch(r.devices[1], era.ref)
	w.run(2 * time.Minute)
	w.wantMetric("a new era", 1, metrics.Eras, nil, 0)
	w.wantMetric("a new era", 0, metrics.RoomsTroubled, []string{troubleFrozen}, 0)
	r.wantDrawn(0, "opens era 1, ordered by s0.test")

	// One of the two signed two promises for one ballot.
	config, _ := w.servers[0].machine(r.id).ConfigAt(r.head)
	e := w.servers[1].e
	key := e.receiptKey(e.rooms[r.id])
	for n := range 2 {
		p := &federation.Promise{Config: config, Ballot: federation.Ballot{Round: 900, Rank: 1}, Promiser: 1, Chain: federation.Chain{Counter: uint64(5000 + n), Prev: federation.Ref{1}}}
		must(t, p.Sign(federation.Scope{Room: string(r.id)}, key))
		kind, content := rooms.ReceiptOf(p)
		raw, err := rooms.Encode(content)
		must(t, err)
		w.servers[1].hs.add(r.id, w.bot(1), kind, nil, raw)
	}
	w.run(10 * time.Second)
	kind := []string{string(federation.EvidencePromises)}
	w.wantMetric("a liar", 1, metrics.Evidence, kind, 0)
	r.wantDrawn(0, "Caught lying: s1.test signed two promises for one ballot.")
}

// drawn is the picture that a module draws of the room.
func (r *worldRoom) drawn(server int) string {
	r.t.Helper()
	s := r.w.servers[server]
	p, err := EpochPicture(s.ctx, s.st, r.id, r.w.name(server), 0)
	must(r.t, err)
	return p.Text()
}

// wantDrawn looks for words in the picture that a module draws of the room.
func (r *worldRoom) wantDrawn(server int, words string) {
	r.t.Helper()
	text := r.drawn(server)
	if flat := strings.Join(strings.Fields(strings.ReplaceAll(text, "|", " ")), " "); !strings.Contains(flat, words) {
		r.t.Errorf("server %d does not draw %q:\n%s", server, words, text)
	}
}

// TestUnvouchedRoomsAreCounted: whoever could vouch for a commit leaves before doing
// so, and the module says that nothing becomes final any more.
func TestUnvouchedRoomsAreCounted(t *testing.T) {
	w := sqliteWorld(t, 2)
	r := w.newRoom(1, nil)
	alone := []string{troubleUnvouched}
	waits := r.update(r.head, 0)
	w.run(2 * time.Minute)
	r.apply(waits)
	w.wantMetric("while somebody may vouch", 0, metrics.RoomsTroubled, alone, 0, 1)
	leaf := r.groups[r.devices[1]][waits.ref].OwnLeafIndex()
	gone := r.commitOn(waits.ref, r.devices[0], rooms.CommitAAD{}, mls.CommitOptions{Proposals: []mls.Proposal{mls.Remove(leaf)}})
	w.run(30 * time.Second)
	heads, _ := r.heads()
	for i, head := range heads {
		if head != gone.ref {
			t.Fatalf("server %d: head %s, want %s", i, head.Short(), gone.ref.Short())
		}
	}
	w.wantMetric("at once", 0, metrics.RoomsTroubled, alone, 0, 1)
	w.run(2 * time.Minute)
	w.wantMetric("after a while", 1, metrics.RoomsTroubled, alone, 0, 1)
	s := w.servers[0]
	text, err := RoomText(s.ctx, s.st, r.id)
	must(t, err)
	if want := "unvouched: whoever could vouch for " + waits.ref.Short() + " has left"; !strings.Contains(text, want) {
		t.Errorf("the module says of the room:\n%s\nwant %q", text, want)
	}
	r.vouch(r.devices[1], waits.ref) // his word was under way
	w.run(30 * time.Second)
	w.wantMetric("a late word", 0, metrics.RoomsTroubled, alone, 0, 1)
}
