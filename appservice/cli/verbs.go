package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice"
	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/doctor"
	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/setup"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/internal/memory"
)

// writeExample writes the example configuration where there is none.
func writeExample(env Env, o options) error {
	f, err := os.OpenFile(o.config, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return &failure{Conflict, fmt.Errorf("%s exists already", o.config), "name another file with -c, or move the old one away"}
	}
	if err != nil {
		return err
	}
	_, err = f.Write(config.Example())
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		fmt.Fprintf(env.Stdout, "wrote %s\n", o.config)
	}
	return err
}

// generate writes the registration of a configuration, drawing the tokens that
// it lacks.
func generate(env Env, o options) error {
	loaded, err := config.Load(o.config, config.Options{NoUpdate: true, Incomplete: true, Environ: env.Environ})
	if err != nil {
		return err
	}
	set := make(map[string]string)
	for key, have := range map[string]string{"appservice.as_token": loaded.AppService.ASToken, "appservice.hs_token": loaded.AppService.HSToken} {
		if have == "" || have == config.Ungenerated {
			if set[key], err = setup.Token(); err != nil {
				return err
			}
		}
	}
	if len(set) > 0 {
		if o.noUpd {
			return &failure{BadConfig, errors.New("the tokens are not generated and -n forbids writing them"), "leave out -n once"}
		}
		old, err := os.ReadFile(o.config)
		if err != nil {
			return err
		}
		text, err := config.Render(old, set)
		if err != nil {
			return err
		}
		if err := config.WriteFile(o.config, text, 0o600); err != nil {
			return err
		}
		fmt.Fprintf(env.Stdout, "drew the tokens, wrote %s\n", o.config)
	}
	if loaded, err = config.Load(o.config, config.Options{NoUpdate: true, Environ: env.Environ}); err != nil {
		return err
	}
	word, err := setup.WriteRegistration(o.registration, loaded.Config)
	if err != nil {
		return err
	}
	path, err := filepath.Abs(o.registration)
	if err != nil {
		return err
	}
	fmt.Fprintf(env.Stdout, "%s (%s)\n", path, word)
	if word != "kept" {
		fmt.Fprintln(env.Stdout, "restart the homeserver so that it loads the registration")
	}
	return nil
}

func runSetup(ctx context.Context, env Env, o options) error {
	if o.setup.HomeserverConfig == "" {
		return usagef("setup needs --homeserver-config")
	}
	o.setup.Config, o.setup.Registration, o.setup.Out, o.setup.Environ = o.config, o.registration, env.Stdout, env.Environ
	res, err := setup.Run(ctx, o.setup)
	if err != nil {
		return err
	}
	fmt.Fprintln(env.Stdout)
	step := 1
	if res.LineToAdd != "" {
		fmt.Fprintf(env.Stdout, "%d. add to %s:\n\n%s\n", step, res.Homeserver.Path, res.LineToAdd)
		step++
	}
	switch {
	case res.Edited || res.LineToAdd != "" || res.Registered:
		fmt.Fprintf(env.Stdout, "%d. restart the homeserver\n", step)
	default:
		fmt.Fprintf(env.Stdout, "%d. restart the homeserver, if it was not restarted since the registration was written\n", step)
	}
	step++
	again := ""
	if len(res.Changed) > 0 {
		again = " (end it first, if it runs)"
	}
	fmt.Fprintf(env.Stdout, "%d. start the module: matrix-mls -c %s%s\n", step, o.config, again)
	fmt.Fprintf(env.Stdout, "%d. check it: matrix-mls doctor -c %s -r %s\n", step+1, o.config, o.registration)
	return nil
}

func runDoctor(ctx context.Context, env Env, o options) error {
	report := doctor.Run(ctx, doctor.Options{Config: o.config, Registration: o.registration, Environ: env.Environ, Version: env.Version})
	var err error
	if o.json {
		err = report.WriteJSON(env.Stdout)
	} else {
		err = report.WriteText(env.Stdout, colourful(env))
	}
	if err != nil {
		return err
	}
	if report.Stopped && !report.Failed() {
		return &failure{Failed, errors.New("doctor was stopped before it was done"), ""}
	}
	if report.Failed() {
		return &failure{Unhealthy, fmt.Errorf("%d of %d probes failed", report.Count(doctor.Fail), len(report.Results)), "mend the first that failed, the others may rest on it"}
	}
	return nil
}

// colourful tells whether colours are wanted: on a terminal, unless NO_COLOR.
func colourful(env Env) bool {
	if slices.ContainsFunc(env.Environ, func(e string) bool { return len(e) > 9 && e[:9] == "NO_COLOR=" }) {
		return false
	}
	f, ok := env.Stdout.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// serve runs the module until ctx ends.
func serve(ctx context.Context, env Env, o options) error {
	loaded, err := config.Load(o.config, config.Options{NoUpdate: o.noUpd, Environ: env.Environ})
	if err != nil {
		return err
	}
	cfg := loaded.Config
	compiled, err := cfg.Logging.Compile()
	if err != nil {
		return &failure{BadConfig, fmt.Errorf("config: %s: logging: %w", o.config, err), "correct the log writers"}
	}
	log := compiled.Level(cfg.Level())
	log.Info().Str("version", env.Version).Str("config", loaded.Path).Strs("from_environment", loaded.FromEnv).Msg("Starting")
	if loaded.Updated {
		log.Info().Str("old_file", loaded.Backup).Msg("Added new keys to the configuration")
	}
	ctx = log.WithContext(ctx)
	st, err := openStore(ctx, cfg, log)
	if ctx.Err() != nil {
		return nil // stopped while it stood by
	}
	if err != nil {
		return err
	}
	defer st.Close()
	m := metrics.New(env.Version)
	hs, err := homeserver.New(homeserver.Options{
		Address: cfg.Homeserver.Address, Domain: cfg.Homeserver.Domain, Registration: setup.Registration(cfg),
		Software: homeserver.Software(cfg.Homeserver.Software), DeviceID: id.DeviceID(cfg.AppService.Bot.DeviceID),
		Timeout: cfg.Homeserver.RequestTimeout.D(), Observe: observer(m),
	})
	if err != nil {
		return err
	}
	service, err := appservice.New(ctx, appservice.Options{
		Config: cfg, Store: st, Homeserver: hs, Metrics: m, Log: log, Version: env.Version, Getenv: getenv(env.Environ),
	})
	if err != nil {
		return err
	}
	resting, stop := context.WithCancel(ctx)
	defer stop()
	go memory.ReturnIdle(resting)
	defer memory.Bound(mostMemory)()
	if err := service.Run(ctx); err != nil {
		return err
	}
	log.Info().Msg("Stopped")
	return nil
}

// mostMemory is from how many bytes on a module collects earlier: with them, what the program itself takes, and SQLite's
// caches, one with 1,000 rooms of 50 members has less than 128 MiB (docs/scale.md).
const mostMemory = 88 << 20

// openStore opens the database and brings its schema up to date. Before a
// change of schema the SQLite file is copied.
func openStore(ctx context.Context, cfg *config.Config, log zerolog.Logger) (*store.Store, error) {
	st, err := store.Open(ctx, store.Config{Type: cfg.Database.Type, URI: cfg.Database.URI, MaxOpenConns: cfg.Database.MaxOpenConns}, time.Now)
	if err != nil {
		return nil, err
	}
	st.SetLogger(log)
	// Not before this process is the one that works: an older one may run.
	if err := appservice.StandBy(ctx, cfg, st, log); err != nil {
		_ = st.Close()
		return nil, err
	}
	version, err := st.Version(ctx)
	if err == nil && version > 0 && version < store.SchemaVersion() {
		var copied string
		if copied, err = st.CopyBeforeUpgrade(ctx, version); err == nil && copied != "" {
			log.Info().Str("file", copied).Msg("Copied the database before its schema changes")
		}
	}
	if err == nil {
		err = st.Upgrade(ctx)
	}
	if err != nil {
		_ = st.Close()
		return nil, err
	}
	return st, nil
}

// observer counts requests to the homeserver.
func observer(m *metrics.Metrics) func(string, time.Duration, error) {
	return func(op string, took time.Duration, err error) {
		result := "ok"
		var he *homeserver.Error
		switch {
		case errors.As(err, &he):
			result = he.Kind.Error()
		case err != nil:
			result = "failed"
		}
		m.Observe(metrics.RequestSeconds, took.Seconds(), op, result)
	}
}

func getenv(environ []string) func(string) string {
	return func(name string) string {
		for _, e := range environ {
			if len(e) > len(name) && e[:len(name)] == name && e[len(name)] == '=' {
				return e[len(name)+1:]
			}
		}
		return ""
	}
}
