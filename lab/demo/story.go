package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
)

const roomName = "The old mill"

// A story is the conversation and who takes part in it.
type story struct {
	ctx     context.Context
	w       *e2e.World
	t       *transcript
	room    id.RoomID
	devices []*e2e.Device
	names   map[*e2e.Device]string
	planted []string
}

// tell is the story, in the order in which it happens.
func (s *story) tell() error {
	s.names = map[*e2e.Device]string{}
	s.t.part("People, each with a cross-signed device of their own")
	alice, err := s.person("syn1", "alice")
	if err != nil {
		return err
	}
	bob, err := s.person("syn2", "bob")
	if err != nil {
		return err
	}
	carol, err := s.person("den1", "carol")
	if err != nil {
		return err
	}

	s.t.part("A room across three servers")
	steps := []func() error{
		func() error { return s.found(alice) },
		func() error { return s.invite(alice, bob) },
		func() error { return s.invite(alice, carol) },
		func() error { return s.speak(alice, "The meeting is at the old mill.", bob, carol) },
		func() error { return s.speak(bob, "I bring the map.", alice, carol) },
		func() error { return s.speak(carol, "And I the lamp.", alice, bob) },
	}
	if err := inOrder(steps...); err != nil {
		return err
	}

	s.t.part("Bob's second device")
	tablet, err := s.device("syn2", "bob", "bob's tablet", e2e.DeviceOptions{RecoveryKey: bob.Recovery})
	if err != nil {
		return err
	}
	steps = []func() error{
		func() error { return s.settle(tablet) },
		func() error { return s.speak(tablet, "Reading along on the way.", alice, bob, carol) },
		func() error { return s.file(carol, alice, bob, tablet) },
	}
	if err := inOrder(steps...); err != nil {
		return err
	}

	s.t.part("Carol is removed")
	return inOrder(
		func() error { return s.remove(alice, carol, bob, tablet) },
		func() error { return s.members(alice) },
		s.search,
	)
}

func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// word makes a text that is nowhere else, to look for later.
func (s *story) word() string {
	var b [8]byte
	rand.Read(b[:])
	w := "planted" + hex.EncodeToString(b[:])
	s.planted = append(s.planted, w)
	return w
}

func (s *story) soon() (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.ctx, e2e.Soon)
}

func (s *story) person(server, name string) (*e2e.Device, error) {
	return s.device(server, name, name, e2e.DeviceOptions{})
}

func (s *story) device(server, localpart, name string, o e2e.DeviceOptions) (*e2e.Device, error) {
	ctx, cancel := s.soon()
	defer cancel()
	d, err := s.w.NewDevice(ctx, server, localpart, strings.NewReplacer("'", "", " ", "-").Replace(name), o)
	if err != nil {
		return nil, err
	}
	s.devices, s.names[d] = append(s.devices, d), name+"@"+letter(server)
	s.t.say("%-14s %s, device %s", s.names[d], d.UserID(), d.DeviceID())
	return d, nil
}

func (s *story) end() {
	for _, d := range s.devices {
		if err := d.Stop(); err != nil {
			s.t.say("%s did not end well: %v", s.names[d], err)
		}
	}
}

// state is the epoch and size of the group as a device sees it.
func (s *story) state(d *e2e.Device) string {
	info, err := d.Room(s.ctx, s.room)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("epoch %d, %d devices", info.Epoch, info.Devices)
}

func (s *story) found(d *e2e.Device) error {
	ctx, cancel := s.soon()
	defer cancel()
	room, err := d.CreateRoom(ctx, client.CreateOptions{Name: roomName, History: "joined"})
	if err != nil {
		return err
	}
	s.room = room
	s.t.say("%s creates %s (%s)", s.names[d], room, s.state(d))
	return nil
}

func (s *story) invite(host, guest *e2e.Device) error {
	ctx, cancel := s.soon()
	defer cancel()
	if err := host.Invite(ctx, s.room, guest.UserID()); err != nil {
		return err
	}
	s.t.say("%s invites %s", s.names[host], s.names[guest])
	_, err := guest.Wait(ctx, "the invite", func(u client.Update) bool {
		i, ok := u.(*client.Invited)
		return ok && i.Room == s.room
	})
	if err != nil {
		return err
	}
	if _, err := guest.Join(ctx, string(s.room), []string{host.Server.ServerName}); err != nil {
		return err
	}
	return s.settle(guest)
}

func (s *story) settle(d *e2e.Device) error {
	ctx, cancel := s.soon()
	defer cancel()
	if err := d.Settle(ctx, s.room); err != nil {
		return fmt.Errorf("%s: %w", s.names[d], err)
	}
	s.t.say("%s is in the group (%s)", s.names[d], s.state(d))
	return nil
}

// speak sends a message with a planted word in it, and waits until everybody has decrypted it.
func (s *story) speak(from *e2e.Device, text string, to ...*e2e.Device) error {
	ctx, cancel := s.soon()
	defer cancel()
	text += " [" + s.word() + "]"
	if _, err := from.SendText(ctx, s.room, text); err != nil {
		return err
	}
	var readers []string
	var epoch uint64
	for _, d := range to {
		m, err := d.WaitText(ctx, s.room, text)
		if err != nil {
			return err
		}
		if m.Sender != from.UserID() || m.Device != from.DeviceID() {
			return fmt.Errorf("%s read a message of %s as one of %s", s.names[d], from.UserID(), m.Sender)
		}
		epoch = m.Epoch
		readers = append(readers, s.names[d])
	}
	s.t.say("epoch %d  %s: %s", epoch, s.names[from], text)
	s.t.say("         read by %s", strings.Join(readers, ", "))
	return nil
}

func (s *story) file(from *e2e.Device, to ...*e2e.Device) error {
	ctx, cancel := s.soon()
	defer cancel()
	data := bytes.Repeat([]byte(s.word()+"\n"), 4000)
	event, err := from.SendFile(ctx, s.room, client.File{Name: "map.txt", Body: bytes.NewReader(data)})
	if err != nil {
		return err
	}
	s.t.say("%s sends the file map.txt, %d bytes", s.names[from], len(data))
	for _, d := range to {
		u, err := d.Wait(ctx, "the file", func(u client.Update) bool {
			m, ok := u.(*client.Message)
			return ok && m.EventID == event
		})
		if err != nil {
			return err
		}
		_, got, err := d.DownloadFile(ctx, u.(*client.Message))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, data) {
			return fmt.Errorf("%s got another file", s.names[d])
		}
		s.t.say("         %s has it, byte for byte", s.names[d])
	}
	return nil
}

// remove takes a user out and shows that what they kept opens nothing that is sent then.
func (s *story) remove(admin, gone *e2e.Device, stay ...*e2e.Device) error {
	ctx, cancel := s.soon()
	defer cancel()
	kept, err := gone.Keep(ctx, s.room)
	if err != nil {
		return err
	}
	if err := admin.Kick(ctx, s.room, gone.UserID(), ""); err != nil {
		return err
	}
	if err := admin.Settle(ctx, s.room); err != nil {
		return err
	}
	s.t.say("%s removes %s (%s)", s.names[admin], s.names[gone], s.state(admin))
	text := "Carol does not read this. [" + s.word() + "]"
	event, err := admin.SendText(ctx, s.room, text)
	if err != nil {
		return err
	}
	for _, d := range stay {
		m, err := d.WaitText(ctx, s.room, text)
		if err != nil {
			return err
		}
		s.t.say("epoch %d  %s reads: %s", m.Epoch, s.names[d], text)
	}
	ciphertext, err := e2e.Ciphertext(ctx, admin.Server, admin.User, s.room, event)
	if err != nil {
		return err
	}
	opened, err := kept.Opens(ciphertext)
	if err != nil {
		return err
	}
	if opened || gone.Has(s.room, text) {
		return fmt.Errorf("%s reads on after the removal", s.names[gone])
	}
	s.t.say("%s kept the keys of %d epochs: none opens the %d bytes of that message", s.names[gone], len(kept), len(ciphertext))
	return nil
}

func (s *story) members(d *e2e.Device) error {
	list, err := d.Members(s.ctx, s.room)
	if err != nil {
		return err
	}
	for _, m := range list {
		s.t.say("leaf %d  %s %s, %s", m.Leaf, m.User, m.Device, m.Verification)
	}
	return nil
}

// search looks for the planted words, and for a control that must be found.
func (s *story) search() error {
	s.t.part("The plaintext, searched for on the servers' side")
	controls := map[string]string{}
	var words []string
	for _, server := range s.w.All() {
		control, err := s.plant(server.Name)
		if err != nil {
			return err
		}
		controls[control] = server.Name
		words = append(words, control)
	}
	found, err := s.w.Search(s.ctx, append(words, s.planted...)...)
	if err != nil {
		return err
	}
	seen := map[string]string{}
	var leaks []string
	for _, hit := range found.Hits {
		if server := controls[hit.Text]; server != "" {
			seen[server] = hit.Path
		} else {
			leaks = append(leaks, hit.String())
		}
	}
	s.t.say("%d files and tables of homeservers and modules, %d MB: databases, logs, media", found.Files, found.Bytes>>20)
	for _, server := range s.w.All() {
		path := seen[server.Name]
		if path == "" {
			return fmt.Errorf("the unencrypted control message was not found at %s: the search proves nothing", server.Name)
		}
		if rel, err := filepath.Rel(s.w.Dir(), path); err == nil {
			path = rel
		}
		s.t.say("control: an unencrypted message on %s is found, in %s", letter(server.Name), path)
	}
	if len(leaks) > 0 {
		return errors.New("plaintext on the servers' side: " + strings.Join(leaks, "; "))
	}
	s.t.say("the %d planted words of the encrypted room, as text, hex and base64: found nowhere", len(s.planted))
	return nil
}

// plant sends an unencrypted message on a server.
func (s *story) plant(server string) (string, error) {
	user, err := s.w.AddUser(s.ctx, server, "control")
	if err != nil {
		return "", err
	}
	room, err := e2e.CreatePlainRoom(s.ctx, s.w.Server(server), user)
	if err != nil {
		return "", err
	}
	var b [8]byte
	rand.Read(b[:])
	text := "control" + hex.EncodeToString(b[:])
	_, err = e2e.SendPlain(s.ctx, s.w.Server(server), user, room, "m.room.message", "1", map[string]string{"msgtype": "m.text", "body": text})
	return text, err
}

// farewell says how to go on by hand.
func (s *story) farewell(bin string) error {
	for _, server := range s.w.All() {
		report, err := s.w.Doctor(s.ctx, server.Name)
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(report), "\n")
		s.t.say("%s: %s, doctor: %s", letter(server.Name), server.BaseURL, lines[len(lines)-1])
	}
	fromHere := func(path string) string {
		if wd, err := os.Getwd(); err == nil {
			if rel, err := filepath.Rel(wd, path); err == nil {
				return rel
			}
		}
		return path
	}
	proxy, state := filepath.Join(bin, "mls-proxy"), fromHere(s.devices[0].StateDir())
	fmt.Printf("\nGo on as %s from a terminal, and from a second one:\n\n", s.names[s.devices[0]])
	fmt.Printf("  %s --state %s tail %q\n", proxy, state, roomName)
	fmt.Printf("  %s --state %s send %q \"hello\"\n", proxy, state, roomName)
	fmt.Printf("\nmake demo-stop DEMO_DIR=%s ends the servers and deletes what they hold.\n", fromHere(s.w.Dir()))
	return nil
}
