package e2e_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/interop"
	"github.com/matrix-mls/matrix-mls/mls"
)

const suite2 = mls.MLS_128_DHKEMP256_AES128GCM_SHA256_P256

// move lets an admin move a room to another suite, and waits until all are there.
func (s *story) move(room id.RoomID, suite mls.CipherSuite, admin *e2e.Device, others ...*e2e.Device) {
	s.Helper()
	_, err := admin.ChangeSuite(s.soon(), room, suite, client.SuiteOptions{Weaker: true})
	s.must(err)
	s.arrive(room, suite, append([]*e2e.Device{admin}, others...)...)
	s.step("the room moved to %s", suite)
}

// arrive waits until devices are in a group of a suite.
func (s *story) arrive(room id.RoomID, suite mls.CipherSuite, all ...*e2e.Device) {
	s.Helper()
	for _, d := range all {
		_, err := d.Wait(s.soon(), "the move to "+suite.String(), func(u client.Update) bool {
			c, ok := u.(*client.SuiteChanged)
			return ok && c.Room == room && c.To == suite
		})
		s.must(err)
		s.must(d.Settle(s.soon(), room))
		info, err := d.Room(s.ctx, room)
		s.must(err)
		if info.Suite != suite {
			s.Fatalf("%s is in a group of %s", d.Name, info.Suite)
		}
	}
	s.agree(room, all...)
}

// remembers checks that a device still shows what was said before.
func (s *story) remembers(room id.RoomID, text string, all ...*e2e.Device) {
	s.Helper()
	for _, d := range all {
		list, err := d.Messages(s.ctx, room, "", 100)
		s.must(err)
		if !slices.ContainsFunc(list, func(m *client.Message) bool { return m.Body() == text }) {
			s.Errorf("%s has forgotten %q", d.Name, text)
		}
	}
}

// TestStrangersOfAnotherSuite: clients of two other MLS libraries, which have one other suite only, are refused, and the
// admin with them; the room moves to that suite, everybody talks, the newcomers too, and the history stays.
func TestStrangersOfAnotherSuite(t *testing.T) {
	s := tell(t, "sqlite")
	alice, bob := s.person("syn1", "alice"), s.person("den1", "bob")
	room := s.room(client.CreateOptions{}, alice, bob)
	s.talk(room, "in the first suite", alice, bob)
	old := "in the first suite: " + bob.Name + " speaks"

	strangers := []*stranger{s.stranger(interop.MLSRs, "syn2", suite2), s.stranger(interop.OpenMLS, "den1", suite2)}
	for _, x := range strangers {
		err := alice.Invite(s.soon(), room, x.id())
		if !errors.Is(err, client.ErrSuite) || !strings.Contains(err.Error(), x.user.UserID) || !strings.Contains(err.Error(), "another suite") {
			t.Fatalf("the invite of a user without the suite: %v", err)
		}
		s.step("refused: %v", err)
	}

	s.move(room, suite2, alice, bob)
	s.remembers(room, old, alice, bob)
	for _, x := range strangers {
		s.must(alice.Invite(s.soon(), room, x.id()))
		x.accept(room, alice.Server.ServerName)
		x.in(room)
		s.step("%s is in", x.name)
		for _, d := range []*e2e.Device{alice, bob} {
			text := d.Name + " greets " + x.name
			s.say(room, text, d, alice, bob)
			x.reads(room, text)
		}
		text := x.name + " answers"
		x.says(room, text)
		for _, d := range []*e2e.Device{alice, bob} {
			m, err := d.WaitText(s.soon(), room, text)
			s.must(err)
			if m.Sender != x.id() {
				t.Errorf("%s read it as of %s", d.Name, m.Sender)
			}
		}
	}
	// The first has followed the commit that let the second in: the two libraries talk with each other.
	for i, x := range strangers {
		text := x.name + " speaks to " + strangers[1-i].name
		x.says(room, text)
		strangers[1-i].reads(room, text)
	}
	s.agree(room, alice, bob)
}
