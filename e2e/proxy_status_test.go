package e2e_test

import (
	"fmt"
	"html"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
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
	find := func() *url.URL {
		t.Helper()
		address, err := os.ReadFile(path)
		s.must(err)
		base, err := url.Parse(strings.TrimSpace(string(address)))
		s.must(err)
		if "http://"+base.Host == p.url {
			t.Error("the page is at the clients' address")
		}
		return base
	}
	base := find()
	page := s.browse("overview", base.String())
	for _, want := range []string{string(bob.UserID), "Status &amp; &lt;b&gt;room&lt;/b&gt;", "answers", " for MLS_128_", ">yes<", p.server.BaseURL} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	follow := func(page, containing string) string {
		t.Helper()
		for _, m := range pageLink.FindAllStringSubmatch(page, -1) {
			if link := html.UnescapeString(m[1]); strings.Contains(link, containing) {
				return "http://" + base.Host + link
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
	s.byKeyboard(base.String(), "All rooms", "Picture of the epochs", "Back to the room")

	p.end()
	p.speaks = "de"
	p.start()
	base = find()
	var german string
	s.eventually("the page is there in German", func() string {
		german = s.browse("overview-de", base.String())
		for _, want := range []string{`<html lang="de">`, "MLS-Räume", "Status &amp; &lt;b&gt;room&lt;/b&gt;", "antwortet"} {
			if !strings.Contains(german, want) {
				return fmt.Sprintf("the page lacks %q:\n%s", want, german)
			}
		}
		return ""
	})
	germanRoom := s.browse("room-de", follow(german, "/room?"))
	for _, want := range []string{`<html lang="de">`, "Mitglieder und Geräte", string(alice.DeviceID()), "dieses Gerät", `<svg id="qr"`} {
		if !strings.Contains(germanRoom, want) {
			t.Errorf("the room's page lacks %q:\n%s", want, germanRoom)
		}
	}
	if strings.Contains(german+germanRoom, `lang="en"`) {
		t.Errorf("there is English on the German pages:\n%s%s", german, germanRoom)
	}
	s.byKeyboard(base.String(), "Alle Räume", "Bild der Epochen", "Zurück zum Raum")
	if strings.Contains(page+roomPage+epochs+german+germanRoom, word) {
		t.Error("what was said is on the page")
	}
	s.blind([]string{word})
}

// focused is what a person at the keyboard sees: where they are, and what has the focus. Its outline has to be there, and to
// be seen. What the page has got from elsewhere is told as well.
const focused = `(() => {
	if (document.readyState !== "complete") return null;
	const at = document.activeElement, style = getComputedStyle(at), box = at.getBoundingClientRect();
	return {
		page: document.querySelector("h1").innerText, here: location.href, name: at === document.body ? "" : at.innerText, tag: at.tagName,
		seen: at.matches(":focus-visible") && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1 && box.width > 0 && box.top >= 0 && box.bottom <= innerHeight,
		open: document.querySelector("details")?.open ?? false, got: performance.getEntriesByType("resource").map(e => e.name),
		scripts: document.scripts.length,
	};
})()`

type atKeyboard struct {
	Page, Here, Name, Tag string
	Seen, Open            bool
	Got                   []string
	Scripts               int
}

// byKeyboard goes through the status pages with the keyboard alone: from the overview into the room, to the picture of its
// epochs, to the text below it, and back. Links are named by their texts. All that can have the focus is reached in the order
// in which it is read, and shows it.
func (s *story) byKeyboard(address, home, picture, back string) {
	s.Helper()
	b := newBrowser(s)
	look := func() (at atKeyboard) {
		s.Helper()
		for deadline := time.Now().Add(e2e.Soon); ; s.pause() {
			var answer struct {
				Result struct{ Value *atKeyboard }
			}
			// Between two pages there is none to ask.
			err := b.call("Runtime.evaluate", map[string]any{"expression": focused, "returnByValue": true}, &answer)
			if err == nil && answer.Result.Value != nil {
				at = *answer.Result.Value
				break
			}
			if time.Now().After(deadline) {
				s.Fatalf("there is no page: %v", err)
			}
		}
		if len(at.Got) > 0 || at.Scripts > 0 {
			s.Errorf("%s has got %q, and has %d scripts", at.Here, at.Got, at.Scripts)
		}
		return at
	}
	press := func(key string, code int, text string) {
		s.Helper()
		for _, kind := range []string{"keyDown", "keyUp"} {
			params := map[string]any{"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
			if kind == "keyDown" && text != "" {
				params["text"] = text
			}
			s.must(b.call("Input.dispatchKeyEvent", params, nil))
		}
	}
	// tab goes on until something has the focus whose text begins with name, and says what had it on the way.
	tab := func(name string) (way []string) {
		s.Helper()
		for range 50 {
			press("Tab", 9, "")
			at := look()
			if at.Name == "" {
				continue // the browser's own
			}
			if !at.Seen {
				s.Errorf("%s: nobody sees that %q has the focus", at.Here, at.Name)
			}
			if way = append(way, at.Name); strings.HasPrefix(at.Name, name) {
				return way
			}
		}
		s.Fatalf("the key Tab does not lead to %q, but to %q", name, way)
		return nil
	}
	enter := func(path string) {
		s.Helper()
		was := look().Here
		press("Enter", 13, "\r")
		s.eventually("the link is followed", func() string {
			if at := look(); at.Here == was || !strings.Contains(at.Here, path) {
				return "it is at " + at.Here
			}
			return ""
		})
	}
	s.must(b.call("Page.navigate", map[string]any{"url": address}, nil))
	s.eventually("the overview is there", func() string {
		if at := look(); at.Page != "mls-proxy" {
			return "it is " + at.Page
		}
		return ""
	})
	tab("Status & <b>room</b>")
	enter("/room?")
	if way := tab(home); len(way) != 1 {
		s.Errorf("the way back comes after %q", way)
	}
	before := look()
	press("Escape", 27, "")
	if after := look(); after.Here != before.Here || after.Name != before.Name {
		s.Errorf("the key Escape leads from %q to %q at %s", before.Name, after.Name, after.Here)
	}
	tab(picture)
	enter("/epochs?")
	if way := tab(back); len(way) != 1 {
		s.Errorf("the way back comes after %q", way)
	}
	for look().Tag != "SUMMARY" {
		tab("")
	}
	press("Enter", 13, "\r")
	s.eventually("the text below the picture is there", func() string {
		if !look().Open {
			return "it is closed"
		}
		return ""
	})
	press("Tab", 9, "") // out of it again
	for look().Name != back {
		tab("")
	}
	enter("/room?")
	tab(home)
	enter("/_mls/")
	if at := look(); at.Page != "mls-proxy" {
		s.Errorf("the way home leads to %q", at.Page)
	}
	s.step("the keyboard led through the pages")
}
