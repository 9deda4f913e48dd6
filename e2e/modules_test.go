package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestEachServerOrders: whichever server a room is made on, its module orders the commits, the modules of all servers
// come into the room by themselves, and members on all servers read.
func TestEachServerOrders(t *testing.T) {
	for _, name := range []string{"sqlite", "postgres"} {
		for _, home := range []string{"syn1", "syn2", "den1"} {
			t.Run(name+"/"+home, func(t *testing.T) {
				s := tell(t, name)
				var all []*e2e.Device
				for _, server := range []string{"syn1", "syn2", "den1"} {
					d := s.person(server, "user")
					if server == home {
						all = append([]*e2e.Device{d}, all...)
					} else {
						all = append(all, d)
					}
				}
				room := s.room(client.CreateOptions{}, all[0], all[1:]...)
				s.talk(room, "all servers", all...)
				s.agree(room, all...)
				for _, d := range all {
					s.botJoins(all[0], room, d.Server.ServerName)
				}
				orderer := "@_mls_bot:" + all[0].Server.ServerName
				for _, d := range all {
					if got := s.acceptors(d, room); !slices.Equal(got, []string{orderer}) {
						t.Errorf("%s sees accepts by %v, want all of them by %s", d.Name, got, orderer)
					}
				}
			})
		}
	}
}

// botJoins waits until the module's bot of a server is in the room.
func (s *story) botJoins(d *e2e.Device, room id.RoomID, server string) {
	s.Helper()
	ctx := s.soon()
	for {
		raw, err := e2e.API(ctx, d.Server, d.User, http.MethodGet, "/rooms/"+url.PathEscape(string(room))+"/joined_members", nil)
		if err != nil {
			s.Fatalf("the bot of %s is not in the room: %v", server, err)
		}
		var joined struct {
			Joined map[string]json.RawMessage `json:"joined"`
		}
		s.must(json.Unmarshal(raw, &joined))
		if joined.Joined["@_mls_bot:"+server] != nil {
			return
		}
		s.pause()
	}
}

// acceptors lists who sent the accepts that a user's homeserver has, each once.
func (s *story) acceptors(d *e2e.Device, room id.RoomID) []string {
	s.Helper()
	raw, err := e2e.API(s.ctx, d.Server, d.User, http.MethodGet, "/rooms/"+url.PathEscape(string(room))+"/messages?dir=b&limit=500", nil)
	s.must(err)
	var page struct {
		Chunk []struct {
			Type   string `json:"type"`
			Sender string `json:"sender"`
		} `json:"chunk"`
	}
	s.must(json.Unmarshal(raw, &page))
	var out []string
	for _, ev := range page.Chunk {
		if ev.Type == rooms.TypeAccept && !slices.Contains(out, ev.Sender) {
			out = append(out, ev.Sender)
		}
	}
	return out
}

// A front is what an admin puts before two processes of a module: it passes what comes to the one that says that it is active.
type front struct {
	mu    sync.Mutex
	backs []string
}

// status is what a process answers at a path; 0: nothing.
func status(ctx context.Context, at, path string) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at+path, nil)
	if err != nil {
		return 0
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

func (f *front) add(back string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.backs = append(f.backs, back)
}

func (f *front) all() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.backs)
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, back := range f.all() {
		if at, err := url.Parse(back); err == nil && status(r.Context(), back, "/_matrix/mau/active") == http.StatusOK {
			httputil.NewSingleHostReverseProxy(at).ServeHTTP(w, r)
			return
		}
	}
	w.WriteHeader(http.StatusServiceUnavailable)
}

// TestSecondProcessTakesOver: two processes of a module are on one PostgreSQL, behind one address. The one that works is killed
// and a member commits. The other takes over within five seconds, and accepts that commit, and the next ones.
func TestSecondProcessTakesOver(t *testing.T) {
	s := tell(t, "postgres")
	alice, bob := s.person("syn1", "alice"), s.person("den1", "bob")
	room := s.room(client.CreateOptions{}, alice, bob)
	s.talk(room, "one process", alice, bob)

	m := s.w.Module("syn1")
	s.must(s.w.Stop(s.ctx, m.Name))
	names := []string{"first-syn1", "second-syn1"}
	f := &front{}
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), e2e.Soon)
		defer cancel()
		for _, name := range names[:len(f.all())] {
			if err := s.w.Kill(ctx, name); err != nil {
				s.Error(err)
			}
		}
		if err := s.w.StartModule(ctx, "syn1"); err != nil {
			s.Error(err)
		}
	})
	l, err := net.Listen("tcp", strings.TrimPrefix(m.URL, "http://"))
	s.must(err)
	server := &http.Server{Handler: f}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	s.Cleanup(func() { // before the module is there again
		if err := server.Close(); err != nil {
			s.Error(err)
		}
		<-served
	})
	for i, wants := range []int{http.StatusOK, http.StatusServiceUnavailable} {
		at, err := s.w.SpawnModule(s.soon(), "syn1", names[i], i+1)
		s.must(err)
		f.add(at)
		s.eventually(fmt.Sprintf("%s answers %d, whether it is ready", names[i], wants), func() string {
			if got := status(s.ctx, at, "/_matrix/mau/ready"); got != wants {
				return fmt.Sprintf("it answers %d", got)
			}
			return ""
		})
	}
	second := f.all()[1]
	s.commit(room, alice)
	s.talk(room, "two processes", alice, bob)

	s.must(s.w.Kill(s.ctx, names[0]))
	killed := time.Now()
	accepted := make(chan time.Duration, 1)
	refused := make(chan error, 1)
	go func() {
		if err := alice.Refresh(s.ctx, room); err != nil {
			refused <- err
			return
		}
		accepted <- time.Since(killed)
	}()
	ready := patience.Measure(func() {
		s.eventually("the second process works", func() string {
			if got := status(s.ctx, second, "/_matrix/mau/ready"); got != http.StatusOK {
				return fmt.Sprintf("it answers %d", got)
			}
			return ""
		})
	})
	if ready > 5*time.Second {
		t.Errorf("the second process works %v after the first was killed, want 5 s", ready)
	}
	select {
	case took := <-accepted:
		s.step("figures: the second process works %v after the first was killed, and has accepted a commit after %v", ready, took.Round(10*time.Millisecond))
	case err := <-refused:
		t.Fatal(err)
	case <-s.soon().Done():
		t.Fatal("the second process accepts no commit")
	}
	info, err := alice.Room(s.ctx, room)
	s.must(err)
	log, err := os.ReadFile(filepath.Join(s.w.Dir(), names[1]+".log"))
	s.must(err)
	if !slices.ContainsFunc(strings.Split(string(log), "\n"), func(line string) bool {
		return strings.Contains(line, `"kind":"accept","ref":"`+info.Head.Short()+`"`)
	}) {
		t.Errorf("the second process does not say that it accepted %s:\n%s", info.Head.Short(), log)
	}
	carol := s.person("syn1", "carol")
	s.must(alice.Invite(s.soon(), room, carol.UserID()))
	s.join(carol, room, alice)
	s.conclude(room, alice, bob, carol)
}
