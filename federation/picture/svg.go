package picture

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
)

// Geometry of the drawing, in pixels. The text is in a font whose characters are
// equally wide, so that what fits in columns fits in pixels.
const (
	charWidth  = 8 // of 13 px, with a little room
	lineHeight = 18
	rowGap     = 10
	margin     = 20
	laneWidth  = 26
	radius     = 6
	textAt     = margin + 2*laneWidth + 8
	svgWidth   = textAt + textColumns*charWidth + margin
	// textColumns is how long a line beside the drawing is.
	textColumns = 76
)

// svgStyle is the whole style of a picture. The colours have a contrast of at least
// 4.5 : 1 to the ground, in light and in dark.
const svgStyle = `svg{color-scheme:light dark}
.bg{fill:#fff}.t{fill:#1f2328}.m{fill:#57606a}
text{font:13px ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;unicode-bidi:isolate}
.h{font-size:17px;font-weight:700}.b{font-weight:700}
.l{fill:none;stroke:#8c959f;stroke-width:2}.d{stroke-dasharray:3 4}.bold{stroke:#1a7f37;stroke-width:3}
.s{stroke-width:2.2}.dot{stroke-width:3.4;stroke-linecap:round}
.final{stroke:#1a7f37;fill:#1a7f37}.accepted{stroke:#0969da}.provisional{stroke:#9a6700}.in-doubt{stroke:#cf222e}.displaced,.waiting,.folded{stroke:#57606a}
.open{fill:#fff}
@media (prefers-color-scheme:dark){.bg{fill:#0d1117}.t{fill:#e6edf3}.m{fill:#9aa4af}.l{stroke:#6e7681}.bold{stroke:#3fb950}
.final{stroke:#3fb950;fill:#3fb950}.accepted{stroke:#58a6ff}.provisional{stroke:#d29922}.in-doubt{stroke:#ff7b72}.displaced,.waiting,.folded{stroke:#9aa4af}
.open{fill:#0d1117}}
`

// painter writes a drawing from the top down.
type painter struct {
	b strings.Builder
	y int // of the next line of text
}

func (w *painter) printf(format string, args ...any) { fmt.Fprintf(&w.b, format, args...) }

// text writes one line of text. What comes from others was made harmless before;
// here it is made XML.
func (w *painter) text(x int, class, s string) {
	w.y += lineHeight
	w.printf(`<text x="%d" y="%d" class="%s">%s</text>`+"\n", x, w.y-5, class, xmlText(s))
}

func (w *painter) para(x int, class, s string, columns int) {
	for i, l := range wrap(s, columns-2) {
		if i > 0 {
			l = "\u00a0\u00a0" + l
		}
		w.text(x, class, l)
	}
}

// SVG returns the picture as an SVG document: no script, nothing that is fetched,
// a title, a description and text beside every mark.
func (p *Picture) SVG() []byte { return []byte(p.svg(true)) }

func (p *Picture) svg(document bool) string {
	w := new(painter)
	w.y = margin
	wide := (svgWidth - 2*margin) / charWidth
	if p.Title != "" {
		w.y += 4
		w.text(margin, "t h", cut(p.Title, wide*13/17))
		w.y += 2
	}
	for _, s := range []string{p.Room, p.Source} {
		if s != "" {
			w.text(margin, "m", s)
		}
	}
	w.y += rowGap
	for _, s := range p.Summary {
		w.para(margin, "t", s, wide)
	}
	w.y += 2 * rowGap
	p.paint(w)
	if len(p.Devices) > 0 {
		w.y += rowGap
		w.text(margin, "t b", "Applied, as far as is known here")
		for _, s := range p.Devices {
			w.para(margin, "t", s, wide)
		}
	}
	w.y += rowGap + 4
	p.key(w)
	w.y += margin

	var b strings.Builder
	if document {
		b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n")
	}
	title := "Epochs of a room"
	if p.Title != "" {
		title = "Epochs of " + p.Title
	} else if p.Room != "" {
		title = "Epochs of " + p.Room
	}
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="graphics-document document" aria-labelledby="epochs-title" aria-describedby="epochs-desc">`+"\n", svgWidth, w.y, svgWidth, w.y)
	fmt.Fprintf(&b, `<title id="epochs-title">%s</title>`+"\n", xmlText(title))
	fmt.Fprintf(&b, `<desc id="epochs-desc">%s</desc>`+"\n", xmlText(strings.Join(p.Summary, " ")))
	b.WriteString("<style>" + svgStyle + "</style>\n")
	fmt.Fprintf(&b, `<rect width="%d" height="%d" class="bg"/>`+"\n", svgWidth, w.y)
	b.WriteString(w.b.String())
	b.WriteString("</svg>\n")
	return b.String()
}

// placed is where a row's mark is.
type placed struct{ x, y, bottom int }

// paint draws the rows: first the lines, then marks and words over them.
func (p *Picture) paint(w *painter) {
	at := make([]placed, len(p.Rows))
	words := &painter{y: w.y}
	for i := range p.Rows {
		r := &p.Rows[i]
		at[i] = placed{x: margin + radius + r.Lane*laneWidth, y: words.y + lineHeight/2}
		words.printf(`<g role="group" aria-label="%s">`+"\n", xmlText(r.label()))
		words.mark(r, at[i].x, at[i].y)
		head := r.State
		if r.Mark != MarkFold {
			head = fmt.Sprintf("%d %s %s", r.Epoch, r.short(), r.State)
		}
		class := "t b"
		if r.Mark == MarkFold {
			class = "m"
		}
		words.para(textAt, class, head, textColumns)
		for _, s := range r.Text {
			words.para(textAt, "m", s, textColumns)
		}
		words.printf("</g>\n")
		at[i].bottom = words.y
		words.y += rowGap
	}
	for i := range p.Rows {
		p.lines(w, at, i)
	}
	w.b.WriteString(words.b.String())
	w.y = words.y
}

// lines draws what leads from a row downwards.
func (p *Picture) lines(w *painter, at []placed, i int) {
	r, from := &p.Rows[i], at[i]
	chain := i + 1 // the next row of the chain
	for chain < len(p.Rows) && p.Rows[chain].Lane != 0 {
		chain++
	}
	if r.Lane == 0 {
		if chain == len(p.Rows) {
			return
		}
		class := "l"
		switch {
		case r.Mark == MarkFold || p.Rows[chain].Mark == MarkFold:
			class += " d"
		case r.Mark == MarkFinal:
			class += " bold"
		}
		w.printf(`<path d="M%d %dV%d" class="%s"/>`+"\n", from.x, from.y, at[chain].y, class)
		return
	}
	class := "l"
	if r.Mark == MarkFold || r.Mark == MarkWaiting {
		class += " d"
	}
	if !r.Joins {
		w.printf(`<path d="M%d %dV%d" class="%s"/>`+"\n", from.x, from.y, at[i+1].y, class)
		return
	}
	// Down to the chain, between this row and the next.
	to, end := margin+radius, from.bottom+rowGap
	w.printf(`<path d="M%d %dV%dQ%d %d %d %d" class="%s"/>`+"\n", from.x, from.y, end-14, from.x, end-2, to, end, class)
	// Above the head there is no chain yet: the first branch there draws what leads to it.
	first := !slices.ContainsFunc(p.Rows[:i], func(r Row) bool { return r.Lane == 0 || r.Joins })
	if first && chain > i+1 && chain < len(p.Rows) {
		w.printf(`<path d="M%d %dV%d" class="l d"/>`+"\n", to, end, at[chain].y)
	}
}

// label is what a row is called where it is not seen.
func (r *Row) label() string {
	where := "on the head's chain: "
	if r.Lane > 0 {
		where = "beside the head: "
	}
	if r.Mark == MarkFold {
		return where + r.State
	}
	return fmt.Sprintf("%scommit %s, epoch %d: %s", where, r.short(), r.Epoch, r.State)
}

// mark draws the mark of a row; each has a shape of its own.
func (w *painter) mark(r *Row, x, y int) {
	class := string(r.Mark) + " s"
	if r.Era > 0 {
		w.printf(`<circle cx="%d" cy="%d" r="%d" class="open %s"/>`, x, y, radius+4, class)
	}
	switch r.Mark {
	case MarkFinal:
		w.printf(`<circle cx="%d" cy="%d" r="%d" class="%s"/>`, x, y, radius, class)
	case MarkAccepted:
		w.printf(`<circle cx="%d" cy="%d" r="%d" class="open %s"/>`, x, y, radius, class)
	case MarkProvisional:
		w.printf(`<rect x="%d" y="%d" width="%d" height="%d" class="open %s"/>`, x-radius, y-radius, 2*radius, 2*radius, class)
	case MarkDoubt:
		w.printf(`<path d="M%d %dl%d %dl%d %dl%d %dz" class="open %s"/>`, x, y-radius-2, radius+2, radius+2, -radius-2, radius+2, -radius-2, -radius-2, class)
	case MarkDisplaced:
		w.printf(`<circle cx="%d" cy="%d" r="%d" class="bg"/><path d="M%d %dl%d %dM%d %dl%d %d" class="%s"/>`, x, y, radius+1,
			x-5, y-5, 10, 10, x-5, y+5, 10, -10, class)
	case MarkWaiting:
		w.printf(`<circle cx="%d" cy="%d" r="%d" class="open %s" stroke-dasharray="2 3"/>`, x, y, radius, class)
	case MarkFold:
		w.printf(`<circle cx="%d" cy="%d" r="%d" class="bg"/>`, x, y, radius+2)
		for _, dy := range []int{-6, 0, 6} {
			w.printf(`<path d="M%d %dh.1" class="%s dot"/>`, x, y+dy, r.Mark)
		}
	}
	w.b.WriteString("\n")
}

// key explains the marks that are used.
func (p *Picture) key(w *painter) {
	x, y := margin, w.y
	for _, l := range legend {
		if !p.uses(l.mark) {
			continue
		}
		need := 2*radius + 10 + (len(l.text)+2)*charWidth
		if x > margin && x+need > svgWidth-margin {
			x, y = margin, y+lineHeight+4
		}
		w.printf(`<g aria-hidden="true">`)
		w.mark(&Row{Mark: l.mark}, x+radius, y+lineHeight/2)
		w.printf("</g>")
		w.y = y
		w.text(x+2*radius+10, "m", l.text)
		x += need
	}
}

const pageStyle = `:root{color-scheme:light dark}body{margin:1rem;font:16px/1.5 system-ui,sans-serif;background:#fff;color:#1f2328}
figure{margin:0;max-width:100%;overflow-x:auto}pre{overflow-x:auto;font-size:13px}a{color:#0969da}
table{margin:1rem 0}td,th,caption{text-align:left;padding:.2rem 1rem .2rem 0}caption{font-size:1.2rem}
@media (prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}a{color:#58a6ff}}
`

// ContentSecurityPolicy is the header for [Picture.Page], [Picture.SVG] and pages
// made with [Document]: it allows their own styles and nothing else.
func ContentSecurityPolicy() string {
	var hashes []string
	for _, style := range []string{svgStyle, pageStyle} {
		sum := sha256.Sum256([]byte(style))
		hashes = append(hashes, "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
	}
	return "default-src 'none'; style-src " + strings.Join(hashes, " ") + "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}

// Document returns an HTML page with a title, which may be anything, and a body,
// which is HTML.
func Document(title, body string) []byte {
	return []byte("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>" +
		xmlText(heading(title)) + "</title>\n<style>" + pageStyle + "</style>\n</head>\n<body>\n<main>\n" + body + "</main>\n</body>\n</html>\n")
}

// Page returns the picture as an HTML page, with the text of a terminal below it.
// Before is HTML that stands above the picture, such as links.
func (p *Picture) Page(before string) []byte {
	title := "Epochs"
	if p.Title != "" {
		title += " of " + p.Title
	} else if p.Room != "" {
		title += " of " + p.Room
	}
	return Document(title, "<h1>Epochs</h1>\n"+before+"<figure>\n"+p.svg(false)+"</figure>\n<details>\n<summary>The same as text</summary>\n<pre>"+
		preText(p.Text())+"</pre>\n</details>\n")
}

// preText is xmlText that keeps lines.
func preText(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = xmlText(lines[i])
	}
	return strings.Join(lines, "\n")
}
