package mls

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// packagesOfPage says where the packages are that the page names.
var packagesOfPage = map[string]string{
	"mls": ".", "rooms": "../rooms", "client": "../client", "identity": "../client/identity", "appservice": "../appservice", "federation": "../federation",
}

// Every test that the page about our profile names is there, every point has
// one, and the figures are those of the code.
func TestProfilePage(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "docs", "mls-profile.md"))
	noError(t, err)
	sources := make(map[string]string)
	for name, folder := range packagesOfPage {
		files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
		noError(t, err)
		for _, f := range files {
			src, err := os.ReadFile(f)
			noError(t, err)
			sources[name] += string(src)
		}
	}
	rows := rejectRows(t)
	named := regexp.MustCompile("`([a-z]+)\\.(Test[A-Za-z]+)(/[a-z0-9/-]+)?`")
	points := 0
	for _, line := range strings.Split(string(raw), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || strings.HasPrefix(cells[1], "---") || strings.Contains(cells[3], "held by") {
			continue
		}
		points++
		found := named.FindAllStringSubmatch(cells[3], -1)
		if len(found) == 0 {
			t.Errorf("no test holds %q", strings.TrimSpace(cells[1]))
		}
		for _, m := range found {
			pkg, test, sub := m[1], m[2], strings.TrimPrefix(m[3], "/")
			if !strings.Contains(sources[pkg], "func "+test+"(t *testing.T)") {
				t.Errorf("there is no test %s.%s", pkg, test)
			}
			switch {
			case sub == "":
			case pkg == "mls" && test == "TestReject":
				if !rows[Rule(sub)] {
					t.Errorf("there is no row %s", sub)
				}
			case pkg == "mls":
				if !strings.Contains(sources[pkg], fmt.Sprintf("row(%q", sub)) {
					t.Errorf("there is no test %s/%s", test, sub)
				}
			case pkg != "rooms" && test == "TestReject": // what both sides refuse is one list
				if src, err := os.ReadFile("../internal/rejects/matrix.txt"); err != nil || !slices.Contains(strings.Fields(string(src)), strings.TrimPrefix(sub, "matrix/")) {
					t.Errorf("there is no row %s of %s: %v", sub, pkg, err)
				}
			default: // rows of package rooms are named by its rules
				if src, err := os.ReadFile(filepath.Join("..", pkg, "refusal.go")); err != nil || !strings.Contains(string(src), fmt.Sprintf("%q", sub)) {
					t.Errorf("there is no row %s of %s: %v", sub, pkg, err)
				}
			}
		}
	}
	if points < 4+2+7+4+9+5+8 {
		t.Errorf("the page has %d points", points)
	}
	limits := reflect.ValueOf(defaultLimits)
	stated := make(map[string]bool)
	for _, m := range regexp.MustCompile("`Limits\\.([A-Za-z]+)` = ([0-9]+)").FindAllStringSubmatch(string(raw), -1) {
		f := limits.FieldByName(m[1])
		if !f.IsValid() || fmt.Sprint(f.Interface()) != m[2] {
			t.Errorf("the page says that %s is %s", m[1], m[2])
		}
		stated[m[1]] = true
	}
	for i := range limits.NumField() {
		if name := limits.Type().Field(i).Name; !stated[name] {
			t.Errorf("the page does not give the value of %s", name)
		}
	}
}
