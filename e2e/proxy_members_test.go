package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/lab"
)

// device is the MLS device of an account of the proxy's, for the other verbs.
func (p *localProxy) device(user *plainClient) *prompt {
	p.s.Helper()
	folders, _ := filepath.Glob(filepath.Join(p.state, "accounts", "*"+user.UserID.Localpart()+"*"))
	if len(folders) != 1 {
		p.s.Fatalf("the accounts of %s are %v", user.UserID, folders)
	}
	d := &prompt{s: p.s, server: p.server, cwd: p.s.TempDir(), state: folders[0]}
	d.user.UserID = user.UserID.String()
	return d
}

// TestProxyTwoMembers: two people with clients without MLS, behind proxies of their own. Who is invited gets what was said
// before; each sees whose device has received a message; a third, behind the same proxy as the first, talks with both, and
// a second client of the first reads it, too; what one of them had is written into a file and read in on
// another device, while the first is off; and who leaves the room and forgets it has nothing of it any more.
func TestProxyTwoMembers(t *testing.T) {
	s := tell(t, "sqlite")
	join := func(server, name string) (*localProxy, *plainClient, lab.User) {
		t.Helper()
		user, err := s.w.AddUser(s.ctx, server, fmt.Sprintf("%s%d", name, people.Add(1)))
		s.must(err)
		p := s.proxy(server)
		return p, p.client(user), user
	}
	annas, anna, account := join("syn1", "anna")
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
		anna.brings(ben, room)
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

	third := s.sharesTheProxy(annas, anna, ben, account, room, text)

	// Another device of anna's, while the first cannot give it anything.
	device := annas.device(anna)
	device.runWith("correct horse\n", "export", "messages", string(room), "--passphrase-file", "-")
	annas.end()
	other := &prompt{s: s, server: annas.server}
	other.user.UserID, other.user.Password = anna.UserID.String(), account.Password
	other.newDevice()
	other.login()
	other.run("verify", "--recovery-key-file", filepath.Join(device.state, "recovery-key"))
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
	s.blind(append(third, before, text, answer))
}

// brings invites somebody, who joins.
func (c *plainClient) brings(whom *plainClient, room id.RoomID) {
	s := c.s
	s.Helper()
	_, err := c.InviteUser(s.soon(), room, &mautrix.ReqInviteUser{UserID: whom.UserID})
	s.must(err)
	ctx := s.soon()
	for invited := false; !invited; {
		resp, err := whom.sync(ctx, room)
		s.must(err)
		invited = resp.Rooms.Invite[room] != nil
	}
	_, err = whom.JoinRoomByID(s.soon(), room)
	s.must(err)
}

// sharesTheProxy lets another account come into a room that one of the same proxy is in, talk with all there, and a second
// client of the first account read it. It returns what was said.
func (s *story) sharesTheProxy(p *localProxy, first, far *plainClient, account lab.User, room id.RoomID, before string) []string {
	s.Helper()
	user, err := s.w.AddUser(s.ctx, p.server.Name, fmt.Sprintf("cleo%d", people.Add(1)))
	s.must(err)
	cleo := p.client(user)
	first.brings(cleo, room)
	device := p.device(cleo)
	s.eventually("another account of the same proxy is in the group", func() string {
		said := device.run("rooms", "--json")
		if !strings.Contains(said, `"phase":"member"`) {
			return said
		}
		return ""
	})
	second := p.client(account)
	if second.UserID != first.UserID || second.DeviceID == first.DeviceID {
		s.Errorf("the second client is %s %s, the first %s %s", second.UserID, second.DeviceID, first.UserID, first.DeviceID)
	}
	asks, answers := token("asks"), token("answers")
	asked := cleo.send(room, "m.room.message", "1", map[string]any{"msgtype": "m.text", "body": asks})
	for _, c := range []*plainClient{first, far, second} {
		if e := c.reads(room, asks); e.Sender != cleo.UserID || e.ID != asked {
			s.Errorf("%s read %s of %s, want %s of %s", c.UserID, e.ID, e.Sender, asked, cleo.UserID)
		}
	}
	answered := first.send(room, "m.room.message", "4", map[string]any{"msgtype": "m.text", "body": answers})
	for _, c := range []*plainClient{cleo, far, second} {
		if e := c.reads(room, answers); e.Sender != first.UserID || e.ID != answered {
			s.Errorf("%s read %s of %s, want %s of %s", c.UserID, e.ID, e.Sender, answered, first.UserID)
		}
	}
	if own := first.reads(room, answers); own.Unsigned.TransactionID != "4" || second.reads(room, answers).Unsigned.TransactionID != "" {
		s.Errorf("the transaction of the first client's is %q to it, and %q to the second", own.Unsigned.TransactionID, second.reads(room, answers).Unsigned.TransactionID)
	}
	second.since, second.seen = "", nil
	if history := second.history(room); !slices.ContainsFunc(history, func(e *event.Event) bool { return body(e) == before }) {
		s.Errorf("the second client does not read %q", before)
	}
	_, err = second.Logout(s.soon())
	s.must(err)
	s.step("two accounts of one proxy, and two clients of one of them, have talked")
	return []string{asks, answers}
}
