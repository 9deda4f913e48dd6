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
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestModulesKilledAtEveryWritePoint: every module of a room is killed once between any two of its writes, while people
// create the room, come, talk and make commits. Nothing is lost, and no module contradicts itself. Two points are not
// reached here: a tree of so few is not put into media, and no key is lost; appservice's F01 kills there.
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
	points := slices.DeleteFunc(appservice.CrashPoints(), func(p string) bool { return p == "uploaded" || p == "rekeyed" })
	for _, server := range modules {
		s.must(s.w.CrashAt(server, points...))
	}
	away := s.revive(modules...)
	a, b, c := s.person("syn1", "alice"), s.person("syn2", "bob"), s.person("den1", "carol")
	room := s.gather(client.CreateOptions{Policy: quick()}, a, b, c)
	servers := []string{a.Server.ServerName, b.Server.ServerName, c.Server.ServerName}
	for _, d := range []*e2e.Device{a, b, c} {
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
	left := func() string {
		var all []string
		raced := false
		for _, server := range modules {
			points, err := s.w.CrashPointsLeft(server)
			s.must(err)
			i := slices.Index(points, race)
			if i >= 0 {
				points = slices.Delete(points, i, i+1)
			}
			raced = raced || i < 0
			if len(points) > 0 {
				all = append(all, server+": "+strings.Join(points, ", "))
			}
		}
		if !raced {
			all = append(all, "any: "+race)
		}
		return strings.Join(all, "; ")
	}
	for i := 0; left() != "" && i < 8; i++ {
		work := func() {
			s.commit(room, a)
			s.talk(room, fmt.Sprintf("round %d", i), a, b, c)
		}
		if strings.Contains(left(), race) {
			away(modules[i%len(modules)], work)
		} else {
			work()
		}
		s.step("not killed yet: %s", left())
	}
	s.eventually("every module was killed at every point", left)
	s.listed(room, servers, a, b, c)
	s.conclude(room, a, b, c)
	for _, d := range []*e2e.Device{a, b, c} {
		info, err := d.Sequencers(s.ctx, room)
		s.must(err)
		for _, m := range info.List {
			if m.State != client.SequencerServes {
				t.Errorf("%s sees that the module of %s %s", d.Name, m.Server, m.State)
			}
		}
	}
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
