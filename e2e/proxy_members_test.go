package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
)

// device is the MLS device of the proxy's only account, for the other verbs.
func (p *localProxy) device(user *plainClient) *prompt {
	p.s.Helper()
	folders, _ := filepath.Glob(filepath.Join(p.state, "accounts", "*"))
	if len(folders) != 1 {
		p.s.Fatalf("the accounts are %v", folders)
	}
	d := &prompt{s: p.s, server: p.server, cwd: p.s.TempDir(), state: folders[0]}
	d.user.UserID = user.UserID.String()
	return d
}

// TestProxyTwoMembers: two people with clients without MLS, behind proxies of their own. Who is invited gets what was said
// before; each sees whose device has received a message; what one of them had is written into a file and read in on
// another device, while the first is off; and who leaves the room and forgets it has nothing of it any more.
func TestProxyTwoMembers(t *testing.T) {
	s := tell(t, "sqlite")
	join := func(server, name string) (*localProxy, *plainClient, string) {
		t.Helper()
		user, err := s.w.AddUser(s.ctx, server, fmt.Sprintf("%s%d", name, people.Add(1)))
		s.must(err)
		p := s.proxy(server)
		return p, p.client(user), user.Password
	}
	annas, anna, password := join("syn1", "anna")
	bens, ben, _ := join("den1", "ben")
	empty := ""
	made, err := anna.CreateRoom(s.soon(), &mautrix.ReqCreateRoom{Preset: "private_chat", Name: "Behind proxies", InitialState: []*event.Event{
		{Type: event.StateEncryption, StateKey: &empty, Content: event.Content{Raw: map[string]any{"algorithm": "m.megolm.v1.aes-sha2"}}},
		{Type: event.StateHistoryVisibility, StateKey: &empty, Content: event.Content{Raw: map[string]any{"history_visibility": "shared"}}},
	}})
	s.must(err)
	room, before := made.RoomID, token("before")
	annas.device(anna).run("history", string(room), "--share", "on")
	first := anna.send(room, "m.room.message", "1", map[string]any{"msgtype": "m.text", "body": before})
	s.step("something was said")

	s.part(t, "POST invite and join", func() {
		_, err = anna.InviteUser(s.soon(), room, &mautrix.ReqInviteUser{UserID: ben.UserID})
		s.must(err)
		ctx := s.soon()
		for invited := false; !invited; {
			resp, err := ben.sync(ctx, room)
			s.must(err)
			invited = resp.Rooms.Invite[room] != nil
		}
		_, err = ben.JoinRoomByID(s.soon(), room)
		s.must(err)
	})
	// Homeservers show what was said before when it is asked for.
	var shown []string
	s.eventually("who was invited reads what was said before, and who says so", func() string {
		page, err := ben.Messages(s.soon(), room, "", "", mautrix.DirectionBackward, nil, 50)
		if err != nil {
			return err.Error()
		}
		shown = nil
		for _, e := range page.Chunk {
			shown = append(shown, body(e))
			if e.ID == first && body(e) == "[shared by "+anna.UserID.String()+"] "+before {
				return ""
			}
		}
		return strings.Join(shown, "\n")
	})

	received := func(p *localProxy, of *plainClient, evt id.EventID, by id.UserID) {
		t.Helper()
		device := p.device(of)
		s.eventually(by.String()+" has received what "+of.UserID.String()+" said", func() string {
			var got struct {
				Event   id.EventID           `json:"event_id"`
				Devices []client.DeliveredTo `json:"devices"`
			}
			said := device.run("receipts", string(room), string(evt), "--json")
			s.must(json.Unmarshal([]byte(said), &got))
			if got.Event != evt || len(got.Devices) != 1 || got.Devices[0].User != by || !got.Devices[0].Received {
				return said
			}
			return ""
		})
	}
	text, answer := token("text"), token("answer")
	said := anna.send(room, "m.room.message", "2", map[string]any{"msgtype": "m.text", "body": text})
	ben.reads(room, text)
	received(annas, anna, said, ben.UserID)
	answered := ben.send(room, "m.room.message", "3", map[string]any{"msgtype": "m.text", "body": answer})
	anna.reads(room, answer)
	received(bens, ben, answered, anna.UserID)

	// Another device of anna's, while the first cannot give it anything.
	device := annas.device(anna)
	device.runWith("correct horse\n", "export", "messages", string(room), "--passphrase-file", "-")
	keys, _ := filepath.Glob(filepath.Join(annas.state, "accounts", "*", "recovery-key"))
	if len(keys) != 1 {
		t.Fatalf("the recovery keys are %q", keys)
	}
	annas.end()
	other := &prompt{s: s, server: annas.server}
	other.user.UserID, other.user.Password = anna.UserID.String(), password
	other.newDevice()
	other.login()
	other.run("verify", "--recovery-key-file", keys[0])
	file := filepath.Join(device.cwd, "messages")
	var got struct {
		Messages, Known, Dropped, Strange int
	}
	s.eventually("the other device takes the file in", func() string {
		s.must(json.Unmarshal([]byte(other.runWith("correct horse\n", "import", file, "--passphrase-file", "-", "--json")), &got))
		if got.Messages+got.Known < 3 { // an import that was ended early has left some
			return fmt.Sprintf("%+v", got)
		}
		return ""
	})
	read := other.run("history", string(room), "--json")
	for _, want := range []string{before, text, answer} {
		if !strings.Contains(read, want) {
			t.Errorf("the other device lacks %q: %s", want, read)
		}
	}
	other.run("logout")
	s.step("the other device has what was said, from a file")

	kept := func() (n int) {
		t.Helper()
		var wrote struct{ Messages int }
		s.must(json.Unmarshal([]byte(bens.device(ben).runWith("correct horse\n", "export", "all", "--passphrase-file", "-", "--json")), &wrote))
		return wrote.Messages
	}
	if n := kept(); n < 3 {
		t.Errorf("ben's device has %d messages", n)
	}
	s.part(t, "POST leave and forget", func() {
		_, err = ben.LeaveRoom(s.soon(), room)
		s.must(err)
		_, err = ben.MakeRequest(s.soon(), http.MethodPost, ben.BuildClientURL("v3", "rooms", room, "forget"), struct{}{}, nil)
		s.must(err)
		if n := kept(); n != 0 {
			s.Errorf("ben's device has %d messages of a room that he forgot", n)
		}
	})
	s.step("who forgot the room has nothing of it")
	s.blind([]string{before, text, answer})
}
