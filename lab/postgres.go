package lab

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lib/pq" // the driver
)

// shared is the cluster of this process, which all its tests use. It ends with the process.
var shared struct {
	once    sync.Once
	servers *Servers
	err     error
	count   atomic.Uint64
}

// Postgres returns the address (a lib/pq URL) of a fresh, empty database, which is dropped at the end of the test.
// The first call in a process starts a private PostgreSQL cluster, after installing PostgreSQL if need be.
func Postgres(t TB) string {
	t.Helper()
	skipIfShort(t)
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		dir, err := os.MkdirTemp("", "matrix-mls-postgres-")
		if err == nil {
			err = os.Chmod(dir, 0o711)
		}
		if err == nil {
			shared.servers, err = start(ctx, Options{Postgres: true, Dir: dir}, "--wipe")
		}
		shared.err = err
	})
	if shared.err != nil {
		t.Fatalf("lab: no PostgreSQL for the test: %v", shared.err)
	}
	name := fmt.Sprintf("test_%d", shared.count.Add(1))
	dsn, err := shared.servers.CreateDatabase(t.Context(), name)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := shared.servers.admin(context.Background(), "drop database "+pq.QuoteIdentifier(name)+" with (force)"); err != nil {
			t.Errorf("lab: drop the test's database: %v", err)
		}
	})
	return dsn
}

// PostgresURL is the address of a database in the run's cluster.
func (s *Servers) PostgresURL(database string) (string, error) {
	p := s.state.Postgres
	if p == nil {
		return "", errors.New("lab: this run has no PostgreSQL; set Options.Postgres")
	}
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", p.Role, p.Port, database), nil
}

// CreateDatabase makes an empty database in the run's cluster and returns its address.
func (s *Servers) CreateDatabase(ctx context.Context, name string) (string, error) {
	dsn, err := s.PostgresURL(name)
	if err != nil {
		return "", err
	}
	stmt := "create database " + pq.QuoteIdentifier(name) + " template template0 encoding 'UTF8' lc_collate 'C' lc_ctype 'C'"
	if err := s.admin(ctx, stmt); err != nil {
		return "", fmt.Errorf("lab: create database %s: %w", name, err)
	}
	return dsn, nil
}

func (s *Servers) admin(ctx context.Context, stmt string) error {
	dsn, err := s.PostgresURL("postgres")
	if err != nil {
		return err
	}
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, stmt)
	return errors.Join(err, db.Close())
}

// Dump writes everything that the run's PostgreSQL cluster holds, as text, to a file, all databases together. bytea
// columns appear in hex there.
func (s *Servers) Dump(ctx context.Context, path string) error {
	p := s.state.Postgres
	if p == nil {
		return errors.New("lab: this run has no PostgreSQL")
	}
	program, err := postgresProgram("pg_dumpall")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "-h", "127.0.0.1", "-p", fmt.Sprint(p.Port), "-U", p.Role, "-f", path)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("lab: dump PostgreSQL: %w: %s", err, tail(out, 2000))
	}
	return nil
}

// postgresProgram finds a program of the newest installed PostgreSQL; Debian keeps them off PATH.
func postgresProgram(name string) (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if err == nil && len(found) > 0 {
		version := func(path string) int {
			var n int
			fmt.Sscan(strings.Split(path, "/")[4], &n)
			return n
		}
		sort.Slice(found, func(i, j int) bool { return version(found[i]) < version(found[j]) })
		return found[len(found)-1], nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("lab: %s is not installed: %w", name, err)
	}
	return path, nil
}

// HasPostgres reports whether the run has a PostgreSQL cluster.
func (s *Servers) HasPostgres() bool { return s.state.Postgres != nil }

// ResetDatabase replaces a database of the run's cluster by an empty one.
func (s *Servers) ResetDatabase(ctx context.Context, name string) error {
	if err := s.admin(ctx, "drop database "+pq.QuoteIdentifier(name)+" with (force)"); err != nil {
		return fmt.Errorf("lab: drop database %s: %w", name, err)
	}
	_, err := s.CreateDatabase(ctx, name)
	return err
}

// Standby starts a second PostgreSQL that follows the run's cluster, which from then on answers a commit only once the
// follower has it (with [Options.DurablePostgres]; a careless one waits for nobody). It returns the ports of both. The
// follower is a program of the run, NAME-server.
func (s *Servers) Standby(ctx context.Context, name string) (ports [2]int, err error) {
	p := s.state.Postgres
	if p == nil {
		return ports, errors.New("lab: this run has no PostgreSQL; set Options.Postgres")
	}
	ports = [2]int{p.Port, p.Port + 10} // the next port of the run's block that no server has
	backup, err := postgresProgram("pg_basebackup")
	if err != nil {
		return ports, err
	}
	server, err := postgresProgram("postgres")
	if err != nil {
		return ports, err
	}
	dir := filepath.Join(s.state.Dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return ports, fmt.Errorf("lab: follower: %w", err)
	}
	var pre []string
	if os.Geteuid() == 0 { // PostgreSQL refuses to run as root
		pre = []string{"setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"}
		if out, err := exec.CommandContext(ctx, "chown", "nobody:nogroup", dir).CombinedOutput(); err != nil {
			return ports, fmt.Errorf("lab: follower: %w: %s", err, tail(out, 2000))
		}
	}
	argv := slices.Concat(pre, []string{backup, "-h", "127.0.0.1", "-p", fmt.Sprint(p.Port), "-U", p.Role, "-D", dir, "-R", "-X", "stream", "-c", "fast", "--no-sync"})
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		return ports, fmt.Errorf("lab: copy PostgreSQL for a follower: %w: %s", err, tail(out, 2000))
	}
	if err := s.Spawn(ctx, name+"-server", slices.Concat(pre, []string{server, "-D", dir, "-p", fmt.Sprint(ports[1]), "-h", "127.0.0.1", "-k", "", "-c", "max_connections=300"})...); err != nil {
		return ports, err
	}
	for _, stmt := range []string{"alter system set synchronous_standby_names = '*'", "select pg_reload_conf()"} {
		if err := s.admin(ctx, stmt); err != nil {
			return ports, fmt.Errorf("lab: follower: %w", err)
		}
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; {
		var n int
		if err := s.ask(ctx, "select count(*) from pg_stat_replication where sync_state = 'sync'", &n); err != nil {
			return ports, fmt.Errorf("lab: follower: %w", err)
		}
		if n > 0 {
			return ports, nil
		}
		if time.Now().After(deadline) {
			return ports, fmt.Errorf("lab: the PostgreSQL %s does not follow; see %s.log in %s", name, name+"-server", s.state.Dir)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ports, ctx.Err()
		}
	}
}

func (s *Servers) ask(ctx context.Context, query string, to any) error {
	dsn, err := s.PostgresURL("postgres")
	if err != nil {
		return err
	}
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		return err
	}
	return errors.Join(db.QueryRowContext(ctx, query).Scan(to), db.Close())
}
