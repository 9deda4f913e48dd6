package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options says what a run consists of. The zero value starts nothing but an empty run for [Servers.Spawn].
type Options struct {
	Synapse  int // servers syn1, syn2, …
	Dendrite int // servers den1, den2, …

	// Users are created on every server ("alice") or on one ("bob@syn2"). The one named admin is a server admin.
	Users []string
	// Registrations names the application service registration file of a server. See also [Servers.Register].
	Registrations map[string]string

	Postgres           bool // a private PostgreSQL cluster
	DurablePostgres    bool // one that waits for the disk at each commit, as no test needs it
	HomeserverPostgres bool // the homeservers keep their data in it, too

	// Proxy lets federation pass through a proxy, so that [Servers.Block] can cut links.
	Proxy bool
	// DefaultRateLimits keeps the homeservers' own rate limits; otherwise they are lifted.
	DefaultRateLimits bool
	// DefaultRetries keeps Synapse's own federation retry intervals (10 minutes and up); otherwise they are a second.
	DefaultRetries bool
	// SynapseSettings overrides top-level settings of each Synapse.
	SynapseSettings map[string]any
	// LogLevel of the homeservers: DEBUG, INFO or WARNING (the default).
	LogLevel string

	// Dir is the work directory; empty: a temporary one that Close deletes.
	Dir string
	// BasePort is the first port; 0: a free block.
	BasePort int
	// Detach leaves everything running when this process ends; [Attach] finds it again by its Dir.
	Detach bool
	// Progress receives the lines that long installations print; nil: they go to up.log in the work directory.
	Progress *os.File
}

// User is an account that was made at the start, logged in once.
type User struct {
	Localpart   string `json:"localpart"`
	UserID      string `json:"user_id"`
	AccessToken string `json:"access_token"`
	DeviceID    string `json:"device_id"`
	Password    string `json:"password"`
}

// Server is one homeserver.
type Server struct {
	Name          string          `json:"name"` // syn1, den1, …
	Kind          string          `json:"kind"` // synapse or dendrite
	Dir           string          `json:"dir"`
	Config        string          `json:"config"` // homeserver.yaml or dendrite.yaml
	LogPath       string          `json:"log"`
	ServerName    string          `json:"server_name"`
	BaseURL       string          `json:"base_url"` // client API, plain HTTP
	FederationURL string          `json:"federation_url"`
	Users         map[string]User `json:"users"`
	Registrations []string        `json:"registrations"`
	SparePorts    []int           `json:"spare_ports"` // for programs that belong to this server, such as its module
}

// Databases returns the SQLite files of the server, with their write-ahead logs. With HomeserverPostgres there are
// none of its own, and [Servers.Dump] has the data.
func (s *Server) Databases() ([]string, error) {
	var out []string
	err := filepath.WalkDir(s.Dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if n := e.Name(); strings.HasSuffix(n, ".db") || strings.HasSuffix(n, ".db-wal") || strings.HasSuffix(n, ".db-journal") {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lab: list the databases of %s: %w", s.Name, err)
	}
	return out, nil
}

type program struct {
	Log string `json:"log"`
}

type run struct {
	Dir      string             `json:"dir"`
	Servers  map[string]*Server `json:"servers"`
	Programs map[string]program `json:"programs"`
	Postgres *struct {
		Port      int      `json:"port"`
		Role      string   `json:"role"`
		Databases []string `json:"databases"`
		Log       string   `json:"log"`
	} `json:"postgres"`
}

// Servers is a run.
type Servers struct {
	state  run
	script string
	temp   bool

	hold  *exec.Cmd // the script that ends everything when stdin closes; nil when detached
	stdin *os.File
}

// Start runs what o asks for and returns when all of it answers. The first run on a machine also installs Synapse
// and builds Dendrite, which takes minutes. The caller must Close the result.
func Start(ctx context.Context, o Options) (*Servers, error) { return start(ctx, o) }

func start(ctx context.Context, o Options, flags ...string) (*Servers, error) {
	script, err := scriptPath()
	if err != nil {
		return nil, err
	}
	s := &Servers{script: script}
	dir := o.Dir
	if dir == "" {
		// PostgreSQL runs as another user, which must be able to pass through.
		if dir, err = os.MkdirTemp("", "matrix-mls-lab-"); err == nil {
			err = os.Chmod(dir, 0o711)
		}
		s.temp = true
	} else if dir, err = filepath.Abs(dir); err == nil {
		err = os.MkdirAll(dir, 0o711)
	}
	if err != nil {
		return nil, fmt.Errorf("lab: make the work directory: %w", err)
	}
	args, err := o.arguments(dir)
	if err != nil {
		return nil, err
	}
	if err = s.up(ctx, o, dir, append(args, flags...)); err != nil {
		if s.temp {
			err = errors.Join(err, os.RemoveAll(dir))
		}
		return nil, err
	}
	return s, nil
}

// Attach returns the run that was started in dir with [Options.Detach].
func Attach(dir string) (*Servers, error) {
	script, err := scriptPath()
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	s := &Servers{script: script, state: run{Dir: dir}}
	return s, s.reload()
}

func (s *Servers) reload() error {
	raw, err := os.ReadFile(filepath.Join(s.state.Dir, "state.json"))
	if err != nil {
		return fmt.Errorf("lab: nothing was started in %s: %w", s.state.Dir, err)
	}
	var st run
	if err := json.Unmarshal(raw, &st); err != nil {
		return fmt.Errorf("lab: read the state of %s: %w", s.state.Dir, err)
	}
	for name, server := range st.Servers {
		if old := s.state.Servers[name]; old != nil { // callers hold on to it
			*old = *server
			st.Servers[name] = old
		}
	}
	s.state = st
	return nil
}

func (o *Options) arguments(dir string) ([]string, error) {
	args := []string{"up", "--dir", dir, "--synapse", strconv.Itoa(o.Synapse), "--dendrite", strconv.Itoa(o.Dendrite),
		"--users", strings.Join(o.Users, ",")}
	for _, f := range []struct {
		on   bool
		name string
	}{
		{o.Postgres, "--postgres"}, {o.DurablePostgres, "--durable-postgres"}, {o.HomeserverPostgres, "--homeserver-postgres"}, {o.Proxy, "--proxy"},
		{o.DefaultRateLimits, "--default-rate-limits"}, {o.DefaultRetries, "--default-retries"}, {!o.Detach, "--hold"},
	} {
		if f.on {
			args = append(args, f.name)
		}
	}
	if o.LogLevel != "" {
		args = append(args, "--log-level", o.LogLevel)
	}
	if o.BasePort != 0 {
		args = append(args, "--base-port", strconv.Itoa(o.BasePort))
	}
	for _, name := range slices.Sorted(maps.Keys(o.Registrations)) {
		args = append(args, "--registration", name+"="+o.Registrations[name])
	}
	for _, key := range slices.Sorted(maps.Keys(o.SynapseSettings)) {
		value, err := json.Marshal(o.SynapseSettings[key])
		if err != nil {
			return nil, fmt.Errorf("lab: Synapse setting %s: %w", key, err)
		}
		args = append(args, "--synapse-set", key+"="+string(value))
	}
	return args, nil
}

// up runs the script and waits for the line it prints when all is up. The stderr of a script that stays is a file, never a
// pipe: nothing may keep a test binary from ending.
func (s *Servers) up(ctx context.Context, o Options, dir string, args []string) error {
	logPath := filepath.Join(dir, "up.log")
	errFile := o.Progress
	if errFile == nil {
		f, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		defer f.Close()
		errFile = f
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer inR.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		inW.Close()
		return fmt.Errorf("lab: %w", err)
	}
	defer outR.Close()
	cmd := exec.Command("python3", append([]string{"-B", s.script}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = inR, outW, errFile
	err = cmd.Start()
	outW.Close()
	if err != nil {
		inW.Close()
		return fmt.Errorf("lab: start python3, which runs the homeservers: %w", err)
	}
	// The script ends what it started when its input closes or it is interrupted.
	interrupt := context.AfterFunc(ctx, func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = outR.SetReadDeadline(time.Now().Add(30 * time.Second))
	})
	s.state.Dir = dir
	var readErr error
	if o.Detach {
		_, readErr = io.Copy(io.Discard, outR)
	} else {
		_, readErr = bufio.NewReader(outR).ReadString('\n')
	}
	if readErr == nil {
		readErr = s.reload()
	}
	interrupt()
	if readErr == nil && !o.Detach {
		s.hold, s.stdin = cmd, inW
		return nil
	}
	inW.Close()
	waitErr := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("lab: start the homeservers: %w", ctx.Err())
	case readErr != nil || waitErr != nil:
		said, _ := os.ReadFile(logPath)
		return fmt.Errorf("lab: the homeservers did not start (%w): %s", errors.Join(waitErr, readErr), tail(said, 2000))
	}
	return nil
}

func tail(b []byte, n int) []byte {
	return bytes.TrimSpace(b[max(0, len(b)-n):])
}

// Close ends everything. A detached run goes on: end it with [Servers.Down].
func (s *Servers) Close() error {
	if s.hold == nil {
		return nil
	}
	s.stdin.Close()
	err := s.hold.Wait()
	s.hold = nil
	if s.temp {
		err = errors.Join(err, os.RemoveAll(s.state.Dir))
	}
	if err != nil {
		return fmt.Errorf("lab: end the run in %s: %w", s.state.Dir, err)
	}
	return nil
}

// Down ends a detached run; wipe deletes its directory, too.
func (s *Servers) Down(ctx context.Context, wipe bool) error {
	if wipe {
		return s.command(ctx, "down", "--wipe")
	}
	return s.command(ctx, "down")
}

// Running returns the names of the processes of the run that are alive.
func (s *Servers) Running(ctx context.Context) ([]string, error) {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, "python3", "-B", s.script, "status", "--dir", s.state.Dir)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("lab: look what runs in %s: %w: %s", s.state.Dir, err, tail(said.Bytes(), 2000))
	}
	var all map[string]struct{ Alive bool }
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("lab: look what runs in %s: %w", s.state.Dir, err)
	}
	maps.DeleteFunc(all, func(_ string, p struct{ Alive bool }) bool { return !p.Alive })
	return slices.Sorted(maps.Keys(all)), nil
}

// Dir is the work directory: logs are NAME.log in it.
func (s *Servers) Dir() string { return s.state.Dir }

// Server returns a homeserver by name, nil when there is none.
func (s *Servers) Server(name string) *Server { return s.state.Servers[name] }

// All returns the homeservers, sorted by name.
func (s *Servers) All() []*Server {
	out := make([]*Server, 0, len(s.state.Servers))
	for _, name := range slices.Sorted(maps.Keys(s.state.Servers)) {
		out = append(out, s.state.Servers[name])
	}
	return out
}

// Logs returns the path of every log of the run: homeservers, spawned programs, PostgreSQL, the proxy.
func (s *Servers) Logs() ([]string, error) {
	out, err := filepath.Glob(filepath.Join(s.state.Dir, "*.log"))
	if err != nil {
		return nil, fmt.Errorf("lab: list the logs: %w", err)
	}
	return out, nil
}

// Stop ends servers or programs in the orderly way (SIGTERM, after 15 s SIGKILL).
func (s *Servers) Stop(ctx context.Context, names ...string) error {
	return s.command(ctx, "stop", names...)
}

// Kill ends servers or programs with SIGKILL.
func (s *Servers) Kill(ctx context.Context, names ...string) error {
	return s.command(ctx, "stop", append([]string{"--kill"}, names...)...)
}

// Start starts stopped servers or programs again and waits until homeservers answer.
func (s *Servers) Start(ctx context.Context, names ...string) error {
	return s.command(ctx, "start", names...)
}

// Pause freezes servers or programs (SIGSTOP): connections to them hang.
func (s *Servers) Pause(ctx context.Context, names ...string) error {
	return s.command(ctx, "pause", names...)
}

// Resume ends a Pause.
func (s *Servers) Resume(ctx context.Context, names ...string) error {
	return s.command(ctx, "resume", names...)
}

// Block cuts federation from one server to another, for open connections too; "*" is any server. Needs Options.Proxy.
// When it returns the link is cut.
func (s *Servers) Block(ctx context.Context, from, to string) error {
	return s.command(ctx, "block", from, to)
}

// Unblock ends a Block; from "*" to "*" ends all of them.
func (s *Servers) Unblock(ctx context.Context, from, to string) error {
	return s.command(ctx, "unblock", from, to)
}

// Split cuts federation between the servers of different sides, both ways, and restores every other link. Servers that
// are in no side reach all. Unblock from "*" to "*" ends it.
func (s *Servers) Split(ctx context.Context, sides ...[]string) error {
	var args []string
	for _, side := range sides {
		args = append(args, strings.Join(side, ","))
	}
	return s.command(ctx, "split", args...)
}

// Register adds application service registrations, server name to file, and restarts those servers with them.
func (s *Servers) Register(ctx context.Context, files map[string]string) error {
	var args []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		args = append(args, name+"="+files[name])
	}
	if err := s.command(ctx, "register", args...); err != nil {
		return err
	}
	return s.reload()
}

// AddUser makes one more account on a server; its password is password-LOCALPART.
func (s *Servers) AddUser(ctx context.Context, server, localpart string) (User, error) {
	if err := s.command(ctx, "user", localpart+"@"+server); err != nil {
		return User{}, err
	}
	if err := s.reload(); err != nil {
		return User{}, err
	}
	return s.Server(server).Users[localpart], nil
}

// Spawn starts a program that is ended together with the run. Its output goes to NAME.log in the work directory;
// Stop, Kill, Start, Pause and Resume take its name.
func (s *Servers) Spawn(ctx context.Context, name string, argv ...string) error {
	if err := s.command(ctx, "spawn", append([]string{name, "--"}, argv...)...); err != nil {
		return err
	}
	return s.reload()
}

func (s *Servers) command(ctx context.Context, name string, args ...string) error {
	argv := append([]string{"-B", s.script, name, "--dir", s.state.Dir}, args...)
	out, err := exec.CommandContext(ctx, "python3", argv...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("lab: %s %s: %w: %s", name, strings.Join(args, " "), err, tail(out, 2000))
	}
	return nil
}

// Root returns the directory of the project's source, found from the working directory upwards.
func Root() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if raw, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil &&
			bytes.HasPrefix(raw, []byte("module github.com/matrix-mls/matrix-mls\n")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("lab: %s is not inside the project's source, where homeservers.py is", wd)
		}
	}
}

func scriptPath() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "lab", "homeservers.py"), nil
}

// CacheDir is where installed programs are kept.
func CacheDir() (string, error) {
	if d := os.Getenv("MLS_CACHE"); d != "" {
		return d, nil
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	return filepath.Join(d, "matrix-mls"), nil
}
