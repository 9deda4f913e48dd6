package e2e_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
)

// power gives a user power over a room, by a plain request of another who has it.
func (s *story) power(room id.RoomID, by, to *e2e.Device) {
	s.Helper()
	path := "/rooms/" + url.PathEscape(string(room)) + "/state/m.room.power_levels"
	raw, err := e2e.API(s.ctx, by.Server, by.User, http.MethodGet, path, nil)
	s.must(err)
	var levels map[string]any
	s.must(json.Unmarshal(raw, &levels))
	levels["users"].(map[string]any)[string(to.UserID())] = 100
	_, err = e2e.API(s.ctx, by.Server, by.User, http.MethodPut, path, levels)
	s.must(err)
}

// TestPartition: the links between two halves of the servers are cut; both sides go on, with commits, messages, newcomers
// and a ban of somebody of the other side on each. When the links are back all are in one group, with every message, and
// without the banned.
func TestPartition(t *testing.T) {
	s := tell(t, "partition")
	s.whole()
	a, b, c, d := s.person("syn1", "alice"), s.person("syn2", "bob"), s.person("den1", "carol"), s.person("syn3", "dave")
	m, x := s.person("den1", "mallory"), s.person("syn3", "trudy")
	room := s.gather(client.CreateOptions{Policy: quick(b)}, a, b, c, d, m, x)
	s.power(room, a, b)
	three := []string{a.Server.ServerName, b.Server.ServerName, c.Server.ServerName}
	s.must(a.SetSequencers(s.soon(), room, three...))
	s.listed(room, three, a, b, c, d, m, x)
	s.talk(room, "before the cut", a, b, c, d, m, x)

	s.must(s.w.Split(s.ctx, []string{"syn1", "syn3"}, []string{"syn2", "den1"}))
	s.step("the links are cut")
	f, e := s.person("syn3", "frank"), s.person("syn2", "erin")
	s.must(a.Invite(s.soon(), room, f.UserID()))
	s.must(c.Invite(s.soon(), room, e.UserID()))
	s.talk(room, "minority, first", a, d, x)
	s.talk(room, "majority, first", b, c, m)
	s.join(f, room, a)
	s.join(e, room, c)
	s.must(a.Ban(s.soon(), room, m.UserID(), ""))
	s.must(b.Ban(s.soon(), room, x.UserID(), ""))
	s.talk(room, "minority, more", a, d, f, x)
	s.talk(room, "majority, more", b, c, e, m)
	if a.Has(room, "majority, first: "+b.Name+" speaks") || b.Has(room, "minority, first: "+a.Name+" speaks") {
		t.Fatal("the links were not cut: the test proves nothing")
	}
	heads := map[string]bool{}
	for _, d := range []*e2e.Device{a, b} {
		info, err := d.Room(s.ctx, room)
		s.must(err)
		heads[info.Head.String()] = true
	}
	if len(heads) != 2 {
		t.Fatal("the sides did not part: the test proves nothing")
	}
	keptM, keptX := s.keep(m, room), s.keep(x, room)

	s.must(s.w.Unblock(s.ctx, "*", "*"))
	s.step("the links are back")
	for _, d := range []*e2e.Device{a, b, c, d} { // a homeserver tries again at once when it has something new
		_, err := d.SendText(s.soon(), room, "after the cut: "+d.Name+" speaks")
		s.must(err)
	}
	s.gone(m, room)
	s.gone(x, room)
	v := s.conclude(room, a, b, c, d, e, f)
	if v.Out != 2 || v.Lost == 0 {
		t.Errorf("%d devices are out, %d messages of a branch that lost; want two, and some", v.Out, v.Lost)
	}
	s.cannotRead(m, keptM, room, a, b, c, d, e, f)
	s.cannotRead(x, keptX, room, b, a, c, d, e, f)
	s.verdict(room, a, b, c, d, e, f)
}
