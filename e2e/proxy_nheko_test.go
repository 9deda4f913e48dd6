//go:build nheko

package e2e_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/interop"
	"github.com/matrix-mls/matrix-mls/mls"
)

const width = 1066 // of nheko's window

// A desktop is an X server without a screen, on which nheko runs. It is driven as a person would: by mouse and keyboard.
type desktop struct {
	s        *story
	dir      string
	pictures string
	env      []string
	app      *exec.Cmd
	last     []byte // the picture at rest: three bytes a pixel
}

// newDesktop starts an X server, for a nheko that has never run before. It keeps its secrets in a file of its own, since
// there is no keyring.
func newDesktop(s *story) *desktop {
	s.Helper()
	for _, program := range []string{"Xvfb", "xdotool", "import", "dbus-run-session", "nheko"} {
		if _, err := exec.LookPath(program); err != nil {
			s.Fatalf("%v; make nheko installs it", err)
		}
	}
	// Its children may outlive it for a moment, and hold files.
	dir, err := os.MkdirTemp("", "nheko")
	s.must(err)
	s.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &desktop{s: s, dir: dir, pictures: os.Getenv("MLS_SCREENSHOTS")}
	d.env = []string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "QT_QUICK_BACKEND=software", "HOME=" + dir}
	for _, name := range []string{"CONFIG", "DATA", "CACHE", "STATE"} {
		d.env = append(d.env, "XDG_"+name+"_HOME="+filepath.Join(dir, name))
	}
	d.env = append(d.env, "XDG_RUNTIME_DIR="+filepath.Join(dir, "run"))
	s.must(os.MkdirAll(filepath.Join(dir, "run"), 0o700))
	s.must(os.MkdirAll(filepath.Join(dir, "CONFIG", "nheko"), 0o700))
	s.must(os.WriteFile(filepath.Join(dir, "CONFIG", "nheko", "nheko.conf"), []byte("[General]\nrun_without_secure_secrets_service=true\n"), 0o600))

	read, write, err := os.Pipe()
	s.must(err)
	defer read.Close()
	// -r: on a slow machine keys would repeat themselves.
	screen := exec.Command("Xvfb", "-displayfd", "3", "-r", "-screen", "0", fmt.Sprintf("%dx640x24", width), "-nolisten", "tcp")
	screen.ExtraFiles = []*os.File{write}
	s.must(screen.Start())
	write.Close()
	s.Cleanup(func() { _ = screen.Process.Kill(); _ = screen.Wait() })
	var number int
	s.must(read.SetReadDeadline(time.Now().Add(e2e.Soon)))
	_, err = fmt.Fscan(read, &number)
	s.must(err)
	d.env = append(d.env, fmt.Sprintf("DISPLAY=:%d", number))
	s.Cleanup(d.close)
	return d
}

// open starts nheko and waits until it has drawn its window.
func (d *desktop) open() {
	d.s.Helper()
	log, err := os.OpenFile(filepath.Join(d.dir, "nheko.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	d.s.must(err)
	defer log.Close()
	d.app = exec.Command("dbus-run-session", "--", "nheko")
	d.app.Env, d.app.Stdout, d.app.Stderr = d.env, log, log
	d.app.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.s.must(d.app.Start())
	d.s.eventually("nheko shows a window", func() string {
		if len(d.windows()) == 0 {
			return "there is none"
		}
		return ""
	})
	d.calm()
}

func (d *desktop) close() {
	if d.app == nil {
		return
	}
	_ = syscall.Kill(-d.app.Process.Pid, syscall.SIGTERM)
	_ = d.app.Wait()
	d.app = nil
	for len(d.windows()) > 0 { // nheko itself takes a little longer
		d.s.pause()
	}
}

func (d *desktop) do(args ...string) string {
	d.s.Helper()
	cmd := exec.CommandContext(d.s.soon(), "xdotool", args...)
	cmd.Env = d.env
	out, err := cmd.Output()
	if err != nil {
		d.s.Fatalf("xdotool %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// windows are nheko's, the newest last.
func (d *desktop) windows() []string {
	cmd := exec.CommandContext(d.s.soon(), "xdotool", "search", "--onlyvisible", "--class", "nheko")
	cmd.Env = d.env
	out, _ := cmd.Output() // fails where there is none
	return strings.Fields(string(out))
}

// front gives the keyboard to the newest window: there is no window manager.
func (d *desktop) front() {
	d.s.Helper()
	all := d.windows()
	if len(all) == 0 {
		d.s.Fatalf("nheko has no window\n%s", d.log())
	}
	d.do("windowfocus", all[len(all)-1])
}

func (d *desktop) log() string {
	raw, _ := os.ReadFile(filepath.Join(d.dir, "nheko.log"))
	return string(raw[max(0, len(raw)-4000):])
}

// dialog waits for a window in front of the main one.
func (d *desktop) dialog() {
	d.s.Helper()
	d.s.eventually("nheko asks", func() string {
		if len(d.windows()) < 2 {
			return "there is no dialog"
		}
		return ""
	})
	d.calm()
	d.front()
}

func (d *desktop) click(x, y int) {
	d.s.Helper()
	d.do("mousemove", fmt.Sprint(x), fmt.Sprint(y), "click", "1")
	d.calm()
}

func (d *desktop) keys(names ...string) {
	d.s.Helper()
	d.do(append([]string{"key"}, names...)...)
	d.calm()
}

func (d *desktop) write(text string) {
	d.s.Helper()
	d.do("type", "--delay", "25", text)
	d.calm()
}

// look keeps a picture under a name, if pictures are wanted.
func (d *desktop) look(name string) {
	d.s.Helper()
	if d.pictures != "" {
		d.shot(filepath.Join(d.pictures, "nheko-"+name+".png"))
	}
}

func (d *desktop) shot(to string) []byte {
	d.s.Helper()
	cmd := exec.CommandContext(d.s.soon(), "import", "-window", "root", "-depth", "8", to)
	cmd.Env = d.env
	out, err := cmd.Output()
	d.s.must(err)
	return out
}

// calm waits until the picture stays the same for a while, but for a cursor that blinks.
func (d *desktop) calm() {
	d.s.Helper()
	deadline := time.Now().Add(e2e.Soon)
	for same := 0; same < 3; d.s.pause() {
		now := d.shot("rgb:-")
		if differs(d.last, now) < 300 {
			same++
		} else {
			same = 0
		}
		d.last = now
		if time.Now().After(deadline) {
			d.s.Fatalf("the picture does not come to rest\n%s", d.log())
		}
	}
}

// differs counts the bytes in which two pictures differ.
func differs(a, b []byte) int {
	if len(a) != len(b) {
		return len(b)
	}
	n := 0
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// TestProxyNheko: a desktop client with encryption of its own, driven by mouse and keyboard, does in an MLS room what a
// person does there. It says nothing to programs, so that others tell whether it did: who read up to where is at the
// homeserver, and MLS_SCREENSHOTS=DIR keeps what it showed.
func TestProxyNheko(t *testing.T) {
	s := tell(t, "sqlite")
	alice := s.person("den1", "alice")
	user, err := s.w.AddUser(s.ctx, "syn1", fmt.Sprintf("desk%d", people.Add(1)))
	s.must(err)
	p := s.proxy("syn1")
	bob, word := id.UserID(user.UserID), token("planted")
	room, err := alice.CreateRoom(s.soon(), client.CreateOptions{Name: "With nheko"})
	s.must(err)
	other := s.stranger(interop.OpenMLS, "den1", mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519)
	before := len(s.devices(p.server, user))

	d := newDesktop(s)
	d.open()
	d.look("1-welcome")
	d.front()
	d.click(614, 432) // to the login
	d.click(533, 272)
	d.write(user.UserID)
	d.keys("Tab") // the server is not found, since the test's certificate is no real one: it asks for the address
	d.write(user.Password)
	d.click(533, 397)
	d.keys("ctrl+a")
	d.write(p.url)
	d.keys("Tab")
	d.look("2-login")
	d.click(533, 512)
	s.eventually("nheko and its MLS device are logged in", func() string {
		if n := len(s.devices(p.server, user)); n != before+2 {
			return fmt.Sprintf("%d devices more", n-before)
		}
		return ""
	})
	s.step("it logged in")
	d.calm()
	d.look("3-asks-for-recovery-key")
	files, err := filepath.Glob(filepath.Join(p.state, "accounts", "*", "recovery-key"))
	s.must(err)
	if len(files) != 1 {
		t.Fatalf("the recovery keys are %q", files)
	}
	recovery, err := os.ReadFile(files[0])
	s.must(err)
	d.click(528, 225) // enter passphrase
	d.dialog()
	d.write(strings.TrimSpace(string(recovery)))
	d.keys("Return")
	s.eventually("all its user's devices are verified for it", func() string {
		if n := len(d.windows()); n > 1 {
			return fmt.Sprintf("%d windows", n)
		}
		return ""
	})
	d.calm()

	s.must(alice.Invite(s.soon(), room, bob))
	d.front()
	const firstRoom = 75
	s.eventually("it shows the invite", func() string {
		d.click(130, firstRoom)
		// Its own button is in no other picture.
		if d.last[3*(380*width+645)] > 128 {
			return "not yet"
		}
		return ""
	})
	d.look("4-invite")
	d.click(645, 394)
	_, err = alice.WaitEpoch(s.soon(), room, "its MLS device", func(u *client.EpochChanged) bool { return slices.Contains(u.Added, bob) })
	s.must(err)
	s.step("it joined")
	s.must(alice.Invite(s.soon(), room, other.id()))
	other.accept(room, alice.Server.ServerName)
	other.in(room)

	var fifth id.EventID
	for i := range 5 {
		fifth, err = alice.SendText(s.soon(), room, fmt.Sprintf("message %d %s", i+1, word))
		s.must(err)
	}
	read := func(what string, evt id.EventID) {
		s.Helper()
		s.eventually("nheko's user has read "+what, func() string {
			raw, err := e2e.API(s.soon(), alice.Server, alice.User, http.MethodGet, "/sync?timeout=0", nil)
			if err != nil {
				return err.Error()
			}
			if at := strings.Index(string(raw), `"`+string(evt)+`":{"m.read":{"`+string(bob)+`"`); at < 0 {
				return "no receipt"
			}
			return ""
		})
	}
	read("the five messages", fifth)
	d.calm()
	d.look("5-read")
	s.step("it read")

	hears := func(what, want string) *client.Message {
		s.Helper()
		u, err := alice.Wait(s.soon(), what, func(u client.Update) bool {
			m, ok := u.(*client.Message)
			return ok && m.Room == room && m.Sender == bob && strings.Contains(string(m.Content), want)
		})
		if err != nil {
			d.look("failed")
			t.Fatalf("%v\n%s", err, d.log())
		}
		m := u.(*client.Message)
		other.readsAlso(m)
		s.step("%s arrived", what)
		return m
	}
	d.click(500, 580)
	d.write("text " + word)
	d.keys("Return")
	hears("the text", `"text `+word)
	d.keys("alt+Up") // its own text
	d.keys("alt+Up") // the fifth message
	d.write("reply " + word)
	d.keys("Return")
	if reply := hears("the reply", "reply "+word); !strings.Contains(string(reply.Content), string(fifth)) {
		t.Errorf("the reply is %s, want one to %s", reply.Content, fifth)
	}
	d.keys("Up") // edits its last message
	d.keys("ctrl+a")
	d.write("edit " + word)
	d.keys("Return")
	if edit := hears("the edit", `"edit `+word); !strings.Contains(string(edit.Content), "m.replace") {
		t.Errorf("the edit is %s", edit.Content)
	}
	for range 3 { // the edit, the text, the fifth message
		d.keys("alt+Up")
	}
	d.write("/react key " + word)
	d.keys("Return")
	if reaction := hears("the reaction", "key "+word); reaction.Type != "m.reaction" || !strings.Contains(string(reaction.Content), string(fifth)) {
		t.Errorf("the reaction is %s %s, want one to %s", reaction.Type, reaction.Content, fifth)
	}
	data := bytes.Repeat([]byte(word+"\n"), (1<<20)/(len(word)+1)+1)[:1<<20]
	s.must(os.WriteFile(filepath.Join(d.dir, "file.bin"), data, 0o600))
	d.click(280, 580) // the paperclip
	d.dialog()
	d.write(filepath.Join(d.dir, "file.bin"))
	d.keys("Return")
	d.front()
	d.look("6-file")
	d.click(934, 541) // upload
	content, got, err := alice.DownloadFile(s.soon(), hears("the file", "m.file"))
	s.must(err)
	if !bytes.Equal(got, data) || content.MsgType != event.MsgFile {
		t.Errorf("alice got a %s of %d bytes", content.MsgType, len(got))
	}
	d.calm()
	d.look("7-spoke")
	s.onlyMLS(alice, room)

	// What is not right in the room is said in the room.
	_, err = e2e.API(s.soon(), alice.Server, alice.User, http.MethodPut, "/rooms/"+url.PathEscape(string(room))+"/state/m.room.encryption", map[string]any{"algorithm": "m.megolm.v1.aes-sha2"})
	s.must(err)
	at := d.last
	s.eventually("it shows the notice", func() string {
		if d.calm(); differs(at, d.last) < 1000 {
			return "nothing new is in the picture"
		}
		return ""
	})
	d.look("8-notice")

	d.close()
	p.end()
	p.listen = strings.TrimPrefix(p.url, "http://") // where nheko knows it
	p.start()
	d.open()
	d.front()
	d.click(130, firstRoom)
	d.look("9-history")
	after, err := alice.SendText(s.soon(), room, "after "+word)
	s.must(err)
	read("what came after the restart", after)
	d.calm()
	d.look("10-after-restart")
	s.step("it goes on after a restart")

	d.click(199, 24)
	d.dialog()
	d.look("11-logout")
	d.keys("Return")
	s.eventually("nheko and its MLS device are logged out", func() string {
		if n := len(s.devices(p.server, user)); n != before {
			return fmt.Sprintf("%d devices more", n-before)
		}
		return ""
	})
	d.look("12-left")
	s.step("it left")
	s.blind([]string{word})
}
