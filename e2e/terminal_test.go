package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/proxy/terminal"
)

// output collects what a verb prints, while it runs.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func newOutput() *output { return &output{more: make(chan struct{})} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = make(chan struct{})
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// wait returns once the text was printed.
func (o *output) wait(ctx context.Context, text string) error {
	for {
		o.mu.Lock()
		more, found := o.more, strings.Contains(o.text.String(), text)
		o.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("%q was not printed: %w; there is: %s", text, ctx.Err(), o.String())
		}
	}
}

// A prompt is a person at a terminal with a state directory.
type prompt struct {
	s      *story
	server *lab.Server
	user   lab.User
	state  string
	cwd    string
	answer func(ctx context.Context, question string) (string, error) // nil: yes
}

func (s *story) prompt(server, name string) *prompt {
	s.Helper()
	user, err := s.w.AddUser(s.ctx, server, fmt.Sprintf("%s%d", name, people.Add(1)))
	s.must(err)
	p := &prompt{s: s, server: s.w.Server(server), user: user}
	p.newDevice()
	return p
}

// newDevice is at an empty state directory from now on.
func (p *prompt) newDevice() {
	p.cwd = p.s.TempDir()
	p.state = filepath.Join(p.cwd, "state")
}

func (p *prompt) id() string { return string(p.user.UserID) }

// try runs a verb and returns exit code, standard output and standard error.
func (p *prompt) try(ctx context.Context, stdin string, args ...string) (int, string, string) {
	stdout, stderr := newOutput(), newOutput()
	code := p.start(ctx, stdin, stdout, stderr, args...)
	return code, stdout.String(), stderr.String()
}

func (p *prompt) start(ctx context.Context, stdin string, stdout, stderr *output, args ...string) int {
	env := &terminal.Env{
		Stdin: strings.NewReader(stdin), Stdout: stdout, Stderr: stderr, Cwd: p.cwd,
		Getenv: func(string) string { return "" },
		ReadLine: func(ctx context.Context, question string) (string, error) {
			if p.answer != nil {
				return p.answer(ctx, question)
			}
			return "yes", nil
		},
	}
	return terminal.Main(ctx, append([]string{"--state", p.state}, args...), env)
}

// run runs a verb that must succeed and returns what it printed.
func (p *prompt) run(args ...string) string {
	p.s.Helper()
	return p.runWith("", args...)
}

func (p *prompt) runWith(stdin string, args ...string) string {
	p.s.Helper()
	ctx, cancel := context.WithTimeout(p.s.ctx, 2*e2e.Soon)
	defer cancel()
	code, stdout, stderr := p.try(ctx, stdin, args...)
	if code != terminal.ExitOK {
		p.s.Fatalf("mls-proxy %s: exit code %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

func (p *prompt) login() {
	p.s.Helper()
	p.runWith(p.user.Password+"\n", "login", p.id(), "--homeserver", p.server.BaseURL, "--password-file", "-")
	p.s.step("%s is logged in", p.id())
}

func (p *prompt) bootstrap() (recoveryKey string) {
	p.s.Helper()
	return strings.TrimSpace(p.runWith(p.user.Password+"\n", "verify", "--bootstrap", "--password-file", "-"))
}

// reads fails the story unless tail shows the text.
func (p *prompt) reads(room, text string) {
	p.s.Helper()
	ctx, cancel := context.WithTimeout(p.s.ctx, e2e.Soon)
	defer cancel()
	stdout, stderr := newOutput(), newOutput()
	done := make(chan int, 1)
	go func() { done <- p.start(ctx, "", stdout, stderr, "tail", room) }()
	err := stdout.wait(ctx, text)
	cancel()
	<-done
	if err != nil {
		p.s.Fatalf("%s: %v\n%s", p.id(), err, stderr)
	}
}

// TestTerminal is a conversation of people at terminals, each verb a run of the program of its own: users on Synapse and
// on Dendrite, a file, a second device that is verified by emoji, a second terminal, a removal.
func TestTerminal(t *testing.T) {
	for _, servers := range [][2]string{{"syn1", "den1"}, {"den1", "syn2"}} {
		t.Run(servers[0]+" to "+servers[1], func(t *testing.T) {
			s := tell(t, "sqlite")
			alice, bob := s.prompt(servers[0], "alice"), s.prompt(servers[1], "bob")
			for _, p := range []*prompt{alice, bob} {
				p.login()
				p.bootstrap()
			}
			name := token("Room")
			var created struct {
				RoomID string `json:"room_id"`
			}
			s.must(json.Unmarshal([]byte(alice.run("--json", "create", name, bob.id())), &created))
			// By its id: Dendrite loses the name of a room when another server joins it.
			room := created.RoomID
			s.step("the room is there")
			bob.awaitInvite(room)
			bob.run("join", room)
			s.step("bob is in")
			word := token("planted")
			alice.run("send", name, "the", "word", "is", word)
			bob.reads(room, "the word is "+word)
			bob.runWith("several\nlines", "send", room, "-")
			alice.reads(room, "several\n    lines")
			s.step("both spoke")

			content := token("file")
			s.must(os.WriteFile(filepath.Join(bob.cwd, "note.txt"), []byte(content), 0o600))
			bob.run("send", room, "--file", "note.txt")
			alice.reads(room, "note.txt")
			alice.run("get", room, alice.event(room, "note.txt"), "--output", "got.txt")
			if got, err := os.ReadFile(filepath.Join(alice.cwd, "got.txt")); err != nil || string(got) != content {
				t.Errorf("the file holds %q, %v", got, err)
			}
			s.step("the file came")

			laptop := alice.anotherDevice()
			laptop.run("join", room)
			s.step("the second device is in")
			second := token("second")
			laptop.run("send", room, second)
			bob.reads(room, second)
			members := bob.run("members", room)
			for _, want := range []string{alice.deviceID(), laptop.deviceID(), "cross-signed", "this device"} {
				if !strings.Contains(members, want) {
					t.Errorf("members do not show %q:\n%s", want, members)
				}
			}

			if epochs := bob.run("epochs", room); !strings.Contains(epochs, "HEAD, ") || !strings.Contains(epochs, laptop.deviceID()) || !strings.Contains(epochs, "the founding epoch") && !strings.Contains(epochs, "what is kept here begins") {
				t.Errorf("the picture of the epochs:\n%s", epochs)
			}
			if svg := bob.run("epochs", room, "--svg", "-"); !strings.Contains(svg, "</svg>") {
				t.Errorf("no picture: %s", svg)
			}
			bob.inASecondTerminal(room)
			if servers[0] == "syn1" {
				alice.changesSuite(room, word, bob, laptop)
			}

			alice.run("kick", room, bob.id())
			after := token("after")
			alice.run("send", room, after)
			laptop.reads(room, after)
			ctx, cancel := context.WithTimeout(s.ctx, 2*e2e.Soon)
			defer cancel()
			if _, stdout, stderr := bob.try(ctx, "", "tail", room, "--for", "3s"); strings.Contains(stdout, after) {
				t.Errorf("the removed user reads on:\n%s%s", stdout, stderr)
			}
			if code, _, _ := bob.try(ctx, "", "send", room, "still here?"); code == terminal.ExitOK {
				t.Error("the removed user can send")
			}
			s.step("bob is out")
			for _, p := range []*prompt{alice, laptop, bob} {
				p.run("logout")
			}
			s.blind([]string{word, content, second, after})
		})
	}
}

// changesSuite moves a room to another suite, and lets the others follow.
func (p *prompt) changesSuite(room, before string, others ...*prompt) {
	p.s.Helper()
	type suites struct {
		Suite   string `json:"suite"`
		Devices int    `json:"devices"`
		Suites  []struct {
			Number  int      `json:"number"`
			Devices int      `json:"devices"`
			InUse   bool     `json:"in_use"`
			Lacking []string `json:"lacking"`
		} `json:"suites"`
	}
	show := func() (shown suites) {
		p.s.Helper()
		p.s.must(json.Unmarshal([]byte(p.run("suite", room, "--json")), &shown))
		return shown
	}
	was := show()
	if was.Devices != 3 || len(was.Suites) < 3 || was.Suites[0].Number != 1 || !was.Suites[0].InUse || was.Suites[0].Devices != 3 {
		p.s.Errorf("the suites are %+v", was)
	}
	if said := p.run("suite", room, "3", "--check"); !strings.Contains(said, "3 of 3 devices") || !strings.Contains(said, "All can follow") {
		p.s.Errorf("suite --check says\n%s", said)
	}
	if now := show(); now.Suite != was.Suite {
		p.s.Errorf("--check moved the room to %s", now.Suite)
	}
	var ends []func()
	for _, o := range others { // somebody else has to be there, for anything to become final
		ends = append(ends, o.follows(room))
	}
	if said := p.run("suite", room, "3"); !strings.Contains(said, "count from 1 again") {
		p.s.Errorf("suite says\n%s", said)
	}
	if now := show(); now.Suite == was.Suite || !strings.Contains(now.Suite, "CHACHA20") {
		p.s.Errorf("the room uses %s", now.Suite)
	}
	for _, end := range ends {
		end()
	}
	text := token("in-another-suite")
	p.run("send", room, text)
	for _, o := range others {
		o.reads(room, text)
		if kept := o.run("history", room); !strings.Contains(kept, before) {
			p.s.Errorf("%s has forgotten what was said before:\n%s", o.id(), kept)
		}
	}
	p.s.step("the room moved to another suite")
}

// follows runs tail until the function that it returns is called.
func (p *prompt) follows(room string) (end func()) {
	p.s.Helper()
	ctx, cancel := context.WithTimeout(p.s.ctx, 4*e2e.Soon)
	stdout, stderr, done := newOutput(), newOutput(), make(chan int, 1)
	go func() { done <- p.start(ctx, "", stdout, stderr, "tail", room) }()
	if err := stdout.wait(ctx, "epoch"); err != nil {
		cancel()
		<-done
		p.s.Fatalf("%s: %v\n%s", p.id(), err, stderr)
	}
	return func() {
		cancel()
		<-done
	}
}

// awaitInvite waits until the invite has come over the federation.
func (p *prompt) awaitInvite(room string) {
	p.s.Helper()
	deadline := time.Now().Add(e2e.Soon)
	for !strings.Contains(p.run("rooms"), room) {
		if time.Now().After(deadline) {
			p.s.Fatalf("%s was not invited", p.id())
		}
	}
}

// event returns the id of the event with a text.
func (p *prompt) event(room, text string) string {
	p.s.Helper()
	for line := range strings.Lines(p.run("tail", room, "--follow=false", "--json")) {
		var m struct {
			EventID string `json:"event_id"`
		}
		if strings.Contains(line, text) && json.Unmarshal([]byte(line), &m) == nil {
			return m.EventID
		}
	}
	p.s.Fatalf("no message with %q", text)
	return ""
}

func (p *prompt) deviceID() string {
	p.s.Helper()
	var v struct {
		DeviceID id.DeviceID `json:"device_id"`
	}
	p.s.must(json.Unmarshal([]byte(p.run("verify", "--json")), &v))
	return v.DeviceID.String()
}

// anotherDevice logs the same user in once more and verifies that by emoji.
func (p *prompt) anotherDevice() *prompt {
	p.s.Helper()
	other := &prompt{s: p.s, server: p.server, user: p.user}
	other.newDevice()
	other.login()
	ctx, cancel := context.WithTimeout(p.s.ctx, 2*e2e.Soon)
	defer cancel()
	stdout, stderr := newOutput(), newOutput()
	done := make(chan int, 1)
	go func() { done <- p.start(ctx, "", stdout, stderr, "verify", "--wait") }()
	p.s.must(stderr.wait(ctx, "waiting for another device"))
	shown := other.run("verify", "--json")
	if code := <-done; code != terminal.ExitOK {
		p.s.Fatalf("verify --wait: exit code %d\n%s%s", code, stdout, stderr)
	}
	var emoji struct{ Emoji []string }
	p.s.must(json.Unmarshal([]byte(strings.SplitN(shown, "\n", 2)[0]), &emoji))
	if len(emoji.Emoji) != 7 || !strings.Contains(stderr.String(), strings.Join(emoji.Emoji, ", ")) {
		p.s.Errorf("the devices show different emoji: %s and %s", shown, stderr)
	}
	p.s.step("the second device is verified")
	return other
}

// inASecondTerminal sends while tail runs in the first.
func (p *prompt) inASecondTerminal(room string) {
	p.s.Helper()
	ctx, cancel := context.WithTimeout(p.s.ctx, 2*e2e.Soon)
	defer cancel()
	stdout, stderr := newOutput(), newOutput()
	done := make(chan int, 1)
	go func() { done <- p.start(ctx, "", stdout, stderr, "tail", room) }()
	p.s.must(stdout.wait(ctx, "epoch"))
	text := token("other-terminal")
	p.run("send", room, text)
	p.s.must(stdout.wait(ctx, text))
	cancel()
	if code := <-done; code != terminal.ExitOK {
		p.s.Errorf("tail: exit code %d\n%s", code, stderr)
	}
	p.s.step("a second terminal spoke")
}
