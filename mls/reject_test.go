package mls

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A rejectCase is a row of the reject table: an input that must be refused.
type rejectCase struct {
	// row is the row's name, "area/name", and so the test's.
	row Rule

	// rule is what the error must name. Empty means row. It differs where
	// a receiver cannot tell one cause from another: a signature over
	// something else is just a signature that does not verify.
	rule Rule

	// run makes the input, feeds it and returns the refusal. It also
	// checks that the valid form of the input is taken, and that the state
	// is unchanged.
	run func(t *testing.T) error

	// each is run for every suite of rejectSuites instead.
	each func(t *testing.T, cs CipherSuite) error

	// holds checks a duty of our own, for every suite, where nothing is fed
	// that could be refused.
	holds func(t *testing.T, cs CipherSuite)
}

// rejectSuites are the suites that rows about keys are run for: the usual
// three, and one of each family beside.
var rejectSuites = []CipherSuite{
	MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
	MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
	MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519,
	MLS_256_DHKEMX448_AES256GCM_SHA512_Ed448,
	MLS_256_DHKEMP521_AES256GCM_SHA512_P521,
}

// suitesFor returns the suites that a row is run for. What concerns the
// primitives is run for both big families; the rest for one of them.
func suitesFor(row Rule) []CipherSuite {
	area, _, _ := strings.Cut(string(row), "/")
	if area == "crypto" || area == "framing" {
		return rejectSuites
	}
	return rejectSuites[:4]
}

// TestReject runs the reject table: TestReject/<area>/<row>.
func TestReject(t *testing.T) {
	listed := rejectRows(t)
	seen := make(map[Rule]bool)
	for _, table := range [][]rejectCase{codecRejects, cryptoRejects, framingRejects, stateRejects, groupRejects, draftRejects, ownRejects} {
		for _, c := range table {
			if seen[c.row] {
				t.Errorf("two rows are named %s", c.row)
			}
			if !listed[c.row] && !slices.ContainsFunc(slices.Concat(draftRejects, ownRejects), func(d rejectCase) bool { return d.row == c.row }) {
				t.Errorf("row %s is not in the list of rows", c.row)
			}
			seen[c.row] = true
			t.Run(string(c.row), func(t *testing.T) {
				t.Parallel()
				rule := c.rule
				if rule == "" {
					rule = c.row
				}
				if c.run != nil {
					wantRule(t, c.run(t), rule)
					return
				}
				for _, cs := range suitesFor(c.row) {
					t.Run(fmt.Sprintf("suite=%d", cs), func(t *testing.T) {
						if c.holds != nil {
							c.holds(t, cs)
							return
						}
						wantRule(t, c.each(t, cs), rule)
					})
				}
			})
		}
	}
	for row := range listed {
		if !seen[row] {
			t.Errorf("row %s has no test", row)
		}
	}
}

// rejectRows returns the names of all rows that there must be.
func rejectRows(t *testing.T) map[Rule]bool {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "reject-rows.txt"))
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[Rule]bool)
	for _, row := range strings.Fields(string(raw)) {
		rows[Rule(row)] = true
	}
	if len(rows) != 207 {
		t.Fatalf("the list has %d rows, want 207", len(rows))
	}
	return rows
}

// wantRule checks that err names a rule. An error may wrap another that names
// a rule of its own; the outermost counts.
func wantRule(t *testing.T, err error, rule Rule) {
	t.Helper()
	var v *ValidationError
	switch {
	case err == nil:
		t.Errorf("accepted, want %s", rule)
	case !errors.As(err, &v):
		t.Errorf("error without rule: %v, want %s", err, rule)
	case v.Rule != rule:
		t.Errorf("rule %s, want %s: %v", v.Rule, rule, err)
	}
}

// noError ends the test if the valid form of an input is refused.
func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
}
