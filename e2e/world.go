package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/matrix-mls/matrix-mls/lab"
)

// Options says what a World consists of.
type Options struct {
	lab.Options

	// ModulePostgres lets the modules keep their data in PostgreSQL instead of SQLite.
	ModulePostgres bool
	// WithoutModule names servers that run no module.
	WithoutModule []string
	// Bin is a directory with built programs (matrix-mls); empty: they are built into the work directory.
	Bin string
	// CrashPoints builds the modules so that they can be killed between any two writes; see [World.CrashAt].
	CrashPoints bool
	// ModuleSettings are environment variables for the modules, which override their configuration.
	ModuleSettings map[string]string
	// Record keeps what is said at the servers' side; see [Wire]. It needs Linux and root, and does nothing without.
	Record bool
	// Progress is told what goes on; nil: nobody.
	Progress func(format string, args ...any)
}

// World is a run with modules.
type World struct {
	*lab.Servers
	modules map[string]*Module
	bin     string
	began   time.Time
	wire    *Wire
}

// Since is the clock of the devices' journals.
func (w *World) Since() time.Duration { return time.Since(w.began) }

// clock returns when that clock began: now, unless a program before this one has written it down, or one beside it.
func (w *World) clock(now time.Time) (time.Time, error) {
	path := filepath.Join(w.Dir(), "began")
	raw, err := os.ReadFile(path)
	if err == nil {
		var began time.Time
		if err := began.UnmarshalText(raw); err != nil {
			return now, fmt.Errorf("e2e: %s does not say when the world began: %w", path, err)
		}
		return began, nil
	}
	if raw, err = now.MarshalText(); err == nil {
		err = os.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		return now, fmt.Errorf("e2e: write down when the world began: %w", err)
	}
	return now, nil
}

// Module is the module of one server.
type Module struct {
	Name         string // of the process, for Servers.Stop and its like
	Dir          string
	Config       string
	Registration string
	URL          string // its own HTTP address
	Database     string // a PostgreSQL address, or empty: SQLite below Dir
}

// Start brings up homeservers and modules the way an admin does: the homeserver runs, `matrix-mls setup` writes
// configuration and registration, the homeserver is restarted with the registration, `matrix-mls serve` runs.
// The caller must Close the result.
func Start(ctx context.Context, o Options) (*World, error) {
	say := o.Progress
	if say == nil {
		say = func(string, ...any) {}
	}
	if o.ModulePostgres {
		o.Options.Postgres = true
	}
	say("starting %d Synapse and %d Dendrite", o.Synapse, o.Dendrite)
	hs, err := lab.Start(ctx, o.Options)
	if err != nil {
		return nil, err
	}
	w := &World{Servers: hs, modules: map[string]*Module{}, bin: o.Bin}
	if w.began, err = w.clock(time.Now()); err == nil && o.Record && os.Geteuid() == 0 && runtime.GOOS == "linux" {
		err = w.recordWire()
	}
	if err == nil {
		err = w.startModules(ctx, o, say)
	}
	if err != nil {
		return nil, errors.Join(err, w.giveUp(o))
	}
	return w, nil
}

// Close ends the recording of the wire, and everything else.
func (w *World) Close() error {
	var err error
	if w.wire != nil {
		err = w.wire.Close()
		w.wire = nil
	}
	return errors.Join(err, w.Servers.Close())
}

// giveUp ends a run that did not come up, leaving its logs where a detached one was asked for.
func (w *World) giveUp(o Options) error {
	if !o.Detach {
		return w.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return w.Down(ctx, false)
}

// Attach returns the world that was started in dir, by a program that left it with Detach, or that still runs and has this
// one do a part.
func Attach(dir string) (*World, error) {
	hs, err := lab.Attach(dir)
	if err != nil {
		return nil, err
	}
	w := &World{Servers: hs, modules: map[string]*Module{}}
	if w.began, err = w.clock(time.Now()); err != nil {
		return nil, err
	}
	for _, s := range hs.All() {
		m := w.module(s)
		if _, err := os.Stat(m.Config); err == nil {
			w.modules[s.Name] = m
		}
	}
	return w, nil
}

func (w *World) module(s *lab.Server) *Module {
	dir := filepath.Join(w.Dir(), "module-"+s.Name)
	return &Module{Name: "module-" + s.Name, Dir: dir, Config: filepath.Join(dir, "config.yaml"),
		Registration: filepath.Join(dir, "registration.yaml"), URL: fmt.Sprintf("http://127.0.0.1:%d", s.SparePorts[0])}
}

func (w *World) startModules(ctx context.Context, o Options, say func(string, ...any)) error {
	if w.bin != "" {
		var err error
		if w.bin, err = filepath.Abs(w.bin); err != nil {
			return fmt.Errorf("e2e: %w", err)
		}
	} else {
		w.bin = filepath.Join(w.Dir(), "bin")
		say("building the module")
		tags := "goolm"
		if o.CrashPoints {
			tags += ",crashpoints"
		}
		if err := build(ctx, w.bin, "-tags="+tags, "./cmd/matrix-mls"); err != nil {
			return err
		}
	}
	var changed []string
	for _, s := range w.All() {
		if slices.Contains(o.WithoutModule, s.Name) {
			continue
		}
		m := w.module(s)
		if err := os.MkdirAll(m.Dir, 0o755); err != nil {
			return fmt.Errorf("e2e: %w", err)
		}
		if o.ModulePostgres {
			var err error
			if m.Database, err = w.CreateDatabase(ctx, "module_"+s.Name); err != nil {
				return err
			}
		}
		say("matrix-mls setup on %s, whose configuration it edits", s.Name)
		if err := w.setup(ctx, s, m); err != nil {
			return err
		}
		w.modules[s.Name] = m
		changed = append(changed, s.Name)
	}
	if len(changed) == 0 {
		return nil
	}
	say("restarting the homeservers, so that they load the registrations")
	if err := w.Stop(ctx, changed...); err != nil {
		return err
	}
	if err := w.Servers.Start(ctx, changed...); err != nil {
		return err
	}
	for _, name := range changed {
		m := w.modules[name]
		argv := []string{"env", "MLSTEST_CRASH_POINTS=" + m.crashFile()}
		for _, k := range slices.Sorted(maps.Keys(o.ModuleSettings)) {
			argv = append(argv, k+"="+o.ModuleSettings[k])
		}
		argv = append(argv, filepath.Join(w.bin, "matrix-mls"), "serve", "-c", m.Config)
		if err := w.Spawn(ctx, m.Name, argv...); err != nil {
			return err
		}
	}
	say("waiting until the modules are ready")
	for _, name := range changed {
		if err := w.waitReady(ctx, w.modules[name]); err != nil {
			return err
		}
	}
	return nil
}

// setup runs the module's own setup against the homeserver's configuration file, which names the registration then.
func (w *World) setup(ctx context.Context, s *lab.Server, m *Module) error {
	args := []string{"setup", "--homeserver-config", s.Config, "--homeserver-address", s.BaseURL,
		"--listen", strings.TrimPrefix(m.URL, "http://"), "-c", m.Config, "-r", m.Registration}
	if m.Database != "" {
		args = append(args, "--database", m.Database)
	}
	_, err := w.runModule(ctx, m, args...)
	return err
}

// Doctor runs the module's doctor on a server's installation and returns its report. It fails when a probe fails.
func (w *World) Doctor(ctx context.Context, server string) (string, error) {
	m := w.modules[server]
	return w.runModule(ctx, m, "doctor", "-c", m.Config, "-r", m.Registration)
}

func (w *World) runModule(ctx context.Context, m *Module, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(w.bin, "matrix-mls"), args...)
	cmd.Dir = m.Dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("e2e: matrix-mls %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// waitReady asks the module's ready endpoint until it says yes.
func (w *World) waitReady(ctx context.Context, m *Module) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		last := get(ctx, m.URL+"/_matrix/mau/ready")
		if last == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(w.Dir(), m.Name+".log"))
			return fmt.Errorf("e2e: the module %s is not ready: %w; its log ends with: %s", m.Name, last, log[max(0, len(log)-2000):])
		}
	}
}

var plain = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := plain.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	return err
}

// build compiles programs of the project into dir, with the race detector when this program has it. Arguments are those
// of go build.
func build(ctx context.Context, dir string, arguments ...string) error {
	root, err := lab.Root()
	if err != nil {
		return err
	}
	args := []string{"build", "-o", dir + string(filepath.Separator)}
	if raceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, arguments...)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("e2e: build %s: %w: %s", strings.Join(arguments, " "), err, out)
	}
	return nil
}

// Module returns the module of a server, nil when it has none.
func (w *World) Module(server string) *Module { return w.modules[server] }

// RestartModule stops a module, in the orderly way or not, and starts it again.
func (w *World) RestartModule(ctx context.Context, server string, kill bool) error {
	m := w.modules[server]
	end := w.Stop
	if kill {
		end = w.Kill
	}
	if err := end(ctx, m.Name); err != nil {
		return err
	}
	return w.StartModule(ctx, server)
}

// StartModule starts a stopped module again and waits until it is ready.
func (w *World) StartModule(ctx context.Context, server string) error {
	m := w.modules[server]
	if err := w.Servers.Start(ctx, m.Name); err != nil {
		return err
	}
	return w.waitReady(ctx, m)
}

// SpawnModule starts one more process of a module, on its database and with its configuration, but at an address of its own,
// which it returns. The process is ended together with the world, and before by its name.
func (w *World) SpawnModule(ctx context.Context, server, process string, spare int) (url string, err error) {
	port := w.Server(server).SparePorts[spare]
	err = w.Spawn(ctx, process, "env", fmt.Sprintf("MATRIX_MLS_APPSERVICE_PORT=%d", port), filepath.Join(w.bin, "matrix-mls"), "serve", "-n", "-c", w.modules[server].Config)
	return fmt.Sprintf("http://127.0.0.1:%d", port), err
}

// Program is the path of a program that was built for the world.
func (w *World) Program(name string) string { return filepath.Join(w.bin, name) }

func (m *Module) crashFile() string { return filepath.Join(m.Dir, "crash-points") }

// CrashAt lets a module of a world with CrashPoints end with SIGKILL when it comes to each of these points, once.
func (w *World) CrashAt(server string, points ...string) error {
	path := w.modules[server].crashFile()
	err := os.WriteFile(path+".new", []byte(strings.Join(points, "\n")), 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("e2e: %w", err)
	}
	return nil
}

// CrashPointsLeft returns the points that a module has not come to.
func (w *World) CrashPointsLeft(server string) ([]string, error) {
	raw, err := os.ReadFile(w.modules[server].crashFile())
	if err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	return strings.Fields(string(raw)), nil
}

// Answers tells whether a module's process is there, ready or not.
func (w *World) Answers(ctx context.Context, server string) bool {
	err := get(ctx, w.modules[server].URL+"/_matrix/mau/live")
	return !errors.Is(err, syscall.ECONNREFUSED)
}

// LoseModuleDatabase stops a module and deletes what it remembers, as a broken disk does. Its configuration and
// registration stay.
func (w *World) LoseModuleDatabase(ctx context.Context, server string) error {
	m := w.modules[server]
	if err := w.Stop(ctx, m.Name); err != nil {
		return err
	}
	if m.Database != "" {
		return w.ResetDatabase(ctx, "module_"+server)
	}
	return m.removeDatabase()
}

// CopyModuleDatabase copies what a module remembers, while it is stopped. What it returns puts the old copy back, while the
// module is stopped again, as somebody does who restores files instead of a backup. For modules with SQLite.
func (w *World) CopyModuleDatabase(server string) (putBack func() error, err error) {
	files, err := w.modules[server].databases()
	if err != nil {
		return nil, err
	}
	old := map[string][]byte{}
	for _, f := range files {
		if old[f], err = os.ReadFile(f); err != nil {
			return nil, fmt.Errorf("e2e: %w", err)
		}
	}
	return func() error {
		if err := w.modules[server].removeDatabase(); err != nil {
			return err
		}
		for f, raw := range old {
			if err := os.WriteFile(f, raw, 0o600); err != nil {
				return fmt.Errorf("e2e: %w", err)
			}
		}
		return nil
	}, nil
}

// databases are the files of a module's SQLite database.
func (m *Module) databases() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(m.Dir, "*.db*"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("e2e: there is no database of %s (%v)", m.Name, err)
	}
	return files, nil
}

func (m *Module) removeDatabase() error {
	files, err := m.databases()
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("e2e: %w", err)
		}
	}
	return nil
}

// Metrics returns what the Prometheus endpoint of a module shows.
func (w *World) Metrics(ctx context.Context, server string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.modules[server].URL+"/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := plain.Do(req)
	if err != nil {
		return "", fmt.Errorf("e2e: metrics of %s: %w", server, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return string(body), err
}
