package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestGaps: after a cut between servers, the homeservers leave out of their transactions and syncs what others sent
// meanwhile. Modules and clients notice and fetch it.
func TestGaps(t *testing.T) {
	for _, far := range []string{"syn2", "den1"} {
		t.Run("behind a cut: "+far, func(t *testing.T) {
			s := tell(t, "sqlite")
			alice, bob, carol := s.person("syn1", "alice"), s.person(far, "bob"), s.person("syn1", "carol")
			room := s.room(client.CreateOptions{}, alice, bob)
			s.talk(room, "before", alice, bob)
			near := alice.Server.Name
			for _, link := range [][2]string{{near, far}, {far, near}} {
				s.must(s.w.Block(s.ctx, link[0], link[1]))
			}
			t.Cleanup(func() {
				if err := s.w.Unblock(t.Context(), "*", "*"); err != nil && t.Context().Err() == nil {
					t.Error(err)
				}
			})
			// Epochs and messages pass while the link is cut: more than a homeserver asks for by itself.
			s.must(alice.Invite(s.soon(), room, carol.UserID()))
			s.join(carol, room, alice)
			const n = 25
			for i := range n {
				_, err := alice.SendText(s.soon(), room, fmt.Sprintf("during the cut %d", i))
				s.must(err)
			}
			s.must(alice.Kick(s.soon(), room, carol.UserID(), ""))
			s.must(alice.Settle(s.soon(), room))
			if bob.Has(room, "during the cut 0") {
				t.Fatal("the link was not cut")
			}
			s.must(s.w.Unblock(s.ctx, "*", "*"))
			_, err := alice.SendText(s.soon(), room, "after the cut")
			s.must(err)
			s.read(room, "after the cut", alice, bob)
			for i := range n {
				s.read(room, fmt.Sprintf("during the cut %d", i), alice, bob)
			}
			s.talk(room, "healed", alice, bob)
			s.agree(room, alice, bob)
		})
	}
}

// TestModuleRestarts: a module that is killed in the middle of things goes on where it was, and what came while it was
// away is done then.
func TestModuleRestarts(t *testing.T) {
	for _, name := range []string{"sqlite", "postgres"} {
		t.Run(name, func(t *testing.T) {
			s := tell(t, name)
			alice, bob, carol := s.person("syn1", "alice"), s.person("den1", "bob"), s.person("syn1", "carol")
			room := s.room(client.CreateOptions{}, alice, bob)
			for _, server := range []string{"syn1", "den1"} {
				s.must(s.w.Kill(s.ctx, s.w.Module(server).Name))
			}
			// A commit waits for its accept, messages of the epoch do not.
			s.must(alice.Invite(s.soon(), room, carol.UserID()))
			s.say(room, "the modules are away", bob, alice)
			for _, server := range []string{"syn1", "den1"} {
				s.must(s.w.StartModule(s.soon(), server))
			}
			s.join(carol, room, alice)
			s.talk(room, "the modules are back", alice, bob, carol)
			s.agree(room, alice, bob, carol)
		})
	}
}

// TestModuleDatabaseLost: the module that orders the room loses its database and with it the receipt key. It rebuilds
// groups and heads from the room; an admin's client moves the room to the new key.
func TestModuleDatabaseLost(t *testing.T) {
	for _, server := range []string{"syn1", "den1"} {
		for _, name := range []string{"sqlite", "postgres"} {
			t.Run(server+"/"+name, func(t *testing.T) {
				s := tell(t, name)
				alice, bob := s.person(server, "alice"), s.person("syn2", "bob")
				room := s.room(client.CreateOptions{}, alice, bob)
				s.talk(room, "before", alice, bob)
				s.must(s.w.LoseModuleDatabase(s.soon(), server))
				s.must(s.w.StartModule(s.soon(), server))
				// The module announces its new key in the room when it has rebuilt what it knew.
				s.repair(alice, room.String())
				s.talk(room, "after", alice, bob)
				carol := s.person("syn2", "carol")
				s.must(alice.Invite(s.soon(), room, carol.UserID()))
				s.join(carol, room, alice)
				s.talk(room, "with a newcomer", alice, bob, carol)
				s.agree(room, alice, bob, carol)
			})
		}
	}
}

// repair moves the room to the module's new key, as soon as the module has announced it.
func (s *story) repair(admin *e2e.Device, room string) {
	s.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		rooms, err := admin.Rooms(s.ctx)
		s.must(err)
		for _, r := range rooms {
			if r.ID.String() != room {
				continue
			}
			if err = admin.RepairSequencer(s.soon(), r.ID); err == nil {
				return
			}
		}
		if time.Now().After(deadline) {
			s.Fatalf("the room was not moved to the module's new key: %v", err)
		}
		s.pause()
	}
}

// TestClientRestarts: a client that is stopped at any time loses no message and goes on in its epoch.
func TestClientRestarts(t *testing.T) {
	s := tell(t, "sqlite")
	alice, bob := s.person("syn1", "alice"), s.person("den1", "bob")
	room := s.room(client.CreateOptions{}, alice, bob)
	for i := range 3 {
		s.must(bob.Stop())
		text := fmt.Sprintf("while bob was away %d", i)
		s.say(room, text, alice)
		s.must(bob.Restart(s.soon()))
		s.read(room, text, alice, bob)
		s.talk(room, fmt.Sprintf("bob is back %d", i), alice, bob)
	}
	s.agree(room, alice, bob)
}

// A line is between a client and its homeserver. It may lose the answer to a message that the homeserver took. Until it is
// mended nothing goes over it, and no /sync, which may show that message, until a message has gone again.
type line struct {
	mu         sync.Mutex
	lose       bool
	lost       chan struct{} // closed when the answer is lost
	cut, syncs chan struct{} // closed when anything, and when a /sync, may pass; nil: it may
	again      func()        // lets /sync pass: a message has gone once more
	txn        string        // under which that message went
	taken      []id.EventID  // as which the homeserver took it, each time
}

var errCut = errors.New("the line is cut")

func (l *line) RoundTrip(req *http.Request) (*http.Response, error) {
	shows := strings.HasSuffix(req.URL.Path, "/sync")
	_, txn, message := strings.Cut(req.URL.Path, "/send/"+rooms.TypeEncrypted+"/")
	l.mu.Lock()
	loses := message && l.lose
	if loses {
		syncs := make(chan struct{})
		l.lose, l.txn, l.cut, l.syncs, l.again = false, txn, make(chan struct{}), syncs, sync.OnceFunc(func() { close(syncs) })
	}
	waits := l.cut
	if shows {
		waits = l.syncs
	}
	l.mu.Unlock()
	if waits != nil && !loses {
		select {
		case <-waits:
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	l.mu.Lock()
	defer l.mu.Unlock()
	if shows && l.syncs != nil {
		select {
		case <-l.syncs:
		default: // it was cut meanwhile
			return nil, errCut
		}
	}
	var sent struct {
		Event id.EventID `json:"event_id"`
	}
	if !message || json.Unmarshal(body, &sent) != nil || sent.Event == "" {
		return resp, nil
	}
	if txn == l.txn {
		l.taken = append(l.taken, sent.Event)
	}
	if loses {
		close(l.lost)
		return nil, errCut
	}
	if l.again != nil {
		l.again()
	}
	return resp, nil
}

// loseNext loses the answer to the next message. What it returns is closed once the homeserver has the message.
func (l *line) loseNext() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lose, l.taken, l.lost = true, nil, make(chan struct{})
	return l.lost
}

func (l *line) mend() { close(l.cut) }

// TestHomeserverRestarts: each homeserver restarts while people write. One of them has had no answer yet, though the
// homeserver took the message: it goes there again afterwards, under the same transaction id. Synapse knows it, and makes
// no second event; Dendrite keeps such ids in memory alone, and does. The message is shown once.
func TestHomeserverRestarts(t *testing.T) {
	s := tell(t, "sqlite")
	lines := map[string]*line{"syn2": {}, "den1": {}}
	person := func(server, name string) *e2e.Device {
		return s.device(server, fmt.Sprintf("%s%d", name, people.Add(1)), name, e2e.DeviceOptions{HTTP: &http.Client{Transport: lines[server]}})
	}
	alice, bob := person("syn2", "alice"), person("den1", "bob")
	room := s.room(client.CreateOptions{}, alice, bob)
	s.talk(room, "before", alice, bob)
	second := map[id.EventID]bool{}
	for _, server := range []string{"den1", "syn2"} {
		near, far := alice, bob // of the one that restarts
		if server == "den1" {
			near, far = bob, alice
		}
		s.final(room, alice, bob) // else it may be encrypted for another epoch the second time
		l := lines[server]
		lost := l.loseNext()
		twice, done := "sent before and after "+server+" restarted", make(chan error, 1)
		go func() {
			_, err := near.SendText(s.ctx, room, twice)
			done <- err
		}()
		select {
		case <-lost:
		case err := <-done:
			t.Fatalf("%s sent a message, and has an answer: %v", near.Name, err)
		case <-s.soon().Done():
			t.Fatalf("%s sends nothing", near.Name)
		}
		s.must(s.w.Stop(s.ctx, server))
		text := "while " + server + " was away"
		_, err := far.SendText(s.soon(), room, text)
		s.must(err)
		s.must(s.w.Servers.Start(s.ctx, server))
		l.mend()
		select {
		case err := <-done:
			s.must(err)
		case <-s.soon().Done():
			t.Fatalf("the message is not sent again after the restart of %s", server)
		}
		switch events := slices.Compact(slices.Clone(l.taken)); {
		case len(l.taken) < 2:
			t.Errorf("nothing was repeated to %s under the transaction id %s: the test proves nothing", server, l.txn)
		case len(events) > 1 && server != "den1":
			t.Errorf("under one transaction id, before and after its restart, %s took a message as the events %v", server, events)
		default:
			s.step("%s took the message as %v", server, events)
			for _, ev := range events[1:] {
				second[ev] = true
			}
		}
		for _, d := range []*e2e.Device{near, far} {
			s.read(room, twice, near, d)
		}
		s.read(room, text, far, near)
		s.talk(room, server+" is back", alice, bob)
	}
	s.agree(room, alice, bob)
	for _, d := range []*e2e.Device{alice, bob} {
		shown := map[string]int{}
		for _, u := range d.Updates() {
			switch u := u.(type) {
			case *client.Message:
				shown[u.Body()]++
			case *client.Undecryptable: // of a second event that is said, once its key is gone
				if second[u.EventID] && u.Reason == "framing/generation-consumed" {
					continue
				}
				t.Errorf("%s is told of a message that it cannot show: %+v", d.Name, u)
			}
		}
		for text, n := range shown {
			if n != 1 {
				t.Errorf("%s is shown %q %d times", d.Name, text, n)
			}
		}
	}
}

// TestDefaultRateLimits: with the homeservers' own limits, a burst of messages and a commit among them all arrive; the
// client waits as long as it is told to.
func TestDefaultRateLimits(t *testing.T) {
	s := tell(t, "limits")
	alice, bob, carol := s.person("syn1", "alice"), s.person("syn2", "bob"), s.person("den1", "carol")
	room := s.room(client.CreateOptions{}, alice, bob, carol)
	const n = 12 // above every limit's burst, with what else is sent
	done := make(chan error, 2*n)
	for _, d := range []*e2e.Device{alice, carol} {
		for i := range n {
			go func() {
				_, err := d.SendText(s.ctx, room, fmt.Sprintf("burst %d of %s", i, d.Name))
				done <- err
			}()
		}
	}
	s.must(alice.Kick(s.ctx, room, bob.UserID(), ""))
	for range 2 * n {
		s.must(<-done)
	}
	for i := range n {
		s.read(room, fmt.Sprintf("burst %d of %s", i, alice.Name), alice, carol)
		s.read(room, fmt.Sprintf("burst %d of %s", i, carol.Name), carol, alice)
	}
	s.agree(room, alice, carol)
}
