package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/proxy/terminal"
)

// A localProxy is a run of `mls-proxy run`.
type localProxy struct {
	s      *story
	server *lab.Server
	state  string
	listen string // empty: at a port that is free
	speaks string // the language, if it is not English
	url    string
	stderr *output
	stop   context.CancelFunc
	ended  chan int
	apart  bool // it runs as a process of its own: see signal
	signal func(os.Signal)
}

// asProxy is set in the environment of a test program that is to be mls-proxy.
const asProxy = "MLS_TEST_AS_PROXY"

func (s *story) proxy(server string) *localProxy {
	s.Helper()
	p := &localProxy{s: s, server: s.w.Server(server), state: filepath.Join(s.TempDir(), "state")}
	p.start()
	return p
}

var proxyAddress = regexp.MustCompile(`clients log in at (http://\S+),`)

func (p *localProxy) start() {
	p.s.Helper()
	ctx, cancel := context.WithCancel(p.s.ctx)
	p.stop, p.stderr, p.ended = cancel, newOutput(), make(chan int, 1)
	env := &terminal.Env{Stdin: strings.NewReader(""), Stdout: newOutput(), Stderr: p.stderr, Getenv: func(string) string { return "" }, Cwd: p.s.TempDir()}
	listen := cmp.Or(p.listen, "127.0.0.1:0")
	ended, args := p.ended, []string{"--state", p.state, "run", "--homeserver", p.server.BaseURL, "--listen", listen}
	if p.speaks != "" {
		args = append(args, "--language", p.speaks)
	}
	if p.apart {
		p.startApart(args)
	} else {
		go func() { ended <- terminal.Main(ctx, args, env) }()
	}
	p.s.Cleanup(func() { p.end() })
	p.s.must(p.stderr.wait(p.s.soon(), "clients log in at"))
	p.url = proxyAddress.FindStringSubmatch(p.stderr.String())[1]
}

// startApart starts the program as a process.
func (p *localProxy) startApart(args []string) {
	p.s.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env, cmd.Stderr, cmd.Dir = append(os.Environ(), asProxy+"=1"), p.stderr, p.s.TempDir()
	p.s.must(cmd.Start())
	ended := p.ended
	go func() {
		_ = cmd.Wait()
		ended <- cmd.ProcessState.ExitCode()
	}()
	p.signal = func(what os.Signal) { p.s.must(cmd.Process.Signal(what)) }
	p.stop = func() { p.signal(os.Interrupt) }
}

// kill ends a process with SIGKILL, and waits until it is gone.
func (p *localProxy) kill() {
	p.s.Helper()
	p.signal(os.Kill)
	if code := <-p.ended; code == terminal.ExitOK {
		p.s.Errorf("mls-proxy run ended by itself\n%s", p.stderr)
	}
	p.ended = nil
}

// end stops the program and waits for it.
func (p *localProxy) end() {
	p.s.Helper()
	if p.ended == nil {
		return
	}
	p.stop()
	if code := <-p.ended; code != terminal.ExitOK {
		p.s.Errorf("mls-proxy run: exit code %d\n%s", code, p.stderr)
	}
	p.ended = nil
}

// login logs a client in that has no encryption of its own.
func (p *localProxy) login(user lab.User) *mautrix.Client {
	p.s.Helper()
	cli, err := mautrix.NewClient(p.url, "", "")
	p.s.must(err)
	cli.Client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	// As clients do: 429 and 502 mean "again, later".
	cli.DefaultHTTPRetries, cli.DefaultHTTPBackoff, cli.MaxHTTPBackoff = 10, 500*time.Millisecond, 4*time.Second
	resp, err := cli.Login(p.s.soon(), &mautrix.ReqLogin{
		Type: mautrix.AuthTypePassword, Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: user.UserID},
		Password: user.Password, InitialDeviceDisplayName: "a plain client", StoreCredentials: true,
	})
	if err != nil {
		p.s.Fatalf("log in through the proxy: %v\n%s", err, p.stderr)
	}
	if resp.WellKnown == nil || resp.WellKnown.Homeserver.BaseURL != p.url {
		p.s.Errorf("the answer to the login leads to %+v, want %s", resp.WellKnown, p.url)
	}
	return cli
}

// devices lists a user's devices as the homeserver has them.
func (s *story) devices(server *lab.Server, user lab.User) map[string]bool {
	s.Helper()
	cli, err := mautrix.NewClient(server.BaseURL, id.UserID(user.UserID), user.AccessToken)
	s.must(err)
	list, err := cli.GetDevicesInfo(s.soon())
	s.must(err)
	out := map[string]bool{}
	for _, d := range list.Devices {
		out[d.DeviceID.String()] = true
	}
	return out
}

// TestProxyLogin is the life of a session: a login through the proxy makes a second device that is cross-signed, both
// survive a restart of the proxy, and the last logout ends both.
func TestProxyLogin(t *testing.T) {
	for _, server := range []string{"syn1", "den1"} {
		t.Run(server, func(t *testing.T) {
			s := tell(t, "sqlite")
			s.silent = true
			user, err := s.w.AddUser(s.ctx, server, fmt.Sprintf("proxied%d", people.Add(1)))
			s.must(err)
			p := s.proxy(server)
			before := s.devices(p.server, user)
			cli := p.login(user)
			s.step("logged in")
			after := s.devices(p.server, user)
			if len(after) != len(before)+2 || !after[cli.DeviceID.String()] {
				t.Fatalf("the user had the devices %v, and after the login %v: want the client's and one more", before, after)
			}
			recovery := filepath.Join(p.state, "accounts", "*", "recovery-key")
			if files, _ := filepath.Glob(recovery); len(files) != 1 {
				t.Errorf("no recovery key in %s", recovery)
			} else if info, err := os.Stat(files[0]); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the recovery key has the mode %v, %v", info.Mode(), err)
			}

			// The other verbs work beside it.
			stdout, stderr := newOutput(), newOutput()
			env := &terminal.Env{Stdin: strings.NewReader(""), Stdout: stdout, Stderr: stderr, Getenv: func(string) string { return "" }, Cwd: s.TempDir()}
			folders, _ := filepath.Glob(filepath.Join(p.state, "accounts", "*"))
			if len(folders) != 1 {
				t.Fatalf("the accounts are %v", folders)
			}
			if code := terminal.Main(s.soon(), []string{"--state", folders[0], "verify", "--json"}, env); code != terminal.ExitOK || !strings.Contains(stdout.String(), `"verified":true`) {
				t.Errorf("verify on the account's folder: exit code %d\n%s%s", code, stdout, stderr)
			}

			// A second client of the same user shares the MLS device.
			second := p.login(user)
			if n := len(s.devices(p.server, user)); n != len(after)+1 {
				t.Errorf("a second login made %d devices, want 1", n-len(after))
			}
			who, err := second.Whoami(s.soon())
			if err != nil || who.DeviceID != second.DeviceID {
				t.Errorf("whoami: %+v, %v", who, err)
			}

			p.end()
			p.start()
			for _, c := range []*mautrix.Client{cli, second} {
				c.HomeserverURL, err = c.HomeserverURL.Parse(p.url)
				s.must(err)
			}
			s.step("the proxy ran anew")
			_, err = second.Logout(s.soon())
			s.must(err)
			if left := s.devices(p.server, user); len(left) != len(after) || left[second.DeviceID.String()] {
				t.Errorf("after the first logout: %v, want %v", left, after)
			}
			_, err = cli.Logout(s.soon())
			s.must(err)
			if left := s.devices(p.server, user); len(left) != len(before) {
				t.Errorf("after the last logout: %v, want %v", left, before)
			}

			if server == "syn1" {
				s.twoAccounts(p, cli)
			}

			// A session that another one ended does not keep the MLS device.
			third, fourth := p.login(user), p.login(user)
			_, err = e2e.API(s.soon(), p.server, lab.User{UserID: user.UserID, AccessToken: third.AccessToken}, http.MethodPost, "/logout", nil)
			s.must(err)
			_, err = fourth.Logout(s.soon())
			s.must(err)
			if left := s.devices(p.server, user); len(left) != len(before) {
				t.Errorf("after the last logout with one ended elsewhere: %v, want %v", left, before)
			}

			// A wrong password makes nothing.
			wrong := user
			wrong.Password += "x"
			_, err = cli.Login(s.soon(), &mautrix.ReqLogin{
				Type: mautrix.AuthTypePassword, Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: wrong.UserID}, Password: wrong.Password,
			})
			if !errors.Is(err, mautrix.MForbidden) {
				t.Errorf("a login with a wrong password: %v", err)
			}
			if left := s.devices(p.server, user); len(left) != len(before) {
				t.Errorf("a refused login left %v, want %v", left, before)
			}
		})
	}
}

// twoAccounts lets another user log in through a proxy, and out again: each has a device and a folder of their own.
func (s *story) twoAccounts(p *localProxy, of *mautrix.Client) {
	s.Helper()
	var clients []*mautrix.Client
	for range 2 {
		user, err := s.w.AddUser(s.ctx, p.server.Name, fmt.Sprintf("proxied%d", people.Add(1)))
		s.must(err)
		clients = append(clients, p.login(user))
	}
	for _, c := range clients {
		who, err := c.Whoami(s.soon())
		if err != nil || who.UserID != c.UserID || who.UserID == of.UserID {
			s.Errorf("whoami: %+v, %v; want %s", who, err, c.UserID)
		}
		if _, err := c.SyncRequest(s.soon(), 0, "", "", false, ""); err != nil {
			s.Errorf("%s cannot sync: %v", c.UserID, err)
		}
		if folders, _ := filepath.Glob(filepath.Join(p.state, "accounts", "*"+c.UserID.Localpart()+"*")); len(folders) != 1 {
			s.Errorf("%s has the folders %q", c.UserID, folders)
		}
	}
	for i, c := range clients {
		_, err := c.Logout(s.soon())
		s.must(err)
		if i == 0 {
			if _, err := clients[1].SyncRequest(s.soon(), 0, "", "", false, ""); err != nil {
				s.Errorf("after the other's logout: %v", err)
			}
		}
	}
	s.step("two more accounts came and went")
}

// TestProxyRefusesSessionsThatAreNotItsOwn: a token that was not made through the proxy has no MLS device behind it.
func TestProxyRefusesSessionsThatAreNotItsOwn(t *testing.T) {
	s := tell(t, "sqlite")
	s.silent = true
	user, err := s.w.AddUser(s.ctx, "syn1", fmt.Sprintf("proxied%d", people.Add(1)))
	s.must(err)
	p := s.proxy("syn1")
	direct := *p.server
	direct.BaseURL = p.url
	_, err = e2e.API(s.soon(), &direct, user, http.MethodGet, "/sync", nil)
	if err == nil || !strings.Contains(err.Error(), "M_UNKNOWN_TOKEN") || !strings.Contains(err.Error(), "through the proxy") {
		t.Errorf("a session made elsewhere: %v", err)
	}
	if _, err = e2e.API(s.soon(), &direct, user, http.MethodGet, "/account/whoami", nil); err != nil {
		t.Errorf("whoami: %v", err)
	}
}

// TestProxyPassword: a client changes the password and ends sessions. The MLS device, with its keys, stays what it was, and
// the client can go on.
func TestProxyPassword(t *testing.T) {
	for _, server := range []string{"syn1", "den1"} {
		t.Run(server, func(t *testing.T) {
			s := tell(t, "sqlite")
			s.silent = true
			user, err := s.w.AddUser(s.ctx, server, fmt.Sprintf("proxied%d", people.Add(1)))
			s.must(err)
			p := s.proxy(server)
			cli := p.client(user)
			other := p.login(user)
			mine := func() map[string]bool {
				return s.devices(p.server, lab.User{UserID: user.UserID, AccessToken: cli.AccessToken})
			}
			before := mine()
			device := ""
			folders, _ := filepath.Glob(filepath.Join(p.state, "accounts", "*"))
			for name := range before {
				if name != cli.DeviceID.String() && name != other.DeviceID.String() && len(folders) == 1 &&
					strings.Contains((&prompt{s: s, server: p.server, state: folders[0], cwd: s.TempDir()}).run("verify", "--json"), `"`+name+`"`) {
					device = name
				}
			}
			if len(before) != 4 || device == "" { // that of AddUser, too
				t.Fatalf("the user has the devices %v, of which %q is the MLS device's", before, device)
			}
			// does does what has to be proven by the password.
			does := func(method, path string, content map[string]any) (int, string) {
				t.Helper()
				for {
					raw, err := json.Marshal(content)
					s.must(err)
					status, answer := cli.ask(method, "/_matrix/client/v3"+path, raw)
					var asks struct{ Session string }
					if _, again := content["auth"]; again || status != http.StatusUnauthorized || json.Unmarshal(answer, &asks) != nil {
						return status, string(answer)
					}
					content["auth"] = map[string]any{
						"type": "m.login.password", "session": asks.Session, "password": user.Password,
						"identifier": map[string]string{"type": "m.id.user", "user": user.UserID},
					}
				}
			}
			if status, said := does(http.MethodDelete, "/devices/"+device, map[string]any{}); status != http.StatusForbidden || !strings.Contains(said, "the proxy's own device") {
				t.Errorf("ending the MLS device: %d %s", status, said)
			}
			if status, said := does(http.MethodPost, "/delete_devices", map[string]any{"devices": []string{other.DeviceID.String(), device}}); status != http.StatusForbidden || !strings.Contains(said, "the proxy's own device") {
				t.Errorf("ending it among others: %d %s", status, said)
			}
			for _, tt := range []struct {
				password string
				said     map[string]any
				left     map[string]bool
			}{
				{"first-" + user.Password, map[string]any{"logout_devices": false}, before},
				{"second-" + user.Password, nil, map[string]bool{device: true, cli.DeviceID.String(): true}},
			} {
				content := map[string]any{"new_password": tt.password}
				maps.Copy(content, tt.said)
				if status, said := does(http.MethodPost, "/account/password", content); status != http.StatusOK {
					t.Fatalf("changing the password with %v: %d %s", tt.said, status, said)
				}
				user.Password = tt.password
				if left := mine(); !maps.Equal(left, tt.left) {
					t.Errorf("after the password was changed with %v there are %v, want %v", tt.said, left, tt.left)
				}
			}
			if _, err := other.Whoami(s.soon()); !errors.Is(err, mautrix.MUnknownToken) {
				t.Errorf("the other session goes on: %v", err)
			}
			if _, err := cli.SyncRequest(s.soon(), 0, "", "", false, ""); err != nil {
				t.Errorf("the client cannot go on: %v", err)
			}
			third := p.login(user)
			if left := mine(); len(left) != 3 || !left[device] || !left[third.DeviceID.String()] {
				t.Errorf("with another client there are %v, want one device more", left)
			}
			for _, c := range []*mautrix.Client{third, cli.Client} {
				_, err := c.Logout(s.soon())
				s.must(err)
			}
		})
	}
}
