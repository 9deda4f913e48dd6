package rooms

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// TestEventReferenceIsComplete compares docs/events.md with the code: every
// identifier, every JSON key and every rule has to be on the page.
func TestEventReferenceIsComplete(t *testing.T) {
	raw, err := os.ReadFile("../docs/events.md")
	must(t, err)
	page := string(raw)
	found := 0
	for _, name := range []string{"events.go", "receipts.go", "refusal.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		must(t, err)
		values := map[string]string{"Prefix": Prefix}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for i, ident := range n.Names {
					if i >= len(n.Values) || ident.Name == "CommitFileMIME" {
						continue
					}
					v := constantString(n.Values[i], values)
					values[ident.Name] = v
					if v == "" || v == Prefix {
						continue
					}
					found++
					if !strings.Contains(page, v) {
						t.Errorf("%s = %q is not in docs/events.md", ident.Name, v)
					}
				}
			case *ast.Field:
				if n.Tag == nil {
					return true
				}
				tag, err := strconv.Unquote(n.Tag.Value)
				must(t, err)
				key, _, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
				if key == "" {
					return true
				}
				found++
				if !strings.Contains(page, key) {
					t.Errorf("JSON key %q is not in docs/events.md", key)
				}
			}
			return true
		})
	}
	if found < 150 {
		t.Errorf("only %d identifiers found: the test reads the wrong files", found)
	}
	if !strings.Contains(page, "0xF6D1") || ExtensionPolicy != 0xF6D1 {
		t.Error("the policy extension is not in docs/events.md")
	}
}

// constantString evaluates a string constant made of literals and names.
func constantString(e ast.Expr, values map[string]string) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if s, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
			return s
		}
	case *ast.Ident:
		return values[e.Name]
	case *ast.BinaryExpr:
		return constantString(e.X, values) + constantString(e.Y, values)
	}
	return ""
}

// TestEventTypesAreOfThisProject checks that every type of ours has the prefix
// and every one an ordinary member sends is open to all by power levels.
func TestEventTypesAreOfThisProject(t *testing.T) {
	for _, typ := range PowerLevelTypes() {
		if !strings.HasPrefix(typ, Prefix) || len(typ) > 255 {
			t.Errorf("type %q", typ)
		}
	}
}
