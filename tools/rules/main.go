// Rules checks what the compiler and the linters do not: file sizes, the direction of imports, that pure packages stay
// pure, that the first level holds what it should, and that nothing names a package registry or is left undone. It reads the files that git would commit.
package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const module = "github.com/matrix-mls/matrix-mls"

const maxLines = 1200

// Written in parts, so that this file does not name them either.
var registryHosts = []string{
	"proxy.golang" + ".org", "sum.golang" + ".org", "pypi" + ".org", "pythonhosted" + ".org", "index.crates" + ".io",
	"static.crates" + ".io", "registry.npmjs" + ".org", "deb.debian" + ".org", "repo1.maven" + ".org",
}

var undone = []string{"TO" + "DO", "FIX" + "ME", "XX" + "X:"}

// top is what the first level holds.
var top = []string{".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "appservice", "client", "cmd", "config.example.yaml",
	"contrib", "docs", "e2e", "embed.go", "federation", "go.mod", "go.sum", "internal", "interop", "lab", "mls", "proxy", "rooms", "simulation", "tools"}

// allowed says which of our packages a folder may import, itself aside. A folder that is not listed is free.
var allowed = map[string][]string{
	"mls":        {},
	"federation": {},
	"rooms":      {"mls", "federation"},
	"appservice": {"mls", "federation", "rooms", "internal/memory", "internal/sqlite"},
	"client":     {"mls", "federation", "rooms", "internal/sqlite"},
	"proxy":      {"mls", "federation", "rooms", "client", "internal/memory"},
	"lab":        {},
	"lab/demo":   {"lab", "e2e", "client"},
	"interop":    {"mls", "lab"},
}

// testsMay lists what only test files of a folder may import on top.
var testsMay = []string{"lab", "internal"}

// anyMay lists packages that every folder may import.
var anyMay = []string{"internal/probe"}

// pure packages do no I/O and know no clock, logger or goroutine.
var pure = []string{"mls", "federation", "rooms"}

var impureImports = []string{"os", "net", "log", "io/fs", "database", "syscall", "path/filepath", "github.com/rs/zerolog",
	"maunium.net/go/mautrix/appservice", "go.mau.fi/util/dbutil"}

var clock = []string{"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "Tick", "NewTicker", "NewTimer"}

// mayDefaultToClock is the one place that names the clock: the documented default of mls.Config.Now.
const mayDefaultToClock = "mls/config.go"

var problems int

func problem(path string, line int, format string, args ...any) {
	problems++
	fmt.Printf("%s:%d: %s\n", path, line, fmt.Sprintf(format, args...))
}

func main() {
	out, err := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		fmt.Fprintf(os.Stderr, "rules: list the files: %v\n", err)
		os.Exit(1)
	}
	for _, path := range strings.Split(strings.TrimRight(string(out), "\x00"), "\x00") {
		raw, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			continue // deleted, not yet committed
		}
		if first, _, _ := strings.Cut(path, "/"); !slices.Contains(top, first) {
			problem(path, 0, "%s has no place on the first level: put it into a folder, or name it in tools/rules", first)
		}
		if err != nil {
			problem(path, 0, "%v", err)
			continue
		}
		checkText(path, raw)
		if strings.HasSuffix(path, ".go") {
			checkGo(path, raw)
		}
	}
	if problems > 0 {
		fmt.Printf("rules: %d problems\n", problems)
		os.Exit(1)
	}
}

func checkText(path string, raw []byte) {
	source := slices.Contains([]string{".go", ".py", ".rs", ".sh", ".sql"}, filepath.Ext(path))
	for i, line := range bytes.Split(raw, []byte("\n")) {
		for _, host := range registryHosts {
			if bytes.Contains(line, []byte(host)) {
				problem(path, i+1, "names the package registry %s: use package names", host)
			}
		}
		for _, mark := range undone {
			if source && bytes.Contains(line, []byte(mark)) {
				problem(path, i+1, "says %s: do it, or open an issue", mark)
			}
		}
	}
	if n := bytes.Count(raw, []byte("\n")); source && n > maxLines {
		problem(path, n, "%d lines, more than %d: split it", n, maxLines)
	}
}

func checkGo(path string, raw []byte) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, raw, 0)
	if err != nil {
		problem(path, 0, "%v", err)
		return
	}
	folder, _, _ := strings.Cut(filepath.ToSlash(path), "/")
	if dir := filepath.ToSlash(filepath.Dir(path)); allowed[dir] != nil {
		folder = dir
	}
	// A package such as storetest is there for tests only.
	test := strings.HasSuffix(path, "_test.go") || strings.HasSuffix(filepath.Dir(path), "test")
	mayImport, limited := allowed[folder]
	// A test package of its own is above what it tests: the vectors of federation
	// are in the wire form of rooms.
	above := test && strings.HasSuffix(f.Name.Name, "_test")
	isPure := slices.Contains(pure, folder) && !test
	for _, spec := range f.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		line := fset.Position(spec.Pos()).Line
		if ours, ok := strings.CutPrefix(name, module+"/"); ok && limited {
			to, _, _ := strings.Cut(ours, "/")
			if to != folder && !slices.Contains(anyMay, ours) && !slices.Contains(mayImport, to) && !slices.Contains(mayImport, ours) && !(test && slices.Contains(testsMay, to)) && !(above && slices.Contains(pure, to)) {
				problem(path, line, "%s may not import %s", folder, to)
			}
		}
		if isPure && slices.ContainsFunc(impureImports, func(p string) bool { return name == p || strings.HasPrefix(name, p+"/") }) {
			problem(path, line, "%s is pure and may not import %s", folder, name)
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			if isPure {
				problem(path, fset.Position(n.Pos()).Line, "%s is pure and starts no goroutine", folder)
			}
		case *ast.SelectorExpr:
			pkg, ok := n.X.(*ast.Ident)
			if !ok || pkg.Name != "time" {
				break
			}
			if isPure && slices.Contains(clock, n.Sel.Name) && path != mayDefaultToClock {
				problem(path, fset.Position(n.Pos()).Line, "%s is pure and has no clock: time.%s", folder, n.Sel.Name)
			}
			if test && n.Sel.Name == "Sleep" {
				problem(path, fset.Position(n.Pos()).Line, "a test waits for what it tests, not for time.Sleep")
			}
		}
		return true
	})
}
