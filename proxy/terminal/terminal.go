// Package terminal is the user's program on a terminal: its verbs log a device
// in, verify it, and talk in MLS rooms. Everything is done by package client;
// this package asks, shows and explains.
//
// A verb that runs for long (tail) keeps the state of the device open and
// listens on a socket beside it, so that verbs in a second terminal run inside
// the first one's process: two processes would step the same ratchets.
package terminal

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/matrix-mls/matrix-mls/client/store"
)

// Version is what `mls-proxy version` prints.
const Version = "0.1.0"

// Exit codes.
const (
	ExitOK          = 0
	ExitFailure     = 1 // something else went wrong
	ExitUsage       = 2 // unknown verb, flag or argument
	ExitNotLoggedIn = 3 // nobody is logged in, or the session has ended
	ExitRefused     = 4 // the homeserver or the room does not allow it
	ExitUnreachable = 5 // the homeserver cannot be reached
	ExitNotVerified = 6 // this or another device is not verified as the room requires
	ExitLocked      = 7 // another process has the state open
	ExitPending     = 8 // not done yet; it goes on the next time the program runs
)

// stateWait covers a verb of another process that sends or asks something.
const stateWait = 20 * time.Second

// Env is the surroundings of the program. Main's caller fills it; tests make
// their own.
type Env struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
	Cwd    string

	// ReadPassword asks for a secret without showing it; nil means that there
	// is no terminal to ask on.
	ReadPassword func(ctx context.Context, prompt string) (string, error)
	// ReadLine asks a question; nil means that there is nobody to ask.
	ReadLine func(ctx context.Context, prompt string) (string, error)
	// StateWait is how long a verb waits for another process that has the
	// state open and does not run verbs for others.
	StateWait time.Duration
	// OpenBrowser shows a page to the user; nil only prints its address.
	OpenBrowser func(url string) error
}

// System is the environment of the running process.
func System() *Env {
	env := &Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, OpenBrowser: openBrowser, StateWait: stateWait}
	env.Cwd, _ = os.Getwd()
	env.ReadLine = func(ctx context.Context, prompt string) (string, error) {
		fmt.Fprint(os.Stderr, prompt)
		return interruptible(ctx, func() (string, error) { return readLine(os.Stdin) })
	}
	if info, err := os.Stdin.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		env.ReadPassword = func(ctx context.Context, prompt string) (string, error) {
			return readHidden(ctx, os.Stdin, os.Stderr, prompt)
		}
	}
	return env
}

func openBrowser(url string) error {
	name := "xdg-open"
	if runtime.GOOS == "darwin" {
		name = "open"
	} else if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return errors.New("no display")
	}
	return exec.Command(name, url).Start()
}

// verb is one command.
type verb struct {
	name  string
	args  string // shown in the help
	what  string // one line
	run   func(ctx context.Context, c *call) error
	login bool // works only with a logged-in device
	share bool // may run inside a tail of another terminal
}

// call is one run of a verb.
type call struct {
	env   *Env
	verb  *verb
	raw   []string // the verb and what follows it, as given
	args  []string // without the flags before the verb
	flags *flag.FlagSet
	state string // directory
	json  bool
	// verbose has all that the program does printed.
	verbose bool
	log     zerolog.Logger
	s       *session
}

func verbs() []*verb {
	return []*verb{
		{name: "login", args: "@YOU:SERVER | --sso SERVER", what: "make this a device of your account", run: runLogin},
		{name: "verify", args: "[--bootstrap | --recovery-key | @USER | accept @USER]", what: "show others that the device is yours, or compare emoji", run: runVerify, login: true, share: true},
		{name: "devices", args: "[@USER]", what: "list devices and whether they are verified", run: runDevices, login: true, share: true},
		{name: "rooms", what: "list rooms and invites", run: runRooms, login: true, share: true},
		{name: "create", args: "NAME [@USER…]", what: "make an encrypted room and invite users", run: runCreate, login: true, share: true},
		{name: "enable", args: "ROOM", what: "turn an unencrypted room into an MLS room", run: runEnable, login: true, share: true},
		{name: "invite", args: "ROOM @USER…", what: "let users into a room", run: runInvite, login: true, share: true},
		{name: "join", args: "ROOM", what: "accept an invite, or join a public room", run: runJoin, login: true, share: true},
		{name: "leave", args: "ROOM", what: "leave a room", run: runLeave, login: true, share: true},
		{name: "kick", args: "ROOM @USER", what: "remove a user and all devices (--ban keeps them out)", run: runKick, login: true, share: true},
		{name: "send", args: "ROOM TEXT… | ROOM --file PATH", what: "send a message or a file; - reads standard input", run: runSend, login: true, share: true},
		{name: "get", args: "ROOM EVENT", what: "save the file that a message carries", run: runGet, login: true, share: true},
		{name: "tail", args: "[ROOM]", what: "show messages as they come, with epoch and verification", run: runTail, login: true},
		{name: "history", args: "ROOM", what: "show what was said; --ask gets what your other devices have from before", run: runHistory, login: true, share: true},
		{name: "receipts", args: "ROOM [EVENT]", what: "which devices have received and decrypted your last message, or another", run: runReceipts, login: true, share: true},
		{name: "run", args: "--homeserver URL", what: "let clients without MLS log in on this machine (docs/proxy.md)", run: runProxy},
		{name: "members", args: "ROOM", what: "list who is in a room's group: device, epoch, verified or not", run: runMembers, login: true, share: true},
		{name: "epochs", args: "ROOM", what: "draw a room's epochs: forks, who accepted what, what is final, who is behind", run: runEpochs, login: true, share: true},
		{name: "repair", args: "ROOM", what: "give a room its module's new receipt key, after the old was lost", run: runRepair, login: true, share: true},
		{name: "sequencers", args: "ROOM [add|drop|set SERVER… | auto on|off]", what: "show or change whose modules order a room's changes", run: runSequencers, login: true, share: true},
		{name: "era", args: "ROOM SERVER…", what: "go on with other modules, after a majority of the old was lost for good", run: runEra, login: true, share: true},
		{name: "suite", args: "ROOM [SUITE]", what: "show who can use which cipher suite, or move a room to another", run: runSuite, login: true, share: true},
		{name: "backup", args: "FILE", what: "write this device's keys and messages into a sealed file", run: runBackup, login: true, share: true},
		{name: "export", args: "FILE [ROOM…]", what: "write what was said, without keys, into a sealed file", run: runExport, login: true, share: true},
		{name: "import", args: "FILE", what: "take in what export wrote, here or on another device", run: runImport, login: true, share: true},
		{name: "restore", args: "FILE", what: "bring a device back from a backup, with fresh keys", run: runRestore},
		{name: "logout", what: "end this device's session and delete its keys", run: runLogout, login: true},
		{name: "version", what: "print the version", run: runVersion},
	}
}

const helpHead = `usage: mls-proxy [--state DIR] [--json] [-v] VERB …
  mls-proxy login @alice:example.org          # once
  mls-proxy verify --bootstrap                # once; from another device: verify
  mls-proxy create "Lunch" @bob:example.net
  mls-proxy send Lunch "hello"
  mls-proxy tail Lunch

`

const helpTail = `ROOM is an id, an alias, or a name that only one room has. --json prints JSON lines. Keys
and messages are in $XDG_DATA_HOME/mls-proxy, sealed with store.key (MLS_STORE_KEY_FILE).
VERB -h lists the verb's flags. Exit codes: 0 done, 1 failed, 2 usage, 3 not logged in,
4 refused, 5 unreachable, 6 not verified, 7 state in use, 8 not done yet: goes on later.
`

func printHelp(w io.Writer) {
	fmt.Fprint(w, helpHead)
	for _, v := range verbs() {
		fmt.Fprintf(w, "  %-10s %s\n", v.name, v.what)
	}
	fmt.Fprint(w, helpTail)
}

// Main runs the program with the arguments after its name and returns the exit
// code.
func Main(ctx context.Context, args []string, env *Env) int {
	own := *env
	own.Stderr = &lines{w: env.Stderr}
	env = &own
	c := &call{env: env}
	top := flag.NewFlagSet("mls-proxy", flag.ContinueOnError)
	top.SetOutput(io.Discard)
	top.StringVar(&c.state, "state", "", "")
	top.BoolVar(&c.json, "json", false, "")
	top.BoolVar(&c.verbose, "v", false, "")
	err := top.Parse(args)
	rest := top.Args()
	switch {
	case errors.Is(err, flag.ErrHelp) || err == nil && len(rest) > 0 && rest[0] == "help":
		printHelp(env.Stdout)
		return ExitOK
	case err != nil:
		return c.fail(usagef("%v", err))
	case len(rest) == 0:
		printHelp(env.Stderr)
		return ExitUsage
	}
	if c.state == "" {
		c.state = defaultState(env.Getenv)
	} else if !filepath.IsAbs(c.state) {
		c.state = filepath.Join(env.Cwd, c.state)
	}
	c.log = zerolog.Nop()
	if c.verbose {
		c.log = zerolog.New(zerolog.ConsoleWriter{Out: env.Stderr, NoColor: true, TimeFormat: time.TimeOnly}).Level(zerolog.DebugLevel).With().Timestamp().Logger()
	}
	return c.exec(ctx, rest)
}

// exec finds and runs the verb named by the first of args.
func (c *call) exec(ctx context.Context, args []string) int {
	all := verbs()
	n := slices.IndexFunc(all, func(v *verb) bool { return v.name == args[0] })
	if n < 0 {
		return c.fail(usagef("unknown verb %q", clean(args[0])))
	}
	c.verb = all[n]
	c.flags = flag.NewFlagSet(c.verb.name, flag.ContinueOnError)
	c.flags.SetOutput(io.Discard)
	c.raw, c.args = args, args[1:]
	shared := c.s
	defer func() {
		if c.s != nil && c.s != shared {
			c.s.close()
		}
	}()
	var elsewhere *forwarded
	switch err := c.verb.run(ctx, c); {
	case err == nil:
		return ExitOK
	case errors.Is(err, flag.ErrHelp):
		c.verbHelp()
		return ExitOK
	case errors.As(err, &elsewhere):
		return elsewhere.code
	default:
		return c.fail(err)
	}
}

// forwarded reports that the process which has the state open ran the verb.
type forwarded struct{ code int }

func (f *forwarded) Error() string { return fmt.Sprintf("ran elsewhere, exit code %d", f.code) }

// begin opens the device's state, once it is known what is asked for.
func (c *call) begin(ctx context.Context) error {
	if c.s != nil {
		return nil
	}
	patience := time.NewTimer(c.env.StateWait)
	defer patience.Stop()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		s, err := openSession(ctx, c)
		if err == nil {
			c.s = s
			return nil
		}
		if code, ok := c.forward(ctx, c.raw, err); ok {
			return &forwarded{code}
		}
		if !errors.Is(err, store.ErrLocked) || c.env.StateWait <= 0 {
			return err
		}
		select {
		case <-again.C:
		case <-patience.C:
			return err
		case <-ctx.Done():
			return err
		}
	}
}

func (c *call) verbHelp() {
	fmt.Fprintf(c.env.Stdout, "usage: mls-proxy %s %s\n\n%s\n", c.verb.name, c.verb.args, c.verb.what)
	first := true
	c.flags.VisitAll(func(f *flag.Flag) {
		if first {
			fmt.Fprintln(c.env.Stdout)
			first = false
		}
		value, usage := flag.UnquoteUsage(f)
		if d := f.DefValue; d != "" && d != "false" && d != "0" && !strings.Contains(usage, "(default") {
			usage += " (default " + d + ")"
		}
		fmt.Fprintf(c.env.Stdout, "  --%-24s %s\n", strings.TrimSpace(f.Name+" "+value), usage)
	})
}

// parse reads the verb's flags, which may stand before, between or after its
// arguments, and checks how many arguments there are (most < 0: any number)
// and whatever else can be checked without the device's state. Only then, and
// only for a verb that needs it, it opens that state: help and wrong usage
// need no login.
func (c *call) parse(ctx context.Context, least, most int, checks ...func() error) error {
	c.flags.BoolVar(&c.json, "json", c.json, "print JSON")
	var positional []string
	for rest := c.args; len(rest) > 0; {
		if err := c.flags.Parse(rest); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return err
			}
			return usagef("%v", err)
		}
		left := c.flags.Args()
		if len(left) == 0 {
			break
		}
		if n := len(rest) - len(left); n > 0 && rest[n-1] == "--" {
			positional = append(positional, left...)
			break
		}
		positional = append(positional, left[0])
		rest = left[1:]
	}
	c.args = positional
	if len(c.args) < least || most >= 0 && len(c.args) > most {
		return c.misused()
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	if c.state == "" && c.verb.name != "version" {
		return failf(ExitUsage, "name the directory of keys and messages: mls-proxy --state DIR VERB …", "neither HOME nor XDG_DATA_HOME says where it is")
	}
	if c.verb.login {
		return c.begin(ctx)
	}
	return nil
}

// misused is the error of a verb with too few or too many arguments.
func (c *call) misused() error {
	if c.verb.args == "" {
		return usagef("%s takes no arguments", c.verb.name)
	}
	return usagef("%s needs: %s", c.verb.name, c.verb.args)
}

// printJSON prints one JSON object on a line of its own.
func (c *call) printJSON(v any) error {
	enc := json.NewEncoder(c.env.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (c *call) printf(format string, args ...any) {
	fmt.Fprintf(c.env.Stdout, format, args...)
}

// lines lets what several goroutines print, each line by one Write, come one after
// the other.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// notef tells the person something that is not the result.
func (c *call) notef(format string, args ...any) {
	fmt.Fprintf(c.env.Stderr, "mls-proxy: "+format+"\n", args...)
}

func runVersion(ctx context.Context, c *call) error {
	if err := c.parse(ctx, 0, 0); err != nil {
		return err
	}
	c.printf("mls-proxy %s\n", Version)
	return nil
}

// defaultState is $XDG_DATA_HOME/mls-proxy (XDG Base Directory Specification), or
// empty where the environment does not tell.
func defaultState(getenv func(string) string) string {
	base := getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(base) {
		home := getenv("HOME")
		if !filepath.IsAbs(home) {
			return "" // never below wherever the program happens to run
		}
		base = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(base, "mls-proxy")
}
