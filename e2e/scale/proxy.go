package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/e2e/machine"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	proxyTexts = 200 // messages each way
	proxySyncs = 5   // first /syncs each way
	proxyCalm  = time.Minute
)

// proxied is what a client without MLS meets at `mls-proxy run`, beside the same without the proxy.
type proxied struct {
	Rooms    int       `json:"rooms"`          // with MLS, of the account whose first /sync is measured
	Send     [2]spread `json:"send_ms"`        // through the proxy, and directly: until /send has answered
	Arrive   [2]spread `json:"arrive_ms"`      // until another client's /sync has shown it
	First    [2]spread `json:"first_sync_ms"`  // an account's first /sync
	Bytes    [2]int    `json:"first_bytes"`    // of its answer
	Idle     int64     `json:"idle_rss"`       // bytes, with both accounts open
	Peak     int64     `json:"peak_rss"`       // bytes
	IdleCPU  float64   `json:"idle_cpu"`       // seconds of CPU in a second
	Accounts int       `json:"proxy_accounts"` // open in it
}

// spread is how a time spreads over its repetitions, in ms.
type spread struct {
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
}

func spreadOf(all []time.Duration) spread {
	sorted := slices.Sorted(slices.Values(all))
	at := func(q float64) float64 {
		return float64(sorted[min(int(math.Ceil(q*float64(len(sorted)))), len(sorted))-1].Microseconds()) / 1000
	}
	return spread{at(0.5), at(0.99)}
}

// plainClient is a session of a user without encryption of its own, through the proxy or not.
type plainClient struct {
	http  *counter
	base  string // .../_matrix/client/v3
	user  string
	token string
	since string
}

func (c *plainClient) call(ctx context.Context, method, path string, body, into any) error {
	return c.http.call(ctx, method, c.base+path, c.token, body, into)
}

// logIn makes a session at base, which is the homeserver's address or the proxy's.
func (s *scale) logIn(ctx context.Context, base string, user lab.User) (*plainClient, error) {
	c := &plainClient{http: s.http, base: base + "/_matrix/client/v3", user: user.UserID}
	var login struct {
		Token string `json:"access_token"`
	}
	err := c.call(ctx, http.MethodPost, "/login", map[string]any{
		"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": user.Localpart}, "password": user.Password,
	}, &login)
	c.token = login.Token
	return c, err
}

// sync makes one /sync for one room and returns the bodies of what came. Without a room it asks for everything.
func (c *plainClient) sync(ctx context.Context, room id.RoomID, wait time.Duration) ([]string, error) {
	query := url.Values{"timeout": {fmt.Sprint(wait.Milliseconds())}}
	query.Set("filter", fmt.Sprintf(`{"presence":{"types":[]},"account_data":{"types":[]},"room":{"rooms":[%q],"state":{"types":[]},"ephemeral":{"types":[]},"timeline":{"limit":50}}}`, room))
	if c.since != "" {
		query.Set("since", c.since)
	}
	var answer struct {
		Next  string `json:"next_batch"`
		Rooms struct {
			Join map[id.RoomID]struct {
				Timeline struct {
					Events []struct {
						Content struct {
							Body string `json:"body"`
							Text string `json:"ciphertext"`
						} `json:"content"`
					} `json:"events"`
				} `json:"timeline"`
			} `json:"join"`
		} `json:"rooms"`
	}
	if err := c.call(ctx, http.MethodGet, "/sync?"+query.Encode(), struct{}{}, &answer); err != nil {
		return nil, err
	}
	c.since = answer.Next
	var bodies []string
	for _, ev := range answer.Rooms.Join[room].Timeline.Events {
		bodies = append(bodies, ev.Content.Body+ev.Content.Text)
	}
	return bodies, nil
}

// bareText is a content of the size that a short message has in a room with MLS, for a room where it is not opened.
func bareText() (content map[string]string, text string) {
	raw := make([]byte, 300)
	_, _ = rand.Read(raw)
	text = base64.RawStdEncoding.EncodeToString(raw)
	return map[string]string{"algorithm": string(id.AlgorithmMegolmV1), "ciphertext": text}, text
}

// exchange sends a message and returns how long it took to send and until the other's /sync, which waits for it, showed it.
func exchange(ctx context.Context, from, to *plainClient, room id.RoomID, kind string, content map[string]string, text string) (sent, came time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if _, err := to.sync(ctx, room, 0); err != nil { // what came before
		return 0, 0, err
	}
	type arrival struct {
		at  time.Time
		err error
	}
	arrived := make(chan arrival, 1)
	go func() {
		for {
			bodies, err := to.sync(ctx, room, 20*time.Second)
			if err != nil || slices.Contains(bodies, text) {
				arrived <- arrival{time.Now(), err}
				return
			}
		}
	}()
	if err := pause(ctx, 50*time.Millisecond); err != nil { // until it waits
		return 0, 0, err
	}
	began := time.Now()
	path := fmt.Sprintf("/rooms/%s/send/%s/%d", url.PathEscape(string(room)), kind, began.UnixNano())
	err = from.call(ctx, http.MethodPut, path, content, nil)
	sent = time.Since(began)
	if err != nil {
		return 0, 0, err
	}
	a := <-arrived
	return sent, a.at.Sub(began), a.err
}

// proxyRun is `mls-proxy run` as a process of its own.
type proxyRun struct {
	cmd *exec.Cmd
	url string
}

var proxyAddress = regexp.MustCompile(`clients log in at (http://[^\s,]+)`)

// startProxy runs the program before a homeserver until ctx ends.
func (s *scale) startProxy(ctx context.Context, server *lab.Server) (*proxyRun, error) {
	dir := filepath.Join(s.dir, fmt.Sprintf("proxy-%d", s.st.Starts))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(dir, "proxy.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	program := filepath.Join(s.bin, "mls-proxy")
	cmd := exec.CommandContext(ctx, program, "--state", filepath.Join(dir, "state"), "run", "--homeserver", server.BaseURL, "--listen", "127.0.0.1:0")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: make bench-proxy builds it", err)
	}
	address := make(chan string, 1)
	go func() {
		defer log.Close()
		lines := bufio.NewReader(io.TeeReader(stderr, log))
		for {
			line, err := lines.ReadString('\n')
			if m := proxyAddress.FindStringSubmatch(line); m != nil {
				address <- m[1]
			}
			if err != nil {
				close(address)
				return
			}
		}
	}()
	select {
	case url, ok := <-address:
		if !ok {
			return nil, fmt.Errorf("mls-proxy run ended: see %s", log.Name())
		}
		return &proxyRun{cmd, url}, nil
	case <-time.After(time.Minute):
		return nil, fmt.Errorf("mls-proxy run does not say where it listens: see %s", log.Name())
	}
}

// throughProxy measures what the proxy adds: two users of syn1 log in through it and directly, and join the big room and,
// directly, a room without MLS with the same people. Messages through the one and the other take turns. Then one of them
// makes many rooms, and its first /sync is measured both ways.
func (s *scale) throughProxy(ctx context.Context) error {
	if err := s.listed(ctx); err != nil {
		return err
	}
	if err := s.besideRoom(ctx, s.st.Crowd, false); err != nil {
		return err
	}
	if err := s.modulesBeside(ctx); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	server := s.w.Server(servers[0])
	run, err := s.startProxy(ctx, server)
	if err != nil {
		stop()
		return err
	}
	defer func() { stop(); _ = run.cmd.Wait() }()

	var through, direct [2]*plainClient
	for n := range through {
		user, err := s.register(ctx, server, fmt.Sprintf("proxied%d-%d", n, s.st.Starts))
		if err != nil {
			return err
		}
		if through[n], err = s.logIn(ctx, run.url, user); err != nil {
			return err
		}
		if direct[n], err = s.logIn(ctx, server.BaseURL, user); err != nil {
			return err
		}
		if err := s.enter(ctx, through[n]); err != nil {
			return err
		}
		if err := s.joinOne(ctx, server.Name, lab.User{UserID: user.UserID, AccessToken: direct[n].token}, url.PathEscape(string(s.st.Plain))); err != nil {
			return err
		}
		s.say.note("%s is in both rooms, %d leaves", user.UserID, s.want)
	}
	// Whoever else decrypts the messages does so on the processors of this machine.
	if err := s.all((*e2e.Device).Stop); err != nil {
		return err
	}
	s.proxied = &proxied{Rooms: s.options.rooms, Accounts: len(through)}
	if err := s.proxyLatency(ctx, through, direct); err != nil {
		return err
	}
	if err := s.proxyFirst(ctx, through[0], direct[0]); err != nil {
		return err
	}
	return s.proxyIdle(ctx, run.cmd.Process.Pid)
}

// modulesBeside brings the modules into the room without MLS, too: a homeserver hands each event of a room with a module to
// that, and what this takes is not the proxy's.
func (s *scale) modulesBeside(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	of := func(d *driven) string {
		return s.w.Server(d.Server).BaseURL + "/_matrix/client/v3/rooms/" + url.PathEscape(string(s.st.Plain))
	}
	bot := func(d *driven) id.UserID { return id.NewUserID(rooms.BotLocalpart, s.w.Server(d.Server).ServerName) }
	each := s.st.Driven[:len(servers)] // one of each server: a module comes to an unencrypted room for its own users
	for _, d := range each {
		if err := s.http.call(ctx, http.MethodPost, of(d)+"/invite", d.User.AccessToken, map[string]id.UserID{"user_id": bot(d)}, nil); err != nil {
			return fmt.Errorf("invite %s into the room without MLS: %w", bot(d), err)
		}
	}
	for {
		var there struct {
			Joined map[id.UserID]struct{} `json:"joined"`
		}
		if err := s.http.call(ctx, http.MethodGet, of(each[0])+"/joined_members", each[0].User.AccessToken, struct{}{}, &there); err != nil {
			return err
		}
		if !slices.ContainsFunc(each, func(d *driven) bool { _, in := there.Joined[bot(d)]; return !in }) {
			return nil
		}
		if err := pause(ctx, time.Second); err != nil {
			return fmt.Errorf("the modules do not join the room without MLS: %w", err)
		}
	}
}

// enter invites a user into the big room and joins through the proxy.
func (s *scale) enter(ctx context.Context, c *plainClient) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := s.online[0].Invite(ctx, s.st.Room, id.UserID(c.user)); err != nil {
		return err
	}
	for {
		err := c.call(ctx, http.MethodPost, "/join/"+url.PathEscape(string(s.st.Room)), struct{}{}, nil)
		if err == nil {
			break
		}
		if pause(ctx, 500*time.Millisecond) != nil {
			return err
		}
	}
	s.want++
	return s.agreed(ctx, limit)
}

func (s *scale) proxyLatency(ctx context.Context, through, direct [2]*plainClient) error {
	var send, arrive [2][]time.Duration
	for n := range proxyTexts + 2 {
		text := fmt.Sprintf("through the proxy: %d", n)
		content, bare := bareText()
		for way, exchange := range []func() (time.Duration, time.Duration, error){
			func() (time.Duration, time.Duration, error) {
				return exchange(ctx, through[0], through[1], s.st.Room, "m.room.message", map[string]string{"msgtype": "m.text", "body": text}, text)
			},
			func() (time.Duration, time.Duration, error) {
				return exchange(ctx, direct[0], direct[1], s.st.Plain, "m.room.encrypted", content, bare)
			},
		} {
			sent, came, err := exchange()
			if err != nil {
				return fmt.Errorf("message %d: %w", n, err)
			}
			if n >= 2 { // the first ones open connections
				send[way], arrive[way] = append(send[way], sent), append(arrive[way], came)
			}
		}
		s.say.show("messages each way", n+1, proxyTexts+2)
	}
	for way := range send {
		s.proxied.Send[way], s.proxied.Arrive[way] = spreadOf(send[way]), spreadOf(arrive[way])
	}
	return nil
}

// proxyFirst lets an account make rooms, and measures its first /sync with all of them.
func (s *scale) proxyFirst(ctx context.Context, through, direct *plainClient) error {
	numbers := make([]int, s.options.rooms)
	for n := range numbers {
		numbers[n] = n
	}
	err := each(s, ctx, "rooms made through the proxy", numbers, func(int) string { return s.st.Driven[0].Server }, func(ctx context.Context, n int) error {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		var made struct {
			Room id.RoomID `json:"room_id"`
		}
		err := through.call(ctx, http.MethodPost, "/createRoom", map[string]any{
			"name": fmt.Sprintf("Room %d", n), "preset": "private_chat",
			"initial_state": []any{map[string]any{"type": "m.room.encryption", "state_key": "", "content": map[string]string{"algorithm": string(id.AlgorithmMegolmV1)}}},
		}, &made)
		for tried := 0; err == nil; tried++ { // until the group is there
			err = through.call(ctx, http.MethodPut, fmt.Sprintf("/rooms/%s/send/m.room.message/first-%d", url.PathEscape(string(made.Room)), n),
				map[string]string{"msgtype": "m.text", "body": fmt.Sprintf("the first of room %d", n)}, nil)
			if err == nil {
				return nil
			}
			if tried < 10 && strings.Contains(err.Error(), "M_LIMIT_EXCEEDED") {
				err = pause(ctx, time.Second)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := pause(ctx, 10*time.Second); err != nil { // what making rooms has left to do
		return err
	}
	var took [2][]time.Duration
	for n := range proxySyncs + 1 {
		for way, c := range []*plainClient{through, direct} {
			// A Synapse keeps its answer for a while and gives it again: not where the filter is another one.
			filter := url.QueryEscape(fmt.Sprintf(`{"account_data":{"not_types":["measured.%d.%d"]}}`, n, way))
			began := time.Now()
			var answer json.RawMessage
			if err := c.call(ctx, http.MethodGet, "/sync?timeout=0&filter="+filter, struct{}{}, &answer); err != nil {
				return err
			}
			if n > 0 { // the first fills the homeserver's caches
				took[way] = append(took[way], time.Since(began))
			}
			s.proxied.Bytes[way] = len(answer)
			rooms, err := joinedIn(answer)
			if err != nil {
				return err
			}
			if rooms < s.options.rooms {
				return fmt.Errorf("the first /sync shows %d rooms, want %d", rooms, s.options.rooms)
			}
		}
	}
	for way := range took {
		s.proxied.First[way] = spreadOf(took[way])
	}
	return nil
}

func joinedIn(answer []byte) (int, error) {
	var sync struct {
		Rooms struct {
			Join map[id.RoomID]struct{} `json:"join"`
		} `json:"rooms"`
	}
	err := json.Unmarshal(answer, &sync)
	return len(sync.Rooms.Join), err
}

// proxyIdle looks at the program after a while in which nobody did anything.
func (s *scale) proxyIdle(ctx context.Context, pid int) error {
	if err := pause(ctx, proxyCalm); err != nil {
		return err
	}
	from, err := machine.Of(pid)
	if err != nil {
		return err
	}
	if err := pause(ctx, proxyCalm); err != nil {
		return err
	}
	to, err := machine.Of(pid)
	if err != nil {
		return err
	}
	s.proxied.Idle, s.proxied.Peak, s.proxied.IdleCPU = to.RSS, to.Peak, (to.CPU-from.CPU)/proxyCalm.Seconds()
	return nil
}

// text is the table of what was measured.
func (p *proxied) text() string {
	var b strings.Builder
	fmt.Fprintln(&b, "| | through the proxy | without it | difference, or ratio |")
	fmt.Fprintln(&b, "| --- | --- | --- | --- |")
	for _, row := range []struct {
		name string
		ways [2]spread
	}{{"/send has answered", p.Send}, {"another client's /sync shows it", p.Arrive}} {
		t, d := row.ways[0], row.ways[1]
		fmt.Fprintf(&b, "| %s, median | %.1f ms | %.1f ms | %+.1f ms |\n", row.name, t.Median, d.Median, t.Median-d.Median)
		fmt.Fprintf(&b, "| … 99 of 100 | %.1f ms | %.1f ms | %+.1f ms |\n", t.P99, d.P99, t.P99-d.P99)
	}
	fmt.Fprintf(&b, "| first /sync with %d more MLS rooms, median of %d | %.0f ms, %s | %.0f ms, %s | %.2f |\n", p.Rooms, proxySyncs,
		p.First[0].Median, size(int64(p.Bytes[0])), p.First[1].Median, size(int64(p.Bytes[1])), p.First[0].Median/p.First[1].Median)
	fmt.Fprintf(&b, "| the program's memory, idle (and the most it had) | %s (%s) | | |\n", size(p.Idle), size(p.Peak))
	fmt.Fprintf(&b, "| its CPU, idle | %.1f %% of one | | |\n", 100*p.IdleCPU)
	return b.String()
}
