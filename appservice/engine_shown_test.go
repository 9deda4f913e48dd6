package appservice

import (
	"slices"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// keepToItself lets nothing of a module reach the others from now on but its heads.
func (w *world) keepToItself(i int) {
	w.refuse = func(_ int, ev *homeserver.Event) bool {
		return ev.Sender == w.bot(i) && ev.Type != rooms.TypeHead
	}
}

// stands fails unless the modules of some servers have a head, and it is final.
func (r *worldRoom) stands(want federation.Ref, servers ...int) {
	r.t.Helper()
	for _, i := range servers {
		if m := r.w.servers[i].machine(r.id); m.Head() != want || m.NewestFinal() != want {
			r.t.Errorf("server %d: head %s, final %s, want %s", i, m.Head().Short(), m.NewestFinal().Short(), want.Short())
		}
	}
}

// TestEngineTakesReceiptsFromHeads: a module that keeps its accepts and votes to itself
// and publishes heads above them is followed by the others, as members follow it.
func TestEngineTakesReceiptsFromHeads(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(1, nil)
	w.run(2 * time.Minute)
	w.keepToItself(0)
	for range 3 {
		r.advance(0, 1)
	}
	w.run(2 * time.Minute)
	w.stop(0) // nobody can post them again but who took them
	r.stands(r.head, 1, 2)
	if len(r.receipts(0, rooms.TypeAccept)) == 0 || len(r.receipts(0, rooms.TypeVote)) == 0 {
		t.Error("no accept or vote was sent: the test proves nothing")
	}
	for _, i := range []int{1, 2} { // and keeps them for those who come later
		rows, err := w.servers[i].st.Receipts(w.servers[i].ctx, r.id)
		must(t, err)
		if !slices.ContainsFunc(rows, func(row *store.Receipt) bool {
			return row.Ref == r.head.String() && row.Kind == "vote" && row.Signer == string(w.bot(0))
		}) {
			t.Errorf("server %d does not keep the vote for %s", i, r.head.Short())
		}
	}
	w.run(time.Hour) // in which they ask each other for what else it signed
	r.wantSilence()
}

// TestEngineTakesAListChangeFromAHead: a module alone in the list accepts and votes for
// a list without itself, keeps that to itself, shows it in a head and is lost for good.
// The modules of the new list go on.
func TestEngineTakesAListChangeFromAHead(t *testing.T) {
	for _, tc := range []struct {
		above bool
		after time.Duration
	}{{false, 5 * time.Second}, {true, 5 * time.Second}, {true, 30 * time.Second}} {
		above := tc.above
		w := sqliteWorld(t, 3)
		r := w.newRoom(1, nil)
		w.run(2 * time.Minute)
		w.keepToItself(0)
		c := r.relist(1, 2)
		w.run(tc.after) // after the longer one the list change is accepted, and its list the head's
		if above {      // what it published is no more than that the list change is accepted
			r.apply(c)
			r.vouch(r.devices[1], c.ref)
			r.head = c.ref
		}
		w.run(3 * time.Minute)
		w.stop(0)
		if !above {
			r.apply(c)
			r.vouch(r.devices[1], c.ref)
			r.head = c.ref
			w.run(time.Minute)
			for _, i := range []int{1, 2} {
				if m := w.servers[i].machine(r.id); m.Final(c.ref) || !m.Accepted(c.ref) {
					t.Errorf("server %d: the list change is final %v, accepted %v", i, m.Final(c.ref), m.Accepted(c.ref))
				}
			}
			continue
		}
		r.stands(c.ref, 1, 2)
		r.advance(1, 2)
		w.run(time.Minute)
		r.stands(r.head, 1, 2)
		r.wantHonest()
	}
}

// TestEngineTakesNoReceiptsFromStrangersHeads: of heads that show more without proving
// it, or that are not of the list, nothing stays, and they are looked at for a while only.
func TestEngineTakesNoReceiptsFromStrangersHeads(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(1, nil)
	w.run(2 * time.Minute)
	before := r.head
	w.refuse = func(_ int, ev *homeserver.Event) bool { return ev.Sender == w.bot(0) }
	c := r.update(r.head, 0)
	w.run(2 * time.Minute)
	r.stands(before, 1, 2) // nothing tells them
	head := w.keys(r.id, 0)
	if len(head.Proof) == 0 || head.Accepted.Ref != rooms.Hash(c.ref) {
		t.Fatalf("the head of server 0 proves nothing of %s", c.ref.Short())
	}
	key := w.servers[0].e.receiptKey(w.servers[0].e.rooms[r.id])
	// signed is the head of server 0 with another accept, or a vote, that it signed.
	signed := func(sign func(chain *rooms.ProofChain) federation.Receipt) func() *rooms.HeadContent {
		return func() *rooms.HeadContent {
			chain, err := rooms.DecodeProof(head.Proof)
			must(t, err)
			must(t, sign(chain).Sign(federation.Scope{Room: string(r.id)}, key))
			forged := *head
			forged.Proof = chain.Encode()
			return &forged
		}
	}
	for name, test := range map[string]struct {
		by     func() *rooms.HeadContent
		sender int
	}{
		"an accept with a number that JSON does not hold": {signed(func(chain *rooms.ProofChain) federation.Receipt {
			chain.Accept.Chain.Counter = 1 << 60
			return chain.Accept
		}), 0},
		"an accept that is the first and not the first": {signed(func(chain *rooms.ProofChain) federation.Receipt {
			chain.Accept.Chain = federation.Chain{Counter: 1, Prev: federation.Ref{7}}
			return chain.Accept
		}), 0},
		"a vote with a number that JSON does not hold": {signed(func(chain *rooms.ProofChain) federation.Receipt {
			chain.Accept.Signature = make([]byte, 64) // of these two only the vote can count
			v := chain.Steps[len(chain.Steps)-1].Votes[0]
			v.Chain = federation.Chain{Counter: 1 << 60, Prev: federation.Ref{7}}
			return v
		}), 0},
		"another's of the list": {func() *rooms.HeadContent { return head }, 2},
		"with another's signature": {func() *rooms.HeadContent {
			chain, err := rooms.DecodeProof(head.Proof)
			must(t, err)
			chain.Accept.Signature = slices.Clone(chain.Accept.Signature)
			chain.Accept.Signature[7] ^= 1
			forged := *head
			forged.Proof = chain.Encode()
			return &forged
		}, 0},
		"no proof chain": {func() *rooms.HeadContent {
			forged := *head
			forged.Proof = []byte("something else")
			return &forged
		}, 0},
	} {
		raw, err := rooms.Encode(test.by())
		must(t, err)
		w.servers[1].hs.state(r.id, w.bot(test.sender), rooms.TypeHead, string(w.bot(test.sender)), raw)
		rested := false
		for range 60 {
			w.run(10 * time.Second)
			rested = rested || len(w.servers[1].e.rooms[r.id].shown) == 0
		}
		m := w.servers[1].machine(r.id)
		if got := m.Head(); got != before {
			t.Errorf("%s: the module is at %s, want %s", name, got.Short(), before.Short())
		}
		for _, mark := range m.NewestReceipts() {
			if mark.Counter >= 1<<53 {
				t.Errorf("%s: the module names receipt %d in its own heads, which no homeserver takes", name, mark.Counter)
			}
		}
		if !rested {
			t.Errorf("%s: for ten minutes it was looked at again and again", name)
		}
	}
	// It is the signature and the sender that was missing.
	raw, err := rooms.Encode(head)
	must(t, err)
	w.servers[1].hs.state(r.id, w.bot(0), rooms.TypeHead, string(w.bot(0)), raw)
	w.run(10 * time.Second)
	if got := w.servers[1].machine(r.id).Head(); got != c.ref {
		t.Errorf("with the whole head the module is at %s, want %s", got.Short(), c.ref.Short())
	}
}
