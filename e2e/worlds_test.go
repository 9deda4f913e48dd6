package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/proxy/terminal"
)

// Worlds are shared by the tests, which use rooms and users of their own: homeservers take longer to start than most
// stories to tell. Two Synapse and one Dendrite each, all with the module.
var worlds = map[string]*shared{
	"sqlite": {options: e2e.Options{
		Options:        lab.Options{Synapse: 2, Dendrite: 1, Proxy: true},
		ModuleSettings: map[string]string{"MATRIX_MLS_ROOMS_EXPERIMENTAL_SUITES": "true"},
		Record:         true,
	}},
	"postgres": {options: e2e.Options{
		Options: lab.Options{Synapse: 2, Dendrite: 1, HomeserverPostgres: true, Proxy: true}, ModulePostgres: true, Record: true,
	}},
	"sequencers": {options: e2e.Options{Options: lab.Options{Synapse: 2, Dendrite: 1, Proxy: true}, Record: true}}, // its modules are stopped
	"partition": {options: e2e.Options{ // its servers are lost, and its modules killed
		Options:       lab.Options{Synapse: 3, Dendrite: 1, Proxy: true},
		WithoutModule: []string{"syn3"},
		CrashPoints:   true,
		// Trees with a post-quantum suite's keys are large.
		ModuleSettings: map[string]string{"MATRIX_MLS_ROOMS_EXPERIMENTAL_SUITES": "true"},
		Record:         true,
	}},
	"limits": {options: e2e.Options{Options: lab.Options{Synapse: 2, Dendrite: 1, DefaultRateLimits: true, Proxy: true}, Record: true}},
}

type shared struct {
	options e2e.Options
	once    sync.Once
	world   *e2e.World
	err     error

	control string // was said in clear at each server when the world began
	mu      sync.Mutex
	said    map[string]string // what must be nowhere on the servers' side, and the story in which it was said
}

func world(t *testing.T, name string) *e2e.World {
	t.Helper()
	s := worlds[name]
	s.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute) // a first run builds Dendrite
		defer cancel()
		if s.world, s.err = e2e.Start(ctx, s.options); s.err == nil {
			s.err = s.plant(ctx, nil)
		}
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.world
}

// plant says something in clear at each server, by an account of its own where users has none: what finds that would have
// found the rest.
func (s *shared) plant(ctx context.Context, users map[string]lab.User) error {
	s.control = token("control")
	for _, server := range s.world.All() {
		user, there := users[server.Name]
		if !there {
			var err error
			if user, err = s.world.AddUser(ctx, server.Name, fmt.Sprintf("plain%d", people.Add(1))); err != nil {
				return err
			}
		}
		room, err := e2e.CreatePlainRoom(ctx, server, user)
		if err != nil {
			return err
		}
		if _, err = e2e.SendPlain(ctx, server, user, room, "m.room.message", "1", map[string]string{"msgtype": "m.text", "body": s.control}); err != nil {
			return err
		}
	}
	return nil
}

// keep notes what was said in a story.
func (s *shared) keep(story string, texts []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.said == nil {
		s.said = map[string]string{}
	}
	for _, text := range texts {
		if len(s.said) == 0 || s.said[text] == "" {
			s.said[text] = story
		}
	}
}

// blind looks for all that was said in a world in all that its servers' side has written, once, at the world's end. It says
// what is there, and where the search would not have found it.
func (s *shared) blind(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.said) == 0 {
		return nil
	}
	if s.control == "" {
		return errors.New("e2e: nothing was said in clear: the search would prove nothing")
	}
	began := time.Now()
	found, err := s.world.Search(ctx, append(slices.Sorted(maps.Keys(s.said)), s.control)...)
	if err != nil {
		return err
	}
	var wrong []error
	controls := map[string]bool{}
	for _, hit := range found.Hits {
		if hit.Text != s.control {
			wrong = append(wrong, fmt.Errorf("e2e: found on the servers' side: %s, which was said in %s", hit, s.said[hit.Text]))
			continue
		}
		for _, server := range s.world.All() {
			if strings.HasPrefix(hit.Path, server.Dir+"/") || strings.HasPrefix(hit.Path, "PostgreSQL") && s.options.HomeserverPostgres {
				controls[server.Name] = true
			}
		}
	}
	for _, server := range s.world.All() {
		if !controls[server.Name] {
			wrong = append(wrong, fmt.Errorf("e2e: the search does not find a plain message at %s: it proves nothing", server.Name))
		}
	}
	fmt.Printf("e2e: looked for %d texts in %d files, %d MB, of a world's servers in %v\n", len(s.said), found.Files, found.Bytes>>20, time.Since(began).Round(time.Millisecond))
	return errors.Join(wrong...)
}

func TestMain(m *testing.M) {
	if os.Getenv(asProxy) != "" { // a process of its own, which a test can kill
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		code := terminal.Main(ctx, os.Args[1:], terminal.System())
		stop()
		os.Exit(code)
	}
	if raw := os.Getenv(asAdmin); raw != "" {
		fmt.Fprintln(os.Stderr, "e2e:", closeGroup(raw)) // it is killed, or has failed
		os.Exit(1)
	}
	code := m.Run()
	for name, s := range worlds {
		if s.world == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		if err := s.blind(ctx); err != nil {
			fmt.Println(err)
			code = 1
		}
		cancel()
		if code != 0 {
			if dir, err := s.world.KeepLogs("e2e-" + name); err == nil {
				fmt.Println("e2e: logs are in", dir)
			}
		}
		if err := s.world.Close(); err != nil {
			fmt.Println(err)
			code = 1
		}
	}
	os.Exit(code)
}

// A story is a test with people in it.
type story struct {
	testing.TB
	w   *e2e.World
	of  *shared // the world, with what was said there
	ctx context.Context

	began  time.Time
	crew   []*e2e.Device // whose messages are looked for: on the wire, and in all that the servers have written
	spoken []string      // and others
	silent bool          // nobody says anything
	parts  []string      // that were told: see part
}

var people atomic.Uint64

func tell(t *testing.T, worldName string) *story {
	t.Helper()
	w := world(t, worldName)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	s := &story{TB: t, w: w, of: worlds[worldName], ctx: ctx, began: time.Now()}
	s.record()
	t.Cleanup(cancel)
	return s
}

// record looks, when the story is told, for all its messages on the wire: what the homeservers and modules are told, and
// tell each other. In what they have written they are looked for at the world's end.
func (s *story) record() {
	s.Helper()
	wire := s.w.Wire()
	if wire == nil {
		const why = "without root, on Linux, the wire is not looked at"
		if os.Getenv("CI") != "" { // where nobody reads the log
			s.Fatal(why)
		}
		s.Log(why)
	} else {
		s.must(wire.Begin())
	}
	s.Cleanup(func() {
		secrets := append(s.bodies(), s.spoken...)
		if len(secrets) == 0 && !s.silent && !s.Failed() {
			s.Error("nothing that was said is looked for: name it in spoken")
		}
		s.of.keep(s.Name(), secrets)
		if wire != nil {
			s.heard(wire, secrets)
		}
	})
}

// heard looks for secrets on the wire.
func (s *story) heard(wire *e2e.Wire, secrets []string) {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), e2e.Soon)
	defer cancel()
	began := time.Now()
	controls := map[string]string{}
	for _, server := range s.w.All() {
		word := token("control")
		if e2e.Ask(ctx, server, "/_matrix/client/versions?"+word) == nil { // a story may have ended one
			controls[word] = server.Name
		}
	}
	found, err := wire.Find(ctx, slices.Concat(slices.Collect(maps.Keys(controls)), secrets))
	if err != nil {
		s.Error(err)
		return
	}
	for _, hit := range found {
		if slices.Contains(secrets, hit.Text) {
			s.Errorf("on the wire, at the servers' side, there is %q (%s)", hit.Text, hit.Form)
		}
		delete(controls, hit.Text)
	}
	for _, server := range controls {
		s.Errorf("what %s was asked is not found on the wire: that nothing else is proves nothing", server)
	}
	lost, gaps := wire.Lost()
	if lost > 0 {
		s.Errorf("%d packets came faster than they were recorded: what was in them is not known", lost)
	}
	s.Logf("looked for %d texts on the wire in %v; %d segments came late", len(secrets), time.Since(began).Round(time.Millisecond), gaps)
}

// bodies are the texts that the story's devices sent or read, of those that are long enough to be found nowhere else and are
// written in one way only.
func (s *story) bodies() (out []string) {
	for _, d := range s.crew {
		for _, u := range d.Updates() {
			m, ok := u.(*client.Message)
			if !ok {
				continue
			}
			if text := m.Body(); len(text) >= 12 && !strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' || strings.ContainsRune(`"\<>&'+%`, c) }) {
				out = append(out, text)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (s *story) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// soon bounds one wait.
func (s *story) soon() context.Context {
	ctx, cancel := context.WithTimeout(s.ctx, e2e.Soon)
	s.Cleanup(cancel)
	return ctx
}

// person makes an account of their own on a server, with one device.
func (s *story) person(server, name string) *e2e.Device {
	s.Helper()
	return s.device(server, fmt.Sprintf("%s%d", name, people.Add(1)), name, e2e.DeviceOptions{})
}

func (s *story) device(server, localpart, name string, o e2e.DeviceOptions) *e2e.Device {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, e2e.Soon)
	defer cancel()
	d, err := s.w.NewDevice(ctx, server, localpart, fmt.Sprintf("%s-%s", localpart, name), o)
	s.must(err)
	s.crew = append(s.crew, d)
	s.Cleanup(func() {
		if err := d.Stop(); err != nil {
			s.Errorf("end %s: %v", d.Name, err)
		}
	})
	s.step("%s is there", d.Name)
	return d
}

// second adds one more device of the same user.
func (s *story) second(d *e2e.Device) *e2e.Device {
	s.Helper()
	return s.device(d.Server.Name, d.User.Localpart, "second", e2e.DeviceOptions{RecoveryKey: d.Recovery})
}

// history has a device get what was said before it joined from another of its user's.
func (s *story) history(d, giver *e2e.Device, room id.RoomID, text string) {
	s.Helper()
	if d.Has(room, text) {
		s.Fatalf("%s has %q already", d.Name, text)
	}
	_, err := d.AskHistory(s.soon(), room)
	s.must(err)
	u, err := d.Wait(s.soon(), "the history", func(u client.Update) bool {
		h, ok := u.(*client.HistoryReceived)
		return ok && h.Room == room && h.Last
	})
	s.must(err)
	if h := u.(*client.HistoryReceived); h.Device != giver.DeviceID() || !h.Own || h.Dropped != 0 {
		s.Errorf("the history that %s got: %+v", d.Name, h)
	}
	list, err := d.Messages(s.ctx, room, "", 1000)
	s.must(err)
	for _, m := range list {
		if m.Body() == text && m.From != nil && m.From.Own {
			s.step("%s has what was said before it joined", d.Name)
			return
		}
	}
	s.Errorf("%q is not among the %d messages that %s has", text, len(list), d.Name)
}

// room is made by the first; the others are invited and join. It returns when all are in the group.
func (s *story) room(o client.CreateOptions, founder *e2e.Device, others ...*e2e.Device) id.RoomID {
	s.Helper()
	room, err := founder.CreateRoom(s.soon(), o)
	s.must(err)
	s.step("the room is founded")
	for _, d := range others {
		s.must(founder.Invite(s.soon(), room, d.UserID()))
	}
	for _, d := range others {
		s.join(d, room, founder)
	}
	return room
}

// join lets a user join as soon as the device shows the invite, and waits until the device is in the group.
func (s *story) join(d *e2e.Device, room id.RoomID, via *e2e.Device) {
	s.Helper()
	s.enter(d, room, via)
	s.must(d.Settle(s.soon(), room))
	s.step("%s joined", d.Name)
}

// enter lets a user join, and does not wait for the group.
func (s *story) enter(d *e2e.Device, room id.RoomID, via *e2e.Device) {
	s.Helper()
	_, err := d.Wait(s.soon(), "the invite", func(u client.Update) bool {
		i, ok := u.(*client.Invited)
		return ok && i.Room == room
	})
	s.must(err)
	_, err = d.Join(s.soon(), string(room), []string{via.Server.ServerName})
	s.must(err)
}

// step notes how far the story is, and how long it took to get there.
func (s *story) step(format string, args ...any) {
	s.Helper()
	s.Logf("%5.1f s "+format, append([]any{time.Since(s.began).Seconds()}, args...)...)
}

// say lets one send and all others read, and returns the event.
func (s *story) say(room id.RoomID, text string, from *e2e.Device, to ...*e2e.Device) id.EventID {
	s.Helper()
	event, err := from.SendText(s.soon(), room, text)
	s.must(err)
	s.read(room, text, from, to...)
	return event
}

func (s *story) read(room id.RoomID, text string, from *e2e.Device, to ...*e2e.Device) {
	s.Helper()
	for _, d := range to {
		m, err := d.WaitText(s.soon(), room, text)
		s.must(err)
		if m.Sender != from.UserID() || m.Device != from.DeviceID() {
			s.Fatalf("%s read %q as of %s %s, it is of %s %s", d.Name, text, m.Sender, m.Device, from.UserID(), from.DeviceID())
		}
	}
}

// talk lets everybody send and everybody else read.
func (s *story) talk(room id.RoomID, topic string, all ...*e2e.Device) {
	s.Helper()
	for _, from := range all {
		others := slices.DeleteFunc(slices.Clone(all), func(d *e2e.Device) bool { return d == from })
		s.say(room, topic+": "+from.Name+" speaks", from, others...)
	}
	s.step("%s: everybody spoke", topic)
}

// agree compares the members that all devices see.
func (s *story) agree(room id.RoomID, all ...*e2e.Device) {
	s.Helper()
	deadline := time.Now().Add(e2e.Soon)
	for {
		var views []string
		for _, d := range all {
			info, err := d.Room(s.ctx, room)
			s.must(err)
			members, err := d.Members(s.ctx, room)
			s.must(err)
			view := fmt.Sprintf("epoch %d:", info.Epoch)
			for _, m := range members {
				if m.Device != "" {
					view += fmt.Sprintf(" %d=%s/%s", m.Leaf, m.User, m.Device)
				}
			}
			views = append(views, view)
		}
		if len(slices.Compact(slices.Clone(views))) == 1 {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("the devices do not agree:\n%s", strings.Join(views, "\n"))
		}
		s.pause()
	}
}

// pause waits for the next update of anybody; there is no event for "the same everywhere".
func (s *story) pause() {
	select {
	case <-time.After(200 * time.Millisecond):
	case <-s.ctx.Done():
		s.Fatal(s.ctx.Err())
	}
}
