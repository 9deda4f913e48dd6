package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
)

// TestHistoryVisibility: from when on a newcomer reads is what the room's history visibility says; from the join on
// they read in each of the four. What was sent before the invite stays closed: the group's keys of that time are not
// handed on.
func TestHistoryVisibility(t *testing.T) {
	for _, c := range []struct {
		visibility  string
		sinceInvite bool
	}{{"joined", false}, {"invited", true}, {"shared", true}, {"world_readable", true}} {
		t.Run(c.visibility, func(t *testing.T) {
			s := tell(t, "sqlite")
			alice, bob, carol := s.person("syn1", "alice"), s.person("syn2", "bob"), s.person("den1", "carol")
			room := s.room(client.CreateOptions{History: c.visibility}, alice)
			before := token("before")
			s.say(room, before, alice)
			for _, d := range []*e2e.Device{bob, carol} {
				s.must(alice.Invite(s.soon(), room, d.UserID()))
			}
			s.must(alice.Settle(s.soon(), room))
			between := token("between")
			s.say(room, between, alice)
			for _, d := range []*e2e.Device{bob, carol} {
				s.join(d, room, alice)
			}
			after := token("after")
			s.say(room, after, alice, bob, carol)
			for _, d := range []*e2e.Device{bob, carol} {
				if c.sinceInvite {
					s.read(room, between, alice, d)
				} else if d.Has(room, between) {
					t.Errorf("%s read a message from before the join", d.Name)
				}
				if d.Has(room, before) {
					t.Errorf("%s read a message from before the invite", d.Name)
				}
			}
			s.talk(room, "all", alice, bob, carol)
		})
	}
}

// TestSwitchingAnUnencryptedRoom turns a room with people and messages in it into an MLS room.
func TestSwitchingAnUnencryptedRoom(t *testing.T) {
	for _, server := range []string{"syn1", "den1"} {
		t.Run("by a user of "+server, func(t *testing.T) {
			s := tell(t, "sqlite")
			alice, bob := s.person(server, "alice"), s.person("syn2", "bob")
			room, err := e2e.CreatePlainRoom(s.ctx, alice.Server, alice.User, bob.UserID())
			s.must(err)
			_, err = bob.Join(s.soon(), string(room), []string{alice.Server.ServerName})
			s.must(err)
			open := token("open")
			_, err = e2e.SendPlain(s.ctx, alice.Server, alice.User, room, "m.room.message", "1", map[string]string{"msgtype": "m.text", "body": open})
			s.must(err)
			s.must(alice.EnableMLS(s.soon(), room))
			s.must(alice.Settle(s.soon(), room))
			s.must(bob.Settle(s.soon(), room))
			secret := token("secret")
			s.say(room, secret, alice, bob)
			s.talk(room, "after the switch", alice, bob)
			found, err := s.w.Search(s.ctx, open, secret)
			s.must(err)
			openFound := false
			for _, hit := range found.Hits {
				openFound = openFound || hit.Text == open
				if hit.Text == secret {
					t.Errorf("found after the switch: %s", hit)
				}
			}
			if !openFound {
				t.Error("the message from before the switch was not found: the search proves nothing")
			}
		})
	}
}

// TestLeaving: a member's server says that they left; the module proposes their removal, and another member commits it
// before anything more is sent.
func TestLeaving(t *testing.T) {
	s := tell(t, "sqlite")
	alice, bob, carol := s.person("syn1", "alice"), s.person("syn2", "bob"), s.person("den1", "carol")
	room := s.room(client.CreateOptions{}, alice, bob, carol)
	s.talk(room, "before", alice, bob, carol)
	kept := s.keep(carol, room)
	s.must(carol.Leave(s.soon(), room))
	for _, d := range []*e2e.Device{alice, bob} {
		_, err := d.WaitEpoch(s.soon(), room, "the epoch without carol", func(e *client.EpochChanged) bool {
			return len(e.Removed) == 1 && e.Removed[0] == carol.UserID()
		})
		s.must(err)
	}
	s.cannotRead(carol, kept, room, bob, alice)
}

// TestBan: who is banned is out of the group, and an invite by somebody else does not bring them back.
func TestBan(t *testing.T) {
	s := tell(t, "sqlite")
	alice, bob := s.person("syn1", "alice"), s.person("den1", "bob")
	room := s.room(client.CreateOptions{}, alice, bob)
	kept := s.keep(bob, room)
	s.must(alice.Ban(s.soon(), room, bob.UserID(), "test"))
	s.must(alice.Settle(s.soon(), room))
	members, err := alice.Members(s.ctx, room)
	s.must(err)
	for _, m := range members {
		if m.User == bob.UserID() && m.Device != "" {
			t.Errorf("bob was banned and still has leaf %d", m.Leaf)
		}
	}
	s.cannotRead(bob, kept, room, alice)
}

// TestHostileEvents: a member's homeserver account sends malformed, oversized and replayed events of ours with a plain
// client. The modules name what they refuse, and the room goes on. Then one of the homeservers keeps messages from its user.
func TestHostileEvents(t *testing.T) {
	s := tell(t, "sqlite")
	k := &keeper{kept: map[string]bool{}}
	alice := s.person("syn1", "alice")
	bob := s.device("den1", fmt.Sprintf("bob%d", people.Add(1)), "bob", e2e.DeviceOptions{HTTP: &http.Client{Transport: k}, Receipts: true})
	room := s.room(client.CreateOptions{}, alice, bob)
	s.talk(room, "before", alice, bob)
	refused := func(server string) int {
		text, err := s.w.Metrics(s.ctx, server)
		s.must(err)
		return metricSum(text, "mls_rejected_total")
	}
	before := map[string]int{"syn1": refused("syn1"), "den1": refused("den1")}
	const prefix = "io.github.matrix-mls."
	hostile := []struct {
		eventType string
		content   any
	}{
		{prefix + "commit", map[string]any{}},
		{prefix + "commit", map[string]any{"epoch": 2, "parent": "!", "message": "AAAA"}},
		{prefix + "commit", map[string]any{"epoch": -1, "message": strings.Repeat("A", 30000)}},
		{prefix + "commit", map[string]any{"epoch": 1 << 40, "parent": strings.Repeat("A", 43), "message": "AAEAAQ", "group_info": "AAEABA"}},
		{prefix + "accept", map[string]any{"ref": strings.Repeat("A", 43), "sig": "AA"}},
		{prefix + "vote", map[string]any{"ballot": []int{0, 0}}},
		{prefix + "proposal", map[string]any{"message": strings.Repeat("/", 2000)}},
		{prefix + "admit", map[string]any{"user": "@mallory:example.org"}},
		{"m.room.encrypted", map[string]any{"algorithm": prefix + "v1", "ciphertext": "not base64!"}},
		{"m.room.encrypted", map[string]any{"algorithm": prefix + "v1", "ciphertext": "AAEAAg"}},
	}
	for i, h := range hostile {
		for _, d := range []*e2e.Device{alice, bob} {
			_, err := e2e.SendPlain(s.ctx, d.Server, d.User, room, h.eventType, fmt.Sprintf("hostile-%d-%s", i, token("t")), h.content)
			s.must(err)
		}
	}
	s.talk(room, "after", alice, bob)
	for server, n := range before {
		for try := 0; refused(server) < n+8; try++ {
			if try > 100 {
				t.Errorf("the module of %s refused %d of %d hostile events by name", server, refused(server)-n, 2*8)
				break
			}
			s.pause()
		}
	}
	s.asksFor(room, k, alice, bob)
	s.agree(room, alice, bob)
}

// metricSum adds up a counter of a Prometheus page over its labels.
func metricSum(page, name string) int {
	sum := 0
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, name+"{") && !strings.HasPrefix(line, name+" ") {
			continue
		}
		var v float64
		fields := strings.Fields(line)
		if _, err := fmt.Sscan(fields[len(fields)-1], &v); err == nil {
			sum += int(v)
		}
	}
	return sum
}
