package picture

import (
	"strings"
	"unicode"
)

const bad = unicode.ReplacementChar

// maxName is how many columns an identifier takes.
const maxName = 40

// maxMarks is how many combining marks may follow one character.
const maxMarks = 2

// printable replaces what could move a cursor, hide text or turn it around:
// everything that is no letter, mark, number, punctuation, symbol or plain space.
// Marks beyond the second on one character are left out.
func printable(s string, max int, allowed func(rune) bool) string {
	var b strings.Builder
	used, marks := 0, 0
	for i, r := range s {
		if unicode.In(r, unicode.Mn, unicode.Me) {
			if marks++; marks > maxMarks || b.Len() == 0 {
				continue
			}
		} else {
			marks = 0
		}
		if !unicode.IsPrint(r) || filler(r) || !allowed(r) {
			r = bad
		}
		if used+columns(r) > max-1 && i+len(string(r)) < len(s) || used+columns(r) > max {
			b.WriteRune('…')
			break
		}
		b.WriteRune(r)
		used += columns(r)
	}
	return b.String()
}

// filler reports letters and symbols that draw nothing.
func filler(r rune) bool {
	switch r {
	case 0x115f, 0x1160, 0x3164, 0xffa0, 0x2800:
		return true
	}
	return false
}

// Name makes an identifier of others harmless for a line of text, as in pictures:
// one word of at most 42 columns. It is not escaped for HTML.
func Name(id string) string { return name(id) }

// name makes an identifier harmless: one word, read from left to right. One that
// could pass for words of ours stands in quotation marks.
func name(s string) string {
	out := printable(s, maxName, func(r rune) bool { return r != ' ' && r != '"' && !rightToLeft(r) })
	if out == "" {
		return `""`
	}
	if strings.ContainsAny(out, ",;()…") || strings.HasSuffix(out, ".") {
		return `"` + out + `"`
	}
	return out
}

// heading makes a room's name harmless. It stands on a line of its own, so that
// its direction concerns nothing else.
func heading(s string) string {
	return strings.TrimSpace(printable(strings.Map(func(r rune) rune {
		switch r {
		case '\n', '\t':
			return ' '
		case 0x200d, 0xfe0f: // joins pictures to one; they are drawn side by side
			return -1
		}
		return r
	}, s), lineWidth-2, func(rune) bool { return true }))
}

// rightToLeft reports characters of the blocks that are written from the right.
func rightToLeft(r rune) bool {
	return r >= 0x0590 && r <= 0x08ff || r >= 0xfb1d && r <= 0xfdff || r >= 0xfe70 && r <= 0xfeff ||
		r >= 0x10800 && r <= 0x10fff || r >= 0x1e800 && r <= 0x1efff
}

// columns is how many columns of a terminal a character takes.
func columns(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xa960 && r <= 0xa97f, r >= 0xac00 && r <= 0xd7a3, r >= 0xf900 && r <= 0xfaff,
		r >= 0xfe10 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60, r >= 0xffe0 && r <= 0xffe6, r >= 0x16fe0 && r <= 0x18aff, r >= 0x1b000 && r <= 0x1b2ff,
		r >= 0x1f000 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	case r >= 0x2300 && r <= 0x27bf:
		return 2 // some of them; none is taken for narrower than it is
	}
	return 1
}

// width is how many columns a text takes.
func width(s string) int {
	n := 0
	for _, r := range s {
		n += columns(r)
	}
	return n
}

// wrap breaks a text at spaces into lines of at most so many columns. A word that
// is longer is cut.
func wrap(s string, max int) []string {
	var lines []string
	line, used := "", 0
	for _, word := range strings.Fields(s) {
		w := width(word)
		if w > max {
			word = cut(word, max)
			w = width(word)
		}
		switch {
		case line == "":
			line, used = word, w
		case used+1+w <= max:
			line, used = line+" "+word, used+1+w
		default:
			lines = append(lines, line)
			line, used = word, w
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}

func cut(s string, max int) string {
	n := 0
	for i, r := range s {
		if n+columns(r) > max-1 {
			return s[:i] + "…"
		}
		n += columns(r)
	}
	return s
}

// xmlText writes a text as character data or attribute value of XML and HTML.
func xmlText(s string) string {
	return xmlReplacer.Replace(strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r >= 0xd800 && r <= 0xdfff || r&0xfffe == 0xfffe {
			return bad
		}
		return r
	}, s))
}

var xmlReplacer = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#39;")
