package terminal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/sealed"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/internal/hstest"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mls-proxy": func() {
			env := System()
			env.ReadPassword = nil // the scripts have no terminal
			os.Exit(Main(context.Background(), os.Args[1:], env))
		},
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			h := hstest.New(t, true)
			env.Setenv("HS", h.URL)
			env.Setenv("XDG_DATA_HOME", filepath.Join(env.WorkDir, "data"))
			env.Values["hs"] = h
			return os.WriteFile(filepath.Join(env.WorkDir, "binary"), []byte("\xff\xfe\x00bin"), 0o600)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			// exitcode N CMD…: runs and checks the code.
			"exitcode": func(ts *testscript.TestScript, neg bool, args []string) {
				err := ts.Exec(args[1], args[2:]...)
				got := 0
				var exit interface{ ExitCode() int }
				if errors.As(err, &exit) {
					got = exit.ExitCode()
				} else if err != nil {
					ts.Fatalf("%v", err)
				}
				if fmt.Sprint(got) != args[0] {
					ts.Fatalf("exit code %d, want %s", got, args[0])
				}
			},
			// endsession: the homeserver forgets all devices.
			"endsession": func(ts *testscript.TestScript, neg bool, args []string) {
				h := ts.Value("hs").(*hstest.Server)
				h.Mu.Lock()
				defer h.Mu.Unlock()
				clear(h.Devices)
			},
			// endtokens: the time of all tokens is over.
			"endtokens": func(ts *testscript.TestScript, neg bool, args []string) {
				h := ts.Value("hs").(*hstest.Server)
				h.Mu.Lock()
				defer h.Mu.Unlock()
				for _, devices := range h.Devices {
					for _, d := range devices {
						d.Over = true
					}
				}
			},
		},
	})
}

func TestHelpFitsOneScreen(t *testing.T) {
	var out bytes.Buffer
	printHelp(&out)
	lines := strings.Split(out.String(), "\n")
	if len(lines) > 40 {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		if n := len([]rune(line)); n > 90 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	example, verb := strings.Index(out.String(), "mls-proxy login @"), strings.Index(out.String(), "  login  ")
	if example < 0 || verb < example {
		t.Error("the help does not start with an example")
	}
}

func TestCleanKeepsTextHarmless(t *testing.T) {
	for _, row := range []struct{ name, in, want string }{
		{"plain", "grüße 🐶", "grüße 🐶"},
		{"escape sequence", "\x1b]0;title\a\x1b[2J", "�]0;title��[2J"},
		{"C1 control", "a\u009b31mb", "a�31mb"},
		{"right to left override", "a\u202eb\u2066c", "a�b�c"},
		{"carriage return", "safe\roverwritten", "safe�overwritten"},
		{"line break", "a\nb", "a b"},
		{"line separator", "a\u2028b", "a�b"},
		{"invalid UTF-8", "a\xffb", "a�b"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := clean(row.in); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
	if got := body("one\ntwo\x1b[1m\r\nthree"); got != "one\n    two�[1m\n    three" {
		t.Errorf("body: %q", got)
	}
}

func TestFileNamesStayInTheirDirectory(t *testing.T) {
	for in, want := range map[string]string{
		"notes.txt": "notes.txt", "../../etc/passwd": "passwd", "/etc/passwd": "passwd", `..\..\boot.ini`: "boot.ini",
		"": "attachment", "..": "attachment", ".bashrc": "bashrc", "/": "attachment", "a\x1b[2Jb": "a�[2Jb",
	} {
		if got := fileName(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestExplain(t *testing.T) {
	for _, row := range []struct {
		name string
		err  error
		code int
		hint string
	}{
		{"wrapped known error", fmt.Errorf("x: %w", client.ErrNoModule), ExitRefused, "matrix-mls"},
		{"not logged in", identity.ErrNotLoggedIn, ExitNotLoggedIn, "login"},
		{"locked", store.ErrLocked, ExitLocked, "--state"},
		{"barrier", client.ErrBarrier, ExitPending, "outbox"},
		{"not cross-signed", &rooms.Refusal{Rule: rooms.RuleDeviceKeyNotCrossSigned, Remedy: "verify it"}, ExitNotVerified, "verify it"},
		{"other refusal", &rooms.Refusal{Rule: rooms.RuleEventTooLarge}, ExitRefused, ""},
		{"rate limit", &client.RateLimitError{RetryAfter: time.Second}, ExitPending, "wait"},
		{"network", fmt.Errorf("x: %w", &net.OpError{Op: "dial", Err: errors.New("refused")}), ExitUnreachable, "network"},
		{"name lookup", fmt.Errorf("x: %w", &net.DNSError{Err: "no such host", Name: "one"}), ExitUnreachable, "network"},
		{"missing file", &fs.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}, ExitFailure, "path"},
		{"forbidden file", fmt.Errorf("x: %w", &fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}), ExitFailure, "may not"},
		{"full disk", fmt.Errorf("x: %w", &fs.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}), ExitFailure, "disk is full"},
		{"existing file", &fs.PathError{Op: "open", Path: "/x", Err: syscall.EEXIST}, ExitFailure, "name another"},
		{"a list that is not in force", fmt.Errorf("%w: waiting for two.example", client.ErrNotReady), ExitPending, "who is missing"},
		{"a server without a module", fmt.Errorf("%w: two.example", client.ErrNoModuleOf), ExitRefused, "add SERVER"},
		{"a suite that the room cannot have", fmt.Errorf("%w: in use", client.ErrSuite), ExitRefused, "mls-proxy suite ROOM"},
		{"devices that cannot follow", fmt.Errorf("%w: @b:one", client.ErrSuiteNotReady), ExitRefused, "--drop"},
		{"a group that is founded anew", fmt.Errorf("%w (%w)", client.ErrSuiteChange, context.DeadlineExceeded), ExitPending, "tail"},
		{"nothing to repair", fmt.Errorf("%w (!r:one)", client.ErrNothingToRepair), ExitFailure, "wait until"},
		{"interrupted while not allowed yet", fmt.Errorf("client: %w: nobody admitted you (%w)", client.ErrNotAllowed, context.Canceled), ExitPending, "tail"},
		{"not allowed", fmt.Errorf("%w: no admin", client.ErrNotAllowed), ExitRefused, "admin"},
		{"deadline", context.DeadlineExceeded, ExitPending, "tail"},
		{"a module that has not answered", fmt.Errorf("%w (%w)", client.ErrModuleSilent, context.DeadlineExceeded), ExitPending, "tail"},
		{"a module that is not listed", fmt.Errorf("%w: x", client.ErrNotListed), ExitUsage, "mls-proxy sequencers ROOM"},
		{"a short passphrase", fmt.Errorf("x: %w", sealed.ErrPassphrase), ExitUsage, "longer"},
		{"usage", usagef("no"), ExitUsage, "help"},
		{"anything", errors.New("boom"), ExitFailure, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			code, hint := explain(row.err)
			if code != row.code || !strings.Contains(hint, row.hint) {
				t.Errorf("got %d %q, want %d %q", code, hint, row.code, row.hint)
			}
		})
	}
}

func TestAVerbWaitsForAnotherProcess(t *testing.T) {
	dir := login(t, hstest.New(t, true), "@a:one")
	env, _, _ := testEnv(t)
	holder, err := openSession(t.Context(), &call{env: env, state: dir})
	if err != nil {
		t.Fatal(err)
	}
	env, _, stderr := testEnv(t)
	env.StateWait = time.Minute
	var tries atomic.Int32
	env.Getenv = func(name string) string {
		// Every try reads the key; the state is let go when the second begins.
		if name == "MLS_STORE_KEY_FILE" && tries.Add(1) == 2 {
			holder.close()
		}
		return ""
	}
	if code := Main(t.Context(), []string{"--state", dir, "devices"}, env); code != 0 || tries.Load() < 2 {
		t.Errorf("%d after %d tries: %s", code, tries.Load(), stderr)
	}
}

func TestATooLargeMessageIsSaidOnce(t *testing.T) {
	env, _, stderr := testEnv(t)
	err := fmt.Errorf("%w: %w", client.ErrTooLarge, &rooms.Refusal{Rule: rooms.RuleEventTooLarge, Err: errors.New("41000 bytes"), Remedy: "send it as a file"})
	if code := (&call{env: env}).fail(err); code != ExitRefused || stderr.String() != "mls-proxy: the message is too large: 41000 bytes\nhint: send it with --file\n" {
		t.Errorf("%d %s", code, stderr)
	}
}

func TestAPackageIsNotNamedTwice(t *testing.T) {
	env, _, stderr := testEnv(t)
	(&call{env: env}).fail(fmt.Errorf("client: %w: nobody", client.ErrNotAllowed))
	if !strings.HasPrefix(stderr.String(), "mls-proxy: the room's rules do not let this user do that: nobody\n") {
		t.Errorf("%s", stderr)
	}
}

func TestPickFindsTheRoomThatIsMeant(t *testing.T) {
	all := []client.RoomInfo{
		{ID: "!1:one", Name: "Lunch", Membership: "leave"},
		{ID: "!2:one", Name: "Lunch", Membership: "join"},
		{ID: "!3:one", Name: "Dinner", Membership: "ban"},
		{ID: "!4:one", Name: "Tea", Membership: "join"},
		{ID: "!5:one", Name: "tea", Membership: "invite"},
	}
	for name, row := range map[string]struct {
		want id.RoomID
		err  string
	}{
		"lunch":  {want: "!2:one"},
		"!1:one": {want: "!1:one"},
		"Dinner": {want: "!3:one"}, // removed: the verb says so
		"Tea":    {err: "2 rooms are called"},
		"Supper": {err: "not known"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := pick(all, name, name)
			if r.ID != row.want || (err == nil) != (row.err == "") || err != nil && !strings.Contains(err.Error(), row.err) {
				t.Errorf("got %s, %v", r.ID, err)
			}
		})
	}
}

func TestWarningsNameWhomTheyAreAbout(t *testing.T) {
	for _, row := range []struct {
		name, want string
		in         client.Warning
	}{
		{"sender and event", "not encrypted, from @a:one, event $e", client.Warning{Text: "not encrypted", Sender: "@a:one", EventID: "$e"}},
		{"named already", "the keys of @a:one changed", client.Warning{Text: "the keys of @a:one changed", Sender: "@a:one"}},
		{"nobody", "the disk is full", client.Warning{Text: "the disk is full"}},
		{"hostile", "x, from @�[2J:one", client.Warning{Text: "x", Sender: "@\x1b[2J:one"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := warningText(&row.in); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

func TestRoomLost(t *testing.T) {
	for _, row := range []struct {
		name, body string
		status     int
		lost       bool
	}{
		{"a member", `{"membership":"join"}`, 200, false},
		{"no such room", `{"errcode":"M_FORBIDDEN","error":"room does not exist"}`, 403, true},
		{"a broken homeserver", `{"errcode":"M_UNKNOWN","error":"oops"}`, 500, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if want := "/_matrix/client/v3/rooms/!r:one/state/m.room.member/@a:one"; r.URL.Path != want {
					t.Errorf("asked for %s, want %s", r.URL.Path, want)
				}
				w.WriteHeader(row.status)
				_, _ = io.WriteString(w, row.body)
			}))
			defer hs.Close()
			cli, err := mautrix.NewClient(hs.URL, "@a:one", "token")
			if err != nil {
				t.Fatal(err)
			}
			cli.DefaultHTTPRetries = 0
			if got := roomLost(t.Context(), cli, "!r:one"); got != row.lost {
				t.Errorf("got %t, want %t", got, row.lost)
			}
		})
	}
}

func TestAPlainRoomIsFoundByItsName(t *testing.T) {
	names := map[string]string{"!a:one": "Lunch", "!b:one": "Twice", "!c:one": "Twice"}
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/joined_rooms") {
			_, _ = io.WriteString(w, `{"joined_rooms":["!a:one","!b:one","!c:one","!d:one"]}`)
			return
		}
		for room, name := range names {
			if strings.HasSuffix(r.URL.Path, room+"/state/m.room.name/") || strings.HasSuffix(r.URL.Path, room+"/state/m.room.name") {
				fmt.Fprintf(w, `{"name":%q}`, name)
				return
			}
		}
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"errcode":"M_NOT_FOUND"}`)
	}))
	defer hs.Close()
	cli, err := mautrix.NewClient(hs.URL, "@a:one", "token")
	if err != nil {
		t.Fatal(err)
	}
	cli.DefaultHTTPRetries = 0
	for name, want := range map[string]id.RoomID{"lunch": "!a:one", "Twice": "", "Nothing": "", "!d:one": "!d:one", "!e:one": ""} {
		err := plainRoom(t.Context(), cli, name, name)
		var plain *plainRoomError
		if got := errors.As(err, &plain); got != (want != "") || got && plain.room != want {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		if code, hint := explain(err); want != "" && (code != ExitRefused || !strings.Contains(hint, "mls-proxy enable ROOM")) {
			t.Errorf("%s: %d %s", name, code, hint)
		}
	}
}

func TestASecondRunIsKeptOffTheStateDirectory(t *testing.T) {
	env, _, _ := testEnv(t)
	c := &call{env: env, state: filepath.Join(t.TempDir(), "state")}
	lock, err := c.lockRun()
	if err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(c.state, statusName)
	if err := os.WriteFile(page, []byte("the first one's"), 0o600); err != nil {
		t.Fatal(err)
	}
	second, _, stderr := testEnv(t)
	args := []string{"--state", c.state, "run", "--homeserver", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"}
	if code := Main(t.Context(), args, second); code != ExitLocked || !strings.Contains(stderr.String(), "another mls-proxy run") {
		t.Errorf("a second run: %d %s, want %d", code, stderr, ExitLocked)
	}
	if text, _ := os.ReadFile(page); string(text) != "the first one's" {
		t.Errorf("the status page's address is %q now", text)
	}
	lock.Close()
	again, err := c.lockRun()
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	again.Close()
}

func TestWhatIsHalfMadeIsSaid(t *testing.T) {
	bad := mautrix.HTTPError{Response: &http.Response{StatusCode: http.StatusBadGateway}, Message: "Can't connect to server nosuch.example"}
	for _, row := range []struct {
		name       string
		room       id.RoomID
		err        error
		code       int
		text, hint string
	}{
		{"nothing was made", "", client.ErrNotAllowed, ExitRefused, "", ""},
		{"no answer", "", context.DeadlineExceeded, ExitUnreachable, "did not answer in time", "mls-proxy rooms"},
		{"a server that is away", "!r:one", fmt.Errorf("client: invite: %w", bad), ExitUnreachable, "the room X (!r:one) is made, but not everybody is invited", "mls-proxy invite '!r:one' @USER"},
		{"no module", "!r:one", client.ErrNoModule, ExitRefused, "has no group yet", "matrix-mls"},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := halfMade("X", row.room, row.err)
			if code, hint := explain(err); code != row.code || !strings.Contains(hint, row.hint) || !strings.Contains(err.Error(), row.text) {
				t.Errorf("got %d %q, hint %q", code, err, hint)
			}
		})
	}
}

func TestNoPackageIsNamedToAPerson(t *testing.T) {
	for in, want := range map[string]string{
		"client: the message waits in the outbox: client: this device is not let in (client: no)": "the message waits in the outbox: this device is not let in (no)",
		"write the backup: sealed: store: the passphrase is too short":                            "write the backup: the passphrase is too short",
		"https://client: x": "https://client: x",
	} {
		if got := plainWords(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestModulesShowWhenTheyWereLastHeardOf(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	key := bytes.Repeat([]byte{0xfb}, 32)
	info := &client.SequencersInfo{Room: "!r:one", List: []client.SequencerInfo{{Server: "one", User: "@_mls_bot:one", Key: key, State: client.SequencerServes}},
		Others: []client.ModuleInfo{{Server: "two", User: "@_mls_bot:two", Key: key}}}
	heard := map[id.UserID]time.Time{"@_mls_bot:one": now.Add(-5 * time.Minute)}
	row := sequencerRows(info.List, heard, now)[1]
	if row[4] != "5m0s ago" || row[5] != "+/v7+/v7…" { // the key as matrix-mls rooms shows it
		t.Errorf("row %q", row)
	}
	raw, err := json.Marshal(sequencersJSON(info, heard))
	if err != nil || !strings.Contains(string(raw), `"head_at":1799999700000`) || !strings.Contains(string(raw), `"head_at":null`) ||
		!strings.Contains(string(raw), rooms.EncodeBase64(key)) {
		t.Errorf("JSON %s, %v", raw, err)
	}
	if got := quietModules(info, []string{"one", "@_mls_bot:two"}, heard, now); len(got) != 2 || !strings.Contains(got[0], "5m0s ago") || !strings.Contains(got[1], "not known when") {
		t.Errorf("warnings %q", got)
	}
	if got := quietModules(info, []string{"one"}, map[id.UserID]time.Time{"@_mls_bot:one": now}, now); len(got) != 0 {
		t.Errorf("a module that just spoke: %q", got)
	}
}

// TestAListToComeIsShownBesideTheOneInForce: in the list of rooms as in the room's own.
func TestAListToComeIsShownBesideTheOneInForce(t *testing.T) {
	for want, r := range map[string]client.RoomInfo{
		"one, two":                               {Modules: []string{"one", "two"}},
		"one (being changed to one, two, three)": {Modules: []string{"one"}, ModulesTo: []string{"one", "two", "three"}},
		"":                                       {},
	} {
		if got := orderedBy(r); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestShellWord(t *testing.T) {
	for _, in := range []string{"!r:one", "$e", "@a:one", "it's", "a b", "$(reboot)", "`x`", "-rf", "=ls", "", "a;b", "ü", "\\", "~x"} {
		t.Run(in, func(t *testing.T) {
			out, err := exec.Command("sh", "-c", "printf %s "+shellWord(in)).Output()
			if err != nil || string(out) != in {
				t.Errorf("%s: the shell reads %q, %v", shellWord(in), out, err)
			}
		})
	}
	if got := shellWord("@a:one"); got != "@a:one" {
		t.Errorf("got %s: quotes where none are needed", got)
	}
	if got := shellWord("a\x1b[2J'\n"); got != `'a�[2J'\'' '` {
		t.Errorf("got %s", got)
	}
}

func TestAPasswordIsNotAskedOfWhatIsNoTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	env, _, stderr := testEnv(t)
	env.ReadPassword = func(ctx context.Context, prompt string) (string, error) {
		return readHidden(ctx, null, env.Stderr, prompt)
	}
	code := Main(t.Context(), []string{"--state", filepath.Join(t.TempDir(), "s"), "login", "@a:one", "--homeserver", "http://127.0.0.1:1"}, env)
	if code != ExitUsage || !strings.Contains(stderr.String(), "no terminal to ask for the password") || !strings.Contains(stderr.String(), "--password-file FILE") {
		t.Errorf("%d %s", code, stderr)
	}
}

func TestMessageText(t *testing.T) {
	for _, row := range []struct{ name, kind, content, want string }{
		{"text", "m.room.message", `{"msgtype":"m.text","body":"hi\nthere"}`, "hi\n    there"},
		{"emote", "m.room.message", `{"msgtype":"m.emote","body":"waves"}`, "* waves"},
		{"edit", "m.room.message", `{"msgtype":"m.text","body":"* new","m.new_content":{"msgtype":"m.text","body":"new"},"m.relates_to":{"rel_type":"m.replace","event_id":"$x"}}`, "new [edited]"},
		{"file", "m.room.message", `{"msgtype":"m.file","body":"a.txt","info":{"size":5}}`, "[file a.txt, 5 bytes: mls-proxy get '!r:one' '$e']"},
		{"reaction", "m.reaction", `{"m.relates_to":{"rel_type":"m.annotation","event_id":"$x","key":"👍"}}`, "[reacts 👍 to $x]"},
		{"unknown type", "org.example.\x1b[2J", `{}`, "[org.example.�[2J]"},
		{"hostile content", "m.room.message", `{"body":7}`, "[a message this program cannot read]"},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := &client.Message{Room: "!r:one", EventID: "$e", Type: row.kind, Content: json.RawMessage(row.content)}
			if got := messageText(m); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

// testEnv is an environment that collects what is printed.
func testEnv(t *testing.T) (env *Env, stdout, stderr *bytes.Buffer) {
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	return &Env{
		Stdin: strings.NewReader(""), Stdout: stdout, Stderr: stderr, Cwd: t.TempDir(),
		Getenv: func(string) string { return "" },
	}, stdout, stderr
}

// login logs a device in and returns its state directory.
func login(t *testing.T, h *hstest.Server, user string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	env, _, stderr := testEnv(t)
	env.Stdin = strings.NewReader("secret\n")
	if code := Main(t.Context(), []string{"--state", dir, "login", user, "--homeserver", h.URL, "--password-file", "-"}, env); code != 0 {
		t.Fatalf("login: %d %s", code, stderr)
	}
	return dir
}

func TestVerbsOfASecondTerminalRunInTheFirst(t *testing.T) {
	h := hstest.New(t, true)
	for _, depth := range []string{"", strings.Repeat("deep/", 25)} { // a path too long for a socket, too
		t.Run(fmt.Sprint(len(depth)), func(t *testing.T) {
			dir := login(t, h, "@a:one")
			if depth != "" {
				long := filepath.Join(filepath.Dir(dir), depth)
				if err := os.MkdirAll(filepath.Dir(long), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(dir, long); err != nil {
					t.Fatal(err)
				}
				dir = long
			}
			env, _, _ := testEnv(t)
			first := &call{env: env, state: dir}
			s, err := openSession(t.Context(), first)
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			first.s = s
			second, stdout, stderr := testEnv(t)
			if code := Main(t.Context(), []string{"--state", dir, "devices"}, second); code != ExitLocked {
				t.Errorf("without a listener: %d %s, want %d", code, stderr, ExitLocked)
			}
			stop, err := s.listen(t.Context(), first)
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
			if info, err := os.Stat(filepath.Join(dir, socketName)); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("socket: %v, %v", info, err)
			}
			stderr.Reset()
			if code := Main(t.Context(), []string{"--state", dir, "devices"}, second); code != 0 || !strings.Contains(stdout.String(), "this device") {
				t.Errorf("devices: %d %s %s", code, stdout, stderr)
			}
			stdout.Reset()
			if code := Main(t.Context(), []string{"--state", dir, "--json", "devices", "not-a-user"}, second); code != ExitUsage || !strings.Contains(stdout.String(), `"exit":2`) {
				t.Errorf("an error as JSON: %d %s", code, stdout)
			}
			stderr.Reset()
			if code := Main(t.Context(), []string{"--state", dir, "logout"}, second); code == 0 || !strings.Contains(stderr.String(), "cannot run while another") {
				t.Errorf("logout: %d %s", code, stderr)
			}
		})
	}
}

func TestTheOtherTerminalAnswersQuestions(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := &peer{enc: json.NewEncoder(here), gone: cancel, done: ctx.Done(), replies: make(chan reply)}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		p.listen(bufio.NewReader(here))
	}()
	go func() {
		defer there.Close()
		in, enc := bufio.NewReader(there), json.NewEncoder(there)
		for n := range 3 {
			var f frame
			if err := readFrame(in, &f); err != nil {
				return
			}
			_ = enc.Encode(reply{Text: "answer to " + f.Ask + f.Secret, OK: n == 0, None: n == 2})
		}
	}()
	if got, err := p.ask(frame{Ask: "q"}); err != nil || got != "answer to q" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := p.ask(frame{Secret: "s"}); err == nil {
		t.Errorf("nobody answered, but got %q", got)
	}
	// What looks like a terminal there, such as /dev/null, is none here either.
	if got, err := p.ask(frame{Secret: "s"}); !errors.Is(err, errNoTerminal) {
		t.Errorf("without a terminal: %q, %v", got, err)
	}
	<-gone
	if ctx.Err() == nil {
		t.Error("a terminal that is gone did not end the verb")
	}
	if got, err := p.ask(frame{Ask: "q"}); err == nil {
		t.Errorf("a terminal that is gone answered %q", got)
	}
	if _, err := (peerWriter{p: p}).Write([]byte("x")); err == nil {
		t.Error("writing to a terminal that is gone is no error")
	}
}

func TestFramesAreBounded(t *testing.T) {
	var v request
	if err := readFrame(bufio.NewReader(strings.NewReader(strings.Repeat("x", maxFrame+10)+"\n")), &v); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("got %v", err)
	}
	if err := readFrame(bufio.NewReader(strings.NewReader(`{"args":["rooms"]}`+"\n")), &v); err != nil || len(v.Args) != 1 {
		t.Errorf("got %v %v", v, err)
	}
}

func TestNoSecretInOutputOrLog(t *testing.T) {
	h := hstest.New(t, true)
	dir := login(t, h, "@a:one")
	var all bytes.Buffer
	run := func(stdin string, args ...string) {
		env, stdout, stderr := testEnv(t)
		env.Stdin = strings.NewReader(stdin)
		Main(t.Context(), append([]string{"--state", dir, "-v"}, args...), env)
		all.Write(stdout.Bytes())
		all.Write(stderr.Bytes())
	}
	run("wrong-password-4711\n", "verify", "--bootstrap", "--password-file", "-")
	run("secret\n", "verify", "--bootstrap", "--password-file", "-")
	run("EsT0 planted 4712\n", "verify", "--recovery-key-file", "-")
	run("", "devices")
	run("", "logout")
	token := "token-DEV1"
	for _, secret := range []string{"wrong-password-4711", "4712", token} {
		if strings.Contains(all.String(), secret) {
			t.Errorf("%q was printed:\n%s", secret, all.String())
		}
	}
	if !strings.Contains(all.String(), "Logged out") {
		t.Errorf("the session did not run:\n%s", all.String())
	}
}

func TestAnInterruptEndsAQuestion(t *testing.T) {
	h := hstest.New(t, true)
	ctx, cancel := context.WithCancel(t.Context())
	env, _, _ := testEnv(t)
	nobody, w := io.Pipe()
	defer w.Close()
	env.ReadPassword = func(ctx context.Context, _ string) (string, error) {
		cancel()
		return interruptible(ctx, func() (string, error) { return readLine(nobody) })
	}
	if code := Main(ctx, []string{"--state", filepath.Join(t.TempDir(), "s"), "login", "@a:one", "--homeserver", h.URL}, env); code != ExitFailure {
		t.Errorf("exit code %d, want %d", code, ExitFailure)
	}
}

func TestFlagsMayStandAnywhere(t *testing.T) {
	h := hstest.New(t, true)
	dir := login(t, h, "@a:one")
	for _, args := range [][]string{{"--json", "devices", "@a:one"}, {"devices", "--json", "@a:one"}, {"devices", "@a:one", "--json"}} {
		env, stdout, stderr := testEnv(t)
		if code := Main(t.Context(), append([]string{"--state", dir}, args...), env); code != 0 || !json.Valid(stdout.Bytes()) {
			t.Errorf("%v: %d %s %s", args, code, stdout, stderr)
		}
	}
}

func TestWhereAMessageCameFromIsShown(t *testing.T) {
	m := &client.Message{Sender: "@b:one", Device: "BOB", Type: "m.room.message", Content: json.RawMessage(`{"msgtype":"m.text","body":"hi"}`), Epoch: 3, Verification: client.VerifiedUser}
	for _, row := range []struct {
		from *client.HistorySource
		want string
	}{
		{nil, "@b:one (BOB, verified, epoch 3): hi"},
		{&client.HistorySource{User: "@a:one", Device: "PHO\x1bNE", Own: true}, "@b:one (BOB, from your device PHO�NE, epoch 3): hi"},
		{&client.HistorySource{User: "@c:one"}, "@b:one (BOB, shared by @c:one, epoch 3): hi"},
		{&client.HistorySource{User: "@c:one", Device: "C", File: true}, "@b:one (BOB, from a file of @c:one, epoch 3): hi"},
	} {
		m.From = row.from
		if got := messageLine(m); got != row.want {
			t.Errorf("got %q, want %q", got, row.want)
		}
	}
}

func TestTheLanguageIsAskedForOrTheLocales(t *testing.T) {
	for _, row := range []struct {
		asked string
		env   map[string]string
		want  rewrite.Language
	}{
		{"", nil, rewrite.English},
		{"", map[string]string{"LANG": "de_DE.UTF-8"}, rewrite.German},
		{"", map[string]string{"LANG": "de_DE.UTF-8", "LC_ALL": "C"}, rewrite.English},
		{"", map[string]string{"LANG": "en_US.UTF-8", "LC_MESSAGES": "de_AT"}, rewrite.German},
		{"en", map[string]string{"LANG": "de_DE.UTF-8"}, rewrite.English},
		{"de", map[string]string{"LANG": "fr_FR.UTF-8"}, rewrite.German},
		{"", map[string]string{"LANG": "fr_FR.UTF-8"}, rewrite.English},
	} {
		if got := languageOf(row.asked, func(name string) string { return row.env[name] }); got != row.want {
			t.Errorf("%q with %v is %v", row.asked, row.env, got)
		}
	}
}

func TestAModuleOfAListToComeIsNoneThatIsNotListed(t *testing.T) {
	info := &client.SequencersInfo{Others: []client.ModuleInfo{{Server: "two"}, {Server: "three"}}}
	if got := strings.Join(unlisted(info), " "); got != "two three" {
		t.Errorf("without a list to come: %s", got)
	}
	info.Change = &client.ListChange{List: []client.SequencerInfo{{Server: "one"}, {Server: "two"}}}
	if got := strings.Join(unlisted(info), " "); got != "three" {
		t.Errorf("with one: %s", got)
	}
}

func TestWhoCalledAModuleInVainIsNotToldToCallIt(t *testing.T) {
	if code, hint := explain(notCome(fmt.Errorf("%w: x", client.ErrNoModuleOf))); code != ExitRefused || strings.Contains(hint, " add ") {
		t.Errorf("exit code %d, hint %q", code, hint)
	}
	if err := notCome(client.ErrNotAllowed); !errors.Is(err, client.ErrNotAllowed) {
		t.Errorf("another error: %v", err)
	}
}

func TestAnotherServersFailureIsNotTheHomeservers(t *testing.T) {
	away := fmt.Errorf("client: invite: %w", mautrix.HTTPError{Response: &http.Response{StatusCode: http.StatusBadGateway}})
	no := mautrix.HTTPError{Response: &http.Response{StatusCode: http.StatusForbidden}}
	for _, row := range []struct {
		err        error
		name, hint string
		code       int
	}{
		{away, "@a:nonsense.example:8448", "may not reach nonsense.example:8448", ExitUnreachable},
		{away, "#xx:nonsense.example", "may not reach nonsense.example", ExitUnreachable},
		{away, "@a:one", "the homeserver has a problem", ExitUnreachable},
		{no, "@a:nonsense.example", "", ExitRefused},
		{client.ErrNoRoom, "#xx:nonsense.example", "mls-proxy rooms", ExitFailure},
	} {
		if code, hint := explain(beyond(row.err, row.name, "one")); code != row.code || !strings.Contains(hint, row.hint) {
			t.Errorf("%v for %s: exit code %d, hint %q; want %d, %q", row.err, row.name, code, hint, row.code, row.hint)
		}
	}
}

func TestARoomWithoutANameIsWrongUsage(t *testing.T) {
	dir := login(t, hstest.New(t, true), "@a:one")
	env, _, stderr := testEnv(t)
	if code := Main(t.Context(), []string{"--state", dir, "send", "", "hello"}, env); code != ExitUsage || !strings.Contains(stderr.String(), "the name of the room is empty") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}
