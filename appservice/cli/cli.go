// Package cli is the command line of matrix-mls: it reads the arguments, does
// what they ask for through the packages beside it, and turns what goes wrong
// into a message, a hint and an exit code.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/setup"
	"github.com/matrix-mls/matrix-mls/appservice/store"
)

// Code is an exit code.
type Code int

// The exit codes; docs/admin.md lists them from [Codes].
const (
	Done        Code = 0
	Failed      Code = 1
	Usage       Code = 2
	BadConfig   Code = 10
	Conflict    Code = 11
	BadHS       Code = 12
	BadDatabase Code = 13
	NewerSchema Code = 14
	PortTaken   Code = 15
	TakenOver   Code = 16
	Unhealthy   Code = 20
)

// Codes says what each exit code means.
var Codes = []struct {
	Code Code
	Text string
}{
	{Done, "everything asked for was done; `serve` was stopped in order"},
	{Failed, "something failed that no other code names; the message says what"},
	{Usage, "the command line was wrong"},
	{BadConfig, "the configuration is missing, malformed or holds impossible values"},
	{Conflict, "a file is in the way that would have to be overwritten, or belongs to another installation"},
	{BadHS, "the homeserver's configuration was not understood"},
	{BadDatabase, "the database cannot be opened, or belongs to another program"},
	{NewerSchema, "the database was written by a newer version of matrix-mls"},
	{PortTaken, "the address to listen on is taken"},
	{TakenOver, "another process has taken over the database; started again, this one stands by"},
	{Unhealthy, "`doctor` found something that is wrong"},
}

// Env is what the command line works with.
type Env struct {
	Args    []string // without the program's name
	Stdout  io.Writer
	Stderr  io.Writer
	Environ []string
	Version string
}

// failure is an error with its exit code and the next step.
type failure struct {
	code Code
	err  error
	hint string
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func usagef(format string, args ...any) error {
	return &failure{Usage, fmt.Errorf(format, args...), "matrix-mls -h lists what there is"}
}

const usage = `Example: matrix-mls setup --homeserver-config /etc/matrix-synapse/homeserver.yaml

Usage: matrix-mls [-c FILE] [-n] [serve]      run the module (what it does without a verb)
       matrix-mls setup --homeserver-config FILE [-c FILE] [-r FILE]
                  [--database FILE|postgres://...] [--listen HOST:PORT]
                  [--homeserver-address URL] [--no-edit]
                                              install next to a homeserver; safe to run again
       matrix-mls doctor [-c FILE] [-r FILE] [--json]
                                              check an installation
       matrix-mls status | rooms [PAGE|ROOM]  how the module and its rooms do, from the database
       matrix-mls epochs ROOM [--json|--svg FILE]  draw a room's epochs, from the database
       matrix-mls backup FILE [-c FILE]       write all the module holds, while it runs
       matrix-mls restore FILE [-c FILE]      read it back, into an empty database
       matrix-mls -g [-c FILE] [-r FILE]      write the registration; tokens are kept
       matrix-mls -e [-c FILE]                write an example configuration
       matrix-mls -v | version                print the version

  -c FILE   the module's configuration (config.yaml)
  -r FILE   its registration with the homeserver (registration.yaml)
  -n        do not add new keys to the configuration on start
  -h        this page

Each key of the configuration can be set by environment: MATRIX_MLS_HOMESERVER_ADDRESS,
or MATRIX_MLS_DATABASE_URI_FILE to read it from a file. Exit codes are in docs/admin.md.
`

// options are the flags of all verbs.
type options struct {
	config, registration     string
	generate, example, noUpd bool
	version, help, json      bool
	setup                    setup.Options
	file                     string // to write or read; of rooms: a page or a room; of epochs: a room
	svg                      string // of epochs: where to write a picture
}

func parseArgs(args []string) (verb string, o options, err error) {
	verb = "serve"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		verb, args = args[0], args[1:]
	}
	verbs := []string{"serve", "setup", "doctor", "backup", "restore", "status", "rooms", "epochs", "version", "help"}
	if !slices.Contains(verbs, verb) {
		return "", o, usagef("unknown verb %q", verb)
	}
	fs := flag.NewFlagSet("matrix-mls", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	str := func(p *string, def string, names ...string) {
		for _, name := range names {
			fs.StringVar(p, name, def, "")
		}
	}
	boolean := func(p *bool, names ...string) {
		for _, name := range names {
			fs.BoolVar(p, name, false, "")
		}
	}
	str(&o.config, "config.yaml", "c", "config")
	str(&o.registration, "registration.yaml", "r", "registration")
	boolean(&o.noUpd, "n", "no-update")
	boolean(&o.help, "h", "help")
	switch verb {
	case "serve":
		boolean(&o.generate, "g", "generate-registration")
		boolean(&o.example, "e", "generate-example-config")
		boolean(&o.version, "v", "version")
	case "setup":
		str(&o.setup.HomeserverConfig, "", "homeserver-config")
		str(&o.setup.Database, "", "database")
		str(&o.setup.Listen, "", "listen")
		str(&o.setup.Address, "", "homeserver-address")
		boolean(&o.setup.NoEdit, "no-edit")
	case "doctor":
		boolean(&o.json, "json")
	case "epochs":
		str(&o.svg, "", "svg")
		boolean(&o.json, "json")
	}
	if err := fs.Parse(args); err != nil {
		return "", o, usagef("%s", strings.TrimPrefix(err.Error(), "flag: "))
	}
	rest := fs.Args()
	if (verb == "backup" || verb == "restore" || verb == "rooms" || verb == "epochs") && len(rest) > 0 {
		// Flags may also follow the argument.
		o.file = rest[0]
		if err := fs.Parse(rest[1:]); err != nil {
			return "", o, usagef("%s", strings.TrimPrefix(err.Error(), "flag: "))
		}
		rest = fs.Args()
	}
	if len(rest) > 0 {
		if verb != "serve" || len(args) == 0 || !slices.Contains(verbs, rest[0]) {
			return "", o, usagef("unexpected argument %q", rest[0])
		}
		// Flags before the verb, as in `matrix-mls -c x.yaml doctor`.
		before := args[:len(args)-len(rest)]
		return parseArgs(append([]string{rest[0]}, append(slices.Clone(before), rest[1:]...)...))
	}
	if verb == "help" {
		o.help = true
	}
	if verb == "version" {
		o.version = true
	}
	return verb, o, nil
}

// Run does what the arguments ask for and returns the exit code.
func Run(ctx context.Context, env Env) Code {
	verb, o, err := parseArgs(env.Args)
	if err == nil {
		switch {
		case o.help:
			fmt.Fprint(env.Stdout, usage)
		case o.version:
			fmt.Fprintln(env.Stdout, "matrix-mls", env.Version)
		case o.example:
			err = writeExample(env, o)
		case o.generate:
			err = generate(env, o)
		case verb == "setup":
			err = runSetup(ctx, env, o)
		case verb == "doctor":
			err = runDoctor(ctx, env, o)
		case verb == "status", verb == "rooms", verb == "epochs":
			err = runStatus(ctx, env, verb, o)
		case verb == "backup":
			err = runBackup(ctx, env, o)
		case verb == "restore":
			err = runRestore(ctx, env, o)
		default:
			err = serve(ctx, env, o)
		}
	}
	if err == nil {
		return Done
	}
	f := classify(err)
	for i, line := range strings.Split(f.err.Error(), "\n") {
		if i == 0 {
			fmt.Fprintf(env.Stderr, "matrix-mls: %s\n", line)
		} else {
			fmt.Fprintf(env.Stderr, "            %s\n", line)
		}
	}
	if f.hint != "" {
		fmt.Fprintf(env.Stderr, "hint: %s\n", f.hint)
	}
	return f.code
}

// classify finds the exit code and the next step for an error.
func classify(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	var keyErr *config.KeyError
	var hsErr *setup.UnknownHomeserverError
	switch {
	case errors.As(err, &keyErr):
		return &failure{BadConfig, err, "config.example.yaml (matrix-mls -e) says what each key does"}
	case strings.HasPrefix(err.Error(), "config: ") && errors.Is(err, os.ErrNotExist):
		return &failure{BadConfig, err, "run `matrix-mls setup --homeserver-config PATH`, or name the file with -c"}
	case strings.HasPrefix(err.Error(), "config: "):
		return &failure{BadConfig, err, "correct the configuration; `matrix-mls doctor` checks it"}
	case errors.As(err, &hsErr):
		return &failure{BadHS, err, "name Synapse's homeserver.yaml or Dendrite's dendrite.yaml with --homeserver-config"}
	case errors.Is(err, setup.ErrNoAddress):
		return &failure{BadHS, err, "name the client API with --homeserver-address http://127.0.0.1:8008"}
	case errors.Is(err, setup.ErrOption):
		return &failure{Usage, err, "leave the option out to keep what is configured, or change it where it is set"}
	case errors.Is(err, setup.ErrConflict):
		return &failure{Conflict, err, "choose other files with -c and -r, or move the old ones away"}
	case errors.Is(err, store.ErrTakenOver):
		return &failure{TakenOver, err, "on PostgreSQL start this one again, it then stands by; on SQLite run one module for each database"}
	case errors.Is(err, store.ErrNoBackup):
		return &failure{Failed, err, "take another backup file; nothing was changed"}
	case errors.Is(err, store.ErrBackupSchema):
		return &failure{NewerSchema, err, "restore it with the version of matrix-mls that made it, then upgrade"}
	case errors.Is(err, store.ErrNotEmpty):
		return &failure{Conflict, err, "move that database away, or name an empty one (database.uri)"}
	case errors.Is(err, store.ErrOwnerAtWork):
		return &failure{Conflict, err, "stop the module first, on every machine"}
	case errors.Is(err, store.ErrSchemaTooNew):
		return &failure{NewerSchema, err, "install that version again, or restore the backup made before its first start"}
	case errors.Is(err, store.ErrDamaged):
		return &failure{BadDatabase, err, "move the file away, with those beside it (-wal, -shm), and read the newest backup back: matrix-mls restore FILE. Without a backup start with an empty database: the module follows its rooms again, and an admin of each puts its new key into the list of sequencers (docs/admin.md)"}
	case errors.Is(err, store.ErrForeignTables):
		return &failure{BadDatabase, err, "give the module a database of its own (database.uri)"}
	case strings.HasPrefix(err.Error(), "store: "):
		return &failure{BadDatabase, err, "see that the database runs and that the module's account may write to it; `matrix-mls doctor` checks it"}
	case errors.Is(err, syscall.EADDRINUSE):
		return &failure{PortTaken, err, "is another copy running? else move this one: `matrix-mls setup --homeserver-config PATH --listen 127.0.0.1:PORT`, then restart the homeserver"}
	}
	return &failure{Failed, err, fileHint(err)}
}

// fileHint is the next step after an error of the file system.
func fileHint(err error) string {
	at := new(fs.PathError)
	if !errors.As(err, &at) {
		return ""
	}
	dir := filepath.Dir(at.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return "there is no folder " + dir + ": make it first (mkdir -p), or name another place"
		}
		return "check the path of the file"
	case errors.Is(err, fs.ErrPermission):
		return "this account may not do that in " + dir + "; ls -ld shows who may"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "the disk is full"
	case errors.Is(err, syscall.EROFS):
		return "that disk cannot be written to; name another place"
	}
	return ""
}
