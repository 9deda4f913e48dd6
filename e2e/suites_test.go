package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/interop"
	"github.com/matrix-mls/matrix-mls/lab"
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

// asAdmin is set, to an errand, in the environment of a test program that is to be an admin's client which moves a room, and
// dies before it has founded the next group.
const asAdmin = "MLS_TEST_AS_ADMIN"

// An errand says what such a program does.
type errand struct {
	World, Server, Device string
	User                  lab.User
	Room                  id.RoomID
	Suite                 mls.CipherSuite
}

// A doomed client's process is killed by its first founding commit: the client has it on disk, and is about to send it. What it
// follows is said before.
type doomed struct{ client.Transport }

func (d *doomed) Send(ctx context.Context, room id.RoomID, eventType, txnID string, content json.RawMessage) (id.EventID, error) {
	if eventType == rooms.TypeCommit {
		if c, err := rooms.DecodeCommit(content); err == nil && c.Founding {
			fmt.Println(c.Parent)
			if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
				return "", err
			}
			select {}
		}
	}
	return d.Transport.Send(ctx, room, eventType, txnID, content)
}

// closeGroup does an errand. It returns only if it fails.
func closeGroup(raw string) error {
	var e errand
	if err := json.Unmarshal([]byte(raw), &e); err != nil {
		return err
	}
	w, err := e2e.Attach(e.World)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), e2e.Soon)
	defer cancel()
	d, err := w.ReopenDevice(ctx, e.Server, e.User, e.Device, e2e.DeviceOptions{
		Suites: everySuite, Through: func(to client.Transport) client.Transport { return &doomed{to} },
	})
	if err != nil {
		return err
	}
	if _, err = d.ChangeSuite(ctx, e.Room, e.Suite, client.SuiteOptions{}); err == nil {
		err = errors.New("the room has moved, and the admin's client is alive")
	}
	return errors.Join(err, d.Stop())
}

// closedByTheDead has an admin's device, as a process of its own, close a room's group, which is accepted, and kills it before
// the next group is founded. It returns the ref of the commit that closed the group.
func (s *story) closedByTheDead(room id.RoomID, suite mls.CipherSuite, admin *e2e.Device) rooms.Hash {
	s.Helper()
	s.must(admin.Stop())
	raw, err := json.Marshal(errand{s.w.Dir(), admin.Server.Name, admin.Name, admin.User, room, suite})
	s.must(err)
	cmd := exec.CommandContext(s.soon(), os.Args[0])
	var said, why bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), asAdmin+"="+string(raw)), &said, &why
	err = cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		s.Fatalf("the client of %s was not killed: %v\n%s%s", admin.Name, err, &said, &why)
	}
	var closing rooms.Hash
	s.must(closing.UnmarshalText(bytes.TrimSpace(said.Bytes())))
	accepted := false
	for _, e := range s.roomEvents(admin, room) {
		switch e.Type {
		case rooms.TypeAccept:
			accept, err := rooms.DecodeAccept(e.Content)
			s.must(err)
			accepted = accepted || accept.Ref == closing
		case rooms.TypeCommit:
			if c, err := rooms.DecodeCommit(e.Content); err == nil && c.Founding && e.Sender == id.UserID(admin.User.UserID) {
				s.Fatalf("%s has founded the next group", admin.Name)
			}
		}
	}
	if !accepted {
		s.Fatalf("the commit %s, which closes the group, is not accepted", closing)
	}
	s.step("the group is closed, and the process of %s was killed", admin.Name)
	return closing
}

// TestChangeOfSuite moves a room on three servers to a post-quantum hybrid. The admin's client is a process that is killed
// with SIGKILL when it has closed the group and is about to send the commit that founds the next. Another founds it; what was
// sent meanwhile arrives. Then the room moves on while a server is cut off, on which the old group goes on with commits and
// messages. The devices' journals decide.
func TestChangeOfSuite(t *testing.T) {
	s := tell(t, "sqlite")
	modern := func(server, name string) *e2e.Device {
		return s.device(server, fmt.Sprintf("%s%d", name, people.Add(1)), name, e2e.DeviceOptions{Suites: everySuite})
	}
	alice, bob, carol := modern("syn1", "alice"), modern("syn2", "bob"), modern("den1", "carol")
	all := []*e2e.Device{alice, bob, carol}
	room := s.room(client.CreateOptions{Policy: quick(carol)}, alice, bob, carol)
	three := []string{alice.Server.ServerName, bob.Server.ServerName, carol.Server.ServerName}
	s.must(alice.SetSequencers(s.soon(), room, three...))
	s.listed(room, three, all...)
	s.say(room, "in the first suite", bob, all...)
	s.step("the room is there")

	closing := s.closedByTheDead(room, hybrid, alice)
	for _, d := range []*e2e.Device{bob, carol} {
		_, err := d.SendText(s.soon(), room, "meanwhile, "+d.Name)
		s.must(err)
	}
	s.arrive(room, hybrid, bob, carol)
	for _, e := range s.roomEvents(bob, room) {
		if c, err := rooms.DecodeCommit(e.Content); e.Type == rooms.TypeCommit && err == nil && c.Founding {
			if c.Parent != closing || e.Sender == id.UserID(alice.User.UserID) {
				t.Errorf("%s founded a group after %s; want another than %s to do so after %s", e.Sender, c.Parent, alice.Name, closing)
			}
		}
	}
	s.step("another founded the group")
	s.must(alice.Restart(s.soon()))
	s.arrive(room, hybrid, all...)
	for _, d := range []*e2e.Device{bob, carol} {
		s.read(room, "meanwhile, "+d.Name, d, all...)
	}
	s.conclude(room, all...)

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

// moveAcrossACut moves a room while the server of one member is cut off, who is an admin and makes commits meanwhile, with and
// without a change, and speaks in each epoch. Afterwards all are in one group, and read what was said on either side.
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
	s.step("%s is cut off", far.Server.Name)
	const epochs = 3 // of the far side
	said, heads := map[*e2e.Device][]string{}, map[federation.Ref]bool{}
	says := func(d *e2e.Device, text string) {
		s.Helper()
		_, err := d.SendText(s.soon(), room, text)
		s.must(err)
		said[d] = append(said[d], text)
	}
	apart := func(i int) {
		s.Helper()
		says(far, fmt.Sprintf("on the other side, epoch %d", i))
		info, err := far.Room(s.ctx, room)
		s.must(err)
		if info.Suite == suite {
			s.Fatal("the link was not cut")
		}
		heads[info.Head] = true
	}
	apart(0)
	s.must(far.Refresh(s.soon(), room)) // before the others close the group
	apart(1)
	s.step("the other side has made a commit")
	s.move(room, suite, admin, near)
	for _, d := range []*e2e.Device{admin, near} {
		says(d, "on this side: "+d.Name)
	}
	s.commit(room, far) // while the others are in the next group
	apart(2)
	if len(heads) != epochs {
		s.Fatalf("the other side was in %d epochs, want %d: the test proves nothing", len(heads), epochs)
	}
	s.step("the other side has made another")
	s.must(s.w.Unblock(s.ctx, "*", "*"))
	s.step("the cut is mended")
	for _, d := range []*e2e.Device{admin, far} { // a homeserver tries again at once when it has something new
		says(d, "after the cut: "+d.Name)
	}
	s.arrive(room, suite, all...)
	for d, texts := range said {
		for _, text := range texts {
			s.read(room, text, d, all...)
		}
	}
	if v := s.conclude(room, all...); v.Lost < epochs-1 {
		s.Errorf("%d messages are of a branch that lost, want %d and more", v.Lost, epochs-1)
	}
}
