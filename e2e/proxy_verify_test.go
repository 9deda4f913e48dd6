package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/proxy/terminal"
)

// comparison is what a side of an interactive verification shows.
type comparison struct {
	Emoji    []string `json:"emoji"` // their names
	Symbols  []string `json:"symbols"`
	Decimals []int    `json:"decimals"`
}

func (c comparison) String() string {
	// Which form a symbol has is the font's business.
	return strings.ReplaceAll(fmt.Sprint(c.Symbols, c.Emoji, c.Decimals), "\ufe0f", "")
}

// TestProxyDeviceIsVerifiedByAnotherClient: an account has cross-signing, whose keys a client that others wrote holds. It and the
// MLS device of the proxy compare emoji and numbers, and after that the MLS device is signed by its user, and gets into a
// room.
func TestProxyDeviceIsVerifiedByAnotherClient(t *testing.T) {
	program := realClients(t)["matrix-js-sdk that compares emoji"]
	for _, tt := range []struct {
		name, server string
		mode         string // what the client is told: whether it asks, or the MLS device does
		first        bool   // the person at the client answers first
		through      bool   // the client talks through the proxy, and has its keys by the recovery key
	}{
		{name: "it asks all, on Synapse", server: "syn1", mode: "asks-all", first: true},
		{name: "it asks, on Synapse, through the proxy", server: "syn1", mode: "asks", through: true},
		{name: "it is asked, on Synapse, through the proxy", server: "syn1", mode: "asked", through: true},
		{name: "it asks all, on Dendrite", server: "den1", mode: "asks-all"},
		{name: "it asks, on Dendrite, through the proxy", server: "den1", mode: "asks", first: true, through: true},
		{name: "it is asked, on Dendrite, through the proxy", server: "den1", mode: "asked", first: true, through: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := tell(t, "sqlite")
			s.silent = true
			ctx, cancel := context.WithTimeout(s.ctx, 2*e2e.Soon)
			defer cancel()
			asks := tt.mode != "asked"
			user, err := s.w.AddUser(s.ctx, tt.server, fmt.Sprintf("verified%d", people.Add(1)))
			s.must(err)
			p := s.proxy(tt.server)
			c := &realClient{s: s, name: "matrix-js-sdk", argv: program, dir: s.TempDir()}
			in, tell := io.Pipe()
			defer tell.Close()
			c.input = in
			says := func(word string) {
				t.Helper()
				_, err := tell.Write([]byte(word + "\n"))
				s.must(err)
			}
			others := map[id.DeviceID]bool{}
			if tt.through {
				owner := s.device(tt.server, user.Localpart, "owner", e2e.DeviceOptions{})
				others[owner.DeviceID()] = true
				s.must(os.WriteFile(filepath.Join(c.dir, "recovery-key"), []byte(owner.Recovery), 0o600))
				c.run(ctx, tt.mode, p.url, user.UserID, user.Password, c.dir)
				others[c.did("ready").Device] = true
			} else {
				c.run(ctx, tt.mode, p.server.BaseURL, user.UserID, user.Password, c.dir)
				others[c.did("ready").Device] = true
				p.login(user)
			}
			s.step("the client has its person's keys, and the proxy an MLS device")
			folders, err := filepath.Glob(filepath.Join(p.state, "accounts", "*"))
			s.must(err)
			if len(folders) != 1 {
				t.Fatalf("the accounts are %q", folders)
			}

			var device id.DeviceID
			for limit := s.soon(); device == ""; {
				for name := range s.keys(p.server, user).Devices[user.UserID] {
					if !others[name] {
						device = name
					}
				}
				s.must(limit.Err())
			}

			turn, asked := make(chan string), make(chan string, 2)
			person := &prompt{s: s, server: p.server, user: user, state: folders[0], cwd: s.TempDir(), answer: func(ctx context.Context, question string) (string, error) {
				if strings.Contains(question, "asks to be verified") {
					asked <- question
					return "yes", nil
				}
				select {
				case answer := <-turn:
					return answer, nil
				case <-ctx.Done():
					return "", ctx.Err()
				}
			}}
			stdout, stderr, code := newOutput(), newOutput(), make(chan int, 1)
			args := []string{"verify", "--json"}
			if asks {
				args = append(args, "--wait")
			}
			go func() { code <- person.start(ctx, "", stdout, stderr, args...) }()
			if asks {
				s.must(stderr.wait(ctx, fmt.Sprintf("waiting for another device (this one is %s)", device)))
				says(string(device))
			}
			theirs := c.did("shown")
			if theirs.Device != device {
				t.Errorf("the client compares with the device %s, want %s", theirs.Device, device)
			}
			s.must(stdout.wait(ctx, "decimals"))
			var ours comparison
			line, _, _ := strings.Cut(stdout.String(), "\n")
			s.must(json.Unmarshal([]byte(line), &ours))
			if len(ours.Emoji) != 7 || len(ours.Symbols) != 7 || len(ours.Decimals) != 3 || ours.String() != theirs.comparison.String() {
				t.Errorf("the client shows %v, and the MLS device %v", theirs.comparison, ours)
			}
			if asks && !strings.Contains(<-asked, user.UserID) {
				t.Error("it was not said who asks")
			}
			if s.signs(p.server, user, device) {
				t.Fatal("the MLS device is signed already")
			}
			s.step("both show the same")

			if !tt.first {
				turn <- "yes"
			}
			says("same")
			c.did("answered")
			if tt.first {
				turn <- "yes"
			}
			end := c.did("ended").Texts[0]
			if got := <-code; got != terminal.ExitOK || end != "confirmed" {
				t.Fatalf("verify: exit code %d, and at the client %q\n%s%s", got, end, stdout, stderr)
			}
			for _, want := range []string{`"verified":true`, `"master_key_trusted":true`, `"` + string(device) + `"`} {
				if !strings.Contains(stdout.String(), want) {
					t.Errorf("verify says not %s:\n%s", want, stdout)
				}
			}
			if !s.signs(p.server, user, device) {
				t.Error("the homeserver has no signature of the user on the MLS device")
			}
			says("trust")
			if trust := c.did("keys").Trust; !trust[device] {
				t.Errorf("of its user's devices the client trusts %v", trust)
			}
			s.must(tell.Close())
			c.ends()
			s.step("the MLS device is signed")

			alice := s.person(tt.server, "alice")
			room, err := alice.CreateRoom(s.soon(), client.CreateOptions{Name: "With somebody verified"})
			s.must(err)
			s.must(alice.Invite(s.soon(), room, id.UserID(user.UserID)))
			person.run("join", string(room))
			_, err = alice.WaitEpoch(s.soon(), room, "the MLS device", func(u *client.EpochChanged) bool { return slices.Contains(u.Added, id.UserID(user.UserID)) })
			s.must(err)
		})
	}
}

// signs tells whether the homeserver has a signature by the user's self-signing key on a device.
func (s *story) signs(server *lab.Server, user lab.User, device id.DeviceID) bool {
	s.Helper()
	keys := s.keys(server, user)
	published, ok := keys.Devices[user.UserID][device]
	if !ok {
		s.Fatalf("the homeserver knows no device %q of %s", device, user.UserID)
	}
	for self := range keys.Self[user.UserID].Keys {
		if published.Signatures[user.UserID][self] != "" {
			return true
		}
	}
	return false
}
