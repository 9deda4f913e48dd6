package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	matrixmls "github.com/matrix-mls/matrix-mls"
)

// valid is the example with what every installation has to set.
func valid(t *testing.T) string {
	t.Helper()
	out, err := Render([]byte(matrixmls.ExampleConfig), map[string]string{
		"homeserver.domain":   "mls.test",
		"appservice.as_token": "as-token-0123456789",
		"appservice.hs_token": "hs-token-0123456789",
		"database.uri":        "/var/lib/matrix-mls/matrix-mls.db",
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExampleDocumentsEveryKey(t *testing.T) {
	root, err := parse("config.example.yaml", []byte(matrixmls.ExampleConfig))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range Keys() {
		if find(root, strings.Split(key, ".")) == nil {
			t.Errorf("config.example.yaml lacks the key %s", key)
		}
	}
	for i, line := range strings.Split(matrixmls.ExampleConfig, "\n") {
		if len(line) > 140 {
			t.Errorf("config.example.yaml:%d is %d characters long", i+1, len(line))
		}
	}
}

func TestExampleIsStableUnderUpgrade(t *testing.T) {
	path := write(t, valid(t))
	before, _ := os.ReadFile(path)
	loaded, err := Load(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(path)
	if loaded.Updated {
		t.Errorf("a current configuration was rewritten:\n%s", cmp.Diff(string(before), string(after)))
	}
	if got := loaded.Homeserver.RequestTimeout.D(); got != time.Minute {
		t.Errorf("request_timeout = %v, want 1m", got)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, row := range map[string]struct {
		change func(string) string
		want   []string // parts of the error
	}{
		"unknown key": {
			func(s string) string { return strings.Replace(s, "    domain:", "    domian: x\n    domain:", 1) },
			[]string{"config.yaml:", "homeserver.domian", "unknown key", "did you mean domain?"},
		},
		"unknown section": {
			func(s string) string { return s + "\nbridge:\n    x: 1\n" },
			[]string{"bridge: unknown key"},
		},
		"unknown key below logging": {
			func(s string) string { return strings.Replace(s, "    min_level: info", "    min_levle: info", 1) },
			[]string{"logging:", "min_levle"},
		},
		"key set twice": {
			func(s string) string { return strings.Replace(s, "    domain:", "    domain: x\n    domain:", 1) },
			[]string{"homeserver.domain", "set already in line"},
		},
		"no YAML": {
			func(s string) string { return s + "\n\t- x" },
			[]string{"is no valid YAML", "line"},
		},
		"not a mapping": {
			func(string) string { return "- a\n- b\n" },
			[]string{"config.yaml:1", "must be a mapping"},
		},
		"section is a text": {
			func(s string) string { return "homeserver: x\n" },
			[]string{"config.yaml:1: homeserver: must be a mapping of keys"},
		},
		"bad duration": {
			func(s string) string { return strings.Replace(s, "gap_check: 5m", "gap_check: often", 1) },
			[]string{"rooms.gap_check", "must be a duration such as"},
		},
		"number too large for a port": {
			func(s string) string { return strings.Replace(s, "port: 29380", "port: 70000", 1) },
			[]string{"appservice.port", "0 to 65535"},
		},
		"text for a number": {
			func(s string) string { return strings.Replace(s, "leaves: 20000", "leaves: many", 1) },
			[]string{"limits.leaves: must be a whole number"},
		},
		"impossible limit": {
			func(s string) string { return strings.Replace(s, "parallel: 4", "parallel: 0", 1) },
			[]string{"outbox.parallel: must be from 1 to 64"},
		},
		"example domain": {
			func(s string) string { return strings.Replace(s, "mls.test", "example.org", 1) },
			[]string{"homeserver.domain: is still the example's"},
		},
		"token not generated": {
			func(s string) string { return strings.Replace(s, "as-token-0123456789", Ungenerated, 1) },
			[]string{"appservice.as_token: is not generated yet", "matrix-mls setup"},
		},
		"address without scheme": {
			func(s string) string { return strings.Replace(s, "http://127.0.0.1:8008", "127.0.0.1:8008", 1) },
			[]string{"homeserver.address"},
		},
		"bad bot name": {
			func(s string) string { return strings.Replace(s, "username: _mls_bot", "username: '@MLS:x'", 1) },
			[]string{"appservice.bot.username"},
		},
		"unknown database": {
			func(s string) string { return strings.Replace(s, "type: sqlite3", "type: mysql", 1) },
			[]string{"database.type: must be sqlite3 or postgres"},
		},
		"PostgreSQL's address of an SQLite database": {
			func(s string) string { return withDatabase(s, "sqlite3", "postgres://mls:0123456789@db/mls") },
			[]string{"database.type: is sqlite3", "database.uri is a PostgreSQL address", "set it to postgres"},
		},
		"PostgreSQL's words of an SQLite database": {
			func(s string) string { return withDatabase(s, "sqlite3", "host=db user=mls password=0123456789") },
			[]string{"database.type: is sqlite3", "set it to postgres"},
		},
		"a file name of a PostgreSQL database": {
			func(s string) string { return withDatabase(s, "postgres", "matrix-mls.db") },
			[]string{"database.uri: is no PostgreSQL address", "postgres://user:password@host/database"},
		},
		"PostgreSQL's address in capitals": {
			func(s string) string {
				return withDatabase(s, "postgres", "Postgres://mls:0123456789@db/mls?sslmode=disable")
			},
			[]string{"database.uri: is no PostgreSQL address", "postgres://user:password@host/database"},
		},
		"PostgreSQL's hosts with a port each": {
			func(s string) string { return withDatabase(s, "postgres", "postgres://mls:0123456789@one:1,two:2/db") },
			[]string{"database.uri: names a port after each of several hosts", "host1,host2/db?port=5432,5433"},
		},
		"a port after the first of PostgreSQL's hosts": {
			func(s string) string {
				return withDatabase(s, "postgres", "postgresql://mls:0123456789@[::1]:1,two/db")
			},
			[]string{"database.uri: names a port after each of several hosts"},
		},
		"strange inviter": {
			func(s string) string { return strings.Replace(s, "- '*'", "- 'not a server'", 1) },
			[]string{"rooms.invite_from"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, row.change(valid(t)))
			before, _ := os.ReadFile(path)
			_, err := Load(path, Options{NoUpdate: true})
			if err == nil {
				t.Fatal("the configuration was accepted")
			}
			for _, part := range row.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q lacks %q", err, part)
				}
			}
			if strings.Contains(err.Error(), "0123456789") {
				t.Errorf("error shows a token: %q", err)
			}
			if after, _ := os.ReadFile(path); string(before) != string(after) {
				t.Error("a refused configuration was changed")
			}
		})
	}
}

// withDatabase names another database in a configuration.
func withDatabase(text, kind, uri string) string {
	text = strings.Replace(text, "type: sqlite3", "type: "+kind, 1)
	return strings.Replace(text, "uri: /var/lib/matrix-mls/matrix-mls.db", "uri: '"+uri+"'", 1)
}

func TestLoadTakesDatabases(t *testing.T) {
	for _, row := range [][2]string{
		{"sqlite3", "/var/lib/matrix-mls/matrix-mls.db"}, {"sqlite3", "file:matrix-mls.db?mode=rw"},
		{"postgres", "postgres://mls:p,w:1@db/mls?sslmode=disable"}, {"postgres", "postgresql:///mls"},
		{"postgres", "postgres://mls@one,two/mls?port=1,2"}, {"postgres", "postgres://mls@one,two:5432/mls"}, {"postgres", "postgres://mls@[::1]:5432/mls"},
		{"postgres", "postgres://mls@[::1],[::2]/mls"}, {"postgres", "host=/run/postgresql dbname=mls"}, {"postgres", "sslmode=disable password=a://b"},
	} {
		if _, err := Load(write(t, withDatabase(valid(t), row[0], row[1])), Options{NoUpdate: true}); err != nil {
			t.Errorf("%s %s: %v", row[0], row[1], err)
		}
	}
}

func TestKeyErrorNamesLine(t *testing.T) {
	text := strings.Replace(valid(t), "parallel: 4", "parallel: 0", 1)
	_, err := Load(write(t, text), Options{NoUpdate: true})
	var keyErr *KeyError
	if !errors.As(err, &keyErr) {
		t.Fatalf("error is %T, want *KeyError", err)
	}
	want := 1 + strings.Count(text[:strings.Index(text, "parallel: 0")], "\n")
	if keyErr.Line != want {
		t.Errorf("line = %d, want %d", keyErr.Line, want)
	}
}

func TestUpgradeKeepsValuesAndACopy(t *testing.T) {
	old := "homeserver:\n    address: https://matrix.mls.test\n    domain: mls.test\n" +
		"appservice:\n    as_token: as-token-0123456789\n    hs_token: hs-token-0123456789\n    port: 4242\n" +
		"rooms:\n    invite_from:\n        - mls.test\n        - '@a:b.test'\n"
	path := write(t, old)

	if _, err := Load(path, Options{NoUpdate: true}); err != nil {
		t.Fatal(err)
	}
	if now, _ := os.ReadFile(path); string(now) != old {
		t.Fatal("-n did not leave the file alone")
	}

	loaded, err := Load(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !loaded.Updated {
		t.Fatal("missing keys were not written back")
	}
	if kept, _ := os.ReadFile(loaded.Backup); string(kept) != old {
		t.Errorf("the copy of the old file holds %q", kept)
	}
	again, err := Load(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if again.Updated {
		t.Error("the upgraded file was rewritten a second time")
	}
	if diff := cmp.Diff([]string{"mls.test", "@a:b.test"}, again.Rooms.InviteFrom); diff != "" {
		t.Error(diff)
	}
	if again.AppService.Port != 4242 || again.Homeserver.Address != "https://matrix.mls.test" {
		t.Errorf("values were lost: port %d, address %s", again.AppService.Port, again.Homeserver.Address)
	}
	if again.Limits.Leaves != 20000 {
		t.Errorf("leaves = %d, want the default", again.Limits.Leaves)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, want the old file's", info.Mode())
	}
}

func TestEnvironmentOverrides(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("from-a-file-0123456789\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := write(t, strings.Replace(valid(t), "as-token-0123456789", Ungenerated, 1))
	before, _ := os.ReadFile(path)
	loaded, err := Load(path, Options{Environ: []string{
		"PATH=/bin",
		"MATRIX_MLS_HOMESERVER_ADDRESS=http://10.0.0.1:8008",
		"MATRIX_MLS_APPSERVICE_AS_TOKEN_FILE=" + secret,
		"MATRIX_MLS_APPSERVICE_PORT=1234",
		"MATRIX_MLS_ROOMS_INVITE_FROM=[a.test, b.test]",
		"MATRIX_MLS_OUTBOX_BACKOFF=2s",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Homeserver.Address != "http://10.0.0.1:8008" || loaded.AppService.ASToken != "from-a-file-0123456789" ||
		loaded.AppService.Port != 1234 || loaded.Outbox.Backoff.D() != 2*time.Second {
		t.Errorf("overrides did not take effect: %+v", loaded.Homeserver)
	}
	if diff := cmp.Diff([]string{"a.test", "b.test"}, loaded.Rooms.InviteFrom); diff != "" {
		t.Error(diff)
	}
	if after, _ := os.ReadFile(path); string(before) != string(after) {
		t.Error("an environment value was written into the file")
	}

	for name, env := range map[string]string{
		"no such key":   "MATRIX_MLS_HOMESERVER_ADRESS=x",
		"missing file":  "MATRIX_MLS_DATABASE_URI_FILE=/nonexistent/secret",
		"refused value": "MATRIX_MLS_APPSERVICE_PORT=no",
		"checked value": "MATRIX_MLS_DATABASE_TYPE=mysql",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(path, Options{Environ: []string{"MATRIX_MLS_APPSERVICE_AS_TOKEN_FILE=" + secret, env}})
			variable, _, _ := strings.Cut(env, "=")
			if err == nil || !strings.Contains(err.Error(), variable) {
				t.Errorf("error %v does not name %s", err, variable)
			}
		})
	}
}

func TestAcceptsInviteFrom(t *testing.T) {
	cfg := Default()
	cfg.Rooms.InviteFrom = []string{"a.test", "@x:b.test"}
	for user, want := range map[string]bool{
		"@u:a.test": true, "@x:b.test": true, "@y:b.test": false, "@u:evil.a.test": false, "nonsense": false,
	} {
		if got := cfg.AcceptsInviteFrom(id.UserID(user)); got != want {
			t.Errorf("AcceptsInviteFrom(%s) = %v, want %v", user, got, want)
		}
	}
}

func TestWriteFileKeepsTheOwner(t *testing.T) {
	path := write(t, "old")
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 { // nobody else can give a file away
		uid, gid = 1234, 5678
		if err := os.Chown(path, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteFile(path, []byte("new"), 0o640); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	if int(owner.Uid) != uid || int(owner.Gid) != gid || info.Mode().Perm() != 0o640 {
		t.Errorf("owner %d:%d, mode %v", owner.Uid, owner.Gid, info.Mode())
	}
}
