package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

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

// A watch counts what /sync answers a device.
type watch struct {
	since func() time.Duration

	mu     sync.Mutex
	rounds []round
}

// A round is an answer.
type round struct {
	at      time.Duration
	senders map[id.RoomID][]string // servers of those whose events are in it
}

func (w *watch) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil || !strings.HasSuffix(req.URL.Path, "/sync") || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	raw, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(raw))
	var answer struct {
		Rooms struct {
			Join map[id.RoomID]struct {
				Timeline struct {
					Events []roomEvent `json:"events"`
				} `json:"timeline"`
			} `json:"join"`
		} `json:"rooms"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := round{at: w.since(), senders: map[id.RoomID][]string{}}
	for room, joined := range answer.Rooms.Join {
		for _, e := range joined.Timeline.Events {
			r.senders[room] = append(r.senders[room], e.Sender.Homeserver())
		}
	}
	w.rounds = append(w.rounds, r)
	return resp, nil
}

// between counts the answers from the first one after a time that brings something of the given servers' into a room, up to
// another time.
func (w *watch) between(room id.RoomID, from, to time.Duration, servers ...string) (n int, first time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.rounds {
		if r.at < from || r.at > to {
			continue
		}
		if n == 0 && !slices.ContainsFunc(r.senders[room], func(server string) bool { return slices.Contains(servers, server) }) {
			continue
		}
		if n++; n == 1 {
			first = r.at
		}
	}
	return n, first
}

// TestPartition: the links between two halves of the servers are cut; both sides go on, with commits, messages, newcomers
// and a ban of somebody of the other side on each. When the links are back all are in one group, with every message, and
// without the banned.
func TestPartition(t *testing.T) { partition(t, 0) }

// faultPartitionOfServers is the same with a cut of five minutes.
func faultPartitionOfServers(t *testing.T) { partition(t, 5*time.Minute) }

func partition(t *testing.T, atLeast time.Duration) {
	s := tell(t, "partition")
	s.whole()
	watches := map[*e2e.Device]*watch{}
	person := func(server, name string) *e2e.Device {
		w := &watch{since: s.w.Since}
		d := s.device(server, fmt.Sprintf("%s%d", name, people.Add(1)), name, e2e.DeviceOptions{HTTP: &http.Client{Transport: w}})
		watches[d] = w
		return d
	}
	a, b, c, d := person("syn1", "alice"), person("syn2", "bob"), person("den1", "carol"), person("syn3", "dave")
	m, x := person("den1", "mallory"), person("syn3", "trudy")
	room := s.gather(client.CreateOptions{Policy: quick(b)}, a, b, c, d, m, x)
	s.power(room, a, b)
	three := []string{a.Server.ServerName, b.Server.ServerName, c.Server.ServerName}
	s.must(a.SetSequencers(s.soon(), room, three...))
	s.listed(room, three, a, b, c, d, m, x)
	s.talk(room, "before the cut", a, b, c, d, m, x)
	sides := [][]string{{"syn1", "syn3"}, {"syn2", "den1"}}
	others := func(d *e2e.Device) (names []string) { // on the side where the device is not
		side := sides[0]
		if slices.Contains(side, d.Server.Name) {
			side = sides[1]
		}
		for _, server := range side {
			names = append(names, s.w.Server(server).ServerName)
		}
		return names
	}

	s.must(s.w.Split(s.ctx, sides...))
	s.step("the links are cut")
	cut := time.Now()
	f, e := person("syn3", "frank"), person("syn2", "erin")
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
	for i := 1; time.Since(cut) < atLeast; i++ {
		for next := time.Now().Add(time.Minute); time.Now().Before(next) && time.Since(cut) < atLeast; {
			s.pause()
		}
		s.commit(room, a)
		s.talk(room, fmt.Sprintf("minority, minute %d", i), a, d, f, x)
		s.commit(room, b)
		s.talk(room, fmt.Sprintf("majority, minute %d", i), b, c, e, m)
	}
	keptM, keptX := s.keep(m, room), s.keep(x, room)

	healed := s.w.Since()
	s.must(s.w.Unblock(s.ctx, "*", "*"))
	s.step("the links are back, after %v", time.Since(cut).Round(time.Second))
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
	moved := 0
	for _, d := range []*e2e.Device{a, b, c, d, e, f} {
		at := s.chose(d, room, v.Head)
		if at < healed {
			continue // it was there
		}
		moved++
		n, first := watches[d].between(room, healed, at, others(d)...)
		s.step("figures: %s was on the branch that all chose %v after the links were back, %v and %d answers of /sync after the first one with something of the other side",
			d.Name, (at - healed).Round(10*time.Millisecond), (at - first).Round(10*time.Millisecond), n)
	}
	if moved == 0 || moved == 6 {
		t.Errorf("%d of six devices left their branch for the one that all chose", moved)
	}
	s.cannotRead(m, keptM, room, a, b, c, d, e, f)
	s.cannotRead(x, keptX, room, b, a, c, d, e, f)
	s.verdict(room, a, b, c, d, e, f)
}

// chose tells when a device came into the epochs that lead to a head, and stayed.
func (s *story) chose(d *e2e.Device, room id.RoomID, head string) (at time.Duration) {
	s.Helper()
	journals, err := s.w.Journals(room)
	s.must(err)
	parents := map[string]string{}
	for _, j := range journals {
		for _, e := range j.Entries {
			if e.Kind == e2e.Entered && strings.Trim(e.Parent, "0") != "" {
				parents[e.Ref] = e.Parent
			}
		}
	}
	leads := map[string]bool{}
	for ref := head; ref != "" && !leads[ref]; ref = parents[ref] {
		leads[ref] = true
	}
	for _, j := range journals {
		if j.Name != d.Name {
			continue
		}
		stays := false
		for _, e := range j.Entries {
			if e.Kind != e2e.Entered {
				continue
			}
			if !leads[e.Ref] {
				stays = false
			} else if !stays {
				stays, at = true, e.At
			}
		}
		if !stays {
			s.Fatalf("%s is not on %s at the end", d.Name, head)
		}
	}
	return at
}
