package terminal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"unicode"
	"unicode/utf8"
)

const maxLine = 64 << 10

// clean makes text of other people harmless on a terminal: control characters,
// which could move the cursor or retitle the window, and characters that
// change the direction of the text are replaced.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f, r == 0x061c,
			r == unicode.ReplacementChar, unicode.IsControl(r), r == 0x2028, r == 0x2029:
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// shellWord makes text of other people one word of a shell's command line, so
// that a command which is shown can be pasted: room and event ids hold ! and $.
func shellWord(s string) string {
	s = clean(s)
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@:._/+=-", r)
	}
	if s != "" && s[0] != '-' && s[0] != '=' && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// body makes a message harmless and indents its further lines.
func body(s string) string {
	lines := strings.Split(strings.ReplaceAll(s, "\r\n", "\n"), "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, "\n    ")
}

func readLine(r io.Reader) (string, error) {
	// Byte by byte: what follows the line is not ours.
	var line []byte
	b := make([]byte, 1)
	for len(line) < maxLine {
		n, err := r.Read(b)
		if n == 1 {
			if b[0] == '\n' {
				return strings.TrimRight(string(line), "\r"), nil
			}
			line = append(line, b[0])
		}
		if err == io.EOF && len(line) > 0 {
			return string(line), nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", errors.New("the line is too long")
}

// errNoTerminal means that what looks like a terminal, such as /dev/null, or
// a terminal that cannot hide what is typed, is no place to ask for a secret.
var errNoTerminal = errors.New("there is no terminal that hides what is typed")

// readHidden reads a line from a terminal that does not show it.
func readHidden(ctx context.Context, in *os.File, out io.Writer, prompt string) (string, error) {
	stty := func(arg string) error {
		cmd := exec.Command("stty", arg)
		cmd.Stdin = in
		return cmd.Run()
	}
	if err := stty("-echo"); err != nil {
		return "", fmt.Errorf("%w (stty: %w)", errNoTerminal, err)
	}
	defer func() { _ = stty("echo") }()
	fmt.Fprint(out, prompt)
	line, err := interruptible(ctx, func() (string, error) { return readLine(in) })
	fmt.Fprintln(out)
	return line, err
}

// interruptible runs a reading that nothing but its input can end, and lets go
// of it when ctx ends; the program is about to exit then.
func interruptible(ctx context.Context, read func() (string, error)) (string, error) {
	type result struct {
		line string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		line, err := read()
		done <- result{line, err}
	}()
	select {
	case r := <-done:
		return r.line, r.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// readSecretFile reads the first line of a file ("-": standard input).
func readSecretFile(env *Env, path string) (string, error) {
	var r io.Reader = env.Stdin
	if path != "-" {
		f, err := os.Open(env.path(path))
		if err != nil {
			return "", err
		}
		defer f.Close()
		r = f
	}
	line, err := bufio.NewReader(io.LimitReader(r, maxLine)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// readAll reads a text that is sent as one message.
func readAll(r io.Reader, limit int64) (string, error) {
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return "", err
	}
	if int64(len(raw)) > limit {
		return "", tooLong("the text", limit)
	}
	if !utf8.Valid(raw) {
		return "", notText("standard input")
	}
	return strings.TrimRight(string(raw), "\n"), nil
}

// notText refuses bytes that would arrive as others.
func notText(what string) error {
	return failf(ExitUsage, "send it with --file", "%s is not text (UTF-8)", what)
}

// tooLong refuses what is too large for a message.
func tooLong(what string, limit int64) error {
	return failf(ExitUsage, "send it with --file", "%s has more than %d bytes", what, limit)
}

// table prints rows in columns.
func table(w io.Writer, rows [][]string) {
	var width []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", width[i]-len([]rune(cell))+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}
