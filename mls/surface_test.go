package mls

import (
	"bytes"
	"flag"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var updateSurface = flag.Bool("update-surface", false, "write testdata/surface.txt")

// What is exported is documented, and names no type that is not exported:
// nobody could write such a type down.
func TestSurfaceLeaksNoInternals(t *testing.T) {
	files, err := filepath.Glob("*.go")
	noError(t, err)
	fset := token.NewFileSet()
	hidden := make(map[string]bool)
	var parsed []*ast.File
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		noError(t, err)
		parsed = append(parsed, f)
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, s := range g.Specs {
				if name := s.(*ast.TypeSpec).Name.Name; !ast.IsExported(name) {
					hidden[name] = true
				}
			}
		}
	}
	exported := 0
	var check func(name string, n ast.Node)
	check = func(name string, n ast.Node) {
		ast.Inspect(n, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				return false // of another package
			case *ast.Field:
				check(name, n.Type) // not the names
				return false
			}
			if id, ok := n.(*ast.Ident); ok && hidden[id.Name] {
				t.Errorf("%s: %s mentions %s", fset.Position(id.Pos()), name, id.Name)
			}
			return true
		})
	}
	types := func(name string, fields *ast.FieldList) {
		if fields == nil {
			return
		}
		for _, f := range fields.List {
			check(name, f.Type)
		}
	}
	for _, f := range parsed {
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if !d.Name.IsExported() {
					continue
				}
				if d.Recv != nil {
					recv := d.Recv.List[0].Type
					if p, ok := recv.(*ast.StarExpr); ok {
						recv = p.X
					}
					// A method that embedding lends to an exported type counts as well.
					if id, ok := recv.(*ast.Ident); ok && hidden[id.Name] && id.Name != "epoch" && id.Name != "commitInfo" {
						continue
					}
				}
				exported++
				if standard := map[string]bool{"String": true, "Format": true, "Error": true, "Unwrap": true}; d.Doc == nil && !standard[d.Name.Name] {
					t.Errorf("%s: %s has no comment", fset.Position(d.Pos()), d.Name.Name)
				}
				types(d.Name.Name, d.Type.Params)
				types(d.Name.Name, d.Type.Results)
			case *ast.GenDecl:
				for _, s := range d.Specs {
					ts, ok := s.(*ast.TypeSpec)
					if !ok || !ts.Name.IsExported() {
						continue
					}
					exported++
					if d.Doc == nil && ts.Doc == nil {
						t.Errorf("%s: %s has no comment", fset.Position(ts.Pos()), ts.Name.Name)
					}
					if st, ok := ts.Type.(*ast.StructType); ok {
						for _, field := range st.Fields.List {
							for _, name := range field.Names {
								if name.IsExported() {
									check(ts.Name.Name+"."+name.Name, field.Type)
								}
							}
						}
					}
				}
			}
		}
	}
	if exported < 150 {
		t.Errorf("only %d exported names were found", exported)
	}
}

// Whoever imports the package relies on all that is exported: what is added,
// changed or taken away shows in testdata/surface.txt, and so in review.
//
//	go test ./mls -run Surface -update-surface
func TestSurfaceIsTheOneThatIsListed(t *testing.T) {
	files, err := filepath.Glob("*.go")
	noError(t, err)
	fset := token.NewFileSet()
	var lines []string
	line := func(n any) {
		var b bytes.Buffer
		noError(t, printer.Fprint(&b, fset, n))
		lines = append(lines, strings.Join(strings.Fields(b.String()), " "))
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		noError(t, err)
		ast.FileExports(f)
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				d.Body = nil
				line(d)
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						line(&ast.GenDecl{Tok: d.Tok, Specs: []ast.Spec{s}})
					case *ast.ValueSpec:
						for i, id := range s.Names {
							one := &ast.ValueSpec{Names: []*ast.Ident{id}, Type: s.Type}
							if d.Tok == token.CONST && i < len(s.Values) {
								one.Values = s.Values[i : i+1]
							}
							line(&ast.GenDecl{Tok: d.Tok, Specs: []ast.Spec{one}})
						}
					}
				}
			}
		}
	}
	slices.Sort(lines)
	got := strings.Join(lines, "\n") + "\n"
	golden := filepath.Join("testdata", "surface.txt")
	if *updateSurface {
		noError(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	noError(t, err)
	if got != string(want) {
		listed := strings.Split(string(want), "\n")
		for _, l := range lines {
			if !slices.Contains(listed, l) {
				t.Errorf("not in %s: %s", golden, l)
			}
		}
		for _, l := range listed {
			if l != "" && !slices.Contains(lines, l) {
				t.Errorf("in %s, and gone: %s", golden, l)
			}
		}
		t.Error("where this is meant, say so in CHANGELOG.md and run this test with -update-surface")
	}
}
