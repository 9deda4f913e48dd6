// Package faults holds the names of what has to be survived, for the tests in
// the packages that survive it.
package faults

import (
	_ "embed"
	"os"
	"slices"
	"strings"
	"testing"
)

//go:embed faults.txt
var table string

// Soak tells whether what takes long, or needs more than a user's rights, runs
// too (make soak).
func Soak() bool { return os.Getenv("MLS_SOAK") != "" }

// Run runs the tests of one package that faults.txt names, one fault and package
// a line. A line without a test is a failure, and so is a test without a line.
func Run(t *testing.T, pkg string, rows map[string]func(t *testing.T)) {
	t.Helper()
	var names []string
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if fields[1] != pkg {
			continue
		}
		names = append(names, fields[0])
		if len(fields) > 2 && !Soak() {
			continue
		}
		t.Run(fields[0], func(t *testing.T) {
			test := rows[fields[0]]
			if test == nil {
				t.Fatal("nothing is tested under this name")
			}
			test(t)
		})
	}
	for name := range rows {
		if !slices.Contains(names, name) {
			t.Errorf("test %q is of no line", name)
		}
	}
}
