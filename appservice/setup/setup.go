package setup

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice"
	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
)

// Options says what to set up.
type Options struct {
	HomeserverConfig string // required: the homeserver's own configuration
	Config           string // required: the module's configuration, written
	Registration     string // required: the registration, written
	Database         string // empty: matrix-mls.db beside the configuration; or postgres://…
	Listen           string // host:port; empty: what is configured, or 127.0.0.1 and the first free port from 29380
	Address          string // of the homeserver's client API; empty: from its configuration
	NoEdit           bool   // leave the homeserver's configuration alone
	Out              io.Writer
	Environ          []string
}

// Result is what was done.
type Result struct {
	Homeserver   *HomeserverConfig
	Config       *config.Config
	Backup       string // of the homeserver's configuration; empty if not edited
	Edited       bool
	LineToAdd    string // what an admin has to add by hand, if anything
	KeysMade     int
	ConfigNew    bool
	Changed      []string // what an option changed in a configuration that was there
	Registration string   // absolute path
	Registered   bool     // the registration was written or rewritten
}

// Errors that callers branch on.
var (
	// ErrConflict means that a file is there which this installation did not
	// write, or that says something else.
	ErrConflict = errors.New("setup: conflict")
	// ErrOption means that an option cannot be applied to this installation.
	ErrOption = errors.New("setup: option refused")
	// ErrNoAddress means that the client API's address is not known.
	ErrNoAddress = errors.New("setup: the homeserver's address is not known")
)

const firstPort = 29380

// Run sets up the module next to a homeserver. Run again, it keeps every token
// and key, and repairs what is missing.
func Run(ctx context.Context, o Options) (*Result, error) {
	hc, err := ReadHomeserverConfig(o.HomeserverConfig)
	if err != nil {
		return nil, err
	}
	say := func(format string, args ...any) { fmt.Fprintf(o.Out, format+"\n", args...) }
	say("homeserver     %s %s (%s)", hc.Software, hc.ServerName, hc.Path)
	res := &Result{Homeserver: hc}
	if o.Config, err = filepath.Abs(o.Config); err != nil {
		return nil, fmt.Errorf("setup: %w", err)
	}
	if res.Registration, err = filepath.Abs(o.Registration); err != nil {
		return nil, fmt.Errorf("setup: %w", err)
	}
	cfg, err := res.configuration(ctx, hc, &o)
	if err != nil {
		return nil, err
	}
	res.Config = cfg
	word := "kept"
	switch {
	case res.ConfigNew:
		word = "written"
	case len(res.Changed) > 0:
		word = "changed: " + strings.Join(res.Changed, ", ")
	}
	say("configuration  %s (%s)", o.Config, word)
	say("client API     %s", cfg.Homeserver.Address)
	say("module         listens on %s", net.JoinHostPort(cfg.AppService.Hostname, strconv.Itoa(int(cfg.AppService.Port))))

	if word, err = WriteRegistration(res.Registration, cfg); err != nil {
		return nil, err
	}
	res.Registered = word != "kept"
	if info, statErr := os.Stat(hc.Path); statErr == nil {
		if err := shareWith(res.Registration, info); err != nil {
			say("               note: %v", errors.Unwrap(err))
			say("               see that the homeserver's account can read the registration")
		}
	}
	say("registration   %s (%s)", res.Registration, word)

	if err := res.keys(ctx, cfg); err != nil {
		return nil, err
	}
	word = "kept"
	if res.KeysMade > 0 {
		word = fmt.Sprintf("%d made", res.KeysMade)
	}
	say("database       %s, keys %s", cfg.Database.Type, word)
	return res, res.nameRegistration(say, o.NoEdit)
}

// configuration reads the module's configuration, or writes it.
func (res *Result) configuration(ctx context.Context, hc *HomeserverConfig, o *Options) (*config.Config, error) {
	base, err := os.ReadFile(o.Config)
	switch {
	case errors.Is(err, os.ErrNotExist):
		res.ConfigNew, base = true, config.Example()
	case err != nil:
		return nil, fmt.Errorf("setup: %w", err)
	}
	old, fromEnv := config.Default(), []string(nil)
	if !res.ConfigNew {
		loaded, err := config.Load(o.Config, config.Options{NoUpdate: true, Incomplete: true, Environ: o.Environ})
		if err != nil {
			return nil, err
		}
		old, fromEnv = loaded.Config, loaded.FromEnv
		if old.Homeserver.Domain != "example.org" && old.Homeserver.Domain != hc.ServerName {
			return nil, fmt.Errorf("%w: %s belongs to the homeserver %s, not to %s", ErrConflict, o.Config, old.Homeserver.Domain, hc.ServerName)
		}
	}
	fresh := res.ConfigNew || old.Homeserver.Domain == "example.org"
	set := make(map[string]string)
	if fresh {
		if err := res.freshValues(ctx, hc, o, set); err != nil {
			return nil, err
		}
	} else if err := res.changedValues(old, fromEnv, o, set); err != nil {
		return nil, err
	}
	for key, have := range map[string]string{"appservice.as_token": old.AppService.ASToken, "appservice.hs_token": old.AppService.HSToken} {
		if have != "" && have != config.Ungenerated {
			continue
		}
		if set[key], err = Token(); err != nil {
			return nil, err
		}
	}
	if len(set) > 0 {
		text, err := config.Render(base, set)
		if err != nil {
			return nil, err
		}
		if err := config.Check(o.Config, text, o.Environ); err != nil {
			return nil, refused(err, o, res.ConfigNew)
		}
		if fresh && o.Database != "" {
			// What is written names the database for good.
			st, err := open(ctx, config.Database{Type: set["database.type"], URI: set["database.uri"]})
			if err != nil {
				return nil, fmt.Errorf("%w; nothing was written", err)
			}
			_ = st.Close()
		}
		if !bytes.Equal(text, base) || res.ConfigNew {
			if err := config.WriteFile(o.Config, text, 0o600); err != nil {
				return nil, fmt.Errorf("setup: cannot write the configuration: %w", err)
			}
		}
	}
	loaded, err := config.Load(o.Config, config.Options{NoUpdate: true, Environ: o.Environ})
	if err != nil {
		return nil, err
	}
	return loaded.Config, nil
}

// refused blames a value that cannot be written on where it comes from: an
// option or the homeserver's configuration. The error of another value stays.
func refused(err error, o *Options, fresh bool) error {
	var key *config.KeyError
	if !errors.As(err, &key) || key.Env != "" {
		return err
	}
	switch {
	case strings.HasPrefix(key.Key, "database.") && o.Database != "" && fresh:
		return fmt.Errorf("%w: --database: %s %s; nothing was written", ErrOption, key.Key, key.Text) // the address may hold a password
	case key.Key == "homeserver.address" && o.Address != "":
		return fmt.Errorf("%w: --homeserver-address %q: %s; nothing was written", ErrOption, o.Address, key.Text)
	case fresh && (key.Key == "homeserver.address" || key.Key == "homeserver.domain"):
		what := map[string]string{"homeserver.address": "the address of its client API", "homeserver.domain": "server_name"}[key.Key]
		return &UnknownHomeserverError{o.HomeserverConfig, what + " " + key.Text + "; nothing was written"}
	}
	return err
}

// changedValues applies the options to a configuration that is there. The
// database is not among what can be changed: the keys are in it.
func (res *Result) changedValues(old *config.Config, fromEnv []string, o *Options, set map[string]string) error {
	if o.Database != "" {
		kind, uri, err := database(o.Database)
		if err != nil {
			return err
		}
		if kind != old.Database.Type || uri != old.Database.URI {
			return fmt.Errorf("%w: %s names another database, which holds the module's keys; leave --database out, or move the database and change database.uri",
				ErrOption, o.Config)
		}
	}
	change := func(key, have, want string) {
		if have != want {
			set[key] = want
			res.Changed = append(res.Changed, key)
		}
	}
	if o.Address != "" {
		change("homeserver.address", old.Homeserver.Address, strings.TrimSuffix(o.Address, "/"))
	}
	if o.Listen != "" {
		host, port, err := listenAddress(o.Listen)
		if err != nil {
			return err
		}
		change("appservice.hostname", old.AppService.Hostname, host)
		change("appservice.port", strconv.Itoa(int(old.AppService.Port)), strconv.Itoa(port))
		// An address that somebody chose, such as a container's name, stays.
		if old.AppService.Address == seenAddress(old.AppService.Hostname, int(old.AppService.Port)) {
			change("appservice.address", old.AppService.Address, seenAddress(host, port))
		} else {
			fmt.Fprintf(o.Out, "               note: appservice.address stays %s; see that it leads to %s\n", old.AppService.Address, o.Listen)
		}
	}
	for _, key := range res.Changed {
		name := "MATRIX_MLS_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
		if slices.Contains(fromEnv, name) || slices.Contains(fromEnv, name+"_FILE") {
			return fmt.Errorf("%w: %s is set by the environment (%s), which goes before the file", ErrOption, key, name)
		}
	}
	return nil
}

// listenAddress splits host:port.
func listenAddress(listen string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(listen)
	n, convErr := strconv.ParseUint(p, 10, 16)
	if err != nil || convErr != nil || n == 0 {
		return "", 0, fmt.Errorf("%w: %q is no host:port to listen on", ErrOption, listen)
	}
	return host, int(n), nil
}

// seenAddress is where a homeserver on the same machine finds the module.
func seenAddress(host string, port int) string {
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, strconv.Itoa(port))
}

// database tells what --database means.
func database(option string) (kind, uri string, err error) {
	if scheme, _, ok := strings.Cut(strings.ToLower(option), "://"); ok && (scheme == "postgres" || scheme == "postgresql") {
		return "postgres", option, nil
	}
	path, err := filepath.Abs(option)
	if err != nil {
		return "", "", fmt.Errorf("setup: %w", err)
	}
	return "sqlite3", path, nil
}

// freshValues fills in what a new configuration needs.
func (res *Result) freshValues(ctx context.Context, hc *HomeserverConfig, o *Options, set map[string]string) error {
	address := o.Address
	if address == "" {
		address = hc.Address
	}
	if address == "" && hc.Software == homeserver.Dendrite {
		// Dendrite's port is on its command line, not in its configuration.
		address = "http://127.0.0.1:8008"
		if !answers(ctx, address) {
			return fmt.Errorf("%w: Dendrite's configuration does not hold it, and nothing answers on %s", ErrNoAddress, address)
		}
	}
	if address == "" {
		return fmt.Errorf("%w: %s lists no listener with the client resource", ErrNoAddress, hc.Path)
	}
	host, port := "127.0.0.1", 0
	if o.Listen != "" {
		var err error
		if host, port, err = listenAddress(o.Listen); err != nil {
			return err
		}
	} else {
		for port = firstPort; port < firstPort+100 && !free(host, port); {
			port++
		}
	}
	set["homeserver.address"] = strings.TrimSuffix(address, "/")
	set["homeserver.domain"] = hc.ServerName
	set["homeserver.software"] = string(hc.Software)
	set["appservice.hostname"] = host
	set["appservice.port"] = strconv.Itoa(port)
	set["appservice.address"] = seenAddress(host, port)
	set["database.type"], set["database.uri"] = "sqlite3", filepath.Join(filepath.Dir(o.Config), "matrix-mls.db")
	if o.Database == "" {
		return nil
	}
	var err error
	set["database.type"], set["database.uri"], err = database(o.Database)
	return err
}

func answers(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/_matrix/client/versions", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func free(host string, port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return false
	}
	_ = l.Close()
	return true
}

// WriteRegistration writes the registration of a configuration and says whether
// it was written, rewritten or kept. A file of another application service is
// not touched.
func WriteRegistration(path string, cfg *config.Config) (string, error) {
	have, err := LoadRegistration(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrConflict, err)
	}
	if have == nil {
		return "written", writeRegistration(path, Registration(cfg))
	}
	if have.ID != cfg.AppService.ID {
		return "", fmt.Errorf("%w: %s is the registration of the application service %q", ErrConflict, path, have.ID)
	}
	if len(Compare(have, cfg)) == 0 {
		return "kept", nil
	}
	return "rewritten", writeRegistration(path, Registration(cfg))
}

// open opens the module's database and brings it up to date.
func open(ctx context.Context, db config.Database) (*store.Store, error) {
	st, err := store.Open(ctx, store.Config{Type: db.Type, URI: db.URI, MaxOpenConns: db.MaxOpenConns}, time.Now)
	if err != nil {
		return nil, err
	}
	if err := st.Upgrade(ctx); err != nil {
		_ = st.Close()
		return nil, err
	}
	return st, nil
}

// keys brings the database up to date and makes the keys that it lacks.
func (res *Result) keys(ctx context.Context, cfg *config.Config) error {
	st, err := open(ctx, cfg.Database)
	if err != nil {
		return err
	}
	defer st.Close()
	_, res.KeysMade, err = appservice.EnsureKeys(ctx, st, rand.Reader)
	return err
}

// nameRegistration names the registration in the homeserver's configuration.
func (res *Result) nameRegistration(say func(string, ...any), noEdit bool) error {
	hc := res.Homeserver
	if hc.Names(res.Registration) {
		say("homeserver     names the registration already")
		return nil
	}
	if noEdit {
		res.LineToAdd = hc.Line(res.Registration)
		return nil
	}
	backup, err := hc.AddRegistration(res.Registration)
	if errors.Is(err, errCannotEdit) || errors.Is(err, os.ErrPermission) {
		say("homeserver     not edited: %v", err)
		res.LineToAdd = hc.Line(res.Registration)
		return nil
	}
	if err != nil {
		return err
	}
	res.Backup, res.Edited = backup, true
	say("homeserver     %s edited, old text in %s", hc.Path, backup)
	return nil
}
