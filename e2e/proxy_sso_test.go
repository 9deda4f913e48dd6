package e2e_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix"

	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/proxy/terminal"
)

// A signOn is a server for single sign-on by CAS, a protocol of redirects, which
// homeservers ask who somebody is. It believes whoever writes a name into its page,
// and knows them again by a cookie.
type signOn struct {
	*httptest.Server
	asked   atomic.Int32 // how often somebody wrote a name
	mu      sync.Mutex
	tickets map[string][2]string // to the name and the service
}

func newSignOn(s *story) *signOn {
	c := &signOn{tickets: map[string][2]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		if who, err := r.Cookie("who"); err == nil {
			c.send(w, r, who.Value, r.FormValue("service"))
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, `<!DOCTYPE html><html lang=en><title>Who are you?</title><form method=post><label>Name <input name=who></label><input type=hidden name=service value="%s"><button>Log in</button></form></html>`,
			html.EscapeString(r.FormValue("service")))
	})
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		c.asked.Add(1)
		http.SetCookie(w, &http.Cookie{Name: "who", Value: r.FormValue("who"), HttpOnly: true})
		c.send(w, r, r.FormValue("who"), r.FormValue("service"))
	})
	mux.HandleFunc("GET /proxyValidate", func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		found := c.tickets[r.FormValue("ticket")]
		delete(c.tickets, r.FormValue("ticket"))
		c.mu.Unlock()
		type success struct {
			User string `xml:"cas:user"`
		}
		answer := struct {
			XMLName xml.Name `xml:"cas:serviceResponse"`
			Space   string   `xml:"xmlns:cas,attr"`
			Success *success `xml:"cas:authenticationSuccess"`
			Failure *string  `xml:"cas:authenticationFailure"`
		}{Space: "http://www.yale.edu/tp/cas"}
		if found[0] != "" && found[1] == r.FormValue("service") {
			answer.Success = &success{found[0]}
		} else {
			answer.Failure = new(string)
		}
		_ = xml.NewEncoder(w).Encode(answer)
	})
	c.Server = httptest.NewServer(mux)
	s.Cleanup(c.Close)
	return c
}

// send sends a browser back with a ticket that is good once.
func (c *signOn) send(w http.ResponseWriter, r *http.Request, who, service string) {
	to, err := url.Parse(service)
	if err != nil {
		http.Error(w, "no service", http.StatusBadRequest)
		return
	}
	ticket := "ST-" + rand.Text()
	c.mu.Lock()
	c.tickets[ticket] = [2]string{who, service}
	c.mu.Unlock()
	query := to.Query()
	query.Set("ticket", ticket)
	to.RawQuery = query.Encode()
	http.Redirect(w, r, to.String(), http.StatusSeeOther)
}

// A browser is a headless Chromium, spoken with by its own protocol over two pipes.
type browser struct {
	s       *story
	to, in  *os.File
	from    *bufio.Reader
	session string
	calls   int
}

func newBrowser(s *story) *browser {
	s.Helper()
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		s.Fatalf("%v; make lab-clients installs Chromium", err)
	}
	// Its children may outlive it for a moment, and hold files.
	dir, err := os.MkdirTemp("", "browser")
	s.must(err)
	s.Cleanup(func() { _ = os.RemoveAll(dir) })
	theirIn, ourOut, err := os.Pipe()
	s.must(err)
	ourIn, theirOut, err := os.Pipe()
	s.must(err)
	log, err := os.Create(filepath.Join(dir, "log"))
	s.must(err)
	defer log.Close()
	cmd := exec.CommandContext(s.ctx, chromium,
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--disable-component-update",
		"--disable-background-networking", "--window-size=1000,900", "--user-data-dir="+filepath.Join(dir, "profile"), "--remote-debugging-pipe", "about:blank")
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{theirIn, theirOut}
	s.must(cmd.Start())
	theirIn.Close()
	theirOut.Close()
	b := &browser{s: s, to: ourOut, in: ourIn, from: bufio.NewReader(ourIn)}
	s.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		ourOut.Close()
		ourIn.Close()
	})
	var target struct {
		ID string `json:"targetId"`
	}
	s.must(b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target))
	var attached struct {
		ID string `json:"sessionId"`
	}
	s.must(b.call("Target.attachToTarget", map[string]any{"targetId": target.ID, "flatten": true}, &attached))
	b.session = attached.ID
	return b
}

// call makes a call of the protocol, and passes over what else the browser tells.
func (b *browser) call(method string, params map[string]any, into any) error {
	b.calls++
	raw, err := json.Marshal(map[string]any{"id": b.calls, "method": method, "params": params, "sessionId": b.session})
	if err != nil {
		return err
	}
	if err := b.in.SetReadDeadline(time.Now().Add(e2e.Soon)); err != nil {
		return err
	}
	if _, err := b.to.Write(append(raw, 0)); err != nil {
		return err
	}
	for {
		raw, err := b.from.ReadBytes(0)
		if err != nil {
			return err
		}
		var answer struct {
			ID     int             `json:"id"`
			Result json.RawMessage `json:"result"`
			Error  *struct {
				Message string `json:"message"`
			} `json:"error"`
		}
		if err := json.Unmarshal(raw[:len(raw)-1], &answer); err != nil {
			return err
		}
		switch {
		case answer.ID != b.calls:
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", method, answer.Error.Message)
		case into != nil:
			return json.Unmarshal(answer.Result, into)
		default:
			return nil
		}
	}
}

// aPerson is what a person does on the pages of a login: writes a name, and says that it may go on. It returns where they are.
const aPerson = `(() => {
	if (document.readyState !== "complete") return "";
	const name = document.querySelector("input[name=who]"), go = document.querySelector("a.primary-button");
	const here = location.href + "\n" + document.title + "\n" + document.body.innerText;
	if (name && !name.value) { name.value = %q; document.querySelector("button").click(); }
	if (go && !go.dataset.clicked) { go.dataset.clicked = "yes"; go.click(); }
	return here;
})()`

// login opens a page, and logs in as a person would, until a page has a title. It returns the texts of the pages on the way.
func (b *browser) login(address, who, title string) []string {
	b.s.Helper()
	b.s.must(b.call("Page.navigate", map[string]any{"url": address}, nil))
	var pages []string
	for deadline := time.Now().Add(e2e.Soon); ; b.s.pause() {
		var answer struct {
			Result struct {
				Value string `json:"value"`
			} `json:"result"`
		}
		// Between two pages there is none to ask.
		if b.call("Runtime.evaluate", map[string]any{"expression": fmt.Sprintf(aPerson, who), "returnByValue": true}, &answer) == nil && answer.Result.Value != "" {
			page := answer.Result.Value
			if len(pages) == 0 || pages[len(pages)-1] != page {
				pages = append(pages, page)
				b.picture(len(pages))
			}
			if parts := strings.SplitN(page, "\n", 3); parts[1] == title {
				return pages
			}
		}
		if time.Now().After(deadline) {
			b.s.Fatalf("the browser did not come to %q; it was at\n%s", title, strings.Join(pages, "\n\n"))
		}
	}
}

func (b *browser) picture(n int) {
	b.s.Helper()
	dir := os.Getenv("MLS_SCREENSHOTS")
	if dir == "" {
		return
	}
	var shot struct{ Data []byte }
	if b.call("Page.captureScreenshot", map[string]any{"format": "png"}, &shot) == nil {
		b.s.must(os.WriteFile(filepath.Join(dir, fmt.Sprintf("sso-%d-%d.png", b.calls, n)), shot.Data, 0o600))
	}
}

// TestProxySingleSignOn: on a Synapse that knows no passwords and leaves logins to a server of its own, a person logs
// in in a browser: first for `mls-proxy login`, then with a client through `mls-proxy run`, whose MLS device is signed.
func TestProxySingleSignOn(t *testing.T) {
	s := &story{TB: t, ctx: t.Context(), began: time.Now()}
	cas := newSignOn(s)
	ctx, cancel := context.WithTimeout(s.ctx, 15*time.Minute)
	defer cancel()
	w, err := e2e.Start(ctx, e2e.Options{
		Options: lab.Options{Synapse: 1, SynapseSettings: map[string]any{
			"cas_config": map[string]any{"enabled": true, "server_url": cas.URL}, "password_config": map[string]any{"enabled": false},
		}},
		WithoutModule: []string{"syn1"}, Bin: s.TempDir(), // there is no room
	})
	s.must(err)
	s.Cleanup(func() {
		if t.Failed() {
			if dir, err := w.KeepLogs("e2e-sso"); err == nil {
				t.Log("logs are in", dir)
			}
		}
		s.must(w.Close())
	})
	s.w = w
	server := w.Server("syn1")
	s.step("Synapse is there")
	b := newBrowser(s)

	// The terminal.
	state, opened := s.TempDir(), make(chan string, 1)
	stdout, stderr := newOutput(), newOutput()
	env := &terminal.Env{
		Stdin: strings.NewReader(""), Stdout: stdout, Stderr: stderr, Getenv: func(string) string { return "" }, Cwd: s.TempDir(),
		OpenBrowser: func(address string) error { opened <- address; return nil },
	}
	ended := make(chan int, 1)
	go func() {
		ended <- terminal.Main(s.ctx, []string{"--state", state, "login", "--sso", "--homeserver", server.BaseURL, "--json"}, env)
	}()
	var address string
	select {
	case address = <-opened:
	case code := <-ended:
		t.Fatalf("login --sso: exit code %d\n%s", code, stderr)
	}
	b.login(address, "dora", "mls-proxy")
	var in struct {
		User   string `json:"user_id"`
		Device string `json:"device_id"`
	}
	if code := <-ended; code != terminal.ExitOK || json.Unmarshal([]byte(stdout.String()), &in) != nil || in.User != "@dora:"+server.ServerName {
		t.Fatalf("login --sso: exit code %d\n%s%s", code, stdout, stderr)
	}
	s.step("mls-proxy login is in")
	if code := terminal.Main(s.soon(), []string{"--state", state, "verify", "--bootstrap", "--json"}, env); code != terminal.ExitOK {
		t.Fatalf("verify --bootstrap: exit code %d\n%s%s", code, stdout, stderr)
	}

	// A client, whose page the browser comes to in the end.
	tokens := make(chan string, 1)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token := r.FormValue("loginToken"); token != "" {
			tokens <- token
		}
		fmt.Fprint(w, "<!DOCTYPE html><title>The client</title><p>Welcome")
	}))
	s.Cleanup(app.Close)
	enter := func(base, who string) (*mautrix.Client, []string) {
		t.Helper()
		pages := b.login(base+"/_matrix/client/v3/login/sso/redirect?redirectUrl="+url.QueryEscape(app.URL+"/app"), who, "The client")
		cli, err := mautrix.NewClient(base, "", "")
		s.must(err)
		made, err := cli.Login(s.soon(), &mautrix.ReqLogin{Type: mautrix.AuthTypeToken, Token: <-tokens, StoreCredentials: true})
		s.must(err)
		if base != server.BaseURL && (made.WellKnown == nil || made.WellKnown.Homeserver.BaseURL != base) {
			t.Errorf("the answer to the login leads to %+v, want %s", made.WellKnown, base)
		}
		return cli, pages
	}
	// Another user, whom the terminal's login has not left a cookie of.
	s.must(b.call("Network.clearBrowserCookies", map[string]any{}, nil))
	watch, _ := enter(server.BaseURL, "erin")
	user := lab.User{UserID: watch.UserID.String(), AccessToken: watch.AccessToken}
	s.must(b.call("Network.clearBrowserCookies", map[string]any{}, nil))
	asked := cas.asked.Load()
	p := s.proxy("syn1")
	cli, pages := enter(p.url, "erin")
	s.step("a client is in, through the proxy")
	if cli.UserID != watch.UserID {
		t.Errorf("the client is %s, want %s", cli.UserID, watch.UserID)
	}
	if n := cas.asked.Load() - asked; n != 1 {
		t.Errorf("the person wrote a name %d times for the two devices", n)
	}
	for _, want := range []string{"Continuing will grant " + p.url + "/_mls/login/", "Continuing will grant " + app.URL + "/app"} {
		if all := strings.Join(pages, "\n\n"); !strings.Contains(all, want) {
			t.Errorf("no page of the homeserver's says %q:\n%s", want, all)
		}
	}
	if n := len(s.devices(server, user)); n != 3 {
		t.Errorf("erin has %d devices, want that of the browser, the client's and the MLS device", n)
	}
	folders, _ := filepath.Glob(filepath.Join(p.state, "accounts", "*"))
	if len(folders) != 1 {
		t.Fatalf("the accounts are %v", folders)
	}
	checked := newOutput()
	env.Stdout = checked
	if code := terminal.Main(s.soon(), []string{"--state", folders[0], "verify", "--json"}, env); code != terminal.ExitOK || !strings.Contains(checked.String(), `"verified":true`) {
		t.Errorf("verify on the account's folder: exit code %d\n%s%s", code, checked, stderr)
	}
	if _, err := cli.SyncRequest(s.soon(), 0, "", "", false, ""); err != nil {
		t.Errorf("sync: %v", err)
	}
	// A second client shares the MLS device, though the browser goes there twice again.
	second, _ := enter(p.url, "erin")
	if n := len(s.devices(server, user)); n != 4 {
		t.Errorf("with a second client erin has %d devices, want 4", n)
	}
	for _, c := range []*mautrix.Client{second, cli} {
		_, err := c.Logout(s.soon())
		s.must(err)
	}
	if n := len(s.devices(server, user)); n != 1 {
		t.Errorf("after the last logout erin has %d devices, want 1", n)
	}
	s.step("all are out")
}
