package client

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestReceiptsThatTheHomeserverKeeps: an accept, or votes, that a homeserver never
// shows count from the heads of the modules, which hold them.
func TestReceiptsThatTheHomeserverKeeps(t *testing.T) {
	for name, kept := range map[string][]string{
		"accepts":           {rooms.TypeAccept},
		"votes":             {rooms.TypeVote},
		"accepts and votes": {rooms.TypeAccept, rooms.TypeVote},
	} {
		for _, large := range []bool{false, true} {
			if large {
				name += ", proofs in media"
			}
			t.Run(name, func(t *testing.T) {
				w := newWorld(t)
				room, alice, bob, carol := w.three("shared")
				w.settle()
				w.module.proofInMedia = large
				for _, kind := range kept {
					w.s.held[kind] = true
				}
				before := bob.epoch(room)
				w.must(func() error {
					return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 7 })
				})
				for range 8 {
					w.settle()
				}
				for _, d := range []*testDevice{alice, bob, carol} {
					if got := d.epoch(room); got != before+1 {
						t.Errorf("%s: epoch %d, want %d", d.UserID(), got, before+1)
					}
					d.mu.Lock()
					m := d.rooms[room].machine
					if got := m.Status(m.Head()); got != federation.StatusFinal {
						t.Errorf("%s shows the change as %v", d.UserID(), got)
					}
					d.mu.Unlock()
					for _, u := range d.got {
						if warning, ok := u.(*Warning); ok && warning.Rule == ruleCannotFollow {
							t.Errorf("%s joined again: %s", d.UserID(), strings.TrimSpace(warning.Text))
						}
					}
				}
				w.send(bob, room, "after it")
				w.settle()
				carol.wantTexts("after it")
			})
		}
	}
}

// TestListChangeThatTheOldListAloneShowsAsFinal: where no homeserver shows the votes for a list change, and the new list's
// module proves nothing, they count from the heads of the old list's, which is in force until the change is final.
func TestListChangeThatTheOldListAloneShowsAsFinal(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	w.rest()
	for _, s := range w.s.servers {
		s.held[rooms.TypeVote] = true
	}
	for _, m := range w.more {
		m.lies = func(chain *rooms.ProofChain) { chain.Steps, chain.Accept = nil, nil }
	}
	w.must(func() error { return alice.SetSequencers(w.ctx, room, "two.example") })
	for range 8 {
		w.settle()
	}
	for _, d := range []*testDevice{alice, bob, carol} {
		d.mu.Lock()
		m := d.rooms[room].machine
		if got := m.Status(m.Head()); got != federation.StatusFinal {
			t.Errorf("%s shows the list change as %v", d.UserID(), got)
		}
		d.mu.Unlock()
	}
	w.wantServers(room, []*testDevice{alice, bob, carol}, "two.example")
}

// TestReceiptsInHeadsHaveTheFormOfEvents: what a module signed counts from its heads
// only if it could have come by itself, else members would differ for good.
func TestReceiptsInHeadsHaveTheFormOfEvents(t *testing.T) {
	for name, edit := range map[string]func(a *federation.Accept){
		"a number that JSON does not hold": func(a *federation.Accept) { a.Chain.Counter = 1 << 60 },
		"the first and not the first":      func(a *federation.Accept) { a.Chain = federation.Chain{Counter: 1, Prev: federation.Ref{7}} },
		"too large for an event": func(a *federation.Accept) {
			some := federation.Ref{7}
			statement := federation.Proof{Applied: &federation.Applied{Ref: some, Hash: some, Signature: make([]byte, 256)}}
			a.Votes = []*federation.Vote{{
				Config: a.Config, Ref: some, Proofs: slices.Repeat([]federation.Proof{statement}, rooms.MaxProofs),
				Chain: federation.Chain{Counter: 9, Prev: some}, Signature: make([]byte, 64),
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.three("shared")
			w.settle()
			w.s.held[rooms.TypeAccept], w.s.held[rooms.TypeVote] = true, true
			lied := false
			w.module.lies = func(chain *rooms.ProofChain) {
				if chain.Accept == nil {
					return
				}
				lied = true
				edit(chain.Accept)
				for _, v := range chain.Accept.Votes {
					if err := v.Sign(federation.Scope{Room: string(room)}, w.module.key); err != nil {
						t.Fatal(err)
					}
				}
				if err := chain.Accept.Sign(federation.Scope{Room: string(room)}, w.module.key); err != nil {
					t.Fatal(err)
				}
			}
			before := bob.epoch(room)
			ctx, cancel := context.WithCancel(w.ctx)
			defer cancel()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = alice.ChangePolicy(ctx, room, func(p *rooms.Policy) { p.Window = 7 }) // nothing confirms it
			}()
			w.until(200, func() bool { return lied })
			for range 8 {
				w.settle()
			}
			cancel()
			<-done
			if !lied {
				t.Fatal("the module showed no accept: the test proves nothing")
			}
			for _, d := range []*testDevice{alice, bob, carol} {
				if got := d.epoch(room); got != before {
					t.Errorf("%s: epoch %d, want %d", d.UserID(), got, before)
				}
			}
		})
	}
}

// TestAHeadThatMovesOnAndOnDelaysNoOthers: what a module's head shows is taken in time,
// however often another's changes.
func TestAHeadThatMovesOnAndOnDelaysNoOthers(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.three("shared")
	alice.mu.Lock()
	defer alice.mu.Unlock()
	r := alice.rooms[room]
	bot := w.module.bot
	for i := range 8 {
		entry := r.state.Entries[rooms.TypeHead][string(bot)]
		entry.Event = id.EventID(fmt.Sprint("$head", i))
		r.state.Entries[rooms.TypeHead][string(bot)] = entry
		r.showMore = []id.UserID{bot}
		if err := alice.takeShown(w.ctx, r); err != nil {
			t.Fatal(err)
		}
		if r.looks.Next() > alice.mono()+rooms.LookWait {
			return // it was tried, in vain
		}
		w.now.add(rooms.LookWait * 2 / 3)
	}
	t.Errorf("nothing was taken in %v", 8*rooms.LookWait*2/3)
}

// TestAHeadThatMovesOnAndOnCostsLittle: a module whose head changes every second, with
// statements that are forged, is looked at more and more seldom.
func TestAHeadThatMovesOnAndOnCostsLittle(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.three("shared")
	w.settle()
	alice.mu.Lock()
	defer alice.mu.Unlock()
	r, bot := alice.rooms[room], w.module.bot
	raw, err := r.machine.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	cfg := alice.machineConfig(room)
	cfg.Verify = func(suite uint16, key, content, sig []byte) error {
		checked++
		return rooms.VerifyLeafSignature(suite, key, content, sig)
	}
	if r.machine, err = federation.Unmarshal(cfg, raw); err != nil {
		t.Fatal(err)
	}
	honest := r.state.Entries[rooms.TypeHead][string(bot)]
	const each, times = 30, 600
	for n := range times {
		head, err := rooms.DecodeHead(honest.Content)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := rooms.DecodeProof(head.Proof)
		if err != nil {
			t.Fatal(err)
		}
		v := chain.Steps[len(chain.Steps)-1].Votes[0]
		v.Chain = federation.Chain{Counter: uint64(1000 + n), Prev: federation.Ref{7}}
		v.Proofs = nil
		for i := range each {
			v.Proofs = append(v.Proofs, federation.Proof{Applied: &federation.Applied{
				Ref: r.machine.Head(), Hash: [32]byte{1, byte(n >> 8), byte(n), byte(i)}, Signature: make([]byte, 64),
			}})
		}
		if err := v.Sign(federation.Scope{Room: string(room)}, w.module.key); err != nil {
			t.Fatal(err)
		}
		head.Proof = chain.Encode()
		entry := honest
		if entry.Content, err = rooms.Encode(head); err != nil {
			t.Fatal(err)
		}
		entry.Event = id.EventID(fmt.Sprint("$forged", n))
		r.state.Entries[rooms.TypeHead][string(bot)] = entry
		r.showMore = []id.UserID{bot}
		if err := alice.takeShown(w.ctx, r); err != nil {
			t.Fatal(err)
		}
		w.now.add(time.Second)
	}
	if checked == 0 {
		t.Fatal("no statement was checked: the test proves nothing")
	}
	if most := 10 * each; checked > most {
		t.Errorf("%d statements were checked in ten minutes, want at most %d", checked, most)
	}
}
