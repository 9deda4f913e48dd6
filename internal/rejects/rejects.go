// Package rejects holds the names of what has to be refused between Matrix and
// MLS, for the tests of the two sides that refuse it: the module and the SDK.
package rejects

import (
	_ "embed"
	"slices"
	"strings"
	"testing"
)

//go:embed matrix.txt
var matrix string

// Names returns the rows of the table, one a line in matrix.txt. What the module
// and the SDK have to refuse is the same list, and tools/testreport wants a test
// of each name to have passed on both sides.
func Names() []string { return strings.Fields(matrix) }

// Run runs one subtest for each row, named matrix/ROW. A row without a test is a
// failure, and so is a test without a row.
func Run(t *testing.T, rows map[string]func(t *testing.T)) {
	t.Helper()
	names := Names()
	for name := range rows {
		if !slices.Contains(names, name) {
			t.Errorf("test %q is of no row", name)
		}
	}
	for _, name := range names {
		t.Run("matrix/"+name, func(t *testing.T) {
			test := rows[name]
			if test == nil {
				t.Fatal("nothing is tested under this name")
			}
			test(t)
		})
	}
}
