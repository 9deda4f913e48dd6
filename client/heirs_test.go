package client

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestSecondServerGoesOnWithoutTheCreators: a default room of two servers whose
// creator's server is lost; the other side's heir opens an era alone.
func TestSecondServerGoesOnWithoutTheCreators(t *testing.T) {
	w := newWorld(t)
	w.addModule("two.example")
	alice, bob, bea := w.device("alice", "ALICE1"), w.device("bob:two.example", "BOB1"), w.device("bea:two.example", "BEA1")
	var room id.RoomID
	w.must(func() (err error) {
		room, err = alice.CreateRoom(w.ctx, CreateOptions{})
		return err
	})
	for _, d := range []*testDevice{bob, bea} {
		w.must(func() error { return alice.Invite(w.ctx, room, d.UserID()) })
		w.join(d, room)
	}
	w.settle()
	w.rest()
	alice.dead, w.module.down = true, true
	if err := bob.OpenEra(w.ctx, room, "two.example"); !errors.Is(err, ErrHeirsWait) {
		t.Fatalf("an heir's era while nothing stands still: %v", err)
	}
	dave := w.device("dave:two.example", "DAVE1")
	w.must(func() error { return bea.Invite(w.ctx, room, dave.UserID()) })
	w.settle(bob, bea, dave)
	if err := bob.OpenEra(w.ctx, room, "two.example"); !errors.Is(err, ErrHeirsWait) || !strings.Contains(err.Error(), "10m0s") {
		t.Fatalf("an heir's era too early: %v", err)
	}
	w.now.add(11 * time.Minute)
	w.settle(bob, bea, dave)
	w.must(func() error { return bob.OpenEra(w.ctx, room, "two.example") })
	w.settle(bob, bea, dave)
	w.join(dave, room)
	w.settle(bob, bea, dave)
	w.send(dave, room, "without the creator")
	w.settle(bob, bea, dave)
	bea.wantTexts("without the creator")
	eras := bea.eras()
	if len(eras) != 1 || !eras[0].ByHeirs || eras[0].By != bob.UserID() || !slices.Equal(eras[0].Servers, []string{"two.example"}) || len(eras[0].Overrides) != 0 {
		t.Fatalf("bea was told of %+v", eras)
	}
	// The creator's server comes back, and follows.
	alice.dead, w.module.down = false, false
	w.settle()
	w.sameEpoch(room, alice, bob, bea, dave)
	if era, _ := w.module.groups[room].machine.EraOf(); era != 1 {
		t.Errorf("the creator's module is in era %d", era)
	}
	w.send(alice, room, "back")
	w.settle()
	bea.wantTexts("without the creator", "back")
}

// TestHeirsOfTwoServersConsent: with heirs on two servers one alone opens no era;
// the other's client consents once its own clock allows it.
func TestHeirsOfTwoServersConsent(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	w.must(func() error { return alice.AutoSequencers(w.ctx, room, true) })
	w.settle()
	w.rest()
	w.must(func() error { return alice.SetSequencers(w.ctx, room, testServer) })
	w.settle()
	alice.dead, w.module.down = true, true
	others := []*testDevice{bob, carol}
	dave := w.device("dave:two.example", "DAVE1")
	w.must(func() error { return bob.Invite(w.ctx, room, dave.UserID()) })
	w.settle(others...)
	carol.dead = true // its clock does not run
	w.now.add(11 * time.Minute)
	w.settle(bob)
	ctx, cancel := w.timeout(30 * time.Second)
	defer cancel()
	err := w.background(func() error { return bob.OpenEra(ctx, room, "three.example", "two.example") })
	if err == nil || !strings.Contains(err.Error(), "three.example") {
		t.Fatalf("an heirs' era without the other server's heir: %v", err)
	}
	carol.dead = false
	carol.restart() // its clock begins anew
	w.settle(bob, carol)
	if era, _ := bob.rooms[room].machine.EraOf(); era != 0 {
		t.Fatal("the other heir consented before it had seen the room stand still")
	}
	w.now.add(11 * time.Minute)
	w.settle(bob, carol)
	for _, d := range others {
		eras := d.eras()
		if len(eras) != 1 || !eras[0].ByHeirs || !slices.Equal(slices.Sorted(slices.Values(eras[0].Signers)), []id.UserID{bob.UserID(), carol.UserID()}) {
			t.Fatalf("%s was told of %+v", d.ident.device, eras)
		}
	}
	w.join(dave, room)
	w.settle(bob, carol, dave)
	w.send(carol, room, "two of three servers")
	w.settle(bob, carol, dave)
	dave.wantTexts("two of three servers")
	if err := dave.OpenEra(w.ctx, room, "two.example"); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("who is neither admin nor heir opens an era: %v", err)
	}
}

func TestRefusedEraSupport(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(nil)
	w.rest()
	w.wantServers(room, []*testDevice{bob}, testServer, "two.example", "three.example")
	r := bob.rooms[room]
	e := r.head()
	support, err := bob.signEra(e, 1, mustPolicy(t, e).Sequencers)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		edit func(s *rooms.EraSupport)
		rule rooms.Rule
	}{
		{"as it is", func(*rooms.EraSupport) {}, ""},
		{"number", func(s *rooms.EraSupport) { s.Era = 2 }, rooms.RuleEraNotEntitled},
		{"no number", func(s *rooms.EraSupport) { s.Era = 0 }, rooms.RuleContentMalformed},
		{"leaf of another", func(s *rooms.EraSupport) { s.Leaf = 0 }, rooms.RuleEraNotEntitled},
		{"no such leaf", func(s *rooms.EraSupport) { s.Leaf = 99 }, rooms.RuleEraNotEntitled},
		{"list", func(s *rooms.EraSupport) { s.Sequencers = s.Sequencers[1:] }, rooms.RuleEraNotEntitled},
		{"no list", func(s *rooms.EraSupport) { s.Sequencers = nil }, rooms.RuleContentMalformed},
		{"key", func(s *rooms.EraSupport) { s.Sequencers[0].Key = make([]byte, 32) }, rooms.RuleEraNotEntitled},
		{"short key", func(s *rooms.EraSupport) { s.Sequencers[0].Key = []byte{1} }, rooms.RuleContentMalformed},
		{"user", func(s *rooms.EraSupport) { s.Sequencers[0].User = "@x:y" }, rooms.RuleEraNotEntitled},
		{"no user", func(s *rooms.EraSupport) { s.Sequencers[0].User = "x" }, rooms.RuleContentMalformed},
		{"server", func(s *rooms.EraSupport) { s.Sequencers[0].Server = "y" }, rooms.RuleEraNotEntitled},
		{"no server", func(s *rooms.EraSupport) { s.Sequencers[0].Server = "" }, rooms.RuleContentMalformed},
		{"no parent", func(s *rooms.EraSupport) { s.Parent = rooms.Hash{} }, rooms.RuleContentMalformed},
		{"signature", func(s *rooms.EraSupport) { s.Sig[0] ^= 1 }, rooms.RuleEraNotEntitled},
		{"no signature", func(s *rooms.EraSupport) { s.Sig = nil }, rooms.RuleContentMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			edited := *support
			edited.Sequencers, edited.Sig = slices.Clone(support.Sequencers), slices.Clone(support.Sig)
			test.edit(&edited)
			raw := mustJSON(t, &edited)
			var err error
			if s, derr := rooms.DecodeEraSupport(raw); derr != nil {
				err = derr
			} else {
				_, err = s.Verify(e.group)
			}
			if got := rooms.RuleOf(err); got != test.rule {
				t.Errorf("rule %q, want %q: %v", got, test.rule, err)
			}
		})
	}
	// Alice, an admin and no heir, signs rightly, and it counts for nothing.
	alien, err := alice.signEra(alice.rooms[room].head(), 1, mustPolicy(t, e).Sequencers)
	if err != nil {
		t.Fatal(err)
	}
	carol.mu.Lock()
	defer carol.mu.Unlock()
	err = carol.handleEra(w.ctx, carol.rooms[room], &Event{ID: "$x", Type: rooms.TypeEra, Sender: alice.UserID(), Content: mustJSON(t, alien)}, &batch{})
	if rooms.RuleOf(err) != rooms.RuleEraNotEntitled {
		t.Errorf("the consent of who is no heir: %v", err)
	}
}

func mustPolicy(t *testing.T, e *epoch) *rooms.Policy {
	t.Helper()
	p, err := rooms.PolicyOf(e.group)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustJSON(t *testing.T, v any) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
