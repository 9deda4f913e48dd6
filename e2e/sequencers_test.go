package e2e_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
)

// listed waits until every device sees the modules of these servers in force, in any order, and nothing under way.
func (s *story) listed(room id.RoomID, servers []string, all ...*e2e.Device) {
	s.Helper()
	want := slices.Sorted(slices.Values(servers))
	deadline := time.Now().Add(e2e.Soon)
	for {
		var open []string
		for _, d := range all {
			info, err := d.Sequencers(s.ctx, room)
			if err != nil {
				open = append(open, d.Name+": "+err.Error())
				continue
			}
			var have []string
			for _, m := range info.List {
				have = append(have, m.Server)
			}
			slices.Sort(have)
			if !slices.Equal(have, want) || info.Change != nil || info.Final != info.Epoch {
				open = append(open, d.Name+" sees "+strings.Join(have, ", "))
			}
		}
		if len(open) == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("the modules are to be %v:\n%s", want, strings.Join(open, "\n"))
		}
		s.pause()
	}
}

// confirmed waits until a newcomer's room is: a module's head proves, from the room's beginning on, that it is in no dead branch.
func (s *story) confirmed(d *e2e.Device, room id.RoomID) {
	s.Helper()
	deadline := time.Now().Add(e2e.Soon)
	for {
		info, err := d.Room(s.ctx, room)
		s.must(err)
		if !info.Unconfirmed {
			s.step("%s is confirmed", d.Name)
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("%s still shows the room as unconfirmed", d.Name)
		}
		s.pause()
	}
}

// TestThreeServersGetThreeSequencers: a room of three servers with modules gets all three as sequencers by itself, and heirs;
// with one module away two of three go on to make commits final; the admin drops it.
func TestThreeServersGetThreeSequencers(t *testing.T) {
	s := tell(t, "sequencers")
	a, b, c := s.person("syn1", "alice"), s.person("syn2", "bob"), s.person("den1", "carol")
	room := s.room(client.CreateOptions{}, a, b, c)
	all := []string{a.Server.ServerName, b.Server.ServerName, c.Server.ServerName}
	s.listed(room, all, a, b, c)
	s.step("three modules order the room")
	info, err := c.Sequencers(s.ctx, room)
	s.must(err)
	if heirs := []id.UserID{b.UserID(), c.UserID()}; !slices.Equal(slices.Sorted(slices.Values(info.Heirs)), slices.Sorted(slices.Values(heirs))) || info.Quorum != 2 {
		t.Errorf("heirs %v, quorum %d", info.Heirs, info.Quorum)
	}
	s.talk(room, "three modules", a, b, c)

	s.must(s.w.Stop(s.ctx, s.w.Module("den1").Name))
	d := s.person("syn2", "dave")
	s.must(a.Invite(s.soon(), room, d.UserID()))
	s.join(d, room, a)
	s.listed(room, all, a, b, c, d) // it is final, by two of three
	s.step("a commit is final by two of three")
	s.confirmed(d, room)
	s.must(a.DropSequencers(s.soon(), room, c.Server.ServerName))
	s.listed(room, all[:2], a, b, c, d)
	s.step("the third is dropped")
	s.talk(room, "two modules", a, b, c, d)
	s.must(s.w.StartModule(s.ctx, "den1"))
	s.agree(room, a, b, c, d)
}
