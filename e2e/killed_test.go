package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice"
	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestModulesKilledAtEveryWritePoint: every module of a room is killed once between any two of its writes, while people
// create the room, come, talk and make commits; then while so many come that the tree goes into media, and when it finds in
// the room what an old copy of its database does not know that it signed, so that it takes another key. Nothing is lost, and
// no module contradicts itself.
func TestModulesKilledAtEveryWritePoint(t *testing.T) {
	s := tell(t, "partition")
	s.whole()
	modules := []string{"syn1", "syn2", "den1"}
	s.Cleanup(func() {
		for _, server := range modules {
			if err := s.w.CrashAt(server); err != nil {
				s.Error(err)
			}
		}
	})
	for _, server := range modules {
		s.must(s.w.CrashAt(server, appservice.CrashPoints()...))
	}
	person := func(server, name string) *e2e.Device {
		return s.device(server, fmt.Sprintf("%s%d", name, people.Add(1)), name, e2e.DeviceOptions{Suites: everySuite})
	}
	// All of them now: a world that gets an account is read anew, which what revives modules must not come between.
	a, b, c := person("syn1", "alice"), person("syn2", "bob"), person("den1", "carol")
	var guests []*e2e.Device
	for range 5 {
		guests = append(guests, person("syn3", "guest"))
	}
	away := s.revive(modules...)
	all := []*e2e.Device{a, b, c}

	// A module that knows of a server about to join holds back what it has to send, as a Dendrite loses its first join of
	// a room where much goes on; one that is killed meanwhile does not know of it any more. So the modules beside the
	// Dendrite die in a room of their own first, where they come and found, and in the common one when it is in.
	const uploaded, rekeyed = "uploaded", "rekeyed"
	beside := s.gather(client.CreateOptions{Policy: quick()}, a, b)
	s.botJoins(a, beside, b.Server.ServerName)
	s.talk(beside, "beside the Dendrite", a, b)
	rest := map[string][]string{}
	s.eventually("the modules beside the Dendrite were killed where they come into a room", func() string {
		for _, server := range []string{"syn1", "syn2"} {
			left, err := s.w.CrashPointsLeft(server)
			s.must(err)
			if rest[server] = left; slices.Contains(left, "keys-made") || slices.Contains(left, "joined") {
				return server + ": " + strings.Join(left, ", ")
			}
		}
		return ""
	})
	for server := range rest {
		s.must(s.w.CrashAt(server))
	}
	room := s.gather(client.CreateOptions{Policy: func(p *rooms.Policy) {
		quick()(p)
		p.SuiteOrder = []mls.CipherSuite{hybrid} // whose keys are so long that eight members make a large tree
	}}, a, b, c)
	for server, points := range rest {
		s.must(s.w.CrashAt(server, points...))
	}
	servers := []string{a.Server.ServerName, b.Server.ServerName, c.Server.ServerName}
	for _, d := range all {
		s.botJoins(a, room, d.Server.ServerName)
	}
	s.eventually("every module has said its key", func() string { // one may have been killed after its join
		info, err := a.Sequencers(s.ctx, room)
		s.must(err)
		var silent []string
		for _, server := range servers {
			if !slices.ContainsFunc(info.List, func(m client.SequencerInfo) bool { return m.Server == server }) &&
				!slices.ContainsFunc(info.Others, func(m client.ModuleInfo) bool { return m.Server == server }) {
				silent = append(silent, server)
			}
		}
		return strings.Join(silent, ", ")
	})
	s.must(a.SetSequencers(s.soon(), room, servers...))
	// Whether a module comes to read what it missed in the history, before the homeserver sends it once more, is a race: one
	// of them has to.
	const race = "gap-stored"
	left := func(but ...string) string {
		var all []string
		raced := false
		for _, server := range modules {
			points, err := s.w.CrashPointsLeft(server)
			s.must(err)
			raced = raced || !slices.Contains(points, race)
			points = slices.DeleteFunc(points, func(p string) bool { return p == race || slices.Contains(but, p) })
			if len(points) > 0 {
				all = append(all, server+": "+strings.Join(points, ", "))
			}
		}
		if !raced {
			all = append(all, "any: "+race)
		}
		return strings.Join(all, "; ")
	}
	for i := 0; left(uploaded, rekeyed) != "" && i < 8; i++ {
		work := func() {
			s.commit(room, a)
			s.talk(room, fmt.Sprintf("round %d", i), all...)
		}
		if strings.Contains(left(), race) {
			away(modules[i%len(modules)], work)
		} else {
			work()
		}
		s.step("not killed yet: %s", left(uploaded, rekeyed))
	}
	s.eventually("every module was killed where a small room goes on", func() string { return left(uploaded, rekeyed) })

	for _, d := range guests {
		s.must(a.Invite(s.soon(), room, d.UserID()))
		s.enter(d, room, a)
	}
	all = append(all, guests...)
	for _, d := range guests {
		s.must(d.Settle(s.soon(), room))
	}
	s.step("%d are in the room", len(all))
	s.eventually("every module was killed with a tree in media", func() string { return left(rekeyed) })
	s.listed(room, servers, all...)

	for i, server := range modules {
		s.oldDatabase(room, server, away, a, all...)
		s.eventually("the module of "+server+" was killed with another key", func() string {
			points, err := s.w.CrashPointsLeft(server)
			s.must(err)
			return strings.Join(slices.DeleteFunc(points, func(p string) bool { return p == race }), ", ")
		})
		s.repair(a, string(room))
		s.listed(room, servers, all...)
		s.talk(room, fmt.Sprintf("with other keys: %d", i+1), a, b, c)
	}
	s.eventually("every module was killed at every point", func() string { return left() })
	s.conclude(room, all...)
	for _, d := range all {
		info, err := d.Sequencers(s.ctx, room)
		s.must(err)
		for _, m := range info.List {
			if m.State != client.SequencerServes {
				t.Errorf("%s sees that the module of %s %s", d.Name, m.Server, m.State)
			}
		}
	}
}

// oldDatabase puts an old copy of a module's database back, which does not know what the module has signed since.
func (s *story) oldDatabase(room id.RoomID, server string, away func(server string, while func()), admin *e2e.Device, all ...*e2e.Device) {
	s.Helper()
	var putBack func() error
	away(server, func() {
		var err error
		putBack, err = s.w.CopyModuleDatabase(server)
		s.must(err)
	})
	bot := id.UserID("@_mls_bot:" + s.w.Server(server).ServerName)
	signed := func() (n int) {
		for _, e := range s.roomEvents(admin, room) {
			if e.Sender == bot && (e.Type == rooms.TypeAccept || e.Type == rooms.TypeVote) {
				n++
			}
		}
		return n
	}
	before := signed()
	s.eventually("the module of "+server+" signs what its old database does not know", func() string {
		s.commit(room, admin)
		s.final(room, all...)
		if signed() == before {
			return "it has not"
		}
		return ""
	})
	away(server, func() { s.must(putBack()) })
	s.step("the module of %s has its old database", server)
}

// revive starts modules again, for the rest of the story, whenever they are gone. What it returns kills one of them, and
// leaves it so while something is done.
func (s *story) revive(servers ...string) (away func(server string, while func())) {
	ctx, cancel := context.WithCancel(s.ctx)
	var done sync.WaitGroup
	s.Cleanup(func() {
		cancel()
		done.Wait()
	})
	held := map[string]*sync.Mutex{}
	for _, server := range servers {
		mu := new(sync.Mutex)
		held[server] = mu
		again := func() error {
			mu.Lock()
			defer mu.Unlock()
			if s.w.Answers(ctx, server) {
				return nil
			}
			return s.w.Servers.Start(ctx, s.w.Module(server).Name)
		}
		done.Go(func() {
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				if err := again(); err != nil && ctx.Err() == nil {
					s.Errorf("start the module of %s again: %v", server, err)
					return
				}
			}
		})
	}
	return func(server string, while func()) {
		s.Helper()
		held[server].Lock()
		defer held[server].Unlock()
		s.must(s.w.Kill(s.ctx, s.w.Module(server).Name))
		while()
	}
}

// commit lets an admin change something that only the group's policy shows, and returns the commit's ref.
func (s *story) commit(room id.RoomID, admin *e2e.Device) federation.Ref {
	s.Helper()
	s.must(admin.ChangePolicy(s.soon(), room, func(p *rooms.Policy) { p.Window = 16 + (p.Window+1)%64 }))
	info, err := admin.Room(s.ctx, room)
	s.must(err)
	return info.Head
}
