package rooms

import (
	"fmt"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

func TestSetBack(t *testing.T) {
	const bob = id.UserID("@bob:far.test")
	for _, row := range []struct {
		name   string
		before string // member events of bob: an event's name, its sender's and its membership; * that he spoke, = that the state was read
		state  string // what the state says then
		came   bool   // a member event came while it was read
		want   string // what is forgotten, and what counts again
	}{
		{"nothing happens", "1 bob join", "1 bob join", false, ""},
		{"he leaves unseen", "1 bob join", "2 bob leave", false, ""},
		{"an older one counts", "1 alice invite, 2 bob join", "1 alice invite", false, "2 1"},
		{"one further back", "1 bob leave, 2 alice invite, 3 bob join", "1 bob leave", false, "3 1"},
		{"none counts", "1 alice invite, 2 bob join", "", false, "2 "},
		{"a ban is forgotten", "1 bob join, 2 alice ban", "1 bob join", false, "2 1"},
		{"the answer may be from before", "1 alice invite, 2 bob join", "1 alice invite", true, ""},
		{"the answer may be from before the first", "1 alice invite", "", true, ""},
		{"what was only assumed", "1 bob join,  alice leave", "1 bob join", false, ""},
		{"put out on one side, renamed on the other", "1 bob join, =, 2 alice leave, 3 bob join", "2 alice leave", false, ""},
		{"put out long ago, back, and that is forgotten", "1 bob join, 2 alice leave, 3 alice invite, 4 bob join, *", "2 alice leave", false, "4 2"},
		{"the same, where only the state showed that he is back", "1 alice leave, 2 bob join, =", "1 alice leave", false, "2 1"},
		{"in, and invited on the other side", "1 alice invite, 2 bob join, =, 3 carol invite", "2 bob join", false, ""},
		{"the same, asked and invited there", "1 alice invite, 2 bob join, 3 bob knock, 4 carol invite", "2 bob join", false, ""},
		{"he left in between, and that is forgotten", "1 bob join, 2 bob leave, 3 alice invite", "1 bob join", false, "3 1"},
		{"banned, and invited on the other side", "1 alice ban, *, 2 carol invite, *", "1 alice ban", false, ""},
		{"unbanned, invited, and that is forgotten", "1 alice ban, 2 alice leave, 3 alice invite, *", "1 alice ban", false, "3 1"},
		{"invited on both sides", "1 alice invite, 2 carol invite", "1 alice invite", false, ""},
		{"renamed, and that is forgotten", "1 bob join, 2 bob join", "1 bob join", false, ""},
		{"put out, and his join is shown once more", "1 alice invite, 2 bob join, 3 alice leave, 2 bob join, *", "3 alice leave", false, ""},
		{"and back again", "1 bob leave, 2 bob join, =1 bob leave", "2 bob join", false, "1 2"},
	} {
		t.Run(row.name, func(t *testing.T) {
			apply := func(s *RoomState, text string) {
				var name, sender, membership string
				if name = strings.Split(text, " ")[0]; name != "" {
					name = "$" + name
				}
				rest := strings.Fields(text)
				sender, membership = rest[len(rest)-2], rest[len(rest)-1]
				if err := s.Apply(TypeMember, string(bob), id.UserID("@"+sender+":far.test"), id.EventID(name), []byte(fmt.Sprintf(`{"membership":%q}`, membership))); err != nil {
					t.Fatal(err)
				}
			}
			read := func(old *RoomState, text string, came bool) (*RoomState, []SetBack) {
				s := NewRoomState(old.Room)
				if text != "" {
					apply(s, text)
				}
				return s, s.Succeed(old, func(id.UserID) bool { return came })
			}
			s := NewRoomState("!a:far.test")
			last := ""
			for text := range strings.SplitSeq(row.before, ", ") {
				switch {
				case text == "*":
					s.Spoke(bob)
				case text == "=":
					s, _ = read(s, last, false)
				case text[0] == '=':
					s, _ = read(s, text[1:], false)
				default:
					apply(s, text)
					last = text
				}
			}
			s, back := read(s, row.state, row.came)
			got := ""
			for _, b := range back {
				got += strings.TrimPrefix(string(b.Was.Event), "$") + " " + strings.TrimPrefix(string(b.Now.Event), "$")
			}
			if got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
			// It is told once.
			if _, again := read(s, row.state, false); len(again) > 0 {
				t.Errorf("told again: %v", again)
			}
		})
	}
}

func TestEnded(t *testing.T) {
	const bob = id.UserID("@bob:far.test")
	s := NewRoomState("!a:far.test")
	for i, m := range []string{"invite", "join", "leave", "invite", "join", "leave", "join"} {
		if err := s.Apply(TypeMember, string(bob), bob, id.EventID(fmt.Sprintf("$%d", i)), []byte(`{"membership":"`+m+`"}`)); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []bool{false, false, true, true, true, true, false} {
		if got := s.Ended(bob, id.EventID(fmt.Sprintf("$%d", i))); got != want {
			t.Errorf("event %d has ended: %v, want %v", i, got, want)
		}
	}
	if s.Ended(bob, "") || s.Ended("@carol:far.test", "$1") {
		t.Error("what is none has ended")
	}
}
