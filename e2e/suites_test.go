package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/interop"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	suite2 = mls.MLS_128_DHKEMP256_AES128GCM_SHA256_P256
	suite3 = mls.MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519
	hybrid = mls.CipherSuite(0xf0d1) // X-Wing with Ed25519
)

// everySuite is offered by devices that switch experimental suites on.
var everySuite = append(mls.SupportedCipherSuites(), hybrid)

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
	s := tell(t, "postgres")
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

// A holder is between a client and its homeserver, and lets no founding commit through until it is told to.
type holder struct {
	client.Transport
	open *atomic.Bool
	held func() // called when one is held
}

func (h *holder) Send(ctx context.Context, room id.RoomID, eventType, txnID string, content json.RawMessage) (id.EventID, error) {
	if eventType == rooms.TypeCommit && !h.open.Load() {
		if c, err := rooms.DecodeCommit(content); err == nil && c.Founding {
			h.held()
			<-ctx.Done()
			return "", ctx.Err()
		}
	}
	return h.Transport.Send(ctx, room, eventType, txnID, content)
}

// TestChangeOfSuite moves a room on three servers to a post-quantum hybrid. The admin's client ends when it has closed
// the group and is about to send the commit that founds the next. Another founds it; what was sent meanwhile arrives.
// Then the room moves on while a server is cut off.
func TestChangeOfSuite(t *testing.T) {
	s := tell(t, "sqlite")
	var open atomic.Bool
	held := make(chan struct{})
	hold := sync.OnceFunc(func() { close(held) })
	modern := func(server, name string, o e2e.DeviceOptions) *e2e.Device {
		o.Suites = everySuite
		return s.device(server, fmt.Sprintf("%s%d", name, people.Add(1)), name, o)
	}
	alice := modern("syn1", "alice", e2e.DeviceOptions{Through: func(to client.Transport) client.Transport { return &holder{to, &open, hold} }})
	bob, carol := modern("syn2", "bob", e2e.DeviceOptions{}), modern("den1", "carol", e2e.DeviceOptions{})
	all := []*e2e.Device{alice, bob, carol}
	room := s.room(client.CreateOptions{}, alice, bob, carol)
	s.say(room, "in the first suite", bob, all...)
	s.step("the room is there")

	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	changed := make(chan error, 1)
	go func() {
		_, err := alice.ChangeSuite(ctx, room, hybrid, client.SuiteOptions{})
		changed <- err
	}()
	select {
	case <-held:
	case err := <-changed:
		t.Fatalf("the change ended before the founding commit: %v", err)
	case <-s.soon().Done():
		t.Fatal("the old group was not closed")
	}
	cancel()
	<-changed
	s.must(alice.Stop())
	s.step("the group is closed, and %s is gone", alice.Name)
	for _, d := range []*e2e.Device{bob, carol} {
		_, err := d.SendText(s.soon(), room, "meanwhile, "+d.Name)
		s.must(err)
	}
	s.arrive(room, hybrid, bob, carol)
	s.step("another founded the group")
	open.Store(true)
	s.must(alice.Restart(s.soon()))
	s.arrive(room, hybrid, all...)
	for _, d := range []*e2e.Device{bob, carol} {
		s.read(room, "meanwhile, "+d.Name, d, all...)
	}
	s.talk(room, "in the hybrid", all...)

	s.moveAcrossACut(room, suite3, alice, bob, carol)
	s.remembers(room, "in the first suite", all...)
	for _, d := range all {
		list, err := d.Messages(s.ctx, room, "", 100)
		s.must(err)
		count := map[string]int{}
		for _, m := range list {
			count[m.Body()]++
		}
		for body, n := range count {
			if n != 1 {
				t.Errorf("%s shows %q %d times", d.Name, body, n)
			}
		}
	}
}

// moveAcrossACut moves a room while the server of one member is cut off. Afterwards all are in one group, and read what
// was said on either side.
func (s *story) moveAcrossACut(room id.RoomID, suite mls.CipherSuite, admin, near, far *e2e.Device) {
	s.Helper()
	all := []*e2e.Device{admin, near, far}
	report, err := admin.CheckSuite(s.soon(), room, suite) // takes a key package of everybody
	s.must(err)
	s.must(report.Err())
	s.must(s.w.Split(s.ctx, []string{admin.Server.Name, near.Server.Name}, []string{far.Server.Name}))
	s.Cleanup(func() {
		if err := s.w.Unblock(context.WithoutCancel(s.ctx), "*", "*"); err != nil {
			s.Error(err)
		}
	})
	_, err = far.SendText(s.soon(), room, "on the other side")
	s.must(err)
	s.move(room, suite, admin, near)
	s.say(room, "on this side", admin, near)
	if info, err := far.Room(s.ctx, room); err != nil || info.Suite == suite {
		s.Fatalf("the link was not cut: %v, %v", info.Suite, err)
	}
	s.must(s.w.Unblock(s.ctx, "*", "*"))
	s.step("the cut is mended")
	_, err = admin.SendText(s.soon(), room, "after the cut")
	s.must(err)
	s.arrive(room, suite, all...)
	s.read(room, "on the other side", far, all...)
	s.read(room, "on this side", admin, all...)
	s.read(room, "after the cut", admin, all...)
	s.talk(room, "healed", all...)
}
