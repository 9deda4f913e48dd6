package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
)

// TestProxyKilled: `mls-proxy run` is killed again and again while its client sends: when a request has just come, and when
// the first of several has been answered. The client repeats what was not answered. Nobody lacks a message or has one twice,
// no key was used twice, and what is unread is counted right. It is stopped, too, while its homeserver is started anew.
func TestProxyKilled(t *testing.T) {
	s := tell(t, "sqlite")
	alice := s.person("syn1", "alice")
	user, err := s.w.AddUser(s.ctx, "syn2", fmt.Sprintf("plain%d", people.Add(1)))
	s.must(err)
	p := &localProxy{s: s, server: s.w.Server("syn2"), state: filepath.Join(s.TempDir(), "state"), apart: true}
	p.start()
	at, err := url.Parse(p.url)
	s.must(err)
	p.listen = at.Host // clients find it there again
	bob := p.client(user)
	room, err := alice.CreateRoom(s.soon(), client.CreateOptions{Name: "In spite of kills"})
	s.must(err)
	s.must(alice.Invite(s.soon(), room, bob.UserID))
	bob.accepts(alice, room)
	refused := alice.Refusals()

	const kills, atOnce = 4, 3
	var texts, said []string
	for round := range kills {
		var wg sync.WaitGroup
		reached := make(chan struct{}, 1)
		reach := func() {
			select {
			case reached <- struct{}{}:
			default:
			}
		}
		for i := range atOnce {
			text := token(fmt.Sprintf("round-%d-%d", round, i))
			texts = append(texts, text)
			wg.Go(func() {
				ctx := s.soon()
				if round%2 == 0 {
					ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { reach() }})
				}
				bob.insists(ctx, room, text)
				reach()
			})
		}
		<-reached
		p.kill()
		while := token(fmt.Sprintf("while-it-was-dead-%d", round))
		_, err := alice.SendText(s.soon(), room, while)
		s.must(err)
		said = append(said, while)
		p.start()
		wg.Wait()
		for _, text := range texts[round*atOnce:] {
			_, err := alice.WaitText(s.soon(), room, text)
			s.must(err)
			bob.reads(room, text)
		}
		bob.reads(room, while)
		s.step("kill %d", round)
	}

	bob.once(alice, room, refused, texts, said)

	// As on a machine that sleeps: meanwhile the homeserver has closed the connections.
	p.signal(syscall.SIGSTOP)
	ended := false
	defer func() {
		if !ended { // other stories need the server, and this one's end the program
			p.signal(syscall.SIGCONT)
			if err := s.w.Servers.Start(context.WithoutCancel(s.ctx), "syn2"); err != nil {
				t.Error(err)
			}
		}
	}()
	s.must(s.w.Kill(s.ctx, "syn2"))
	asleep := token("asleep")
	_, err = alice.SendText(s.soon(), room, asleep)
	s.must(err)
	s.must(s.w.Servers.Start(s.ctx, "syn2"))
	p.signal(syscall.SIGCONT)
	ended = true
	s.step("its homeserver is there again")
	bob.reads(room, asleep)
	awake := token("awake")
	bob.insists(s.soon(), room, awake)
	_, err = alice.WaitText(s.soon(), room, awake)
	s.must(err)
	s.step("it slept while its homeserver was started anew")
	lastly, unread, mention := token("the last word"), token("unread"), token("mention")
	last := bob.insistsOn(room, lastly)
	_, err = bob.MakeRequest(s.soon(), http.MethodPost, bob.BuildClientURL("v3", "rooms", room, "receipt", "m.read", last), map[string]any{}, nil)
	s.must(err)
	p.kill()
	_, err = alice.SendText(s.soon(), room, unread)
	s.must(err)
	_, err = alice.Send(s.soon(), room, "m.room.message", map[string]any{
		"msgtype": "m.text", "body": mention, "m.mentions": map[string]any{"user_ids": []id.UserID{bob.UserID}},
	})
	s.must(err)
	p.start()
	s.step("it was killed once more")
	bob.counts(room, "", "after a kill", mautrix.UnreadNotificationCounts{NotificationCount: 2, HighlightCount: 1})
	s.blind(slices.Concat(texts, said, []string{asleep, awake, lastly, unread, mention}))
	_, err = bob.Logout(s.soon())
	s.must(err)
	p.end()
}

// once checks that each of the client's own texts is there once: at alice, at the client by /sync, in the history, and as a
// ciphertext of its own, with a key of its own; and what alice said at the client and in the history.
func (c *plainClient) once(alice *e2e.Device, room id.RoomID, refused map[string]uint64, texts, said []string) {
	s := c.s
	s.Helper()
	heard, keys := map[string]int{}, map[string]id.EventID{}
	for _, u := range alice.Updates() {
		m, ok := u.(*client.Message)
		if !ok || m.Room != room || m.Sender != c.UserID {
			continue
		}
		heard[m.Body()]++
		key := fmt.Sprintf("%s %d %d", m.Ref, m.Leaf, m.Generation)
		if other, used := keys[key]; used {
			s.Errorf("%s and %s are encrypted with the same key", other, m.EventID)
		}
		keys[key] = m.EventID
	}
	shown := map[string]int{}
	for _, e := range c.seen {
		shown[body(e)]++
	}
	history := map[string]int{}
	c.since, c.seen = "", nil
	for _, e := range c.history(room) {
		history[body(e)]++
	}
	for _, text := range texts {
		if heard[text] != 1 || shown[text] != 1 || history[text] != 1 {
			s.Errorf("%q was heard %d times by alice, shown %d times to its author, and is %d times in the history", text, heard[text], shown[text], history[text])
		}
	}
	for _, text := range said {
		if shown[text] != 1 || history[text] != 1 {
			s.Errorf("%q was shown %d times, and is %d times in the history", text, shown[text], history[text])
		}
	}
	if len(heard) != len(texts) {
		s.Errorf("alice heard %v", heard)
	}
	for rule, n := range alice.Refusals() {
		if n != refused[rule] {
			s.Errorf("alice's device refused %d events: %s", n-refused[rule], rule)
		}
	}
	// A key that was used for a message that did not go out is not used for another one that did: each ciphertext is a message.
	if n := s.ciphertexts(alice, room, c.UserID); n != len(texts) {
		s.Errorf("the homeserver has %d ciphertexts of the client's, want %d", n, len(texts))
	}
}

// insists sends a message again, as the same transaction, until it is answered.
func (c *plainClient) insists(ctx context.Context, room id.RoomID, text string) {
	c.s.Helper()
	for {
		content := map[string]string{"msgtype": "m.text", "body": text}
		_, err := c.SendMessageEvent(ctx, room, event.EventMessage, content, mautrix.ReqSendEvent{TransactionID: text})
		if err == nil {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			c.s.Errorf("%q was not sent: %v", text, err)
			return
		}
	}
}

// insistsOn sends a message, and returns its event.
func (c *plainClient) insistsOn(room id.RoomID, text string) id.EventID {
	c.s.Helper()
	c.insists(c.s.soon(), room, text)
	return c.reads(room, text).ID
}

// ciphertexts counts the encrypted messages of a user that a homeserver has of a room.
func (s *story) ciphertexts(d *e2e.Device, room id.RoomID, sender id.UserID) (n int) {
	s.Helper()
	for _, e := range s.roomEvents(d, room) {
		if e.StateKey == nil && e.Type == "m.room.encrypted" && e.Sender == sender {
			n++
		}
	}
	return n
}
