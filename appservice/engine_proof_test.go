package appservice

import (
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// proven checks what the newest head of a server's module proves.
func (r *worldRoom) proven(server int) (*rooms.Proven, error) {
	r.t.Helper()
	head := r.w.keys(r.id, server)
	raw := []byte(head.Proof)
	if head.ProofFile != nil {
		raw = r.w.servers[server].hs.media[head.ProofFile.MXC]
	}
	return head.Check(r.id, raw)
}

// anew gives a server's module an empty database. Nothing that came so far is in the
// history that its homeserver shows.
func (w *world) anew(room id.RoomID, server int) {
	w.t.Helper()
	w.stop(server)
	s := w.servers[server]
	early := make(map[id.EventID]bool)
	for _, ev := range s.hs.rooms[room] {
		early[ev.ID] = true
	}
	s.hs.hide = func(ev *homeserver.Event) bool { return early[ev.ID] }
	s.seed += 100
	w.restore(server, storetest.SQLite(w.t))
	must(w.t, s.st.NoteRoom(s.ctx, room, store.RoomJoined))
}

// TestEngineProvesWhatOthersProved: a module that came late has not seen the group's
// beginning, and goes on from what another module's head proves of the way there: also
// once it alone is left, and after a start.
func TestEngineProvesWhatOthersProved(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(1, nil)
	w.run(2 * time.Minute)
	w.anew(r.id, 2)
	w.run(2 * time.Minute)
	if got := w.servers[2].machine(r.id).Base(); got != r.head {
		t.Fatalf("the module began at %s, want %s", got.Short(), r.head.Short())
	}
	wantProof := func(when string) {
		t.Helper()
		got, err := r.proven(2)
		if err != nil || got.Final != r.head {
			t.Errorf("%s: its head does not prove the newest final commit: %v", when, err)
		}
	}
	r.advance(1, 0)
	w.run(3 * time.Minute)
	wantProof("with another's proof")
	// It comes into the list, and the other is lost.
	list := r.relist(0, 2)
	w.run(5 * time.Second)
	r.apply(list)
	r.vouch(r.devices[1], list.ref)
	r.head = list.ref
	w.run(3 * time.Minute)
	wantProof("in the list")
	w.stop(0)
	era := r.renew(2)
	w.run(time.Second)
	r.apply(era)
	r.vouch(r.devices[1], era.ref)
	r.head = era.ref
	r.advance(1, 0)
	w.run(3 * time.Minute)
	wantProof("in an era of its own")
	w.restart(2)
	w.run(time.Minute)
	r.advance(1, 0)
	w.run(3 * time.Minute)
	wantProof("after a start")
}

// TestEngineProvesAnEraWhereItBegan: an era that is opened on the very commit where the
// module began is proven, too, though nothing came from that commit's own time.
func TestEngineProvesAnEraWhereItBegan(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(1, nil)
	w.run(2 * time.Minute)
	w.anew(r.id, 2)
	w.run(2 * time.Minute)
	w.stop(0)
	w.stop(1)
	era := r.renew(2)
	w.run(time.Second)
	r.apply(era)
	r.vouch(r.devices[1], era.ref)
	r.head = era.ref
	w.run(3 * time.Minute)
	if got, err := r.proven(2); err != nil || got.Final != era.ref || got.Era != 1 {
		t.Errorf("its head does not prove the era: %v", err)
	}
}

// TestEngineTakesNoWrongProof: what does not prove the way from the group's beginning is
// no way, whoever shows it: the module goes on without a proof, and takes a right one.
func TestEngineTakesNoWrongProof(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(1, nil)
	w.run(2 * time.Minute)
	good := w.keys(r.id, 0)
	w.stop(0)
	w.stop(1)
	r.name(0) // without its proof
	w.run(time.Second)
	w.anew(r.id, 2)
	w.run(2 * time.Minute)
	post := func(change func(p *rooms.ProofChain, head *rooms.HeadContent)) {
		t.Helper()
		head := *good
		raw := []byte(head.Proof)
		if head.ProofFile != nil {
			raw = w.servers[0].hs.media[head.ProofFile.MXC]
		}
		p, err := rooms.DecodeProof(raw)
		must(t, err)
		change(p, &head)
		head.ProofFile = nil
		head.Proof = p.Encode()
		content, err := rooms.Encode(&head)
		must(t, err)
		w.servers[0].hs.state(r.id, w.bot(0), rooms.TypeHead, string(w.bot(0)), content)
		w.run(15 * time.Minute)
	}
	has := func() bool { return w.servers[2].e.rooms[r.id].data.Before }
	if has() || w.servers[2].machine(r.id).Base() != r.head {
		t.Fatal("the module did not begin at a head without a proof")
	}
	for name, change := range map[string]func(p *rooms.ProofChain, head *rooms.HeadContent){
		"of another beginning": func(_ *rooms.ProofChain, head *rooms.HeadContent) {
			head.Root = &rooms.EventRef{Ref: rooms.Hash{9}, Event: "$nothing"}
		},
		"without votes": func(p *rooms.ProofChain, _ *rooms.HeadContent) { p.Steps[len(p.Steps)-1].Votes = nil },
		"with a forged vote": func(p *rooms.ProofChain, _ *rooms.HeadContent) {
			v := *p.Steps[len(p.Steps)-1].Votes[0]
			v.Signature = make([]byte, 64)
			p.Steps[len(p.Steps)-1].Votes[0] = &v
		},
	} {
		post(change)
		if has() {
			t.Errorf("%s: the module takes it for the way", name)
		}
	}
	post(func(*rooms.ProofChain, *rooms.HeadContent) {})
	if !has() {
		t.Error("the whole proof is not taken")
	}
}
