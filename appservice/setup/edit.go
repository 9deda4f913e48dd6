package setup

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/matrix-mls/matrix-mls/appservice/config"
)

// Line is the text to add by hand where the file is not edited.
func (hc *HomeserverConfig) Line(registration string) string {
	keys := hc.listKey()
	var b strings.Builder
	for depth, key := range keys {
		fmt.Fprintf(&b, "%s%s:\n", strings.Repeat("  ", depth), key)
	}
	fmt.Fprintf(&b, "%s- %s\n", strings.Repeat("  ", len(keys)), quote(registration))
	return b.String()
}

// AddRegistration names the registration in the homeserver's configuration and
// keeps a copy of the old file beside it. It changes nothing else in the file,
// and checks that: comments, order and layout stay.
func (hc *HomeserverConfig) AddRegistration(registration string) (backup string, err error) {
	after, err := hc.edited(registration)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(hc.Path)
	if err != nil {
		return "", fmt.Errorf("setup: %w", err)
	}
	backup = hc.Path + ".bak-" + time.Now().UTC().Format("20060102-150405")
	if err := copyNew(backup, hc.text, info); err != nil {
		return "", fmt.Errorf("setup: cannot keep a copy of the homeserver's configuration: %w", err)
	}
	if err := config.WriteFile(hc.Path, after, info.Mode().Perm()); err != nil {
		return "", fmt.Errorf("setup: cannot write the homeserver's configuration: %w", err)
	}
	return backup, nil
}

// copyNew writes a file that must not exist yet.
func copyNew(path string, data []byte, like os.FileInfo) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, like.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = config.KeepOwner(path, like)
	}
	return err
}

// edited is the configuration with the registration named in it.
func (hc *HomeserverConfig) edited(registration string) ([]byte, error) {
	after, err := hc.insert(registration)
	if err != nil {
		return nil, err
	}
	// The edit was made in the text. Check it in the meaning: the same
	// configuration, with one more registration at the end of the list.
	var before, got map[string]any
	if yaml.Unmarshal(hc.text, &before) != nil || yaml.Unmarshal(after, &got) != nil {
		return nil, errCannotEdit
	}
	target := before
	keys := hc.listKey()
	for _, key := range keys[:len(keys)-1] {
		inner, ok := target[key].(map[string]any)
		if !ok {
			inner = make(map[string]any)
			target[key] = inner
		}
		target = inner
	}
	list, _ := target[keys[len(keys)-1]].([]any)
	target[keys[len(keys)-1]] = append(list, any(registration))
	if !reflect.DeepEqual(before, got) {
		return nil, errCannotEdit
	}
	return after, nil
}

func (hc *HomeserverConfig) insert(registration string) ([]byte, error) {
	keys := hc.listKey()
	node := hc.root
	for depth, key := range keys {
		k, v := entry(node, key)
		last := depth == len(keys)-1
		switch {
		case k == nil || v.Kind == yaml.ScalarNode && v.Tag == "!!null":
			return hc.addKey(node, k, depth, registration)
		case last && v.Kind == yaml.SequenceNode:
			return hc.addItem(v, registration)
		case !last && v.Kind == yaml.MappingNode:
			node = v
		default:
			return nil, errCannotEdit
		}
	}
	return nil, errCannotEdit
}

// addKey adds the list to a mapping that lacks it (k nil) or has it without a
// value.
func (hc *HomeserverConfig) addKey(parent, k *yaml.Node, depth int, registration string) ([]byte, error) {
	keys := hc.listKey()[depth:]
	if parent.Style&yaml.FlowStyle != 0 {
		if k != nil {
			return nil, errCannotEdit
		}
		value := `[` + quote(registration) + `]`
		for i := len(keys) - 1; i >= 0; i-- {
			value = quote(keys[i]) + ": " + value
			if i > 0 {
				value = "{" + value + "}"
			}
		}
		return hc.intoFlow(parent, '{', '}', len(parent.Content) > 0, value)
	}
	indent := ""
	if depth > 0 {
		if len(parent.Content) == 0 {
			return nil, errCannotEdit
		}
		indent = strings.Repeat(" ", parent.Content[0].Column-1)
	}
	var block strings.Builder
	for i, key := range keys {
		fmt.Fprintf(&block, "%s%s%s:\n", indent, strings.Repeat("  ", i), key)
	}
	fmt.Fprintf(&block, "%s%s- %s\n", indent, strings.Repeat("  ", len(keys)), quote(registration))
	lines := splitLines(hc.text)
	switch {
	case k != nil: // "key:" without a value: the line is replaced
		at := k.Line - 1
		if strings.TrimRight(strings.TrimSpace(stripComment(string(lines[at]))), " ") != k.Value+":" {
			return nil, errCannotEdit
		}
		lines[at] = []byte(block.String())
		return bytes.Join(lines, nil), nil
	case depth > 0: // before the mapping's first key
		at := parent.Content[0].Line - 1
		return joinWith(lines, at, block.String()), nil
	}
	text := string(hc.text)
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	if end := strings.LastIndex(text, "\n..."); end >= 0 {
		return nil, errCannotEdit
	}
	return []byte(text + "\n# The registration of matrix-mls.\n" + block.String()), nil
}

// addItem adds to a list that is there.
func (hc *HomeserverConfig) addItem(list *yaml.Node, registration string) ([]byte, error) {
	if list.Style&yaml.FlowStyle != 0 || len(list.Content) == 0 {
		return hc.intoFlow(list, '[', ']', len(list.Content) > 0, quote(registration))
	}
	lines := splitLines(hc.text)
	last := list.Content[len(list.Content)-1]
	first := string(lines[list.Content[0].Line-1])
	dash := strings.IndexByte(first, '-')
	if last.Kind != yaml.ScalarNode || last.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 || dash < 0 {
		return nil, errCannotEdit
	}
	if !bytes.HasSuffix(lines[last.Line-1], []byte("\n")) {
		lines[last.Line-1] = append(lines[last.Line-1], '\n')
	}
	return joinWith(lines, last.Line, first[:dash]+"- "+quote(registration)+"\n"), nil
}

// intoFlow puts an element before the bracket that closes a node written with
// brackets, as in JSON.
func (hc *HomeserverConfig) intoFlow(node *yaml.Node, open, closing byte, more bool, element string) ([]byte, error) {
	offset := 0
	for i, line := range splitLines(hc.text) {
		if i == node.Line-1 {
			break
		}
		offset += len(line)
	}
	// Column counts characters; the text before a bracket on its line is ASCII
	// or the edit is refused by the check of its meaning.
	offset += node.Column - 1
	if offset >= len(hc.text) || hc.text[offset] != open {
		return nil, errCannotEdit
	}
	end := closingBracket(hc.text, offset, open, closing)
	if end < 0 {
		return nil, errCannotEdit
	}
	at := end
	for at > 0 && (hc.text[at-1] == ' ' || hc.text[at-1] == '\n' || hc.text[at-1] == '\r' || hc.text[at-1] == '\t') {
		at--
	}
	if more {
		separator := ", "
		if hc.text[at-1] == ',' {
			separator = " "
		}
		element = separator + element
	}
	return append(append(bytes.Clone(hc.text[:at]), element...), hc.text[at:]...), nil
}

func closingBracket(text []byte, start int, open, closing byte) int {
	depth := 0
	for i := start; i < len(text); i++ {
		switch c := text[i]; c {
		case '"', '\'':
			for i++; i < len(text) && text[i] != c; i++ {
				if c == '"' && text[i] == '\\' {
					i++
				}
			}
		case '#':
			if i > 0 && (text[i-1] == ' ' || text[i-1] == '\n' || text[i-1] == '\t') {
				for i < len(text) && text[i] != '\n' {
					i++
				}
			}
		case open:
			depth++
		case closing:
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

func splitLines(text []byte) [][]byte { return bytes.SplitAfter(bytes.Clone(text), []byte("\n")) }

func joinWith(lines [][]byte, at int, block string) []byte {
	var out bytes.Buffer
	for i, line := range lines {
		if i == at {
			out.WriteString(block)
		}
		out.Write(line)
	}
	if at >= len(lines) {
		out.WriteString(block)
	}
	return out.Bytes()
}

func stripComment(line string) string {
	if i := strings.Index(line, " #"); i >= 0 {
		return line[:i]
	}
	return line
}

// quote writes a string so that YAML and JSON read it alike.
func quote(s string) string {
	out, _ := json.Marshal(s) // a string always encodes
	return string(out)
}
