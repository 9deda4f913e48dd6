package appservice

import (
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// name has the bot of a server say in its head that it knows these receipts.
func (r *worldRoom) name(by int, marks ...rooms.ReceiptRef) {
	r.t.Helper()
	w := r.w
	head := w.keys(r.id, by)
	head.Receipts, head.Proof, head.ProofFile = marks, nil, nil // votes stand in the proof, too
	raw, err := rooms.Encode(head)
	must(r.t, err)
	w.servers[by].hs.state(r.id, w.bot(by), rooms.TypeHead, string(w.bot(by)), raw)
}

// A module that lies names a receipt of another's key that there is none of. That
// module goes on to sign: while it runs and after a start.
func TestSequencersAreNotSilencedByMadeUpReceipts(t *testing.T) {
	for _, n := range []int{2, 3, 4} {
		t.Run(fmt.Sprintf("%d in the list", n), func(t *testing.T) {
			w := sqliteWorld(t, n)
			r := w.newRoom(n, nil)
			w.run(2 * time.Minute)
			liar := n - 1
			key := w.keys(r.id, 1%liar).ReceiptKey
			if n > 2 { // of two it takes both to make anything final
				w.stop(liar)
			}
			r.name(liar, rooms.ReceiptRef{Key: key, Counter: 1 << 40, Hash: rooms.Hash{7}})
			w.run(time.Minute)
			check := func(when string) {
				t.Helper()
				r.advance(0, 1)
				w.run(time.Minute)
				m := w.servers[1%liar].machine(r.id)
				if !m.Listed() {
					t.Fatalf("%s: a name retired the key", when)
				}
				if got := m.NewestFinal(); got != r.head {
					t.Errorf("%s: final is %s, want %s", when, got.Short(), r.head.Short())
				}
			}
			check("while it runs")
			r.name(liar, rooms.ReceiptRef{Key: key, Counter: 1 << 41, Hash: rooms.Hash{8}})
			w.stop(1 % liar)
			w.run(time.Minute)
			w.restart(1 % liar)
			w.run(nameWait + time.Minute)
			check("after a start")
			r.wantHonest()
		})
	}
}

// setBack brings a server, with its module, back to what its database was when it was
// copied. Of what came since it has the newest heads alone; what it signed is returned.
func (r *worldRoom) setBack(server int, old store.Config, since int) (signed []*homeserver.Event) {
	r.t.Helper()
	w, home := r.w, r.w.servers[server].hs
	later := make(map[id.EventID]bool)
	for _, ev := range home.rooms[r.id][since:] {
		later[ev.ID] = true
		if ev.Sender == w.bot(server) && ev.Type == rooms.TypeVote {
			signed = append(signed, ev)
		}
	}
	home.hide = func(ev *homeserver.Event) bool { return later[ev.ID] }
	for i := range w.servers {
		w.stop(i)
	}
	w.restore(server, old)
	return signed
}

// One head that shows a receipt which the database does not hold is enough: nobody is
// there to post it again, and what it is about never comes.
func TestSequencersHeedAReceiptThatAHeadShows(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(3, nil)
	w.run(2 * time.Minute)
	old, since := w.servers[1].copyDatabase(false), len(w.servers[1].hs.rooms[r.id])
	r.advance(2, 1)
	w.run(2 * time.Minute)
	for i := range w.servers {
		w.stop(i)
	}
	r.name(0)
	r.name(2, w.keys(r.id, 2).Receipts...)
	w.run(time.Second)
	w.servers[1].hs.pushed = nil
	signed := r.setBack(1, old, since)
	before := r.byType(w.bot(1))
	r.update(r.head, 1)
	w.run(20 * time.Minute)
	if w.servers[1].machine(r.id).Listed() {
		t.Error("a head shows a receipt that the database does not hold, and the key still stands")
	}
	got := diffCounts(before, r.byType(w.bot(1)))
	delete(got, rooms.TypeHead)
	delete(got, rooms.TypeRequest)
	if len(signed) == 0 || len(got) > 0 {
		t.Errorf("a module that was set back by %d votes posted %v", len(signed), got)
	}
	r.wantHonest()
}

// What a head names and does not show may be as real, and is waited for.
func TestSequencersWaitForAReceiptThatAHeadNames(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(3, nil)
	w.run(2 * time.Minute)
	old, since := w.servers[1].copyDatabase(false), len(w.servers[1].hs.rooms[r.id])
	r.advance(2, 1)
	w.run(2 * time.Minute)
	for i := range w.servers {
		w.stop(i)
	}
	last := r.receipts(1, rooms.TypeVote)
	vote, err := rooms.DecodeReceipt(rooms.TypeVote, "", last[len(last)-1].Content)
	must(t, err)
	receipt := vote.(federation.Receipt)
	hash := rooms.Hash(receipt.Hash(federation.Scope{Room: string(r.id)}))
	for _, by := range []int{0, 2} {
		r.name(by, rooms.ReceiptRef{Key: w.keys(r.id, 1).ReceiptKey, Counter: receipt.Link().Counter, Hash: hash})
	}
	w.run(time.Second)
	w.servers[1].hs.pushed = nil
	r.setBack(1, old, since)
	before := r.byType(w.bot(1))
	r.update(r.head, 1)
	w.run(nameWait - 30*time.Second)
	got := diffCounts(before, r.byType(w.bot(1)))
	delete(got, rooms.TypeRequest)
	if len(got) > 0 {
		t.Errorf("while a receipt was looked for the module posted %v", got)
	}
	again, err := rooms.Encode(&rooms.RepostContent{Type: rooms.TypeVote, Sender: w.bot(1), Event: last[len(last)-1].ID, Content: last[len(last)-1].Content})
	must(t, err)
	w.servers[0].hs.add(r.id, w.bot(0), rooms.TypeRepost, nil, again)
	w.run(20 * time.Minute)
	if w.servers[1].machine(r.id).Listed() {
		t.Error("the receipt that was named came, and the key still stands")
	}
	r.wantHonest()
}
