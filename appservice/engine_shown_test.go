package appservice

import (
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
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
			rested = rested || w.servers[1].e.rooms[r.id].looks.Next() == 0
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
	w.run(4 * time.Minute) // after so much in vain it is not looked at in seconds
	if got := w.servers[1].machine(r.id).Head(); got != c.ref {
		t.Errorf("with the whole head the module is at %s, want %s", got.Short(), c.ref.Short())
	}
}

// renew makes an era of the creator whose list is the modules of some servers.
func (r *worldRoom) renew(servers ...int) *madeCommit {
	r.t.Helper()
	return r.commitOn(r.head, r.devices[0], rooms.CommitAAD{Era: 1}, mls.CommitOptions{Proposals: []mls.Proposal{r.listed(servers...)}})
}

// TestEngineTakesReceiptsFromAHeadOfANewEra: a module whose head came before the era
// that names it is looked at when the era counts: what it accepted, kept to itself and
// showed in a head before it was lost is followed.
func TestEngineTakesReceiptsFromAHeadOfANewEra(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(1, nil)
	w.run(2 * time.Minute)
	w.stop(0)
	w.refuse = func(at int, ev *homeserver.Event) bool {
		return at == 2 && (ev.Type == rooms.TypeApplied || ev.Sender == w.bot(1) && ev.Type != rooms.TypeHead)
	}
	era := r.renew(1)
	w.run(time.Second)
	r.apply(era)
	r.vouch(r.devices[1], era.ref)
	r.head = era.ref
	w.run(time.Second)
	c := r.update(era.ref, 0)
	w.run(2 * time.Minute) // server 2 sees the head, and no word that the era was applied
	if got := w.servers[1].machine(r.id).Head(); got != c.ref {
		t.Fatalf("server 1 is at %s, want %s: the test proves nothing", got.Short(), c.ref.Short())
	}
	if got := w.servers[2].machine(r.id).Head(); got == era.ref || got == c.ref {
		t.Fatalf("server 2 follows the era already: the test proves nothing")
	}
	w.stop(1)
	r.vouch(r.devices[2], era.ref)
	w.run(2 * rooms.LookWait) // not only once it reads the room's state anew
	if got := w.servers[2].machine(r.id).Head(); got != c.ref {
		t.Errorf("server 2 is at %s, want %s", got.Short(), c.ref.Short())
	}
}

// looksAgain reports whether a head that the module was done with will be looked at.
func (m *module) looksAgain(room id.RoomID, sender id.UserID) bool {
	return slices.Contains(m.e.rooms[room].looks.Due(m.now+time.Hour), sender)
}

// knowHead gives the module another module's head, and has it be done with it.
func (m *module) knowHead(room id.RoomID, sender id.UserID) {
	m.t.Helper()
	m.e.rooms[room].noteHead(sender, &rooms.HeadContent{}, m.now)
	m.settleFor(time.Minute)
	if m.looksAgain(room, sender) {
		m.t.Fatal("the module is not done with the head")
	}
}

// TestEngineLooksAtHeadsAgainInAnotherGroup: what a head shows of the next group counts
// once that is final, and of a group that the module begins with in the place of another.
func TestEngineLooksAtHeadsAgainInAnotherGroup(t *testing.T) {
	const other = id.UserID("@_mls_bot:far.test")
	t.Run("founded anew", func(t *testing.T) {
		m, r, _, b := pair(t, storetest.SQLite(t))
		closing, next := r.close(nextSuite)
		r.post(closing)
		m.settle()
		r.merge(closing)
		r.vouchFor(b)
		m.settleFor(10 * time.Second)
		founding := r.refound(r.members[1], next, nil)
		r.post(founding)
		m.settle()
		r.enter(founding, next)
		m.settle()
		if got := m.machine(r.id); got.Head() != founding.ref || got.NewestFinal() == founding.ref {
			t.Fatal("the founding is not the head, or is final: the test proves nothing")
		}
		m.knowHead(r.id, other)
		r.vouchFor(next[0])
		for range 10 { // the vote may take some seconds
			if m.settleFor(time.Second); m.machine(r.id).NewestFinal() == founding.ref {
				break
			}
		}
		if got := m.machine(r.id).NewestFinal(); got != founding.ref {
			t.Fatal("the founding is not final")
		}
		if !m.looksAgain(r.id, other) {
			t.Error("the head is not looked at again")
		}
	})
	t.Run("begun with another group", func(t *testing.T) {
		hs := newRoomHS()
		m := newModule(t, storetest.SQLite(t), hs)
		r := newRoom(t, hs, "!room:mls.test")
		m.settle()
		hs.state(r.id, alice, rooms.TypeHead, string(alice), r.forgedHead(m, alice, alice, 40))
		m.start()
		m.settleFor(5 * time.Second)
		m.knowHead(r.id, other)
		forged := m.machine(r.id).Head()
		r.found()
		m.settle()
		if m.machine(r.id).Head() == forged {
			t.Fatal("the module follows the forged group on")
		}
		if !m.looksAgain(r.id, other) {
			t.Error("the head is not looked at again")
		}
	})
}

// countStatements has the statements counted whose signatures the module checks in a room.
func (m *module) countStatements(room id.RoomID) (checked *int) {
	m.t.Helper()
	r := m.e.rooms[room]
	raw, err := r.m.MarshalBinary()
	must(m.t, err)
	cfg, checked := m.e.machineConfig(r), new(int)
	cfg.Verify = func(suite uint16, key, content, sig []byte) error {
		*checked++
		return rooms.VerifyLeafSignature(suite, key, content, sig)
	}
	r.m, err = federation.Unmarshal(cfg, raw)
	must(m.t, err)
	_, err = r.m.Step(federation.Resume{})
	must(m.t, err)
	return checked
}

// TestEngineChecksLittleOfAHeadThatMovesOnAndOn: a module whose head changes every
// second, each time with other forged statements, is looked at more and more seldom.
// Once it shows what is true, that is taken all the same.
func TestEngineChecksLittleOfAHeadThatMovesOnAndOn(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(1, nil)
	w.run(2 * time.Minute)
	before := r.head
	w.refuse = func(_ int, ev *homeserver.Event) bool { return ev.Sender == w.bot(0) }
	c := r.update(before, 0)
	w.run(2 * time.Minute)
	w.stop(0)
	head := w.keys(r.id, 0)
	key := w.servers[0].e.receiptKey(w.servers[0].e.rooms[r.id])
	checked := w.servers[1].countStatements(r.id)
	show := func(head *rooms.HeadContent) {
		raw, err := rooms.Encode(head)
		must(t, err)
		w.servers[1].hs.state(r.id, w.bot(0), rooms.TypeHead, string(w.bot(0)), raw)
	}
	const each, times = 30, 600
	for n := range times {
		chain, err := rooms.DecodeProof(head.Proof)
		must(t, err)
		v := chain.Steps[len(chain.Steps)-1].Votes[0]
		v.Chain = federation.Chain{Counter: uint64(1000 + n), Prev: federation.Ref{7}}
		v.Proofs = nil
		for i := range each {
			v.Proofs = append(v.Proofs, federation.Proof{Applied: &federation.Applied{
				Ref: before, Hash: [32]byte{1, byte(n >> 8), byte(n), byte(i)}, Signature: make([]byte, 64),
			}})
		}
		must(t, v.Sign(federation.Scope{Room: string(r.id)}, key))
		chain.Accept.Signature = make([]byte, 64)
		forged := *head
		forged.Proof = chain.Encode()
		show(&forged)
		w.run(time.Second)
	}
	if *checked == 0 {
		t.Fatal("no statement was checked: the test proves nothing")
	}
	if most := 10 * each; *checked > most {
		t.Errorf("%d statements were checked in ten minutes, want at most %d", *checked, most)
	}
	if got := w.servers[1].machine(r.id).Head(); got != before {
		t.Fatalf("the module is at %s: the test proves nothing", got.Short())
	}
	show(head)
	w.run(5 * time.Minute)
	if got := w.servers[1].machine(r.id).Head(); got != c.ref {
		t.Errorf("with the whole head the module is at %s, want %s", got.Short(), c.ref.Short())
	}
}
