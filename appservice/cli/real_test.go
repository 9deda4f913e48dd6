package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/appservice/doctor"
	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/lab"
)

// installation is a module next to a real homeserver.
type installation struct {
	t      *testing.T
	config string
	reg    string
	url    string
}

func (in *installation) run(args ...string) (Code, string, string) {
	in.t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(in.t.Context(), patience.Hang)
	defer cancel()
	code := Run(ctx, Env{Args: args, Stdout: &out, Stderr: &errs, Version: "test"})
	return code, out.String(), errs.String()
}

// serve runs the module until the function that it returns is called.
func (in *installation) serve() (stop func()) {
	in.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log := filepath.Join(filepath.Dir(in.config), "module.log")
	done := make(chan Code, 1)
	var errs bytes.Buffer
	go func() {
		done <- Run(ctx, Env{Args: []string{"serve", "-c", in.config}, Stdout: new(bytes.Buffer), Stderr: &errs, Version: "test",
			Environ: []string{"MATRIX_MLS_LOGGING={min_level: debug, writers: [{type: file, filename: " + log + "}]}"}})
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if code := <-done; code != Done {
			in.t.Errorf("serve ended with %d: %s", code, &errs)
		}
	}
	in.t.Cleanup(stop)
	if !answersWithin(patience.Hang, in.url+"/_matrix/mau/ready", "200") {
		text, _ := os.ReadFile(log)
		in.t.Fatalf("the module does not get ready; its log:\n%s", text)
	}
	return stop
}

// doctor returns the verdict of each probe, and all that was said.
func (in *installation) doctor(want Code) (map[string]doctor.Result, string) {
	in.t.Helper()
	code, out, errs := in.run("doctor", "--json", "-c", in.config, "-r", in.reg)
	if code != want {
		in.t.Errorf("doctor ended with %d, want %d: %s\n%s", code, want, errs, out)
	}
	var report doctor.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		in.t.Fatalf("%v in %s", err, out)
	}
	results := make(map[string]doctor.Result)
	for _, r := range report.Results {
		results[r.ID] = r
		if r.Status == doctor.Fail && (r.Cause == "" || r.Next == "") {
			in.t.Errorf("probe %s failed without cause or next step: %+v", r.ID, r)
		}
	}
	return results, out
}

// TestNextToRealHomeservers installs the module next to a Synapse and a
// Dendrite as an admin does, and lets doctor find what is broken on purpose.
func TestNextToRealHomeservers(t *testing.T) {
	hs := lab.Run(t, lab.Options{Synapse: 1, Dendrite: 1})
	for _, name := range []string{"syn1", "den1"} {
		t.Run(hs.Server(name).Kind, func(t *testing.T) { nextTo(t, hs, hs.Server(name)) })
	}
}

func nextTo(t *testing.T, hs *lab.Servers, s *lab.Server) {
	dir := t.TempDir()
	listen := fmt.Sprintf("127.0.0.1:%d", s.SparePorts[0])
	in := &installation{t, filepath.Join(dir, "config.yaml"), filepath.Join(dir, "registration.yaml"), "http://" + listen}
	if code, out, errs := in.run("setup", "--homeserver-config", s.Config, "--homeserver-address", s.BaseURL, "--listen", listen,
		"-c", in.config, "-r", in.reg); code != Done {
		t.Fatalf("setup ended with %d: %s%s", code, out, errs)
	}
	results, _ := in.doctor(Unhealthy)
	if r := results["token"]; r.Status != doctor.Fail || !strings.Contains(r.Next, "restart") {
		t.Errorf("before the homeserver's restart: %+v", r)
	}
	restart := func() {
		t.Helper()
		if err := hs.Stop(t.Context(), s.Name); err != nil {
			t.Fatal(err)
		}
		if err := hs.Start(t.Context(), s.Name); err != nil {
			t.Fatal(err)
		}
	}
	restart()
	stop := in.serve()
	results, all := in.doctor(Done)
	for id, r := range results {
		if r.Status != doctor.OK {
			t.Errorf("probe %s: %+v", id, r)
		}
	}
	if token := tokenOf(t, in.reg, "as_token"); strings.Contains(all, token) {
		t.Error("doctor shows a token")
	}

	t.Run("module stopped", func(t *testing.T) {
		stop()
		results, _ := in.doctor(codeIf(s.Kind == "synapse", Unhealthy, Done))
		if results["module"].Status != doctor.Warn || results["link"].Status == doctor.OK {
			t.Errorf("module %+v, link %+v", results["module"], results["link"])
		}
	})
	t.Run("rate limit not lifted and another hs_token", func(t *testing.T) {
		good, err := os.ReadFile(in.reg)
		if err != nil {
			t.Fatal(err)
		}
		bad := strings.Replace(string(good), tokenOf(t, in.reg, "hs_token"), "another-token-0123456789", 1)
		bad = strings.Replace(bad, "rate_limited: false", "rate_limited: true", 1)
		if err := os.WriteFile(in.reg, []byte(bad), 0o640); err != nil {
			t.Fatal(err)
		}
		restart()
		results, _ := in.doctor(Unhealthy)
		if r := results["registration"]; r.Status != doctor.Fail || !strings.Contains(r.Detail, "hs_token") || !strings.Contains(r.Detail, "rate_limited") {
			t.Errorf("registration: %+v", r)
		}
		if code, _, errs := in.run("-g", "-c", in.config, "-r", in.reg); code != Done {
			t.Fatalf("-g: %s", errs)
		}
		if mended, _ := os.ReadFile(in.reg); string(mended) != string(good) {
			t.Error("-g did not bring the registration back")
		}
		// The file is mended, the homeserver has the old one still.
		stop := in.serveUnready()
		results, _ = in.doctor(Unhealthy)
		if r := results["link"]; r.Status != doctor.Fail {
			t.Errorf("link with another hs_token: %+v", r)
		}
		// The module goes on: a homeserver that comes back and does not reach it
		// tries again ever later.
		defer stop()
		restart()
		if !answersWithin(patience.Hang, in.url+"/_matrix/mau/ready", "200") {
			t.Fatal("the module does not get ready")
		}
		in.doctor(Done)
	})
	t.Run("homeserver stopped", func(t *testing.T) {
		if err := hs.Stop(t.Context(), s.Name); err != nil {
			t.Fatal(err)
		}
		results, _ := in.doctor(Unhealthy)
		if results["homeserver"].Status != doctor.Fail || results["token"].Status != doctor.Skip || results["database"].Status != doctor.OK {
			t.Errorf("homeserver %+v, token %+v, database %+v", results["homeserver"], results["token"], results["database"])
		}
		if err := hs.Start(t.Context(), s.Name); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("database lost", func(t *testing.T) {
		old := filepath.Join(dir, "old.db")
		if err := os.Rename(filepath.Join(dir, "matrix-mls.db"), old); err != nil {
			t.Fatal(err)
		}
		results, _ := in.doctor(Unhealthy)
		if r := results["database"]; r.Status != doctor.Fail || !strings.Contains(r.Next, "setup") {
			t.Errorf("database: %+v", r)
		}
		if _, err := os.Stat(filepath.Join(dir, "matrix-mls.db")); err == nil {
			t.Error("doctor made a database")
		}
	})
}

// serveUnready runs the module without waiting for it to be ready.
func (in *installation) serveUnready() (stop func()) {
	in.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan Code, 1)
	go func() {
		done <- Run(ctx, Env{Args: []string{"serve", "-c", in.config}, Stdout: new(bytes.Buffer), Stderr: new(bytes.Buffer), Version: "test",
			Environ: []string{"MATRIX_MLS_LOGGING={writers: [{type: file, filename: " + filepath.Join(filepath.Dir(in.config), "module.log") + "}]}"}})
	}()
	if !answersWithin(patience.Hang, in.url+"/_matrix/mau/live", "") {
		in.t.Fatal("the module does not answer")
	}
	return func() { cancel(); <-done }
}

func tokenOf(t *testing.T, registration, key string) string {
	t.Helper()
	text, err := os.ReadFile(registration)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		if value, ok := strings.CutPrefix(line, key+": "); ok {
			return value
		}
	}
	t.Fatalf("no %s in the registration", key)
	return ""
}

func codeIf(cond bool, yes, no Code) Code {
	if cond {
		return yes
	}
	return no
}
