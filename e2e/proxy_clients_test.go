package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/interop"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/mls"
)

// A realClient is a program on a library that others wrote, which knows nothing of
// MLS and speaks to the proxy.
type realClient struct {
	s       *story
	name    string
	argv    func(dir string) []string
	dir     string
	process *exec.Cmd
	input   io.Reader // nil: it has none
	lines   *bufio.Scanner
	stderr  *os.File
}

// said is a line of such a program.
type said struct {
	Did   string     `json:"did"`
	Event id.EventID `json:"event_id"`
	Texts []string   `json:"texts"`
	comparison
	ownKeys
}

// realClients are the programs, installed by make lab-clients.
func realClients(t *testing.T) map[string]func(dir string) []string {
	t.Helper()
	cache, err := lab.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Abs(filepath.Join("testdata", "clients"))
	if err != nil {
		t.Fatal(err)
	}
	// Node looks for modules beside the program.
	js := func(argv []string, files ...string) func(string) []string {
		return func(dir string) []string {
			for _, name := range files {
				raw, err := os.ReadFile(filepath.Join(scripts, name))
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, name), raw, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink(filepath.Join(cache, "lab", "clients-node", "node_modules"), filepath.Join(dir, "node_modules")); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
			return append([]string{"node", filepath.Join(dir, files[0])}, argv...)
		}
	}
	jsSDK := func(kind string) func(string) []string {
		return js([]string{kind}, "js_client.mjs", "js_crypto.mjs")
	}
	python := func(name string) func(string) []string {
		return func(string) []string {
			return []string{filepath.Join(cache, "lab", "clients-venv", "bin", "python"), "-B", filepath.Join(scripts, name)}
		}
	}
	return map[string]func(string) []string{
		"matrix-nio":                             python("nio_client.py"),
		"matrix-commander":                       python("commander_client.py"),
		"hydrogen":                               js(nil, "hydrogen_client.mjs", "hydrogen.html", "hydrogen_page.js"),
		"matrix-js-sdk":                          jsSDK("plain"),
		"matrix-js-sdk with its encryption":      jsSDK("rust"),
		"matrix-js-sdk with external encryption": jsSDK("external"),
		"matrix-js-sdk that compares emoji":      js(nil, "js_verify.mjs", "js_crypto.mjs"),
	}
}

// run starts the program.
func (c *realClient) run(ctx context.Context, args ...string) {
	c.s.Helper()
	argv := append(c.argv(c.dir), args...)
	c.process = exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.process.Stdin = c.input
	out, err := c.process.StdoutPipe()
	c.s.must(err)
	c.stderr, err = os.Create(filepath.Join(c.dir, "stderr"))
	c.s.must(err)
	c.process.Stderr = c.stderr
	c.s.must(c.process.Start())
	c.lines = bufio.NewScanner(out)
	c.lines.Buffer(nil, 1<<20)
}

// did waits until the program has done what it does next. What its library says
// meanwhile is kept for when it fails.
func (c *realClient) did(what string) said {
	c.s.Helper()
	var line said
	var talk strings.Builder
	for c.lines.Scan() {
		if text := c.lines.Text(); !strings.HasPrefix(text, `{"did":`) {
			talk.WriteString(text + "\n")
			continue
		}
		if json.Unmarshal(c.lines.Bytes(), &line) == nil && line.Did == what {
			return line
		}
		break
	}
	c.s.Fatalf("%s did not do %q; it did %q, and said\n%s%s", c.name, what, line.Did, talk.String(), c.complaints())
	return line
}

func (c *realClient) complaints() string {
	raw, _ := os.ReadFile(c.stderr.Name())
	return string(raw)
}

// ends waits for the program's end.
func (c *realClient) ends() {
	c.s.Helper()
	if err := c.process.Wait(); err != nil {
		c.s.Fatalf("%s: %v\n%s", c.name, err, c.complaints())
	}
	c.stderr.Close()
}

// TestProxyRealClients: programs that others wrote join an MLS room through the proxy, read, speak, send a file, read
// it all again when they are started anew, and log out. A member with the SDK and one whose client is OpenMLS read the same.
func TestProxyRealClients(t *testing.T) {
	programs := realClients(t)
	for _, tt := range []struct{ name, from, to string }{
		{"matrix-nio", "syn1", "den1"}, {"matrix-nio", "den1", "syn1"}, {"matrix-js-sdk", "den1", "syn1"},
		{"matrix-js-sdk with its encryption", "den1", "syn1"}, {"matrix-js-sdk with its encryption", "syn1", "den1"},
		{"matrix-js-sdk with external encryption", "syn1", "den1"},
		{"matrix-commander", "syn1", "syn1"}, {"hydrogen", "syn1", "den1"},
	} {
		t.Run(tt.name+" on "+tt.to, func(t *testing.T) {
			s := tell(t, "sqlite")
			alice := s.person(tt.from, "alice")
			user, err := s.w.AddUser(s.ctx, tt.to, fmt.Sprintf("real%d", people.Add(1)))
			s.must(err)
			p := s.proxy(tt.to)
			room, err := alice.CreateRoom(s.soon(), client.CreateOptions{Name: "With " + tt.name})
			s.must(err)
			other := s.stranger(interop.OpenMLS, tt.from, mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519)
			bob, word := id.UserID(user.UserID), token("planted")
			// A browser's children may outlive it for a moment, and hold files.
			dir, err := os.MkdirTemp("", "client")
			s.must(err)
			s.Cleanup(func() { _ = os.RemoveAll(dir) })
			c := &realClient{s: s, name: tt.name, argv: programs[tt.name], dir: dir}
			data := bytes.Repeat([]byte(word+"\n"), (1<<20)/(len(word)+1)+1)[:1<<20]
			s.must(os.WriteFile(filepath.Join(c.dir, "file"), data, 0o600))
			args := func(mode string) []string {
				return []string{mode, p.url, user.UserID, user.Password, string(room), word, c.dir}
			}
			c.run(s.ctx, args("first")...)
			c.did("in")
			var apart *apart
			if strings.HasSuffix(tt.name, "its encryption") {
				apart = c.apart(p, user)
			}
			s.must(alice.Invite(s.soon(), room, bob))
			c.did("joined")
			s.step("it joined")
			_, err = alice.WaitEpoch(s.soon(), room, "its MLS device", func(u *client.EpochChanged) bool { return slices.Contains(u.Added, bob) })
			s.must(err)
			s.must(alice.Invite(s.soon(), room, other.id()))
			other.accept(room, alice.Server.ServerName)
			other.in(room)
			s.step("OpenMLS is in")
			for i := range 5 {
				_, err := alice.SendText(s.soon(), room, fmt.Sprintf("message %d %s", i, word))
				s.must(err)
			}
			first := c.did("read")
			s.step("it read")
			if apart != nil {
				apart.check(c.did("keys").ownKeys)
				apart.stands()
			}
			c.speaks(alice, bob, word, first.Event, data, other.readsAlso)
			c.ends()
			s.step("it spoke")

			p.end()
			p.start()
			if apart != nil {
				apart.stands()
			}
			c.run(s.ctx, args("again")...)
			if apart != nil {
				apart.check(c.did("keys").ownKeys)
			}
			c.remembers(word)
			c.did("left")
			c.ends()
			s.step("it left")
			s.onlyMLS(alice, room)
			s.blind([]string{word})
		})
	}
}

// speaks waits until alice has heard what the program says, and gives it to another who has to read the same.
func (c *realClient) speaks(alice *e2e.Device, from id.UserID, word string, first id.EventID, data []byte, also func(*client.Message)) {
	s := c.s
	s.Helper()
	if first == "" {
		s.Fatalf("%s does not say which event it read first: what it answered could not be told", c.name)
	}
	for _, want := range []struct{ what, text string }{
		{"text", "text " + word}, {"reply", string(first)}, {"edit", "edit " + word}, {"reaction", "key " + word},
	} {
		m := s.hears(alice, from, c.did(want.what).Event)
		if !strings.Contains(string(m.Content), want.text) {
			s.Errorf("alice heard %s, want %q in it", m.Content, want.text)
		}
		also(m)
	}
	file := s.hears(alice, from, c.did("file").Event)
	also(file)
	content, got, err := alice.DownloadFile(s.soon(), file)
	s.must(err)
	if !bytes.Equal(got, data) || content.MsgType != event.MsgFile {
		s.Errorf("alice got a %s of %d bytes", content.MsgType, len(got))
	}
}

// remembers waits until the program has read again what alice said, and what it said itself. Programs that show an edit in
// the place of its message show the text no more.
func (c *realClient) remembers(word string) {
	s := c.s
	s.Helper()
	history := c.did("history").Texts
	for i := range 5 {
		if want := fmt.Sprintf("message %d %s", i, word); !slices.Contains(history, want) {
			s.Errorf("%q is not in the history %q", want, history)
		}
	}
	has := func(ends string) bool {
		return slices.ContainsFunc(history, func(text string) bool { return strings.HasSuffix(text, ends) })
	}
	inPlace := slices.Contains(history, "edit "+word)
	for _, own := range []string{"text " + word, "reply " + word, "edit " + word} { // "* edit …" is the edit as it was sent
		if !has(own) && (own != "text "+word || !inPlace) {
			s.Errorf("its own %q is not in the history %q", own, history)
		}
	}
}
