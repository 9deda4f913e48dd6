package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/internal/deaf"
)

// A network is the way from a machine to its homeserver.
type network struct {
	s  *story
	to string // the homeserver's address
	at string

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]net.Conn // by the machine's end, to the homeserver's
	dead     []net.Conn
}

// network begins at a free address.
func (s *story) network(to string) *network {
	s.Helper()
	u, err := url.Parse(to)
	s.must(err)
	n := &network{s: s, to: u.Host, at: "127.0.0.1:0", conns: map[net.Conn]net.Conn{}}
	n.up()
	s.Cleanup(n.down)
	return n
}

// up lets connections through.
func (n *network) up() {
	n.s.Helper()
	listener, err := net.Listen("tcp", n.at)
	n.s.must(err)
	n.mu.Lock()
	n.listener, n.at = listener, listener.Addr().String()
	n.mu.Unlock()
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", n.to)
			n.mu.Lock()
			if err != nil || n.listener != listener {
				near.Close()
				if far != nil {
					far.Close()
				}
			} else {
				n.conns[near] = far
				go n.pass(near, far)
				go n.pass(far, near)
			}
			n.mu.Unlock()
		}
	}()
}

// pass carries one direction of a connection.
func (n *network) pass(from, to net.Conn) {
	_, _ = io.Copy(to, from)
	n.mu.Lock()
	defer n.mu.Unlock()
	for near, far := range n.conns {
		if near == from || far == from {
			near.Close()
			far.Close()
			delete(n.conns, near)
		}
	}
}

// down breaks all connections, and lets no new ones through.
func (n *network) down() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listener != nil {
		n.listener.Close()
	}
	n.listener = nil
	for near, far := range n.conns {
		_ = near.(*net.TCPConn).SetLinger(0) // it is reset
		near.Close()
		far.Close()
		delete(n.conns, near)
	}
	for _, near := range n.dead {
		near.Close()
	}
	n.dead = nil
}

// changes leaves the machine with connections of which nobody says that they are over. New ones go through.
func (n *network) changes() {
	n.s.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.conns) == 0 {
		n.s.Error("there are no connections that a change of the network could break")
	}
	for near, far := range n.conns {
		n.s.must(deaf.Make(near))
		delete(n.conns, near) // so that it stays open
		n.dead = append(n.dead, near)
		far.Close()
	}
}

// TestProxyNetworkChange: the machine of `mls-proxy run` loses its network and gets it back, moves into another one, where
// its old connections are silent and dead, and sleeps meanwhile. It goes on by itself and soon; a send that waits ends or
// fails with an error that Matrix clients understand; nobody lacks a message or has one twice.
func TestProxyNetworkChange(t *testing.T) {
	s := tell(t, "sqlite")
	alice := s.person("syn1", "alice")
	user, err := s.w.AddUser(s.ctx, "syn2", fmt.Sprintf("plain%d", people.Add(1)))
	s.must(err)
	way := s.network(s.w.Server("syn2").BaseURL)
	through := *s.w.Server("syn2")
	through.BaseURL = "http://" + way.at
	p := &localProxy{s: s, server: &through, state: filepath.Join(s.TempDir(), "state"), apart: true}
	p.start()
	bob := p.client(user)
	room, err := alice.CreateRoom(s.soon(), client.CreateOptions{Name: "Out and about"})
	s.must(err)
	s.must(alice.Invite(s.soon(), room, bob.UserID))
	bob.accepts(alice, room)
	refused := alice.Refusals()
	var texts, said []string
	says := func(what string) string {
		t.Helper()
		text := token(what)
		_, err := alice.SendText(s.soon(), room, text)
		s.must(err)
		said = append(said, text)
		return text
	}
	sends := func(what string) string {
		t.Helper()
		text := token(what)
		texts = append(texts, text)
		bob.insists(s.soon(), room, text)
		return text
	}
	// What a system that is not told better gives up in minutes.
	quickly := func(what string, do func(ctx context.Context)) {
		t.Helper()
		began := time.Now()
		ctx, cancel := context.WithTimeout(s.ctx, 90*time.Second)
		defer cancel()
		do(ctx)
		if ctx.Err() != nil {
			s.Errorf("%s only after %v", what, time.Since(began).Round(time.Second))
		}
		s.step("%s after %v", what, time.Since(began).Round(100*time.Millisecond))
	}
	reads := func(ctx context.Context, text string) {
		t.Helper()
		for !bob.knows(text) {
			if _, err := bob.sync(ctx, room); err != nil {
				s.Fatalf("%q was not read: %v\n%s", text, err, p.stderr)
			}
		}
	}
	hears := func(text string) {
		t.Helper()
		_, err := alice.WaitText(s.soon(), room, text)
		s.must(err)
	}
	reads(s.soon(), says("before"))
	hears(sends("before"))

	// No network at all: each request of the client's ends, and says what is the matter.
	way.down()
	var wg sync.WaitGroup
	type end struct {
		what   string
		status int
		raw    []byte
		err    error
	}
	ends := make(chan end, 8)
	ask := func(what, method, path, body string) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(s.ctx, 90*time.Second)
			defer cancel()
			e := end{what: what}
			req, err := http.NewRequestWithContext(ctx, method, p.url+"/_matrix/client/v3"+path, strings.NewReader(body))
			if err == nil {
				req.Header.Set("Authorization", "Bearer "+bob.AccessToken)
				var resp *http.Response
				if resp, err = bob.Client.Client.Do(req); err == nil {
					e.status = resp.StatusCode
					e.raw, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
			}
			e.err = err
			ends <- e
		})
	}
	in := "/rooms/" + url.PathEscape(string(room))
	for range 3 {
		text := token("without-a-network")
		texts = append(texts, text)
		ask("a send", http.MethodPut, in+"/send/m.room.message/"+text, `{"msgtype":"m.text","body":"`+text+`"}`)
	}
	ask("a sync", http.MethodGet, "/sync?timeout=5000&since="+url.QueryEscape(bob.since), "")
	ask("the state", http.MethodGet, in+"/state", "")
	wg.Wait()
	close(ends)
	for e := range ends {
		var answer struct {
			Code  string `json:"errcode"`
			Error string `json:"error"`
		}
		if e.err != nil || json.Unmarshal(e.raw, &answer) != nil || !strings.HasPrefix(answer.Code, "M_") || answer.Error == "" || e.status != http.StatusBadGateway && e.status != http.StatusTooManyRequests {
			s.Errorf("without a network, %s ends with %d %s, %v", e.what, e.status, e.raw, e.err)
		}
	}
	s.step("without a network each request ended")
	away := says("while it was away")
	way.up()
	quickly("with a network it read", func(ctx context.Context) { reads(ctx, away) })
	for _, text := range texts[len(texts)-3:] {
		bob.insists(s.soon(), room, text) // as clients do: the same transaction
		hears(text)
	}

	// Another network: what was asked on the old connections is never answered.
	way.changes()
	elsewhere := says("elsewhere")
	quickly("in another network it read", func(ctx context.Context) { reads(ctx, elsewhere) })
	quickly("in another network it was heard", func(context.Context) { hears(sends("from-elsewhere")) })

	// A machine that sleeps: meanwhile the group changes, and it wakes up in another network.
	p.signal(syscall.SIGSTOP)
	way.changes()
	var asleep string
	func() {
		defer p.signal(syscall.SIGCONT) // the story's end stops the program
		carol := s.person("syn1", "carol")
		s.must(alice.Invite(s.soon(), room, carol.UserID()))
		s.join(carol, room, alice)
		asleep = says("asleep")
	}()
	quickly("awake it read", func(ctx context.Context) { reads(ctx, asleep) })
	quickly("awake it was heard", func(context.Context) { hears(sends("awake")) })
	for _, text := range texts {
		bob.reads(room, text)
	}
	bob.once(alice, room, refused, texts, said)
	s.blind(slices.Concat(texts, said))
	_, err = bob.Logout(s.soon())
	s.must(err)
	p.end()
}

// knows tells whether the client was told of a message.
func (c *plainClient) knows(text string) bool {
	for _, e := range c.seen {
		if body(e) == text {
			return true
		}
	}
	return false
}
