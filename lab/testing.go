package lab

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// TB is the part of testing.TB that this package uses.
type TB interface {
	Helper()
	Name() string
	Context() context.Context
	Cleanup(func())
	Failed() bool
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
	Skipf(format string, args ...any)
}

// skipIfShort leaves out a test that needs servers under go test -short. make test never sets it, and counts a
// skipped test as a failure.
func skipIfShort(t TB) {
	t.Helper()
	if f := flag.Lookup("test.short"); f != nil && f.Value.String() == "true" {
		t.Skipf("needs servers, and -short is set")
	}
}

// Run is [Start] for a test: what cannot start fails the test, the end of the test ends everything, and when the test
// failed the logs are kept (in MATRIX_MLS_LOGS, or matrix-mls-logs in the directory for temporary files).
func Run(t TB, o Options) *Servers {
	t.Helper()
	skipIfShort(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // a first run builds Dendrite
	defer cancel()
	s, err := Start(ctx, o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			if dir, err := s.KeepLogs(t.Name()); err != nil {
				t.Logf("lab: the logs could not be kept: %v", err)
			} else {
				t.Logf("lab: logs are in %s", dir)
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("%v", err)
		}
	})
	return s
}

// KeepLogs copies the logs to where they outlive the run, and says where that is.
func (s *Servers) KeepLogs(name string) (string, error) {
	root := os.Getenv("MATRIX_MLS_LOGS")
	if root == "" {
		root = filepath.Join(os.TempDir(), "matrix-mls-logs")
	}
	dir := filepath.Join(root, fmt.Sprintf("%s-%d", strings.ReplaceAll(name, "/", "-"), os.Getpid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	paths, err := s.Logs()
	if err != nil {
		return "", err
	}
	for _, path := range paths {
		if err := copyFile(filepath.Join(dir, filepath.Base(path)), path); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
