package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
)

// TestGaps: after a cut between servers, the homeservers leave out of their transactions and syncs what others sent
// meanwhile. Modules and clients notice and fetch it.
func TestGaps(t *testing.T) {
	for _, far := range []string{"syn2", "den1"} {
		t.Run("behind a cut: "+far, func(t *testing.T) {
			s := tell(t, "sqlite")
			alice, bob, carol := s.person("syn1", "alice"), s.person(far, "bob"), s.person("syn1", "carol")
			room := s.room(client.CreateOptions{}, alice, bob)
			s.talk(room, "before", alice, bob)
			near := alice.Server.Name
			for _, link := range [][2]string{{near, far}, {far, near}} {
				s.must(s.w.Block(s.ctx, link[0], link[1]))
			}
			t.Cleanup(func() {
				if err := s.w.Unblock(t.Context(), "*", "*"); err != nil && t.Context().Err() == nil {
					t.Error(err)
				}
			})
			// Epochs and messages pass while the link is cut: more than a homeserver asks for by itself.
			s.must(alice.Invite(s.soon(), room, carol.UserID()))
			s.join(carol, room, alice)
			const n = 25
			for i := range n {
				_, err := alice.SendText(s.soon(), room, fmt.Sprintf("during the cut %d", i))
				s.must(err)
			}
			s.must(alice.Kick(s.soon(), room, carol.UserID(), ""))
			s.must(alice.Settle(s.soon(), room))
			if bob.Has(room, "during the cut 0") {
				t.Fatal("the link was not cut")
			}
			s.must(s.w.Unblock(s.ctx, "*", "*"))
			_, err := alice.SendText(s.soon(), room, "after the cut")
			s.must(err)
			s.read(room, "after the cut", alice, bob)
			for i := range n {
				s.read(room, fmt.Sprintf("during the cut %d", i), alice, bob)
			}
			s.talk(room, "healed", alice, bob)
			s.agree(room, alice, bob)
		})
	}
}

// TestModuleRestarts: a module that is killed in the middle of things goes on where it was, and what came while it was
// away is done then.
func TestModuleRestarts(t *testing.T) {
	for _, name := range []string{"sqlite", "postgres"} {
		t.Run(name, func(t *testing.T) {
			s := tell(t, name)
			alice, bob, carol := s.person("syn1", "alice"), s.person("den1", "bob"), s.person("syn1", "carol")
			room := s.room(client.CreateOptions{}, alice, bob)
			for _, server := range []string{"syn1", "den1"} {
				s.must(s.w.Kill(s.ctx, s.w.Module(server).Name))
			}
			// A commit waits for its accept, messages of the epoch do not.
			s.must(alice.Invite(s.soon(), room, carol.UserID()))
			s.say(room, "the modules are away", bob, alice)
			for _, server := range []string{"syn1", "den1"} {
				s.must(s.w.StartModule(s.soon(), server))
			}
			s.join(carol, room, alice)
			s.talk(room, "the modules are back", alice, bob, carol)
			s.agree(room, alice, bob, carol)
		})
	}
}

// TestModuleDatabaseLost: the module that orders the room loses its database and with it the receipt key. It rebuilds
// groups and heads from the room; an admin's client moves the room to the new key.
func TestModuleDatabaseLost(t *testing.T) {
	for _, server := range []string{"syn1", "den1"} {
		for _, name := range []string{"sqlite", "postgres"} {
			t.Run(server+"/"+name, func(t *testing.T) {
				s := tell(t, name)
				alice, bob := s.person(server, "alice"), s.person("syn2", "bob")
				room := s.room(client.CreateOptions{}, alice, bob)
				s.talk(room, "before", alice, bob)
				s.must(s.w.LoseModuleDatabase(s.soon(), server))
				s.must(s.w.StartModule(s.soon(), server))
				// The module announces its new key in the room when it has rebuilt what it knew.
				s.repair(alice, room.String())
				s.talk(room, "after", alice, bob)
				carol := s.person("syn2", "carol")
				s.must(alice.Invite(s.soon(), room, carol.UserID()))
				s.join(carol, room, alice)
				s.talk(room, "with a newcomer", alice, bob, carol)
				s.agree(room, alice, bob, carol)
			})
		}
	}
}

// repair moves the room to the module's new key, as soon as the module has announced it.
func (s *story) repair(admin *e2e.Device, room string) {
	s.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		rooms, err := admin.Rooms(s.ctx)
		s.must(err)
		for _, r := range rooms {
			if r.ID.String() != room {
				continue
			}
			if err = admin.RepairSequencer(s.soon(), r.ID); err == nil {
				return
			}
		}
		if time.Now().After(deadline) {
			s.Fatalf("the room was not moved to the module's new key: %v", err)
		}
		s.pause()
	}
}

// TestClientRestarts: a client that is stopped at any time loses no message and goes on in its epoch.
func TestClientRestarts(t *testing.T) {
	s := tell(t, "sqlite")
	alice, bob := s.person("syn1", "alice"), s.person("den1", "bob")
	room := s.room(client.CreateOptions{}, alice, bob)
	for i := range 3 {
		s.must(bob.Stop())
		text := fmt.Sprintf("while bob was away %d", i)
		s.say(room, text, alice)
		s.must(bob.Restart(s.soon()))
		s.read(room, text, alice, bob)
		s.talk(room, fmt.Sprintf("bob is back %d", i), alice, bob)
	}
	s.agree(room, alice, bob)
}

// TestHomeserverRestarts: each homeserver restarts while people write.
func TestHomeserverRestarts(t *testing.T) {
	s := tell(t, "sqlite")
	alice, bob := s.person("syn2", "alice"), s.person("den1", "bob")
	room := s.room(client.CreateOptions{}, alice, bob)
	for _, server := range []string{"den1", "syn2"} {
		s.must(s.w.Stop(s.ctx, server))
		author, reader := alice, bob
		if server == "syn2" {
			author, reader = bob, alice
		}
		text := "while " + server + " was away"
		_, err := author.SendText(s.soon(), room, text)
		s.must(err)
		s.must(s.w.Servers.Start(s.ctx, server))
		s.read(room, text, author, reader)
		s.talk(room, server+" is back", alice, bob)
	}
	s.agree(room, alice, bob)
}

// TestDefaultRateLimits: with the homeservers' own limits, a burst of messages and a commit among them all arrive; the
// client waits as long as it is told to.
func TestDefaultRateLimits(t *testing.T) {
	s := tell(t, "limits")
	alice, bob, carol := s.person("syn1", "alice"), s.person("syn2", "bob"), s.person("den1", "carol")
	room := s.room(client.CreateOptions{}, alice, bob, carol)
	const n = 12 // above every limit's burst, with what else is sent
	done := make(chan error, 2*n)
	for _, d := range []*e2e.Device{alice, carol} {
		for i := range n {
			go func() {
				_, err := d.SendText(s.ctx, room, fmt.Sprintf("burst %d of %s", i, d.Name))
				done <- err
			}()
		}
	}
	s.must(alice.Kick(s.ctx, room, bob.UserID(), ""))
	for range 2 * n {
		s.must(<-done)
	}
	for i := range n {
		s.read(room, fmt.Sprintf("burst %d of %s", i, alice.Name), alice, carol)
		s.read(room, fmt.Sprintf("burst %d of %s", i, carol.Name), carol, alice)
	}
	s.agree(room, alice, carol)
}
