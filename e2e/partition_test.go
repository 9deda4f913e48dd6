package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// quick is the policy of rooms in which a test waits for what takes 30 seconds elsewhere; admins name the modules.
func quick(admins ...*e2e.Device) func(p *rooms.Policy) {
	return func(p *rooms.Policy) {
		p.Takeover, p.Manual = 2*time.Second, true
		for _, d := range admins {
			p.Admins = append(p.Admins, d.UserID())
		}
	}
}

// gather makes a room as [story.room] does, but the others are invited with it, and come in side by side.
func (s *story) gather(o client.CreateOptions, founder *e2e.Device, others ...*e2e.Device) id.RoomID {
	s.Helper()
	for _, d := range others {
		o.Invite = append(o.Invite, d.UserID())
	}
	room, err := founder.CreateRoom(s.soon(), o)
	s.must(err)
	s.step("the room is founded")
	for _, d := range others {
		s.enter(d, room, founder)
	}
	for _, d := range others {
		s.must(d.Settle(s.soon(), room))
	}
	s.step("the room is there, and everybody in it")
	return room
}

// whole lets a story leave the world as it found it, whatever becomes of it.
func (s *story) whole() {
	s.Helper()
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := s.w.Unblock(ctx, "*", "*"); err != nil {
			s.Error(err)
		}
		for _, server := range s.w.All() {
			if err := s.w.Servers.Start(ctx, server.Name); err != nil {
				s.Error(err)
			}
			if s.w.Module(server.Name) != nil {
				if err := s.w.StartModule(ctx, server.Name); err != nil {
					s.Error(err)
				}
			}
		}
	})
}

// kill ends servers with their modules, at once and for good, and with them the clients of those who live there.
func (s *story) kill(servers []string, theirs ...*e2e.Device) {
	s.Helper()
	names := slices.Clone(servers)
	for _, server := range servers {
		if m := s.w.Module(server); m != nil {
			names = append(names, m.Name)
		}
	}
	s.must(s.w.Kill(s.ctx, names...))
	for _, d := range theirs {
		s.must(d.Stop())
	}
	s.step("%s lost", strings.Join(servers, ", "))
}

// back brings servers back that were lost.
func (s *story) back(servers []string, theirs ...*e2e.Device) {
	s.Helper()
	s.must(s.w.Servers.Start(s.ctx, servers...))
	for _, server := range servers {
		if s.w.Module(server) != nil {
			s.must(s.w.StartModule(s.soon(), server))
		}
	}
	for _, d := range theirs {
		s.must(d.Restart(s.soon()))
	}
	s.step("%s back", strings.Join(servers, ", "))
}

// final waits until every device sees the head as final.
func (s *story) final(room id.RoomID, all ...*e2e.Device) {
	s.Helper()
	deadline := time.Now().Add(e2e.Soon)
	for {
		var open []string
		for _, d := range all {
			info, err := d.Room(s.ctx, room)
			s.must(err)
			if info.Final != info.Epoch {
				open = append(open, d.Name+": "+info.Head.Short()+" is "+info.Status.String())
			}
		}
		if len(open) == 0 {
			s.step("the head is final")
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("the head does not become final:\n%s", strings.Join(open, "\n"))
		}
		s.pause()
	}
}

// conclude waits until the journals of all devices of a room show that all is well there, lets everybody speak once more,
// and looks again.
func (s *story) conclude(room id.RoomID, all ...*e2e.Device) *e2e.Verdict {
	s.Helper()
	s.verdict(room, all...)
	s.talk(room, token("at the end"), all...)
	v := s.verdict(room, all...)
	s.step("%s", v)
	for _, w := range v.Warnings {
		s.step("warning to %s", w)
	}
	return v
}

func (s *story) verdict(room id.RoomID, all ...*e2e.Device) *e2e.Verdict {
	s.Helper()
	deadline := time.Now().Add(e2e.Soon)
	for {
		for _, d := range all {
			s.must(d.Rest(s.ctx, room))
		}
		journals, err := s.w.Journals(room)
		s.must(err)
		v := e2e.Check(room, journals, func(j *e2e.Journal, event id.EventID) bool { return s.lacks(j, room, event) })
		if len(v.Problems) == 0 {
			return v
		}
		if time.Now().After(deadline) {
			s.Fatalf("%s\n%s", v, strings.Join(v.Problems, "\n"))
		}
		s.pause()
	}
}

// lacks tells whether the history of a room, as a device's homeserver gives it, is without an event.
func (s *story) lacks(j *e2e.Journal, room id.RoomID, event id.EventID) bool {
	s.Helper()
	_, host, err := j.User.Parse()
	s.must(err)
	i := slices.IndexFunc(s.w.All(), func(server *lab.Server) bool { return server.ServerName == host })
	if i < 0 {
		s.Fatalf("%s lives on no server of this world", j.User)
	}
	server := s.w.All()[i]
	for from := ""; ; {
		raw, err := e2e.API(s.ctx, server, server.Users[j.User.Localpart()], http.MethodGet, "/rooms/"+url.PathEscape(string(room))+"/messages?dir=b&limit=100"+from, nil)
		s.must(err)
		var page struct {
			Chunk []struct {
				ID id.EventID `json:"event_id"`
			} `json:"chunk"`
			End string `json:"end"`
		}
		s.must(json.Unmarshal(raw, &page))
		for _, ev := range page.Chunk {
			if ev.ID == event {
				return false
			}
		}
		if page.End == "" || len(page.Chunk) == 0 {
			return true
		}
		from = "&from=" + url.QueryEscape(page.End)
	}
}

// TestServersLostForGood: of three servers with modules and one without, that of the leading module is lost for good, and
// the room goes on by itself; then another one, so that a majority is lost, and the room goes on in an era that an admin
// opens; when the lost ones come back they join that era.
func TestServersLostForGood(t *testing.T) {
	s := tell(t, "partition")
	s.whole()
	a, b, c, d := s.person("syn1", "alice"), s.person("syn2", "bob"), s.person("den1", "carol"), s.person("syn3", "dave")
	room := s.gather(client.CreateOptions{Policy: quick(b)}, a, b, c, d)
	one, two, three := a.Server.ServerName, b.Server.ServerName, c.Server.ServerName
	s.must(a.SetSequencers(s.soon(), room, one, two, three))
	s.listed(room, []string{one, two, three}, a, b, c, d)
	s.talk(room, "four servers", a, b, c, d)

	s.kill([]string{"syn1"}, a)
	e := s.person("syn2", "erin")
	s.must(b.Invite(s.soon(), room, e.UserID()))
	s.join(e, room, b)
	f := s.person("syn3", "frank") // by a user of the server without a module
	s.must(d.Invite(s.soon(), room, f.UserID()))
	s.join(f, room, d)
	s.final(room, b, c, d, e, f) // by two of three
	s.conclude(room, b, c, d, e, f)

	s.kill([]string{"den1"}, c)
	g := s.person("syn2", "gina")
	s.must(b.OpenEra(s.soon(), room, two))
	s.step("bob opened an era")
	s.must(b.Invite(s.soon(), room, g.UserID()))
	s.join(g, room, b)
	s.final(room, b, d, e, f, g)
	s.conclude(room, b, d, e, f, g)

	s.back([]string{"syn1", "den1"}, a, c)
	all := []*e2e.Device{a, b, c, d, e, f, g}
	for _, d := range slices.DeleteFunc(slices.Clone(all), func(d *e2e.Device) bool { return d == g }) { // gina came in with it
		_, err := d.Wait(s.soon(), "the new era", func(u client.Update) bool {
			era, ok := u.(*client.EraOpened)
			return ok && era.Room == room && era.Era == 1 && era.By == b.UserID() && slices.Equal(era.Servers, []string{two})
		})
		s.must(err)
	}
	s.step("everybody is in the new era")
	s.must(a.AddSequencers(s.soon(), room, one, three))
	s.listed(room, []string{one, two, three}, all...)
	s.conclude(room, all...)
}

// TestCreatorLostForGood: in a room as it is by default, of two servers with modules, the creator's server is lost; an heir
// on the other one goes on without it. When it comes back it follows.
func TestCreatorLostForGood(t *testing.T) {
	s := tell(t, "partition")
	s.whole()
	a, b, c := s.person("syn1", "alice"), s.person("syn2", "bob"), s.person("syn2", "bea")
	room := s.gather(client.CreateOptions{Policy: func(p *rooms.Policy) { p.Takeover, p.HeirsWait = 2*time.Second, time.Minute }}, a, b, c)
	s.eventually("the heirs are named", func() string {
		info, err := b.Sequencers(s.ctx, room)
		s.must(err)
		if len(info.Heirs) != 2 || len(info.List) != 1 || info.List[0].Server != a.Server.ServerName || info.Final != info.Epoch {
			return fmt.Sprintf("%+v", info)
		}
		return ""
	})
	s.talk(room, "two servers", a, b, c)

	s.kill([]string{"syn1"}, a)
	d := s.person("syn2", "dora")
	s.must(c.Invite(s.soon(), room, d.UserID()))
	s.talk(room, "without the creator", b, c)
	two := b.Server.ServerName
	if err := b.OpenEra(s.soon(), room, two); !errors.Is(err, client.ErrHeirsWait) {
		t.Fatalf("an heir opens an era at once: %v", err)
	}
	s.eventually("bob's client sees the room stand still", func() string {
		info, err := b.Sequencers(s.ctx, room)
		s.must(err)
		if info.Stalled == 0 {
			return "it does not"
		}
		return ""
	})
	for _, d := range []*e2e.Device{b, c} {
		d.Skip(time.Minute)
	}
	s.talk(room, "a minute later", b, c)
	s.must(b.OpenEra(s.soon(), room, two))
	s.step("the heir opened an era")
	s.join(d, room, b)
	s.final(room, b, c, d)
	s.conclude(room, b, c, d)

	s.back([]string{"syn1"}, a)
	for _, d := range []*e2e.Device{a, b, c} {
		_, err := d.Wait(s.soon(), "the new era", func(u client.Update) bool {
			era, ok := u.(*client.EraOpened)
			return ok && era.Room == room && era.Era == 1 && era.ByHeirs && era.By == b.UserID()
		})
		s.must(err)
	}
	s.conclude(room, a, b, c, d)
}

// eventually waits until nothing is missing any more.
func (s *story) eventually(what string, missing func() string) {
	s.Helper()
	for deadline := time.Now().Add(e2e.Soon); ; s.pause() {
		why := missing()
		if why == "" {
			s.step("%s", what)
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("%s: %s", what, why)
		}
	}
}
