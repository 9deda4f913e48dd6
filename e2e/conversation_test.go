package e2e_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"testing"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
)

// token is a text that is nowhere else.
func token(what string) string {
	var b [12]byte
	rand.Read(b[:])
	return what + "-" + hex.EncodeToString(b[:])
}

// TestConversation is the whole way through once, on SQLite and on PostgreSQL: three servers, a room, a join, a second
// device, an edit, a reaction, a file, and a removal; nothing of it is readable on the servers.
func TestConversation(t *testing.T) {
	for _, name := range []string{"sqlite", "postgres"} {
		t.Run(name, func(t *testing.T) {
			s := tell(t, name)
			alice, bob, carol := s.person("syn1", "alice"), s.person("syn2", "bob"), s.person("den1", "carol")
			room := s.room(client.CreateOptions{Name: "Conversation"}, alice, bob, carol)
			s.agree(room, alice, bob, carol)
			s.talk(room, "everybody is here", alice, bob, carol)
			before := token("before")
			s.say(room, before, alice, bob, carol)

			laptop := s.second(bob)
			s.must(laptop.Settle(s.soon(), room))
			s.agree(room, alice, bob, carol, laptop)
			s.talk(room, "a second device", alice, bob, carol, laptop)
			s.history(laptop, bob, room, before)

			secret := token("planted")
			first := s.say(room, "the word is "+secret, alice, bob, carol, laptop)
			edited := token("edited")
			_, err := alice.Edit(s.soon(), room, first, "the word was "+edited)
			s.must(err)
			reaction := token("reaction")
			_, err = bob.React(s.soon(), room, first, reaction)
			s.must(err)
			for _, d := range []struct {
				device *e2e.Device
				text   string
			}{{carol, edited}, {laptop, edited}, {carol, reaction}, {alice, reaction}} {
				_, err := d.device.Wait(s.soon(), "an event that holds "+d.text, func(u client.Update) bool {
					m, ok := u.(*client.Message)
					return ok && bytes.Contains(m.Content, []byte(d.text))
				})
				s.must(err)
			}
			file := s.sendFile(room, carol, alice, bob, laptop)

			kept := s.keep(carol, room)
			s.must(alice.Kick(s.soon(), room, carol.UserID(), ""))
			s.gone(carol, room)
			s.cannotRead(carol, kept, room, alice, bob, laptop)
			s.agree(room, alice, bob, laptop)

			s.blind([]string{before, secret, edited, reaction, file})
			s.healthy()
		})
	}
}

// sendFile sends a file, lets the others read it, and returns a text that it held.
func (s *story) sendFile(room id.RoomID, from *e2e.Device, to ...*e2e.Device) string {
	s.Helper()
	inside := token("inside-the-file")
	data := bytes.Repeat([]byte(inside+"\n"), 3000)
	sent, err := from.SendFile(s.soon(), room, client.File{Name: token("name") + ".txt", Body: bytes.NewReader(data)})
	s.must(err)
	for _, d := range to {
		u, err := d.Wait(s.soon(), "the file", func(u client.Update) bool {
			m, ok := u.(*client.Message)
			return ok && m.EventID == sent
		})
		s.must(err)
		content, got, err := d.DownloadFile(s.soon(), u.(*client.Message))
		s.must(err)
		if !bytes.Equal(got, data) || content.MsgType != event.MsgFile {
			s.Errorf("%s got a %s of %d bytes, want the file of %d bytes", d.Name, content.MsgType, len(got), len(data))
		}
	}
	return inside
}

// keep copies what a device could read with before it is removed.
func (s *story) keep(d *e2e.Device, room id.RoomID) e2e.Kept {
	s.Helper()
	kept, err := d.Keep(s.ctx, room)
	s.must(err)
	return kept
}

// gone waits until a device's own client knows that it is out.
func (s *story) gone(d *e2e.Device, room id.RoomID) {
	s.Helper()
	_, err := d.Wait(s.soon(), "word of its removal", func(u client.Update) bool {
		r, ok := u.(*client.Removed)
		return ok && r.Room == room
	})
	s.must(err)
}

// cannotRead lets one of those who stayed send, and shows that the one who was removed opens it neither with its own
// client nor with the keys it kept; the same message opens for those who stayed.
func (s *story) cannotRead(removed *e2e.Device, kept e2e.Kept, room id.RoomID, from *e2e.Device, others ...*e2e.Device) {
	s.Helper()
	text := token("after the removal")
	sent := s.say(room, text, from, others...)
	ciphertext, err := e2e.Ciphertext(s.ctx, from.Server, from.User, room, sent)
	s.must(err)
	opened, err := kept.Opens(ciphertext)
	s.must(err)
	if opened {
		s.Errorf("%s was removed, and what it kept opens a message sent after that", removed.Name)
	}
	if removed.Has(room, text) {
		s.Errorf("%s was removed and was told %q", removed.Name, text)
	}
}

// blind has texts looked for besides those that the story's devices sent or read.
func (s *story) blind(texts []string) { s.spoken = append(s.spoken, texts...) }

// healthy lets the doctor look at every module.
func (s *story) healthy() {
	s.Helper()
	for _, server := range s.w.All() {
		if report, err := s.w.Doctor(s.soon(), server.Name); err != nil {
			s.Errorf("%v", err)
		} else if !strings.Contains(report, "ok") {
			s.Errorf("the doctor on %s says: %s", server.Name, report)
		}
	}
}
