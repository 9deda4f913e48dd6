package e2e_test

import (
	"fmt"
	"html"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/client"
)

// browse loads a page in a headless Chromium and returns the document. With
// MLS_SCREENSHOTS set to a folder, it leaves a picture of the page there.
func (s *story) browse(name, address string) string {
	s.Helper()
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		s.Fatalf("%v; make lab-clients installs Chromium", err)
	}
	// Its children may outlive it for a moment: they hold files, and no pipe of
	// the test's.
	dir, err := os.MkdirTemp("", "chromium")
	s.must(err)
	s.Cleanup(func() { _ = os.RemoveAll(dir) })
	run := func(args ...string) (string, string) {
		args = append([]string{
			"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--disable-component-update",
			"--disable-background-networking", "--enable-logging=stderr", "--window-size=1000,900", "--user-data-dir=" + filepath.Join(dir, "profile"),
		}, args...)
		cmd := exec.CommandContext(s.soon(), chromium, append(args, address)...)
		var written [2]string
		var files [2]*os.File
		for i, name := range []string{"stdout", "stderr"} {
			files[i], err = os.Create(filepath.Join(dir, name))
			s.must(err)
			defer files[i].Close()
		}
		cmd.Stdout, cmd.Stderr = files[0], files[1]
		failed := cmd.Run()
		for i, f := range files {
			raw, err := os.ReadFile(f.Name())
			s.must(err)
			written[i] = string(raw)
		}
		if failed != nil {
			s.Fatalf("Chromium: %v\n%s", failed, written[1])
		}
		return written[0], written[1]
	}
	if dir := os.Getenv("MLS_SCREENSHOTS"); dir != "" {
		run("--screenshot=" + filepath.Join(dir, name+".png"))
	}
	document, console := run("--dump-dom")
	if i := strings.Index(console, "CONSOLE"); i >= 0 {
		s.Errorf("%s: the browser complains: %s", name, console[i:])
	}
	s.step("Chromium showed the page " + name)
	return document
}

var pageLink = regexp.MustCompile(`<a href="([^"]+)"`)

// TestProxyStatusPage: a person looks at the status page in a browser, and
// compares a room's digits with another member.
func TestProxyStatusPage(t *testing.T) {
	s := tell(t, "sqlite")
	alice := s.person("syn1", "alice")
	user, err := s.w.AddUser(s.ctx, "den1", fmt.Sprintf("plain%d", people.Add(1)))
	s.must(err)
	p := s.proxy("den1")
	bob := p.client(user)
	room, err := alice.CreateRoom(s.soon(), client.CreateOptions{Name: "Status & <b>room</b>", Invite: nil})
	s.must(err)
	s.must(alice.Invite(s.soon(), room, bob.UserID))
	ctx := s.soon()
	for {
		resp, err := bob.sync(ctx, room)
		s.must(err)
		if resp.Rooms.Invite[room] != nil {
			break
		}
	}
	_, err = bob.JoinRoomByID(s.soon(), room)
	s.must(err)
	_, err = alice.WaitEpoch(s.soon(), room, "the plain client's device", func(u *client.EpochChanged) bool { return slices.Contains(u.Added, bob.UserID) })
	s.must(err)
	// What it reads, it reads in the group.
	word := token("hello")
	_, err = alice.SendText(s.soon(), room, word)
	s.must(err)
	bob.reads(room, word)

	path := filepath.Join(p.state, "status-page")
	info, err := os.Stat(path)
	s.must(err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("others can read the page's address: %v", info.Mode())
	}
	address, err := os.ReadFile(path)
	s.must(err)
	page := s.browse("overview", strings.TrimSpace(string(address)))
	for _, want := range []string{string(bob.UserID), "Status &amp; &lt;b&gt;room&lt;/b&gt;", "answers", " for MLS_128_", ">yes<", p.server.BaseURL} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	follow := func(page, containing string) string {
		t.Helper()
		for _, m := range pageLink.FindAllStringSubmatch(page, -1) {
			if link := html.UnescapeString(m[1]); strings.Contains(link, containing) {
				return p.url + link
			}
		}
		t.Fatalf("no link to %s in\n%s", containing, page)
		return ""
	}
	// The code of the newest epoch on both sides; a commit may come in between.
	var code *client.ComparisonCode
	var roomPage string
	s.eventually("both see one epoch", func() string {
		roomPage = s.browse("room", follow(page, "/room?"))
		if code, err = alice.ComparisonCode(s.soon(), room); err != nil {
			return err.Error()
		}
		if !strings.Contains(roomPage, fmt.Sprintf("Epoch %d:", code.Epoch)) {
			return fmt.Sprintf("the page does not show epoch %d", code.Epoch)
		}
		return ""
	})
	for _, want := range []string{strings.Join(code.Groups, " "), string(alice.UserID()), string(alice.DeviceID()), "this device", "signed by its user", `<svg id="qr"`} {
		if !strings.Contains(roomPage, want) {
			t.Errorf("the room's page lacks %q:\n%s", want, roomPage)
		}
	}
	epochs := s.browse("epochs", follow(roomPage, "/epochs?"))
	if !strings.Contains(epochs, "<svg") || !strings.Contains(epochs, string(alice.DeviceID())) {
		t.Errorf("the picture of the epochs:\n%s", epochs)
	}
	if strings.Contains(page+roomPage+epochs, word) {
		t.Error("what was said is on the page")
	}
	s.blind([]string{word})
}
