package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/store"
)

// progressEvery is how often long work says how far it is.
const progressEvery = 10 * time.Second

// progress returns a function that tells now and then how many rows are done.
func progress(env Env, what string) func(int64) {
	last := time.Now()
	return func(rows int64) {
		if rows%1000 == 0 && time.Since(last) >= progressEvery {
			last = time.Now()
			fmt.Fprintf(env.Stderr, "matrix-mls: %s %d rows so far\n", what, rows)
		}
	}
}

func openForBackup(ctx context.Context, cfg *config.Config) (*store.Store, error) {
	return store.Open(ctx, store.Config{Type: cfg.Database.Type, URI: cfg.Database.URI, MaxOpenConns: cfg.Database.MaxOpenConns}, time.Now)
}

// runBackup writes the database and the configuration into a file that its owner
// alone can read. The module may run.
func runBackup(ctx context.Context, env Env, o options) (err error) {
	if o.file == "" {
		return usagef("backup needs the name of the file to write")
	}
	loaded, err := config.Load(o.config, config.Options{NoUpdate: true, Environ: env.Environ})
	if err != nil {
		return err
	}
	text, err := os.ReadFile(o.config)
	if err != nil {
		return err
	}
	if loaded.Database.Type != "postgres" {
		if _, err := os.Stat(store.SQLitePath(loaded.Database.URI)); err != nil {
			return &failure{BadDatabase, fmt.Errorf("there is no database to back up: %w", err), "is this the configuration that the module runs with (-c)?"}
		}
	}
	if _, err := os.Lstat(o.file); err == nil {
		return &failure{Conflict, fmt.Errorf("%s exists already", o.file), "name a new file"}
	}
	st, err := openForBackup(ctx, loaded.Config)
	if err != nil {
		return err
	}
	defer st.Close()
	path, err := filepath.Abs(o.config)
	if err != nil {
		return err
	}
	part := o.file + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(part)
		}
	}()
	if err = f.Chmod(0o600); err != nil {
		return err
	}
	rows, err := st.Backup(ctx, f, store.BackupHeader{
		Version: env.Version, Server: loaded.Homeserver.Domain, ConfigPath: path, Config: string(text),
	}, progress(env, "wrote"))
	if err != nil {
		return err
	}
	if err = errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(part, o.file); err != nil {
		return err
	}
	size := int64(0)
	if info, statErr := os.Stat(o.file); statErr == nil {
		size = info.Size()
	}
	fmt.Fprintf(env.Stdout, "wrote %s: %d rows, %d bytes\n", o.file, rows, size)
	fmt.Fprintln(env.Stdout, "it holds the module's keys and tokens: keep it as safe as the database")
	return nil
}

// runRestore reads a backup into an empty database, and writes the configuration
// where there is none.
func runRestore(ctx context.Context, env Env, o options) error {
	if o.file == "" {
		return usagef("restore needs the name of a backup")
	}
	f, err := os.Open(o.file)
	if err != nil {
		return err
	}
	defer f.Close()
	header, rows, err := store.ReadBackupHeader(f) // all of it, before anything is touched
	if err != nil {
		return err
	}
	if _, err := os.Lstat(o.config); errors.Is(err, os.ErrNotExist) {
		if header.Config == "" {
			return &failure{BadConfig, fmt.Errorf("there is no %s, and the backup holds none", o.config), "run `matrix-mls setup` first, or name the file with -c"}
		}
		text, moved, err := besideConfig(o.config, header)
		if err != nil {
			return err
		}
		if err := config.WriteFile(o.config, text, 0o600); err != nil {
			return fmt.Errorf("cannot write the configuration: %w", err)
		}
		fmt.Fprintf(env.Stdout, "wrote %s, as it was at %s\n", o.config, header.ConfigPath)
		if moved != "" {
			fmt.Fprintf(env.Stdout, "but for database.uri, which is %s: the folder is another, and the old database stays as it is\n", moved)
		}
	}
	loaded, err := config.Load(o.config, config.Options{NoUpdate: true, Environ: env.Environ})
	if err != nil {
		return err
	}
	if header.Server != loaded.Homeserver.Domain {
		return &failure{Conflict, fmt.Errorf("the backup is of the module of %s, the configuration of %s", header.Server, loaded.Homeserver.Domain), "name the right file, or the right configuration with -c"}
	}
	st, err := openForBackup(ctx, loaded.Config)
	if err != nil {
		return err
	}
	defer st.Close()
	if err := st.Upgrade(ctx); err != nil {
		return err
	}
	if _, err := f.Seek(0, 0); err != nil {
		return err
	}
	if _, err := st.Restore(ctx, f, progress(env, "read")); err != nil {
		return err
	}
	fmt.Fprintf(env.Stdout, "read %d rows of %s, made %s by matrix-mls %s\n", rows, o.file, header.Made.Format(time.RFC3339), header.Version)
	fmt.Fprintln(env.Stdout, "see that the old module does not run any more, then start this one. It compares every room before it signs;")
	fmt.Fprintln(env.Stdout, "where a room went on since the backup, it announces a new key for an admin to accept (`matrix-mls doctor` lists them)")
	return nil
}

// besideConfig is the configuration of a backup for path. In another folder than
// the backup's, an SQLite database with a full path goes into that folder: a copy
// of an installation must not fill, or work on, the database of the first.
func besideConfig(path string, header *store.BackupHeader) (text []byte, moved string, err error) {
	text = []byte(header.Config)
	if path, err = filepath.Abs(path); err != nil {
		return nil, "", err
	}
	old, err := config.Parse(path, text)
	if err != nil || filepath.Dir(path) == filepath.Dir(header.ConfigPath) || old.Database.Type == "postgres" {
		return text, "", err
	}
	file := store.SQLitePath(old.Database.URI)
	if !filepath.IsAbs(file) {
		return text, "", nil
	}
	moved = filepath.Join(filepath.Dir(path), filepath.Base(file))
	text, err = config.Render(text, map[string]string{"database.uri": moved})
	return text, moved, err
}
