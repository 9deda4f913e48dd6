package e2e_test

import (
	"net/http"
	"net/url"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// warned waits until a device's client warned of somebody.
func (s *story) warned(d *e2e.Device, room id.RoomID, of id.UserID) *client.Warning {
	s.Helper()
	u, err := d.Wait(s.soon(), "a warning of "+string(of), func(u client.Update) bool {
		w, ok := u.(*client.Warning)
		return ok && w.Room == room && w.Sender == of
	})
	s.must(err)
	return u.(*client.Warning)
}

// TestForgersAndLiars: a server that invites in its user's name, and logs in as its user, gets nobody in; a module that
// accepts two commits in one ballot, and a member whose commit nobody can apply, are caught and named, and the room goes on.
func TestForgersAndLiars(t *testing.T) {
	s := tell(t, "partition")
	s.whole()
	a, b, c, m := s.person("syn1", "alice"), s.person("syn2", "bob"), s.person("den1", "carol"), s.person("syn2", "mallory")
	room := s.gather(client.CreateOptions{Policy: quick()}, a, b, c, m)
	servers := []string{a.Server.ServerName, b.Server.ServerName, c.Server.ServerName}
	s.must(a.SetSequencers(s.soon(), room, servers...))
	s.listed(room, servers, a, b, c, m)
	s.talk(room, "honest", a, b, c, m)

	eve := s.person("syn2", "eve")
	asBob, err := s.w.ActAs(s.ctx, "syn2", b.User)
	s.must(err)
	_, err = e2e.API(s.ctx, b.Server, asBob, http.MethodPost, "/rooms/"+url.PathEscape(string(room))+"/invite", map[string]any{"user_id": eve.UserID()})
	s.must(err)
	_, err = eve.Wait(s.soon(), "the invite", func(u client.Update) bool {
		i, ok := u.(*client.Invited)
		return ok && i.Room == room && i.By == b.UserID() && !i.Admits
	})
	s.must(err)
	_, err = eve.Join(s.soon(), string(room), []string{b.Server.ServerName})
	s.must(err)
	forged := s.device("syn2", b.User.Localpart, "forged", e2e.DeviceOptions{Unsigned: true})
	s.eventually("all see that eve is in the room, and not why", func() string {
		for _, d := range []*e2e.Device{a, b, c, m} {
			members, err := d.Members(s.ctx, room)
			s.must(err)
			i := slices.IndexFunc(members, func(m client.Member) bool { return m.User == eve.UserID() })
			if i < 0 || members[i].Note == "" {
				return d.Name + " does not"
			}
		}
		return ""
	})
	s.commit(room, a)
	s.talk(room, "with an uninvited guest", a, b, c, m)
	s.conclude(room, a, b, c, m)
	for _, d := range []*e2e.Device{eve, forged} {
		if info, err := d.Room(s.ctx, room); err == nil && info.Head != (federation.Ref{}) {
			t.Errorf("%s is in the group, in epoch %d", d.Name, info.Epoch)
		}
	}

	before, err := a.Room(s.ctx, room)
	s.must(err)
	head := s.commit(room, a)
	sibling, content, err := m.CommitOn(s.ctx, room, before.Head, false)
	s.must(err)
	s.must(m.Stop())
	s.must(m.PostCommit(s.ctx, room, content))
	liar, err := s.w.Equivocate(s.ctx, a, room, head, sibling)
	s.must(err)
	for _, d := range []*e2e.Device{a, b, c} {
		w := s.warned(d, room, id.NewUserID(rooms.BotLocalpart, liar.ServerName))
		if w.Rule != string(federation.EvidenceAccepts) {
			t.Errorf("%s was warned of %s: %s", d.Name, w.Rule, w.Text)
		}
		info, err := d.Sequencers(s.ctx, room)
		s.must(err)
		for _, m := range info.List {
			if m.Server == liar.ServerName && m.State != client.SequencerLied {
				t.Errorf("%s sees that the module of %s %s", d.Name, liar.Name, m.State)
			}
		}
	}
	s.step("the module that lied is named")
	s.must(a.DropSequencers(s.soon(), room, liar.ServerName))
	s.listed(room, slices.DeleteFunc(servers, func(server string) bool { return server == liar.ServerName }), a, b, c)
	s.talk(room, "without the liar", a, b, c)

	s.must(m.Restart(s.soon()))
	s.must(m.Settle(s.soon(), room))
	mallory := m.UserID()
	at, err := m.Room(s.ctx, room)
	s.must(err)
	bad, content, err := m.CommitOn(s.ctx, room, at.Head, true)
	s.must(err)
	s.must(m.Stop())
	s.must(m.PostCommit(s.ctx, room, content))
	for _, d := range []*e2e.Device{a, b, c} {
		s.warned(d, room, mallory)
	}
	s.step("the author of a commit that nobody can apply is named")
	s.eventually("somebody made a commit in its place", func() string {
		for _, d := range []*e2e.Device{a, b, c} {
			info, err := d.Room(s.ctx, room)
			s.must(err)
			if info.Head == bad || info.Head == at.Head {
				return d.Name + " is on " + info.Head.Short()
			}
		}
		return ""
	})
	s.must(a.Ban(s.soon(), room, mallory, ""))
	s.final(room, a, b, c)
	s.must(m.Restart(s.soon()))
	s.gone(m, room)
	s.conclude(room, a, b, c)
}
