package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
)

const synapse = `# Synapse, as Debian installs it
server_name: "mls.test"
pid_file: /var/run/synapse.pid
listeners:
  - port: 8448
    type: http
    tls: true
    resources:
      - names: [client, federation]
  - port: 8008   # for the proxy
    tls: false
    type: http
    x_forwarded: true
    bind_addresses: ['::1', '127.0.0.1']
    resources:
      - names: [client, federation]
        compress: false
  - port: 9090
    type: metrics
    resources: []
`

const dendrite = `version: 2
global:
  server_name: mls.test
  private_key: matrix_key.pem
client_api:
  registration_disabled: true
`

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "homeserver.yaml")
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadHomeserverConfig(t *testing.T) {
	for name, row := range map[string]struct {
		text, address, server string
		software              homeserver.Software
	}{
		"Synapse prefers plain HTTP on loopback": {synapse, "http://127.0.0.1:8008", "mls.test", homeserver.Synapse},
		"Synapse with TLS only": {"server_name: a.b\nlisteners:\n- {port: 8448, tls: true, resources: [{names: [client]}]}\n",
			"https://127.0.0.1:8448", "a.b", homeserver.Synapse},
		"Synapse on a socket": {"server_name: a.b\nlisteners:\n- {path: /run/s.sock, resources: [{names: [client]}]}\n",
			"unix:/run/s.sock", "a.b", homeserver.Synapse},
		"Synapse on another address": {"server_name: a.b\nlisteners:\n- {port: 80, bind_addresses: [10.0.0.5], resources: [{names: [client]}]}\n",
			"http://10.0.0.5:80", "a.b", homeserver.Synapse},
		"Synapse without a client listener": {"server_name: a.b\nlisteners:\n- {port: 80, resources: [{names: [federation]}]}\n", "", "a.b", homeserver.Synapse},
		"Dendrite":                          {dendrite, "", "mls.test", homeserver.Dendrite},
		"Dendrite as JSON":                  {`{"version":2,"global":{"server_name":"mls.test:8448"}}`, "", "mls.test:8448", homeserver.Dendrite},
	} {
		t.Run(name, func(t *testing.T) {
			hc, err := ReadHomeserverConfig(write(t, row.text))
			if err != nil {
				t.Fatal(err)
			}
			if hc.Address != row.address || hc.ServerName != row.server || hc.Software != row.software {
				t.Errorf("got %s %s %s", hc.Software, hc.ServerName, hc.Address)
			}
		})
	}
	for name, text := range map[string]string{"empty": "", "a list": "- a\n", "something else": "a: 1\n", "no YAML": "a: [\n"} {
		var unknown *UnknownHomeserverError
		if _, err := ReadHomeserverConfig(write(t, text)); !errors.As(err, &unknown) {
			t.Errorf("%s: %v, want UnknownHomeserverError", name, err)
		}
	}
}

// TestAddRegistration edits configurations in every way that people write
// them, and checks that nothing else changes.
func TestAddRegistration(t *testing.T) {
	const reg = `/etc/matrix-mls/regis tration "1".yaml`
	for name, row := range map[string]struct {
		text  string
		lines int // lines that may be new; 0: as many as it takes
	}{
		"Synapse without the key":            {synapse, 0},
		"Synapse without a last newline":     {strings.TrimSuffix(synapse, "\n"), 0},
		"Synapse with a list":                {synapse + "app_service_config_files:\n  - /etc/a.yaml\n  - \"/etc/b.yaml\" # b\nenable_metrics: true\n", 1},
		"Synapse with an unindented list":    {synapse + "app_service_config_files:\n- /etc/a.yaml\nenable_metrics: true\n", 1},
		"Synapse with a list at the end":     {synapse + "app_service_config_files:\n  - /etc/a.yaml", 1},
		"Synapse with an empty list":         {synapse + "app_service_config_files: []\n", 0},
		"Synapse with a list in brackets":    {synapse + "app_service_config_files: [ /etc/a.yaml , \"/etc/b].yaml\" ] # all\nx: 1\n", 0},
		"Synapse with brackets over lines":   {synapse + "app_service_config_files: [\n  /etc/a.yaml, # ]\n  '/etc/b.yaml',\n]\nx: 1\n", 0},
		"Synapse with the key without value": {synapse + "app_service_config_files:\nx: 1\n", 0},
		"Synapse with a commented key":       {synapse + "#app_service_config_files:\n#  - /etc/a.yaml\nx: 1\n", 0},
		"Synapse as JSON":                    {"{\n \"server_name\": \"mls.test\",\n \"x\": {\"a\": \"}\"}\n}\n", 0},
		"Synapse as JSON with a list":        {"{\"server_name\": \"mls.test\", \"app_service_config_files\": [\"/etc/a.yaml\"], \"x\": [1]}", 0},
		"Synapse as JSON with an empty list": {"{\"server_name\": \"mls.test\", \"app_service_config_files\": []}", 0},
		"Dendrite without the section":       {dendrite, 0},
		"Dendrite with the section":          {dendrite + "app_service_api:\n  disable_tls_validation: false\n  legacy_auth: false\nmedia_api:\n  x: 1\n", 2},
		"Dendrite with a list":               {dendrite + "app_service_api:\n  config_files:\n    - a.yaml\n    - b.yaml\nmedia_api:\n  x: 1\n", 1},
		"Dendrite with an empty list":        {dendrite + "app_service_api:\n  disable_tls_validation: false\n  config_files: []\n", 0},
		"Dendrite with a list without value": {dendrite + "app_service_api:\n  disable_tls_validation: false\n  config_files:\n    # - a.yaml\nmedia_api:\n  x: 1\n", 0},
		"Dendrite with an empty section":     {dendrite + "app_service_api:\nmedia_api:\n  x: 1\n", 0},
		"Dendrite as JSON":                   {`{"global": {"server_name": "mls.test"}, "app_service_api": {"disable_tls_validation": true}}`, 0},
		"Dendrite as JSON without section":   {`{"global": {"server_name": "mls.test"}}`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, row.text)
			hc, err := ReadHomeserverConfig(path)
			if err != nil {
				t.Fatal(err)
			}
			backup, err := hc.AddRegistration(reg)
			if err != nil {
				t.Fatal(err)
			}
			if kept, _ := os.ReadFile(backup); string(kept) != row.text {
				t.Error("the copy is not the old text")
			}
			if info, _ := os.Stat(path); info.Mode().Perm() != 0o640 {
				t.Errorf("mode = %v", info.Mode())
			}
			after, _ := os.ReadFile(path)
			again, err := ReadHomeserverConfig(path)
			if err != nil {
				t.Fatalf("%v in\n%s", err, after)
			}
			if !again.Names(reg) || len(again.Registrations) != len(hc.Registrations)+1 {
				t.Errorf("registrations = %q\n%s", again.Registrations, after)
			}
			if got := strings.Count(string(after), "\n") - strings.Count(row.text, "\n"); row.lines > 0 && got > row.lines+1 {
				t.Errorf("%d new lines in\n%s", got, after)
			}
			if strings.Count(string(after), "#") < strings.Count(row.text, "#") {
				t.Errorf("a comment was lost in\n%s", after)
			}
		})
	}
}

func TestEditRefusesWhatItCannotRead(t *testing.T) {
	for name, text := range map[string]string{
		"anchors":         "x: &a [/etc/a.yaml]\nserver_name: mls.test\napp_service_config_files: *a\n",
		"a text":          synapse + "app_service_config_files: /etc/a.yaml\n",
		"a folded item":   synapse + "app_service_config_files:\n  - >-\n    /etc/a.yaml\n",
		"document's end":  synapse + "...\n",
		"key in brackets": `{"server_name": "mls.test", "app_service_config_files": null}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, text)
			hc, err := ReadHomeserverConfig(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := hc.AddRegistration("/etc/r.yaml"); !errors.Is(err, errCannotEdit) {
				t.Errorf("AddRegistration = %v, want errCannotEdit", err)
			}
			if after, _ := os.ReadFile(path); string(after) != text {
				t.Error("the file was changed")
			}
			// What an admin is told to add must be what was meant.
			var line map[string]any
			if err := yaml.Unmarshal([]byte(hc.Line("/etc/r.yaml")), &line); err != nil {
				t.Fatal(err)
			}
			if want := map[string]any{"app_service_config_files": []any{"/etc/r.yaml"}}; !reflect.DeepEqual(line, want) {
				t.Errorf("line = %v", line)
			}
		})
	}
}

func options(t *testing.T, hs string) Options {
	t.Helper()
	dir := t.TempDir()
	return Options{HomeserverConfig: hs, Config: filepath.Join(dir, "config.yaml"), Registration: filepath.Join(dir, "registration.yaml"),
		Listen: "127.0.0.1:29399", Out: new(bytes.Buffer)}
}

func TestRunTwiceKeepsTokensAndKeys(t *testing.T) {
	hs := write(t, synapse)
	o := options(t, hs)
	first, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !first.Edited || !first.ConfigNew || first.KeysMade == 0 {
		t.Errorf("first run: %+v", first)
	}
	reg, err := LoadRegistration(o.Registration)
	if err != nil || len(Compare(reg, first.Config)) != 0 {
		t.Fatalf("the registration differs from the configuration: %v, %v", Compare(reg, first.Config), err)
	}
	if reg.RateLimited == nil || *reg.RateLimited || len(reg.Namespaces.RoomIDs) != 0 || reg.SenderLocalpart != "_mls_bot" {
		t.Errorf("registration = %+v", reg)
	}
	files := func() map[string]string {
		out := make(map[string]string)
		for _, p := range []string{hs, o.Config, o.Registration} {
			text, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			out[p] = string(text)
		}
		return out
	}
	before := files()
	second, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if second.Edited || second.ConfigNew || second.KeysMade != 0 {
		t.Errorf("second run: %+v", second)
	}
	if !reflect.DeepEqual(before, files()) {
		t.Error("the second run changed a file")
	}
	if info, _ := os.Stat(o.Config); info.Mode().Perm() != 0o600 {
		t.Errorf("configuration's mode = %v", info.Mode())
	}
	if info, _ := os.Stat(o.Registration); info.Mode().Perm()&0o007 != 0 {
		t.Errorf("registration's mode = %v", info.Mode())
	}
	loaded, err := config.Load(o.Config, config.Options{})
	if err != nil || loaded.Updated {
		t.Errorf("what setup wrote is rewritten at the first start: %v, %v", loaded.Updated, err)
	}
	// A registration that was lost comes back with the same tokens.
	if err := os.Remove(o.Registration); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(before, files()) {
		t.Error("the registration came back changed")
	}
}

func TestOptionsChangeAnInstallation(t *testing.T) {
	for name, row := range map[string]struct {
		before  func(text string) string // what the admin edited
		change  func(o *Options)
		changed string
		address string // of the module, for the homeserver
		refused bool
	}{
		"nothing new":             {change: func(o *Options) {}, address: "http://127.0.0.1:29399"},
		"another port":            {change: func(o *Options) { o.Listen = "127.0.0.1:29398" }, changed: "[appservice.port appservice.address]", address: "http://127.0.0.1:29398"},
		"every interface":         {change: func(o *Options) { o.Listen = "0.0.0.0:29399" }, changed: "[appservice.hostname]", address: "http://127.0.0.1:29399"},
		"another homeserver port": {change: func(o *Options) { o.Address = "http://127.0.0.1:8118/" }, changed: "[homeserver.address]", address: "http://127.0.0.1:29399"},
		"the same database": {change: func(o *Options) { o.Database = filepath.Join(filepath.Dir(o.Config), "matrix-mls.db") },
			address: "http://127.0.0.1:29399"},
		"an address by hand stays": {
			before:  func(text string) string { return strings.ReplaceAll(text, "http://127.0.0.1:29399", "http://mls:80") },
			change:  func(o *Options) { o.Listen = "0.0.0.0:80" },
			changed: "[appservice.hostname appservice.port]", address: "http://mls:80",
		},
		"another database":   {change: func(o *Options) { o.Database = filepath.Join(filepath.Dir(o.Config), "other.db") }, refused: true},
		"PostgreSQL":         {change: func(o *Options) { o.Database = "postgres://u:planted@h/d" }, refused: true},
		"PostgreSQL's hosts": {change: func(o *Options) { o.Database = "postgres://u:planted@one:1,two:2/d" }, refused: true},
		"no URL":             {change: func(o *Options) { o.Address = "foo" }, refused: true},
		"no port":            {change: func(o *Options) { o.Listen = "127.0.0.1" }, refused: true},
		"set elsewhere too":  {change: func(o *Options) { o.Listen, o.Environ = "127.0.0.1:1", []string{"MATRIX_MLS_APPSERVICE_PORT=2"} }, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, write(t, synapse))
			if _, err := Run(context.Background(), o); err != nil {
				t.Fatal(err)
			}
			before, err := os.ReadFile(o.Config)
			if err != nil {
				t.Fatal(err)
			}
			if row.before != nil {
				before = []byte(row.before(string(before)))
				if err := os.WriteFile(o.Config, before, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			row.change(&o)
			res, err := Run(context.Background(), o)
			if row.refused {
				if !errors.Is(err, ErrOption) || strings.Contains(err.Error(), "planted") {
					t.Errorf("Run = %v, want ErrOption", err)
				}
				if after, _ := os.ReadFile(o.Config); !bytes.Equal(after, before) {
					t.Error("the configuration was changed all the same")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(res.Changed); row.changed != "" && got != row.changed || row.changed == "" && len(res.Changed) > 0 {
				t.Errorf("changed %s, want %s", got, row.changed)
			}
			if res.Config.AppService.Address != row.address {
				t.Errorf("address = %s, want %s", res.Config.AppService.Address, row.address)
			}
			reg, err := LoadRegistration(o.Registration)
			if err != nil || len(Compare(reg, res.Config)) != 0 {
				t.Errorf("the registration does not follow: %v, %v", Compare(reg, res.Config), err)
			}
			if want := reg.URL != "http://127.0.0.1:29399"; res.Registered != want {
				t.Errorf("Registered = %t, want %t", res.Registered, want)
			}
		})
	}
}

func TestRunRefusesConflicts(t *testing.T) {
	o := options(t, write(t, synapse))
	other := "id: hookshot\nas_token: a\nhs_token: b\n"
	if err := os.WriteFile(o.Registration, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(context.Background(), o); !errors.Is(err, ErrConflict) {
		t.Errorf("another's registration: %v, want ErrConflict", err)
	}
	if text, _ := os.ReadFile(o.Registration); string(text) != other {
		t.Error("another's registration was overwritten")
	}

	o = options(t, write(t, synapse))
	if _, err := Run(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	o.HomeserverConfig = write(t, strings.Replace(synapse, "mls.test", "else.test", 1))
	if _, err := Run(context.Background(), o); !errors.Is(err, ErrConflict) {
		t.Errorf("another homeserver's configuration: %v, want ErrConflict", err)
	}
}

func TestRunWithoutEditSaysTheLine(t *testing.T) {
	hs := write(t, synapse)
	o := options(t, hs)
	o.NoEdit = true
	res, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(hs); string(text) != synapse {
		t.Error("the homeserver's configuration was edited")
	}
	if !strings.Contains(res.LineToAdd, fmt.Sprintf("%q", res.Registration)) {
		t.Errorf("line = %q", res.LineToAdd)
	}
}

func TestRunNeedsAnAddress(t *testing.T) {
	o := options(t, write(t, "server_name: mls.test\nlisteners: []\n"))
	if _, err := Run(context.Background(), o); !errors.Is(err, ErrNoAddress) {
		t.Errorf("Run = %v, want ErrNoAddress", err)
	}
	if _, err := os.Stat(o.Config); err == nil {
		t.Error("a configuration was written that cannot work")
	}
	o.Address = "http://10.0.0.1:8008/"
	res, err := Run(context.Background(), o)
	if err != nil || res.Config.Homeserver.Address != "http://10.0.0.1:8008" {
		t.Errorf("Run = %+v, %v", res, err)
	}
}

func TestRunWritesNothingThatCannotWork(t *testing.T) {
	for name, text := range map[string]string{
		"server name":    strings.Replace(synapse, "mls.test", "exämple.test", 1),
		"client address": "server_name: mls.test\nlisteners:\n- {port: 80, bind_addresses: ['a b'], resources: [{names: [client]}]}\n",
		"no such file":   "",
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, write(t, text))
			if text == "" {
				o.HomeserverConfig += ".gone"
			}
			var unknown *UnknownHomeserverError
			if _, err := Run(context.Background(), o); !errors.As(err, &unknown) || !strings.Contains(err.Error(), o.HomeserverConfig) {
				t.Errorf("Run = %v, want an UnknownHomeserverError", err)
			}
			if _, err := os.Stat(o.Config); !errors.Is(err, os.ErrNotExist) {
				t.Error("a configuration was written that cannot work")
			}
		})
	}
}

func TestADatabaseThatCannotBeOpenedIsNotConfigured(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none", "matrix-mls.db")
	for name, row := range map[string]struct {
		database string
		want     string
		option   bool
	}{
		"no answer":         {"postgres://mls:planted@127.0.0.1:1/mls?sslmode=disable", "does not answer", false},
		"no folder":         {none, "cannot write the SQLite database", false},
		"a port after each": {"postgres://mls:planted@one:1,two:2/mls", "host1,host2/db?port=5432,5433", true},
		"capitals":          {"POSTGRES://mls:planted@127.0.0.1:1/mls", "is no PostgreSQL address", true},
	} {
		t.Run(name, func(t *testing.T) {
			hs := write(t, synapse)
			o := options(t, hs)
			o.Database = row.database
			_, err := Run(context.Background(), o)
			if err == nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), "nothing was written") || strings.Contains(err.Error(), "planted") {
				t.Errorf("Run = %v, want %q and that nothing was written", err, row.want)
			}
			if errors.Is(err, ErrOption) != row.option {
				t.Errorf("Run = %v, ErrOption: want %t", err, row.option)
			}
			for _, path := range []string{o.Config, o.Registration} {
				if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s was written", path)
				}
			}
			if text, _ := os.ReadFile(hs); string(text) != synapse {
				t.Error("the homeserver's configuration was edited")
			}
			o.Database = filepath.Join(filepath.Dir(o.Config), "right.db")
			if res, err := Run(context.Background(), o); err != nil || res.KeysMade == 0 {
				t.Errorf("with the right database: %+v, %v", res, err)
			}
		})
	}
}

func TestCompareFindsDifferences(t *testing.T) {
	o := options(t, write(t, synapse))
	res, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	for key, change := range map[string]string{
		"as_token": "as_token: x", "hs_token": "hs_token: x", "url": "url: http://else", "id": "id: x",
		"rate_limited": "rate_limited: true", "sender_localpart": "sender_localpart: x",
	} {
		text, _ := os.ReadFile(o.Registration)
		var lines []string
		for _, line := range strings.Split(string(text), "\n") {
			if strings.HasPrefix(line, key+":") {
				line = change
			}
			lines = append(lines, line)
		}
		path := filepath.Join(t.TempDir(), "r.yaml")
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		reg, err := LoadRegistration(path)
		if err != nil {
			t.Fatal(err)
		}
		diffs := Compare(reg, res.Config)
		if len(diffs) != 1 || diffs[0].Key != key {
			t.Errorf("%s: differences %v", key, diffs)
		}
		if text := fmt.Sprint(diffs); strings.Contains(text, res.Config.AppService.ASToken) || strings.Contains(text, res.Config.AppService.HSToken) {
			t.Errorf("a token is shown: %s", text)
		}
	}
}
