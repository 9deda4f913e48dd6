package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.mau.fi/util/configupgrade"
	"gopkg.in/yaml.v3"

	matrixmls "github.com/matrix-mls/matrix-mls"
)

// EnvPrefix begins the name of every environment variable that overrides a key.
const EnvPrefix = "MATRIX_MLS_"

// Options says how to load a configuration.
type Options struct {
	NoUpdate bool     // leave the file as it is, even if keys are missing
	Environ  []string // as os.Environ; nil: no overrides
	// Incomplete skips the checks of values, for setup and registration,
	// which fill in what is missing.
	Incomplete bool
}

// Loaded is a configuration with where it came from.
type Loaded struct {
	*Config
	Path    string
	Updated bool     // the file was rewritten with new keys
	Backup  string   // where the old text went, if Updated
	FromEnv []string // names of the variables that took effect
}

// KeyError is what is wrong with one key.
type KeyError struct {
	File string
	Key  string // dotted path
	Line int    // 0 if it came from the environment or is missing
	Env  string // the variable it came from, if any
	Text string
}

// Error names the place and the key.
func (e *KeyError) Error() string {
	switch {
	case e.Env != "":
		return fmt.Sprintf("config: environment %s (%s): %s", e.Env, e.Key, e.Text)
	case e.Line > 0:
		return fmt.Sprintf("config: %s:%d: %s: %s", e.File, e.Line, e.Key, e.Text)
	}
	return fmt.Sprintf("config: %s: %s: %s", e.File, e.Key, e.Text)
}

// Load reads the file, refuses unknown keys and impossible values, adds keys
// that are new since it was written (keeping every value of the user's), and
// applies the environment.
func Load(path string, o Options) (*Loaded, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return load(path, data, o)
}

// Check tells what is wrong with a text that is to be written to path, as [Load]
// would afterwards.
func Check(path string, text []byte, environ []string) error {
	_, err := load(path, text, Options{NoUpdate: true, Environ: environ})
	return err
}

// Parse reads a text that is to be written to path, without the environment and
// without checking values.
func Parse(path string, text []byte) (*Config, error) {
	loaded, err := load(path, text, Options{NoUpdate: true, Incomplete: true})
	if err != nil {
		return nil, err
	}
	return loaded.Config, nil
}

func load(path string, data []byte, o Options) (*Loaded, error) {
	source, err := parse(path, data)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(unknownKeys(path, source, reflect.TypeFor[Config](), "")...); err != nil {
		return nil, err
	}
	upgraded, err := upgrade(source)
	if err != nil {
		return nil, err
	}
	out := &Loaded{Config: new(Config), Path: path}
	if !o.NoUpdate && !bytes.Equal(upgraded, data) {
		if out.Backup, err = rewrite(path, data, upgraded); err != nil {
			return nil, err
		}
		out.Updated = true
	}
	root, err := parse(path, upgraded)
	if err != nil {
		return nil, fmt.Errorf("config: internal: the upgraded configuration is malformed: %w", err)
	}
	env, errs := overrides(root, o.Environ)
	for name := range env {
		out.FromEnv = append(out.FromEnv, name)
	}
	slices.Sort(out.FromEnv)
	// Line numbers are those of the user's file as it now is on disk.
	lines := source
	if out.Updated {
		lines = root
	}
	where := func(key, text string) error {
		for name, k := range env {
			if k == key {
				return &KeyError{File: path, Key: key, Env: name, Text: text}
			}
		}
		return &KeyError{File: path, Key: key, Line: lineOf(lines, strings.Split(key, ".")), Text: text}
	}
	errs = append(errs, decode(root, reflect.ValueOf(out.Config).Elem(), "", where)...)
	if len(errs) == 0 && !o.Incomplete {
		errs = out.Config.check(where)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return out, nil
}

// Default is the configuration of config.example.yaml.
func Default() *Config {
	root, err := parse("config.example.yaml", []byte(matrixmls.ExampleConfig))
	if err == nil {
		var cfg Config
		errs := decode(root, reflect.ValueOf(&cfg).Elem(), "", func(key, text string) error {
			return &KeyError{File: "config.example.yaml", Key: key, Text: text}
		})
		if err = errors.Join(errs...); err == nil {
			return &cfg
		}
	}
	panic(fmt.Sprintf("config: internal: the example configuration is malformed: %v", err))
}

// Example is config.example.yaml in the form that loading leaves unchanged.
func Example() []byte {
	root, err := parse("config.example.yaml", []byte(matrixmls.ExampleConfig))
	if err == nil {
		var out []byte
		if out, err = upgrade(root); err == nil {
			return out
		}
	}
	panic(fmt.Sprintf("config: internal: the example configuration is malformed: %v", err))
}

// Render writes the example configuration with some values set. Keys are
// dotted paths of scalars.
func Render(base []byte, set map[string]string) ([]byte, error) {
	source, err := parse("config", base)
	if err != nil {
		return nil, err
	}
	for key, value := range set {
		node := find(source, strings.Split(key, "."))
		if node == nil || node.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("config: internal: no scalar key %s", key)
		}
		style := yaml.Style(0)
		if node.Tag != "!!int" && node.Tag != "!!bool" {
			node.Tag = "!!str"
		}
		node.Value, node.Style = value, style
	}
	return upgrade(source)
}

func parse(path string, data []byte) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("config: %s is no valid YAML: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if doc.Kind == 0 {
		return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}, nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("config: %s:%d: the configuration must be a mapping of keys", path, root.Line)
	}
	return root, nil
}

// fields lists the YAML keys of a struct type with the fields they fill.
func fields(t reflect.Type) map[string]reflect.StructField {
	out := make(map[string]reflect.StructField, t.NumField())
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		out[name] = t.Field(i)
	}
	return out
}

// opaque types decode themselves; their inner keys are checked by strictly
// decoding them.
func opaque(t reflect.Type) bool {
	return t.Kind() != reflect.Struct || t.PkgPath() != reflect.TypeFor[Config]().PkgPath()
}

func unknownKeys(file string, node *yaml.Node, t reflect.Type, prefix string) (errs []error) {
	known := fields(t)
	seen := make(map[string]int)
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		path := strings.TrimPrefix(prefix+"."+key.Value, ".")
		field, ok := known[key.Value]
		switch {
		case !ok:
			errs = append(errs, &KeyError{File: file, Key: path, Line: key.Line, Text: "unknown key" + suggest(key.Value, known)})
		case seen[key.Value] > 0:
			errs = append(errs, &KeyError{File: file, Key: path, Line: key.Line,
				Text: fmt.Sprintf("set already in line %d", seen[key.Value])})
		case !opaque(field.Type):
			if value.Kind != yaml.MappingNode {
				errs = append(errs, &KeyError{File: file, Key: path, Line: value.Line, Text: "must be a mapping of keys"})
				continue
			}
			errs = append(errs, unknownKeys(file, value, field.Type, path)...)
		}
		seen[key.Value] = key.Line
	}
	return errs
}

// suggest finds a known key that a misspelt one may have meant.
func suggest(wrong string, known map[string]reflect.StructField) string {
	best, bestDistance := "", 3
	for name := range known {
		if d := distance(wrong, name); d < bestDistance || d == bestDistance && best != "" && name < best {
			best, bestDistance = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s?)", best)
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		previous := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			previous, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, previous+cost)
		}
	}
	return row[len(b)]
}

// decode fills a struct key by key, so that an error names its key.
func decode(node *yaml.Node, v reflect.Value, prefix string, where func(key, text string) error) (errs []error) {
	known := fields(v.Type())
	for i := 0; i+1 < len(node.Content); i += 2 {
		path := strings.TrimPrefix(prefix+"."+node.Content[i].Value, ".")
		field, ok := known[node.Content[i].Value]
		if !ok {
			continue
		}
		value, target := node.Content[i+1], v.FieldByIndex(field.Index)
		if !opaque(field.Type) {
			errs = append(errs, decode(value, target, path, where)...)
			continue
		}
		if err := strictDecode(value, target); err != nil {
			errs = append(errs, where(path, reason(err, field.Type)))
		}
	}
	return errs
}

func strictDecode(value *yaml.Node, target reflect.Value) error {
	if target.Kind() == reflect.String && value.Tag == "!!null" {
		return errors.New("has no value")
	}
	if target.Kind() != reflect.Struct {
		return value.Decode(target.Addr().Interface())
	}
	text, err := yaml.Marshal(value)
	if err != nil {
		return err
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	return dec.Decode(target.Addr().Interface())
}

var (
	goTypePattern = regexp.MustCompile(` in type \S+| into \S+$`)
	linePattern   = regexp.MustCompile(`^line \d+: `)
)

// reason turns a YAML error into words that fit behind a key.
func reason(err error, t reflect.Type) string {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	text = strings.TrimSpace(strings.TrimPrefix(text, "unmarshal errors:\n"))
	text, _, _ = strings.Cut(text, "\n")
	text = goTypePattern.ReplaceAllString(linePattern.ReplaceAllString(text, ""), "")
	switch {
	case t == reflect.TypeFor[Duration]():
		return "must be a duration such as 10s, 5m or 24h"
	case t.Kind() == reflect.Int || t.Kind() == reflect.Int64:
		return "must be a whole number"
	case t.Kind() == reflect.Uint16:
		return "must be a number from 0 to 65535"
	case t.Kind() == reflect.Bool:
		return "must be true or false"
	case t.Kind() == reflect.Slice:
		return "must be a list of texts"
	}
	return text
}

func find(node *yaml.Node, path []string) *yaml.Node {
	for _, name := range path {
		var next *yaml.Node
		for i := 0; node.Kind == yaml.MappingNode && i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == name {
				next = node.Content[i+1]
			}
		}
		if next == nil {
			return nil
		}
		node = next
	}
	return node
}

func lineOf(node *yaml.Node, path []string) int {
	if found := find(node, path); found != nil {
		return found.Line
	}
	return 0
}

// leaves lists the dotted paths of all keys that hold a value.
func leaves(t reflect.Type, prefix string) (out []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		path := strings.TrimPrefix(prefix+"."+name, ".")
		if opaque(f.Type) {
			out = append(out, path)
		} else {
			out = append(out, leaves(f.Type, path)...)
		}
	}
	return out
}

// Keys lists the dotted paths of all keys.
func Keys() []string { return leaves(reflect.TypeFor[Config](), "") }

// EnvName is the environment variable that overrides a key.
func EnvName(key string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// overrides puts environment values into the tree and returns which variable
// set which key.
func overrides(root *yaml.Node, environ []string) (used map[string]string, errs []error) {
	used = make(map[string]string)
	byName := make(map[string]string)
	for _, key := range Keys() {
		byName[EnvName(key)] = key
	}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, EnvPrefix) {
			continue
		}
		key, ok := byName[name]
		if !ok {
			if key, ok = byName[strings.TrimSuffix(name, "_FILE")]; !ok || !strings.HasSuffix(name, "_FILE") {
				errs = append(errs, fmt.Errorf("config: environment %s: no such key", name))
				continue
			}
			content, err := os.ReadFile(value)
			if err != nil {
				errs = append(errs, &KeyError{Key: key, Env: name, Text: err.Error()})
				continue
			}
			value = strings.TrimRight(string(content), "\r\n")
		}
		node := find(root, strings.Split(key, "."))
		if node == nil {
			errs = append(errs, fmt.Errorf("config: internal: key %s is not in the example configuration", key))
			continue
		}
		var replacement yaml.Node
		if node.Kind == yaml.ScalarNode && node.Tag == "!!str" {
			replacement.SetString(value)
		} else if err := yaml.Unmarshal([]byte(value), &replacement); err != nil || replacement.Kind == 0 {
			errs = append(errs, &KeyError{Key: key, Env: name, Text: "is no valid YAML value"})
			continue
		} else {
			replacement = *replacement.Content[0]
		}
		*node, used[name] = replacement, key
	}
	return used, errs
}

// upgrade copies a user's values into the newest example configuration.
func upgrade(source *yaml.Node) ([]byte, error) {
	base, err := parse("config.example.yaml", []byte(matrixmls.ExampleConfig))
	if err != nil {
		return nil, err
	}
	helper := configupgrade.NewHelper(base, source)
	everyType := configupgrade.Null | configupgrade.Bool | configupgrade.Str | configupgrade.Int | configupgrade.Float |
		configupgrade.Timestamp | configupgrade.List | configupgrade.Map
	for _, key := range Keys() {
		helper.Copy(everyType, strings.Split(key, ".")...)
	}
	for i := 0; i < len(base.Content); i += 2 {
		if i > 0 {
			helper.AddSpaceBeforeComment(base.Content[i].Value)
		}
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(matrixmls.ExampleConfig), &doc); err != nil {
		return nil, fmt.Errorf("config: internal: %w", err)
	}
	doc.Content = []*yaml.Node{base} // keeps the comment above the first key
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(4)
	if err := enc.Encode(&doc); err != nil {
		return nil, fmt.Errorf("config: writing the upgraded configuration: %w", err)
	}
	return out.Bytes(), nil
}

// rewrite replaces the file in one step and keeps the old text beside it.
func rewrite(path string, before, after []byte) (backup string, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("config: %w", err)
	}
	backup = path + ".bak-" + time.Now().UTC().Format("20060102-150405")
	if err := os.WriteFile(backup, before, info.Mode().Perm()); err != nil {
		return "", fmt.Errorf("config: cannot keep a copy of the old configuration: %w (start with -n to leave the file alone)", err)
	}
	if err := WriteFile(path, after, info.Mode().Perm()); err != nil {
		return "", fmt.Errorf("config: cannot write the upgraded configuration: %w (start with -n to leave the file alone)", err)
	}
	return backup, nil
}

// WriteFile replaces a file in one step, so that a crash leaves the old or the
// new one. The owner and group of an old file stay.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	old, statErr := os.Stat(path)
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if at := new(os.PathError); errors.As(err, &at) {
		return &os.PathError{Op: "write", Path: path, Err: at.Err} // nobody asked for the temporary name
	}
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err == nil && statErr == nil {
		err = KeepOwner(tmp.Name(), old)
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	return err
}
