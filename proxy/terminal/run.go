package terminal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/internal/memory"
	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/connect"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/proxy/server"
)

// accountsFolder holds the accounts of mls-proxy run, below the state
// directory.
const accountsFolder = "accounts"

// requestTimeout bounds a request of an MLS device's, a long /sync among them.
const requestTimeout = 3 * time.Minute

// defaultListen is where clients find the proxy.
const defaultListen = "127.0.0.1:8009"

// mostMemory is from how many bytes on the program collects earlier (docs/proxy.md, "What it costs").
const mostMemory = 36 << 20

func runProxy(ctx context.Context, c *call) error {
	homeserver := c.flags.String("homeserver", "", "base `URL` of the homeserver, or a server name")
	listen := c.flags.String("listen", defaultListen, "`ADDRESS` for clients, on this machine")
	language := c.flags.String("language", "", "of what stands in rooms in the place of messages, `en|de` (default: as LC_ALL, LC_MESSAGES or LANG say, or en)")
	var origins []string
	c.flags.Func("origin", "`URL` of a web client that may use the proxy, such as https://app.element.io; may be repeated", func(v string) error {
		u, err := url.Parse(v)
		if err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" {
			return errors.New("an origin is like https://app.element.io")
		}
		origins = append(origins, v)
		return nil
	})
	err := c.parse(ctx, 0, 0, func() error {
		if *homeserver == "" {
			return usagef("run needs --homeserver URL")
		}
		if _, _, err := net.SplitHostPort(*listen); err != nil {
			return usagef("--listen is HOST:PORT, such as %s, not %s", defaultListen, clean(*listen))
		}
		if _, ok := rewrite.ParseLanguage(*language); *language != "" && !ok {
			return usagef("--language is en or de, not %s", clean(*language))
		}
		return nil
	})
	if err != nil {
		return err
	}
	base, err := c.homeserverURL(ctx, *homeserver)
	if err != nil {
		return err
	}
	lock, err := c.lockRun()
	if err != nil {
		return err
	}
	defer lock.Close()
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", *listen)
	if err != nil {
		return failf(ExitFailure, "--listen ADDRESS takes another; a second mls-proxy run may have this one", "listen for clients: %w", err)
	}
	defer listener.Close()
	addr, ok := listener.Addr().(*net.TCPAddr)
	if !ok || !addr.IP.IsLoopback() {
		return usagef("--listen %s can be reached from other machines, where what clients send would go over the network unencrypted: use 127.0.0.1:PORT", clean(*listen))
	}
	// The status page is an origin of its own to browsers: what the homeserver says
	// stands at the clients' address.
	look, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(addr.IP.String(), "0"))
	if err != nil {
		return fmt.Errorf("listen for the status page: %w", err)
	}
	defer look.Close()
	name := "mls-proxy"
	if host, err := os.Hostname(); err == nil {
		name += " on " + host
	}
	through := connect.NewPresence(connect.New())
	defer through.CloseIdleConnections()
	if !c.verbose {
		// Nobody looks at what this verb does but through what it prints.
		w := &warnings{out: c.env.Stderr, now: time.Now}
		c.log = w.log()
	}
	accounts, err := account.Open(ctx, account.Options{
		Dir: filepath.Join(c.state, accountsFolder), Homeserver: base.String(), DeviceName: name, Log: c.log, Getenv: c.env.Getenv,
		HTTP: &http.Client{Transport: through, Timeout: requestTimeout},
		Note: func(format string, args ...any) {
			c.notef("%s", clean(fmt.Sprintf(format, args...)))
		},
		// The other verbs work on an account's folder while this runs.
		Serve: func(ctx context.Context, d account.Device) (func(), error) {
			s := &session{dir: d.Dir, log: c.log, st: d.Store, ident: d.Identity, cli: d.Client, subs: make(map[chan client.Update]context.Context)}
			return s.listen(ctx, c)
		},
	})
	if err != nil {
		return err
	}
	defer accounts.Close()
	status, err := c.writeStatusAddress(look.Addr(), listener.Addr())
	if err != nil {
		return err
	}
	proxy := server.New(server.Options{Homeserver: base, Accounts: accounts, Origins: origins, Transport: through, Status: status, Language: languageOf(*language, c.env.Getenv), Log: c.log})
	c.notef("clients log in at http://%s, with a password or by single sign-on, instead of at %s", listener.Addr(), base)
	c.notef("the address of the status page is in %s", clean(status.Where))
	go memory.ReturnIdle(ctx)
	defer memory.Bound(mostMemory)()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		through.Run(ctx, base, false, func(s connect.State) { c.tellPresence(base, s) })
	}()
	looked := make(chan error, 1)
	go func() {
		looked <- proxy.ServeStatus(ctx, look)
		stop()
	}()
	err = proxy.Serve(ctx, listener)
	stop()
	<-watched
	return errors.Join(err, <-looked)
}

// runLock is the file that one mls-proxy run locks in its state directory.
const runLock = "run.lock"

var errRunning = errors.New("another mls-proxy run has this state directory")

// lockRun keeps a second mls-proxy run off the state directory: it would leave out
// the accounts that the first has open, and write over the status page's address.
func (c *call) lockRun() (*os.File, error) {
	if err := os.MkdirAll(c.state, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockFile(filepath.Join(c.state, runLock))
	if errors.Is(err, errRunning) {
		return nil, failf(ExitLocked, "it serves more than one client, and more than one account; --state DIR keeps another beside it", "%w (%s)", err, clean(c.state))
	}
	return lock, err
}

// languageOf is the language that is asked for, or else that of the locale.
func languageOf(asked string, getenv func(string) string) rewrite.Language {
	for _, name := range []string{asked, getenv("LC_ALL"), getenv("LC_MESSAGES"), getenv("LANG")} {
		if name != "" { // the first that is set counts, whatever the others are
			l, _ := rewrite.ParseLanguage(name)
			return l
		}
	}
	return rewrite.English
}

// statusName is the file with the address of the status page, whose last part is
// a secret.
const statusName = "status-page"

// writeStatusAddress makes the address of this run's status page, and leaves it
// where only the user of the state directory can read it.
func (c *call) writeStatusAddress(addr, clients net.Addr) (server.Status, error) {
	token := rand.Text()
	path := filepath.Join(c.state, statusName)
	address := "http://" + addr.String() + server.StatusPath + token + "/\n"
	err := os.MkdirAll(c.state, 0o700)
	if err == nil {
		// A file that somebody else may read keeps its mode when it is written to.
		if err = os.Remove(path); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = os.WriteFile(path, []byte(address), 0o600)
	}
	if err != nil {
		return server.Status{}, fmt.Errorf("leave the address of the status page: %w", err)
	}
	return server.Status{Token: token, Where: path, Clients: "http://" + clients.String()}, nil
}

// Bounds of the look for the homeserver of a server name.
const (
	lookUpPatience = 2 * time.Second // after which it is said
	lookUpTime     = 20 * time.Second
)

// homeserverURL finds the base URL of what a person calls their homeserver.
func (c *call) homeserverURL(ctx context.Context, name string) (*url.URL, error) {
	if !strings.Contains(name, "://") {
		found, err := c.lookUp(ctx, name, lookUpPatience, lookUpTime)
		if err != nil {
			return nil, err
		}
		if name = "https://" + name; found != "" {
			name = found
		}
	}
	u, err := url.Parse(strings.TrimRight(name, "/"))
	if err == nil && (u.User != nil || u.RawQuery != "" || u.Fragment != "") { // secrets stand there
		return nil, usagef("the base URL of a homeserver has no user name, query or fragment: give it as %s", clean((&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()))
	}
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, usagef("%s is not the base URL of a homeserver, such as https://matrix.example.org", clean(name))
	}
	return u, nil
}
