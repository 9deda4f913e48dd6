package main

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A mutant is the package without one of its validations.
type mutant struct {
	n        int
	file     string
	line     int
	function string
	what     string // the condition, or the call that is left out
	rule     string // that the refusal names, if it can be seen
}

// key names the mutant for as long as its own code stays as it is.
func (m *mutant) key() string {
	return fmt.Sprintf("%s %s: %s", filepath.Base(m.file), m.function, m.what)
}

func (m *mutant) String() string {
	return fmt.Sprintf("%s:%d %s: %s", m.file, m.line, m.function, m.what)
}

// An edit inserts text into a file.
type edit struct {
	at   int
	text string
}

// chooser is the file that is added to the package.
const chooser = `package %s

import (
	"os"
	"strconv"
)

var (
	mutantActive, _ = strconv.Atoi(os.Getenv(%q))
	mutantPrinting  = os.Getenv(%q) != ""
	mutantOutput    = os.Stdout // examples put another file there
)

// mutantRefuses is asked where a validation refuses something.
func mutantRefuses(n int) bool {
	if mutantPrinting {
		_, _ = mutantOutput.WriteString("\nmutant " + strconv.Itoa(n) + "\n")
	}
	return mutantActive != n
}
`

// findMutants returns the mutants of a package, and its files with all of them in.
func findMutants(folder string) ([]*mutant, map[string][]byte, error) {
	names, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		return nil, nil, err
	}
	slices.Sort(names)
	s := &search{}
	files := map[string][]byte{}
	pkg := ""
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return nil, nil, err
		}
		s.fset = token.NewFileSet()
		f, err := parser.ParseFile(s.fset, name, src, parser.ParseComments)
		if err != nil {
			return nil, nil, err
		}
		pkg, s.file, s.src, s.edits, s.seen = f.Name.Name, name, src, nil, map[ast.Node]bool{}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil && fn.Name.Name != "invalid" && fn.Name.Name != "unexpected" && fn.Name.Name != "newInvalid" && fn.Name.Name != "fail" {
				s.function(fn)
			}
		}
		if len(s.edits) > 0 {
			files[name] = apply(src, s.edits)
		}
	}
	if len(s.found) == 0 {
		return nil, nil, fmt.Errorf("no validation in %s", folder)
	}
	files[filepath.Join(folder, "zz_mutants.go")] = fmt.Appendf(nil, chooser, pkg, variable, printing)
	// Two validations may read the same.
	count := map[string]int{}
	for _, m := range s.found {
		if count[m.key()]++; count[m.key()] > 1 {
			m.what = fmt.Sprintf("%s (%d)", m.what, count[m.key()])
		}
	}
	return s.found, files, nil
}

func apply(src []byte, edits []edit) []byte {
	slices.SortStableFunc(edits, func(a, b edit) int { return cmp.Compare(a.at, b.at) })
	var out bytes.Buffer
	at := 0
	for _, e := range edits {
		out.Write(src[at:e.at])
		out.WriteString(e.text)
		at = e.at
	}
	out.Write(src[at:])
	return out.Bytes()
}

type search struct {
	fset  *token.FileSet
	file  string
	src   []byte
	name  string
	edits []edit
	seen  map[ast.Node]bool
	found []*mutant
	stack []ast.Node
}

func (s *search) function(fn *ast.FuncDecl) {
	s.name = fn.Name.Name
	if fn.Recv != nil {
		s.name = strings.TrimLeft(s.text(fn.Recv.List[0].Type), "*") + "." + s.name
	}
	s.stack = nil
	ast.Inspect(fn, func(n ast.Node) bool {
		if n == nil {
			s.stack = s.stack[:len(s.stack)-1]
			return true
		}
		s.stack = append(s.stack, n)
		switch n := n.(type) {
		case *ast.CallExpr:
			if s.refuses(n) {
				s.refusal(n)
			}
		case *ast.ReturnStmt:
			for _, x := range n.Results {
				if id, ok := x.(*ast.Ident); ok && sentinel.MatchString(id.Name) {
					s.refusal(id)
				}
			}
		case *ast.IfStmt:
			if s.handsOn(n) {
				s.guard(n)
			}
		}
		return true
	})
}

var sentinel = regexp.MustCompile(`^Err[A-Z]`)

// refuses tells whether a call makes a refusal: invalid(…), s.fail(…), or a new error that hands on no other.
func (s *search) refuses(c *ast.CallExpr) bool {
	switch f := c.Fun.(type) {
	case *ast.Ident:
		return f.Name == "invalid" || f.Name == "unexpected"
	case *ast.SelectorExpr:
		switch s.text(f) {
		case "errors.New", "fmt.Errorf":
			return !strings.Contains(s.text(c), "%w")
		}
		return f.Sel.Name == "fail"
	}
	return false
}

var checks = regexp.MustCompile(`^(?i)(check|verify|validate|accepts)`)

// handsOn tells whether an if hands on the error of a check: if err := x.check…(); err != nil { return err }.
func (s *search) handsOn(n *ast.IfStmt) bool {
	as, ok := n.Init.(*ast.AssignStmt)
	if !ok || len(as.Rhs) != 1 || s.text(n.Cond) != "err != nil" {
		return false
	}
	call, ok := as.Rhs[0].(*ast.CallExpr)
	if !ok {
		return false
	}
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return checks.MatchString(f.Name)
	case *ast.SelectorExpr:
		return checks.MatchString(f.Sel.Name)
	}
	return false
}

// refusal makes the mutant of a call: without the condition that leads there if there is one.
func (s *search) refusal(call ast.Expr) {
	for i := len(s.stack) - 2; i >= 0; i-- {
		below := s.stack[i+1]
		switch n := s.stack[i].(type) {
		case *ast.IfStmt:
			if n.Body == below {
				s.guard(n)
				return
			}
			if n.Else == below {
				s.without(call)
				return
			}
		case *ast.CaseClause:
			if s.tagless(i) && len(n.List) > 0 {
				s.clause(n)
				return
			}
			s.without(call)
			return
		case *ast.FuncLit, *ast.FuncDecl:
			s.without(call)
			return
		}
	}
}

// tagless tells whether the clause at stack[i] is that of a switch without a value.
func (s *search) tagless(i int) bool {
	for i--; i >= 0; i-- {
		if sw, ok := s.stack[i].(*ast.SwitchStmt); ok {
			return sw.Tag == nil
		}
		if _, ok := s.stack[i].(*ast.TypeSwitchStmt); ok {
			return false
		}
	}
	return false
}

func (s *search) guard(n *ast.IfStmt) {
	if s.seen[n] {
		return
	}
	s.seen[n] = true
	what := s.text(n.Cond)
	if n.Init != nil {
		what = s.text(n.Init) + "; " + what
	}
	s.condition(n.Cond, what, s.text(n.Body))
}

// condition makes a mutant for each of the conditions that || joins.
func (s *search) condition(cond ast.Expr, what, body string) {
	var parts []ast.Expr
	var take func(x ast.Expr)
	take = func(x ast.Expr) {
		switch y := x.(type) {
		case *ast.ParenExpr:
			take(y.X)
		case *ast.BinaryExpr:
			if y.Op == token.LOR {
				take(y.X)
				take(y.Y)
				return
			}
			parts = append(parts, x)
		default:
			parts = append(parts, x)
		}
	}
	take(cond)
	for _, x := range parts {
		of := what
		if len(parts) > 1 {
			of = fmt.Sprintf("%s, without %s", what, s.text(x))
		}
		id := s.add(x.Pos(), of, body)
		s.insert(x.Pos(), "(")
		s.insert(x.End(), fmt.Sprintf(") && mutantRefuses(%d)", id))
		if len(parts) > 1 {
			s.edits[len(s.edits)-2].text = "(("
			s.edits[len(s.edits)-1].text += ")"
		}
	}
}

func (s *search) clause(n *ast.CaseClause) {
	if s.seen[n] {
		return
	}
	s.seen[n] = true
	for _, x := range n.List {
		s.condition(x, "case "+s.text(x), s.text(n))
	}
}

// without leaves out a refusal that no condition stands before: the function returns that all is well.
func (s *search) without(call ast.Expr) {
	var stmt ast.Stmt
	for i := len(s.stack) - 1; i > 0 && stmt == nil; i-- {
		switch n := s.stack[i].(type) {
		case *ast.ReturnStmt, *ast.AssignStmt, *ast.ExprStmt, *ast.DeclStmt:
			stmt = n.(ast.Stmt)
		}
	}
	var results *ast.FieldList
	for i := len(s.stack) - 1; i >= 0 && results == nil; i-- {
		switch n := s.stack[i].(type) {
		case *ast.FuncLit:
			results = n.Type.Results
		case *ast.FuncDecl:
			results = n.Type.Results
		}
	}
	if stmt == nil || results == nil || s.seen[stmt] {
		return
	}
	s.seen[stmt] = true
	var zeros []string
	for _, f := range results.List {
		for range max(1, len(f.Names)) {
			t := s.text(f.Type)
			if t == "bool" {
				zeros = append(zeros, "true")
				continue
			}
			zeros = append(zeros, "*new("+t+")")
		}
	}
	id := s.add(call.Pos(), "without "+s.text(call), s.text(call))
	s.insert(stmt.Pos(), fmt.Sprintf("if !mutantRefuses(%d) { return %s }; ", id, strings.Join(zeros, ", ")))
}

var rules = regexp.MustCompile(`"([a-z]+(?:-[a-z]+)*/[a-z0-9-]+)"`)

func (s *search) add(pos token.Pos, what, body string) int {
	m := &mutant{n: len(s.found) + 1, file: s.file, line: s.fset.Position(pos).Line, function: s.name, what: strings.Join(strings.Fields(what), " ")}
	if rule := rules.FindStringSubmatch(body); rule != nil {
		m.rule = rule[1]
	}
	s.found = append(s.found, m)
	return m.n
}

func (s *search) insert(at token.Pos, text string) {
	s.edits = append(s.edits, edit{s.fset.Position(at).Offset, text})
}

func (s *search) text(n ast.Node) string {
	return string(s.src[s.fset.Position(n.Pos()).Offset:s.fset.Position(n.End()).Offset])
}
